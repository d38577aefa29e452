//! Pods that start: from their first moment nothing of them can be read on the wire, or reaches them past meshd.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use super::bypass::attempted;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kubelet::{Kubelet, Pod};
use crate::it::mesh::{
    MARKER, Mesh, accepted, is_unserved, last_line, probe, serve, start_probe, wait_event,
};
use crate::it::nodefile::{Selector, Workload};
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 90:
        a_pods_first_connect_waits_until_it_is_enrolled_and_is_never_readable;
    Daemon 90:
        a_connect_is_refused_before_enrolment_where_the_setting_says_so,
        a_new_server_takes_nothing_in_past_meshd,
        a_pod_that_waits_sends_nothing_by_any_other_way,
        a_pod_that_starts_while_meshd_is_dead_waits_for_it,
        a_pod_that_nobody_speaks_of_goes_free,
        a_running_pod_is_enrolled_and_let_go_and_what_stood_before_lives_on,
        a_pod_is_found_by_its_cgroup_where_no_runtime_answers,
        a_sandbox_that_is_made_anew_is_followed,
        an_address_that_another_pod_gets_is_the_other_pods;
];

const UID: &str = "0f6e7a52-22a9-4d2e-9a3f-6c1d1b2a3c4d";
const OTHER_UID: &str = "7b0d51f2-8a53-4f0c-b6de-52f3e0c9a111";

/// The cast, with a kubelet on node a that has no pod yet.
fn given(ground: &Ground) -> anyhow::Result<(Mesh, Kubelet)> {
    let mut mesh = Mesh::given(ground)?;
    let mut kubelet = Kubelet::new(ground, "node-a")?;
    kubelet.start_runtime()?;
    mesh.a.settings.insert("kubernetes".into(), kubelet.settings());
    Ok((mesh, kubelet))
}

/// A pod of namespace `shop` as the API server names it, before or after it is there: the next that is plugged in.
fn planned(mesh: &Mesh, name: &str, uid: &str) -> Workload {
    let place = mesh.pods.wire.next(name);
    Workload { selector: Selector::Pod(uid.into()), ..Workload::pod(&place, "node-a") }
}

/// How often an event of the programs was counted.
fn events(mesh: &Mesh, label: &str) -> anyhow::Result<i64> {
    mesh.a.metric("meshd_bpf_events_total", &[&format!("\"{label}\"")])
}

fn wait_for_event(mesh: &Mesh, label: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("the programs to count {label}"), || Ok(events(mesh, label)? > 0))
}

