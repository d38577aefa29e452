//! The Helm chart, by Helm's own code (`scripts/helm.py`): with its default values what kustomize makes, each value with its
//! effect, and one release's whole life in a real API server.

mod effects;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use mesh_user::config::{AuthorityConfig, Config};
use serde_json::{Value, json};

use super::install::{NAMESPACE, apply, cluster, for_an_old_server, objects, rendered};
use crate::it::daemon::bin_dir;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::Cluster;
use crate::it::netns::{Place, Wire};
use crate::it::process::PATIENCE;
use crate::it::scripts;

pub(super) const STORIES: &[Story] = stories![
    Helm 180:
        the_chart_is_what_kustomize_makes_and_the_api_server_takes_it,
        every_value_of_the_chart_has_its_effect_and_no_other,
        the_chart_in_another_namespace_is_the_same_mesh_there,
        values_that_are_misspelt_or_of_a_wrong_type_are_refused,
        the_chart_is_without_lint_and_whole_when_it_is_packaged,
        a_release_is_installed_upgraded_cleaned_and_uninstalled;
];

/// Where set-up has put it.
pub(crate) fn library() -> Option<PathBuf> {
    let folder = bin_dir().parent()?.join("tools/helm");
    folder.join("installed").is_file().then(|| folder.join("libhelm_sdkpy.so"))
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/meshd")
}

/// Helm in a place; `kubeconfig` leads to a real cluster.
struct Helm {
    place: Place,
    kubeconfig: Option<PathBuf>,
    namespace: &'static str,
}

impl Helm {
    fn of(ground: &Ground) -> anyhow::Result<(Wire, Self)> {
        let mut wire = Wire::lay(ground)?;
        let [place] = wire.plug(["helm"])?;
        Ok((wire, Self { place, kubeconfig: None, namespace: NAMESPACE }))
    }

    fn run(&self, what: &str, chart: &Path, values: &Value) -> anyhow::Result<Value> {
        let folder = self.place.dir().join("helm");
        fs::create_dir_all(&folder)?;
        let file = folder.join("asked.json");
        let library = library().context("no Helm: cargo xtask test fetches it")?;
        let asked = json!({
            "do": what, "chart": chart, "values": values, "library": library, "namespace": self.namespace,
            "folder": folder, "kubeconfig": self.kubeconfig,
        });
        fs::write(&file, asked.to_string())?;
        let said = scripts::python(&self.place, "helm.py", &[&file.to_string_lossy()]);
        let said = said.finish(PATIENCE * 4)?.succeeded()?;
        let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        if let Some(error) = said["error"].as_str() {
            bail!("helm {what}: {error}");
        }
        Ok(said)
    }

    fn render(&self, values: &Value) -> anyhow::Result<Vec<Value>> {
        manifest(&self.run("render", &chart(), values)?)
    }
}

fn manifest(release: &Value) -> anyhow::Result<Vec<Value>> {
    let hooks = release["hooks"].as_array().context("no list of hooks")?;
    ensure!(hooks.is_empty(), "the chart has hooks: {hooks:?}");
    Ok(comparable(objects(release["manifest"].as_str().context("no manifest")?)?))
}

/// The programs' files within `ConfigMap`s as what they say: comments and order are kustomize's.
fn comparable(mut objects: Vec<Value>) -> Vec<Value> {
    for object in objects.iter_mut().filter(|object| object["kind"] == "ConfigMap") {
        for (name, text) in object["data"].as_object_mut().into_iter().flatten() {
            let parsed = text.as_str().and_then(|text| serde_saphyr::from_str(text).ok());
            if let Some(parsed) = parsed.filter(|_| name != "meshd.json") {
                *text = parsed;
            }
        }
    }
    objects
}

fn label(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// Where two objects or lists of them differ, a line each: `DaemonSet meshd/spec/...: LEFT, RIGHT`.
fn differences(left: &[Value], right: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for object in left {
        match right.iter().find(|other| label(other) == label(object)) {
            Some(other) => differ(&label(object), object, other, &mut lines),
            None => lines.push(format!("{}: there, not there", label(object))),
        }
    }
    let new = right.iter().filter(|object| left.iter().all(|other| label(other) != label(object)));
    lines.extend(new.map(|object| format!("{}: not there, there", label(object))));
    lines
}

fn differ(path: &str, left: &Value, right: &Value, lines: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(l), Value::Object(r)) => {
            let names = l.keys().chain(r.keys().filter(|name| !l.contains_key(*name)));
            for name in names {
                differ(&format!("{path}/{name}"), &left[name], &right[name], lines);
            }
        }
        (Value::Array(l), Value::Array(r)) if l.len() == r.len() => {
            for (index, (l, r)) in l.iter().zip(r).enumerate() {
                differ(&format!("{path}/{index}"), l, r, lines);
            }
        }
        _ if left == right => {}
        _ => lines.push(format!("{path}: {left}, {right}")),
    }
}

