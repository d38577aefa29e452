//! Hands a session's keys to the kernel, and finds out at start what this kernel's TLS can do, by doing it.
//! A connection is offloaded only at a record boundary: bytes already read cannot be pushed back.

use std::{io, time::Duration};

use rustls::{CipherSuite, ConnectionTrafficSecrets, ProtocolVersion, SupportedCipherSuite};
use tokio::net::TcpStream;

use super::{Established, KernelSession, Proven, SessionFacts, verify::PeerRole};
use crate::sys::ktls::{self, Direction};

/// What kernel TLS on this machine was seen to do; `Err` carries the reason.
#[derive(Debug, Clone)]
pub struct KernelTls {
    /// The ULP attaches and a record passes through it.
    pub ulp: Result<(), String>,
    /// Ciphers whose keys are accepted in both directions and that carried data right.
    pub ciphers: Vec<KernelCipher>,
    /// Keys can be replaced on a live connection (`KeyUpdate`).
    pub rekey: Result<(), String>,
    /// `splice` lost and reordered nothing.
    pub splice: Result<(), String>,
    /// `TLS_RX_EXPECT_NO_PAD` is accepted.
    pub expect_no_pad: Result<(), String>,
}

/// A cipher and protocol version that the kernel encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum KernelCipher {
    /// TLS 1.3 AES-128-GCM.
    Tls13Aes128Gcm,
    /// TLS 1.3 AES-256-GCM.
    Tls13Aes256Gcm,
    /// TLS 1.3 ChaCha20-Poly1305.
    Tls13Chacha20Poly1305,
    /// TLS 1.2 AES-128-GCM.
    Tls12Aes128Gcm,
    /// TLS 1.2 AES-256-GCM.
    Tls12Aes256Gcm,
}

impl KernelCipher {
    /// All that are offered.
    pub const ALL: [Self; 5] = [
        Self::Tls13Aes128Gcm,
        Self::Tls13Aes256Gcm,
        Self::Tls13Chacha20Poly1305,
        Self::Tls12Aes128Gcm,
        Self::Tls12Aes256Gcm,
    ];

    /// The kernel's name for what was negotiated.
    pub fn of(suite: SupportedCipherSuite) -> Option<Self> {
        match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(Self::Tls13Aes128Gcm),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(Self::Tls13Aes256Gcm),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(Self::Tls13Chacha20Poly1305),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(Self::Tls12Aes128Gcm),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(Self::Tls12Aes256Gcm),
            _ => None,
        }
    }

    /// The uapi's version, cipher and key length.
    pub(crate) fn uapi(self) -> (u16, u16, usize) {
        use libc::{TLS_1_2_VERSION, TLS_1_3_VERSION};
        let (aes128, aes256) = (libc::TLS_CIPHER_AES_GCM_128, libc::TLS_CIPHER_AES_GCM_256);
        match self {
            Self::Tls13Aes128Gcm => (TLS_1_3_VERSION, aes128, 16),
            Self::Tls13Aes256Gcm => (TLS_1_3_VERSION, aes256, 32),
            Self::Tls13Chacha20Poly1305 => (TLS_1_3_VERSION, libc::TLS_CIPHER_CHACHA20_POLY1305, 32),
            Self::Tls12Aes128Gcm => (TLS_1_2_VERSION, aes128, 16),
            Self::Tls12Aes256Gcm => (TLS_1_2_VERSION, aes256, 32),
        }
    }

    /// Whether the version is 1.3.
    pub fn is_tls13(self) -> bool {
        self.uapi().0 == libc::TLS_1_3_VERSION
    }

    /// Records that one key may protect (RFC 8446 section 5.5: 2^24.5 for AES-GCM; rounded down).
    pub fn record_limit(self) -> u64 {
        match self {
            Self::Tls13Chacha20Poly1305 => u64::MAX,
            _ => 1 << 24,
        }
    }
}

impl KernelTls {
    /// Nothing works, for this reason.
    pub fn unavailable(reason: &str) -> Self {
        let no = || Err(reason.to_owned());
        Self { ulp: no(), ciphers: Vec::new(), rekey: no(), splice: no(), expect_no_pad: no() }
    }

    /// Whether a session with this suite can be offloaded.
    pub fn carries(&self, suite: SupportedCipherSuite) -> bool {
        self.ulp.is_ok() && KernelCipher::of(suite).is_some_and(|cipher| self.ciphers.contains(&cipher))
    }
}

impl std::fmt::Display for KernelTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let say = |found: &Result<(), String>| match found {
            Ok(()) => "yes".to_owned(),
            Err(reason) => format!("no ({reason})"),
        };
        write!(
            f,
            "kernel TLS: {}; ciphers: {:?}; rekey: {}; splice: {}; expect-no-pad: {}",
            say(&self.ulp),
            self.ciphers,
            say(&self.rekey),
            say(&self.splice),
            say(&self.expect_no_pad)
        )
    }
}

