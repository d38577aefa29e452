//! The five calls. Who the caller is is asked of the kernel with each call, and again before anything more is sent on a
//! stream: a process that has ended, or has left the workload's cgroup, gets nothing more.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{
    future::select_all,
    stream::{BoxStream, StreamExt as _, unfold},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    caller::Attestor,
    exportable::{ExportableSvid, IssueExportable},
    keeper::{Held, Keeper},
    messages,
    server::{Caller, WorkloadApiLimits},
};
use crate::{
    ca::{
        jwt_svid::{JwtSvid, JwtSvidRequest, MAX_AUDIENCE_BYTES, MintJwt, check_audiences},
        proto::workload::{
            JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
            ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
            X509svidRequest, X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
        },
    },
    identity::{SpiffeId, TrustBundles},
    jwt::{MAX_TOKEN_BYTES, verify_jwt_svid},
    telemetry::Metrics,
    world::World,
};

/// How long a call waits for an SVID that is yet to be issued.
const FIRST_SVID: Duration = Duration::from_secs(10);
/// An authority that takes longer than this for a token is given up.
const MINT_TIMEOUT: Duration = Duration::from_secs(10);
/// More identities of one caller are a mistake in the node's file.
const MAX_IDENTITIES: usize = 64;

/// What the server hands out, and for whom.
pub struct WorkloadApiParts {
    /// The world in force.
    pub world: watch::Receiver<Arc<World>>,
    /// Where systemd's units have their cgroups: the mount of cgroup v2, or what capture is attached to.
    pub cgroup_root: PathBuf,
    /// The trust in force.
    pub trust: watch::Receiver<Arc<TrustBundles>>,
    /// Issues what workloads get.
    pub issuer: Arc<dyn IssueExportable>,
    /// Mints JWT-SVIDs; none: there are none to be had.
    pub minter: Option<Arc<dyn MintJwt>>,
    /// Counts what is handed out.
    pub metrics: Option<Arc<Metrics>>,
}

/// The service behind the socket.
pub(super) struct Service {
    attestor: Attestor,
    trust: watch::Receiver<Arc<TrustBundles>>,
    keeper: Keeper,
    minter: Option<Arc<dyn MintJwt>>,
    metrics: Option<Arc<Metrics>>,
    recheck: Duration,
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(
        parts: WorkloadApiParts,
        limits: WorkloadApiLimits,
        stop: CancellationToken,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            attestor: Attestor::new(parts.world, parts.cgroup_root)?,
            trust: parts.trust,
            keeper: Keeper::new(parts.issuer),
            minter: parts.minter,
            metrics: parts.metrics,
            recheck: limits.recheck,
            stop,
        }))
    }

    pub(super) fn attestor(&self) -> &Attestor {
        &self.attestor
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.keeper.held()
    }

    /// The record of it: who got which key or token. Never the token.
    fn handed_out(&self, caller: &Caller, kind: &'static str, id: &SpiffeId, serial: &str) {
        let (pid, uid) = (caller.peer.pid(), caller.peer.uid());
        tracing::info!(target: "meshd::audit", kind, spiffe_id = %id, serial, pid, uid, "an SVID was handed out");
        if let Some(metrics) = &self.metrics {
            metrics.workload_svid(kind);
        }
    }

    /// The caller's identities, the most specific first; never none.
    fn identities(&self, caller: &Caller) -> Result<Vec<SpiffeId>, Status> {
        // As SPIRE says it: clients know it and wait.
        let denied = || Status::permission_denied("no identity issued");
        let mut ids = self.attestor.identities(&caller.peer).map_err(|error| {
            tracing::debug!(pid = caller.peer.pid(), %error, "a caller of the Workload API cannot be identified");
            denied()
        })?;
        if ids.is_empty() {
            tracing::debug!(
                pid = caller.peer.pid(),
                uid = caller.peer.uid(),
                "a caller of the Workload API is no workload of this node"
            );
            return Err(denied());
        }
        ids.truncate(MAX_IDENTITIES);
        Ok(ids)
    }
}

/// Who is at the other end of the request's connection.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the connection's process is not known"))
}

