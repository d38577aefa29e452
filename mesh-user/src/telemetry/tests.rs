//! Behaviour of metrics and access log as their readers see it.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::*;

fn labels(client: &str, server: &str) -> ConnectionLabels {
    let app = |name: &str| BTreeMap::from([("app".to_owned(), name.to_owned())]);
    let id = |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}");
    ConnectionLabels {
        reporter: Reporter::Destination,
        source: Arc::new(
            WorkloadLabels::new(client, "shop", Some(&id(client)), &app(client)).in_cluster("Kubernetes"),
        ),
        destination: Arc::new(WorkloadLabels::new(server, "shop", Some(&id(server)), &app(server))),
        service: Arc::new(ServiceLabels::new("db.shop.svc.cluster.local", "db", "shop")),
        security: ConnectionSecurityPolicy::MutualTls,
    }
}

fn metrics() -> Metrics {
    Metrics::new("node-a", MetricsLimits::default())
}

/// The value of the only sample whose line starts with `name{` (or is `name `) and holds all `parts`.
fn sample(text: &str, name: &str, parts: &[&str]) -> Option<String> {
    let mut found = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && parts.iter().all(|p| line.contains(p))
    });
    let value = found.next()?.rsplit(' ').next()?.to_owned();
    assert!(found.next().is_none(), "{name} {parts:?} is ambiguous");
    Some(value)
}

#[test]
fn a_connections_life_in_istios_names_and_labels() {
    let metrics = metrics();
    let mut connection =
        metrics.connection_opened(&labels("web", "db"), Direction::Inbound, RelayKind::Userspace);
    connection.bytes().add_client_to_server(100);
    connection.bytes().add_server_to_client(7);

    let golden = "istio_tcp_received_bytes_total{reporter=\"destination\",source_workload=\"web\",\
        source_workload_namespace=\"shop\",source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",\
        source_app=\"web\",source_version=\"unknown\",source_canonical_service=\"web\",\
        source_canonical_revision=\"latest\",source_cluster=\"Kubernetes\",destination_workload=\"db\",\
        destination_workload_namespace=\"shop\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/db\",\
        destination_app=\"db\",destination_version=\"unknown\",destination_service=\"db.shop.svc.cluster.local\",\
        destination_service_name=\"db\",destination_service_namespace=\"shop\",\
        destination_canonical_service=\"db\",destination_canonical_revision=\"latest\",\
        destination_cluster=\"unknown\",request_protocol=\"tcp\",response_flags=\"-\",\
        connection_security_policy=\"mutual_tls\"} 100\n";
    let text = metrics.text();
    assert!(text.contains(golden), "{text}");
    assert_eq!(sample(&text, "istio_tcp_sent_bytes_total", &[]).as_deref(), Some("7"));
    assert_eq!(sample(&text, "istio_tcp_connections_opened_total", &[]).as_deref(), Some("1"));
    assert_eq!(sample(&text, "istio_tcp_connections_closed_total", &[]), None);
    assert!(text.contains("# TYPE istio_tcp_connections_opened counter\n") && text.ends_with("# EOF\n"));

    connection.bytes().add_server_to_client(3);
    connection.set_response_flags(ResponseFlags::Reset);
    drop(connection);
    let text = metrics.text();
    assert_eq!(sample(&text, "istio_tcp_sent_bytes_total", &[]).as_deref(), Some("10"));
    let flags = ["response_flags=\"RESET\""];
    assert_eq!(sample(&text, "istio_tcp_connections_closed_total", &flags).as_deref(), Some("1"));
}

#[test]
fn label_sets_are_bounded_and_nothing_is_lost_beyond() {
    let metrics = Metrics::new(
        "node-a",
        MetricsLimits {
            istio_label_sets: 3,
            istio_idle: Duration::from_secs(600),
            other_label_sets: 2,
            ..MetricsLimits::default()
        },
    );
    for n in 0..50 {
        let connection = metrics.connection_opened(
            &labels(&format!("web{n}"), "db"),
            Direction::Inbound,
            RelayKind::Userspace,
        );
        connection.bytes().add_client_to_server(1);
        metrics.denied(&format!("shop/p{n}"), "rule", Direction::Inbound);
    }
    assert_eq!(metrics.istio_label_sets(), 4, "three and the overflow set");
    let text = metrics.text();
    let overflow = ["source_workload=\"overflow\""];
    assert_eq!(sample(&text, "istio_tcp_received_bytes_total", &overflow).as_deref(), Some("47"));
    assert_eq!(sample(&text, "meshd_denials_total", &["policy=\"overflow\""]).as_deref(), Some("48"));
}

