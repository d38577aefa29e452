//! Namespaces, cgroups and threads of a hostile workload: it stays the one that it is, or reaches nobody.

use anyhow::ensure;
use serde_json::Value;

use super::{attempted, must_have_seen};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, accepted, must_serve, serve};
use crate::it::netns::Place;
use crate::it::nodefile::{Selector, Workload};

pub(in crate::it::scenarios) const STORIES: &[Story] = stories![
    Daemon 120:
        a_new_namespace_reaches_nobody_or_is_captured,
        a_process_in_anothers_namespace_speaks_as_the_other,
        a_process_that_moves_between_cgroups_is_captured,
        a_thread_with_a_cgroup_of_its_own_is_captured,
        a_process_outside_the_captured_cgroup_is_refused_by_the_server;
];

/// What a verb without cases saw.
fn saw(place: &Place, args: &[&str]) -> anyhow::Result<Value> {
    let lines = attempted(place, args)?;
    ensure!(lines.len() == 1, "{lines:?}");
    Ok(lines[0].clone())
}

/// Identities that node b's meshd has proven, one for each connection it carried.
fn peers(mesh: &Mesh, count: usize) -> anyhow::Result<Vec<String>> {
    let lines = || mesh.b.access_log().into_iter().filter(|line| line["direction"] == "inbound");
    crate::it::process::wait_until(crate::it::process::PATIENCE, "all connections to be logged", || {
        Ok(lines().count() >= count)
    })?;
    Ok(lines().map(|line| line["peer_spiffe_id"].as_str().unwrap_or_default().to_owned()).collect())
}

fn a_new_namespace_reaches_nobody_or_is_captured(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let host = mesh.server.v4.to_string();
    let tap = mesh.watched("unshared", || {
        for what in ["net", "both"] {
            let seen = saw(&mesh.client, &["unshare", what, &host, "7000"])?;
            ensure!(seen["saw"] == "ENETUNREACH", "{what}: {seen}");
        }
        // A new user namespace leaves the network as it is.
        let seen = saw(&mesh.client, &["unshare", "user", &host, "7000"])?;
        ensure!(seen["saw"] == MARKER, "{seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(7000))?;
    ensure!(accepted(&server) == 1, "{}", server.stdout());
    ensure!(peers(&mesh, 1)? == [mesh.workloads[0].spiffe_id()], "{:?}", mesh.b.access_log());
    Ok(())
}

fn a_process_in_anothers_namespace_speaks_as_the_other(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let (host, other) = (mesh.server.v4.to_string(), mesh.other.netns_path());
    let tap = mesh.watched("setns", || {
        let seen = saw(&mesh.client, &["setns", &other.to_string_lossy(), &host, "7000"])?;
        ensure!(seen["saw"] == MARKER, "{seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.other.v4.into(), mesh.server.at(7000))?;
    ensure!(peers(&mesh, 1)? == [mesh.workloads[1].spiffe_id()], "{:?}", mesh.b.access_log());
    Ok(())
}

fn a_process_that_moves_between_cgroups_is_captured(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    // In the node's own namespace the cgroup alone says whose the process is.
    let group = ground.cgroup().join("batch");
    let batch = mesh.a.place.in_cgroup(&group.join("inner"))?;
    let deeper = group.join("other").join("deeper");
    crate::it::cgroup::make(&deeper)?;
    let mut workload = Workload::pod(&batch, "node-a");
    (workload.name, workload.service_account) = ("batch".into(), "batch".into());
    workload.selector = Selector::Cgroup(group);
    let id = workload.spiffe_id();
    mesh.workloads.push(workload);
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let (host, beside) = (mesh.server.v4.to_string(), ground.cgroup().join("beside"));
    crate::it::cgroup::make(&beside)?;
    let into = |place: &Place, path: &std::path::Path| {
        attempted(place, &["move", &path.to_string_lossy(), &host, "7000"])
    };
    mesh.watched("moved", || {
        // Within the workload's cgroup, from one child to another's child.
        must_have_seen(&into(&batch, &deeper)?, &[("before", MARKER), ("after", MARKER)])?;
        // A workload with a namespace of its own is known by that, wherever its processes go.
        must_have_seen(&into(&mesh.client, &beside)?, &[("before", MARKER), ("after", MARKER)])
    })?;
    let mut seen = peers(&mesh, 4)?;
    seen.sort();
    let client = mesh.workloads[0].spiffe_id();
    ensure!(seen == [id.clone(), id, client.clone(), client], "{seen:?}");
    // Who may write the parent's cgroup.procs may leave it: the node's file then says nothing of the process, and a
    // STRICT server does not listen to it.
    for line in into(&batch, &beside)? {
        ensure!(line["saw"] != MARKER, "{line}");
    }
    Ok(())
}

fn a_thread_with_a_cgroup_of_its_own_is_captured(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let group = ground.cgroup().join("batch");
    let batch = mesh.a.place.in_cgroup(&group)?;
    let mut workload = Workload::pod(&batch, "node-a");
    (workload.name, workload.service_account) = ("batch".into(), "batch".into());
    workload.selector = Selector::Cgroup(group);
    let id = workload.spiffe_id();
    mesh.workloads.push(workload);
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let host = mesh.server.v4.to_string();
    mesh.watched("thread", || {
        for place in [&batch, &mesh.client] {
            let seen = saw(place, &["thread", &host, "7000"])?;
            ensure!(seen["cgroup"] == "thread", "it is not where the story wants it: {seen}");
            ensure!(seen["saw"] == MARKER, "{}: {seen}", place.name);
        }
        Ok(())
    })?;
    ensure!(peers(&mesh, 2)? == [id, mesh.workloads[0].spiffe_id()], "{:?}", mesh.b.access_log());
    Ok(())
}

fn a_process_outside_the_captured_cgroup_is_refused_by_the_server(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let inside = ground.cgroup().join("client");
    mesh.a.capture.insert("cgroup".into(), inside.to_string_lossy().into_owned().into());
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    let host = mesh.server.v4.to_string();
    let outside = mesh.client.in_cgroup(&ground.cgroup().join("outside"))?;
    let seen = saw(&outside, &["connect", &host, "7000"])?;
    ensure!(seen["saw"] == "ECONNRESET", "{seen}");
    // The cgroup in which the socket was made counts, whoever uses it later.
    let moved = ground.cgroup().join("moved");
    crate::it::cgroup::make(&moved)?;
    let seen = attempted(&mesh.client, &["move", &moved.to_string_lossy(), &host, "7000"])?;
    must_have_seen(&seen, &[("before", MARKER), ("after", "ECONNRESET")])?;
    ensure!(accepted(&server) == 2, "{}", server.stdout());
    Ok(())
}
