//! What is read, what is refused, and what is said about it.

use crate::policy::PolicySet;

fn error(text: &str) -> String {
    PolicySet::parse([("p.yaml", text)]).unwrap_err().to_string()
}

const HEAD: &str =
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n";

#[test]
fn every_field_of_the_api_is_read() {
    let text = "
# a comment
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: all
  namespace: shop
  creationTimestamp: null
  labels: {a: b}
  annotations: {c: d}
  uid: x
  resourceVersion: '1'
  generation: 1
  managedFields: []
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules:
    - from:
        - source:
            principals: [a]
            notPrincipals: [a]
            requestPrincipals: [a]
            notRequestPrincipals: [a]
            namespaces: [a]
            notNamespaces: [a]
            ipBlocks: [10.0.0.1]
            notIpBlocks: [10.0.0.0/8]
            remoteIpBlocks: ['fd00::/8']
            notRemoteIpBlocks: ['::1']
        - source: {serviceAccounts: [a], notServiceAccounts: [b/c]}
      to:
        - operation:
            hosts: [a]
            notHosts: [a]
            ports: ['80']
            notPorts: ['81']
            methods: [GET]
            notMethods: [PUT]
            paths: [/]
            notPaths: [/x]
      when:
        - {key: 'request.headers[a]', values: [x], notValues: [y]}
        - {key: 'request.auth.claims[a][b]', values: [x]}
        - {key: 'experimental.envoy.filters.a[b]', values: [x]}
        - {key: connection.sni, values: [x]}
status: {conditions: []}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: target}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec: {anything: [goes]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: dr, namespace: shop}
spec: {host: x}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
";
    let set = PolicySet::parse([("p.yaml", text)]).unwrap();
    let status: Vec<_> =
        set.status.iter().map(|s| (s.name.as_str(), s.accepted, s.not_enforced.len())).collect();
    assert_eq!(status, [("all", true, 1), ("target", false, 1), ("jwt", false, 1), ("dr", false, 1)]);
    assert!(set.status[0].not_enforced[0].contains("requestPrincipals"), "{:?}", set.status[0]);
    assert_eq!(set.status[1].namespace, "default");
    assert_eq!(set.warnings.len(), 1);
}

#[test]
fn what_istio_refuses_is_refused_with_its_place() {
    for (spec, place, what) in [
        ("spec: {rule: []}\n", "p.yaml:4:8:", "did you mean \"rules\"?"),
        ("spec: {action: BLOCK}\n", "p.yaml:4:16:", "expected one of ALLOW, DENY, AUDIT, CUSTOM"),
        (
            "spec: {rules: [{from: [{source: {principal: [a]}}]}]}\n",
            "p.yaml:4:34:",
            "did you mean \"principals\"?",
        ),
        ("spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.300]}}]}]}\n", "p.yaml:4:44:", "no IP address"),
        ("spec: {rules: [{to: [{operation: {ports: ['0']}}]}]}\n", "p.yaml:4:42:", "is no port"),
        ("spec: {rules: [{to: [{operation: {ports: ['8*']}}]}]}\n", "p.yaml:4:42:", "is no port"),
        ("spec: {rules: [{to: [{operation: {}}]}]}\n", "p.yaml:4:", "has no field"),
        ("spec: {rules: [{from: [{}]}]}\n", "p.yaml:4:", "missing field \"source\""),
        ("spec: {rules: [{from: []}]}\n", "p.yaml:4:", "is empty"),
        ("spec: {rules: [{from: [{source: {namespaces: []}}]}]}\n", "p.yaml:4:", "is empty"),
        (
            "spec: {rules: [{when: [{key: source.ips, values: [10.0.0.1]}]}]}\n",
            "p.yaml:4:",
            "did you mean \"source.ip\"?",
        ),
        ("spec: {rules: [{when: [{key: source.ip}]}]}\n", "p.yaml:4:", "needs values or notValues"),
        ("spec: {rules: [{from: [{source: {serviceAccounts: ['*']}}]}]}\n", "p.yaml:4:", "without wildcards"),
        (
            "spec: {rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}\n",
            "p.yaml:4:",
            "cannot be combined",
        ),
        ("spec: {action: DENY}\n", "p.yaml:", "rules: [{}]"),
        ("spec: {action: CUSTOM, rules: [{}]}\n", "p.yaml:4:", "provider.name"),
        ("spec: {selector: {matchLabels: {app: 'w*'}}}\n", "p.yaml:4:", "wildcards"),
        ("spec: {rules: [~]}\n", "p.yaml:4:", ""),
        ("spec: {rules: [{}], rules: []}\n", "p.yaml:4:", "twice"),
    ] {
        let error = error(&format!("{HEAD}{spec}"));
        assert!(error.starts_with(place) && error.contains(what), "{spec} gave {error}");
    }
}

