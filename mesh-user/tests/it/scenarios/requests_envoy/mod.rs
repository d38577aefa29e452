//! meshd's decisions about requests against Envoy's, which is given what Istio's pilot would give it: whole sets of policies
//! by chance, thousands of requests. A difference that is not meant fails the story.
//!
//! `MESHD_TEST_POLICIES=200` draws so many sets instead of four, `MESHD_TEST_SEED=7` begins with another.

mod differences;
mod draw;
mod ours;
mod pilot;
mod tokens;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use mesh_user::identity::SpiffeId;
use serde_json::{Value, json};

use self::differences::Difference;
use self::draw::{Draw, PEERS, PORTS};
use self::ours::{Ours, as_file};
use self::tokens::Tokens;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, PERMISSIVE, json_lines};
use crate::it::netns::{Place, Wire};
use crate::it::process::PATIENCE;
use crate::it::{envoy, peer, programs};

pub(super) const STORIES: &[Story] = stories![
    Envoy 600: meshd_decides_as_envoy_does;
    Daemon 240: what_the_library_decides_is_what_a_client_gets;
];

/// Requests of each peer to each port under each set of policies.
const REQUESTS: usize = 100;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A set of documents, and what it makes of requests here.
struct Set {
    documents: Vec<Value>,
    ours: Ours,
    draw: Draw,
    seed: u64,
}

impl Set {
    fn new(seed: u64, tokens: &Tokens) -> anyhow::Result<Self> {
        let mut draw = Draw::new(seed);
        let documents = draw.documents(tokens);
        let ours = Ours::new(&documents).with_context(|| as_file(&documents))?;
        Ok(Self { documents, ours, draw, seed })
    }
}

/// Has `place` ask each of the requests on one connection, from `from` where that matters: statuses and servers.
fn asked(
    place: &Place,
    to: SocketAddr,
    from: Option<SocketAddr>,
    requests: &[String],
) -> anyhow::Result<Vec<(u16, String)>> {
    let file = place.dir().join(format!("requests-{}-{to}", place.name));
    std::fs::write(&file, serde_json::to_vec(requests)?)?;
    let (to, file, from) = (to.to_string(), file.to_string_lossy(), from.map(|from| from.to_string()));
    let mut args = vec!["ask", &to, "--file", &file];
    args.extend(from.iter().flat_map(|from| ["--from", from.as_str()]));
    let said = place.launch("ask", &peer::command_line(&args)).finish(PATIENCE * 4)?.succeeded()?;
    let answers: Vec<_> = json_lines(&said)
        .iter()
        .filter_map(|line| {
            let status = u16::try_from(line["status"].as_u64()?).ok()?;
            Some((status, line["server"].as_str().unwrap_or_default().to_owned()))
        })
        .collect();
    ensure!(answers.len() == requests.len(), "{} of {} answered", answers.len(), requests.len());
    Ok(answers)
}

fn meshd_decides_as_envoy_does(ground: &Ground) -> anyhow::Result<()> {
    let mut wire = Wire::lay(ground)?;
    let [place] = wire.plug(["envoy"])?;
    let (first, count) = (number("MESHD_TEST_SEED", 1), number("MESHD_TEST_POLICIES", 4));
    let tokens = Tokens::new()?;
    let mut found = Found::default();
    // Listeners are many: some sets at a time.
    let seeds: Vec<u64> = (first..first + count).collect();
    for (batch, seeds) in seeds.chunks(16).enumerate() {
        let sets = seeds.iter().map(|seed| Set::new(*seed, &tokens)).collect::<anyhow::Result<Vec<_>>>()?;
        let name = format!("differential-{batch}");
        let _envoy = envoy::run(&place, &name, ADMIN, &envoy_config(&sets))?;
        for (number, mut set) in sets.into_iter().enumerate() {
            compare(&place, number, &mut set, &tokens, &mut found)?;
        }
    }
    println!("{found}");
    ensure!(found.unexplained.is_empty(), "{}", found.report());
    ensure!(
        found.denied * 20 > found.cases && found.allowed * 20 > found.cases,
        "policies that decide nothing: {found}"
    );
    Ok(())
}

const ADMIN: u16 = 19_901;

/// Each set has an address for each peer, since Envoy is told by its listener who the peer is.
fn listener(set: usize, peer: usize, port: u16) -> SocketAddr {
    let [set, peer] = [set, peer].map(|number| u8::try_from(number + 1).unwrap_or(u8::MAX));
    SocketAddr::from((Ipv4Addr::new(127, 1, set, peer), port))
}

fn envoy_config(sets: &[Set]) -> Value {
    let mut listeners = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let filters = pilot::filters(&set.documents, "shop", "server");
        for (peer, identity) in PEERS.iter().enumerate() {
            for port in PORTS {
                listeners.push(listener_config(listener(number, peer, port), *identity, &filters));
            }
        }
    }
    json!({ "static_resources": { "listeners": listeners } })
}

