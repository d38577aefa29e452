//! Which certificates are believed: X.509-SVID validation over webpki, the same for clients, servers and
//! resumed sessions. Pure; it reads the current trust bundles and a given time, nothing else. A peer of one
//! trust domain is never verified against another domain's roots.
//!
//! Sources: X509-SVID.md sections 2 to 5, SPIFFE Federation section 4, RFC 5280 section 4.2.1.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::{
    VerifyError,
    believed::{Believed, Key, Proven},
};
use crate::identity::{RevocationList, SpiffeId, TrustBundles, TrustDomain};

/// A chain longer than this is refused before it is parsed.
const MAX_CHAIN_CERTIFICATES: usize = 8;
/// The shortest RSA key that rustls takes a signature of.
const MIN_RSA_BITS: usize = 2048;
/// A certificate larger than this is refused before it is parsed.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// Which end of the handshake the certificate belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// The peer connected to us.
    Client,
    /// We connected to the peer.
    Server,
}

/// A peer whose certificate was verified in the handshake of this very connection, or in the one it resumes.
#[derive(Debug, Clone)]
pub struct VerifiedPeer {
    /// The identity proven.
    pub spiffe_id: SpiffeId,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// Serial number of the leaf, lower-case hex.
    pub serial: String,
    /// Leaf first; kept so that the connection can be decided again when trust changes.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// When it was verified.
    pub proven_at: SystemTime,
}

/// Verifies peers against the trust bundles of the moment.
#[derive(Debug)]
pub struct PeerVerifier {
    trust_domain: TrustDomain,
    aliases: Vec<TrustDomain>,
    clock_skew: Duration,
    bundles: Arc<ArcSwap<TrustBundles>>,
    algorithms: WebPkiSupportedAlgorithms,
    believed: Believed,
}

/// What the leaf itself says, before anything about it is believed.
struct LeafClaims {
    spiffe_id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl PeerVerifier {
    /// `bundles` may be swapped at any time; the next verification uses the new ones.
    pub fn new(
        trust_domain: TrustDomain,
        aliases: Vec<TrustDomain>,
        clock_skew: Duration,
        bundles: Arc<ArcSwap<TrustBundles>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        let believed = Believed::new(bundles.load_full());
        Self { trust_domain, aliases, clock_skew, bundles, algorithms, believed }
    }

    pub(crate) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    /// Verifies a chain (leaf first) at `now`. An empty `expected` accepts any identity that is proven.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        expected: Option<&BTreeSet<SpiffeId>>,
        now: SystemTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        if chain.len() > MAX_CHAIN_CERTIFICATES || chain.iter().any(|c| c.len() > MAX_CERTIFICATE_BYTES) {
            return Err(VerifyError::Malformed("the chain is too large".to_owned()));
        }
        let (bundles, key) = (self.bundles.load_full(), Key::of(chain, role));
        let peer = if let Some(peer) = self.believed.find(&key, &bundles, now) {
            VerifiedPeer { proven_at: now, ..peer }
        } else {
            let proven = self.prove(chain, role, &bundles, now)?;
            let peer = proven.peer.clone();
            self.believed.keep(key, bundles, proven);
            peer
        };
        if !expected.is_none_or(|ids| self.matches(ids, &peer.spiffe_id)) {
            return Err(VerifyError::WrongIdentity(peer.spiffe_id));
        }
        Ok(peer)
    }

