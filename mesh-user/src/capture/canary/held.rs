//! Proof of the `hold` form: the child's `connect` waits for us, is completed by simultaneous open, and the next
//! one is refused with the error that it would have met without meshd.

use std::{io, net::SocketAddr, thread};

use tokio::{runtime, time::timeout};

use super::{
    super::{AppLeg, Captured, EnrolledNamespace, HoldCapture, Refusal},
    Capability, SERVER_PORT, STEP_LIMIT,
    peer::{Child, REFUSED, REFUSED_PORT},
    stage::{CLIENT, SERVER},
};

/// The row's name, by which the daemon chooses its form.
pub const NAME: &str = "held connect";
const MEANING: &str = "a connect waits until the far side is proven, and fails as it would without meshd; else it \
                       succeeds at once and a failure is a reset right after";

/// Plays with the child; what fails is a form that is not used, never a daemon that does not start.
pub(super) fn play(client: &EnrolledNamespace, child: Child) -> Capability {
    // The daemon's own runtime may be running on this thread.
    let seen = thread::scope(|scope| scope.spawn(move || act(client, &child)).join())
        .unwrap_or_else(|_| Err("the canary's act panicked".to_owned()));
    capability(seen)
}

/// The row of a form that could not even be tried.
pub(super) fn not_tried(why: &(impl ToString + ?Sized)) -> Capability {
    capability(Err(why.to_string()))
}

fn capability(seen: Result<String, String>) -> Capability {
    Capability {
        name: NAME,
        proven: seen.is_ok(),
        required: false,
        meaning: MEANING,
        detail: seen.unwrap_or_else(|why| why),
    }
}

fn act(client: &EnrolledNamespace, child: &Child) -> Result<String, String> {
    let said = |error: io::Error| error.to_string();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(said)?;
    let mut capture = client.held.as_ref().ok_or("connects are not held")?.subscribe();
    let families = child.families()?;
    let mut shown = Vec::new();
    for family in 0..families {
        shown.push(runtime.block_on(one_family(&mut capture, child, family))?);
    }
    Ok(shown.join("; "))
}

async fn one_family(capture: &mut HoldCapture, child: &Child, family: usize) -> Result<String, String> {
    let wanted = SocketAddr::new(SERVER[family], SERVER_PORT);
    let (leg, source) = next(capture, wanted).await?;
    if source.map(|source| source.ip()) != Some(CLIENT[family]) {
        return Err(format!("a held connect to {wanted} comes from {source:?}"));
    }
    let stream = leg.complete().await.map_err(|error| format!("{wanted} could not be completed: {error}"))?;
    let line = child.line()?;
    if Some(line.as_str()) != source.map(|own| format!("{wanted} {own}")).as_deref() {
        return Err(format!("getpeername and getsockname should say {wanted} {source:?}; they say {line}"));
    }
    drop(stream);
    let (leg, _) = next(capture, SocketAddr::new(SERVER[family], REFUSED_PORT)).await?;
    leg.refuse(Refusal::Refused).await;
    let line = child.line()?;
    if line == REFUSED {
        Ok(format!("{wanted} completed, then refused"))
    } else {
        Err(format!("a refused connect should say {REFUSED}; it says {line}"))
    }
}

async fn next(capture: &mut HoldCapture, wanted: SocketAddr) -> Result<(AppLeg, Option<SocketAddr>), String> {
    let Captured { leg, original } = timeout(STEP_LIMIT, capture.next())
        .await
        .map_err(|_| format!("no SYN to {wanted} was held within {} s", STEP_LIMIT.as_secs()))?
        .ok_or("the held connects ended")?;
    if original.destination == wanted {
        Ok((leg, original.source))
    } else {
        Err(format!("the SYN that was held goes to {}, not {wanted}", original.destination))
    }
}
