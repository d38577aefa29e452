//! What is decided once per request, and what reading and writing it costs. The numbers in the names are policies: of the
//! workload itself, each of which must be looked at, or of others, which must cost nothing.

use std::{hint::black_box, io, net::SocketAddr, sync::Arc};

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_user::{
    config::Config,
    http::{self, Decision, Edits, Gate, HeadScan, Settings},
    identity::SpiffeId,
    jwt::{self, JwtRule, KeyLocation, KeySet, Keys, Outcome, VerifiedSignatures},
    policy::{
        AuthorizationPolicy, CompiledPolicies, L4Request, PolicySet,
        http::{HttpRequest, Normalization, NormalizedPath},
    },
    world::World,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const NODE: &str = "node: a\nworkloads:\n  - { name: web, namespace: shop, labels: {app: web}, \
                    selector: {netns: /run/netns/web}, addresses: [10.0.0.1] }\n";

/// `count` ALLOW policies: one for the request on `web`, the others for workloads labelled `app`. Copies of what was
/// parsed, so that making them takes no time.
fn policies(count: usize, app: &str, rule: fn(bool) -> String) -> PolicySet {
    let document = |name: &str, app: &str, rule: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec: {{ selector: {{ matchLabels: {{ app: {app} }} }}, rules: [ {rule} ] }}\n"
        )
    };
    let text = document("z", "web", &rule(true)) + &document("p", app, &rule(false));
    let mut set = PolicySet::parse([("bench.yaml", text.as_str())]).expect("valid policies");
    let other = set.authorization_policies.pop().expect("two policies");
    set.authorization_policies
        .extend((1..count).map(|i| AuthorizationPolicy { name: format!("p{i}").into(), ..other.clone() }));
    set
}

/// About requests; `ours` is for the request here.
fn http_rule(ours: bool) -> String {
    let path = if ours { "/api/cart/{**}" } else { "/api/v1/{*}/items" };
    format!(
        "{{ to: [ {{ operation: {{ methods: [GET], paths: ['{path}'] }} }} ], \
         when: [ {{ key: 'request.headers[x-team]', values: [shop] }} ] }}"
    )
}

