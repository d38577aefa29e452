//! The files under `deploy/kubernetes` say what the code needs and no more: access, configuration, alerts, image.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use mesh_user::{
    admin::nodes,
    ca::cluster,
    config::{AuthorityConfig, Config},
    discovery::kubernetes,
    runtime::{Access, lease},
};
use serde_json::Value;

#[path = "it/roles.rs"]
mod roles;

use roles::{Permission, granted, strings};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(&format!("deploy/kubernetes/{name}")))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn document(name: &str, kind: &str, called: &str) -> Value {
    let found = documents(name).into_iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == called);
    found.unwrap_or_else(|| panic!("no {kind} {called} in {name}"))
}

fn asked<'a>(access: impl IntoIterator<Item = &'a Access>) -> BTreeSet<Permission> {
    let one = |access: &Access| {
        let Access { group, resource, verbs, name } = *access;
        let permission = move |verb: &&str| {
            (group.to_owned(), resource.to_owned(), (*verb).to_owned(), name.map(str::to_owned))
        };
        verbs.iter().map(permission).collect::<Vec<_>>()
    };
    access.into_iter().flat_map(one).collect()
}

#[test]
fn roles_grant_what_the_code_asks_and_nothing_else() {
    let agent = "agent-access.yaml";
    let ca = "ca-access.yaml";
    for (file, kind, name, wanted) in [
        (agent, "ClusterRole", "meshd", asked(kubernetes::ACCESS)),
        (agent, "Role", "meshd", asked(kubernetes::LEASE_ACCESS.iter().chain(nodes::ACCESS))),
        (ca, "ClusterRole", "meshd-ca", asked(cluster::ACCESS)),
        (ca, "Role", "meshd-ca", asked(lease::access("meshd-ca").iter().chain(cluster::STATE_ACCESS))),
    ] {
        let granted = granted(&document(file, kind, name));
        let unused: Vec<_> = granted.difference(&wanted).collect();
        let missing: Vec<_> = wanted.difference(&granted).collect();
        assert!(
            unused.is_empty() && missing.is_empty(),
            "{kind} {name}: unused {unused:?}, missing {missing:?}"
        );
    }
}

#[test]
fn roles_are_bound_to_their_own_accounts_alone() {
    for (file, account) in [("agent-access.yaml", "meshd"), ("ca-access.yaml", "meshd-ca")] {
        let bindings = documents(file).into_iter().filter(|d| d["roleRef"].is_object());
        let mut count = 0;
        for binding in bindings {
            count += 1;
            assert_eq!(binding["roleRef"]["name"], account);
            let wanted = serde_json::json!([
                { "kind": "ServiceAccount", "name": account, "namespace": nodes::DEFAULT_NAMESPACE }
            ]);
            assert_eq!(binding["subjects"], wanted);
        }
        assert_eq!(count, 2, "{file}");
    }
}

#[test]
fn the_config_maps_hold_files_that_meshd_takes() {
    let agent = document("agent-config.yaml", "ConfigMap", "meshd");
    // The node comes by the environment there.
    let file = format!("node: a\n{}", agent["data"]["node.yaml"].as_str().unwrap());
    let config = Config::parse(&file, "node.yaml").unwrap_or_else(|error| panic!("{error}"));
    assert!(config.kubernetes.enabled);
    let ca = document("ca-config.yaml", "ConfigMap", "meshd-ca");
    let ca = AuthorityConfig::parse(ca["data"]["ca.yaml"].as_str().unwrap(), "ca.yaml");
    let ca = ca.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ca.trust_domain, config.trust_domain);
    let kubernetes = ca.kubernetes.unwrap();
    assert_eq!(kubernetes.node_agents, ["meshd-system/meshd"]);
    let daemon_set = document("agent.yaml", "DaemonSet", "meshd");
    let volumes = &daemon_set["spec"]["template"]["spec"]["volumes"];
    let token = volumes.as_array().unwrap().iter().find(|volume| volume["name"] == "token").unwrap();
    let token = &token["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(kubernetes.audiences, [token["audience"].as_str().unwrap()]);
}

