//! What a rule's `tls` block means: one of four modes, each with what counts in it. Paths are names here; no file is read.
//!
//! Source: istio.io/api `ClientTLSSettings`; istio/istio `pilot/pkg/networking/core/cluster_tls.go`.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::api::{ApiTlsMode, ClientTlsSettings};

/// How connections to a host are secured at the client's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientTls {
    /// Plaintext.
    Disable,
    /// mTLS of the mesh.
    IstioMutual {
        /// Identities, one of which the server must prove; none: any that may serve the destination.
        names: Option<BTreeSet<String>>,
    },
    /// TLS to the server itself.
    Originate(Arc<Origination>),
}

/// TLS to a server itself, authenticated by what the rule names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origination {
    /// MUTUAL: certificate chain and key that the client proves itself with.
    pub client: Option<ClientFiles>,
    /// Authorities that the server's certificate must chain to; none: the system's.
    pub authorities: Option<PathBuf>,
    /// Revocation lists of these authorities.
    pub revocations: Option<PathBuf>,
    /// Server name to send; none: the host.
    pub sni: Option<String>,
    /// The certificate must be for one of these; empty: for `sni`, else the host.
    pub names: Vec<String>,
    /// `insecureSkipVerify`: the server may be anybody.
    pub believes_anybody: bool,
    /// `credentialName`: the name of a Kubernetes secret.
    pub credential: Option<String>,
    /// MUTUAL, not SIMPLE.
    pub mutual: bool,
}

/// PEM files of a client's certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientFiles {
    /// Leaf first.
    pub certificate: PathBuf,
    /// Of the leaf.
    pub key: PathBuf,
}

impl Origination {
    /// The files that it needs.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let client = self.client.iter().flat_map(|files| [&files.certificate, &files.key]);
        client.chain(&self.authorities).chain(&self.revocations)
    }
}

impl ClientTls {
    /// As Istio writes the mode.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::IstioMutual { .. } => "ISTIO_MUTUAL",
            Self::Originate(origination) if origination.mutual => "MUTUAL",
            Self::Originate(_) => "SIMPLE",
        }
    }

    /// Of settings that passed validation.
    pub(super) fn new(settings: &ClientTlsSettings) -> Self {
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let file = |value: &Option<String>| text(value).map(PathBuf::from);
        let names = settings.subject_alt_names.clone().unwrap_or_default();
        let mutual = match settings.mode.unwrap_or_default() {
            ApiTlsMode::Disable => return Self::Disable,
            ApiTlsMode::IstioMutual => {
                let names = (!names.is_empty()).then(|| names.into_iter().collect());
                return Self::IstioMutual { names };
            }
            ApiTlsMode::Simple => false,
            ApiTlsMode::Mutual => true,
        };
        let client = file(&settings.client_certificate).zip(file(&settings.private_key)).filter(|_| mutual);
        Self::Originate(Arc::new(Origination {
            client: client.map(|(certificate, key)| ClientFiles { certificate, key }),
            authorities: file(&settings.ca_certificates),
            revocations: file(&settings.ca_crl),
            sni: text(&settings.sni),
            names,
            believes_anybody: settings.insecure_skip_verify == Some(true),
            credential: text(&settings.credential_name),
            mutual,
        }))
    }
}
