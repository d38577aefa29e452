//! One TLS session over rustls's unbuffered API: turns records into plaintext and plaintext into records in
//! buffers that the caller lends. It never touches a socket and keeps no buffer of its own.

use rustls::{
    Error, ProtocolVersion, SupportedCipherSuite,
    client::UnbufferedClientConnection,
    kernel::KernelConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};
use rustls_pki_types::CertificateDer;

/// The largest plaintext of one record (RFC 8446 section 5.1).
pub const MAX_RECORD_PLAINTEXT_BYTES: usize = 16 * 1024;
/// The largest ciphertext of one record with its header (RFC 8446 section 5.2, RFC 5246 section 6.2.3).
pub const MAX_RECORD_BYTES: usize = 5 + MAX_RECORD_PLAINTEXT_BYTES + 2048;
/// What sealing adds to a record at most: header, TLS 1.2's explicit nonce or TLS 1.3's content type, tag.
pub const RECORD_OVERHEAD_BYTES: usize = 5 + 8 + 1 + 16;

/// A sealed alert in TLS 1.3: header, alert, content type, tag (RFC 8446 sections 5.2 and 6).
const SEALED_ALERT_BYTES: usize = 5 + 2 + 1 + 16;

/// What the session did with the bytes given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It consumed something; call again.
    Progress,
    /// The handshake goes on when the peer has sent more.
    NeedsInput,
    /// Everything given is processed as far as possible; plaintext may be sealed.
    Ready,
    /// The peer sent `close_notify`: no more plaintext follows.
    PeerClosed,
    /// Both sides have sent `close_notify`.
    Closed,
}

/// One step of [`Session::process`].
#[derive(Debug)]
pub struct Processed {
    /// Drop so many bytes from the front of the input before the next call, even after an error.
    pub discard: usize,
    /// What happened.
    pub outcome: Result<Step, Error>,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What remains of a session after the kernel has taken the keys.
pub enum KernelSession {
    /// Handles tickets and key updates.
    Client(Box<KernelConnection<rustls::client::ClientConnectionData>>),
    /// Handles key updates.
    Server(Box<KernelConnection<rustls::server::ServerConnectionData>>),
}

/// A session in its handshake or after it.
pub struct Session {
    side: Side,
}

impl Session {
    pub(crate) fn client(connection: UnbufferedClientConnection) -> Self {
        Self { side: Side::Client(Box::new(connection)) }
    }

    pub(crate) fn server(connection: UnbufferedServerConnection) -> Self {
        Self { side: Side::Server(Box::new(connection)) }
    }

    /// Whether we connected to the peer.
    pub fn is_client(&self) -> bool {
        matches!(self.side, Side::Client(_))
    }

