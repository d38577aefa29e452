//! Who is measured. Every subject has pods, servers and proxies of its own, and nothing of it runs while another one
//! is measured but sleeping programs. All meshes do the same work: mutual TLS with SPIFFE identities between the two
//! pods' nodes, and one rule that lets only this client in.

mod certificates;
mod envoy;
mod meshd;
mod servers;
mod world;
mod ztunnel;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::meshd::Settings;
use crate::{
    machine::{self, Programs},
    results::PLAIN,
    stage::{Ground, Running, Stage, wait_until},
};

/// The server's port for HTTP.
pub(crate) const HTTP_PORT: u16 = 80;
/// The server's port for bytes.
pub(crate) const BULK_PORT: u16 = 5201;

/// Where the meshes' programs lie.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// The folder of `meshd` and `meshctl`.
    pub(crate) bin_dir: PathBuf,
    pub(crate) envoy: Option<PathBuf>,
    pub(crate) ztunnel: Option<PathBuf>,
}

/// meshd's relays, as its configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relay {
    Userspace,
    Ktls,
    KtlsSplice,
}

/// A kind of subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Meshd(Relay),
    /// The userspace relay behind capture's form `listener`.
    MeshdListener,
    /// One daemon for both workloads, which take the kernel path.
    MeshdKernelPath,
    /// The userspace relay in a mesh with so many thousand more workloads.
    MeshdInCrowd(u16),
    Envoy,
    Ztunnel,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => PLAIN,
            Self::Meshd(Relay::Userspace) => "meshd-userspace",
            Self::Meshd(Relay::Ktls) => "meshd-ktls",
            Self::Meshd(Relay::KtlsSplice) => "meshd-ktls-splice",
            Self::MeshdListener => "meshd-listener",
            Self::MeshdKernelPath => "meshd-kernel",
            Self::MeshdInCrowd(1) => "meshd-1k",
            Self::MeshdInCrowd(20) => "meshd-20k",
            Self::MeshdInCrowd(_) => "meshd-100k",
            Self::Envoy => "envoy",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// Those that are measured only where somebody asks for them: what tells them from `meshd-userspace` is one thing.
    pub(crate) const ON_DEMAND: [Self; 5] = [
        Self::MeshdListener,
        Self::MeshdKernelPath,
        Self::MeshdInCrowd(1),
        Self::MeshdInCrowd(20),
        Self::MeshdInCrowd(100),
    ];

    /// Whether it is another mesh, to which meshd's figures are given as ratios.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Envoy | Self::Ztunnel)
    }
}

/// A running subject.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) ground: Ground,
    /// The client's side first; none for plain TCP.
    proxies: Vec<Running>,
    _servers: Vec<Running>,
    tools: Tools,
}

impl Subject {
    /// Starts servers and proxies and waits until a request is answered.
    pub(crate) fn start(stage: &Stage, kind: Kind, tools: &Tools) -> Result<Self> {
        let ground = stage.ground(kind.name())?;
        let servers = servers::start(&ground)?;
        match kind {
            Kind::Plain => {}
            Kind::Meshd(relay) => meshd::prepare(&ground, &Settings::of(relay), tools)?,
            Kind::MeshdListener => {
                let settings = Settings { form: "listener", ..Settings::of(Relay::Userspace) };
                meshd::prepare(&ground, &settings, tools)?;
            }
            Kind::MeshdKernelPath => {
                let settings = Settings { same_node: true, ..Settings::of(Relay::Userspace) };
                meshd::prepare(&ground, &settings, tools)?;
            }
            Kind::MeshdInCrowd(thousands) => {
                let crowd = u32::from(thousands) * 1000;
                meshd::prepare(&ground, &Settings { crowd, ..Settings::of(Relay::Userspace) }, tools)?;
            }
            Kind::Envoy => envoy::prepare(&ground)?,
            Kind::Ztunnel => ztunnel::prepare(&ground)?,
        }
        let mut subject = Self { kind, ground, proxies: Vec::new(), _servers: servers, tools: tools.clone() };
        subject.start_proxies()?;
        Ok(subject)
    }

