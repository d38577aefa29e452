//! Random exchanges against a model: what one application writes is what the other reads, each byte once and in its
//! place; a clean end is told only where one was sent, a reset only where something was reset; and nothing hangs.
//!
//! Each run has a seed of its own, which a failure names. `MESHD_RELAY_FUZZ_SEED` is the first run's,
//! `MESHD_RELAY_FUZZ_RUNS` says how many there are; without it they go on for [`SHARE`].

use std::{
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_user::proxy::relay::{EndedBy, RelayOptions, RelayOutcome};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Kinds,
    mesh::{Mesh, Trust},
    party::{End, Leaving, Script, Seen, bytes_at, size},
};

/// What the normal test run gives each pair of relays.
const SHARE: Duration = Duration::from_secs(3);
const FEWEST_RUNS: u64 = 8;
/// At once, on one thread: so that pauses of one are work of another.
const AT_ONCE: usize = 12;
/// A run takes milliseconds; an emulated machine is a hundred times slower.
const HANGS_AFTER: Duration = Duration::from_secs(60);

pub(crate) async fn random_exchanges_are_what_the_model_says(kinds: Kinds) {
    let first = number("MESHD_RELAY_FUZZ_SEED").unwrap_or_else(rand::random);
    let runs = number("MESHD_RELAY_FUZZ_RUNS");
    let (trust, started, mut begun, mut ended) = (Arc::new(Trust::new()), Instant::now(), 0, 0_u64);
    let mut playing = FuturesUnordered::new();
    loop {
        let more = runs.map_or(begun < FEWEST_RUNS || started.elapsed() < SHARE, |runs| begun < runs);
        if more && playing.len() < AT_ONCE {
            playing.push(run(Arc::clone(&trust), kinds.clone(), first.wrapping_add(begun)));
            begun += 1;
            continue;
        }
        let Some((seed, judged)) = playing.next().await else { break };
        ended += 1;
        if let Err(what) = judged {
            panic!("{what}\nonce more: MESHD_RELAY_FUZZ_SEED={seed} MESHD_RELAY_FUZZ_RUNS=1");
        }
    }
    println!(
        "{}/{}: {ended} random exchanges from seed {first}, {:.0} a second",
        kinds.client.as_str(),
        kinds.server.as_str(),
        Duration::from_secs(ended).div_duration_f64(started.elapsed())
    );
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What a seed stands for.
#[derive(Debug)]
struct Plan {
    early: usize,
    small_send_buffer: bool,
    rekeys: bool,
    settles: bool,
    client: Script,
    server: Script,
}

async fn run(trust: Arc<Trust>, kinds: Kinds, seed: u64) -> (u64, Result<(), String>) {
    let random = &mut StdRng::seed_from_u64(seed);
    let plan = Plan {
        early: if random.random_bool(0.3) { size(random, 14) } else { 0 },
        small_send_buffer: random.random_bool(0.2),
        rekeys: random.random_bool(0.3) && kinds.kernel.rekey.is_ok(),
        settles: random.random_bool(0.05),
        client: Script::random(random),
        server: Script::random(random),
    };
    let judged = match tokio::time::timeout(HANGS_AFTER, play(&trust, &kinds, seed, &plan)).await {
        Ok(judged) => judged,
        Err(_) => Err(format!("hangs for {HANGS_AFTER:?}")),
    };
    (seed, judged.map_err(|what| format!("{what}\n{plan:?}")))
}

async fn play(trust: &Trust, kinds: &Kinds, seed: u64, plan: &Plan) -> Result<(), String> {
    // Two streams that no run shares with its neighbours.
    let (up, down) = (seed.wrapping_mul(2).rotate_left(40), (seed.wrapping_mul(2) + 1).rotate_left(40));
    let records_per_key = if plan.rekeys { 40 } else { u64::MAX };
    let options = RelayOptions { records_per_key, ..RelayOptions::default() };
    let early = bytes_at(up, 0, plan.early);
    let settling = if plan.settles { Duration::from_millis(20) } else { Duration::ZERO };
    let mesh = Mesh::start_at_once(trust, kinds, options, &early, plan.small_send_buffer, settling).await;
    let (client, server) = tokio::join!(
        plan.client.play(mesh.client, (up, down), plan.early),
        plan.server.play(mesh.server, (down, up), 0)
    );
    let (client, server) = (client?, server?);
    judge("the server", &client, plan.client.leaving, &server, plan.server.leaving)?;
    judge("the client", &server, plan.server.leaving, &client, plan.client.leaving)?;
    for relay in [mesh.client_relay, mesh.server_relay] {
        let outcome = relay.await.map_err(|error| format!("a relay panicked: {error}"))?;
        judge_outcome(&outcome, plan)?;
    }
    Ok(())
}

/// What `reader`, `who` by name, saw of `writer`'s stream.
fn judge(who: &str, writer: &Seen, leaves: Leaving, reader: &Seen, itself: Leaving) -> Result<(), String> {
    let saw = || format!("{who} saw {reader:?} of {writer:?}");
    let somebody_resets = leaves != Leaving::Finish || itself != Leaving::Finish;
    if reader.received > writer.sent {
        return Err(format!("more is read than was written: {}", saw()));
    }
    match reader.end {
        End::Clean if !writer.finished => Err(format!("a clean end that nobody sent: {}", saw())),
        End::Clean if reader.received < writer.sent => Err(format!("bytes are lost: {}", saw())),
        End::Reset if leaves == Leaving::Finish => Err(format!("a reset that nobody sent: {}", saw())),
        End::NotSeen if itself == Leaving::Finish => Err(format!("no end: {}", saw())),
        _ if reader.write_failed && leaves == Leaving::Finish => {
            Err(format!("a write failed though the other end reads: {}", saw()))
        }
        End::Clean | End::Reset | End::NotSeen => {
            if !somebody_resets && reader.received != writer.sent {
                return Err(format!("bytes are lost: {}", saw()));
            }
            Ok(())
        }
    }
}

fn judge_outcome(outcome: &RelayOutcome, plan: &Plan) -> Result<(), String> {
    let orderly = plan.client.leaving == Leaving::Finish && plan.server.leaving == Leaving::Finish;
    let expected = match outcome.ended_by {
        EndedBy::Finished => true,
        EndedBy::AppReset | EndedBy::WireReset => !orderly,
        _ => false,
    };
    if expected { Ok(()) } else { Err(format!("a relay ended by {:?}", outcome.ended_by)) }
}