fn outcome(response_code: u16) -> RequestOutcome {
    RequestOutcome {
        response_code: Some(response_code),
        is_grpc: false,
        grpc_status: None,
        flags: ResponseFlags::None,
    }
}

fn sizes(request_bytes: u64, response_bytes: u64) -> RequestSizes {
    RequestSizes { duration: Duration::from_millis(7), request_bytes, response_bytes }
}

#[test]
fn requests_in_istios_names_and_labels() {
    let metrics = metrics();
    let requests = metrics.requests_on(&labels("web", "db"));
    requests.ended(outcome(200), &sizes(0, 1000));
    requests.ended(outcome(200), &sizes(30, 4));
    let denied = RequestOutcome { flags: ResponseFlags::Denied, ..outcome(403) };
    requests.ended(denied, &sizes(0, 19));
    let call = RequestOutcome { is_grpc: true, grpc_status: Some(5), ..outcome(200) };
    requests.ended(call, &sizes(1, 1));
    let unanswered = RequestOutcome { response_code: None, flags: ResponseFlags::Truncated, ..outcome(0) };
    requests.ended(unanswered, &sizes(0, 0));
    let text = metrics.text();
    let golden = "destination_cluster=\"unknown\",request_protocol=\"http\",response_flags=\"DENY\",\
        connection_security_policy=\"mutual_tls\",response_code=\"403\"} 1\n";
    assert!(text.contains(golden), "{text}");
    let http = ["reporter=\"destination\"", "request_protocol=\"http\"", "response_code=\"200\""];
    let bucket = |bound: &'static str| [&http[..], &[bound]].concat();
    for (name, parts, want) in [
        ("istio_requests_total", &http[..], "2"),
        ("istio_requests_total", &["request_protocol=\"grpc\"", "grpc_response_status=\"5\""], "1"),
        ("istio_requests_total", &["response_code=\"0\"", "response_flags=\"TRUNCATED\""], "1"),
        ("istio_request_duration_milliseconds_sum", &http, "14.0"),
        ("istio_request_duration_milliseconds_bucket", &bucket("le=\"5.0\""), "0"),
        ("istio_request_duration_milliseconds_bucket", &bucket("le=\"10.0\""), "2"),
        ("istio_request_bytes_sum", &http, "30.0"),
        ("istio_response_bytes_sum", &http, "1004.0"),
        ("istio_response_bytes_bucket", &bucket("le=\"+Inf\""), "2"),
        ("istio_response_bytes_count", &http, "2"),
    ] {
        assert_eq!(sample(&text, name, parts).as_deref(), Some(want), "{name} {parts:?}\n{text}");
    }
}

#[test]
fn series_of_requests_are_bounded_and_nothing_is_lost_beyond() {
    let limits = MetricsLimits {
        istio_label_sets: 2,
        istio_request_series: 3,
        istio_idle: Duration::ZERO,
        ..MetricsLimits::default()
    };
    let metrics = Metrics::new("node-a", limits);
    let all: Vec<_> = ["a", "b", "c", "d"].map(|name| metrics.requests_on(&labels(name, "db"))).into();
    for code in 200..205 {
        for requests in &all {
            requests.ended(outcome(code), &sizes(0, 0));
        }
    }
    let value = |parts: &[&str]| sample(&metrics.text(), "istio_requests_total", parts);
    assert_eq!(value(&["source_workload=\"a\"", "response_code=\"200\""]).as_deref(), Some("1"));
    assert_eq!(value(&["source_workload=\"a\"", "response_code=\"other\""]).as_deref(), Some("4"));
    assert_eq!(value(&["source_workload=\"overflow\"", "response_code=\"200\""]).as_deref(), Some("2"));
    assert_eq!(value(&["source_workload=\"overflow\"", "response_code=\"other\""]).as_deref(), Some("8"));
    drop(all);
    let new = metrics.requests_on(&labels("e", "db"));
    new.ended(outcome(500), &sizes(0, 0));
    assert_eq!(value(&["source_workload=\"e\"", "response_code=\"500\""]).as_deref(), Some("1"));
    assert_eq!(value(&["source_workload=\"a\"", "response_code=\"200\""]), None, "it made room");
}

