//! Requests with tokens that nobody signed, and key sets. The first line says what the others are: `jwks`, a key set;
//! `head`, path and then headers `name: value`; else header, payload and signature before they are encoded, a line each.
#![no_main]

use std::sync::{Arc, LazyLock};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::{HeaderMap, header::HeaderName};
use libfuzzer_sys::fuzz_target;
use mesh_user::{
    jwt::{KeyLocation, KeySet, Keys, MAX_JWKS_BYTES, Outcome, RequestHead, authenticate},
    policy::{PolicySet, RequestAuthentication},
};

/// RFC 8037, appendix A.2; it signs nothing that is a token here.
const RULES: &str = r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: { name: a }
spec:
  jwtRules:
    - issuer: https://issuer.example
      jwks: '{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
      audiences: [a]
    - issuer: https://other.example
      jwksUri: https://other.example/jwks
      fromHeaders: [{ name: x-token, prefix: "T " }, { name: x-other }]
      fromParams: [t]
      fromCookies: [s]
      outputPayloadToHeader: x-payload
"#;

struct NoKeys;

impl Keys for NoKeys {
    fn keys(&self, _: &KeyLocation) -> Option<Arc<KeySet>> {
        None
    }

    fn unknown_key(&self, _: &KeyLocation) {}
}

fuzz_target!(|data: &[u8]| {
    let (kind, rest) = line(data);
    match kind {
        b"jwks" => key_set(rest),
        b"head" => head(rest),
        _ => {
            let (header, rest) = line(rest);
            let (payload, signature) = line(rest);
            let token = [header, payload, signature].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            let mut headers = HeaderMap::new();
            headers.insert("authorization", format!("Bearer {token}").parse().expect("base64url"));
            refused_or_nobody("/", &headers);
        }
    }
});

fn line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

fn key_set(text: &[u8]) {
    let parsed = KeySet::parse(text);
    assert_eq!(parsed, KeySet::parse(text), "the same text has two answers");
    if let Ok(set) = parsed {
        assert!(text.len() <= MAX_JWKS_BYTES && set.len() + set.skipped() <= text.len());
    }
}

fn head(rest: &[u8]) {
    let (path, mut rest) = line(rest);
    let Ok(path) = std::str::from_utf8(path) else { return };
    let mut headers = HeaderMap::new();
    while !rest.is_empty() {
        let (header, more) = line(rest);
        rest = more;
        let colon = header.iter().position(|byte| *byte == b':').unwrap_or(header.len());
        let name = HeaderName::from_bytes(&header[..colon]);
        let value = header.get(colon + 1..).unwrap_or_default().trim_ascii().try_into();
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    refused_or_nobody(path, &headers);
}

fn refused_or_nobody(path: &str, headers: &HeaderMap) {
    static RULE: LazyLock<RequestAuthentication> = LazyLock::new(|| {
        let set = PolicySet::parse([("rules.yaml", RULES)]).expect("rules");
        set.request_authentications[0].clone()
    });
    let head = RequestHead { method: "GET", scheme: "http", authority: "a", path_and_query: path, headers };
    let decision = authenticate(&RULE.rules, &head, &NoKeys, 1_800_000_000);
    assert!(!matches!(decision.outcome, Outcome::Authenticated(_)), "a token that nobody signed is believed");
    let mut seen = headers.clone();
    decision.edits.apply(&mut seen);
    assert!(!seen.contains_key("x-payload"), "what a client says in a header of meshd's own arrives");
}
