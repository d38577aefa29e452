//! What was seen, decided by other documents: what changes is told, and what cannot be known is not guessed.

use std::sync::Arc;

use serde_json::json;

use super::compile;
use crate::{
    policy::{
        Mode, Outcome,
        impact::Impact,
        traffic::{Content, Seen, SeenRequest, Traffic},
    },
    world::WorkloadName,
};

fn traffic(peer: &str, content: Content) -> Traffic {
    let name = |namespace: &str, name: &str| WorkloadName { namespace: namespace.into(), name: name.into() };
    Traffic {
        client: Some(name("data", "db")),
        source_ip: "10.0.0.2".parse().unwrap(),
        peer: (!peer.is_empty()).then(|| format!("spiffe://{peer}").parse().unwrap()),
        server: name("shop", "web"),
        destination: "10.0.0.1:80".parse().unwrap(),
        mode: Mode::Permissive,
        sni: None,
        content,
    }
}

fn request(method: &str, path: &str, claims: Option<serde_json::Value>) -> Content {
    Content::Request(SeenRequest {
        method: method.into(),
        path: Some(path.into()),
        host: Some("web".into()),
        forwarded: false,
        claims: claims.and_then(|claims| claims.as_object().cloned()),
    })
}

const DB: &str = "td1/ns/data/sa/db";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, namespace: shop }}\nspec: {spec}\n"
    )
}

/// Class before and after, where they differ.
fn changed(before: &str, after: &str, traffic: Traffic) -> Option<(Outcome, Outcome)> {
    let (world, before) = compile(before);
    let (_, after) = compile(after);
    let seen = Seen { traffic: Arc::new(traffic), count: 3, last_seconds: 7 };
    let impact = Impact::of(&world, &before, &after, [seen.clone()]);
    assert_eq!(impact.replayed, 1);
    impact.changes.into_iter().next().map(|change| {
        assert_eq!(change.seen, seen);
        (change.before, change.after)
    })
}

fn becomes(after: &str, traffic: Traffic) -> &'static str {
    changed("", after, traffic).map_or("allowed", |(_, after)| after.class())
}

#[test]
fn connections_are_decided_anew() {
    let only_other = policy("{ rules: [ { from: [ { source: { principals: [ td1/ns/a/sa/b ] } } ] } ] }");
    let (before, after) = changed("", &only_other, traffic(DB, Content::Unread)).unwrap();
    assert_eq!(before, Outcome::Allowed("allowed: no ALLOW policy applies".into()));
    assert_eq!(after, Outcome::Denied("denied: no ALLOW policy matched".into()));
    let (before, after) = changed(&only_other, "", traffic(DB, Content::Unread)).unwrap();
    assert_eq!((before.class(), after.class()), ("denied", "allowed"));
    assert_eq!(changed(&only_other, &only_other, traffic(DB, Content::Unread)), None);
    assert_eq!(
        changed("", &policy("{ rules: [ {} ] }"), traffic(DB, Content::Unread)),
        None,
        "another rule allows it"
    );
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: s, namespace: shop }\n\
                  spec: { mtls: { mode: STRICT } }\n";
    assert_eq!(becomes(strict, traffic("", Content::Unread)), "denied");
    assert_eq!(becomes(strict, traffic("", request("GET", "/", None))), "denied");
    assert_eq!(becomes(strict, traffic(DB, Content::Unread)), "allowed");
    // It had no choice.
    let mut forced = traffic("", Content::Unread);
    forced.mode = Mode::Disable;
    assert_eq!(becomes(strict, forced), "allowed");
    let disable = format!(
        "{}---\n{}",
        strict.replace("STRICT", "DISABLE"),
        policy("{ rules: [ { from: [ { source: { principals: [ '*' ] } } ] } ] }")
    );
    assert_eq!(becomes(&disable, traffic(DB, Content::Unread)), "denied");
}

#[test]
fn a_forwarded_request_is_not_decided_by_its_proxys_address() {
    let after =
        policy("{ action: DENY, rules: [ { from: [ { source: { remoteIpBlocks: [ 10.0.0.2 ] } } ] } ] }");
    let Content::Request(own) = request("GET", "/", None) else { panic!("a request") };
    let forwarded = SeenRequest { forwarded: true, ..own.clone() };
    assert_eq!(becomes(&after, traffic(DB, Content::Request(own))), "denied");
    assert_eq!(becomes(&after, traffic(DB, Content::Request(forwarded))), "unknown");
}

