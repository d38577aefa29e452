//! Istio's standard HTTP metrics, of requests that meshd reads. A connection resolves its label set once; a request that
//! ends as the one before it costs a few additions to atomics. The number of series is bounded: beyond the bound what an
//! application answers is counted as `other`, and never in new memory.
//!
//! Names and meanings: <https://istio.io/latest/docs/reference/config/metrics/>.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::labels::{ConnectionLabels, IstioLabels, ResponseFlags};

/// Upper bounds of the buckets, in milliseconds or bytes: Envoy's, which Istio leaves as they are
/// (envoyproxy/envoy `source/common/stats/histogram_impl.cc`).
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// [`BOUNDS`] in thousandths, which durations are counted in.
const MICROS_OF: [u64; BOUNDS.len()] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// How a request ended, as far as labels tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestOutcome {
    /// Status that the client got; none: it got none, which Istio writes as 0.
    pub response_code: Option<u16>,
    /// Whether it is a gRPC call: `request_protocol`.
    pub is_grpc: bool,
    /// `grpc-status` of its response, where that is a number that gRPC knows.
    pub grpc_status: Option<u8>,
    /// Why it ended early.
    pub flags: ResponseFlags,
}

/// What one request took.
#[derive(Debug, Clone, Copy)]
pub struct RequestSizes {
    /// From the end of its head to the end of its response.
    pub duration: Duration,
    /// Bytes of its body.
    pub request_bytes: u64,
    /// Bytes of its response's body.
    pub response_bytes: u64,
}

/// Counts by bucket, in thousandths of a unit.
#[derive(Debug, Default)]
struct Distribution {
    buckets: [AtomicU64; BOUNDS.len()],
    beyond: AtomicU64,
    sum_thousandths: AtomicU64,
}

impl Distribution {
    fn observe(&self, thousandths: u64) {
        let at = MICROS_OF.partition_point(|bound| *bound < thousandths);
        self.buckets.get(at).unwrap_or(&self.beyond).fetch_add(1, Relaxed);
        self.sum_thousandths.fetch_add(thousandths, Relaxed);
    }

    #[allow(clippy::cast_precision_loss, reason = "a sum that large has lost nothing that matters")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.buckets.iter().map(|count| count.load(Relaxed));
        let mut buckets: Vec<(f64, u64)> = BOUNDS.into_iter().zip(counts).collect();
        buckets.push((f64::INFINITY, self.beyond.load(Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum_thousandths.load(Relaxed) as f64 / 1000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// One outcome within one label set.
#[derive(Debug, Default)]
struct Series {
    duration_ms: Distribution,
    request_bytes: Distribution,
    response_bytes: Distribution,
}

impl Series {
    fn add(&self, sizes: &RequestSizes) {
        let micros = u64::try_from(sizes.duration.as_micros()).unwrap_or(u64::MAX);
        self.duration_ms.observe(micros);
        self.request_bytes.observe(sizes.request_bytes.saturating_mul(1000));
        self.response_bytes.observe(sizes.response_bytes.saturating_mul(1000));
    }

    fn count(&self) -> u64 {
        let buckets = self.duration_ms.buckets.iter().map(|count| count.load(Relaxed));
        buckets.sum::<u64>() + self.duration_ms.beyond.load(Relaxed)
    }
}

/// One label set with its outcomes.
#[derive(Debug)]
struct Set {
    labels: ConnectionLabels,
    outcomes: RwLock<HashMap<RequestOutcome, Arc<Series>>>,
    /// Where there was no room for the outcome.
    rest: Arc<Series>,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    connections: usize,
    last_end: Instant,
}

impl Set {
    fn new(labels: ConnectionLabels) -> Self {
        Self {
            labels,
            outcomes: RwLock::default(),
            rest: Arc::default(),
            life: Mutex::new(Life { connections: 0, last_end: Instant::now() }),
        }
    }

    // A poisoned lock only means that some thread panicked between two additions; counting goes on.
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The four Istio families of requests. Cheap to share; one per daemon.
#[derive(Debug)]
pub struct HttpRequests {
    sets: RwLock<HashMap<ConnectionLabels, Arc<Set>>>,
    max_sets: usize,
    max_outcomes: usize,
    outcomes: AtomicUsize,
    idle_before_eviction: Duration,
}

impl HttpRequests {
    /// At most `max_sets` label sets of connections, and in all of them together `max_outcomes` outcomes. A label set whose
    /// last connection ended `idle_before_eviction` ago makes room when a bound is reached.
    pub fn new(max_sets: usize, max_outcomes: usize, idle_before_eviction: Duration) -> Self {
        Self {
            sets: RwLock::default(),
            max_sets: max_sets.max(1),
            max_outcomes: max_outcomes.max(1),
            outcomes: AtomicUsize::new(0),
            idle_before_eviction,
        }
    }

    /// The handle of one connection.
    pub(crate) fn open(self: &Arc<Self>, labels: &ConnectionLabels) -> RequestMetrics {
        {
            // The read lock is held until the connection counts, so that eviction cannot miss it.
            let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(set) = sets.get(labels) {
                return RequestMetrics::begin(self, set);
            }
        }
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= self.max_sets || self.outcomes.load(Relaxed) >= self.max_outcomes {
            self.evict(&mut sets);
        }
        let fits = sets.contains_key(labels) || sets.len() < self.max_sets;
        let key =
            if fits { labels.clone() } else { ConnectionLabels::overflow(labels.reporter, labels.security) };
        let set = sets.entry(key).or_insert_with_key(|key| Arc::new(Set::new(key.clone())));
        RequestMetrics::begin(self, set)
    }

    fn evict(&self, sets: &mut HashMap<ConnectionLabels, Arc<Set>>) {
        let now = Instant::now();
        sets.retain(|_, set| {
            let life = set.life();
            let stays = life.connections > 0 || now.duration_since(life.last_end) < self.idle_before_eviction;
            if !stays {
                let outcomes = set.outcomes.read().unwrap_or_else(PoisonError::into_inner).len();
                self.outcomes.fetch_sub(outcomes, Relaxed);
            }
            stays
        });
    }

    fn series(&self, set: &Set, outcome: RequestOutcome) -> Arc<Series> {
        let known = set.outcomes.read().unwrap_or_else(PoisonError::into_inner).get(&outcome).cloned();
        if let Some(known) = known {
            return known;
        }
        let mut outcomes = set.outcomes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = outcomes.get(&outcome) {
            return Arc::clone(known);
        }
        if self.outcomes.fetch_add(1, Relaxed) >= self.max_outcomes {
            self.outcomes.fetch_sub(1, Relaxed);
            return Arc::clone(&set.rest);
        }
        Arc::clone(outcomes.entry(outcome).or_default())
    }
}

/// The requests of one connection; dropped at its end.
#[derive(Debug)]
pub struct RequestMetrics {
    all: Arc<HttpRequests>,
    set: Arc<Set>,
    /// Most requests of a connection end like the one before.
    last: Mutex<Option<(RequestOutcome, Arc<Series>)>>,
}

impl RequestMetrics {
    fn begin(all: &Arc<HttpRequests>, set: &Arc<Set>) -> Self {
        set.life().connections += 1;
        Self { all: Arc::clone(all), set: Arc::clone(set), last: Mutex::default() }
    }

    /// One request has ended.
    pub fn ended(&self, outcome: RequestOutcome, sizes: &RequestSizes) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let series = match &*last {
            Some((known, series)) if *known == outcome => series,
            _ => &last.insert((outcome, self.all.series(&self.set, outcome))).1,
        };
        series.add(sizes);
    }
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        let mut life = self.set.life();
        life.connections = life.connections.saturating_sub(1);
        life.last_end = Instant::now();
    }
}

/// What one series carries; none: the outcomes for which there was no room.
struct Labels<'a>(&'a ConnectionLabels, Option<RequestOutcome>);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        let protocol = if self.1.is_some_and(|outcome| outcome.is_grpc) { "grpc" } else { "http" };
        let flags = self.1.map_or(ResponseFlags::None, |outcome| outcome.flags);
        IstioLabels::of_requests(self.0, flags, protocol).encode(encoder)?;
        let code = match self.1 {
            None => "other".to_owned(),
            Some(outcome) => outcome.response_code.unwrap_or_default().to_string(),
        };
        ("response_code", code).encode(encoder.encode_label())?;
        match self.1.and_then(|outcome| outcome.grpc_status) {
            None => Ok(()),
            Some(status) => ("grpc_response_status", u64::from(status)).encode(encoder.encode_label()),
        }
    }
}

