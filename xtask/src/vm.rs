//! A stock kernel in QEMU that runs one program on this machine's files.
//!
//! The guest sees the whole file system read-only through virtio-fs, under a layer in its own memory: it can
//! run whatever is installed here and can change nothing here. It has no network. QEMU and virtiofsd die with
//! this process, whatever ends it.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::RecvTimeoutError,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    console::{self, Line},
    initramfs,
    kernels::Kernel,
    leftovers::Leftover,
    paths,
    process::{Process, dying_with_us},
    qemu::{self, Qemu},
    virtiofs,
};

/// Modules that programs expect and that not every kernel loads by itself in a container-like root.
const LOAD: &str = "aesni_intel ghash_clmulni_intel gcm chacha20poly1305 tls veth bridge tun sch_netem \
                    xt_conntrack nf_tables unix_diag tcp_diag inet_diag";
const MEMORY: &str = "3G";
/// Without erms, which skews counts. With cx16: haproxy does not run without it, and from Linux 7 on BPF's socket storage
/// cannot be allocated (`kmalloc_nolock`, mm/slub.c).
const EMULATED_CPU: &str = "max,-erms,-fsrm,-la57";
/// For older kernels on a QEMU that `qemu.rs` warns of: there cx16 lets them oops for nothing.
const EMULATED_CPU_OLD: &str = "max,-erms,-fsrm,-cx16,-la57";
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// One program to run on one kernel.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Counted from the program's start.
    pub(crate) timeout: Duration,
    pub(crate) clock: Clock,
}

/// What a guest's clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time.
    Time,
    /// Instructions, a nanosecond each; time while it has nothing to do. Emulated, on one processor.
    Instructions,
}

/// How a program in a guest ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit_code: i32,
    pub(crate) boot: Duration,
    pub(crate) ran: Duration,
}

impl Guest<'_> {
    /// Boots, runs the program, hands each line of its output to `on_line`.
    ///
    /// Fails when the guest did not boot, ran out of time, or its kernel reported a bug, warning or panic:
    /// the text is in the error.
    pub(crate) fn run(&self, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
        sweep_dead_runs();
        let run_dir = Leftover::new(run_folder());
        fs::create_dir(run_dir.path())
            .with_context(|| format!("cannot create {}", run_dir.path().display()))?;
        let marker = format!("@@guest-{}-{}@@", std::process::id(), self.kernel.release);
        let archive =
            initramfs::write(self.kernel, run_dir.path(), &self.settings(&marker), &self.program())?;
        let console_path = run_dir.path().join("console.log");
        let socket = run_dir.path().join("fs.sock");
        let _files = virtiofs::share_root(&socket)?;
        let qemu = qemu::find().context("no qemu-system-x86_64")?;
        let mut qemu = Process::spawn(&mut self.command(&qemu, &archive, &console_path, &socket))?;
        let result = self.follow(&mut qemu, &marker, &mut on_line);
        drop(qemu);
        let console = fs::read(&console_path).unwrap_or_default();
        self.judge(result, &String::from_utf8_lossy(&console))
    }

    /// Reads the guest's output until the program has ended.
    fn follow(
        &self,
        qemu: &mut Process,
        marker: &str,
        on_line: &mut impl FnMut(&str),
    ) -> Result<(Outcome, u64)> {
        let lines = qemu.lines()?;
        let booting = Instant::now();
        let mut started: Option<Instant> = None;
        // The marker comes after a newline of its own: an empty line is shown once something follows it.
        let mut held_back = false;
        loop {
            let limit = started.map_or(booting + BOOT_LIMIT, |start| start + self.timeout);
            let line = match lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if started.is_some() => {
                    bail!("the program did not end within {} s", self.timeout.as_secs())
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest did not boot within {} s", BOOT_LIMIT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the machine stopped before the program ended"),
            };
            match console::parse(&line, marker) {
                Line::Started => started = Some(Instant::now()),
                Line::Output(text) => {
                    if std::mem::replace(&mut held_back, text.is_empty()) {
                        on_line("");
                    }
                    if !text.is_empty() {
                        on_line(text);
                    }
                }
                Line::Exited { code, tainted } => {
                    let start = started.unwrap_or(booting);
                    let outcome = Outcome { exit_code: code, boot: start - booting, ran: start.elapsed() };
                    return Ok((outcome, tainted));
                }
            }
        }
    }

    /// A kernel that misbehaved fails the run, however the program ended.
    fn judge(&self, result: Result<(Outcome, u64)>, console: &str) -> Result<Outcome> {
        let kernel = format!("kernel {} in the virtual machine", self.kernel.release);
        if let Some(trouble) = console::kernel_trouble(console) {
            let ended = result.err().map(|error| format!("{error:#}; ")).unwrap_or_default();
            bail!("{kernel}: {ended}its console says:\n{trouble}");
        }
        let (outcome, tainted) = result
            .map_err(|error| anyhow!("{kernel}: {error:#}; its console ends:\n{}", console::tail(console)))?;
        if let Some(trouble) = console::taint_trouble(tainted) {
            bail!("{kernel}: {trouble}; its console ends:\n{}", console::tail(console));
        }
        Ok(outcome)
    }

    /// What both of the guest's scripts source.
    fn settings(&self, marker: &str) -> String {
        let modules = self.kernel.root.join("lib/modules").join(&self.kernel.release);
        let target = paths::target().unwrap_or_else(|_| paths::workspace());
        let shared = [paths::workspace(), target].map(|path| quote(&path.display().to_string()));
        [
            format!("set -- {}", shared.join(" ")),
            format!("MODULES={}", quote(&modules.display().to_string())),
            format!("MARKER={}", quote(marker)),
            format!("LOAD={}\n", quote(LOAD)),
        ]
        .join("\n")
    }

    /// The program as a shell script: environment, folder, command.
    fn program(&self) -> String {
        let path = paths::search_path().to_string_lossy().into_owned();
        let fixed =
            [("PATH", path), ("HOME", "/root".into()), ("TERM", "dumb".into()), ("LC_ALL", "C.UTF-8".into())];
        let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
        let settings = fixed.chain(self.env.iter().cloned());
        let exports: Vec<_> =
            settings.map(|(name, value)| format!("export {name}={}", quote(&value))).collect();
        let words: Vec<_> = self.command.iter().map(|word| quote(word)).collect();
        let workspace = quote(&paths::workspace().display().to_string());
        format!("{}\ncd {workspace} || exit 127\nexec {}\n", exports.join("\n"), words.join(" "))
    }

    fn command(&self, qemu: &Qemu, archive: &Path, console: &Path, socket: &Path) -> Command {
        let cmdline = "console=ttyS0 loglevel=5 panic=-1 oops=panic nokaslr mitigations=off nowatchdog \
                       random.trust_cpu=on";
        let Machine { accel, cpu, cpus } = machine(&self.kernel.release, qemu, self.clock);
        let memory = format!("memory-backend-memfd,id=mem,size={MEMORY},share=on");
        let firmware = qemu.firmware.iter();
        let mut qemu = dying_with_us(&qemu.program);
        qemu.args(firmware.flat_map(|folder| [OsStr::new("-L"), folder.as_os_str()]));
        qemu.args(["-accel", accel, "-cpu", cpu, "-smp", cpus, "-m", MEMORY, "-nodefaults", "-no-reboot"]);
        if self.clock == Clock::Instructions {
            qemu.args(["-icount", "shift=0"]);
        }
        qemu.args(["-display", "none", "-monitor", "none", "-nic", "none"]);
        qemu.args(["-object", &memory, "-numa", "node,memdev=mem"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(archive).args(["-append", cmdline]);
        qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        qemu.arg("-chardev").arg(format!("socket,id=files,path={}", socket.display()));
        qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=root", "-device", "virtio-rng-pci"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        qemu
    }
}

const RUN_PREFIX: &str = "meshd-vm-";

/// Where one run keeps its socket, console and archive.
fn run_folder() -> PathBuf {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("{RUN_PREFIX}{}-{run}", std::process::id()))
}

