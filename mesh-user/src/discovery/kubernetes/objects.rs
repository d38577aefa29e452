//! What is kept of each object: a few words, one copy of those that many have in common.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::wire;
use crate::{runtime::PodUid, world::one_of};

/// `enabled` or `disabled`, on a namespace or a pod.
const DATAPLANE: &str = "meshd.io/dataplane";
/// Istio's own.
const AMBIENT: &str = "istio.io/dataplane-mode";
/// On what stands for a static pod: the hash of its file.
const MIRROR: &str = "kubernetes.io/config.mirror";
const ZONE: &str = "topology.kubernetes.io/zone";
const SERVICE_OF_SLICE: &str = "kubernetes.io/service-name";
/// The node's name in slices of `v1beta1`.
const HOST: &str = "kubernetes.io/hostname";

/// Namespace and name; the namespace of a cluster-wide object is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// Objects of a kind. Cheap to clone: a reader's copy is shared until the next change.
pub(super) type Table<T> = Arc<HashMap<Key, Arc<T>>>;

/// What labels say about the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// `meshd.io/dataplane`.
    own: Option<bool>,
    /// `istio.io/dataplane-mode`.
    ambient: Option<bool>,
}

impl Wish {
    fn of(labels: Option<&BTreeMap<String, String>>) -> Self {
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
        Self {
            own: match label(DATAPLANE) {
                Some("enabled") => Some(true),
                Some("disabled") => Some(false),
                _ => None,
            },
            ambient: match label(AMBIENT) {
                Some("ambient") => Some(true),
                Some("none") => Some(false),
                _ => None,
            },
        }
    }

    /// A pod's own label overrides its namespace's; meshd's overrides Istio's.
    pub(super) fn is_enrolled(pod: Self, namespace: Self, with_ambient: bool) -> bool {
        let ambient = |wish: Self| wish.ambient.filter(|_| with_ambient);
        pod.own.or(ambient(pod)).or(namespace.own).or(ambient(namespace)).unwrap_or(false)
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) wish: Wish,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: PodUid,
    /// Unix seconds.
    pub(super) created: i64,
    /// What made it and others alike, or its own name.
    pub(super) owner: Arc<str>,
    pub(super) service_account: Arc<str>,
    pub(super) labels: Arc<BTreeMap<String, String>>,
    /// Empty: not bound to one yet.
    pub(super) node: Arc<str>,
    /// Canonical.
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) host_network: bool,
    pub(super) ended: bool,
    pub(super) wish: Wish,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// Canonical; empty: headless.
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) ports: Box<[Port]>,
    pub(super) selector: BTreeMap<String, String>,
    pub(super) sticky: bool,
    /// `internalTrafficPolicy: Local`.
    pub(super) local_inside: bool,
}

/// A TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: Arc<str>,
    /// Empty: none is said.
    pub(super) app_protocol: Arc<str>,
    pub(super) number: u16,
    /// Its `nodePort`.
    pub(super) at_nodes: Option<u16>,
}

/// Some of a service's endpoints, of one address family and with the same ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) service: Key,
    pub(super) is_ipv4: bool,
    /// Name and number of TCP ports.
    pub(super) ports: Box<[(Arc<str>, u16)]>,
    pub(super) endpoints: Box<[Endpoint]>,
}

/// One that answers, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Canonical.
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) ready: bool,
    /// It ends, and still answers.
    pub(super) serves_to_the_end: bool,
    pub(super) node: Option<Arc<str>>,
    /// Zones whose clients are to use it; empty: nothing is said.
    pub(super) zones: Box<[Arc<str>]>,
    /// For clients on which nodes; empty: the server gives no hint.
    pub(super) nodes: Box<[Arc<str>]>,
    pub(super) pod: Option<Key>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) zone: Option<Arc<str>>,
}

/// One copy of what many objects have in common.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Arc<BTreeMap<String, String>>>,
    /// Sizes at which what nobody uses any more is thrown away.
    sweep_at: usize,
}

