//! The five acts. Each shows the very command and the packets, then claims; a claim that fails ends the story.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::cast::{Cast, SECRET};
use super::nodes::Nodes;
use super::speech::Speech;
use super::stage::{Place, Stage, wait_for};
use super::wiretap::{Packets, Wiretap};

const ONLY_FRONTEND: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
  action: ALLOW
  rules:
  - from: [ { source: { principals: [ cluster.local/ns/shop/sa/frontend ] } } ]
";

const NOBODY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
";

/// A page, a key and a row: all of them hold the secret.
fn shop(stage: &Stage, cast: &Cast, speech: &Speech) -> Result<()> {
    let (page, db) = (cast.page(), cast.db.address.as_str());
    let row = format!("select '{SECRET}'");
    let errands: [&[&str]; 4] = [
        &["curl", "-sS", "--max-time", "20", &page],
        &["redis-cli", "-h", db, "set", "card", SECRET],
        &["redis-cli", "-h", db, "get", "card"],
        &["psql", "-h", db, "-U", "postgres", "-Atc", &row],
    ];
    for argv in errands {
        speech.command(cast.frontend.name, &argv.join(" "));
        let said = stage.must_run(&cast.frontend, argv)?;
        speech.quote(said.trim_end(), SECRET);
        speech.claim(said.contains(SECRET) || said.contains("OK"), "the program works")?;
    }
    Ok(())
}

/// Act one: what the wire shows today.
pub(super) fn before(stage: &Stage, cast: &Cast, speech: &Speech) -> Result<()> {
    speech.title("Act 1 of 5. Before: whoever sees the wire reads it");
    let tap = Wiretap::start(stage, "before")?;
    shop(stage, cast, speech)?;
    let packets = tap.stop()?;
    speech.command("wire", "tcpdump -A");
    speech.quote(&packets.excerpt_with(SECRET)?, SECRET);
    speech.claim(packets.show(SECRET), "the secret is readable on the wire")
}

/// Act two: the same programs, the same commands.
pub(super) fn after(stage: &Stage, cast: &Cast, nodes: &Nodes, speech: &Speech) -> Result<()> {
    speech.title("Act 2 of 5. After: the same programs, the same commands, TLS on the wire");
    let tap = Wiretap::start(stage, "after")?;
    shop(stage, cast, speech)?;
    let packets = tap.stop()?;
    speech.command("wire", "tcpdump -X");
    speech.quote(&packets.excerpt_of_tls()?, SECRET);
    must_be_hidden(&packets, speech)?;
    let records = packets.tls_segments()?;
    speech.claim(records > 0, &format!("{records} segments begin with TLS application data (17 03 03)"))?;
    identities(stage, cast, nodes, speech)?;
    relay(stage, cast, nodes, speech)
}

fn must_be_hidden(packets: &Packets, speech: &Speech) -> Result<()> {
    speech.claim(!packets.show(SECRET), "the secret is nowhere on the wire")
}

/// Who talks with whom, while they talk.
fn identities(stage: &Stage, cast: &Cast, nodes: &Nodes, speech: &Speech) -> Result<()> {
    let _live = download(stage, &cast.frontend, cast, "live")?;
    let mut shown = String::new();
    wait_for("a live connection", || {
        shown = nodes.b.ctl(stage, &["connections"])?.1;
        Ok(shown.contains("sa/frontend"))
    })
    .with_context(|| shown.clone())?;
    speech.command(nodes.b.name(), "meshctl connections");
    speech.quote(&shown, SECRET);
    speech.claim(
        shown.contains("sa/frontend"),
        "the peer's identity is proven by its certificate, not by its address",
    )
}

/// Who encrypted: the kernel or the daemon. Said as it is.
fn relay(stage: &Stage, cast: &Cast, nodes: &Nodes, speech: &Speech) -> Result<()> {
    let line = nodes.b.wait_access_log("the page's connection", |line| {
        line["direction"] == "inbound" && line["destination"]["address"] == format!("{}:80", cast.web.address)
    })?;
    let relay = line["relay"].as_str().unwrap_or("none").to_owned();
    if !relay.starts_with("ktls") {
        let reason = if std::path::Path::new("/proc/net/tls_stat").exists() {
            "meshd chose so"
        } else {
            "this kernel has no TLS"
        };
        Speech::say(&format!(
            "  userspace relay: {reason}; the bytes were encrypted by meshd itself, not by the kernel"
        ));
        return speech.claim(relay == "userspace", "the access log says the relay was `userspace`");
    }
    let counters = stage.must_run(&cast.web, &["cat", "/proc/net/tls_stat"])?;
    speech.command(cast.web.name, "cat /proc/net/tls_stat");
    let moved =
        counters.lines().filter(|line| !line.trim_end().ends_with("\t0") && !line.trim_end().ends_with(" 0"));
    speech.quote(&moved.collect::<Vec<_>>().join("\n"), SECRET);
    let sent = counters.lines().filter(|line| line.starts_with("TlsTxSw ") || line.starts_with("TlsTxSw\t"));
    let sent: u64 = sent.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
    speech
        .claim(sent > 0, &format!("kernel TLS carried the bytes (relay `{relay}`, {sent} sockets got a key)"))
}

