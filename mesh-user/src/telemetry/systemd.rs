//! systemd's notify protocol (`sd_notify(3)`): ready, reloading, stopping, and a watchdog that pings only
//! while every runtime that carries connections still runs tasks. Outside systemd all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

/// Tells systemd that start-up is finished.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that a reload has begun; [`ready`] ends it. With `Type=notify-reload` systemd wants the
/// monotonic time in the same message.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => {
            tracing::warn!(%error, "cannot read the monotonic clock; systemd is not told of the reload");
        }
    }
}

/// Tells systemd that the daemon stops, and that draining may take this long.
pub fn stopping(drain: Duration) {
    let extend = u32::try_from(drain.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(extend)]);
}

/// The line that `systemctl status` shows.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Starts the watchdog on the current runtime if systemd asks for one. Each of `runtimes` must run a task
/// within a third of the interval, else no ping is sent and systemd restarts the daemon.
pub fn spawn_watchdog(runtimes: Vec<Handle>) -> Option<JoinHandle<()>> {
    let interval = sd_notify::watchdog_enabled()?;
    Some(tokio::spawn(watch(interval, runtimes, || send(&[NotifyState::Watchdog]))))
}

async fn watch(interval: Duration, runtimes: Vec<Handle>, ping: impl Fn()) {
    let third = interval / 3;
    loop {
        if all_alive(&runtimes, third).await {
            ping();
        } else {
            tracing::error!(?interval, "a runtime does not run its tasks; the watchdog is not fed");
        }
        tokio::time::sleep(third).await;
    }
}

async fn all_alive(runtimes: &[Handle], within: Duration) -> bool {
    let probes: Vec<_> = runtimes.iter().map(|runtime| runtime.spawn(async {})).collect();
    let all = async {
        for probe in probes {
            probe.await?;
        }
        Ok::<(), tokio::task::JoinError>(())
    };
    matches!(timeout(within, all).await, Ok(Ok(())))
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be notified");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;

    #[test]
    fn a_runtime_that_runs_no_tasks_gets_no_ping() {
        // A current-thread runtime that nobody drives looks like one that is stuck.
        let stuck = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let main = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let pings = Arc::new(AtomicUsize::new(0));
        let counted = |runtimes: Vec<Handle>| {
            main.block_on(async {
                let counter = Arc::clone(&pings);
                let ping = move || {
                    counter.fetch_add(1, SeqCst);
                };
                let _ended =
                    timeout(Duration::from_millis(80), watch(Duration::from_millis(30), runtimes, ping))
                        .await;
            });
            pings.swap(0, SeqCst)
        };
        assert_eq!(counted(vec![stuck.handle().clone()]), 0);
        assert!(counted(vec![main.handle().clone()]) > 1);
    }
}
