//! SPIFFE IDs, against the standard read as plainly as possible (SPIFFE-ID.md sections 2.1 to 2.4).
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_user::identity::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    let parsed = text.parse::<SpiffeId>();
    assert_eq!(parsed.is_ok(), is_spiffe_id(text), "{parsed:?}");
    assert_eq!(text.parse::<TrustDomain>().is_ok(), is_trust_domain(text));
    let Ok(id) = parsed else { return };
    assert_eq!(id.to_string(), text);
    assert_eq!(id.in_trust_domain(id.trust_domain()).as_ref(), Ok(&id));
    if let Some((namespace, account)) = id.service_account() {
        let made = SpiffeId::for_service_account(id.trust_domain(), namespace, account);
        assert_eq!(made.as_ref(), Ok(&id));
    }
});

fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    text.len() <= 2048 && parts.next().is_some_and(is_trust_domain) && parts.all(is_segment)
}

fn is_trust_domain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_'))
}

fn is_segment(segment: &str) -> bool {
    let allowed = |c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_');
    !matches!(segment, "" | "." | "..") && segment.chars().all(allowed)
}
