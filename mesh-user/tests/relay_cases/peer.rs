//! TLS peers made of plain rustls, which can do what our relays never do: truncate, send garbage, change keys at
//! will. Blocking calls on loopback: short, and the relay's task runs between them.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::Arc,
};

use mesh_user::proxy::relay::{RelayOptions, RelayOutcome};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error, ProtocolVersion, ServerConfig,
    ServerConnection, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{net::TcpStream, task::JoinHandle};

use super::{
    Kinds,
    mesh::{CLIENT, SERVER, Trust, leg, spawn, tcp_pair},
    raw::RawPeer,
};

pub(crate) struct RustlsPeer {
    tls: Connection,
    tcp: std::net::TcpStream,
}

impl RustlsPeer {
    /// The application's end, its relay, and the server that the relay talks to.
    pub(crate) async fn behind(kinds: &Kinds) -> (TcpStream, JoinHandle<RelayOutcome>, Self) {
        Self::behind_in(&Trust::new(), kinds, RelayOptions::default()).await
    }

    /// The same in TLS 1.2.
    pub(crate) async fn behind_tls12(kinds: &Kinds) -> (TcpStream, JoinHandle<RelayOutcome>, Self) {
        let suite = TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
        Self::behind_in(&Trust::with_suite(suite), kinds, RelayOptions::default()).await
    }

    pub(crate) async fn behind_in(
        trust: &Trust,
        kinds: &Kinds,
        options: RelayOptions,
    ) -> (TcpStream, JoinHandle<RelayOutcome>, Self) {
        let svid = trust.ca.svid(SERVER);
        let resolver = SingleCertAndKey::from(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(mesh_user::tls::provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"meshd/1".to_vec()];
        config.enable_secret_extraction = true;
        let (near, far) = tcp_pair().await;
        let handshake = tokio::task::spawn_blocking(move || {
            let mut tcp = blocking(far);
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            while tls.is_handshaking() {
                tls.complete_io(&mut tcp).unwrap();
            }
            while tls.wants_write() {
                tls.write_tls(&mut tcp).unwrap();
            }
            Self { tls: Connection::Server(tls), tcp }
        });
        let (established, peer) = tokio::join!(trust.connect(near), handshake);
        let (app, app_leg) = tcp_pair().await;
        let wire = leg(established, kinds.client, &kinds.kernel).await;
        let relay = spawn(app_leg, wire, options, Arc::default());
        (app, relay, peer.unwrap())
    }

    /// From here on records are made by hand.
    pub(crate) fn into_raw(self) -> RawPeer {
        let is_tls13 = self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        RawPeer::new(self.tcp, is_tls13, self.tls.dangerous_extract_secrets().unwrap())
    }

    fn flush(&mut self) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp).unwrap();
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
        self.flush();
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).unwrap();
    }

    pub(crate) fn update_keys(&mut self) {
        self.tls.refresh_traffic_keys().unwrap();
        self.flush();
    }

    /// Key after key, until the relay has had enough.
    pub(crate) fn flood_key_updates(&mut self, count: usize) {
        for _ in 0..count {
            self.tls.refresh_traffic_keys().unwrap();
            while self.tls.wants_write() {
                if self.tls.write_tls(&mut self.tcp).is_err() {
                    return;
                }
            }
        }
    }

    pub(crate) fn fin_without_close_notify(&mut self) {
        self.tcp.shutdown(Shutdown::Write).unwrap();
    }

    /// Lets the relay run meanwhile.
    pub(crate) async fn read(&mut self, count: usize) -> Vec<u8> {
        self.tcp.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        while got.len() < count {
            let mut bytes = vec![0; count - got.len()];
            match self.tls.reader().read(&mut bytes) {
                Ok(read) => got.extend_from_slice(&bytes[..read]),
                Err(_) => match self.tls.read_tls(&mut self.tcp) {
                    Ok(_) => drop(self.tls.process_new_packets().unwrap()),
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
                },
            }
        }
        self.tcp.set_nonblocking(false).unwrap();
        got
    }
}

/// A client whose last flight is made, but not sent: whatever is to come with it in one segment can be added.
pub(crate) struct LastFlight {
    tls: ClientConnection,
    tcp: std::net::TcpStream,
    flight: Vec<u8>,
}

impl LastFlight {
    pub(crate) async fn of(trust: &Trust, tcp: TcpStream) -> Self {
        let svid = trust.ca.svid(CLIENT);
        let resolver = SingleCertAndKey::from(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key)));
        let mut config = ClientConfig::builder_with_provider(Arc::new(mesh_user::tls::provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"meshd/1".to_vec()];
        config.enable_secret_extraction = true;
        let handshake = move || {
            let mut tcp = blocking(tcp);
            let name = ServerName::try_from("10.0.0.1").unwrap();
            let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
            while tls.is_handshaking() {
                while tls.wants_write() {
                    tls.write_tls(&mut tcp).unwrap();
                }
                tls.read_tls(&mut tcp).unwrap();
                tls.process_new_packets().unwrap();
            }
            let mut flight = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut flight).unwrap();
            }
            Self { tls, tcp, flight }
        };
        tokio::task::spawn_blocking(handshake).await.unwrap()
    }

    /// Sends it with what `more` makes rustls say.
    pub(crate) fn with(mut self, more: impl FnOnce(&mut ClientConnection)) -> RustlsPeer {
        more(&mut self.tls);
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.flight).unwrap();
        }
        self.tcp.write_all(&self.flight).unwrap();
        RustlsPeer { tls: Connection::Client(self.tls), tcp: self.tcp }
    }

    /// Sends it with bytes made by hand.
    pub(crate) async fn with_raw(self, more: impl FnOnce(&mut RawPeer) -> Vec<u8>) -> RawPeer {
        let mut peer = RawPeer::new(self.tcp, true, self.tls.dangerous_extract_secrets().unwrap());
        let more = more(&mut peer);
        peer.write(&[self.flight, more].concat()).await;
        peer
    }
}

fn blocking(tcp: TcpStream) -> std::net::TcpStream {
    let tcp = tcp.into_std().unwrap();
    tcp.set_nonblocking(false).unwrap();
    tcp
}

/// Nothing is judged by this end.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        mesh_user::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