impl Interner {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        one_of(&mut self.texts, text, || text.into())
    }

    fn labels(&mut self, labels: BTreeMap<String, String>) -> Arc<BTreeMap<String, String>> {
        if let Some(known) = self.labels.get(&labels) {
            return Arc::clone(known);
        }
        let labels = Arc::new(labels);
        self.labels.insert(Arc::clone(&labels));
        labels
    }

    /// Throws away what nobody uses, now and then.
    pub(super) fn sweep(&mut self) {
        let size = self.texts.len() + self.labels.len();
        if size > self.sweep_at {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
            self.sweep_at = 2 * (self.texts.len() + self.labels.len()) + 1024;
        }
    }

    pub(super) fn key(&mut self, meta: &ObjectMeta) -> Option<Key> {
        let name = meta.name.as_deref()?;
        Some(Key { namespace: self.text(meta.namespace.as_deref().unwrap_or_default()), name: name.into() })
    }
}

/// Made of an object; none: it does not concern meshd.
pub(super) trait Kept<O>: Sized {
    fn keep(object: O, interner: &mut Interner) -> Option<Self>;
}

impl Kept<wire::NamespaceObject> for Namespace {
    fn keep(object: wire::NamespaceObject, _: &mut Interner) -> Option<Self> {
        Some(Self { wish: Wish::of(object.metadata.labels.as_ref()) })
    }
}

impl Kept<wire::PodObject> for Pod {
    fn keep(object: wire::PodObject, interner: &mut Interner) -> Option<Self> {
        let (mut meta, spec, status) = (object.metadata, object.spec, object.status);
        let labels = meta.labels.take().unwrap_or_default();
        let account =
            if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
        let ips = status.pod_ips.iter().map(|ip| &ip.ip).chain([&status.pod_ip]);
        Some(Self {
            uid: PodUid(sandboxes_uid(&meta).unwrap_or_default().into()),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            owner: interner.text(owner(&meta, &labels)),
            service_account: interner.text(account),
            wish: Wish::of(Some(&labels)),
            labels: interner.labels(labels),
            node: interner.text(&spec.node_name),
            addresses: addresses(ips),
            host_network: spec.host_network,
            ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        })
    }
}

/// By Istio's rules (`pkg/kube/controllers`, `GetWorkloadMetaFromPod`): of a pod whose name was made for it the controller; of a
/// `ReplicaSet`'s its Deployment, of a Job's its `CronJob`, both told by how their names end.
fn owner<'m>(meta: &'m ObjectMeta, labels: &BTreeMap<String, String>) -> &'m str {
    let own = meta.name.as_deref().unwrap_or_default();
    let is_made = meta.generate_name.as_ref().is_some_and(|name| !name.is_empty());
    let mut owners = meta.owner_references.iter().flatten();
    let Some(controller) = owners.find(|owner| is_made && owner.controller == Some(true)) else { return own };
    let name = controller.name.as_str();
    let without = |suffix: &str| name.strip_suffix(suffix)?.strip_suffix('-').filter(|rest| !rest.is_empty());
    let maker = match controller.kind.as_str() {
        "ReplicaSet" => labels.get("pod-template-hash").and_then(|hash| without(hash)),
        "Job" => {
            let digits = name.rsplit('-').next().unwrap_or_default();
            let is_time = matches!(digits.len(), 8..=10) && digits.bytes().all(|byte| byte.is_ascii_digit());
            if is_time { without(digits) } else { None }
        }
        _ => None,
    };
    maker.unwrap_or(name)
}

/// The UID that its sandbox and cgroup have. That of a static pod is a hash of its file, 32 digits; what the API server shows
/// is a mirror of it, with a UID of its own (`pkg/kubelet/config/common.go`). No such hash is another pod's UID, which is longer.
fn sandboxes_uid(meta: &ObjectMeta) -> Option<&str> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_hash = |hash: &&String| hash.len() == 32 && hash.bytes().all(is_digit);
    let mirrored = meta.annotations.as_ref().and_then(|all| all.get(MIRROR)).filter(is_hash);
    mirrored.or(meta.uid.as_ref()).map(String::as_str)
}

impl Kept<wire::ServiceObject> for Service {
    fn keep(object: wire::ServiceObject, interner: &mut Interner) -> Option<Self> {
        let spec = object.spec;
        if spec.r#type == "ExternalName" {
            return None;
        }
        let ips = spec.cluster_ips.iter().chain([&spec.cluster_ip]);
        let tcp = spec.ports.iter().filter(|port| is_tcp(&port.protocol));
        let port = |port: &wire::ServicePort| {
            Some(Port {
                name: interner.text(&port.name),
                app_protocol: interner.text(&port.app_protocol),
                number: number(Some(port.port))?,
                at_nodes: number(Some(port.node_port)),
            })
        };
        Some(Self {
            // "None" is no address.
            addresses: addresses(ips),
            ports: tcp.filter_map(port).collect(),
            selector: spec.selector,
            sticky: spec.session_affinity == "ClientIP",
            local_inside: spec.internal_traffic_policy == "Local",
        })
    }
}

