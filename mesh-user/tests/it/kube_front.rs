//! A proxy before the API server that makes it as busy, slow or forgetful as real ones are: haproxy with the API server's own
//! certificate.

use std::fs;

use anyhow::Context as _;

use super::kube::{Cluster, PORT};
use super::netns::Place;
use super::process::{PATIENCE, Program};

/// Where it answers, in the API server's place.
const FRONT_PORT: u16 = PORT + 1;

/// What it does to requests.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mood {
    /// Passes them on.
    Open,
    /// Answers each with 429, as the API server's priority and fairness does.
    Busy,
    /// Passes each on after a second and a half.
    Slow,
}

impl Mood {
    fn rule(self, lua: &str) -> (String, String) {
        match self {
            Self::Open => (String::new(), String::new()),
            Self::Busy => (
                String::new(),
                "  http-request return status 429 hdr Retry-After 1 content-type application/json string \
                 '{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"too many \
                 requests\",\"reason\":\"TooManyRequests\",\"code\":429}'\n"
                    .to_owned(),
            ),
            Self::Slow => (format!("  lua-load {lua}\n"), "  http-request lua.slow\n".to_owned()),
        }
    }
}

pub(crate) struct Front {
    place: Place,
    api_server: String,
    running: Option<Program>,
}

impl Front {
    /// Before `cluster`, and not there yet.
    pub(crate) fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let place = cluster.place.clone();
        let certificate: String = ["server.crt", "server.key"]
            .iter()
            .map(|name| fs::read_to_string(cluster.file(name)))
            .collect::<Result<_, _>>()?;
        fs::write(place.dir().join("front.pem"), certificate)?;
        fs::write(
            place.dir().join("slow.lua"),
            "core.register_action(\"slow\", { \"http-req\" }, function(txn) core.msleep(1500) end)\n",
        )?;
        Ok(Self { api_server: format!("{}:{PORT}", place.v4), place, running: None })
    }

    /// Where clients reach it.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:{FRONT_PORT}", self.place.v4)
    }

    /// Cuts every connection, and is in this mood from now on.
    pub(crate) fn be(&mut self, mood: Mood) -> anyhow::Result<()> {
        self.running = None;
        let dir = self.place.dir();
        let (global, rule) = mood.rule(&dir.join("slow.lua").to_string_lossy());
        let (certificate, file) = (dir.join("front.pem"), dir.join("front.cfg"));
        let config = format!(
            "global\n{global}\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  log stdout format raw \
             local0\n  log-format \"%ST %HM %HU\"\n\
             frontend front\n  bind :{FRONT_PORT} ssl crt {}\n{rule}  default_backend api\n\
             backend api\n  server api {} ssl verify none\n",
            certificate.display(),
            self.api_server,
        );
        fs::write(&file, config)?;
        let program =
            self.place.launch("front", &["haproxy", "-db", "-f", &file.to_string_lossy()]).start()?;
        super::programs::listening(&self.place, FRONT_PORT)?;
        self.running = Some(program);
        Ok(())
    }

    /// Waits until a request for a path with this in it was answered with `status`.
    pub(crate) fn wait_answered(&mut self, status: u16, path: &str) -> anyhow::Result<()> {
        let program = self.running.as_ref().context("it was started")?;
        super::process::wait_until(PATIENCE * 2, &format!("an answer {status} to {path}"), || {
            let wanted = format!("{status} GET ");
            Ok(program.stdout().lines().any(|line| line.starts_with(&wanted) && line.contains(path)))
        })
        .with_context(|| program.stdout())
    }
}
