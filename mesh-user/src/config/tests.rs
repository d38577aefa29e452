//! The file as people write it, and what they are told when it is wrong.

use std::{fmt::Write as _, path::Path};

use super::*;

const FULL: &str = r#"
node: node-a
trustDomain: cluster.local
trustDomainAliases: [old.local]
rootNamespace: istio-system
stateDir: /var/lib/meshd
runtimeDir: /run/meshd
policiesDir: /etc/meshd/policies
capture: { cgroup: /sys/fs/cgroup, form: auto, outboundPort: 15001, inboundPort: 15006 }
relay: ktls-splice
ca: { directory: /var/lib/meshd/ca, svidLifetimeSeconds: 86400 }
trustBundles: [ { trustDomain: other.example, file: /etc/meshd/other.pem } ]
jwks: { allowAddresses: [127.0.0.1/32, "fd00::/8"], extraRoots: [/etc/meshd/idp.pem] }
pathNormalization: { normalization: DECODE_AND_MERGE_SLASHES }
observation: { entries: 0 }
workloads:
  - name: web
    namespace: shop
    serviceAccount: web
    labels: { app: web }
    selector: { netns: /run/netns/web }
    addresses: [ 10.0.1.2, "fd00:1::2" ]
    excludeInboundPorts: [ 9100 ]
  - { name: pg, namespace: shop, selector: { user: 1001 }, addresses: [10.0.1.3], ports: [5432] }
  - { name: job, namespace: shop, selector: { cgroup: /sys/fs/cgroup/job } }
remoteWorkloads:
  - { name: db, namespace: shop, serviceAccount: db, labels: {app: db}, addresses: [10.0.2.2], node: node-b }
services:
  - { name: db, namespace: shop, addresses: [10.96.0.10], ports: [ { port: 5432, targetPort: 5432, name: tcp } ], selector: { app: db } }
externalServices:
  - { host: pay.example.com, addresses: [203.0.113.5], ports: [ { port: 80, targetPort: 443 } ] }
limits: { workloads: 1024, drainTimeMs: 1 }
accessLog: { format: text, perSecond: 10 }
log: info
shutdown: { hooks: keep }
"#;

fn error(text: &str) -> String {
    Config::parse(text, "node.yaml").unwrap_err().to_string()
}

#[test]
fn the_documented_file_is_read() {
    let config = Config::parse(FULL, "node.yaml").unwrap();
    assert_eq!(config.relay, RelayChoice::KtlsSplice);
    assert_eq!(config.workloads[1].selector, Selector::User("1001".to_owned()));
    assert_eq!(config.workloads[1].service_account, "default");
    assert_eq!(config.limits, Limits { drain_time_ms: 1, ..Limits::default() });
    assert_eq!(config.ca_directory(), Path::new("/var/lib/meshd/ca"));
    assert_eq!(config.path_normalization.normalization, PathNormalization::DecodeAndMergeSlashes);
    assert_eq!(config.observation.entries, 0);
}

#[test]
fn paths_are_normalized_in_the_words_of_istio() {
    for (text, wanted) in [
        ("DEFAULT", PathNormalization::Default),
        ("NONE", PathNormalization::None),
        ("BASE", PathNormalization::Base),
        ("MERGE_SLASHES", PathNormalization::MergeSlashes),
        ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
    ] {
        let text = format!("node: a\npathNormalization: {{ normalization: {text} }}\n");
        assert_eq!(Config::parse(&text, "node.yaml").unwrap().path_normalization.normalization, wanted);
    }
    let error = error("node: a\npathNormalization: { normalization: base }\n");
    assert!(error.contains("node.yaml:2:") && error.contains("MERGE_SLASHES"), "{error}");
    assert!(super::Config::parse("node: a\nobservation: { entries: 65537 }\n", "node.yaml").is_err());
}

#[test]
fn a_name_is_enough() {
    let config = Config::parse("node: a", "node.yaml").unwrap();
    assert_eq!(config.trust_domain.as_str(), "cluster.local");
    assert_eq!(config.capture.inbound_port, 15006);
    assert_eq!(config.ca_directory(), Path::new("/var/lib/meshd/ca"));
}

#[test]
fn what_is_written_reads_back() {
    let config = Config::parse(FULL, "node.yaml").unwrap();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(Config::parse(&json, "node.json").unwrap(), config);
}

