//! The canary's child: an application that knows nothing of the mesh, client in one namespace and server in
//! the other. It says on its standard output what it saw, a line for each thing, and ends with its input.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    super::{CaptureError, CaptureSettings, Form},
    HELD_FLAG, PEER_COMMAND, SERVER_PORT, STEP_LIMIT,
    script::accept_within,
    stage::{ChildCgroup, SERVER, Stage, failed},
};
use crate::sys::netns::NetNs;

/// How the child's line begins where its client could not connect.
pub(super) const CONNECT_FAILED: &str = "connect failed";
const IPPROTO_MPTCP: i32 = 262;

/// The part of a child, as its command line says.
#[derive(Debug, clap::Args)]
pub struct PeerPart {
    /// Play the part in which connects are held.
    #[arg(long)]
    held: bool,
    /// The client's network namespace.
    client: PathBuf,
    /// The server's network namespace.
    server: PathBuf,
    /// The `cgroup.procs` to move to.
    cgroup_processes: Option<PathBuf>,
}

impl PeerPart {
    /// Plays it.
    ///
    /// # Errors
    /// When it cannot be played.
    pub fn play(&self) -> Result<(), PeerError> {
        let play = if self.held { run_held } else { run };
        play(&self.client, &self.server, self.cgroup_processes.as_deref())
    }
}

/// Why the child could not play its part.
#[derive(Debug, thiserror::Error)]
#[error("the canary's peer could not {action}: {source}")]
pub struct PeerError {
    action: &'static str,
    source: io::Error,
}

fn peer_failed(action: &'static str) -> impl FnOnce(io::Error) -> PeerError {
    move |source| PeerError { action, source }
}

/// What the child says of a connect that was refused.
pub(super) const REFUSED: &str = "refused";
/// Where it expects that.
pub(super) const REFUSED_PORT: u16 = SERVER_PORT + 1;

/// The child's life where connects are held: one that succeeds and one that is refused, for each family.
///
/// # Errors
/// As [`run`].
fn run_held(client: &Path, server: &Path, cgroup_processes: Option<&Path>) -> Result<(), PeerError> {
    let (client, listeners) = begin(client, server, cgroup_processes)?;
    for listener in &listeners {
        let address = listener.local_addr().map_err(peer_failed("read its listener's address"))?;
        let stream = connect(&client, address);
        let line = match &stream {
            Ok(stream) => client_line(stream),
            Err(error) => format!("{CONNECT_FAILED}: {error}"),
        };
        say(&line).map_err(peer_failed("report"))?;
        let line = match connect(&client, SocketAddr::new(address.ip(), REFUSED_PORT)) {
            Ok(_) => "connected".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => REFUSED.to_owned(),
            Err(error) => format!("{CONNECT_FAILED}: {error}"),
        };
        say(&line).map_err(peer_failed("report"))?;
    }
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

/// Enters its cgroup and listens on the server's addresses, as far as there are such.
fn begin(
    client: &Path,
    server: &Path,
    cgroup_processes: Option<&Path>,
) -> Result<(NetNs, Vec<TcpListener>), PeerError> {
    if let Some(processes) = cgroup_processes {
        // Before any socket: the cgroup in which a socket is made is the one that counts.
        fs::write(processes, "0").map_err(peer_failed("enter its cgroup"))?;
    }
    let client = NetNs::open(client).map_err(peer_failed("open the client's namespace"))?;
    let server = NetNs::open(server).map_err(peer_failed("open the server's namespace"))?;
    let listeners: Vec<_> = SERVER
        .iter()
        .map(|address| SocketAddr::new(*address, SERVER_PORT))
        .filter_map(|address| server.run_in(|| TcpListener::bind(address)).and_then(|bound| bound).ok())
        .collect();
    say(&format!("listening {}", listeners.len())).map_err(peer_failed("report"))?;
    Ok((client, listeners))
}

/// The child's whole life. `cgroup_processes` is the file that moves it; without one it stays where it is.
///
/// # Errors
/// When something of its own failed; what it was shown wrongly is for the parent to judge.
fn run(client: &Path, server: &Path, cgroup_processes: Option<&Path>) -> Result<(), PeerError> {
    let (client, listeners) = begin(client, server, cgroup_processes)?;
    let mut clients = Vec::new();
    for address in SERVER.iter().map(|address| SocketAddr::new(*address, SERVER_PORT)).take(listeners.len()) {
        let line = match connect(&client, address) {
            Ok(stream) => {
                let line = client_line(&stream);
                clients.push(stream);
                line
            }
            Err(error) => format!("{CONNECT_FAILED}: {error}"),
        };
        say(&line).map_err(peer_failed("report"))?;
    }
    say(&mptcp_line(&client)).map_err(peer_failed("report"))?;
    for listener in &listeners {
        let line = match accept_within(listener, STEP_LIMIT) {
            Ok((stream, shown)) => match stream.peer_addr() {
                Ok(named) => format!("{shown} {named}"),
                Err(error) => format!("getpeername failed: {error}"),
            },
            Err(error) => format!("accept failed: {error}"),
        };
        say(&line).map_err(peer_failed("report"))?;
    }
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn connect(client: &NetNs, address: SocketAddr) -> io::Result<TcpStream> {
    let socket =
        client.run_in(|| Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)))??;
    socket.connect_timeout(&address.into(), STEP_LIMIT)?;
    Ok(socket.into())
}

