//! What is decided once per request: its path and the verdict. The numbers in the names are policies: of the
//! workload itself, each of which must be looked at, or of others, which must cost nothing.

use std::{fmt::Write as _, hint::black_box, net::SocketAddr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_user::{
    config::Config,
    identity::SpiffeId,
    policy::{
        CompiledPolicies, L4Request, PolicySet,
        http::{HttpRequest, Normalization, NormalizedPath},
    },
    world::World,
};

const NODE: &str = "node: a\nworkloads:\n  - { name: web, namespace: shop, labels: {app: web}, \
                    selector: {netns: /run/netns/web}, addresses: [10.0.0.1] }\n";

/// `count` ALLOW policies for workloads labelled `app`, and one for the request on `web`.
fn policies(count: usize, app: &str) -> PolicySet {
    let mut text = String::new();
    let mut add = |name: &str, app: &str, path: &str| {
        let _ = writeln!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec: {{ selector: {{ matchLabels: {{ app: {app} }} }}, rules: [ {{ to: [ {{ operation: {{ methods: [GET], \
             paths: ['{path}'] }} }} ], when: [ {{ key: 'request.headers[x-team]', values: [shop] }} ] }} ] }}"
        );
    };
    for i in 1..count {
        add(&format!("p{i}"), app, &format!("/api/v{i}/{{*}}/items"));
    }
    add("z", "web", "/api/cart/{**}");
    PolicySet::parse([("bench.yaml", text.as_str())]).expect("valid policies")
}

fn decide(criterion: &mut Criterion) {
    let world = World::build(&Config::parse(NODE, "bench").expect("a valid node file")).expect("a world");
    let web = world.by_name("shop", "web").expect("it is in the file").id;
    let peer: SpiffeId = "spiffe://cluster.local/ns/shop/sa/client".parse().expect("a SPIFFE ID");
    let connection = L4Request {
        peer: Some(&peer),
        src: SocketAddr::from(([10, 0, 1, 1], 40000)),
        dst: SocketAddr::from(([10, 0, 0, 1], 80)),
        sni: None,
    };
    let path = NormalizedPath::new("/api/cart/1/items?page=2", Normalization::Base).expect("a path");
    let headers = vec![("accept", "*/*"), ("user-agent", "bench"), ("x-team", "shop")];
    let request = HttpRequest {
        method: "GET",
        path: Some(&path),
        authority: Some("web.shop"),
        headers: &headers,
        claims: None,
        remote_ip: connection.src.ip(),
    };
    let mut group = criterion.benchmark_group("policy/decide_http");
    for (whose, app) in [("own", "web"), ("others", "other")] {
        for count in [1, 100, 10_000] {
            let compiled = CompiledPolicies::compile(&world, &policies(count, app));
            let policy = compiled.for_workload(web);
            assert!(policy.decide_http(&connection, &request).is_allowed(), "the last policy allows it");
            group.bench_with_input(BenchmarkId::new(whose, count), policy, |b, policy| {
                b.iter(|| policy.decide_http(black_box(&connection), black_box(&request)));
            });
        }
    }
    group.finish();
}

fn normalize(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy/normalize");
    for (what, path) in [
        ("canonical", "/api/cart/1/items?page=2"),
        ("not canonical", "/api/%63art/../cart//1/./items?page=2"),
    ] {
        group.bench_function(what, |b| {
            b.iter(|| NormalizedPath::new(black_box(path), Normalization::MergeSlashes).is_ok());
        });
    }
    group.finish();
}

criterion_group!(benches, decide, normalize);
criterion_main!(benches);
