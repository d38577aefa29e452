//! Installing into a cluster as docs/kubernetes.md says, with a real kubectl against a real API server, and what an operator
//! does there with meshctl.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::daemon::{Node, bin_dir};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::{self, Cluster};
use crate::it::mesh::Mesh;
use crate::it::netns::Wire;
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 180:
        the_manifests_are_rendered_and_applied_and_meshctl_prints_the_same,
        istios_kinds_take_good_documents_and_refuse_bad_ones_and_are_never_written_over,
        accounts_may_do_what_their_roles_say_and_nothing_else,
        agents_keep_a_summary_that_meshctl_nodes_shows;
    Daemon 120:
        check_proves_a_node_before_meshd_is_there_and_leaves_nothing,
        a_bug_report_holds_no_key_and_no_token;
];

pub(super) const NAMESPACE: &str = "meshd-system";

pub(super) fn cluster(ground: &Ground) -> anyhow::Result<(Wire, Cluster)> {
    let mut wire = Wire::lay(ground)?;
    let [place] = wire.plug(["api"])?;
    let cluster = Cluster::start(&place)?;
    Ok((wire, cluster))
}

pub(super) fn rendered(cluster: &Cluster, part: &str) -> anyhow::Result<Vec<Value>> {
    let folder = kube::manifests().join(part);
    objects(&cluster.kubectl(&["kustomize", &folder.to_string_lossy()])?)
}

pub(super) fn objects(yaml: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    objects.sort_by_key(|object| format!("{} {}", object["kind"], object["metadata"]["name"]));
    Ok(objects)
}

fn meshctl(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
    let meshctl = bin_dir().join("meshctl");
    let meshctl = meshctl.to_string_lossy();
    let mut argv = vec![meshctl.as_ref()];
    argv.extend(arguments);
    cluster.place.run(&argv)?.succeeded()
}

/// What this old API server lacks: `policy/v1` and `appArmorProfile`.
pub(super) fn for_an_old_server(mut object: Value) -> Value {
    if object["kind"] == "PodDisruptionBudget" {
        object["apiVersion"] = json!("policy/v1beta1");
    }
    for kind in ["containers", "initContainers"] {
        let containers = object.pointer_mut(&format!("/spec/template/spec/{kind}"));
        for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(context) = container.pointer_mut("/securityContext").and_then(Value::as_object_mut) {
                context.remove("appArmorProfile");
            }
        }
    }
    object
}

fn install(cluster: &Cluster, ground: &Ground, part: &str) -> anyhow::Result<()> {
    apply(cluster, ground, rendered(cluster, part)?)
}

/// Each after a dry run of its own.
pub(super) fn apply(cluster: &Cluster, ground: &Ground, objects: Vec<Value>) -> anyhow::Result<()> {
    for (index, object) in objects.into_iter().enumerate() {
        let file = ground.dir().join(format!("object-{index}.json"));
        fs::write(&file, for_an_old_server(object).to_string())?;
    }
    let mut files: Vec<PathBuf> = fs::read_dir(ground.dir())?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("object-")));
    let is_namespace =
        |file: &PathBuf| fs::read_to_string(file).is_ok_and(|text| text.contains("\"kind\":\"Namespace\""));
    files.sort_by_key(|file| !is_namespace(file));
    for file in &files {
        let file = file.to_string_lossy();
        let apply = ["apply", "--server-side", "--field-manager=install", "-f", &file];
        // The dry run first: what is refused is refused before anything is written.
        let dry = [apply.as_slice(), &["--dry-run=server"]].concat();
        cluster.kubectl(&dry).with_context(|| fs::read_to_string(&*file).unwrap_or_default())?;
        cluster.kubectl(&apply)?;
    }
    files.iter().try_for_each(fs::remove_file)?;
    Ok(())
}

