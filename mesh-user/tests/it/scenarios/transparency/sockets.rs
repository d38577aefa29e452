//! Calls on sockets: the same calls before meshd runs and while it does, and the few answers that differ.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::truth::field;
use super::{given, running, watched};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, accepted, is_unserved, json_lines, last_line, probe, serve, start_probe, wait_event,
};
use crate::it::process::{PATIENCE, wait_until};
use crate::it::{peer, scripts};

pub(in crate::it::scenarios) const STORIES: &[Story] = stories![
    EveryRelay 120:
        calls_on_sockets_see_what_they_saw_without_meshd;
    IoUring 60:
        io_uring_connects_accepts_sends_and_receives;
    Daemon 90:
        a_link_local_destination_is_not_meshed_and_strict_refuses_it,
        a_peer_that_vanishes_is_a_reset_on_both_sides;
];

/// How many cases a host must answer, so that none is left out unseen.
const CASES: usize = 21;
const CASES_ONCE: usize = 4;

/// What is not as without meshd, by the case's name; `docs/transparency.md` gives the reasons.
fn differences() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("fast_open_by_sendto", json!({ "sent": 8, "client_syn_data": false, "server_syn_data": false })),
        ("urgent_data", json!({ "marked": false, "out_of_band": "EINVAL", "read": "ab!cd" })),
        ("urgent_data_inline", json!({ "marked": false, "out_of_band": "EINVAL", "read": "ab!cd" })),
        ("proc_net_tcp", json!([false])),
        ("tcp_info", json!({ "state": 1, "segment_fits_the_wire": false })),
    ])
}

/// What each case saw, by its name and host.
fn calls(mesh: &Mesh) -> anyhow::Result<BTreeMap<(String, String), Value>> {
    let other = mesh.outsider.netns_path().to_string_lossy().into_owned();
    let hosts = mesh.server.addresses().map(|host| host.to_string());
    let args = ["call", "7000", &other, &hosts[0], &hosts[1]];
    let said = scripts::python(&mesh.client, "sockets.py", &args).finish(PATIENCE * 20)?.succeeded()?;
    let name = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let saw: BTreeMap<_, _> = json_lines(&said)
        .into_iter()
        .map(|line| ((name(&line, "case"), name(&line, "host")), line["saw"].clone()))
        .collect();
    ensure!(saw.len() == 2 * CASES + CASES_ONCE, "{} answers: {said}", saw.len());
    Ok(saw)
}

fn calls_on_sockets_see_what_they_saw_without_meshd(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground)?;
    for place in [&mesh.client, &mesh.server] {
        // Fast Open for both roles without a cookie (Documentation/networking/ip-sysctl.rst).
        place.run(&["sysctl", "-qw", "net.ipv4.tcp_fastopen=519"])?.succeeded()?;
    }
    let mut server = scripts::python(&mesh.server, "sockets.py", &["serve", "7000"]).start()?;
    server.wait_to_say("listening", PATIENCE)?;
    let without = calls(&mesh)?;
    mesh.start()?;
    let mut with = BTreeMap::new();
    watched(&mesh, "sockets", || {
        with = calls(&mesh)?;
        Ok(())
    })?;
    let differences = differences();
    let mut wrong = Vec::new();
    for ((case, host), before) in &without {
        let after = &with[&(case.clone(), host.clone())];
        let expected = differences.get(case.as_str()).unwrap_or(before);
        if after != expected {
            wrong.push(format!("{case} to {host}: {before} without, {after} with meshd"));
        }
        if differences.contains_key(case.as_str()) && before == expected {
            wrong.push(format!("{case} to {host} differs no more: {before}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    mesh.must_have_relayed_by(ground.relay())
}

fn io_uring_connects_accepts_sends_and_receives(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let _plain = serve(&mesh.server, 7000, &["--echo"])?;
    let mut server = mesh.server.launch("ring", &peer::command_line(&["ring-serve", "[::]:7001"])).start()?;
    server.wait_to_say("listening", PATIENCE)?;
    mesh.watched("ring", || {
        for to in [mesh.server.at(7001), mesh.server.at6(7001)] {
            let line = peer::command_line(&["ring-probe", &to.to_string(), "--send", MARKER]);
            let seen = last_line(&mesh.client.launch("ring", &line).finish(PATIENCE)?)?;
            ensure!(seen["text"] == MARKER && field(&seen, "peer")? == to, "{seen}");
            let own = field(&seen, "local")?;
            let accepted = |event: &Value| field(event, "peer").is_ok_and(|peer| peer == own);
            wait_event(&server, "the client's own address", accepted)?;
        }
        let line = peer::command_line(&["ring-probe", &mesh.server.at(7999).to_string(), "--send", "x"]);
        let refused = mesh.client.launch("ring", &line).finish(PATIENCE)?.failed()?;
        ensure!(refused.contains("Connection refused"), "{refused}");
        Ok(())
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

/// The server's link-local address as the client dials it: with the number of the client's own link.
fn link_local(mesh: &Mesh, port: u16) -> anyhow::Result<SocketAddr> {
    let mut host: Option<Ipv6Addr> = None;
    wait_until(PATIENCE, "a link-local address that is not tentative", || {
        let said = mesh.server.run(&["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"])?;
        let text = said.succeeded()?;
        let address = text.split_whitespace().nth(3).and_then(|word| word.split('/').next());
        host = address.filter(|_| !text.contains("tentative")).and_then(|text| text.parse().ok());
        Ok(host.is_some())
    })?;
    let said = mesh.client.run(&["ip", "-o", "link", "show", "dev", "eth0"])?.succeeded()?;
    let scope = said.split(':').next().and_then(|number| number.parse().ok());
    let scope: u32 = scope.with_context(|| format!("no link number in {said:?}"))?;
    Ok(SocketAddrV6::new(host.context("it was found")?, port, 0, scope).into())
}

fn a_link_local_destination_is_not_meshed_and_strict_refuses_it(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let server = serve(&mesh.server, 7000, &["--banner", MARKER])?;
    let to = link_local(&mesh, 7000)?;
    // What a server would say reaches nobody in the clear; what the client says itself is the client's affair.
    mesh.watched("link", || {
        let seen = probe(&mesh.client, to, &["--send", "in the clear"])?;
        ensure!(is_unserved(&seen), "{seen}");
        Ok(())
    })?;
    ensure!(accepted(&server) == 0, "{}", server.stdout());
    ensure!(mesh.a.access_log().is_empty(), "it was captured: {:?}", mesh.a.access_log());
    Ok(())
}

fn a_peer_that_vanishes_is_a_reset_on_both_sides(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground)?;
    mesh.limits = json!({ "keepaliveIdleMs": 1000, "userTimeoutMs": 3000 });
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let client = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--wait-ms", "60000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    wait_event(&client, "to be connected", |event| event["event"] == "connected")?;
    mesh.server.run(&["ip", "link", "set", "eth0", "down"])?.succeeded()?;
    let seen = last_line(&client.finish(PATIENCE * 2)?)?;
    ensure!(seen["ended"] == "reset", "{seen}");
    let ended = wait_event(&server, "the end", |event| event["event"] == "ended")?;
    ensure!(ended["ended"] == "reset", "{ended}");
    Ok(())
}
