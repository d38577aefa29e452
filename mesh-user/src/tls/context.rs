//! The node's TLS configuration: which protocol versions, suites and names are offered, and one rustls
//! configuration per SVID (and, for clients, per set of expected identities), so that sessions resume.
//!
//! Sessions never cross identities: a client's tickets live in the configuration of one SVID and one
//! expected set, a server's ticket key in the configuration of one SVID. Servers use encrypted tickets, not
//! a session cache: a thousand workloads then cost a key each, and the client's certificate travels inside.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, ServerConfig,
    client::{ClientSessionMemoryCache, Resumption, UnbufferedClientConnection},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, UnbufferedServerConnection},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use rustls_pki_types::ServerName;

use super::{
    HandshakeError,
    rustls_verifiers::{ClientVerifier, ServerVerifier},
    session::Session,
    verify::PeerVerifier,
};
use crate::identity::{SpiffeId, Svid, TrustBundles, TrustDomain};

/// The names offered and accepted in ALPN: ours, then the one an Envoy sidecar with SPIFFE certificates uses.
pub const ALPN_PROTOCOLS: [&[u8]; 2] = [b"meshd/1", b"istio"];
/// One ticket per handshake is enough: the next connection earns the next one.
const TICKETS_PER_HANDSHAKE: usize = 1;
/// Destinations whose tickets one client configuration remembers.
const REMEMBERED_DESTINATIONS: usize = 64;

/// What the node's file says about TLS.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// Our own trust domain.
    pub trust_domain: TrustDomain,
    /// Other names of our own trust domain.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// How far two clocks may differ at the edges of a certificate's validity.
    pub clock_skew: Duration,
    /// At most this many client and this many server configurations are kept.
    pub cached_configs: usize,
}

impl TlsSettings {
    /// The defaults for `trust_domain`.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            clock_skew: Duration::from_secs(60),
            cached_configs: 4096,
        }
    }
}

/// Whose SVID, and which identities the server may prove.
type ClientKey = (SpiffeId, Arc<BTreeSet<SpiffeId>>);

/// Makes the sessions of this node; shared by all connections.
pub struct TlsContext {
    verifier: Arc<PeerVerifier>,
    provider: Arc<CryptoProvider>,
    clients: Mutex<ConfigCache<ClientKey, ClientConfig>>,
    servers: Mutex<ConfigCache<SpiffeId, ServerConfig>>,
}

impl std::fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsContext").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

impl TlsContext {
    /// `bundles` may be swapped at any time: new handshakes and resumptions use the new ones.
    pub fn new(settings: TlsSettings, bundles: Arc<ArcSwap<TrustBundles>>) -> Self {
        Self::with_provider(settings, bundles, provider())
    }

    /// Like [`Self::new`], with fewer cipher suites; for tests and measurements.
    pub fn with_provider(
        settings: TlsSettings,
        bundles: Arc<ArcSwap<TrustBundles>>,
        provider: CryptoProvider,
    ) -> Self {
        let verifier = PeerVerifier::new(
            settings.trust_domain,
            settings.trust_domain_aliases,
            settings.clock_skew,
            bundles,
            provider.signature_verification_algorithms,
        );
        Self {
            verifier: Arc::new(verifier),
            provider: Arc::new(provider),
            clients: Mutex::new(ConfigCache::new(settings.cached_configs)),
            servers: Mutex::new(ConfigCache::new(settings.cached_configs)),
        }
    }

    /// The verifier of this node's peers.
    pub fn verifier(&self) -> &Arc<PeerVerifier> {
        &self.verifier
    }

    /// A client session with `svid` towards `server`, which must prove one of `expected`.
    pub(crate) fn client_session(
        &self,
        svid: &Svid,
        expected: &Arc<BTreeSet<SpiffeId>>,
        server: IpAddr,
    ) -> Result<Session, HandshakeError> {
        let key = (svid.spiffe_id.clone(), Arc::clone(expected));
        let config = lock(&self.clients).get_or_make(key, svid, || self.client_config(svid, expected))?;
        // Only names the tickets' slot: no SNI is sent for an address, and our verifier looks at SPIFFE IDs.
        let name = ServerName::IpAddress(server.into());
        UnbufferedClientConnection::new(config, name).map(Session::client).map_err(local)
    }

