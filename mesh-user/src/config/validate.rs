//! What the types alone cannot say: uniqueness, ports, limits, which fields go together.
//! Collects every problem, so that one look at the output mends the file.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
};

use rustls_pki_types::ServerName;

use super::{
    CaConfig, CaProvider, Config, NODE_VARIABLE, Selector, ServicePort, WorkloadConfig, extension_providers,
    federation, yaml::Problem,
};
use crate::identity::SpiffeId;

/// Their ring buffer takes 128 MiB.
const MAX_HELD_CONNECTS: u32 = 1 << 20;
/// At 4 KiB each they take 256 MiB.
const MAX_OBSERVED: u32 = 1 << 16;

struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn wrong(&mut self, path: &str, what: impl Into<String>) {
        self.problems.push(Problem::at(self.text, path, what, None));
    }

    fn name(&mut self, path: &str, name: &str) {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
            self.wrong(path, format!("{name:?} is no name: use 1 to 253 letters, digits, '.', '-', '_'"));
        }
    }

    fn ports(&mut self, path: &str, ports: &[u16]) {
        for (i, port) in ports.iter().enumerate() {
            if *port == 0 {
                self.wrong(&format!("{path}[{i}]"), "port 0 does not exist");
            } else if ports[..i].contains(port) {
                self.wrong(&format!("{path}[{i}]"), format!("port {port} is listed twice"));
            }
        }
    }

    fn positive(&mut self, path: &str, value: u64) {
        if value == 0 {
            self.wrong(path, "must be at least 1");
        }
    }
}

/// Everything that is wrong with a configuration that parsed.
pub(super) fn check(config: &Config, text: &str) -> Vec<Problem> {
    let mut check = Check { text, problems: Vec::new() };
    if config.node.is_empty() {
        check.wrong("node", format!("no name: write `node: NAME`, or set {NODE_VARIABLE} for meshd"));
    } else {
        check.name("node", &config.node);
    }
    check.name("clusterName", &config.cluster_name);
    for (i, remote) in config.remote_workloads.iter().enumerate() {
        if let Some(cluster) = &remote.cluster_name {
            check.name(&format!("remoteWorkloads[{i}].clusterName"), cluster);
        }
    }
    check.name("rootNamespace", &config.root_namespace);
    settings(&mut check, config);
    workloads(&mut check, config);
    addresses(&mut check, config);
    services(&mut check, config);
    for (path, what) in extension_providers::problems(&config.extension_providers) {
        check.wrong(&path, what);
    }
    for (path, what) in federation::problems(config) {
        check.wrong(&path, what);
    }
    external_services(&mut check, config);
    check.problems
}

fn settings(check: &mut Check<'_>, config: &Config) {
    let (outbound, inbound) = (config.capture.outbound_port, config.capture.inbound_port);
    for (path, port) in [("capture.outboundPort", outbound), ("capture.inboundPort", inbound)] {
        if port == 0 {
            check.wrong(path, "port 0 does not exist");
        }
    }
    if outbound == inbound {
        check.wrong("capture.inboundPort", format!("port {inbound} is outboundPort too; use two ports"));
    }
    served(check, config, "metrics.listen", config.metrics.listen);
    served(check, config, "federation.listen", config.federation.listen);
    if config.metrics.listen.is_some_and(|listen| Some(listen) == config.federation.listen) {
        check.wrong("federation.listen", "metrics are served there; use another");
    }
    ca(check, &config.ca);
    for (i, alias) in config.trust_domain_aliases.iter().enumerate() {
        if *alias == config.trust_domain {
            check.wrong(&format!("trustDomainAliases[{i}]"), "is the trust domain itself; remove it");
        }
    }
    let limits = &config.limits;
    for (path, value) in [
        ("limits.workloads", u64::from(limits.workloads)),
        ("limits.destinations", u64::from(limits.destinations)),
        ("limits.connections", u64::from(limits.connections)),
        ("limits.concurrentHandshakes", u64::from(limits.concurrent_handshakes)),
        ("limits.heldConnects", u64::from(limits.held_connects)),
        ("limits.handshakeTimeoutMs", limits.handshake_timeout_ms),
        ("limits.connectTimeoutMs", limits.connect_timeout_ms),
        ("limits.detectTimeoutMs", limits.detect_timeout_ms),
        ("limits.keepaliveIdleMs", limits.keepalive_idle_ms),
    ] {
        check.positive(path, value);
    }
    if limits.held_connects > MAX_HELD_CONNECTS {
        check.wrong("limits.heldConnects", format!("must be at most {MAX_HELD_CONNECTS}"));
    }
    for (i, principal) in config.forwarded_for.trusted_principals.iter().enumerate() {
        if principal.is_empty() || principal.starts_with("spiffe://") {
            let what =
                format!("{principal:?} is no principal: write it without spiffe://, as in source.principals");
            check.wrong(&format!("forwardedFor.trustedPrincipals[{i}]"), what);
        }
    }
    if config.observation.entries > MAX_OBSERVED {
        check.wrong("observation.entries", format!("must be at most {MAX_OBSERVED}; 0 remembers nothing"));
    }
    if limits.pre_handshake_bytes < 4096 {
        check.wrong("limits.preHandshakeBytes", "must be at least 4096, or no ClientHello fits");
    }
}

