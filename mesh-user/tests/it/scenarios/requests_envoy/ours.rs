//! What meshd's library says of a request, asked as the daemon asks it: its bytes are parsed, its path is made normal, its
//! token is judged, then policy decides.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_user::config::Config;
use mesh_user::http::{HeadScan, RequestHead, Scanned, Settings, parse_request};
use mesh_user::identity::SpiffeId;
use mesh_user::jwt::{self, KeyLocation, KeySet, Keys, Outcome};
use mesh_user::policy::http::{HttpRequest, Normalization, NormalizedPath};
use mesh_user::policy::{CompiledPolicies, L4Request, PolicySet, WorkloadPolicy};
use mesh_user::world::{WorkloadId, World};
use serde_json::Value;

/// 2027.
const NOW: u64 = 1_800_000_000;

const NODE: &str = "node: a\nworkloads:\n  - { name: server, namespace: shop, labels: {app: server}, \
                    selector: {netns: /run/netns/server}, addresses: [10.201.0.13] }\n";

/// The workload `server` under a set of documents.
pub(super) struct Ours {
    policies: CompiledPolicies,
    server: WorkloadId,
}

struct NoKeys;

impl Keys for NoKeys {
    fn keys(&self, _: &KeyLocation) -> Option<Arc<KeySet>> {
        None
    }

    fn unknown_key(&self, _: &KeyLocation) {}
}

struct Sent<'a>(&'a RequestHead<'a>);

impl jwt::Headers for Sent<'_> {
    fn each_value<'h>(&'h self, name: &str, each: &mut dyn FnMut(&'h [u8])) {
        self.0.values(name).for_each(each);
    }
}

/// Documents as a policy file holds them.
pub(super) fn as_file(documents: &[Value]) -> String {
    documents.iter().map(|document| ["---\n", &format!("{document:#}"), "\n"].concat()).collect()
}

impl Ours {
    pub(super) fn new(documents: &[Value]) -> anyhow::Result<Self> {
        let world = World::build(&Config::parse(NODE, "story")?)?;
        let set = PolicySet::parse([("story.yaml", as_file(documents).as_str())])?;
        let server = world.by_name("shop", "server").map(|workload| workload.id);
        let server = server.ok_or_else(|| anyhow::anyhow!("it is in the file"))?;
        Ok(Self { policies: CompiledPolicies::compile(&world, &set), server })
    }

    /// Whether requests to this port are looked at: else the connection is decided as TCP.
    pub(super) fn inspects(&self, port: u16) -> bool {
        self.policies.for_workload(self.server).inspects_requests(port)
    }

    /// The status of a denial or refusal, 200 where the request may go on.
    pub(super) fn status(
        &self,
        peer: Option<&SpiffeId>,
        src: SocketAddr,
        dst: SocketAddr,
        sent: &str,
    ) -> u16 {
        let settings = Settings::default();
        let bytes = sent.as_bytes();
        let Ok(Scanned::Complete(end)) = HeadScan::request().feed(bytes, settings.max_head_bytes) else {
            return 400;
        };
        let Ok(parsed) = parse_request(&bytes[..end], &settings) else { return 400 };
        let head = parsed.head(&bytes[..end]);
        let Ok(path) = NormalizedPath::new(head.path, Normalization::default()) else { return 400 };
        decide(self.policies.for_workload(self.server), &head, &path, L4Request { peer, src, dst, sni: None })
    }
}

fn decide(
    policy: &WorkloadPolicy,
    head: &RequestHead<'_>,
    path: &NormalizedPath<'_>,
    l4: L4Request<'_>,
) -> u16 {
    let headers = Sent(head);
    let request = jwt::RequestHead {
        method: head.method,
        scheme: "http",
        authority: head.authority,
        path_and_query: path.as_str(),
        headers: &headers,
    };
    let judged = jwt::authenticate(policy.request_authentication(), &request, &NoKeys, NOW);
    let token = match judged.outcome {
        Outcome::Anonymous => None,
        Outcome::Authenticated(token) => Some(token),
        Outcome::Refused(refused) => return refused.status().as_u16(),
    };
    let request = HttpRequest {
        method: head.method,
        path: Some(path),
        authority: Some(head.authority),
        headers: &headers,
        claims: token.as_deref().map(|token| &token.claims),
        remote_ip: l4.src.ip(),
    };
    if policy.decide_http(&l4, &request).is_allowed() { 200 } else { 403 }
}
