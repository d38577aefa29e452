//! Ready-made servers, configured to run from the story's folder: nginx, redis, `PostgreSQL`, sshd, iperf3.
//! Each function returns only when the server answers to itself; clients are run by the stories.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::netns::Place;
use super::process::{PATIENCE, Program, wait_until};

/// nginx answering every request on `port` (HTTP/1.1, and HTTP/2 without TLS on `port + 1`) with `text`.
pub(crate) fn nginx(place: &Place, port: u16, text: &str) -> anyhow::Result<Program> {
    let dir = folder(place, "nginx")?;
    let here = dir.display();
    let h2c = port + 1;
    fs::write(dir.join("index.html"), text)?;
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log off; keepalive_requests 10000000;\n\
           client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fcgi;\n\
           uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
           server {{ listen {port}; listen [::]:{port}; root {here}; try_files $uri /index.html =404; }}\n\
           server {{ listen {h2c} http2; listen [::]:{h2c} http2; root {here}; try_files $uri /index.html =404; }}\n\
         }}\n"
    );
    fs::write(dir.join("nginx.conf"), config)?;
    // Its worker runs as another user and reads the page.
    open_to_all(&dir)?;
    let conf = dir.join("nginx.conf");
    let log = dir.join("error.log");
    let argv = ["nginx", "-e", &log.to_string_lossy(), "-c", &conf.to_string_lossy()].map(str::to_owned);
    let program = place.launch("nginx", &argv).start()?;
    listening(place, port)?;
    Ok(program)
}

/// nginx that answers HTTP/1.1 on `port` as `locations`, a part of its configuration, says.
pub(crate) fn nginx_with(place: &Place, port: u16, locations: &str) -> anyhow::Result<Program> {
    let dir = folder(place, "nginx")?;
    let here = dir.display();
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ }}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fcgi;\n\
           uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
           server {{ listen {port}; listen [::]:{port}; {locations} }}\n\
         }}\n"
    );
    let (conf, log) = (dir.join("nginx.conf"), dir.join("error.log"));
    fs::write(&conf, config)?;
    let argv = ["nginx", "-e", &log.to_string_lossy(), "-c", &conf.to_string_lossy()].map(str::to_owned);
    let program = place.launch("nginx", &argv).start()?;
    listening(place, port)?;
    Ok(program)
}

/// redis without persistence.
pub(crate) fn redis(place: &Place, port: u16) -> anyhow::Result<Program> {
    let port_text = port.to_string();
    let dir = folder(place, "redis")?;
    let argv = [
        "redis-server",
        "--port",
        &port_text,
        "--bind",
        "0.0.0.0",
        "::",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        &dir.to_string_lossy(),
    ]
    .map(str::to_owned);
    let mut program = place.launch("redis", &argv).start()?;
    program.wait_to_say("Ready to accept connections", PATIENCE)?;
    Ok(program)
}

/// `PostgreSQL` as user `postgres`, trusting whoever reaches it.
pub(crate) fn postgres(place: &Place, port: u16) -> anyhow::Result<Program> {
    let dir = folder(place, "postgres")?;
    let passwd =
        nix::unistd::User::from_name("postgres")?.context("no user postgres (package postgresql)")?;
    nix::unistd::chown(&dir, Some(passwd.uid), Some(passwd.gid))?;
    open_to_all(place.dir())?;
    let (data, bin) = (dir.join("data"), postgres_bin()?);
    let (initdb, server) = (bin.join("initdb"), bin.join("postgres"));
    let (data, dir) = (data.to_string_lossy().into_owned(), dir.to_string_lossy().into_owned());
    place
        .launch(
            "initdb",
            &[&initdb.to_string_lossy(), "-D", data.as_str(), "-A", "trust", "-N", "--no-locale"],
        )
        .with_user("postgres")
        .finish(PATIENCE * 4)?
        .succeeded()?;
    fs::write(
        Path::new(&data).join("pg_hba.conf"),
        "local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n",
    )?;
    let (port_text, socket_dir) = (port.to_string(), format!("unix_socket_directories={dir}"));
    let argv = [
        &server.to_string_lossy(),
        "-D",
        data.as_str(),
        "-p",
        &port_text,
        "-c",
        "listen_addresses=*",
        "-c",
        &socket_dir,
        "-c",
        "fsync=off",
        "-c",
        "shared_buffers=16MB",
    ]
    .map(str::to_owned);
    let mut program = place.launch("postgres", &argv).with_user("postgres").start()?;
    program.wait_to_say("ready to accept connections", PATIENCE * 2)?;
    Ok(program)
}

/// Where Debian keeps `PostgreSQL`'s own programs.
fn postgres_bin() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL's server is not installed (package postgresql)")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    versions.sort();
    versions.pop().context("no PostgreSQL server under /usr/lib/postgresql")
}

/// What an ssh client needs to log in.
pub(crate) struct Ssh {
    _server: Program,
    /// Options for `ssh` and `scp`: key, and no questions.
    pub(crate) options: Vec<String>,
}

/// sshd with a fresh host key and one allowed user key.
pub(crate) fn sshd(place: &Place, port: u16) -> anyhow::Result<Ssh> {
    let dir = folder(place, "sshd")?;
    let here = dir.display();
    for key in ["host", "user"] {
        let file = dir.join(key);
        place
            .run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &file.to_string_lossy()])?
            .succeeded()?;
    }
    fs::copy(dir.join("user.pub"), dir.join("authorized"))?;
    fs::create_dir_all("/run/sshd")?;
    let config = format!(
        "Port {port}\nHostKey {here}/host\nAuthorizedKeysFile {here}/authorized\nPidFile {here}/pid\nUsePAM no\n\
         StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nUseDNS no\nSubsystem sftp internal-sftp\n"
    );
    let conf = dir.join("sshd_config");
    fs::write(&conf, config)?;
    let argv = ["/usr/sbin/sshd", "-D", "-e", "-f", &conf.to_string_lossy()].map(str::to_owned);
    let mut server = place.launch("sshd", &argv).start()?;
    server.wait_to_say("Server listening", PATIENCE)?;
    let options = format!(
        "-i {here}/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o ConnectTimeout=20"
    );
    Ok(Ssh { _server: server, options: options.split_whitespace().map(str::to_owned).collect() })
}

/// An iperf3 server.
pub(crate) fn iperf3(place: &Place, port: u16) -> anyhow::Result<Program> {
    let argv = ["iperf3", "-s", "-p", &port.to_string(), "--forceflush"].map(str::to_owned);
    let mut program = place.launch("iperf3", &argv).start()?;
    program.wait_to_say("Server listening", PATIENCE)?;
    Ok(program)
}

/// Waits until something listens on `port` in this place's namespace.
pub(crate) fn listening(place: &Place, port: u16) -> anyhow::Result<()> {
    let filter = format!("sport = :{port}");
    wait_until(PATIENCE, &format!("a listener on port {port} of {}", place.name), || {
        Ok(place.run(&["ss", "-Hltn", &filter])?.succeeded()?.contains("LISTEN"))
    })
}

pub(crate) fn folder(place: &Place, name: &str) -> anyhow::Result<PathBuf> {
    let dir = place.dir().join(format!("{}-{name}", place.name));
    fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

pub(crate) fn open_to_all(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    ensure!(dir.starts_with("/tmp"), "only the tests' own folders are opened to all");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
