//! One leader among replicas, by a Lease (`coordination.k8s.io/v1`). Clocks of machines are not compared: a Lease that has not
//! changed for as long as it says, by this machine's own clock, is free. A leader that cannot renew counts itself out well
//! before that. A write that it has begun may still arrive: what must have one writer needs preconditions of its own.
//!
//! Source: `k8s.io/client-go` `tools/leaderelection/leaderelection.go`.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{sleep, timeout};

use super::Access;
use crate::sys::clock::boot_time;

/// Until the API server has answered a call.
const TIMEOUT: Duration = Duration::from_secs(8);
const SILENT: &str = "the API server does not answer";
const GROUP: &str = "coordination.k8s.io";

/// What the Lease `name` asks of the API server, in its namespace. Creation cannot be bound to a name: Kubernetes knows none yet.
pub const fn access(name: &'static str) -> [Access; 2] {
    [Access::new(GROUP, "leases", &["create"]), Access::new(GROUP, "leases", &["get", "update"]).named(name)]
}

/// Which Lease, and who asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Where it lies.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This replica's name in it.
    pub identity: String,
    /// How long a leader is believed in that says nothing more.
    pub duration: Duration,
    /// How often a replica that stands by looks whether it is free, give or take three tenths.
    pub look: Duration,
}

impl LeaseSettings {
    /// How often the leader says that it is there.
    fn period(&self) -> Duration {
        self.duration / 5
    }

    /// A leader that could not say so for that long is none.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// This replica is not the leader any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not lead any more: {0}")]
pub struct Lost(String);

/// The Lease as one replica sees it.
#[derive(Debug)]
pub struct Lease {
    leases: Api<LeaseObject>,
    settings: LeaseSettings,
}

/// What was seen last, and since when by this machine's clock.
#[derive(Debug, Default)]
struct Seen {
    version: Option<String>,
    since: Duration,
}

/// What to do about a Lease that was just read.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// It is free, or ours.
    Take,
    /// Somebody has it.
    Wait,
}

impl Seen {
    fn judge(&mut self, lease: &LeaseObject, own: &str, now: Duration) -> Move {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == own {
            return Move::Take;
        }
        if self.version.is_none() || self.version != lease.metadata.resource_version {
            *self = Self { version: lease.metadata.resource_version.clone(), since: now };
        }
        // What the holder wrote, as its own setting may be another; a hostile number must not keep it for ever.
        let seconds = spec.lease_duration_seconds.unwrap_or(15).clamp(1, 3600);
        let free = now.saturating_sub(self.since) >= Duration::from_secs(seconds.unsigned_abs().into());
        if free { Move::Take } else { Move::Wait }
    }
}

impl Lease {
    /// Asks nothing yet.
    pub fn new(client: Client, settings: LeaseSettings) -> Self {
        Self { leases: Api::namespaced(client, &settings.namespace), settings }
    }