/// About connections.
fn l4_rule(ours: bool) -> String {
    let name = if ours { "client" } else { "other" };
    format!("{{ from: [ {{ source: {{ principals: [cluster.local/ns/shop/sa/{name}] }} }} ] }}")
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
    for (whose, app) in [("own", "web"), ("others", "other")] {
        for count in [1, 100, 10_000] {
            let compiled = CompiledPolicies::compile(&world, &policies(count, app, l4_rule));
            let policy = compiled.for_workload(web);
            assert!(policy.decide(&connection).is_allowed(), "the last policy allows it");
            criterion.bench_with_input(
                BenchmarkId::new(format!("policy/decide/{whose}"), count),
                policy,
                |b, policy| b.iter(|| policy.decide(black_box(&connection))),
            );
            let compiled = CompiledPolicies::compile(&world, &policies(count, app, http_rule));
            let policy = compiled.for_workload(web);
            assert!(policy.decide_http(&connection, &request).is_allowed(), "the last policy allows it");
            criterion.bench_with_input(
                BenchmarkId::new(format!("policy/decide_http/{whose}"), count),
                policy,
                |b, policy| b.iter(|| policy.decide_http(black_box(&connection), black_box(&request))),
            );
        }
    }
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

/// Keys are in the document; what was verified is remembered, or not.
struct Memory(Option<VerifiedSignatures>);

impl Keys for Memory {
    fn keys(&self, _: &KeyLocation) -> Option<Arc<KeySet>> {
        None
    }

    fn unknown_key(&self, _: &KeyLocation) {}

    fn verified(&self) -> Option<&VerifiedSignatures> {
        self.0.as_ref()
    }
}

/// A public key, and a token of it that never expires.
fn rs256() -> (String, String) {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der = key.public_key().as_der().expect("a public key");
    // SubjectPublicKeyInfo of a 2048-bit key: its modulus ends 5 bytes before the end, where the exponent 65537 is.
    let n = &der.as_ref()[der.as_ref().len() - 5 - 256..der.as_ref().len() - 5];
    let jwk = format!(r#"{{"kty":"RSA","kid":"k","n":"{}","e":"AQAB"}}"#, URL_SAFE_NO_PAD.encode(n));
    let token = token("RS256", |message| {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).expect("a signature");
        signature
    });
    (jwk, token)
}

fn es256() -> (String, String) {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let point = key.public_key().as_ref();
    let [x, y] = [&point[1..33], &point[33..]].map(|half| URL_SAFE_NO_PAD.encode(half));
    let jwk = format!(r#"{{"kty":"EC","crv":"P-256","kid":"k","x":"{x}","y":"{y}"}}"#);
    let token = token("ES256", |message| {
        key.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec()
    });
    (jwk, token)
}

fn token(alg: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","kid":"k","typ":"JWT"}}"#));
    let claims = URL_SAFE_NO_PAD.encode(
        r#"{"iss":"https://issuer.example","sub":"alice","aud":["shop","cart"],"exp":4102444800,"iat":1700000000,"scope":"read write","groups":["a","b"]}"#,
    );
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn jwt_rules(jwk: &str) -> Vec<Arc<JwtRule>> {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{ name: jwt, namespace: shop }}\n\
         spec: {{ jwtRules: [ {{ issuer: 'https://issuer.example', jwks: '{{\"keys\":[{jwk}]}}' }} ] }}\n"
    );
    let set = PolicySet::parse([("jwt.yaml", text.as_str())]).expect("a valid policy");
    set.request_authentications[0].rules.iter().map(Arc::clone).collect()
}

fn authenticate(criterion: &mut Criterion) {
    for (name, (jwk, token)) in [("RS256", rs256()), ("ES256", es256())] {
        let rules = jwt_rules(&jwk);
        let headers = vec![("accept", "*/*".to_owned()), ("authorization", format!("Bearer {token}"))];
        let head = jwt::RequestHead {
            method: "GET",
            scheme: "https",
            authority: "web.shop",
            path_and_query: "/api/cart/1/items?page=2",
            headers: &headers,
        };
        for (memory, keys) in
            [("anew", Memory(None)), ("remembered", Memory(Some(VerifiedSignatures::default())))]
        {
            let now = 1_800_000_000;
            let decision = jwt::authenticate(&rules, &head, &keys, now);
            assert!(matches!(decision.outcome, Outcome::Authenticated(_)), "{:?}", decision.outcome);
            criterion.bench_function(&format!("jwt/authenticate/{name}/{memory}"), |b| {
                b.iter(|| jwt::authenticate(&rules, black_box(&head), &keys, now));
            });
        }
    }
}

const REQUEST: &[u8] = b"GET /api/cart/1/items?page=2 HTTP/1.1\r\nHost: web.shop\r\nUser-Agent: bench/1.0\r\n\
    Accept: application/json\r\nAccept-Encoding: gzip, br\r\nx-request-id: 4e6f7420-6120-7265-616c-206f6e652121\r\n\
    x-team: shop\r\n\r\n";
const BODY_BYTES: usize = 1024;

fn response() -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 06:00:00 GMT\r\nContent-Type: text/plain\r\n\
         Content-Length: {BODY_BYTES}\r\nLast-Modified: Mon, 23 Nov 2026 05:00:00 GMT\r\nConnection: keep-alive\r\n\
         ETag: \"6541f1e0-400\"\r\nAccept-Ranges: bytes\r\n\r\n"
    )
    .into_bytes();
    response.resize(response.len() + BODY_BYTES, b'x');
    response
}

struct Anybody;

impl Gate for Anybody {
    async fn decide(&self, _: &http::RequestHead<'_>) -> Decision {
        Decision::Allow(Edits::default())
    }
}

/// Answers every request at once.
async fn application(mut stream: DuplexStream) {
    let (response, mut read, mut buffer) = (response(), 0, [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer[read..]).await {
        read += count;
        if buffer[..read].ends_with(b"\r\n\r\n") {
            read = 0;
            if stream.write_all(&response).await.is_err() {
                return;
            }
        }
    }
}

fn http1(criterion: &mut Criterion) {
    let settings = Settings::default();
    let mut group = criterion.benchmark_group("http1");
    group.throughput(Throughput::Elements(1));
    group.bench_function("request head", |b| {
        b.iter(|| {
            let scanned = HeadScan::request().feed(black_box(REQUEST), settings.max_head_bytes);
            (scanned, http::parse_request(REQUEST, &settings).is_ok())
        });
    });
    let response = response();
    let head = &response[..response.len() - BODY_BYTES];
    group.bench_function("response head", |b| {
        b.iter(|| {
            let scanned = HeadScan::response().feed(black_box(head), settings.max_head_bytes);
            (scanned, http::parse_response(head, "GET", &settings).is_ok())
        });
    });
    // Both heads read and written anew, 1 KiB carried; sockets and TLS are pipes in memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut client, peer) = duplex(64 * 1024);
    runtime.spawn(async move {
        let open = || async {
            let (near, far) = duplex(64 * 1024);
            tokio::spawn(application(far));
            Ok::<_, io::Error>(near)
        };
        http::serve(peer, BytesMut::new(), open, &Anybody, &(), &Settings::default()).await
    });
    let mut buffer = vec![0; response.len()];
    group.bench_function("exchange", |b| {
        b.iter(|| {
            runtime.block_on(async {
                client.write_all(REQUEST).await.expect("meshd reads");
                client.read_exact(&mut buffer).await.expect("meshd answers");
            });
        });
    });
    group.finish();
}

criterion_group!(benches, decide, normalize, authenticate, http1);
criterion_main!(benches);
