//! One application's end of a random exchange: writes, pauses, reads and ends as its script says, and holds every
//! byte it is given against what the other end wrote at that place.

use std::{cell::Cell, io, time::Duration};

use rand::{Rng, rngs::StdRng};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpStream, tcp::WriteHalf},
};

/// Pauses of one reader; a busy machine makes each longer.
const MOST_PAUSES: u32 = 20;

/// How an end leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// FIN, then reads to the end.
    Finish,
    /// RST when all is written.
    Reset,
    /// FIN, and RST so much later.
    FinishThenReset(Duration),
}

/// What an end does.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    /// Sizes and the pause after each.
    writes: Vec<(usize, Duration)>,
    /// The last byte of each is marked as urgent.
    urgent: bool,
    pub(crate) leaving: Leaving,
    /// Of each read.
    most_read: usize,
    /// One read of so many is followed by a pause; 0: none.
    pause_every: u32,
}

/// What an end saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Bytes of the other end's stream, all as they were written.
    pub(crate) received: usize,
    pub(crate) end: End,
    /// Bytes that the socket took.
    pub(crate) sent: usize,
    /// Whether FIN was sent.
    pub(crate) finished: bool,
    /// Whether a write failed: the other end is gone.
    pub(crate) write_failed: bool,
}

/// How the other end's stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Clean,
    Reset,
    /// This end left before.
    NotSeen,
}

/// The byte that stream `stream` has at `offset`: nearly never the same at two places near each other.
pub(crate) fn byte_at(stream: u64, offset: usize) -> u8 {
    let mixed = (offset as u64 ^ stream).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93).to_be_bytes()[0]
}

pub(crate) fn bytes_at(stream: u64, offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(|place| byte_at(stream, place)).collect()
}

/// Small more often than large.
pub(crate) fn size(random: &mut StdRng, most_bits: u32) -> usize {
    let bits = random.random_range(0..=most_bits);
    random.random_range(0..=1_usize << bits)
}

fn pause(random: &mut StdRng) -> Duration {
    if random.random_bool(0.2) { Duration::from_micros(random.random_range(0..3000)) } else { Duration::ZERO }
}

impl Script {
    pub(crate) fn random(random: &mut StdRng) -> Self {
        let writes = (0..random.random_range(0..8)).map(|_| (size(random, 17), pause(random))).collect();
        let leaving = match random.random_range(0..10) {
            0 | 1 => Leaving::Reset,
            2 => Leaving::FinishThenReset(pause(random)),
            _ => Leaving::Finish,
        };
        // Byte by byte would cost thousands of calls, of which the relay sees nothing.
        let most_read = size(random, 16).max(1024);
        let pause_every = if random.random_bool(0.3) { random.random_range(1..20) } else { 0 };
        Self { writes, urgent: random.random_bool(0.1), leaving, most_read, pause_every }
    }

    /// Plays it; `sent` bytes of stream `own` are on their way already.
    pub(crate) async fn play(
        &self,
        mut stream: TcpStream,
        (own, other): (u64, u64),
        sent: usize,
    ) -> Result<Seen, String> {
        let (sent, finished, write_failed) = (Cell::new(sent), Cell::new(false), Cell::new(false));
        let received = Cell::new(0);
        let mut end = End::NotSeen;
        {
            let (mut reader, mut writer) = stream.split();
            let writing = self.write(&mut writer, own, &sent, &finished, &write_failed);
            let reading = self.read(&mut reader, other, &received, &write_failed);
            tokio::pin!(writing, reading);
            let mut wrote = false;
            loop {
                tokio::select! {
                    () = &mut writing, if !wrote => {
                        wrote = true;
                        if !write_failed.get() && self.leaving != Leaving::Finish {
                            break;
                        }
                    }
                    ended = &mut reading, if end == End::NotSeen => end = ended?,
                }
                if wrote && end != End::NotSeen {
                    break;
                }
            }
        }
        if self.leaving != Leaving::Finish {
            mesh_user::sys::socket::reset_on_close(&stream);
        }
        drop(stream);
        Ok(Seen {
            received: received.get(),
            end,
            sent: sent.get(),
            finished: finished.get(),
            write_failed: write_failed.get(),
        })
    }

    async fn write(
        &self,
        writer: &mut WriteHalf<'_>,
        own: u64,
        sent: &Cell<usize>,
        finished: &Cell<bool>,
        failed: &Cell<bool>,
    ) {
        for (length, pause) in &self.writes {
            let bytes = bytes_at(own, sent.get(), *length);
            let mut taken = 0;
            while taken < bytes.len() {
                let left = &bytes[taken..];
                let written = match left {
                    [last] if self.urgent => write_urgent(writer.as_ref(), *last).await,
                    [most @ .., _] if self.urgent => writer.write(most).await,
                    all => writer.write(all).await,
                };
                match written {
                    Ok(count) => {
                        taken += count;
                        sent.set(sent.get() + count);
                    }
                    Err(_) => return failed.set(true),
                }
            }
            rest(*pause).await;
        }
        match self.leaving {
            Leaving::Reset => {}
            Leaving::Finish | Leaving::FinishThenReset(_) => match writer.shutdown().await {
                Ok(()) => finished.set(true),
                Err(_) => failed.set(true),
            },
        }
        if let Leaving::FinishThenReset(after) = self.leaving {
            rest(after).await;
        }
    }

    async fn read(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        other: u64,
        received: &Cell<usize>,
        write_failed: &Cell<bool>,
    ) -> Result<End, String> {
        let (mut buffer, mut reads, mut pauses) = (vec![0; self.most_read], 0, 0);
        loop {
            let count = match reader.read(&mut buffer).await {
                // The kernel tells of a reset once, and has told the writer.
                Ok(0) if write_failed.get() => return Ok(End::Reset),
                Ok(0) => return Ok(End::Clean),
                Ok(count) => count,
                Err(_) => return Ok(End::Reset),
            };
            let place = received.get();
            if let Some(wrong) = (0..count).find(|at| buffer[*at] != byte_at(other, place + at)) {
                return Err(format!("byte {} is not the one that was written", place + wrong));
            }
            received.set(place + count);
            reads += 1;
            if self.pause_every > 0 && reads % self.pause_every == 0 && pauses < MOST_PAUSES {
                pauses += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

async fn write_urgent(stream: &TcpStream, byte: u8) -> io::Result<usize> {
    stream.async_io(Interest::WRITABLE, || SockRef::from(stream).send_out_of_band(&[byte])).await
}

async fn rest(pause: Duration) {
    if pause.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(pause).await;
    }
}
