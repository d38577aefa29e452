//! `meshctl check`: what was proven at start, and what it means to have it or not.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt};

use super::reload::Runtime;
use crate::{admin::api::CheckRow, capture::canary, config::Selector, tls::KernelTls};

pub(super) fn rows(runtime: &Runtime) -> Vec<CheckRow> {
    let mut rows: Vec<_> = runtime.proofs.iter().map(proof).collect();
    rows.push(below_the_root(runtime));
    rows.extend(kernel_tls(&runtime.mesh.kernel_tls));
    rows
}

pub(super) fn proof(proof: &canary::Capability) -> CheckRow {
    CheckRow {
        name: proof.name.to_owned(),
        proven: proof.proven,
        required: proof.required,
        meaning: proof.meaning.to_owned(),
        detail: proof.detail.clone(),
    }
}

/// Whether the processes of workloads with a namespace are where the hooks see them.
pub(super) fn below_the_root(runtime: &Runtime) -> CheckRow {
    let view = runtime.mesh.view();
    let netns = |w: &crate::world::Workload| match &w.local.as_ref()?.selector {
        Selector::Netns(path) => fs::metadata(path).ok().map(|netns| netns.ino()),
        _ => None,
    };
    let inodes: BTreeSet<u64> = view.world().local_workloads().filter_map(netns).collect();
    let cgroup = runtime.capture.cgroup();
    let outside = canary::sockets_outside(&cgroup, &inodes);
    CheckRow {
        name: "workloads below the capture root".to_owned(),
        proven: outside.is_empty(),
        required: false,
        meaning: "processes elsewhere in the cgroup tree connect past meshd; attach at the root".to_owned(),
        detail: match outside.first() {
            None => format!("no process of a workload is outside {}", cgroup.display()),
            Some((_, pid, path)) => {
                format!("{} outside {}, such as {pid} in {}", outside.len(), cgroup.display(), path.display())
            }
        },
    }
}

pub(super) fn kernel_tls(kernel: &KernelTls) -> Vec<CheckRow> {
    let row = |name: &str, result: &Result<(), String>, meaning: &str| CheckRow {
        name: name.to_owned(),
        proven: result.is_ok(),
        required: false,
        meaning: meaning.to_owned(),
        detail: result.clone().err().unwrap_or_else(|| "done on a loopback pair".to_owned()),
    };
    let ciphers = if kernel.ciphers.is_empty() { Err("no cipher accepted".to_owned()) } else { Ok(()) };
    vec![
        row("kernel TLS", &kernel.ulp, "relay `ktls`; else rustls encrypts in user space"),
        CheckRow {
            detail: format!("{:?}", kernel.ciphers),
            ..row("kernel TLS ciphers", &ciphers, "connections with another cipher stay in user space")
        },
        row("kernel TLS rekey", &kernel.rekey, "else connections end before the AEAD limit of their key"),
        row("kernel TLS splice", &kernel.splice, "relay `ktls-splice`; else the copy loop"),
        row("kernel TLS no padding", &kernel.expect_no_pad, "saves 2 to 6 % of the cost of receiving"),
    ]
}