#[test]
fn an_idle_label_set_makes_room_and_a_live_one_stays() {
    let limits = MetricsLimits {
        istio_label_sets: 2,
        istio_idle: Duration::ZERO,
        other_label_sets: 2,
        ..MetricsLimits::default()
    };
    let metrics = Metrics::new("node-a", limits);
    let open =
        |name: &str| metrics.connection_opened(&labels(name, "db"), Direction::Inbound, RelayKind::Ktls);
    let live = open("live");
    drop(open("ended"));
    let _new = open("new");
    live.bytes().add_client_to_server(5);
    let text = metrics.text();
    let live = sample(&text, "istio_tcp_received_bytes_total", &["source_workload=\"live\""]);
    assert_eq!(live.as_deref(), Some("5"));
    assert_eq!(sample(&text, "istio_tcp_connections_opened_total", &["source_workload=\"ended\""]), None);
    assert!(sample(&text, "istio_tcp_connections_opened_total", &["source_workload=\"new\""]).is_some());
}

#[test]
fn a_connection_moves_between_relay_gauges() {
    let metrics = metrics();
    let mut connection =
        metrics.connection_opened(&labels("web", "db"), Direction::Outbound, RelayKind::Userspace);
    connection.set_relay(RelayKind::Ktls);
    let value = |relay: &str| {
        let parts = [relay, "direction=\"outbound\""];
        let text = metrics.text();
        (sample(&text, "meshd_connections_active", &parts), sample(&text, "meshd_connections_total", &parts))
    };
    let pair = |active: &str, total: &str| (Some(active.to_owned()), Some(total.to_owned()));
    assert_eq!(value("relay=\"userspace\""), pair("0", "1"));
    assert_eq!(value("relay=\"ktls\""), pair("1", "1"));
    drop(connection);
    assert_eq!(value("relay=\"ktls\""), pair("0", "1"));
}

#[test]
fn the_daemons_own_families_carry_their_names() {
    let metrics = metrics();
    let running = metrics.handshake_started();
    metrics.handshake_ended(HandshakeSide::Server, Err("expired"));
    metrics.handshake_ended(HandshakeSide::Client, Ok(Duration::from_millis(2)));
    metrics.offload_failed("ulp_refused");
    metrics.set_bpf_map("original_dst", 3, 65_536);
    metrics.set_bpf_event("map_full", 9);
    metrics.set_svids([("spiffe://a/b", UNIX_EPOCH + Duration::from_secs(1_700_000_000))]);
    metrics.config_reloaded(false);
    let text = metrics.text();
    for (name, parts, want) in [
        ("meshd_handshakes_total", &["side=\"server\"", "result=\"failure\"", "cause=\"expired\""][..], "1"),
        ("meshd_handshake_seconds_count", &["side=\"client\""], "1"),
        ("meshd_handshakes_in_progress", &[], "1"),
        ("meshd_offload_failures_total", &["reason=\"ulp_refused\""], "1"),
        ("meshd_bpf_map_entries", &["map=\"original_dst\""], "3"),
        ("meshd_bpf_map_capacity", &["map=\"original_dst\""], "65536"),
        ("meshd_bpf_events_total", &["event=\"map_full\""], "9"),
        ("meshd_svid_expiry_seconds", &["spiffe_id=\"spiffe://a/b\""], "1700000000"),
        ("meshd_config_reloads_total", &["result=\"failure\""], "1"),
        ("meshd_config_reloads_total", &["result=\"success\""], "0"),
        ("meshd_config_last_reload_success", &[], "0"),
        ("meshd_build_info", &["node=\"node-a\""], "1"),
    ] {
        assert_eq!(sample(&text, name, parts).as_deref(), Some(want), "{name} {parts:?}\n{text}");
    }
    assert!(sample(&text, "process_resident_memory_bytes", &[]).is_some_and(|v| v != "0"));
    drop(running);
    assert_eq!(sample(&metrics.text(), "meshd_handshakes_in_progress", &[]).as_deref(), Some("0"));
}

