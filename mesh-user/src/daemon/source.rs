//! What the admin API shows of the running daemon.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    cluster::{self, Cluster},
    pods::Pods,
    reload::Runtime,
    review,
};
use crate::{
    admin::{
        AdminSource, ExplainError, ExplainQuery, ImpactReport, LintRow, PolicyFiles,
        api::{
            BpfMapRow, CertRow, CheckRow, ConnectionRow, Explanation, JwksRow, Mode, PolicyRow, ReloadReport,
            Status, WorkloadRow,
        },
    },
    ca::SvidStoreStatus,
    config::Selector,
    discovery::FileSource,
    policy,
    proxy::{Live, Mesh},
    telemetry::{Direction, KeyPlace, RelayKind},
    world::{Workload, WorkloadName},
};

/// The daemon as the admin API sees it.
pub(super) struct Source {
    runtime: Arc<Runtime>,
    files: Arc<FileSource>,
    cluster: Option<Arc<Cluster>>,
    started: Instant,
}

impl Source {
    pub(super) fn new(runtime: Arc<Runtime>, files: Arc<FileSource>, cluster: Option<Arc<Cluster>>) -> Self {
        Self { runtime, files, cluster, started: Instant::now() }
    }

    fn failed(&self) -> HashMap<WorkloadName, String> {
        self.runtime.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn bpf_maps(&self) -> Vec<BpfMapRow> {
        let maps = self.runtime.capture.map_use().unwrap_or_else(|error| {
            tracing::warn!(%error, "map use cannot be read");
            Vec::new()
        });
        let row = |m: crate::capture::MapUse| BpfMapRow {
            map: m.map.to_owned(),
            entries: m.used as u64,
            capacity: m.capacity as u64,
        };
        maps.into_iter().map(row).collect()
    }
}

impl AdminSource for Source {
    fn status(&self) -> Status {
        let mesh = &self.runtime.mesh;
        let view = mesh.view();
        let config = &view.snapshot.config;
        let files = self.files.status();
        let failed = self.failed();
        let mut problems: Vec<_> =
            failed.iter().map(|(name, why)| format!("{name} is not enrolled: {why}")).collect();
        if !files.needs_restart.is_empty() {
            problems.push(format!("a restart is needed to change {}", files.needs_restart.join(", ")));
        }
        if view.world().wants_kernel_path() && !mesh.has_kernel_path() {
            problems
                .push("sameNode: kernel is not in force: restart meshd, and see meshctl check".to_owned());
        }
        problems.extend(self.runtime.pods.as_ref().and_then(Pods::problem).map(str::to_owned));
        problems.extend(certificate_problems(&mesh.svids.summary(SystemTime::now())));
        problems.extend(self.runtime.federation.problems());
        problems.extend(review::key_problems(&mesh.keys.status()));
        let kubernetes = self.cluster.as_ref().map(|cluster| cluster.row());
        problems.extend(kubernetes.iter().flat_map(cluster::problems));
        let locals = view.world().local_workloads().count();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: config.node.clone(),
            trust_domain: config.trust_domain.to_string(),
            pid: std::process::id(),
            kernel: kernel_release(),
            uptime_s: self.started.elapsed().as_secs(),
            ready: self.runtime.has_begun(),
            kubernetes,
            problems,
            capture_form: self.runtime.capture.form().as_str().to_owned(),
            relay: mesh.relay_kind().as_str().to_owned(),
            workloads: locals.saturating_sub(failed.len()) as u64,
            connections: (mesh.connections.count() + 2 * mesh.kernel_connections().len()) as u64,
            policies: view.snapshot.policy_status.iter().filter(|p| p.accepted).count() as u64,
            config_loaded_unix_s: files.loaded_at_seconds,
            last_reload_error: files.last_error.or_else(|| self.runtime.refused()).unwrap_or_default(),
            bpf_maps: self.bpf_maps(),
        }
    }

