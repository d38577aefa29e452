//! Killed at any moment: what was acknowledged is there, and the next start goes on.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
};

use super::*;

const ROUNDS: usize = 25;
/// The child's folder and what it does there.
const CHILD: &str = "MESHD_TEST_CA_CHILD";

/// This very test program, as another process that runs [`child`] until it is killed.
fn spawn(what: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ca::authority::tests::crashes::child", "--ignored", "--nocapture"])
        .env(CHILD, format!("{what}:{}", directory.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[tokio::test]
#[ignore = "the other process of the tests below"]
async fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (what, directory) = order.split_once(':').unwrap();
    let settings = AuthoritySettings {
        intermediates: true,
        propagation: Duration::ZERO,
        ..settings(Path::new(directory))
    };
    let authority = Authority::open(settings).unwrap();
    println!("\n{what} open");
    match what {
        "issue" => issue(&authority).await,
        _ => rotate(&authority).await,
    }
}

async fn issue(authority: &Authority) {
    loop {
        let some = (0..8).map(|number| authority.issue(Box::leak(Box::new(id(&format!("w{number}"))))));
        for svid in futures_util::future::join_all(some).await {
            println!("\nserial {}", svid.unwrap().serial);
        }
    }
}

/// All stages over and over; what another process did meanwhile is refused, and that is right.
async fn rotate(authority: &Authority) {
    loop {
        for kind in [Kind::Root, Kind::Intermediate] {
            let _ = authority.rotate(kind).await;
            println!("\nstage {kind:?}");
            for force in [false, false, true] {
                let _ = authority.advance(kind, force).await;
                println!("\nstage {kind:?}");
            }
        }
        // another may have withdrawn what signs between two of its looks, which it finds out by itself
        println!("\nserial {}", authority.issue(&id("web")).await.unwrap().serial);
    }
}

/// Lets the children say so many lines, kills them at once, and returns all serial numbers that they acknowledged.
fn kill_after(mut children: Vec<Child>, lines: usize) -> Vec<String> {
    let mut outputs: Vec<_> =
        children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
    let mut said: Vec<String> = vec![String::new(); outputs.len()];
    let mut line = String::new();
    let mut heard = 0;
    while heard < lines {
        line.clear();
        let read = outputs[0].read_line(&mut line).unwrap();
        assert!(read > 0, "the child ended by itself: {:?}", said[0]);
        said[0].push_str(&line);
        heard += usize::from(line.starts_with("serial ") || line.starts_with("stage "));
    }
    for child in &mut children {
        child.kill().unwrap();
    }
    for (child, (output, said)) in children.iter_mut().zip(outputs.iter_mut().zip(&mut said)) {
        output.read_to_string(said).unwrap();
        child.wait().unwrap();
    }
    let whole = |said: &String| -> Vec<String> {
        let (whole, _) = said.rsplit_once('\n').unwrap_or_default();
        whole.lines().filter_map(|line| line.strip_prefix("serial ").map(str::to_owned)).collect()
    };
    said.iter().flat_map(whole).collect()
}

fn registered(authority: &Authority) -> BTreeSet<String> {
    let read = |c: &rusqlite::Connection| {
        let mut statement = c.prepare("SELECT serial FROM issued")?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    authority.state().read(read).unwrap()
}

#[test]
fn what_was_acknowledged_outlives_kill_9_while_issuing() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let children = vec![spawn("issue", &directory), spawn("issue", &directory)];
        acknowledged.extend(kill_after(children, rand::random_range(0..40)));
        let authority = Authority::open(settings(&directory)).unwrap();
        let there = registered(&authority);
        let lost: Vec<_> = acknowledged.iter().filter(|serial| !there.contains(*serial)).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}");
    }
    let different: BTreeSet<_> = acknowledged.iter().collect();
    assert_eq!(different.len(), acknowledged.len(), "no serial number twice");
    assert!(acknowledged.len() > ROUNDS, "they did issue: {}", acknowledged.len());
}

#[tokio::test]
async fn a_rotation_goes_on_after_kill_9_at_any_stage() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let mut seen = BTreeSet::new();
    let mut last_version = 0;
    for round in 0..ROUNDS {
        let children = vec![spawn("rotate", &directory), spawn("rotate", &directory)];
        kill_after(children, rand::random_range(0..24));
        let authority = Authority::open(settings(&directory)).unwrap();
        let trust = authority.trust().borrow().clone();
        assert!(trust.version >= last_version, "round {round}");
        last_version = trust.version;
        let status = authority.status().unwrap();
        let roots: Vec<_> = status.authorities.iter().filter(|one| one.kind == Kind::Root).collect();
        seen.extend(roots.iter().map(|one| one.stage));
        assert_eq!(roots.iter().filter(|one| one.stage == Stage::Active).count(), 1, "round {round}");
        let coming = |stage| matches!(stage, Stage::Prepared | Stage::Trusted);
        assert!(roots.iter().filter(|one| coming(one.stage)).count() <= 1, "round {round}");
        let svid = authority.issue(&id("web")).await.unwrap();
        verify(&trust.bundles, &svid.chain).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let keys = std::fs::read_dir(&directory).unwrap().filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "key")
        });
        assert_eq!(keys.count(), status.authorities.len(), "round {round}: a key for each, and no other");
    }
    assert!(seen.len() >= 3, "killed at several stages: {seen:?}");
}