/// Which fields each provider needs, and which ones it does not know.
fn ca(check: &mut Check<'_>, ca: &CaConfig) {
    if ca.svid_lifetime_seconds < 60 {
        check.wrong("ca.svidLifetimeSeconds", "an SVID must live at least 60 seconds");
    }
    if ca.svid_lifetime_seconds > 365 * 86_400 {
        check.wrong("ca.svidLifetimeSeconds", "an SVID may live at most a year (31536000)");
    }
    let socket = ca.address.as_ref().and_then(|address| address.strip_prefix("unix:"));
    let (provider, needed, unknown): (_, &[&str], &[&str]) = match ca.provider {
        CaProvider::Embedded => {
            ("embedded", &[], &["address", "serverName", "rootsFile", "tokenFile", "joinTokenFile"])
        }
        CaProvider::MeshdCa if socket.is_some() => {
            ("meshd-ca on a socket", &[], &["directory", "serverName", "tokenFile", "joinTokenFile"])
        }
        CaProvider::MeshdCa if ca.token_file.is_some() => {
            ("meshd-ca with a tokenFile", &["address", "rootsFile"], &["directory", "joinTokenFile"])
        }
        CaProvider::MeshdCa => ("meshd-ca", &["address", "rootsFile"], &["directory"]),
        CaProvider::Istiod => {
            ("istiod", &["address", "rootsFile", "tokenFile"], &["directory", "joinTokenFile"])
        }
        CaProvider::WorkloadApi => (
            "workload-api",
            &["address"],
            &["directory", "serverName", "rootsFile", "tokenFile", "joinTokenFile"],
        ),
    };
    let given = [
        ("directory", ca.directory.is_some()),
        ("address", ca.address.is_some()),
        ("serverName", ca.server_name.is_some()),
        ("rootsFile", ca.roots_file.is_some()),
        ("tokenFile", ca.token_file.is_some()),
        ("joinTokenFile", ca.join_token_file.is_some()),
    ];
    for (field, is_given) in given {
        let path = format!("ca.{field}");
        if is_given && unknown.contains(&field) {
            check.wrong(&path, format!("means nothing to provider {provider}; remove it"));
        } else if !is_given && needed.contains(&field) {
            check.wrong("ca", format!("provider {provider} needs {field}"));
        }
    }
    ca_address(check, ca, socket);
    let is_label = |b: u8| (b' '..=b'~').contains(&b);
    if ca.cluster_id.is_empty() || ca.cluster_id.len() > 253 || !ca.cluster_id.bytes().all(is_label) {
        check.wrong("ca.clusterId", "must be 1 to 253 printable ASCII characters");
    }
}

fn ca_address(check: &mut Check<'_>, ca: &CaConfig, socket: Option<&str>) {
    if let Some(path) = socket {
        if ca.provider == CaProvider::Istiod {
            check.wrong("ca.address", "istiod has no socket: write host:port");
        }
        if !path.trim_start_matches("//").starts_with('/') {
            check.wrong(
                "ca.address",
                "write unix: and the socket's whole path, such as unix:/run/meshd-ca/agents.sock",
            );
        }
    } else if ca.provider == CaProvider::WorkloadApi {
        if let Some(address) = &ca.address {
            check
                .wrong("ca.address", format!("{address:?} is no socket: write unix:///run/spire/agent.sock"));
        }
    } else if let Some(address) = &ca.address {
        let parts = address.rsplit_once(':');
        let port = parts.and_then(|(_, port)| port.parse().ok()).filter(|port: &u16| *port > 0);
        let host = parts.map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        if port.is_none() || host.is_none_or(|host| ServerName::try_from(host).is_err()) {
            check.wrong("ca.address", format!("{address:?} is no address: write host:port"));
        }
    }
    if let Some(name) = &ca.server_name {
        let is_id = name.parse::<SpiffeId>().is_ok_and(|id| !id.path().is_empty());
        if !is_id && ServerName::try_from(name.clone()).is_err() {
            check.wrong(
                "ca.serverName",
                format!("{name:?} is neither a DNS name, nor an address, nor a SPIFFE ID"),
            );
        }
    }
}