    fn workloads(&self) -> Vec<WorkloadRow> {
        let view = self.runtime.mesh.view();
        let failed = self.failed();
        let mut live: HashMap<WorkloadName, u64> = HashMap::new();
        for connection in self.runtime.mesh.connections.list() {
            *live.entry(connection.workload.clone()).or_default() += 1;
        }
        for (_, ends) in self.runtime.mesh.kernel_connections() {
            for workload in ends.into_iter().flatten() {
                *live.entry(workload).or_default() += 1;
            }
        }
        let row = |w: &Workload| WorkloadRow {
            namespace: w.namespace().to_owned(),
            name: w.name.name.to_string(),
            spiffe_id: w.spiffe_id.to_string(),
            node: w.node.to_string(),
            local: w.local.is_some(),
            selector: w.local.as_ref().map(|l| selector(&l.selector)).unwrap_or_default(),
            addresses: w.addresses.iter().map(ToString::to_string).collect(),
            state: match (failed.get(&w.name), &w.local) {
                (Some(why), _) => format!("failed: {why}"),
                (None, Some(_)) => "enrolled".to_owned(),
                (None, None) => "remote".to_owned(),
            },
            mode: mode(view.snapshot.policies.for_workload(w.id).default_mode()),
            connections: live.get(&w.name).copied().unwrap_or(0),
        };
        let mut rows: Vec<_> = view.world().workloads().iter().map(row).collect();
        rows.sort_by(|a, b| (!a.local, &a.namespace, &a.name).cmp(&(!b.local, &b.namespace, &b.name)));
        rows
    }

    fn connections(&self) -> Vec<ConnectionRow> {
        let mesh = &self.runtime.mesh;
        let mut rows: Vec<_> = mesh.connections.list().iter().map(connection).collect();
        rows.extend(kernel_connections(mesh));
        rows
    }

    fn certs(&self) -> Vec<CertRow> {
        let now = unix_seconds(SystemTime::now());
        let mut rows: Vec<_> = self.runtime.mesh.svids.status().iter().map(|s| svid(s, now)).collect();
        rows.extend(issuer(&self.runtime.mesh.svids.summary(SystemTime::now()), now));
        for (domain, roots) in &self.runtime.bundles.load().roots {
            rows.extend(roots.iter().map(|root| self::root(domain.as_str(), root, now)));
        }
        rows
    }

    fn policies(&self) -> Vec<PolicyRow> {
        let view = self.runtime.mesh.view();
        let row = |p: &policy::PolicyStatus| PolicyRow {
            kind: p.kind.clone(),
            namespace: p.namespace.clone(),
            name: p.name.clone(),
            scope: p.scope.to_string(),
            action: p.action.clone(),
            workloads: p.workloads as u64,
            not_enforced: p.not_enforced.clone(),
            conflicts: p.conflicts.clone(),
        };
        view.snapshot.policy_status.iter().map(row).collect()
    }

    fn check(&self) -> Vec<CheckRow> {
        super::check::rows(&self.runtime)
    }

    fn jwks(&self) -> Vec<JwksRow> {
        self.runtime.mesh.keys.status().into_iter().map(review::jwks_row).collect()
    }

    fn lint(&self, files: &PolicyFiles) -> Result<Vec<LintRow>, String> {
        review::lint(&self.runtime.mesh, files)
    }

    fn impact(&self, files: &PolicyFiles) -> Result<ImpactReport, String> {
        review::impact(&self.runtime.mesh, files)
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        review::explain(&self.runtime.mesh, query)
    }

    fn reload(&self) -> Result<ReloadReport, String> {
        let reload = self.runtime.reload(&self.files)?;
        let snapshot = self.files.snapshot();
        let mut warnings = snapshot.warnings.clone();
        if !reload.needs_restart.is_empty() {
            warnings.push(format!("a restart is needed to change {}", reload.needs_restart.join(", ")));
        }
        Ok(ReloadReport {
            changed: reload.changed,
            workloads: snapshot.world.local_workloads().count() as u64,
            policies: snapshot.policy_status.len() as u64,
            connections_closed: reload.closed as u64,
            warnings,
        })
    }

