//! What is more than a request and an answer, where policy looks at requests: gRPC both ways with its trailers, web sockets,
//! tunnels, large bodies however they are framed, and clients that do not wait.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, STRICT, json_lines, last_line, probe};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, Program};
use crate::it::{peer, programs, scripts};

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        grpc_is_decided_by_method_and_keeps_its_trailers,
        a_web_socket_is_a_tunnel_once_its_request_is_allowed,
        a_web_socket_that_is_no_longer_allowed_is_cut,
        large_bodies_arrive_whole_however_they_are_framed,
        trailers_of_http2_arrive,
        clients_that_do_not_wait_are_answered_in_order,
        connect_is_a_tunnel_to_where_policy_allows;
];

const PORT: u16 = 7100;

/// An ALLOW policy of one operation for `server`, from `client` only.
fn allow(operation: &Value) -> String {
    format!(
        "{STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: some, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  rules:
  - from: [ {{ source: {{ principals: [ cluster.local/ns/shop/sa/client ] }} }} ]
    to: [ {{ operation: {operation} }} ]
"
    )
}

/// A peer that serves `verb` in `place`.
fn served(place: &Place, verb: &str) -> anyhow::Result<Program> {
    let mut server = place.launch(verb, &peer::command_line(&[verb, &format!("[::]:{PORT}")])).start()?;
    server.wait_to_say("listening", PATIENCE)?;
    Ok(server)
}

/// A key that nobody has.
const NOBODYS_KEY: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn grpc_is_decided_by_method_and_keeps_its_trailers(ground: &Ground) -> anyhow::Result<()> {
    let tokens = format!(
        "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  jwtRules: [ {{ issuer: issuer.example, jwks: '{NOBODYS_KEY}' }} ]
"
    );
    let methods = ["Once", "Many", "Talk"].map(|name| format!("/shop.Words/{name}"));
    let operation = json!({ "methods": ["POST"], "paths": methods });
    let mesh = Mesh::with_policies(ground, &format!("{}{tokens}", allow(&operation)))?;
    let server = served(&mesh.server, "grpc-serve")?;
    let (client, other) = (&mesh.client, &mesh.other);
    let denied = json!({ "code": 7, "message": "RBAC: access denied" });
    let cases: [(&Place, &str, &[&str], Value); 9] = [
        (client, "Once", &["--kib", "900"], json!({ "code": 0, "bytes": 900 << 10 })),
        (
            client,
            "Many",
            &["--count", "60", "--kib", "64"],
            json!({ "code": 0, "answers": 60, "bytes": 60 << 16 }),
        ),
        (
            client,
            "Talk",
            &["--count", "99", "--kib", "64"],
            json!({ "code": 0, "answers": 99, "bytes": 99 << 16 }),
        ),
        (
            client,
            "Once",
            &["--text", "fail"],
            json!({ "code": 9, "message": "as asked", "trailer": "in a trailer" }),
        ),
        (
            client,
            "Many",
            &["--text", "fail", "--count", "3"],
            json!({ "code": 9, "answers": 3, "trailer": "in a trailer" }),
        ),
        (client, "Other", &[], denied.clone()),
        (other, "Once", &[], denied.clone()),
        (other, "Talk", &["--count", "9"], denied),
        (client, "Once", &["--token", "a.b.c"], json!({ "code": 16 })),
    ];
    for (place, method, options, wanted) in cases {
        let to = mesh.server.at(PORT).to_string();
        let args = [&["grpc-call", &to, "--method", method], options].concat();
        let seen = last_line(&place.launch("grpc-call", &peer::command_line(&args)).finish(PATIENCE * 2)?)?;
        for (name, value) in wanted.as_object().into_iter().flatten() {
            ensure!(seen[name] == *value, "{} {method} {options:?}: {seen}, not {wanted}", place.name);
        }
    }
    let called = json_lines(&server.stdout()).iter().filter(|line| line["event"] == "called").count();
    ensure!(called == 5, "{called} calls reached the server: {}", server.stdout());
    Ok(())
}

