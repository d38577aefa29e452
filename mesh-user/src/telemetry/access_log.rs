//! The access log: one line per connection and per request that was read, bounded in rate, written by its own thread. A caller never
//! waits: a line beyond the rate is suppressed, one beyond the queue is dropped, and both are counted and
//! reported in the log itself.

use std::{
    io::Write,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use prometheus_client::metrics::counter::Counter;

use super::{
    metrics::Metrics,
    record::{ConnectionRecord, rfc3339},
    request::RequestRecord,
};

/// Form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object per line.
    Json,
    /// `key=value` pairs.
    Text,
    /// No lines.
    Off,
}

/// What the node's file says about the access log.
#[derive(Debug, Clone, Copy)]
pub struct AccessLogSettings {
    /// Form of the lines.
    pub format: AccessLogFormat,
    /// Lines per second, and the burst; 0 means no bound.
    pub per_second: u32,
}

/// Records waiting for the writer; 4096 of them are about 2 MB.
const QUEUE_RECORDS: usize = 4096;
/// How often suppressed and dropped lines are reported while there are any.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Lines joined into one write.
const WRITE_BYTES: usize = 64 * 1024;

enum Message {
    Record(Box<ConnectionRecord>),
    Request(Box<RequestRecord>),
    Stop,
}

#[derive(Debug, Default)]
struct Losses {
    suppressed: AtomicU64,
    dropped: AtomicU64,
}

/// The handle that connections log through. Share by `Arc`.
#[derive(Debug)]
pub struct AccessLog {
    sender: Option<SyncSender<Message>>,
    limiter: Option<DefaultDirectRateLimiter>,
    losses: Arc<Losses>,
    suppressed: Counter,
    dropped: Counter,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl AccessLog {
    /// Starts the writer on stderr. Fails only where no thread can be started.
    pub fn to_stderr(settings: AccessLogSettings, metrics: &Metrics) -> std::io::Result<Self> {
        Self::to_writer(settings, metrics, Box::new(std::io::stderr()))
    }

    /// Starts the writer on any sink.
    pub fn to_writer(
        settings: AccessLogSettings,
        metrics: &Metrics,
        sink: Box<dyn Write + Send>,
    ) -> std::io::Result<Self> {
        let losses = Arc::new(Losses::default());
        let (sender, writer) = if settings.format == AccessLogFormat::Off {
            (None, None)
        } else {
            let (sender, receiver) = sync_channel(QUEUE_RECORDS);
            let writer = Writer {
                format: settings.format,
                sink,
                losses: Arc::clone(&losses),
                written: metrics.access_log_lines("written"),
                lost_in_sink: metrics.access_log_lines("dropped"),
            };
            let thread = std::thread::Builder::new()
                .name("meshd-access".to_owned())
                .spawn(move || writer.run(&receiver))?;
            (Some(sender), Some(thread))
        };
        Ok(Self {
            sender,
            limiter: NonZeroU32::new(settings.per_second).map(|n| RateLimiter::direct(Quota::per_second(n))),
            losses,
            suppressed: metrics.access_log_lines("suppressed"),
            dropped: metrics.access_log_lines("dropped"),
            writer: Mutex::new(writer),
        })
    }

    /// Logs a connection. `record` is called only when the line is to be written.
    pub fn log(&self, record: impl FnOnce() -> ConnectionRecord) {
        self.send(|| Message::Record(Box::new(record())));
    }

    /// Whether anything is written at all.
    pub fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Logs a request, likewise.
    pub fn log_request(&self, record: impl FnOnce() -> RequestRecord) {
        self.send(|| Message::Request(Box::new(record())));
    }

    fn send(&self, message: impl FnOnce() -> Message) {
        let Some(sender) = &self.sender else { return };
        if self.limiter.as_ref().is_some_and(|limiter| limiter.check().is_err()) {
            self.losses.suppressed.fetch_add(1, Relaxed);
            self.suppressed.inc();
            return;
        }
        if sender.try_send(message()).is_err() {
            self.losses.dropped.fetch_add(1, Relaxed);
            self.dropped.inc();
        }
    }

    /// Writes what is queued and stops the writer; to be called last, off the relay's threads.
    pub fn shutdown(&self) {
        if let Some(sender) = &self.sender {
            // Waits for room if the queue is full; an error means that the writer is gone already.
            let _gone = sender.send(Message::Stop);
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _panicked = writer.join();
        }
    }
}

struct Writer {
    format: AccessLogFormat,
    sink: Box<dyn Write + Send>,
    losses: Arc<Losses>,
    written: Counter,
    lost_in_sink: Counter,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Message>) {
        let mut last_report = std::time::Instant::now();
        loop {
            let stop = match receiver.recv_timeout(REPORT_EVERY) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => true,
                Ok(message) => self.write_batch(&message, receiver),
                Err(RecvTimeoutError::Timeout) => false,
            };
            if stop || last_report.elapsed() >= REPORT_EVERY {
                self.report_losses();
                last_report = std::time::Instant::now();
            }
            if stop {
                return;
            }
        }
    }

    /// Joins what is queued already into few writes of whole lines. True when told to stop.
    fn write_batch(&mut self, first: &Message, receiver: &Receiver<Message>) -> bool {
        let mut lines = 1;
        let mut text = self.line(first);
        let mut stop = false;
        while text.len() < WRITE_BYTES {
            match receiver.try_recv() {
                Ok(Message::Stop) => {
                    stop = true;
                    break;
                }
                Ok(message) => {
                    text.push_str(&self.line(&message));
                    lines += 1;
                }
                Err(_) => break,
            }
        }
        let counter = if self.put(&text) { &self.written } else { &self.lost_in_sink };
        counter.inc_by(lines);
        stop
    }

    fn line(&self, message: &Message) -> String {
        let is_text = self.format == AccessLogFormat::Text;
        let mut line = match message {
            Message::Record(record) if is_text => record.to_text(),
            Message::Record(record) => record.to_json(),
            Message::Request(record) if is_text => record.to_text(),
            Message::Request(record) => record.to_json(),
            Message::Stop => return String::new(),
        };
        line.push('\n');
        line
    }

    fn report_losses(&mut self) {
        let suppressed = self.losses.suppressed.swap(0, Relaxed);
        let dropped = self.losses.dropped.swap(0, Relaxed);
        if suppressed == 0 && dropped == 0 {
            return;
        }
        let time = rfc3339(SystemTime::now());
        let line = match self.format {
            AccessLogFormat::Text => {
                format!("{time} access_log=incomplete suppressed={suppressed} dropped={dropped}\n")
            }
            AccessLogFormat::Json | AccessLogFormat::Off => {
                let line = serde_json::json!({
                    "time": time, "access_log": "incomplete", "suppressed": suppressed, "dropped": dropped,
                });
                format!("{line}\n")
            }
        };
        self.put(&line);
    }

    fn put(&mut self, text: &str) -> bool {
        self.sink.write_all(text.as_bytes()).and_then(|()| self.sink.flush()).is_ok()
    }
}
