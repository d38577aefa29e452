//! One connection from accept to its access-log line. Whatever way it takes, exactly one line and one pair of
//! opened and closed counts come out of it.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{Mesh, View, relay::CloseReason};
use crate::{
    capture::Refusal,
    policy::{DenyReason, Mode, RuleRef, Verdict, destination_rule::Applied},
    telemetry::{
        ConnectionLabels, ConnectionMetrics, ConnectionRecord, ConnectionSecurityPolicy, Direction, Metrics,
        RelayKind, RequestMetrics, ResponseFlags, ServiceLabels, WorkloadLabels,
    },
    tls::Established,
    world::{ExternalService, Workload},
};

/// What the access log says where it never came to a verdict.
const UNDECIDED: &str = "-";

/// What is known about a connection so far.
pub(super) struct Attempt {
    mesh: Arc<Mesh>,
    started: Instant,
    /// Shared with the table of live connections once it is relayed.
    pub(super) record: Arc<ConnectionRecord>,
    source: Arc<WorkloadLabels>,
    destination: Arc<WorkloadLabels>,
    service: Arc<ServiceLabels>,
}

/// Why a connection ends before it is relayed.
pub(super) struct Failure {
    pub(super) flags: ResponseFlags,
    pub(super) error: String,
    /// What a held `connect` is told.
    pub(super) refusal: Refusal,
}

impl Failure {
    pub(super) fn new(flags: ResponseFlags, error: &(impl ToString + ?Sized)) -> Self {
        Self { flags, error: error.to_string(), refusal: Refusal::Refused }
    }

    /// The wire leg could not be connected: a held `connect` ends as it would have without meshd.
    pub(super) fn connect(to: SocketAddr, error: &io::Error) -> Self {
        let refusal = match error.kind() {
            io::ErrorKind::TimedOut => Refusal::Unanswered,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Refusal::Unreachable,
            _ => Refusal::Refused,
        };
        Self { refusal, ..Self::new(ResponseFlags::ConnectFailure, &format!("{to}: {error}")) }
    }
}

/// Counts a connection or request that policy denied.
pub(super) fn count_denial(metrics: &Metrics, reason: &DenyReason, direction: Direction) {
    let policy = |rule: &RuleRef| format!("{}/{}", rule.namespace, rule.name);
    let (policy, why) = match reason {
        DenyReason::StrictPlaintext => ("peer-authentication".to_owned(), "strict_plaintext"),
        DenyReason::Rule(rule) => (policy(rule), "deny_rule"),
        DenyReason::CustomUnavailable(rule) => (policy(rule), "custom_unavailable"),
        DenyReason::Custom { rule, error: None, .. } => (policy(rule), "custom_denied"),
        DenyReason::Custom { rule, error: Some(_), .. } => (policy(rule), "custom_error"),
        DenyReason::NoAllowMatched => ("none".to_owned(), "no_allow_matched"),
    };
    metrics.denied(&policy, why, direction);
}

impl Attempt {
    pub(super) fn new(
        mesh: &Arc<Mesh>,
        view: &View,
        direction: Direction,
        capture_form: &'static str,
        source: (SocketAddr, Option<&Workload>),
        destination: (SocketAddr, Option<&Workload>),
    ) -> Self {
        let own = if direction == Direction::Outbound { source.1 } else { destination.1 };
        let record = ConnectionRecord {
            time: SystemTime::now(),
            direction,
            source: View::party(source.0, source.1),
            destination: View::party(destination.0, destination.1),
            original_destination: None,
            service: None,
            peer_spiffe_id: None,
            own_spiffe_id: own.map(|w| w.spiffe_id.to_string().into()),
            verdict: UNDECIDED,
            rule: None,
            mode: None,
            tls_mode: None,
            relay: None,
            capture_form,
            tls_version: None,
            tls_cipher: None,
            resumed: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration_ms: 0,
            response_flags: ResponseFlags::None,
            error: None,
        };
        Self {
            mesh: Arc::clone(mesh),
            started: Instant::now(),
            record: Arc::new(record),
            source: view.workload_labels(source.1, None),
            destination: view.workload_labels(destination.1, None),
            service: view.service_labels(None),
        }
    }

    pub(super) fn record_mut(&mut self) -> &mut ConnectionRecord {
        Arc::make_mut(&mut self.record)
    }

    /// The endpoint that was picked for an outbound connection.
    pub(super) fn set_destination(&mut self, view: &View, address: SocketAddr, workload: Option<&Workload>) {
        self.record_mut().destination = View::party(address, workload);
        self.destination = view.workload_labels(workload, None);
    }

    pub(super) fn set_service(&mut self, view: &View, service: &crate::world::Service) {
        self.record_mut().service = Some(view.service_host(service).into());
        self.service = view.service_labels(Some(service));
    }

    /// A server outside the mesh.
    pub(super) fn set_outside(&mut self, service: &ExternalService) {
        self.record_mut().service = Some(Arc::clone(&service.host));
        self.service = Arc::new(ServiceLabels::new(&service.host, &service.host, &service.namespace));
    }

    /// The `DestinationRule` that applies.
    pub(super) fn set_rule(&mut self, applied: &Applied<'_>) {
        self.record_mut().tls_mode = Some(applied.tls.mode());
        self.record_mut().rule = Some(format!("DestinationRule {}", applied.rule));
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.record_mut().mode = Some(match mode {
            Mode::Strict => "STRICT",
            Mode::Permissive => "PERMISSIVE",
            Mode::Disable => "DISABLE",
        });
    }

