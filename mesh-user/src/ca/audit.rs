//! The record of everything that `meshd ca` issued or refused: one JSON line each, written by a thread of its own. Never a
//! token or a key. What is issued waits for room, though not for ever; refusals beyond their rate are counted instead.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    num::NonZeroU32,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use nix::fcntl::OFlag;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::telemetry::{
    escape::{ascii_json, truncate},
    record::rfc3339,
};

/// Records that wait for the writer; each has less than 4 KiB.
const QUEUE: usize = 4096;
/// How long the record of something issued waits for room.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often losses are written while there are any.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// One line. Text that a caller chose is cut, and anything but printable ASCII escaped.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AuditRecord {
    /// Which call: `CreateCertificate`, `Redeem`, `Watch`, `handshake` and so on.
    pub call: &'static str,
    /// `issued`, `refused`, `accepted` (a watcher) or `changed` (by the operator).
    pub outcome: &'static str,
    /// Why it was refused: a short name, the same as in the metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The reason in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Who asked, once that was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// How that was proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<&'static str>,
    /// The other end: address and port, or process and user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The pod of a service-account token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The caller's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The identity that the caller named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// The identity that was certified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The certificate's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The certificate's end, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

impl AuditRecord {
    /// The end of a certificate's validity as it is written.
    pub fn time(end: OffsetDateTime) -> String {
        rfc3339(end.into())
    }

    fn line(mut self, time: SystemTime) -> String {
        #[derive(Serialize)]
        struct Line {
            time: String,
            #[serde(flatten)]
            record: AuditRecord,
        }
        for text in [&mut self.detail, &mut self.caller, &mut self.peer, &mut self.pod, &mut self.node] {
            cut(text);
        }
        cut(&mut self.asked);
        cut(&mut self.identity);
        let line = serde_json::to_string(&Line { time: rfc3339(time), record: self });
        let mut line = ascii_json(&line.unwrap_or_default());
        line.push('\n');
        line
    }
}

fn cut(text: &mut Option<String>) {
    if let Some(text) = text {
        let end = truncate(text).len();
        text.truncate(end);
    }
}

enum Message {
    Line(String),
    Reopen,
}

/// Counts of lines.
#[derive(Debug, Default)]
struct Losses {
    dropped: AtomicU64,
    suppressed: AtomicU64,
}

/// The handle that the service records through. Share by `Arc`.
#[derive(Debug)]
pub struct Audit {
    queue: Mutex<Option<mpsc::Sender<Message>>>,
    refusals: Option<DefaultDirectRateLimiter>,
    losses: std::sync::Arc<Losses>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Where lines go.
#[derive(Debug)]
pub enum Sink {
    /// A file that is appended to, and opened anew when told.
    File(PathBuf),
    /// The process's standard error.
    Stderr,
}

impl Audit {
    /// Starts the writer. `refusals_per_second` 0: no bound.
    ///
    /// # Errors
    /// When the file cannot be opened, or no thread started.
    pub fn start(sink: Sink, refusals_per_second: u32) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match &sink {
            Sink::File(path) => Box::new(open(path)?),
            Sink::Stderr => Box::new(io::stderr()),
        };
        Self::with_writer(sink, out, refusals_per_second)
    }

    fn with_writer(sink: Sink, out: Box<dyn Write + Send>, refusals_per_second: u32) -> io::Result<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let losses = std::sync::Arc::<Losses>::default();
        let writer = Writer { sink, out, losses: std::sync::Arc::clone(&losses) };
        let thread = std::thread::Builder::new().name("ca-audit".to_owned());
        let writer = thread.spawn(move || writer.run(receiver))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            refusals: NonZeroU32::new(refusals_per_second).map(|n| RateLimiter::direct(Quota::per_second(n))),
            losses,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Records what was issued, granted or changed: waits for room when the disk is slow, for two seconds at most. The line
    /// is then lost and counted; the register of certificates has the serial nevertheless.
    pub async fn granted(&self, record: AuditRecord) {
        let Some(queue) = self.queue() else { return };
        let line = Message::Line(record.line(SystemTime::now()));
        if !matches!(tokio::time::timeout(PATIENCE, queue.send(line)).await, Ok(Ok(()))) {
            self.losses.dropped.fetch_add(1, Relaxed);
            tracing::error!("the audit does not keep up: the line of something issued was lost");
        }
    }

