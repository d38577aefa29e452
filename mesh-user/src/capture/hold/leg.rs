//! One held connect: completed by TCP's simultaneous open (RFC 9293 section 3.5), so that the application's
//! `connect` returns at that moment, or answered with the error that fits, or left unanswered.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_common::HeldConnect;
use tokio::{net::TcpStream, time};
use tokio_util::sync::CancellationToken;

use super::{Desk, answer};
use crate::{
    capture::{Refusal, WorkloadNet},
    sys::socket::{finish_connect, reset_on_close},
};

/// Bound on a simultaneous open: both ends are on this machine's loopback.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// An earlier connection from the same port may be in TIME-WAIT, which loopback lets go after a second
/// (`tcp_twsk_unique`, `net/ipv4/tcp_ipv4.c`).
const TIME_WAIT_PAUSE: Duration = Duration::from_millis(250);
/// An ICMP error that arrives while the application's own call holds the socket is lost: repeat it.
const ICMP_REPEAT: Duration = Duration::from_millis(20);
const ICMP_TIMES: u32 = 3;

/// A captured `connect` whose SYN is held. Dropping it leaves the SYN unanswered; the client's next one is a
/// new chance.
#[derive(Debug)]
pub struct HeldLeg {
    desk: Arc<Desk>,
    net: Arc<WorkloadNet>,
    socket_cookie: u64,
    number: usize,
    client: SocketAddr,
    syn: u32,
    given_up: CancellationToken,
}

impl Drop for HeldLeg {
    fn drop(&mut self) {
        self.desk.forget(self.socket_cookie, self.number);
    }
}

impl HeldLeg {
    pub(super) fn new(
        (desk, number): (&Arc<Desk>, usize),
        net: &Arc<WorkloadNet>,
        held: &HeldConnect,
        given_up: CancellationToken,
    ) -> Self {
        let port = u16::try_from(held.client_port_host).unwrap_or_default();
        let address: std::net::IpAddr = held.client.into();
        Self {
            desk: Arc::clone(desk),
            net: Arc::clone(net),
            socket_cookie: held.socket_cookie,
            number,
            client: SocketAddr::new(address.to_canonical(), port),
            syn: held.sequence,
            given_up,
        }
    }

    /// The application's end on loopback.
    pub(super) fn client(&self) -> SocketAddr {
        self.client
    }

    /// Where the application's SYN was sent: meshd's port, where nobody listens.
    fn own_end(&self) -> SocketAddr {
        let port = self.net.outbound_port();
        if self.client.is_ipv4() {
            (Ipv4Addr::LOCALHOST, port).into()
        } else {
            (Ipv6Addr::LOCALHOST, port).into()
        }
    }

    /// Ends when the application closes its socket while it waits.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Completes the application's `connect`.
    ///
    /// # Errors
    /// When the application has gone meanwhile, or its socket did not answer.
    pub(crate) async fn complete(self) -> io::Result<TcpStream> {
        let opened = time::timeout(OPEN_LIMIT, self.open()).await;
        let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if opened.is_ok() {
            self.desk.complete(self.socket_cookie, self.syn);
        }
        opened
    }

    async fn open(&self) -> io::Result<TcpStream> {
        loop {
            // Its port may have another connect by now, which this one must not meet.
            if self.given_up.is_cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let opened = match self.net.simultaneous_open(self.own_end(), self.client) {
                Ok(socket) => finish_connect(socket).await,
                Err(error) => Err(error),
            };
            match opened {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    time::sleep(TIME_WAIT_PAUSE).await;
                }
                Ok(stream) if self.given_up.is_cancelled() => {
                    reset_on_close(&stream);
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                result => return result,
            }
        }
    }

    /// Answers the application's `connect` with an error.
    pub(crate) async fn refuse(self, refusal: Refusal) {
        let syn = answer::Syn { from: self.client, to: self.own_end(), sequence: self.syn };
        let sent = match refusal {
            Refusal::Unanswered => Ok(()),
            Refusal::Refused => answer::reset(&syn).and_then(|packet| self.send(&packet)),
            Refusal::Unreachable => self.unreachable(&syn).await,
        };
        if let Err(error) = sent {
            tracing::warn!(client = %self.client, %error, "a held connect cannot be refused; it will time out");
        }
    }

    async fn unreachable(&self, syn: &answer::Syn) -> io::Result<()> {
        let packet = answer::unreachable(syn)?;
        for _ in 0..ICMP_TIMES {
            self.send(&packet)?;
            if time::timeout(ICMP_REPEAT, self.given_up()).await.is_ok() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.net.send_raw(packet, self.client)
    }
}
