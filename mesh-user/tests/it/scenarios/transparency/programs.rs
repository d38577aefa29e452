//! Programs, unmodified: what each does with its connections works as without meshd, and no wire shows what they say.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{proxies, running, shells, stores, watched};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, last_line};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, Program};
use crate::it::scripts;

pub(in crate::it::scenarios) const STORIES: &[Story] = stories![
    Daemon 120:
        smtp_ftp_asyncio_and_a_programs_own_tls_work,
        node_speaks_websocket_and_http2_streams_both_ways,
        the_jvms_channels_never_block,
        go_copies_by_splice_and_speaks_http,
        grpc_streams_both_ways_and_tells_why_a_call_ended,
        nginx_joins_streams_and_tells_its_client_by_proxy_protocol,
        postgres_copies_and_notifies_and_redis_publishes_and_replicates,
        mariadb_loads_its_clients_file_and_dumps,
        ssh_forwards_ports_and_rsync_copies;
    WideCompare 120:
        haproxy_splices_and_tells_its_client_by_proxy_protocol;
];

fn smtp_ftp_asyncio_and_a_programs_own_tls_work(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let [key, cert] =
        ["key.pem", "cert.pem"].map(|name| ground.dir().join(name).to_string_lossy().into_owned());
    let name = format!("subjectAltName=DNS:{MARKER}.test");
    mesh.server
        .run(&[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &cert,
            "-days",
            "2",
            "-subj",
            "/CN=inner",
            "-addext",
            &name,
        ])?
        .succeeded()?;
    let mut server =
        scripts::python(&mesh.server, "dialogues.py", &["serve", "7000", &cert, &key]).start()?;
    server.wait_to_say("listening", PATIENCE)?;
    let ftp = json!([true, "226 250000 bytes", "226 nothing to stop"]);
    watched(&mesh, "dialogues", || {
        for host in mesh.server.addresses() {
            let call = ["call", &host.to_string(), "7000", &cert];
            let saw =
                last_line(&scripts::python(&mesh.client, "dialogues.py", &call).finish(PATIENCE * 10)?)?;
            ensure!(saw["smtp"] == "kept 1", "{saw}");
            ensure!(saw["ftp_passive"] == ftp && saw["ftp_active"] == ftp, "{saw}");
            // The name it asks for is the marker: the program's own ClientHello is inside the mesh's TLS.
            ensure!(saw["tls"] == json!([MARKER, { "commonName": "inner" }]), "{saw}");
            ensure!(saw["asyncio"] == json!(["ConnectionRefusedError", true, 20]), "{saw}");
        }
        Ok(())
    })?;
    // Active FTP: the server's workload called the client's, and proved itself.
    mesh.a.wait_access_log("the server's own connection", |line| {
        line["direction"] == "inbound" && line["peer_spiffe_id"] == mesh.workloads[2].spiffe_id()
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn node_speaks_websocket_and_http2_streams_both_ways(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let mut server = scripts::node(&mesh.server, "streams.js", &["serve", "7000"]).start()?;
    server.wait_to_say("listening", PATIENCE * 2)?;
    watched(&mesh, "node", || {
        for host in mesh.server.addresses() {
            let call = ["call", &host.to_string(), "7000"];
            let saw = last_line(&scripts::node(&mesh.client, "streams.js", &call).finish(PATIENCE * 10)?)?;
            ensure!(saw["echo"] == MARKER && saw["refused"] == "ECONNREFUSED", "{saw}");
            ensure!(saw["webSocket"] == json!({ "accepted": true, "rounds": 50 }), "{saw}");
            let streams = saw["http2"].as_array().with_context(|| saw.to_string())?;
            ensure!(streams.len() == 8 && streams.iter().all(|rounds| *rounds == 50), "{saw}");
        }
        Ok(())
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn the_jvms_channels_never_block(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let mut server = scripts::java(&mesh.server, "Channels", &["serve", "7000"])?.start()?;
    server.wait_to_say("listening", PATIENCE * 6)?;
    watched(&mesh, "java", || {
        for host in mesh.server.addresses() {
            let call = ["call", &host.to_string(), "7000"];
            let saw = last_line(&scripts::java(&mesh.client, "Channels", &call)?.finish(PATIENCE * 10)?)?;
            ensure!(saw == json!({ "back": 20, "refused": "ConnectException" }), "{saw}");
        }
        Ok(())
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn go_copies_by_splice_and_speaks_http(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let to = mesh.server.at(8080).to_string();
    let mut server = scripts::go(&mesh.server, "copies", &["serve", "8080"])?.start()?;
    let mut relay = scripts::go(&mesh.other, "copies", &["relay", "8000", &to])?.start()?;
    server.wait_to_say("listening", PATIENCE)?;
    relay.wait_to_say("listening", PATIENCE)?;
    let good = json!({ "large": true, "small": 20, "halfClosed": MARKER, "refused": true });
    watched(&mesh, "go", || {
        for at in [mesh.other.at(8000), mesh.other.at6(8000)] {
            let call = scripts::go(&mesh.client, "copies", &["call", &at.to_string()])?;
            let saw = last_line(&call.finish(PATIENCE * 10)?)?;
            ensure!(saw == good, "{at}: {saw}");
        }
        Ok(())
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn grpc_streams_both_ways_and_tells_why_a_call_ended(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let mut server = scripts::python(&mesh.server, "calls.py", &["serve", "7000"]).start()?;
    server.wait_to_say("listening", PATIENCE * 2)?;
    watched(&mesh, "grpc", || {
        for (at, elsewhere) in
            [(mesh.server.at(7000), mesh.server.at(7999)), (mesh.server.at6(7000), mesh.server.at6(7999))]
        {
            let call = ["call", &at.to_string(), &elsewhere.to_string()];
            let saw = last_line(&scripts::python(&mesh.client, "calls.py", &call).finish(PATIENCE * 10)?)?;
            ensure!(saw["rounds"] == json!([50, 50, 50, 50, 50, 50, 50, 50]), "{saw}");
            ensure!(saw["deadline"] == json!(["DEADLINE_EXCEEDED", "late"]), "{saw}");
            ensure!(saw["cancelled"] == json!(["CANCELLED", 50]), "{saw}");
            ensure!(saw["refused"] == "UNAVAILABLE", "{saw}");
        }
        Ok(())
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn haproxy_splices_and_tells_its_client_by_proxy_protocol(ground: &Ground) -> anyhow::Result<()> {
    joins_and_tells_its_client(ground, proxies::haproxy)
}

fn nginx_joins_streams_and_tells_its_client_by_proxy_protocol(ground: &Ground) -> anyhow::Result<()> {
    joins_and_tells_its_client(ground, proxies::nginx_stream)
}

/// Given a proxy at one workload and nginx behind it at another: the page comes whole, and nginx knows for whom.
fn joins_and_tells_its_client(
    ground: &Ground,
    proxy: fn(&Place, u16, SocketAddr) -> anyhow::Result<Program>,
) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let page = proxies::page(&mesh.server)?;
    let _nginx = proxies::nginx_behind_proxy_protocol(&mesh.server, 8080, &page)?;
    let _proxy = proxy(&mesh.other, 8000, mesh.server.at(8080))?;
    let original = std::fs::read(&page)?;
    watched(&mesh, "proxy", || {
        let to = mesh.other.at(8000);
        let (who, page) = (format!("http://{to}/who"), format!("http://{to}/page"));
        let told = mesh.client.run(&["curl", "-sS", "--max-time", "30", &who])?.succeeded()?;
        ensure!(told == format!("{} {MARKER}", mesh.client.v4), "nginx takes the client for {told:?}");
        let file = ground.dir().join("got");
        let save = file.to_string_lossy();
        mesh.client.run(&["curl", "-sS", "--max-time", "60", "-o", &save, &page])?.succeeded()?;
        ensure!(std::fs::read(&file)? == original, "the page differs");
        Ok(())
    })?;
    mesh.b.wait_access_log("the proxy's connection", |line| {
        line["peer_spiffe_id"] == mesh.workloads[1].spiffe_id() && line["verdict"] == "allow"
    })?;
    Ok(())
}

fn postgres_copies_and_notifies_and_redis_publishes_and_replicates(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let (_postgres, _redis) = stores::given(&mesh)?;
    watched(&mesh, "stores", || {
        stores::postgres_copies(&mesh, ground.scale().of(100_000, 5_000))?;
        stores::postgres_notifies(&mesh)?;
        stores::redis_replicates_and_publishes(&mesh)
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn mariadb_loads_its_clients_file_and_dumps(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    let _mariadb = stores::mariadb(&mesh.server, 3306)?;
    let rows = ground.scale().of(20_000, 2_000);
    watched(&mesh, "mariadb", || {
        let hosts = mesh.server.addresses();
        hosts.iter().try_for_each(|host| stores::mariadb_loads_and_dumps(&mesh, &host.to_string(), rows))
    })?;
    mesh.must_have_relayed_by(ground.relay())
}

fn ssh_forwards_ports_and_rsync_copies(ground: &Ground) -> anyhow::Result<()> {
    let mesh = running(ground)?;
    watched(&mesh, "shells", || {
        shells::ssh_forwards_both_ways(&mesh)?;
        shells::rsync_pushes_and_pulls(&mesh, ground.scale().of(300, 30))
    })?;
    mesh.must_have_relayed_by(ground.relay())
}
