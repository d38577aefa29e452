//! The work that every subject carries: which programs talk, and how. Pure.

/// What is asked of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Requests one after the other on each of some connections (wrk).
    KeepAlive { connections: u32, kib: u32 },
    /// A connection for every request, some at once (our own client: connecting counts).
    PerConnection { at_once: u32 },
    /// Requests at a fixed rate, whether earlier ones were answered or not (our own client).
    OpenLoop { connections: u32, per_second: u32 },
    /// Bytes (iperf3).
    Bulk { streams: u32, both_ways: bool },
    /// Connections that do nothing, then one in a hundred that talks.
    Idle { connections: u32 },
    /// The proxies start again, then everybody connects at once.
    Storm { connections: u32 },
    /// The proxies start again, until the first request is answered.
    Start,
}

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) work: Work,
    /// Part of the daily run.
    pub(crate) quick: bool,
    /// Part of no run that does not name it.
    pub(crate) on_demand: bool,
    /// Measured with the subjects that read requests, too.
    pub(crate) requests_are_read: bool,
}

/// Every scenario, in the order of the report.
pub(crate) const ALL: &[Scenario] = &[
    scenario(
        "rr1",
        "requests of 1 KB on one keep-alive connection",
        Work::KeepAlive { connections: 1, kib: 1 },
    )
    .daily(),
    scenario(
        "rr32",
        "requests of 1 KB on 32 keep-alive connections",
        Work::KeepAlive { connections: 32, kib: 1 },
    )
    .daily(),
    scenario(
        "rr256",
        "requests of 1 KB on 256 keep-alive connections",
        Work::KeepAlive { connections: 256, kib: 1 },
    ),
    scenario(
        "rr32-16k",
        "requests of 16 KB on 32 keep-alive connections",
        Work::KeepAlive { connections: 32, kib: 16 },
    ),
    scenario("crr8", "a connection per request, 8 at a time", Work::PerConnection { at_once: 8 }).daily(),
    scenario(
        "open32",
        "2 000 requests of 1 KB per second on 32 connections, sent on time whatever is still unanswered",
        Work::OpenLoop { connections: 32, per_second: 2000 },
    ),
    scenario(
        "http1",
        "requests of 1 KB on one keep-alive connection, rules about requests",
        Work::KeepAlive { connections: 1, kib: 1 },
    )
    .read(),
    scenario(
        "http32",
        "requests of 1 KB on 32 keep-alive connections, rules about requests",
        Work::KeepAlive { connections: 32, kib: 1 },
    )
    .read(),
    scenario(
        "http32-16k",
        "requests of 16 KB on 32 keep-alive connections, rules about requests",
        Work::KeepAlive { connections: 32, kib: 16 },
    )
    .read(),
    scenario(
        "http-crr8",
        "a connection per request, 8 at a time, rules about requests",
        Work::PerConnection { at_once: 8 },
    )
    .read(),
    scenario("bulk1", "one stream of bytes", Work::Bulk { streams: 1, both_ways: false }).daily(),
    scenario("bulk8", "eight streams of bytes", Work::Bulk { streams: 8, both_ways: false }),
    scenario("bulk1-both", "one stream of bytes each way", Work::Bulk { streams: 1, both_ways: true }),
    scenario("bulk8-both", "eight streams of bytes each way", Work::Bulk { streams: 8, both_ways: true }),
    scenario(
        "idle",
        "2 000 connections that did one request and stay, then one in a hundred talks",
        Work::Idle { connections: 2000 },
    )
    .daily(),
    scenario(
        "idle9k",
        "9 000 connections that did one request and stay, then one in a hundred talks",
        Work::Idle { connections: 9_000 },
    )
    .on_demand(),
    scenario(
        "idle40k",
        "40 000 connections that did one request and stay, then one in a hundred talks",
        Work::Idle { connections: 40_000 },
    )
    .on_demand(),
    scenario(
        "storm",
        "1 000 connections at once to proxies that have just started",
        Work::Storm { connections: 1000 },
    ),
    scenario("start", "the proxies start again, until a request is answered", Work::Start),
];

const fn scenario(name: &'static str, about: &'static str, work: Work) -> Scenario {
    Scenario { name, about, work, quick: false, on_demand: false, requests_are_read: false }
}

impl Scenario {
    const fn daily(mut self) -> Self {
        self.quick = true;
        self
    }

    const fn read(mut self) -> Self {
        self.requests_are_read = true;
        self
    }

    const fn on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }

    /// Whether it lasts as long as it is told.
    pub(crate) fn is_timed(&self) -> bool {
        !matches!(self.work, Work::Idle { .. } | Work::Storm { .. } | Work::Start)
    }
}
