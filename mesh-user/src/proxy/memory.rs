//! What was seen lately of inbound connections and requests, for `meshctl policy impact` and `lint`. Bounded in entries, in
//! bytes of each, and in time. Never waits: where another connection is noting something in the same shard, it is left out.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};

use crate::{
    policy::{
        L4Request, Mode,
        http::{HttpRequest, NormalizedPath},
        traffic::{Content, KEPT_CLAIMS, Seen, SeenRequest, Traffic},
    },
    world::WorkloadName,
};

/// What is older is forgotten, in seconds.
pub const WINDOW_SECONDS: u64 = 3600;
/// A client's traffic to one workload lies in one shard: flooding it with paths pushes nothing out of the others.
const SHARDS: usize = 16;
/// Longer ones are not kept, in bytes; with the claims an entry stays below 4 KiB.
const MAX_PATH: usize = 1024;
const MAX_NAME: usize = 255;
const MAX_CLAIMS: usize = 1024;

/// One inbound connection, or request on it, that is to be remembered.
#[derive(Clone, Copy)]
pub struct Noted<'a> {
    /// The workload that was asked.
    pub server: &'a WorkloadName,
    /// The workload that the client's address is of.
    pub client: Option<&'a WorkloadName>,
    /// As policy sees it.
    pub connection: L4Request<'a>,
    /// Peer authentication of the port.
    pub mode: Mode,
    /// What was seen of it.
    pub content: NotedContent<'a>,
}

/// What was seen of the bytes.
#[derive(Clone, Copy)]
pub enum NotedContent<'a> {
    /// Nothing was looked at.
    Unread,
    /// It is no HTTP.
    NotHttp,
    /// A request.
    Request(&'a HttpRequest<'a>),
}

/// The memory.
#[derive(Debug)]
pub struct Memory {
    shards: Vec<Mutex<HashMap<u64, Seen>>>,
    entries_per_shard: usize,
    /// Keyed anew at each start: nobody outside can make two kinds of traffic count as one.
    hasher: RandomState,
    left_out: AtomicU64,
}

