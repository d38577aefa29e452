//! The life of an authority, as a pure state machine: what may happen next is decided from facts that the caller gathers.
//! An authority signs only once everybody who watches trusts it, and is trusted until the last certificate under it ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an authority is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In the trust bundles.
    Root,
    /// Below a root: nobody needs to be told of it.
    Intermediate,
}

/// Where an authority is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Key and certificate are there; nobody knows of it.
    Prepared,
    /// In the bundles (or below a root that is), not signing yet.
    Trusted,
    /// Signs.
    Active,
    /// Signs no more certificates, but its revocation list; still trusted.
    Retiring,
    /// Out of the bundles, its key removed.
    Withdrawn,
}

/// What is asked of an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The next stage, if it is safe.
    Advance,
    /// The next stage, safe or not.
    Force,
    /// Its successor signs from now on.
    Supersede,
    /// Forget it before it ever signed.
    Cancel,
}

/// What decides whether a step is safe; Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Now.
    pub(super) now: i64,
    /// When it entered its stage.
    pub(super) since: i64,
    /// How long bundles take to those who cannot acknowledge them.
    pub(super) propagation: i64,
    /// Nodes that watch, but do not have it yet.
    pub(super) behind: Vec<String>,
    /// When the last certificate under it ends, by every clock that is believed; none: there is none.
    pub(super) needed_until: Option<i64>,
    /// Of an intermediate: whether its root signs now.
    pub(super) root_signs: bool,
}

/// Why an authority stays where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stay {
    /// Those who do not acknowledge may not have it yet.
    Propagating {
        /// Unix seconds.
        until: i64,
    },
    /// These nodes watch and do not have it yet.
    Behind(Vec<String>),
    /// Certificates under it are still in use.
    Needed {
        /// Unix seconds.
        until: i64,
    },
    /// It comes with its root.
    FollowsRoot,
    /// It signs; it goes when a successor comes.
    Signs,
    /// It does not sign (yet, or any more).
    DoesNotSign,
    /// It signed already, so it cannot be forgotten.
    Signed,
    /// It is at its end.
    Ended,
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More names would not help.
        const SHOWN: usize = 10;
        match self {
            Self::Propagating { until } => {
                write!(f, "it is being distributed until {}", Time(*until))
            }
            Self::Behind(nodes) => {
                let shown = nodes.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
                write!(f, "{} nodes do not trust it yet: {shown}", nodes.len())?;
                if nodes.len() > SHOWN { f.write_str(", ...") } else { Ok(()) }
            }
            Self::Needed { until } => {
                write!(f, "certificates under it are valid until {}", Time(*until))
            }
            Self::FollowsRoot => f.write_str("it signs once its root does"),
            Self::Signs => f.write_str("it signs until its successor does: begin a rotation"),
            Self::DoesNotSign => f.write_str("it does not sign"),
            Self::Signed => f.write_str("it has signed, so it can only be rotated away from"),
            Self::Ended => f.write_str("it was withdrawn"),
        }
    }
}

