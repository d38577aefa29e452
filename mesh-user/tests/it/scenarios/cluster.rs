//! The Kubernetes API server that other stories rest on: what it must be able to do for them.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::Cluster;
use crate::it::netns::Wire;

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 120:
        the_api_server_reviews_tokens_bound_to_pods_and_keeps_what_it_stored;
];

fn the_api_server_reviews_tokens_bound_to_pods_and_keeps_what_it_stored(
    ground: &Ground,
) -> anyhow::Result<()> {
    let mut wire = Wire::lay(ground)?;
    let [place] = wire.plug(["api"])?;
    let mut cluster = Cluster::start(&place)?;
    let named = |kind: &str, name: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": "shop" } });
    let mut pod = named("Pod", "web-1");
    pod["spec"] = json!({
        "serviceAccountName": "web", "automountServiceAccountToken": false, "nodeName": "node-a",
        "containers": [ { "name": "c", "image": "x" } ],
    });
    let mut namespace = named("Namespace", "shop");
    namespace["metadata"] = json!({ "name": "shop" });
    cluster.apply(&[namespace, named("ServiceAccount", "web"), pod])?;
    let token = cluster.token("shop", "web", "meshd-ca", Some("web-1"))?;
    cluster.stop_api_server()?;
    cluster.start_api_server()?;
    for (audience, is_authentic) in [("meshd-ca", true), ("another", false)] {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let file = ground.dir().join("review.json");
        std::fs::write(&file, review.to_string())?;
        let said = cluster.kubectl(&["create", "-o", "json", "-f", &file.to_string_lossy()])?;
        let status = &serde_json::from_str::<Value>(&said)?["status"];
        ensure!((status["authenticated"] == true) == is_authentic, "for {audience}: {status}");
        if is_authentic {
            let pods = &status["user"]["extra"]["authentication.kubernetes.io/pod-name"];
            ensure!(pods == &json!(["web-1"]), "{status}");
        }
    }
    Ok(())
}
