//! `meshctl check` where no meshd runs: what this node has, and what the canary proves on it, before anything is installed.
//! Attaches only what the canary attaches, and leaves nothing.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit};

use super::check;
use crate::{
    admin::api::CheckRow,
    capture::{CaptureLimits, CaptureSettings, Form, canary},
    runtime::DEFAULT_SOCKETS,
    sys::{
        bpf::{self, AttachType},
        cgroup::{self, Cgroup},
        mount,
    },
    tls::KernelTls,
};

/// Older kernels lack hooks that capture needs (docs/architecture.md).
const OLDEST_KERNEL: (u32, u32) = (6, 1);
const BTF: &str = "/sys/kernel/btf/vmlinux";
const BPFFS: &str = "/sys/fs/bpf";
/// Two descriptors of each connection, as `limits.connections` is by default.
const WANTED_FILES: u64 = 2 * 65_536 + 1024;
/// Where programs of others change what meshd's see, or are changed by it.
const SHARED_HOOKS: [(&str, AttachType); 10] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("getsockname4", AttachType::Getsockname4),
    ("getsockname6", AttachType::Getsockname6),
    ("bind4", AttachType::Bind4),
    ("bind6", AttachType::Bind6),
    ("sock_ops", AttachType::SockOps),
    ("egress", AttachType::SkbEgress),
];

/// Looks at this node. `cgroup`: where hooks would go; none: the root of the cgroup v2 tree. `scratch`: a folder that does not
/// exist, for the canary.
pub fn preflight(cgroup: Option<&Path>, scratch: &Path) -> Vec<CheckRow> {
    let is_root = nix::unistd::geteuid().is_root();
    let mut rows = vec![
        row("root", is_root, true, "meshd loads programs and enters namespaces", || {
            if is_root {
                "this is root".to_owned()
            } else {
                "run this as root: the rest is incomplete".to_owned()
            }
        }),
        kernel(),
        row("BTF", Path::new(BTF).is_file(), true, "types of this kernel, for the programs' loader", || {
            BTF.to_owned()
        }),
    ];
    let root = cgroup.map(Path::to_path_buf).or_else(|| cgroup::cgroup2_mount().ok().flatten());
    rows.push(tree(root.as_deref()));
    rows.push(pins());
    if let Some(root) = root.filter(|_| is_root) {
        rows.push(others(&root));
        rows.extend(proofs(&root, scratch));
    }
    rows.extend(check::kernel_tls(&KernelTls::probe()));
    rows.push(runtime());
    rows.push(files());
    rows
}

fn row(name: &str, proven: bool, required: bool, meaning: &str, detail: impl FnOnce() -> String) -> CheckRow {
    CheckRow { name: name.to_owned(), proven, required, meaning: meaning.to_owned(), detail: detail() }
}

fn kernel() -> CheckRow {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let new = version(&release).is_some_and(|version| version >= OLDEST_KERNEL);
    row("kernel", new, true, "6.1 or later has every hook that capture uses", || release.trim().to_owned())
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn tree(root: Option<&Path>) -> CheckRow {
    let usable = root.is_some_and(|root| cgroup::is_cgroup2(root).unwrap_or(false));
    row("cgroup v2", usable, true, "hooks are attached to it", || match root {
        Some(root) => root.display().to_string(),
        None => "no cgroup v2 file system is mounted".to_owned(),
    })
}

fn pins() -> CheckRow {
    let there = mount::is_bpffs(Path::new(BPFFS)).unwrap_or(false);
    let meaning = "in Kubernetes hooks are pinned there, and outlive the agent's pod";
    row("bpffs", there, false, meaning, || {
        if there { BPFFS.to_owned() } else { format!("none on {BPFFS}: mount -t bpf bpf {BPFFS}") }
    })
}

/// What else is attached where meshd's programs go.
fn others(root: &Path) -> CheckRow {
    let meaning = "other programs on meshd's hooks run before or after its own; a socket load balancer is fine, another capture is not";
    let found = match programs(root) {
        Ok(found) => found,
        Err(error) => return row("other programs", false, false, meaning, || error.to_string()),
    };
    row("other programs", found.is_empty(), false, meaning, || {
        let list = |(hook, names): &(&str, Vec<String>)| format!("{hook}: {}", names.join(", "));
        if found.is_empty() {
            "none".to_owned()
        } else {
            found.iter().map(list).collect::<Vec<_>>().join("; ")
        }
    })
}

fn programs(root: &Path) -> std::io::Result<Vec<(&'static str, Vec<String>)>> {
    let cgroup = Cgroup::open(root)?;
    let loaded = aya::programs::loaded_programs().flatten();
    let names: BTreeMap<u32, String> = loaded
        .map(|program| (program.id(), program.name_as_str().unwrap_or("without a name").to_owned()))
        .collect();
    let mut found = Vec::new();
    for (hook, at) in SHARED_HOOKS {
        let ids = bpf::programs_at(cgroup.dir.as_fd(), at)?;
        if !ids.is_empty() {
            let name =
                |id: &u32| names.get(id).map_or_else(|| id.to_string(), |name| format!("{name} ({id})"));
            found.push((hook, ids.iter().map(name).collect()));
        }
    }
    Ok(found)
}

/// What the canary proves with hooks of its own, which are gone when it ends.
fn proofs(root: &Path, scratch: &Path) -> Vec<CheckRow> {
    let settings = CaptureSettings {
        cgroup: root.to_path_buf(),
        form: Form::Listener,
        runtime_dir: scratch.to_path_buf(),
        outbound_port: 15001,
        inbound_port: 15006,
        limits: CaptureLimits { workloads: 2, destinations: 4, connections: 64, held_connects: 64 },
        refuse_uncaptured: false,
        kernel_path: false,
        pods: false,
        keep_on_exit: false,
        log_programs: false,
    };
    let proven = canary::prove(&settings);
    // The canary's own folder is gone; ours is empty then.
    let _ = fs::remove_dir(scratch);
    match proven {
        Ok(proofs) => proofs.iter().map(check::proof).collect(),
        Err(error) => {
            vec![row("capture", false, true, "nothing about capture could be tried", || error.to_string())]
        }
    }
}

/// Container runtimes that answer on their usual sockets.
fn runtime() -> CheckRow {
    let found: Vec<_> = DEFAULT_SOCKETS.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
    let answers = found.iter().find(|path| UnixStream::connect(path).is_ok());
    let meaning = "in Kubernetes it says where pods live; else their cgroups do";
    row("container runtime", answers.is_some(), false, meaning, || match (answers, found.first()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(path)) => format!("{} does not answer", path.display()),
        (None, None) => format!("none of {}", DEFAULT_SOCKETS.join(", ")),
    })
}

fn files() -> CheckRow {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    let meaning = "each connection holds two files; fewer connections are served where fewer may be open";
    row("open files", hard >= WANTED_FILES, false, meaning, || {
        format!(
            "{hard} at most, {WANTED_FILES} for the default limits.connections; a service has its own limit"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, wanted) in [
            ("6.1.0-31-cloud-amd64\n", Some((6, 1))),
            ("6.12.1+deb12", Some((6, 12))),
            ("10.0", Some((10, 0))),
            ("linux", None),
            ("", None),
        ] {
            assert_eq!(version(release), wanted, "{release}");
        }
        assert!(version("6.12").unwrap() >= OLDEST_KERNEL && version("5.15").unwrap() < OLDEST_KERNEL);
    }
}
