//! Peers that break the protocol: a handshake by plain rustls, then records of any content, sealed by hand.
//!
//! Sources: RFC 8446 sections 5.2 and 5.3; RFC 5288 section 3 and RFC 5246 section 6.2.3.3 for TLS 1.2.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const DATA: u8 = 23;

/// One direction's key, and the number of its next record.
struct Keyed {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keyed {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            panic!("the tests ask for AES-128-GCM first");
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap();
        Self { key: LessSafeKey::new(key), iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        self.sequence += 1;
        nonce
    }
}

/// One end of a TLS connection without a library that would refuse to do wrong.
pub(crate) struct RawPeer {
    tcp: TcpStream,
    is_tls13: bool,
    send: Keyed,
    receive: Keyed,
}

impl RawPeer {
    pub(crate) fn new(tcp: std::net::TcpStream, is_tls13: bool, secrets: ExtractedSecrets) -> Self {
        tcp.set_nonblocking(true).unwrap();
        let (send, receive) = (Keyed::new(secrets.tx), Keyed::new(secrets.rx));
        Self { tcp: TcpStream::from_std(tcp).unwrap(), is_tls13, send, receive }
    }

    /// A record of this content type, ready to be sent.
    pub(crate) fn seal(&mut self, content_type: u8, body: &[u8]) -> Vec<u8> {
        if self.is_tls13 {
            self.seal_padded(content_type, body, 0)
        } else {
            self.seal_tls12(content_type, body)
        }
    }

    fn seal_tls12(&mut self, content_type: u8, body: &[u8]) -> Vec<u8> {
        let sequence = self.send.sequence.to_be_bytes();
        let nonce = self.send.nonce();
        let length = |more: usize| u16::try_from(body.len() + more).unwrap().to_be_bytes();
        let aad = [&sequence[..], &[content_type, 3, 3], &length(0)].concat();
        let mut sealed = body.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.send.key.seal_in_place_append_tag(unique, Aad::from(aad), &mut sealed).unwrap();
        [&[content_type, 3, 3], &length(8 + 16)[..], &nonce[4..], &sealed].concat()
    }

    /// The same followed by so many zeros. Content type 0 makes it a record of nothing but padding.
    pub(crate) fn seal_padded(&mut self, content_type: u8, body: &[u8], zeros: usize) -> Vec<u8> {
        let mut inner = [body, &[content_type], &vec![0; zeros]].concat();
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [DATA, 3, 3, length[0], length[1]];
        let nonce = Nonce::assume_unique_for_key(self.send.nonce());
        self.send.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).unwrap();
        [&header[..], &inner].concat()
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    /// As much of it as the peer takes: it may have had enough.
    pub(crate) async fn flood(&mut self, bytes: &[u8]) {
        let _ = self.tcp.write_all(bytes).await;
    }

    /// The next record but for session tickets, of TLS 1.3; none at the end of the stream.
    pub(crate) async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        const NEW_SESSION_TICKET: u8 = 4;
        loop {
            let mut header = [0; 5];
            if self.tcp.read_exact(&mut header).await.is_err() {
                return None;
            }
            let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
            self.tcp.read_exact(&mut body).await.unwrap();
            let nonce = Nonce::assume_unique_for_key(self.receive.nonce());
            let opened = self.receive.key.open_in_place(nonce, Aad::from(header), &mut body).unwrap().len();
            body.truncate(opened);
            let content_type = body.pop().unwrap();
            if content_type != HANDSHAKE || body[0] != NEW_SESSION_TICKET {
                return Some((content_type, body));
            }
        }
    }

    /// Whether the connection ends with FIN, not with a reset.
    pub(crate) async fn sees_the_end(&mut self) -> bool {
        matches!(self.tcp.read(&mut [0]).await, Ok(0))
    }
}
