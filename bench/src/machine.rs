//! What the kernel counted while something ran: the whole machine's processor time by kind from `/proc/stat`, that of
//! groups of programs from their cgroups, their context switches and memory.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Microseconds of a tick in `/proc/stat` (`USER_HZ` is 100 on every architecture that Linux runs meshd on).
const TICK_US: u64 = 10_000;

/// The machine's counters since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Everything but idle, waiting for disks, and stolen time; interrupts included.
    pub(crate) busy_us: u64,
    pub(crate) softirq_us: u64,
    /// Taken by the hypervisor for others.
    pub(crate) stolen_us: u64,
    pub(crate) total_us: u64,
    pub(crate) switches: u64,
}

impl Machine {
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&text).context("/proc/stat has another form than proc(5) says")
    }

    /// Fields of the first line: user nice system idle iowait irq softirq steal guest `guest_nice` (proc(5)).
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, stolen, ..] = ticks[..] else { return None };
        let busy = user + nice + system + irq + softirq;
        let switches = text.lines().find_map(|line| line.strip_prefix("ctxt "))?.trim().parse().ok()?;
        Some(Self {
            busy_us: busy * TICK_US,
            softirq_us: softirq * TICK_US,
            stolen_us: stolen * TICK_US,
            total_us: (busy + idle + iowait + stolen) * TICK_US,
            switches,
        })
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            busy_us: self.busy_us.saturating_sub(earlier.busy_us),
            softirq_us: self.softirq_us.saturating_sub(earlier.softirq_us),
            stolen_us: self.stolen_us.saturating_sub(earlier.stolen_us),
            total_us: self.total_us.saturating_sub(earlier.total_us),
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }
}

/// The counters of the programs in a cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Programs {
    /// To the microsecond, children included (cgroup v2, `cpu.stat`).
    pub(crate) cpu_us: u64,
    /// Of the threads that live now.
    pub(crate) switches: u64,
    pub(crate) resident_kib: u64,
}

impl Programs {
    pub(crate) fn now(cgroup: &Path) -> Result<Self> {
        let stat = cgroup.join("cpu.stat");
        let text = fs::read_to_string(&stat).with_context(|| format!("reading {}", stat.display()))?;
        let cpu_us = field(&text, "usage_usec").context("cpu.stat has no usage_usec")?;
        let mut programs = Self { cpu_us, ..Self::default() };
        for pid in pids(cgroup)? {
            // A program may end while it is being read.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            programs.resident_kib += field(&status, "VmRSS:").unwrap_or(0);
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                programs.switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0)
                    + field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
            }
        }
        Ok(programs)
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us),
            switches: self.switches.saturating_sub(earlier.switches),
            resident_kib: self.resident_kib.saturating_sub(earlier.resident_kib),
        }
    }
}

/// The processes of a cgroup.
pub(crate) fn pids(cgroup: &Path) -> Result<Vec<u32>> {
    let path = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The kernel's own objects that it cannot give up, sockets among them.
pub(crate) fn kernel_objects_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    field(&text, "SUnreclaim:").context("/proc/meminfo has no SUnreclaim")
}

/// What the processor calls itself.
pub(crate) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or_else(|| "unknown".to_owned(), |line| line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "cpu  100 20 30 1000 5 1 40 7 0 0\ncpu0 50 10 15 500 2 0 20 3 0 0\nintr 1 2\nctxt 12345\n";

    #[test]
    fn busy_time_includes_interrupts_and_leaves_out_what_others_took() {
        let machine = Machine::parse(STAT).unwrap();
        assert_eq!(machine.busy_us, 191 * TICK_US);
        assert_eq!((machine.softirq_us, machine.stolen_us), (40 * TICK_US, 7 * TICK_US));
        assert_eq!((machine.total_us, machine.switches), (1203 * TICK_US, 12345));
    }

    #[test]
    fn another_form_is_refused() {
        assert_eq!(Machine::parse("cpu  1 2 3\nctxt 1\n"), None);
        assert_eq!(Machine::parse("cpu  1 2 3 4 5 6 7 8\n"), None);
    }

    #[test]
    fn differences_do_not_go_below_zero() {
        let later = Machine { busy_us: 5, ..Machine::default() };
        assert_eq!(later.since(&Machine { busy_us: 9, switches: 3, ..later }), Machine::default());
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "nonvoluntary_ctxt_switches:\t4\nvoluntary_ctxt_switches:\t17\nVmRSS:\t  220 kB\n";
        assert_eq!(field(text, "voluntary_ctxt_switches:"), Some(17));
        assert_eq!(field(text, "VmRSS:"), Some(220));
        assert_eq!(field(text, "VmSwap:"), None);
    }
}
