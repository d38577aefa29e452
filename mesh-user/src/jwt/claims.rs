//! Claims as the rest sees them: normalized for rules on `request.auth.claims`, and as text for headers. Never makes header
//! text out of what could end a header.
//!
//! Source: envoyproxy/envoy `source/extensions/filters/http/jwt_authn/authenticator.cc`, `addJWTClaimToHeader` and
//! `setPayloadMetadata`.

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use serde_json::{Map, Value};

/// A string of one of these claims becomes the list of its words; one without a word stays as it is.
pub(super) fn normalize(mut claims: Map<String, Value>, space_delimited: &[String]) -> Map<String, Value> {
    for name in space_delimited {
        if let Some(value) = claims.get_mut(name)
            && let Value::String(text) = value
        {
            let words: Vec<Value> =
                text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
            if !words.is_empty() {
                *value = Value::Array(words);
            }
        }
    }
    claims
}

/// The claim at a path of names as header text; none: it is not there, empty, null, or no text that a header can carry.
pub(super) fn header_value(claims: &Map<String, Value>, path: &[String]) -> Option<HeaderValue> {
    let (last, outer) = path.split_last()?;
    let mut object = claims;
    for name in outer {
        object = object.get(name)?.as_object()?;
    }
    let text = match object.get(last)? {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number_text(number),
        value @ (Value::Array(_) | Value::Object(_)) => STANDARD.encode(value.to_string()),
    };
    if text.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

/// Envoy writes a whole number that fits 64 bits as such, any other with six decimals. Envoy reads all numbers as
/// doubles; here a whole number keeps all its digits.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the range is checked"
)]
fn number_text(number: &serde_json::Number) -> String {
    if let Some(whole) = number.as_u64() {
        return whole.to_string();
    }
    let value = number.as_f64().unwrap_or_default();
    if value >= 0.0 && value < u64::MAX as f64 && value.fract() == 0.0 {
        return (value as u64).to_string();
    }
    format!("{value:.6}")
}
