//! One request from its arrival to its line in the audit: who asks, whether they may, how it ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, metadata::MetadataMap};

use super::Service;
use crate::{
    ca::{
        audit::AuditRecord,
        callers::{Caller, Peer, Proof, Refusal, grant},
        signing::SignedSvid,
    },
    identity::SpiffeId,
};

/// What the door knows of a request; in its extensions.
#[derive(Debug, Clone)]
pub struct Doing {
    pub(super) peer: Peer,
    /// Whether the audit has its line.
    pub(super) recorded: Arc<AtomicBool>,
    /// Its place among those that are answered at once; a watcher has another kind.
    pub(super) place: Option<Arc<OwnedSemaphorePermit>>,
}

/// A request that is being answered.
pub struct Visit {
    service: Arc<Service>,
    recorded: Option<Arc<AtomicBool>>,
    peer: Option<Peer>,
    record: AuditRecord,
    proof: Option<Proof>,
    began: Instant,
    /// Kept to the end, though the caller may have gone: what is signed for nobody is bounded too.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl Visit {
    /// Begins with what came with a request.
    pub fn begin(service: &Arc<Service>, call: &'static str, extensions: &http::Extensions) -> Self {
        let doing = extensions.get::<Doing>();
        let peer = doing.map(|doing| doing.peer.clone());
        Self {
            service: Arc::clone(service),
            recorded: doing.map(|doing| Arc::clone(&doing.recorded)),
            record: AuditRecord {
                call,
                peer: peer.as_ref().map(ToString::to_string),
                ..AuditRecord::default()
            },
            peer,
            proof: None,
            began: Instant::now(),
            _place: doing.and_then(|doing| doing.place.clone()),
        }
    }

    /// Finds out who asks, and whether it asks too often.
    ///
    /// # Errors
    /// When nobody that we know, or too often.
    pub async fn authenticate(&mut self, metadata: &MetadataMap) -> Result<Caller, Refusal> {
        let Some(peer) = self.peer.clone() else { return Err(Refusal::Anonymous) };
        let headers = metadata.clone().into_headers();
        let caller = self.service.callers.authenticate(&peer, &headers).await?;
        self.known(&caller);
        self.service.rates.caller(&caller.rate_key)?;
        Ok(caller)
    }

    /// Takes down who it is.
    pub(super) fn known(&mut self, caller: &Caller) {
        self.record.caller = Some(caller.name.to_string());
        self.record.authentication = Some(caller.proof.as_str());
        self.record.node = caller.node.as_deref().map(str::to_owned);
        self.record.pod = caller.pod.as_deref().map(str::to_owned);
        self.proof = Some(caller.proof);
    }

    /// The identity that `caller` may have: its own, or the one it asks for.
    ///
    /// # Errors
    /// When it may not.
    pub async fn grant(&mut self, caller: &Caller, asked: Option<&str>) -> Result<SpiffeId, Refusal> {
        self.record.asked = asked.map(str::to_owned);
        let (domain, placement) = (self.service.authority.trust_domain(), &*self.service.placement);
        let granted = grant(caller, asked, domain, placement);
        // Where something runs is news that may be on its way.
        if let (Err(Refusal::NotAllowed(_)), Some(node), Some(asked)) = (&granted, &caller.agent_of, asked)
            && let Ok(id) = asked.parse()
        {
            placement.settle(node, &id).await;
            return grant(caller, Some(asked), domain, placement);
        }
        granted
    }

    /// Ends with a certificate.
    pub async fn issued(mut self, id: &SpiffeId, svid: &SignedSvid) {
        self.record.identity = Some(id.to_string());
        self.record.serial = Some(svid.serial.clone());
        self.record.not_after = Some(AuditRecord::time(svid.not_after));
        self.service.metrics.issued(self.proof.map_or("none", Proof::as_str), self.began.elapsed());
        self.end("issued").await;
    }

    /// Ends with something else that was granted.
    pub async fn accepted(self) {
        self.end("accepted").await;
    }

    async fn end(mut self, outcome: &'static str) {
        self.record.outcome = outcome;
        if let Some(recorded) = &self.recorded {
            recorded.store(true, Relaxed);
        }
        self.service.audit.granted(self.record).await;
    }

    /// Ends with a refusal, and what the caller is told of it.
    pub fn refused(mut self, refusal: &Refusal) -> Status {
        if let Refusal::Authority(error) = refusal {
            tracing::error!(%error, "a certificate was not signed");
        }
        self.record.outcome = "refused";
        self.record.reason = Some(refusal.reason());
        self.record.detail = Some(refusal.to_string());
        if let Refusal::ReplayedJoinToken(node) | Refusal::ExpiredJoinToken(node) = refusal {
            self.record.node = Some(node.clone());
        }
        if let Some(recorded) = &self.recorded {
            recorded.store(true, Relaxed);
        }
        self.service.metrics.refused(refusal.reason());
        self.service.audit.refused(self.record);
        refusal.status()
    }
}