fn the_chart_is_what_kustomize_makes_and_the_api_server_takes_it(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, cluster) = cluster(ground)?;
    let helm = Helm { place: cluster.place.clone(), kubeconfig: None, namespace: NAMESPACE };
    // The namespace is older than a release, which Helm keeps in it.
    let mut mesh = rendered(&cluster, "")?;
    let namespace = mesh.iter().position(|object| object["kind"] == "Namespace").context("no namespace")?;
    let namespace = mesh.remove(namespace);
    let monitoring = json!({ "monitoring": { "podMonitor": true, "rules": true, "dashboard": true } });
    let everything = [mesh.clone(), rendered(&cluster, "monitoring")?].concat();
    for (what, values, kustomized) in [
        ("the mesh", json!({}), mesh.clone()),
        ("mesh and monitoring", monitoring, everything),
        ("what cleans", json!({ "cleanup": true }), [ca(&mesh), rendered(&cluster, "cleanup")?].concat()),
    ] {
        let difference = differences(&comparable(kustomized), &helm.render(&values)?);
        ensure!(difference.is_empty(), "{what}, by kustomize and by Helm:\n{}", difference.join("\n"));
    }
    let release = helm.run("render", &chart(), &json!({}))?;
    let crds = release["crds"].as_array().cloned().unwrap_or_default();
    let difference = differences(&rendered(&cluster, "crds")?, &crds);
    ensure!(difference.is_empty(), "CRDs, by kustomize and by Helm:\n{}", difference.join("\n"));
    let taken = objects(release["manifest"].as_str().context("no manifest")?)?;
    apply(&cluster, ground, [vec![namespace], taken].concat())
}

/// Objects that are the CA's.
fn ca(mesh: &[Value]) -> Vec<Value> {
    mesh.iter().filter(|object| object["metadata"]["name"] == "meshd-ca").cloned().collect()
}

fn every_value_of_the_chart_has_its_effect_and_no_other(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, helm) = Helm::of(ground)?;
    let untried = untried()?;
    ensure!(untried.is_empty(), "nobody tries {untried:?}");
    let before = helm.render(&json!({}))?;
    for (values, wanted) in effects::all() {
        let after = helm.render(&values).with_context(|| values.to_string())?;
        taken_by_meshd(&after).with_context(|| values.to_string())?;
        let mut found = differences(&before, &after);
        let mut missing = Vec::new();
        for (path, now) in wanted {
            let (start, end) = (format!("{path}: "), format!(", {now}"));
            match found.iter().position(|line| line.starts_with(&start) && line.ends_with(&end)) {
                Some(index) => drop(found.remove(index)),
                None => missing.push(format!("{path}: {now}")),
            }
        }
        ensure!(
            missing.is_empty() && found.is_empty(),
            "{values}\nnot seen:\n{}\nnot expected:\n{}",
            missing.join("\n"),
            found.join("\n")
        );
    }
    let labelled = helm.render(&json!({ "monitoring": {
        "podMonitor": true, "rules": true, "labels": { "release": "p", "app.kubernetes.io/name": "other" },
    } }))?;
    for kind in ["PodMonitor", "PrometheusRule"] {
        let object = labelled.iter().find(|object| object["kind"] == kind).context(kind)?;
        let labels = &object["metadata"]["labels"];
        ensure!(labels["release"] == "p" && labels["app.kubernetes.io/name"] == "meshd", "{kind}: {labels}");
    }
    Ok(())
}

/// The files in the `ConfigMap`s are ones that the programs accept.
fn taken_by_meshd(objects: &[Value]) -> anyhow::Result<()> {
    for object in objects.iter().filter(|object| object["kind"] == "ConfigMap") {
        let mut file = object["data"].clone();
        if let Some(node) = file.get_mut("node.yaml") {
            // The node comes by the environment there.
            node["node"] = json!("a");
            Config::parse(&node.to_string(), "node.yaml")?;
        } else if let Some(ca) = file.get("ca.yaml") {
            AuthorityConfig::parse(&ca.to_string(), "ca.yaml")?;
        }
    }
    Ok(())
}

