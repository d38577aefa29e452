//! `action: CUSTOM` with real authorizers: nginx over HTTP, a peer of the tests over gRPC; within the mesh, where they are
//! asked by mTLS, and outside of it. What fails, fails closed.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, STRICT, is_unserved, json_lines, probe, serve, start_probe};
use crate::it::netns::Place;
use crate::it::peer;
use crate::it::process::{PATIENCE, Program, wait_until};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        an_http_authorizer_of_the_mesh_is_asked_by_mtls_and_followed,
        a_grpc_authorizer_decides_requests_and_connections,
        an_authorizer_that_is_gone_denies_unless_it_fails_open,
        a_provider_that_is_not_there_denies_and_is_told;
];

const PORT: u16 = 8080;
const AUTHZ_PORT: u16 = 9000;

/// All requests and connections to the server, below `/free` excepted.
const CUSTOM: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: ask, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  action: CUSTOM
  provider: { name: authz }
  rules: [ { to: [ { operation: { notPaths: [ /free ] } } ] } ]
";

/// Only for those whom the authorizer gave a team, and for `/free`.
const ONLY_TEAMS: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: teams, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  rules:
  - when: [ { key: 'request.headers[x-team]', values: [ blue ] } ]
  - to: [ { operation: { paths: [ /free ] } } ]
";

/// An nginx that says which team it is told, and one that knows alice.
const SERVER: &str =
    "location / { default_type text/plain; return 200 \"team=$http_x_team secret=$http_x_secret\"; }";
const KNOWS_ALICE: &str = "location / {
    default_type text/plain;
    if ($http_x_user = alice) { add_header X-Team blue; add_header X-Envoy-Auth-Headers-To-Remove x-secret; return 200; }
    if ($http_x_user = bob) { add_header X-Team red; return 200; }
    if ($http_x_user = broken) { return 503; }
    add_header WWW-Authenticate Basic always;
    return 401 \"who are you at $request_uri\";
}";

fn http_provider(service: &str, more: &[(&str, Value)]) -> Value {
    let mut http = json!({
        "service": service, "port": AUTHZ_PORT, "timeout": "5s", "pathPrefix": "/check",
        "includeRequestHeadersInCheck": ["x-user", "x-note"], "headersToUpstreamOnAllow": ["x-team"],
    });
    for (name, value) in more {
        http[*name] = value.clone();
    }
    json!([{ "name": "authz", "envoyExtAuthzHttp": http }])
}

fn given(ground: &Ground, policies: &str, providers: Value) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(policies)?;
    mesh.b.settings.insert("extensionProviders".to_owned(), providers);
    Ok(mesh)
}

/// Status and body.
fn get(place: &Place, url: &str, headers: &[&str]) -> anyhow::Result<(u16, String)> {
    let mut argv = vec!["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", url];
    for header in headers {
        argv.extend(["-H", header]);
    }
    let said = place.run(&argv)?.succeeded()?;
    let (body, status) = said.rsplit_once('\n').context("curl says no status")?;
    Ok((status.trim().parse()?, body.to_owned()))
}

fn must_get(place: &Place, url: &str, headers: &[&str], wanted: (u16, &str)) -> anyhow::Result<()> {
    let got = get(place, url, headers)?;
    ensure!((got.0, got.1.as_str()) == wanted, "{headers:?} at {url}: {got:?} instead of {wanted:?}");
    Ok(())
}

fn grpc_authorizer(place: &Place) -> anyhow::Result<Program> {
    let at = place.at(AUTHZ_PORT).to_string();
    let argv = peer::command_line(&["authz", &at, "--only", "/sa/client"]);
    let mut program = place.launch("authz", &argv).start()?;
    program.wait_to_say("listening", PATIENCE)?;
    Ok(program)
}

