//! `meshctl install` and `uninstall`: the manifests of `deploy/kubernetes` as they were when this was built, with a few values
//! in the places of others. It talks to no cluster: kubectl does, and shows what it does.

use anyhow::ensure;
use mesh_user::{admin::nodes::DEFAULT_NAMESPACE, identity::TrustDomain};

use crate::args::{InstallArguments, InstallPart};

/// As in `deploy/kubernetes/kustomization.yaml`.
pub(crate) const IMAGE: &str = concat!("meshd:", env!("CARGO_PKG_VERSION"));

macro_rules! manifest {
    ($name:literal) => {
        include_str!(concat!("../../../../deploy/", $name))
    };
}

/// In the order of their kustomizations.
const CRDS: [&str; 4] = [
    manifest!("kubernetes/crds/authorizationpolicies.yaml"),
    manifest!("kubernetes/crds/destinationrules.yaml"),
    manifest!("kubernetes/crds/peerauthentications.yaml"),
    manifest!("kubernetes/crds/requestauthentications.yaml"),
];
const MESH: [&str; 8] = [
    manifest!("kubernetes/namespace.yaml"),
    manifest!("kubernetes/agent-access.yaml"),
    manifest!("kubernetes/agent-config.yaml"),
    manifest!("kubernetes/agent.yaml"),
    manifest!("kubernetes/ca-access.yaml"),
    manifest!("kubernetes/ca-config.yaml"),
    manifest!("kubernetes/ca.yaml"),
    manifest!("kubernetes/network-policy.yaml"),
];
const MONITORING: [&str; 2] =
    [manifest!("kubernetes/monitoring/pod-monitor.yaml"), manifest!("kubernetes/monitoring/rules.yaml")];
const CLEANUP: [&str; 1] = [manifest!("kubernetes/cleanup/cleanup.yaml")];
const DASHBOARD: &str = manifest!("grafana/meshd.json");

/// The manifests as one YAML stream.
pub(crate) fn manifests(wanted: &InstallArguments) -> anyhow::Result<String> {
    ensure!(
        wanted.dry_run,
        "meshctl writes nothing to a cluster: `meshctl install --dry-run | kubectl apply --server-side -f -`; \
         docs/kubernetes.md says what else there is to do"
    );
    check_namespace(&wanted.namespace)?;
    check_image(&wanted.image)?;
    let trust_domain: TrustDomain = wanted.trust_domain.parse()?;
    let mut documents: Vec<String> = match wanted.part {
        InstallPart::Crds => CRDS.map(str::to_owned).to_vec(),
        InstallPart::Mesh => MESH.map(str::to_owned).to_vec(),
        InstallPart::Monitoring => MONITORING.map(str::to_owned).to_vec(),
        InstallPart::Cleanup => CLEANUP.map(str::to_owned).to_vec(),
    };
    if wanted.part == InstallPart::Monitoring {
        documents.push(dashboard());
    }
    let replace = |text: String| {
        text.replace(DEFAULT_NAMESPACE, &wanted.namespace)
            .replace("image: meshd\n", &format!("image: {}\n", wanted.image))
            .replace("trustDomain: cluster.local\n", &format!("trustDomain: {trust_domain}\n"))
            .replace("\n  replicas: 2\n", &format!("\n  replicas: {}\n", wanted.ca_replicas))
    };
    let documents: Vec<String> = documents.into_iter().map(replace).collect();
    Ok(documents.join("---\n"))
}

/// What kustomize's generator makes of the dashboard's file.
fn dashboard() -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: meshd-dashboard\n  namespace: {DEFAULT_NAMESPACE}\n  labels:\n    \
         app.kubernetes.io/name: meshd\n    app.kubernetes.io/part-of: meshd\n    grafana_dashboard: \"1\"\ndata:\n  \
         meshd.json: |\n"
    );
    for line in DASHBOARD.lines() {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// RFC 1123 label, as Kubernetes' namespaces are.
fn check_namespace(name: &str) -> anyhow::Result<()> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    ensure!(good, "{name:?} is no namespace: use 1 to 63 lower-case letters, digits and '-'");
    Ok(())
}

