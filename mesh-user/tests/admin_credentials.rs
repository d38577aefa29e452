//! The admin socket's two walls against another user of the machine: the file's mode, and, where that is
//! gone, the kernel's word on who connects. Needs root, to become somebody else; fails without.

#[path = "../src/admin/fake.rs"]
mod fake;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
    sync::{Arc, atomic::Ordering::SeqCst},
};

use fake::Fake;
use mesh_user::admin::{
    AdminLimits, AdminServer, AdminSource, CertRow, CheckRow, ConnectionRow, ExplainError, ExplainQuery,
    Explanation, ImpactReport, JwksRow, LintRow, Mode, PolicyFile, PolicyFiles, PolicyRow, ReloadReport,
    Status, WorkloadRow,
};
use tokio_util::sync::CancellationToken;

const NOBODY: u32 = 65534;

async fn status_as(uid: u32, meshctl: &Path, runtime_dir: &Path) -> Output {
    let (meshctl, runtime_dir) = (meshctl.to_owned(), runtime_dir.to_owned());
    let run = move || {
        Command::new(meshctl).arg("--runtime-dir").arg(runtime_dir).arg("status").uid(uid).gid(uid).output()
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_refused_by_file_mode_and_by_credentials() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: it connects as another user");
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build folder may be closed to others.
    let meshctl = dir.path().join("meshctl");
    fs::copy(env!("CARGO_BIN_EXE_meshctl"), &meshctl).unwrap();
    let server = AdminServer::bind(dir.path(), AdminLimits::default()).unwrap();
    let daemon = Arc::new(Fake::default());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(Arc::<Fake>::clone(&daemon), None, stop.clone()));

    let root = status_as(0, &meshctl, dir.path()).await;
    assert!(root.status.success(), "{}", String::from_utf8_lossy(&root.stderr));

    let by_mode = status_as(NOBODY, &meshctl, dir.path()).await;
    let said = String::from_utf8_lossy(&by_mode.stderr).into_owned();
    assert_eq!(by_mode.status.code(), Some(1));
    assert!(said.contains("permission denied") && said.contains("run meshctl as root"), "{said}");
    assert_eq!(daemon.refused.load(SeqCst), 0);

    fs::set_permissions(dir.path().join("admin.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    let by_credentials = status_as(NOBODY, &meshctl, dir.path()).await;
    let said = String::from_utf8_lossy(&by_credentials.stderr).into_owned();
    assert_eq!(by_credentials.status.code(), Some(1));
    assert!(said.contains("meshd closed the connection without an answer"), "{said}");
    assert_eq!(daemon.refused.load(SeqCst), 1);
    assert_eq!(daemon.answered.load(SeqCst), 1, "only root was answered");
    stop.cancel();
    serving.await.unwrap();
}
