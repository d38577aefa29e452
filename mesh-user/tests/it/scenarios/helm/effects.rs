//! What each value of the chart changes.

use serde_json::{Value, json};

/// A value, and all that differs from the defaults with it: pointers into objects, and what is there then.
pub(super) type Effect = (Value, &'static [(&'static str, &'static str)]);

const IMAGES: [&str; 2] = [
    "DaemonSet meshd/spec/template/spec/containers/0/image",
    "Deployment meshd-ca/spec/template/spec/containers/0/image",
];

pub(super) fn all() -> Vec<Effect> {
    [images_and_files(), pods(), parts()].concat()
}

fn images_and_files() -> Vec<Effect> {
    vec![
        (
            json!({ "image": { "repository": "r.example/meshd", "tag": "2" } }),
            &[(IMAGES[0], r#""r.example/meshd:2""#), (IMAGES[1], r#""r.example/meshd:2""#)],
        ),
        (
            json!({ "image": { "digest": "sha256:0123456789abcdef0123456789abcdef" } }),
            &[
                (IMAGES[0], r#""meshd@sha256:0123456789abcdef0123456789abcdef""#),
                (IMAGES[1], r#""meshd@sha256:0123456789abcdef0123456789abcdef""#),
            ],
        ),
        (
            json!({ "image": { "pullPolicy": "Always", "pullSecrets": ["a"] } }),
            &[
                ("DaemonSet meshd/spec/template/spec/containers/0/imagePullPolicy", r#""Always""#),
                ("DaemonSet meshd/spec/template/spec/imagePullSecrets", r#"[{"name":"a"}]"#),
                ("Deployment meshd-ca/spec/template/spec/containers/0/imagePullPolicy", r#""Always""#),
                ("Deployment meshd-ca/spec/template/spec/imagePullSecrets", r#"[{"name":"a"}]"#),
            ],
        ),
        (
            json!({ "trustDomain": "shop.example" }),
            &[
                ("ConfigMap meshd/data/node.yaml/trustDomain", r#""shop.example""#),
                ("ConfigMap meshd-ca/data/ca.yaml/trustDomain", r#""shop.example""#),
            ],
        ),
        (
            json!({ "agent": { "config": { "relay": "ktls", "kubernetes": { "ambientLabel": true } } } }),
            &[
                ("ConfigMap meshd/data/node.yaml/relay", r#""ktls""#),
                ("ConfigMap meshd/data/node.yaml/kubernetes/ambientLabel", "true"),
            ],
        ),
    ]
}

fn pods() -> Vec<Effect> {
    vec![
        (
            json!({ "agent": { "resources": { "limits": { "memory": "1Gi" } }, "tolerations": [], "priorityClassName": "" } }),
            &[
                ("DaemonSet meshd/spec/template/spec/containers/0/resources/limits", r#"{"memory":"1Gi"}"#),
                ("DaemonSet meshd/spec/template/spec/priorityClassName", "null"),
                ("DaemonSet meshd/spec/template/spec/tolerations", "[]"),
            ],
        ),
        (
            json!({ "agent": {
                "nodeSelector": { "mesh": "yes" }, "updateStrategy": { "rollingUpdate": { "maxUnavailable": "10%" } },
            } }),
            &[
                ("DaemonSet meshd/spec/template/spec/nodeSelector/mesh", r#""yes""#),
                ("DaemonSet meshd/spec/updateStrategy/rollingUpdate/maxUnavailable", r#""10%""#),
            ],
        ),
        (
            // The selector's own label stays.
            json!({ "agent": {
                "podAnnotations": { "a": "b" }, "podLabels": { "c": "d", "app.kubernetes.io/name": "e" },
            } }),
            &[
                ("DaemonSet meshd/spec/template/metadata/annotations/a", r#""b""#),
                ("DaemonSet meshd/spec/template/metadata/labels/c", r#""d""#),
            ],
        ),
        (
            json!({ "ca": {
                "replicas": 3, "config": { "audit": { "file": "/run/meshd-ca/a" } }, "podLabels": { "a": "b" },
                "podAnnotations": { "c": "d" },
            } }),
            &[
                ("Deployment meshd-ca/spec/replicas", "3"),
                ("ConfigMap meshd-ca/data/ca.yaml/audit", r#"{"file":"/run/meshd-ca/a"}"#),
                ("Deployment meshd-ca/spec/template/metadata/labels/a", r#""b""#),
                ("Deployment meshd-ca/spec/template/metadata/annotations", r#"{"c":"d"}"#),
            ],
        ),
        (
            json!({ "ca": {
                "resources": { "requests": { "cpu": "1" } }, "nodeSelector": { "a": "b" }, "tolerations": [],
                "priorityClassName": "",
            } }),
            &[
                ("Deployment meshd-ca/spec/template/spec/containers/0/resources/requests/cpu", r#""1""#),
                ("Deployment meshd-ca/spec/template/spec/nodeSelector/a", r#""b""#),
                ("Deployment meshd-ca/spec/template/spec/tolerations", "[]"),
                ("Deployment meshd-ca/spec/template/spec/priorityClassName", "null"),
            ],
        ),
    ]
}

fn parts() -> Vec<Effect> {
    vec![
        (
            json!({ "ca": { "enabled": false, "external": {
                "provider": "istiod", "address": "istiod.istio-system.svc:15012", "audience": "other", "rootsConfigMap": "roots",
            } } }),
            &[
                ("ConfigMap meshd/data/node.yaml/ca/provider", r#""istiod""#),
                ("ConfigMap meshd/data/node.yaml/ca/address", r#""istiod.istio-system.svc:15012""#),
                ("DaemonSet meshd/spec/template/spec/volumes/1/configMap/name", r#""roots""#),
                (
                    "DaemonSet meshd/spec/template/spec/volumes/2/projected/sources/0/serviceAccountToken/audience",
                    r#""other""#,
                ),
                ("ServiceAccount meshd-ca", "not there"),
                ("ClusterRole meshd-ca", "not there"),
                ("ClusterRoleBinding meshd-ca", "not there"),
                ("Role meshd-ca", "not there"),
                ("RoleBinding meshd-ca", "not there"),
                ("ConfigMap meshd-ca", "not there"),
                ("Deployment meshd-ca", "not there"),
                ("PodDisruptionBudget meshd-ca", "not there"),
                ("Service meshd-ca", "not there"),
                ("NetworkPolicy meshd-ca", "not there"),
            ],
        ),
        (json!({ "networkPolicy": { "enabled": false } }), &[("NetworkPolicy meshd-ca", "not there")]),
        (json!({ "monitoring": { "podMonitor": true } }), &[("PodMonitor meshd", "there")]),
        (
            json!({ "monitoring": { "rules": true, "labels": { "release": "p" } } }),
            &[("PrometheusRule meshd", "there")],
        ),
        (json!({ "monitoring": { "dashboard": true } }), &[("ConfigMap meshd-dashboard", "there")]),
    ]
}
