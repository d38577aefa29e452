//! Prometheus' standard `process_` metrics, read from `/proc/self` at each scrape. What cannot be read is
//! left out rather than guessed.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Reads this process' figures when scraped.
#[derive(Debug)]
pub(crate) struct ProcessCollector {
    page_bytes: u64,
    ticks_per_second: u64,
    boot_time_seconds: Option<u64>,
}

/// Figures of `/proc/self/stat` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl ProcessCollector {
    pub(crate) fn new() -> Self {
        let conf = |name, default| {
            sysconf(name).ok().flatten().and_then(|v| u64::try_from(v).ok()).unwrap_or(default)
        };
        let boot_time_seconds = fs::read_to_string("/proc/stat").ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|v| v.trim().parse().ok())
        });
        Self {
            page_bytes: conf(SysconfVar::PAGE_SIZE, 4096),
            ticks_per_second: conf(SysconfVar::CLK_TCK, 100).max(1),
            boot_time_seconds,
        }
    }
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field, the program's name, may hold spaces and brackets: fields start after the last one.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|v| v.parse::<u64>().ok());
    Some(Stat {
        cpu_ticks: number(11)? + number(12)?,
        threads: number(17)?,
        start_ticks: number(19)?,
        virtual_bytes: number(20)?,
        resident_pages: number(21)?,
    })
}

fn max_open_files(limits: &str) -> Option<u64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn encode_gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> std::fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

#[allow(clippy::cast_precision_loss)] // ticks and seconds stay far below 2^52
fn ratio(value: u64, divisor: u64) -> f64 {
    value as f64 / divisor as f64
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let e = &mut encoder;
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse_stat) {
            let resident = stat.resident_pages * self.page_bytes;
            encode_gauge(e, "process_resident_memory_bytes", "Resident memory size in bytes", resident)?;
            encode_gauge(
                e,
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes",
                stat.virtual_bytes,
            )?;
            encode_gauge(e, "process_threads", "Number of threads", stat.threads)?;
            e.encode_descriptor(
                "process_cpu_seconds",
                "Total user and system CPU time spent in seconds",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, f64, f64>(&ratio(stat.cpu_ticks, self.ticks_per_second), None)?;
            if let Some(boot) = self.boot_time_seconds {
                let start = ratio(boot * self.ticks_per_second + stat.start_ticks, self.ticks_per_second);
                e.encode_descriptor(
                    "process_start_time_seconds",
                    "Start time of the process since Unix epoch in seconds",
                    None,
                    MetricType::Gauge,
                )?
                .encode_gauge(&start)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            encode_gauge(e, "process_open_fds", "Number of open file descriptors", open.count() as u64)?;
        }
        if let Some(max) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(max_open_files) {
            encode_gauge(e, "process_max_fds", "Maximum number of open file descriptors", max)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 7 0 9000 1000000 250 0 0";
        let stat = parse_stat(text);
        let want = Stat {
            cpu_ticks: 200,
            threads: 7,
            start_ticks: 9000,
            virtual_bytes: 1_000_000,
            resident_pages: 250,
        };
        assert_eq!(stat, Some(want));
    }

    #[test]
    fn an_unlimited_number_of_files_is_left_out() {
        assert_eq!(
            max_open_files("Max open files            1024                 4096      files"),
            Some(1024)
        );
        assert_eq!(max_open_files("Max open files            unlimited            unlimited files"), None);
    }
}
