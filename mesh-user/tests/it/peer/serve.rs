//! The listening peer: a thread per connection, every accept and every end said as JSON.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Args, name_of, read_to_end_until, say};

/// Options: `--banner TEXT` speaks first; `--echo` returns what comes; `--reply-kib N` answers that much after the
/// client's FIN; `--truth` answers with the addresses seen and closes; `--shutdown-first` sends its FIN after the
/// banner and goes on reading; `--reset` answers the first bytes with a reset; `--reuseport N` listens N times.
pub(super) fn serve(args: &Args) -> anyhow::Result<()> {
    let at = args.address()?;
    let listeners = usize::try_from(args.number("--reuseport", 0)?)?;
    let mut threads = Vec::new();
    for index in 0..listeners.max(1) {
        let listener = listen(at, listeners > 0)?;
        let behaviour = Behaviour::from(args, index)?;
        threads.push(std::thread::spawn(move || accept_all(&listener, &behaviour)));
    }
    say(&json!({ "event": "listening", "at": at }));
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn listen(at: SocketAddr, share_port: bool) -> anyhow::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        // [::] serves IPv4 as well, as most servers do.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share_port)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "one for each flag of the command line")]
struct Behaviour {
    listener: usize,
    banner: Option<String>,
    echo: bool,
    truth: bool,
    shutdown_first: bool,
    quiet: bool,
    reset: bool,
    reply_kib: usize,
    hold_ms: u64,
}

impl Behaviour {
    fn from(args: &Args, listener: usize) -> anyhow::Result<Self> {
        Ok(Self {
            listener,
            banner: args.option("--banner").map(str::to_owned),
            echo: args.flag("--echo"),
            truth: args.flag("--truth"),
            shutdown_first: args.flag("--shutdown-first"),
            quiet: args.flag("--quiet"),
            reset: args.flag("--reset"),
            reply_kib: usize::try_from(args.number("--reply-kib", 0)?)?,
            hold_ms: args.number("--hold-ms", 600_000)?,
        })
    }
}

fn accept_all(listener: &TcpListener, behaviour: &Behaviour) {
    while let Ok((stream, accepted)) = listener.accept() {
        let behaviour = behaviour.clone();
        // Idle connections by the thousand: a small stack each.
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        let _ = thread.spawn(move || {
            if let Err(error) = attend(stream, accepted, &behaviour) {
                eprintln!("{accepted}: {error:#}");
            }
        });
    }
}

fn attend(mut stream: TcpStream, accepted: SocketAddr, behaviour: &Behaviour) -> anyhow::Result<()> {
    // One that is reset already has none, and was accepted all the same.
    let (peer, local) = (stream.peer_addr().ok(), stream.local_addr()?);
    let seen = json!({ "event": "accepted", "accepted": accepted, "peer": peer, "local": local,
        "listener": behaviour.listener });
    if !behaviour.quiet {
        say(&seen);
    }
    SockRef::from(&stream).set_tcp_nodelay(true)?;
    if behaviour.truth {
        writeln!(stream, "{seen}")?;
        return Ok(());
    }
    if let Some(banner) = &behaviour.banner {
        stream.write_all(banner.as_bytes())?;
    }
    if behaviour.shutdown_first {
        stream.shutdown(Shutdown::Write)?;
    }
    if behaviour.reset {
        let _ = stream.read(&mut [0; 1024])?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        return Ok(());
    }
    let (bytes, how) = if behaviour.echo {
        echo(&mut stream)
    } else {
        let ended = read_to_end_until(&mut stream, Instant::now() + Duration::from_millis(behaviour.hold_ms));
        (ended.bytes.len(), ended.how)
    };
    if how == "eof" && behaviour.reply_kib > 0 {
        for _ in 0..behaviour.reply_kib {
            stream.write_all(&[b'r'; 1024])?;
        }
    }
    if !behaviour.quiet {
        say(&json!({ "event": "ended", "accepted": accepted, "received": bytes, "ended": how }));
    }
    Ok(())
}

/// Returns what comes until the client's FIN or an error.
fn echo(stream: &mut TcpStream) -> (usize, String) {
    let (mut total, mut buffer) = (0, vec![0; 16_384]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (total, "eof".to_owned()),
            Ok(count) => {
                total += count;
                if let Err(error) = stream.write_all(&buffer[..count]) {
                    return (total, name_of(&error));
                }
            }
            Err(error) => return (total, name_of(&error)),
        }
    }
}
