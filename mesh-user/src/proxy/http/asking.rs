//! Puts requests and connections before the external authorizers that CUSTOM rules name, one after the other, and does to
//! a request what they want. Lets nothing pass that a missing, failing or contradictory authorizer has not allowed.

use std::{io, net::IpAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::authorizer::Road;
use crate::{
    capture::WorkloadNet,
    ext_authz::{Changes, Check, Denied, HttpCheck, Outcome, Party, Put},
    http::{Denial, Edits, PathEdit, RequestHead, ResponsePut},
    jwt::Headers,
    policy::{
        DenyReason, L4Request, RuleRef, WorkloadPolicy,
        http::{HttpRequest, NormalizedPath},
    },
    proxy::{Mesh, View},
    world::Workload,
};

/// A head with what was changed in it so far.
pub(super) struct Edited<'a> {
    pub(super) head: &'a RequestHead<'a>,
    pub(super) edits: &'a Edits,
}

impl Headers for Edited<'_> {
    fn each_value<'h>(&'h self, name: &str, each: &mut dyn FnMut(&'h [u8])) {
        if !self.edits.drops(name) {
            self.head.values(name).for_each(&mut *each);
        }
        let added = self.edits.added().filter(|(own, _)| own.as_str().eq_ignore_ascii_case(name));
        added.for_each(|(_, value)| each(value.as_bytes()));
    }
}

impl Edited<'_> {
    fn has(&self, name: &HeaderName) -> bool {
        let mut has = false;
        self.each_value(name.as_str(), &mut |_| has = true);
        has
    }

    /// All fields but `Host`.
    pub(super) fn map(&self) -> Option<HeaderMap> {
        let sent = self.head.fields().filter(|(name, _)| !self.edits.drops(name));
        let sent = sent.filter(|(name, _)| !name.eq_ignore_ascii_case("host"));
        let read = |(name, value): (&str, &[u8])| {
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
        };
        let mut map = HeaderMap::new();
        for field in sent.map(read).chain(self.edits.added().cloned().map(Some)) {
            let (name, value) = field?;
            map.append(name, value);
        }
        Some(map)
    }

    /// Path and query as they would be forwarded.
    pub(super) fn path_and_query<'p>(&'p self, path: Option<&'p NormalizedPath<'_>>) -> &'p str {
        let edited = self.edits.path.as_ref().map(PathEdit::as_str);
        edited.or(path.map(NormalizedPath::as_str)).unwrap_or(self.head.path)
    }
}

/// Whose policy asks, and by which way.
pub(super) struct Asking<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) view: &'a View,
    pub(super) net: &'a WorkloadNet,
    pub(super) workload: &'a Workload,
    pub(super) policy: &'a WorkloadPolicy,
    pub(super) connection: L4Request<'a>,
    /// Who the connection or request is from in the end.
    pub(super) original: IpAddr,
}

