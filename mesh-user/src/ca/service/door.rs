//! What each request passes before its handler sees it: the address's rate, a place among those that are answered at once, a
//! time. Whatever ends here, or in the gRPC library below the handlers, gets its line in the audit too.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::{body::Incoming, service::Service as HyperService};
use tokio::time::timeout;
use tonic::{Code, Status, body::Body, service::Routes};
use tower_service::Service as HttpService;

use super::{Doing, Service};
use crate::ca::{
    audit::AuditRecord,
    callers::{Peer, Refusal},
};

/// The one call that lasts.
const WATCH: &str = "Watch";

/// How busy a connection is.
#[derive(Debug)]
pub(super) struct Activity {
    requests: AtomicUsize,
    quiet_since: Mutex<Instant>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { requests: AtomicUsize::new(0), quiet_since: Mutex::new(Instant::now()) }
    }

    /// Since when nothing has been asked; none: something is being answered.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let since = *self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.requests.load(Relaxed) == 0).then_some(since)
    }

    fn request(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Relaxed);
        Busy(Arc::clone(self))
    }
}

/// One request on a connection.
#[derive(Debug)]
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.quiet_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

/// An answer that keeps its connection from being idle.
struct Lasting {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Lasting {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// The service as one connection sees it.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) service: Arc<Service>,
    pub(super) routes: Routes,
    pub(super) peer: Peer,
    pub(super) activity: Arc<Activity>,
}

impl HyperService<Request<Incoming>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let door = self.clone();
        Box::pin(async move { Ok(door.pass(request).await) })
    }
}

impl Door {
    async fn pass(self, mut request: Request<Incoming>) -> Response<Body> {
        let busy = self.activity.request();
        let call = call(request.uri().path());
        if let Err(refusal) = self.may_knock() {
            return self.refuse(call, &refusal);
        }
        // What watches is counted by its handler.
        let place = match call {
            WATCH => None,
            _ => match Arc::clone(&self.service.requests).try_acquire_owned() {
                Ok(place) => Some(Arc::new(place)),
                Err(_none) => return self.refuse(call, &Refusal::Busy("requests")),
            },
        };
        let recorded = Arc::new(AtomicBool::new(false));
        let doing = Doing { peer: self.peer.clone(), recorded: Arc::clone(&recorded), place };
        request.extensions_mut().insert(doing);
        let mut routes = self.routes.clone();
        let answering = async {
            // Its error is Infallible.
            let _ready =
                poll_fn(|context| HttpService::<Request<Incoming>>::poll_ready(&mut routes, context)).await;
            routes.call(request).await
        };
        if call == WATCH {
            let Ok(response) = answering.await;
            let response = self.look(call, response, &recorded);
            return response.map(|body| Body::new(Lasting { body, _busy: busy }));
        }
        match timeout(self.service.limits.request_timeout(), answering).await {
            Ok(Ok(response)) => self.look(call, response, &recorded),
            Err(_elapsed) => self.refuse(call, &Refusal::TooSlow),
        }
    }

    fn may_knock(&self) -> Result<(), Refusal> {
        match &self.peer {
            Peer::Network { address, .. } => self.service.rates.address(address.ip()),
            Peer::Local { .. } => self.service.rates.address(IpAddr::from([127, 0, 0, 1])),
        }
    }

    fn refuse(&self, call: &'static str, refusal: &Refusal) -> Response<Body> {
        record(&self.service, call, &self.peer.to_string(), refusal.reason(), refusal.to_string());
        refusal.status().into_http()
    }

    /// The library refuses what is too long, no message or for nobody before a handler sees it.
    fn look(&self, call: &'static str, response: Response<Body>, recorded: &AtomicBool) -> Response<Body> {
        if !recorded.load(Relaxed)
            && let Some(status) = Status::from_header_map(response.headers())
            && status.code() != Code::Ok
        {
            let reason = match status.code() {
                Code::OutOfRange | Code::ResourceExhausted => "too_long",
                Code::Unimplemented => "unknown_call",
                Code::Cancelled => "cancelled",
                _ => "malformed",
            };
            record(&self.service, call, &self.peer.to_string(), reason, status.message().to_owned());
        }
        response
    }
}

/// A refusal that no handler has seen.
pub(super) fn record(
    service: &Service,
    call: &'static str,
    peer: &str,
    reason: &'static str,
    detail: String,
) {
    service.metrics.refused(reason);
    service.audit.refused(AuditRecord {
        call,
        outcome: "refused",
        reason: Some(reason),
        detail: Some(detail),
        peer: Some(peer.to_owned()),
        ..AuditRecord::default()
    });
}

/// The call's name in records; a path that a caller made up is none.
fn call(path: &str) -> &'static str {
    match path {
        "/istio.v1.auth.IstioCertificateService/CreateCertificate" => "CreateCertificate",
        "/meshd.ca.v1.Join/Redeem" => "Redeem",
        "/meshd.ca.v1.JwtSvid/Mint" => "Mint",
        "/meshd.ca.v1.Trust/Watch" => WATCH,
        _ => "other",
    }
}