    fn metrics_text(&self) -> String {
        let mesh = &self.runtime.mesh;
        for live in mesh.connections.list() {
            live.report_bytes();
        }
        if let Ok(maps) = self.runtime.capture.map_use() {
            for map in maps {
                mesh.metrics.set_bpf_map(map.map, map.used as u64, map.capacity as u64);
            }
        }
        if let Ok(stats) = self.runtime.capture.stats() {
            for (event, total) in stats.iter() {
                mesh.metrics.set_bpf_event(event, total);
            }
        }
        let svids = mesh.svids.status();
        let expiry = |s: &crate::ca::CertificateStatus| {
            UNIX_EPOCH + std::time::Duration::from_secs(s.not_after_seconds)
        };
        mesh.metrics.set_svids(
            svids.iter().filter(|s| s.not_after_seconds > 0).map(|s| (s.spiffe_id.as_str(), expiry(s))),
        );
        let places = mesh.keys.status();
        mesh.metrics.set_key_places(places.iter().map(|place| KeyPlace {
            url: &place.url,
            keys: place.keys,
            failures: place.failures,
            fetched_at_seconds: place.fetched_at_seconds,
        }));
        let summary = mesh.svids.summary(SystemTime::now());
        let states = [
            ("valid", summary.valid),
            ("missing", summary.missing),
            ("failing", summary.failing),
            ("overdue", summary.overdue),
        ];
        mesh.metrics.set_svid_states(states, summary.issuer_end_seconds);
        if let Some(cluster) = &self.cluster {
            cluster.count(&mesh.metrics);
        }
        mesh.metrics.set_svid_source(summary.source_trouble.is_none(), summary.last_success_seconds);
        mesh.metrics.text()
    }

    fn admin_refused(&self, reason: &'static str) {
        self.runtime.mesh.metrics.admin_refused(reason);
    }
}

fn connection(live: &Arc<Live>) -> ConnectionRow {
    let record = &live.record;
    let (received, sent) = live.bytes();
    let other = match record.direction {
        Direction::Inbound => &record.source,
        Direction::Outbound => &record.destination,
    };
    let by_rule = record.tls_mode.map(|mode| format!(" ({mode})")).unwrap_or_default();
    let cipher = record.tls_cipher.unwrap_or("unknown cipher");
    let tls = record.tls_version.map(|version| format!("{version} {cipher}{by_rule}"));
    ConnectionRow {
        id: live.id,
        direction: record.direction,
        workload: live.workload.to_string(),
        source: record.source.address.to_string(),
        destination: record.destination.address.to_string(),
        original_destination: record.original_destination.map(|a| a.to_string()),
        peer: other.workload.as_ref().zip(other.namespace.as_ref()).map(|(name, ns)| format!("{ns}/{name}")),
        peer_spiffe_id: record.peer_spiffe_id.as_ref().map(ToString::to_string),
        own_spiffe_id: record.own_spiffe_id.as_ref().map(ToString::to_string),
        state: "relaying".to_owned(),
        relay: record.relay.unwrap_or(RelayKind::Plaintext),
        capture_form: record.capture_form.to_owned(),
        tls,
        resumed: record.resumed.unwrap_or(false),
        bytes_sent: Some(sent),
        bytes_received: Some(received),
        age_ms: millis(live.stats.started().elapsed()),
        idle_ms: Some(millis(live.stats.idle())),
    }
}

/// Each is two: its client's, and its server's.
fn kernel_connections(mesh: &Mesh) -> Vec<ConnectionRow> {
    let view = mesh.view();
    let world = view.world();
    let identity = |name: &Option<WorkloadName>| {
        let name = name.as_ref()?;
        Some(world.by_name(&name.namespace, &name.name)?.spiffe_id.to_string())
    };
    let mut rows = Vec::new();
    for (connection, [client, server]) in mesh.kernel_connections() {
        for (direction, own, other) in
            [(Direction::Outbound, &client, &server), (Direction::Inbound, &server, &client)]
        {
            rows.push(ConnectionRow {
                id: connection.id(),
                direction,
                workload: own.as_ref().map(ToString::to_string).unwrap_or_default(),
                source: connection.client.to_string(),
                destination: connection.server.to_string(),
                original_destination: None,
                peer: other.as_ref().map(ToString::to_string),
                peer_spiffe_id: identity(other),
                own_spiffe_id: identity(own),
                state: "open".to_owned(),
                relay: RelayKind::Kernel,
                capture_form: RelayKind::Kernel.as_str().to_owned(),
                tls: None,
                resumed: false,
                bytes_sent: None,
                bytes_received: None,
                age_ms: millis(connection.age()),
                idle_ms: None,
            });
        }
    }
    rows
}

