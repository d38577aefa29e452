//! Keys and tokens for tests, made by aws-lc-rs; keys are made once per process.

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A key that signs.
pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str, usize),
    Ed(Ed25519KeyPair),
}

pub(crate) static RSA: LazyLock<Signer> =
    LazyLock::new(|| Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));
pub(crate) static OTHER_RSA: LazyLock<Signer> =
    LazyLock::new(|| Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));
pub(crate) static P256: LazyLock<Signer> =
    LazyLock::new(|| ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32));
pub(crate) static P384: LazyLock<Signer> =
    LazyLock::new(|| ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48));
pub(crate) static P521: LazyLock<Signer> =
    LazyLock::new(|| ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521", 66));
pub(crate) static ED: LazyLock<Signer> = LazyLock::new(|| Signer::Ed(Ed25519KeyPair::generate().unwrap()));

fn ec(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str, size: usize) -> Signer {
    Signer::Ec(EcdsaKeyPair::generate(algorithm).unwrap(), curve, size)
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Content octets of the first two INTEGERs of a PKCS #1 `RSAPublicKey`.
fn modulus_and_exponent(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (_, sequence) = der_value(der);
    let (rest, n) = der_value(sequence);
    let (_, e) = der_value(rest);
    (n[usize::from(n[0] == 0)..].to_vec(), e.to_vec())
}

/// What is behind an element, and its content.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match der[1] {
        short @ ..0x80 => (usize::from(short), 2),
        long => {
            let count = usize::from(long & 0x7f);
            (der[2..2 + count].iter().fold(0, |sum, b| sum << 8 | usize::from(*b)), 2 + count)
        }
    };
    (&der[start + length..], &der[start..start + length])
}

impl Signer {
    /// The public key; `more` members replace its own.
    pub(crate) fn jwk(&self, more: &Value) -> Value {
        let mut jwk = match self {
            Self::Rsa(key) => {
                let (n, e) = modulus_and_exponent(key.public_key().as_ref());
                json!({"kty": "RSA", "n": encode(n), "e": encode(e)})
            }
            Self::Ec(key, curve, size) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": curve, "x": encode(&point[1..=*size]), "y": encode(&point[size + 1..])})
            }
            Self::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key())}),
        };
        for (name, value) in more.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    pub(crate) fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(key) => {
                let encoding: &dyn RsaEncoding = match alg {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            Self::Ec(key, ..) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token of texts as they are, however wrong; `alg` says how it is signed.
    pub(crate) fn token_of(&self, alg: &str, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(payload));
        format!("{signed}.{}", encode(self.sign(alg, signed.as_bytes())))
    }

    pub(crate) fn token(&self, alg: &str, kid: Option<&str>, claims: &Value) -> String {
        let mut header = json!({"alg": alg, "typ": "JWT"});
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        self.token_of(alg, &header.to_string(), &claims.to_string())
    }
}

pub(crate) fn jwks(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}
