//! Two namespaces without names, joined by a veth pair, and the throwaway cgroup. All of it goes when dropped.

use std::{
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::super::CaptureError;
use crate::sys::{
    netns::NetNs,
    rtnetlink::{LOOPBACK_INDEX, Rtnetlink},
};

const LINK_NAME: &str = "canary";
/// Above those of the devices that a new namespace may come with.
const LINK_INDEX: u32 = 100;
/// Addresses for documentation (RFC 5737, RFC 3849): no node has them.
pub(super) const CLIENT: [IpAddr; 2] = addresses(1);
pub(super) const SERVER: [IpAddr; 2] = addresses(2);

const fn addresses(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host as u16)),
    ]
}

pub(super) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    move |source| CaptureError::Canary { action, source }
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) client: NetNs,
    pub(super) server: NetNs,
}

impl Stage {
    pub(super) fn build() -> Result<Self, CaptureError> {
        let create = || NetNs::create().map_err(failed("make a network namespace"));
        let stage = Self { client: create()?, server: create()? };
        stage.join().map_err(failed("join two network namespaces by a veth pair"))?;
        Ok(stage)
    }

    fn join(&self) -> io::Result<()> {
        self.client.run_in(|| Rtnetlink::open()?.add_veth(LINK_NAME, LINK_INDEX, self.server.as_fd()))??;
        for netns in [&self.client, &self.server] {
            netns.run_in(|| {
                let links = Rtnetlink::open()?;
                links.set_up(LOOPBACK_INDEX)?;
                links.set_up(LINK_INDEX)
            })??;
        }
        for (netns, addresses) in [(&self.client, CLIENT), (&self.server, SERVER)] {
            netns.run_in(|| {
                let links = Rtnetlink::open()?;
                links.add_address(LINK_INDEX, addresses[0], 24)?;
                match links.add_address(LINK_INDEX, addresses[1], 64) {
                    // A kernel without IPv6 has nothing to capture there.
                    Err(error) if lacks_ipv6(&error) => Ok(()),
                    result => result,
                }
            })??;
        }
        Ok(())
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES))
}

/// Where a canary notes the cgroup it makes, in its runtime directory: whoever cleans up after it finds it.
const NOTE: &str = "cgroup";

/// A cgroup for the child, below the one where the hooks are.
#[derive(Debug)]
pub(super) struct ChildCgroup {
    path: PathBuf,
    note: PathBuf,
}

impl ChildCgroup {
    /// Makes it, noted in `runtime_dir` before it is there.
    pub(super) fn create(parent: &Path, runtime_dir: &Path) -> io::Result<Self> {
        let path = parent.join(format!("meshd-canary-{}", std::process::id()));
        let note = runtime_dir.join(NOTE);
        fs::write(&note, path.as_os_str().as_encoded_bytes())?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                fs::remove_file(&note)?;
                Err(error)
            }
            _ => Ok(Self { path, note }),
        }
    }

    /// Removes the one that a killed canary left, with the child in it, which may not have noticed yet.
    pub(super) fn remove_left(runtime_dir: &Path) {
        let note = runtime_dir.join(NOTE);
        let Ok(path) = fs::read(&note) else { return };
        let path = PathBuf::from(OsString::from_vec(path));
        if path.is_dir()
            && let Err(error) = fs::write(path.join("cgroup.kill"), "1")
        {
            tracing::warn!(cgroup = %path.display(), %error, "the child of a dead canary cannot be ended");
        }
        drop(Self { path, note });
    }

    pub(super) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for ChildCgroup {
    fn drop(&mut self) {
        // A process that has just ended may still count for a moment.
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Err(error) = fs::remove_dir(&self.path) {
            if error.kind() == io::ErrorKind::NotFound {
                break;
            }
            if Instant::now() > deadline {
                let cgroup = self.path.display();
                tracing::warn!(%cgroup, %error, "the canary's cgroup could not be removed");
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // Absent where it could not be written.
        let _ = fs::remove_file(&self.note);
    }
}