/// Where the agent's file says something is, the pod has a volume.
#[test]
fn what_the_agents_file_names_is_mounted() {
    let daemon_set = document("agent.yaml", "DaemonSet", "meshd");
    let pod = &daemon_set["spec"]["template"]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mounted: Vec<&Path> = mounts.iter().map(|m| Path::new(m["mountPath"].as_str().unwrap())).collect();
    let file = document("agent-config.yaml", "ConfigMap", "meshd");
    let file = file["data"]["node.yaml"].as_str().unwrap();
    let path = regex::Regex::new(r"(?m)(?:: |- )(/\S+)$").unwrap();
    let mut named = 0;
    for found in path.captures_iter(file) {
        named += 1;
        let path = Path::new(found.get(1).unwrap().as_str());
        assert!(mounted.iter().any(|mount| path.starts_with(mount)), "{} is on no volume", path.display());
    }
    assert!(named >= 5, "the file was not understood");
    let volumes: BTreeSet<_> =
        pod["volumes"].as_array().unwrap().iter().map(|v| v["name"].to_string()).collect();
    let used: BTreeSet<_> = mounts.iter().map(|mount| mount["name"].to_string()).collect();
    assert_eq!(volumes, used);
}

#[test]
fn the_alerts_are_those_of_prometheus() {
    let ours: Value = serde_saphyr::from_str(&text("deploy/prometheus/meshd.rules.yaml")).unwrap();
    let theirs = document("monitoring/rules.yaml", "PrometheusRule", "meshd");
    assert_eq!(theirs["spec"], ours);
    let monitor = document("monitoring/pod-monitor.yaml", "PodMonitor", "meshd");
    let label = monitor["spec"]["jobLabel"].as_str().unwrap();
    let daemon_set = document("agent.yaml", "DaemonSet", "meshd");
    // Alerts say job="meshd".
    assert_eq!(daemon_set["spec"]["template"]["metadata"]["labels"][label], "meshd");
}

#[test]
fn every_manifest_is_in_its_kustomization() {
    let folder = root().join("deploy/kubernetes");
    for part in ["", "crds", "monitoring", "cleanup"] {
        let kustomization =
            documents(&Path::new(part).join("kustomization.yaml").display().to_string()).remove(0);
        let listed: BTreeSet<_> =
            strings(&kustomization["resources"]).into_iter().filter(|name| !name.starts_with("..")).collect();
        let files = std::fs::read_dir(folder.join(part)).unwrap().map(|entry| entry.unwrap().file_name());
        let files: BTreeSet<_> = files
            .map(|name| name.into_string().unwrap())
            .filter(|name| name.strip_suffix(".yaml").is_some_and(|name| name != "kustomization"))
            .collect();
        assert_eq!(listed, files, "{part}");
        for image in kustomization["images"].as_array().into_iter().flatten() {
            assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"), "{part}");
        }
    }
}

/// Names and versions, as the ones that the mesh's own parser takes.
#[test]
fn crds_have_every_kind_that_policies_have() {
    let mut kinds = BTreeMap::new();
    for file in ["authorizationpolicies", "destinationrules", "peerauthentications", "requestauthentications"]
    {
        let crd = documents(&format!("crds/{file}.yaml")).remove(0);
        let spec = &crd["spec"];
        assert_eq!(crd["metadata"]["name"], format!("{file}.{}", spec["group"].as_str().unwrap()));
        let versions: Vec<_> = spec["versions"].as_array().unwrap().iter().collect();
        assert_eq!(versions.iter().filter(|version| version["storage"] == true).count(), 1);
        assert!(versions.iter().all(|version| version["subresources"]["status"].is_object()));
        kinds.insert(spec["names"]["kind"].as_str().unwrap().to_owned(), versions.len());
    }
    let wanted = [
        ("AuthorizationPolicy", 2),
        ("DestinationRule", 3),
        ("PeerAuthentication", 2),
        ("RequestAuthentication", 2),
    ];
    assert_eq!(kinds, wanted.map(|(kind, count)| (kind.to_owned(), count)).into());
}

/// No container engine is here to build it: what it copies exists, and it copies every member of the workspace.
#[test]
fn the_dockerfile_copies_what_there_is() {
    let dockerfile = text("Dockerfile");
    let mut copied = BTreeSet::new();
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let mut words: Vec<_> = line.split_whitespace().skip(1).collect();
        words.pop();
        for source in words {
            assert!(root().join(source).exists(), "{source} does not exist");
            copied.insert(source.to_owned());
        }
    }
    let workspace = text("Cargo.toml");
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    for member in members.trim_end_matches(']').split(", ") {
        let folder = member.trim_matches('"').split('/').next().unwrap();
        assert!(copied.contains(folder), "{folder} is not copied");
    }
    for line in ["RUN cargo xtask image", "COPY --from=build /src/target/image/root /"] {
        assert!(dockerfile.lines().any(|is| is == line), "no {line}");
    }
    let ignored = text(".dockerignore");
    assert!(copied.iter().all(|source| !ignored.lines().any(|line| line == source)));
}
