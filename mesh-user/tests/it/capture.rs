//! tcpdump on every interface of the wire. Traffic starts only after it listens, and a capture that lost packets
//! is no witness: reading it back is then an error.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use super::judge::Wiretap;
use super::netns::Wire;
use super::process::{PATIENCE, Program};

/// A running capture.
pub(crate) struct Capture {
    tcpdump: Program,
    file: PathBuf,
    may_lose: bool,
}

impl Capture {
    /// Captures whole packets.
    pub(crate) fn start(wire: &Wire, name: &str) -> anyhow::Result<Self> {
        Self::start_with(wire, name, 262_144, false)
    }

    /// Captures the first 2 KiB of each packet, and so many more packets at once: for what says the marker often.
    pub(crate) fn start_of_heads(wire: &Wire, name: &str) -> anyhow::Result<Self> {
        Self::start_with(wire, name, 2048, false)
    }

    /// Captures the first bytes of each packet of much traffic; may miss some of them.
    pub(crate) fn start_of_bulk(wire: &Wire, name: &str) -> anyhow::Result<Self> {
        Self::start_with(wire, name, 160, true)
    }

    fn start_with(wire: &Wire, name: &str, snap_bytes: u32, may_lose: bool) -> anyhow::Result<Self> {
        let file = wire.dir().join(format!("{name}.pcap"));
        let path = file.to_string_lossy().into_owned();
        let snap = snap_bytes.to_string();
        let mut tcpdump = wire
            .launch(
                &format!("tcpdump-{name}"),
                &[
                    "tcpdump",
                    "-i",
                    "any",
                    "-y",
                    "LINUX_SLL2",
                    "--immediate-mode",
                    "-U",
                    "-n",
                    "-B",
                    "32768",
                    "-s",
                    &snap,
                    "-Z",
                    "root",
                    "-w",
                    &path,
                ],
            )
            .start()?;
        tcpdump.wait_to_say("listening on", PATIENCE)?;
        Ok(Self { tcpdump, file, may_lose })
    }

    /// Ends the capture and reads what was on the wire.
    pub(crate) fn stop(self) -> anyhow::Result<Wiretap> {
        // What was sent just now is still on its way through tcpdump.
        std::thread::sleep(Duration::from_millis(200));
        // Not SIGINT, which a shell makes its background jobs ignore.
        self.tcpdump.signal(Signal::SIGTERM)?;
        let finished = self.tcpdump.finish(PATIENCE)?;
        ensure!(finished.status.success(), "tcpdump failed: {}", finished.stderr);
        let lossless = finished.stderr.contains("\n0 packets dropped by kernel");
        ensure!(
            self.may_lose || lossless,
            "the capture is incomplete and proves nothing: {}",
            finished.stderr
        );
        let bytes = std::fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        let tap = Wiretap::read(&bytes)?;
        if !self.may_lose {
            return Ok(tap);
        }
        // A bulk capture is large and of no use to a reader.
        let _ = std::fs::remove_file(&self.file);
        Ok(tap)
    }
}
