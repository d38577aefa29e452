//! One fetch of a key set, or of the document that says where it is.

use std::{io, time::Duration};

use bytes::Bytes;
use ipnet::IpNet;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::super::web::{Answer, Ask, Web, WebError, web_connector};
use crate::jwt::{JwksSource, KeyLocation, KeySet, KeySetError, MAX_JWKS_BYTES, fetchable, json};

/// Why keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no document at the place.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The rule's `timeout`.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Not an `OpenID` provider's configuration.
    #[error("the discovery document {0}")]
    Discovery(&'static str),
    /// Not a key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    /// A key set of which nothing can be used: taken for a mistake of the provider.
    #[error("none of the {0} keys of the set can be used")]
    NoKeys(usize),
}

/// Fetches key sets.
pub(super) struct Fetcher {
    /// Made at the first fetch over https: a node without token issuers has no need of the system's roots.
    tls: OnceCell<TlsConnector>,
    extra_roots: Vec<CertificateDer<'static>>,
    web: Web,
}

impl Fetcher {
    /// Believes the system's roots and `extra_roots`.
    ///
    /// # Errors
    /// When one of `extra_roots` is no certificate.
    pub(super) fn new(
        allowed: Vec<IpNet>,
        extra_roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let mut checked = RootCertStore::empty();
        extra_roots.iter().try_for_each(|root| checked.add(root.clone()))?;
        let web = Web {
            allowed,
            allowed_setting: "jwks.allowAddresses",
            tls_hint: "a private authority belongs in jwks.extraRoots",
        };
        Ok(Self { tls: OnceCell::new(), extra_roots, web })
    }

    async fn tls(&self) -> io::Result<&TlsConnector> {
        let connector = || async {
            let extra_roots = self.extra_roots.clone();
            let connector = move || web_connector(extra_roots, "key servers");
            tokio::task::spawn_blocking(connector).await.map_err(io::Error::other)?
        };
        self.tls.get_or_try_init(connector).await
    }

    #[cfg(test)]
    pub(super) fn has_read_roots(&self) -> bool {
        self.tls.initialized()
    }

    pub(super) async fn fetch(&self, source: &JwksSource) -> Result<KeySet, FetchError> {
        let url = match &source.location {
            KeyLocation::Jwks(url) => url.to_string(),
            KeyLocation::Discovery(url) => discovered(url, &self.get(url, source.timeout).await?)?,
        };
        let keys = KeySet::parse(&self.get(&url, source.timeout).await?)?;
        if keys.is_empty() { Err(FetchError::NoKeys(keys.skipped())) } else { Ok(keys) }
    }

    async fn get(&self, url: &str, timeout: Duration) -> Result<Bytes, FetchError> {
        let uri = fetchable(url).map_err(WebError::Url)?;
        let asking = async {
            let tls = match uri.scheme_str() {
                Some("https") => Some(self.tls().await.map_err(|e| self.web.distrusted(&uri, e))?),
                _ => None,
            };
            let accept = "application/jwk-set+json, application/json";
            let what = Ask { accept, max_bytes: MAX_JWKS_BYTES, known: None };
            match self.web.get(&uri, tls, what).await? {
                Answer::Document(body, _) => Ok(body),
                Answer::NotModified => Err(WebError::Status(304).into()),
            }
        };
        tokio::time::timeout(timeout, asking).await.unwrap_or(Err(FetchError::TimedOut(timeout)))
    }
}

/// `jwks_uri` of a provider's configuration (`OpenID` Connect Discovery 1.0 section 3).
fn discovered(from: &str, document: &[u8]) -> Result<String, FetchError> {
    let members =
        json::object(document).ok_or(FetchError::Discovery("is not a JSON object with each member once"))?;
    let uri = members.get("jwks_uri").and_then(|uri| uri.as_str());
    let uri = uri.ok_or(FetchError::Discovery("has no jwks_uri"))?;
    // What was asked for in secret is not told in the open.
    if from.starts_with("https://") && !uri.starts_with("https://") {
        return Err(FetchError::Discovery("came by https and names a jwks_uri that is not"));
    }
    Ok(uri.to_owned())
}
