//! Objects of a moment -> world and policies, without a server.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use kube::{core::DynamicObject, runtime::watcher::Event};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Builder, ClusterState,
    documents::{CONDITION, PolicyKind, Said},
    pods::Pods,
    report::with_own,
    tables::{Change, Tables},
};
use crate::{
    config::Config,
    runtime::{PodPlace, PodPlaces, PodUid},
    world::{Destination, World},
};

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A server's objects, and what is made of them on node `a`.
struct Ground {
    tables: Tables,
    builder: Builder,
    places: PodPlaces,
    ambient: bool,
}

#[allow(clippy::needless_pass_by_value, reason = "json! reads better without a &")]
impl Ground {
    /// Everything is heard, and nothing is there but `namespaces`.
    fn with(namespaces: &[(&str, Value)]) -> Self {
        let mut ground = Self {
            tables: Tables::default(),
            builder: Builder::default(),
            places: HashMap::new(),
            ambient: false,
        };
        for change in [Event::Init, Event::InitDone] {
            ground.tables.apply(Change::Pod(change));
        }
        for change in [Event::Init, Event::InitDone] {
            ground.tables.apply(Change::Service(change));
        }
        for change in [Event::Init, Event::InitDone] {
            ground.tables.apply(Change::Slice(change));
        }
        let node = json!({
            "metadata": { "name": "a", "labels": { "topology.kubernetes.io/zone": "z1" } },
            "status": { "addresses": [ { "type": "InternalIP", "address": "192.0.2.1" }, { "type": "Hostname", "address": "a" } ] },
        });
        for change in [Event::Init, Event::InitApply(object(node)), Event::InitDone] {
            ground.tables.apply(Change::Node(change));
        }
        for kind in PolicyKind::ALL {
            ground.tables.apply(Change::NoSuchKind(kind));
        }
        ground.tables.apply(Change::Namespace(Event::Init));
        for (name, labels) in namespaces {
            let namespace = json!({ "metadata": { "name": name, "labels": labels } });
            ground.tables.apply(Change::Namespace(Event::InitApply(object(namespace))));
        }
        assert_eq!(ground.tables.missing(), ["namespaces"]);
        ground.tables.apply(Change::Namespace(Event::InitDone));
        assert!(ground.tables.missing().is_empty());
        ground
    }

    fn shop() -> Self {
        Self::with(&[("shop", json!({ "meshd.io/dataplane": "enabled" })), ("far", json!({}))])
    }

