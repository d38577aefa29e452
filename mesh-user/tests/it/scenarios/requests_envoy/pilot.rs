//! What Istio's pilot makes of documents for a sidecar's Envoy: filters of one workload. Written from pilot's sources, apart
//! from meshd's reading of the same documents, and from the documents' text: nothing of meshd is used here.
//!
//! Sources: istio/istio `pilot/pkg/security/authz/{model/{model,generator}.go,matcher/*.go}`,
//! `pilot/pkg/security/authn/policy_applier.go`, and the outputs in `pilot/pkg/security/authz/builder/testdata/http`.

use serde_json::{Map, Value, json};

/// Where pilot has the peer's identity looked for.
pub(super) const PEER: &str = "io.istio.peer_principal";
const PAYLOAD: &str = "envoy.filters.http.jwt_authn";

/// HTTP filters of the workload labelled `app` in `namespace`.
pub(super) fn filters(documents: &[Value], namespace: &str, app: &str) -> Vec<Value> {
    let applies = |document: &&Value| {
        let own = &document["metadata"]["namespace"];
        let selected = &document["spec"]["selector"]["matchLabels"]["app"];
        (own == namespace || own == "istio-system") && (selected.is_null() || selected == app)
    };
    let of_kind = |kind: &'static str| {
        documents.iter().filter(move |document| document["kind"] == kind).filter(applies)
    };
    let mut filters = Vec::new();
    filters.extend(jwt_filter(of_kind("RequestAuthentication")));
    for action in ["DENY", "ALLOW"] {
        let policies: Vec<&Value> =
            of_kind("AuthorizationPolicy").filter(|document| document["spec"]["action"] == action).collect();
        if !policies.is_empty() {
            filters.push(rbac_filter(action, &policies));
        }
    }
    filters.push(filter("envoy.filters.http.router", "router.v3.Router", &json!({})));
    filters
}

fn filter(name: &str, of_type: &str, config: &Value) -> Value {
    let mut typed =
        json!({ "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{of_type}") });
    for (field, value) in config.as_object().into_iter().flatten() {
        typed[field] = value.clone();
    }
    json!({ "name": name, "typed_config": typed })
}

/// One provider for each rule, by issuer; each may find nothing, but what it finds must be good.
fn jwt_filter<'a>(documents: impl Iterator<Item = &'a Value>) -> Option<Value> {
    let mut rules: Vec<&Value> = documents.flat_map(|document| list(&document["spec"]["jwtRules"])).collect();
    rules.sort_by_key(|rule| rule["issuer"].as_str());
    let (mut providers, mut any, mut all) = (Map::new(), Vec::new(), Vec::new());
    for (number, rule) in rules.iter().enumerate() {
        let name = format!("origins-{number}");
        let headers = list(&rule["fromHeaders"]).map(|place| {
            json!({ "name": place["name"], "value_prefix": place["prefix"].as_str().unwrap_or_default() })
        });
        providers.insert(
            name.clone(),
            json!({
                "issuer": rule["issuer"],
                "audiences": list(&rule["audiences"]).collect::<Vec<_>>(),
                "from_headers": headers.collect::<Vec<_>>(),
                "from_params": list(&rule["fromParams"]).collect::<Vec<_>>(),
                "from_cookies": list(&rule["fromCookies"]).collect::<Vec<_>>(),
                "local_jwks": { "inline_string": rule["jwks"] },
                "payload_in_metadata": "payload",
                "normalize_payload_in_metadata": { "space_delimited_claims": ["scope", "permission"] },
            }),
        );
        any.push(json!({ "provider_name": name }));
        all.push(json!({ "requires_any": {
            "requirements": [ { "provider_name": name }, { "allow_missing": {} } ]
        } }));
    }
    let requires = match all.len() {
        0 => return None,
        1 => all.remove(0),
        _ => {
            any.push(json!({ "requires_all": { "requirements": all } }));
            json!({ "requires_any": { "requirements": any } })
        }
    };
    let config = json!({
        "providers": providers,
        "rules": [ { "match": { "prefix": "/" }, "requires": requires } ],
        "bypass_cors_preflight": true,
    });
    Some(filter("envoy.filters.http.jwt_authn", "jwt_authn.v3.JwtAuthentication", &config))
}