fn must_serve_pod(mesh: &Mesh, pod: &Pod) -> anyhow::Result<()> {
    let seen = probe(&pod.place, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    Ok(())
}

fn a_pods_first_connect_waits_until_it_is_enrolled_and_is_never_readable(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let capture = mesh.capture("first-connect")?;
    let pod = kubelet.make(&mut mesh.pods.wire, "web", UID)?;
    let options = ["--send", MARKER, "--shutdown", "--wait-ms", "30000"];
    let first = start_probe(&pod.place, mesh.server.at(7000), &options)?;
    wait_for_event(&mesh, "pod_waited")?;
    kubelet.tell(&pod);
    let told = Instant::now();
    let seen = last_line(&first.finish(PATIENCE * 2)?)?;
    eprintln!("from the runtime's word to the first connection's end: {:?}; {seen}", told.elapsed());
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    let tap = capture.stop()?;
    tap.must_not_show(MARKER)?;
    tap.must_be_tls_between(pod.place.v4.into(), mesh.server.at(7000))?;
    mesh.b.wait_access_log("the pod's own identity", |line| {
        line["direction"] == "inbound" && line.to_string().contains("/sa/web")
    })?;
    Ok(())
}

fn a_connect_is_refused_before_enrolment_where_the_setting_says_so(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    let mut settings = kubelet.settings();
    settings["beforeEnrolment"] = json!("refuse");
    mesh.a.settings.insert("kubernetes".into(), settings);
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let capture = mesh.capture("refused")?;
    let pod = kubelet.make(&mut mesh.pods.wire, "web", UID)?;
    let seen = probe(&pod.place, mesh.server.at(7000), &["--send", MARKER])?;
    ensure!(seen["connect"] == "refused", "{seen}");
    kubelet.tell(&pod);
    wait_until(PATIENCE, "the pod to be enrolled", || {
        Ok(probe(&pod.place, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?["text"] == MARKER)
    })?;
    capture.stop()?.must_not_show(MARKER)
}

fn a_new_server_takes_nothing_in_past_meshd(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let pod = kubelet.make(&mut mesh.pods.wire, "web", UID)?;
    let server = serve(&pod.place, 7000, &["--echo"])?;
    // Its own loopback is its own.
    let own = probe(&pod.place, "127.0.0.1:7000".parse()?, &["--send", "to myself", "--shutdown"])?;
    ensure!(own["text"] == "to myself", "{own}");
    let stranger = start_probe(&mesh.outsider, pod.place.at(7000), &["--send", MARKER, "--wait-ms", "8000"])?;
    wait_for_event(&mesh, "pod_dropped")?;
    ensure!(accepted(&server) == 1, "somebody came in past meshd: {}", server.stdout());
    kubelet.tell(&pod);
    wait_until(PATIENCE, "an enrolled client to be served", || {
        Ok(probe(&mesh.server, pod.place.at(7000), &["--send", MARKER, "--shutdown"])?["text"] == MARKER)
    })?;
    let seen = last_line(&stranger.finish(PATIENCE)?)?;
    ensure!(is_unserved(&seen), "a stranger was served under STRICT: {seen}");
    Ok(())
}

fn a_pod_that_waits_sends_nothing_by_any_other_way(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    for node in [&mut mesh.a, &mut mesh.b] {
        node.capture.insert("uncaptured".into(), json!("refuse"));
    }
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let capture = mesh.capture("other-ways")?;
    let pod = kubelet.make(&mut mesh.pods.wire, "web", UID)?;
    let (v4, v6) = (mesh.server.at(7000), mesh.server.at6(7000));
    for (to, way) in [(v6, "--send"), (v4, "--mptcp"), (v6, "--mptcp"), (v4, "--mapped"), (v4, "--fastopen")]
    {
        let options = ["--connect-timeout-ms", "1000", "--wait-ms", "1500", way, MARKER, "--send", MARKER];
        let seen = last_line(&start_probe(&pod.place, to, &options)?.finish(PATIENCE)?);
        // A way that this kernel does not know ends the peer.
        ensure!(seen.as_ref().is_ok_and(is_unserved) || seen.is_err(), "by {way} to {to}: {seen:?}");
    }
    let (v4, v6) = (mesh.server.v4.to_string(), mesh.server.v6.to_string());
    let datagrams = attempted(&pod.place, &["datagrams", &v4, &v6, "7053"])?;
    ensure!(!datagrams.is_empty() && datagrams.iter().all(|line| line["saw"] != MARKER), "{datagrams:?}");
    ensure!(accepted(&server) == 0, "the server was reached: {}", server.stdout());
    kubelet.tell(&pod);
    wait_until(PATIENCE, "the pod to be enrolled", || {
        Ok(probe(&pod.place, mesh.server.at6(7000), &["--send", MARKER, "--shutdown"])?["text"] == MARKER)
    })?;
    capture.stop()?.must_not_show(MARKER)
}

fn a_pod_that_starts_while_meshd_is_dead_waits_for_it(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.a.kill()?;
    let capture = mesh.capture("dead")?;
    let pod = kubelet.run(&mut mesh.pods.wire, "web", UID)?;
    let inside = serve(&pod.place, 7100, &["--echo"])?;
    let seen = probe(&pod.place, mesh.server.at(7000), &["--connect-timeout-ms", "1500", "--send", MARKER])?;
    ensure!(seen["connect"] != "ok", "{seen}");
    let seen =
        probe(&mesh.outsider, pod.place.at(7100), &["--connect-timeout-ms", "1500", "--send", "knock"])?;
    ensure!(seen["connect"] != "ok" && accepted(&inside) == 0, "{seen}");
    mesh.a.start()?;
    wait_until(PATIENCE, "the pod to be enrolled", || {
        Ok(probe(&pod.place, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?["text"] == MARKER)
    })?;
    let tap = capture.stop()?;
    tap.must_not_show(MARKER)?;
    tap.must_be_tls_between(pod.place.v4.into(), mesh.server.at(7000))
}

fn a_pod_that_nobody_speaks_of_goes_free(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    mesh.workloads
        .push(Workload { selector: Selector::Pod(OTHER_UID.into()), ..planned(&mesh, "ghost", OTHER_UID) });
    mesh.workloads.last_mut().expect("it was pushed").addresses = vec!["10.201.0.200".parse()?];
    mesh.start()?;
    let pod = kubelet.run(&mut mesh.pods.wire, "plain", UID)?;
    let _server = serve(&pod.place, 7000, &["--echo"])?;
    let begun = Instant::now();
    let options = ["--send", "plain text", "--shutdown", "--wait-ms", "20000"];
    let seen = probe(&mesh.outsider, pod.place.at(7000), &options)?;
    ensure!(seen["text"] == "plain text", "{seen}");
    ensure!(begun.elapsed() < Duration::from_secs(10), "it waited {:?}", begun.elapsed());
    let again = probe(&mesh.outsider, pod.place.at(7000), &options)?;
    ensure!(again["text"] == "plain text", "{again}");
    Ok(())
}

fn a_running_pod_is_enrolled_and_let_go_and_what_stood_before_lives_on(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    // The mesh's server must take plaintext too, from those that are not enrolled.
    mesh.policies(crate::it::mesh::PERMISSIVE)?;
    let ghost = Workload { addresses: vec!["10.201.0.200".parse()?], ..planned(&mesh, "ghost", OTHER_UID) };
    mesh.workloads.push(ghost);
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let web = planned(&mesh, "web", UID);
    let pod = kubelet.run(&mut mesh.pods.wire, "web", UID)?;
    let _greeter = serve(&mesh.server, 7001, &["--echo"])?;
    // A connect that it makes before meshd knows of it, to an address of the mesh, is refused.
    wait_until(PATIENCE, "the pod to be free", || {
        Ok(probe(&pod.place, mesh.server.at(7001), &["--send", "free", "--shutdown"])?["text"] == "free")
    })?;
    let stays = ["--send", "before", "--wait-ms", "12000"];
    let before = start_probe(&pod.place, mesh.server.at(7000), &stays)?;
    wait_event(&server, "the connection from before", |event| event["event"] == "accepted")?;
    mesh.workloads.push(web);
    let labelled = Instant::now();
    mesh.configure()?;
    let capture = mesh.capture("enrolled")?;
    wait_until(PATIENCE, "the pod to be enrolled", || {
        probe(&pod.place, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
        Ok(mesh.a.access_log().iter().any(|line| line.to_string().contains("/sa/web")))
    })?;
    eprintln!("from the file to a meshed connection of a running pod: {:?}", labelled.elapsed());
    let during = start_probe(&pod.place, mesh.server.at(7000), &["--send", MARKER, "--wait-ms", "12000"])?;
    let of_the_pod = || -> anyhow::Result<usize> {
        let rows = mesh.a.ctl_json(&["connections"])?;
        Ok(rows["connections"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| row["workload"] == "shop/web")
            .count())
    };
    wait_until(PATIENCE, "the meshed connection", || Ok(of_the_pod()? == 1))?;
    mesh.workloads.pop();
    mesh.configure()?;
    wait_until(PATIENCE, "the pod to be let go", || {
        let capture = mesh.capture("let-go")?;
        probe(&pod.place, mesh.server.at(7000), &["--send", "let go at last", "--shutdown"])?;
        Ok(capture.stop()?.must_not_show("let go at last").is_err())
    })?;
    for (stood, text) in [(before, "before"), (during, MARKER)] {
        let seen = last_line(&stood.finish(PATIENCE)?)?;
        ensure!(seen["text"] == text && seen["ended"] == "open", "{text} did not live on: {seen}");
    }
    capture.stop()?.must_not_show(MARKER)
}

fn a_pod_is_found_by_its_cgroup_where_no_runtime_answers(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    kubelet.stop_runtime();
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let capture = mesh.capture("cgroup")?;
    let pod = kubelet.make(&mut mesh.pods.wire, "web", UID)?;
    must_serve_pod(&mesh, &pod)?;
    let tap = capture.stop()?;
    tap.must_not_show(MARKER)?;
    tap.must_be_tls_between(pod.place.v4.into(), mesh.server.at(7000))
}

fn a_sandbox_that_is_made_anew_is_followed(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let first = kubelet.run(&mut mesh.pods.wire, "web", UID)?;
    must_serve_pod(&mesh, &first)?;
    let capture = mesh.capture("anew")?;
    // The same pod, cgroup and all, with the same address.
    let place = first.place.clone();
    Kubelet::lose(first)?;
    mesh.pods.wire.unplug(&place);
    let mut second = kubelet.make(&mut mesh.pods.wire, "web2", UID)?;
    let waits = ["--send", MARKER, "--shutdown", "--wait-ms", "20000"];
    let waiting = start_probe(&second.place, mesh.server.at(7000), &waits)?;
    wait_for_event(&mesh, "pod_waited")?;
    second.name = "web".into();
    kubelet.tell(&second);
    let seen = last_line(&waiting.finish(PATIENCE)?)?;
    ensure!(seen["text"] == MARKER, "{seen}");
    capture.stop()?.must_not_show(MARKER)
}

fn an_address_that_another_pod_gets_is_the_other_pods(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut kubelet) = given(ground)?;
    mesh.workloads.push(planned(&mesh, "web", UID));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let pod = kubelet.run(&mut mesh.pods.wire, "web", UID)?;
    must_serve_pod(&mesh, &pod)?;
    let folder = mesh.a.runtime_dir().join("pods");
    ensure!(std::fs::read_dir(&folder)?.count() == 1, "one namespace is held");
    let place = pod.place.clone();
    kubelet.delete(pod)?;
    mesh.workloads.pop();
    mesh.pods.wire.unplug(&place);
    mesh.workloads.push(Workload { service_account: "api".into(), ..planned(&mesh, "api", OTHER_UID) });
    mesh.configure()?;
    let capture = mesh.capture("reused")?;
    let pod = kubelet.run(&mut mesh.pods.wire, "api", OTHER_UID)?;
    wait_until(PATIENCE, "the new pod to be enrolled", || {
        Ok(probe(&pod.place, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?["text"] == MARKER)
    })?;
    mesh.b.wait_access_log("the new pod's identity", |line| {
        line["direction"] == "inbound" && line.to_string().contains("/sa/api")
    })?;
    ensure!(std::fs::read_dir(&folder)?.count() == 1, "the namespace of the pod that is gone is held still");
    ensure!(kubelet.cgroup().exists(), "the kubelet's own cgroup stays");
    capture.stop()?.must_not_show(MARKER)
}
