//! A node: its own namespace, its folders, a `meshd` in it, and `meshctl` to ask it. The daemon is the built
//! executable, started as an operator starts it; nothing of its code is linked here.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::ground::Ground;
use super::netns::Place;
use super::process::{Finished, PATIENCE, Program, wait_until};
use super::relay::Relay;

/// Where `meshd` and `meshctl` lie: `MESHD_BIN_DIR`, else beside this executable's folder (`target/<profile>`).
pub(crate) fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("MESHD_BIN_DIR") {
        return dir.into();
    }
    let own = std::env::current_exe().expect("the test executable has a path");
    own.ancestors().nth(2).expect("it lies in target/<profile>/deps").to_owned()
}

/// One node and its daemon.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) place: Place,
    dir: PathBuf,
    capture_cgroup: PathBuf,
    relay: Relay,
    /// Seconds per daemon on an emulated kernel: off there but in the story about it.
    pub(crate) canary: bool,
    /// More of the node's file, below `capture`.
    pub(crate) capture: serde_json::Map<String, Value>,
    /// More of the node's file, by the top-level field's name.
    pub(crate) settings: serde_json::Map<String, Value>,
    /// Where its standard error goes instead of a file of the story's.
    pub(crate) stderr: Option<&'static str>,
    /// Before `meshd`: what runs it with something of its own, such as a clock.
    pub(crate) prefix: Vec<String>,
    meshd: Option<Program>,
}

impl Node {
    /// A node without a daemon yet.
    pub(crate) fn new(ground: &Ground, place: Place) -> anyhow::Result<Self> {
        let dir = ground.dir().join(&place.name);
        fs::create_dir_all(dir.join("policies"))?;
        // The daemon refuses state that others may read.
        fs::DirBuilder::new().mode(0o700).create(dir.join("state"))?;
        Ok(Self {
            name: place.name.clone(),
            place,
            dir,
            capture_cgroup: ground.cgroup().to_owned(),
            relay: ground.relay(),
            canary: !ground.scale().is_vm(),
            capture: serde_json::Map::new(),
            settings: serde_json::Map::new(),
            stderr: None,
            prefix: Vec::new(),
            meshd: None,
        })
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn ca_dir(&self) -> PathBuf {
        self.state_dir().join("ca")
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub(crate) fn policies_dir(&self) -> PathBuf {
        self.dir.join("policies")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("node.yaml")
    }

    pub(crate) fn capture_cgroup(&self) -> &Path {
        &self.capture_cgroup
    }

    pub(crate) fn relay(&self) -> Relay {
        self.relay
    }

    /// Writes the node's file, whole or not at all, as editors do.
    pub(crate) fn configure(&self, config: &Value) -> anyhow::Result<()> {
        self.configure_with_text(&format!("{config:#}\n"))
    }

    pub(crate) fn configure_with_text(&self, text: &str) -> anyhow::Result<()> {
        replace_file(&self.config_file(), text)
    }

    /// Makes `yaml` the only policy file.
    pub(crate) fn set_policies(&self, yaml: &str) -> anyhow::Result<()> {
        replace_file(&self.policies_dir().join("story.yaml"), yaml)
    }

    /// Starts `meshd run` without waiting.
    pub(crate) fn launch(&mut self) -> anyhow::Result<()> {
        let meshd = bin_dir().join("meshd");
        ensure!(meshd.exists(), "{} is not built (cargo xtask build, or set MESHD_BIN_DIR)", meshd.display());
        let config = self.config_file();
        let mut argv =
            vec![meshd.to_string_lossy(), "run".into(), "--config".into(), config.to_string_lossy()];
        if let Some(file) = self.stderr {
            let elsewhere = format!("exec \"$@\" 2>>{file}");
            argv.splice(..0, ["sh".into(), "-c".into(), elsewhere.into(), "sh".into()]);
        }
        argv.splice(..0, self.prefix.iter().map(|word| word.as_str().into()));
        self.meshd = Some(self.place.launch("meshd", &argv).start()?);
        Ok(())
    }

    /// Starts `meshd run` and waits until it is ready.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    pub(crate) fn wait_ready(&mut self) -> anyhow::Result<()> {
        let socket = self.runtime_dir().join("admin.sock");
        let patience = if self.relay.is_kernel() { PATIENCE * 4 } else { PATIENCE };
        let name = self.name.clone();
        let meshd = self.meshd.as_mut().context("meshd was not started")?;
        wait_until(patience, &format!("meshd of {name} to be ready"), || {
            ensure!(meshd.is_running(), "meshd of {name} ended at start: {}", meshd.stderr());
            Ok(get(&socket, "/healthz/ready").is_ok_and(|(status, _)| status == 200))
        })
    }

    pub(crate) fn meshd(&mut self) -> anyhow::Result<&mut Program> {
        self.meshd.as_mut().context("meshd was not started")
    }

    /// SIGTERM, and the end it leads to.
    pub(crate) fn stop(&mut self) -> anyhow::Result<Finished> {
        let meshd = self.meshd.take().context("meshd was not started")?;
        meshd.signal(Signal::SIGTERM)?;
        meshd.finish(PATIENCE)
    }

    /// The running daemon, for a story that ends it in its own way.
    pub(crate) fn take(&mut self) -> Option<Program> {
        self.meshd.take()
    }

    /// SIGKILL: no last words.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.meshd.take().context("meshd was not started")?.kill_hard()
    }