#[test]
fn a_ca_section_that_does_not_fit_its_provider_says_why() {
    for (text, place, what) in [
        ("node: a\nca: { provider: spire }\n".to_owned(), "node.yaml:2:", "meshd-ca"),
        ("node: a\nca: { address: 'ca:1' }\n".to_owned(), "node.yaml:2:16: ", "means nothing to provider embedded"),
        ("node: a\nca: { provider: meshd-ca, rootsFile: /r }\n".to_owned(), "node.yaml:2:", "meshd-ca needs address"),
        ("node: a\nca: { provider: meshd-ca, address: 'ca:1' }\n".to_owned(), "node.yaml:2:", "needs rootsFile"),
        (
            "node: a\nca: { provider: meshd-ca, address: 'ca:1', rootsFile: /r, tokenFile: /t, joinTokenFile: /j }\n"
                .to_owned(),
            "node.yaml:2:",
            "joinTokenFile",
        ),
        (
            "node: a\nca: { provider: meshd-ca, address: 'ca', rootsFile: /r }\n".to_owned(),
            "node.yaml:2:36: ",
            "write host:port",
        ),
        (
            "node: a\nca: { provider: meshd-ca, address: 'unix:ca.sock' }\n".to_owned(),
            "node.yaml:2:36: ",
            "whole path",
        ),
        (
            "node: a\nca: { provider: meshd-ca, address: 'unix:/ca.sock', joinTokenFile: /t }\n".to_owned(),
            "node.yaml:2:",
            "means nothing to provider meshd-ca on a socket",
        ),
        (
            "node: a\nca: { provider: istiod, address: 'i:1', rootsFile: /r }\n".to_owned(),
            "node.yaml:2:",
            "istiod needs tokenFile",
        ),
        (
            "node: a\nca: { provider: istiod, address: 'i:1', rootsFile: /r, tokenFile: /t, serverName: 'a b' }\n".to_owned(),
            "node.yaml:2:",
            "neither a DNS name",
        ),
    ] {
        let error = error(&text);
        assert!(error.starts_with(place) && error.contains(what), "{text} gave {error}");
    }
}