fn the_chart_in_another_namespace_is_the_same_mesh_there(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, mut helm) = Helm::of(ground)?;
    let monitoring = json!({ "monitoring": { "podMonitor": true, "rules": true, "dashboard": true } });
    let here = helm.render(&monitoring)?;
    helm.namespace = "mesh";
    let there = helm.render(&monitoring)?;
    let moved = serde_json::to_string(&here)?.replace(NAMESPACE, helm.namespace);
    let difference = differences(&serde_json::from_str::<Vec<Value>>(&moved)?, &there);
    ensure!(difference.is_empty(), "{}", difference.join("\n"));
    let bound = there.iter().filter(|object| object["metadata"]["namespace"] == "mesh").count();
    ensure!(bound > 10, "{bound} objects are there");
    Ok(())
}

/// Values of the documentation that no effect is known of; `cleanup` makes other objects, which are compared with kustomize's.
fn untried() -> anyhow::Result<Vec<String>> {
    let table = fs::read_to_string(chart().join("README.md"))?;
    let documented =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(path, _)| path));
    let effects = effects::all();
    let tried = |path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        effects.iter().any(|(values, _)| values.pointer(&pointer).is_some())
    };
    Ok(documented.filter(|path| *path != "cleanup" && !tried(path)).map(str::to_owned).collect())
}

fn values_that_are_misspelt_or_of_a_wrong_type_are_refused(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, helm) = Helm::of(ground)?;
    for (values, says) in [
        (json!({ "imgae": {} }), "imgae"),
        (json!({ "agent": { "toleration": [] } }), "toleration"),
        (json!({ "agent": { "privileged": true } }), "privileged"),
        (json!({ "ca": { "external": { "adress": "a:1" } } }), "adress"),
        (json!({ "ca": { "replicas": "2" } }), "replicas"),
        (json!({ "ca": { "replicas": 0 } }), "replicas"),
        (json!({ "ca": { "enabled": false } }), "address"),
        (json!({ "image": { "tag": 1 } }), "tag"),
        (json!({ "image": { "repository": "a b" } }), "repository"),
        (json!({ "trustDomain": "Shop Example" }), "trustDomain"),
        (json!({ "agent": { "config": { "trustDomain": "other" } } }), "config"),
        (json!({ "monitoring": { "rules": "yes" } }), "rules"),
        (json!({ "cleanup": 1 }), "cleanup"),
    ] {
        let error = helm.render(&values).err().with_context(|| format!("was taken: {values}"))?.to_string();
        ensure!(error.contains(says) && error.contains("schema"), "{values}: {error}");
    }
    Ok(())
}

fn the_chart_is_without_lint_and_whole_when_it_is_packaged(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, helm) = Helm::of(ground)?;
    let lint = helm.run("lint", &chart(), &json!({}))?;
    // 1 is a remark: there is no icon. What the others say does not come out of the library.
    let messages = lint["Messages"].as_array().context("no messages")?;
    let bad: Vec<_> = messages.iter().filter(|message| message["Severity"].as_i64() != Some(1)).collect();
    ensure!(bad.is_empty() && lint["Errors"].is_null() && messages.len() <= 1, "{lint}");
    let package = helm.run("package", &chart(), &json!({}))?;
    let package = PathBuf::from(package["path"].as_str().context("no path")?);
    // A chart whose links had no target there would be refused or lack objects.
    let values = json!({ "monitoring": { "podMonitor": true, "rules": true, "dashboard": true } });
    let packed = helm.run("render", &package, &values)?;
    let plain = helm.run("render", &chart(), &values)?;
    let difference = differences(&manifest(&plain)?, &manifest(&packed)?);
    ensure!(difference.is_empty() && packed["crds"] == plain["crds"], "packaged:\n{}", difference.join("\n"));
    let notes = packed["notes"].as_str().unwrap_or_default();
    ensure!(notes.contains("kubectl label namespace NAME meshd.io/dataplane=enabled"), "{notes}");
    Ok(())
}

