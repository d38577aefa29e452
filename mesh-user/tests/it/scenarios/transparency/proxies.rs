//! haproxy before nginx: bytes spliced between two sockets, both carried by meshd, and a first line that names the
//! client.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::it::mesh::MARKER;
use crate::it::netns::Place;
use crate::it::process::Program;
use crate::it::programs;

/// Where Debian's and Ubuntu's package puts it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A file of some megabytes, in a folder of its own.
pub(super) fn page(place: &Place) -> anyhow::Result<PathBuf> {
    let dir = programs::folder(place, "pages")?;
    let page = dir.join("page");
    fs::write(&page, format!("{MARKER} of many\n").repeat(100_000))?;
    programs::open_to_all(&dir)?;
    Ok(page)
}

/// nginx that takes its client's address from the PROXY protocol: `/who` tells it, `/page` sends the file.
pub(super) fn nginx_behind_proxy_protocol(place: &Place, port: u16, page: &Path) -> anyhow::Result<Program> {
    let dir = programs::folder(place, "proxied")?;
    let (here, root) = (dir.display(), page.parent().unwrap_or(page).display());
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ }}\n\
         http {{\n\
           access_log off; sendfile on;\n\
           client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fcgi;\n\
           uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
           server {{ listen {port} proxy_protocol; root {root};\n\
             location = /who {{ return 200 '$proxy_protocol_addr {MARKER}'; }} }}\n\
         }}\n"
    );
    let (conf, log) = (dir.join("nginx.conf"), dir.join("error.log"));
    fs::write(&conf, config)?;
    programs::open_to_all(&dir)?;
    let program = place
        .launch("nginx", &["nginx", "-e", &log.to_string_lossy(), "-c", &conf.to_string_lossy()])
        .start()?;
    programs::listening(place, port)?;
    Ok(program)
}

/// nginx's stream module: joins connections without reading them and announces each with the PROXY protocol.
pub(super) fn nginx_stream(place: &Place, port: u16, to: SocketAddr) -> anyhow::Result<Program> {
    let dir = programs::folder(place, "stream")?;
    let here = dir.display();
    let config = format!(
        "load_module {STREAM_MODULE}; daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ }}\n\
         stream {{ server {{ listen {port}; proxy_pass {to}; proxy_protocol on; }} }}\n"
    );
    let (conf, log) = (dir.join("nginx.conf"), dir.join("error.log"));
    fs::write(&conf, config)?;
    programs::open_to_all(&dir)?;
    let program = place
        .launch("stream", &["nginx", "-e", &log.to_string_lossy(), "-c", &conf.to_string_lossy()])
        .start()?;
    programs::listening(place, port)?;
    Ok(program)
}

/// haproxy that joins connections by splice and announces each with the PROXY protocol.
pub(super) fn haproxy(place: &Place, port: u16, to: SocketAddr) -> anyhow::Result<Program> {
    let dir = programs::folder(place, "haproxy")?;
    let conf = dir.join("haproxy.cfg");
    let config = format!(
        "global\n  maxconn 200\n\
         defaults\n  mode tcp\n  option splice-request\n  option splice-response\n\
           timeout connect 30s\n  timeout client 60s\n  timeout server 60s\n\
         listen front\n  bind 0.0.0.0:{port}\n  server back {to} send-proxy\n"
    );
    fs::write(&conf, config)?;
    let program = place.launch("haproxy", &["haproxy", "-db", "-f", &conf.to_string_lossy()]).start()?;
    programs::listening(place, port)?;
    Ok(program)
}
