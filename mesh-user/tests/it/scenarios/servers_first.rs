//! Protocols in which the server speaks first or the dialogue is many small messages: redis, `PostgreSQL`, SSH.

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, PERMISSIVE};
use crate::it::netns::Place;
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 120:
        redis_keeps_and_gives_back_what_it_was_told,
        postgres_answers_and_pgbench_runs,
        ssh_logs_in_and_scp_copies;
    Daemon 120:
        postgres_serves_enrolled_and_plain_clients_under_permissive,
];

fn redis_keeps_and_gives_back_what_it_was_told(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _redis = programs::redis(&mesh.server, 6379)?;
    let to = mesh.server.v4.to_string();
    mesh.watched("redis", || {
        mesh.client.run(&["redis-cli", "-h", &to, "set", "key", MARKER])?.succeeded()?;
        let got = mesh.client.run(&["redis-cli", "-h", &to, "get", "key"])?.succeeded()?;
        ensure!(got.contains(MARKER), "redis gave {got:?}");
        Ok(())
    })?;
    let count = ground.scale().of("20000", "500");
    let argv = ["redis-benchmark", "-h", &to, "-t", "ping,set,get", "-n", count, "-c", "20", "-P", "4", "-q"];
    let said = mesh.client.run(&argv)?.succeeded()?;
    ensure!(said.matches("requests per second").count() >= 3 && !said.contains("Error"), "{said}");
    mesh.must_have_relayed_by(ground.relay())
}

fn query(from: &Place, to: &Place) -> anyhow::Result<String> {
    let sql = format!("select '{MARKER}' || pg_backend_pid()");
    let host = to.v4.to_string();
    from.run(&["psql", "-h", &host, "-U", "postgres", "-Atc", &sql])?.succeeded()
}

fn postgres_answers_and_pgbench_runs(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _postgres = programs::postgres(&mesh.server, 5432)?;
    mesh.watched("postgres", || {
        ensure!(query(&mesh.client, &mesh.server)?.contains(MARKER), "psql");
        Ok(())
    })?;
    let host = mesh.server.v4.to_string();
    mesh.client
        .run(&["pgbench", "-h", &host, "-U", "postgres", "-i", "-q", "-s", "1", "postgres"])?
        .succeeded()?;
    let transactions = ground.scale().of("200", "10");
    let argv = ["pgbench", "-h", &host, "-U", "postgres", "-c", "4", "-t", transactions, "postgres"];
    let said = mesh.client.run(&argv)?.succeeded()?;
    ensure!(said.contains("number of failed transactions: 0"), "{said}");
    mesh.must_have_relayed_by(ground.relay())
}

fn postgres_serves_enrolled_and_plain_clients_under_permissive(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, PERMISSIVE)?;
    let _postgres = programs::postgres(&mesh.server, 5432)?;
    mesh.watched("enrolled", || {
        ensure!(query(&mesh.client, &mesh.server)?.contains(MARKER), "the enrolled client");
        Ok(())
    })?;
    ensure!(query(&mesh.outsider, &mesh.server)?.contains(MARKER), "the plain client");
    Ok(())
}

fn ssh_logs_in_and_scp_copies(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let ssh = programs::sshd(&mesh.server, 2222)?;
    let login = format!("root@{}", mesh.server.v4);
    let mut argv = vec!["ssh", "-p", "2222"];
    argv.extend(ssh.options.iter().map(String::as_str));
    argv.extend([login.as_str(), "echo $SSH_CLIENT"]);
    let said = mesh.client.run(&argv)?.succeeded()?;
    ensure!(said.starts_with(&mesh.client.v4.to_string()), "sshd takes the client for {said:?}");
    let original: Vec<u8> =
        (0..ground.scale().of(8 << 20, 1 << 20)).map(|at: u32| at.to_le_bytes()[at as usize % 3]).collect();
    let (here, there) = (ground.dir().join("original"), ground.dir().join("copy"));
    std::fs::write(&here, &original)?;
    let (here, target) = (here.to_string_lossy(), format!("{login}:{}", there.display()));
    let mut argv = vec!["scp", "-P", "2222"];
    argv.extend(ssh.options.iter().map(String::as_str));
    argv.extend([here.as_ref(), target.as_str()]);
    mesh.client.run(&argv)?.succeeded()?;
    ensure!(std::fs::read(&there)? == original, "the copy differs");
    mesh.must_have_relayed_by(ground.relay())
}
