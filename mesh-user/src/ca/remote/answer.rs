//! What a CA answered, held against what was asked: our key, the identity asked for, a chain that is believed, a life that
//! makes sense. Pure.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{RemoteError, request::NewKey};
use crate::{
    identity::{SpiffeId, Svid},
    tls::{PeerRole, PeerVerifier},
};

/// More certificates are no chain of an SVID.
const MAX_CERTIFICATES: usize = 16;
/// An answer with more bytes is not read.
const MAX_BYTES: usize = 128 * 1024;
/// An SVID that would live longer was not meant for a workload.
const MAX_LIFE: Duration = Duration::from_secs(366 * 86_400);

/// Certificates as they came: `CreateCertificate` gives the leaf first and the roots last, each in a string of its own or
/// several in one.
#[derive(Debug)]
pub(super) struct Answer {
    /// Leaf first, without what signs itself.
    chain: Vec<CertificateDer<'static>>,
    /// What signs itself.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Answer {
    /// Reads PEM. `subject` is for errors.
    pub(super) fn read(subject: &str, pem: &[String]) -> Result<Self, RemoteError> {
        let wrong = |what: &str| RemoteError::Answer { subject: subject.to_owned(), what: what.to_owned() };
        if pem.iter().map(String::len).sum::<usize>() > MAX_BYTES {
            return Err(wrong("it is larger than 128 KiB"));
        }
        let mut all = Vec::new();
        for text in pem {
            for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
                all.push(der.map_err(|_| wrong("it is no PEM"))?);
                if all.len() > MAX_CERTIFICATES {
                    return Err(wrong("it has more than 16 certificates"));
                }
            }
        }
        let (mut chain, mut roots) = (Vec::new(), Vec::new());
        for der in all {
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| wrong("it is no certificate"))?;
            if parsed.is_ca() && parsed.subject() == parsed.issuer() { &mut roots } else { &mut chain }
                .push(der);
        }
        if chain.is_empty() {
            return Err(wrong("it has no certificate but roots"));
        }
        Ok(Self { chain, roots })
    }

    /// The SVID that it is. `id`: what was asked for; none: any identity of ours, which the caller looks at.
    pub(super) fn svid(
        self,
        id: Option<&SpiffeId>,
        key: &NewKey,
        verifier: &PeerVerifier,
        now: SystemTime,
    ) -> Result<Svid, RemoteError> {
        let subject = id.map_or_else(|| "this node".to_owned(), ToString::to_string);
        let wrong = |what: String| RemoteError::Answer { subject: subject.clone(), what };
        let certified = X509Certificate::from_der(&self.chain[0])
            .is_ok_and(|(_, leaf)| leaf.public_key().subject_public_key.data.as_ref() == key.public_bits());
        if !certified {
            return Err(wrong("it certifies another key than the one that was sent".to_owned()));
        }
        let expected = id.map(|id| BTreeSet::from([id.clone()]));
        let as_client = verifier.verify(&self.chain, PeerRole::Client, None, now);
        let peer = as_client
            .and_then(|_| verifier.verify(&self.chain, PeerRole::Server, expected.as_ref(), now))
            .map_err(|error| wrong(format!("peers would not believe it: {error}")))?;
        if id.is_some_and(|id| peer.spiffe_id != *id) {
            return Err(wrong(format!("it is for {}", peer.spiffe_id)));
        }
        let left = peer.not_after.duration_since(now).unwrap_or_default();
        if left.is_zero() {
            return Err(wrong(
                "it has ended already; compare the clocks of this node and of the CA".to_owned(),
            ));
        }
        if left > MAX_LIFE {
            return Err(wrong("it would live for more than a year".to_owned()));
        }
        Ok(Svid {
            spiffe_id: peer.spiffe_id,
            chain: self.chain,
            key: key.signer()?,
            not_before: peer.not_before,
            not_after: peer.not_after,
            serial: peer.serial,
        })
    }
}
