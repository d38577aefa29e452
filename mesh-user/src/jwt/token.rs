//! A token's text -> its parts, strictly: compact serialization only (RFC 7515 section 7.1), base64url without padding
//! or loose bits, JSON without repeated members, claims of their registered types. Nothing is believed yet.
//! Never follows `jku`, `x5u`, `jwk` or `x5c`: keys come from the rule alone (RFC 8725 section 3.10).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{
    json,
    keys::{Algorithm, KeySet},
    refusal::Refusal,
    verified::{Digest, VerifiedSignatures},
};

/// A longer token is refused unread; HTTP servers bound a whole head to 8 to 64 KiB.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// A token that is well formed. Has no `Debug`: whoever reads a token can use it.
pub(super) struct Token {
    text: String,
    /// Where the payload starts and ends in the text.
    payload: (usize, usize),
    algorithm: Algorithm,
    kid: Option<String>,
    /// The header's `typ`; empty where it is no text.
    media_type: Option<String>,
    signature: Vec<u8>,
    pub(super) issuer: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) audiences: Vec<String>,
    /// Unix seconds.
    not_before: Option<u64>,
    /// Unix seconds.
    expires: Option<u64>,
    pub(super) claims: Map<String, Value>,
}

impl Token {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::TooLarge);
        }
        let parts: Vec<&str> = text.splitn(4, '.').collect();
        let [header, payload, signature] = parts[..] else { return Err(Refusal::Form) };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(Refusal::Form);
        }
        let decode = |part: &str, refusal| URL_SAFE_NO_PAD.decode(part).map_err(|_| refusal);
        let decoded = decode(header, Refusal::HeaderEncoding)?;
        let header_members = json::object(&decoded).ok_or(Refusal::HeaderJson)?;
        let (algorithm, kid) = read_header(&header_members)?;
        let media_type = header_members.get("typ").map(|typ| typ.as_str().unwrap_or_default().to_owned());
        let decoded = decode(payload, Refusal::PayloadEncoding)?;
        let claims = json::object(&decoded).ok_or(Refusal::PayloadJson)?;
        string(&claims, "jti", Refusal::Jti)?;
        let issuer = string(&claims, "iss", Refusal::Iss)?;
        let subject = string(&claims, "sub", Refusal::Sub)?;
        seconds(&claims, "iat", Refusal::Iat, Refusal::IatRange)?;
        let not_before = seconds(&claims, "nbf", Refusal::Nbf, Refusal::NbfRange)?;
        let expires = seconds(&claims, "exp", Refusal::Exp, Refusal::ExpRange)?;
        let start = header.len() + 1;
        Ok(Self {
            text: text.to_owned(),
            payload: (start, start + payload.len()),
            algorithm,
            kid,
            media_type,
            signature: decode(signature, Refusal::SignatureEncoding)?,
            issuer,
            subject,
            audiences: audiences(&claims)?,
            not_before,
            expires,
            claims,
        })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub(super) fn media_type(&self) -> Option<&str> {
        self.media_type.as_deref()
    }

    pub(super) fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// The claims as they were sent, base64url.
    pub(super) fn payload(&self) -> &str {
        self.text.get(self.payload.0..self.payload.1).unwrap_or_default()
    }

    /// `now` and `skew` in seconds.
    pub(super) fn check_time(&self, now: u64, skew: u64) -> Result<(), Refusal> {
        if self.not_before.is_some_and(|start| now.saturating_add(skew) < start) {
            return Err(Refusal::NotYetValid);
        }
        // Envoy takes `exp: 0` for no expiry; here it is a time that is past.
        if self.expires.is_some_and(|end| now > end.saturating_add(skew)) {
            return Err(Refusal::Expired);
        }
        Ok(())
    }

    /// `verified` spares the work for a signature that these keys have verified before.
    pub(super) fn check_signature(
        &self,
        keys: &KeySet,
        verified: Option<&VerifiedSignatures>,
    ) -> Result<(), Refusal> {
        let Some(verified) = verified else { return self.verify(keys) };
        let digest = Digest::of(keys, &self.text);
        if !verified.knows(&digest) {
            self.verify(keys)?;
            verified.remember(digest);
        }
        Ok(())
    }

    fn verify(&self, keys: &KeySet) -> Result<(), Refusal> {
        let signed = self.text.get(..self.payload.1).unwrap_or_default();
        keys.verify(self.kid.as_deref(), self.algorithm, signed.as_bytes(), &self.signature)
    }
}

/// RFC 7515 section 4.1. An unknown member is ignored, unless `crit` names it: then the token is refused, and as no
/// extension is known here, any `crit` does that.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), Refusal> {
    let alg = header.get("alg").and_then(Value::as_str).ok_or(Refusal::Alg)?;
    let algorithm = Algorithm::parse(alg).ok_or(Refusal::UnsupportedAlg)?;
    if header.contains_key("crit") {
        return Err(Refusal::Crit);
    }
    // An empty one counts as none, as in Envoy.
    let kid = string(header, "kid", Refusal::Kid)?.filter(|kid| !kid.is_empty());
    Ok((algorithm, kid))
}

fn string(members: &Map<String, Value>, name: &str, refusal: Refusal) -> Result<Option<String>, Refusal> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(refusal),
    }
}

/// A `NumericDate` (RFC 7519 section 2); fractions are cut off. As Envoy, which reads numbers as doubles, takes it.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the range is checked first"
)]
fn seconds(
    claims: &Map<String, Value>,
    name: &str,
    wrong: Refusal,
    out_of_range: Refusal,
) -> Result<Option<u64>, Refusal> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let number = value.as_f64().ok_or(wrong)?;
    if !(0.0..u64::MAX as f64).contains(&number) {
        return Err(out_of_range);
    }
    Ok(Some(value.as_u64().unwrap_or(number as u64)))
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => {
            let texts = many.iter().map(|aud| aud.as_str().map(str::to_owned).ok_or(Refusal::Aud));
            texts.collect()
        }
        Some(_) => Err(Refusal::Aud),
    }
}
