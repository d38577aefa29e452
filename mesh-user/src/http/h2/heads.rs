//! Heads of HTTP/2: what the gate is shown, and the request that is forwarded. Most of RFC 9113 section 8 is held by the
//! `h2` crate before a request comes here; this refuses what it lets through and two readers could see differently.
//!
//! A fragment in `:path` is cut off by the `http` crate before anyone sees it.

use http::{
    HeaderMap, HeaderName, Method, Request, Uri,
    header::{CONTENT_LENGTH, HOST},
    request::Parts,
    uri::{Authority, Scheme},
};

use super::super::{
    error::Refusal,
    gate::{Edits, RequestHead, Version, is_target, looks_like},
    h1::is_host,
    settings::{Settings, Underscores},
};

/// A request that has one reading.
#[derive(Debug)]
pub(super) struct Head {
    parts: Parts,
    authority: Authority,
}

impl Head {
    /// Checks a request that `h2` accepted.
    pub(super) fn new(mut parts: Parts, settings: &Settings) -> Result<Self, Refusal> {
        check_fields(&mut parts.headers, settings)?;
        let connect = parts.method == Method::CONNECT;
        // Extended CONNECT (RFC 8441) is not offered.
        if parts.extensions.get::<h2::ext::Protocol>().is_some() {
            return Err(Refusal::Target);
        }
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        let good = match path.as_bytes() {
            [] => connect,
            b"*" => parts.method == Method::OPTIONS,
            path => !connect && path[0] == b'/' && is_target(path),
        };
        if !good {
            return Err(Refusal::Target);
        }
        let authority = authority(&parts)?;
        check_length(&parts.headers, connect)?;
        Ok(Self { parts, authority })
    }

    /// For the gate.
    pub(super) fn view(&self) -> RequestHead<'_> {
        let authority = self.authority.as_str();
        let path = self.parts.uri.path_and_query().map_or("", |path| path.as_str());
        let target = if path.is_empty() { authority } else { path };
        RequestHead::new(self.parts.method.as_str(), target, path, authority, Version::Http2)
            .with_map(&self.parts.headers)
    }

    /// The request as decided.
    pub(super) fn into_request(self, edits: &Edits) -> Result<Request<()>, Refusal> {
        let Self { parts, authority } = self;
        let mut headers = parts.headers;
        let dropped: Vec<HeaderName> =
            headers.keys().filter(|name| edits.drops(name.as_str())).cloned().collect();
        for name in dropped {
            headers.remove(name);
        }
        // Without :authority `Host` takes its place, so that the application finds the host where it looks for it.
        if parts.uri.authority().is_none() {
            headers.remove(HOST);
        }
        for (name, value) in edits.added() {
            headers.append(name, value.clone());
        }
        let mut uri = parts.uri.into_parts();
        uri.authority = Some(authority);
        if let Some(path) = uri.path_and_query.as_mut() {
            if let Some(edit) = edits.path.as_ref().filter(|_| path.as_str().starts_with('/')) {
                *path = edit.as_str().parse().map_err(|_| Refusal::Target)?;
            }
            uri.scheme.get_or_insert(Scheme::HTTP);
        }
        let uri = Uri::from_parts(uri).map_err(|_| Refusal::Target)?;
        let mut request = Request::new(());
        *request.method_mut() = parts.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        *request.version_mut() = http::Version::HTTP_2;
        Ok(request)
    }
}

/// The host of the request, which `:authority` and `Host` may both name, alike.
fn authority(parts: &Parts) -> Result<Authority, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (host, None) => host.map(http::HeaderValue::as_bytes),
        _ => return Err(Refusal::Host),
    };
    let found = match (parts.uri.authority(), host) {
        (Some(own), Some(host)) if !own.as_str().as_bytes().eq_ignore_ascii_case(host) => None,
        (Some(own), _) => Some(own.clone()),
        (None, Some(host)) => Authority::try_from(host).ok(),
        (None, None) => None,
    };
    found.filter(|found| is_host(found.as_str().as_bytes())).ok_or(Refusal::Host)
}

fn check_length(headers: &HeaderMap, connect: bool) -> Result<(), Refusal> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if !connect && length.as_bytes().iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(Refusal::Framing),
    }
}

