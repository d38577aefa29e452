//! The cast: pods and the programs in them, none of which knows of a mesh.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

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
        let db = stage.place("db", 22)?;
        // The longest of all: the others enter meanwhile.
        let database = Database::create(stage, &db)?;
        let web = stage.place("web", 21)?;
        Ok(Self {
            frontend: stage.place("frontend", 11)?,
            reports: stage.place("reports", 12)?,
            outsider: stage.place("outsider", 31)?,
            _servers: [nginx(stage, &web)?, redis(stage, &db)?, database.serve(stage, &db)?],
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

const AS_POSTGRES: [&str; 7] =
    ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"];

/// A `PostgreSQL` that is being made.
struct Database {
    initdb: Running,
    bin: PathBuf,
    dir: String,
}

impl Database {
    fn create(stage: &Stage, place: &Place) -> Result<Self> {
        let bin = postgres_bin()?;
        let dir = stage.dir().join("postgres").to_string_lossy().into_owned();
        fs::set_permissions(stage.dir(), fs::Permissions::from_mode(0o755))?;
        stage.must_run(place, &["install", "-d", "-o", "postgres", "-g", "postgres", &dir])?;
        let (program, data) = (bin.join("initdb").display().to_string(), format!("{dir}/data"));
        let mut line = AS_POSTGRES.to_vec();
        line.extend([&program, "-D", &data, "-A", "trust", "-N", "--no-locale"]);
        line.extend(["--no-instructions", "--wal-segsize=1"]);
        let initdb = stage.start(place, "initdb", &line)?;
        Ok(Self { initdb, bin, dir })
    }

    fn serve(mut self, stage: &Stage, place: &Place) -> Result<Running> {
        let status = self.initdb.child.wait()?;
        ensure!(status.success(), "initdb failed: {}", self.initdb.said());
        let program = self.bin.join("postgres").display().to_string();
        let data = format!("{}/data", self.dir);
        fs::write(format!("{data}/pg_hba.conf"), "local all all trust\nhost all all 0.0.0.0/0 trust\n")?;
        let sockets = format!("unix_socket_directories={}", self.dir);
        let mut line = AS_POSTGRES.to_vec();
        line.extend([&program, "-D", &data, "-c", "listen_addresses=*"]);
        line.extend(["-c", &sockets, "-c", "fsync=off"]);
        let mut server = stage.start(place, "postgres", &line)?;
        server.wait_to_say("ready to accept connections")?;
        Ok(server)
    }
}

fn postgres_bin() -> Result<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed (package postgresql)")?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|bin| bin.join("postgres").exists());
    found.sort();
    found.pop().context("no PostgreSQL server under /usr/lib/postgresql")
}
