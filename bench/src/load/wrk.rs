//! `wrk`: its script that prints one line of JSON, and reading that line. Pure.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{Latency, Report};

/// Prints what `wrk --latency` prints, and the 99.9th percentile, in a form that has no units to guess.
pub(crate) const SCRIPT: &str = r#"
done = function(s, l, r)
  io.write(string.format(
    '{"duration_us":%d,"requests":%d,"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d},' ..
    '"latency_us":{"p50":%.0f,"p90":%.0f,"p99":%.0f,"p99.9":%.0f}}\n',
    s.duration, s.requests, s.errors.connect, s.errors.read, s.errors.write, s.errors.status, s.errors.timeout,
    l:percentile(50), l:percentile(90), l:percentile(99), l:percentile(99.9)))
end
"#;

#[derive(Deserialize)]
struct Summary {
    duration_us: f64,
    requests: u64,
    errors: Errors,
    latency_us: Latency,
}

#[derive(Deserialize)]
struct Errors {
    connect: u64,
    read: u64,
    write: u64,
    status: u64,
    timeout: u64,
}

impl Report {
    /// From the output of `wrk` with [`SCRIPT`].
    pub(crate) fn from_wrk(output: &str) -> Result<Self> {
        let line = output.lines().rfind(|line| line.starts_with('{')).context("wrk printed no summary")?;
        let wrk: Summary = serde_json::from_str(line).with_context(|| format!("wrk printed {line:?}"))?;
        let Errors { connect, read, write, status, timeout } = wrk.errors;
        let failures = connect + read + write + status + timeout;
        let seconds = wrk.duration_us / 1e6;
        Ok(Self { count: wrk.requests, seconds, failures, latency_us: wrk.latency_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Running 1s test @ http://10.201.0.21/1k\n  2 threads and 32 connections\n\
        Requests/sec:  22900.10\nTransfer/sec:     28.10MB\n\
        {\"duration_us\":1001234,\"requests\":22929,\"errors\":{\"connect\":0,\"read\":1,\"write\":0,\"status\":2,\"timeout\":0},\
        \"latency_us\":{\"p50\":1380,\"p90\":1900,\"p99\":4100,\"p99.9\":9001}}\n";

    #[test]
    fn wrk_speaks_of_requests_and_of_every_kind_of_error() {
        let report = Report::from_wrk(OUTPUT).unwrap();
        assert_eq!((report.count, report.failures), (22929, 3));
        assert_eq!((report.latency_us.p50, report.latency_us.p999), (1380.0, 9001.0));
        assert!((report.seconds - 1.001_234).abs() < 1e-9);
    }

    #[test]
    fn output_without_the_scripts_line_is_refused() {
        assert!(Report::from_wrk("unable to connect to 10.201.0.21:80 Connection refused\n").is_err());
    }
}
