//! A fleet: `meshd ca` and two nodes that joined it with tokens, all of them the real programs, while the CA's keys rotate,
//! it is killed again and again, and certificates are taken back.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::daemon::{Node, bin_dir};
use crate::it::faketime::WallClock;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, is_unserved, last_line, probe, serve, start_probe, wait_event};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, Program, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Daemon 180:
        root_and_intermediate_rotate_under_traffic_and_no_connection_fails,
        a_ca_that_is_killed_again_and_again_fails_no_connection_and_forgets_nothing,
        what_is_revoked_is_cut_within_seconds_and_what_is_blocked_gets_nothing_more,
        the_memory_of_whoever_holds_keys_is_shown_to_nobody_and_leaves_no_core;
    FakeTime 120:
        a_ca_whose_clock_jumps_a_day_forward_withdraws_and_forgets_nothing;
];

const PORT: u16 = 15012;
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
/// The shortest that the CA's file may say, in seconds; nodes' own certificates live as long.
const LIFE: u64 = 60;
/// By when everything was renewed that was signed before: an SVID is at six tenths of its life.
const RENEWED: Duration = Duration::from_secs(LIFE * 6 / 10 + 4);

/// `meshd ca` in a place of its own.
pub(super) struct Service {
    pub(super) place: Place,
    pub(super) dir: PathBuf,
    /// Before `meshd`.
    pub(super) prefix: Vec<String>,
    pub(super) program: Option<Program>,
}

impl Service {
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.wait_ready(PATIENCE)
    }

    /// Starts it, whatever it does then.
    pub(super) fn launch(&mut self) -> anyhow::Result<()> {
        let prefix = self.prefix.clone();
        self.launch_by(&prefix.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same by another program.
    fn launch_by(&mut self, by: &[&str]) -> anyhow::Result<()> {
        let (meshd, config) = (bin_dir().join("meshd"), self.dir.join("ca.yaml"));
        let mut argv: Vec<_> = by.iter().map(|&one| one.into()).collect();
        argv.extend([meshd.to_string_lossy(), "ca".into(), "--config".into(), config.to_string_lossy()]);
        self.program = Some(self.place.launch("meshd-ca", &argv).start()?);
        Ok(())
    }

    pub(super) fn wait_ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.program.as_mut().context("the CA runs")?.wait_to_say("meshd ca is ready", patience)?;
        Ok(())
    }

    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.program.take().context("the CA runs")?.kill_hard()
    }

    /// Runs `meshctl ca ...` and returns what it printed.
    pub(super) fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (meshctl, run) = (bin_dir().join("meshctl"), self.dir.join("run"));
        let (meshctl, run) = (meshctl.to_string_lossy(), run.to_string_lossy());
        let mut argv: Vec<&str> = vec![&meshctl, "ca"];
        argv.extend(arguments);
        argv.extend(["--ca-runtime-dir", &run]);
        Ok(self.place.run(&argv)?.succeeded()?.trim().to_owned())
    }

    fn keys(&self) -> anyhow::Result<Value> {
        let status: Value = serde_json::from_str(&self.ctl(&["status", "-o", "json"])?)?;
        Ok(status["keys"].clone())
    }

    /// Serial numbers of the authorities of this kind, by stage.
    pub(super) fn in_stage(&self, kind: &str, stage: &str) -> anyhow::Result<Vec<String>> {
        let keys = self.keys()?;
        let is_it = |one: &&Value| one["kind"] == kind && one["stage"] == stage;
        let found = keys["authorities"].as_array().into_iter().flatten().filter(is_it);
        Ok(found.filter_map(|one| one["serial"].as_str().map(str::to_owned)).collect())
    }
}

pub(super) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(std::io::Write::write_all(&mut file, text.as_bytes())?)
}

/// The CA, and both nodes joined.
fn given(ground: &Ground) -> anyhow::Result<(Mesh, Service)> {
    given_by(ground, Vec::new())
}

