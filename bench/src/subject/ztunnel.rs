//! Istio's ztunnel, one per pod (`PROXY_MODE=dedicated`), with iptables redirection of the client's connections, its
//! world from a file and its own test CA: the executable must be built with `--features testing`. It carries
//! connections as streams of pooled HTTP/2 connections (HBONE) to port 15008 of the server's pod.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::stage::{Ground, Place, Running};

/// Whose connections are not redirected again.
const USER: u32 = 1337;
const OUTBOUND_PORT: &str = "15001";

/// Writes what the proxies know and redirects the client's connections.
pub(super) fn prepare(ground: &Ground) -> Result<()> {
    let workload = |place: &Place, policies: &[&str]| {
        json!({
            "name": place.name, "namespace": "bench", "serviceAccount": place.name,
            "uid": format!("bench//v1/Pod/bench/{}", place.name), "network": "",
            "workloadIps": [place.address], "protocol": "HBONE", "node": place.name,
            "authorizationPolicies": policies, "services": {},
        })
    };
    let world = json!({
        "workloads": [workload(&ground.client, &[]), workload(&ground.server, &["bench/only-client"])],
        "policies": [ {
            "name": "only-client", "namespace": "bench", "scope": "WorkloadSelector", "action": "Allow",
            "dryRun": false,
            "rules": [[[ { "principals": [ { "Exact": "cluster.local/ns/bench/sa/client" } ] } ]]],
        } ],
    });
    fs::write(ground.dir().join("ztunnel.yaml"), format!("{world:#}")).context("writing ztunnel's world")?;
    let (server, user) = (ground.server.address.to_string(), USER.to_string());
    let rule = [
        "iptables",
        "-w",
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-d",
        &server,
        "-m",
        "owner",
        "!",
        "--uid-owner",
        &user,
        "-j",
        "REDIRECT",
        "--to-ports",
        OUTBOUND_PORT,
    ];
    ground.client.run(&rule).map(drop)
}

/// Starts both proxies, with two workers each as its default is.
pub(super) fn start(ground: &Ground, ztunnel: &Path) -> Result<Vec<Running>> {
    let ztunnel = ztunnel.to_str().context("the path of ztunnel is no text")?;
    let world = format!("LOCAL_XDS_PATH={}", ground.dir().join("ztunnel.yaml").display());
    let one = |place: &Place| {
        let info = format!("PROXY_WORKLOAD_INFO=bench/{0}/{0}", place.name);
        let node = format!("NODE_NAME={}", place.name);
        let argv = [
            "env",
            "FAKE_CA=true",
            "XDS_ADDRESS=",
            "PROXY_MODE=dedicated",
            "ENABLE_ORIG_SRC=false",
            "IPV6_ENABLED=false",
            "RUST_LOG=warn",
            "ZTUNNEL_WORKER_THREADS=2",
            &info,
            &node,
            &world,
            ztunnel,
            "proxy",
        ];
        ground.start(place, &format!("ztunnel-{}", place.name), &argv, Some(USER))
    };
    Ok(vec![one(&ground.client)?, one(&ground.server)?])
}
