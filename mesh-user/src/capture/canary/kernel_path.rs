//! Proof of the kernel path: a client connects straight to its server where the verdict says so, both are seen and can
//! be closed from here; where the verdict names another namespace the client takes no answer.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use mesh_common::Counter;

use super::{
    super::{Capture, CaptureError, KernelPairOf},
    Capability, CaptureSettings, SERVER_PORT, STEP_LIMIT, on_stage,
    peer::{CONNECT_FAILED, Child},
    stage::{CLIENT, SERVER, Stage},
};

/// The row's name, by which the daemon decides whether the path is used.
pub const NAME: &str = "kernel path";
const MEANING: &str =
    "workloads of one node reach each other from socket to socket where sameNode says kernel; else by TLS";
const CLIENT_ID: u32 = 1;
const SERVER_ID: u32 = 2;
const POLL: Duration = Duration::from_millis(1);

/// Plays both acts; what fails is a path that is not used, never a daemon that does not start.
pub(super) fn play(stage: &Stage, settings: &CaptureSettings) -> Capability {
    let settings = CaptureSettings { kernel_path: true, ..settings.clone() };
    let seen = act(stage, &settings, SERVER_ID, straight).and_then(|seen| {
        act(stage, &settings, CLIENT_ID, misled).map(|refused| format!("{seen}; {refused}"))
    });
    Capability {
        name: NAME,
        proven: seen.is_ok(),
        required: false,
        meaning: MEANING,
        detail: seen.unwrap_or_else(|why| why),
    }
}

/// Allows the client to connect to the server's addresses as if they were those of `server`, and starts the child.
fn act(
    stage: &Stage,
    settings: &CaptureSettings,
    server: u32,
    play: fn(&Capture, &Child) -> Result<String, String>,
) -> Result<String, String> {
    let allow = |capture: &Capture| {
        let failed = |source| CaptureError::Canary { action: "open the kernel path", source };
        let path = capture.kernel_path().ok_or(CaptureError::Object("KERNEL_PATH"))?;
        path.withdraw_verdicts().map_err(failed)?;
        for address in SERVER {
            let to = SocketAddr::new(address, SERVER_PORT);
            path.allow(&KernelPairOf { client: CLIENT_ID, server, to }, path.generation()).map_err(failed)?;
        }
        Ok(())
    };
    on_stage(stage, settings, allow, |capture, _, _, child| play(capture, &child))
        .map_err(|error| error.to_string())?
}

fn straight(capture: &Capture, child: &Child) -> Result<String, String> {
    let families = child.families()?;
    let mut clients = Vec::new();
    for address in SERVER.iter().zip(CLIENT).take(families) {
        let line = child.line()?;
        let (wanted, from) = (SocketAddr::new(*address.0, SERVER_PORT), address.1);
        let own = line.strip_prefix(&format!("{wanted} ")).and_then(|own| own.parse::<SocketAddr>().ok());
        match own.filter(|own| own.ip() == from) {
            Some(own) => clients.push(own),
            None => return Err(format!("a client of {wanted} from {from} says {line}")),
        }
    }
    let _mptcp = child.line()?;
    for client in &clients {
        let line = child.line()?;
        if line != format!("{client} {client}") {
            return Err(format!("the server of {client} sees {line}"));
        }
    }
    let path = capture.kernel_path().ok_or("the path is not there")?;
    let live = path.live().map_err(|e| said(&e))?;
    if live.len() != clients.len() || !live.iter().all(|c| clients.contains(&c.client)) {
        return Err(format!("{} connections are recorded, {} live", live.len(), clients.len()));
    }
    for connection in &live {
        path.close(connection).map_err(|e| format!("{} cannot be closed: {e}", connection.client))?;
    }
    until(|| Ok(path.live().map_err(|e| said(&e))?.is_empty()))?
        .then(|| format!("{families} connected, seen and closed"))
        .ok_or_else(|| "closed connections stay recorded".to_owned())
}

fn misled(capture: &Capture, child: &Child) -> Result<String, String> {
    child.families()?;
    let forged =
        until(|| Ok(capture.stats().map_err(|e| e.to_string())?.get(Counter::KernelPathForged) > 0))?;
    if forged {
        return Ok("an answer from elsewhere is dropped".to_owned());
    }
    let said = child.line().unwrap_or_else(|_| CONNECT_FAILED.to_owned());
    Err(format!("a connect that another namespace answered says {said}"))
}

/// Whether something comes true within the limit of a step.
fn until(mut holds: impl FnMut() -> Result<bool, String>) -> Result<bool, String> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        if holds()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}

fn said(error: &io::Error) -> String {
    error.to_string()
}