    /// Records a refusal, without waiting.
    pub fn refused(&self, record: AuditRecord) {
        if self.refusals.as_ref().is_some_and(|limiter| limiter.check().is_err()) {
            self.losses.suppressed.fetch_add(1, Relaxed);
            return;
        }
        let Some(queue) = self.queue() else { return };
        if queue.try_send(Message::Line(record.line(SystemTime::now()))).is_err() {
            self.losses.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Opens the file anew, after something has moved it away.
    pub fn reopen(&self) {
        if let Some(queue) = self.queue() {
            // A full queue means that it is being written to; whoever rotates tries again.
            let _full = queue.try_send(Message::Reopen);
        }
    }

    fn queue(&self) -> Option<mpsc::Sender<Message>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what is queued and ends the writer. Blocks; nothing is recorded after it.
    pub fn shutdown(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _panicked = writer.join();
        }
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

struct Writer {
    sink: Sink,
    out: Box<dyn Write + Send>,
    losses: std::sync::Arc<Losses>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut reported = std::time::Instant::now();
        while let Some(message) = queue.blocking_recv() {
            match message {
                Message::Line(line) => self.put(&line),
                Message::Reopen => self.reopen(),
            }
            if reported.elapsed() >= REPORT_EVERY {
                reported = std::time::Instant::now();
                self.report();
            }
        }
        self.report();
    }

    fn reopen(&mut self) {
        let Sink::File(path) = &self.sink else { return };
        match open(path) {
            Ok(file) => self.out = Box::new(file),
            Err(error) => {
                tracing::error!(%error, "the audit's file cannot be opened anew; the old one stays");
            }
        }
    }

    fn report(&mut self) {
        let (dropped, suppressed) =
            (self.losses.dropped.swap(0, Relaxed), self.losses.suppressed.swap(0, Relaxed));
        if dropped + suppressed > 0 {
            let time = rfc3339(SystemTime::now());
            let line = serde_json::json!({
                "time": time, "audit": "incomplete", "dropped": dropped, "suppressed_refusals": suppressed,
            });
            self.put(&format!("{line}\n"));
        }
    }

    fn put(&mut self, line: &str) {
        if let Err(error) = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()) {
            self.losses.dropped.fetch_add(1, Relaxed);
            tracing::error!(%error, "the audit cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc as std_mpsc};

    use super::*;

    /// Takes a byte only when the test lets it.
    struct Slow {
        go: std_mpsc::Receiver<()>,
        seen: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An end of the test lets everything through.
            let _ended = self.go.recv();
            self.seen.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn refusal(detail: &str) -> AuditRecord {
        AuditRecord {
            call: "test",
            outcome: "refused",
            detail: Some(detail.to_owned()),
            ..AuditRecord::default()
        }
    }

    #[test]
    fn refusals_never_wait_and_losses_are_told() {
        let (go, gate) = std_mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let slow = Slow { go: gate, seen: Arc::clone(&seen) };
        let audit = Audit::with_writer(Sink::Stderr, Box::new(slow), 0).unwrap();
        for _ in 0..QUEUE + 1000 {
            audit.refused(refusal("x"));
        }
        drop(go);
        audit.shutdown();
        let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let dropped = last["dropped"].as_u64().unwrap();
        // The writer holds one more beside what is queued.
        assert!((999..=1000).contains(&dropped), "{last}");
        assert_eq!(text.lines().count() as u64 - 1 + dropped, QUEUE as u64 + 1000);
    }

    #[test]
    fn refusals_above_their_rate_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.json");
        let audit = Audit::start(Sink::File(path.clone()), 5).unwrap();
        for _ in 0..1000 {
            audit.refused(refusal("x"));
        }
        audit.shutdown();
        let text = std::fs::read_to_string(path).unwrap();
        assert!((6..50).contains(&text.lines().count()), "{text}");
        assert!(text.lines().last().unwrap().contains("suppressed_refusals"), "{text}");
    }

    #[test]
    fn what_a_caller_chose_forges_no_line_and_is_cut() {
        let line = refusal(&format!("a\n{{\"outcome\":\"issued\"}}\u{1b}[2J{}", "é".repeat(5000)))
            .line(SystemTime::now());
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.len() < 4096 && line.trim_end().bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
    }

    #[tokio::test]
    async fn a_file_that_was_moved_away_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.json");
        let audit = Audit::start(Sink::File(path.clone()), 0).unwrap();
        audit.granted(refusal("first")).await;
        audit.reopen();
        let moved = folder.path().join("old");
        std::fs::rename(&path, &moved).unwrap();
        audit.reopen();
        audit.granted(refusal("second")).await;
        tokio::task::spawn_blocking(move || audit.shutdown()).await.unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("second"));
        assert!(std::fs::read_to_string(moved).unwrap().contains("first"));
    }
}
