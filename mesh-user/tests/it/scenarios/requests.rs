//! Rules that ask about requests, on real programs: each request is decided by itself, and what is not HTTP is decided as
//! TCP.

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, STRICT, is_unserved, probe, serve};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, wait_until};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        each_request_of_a_connection_is_decided_by_itself,
        http2_requests_are_decided_one_by_one,
        a_token_is_judged_and_its_principal_counts,
        what_is_not_http_is_decided_as_tcp,
        a_new_policy_counts_for_the_next_request_of_a_live_connection,
        the_original_client_is_whom_a_named_proxy_says,
        rules_that_watch_are_told_and_change_nothing;
];

const PORT: u16 = 8080;
const H2_PORT: u16 = 8081;

/// `GET` below `/public`, for the client only.
const ONLY_PUBLIC: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: public, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  rules:
  - from: [ { source: { principals: [ cluster.local/ns/shop/sa/client ] } } ]
    to: [ { operation: { methods: [ GET ], paths: [ /public, /public/* ] } } ]
";

/// What curl says of several requests on one connection: status and body of each.
pub(super) fn curl(place: &Place, options: &[&str], urls: &[String]) -> anyhow::Result<Vec<(u16, String)>> {
    let mut argv =
        vec!["curl", "-sS", "--path-as-is", "--max-time", "20", "-w", "\\n%{http_code} %{num_connects}\\n"];
    argv.extend(options);
    argv.extend(urls.iter().map(String::as_str));
    let said = place.run(&argv)?.succeeded()?;
    let lines: Vec<&str> = said.lines().collect();
    let mut answers = Vec::new();
    let mut body = Vec::new();
    for line in lines {
        let status =
            line.split_once(' ').filter(|(code, _)| code.len() == 3).and_then(|(code, _)| code.parse().ok());
        match status {
            Some(status) => answers.push((status, std::mem::take(&mut body).join("\n").trim().to_owned())),
            None => body.push(line),
        }
    }
    ensure!(answers.len() == urls.len(), "{said}");
    Ok(answers)
}

fn must_answer(got: &[(u16, String)], wanted: &[u16]) -> anyhow::Result<()> {
    let statuses: Vec<u16> = got.iter().map(|(status, _)| *status).collect();
    ensure!(statuses == wanted, "{got:?} instead of {wanted:?}");
    for (status, body) in got {
        match status {
            200 => ensure!(body.contains(MARKER), "{body}"),
            403 => ensure!(body == "RBAC: access denied", "{body}"),
            _ => {}
        }
    }
    Ok(())
}

fn requests(mesh: &Mesh) -> Vec<Value> {
    mesh.b.access_log().into_iter().filter(|line| line["event"] == "request").collect()
}

fn the_original_client_is_whom_a_named_proxy_says(ground: &Ground) -> anyhow::Result<()> {
    const NOT_FROM: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: not-from, namespace: shop }
spec:
  action: DENY
  rules: [ { from: [ { source: { remoteIpBlocks: [ 192.0.2.0/24 ] } } ] } ]
";
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(&format!("{STRICT}{NOT_FROM}"))?;
    let gateway = json!({ "trustedPrincipals": ["cluster.local/ns/shop/sa/client"], "numTrustedProxies": 1 });
    mesh.b.settings.insert("forwardedFor".into(), gateway);
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = format!("http://{}/", mesh.server.at(PORT));
    for (place, header, wanted) in [
        (&mesh.client, "X-Forwarded-For: 192.0.2.7, 198.51.100.1", 403),
        (&mesh.client, "X-Forwarded-For: 198.51.100.1, 192.0.2.7", 200),
        (&mesh.client, "X-Forwarded-For: 192.0.2.7, 198.51.100.1, 203.0.113.1", 200),
        (&mesh.client, "X-Forwarded-For: 192.0.2.7", 200),
        (&mesh.other, "X-Forwarded-For: 192.0.2.7, 198.51.100.1", 200),
    ] {
        must_answer(&curl(place, &["-H", header], std::slice::from_ref(&url))?, &[wanted]).context(header)?;
    }
    Ok(())
}

fn each_request_of_a_connection_is_decided_by_itself(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{ONLY_PUBLIC}"))?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    let paths = [
        "/public",
        "/public/a?token=secret",
        "/private",
        "/public/../private",
        "/public/%2e%2e/private",
        "/public",
    ];
    mesh.watched("requests", || {
        let got = curl(&mesh.client, &[], &paths.map(url))?;
        must_answer(&got, &[200, 200, 403, 403, 403, 200])?;
        let got = curl(&mesh.client, &["-X", "POST", "-d", MARKER], &[url("/public")])?;
        must_answer(&got, &[403])?;
        must_answer(&curl(&mesh.other, &[], &[url("/public")])?, &[403])
    })?;
    wait_until(PATIENCE, "a line for each request", || Ok(requests(&mesh).len() == 8))?;
    let lines = requests(&mesh);
    let first = &lines[0];
    ensure!(first["path"] == "/public" && first["status"] == 200 && first["verdict"] == "allow", "{first}");
    ensure!(first["rule"] == "shop/public rule[0]", "{first}");
    ensure!(first["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/client", "{first}");
    ensure!(lines[2]["status"] == 403 && lines[2]["verdict"] == "deny", "{}", lines[2]);
    ensure!(!lines.iter().any(|line| line.to_string().contains("secret")), "a query is in the log");
    let denied =
        mesh.b.metric("meshd_http_requests_total", &["verdict=\"deny\"", "response_code=\"403\""])?;
    ensure!(denied == 5, "{denied} denials counted");
    let client = "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"";
    for (labels, wanted) in [
        (&[client, "reporter=\"destination\"", "response_code=\"200\"", "response_flags=\"-\""], 3),
        (&[client, "reporter=\"destination\"", "response_code=\"403\"", "response_flags=\"DENY\""], 4),
    ] {
        let counted = mesh.b.metric("istio_requests_total", labels)?;
        ensure!(counted == wanted, "{counted} with {labels:?}: {}", mesh.b.metrics()?);
    }
    // An ambiguous request reaches nobody.
    let smuggled =
        "GET /public HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let seen = probe(&mesh.client, mesh.server.at(PORT), &["--send", smuggled])?;
    ensure!(seen["text"].as_str().is_some_and(|text| text.starts_with("HTTP/1.1 400")), "{seen}");
    Ok(())
}

fn http2_requests_are_decided_one_by_one(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{ONLY_PUBLIC}"))?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(H2_PORT));
    // One each: curl 7.88 cannot use such a connection twice, with or without a mesh.
    for (path, wanted) in [("/public", 200), ("/private", 403)] {
        must_answer(&curl(&mesh.client, &["--http2-prior-knowledge"], &[url(path)])?, &[wanted])?;
    }
    let (count, public) = (ground.scale().of("2000", "100"), url("/public"));
    let said = mesh.client.run(&["h2load", "-n", count, "-c", "4", "-m", "16", &public])?.succeeded()?;
    ensure!(said.contains(&format!("{count} succeeded, 0 failed")), "{said}");
    let private = url("/private");
    let said = mesh.client.run(&["h2load", "-n", count, "-c", "4", "-m", "16", &private])?.succeeded()?;
    ensure!(said.contains(&format!("0 2xx, 0 3xx, {count} 4xx, 0 5xx")), "{said}");
    Ok(())
}

/// A key pair of the story's own, as openssl makes it.
pub(super) struct Issuer {
    key: String,
    pub(super) jwks: Value,
}

impl Issuer {
    pub(super) fn new(place: &Place) -> anyhow::Result<Self> {
        let key = place.dir().join("issuer.pem").display().to_string();
        place.run(&["openssl", "genrsa", "-out", &key, "2048"])?.succeeded()?;
        let modulus = place.run(&["openssl", "rsa", "-in", &key, "-noout", "-modulus"])?.succeeded()?;
        let hex = modulus.trim().strip_prefix("Modulus=").context("openssl prints no modulus")?;
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
        let modulus = URL_SAFE_NO_PAD.encode(bytes.collect::<Result<Vec<_>, _>>()?);
        Ok(Self { key, jwks: json!({ "keys": [ { "kty": "RSA", "kid": "k", "n": modulus, "e": "AQAB" } ] }) })
    }

    pub(super) fn token(&self, place: &Place, claims: &Value) -> anyhow::Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "RS256", "kid": "k" })), part(claims));
        let (text, signature) = (place.dir().join("signed"), place.dir().join("signature"));
        std::fs::write(&text, &signed)?;
        let (text, out) = (text.display().to_string(), signature.display().to_string());
        place.run(&["openssl", "dgst", "-sha256", "-sign", &self.key, "-out", &out, &text])?.succeeded()?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(std::fs::read(signature)?)))
    }
}

fn a_token_is_judged_and_its_principal_counts(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let issuer = Issuer::new(&mesh.server)?;
    let policies = format!(
        "{STRICT}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  jwtRules:
  - issuer: issuer.example
    jwks: '{}'
    outputClaimToHeaders: [ {{ header: x-team, claim: team }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: with-token, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  rules:
  - from: [ {{ source: {{ requestPrincipals: [ issuer.example/alice ] }} }} ]
  - to: [ {{ operation: {{ paths: [ /open ] }} }} ]
  - to: [ {{ operation: {{ paths: [ /team ] }} }} ]
    when: [ {{ key: 'request.auth.claims[team]', values: [ blue ] }} ]
  - to: [ {{ operation: {{ paths: [ /header ] }} }} ]
    when: [ {{ key: 'request.headers[x-team]', values: [ blue ] }} ]
",
        issuer.jwks
    );
    mesh.policies(&policies)?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    let token = |claims: Value| issuer.token(&mesh.server, &claims);
    let soon = 4_102_444_800_u64;
    let alice = token(json!({ "iss": "issuer.example", "sub": "alice", "exp": soon }))?;
    let bob = token(json!({ "iss": "issuer.example", "sub": "bob", "exp": soon, "team": "blue" }))?;
    let old = token(json!({ "iss": "issuer.example", "sub": "alice", "exp": 1_000_000_000 }))?;
    let stranger = token(json!({ "iss": "elsewhere.example", "sub": "alice", "exp": soon }))?;
    let forged = format!("{}x", &alice[..alice.len() - 1]);
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"),
        alice.split('.').nth(1).unwrap_or_default()
    );
    for (who, token, path, wanted) in [
        ("alice", Some(&alice), "/private", 200),
        ("bob", Some(&bob), "/private", 403),
        ("bob's team", Some(&bob), "/team", 200),
        ("nobody", None, "/private", 403),
        ("nobody", None, "/open", 200),
        ("an expired token", Some(&old), "/open", 401),
        ("a stranger's token", Some(&stranger), "/open", 401),
        ("a forged token", Some(&forged), "/open", 401),
        ("a token without signature", Some(&none), "/open", 401),
    ] {
        let header = token.map(|token| format!("Authorization: Bearer {token}")).unwrap_or_default();
        let options: &[&str] = if token.is_some() { &["-H", &header] } else { &[] };
        let got = curl(&mesh.client, options, &[url(path)])?;
        must_answer(&got, &[wanted]).with_context(|| format!("{who} at {path}"))?;
    }
    // A header that a token's claim is written to is what the claim says, never what the client sends.
    let bearer = format!("Authorization: Bearer {bob}");
    must_answer(&curl(&mesh.client, &["-H", "X-Team: blue"], &[url("/header")])?, &[403])?;
    must_answer(&curl(&mesh.client, &["-H", "X-Team: red", "-H", &bearer], &[url("/header")])?, &[200])?;
    wait_until(PATIENCE, "a line for each request", || Ok(requests(&mesh).len() == 11))?;
    let lines = requests(&mesh);
    let who: Vec<_> = lines.iter().map(|line| line["request_principal"].as_str().unwrap_or("-")).collect();
    let (alice_is, bob_is) = ("issuer.example/alice", "issuer.example/bob");
    ensure!(who == [alice_is, bob_is, bob_is, "-", "-", "-", "-", "-", "-", "-", bob_is], "{who:?}");
    let log = mesh.b.log();
    ensure!(!log.contains(&alice[..40]), "a token is in the log");
    Ok(())
}

fn what_is_not_http_is_decided_as_tcp(ground: &Ground) -> anyhow::Result<()> {
    let deny_path = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-private, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  action: DENY
  rules:
  - from: [ { source: { principals: [ cluster.local/ns/shop/sa/other ] } } ]
    to: [ { operation: { paths: [ /private ] } } ]
";
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{deny_path}"))?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    // The rule's path is ignored on TCP, its caller is not (Istio's rule for TCP and HTTP fields).
    let text = "\u{1}not http at all";
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", text, "--shutdown"])?;
    ensure!(seen["text"] == text && seen["ended"] == "eof", "{seen}");
    let denied = probe(&mesh.other, mesh.server.at(7000), &["--send", text, "--shutdown"])?;
    ensure!(is_unserved(&denied), "{denied}");
    ensure!(server.stdout().matches("\"received\":16").count() == 1, "{}", server.stdout());
    // A server that speaks first is not waited for without end.
    let _first = serve(&mesh.server, 7001, &["--banner", "hello"])?;
    let seen = probe(&mesh.client, mesh.server.at(7001), &["--wait-ms", "4000"])?;
    ensure!(seen["text"] == "hello", "{seen}");
    Ok(())
}

fn a_new_policy_counts_for_the_next_request_of_a_live_connection(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{ONLY_PUBLIC}"))?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = format!("http://{}/public", mesh.server.at(PORT));
    // One connection, a request every fifth of a second.
    let urls = format!("{url}?[1-60]");
    let argv = ["curl", "-sS", "--rate", "5/s", "-w", "\\n%{http_code} %{num_connects}\\n", &urls];
    let mut talking = mesh.client.launch("curl", &argv).start()?;
    talking.wait_to_say("200", PATIENCE)?;
    mesh.policies(&format!("{STRICT}{}", ONLY_PUBLIC.replace("GET", "PUT")))?;
    talking.wait_to_say("403", PATIENCE)?;
    let said = talking.stdout();
    let connects: u32 = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(code, n)| code.parse::<u16>().ok().and(n.parse::<u32>().ok()))
        .sum();
    ensure!(connects == 1, "{connects} connections: {said}");
    talking.kill_hard()
}

fn rules_that_watch_are_told_and_change_nothing(ground: &Ground) -> anyhow::Result<()> {
    let watching = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: watch, namespace: shop }
spec:
  action: AUDIT
  rules: [ { to: [ { operation: { methods: [ GET ] } } ] } ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: try, namespace: shop, annotations: { istio.io/dry-run: \"true\" } }
spec:
  action: DENY
  rules: [ { to: [ { operation: { paths: [ /private ] } } ] } ]
";
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{watching}"))?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = format!("http://{}/private", mesh.server.at(PORT));
    must_answer(&curl(&mesh.client, &[], &[url])?, &[200])?;
    let line = mesh.b.wait_access_log("the audit record", |line| line["event"] == "audit")?;
    ensure!(line["audit"] == json!(["shop/watch rule[0]"]) && line["path"] == "/private", "{line}");
    let dry_run = line["dry_run"].as_str().unwrap_or_default();
    ensure!(dry_run.contains("denied: shop/try rule[0]"), "{line}");
    Ok(())
}
