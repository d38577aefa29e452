//! The far ends of sockets that no ready program offers: this very executable, started again inside a pod as
//! `integration __peer VERB ...`. A peer says what it saw as one JSON object a line; stories read those.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

mod ask;
mod authz;
mod bulk;
mod grpc;
mod many;
mod ring;
mod serve;
mod web_socket;

pub(crate) const VERB: &str = "__peer";

/// The argument vector that starts a peer.
pub(crate) fn command_line(args: &[&str]) -> Vec<String> {
    let own = std::env::current_exe().expect("the test executable has a path");
    let mut line = vec![own.to_string_lossy().into_owned(), VERB.to_owned()];
    line.extend(args.iter().map(|arg| (*arg).to_owned()));
    line
}

/// Plays the peer if this process was started as one.
pub(super) fn main() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_none_or(|verb| verb != VERB) {
        return None;
    }
    Some(match play(&Args(args[2..].to_vec())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// A peer's arguments: a verb, an address, `--option value` pairs and `--flag`s.
pub(super) struct Args(Vec<String>);

impl Args {
    fn address(&self) -> anyhow::Result<SocketAddr> {
        let text = self.0.get(1).context("an address is the second argument")?;
        text.parse().with_context(|| format!("address {text:?}"))
    }

    fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|arg| arg == name)
    }

    fn option(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|arg| arg == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn number(&self, name: &str, default: u64) -> anyhow::Result<u64> {
        self.option(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name} {text:?}")))
    }
}

fn play(args: &Args) -> anyhow::Result<()> {
    match args.0.first().map(String::as_str) {
        Some("serve") => serve::serve(args),
        Some("authz") => authz::serve(args),
        Some("probe") => probe(args),
        Some("ask") => ask::ask(args),
        Some("mptcp") => {
            mptcp();
            Ok(())
        }
        Some("ring-serve") => ring::serve(args),
        Some("ring-probe") => ring::probe(args),
        Some("grpc-serve") => grpc::serve(args),
        Some("grpc-call") => grpc::call(args),
        Some("ws-serve") => web_socket::serve(args),
        Some("ws-talk") => web_socket::talk(args),
        Some("bulk-serve") => bulk::serve(args),
        Some("bulk-probe") => bulk::probe(args),
        Some("short") => many::short(args),
        Some("idle") => many::idle(args),
        Some("half-open") => many::half_open(args),
        other => bail!("no such peer: {other:?}"),
    }
}

/// Says one thing that was seen, at once.
fn say(seen: &Value) {
    println!("{seen}");
    let _ = std::io::stdout().flush();
}

/// Connects, sends, listens until the connection ends or `--wait-ms` pass, and says all of it.
fn probe(args: &Args) -> anyhow::Result<()> {
    let to = args.address()?;
    let begun = Instant::now();
    let mut stream = match connect(args, to) {
        Ok(stream) => stream,
        Err(error) => {
            say(
                &json!({ "connect": name_of(&error), "received": 0, "ended": name_of(&error), "ms": ms_since(begun) }),
            );
            return Ok(());
        }
    };
    // One line at once, so that a story may act on the living connection.
    // A connection that was reset already has no addresses any more.
    say(&json!({ "event": "connected", "peer": stream.peer_addr().ok(), "local": stream.local_addr().ok() }));
    // The kernel tells of a reset once: where a write was told, the read after it sees an end of file.
    let mut refused = None;
    if let Some(text) = args.option("--send") {
        refused = stream.write_all(text.as_bytes()).err();
    }
    let repeats = args.number("--send-kib", 0)?;
    let mut sent_all = true;
    for _ in 0..repeats {
        if let Err(error) = stream.write_all(&[b'x'; 1024]) {
            sent_all = false;
            refused.get_or_insert(error);
        }
    }
    if args.flag("--shutdown") {
        let _ = stream.shutdown(Shutdown::Write);
    }
    if args.flag("--reset") {
        std::thread::sleep(Duration::from_millis(args.number("--before-reset-ms", 200)?));
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        return Ok(());
    }
    let end = begun + Duration::from_millis(args.number("--wait-ms", 5_000)?);
    let mut ended = read_to_end_until(&mut stream, end);
    if let Some(error) = refused.filter(|_| ended.how == "eof") {
        ended.how = name_of(&error);
    }
    say(&json!({
        "connect": "ok", "received": ended.bytes.len(), "ended": ended.how, "ms": ms_since(begun), "sent_all": sent_all,
        "text": String::from_utf8_lossy(&ended.bytes[..ended.bytes.len().min(4096)]),
    }));
    Ok(())
}

/// Connects as the arguments say: from an address and port, without blocking, through a v4-mapped address, with
/// options that lead packets elsewhere, with a socket made before `--connect-when` names a file that is there.
fn connect(args: &Args, to: SocketAddr) -> std::io::Result<TcpStream> {
    let to = match to {
        // A dual-stack program's way to an IPv4 host.
        SocketAddr::V4(v4) if args.flag("--mapped") => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
        }
        as_given => as_given,
    };
    if args.flag("--nonblocking") {
        // tokio's connect: EINPROGRESS, then writability, then SO_ERROR, as event-driven programs do it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stream = runtime.block_on(async { tokio::net::TcpStream::connect(to).await?.into_std() })?;
        stream.set_nonblocking(false)?;
        return Ok(stream);
    }
    let protocol = if args.flag("--mptcp") { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if let Some(own) = args.option("--from") {
        let own: SocketAddr = own.parse().map_err(std::io::Error::other)?;
        socket.bind(&own.into())?;
    }
    if let Some(device) = args.option("--device") {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if args.flag("--mark") {
        socket.set_mark(0x1ee7)?;
    }
    if args.flag("--transparent") {
        socket.set_ip_transparent_v4(true)?;
    }
    if args.flag("--fastopen") {
        // The SYN leaves with the first data.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpFastOpenConnect, &true)?;
    }
    if let Some(file) = args.option("--connect-when") {
        say(&json!({ "event": "waiting" }));
        while !Path::new(file).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    if let Some(other) = args.option("--after-refusal-by") {
        let other: SocketAddr = other.parse().map_err(std::io::Error::other)?;
        match socket.connect(&other.into()) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            result => return Err(std::io::Error::other(format!("{other} did not refuse: {result:?}"))),
        }
    }
    match args.option("--connect-timeout-ms").and_then(|ms| ms.parse().ok()) {
        Some(ms) => socket.connect_timeout(&to.into(), Duration::from_millis(ms))?,
        None => socket.connect(&to.into())?,
    }
    Ok(socket.into())
}

/// What was read and how the connection ended: `eof`, `open` (time over), or an error's name.
struct Ended {
    bytes: Vec<u8>,
    how: String,
}

fn read_to_end_until(stream: &mut TcpStream, end: Instant) -> Ended {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 65_536]);
    let how = loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break "open".to_owned();
        }
        if let Err(error) = stream.set_read_timeout(Some(left)) {
            break name_of(&error);
        }
        match stream.read(&mut buffer) {
            Ok(0) => break "eof".to_owned(),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            // A program that was stopped is interrupted when it goes on (signal(7)).
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::TimedOut
                        | std::io::ErrorKind::Interrupted
                ) => {}
            Err(error) => break name_of(&error),
        }
    };
    Ended { bytes, how }
}

/// Short names for the errors that stories speak of.
fn name_of(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset => "reset".into(),
        ErrorKind::BrokenPipe => "broken pipe".into(),
        ErrorKind::TimedOut => "timeout".into(),
        ErrorKind::HostUnreachable => "host unreachable".into(),
        _ => error.to_string(),
    }
}

fn ms_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Asks for an MPTCP socket and says what came.
fn mptcp() {
    let said = match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(_) => "given".to_owned(),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => "refused".to_owned(),
        Err(error) => error.to_string(),
    };
    say(&json!({ "socket": said }));
}
