//! Drives a handshake over a non-blocking socket, bounded in time and bytes. Nothing that the peer sent
//! along with its last handshake message is lost: it is in [`Established`], decrypted or not.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{AlertDescription, ProtocolVersion, SupportedCipherSuite};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    HandshakeError, PeerRole, Step, TlsContext, VerifyError, confirm::say_instead, originate::VerifiedServer,
    session::Session, verify::VerifiedPeer,
};
use crate::identity::{SpiffeId, Svid};

/// How much is read from the socket at a time while the handshake lasts.
const READ_BYTES: usize = 4096;

/// Bounds of one handshake.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeLimits {
    /// From the first byte to the last.
    pub timeout: Duration,
    /// Bytes received from the peer before the handshake ends.
    pub max_bytes: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), max_bytes: 64 * 1024 }
    }
}

/// A connection whose peer is proven. Give it to a relay, in user space or after [`Self::offload`].
pub struct Established {
    pub(crate) stream: TcpStream,
    pub(crate) session: Session,
    /// Read from the socket, not yet consumed: at most the beginning of a record, or of a handshake message that
    /// goes on in later ones.
    pub(crate) ciphertext: Vec<u8>,
    /// Sealed, and due before anything else is sent.
    pub(crate) outgoing: Vec<u8>,
    /// Decrypted already; belongs to the application before anything else.
    pub(crate) plaintext: Vec<u8>,
    /// The peer has already sent `close_notify`.
    pub(crate) peer_closed: bool,
    /// The peer has already broken the protocol, after its handshake; `outgoing` ends with the alert.
    pub(crate) failed: Option<rustls::Error>,
    pub(super) proven: Proven,
    pub(super) facts: SessionFacts,
}

/// Who the peer is.
#[derive(Debug, Clone)]
pub enum Proven {
    /// A workload, by its identity.
    Workload(Arc<VerifiedPeer>),
    /// A server outside the mesh, by what a rule says of it.
    Server(Arc<VerifiedServer>),
}

/// What was negotiated.
#[derive(Debug, Clone, Copy)]
pub struct SessionFacts {
    /// TLS 1.3 or 1.2.
    pub version: ProtocolVersion,
    /// Key exchange (1.2) and AEAD.
    pub cipher_suite: SupportedCipherSuite,
    /// Whether the session resumes an earlier one.
    pub resumed: bool,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established")
            .field("proven", &self.peer().map(|peer| &peer.spiffe_id))
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Established {
    /// Who the peer is.
    pub fn proven(&self) -> &Proven {
        &self.proven
    }

    /// The identity that the peer has proven; none: it is a server outside the mesh.
    pub fn peer(&self) -> Option<&Arc<VerifiedPeer>> {
        match &self.proven {
            Proven::Workload(peer) => Some(peer),
            Proven::Server(_) => None,
        }
    }

    /// What was negotiated.
    pub fn facts(&self) -> SessionFacts {
        self.facts
    }

    /// The negotiated ALPN name.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.alpn()
    }

    /// The socket, for its addresses.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Which end the peer is.
    pub fn peer_role(&self) -> PeerRole {
        if self.session.is_client() { PeerRole::Server } else { PeerRole::Client }
    }
}

impl TlsContext {
    /// Handshakes as a client with `svid` over a stream with `TCP_NODELAY`; the server must prove one of `expected` (secure naming).
    /// `destination` names the slot of session tickets.
    pub async fn connect(
        &self,
        stream: TcpStream,
        svid: &Svid,
        expected: &Arc<BTreeSet<SpiffeId>>,
        destination: IpAddr,
        limits: HandshakeLimits,
    ) -> Result<Established, HandshakeError> {
        let session = self.client_session(svid, expected, destination)?;
        drive(stream, Vec::new(), session, limits, self.prove(Some(expected))).await
    }

    /// Handshakes as a server with `svid` over a stream with `TCP_NODELAY`; the client must prove an identity.
    pub async fn accept(
        &self,
        stream: TcpStream,
        svid: &Svid,
        limits: HandshakeLimits,
    ) -> Result<Established, HandshakeError> {
        self.accept_begun(stream, Vec::new(), svid, limits).await
    }

    /// The same with a client that `begun` was read from already.
    pub(crate) async fn accept_begun(
        &self,
        stream: TcpStream,
        begun: Vec<u8>,
        svid: &Svid,
        limits: HandshakeLimits,
    ) -> Result<Established, HandshakeError> {
        let session = self.server_session(svid)?;
        drive(stream, begun, session, limits, self.prove(None)).await
    }