/// Act three: identity decides.
pub(super) fn denied_caller(stage: &Stage, cast: &Cast, nodes: &Nodes, speech: &Speech) -> Result<()> {
    speech.title("Act 3 of 5. A caller that policy does not allow");
    speech.quote(ONLY_FRONTEND, SECRET);
    nodes.set_policies(ONLY_FRONTEND)?;
    wait_for("the policy to be in force", || Ok(!fetch(stage, &cast.reports, cast)?.0))?;
    let tap = Wiretap::start(stage, "denied")?;
    let (_, said) = fetch(stage, &cast.reports, cast)?;
    let packets = tap.stop()?;
    speech.command(cast.reports.name, &format!("curl {}", cast.page()));
    speech.quote(&said, SECRET);
    conversation(&packets, &cast.reports, speech)?;
    speech.claim(!said.contains(SECRET), "reports is enrolled and proves who it is, and is refused")?;
    let line = nodes.b.wait_access_log("the denial", |line| {
        line["verdict"] == "deny" && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/reports"
    })?;
    Speech::say(&format!("  {}'s access log: {}", nodes.b.name(), brief(&line)));
    let (served, said) = fetch(stage, &cast.frontend, cast)?;
    speech.command(cast.frontend.name, &format!("curl {}", cast.page()));
    speech.quote(&said, SECRET);
    speech.claim(served, "frontend is served as before")
}

/// Act four: no certificate, no service.
pub(super) fn outsider(stage: &Stage, cast: &Cast, nodes: &Nodes, speech: &Speech) -> Result<()> {
    speech.title("Act 4 of 5. An outsider in plaintext, against STRICT");
    let tap = Wiretap::start(stage, "outsider")?;
    let (served, said) = fetch(stage, &cast.outsider, cast)?;
    let packets = tap.stop()?;
    speech.command(cast.outsider.name, &format!("curl {}", cast.page()));
    speech.quote(&said, SECRET);
    conversation(&packets, &cast.outsider, speech)?;
    speech.claim(!served, "the outsider is refused")?;
    must_be_hidden(&packets, speech)?;
    let line = nodes.b.wait_access_log("the refusal", |line| {
        let source = line["source"]["address"].as_str().unwrap_or_default();
        line["verdict"] == "deny"
            && line["direction"] == "inbound"
            && source.starts_with(&cast.outsider.address)
    })?;
    Speech::say(&format!("  {}'s access log: {}", nodes.b.name(), brief(&line)));
    Ok(())
}

/// Act five: a verdict holds for living connections too.
pub(super) fn policy_change(stage: &Stage, cast: &Cast, nodes: &Nodes, speech: &Speech) -> Result<()> {
    speech.title("Act 5 of 5. A policy change cuts a live connection");
    speech.command(
        cast.frontend.name,
        &format!("curl --limit-rate 1m {}large   # 1 GiB: goes on for minutes", cast.page()),
    );
    let mut downloading = download(stage, &cast.frontend, cast, "cut")?;
    wait_for("the download to be under way", || {
        Ok(nodes.b.ctl(stage, &["connections"])?.1.contains("sa/frontend"))
    })?;
    std::thread::sleep(Duration::from_secs(1));
    speech.claim(downloading.child.try_wait()?.is_none(), "it is under way")?;
    let tap = Wiretap::start(stage, "cut")?;
    Speech::say("Now a policy that allows nobody:");
    speech.quote(NOBODY, SECRET);
    nodes.set_policies(NOBODY)?;
    let changed = Instant::now();
    wait_for("the connection to be cut", || Ok(downloading.child.try_wait()?.is_some()))?;
    let took = changed.elapsed();
    let packets = tap.stop()?;
    let status = downloading.child.wait()?;
    speech.quote(downloading.said().trim_end(), SECRET);
    conversation(&packets, &cast.frontend, speech)?;
    speech.claim(!status.success(), &format!("curl knows {} ms after the file changed", took.as_millis()))?;
    let line = nodes.b.wait_access_log("the cut", |line| {
        line["verdict"] == "deny"
            && line["response_flags"] == "POLICY_CHANGED"
            && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/frontend"
    })?;
    Speech::say(&format!("  {}'s access log: {}", nodes.b.name(), brief(&line)));
    Ok(())
}

/// The packets between a place and the others.
fn conversation(packets: &Packets, of: &Place, speech: &Speech) -> Result<()> {
    speech.command("wire", &format!("tcpdump host {}", of.address));
    speech.quote(&packets.conversation_of(&of.address)?, SECRET);
    Ok(())
}

/// Fetches the page: whether it came, and what curl said.
fn fetch(stage: &Stage, from: &Place, cast: &Cast) -> Result<(bool, String)> {
    let output = stage.run(from, &["curl", "-sS", "--max-time", "10", &cast.page()])?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim_end().to_owned();
    Ok((output.status.success() && said.contains(SECRET), said))
}

/// A download that takes minutes.
fn download(stage: &Stage, from: &Place, cast: &Cast, label: &str) -> Result<super::stage::Running> {
    let url = format!("{}large", cast.page());
    stage.start(from, label, &["curl", "-sS", "--limit-rate", "1m", "-o", "/dev/null", &url])
}

/// The telling fields of an access-log line.
fn brief(line: &Value) -> String {
    let telling = ["verdict", "peer_spiffe_id", "rule", "mode", "response_flags", "error"];
    let shown = telling.iter().filter(|key| !line[**key].is_null());
    shown.map(|key| format!("{key}={}", line[*key])).collect::<Vec<_>>().join(" ")
}