/// The same; `prefix` comes before `meshd ca`.
fn given_by(ground: &Ground, prefix: Vec<String>) -> anyhow::Result<(Mesh, Service)> {
    let mut mesh = Mesh::given(ground)?;
    let [place] = mesh.pods.wire.plug(["ca"])?;
    let dir = ground.dir().join("ca");
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let node = |name: &str| json!({ "name": name, "identities": ["spiffe://cluster.local/ns/shop/*"] });
    let file = json!({
        "trustDomain": "cluster.local",
        "directory": dir.join("state"),
        "runtimeDir": dir.join("run"),
        "listen": [place.at(PORT)],
        "dnsNames": ["ca.example.com"],
        "svidLifetimeSeconds": LIFE,
        "maxSvidLifetimeSeconds": LIFE,
        "rotation": { "automatic": false, "propagationSeconds": 1 },
        "nodes": [node("node-a"), node("node-b")],
        "audit": { "file": dir.join("audit") },
    });
    fs::write(dir.join("ca.yaml"), file.to_string())?;
    let mut service = Service { place, dir, prefix, program: None };
    service.start()?;
    let roots = service.dir.join("state/ca.crt");
    for node in [&mut mesh.a, &mut mesh.b] {
        let token = service.dir.join(format!("{}.token", node.name));
        write_secret(&token, &service.ctl(&["token", "create", "--node", &node.name])?)?;
        let ca = json!({
            "provider": "meshd-ca", "address": service.place.at(PORT).to_string(),
            "serverName": "ca.example.com", "rootsFile": roots, "joinTokenFile": token,
            "svidLifetimeSeconds": LIFE,
        });
        node.settings.insert("ca".into(), ca);
    }
    mesh.configure()?;
    mesh.a.start()?;
    mesh.b.start()?;
    Ok((mesh, service))
}

/// Connections one after another while `act` runs; none may fail. How many there were.
pub(super) fn under_traffic(mesh: &Mesh, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u32> {
    let (over, count) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
                let nth = count.fetch_add(1, Ordering::Relaxed);
                ensure!(seen["text"] == "hello" && seen["ended"] == "eof", "connection {nth} failed: {seen}");
            }
            anyhow::Ok(())
        });
        let acted = act();
        over.store(true, Ordering::Relaxed);
        let carried = traffic.join().map_err(|_| anyhow::anyhow!("the traffic's thread panicked"))?;
        carried.with_context(|| format!("{}{}", mesh.a.log(), mesh.b.log()))?;
        acted
    })?;
    Ok(count.into_inner())
}

/// Goes on with a rotation until it says that this stage is reached; what keeps it back is not forced.
fn advance_until(
    service: &Service,
    kind: &str,
    done: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("the rotation of the {kind} to go on"), || {
        // Refused while a node has not acknowledged yet.
        let _ = service.ctl(&["rotate", kind, "--advance"]);
        done()
    })
    .with_context(|| service.keys().map(|keys| keys.to_string()).unwrap_or_default())
}

fn root_and_intermediate_rotate_under_traffic_and_no_connection_fails(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, service) = given(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let open = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", "170000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let (root, intermediate) =
        (service.in_stage("root", "active")?, service.in_stage("intermediate", "active")?);
    let first = mesh.a.serial_of("/sa/client")?;
    let count = under_traffic(&mesh, || {
        service.ctl(&["rotate", "intermediate"])?;
        advance_until(&service, "intermediate", || {
            let active = service.in_stage("intermediate", "active")?;
            Ok(active.len() == 1 && active != intermediate)
        })?;
        service.ctl(&["rotate", "root"])?;
        advance_until(&service, "root", || {
            let active = service.in_stage("root", "active")?;
            Ok(active.len() == 1 && active != root)
        })?;
        // Everything that the old one signed is replaced by its owner; only then nobody misses it.
        std::thread::sleep(RENEWED);
        ensure!(mesh.a.serial_of("/sa/client")? != first, "nothing was renewed: the story proves nothing");
        let rows = mesh.a.ctl_json(&["connections"])?;
        let ids = rows["connections"].as_array().into_iter().flatten().map(|row| row["age_ms"].as_u64());
        ensure!(ids.flatten().any(|age| age > 30_000), "the connection that was open is gone: {rows}");
        service.ctl(&["rotate", "root", "--advance", "--force"])?;
        wait_until(PATIENCE, "both nodes to believe the new root alone", || {
            let believes = |node: &Node| -> anyhow::Result<usize> {
                let rows = node.ctl_json(&["certs"])?;
                Ok(rows.as_array().into_iter().flatten().filter(|row| row["kind"] == "root").count())
            };
            Ok(believes(&mesh.a)? == 1 && believes(&mesh.b)? == 1)
        })
    })?;
    ensure!(count > 50, "only {count} connections");
    eprintln!("{count} connections while an intermediate and a root rotated, none failed");
    // What rests on a root that is believed no more ends with it.
    let seen = last_line(&open.finish(PATIENCE)?)?;
    ensure!(seen["ended"] == "reset", "a connection outlived the root that it rests on: {seen}");
    // The nodes can still ask: what they prove themselves with is of the new root, too.
    let again = mesh.a.serial_of("/sa/client")?;
    wait_until(RENEWED + PATIENCE, "renewals to go on", || Ok(mesh.a.serial_of("/sa/client")? != again))
}

