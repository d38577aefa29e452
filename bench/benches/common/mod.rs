//! What several micro-benchmarks need: two nodes of one trust domain, and connected sockets.
#![allow(dead_code, reason = "every benchmark is a crate of its own and uses a part of this")]

use std::{collections::BTreeSet, path::Path, sync::Arc};

use mesh_user::{
    ca::{
        authority::{Authority, AuthoritySettings},
        signing::CertificateAuthority as _,
    },
    identity::{SpiffeId, Svid},
    tls::{Established, HandshakeLimits, TlsContext, TlsSettings},
};
use tokio::net::{TcpListener, TcpStream};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// One end of a handshake: its node's TLS configuration, its SVID, and whom it expects.
pub(crate) struct End {
    tls: TlsContext,
    svid: Svid,
    expected: Arc<BTreeSet<SpiffeId>>,
}

/// The client's and the server's end; a new CA is made in a folder below `folder`.
pub(crate) fn ends(folder: &Path) -> (End, End) {
    let domain = "cluster.local".parse().expect("a trust domain");
    let ca = Authority::open(AuthoritySettings::new(folder.join("ca"), domain)).expect("a new CA");
    let runtime = runtime();
    let end = |own: &str, other: &str| {
        let id = |text: &str| text.parse::<SpiffeId>().expect("a SPIFFE ID");
        let bundles = Arc::new(Arc::new(ca.trust().borrow().bundles.clone()).into());
        let settings = TlsSettings::new("cluster.local".parse().expect("a trust domain"));
        End {
            tls: TlsContext::new(settings, bundles),
            svid: runtime.block_on(ca.issue(&id(own))).expect("an SVID"),
            expected: Arc::new([id(other)].into()),
        }
    };
    (end(CLIENT, SERVER), end(SERVER, CLIENT))
}

impl End {
    /// Handshakes as the client.
    pub(crate) async fn connect(&self, stream: TcpStream) -> Established {
        let address = stream.peer_addr().expect("a connected socket").ip();
        let limits = HandshakeLimits::default();
        stream.set_nodelay(true).expect("an option");
        self.tls.connect(stream, &self.svid, &self.expected, address, limits).await.expect("a handshake")
    }

    /// Handshakes as the server.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Established {
        stream.set_nodelay(true).expect("an option");
        self.tls.accept(stream, &self.svid, HandshakeLimits::default()).await.expect("a handshake")
    }
}

/// Both ends of a loopback connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.expect("a connection"), far.expect("a connection").0);
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("an option");
    }
    (near, far)
}

/// A runtime on the calling thread only, so that its CPU time is all the CPU time there is.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
