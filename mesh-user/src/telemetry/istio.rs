//! Istio's standard TCP metrics. A connection resolves its label set once, counts bytes in its own two
//! atomics (no cache line shared with other connections), and the scrape adds up live and ended ones, so
//! byte counters grow during a connection's life. The number of label sets is bounded; beyond the bound
//! connections land in one overflow set and never in new memory.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use slab::Slab;

use super::labels::{ConnectionLabels, IstioLabels, ResponseFlags};

/// Bytes of one connection, in Istio's directions, whichever end reports. The relay holds this by `Arc`.
#[derive(Debug, Default)]
pub struct ConnectionBytes {
    received: AtomicU64,
    sent: AtomicU64,
}

impl ConnectionBytes {
    /// Adds application bytes that went from client to server (`istio_tcp_received_bytes_total`).
    pub fn add_client_to_server(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Adds application bytes that went from server to client (`istio_tcp_sent_bytes_total`).
    pub fn add_server_to_client(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Bytes from client to server so far.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Bytes from server to client so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// One label set: ended connections' totals and the live ones.
#[derive(Debug)]
struct Series {
    labels: ConnectionLabels,
    opened: AtomicU64,
    closed: Vec<AtomicU64>,
    totals: Mutex<Totals>,
}

#[derive(Debug)]
struct Totals {
    ended_received: u64,
    ended_sent: u64,
    live: Slab<Arc<ConnectionBytes>>,
    last_end: Instant,
}

impl Series {
    fn new(labels: ConnectionLabels) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: ResponseFlags::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            totals: Mutex::new(Totals {
                ended_received: 0,
                ended_sent: 0,
                live: Slab::new(),
                last_end: Instant::now(),
            }),
        }
    }

    // A poisoned lock only means that some thread panicked between two additions; counting goes on.
    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> (u64, u64) {
        let totals = self.totals();
        totals.live.iter().fold((totals.ended_received, totals.ended_sent), |(r, s), (_, c)| {
            (r + c.received(), s + c.sent())
        })
    }
}

/// The four Istio families. Cheap to share; one per daemon.
#[derive(Debug)]
pub struct TcpConnections {
    series: RwLock<HashMap<ConnectionLabels, Arc<Series>>>,
    max_series: usize,
    idle_before_eviction: Duration,
}

impl TcpConnections {
    /// At most `max_series` label sets; one whose last connection ended `idle_before_eviction` ago makes
    /// room for a new one when the bound is reached.
    pub fn new(max_series: usize, idle_before_eviction: Duration) -> Self {
        Self { series: RwLock::default(), max_series: max_series.max(1), idle_before_eviction }
    }

    /// Counts a connection as opened; it counts as closed when the handle is dropped.
    pub(crate) fn open(&self, labels: &ConnectionLabels) -> TcpConnection {
        {
            // The read lock is held until the connection is in `live`, so that eviction cannot miss it.
            let table = self.series.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(series) = table.get(labels) {
                return TcpConnection::begin(series);
            }
        }
        let mut table = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let fits = table.contains_key(labels) || table.len() < self.max_series || self.evict(&mut table);
        let key =
            if fits { labels.clone() } else { ConnectionLabels::overflow(labels.reporter, labels.security) };
        let series = table.entry(key).or_insert_with_key(|key| Arc::new(Series::new(key.clone())));
        TcpConnection::begin(series)
    }

    /// Number of label sets now.
    pub fn label_sets(&self) -> usize {
        self.series.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn evict(&self, table: &mut HashMap<ConnectionLabels, Arc<Series>>) -> bool {
        let now = Instant::now();
        table.retain(|_, series| {
            let totals = series.totals();
            !totals.live.is_empty() || now.duration_since(totals.last_end) < self.idle_before_eviction
        });
        table.len() < self.max_series
    }
}

/// One live connection in its series.
#[derive(Debug)]
pub(crate) struct TcpConnection {
    series: Arc<Series>,
    key: usize,
    pub(crate) bytes: Arc<ConnectionBytes>,
    pub(crate) flags: ResponseFlags,
}

impl TcpConnection {
    fn begin(series: &Arc<Series>) -> Self {
        let bytes = Arc::new(ConnectionBytes::default());
        series.opened.fetch_add(1, Relaxed);
        let key = series.totals().live.insert(Arc::clone(&bytes));
        Self { series: Arc::clone(series), key, bytes, flags: ResponseFlags::None }
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        let mut totals = self.series.totals();
        totals.live.try_remove(self.key);
        totals.ended_received += self.bytes.received();
        totals.ended_sent += self.bytes.sent();
        totals.last_end = Instant::now();
        drop(totals);
        if let Some(closed) = self.series.closed.get(self.flags as usize) {
            closed.fetch_add(1, Relaxed);
        }
    }
}

impl TcpConnections {
    fn snapshot(&self) -> Vec<Arc<Series>> {
        let table = self.series.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = table.values().cloned().collect();
        drop(table);
        // A stable order makes two scrapes comparable by eye.
        all.sort_by(|a, b| a.labels.sort_key().cmp(&b.labels.sort_key()));
        all
    }
}

/// The values of one family in one series.
type Values<'a> = &'a dyn Fn(&Series) -> Vec<(ResponseFlags, u64)>;

impl Collector for TcpConnections {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let all = self.snapshot();
        let opened = |s: &Series| vec![(ResponseFlags::None, s.opened.load(Relaxed))];
        let closed = |s: &Series| {
            let counts = ResponseFlags::ALL.iter().zip(&s.closed).map(|(flag, n)| (*flag, n.load(Relaxed)));
            counts.filter(|(_, n)| *n > 0).collect()
        };
        let sent = |s: &Series| vec![(ResponseFlags::None, s.bytes().1)];
        let received = |s: &Series| vec![(ResponseFlags::None, s.bytes().0)];
        let families: [(&str, &str, Values<'_>); 4] = [
            ("istio_tcp_connections_opened", "The total number of TCP connections opened", &opened),
            ("istio_tcp_connections_closed", "The total number of TCP connections closed", &closed),
            (
                "istio_tcp_sent_bytes",
                "The size of total bytes sent during response in case of a TCP connection",
                &sent,
            ),
            (
                "istio_tcp_received_bytes",
                "The size of total bytes received during request in case of a TCP connection",
                &received,
            ),
        ];
        for (name, help, values) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                for (flags, value) in values(series) {
                    family
                        .encode_family(&IstioLabels::of_connections(&series.labels, flags))?
                        .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                }
            }
        }
        Ok(())
    }
}
