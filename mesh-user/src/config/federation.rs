//! The node's file about federation: whose trust bundles are fetched from where, and where this mesh's own is served.
//! Pure; what fetches and serves is `ca::federation`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use hyper::Uri;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::identity::{SpiffeId, TrustDomain};

/// A longer name does not fit into a file's.
const MAX_TRUST_DOMAIN_BYTES: usize = 240;
/// Trust domains that are followed: each is a task and some roots that each handshake of theirs is held against.
const MAX_TRUST_DOMAINS: usize = 256;
/// What the server of this mesh's bundle is called where the file does not say.
const ENDPOINT_PATH: &str = "/spiffe-bundle-endpoint";

/// Trust domains other than this mesh's own, by bundle endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FederationConfig {
    /// Whose bundles are fetched.
    pub trust_domains: Vec<FederatedTrustDomain>,
    /// CIDR blocks that bundles may be fetched from although they are loopback, link-local, the node's own addresses, or a cloud's metadata service.
    #[schemars(with = "Vec<String>")]
    pub allow_addresses: Vec<IpNet>,
    /// PEM bundles of authorities that `https_web` endpoints are believed by, beside the system's.
    pub extra_roots: Vec<PathBuf>,
    /// Address and port, in the node's own network namespace, where this mesh's own bundle is served; none: not served.
    pub listen: Option<SocketAddr>,
    /// How whoever fetches it knows the server.
    pub profile: EndpointProfile,
    /// For `https_spiffe`: what the server proves to be. None: `/spiffe-bundle-endpoint` in the trust domain.
    pub spiffe_id: Option<String>,
    /// For `https_web`: the server's certificate chain, PEM, leaf first; read again when it changes.
    pub certificate_file: Option<PathBuf>,
    /// For `https_web`: the certificate's key, PEM, readable by meshd's user alone; read again when it changes.
    pub key_file: Option<PathBuf>,
    /// How soon others are told to look again.
    pub refresh_hint_seconds: u64,
}

impl Default for FederationConfig {
    fn default() -> Self {
        Self {
            trust_domains: Vec::new(),
            allow_addresses: Vec::new(),
            extra_roots: Vec::new(),
            listen: None,
            profile: EndpointProfile::HttpsSpiffe,
            spiffe_id: None,
            certificate_file: None,
            key_file: None,
            refresh_hint_seconds: 300,
        }
    }
}

/// A trust domain whose bundle is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FederatedTrustDomain {
    /// Whose bundle it is. Never taken from the bundle, which does not say.
    pub trust_domain: TrustDomain,
    /// The endpoint's URL: `https://`, without a user.
    pub bundle_endpoint: String,
    /// How the endpoint is known.
    pub profile: EndpointProfile,
    /// For `https_spiffe`: what the endpoint must prove to be.
    #[serde(default)]
    pub endpoint_spiffe_id: Option<String>,
    /// The bundle to begin with (PEM or JSON), which `https_spiffe` needs. When its contents change it counts again, until the next fetch.
    #[serde(default)]
    pub bundle_file: Option<PathBuf>,
}

/// How a bundle endpoint is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointProfile {
    /// By a certificate of the web's authorities for the host in the URL.
    HttpsWeb,
    /// By an SVID.
    HttpsSpiffe,
}

impl FederationConfig {
    /// How soon others are told to look again.
    pub fn refresh_hint(&self) -> Duration {
        Duration::from_secs(self.refresh_hint_seconds)
    }

    /// What the server of this mesh's bundle proves to be; none: `spiffeId` is none that can be.
    pub fn endpoint_id(&self, own: &TrustDomain) -> Option<SpiffeId> {
        match &self.spiffe_id {
            Some(id) => id.parse().ok(),
            None => format!("spiffe://{own}{ENDPOINT_PATH}").parse().ok(),
        }
    }
}

/// The endpoint's URL as it must be (SPIFFE Federation sections 5.2.1.1 and 5.2.2.1).
///
/// # Errors
/// In words, what is wrong with it.
pub fn endpoint_url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|_| format!("{text:?} is no URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(format!("{text:?} does not start with https://"));
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let Some(authority) = authority else { return Err(format!("{text:?} names no host")) };
    if authority.as_str().contains('@') {
        return Err(format!("{text:?}: a bundle endpoint's URL has no user in it"));
    }
    let has_port = authority.as_str().len() != authority.host().len();
    if has_port && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(format!("{text:?} has no port that exists (1 to 65535)"));
    }
    Ok(uri)
}