/// What it is put into is YAML: nothing that ends a value there.
fn check_image(image: &str) -> anyhow::Result<()> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-._/:@".contains(&b);
    let good = image.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && image.len() <= 512
        && !image.ends_with(':')
        && image.bytes().all(inner);
    ensure!(good, "{image:?} is no image: write [REGISTRY/]NAME[:TAG][@DIGEST]");
    Ok(())
}

/// The steps, as commands.
pub(crate) fn uninstall(namespace: &str) -> anyhow::Result<String> {
    check_namespace(namespace)?;
    Ok(format!(
        "\
# 1. Which namespaces and pods are meshed: unlabel them. Connections that are open stay; new ones are as without meshd.
kubectl get namespaces,pods --all-namespaces -l meshd.io/dataplane
kubectl label namespace NAME meshd.io/dataplane-
# 2. The agents. Their hooks stay (shutdown.hooks: keep) and refuse what is still enrolled, until step 3.
kubectl -n {namespace} delete daemonset meshd --cascade=foreground
# 3. Hooks, pins and folders on every node.
meshctl install --dry-run --part cleanup -n {namespace} --image IMAGE | kubectl apply -f -
kubectl -n {namespace} rollout status daemonset meshd-cleanup
kubectl -n {namespace} delete daemonset meshd-cleanup
# 4. Everything else, the CA's keys among it: certificates that were issued end, and cannot be renewed.
meshctl install --dry-run -n {namespace} | kubectl delete --ignore-not-found -f -
# 5. Istio's kinds, only if Istio does not use them: every policy goes with them.
meshctl install --dry-run --part crds | kubectl delete --ignore-not-found -f -"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(part: InstallPart) -> InstallArguments {
        InstallArguments {
            dry_run: true,
            part,
            image: IMAGE.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            trust_domain: "cluster.local".to_owned(),
            ca_replicas: 2,
        }
    }

    #[test]
    fn every_value_reaches_its_place() {
        let text = manifests(&InstallArguments {
            image: "registry.example/mesh/meshd@sha256:0123".to_owned(),
            namespace: "mesh".to_owned(),
            trust_domain: "shop.example".to_owned(),
            ca_replicas: 3,
            ..wanted(InstallPart::Mesh)
        })
        .unwrap();
        assert!(!text.contains(DEFAULT_NAMESPACE) && !text.contains("trustDomain: cluster.local"));
        assert_eq!(text.matches("image: registry.example/mesh/meshd@sha256:0123\n").count(), 2);
        assert_eq!(text.matches("trustDomain: shop.example\n").count(), 2);
        assert!(text.contains("  replicas: 3\n") && text.contains("meshd-ca.mesh.svc:15012"));
        assert!(text.contains("nodeAgents: [mesh/meshd]"));
    }

    #[test]
    fn what_is_no_name_is_refused_before_it_reaches_yaml() {
        for namespace in ["", "a b", "A", "a\nkind: Secret", "-a", "a-", &"a".repeat(64)] {
            let wanted = InstallArguments { namespace: namespace.to_owned(), ..wanted(InstallPart::Mesh) };
            assert!(manifests(&wanted).is_err(), "{namespace:?}");
        }
        for image in ["", "a b", "a\n  privileged: true", "a:", "{a}", "'a'"] {
            let wanted = InstallArguments { image: image.to_owned(), ..wanted(InstallPart::Mesh) };
            assert!(manifests(&wanted).is_err(), "{image:?}");
        }
        let wanted = InstallArguments { trust_domain: "a b".to_owned(), ..wanted(InstallPart::Mesh) };
        assert!(manifests(&wanted).is_err());
    }

    #[test]
    fn nothing_is_written_to_a_cluster() {
        let wanted = InstallArguments { dry_run: false, ..wanted(InstallPart::Mesh) };
        assert!(manifests(&wanted).unwrap_err().to_string().contains("kubectl apply"));
    }
}
