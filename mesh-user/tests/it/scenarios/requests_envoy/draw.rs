//! Whole sets of policies and requests by chance, from a seed: values are few, so that rules match often, and each that
//! Istio gives a meaning of its own is among them. Documents are what a person would write; nothing here decides.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Map, Value, json};

use super::tokens::Tokens;

/// Whom connections come from; none: plaintext.
pub(super) const PEERS: [Option<&str>; 4] = [
    Some("spiffe://cluster.local/ns/shop/sa/client"),
    Some("spiffe://cluster.local/ns/shop/sa/other"),
    Some("spiffe://cluster.local/ns/data/sa/client"),
    None,
];
/// Where they go to.
pub(super) const PORTS: [u16; 2] = [8080, 9090];

const PRINCIPALS: [&str; 7] = [
    "*",
    "cluster.local/ns/shop/sa/client",
    "cluster.local/ns/shop/*",
    "*/sa/client",
    "cluster.local/ns/data/sa/client",
    "cluster.local/ns/shop/sa/cli",
    "*other",
];
const NAMESPACES: [&str; 6] = ["shop", "data", "sh*", "*ta", "*", "sho"];
const ACCOUNTS: [&str; 4] = ["client", "shop/other", "data/client", "data/other"];
const BLOCKS: [&str; 5] = ["127.0.0.0/8", "127.0.0.1", "10.201.0.0/24", "10.201.0.11", "192.0.2.0/24"];
const PORT_VALUES: [&str; 3] = ["8080", "9090", "1"];
const METHODS: [&str; 7] = ["GET", "POST", "P*", "*T", "*", "DELETE", "get"];
const HOSTS: [&str; 8] =
    ["a.example", "A.Example:*", "*.EXAMPLE", "a.*", "*", "a.example:80", "b.test", "*:80"];
const PATHS: [&str; 22] = [
    "*",
    "/",
    "/a",
    "/a*",
    "*b",
    "/a/b",
    "/a/b/",
    "/a/*",
    "*/c",
    "/a/%2Fb",
    "/a//b",
    "/%7Ba%7D",
    "/{*}",
    "/a/{*}",
    "/{**}",
    "/{*}/b",
    "/{**}/b",
    "/a/{**}",
    "/{*}/",
    "/a/{*}/{**}",
    "/{*}/{*}/c",
    "/a/{**}/c",
];
const REQUEST_PRINCIPALS: [&str; 12] = [
    "*",
    "https://one.example/alice",
    "https://one.example/*",
    "https://one.example/al*",
    "*/alice",
    "*example/bob",
    "*ob",
    "https*",
    "two/a/b",
    "two",
    "*/*",
    "two/*",
];
const WORDS: [&str; 9] = ["*", "read", "wr*", "*te", "read write", "x", "y,z", "*z", "true"];
const KEYS: [&str; 21] = [
    "request.headers[X-One]",
    "request.headers[x-two]",
    "request.headers[:authority]",
    "request.headers[:method]",
    "request.headers[user-agent]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[iss]",
    "request.auth.claims[sub]",
    "request.auth.claims[scope]",
    "request.auth.claims[groups]",
    "request.auth.claims[realm][roles]",
    "request.auth.claims[realm][scope]",
    "request.auth.claims[realm]",
    "request.auth.claims[none][none]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "destination.port",
];
const SEGMENTS: [&str; 34] = [
    "a",
    "a",
    "a",
    "a",
    "b",
    "b",
    "b",
    "c",
    "",
    ".",
    "..",
    "%2e%2e",
    "%2E",
    "%61",
    "%2Fb",
    "%2f",
    "a;x",
    "..;x",
    "%2e.;x",
    ".;",
    "{a}",
    "\\a",
    "..\\b",
    "~%7e",
    "a%",
    "%zz",
    "[",
    "%00",
    "a#b",
    "\"<>`|^",
    "%25%36%31",
    "%%361",
    "a%20b",
    "b*",
];
const HEADER_VALUES: [&str; 8] = ["read", "write", "y", "z", "", "y,z", "read write", "READ"];

