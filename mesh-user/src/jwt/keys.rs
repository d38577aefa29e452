//! Key sets (RFC 7517) and signatures (RFC 7515, 7518, 8037). A key is made for the algorithms that it fits and for no
//! other, so a token cannot choose what its signature means (RFC 8725 section 3.1). Never holds a private or a shared key.
//!
//! Signatures are verified by aws-lc-rs itself: `jsonwebtoken` reads header and claims once more with rules looser than
//! ours (a claim that appears twice, `crit`), and what is verified must be what was read.

use std::fmt;

use aws_lc_rs::{
    digest::{self, SHA256, SHA256_OUTPUT_LEN},
    signature::{self, EcdsaVerificationAlgorithm, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{json, refusal::Refusal};

/// A longer key set is not read. Large providers publish 15 to 30 KiB, certificates included.
pub const MAX_JWKS_BYTES: usize = 128 << 10;
/// Keys beyond these are skipped: a token without `kid` is tried with all of them.
const MAX_KEYS: usize = 64;

/// Signature algorithms that a token may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::Rs256, &signature::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::Rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::Rs512, &signature::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::Ps256, &signature::RSA_PSS_2048_8192_SHA256),
    (Algorithm::Ps384, &signature::RSA_PSS_2048_8192_SHA384),
    (Algorithm::Ps512, &signature::RSA_PSS_2048_8192_SHA512),
];

impl Algorithm {
    /// From a header's or a key's `alg`, which is case-sensitive.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// Why a text is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The bound is [`MAX_JWKS_BYTES`].
    #[error("the key set is larger than 128 KiB; publish fewer keys, or without certificates")]
    TooLarge,
    /// Also: a member that appears twice, or deep nesting.
    #[error("the key set is not a JSON object with each member once")]
    Json,
    /// RFC 7517 section 5.
    #[error("the key set has no \"keys\" array; a JWK Set looks like {{\"keys\": [...]}}")]
    NoKeys,
}

/// Public keys of one issuer.
#[derive(PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
    skipped: usize,
    fingerprint: [u8; SHA256_OUTPUT_LEN],
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<_> = self.keys.iter().map(|k| k.kid.as_deref().unwrap_or("-")).collect();
        f.debug_struct("KeySet").field("kids", &kids).field("skipped", &self.skipped).finish_non_exhaustive()
    }
}

impl KeySet {
    /// Reads a JWK Set. Keys that cannot verify a signature (unknown kinds, `use: enc`, too short) are skipped and counted.
    ///
    /// # Errors
    /// When the text as a whole is no key set; the caller keeps the one it has.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_JWKS_BYTES {
            return Err(KeySetError::TooLarge);
        }
        let set = json::object(text).ok_or(KeySetError::Json)?;
        let Some(Value::Array(listed)) = set.get("keys") else { return Err(KeySetError::NoKeys) };
        let mut keys: Vec<Key> = Vec::new();
        for key in listed.iter().filter_map(|key| Key::parse(key.as_object()?)) {
            if keys.len() < MAX_KEYS && !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(Self { skipped: listed.len() - keys.len(), fingerprint: fingerprint(&keys), keys })
    }

    /// Keys that can verify.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No token can be verified.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys that were listed and are not used: unknown, not for signatures, too weak, or repeated.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// SHA-256 over all that decides which signatures these keys verify.
    pub(super) fn fingerprint(&self) -> &[u8] {
        &self.fingerprint
    }

    /// Whether one of the keys that may have signed, did. As Envoy: a key that names neither `kid` nor `alg` may sign
    /// any token, and a token without `kid` may be of any key.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Refusal> {
        if self.is_empty() {
            return Err(Refusal::NoValidKeys);
        }
        let mut any = false;
        for key in self.keys.iter().filter(|key| key.may_have_signed(kid, algorithm)) {
            any = true;
            if key.verifies(algorithm, message, signature) {
                return Ok(());
            }
        }
        Err(if any { Refusal::Signature } else { Refusal::NoMatchingKey })
    }
}

/// Each part behind its length, so that two lists of keys never read the same.
fn fingerprint(keys: &[Key]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut context = digest::Context::new(&SHA256);
    let mut put = |part: &[u8]| {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    };
    for key in keys {
        put(key.kid.as_deref().unwrap_or_default().as_bytes());
        put(&key.alg.map(|alg| alg as u8).map_or_else(Vec::new, |alg| vec![alg]));
        put(&key.public.len().to_be_bytes());
        for (algorithm, public) in &key.public {
            put(&[*algorithm as u8]);
            put(public.as_ref());
        }
    }
    let mut fingerprint = [0; SHA256_OUTPUT_LEN];
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

struct Key {
    kid: Option<String>,
    /// What the key says of itself.
    alg: Option<Algorithm>,
    /// What it can verify; never empty.
    public: Vec<(Algorithm, ParsedPublicKey)>,
}

impl Eq for Key {}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let public = |key: &Self| key.public.first().map(|(a, k)| (*a, k.as_ref().to_vec()));
        self.kid == other.kid && self.alg == other.alg && public(self) == public(other)
    }
}