    /// Ends the proxies and starts new ones: the time from there to a request that is answered.
    pub(crate) fn restart(&mut self) -> Result<Duration> {
        self.proxies.clear();
        let begun = Instant::now();
        self.start_proxies()?;
        Ok(begun.elapsed())
    }

    fn start_proxies(&mut self) -> Result<()> {
        self.proxies = match self.kind {
            Kind::Plain => Vec::new(),
            Kind::MeshdKernelPath => meshd::start(&self.ground, &[&self.ground.node_a], &self.tools)?,
            Kind::Meshd(_) | Kind::MeshdListener | Kind::MeshdInCrowd(_) => {
                meshd::start(&self.ground, &[&self.ground.node_a, &self.ground.node_b], &self.tools)?
            }
            Kind::Envoy => envoy::start(&self.ground, self.tools.envoy.as_deref().context("no Envoy")?)?,
            Kind::Ztunnel => {
                ztunnel::start(&self.ground, self.tools.ztunnel.as_deref().context("no ztunnel")?)?
            }
        };
        self.wait_until_served()
    }

    fn wait_until_served(&mut self) -> Result<()> {
        let url = self.url("/1k");
        let mut last = String::new();
        let served = wait_until("an answer", || {
            for proxy in &mut self.proxies {
                proxy.must_run()?;
            }
            let answer = self.fetch(&url);
            last = answer.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
            Ok(answer.is_ok())
        });
        served.with_context(|| {
            let logs: Vec<_> = self.proxies.iter().map(Running::complained).collect();
            format!("{} does not serve: {last}\n{}", self.kind.name(), logs.join("\n"))
        })
    }

    fn fetch(&self, url: &str) -> Result<String> {
        let argv = ["curl", "-sS", "--fail", "--max-time", "3", url];
        self.ground.start(&self.ground.client, "curl", &argv, None)?.finish(Duration::from_secs(5))
    }

    /// The server's address for a file.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}:{HTTP_PORT}{path}", self.ground.server.address)
    }

    /// What its proxies used since they started, the client's side first.
    pub(crate) fn proxies(&self) -> Result<Vec<Programs>> {
        self.proxies.iter().map(|proxy| Programs::now(proxy.cgroup())).collect()
    }

    /// The proxies' processes.
    pub(crate) fn proxy_pids(&self) -> Result<Vec<u32>> {
        let pids = self.proxies.iter().map(|proxy| machine::pids(proxy.cgroup()));
        Ok(pids.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Looks at the wire during a request: what is plain there must be so, and what is a mesh must not. A mesh that
    /// carries nothing would be the fastest of all.
    pub(crate) fn prove_wire(&self) -> Result<()> {
        let mut tap = self.ground.start(
            &self.ground.wire,
            "tcpdump",
            &["tcpdump", "-i", "v-server", "-p", "-l", "-A", "-s", "0", "-n", "--immediate-mode", "tcp"],
            None,
        )?;
        wait_until("tcpdump to listen", || {
            tap.must_run()?;
            Ok(tap.complained().contains("listening on"))
        })?;
        self.fetch(&self.url("/1k"))?;
        let mut seen = String::new();
        wait_until("packets", || {
            seen = tap.said();
            Ok(seen.contains("Flags [F"))
        })?;
        // The last of them may still be on its way into the file.
        std::thread::sleep(Duration::from_millis(200));
        let seen = tap.said();
        let readable = seen.contains(servers::MARKER);
        if self.kind == Kind::Plain {
            ensure!(readable, "the wire does not show plain TCP's bytes: the check itself is wrong");
        } else if self.kind == Kind::MeshdKernelPath {
            ensure!(readable, "meshd still carries what should take the kernel path");
        } else if readable {
            bail!("{} sends what it carries in the clear", self.kind.name());
        }
        Ok(())
    }
}

/// Which of meshd's relays this kernel offers besides the userspace one, and why the others are left out.
pub(crate) fn kernel_relays(subject: &Subject) -> Result<(Vec<Relay>, Vec<String>)> {
    meshd::kernel_relays(&subject.ground, &subject.tools)
}
