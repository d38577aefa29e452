//! Where callers come in: TCP with TLS 1.3, and a Unix socket whose other end the kernel knows. Bounds how many there are,
//! how long each takes to say what it wants, and how long it stays.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, interval, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use super::{
    Service,
    door::{Activity, Door, record},
};
use crate::{
    ca::callers::Peer,
    config::AuthorityConfig,
    tls::{HandshakeError, PeerRole, VerifiedPeer, service_config},
};

/// How long a connection that was asked to end may take for what it has begun.
const GRACE: Duration = Duration::from_secs(20);
/// How often idle connections are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Silent peers are asked whether they are there, and have this long to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Buffers of one stream and of one connection, in bytes.
const WINDOWS: (u32, u32) = (64 * 1024, 256 * 1024);

/// Why nobody can come in.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be had.
    #[error("{address} cannot be served: {source}; choose another in listen")]
    Address {
        /// As configured.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The Unix socket cannot be made.
    #[error("the socket {} cannot be made: {source}; see unixSocket.path", path.display())]
    Socket {
        /// As configured.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something that is no socket lies at its path.
    #[error("{} exists and is no socket; move it away or set another unixSocket.path", .0.display())]
    NotASocket(PathBuf),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] HandshakeError),
}

/// Bound sockets, not served yet.
#[derive(Debug)]
pub struct Listeners {
    network: Vec<TcpListener>,
    local: Option<UnixListener>,
}

impl Listeners {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// When an address or the socket's path cannot be had.
    pub async fn bind(config: &AuthorityConfig) -> Result<Self, ListenError> {
        let mut network = Vec::new();
        for &address in &config.listen {
            let bound = TcpListener::bind(address).await;
            network.push(bound.map_err(|source| ListenError::Address { address, source })?);
        }
        let local =
            config.unix_socket.as_ref().map(|socket| bind_local(&socket.path, !socket.uids.is_empty()));
        Ok(Self { network, local: local.transpose()? })
    }

    /// The addresses in use.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.network.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until told to stop, and then until what was begun has ended, for twenty seconds at most.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn serve(self, service: Arc<Service>, stop: CancellationToken) -> Result<(), ListenError> {
        let tls = service_config(Arc::clone(&service.verifier), service.own.clone(), &[b"h2"])?;
        let hall = Hall {
            tls: TlsAcceptor::from(Arc::new(tls)),
            routes: service.routes(),
            slots: Arc::new(Semaphore::new(service.limits.connections as usize)),
            addresses: Arc::default(),
            guests: TaskTracker::new(),
            service,
            stop: stop.clone(),
        };
        for listener in self.network {
            tokio::spawn(hall.clone().welcome_network(listener));
        }
        if let Some(listener) = self.local {
            tokio::spawn(hall.clone().welcome_local(listener));
        }
        stop.cancelled().await;
        hall.guests.close();
        // Those that do not end now end with the process.
        let _ = timeout(GRACE + LOOK, hall.guests.wait()).await;
        Ok(())
    }
}

/// Bound under another name and renamed with its mode set: nobody can connect in between. Where users other than root are
/// agents, everybody may connect and the kernel's word decides.
fn bind_local(path: &Path, others: bool) -> Result<UnixListener, ListenError> {
    if fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_socket()) {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    let failed = |source| ListenError::Socket { path: path.to_owned(), source };
    let unready = path.with_extension(format!("new.{}", std::process::id()));
    let _absent = fs::remove_file(&unready);
    let listener = UnixListener::bind(&unready).map_err(failed)?;
    let mode = if others { 0o666 } else { 0o600 };
    fs::set_permissions(&unready, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&unready, path))
        .map_err(failed)?;
    Ok(listener)
}

/// Connections by address.
type Addresses = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// A connection's place; gives it back when dropped.
struct Place {
    _slot: OwnedSemaphorePermit,
    address: Option<(IpAddr, Addresses)>,
    service: Arc<Service>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.service.metrics.connection(-1);
        let Some((address, addresses)) = &self.address else { return };
        let mut addresses = addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(address);
            }
        }
    }
}

#[derive(Clone)]
struct Hall {
    service: Arc<Service>,
    routes: Routes,
    tls: TlsAcceptor,
    slots: Arc<Semaphore>,
    addresses: Addresses,
    guests: TaskTracker,
    stop: CancellationToken,
}