fn talk(place: &Place, mesh: &Mesh, path: &str) -> anyhow::Result<Vec<Value>> {
    let args = ["ws-talk", &mesh.server.at(PORT).to_string(), "--path", path];
    let said = place.launch("ws-talk", &peer::command_line(&args)).finish(PATIENCE * 2)?.succeeded()?;
    Ok(json_lines(&said))
}

fn a_web_socket_is_a_tunnel_once_its_request_is_allowed(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &allow(&json!({ "paths": ["/chat"] })))?;
    let server = served(&mesh.server, "ws-serve")?;
    let told = talk(&mesh.client, &mesh, "/chat?room=1")?;
    ensure!(told[0]["status"] == 101 && told[1]["event"] == "talked", "{told:?}");
    for (place, path) in
        [(&mesh.client, "/secret"), (&mesh.client, "/chat/../secret"), (&mesh.other, "/chat")]
    {
        let told = talk(place, &mesh, path)?;
        ensure!(told[0]["event"] == "refused" && told[0]["status"] == 403, "{path}: {told:?}");
        ensure!(told[0]["body"] == "RBAC: access denied", "{path}: {told:?}");
    }
    let opened = json_lines(&server.stdout()).iter().filter(|line| line["event"] == "opened").count();
    ensure!(opened == 1, "{opened} sockets were opened: {}", server.stdout());
    let line = mesh.b.wait_access_log("the socket's line", |line| line["event"] == "request")?;
    ensure!(line["path"] == "/chat" && line["status"] == 101, "{line}");
    Ok(())
}

fn a_web_socket_that_is_no_longer_allowed_is_cut(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &allow(&json!({ "paths": ["/chat"] })))?;
    let _server = served(&mesh.server, "ws-serve")?;
    let args = ["ws-talk", &mesh.server.at(PORT).to_string(), "--path", "/chat", "--stay"];
    let mut staying = mesh.client.launch("ws-talk", &peer::command_line(&args)).start()?;
    staying.wait_to_say("talked", PATIENCE)?;
    // One that leaves the socket allowed, by another rule, cuts nothing.
    mesh.policies(&allow(&json!({ "paths": ["/ch*"], "methods": ["GET"] })))?;
    let told = mesh.b.ctl_json(&["reload"])?;
    ensure!(told["connections_closed"] == 0 && staying.is_running(), "{told}: {}", staying.stdout());
    mesh.policies(&allow(&json!({ "paths": ["/elsewhere"] })))?;
    staying.wait_to_say("ended", PATIENCE)?;
    let line = mesh.b.wait_access_log("why it was cut", |line| {
        line["event"] != "request"
            && line["error"].as_str().is_some_and(|error| error.contains("no ALLOW policy matched"))
    })?;
    ensure!(line["direction"] == "inbound", "{line}");
    Ok(())
}

fn bodies(mesh: &Mesh) -> anyhow::Result<Program> {
    let mut server = scripts::node(&mesh.server, "bodies.js", &[&PORT.to_string()]).start()?;
    server.wait_to_say("listening", PATIENCE)?;
    Ok(server)
}

fn sha256(place: &Place, file: &str) -> anyhow::Result<String> {
    let said = place.run(&["sha256sum", file])?.succeeded()?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}

