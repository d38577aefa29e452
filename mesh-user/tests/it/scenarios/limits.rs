//! What happens at the edge of a table, a port or a limit: a clear refusal, counted, and nothing in the clear.

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, is_unserved, last_line, probe, serve, serve_at, start_probe, wait_event,
};
use crate::it::process::{PATIENCE, Program};

use super::truth::{field, views};

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        a_source_port_that_is_taken_is_replaced_on_the_wire_only,
        a_connection_above_the_limit_is_reset_and_counted,
        a_full_table_of_original_destinations_resets_what_does_not_fit,
];

fn a_source_port_that_is_taken_is_replaced_on_the_wire_only(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    // Somebody in the pod listens on the port that the wire leg would have.
    let taken = mesh.client.at(7777);
    let _holder = serve_at(&mesh.client, &taken.to_string(), &[])?;
    let tap = mesh.watched("taken", || {
        let (client, server) = views(&mesh, mesh.server.at(7000), &["--from", "127.0.0.1:7777"])?;
        ensure!(field(&client, "local")? == taken, "the client was told {client}");
        let seen = field(&server, "peer")?;
        ensure!(seen.ip() == mesh.client.v4, "the server was told {server}");
        ensure!(seen.port() != 7777, "two sockets have {taken}: {server}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(7000))?;
    let (_, server) = views(&mesh, mesh.server.at(7000), &["--from", "127.0.0.1:7778"])?;
    ensure!(field(&server, "peer")?.port() == 7778, "a free port is not kept: {server}");
    Ok(())
}

fn a_connection_above_the_limit_is_reset_and_counted(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.limits = json!({ "connections": 2 });
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let start = || start_probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--wait-ms", "60000"]);
    let held = [start()?, start()?];
    for peer in &held {
        wait_event(peer, "to be connected", |event| event["event"] == "connected")?;
    }
    crate::it::process::wait_until(PATIENCE, "both to be relayed", || {
        Ok(server.stdout().matches("accepted").count() >= 2)
    })?;
    mesh.watched("above", || {
        for (place, says) in [(&mesh.client, MARKER), (&mesh.outsider, "knock knock")] {
            let seen = probe(place, mesh.server.at(7000), &["--send", says, "--wait-ms", "3000"])?;
            ensure!(is_unserved(&seen), "{} was served: {seen}", place.name);
        }
        Ok(())
    })?;
    for (node, reporter) in [(&mesh.a, "source"), (&mesh.b, "destination")] {
        let line = node.wait_access_log("the refusal", |line| line["response_flags"] == "LIMIT")?;
        let why = line["error"].as_str().unwrap_or_default();
        ensure!(why.contains("limits.connections"), "it does not say what to do: {line}");
        let labels = [&format!("reporter=\"{reporter}\""), "response_flags=\"LIMIT\""];
        ensure!(node.metric("istio_tcp_connections_closed_total", &labels)? == 1, "{}", node.metrics()?);
    }
    drop(held);
    crate::it::process::wait_until(PATIENCE, "the places to be free again", || {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
        Ok(seen["text"] == "x")
    })
}

fn a_full_table_of_original_destinations_resets_what_does_not_fit(ground: &Ground) -> anyhow::Result<()> {
    const FIT: i64 = 4;
    const COME: i64 = 10;
    let mut mesh = Mesh::given(ground)?;
    mesh.limits = json!({ "connections": FIT });
    // The other form needs no such table.
    mesh.a.capture.insert("form".into(), "listener".into());
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let capture = mesh.capture("full")?;
    // While meshd sleeps the kernel goes on accepting for it, and nobody takes entries out of the table.
    mesh.a.meshd()?.signal(Signal::SIGSTOP)?;
    let options = ["--send", MARKER, "--shutdown", "--wait-ms", "30000"];
    let come: Vec<Program> = (0..COME)
        .map(|_| start_probe(&mesh.client, mesh.server.at(7000), &options))
        .collect::<anyhow::Result<_>>()?;
    for peer in &come {
        wait_event(peer, "to be connected", |event| event["event"] == "connected")?;
    }
    mesh.a.meshd()?.signal(Signal::SIGCONT)?;
    let ends = come.into_iter().map(|peer| last_line(&peer.finish(PATIENCE * 2)?));
    let ends = ends.collect::<anyhow::Result<Vec<Value>>>()?;
    let count =
        |is_it: &dyn Fn(&Value) -> bool| ends.iter().filter(|end| is_it(end)).map(|_| 1_i64).sum::<i64>();
    let served = count(&|end| end["text"] == MARKER && end["ended"] == "eof");
    let refused = count(&|end| is_unserved(end));
    ensure!(served == FIT && refused == COME - FIT, "{served} served, {refused} refused: {ends:?}");
    capture.stop()?.must_not_show(MARKER)?;
    let full = mesh.a.metric("meshd_bpf_events_total", &["event=\"original_dst_table_full\""])?;
    ensure!(full == COME - FIT, "{full} counted");
    let capacity = mesh.a.metric("meshd_bpf_map_capacity", &["map=\"BY_TUPLE\""])?;
    ensure!(capacity == FIT, "{capacity}");
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x", "the table was not emptied: {seen}");
    Ok(())
}
