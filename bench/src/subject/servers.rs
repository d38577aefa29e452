//! The programs that are talked to: nginx with small files, and iperf3. They know of no mesh.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

use super::{BULK_PORT, HTTP_PORT};
use crate::stage::{Ground, Running};

/// At the start of every file: what a mesh's wire must not show.
pub(super) const MARKER: &str = "MARKER-5ae0c1d9-readable";

/// Starts both.
pub(super) fn start(ground: &Ground) -> Result<Vec<Running>> {
    let www = ground.dir().join("www");
    fs::create_dir(&www)?;
    for (name, bytes) in [("1k", 1024), ("16k", 16 * 1024)] {
        let filling = "x".repeat(bytes - MARKER.len());
        fs::write(www.join(name), format!("{MARKER}{filling}"))?;
    }
    let config = ground.dir().join("nginx.conf");
    fs::write(&config, nginx(ground))?;
    let path = config.to_string_lossy();
    let nginx = ground.start(&ground.server, "nginx", &["nginx", "-c", &path], None).context("nginx")?;
    let port = BULK_PORT.to_string();
    let argv = ["iperf3", "--server", "--port", &port, "--forceflush"];
    let mut iperf3 = ground.start(&ground.server, "iperf3", &argv, None).context("iperf3")?;
    iperf3.wait_to_say("Server listening", Duration::from_secs(10))?;
    Ok(vec![nginx, iperf3])
}

/// A worker per processor, files from memory, connections that may live as long as a run.
fn nginx(ground: &Ground) -> String {
    let dir = ground.dir().display();
    format!(
        "daemon off;\nuser root;\nworker_processes auto;\n\
         pid {dir}/nginx.pid;\nerror_log {dir}/nginx-error.log warn;\n\
         events {{ worker_connections 42000; multi_accept on; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nodelay on;\n  keepalive_timeout 1h;\n  \
         keepalive_requests 1000000000;\n  open_file_cache max=100;\n  default_type text/plain;\n  \
         client_body_temp_path {dir}/nginx-body;\n  proxy_temp_path {dir}/nginx-proxy;\n  \
         fastcgi_temp_path {dir}/nginx-fastcgi;\n  uwsgi_temp_path {dir}/nginx-uwsgi;\n  \
         scgi_temp_path {dir}/nginx-scgi;\n  \
         server {{ listen {HTTP_PORT} backlog=16384; root {dir}/www; }}\n}}\n"
    )
}