    /// Serial number of the SVID whose SPIFFE ID ends so.
    pub(crate) fn serial_of(&self, account: &str) -> anyhow::Result<String> {
        let rows = self.ctl_json(&["certs"])?;
        let is_it = |row: &&Value| row["subject"].as_str().is_some_and(|id| id.ends_with(account));
        let row = rows.as_array().into_iter().flatten().find(is_it).context("no such certificate")?;
        row["serial"].as_str().map(str::to_owned).context("no serial")
    }

    /// What the daemon logged so far.
    pub(crate) fn log(&self) -> String {
        self.meshd.as_ref().map(Program::stderr).unwrap_or_default()
    }

    /// The lines of the access log among its output.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line.get("relay").is_some() || line.get("verdict").is_some())
            .collect()
    }

    /// Waits for an access-log line that `is_it` knows.
    pub(crate) fn wait_access_log(
        &self,
        what: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut found = None;
        let waited = wait_until(
            Duration::from_secs(10),
            &format!("{}'s access log to show {what}", self.name),
            || {
                found = self.access_log().into_iter().find(&is_it);
                Ok(found.is_some())
            },
        );
        let lines = || self.access_log().iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        waited.with_context(|| format!("lines:\n{}", lines()))?;
        found.context("the line was found")
    }

    /// Runs `meshctl` against this node.
    pub(crate) fn ctl(&self, args: &[&str]) -> anyhow::Result<Finished> {
        let (meshctl, runtime) = (bin_dir().join("meshctl"), self.runtime_dir());
        let (meshctl, runtime) = (meshctl.to_string_lossy(), runtime.to_string_lossy());
        let mut line = vec![meshctl.as_ref(), "--runtime-dir", runtime.as_ref()];
        line.extend(args);
        self.place.run(&line)
    }

    /// The same with `-o json`.
    pub(crate) fn ctl_json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut with_format = vec!["-o", "json"];
        with_format.extend(args);
        let said = self.ctl(&with_format)?;
        serde_json::from_str(&said.stdout)
            .with_context(|| format!("meshctl {} said: {said:?}", args.join(" ")))
    }

    /// What `meshctl check` says against `capability`, if the canary did not prove it.
    pub(crate) fn why_not_proven(&self, capability: &str) -> anyhow::Result<Option<String>> {
        let rows = self.ctl_json(&["check"])?;
        let row = rows.as_array().into_iter().flatten().find(|row| row["name"] == capability);
        let row = row.with_context(|| format!("meshctl check does not speak of {capability}: {rows}"))?;
        Ok((row["proven"] != true).then(|| format!("{capability} is not proven: {}", row["detail"])))
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> anyhow::Result<String> {
        match get(&self.runtime_dir().join("admin.sock"), "/metrics")? {
            (200, text) => Ok(text),
            (status, text) => bail!("/metrics answered {status}: {text}"),
        }
    }

    /// The sum of a metric over its series whose line contains all of `labels`, in whole units.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<i64> {
        let text = self.metrics()?;
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        let sum: f64 = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        #[expect(clippy::cast_possible_truncation, reason = "counts and seconds since 1970 fit")]
        Ok(sum.round() as i64)
    }

    /// Open files.
    pub(crate) fn descriptors(&self) -> anyhow::Result<usize> {
        let pid = self.meshd.as_ref().context("meshd was not started")?.pid();
        Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }

    /// How many files it may open, which it has raised as far as the machine lets it.
    pub(crate) fn descriptor_limit(&self) -> anyhow::Result<usize> {
        let pid = self.meshd.as_ref().context("meshd was not started")?.pid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().next()).context("no limit on open files")?;
        Ok(soft.parse()?)
    }

    /// Sets how many files it may open from now on; what is open stays open.
    pub(crate) fn limit_descriptors(&self, soft: usize) -> anyhow::Result<()> {
        let pid = self.meshd.as_ref().context("meshd was not started")?.pid().to_string();
        let limit = format!("--nofile={soft}:");
        self.place.run(&["prlimit", "--pid", &pid, &limit])?.succeeded()?;
        Ok(())
    }

    /// Resident memory in KiB.
    pub(crate) fn rss_kib(&self) -> anyhow::Result<u64> {
        rss_kib(self.meshd.as_ref().context("meshd was not started")?.pid())
    }

    /// Gives this node an intermediate of `root`'s CA, as two nodes of one trust domain have it.
    pub(crate) fn join_trust_of(&self, root: &Self) -> anyhow::Result<()> {
        let (config, out) = (root.config_file(), self.ca_dir());
        let argv =
            ["ca", "intermediate", "--config", &config.to_string_lossy(), "--out", &out.to_string_lossy()];
        root.ctl(&argv)?.succeeded().context("making the second node's intermediate")?;
        Ok(())
    }
}

/// A process' resident memory in KiB.
pub(crate) fn rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS has a value")?.parse()?)
}

fn replace_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))
}

/// An HTTP GET over the admin socket: status and body.
pub(crate) fn get(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: meshd\r\nConnection: close\r\n\r\n")?;
    let (mut answer, begun) = (Vec::new(), Instant::now());
    stream.read_to_end(&mut answer).with_context(|| format!("no answer after {:?}", begun.elapsed()))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}
