//! Output for people and programs. JSON is the admin API's own document; tables never wrap, so that a line
//! is a row also in a pipe, and hold no control character, so that no peer's name can drive the terminal.

use std::io::{Result, Write};

use comfy_table::{ContentArrangement, Table, presets};
use mesh_user::admin::{
    CertRow, CheckRow, ConnectionList, KubernetesRow, PolicyRow, ReloadReport, Status, WorkloadRow,
};
use serde::Serialize;

use crate::{args::Output, offline::Validation};

pub(crate) use crate::render_policy::{explanation, impact, jwks, lint};

pub(crate) type Out<'a> = &'a mut dyn Write;

/// Writes the document, or lets `table` write it for people.
pub(crate) fn either<T: Serialize + ?Sized>(
    out: Out<'_>,
    format: Output,
    document: &T,
    table: impl FnOnce(Out<'_>) -> Result<()>,
) -> Result<()> {
    match format {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, document)?;
            writeln!(out)
        }
        Output::Table => table(out),
    }
}

/// Printable text only.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) { '\u{fffd}' } else { c })
        .collect()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { clean(text) }
}

pub(crate) fn table<const N: usize>(
    out: Out<'_>,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| or_dash(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    writeln!(out, "{}", table.trim_fmt())
}

pub(crate) fn empty(out: Out<'_>, nothing: bool, sentence: &str) -> Result<bool> {
    if nothing {
        writeln!(out, "{sentence}")?;
    }
    Ok(nothing)
}

