//! `meshd ca` as the source of SVIDs: this node joins with a one-time token, asks for its workloads' certificates with its
//! own, and follows whom to believe. In Kubernetes the agent's service-account token says who asks, with each request; on the
//! CA's own machine the kernel does, over a Unix socket.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::{future::BoxFuture, stream};
use rustls::SupportedProtocolVersion;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use super::{
    Address, RemoteError, ServerIdentity,
    channel::{Connector, MAX_ANSWER_BYTES},
    client::Client,
    node,
    request::{self, NewKey},
    token::bearer,
    trust::{Trust, roots_file},
};
use crate::{
    ca::{
        CaError, SvidSource,
        jwt_svid::{JwtSvid, JwtSvidRequest, MintJwt, RemoteMinter},
        plan::{Moment, Plan, Validity},
        proto::meshd::{RedeemRequest, WatchRequest, join_client::JoinClient, trust_client::TrustClient},
        workload_api::{ExportableSvid, IssueExportable},
    },
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
    sys::clock::boot_time,
};

static VERSIONS: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
/// Until the CA has answered a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A failed attempt to join is told to all who ask for so long, before the next.
const JOIN_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause before the CA is asked again whom to believe.
const MAX_WATCH_PAUSE: Duration = Duration::from_secs(15);
/// How often the node's own certificate is looked at.
const LOOK: Duration = Duration::from_secs(15);

/// How a node asks `meshd ca`.
#[derive(Debug, Clone)]
pub struct MeshdCaSettings {
    /// Ours.
    pub trust_domain: TrustDomain,
    /// This node's name.
    pub node: String,
    /// Where the CA is.
    pub address: Address,
    /// Who it must prove to be; over a Unix socket nobody asks.
    pub server: ServerIdentity,
    /// Roots to believe the CA's server by, before it has told others.
    pub roots_file: Option<PathBuf>,
    /// The agent's service-account token, renewed by Kubernetes; where there is one this node does not join.
    pub token_file: Option<PathBuf>,
    /// Holds a one-time token for the first start.
    pub join_token_file: Option<PathBuf>,
    /// Where the node's certificate and the last known trust are kept.
    pub state_dir: PathBuf,
    /// Life of an SVID that is asked for.
    pub svid_lifetime: Duration,
    /// How far clocks may differ.
    pub clock_skew: Duration,
}

/// `meshd ca`, asked over gRPC.
pub struct MeshdCa {
    settings: MeshdCaSettings,
    client: Client,
    trust: Trust,
    joining: Mutex<Option<(Instant, String)>>,
}

