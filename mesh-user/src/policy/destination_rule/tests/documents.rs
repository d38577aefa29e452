//! What is read, what is refused, and what is said about it.

use super::{rule, world};
use crate::policy::{PolicySet, destination_rule::ClientTls};

pub(super) const EVERYTHING: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: all, namespace: data}
spec:
  host: db
  exportTo: ['.']
  workloadSelector: {matchLabels: {app: db}}
  trafficPolicy:
    loadBalancer:
      simple: LEAST_REQUEST
      consistentHash: {httpHeaderName: a, httpCookie: {name: a, path: /, ttl: 0s, attributes: [{name: a, value: b}]}, useSourceIp: true, httpQueryParameterName: a, ringHash: {minimumRingSize: 1}, maglev: {tableSize: 7}, minimumRingSize: 1}
      localityLbSetting: {enabled: true, distribute: [{from: 'a/*', to: {'a/*': 100}}], failover: [{from: a, to: b}], failoverPriority: [a]}
      zoneAwareLbSetting: {enabled: true, minClusterSize: 1}
      backendUtilization: {weightUpdatePeriod: 1s}
      warmupDurationSecs: 1s
      warmup: {duration: 1s, minimumPercent: 10, aggression: 1.5}
    connectionPool:
      tcp: {maxConnections: 1, connectTimeout: 1s, tcpKeepalive: {probes: 1, time: 1s, interval: 1s}, maxConnectionDuration: 1s, idleTimeout: 1s}
      http: {http1MaxPendingRequests: 1, http2MaxRequests: 1, maxRequestsPerConnection: 1, maxRetries: 1, idleTimeout: 1s, h2UpgradePolicy: UPGRADE, useClientProtocol: true, maxConcurrentStreams: 1, http2KeepAlive: {interval: 1s, timeout: 1s}}
    outlierDetection: {consecutiveErrors: 1, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 1, consecutiveGatewayErrors: 1, consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 1, minHealthPercent: 1, outlierDetectionHttpErrorCodes: [500]}
    tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, subjectAltNames: [a], sni: s, insecureSkipVerify: false, caCrl: /crl}
    portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}, tls: {mode: ISTIO_MUTUAL, sni: x, subjectAltNames: ['spiffe://td1/ns/data/sa/db']}}]
    tunnel: {protocol: CONNECT, targetHost: a, targetPort: 1}
    retryBudget: {percent: 20, minRetryConcurrency: 1, budgetInterval: 1s}
  subsets: [{name: v1, labels: {v: '1'}, trafficPolicy: {tls: {mode: DISABLE}}}]
";

#[test]
fn what_istio_refuses_is_refused_at_its_place() {
    let both = "mode: SIMPLE, insecureSkipVerify: true";
    for (spec, expected) in [
        ("host: ''", "spec.host: is empty"),
        ("host: 'a.*.com'", "spec.host"),
        ("host: a, trafficPolicy: {}", "spec.trafficPolicy: has no field"),
        (
            "host: a, trafficPolicy: {tls: {mode: MUTUAL, privateKey: /k}}",
            "spec.trafficPolicy.tls.clientCertificate: MUTUAL needs it",
        ),
        (
            "host: a, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c}}",
            "spec.trafficPolicy.tls.privateKey: MUTUAL needs it",
        ),
        (
            "host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: MUTUAL}}]}",
            "spec.trafficPolicy.portLevelSettings[0].tls.clientCertificate",
        ),
        (
            "host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: SIMPLE}}]}",
            "spec.trafficPolicy.portLevelSettings[0]: names no port",
        ),
        ("host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}}]}", "has no field but its port"),
        (
            "host: a, trafficPolicy: {portLevelSettings: [{port: {number: 65536}, tls: {}}]}",
            "port.number: is no port",
        ),
        (
            &format!("host: a, trafficPolicy: {{tls: {{{both}, caCertificates: /c}}}}"),
            "spec.trafficPolicy.tls.insecureSkipVerify",
        ),
        (
            &format!("host: a, trafficPolicy: {{tls: {{{both}, subjectAltNames: [a]}}}}"),
            "spec.trafficPolicy.tls.insecureSkipVerify",
        ),
        (
            "host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c, caCertificates: /c}}",
            "spec.trafficPolicy.tls.credentialName",
        ),
        ("host: a, trafficPolicy: {tls: {mode: SIMPLE, unknown: 1}}", "unknown"),
        ("host: a, trafficPolicy: {tls: {mode: STRICT}}", "STRICT"),
        ("host: a, trafficPolicy: {loadBalancer: {simpel: RANDOM}}", "simpel"),
        ("host: a, subsets: [{name: v1}, {name: v1}]", "spec.subsets[1].name: subset v1 is there twice"),
        (
            "host: a, subsets: [{name: v1, trafficPolicy: {tls: {mode: MUTUAL}}}]",
            "spec.subsets[0].trafficPolicy.tls.clientCertificate",
        ),
        ("host: a, exportTo: ['*', shop]", "spec.exportTo"),
        ("host: a, exportTo: [., data]", "spec.exportTo[1]: data is there twice"),
        ("host: a, exportTo: ['~']", "spec.exportTo[0]"),
        ("host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']", "spec.exportTo"),
        ("host: a, workloadSelector: {matchLabels: {a: 'b*'}}", "spec.workloadSelector.matchLabels"),
        (
            "host: a, trafficPolicy: {tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {}}",
            "tunnel and proxyProtocol",
        ),
        ("trafficPolicy: {tls: {}}", "host"),
    ] {
        let error = PolicySet::parse([("p.yaml", rule("r", "data", spec).as_str())]).unwrap_err().to_string();
        assert!(error.starts_with("p.yaml:5:") && error.contains(expected), "{spec}: {error}");
    }
}