fn the_manifests_are_rendered_and_applied_and_meshctl_prints_the_same(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, cluster) = cluster(ground)?;
    for (part, name) in [("", "mesh"), ("crds", "crds"), ("monitoring", "monitoring"), ("cleanup", "cleanup")]
    {
        let printed = objects(&meshctl(&cluster, &["install", "--dry-run", "--part", name])?)?;
        let kustomized = rendered(&cluster, part)?;
        ensure!(!kustomized.is_empty() && printed == kustomized, "meshctl and kustomize differ on {name}");
    }
    install(&cluster, ground, "")?;
    install(&cluster, ground, "cleanup")?;
    // Applied once more, nothing changes and nobody is in conflict.
    let generation = |kind: &str, name: &str| -> anyhow::Result<String> {
        cluster.kubectl(&["-n", NAMESPACE, "get", kind, name, "-o", "jsonpath={.metadata.generation}"])
    };
    let before = (generation("daemonset", "meshd")?, generation("deployment", "meshd-ca")?);
    install(&cluster, ground, "")?;
    let after = (generation("daemonset", "meshd")?, generation("deployment", "meshd-ca")?);
    ensure!(before == after, "{before:?} then {after:?}");
    // Another namespace by meshctl's flags is the same mesh elsewhere.
    let elsewhere =
        meshctl(&cluster, &["install", "--dry-run", "-n", "mesh", "--image", "r.example/meshd:1"])?;
    ensure!(!elsewhere.contains(NAMESPACE), "{elsewhere}");
    ensure!(objects(&elsewhere)?.len() == rendered(&cluster, "")?.len(), "{elsewhere}");
    Ok(())
}

fn istios_kinds_take_good_documents_and_refuse_bad_ones_and_are_never_written_over(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (_wire, cluster) = cluster(ground)?;
    let crds = kube::manifests().join("crds");
    let crds = crds.to_string_lossy();
    cluster.kubectl(&["create", "-k", &crds])?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    for namespace in ["foo", "bar", "default", "ns1", "istio-system"] {
        // `default` is there.
        let _ = cluster.kubectl(&["create", "namespace", namespace]);
    }
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/istio");
    let mut taken = 0;
    for page in fs::read_dir(&pages)?.flatten().map(|entry| entry.path()) {
        // Pages have pieces of documents, other kinds, and one document that is wrong in Istio's own words.
        let Ok(documents) = serde_saphyr::from_multiple::<Value>(&fs::read_to_string(&page)?) else {
            continue;
        };
        let ours = ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "DestinationRule"];
        for document in
            documents.iter().filter(|d| d["kind"].as_str().is_some_and(|kind| ours.contains(&kind)))
        {
            verdict(&cluster, ground, document).with_context(|| page.display().to_string())?;
            taken += 1;
        }
    }
    ensure!(taken >= 18, "only {taken} of Istio's documents were tried");
    for (kind, spec) in [
        ("security.istio.io/v1 PeerAuthentication", json!({ "mtls": { "mode": "ALWAYS" } })),
        ("security.istio.io/v1beta1 PeerAuthentication", json!({ "portLevelMtls": { "80": { "mode": 1 } } })),
        ("security.istio.io/v1 AuthorizationPolicy", json!({ "action": "PERMIT" })),
        ("security.istio.io/v1 AuthorizationPolicy", json!({ "rules": [{ "to": { "operation": {} } }] })),
        ("security.istio.io/v1 AuthorizationPolicy", json!({ "rules": [{ "when": [{ "values": ["a"] }] }] })),
        ("security.istio.io/v1 AuthorizationPolicy", json!({ "selector": { "matchLabels": ["app"] } })),
        ("security.istio.io/v1 RequestAuthentication", json!({ "jwtRules": [{ "audiences": ["a"] }] })),
        ("security.istio.io/v1 RequestAuthentication", json!({ "jwtRules": [{ "issuer": "" }] })),
        ("networking.istio.io/v1 DestinationRule", json!({})),
        (
            "networking.istio.io/v1alpha3 DestinationRule",
            json!({ "host": "a", "trafficPolicy": { "tls": { "mode": "MTLS" } } }),
        ),
        (
            "networking.istio.io/v1beta1 DestinationRule",
            json!({ "host": "a", "subsets": [{ "labels": {} }] }),
        ),
    ] {
        let (version, kind) = kind.split_once(' ').context("version and kind")?;
        let document = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "x", "namespace": "foo" }, "spec": spec });
        let outcome = verdict(&cluster, ground, &document);
        ensure!(outcome.is_err(), "was taken: {document}");
    }
    let rule = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": { "name": "x", "namespace": "foo" },
        "spec": { "host": "a", "trafficPolicy": {
            "connectionPool": { "tcp": { "maxConnections": 5 } }, "tls": { "mode": "SIMPLE", "sni": "a" },
        } },
    });
    let kept = verdict(&cluster, ground, &rule)?;
    ensure!(kept["spec"] == rule["spec"], "what meshd does not enforce was lost: {kept}");
    // Somebody else's definition, Istio's for one.
    let name = "peerauthentications.security.istio.io";
    let patch = json!([{ "op": "add", "path": "/spec/names/shortNames/-", "value": "theirs" },
        { "op": "replace", "path": "/spec/versions/0/additionalPrinterColumns", "value": [] }]);
    cluster.kubectl(&["patch", "crd", name, "--type=json", "-p", &patch.to_string()])?;
    let theirs = cluster.kubectl(&["get", "crd", name, "-o", "jsonpath={.spec}"])?;
    ensure!(cluster.kubectl(&["create", "-k", &crds]).is_err(), "create is no error where a kind exists");
    let refused = cluster.kubectl(&["apply", "--server-side", "-k", &crds]);
    let refused = refused.err().context("server-side apply wrote over another's definition")?;
    ensure!(format!("{refused:#}").contains("conflict"), "{refused:#}");
    let left = cluster.kubectl(&["get", "crd", name, "-o", "jsonpath={.spec}"])?;
    ensure!(theirs == left, "it was changed: {left}");
    Ok(())
}

