//! A request that asked for a tunnel (an upgrade, `CONNECT`), kept while its connection lives: nothing behind it is a request
//! that could be decided by itself, so the tunnel is decided again when policy changes. What was proven of its token stays
//! proven; external authorizers that allowed it are not asked again.

use std::net::IpAddr;

use http::HeaderMap;

use super::asking::Edited;
use crate::{
    http::Version,
    jwt,
    policy::{
        L4Request, Verdict, WorkloadPolicy,
        http::{HttpRequest, Normalization, NormalizedPath},
    },
};

/// A copy of its head. Holds tokens: it has no form for people.
pub(in crate::proxy) struct AskedTunnel {
    method: String,
    path: String,
    authority: String,
    /// As rules saw them, what tokens and authorizers have written included.
    headers: HeaderMap,
    claims: Option<Box<jwt::Authenticated>>,
    original: IpAddr,
}

impl std::fmt::Debug for AskedTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AskedTunnel").field("method", &self.method).finish_non_exhaustive()
    }
}

impl AskedTunnel {
    /// None: an ordinary request, which ends by itself. Of HTTP/2 every stream does.
    pub(super) fn of(
        edited: &Edited<'_>,
        claims: Option<&jwt::Authenticated>,
        original: IpAddr,
    ) -> Option<Self> {
        let Edited { head, .. } = *edited;
        let asks = head.method == "CONNECT" || head.values("upgrade").next().is_some();
        (asks && head.version != Version::Http2).then(|| Self {
            method: head.method.to_owned(),
            path: head.path.to_owned(),
            authority: head.authority.to_owned(),
            // Every field was checked when it was read or made.
            headers: edited.map().unwrap_or_default(),
            claims: claims.cloned().map(Box::new),
            original,
        })
    }

    /// Why it is no longer allowed, if it is not.
    pub(in crate::proxy) fn denied(
        &self,
        policy: &WorkloadPolicy,
        normalization: Normalization,
        connection: &L4Request<'_>,
    ) -> Option<String> {
        let Ok(path) = NormalizedPath::of_request(&self.path, normalization) else {
            return Some("bad path".to_owned());
        };
        let request = HttpRequest {
            method: &self.method,
            path: path.as_ref(),
            authority: Some(self.authority.as_str()).filter(|authority| !authority.is_empty()),
            headers: &self.headers,
            claims: self.claims.as_deref().map(|token| &token.claims),
            remote_ip: self.original,
        };
        match policy.decide_authorized(connection, Some(&request)) {
            Verdict::Allow { .. } => None,
            Verdict::Deny { reason } => Some(reason.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::{
        config::Config,
        http::{Edits, RequestHead},
        policy::{CompiledPolicies, PolicySet},
        world::World,
    };

    const NODE: &str = "node: a\nworkloads:\n  - { name: web, namespace: shop, selector: {netns: /run/netns/web}, \
                        addresses: [10.0.0.1] }\n";

    fn asked(method: &str, version: Version, upgrade: bool) -> Option<AskedTunnel> {
        let mut headers = HeaderMap::new();
        headers.insert("x-team", HeaderValue::from_static("blue"));
        headers.insert("x-role", HeaderValue::from_static("admin"));
        if upgrade {
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
        }
        let path = if method == "CONNECT" { "" } else { "/chat/../talk?room=1" };
        let head = RequestHead::new(method, path, path, "a", version).fields_from(&headers);
        let mut edits = Edits::default();
        edits.set.push((HeaderName::from_static("x-role"), HeaderValue::from_static("guest")));
        AskedTunnel::of(&Edited { head: &head, edits: &edits }, None, IpAddr::from([10, 0, 0, 9]))
    }

    #[test]
    fn only_what_can_become_a_tunnel_is_kept() {
        for (method, version, upgrade, kept) in [
            ("GET", Version::Http11, true, true),
            ("CONNECT", Version::Http11, false, true),
            ("GET", Version::Http11, false, false),
            ("CONNECT", Version::Http2, false, false),
        ] {
            assert_eq!(asked(method, version, upgrade).is_some(), kept, "{method} {version}");
        }
    }

    #[test]
    fn a_tunnel_is_decided_by_the_request_that_opened_it() {
        let world = World::build(&Config::parse(NODE, "test").unwrap()).unwrap();
        let web = world.by_name("shop", "web").unwrap().id;
        let connection = L4Request {
            peer: None,
            src: "10.0.0.9:1".parse().unwrap(),
            dst: "10.0.0.1:80".parse().unwrap(),
            sni: None,
        };
        for (rule, denied) in [
            ("{}", false),
            ("{to: [{operation: {paths: [/talk], methods: [GET]}}]}", false),
            ("{when: [{key: 'request.headers[x-team]', values: [blue]}]}", false),
            // What a token or an authorizer has written counts, not what the client sent there.
            ("{when: [{key: 'request.headers[x-role]', values: [guest]}]}", false),
            ("{when: [{key: 'request.headers[x-role]', values: [admin]}]}", true),
            ("{to: [{operation: {paths: [/chat*]}}]}", true),
            ("{from: [{source: {requestPrincipals: ['*']}}]}", true),
        ] {
            let text = format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
                 spec: {{rules: [{rule}]}}\n"
            );
            let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
            let compiled = CompiledPolicies::compile(&world, &set);
            let tunnel = asked("GET", Version::Http11, true).unwrap();
            let cause = tunnel.denied(compiled.for_workload(web), Normalization::Base, &connection);
            assert_eq!(cause.is_some(), denied, "{rule}");
        }
    }
}