#[test]
fn a_wrong_file_says_where_and_what() {
    let workload = "node: a\nworkloads:\n  - { name: w, namespace: n, ";
    let mut wrong = Vec::new();
    for (text, place, what) in [
        ("node: a\nworklods: []\n".to_owned(), "node.yaml:2:1: ", "did you mean \"workloads\"?"),
        ("node: a\nlimits: { drainTime: 1 }\n".to_owned(), "node.yaml:2:11: ", "did you mean \"drainTimeMs\"?"),
        ("node: a\nrelay: kernel\n".to_owned(), "node.yaml:2:8: ", "auto, userspace, ktls, ktls-splice"),
        ("trustDomain: x\n".to_owned(), "node.yaml:1:", "write `node: NAME`"),
        ("node: a\ntrustDomain: UPPER\n".to_owned(), "node.yaml:2:", "lower-case"),
        ("node: a\nnode: b\n".to_owned(), "node.yaml:2:1: ", "twice"),
        ("node: a\ncapture: { outboundPort: 0 }\n".to_owned(), "node.yaml:2:26: ", "port 0"),
        ("node: a\ncapture: { outboundPort: 15006 }\n".to_owned(), "node.yaml:2:", "use two ports"),
        ("node: a\nmetrics: { listen: 15020 }\n".to_owned(), "node.yaml:2:20: ", "socket address"),
        ("node: a\nmetrics: { listen: '127.0.0.1:0' }\n".to_owned(), "node.yaml:2:20: ", "port 0"),
        ("node: a\nmetrics: { listen: '[::]:15006' }\n".to_owned(), "node.yaml:2:20: ", "one of capture's"),
        (
            format!("{workload}selector: {{ user: b }}, addresses: [10.0.0.1], ports: [90] }}\nmetrics: {{ listen: '0.0.0.0:90' }}\n"),
            "node.yaml:4:20: ",
            "belongs to workload n/w",
        ),
        ("node: a\nexternalServices: [{ host: 10.0.0.1, addresses: [192.0.2.1], ports: [{port: 1}] }]\n".to_owned(), "node.yaml:2:28: ", "no DNS name"),
        ("node: a\nexternalServices: [{ host: '*.a.b', addresses: [192.0.2.1], ports: [{port: 1}] }]\n".to_owned(), "node.yaml:2:28: ", "no DNS name"),
        ("node: a\nexternalServices: [{ host: a.b, addresses: [], ports: [{port: 1}] }]\n".to_owned(), "node.yaml:2:", "at least one address"),
        ("node: a\nexternalServices: [{ host: a.b, addresses: [192.0.2.1], ports: [] }]\n".to_owned(), "node.yaml:2:", "at least one port"),
        (
            format!("{workload}selector: {{ user: b }}, addresses: [192.0.2.1], ports: [1] }}\nexternalServices: [{{ host: a.b, addresses: [192.0.2.1], ports: [{{port: 1}}] }}]\n"),
            "node.yaml:4:",
            "port 1 already belongs",
        ),
        ("node: a\nlimits: { connections: 0 }\n".to_owned(), "node.yaml:2:24: ", "at least 1"),
        ("node: a\nca: { svidLifetimeSeconds: 5 }\n".to_owned(), "node.yaml:2:28: ", "at least 60"),
        (format!("{workload}selector: {{}} }}\n"), "node.yaml:3:", "exactly one of netns, cgroup, unit, pod, user"),
        (format!("{workload}selector: {{ netns: /a, user: b }} }}\n"), "node.yaml:3:", "exactly one of"),
        (format!("{workload}selector: {{ netns: a }} }}\n"), "node.yaml:3:49: ", "absolute path"),
        (format!("{workload}selector: {{ netns: /a }}, ports: [1] }}\n"), "node.yaml:3:62: ", "captured whole"),
        (format!("{workload}selector: {{ user: b }}, ports: [1] }}\n"), "node.yaml:3:", "ports without addresses"),
        (format!("{workload}selector: {{ user: b }}, addresses: [300.1.1.1] }}\n"), "node.yaml:3:", "IP address"),
        (format!("{workload}selector: {{ user: b }}, addresses: [127.0.0.1] }}\n"), "node.yaml:3:65: ", "reached"),
        (format!("{workload}selector: {{ user: b }}, addresses: ['fe80::1'] }}\n"), "node.yaml:3:65: ", "link"),
        (format!("{workload}selector: {{ user: b }}, excludeOutboundPorts: [1, 1] }}\n"), "node.yaml:3:", "twice"),
        (
            format!("{workload}selector: {{ user: b }} }}\n  - {{ name: w, namespace: n, selector: {{ user: c }} }}\n"),
            "node.yaml:4:13: ",
            "n/w is already workloads[0]",
        ),
        (
            format!(
                "{workload}selector: {{ user: b }}, addresses: [10.0.0.1] }}\nservices:\n  - {{ name: s, namespace: n, addresses: ['::ffff:10.0.0.1'], ports: [{{port: 1}}], selector: {{a: b}} }}\n"
            ),
            "node.yaml:5:42: ",
            "already belongs to workloads[0].addresses[0]",
        ),
        (
            format!("{workload}selector: {{ user: b }}, addresses: [10.0.0.1], ports: [5] }}\n  - {{ name: x, namespace: n, selector: {{ user: c }}, addresses: [10.0.0.2], ports: [6, 5] }}\n"),
            "node.yaml:4:",
            "port 5 already belongs to workloads[0] on this node",
        ),
        (
            format!("{workload}selector: {{ user: b }}, addresses: [10.0.0.1], ports: [5] }}\n  - {{ name: x, namespace: n, selector: {{ netns: /c }}, addresses: [10.0.0.1] }}\n"),
            "node.yaml:4:",
            "10.0.0.1 already belongs to workloads[0].addresses[0]",
        ),
        (
            format!("{workload}selector: {{ user: b }}, addresses: [10.0.0.1], ports: [5] }}\nremoteWorkloads:\n  - {{ name: x, namespace: n, addresses: [10.0.0.1], ports: [6, 5] }}\n"),
            "node.yaml:5:",
            "10.0.0.1 port 5 already belongs to workloads[0].addresses[0]",
        ),
        (
            format!("{workload}selector: {{ user: b }}, addresses: [10.0.0.1, 10.0.0.1], ports: [5] }}\n"),
            "node.yaml:3:",
            "already belongs to workloads[0].addresses[0]",
        ),
        (
            "node: a\nlimits: { workloads: 1 }\nworkloads:\n  - { name: a, namespace: n, selector: { user: a } }\n  - { name: b, namespace: n, selector: { user: b } }\n".to_owned(),
            "node.yaml:4:3: ",
            "raise it",
        ),
    ] {
        let error = error(&text);
        if !(error.starts_with(place) && error.contains(what)) {
            wrong.push(format!("{text} gave {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn workloads_of_the_node_share_its_address_by_port() {
    let text = "
node: a
workloads:
  - { name: pg, namespace: n, selector: {user: a}, addresses: [10.0.0.1], ports: [5432] }
  - { name: web, namespace: n, selector: {cgroup: /b}, addresses: [10.0.0.1], ports: [80] }
  - { name: job, namespace: n, selector: {user: c}, addresses: [10.0.0.1] }
remoteWorkloads:
  - { name: x, namespace: n, addresses: [10.0.0.2], ports: [1] }
  - { name: y, namespace: n, addresses: [10.0.0.2], ports: [2] }
";
    Config::parse(text, "node.yaml").unwrap();
}

#[test]
fn every_problem_is_listed_on_a_line_of_its_own() {
    let error = error("node: ''\ncapture: { outboundPort: 0, inboundPort: 0 }\n");
    assert_eq!(error.lines().count(), 4, "{error}");
    assert!(error.lines().all(|l| l.starts_with("node.yaml:")), "{error}");
}

#[test]
fn a_file_may_name_a_whole_mesh() {
    let mut text = "node: a\nremoteWorkloads:\n".to_owned();
    for index in 0..40_000_u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + index);
        let _ = writeln!(text, "  - {{ name: w{index}, namespace: n, addresses: [{address}] }}");
    }
    assert_eq!(Config::parse(&text, "node.yaml").unwrap().remote_workloads.len(), 40_000);
    text += "  - { name: w0, namespace: n, addresses: [10.200.0.1] }\n";
    let error = error(&text);
    assert!(error.starts_with("node.yaml:40003:"), "{error}");
}

#[test]
fn aliases_of_aliases_are_refused() {
    let mut text = "node: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        let _ = writeln!(text, "k{level}: &a{level} [{}]", [&*before; 8].join(", "));
    }
    let refused = yaml::parse::<serde_json::Value>(&text, 1).unwrap_err();
    assert!(refused.what.contains("budget breached"), "{refused:?}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/node.yaml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/node.yaml"), "{error}");
}

