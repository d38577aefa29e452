//! Drives an HTTP/1 connection: one request after the other is read, put before the gate, and exchanged with the
//! application, over one connection to it that is opened with the first request that is let through.

use std::{
    future::pending,
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    select,
    time::{Instant as Clock, sleep_until},
};

use super::{
    super::{
        error::{HttpError, Refusal},
        gate::{Decision, Edits, Gate, grpc_status_of},
        observe::{Names, Observer, Verdict},
        settings::Settings,
    },
    answer,
    body::{self, CopyError},
    exchange::{Allowed, Ended, HEAD_ROOM, Progress, exchange},
    head::{ParsedRequest, list, parse_request},
    reading::Reading,
    scan::{HeadScan, Scanned},
};

/// How a connection ended.
pub(in super::super) enum End<P> {
    /// In order, or with an error that the client could see.
    Closed(Option<HttpError>),
    /// Inside of a response: to be reset, so that the client does not take it for whole.
    Cut(P, HttpError),
}

/// What follows after a request.
enum Step {
    Next,
    Close(Option<HttpError>),
    /// Close, once the client has had the chance to read the answer.
    Linger(Option<HttpError>),
    Cut(HttpError),
}

struct Application<A> {
    read: Reading<ReadHalf<A>>,
    write: WriteHalf<A>,
}

struct Driver<'a, P, A, O, G, B> {
    read: Reading<ReadHalf<P>>,
    write: WriteHalf<P>,
    application: Option<Application<A>>,
    open: &'a O,
    gate: &'a G,
    observer: &'a B,
    settings: &'a Settings,
}

/// A request that was read.
struct Request {
    bytes: BytesMut,
    parsed: ParsedRequest,
}

/// Serves a connection of which `read` was already read.
pub(in super::super) async fn drive<P, A, O, F, G, B>(
    peer: P,
    read: BytesMut,
    open: &O,
    gate: &G,
    observer: &B,
    settings: &Settings,
) -> End<P>
where
    P: AsyncRead + AsyncWrite + Unpin + Send,
    A: AsyncRead + AsyncWrite + Unpin + Send,
    O: Fn() -> F + Sync,
    F: Future<Output = io::Result<A>> + Send,
    G: Gate,
    B: Observer,
{
    let (reading, write) = tokio::io::split(peer);
    let read = Reading::new(reading, read);
    let mut driver = Driver { read, write, application: None, open, gate, observer, settings };
    let step = loop {
        match driver.one().await {
            Step::Next => {}
            end => break end,
        }
    };
    let Driver { mut read, mut write, application, .. } = driver;
    drop(application);
    match step {
        Step::Next => End::Closed(None),
        Step::Close(error) => {
            // An error here means that the client has gone first.
            _ = write.shutdown().await;
            End::Closed(error)
        }
        Step::Linger(error) => {
            answer::linger(&mut read, &mut write, settings).await;
            End::Closed(error)
        }
        Step::Cut(error) => End::Cut(read.io.unsplit(write), error),
    }
}

