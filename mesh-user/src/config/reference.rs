//! Holds docs/configuration.md against the schema: each field's row there is the one made here from its type,
//! so that names, defaults and descriptions cannot drift apart.

use serde_json::Value;

use super::{AuthorityConfig, Config};

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");
const AUTHORITY_DOCUMENT: &str = include_str!("../../../docs/authority.md");

/// Follows a reference, or the one that matters of an optional value.
fn target<'a>(schema: &'a Value, mut node: &'a Value) -> &'a Value {
    loop {
        let name = node["$ref"].as_str().and_then(|r| r.rsplit('/').next());
        let some = node["anyOf"].as_array().and_then(|any| any.iter().find(|one| one["type"] != "null"));
        node = match (name, some) {
            (Some(name), _) => &schema["$defs"][name],
            (None, Some(some)) => some,
            (None, None) => return node,
        };
    }
}

/// The values that an enumeration takes.
fn values(node: &Value) -> Vec<&str> {
    let listed = node["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let described = node["oneOf"].as_array().into_iter().flatten().filter_map(|one| one["const"].as_str());
    listed.chain(described).collect()
}

fn default(field: &Value, required: bool, leaf: bool) -> String {
    match &field["default"] {
        _ if required => "required".to_owned(),
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() => "none".to_owned(),
        Value::Array(items) if items.is_empty() => "empty".to_owned(),
        Value::Object(_) if !leaf => "as below".to_owned(),
        Value::Object(fields) if fields.is_empty() => "empty".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn rows(schema: &Value, node: &Value, prefix: &str, rows: &mut Vec<String>) {
    let alternatives = node["oneOf"].as_array().into_iter().flatten();
    for object in std::iter::once(node).chain(alternatives) {
        for (name, field) in object["properties"].as_object().into_iter().flatten() {
            let path = format!("{prefix}{name}");
            let inner = target(schema, field);
            let item = target(schema, &inner["items"]);
            let list = inner["items"].is_object();
            let nested = if list { item } else { inner };
            let has_fields = nested["properties"].is_object() || nested["oneOf"][0]["properties"].is_object();
            let required = object["required"].as_array().is_some_and(|r| r.contains(&name.as_str().into()));
            let alternative = !std::ptr::eq(object, node);
            let default =
                if alternative { "one of them".to_owned() } else { default(field, required, !has_fields) };
            let text = [field, inner].iter().find_map(|f| f["description"].as_str()).unwrap_or_default();
            let mut text = text.replace('\n', " ");
            let values = values(inner);
            if !values.is_empty() {
                text = format!("{text} One of `{}`.", values.join("`, `"));
            }
            rows.push(format!("| `{path}` | {default} | {} |", text.trim()));
            if has_fields {
                let prefix = if list { format!("{path}[].") } else { format!("{path}.") };
                self::rows(schema, nested, &prefix, rows);
            }
        }
    }
}

#[test]
fn every_field_of_the_schema_is_in_the_documentation_as_it_is() {
    for (name, document, schema, fields) in [
        ("configuration", DOCUMENT, Config::schema(), 60),
        ("authority", AUTHORITY_DOCUMENT, AuthorityConfig::schema(), 40),
    ] {
        let mut wanted = Vec::new();
        rows(&schema, &schema, "", &mut wanted);
        assert!(wanted.len() > fields, "the schema was not understood: {wanted:?}");
        let written: Vec<_> = document.lines().filter(|l| l.starts_with("| `")).collect();
        assert!(written == wanted, "the table in docs/{name}.md has to be:\n{}", wanted.join("\n"));
    }
}

#[test]
fn the_documented_examples_are_valid() {
    let example = |document: &'static str| document.split("```yaml\n").nth(1)?.split("```").next();
    Config::parse(example(DOCUMENT).unwrap(), "docs/configuration.md").unwrap();
    AuthorityConfig::parse(example(AUTHORITY_DOCUMENT).unwrap(), "docs/authority.md").unwrap();
}
