//! A TLS server made of plain rustls, which can do what our relays never do: truncate, send garbage, change
//! keys at will. Blocking calls on loopback: short, and the relay's task runs between them.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::Arc,
};

use mesh_user::proxy::relay::{RelayOptions, RelayOutcome};
use rustls::{ServerConfig, ServerConnection, sign::CertifiedKey, sign::SingleCertAndKey};
use tokio::{net::TcpStream, task::JoinHandle};

use super::{
    Kinds,
    mesh::{SERVER, Trust, leg, spawn, tcp_pair},
};

pub(crate) struct RustlsPeer {
    tls: ServerConnection,
    tcp: std::net::TcpStream,
}

impl RustlsPeer {
    /// The application's end, its relay, and the peer that the relay talks to.
    pub(crate) async fn behind(kinds: &Kinds) -> (TcpStream, JoinHandle<RelayOutcome>, Self) {
        let trust = Trust::new();
        let svid = trust.ca.svid(SERVER);
        let resolver = SingleCertAndKey::from(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(mesh_user::tls::provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"meshd/1".to_vec()];
        let (near, far) = tcp_pair().await;
        let handshake = tokio::task::spawn_blocking(move || {
            let mut tcp = far.into_std().unwrap();
            tcp.set_nonblocking(false).unwrap();
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            while tls.is_handshaking() {
                tls.complete_io(&mut tcp).unwrap();
            }
            while tls.wants_write() {
                tls.write_tls(&mut tcp).unwrap();
            }
            Self { tls, tcp }
        });
        let (established, peer) = tokio::join!(trust.connect(near), handshake);
        let (app, app_leg) = tcp_pair().await;
        let wire = leg(established, kinds.client, &kinds.kernel).await;
        let relay = spawn(app_leg, wire, RelayOptions::default(), Arc::default());
        (app, relay, peer.unwrap())
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
