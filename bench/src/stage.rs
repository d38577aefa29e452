//! Where the work is done: for every subject two pods and two nodes, network namespaces on a bridge of their own, and
//! a cgroup; and the stagehand, a small shell in a session of its own that clears everything away when this process
//! closes its pipe or is gone, however it went. Nothing outside these is written to.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Waits for the end of its standard input, then clears everything named `$1`: `$2` is the cgroup, `$3` the folder.
const STAGEHAND: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
echo 1 >"$2/cgroup.kill"
for try in 1 2 3 4 5 6 7 8 9 10; do grep -q 'populated 1' "$2/cgroup.events" || break; sleep 0.2; done
for name in $(ls /run/netns | grep "^$1-"); do ip netns delete "$name"; done
grep -o " $3[^ ]*" /proc/mounts | while read -r mount; do umount -l "$mount"; done
rm -rf "$3"
for try in 1 2 3 4 5; do find "$2" -depth -type d -exec rmdir {} + && break; sleep 0.2; done
"#;
/// Ports that connections leave from: enough for a second of connections that wait out their `TIME_WAIT`, and none of
/// the ports that proxies listen on.
const NAMESPACE_SETTINGS: &str = "echo '16000 65000' >/proc/sys/net/ipv4/ip_local_port_range; \
    echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse; echo 16384 >/proc/sys/net/core/somaxconn; echo 16384 >/proc/sys/net/ipv4/tcp_max_syn_backlog";
/// Before it gives up on something that normally takes milliseconds, and on an emulated kernel half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything of this run.
pub(crate) struct Stage {
    tag: String,
    dir: PathBuf,
    cgroup: PathBuf,
    stagehand: Child,
}

impl Stage {
    /// Sets the stagehand to watch, then builds.
    pub(crate) fn build() -> Result<Self> {
        let tag = format!("mb-{}", std::process::id());
        let dir = Path::new("/tmp").join(&tag);
        let cgroup = cgroup_base()?.join(&tag);
        let stagehand = Command::new("setsid")
            .args(["sh", "-c", STAGEHAND, "stagehand", &tag])
            .args([&cgroup, &dir])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the stagehand (package util-linux)")?;
        let stage = Self { tag, dir, cgroup, stagehand };
        for folder in [&stage.dir, &stage.cgroup] {
            fs::create_dir(folder)
                .with_context(|| format!("making {} (the benchmark needs root)", folder.display()))?;
        }
        Ok(stage)
    }

    /// Two pods and two nodes for one subject.
    pub(crate) fn ground(&self, subject: &str) -> Result<Ground> {
        let tag = format!("{}-{subject}", self.tag);
        let (dir, cgroup) = (self.dir.join(subject), self.cgroup.join(subject));
        fs::create_dir(&dir)?;
        fs::create_dir(&cgroup)?;
        let wire = format!("{tag}-wire");
        ip(&["netns", "add", &wire])?;
        // No snooping and no learning delay: what is plugged in talks at once.
        ip_batch(
            &wire,
            "link set lo up\nlink add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n",
        )?;
        let place = |name: &str, host: u8| Place::plug(&tag, &wire, name, host);
        Ok(Ground {
            client: place("client", 11)?,
            server: place("server", 21)?,
            node_a: place("node-a", 2)?,
            node_b: place("node-b", 3)?,
            wire: Place { name: "wire".into(), address: Ipv4Addr::UNSPECIFIED, netns: netns_path(&wire) },
            dir,
            cgroup,
            started: std::cell::Cell::new(0),
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.stagehand.stdin.take());
        let _ = self.stagehand.wait();
    }
}

/// What one subject stands on.
pub(crate) struct Ground {
    pub(crate) client: Place,
    pub(crate) server: Place,
    pub(crate) node_a: Place,
    pub(crate) node_b: Place,
    pub(crate) wire: Place,
    dir: PathBuf,
    cgroup: PathBuf,
    started: std::cell::Cell<u32>,
}

/// A network namespace with an address on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    netns: PathBuf,
}