fn a_ca_that_is_killed_again_and_again_fails_no_connection_and_forgets_nothing(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (mesh, mut service) = given(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let first = mesh.a.serial_of("/sa/client")?;
    let begun = Instant::now();
    let mut kills = 0;
    let count = under_traffic(&mesh, || {
        while begun.elapsed() < RENEWED {
            service.kill()?;
            kills += 1;
            std::thread::sleep(Duration::from_millis(500));
            service.start()?;
            std::thread::sleep(Duration::from_millis(1500));
        }
        Ok(())
    })?;
    ensure!(count > 50 && kills > 5, "only {count} connections, {kills} kills");
    wait_until(PATIENCE, "the client's SVID to be renewed", || Ok(mesh.a.serial_of("/sa/client")? != first))?;
    eprintln!("{count} connections while the CA was killed {kills} times, none failed");
    // What was issued before a kill is in the register after it: it can be revoked by identity.
    let said = service.ctl(&["revoke", "--identity", CLIENT, "-o", "json"])?;
    let revoked = serde_json::from_str::<Value>(&said)?["serials"].clone();
    let names = |serial: &str| revoked.as_array().is_some_and(|all| all.iter().any(|one| one == serial));
    ensure!(names(&first), "the certificate from before the kills is not in the register: {revoked}");
    Ok(())
}

fn what_is_revoked_is_cut_within_seconds_and_what_is_blocked_gets_nothing_more(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (mesh, service) = given(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let live = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", "60000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let before = mesh.a.serial_of("/sa/client")?;
    let began = Instant::now();
    service.ctl(&["revoke", "--identity", CLIENT, "--reason", "key-compromise"])?;
    let seen = last_line(&live.finish(PATIENCE)?)?;
    eprintln!("from the command to the cut: {:?}", began.elapsed());
    ensure!(seen["text"] == "hello" && seen["ended"] == "reset", "the live connection was not reset: {seen}");
    // Its own node renews at once, with another key.
    wait_until(PATIENCE, "another SVID", || Ok(mesh.a.serial_of("/sa/client")? != before))?;
    let hello = || probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"]);
    wait_until(PATIENCE, "the new SVID to be believed", || Ok(hello()?["text"] == "hello"))?;

    service.ctl(&["revoke", "--block", CLIENT])?;
    wait_until(PATIENCE, "the blocked client to be refused", || Ok(is_unserved(&hello()?)))?;
    let other = probe(&mesh.other, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(other["text"] == "hello", "another workload of its node was hit: {other}");
    let status = mesh.a.ctl_json(&["certs"])?.to_string();
    ensure!(status.contains("blocked"), "the node does not say why: {status}");
    service.ctl(&["unblock", CLIENT])?;
    wait_until(PATIENCE * 2, "the client to be served again", || Ok(hello()?["text"] == "hello"))?;
    // OpenSSL reads the lists, too: one of each authority.
    let mut found = false;
    for (nth, list) in service.ctl(&["crl"])?.split_inclusive("-----END X509 CRL-----").enumerate() {
        let file = service.dir.join(format!("{nth}.crl"));
        fs::write(&file, list)?;
        let read = ["openssl", "crl", "-in", &file.to_string_lossy(), "-noout", "-text"];
        found |= service.place.run(&read)?.succeeded()?.to_lowercase().contains("key compromise");
    }
    ensure!(found, "no list says why");
    let audit = fs::read_to_string(service.dir.join("audit"))?;
    ensure!(audit.contains("ca revoke") && audit.contains("ca unblock"), "the operator left no trace");
    Ok(())
}

fn a_ca_whose_clock_jumps_a_day_forward_withdraws_and_forgets_nothing(ground: &Ground) -> anyhow::Result<()> {
    const DAY: i64 = 86_400;
    let clock = WallClock::new(ground.dir(), "ca")?;
    let (mesh, service) = given_by(ground, clock.prefix())?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let hello = || -> anyhow::Result<()> {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
        ensure!(seen["text"] == "hello", "{seen}");
        Ok(())
    };
    let ahead = || Ok::<_, anyhow::Error>(service.keys()?["clockAheadSeconds"].as_i64().unwrap_or_default());
    let root = service.in_stage("root", "active")?;
    service.ctl(&["rotate", "root"])?;
    advance_until(&service, "root", || Ok(service.in_stage("root", "active")? != root))?;
    hello()?;
    let serial = mesh.a.serial_of("/sa/client")?;

    clock.set(DAY)?;
    // By the time since the machine started, which the library leaves alone.
    wait_until(PATIENCE, "the CA to doubt its clock", || Ok(ahead()? > DAY - 600))?;
    let metrics = service.ctl(&["metrics"])?;
    ensure!(metrics.contains("meshd_ca_clock_ahead_seconds 86"), "{metrics}");
    let refused = service.ctl(&["rotate", "root", "--advance"]).err().map(|error| error.to_string());
    ensure!(refused.is_some_and(|why| why.contains("stays where it is")), "the old root was withdrawn");
    ensure!(service.in_stage("root", "retiring")? == root, "the old root is gone");
    hello()?;

    clock.set(0)?;
    wait_until(PATIENCE, "the CA to believe its clock", || Ok(ahead()? == 0))?;
    hello()?;
    // What it signed before is in its register still.
    let said = service.ctl(&["revoke", "--identity", CLIENT, "-o", "json"])?;
    let revoked = serde_json::from_str::<Value>(&said)?["serials"].clone();
    ensure!(
        revoked.as_array().is_some_and(|all| all.iter().any(|one| *one == serial)),
        "forgotten: {revoked}"
    );
    Ok(())
}

fn the_memory_of_whoever_holds_keys_is_shown_to_nobody_and_leaves_no_core(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (mut mesh, mut service) = given(ground)?;
    service.kill()?;
    // As a debugger of the same user has it: the same rights, but no CAP_SYS_PTRACE.
    let same = ["setpriv", "--bounding-set", "-sys_ptrace"];
    let cores = [&same[..], &["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"]].concat();
    service.launch_by(&cores)?;
    service.wait_ready(PATIENCE)?;
    let mut bystander = service.place.launch("sleep", &[&same[..], &["sleep", "600"]].concat()).start()?;
    let looks = |pid: u32| {
        let path = format!("/proc/{pid}/mem");
        service.place.run(&[&same[..], &["head", "-c", "1", &path]].concat())
    };
    let program = service.program.as_ref().context("the CA runs")?;
    let is_shut = |pid: u32| -> anyhow::Result<bool> { Ok(looks(pid)?.stderr.contains("ermission denied")) };
    wait_until(PATIENCE, "the bystander to have fewer rights, too", || Ok(!is_shut(bystander.pid())?))?;
    ensure!(is_shut(program.pid())?, "the CA's memory can be opened");
    bystander.kill_hard()?;
    for program in [service.program.take().context("the CA runs")?, mesh.a.take().context("meshd runs")?] {
        let limits = fs::read_to_string(format!("/proc/{}/limits", program.pid()))?;
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
        let most: Vec<_> = line.split_whitespace().skip(4).take(2).collect();
        ensure!(most == ["0", "0"], "{line}");
        program.signal(nix::sys::signal::Signal::SIGABRT)?;
        let ended = program.finish(PATIENCE)?;
        let dumped = std::os::unix::process::ExitStatusExt::core_dumped(&ended.status);
        ensure!(!dumped, "{} left a core", ended.label);
    }
    Ok(())
}
