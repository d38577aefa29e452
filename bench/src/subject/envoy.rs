//! Envoy as Istio places it: a proxy in each pod, iptables redirection there, mutual TLS between the two, RBAC at
//! the server's; as a TCP proxy, which is how Istio configures a port that it does not know to be HTTP, or with the filters
//! that it gives to one that is (`envoy_http.rs`).

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    certificates::{Authority, Svid},
    envoy_http,
};
use crate::stage::{Ground, Place, Running};

/// Istio's user for sidecars, whose connections are not redirected again.
const USER: u32 = 1337;
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
/// Wherever a connection was going.
pub(super) const CLUSTER: &str = "original";
pub(super) const CLIENT_ID: &str = "spiffe://cluster.local/ns/bench/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/bench/sa/server";

/// Writes configurations and redirects both pods' connections.
pub(super) fn prepare(ground: &Ground, reads_requests: bool) -> Result<()> {
    let authority = Authority::new()?;
    let (client, server) = (authority.svid(CLIENT_ID)?, authority.svid(SERVER_ID)?);
    let (near, far) =
        if reads_requests { envoy_http::filters() } else { (vec![tcp_proxy()], vec![rbac(), tcp_proxy()]) };
    let outbound = outbound(&client, &authority.root, &near);
    let inbound = inbound(&server, &authority.root, &far);
    for (place, config) in [(&ground.client, outbound), (&ground.server, inbound)] {
        let path = ground.dir().join(format!("envoy-{}.json", place.name));
        fs::write(&path, format!("{config:#}")).with_context(|| format!("writing {}", path.display()))?;
    }
    let (server, user) = (ground.server.address.to_string(), USER.to_string());
    let (outbound, inbound) = (OUTBOUND_PORT.to_string(), INBOUND_PORT.to_string());
    let redirect = ["iptables", "-w", "-t", "nat", "-A"];
    let out =
        ["OUTPUT", "-p", "tcp", "-d", &server, "-m", "owner", "!", "--uid-owner", &user, "-j", "REDIRECT"];
    let back = ["PREROUTING", "-p", "tcp", "-i", "eth0", "-j", "REDIRECT"];
    let rule = |place: &Place, rule: &[&str], port: &str| {
        place.run(&[&redirect[..], rule, &["--to-ports", port]].concat()).map(drop)
    };
    rule(&ground.client, &out, &outbound)?;
    rule(&ground.server, &back, &inbound)
}

/// Starts both proxies, with two workers each as Istio's default has it.
pub(super) fn start(ground: &Ground, envoy: &Path) -> Result<Vec<Running>> {
    let envoy = envoy.to_str().context("the path of Envoy is no text")?;
    let one = |place: &Place| {
        let config = ground.dir().join(format!("envoy-{}.json", place.name));
        let config = config.to_string_lossy();
        let argv = [
            envoy,
            "--config-path",
            &config,
            "--concurrency",
            "2",
            "--log-level",
            "warn",
            "--disable-hot-restart",
        ];
        ground.start(place, &format!("envoy-{}", place.name), &argv, Some(USER))
    };
    Ok(vec![one(&ground.client)?, one(&ground.server)?])
}

fn outbound(svid: &Svid, root: &str, filters: &[Value]) -> Value {
    let tls = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common_tls(svid, root, SERVER_ID),
        }
    });
    let mut destination = cluster();
    destination["transport_socket"] = tls;
    bootstrap(&listener("outbound", OUTBOUND_PORT, None, filters), &destination)
}

fn inbound(svid: &Svid, root: &str, filters: &[Value]) -> Value {
    let tls = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common_tls(svid, root, CLIENT_ID),
        }
    });
    bootstrap(&listener("inbound", INBOUND_PORT, Some(tls), filters), &cluster())
}

fn rbac() -> Value {
    json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "tcp.",
            "rules": { "action": "ALLOW", "policies": { "only-client": {
                "permissions": [ { "any": true } ],
                "principals": [ { "authenticated": { "principal_name": { "exact": CLIENT_ID } } } ],
            } } }
        }
    })
}

fn bootstrap(listener: &Value, cluster: &Value) -> Value {
    json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } })
}

fn listener(name: &str, port: u16, tls: Option<Value>, filters: &[Value]) -> Value {
    let mut chain = json!({ "filters": filters });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
        "tcp_backlog_size": 16384,
        "listener_filters": [ {
            "name": "envoy.filters.listener.original_dst",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            }
        } ],
        "filter_chains": [chain],
    })
}

fn tcp_proxy() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tcp", "cluster": CLUSTER, "idle_timeout": "3600s",
        }
    })
}

/// Wherever the connection was going; as many as Istio allows.
fn cluster() -> Value {
    let many = 4_294_967_295_u32;
    json!({
        "name": CLUSTER, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [ {
            "max_connections": many, "max_pending_requests": many, "max_requests": many,
        } ] }
    })
}

fn common_tls(svid: &Svid, root: &str, peer: &str) -> Value {
    json!({
        "alpn_protocols": ["istio"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [ {
            "certificate_chain": { "inline_string": svid.chain }, "private_key": { "inline_string": svid.key },
        } ],
        "validation_context": {
            "trusted_ca": { "inline_string": root },
            "match_typed_subject_alt_names": [ { "san_type": "URI", "matcher": { "exact": peer } } ],
        }
    })
}