impl Key {
    /// None: it is no key for signatures that we know and trust.
    fn parse(jwk: &Map<String, Value>) -> Option<Self> {
        if !for_signatures(jwk) {
            return None;
        }
        let alg = match jwk.get("alg") {
            None => None,
            Some(alg) => Some(Algorithm::parse(alg.as_str()?)?),
        };
        let kid = match jwk.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str()?.to_owned()).filter(|kid| !kid.is_empty()),
        };
        let public = match jwk.get("kty")?.as_str()? {
            "RSA" => rsa(jwk, alg)?,
            "EC" => vec![elliptic_curve(jwk)?],
            "OKP" => vec![edwards(jwk)?],
            _ => return None,
        };
        // An `alg` that the key cannot do is a mistake that could be read two ways.
        let fits = alg.is_none_or(|alg| public.iter().any(|(own, _)| *own == alg));
        (fits && !public.is_empty()).then_some(Self { kid, alg, public })
    }

    fn may_have_signed(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let same_kid = match (&self.kid, kid) {
            (Some(own), Some(kid)) => own == kid,
            _ => true,
        };
        same_kid && self.alg.is_none_or(|alg| alg == algorithm)
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let own = self.public.iter().find(|(own, _)| *own == algorithm);
        own.is_some_and(|(_, key)| key.verify_sig(message, signature).is_ok())
    }
}

/// RFC 7517 sections 4.2 and 4.3.
fn for_signatures(jwk: &Map<String, Value>) -> bool {
    let used = jwk.get("use").is_none_or(|u| u == "sig");
    let operations =
        jwk.get("key_ops").is_none_or(|o| o.as_array().is_some_and(|o| o.iter().any(|o| o == "verify")));
    used && operations
}

fn bytes(jwk: &Map<String, Value>, member: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jwk.get(member)?.as_str()?).ok()
}

/// RFC 7518 section 6.3; 2048 bits at least (section 3.3).
fn rsa(jwk: &Map<String, Value>, alg: Option<Algorithm>) -> Option<Vec<(Algorithm, ParsedPublicKey)>> {
    let (n, e) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
    let start = n.iter().position(|byte| *byte != 0)?;
    let n = &n[start..];
    let bits = n.len() * 8 - usize::try_from(n[0].leading_zeros()).ok()?;
    if !(2048..=8192).contains(&bits) {
        return None;
    }
    let components = RsaPublicKeyComponents { n, e: e.as_slice() };
    let wanted = RSA.into_iter().filter(|(own, _)| alg.is_none_or(|alg| alg == *own));
    wanted.map(|(own, parameters)| Some((own, components.to_parsed_public_key(parameters).ok()?))).collect()
}

/// RFC 7518 section 6.2: coordinates have the full size of the field; the point is checked to be on the curve.
fn elliptic_curve(jwk: &Map<String, Value>) -> Option<(Algorithm, ParsedPublicKey)> {
    let (algorithm, parameters, size): (_, &'static EcdsaVerificationAlgorithm, _) =
        match jwk.get("crv")?.as_str()? {
            "P-256" => (Algorithm::Es256, &signature::ECDSA_P256_SHA256_FIXED, 32),
            "P-384" => (Algorithm::Es384, &signature::ECDSA_P384_SHA384_FIXED, 48),
            "P-521" => (Algorithm::Es512, &signature::ECDSA_P521_SHA512_FIXED, 66),
            _ => return None,
        };
    let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
    if x.len() != size || y.len() != size {
        return None;
    }
    let point = [&[4][..], &x, &y].concat();
    Some((algorithm, ParsedPublicKey::new(parameters, point).ok()?))
}

/// RFC 8037 section 2.
fn edwards(jwk: &Map<String, Value>) -> Option<(Algorithm, ParsedPublicKey)> {
    let x = bytes(jwk, "x")?;
    if jwk.get("crv")? != "Ed25519" || x.len() != 32 {
        return None;
    }
    Some((Algorithm::EdDsa, ParsedPublicKey::new(&signature::ED25519, x).ok()?))
}
