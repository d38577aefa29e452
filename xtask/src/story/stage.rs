//! The stage: namespaces on a bridge, a cgroup, a folder, all named after this process; and the stagehand, a small
//! shell in a session of its own that clears the stage when this process is gone, however it went.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Clears everything named `$1` after process `$2` has ended: `$3` is the cgroup, `$4` the folder.
const STAGEHAND: &str = r#"
trap '' INT TERM HUP
while kill -0 "$2" 2>/dev/null; do sleep 0.2; done
echo 1 >"$3/cgroup.kill"
for try in 1 2 3 4 5; do grep -q 'populated 1' "$3/cgroup.events" || break; sleep 0.2; done
for name in $(ls /run/netns | grep "^$1-"); do ip netns delete "$name"; done
grep -o " $4[^ ]*" /proc/mounts | while read -r mount; do umount -l "$mount"; done
rm -rf "$4"
find "$3" -depth -type d -exec rmdir {} +
"#;

/// Where the story plays.
pub(super) struct Stage {
    tag: String,
    dir: PathBuf,
    cgroup: PathBuf,
}

/// A pod or node: a namespace with an address.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) address: String,
    netns: PathBuf,
}

impl Place {
    pub(super) fn netns(&self) -> &Path {
        &self.netns
    }
}

impl Stage {
    /// Builds it, and sets the stagehand to watch.
    pub(super) fn build() -> Result<Self> {
        let pid = std::process::id();
        let tag = format!("mt-{pid}-demo");
        let dir = Path::new("/tmp").join(&tag);
        let cgroup = cgroup_base()?.join(&tag);
        fs::create_dir(&dir).with_context(|| format!("making {} (the demo needs root)", dir.display()))?;
        fs::create_dir(&cgroup)
            .with_context(|| format!("making {} (the demo needs root)", cgroup.display()))?;
        let stage = Self { tag, dir, cgroup };
        Command::new("setsid")
            .args(["sh", "-c", STAGEHAND, "stagehand", &stage.tag, &pid.to_string()])
            .args([&stage.cgroup, &stage.dir])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the stagehand (package util-linux)")?;
        let wire = stage.netns("wire");
        ip(&["netns", "add", &wire])?;
        ip(&["-n", &wire, "link", "set", "lo", "up"])?;
        ip(&["-n", &wire, "link", "add", "br0", "type", "bridge", "forward_delay", "0"])?;
        ip(&["-n", &wire, "link", "set", "br0", "up"])?;
        Ok(stage)
    }

    /// A new namespace on the bridge.
    pub(super) fn place(&self, name: &'static str, host: u8) -> Result<Place> {
        let (inside, wire, port) = (self.netns(name), self.netns("wire"), format!("v-{name}"));
        let address = format!("10.201.0.{host}");
        ip(&["netns", "add", &inside])?;
        ip(&["-n", &inside, "link", "set", "lo", "up"])?;
        ip(&["-n", &wire, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &inside])?;
        ip(&["-n", &wire, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &inside, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", &inside, "link", "set", "eth0", "up"])?;
        Ok(Place { name, address, netns: Path::new("/run/netns").join(inside) })
    }

    /// The bridge's namespace.
    pub(super) fn wire(&self) -> Place {
        Place {
            name: "wire",
            address: String::new(),
            netns: Path::new("/run/netns").join(self.netns("wire")),
        }
    }

    fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command in a place, in the stage's cgroup.
    fn command(&self, place: &Place, argv: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.cgroup)
            .args(["nsenter", &format!("--net={}", place.netns.display()), "--"])
            .args(argv)
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, at most 60 s.
    pub(super) fn run(&self, place: &Place, argv: &[&str]) -> Result<Output> {
        let mut bounded = vec!["timeout", "60"];
        bounded.extend(argv);
        self.command(place, &bounded).output().with_context(|| format!("running {}", argv.join(" ")))
    }

    /// The same; its output, if it succeeded.
    pub(super) fn must_run(&self, place: &Place, argv: &[&str]) -> Result<String> {
        let output = self.run(place, argv)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{} failed: {out}{err}", argv.join(" "));
        Ok(out.into_owned())
    }

    /// Starts a program whose output goes to the file `label` in the stage's folder.
    pub(super) fn start(&self, place: &Place, label: &str, argv: &[&str]) -> Result<Running> {
        let log = self.dir.join(format!("{label}.log"));
        let out = File::create(&log)?;
        let mut command = self.command(place, argv);
        let child = command
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {label}"))?;
        Ok(Running { label: label.to_owned(), child, log })
    }
}

/// A program on the stage; ended when dropped.
pub(super) struct Running {
    label: String,
    pub(super) child: Child,
    log: PathBuf,
}

impl Running {
    pub(super) fn said(&self) -> String {
        fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    pub(super) fn wait_to_say(&mut self, text: &str) -> Result<()> {
        let label = self.label.clone();
        wait_for(&format!("{label} to say {text:?}"), || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{label} ended ({status}): {}", self.said());
            }
            Ok(self.said().contains(text))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until the answer is yes; an emulated machine is slow, so for a minute.
pub(super) fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while !done()? {
        ensure!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn cgroup_base() -> Result<PathBuf> {
    if let Some(base) = std::env::var_os("MESHD_TEST_CGROUP") {
        return Ok(base.into());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut targets = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let target = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(target))
    });
    targets.next().context("no cgroup2 is mounted")
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("running ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), said.trim());
    Ok(())
}