/// `1.4 GiB`.
#[allow(clippy::cast_precision_loss)] // one decimal is shown
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `3d 4h`, `12m 5s`, `40s`.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `in 23h 10m`, `2m 0s ago`.
pub(crate) fn relative(at: i64, now: i64) -> String {
    let text = duration(at.abs_diff(now));
    if at >= now { format!("in {text}") } else { format!("{text} ago") }
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

pub(crate) fn status(out: Out<'_>, format: Output, s: &Status) -> Result<()> {
    either(out, format, s, |out| {
        let mut line = |key: &str, value: String| writeln!(out, "{key:<14}{}", clean(&value));
        line("node", format!("{} (trust domain {})", s.node, s.trust_domain))?;
        line("meshd", format!("{}, pid {}, up {}", s.version, s.pid, duration(s.uptime_s)))?;
        line("kernel", s.kernel.clone())?;
        line("ready", yes(s.ready))?;
        line("capture", s.capture_form.clone())?;
        line("relay", s.relay.clone())?;
        line("workloads", s.workloads.to_string())?;
        line("connections", s.connections.to_string())?;
        line("policies", s.policies.to_string())?;
        for map in &s.bpf_maps {
            line("bpf map", format!("{} {}/{}", map.map, map.entries, map.capacity))?;
        }
        if let Some(kubernetes) = &s.kubernetes {
            line("kubernetes", watched(kubernetes))?;
            for pod in &kubernetes.host_network {
                line("left alone", format!("{pod}: it shares the host's network namespace"))?;
            }
        }
        if !s.last_reload_error.is_empty() {
            line(
                "last reload",
                format!("refused, the configuration before it is in force: {}", s.last_reload_error),
            )?;
        }
        for problem in &s.problems {
            line("problem", problem.clone())?;
        }
        Ok(())
    })
}

/// In one line; what is wrong with it is among the problems.
fn watched(kubernetes: &KubernetesRow) -> String {
    let objects: Vec<_> = kubernetes.watches.iter().map(|w| format!("{} {}", w.objects, w.kind)).collect();
    let stale = kubernetes.watches.iter().filter_map(|w| w.stale_since_unix_s).min();
    let heard = match stale {
        _ if !kubernetes.missing.is_empty() => "not heard in full yet".to_owned(),
        Some(since) => format!("not heard since {since} (Unix time)"),
        None => "heard".to_owned(),
    };
    format!("{heard}: {}", objects.join(", "))
}

pub(crate) fn workloads(out: Out<'_>, format: Output, rows: &[WorkloadRow]) -> Result<()> {
    either(out, format, rows, |out| {
        if empty(out, rows.is_empty(), "no workloads: the node's file names none")? {
            return Ok(());
        }
        let header = ["NAMESPACE", "NAME", "NODE", "STATE", "MODE", "CONNECTIONS", "ADDRESSES", "SPIFFE ID"];
        let row = |w: &WorkloadRow| {
            [
                w.namespace.clone(),
                w.name.clone(),
                w.node.clone(),
                w.state.clone(),
                w.mode.to_string(),
                w.connections.to_string(),
                w.addresses.join(","),
                w.spiffe_id.clone(),
            ]
        };
        table(out, header, rows.iter().map(row))
    })
}

pub(crate) fn connections(out: Out<'_>, format: Output, list: &ConnectionList) -> Result<()> {
    either(out, format, list, |out| {
        if empty(out, list.connections.is_empty(), "no live connections")? {
            return Ok(());
        }
        let header = [
            "DIRECTION",
            "WORKLOAD",
            "SOURCE",
            "DESTINATION",
            "PEER",
            "STATE",
            "RELAY",
            "SENT",
            "RECEIVED",
            "AGE",
        ];
        table(
            out,
            header,
            list.connections.iter().map(|c| {
                [
                    c.direction.to_string(),
                    c.workload.clone(),
                    c.source.clone(),
                    c.destination.clone(),
                    c.peer_spiffe_id.clone().or_else(|| c.peer.clone()).unwrap_or_default(),
                    c.state.clone(),
                    c.relay.to_string(),
                    c.bytes_sent.map_or_else(|| "-".to_owned(), bytes),
                    c.bytes_received.map_or_else(|| "-".to_owned(), bytes),
                    duration(c.age_ms / 1000),
                ]
            }),
        )?;
        let shown = list.connections.len() as u64;
        if shown < list.total {
            writeln!(out, "{shown} of {}; --limit shows more", list.total)?;
        }
        Ok(())
    })
}

pub(crate) fn certs(out: Out<'_>, format: Output, rows: &[CertRow], now: i64) -> Result<()> {
    either(out, format, rows, |out| {
        if empty(out, rows.is_empty(), "no certificates")? {
            return Ok(());
        }
        let row = |c: &CertRow| {
            [
                c.kind.clone(),
                c.subject.clone(),
                c.state.clone(),
                relative(c.not_after_unix_s, now),
                c.serial.clone(),
            ]
        };
        table(out, ["KIND", "SUBJECT", "STATE", "EXPIRES", "SERIAL"], rows.iter().map(row))
    })
}

pub(crate) fn policies(out: Out<'_>, format: Output, rows: &[PolicyRow]) -> Result<()> {
    either(out, format, rows, |out| {
        if empty(
            out,
            rows.is_empty(),
            "no policies: peers are accepted in mode PERMISSIVE and nothing is denied",
        )? {
            return Ok(());
        }
        let header =
            ["KIND", "NAMESPACE", "NAME", "SCOPE", "ACTION", "WORKLOADS", "CONFLICTS", "NOT ENFORCED"];
        let row = |p: &PolicyRow| {
            [
                p.kind.clone(),
                p.namespace.clone(),
                p.name.clone(),
                p.scope.clone(),
                p.action.clone(),
                p.workloads.to_string(),
                p.conflicts.join("; "),
                p.not_enforced.join("; "),
            ]
        };
        table(out, header, rows.iter().map(row))
    })
}

pub(crate) fn check(out: Out<'_>, format: Output, rows: &[CheckRow]) -> Result<()> {
    either(out, format, rows, |out| {
        let row = |c: &CheckRow| {
            [c.name.clone(), yes(c.proven), yes(c.required), c.meaning.clone(), c.detail.clone()]
        };
        table(out, ["CAPABILITY", "PROVEN", "REQUIRED", "MEANING", "DETAIL"], rows.iter().map(row))
    })
}

pub(crate) fn reload(out: Out<'_>, format: Output, r: &ReloadReport) -> Result<()> {
    either(out, format, r, |out| {
        let what = if r.changed { "reloaded" } else { "reloaded; nothing changed" };
        let ReloadReport { workloads, policies, connections_closed, .. } = r;
        writeln!(
            out,
            "{what}: {workloads} workloads, {policies} policies, {connections_closed} connections closed"
        )?;
        r.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {}", clean(warning)))
    })
}

pub(crate) fn validation(out: Out<'_>, format: Output, v: &Validation) -> Result<()> {
    either(out, format, v, |out| {
        let Validation { workloads, remote_workloads, services, policies, .. } = v;
        let counts = format!(
            "{workloads} workloads, {remote_workloads} remote, {services} services, {policies} policies"
        );
        writeln!(out, "{}: valid ({counts})", v.file.display())?;
        v.notes.iter().try_for_each(|note| writeln!(out, "note: {}", clean(note)))?;
        v.not_enforced.iter().try_for_each(|what| writeln!(out, "not enforced: {}", clean(what)))
    })
}

pub(crate) fn done(out: Out<'_>, format: Output, sentence: &str) -> Result<()> {
    either(out, format, &serde_json::json!({ "done": sentence }), |out| writeln!(out, "{sentence}"))
}

#[cfg(test)]
mod tests {
    use mesh_user::{
        admin::{ConnectionRow, Mode},
        telemetry::{Direction, RelayKind},
    };

    use super::*;

    fn shown(write: impl FnOnce(Out<'_>) -> Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn list() -> ConnectionList {
        let row = ConnectionRow {
            id: 7,
            direction: Direction::Outbound,
            workload: "shop/web".into(),
            source: "10.0.1.2:40000".into(),
            destination: "[fd00::2]:5432".into(),
            original_destination: None,
            peer: Some("shop/db".into()),
            peer_spiffe_id: Some("spiffe://cluster.local/ns/shop/sa/db".into()),
            own_spiffe_id: None,
            state: "relaying".into(),
            relay: RelayKind::KtlsSplice,
            capture_form: "listener".into(),
            tls: None,
            resumed: false,
            bytes_sent: Some(1_503_238_553),
            bytes_received: Some(900),
            age_ms: 3_725_000,
            idle_ms: Some(0),
        };
        ConnectionList { total: 2, connections: vec![row] }
    }

    #[test]
    fn connections_as_a_table() {
        assert_eq!(
            shown(|out| connections(out, Output::Table, &list())),
            "DIRECTION  WORKLOAD  SOURCE          DESTINATION     PEER                                  STATE     RELAY        SENT     RECEIVED  AGE\n\
             outbound   shop/web  10.0.1.2:40000  [fd00::2]:5432  spiffe://cluster.local/ns/shop/sa/db  relaying  ktls-splice  1.4 GiB  900 B     1h 2m\n\
             1 of 2; --limit shows more\n"
        );
        let none = shown(|out| connections(out, Output::Table, &ConnectionList::default()));
        assert_eq!(none, "no live connections\n");
    }

    #[test]
    fn json_is_the_apis_own_document() {
        let text = shown(|out| connections(out, Output::Json, &list()));
        assert!(text.contains("\"relay\": \"ktls-splice\"") && text.ends_with("}\n"), "{text}");
        assert_eq!(serde_json::from_str::<ConnectionList>(&text).unwrap(), list());
    }

    #[test]
    fn workloads_and_certificates_as_tables() {
        let workload = WorkloadRow {
            namespace: "shop".into(),
            name: "web".into(),
            node: "node-a".into(),
            state: "enrolled".into(),
            mode: Mode::Strict,
            ..WorkloadRow::default()
        };
        assert_eq!(
            shown(|out| workloads(out, Output::Table, &[workload])),
            "NAMESPACE  NAME  NODE    STATE     MODE    CONNECTIONS  ADDRESSES  SPIFFE ID\n\
             shop       web   node-a  enrolled  STRICT  0            -          -\n"
        );
        let cert = |not_after_unix_s| CertRow {
            kind: "svid".into(),
            subject: "spiffe://a/b".into(),
            state: "valid".into(),
            serial: "0f".into(),
            not_after_unix_s,
            ..CertRow::default()
        };
        assert_eq!(
            shown(|out| certs(out, Output::Table, &[cert(87_400), cert(940)], 1000)),
            "KIND  SUBJECT       STATE  EXPIRES    SERIAL\n\
             svid  spiffe://a/b  valid  in 1d 0h   0f\n\
             svid  spiffe://a/b  valid  1m 0s ago  0f\n"
        );
    }

    #[test]
    fn a_name_from_outside_cannot_drive_the_terminal_or_forge_a_row() {
        let row = CheckRow { name: "a\x1b[2Jb\nc\u{202e}".into(), proven: true, ..CheckRow::default() };
        let text = shown(|out| check(out, Output::Table, &[row]));
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains(['\x1b', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn sizes_and_times_are_short() {
        for (count, want) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_048_575, "1.0 MiB"), (5 << 40, "5.0 TiB")]
        {
            assert_eq!(bytes(count), want);
        }
        for (seconds, want) in [(59, "59s"), (60, "1m 0s"), (3600, "1h 0m"), (90_000, "1d 1h")] {
            assert_eq!(duration(seconds), want);
        }
    }
}
