//! Reloads: whole, atomic, and never worse than before.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{FileSource, inputs::Inputs};

type Change<'a> = &'a dyn Fn(&Path);

struct Node {
    folder: tempfile::TempDir,
}

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: NAME, namespace: shop}\nspec: {action: DENY, rules: [{}]}\n";

impl Node {
    fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(node.policies()).unwrap();
        node.configure("");
        node
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("node.yaml")
    }

    fn policies(&self) -> PathBuf {
        self.folder.path().join("policies")
    }

    fn configure(&self, more: &str) {
        let text = format!("node: a\npoliciesDir: {}\n{more}\n", self.policies().display());
        std::fs::write(self.path(), text).unwrap();
    }

    fn policy(&self, name: &str) {
        std::fs::write(self.policies().join(format!("{name}.yaml")), DENY.replace("NAME", name)).unwrap();
    }

    fn open(&self) -> FileSource {
        FileSource::open(&self.path()).unwrap()
    }
}

fn names(source: &FileSource) -> Vec<String> {
    source.snapshot().policy_status.iter().map(|s| s.name.clone()).collect()
}

#[test]
fn a_file_that_is_as_it_was_is_not_parsed_again() {
    let node = Node::new();
    let (known, config) = Inputs::read(&node.path(), None).unwrap();
    assert!(config.is_some());
    node.policy("new");
    let (policies, config) = Inputs::read(&node.path(), Some(&known)).unwrap();
    assert!(config.is_none() && policies != known);
    assert_eq!(policies.config(&node.path()).unwrap().policies_dir, node.policies());
    node.configure("log: warn");
    let (changed, config) = Inputs::read(&node.path(), Some(&policies)).unwrap();
    assert!(config.is_some() && changed != policies);
}

#[test]
fn a_failure_is_told_on_the_channel_once_and_its_end_as_a_new_generation() {
    let node = Node::new();
    let source = node.open();
    let mut told = source.subscribe();
    node.configure("relay: kernel");
    for tries in 0..2 {
        assert!(source.reload().is_err());
        assert_eq!(told.has_changed().unwrap(), tries == 0, "the same failure is no news");
        let seen = *told.borrow_and_update();
        assert_eq!((seen.generation, seen.failures), (1, 1));
    }
    node.configure("");
    source.reload().unwrap();
    let seen = *told.borrow_and_update();
    assert_eq!((seen.generation, seen.failures), (2, 1));
}

#[test]
fn a_change_makes_a_new_snapshot_and_no_change_makes_none() {
    let node = Node::new();
    let source = node.open();
    assert!(!source.reload().unwrap().changed);
    node.policy("b");
    node.policy("a");
    std::fs::write(node.policies().join(".hidden.yaml"), "not read").unwrap();
    std::fs::write(node.policies().join("README"), "not read").unwrap();
    assert!(source.reload().unwrap().changed);
    assert_eq!(names(&source), ["a", "b"]);
    assert_eq!((source.snapshot().generation, source.subscribe().borrow().generation), (2, 2));
}

#[test]
fn a_bad_file_keeps_the_old_snapshot_and_is_reported_until_mended() {
    let node = Node::new();
    node.policy("a");
    let source = node.open();
    std::fs::write(node.policies().join("b.yaml"), "kind: [\n").unwrap();
    assert!(source.reload().is_err());
    assert!(source.reload().is_err());
    assert_eq!(names(&source), ["a"]);
    let status = source.status();
    assert_eq!((status.generation, status.failures), (1, 1));
    assert!(status.last_error.unwrap().contains("b.yaml"));
    assert!(status.failing_since_seconds.is_some());
    std::fs::remove_file(node.policies().join("b.yaml")).unwrap();
    assert!(source.reload().is_ok());
    assert_eq!((source.status().last_error, source.status().failing_since_seconds), (None, None));
}

#[test]
fn a_start_without_the_policies_folder_that_the_file_names_is_refused() {
    let node = Node::new();
    std::fs::remove_dir_all(node.policies()).unwrap();
    let error = FileSource::open(&node.path()).unwrap_err().to_string();
    assert!(
        error.contains(&node.policies().display().to_string()) && error.contains("policiesDir"),
        "{error}"
    );
    std::fs::create_dir(node.policies()).unwrap();
    FileSource::open(&node.path()).unwrap();
}

#[test]
fn policies_do_not_vanish_with_their_folder() {
    let node = Node::new();
    node.policy("a");
    let source = node.open();
    std::fs::remove_dir_all(node.policies()).unwrap();
    assert!(source.reload().unwrap_err().to_string().contains("has gone"));
    assert_eq!(names(&source), ["a"]);
}

#[test]
fn fields_that_need_a_restart_keep_running_and_are_named() {
    let node = Node::new();
    let source = node.open();
    node.configure("trustDomain: other\ncapture: { outboundPort: 1 }\nlimits: { idleTimeoutMs: 7 }");
    let reload = source.reload().unwrap();
    assert_eq!(reload.needs_restart, ["trustDomain", "capture"]);
    let config = Arc::clone(&source.snapshot().config);
    assert_eq!((config.trust_domain.as_str(), config.limits.idle_timeout_ms), ("cluster.local", 7));
    assert_eq!(source.status().needs_restart, ["trustDomain", "capture"]);
}