fn an_http_authorizer_of_the_mesh_is_asked_by_mtls_and_followed(ground: &Ground) -> anyhow::Result<()> {
    let policies = format!("{STRICT}{CUSTOM}{ONLY_TEAMS}");
    let mut mesh = given(ground, &policies, http_provider("authz.shop.svc.cluster.local", &[]))?;
    mesh.service("authz", "10.96.0.53", AUTHZ_PORT, 9090, "other");
    mesh.start()?;
    let _server = programs::nginx_with(&mesh.server, PORT, SERVER)?;
    let _authorizer = programs::nginx_with(&mesh.other, 9090, KNOWS_ALICE)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    let note = format!("X-Note: {MARKER}");
    mesh.watched("authorizer", || {
        let client = &mesh.client;
        must_get(client, &url("/a?b=c"), &[&note], (401, "who are you at /check/a?b=c"))?;
        let alice = ["X-User: alice", "X-Secret: s", "X-Team: red", note.as_str()];
        must_get(client, &url("/a"), &alice, (200, "team=blue secret="))?;
        // What the client says of its team counts neither for the authorizer nor for a rule.
        must_get(client, &url("/a"), &["X-User: bob", "X-Team: blue"], (403, "RBAC: access denied"))?;
        must_get(client, &url("/a"), &["X-User: broken"], (403, ""))?;
        must_get(client, &url("/free"), &[], (200, "team= secret="))
    })?;
    // The connection is still open: both keep it for the next question.
    let connections = mesh.a.ctl_json(&["connections"])?.to_string();
    ensure!(
        connections.contains("spiffe://cluster.local/ns/shop/sa/server"),
        "not asked with the server's identity: {connections}"
    );
    let line =
        mesh.b.wait_access_log("a denial", |line| line["event"] == "request" && line["status"] == 401)?;
    ensure!(line["rule"] == "shop/ask rule[0]: authz denies" && line["verdict"] == "deny", "{line}");
    for (result, count) in [("allowed", 2), ("denied", 1), ("error", 1), ("disabled", 1)] {
        let label = format!("result=\"{result}\"");
        let counted = mesh.b.metric("meshd_ext_authz_checks_total", &["provider=\"authz\"", &label])?;
        ensure!(counted == count, "{counted} {result}");
    }
    Ok(())
}

fn a_grpc_authorizer_decides_requests_and_connections(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground, &format!("{STRICT}{CUSTOM}"), json!([]))?;
    let service = mesh.outsider.at(AUTHZ_PORT).ip().to_string();
    let grpc = json!({ "service": service, "port": AUTHZ_PORT, "timeout": "5s" });
    mesh.b.settings["extensionProviders"] = json!([{ "name": "authz", "envoyExtAuthzGrpc": grpc }]);
    mesh.start()?;
    let authorizer = grpc_authorizer(&mesh.outsider)?;
    let _server = programs::nginx_with(&mesh.server, PORT, SERVER)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    let client = "spiffe://cluster.local/ns/shop/sa/client";
    let told = format!("team={client} secret=");
    must_get(&mesh.client, &url("/open"), &["X-Team: spoofed"], (200, &told))?;
    must_get(&mesh.client, &url("/closed"), &[], (418, "not for you"))?;
    let head = mesh.client.run(&["curl", "-sS", "-i", &url("/open")])?.succeeded()?;
    ensure!(head.to_lowercase().contains("x-checked: yes"), "{head}");

    // Not HTTP: the connection is asked about, once.
    let echo = serve(&mesh.server, 7000, &["--echo"])?;
    let text = "\u{1}not http at all";
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", text, "--shutdown"])?;
    ensure!(seen["text"] == text && seen["ended"] == "eof", "{seen}");
    let denied = probe(&mesh.other, mesh.server.at(7000), &["--send", text, "--shutdown"])?;
    ensure!(is_unserved(&denied), "{denied}");
    ensure!(echo.stdout().matches("\"received\":16").count() == 1, "{}", echo.stdout());
    let line = mesh.b.wait_access_log("a denied connection", |line| {
        line["rule"] == "shop/ask rule[0]: authz denies" && line["event"].is_null()
    })?;
    ensure!(
        line["verdict"] == "deny" && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/other",
        "{line}"
    );

    let said = json_lines(&authorizer.stdout());
    ensure!(
        said.iter().filter(|event| event["event"] == "accepted").count() == 1,
        "more than one connection: {said:?}"
    );
    let asked: Vec<_> = said.iter().filter(|event| event["event"] == "asked").collect();
    ensure!(asked.len() == 5, "{asked:?}");
    ensure!(asked[0]["source"] == client && asked[0]["path"] == "/open", "{}", asked[0]);
    ensure!(asked[0]["destination"] == "spiffe://cluster.local/ns/shop/sa/server", "{}", asked[0]);
    ensure!(asked[3]["path"].is_null(), "{}", asked[3]);

    // A live connection is not asked about again when policies change, and stays.
    let stays = ["--send", text, "--wait-ms", "3000"];
    let mut living = start_probe(&mesh.client, mesh.server.at(7000), &stays)?;
    wait_until(PATIENCE, "the question about the connection", || {
        Ok(authorizer.stdout().matches("\"event\":\"asked\"").count() == 6)
    })?;
    mesh.policies(&format!("{STRICT}{CUSTOM}{}", CUSTOM.replace("name: ask", "name: ask-too")))?;
    living.wait_to_say("ended", PATIENCE)?;
    ensure!(living.stdout().contains("\"ended\":\"open\""), "{}", living.stdout());
    ensure!(authorizer.stdout().matches("\"event\":\"asked\"").count() == 6, "{}", authorizer.stdout());
    Ok(())
}