/// The chart with what this old API server has in the places of what it lacks, as in `for_an_old_server`.
fn chart_for_an_old_server(ground: &Ground, helm: &Helm) -> anyhow::Result<PathBuf> {
    let folder = ground.dir().join("chart");
    let (from, to) = (chart(), folder.to_string_lossy().into_owned());
    helm.place.run(&["cp", "-rL", &from.to_string_lossy(), &to])?.succeeded()?;
    let edit = |name: &str, change: &dyn Fn(String) -> String| -> anyhow::Result<()> {
        let file = folder.join(name);
        Ok(fs::write(&file, change(fs::read_to_string(&file)?))?)
    };
    edit("Chart.yaml", &|text| text.replace(">=1.30.0-0", ">=1.20.0-0"))?;
    edit("manifests/ca.yaml", &|text| text.replace("policy/v1\n", "policy/v1beta1\n"))?;
    for name in ["manifests/agent.yaml", "manifests/cleanup/cleanup.yaml"] {
        edit(name, &|text| text.replace("appArmorProfile: { type: Unconfined }\n", "\n"))?;
    }
    Ok(folder)
}

fn a_release_is_installed_upgraded_cleaned_and_uninstalled(ground: &Ground) -> anyhow::Result<()> {
    let (_wire, cluster) = cluster(ground)?;
    let helm = Helm { place: cluster.place.clone(), kubeconfig: Some(cluster.admin()), namespace: NAMESPACE };
    // Istio's own definition, which is left alone.
    let crd = "peerauthentications.security.istio.io";
    let mut theirs = rendered(&cluster, "crds")?;
    theirs.retain(|object| object["metadata"]["name"] == crd);
    theirs[0]["metadata"]["labels"] = json!({ "whose": "istio" });
    cluster.apply(&theirs)?;
    let refused = helm.run("install", &chart(), &json!({})).err().context("1.20 was taken")?.to_string();
    ensure!(refused.contains("kubeVersion"), "{refused}");
    let chart = chart_for_an_old_server(ground, &helm)?;
    helm.run("install", &chart, &json!({}))?;
    let label = cluster.kubectl(&["get", "crd", crd, "-o", "jsonpath={.metadata.labels}"])?;
    ensure!(label == r#"{"whose":"istio"}"#, "Helm wrote over it: {label}");
    ensure!(cluster.kubectl(&["get", "crd", "-o", "name"])?.lines().count() == 4);
    installed_as_rendered(&cluster, &helm, &chart)?;
    helm.run("upgrade", &chart, &json!({ "ca": { "replicas": 3 }, "image": { "tag": "2" } }))?;
    let get = |what: &str, path: &str| {
        cluster.kubectl(&["-n", NAMESPACE, "get", what, "-o", &format!("jsonpath={path}")])
    };
    ensure!(get("deployment/meshd-ca", "{.spec.replicas}")? == "3");
    ensure!(get("daemonset/meshd", "{.spec.template.spec.containers[0].image}")? == "meshd:2");
    helm.run("upgrade", &chart, &json!({ "cleanup": true }))?;
    ensure!(get("daemonsets", "{.items[*].metadata.name}")? == "meshd-cleanup");
    helm.run("uninstall", &chart, &json!({}))?;
    // Definitions stay, and policies with them.
    ensure!(cluster.kubectl(&["get", "crd", "-o", "name"])?.lines().count() == 4);
    let left = ["get", "all,configmaps,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings"];
    let left =
        [left.as_slice(), &["--all-namespaces", "-l", "app.kubernetes.io/part-of=meshd", "-o", "name"]];
    let left = cluster.kubectl(&left.concat())?;
    ensure!(left.trim().is_empty(), "left: {left}");
    Ok(())
}

/// What the API server has is what was rendered, and defaults; and Helm's own marks, which kustomize does not set.
fn installed_as_rendered(cluster: &Cluster, helm: &Helm, chart: &Path) -> anyhow::Result<()> {
    let renderer = Helm { place: helm.place.clone(), kubeconfig: None, namespace: NAMESPACE };
    let release = renderer.run("render", chart, &json!({}))?;
    for object in objects(release["manifest"].as_str().context("no manifest")?)? {
        let object = for_an_old_server(object);
        let (kind, name) = (object["kind"].as_str().context("kind")?, object["metadata"]["name"].as_str());
        let name = name.context("name")?;
        let is = cluster.kubectl(&["-n", NAMESPACE, "get", kind, name, "-o", "json"])?;
        let mut lines = Vec::new();
        differ(&label(&object), &object, &serde_json::from_str(&is)?, &mut lines);
        // Of what was rendered nothing is missing or other.
        lines.retain(|line| !line.contains(": null, ") && !line.contains("/metadata/annotations"));
        ensure!(lines.is_empty(), "{}", lines.join("\n"));
    }
    Ok(())
}
