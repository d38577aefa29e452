//! What is counted of external authorizers. Their names come from the node's file, so that nothing a client sends makes
//! a label.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorizerResult {
    /// The authorizer allowed it.
    Allowed,
    /// The authorizer denied it.
    Denied,
    /// It could not be asked, so the request was denied.
    Failed,
    /// It could not be asked, and the request went on: `failOpen`.
    FailedOpen,
    /// Its answer could not be followed, so the request was denied.
    Invalid,
    /// It is in force for the workload, and no rule asked for it.
    Disabled,
}

impl AuthorizerResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "error",
            Self::FailedOpen => "failed_open",
            Self::Invalid => "invalid",
            Self::Disabled => "disabled",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    provider: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Debug)]
pub(super) struct AuthorizerMetrics {
    checks: Family<ResultLabels, Counter>,
    seconds: Family<ProviderLabels, Histogram, fn() -> Histogram>,
}

fn histogram() -> Histogram {
    // 250 us to 8 s: one on the same node answers in less than 1 ms, a timeout is usually below some seconds.
    Histogram::new((0..16).map(|n| 0.000_25 * f64::from(1_u32 << n)))
}

impl AuthorizerMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let checks = Family::default();
        let what = "Requests and connections that an external authorizer is in force for, by what came of it";
        registry.register("meshd_ext_authz_checks", what, checks.clone());
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let what = "Time that asking an external authorizer took, connecting included";
        registry.register("meshd_ext_authz_seconds", what, seconds.clone());
        Self { checks, seconds }
    }

    pub(super) fn count(&self, provider: &str, result: AuthorizerResult) {
        let labels = ResultLabels { provider: provider.to_owned(), result: result.as_str() };
        self.checks.get_or_create(&labels).inc();
    }

    pub(super) fn asked(&self, provider: &str, result: AuthorizerResult, time: Duration) {
        self.count(provider, result);
        let labels = ProviderLabels { provider: provider.to_owned() };
        self.seconds.get_or_create(&labels).observe(time.as_secs_f64());
    }
}