    /// What the handshake proved.
    pub(super) fn set_tls(&mut self, view: &View, established: &Established) {
        let facts = established.facts();
        let peer = established.peer().map(|peer| &peer.spiffe_id);
        let record = self.record_mut();
        record.peer_spiffe_id = peer.map(|peer| peer.to_string().into());
        if peer.is_none() {
            // Nor was the server told of the workload's own.
            record.own_spiffe_id = None;
        }
        record.tls_version = Some(match facts.version {
            rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => "TLSv1.3",
        });
        record.tls_cipher = facts.cipher_suite.suite().as_str();
        record.resumed = Some(facts.resumed);
        if self.record.direction == Direction::Inbound && self.record.source.workload.is_none() {
            self.source = view.workload_labels(None, peer);
        }
    }

    /// Where it left from, once that is known.
    pub(super) fn set_source_address(&mut self, address: SocketAddr) {
        self.record_mut().source.address = address;
    }

    /// Records a verdict; a denial is counted.
    pub(super) fn set_verdict(&mut self, verdict: &Verdict) -> Result<(), Failure> {
        match verdict {
            Verdict::Allow { rule } => {
                self.record_mut().verdict = "allow";
                self.record_mut().rule = rule.as_ref().map(ToString::to_string);
                Ok(())
            }
            Verdict::Deny { reason } => Err(self.deny(reason)),
        }
    }

    /// Records and counts a denial.
    pub(super) fn deny(&mut self, reason: &DenyReason) -> Failure {
        self.record_mut().verdict = "deny";
        self.record_mut().rule = Some(reason.to_string());
        count_denial(&self.mesh.metrics, reason, self.record.direction);
        Failure::new(ResponseFlags::Denied, reason)
    }

    /// Each request on it is decided by itself.
    pub(super) fn decide_requests(&mut self) {
        self.record_mut().verdict = "requests";
    }

    /// Nothing forbids an outbound connection but that its server cannot prove itself.
    pub(super) fn allow_outbound(&mut self) {
        self.record_mut().verdict = "allow";
    }

    /// Policy or trust took back what they had allowed.
    pub(super) fn revoke(&mut self, why: &CloseReason) {
        self.record_mut().verdict = "deny";
        self.record_mut().rule = Some(why.to_string());
    }

    fn labels(&self) -> ConnectionLabels {
        let security = if self.record.tls_version.is_some() && self.record.peer_spiffe_id.is_some() {
            ConnectionSecurityPolicy::MutualTls
        } else {
            ConnectionSecurityPolicy::None
        };
        ConnectionLabels {
            reporter: self.record.direction.reporter(),
            source: Arc::clone(&self.source),
            destination: Arc::clone(&self.destination),
            service: Arc::clone(&self.service),
            security,
        }
    }

    /// Opens the connection's metrics.
    pub(super) fn open_metrics(&self, relay: RelayKind) -> ConnectionMetrics {
        self.mesh.metrics.connection_opened(&self.labels(), self.record.direction, relay)
    }

    /// The metrics of requests that are read on it.
    pub(super) fn request_metrics(&self) -> RequestMetrics {
        self.mesh.metrics.requests_on(&self.labels())
    }

    /// The connection ends without having been relayed.
    pub(super) fn fail(mut self, failure: Failure) {
        self.mesh.metrics.connection_refused(&self.labels(), failure.flags);
        if matches!(
            failure.flags,
            ResponseFlags::TlsFailure | ResponseFlags::HandshakeTimeout | ResponseFlags::Denied
        ) {
            // Identity that could not be proven is as good as denied, and so is what the other side denies.
            self.record_mut().verdict = "deny";
        }
        self.record_mut().response_flags = failure.flags;
        self.record_mut().error = Some(failure.error);
        self.log((0, 0));
    }

    /// The connection ends after having been relayed; `bytes` are (client to server, server to client).
    pub(super) fn finish(mut self, flags: ResponseFlags, error: Option<String>, bytes: (u64, u64)) {
        self.record_mut().response_flags = flags;
        self.record_mut().error = error;
        self.log(bytes);
    }

    /// The connection began so long ago.
    pub(super) fn began_before(&mut self, duration: Duration) {
        self.started = self.started.checked_sub(duration).unwrap_or(self.started);
    }

    /// A connection that meshd did not relay has ended; `bytes` as in [`Attempt::finish`].
    pub(super) fn ended(
        self,
        relay: RelayKind,
        flags: ResponseFlags,
        error: Option<String>,
        bytes: (u64, u64),
    ) {
        let mut metrics = self.open_metrics(relay);
        metrics.bytes().add_client_to_server(bytes.0);
        metrics.bytes().add_server_to_client(bytes.1);
        metrics.set_response_flags(flags);
        self.finish(flags, error, bytes);
    }

    fn log(self, (received, sent): (u64, u64)) {
        let Self { mesh, started, record, .. } = self;
        let mut record = Arc::unwrap_or_clone(record);
        record.time = SystemTime::now();
        record.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        record.bytes_received = received;
        record.bytes_sent = sent;
        mesh.access_log.log(|| record);
    }
}
