//! Examples of Istio's documentation, word for word, on real traffic: what their pages say happens. All other examples of the
//! reference pages are decided in `tests/istio_documents.rs`.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, is_unserved, probe, serve};
use crate::it::netns::Place;
use crate::it::nodefile::Workload;
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        modes_of_a_namespace_a_workload_and_a_port_are_enforced,
        the_product_page_is_shown_to_the_ingress_gateway_alone;
];

const PEER_POLICY: &str = include_str!("../../istio/example-peer-policy.yaml");
const NAMESPACE_POLICY: &str = include_str!("../../istio/example-policy.yaml");
const WORKLOAD_POLICY: &str = include_str!("../../istio/example-workload-policy.yaml");
const SERVICE: &str = include_str!("../../istio/example-service.yaml");
const VIEWER: &str = include_str!("../../istio/productpage-viewer.yaml");

fn renamed(workload: &mut Workload, namespace: &str, name: &str, service_account: &str) {
    namespace.clone_into(&mut workload.namespace);
    name.clone_into(&mut workload.name);
    service_account.clone_into(&mut workload.service_account);
}

/// The Service as a node's file lists it; its address is its cluster's to give.
fn service(address: &str) -> anyhow::Result<Value> {
    let document: Value = serde_saphyr::from_str(SERVICE)?;
    let (metadata, spec) = (&document["metadata"], &document["spec"]);
    let ports = spec["ports"].as_array().context("no ports")?.iter();
    let ports = ports
        .map(|port| json!({ "name": port["name"], "port": port["port"], "targetPort": port["targetPort"] }));
    Ok(json!({
        "name": metadata["name"], "namespace": metadata["namespace"], "addresses": [address],
        "selector": spec["selector"], "ports": ports.collect::<Vec<_>>(),
    }))
}

fn modes_of_a_namespace_a_workload_and_a_port_are_enforced(ground: &Ground) -> anyhow::Result<()> {
    const ADDRESS: &str = "10.96.0.20";
    let mut mesh = Mesh::given(ground)?;
    let [reviews] = mesh.pods.wire.plug(["reviews"])?;
    let mut second = Workload::pod(&reviews, "node-b");
    renamed(&mut second, "foo", "reviews", "reviews");
    renamed(&mut mesh.workloads[2], "foo", "example-app", "example-app");
    mesh.workloads.push(second);
    mesh.services.push(service(ADDRESS)?);
    mesh.policies(&[PEER_POLICY, NAMESPACE_POLICY, WORKLOAD_POLICY].join("---\n"))?;
    mesh.start()?;
    let app = mesh.server.clone();
    let _servers = [(&app, 80), (&app, 9090), (&reviews, 9080)]
        .map(|(place, port)| serve(place, port, &["--echo"]))
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    let echoed = |from: &Place, to| -> anyhow::Result<bool> {
        let seen = probe(from, to, &["--send", MARKER, "--shutdown"])?;
        let served = seen["text"] == MARKER && seen["ended"] == "eof";
        ensure!(served || is_unserved(&seen), "{seen}");
        Ok(served)
    };
    let through_service = std::net::SocketAddr::new(ADDRESS.parse()?, 8000);
    // Strict everywhere, but port 80 of the one workload, which the Service leads port 8000 to.
    for (what, from, to, wanted) in [
        ("a stranger to reviews", &mesh.outsider, reviews.at(9080), false),
        ("a stranger to another port of the app", &mesh.outsider, app.at(9090), false),
        ("a stranger to port 80 of the app", &mesh.outsider, app.at(80), true),
        ("the mesh to port 80 of the app", &mesh.client, app.at(80), true),
        ("the mesh to the service", &mesh.client, through_service, true),
    ] {
        ensure!(echoed(from, to)? == wanted, "{what} must {}be served", if wanted { "" } else { "not " });
    }
    // What is watched must not show the text: TLS.
    mesh.watched("strict", || {
        for to in [reviews.at(9080), app.at(9090)] {
            ensure!(echoed(&mesh.client, to)?, "the mesh is not served at {to}");
        }
        Ok(())
    })?;
    Ok(())
}

fn the_product_page_is_shown_to_the_ingress_gateway_alone(ground: &Ground) -> anyhow::Result<()> {
    const PORT: u16 = 9080;
    let mut mesh = Mesh::given(ground)?;
    let gateway = "istio-ingressgateway-service-account";
    renamed(&mut mesh.workloads[0], "istio-system", "istio-ingressgateway", gateway);
    renamed(&mut mesh.workloads[1], "default", "sleep", "sleep");
    renamed(&mut mesh.workloads[2], "default", "productpage", "bookinfo-productpage");
    mesh.policies(VIEWER)?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = format!("http://{}/productpage", mesh.server.at(PORT));
    let denied = ("403", "RBAC: access denied");
    for (who, place, method, (status, body)) in [
        ("the gateway", &mesh.client, "GET", ("200", MARKER)),
        ("the gateway", &mesh.client, "POST", denied),
        ("sleep", &mesh.other, "GET", denied),
        ("a stranger", &mesh.outsider, "GET", denied),
    ] {
        let argv = ["curl", "-sS", "--max-time", "20", "-X", method, "-w", "\n%{http_code}", &url];
        let said = place.run(&argv)?.succeeded()?;
        let (got, code) = said.rsplit_once('\n').context("no status")?;
        ensure!(code == status && got.trim() == body, "{method} by {who}: {said}");
    }
    Ok(())
}