impl Memory {
    /// For at most `entries` different connections and requests; 0: it remembers nothing.
    pub fn new(entries: u32) -> Self {
        let entries = entries as usize;
        let shards = entries.min(SHARDS);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            entries_per_shard: entries.checked_div(shards).unwrap_or_default(),
            hasher: RandomState::new(),
            left_out: AtomicU64::new(0),
        }
    }

    /// Counts one connection or request.
    pub fn note(&self, noted: &Noted<'_>) {
        self.remember(noted, 1);
    }

    /// A connection that was counted is still there.
    pub fn keep(&self, noted: &Noted<'_>) {
        self.remember(noted, 0);
    }

    fn remember(&self, noted: &Noted<'_>, count: u64) {
        let Some(shard) = self.shard(noted) else { return };
        if !noted.fits() {
            self.left_out.fetch_add(count, Ordering::Relaxed);
            return;
        }
        let mut entries = match shard.try_lock() {
            Ok(entries) => entries,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.left_out.fetch_add(count, Ordering::Relaxed);
                return;
            }
        };
        let (key, now) = (self.key(noted), now_seconds());
        if let Some(known) = entries.get_mut(&key) {
            known.count += count;
            known.last_seconds = now;
            return;
        }
        if entries.len() >= self.entries_per_shard {
            let oldest = entries.iter().min_by_key(|(_, seen)| seen.last_seconds).map(|(key, _)| *key);
            oldest.map(|key| entries.remove(&key));
        }
        entries
            .insert(key, Seen { traffic: Arc::new(noted.traffic()), count: count.max(1), last_seconds: now });
    }

    /// What was seen in the last hour, what there was most of first.
    pub fn seen(&self) -> Vec<Seen> {
        let since = now_seconds().saturating_sub(WINDOW_SECONDS);
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut entries = shard.lock().unwrap_or_else(PoisonError::into_inner);
            entries.retain(|_, seen| seen.last_seconds >= since);
            all.extend(entries.values().cloned());
        }
        all.sort_by_key(|seen| std::cmp::Reverse(seen.count));
        all
    }

    /// Connections and requests that were not remembered: too long, or noted at the same moment as another.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    fn shard(&self, noted: &Noted<'_>) -> Option<&Mutex<HashMap<u64, Seen>>> {
        let mut hasher = self.hasher.build_hasher();
        noted.server.hash(&mut hasher);
        match noted.connection.peer {
            Some(peer) => peer.hash(&mut hasher),
            // Whoever has an address has its neighbours too.
            None => neighbourhood(noted.connection.src.ip()).hash(&mut hasher),
        }
        let number = hasher.finish().checked_rem(self.shards.len() as u64)?;
        self.shards.get(usize::try_from(number).ok()?)
    }

    fn key(&self, noted: &Noted<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        let connection = &noted.connection;
        noted.server.hash(&mut hasher);
        noted.client.hash(&mut hasher);
        (connection.peer, connection.src.ip(), connection.dst, connection.sni).hash(&mut hasher);
        std::mem::discriminant(&noted.mode).hash(&mut hasher);
        std::mem::discriminant(&noted.content).hash(&mut hasher);
        if let NotedContent::Request(request) = noted.content {
            (request.method, request.path.map(NormalizedPath::path), request.authority).hash(&mut hasher);
            for name in KEPT_CLAIMS {
                request.claims.and_then(|claims| claims.get(name)).hash(&mut hasher);
            }
            request.claims.is_some().hash(&mut hasher);
            noted.is_forwarded(request).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Noted<'_> {
    fn fits(&self) -> bool {
        let NotedContent::Request(request) = self.content else {
            return self.connection.sni.is_none_or(|sni| sni.len() <= MAX_NAME);
        };
        let claims = request
            .claims
            .map_or(0, |claims| KEPT_CLAIMS.iter().filter_map(|name| claims.get(*name)).map(size).sum());
        request.method.len() <= MAX_NAME
            && request.authority.is_none_or(|host| host.len() <= MAX_NAME)
            && request.path.is_none_or(|path| path.path().len() <= MAX_PATH)
            && claims <= MAX_CLAIMS
    }

    fn is_forwarded(&self, request: &HttpRequest<'_>) -> bool {
        request.remote_ip != self.connection.src.ip().to_canonical()
    }

    fn traffic(&self) -> Traffic {
        let content = match self.content {
            NotedContent::Unread => Content::Unread,
            NotedContent::NotHttp => Content::NotHttp,
            NotedContent::Request(request) => Content::Request(SeenRequest {
                method: request.method.into(),
                path: request.path.map(|path| path.path().into()),
                host: request.authority.map(Into::into),
                forwarded: self.is_forwarded(request),
                claims: request.claims.map(kept),
            }),
        };
        Traffic {
            client: self.client.cloned(),
            source_ip: self.connection.src.ip().to_canonical(),
            peer: self.connection.peer.cloned(),
            server: self.server.clone(),
            destination: SocketAddr::new(self.connection.dst.ip().to_canonical(), self.connection.dst.port()),
            mode: self.mode,
            sni: self.connection.sni.map(Into::into),
            content,
        }
    }
}

fn kept(claims: &Map<String, Value>) -> Map<String, Value> {
    let kept = KEPT_CLAIMS.iter().filter_map(|name| Some(((*name).to_owned(), claims.get(*name)?.clone())));
    kept.collect()
}

/// About what a claim takes, in bytes. Objects match no rule and take what they like: too much.
fn size(claim: &Value) -> usize {
    match claim {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(|value| size(value).saturating_add(64)).sum(),
        Value::Object(_) => MAX_CLAIMS + 1,
        _ => 8,
    }
}

/// The /24 or /64 of an address.
fn neighbourhood(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).unwrap_or_default(),
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::SpiffeId, policy::http::Normalization};

    struct NoHeaders;

    impl crate::policy::http::Headers for NoHeaders {
        fn each_value<'h>(&'h self, _name: &str, _each: &mut dyn FnMut(&'h [u8])) {}
    }

    fn server() -> WorkloadName {
        WorkloadName { namespace: "shop".into(), name: "db".into() }
    }

    fn ask(
        memory: &Memory,
        source: &str,
        peer: Option<&SpiffeId>,
        path: &str,
        claims: Option<&Map<String, Value>>,
    ) {
        let src: SocketAddr = source.parse().unwrap();
        let path = NormalizedPath::new(path, Normalization::Base).unwrap();
        let request = HttpRequest {
            method: "GET",
            path: Some(&path),
            authority: Some("db"),
            headers: &NoHeaders,
            claims,
            remote_ip: src.ip(),
        };
        memory.note(&Noted {
            server: &server(),
            client: None,
            connection: L4Request { peer, src, dst: "10.0.0.2:80".parse().unwrap(), sni: None },
            mode: Mode::Permissive,
            content: NotedContent::Request(&request),
        });
    }

    fn request(seen: &Seen) -> &SeenRequest {
        match &seen.traffic.content {
            Content::Request(request) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_that_differ_in_nothing_that_is_kept_are_counted_together() {
        let memory = Memory::new(64);
        ask(&memory, "10.0.0.1:1", None, "/a?token=secret", None);
        ask(&memory, "10.0.0.1:2", None, "/b/../a", None);
        ask(&memory, "10.0.0.1:3", None, "/b", None);
        let seen = memory.seen();
        assert_eq!(seen.iter().map(|s| s.count).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(request(&seen[0]).path.as_deref(), Some("/a"));
        assert!(!format!("{seen:?}").contains("secret"));
    }

    #[test]
    fn of_a_token_only_who_it_is_for_and_from_is_kept() {
        let memory = Memory::new(64);
        let claims =
            serde_json::json!({ "iss": "i", "sub": "s", "aud": ["a"], "email": "a@example", "team": "blue" });
        ask(&memory, "10.0.0.1:1", None, "/", claims.as_object());
        let kept = request(&memory.seen()[0]).claims.clone().map(Value::Object);
        assert_eq!(kept, Some(serde_json::json!({ "iss": "i", "sub": "s", "aud": ["a"] })));
    }

    #[test]
    fn a_client_with_endless_paths_pushes_out_its_own_and_not_all_others() {
        let memory = Memory::new(64);
        let identities: Vec<SpiffeId> =
            (0..12).map(|n| format!("spiffe://cluster.local/ns/shop/sa/c{n}").parse().unwrap()).collect();
        for identity in &identities {
            ask(&memory, "10.0.0.1:1", Some(identity), "/", None);
        }
        let before = memory.seen().len();
        for n in 0..500 {
            ask(&memory, "10.9.9.9:1", None, &format!("/{n}"), None);
        }
        let seen = memory.seen();
        let flooded = seen.iter().filter(|s| s.traffic.peer.is_none()).count();
        assert!(seen.len() <= 64 && flooded <= 4, "{} entries, {flooded} of the flood", seen.len());
        assert!(seen.len() - flooded >= before - 4, "{} of {before} are left", seen.len() - flooded);
    }

    #[test]
    fn what_is_too_long_is_counted_and_left_out() {
        let memory = Memory::new(64);
        ask(&memory, "10.0.0.1:1", None, &format!("/{}", "a".repeat(MAX_PATH)), None);
        let nested = serde_json::json!({ "sub": { "a": "b" } });
        ask(&memory, "10.0.0.1:1", None, "/", nested.as_object());
        assert_eq!((memory.seen().len(), memory.left_out()), (0, 2));
    }

    #[test]
    fn with_no_entries_nothing_is_remembered() {
        let memory = Memory::new(0);
        ask(&memory, "10.0.0.1:1", None, "/", None);
        assert_eq!((memory.seen().len(), memory.left_out()), (0, 0));
    }
}
