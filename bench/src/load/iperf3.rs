//! Reading `iperf3 --json`. Pure.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Bytes that arrived, both ways together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Transfer {
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
}

#[derive(Deserialize)]
struct Document {
    error: Option<String>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct End {
    sum_received: Option<Sum>,
    sum_received_bidir_reverse: Option<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    seconds: f64,
}

impl Transfer {
    /// From the output of the client.
    pub(crate) fn parse(output: &str) -> Result<Self> {
        let document: Document = serde_json::from_str(output).context("iperf3 printed no JSON")?;
        if let Some(error) = document.error {
            bail!("iperf3: {error}");
        }
        let end = document.end.context("iperf3 printed no end")?;
        let there = end.sum_received.context("iperf3 printed no sum")?;
        let back = end.sum_received_bidir_reverse.map_or(0.0, |sum| sum.bytes);
        Ok(Self { bytes: there.bytes + back, seconds: there.seconds })
    }

    pub(crate) fn gigabytes(&self) -> f64 {
        self.bytes / 1e9
    }

    pub(crate) fn gigabits_per_second(&self) -> f64 {
        self.bytes * 8.0 / 1e9 / self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_added() {
        let text = r#"{"start":{},"end":{"sum_sent":{"bytes":9,"seconds":1},"sum_received":{"bytes":1e9,"seconds":2.0},
            "sum_received_bidir_reverse":{"bytes":5e8,"seconds":2.0}}}"#;
        let transfer = Transfer::parse(text).unwrap();
        assert_eq!((transfer.gigabytes(), transfer.gigabits_per_second()), (1.5, 6.0));
    }

    #[test]
    fn one_direction_is_what_arrived() {
        let text =
            r#"{"end":{"sum_sent":{"bytes":9e9,"seconds":1},"sum_received":{"bytes":1e9,"seconds":1}}}"#;
        assert_eq!(Transfer::parse(text).unwrap().gigabits_per_second(), 8.0);
    }

    #[test]
    fn an_error_is_told() {
        let text = r#"{"start":{},"end":{},"error":"unable to connect to server: Connection refused"}"#;
        assert!(Transfer::parse(text).unwrap_err().to_string().contains("Connection refused"));
        assert!(Transfer::parse("").is_err());
    }
}