#[test]
fn the_schema_knows_the_fields() {
    let schema = Config::schema();
    assert_eq!(schema["additionalProperties"], false);
    for field in ["node", "trustDomain", "remoteWorkloads", "accessLog"] {
        assert!(schema["properties"][field].is_object(), "{field} is missing");
    }
    assert_eq!(schema["$defs"]["Selector"]["oneOf"].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_wrong_identity_or_unit_says_where_and_what() {
    let workload = "node: a\nworkloads:\n  - { name: w, namespace: n, ";
    for (text, place, what) in [
        (
            format!("{workload}serviceAccount: 'a/b', selector: {{ user: b }} }}\n"),
            "node.yaml:3:46: ",
            "n/w: serviceAccount \"a/b\" cannot stand in a SPIFFE ID",
        ),
        (
            format!("{workload}spiffeId: 'spiffe://other/x', selector: {{ user: b }} }}\n"),
            "node.yaml:3:",
            "not of the mesh's trust domain cluster.local",
        ),
        (
            format!("{workload}spiffeId: 'spiffe://{{{{x}}}}/y', selector: {{ user: b }} }}\n"),
            "node.yaml:3:",
            "{{x}} is unknown",
        ),
        (
            format!(
                "identity: {{ template: 'spiffe://{{{{trustDomain}}}}/user/{{{{user}}}}' }}\n{workload}selector: {{ netns: /a }} }}\n"
            ),
            "node.yaml:",
            "n/w: the workload has no user, which the template asks for",
        ),
        (
            format!(
                "{workload}selector: {{ user: b }}, spiffeId: 'spiffe://cluster.local/e' }}\nfederation: {{ listen: '0.0.0.0:1', spiffeId: 'spiffe://cluster.local/e' }}\n"
            ),
            "node.yaml:4:",
            "is the identity of workloads[0] too",
        ),
        (
            format!(
                "{workload}selector: {{ user: b }} }}\nremoteWorkloads:\n  - {{ name: x, namespace: n, addresses: [10.0.0.9], spiffeId: 'spiffe://cluster.local/ns/n/sa/default' }}\n"
            ),
            "node.yaml:5:",
            "which is workloads[0] made of something else",
        ),
        (format!("{workload}selector: {{ unit: nginx }} }}\n"), "node.yaml:3:", "is no unit"),
        (format!("{workload}selector: {{ unit: ../x.service }} }}\n"), "node.yaml:3:", "is no unit"),
    ] {
        let error = error(&text);
        assert!(error.starts_with(place) && error.contains(what), "{text} gave {error}");
    }
}
