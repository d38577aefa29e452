//! Much data both ways at once over one connection, each direction with a sum that sees loss, change and reordering.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{Args, ms_since, say};

const BLOCK: usize = 128 * 1024;
const SEED_OF_CLIENT: u64 = 0x9e37_79b9_7f4a_7c15;
const SEED_OF_SERVER: u64 = 0xd1b5_4a32_d192_ed03;

/// Serves one transfer after the other on an address.
pub(super) fn serve(args: &Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.address()?)?;
    let bytes = args.number("--bytes", 1 << 20)?;
    say(&json!({ "event": "listening" }));
    loop {
        let (stream, from) = listener.accept()?;
        exchange(stream, from, bytes, SEED_OF_SERVER, SEED_OF_CLIENT)?;
    }
}

/// Makes one transfer.
pub(super) fn probe(args: &Args) -> anyhow::Result<()> {
    let to = args.address()?;
    let stream = TcpStream::connect(to)?;
    exchange(stream, to, args.number("--bytes", 1 << 20)?, SEED_OF_CLIENT, SEED_OF_SERVER)
}

fn exchange(
    stream: TcpStream,
    with: SocketAddr,
    bytes: u64,
    own_seed: u64,
    their_seed: u64,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut outward = stream.try_clone()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        send(&mut outward, bytes, own_seed)?;
        outward.shutdown(Shutdown::Write)
    });
    let mut inward = stream;
    receive(&mut inward, bytes, their_seed).with_context(|| format!("receiving from {with}"))?;
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
    sent.with_context(|| format!("sending to {with}"))?;
    say(&json!({ "event": "exchanged", "bytes": bytes, "ms": ms_since(begun), "ok": true }));
    Ok(())
}

/// A stream of numbers (xorshift64) that repeats for nobody's purposes: every position is checked against it.
struct Numbers(u64);

impl Numbers {
    fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

fn send(to: &mut impl Write, bytes: u64, seed: u64) -> std::io::Result<()> {
    let (mut numbers, mut block, mut left) = (Numbers(seed), vec![0; BLOCK], bytes);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        numbers.fill(&mut block[..length]);
        to.write_all(&block[..length])?;
        left -= length as u64;
    }
    Ok(())
}

fn receive(from: &mut impl Read, bytes: u64, seed: u64) -> anyhow::Result<()> {
    let (mut numbers, mut expected, mut got, mut left) =
        (Numbers(seed), vec![0; BLOCK], vec![0; BLOCK], bytes);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        from.read_exact(&mut got[..length])
            .with_context(|| format!("{left} of {bytes} bytes are missing"))?;
        numbers.fill(&mut expected[..length]);
        ensure!(got[..length] == expected[..length], "bytes differ in the block at {}", bytes - left);
        left -= length as u64;
    }
    ensure!(from.read(&mut got)? == 0, "more than the {bytes} bytes sent arrived");
    Ok(())
}