/// One random choice after the other.
pub(super) struct Draw(StdRng);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).copied().unwrap_or_default()
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    fn count(&mut self, most: usize) -> usize {
        self.0.random_range(0..=most)
    }

    fn some(&mut self, of: &[&str]) -> Vec<String> {
        (0..=self.count(2)).map(|_| self.one(of).to_owned()).collect()
    }

    /// A field or its negation, or both, or neither.
    fn field(&mut self, into: &mut Map<String, Value>, name: &str, values: &[&str], probability: f64) {
        if self.chance(probability) {
            into.insert(name.to_owned(), json!(self.some(values)));
        }
        if self.chance(probability / 3.0) {
            let (first, rest) = name.split_at(1);
            into.insert(format!("not{}{rest}", first.to_uppercase()), json!(self.some(values)));
        }
    }

    fn source(&mut self) -> Value {
        let mut source = Map::new();
        while source.is_empty() {
            self.field(&mut source, "principals", &PRINCIPALS, 0.3);
            self.field(&mut source, "requestPrincipals", &REQUEST_PRINCIPALS, 0.4);
            self.field(&mut source, "ipBlocks", &BLOCKS, 0.1);
            self.field(&mut source, "remoteIpBlocks", &BLOCKS, 0.1);
            // Istio takes no accounts beside principals or namespaces.
            let named = ["principals", "notPrincipals"].iter().any(|name| source.contains_key(*name));
            if !named && self.chance(0.3) {
                self.field(&mut source, "serviceAccounts", &ACCOUNTS, 0.8);
            } else {
                self.field(&mut source, "namespaces", &NAMESPACES, 0.15);
            }
        }
        json!({ "source": source })
    }

    fn operation(&mut self) -> Value {
        let mut operation = Map::new();
        while operation.is_empty() {
            self.field(&mut operation, "hosts", &HOSTS, 0.25);
            self.field(&mut operation, "methods", &METHODS, 0.4);
            self.field(&mut operation, "paths", &PATHS, 0.6);
            self.field(&mut operation, "ports", &PORT_VALUES, 0.1);
        }
        json!({ "operation": operation })
    }

    fn condition(&mut self) -> Value {
        let key = self.one(&KEYS);
        let values: &[&str] = match key {
            "request.auth.principal" => &REQUEST_PRINCIPALS,
            "request.headers[:authority]" => &HOSTS,
            "request.headers[:method]" => &METHODS,
            "request.auth.claims[iss]" => &["https://one.example", "two", "*", "https*"],
            "request.auth.claims[sub]" => &["alice", "*b", "a/b", "*"],
            "source.ip" | "remote.ip" => &BLOCKS,
            "source.namespace" => &NAMESPACES,
            "source.principal" => &PRINCIPALS,
            "destination.port" => &PORT_VALUES,
            _ => &WORDS,
        };
        let mut condition = Map::from_iter([("key".to_owned(), json!(key))]);
        let which = self.count(3);
        if which != 0 {
            condition.insert("values".to_owned(), json!(self.some(values)));
        }
        if which < 2 {
            condition.insert("notValues".to_owned(), json!(self.some(values)));
        }
        Value::Object(condition)
    }

    fn rule(&mut self) -> Value {
        let mut rule = Map::new();
        for (name, probability, most) in [("from", 0.5, 1), ("to", 0.7, 1), ("when", 0.4, 1)] {
            if self.chance(probability) {
                let entries: Vec<Value> = (0..=self.count(most))
                    .map(|_| match name {
                        "from" => self.source(),
                        "to" => self.operation(),
                        _ => self.condition(),
                    })
                    .collect();
                rule.insert(name.to_owned(), Value::Array(entries));
            }
        }
        Value::Object(rule)
    }

    fn authorization_policy(&mut self, name: &str, action: &str) -> Value {
        let namespace = self.one(&["shop", "shop", "istio-system", "elsewhere"]);
        let rules: Vec<Value> = (0..self.count(3)).map(|_| self.rule()).collect();
        let mut spec = json!({ "action": action, "rules": rules });
        self.select(&mut spec);
        document("AuthorizationPolicy", name, namespace, &spec)
    }

    fn select(&mut self, spec: &mut Value) {
        if self.chance(0.5) {
            let app = self.one(&["server", "server", "server", "other"]);
            spec["selector"] = json!({ "matchLabels": { "app": app } });
        }
    }

    fn request_authentication(&mut self, name: &str, issuers: &[&str], tokens: &Tokens) -> Value {
        let rules: Vec<Value> = issuers
            .iter()
            .map(|issuer| {
                let mut rule = json!({ "issuer": issuer, "jwks": tokens.jwks(issuer) });
                match self.count(5) {
                    0 => rule["fromHeaders"] = json!([{ "name": "x-token" }]),
                    1 => rule["fromHeaders"] = json!([{ "name": "x-token", "prefix": "Token " }]),
                    2 => {
                        rule["fromParams"] = json!(["token"]);
                        rule["fromHeaders"] = json!([{ "name": "authorization", "prefix": "Bearer " }]);
                    }
                    3 => rule["fromCookies"] = json!(["session"]),
                    _ => {}
                }
                if self.chance(0.3) {
                    rule["audiences"] = json!(["shop", "https://shop.example/"]);
                }
                rule
            })
            .collect();
        let mut spec = json!({ "jwtRules": rules });
        self.select(&mut spec);
        let namespace = self.one(&["shop", "shop", "istio-system"]);
        document("RequestAuthentication", name, namespace, &spec)
    }

    /// A set of documents.
    pub(super) fn documents(&mut self, tokens: &Tokens) -> Vec<Value> {
        let mut all = Vec::new();
        for number in 0..=self.count(2) {
            all.push(self.authorization_policy(&format!("allow-{number}"), "ALLOW"));
        }
        for number in 0..self.count(3) {
            all.push(self.authorization_policy(&format!("deny-{number}"), "DENY"));
        }
        match self.count(3) {
            0 => {}
            1 => all.push(self.request_authentication("one", &[super::tokens::ISSUERS[0]], tokens)),
            2 => all.push(self.request_authentication("both", &super::tokens::ISSUERS, tokens)),
            _ => {
                for (number, issuer) in super::tokens::ISSUERS.iter().enumerate() {
                    all.push(self.request_authentication(&format!("ra-{number}"), &[issuer], tokens));
                }
            }
        }
        all
    }

    fn path(&mut self) -> String {
        let mut path: String = (0..=self.count(3)).flat_map(|_| ["/", self.one(&SEGMENTS)]).collect();
        if self.chance(0.15) {
            path.push('/');
        }
        path
    }

    /// Puts a token where some rule may look for it.
    fn token(&mut self, tokens: &Tokens, fields: &mut String, query: &mut Vec<String>) {
        let token = tokens.any(&mut self.0);
        match self.count(7) {
            0 => fields.extend(["x-token: ", token, "\r\n"]),
            1 => fields.extend(["x-token: Token ", token, "\r\n"]),
            2 => query.push(format!("token={token}")),
            3 => query.push(format!("access_token={token}")),
            4 => fields.extend(["Cookie: a=b; session=", token, "\r\n"]),
            _ => fields.extend(["Authorization: ", self.one(&BEARERS), token, "\r\n"]),
        }
    }

    /// A request as it is written to a connection.
    pub(super) fn request(&mut self, tokens: &Tokens) -> String {
        let method =
            self.one(&["GET", "GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]);
        let host = self.one(&[
            "a.example",
            "a.example",
            "A.EXAMPLE:80",
            "b.test",
            "x.a.example",
            "10.0.0.1:8080",
            "a.example.",
        ]);
        let mut target = if self.chance(0.5) {
            self.one(&["/", "/a", "/a/b", "/b", "/a/b/c", "/a/c", "/c/", "//a"]).to_owned()
        } else {
            self.path()
        };
        let mut query = Vec::new();
        if self.chance(0.2) {
            query.push(self.one(&["x=/b", "y", "x=a/../b"]).to_owned());
        }
        let mut fields = String::new();
        for name in ["x-one", "X-Two", "user-agent"] {
            for _ in 0..self.count(6).saturating_sub(4) {
                fields.extend([name, ": ", self.one(&HEADER_VALUES), "\r\n"]);
            }
        }
        if method == "OPTIONS" && self.chance(0.5) {
            fields.push_str("Origin: http://a.example\r\nAccess-Control-Request-Method: PUT\r\n");
        }
        if self.chance(0.05) {
            fields.push_str("X-Forwarded-For: 192.0.2.1\r\n");
        }
        let most = if self.chance(0.1) { 2 } else { usize::from(self.chance(0.6)) };
        for _ in 0..most {
            self.token(tokens, &mut fields, &mut query);
        }
        if matches!(method, "POST" | "PUT") {
            fields.push_str("Content-Length: 0\r\n");
        }
        if !query.is_empty() {
            target = format!("{target}?{}", query.join("&"));
        }
        if self.chance(0.03) {
            target = format!("http://{host}{target}");
        }
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
    }
}

const BEARERS: [&str; 7] = ["Bearer ", "Bearer ", "Bearer ", "Bearer ", "bearer ", "Bearer  ", "Basic "];

fn document(kind: &str, name: &str, namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}
