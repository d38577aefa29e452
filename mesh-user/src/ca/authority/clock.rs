//! The time by which a CA forgets, withdraws and lets others sign: what cannot be undone. The wall clock may be set by
//! mistake, or by somebody; the time since the machine started may not. So this time follows the wall clock back at once, but
//! forward only as time passes. After a jump forward it catches up once the wall clock has been steady for as long as it
//! jumped, and no sooner than everything has ended that was signed before.
//!
//! It is kept in the state, so that a restart makes no jump believed. How long a machine was off nobody knows: an hour is
//! believed, more than that waits as a jump does.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, params};

use super::AuthoritySettings;
use crate::{
    ca::plan::{Clock, Moment, SystemClock},
    sys::clock::boot_id,
};

/// A jump of less matters to nobody: an old authority stays that much longer than what it signed.
const NOTICE: Duration = Duration::from_secs(60);
/// How often it is written down while nothing happens.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How long a machine may have been off before anybody doubts it.
const OFF: Duration = Duration::from_secs(3600);
/// What adjusting a clock slowly comes to (`adjtimex(2)`: 500 ppm), and what it takes to read two clocks.
const SLEW_PARTS: u32 = 2000;
const READING: Duration = Duration::from_millis(500);

/// The believed time at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    now: Moment,
    believed: SystemTime,
    /// Since when the wall clock has gone with the time since the machine started, in that time.
    steady: Duration,
}

impl Seen {
    /// At first: there is nothing to doubt.
    fn first(now: Moment) -> Self {
        Self { now, believed: now.wall, steady: Duration::ZERO }
    }

    /// Follows the clocks to `now`. `settled` is how long what was signed before a jump may last.
    fn follow(self, now: Moment, settled: Duration) -> Self {
        let passed = now.boot.saturating_sub(self.now.boot);
        let slewed = passed / SLEW_PARTS;
        let expected = self.now.wall + passed;
        let off = now.wall.duration_since(expected).unwrap_or_else(|before| before.duration());
        let steady = if off > slewed + READING { now.boot } else { self.steady };
        let mut next = Self { now, believed: now.wall.min(self.believed + passed), steady };
        let ahead = next.ahead();
        let wait = if ahead > NOTICE { ahead.max(settled) } else { ahead };
        if now.boot.saturating_sub(steady) >= wait {
            next.believed = now.wall;
        }
        next
    }

    fn ahead(self) -> Duration {
        self.now.wall.duration_since(self.believed).unwrap_or_default()
    }
}

/// Two readings of one moment; Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// By which certificates are judged.
    pub(super) wall: i64,
    /// See the module.
    pub(super) believed: i64,
}

/// The clocks of a CA.
pub(super) struct Clocks {
    clock: Box<dyn Clock>,
    settled: Duration,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// None: nothing was read yet.
    seen: Option<Seen>,
    /// What was written last, by this process.
    kept: Option<Seen>,
    told: bool,
}

impl fmt::Debug for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clocks").field("inside", &self.inside).finish_non_exhaustive()
    }
}

impl Clocks {
    /// `settled` is how long what was signed before a jump may last.
    pub(super) fn new(clock: impl Clock + 'static, settled: Duration) -> Self {
        Self { clock: Box::new(clock), settled, inside: Mutex::default() }
    }

