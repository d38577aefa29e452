//! What a Kubernetes role grants, permission by permission.

use std::collections::BTreeSet;

use serde_json::Value;

/// Group, resource with its subresource, verb, and the name of the one object that it is for.
pub(crate) type Permission = (String, String, String, Option<String>);

/// The texts of a JSON array.
pub(crate) fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a role's JSON grants.
pub(crate) fn granted(role: &Value) -> BTreeSet<Permission> {
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let mut names: Vec<_> = strings(&rule["resourceNames"]).into_iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    let one =
                        |name: &Option<String>| (group.clone(), resource.clone(), verb.clone(), name.clone());
                    granted.extend(names.iter().map(one));
                }
            }
        }
    }
    granted
}
