//! The socket: gRPC without TLS, for whoever can reach it in the file system. Its mode lets everybody connect, since what
//! somebody gets there is decided by who it is. Connections, calls and their sizes are bounded per caller, so that no
//! workload keeps another one from its SVID.

use std::{
    collections::HashMap,
    fs, io,
    num::NonZeroU32,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use futures_util::stream::unfold;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    transport::{Server, server::Connected},
};

use super::{
    MAX_ANSWER_BYTES, SECURITY_HEADER,
    authority::Rewriter,
    caller::Share,
    service::{Service, WorkloadApiParts},
};
use crate::{
    ca::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer,
    sys::{
        clock::boot_time,
        peer::{Peer, is_quiet},
    },
};

/// Longer than any request that is one: a token and an audience.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Between looks at a connection that says nothing, and how long it may take to answer one.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApiSettings {
    /// The socket. Its folder is made when it is missing, so that everybody may go through it.
    pub socket: PathBuf,
    /// Bounds.
    pub limits: WorkloadApiLimits,
}

/// Bounds on callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadApiLimits {
    /// Connections at once.
    pub connections: usize,
    /// Of those, connections of one network namespace, or of one user in the node's own.
    pub connections_per_caller: usize,
    /// Calls at once on a connection.
    pub streams: u32,
    /// Calls per second of one network namespace or user, with as many again at once.
    pub calls_per_second: u32,
    /// How long after a caller's process left its workload it is noticed, where nothing else happens.
    pub recheck: Duration,
}

impl Default for WorkloadApiLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_caller: 256,
            streams: 16,
            calls_per_second: 100,
            recheck: Duration::from_secs(15),
        }
    }
}

/// Why the Workload API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something else lies at the socket's path.
    #[error("{0} exists and is not a socket; move it away or set another workloadApi.socket")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("the Workload API's socket {path} cannot be made: {source}; check workloadApi.socket")]
    Bind {
        /// Its path.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// The kernel cannot tell callers apart well enough.
    #[error("callers of the Workload API cannot be identified: {0}; set workloadApi.enabled to false")]
    Callers(io::Error),
}

/// The bound socket; removes its file when dropped, if the file is still its own.
#[derive(Debug)]
pub struct WorkloadApiServer {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    limits: WorkloadApiLimits,
}

impl WorkloadApiServer {
    /// Binds the socket. One that lies there is replaced: the caller sees to it that it is no living daemon's. Must be
    /// called in a runtime.
    ///
    /// # Errors
    /// When the path cannot be used, or the kernel does not tell who connects.
    pub fn bind(settings: &WorkloadApiSettings) -> Result<Self, ServerError> {
        let path = settings.socket.clone();
        let failed = |source| ServerError::Bind { path: path.clone(), source };
        identifies_callers().map_err(ServerError::Callers)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_folder(folder).map_err(failed)?;
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.file_type().is_socket()) {
            return Err(ServerError::NotASocket(path));
        }
        // Bound under another name and renamed with its mode set: no caller is refused in between.
        let unready = folder.join(format!(".workload.{}", std::process::id()));
        let _absent = fs::remove_file(&unready);
        let listener = UnixListener::bind(&unready).map_err(failed)?;
        let inode = fs::set_permissions(&unready, fs::Permissions::from_mode(0o666))
            .and_then(|()| fs::rename(&unready, &path))
            .and_then(|()| fs::symlink_metadata(&path))
            .map_err(failed)?
            .ino();
        Ok(Self { listener, path, inode, limits: settings.limits })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until cancelled.
    ///
    /// # Errors
    /// When the node's own network namespace cannot be told, or the server ends by itself.
    pub async fn serve(self, parts: WorkloadApiParts, stop: CancellationToken) -> Result<(), ServerError> {
        let service = Service::new(parts, self.limits, stop.clone()).map_err(ServerError::Callers)?;
        self.serve_service(service, stop).await
    }

    pub(super) async fn serve_service(
        self,
        service: Arc<Service>,
        stop: CancellationToken,
    ) -> Result<(), ServerError> {
        let (path, limits) = (self.path.clone(), self.limits);
        let callers = SpiffeWorkloadApiServer::new(Arc::clone(&service))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_ANSWER_BYTES);
        let guarded = tonic::service::interceptor::InterceptedService::new(callers, must_be_meant);
        let accepting = Accepting { server: self, service, accounts: Arc::default(), quiet: Duration::ZERO };
        let incoming = unfold(accepting, |mut accepting| async move {
            let connection = accepting.next().await;
            Some((Ok::<_, io::Error>(connection), accepting))
        });
        let served = Server::builder()
            .max_concurrent_streams(limits.streams)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(guarded)
            .serve_with_incoming_shutdown(Box::pin(incoming), stop.cancelled_owned());
        served.await.map_err(|error| ServerError::Bind { path, source: io::Error::other(error) })
    }
}

