//! What the first bytes of an inbound connection are. Works on a bounded copy of peeked, untrusted bytes and
//! decides nothing but "TLS or not, and which names"; it must never consume, block or panic.

use rustls::server::Acceptor;

/// A `ClientHello` larger than this is refused (RFC 8446 allows 64 KiB, real ones have at most a few).
pub const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// Content type and version of a TLS record (RFC 8446 section 5.1).
const RECORD_PREFIX: [u8; 2] = [22, 3];

/// What a `ClientHello` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// ALPN protocol names offered, in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// The server name, when the client sent one.
    pub sni: Option<String>,
    /// Whether the client is a mesh peer: it offers `meshd/1` or one of Istio's names.
    pub mesh: bool,
}

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// Not a TLS `ClientHello`, whatever follows.
    NotTls,
    /// A prefix of a `ClientHello` so far.
    NeedMore,
    /// A complete `ClientHello`.
    Tls(ClientHello),
}

/// Looks at the bytes peeked so far.
pub fn detect(peeked: &[u8]) -> Detected {
    let prefix = peeked.len().min(RECORD_PREFIX.len());
    if peeked[..prefix] != RECORD_PREFIX[..prefix] {
        return Detected::NotTls;
    }
    // Handshake type client_hello, right after the record's five bytes.
    if peeked.get(5).is_some_and(|&message| message != 1) {
        return Detected::NotTls;
    }
    let mut bounded = &peeked[..peeked.len().min(MAX_CLIENT_HELLO_BYTES)];
    let mut acceptor = Acceptor::default();
    while !bounded.is_empty() {
        match acceptor.read_tls(&mut bounded) {
            Ok(0) | Err(_) => return Detected::NotTls,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Detected::Tls(describe(&accepted.client_hello())),
            Ok(None) => {}
            Err(_) => return Detected::NotTls,
        }
    }
    if peeked.len() >= MAX_CLIENT_HELLO_BYTES { Detected::NotTls } else { Detected::NeedMore }
}

fn describe(hello: &rustls::server::ClientHello<'_>) -> ClientHello {
    let alpn: Vec<Vec<u8>> =
        hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
    let mesh = alpn.iter().any(|name| name == b"meshd/1" || name == b"istio" || name.starts_with(b"istio-"));
    ClientHello { alpn, sni: hello.server_name().map(str::to_owned), mesh }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

    use super::*;

    fn hello(alpn: &[&[u8]], name: &'static str) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_client_hello_is_recognised_only_when_complete() {
        let bytes = hello(&[b"h2", b"meshd/1"], "db.example");
        for end in 0..bytes.len() {
            assert_eq!(detect(&bytes[..end]), Detected::NeedMore, "{end} of {}", bytes.len());
        }
        let Detected::Tls(found) = detect(&bytes) else { panic!("not recognised") };
        assert_eq!(found.sni.as_deref(), Some("db.example"));
        assert_eq!(found.alpn, [b"h2".to_vec(), b"meshd/1".to_vec()]);
        assert!(found.mesh);
    }

    #[test]
    fn bytes_after_the_client_hello_do_not_matter() {
        let mut bytes = hello(&[b"istio-http/1.1"], "x.example");
        bytes.resize(bytes.len() + 40_000, 0xff);
        assert!(matches!(detect(&bytes), Detected::Tls(ClientHello { mesh: true, .. })));
    }

    #[test]
    fn tls_of_the_application_is_not_mesh() {
        for alpn in [&[b"h2".as_slice()][..], &[]] {
            assert!(matches!(
                detect(&hello(alpn, "x.example")),
                Detected::Tls(ClientHello { mesh: false, .. })
            ));
        }
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x00\x00\x00\x08", b"\x16\x04", b"\x16\x03\x01\x00\x05\x02"]
        {
            assert_eq!(detect(bytes), Detected::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn an_endless_client_hello_is_refused() {
        let mut bytes = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff, 3, 3];
        bytes.resize(64 * 1024, 0);
        assert_eq!(detect(&bytes), Detected::NotTls);
    }

    proptest! {
        #[test]
        fn no_input_panics(tail in proptest::collection::vec(any::<u8>(), 0..2000), keep in 0_usize..300) {
            let mut bytes = hello(&[b"meshd/1"], "a.example");
            bytes.truncate(keep);
            bytes.extend_from_slice(&tail);
            let _ = detect(&bytes);
            let _ = detect(&tail);
        }
    }
}
