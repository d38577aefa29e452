//! Answers about policy for people and programs, under the same rules as the other tables.

use std::io::Result;

use mesh_user::admin::{ExplainedRequest, Explanation, ImpactReport, ImpactRow, JwksRow, LintRow};

use crate::{
    args::Output,
    render::{Out, clean, duration, either, empty, table},
};

pub(crate) fn explanation(out: Out<'_>, format: Output, e: &Explanation) -> Result<()> {
    either(out, format, e, |out| {
        let verdict = if e.allowed { "ALLOW" } else { "DENY" };
        writeln!(
            out,
            "{verdict}: {} -> {} ({})",
            clean(&e.source),
            clean(&e.destination),
            clean(&e.destination_address)
        )?;
        writeln!(out, "  decided by  {}", clean(&e.decided_by))?;
        let set_by = if e.mode_set_by.is_empty() { "the default" } else { &e.mode_set_by };
        writeln!(out, "  mode        {}, set by {}", e.mode, clean(set_by))?;
        let identity = e.source_spiffe_id.as_deref().unwrap_or("none: plaintext");
        writeln!(out, "  identity    {}", clean(identity))?;
        if let Some(request) = &e.request {
            let ExplainedRequest { method, path, host, .. } = request;
            writeln!(out, "  request     {} {} of {}", clean(method), clean(path), clean(host))?;
            if let Some(status) = request.status {
                writeln!(out, "  answer      {status}")?;
            }
            writeln!(out, "  principal   {}", clean(request.principal.as_deref().unwrap_or("none")))?;
        }
        if !e.audit.is_empty() {
            writeln!(out, "  audit       {}", clean(&e.audit.join(", ")))?;
        }
        if let Some(dry_run) = &e.dry_run {
            writeln!(out, "  dry run     {}", clean(dry_run))?;
        }
        for step in &e.steps {
            writeln!(out, "  - {}", clean(step))?;
        }
        Ok(())
    })
}

pub(crate) fn lint(out: Out<'_>, format: Output, rows: &[LintRow]) -> Result<()> {
    either(out, format, rows, |out| {
        if empty(out, rows.is_empty(), "nothing found")? {
            return Ok(());
        }
        for row in rows {
            let line = row.line.map_or_else(String::new, |line| format!(":{line}"));
            let (file, document, field) = (clean(&row.file), clean(&row.document), clean(&row.field));
            writeln!(out, "{file}{line}: {} ({document}, {field})", clean(&row.check))?;
            writeln!(out, "  {}", clean(&row.problem))?;
            writeln!(out, "  {}", clean(&row.advice))?;
        }
        Ok(())
    })
}

pub(crate) fn impact(out: Out<'_>, format: Output, report: &ImpactReport, now: i64) -> Result<()> {
    either(out, format, report, |out| {
        let ImpactReport { documents, replayed, count, left_out, window_s, changes, notes } = report;
        writeln!(
            out,
            "{count} connections and requests of the last {} min, {replayed} different ones, decided by {documents} documents",
            window_s / 60
        )?;
        if *left_out > 0 {
            writeln!(out, "note: {left_out} since the start were not remembered")?;
        }
        notes.iter().try_for_each(|note| writeln!(out, "note: {}", clean(note)))?;
        if empty(out, changes.is_empty(), "nothing of it would be decided differently")? {
            return Ok(());
        }
        let header = ["BECOMES", "COUNT", "LAST SEEN", "SOURCE", "DESTINATION", "REQUEST", "BEFORE", "AFTER"];
        table(out, header, changes.iter().map(|change| impact_row(change, now)))
    })
}