#[test]
fn a_family_name_stands_once() {
    // OpenMetrics forbids two families of one name; Prometheus would keep one of them.
    let text = metrics().text();
    let mut names: Vec<_> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

fn record(error: Option<&str>) -> ConnectionRecord {
    let party = |address: &str, name: &str| Party {
        address: address.parse().unwrap(),
        workload: Some(name.into()),
        namespace: Some("shop".into()),
    };
    ConnectionRecord {
        time: UNIX_EPOCH + Duration::from_millis(1_763_778_314_005),
        direction: Direction::Inbound,
        source: party("10.0.1.2:40000", "web"),
        destination: party("10.0.2.2:5432", "db"),
        original_destination: None,
        service: Some("db.shop".into()),
        peer_spiffe_id: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
        own_spiffe_id: Some("spiffe://cluster.local/ns/shop/sa/db".into()),
        verdict: "allow",
        rule: Some("shop/allow-web rule[0]".to_owned()),
        mode: Some("STRICT"),
        tls_mode: None,
        relay: Some(RelayKind::Ktls),
        capture_form: "sk_lookup",
        tls_version: Some("TLSv1.3"),
        tls_cipher: Some("TLS13_AES_128_GCM_SHA256"),
        resumed: Some(false),
        bytes_sent: 7,
        bytes_received: 100,
        duration_ms: 12,
        response_flags: ResponseFlags::None,
        error: error.map(str::to_owned),
    }
}

#[test]
fn a_text_line_in_full() {
    assert_eq!(
        record(None).to_text(),
        "2025-11-22T02:25:14.005Z direction=inbound source=10.0.1.2:40000 source_workload=shop/web \
         destination=10.0.2.2:5432 destination_workload=shop/db service=db.shop \
         peer_spiffe_id=spiffe://cluster.local/ns/shop/sa/web own_spiffe_id=spiffe://cluster.local/ns/shop/sa/db \
         verdict=allow rule=\"shop/allow-web rule[0]\" mode=STRICT relay=ktls capture_form=sk_lookup \
         tls_version=TLSv1.3 tls_cipher=TLS13_AES_128_GCM_SHA256 resumed=false bytes_sent=7 bytes_received=100 \
         duration_ms=12 response_flags=-"
    );
}

#[test]
fn a_json_line_holds_the_same_and_cannot_be_forged() {
    let line = record(Some("reset\n{\"verdict\":\"allow\"}\u{1b}[2J\u{2028}")).to_json();
    assert!(line.chars().all(|c| (' '..='~').contains(&c)), "{line}");
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["time"], "2025-11-22T02:25:14.005Z");
    assert_eq!(json["source"]["workload"], "web");
    assert_eq!(json["relay"], "ktls");
    assert_eq!(json["response_flags"], "-");
    assert_eq!(json["error"], "reset\n{\"verdict\":\"allow\"}\u{1b}[2J\u{2028}");
    assert!(!record(Some("a\nb")).to_text().contains('\n'));
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_beyond_the_rate_are_suppressed_counted_and_reported() {
    let (metrics, sink) = (metrics(), Sink::default());
    let settings = AccessLogSettings { format: AccessLogFormat::Json, per_second: 10 };
    let log = AccessLog::to_writer(settings, &metrics, Box::new(sink.clone())).unwrap();
    let mut built = 0;
    for _ in 0..1000 {
        log.log(|| {
            built += 1;
            record(None)
        });
    }
    log.shutdown();
    let lines = sink.lines();
    // The loop may take long enough for the limiter to allow a few more.
    assert!((10..100).contains(&built), "{built}");
    assert_eq!(lines.len(), built + 1);
    let report: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(report["suppressed"], 1000 - built);
    assert_eq!(report["dropped"], 0);
    let written = sample(&metrics.text(), "meshd_access_log_lines_total", &["result=\"written\""]);
    assert_eq!(written, Some(built.to_string()));
}

/// Blocks its first write until told to go on, as a stderr whose reader has stopped does.
struct Stuck(mpsc::Receiver<()>, Sink);

impl Write for Stuck {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let _released = self.0.recv();
        self.1.write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_costs_lines_and_never_time() {
    let (metrics, sink) = (metrics(), Sink::default());
    let (release, stuck) = mpsc::channel();
    let settings = AccessLogSettings { format: AccessLogFormat::Text, per_second: 0 };
    let log = AccessLog::to_writer(settings, &metrics, Box::new(Stuck(stuck, sink.clone()))).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..10_000 {
        log.log(|| record(None));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(release);
    log.shutdown();
    let (report, lines) = {
        let mut l = sink.lines();
        (l.pop().unwrap(), l.len())
    };
    assert!(lines < 10_000);
    assert!(
        report.ends_with(&format!("access_log=incomplete suppressed=0 dropped={}", 10_000 - lines)),
        "{report}"
    );
}

#[test]
fn an_access_log_that_is_off_builds_no_record() {
    let metrics = metrics();
    let settings = AccessLogSettings { format: AccessLogFormat::Off, per_second: 10 };
    let log = AccessLog::to_writer(settings, &metrics, Box::new(Sink::default())).unwrap();
    log.log(|| unreachable!("no record is wanted"));
    log.shutdown();
}

#[test]
fn times_before_1970_do_not_stop_a_line() {
    assert_eq!(record::rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59.000Z");
}
