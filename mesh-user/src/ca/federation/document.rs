//! A trust bundle as it was fetched or put there, and which of two is the newer. Pure.
//!
//! Sources: SPIFFE Trust Domain and Bundle sections 4.1.1 and 4.1.2, SPIFFE Federation section 4.2.

use std::{path::Path, time::Duration};

use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::{
    ca::{parse_bundle, parse_jwt_authorities},
    identity::JwtAuthorities,
    jwt::json,
};

/// Of a bundle; a root is some hundred bytes, an RSA one with names some thousand.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// A handshake is held against each of them.
const MAX_ROOTS: usize = 64;

/// The authorities of one trust domain. It does not say of which: that is told by where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) jwt_authorities: JwtAuthorities,
    /// The keys as they were written, of all uses.
    keys: Option<Value>,
    pub(super) sequence: Option<u64>,
    pub(super) refresh_hint: Option<Duration>,
}

/// What a bundle that was fetched is to one that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It replaces what is known.
    New,
    /// It says the same.
    Same,
    /// It is older than one that was in force.
    Stale,
}

impl Bundle {
    /// Reads JSON, or where `pem` allows it PEM; `from` is for the error.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub(super) fn read(from: &Path, text: &str, pem: bool) -> Result<Self, String> {
        let is_json = text.trim_start().starts_with('{');
        if !is_json && !pem {
            return Err("the bundle is no JSON object".to_owned());
        }
        let mut roots = parse_bundle(from, text).map_err(|error| error.to_string())?;
        roots.dedup();
        let jwt_authorities = parse_jwt_authorities(from, text).map_err(|error| error.to_string())?;
        if roots.len() > MAX_ROOTS || jwt_authorities.len() > MAX_ROOTS {
            let (roots, keys) = (roots.len(), jwt_authorities.len());
            return Err(format!(
                "the bundle has {roots} roots and {keys} keys, more than {MAX_ROOTS} of one"
            ));
        }
        if let Some(what) = roots.iter().find_map(|root| crate::tls::why_no_authority(root)) {
            return Err(format!("a root of the bundle {what}"));
        }
        let document = if is_json { json::object(text.as_bytes()) } else { None };
        let number = |name: &str| match document.as_ref().and_then(|document| document.get(name)) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| format!("the bundle's {name} is no whole number of 64 bits")),
        };
        Ok(Self {
            roots,
            jwt_authorities,
            sequence: number("spiffe_sequence")?,
            refresh_hint: number("spiffe_refresh_hint")?.map(Duration::from_secs),
            keys: document.and_then(|mut document| document.remove("keys")),
        })
    }

    /// Whether the same authorities are in it, whatever its number.
    fn says_as(&self, other: &Self) -> bool {
        self.roots == other.roots && self.keys == other.keys
    }

    /// What this is to `known`, where `newest` is the highest number that was ever in force. One without a number is as
    /// new as its fetch.
    pub(super) fn standing(&self, known: Option<&Self>, newest: Option<u64>) -> Standing {
        if known.is_some_and(|known| self.says_as(known)) {
            return Standing::Same;
        }
        match (self.sequence, newest) {
            (Some(own), Some(newest)) if own < newest => Standing::Stale,
            _ => Standing::New,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_pki::TestCa;
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use serde_json::json;

    fn text(roots: &[&TestCa], more: &Value) -> String {
        let keys: Vec<_> = roots
            .iter()
            .map(|ca| json!({"use": "x509-svid", "kty": "EC", "x5c": [BASE64_STANDARD.encode(ca.root())]}))
            .collect();
        let mut bundle = json!({ "keys": keys });
        bundle.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bundle.to_string()
    }

    fn read(text: &str) -> Result<Bundle, String> {
        Bundle::read(Path::new("https://a"), text, false)
    }

    #[test]
    fn numbers_are_whole_and_of_64_bits() {
        let ca = TestCa::new("a.example");
        let bundle =
            read(&text(&[&ca], &json!({"spiffe_sequence": u64::MAX, "spiffe_refresh_hint": 7}))).unwrap();
        assert_eq!((bundle.sequence, bundle.refresh_hint), (Some(u64::MAX), Some(Duration::from_secs(7))));
        let bundle = read(&text(&[&ca], &json!({}))).unwrap();
        assert_eq!((bundle.sequence, bundle.refresh_hint), (None, None));
        for bad in [
            json!({"spiffe_sequence": -1}),
            json!({"spiffe_sequence": 1.5}),
            json!({"spiffe_refresh_hint": "9"}),
        ] {
            let error = read(&text(&[&ca], &bad)).unwrap_err();
            assert!(error.contains("no whole number"), "{bad}: {error}");
        }
        let huge = text(&[&ca], &json!({})).replacen('{', r#"{"spiffe_sequence":18446744073709551616,"#, 1);
        assert!(read(&huge).unwrap_err().contains("spiffe_sequence"));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let ca = TestCa::new("a.example");
        let many: Vec<_> = (0..65).map(|_| TestCa::new("a.example")).collect();
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            BASE64_STANDARD.encode(ca.root())
        );
        let leaf = json!({"use": "x509-svid", "kty": "EC",
            "x5c": [BASE64_STANDARD.encode(&ca.svid("spiffe://a.example/x").chain[0])]});
        for (bundle, what) in [
            (String::new(), "no JSON object"),
            (pem.clone(), "no JSON object"),
            (json!({"keys": []}).to_string(), "no key of use x509-svid"),
            (json!({"keys": [leaf]}).to_string(), "is no CA"),
            (text(&many.iter().collect::<Vec<_>>(), &json!({})), "65 roots"),
            (format!("{} {{}}", text(&[&ca], &json!({}))), "JSON object"),
        ] {
            let error = read(&bundle).unwrap_err();
            assert!(error.contains(what), "{what}: {error}");
        }
        assert_eq!(Bundle::read(Path::new("/a.pem"), &pem, true).unwrap().roots, [ca.root()]);
    }

    #[test]
    fn a_lower_number_is_stale_unless_it_says_the_same() {
        let (one, two) = (TestCa::new("a.example"), TestCa::new("a.example"));
        let bundle = |ca: &TestCa, sequence: Option<u64>| {
            read(&text(&[ca], &sequence.map_or(json!({}), |s| json!({"spiffe_sequence": s})))).unwrap()
        };
        let known = bundle(&one, Some(5));
        for (fetched, newest, standing) in [
            (bundle(&two, Some(6)), Some(5), Standing::New),
            (bundle(&two, Some(5)), Some(5), Standing::New),
            (bundle(&two, Some(4)), Some(5), Standing::Stale),
            (bundle(&two, None), Some(5), Standing::New),
            (bundle(&two, Some(4)), None, Standing::New),
            (bundle(&one, Some(4)), Some(5), Standing::Same),
            (bundle(&one, Some(6)), Some(5), Standing::Same),
        ] {
            assert_eq!(fetched.standing(Some(&known), newest), standing, "{:?} {newest:?}", fetched.sequence);
        }
        assert_eq!(known.standing(None, None), Standing::New);
        assert_eq!(known.standing(None, Some(6)), Standing::Stale);
    }
}
