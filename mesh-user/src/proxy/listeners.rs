//! Accept loops on the listeners inside workload namespaces. A connection stays on the worker that accepted it.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Mesh, Workers,
    inbound::{canonical, inbound},
    outbound::outbound,
};
use crate::{
    capture::{Captured, EnrolledNamespace, HoldCapture, ListenerCapture, Refusal, WorkloadNet},
    sys::socket::{self, reset_on_close},
    world::WorkloadName,
};

/// Workers that accept on one listener. More would all be woken by each connection.
const ACCEPTORS: usize = 4;

/// The accept loops of all namespaces.
#[derive(Debug, Default)]
pub struct Acceptors {
    stops: Mutex<HashMap<u64, CancellationToken>>,
}

impl Acceptors {
    /// Begins to serve a namespace's listeners; see [`serve`].
    ///
    /// # Errors
    /// When a listener cannot be shared among the workers.
    pub fn add(&self, mesh: &Arc<Mesh>, workers: &Workers, namespace: EnrolledNamespace) -> io::Result<()> {
        let cookie = namespace.net.cookie();
        let stop = serve(mesh, workers, namespace)?;
        if let Some(old) = self.stops().insert(cookie, stop) {
            old.cancel();
        }
        Ok(())
    }

    /// Stops serving a namespace; its live connections go on.
    pub fn remove(&self, cookie: u64) {
        if let Some(stop) = self.stops().remove(&cookie) {
            stop.cancel();
        }
    }

    /// Stops serving all namespaces.
    pub fn stop(&self) {
        for (_, stop) in self.stops().drain() {
            stop.cancel();
        }
    }

    fn stops(&self) -> std::sync::MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a namespace's listeners until the token is cancelled.
///
/// # Errors
/// When a listener cannot be shared among the workers.
pub fn serve(
    mesh: &Arc<Mesh>,
    workers: &Workers,
    namespace: EnrolledNamespace,
) -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let EnrolledNamespace { net, listeners, held } = namespace;
    if let Some(held) = held {
        for _ in 0..workers.count() {
            let (mesh, net, stop, capture) =
                (Arc::clone(mesh), Arc::clone(&net), stop.clone(), held.subscribe());
            workers.spawn(async move {
                stop.run_until_cancelled(take_held(mesh, net, capture)).await;
            });
        }
    }
    for listener in listeners.outbound {
        on_workers(workers, &listener, |listener| {
            let (mesh, net, stop) = (Arc::clone(mesh), Arc::clone(&net), stop.clone());
            async move {
                stop.run_until_cancelled(accept_outbound(mesh, net, listener)).await;
            }
        })?;
    }
    for listener in listeners.inbound {
        on_workers(workers, &listener, |listener| {
            let (mesh, net, stop) = (Arc::clone(mesh), Arc::clone(&net), stop.clone());
            async move {
                stop.run_until_cancelled(accept_inbound(mesh, net, listener)).await;
            }
        })?;
    }
    Ok(stop)
}

fn on_workers<F>(workers: &Workers, listener: &StdListener, make: impl Fn(StdListener) -> F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    for _ in 0..workers.count().min(ACCEPTORS) {
        workers.spawn(make(listener.try_clone()?));
    }
    Ok(())
}

async fn accept_outbound(mesh: Arc<Mesh>, net: Arc<WorkloadNet>, listener: StdListener) {
    let capture = match ListenerCapture::new(Arc::clone(&net), listener) {
        Ok(capture) => capture,
        Err(error) => return tracing::error!(%error, "an outbound listener cannot be served"),
    };
    loop {
        match capture.next().await {
            Ok(captured) => serve_outbound(&mesh, &net, captured),
            Err(error) => return tracing::error!(%error, "an outbound listener failed"),
        }
    }
}

async fn take_held(mesh: Arc<Mesh>, net: Arc<WorkloadNet>, mut capture: HoldCapture) {
    while let Some(captured) = capture.next().await {
        serve_outbound(&mesh, &net, captured);
    }
}

fn serve_outbound(mesh: &Arc<Mesh>, net: &Arc<WorkloadNet>, captured: Captured) {
    match mesh.name(captured.original.workload) {
        Some(name) => {
            tokio::spawn(outbound(Arc::clone(mesh), Arc::clone(net), name, captured));
        }
        None => {
            tokio::spawn(captured.leg.refuse(Refusal::Refused));
        }
    }
}

async fn accept_inbound(mesh: Arc<Mesh>, net: Arc<WorkloadNet>, listener: StdListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "an inbound listener cannot be served"),
    };
    loop {
        let (stream, client) = match socket::accept(&listener).await {
            Ok(accepted) => accepted,
            Err(error) => return tracing::error!(%error, "an inbound listener failed"),
        };
        // None: it was reset before it was accepted.
        let owned = stream.local_addr().ok().and_then(|local| Some((local, owner(&mesh, &net, local)?)));
        match owned {
            Some((local, name)) => {
                let ends = (canonical(client), canonical(local));
                tokio::spawn(inbound(Arc::clone(&mesh), Arc::clone(&net), name, stream, ends));
            }
            None => reset_on_close(&stream),
        }
    }
}

fn owner(mesh: &Mesh, net: &WorkloadNet, local: SocketAddr) -> Option<WorkloadName> {
    if net.is_own_listener(local) {
        return None;
    }
    mesh.name(net.inbound_workload(local.port())?)
}
