//! What a change of policies would have done to what was seen lately. Pure: both sets are compiled for the same world.

use super::{CompiledPolicies, replay::Outcome, traffic::Seen};
use crate::world::World;

/// What would change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Impact {
    /// Kinds of connections and requests that were decided by both.
    pub replayed: usize,
    /// Those that are decided differently, denied ones first, then by how many there were.
    pub changes: Vec<Change>,
    /// Workloads whose rules on tokens differ: tokens are not remembered, so who somebody is stays as it was.
    pub other_tokens: Vec<String>,
}

/// Traffic that is decided differently.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which.
    pub seen: Seen,
    /// By the policies in force.
    pub before: Outcome,
    /// By those proposed.
    pub after: Outcome,
}

/// In which order changes matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Denied,
    Unknown,
    Asks,
    Allowed,
}

impl Change {
    fn weight(&self) -> Weight {
        match self.after {
            Outcome::Denied(_) => Weight::Denied,
            Outcome::Unknown(_) => Weight::Unknown,
            Outcome::Asks(_) => Weight::Asks,
            Outcome::Allowed(_) => Weight::Allowed,
        }
    }
}

impl Impact {
    /// Decides everything by both.
    pub fn of(
        world: &World,
        in_force: &CompiledPolicies,
        proposed: &CompiledPolicies,
        seen: impl IntoIterator<Item = Seen>,
    ) -> Self {
        let mut impact = Self::default();
        for seen in seen {
            let server = &seen.traffic.server;
            let Some(workload) = world.by_name(&server.namespace, &server.name) else { continue };
            impact.replayed += 1;
            let [old, new] = [in_force, proposed].map(|policies| policies.for_workload(workload.id));
            if old.request_authentication() != new.request_authentication() {
                impact.other_tokens.push(server.to_string());
            }
            let (before, after) = (old.replay(world, &seen), new.replay(world, &seen));
            if before.class() != after.class() {
                impact.changes.push(Change { seen, before, after });
            }
        }
        impact.other_tokens.sort_unstable();
        impact.other_tokens.dedup();
        impact.changes.sort_by_key(|change| (change.weight(), std::cmp::Reverse(change.seen.count)));
        impact
    }
}