fn large_bodies_arrive_whole_however_they_are_framed(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(
        ground,
        &allow(&json!({ "methods": ["GET", "PUT"], "notPaths": ["/private*"] })),
    )?;
    let _server = bodies(&mesh)?;
    let bytes: u64 = ground.scale().of(64 << 20, 1 << 20);
    let client = &mesh.client;
    let file = client.dir().join("upload").display().to_string();
    client.run(&["sh", "-c", &format!("head -c {bytes} /dev/urandom >{file}")])?.succeeded()?;
    let digest = sha256(client, &file)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    // By length, in chunks, and where the client waits to be told to go on.
    for header in ["X-Nothing: special", "Transfer-Encoding: chunked", "Expect: 100-continue"] {
        let argv = ["curl", "-sS", "--max-time", "60", "-H", header, "-T", &file, &url("/")];
        let said: Value = serde_json::from_str(&client.run(&argv)?.succeeded()?).context(header)?;
        ensure!(said["bytes"] == bytes && said["sha256"] == *digest, "{header}: {said}");
    }
    let argv = ["curl", "-sS", "--max-time", "60", "-H", "Expect: 100-continue", "-T", &file];
    let private = url("/private");
    let asked = [&argv[..], &["-w", "\n%{http_code} %{size_upload}", &private]].concat();
    let said = client.run(&asked)?.succeeded()?;
    ensure!(said == "RBAC: access denied\n403 0", "a denied client was told to go on: {said}");
    let mut digests = Vec::new();
    for how in ["length", "chunked"] {
        let to = client.dir().join(how).display().to_string();
        let url = url(&format!("/{how}/{bytes}"));
        let argv = ["curl", "-sS", "--max-time", "60", "-o", &to, "-w", "%{size_download}", &url];
        let said = client.run(&argv)?.succeeded()?;
        ensure!(said == bytes.to_string(), "{how}: {said} bytes");
        digests.push(sha256(client, &to)?);
    }
    let plain =
        mesh.server.run(&["curl", "-sS", "-o", &file, &format!("http://127.0.0.1:{PORT}/length/{bytes}")])?;
    plain.succeeded()?;
    let wanted = sha256(&mesh.server, &file)?;
    ensure!(digests.iter().all(|digest| *digest == wanted), "{digests:?}, not {wanted}");
    Ok(())
}

fn trailers_of_http2_arrive(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &allow(&json!({ "methods": ["POST"] })))?;
    let _server = bodies(&mesh)?;
    let file = mesh.client.dir().join("body").display().to_string();
    std::fs::write(&file, "0123456789".repeat(20_000))?;
    let url = format!("http://{}/", mesh.server.at(PORT + 1));
    let argv = ["nghttp", "-v", "--trailer", "x-check: right", "-d", &file, &url];
    let said = mesh.client.run(&argv)?.succeeded()?;
    let digest = sha256(&mesh.client, &file)?;
    let answer =
        said.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()).context(said.clone())?;
    ensure!(answer["sha256"] == *digest && answer["trailers"]["x-check"] == "right", "{answer}");
    ensure!(said.contains(&format!("x-sum: {digest}")), "no trailer came back: {said}");
    Ok(())
}

fn clients_that_do_not_wait_are_answered_in_order(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &allow(&json!({ "paths": ["/public*"] })))?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let last = "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let sent = [get("/public"), get("/private"), get("/public/1"), get("/private"), last.to_owned()].concat();
    let seen = probe(&mesh.client, mesh.server.at(PORT), &["--send", &sent])?;
    let text = seen["text"].as_str().unwrap_or_default();
    let statuses: Vec<&str> = text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)).collect();
    ensure!(statuses == ["200", "403", "200", "403", "200"] && seen["ended"] == "eof", "{seen}");
    // An offer of h2c is not taken: the requests after it would be hidden.
    let url = format!("http://{}/public", mesh.server.at(PORT));
    let argv = ["curl", "-sS", "--http2", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", &url];
    let said = mesh.client.run(&argv)?.succeeded()?;
    ensure!(said == "200 1.1", "{said}");
    Ok(())
}

fn connect_is_a_tunnel_to_where_policy_allows(ground: &Ground) -> anyhow::Result<()> {
    let operation = json!({ "methods": ["CONNECT"], "hosts": ["good.example:443"] });
    let mesh = Mesh::with_policies(ground, &allow(&operation))?;
    let _server = bodies(&mesh)?;
    for (host, wanted) in
        [("good.example:443", "HTTP/1.1 200 OK"), ("bad.example:443", "HTTP/1.1 403 Forbidden")]
    {
        let sent = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n{MARKER}");
        let seen = probe(&mesh.client, mesh.server.at(PORT), &["--send", &sent, "--shutdown"])?;
        let text = seen["text"].as_str().unwrap_or_default();
        ensure!(text.starts_with(wanted), "{host}: {seen}");
        let echoed = format!("to {host}: {MARKER}");
        ensure!(text.ends_with(&echoed) == wanted.contains("200"), "{host}: {seen}");
    }
    Ok(())
}