    /// Waits until this replica leads.
    pub async fn acquire(&self) {
        let mut seen = Seen::default();
        let mut told = None;
        loop {
            let outcome = timeout(TIMEOUT, self.try_acquire(&mut seen)).await;
            let state = match outcome {
                Ok(Ok(Ok(()))) => return,
                Ok(Ok(Err(holder))) => Ok(holder),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_elapsed) => Err(SILENT.to_owned()),
            };
            if told.as_ref() != Some(&state) {
                let lease = &self.settings.name;
                match &state {
                    Ok(leader) => tracing::info!(%lease, %leader, "this replica stands by"),
                    Err(error) => {
                        tracing::warn!(%lease, %error, "this replica stands by: the Lease cannot be had");
                    }
                }
                told = Some(state);
            }
            sleep(self.settings.look.mul_f64(0.7 + 0.6 * rand::random::<f64>())).await;
        }
    }

    /// Ok(Err): the holder.
    async fn try_acquire(&self, seen: &mut Seen) -> kube::Result<Result<(), String>> {
        let own = &self.settings.identity;
        let Some(found) = self.leases.get_opt(&self.settings.name).await? else {
            let made = self.written(LeaseObject::default());
            return match self.leases.create(&PostParams::default(), &made).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Err("another one".to_owned())),
                made => made.map(|_| Ok(())),
            };
        };
        if seen.judge(&found, own, boot_time()) == Move::Wait {
            let holder = found.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
            return Ok(Err(holder));
        }
        let taken = self.written(found);
        match self.leases.replace(&self.settings.name, &PostParams::default(), &taken).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Err("another one".to_owned())),
            taken => taken.map(|_| Ok(())),
        }
    }

    /// Renews until that fails for too long, or somebody else has it.
    pub async fn hold(&self) -> Lost {
        let mut renewed = boot_time();
        loop {
            sleep(self.settings.period()).await;
            let began = boot_time();
            let left = self.settings.deadline().saturating_sub(began.saturating_sub(renewed));
            let outcome = timeout(left, self.renew()).await;
            let why = match outcome {
                Ok(Ok(true)) => {
                    renewed = began;
                    continue;
                }
                Ok(Ok(false)) => return Lost("another replica has the Lease".to_owned()),
                Ok(Err(error)) => error.to_string(),
                Err(_elapsed) => SILENT.to_owned(),
            };
            if boot_time().saturating_sub(renewed) >= self.settings.deadline() {
                return Lost(format!("the Lease could not be renewed: {why}"));
            }
            tracing::warn!(%why, "the Lease is not renewed; it is tried again");
        }
    }

    /// Whether it is still ours.
    async fn renew(&self) -> kube::Result<bool> {
        let found = self.leases.get_opt(&self.settings.name).await?;
        let holder = found.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
        let Some(found) = found.as_ref().filter(|_| holder == Some(&self.settings.identity)) else {
            return Ok(false);
        };
        let renewed = self.written(found.clone());
        match self.leases.replace(&self.settings.name, &PostParams::default(), &renewed).await {
            // Looked at again the next time.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            renewed => renewed.map(|_| true),
        }
    }

    /// Lets the next one have it at once, at an orderly stop.
    pub async fn release(&self) {
        let released = timeout(TIMEOUT, async {
            let found = self.leases.get_opt(&self.settings.name).await?;
            let own = |lease: &LeaseObject| {
                lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref())
                    == Some(&self.settings.identity)
            };
            if let Some(mut lease) = found.filter(own) {
                if let Some(spec) = &mut lease.spec {
                    spec.holder_identity = Some(String::new());
                }
                self.leases.replace(&self.settings.name, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        });
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the Lease is not given back; it ends by itself"),
            Err(_elapsed) => tracing::warn!("the Lease is not given back; it ends by itself"),
        }
    }

    /// The same Lease, held by this replica now.
    fn written(&self, mut lease: LeaseObject) -> LeaseObject {
        let own = &self.settings.identity;
        let now = MicroTime(Timestamp::now());
        lease.metadata.name = Some(self.settings.name.clone());
        let before = lease.spec.take().unwrap_or_default();
        let kept = before.holder_identity.as_ref() == Some(own);
        let transitions = before.lease_transitions.unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(own.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: if kept { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if kept { transitions } else { transitions.saturating_add(1) }),
            ..before
        });
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str, seconds: i32) -> LeaseObject {
        let mut lease = LeaseObject::default();
        lease.metadata.resource_version = Some(version.to_owned());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        });
        lease
    }

    #[test]
    fn a_lease_is_taken_when_its_holder_has_been_silent_for_its_time_by_our_own_clock() {
        let mut seen = Seen::default();
        let at = Duration::from_secs;
        for (lease, now, wanted) in [
            (lease("b", "1", 15), 100, Move::Wait),
            (lease("b", "1", 15), 114, Move::Wait),
            (lease("b", "2", 15), 115, Move::Wait),
            (lease("b", "2", 15), 129, Move::Wait),
            (lease("b", "2", 15), 130, Move::Take),
            (lease("c", "3", 15), 131, Move::Wait),
            (lease("", "4", 15), 132, Move::Take),
            (lease("a", "5", 15), 132, Move::Take),
            (lease("b", "6", i32::MAX), 133, Move::Wait),
            (lease("b", "6", i32::MAX), 133 + 3600, Move::Take),
            (lease("b", "7", -5), 9000, Move::Wait),
            (lease("b", "7", -5), 9001, Move::Take),
        ] {
            assert_eq!(seen.judge(&lease, "a", at(now)), wanted, "{lease:?} at {now}");
        }
    }

    #[test]
    fn a_leader_is_out_before_another_may_come() {
        let settings = LeaseSettings {
            namespace: "n".into(),
            name: "l".into(),
            identity: "a".into(),
            duration: Duration::from_secs(15),
            look: Duration::from_secs(3),
        };
        assert!(settings.deadline() + settings.period() < settings.duration);
    }
}