/// The port of what meshd itself serves must be nobody else's: meshd listens on capture's in every enrolled namespace, the
/// node's own among them, and a workload's would be steered away from it.
fn served(check: &mut Check<'_>, config: &Config, path: &str, listen: Option<SocketAddr>) {
    let Some(listen) = listen else { return };
    let port = listen.port();
    if port == 0 {
        return check.wrong(path, "port 0 does not exist");
    }
    if [config.capture.outbound_port, config.capture.inbound_port].contains(&port) {
        check.wrong(path, format!("port {port} is one of capture's; use another"));
    }
    let hosted = |w: &&WorkloadConfig| !matches!(w.selector, Selector::Netns(_)) && w.ports.contains(&port);
    if let Some(workload) = config.workloads.iter().find(hosted) {
        let owner = format!("{}/{}", workload.namespace, workload.name);
        check.wrong(path, format!("port {port} belongs to workload {owner} on this node"));
    }
}

fn workloads(check: &mut Check<'_>, config: &Config) {
    if config.workloads.len() > config.limits.workloads as usize {
        let (count, limit) = (config.workloads.len(), config.limits.workloads);
        check.wrong("workloads", format!("{count} workloads, but limits.workloads is {limit}; raise it"));
    }
    let mut names = HashMap::new();
    let mut identities = HashMap::new();
    let local = config.workloads.iter().enumerate().map(|(i, w)| {
        let identity = w.identity(config);
        let place = if w.spiffe_id.is_some() { "spiffeId" } else { "serviceAccount" };
        (
            format!("workloads[{i}]"),
            &w.namespace,
            &w.name,
            (identity, place),
            &w.ports,
            &w.exclude_inbound_ports,
        )
    });
    let remote = config.remote_workloads.iter().enumerate().map(|(i, w)| {
        let identity = w.identity(config);
        let place = if w.spiffe_id.is_some() { "spiffeId" } else { "serviceAccount" };
        let path = format!("remoteWorkloads[{i}]");
        (path, &w.namespace, &w.name, (identity, place), &w.ports, &w.exclude_inbound_ports)
    });
    for (path, namespace, name, (identity, place), ports, excluded) in local.chain(remote) {
        check.name(&format!("{path}.name"), name);
        check.name(&format!("{path}.namespace"), namespace);
        match identity {
            Err(error) => check.wrong(&format!("{path}.{place}"), format!("{namespace}/{name}: {error}")),
            Ok((id, made_of)) => match identities.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert((made_of, path.clone()));
                }
                Entry::Occupied(first) if first.get().0 != made_of => {
                    let (id, (_, first)) = (first.key(), first.get());
                    let what = format!(
                        "{namespace}/{name} would be {id}, which is {first} made of something else: \
                         workloads share an identity only where they say the same"
                    );
                    check.wrong(&format!("{path}.{place}"), what);
                }
                Entry::Occupied(_) => {}
            },
        }
        check.ports(&format!("{path}.ports"), ports);
        check.ports(&format!("{path}.excludeInboundPorts"), excluded);
        match names.entry((namespace, name)) {
            Entry::Occupied(first) => {
                let first: &String = first.get();
                check.wrong(&format!("{path}.name"), format!("{namespace}/{name} is already {first}"));
            }
            Entry::Vacant(entry) => {
                entry.insert(path);
            }
        }
    }
    let endpoint = config.federation.listen.and_then(|_| config.federation.endpoint_id(&config.trust_domain));
    if let Some((_, owner)) = endpoint.and_then(|id| identities.get(&id)) {
        check.wrong(
            "federation.spiffeId",
            format!("is the identity of {owner} too, which could pass for the endpoint"),
        );
    }
    for (i, workload) in config.workloads.iter().enumerate() {
        selector(check, &format!("workloads[{i}]"), workload);
    }
    duplicate_selectors(check, config);
}