/// Removes what runs left that were killed.
fn sweep_dead_runs() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.strip_prefix(RUN_PREFIX)?.split_once('-'));
        let pid = run.and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another run may be sweeping too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Why no virtual machine can run here, if so.
pub(crate) fn missing() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!("the kernels are x86_64's, this machine is {}", std::env::consts::ARCH));
    }
    if qemu::find().is_none() {
        return Some("no qemu-system-x86_64 (package qemu-system-x86)".to_owned());
    }
    let without = virtiofs::daemon().is_none();
    without.then(|| "no virtiofsd (package virtiofsd, on Debian 12 qemu-system-common)".to_owned())
}

/// Whether guests run on hardware virtualisation: the processor says so and we may use it; `MESHD_VM_ACCEL=tcg`
/// forbids it.
pub(crate) fn is_accelerated() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_flag = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let allowed = std::env::var_os("MESHD_VM_ACCEL").is_none_or(|value| value != "tcg");
    let usable = || fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    allowed && has_flag && usable()
}

/// Whether a guest with this kernel can have both processors.
pub(crate) fn has_two_processors(kernel: &Kernel) -> bool {
    qemu::find().is_some_and(|qemu| machine(&kernel.release, &qemu, Clock::Time).cpus == "2")
}

fn machine(release: &str, qemu: &Qemu, clock: Clock) -> Machine {
    if clock == Clock::Time && is_accelerated() {
        return Machine { accel: "kvm", cpu: "host", cpus: "2" };
    }
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let linux_7 = major.is_some_and(|major| major >= 7);
    let patches_well = qemu.patches_code_well();
    let cpu = if patches_well || linux_7 { EMULATED_CPU } else { EMULATED_CPU_OLD };
    if clock == Clock::Instructions {
        return Machine { accel: "tcg,thread=single", cpu, cpus: "1" };
    }
    // `qemu.rs` says what happens to an old one with cx16 and a second processor.
    let cpus = if linux_7 && !patches_well { "1" } else { "2" };
    Machine { accel: "tcg,thread=multi", cpu, cpus }
}

/// What QEMU is to be.
struct Machine {
    accel: &'static str,
    cpu: &'static str,
    cpus: &'static str,
}

/// One word for a POSIX shell, whatever is in it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    #[test]
    fn quoted_words_survive_a_shell() {
        for word in ["plain", "two words", "it's", "$HOME `id` \"x\" \\", ""] {
            let echoed = command("sh", ["-c", &format!("printf %s {}", quote(word))]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&echoed.stdout), word);
        }
    }
}
