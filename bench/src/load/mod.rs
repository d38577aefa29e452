//! Load: who makes it, and what the clients say about it. `wrk` and `iperf3` are other people's; the clients here do
//! what those cannot: count the time to connect, keep to a rate, hold connections open.

mod connections;
mod http;
mod idle;
mod iperf3;
mod open_loop;
mod wrk;

use std::{
    io,
    net::{SocketAddr, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub(crate) use idle::READY;
pub(crate) use iperf3::Transfer;
pub(crate) use wrk::SCRIPT as WRK_SCRIPT;

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Requests or connections that were served.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) failures: u64,
    pub(crate) latency_us: Latency,
}

/// Percentiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    #[serde(rename = "p99.9")]
    pub(crate) p999: f64,
}

impl Report {
    /// The last line of a client's output.
    pub(crate) fn parse(output: &str) -> Result<Self> {
        let line =
            output.lines().rfind(|line| line.starts_with('{')).context("the client printed no report")?;
        serde_json::from_str(line).with_context(|| format!("the client printed {line:?}"))
    }

    /// Fails when something was not served, or nothing was.
    pub(crate) fn complete(self) -> Result<Self> {
        ensure!(self.failures == 0, "{} of {} failed", self.failures, self.count + self.failures);
        ensure!(self.count > 0 && self.seconds > 0.0, "nothing was served");
        Ok(self)
    }

    fn of(histogram: &Histogram<u64>, failures: u64, elapsed: Duration) -> Self {
        let at = |quantile| crate::figures::count(histogram.value_at_quantile(quantile)) / 1000.0;
        let latency_us = Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999) };
        Self { count: histogram.len(), seconds: elapsed.as_secs_f64(), failures, latency_us }
    }
}

/// Nanoseconds with three digits, up to a minute.
fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1000, 60_000_000_000, 3)?)
}

fn record(histogram: &mut Histogram<u64>, elapsed: Duration) {
    histogram.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
}

/// What one thread's connections took, and how many failed.
type Outcome = (Histogram<u64>, u64);

/// Waits for the threads of a client that began at `begun`.
fn gather(threads: Vec<JoinHandle<Result<Outcome>>>, begun: Instant) -> Result<Report> {
    let (mut times, mut failures) = (histogram()?, 0);
    for thread in threads {
        let (of_thread, failed) = thread.join().map_err(|_| anyhow!("a client thread panicked"))??;
        times.add(of_thread)?;
        failures += failed;
    }
    Ok(Report::of(&times, failures, begun.elapsed()))
}

/// A connection that takes longer, or whose answer does, has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

fn connect(target: &Target) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target.to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whom a client talks to.
#[derive(Args, Debug, Clone)]
pub(crate) struct Target {
    #[arg(long)]
    to: SocketAddr,
    /// What it asks for
    #[arg(long, default_value = "/1k")]
    path: String,
}

/// The clients.
#[derive(Subcommand, Debug)]
pub(crate) enum Client {
    /// A connection for every request, some at once
    Connections {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        at_once: u32,
        #[arg(long)]
        seconds: u32,
    },
    /// Requests at a fixed rate
    OpenLoop {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        connections: u32,
        #[arg(long)]
        per_second: u32,
        #[arg(long)]
        seconds: u32,
    },
    /// Connections that stay, then one in a hundred talks
    Idle {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        connections: u32,
    },
    /// Everybody connects at once
    Storm {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        connections: u32,
    },
}

impl Client {
    /// Makes the load and prints a report.
    pub(crate) fn run(&self) -> Result<()> {
        let report = match self {
            Self::Connections { target, at_once, seconds } => connections::run(target, *at_once, *seconds)?,
            Self::OpenLoop { target, connections, per_second, seconds } => {
                open_loop::run(target, *connections, *per_second, *seconds)?
            }
            Self::Idle { target, connections } => idle::run(target, *connections)?,
            Self::Storm { target, connections } => idle::storm(target, *connections)?,
        };
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_counts() {
        let line =
            r#"{"count":3,"seconds":1.5,"failures":0,"latency_us":{"p50":1,"p90":2,"p99":3,"p99.9":4}}"#;
        let report = Report::parse(&format!("ready\n{}\n{line}\n", line.replace('3', "9"))).unwrap();
        assert_eq!((report.count, report.latency_us.p999), (3, 4.0));
        assert!(Report::parse("ready\n").is_err());
    }

    #[test]
    fn a_client_with_failures_or_without_work_measured_nothing() {
        let report = Report { count: 5, seconds: 1.0, failures: 0, latency_us: Latency::default() };
        assert!(report.complete().is_ok());
        assert!(Report { failures: 1, ..report }.complete().is_err());
        assert!(Report { count: 0, ..report }.complete().is_err());
    }

    #[test]
    fn percentiles_are_microseconds() {
        let mut times = histogram().unwrap();
        for ms in 1..=1000 {
            record(&mut times, Duration::from_millis(ms));
        }
        let latency = Report::of(&times, 0, Duration::from_secs(1)).latency_us;
        assert!((latency.p50 / 500_000.0 - 1.0).abs() < 0.01, "{latency:?}");
        assert!((latency.p999 / 999_000.0 - 1.0).abs() < 0.01, "{latency:?}");
    }
}