fn check_fields(headers: &mut HeaderMap, settings: &Settings) -> Result<(), Refusal> {
    if headers.len() > settings.max_headers {
        return Err(Refusal::TooLarge);
    }
    // RFC 9113 section 8.2.1: no space around a value.
    let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if headers.values().any(|value| space(value.as_bytes().first()) || space(value.as_bytes().last())) {
        return Err(Refusal::Malformed);
    }
    let underscored: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in underscored {
        match settings.underscores {
            Underscores::Refuse => return Err(Refusal::Underscore),
            Underscores::Drop => _ = headers.remove(name),
            Underscores::Allow
                if ["content-length", "transfer-encoding"]
                    .iter()
                    .any(|own| looks_like(name.as_str(), own)) =>
            {
                return Err(Refusal::Underscore);
            }
            Underscores::Allow => {}
        }
    }
    Ok(())
}

/// Adds what the gate gives to the response.
pub(super) fn add_to_response(headers: &mut HeaderMap, edits: &Edits) {
    let edits = edits.of_response(|name| headers.contains_key(name));
    for name in edits.dropped {
        headers.remove(name);
    }
    for (name, value) in edits.added {
        headers.append(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::{super::super::gate::PathEdit, *};

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// Method, URI, fields, and then authority and path.
    type Case = (&'static str, &'static str, Fields, Result<(&'static str, &'static str), Refusal>);
    type Fields = &'static [(&'static str, &'static str)];

    #[test]
    fn a_head_has_one_reading_or_is_refused() {
        let uri = "http://a/b?c";
        let cases: [Case; 17] = [
            ("GET", uri, &[], Ok(("a", "/b?c"))),
            ("GET", uri, &[("host", "A")], Ok(("a", "/b?c"))),
            ("GET", "/b", &[("host", "a:1")], Ok(("a:1", "/b"))),
            ("OPTIONS", "*", &[("host", "a")], Ok(("a", "*"))),
            ("GET", "*", &[("host", "a")], Err(Refusal::Target)),
            ("CONNECT", "a:1", &[], Ok(("a:1", ""))),
            ("CONNECT", "a:1", &[("content-length", "1")], Err(Refusal::Framing)),
            ("GET", uri, &[("host", "b")], Err(Refusal::Host)),
            ("GET", uri, &[("host", "a"), ("host", "a")], Err(Refusal::Host)),
            ("GET", "/b", &[], Err(Refusal::Host)),
            ("GET", "/b", &[("host", "u@a")], Err(Refusal::Host)),
            ("GET", "http://u@a/", &[], Err(Refusal::Host)),
            ("GET", uri, &[("content-length", "1"), ("content-length", "1")], Err(Refusal::Framing)),
            ("GET", uri, &[("content-length", "+1")], Err(Refusal::Framing)),
            ("GET", uri, &[("x", " 1")], Err(Refusal::Malformed)),
            ("GET", uri, &[("content_length", "1")], Err(Refusal::Underscore)),
            ("GET", uri, &[("x_y", "1")], Ok(("a", "/b?c"))),
        ];
        for (method, uri, fields, expected) in cases {
            let head = Head::new(parts(method, uri, fields), &Settings::default());
            let found =
                head.as_ref().map(|head| (head.view().authority, head.view().path)).map_err(|error| *error);
            assert_eq!(found, expected, "{method} {uri} {fields:?}");
        }
    }

    #[test]
    fn the_request_carries_what_was_decided() {
        let name = HeaderName::from_static;
        let edits = Edits {
            path: PathEdit::new("/new?q"),
            remove: vec![name("x-secret")],
            set: vec![(name("x-user"), HeaderValue::from_static("u"))],
            ..Edits::default()
        };
        let fields =
            [("host", "a"), ("x-secret", "1"), ("x_user", "forged"), ("x-user", "forged"), ("b", "2")];
        let head = Head::new(parts("GET", "/old", &fields), &Settings::default()).unwrap();
        let request = head.into_request(&edits).unwrap();
        assert_eq!(request.uri(), "http://a/new?q");
        let mut found: Vec<_> =
            request.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        found.sort_unstable();
        assert_eq!(found, [("b", "2"), ("x-user", "u")]);
    }
}