#[test]
fn a_problem_names_the_line_of_its_document() {
    let text = format!("{HEAD}---\n{}spec:\n  rules:\n    - form: []\n", HEAD.replace("name: p", "name: q"));
    let error = error(&text);
    assert!(error.starts_with("p.yaml:10:7: unknown field \"form\""), "{error}");
    assert!(error.contains("document 2"), "{error}");
}

#[test]
fn metadata_and_kinds_are_not_guessed() {
    for (text, what) in [
        ("kind: AuthorizationPolicy\n", "apiVersion and kind"),
        ("apiVersion: security.istio.io/v2\nkind: AuthorizationPolicy\n", "unknown apiVersion"),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: x}\n",
            "unknown kind",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namepsace: y}\n",
            "namespace",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, creationTimestamp: soon}\n",
            "RFC 3339",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec: {portLevelMtls: {80: {mode: STRICT}}}\n",
            "selector",
        ),
        ("apiVersion: v1\nkind: List\nitems: []\n", "List"),
        ("just text\n", ""),
    ] {
        let error = error(text);
        assert!(error.contains(what), "{text} gave {error}");
    }
    let twice = format!("{HEAD}---\n{HEAD}");
    assert!(error(&twice).contains("already defined in p.yaml document 1"));
}

#[test]
fn a_status_says_what_a_document_is_for_and_how_many_workloads_it_reaches() {
    let document = |kind: &str, name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let web = "selector: {matchLabels: {app: web}}";
    let text = [
        document("PeerAuthentication", "mesh", "istio-system", "{mtls: {mode: STRICT}}"),
        document("AuthorizationPolicy", "ns", "shop", "{action: DENY, rules: [{}]}"),
        document("RequestAuthentication", "jwt", "shop", "{}"),
        document("PeerAuthentication", "own", "shop", &format!("{{{web}}}")),
        document("AuthorizationPolicy", "root", "istio-system", &format!("{{{web}}}")),
        document("AuthorizationPolicy", "elsewhere", "other", "{}"),
        document(
            "PeerAuthentication",
            "nowhere",
            "istio-system",
            &format!("{{{web}, mtls: {{mode: DISABLE}}}}"),
        ),
        document("AuthorizationPolicy", "audit", "shop", "{action: AUDIT, rules: [{}]}"),
    ]
    .concat();
    let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
    let status = set.status_in(&super::world());
    let seen: Vec<_> = status
        .iter()
        .map(|s| format!("{} {} {} {} {}", s.name, s.scope, s.action, s.workloads, s.not_enforced.len()))
        .collect();
    assert_eq!(
        seen,
        [
            "mesh mesh STRICT 2 0",
            "ns namespace DENY 1 0",
            "jwt namespace  0 1",
            "own workload UNSET 1 0",
            "root workload ALLOW 1 0",
            "elsewhere namespace ALLOW 0 0",
            "nowhere workload DISABLE 0 1",
            "audit namespace AUDIT 1 1",
        ]
    );
}