    /// Everything about a chain but whom it was expected to name.
    fn prove(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        bundles: &TrustBundles,
        now: SystemTime,
    ) -> Result<Proven, VerifyError> {
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| VerifyError::Malformed("the chain is empty".to_owned()))?;
        let LeafClaims { spiffe_id, not_before, not_after, serial } = parse_leaf(leaf)?;
        let (mut all_since, mut all_until) = (not_before, not_after);
        for issuer in intermediates {
            let (since, until) = must_sign_certificates(issuer)?;
            (all_since, all_until) = (all_since.max(since), all_until.min(until));
        }
        self.verify_path(leaf, intermediates, role, (spiffe_id.trust_domain(), bundles), now)?;
        let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
        let peer = VerifiedPeer { spiffe_id, not_before, not_after, serial, chain, proven_at: now };
        Ok(Proven { peer, not_before: all_since, not_after: all_until })
    }

    /// Decides again about the peer of a live connection: its roots and revocation lists are those of the moment, the time
    /// is that of its handshake. So neither the end of a certificate nor a clock that is set cuts what stands.
    ///
    /// # Errors
    /// When its authority is trusted no more, or a certificate was revoked.
    pub fn verify_live(&self, peer: &VerifiedPeer, role: PeerRole) -> Result<(), VerifyError> {
        self.verify_again(peer, role, None, peer.proven_at)
    }

    /// Decides again about a peer verified earlier: rotation, expiry, expected identities.
    pub fn verify_again(
        &self,
        peer: &VerifiedPeer,
        role: PeerRole,
        expected: Option<&BTreeSet<SpiffeId>>,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        self.verify(&peer.chain, role, expected, now).map(drop)
    }

    /// Our own trust domain's names are one domain: an expected identity under one is met under another.
    fn matches(&self, expected: &BTreeSet<SpiffeId>, proven: &SpiffeId) -> bool {
        expected.contains(proven)
            || (self.is_own(proven.trust_domain())
                && expected.iter().any(|id| self.is_own(id.trust_domain()) && id.path() == proven.path()))
    }

    fn is_own(&self, domain: &TrustDomain) -> bool {
        *domain == self.trust_domain || self.aliases.contains(domain)
    }

    fn verify_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: PeerRole,
        (domain, bundles): (&TrustDomain, &TrustBundles),
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        let is_alias = !bundles.roots.contains_key(domain) && self.aliases.contains(domain);
        let known_as = if is_alias { &self.trust_domain } else { domain };
        let roots = match bundles.roots.get(known_as) {
            Some(roots) => roots,
            None if *known_as == self.trust_domain => {
                return Err(VerifyError::UnknownAuthority(domain.clone()));
            }
            None => return Err(VerifyError::TrustDomain(domain.clone())),
        };
        let rounds = rounds(bundles.revoked.get(known_as).map(Vec::as_slice).unwrap_or_default());
        let anchors: Vec<_> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
        let end_entity = EndEntityCert::try_from(leaf).map_err(|e| VerifyError::Malformed(e.to_string()))?;
        let usage = match role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        let at = |time: SystemTime| {
            let time = UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
            rounds.iter().try_for_each(|lists| {
                // A list that is late still says what was revoked when it was written.
                let revocation = RevocationOptionsBuilder::new(lists).ok().map(|options| {
                    options
                        .with_depth(RevocationCheckDepth::Chain)
                        .with_status_policy(UnknownStatusPolicy::Allow)
                        .with_expiration_policy(ExpirationPolicy::Ignore)
                        .build()
                });
                let algorithms = self.algorithms.all;
                end_entity
                    .verify_for_usage(algorithms, &anchors, intermediates, time, usage, revocation, None)
                    .map(drop)
            })
        };
        // Only a certificate at the edge of its validity is judged by a skewed clock.
        let outcome = match at(now) {
            Err(webpki::Error::CertExpired { .. }) => at(now.checked_sub(self.clock_skew).unwrap_or(now)),
            Err(webpki::Error::CertNotValidYet { .. }) => at(now + self.clock_skew),
            other => other,
        };
        outcome.map_err(|error| path_error(error, VerifyError::UnknownAuthority(domain.clone())))
    }
}

/// webpki asks the first list of an authority alone. One that has two, its own and an operator's, is asked in two rounds;
/// there is always one.
fn rounds(lists: &[RevocationList]) -> Vec<Vec<&CertRevocationList<'static>>> {
    let mut rounds = vec![Vec::new()];
    for list in lists.iter().map(RevocationList::list) {
        let of_another = |other: &&CertRevocationList<'static>| {
            other.issuer() != list.issuer()
                || other.issuing_distribution_point() != list.issuing_distribution_point()
        };
        match rounds.iter_mut().find(|round: &&mut Vec<_>| round.iter().all(of_another)) {
            Some(round) => round.push(list),
            None => rounds.push(vec![list]),
        }
    }
    rounds
}

/// Why there is no path; `unknown` where none leads to an authority that is believed.
pub(super) fn path_error(error: webpki::Error, unknown: VerifyError) -> VerifyError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => VerifyError::Expired,
        Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => unknown,
        Error::CaUsedAsEndEntity => VerifyError::Usage("the leaf is a CA"),
        Error::EndEntityUsedAsCa => VerifyError::Usage("a certificate in the chain is no CA"),
        Error::PathLenConstraintViolated => {
            VerifyError::Constraint("more CAs follow than its path length allows")
        }
        // webpki cannot match URIs: a constraint on them excludes them all (rustls/webpki#19).
        Error::NameConstraintViolation => VerifyError::Constraint("its name constraints exclude the leaf"),
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            VerifyError::Weak("a signature's algorithm is not accepted")
        }
        Error::CertRevoked => {
            VerifyError::Revoked("its authority's revocation list names it or an issuer of it")
        }
        Error::UnknownRevocationStatus => {
            VerifyError::Revoked("there is no revocation list of one of its authorities")
        }
        Error::CrlExpired { .. } => {
            VerifyError::Revoked("a revocation list of one of its authorities has expired")
        }
        Error::IssuerNotCrlSigner => {
            VerifyError::Revoked("an issuer has a revocation list, but may not sign one (cRLSign)")
        }
        Error::InvalidCrlSignatureForPublicKey
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
            VerifyError::Revoked("a revocation list in an issuer's name is not signed by it")
        }
        Error::RequiredEkuNotFoundContext(_) => {
            VerifyError::Usage("extended key usage lacks this end's purpose")
        }
        other => VerifyError::Malformed(other.to_string()),
    }
}