impl Asking<'_> {
    /// Asks about a connection that is no HTTP; says who allowed it.
    pub(super) async fn about_connection(&self) -> Result<Vec<Arc<str>>, DenyReason> {
        let mut asked = Vec::new();
        while let Some((provider, rule)) =
            self.policy.authorizer_after(asked.last().map(|last: &Arc<str>| &**last), &self.connection, None)
        {
            self.ask(&provider, &rule, &self.check(None)).await.map_err(|(reason, _)| reason)?;
            asked.push(provider);
        }
        self.count_others(&asked);
        Ok(asked)
    }

    /// Asks about a request, and edits it as it is told. Says who could not be asked and let it pass all the same.
    pub(super) async fn about_request(
        &self,
        head: &RequestHead<'_>,
        path: Option<&NormalizedPath<'_>>,
        edits: &mut Edits,
    ) -> Result<Option<String>, (DenyReason, Denial)> {
        let mut asked: Vec<Arc<str>> = Vec::new();
        let mut passed = None;
        while let Some((provider, rule)) =
            self.next(asked.last().map(|last| &**last), &Edited { head, edits }, path)
        {
            let invalid = |error: &str| {
                let reason = custom(&rule, &provider, Some(error.to_owned()));
                (reason, Denial::new(http::StatusCode::INTERNAL_SERVER_ERROR, ""))
            };
            let http = http_check(&Edited { head, edits }, path, &self.connection);
            let check = self.check(Some(http.ok_or_else(|| invalid("cannot be told the headers"))?));
            let (changes, failed_open) = self
                .ask(&provider, &rule, &check)
                .await
                .map_err(|(reason, denied)| (reason, answer(denied)))?;
            apply(&changes, head, path, edits).map_err(|error| invalid(&error.to_string()))?;
            passed = failed_open.map(|error| format!("{provider} {error}, and fails open")).or(passed);
            asked.push(provider);
        }
        self.count_others(&asked);
        Ok(passed)
    }

    /// Tokens are judged later, as in Istio: an authorizer may bring one.
    fn next(
        &self,
        asked: Option<&str>,
        edited: &Edited<'_>,
        path: Option<&NormalizedPath<'_>>,
    ) -> Option<(Arc<str>, RuleRef)> {
        let request = HttpRequest {
            method: edited.head.method,
            path,
            authority: Some(edited.head.authority).filter(|authority| !authority.is_empty()),
            headers: edited,
            claims: None,
            remote_ip: self.original,
        };
        self.policy.authorizer_after(asked, &self.connection, Some(&request))
    }

    async fn ask(
        &self,
        provider: &Arc<str>,
        rule: &RuleRef,
        check: &Check,
    ) -> Result<(Changes, Option<String>), (DenyReason, Option<Denied>)> {
        let Some(authorizer) = self.view.authorizers.get(provider) else {
            return Err((custom(rule, provider, Some("is not in extensionProviders".to_owned())), None));
        };
        let Self { mesh, view, net, workload, .. } = *self;
        let road = Road { mesh, view, net, workload };
        match authorizer.ask(check, &workload.name, &road, &mesh.metrics).await {
            Outcome::Allowed { changes, failed_open } => Ok((changes, failed_open)),
            Outcome::Denied { answer, error } => Err((custom(rule, provider, error), Some(answer))),
        }
    }

    fn count_others(&self, asked: &[Arc<str>]) {
        for provider in self.policy.authorizers() {
            if !asked.iter().any(|asked| **asked == *provider)
                && self.view.authorizers.get(provider).is_some()
            {
                self.mesh.metrics.authorizer_not_asked(provider);
            }
        }
    }

    fn check(&self, http: Option<HttpCheck>) -> Check {
        let L4Request { peer, src, dst, sni } = self.connection;
        Check {
            source: Party { address: src, principal: peer.map(ToString::to_string) },
            destination: Party { address: dst, principal: peer.map(|_| self.workload.spiffe_id.to_string()) },
            sni: sni.map(str::to_owned),
            time: SystemTime::now(),
            http,
        }
    }
}

fn custom(rule: &RuleRef, provider: &Arc<str>, error: Option<String>) -> DenyReason {
    DenyReason::Custom { rule: rule.clone(), provider: Arc::clone(provider), error }
}

fn http_check(
    edited: &Edited<'_>,
    path: Option<&NormalizedPath<'_>>,
    connection: &L4Request<'_>,
) -> Option<HttpCheck> {
    let Edited { head, .. } = *edited;
    Some(HttpCheck {
        id: rand::random(),
        method: head.method.to_owned(),
        // What `OPTIONS *` asks about has no path that could be made normal.
        path: if head.path == "*" { "*" } else { edited.path_and_query(path) }.to_owned(),
        authority: head.authority.to_owned(),
        scheme: if connection.peer.is_some() { "https" } else { "http" },
        protocol: head.version.to_string(),
        headers: edited.map()?,
    })
}

/// What the client gets; without an answer of an authorizer, Istio's for a provider that is not there.
fn answer(denied: Option<Denied>) -> Denial {
    let Some(denied) = denied else { return Denial::forbidden() };
    Denial { body: denied.body, headers: denied.headers, ..Denial::new(denied.status, "") }
}

