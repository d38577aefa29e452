//! `PostgreSQL` and redis where they push: COPY both ways, NOTIFY to a session that waits, a replica, a subscriber. `MariaDB`,
//! which speaks first and asks its client for files.

use std::fs;

use anyhow::ensure;

use crate::it::mesh::{MARKER, Mesh};
use crate::it::netns::Place;
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

/// `MariaDB` that asks nobody who he is, without the tables that say so.
pub(super) fn mariadb(place: &Place, port: u16) -> anyhow::Result<Program> {
    let dir = programs::folder(place, "mariadb")?;
    let (data, socket) = (dir.join("data"), dir.join("socket"));
    fs::create_dir(&data)?;
    let settings = [
        format!("--datadir={}", data.display()),
        format!("--socket={}", socket.display()),
        format!("--port={port}"),
    ];
    let fixed = [
        "--user=root",
        "--bind-address=*",
        "--skip-grant-tables",
        "--skip-name-resolve",
        "--innodb-log-file-size=4M",
        "--local-infile=1",
    ];
    let words = settings.iter().map(String::as_str).chain(fixed);
    let argv: Vec<_> = ["mariadbd", "--no-defaults"].into_iter().chain(words).collect();
    let mut program = place.launch("mariadb", &argv).start()?;
    program.wait_to_say("ready for connections", PATIENCE * 4)?;
    Ok(program)
}

/// Rows from a file of the client's, and all of it out as a dump, which makes another database of the same rows.
pub(super) fn mariadb_loads_and_dumps(mesh: &Mesh, host: &str, rows: usize) -> anyhow::Result<()> {
    let dir = mesh.client.dir();
    let (given, dump) = (dir.join("rows.tsv"), dir.join("dump.sql"));
    let lines: Vec<String> = (0..rows).map(|row| format!("{row}\t{MARKER} {row}\n")).collect();
    fs::write(&given, lines.concat())?;
    let sql = |text: &str| {
        let options =
            ["mariadb", "--no-defaults", "--local-infile=1", "-N", "-u", "root", "-h", host, "-e", text];
        mesh.client.run(&options)?.succeeded()
    };
    let load = format!(
        "drop database if exists shop; create database shop; create table shop.t (n int primary key, what text); \
         load data local infile '{}' into table shop.t",
        given.display()
    );
    sql(&load)?;
    let result = format!("--result-file={}", dump.display());
    let options = ["mariadb-dump", "--no-defaults", "-u", "root", "-h", host, &result, "shop", "t"];
    mesh.client.run(&options)?.succeeded()?;
    // The client's own command, which has its own line.
    let again = format!(
        "drop database if exists again; create database again; use again;\nsource {}\n",
        dump.display()
    );
    sql(&again)?;
    let differing = sql("select count(*) from shop.t join again.t using (n, what)")?;
    ensure!(differing.trim() == rows.to_string(), "{differing} of {rows} rows are the same");
    Ok(())
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
