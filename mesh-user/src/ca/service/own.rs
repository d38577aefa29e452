//! The service's own certificate: renewed at half its life and whenever trust changes, and swapped under the listener, so
//! that the next handshake has the new one. The old one stays while a renewal fails.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;

use crate::{
    ca::{
        CaError,
        plan::{Moment, Plan, Validity},
        signing::{CertificateAuthority, Trust},
    },
    identity::{SpiffeId, Svid},
    sys::clock::boot_time,
};

/// The longest sleep: the clock may be set.
const MAX_SLEEP: Duration = Duration::from_secs(60);
/// How long signing may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the service shows to those that connect.
pub(super) struct OwnCertificate {
    authority: Arc<dyn CertificateAuthority>,
    id: SpiffeId,
    dns_names: Vec<String>,
    current: ArcSwap<(Arc<CertifiedKey>, Svid)>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnCertificate").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().0))
    }
}

fn certified(svid: Svid) -> Arc<(Arc<CertifiedKey>, Svid)> {
    let key = CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key));
    Arc::new((Arc::new(key), svid))
}

impl OwnCertificate {
    /// Has the first one signed.
    pub(super) async fn issue(
        authority: Arc<dyn CertificateAuthority>,
        id: SpiffeId,
        dns_names: Vec<String>,
    ) -> Result<Self, CaError> {
        let svid = authority.own_svid(&id, &dns_names).await?;
        Ok(Self { authority, id, dns_names, current: ArcSwap::new(certified(svid)) })
    }

    /// Renews, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut trust = self.authority.trust();
        trust.mark_unchanged();
        let mut plan = Plan::after_issue(Moment::now(), self.not_after(), rand::random());
        loop {
            let wait = plan.wait(boot_time()).min(MAX_SLEEP);
            tokio::select! {
                () = tokio::time::sleep(wait) => {
                    let now = Moment::now();
                    if !plan.is_due(now.boot) && !plan.is_too_late(now, self.validity()) {
                        continue;
                    }
                }
                changed = trust.changed() => if changed.is_err() { return },
            }
            let signed = self.authority.own_svid(&self.id, &self.dns_names);
            let error = match tokio::time::timeout(TIMEOUT, signed).await {
                Ok(Ok(svid)) => {
                    plan = Plan::after_issue(Moment::now(), svid.not_after, rand::random());
                    tracing::info!(serial = %svid.serial, "the service's own certificate is renewed");
                    self.current.store(certified(svid));
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_elapsed) => "it took too long".to_owned(),
            };
            plan = plan.after_failure(Moment::now(), Some(self.validity()), rand::random());
            tracing::warn!(%error, "the service's own certificate is not renewed; the old one stays");
        }
    }

    fn validity(&self) -> Validity {
        let current = self.current.load();
        Validity { not_before: current.1.not_before, not_after: current.1.not_after }
    }

    /// Its end.
    pub(super) fn not_after(&self) -> SystemTime {
        self.current.load().1.not_after
    }

    /// When what signed it ends: the first of the intermediates, or of the root where there is none.
    pub(super) fn issuer_end(&self, trust: &Trust) -> Option<SystemTime> {
        let current = self.current.load();
        let above = current.1.chain.get(1..).unwrap_or_default();
        if above.is_empty() {
            let roots = trust.bundles.roots.get(self.id.trust_domain())?;
            let (_, leaf) = x509_parser::parse_x509_certificate(current.1.chain.first()?).ok()?;
            return roots.iter().filter_map(|root| named(root, leaf.issuer().as_raw())).max();
        }
        above.iter().filter_map(end).min()
    }
}

fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.to_datetime().into())
}

fn named(certificate: &CertificateDer<'_>, name: &[u8]) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    (parsed.subject().as_raw() == name).then(|| parsed.validity().not_after.to_datetime().into())
}