fn spend(caller: &Caller) -> Result<(), Status> {
    let spent = caller.account.spend();
    spent.then_some(()).ok_or_else(|| Status::resource_exhausted("too many calls; wait a moment"))
}

/// One stream: what it has told, and what it waits for.
struct Stream {
    service: Arc<Service>,
    caller: Caller,
    world: watch::Receiver<Arc<World>>,
    trust: watch::Receiver<Arc<TrustBundles>>,
    ended: bool,
}

impl Stream {
    fn new(service: &Arc<Service>, caller: Caller) -> Self {
        let (world, trust) = (service.attestor.world(), service.trust.clone());
        Self { service: Arc::clone(service), caller, world, trust, ended: false }
    }

    /// What holds now; later changes end [`Self::changed`].
    fn look(&mut self) -> Result<(Vec<SpiffeId>, Arc<TrustBundles>), Status> {
        drop(self.world.borrow_and_update());
        let trust = Arc::clone(&self.trust.borrow_and_update());
        Ok((self.service.identities(&self.caller)?, trust))
    }

    /// Returns when something may be new, or it is time to look at the caller again.
    async fn changed(&mut self, held: &mut [(SpiffeId, watch::Receiver<Held>)]) -> Result<(), Status> {
        let stopping = || Err(Status::unavailable("meshd is stopping"));
        let svids = async {
            if held.is_empty() {
                return std::future::pending().await;
            }
            select_all(held.iter_mut().map(|(_, receiver)| Box::pin(receiver.changed()))).await.0
        };
        tokio::select! {
            () = self.service.stop.cancelled() => stopping(),
            changed = self.world.changed() => changed.or_else(|_| stopping()),
            changed = self.trust.changed() => changed.or_else(|_| stopping()),
            // Whose task has ended is held anew.
            _ = svids => Ok(()),
            () = sleep(self.service.recheck) => Ok(()),
        }
    }
}

/// A stream of what `told` makes of the trust in force, as long as the caller is a workload.
fn follow_trust<T: Send + 'static>(
    stream: Stream,
    told: fn(&TrustBundles) -> T,
) -> BoxStream<'static, Result<T, Status>> {
    let state = (stream, None::<Arc<TrustBundles>>);
    unfold(state, move |(mut stream, mut last)| async move {
        if stream.ended {
            return None;
        }
        let answer = loop {
            match stream.look() {
                Ok((_, trust)) if last.as_ref().is_none_or(|last| *last != trust) => {
                    let message = told(&trust);
                    last = Some(trust);
                    break Ok(message);
                }
                Ok(_) => {}
                Err(status) => break Err(status),
            }
            if let Err(status) = stream.changed(&mut []).await {
                break Err(status);
            }
        };
        stream.ended = answer.is_err();
        Some((answer, (stream, last)))
    })
    .boxed()
}

/// The X.509-SVIDs of one caller.
struct X509Svids {
    stream: Stream,
    held: Vec<(SpiffeId, watch::Receiver<Held>)>,
    /// Serial numbers and trust that were told last.
    told: Option<(Vec<String>, Arc<TrustBundles>)>,
}

impl X509Svids {
    async fn next(&mut self) -> Result<X509svidResponse, Status> {
        loop {
            let (ids, trust) = self.stream.look()?;
            self.hold(&ids);
            let deadline = Instant::now() + FIRST_SVID;
            let mut svids = Vec::new();
            for (_, held) in &mut self.held {
                svids.extend(newest(held, deadline).await);
            }
            if svids.is_empty() {
                return Err(Status::unavailable("no SVID can be had now; meshd's log says why"));
            }
            let serials: Vec<_> = svids.iter().map(|svid| svid.serial.clone()).collect();
            let known = self.told.as_ref();
            if known.is_none_or(|(told, last)| *told != serials || *last != trust) {
                // Issuing may have taken a while: still the one it was issued for?
                if self.stream.look()?.0 != ids {
                    continue;
                }
                let message = messages::x509_svids(&svids, &trust);
                for svid in &svids {
                    self.stream.service.handed_out(
                        &self.stream.caller,
                        "x509",
                        &svid.spiffe_id,
                        &svid.serial,
                    );
                }
                self.told = Some((serials, trust));
                return Ok(message);
            }
            self.stream.changed(&mut self.held).await?;
        }
    }

