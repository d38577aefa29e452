//! Workloads that have no namespace of their own: selected by cgroup or by user in the node's namespace.

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, is_unserved, probe, serve};
use crate::it::nodefile::{Selector, Workload};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 60:
        a_client_selected_by_cgroup_proves_its_own_identity,
        a_server_selected_by_cgroup_is_guarded_on_its_declared_ports,
        a_client_selected_by_user_proves_its_own_identity,
];

fn a_client_selected_by_cgroup_proves_its_own_identity(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let group = ground.cgroup().join("batch");
    // Programs run some levels below the selected cgroup.
    let batch = mesh.a.place.in_cgroup(&group.join("deep"))?;
    let mut workload = Workload::pod(&batch, "node-a");
    workload.name = "batch".into();
    workload.service_account = "batch".into();
    workload.selector = Selector::Cgroup(group);
    mesh.workloads.push(workload);
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let tap = mesh.watched("batch", || {
        let seen = probe(&batch, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(batch.v4.into(), mesh.server.at(7000))?;
    mesh.b.wait_access_log("its identity", |line| {
        line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/batch"
    })?;
    let beside = probe(&mesh.a.place, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&beside), "a program beside it passed as it: {beside}");
    Ok(())
}

fn a_server_selected_by_cgroup_is_guarded_on_its_declared_ports(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let group = ground.cgroup().join("hosted");
    let hosted = mesh.b.place.in_cgroup(&group)?;
    let mut workload = Workload::pod(&hosted, "node-b");
    workload.name = "hosted".into();
    workload.service_account = "hosted".into();
    workload.selector = Selector::Cgroup(group);
    workload.ports = vec![7000];
    mesh.workloads.push(workload);
    mesh.start()?;
    let _guarded = serve(&hosted, 7000, &["--echo"])?;
    let _beside = serve(&mesh.b.place, 7001, &["--echo"])?;
    let tap = mesh.watched("hosted", || {
        let seen = probe(&mesh.client, hosted.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), hosted.at(7000))?;
    let seen = probe(&mesh.outsider, hosted.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&seen), "STRICT does not hold there: {seen}");
    let seen = probe(&mesh.outsider, hosted.at(7001), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x", "the node's other ports suffer: {seen}");
    Ok(())
}

fn a_client_selected_by_user_proves_its_own_identity(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let mut workload = Workload::pod(&mesh.a.place, "node-a");
    workload.name = "nobody".into();
    workload.service_account = "nobody".into();
    workload.selector = Selector::User("nobody".into());
    mesh.workloads.push(workload);
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    let url = format!("http://{}/", mesh.server.at(8080));
    let curl = ["curl", "-sS", "--max-time", "10", &url];
    mesh.watched("user", || {
        let said =
            mesh.a.place.launch("curl", &curl).with_user("nobody").finish(crate::it::process::PATIENCE)?;
        ensure!(said.succeeded()?.contains(MARKER), "curl as nobody");
        Ok(())
    })?;
    mesh.b.wait_access_log("its identity", |line| {
        line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/nobody"
    })?;
    mesh.a.place.run(&curl)?.failed()?;
    Ok(())
}