impl Hall {
    async fn welcome_network(self, listener: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            let Some((stream, address)) = self.accepted(accepted).await else { continue };
            match self.place(Some(address.ip().to_canonical())) {
                Ok(place) => drop(self.guests.spawn(self.clone().serve_network(stream, address, place))),
                Err(what) => self.turn_away(&address.to_string(), what),
            }
        }
    }

    async fn welcome_local(self, listener: UnixListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            let Some((stream, _)) = self.accepted(accepted).await else { continue };
            match self.place(None) {
                Ok(place) => drop(self.guests.spawn(self.clone().serve_local(stream, place))),
                Err(what) => self.turn_away("unix", what),
            }
        }
    }

    async fn accepted<T>(&self, accepted: io::Result<T>) -> Option<T> {
        match accepted {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                // EMFILE and its like stay until something closes: without a pause this loop would take a whole core.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }

    fn place(&self, address: Option<IpAddr>) -> Result<Place, &'static str> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| "too many connections")?;
        if let Some(address) = address {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.entry(address).or_default();
            if *count >= self.service.limits.connections_per_address {
                return Err("too many connections of one address");
            }
            *count += 1;
        }
        self.service.metrics.connection(1);
        let address = address.map(|address| (address, Arc::clone(&self.addresses)));
        Ok(Place { _slot: slot, address, service: Arc::clone(&self.service) })
    }

    fn turn_away(&self, peer: &str, what: &str) {
        record(&self.service, "connect", peer, "busy", what.to_owned());
    }

    async fn serve_network(self, stream: TcpStream, address: SocketAddr, place: Place) {
        let refuse =
            |reason, detail| record(&self.service, "handshake", &address.to_string(), reason, detail);
        // Small messages that wait for each other; without it only slower.
        let _slower = stream.set_nodelay(true);
        let stream = match timeout(self.service.limits.handshake_timeout(), self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return refuse("handshake", error.to_string()),
            Err(_elapsed) => return refuse("timeout", "the handshake did not end in time".to_owned()),
        };
        let certificate = match self.certificate(&stream) {
            Ok(certificate) => certificate,
            Err(error) => return refuse("bad_certificate", error),
        };
        self.serve(stream, Peer::Network { address, certificate }, place).await;
    }

    /// Whose certificate the handshake has proven; the verifier remembers what it believed then.
    fn certificate(
        &self,
        stream: &tokio_rustls::server::TlsStream<TcpStream>,
    ) -> Result<Option<Arc<VerifiedPeer>>, String> {
        let Some(chain) = stream.get_ref().1.peer_certificates() else { return Ok(None) };
        let verified = self.service.verifier.verify(chain, PeerRole::Client, None, SystemTime::now());
        verified.map(|peer| Some(Arc::new(peer))).map_err(|error| error.to_string())
    }

    async fn serve_local(self, stream: UnixStream, place: Place) {
        match stream.peer_cred() {
            Ok(who) => self.serve(stream, Peer::Local { uid: who.uid(), pid: who.pid() }, place).await,
            Err(error) => record(&self.service, "connect", "unix", "unknown_user", error.to_string()),
        }
    }

    async fn serve<S>(self, stream: S, peer: Peer, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = &self.service.limits;
        let activity = Arc::new(Activity::new());
        let door = Door {
            service: Arc::clone(&self.service),
            routes: self.routes.clone(),
            peer,
            activity: Arc::clone(&activity),
        };
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_bytes)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), door));
        let mut end = Instant::now() + limits.connection_age();
        let mut ending = false;
        let mut look = interval(LOOK);
        loop {
            let ask = tokio::select! {
                _ended = &mut connection => break,
                () = self.stop.cancelled(), if !ending => true,
                () = sleep_until(end) => {
                    if ending {
                        break;
                    }
                    true
                }
                _ = look.tick() => !ending && activity.quiet_since().is_some_and(|since| since.elapsed() > limits.idle_timeout()),
            };
            if ask {
                connection.as_mut().graceful_shutdown();
                (ending, end) = (true, Instant::now() + GRACE);
            }
        }
        drop(place);
    }
}