fn listener_config(at: SocketAddr, peer: Option<&str>, filters: &[Value]) -> Value {
    let mut chain = Vec::new();
    if let Some(peer) = peer {
        chain.push(json!({
            "name": "envoy.filters.network.set_filter_state",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config",
                "on_new_connection": [ {
                    "object_key": pilot::PEER,
                    "factory_key": "envoy.string",
                    "format_string": { "text_format_source": { "inline_string": peer } },
                } ],
            },
        }));
    }
    // Normalization is what Istio's BASE sets (pilot/pkg/networking/core/listener.go).
    chain.push(json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "story",
            "normalize_path": true,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "route_config": { "virtual_hosts": [ {
                "name": "all",
                "domains": ["*"],
                "routes": [ {
                    "match": { "prefix": "/" },
                    "direct_response": { "status": 200, "body": { "inline_string": "ok" } },
                } ],
            } ] },
            "http_filters": filters,
        },
    }));
    json!({
        "name": at.to_string(),
        "address": { "socket_address": { "address": at.ip(), "port_value": at.port() } },
        "filter_chains": [ { "filters": chain } ],
    })
}

/// What came of all comparisons.
#[derive(Default)]
struct Found {
    cases: usize,
    allowed: usize,
    denied: usize,
    refused: usize,
    unauthenticated: usize,
    /// Times that each meant difference was met.
    meant: BTreeMap<&'static str, usize>,
    unexplained: Vec<String>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests decided by Envoy and meshd: {} allowed, {} denied, {} with a bad token, {} refused; meant \
             differences: {:?}; unexplained: {}",
            self.cases,
            self.allowed,
            self.denied,
            self.unauthenticated,
            self.refused,
            self.meant,
            self.unexplained.len()
        )
    }
}

impl Found {
    fn report(&self) -> String {
        let shown: Vec<&str> = self.unexplained.iter().take(12).map(String::as_str).collect();
        format!("{self}\n{}", shown.join("\n"))
    }
}

fn compare(
    place: &Place,
    number: usize,
    set: &mut Set,
    tokens: &Tokens,
    found: &mut Found,
) -> anyhow::Result<()> {
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    for (peer, identity) in PEERS.iter().enumerate() {
        let peer_id = identity.map(str::parse::<SpiffeId>).transpose()?;
        for port in PORTS {
            let at = listener(number, peer, port);
            let requests: Vec<String> = (0..REQUESTS).map(|_| set.draw.request(tokens)).collect();
            let theirs = asked(place, at, Some(from), &requests)?;
            for (request, (theirs, _)) in requests.iter().zip(theirs) {
                let ours = set.ours.status(peer_id.as_ref(), from, at, request);
                found.cases += 1;
                *match ours {
                    200 => &mut found.allowed,
                    400 => &mut found.refused,
                    401 => &mut found.unauthenticated,
                    _ => &mut found.denied,
                } += 1;
                if ours == theirs {
                    continue;
                }
                let difference = Difference { documents: &set.documents, request, ours };
                match difference.meant() {
                    Some(why) => *found.meant.entry(why).or_default() += 1,
                    None => found.unexplained.push(format!(
                        "seed {}, {identity:?} to port {port}: Envoy says {theirs}, meshd {ours}\n{request}",
                        set.seed
                    )),
                }
            }
        }
    }
    Ok(())
}

fn what_the_library_decides_is_what_a_client_gets(ground: &Ground) -> anyhow::Result<()> {
    const PORT: u16 = PORTS[0];
    let tokens = Tokens::new()?;
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(PERMISSIVE)?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let each = ground.scale().of(100, 20);
    let (mut cases, mut allowed) = (0, 0);
    let sets = (101..).map(|seed| Set::new(seed, &tokens));
    let inspected = sets.filter(|set| !set.as_ref().is_ok_and(|set| !set.ours.inspects(PORT)));
    for set in inspected.take(ground.scale().of(4, 1)) {
        let mut set = set?;
        let seed = set.seed;
        mesh.policies(&format!("{PERMISSIVE}{}", as_file(&set.documents)))?;
        mesh.b.ctl(&["reload"])?.succeeded()?;
        for (place, peer) in [(&mesh.client, "client"), (&mesh.other, "other"), (&mesh.outsider, "")] {
            let id: Option<SpiffeId> = (!peer.is_empty())
                .then(|| format!("spiffe://cluster.local/ns/shop/sa/{peer}").parse())
                .transpose()?;
            let requests: Vec<String> = (0..each).map(|_| set.draw.request(&tokens)).collect();
            let to = mesh.server.at(PORT);
            let answers = asked(place, to, None, &requests)?;
            for (request, (status, server)) in requests.iter().zip(answers) {
                let ours = set.ours.status(id.as_ref(), place.at(0), to, request);
                // What nginx says of a request that reached it does not matter here.
                let got = if server.starts_with("nginx") { 200 } else { status };
                ensure!(got == ours, "seed {seed}, {peer:?}: got {got}, decided {ours}\n{request}");
                cases += 1;
                allowed += usize::from(ours == 200);
            }
        }
    }
    println!("{cases} requests through meshd, {allowed} of them reached nginx");
    ensure!(allowed * 20 > cases, "only {allowed} of {cases} requests were allowed");
    Ok(())
}
