//! The cast: pods and the programs in them, none of which knows of a mesh.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::stage::{Place, Running, Stage, wait_for};

/// What the wire must not show once meshd runs.
pub(super) const SECRET: &str = "card-4242-4242-4242-4242";

const LARGE_BYTES: u64 = 1 << 30;

/// Pods and running servers.
pub(super) struct Cast {
    pub(super) frontend: Place,
    pub(super) reports: Place,
    pub(super) web: Place,
    pub(super) db: Place,
    pub(super) outsider: Place,
    _servers: [Running; 3],
}

impl Cast {
    /// Everybody enters; servers answer when this returns.
    pub(super) fn enter(stage: &Stage) -> Result<Self> {
        let (web, db) = (stage.place("web", 21)?, stage.place("db", 22)?);
        Ok(Self {
            frontend: stage.place("frontend", 11)?,
            reports: stage.place("reports", 12)?,
            outsider: stage.place("outsider", 31)?,
            _servers: [nginx(stage, &web)?, redis(stage, &db)?, postgres(stage, &db)?],
            web,
            db,
        })
    }

    /// nginx's address of its page.
    pub(super) fn page(&self) -> String {
        format!("http://{}/", self.web.address)
    }
}

fn nginx(stage: &Stage, place: &Place) -> Result<Running> {
    let dir = stage.dir().join("nginx");
    fs::create_dir(&dir)?;
    let here = dir.display();
    fs::write(dir.join("index.html"), format!("{SECRET}\n"))?;
    // No blocks on disk, and more than all buffers on the way hold: a download of it lasts.
    fs::File::create(dir.join("large"))?.set_len(LARGE_BYTES)?;
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/pid;\nevents {{ }}\nhttp {{\n  access_log off;\n  \
         client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fcgi;\n  \
         uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n  server {{ listen 80; root {here}; }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    for folder in [stage.dir(), &dir] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let log = dir.join("error.log");
    let program = stage.start(
        place,
        "nginx",
        &["nginx", "-e", &log.to_string_lossy(), "-c", &file.to_string_lossy()],
    )?;
    wait_for("nginx to listen", || {
        Ok(stage.must_run(place, &["ss", "-Hltn", "sport = :80"])?.contains("LISTEN"))
    })?;
    Ok(program)
}

fn redis(stage: &Stage, place: &Place) -> Result<Running> {
    let argv =
        ["redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    let mut program = stage.start(place, "redis", &argv)?;
    program.wait_to_say("Ready to accept connections")?;
    Ok(program)
}

fn postgres(stage: &Stage, place: &Place) -> Result<Running> {
    let bin = postgres_bin()?;
    let dir = stage.dir().join("postgres").to_string_lossy().into_owned();
    stage.must_run(place, &["install", "-d", "-o", "postgres", "-g", "postgres", &dir])?;
    let as_postgres = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"];
    let data = format!("{dir}/data");
    let initdb = bin.join("initdb").to_string_lossy().into_owned();
    let mut line = as_postgres.to_vec();
    line.extend([initdb.as_str(), "-D", &data, "-A", "trust", "-N", "--no-locale"]);
    stage.must_run(place, &line)?;
    fs::write(format!("{data}/pg_hba.conf"), "local all all trust\nhost all all 0.0.0.0/0 trust\n")?;
    let server = bin.join("postgres").to_string_lossy().into_owned();
    let sockets = format!("unix_socket_directories={dir}");
    let mut line = as_postgres.to_vec();
    line.extend([
        server.as_str(),
        "-D",
        &data,
        "-c",
        "listen_addresses=*",
        "-c",
        &sockets,
        "-c",
        "fsync=off",
    ]);
    let mut program = stage.start(place, "postgres", &line)?;
    program.wait_to_say("ready to accept connections")?;
    Ok(program)
}

fn postgres_bin() -> Result<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed (package postgresql)")?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|bin| bin.join("postgres").exists());
    found.sort();
    found.pop().context("no PostgreSQL server under /usr/lib/postgresql")
}
