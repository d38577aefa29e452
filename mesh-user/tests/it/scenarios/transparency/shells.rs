//! ssh that forwards ports either way, and rsync's own protocol.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::it::mesh::{MARKER, Mesh, probe, serve};
use crate::it::process::PATIENCE;
use crate::it::programs;

/// A local port that leads to the server's loopback, and a port of the server's that leads back to the client's.
pub(super) fn ssh_forwards_both_ways(mesh: &Mesh) -> anyhow::Result<()> {
    let ssh = programs::sshd(&mesh.server, 2222)?;
    let _far = serve(&mesh.server, 7000, &["--echo"])?;
    let _near = serve(&mesh.client, 7001, &["--echo"])?;
    let login = format!("root@{}", mesh.server.v4);
    let mut argv = vec!["ssh", "-N", "-p", "2222", "-o", "ExitOnForwardFailure=yes"];
    argv.extend(ssh.options.iter().map(String::as_str));
    argv.extend(["-L", "127.0.0.1:9000:127.0.0.1:7000", "-R", "127.0.0.1:9001:127.0.0.1:7001", &login]);
    let mut forwarding = mesh.client.launch("ssh", &argv).start()?;
    programs::listening(&mesh.server, 9001)?;
    for (place, port) in [(&mesh.client, 9000), (&mesh.server, 9001)] {
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let seen = probe(place, to, &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "by port {port}: {seen}");
    }
    ensure!(forwarding.is_running(), "{}", forwarding.stderr());
    Ok(())
}

/// A tree goes to the server's module and comes back.
pub(super) fn rsync_pushes_and_pulls(mesh: &Mesh, files: usize) -> anyhow::Result<()> {
    let dir = mesh.server.dir();
    let (given, kept, back) = (dir.join("given"), dir.join("kept"), dir.join("back"));
    for folder in [&given, &kept] {
        fs::create_dir(folder)?;
    }
    for file in 0..files {
        fs::write(given.join(file.to_string()), format!("{MARKER} {file}\n").repeat(1 + file * 7))?;
    }
    let conf = dir.join("rsyncd.conf");
    let module = kept.display();
    // Nobody answers for names here, and rsync would wait for them.
    let modules = format!(
        "use chroot = no\nreverse lookup = no\n[tree]\npath = {module}\nread only = no\nuid = root\ngid = root\n"
    );
    fs::write(&conf, modules)?;
    let config = format!("--config={}", conf.display());
    let server = mesh.server.launch("rsyncd", &["rsync", "--daemon", "--no-detach", "--port=8730", &config]);
    let _server = server.start()?;
    programs::listening(&mesh.server, 8730)?;
    let url = format!("rsync://{}:8730/tree/", mesh.server.v4);
    for (from, to) in [(slashed(&given), url.clone()), (url, slashed(&back))] {
        mesh.client
            .launch("rsync", &["rsync", "-a", "--timeout=60", &from, &to])
            .finish(PATIENCE * 4)?
            .succeeded()?;
    }
    let (given, back) = (given.to_string_lossy(), back.to_string_lossy());
    mesh.client.run(&["diff", "-r", &given, &back])?.succeeded()?;
    Ok(())
}

/// rsync copies what is in a folder when its name ends so.
fn slashed(path: &Path) -> String {
    format!("{}/", path.display())
}