/// Does what an authorizer wants done to a request.
fn apply(
    changes: &Changes,
    head: &RequestHead<'_>,
    path: Option<&NormalizedPath<'_>>,
    edits: &mut Edits,
) -> io::Result<()> {
    let mut own: Vec<&HeaderName> = Vec::new();
    for (name, value, put) in &changes.request {
        let present = Edited { head, edits }.has(name);
        match put {
            Put::AddIfAbsent if present => continue,
            Put::ReplaceIfPresent if !present => continue,
            // Several values that one answer brings stay together.
            Put::Replace | Put::ReplaceIfPresent if !own.contains(&name) => {
                edits.take_out(name);
                own.push(name);
            }
            _ => {}
        }
        edits.append.push((name.clone(), value.clone()));
    }
    changes.remove.iter().for_each(|name| edits.take_out(name));
    edits.response.extend(changes.response.iter().map(|(name, value, put)| {
        let put = match put {
            Put::Add => ResponsePut::Add,
            Put::Replace => ResponsePut::Replace,
            Put::AddIfAbsent => ResponsePut::AddIfAbsent,
            Put::ReplaceIfPresent => ResponsePut::ReplaceIfPresent,
        };
        (name.clone(), value.clone(), put)
    }));
    let target = changes.path(Edited { head, edits }.path_and_query(path));
    if let Some(target) = target.filter(|_| path.is_some()) {
        let wrong = || io::Error::other("makes a path that cannot be sent");
        edits.path = Some(PathEdit::new(target).ok_or_else(wrong)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Version;

    fn put(name: &'static str, value: &'static str, put: Put) -> (HeaderName, HeaderValue, Put) {
        (HeaderName::from_static(name), HeaderValue::from_static(value), put)
    }

    #[test]
    fn headers_are_put_as_the_authorizer_says() {
        use Put::{Add, AddIfAbsent, Replace, ReplaceIfPresent};
        let sent = HeaderMap::from_iter([
            (HeaderName::from_static("x-user"), HeaderValue::from_static("spoofed")),
            (HeaderName::from_static("x_user"), HeaderValue::from_static("spoofed too")),
            (HeaderName::from_static("x-other"), HeaderValue::from_static("kept")),
        ]);
        let head = RequestHead::new("GET", "/a", "/a", "h", Version::Http11).fields_from(&sent);
        for (puts, remove, expected) in [
            (vec![], &[][..], &["spoofed"][..]),
            (vec![put("x-user", "alice", Replace)], &[], &["alice"]),
            (vec![put("x-user", "a", Replace), put("x-user", "b", Replace)], &[], &["a", "b"]),
            (vec![put("x-user", "alice", Add)], &[], &["spoofed", "alice"]),
            (vec![put("x-user", "alice", AddIfAbsent)], &[], &["spoofed"]),
            (vec![put("x-user", "alice", ReplaceIfPresent)], &[], &["alice"]),
            (vec![], &["x-user"], &[]),
            (vec![put("x-user", "alice", Replace)], &["x-user"], &[]),
            (vec![put("x-new", "1", ReplaceIfPresent)], &[], &["spoofed"]),
        ] {
            let remove = remove.iter().map(|name| HeaderName::from_static(name)).collect();
            let changes = Changes { request: puts, remove, ..Changes::default() };
            let mut edits = Edits::default();
            apply(&changes, &head, None, &mut edits).unwrap();
            let edited = Edited { head: &head, edits: &edits };
            let mut values = Vec::new();
            edited
                .each_value("X-User", &mut |value| values.push(String::from_utf8_lossy(value).into_owned()));
            assert_eq!(values, expected, "{changes:?}");
            let map = edited.map().unwrap();
            assert_eq!(map.get_all("x-user").iter().count(), expected.len());
            assert_eq!(map.contains_key("x_user"), expected.contains(&"spoofed"), "look-alikes go too");
            assert_eq!((map["x-other"].as_bytes(), map.contains_key("x-new")), (&b"kept"[..], false));
        }
    }

    #[test]
    fn a_second_authorizer_sees_what_the_first_has_changed() {
        let head = RequestHead::new("GET", "/a?t=1", "/a?t=1", "h", Version::Http11);
        let path = NormalizedPath::new("/a?t=1", crate::policy::http::Normalization::Base).unwrap();
        let mut edits = Edits::default();
        let changes = Changes {
            request: vec![put("authorization", "Bearer x", Put::Replace)],
            remove_parameters: vec!["t".to_owned()],
            ..Changes::default()
        };
        apply(&changes, &head, Some(&path), &mut edits).unwrap();
        let connection = L4Request {
            peer: None,
            src: "10.0.0.2:1".parse().unwrap(),
            dst: "10.0.0.1:80".parse().unwrap(),
            sni: None,
        };
        let check = http_check(&Edited { head: &head, edits: &edits }, Some(&path), &connection).unwrap();
        assert_eq!((check.path.as_str(), check.scheme), ("/a", "http"));
        assert_eq!(check.headers["authorization"], "Bearer x");
    }
}