    /// rustls does not verify again on resumption: trust, expiry and naming may have changed since.
    fn prove<'a>(
        &'a self,
        expected: Option<&'a BTreeSet<SpiffeId>>,
    ) -> impl FnOnce(&[CertificateDer<'static>], PeerRole) -> Result<Proven, VerifyError> + 'a {
        move |chain, role| {
            let peer = self.verifier().verify(chain, role, expected, SystemTime::now())?;
            Ok(Proven::Workload(Arc::new(peer)))
        }
    }
}

/// `prove` says who a chain's owner is, once the handshake is over.
pub(super) async fn drive(
    stream: TcpStream,
    input: Vec<u8>,
    session: Session,
    limits: HandshakeLimits,
    prove: impl FnOnce(&[CertificateDer<'static>], PeerRole) -> Result<Proven, VerifyError>,
) -> Result<Established, HandshakeError> {
    let mut handshake = Handshake { stream, session, received: input.len(), input, plaintext: Vec::new() };
    let End { peer_closed, unsent } = tokio::time::timeout(limits.timeout, handshake.run(limits.max_bytes))
        .await
        .map_err(|_| HandshakeError::Timeout(limits.timeout))??;
    let Handshake { stream, session, input, plaintext, .. } = handshake;
    let chain = session.peer_certificates().ok_or(HandshakeError::NoCertificate)?;
    let role = if session.is_client() { PeerRole::Server } else { PeerRole::Client };
    let proven = match prove(chain, role) {
        Ok(proven) => proven,
        Err(refused) => {
            // As rustls says it of one that is refused in a full handshake.
            say_instead(&stream, session, &unsent, AlertDescription::CertificateUnknown);
            return Err(refused.into());
        }
    };
    let (Some(version), Some(cipher_suite)) = (session.version(), session.cipher_suite()) else {
        return Err(HandshakeError::Local("the session does not say what it negotiated".to_owned()));
    };
    let facts = SessionFacts { version, cipher_suite, resumed: session.resumed() };
    Ok(Established {
        stream,
        session,
        ciphertext: input,
        outgoing: unsent,
        plaintext,
        peer_closed,
        failed: None,
        proven,
        facts,
    })
}

/// What a handshake leaves behind.
struct End {
    /// The peer has already closed its direction.
    peer_closed: bool,
    /// The server's first records after it, which confirm the connection ([`Established::confirm`]).
    unsent: Vec<u8>,
}

struct Handshake {
    stream: TcpStream,
    session: Session,
    input: Vec<u8>,
    received: usize,
    plaintext: Vec<u8>,
}

impl Handshake {
    async fn run(&mut self, max_bytes: usize) -> Result<End, HandshakeError> {
        let mut outgoing = Vec::new();
        let mut peer_closed = false;
        loop {
            let plaintext = &mut self.plaintext;
            let done = self.session.process(
                &mut self.input,
                &mut |bytes| plaintext.extend_from_slice(bytes),
                &mut outgoing,
            );
            self.input.drain(..done.discard.min(self.input.len()));
            match done.outcome {
                Ok(Step::Progress) => {}
                Ok(Step::PeerClosed) => {
                    peer_closed = true;
                }
                Ok(step) => {
                    let is_over =
                        matches!(step, Step::Ready | Step::Closed) && !self.session.is_handshaking();
                    if !(is_over && self.session.confirms()) {
                        self.send(&mut outgoing).await?;
                    }
                    match step {
                        _ if is_over => return Ok(End { peer_closed, unsent: outgoing }),
                        Step::Closed => return Err(HandshakeError::Closed),
                        _ => self.receive(max_bytes).await?,
                    }
                }
                Err(error) => return Err(self.fail(error, outgoing).await),
            }
        }
    }

    async fn send(&mut self, outgoing: &mut Vec<u8>) -> Result<(), HandshakeError> {
        if !outgoing.is_empty() {
            self.stream.write_all(outgoing).await?;
            outgoing.clear();
        }
        Ok(())
    }

    async fn receive(&mut self, max_bytes: usize) -> Result<(), HandshakeError> {
        if self.received >= max_bytes {
            return Err(HandshakeError::TooLarge(max_bytes));
        }
        let want = READ_BYTES.min(max_bytes - self.received);
        let start = self.input.len();
        self.input.resize(start + want, 0);
        let read = self.stream.read(&mut self.input[start..]).await;
        self.input.truncate(start + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(HandshakeError::Closed),
            count => {
                self.received += count;
                Ok(())
            }
        }
    }

    /// Sends the alert that rustls prepared, so that the peer's log names the cause too.
    async fn fail(&mut self, error: rustls::Error, mut outgoing: Vec<u8>) -> HandshakeError {
        self.session.last_words(&mut self.input, &mut outgoing);
        let sent: io::Result<()> = self.stream.write_all(&outgoing).await;
        let cause = HandshakeError::from_rustls(error, self.received > READ_BYTES);
        if let Err(error) = sent {
            tracing::debug!(%error, "the alert for a failed handshake could not be sent");
        }
        cause
    }
}