#[test]
fn every_field_is_read_and_what_is_not_about_tls_is_named() {
    let set = PolicySet::parse([("p.yaml", EVERYTHING)]).unwrap();
    let status = &set.status[0];
    assert!(status.accepted);
    assert_eq!(status.action, "MUTUAL,ISTIO_MUTUAL");
    let notes = &status.not_enforced;
    for expected in [
        "trafficPolicy.loadBalancer is",
        "trafficPolicy.connectionPool is",
        "trafficPolicy.outlierDetection is",
        "trafficPolicy.tunnel is",
        "trafficPolicy.retryBudget is",
        "trafficPolicy.portLevelSettings[0].loadBalancer is",
        "subsets: their policies do not count",
        "ISTIO_MUTUAL: of the tls block only subjectAltNames counts",
    ] {
        assert!(notes.iter().any(|note| note.starts_with(expected)), "{expected}: {notes:?}");
    }
    assert_eq!(notes.len(), 8, "{notes:?}");
    let ClientTls::Originate(origination) =
        set.destination_rules[0].policy.as_ref().unwrap().of_port(1).unwrap()
    else {
        panic!("it is MUTUAL");
    };
    let files: Vec<_> = origination.files().map(|path| path.display().to_string()).collect();
    assert_eq!(files, ["/c", "/k", "/ca", "/crl"]);
}

#[test]
fn a_rule_without_tls_is_not_enforced_at_all_and_an_empty_tls_is_disable() {
    for (spec, action, accepted, note) in [
        ("host: a, trafficPolicy: {connectionPool: {}}", "", false, "nothing of it is enforced"),
        ("host: a", "", false, "nothing of it is enforced"),
        (
            "host: a, trafficPolicy: {tls: {sni: a}}",
            "DISABLE",
            true,
            "DISABLE, the mode where none is written",
        ),
    ] {
        let set = PolicySet::parse([("p.yaml", rule("r", "data", spec).as_str())]).unwrap();
        let status = &set.status[0];
        assert_eq!((status.action.as_str(), status.accepted), (action, accepted), "{spec}");
        assert!(
            status.not_enforced.len() == 1 && status.not_enforced[0].starts_with(note),
            "{:?}",
            status.not_enforced
        );
    }
    let other =
        "apiVersion: networking.istio.io/v2\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a}\n";
    let error = PolicySet::parse([("p.yaml", other)]).unwrap_err().to_string();
    assert!(error.contains("unknown apiVersion"), "{error}");
}

#[test]
fn status_counts_the_clients_that_a_rule_may_concern() {
    for (namespace, spec, expected) in [
        ("data", "host: db, trafficPolicy: {tls: {}}", 4),
        ("data", "host: db, exportTo: [.], trafficPolicy: {tls: {}}", 1),
        ("data", "host: db, exportTo: [shop, lab], trafficPolicy: {tls: {}}", 2),
        ("shop", "host: db, workloadSelector: {matchLabels: {tier: front}}, trafficPolicy: {tls: {}}", 1),
        ("data", "host: db, workloadSelector: {matchLabels: {tier: front}}, trafficPolicy: {tls: {}}", 0),
    ] {
        let set = PolicySet::parse([("p.yaml", rule("r", namespace, spec).as_str())]).unwrap();
        assert_eq!(set.status_in(&world())[0].workloads, expected, "{namespace} {spec}");
    }
}