/// What the API server makes of a document, by a dry run.
fn verdict(cluster: &Cluster, ground: &Ground, document: &Value) -> anyhow::Result<Value> {
    let file = ground.dir().join("document.json");
    fs::write(&file, document.to_string())?;
    let made =
        cluster.kubectl(&["create", "--dry-run=server", "-o", "json", "-f", &file.to_string_lossy()])?;
    Ok(serde_json::from_str(&made)?)
}

/// Permissions of an account: group, resource, verb, and names that it is bound to.
fn permissions(
    cluster: &Cluster,
    ground: &Ground,
    account: &str,
    namespace: &str,
) -> anyhow::Result<BTreeSet<String>> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
    });
    let file = ground.dir().join("rules.json");
    fs::write(&file, review.to_string())?;
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
    let groups =
        ["system:serviceaccounts", "system:authenticated"].map(|group| format!("--as-group={group}"));
    let file = file.to_string_lossy();
    let said = cluster.kubectl(&["create", "-o", "json", "-f", &file, &user, &groups[0], &groups[1]])?;
    let said: Value = serde_json::from_str(&said)?;
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut all = BTreeSet::new();
    for rule in said["status"]["resourceRules"].as_array().into_iter().flatten() {
        let names = strings(&rule["resourceNames"]).join(",");
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    all.insert(format!("{verb} {resource}.{group} {names}").trim_end().to_owned());
                }
            }
        }
    }
    ensure!(said["status"]["incomplete"] == false, "{said}");
    Ok(all)
}

