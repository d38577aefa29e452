//! Revocation lists from files, held against the roots that they are to be of: one that would make every certificate of an
//! authority unverifiable is found here, not at the first handshake.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use x509_parser::{prelude::*, revocation_list::CertificateRevocationList};

use super::CaError;
use crate::identity::{RevocationList, TrustBundles, TrustDomain};

/// Adds a domain's lists to the bundles; `roots` are the domain's. Returns what is odd about them, one line each.
///
/// # Errors
/// When the text holds no PEM list, an authority would have two, or a root's own list is not signed by it.
pub fn add_revocation_lists(
    bundles: &mut TrustBundles,
    domain: &TrustDomain,
    roots: &[CertificateDer<'_>],
    (path, text): (&Path, &str),
) -> Result<Vec<String>, CaError> {
    let invalid = |what: String| CaError::Invalid { path: path.to_owned(), what };
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("is no PEM: {error}")))?;
    if lists.is_empty() {
        return Err(invalid("holds no PEM revocation list (BEGIN X509 CRL)".to_owned()));
    }
    let known = bundles.revoked.entry(domain.clone()).or_default();
    let mut warnings = Vec::new();
    for der in lists {
        let list = RevocationList::new(der)
            .map_err(|error| invalid(format!("holds a bad revocation list: {error}")))?;
        let parsed = CertificateRevocationList::from_der(list.der()).map(|(_, parsed)| parsed);
        let parsed = parsed.map_err(|error| invalid(format!("holds a bad revocation list: {error}")))?;
        let issuer = parsed.issuer();
        if known.iter().any(|other| is_of_the_same(other, &list)) {
            return Err(invalid(format!("{issuer} has two lists in {domain}: remove the older one")));
        }
        must_be_signed(&parsed, roots).map_err(invalid)?;
        if let Some(due) = parsed.next_update().map(|due| due.timestamp())
            && since_epoch(due) < SystemTime::now()
        {
            let path = path.display();
            warnings
                .push(format!("{path}: the next list of {issuer} is overdue; what it revokes stays revoked"));
        }
        known.push(list);
    }
    Ok(warnings)
}

/// Whether a list of the domain's takes back a certificate of this chain. Whether the list is signed is not asked: who is
/// wrong renews once too often.
pub(super) fn is_revoked(chain: &[CertificateDer<'_>], domain: &TrustDomain, bundles: &TrustBundles) -> bool {
    let Some(lists) = bundles.revoked.get(domain) else { return false };
    let parsed = chain.iter().filter_map(|der| X509Certificate::from_der(der).ok());
    parsed.into_iter().any(|(_, certificate)| {
        let names = |list: &&RevocationList| {
            CertificateRevocationList::from_der(list.der())
                .is_ok_and(|(_, parsed)| parsed.issuer() == certificate.issuer())
        };
        let serial = certificate.raw_serial();
        lists.iter().filter(names).any(|list| matches!(list.list().find_serial(serial), Ok(Some(_))))
    })
}

/// When a list was written; what cannot be read is older than everything.
pub(super) fn written(list: &RevocationList) -> i64 {
    CertificateRevocationList::from_der(list.der())
        .map_or(i64::MIN, |(_, parsed)| parsed.last_update().timestamp())
}

/// The verifier asks the first list that it finds for an authority and a part of its certificates.
pub(super) fn is_of_the_same(one: &RevocationList, other: &RevocationList) -> bool {
    let key = |list: &RevocationList| {
        (list.list().issuer().to_owned(), list.list().issuing_distribution_point().map(<[u8]>::to_owned))
    };
    key(one) == key(other)
}

/// Lists of authorities below the roots are held against them with each chain.
fn must_be_signed(list: &CertificateRevocationList<'_>, roots: &[CertificateDer<'_>]) -> Result<(), String> {
    let parsed = roots.iter().filter_map(|root| X509Certificate::from_der(root).ok());
    let named: Vec<_> = parsed.map(|(_, root)| root).filter(|root| root.subject() == list.issuer()).collect();
    if named.is_empty() {
        return Ok(());
    }
    let signers: Vec<_> =
        named.iter().filter(|root| list.verify_signature(root.public_key()).is_ok()).collect();
    if signers.is_empty() {
        return Err(format!("a list in the name of {} is not signed by it", list.issuer()));
    }
    let may_sign = |root: &X509Certificate<'_>| match root.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.crl_sign()),
        Err(_) => false,
    };
    if !signers.iter().any(|root| may_sign(root)) {
        return Err(format!("{} may not sign revocation lists: its key usage lacks cRLSign", list.issuer()));
    }
    Ok(())
}

fn since_epoch(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_pki::{TestCa, bundles};

    const NOW: fn() -> SystemTime = SystemTime::now;

    fn add(bundles: &mut TrustBundles, ca: &TestCa, text: &str) -> Result<Vec<String>, String> {
        let roots = [ca.root()];
        add_revocation_lists(bundles, &ca.trust_domain, &roots, (Path::new("revoked.pem"), text))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn lists_of_several_authorities_are_taken_and_a_late_one_is_told() {
        let ca = TestCa::new("cluster.local");
        let below = ca.below(|_| {});
        let late = NOW() - Duration::from_secs(3 * 86_400);
        let text =
            ca.revocation_list(NOW(), &[]).pem().unwrap() + &below.revocation_list(late, &[]).pem().unwrap();
        let mut bundles = bundles(&[&ca]);
        let warnings = add(&mut bundles, &ca, &text).unwrap();
        assert_eq!((warnings.len(), bundles.revoked[&ca.trust_domain].len()), (1, 2));
        assert!(warnings[0].contains("0 below cluster.local is overdue"), "{warnings:?}");
    }

    #[test]
    fn what_would_make_all_certificates_unverifiable_is_refused() {
        let ca = TestCa::new("cluster.local");
        let own = ca.revocation_list(NOW(), &[]).pem().unwrap();
        let forged = TestCa::new("cluster.local").revocation_list(NOW(), &[]).pem().unwrap();
        for (what, text) in [
            ("no PEM revocation list", String::new()),
            (
                "no PEM revocation list",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            ),
            ("bad revocation list", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".into()),
            ("two lists", format!("{own}{own}")),
            ("not signed by it", forged),
        ] {
            let error = add(&mut bundles(&[&ca]), &ca, &text).unwrap_err();
            assert!(error.contains(what) && error.contains("revoked.pem"), "expected {what:?} in {error:?}");
        }
    }
}
