//! What the CA's certificates look like: an SVID's leaf, and the certificates of its own authorities. Everybody here who
//! signs one does so by this file; nothing a CSR asks for comes in.
//!
//! Sources: X509-SVID.md sections 2 to 4, RFC 5280 section 4.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::{
    CaError,
    keys::{SecretKey, random_serial},
};
use crate::{
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
    tls::{PeerRole, PeerVerifier, provider},
};

/// What a leaf is to say.
pub(super) struct Terms<'a> {
    pub(super) id: &'a SpiffeId,
    /// For servers whose clients look for a host's name.
    pub(super) dns_names: &'a [String],
    /// How long it is to be valid from now on; never past its issuer.
    pub(super) lifetime: Duration,
    /// Valid that long before now too, so that a peer with a slow clock accepts it.
    pub(super) backdate: Duration,
}

/// A signed leaf.
pub(super) struct Leaf {
    pub(super) certificate: CertificateDer<'static>,
    /// Lower-case hex.
    pub(super) serial: String,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

/// Signs a leaf for the key of whoever has proven to have it.
///
/// # Errors
/// When the issuer's own certificate ended, a name is none, or signing fails.
pub(super) fn sign(
    (issuer, issuer_ends): (&rcgen::Issuer<'_, SecretKey>, OffsetDateTime),
    key: &impl PublicKeyData,
    terms: &Terms<'_>,
) -> Result<Leaf, CaError> {
    let failed = |e: rcgen::Error| CaError::Sign { subject: terms.id.to_string(), what: e.to_string() };
    let now = OffsetDateTime::now_utc();
    let not_after = (now + terms.lifetime).min(issuer_ends);
    if not_after <= now {
        return Err(CaError::IssuerExpired);
    }
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    // no subject: the URI SAN is the identity, and is critical then (RFC 5280 section 4.2.1.6)
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(terms.id.to_string().try_into().map_err(failed)?)];
    for name in terms.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(failed)?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    // certificates count whole seconds
    params.not_before = (now - terms.backdate).replace_nanosecond(0).unwrap_or(now);
    params.not_after = not_after.replace_nanosecond(0).unwrap_or(not_after);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let certificate = params.signed_by(key, issuer).map_err(failed)?.der().clone();
    let serial = format!("{:032x}", u128::from_be_bytes(serial));
    Ok(Leaf { certificate, serial, not_before: params.not_before, not_after: params.not_after })
}

/// The SVID of a leaf and the key it was signed for; `above` is what is between it and the root.
///
/// # Errors
/// When the key cannot sign handshakes.
pub(super) fn svid(
    id: &SpiffeId,
    leaf: Leaf,
    above: &[CertificateDer<'static>],
    key: &SecretKey,
) -> Result<Svid, CaError> {
    let pkcs8 = key.to_der();
    let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der.into())
        .map_err(|e| CaError::Sign { subject: id.to_string(), what: e.to_string() })?;
    Ok(Svid {
        spiffe_id: id.clone(),
        chain: std::iter::once(leaf.certificate).chain(above.iter().cloned()).collect(),
        key,
        not_before: leaf.not_before.into(),
        not_after: leaf.not_after.into(),
        serial: leaf.serial,
    })
}

/// Signs for nobody and asks meshd's own verifier: chain, path length, name constraints, usages and times are as a
/// peer will judge them.
///
/// # Errors
/// What a peer would find.
pub(super) fn prove(
    issuer: (&rcgen::Issuer<'_, SecretKey>, OffsetDateTime),
    above: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    domain: &TrustDomain,
) -> Result<(), String> {
    let trial =
        format!("spiffe://{domain}/ns/meshd/sa/trial").parse::<SpiffeId>().map_err(|e| e.to_string())?;
    let terms = Terms {
        id: &trial,
        dns_names: &[],
        lifetime: Duration::from_secs(60),
        backdate: Duration::from_secs(60),
    };
    let key = SecretKey::generate().map_err(|e| e.to_string())?;
    let leaf = sign(issuer, &key, &terms).map_err(|e| e.to_string())?;
    let chain: Vec<_> = std::iter::once(leaf.certificate).chain(above.iter().cloned()).collect();
    let bundles =
        TrustBundles { roots: [(domain.clone(), roots.to_vec())].into(), ..TrustBundles::default() };
    let algorithms = provider().signature_verification_algorithms;
    let bundles = Arc::new(ArcSwap::from_pointee(bundles));
    let verifier = PeerVerifier::new(domain.clone(), Vec::new(), Duration::ZERO, bundles, algorithms);
    for role in [PeerRole::Client, PeerRole::Server] {
        let believed = verifier.verify(&chain, role, None, SystemTime::now());
        believed.map_err(|e| format!("no peer would believe what it signs for {domain}: {e}"))?;
    }
    Ok(())
}

/// What an authority's own certificate says; whoever signs it may end it sooner.
///
/// # Errors
/// When there is no randomness for its serial number.
pub(super) fn authority(
    name: &str,
    path_length: BasicConstraints,
    life: Duration,
    backdate: Duration,
) -> Result<CertificateParams, CaError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - backdate;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    Ok(params)
}

/// A root's own: it carries the trust domain's SPIFFE ID (X509-SVID section 4.1), and signs itself.
///
/// # Errors
/// When signing fails.
pub(super) fn self_signed(
    name: &str,
    domain: &TrustDomain,
    key: &SecretKey,
    life: Duration,
    backdate: Duration,
) -> Result<rcgen::Certificate, CaError> {
    let failed = |e: rcgen::Error| CaError::Sign { subject: name.to_owned(), what: e.to_string() };
    let mut params = authority(name, BasicConstraints::Unconstrained, life, backdate)?;
    let id = format!("spiffe://{domain}");
    params.subject_alt_names = vec![SanType::URI(id.try_into().map_err(failed)?)];
    params.self_signed(key).map_err(failed)
}