/// A connection whose records the kernel makes.
pub struct Offloaded {
    pub(crate) stream: TcpStream,
    pub(crate) session: KernelSession,
    pub(crate) cipher: KernelCipher,
    /// Decrypted before the offload; goes to the application first.
    pub(crate) plaintext: Vec<u8>,
    pub(crate) peer_closed: bool,
    /// Records sent with the present key.
    pub(crate) records_sent: u64,
    pub(crate) can_rekey: bool,
    proven: Proven,
    facts: SessionFacts,
}

impl Offloaded {
    /// Who the peer is.
    pub fn proven(&self) -> &Proven {
        &self.proven
    }

    /// What was negotiated.
    pub fn facts(&self) -> SessionFacts {
        self.facts
    }

    /// Which end the peer is.
    pub fn peer_role(&self) -> PeerRole {
        match self.session {
            KernelSession::Client(_) => PeerRole::Server,
            KernelSession::Server(_) => PeerRole::Client,
        }
    }
}

/// Why a connection was not offloaded.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// Nothing has changed; go on in user space.
    #[error("kernel TLS is not used for this connection: {reason}")]
    NotOffloaded {
        /// The connection as it was.
        established: Box<Established>,
        /// Why.
        reason: String,
    },
    /// The keys have left rustls and the kernel refused them: the connection cannot go on.
    #[error("the kernel refused the keys of a connection: {0}; it must be closed")]
    Lost(#[source] io::Error),
}

impl Established {
    /// Gives the connection to the kernel. Waits at most `patience` for the rest of a record that has been
    /// read in part, and for what must be sent before the keys go.
    pub async fn offload(self, kernel: &KernelTls, patience: Duration) -> Result<Offloaded, OffloadError> {
        let mut established = self;
        let cipher = KernelCipher::of(established.facts().cipher_suite);
        let Some(cipher) = cipher.filter(|cipher| kernel.ulp.is_ok() && kernel.ciphers.contains(cipher))
        else {
            return Err(not_offloaded(established, "the kernel does not carry this cipher".to_owned()));
        };
        match tokio::time::timeout(patience, established.settle()).await {
            Ok(Ok(())) => {}
            Ok(Err(unsettled)) => return Err(not_offloaded(established, unsettled.to_string())),
            Err(_) => return Err(not_offloaded(established, "a record stays incomplete".to_owned())),
        }
        if let Err(error) = ktls::attach_ulp(&established.stream) {
            return Err(not_offloaded(established, format!("TCP_ULP: {error}")));
        }
        established.into_offloaded(cipher, kernel).map_err(OffloadError::Lost)
    }

    fn into_offloaded(self, cipher: KernelCipher, kernel: &KernelTls) -> io::Result<Offloaded> {
        let (proven, facts) = (self.proven.clone(), self.facts());
        let version = facts.version;
        let (secrets, session) = self.session.into_kernel().map_err(io::Error::other)?;
        let (tx_sequence, tx) = &secrets.tx;
        let (rx_sequence, rx) = &secrets.rx;
        set_secrets(&self.stream, Direction::Transmit, cipher, *tx_sequence, tx)?;
        set_secrets(&self.stream, Direction::Receive, cipher, *rx_sequence, rx)?;
        if version == ProtocolVersion::TLSv1_3 && kernel.expect_no_pad.is_ok() {
            // An optimisation: refused, the connection works as well.
            let _ = ktls::expect_no_padding(&self.stream);
        }
        Ok(Offloaded {
            stream: self.stream,
            session,
            cipher,
            plaintext: self.plaintext,
            peer_closed: self.peer_closed,
            records_sent: *tx_sequence,
            can_rekey: kernel.rekey.is_ok() && version == ProtocolVersion::TLSv1_3,
            proven,
            facts,
        })
    }
}

/// Gives the kernel one direction's keys as rustls extracted them.
pub(crate) fn set_secrets(
    stream: &TcpStream,
    direction: Direction,
    cipher: KernelCipher,
    sequence: u64,
    secrets: &ConnectionTrafficSecrets,
) -> io::Result<()> {
    let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
    else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this cipher has no kernel TLS form"));
    };
    let (version, uapi_cipher, key_bytes) = cipher.uapi();
    let (Ok(iv), Some(key)) = (<&[u8; 12]>::try_from(iv.as_ref()), key.as_ref().get(..key_bytes)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the secrets do not fit their cipher"));
    };
    ktls::set_keys(stream, direction, ktls::Keys { version, cipher: uapi_cipher, key, iv, sequence })
}

fn not_offloaded(established: Established, reason: String) -> OffloadError {
    OffloadError::NotOffloaded { established: Box::new(established), reason }
}
