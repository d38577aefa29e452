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
spec: {jwtRules: [{issuer: 'https://issuer.example'}]}
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
    assert_eq!(status, [("all", true, 1), ("target", false, 1), ("jwt", true, 0), ("dr", false, 1)]);
    assert!(set.status[0].not_enforced[0].contains("experimental.envoy"), "{:?}", set.status[0]);
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
        (
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items: []\n",
            "a List inside a List",
        ),
        ("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: ConfigMap}]\n", "kubectl get -o yaml"),
        ("apiVersion: v1\nkind: List\nitem: []\n", "did you mean \"items\"?"),
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
            "jwt namespace  1 0",
            "own workload UNSET 1 0",
            "root workload ALLOW 1 0",
            "elsewhere namespace ALLOW 0 0",
            "nowhere workload DISABLE 0 1",
            "audit namespace AUDIT 1 0",
        ]
    );
}

/// As `kubectl get peerauthentications,authorizationpolicies -o yaml` prints it.
const LIST: &str = r#"# saved
---
apiVersion: v1
items:
- apiVersion: security.istio.io/v1
  kind: PeerAuthentication
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication",
        - "not an item"}

    creationTimestamp: "2024-05-01T10:00:00Z"
    generation: 1
    managedFields:
    - apiVersion: security.istio.io/v1
      fieldsType: FieldsV1
      fieldsV1:
        f:spec: {}
      manager: kubectl
      operation: Update
      time: "2024-05-01T10:00:00Z"
    name: default
    namespace: shop
    resourceVersion: "4711"
    uid: 4c3f0f0e-0000-0000-0000-000000000000
  spec:
    mtls:
      mode: STRICT
  status: {}

# between
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata:
    name: allow
# within
    namespace: shop
  spec:
    rules:
    - to:
      - operation:
          ports:
          - "80"
- apiVersion: v1
  kind: ConfigMap
  metadata:
    name: other
kind: List
metadata:
  resourceVersion: ""
"#;

#[test]
fn a_list_as_kubectl_prints_it_is_read_item_by_item() {
    let set = PolicySet::parse([("p.yaml", LIST)]).unwrap();
    assert_eq!(set.status.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["default", "allow"]);
    assert!(set.peer_authentications[0].created.is_some());
    assert_eq!(set.authorization_policies[0].spec.rules.as_ref().unwrap()[0].to.as_ref().unwrap().len(), 1);
    assert_eq!(set.warnings, ["p.yaml: document 1 items[2]: v1 ConfigMap is not a policy"]);
    assert!(
        PolicySet::parse([("p.yaml", "apiVersion: v1\nkind: List\nitems: []\n")]).unwrap().status.is_empty()
    );
    let indented = LIST.replace('\n', "\n  ").replace("  apiVersion: v1\n  items", "apiVersion: v1\nitems");
    let indented =
        indented.replace("\n  kind: List\n  metadata:", "\nkind: List\nmetadata:").replace("  ---", "---");
    assert_eq!(PolicySet::parse([("p.yaml", indented.as_str())]).unwrap().status, set.status);
}

#[test]
fn a_problem_in_a_list_names_its_line_and_item() {
    for (from, to) in [("- operation:", "- operations:"), ("- \"80\"", "- \"0\"")] {
        let text = LIST.replace(from, to);
        let line = text.lines().position(|l| l.trim() == to).unwrap() + 1;
        let error = error(&text);
        // A list's own place is its first element's line, a field's is the field's.
        assert!(error.starts_with(&format!("p.yaml:{line}:")), "{line}: {error}");
        assert!(error.contains("document 1 items[1]"), "{error}");
    }
}