fn impact_row(change: &ImpactRow, now: i64) -> [String; 8] {
    let last = i64::try_from(change.last_seen_unix_s).unwrap_or(i64::MAX);
    let ago = u64::try_from(now.saturating_sub(last)).unwrap_or_default();
    let source = match &change.source_spiffe_id {
        Some(identity) => format!("{} as {identity}", change.source),
        None => format!("{} in plaintext", change.source),
    };
    let mut request = change.method.clone().unwrap_or_default();
    if let Some(host) = &change.host {
        request = format!("{request} {host}{}", change.path.as_deref().unwrap_or_default());
    }
    if let Some(principal) = &change.request_principal {
        request = format!("{request} by {principal}");
    }
    [
        change.change.clone(),
        change.count.to_string(),
        format!("{} ago", duration(ago)),
        source,
        change.destination.clone(),
        request,
        change.before.clone(),
        change.after.clone(),
    ]
}

pub(crate) fn jwks(out: Out<'_>, format: Output, rows: &[JwksRow], now: i64) -> Result<()> {
    either(out, format, rows, |out| {
        if empty(out, rows.is_empty(), "no keys are fetched: no RequestAuthentication names a place of keys")?
        {
            return Ok(());
        }
        let row = |place: &JwksRow| {
            let fetched = place.fetched_unix_s.map(|at| {
                let ago = now.saturating_sub(i64::try_from(at).unwrap_or(i64::MAX));
                format!("{} ago", duration(u64::try_from(ago).unwrap_or_default()))
            });
            [
                place.url.clone(),
                place.keys.to_string(),
                place.skipped.to_string(),
                fetched.unwrap_or_else(|| "never".to_owned()),
                place.next_in_s.map_or_else(|| "now".to_owned(), |s| format!("in {}", duration(s))),
                place.failures.to_string(),
                place.last_error.clone(),
            ]
        };
        let header = ["URL", "KEYS", "SKIPPED", "FETCHED", "NEXT", "FAILURES", "LAST ERROR"];
        table(out, header, rows.iter().map(row))
    })
}

#[cfg(test)]
mod tests {
    use mesh_user::admin::Mode;

    use super::*;

    fn shown(write: impl FnOnce(Out<'_>) -> Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_verdict_names_its_rule_and_the_way_to_it() {
        let verdict = Explanation {
            source: "10.9.9.9".into(),
            destination: "shop/db".into(),
            destination_address: "10.0.1.3:5432".into(),
            decided_by: "STRICT: plaintext".into(),
            mode: Mode::Strict,
            steps: vec!["10.9.9.9 is no enrolled workload".into()],
            ..Explanation::default()
        };
        assert_eq!(
            shown(|out| explanation(out, Output::Table, &verdict)),
            "DENY: 10.9.9.9 -> shop/db (10.0.1.3:5432)\n  decided by  STRICT: plaintext\n  \
             mode        STRICT, set by the default\n  identity    none: plaintext\n  \
             - 10.9.9.9 is no enrolled workload\n"
        );
    }

    #[test]
    fn a_finding_begins_with_its_place() {
        let row = LintRow {
            file: "p.yaml".into(),
            line: Some(3),
            document: "AuthorizationPolicy shop/p".into(),
            field: "spec.rules[0]".into(),
            check: "allows-all".into(),
            problem: "it bites".into(),
            advice: "mend it".into(),
        };
        assert_eq!(
            shown(|out| lint(out, Output::Table, &[row])),
            "p.yaml:3: allows-all (AuthorizationPolicy shop/p, spec.rules[0])\n  it bites\n  mend it\n"
        );
    }

    #[test]
    fn a_change_says_who_asked_for_what_and_when() {
        let change = ImpactRow {
            change: "denied".into(),
            before: "a".into(),
            after: "b".into(),
            source: "shop/web".into(),
            destination: "shop/db:80".into(),
            method: Some("GET".into()),
            host: Some("db".into()),
            path: Some("/x".into()),
            request_principal: Some("i/s".into()),
            count: 3,
            last_seen_unix_s: 940,
            ..ImpactRow::default()
        };
        let report = ImpactReport { window_s: 3600, changes: vec![change], ..ImpactReport::default() };
        let text = shown(|out| impact(out, Output::Table, &report, 1000));
        let row = "denied   3      1m 0s ago  shop/web in plaintext  shop/db:80   GET db/x by i/s  a       b";
        assert_eq!(text.lines().last(), Some(row), "{text}");
    }
}
