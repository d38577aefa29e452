//! What the source of SVIDs says of trust and what files say, as one. Pure.

use super::revocation::{is_of_the_same, written};
use crate::identity::TrustBundles;

/// The source's bundles, and the roots, revocation lists and JWT authorities from files. Where both have a list of an authority the one that
/// was written later counts: a verifier asks only one.
pub fn merged(mut own: TrustBundles, extra: &TrustBundles) -> TrustBundles {
    for (domain, roots) in &extra.roots {
        let known = own.roots.entry(domain.clone()).or_default();
        for root in roots {
            if !known.contains(root) {
                known.push(root.clone());
            }
        }
    }
    for (domain, lists) in &extra.revoked {
        let known = own.revoked.entry(domain.clone()).or_default();
        for list in lists {
            match known.iter_mut().find(|other| is_of_the_same(other, list)) {
                Some(other) if written(other) >= written(list) => {}
                Some(other) => *other = list.clone(),
                None => known.push(list.clone()),
            }
        }
    }
    for (domain, keys) in &extra.jwt_authorities {
        own.jwt_authorities.entry(domain.clone()).or_default().extend(keys.clone());
    }
    own
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{
        identity::RevocationList,
        tls::test_pki::{TestCa, bundles},
    };

    #[test]
    fn roots_add_up_and_of_two_lists_the_later_one_counts() {
        let (ca, other) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
        let now = SystemTime::now();
        let list = |since: SystemTime| RevocationList::new(ca.revocation_list(since, &[]).der().clone());
        let (older, newer) = (list(now - Duration::from_secs(60)).unwrap(), list(now).unwrap());
        let with = |roots: &[&TestCa], list: &RevocationList| {
            let mut with = bundles(roots);
            with.revoked.insert(ca.trust_domain.clone(), vec![list.clone()]);
            with
        };
        for (source, file) in [(&older, &newer), (&newer, &older)] {
            let both = merged(with(&[&ca], source), &with(&[&ca, &other], file));
            assert_eq!(both.roots[&ca.trust_domain], [ca.root(), other.root()]);
            assert_eq!(both.revoked[&ca.trust_domain], std::slice::from_ref(&newer));
        }
    }
}