#[test]
fn requests_are_decided_by_what_is_remembered_of_them() {
    let after = policy(
        "{ action: DENY, rules: [ { to: [ { operation: { methods: [ POST ], paths: [ '/admin*' ] } } ] }, \
         { from: [ { source: { requestPrincipals: [ i/mallory ] } } ] } ] }",
    );
    assert_eq!(becomes(&after, traffic(DB, request("POST", "/admin", None))), "denied");
    assert_eq!(becomes(&after, traffic(DB, request("GET", "/admin", None))), "allowed");
    let claims = |sub: &str| Some(json!({ "iss": "i", "sub": sub }));
    assert_eq!(becomes(&after, traffic(DB, request("GET", "/", claims("mallory")))), "denied");
    assert_eq!(becomes(&after, traffic(DB, request("GET", "/", claims("alice")))), "allowed");
    let custom = policy("{ action: CUSTOM, provider: { name: ext }, rules: [ {} ] }");
    assert_eq!(becomes(&custom, traffic(DB, request("GET", "/", None))), "asks");
}

#[test]
fn what_depends_on_things_not_remembered_is_not_guessed() {
    let header = |action: &str, more: &str| {
        policy(&format!(
            "{{ action: {action}, rules: [ {{ when: [ {{ key: 'request.headers[x-team]', values: [ blue ] }} ]{more} }} ] }}"
        ))
    };
    let get = || traffic(DB, request("GET", "/", None));
    assert_eq!(becomes(&header("DENY", ""), get()), "unknown");
    assert_eq!(becomes(&header("ALLOW", ""), get()), "unknown");
    let not = header("DENY", "").replace("values", "notValues");
    assert_eq!(becomes(&not, get()), "unknown");
    // The rest of the rule settles it.
    let elsewhere = ", to: [ { operation: { paths: [ /other ] } } ]";
    assert_eq!(becomes(&header("DENY", elsewhere), get()), "allowed");
    assert_eq!(becomes(&header("ALLOW", elsewhere), get()), "denied");
    let claim = policy(
        "{ action: DENY, rules: [ { when: [ { key: 'request.auth.claims[team]', values: [ blue ] } ] } ] }",
    );
    assert_eq!(becomes(&claim, get()), "allowed", "it had no token");
    let with_token = traffic(DB, request("GET", "/", Some(json!({ "iss": "i", "sub": "s" }))));
    assert_eq!(becomes(&claim, with_token), "unknown");
}

#[test]
fn requests_that_nobody_read_are_told_apart_where_they_can_be() {
    let deny_posts = policy("{ action: DENY, rules: [ { to: [ { operation: { methods: [ POST ] } } ] } ] }");
    assert_eq!(becomes(&deny_posts, traffic(DB, Content::Unread)), "unknown");
    assert_eq!(becomes(&deny_posts, traffic(DB, Content::NotHttp)), "denied", "on TCP the method is ignored");
    let allow_gets_of_others = policy(
        "{ rules: [ { from: [ { source: { namespaces: [ other ] } } ], to: [ { operation: { methods: [ GET ] } } ] } ] }",
    );
    assert_eq!(becomes(&allow_gets_of_others, traffic(DB, Content::Unread)), "denied");
}

#[test]
fn other_rules_on_tokens_are_told() {
    let jwt = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: { name: r, namespace: shop }\n\
               spec: { jwtRules: [ { issuer: i, jwks: '{\"keys\":[]}' } ] }\n";
    let ((world, before), (_, after)) = (compile(""), compile(jwt));
    let seen =
        || Seen { traffic: Arc::new(traffic(DB, request("GET", "/", None))), count: 1, last_seconds: 0 };
    assert_eq!(Impact::of(&world, &before, &after, [seen()]).other_tokens, ["shop/web"]);
    assert_eq!(Impact::of(&world, &after, &after, [seen()]).other_tokens, [""; 0]);
}
