//! The trusted roots as a `ConfigMap`, by which agents that start know the CA's server, as Istio's `istio-ca-root-cert`. It is
//! written when the roots change, and looked at again in case somebody changed or removed it. It holds no secret.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::TIMEOUT;
use crate::{ca::signing::Trust, identity::TrustDomain};

/// As in Istio's.
const KEY: &str = "root-cert.pem";
const MANAGER: &str = "meshd-ca";
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(3);

/// Where the roots are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootsMap {
    /// Of the `ConfigMap`.
    pub name: String,
    /// All that get one.
    pub namespaces: Vec<String>,
}

/// Writes the roots of `domain` until told to stop.
pub async fn publish_roots(
    client: Client,
    map: RootsMap,
    domain: TrustDomain,
    mut trust: watch::Receiver<Arc<Trust>>,
    stop: CancellationToken,
) {
    let mut last_error = None;
    loop {
        let text = pem(&trust.borrow_and_update(), &domain);
        let mut error = None;
        for namespace in &map.namespaces {
            let written = timeout(TIMEOUT, write(&client, &map.name, namespace, &text)).await;
            let failed = match written {
                Ok(Ok(())) => continue,
                Ok(Err(failed)) => failed.to_string(),
                Err(_elapsed) => "the API server does not answer".to_owned(),
            };
            error = Some(format!("{namespace}: {failed}"));
        }
        if error != last_error
            && let Some(error) = &error
        {
            tracing::warn!(map = %map.name, %error, "the roots are not written; tried again");
        } else if error.is_none() && last_error.is_some() {
            tracing::info!(map = %map.name, "the roots are written again");
        }
        let pause = if error.is_some() { RETRY } else { LOOK };
        last_error = error;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = trust.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

async fn write(client: &Client, name: &str, namespace: &str, text: &str) -> kube::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "labels": { "app.kubernetes.io/managed-by": MANAGER } },
        "data": { KEY: text },
    });
    maps.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await.map(drop)
}

fn pem(trust: &Trust, domain: &TrustDomain) -> String {
    let roots = trust.bundles.roots.get(domain).map(Vec::as_slice).unwrap_or_default();
    let mut pem = String::new();
    for root in roots {
        let text = BASE64_STANDARD.encode(root);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        for line in
            [&["-----BEGIN CERTIFICATE-----".into()], lines.as_slice(), &["-----END CERTIFICATE-----".into()]]
                .concat()
        {
            pem.push_str(&line);
            pem.push('\n');
        }
    }
    pem
}
