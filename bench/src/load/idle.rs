//! Many connections at once: opened, used for one request each, then kept; or a storm of them.

use std::{
    io::Result as IoResult,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{Report, Target, histogram, http, record};

/// What the client prints when every connection is open and has done its request.
pub(crate) const READY: &str = "ready";
const TIMEOUT: Duration = Duration::from_secs(30);
/// Connections being opened at a time: fewer than any proxy's bound on handshakes under way.
const AT_ONCE: usize = 64;
/// One connection in so many talks in the end.
const ACTIVE_ONE_IN: usize = 100;
const ACTIVE_ROUNDS: usize = 50;

/// Opens connections, says so, waits for a line, then talks on some of them and reports how long answers took.
pub(super) fn run(target: &Target, connections: u32) -> Result<Report> {
    runtime()?.block_on(async {
        let mut open = Vec::new();
        let mut opening = JoinSet::new();
        for _ in 0..connections {
            while opening.len() >= AT_ONCE {
                open.extend(next(&mut opening).await?);
            }
            opening.spawn(connect(target.clone()));
        }
        while !opening.is_empty() {
            open.extend(next(&mut opening).await?);
        }
        println!("{READY}");
        let mut line = String::new();
        // Nothing else runs here: the connections need no one.
        std::io::stdin().read_line(&mut line).context("waiting to be told")?;
        let (mut times, mut failures) = (histogram()?, 0);
        let begun = Instant::now();
        for _ in 0..ACTIVE_ROUNDS {
            for stream in open.iter_mut().step_by(ACTIVE_ONE_IN) {
                let asked = Instant::now();
                match round_trip(stream, target).await {
                    Ok(()) => record(&mut times, asked.elapsed()),
                    Err(_) => failures += 1,
                }
            }
        }
        Ok(Report::of(&times, failures, begun.elapsed()))
    })
}

/// Everybody connects at once; the time of each goes from the start of all to its own answer.
pub(super) fn storm(target: &Target, connections: u32) -> Result<Report> {
    runtime()?.block_on(async {
        let begun = Instant::now();
        let mut storm = JoinSet::new();
        for _ in 0..connections {
            let target = target.clone();
            storm.spawn(async move { connect(target).await.map(|stream| (stream, begun.elapsed())) });
        }
        let (mut times, mut failures, mut open) = (histogram()?, 0, Vec::new());
        while let Some(done) = storm.join_next().await {
            match done? {
                Ok((stream, elapsed)) => {
                    record(&mut times, elapsed);
                    open.push(stream);
                }
                Err(_) => failures += 1,
            }
        }
        Ok(Report::of(&times, failures, begun.elapsed()))
    })
}

async fn next(opening: &mut JoinSet<IoResult<TcpStream>>) -> Result<Option<TcpStream>> {
    let Some(done) = opening.join_next().await else { return Ok(None) };
    Ok(Some(done?.context("opening an idle connection")?))
}

async fn connect(target: Target) -> IoResult<TcpStream> {
    timeout(TIMEOUT, async {
        let mut stream = TcpStream::connect(target.to).await?;
        stream.set_nodelay(true)?;
        round_trip(&mut stream, &target).await?;
        Ok(stream)
    })
    .await?
}

async fn round_trip(stream: &mut TcpStream, target: &Target) -> IoResult<()> {
    stream.write_all(&http::request(&target.path, true)).await?;
    // Nothing of it lives on with an idle connection: this client's memory is no part of what is measured.
    let (mut buffer, mut received) = (vec![0; http::BUFFER_BYTES], 0);
    loop {
        match stream.read(&mut buffer[received..]).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => received += count,
        }
        if http::answer_len(&buffer[..received])?.is_some_and(|length| received >= length) {
            return Ok(());
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the client")
}
