//! The authorities that this machine believes, as its administrator keeps them.

use rustls_pki_types::CertificateDer;

/// Those that can be used; `whose` is who is not believed for want of the others, for the log.
pub(super) fn system_roots(whose: &str) -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a system root certificate cannot be read, {whose} it vouches for are not believed");
    }
    // One that cannot be used is left out, as whoever reads such a store does.
    found.certs.into_iter().filter(|root| webpki::anchor_from_trusted_cert(root).is_ok()).collect()
}