impl Kept<wire::SliceObject> for Slice {
    fn keep(object: wire::SliceObject, interner: &mut Interner) -> Option<Self> {
        let is_ipv4 = match object.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            _ => return None,
        };
        let meta = &object.metadata;
        let namespace = interner.text(meta.namespace.as_deref()?);
        let service = meta.labels.as_ref()?.get(SERVICE_OF_SLICE)?;
        let service = Key { name: interner.text(service), namespace };
        let endpoint = |endpoint: wire::SliceEndpoint| {
            let node = Some(endpoint.node_name.as_str()).filter(|node| !node.is_empty());
            let node = node.or(endpoint.topology.get(HOST).map(String::as_str));
            let conditions = endpoint.conditions;
            // A server that says nothing of it means ready.
            let ready = conditions.ready.unwrap_or(true);
            Endpoint {
                addresses: addresses(&endpoint.addresses),
                ready,
                serves_to_the_end: conditions.terminating == Some(true)
                    && conditions.serving.unwrap_or(ready),
                node: node.map(|node| interner.text(node)),
                zones: endpoint.hints.for_zones.iter().map(|zone| interner.text(&zone.name)).collect(),
                nodes: endpoint.hints.for_nodes.iter().map(|node| interner.text(&node.name)).collect(),
                pod: pod(&endpoint.target_ref, &service, interner),
            }
        };
        let endpoints = object.endpoints.into_iter().map(endpoint).collect();
        Some(Self { ports: ports(&object.ports, interner), endpoints, service, is_ipv4 })
    }
}

/// The slices that say what an `Endpoints` says: one of each family and subset.
pub(super) fn slices(object: &wire::EndpointsObject, interner: &mut Interner) -> Vec<Slice> {
    let Some(service) = interner.key(&object.metadata) else { return Vec::new() };
    let mut slices = Vec::new();
    for subset in &object.subsets {
        for is_ipv4 in [true, false] {
            let of_family = |address: &&wire::SubsetAddress| {
                address.ip.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_ipv4() == is_ipv4)
            };
            let endpoint = |address: &wire::SubsetAddress| Endpoint {
                addresses: addresses([&address.ip]),
                ready: true,
                serves_to_the_end: false,
                node: Some(&*address.node_name).filter(|node| !node.is_empty()).map(|n| interner.text(n)),
                zones: Box::default(),
                nodes: Box::default(),
                pod: pod(&address.target_ref, &service, interner),
            };
            let endpoints: Box<[_]> = subset.addresses.iter().filter(of_family).map(endpoint).collect();
            if !endpoints.is_empty() {
                let ports = ports(&subset.ports, interner);
                slices.push(Slice { service: service.clone(), is_ipv4, ports, endpoints });
            }
        }
    }
    slices
}

impl Kept<wire::NodeObject> for Node {
    fn keep(object: wire::NodeObject, interner: &mut Interner) -> Option<Self> {
        let zone = object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
        let named =
            object.status.addresses.iter().filter(|a| matches!(&*a.r#type, "InternalIP" | "ExternalIP"));
        Some(Self {
            zone: zone.map(|zone| interner.text(zone)),
            addresses: addresses(named.map(|address| &address.address)),
        })
    }
}

fn pod(target: &wire::TargetRef, service: &Key, interner: &mut Interner) -> Option<Key> {
    (target.kind == "Pod").then(|| {
        let namespace =
            if target.namespace.is_empty() { &*service.namespace } else { target.namespace.as_str() };
        Key { namespace: interner.text(namespace), name: interner.text(&target.name) }
    })
}

fn ports(ports: &[wire::SlicePort], interner: &mut Interner) -> Box<[(Arc<str>, u16)]> {
    let tcp = ports.iter().filter(|port| is_tcp(&port.protocol));
    tcp.filter_map(|port| Some((interner.text(&port.name), number(port.port)?))).collect()
}

fn is_tcp(protocol: &str) -> bool {
    matches!(protocol, "" | "TCP")
}

fn number(port: Option<i64>) -> Option<u16> {
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// Canonical, each once; what is no address is none.
fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Box<[IpAddr]> {
    let mut found: Vec<IpAddr> = Vec::new();
    for address in texts.into_iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address = address.to_canonical();
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found.into()
}
