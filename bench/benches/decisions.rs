//! What is decided once per connection: the verdict, what a destination means, what the first bytes are; and what a
//! change of the world costs. The numbers in the names are policies' rules or the world's workloads.

mod common;

use std::{
    fmt::Write as _,
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_user::{
    config::Config,
    identity::SpiffeId,
    policy::{CompiledPolicies, L4Request, PolicySet},
    tls::{Detected, detect},
    world::World,
};
use tokio::io::AsyncReadExt as _;

/// Ten workloads to a service.
fn services(remote: usize) -> usize {
    remote.div_ceil(10)
}

/// A node with one workload of its own and `remote` others, some behind a service.
fn node_file(remote: usize) -> String {
    let mut text = "node: a\nworkloads:\n  - { name: web, namespace: shop, labels: {app: web}, \
                    selector: {netns: /run/netns/web}, addresses: [10.0.0.1] }\nremoteWorkloads:\n"
        .to_owned();
    for i in 0..remote {
        let address = address(1, i);
        let _ = writeln!(
            text,
            "  - {{ name: w{i}, namespace: shop, labels: {{app: w{i}}}, addresses: [{address}], node: b }}"
        );
    }
    text.push_str("services:\n");
    for i in 0..services(remote) {
        let address = address(101, i);
        let _ = writeln!(
            text,
            "  - {{ name: s{i}, namespace: shop, addresses: [{address}], ports: [{{port: 80}}], selector: {{app: w{i}}} }}"
        );
    }
    text
}

fn address(second_octet: u8, index: usize) -> Ipv4Addr {
    let [_, _, high, low] = u32::try_from(index).expect("a small index").to_be_bytes();
    Ipv4Addr::new(10, second_octet, high, low)
}

/// The same configuration as the file's, without the time that parsing takes.
fn config(remote: usize) -> Config {
    let mut config = Config::parse(&node_file(1), "bench").expect("a valid node file");
    let (workload, service) = (config.remote_workloads[0].clone(), config.services[0].clone());
    for i in 1..remote {
        let label = [("app".to_owned(), format!("w{i}"))];
        let mut workload = workload.clone();
        workload.name = format!("w{i}");
        workload.labels = label.into();
        workload.addresses = vec![address(1, i).into()];
        config.remote_workloads.push(workload);
    }
    for i in 1..services(remote) {
        let label = [("app".to_owned(), format!("w{i}"))];
        let mut service = service.clone();
        service.name = format!("s{i}");
        service.selector = label.into();
        service.addresses = vec![address(101, i).into()];
        config.services.push(service);
    }
    config
}

fn world_of(remote: usize) -> World {
    World::build(&config(remote)).expect("a world")
}

/// `rules` rules that name other callers and networks, then one that names ours.
fn policies(rules: usize) -> String {
    let mut text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                    metadata: { name: callers, namespace: shop }\nspec:\n  \
                    selector: { matchLabels: { app: web } }\n  action: ALLOW\n  rules:\n"
        .to_owned();
    for i in 1..rules {
        let _ = writeln!(
            text,
            "  - from: [ {{ source: {{ principals: [cluster.local/ns/shop/sa/c{i}], ipBlocks: [10.{}.0.0/16] }} }} ]\n    \
             to: [ {{ operation: {{ ports: ['80'] }} }} ]",
            i % 250
        );
    }
    text.push_str("  - from: [ { source: { principals: [cluster.local/ns/shop/sa/client] } } ]\n");
    text
}

fn policy(criterion: &mut Criterion) {
    let peer: SpiffeId = "spiffe://cluster.local/ns/shop/sa/client".parse().expect("a SPIFFE ID");
    let request = L4Request {
        peer: Some(&peer),
        src: SocketAddr::from(([10, 0, 1, 1], 40000)),
        dst: SocketAddr::from(([10, 0, 0, 1], 80)),
        sni: None,
    };
    let world = world_of(10);
    let web = world.by_name("shop", "web").expect("it is in the file").id;
    let mut group = criterion.benchmark_group("policy/decide");
    for rules in [0, 1, 10, 100, 1000] {
        let documents = if rules == 0 { String::new() } else { policies(rules) };
        let set = PolicySet::parse([("bench.yaml", documents.as_str())]).expect("valid policies");
        let compiled = CompiledPolicies::compile(&world, &set);
        let policy = compiled.for_workload(web);
        assert!(policy.decide(&request).is_allowed(), "the last rule allows it");
        group.bench_with_input(BenchmarkId::from_parameter(rules), policy, |b, policy| {
            b.iter(|| policy.decide(black_box(&request)));
        });
    }
    group.finish();
    let set = PolicySet::parse([("bench.yaml", policies(100).as_str())]).expect("valid policies");
    criterion.bench_function("policy/compile 100 rules", |b| {
        b.iter(|| CompiledPolicies::compile(black_box(&world), &set));
    });
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("world/resolve");
    for workloads in [10, 1_000, 20_000] {
        let world = world_of(workloads);
        for (what, address, meshed) in [
            ("workload", address(1, workloads - 1), true),
            ("service", address(101, services(workloads) - 1), true),
            ("stranger", Ipv4Addr::new(192, 0, 2, 1), false),
        ] {
            let destination = SocketAddr::from((address, 80));
            let found = world.resolve(destination);
            let is_meshed = matches!(found, mesh_user::world::Destination::Meshed { .. });
            assert_eq!(is_meshed, meshed, "{destination}");
            group.bench_with_input(BenchmarkId::new(what, workloads), &destination, |b, destination| {
                b.iter(|| world.resolve(black_box(*destination)));
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("world/build");
    group.sample_size(10);
    let text = node_file(1_000);
    group.bench_function("parse the file/1000", |b| {
        b.iter(|| Config::parse(black_box(&text), "bench").expect("a valid node file"));
    });
    for workloads in [1_000, 5_000, 20_000] {
        let config = config(workloads);
        group.bench_with_input(BenchmarkId::new("snapshot", workloads), &config, |b, config| {
            b.iter(|| World::build(black_box(config)));
        });
    }
    group.finish();
}

/// The first flight of a mesh client.
fn client_hello() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, _) = common::ends(folder.path());
    common::runtime().block_on(async {
        let (near, mut far) = common::tcp_pair().await;
        let mut hello = vec![0; 16 * 1024];
        tokio::select! {
            _ = client.connect(near) => unreachable!("nobody answers"),
            read = far.read(&mut hello) => hello.truncate(read.expect("a ClientHello")),
        }
        hello
    })
}

fn peek(criterion: &mut Criterion) {
    let hello = client_hello();
    assert!(matches!(detect(&hello), Detected::Tls(found) if found.mesh));
    let mut group = criterion.benchmark_group("peek");
    group.bench_function("mesh ClientHello", |b| b.iter(|| detect(black_box(&hello))));
    group.bench_function("half of it", |b| b.iter(|| detect(black_box(&hello[..hello.len() / 2]))));
    group.bench_function("HTTP", |b| b.iter(|| detect(black_box(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))));
    group.finish();
}

criterion_group!(benches, policy, lookup, peek);
criterion_main!(benches);
