//! Raw system calls: network namespaces, sockets, splice, kernel TLS, bpf. All `unsafe` lives here.

pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod ktls;
pub mod memory;
pub mod mount;
mod netlink;
pub mod netns;
pub mod peer;
pub mod proc_dir;
pub mod process;
pub mod rtnetlink;
pub mod sock_diag;
pub mod socket;
pub mod splice;

/// Of a control message and a buffer of them, in bytes. The kernel reads 64 bits; musl has the other half as padding.
#[cfg(target_env = "musl")]
type ControlLength = libc::socklen_t;
#[cfg(not(target_env = "musl"))]
type ControlLength = libc::size_t;
