//! Keys of token issuers, kept fresh: one task per place fetches, and fetches again before keys grow old, when a token
//! names a key that is not known, and after failures. Readers never lock, wait or fetch; an outage leaves the keys
//! that were had last. Never decides about a token.

mod fetch;
mod schedule;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use fetch::FetchError;
pub use schedule::Schedule;

use crate::{
    ca::{self, CaError},
    config::JwksConfig,
    jwt::{JwksSource, KeyLocation, KeySet, Keys, VerifiedSignatures},
};
use fetch::Fetcher;

/// What the node's administrator decides about fetching keys.
#[derive(Debug, Clone, Default)]
pub struct JwksSettings {
    /// Addresses that may be connected to although they are loopback, link-local, the node's own, or a metadata service.
    pub allow_addresses: Vec<IpNet>,
    /// Authorities that are believed beside the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// When to fetch.
    pub schedule: Schedule,
}

impl JwksSettings {
    /// Reads the bundles that the node's file names.
    ///
    /// # Errors
    /// When one cannot be read or holds no certificate.
    pub fn load(config: &JwksConfig) -> Result<Self, CaError> {
        let bundles = config.extra_roots.iter().map(|file| ca::read_bundle(file));
        Ok(Self {
            allow_addresses: config.allow_addresses.clone(),
            extra_roots: bundles.collect::<Result<Vec<_>, _>>()?.concat(),
            schedule: Schedule::default(),
        })
    }
}

/// How one place of keys is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JwksStatus {
    /// What is asked: a key set, or an issuer's discovery document.
    pub url: String,
    /// Keys in use.
    pub keys: usize,
    /// Keys of the set that are not used: unknown kinds, not for signatures, too weak.
    pub skipped: usize,
    /// Unix time of the fetch that the keys are from; none: never.
    pub fetched_at_seconds: Option<u64>,
    /// How old the keys are now.
    pub age_seconds: Option<u64>,
    /// Until the next fetch, unless a token asks for one before; none: one is under way.
    pub next_in_seconds: Option<u64>,
    /// Fetches so far.
    pub attempts: u64,
    /// Fetches that failed since the last that did not.
    pub failures: u32,
    /// Why the last fetch failed; none: it did not.
    pub last_error: Option<String>,
}

/// Key sets by place.
pub struct JwksStore {
    fetcher: Arc<Fetcher>,
    schedule: Schedule,
    places: ArcSwap<HashMap<KeyLocation, Arc<Place>>>,
    /// Counts fetches that ended, of all places.
    attempts: watch::Sender<u64>,
    verified: VerifiedSignatures,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl fmt::Debug for JwksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwksStore").field("places", &self.places.load().len()).finish_non_exhaustive()
    }
}

/// One place and what was fetched from it.
struct Place {
    source: JwksSource,
    keys: ArcSwapOption<KeySet>,
    /// Somebody asked for keys that are not there.
    wanted: Notify,
    history: Mutex<History>,
    stop: CancellationToken,
}

#[derive(Debug, Clone, Default)]
struct History {
    fetched: Option<(SystemTime, Instant)>,
    /// None while it is asked.
    next: Option<Instant>,
    attempts: u64,
    failures: u32,
    last_error: Option<String>,
}

