//! Packets made by hand: what they claim reaches no application, and what no hook sees is said.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{attempted, must_have_seen};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, accepted, must_serve, serve};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, wait_until};

pub(in crate::it::scenarios) const STORIES: &[Story] = stories![
    Daemon 120:
        forged_segments_reach_no_application;
];

fn forged_segments_reach_no_application(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    // Every listener takes data in a SYN without a cookie (ip-sysctl.rst): one forged packet is enough.
    for place in [&mesh.server, &mesh.client] {
        place.run(&["sysctl", "-qw", "net.ipv4.tcp_fastopen=1539"])?.succeeded()?;
    }
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let same_node = serve(&mesh.client, 7000, &["--echo"])?;
    let mac = mac_of(&mesh.server)?;
    for (source, to) in [(mesh.other.at(0), mesh.server.at(7000)), (mesh.other.at6(0), mesh.server.at6(7000))]
    {
        let before = accepted(&server);
        forge(&mesh.outsider, "raw", &mac, source, to)?;
        wait_until(PATIENCE, "a forged connection to be accepted without meshd", || {
            Ok(accepted(&server) > before)
        })?;
    }
    mesh.start()?;
    must_serve(&mesh)?;
    let before = accepted(&server);
    // From an enrolled neighbour, the client's on its own node, and from a stranger; in the name of another workload,
    // of the server's node, whose probes pass, and of the server itself.
    for (server, node) in [(&mesh.server, &mesh.b.place), (&mesh.client, &mesh.a.place)] {
        let mac = mac_of(server)?;
        for (place, way) in [(&mesh.other, "raw"), (&mesh.other, "packet"), (&mesh.outsider, "raw")] {
            for source in [&mesh.other, node, server] {
                forge(place, way, &mac, source.at(0), server.at(7000))?;
                forge(place, way, &mac, source.at6(0), server.at6(7000))?;
            }
        }
    }
    ensure!(accepted(&same_node) == 0, "a forged connection was accepted: {}", same_node.stdout());
    must_serve(&mesh)?;
    ensure!(accepted(&server) == before + 1, "a forged connection was accepted: {}", server.stdout());
    // AF_PACKET puts what it likes on the wire, which no hook of a cgroup sees: it is for nobody's connection.
    let capture = mesh.capture("smuggled")?;
    let said = attempted(
        &mesh.client,
        &[
            "smuggle",
            &mac_of(&mesh.server)?,
            &mesh.server.v4.to_string(),
            "7000",
            &mesh.client.v4.to_string(),
        ],
    )?;
    must_have_seen(&said, &[("packet", "sent")])?;
    ensure!(
        capture.stop()?.find(MARKER.as_bytes()).is_some(),
        "packet sockets do not bypass cgroups any more"
    );
    wait_until(PATIENCE, "the server to be left alone", || Ok(accepted(&server) == before + 1))
}

fn mac_of(place: &Place) -> anyhow::Result<String> {
    let said = place.run(&["ip", "-j", "link", "show", "dev", "eth0"])?.succeeded()?;
    let links: Value = serde_json::from_str(&said)?;
    Ok(links[0]["address"].as_str().context("no address")?.to_owned())
}

fn forge(place: &Place, way: &str, mac: &str, source: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let (source, host, port) = (source.ip().to_string(), to.ip().to_string(), to.port().to_string());
    let said = attempted(place, &["forge", way, mac, &source, &host, &port])?;
    must_have_seen(&said, &[(way, "sent")])
}