fn rbac_filter(action: &str, documents: &[&Value]) -> Value {
    let mut policies = Map::new();
    for document in documents {
        let metadata = &document["metadata"];
        let namespace = text(&metadata["namespace"]);
        for (number, rule) in list(&document["spec"]["rules"]).enumerate() {
            let name = format!("ns[{namespace}]-policy[{}]-rule[{number}]", text(&metadata["name"]));
            policies.insert(name, policy(rule, namespace));
        }
    }
    let config = json!({ "rules": { "action": action, "policies": policies } });
    filter("envoy.filters.http.rbac", "rbac.v3.RBAC", &config)
}

/// One rule: what may be done, and by whom. Conditions go where their attribute belongs.
fn policy(rule: &Value, namespace: &str) -> Value {
    let (mut permitted, mut identified) = (Vec::new(), Vec::new());
    for condition in list(&rule["when"]) {
        let key = text(&condition["key"]);
        let (side, into) = if key.starts_with("destination.") || key == "connection.sni" {
            (Side::Permission, &mut permitted)
        } else {
            (Side::Principal, &mut identified)
        };
        into.extend(side.fields(key, namespace, &condition["values"], &condition["notValues"]));
    }
    let side = |side: Side, entries: &Value, inner: &str, names: &[&str], conditions: &[Value]| {
        let mut groups: Vec<Vec<Value>> = list(entries)
            .map(|entry| {
                let entry = &entry[inner];
                let fields = names.iter().flat_map(|name| {
                    let (first, rest) = name.split_at(1);
                    side.fields(
                        name,
                        namespace,
                        &entry[name],
                        &entry[format!("not{}{rest}", first.to_uppercase())],
                    )
                });
                fields.chain(conditions.iter().cloned()).collect()
            })
            .collect();
        if groups.is_empty() {
            groups.push(conditions.to_vec());
        }
        let any =
            |group: &Vec<Value>| if group.is_empty() { vec![json!({ "any": true })] } else { group.clone() };
        groups.iter().map(|group| side.and(&any(group))).collect::<Vec<_>>()
    };
    let operations = ["hosts", "methods", "paths", "ports"];
    let sources =
        ["principals", "requestPrincipals", "namespaces", "ipBlocks", "remoteIpBlocks", "serviceAccounts"];
    json!({
        "permissions": side(Side::Permission, &rule["to"], "operation", &operations, &permitted),
        "principals": side(Side::Principal, &rule["from"], "source", &sources, &identified),
    })
}

/// The two halves of an Envoy policy, which say the same things by other names.
#[derive(Clone, Copy)]
enum Side {
    Permission,
    Principal,
}

impl Side {
    fn and(self, all: &[Value]) -> Value {
        match self {
            Self::Permission => json!({ "and_rules": { "rules": all } }),
            Self::Principal => json!({ "and_ids": { "ids": all } }),
        }
    }

    fn or(self, any: &[Value]) -> Value {
        match self {
            Self::Permission => json!({ "or_rules": { "rules": any } }),
            Self::Principal => json!({ "or_ids": { "ids": any } }),
        }
    }

    fn not(self, one: &Value) -> Value {
        match self {
            Self::Permission => json!({ "not_rule": one }),
            Self::Principal => json!({ "not_id": one }),
        }
    }

    /// A field and its negation, where they are set.
    fn fields(self, key: &str, namespace: &str, values: &Value, not_values: &Value) -> Vec<Value> {
        let matcher = |values: &Value| {
            let values: Vec<&str> = list(values).map(text).collect();
            (!values.is_empty()).then(|| self.matcher(key, namespace, &values))
        };
        matcher(values).into_iter().chain(matcher(not_values).map(|not| self.not(&not))).collect()
    }

