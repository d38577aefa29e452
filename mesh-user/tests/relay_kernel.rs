//! The same relay tests for every relay kind: rustls everywhere, kernel TLS where this kernel proves it.
//! Needs no root. What the kernel cannot do is listed as ignored with the reason; in a VM (`cargo xtask vm`)
//! nothing is. `MESHD_TEST_SCALE` divides sizes, for emulated machines.

mod relay_cases;
#[path = "../src/tls/test_pki.rs"]
#[expect(dead_code, reason = "the library's own tests use the rest")]
mod test_pki;

use std::{future::Future, pin::Pin, time::Duration};

use libtest_mimic::{Arguments, Completion, Trial};
use mesh_user as meshd_library;
use mesh_user::{proxy::relay::RelayKind, tls::KernelTls};
use relay_cases::{Kinds, cases, plain_cases};

/// A test that hangs is a failure, not a stuck job.
const PATIENCE: Duration = Duration::from_secs(240);

type Case = fn(Kinds) -> Pin<Box<dyn Future<Output = ()>>>;

fn main() {
    let arguments = Arguments::from_args();
    let kernel = KernelTls::probe();
    println!("{kernel}");
    if std::env::var_os("MESHD_TEST_REQUIRE_KTLS").is_some() && kernel.ulp.is_err() {
        eprintln!("MESHD_TEST_REQUIRE_KTLS is set and this kernel's TLS does not work");
        std::process::exit(101);
    }
    let pairs = [
        (RelayKind::Plain, RelayKind::Plain),
        (RelayKind::Userspace, RelayKind::Userspace),
        (RelayKind::Ktls, RelayKind::Ktls),
        (RelayKind::KtlsSplice, RelayKind::KtlsSplice),
        (RelayKind::Userspace, RelayKind::Ktls),
        (RelayKind::KtlsSplice, RelayKind::Userspace),
    ];
    let mut trials = Vec::new();
    for (client, server) in pairs {
        let cases = if client == RelayKind::Plain { plain_cases() } else { cases() };
        for (name, case) in cases {
            let missing = [client, server].iter().find_map(|kind| missing(*kind, &kernel));
            let kinds = Kinds { client, server, kernel: kernel.clone() };
            let pair = format!("{}/{}", client.as_str(), server.as_str());
            trials.push(Trial::ignorable_test(format!("{pair}::{name}"), move || match missing {
                Some(reason) => Ok(Completion::ignored_with(reason)),
                None => run(case, kinds).map(|()| Completion::Completed),
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn missing(kind: RelayKind, kernel: &KernelTls) -> Option<String> {
    let needed = match kind {
        RelayKind::Plain | RelayKind::Userspace => return None,
        RelayKind::Ktls => &kernel.ulp,
        RelayKind::KtlsSplice => &kernel.splice,
    };
    needed.clone().err()
}

fn run(case: Case, kinds: Kinds) -> Result<(), libtest_mimic::Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, case(kinds)).await })
        .map_err(|_| format!("not finished within {PATIENCE:?}").into())
}