#[tokio::test]
async fn the_watcher_sees_writes_renames_and_symlink_swaps() {
    let node = Node::new();
    let source = Arc::new(node.open());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&source).run(shutdown.clone()));
    let mut generations = source.subscribe();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let write = |_: &Path| node.policy("written");
    let rename = |d: &Path| {
        std::fs::write(d.join("new.tmp"), DENY.replace("NAME", "renamed")).unwrap();
        std::fs::rename(d.join("new.tmp"), d.join("renamed.yaml")).unwrap();
    };
    // a mounted ConfigMap: file -> ..data/file, ..data -> ..<time>, and ..data is replaced by a rename
    let swap = |d: &Path| {
        std::fs::create_dir(d.join("..1")).unwrap();
        std::fs::write(d.join("..1/k8s.yaml"), DENY.replace("NAME", "swapped")).unwrap();
        symlink("..1", d.join("..data_tmp")).unwrap();
        symlink("..data/k8s.yaml", d.join("k8s.yaml")).unwrap();
        std::fs::rename(d.join("..data_tmp"), d.join("..data")).unwrap();
    };
    let changes: [(&str, Change<'_>); 3] = [("written", &write), ("renamed", &rename), ("swapped", &swap)];
    for (name, change) in changes {
        change(&node.policies());
        let seen = async {
            while !names(&source).contains(&name.to_owned()) {
                generations.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.expect(name);
    }
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn the_poll_sees_what_no_event_tells() {
    let node = Node::new();
    // The folder that a link leads to is not watched.
    let elsewhere = node.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("real.yaml"), DENY.replace("NAME", "before")).unwrap();
    symlink(elsewhere.join("real.yaml"), node.policies().join("link.yaml")).unwrap();
    let source = Arc::new(node.open().polling_every(Duration::from_millis(100)));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&source).run(shutdown.clone()));
    let mut generations = source.subscribe();
    std::fs::write(elsewhere.join("real.yaml"), DENY.replace("NAME", "after")).unwrap();
    tokio::time::timeout(Duration::from_secs(10), generations.changed()).await.unwrap().unwrap();
    assert_eq!(names(&source), ["after"]);
    shutdown.cancel();
    task.await.unwrap();
}

const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: shop}\nspec: {host: a.example, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: FILE}}}\n";

#[test]
fn a_rules_file_is_read_again_and_one_that_cannot_be_refuses_its_own_rule_alone() {
    let node = Node::new();
    let file = node.folder.path().join("ca.pem");
    node.policy("deny");
    let rule = RULE.replace("FILE", file.to_str().unwrap());
    std::fs::write(node.policies().join("rule.yaml"), rule).unwrap();
    let source = node.open();
    let refused = || {
        let snapshot = source.snapshot();
        assert_eq!(snapshot.policy_status.len(), 2, "the other policy is in force");
        let origination = snapshot.origins.made_for_tests().next().unwrap();
        let why = snapshot.origins.of(&origination).err().map(str::to_owned);
        let said = &snapshot.policy_status[1].not_enforced;
        assert_eq!(said.is_empty(), why.is_none(), "{said:?}");
        assert_eq!(snapshot.warnings.is_empty(), why.is_none(), "{:?}", snapshot.warnings);
        why
    };
    assert!(refused().unwrap().contains("ca.pem: cannot be read"));
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    std::fs::write(&file, certificate.pem()).unwrap();
    assert!(source.reload().unwrap().changed);
    assert_eq!(refused(), None);
    assert!(!source.reload().unwrap().changed, "nothing has changed");
    for (text, why) in [
        ("s3cret", "holds no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\ns3cret\n", "is no good PEM"),
        ("-----BEGIN CERTIFICATE-----\nczNjcmV0\n-----END CERTIFICATE-----\n", "cannot be used"),
    ] {
        std::fs::write(&file, text).unwrap();
        assert!(source.reload().unwrap().changed, "{text}");
        let said = refused().unwrap();
        assert!(said.contains(why) && !said.contains("s3cret"), "{said}");
    }
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    source.reload().unwrap();
    assert!(refused().unwrap().contains("no regular file"));
}

#[test]
fn what_a_rules_file_holds_is_not_shown() {
    let node = Node::new();
    let file = node.folder.path().join("key.pem");
    std::fs::write(&file, "s3cret").unwrap();
    let rule = RULE.replace("FILE", file.to_str().unwrap());
    std::fs::write(node.policies().join("rule.yaml"), rule).unwrap();
    let (inputs, _) = Inputs::read(&node.path(), None).unwrap();
    let shown = format!("{inputs:?}");
    assert!(shown.contains("6 bytes") && !shown.contains("s3cret"), "{shown}");
}