fn selector(check: &mut Check<'_>, path: &str, workload: &WorkloadConfig) {
    check.ports(&format!("{path}.excludeOutboundPorts"), &workload.exclude_outbound_ports);
    match &workload.selector {
        Selector::Netns(file) => {
            if !file.is_absolute() {
                check.wrong(&format!("{path}.selector.netns"), "must be an absolute path");
            }
            if !workload.ports.is_empty() {
                let what = "only for cgroup, unit and user selectors: a network namespace is captured whole";
                check.wrong(&format!("{path}.ports"), what);
            }
        }
        Selector::Cgroup(folder) => {
            if !folder.is_absolute() {
                check.wrong(&format!("{path}.selector.cgroup"), "must be an absolute path");
            }
        }
        Selector::Unit(unit) => {
            if unit.is_empty()
                || unit.len() > 255
                || unit.contains('/')
                || unit.starts_with('.')
                || !unit.contains('.')
            {
                let what = format!("{unit:?} is no unit: write it as systemctl does, such as nginx.service");
                check.wrong(&format!("{path}.selector.unit"), what);
            }
        }
        Selector::Pod(uid) => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if uid.is_empty() || uid.len() > 64 || !uid.bytes().all(plain) {
                check.wrong(&format!("{path}.selector.pod"), "write its metadata.uid");
            }
            if !workload.ports.is_empty() {
                let what = "only for cgroup, unit and user selectors: a network namespace is captured whole";
                check.wrong(&format!("{path}.ports"), what);
            }
        }
        Selector::User(user) => {
            if user.is_empty() {
                check.wrong(&format!("{path}.selector.user"), "name a user or give its number");
            }
        }
    }
    let netns = matches!(workload.selector, Selector::Netns(_));
    if !netns && !workload.ports.is_empty() && workload.addresses.is_empty() {
        check
            .wrong(&format!("{path}.addresses"), "ports without addresses: list the addresses it answers on");
    }
}

fn duplicate_selectors(check: &mut Check<'_>, config: &Config) {
    let mut seen = HashMap::new();
    for (i, workload) in config.workloads.iter().enumerate() {
        if let Some(first) = seen.insert(&workload.selector, i) {
            let what = format!("workloads[{first}] selects the same programs");
            check.wrong(&format!("workloads[{i}].selector"), what);
        }
    }
}

/// What one entry of the file owns of its addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owned<'a> {
    Whole,
    /// Of a workload on this node, in the node's own network namespace.
    LocalPorts(&'a [u16]),
    RemotePorts(&'a [u16]),
}

impl Owned<'_> {
    /// Why two entries cannot have the same address; none: they can.
    fn conflict(self, first: Self) -> Option<String> {
        let (ports, taken) = match (self, first) {
            (Owned::Whole, _) | (_, Owned::Whole) => return Some("already belongs".to_owned()),
            // `host_ports` looks at these, whatever their addresses are.
            (Owned::LocalPorts(_), Owned::LocalPorts(_)) => return None,
            (Owned::LocalPorts(a) | Owned::RemotePorts(a), Owned::LocalPorts(b) | Owned::RemotePorts(b)) => {
                (a, b)
            }
        };
        ports.iter().find(|p| taken.contains(p)).map(|port| format!("port {port} already belongs"))
    }
}

