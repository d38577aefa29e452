//! Why capture could not do something, and what to do about it.

use std::{io, path::PathBuf};

/// An error of the capture layer.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Another daemon holds the lock.
    #[error("another meshd is running on {path}: stop it, or give this one another runtimeDir", path = .0.display())]
    AlreadyRunning(PathBuf),
    /// Something in the runtime directory could not be done.
    #[error("could not {action} {path}: {source}", path = .path.display())]
    RuntimeDir {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The configured cgroup cannot be used.
    #[error("cannot attach to cgroup {path}: {source}; capture.cgroup must be a cgroup v2 directory, best the root of its mount", path = .path.display())]
    Cgroup {
        /// The configured path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error(
        "the kernel refused to load the eBPF object {object}: {source}; meshd needs Linux 6.1, BTF and CAP_BPF"
    )]
    Load {
        /// Which object.
        object: &'static str,
        /// What aya said.
        source: Box<aya::EbpfError>,
    },
    /// A program was refused, with the verifier's last words.
    #[error("the kernel refused eBPF program {program}: {source}")]
    Program {
        /// Which program.
        program: &'static str,
        /// What aya said.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a map or program, or one has another shape.
    #[error("the eBPF object has no usable {0}: build it again with `cargo xtask build`")]
    Object(&'static str),
    /// A hook could not be attached, replaced or detached.
    #[error("could not {action} hook {hook}: {source}")]
    Hook {
        /// What was tried.
        action: &'static str,
        /// Which hook.
        hook: String,
        /// Why not.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("could not {action} eBPF map {map}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Which map.
        map: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The plan wants more than the declared capacity.
    #[error(
        "the plan has {count} {what}, more than the limit of {limit}: raise {setting} or enrol less; the plan before stays"
    )]
    OverCapacity {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
        /// The setting to raise.
        setting: &'static str,
    },
    /// Two workloads that cannot be told apart.
    #[error("workloads {first} and {second} have the same {what}: give each its own; the plan before stays")]
    Duplicate {
        /// What they share.
        what: &'static str,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// A workload's selector does not lead anywhere.
    #[error("workload {workload}: cannot use its {kind}: {source}; it is tried again on every change")]
    Selector {
        /// The workload.
        workload: String,
        /// What kind of selector.
        kind: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A listener could not be had in a namespace.
    #[error(
        "could not listen on {address} in the namespace of workload {workload}: {source}; free the port or change capture's ports"
    )]
    Listen {
        /// The workload.
        workload: String,
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The canary could not set up what it needs.
    #[error(
        "the canary could not {action}: {source}; meshd needs CAP_SYS_ADMIN, CAP_NET_ADMIN and the veth module"
    )]
    Canary {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// This process's own namespace is unknown.
    #[error("cannot read this process's own network namespace: {0}")]
    OwnNamespace(io::Error),
}
