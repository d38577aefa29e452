//! The request that `policy explain` is asked about, as a JSON body: it may hold a token, which belongs in no URL. Nothing of
//! it is logged, and its `Debug` shows neither token, claims nor headers.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::source::{ExplainError, ExplainQuery};

/// `POST /v1/policy/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainBody {
    /// As in the query of `GET`.
    pub from: String,
    /// As in the query of `GET`.
    pub to: String,
    /// None: the connection is asked about.
    #[serde(default)]
    pub request: Option<RequestQuery>,
}

/// A request that nobody made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestQuery {
    /// Such as `GET`.
    pub method: String,
    /// As it would be sent, with its query; `*`, or empty for `CONNECT`.
    pub path: String,
    /// `Host` or `:authority`; none: the address that is connected to.
    pub host: Option<String>,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// A token, put where the workload's rules look for one.
    pub token: Option<String>,
    /// Claims of a token that counts as believed, instead of a token.
    pub claims: Option<Map<String, Value>>,
}

impl Default for RequestQuery {
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            token: None,
            claims: None,
        }
    }
}

impl fmt::Debug for RequestQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQuery")
            .field("method", &self.method)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl ExplainBody {
    /// What it asks.
    ///
    /// # Errors
    /// When one of its parts is nothing that could be sent.
    pub fn parse(self) -> Result<ExplainQuery, ExplainError> {
        let mut query = ExplainQuery::parse(&self.from, &self.to)?;
        if let Some(request) = &self.request {
            request.check()?;
        }
        query.request = self.request;
        Ok(query)
    }
}

impl RequestQuery {
    fn check(&self) -> Result<(), ExplainError> {
        let bad = |what: &str| Err(ExplainError::BadRequest(what.to_owned()));
        if http::Method::from_bytes(self.method.as_bytes()).is_err() {
            return bad("--method is no HTTP method");
        }
        if self.token.is_some() && self.claims.is_some() {
            return bad(
                "--token and --claims exclude each other: claims are those of a token that was believed",
            );
        }
        for (name, value) in &self.headers {
            let sendable = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && http::HeaderValue::from_str(value).is_ok();
            if !sendable {
                return bad("--header is no \"name: value\" that can be sent");
            }
        }
        let sendable = |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        if self.token.as_ref().is_some_and(|token| !sendable(token)) {
            return bad("--token is no text without spaces");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(request: &Value) -> Result<ExplainQuery, ExplainError> {
        let body = serde_json::json!({ "from": "a/b", "to": "a/c:1", "request": request });
        serde_json::from_value::<ExplainBody>(body).unwrap().parse()
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for bad in [
            serde_json::json!({ "method": "G T" }),
            serde_json::json!({ "headers": [["a b", "c"]] }),
            serde_json::json!({ "headers": [["a", "c\r\nd: e"]] }),
            serde_json::json!({ "token": "" }),
            serde_json::json!({ "token": "a b" }),
            serde_json::json!({ "token": "a", "claims": {} }),
        ] {
            assert!(matches!(body(&bad), Err(ExplainError::BadRequest(_))), "{bad}");
        }
        assert!(body(&serde_json::json!({})).unwrap().request.is_some());
    }

    #[test]
    fn no_secret_is_in_the_debug_form() {
        let query = body(
            &serde_json::json!({ "token": "s3cret", "headers": [["cookie", "s3cret"]], "path": "/?k=s3cret" }),
        );
        assert!(!format!("{:?}", query.unwrap()).contains("s3cret"));
    }
}