/// Who answers at an address and port must be clear: an address has one owner, or several that each declare
/// the ports they own of it, as programs on a node's own address do.
fn addresses(check: &mut Check<'_>, config: &Config) {
    let mut owners: BTreeMap<IpAddr, Vec<(usize, String, Owned<'_>)>> = BTreeMap::new();
    let local = config.workloads.iter().enumerate().map(|(i, w)| {
        let netns = matches!(w.selector, Selector::Netns(_));
        let owned = if netns { Owned::Whole } else { Owned::LocalPorts(&w.ports) };
        (format!("workloads[{i}]"), &w.addresses, owned)
    });
    let remote = config.remote_workloads.iter().enumerate().map(|(i, w)| {
        let owned = if w.ports.is_empty() { Owned::Whole } else { Owned::RemotePorts(&w.ports) };
        (format!("remoteWorkloads[{i}]"), &w.addresses, owned)
    });
    let services = config.services.iter().enumerate();
    let services = services.map(|(i, s)| (format!("services[{i}]"), &s.addresses, Owned::Whole));
    let external_ports: Vec<Vec<u16>> =
        config.external_services.iter().map(|s| s.ports.iter().map(|p| p.port).collect()).collect();
    let external = config.external_services.iter().zip(&external_ports).enumerate();
    let external = external.map(|(i, (s, ports))| {
        (format!("externalServices[{i}]"), &s.addresses, Owned::RemotePorts(ports.as_slice()))
    });
    let all = local.chain(remote).chain(services).chain(external);
    for (entry, (path, addresses, owned)) in all.enumerate() {
        for (i, address) in addresses.iter().enumerate() {
            let canonical = address.to_canonical();
            let place = format!("{path}.addresses[{i}]");
            if canonical.is_unspecified() || canonical.is_loopback() || canonical.is_multicast() {
                check.wrong(&place, format!("{address} cannot be reached from another workload"));
            }
            if matches!(canonical, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
                check.wrong(
                    &place,
                    format!("{address} means nothing without a link: no program dials it alone"),
                );
            }
            let others = owners.entry(canonical).or_default();
            let conflict = others.iter().find_map(|(other, first, theirs)| {
                let twice = (*other == entry).then(|| "already belongs".to_owned());
                twice.or_else(|| owned.conflict(*theirs)).map(|what| (what, first))
            });
            if let Some((what, first)) = conflict {
                check.wrong(&place, format!("{address} {what} to {first}"));
            }
            others.push((entry, place, owned));
        }
    }
    host_ports(check, config);
}

/// In the node's own network namespace inbound capture goes by port alone.
fn host_ports(check: &mut Check<'_>, config: &Config) {
    let mut owners = HashMap::new();
    for (i, workload) in config.workloads.iter().enumerate() {
        if matches!(workload.selector, Selector::Netns(_)) {
            continue;
        }
        for (j, port) in workload.ports.iter().enumerate() {
            let first = *owners.entry(port).or_insert(i);
            if first != i {
                let what = format!("port {port} already belongs to workloads[{first}] on this node");
                check.wrong(&format!("workloads[{i}].ports[{j}]"), what);
            }
        }
    }
}

fn services(check: &mut Check<'_>, config: &Config) {
    let mut names = HashMap::new();
    for (i, service) in config.services.iter().enumerate() {
        let path = format!("services[{i}]");
        check.name(&format!("{path}.name"), &service.name);
        check.name(&format!("{path}.namespace"), &service.namespace);
        if let Some(first) = names.insert((&service.namespace, &service.name), i) {
            let what = format!("{}/{} is already services[{first}]", service.namespace, service.name);
            check.wrong(&format!("{path}.name"), what);
        }
        if service.selector.is_empty() {
            check.wrong(
                &format!("{path}.selector"),
                "select at least one label, or the service has no workload",
            );
        }
        service_ports(check, &path, &service.ports);
    }
}

fn external_services(check: &mut Check<'_>, config: &Config) {
    for (i, service) in config.external_services.iter().enumerate() {
        let path = format!("externalServices[{i}]");
        check.name(&format!("{path}.namespace"), &service.namespace);
        if !matches!(ServerName::try_from(service.host.as_str()), Ok(ServerName::DnsName(_))) {
            check.wrong(&format!("{path}.host"), format!("{:?} is no DNS name", service.host));
        }
        service_ports(check, &path, &service.ports);
        if service.addresses.is_empty() {
            check.wrong(&format!("{path}.addresses"), "list at least one address");
        }
    }
}

fn service_ports(check: &mut Check<'_>, path: &str, ports: &[ServicePort]) {
    if ports.is_empty() {
        check.wrong(&format!("{path}.ports"), "list at least one port");
    }
    for (j, port) in ports.iter().enumerate() {
        if port.port == 0 {
            check.wrong(&format!("{path}.ports[{j}].port"), "port 0 does not exist");
        }
        if port.target_port == Some(0) {
            check.wrong(&format!("{path}.ports[{j}].targetPort"), "port 0 does not exist");
        }
        if ports[..j].iter().any(|p| p.port == port.port) {
            check.wrong(&format!("{path}.ports[{j}].port"), format!("port {} is listed twice", port.port));
        }
    }
}
