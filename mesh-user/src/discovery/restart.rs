//! Which fields of the node's file a reload can change. What is not listed here takes effect at once; the rest
//! keeps the values the daemon started with, and is reported.

use crate::config::Config;

/// `next` with the fields that need a restart taken from `running`, and the names of those that differ.
pub(super) fn keep_running(running: &Config, mut next: Config) -> (Config, Vec<&'static str>) {
    let mut changed = Vec::new();
    macro_rules! keep {
        ($($field:ident $(. $part:ident)? => $name:literal),* $(,)?) => {$(
            if next.$field $(.$part)? != running.$field $(.$part)? {
                changed.push($name);
                next.$field $(.$part)? = running.$field $(.$part)?.clone();
            }
        )*};
    }
    keep! {
        node => "node",
        trust_domain => "trustDomain",
        trust_domain_aliases => "trustDomainAliases",
        state_dir => "stateDir",
        runtime_dir => "runtimeDir",
        capture => "capture",
        relay => "relay",
        ca => "ca",
        workload_api => "workloadApi",
        federation => "federation",
        jwks => "jwks",
        observation => "observation",
        kubernetes => "kubernetes",
        limits.workloads => "limits.workloads",
        limits.destinations => "limits.destinations",
        limits.connections => "limits.connections",
        limits.concurrent_handshakes => "limits.concurrentHandshakes",
        limits.held_connects => "limits.heldConnects",
        limits.clock_skew_ms => "limits.clockSkewMs",
        access_log => "accessLog",
        metrics => "metrics",
        log => "log",
        shutdown => "shutdown",
    }
    (next, changed)
}
