//! Web programs through the mesh: curl, wrk and h2load against nginx, by address and by service.

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 90:
        curl_fetches_from_nginx_and_the_wire_shows_only_tls,
        wrk_loads_nginx_without_an_error,
        h2load_speaks_http2_to_nginx;
    Daemon 60:
        a_service_address_leads_to_its_endpoint,
];

fn curl_fetches_from_nginx_and_the_wire_shows_only_tls(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    let ways = [
        ("v4", mesh.client.v4.into(), mesh.server.at(8080)),
        ("v6", mesh.client.v6.into(), mesh.server.at6(8080)),
    ];
    for (name, client, to) in ways {
        let url = format!("http://{to}/?{MARKER}");
        let tap = mesh.watched(name, || {
            // Twice on one connection, then one connection for one request.
            let kept = mesh.client.run(&["curl", "-sS", "--max-time", "20", &url, &url])?.succeeded()?;
            ensure!(kept.matches(MARKER).count() == 2, "keep-alive: {kept:?}");
            let closed =
                mesh.client.run(&["curl", "-sS", "--max-time", "20", "-H", "Connection: close", &url])?;
            ensure!(closed.succeeded()?.contains(MARKER), "close");
            Ok(())
        })?;
        tap.must_be_tls_between(client, to)?;
        tap.must_only_join(&[(client, to.ip())])?;
    }
    mesh.must_have_relayed_by(ground.relay())
}

fn wrk_loads_nginx_without_an_error(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    let url = format!("http://{}/", mesh.server.at(8080));
    let connections = ground.scale().of("32", "4");
    let kept = mesh.client.run(&["wrk", "-d", "3", "-t", "2", "-c", connections, &url])?.succeeded()?;
    let closed = ["wrk", "-d", "2", "-t", "2", "-c", "4", "-H", "Connection: close", &url];
    let closed = mesh.client.run(&closed)?.succeeded()?;
    for said in [kept, closed] {
        ensure!(said.contains("Requests/sec") && !said.contains("Requests/sec:      0.00"), "{said}");
        ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    }
    mesh.must_have_relayed_by(ground.relay())
}

fn h2load_speaks_http2_to_nginx(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    let (requests, url) = (ground.scale().of("5000", "200"), format!("http://{}/", mesh.server.at(8081)));
    let said = mesh.client.run(&["h2load", "-n", requests, "-c", "4", "-m", "16", &url])?.succeeded()?;
    ensure!(said.contains(&format!("{requests} succeeded, 0 failed")), "{said}");
    mesh.must_have_relayed_by(ground.relay())
}

fn a_service_address_leads_to_its_endpoint(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    // Nobody owns this address: without capture nothing answers there.
    mesh.service("web", "10.96.0.10", 80, 8080, "server");
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    let url = format!("http://10.96.0.10/?{MARKER}");
    let tap = mesh.watched("service", || {
        let argv = ["curl", "-sS", "--max-time", "20", "-w", " %{remote_ip}", &url];
        let said = mesh.client.run(&argv)?.succeeded()?;
        ensure!(said.contains(MARKER) && said.ends_with("10.96.0.10"), "curl said {said:?}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(8080))?;
    let line = mesh.a.wait_access_log("the service", |line| line["direction"] == "outbound")?;
    ensure!(line["service"].as_str().is_some_and(|name| name.contains("web")), "{line}");
    Ok(())
}