    /// Whether the handshake is still under way.
    pub fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Client(c) => c.is_handshaking(),
            Side::Server(c) => c.is_handshaking(),
        }
    }

    /// Whether what follows the handshake first, a server's tickets in TLS 1.3, says that the connection stands.
    /// Before TLS 1.3 they belong to the handshake.
    pub(crate) fn confirms(&self) -> bool {
        !self.is_client() && self.version() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match &self.side {
            Side::Client(c) => c.peer_certificates(),
            Side::Server(c) => c.peer_certificates(),
        }
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.side {
            Side::Client(c) => c.alpn_protocol(),
            Side::Server(c) => c.alpn_protocol(),
        }
    }

    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        match &self.side {
            Side::Client(c) => c.protocol_version(),
            Side::Server(c) => c.protocol_version(),
        }
    }

    pub(crate) fn cipher_suite(&self) -> Option<SupportedCipherSuite> {
        match &self.side {
            Side::Client(c) => c.negotiated_cipher_suite(),
            Side::Server(c) => c.negotiated_cipher_suite(),
        }
    }

    pub(crate) fn resumed(&self) -> bool {
        let kind = match &self.side {
            Side::Client(c) => c.handshake_kind(),
            Side::Server(c) => c.handshake_kind(),
        };
        kind == Some(rustls::HandshakeKind::Resumed)
    }

    /// Processes what is in `input` by one step. Plaintext goes to `plaintext`, at most one record of it;
    /// records that must be sent (handshake, tickets, key updates, alerts) are appended to `outgoing`.
    pub fn process(
        &mut self,
        input: &mut [u8],
        plaintext: &mut dyn FnMut(&[u8]),
        outgoing: &mut Vec<u8>,
    ) -> Processed {
        match &mut self.side {
            Side::Client(c) => settle(c.process_tls_records(input), plaintext, outgoing),
            Side::Server(c) => settle(c.process_tls_records(input), plaintext, outgoing),
        }
    }

    /// Seals `plaintext` into `outgoing`, which has room for it and [`RECORD_OVERHEAD_BYTES`] per record.
    /// `input` is what is left of the peer's bytes after [`Self::process`] answered [`Step::Ready`].
    ///
    /// Call [`Self::process`] with the same `input` right before, until it answers [`Step::Ready`]: records
    /// that rustls has queued go out first, and would be lost here. `None` says that this was not done.
    pub fn seal(
        &mut self,
        input: &mut [u8],
        plaintext: &[u8],
        outgoing: &mut [u8],
    ) -> Result<Option<usize>, Error> {
        match &mut self.side {
            Side::Client(c) => with_writer(c.process_tls_records(input), |w| w.encrypt(plaintext, outgoing)),
            Side::Server(c) => with_writer(c.process_tls_records(input), |w| w.encrypt(plaintext, outgoing)),
        }
    }

    /// Seals `close_notify` into `outgoing`; like [`Self::seal`].
    pub fn seal_close_notify(
        &mut self,
        input: &mut [u8],
        outgoing: &mut [u8],
    ) -> Result<Option<usize>, Error> {
        match &mut self.side {
            Side::Client(c) => with_writer(c.process_tls_records(input), |w| w.queue_close_notify(outgoing)),
            Side::Server(c) => with_writer(c.process_tls_records(input), |w| w.queue_close_notify(outgoing)),
        }
    }

    /// Appends the answer to a `KeyUpdate`, which rustls keeps back until there is data to seal: without it the
    /// peer cannot read what another hand seals with the next key. Call it where [`Self::seal`] may be called.
    pub(crate) fn answer_key_update(
        &mut self,
        input: &mut [u8],
        outgoing: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match &mut self.side {
            Side::Client(c) => ask_for_pending(c.process_tls_records(input))?,
            Side::Server(c) => ask_for_pending(c.process_tls_records(input))?,
        }
        while self.process(input, &mut |_| {}, outgoing).outcome? == Step::Progress {}
        Ok(())
    }

    /// Appends what rustls has to say after [`Self::process`] has failed: an alert, where the protocol has one for
    /// the cause, and what was queued before it. Nothing may be processed after it.
    pub(crate) fn last_words(&mut self, input: &mut [u8], outgoing: &mut Vec<u8>) {
        loop {
            let start = outgoing.len();
            // One step hands out one record; one more than there are would make rustls process the input that it
            // has just refused.
            let _ = self.process(input, &mut |_| {}, outgoing);
            if outgoing.len() == start || is_alert(&outgoing[start..]) {
                return;
            }
        }
    }

    /// Gives the keys away. The caller has processed every byte it has read, called [`Self::answer_key_update`]
    /// and sent all of `outgoing`.
    pub(crate) fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, KernelSession), Error> {
        match self.side {
            Side::Client(c) => c
                .dangerous_into_kernel_connection()
                .map(|(secrets, rest)| (secrets, KernelSession::Client(Box::new(rest)))),
            Side::Server(c) => c
                .dangerous_into_kernel_connection()
                .map(|(secrets, rest)| (secrets, KernelSession::Server(Box::new(rest)))),
        }
    }
}

fn settle<D>(
    status: UnbufferedStatus<'_, '_, D>,
    plaintext: &mut dyn FnMut(&[u8]),
    outgoing: &mut Vec<u8>,
) -> Processed {
    let mut discard = status.discard;
    let outcome = status.state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                plaintext(record.payload);
            }
            Ok(Step::Progress)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let start = outgoing.len();
            if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                outgoing.resize(start + size.required_size, 0);
                let written =
                    data.encode(&mut outgoing[start..]).map_err(|error| Error::General(error.to_string()))?;
                outgoing.truncate(start + written);
            }
            Ok(Step::Progress)
        }
        // The caller sends `outgoing` before it waits for input, so this is as good as done.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Progress)
        }
        ConnectionState::BlockedHandshake => Ok(Step::NeedsInput),
        ConnectionState::WriteTraffic(_) => Ok(Step::Ready),
        ConnectionState::PeerClosed => Ok(Step::PeerClosed),
        ConnectionState::Closed => Ok(Step::Closed),
        ConnectionState::ReadEarlyData(_) => Err(Error::General("early data is not offered".to_owned())),
        _ => Err(Error::General("rustls reports a state unknown to us".to_owned())),
    });
    Processed { discard, outcome }
}

/// Nothing else is as short as a sealed alert, and before TLS 1.3 the content type is for all to see.
fn is_alert(record: &[u8]) -> bool {
    const ALERT: u8 = 21;
    record.first() == Some(&ALERT) || record.len() == SEALED_ALERT_BYTES
}

/// Sealing begins with what is pending; without room for a byte of data it also ends there.
fn ask_for_pending<D>(status: UnbufferedStatus<'_, '_, D>) -> Result<(), Error> {
    if let ConnectionState::WriteTraffic(mut writer) = status.state? {
        let _ = writer.encrypt(&[0], &mut []);
    }
    Ok(())
}

fn with_writer<D>(
    status: UnbufferedStatus<'_, '_, D>,
    write: impl FnOnce(&mut WriteTraffic<'_, D>) -> Result<usize, EncryptError>,
) -> Result<Option<usize>, Error> {
    match status.state? {
        ConnectionState::WriteTraffic(mut writer) if status.discard == 0 => match write(&mut writer) {
            Ok(written) => Ok(Some(written)),
            Err(EncryptError::EncryptExhausted) => Err(Error::EncryptError),
            Err(EncryptError::InsufficientSize(size)) => {
                Err(Error::General(format!("sealing needs {} bytes", size.required_size)))
            }
        },
        _ => Ok(None),
    }
}
