//! Tokens of a real `OpenID` provider (npm's `oidc-provider`): found by discovery and by `jwksUri`, while its keys change and
//! while it is down, and on an address that only the administrator can allow.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, STRICT};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, Program, wait_until};
use crate::it::{programs, scripts};

pub(super) const STORIES: &[Story] = stories![
    OpenIdProvider 240:
        tokens_of_a_provider_are_believed_through_a_change_of_its_keys,
        a_provider_on_the_nodes_own_address_must_be_allowed;
];

const PORT: u16 = 8080;
const PROVIDER_PORT: u16 = 9000;
/// A token of an unknown key has keys fetched, at most every 30 s.
const REFRESHED: Duration = Duration::from_secs(60);
const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];

/// Where set-up has put it: under `target`, beside the build's folder.
pub(crate) fn module() -> Option<PathBuf> {
    let target = crate::it::daemon::bin_dir().parent()?.to_owned();
    let path = target.join("tools/openid/node_modules/oidc-provider/lib/index.js");
    path.is_file().then_some(path)
}

/// A running provider; new keys at each start.
struct Provider {
    place: Place,
    _program: Program,
}

impl Provider {
    fn start(place: &Place, generation: &str) -> anyhow::Result<Self> {
        let module = module().context("no oidc-provider: cargo xtask test installs it")?;
        let (module, address) = (module.to_string_lossy(), place.v4.to_string());
        let port = PROVIDER_PORT.to_string();
        let args = [&*module, &address, &port, generation];
        let mut program = scripts::node(place, "openid.mjs", &args).start()?;
        program.wait_to_say("listening", PATIENCE)?;
        Ok(Self { place: place.clone(), _program: program })
    }

    fn issuer(place: &Place) -> String {
        format!("http://{}:{PROVIDER_PORT}", place.v4)
    }

    /// By `client_credentials`; the client's name says how it is signed.
    fn token(&self, algorithm: &str, scope: &str) -> anyhow::Result<String> {
        let user = format!("{algorithm}:a%20secret%20of%20the%20story%20only");
        let (scope, url) = (format!("scope={scope}"), format!("{}/token", Self::issuer(&self.place)));
        let argv = ["curl", "-sS", "-u", &user, "-d", "grant_type=client_credentials", "-d", &scope, &url];
        let said: Value = serde_json::from_str(&self.place.run(&argv)?.succeeded()?)?;
        Ok(said["access_token"].as_str().with_context(|| said.to_string())?.to_owned())
    }
}

fn policies(issuer: &str, jwks_uri: Option<&str>) -> String {
    let rule = match jwks_uri {
        None => json!({ "issuer": issuer }),
        Some(uri) => json!({ "issuer": issuer, "jwksUri": uri, "audiences": ["shop"] }),
    };
    format!(
        "{STRICT}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  jwtRules: [ {rule} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: readers, namespace: shop }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  rules:
  - from: [ {{ source: {{ requestPrincipals: [ '{issuer}/*' ] }} }} ]
    when:
    - {{ key: 'request.auth.claims[scope]', values: [ read ] }}
    - {{ key: 'request.auth.claims[team][name]', values: [ blue ] }}
    - {{ key: request.auth.audiences, values: [ shop ] }}
"
    )
}

/// What the client gets from nginx with this token.
fn status(mesh: &Mesh, token: Option<&str>) -> anyhow::Result<u16> {
    let header = token.map(|token| format!("Authorization: Bearer {token}"));
    let url = format!("http://{}/", mesh.server.at(PORT));
    let mut argv = vec!["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"];
    argv.extend(header.iter().flat_map(|header| ["-H", header.as_str()]));
    argv.push(&url);
    Ok(mesh.client.run(&argv)?.succeeded()?.trim().parse()?)
}

fn must_get(mesh: &Mesh, what: &str, token: Option<&str>, wanted: u16) -> anyhow::Result<()> {
    let got = status(mesh, token)?;
    ensure!(got == wanted, "{what}: {got} and not {wanted}");
    Ok(())
}

fn wait_for(mesh: &Mesh, what: &str, token: &str) -> anyhow::Result<()> {
    wait_until(REFRESHED, what, || Ok(status(mesh, Some(token))? == 200))
}

/// The same token with one letter of its signature changed.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let other = if signature.starts_with('A') { "B" } else { "A" };
    format!("{signed}.{other}{}", signature.get(1..).unwrap_or_default())
}

fn must_judge_tokens(mesh: &Mesh, provider: &Provider) -> anyhow::Result<()> {
    for algorithm in ALGORITHMS {
        let token = provider.token(algorithm, "read")?;
        wait_for(mesh, &format!("a token by {algorithm} to be believed"), &token)?;
        must_get(mesh, &format!("{algorithm}, forged"), Some(&forged(&token)), 401)?;
        let writer = provider.token(algorithm, "write")?;
        must_get(mesh, &format!("{algorithm}, another scope"), Some(&writer), 403)?;
    }
    must_get(mesh, "no token", None, 403)
}

fn tokens_of_a_provider_are_believed_through_a_change_of_its_keys(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let [place] = mesh.pods.wire.plug(["issuer"])?;
    let issuer = Provider::issuer(&place);
    let provider = Provider::start(&place, "first")?;
    mesh.policies(&policies(&issuer, None))?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    must_judge_tokens(&mesh, &provider).context("keys by discovery")?;
    mesh.policies(&policies(&issuer, Some(&format!("{issuer}/jwks"))))?;
    mesh.b.ctl(&["reload"])?.succeeded()?;
    must_judge_tokens(&mesh, &provider).context("keys by jwksUri")?;

    let old = provider.token("ES256", "read")?;
    drop(provider);
    must_get(&mesh, "a token while the provider is down", Some(&old), 200)?;
    let provider = Provider::start(&place, "second")?;
    must_get(&mesh, "an old token before anybody brings a new one", Some(&old), 200)?;
    let new = provider.token("ES256", "read")?;
    wait_for(&mesh, "a token of the new keys to be believed", &new)?;
    must_get(&mesh, "a token of keys that are no longer published", Some(&old), 401)?;
    let log = mesh.b.log();
    ensure!(!log.contains(&new[..40]) && !log.contains(&old[..40]), "a token is in the log");
    Ok(())
}

fn a_provider_on_the_nodes_own_address_must_be_allowed(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let node = mesh.b.place.clone();
    let provider = Provider::start(&node, "first")?;
    mesh.policies(&policies(&Provider::issuer(&node), None))?;
    mesh.start()?;
    let _nginx = programs::nginx(&mesh.server, PORT, MARKER)?;
    let token = provider.token("RS256", "read")?;
    must_get(&mesh, "keys at an address of the node's own", Some(&token), 401)?;
    wait_until(PATIENCE, "the log to say why", || Ok(mesh.b.log().contains("jwks.allowAddresses")))?;
    mesh.b.stop()?;
    mesh.b.settings.insert("jwks".to_owned(), json!({ "allowAddresses": [format!("{}/32", node.v4)] }));
    mesh.configure()?;
    mesh.b.start()?;
    wait_for(&mesh, "a token to be believed once the address is allowed", &token)
}
