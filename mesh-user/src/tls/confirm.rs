//! The server's word that a connection stands. In TLS 1.3 a client's handshake is over before the server has seen
//! its certificate, let alone asked the policy or reached the application. Between two meshds (ALPN `meshd/1`) the
//! server's first record after the handshake, its session ticket, therefore waits until the app leg is connected;
//! an alert or a reset in its place says that there is none. A client that can still tell its application waits
//! for it; others need not, since a ticket may come at any time (RFC 8446 section 4.6.1).

use std::io;

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite,
    crypto::cipher::{OutboundChunks, OutboundPlainMessage},
};

use tokio::net::TcpStream;

use super::{ALPN_PROTOCOLS, Established, session::Session, settle::Unsettled};

const HEADER_BYTES: usize = 5;
const FATAL: u8 = 2;
/// RFC 5288 section 3.
const GCM_SALT_BYTES: usize = 4;

/// Why the server's word did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unconfirmed {
    /// Its policy does not let us in.
    #[error("the server's policy denies this client")]
    Denied,
    /// It has nobody to connect us with, or went away.
    #[error("the server does not take the connection: {0}")]
    Refused(Unsettled),
}

impl Established {
    /// Server: the app leg is connected.
    pub(crate) async fn confirm(&mut self) -> io::Result<()> {
        self.send_outgoing().await
    }

    /// Server: tells a client's meshd that policy denies it, in place of [`Self::confirm`], as far as its socket
    /// takes it at once. Others would take the alert for an orderly end. Reset the connection afterwards.
    pub(crate) fn deny(self) -> TcpStream {
        let is_awaited = self.will_be_confirmed();
        let Self { stream, session, outgoing, .. } = self;
        if is_awaited {
            say_instead(&stream, session, &outgoing, AlertDescription::AccessDenied);
        }
        stream
    }

    /// Whether the server gives its word before its first data: both ends are meshds, in TLS 1.3.
    pub(crate) fn will_be_confirmed(&self) -> bool {
        self.alpn() == Some(ALPN_PROTOCOLS[0]) && self.facts().version == ProtocolVersion::TLSv1_3
    }

    /// Client: waits for the server's word. Loses nothing when it is dropped half-way.
    pub(crate) async fn confirmed(&mut self) -> Result<(), Unconfirmed> {
        let word = if self.ciphertext.is_empty() {
            self.next_record().await
        } else {
            self.reach_record_boundary().await
        };
        match word {
            Ok(()) => Ok(()),
            Err(Unsettled::Protocol(Error::AlertReceived(AlertDescription::AccessDenied))) => {
                Err(Unconfirmed::Denied)
            }
            Err(other) => Err(Unconfirmed::Refused(other)),
        }
    }
}

/// Sends a fatal alert after the handshake, in place of what is `unsent`, as far as the socket takes it at once. The end
/// of the connection that follows says enough where it cannot be sent.
pub(super) fn say_instead(stream: &TcpStream, session: Session, unsent: &[u8], alert: AlertDescription) {
    // What was sealed is never sent, so that its place in the sequence is free.
    let unsent = records_in(unsent);
    let sealed = session.cipher_suite().and_then(|suite| {
        let (sequence, keys) = session.into_kernel().ok()?.0.tx;
        seal_alert(suite, keys, sequence.checked_sub(unsent)?, alert)
    });
    if let Some(sealed) = sealed {
        let _ = stream.try_write(&sealed);
    }
}

fn records_in(mut sealed: &[u8]) -> u64 {
    let mut count = 0;
    while let [_, _, _, high, low, ..] = *sealed {
        let length = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        sealed = sealed.get(length..).unwrap_or_default();
        count += 1;
    }
    count
}

fn seal_alert(
    suite: SupportedCipherSuite,
    keys: ConnectionTrafficSecrets,
    sequence: u64,
    alert: AlertDescription,
) -> Option<Vec<u8>> {
    let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = keys
    else {
        return None;
    };
    let alert = OutboundPlainMessage {
        typ: ContentType::Alert,
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(&[FATAL, u8::from(alert)]),
    };
    let mut encrypter = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let (salt, explicit_nonce) = iv.as_ref().split_at_checked(GCM_SALT_BYTES)?;
            suite.aead_alg.encrypter(key, salt, explicit_nonce)
        }
    };
    Some(encrypter.encrypt(alert, sequence).ok()?.encode())
}