fn accounts_may_do_what_their_roles_say_and_nothing_else(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, cluster) = cluster(ground)?;
    install(&cluster, ground, "")?;
    cluster.kubectl(&["create", "namespace", "shop"])?;
    // What any account may: ask what it may.
    let anybody = permissions(&cluster, ground, "nobody", "shop")?;
    for (account, elsewhere, at_home) in [
        (
            "meshd",
            [
                "list pods.",
                "watch endpointslices.discovery.k8s.io",
                "patch peerauthentications/status.security.istio.io",
            ]
            .as_slice(),
            ["get leases.coordination.k8s.io meshd-status", "patch leases.coordination.k8s.io"].as_slice(),
        ),
        (
            "meshd-ca",
            ["create tokenreviews.authentication.k8s.io", "watch pods."].as_slice(),
            ["update leases.coordination.k8s.io meshd-ca", "patch configmaps. meshd-ca-root", "get secrets."]
                .as_slice(),
        ),
    ] {
        let everywhere: BTreeSet<_> = &permissions(&cluster, ground, account, "shop")? - &anybody;
        let home: BTreeSet<_> =
            &(&permissions(&cluster, ground, account, NAMESPACE)? - &anybody) - &everywhere;
        for (wanted, have) in [(elsewhere, &everywhere), (at_home, &home)] {
            let missing: Vec<_> = wanted.iter().filter(|wanted| !have.contains(**wanted)).collect();
            ensure!(missing.is_empty(), "{account} may not {missing:?}: {have:?}");
        }
        let forbidden = |permission: &&String| {
            let (verb, rest) = permission.split_once(' ').unwrap_or_default();
            verb == "*"
                || rest.starts_with("*.")
                || rest.starts_with("secrets.")
                || rest.starts_with("pods/exec")
                || ["bind", "escalate", "impersonate", "deletecollection"].contains(&verb)
        };
        let too_much: Vec<_> = everywhere.iter().filter(forbidden).collect();
        ensure!(too_much.is_empty(), "{account} may {too_much:?} in any namespace");
        if account == "meshd" {
            let too_much: Vec<_> = home.iter().filter(forbidden).collect();
            ensure!(too_much.is_empty(), "an agent may {too_much:?} in {NAMESPACE}");
        }
    }
    Ok(())
}

fn agents_keep_a_summary_that_meshctl_nodes_shows(ground: &Ground) -> anyhow::Result<()> {
    let mut wire = Wire::lay(ground)?;
    let [api, place] = wire.plug(["api", "node-a"])?;
    let cluster = Cluster::start(&api)?;
    install(&cluster, ground, "")?;
    cluster.apply(&[kube::node("node-a"), kube::node("node-b")])?;
    let kubeconfig = cluster.agents()?;
    let node = Node::new(ground, place)?;
    let config = json!({
        "stateDir": node.state_dir(), "runtimeDir": node.runtime_dir(), "policiesDir": node.policies_dir(),
        "capture": { "cgroup": node.capture_cgroup(), "canary": false },
        "kubernetes": { "enabled": true, "kubeconfig": kubeconfig },
    });
    node.configure(&config)?;
    let refused = node.ctl(&["config", "validate", &node.config_file().to_string_lossy()])?.failed()?;
    ensure!(refused.contains("MESHD_NODE"), "a file without a node is valid: {refused}");
    let meshd = bin_dir().join("meshd");
    let meshd = meshd.to_string_lossy();
    let file = node.config_file();
    let file = file.to_string_lossy();
    let argv = ["env", "MESHD_NODE=node-a", "MESHD_POD=meshd-x", &meshd, "run", "--config", &file];
    let _running = node.place.launch("agent", &argv).start()?;
    let admin = cluster.admin();
    let list = || -> anyhow::Result<(Vec<Value>, bool)> {
        let meshctl = bin_dir().join("meshctl");
        let argv =
            [&*meshctl.to_string_lossy(), "-o", "json", "nodes", "--kubeconfig", &admin.to_string_lossy()];
        let said = cluster.place.run(&argv)?;
        Ok((serde_json::from_str(&said.stdout).with_context(|| said.stderr.clone())?, said.status.success()))
    };
    let mut rows = Vec::new();
    wait_until(PATIENCE * 2, "the agent's summary", || {
        let (found, all_ready) = list()?;
        ensure!(!all_ready, "node-b has no agent: {found:?}");
        rows = found;
        Ok(rows.iter().any(|row| row["state"] == "ready"))
    })?;
    let states: Vec<_> = rows.iter().map(|row| (row["node"].as_str(), row["state"].as_str())).collect();
    ensure!(states == [(Some("node-a"), Some("ready")), (Some("node-b"), Some("no agent"))], "{rows:?}");
    ensure!(
        rows[0]["pod"] == "meshd-x" && rows[0]["summary"]["version"] == env!("CARGO_PKG_VERSION"),
        "{rows:?}"
    );
    // One that says nothing any more: the Lease as it would be three minutes later.
    let old = json!({ "spec": { "renewTime": "2026-01-01T00:00:00.000000Z" } }).to_string();
    let lease = ["patch", "lease", "meshd-node-node-a", "--type=merge", "-p", &old];
    cluster.kubectl(&[["-n", NAMESPACE].as_slice(), lease.as_slice()].concat())?;
    let (rows, _) = list()?;
    ensure!(rows[0]["state"] == "stale", "{rows:?}");
    cluster.kubectl(&["delete", "node", "node-b"])?;
    // Written again within its period.
    wait_until(PATIENCE * 2, "a summary that is new again", || Ok(list()?.1))
}