impl Place {
    fn plug(tag: &str, wire: &str, name: &str, host: u8) -> Result<Self> {
        let (inside, port) = (format!("{tag}-{name}"), format!("v-{name}"));
        let address = Ipv4Addr::new(10, 201, 0, host);
        ip(&["netns", "add", &inside])?;
        ip_batch(
            wire,
            &format!(
                "link add {port} type veth peer name eth0 netns {inside}\nlink set {port} master br0 up\n"
            ),
        )?;
        ip_batch(&inside, &format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n"))?;
        let place = Self { name: name.to_owned(), address, netns: netns_path(&inside) };
        place.run(&["sh", "-c", NAMESPACE_SETTINGS])?;
        Ok(place)
    }

    pub(crate) fn netns(&self) -> &Path {
        &self.netns
    }

    /// Runs a short command here, outside every cgroup of the run.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").args(argv);
        output(&mut command, &argv.join(" "))
    }
}

impl Ground {
    /// The subject's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The subject's cgroup: every program of it is started below this one.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Starts a program in a place, in a cgroup of its own below the subject's, as `user` or root.
    pub(crate) fn start(
        &self,
        place: &Place,
        role: &str,
        argv: &[&str],
        user: Option<u32>,
    ) -> Result<Running> {
        let number = self.started.replace(self.started.get() + 1);
        let unique = format!("{role}-{number}");
        let cgroup = self.cgroup.join(&unique);
        fs::create_dir(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        let (out, err) = (self.dir.join(format!("{unique}.out")), self.dir.join(format!("{unique}.err")));
        let mut command = Command::new("sh");
        // The program's sockets belong to the cgroup they are created in: it moves there first.
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && ulimit -n $(ulimit -H -n) && exec \"$@\""])
            .arg(&cgroup)
            .args(["nsenter", &format!("--net={}", place.netns.display()), "--"]);
        if let Some(user) = user {
            let user = user.to_string();
            command.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"]);
        }
        let mut child = command
            .args(argv)
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .with_context(|| format!("starting {}", argv.join(" ")))?;
        let stdin = child.stdin.take();
        Ok(Running { name: unique, child, stdin, cgroup, out, err })
    }
}

/// A running program; killed with its children when dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    cgroup: PathBuf,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What it printed so far.
    pub(crate) fn said(&self) -> String {
        fs::read(&self.out).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// The end of what it complained about.
    pub(crate) fn complained(&self) -> String {
        let text =
            fs::read(&self.err).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Tells it to go on.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("telling {} to go on", self.name))
    }

    /// Fails when it has ended.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}{}", self.name, self.said(), self.complained()),
        }
    }

    /// Waits until it has printed `text`.
    pub(crate) fn wait_to_say(&mut self, text: &str, limit: Duration) -> Result<()> {
        let name = self.name.clone();
        wait_for(limit, &format!("{name} to say {text:?}"), || {
            if self.said().contains(text) {
                return Ok(true);
            }
            self.must_run()?;
            Ok(false)
        })
    }

    /// Waits for its end; what it printed, if it succeeded.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<String> {
        let name = self.name.clone();
        let mut status = None;
        wait_for(limit, &format!("{name} to end"), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        let status = status.context("a program that ended has a status")?;
        ensure!(status.success(), "{name} failed ({status}): {}{}", self.said(), self.complained());
        Ok(self.said())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let _ = self.child.wait();
        // Children of it may take a moment; what stays is the stagehand's.
        for _ in 0..50 {
            if fs::remove_dir(&self.cgroup).is_ok() || !self.cgroup.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// [`wait_until`] with ordinary patience.
pub(crate) fn wait_until(what: &str, done: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(PATIENCE, what, done)
}

fn wait_for(limit: Duration, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !done()? {
        ensure!(Instant::now() < end, "waited {} s in vain for {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Where cgroups are made: `MESHD_TEST_CGROUP`, else the machine's cgroup2 mount.
fn cgroup_base() -> Result<PathBuf> {
    if let Some(base) = std::env::var_os("MESHD_TEST_CGROUP") {
        return Ok(base.into());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let target = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let target = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(target))
    });
    target.context("no cgroup2 is mounted: mount one, or name a writable one in MESHD_TEST_CGROUP")
}

fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn ip(args: &[&str]) -> Result<()> {
    output(Command::new("ip").args(args), &format!("ip {}", args.join(" "))).map(drop)
}

fn ip_batch(netns: &str, lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", netns, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip (package iproute2)")?;
    child.stdin.take().context("no standard input")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip -n {netns}: {lines}: {}", said.trim());
    Ok(())
}

/// Runs a command to its end; its output, if it succeeded.
pub(crate) fn output(command: &mut Command, line: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running `{line}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{line}` failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