    fn matcher(self, key: &str, namespace: &str, values: &[&str]) -> Value {
        let claim = |path: &[&str]| claim(path, values);
        let each =
            |one: &dyn Fn(&str) -> Value| self.or(&values.iter().map(|value| one(value)).collect::<Vec<_>>());
        match key {
            "hosts" => each(&|value| header(":authority", value, true)),
            "methods" => each(&|value| header(":method", value, false)),
            "paths" => each(&path),
            "ports" | "destination.port" => {
                each(&|value| json!({ "destination_port": value.parse::<u16>().unwrap_or_default() }))
            }
            "principals" | "source.principal" => each(&|value| peer(&identity(value))),
            "namespaces" | "source.namespace" => {
                each(&|value| peer(&regex(&format!(".*/ns/{}/.*", value.replace('*', ".*")))))
            }
            "serviceAccounts" | "source.serviceAccount" => each(&|value| {
                let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
                peer(&regex(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?")))
            }),
            "ipBlocks" | "source.ip" => each(&|value| json!({ "direct_remote_ip": block(value) })),
            "remoteIpBlocks" | "remote.ip" => each(&|value| json!({ "remote_ip": block(value) })),
            "requestPrincipals" | "request.auth.principal" => each(&request_principal),
            "request.auth.audiences" => claim(&["aud"]),
            "request.auth.presenter" => claim(&["azp"]),
            _ => match key.split_once('[') {
                Some(("request.headers", name)) => {
                    each(&|value| header(name.trim_end_matches(']'), value, false))
                }
                Some((_, names)) => claim(&names.trim_end_matches(']').split("][").collect::<Vec<_>>()),
                None => json!({ "unknown": key }),
            },
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn regex(text: &str) -> Value {
    json!({ "safe_regex": { "regex": text } })
}

fn string(value: &str) -> Value {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", ..) => regex(".+"),
        (_, Some(suffix), _) => json!({ "suffix": suffix }),
        (_, _, Some(prefix)) => json!({ "prefix": prefix }),
        _ => json!({ "exact": value }),
    }
}

/// Of the SPIFFE ID with its scheme, which values leave out.
fn identity(value: &str) -> Value {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", ..) => regex(".+"),
        (_, Some(suffix), _) => regex(&format!("spiffe://.*{suffix}")),
        (_, _, Some(prefix)) => json!({ "prefix": format!("spiffe://{prefix}") }),
        _ => json!({ "exact": format!("spiffe://{value}") }),
    }
}

fn peer(matcher: &Value) -> Value {
    json!({ "filter_state": { "key": PEER, "string_match": matcher } })
}

fn header(name: &str, value: &str, ignore_case: bool) -> Value {
    if value == "*" {
        return json!({ "header": { "name": name, "present_match": true } });
    }
    let mut matcher = string(value);
    if ignore_case {
        matcher["ignore_case"] = json!(true);
    }
    json!({ "header": { "name": name, "string_match": matcher } })
}

fn path(value: &str) -> Value {
    if value.contains("{*}") || value.contains("{**}") {
        let template = value.replace("{**}", "**").replace("{*}", "*");
        let of_type =
            "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
        return json!({ "uri_template": {
            "name": "uri-template",
            "typed_config": { "@type": of_type, "path_template": template },
        } });
    }
    json!({ "url_path": { "path": string(value) } })
}

fn block(value: &str) -> Value {
    let (address, length) = value.split_once('/').unwrap_or((value, "32"));
    json!({ "address_prefix": address, "prefix_len": length.parse::<u32>().unwrap_or(32) })
}

fn metadata(path: &[&str], value: &Value) -> Value {
    let keys = ["payload"].iter().chain(path).map(|key| json!({ "key": key }));
    json!({ "metadata": { "filter": PAYLOAD, "path": keys.collect::<Vec<_>>(), "value": value } })
}

/// A string, or a list with one.
fn claim(path: &[&str], values: &[&str]) -> Value {
    let mut each: Vec<Value> = values.iter().map(|value| json!({ "string_match": string(value) })).collect();
    let one =
        if each.len() == 1 { each.remove(0) } else { json!({ "or_match": { "value_matchers": each } }) };
    metadata(path, &json!({ "or_match": { "value_matchers": [ { "list_match": { "one_of": one } }, one ] } }))
}

/// Issuer and subject, cut at the last slash.
fn request_principal(value: &str) -> Value {
    let any = || regex(".+");
    let cut = value.rsplit_once('/');
    let exact = |text: &str| json!({ "exact": text });
    let (issuer, subject) = match (value, cut) {
        ("*", _) => (any(), any()),
        (_, Some((issuer, subject))) if value.starts_with('*') => {
            let issuer = if issuer == "*" { any() } else { json!({ "suffix": &issuer[1..] }) };
            (issuer, exact(subject))
        }
        (_, None) if value.starts_with('*') => (any(), json!({ "suffix": &value[1..] })),
        (_, Some((issuer, subject))) if value.ends_with('*') => {
            let prefix = &subject[..subject.len() - 1];
            (exact(issuer), if subject == "*" { any() } else { json!({ "prefix": prefix }) })
        }
        (_, None) if value.ends_with('*') => (json!({ "prefix": &value[..value.len() - 1] }), any()),
        (_, Some((issuer, subject))) => (exact(issuer), exact(subject)),
        (_, None) => (exact(value), exact("")),
    };
    let is = |name: &str, matcher: Value| metadata(&[name], &json!({ "string_match": matcher }));
    Side::Principal.and(&[is("iss", issuer), is("sub", subject)])
}