    /// A running pod, changed as `more` says.
    fn pod(&mut self, name: &str, node: &str, address: &str, more: Value) -> bool {
        let (namespace, name) = name.split_once('/').unwrap();
        let mut pod = json!({
            "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{name}"), "labels": { "app": name },
                          "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": node, "serviceAccountName": name },
            "status": { "phase": "Running", "podIP": address, "podIPs": [ { "ip": address } ] },
        });
        merge(&mut pod, more);
        self.tables.apply(Change::Pod(Event::Apply(object(pod))))
    }

    fn service(&mut self, name: &str, spec: Value) {
        let (namespace, name) = name.split_once('/').unwrap();
        let service = json!({ "metadata": { "name": name, "namespace": namespace }, "spec": spec });
        self.tables.apply(Change::Service(Event::Apply(object(service))));
    }

    fn slice(&mut self, service: &str, family: &str, port: u16, endpoints: Value) {
        let (namespace, name) = service.split_once('/').unwrap();
        let slice = json!({
            "metadata": { "name": format!("{name}-{family}"), "namespace": namespace, "labels": { "kubernetes.io/service-name": name } },
            "addressType": family, "endpoints": endpoints, "ports": [ { "name": "web", "protocol": "TCP", "port": port } ],
        });
        self.tables.apply(Change::Slice(Event::Apply(object(slice))));
    }

    fn policy(&mut self, uid: &str, generation: i64, namespace: &str, spec: Value) {
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": namespace, "uid": uid, "generation": generation },
            "spec": spec,
        });
        let policy: DynamicObject = object(policy);
        self.tables.apply(Change::Policy(PolicyKind::AuthorizationPolicy, Event::Apply(policy)));
    }

    fn place(&mut self, name: &str) {
        self.places
            .insert(PodUid(format!("uid-{name}").into()), PodPlace::Netns(format!("/run/{name}").into()));
    }

    fn build(&mut self) -> (ClusterState, Pods, Vec<super::Judgement>) {
        self.builder.build(&self.tables.moment(), ("a", self.ambient), "istio-system", &self.places)
    }

    fn world(&mut self) -> World {
        self.world_beside("").0
    }

    fn world_beside(&mut self, file: &str) -> (World, Vec<String>) {
        let config = Config::parse(&format!("node: a\n{file}\n"), "test").unwrap();
        let mut world = World::build(&config).unwrap();
        let left_out = world.add_beside(&config, &self.build().0.additions);
        (world, left_out)
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn endpoint(address: &str, pod: &str) -> Value {
    json!({ "addresses": [address], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": "shop", "name": pod } })
}

/// Endpoints as text, with who lives there; none: the destination is not meshed.
fn resolve(world: &World, destination: &str) -> Option<Vec<String>> {
    match world.resolve(destination.parse::<SocketAddr>().unwrap()) {
        Destination::Meshed { endpoints, .. } => {
            let who = |e: &crate::world::Endpoint<'_>| {
                e.workload.map_or_else(|| "outside".to_owned(), |w| w.name.to_string())
            };
            Some(endpoints.iter().map(|e| format!("{} {}", e.addr, who(e))).collect())
        }
        Destination::External { .. } => panic!("none was given"),
        Destination::NotMeshed => None,
    }
}

fn web() -> Value {
    json!({ "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::96"], "selector": { "app": "web" },
            "ports": [ { "name": "web", "port": 80, "targetPort": "http", "nodePort": 30080 } ] })
}

#[test]
fn labels_of_pod_and_namespace_say_who_is_enrolled() {
    let own = |value: &str| json!({ "meshd.io/dataplane": value });
    let istio = |value: &str| json!({ "istio.io/dataplane-mode": value });
    for (namespace, pod, ambient, expected) in [
        (json!({}), json!({}), false, false),
        (own("enabled"), json!({}), false, true),
        (own("enabled"), own("disabled"), false, false),
        (json!({}), own("enabled"), false, true),
        (own("disabled"), own("enabled"), false, true),
        (own("nonsense"), json!({}), false, false),
        (istio("ambient"), json!({}), false, false),
        (istio("ambient"), json!({}), true, true),
        (istio("ambient"), istio("none"), true, false),
        (istio("ambient"), own("disabled"), true, false),
        (own("disabled"), json!({}), true, false),
        (json!({}), istio("ambient"), true, true),
    ] {
        let mut ground = Ground::with(&[("shop", namespace.clone())]);
        ground.ambient = ambient;
        ground.pod("shop/web", "b", "10.0.0.1", json!({ "metadata": { "labels": pod } }));
        let found = ground.build().0.additions.workloads.len();
        assert_eq!(found == 1, expected, "{namespace} {pod} {ambient}");
    }
}

#[test]
fn pods_of_this_node_are_served_once_it_is_known_where_they_live() {
    let mut ground = Ground::shop();
    ground.pod("shop/here", "a", "10.0.0.1", json!({}));
    ground.pod("shop/there", "b", "10.0.0.2", json!({}));
    ground.pod("shop/host", "a", "192.0.2.1", json!({ "spec": { "hostNetwork": true } }));
    ground.pod("far/other", "a", "10.0.0.3", json!({}));
    let (state, pods, _) = ground.build();
    let names = |state: &ClusterState| {
        state.additions.workloads.iter().map(|w| w.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&state), ["shop/there"]);
    assert_eq!(pods.waiting.len(), 1, "{pods:?}");
    assert_eq!(pods.host_network.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop/host"]);
    let of_node: Vec<_> = pods.of_node.iter().map(|p| (&*p.name, p.wanted, p.host_network)).collect();
    assert_eq!(of_node, [("other", false, false), ("here", true, false), ("host", true, true)]);
    ground.place("here");
    let (state, pods, _) = ground.build();
    assert_eq!(names(&state), ["shop/here", "shop/there"]);
    assert!(pods.waiting.is_empty());
    let world = ground.world();
    let here = world.by_name("shop", "here").unwrap();
    assert_eq!(here.spiffe_id.to_string(), "spiffe://cluster.local/ns/shop/sa/here");
    assert!(here.local.is_some() && world.by_name("shop", "there").unwrap().local.is_none());
}

#[test]
fn a_static_pod_is_known_by_its_files_hash_and_by_nobody_elses() {
    let mut ground = Ground::shop();
    let hash = "0123456789abcdef0123456789abcdef";
    let mirror = |hash: &str, when: &str| {
        json!({ "metadata": {
        "annotations": { "kubernetes.io/config.mirror": hash }, "creationTimestamp": when } })
    };
    let uids = |ground: &mut Ground| -> Vec<String> {
        ground.build().1.of_node.iter().map(|pod| format!("{} {}", pod.name, pod.uid.0)).collect()
    };
    ground.pod("shop/static-a", "a", "10.0.0.1", mirror(hash, "2026-01-01T00:00:00Z"));
    ground.pod(
        "shop/web",
        "a",
        "10.0.0.2",
        mirror("0f6e7a52-22a9-4d2e-9a3f-6c1d1b2a3c4d", "2026-01-01T00:00:00Z"),
    );
    assert_eq!(
        uids(&mut ground),
        [format!("static-a {hash}"), "web uid-web".to_owned()],
        "only a hash is believed"
    );
    // Somebody else's claim changes nothing, whatever its labels say.
    ground.pod("far/thief", "a", "10.0.0.3", mirror(hash, "2026-01-02T00:00:00Z"));
    ground.pod("shop/a-thief", "a", "10.0.0.4", mirror(hash, "2026-01-02T00:00:00Z"));
    assert_eq!(uids(&mut ground), [format!("static-a {hash}"), "web uid-web".to_owned()]);
    assert!(
        ground.build().1.waiting.iter().any(|(name, why)| &*name.name == "a-thief" && why.contains("UID"))
    );
    // On another node it is another pod.
    ground.pod("shop/static-b", "b", "10.0.0.5", mirror(hash, "2025-01-01T00:00:00Z"));
    assert_eq!(uids(&mut ground).len(), 2);
}

#[test]
fn metrics_call_a_pod_by_what_made_it() {
    let mut ground = Ground::shop();
    let made = |kind: &str, name: &str, is_made: bool| {
        json!({ "metadata": {
        "generateName": if is_made { "x-" } else { "" }, "labels": { "pod-template-hash": "5d59d67564" },
        "ownerReferences": [ { "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true } ] } })
    };
    for (kind, name, is_made, expected) in [
        ("ReplicaSet", "web-5d59d67564", true, "web"),
        ("ReplicaSet", "by-hand", true, "by-hand"),
        ("StatefulSet", "db", true, "db"),
        ("Job", "nightly-27541200", true, "nightly"),
        ("Job", "once-1", true, "once-1"),
        ("Node", "a", false, "pod"),
    ] {
        ground.pod("shop/pod", "b", "10.0.0.1", made(kind, name, is_made));
        let world = ground.world();
        assert_eq!(&*world.by_name("shop", "pod").unwrap().owner, expected, "{kind} {name}");
    }
    ground.pod("shop/pod", "b", "10.0.0.1", json!({}));
    assert_eq!(&*ground.world().by_name("shop", "pod").unwrap().owner, "pod");
}

#[test]
fn an_address_is_the_younger_pods() {
    let mut ground = Ground::shop();
    let created = |when: &str| json!({ "metadata": { "creationTimestamp": when } });
    ground.pod("shop/old", "b", "10.0.0.1", created("2026-01-01T00:00:00Z"));
    ground.pod("shop/new", "b", "10.0.0.1", created("2026-01-02T00:00:00Z"));
    assert_eq!(resolve(&ground.world(), "10.0.0.1:1"), Some(vec!["10.0.0.1:1 shop/new".to_owned()]));
    // Nobody of the mesh has it then, whatever an old object says.
    ground.pod("far/plain", "b", "10.0.0.1", created("2026-01-03T00:00:00Z"));
    assert_eq!(resolve(&ground.world(), "10.0.0.1:1"), None);
    ground.pod("far/plain", "b", "10.0.0.1", json!({ "status": { "phase": "Succeeded" } }));
    ground.pod("shop/new", "b", "10.0.0.1", json!({ "status": { "phase": "Failed" } }));
    assert_eq!(resolve(&ground.world(), "10.0.0.1:1"), Some(vec!["10.0.0.1:1 shop/old".to_owned()]));
}

#[test]
fn a_services_endpoints_are_those_that_kube_proxy_would_choose() {
    let mut ground = Ground::shop();
    for (name, node, address) in [("web", "b", "10.0.0.1"), ("web2", "b", "10.0.0.2")] {
        ground.pod(
            &format!("shop/{name}"),
            node,
            address,
            json!({ "metadata": { "labels": { "app": "web" } } }),
        );
    }
    ground.pod("shop/web6", "b", "fd00::1", json!({ "metadata": { "labels": { "app": "web" } } }));
    let with = |address: &str, pod: &str, more: Value| {
        let mut endpoint = endpoint(address, pod);
        merge(&mut endpoint, more);
        endpoint
    };
    let unready = json!({ "conditions": { "ready": false } });
    let ending = json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
    let zone = |zone: &str| json!({ "hints": { "forZones": [ { "name": zone } ] } });
    let node = |node: &str| json!({ "hints": { "forNodes": [ { "name": node } ], "forZones": [ { "name": "z1" } ] } });
    let here = json!({ "nodeName": "a" });
    let (one, two) = ("10.0.0.1:8080 shop/web", "10.0.0.2:8080 shop/web2");
    let plain = "10.0.0.9:8080 outside";
    for (what, spec, first, second, expected) in [
        ("both", json!({}), json!({}), json!({}), vec![one, two]),
        ("the ready one", json!({}), json!({}), unready.clone(), vec![one]),
        ("the one that ends, where none is ready", json!({}), unready.clone(), ending.clone(), vec![two]),
        ("not the one that ends, where one is ready", json!({}), json!({}), ending, vec![one]),
        ("that of the zone", json!({}), zone("z1"), zone("z2"), vec![one]),
        ("both, where one has no hint", json!({}), zone("z1"), json!({}), vec![one, two]),
        ("both, where none is for the zone", json!({}), zone("z3"), zone("z2"), vec![one, two]),
        ("that for this node", json!({}), node("b"), node("a"), vec![two]),
        ("those of the zone, where none is for the node", json!({}), node("b"), node("b"), vec![one, two]),
        ("those of the zone, where one is for no node", json!({}), node("a"), zone("z1"), vec![one, two]),
        ("that of the node", json!({ "internalTrafficPolicy": "Local" }), here, json!({}), vec![one]),
        ("none", json!({}), unready.clone(), unready, vec![]),
    ] {
        let mut service = web();
        merge(&mut service, spec);
        ground.service("shop/web", service);
        let slice = json!([with("10.0.0.1", "web", first), with("10.0.0.2", "web2", second)]);
        ground.slice("shop/web", "IPv4", 8080, slice);
        let world = ground.world();
        assert_eq!(resolve(&world, "10.96.0.1:80").unwrap(), expected, "{what}");
        assert_eq!(resolve(&world, "10.96.0.1:81"), None);
        if what != "that of the node" {
            assert_eq!(resolve(&world, "192.0.2.1:30080").unwrap(), expected, "{what}, by node port");
        }
    }
    ground.slice("shop/web", "IPv6", 8080, json!([endpoint("fd00::1", "web6")]));
    ground.slice(
        "shop/web",
        "IPv4",
        8080,
        json!([endpoint("10.0.0.1", "web"), endpoint("10.0.0.9", "plain")]),
    );
    let world = ground.world();
    assert_eq!(resolve(&world, "[fd00::96]:80").unwrap(), ["[fd00::1]:8080 shop/web6"]);
    assert_eq!(
        resolve(&world, "10.96.0.1:80").unwrap(),
        [one, plain],
        "those outside the mesh are chosen too"
    );
    // The pod that a slice tells of is not who has the address now.
    ground.slice(
        "shop/web",
        "IPv4",
        8080,
        json!([endpoint("10.0.0.1", "web2"), endpoint("10.0.0.9", "plain")]),
    );
    assert_eq!(resolve(&ground.world(), "10.96.0.1:80").unwrap(), [plain]);
}

#[test]
fn services_that_nobody_of_the_mesh_is_behind_are_left_alone() {
    let mut ground = Ground::shop();
    ground.pod("far/plain", "b", "10.0.0.9", json!({}));
    ground.service("far/plain", json!({ "clusterIP": "10.96.0.9", "selector": { "app": "plain" }, "ports": [ { "name": "web", "port": 80 } ] }));
    ground.slice("far/plain", "IPv4", 80, json!([endpoint("10.0.0.9", "plain")]));
    assert_eq!(resolve(&ground.world(), "10.96.0.9:80"), None);
    // One whose pods are of the mesh and not ready is not left to others.
    ground.pod("shop/web", "b", "10.0.0.1", json!({}));
    ground.service("shop/web", web());
    assert_eq!(resolve(&ground.world(), "10.96.0.1:80"), Some(vec![]));
}

#[test]
fn a_headless_service_names_its_endpoints() {
    let mut ground = Ground::shop();
    ground.pod("shop/db-0", "b", "10.0.0.1", json!({}));
    let ports = json!([ { "name": "web", "port": 80, "targetPort": 8080 } ]);
    ground.service("shop/db", json!({ "clusterIP": "None", "clusterIPs": ["None"], "ports": ports }));
    ground.slice("shop/db", "IPv4", 8080, json!([endpoint("10.0.0.1", "db-0")]));
    let world = ground.world();
    let (host, port) = world.host("10.0.0.1:8080".parse().unwrap()).unwrap();
    assert!(matches!(host, crate::world::WorldHost::Service(service) if &*service.name.name == "db"));
    assert_eq!(port, 80);
}

#[test]
fn the_nodes_file_comes_first() {
    let mut ground = Ground::shop();
    ground.pod("shop/web", "b", "10.0.0.1", json!({}));
    ground.pod("shop/other", "b", "10.0.0.2", json!({}));
    ground.service("shop/web", web());
    let file = "remoteWorkloads:\n  - { name: web, namespace: shop, addresses: [10.0.0.7] }\n  - { name: x, namespace: shop, addresses: [10.0.0.2] }\nservices:\n  - { name: web, namespace: shop, addresses: [10.96.0.7], ports: [{port: 80}], selector: {app: none} }";
    let (world, left_out) = ground.world_beside(file);
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    assert_eq!(resolve(&world, "10.0.0.1:1"), None);
    assert_eq!(resolve(&world, "10.0.0.2:1").unwrap(), ["10.0.0.2:1 shop/x"]);
}

#[test]
fn a_bad_policy_is_rejected_alone_and_its_last_good_version_stays() {
    let mut ground = Ground::shop();
    let deny = json!({ "action": "DENY", "rules": [ {} ] });
    let bad = json!({ "action": "NEVER" });
    ground.policy("u1", 1, "shop", deny.clone());
    ground.policy("u2", 1, "far", bad.clone());
    let (state, _, judgements) = ground.build();
    assert_eq!(state.documents.authorization_policies.len(), 1);
    assert_eq!(judgements.len(), 1, "nobody is enrolled in the other namespace");
    assert!(judgements[0].verdict.accepted && state.rejected.is_empty());

    ground.policy("u1", 2, "shop", bad.clone());
    let (state, _, judgements) = ground.build();
    assert_eq!(state.documents.authorization_policies.len(), 1, "the last good one is in force");
    let verdict = &judgements[0].verdict;
    assert!(!verdict.accepted && verdict.generation == 2 && verdict.message.contains("NEVER"), "{verdict:?}");
    assert_eq!(state.rejected.len(), 1);

    // Deleted and made anew: there is no good version of this one.
    ground.policy("u3", 1, "shop", bad);
    let (state, ..) = ground.build();
    assert!(state.documents.authorization_policies.is_empty());
    ground.policy("u3", 2, "shop", deny);
    assert!(ground.build().2[0].verdict.accepted);
}

#[test]
fn a_list_that_begins_anew_changes_nothing_before_it_is_whole() {
    let mut ground = Ground::shop();
    ground.pod("shop/web", "b", "10.0.0.1", json!({}));
    assert!(!ground.pod(
        "shop/web",
        "b",
        "10.0.0.1",
        json!({ "status": { "reason": "nothing that counts" } })
    ));
    assert!(!ground.tables.apply(Change::Pod(Event::Init)));
    assert_eq!(ground.build().0.additions.workloads.len(), 1);
    assert!(ground.tables.apply(Change::Pod(Event::InitDone)));
    assert!(ground.build().0.additions.workloads.is_empty());
    // A server that does not know a kind any more does not take its documents away.
    ground.policy("u1", 1, "istio-system", json!({}));
    assert!(!ground.tables.apply(Change::NoSuchKind(PolicyKind::AuthorizationPolicy)));
    assert_eq!(ground.build().0.documents.authorization_policies.len(), 1);
}

#[test]
fn only_meshds_own_condition_is_written() {
    let verdict =
        |accepted| Said { accepted, reason: "R".to_owned(), message: "m".to_owned(), generation: 3 };
    let istios = json!({ "type": "Reconciled", "status": "True" });
    let conditions = with_own(&json!([istios.clone()]), &verdict(true));
    assert_eq!(conditions[0], istios);
    assert_eq!((&conditions[1]["type"], &conditions[1]["status"]), (&json!(CONDITION), &json!("True")));
    let earlier = json!([{ "type": CONDITION, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }, istios]);
    let kept = with_own(&earlier, &verdict(true));
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[1]["lastTransitionTime"], "2026-01-01T00:00:00Z");
    assert_ne!(with_own(&earlier, &verdict(false))[1]["lastTransitionTime"], "2026-01-01T00:00:00Z");
    assert_eq!(with_own(&json!("nonsense"), &verdict(true)).len(), 1);
}

proptest! {
    /// Whatever objects are there, stale and contradictory ones, a world comes of it, each address leads to one workload at
    /// most, and nobody is a workload who is not enrolled or has ended.
    #[test]
    fn a_world_comes_of_any_objects(
        pods in prop::collection::vec((0u8..6, 0u8..4, 0u8..3, any::<bool>(), any::<bool>(), 0u8..9), 0..24),
        endpoints in prop::collection::vec((0u8..4, 0u8..6, any::<bool>()), 0..12),
    ) {
        let mut ground = Ground::shop();
        for (number, (name, address, node, enrolled, ended, day)) in pods.into_iter().enumerate() {
            let namespace = if enrolled { "shop" } else { "far" };
            let node = ["a", "b", ""][usize::from(node)];
            let phase = if ended { "Succeeded" } else { "Running" };
            ground.pod(&format!("{namespace}/p{name}"), node, &format!("10.0.0.{address}"), json!({
                "metadata": { "uid": format!("u{number}"), "creationTimestamp": format!("2026-01-0{}T00:00:00Z", day + 1) },
                "status": { "phase": phase },
            }));
            if number % 2 == 0 {
                ground.places.insert(PodUid(format!("u{number}").into()), PodPlace::Netns(format!("/run/{number}").into()));
            }
        }
        ground.service("shop/web", web());
        let all: Vec<_> = endpoints.iter().map(|(address, pod, ready)| {
            let mut endpoint = endpoint(&format!("10.0.0.{address}"), &format!("p{pod}"));
            endpoint["conditions"]["ready"] = json!(ready);
            endpoint
        }).collect();
        ground.slice("shop/web", "IPv4", 8080, json!(all));
        let (world, left_out) = ground.world_beside("");
        prop_assert!(left_out.is_empty(), "{:?}", left_out);
        let mut addresses = BTreeSet::new();
        for workload in world.workloads() {
            prop_assert_eq!(workload.namespace(), "shop");
            for address in &workload.addresses {
                prop_assert!(addresses.insert(*address));
                prop_assert_eq!(world.by_address(*address).map(|w| w.id), Some(workload.id));
            }
        }
        if let Destination::Meshed { endpoints, .. } = world.resolve("10.96.0.1:80".parse().unwrap()) {
            for endpoint in endpoints {
                prop_assert_eq!(world.by_address(endpoint.addr.ip()).map(|w| w.id), endpoint.workload.map(|w| w.id));
            }
        }
    }
}

/// Memory and time at the size that a cluster may have. Run it alone: `-- --ignored --nocapture ten_thousand`.
#[test]
#[ignore = "takes half a minute; prints figures"]
fn ten_thousand_pods_fit() {
    let began = std::time::Instant::now();
    let before = resident_kib();
    let mut ground = Ground::shop();
    for pod in 0..10_000u32 {
        let address = format!("10.{}.{}.{}", 1 + pod / 62_500, pod / 250 % 250, pod % 250);
        ground.pod(&format!("shop/p{pod}"), &format!("n{}", pod % 500), &address, json!({
            "metadata": { "labels": { "app": format!("s{}", pod % 2000), "pod-template-hash": format!("{}", pod % 2000) } },
            "spec": { "serviceAccountName": format!("s{}", pod % 2000) },
        }));
    }
    for service in 0..2_000u32 {
        let name = format!("shop/s{service}");
        ground.service(
            &name,
            json!({ "clusterIP": format!("172.16.{}.{}", service / 250, service % 250),
            "selector": { "app": format!("s{service}") }, "ports": [ { "name": "web", "port": 80 } ] }),
        );
        let endpoints: Vec<_> = (0..5u32)
            .map(|i| service + 2000 * i)
            .map(|pod| {
                endpoint(
                    &format!("10.{}.{}.{}", 1 + pod / 62_500, pod / 250 % 250, pod % 250),
                    &format!("p{pod}"),
                )
            })
            .collect();
        ground.slice(&name, "IPv4", 8080, json!(endpoints));
    }
    let kept = resident_kib();
    println!("kept after {:?}: {} KiB", began.elapsed(), kept - before);
    let began = std::time::Instant::now();
    let world = ground.world();
    println!(
        "world after {:?}: {} KiB more, {} destinations",
        began.elapsed(),
        resident_kib() - kept,
        world.capture_destinations().len()
    );
    assert_eq!((world.workloads().len(), world.services().len()), (10_000, 2_000));
    ground.pod("shop/one-more", "n1", "10.99.0.1", json!({}));
    let began = std::time::Instant::now();
    let again = ground.world();
    println!("one change: {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let compiled = crate::policy::CompiledPolicies::compile(&again, &crate::policy::PolicySet::default());
    println!("its policies: {:?}", began.elapsed());
    drop(compiled);
    assert_eq!(again.workloads().len(), 10_001);
    assert!(Arc::strong_count(&ground.tables.moment().pods) > 1);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