impl Drop for WorkloadApiServer {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Tries it out on a pair of our own.
fn identifies_callers() -> io::Result<()> {
    let (one, _other) = std::os::unix::net::UnixStream::pair()?;
    // As if nobody had connected before now: we were there.
    Peer::of(&one, boot_time())?.look().map(drop)
}

/// A folder that is there is left as it is.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // Whatever the umask took away.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

/// SPIFFE Workload Endpoint section 5.1.
#[allow(clippy::result_large_err, reason = "tonic's own type")]
fn must_be_meant(request: Request<()>) -> Result<Request<()>, Status> {
    let mut said = request.metadata().get_all(SECURITY_HEADER).iter();
    match (said.next(), said.next()) {
        (Some(value), None) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) peer: Arc<Peer>,
    pub(super) account: Arc<Account>,
}

/// What the connections of one caller share.
pub(super) struct Account {
    limiter: Option<DefaultDirectRateLimiter>,
}

impl Account {
    fn new(calls_per_second: u32) -> Self {
        let quota = NonZeroU32::new(calls_per_second).map(Quota::per_second);
        Self { limiter: quota.map(RateLimiter::direct) }
    }

    /// Whether one more call is all right.
    pub(super) fn spend(&self) -> bool {
        self.limiter.as_ref().is_none_or(|limiter| limiter.check().is_ok())
    }
}

/// What is known of one caller.
struct Open {
    account: Arc<Account>,
    connections: usize,
    /// When the last connection came or went.
    since: Instant,
}

/// Who closes its last connection and comes back finds what it has spent: an account is forgotten when it is full again.
type Accounts = Mutex<HashMap<Share, Open>>;

const REFILL: Duration = Duration::from_secs(2);

struct Accepting {
    server: WorkloadApiServer,
    service: Arc<Service>,
    accounts: Arc<Accounts>,
    /// When no connection waited, last.
    quiet: Duration,
}

impl Accepting {
    async fn next(&mut self) -> Connection {
        loop {
            let (listener, quiet) = (&self.server.listener, &mut self.quiet);
            let accepted = std::future::poll_fn(|context| {
                let now = boot_time();
                let accepted = listener.poll_accept(context);
                // Pending may also mean that nobody has looked at the socket yet.
                if accepted.is_pending() && is_quiet(listener).unwrap_or(false) {
                    *quiet = now;
                }
                accepted
            });
            match accepted.await {
                Ok((stream, _)) => match self.admit(stream) {
                    Ok(connection) => return connection,
                    Err(why) => tracing::debug!(%why, "a connection to the Workload API was closed"),
                },
                Err(error) => {
                    // EMFILE and its like stay until something closes.
                    tracing::warn!(%error, "a connection to the Workload API could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, stream: UnixStream) -> io::Result<Connection> {
        let peer = Arc::new(Peer::of(&stream, self.quiet)?);
        let share = self.service.attestor().share(&peer)?;
        let limits = self.server.limits;
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        accounts.retain(|_, open| open.connections > 0 || now < open.since + REFILL);
        let all: usize = accounts.values().map(|open| open.connections).sum();
        let own = accounts.get(&share).map_or(0, |open| open.connections);
        if all >= limits.connections || own >= limits.connections_per_caller {
            return Err(io::Error::other(format!("too many: {all} in all, {own} of this caller")));
        }
        let open = accounts.entry(share).or_insert_with(|| {
            let account = Arc::new(Account::new(limits.calls_per_second));
            Open { account, connections: 0, since: now }
        });
        (open.connections, open.since) = (own + 1, now);
        let caller = Caller { peer, account: Arc::clone(&open.account) };
        let accounts = Arc::clone(&self.accounts);
        Ok(Connection {
            stream,
            rewriter: Rewriter::default(),
            ready: BytesMut::new(),
            caller,
            share,
            accounts,
        })
    }
}

/// A connection that knows its caller.
struct Connection {
    stream: UnixStream,
    rewriter: Rewriter,
    /// Rewritten and not yet read.
    ready: BytesMut,
    caller: Caller,
    share: Share,
    accounts: Arc<Accounts>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = accounts.get_mut(&self.share) {
            (open.connections, open.since) = (open.connections.saturating_sub(1), Instant::now());
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let mut bytes = [0; 4096];
        while own.ready.is_empty() {
            let mut read = ReadBuf::new(&mut bytes);
            std::task::ready!(Pin::new(&mut own.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            own.rewriter.feed(read.filled(), &mut own.ready)?;
        }
        let length = own.ready.len().min(buffer.remaining());
        buffer.put_slice(own.ready.get(..length).unwrap_or_default());
        own.ready.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