    /// Holds the SVIDs of exactly these, in this order.
    fn hold(&mut self, ids: &[SpiffeId]) {
        let mut before = std::mem::take(&mut self.held);
        for id in ids {
            let known = before.iter().position(|(known, held)| known == id && held.has_changed().is_ok());
            let held = match known {
                Some(at) => before.swap_remove(at).1,
                None => self.stream.service.keeper.hold(id),
            };
            self.held.push((id.clone(), held));
        }
    }
}

/// The newest SVID; none, when none could be issued yet.
async fn newest(held: &mut watch::Receiver<Held>, deadline: Instant) -> Option<Arc<ExportableSvid>> {
    // A timeout or an ended task leaves what is there.
    let _ = timeout_at(deadline, held.wait_for(|held| held.svid.is_some() || held.tries > 0)).await;
    held.borrow_and_update().svid.clone()
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Arc<Service> {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let caller = caller(&request)?;
        spend(&caller)?;
        self.identities(&caller)?;
        let svids = X509Svids { stream: Stream::new(self, caller), held: Vec::new(), told: None };
        let stream = unfold(svids, |mut svids| async move {
            if svids.stream.ended {
                return None;
            }
            let answer = svids.next().await;
            svids.stream.ended = answer.is_err();
            Some((answer, svids))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let caller = caller(&request)?;
        spend(&caller)?;
        self.identities(&caller)?;
        Ok(Response::new(follow_trust(Stream::new(self, caller), messages::x509_bundles)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let caller = caller(&request)?;
        spend(&caller)?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        check_audiences(&audience).map_err(Status::invalid_argument)?;
        let mut ids = self.identities(&caller)?;
        if !spiffe_id.is_empty() {
            let wanted: SpiffeId =
                spiffe_id.parse().map_err(|_| Status::invalid_argument("spiffe_id is no SPIFFE ID"))?;
            ids.retain(|id| *id == wanted);
            if ids.is_empty() {
                return Err(Status::permission_denied("no identity issued"));
            }
        }
        let minter = self.minter.as_ref();
        let minter = minter.ok_or_else(|| Status::unavailable("this node has no authority of JWT-SVIDs"))?;
        let deadline = Instant::now() + MINT_TIMEOUT;
        let mut svids = Vec::new();
        for id in ids {
            let request = JwtSvidRequest { id: id.clone(), audiences: audience.clone(), lifetime: None };
            let answer = timeout_at(deadline, minter.mint(request)).await;
            let failure = match answer {
                Ok(Ok(JwtSvid { token, .. })) => {
                    self.handed_out(&caller, "jwt", &id, "");
                    svids.push(Jwtsvid { spiffe_id: id.to_string(), svid: token, hint: String::new() });
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the authority does not answer".to_owned(),
            };
            tracing::warn!(spiffe_id = %id, error = %failure, "no JWT-SVID could be minted");
            return Err(Status::unavailable("no JWT-SVID can be had now; meshd's log says why"));
        }
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let caller = caller(&request)?;
        spend(&caller)?;
        self.identities(&caller)?;
        Ok(Response::new(follow_trust(Stream::new(self, caller), messages::jwt_bundles)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let caller = caller(&request)?;
        spend(&caller)?;
        self.identities(&caller)?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || audience.len() > MAX_AUDIENCE_BYTES {
            return Err(Status::invalid_argument("audience must be given, and not be too long"));
        }
        if svid.is_empty() || svid.len() > MAX_TOKEN_BYTES {
            return Err(Status::invalid_argument("svid must be given, and not be too long"));
        }
        let trust = Arc::clone(&self.trust.borrow());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let believed = verify_jwt_svid(&svid, &audience, &trust, now)
            .map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: believed.spiffe_id.to_string(),
            claims: Some(messages::claims(believed.claims)),
        }))
    }
}