fn check_proves_a_node_before_meshd_is_there_and_leaves_nothing(ground: &Ground) -> anyhow::Result<()> {
    let mut wire = Wire::lay(ground)?;
    let [place] = wire.plug(["node"])?;
    let node = Node::new(ground, place)?;
    let cgroup = node.capture_cgroup().to_string_lossy().into_owned();
    let before = leftovers()?;
    let said = node.ctl(&["-o", "json", "check", "--cgroup", &cgroup])?;
    let rows: Vec<Value> = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    let missing: Vec<_> =
        rows.iter().filter(|row| row["required"] == true && row["proven"] != true).collect();
    ensure!(missing.is_empty() && said.status.success(), "{missing:?}");
    for name in [
        "kernel",
        "BTF",
        "cgroup v2",
        "connect redirect",
        "other programs",
        "kernel TLS",
        "container runtime",
    ] {
        ensure!(rows.iter().any(|row| row["name"] == name), "nothing is said of {name}: {rows:?}");
    }
    ensure!(said.stderr.contains("no meshd runs"), "{said:?}");
    ensure!(before == leftovers()?, "it left something: {:?}", leftovers()?);
    // What cannot be had is no success.
    let nowhere = node.ctl(&["check", "--cgroup", "/nonexistent"])?.failed()?;
    ensure!(nowhere.contains("cgroup v2"), "{nowhere}");
    ensure!(before == leftovers()?, "a check that failed left something: {:?}", leftovers()?);
    Ok(())
}

/// Scratch folders of `meshctl check`, which lie outside the story's ground.
fn leftovers() -> anyhow::Result<Vec<PathBuf>> {
    let mut left: Vec<_> = fs::read_dir("/run")?.flatten().map(|entry| entry.path()).collect();
    left.retain(|path| path.to_string_lossy().contains("meshctl-check-"));
    Ok(left)
}

fn a_bug_report_holds_no_key_and_no_token(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let node = &mesh.a;
    // What an administrator might have put where it is read.
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLXRoYXQtaXMtc2VjcmV0";
    let policies = node.policies_dir().join("notes.yaml");
    fs::write(&policies, format!("# curl -H 'authorization: bearer {token}'\n"))?;
    let folder = ground.dir().join("report");
    let config = node.config_file();
    let (config, out) = (config.to_string_lossy(), folder.to_string_lossy());
    node.ctl(&["bugreport", "--config", &config, "--out", &out])?.succeeded()?;
    let whole = node.ctl(&["bugreport", "--config", &config])?.succeeded()?;
    let mut texts = vec![whole];
    for file in fs::read_dir(&folder)?.flatten() {
        texts.push(String::from_utf8_lossy(&fs::read(file.path())?).into_owned());
    }
    let report = texts.join("\n");
    for part in
        ["\"ready\": true", "spiffe://cluster.local/ns/shop/sa/client", "PeerAuthentication", "Linux version"]
    {
        let compact = part.replace(": ", ":");
        ensure!(report.contains(part) || report.contains(&compact), "{part} is not in it");
    }
    let mut keys = 0;
    let mut folders = vec![node.state_dir()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
            let Some((_, key)) = text.split_once("PRIVATE KEY-----\n") else { continue };
            keys += 1;
            let lines = key.lines().take_while(|line| !line.starts_with("-----"));
            for line in lines.filter(|line| line.len() > 16) {
                ensure!(!report.contains(line), "a line of {} is in it", entry.path().display());
            }
        }
    }
    ensure!(keys >= 1, "no key was looked for");
    ensure!(!report.contains("PRIVATE KEY") && !report.contains(token), "a secret is in it");
    Ok(())
}
