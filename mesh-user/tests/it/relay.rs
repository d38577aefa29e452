//! The relay kinds a story can run with, and why one is not to be had on this kernel.
//! What the kernel offers is found by doing; what the daemon has proven is asked from its own check.

use std::fmt;
use std::net::{TcpListener, TcpStream};
use std::sync::OnceLock;

use nix::sys::socket::{setsockopt, sockopt};

use super::ground::Ground;
use super::mesh::Mesh;

/// How bytes move between the application's socket and the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Relay {
    Userspace,
    Ktls,
    KtlsSplice,
}

impl Relay {
    pub(crate) const ALL: [Self; 3] = [Self::Userspace, Self::Ktls, Self::KtlsSplice];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Ktls => "ktls",
            Self::KtlsSplice => "ktls-splice",
        }
    }

    /// Whether the kernel encrypts.
    pub(crate) fn is_kernel(self) -> bool {
        self != Self::Userspace
    }
}

impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reason `relay` cannot be tried here, if there is one.
pub(crate) fn why_unavailable(relay: Relay) -> Option<String> {
    static KERNEL: OnceLock<Option<String>> = OnceLock::new();
    static SPLICE: OnceLock<Option<String>> = OnceLock::new();
    if !relay.is_kernel() {
        return None;
    }
    let no_tls = KERNEL.get_or_init(|| kernel_tls().err().map(|e| format!("this kernel has no TLS ({e})")));
    if no_tls.is_some() {
        return no_tls.clone();
    }
    if relay == Relay::Ktls {
        return None;
    }
    SPLICE
        .get_or_init(|| {
            why_not_proven("kernel TLS splice").unwrap_or_else(|error| Some(format!("{error:#}")))
        })
        .clone()
}

/// Asks a daemon of its own.
fn why_not_proven(capability: &str) -> anyhow::Result<Option<String>> {
    let ground = Ground::lay("what is proven here", Relay::Userspace)?;
    let mut mesh = Mesh::given(&ground)?;
    mesh.configure()?;
    mesh.a.start()?;
    mesh.a.why_not_proven(capability)
}

/// Sets the `tls` upper layer protocol on a connection of our own; loads the module on the way where there is one.
fn kernel_tls() -> std::io::Result<()> {
    let _ = std::process::Command::new("modprobe").arg("tls").stderr(std::process::Stdio::null()).status();
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    setsockopt(&client, sockopt::TcpUlp::default(), b"tls").map_err(std::io::Error::from)
}
