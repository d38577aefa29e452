//! Kubernetes' own kubelet and containerd at work with the deployed manifests: `mesh-user/tests/kubelet.sh` in a virtual machine.
//! Neither ever runs on this machine: containerd and what it needs are unpacked under target/, never installed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{command, output, step},
    debian_archive::Archive,
    image, kernels,
    kernels::{Series, remove_folder},
    kube::{self, CONTROLLER_MANAGER, KUBELET, SCHEDULER},
    paths,
    report::{self, Level},
    setup,
    vm_script::Script,
};

/// One is enough, and emulated it takes minutes.
pub(crate) const KERNEL: Series = Series::V6_12;
const SCRIPT: Script =
    Script { name: "kubelet", file: "kubelet.sh", kernel: KERNEL, limit: Duration::from_secs(25 * 60) };
const RUNTIME: [&str; 3] = ["containerd", "runc", "containernetworking-plugins"];
/// What pods of the script run: a server and a client that know nothing of meshes, and a shell to look about with.
const PROGRAMS_OF_PODS: [&str; 3] = ["busybox", "curl", "nginx"];
const OFFERS_SHELL: [&str; 6] = ["sh", "sleep", "wget", "cat", "nc", "ip"];
/// As `deploy/kubernetes/cleanup` calls it; it is the sandboxes' image too.
const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// `cargo xtask kubelet`.
pub(crate) fn run_alone(programs: Option<PathBuf>) -> Result<ExitCode> {
    let programs = if let Some(programs) = programs {
        programs
    } else {
        setup::for_tests()?;
        setup::build()?;
        paths::target()?.join("release")
    };
    let level = run(&programs);
    println!("\n{}", report::render(std::slice::from_ref(&level)));
    Ok(if level.summary.passed == 1 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs it with the meshd and meshctl in a folder.
pub(crate) fn run(programs: &Path) -> Level {
    SCRIPT.run(|| {
        let props = props(programs)?;
        Ok(vec![props.assets, props.runtime, props.images, paths::workspace().join("deploy")])
    })
}

/// Folders the script is told.
struct Props {
    assets: PathBuf,
    runtime: PathBuf,
    images: PathBuf,
}

fn props(programs: &Path) -> Result<Props> {
    let assets = kube::ensure_assets().context("no Kubernetes")?;
    for program in [CONTROLLER_MANAGER, SCHEDULER, KUBELET] {
        ensure!(assets.join(program).is_file(), "no {program} in {}", assets.display());
    }
    // Of flags and fields there is no set that many versions have.
    let version = output(&mut command(assets.join(KUBELET), ["--version"]))?;
    ensure!(version.contains("v1.20."), "the story is told with 1.20, and there is {}", version.trim());
    let runtime = ensure_runtime().context("no containerd")?;
    Ok(Props { assets, runtime, images: images(programs).context("cannot make images")? })
}

fn ensure_runtime() -> Result<PathBuf> {
    let runtime = paths::target()?.join("kubelet/runtime");
    if runtime.is_dir() {
        return Ok(runtime);
    }
    step("containerd (download, unpack; once)");
    let unpacking = runtime.with_extension("part");
    remove_folder(&unpacking)?;
    let packages = RUNTIME.map(|name| format!("{name}/bookworm"));
    Archive::open(&kernels::folder()?.join("apt"))?.unpack(&packages, &unpacking)?;
    fs::rename(&unpacking, &runtime).context("cannot put containerd in place")?;
    Ok(runtime)
}

/// Archives for `ctr images import`: meshd as it was built for the tests, with the libraries it is linked to (`cargo xtask
/// image` makes a static build of its own, which takes as long as the first one), and what the pods run.
fn images(programs: &Path) -> Result<PathBuf> {
    let folder = paths::target()?.join("kubelet/images");
    remove_folder(&folder)?;
    let meshd = ["meshd", "meshctl"].map(|name| programs.join(name));
    let root = folder.join("meshd/root");
    image::stage(&meshd, &root)?;
    meshd.iter().try_for_each(|program| add_libraries(program, &root))?;
    image::write(
        &folder.join("meshd"),
        "image.tar",
        concat!("meshd:", env!("CARGO_PKG_VERSION")),
        &["/usr/bin/meshd"],
    )?;

    let root = folder.join("shop/root");
    fs::create_dir_all(root.join("usr/bin")).context("cannot create the image's folder")?;
    for name in PROGRAMS_OF_PODS {
        let program = paths::find_program(name).with_context(|| format!("no {name}"))?;
        fs::copy(&program, root.join("usr/bin").join(name)).with_context(|| format!("cannot copy {name}"))?;
        add_libraries(&program, &root)?;
    }
    OFFERS_SHELL.iter().try_for_each(|name| symlink("busybox", root.join("usr/bin").join(name)))?;
    image::write(&folder.join("shop"), "image.tar", "shop:1", &["/usr/bin/sleep", "1000000"])?;

    let root = folder.join("pause/root");
    fs::create_dir_all(root.join("usr/bin")).context("cannot create the image's folder")?;
    let busybox = paths::find_program("busybox").context("no busybox")?;
    fs::copy(busybox, root.join("usr/bin/sleep")).context("cannot copy busybox")?;
    image::write(&folder.join("pause"), "image.tar", PAUSE, &["/usr/bin/sleep", "1000000"])?;
    Ok(folder)
}

/// Puts the libraries that a program is linked to, and their loader, where it looks for them.
fn add_libraries(program: &Path, root: &Path) -> Result<()> {
    let listed = command("ldd", [program]).output().context("cannot start ldd")?;
    // It fails on a static program, which needs none.
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in libraries(&listed) {
        let to = root.join(library.trim_start_matches('/'));
        if to.exists() {
            continue;
        }
        fs::create_dir_all(to.parent().context("a library without folder")?)?;
        fs::copy(library, &to).with_context(|| format!("cannot copy {library}"))?;
    }
    Ok(())
}

/// Paths in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x7f)`, `/lib64/ld.so (0x7f)`.
fn libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_their_loader_are_read_off_ldd() {
        let listed = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tnot a dynamic executable\n";
        assert_eq!(libraries(listed).collect::<Vec<_>>(), ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