impl JwksStore {
    /// A store without places; the system's root certificates are read once keys are fetched over https.
    ///
    /// # Errors
    /// When one of `extra_roots` is no certificate.
    pub fn open(settings: JwksSettings) -> Result<Self, rustls::Error> {
        let fetcher = Fetcher::new(settings.allow_addresses, settings.extra_roots)?;
        let stop = CancellationToken::new();
        Ok(Self {
            fetcher: Arc::new(fetcher),
            schedule: settings.schedule,
            places: ArcSwap::default(),
            attempts: watch::Sender::new(0),
            verified: VerifiedSignatures::default(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Fetches from these places from now on and from no others; keys of places that stay are kept. To be called on a
    /// Tokio runtime, by one task at a time, whenever policies change.
    pub fn set_sources(&self, sources: &[JwksSource]) {
        let before = self.places.load_full();
        let mut places = HashMap::with_capacity(sources.len());
        for source in sources {
            let known = before.get(&source.location);
            let place = match known {
                Some(place) if place.source == *source => Arc::clone(place),
                _ => self.start(source, known.map(Arc::as_ref)),
            };
            places.insert(source.location.clone(), place);
        }
        for (location, place) in before.iter() {
            if places.get(location).is_none_or(|now| !Arc::ptr_eq(now, place)) {
                place.stop.cancel();
            }
        }
        self.places.store(Arc::new(places));
    }

    /// `before` is the same place with another timeout.
    fn start(&self, source: &JwksSource, before: Option<&Place>) -> Arc<Place> {
        let place = Arc::new(Place {
            source: source.clone(),
            keys: ArcSwapOption::new(before.and_then(|place| place.keys.load_full())),
            wanted: Notify::new(),
            history: Mutex::new(before.map(Place::history).unwrap_or_default()),
            stop: self.stop.child_token(),
        });
        let (fetcher, schedule, attempts) = (Arc::clone(&self.fetcher), self.schedule, self.attempts.clone());
        tokio::spawn(keep_fresh(Arc::clone(&place), fetcher, schedule, attempts));
        place
    }

    /// Until each place has been asked once, well or badly: requests that come before it find no keys.
    pub async fn tried(&self) {
        let mut attempts = self.attempts.subscribe();
        while self.places.load().values().any(|place| place.history().attempts == 0) {
            if attempts.changed().await.is_err() {
                return;
            }
        }
    }

    /// How each place is doing, by URL.
    pub fn status(&self) -> Vec<JwksStatus> {
        let mut all: Vec<_> = self.places.load().values().map(|place| place.status()).collect();
        all.sort_by(|a, b| a.url.cmp(&b.url));
        all
    }
}

impl Keys for JwksStore {
    fn keys(&self, location: &KeyLocation) -> Option<Arc<KeySet>> {
        self.places.load().get(location)?.keys.load_full()
    }

    fn unknown_key(&self, location: &KeyLocation) {
        if let Some(place) = self.places.load().get(location) {
            place.wanted.notify_one();
        }
    }

    fn verified(&self) -> Option<&VerifiedSignatures> {
        Some(&self.verified)
    }
}

/// The only one that fetches for its place, so no two fetches for it are ever under way.
async fn keep_fresh(
    place: Arc<Place>,
    fetcher: Arc<Fetcher>,
    schedule: Schedule,
    attempts: watch::Sender<u64>,
) {
    loop {
        let started = Instant::now();
        let outcome = tokio::select! {
            () = place.stop.cancelled() => return,
            outcome = fetcher.fetch(&place.source) => outcome,
        };
        let failures = place.record(outcome, &schedule);
        let next = Instant::now() + schedule.delay(failures, rand::random());
        place.plan(Some(next));
        attempts.send_modify(|count| *count += 1);
        let hinted = async {
            place.wanted.notified().await;
            sleep_until(started + schedule.between_hints).await;
        };
        tokio::select! {
            () = place.stop.cancelled() => return,
            () = sleep_until(next) => {}
            () = hinted => {}
        }
        place.plan(None);
    }
}

impl Place {
    fn history(&self) -> History {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn plan(&self, next: Option<Instant>) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).next = next;
    }

    /// Returns how often it failed in a row.
    fn record(&self, outcome: Result<KeySet, FetchError>, schedule: &Schedule) -> u32 {
        let url = self.source.location.url();
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.attempts += 1;
        match outcome {
            Ok(keys) => {
                if self.keys.load().as_deref() != Some(&keys) {
                    tracing::info!(%url, keys = keys.len(), skipped = keys.skipped(), "keys of a token issuer changed");
                    self.keys.store(Some(Arc::new(keys)));
                }
                history.fetched = Some((SystemTime::now(), Instant::now()));
                history.failures = 0;
                history.last_error = None;
            }
            Err(error) => {
                let error = error.to_string();
                if history.last_error.as_ref() != Some(&error) {
                    tracing::warn!(%url, %error, "keys of a token issuer cannot be fetched, those known stay in use");
                }
                history.failures = history.failures.saturating_add(1);
                history.last_error = Some(error);
                if history.fetched.is_some_and(|(_, at)| at.elapsed() >= schedule.keep)
                    && self.keys.swap(None).is_some()
                {
                    tracing::error!(%url, "keys of a token issuer are too old to be believed, its tokens are refused");
                }
            }
        }
        history.failures
    }

    fn status(&self) -> JwksStatus {
        let history = self.history();
        let keys = self.keys.load();
        let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        JwksStatus {
            url: self.source.location.url().to_owned(),
            keys: keys.as_ref().map_or(0, |keys| keys.len()),
            skipped: keys.as_ref().map_or(0, |keys| keys.skipped()),
            fetched_at_seconds: history.fetched.map(|(at, _)| unix(at)),
            age_seconds: history.fetched.map(|(_, at)| at.elapsed().as_secs()),
            next_in_seconds: history.next.map(|at| at.saturating_duration_since(Instant::now()).as_secs()),
            attempts: history.attempts,
            failures: history.failures,
            last_error: history.last_error,
        }
    }
}
