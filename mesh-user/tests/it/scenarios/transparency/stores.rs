//! `PostgreSQL` and redis where they push: COPY both ways, NOTIFY to a session that waits, a replica, a subscriber.

use std::fs;

use anyhow::ensure;

use crate::it::mesh::{MARKER, Mesh};
use crate::it::process::{PATIENCE, Program, wait_until};
use crate::it::programs;

/// Both servers, with a redis replica in `other`.
pub(super) fn given(mesh: &Mesh) -> anyhow::Result<(Program, [Program; 2])> {
    let postgres = programs::postgres(&mesh.server, 5432)?;
    let primary = programs::redis(&mesh.server, 6379)?;
    let replica = programs::redis(&mesh.other, 6379)?;
    let host = mesh.server.v4.to_string();
    mesh.other.run(&["redis-cli", "replicaof", &host, "6379"])?.succeeded()?;
    Ok((postgres, [primary, replica]))
}

fn psql<'a>(host: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["psql", "-h", host, "-U", "postgres", "-X", "-At", "-v", "ON_ERROR_STOP=1"], rest].concat()
}

/// COPY in from the client's file, and out into another.
pub(super) fn postgres_copies(mesh: &Mesh, rows: usize) -> anyhow::Result<()> {
    let host = mesh.server.v4.to_string();
    let dir = mesh.client.dir();
    let (given, got) = (dir.join("rows"), dir.join("rows.back"));
    let lines: Vec<String> = (0..rows).map(|row| format!("{row}\t{MARKER} {row}\n")).collect();
    let text = lines.concat();
    fs::write(&given, &text)?;
    let copy_in = format!("\\copy t from '{}'", given.display());
    let copy_out = format!("\\copy (select * from t order by n) to '{}'", got.display());
    let argv = psql(&host, &["-c", "create table t (n int, what text)", "-c", &copy_in, "-c", &copy_out]);
    mesh.client.run(&argv)?.succeeded()?;
    ensure!(fs::read_to_string(&got)? == text, "what came back differs");
    Ok(())
}

/// A session that waits is told what another one notifies.
pub(super) fn postgres_notifies(mesh: &Mesh) -> anyhow::Result<()> {
    let host = mesh.server.v4.to_string();
    let go = mesh.client.dir().join("notified");
    let wait = format!("\\! echo listens; while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let argv = psql(&host, &["-c", "listen news", "-c", &wait, "-c", "select 1"]);
    let mut session = mesh.client.launch("listen", &argv).start()?;
    session.wait_to_say("listens", PATIENCE)?;
    let notify = format!("notify news, '{MARKER}'");
    mesh.other.run(&psql(&host, &["-c", &notify]))?.succeeded()?;
    fs::write(&go, "")?;
    let said = session.finish(PATIENCE)?.succeeded()?;
    ensure!(said.contains("\"news\"") && said.contains(MARKER), "{said}");
    Ok(())
}

/// What is written and published at the primary comes to the replica and to a subscriber at either.
pub(super) fn redis_replicates_and_publishes(mesh: &Mesh) -> anyhow::Result<()> {
    let (primary, replica) = (mesh.server.v4.to_string(), mesh.other.v4.to_string());
    wait_until(PATIENCE * 2, "the replica to be joined", || {
        let said = mesh.other.run(&["redis-cli", "info", "replication"])?.succeeded()?;
        Ok(said.contains("master_link_status:up"))
    })?;
    let mut subscribers = [&primary, &replica]
        .map(|host| mesh.client.launch("subscribe", &["redis-cli", "-h", host, "subscribe", "news"]).start());
    for subscriber in &mut subscribers {
        let Ok(subscriber) = subscriber else { continue };
        subscriber.wait_to_say("subscribe", PATIENCE)?;
    }
    mesh.client.run(&["redis-cli", "-h", &primary, "set", "key", MARKER])?.succeeded()?;
    mesh.client.run(&["redis-cli", "-h", &primary, "publish", "news", MARKER])?.succeeded()?;
    for subscriber in subscribers {
        subscriber?.wait_to_say(MARKER, PATIENCE)?;
    }
    let got = mesh.client.run(&["redis-cli", "-h", &replica, "get", "key"])?.succeeded()?;
    ensure!(got.contains(MARKER), "the replica has {got:?}");
    Ok(())
}
