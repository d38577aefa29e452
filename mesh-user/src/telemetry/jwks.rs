//! Metrics of the places that keys of token issuers are fetched from. A place's URL comes from policy documents, never
//! from a request, and their number is bounded.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

/// One place of keys, as it is now.
#[derive(Debug, Clone)]
pub struct KeyPlace<'a> {
    /// What is asked.
    pub url: &'a str,
    /// Keys in use.
    pub keys: usize,
    /// Fetches that failed since the last that did not.
    pub failures: u32,
    /// Unix time of the fetch that the keys are from; none: never.
    pub fetched_at_seconds: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UrlLabels {
    url: String,
}

#[derive(Debug)]
pub(super) struct KeyPlaces {
    keys: Family<UrlLabels, Gauge>,
    failures: Family<UrlLabels, Gauge>,
    fetched: Family<UrlLabels, Gauge>,
}

impl KeyPlaces {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let mut family = |name: &str, help: &str| {
            let family = Family::<UrlLabels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        Self {
            keys: family("meshd_jwks_keys", "Keys in use of each place that they are fetched from"),
            failures: family("meshd_jwks_failures", "Fetches that failed since the last that did not"),
            fetched: family("meshd_jwks_last_fetch_timestamp_seconds", "When keys were last had, Unix time"),
        }
    }

    pub(super) fn set<'a>(&self, places: impl IntoIterator<Item = KeyPlace<'a>>) {
        for family in [&self.keys, &self.failures, &self.fetched] {
            family.clear();
        }
        for place in places {
            let labels = UrlLabels { url: place.url.to_owned() };
            self.keys.get_or_create(&labels).set(i64::try_from(place.keys).unwrap_or(i64::MAX));
            self.failures.get_or_create(&labels).set(place.failures.into());
            if let Some(at) = place.fetched_at_seconds {
                self.fetched.get_or_create(&labels).set(i64::try_from(at).unwrap_or(i64::MAX));
            }
        }
    }
}
