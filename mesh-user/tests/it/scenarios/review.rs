//! Policies before they are enforced, on real programs: what `meshctl policy` says beforehand is what curl gets, and what
//! was seen is decided anew by documents that are only proposed.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::requests::{Issuer, curl};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, PERMISSIVE, STRICT};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, wait_until};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 60:
        explain_says_of_a_request_what_curl_gets,
        paths_are_normalized_as_the_nodes_file_says,
        impact_and_lint_know_what_was_seen,
        keys_that_cannot_be_had_are_told;
];

const PORT: u16 = 8080;

fn status(place: &Place, options: &[&str], url: String) -> anyhow::Result<u16> {
    Ok(curl(place, options, &[url])?.first().context("curl says nothing")?.0)
}

fn explain_says_of_a_request_what_curl_gets(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let issuer = Issuer::new(&mesh.server)?;
    let documents = format!(
        "{STRICT}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  jwtRules: [ {{ issuer: issuer.example, jwks: '{}' }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: rules, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  rules:
  - from: [ {{ source: {{ principals: [ cluster.local/ns/shop/sa/client ] }} }} ]
    to: [ {{ operation: {{ methods: [ GET ], paths: [ /public ] }} }} ]
  - from: [ {{ source: {{ requestPrincipals: [ issuer.example/alice ] }} }} ]
  - when: [ {{ key: 'request.headers[x-team]', values: [ blue ] }} ]
",
        issuer.jwks
    );
    mesh.policies(&documents)?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let token = |sub: &str, exp: u64| {
        issuer.token(&mesh.server, &json!({ "iss": "issuer.example", "sub": sub, "exp": exp }))
    };
    let alice = token("alice", 4_102_444_800)?;
    let old = token("alice", 1_000_000_000)?;
    let bob = token("bob", 4_102_444_800)?;
    for (who, place) in [("shop/client", &mesh.client), ("shop/other", &mesh.other)] {
        for (path, method, header, token) in [
            ("/public", "GET", "", ""),
            ("/x/../public", "GET", "", ""),
            ("/public", "POST", "", ""),
            ("/private", "GET", "x-team: blue", ""),
            ("/private", "GET", "x-team: red", ""),
            ("/private", "GET", "", &*alice),
            ("/private", "GET", "", &*bob),
            ("/public", "GET", "", &*old),
        ] {
            let bearer = format!("Authorization: Bearer {token}");
            let mut options = vec!["-X", method];
            let file = ground.dir().join("token");
            std::fs::write(&file, format!("{token}\n"))?;
            let file = file.to_string_lossy().into_owned();
            let to = format!("shop/server:{PORT}");
            let mut asked =
                vec!["policy", "explain", "--from", who, "--to", &to, "--method", method, "--path", path];
            if !header.is_empty() {
                options.extend(["-H", header]);
                asked.extend(["--header", header]);
            }
            if !token.is_empty() {
                options.extend(["-H", &bearer]);
                asked.extend(["--token", &file]);
            }
            let got = status(place, &options, format!("http://{}{path}", mesh.server.at(PORT)))?;
            let said = mesh.b.ctl_json(&asked)?;
            let wanted = said["request"]["status"].as_u64().unwrap_or(200);
            ensure!(u64::from(got) == wanted, "{who} {method} {path} {header}: curl got {got}: {said}");
            ensure!((said["allowed"] == true) == (got == 200), "{said}");
            let shown = mesh.b.ctl(&asked)?;
            for text in [&said.to_string(), &shown.stdout, &shown.stderr] {
                ensure!(token.is_empty() || !text.contains(token), "a token is shown: {text}");
            }
        }
    }
    let log = mesh.b.log();
    ensure!(![&alice, &old, &bob].iter().any(|token| log.contains(token.as_str())), "a token is in the log");
    Ok(())
}

fn paths_are_normalized_as_the_nodes_file_says(ground: &Ground) -> anyhow::Result<()> {
    let deny = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: admin, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  action: DENY
  rules: [ { to: [ { operation: { ports: [ '8080' ], paths: [ '/admin*' ] } } ] } ]
";
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(&format!("{STRICT}{deny}"))?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    for (mode, answers) in [
        ("NONE", [200, 200, 200]),
        ("BASE", [403, 200, 200]),
        ("MERGE_SLASHES", [403, 403, 200]),
        ("DECODE_AND_MERGE_SLASHES", [403, 403, 403]),
    ] {
        mesh.b.settings.insert("pathNormalization".into(), json!({ "normalization": mode }));
        mesh.configure()?;
        mesh.b.ctl(&["reload"])?.succeeded()?;
        for (path, wanted) in ["/x/../admin", "//admin", "/x%2F..%2Fadmin"].iter().zip(answers) {
            let got = status(&mesh.client, &[], format!("http://{}{path}", mesh.server.at(PORT)))?;
            ensure!(got == wanted, "{mode} {path}: {got}");
        }
    }
    Ok(())
}

fn propose(ground: &Ground, yaml: &str) -> anyhow::Result<String> {
    let file = ground.dir().join("proposed.yaml");
    std::fs::write(&file, yaml)?;
    Ok(file.to_string_lossy().into_owned())
}

