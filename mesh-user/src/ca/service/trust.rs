//! `meshd.ca.v1.Trust`: whom to believe, at once and after each change, for as long as the agent watches.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::{Request, Response, Status, Streaming};

use super::{Doing, Service, Visit};
use crate::{
    ca::{
        callers::{Caller, Peer, Refusal},
        proto::meshd::{Bundle, TrustState, WatchRequest, trust_server::Trust as TrustApi},
        signing::Trust,
    },
    identity::TrustDomain,
};

/// Messages of one agent are not read faster than this.
const BETWEEN_MESSAGES: Duration = Duration::from_millis(20);

/// Answers.
pub(super) struct TrustWatch(pub(super) Arc<Service>);

#[tonic::async_trait]
impl TrustApi for TrustWatch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<TrustState, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut visit = Visit::begin(&self.0, "Watch", request.extensions());
        match self.begin(&mut visit, request).await {
            Ok(watching) => {
                visit.accepted().await;
                Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
            }
            Err(refusal) => Err(visit.refused(&refusal)),
        }
    }
}

impl TrustWatch {
    async fn begin(
        &self,
        visit: &mut Visit,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Watching, Refusal> {
        let caller = visit.authenticate(request.metadata()).await?;
        let slot = Arc::clone(&self.0.watchers).try_acquire_owned();
        let slot = slot.map_err(|_| Refusal::Busy("agents that watch"))?;
        let peer = request.extensions().get::<Doing>().map(|doing| doing.peer.clone());
        self.0.watching.fetch_add(1, Relaxed);
        Ok(Watching {
            counted: Counted(Arc::clone(&self.0)),
            trust: self.0.authority.trust(),
            told: false,
            said: Some(request.into_inner()),
            caller,
            peer,
            _slot: slot,
        })
    }
}

/// Counts one watcher less when it goes.
struct Counted(Arc<Service>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.watching.fetch_sub(1, Relaxed);
    }
}

struct Watching {
    counted: Counted,
    trust: watch::Receiver<Arc<Trust>>,
    /// Whether it has its first answer.
    told: bool,
    /// Its own messages; none: it sends no more.
    said: Option<Streaming<WatchRequest>>,
    caller: Caller,
    peer: Option<Peer>,
    _slot: OwnedSemaphorePermit,
}

impl Watching {
    /// The next answer; none: the end.
    async fn next(mut self) -> Option<(Result<TrustState, Status>, Self)> {
        if !self.told {
            self.told = true;
            return Some((Ok(self.state()), self));
        }
        loop {
            tokio::select! {
                changed = self.trust.changed() => {
                    changed.ok()?;
                    if let Err(refusal) = self.still_known() {
                        self.counted.0.metrics.refused(refusal.reason());
                        return None;
                    }
                    return Some((Ok(self.state()), self));
                }
                message = next_message(&mut self.said) => match message {
                    Ok(Some(message)) => self.acknowledged(&message),
                    Ok(None) => self.said = None,
                    Err(_gone) => return None,
                }
            }
        }
    }

    fn state(&mut self) -> TrustState {
        state(&self.counted.0, &self.trust.borrow_and_update())
    }

    /// The agent's node is the one that it proved, whatever the message says.
    fn acknowledged(&self, message: &WatchRequest) {
        let current = self.trust.borrow().version;
        if let Some(node) = self.caller.agent_of.as_deref()
            && (1..=current).contains(&message.version)
        {
            self.counted.0.authority.acknowledge(node, message.version);
        }
    }

    fn still_known(&self) -> Result<(), Refusal> {
        match &self.peer {
            Some(peer) => self.counted.0.callers.still_known(peer, &self.caller),
            None => Err(Refusal::Anonymous),
        }
    }
}

/// Waits for ever where no more will come.
async fn next_message(said: &mut Option<Streaming<WatchRequest>>) -> Result<Option<WatchRequest>, Status> {
    let Some(messages) = said else { return std::future::pending().await };
    tokio::time::sleep(BETWEEN_MESSAGES).await;
    messages.message().await
}

/// As agents read it, the CA's own trust domain first.
fn state(service: &Service, trust: &Trust) -> TrustState {
    let own = service.authority.trust_domain();
    let published = service.jwt.published();
    let minting = |domain: &TrustDomain| (domain == own).then(|| published.values());
    let mut bundles: Vec<_> = trust
        .bundles
        .roots
        .iter()
        .map(|(domain, roots)| Bundle {
            trust_domain: domain.to_string(),
            roots: roots.iter().map(|root| root.to_vec()).collect(),
            revocation_lists: trust
                .bundles
                .revoked
                .get(domain)
                .into_iter()
                .flatten()
                .map(|list| list.der().to_vec())
                .collect(),
            jwt_authorities: minting(domain)
                .into_iter()
                .flatten()
                .map(|key| key.as_bytes().to_vec())
                .collect(),
        })
        .collect();
    bundles.sort_by_key(|bundle| bundle.trust_domain != own.as_str());
    TrustState { version: trust.version, bundles }
}
