//! Reading a guest: the marker lines on its output, and kernel trouble on its console. Pure text work.

/// What a line of the guest's output port means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// The program is about to start.
    Started,
    /// The program ended; the kernel's taint flags tell of warnings that the console may have lost.
    Exited { code: i32, tainted: u64 },
    /// Output of the program.
    Output(&'a str),
}

/// Reads one line; only lines that begin with this run's marker are ours.
pub(crate) fn parse<'a>(line: &'a str, marker: &str) -> Line<'a> {
    let line = line.trim_end_matches(['\r', '\n']);
    let Some(message) = line.strip_prefix(marker) else { return Line::Output(line) };
    let mut words = message.split_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("start"), ..) => Line::Started,
        (Some("exit"), Some(code), Some("tainted"), Some(tainted)) => match (code.parse(), tainted.parse()) {
            (Ok(code), Ok(tainted)) => Line::Exited { code, tainted },
            _ => Line::Output(line),
        },
        _ => Line::Output(line),
    }
}

/// Taint flags that mean the kernel misbehaved: bad page (5), died (7), warned (9), soft lockup (14).
const TROUBLE_TAINTS: u64 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14;
const TROUBLE: [&str; 11] = [
    "Kernel panic",
    "BUG: ",
    "kernel BUG at",
    "Oops: ",
    "WARNING: ",
    "general protection fault",
    "Unable to handle kernel",
    "UBSAN: ",
    "refcount_t: ",
    "Out of memory: Killed process",
    "invoked oom-killer",
];
/// Lines shown from the first sign of trouble on: a call trace fits.
const EXCERPT_LINES: usize = 60;
const TAIL_LINES: usize = 15;

/// The console from the first sign of a kernel's trouble on, if there is one.
pub(crate) fn kernel_trouble(console: &str) -> Option<String> {
    let mut lines = console.lines().map(str::trim_end);
    let first = lines.find(|line| is_trouble(line))?;
    let rest: Vec<&str> = std::iter::once(first).chain(lines).take(EXCERPT_LINES).collect();
    Some(rest.join("\n"))
}

fn is_trouble(line: &str) -> bool {
    // Kernel lines carry a time stamp; what a program writes to the console does not.
    line.starts_with('[') && TROUBLE.iter().any(|sign| line.contains(sign))
}

/// Why the taint flags mean trouble, if they do.
pub(crate) fn taint_trouble(tainted: u64) -> Option<String> {
    let flags = tainted & TROUBLE_TAINTS;
    (flags != 0).then(|| format!("the kernel is tainted by a warning or worse (flags {flags:#x})"))
}

/// The last lines of a log, for a message.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_lines_are_told_from_output() {
        assert_eq!(parse("@@1 exit 3 tainted 512\r\n", "@@1"), Line::Exited { code: 3, tainted: 512 });
        assert_eq!(parse("@@1 start 2.31\n", "@@1"), Line::Started);
        assert_eq!(parse("@@2 exit 0 tainted 0", "@@1"), Line::Output("@@2 exit 0 tainted 0"));
        assert_eq!(parse("@@1 exit x tainted 0", "@@1"), Line::Output("@@1 exit x tainted 0"));
        assert_eq!(parse("test a ... ok\r\n", "@@1"), Line::Output("test a ... ok"));
    }

    #[test]
    fn kernel_trouble_is_quoted_from_its_first_line() {
        let console = "[    1.0] tls: ready\r\n[    2.0] WARNING: CPU: 0 PID: 1 at net/tls/tls_sw.c:1\r\n[    2.1] Call Trace:\r\n";
        let excerpt = kernel_trouble(console).unwrap();
        assert!(excerpt.starts_with("[    2.0] WARNING: CPU: 0"));
        assert!(excerpt.ends_with("Call Trace:"));
    }

    #[test]
    fn a_programs_own_warning_is_no_kernel_trouble() {
        assert_eq!(kernel_trouble("WARNING: no configuration\n[    1.0] systemd: BUGS\n"), None);
    }

    #[test]
    fn unsigned_modules_do_not_count_as_trouble() {
        assert_eq!(taint_trouble(1 << 12 | 1 << 13), None);
        assert!(taint_trouble(1 << 9).is_some());
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let log = (0..20).map(|number| format!("line {number}\r\n")).collect::<Vec<_>>().join("\r\n");
        assert!(tail(&log).starts_with("line 5\n") && tail(&log).ends_with("line 19"));
        assert_eq!(tail(""), "");
    }
}
