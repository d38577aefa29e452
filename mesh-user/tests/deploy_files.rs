//! The alert rules and the dashboard name only metrics that exist; the unit file keeps the mounts it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_user::telemetry::{
    AccessLog, AccessLogFormat, AccessLogSettings, ConnectionLabels, ConnectionSecurityPolicy, Direction,
    HandshakeSide, Metrics, MetricsLimits, RelayKind, Reporter, ServiceLabels, WorkloadLabels,
};

fn deploy_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every sample name that a busy daemon shows.
fn sample_names() -> BTreeSet<String> {
    let metrics = Metrics::new("node-a", MetricsLimits::default());
    let workload = Arc::new(WorkloadLabels::new("web", "shop", None, &BTreeMap::new()));
    let labels = ConnectionLabels {
        reporter: Reporter::Source,
        source: Arc::clone(&workload),
        destination: workload,
        service: Arc::new(ServiceLabels::all("db")),
        security: ConnectionSecurityPolicy::MutualTls,
    };
    drop(metrics.connection_opened(&labels, Direction::Outbound, RelayKind::Ktls));
    metrics.handshake_ended(HandshakeSide::Client, Ok(Duration::from_millis(1)));
    metrics.denied("shop/p", "rule", Direction::Inbound);
    metrics.offload_failed("refused");
    metrics.set_bpf_map("m", 1, 2);
    metrics.set_bpf_event("e", 1);
    metrics.set_svids([("spiffe://a/b", SystemTime::now())]);
    metrics.set_svid_states([("valid", 1), ("missing", 0), ("failing", 0), ("overdue", 0)], Some(1));
    metrics.set_svid_source(true, Some(1));
    metrics.admin_refused("credentials");
    let off = AccessLogSettings { format: AccessLogFormat::Off, per_second: 1 };
    AccessLog::to_writer(off, &metrics, Box::new(std::io::sink())).unwrap();
    let text = metrics.text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_exist() {
    let known = sample_names();
    let name = regex::Regex::new(r"\b(?:meshd|istio_tcp|process)_[a-z_]+\b").unwrap();
    for file in ["prometheus/meshd.rules.yaml", "grafana/meshd.json"] {
        let text = deploy_file(file);
        let mut used = 0;
        for found in name.find_iter(&text) {
            assert!(known.contains(found.as_str()), "{file} names {}, which is no metric", found.as_str());
            used += 1;
        }
        assert!(used > 5, "{file} names only {used} metrics");
    }
}

#[test]
fn the_scrape_configuration_has_the_job_that_the_rules_expect() {
    let scrape = deploy_file("prometheus/meshd.scrape.yaml");
    let job = scrape.lines().find_map(|line| line.trim().strip_prefix("- job_name: ")).unwrap();
    let rules = deploy_file("prometheus/meshd.rules.yaml");
    let named = regex::Regex::new("job=\"([^\"]*)\"").unwrap();
    let jobs: BTreeSet<_> = named.captures_iter(&rules).map(|found| found[1].to_owned()).collect();
    assert_eq!(jobs, BTreeSet::from([job.to_owned()]));
}

#[test]
fn the_dashboard_is_json_with_queries_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&deploy_file("grafana/meshd.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let graphs: Vec<_> = panels.iter().filter(|panel| panel["type"] != "row").collect();
    assert!(graphs.len() > 10);
    assert!(graphs.iter().all(|panel| panel["targets"].as_array().is_some_and(|t| !t.is_empty())));
}

#[test]
fn the_unit_has_no_mount_namespace() {
    // systemd.exec(5): each of these gives the service its own mounts, which would take the pinned hooks along
    // when it ends.
    let unit = deploy_file("systemd/meshd.service");
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        for option in [
            "Private",
            "ProtectSystem",
            "ProtectHome",
            "ProtectKernel",
            "ProtectControlGroups",
            "ProtectProc",
            "ProtectClock",
            "ReadWritePaths",
            "ReadOnlyPaths",
            "InaccessiblePaths",
            "TemporaryFileSystem",
            "Bind",
            "RootDirectory",
            "RootImage",
            "DynamicUser",
            "MountFlags",
        ] {
            assert!(!line.starts_with(option), "{line}");
        }
    }
    assert!(unit.contains("Type=notify\n") && unit.contains("WatchdogSec="));
}

#[test]
fn the_authoritys_unit_has_no_privilege_and_a_file_system_of_its_own() {
    let unit = deploy_file("systemd/meshd-ca.service");
    for line in [
        "Type=notify",
        "User=meshd-ca",
        "CapabilityBoundingSet=",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitCORE=0",
        "StateDirectoryMode=0700",
        "ExecStart=/usr/bin/meshd ca --config /etc/meshd/ca.yaml",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} is missing");
    }
}