fn an_authorizer_that_is_gone_denies_unless_it_fails_open(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground, &format!("{STRICT}{CUSTOM}"), json!([]))?;
    let service = mesh.outsider.at(AUTHZ_PORT).ip().to_string();
    let provider = |more: &[(&str, Value)]| http_provider(&service, more);
    mesh.b.settings["extensionProviders"] = provider(&[("statusOnError", json!("503"))]);
    mesh.start()?;
    let mut authorizer = programs::nginx_with(&mesh.outsider, AUTHZ_PORT, KNOWS_ALICE)?;
    let _server = programs::nginx_with(&mesh.server, PORT, SERVER)?;
    let url = format!("http://{}/a", mesh.server.at(PORT));
    let alice = ["X-User: alice"];
    must_get(&mesh.client, &url, &alice, (200, "team=blue secret="))?;
    authorizer.kill_hard()?;
    must_get(&mesh.client, &url, &alice, (503, ""))?;
    let line = mesh.b.wait_access_log("the failure", |line| line["status"] == 503)?;
    let rule = line["rule"].as_str().unwrap_or_default();
    ensure!(
        rule.starts_with("shop/ask rule[0]: authz cannot be reached: ") && line["verdict"] == "deny",
        "{line}"
    );

    mesh.b.settings["extensionProviders"] = provider(&[("failOpen", json!(true))]);
    mesh.configure()?;
    wait_until(PATIENCE, "failOpen to be in force", || Ok(get(&mesh.client, &url, &alice)?.0 == 200))?;
    let line = mesh.b.wait_access_log("the request that passed", |line| {
        line["rule"].as_str().is_some_and(|rule| rule.ends_with("and fails open"))
    })?;
    ensure!(line["verdict"] == "allow" && line["status"] == 200, "{line}");
    ensure!(mesh.b.metric("meshd_ext_authz_checks_total", &["result=\"failed_open\""])? >= 1, "not counted");
    Ok(())
}

fn a_provider_that_is_not_there_denies_and_is_told(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground, &format!("{STRICT}{CUSTOM}"), json!([]))?;
    mesh.start()?;
    let _server = programs::nginx_with(&mesh.server, PORT, SERVER)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    must_get(&mesh.client, &url("/a"), &[], (403, "RBAC: access denied"))?;
    must_get(&mesh.client, &url("/free"), &[], (200, "team= secret="))?;
    let policies = mesh.b.ctl_json(&["policies"])?.to_string();
    ensure!(policies.contains("extensionProviders has no"), "{policies}");
    Ok(())
}
