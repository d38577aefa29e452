//! `meshctl check`: what was proven at start, and what it means to have it or not.

use super::reload::Runtime;
use crate::{admin::api::CheckRow, tls::KernelTls};

pub(super) fn rows(runtime: &Runtime) -> Vec<CheckRow> {
    let mut rows: Vec<_> = runtime
        .proofs
        .iter()
        .map(|proof| CheckRow {
            name: proof.name.to_owned(),
            proven: proof.proven,
            required: proof.required,
            meaning: proof.meaning.to_owned(),
            detail: proof.detail.clone(),
        })
        .collect();
    rows.extend(kernel_tls(&runtime.mesh.kernel_tls));
    rows
}

fn kernel_tls(kernel: &KernelTls) -> Vec<CheckRow> {
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