fn changes<'a>(report: &'a Value, of: &str) -> Vec<&'a Value> {
    report["changes"].as_array().into_iter().flatten().filter(|change| change["change"] == of).collect()
}

fn impact_and_lint_know_what_was_seen(ground: &Ground) -> anyhow::Result<()> {
    let read = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-delete, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  action: DENY
  rules: [ { to: [ { operation: { ports: [ '8080' ], methods: [ DELETE ] } } ] } ]
";
    let mesh = Mesh::with_policies(ground, &format!("{PERMISSIVE}{read}"))?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let url = |path: &str| format!("http://{}{path}", mesh.server.at(PORT));
    for path in ["/public", "/public", "/private?password=hunter2hunter2"] {
        ensure!(status(&mesh.client, &["-H", "x-secret: hunter2hunter2"], url(path))? == 200, "{path}");
    }
    ensure!(status(&mesh.outsider, &[], url("/public"))? == 200, "plaintext is permitted");
    let impact = |yaml: &str| mesh.b.ctl_json(&["policy", "impact", &propose(ground, yaml)?]);

    let nothing = impact(read)?;
    ensure!(
        nothing["changes"] == json!([]) && nothing["replayed"] == 3 && nothing["count"] == 4,
        "{nothing}"
    );
    ensure!(!nothing.to_string().contains("hunter2"), "{nothing}");

    let only_public = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: public, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  rules: [ { to: [ { operation: { ports: [ '8080' ], paths: [ /public ] } } ] } ]
";
    let report = impact(only_public)?;
    let denied = changes(&report, "denied");
    let [change] = denied.as_slice() else { anyhow::bail!("{report}") };
    ensure!(change["path"] == "/private" && change["count"] == 1, "{report}");
    ensure!(change["source_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/client", "{report}");
    ensure!(change["after"] == "denied: no ALLOW policy matched", "{report}");
    ensure!(!report.to_string().contains("hunter2"), "{report}");

    let report = impact(STRICT)?;
    let denied = changes(&report, "denied");
    let [change] = denied.as_slice() else { anyhow::bail!("{report}") };
    ensure!(change["source_spiffe_id"].is_null() && change["path"] == "/public", "{report}");
    let outsider = mesh.outsider.at(0).ip().to_string();
    let found = mesh.b.ctl_json(&["policy", "lint", &propose(ground, STRICT)?])?;
    let problem = found[0]["problem"].as_str().unwrap_or_default();
    ensure!(found[0]["check"] == "strict-with-plaintext-clients" && problem.contains(&outsider), "{found}");

    // What it said is what happens.
    mesh.policies(&format!("{STRICT}{read}---{only_public}"))?;
    mesh.b.ctl(&["reload"])?.succeeded()?;
    wait_until(
        PATIENCE,
        "the new rules to count",
        || Ok(status(&mesh.client, &[], url("/private"))? == 403),
    )?;
    ensure!(status(&mesh.client, &[], url("/public"))? == 200, "what was not to change");
    ensure!(curl(&mesh.outsider, &[], &[url("/public")]).is_err(), "plaintext is refused");

    let bites = mesh.b.ctl(&[
        "policy",
        "lint",
        &propose(ground, &read.replace("methods: [ DELETE ]", "paths: [ /admin ]"))?,
    ])?;
    ensure!(bites.stdout.contains("proposed.yaml:9: exact-path-denied"), "{bites:?}");
    let refused = mesh.b.ctl(&["policy", "impact", &propose(ground, "kind: Nothing")?])?;
    ensure!(refused.stderr.contains("proposed.yaml"), "{refused:?}");
    Ok(())
}

fn keys_that_cannot_be_had_are_told(ground: &Ground) -> anyhow::Result<()> {
    let tokens = "
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: { name: tokens, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  jwtRules: [ { issuer: issuer.example, jwksUri: 'http://127.0.0.1:9/keys' } ]
";
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{tokens}"))?;
    wait_until(PATIENCE, "a fetch that fails", || {
        let rows = mesh.b.ctl_json(&["jwks"])?;
        Ok(rows[0]["failures"].as_u64() > Some(0))
    })?;
    let rows = mesh.b.ctl_json(&["jwks"])?;
    let error = rows[0]["last_error"].as_str().unwrap_or_default();
    ensure!(rows[0]["url"] == "http://127.0.0.1:9/keys" && error.contains("jwks.allowAddresses"), "{rows}");
    ensure!(rows[0]["keys"] == 0 && rows[0]["fetched_unix_s"].is_null(), "{rows}");
    let status = mesh.b.ctl_json(&["status"])?;
    ensure!(status["problems"].to_string().contains("no keys from http://127.0.0.1:9/keys"), "{status}");
    ensure!(
        mesh.b.metric("meshd_jwks_failures", &["url=\"http://127.0.0.1:9/keys\""])? > 0,
        "no failure is counted"
    );
    ensure!(mesh.a.ctl_json(&["jwks"])? == json!([]), "node a has no workload with tokens");
    Ok(())
}
