//! The network filters that Istio gives to a port which it knows to be HTTP, at both ends, and the benchmark's rules about
//! requests as it writes them (istio/istio `pilot/pkg/networking/core/listener_builder.go`, `networkfilter.go`,
//! `pilot/pkg/security/authz/model/`). Left out is what only Istio's own build of Envoy has: peer metadata and `istio.stats`;
//! and tracing and access logs, which are off unless somebody sets them up. Pure.

use serde_json::{Value, json};

use super::envoy::{CLIENT_ID, CLUSTER};

/// Of the client's sidecar and of the server's.
pub(super) fn filters() -> (Vec<Value>, Vec<Value>) {
    let outbound = manager("outbound", &json!({ "use_remote_address": false }), &[]);
    let forwarded = json!({
        "use_remote_address": false,
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": { "subject": true, "dns": true, "uri": true },
    });
    (vec![outbound], vec![manager("inbound", &forwarded, &[deny(), allow()])])
}

fn manager(name: &str, more: &Value, rules: &[Value]) -> Value {
    let mut filters = rules.to_vec();
    filters.push(filter(
        "grpc_stats",
        "FilterConfig",
        &json!({ "emit_filter_state": true, "stats_for_all_methods": false }),
    ));
    if rules.is_empty() {
        filters.push(filter("fault", "HTTPFault", &json!({})));
        filters.push(filter("cors", "Cors", &json!({})));
    }
    filters.push(filter("router", "Router", &json!({})));
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "server_name": "istio-envoy",
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [ { "upgrade_type": "websocket" } ],
        "route_config": {
            "name": name,
            "validate_clusters": false,
            "virtual_hosts": [ {
                "name": "any", "domains": ["*"],
                "routes": [ {
                    "name": "default",
                    "match": { "prefix": "/" },
                    "route": { "cluster": CLUSTER, "timeout": "0s" },
                    "decorator": { "operation": "server:80/*" },
                } ],
            } ],
        },
        "http_filters": filters,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": config })
}

fn filter(name: &str, message: &str, config: &Value) -> Value {
    let mut config = config.clone();
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{name}.v3.{message}").into();
    json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": config })
}

/// `no-admin`: a rule without `from` is for anybody.
fn deny() -> Value {
    let policies = json!({ "ns[bench]-policy[no-admin]-rule[0]": {
        "permissions": [all_of("rules", &[one_of("rules", &[path(&json!({ "prefix": "/admin/" }))])])],
        "principals": [all_of("ids", &[json!({ "any": true })])],
    } });
    filter("rbac", "RBAC", &json!({ "rules": { "action": "DENY", "policies": policies } }))
}

/// `only-client`.
fn allow() -> Value {
    let exact = |text: &str| json!({ "exact": text });
    let client = || {
        let name = json!({ "authenticated": { "principal_name": { "exact": CLIENT_ID } } });
        one_of("ids", &[name])
    };
    let team = one_of("ids", &[json!({ "header": { "name": "x-team", "string_match": exact("shop") } })]);
    let method = |name: &str| json!({ "header": { "name": ":method", "string_match": exact(name) } });
    let operation = |methods: &[&str], paths: &[&str]| {
        let methods: Vec<_> = methods.iter().map(|name| method(name)).collect();
        let paths: Vec<_> = paths.iter().map(|text| path(&exact(text))).collect();
        all_of("rules", &[one_of("rules", &methods), one_of("rules", &paths)])
    };
    let policies = json!({
        "ns[bench]-policy[only-client]-rule[0]": {
            "permissions": [operation(&["POST"], &["/orders"])],
            "principals": [all_of("ids", &[client()])],
        },
        "ns[bench]-policy[only-client]-rule[1]": {
            "permissions": [operation(&["GET", "HEAD"], &["/1k", "/16k"])],
            "principals": [all_of("ids", &[client(), team])],
        },
    });
    filter("rbac", "RBAC", &json!({ "rules": { "action": "ALLOW", "policies": policies } }))
}

fn path(matcher: &Value) -> Value {
    json!({ "url_path": { "path": matcher } })
}

/// `and_rules` or `and_ids`.
fn all_of(what: &str, parts: &[Value]) -> Value {
    json!({ format!("and_{what}"): { what: parts } })
}

/// `or_rules` or `or_ids`.
fn one_of(what: &str, parts: &[Value]) -> Value {
    json!({ format!("or_{what}"): { what: parts } })
}
