//! The SPIFFE Workload API with a client that is not ours, `PyPI`'s `spiffe`: who gets what is decided by the namespace,
//! cgroup and user that a program has, whatever else it is.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, last_line};
use crate::it::netns::Place;
use crate::it::nodefile::{Selector, Workload};
use crate::it::process::{Launch, PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    SpiffeClient 120:
        a_program_gets_the_svids_of_its_workload_and_no_other,
        a_program_that_leaves_its_workload_gets_nothing_more,
        tokens_are_believed_while_the_key_that_signs_them_changes,
        a_workload_that_is_taken_out_of_the_file_gets_nothing_more;
];

/// Where set-up has put it: a Python with py-spiffe.
pub(crate) fn python() -> Option<PathBuf> {
    let target = crate::it::daemon::bin_dir().parent()?.to_owned();
    let folder = target.join("tools/spiffe");
    folder.join("installed").is_file().then(|| folder.join("bin/python"))
}

/// A mesh whose node a also has a workload of a cgroup and one of a user.
fn given(ground: &Ground) -> anyhow::Result<(Mesh, Place)> {
    let mut mesh = Mesh::given(ground)?;
    let group = ground.cgroup().join("batch");
    let batch = mesh.a.place.in_cgroup(&group.join("deep"))?;
    let selectors = [("batch", Selector::Cgroup(group)), ("nobody", Selector::User("nobody".into()))];
    for (number, (name, selector)) in (250..).zip(selectors) {
        let mut workload = Workload::pod(&mesh.a.place, "node-a");
        workload.name = name.into();
        workload.service_account = name.into();
        workload.selector = selector;
        // They only ask; each has an address of its own, for the other node's file.
        workload.addresses = vec![Ipv4Addr::new(10, 201, 0, number).into()];
        mesh.workloads.push(workload);
    }
    mesh.a.settings.insert("workloadApi".into(), json!({ "enabled": true }));
    mesh.start()?;
    Ok((mesh, batch))
}

fn id(name: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
}

fn client(mesh: &Mesh, place: &Place, args: &[&str]) -> anyhow::Result<Launch> {
    let python = python().context("no py-spiffe: cargo xtask test installs it")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scripts/spiffe_client.py");
    let runtime_dir = mesh.a.runtime_dir();
    let socket = format!("unix://{}-workload/workload.sock", runtime_dir.display());
    let python = python.to_string_lossy();
    Ok(place.launch("spiffe", &[&[&*python, "-B", script, &socket], args].concat()))
}

fn once(mesh: &Mesh, place: &Place, user: Option<&str>) -> anyhow::Result<Value> {
    let mut launch = client(mesh, place, &["once", "shop"])?;
    if let Some(user) = user {
        launch = launch.with_user(user);
    }
    let finished = launch.finish(PATIENCE)?;
    last_line(&finished)
        .with_context(|| finished.succeeded().err().map_or_else(String::new, |e| format!("{e:#}")))
}

fn a_program_gets_the_svids_of_its_workload_and_no_other(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, batch) = given(ground)?;
    let host = &mesh.a.place;
    for (what, place, user, ids) in [
        ("a pod", &mesh.client, None, &["client"][..]),
        ("another pod", &mesh.other, None, &["other"]),
        ("a pod's program of a selected user", &mesh.client, Some("nobody"), &["client"]),
        ("a program in the cgroup", &batch, None, &["batch"]),
        ("a program of the user", host, Some("nobody"), &["nobody"]),
        ("a program in the cgroup, of the user", &batch, Some("nobody"), &["batch", "nobody"]),
    ] {
        let got = once(&mesh, place, user).context(what)?;
        let ids: Vec<String> = ids.iter().map(|name| id(name)).collect();
        ensure!(got["svids"] == json!(ids), "{what}: {got}");
        ensure!(got["jwt"] == json!([ids[0], ids[0], ids[0]]), "{what}: {got}");
        ensure!(
            got["other_audience"] == "refused" && got["bundles"] == json!(["cluster.local"]),
            "{what}: {got}"
        );
        ensure!(got["bare"] == "INVALID_ARGUMENT", "{what}: {got}");
    }
    for (what, place, user) in [
        ("a program of the node itself", host, None),
        ("a pod of another node", &mesh.server, None),
        ("a namespace that is no workload", &mesh.outsider, None),
        ("the selected user in such a namespace", &mesh.outsider, Some("nobody")),
    ] {
        let got = once(&mesh, place, user).context(what)?;
        let refused = got["refused"].as_str().unwrap_or_default();
        ensure!(refused.contains("no identity issued"), "{what}: {got}");
    }
    let state = mesh.a.ca_dir();
    let key = fs::read_to_string(state.join("jwt.key"))?;
    let log = mesh.a.log();
    ensure!(!log.contains("PRIVATE KEY") && !log.contains("eyJ"), "meshd's log shows a key or a token");
    ensure!(key.contains("PRIVATE KEY"), "the authority's key is where it belongs");
    Ok(())
}

fn tokens_are_believed_while_the_key_that_signs_them_changes(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, _batch) = given(ground)?;
    let mut program = client(&mesh, &mesh.client, &["keep", "shop"])?.start()?;
    program.wait_to_say("signed by", PATIENCE)?;
    let keys = || -> anyhow::Result<usize> {
        let status = mesh.a.ctl_json(&["ca", "status", "--embedded"])?;
        Ok(status["keys"]["jwtKeys"].as_array().map_or(0, Vec::len))
    };
    ensure!(keys()? == 1, "there is more than one key before");
    mesh.a.ctl(&["ca", "rotate", "jwt", "--embedded"])?.succeeded()?;
    ensure!(keys()? == 2, "there is no second key");
    ensure!(
        program.stdout().lines().count() == 1,
        "the new key signs before it is known: {}",
        program.stdout()
    );
    mesh.a.ctl(&["ca", "rotate", "jwt", "--embedded", "--advance", "--force"])?.succeeded()?;
    wait_until(PATIENCE, "a token of the new key", || {
        ensure!(program.is_running(), "a token was not believed: {}", program.stderr());
        Ok(program.stdout().lines().count() == 2)
    })?;
    ensure!(keys()? == 2, "the old key went before its last token ended");
    program.kill_hard()
}

fn a_program_that_leaves_its_workload_gets_nothing_more(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, batch) = given(ground)?;
    let mut program = client(&mesh, &batch, &["watch"])?.start()?;
    program.wait_to_say(&format!("told {}", id("batch")), PATIENCE)?;
    let elsewhere = ground.cgroup().join("elsewhere");
    crate::it::cgroup::make(&elsewhere)?;
    fs::write(elsewhere.join("cgroup.procs"), program.pid().to_string())?;
    program.wait_to_say("StatusCode.PERMISSION_DENIED", Duration::from_secs(40))?;
    // It can be killed with its group no more.
    program.signal(nix::sys::signal::Signal::SIGKILL)?;
    wait_until(PATIENCE, "it to end", || Ok(!program.is_running()))
}

fn a_workload_that_is_taken_out_of_the_file_gets_nothing_more(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, _batch) = given(ground)?;
    let mut program = client(&mesh, &mesh.client, &["watch"])?.start()?;
    program.wait_to_say(&format!("told {}", id("client")), PATIENCE)?;
    mesh.workloads.retain(|workload| workload.name != "client");
    mesh.configure()?;
    mesh.a.ctl(&["reload"])?.succeeded()?;
    program.wait_to_say("StatusCode.PERMISSION_DENIED", PATIENCE)
}
