//! Many connections: short ones one after the other on several threads, and idle ones all at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use super::{Args, ms_since, say};

/// `--count` connections on `--threads` threads, each a small question and its echo; or as many as there are, `--pause-ms`
/// after each, until the file `--until` exists.
pub(super) fn short(args: &Args) -> anyhow::Result<()> {
    let (to, count, threads) = (args.address()?, args.number("--count", 100)?, args.number("--threads", 8)?);
    let (until, pause) = (args.option("--until").map(Path::new), args.number("--pause-ms", 0)?);
    let (next, failed, begun) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let goes_on = |begun: u64| until.map_or(begun < count, |until| !until.exists());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while goes_on(next.fetch_add(1, Ordering::Relaxed)) {
                    std::thread::sleep(Duration::from_millis(pause));
                    let asked = TcpStream::connect(to).and_then(|stream| ask(stream, b"short"));
                    let Err(error) = asked else { continue };
                    if failed.fetch_add(1, Ordering::Relaxed) < 5 {
                        eprintln!("connection failed: {error}");
                    }
                }
            });
        }
    });
    // Each thread has counted one that it did not make.
    let count = next.into_inner() - threads;
    say(&json!({ "count": count, "failed": failed.into_inner(), "ms": ms_since(begun) }));
    Ok(())
}

fn ask(mut stream: TcpStream, question: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(question)?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    if answer == question { Ok(()) } else { Err(std::io::Error::other("the echo differs")) }
}

/// Opens `--count` connections, says so, holds them until the file `--until` exists, then uses each once more.
pub(super) fn idle(args: &Args) -> anyhow::Result<()> {
    let (to, count) = (args.address()?, args.number("--count", 100)?);
    let until = Path::new(args.option("--until").context("--until FILE")?);
    let streams = (0..count).map(|index| open(to, index)).collect::<anyhow::Result<Vec<_>>>()?;
    say(&json!({ "event": "holding", "count": streams.len() }));
    while !until.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    for (index, stream) in streams.into_iter().enumerate() {
        ask(stream, b"again").with_context(|| format!("idle connection {index} no longer works"))?;
    }
    say(&json!({ "event": "all alive" }));
    Ok(())
}

/// Begins `--count` handshakes in different ways, ends none, and says so; until the file `--until` exists.
pub(super) fn half_open(args: &Args) -> anyhow::Result<()> {
    // Nothing; the header of a record; a message that goes on.
    const BEGINNINGS: [&[u8]; 3] = [&[], &[22, 3, 1], &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]];
    let (to, count) = (args.address()?, args.number("--count", 100)?);
    let until = Path::new(args.option("--until").context("--until FILE")?);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut streams = Vec::new();
    for (index, bytes) in (0..count).zip(BEGINNINGS.into_iter().cycle()) {
        let mut stream = TcpStream::connect(to).with_context(|| format!("connection {index}"))?;
        // The first ones may be over already.
        let _ = stream.write_all(bytes);
        streams.push(stream);
    }
    say(&json!({ "event": "holding", "count": streams.len() }));
    while !until.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn open(to: SocketAddr, index: u64) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connection {index}"))?;
    ask(stream.try_clone()?, b"hello").with_context(|| format!("first use of connection {index}"))?;
    ensure!(stream.peer_addr().is_ok(), "connection {index} is gone at once");
    Ok(stream)
}
