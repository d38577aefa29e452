//! The Helm chart's own files: versions, links, and that values, schema and table say the same. What Helm makes of them is told by
//! the stories `helm`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/meshd")
}

fn text(name: &str) -> String {
    let path = chart().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What the comment above each value says, by its path; in the order of the file.
fn described() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut comment, mut path) = (Vec::new(), Vec::<(usize, String)>::new());
    for line in text("values.yaml").lines() {
        let inner = line.trim_start();
        let indent = line.len() - inner.len();
        if let Some(words) = inner.strip_prefix('#') {
            comment.push(words.trim().to_owned());
            continue;
        }
        let key =
            inner.split_once(':').map(|(key, _)| key).filter(|key| key.chars().all(char::is_alphanumeric));
        if let Some(key) = key {
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, key.to_owned()));
            if !comment.is_empty() {
                let names: Vec<_> = path.iter().map(|(_, name)| name.as_str()).collect();
                found.push((names.join("."), comment.join(" ")));
            }
        }
        comment.clear();
    }
    // What holds others that are described has no row of its own.
    let all = found.clone();
    found.retain(|(path, _)| !all.iter().any(|(other, _)| other.starts_with(&format!("{path}."))));
    found
}

fn value<'a>(values: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(values, |value, name| &value[name])
}

#[test]
fn its_versions_are_the_workspaces() {
    let chart = yaml("Chart.yaml");
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
}

/// A checkout without symbolic links would install nothing.
#[test]
fn its_links_lead_to_the_files_that_kustomize_has() {
    for (link, file) in [
        ("crds", "../kubernetes/crds"),
        ("manifests", "../kubernetes"),
        ("dashboard.json", "../grafana/meshd.json"),
        ("rules.yaml", "../prometheus/meshd.rules.yaml"),
    ] {
        let wanted = chart().parent().unwrap().join(file).canonicalize().unwrap();
        assert_eq!(chart().join(link).canonicalize().unwrap(), wanted, "{link}");
    }
}

#[test]
fn its_table_is_made_of_its_values() {
    let values = yaml("values.yaml");
    let rows = described().into_iter().map(|(path, words)| {
        let default = match value(&values, &path) {
            Value::String(text) if text.is_empty() => "none".to_owned(),
            Value::String(text) => format!("`{text}`"),
            Value::Object(fields) if fields.is_empty() => "empty".to_owned(),
            Value::Array(items) if items.is_empty() => "empty".to_owned(),
            other => format!("`{other}`"),
        };
        format!("| `{path}` | {default} | {words} |")
    });
    let table = rows.collect::<Vec<_>>().join("\n");
    assert!(text("README.md").contains(&format!("|---|---|---|\n{table}\n\n")), "README.md lacks:\n{table}");
}

#[test]
fn its_schema_knows_the_values_and_no_others() {
    fn check(path: &str, schema: &Value, values: &Value, rows: &BTreeMap<String, String>) {
        for (name, inner) in schema["properties"].as_object().unwrap() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if !rows.contains_key(&path) && path != "global" {
                assert!(value(values, &path).is_object(), "{path} is in the schema and not described");
                check(&path, inner, values, rows);
            }
        }
    }
    let rows: BTreeMap<_, _> = described().into_iter().collect();
    let (schema, values) = (yaml("values.schema.json"), yaml("values.yaml"));
    check("", &schema, &values, &rows);
    for path in rows.keys() {
        let mut node = &schema;
        for name in path.split('.') {
            assert_eq!(node["additionalProperties"], false, "{path}: {node}");
            node = &node["properties"][name];
        }
        assert!(!node.is_null(), "{path} is not in the schema");
    }
}