struct Time(i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match time::OffsetDateTime::from_unix_timestamp(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// The stage that follows.
///
/// # Errors
/// Why there is none now.
pub(super) fn next(kind: Kind, stage: Stage, event: Event, facts: &Facts) -> Result<Stage, Stay> {
    let forced = event == Event::Force;
    match (stage, event) {
        (Stage::Withdrawn, _) => Err(Stay::Ended),
        (Stage::Active, Event::Supersede) => Ok(Stage::Retiring),
        (_, Event::Supersede) => Err(Stay::DoesNotSign),
        (Stage::Prepared | Stage::Trusted, Event::Cancel) => Ok(Stage::Withdrawn),
        (Stage::Active | Stage::Retiring, Event::Cancel) => Err(Stay::Signed),
        (Stage::Active, Event::Advance | Event::Force) => Err(Stay::Signs),
        (Stage::Prepared, Event::Advance | Event::Force) if kind == Kind::Root => Ok(Stage::Trusted),
        // a chain to a root that signs is believed already
        (Stage::Prepared, Event::Advance | Event::Force) if facts.root_signs => Ok(Stage::Active),
        (Stage::Prepared, Event::Advance | Event::Force) => Err(Stay::FollowsRoot),
        (Stage::Trusted, Event::Advance | Event::Force) => distributed(facts, forced),
        (Stage::Retiring, Event::Advance | Event::Force) => match facts.needed_until {
            Some(until) if until > facts.now && !forced => Err(Stay::Needed { until }),
            _ => Ok(Stage::Withdrawn),
        },
    }
}

fn distributed(facts: &Facts, forced: bool) -> Result<Stage, Stay> {
    let until = facts.since.saturating_add(facts.propagation);
    if forced {
        return Ok(Stage::Active);
    }
    // a clock that was set back says nothing about how long it took
    if facts.now < until {
        return Err(Stay::Propagating { until });
    }
    if !facts.behind.is_empty() {
        return Err(Stay::Behind(facts.behind.clone()));
    }
    Ok(Stage::Active)
}

/// Whether it is time for a successor: a third of an authority's life is left, in which the old one is still good for
/// what it signs and the new one has all the time it needs.
pub(super) fn ends_soon(not_before: i64, not_after: i64, now: i64) -> bool {
    let life = not_after.saturating_sub(not_before);
    now >= not_after.saturating_sub(life / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 2] = [Kind::Root, Kind::Intermediate];
    const NOW: i64 = 1_000_000;

    /// Nothing stands in the way.
    fn safe() -> Facts {
        Facts { now: NOW, since: NOW - 100, propagation: 100, root_signs: true, ..Facts::default() }
    }

    #[test]
    fn each_stage_answers_each_event_as_written_here() {
        use Event::{Advance, Cancel, Force, Supersede};
        use Stage::{Active, Prepared, Retiring, Trusted, Withdrawn};
        let behind = || Facts { behind: vec!["b".to_owned()], ..safe() };
        let early = || Facts { since: NOW - 99, ..behind() };
        let needed = || Facts { needed_until: Some(NOW + 1), ..safe() };
        let ended = || Facts { needed_until: Some(NOW), ..safe() };
        for kind in KINDS {
            let first = if kind == Kind::Root { Trusted } else { Active };
            let table = [
                (Prepared, Advance, safe(), Ok(first)),
                (Prepared, Force, safe(), Ok(first)),
                (Prepared, Supersede, safe(), Err(Stay::DoesNotSign)),
                (Prepared, Cancel, safe(), Ok(Withdrawn)),
                (Trusted, Advance, safe(), Ok(Active)),
                (Trusted, Advance, behind(), Err(Stay::Behind(vec!["b".to_owned()]))),
                (Trusted, Advance, early(), Err(Stay::Propagating { until: NOW + 1 })),
                (Trusted, Force, early(), Ok(Active)),
                (Trusted, Supersede, safe(), Err(Stay::DoesNotSign)),
                (Trusted, Cancel, safe(), Ok(Withdrawn)),
                (Active, Advance, safe(), Err(Stay::Signs)),
                (Active, Force, safe(), Err(Stay::Signs)),
                (Active, Supersede, safe(), Ok(Retiring)),
                (Active, Cancel, safe(), Err(Stay::Signed)),
                (Retiring, Advance, safe(), Ok(Withdrawn)),
                (Retiring, Advance, ended(), Ok(Withdrawn)),
                (Retiring, Advance, needed(), Err(Stay::Needed { until: NOW + 1 })),
                (Retiring, Force, needed(), Ok(Withdrawn)),
                (Retiring, Supersede, safe(), Err(Stay::DoesNotSign)),
                (Retiring, Cancel, safe(), Err(Stay::Signed)),
                (Withdrawn, Advance, safe(), Err(Stay::Ended)),
                (Withdrawn, Force, safe(), Err(Stay::Ended)),
                (Withdrawn, Supersede, safe(), Err(Stay::Ended)),
                (Withdrawn, Cancel, safe(), Err(Stay::Ended)),
            ];
            for (stage, event, facts, expected) in table {
                assert_eq!(next(kind, stage, event, &facts), expected, "{kind:?} {stage:?} {event:?}");
            }
        }
    }

    #[test]
    fn an_intermediate_never_signs_before_its_root() {
        let facts = Facts { root_signs: false, ..safe() };
        for event in [Event::Advance, Event::Force] {
            let stays = next(Kind::Intermediate, Stage::Prepared, event, &facts);
            assert_eq!(stays, Err(Stay::FollowsRoot));
        }
    }

    #[test]
    fn no_stage_is_skipped_or_entered_twice() {
        let stages = [Stage::Prepared, Stage::Trusted, Stage::Active, Stage::Retiring, Stage::Withdrawn];
        for kind in KINDS {
            for stage in stages {
                for event in [Event::Advance, Event::Force, Event::Supersede, Event::Cancel] {
                    let Ok(next) = next(kind, stage, event, &safe()) else { continue };
                    assert!(next > stage, "{kind:?} {stage:?} {event:?}");
                    let skips_trust = kind == Kind::Intermediate && stage == Stage::Prepared;
                    let one = next as u8 - stage as u8 == 1;
                    assert!(one || event == Event::Cancel || skips_trust, "{kind:?} {stage:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_hasten_anything() {
        let facts = Facts { now: NOW - 1_000_000, ..safe() };
        assert!(matches!(
            next(Kind::Root, Stage::Trusted, Event::Advance, &facts),
            Err(Stay::Propagating { .. })
        ));
    }

    #[test]
    fn a_successor_is_due_in_the_last_third() {
        for (now, due) in [(0, false), (66, false), (67, true), (100, true), (1_000, true)] {
            assert_eq!(ends_soon(0, 100, now), due, "{now}");
        }
    }

    #[test]
    fn why_it_stays_is_said_in_words() {
        let behind = Stay::Behind((0..12).map(|n| format!("node-{n}")).collect()).to_string();
        assert!(
            behind.starts_with("12 nodes") && behind.contains("node-9, ...") && !behind.contains("node-10")
        );
        assert!(Stay::Needed { until: 0 }.to_string().contains("1970-01-01"));
    }
}