/// One of a series's distributions.
type Part = fn(&Series) -> &Distribution;

type OutcomeSeries = (Option<RequestOutcome>, Arc<Series>);

impl HttpRequests {
    /// In a stable order, so that two scrapes can be compared by eye.
    fn snapshot(&self) -> Vec<(Arc<Set>, Vec<OutcomeSeries>)> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = sets.values().cloned().collect();
        drop(sets);
        all.sort_by(|a, b| a.labels.sort_key().cmp(&b.labels.sort_key()));
        let series = |set: &Set| {
            let outcomes = set.outcomes.read().unwrap_or_else(PoisonError::into_inner);
            let mut known: Vec<OutcomeSeries> =
                outcomes.iter().map(|(outcome, series)| (Some(*outcome), Arc::clone(series))).collect();
            drop(outcomes);
            known.sort_by_key(|(outcome, _)| {
                outcome.map(|o| (o.response_code, o.is_grpc, o.grpc_status, o.flags))
            });
            known.extend((set.rest.count() > 0).then(|| (None, Arc::clone(&set.rest))));
            known
        };
        all.into_iter().map(|set| (Arc::clone(&set), series(&set))).collect()
    }
}

impl Collector for HttpRequests {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let all = self.snapshot();
        let each = || {
            all.iter().flat_map(|(set, series)| series.iter().map(move |(o, s)| (Labels(&set.labels, *o), s)))
        };
        let help = "Requests that were answered, by what the client got";
        let mut family = encoder.encode_descriptor("istio_requests", help, None, MetricType::Counter)?;
        for (labels, series) in each() {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&series.count(), None)?;
        }
        let families: [(&str, &str, Part); 3] = [
            (
                "istio_request_duration_milliseconds",
                "From the end of a request's head to the end of its response",
                |series| &series.duration_ms,
            ),
            ("istio_request_bytes", "Size of request bodies", |series| &series.request_bytes),
            ("istio_response_bytes", "Size of response bodies", |series| &series.response_bytes),
        ];
        for (name, help, of) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, series) in each() {
                of(series).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_bucket_whose_bound_it_does_not_exceed() {
        let distribution = Distribution::default();
        for thousandths in [0, 500, 501, 3_600_000_000, 3_600_000_001] {
            distribution.observe(thousandths);
        }
        let counts = distribution.buckets.iter().map(|count| count.load(Relaxed)).collect::<Vec<_>>();
        assert_eq!((counts[0], counts[1], counts[18]), (2, 1, 1));
        assert_eq!(distribution.beyond.load(Relaxed), 1);
        for (bound, micros) in BOUNDS.into_iter().zip(MICROS_OF) {
            assert!((bound * 1000.0 - f64::from(u32::try_from(micros).unwrap())).abs() < f64::EPSILON);
        }
    }
}