impl MeshdCa {
    /// Reads what was kept; nothing is asked yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the roots file holds none, or the state folder cannot be used.
    pub fn open(settings: MeshdCaSettings) -> Result<Arc<Self>, CaError> {
        crate::ca::files::open_directory(&settings.state_dir)?;
        let roots = match &settings.roots_file {
            Some(file) => roots_file(file, &settings.trust_domain)?,
            None => TrustBundles::default(),
        };
        let trust = Trust::open(&settings.state_dir, settings.trust_domain.clone(), roots);
        let connector = Connector {
            address: settings.address.clone(),
            server: settings.server.clone(),
            trust_domain: settings.trust_domain.clone(),
            versions: &VERSIONS,
            bundles: Arc::clone(&trust.bundles),
            roots_file: settings.roots_file.clone(),
            clock_skew: settings.clock_skew,
            own: Arc::new(ArcSwap::from_pointee(None)),
        };
        let client = Client::new(connector, Arc::clone(&trust.bundles))?;
        let ca = Self { settings, client, trust, joining: Mutex::default() };
        if !ca.needs_no_certificate() {
            match node::read(&ca.settings.state_dir, &ca.client.verifier, SystemTime::now()) {
                Ok(Some(svid)) => ca.client.set_own(Arc::new(svid))?,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the node's own certificate is not used: it must join again");
                }
            }
        }
        Ok(Arc::new(ca))
    }

    /// Follows whom to believe, and renews the node's own certificate, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.follow_trust() => {}
            () = self.renew_own() => {}
        }
    }

    /// Each request, or the kernel, says who asks.
    fn needs_no_certificate(&self) -> bool {
        matches!(self.settings.address, Address::Unix(_)) || self.settings.token_file.is_some()
    }

    /// A request that says who asks, where a token does.
    async fn asking<T>(&self, message: T) -> Result<tonic::Request<T>, RemoteError> {
        let mut request = tonic::Request::new(message);
        if let Some(file) = &self.settings.token_file {
            request.metadata_mut().insert("authorization", bearer(file).await?);
        }
        Ok(request)
    }

    async fn certify(&self, id: &SpiffeId) -> Result<(Svid, NewKey), RemoteError> {
        self.join().await?;
        self.trust_is_known().await?;
        let key = NewKey::generate()?;
        let request = request::certificate(key.csr(Some(id))?, self.settings.svid_lifetime, Some(id));
        let request = self.asking(request).await?;
        let answer = self.in_time(self.client.create(&id.to_string(), request)).await?;
        Ok((answer.svid(Some(id), &key, &self.client.verifier, SystemTime::now())?, key))
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
        timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
            let what = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            self.client.told(Err(tonic::Status::deadline_exceeded(what)))
        })
    }

    /// An answer cannot be judged before.
    async fn trust_is_known(&self) -> Result<(), RemoteError> {
        let mut told = self.trust.subscribe();
        let known = timeout(CALL_TIMEOUT, told.wait_for(|_| self.trust.is_known())).await;
        match known {
            Ok(Ok(_)) => Ok(()),
            _ => Err(RemoteError::NoTrust(self.settings.trust_domain.clone())),
        }
    }

    fn has_joined(&self) -> bool {
        self.needs_no_certificate() || self.client.own().is_some_and(|own| own.not_after > SystemTime::now())
    }

    /// Spends the token where the node has no certificate.
    async fn join(&self) -> Result<(), RemoteError> {
        if self.has_joined() {
            return Ok(());
        }
        let mut failed = self.joining.lock().await;
        if self.has_joined() {
            return Ok(());
        }
        if let Some((when, why)) = &*failed
            && when.elapsed() < JOIN_PAUSE
        {
            return Err(RemoteError::NotJoined(why.clone()));
        }
        let joined = self.redeem().await;
        *failed = joined.as_ref().err().map(|error| match error {
            RemoteError::NotJoined(why) => (Instant::now(), why.clone()),
            error => (Instant::now(), error.to_string()),
        });
        joined
    }

    async fn redeem(&self) -> Result<(), RemoteError> {
        let token = node::join_token(self.settings.join_token_file.as_deref())?;
        self.client.forget_own()?;
        let key = NewKey::generate()?;
        let request = RedeemRequest { token: token.to_string(), csr: key.csr(None)? };
        let mut client = JoinClient::new(self.client.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = self.in_time(async { self.client.told(client.redeem(request).await) }).await;
        let answer = answer?.into_inner();
        self.trust_is_known().await?;
        let answer = super::answer::Answer::read("this node", &answer.cert_chain)?;
        self.take_own(answer, key).await?;
        tracing::info!("this node has joined; its token is spent");
        Ok(())
    }

    /// Puts the node's new certificate into use and keeps it.
    async fn take_own(&self, answer: super::answer::Answer, key: NewKey) -> Result<Duration, RemoteError> {
        let now = SystemTime::now();
        let svid = answer.svid(None, &key, &self.client.verifier, now)?;
        if *svid.spiffe_id.trust_domain() != self.settings.trust_domain {
            let what = format!("{} is no identity of this node", svid.spiffe_id);
            return Err(RemoteError::Answer { subject: "this node".to_owned(), what });
        }
        let svid = Arc::new(svid);
        let left = svid.not_after.duration_since(now).unwrap_or_default();
        tracing::info!(spiffe_id = %svid.spiffe_id, serial = %svid.serial, ?left, "the node's own certificate");
        let (directory, kept) = (self.settings.state_dir.clone(), Arc::clone(&svid));
        let written = tokio::task::spawn_blocking(move || node::write(&directory, &key, &kept)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "the node's certificate is not kept: after a restart it must join again");
        }
        self.client.set_own(svid)?;
        Ok(left)
    }

    /// At half life, over mTLS with the certificate that it replaces.
    async fn renew_own(&self) {
        if self.needs_no_certificate() {
            return std::future::pending().await;
        }
        let mut planned: Option<(Arc<Svid>, Plan)> = None;
        loop {
            sleep(next_look(planned.as_ref().map(|(_, plan)| *plan))).await;
            let Some(own) = self.client.own() else {
                // Asking for a workload's certificate joins, too; a node without workloads joins here.
                let _ = self.join().await;
                continue;
            };
            let now = Moment::now();
            let validity = Validity { not_before: own.not_before, not_after: own.not_after };
            let mut plan = match planned.take() {
                Some((of, plan)) if Arc::ptr_eq(&of, &own) => plan,
                _ => Plan::after_issue(now, own.not_after, rand::random()),
            };
            if plan.is_too_late(now, validity) {
                plan = Plan::brought_forward(now, validity, 1, rand::random());
            }
            if plan.is_due(now.boot)
                && let Err(error) = self.renewed_own().await
            {
                tracing::warn!(%error, "the node's own certificate is not renewed; the old one stays");
                plan = plan.after_failure(now, Some(validity), rand::random());
            }
            planned = Some((own, plan));
        }
    }

    async fn renewed_own(&self) -> Result<(), RemoteError> {
        if !self.has_joined() {
            return self.join().await;
        }
        let key = NewKey::generate()?;
        let request = request::certificate(key.csr(None)?, Duration::ZERO, None);
        let answer = self.in_time(self.client.create("this node", tonic::Request::new(request))).await?;
        self.take_own(answer, key).await.map(drop)
    }

    /// Again and again: a stream that ends is opened anew.
    async fn follow_trust(&self) {
        let mut failures = 0_u32;
        loop {
            let began = Instant::now();
            if let Err(error) = self.watch().await {
                tracing::warn!(%error, "the CA tells nothing of trust now; what it told last stays in force");
            }
            failures = if began.elapsed() > MAX_WATCH_PAUSE { 0 } else { failures.saturating_add(1) };
            let most = Duration::from_millis(250).saturating_mul(1 << failures.min(8)).min(MAX_WATCH_PAUSE);
            sleep(most.mul_f64(rand::random::<f64>()).max(Duration::from_millis(50))).await;
        }
    }

    async fn watch(&self) -> Result<(), RemoteError> {
        self.join().await?;
        let (acknowledge, requests) = mpsc::channel(4);
        let mut in_force = self.trust.in_force();
        let ours = |version| WatchRequest { node: self.settings.node.clone(), version };
        // There is room for it.
        let _ = acknowledge.try_send(ours(*in_force.borrow_and_update()));
        let requests = stream::unfold(requests, |mut requests| async {
            requests.recv().await.map(|request| (request, requests))
        });
        let mut client = TrustClient::new(self.client.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let requests = self.asking(requests).await?;
        let opened = async { self.client.told(client.watch(requests).await) };
        let mut states = self.in_time(opened).await?.into_inner();
        let mut newest = None;
        loop {
            tokio::select! {
                state = states.message() => {
                    let Some(state) = self.client.told(state)? else {
                        return self.client.told(Err(tonic::Status::unavailable("it ended the stream of trust")));
                    };
                    if newest.is_some_and(|newest| state.version < newest) {
                        tracing::warn!(version = state.version, "the CA tells of an older trust: it is ignored");
                        continue;
                    }
                    let version = state.version;
                    self.trust.learn(state).await?;
                    newest = Some(version);
                    tracing::info!(version, "the CA tells whom to believe");
                }
                changed = in_force.changed() => {
                    let version = *in_force.borrow_and_update();
                    if changed.is_err() || acknowledge.send(ours(version)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn next_look(plan: Option<Plan>) -> Duration {
    let wait = plan.map_or(Duration::from_secs(1), |plan| plan.next.saturating_sub(boot_time()));
    wait.min(LOOK)
}

impl SvidSource for MeshdCa {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Svid, CaError>> {
        Box::pin(async { Ok(self.certify(id).await?.0) })
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trust.subscribe()
    }

    fn trouble(&self) -> Option<String> {
        self.client.trouble()
    }

    fn trust_in_force(&self, trust: &Arc<TrustBundles>) {
        self.trust.put_in_force(trust);
    }
}

impl IssueExportable for MeshdCa {
    fn issue_exportable<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<ExportableSvid, CaError>> {
        Box::pin(async {
            let (svid, key) = self.certify(id).await?;
            Ok(ExportableSvid::new(svid, key.to_der()))
        })
    }
}

impl MintJwt for MeshdCa {
    fn mint(&self, request: JwtSvidRequest) -> BoxFuture<'_, Result<JwtSvid, CaError>> {
        Box::pin(async {
            self.join().await?;
            let token = match &self.settings.token_file {
                Some(file) => Some(bearer(file).await?),
                None => None,
            };
            let channel =
                InterceptedService::new(self.client.channel(), move |mut asking: tonic::Request<()>| {
                    if let Some(token) = &token {
                        asking.metadata_mut().insert("authorization", token.clone());
                    }
                    Ok(asking)
                });
            RemoteMinter::new(channel).mint(request).await
        })
    }
}
