//! One stream: decided, and where it is let through, sent on and answered, both directions at once. A reset on one side
//! becomes a reset on the other with the same reason.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    time::Instant,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
};

use super::{
    super::{
        error::{HttpError, Refusal},
        gate::{Decision, Denial, Edits, Gate, grpc_status_of},
        h1::{NOT_HTTP, UNREACHABLE, is_forbidden_trailer},
        observe::{Names, Observer, Verdict},
        settings::Settings,
    },
    heads::{self, Head},
    pump::{Stop, pump},
    upstream::Upstream,
};

/// What all streams of a connection share.
pub(super) struct Shared<'a, O, A, G, B> {
    pub(super) upstream: Upstream<'a, O, A>,
    pub(super) gate: &'a G,
    pub(super) observer: &'a B,
    pub(super) settings: &'a Settings,
}

/// What is known of a stream at its end.
#[derive(Default)]
struct Outcome {
    status: Option<StatusCode>,
    grpc_status: Option<u8>,
    sent_by_us: u64,
    /// The client reset it before it was answered.
    taken_back: bool,
    /// What the application's side is reset with.
    reset: Option<Reason>,
    error: Option<HttpError>,
}

/// Bytes of both directions.
#[derive(Default)]
struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
}

impl<O, A, F, G, B> Shared<'_, O, A, G, B>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    O: Fn() -> F + Sync,
    F: Future<Output = io::Result<A>> + Send,
    G: Gate,
    B: Observer,
{
    /// Serves a stream to its end. True where the client took it back before it was answered.
    pub(super) async fn one(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> bool {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let is_head = parts.method == http::Method::HEAD;
        let counts = Counts::default();
        let (names, verdict, outcome) = match Head::new(parts, self.settings) {
            Err(refusal) => {
                let status = refusal.status();
                let denial = Denial::new(status, status.canonical_reason().unwrap_or_default());
                let mut outcome = answer(&mut respond, &denial, false, is_head);
                outcome.error = Some(refusal.into());
                (Names::default(), Verdict::Refused(refusal), outcome)
            }
            Ok(head) => self.decided(head, body, respond, &counts).await,
        };
        let mut report = names.report(verdict, started.elapsed());
        report.status = outcome.status;
        report.grpc_status = outcome.grpc_status;
        report.bytes_received = counts.received.load(Relaxed);
        report.bytes_sent = counts.sent.load(Relaxed) + outcome.sent_by_us;
        report.error = outcome.error.as_ref();
        self.observer.request(&report);
        outcome.taken_back
    }

    async fn decided(
        &self,
        head: Head,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
        counts: &Counts,
    ) -> (Names, Verdict, Outcome) {
        let view = head.view();
        let (mut names, is_head) = (Names::of(&view), view.method == "HEAD");
        let grpc = names.is_grpc();
        let decision = select! {
            biased;
            _ = taken_back(&mut respond) => return (names, Verdict::Undecided, Outcome::taken_back()),
            decision = self.gate.decide(&view) => decision,
        };
        let edits = match decision {
            Decision::Deny(denial) => {
                names.decided(denial.rule.as_ref(), denial.principal.as_ref());
                return (names, Verdict::Denied, answer(&mut respond, &denial, grpc, is_head));
            }
            Decision::Allow(edits) => edits,
        };
        names.decided(edits.rule.as_ref(), edits.principal.as_ref());
        let outcome = self.allowed(head, &edits, body, respond, counts, (grpc, is_head)).await;
        (names, Verdict::Allowed, outcome)
    }

    /// Opens the application's side and joins the two.
    async fn allowed(
        &self,
        head: Head,
        edits: &Edits,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
        counts: &Counts,
        (grpc, is_head): (bool, bool),
    ) -> Outcome {
        let sender = select! {
            biased;
            _ = taken_back(&mut respond) => return Outcome::taken_back(),
            sender = self.ready() => sender,
        };
        let mut sender = match sender {
            Ok(sender) => sender,
            Err(HttpError::ApplicationH2(error)) => {
                // Nothing of it was sent: the client may try again on a new connection (RFC 9113 section 8.7).
                respond.send_reset(Reason::REFUSED_STREAM);
                return Outcome::failed(HttpError::ApplicationH2(error));
            }
            Err(error) => {
                let denial = Denial::new(StatusCode::SERVICE_UNAVAILABLE, UNREACHABLE);
                return Outcome { error: Some(error), ..answer(&mut respond, &denial, grpc, is_head) };
            }
        };
        let request = match head.into_request(edits) {
            Ok(request) => request,
            Err(refusal) => {
                let denial = Denial::new(refusal.status(), "Bad Request");
                return Outcome {
                    error: Some(refusal.into()),
                    ..answer(&mut respond, &denial, grpc, is_head)
                };
            }
        };
        match sender.send_request(request, body.is_end_stream()) {
            Ok((response, to)) => join(body, to, response, respond, edits, counts, (grpc, is_head)).await,
            Err(error) => {
                respond.send_reset(Reason::REFUSED_STREAM);
                Outcome::failed(HttpError::ApplicationH2(error))
            }
        }
    }

    async fn ready(&self) -> Result<SendRequest<Bytes>, HttpError> {
        self.upstream.sender().await?.ready().await.map_err(HttpError::ApplicationH2)
    }
}

impl Outcome {
    fn taken_back() -> Self {
        Self { taken_back: true, ..Self::default() }
    }

    fn failed(error: HttpError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// Waits until the client resets the stream or is gone.
async fn taken_back(respond: &mut SendResponse<Bytes>) -> Option<Reason> {
    poll_fn(|context| respond.poll_reset(context)).await.ok()
}

/// Answers in the application's place.
fn answer(respond: &mut SendResponse<Bytes>, denial: &Denial, grpc: bool, is_head: bool) -> Outcome {
    let (status, mut headers, body) = denial.response(grpc);
    let grpc_status = grpc_status_of(&headers);
    if !grpc && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let body = if is_head { Bytes::new() } else { body };
    let sent_by_us = body.len() as u64;
    let sent = respond
        .send_response(response, body.is_empty())
        .and_then(|mut to| if body.is_empty() { Ok(()) } else { to.send_data(body, true) });
    let error = sent.err().map(HttpError::PeerH2);
    Outcome { status: Some(status), grpc_status, sent_by_us, error, ..Outcome::default() }
}

/// Both directions until both have ended.
async fn join(
    mut body: RecvStream,
    mut to: SendStream<Bytes>,
    response: ResponseFuture,
    respond: SendResponse<Bytes>,
    edits: &Edits,
    counts: &Counts,
    answering: (bool, bool),
) -> Outcome {
    let good = |trailers: &HeaderMap| {
        !trailers.keys().any(|name| is_forbidden_trailer(name.as_str()) || edits.names(name.as_str()))
    };
    let whole = body.is_end_stream();
    let outcome = {
        let mut up = pin!(async {
            if whole { Ok(()) } else { pump(&mut body, &mut to, &counts.received, good).await }
        });
        let mut down = pin!(relay_response(response, respond, edits, counts, answering));
        let mut up_ended = false;
        loop {
            select! {
                outcome = &mut down => {
                    // The application is done, and may still read.
                    if up_ended || outcome.error.is_some() || outcome.reset.is_some() {
                        break outcome;
                    }
                    let reset = match up.await {
                        Err(Stop::From(error)) => Some(error.reason().unwrap_or(Reason::CANCEL)),
                        Err(Stop::Trailer) => Some(Reason::PROTOCOL_ERROR),
                        Ok(()) | Err(Stop::To(_)) => None,
                    };
                    break Outcome { reset, ..outcome };
                }
                end = &mut up, if !up_ended => match end {
                    Ok(()) | Err(Stop::To(_)) => up_ended = true,
                    // What is dropped here resets the stream to the client too.
                    Err(Stop::From(error)) => {
                        let reset = Some(error.reason().unwrap_or(Reason::CANCEL));
                        break Outcome { taken_back: true, reset, ..Outcome::failed(HttpError::PeerH2(error)) };
                    }
                    Err(Stop::Trailer) => {
                        let reset = Some(Reason::PROTOCOL_ERROR);
                        break Outcome { reset, ..Outcome::failed(HttpError::Refused(Refusal::Trailer)) };
                    }
                },
            }
        }
    };
    if let Some(reason) = outcome.reset {
        to.send_reset(reason);
    }
    outcome
}

/// The application's answer: interim responses, head, body, trailers.
async fn relay_response(
    mut response: ResponseFuture,
    mut respond: SendResponse<Bytes>,
    edits: &Edits,
    counts: &Counts,
    (grpc, is_head): (bool, bool),
) -> Outcome {
    let (mut parts, mut body) = match head_of(&mut response, &mut respond).await {
        Err(reason) => return Outcome { reset: Some(reason), ..Outcome::taken_back() },
        Ok(Ok(found)) => found.into_parts(),
        Ok(Err(error)) => return unanswered(error, &mut respond, grpc, is_head),
    };
    heads::add_to_response(&mut parts.headers, edits);
    let (status, mut grpc_status) = (Some(parts.status), grpc_status_of(&parts.headers));
    let whole = body.is_end_stream();
    let mut to = match respond.send_response(Response::from_parts(parts, ()), whole) {
        Ok(to) => to,
        Err(error) => return Outcome { status, ..Outcome::failed(HttpError::PeerH2(error)) },
    };
    if whole {
        return Outcome { status, grpc_status, ..Outcome::default() };
    }
    let good = |trailers: &HeaderMap| {
        grpc_status = grpc_status.or(grpc_status_of(trailers));
        true
    };
    match pump(&mut body, &mut to, &counts.sent, good).await {
        Ok(()) | Err(Stop::Trailer) => Outcome { status, grpc_status, ..Outcome::default() },
        Err(Stop::From(error)) => {
            to.send_reset(error.reason().filter(|_| error.is_reset()).unwrap_or(Reason::INTERNAL_ERROR));
            Outcome { status, ..Outcome::failed(HttpError::ApplicationH2(error)) }
        }
        Err(Stop::To(error)) => {
            let reset = Some(error.reason().unwrap_or(Reason::CANCEL));
            Outcome { status, reset, ..Outcome::failed(HttpError::PeerH2(error)) }
        }
    }
}

/// The final head; interim ones are passed on as they come. The outer error is the client's, who takes the stream back.
async fn head_of(
    response: &mut ResponseFuture,
    respond: &mut SendResponse<Bytes>,
) -> Result<Result<Response<RecvStream>, h2::Error>, Reason> {
    poll_fn(|context| {
        if let Poll::Ready(reset) = respond.poll_reset(context) {
            return Poll::Ready(Err(reset.unwrap_or(Reason::CANCEL)));
        }
        while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
            // A client that is gone shows in the final response.
            _ = respond.send_informational(interim);
        }
        Pin::new(&mut *response).poll(context).map(Ok)
    })
    .await
}

/// The application did not answer: its reset is passed on, a lost connection is said as Envoy says it.
fn unanswered(error: h2::Error, respond: &mut SendResponse<Bytes>, grpc: bool, is_head: bool) -> Outcome {
    if let Some(reason) = error.reason().filter(|_| error.is_reset() && error.is_remote()) {
        respond.send_reset(reason);
        return Outcome::failed(HttpError::ApplicationH2(error));
    }
    let denial = if error.is_reset() {
        Denial::new(StatusCode::BAD_GATEWAY, NOT_HTTP)
    } else {
        Denial::new(StatusCode::SERVICE_UNAVAILABLE, UNREACHABLE)
    };
    Outcome { error: Some(HttpError::ApplicationH2(error)), ..answer(respond, &denial, grpc, is_head) }
}