impl<P, A, O, F, G, B> Driver<'_, P, A, O, G, B>
where
    P: AsyncRead + AsyncWrite + Unpin + Send,
    A: AsyncRead + AsyncWrite + Unpin + Send,
    O: Fn() -> F + Sync,
    F: Future<Output = io::Result<A>> + Send,
    G: Gate,
    B: Observer,
{
    /// One request, from waiting for it to the end of its response.
    async fn one(&mut self) -> Step {
        let request = match self.next_request().await {
            Ok(Some(request)) => request,
            Ok(None) => return Step::Close(None),
            Err(HttpError::Refused(refusal)) => {
                return self.refuse(refusal, &Names::default(), Instant::now(), &Progress::default()).await;
            }
            Err(error) => return Step::Close(Some(error)),
        };
        let started = Instant::now();
        let head = request.parsed.head(&request.bytes);
        let mut names = Names::of(&head);
        let decision = select! {
            biased;
            decision = self.gate.decide(&head) => decision,
            error = broken_off(&mut self.read, self.settings) => {
                let error = HttpError::Peer(error);
                let mut report = names.report(Verdict::Undecided, started.elapsed());
                report.error = Some(&error);
                self.observer.request(&report);
                return Step::Close(Some(error));
            }
        };
        match decision {
            Decision::Deny(denial) => {
                names.decided(denial.rule.as_ref(), denial.principal.as_ref());
                let answer = denial.response(names.is_grpc());
                self.answer_instead(&request, &answer, (&names, Verdict::Denied, started), None).await
            }
            Decision::Allow(edits) => {
                names.decided(edits.rule.as_ref(), edits.principal.as_ref());
                if connection_names(&request, &edits) {
                    return self.refuse(Refusal::Connection, &names, started, &Progress::default()).await;
                }
                if let Err(error) = self.connected().await {
                    let answer = answer::plain(StatusCode::SERVICE_UNAVAILABLE, answer::UNREACHABLE);
                    let about = (&names, Verdict::Allowed, started);
                    return self.answer_instead(&request, &answer, about, Some(HttpError::Open(error))).await;
                }
                self.exchanged(&request, &edits, &names, started).await
            }
        }
    }

    /// The next head; `None` when the client or the application ended between requests.
    async fn next_request(&mut self) -> Result<Option<Request>, HttpError> {
        self.free_buffers();
        let mut scan = HeadScan::request();
        let mut deadline = None;
        let mut skipped = false;
        loop {
            if scan.is_fresh() && !skipped && self.read.buffer.starts_with(b"\r\n") {
                self.read.skip_empty_line();
                skipped = true;
            }
            if let Scanned::Complete(end) = scan.feed(&self.read.buffer, self.settings.max_head_bytes)? {
                let bytes = self.read.buffer.split_to(end);
                let parsed = parse_request(&bytes, self.settings)?;
                return Ok(Some(Request { bytes, parsed }));
            }
            if deadline.is_none() && !self.read.buffer.is_empty() {
                deadline = Some(Clock::now() + self.settings.head_timeout);
            }
            select! {
                read = self.read.fill(HEAD_ROOM) => match read {
                    Ok(0) if self.read.buffer.is_empty() => return Ok(None),
                    Ok(0) => return Err(HttpError::RequestTruncated),
                    Ok(_) => {}
                    Err(error) => return Err(HttpError::Peer(error)),
                },
                () = ended(&mut self.application) => return Ok(None),
                () = elapsed(deadline) => return Err(Refusal::Timeout.into()),
            }
        }
    }

    /// An idle connection keeps no room for a body.
    fn free_buffers(&mut self) {
        let application = self.application.as_mut().map(|application| &mut application.read.buffer);
        for buffer in std::iter::once(&mut self.read.buffer).chain(application) {
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
        }
    }

    async fn connected(&mut self) -> io::Result<()> {
        if self.application.is_none() {
            let (read, write) = tokio::io::split((self.open)().await?);
            self.application = Some(Application { read: Reading::new(read, BytesMut::new()), write });
        }
        Ok(())
    }

    /// Refuses a request of which the application saw nothing, or not all.
    async fn refuse(
        &mut self,
        refusal: Refusal,
        names: &Names,
        started: Instant,
        progress: &Progress,
    ) -> Step {
        let status = refusal.status();
        let answer = answer::plain(status, status.canonical_reason().unwrap_or_default());
        let said = answer::say(&answer, true, false, &mut self.write).await;
        let error = HttpError::Refused(refusal);
        let mut report = names.report(Verdict::Refused(refusal), started.elapsed());
        report.status = Some(status);
        report.bytes_received = progress.received.load(Relaxed);
        report.bytes_sent = answer.2.len() as u64;
        report.error = Some(&error);
        self.observer.request(&report);
        if said.is_ok() { Step::Linger(Some(error)) } else { Step::Close(Some(error)) }
    }

    /// Answers in the application's place.
    async fn answer_instead(
        &mut self,
        request: &Request,
        answer: &(StatusCode, HeaderMap, Bytes),
        (names, verdict, started): (&Names, Verdict, Instant),
        error: Option<HttpError>,
    ) -> Step {
        let method = request.parsed.method(&request.bytes);
        let (read, write) = (&mut self.read, &mut self.write);
        let kept = answer::instead(answer, method, &request.parsed, read, write, self.settings).await;
        let mut report = names.report(verdict, started.elapsed());
        report.status = Some(answer.0);
        report.grpc_status = grpc_status_of(&answer.1);
        report.bytes_sent = if method == "HEAD" { 0 } else { answer.2.len() as u64 };
        report.error = error.as_ref();
        self.observer.request(&report);
        match kept {
            Ok(true) => Step::Next,
            Ok(false) => Step::Linger(error),
            Err(failed) => Step::Close(Some(failed)),
        }
    }

    async fn exchanged(&mut self, request: &Request, edits: &Edits, names: &Names, started: Instant) -> Step {
        let Some(application) = &mut self.application else { return Step::Close(None) };
        let progress = Progress::default();
        let Request { bytes, parsed } = request;
        let allowed = Allowed { bytes, parsed, edits, settings: self.settings, progress: &progress };
        let Application { read, write } = application;
        let ended = exchange(allowed, &mut self.read, &mut self.write, read, write).await;
        let begun = progress.response_begun.load(Relaxed);
        let (step, own_status) = match ended {
            Ended::Next => (Step::Next, None),
            Ended::Last => (Step::Linger(None), None),
            Ended::Tunnel { peer_ended } => (self.tunnel(peer_ended, &progress).await, None),
            // The client sees what it would have seen without meshd, and may send the request again.
            Ended::Unanswered => (Step::Close(Some(HttpError::ResponseTruncated)), None),
            Ended::Malformed(refusal) if !begun => {
                return self.refuse(refusal, names, started, &progress).await;
            }
            Ended::Malformed(refusal) => (Step::Cut(refusal.into()), None),
            Ended::BadResponse if !begun => {
                let answer = answer::plain(StatusCode::BAD_GATEWAY, answer::NOT_HTTP);
                // A client that is gone shows in the lingering.
                _ = answer::say(&answer, true, false, &mut self.write).await;
                (Step::Linger(Some(HttpError::ResponseMalformed)), Some(answer.0))
            }
            Ended::BadResponse => (Step::Cut(HttpError::ResponseMalformed), None),
            Ended::Broken(error) => (Step::Cut(error), None),
        };
        let mut report = names.report(Verdict::Allowed, started.elapsed());
        report.status = own_status.or(progress.status());
        report.bytes_received = progress.received.load(Relaxed);
        report.bytes_sent = progress.sent.load(Relaxed);
        report.error = match &step {
            Step::Close(error) | Step::Linger(error) => error.as_ref(),
            Step::Cut(error) => Some(error),
            Step::Next => None,
        };
        self.observer.request(&report);
        step
    }

    /// Bytes both ways until both have ended, each end passed on.
    async fn tunnel(&mut self, peer_ended: bool, progress: &Progress) -> Step {
        let Some(Application { read, write }) = &mut self.application else { return Step::Close(None) };
        let room = self.settings.body_buffer_bytes;
        let up = async {
            if peer_ended {
                return Ok(());
            }
            one_way(&mut self.read, write, room, &progress.received).await
        };
        let down = one_way(read, &mut self.write, room, &progress.sent);
        let up = async { up.await.map_err(|error| broken(error, HttpError::Peer, HttpError::Application)) };
        let down =
            async { down.await.map_err(|error| broken(error, HttpError::Application, HttpError::Peer)) };
        match tokio::try_join!(up, down) {
            Ok(_) => Step::Close(None),
            Err(error) => Step::Cut(error),
        }
    }
}

