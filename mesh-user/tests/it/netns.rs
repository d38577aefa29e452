//! Network namespaces as pods and nodes, joined by a bridge in a namespace of its own: the wire. Addresses repeat in
//! every story, since no story's wire is joined to another's or to the machine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::ground::{Ground, NETNS_DIR};
use super::process::{Finished, Launch};

/// Addresses below it are nobody's.
const FIRST_HOST: u8 = 10;

/// The bridge all pods and nodes are plugged into, in its own namespace.
pub(crate) struct Wire {
    netns: String,
    tag: String,
    dir: PathBuf,
    cgroup: PathBuf,
    plugged: u8,
    /// Numbers of places that are gone.
    free: Vec<u8>,
}

/// A namespace with one interface on the wire: a pod, or a node's own.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    netns: String,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Wire {
    /// Lays the wire of a story.
    pub(crate) fn lay(ground: &Ground) -> anyhow::Result<Self> {
        let netns = format!("{}-wire", ground.tag());
        let wire = Self {
            netns: netns.clone(),
            tag: ground.tag().to_owned(),
            dir: ground.dir().to_owned(),
            cgroup: ground.cgroup().to_owned(),
            plugged: 0,
            free: Vec::new(),
        };
        make(&netns)?;
        // No snooping and no learning delay: what is plugged in talks at once.
        ip_batch(
            &netns,
            "link set lo up\nlink add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n",
        )?;
        Ok(wire)
    }

    /// Plugs in a new place of each name.
    pub(crate) fn plug<const N: usize>(&mut self, names: [&str; N]) -> anyhow::Result<[Place; N]> {
        let places = names.map(|name| self.place(name));
        for place in &places {
            make(&place.netns)?;
            super::cgroup::make(&place.cgroup)?;
        }
        let port = |Place { name, netns, .. }: &Place| {
            format!(
                "link add v-{name} type veth peer name eth0 netns {netns}\nlink set v-{name} master br0 up\n"
            )
        };
        ip_batch(&self.netns, &places.iter().map(port).collect::<String>())?;
        for place in &places {
            // Services' addresses are nobody's: only capture makes them lead anywhere.
            ip_batch(
                &place.netns,
                &format!(
                    "link set lo up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
                     route add default via 10.201.0.1\n",
                    place.v4, place.v6
                ),
            )?;
        }
        Ok(places)
    }

    fn place(&mut self, name: &str) -> Place {
        let place = self.next(name);
        if self.free.pop().is_none() {
            self.plugged += 1;
        }
        place
    }

    /// The place that is plugged in next, if that has this name.
    pub(crate) fn next(&self, name: &str) -> Place {
        self.at(name, self.free.last().copied().unwrap_or(self.plugged + 1))
    }

    /// Has the next place get the addresses of this one, which must be gone.
    pub(crate) fn unplug(&mut self, place: &Place) {
        self.free.push(place.v4.octets()[3] - FIRST_HOST);
    }

    fn at(&self, name: &str, number: u8) -> Place {
        let host = FIRST_HOST + number;
        Place {
            name: name.to_owned(),
            v4: Ipv4Addr::new(10, 201, 0, host),
            v6: Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, u16::from(host)),
            netns: format!("{}-{name}", self.tag),
            dir: self.dir.clone(),
            cgroup: self.cgroup.join(name),
        }
    }

    /// A command in the wire's namespace, outside the pods.
    pub(crate) fn launch(&self, label: &str, argv: &[&str]) -> Launch {
        launch(label, argv, &self.netns, &self.cgroup, &self.dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Place {
    /// The namespace's file, as a selector names it.
    pub(crate) fn netns_path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.netns)
    }

    /// The same namespace, with programs in the cgroup `path`.
    pub(crate) fn in_cgroup(&self, path: &Path) -> anyhow::Result<Self> {
        super::cgroup::make(path)?;
        Ok(Self { cgroup: path.to_owned(), ..self.clone() })
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4.into(), port)
    }

    pub(crate) fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v6.into(), port)
    }

    /// The story's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Pulls its plug, as the network plugin does when a pod ends, and takes its name away. The namespace itself goes when
    /// nothing is in it any more.
    pub(crate) fn remove(&self) {
        let _ = ip_batch(&self.netns, "link del eth0\n");
        remove(OsStr::new(&self.netns));
    }

    /// A program to start here.
    pub(crate) fn launch<S: AsRef<str>>(&self, label: &str, argv: &[S]) -> Launch {
        let argv: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
        launch(&format!("{}-{label}", self.name), &argv, &self.netns, &self.cgroup, &self.dir)
    }

    /// Runs a program here to its end.
    pub(crate) fn run(&self, argv: &[&str]) -> anyhow::Result<Finished> {
        let program =
            Path::new(argv[0]).file_name().map_or_else(|| "program".into(), |name| name.to_string_lossy());
        self.launch(&program, argv).finish(Duration::from_secs(120))
    }
}

fn launch(label: &str, argv: &[&str], netns: &str, cgroup: &Path, dir: &Path) -> Launch {
    Launch {
        label: label.to_owned(),
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        netns: Path::new(NETNS_DIR).join(netns),
        cgroup: cgroup.to_owned(),
        logs: dir.to_owned(),
        user: None,
    }
}

/// Makes a named namespace as `ip netns add` does (ip-netns(8)), without a process for it.
fn make(name: &str) -> anyhow::Result<()> {
    super::ground::still_wanted()?;
    fs::create_dir_all(NETNS_DIR)?;
    let file = Path::new(NETNS_DIR).join(name);
    File::create_new(&file).with_context(|| format!("making {}", file.display()))?;
    // The thread takes the new namespace with it when it ends; the mount keeps it.
    let enter_and_keep = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    thread::scope(|scope| scope.spawn(enter_and_keep).join())
        .map_err(|_| anyhow::anyhow!("the thread that makes {name} panicked"))?
        .with_context(|| format!("making the namespace {name}"))
}

/// Takes a name away; the namespace goes when nothing is in it any more.
pub(super) fn remove(name: &OsStr) {
    let file = Path::new(NETNS_DIR).join(name);
    // One that was made only half is a file without a mount.
    let _ = umount2(&file, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&file);
}

/// Runs lines of `ip` commands in one process: each costs a fifth of a second on an emulated kernel.
fn ip_batch(netns: &str, lines: &str) -> anyhow::Result<()> {
    super::ground::still_wanted()?;
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
