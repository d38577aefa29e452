//! A check as an HTTP request of its own, and what its response means (Envoy `ext_authz_http_impl.cc`, with the settings
//! that Istio's pilot makes in `extauthz.go`). Opens no connection.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;

use super::check::{Answer, Changes, Check, Denied, NOT_TOLD, Put};
use crate::config::{HeaderPattern, HttpAuthorizer};

/// Where an authorizer lists what it wants taken out of the request.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// What of an HTTP authorizer's entry its checks depend on.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    path_prefix: String,
    told: Vec<HeaderPattern>,
    fixed: Vec<(HeaderName, HeaderValue)>,
    to_application: Vec<HeaderPattern>,
    to_denied: Vec<HeaderPattern>,
    to_allowed: Vec<HeaderPattern>,
}

impl From<&HttpAuthorizer> for Settings {
    fn from(http: &HttpAuthorizer) -> Self {
        let told = if http.include_request_headers_in_check.is_empty() {
            &http.include_headers_in_check
        } else {
            &http.include_request_headers_in_check
        };
        let fixed = http.include_additional_headers_in_check.iter();
        Self {
            path_prefix: http.path_prefix.clone(),
            told: told.clone(),
            fixed: fixed.filter_map(|(name, value)| name.header().zip(value.header())).collect(),
            to_application: http.headers_to_upstream_on_allow.clone(),
            to_denied: http.headers_to_downstream_on_deny.clone(),
            to_allowed: http.headers_to_downstream_on_allow.clone(),
        }
    }
}

fn any(patterns: &[HeaderPattern], name: &HeaderName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name.as_str()))
}

impl Settings {
    /// The request for `check`.
    ///
    /// # Errors
    /// What cannot be asked over HTTP.
    pub(super) fn request(&self, check: &Check) -> Result<Request<Full<Bytes>>, &'static str> {
        let http = check.http.as_ref().ok_or("an HTTP authorizer cannot be asked about a connection")?;
        if http.path.is_empty() || http.method == "CONNECT" {
            return Err("an HTTP authorizer cannot be asked about CONNECT");
        }
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() =
            Method::from_bytes(http.method.as_bytes()).map_err(|_| "the method is no token")?;
        let target = format!("{}{}", self.path_prefix, http.path);
        *request.uri_mut() = Uri::try_from(target).map_err(|_| "the path cannot be asked about")?;
        let headers = request.headers_mut();
        for (name, value) in http.merged() {
            let told = *name == header::AUTHORIZATION || any(&self.told, name);
            if told && !NOT_TOLD.contains(&name.as_str()) {
                let value = HeaderValue::from_bytes(&value).map_err(|_| "a header cannot be told")?;
                headers.insert(name, value);
            }
        }
        let host = HeaderValue::from_str(&http.authority).map_err(|_| "the host cannot be told")?;
        headers.insert(header::HOST, host);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        for (name, value) in &self.fixed {
            headers.insert(name, value.clone());
        }
        Ok(request)
    }

    /// What a response means: 200 allows, a 5xx is a failure, all others deny.
    pub(super) fn answer(&self, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Answer {
        if status.is_server_error() {
            return Answer::Failed(format!("it answers {}", status.as_u16()), None);
        }
        if status == StatusCode::OK {
            return Answer::Allow(self.changes(headers));
        }
        if !(200..600).contains(&status.as_u16()) {
            return Answer::Invalid(format!("{} is no status for a client", status.as_u16()));
        }
        let always = [header::WWW_AUTHENTICATE, header::LOCATION];
        let shown = |name: &HeaderName| {
            *name != TO_REMOVE
                && *name != header::HOST
                && (self.to_denied.is_empty() || always.contains(name) || any(&self.to_denied, name))
        };
        let shown = headers.iter().filter(|(name, _)| shown(name));
        Answer::Deny(Denied { status, headers: shown.map(|(n, v)| (n.clone(), v.clone())).collect(), body })
    }

    fn changes(&self, headers: &HeaderMap) -> Changes {
        let listed =
            headers.get_all(TO_REMOVE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        let mut changes = Changes {
            // A name that no header can have is on no request.
            remove: listed.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect(),
            ..Changes::default()
        };
        let told = |name: &HeaderName| *name != TO_REMOVE && !NOT_TOLD.contains(&name.as_str());
        for name in headers.keys().filter(|name| told(name)) {
            let values = headers.get_all(name);
            if any(&self.to_application, name)
                && let Some(last) = values.iter().next_back()
            {
                let mut value = last.clone();
                value.set_sensitive(true);
                changes.request.push((name.clone(), value, Put::Replace));
            }
            if any(&self.to_allowed, name) {
                changes.response.extend(values.iter().map(|value| (name.clone(), value.clone(), Put::Add)));
            }
        }
        changes
    }
}