async fn one_way<R, W>(
    from: &mut Reading<R>,
    to: &mut W,
    room: usize,
    count: &AtomicU64,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    body::until_end(from, to, room, count).await?;
    to.shutdown().await.map_err(CopyError::To)
}

fn broken(error: CopyError, from: fn(io::Error) -> HttpError, to: fn(io::Error) -> HttpError) -> HttpError {
    match error {
        CopyError::From(error) => from(error),
        CopyError::To(error) => to(error),
        CopyError::Truncated => HttpError::ResponseTruncated,
        CopyError::Refused(refusal) => refusal.into(),
    }
}

/// Whether the client asks the application to drop a field that the gate speaks of.
fn connection_names(request: &Request, edits: &Edits) -> bool {
    let head = request.parsed.head(&request.bytes);
    let mut options = head.values("connection").flat_map(list);
    options.any(|option| std::str::from_utf8(option).is_ok_and(|name| edits.names(name)))
}

/// Waits until the client's side breaks, while its request is decided. What it sends in the meantime is kept, within
/// bounds; a client that has merely said all that it has to say still waits for its answer.
async fn broken_off<R: AsyncRead + Unpin>(read: &mut Reading<R>, settings: &Settings) -> io::Error {
    while read.buffer.len() < settings.body_buffer_bytes {
        match read.fill(HEAD_ROOM).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    pending().await
}

/// Waits until an idle application ends. What it says unasked cannot be an answer to the next request, so that ends it too.
async fn ended<A: AsyncRead + AsyncWrite>(application: &mut Option<Application<A>>) {
    match application {
        None => pending().await,
        // Whatever comes back, data, the end, or an error, this connection serves no further request.
        Some(application) if application.read.buffer.is_empty() => _ = application.read.io.read_u8().await,
        Some(_) => {}
    }
}

async fn elapsed(deadline: Option<Clock>) {
    match deadline {
        None => pending().await,
        Some(deadline) => sleep_until(deadline).await,
    }
}