    /// The machine's.
    pub(super) fn of(settings: &AuthoritySettings) -> Self {
        Self::new(SystemClock, settings.max_lifetime.saturating_add(settings.clock_skew))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now. Says so in the log where the two part, and where they meet again.
    pub(super) fn look(&self) -> Times {
        let now = self.clock.now();
        let mut inside = self.inside();
        let seen = inside.seen.map_or(Seen::first(now), |before| before.follow(now, self.settled));
        inside.seen = Some(seen);
        let ahead = seen.ahead();
        if (ahead > NOTICE) != inside.told {
            inside.told = ahead > NOTICE;
            if inside.told {
                tracing::warn!(
                    seconds = ahead.as_secs(),
                    "the wall clock is ahead of the time that is known to have passed: it was set, or the machine was off. Nothing \
                     is withdrawn or forgotten by itself until it has been steady for long enough"
                );
            } else {
                tracing::info!("the wall clock is believed again");
            }
        }
        Times { wall: unix(now.wall), believed: unix(seen.believed) }
    }

    /// How far the wall clock is ahead of what is believed; less than a minute does not count.
    pub(super) fn ahead(&self) -> Duration {
        self.look();
        let ahead = self.inside().seen.map_or(Duration::ZERO, Seen::ahead);
        if ahead > NOTICE { ahead } else { Duration::ZERO }
    }

    /// Goes on from what the state knows, where there is anything.
    pub(super) fn resume(&self, connection: &Connection) -> rusqlite::Result<()> {
        let known: Option<(String, [i64; 4])> = connection
            .query_row("SELECT boot_id, boot, wall, believed, steady FROM clock", [], |row| {
                Ok((row.get(0)?, [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
            })
            .optional()?;
        let Some((machine, figures)) = known else { return Ok(()) };
        let [boot, wall, believed, steady] = figures
            .map(|milliseconds| Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default()));
        let (wall, believed) = (UNIX_EPOCH + wall, UNIX_EPOCH + believed);
        let now = self.clock.now();
        self.inside().seen = Some(if boot_id() == Some(machine) && boot <= now.boot {
            Seen { now: Moment { boot, wall }, believed, steady }
        } else {
            Seen { now, believed: now.wall.min(believed + OFF), steady: now.boot }
        });
        Ok(())
    }

    /// Writes down what is believed, if that was long ago. Whether it was.
    pub(super) fn keep(&self, connection: &Connection) -> rusqlite::Result<bool> {
        self.look();
        let mut inside = self.inside();
        let Some(seen) = inside.seen else { return Ok(false) };
        let is_new = |kept: Seen| {
            seen.now.boot.saturating_sub(kept.now.boot) >= KEEP_EVERY || seen.steady != kept.steady
        };
        if !inside.kept.is_none_or(is_new) {
            return Ok(false);
        }
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let since_1970 = |time: SystemTime| milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default());
        connection.execute(
            "INSERT INTO clock (one, boot_id, boot, wall, believed, steady) VALUES (1, ?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (one) DO UPDATE SET boot_id = excluded.boot_id, boot = excluded.boot,
                 wall = excluded.wall, believed = excluded.believed, steady = excluded.steady",
            params![
                boot_id().unwrap_or_default(),
                milliseconds(seen.now.boot),
                since_1970(seen.now.wall),
                since_1970(seen.believed),
                milliseconds(seen.steady)
            ],
        )?;
        inside.kept = Some(seen);
        Ok(true)
    }
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> Moment {
        Moment { boot: 1000 * HOUR, wall: UNIX_EPOCH + 500_000 * HOUR }
    }

    #[test]
    fn the_believed_time_follows_back_at_once_and_forward_once_it_was_steady() {
        let mut seen = Seen::first(start());
        for (what, passed, set_by, behind) in [
            ("time goes by", 1, 0, 0),
            ("suspended for a day", 25, 0, 0),
            ("set forward a day", 25, 24, 24),
            ("half a day later", 37, 24, 24),
            ("steady for a day", 49, 24, 0),
            ("set forward by what it signs for", 49, 25, 1),
            ("as long as it jumped: not all has ended that was signed before", 50, 25, 1),
            ("as long as that", 59, 25, 0),
            ("set forward again", 59, 49, 24),
            ("and back", 59, 25, 0),
            ("back a day", 60, 1, 0),
            ("and forward: nobody can tell", 60, 25, 24),
        ] {
            let now =
                Moment { boot: start().boot + passed * HOUR, wall: start().wall + (passed + set_by) * HOUR };
            seen = seen.follow(now, 10 * HOUR);
            assert_eq!(seen.ahead(), behind * HOUR, "{what}");
        }
    }

    #[test]
    fn many_small_jumps_are_one_large_one_and_a_clock_that_is_adjusted_is_believed() {
        let mut seen = Seen::first(start());
        let second = Duration::from_secs(1);
        for n in 1..=100 {
            let now = Moment { boot: start().boot + n * second, wall: start().wall + n * 30 * second };
            seen = seen.follow(now, HOUR);
        }
        assert!(seen.ahead() > 2800 * second, "{:?}", seen.ahead());
        let mut seen = Seen::first(start());
        for n in 1..=1000 {
            let (boot, wall) =
                (start().boot + n * 5 * second, start().wall + n * (5 * second + Duration::from_millis(2)));
            seen = seen.follow(Moment { boot, wall }, HOUR);
        }
        assert_eq!(seen.ahead(), Duration::ZERO);
        let stepped = Moment { boot: seen.now.boot + second, wall: seen.now.wall + 3 * second };
        seen = seen.follow(stepped, HOUR);
        assert_ne!(seen.ahead(), Duration::ZERO);
        let later = Moment { boot: stepped.boot + 2 * second, wall: stepped.wall + 2 * second };
        assert_eq!(seen.follow(later, HOUR).ahead(), Duration::ZERO, "a step of seconds takes seconds");
    }
}