fn parse_leaf(leaf: &CertificateDer<'_>) -> Result<LeafClaims, VerifyError> {
    let malformed = |what: &str| VerifyError::Malformed(what.to_owned());
    let (rest, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| malformed("the leaf is no X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow the leaf"));
    }
    if certificate.is_ca() {
        return Err(VerifyError::Usage("the leaf is a CA"));
    }
    let usage = certificate.key_usage().map_err(|_| malformed("key usage appears twice"))?;
    let usage = usage.ok_or(VerifyError::Usage("the leaf has no key usage"))?.value;
    if !usage.digital_signature() {
        return Err(VerifyError::Usage("key usage lacks digitalSignature"));
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(VerifyError::Usage("key usage of a leaf includes keyCertSign or cRLSign"));
    }
    must_be_strong(certificate.public_key())?;
    let (not_before, not_after) = validity(&certificate);
    Ok(LeafClaims {
        spiffe_id: only_spiffe_id(&certificate)?,
        not_before,
        not_after,
        serial: certificate.raw_serial().iter().fold(String::new(), |mut hex, byte| {
            use std::fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
    })
}

/// webpki does not look at the key usage of the path's CAs (RFC 5280 section 4.2.1.3, X509-SVID.md section 4.3). Start and end of its validity.
fn must_sign_certificates(issuer: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), VerifyError> {
    let malformed =
        |_| VerifyError::Malformed("a certificate of the chain is no X.509 certificate".to_owned());
    let (_, issuer) = X509Certificate::from_der(issuer).map_err(malformed)?;
    match issuer.key_usage() {
        Ok(Some(usage)) if usage.value.key_cert_sign() => {}
        Ok(_) => return Err(VerifyError::Usage("the key usage of an issuer lacks keyCertSign")),
        Err(_) => return Err(VerifyError::Malformed("key usage appears twice".to_owned())),
    }
    if names_a_workload(&issuer) {
        return Err(VerifyError::Usage("the SPIFFE ID of an issuer has a path, as a workload's"));
    }
    Ok(validity(&issuer))
}

/// Why a certificate cannot be the authority of a trust domain; none: it can. A root says who it is by being in the bundle, so
/// it may lack what X.509 leaves to choice.
pub fn why_no_authority(root: &CertificateDer<'_>) -> Option<&'static str> {
    let Ok((_, root)) = X509Certificate::from_der(root) else { return Some("is no X.509 certificate") };
    if !root.is_ca() {
        return Some("is no CA");
    }
    match root.key_usage() {
        Ok(None) => {}
        Ok(Some(usage)) if usage.value.key_cert_sign() => {}
        _ => return Some("may not sign certificates"),
    }
    names_a_workload(&root).then_some("has a SPIFFE ID with a path, as a workload's")
}

/// A signing certificate's SPIFFE ID, if it has one, has no path (X509-SVID.md section 3.2).
fn names_a_workload(authority: &X509Certificate<'_>) -> bool {
    let names = authority.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    names.flatten().any(|name| match name {
        GeneralName::URI(uri) => {
            uri.starts_with("spiffe://") && !uri.parse::<SpiffeId>().is_ok_and(|id| id.path().is_empty())
        }
        _ => false,
    })
}

pub(super) fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    (system_time(validity.not_before.timestamp()), system_time(validity.not_after.timestamp()))
}

/// A path says nothing about the key at its end, and the handshake's signature only that it is wrong.
fn must_be_strong(key: &SubjectPublicKeyInfo<'_>) -> Result<(), VerifyError> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() < MIN_RSA_BITS => {
            Err(VerifyError::Weak("an RSA key is shorter than 2048 bits"))
        }
        _ => Ok(()),
    }
}

/// Exactly one URI SAN, and it is a SPIFFE ID (X509-SVID.md section 2). Other kinds of names are ignored.
fn only_spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let mut uri = None;
    let mut extensions = 0;
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        extensions += 1;
        for name in &names.general_names {
            match name {
                GeneralName::URI(_) if uri.is_some() => {
                    return Err(VerifyError::BadSpiffeId("it has several URI names".to_owned()));
                }
                GeneralName::URI(value) => uri = Some(*value),
                GeneralName::Invalid(..) => {
                    return Err(VerifyError::BadSpiffeId("a subject alternative name is invalid".to_owned()));
                }
                _ => {}
            }
        }
    }
    if extensions > 1 {
        return Err(VerifyError::BadSpiffeId("subject alternative names appear twice".to_owned()));
    }
    let uri = uri.ok_or_else(|| VerifyError::BadSpiffeId("it has no URI name".to_owned()))?;
    let id: SpiffeId = uri.parse().map_err(|e| VerifyError::BadSpiffeId(format!("{e}")))?;
    if id.path().is_empty() {
        return Err(VerifyError::BadSpiffeId("a workload's SPIFFE ID has a path".to_owned()));
    }
    Ok(id)
}

fn system_time(unix_seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(unix_seconds.unsigned_abs());
    let time = if unix_seconds < 0 { UNIX_EPOCH.checked_sub(offset) } else { UNIX_EPOCH.checked_add(offset) };
    time.unwrap_or(UNIX_EPOCH)
}