fn client_line(stream: &TcpStream) -> String {
    match (stream.peer_addr(), stream.local_addr()) {
        (Ok(peer), Ok(local)) => format!("{peer} {local}"),
        (peer, local) => format!("getpeername {peer:?}, getsockname {local:?}"),
    }
}

/// Whether MPTCP sockets can be had in the enrolled namespace, and at all.
fn mptcp_line(client: &NetNs) -> String {
    let make = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP)));
    let word = |made: io::Result<Socket>| made.map_or_else(|error| error.to_string(), |_| "made".to_owned());
    let enrolled = word(client.run_in(make).and_then(|made| made));
    format!("{enrolled}|{}", word(make()))
}

/// The parent's side of the child.
#[derive(Debug)]
pub(super) struct Child {
    process: process::Child,
    _input: Option<ChildStdin>,
    lines: Receiver<String>,
    /// After the process: a cgroup with processes cannot be removed.
    _cgroup: Option<ChildCgroup>,
}

impl Child {
    /// `settings` are the canary's own.
    pub(super) fn start(settings: &CaptureSettings, stage: &Stage) -> Result<Self, CaptureError> {
        let (attached, runtime_dir) = (&settings.cgroup, &settings.runtime_dir);
        // Where cgroups are read-only the child stays in meshd's own, which may be below the attached one.
        let cgroup = ChildCgroup::create(attached, runtime_dir)
            .inspect_err(|error| tracing::info!(%error, "the canary runs in meshd's own cgroup"))
            .ok();
        let mut command = Command::new("/proc/self/exe");
        command.arg(PEER_COMMAND);
        if settings.form == Form::Hold {
            command.arg(HELD_FLAG);
        }
        command.args([stage.client.path_for_others(), stage.server.path_for_others()]);
        command.args(cgroup.as_ref().map(ChildCgroup::processes).iter().map(PathBuf::as_path));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(failed("start its child"))?;
        let input = process.stdin.take();
        let (sender, lines) = mpsc::channel();
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { process, _input: input, lines, _cgroup: cgroup })
    }

    /// How many address families it listens on, which it says first.
    pub(super) fn families(&self) -> Result<usize, String> {
        let line = self.line()?;
        let count = line.strip_prefix("listening ").and_then(|count| count.parse().ok());
        count.filter(|count| *count > 0).ok_or_else(|| format!("the canary's child cannot listen: {line}"))
    }

    /// What the child says next.
    pub(super) fn line(&self) -> Result<String, String> {
        self.lines.recv_timeout(STEP_LIMIT).map_err(|_| "the canary's child said nothing".to_owned())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Its work is done or has failed; an error means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