fn svid(status: &crate::ca::CertificateStatus, now: i64) -> CertRow {
    let (from, to) = (signed(status.not_before_seconds), signed(status.not_after_seconds));
    let state = match &status.last_error {
        Some(error) if now <= to => format!("renewal failing: {error}"),
        _ => validity(from, to, now).to_owned(),
    };
    CertRow {
        kind: "svid".to_owned(),
        subject: status.spiffe_id.clone(),
        serial: status.serial.clone(),
        not_before_unix_s: from,
        not_after_unix_s: to,
        state,
    }
}

/// The certificate that signs the SVIDs; none where the issuer does not tell.
fn issuer(summary: &SvidStoreStatus, now: i64) -> Option<CertRow> {
    let to = signed(summary.issuer_end_seconds?);
    let state = match validity(i64::MIN, to, now) {
        "valid" if summary.issuer_ends_soon => "valid, ends soon: replace the files in the CA's folder",
        state => state,
    };
    Some(CertRow {
        kind: "ca".to_owned(),
        subject: "issuing certificate".to_owned(),
        not_after_unix_s: to,
        state: state.to_owned(),
        ..CertRow::default()
    })
}

/// What about certificates an operator must act on.
fn certificate_problems(summary: &SvidStoreStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if summary.missing > 0 {
        problems.push(format!(
            "{} identities have no valid SVID, so their connections are refused: meshctl certs says why",
            summary.missing
        ));
    }
    if let Some(trouble) = &summary.source_trouble {
        problems.push(trouble.clone());
    }
    if summary.overdue > 0 {
        problems.push(format!(
            "{} SVIDs have less than a third of their life left and were not renewed: meshctl certs says why",
            summary.overdue
        ));
    }
    if summary.failing > 0 {
        problems.push(format!("renewal fails for {} SVIDs: meshctl certs says why", summary.failing));
    }
    if summary.issuer_ends_soon {
        problems.push("the CA's own certificate ends soon: replace the files in its folder".to_owned());
    }
    problems
}

fn root(domain: &str, der: &[u8], now: i64) -> CertRow {
    let mut row = CertRow { kind: "root".to_owned(), subject: domain.to_owned(), ..CertRow::default() };
    match x509_parser::parse_x509_certificate(der) {
        Ok((_, certificate)) => {
            row.serial = format!("{:x}", certificate.tbs_certificate.serial);
            row.not_before_unix_s = certificate.validity().not_before.timestamp();
            row.not_after_unix_s = certificate.validity().not_after.timestamp();
            validity(row.not_before_unix_s, row.not_after_unix_s, now).clone_into(&mut row.state);
        }
        Err(error) => row.state = format!("unreadable: {error}"),
    }
    row
}

fn validity(from: i64, to: i64, now: i64) -> &'static str {
    if now > to {
        "expired"
    } else if now < from {
        "not yet valid"
    } else {
        "valid"
    }
}

fn mode(mode: policy::Mode) -> Mode {
    match mode {
        policy::Mode::Strict => Mode::Strict,
        policy::Mode::Permissive => Mode::Permissive,
        policy::Mode::Disable => Mode::Disable,
    }
}

fn selector(selector: &Selector) -> String {
    match selector {
        Selector::Netns(path) => format!("netns {}", path.display()),
        Selector::Cgroup(path) => format!("cgroup {}", path.display()),
        Selector::Unit(unit) => format!("unit {unit}"),
        Selector::Pod(uid) => format!("pod {uid}"),
        Selector::User(user) => format!("user {user}"),
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| signed(d.as_secs()))
}