/// What is wrong with it, and where.
pub(super) fn problems(config: &Config) -> Vec<(String, String)> {
    let federation = &config.federation;
    let mut wrong = Vec::new();
    if federation.trust_domains.len() > MAX_TRUST_DOMAINS {
        wrong.push((
            "federation.trustDomains".to_owned(),
            format!("names more than {MAX_TRUST_DOMAINS} trust domains"),
        ));
    }
    for (i, entry) in federation.trust_domains.iter().enumerate() {
        let mut say = |field: &str, what: String| {
            wrong.push((format!("federation.trustDomains[{i}].{field}"), what));
        };
        relationship(config, entry, &mut say);
        if federation.trust_domains[..i].iter().any(|other| other.trust_domain == entry.trust_domain) {
            say("trustDomain", format!("{} is there twice", entry.trust_domain));
        }
    }
    let mut say = |field: &str, what: String| wrong.push((format!("federation.{field}"), what));
    if !(1..=86_400).contains(&federation.refresh_hint_seconds) {
        say("refreshHintSeconds", "must be from 1 to 86400".to_owned());
    }
    if federation.listen.is_some() {
        endpoint(config, &mut say);
    }
    wrong
}

fn relationship(config: &Config, entry: &FederatedTrustDomain, say: &mut dyn FnMut(&str, String)) {
    let domain = &entry.trust_domain;
    if *domain == config.trust_domain {
        say("trustDomain", "is this mesh's own, whose roots are its CA's".to_owned());
    }
    if domain.as_str().len() > MAX_TRUST_DOMAIN_BYTES {
        say(
            "trustDomain",
            format!("is longer than {MAX_TRUST_DOMAIN_BYTES} bytes, so no file can be named after it"),
        );
    }
    if config.trust_bundles.iter().any(|bundle| bundle.trust_domain == *domain) {
        let what =
            "is in trustBundles too, whose roots no endpoint could withdraw: name its file in bundleFile";
        say("trustDomain", what.to_owned());
    }
    if let Err(what) = endpoint_url(&entry.bundle_endpoint) {
        say("bundleEndpoint", what);
    }
    match (entry.profile, &entry.endpoint_spiffe_id) {
        (EndpointProfile::HttpsWeb, None) => {}
        (EndpointProfile::HttpsWeb, Some(_)) => {
            say("endpointSpiffeId", "is for the profile https_spiffe only".to_owned());
        }
        (EndpointProfile::HttpsSpiffe, None) => {
            say("endpointSpiffeId", "say what an https_spiffe endpoint must prove to be".to_owned());
        }
        (EndpointProfile::HttpsSpiffe, Some(id)) => match id.parse::<SpiffeId>() {
            Err(error) => say("endpointSpiffeId", error.to_string()),
            Ok(id) if id.path().is_empty() => {
                say("endpointSpiffeId", format!("{id} is a trust domain; a server's SPIFFE ID has a path"));
            }
            Ok(id) => known_by(config, entry, &id, say),
        },
    }
}

/// An endpoint that is known by its SVID needs a bundle that is there before the first fetch.
fn known_by(config: &Config, entry: &FederatedTrustDomain, id: &SpiffeId, say: &mut dyn FnMut(&str, String)) {
    if *id.trust_domain() == entry.trust_domain {
        if entry.bundle_file.is_none() {
            let what = "an https_spiffe endpoint of its own trust domain needs a bundle to begin with";
            say("bundleFile", what.to_owned());
        }
        return;
    }
    let others = &config.federation.trust_domains;
    if !others.iter().any(|other| other.trust_domain == *id.trust_domain()) {
        let what =
            format!("{} is not among federation.trustDomains, so {id} cannot be verified", id.trust_domain());
        say("endpointSpiffeId", what);
    }
}

fn endpoint(config: &Config, say: &mut dyn FnMut(&str, String)) {
    let federation = &config.federation;
    match federation.profile {
        EndpointProfile::HttpsWeb => {
            for (field, file) in
                [("certificateFile", &federation.certificate_file), ("keyFile", &federation.key_file)]
            {
                if file.is_none() {
                    say(
                        field,
                        "an https_web endpoint needs a certificate of the web's and its key".to_owned(),
                    );
                }
            }
        }
        EndpointProfile::HttpsSpiffe => {
            if federation.certificate_file.is_some() || federation.key_file.is_some() {
                say(
                    "certificateFile",
                    "is for the profile https_web only; https_spiffe shows an SVID".to_owned(),
                );
            }
            match federation.endpoint_id(&config.trust_domain) {
                Some(id) if *id.trust_domain() == config.trust_domain && !id.path().is_empty() => {}
                _ => say("spiffeId", format!("must be spiffe://{}/ and a path", config.trust_domain)),
            }
        }
    }
}
