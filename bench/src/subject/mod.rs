//! Who is measured. Every subject has pods, servers and proxies of its own, and nothing of it runs while another one
//! is measured but sleeping programs. All meshes do the same work: mutual TLS with SPIFFE identities between the two
//! pods' nodes, and one rule that lets only this client in; those that read requests have the same rules about them.

mod certificates;
mod envoy;
mod envoy_http;
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

/// What every client of every subject sends with each request: rules about requests ask for it.
pub(crate) const TEAM_HEADER: &str = "x-team: shop";

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
    /// Rules about requests, which the server's meshd reads.
    MeshdHttp,
    Envoy,
    /// Rules about requests: HTTP connection managers in place of TCP proxies.
    EnvoyHttp,
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
            Self::MeshdHttp => "meshd-http",
            Self::Envoy => "envoy",
            Self::EnvoyHttp => "envoy-http",
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
        matches!(self, Self::Envoy | Self::EnvoyHttp | Self::Ztunnel)
    }

    /// Whether its rules are about requests. It is measured only where there are requests to read.
    pub(crate) fn reads_requests(self) -> bool {
        matches!(self, Self::MeshdHttp | Self::EnvoyHttp)
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
            Kind::MeshdHttp => {
                let settings = Settings { reads_requests: true, ..Settings::of(Relay::Userspace) };
                meshd::prepare(&ground, &settings, tools)?;
            }
            Kind::Envoy | Kind::EnvoyHttp => envoy::prepare(&ground, kind.reads_requests())?,
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
            Kind::Meshd(_) | Kind::MeshdListener | Kind::MeshdInCrowd(_) | Kind::MeshdHttp => {
                meshd::start(&self.ground, &[&self.ground.node_a, &self.ground.node_b], &self.tools)?
            }
            Kind::Envoy | Kind::EnvoyHttp => {
                envoy::start(&self.ground, self.tools.envoy.as_deref().context("no Envoy")?)?
            }
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
        self.curl(&["--fail", "-H", TEAM_HEADER, url])
    }

    fn curl(&self, words: &[&str]) -> Result<String> {
        let argv = [&["curl", "-sS", "--max-time", "3"], words].concat();
        self.ground.start(&self.ground.client, "curl", &argv, None)?.finish(Duration::from_secs(5))
    }

    /// Asks for what the rules about requests forbid. A mesh that does not look at them would win.
    pub(crate) fn prove_rules(&self) -> Result<()> {
        if !self.kind.reads_requests() {
            return Ok(());
        }
        let (file, secret) = (self.url("/1k"), self.url("/admin/1k"));
        for words in [&["-X", "PUT", "-H", TEAM_HEADER, &file][..], &[&file], &["-H", TEAM_HEADER, &secret]] {
            let status = ["-o", "/dev/null", "-w", "%{http_code}"];
            let got = self.curl(&[&status, words].concat())?;
            ensure!(got == "403", "{} answers {got} to curl {}", self.kind.name(), words.join(" "));
        }
        Ok(())
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
        // Between its connection managers Envoy keeps connections for the next request.
        let sign = if self.kind == Kind::EnvoyHttp { "Flags [P" } else { "Flags [F" };
        wait_until("packets", || Ok(tap.said().contains(sign)))?;
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
