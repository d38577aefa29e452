//! Issuers with keys made for the run, and tokens of theirs: good ones, and each way in which one is not.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};

/// `iss` of both.
pub(super) const ISSUERS: [&str; 2] = ["https://one.example", "two"];
/// 2100.
const LATER: u64 = 4_102_444_800;

/// Every token that a request may bring.
pub(super) struct Tokens {
    keys: Vec<(&'static str, Key)>,
    all: Vec<String>,
}

struct Key(EcdsaKeyPair);

impl Key {
    fn new() -> anyhow::Result<Self> {
        let made = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        made.map(Self).map_err(|_| anyhow::anyhow!("no key can be made"))
    }

    fn token(&self, claims: &Value) -> anyhow::Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "kid": "k" })), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("nothing can be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl Tokens {
    pub(super) fn new() -> anyhow::Result<Self> {
        let keys = ISSUERS
            .into_iter()
            .map(|issuer| Ok((issuer, Key::new()?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut all = vec!["not.a.token".to_owned(), "none".to_owned()];
        for (issuer, key) in &keys {
            let claims = |subject: &str, more: Value| {
                let mut claims = json!({ "iss": issuer, "sub": subject, "exp": LATER });
                for (name, value) in more.as_object().into_iter().flatten() {
                    claims[name] = value.clone();
                }
                claims
            };
            for claims in [
                claims("alice", json!({ "aud": "shop", "azp": "read", "scope": "read write" })),
                claims("alice", json!({ "aud": ["x", "read"], "groups": ["write", "x", 1] })),
                claims(
                    "bob",
                    json!({ "aud": "http://shop.example", "realm": { "roles": ["read"], "scope": "read write" } }),
                ),
                claims("bob", json!({ "groups": "read", "realm": { "roles": "xyz" }, "azp": ["read"] })),
                claims(
                    "a/b",
                    json!({ "aud": ["shop"], "scope": ["read", "write"], "groups": true, "realm": "z" }),
                ),
                claims("", json!({ "scope": "", "groups": [] })),
                json!({ "iss": issuer, "exp": LATER, "groups": { "read": "x" } }),
                json!({ "iss": issuer, "sub": 7, "exp": LATER }),
                json!({ "iss": issuer, "sub": "alice" }),
                json!({ "iss": issuer, "sub": "alice", "exp": 1_000_000_000 }),
                json!({ "iss": issuer, "sub": "alice", "nbf": LATER }),
                json!({ "iss": "three", "sub": "alice", "exp": LATER }),
            ] {
                all.push(key.token(&claims)?);
            }
            let stranger = Key::new()?.token(&claims("alice", json!({})))?;
            all.push(stranger);
        }
        Ok(Self { keys, all })
    }

    /// The key set of an issuer, as text.
    pub(super) fn jwks(&self, issuer: &str) -> String {
        let keys = self.keys.iter().filter(|(own, _)| *own == issuer).map(|(_, key)| {
            let point = key.0.public_key().as_ref();
            let part = |at: usize| URL_SAFE_NO_PAD.encode(&point[at..at + 32]);
            json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "k", "x": part(1), "y": part(33) })
        });
        json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
    }

    pub(super) fn any(&self, by: &mut rand::rngs::StdRng) -> &str {
        self.all.choose(by).map_or("", String::as_str)
    }
}
