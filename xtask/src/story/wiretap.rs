//! tcpdump on the bridge: what was readable, and what it looked like. It listens before the traffic starts.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::{Running, Stage};

/// Packets shown of a conversation's beginning, and of its end.
const ENDS: usize = 5;

/// A running capture of everything on the bridge.
pub(super) struct Wiretap {
    tcpdump: Running,
    file: PathBuf,
}

/// What was captured.
pub(super) struct Packets {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Wiretap {
    pub(super) fn start(stage: &Stage, name: &str) -> Result<Self> {
        let file = stage.dir().join(format!("{name}.pcap"));
        let path = file.to_string_lossy().into_owned();
        let argv = [
            "tcpdump",
            "-i",
            "br0",
            "-n",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            "-Z",
            "root",
            "-w",
            &path,
            "tcp",
        ];
        let mut tcpdump = stage.start(&stage.wire(), &format!("tcpdump-{name}"), &argv)?;
        tcpdump.wait_to_say("listening on")?;
        Ok(Self { tcpdump, file })
    }

    pub(super) fn stop(mut self) -> Result<Packets> {
        std::thread::sleep(Duration::from_millis(300));
        let pid = self.tcpdump.child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status()?;
        self.tcpdump.child.wait()?;
        let said = self.tcpdump.said();
        ensure!(
            said.contains("\n0 packets dropped by kernel"),
            "the capture is incomplete and proves nothing: {said}"
        );
        let bytes = std::fs::read(&self.file).context("reading the capture")?;
        Ok(Packets { file: self.file, bytes })
    }
}

impl Packets {
    /// Whether `text` is readable in the captured bytes.
    pub(super) fn show(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// How many TLS application-data records begin a segment between the wire's hosts.
    pub(super) fn tls_segments(&self) -> Result<usize> {
        // Byte 12 of the TCP header holds its length in words: the payload begins after that.
        let filter = "tcp[((tcp[12] & 0xf0) >> 2):4] & 0xffffff00 = 0x17030300";
        Ok(self.read(&["-q", filter])?.lines().count())
    }

    /// The printable part of the packets that hold `text`.
    pub(super) fn excerpt_with(&self, text: &str) -> Result<String> {
        let all = self.read(&["-A", "-q", "tcp port 80"])?;
        let lines: Vec<&str> = all.lines().collect();
        let at = lines.iter().position(|line| line.contains(text)).unwrap_or(0);
        let head = lines[..at].iter().rposition(|line| line.contains(" IP ")).unwrap_or(at.saturating_sub(4));
        let shown = [&lines[head..=head], &lines[at.saturating_sub(3).max(head + 1)..=at]].concat();
        Ok(shown.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n"))
    }

    /// The head of some packets with TLS application data, as bytes.
    pub(super) fn excerpt_of_tls(&self) -> Result<String> {
        let filter = "tcp port 80 and tcp[((tcp[12] & 0xf0) >> 2):4] & 0xffffff00 = 0x17030300";
        let all = self.read(&["-X", "-q", "-c", "1", filter])?;
        Ok(all.lines().take(9).collect::<Vec<_>>().join("\n"))
    }

    /// The conversations of one host by packets, without bytes: the first and last few of them.
    pub(super) fn conversation_of(&self, address: &str) -> Result<String> {
        let all = self.read(&["host", address])?;
        let brief: Vec<String> = all.lines().map(without_options).collect();
        if brief.len() <= 2 * ENDS {
            return Ok(brief.join("\n"));
        }
        let left_out = format!("... {} packets ...", brief.len() - 2 * ENDS);
        Ok([&brief[..ENDS], &[left_out], &brief[brief.len() - ENDS..]].concat().join("\n"))
    }

    fn read(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("tcpdump").args(["-n", "-r"]).arg(&self.file).args(args).output()?;
        ensure!(output.status.success(), "tcpdump: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A packet's line without its TCP options and absolute numbers, which tell nothing here.
fn without_options(line: &str) -> String {
    let shown = |part: &&str| ["seq ", "ack ", "win ", "options "].iter().all(|key| !part.starts_with(key));
    let told = line.split(", ").filter(shown).collect::<Vec<_>>().join(", ");
    // tcpdump's guess by the port; where it read a request it says more.
    told.strip_suffix(": HTTP").map_or(told.clone(), str::to_owned)
}

fn printable(line: &str) -> String {
    let clean: String =
        line.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '.' }).collect();
    clean.chars().take(110).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_told_by_its_ends_flags_and_length() {
        let line = "06:02:27.0 IP 10.201.0.31.4 > 10.201.0.21.80: Flags [S], seq 12, win 642, options [mss 1460,sackOK,TS val 1 ecr 0], length 0";
        let told = "06:02:27.0 IP 10.201.0.31.4 > 10.201.0.21.80: Flags [S], length 0";
        assert_eq!(without_options(line), told);
    }
}