    /// A server session with `svid`; the client must prove an identity.
    pub(crate) fn server_session(&self, svid: &Svid) -> Result<Session, HandshakeError> {
        let key = svid.spiffe_id.clone();
        let config = lock(&self.servers).get_or_make(key, svid, || self.server_config(svid))?;
        UnbufferedServerConnection::new(config).map(Session::server).map_err(local)
    }

    fn client_config(
        &self,
        svid: &Svid,
        expected: &Arc<BTreeSet<SpiffeId>>,
    ) -> Result<Arc<ClientConfig>, HandshakeError> {
        let verifier =
            ServerVerifier { verifier: Arc::clone(&self.verifier), expected: Arc::clone(expected) };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(local)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(resolver(svid)));
        config.alpn_protocols = alpn();
        config.enable_sni = false;
        config.enable_secret_extraction = true;
        config.require_ems = true;
        config.resumption =
            Resumption::store(Arc::new(ClientSessionMemoryCache::new(REMEMBERED_DESTINATIONS)));
        Ok(Arc::new(config))
    }

    fn server_config(&self, svid: &Svid) -> Result<Arc<ServerConfig>, HandshakeError> {
        let verifier = ClientVerifier { verifier: Arc::clone(&self.verifier), is_required: true };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(local)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(resolver(svid)));
        config.alpn_protocols = alpn();
        config.enable_secret_extraction = true;
        config.require_ems = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(local)?;
        config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        Ok(Arc::new(config))
    }
}

/// TLS 1.3 with three suites, TLS 1.2 only with ECDHE and GCM (design.md section 5).
pub fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite as suite;
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn alpn() -> Vec<Vec<u8>> {
    ALPN_PROTOCOLS.iter().map(|name| name.to_vec()).collect()
}

fn resolver(svid: &Svid) -> SingleCertAndKey {
    SingleCertAndKey::from(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key)))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a map_err function")]
pub(super) fn local(error: rustls::Error) -> HandshakeError {
    HandshakeError::Local(error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One configuration per identity; a renewed SVID replaces it, and its old key goes. Forgets everything when
/// full: a rebuilt configuration costs one full handshake, an LRU costs every lookup.
struct ConfigCache<K, C> {
    /// With the key that the configuration signs with, which is of one SVID only.
    entries: HashMap<K, (Arc<dyn SigningKey>, Arc<C>)>,
    capacity: usize,
}

impl<K: Eq + Hash, C> ConfigCache<K, C> {
    fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), capacity: capacity.max(1) }
    }

    fn get_or_make<E>(
        &mut self,
        key: K,
        svid: &Svid,
        make: impl FnOnce() -> Result<Arc<C>, E>,
    ) -> Result<Arc<C>, E> {
        if let Some((signer, config)) = self.entries.get(&key)
            && std::ptr::addr_eq(Arc::as_ptr(signer), Arc::as_ptr(&svid.key))
        {
            return Ok(Arc::clone(config));
        }
        let config = make()?;
        if self.entries.len() >= self.capacity {
            self.entries.clear();
        }
        self.entries.insert(key, (Arc::clone(&svid.key), Arc::clone(&config)));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_pki::TestCa;

    #[test]
    fn a_new_svid_is_used_at_once_whatever_its_serial() {
        let ca = TestCa::new("cluster.local");
        let mut cache = ConfigCache::new(8);
        let old = ca.svid("spiffe://cluster.local/ns/a/sa/b");
        let new = Svid { serial: old.serial.clone(), ..ca.svid("spiffe://cluster.local/ns/a/sa/b") };
        let mut of = |svid: &Svid| {
            let name = svid.chain[0].clone();
            cache.get_or_make((), svid, || Ok::<_, ()>(Arc::new(name))).unwrap()
        };
        assert_eq!(*of(&old), old.chain[0]);
        assert_eq!(*of(&new), new.chain[0]);
        assert!(Arc::ptr_eq(&of(&new), &of(&new.clone())), "made again each time");
    }
}
