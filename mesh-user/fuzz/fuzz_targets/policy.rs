//! Policy documents: as written, and, where the first line is a comment, what follows as a document of the version
//! that the comment says.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use mesh_user::policy::{PolicySet, PolicyStatus};

const KNOWN: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];

fuzz_target!(|text: &str| {
    parsed(text);
    if let Some((version, body)) = text.strip_prefix("# ").and_then(|text| text.split_once('\n')) {
        for kind in ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"] {
            with_head(version, kind, body);
        }
    }
});

fn with_head(version: &str, kind: &str, body: &str) {
    let quoted = serde_json::to_string(version).expect("a string");
    let text = format!("apiVersion: {quoted}\nkind: {kind}\nmetadata:\n  name: a\n{body}");
    // Another document has a head of its own.
    let alone = !body.lines().any(|line| line.starts_with("---") || line.starts_with("..."));
    if let Some(set) = parsed(&text).filter(|_| alone) {
        let accepted = count(&set);
        assert!(accepted == 0 || KNOWN.contains(&version), "{version:?} is no version of ours");
        assert!(accepted == 1 || !KNOWN.contains(&version), "a policy is passed over in silence");
    }
}

fn count(set: &PolicySet) -> usize {
    set.peer_authentications.len() + set.authorization_policies.len() + set.request_authentications.len()
}

fn parsed(text: &str) -> Option<PolicySet> {
    let parse = || PolicySet::parse([("policy.yaml", text)]);
    match (parse(), parse()) {
        (Ok(set), Ok(again)) => {
            assert_eq!(set, again);
            every_policy_has_its_status(&set);
            Some(set)
        }
        (Err(error), Err(again)) => {
            assert_eq!(error, again);
            assert!(error.to_string().starts_with("policy.yaml"), "{error}");
            None
        }
        _ => panic!("the same text has two answers"),
    }
}

/// Under a name that no other policy of its kind has.
fn every_policy_has_its_status(set: &PolicySet) {
    let name = |status: &PolicyStatus| (status.kind.clone(), status.namespace.clone(), status.name.clone());
    let told: BTreeSet<_> = set.status.iter().map(name).collect();
    let named =
        |kind: &str, namespace: &str, name: &str| (kind.to_owned(), namespace.to_owned(), name.to_owned());
    let peer = set.peer_authentications.iter().map(|p| named("PeerAuthentication", &p.namespace, &p.name));
    let authorization =
        set.authorization_policies.iter().map(|p| named("AuthorizationPolicy", &p.namespace, &p.name));
    let request =
        set.request_authentications.iter().map(|p| named("RequestAuthentication", &p.namespace, &p.name));
    let accepted: BTreeSet<_> = peer.chain(authorization).chain(request).collect();
    assert_eq!(accepted.len(), count(set));
    assert!(accepted.is_subset(&told), "{accepted:?} without a status");
}
