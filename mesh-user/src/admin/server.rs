//! Listening for the admin API: binds the Unix socket (mode 0600, replaced in one step), refuses who may
//! not, and bounds connections, header sizes and time. The TCP listener serves metrics only.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{ca_keys, peer, routes, source::AdminSource};
use crate::ca::authority::Authority;

/// The socket's name in the runtime folder.
pub const SOCKET_NAME: &str = "admin.sock";

/// Bounds on clients.
#[derive(Debug, Clone, Copy)]
pub struct AdminLimits {
    /// Connections at once; more are closed at accept.
    pub connections: usize,
    /// Time for a request's header.
    pub header_timeout: Duration,
    /// Life of a connection.
    pub connection_timeout: Duration,
    /// Buffer per connection, and so the longest request header, in bytes; at least 8192.
    pub buffer_bytes: usize,
}

impl Default for AdminLimits {
    fn default() -> Self {
        Self {
            connections: 32,
            header_timeout: Duration::from_secs(5),
            connection_timeout: Duration::from_secs(60),
            buffer_bytes: 16 * 1024,
        }
    }
}

/// Why the admin API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something else lies at the socket's path.
    #[error("{0} exists and is not a socket; move it away or set another runtimeDir")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("the admin socket {path} cannot be made: {source}; check that runtimeDir exists and is writable")]
    Bind {
        /// Its path.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// The TCP listener cannot be made.
    #[error("metrics cannot be served on {address}: {source}; choose another metrics.listen")]
    BindMetrics {
        /// As configured.
        address: SocketAddr,
        /// The failing call's error.
        source: io::Error,
    },
}

/// A bound socket for root and the daemon's user; removes its file when dropped, if the file is still its own.
#[derive(Debug)]
pub(super) struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    limits: AdminLimits,
    own_uid: u32,
}

impl AdminSocket {
    /// Binds `<runtime_dir>/<name>`. The caller holds the runtime folder's lock, so a socket that lies
    /// there belongs to a dead daemon and is replaced.
    pub(super) fn bind(runtime_dir: &Path, name: &str, limits: AdminLimits) -> Result<Self, ServerError> {
        let path = runtime_dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.file_type().is_socket()) {
            return Err(ServerError::NotASocket(path));
        }
        let failed = |source| ServerError::Bind { path: path.clone(), source };
        // Bound under another name and renamed with its mode set: nobody can connect in between.
        let unready = runtime_dir.join(format!(".{name}.{}", std::process::id()));
        let _absent = fs::remove_file(&unready);
        let listener = UnixListener::bind(&unready).map_err(failed)?;
        let inode = fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&unready, &path))
            .and_then(|()| fs::symlink_metadata(&path))
            .map_err(failed)?
            .ino();
        Ok(Self { listener, path, inode, limits, own_uid: nix::unistd::geteuid().as_raw() })
    }

    /// Serves until cancelled; `refused` is told why a client was turned away.
    pub(super) async fn serve(self, router: Router, refused: impl Fn(&'static str), stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            if let Err(error) = peer::check(&stream, self.own_uid) {
                tracing::warn!(refused = %error, "admin connection closed");
                refused("credentials");
                continue;
            }
            if !spawn_connection(stream, &router, self.limits, &slots, &stop) {
                refused("limit");
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// The node's admin API on its socket.
#[derive(Debug)]
pub struct AdminServer(AdminSocket);

impl AdminServer {
    /// Binds `<runtime_dir>/admin.sock`. The caller holds the runtime folder's lock.
    pub fn bind(runtime_dir: &Path, limits: AdminLimits) -> Result<Self, ServerError> {
        AdminSocket::bind(runtime_dir, SOCKET_NAME, limits).map(Self)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Serves until cancelled.
    pub async fn serve(
        self,
        source: Arc<dyn AdminSource>,
        authority: Option<Authority>,
        stop: CancellationToken,
    ) {
        let mut router = routes::admin_router(Arc::clone(&source));
        if let Some(authority) = authority {
            router = router.merge(ca_keys::node_router(authority));
        }
        self.0.serve(router, |why| source.admin_refused(why), stop).await;
    }
}

/// The TCP listener that answers `GET /metrics` and nothing else; only where the configuration names an address.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    limits: AdminLimits,
}

impl MetricsServer {
    /// Binds it, so that a daemon that cannot have the address says so before it captures anything.
    pub async fn bind(address: SocketAddr, limits: AdminLimits) -> Result<Self, ServerError> {
        let failed = |source| ServerError::BindMetrics { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self { listener, limits })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until cancelled.
    pub async fn serve(self, source: Arc<dyn AdminSource>, stop: CancellationToken) {
        let router = routes::metrics_router(Arc::clone(&source));
        self.serve_router(router, |why| source.admin_refused(why), stop).await;
    }

    /// Serves another's metrics likewise.
    pub(super) async fn serve_router(
        self,
        router: Router,
        refused: impl Fn(&'static str),
        stop: CancellationToken,
    ) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    if !spawn_connection(stream, &router, self.limits, &slots, &stop) {
                        refused("metrics_limit");
                    }
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }
}

async fn pause_after(error: &io::Error) {
    // EMFILE and its like stay until something closes: without a pause this loop would take a whole core.
    tracing::warn!(%error, "an admin connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// False when there are too many connections; the stream is then closed.
pub(super) fn spawn_connection<S>(
    stream: S,
    router: &Router,
    limits: AdminLimits,
    slots: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
        tracing::warn!(limit = limits.connections, "too many admin connections; one more was closed");
        return false;
    };
    let service = TowerToHyperService::new(router.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.buffer_bytes.max(8192))
        .serve_connection(TokioIo::new(stream), service);
    let stop = stop.clone();
    tokio::spawn(async move {
        let limited = tokio::time::timeout(limits.connection_timeout, connection);
        if let Some(Ok(Err(error))) = stop.run_until_cancelled(limited).await {
            tracing::debug!(%error, "an admin connection ended badly");
        }
        drop(slot);
    });
    true
}
