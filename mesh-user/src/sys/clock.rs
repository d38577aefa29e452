//! Clocks that go on while the machine sleeps, and being woken when the wall clock is set.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};

use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::clock_gettime,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Time since the machine started, suspend included (`CLOCK_BOOTTIME`). Nothing sets it.
pub fn boot_time() -> Duration {
    // Every kernel that meshd runs on has this clock.
    clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Names this start of the machine; [`boot_time`]s of others say nothing about each other. None: `/proc` does not tell.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty() && id.len() <= 64)
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    fn new(clock: ClockId) -> io::Result<AsyncFd<Self>> {
        let timer = TimerFd::new(clock, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: `Timer` owns its descriptor, always gives the same one, and closes it only when it is dropped, which
        // `AsyncFd` does after it has deregistered it.
        Ok(unsafe { AsyncFd::register_with_interest(Self(timer), Interest::READABLE) }?)
    }
}

/// Rings when [`boot_time`] has come as far as asked, or when somebody sets the wall clock.
pub struct Alarm {
    boot: AsyncFd<Timer>,
    wall: AsyncFd<Timer>,
}

impl Alarm {
    /// Within a tokio runtime.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let alarm =
            Self { boot: Timer::new(ClockId::CLOCK_BOOTTIME)?, wall: Timer::new(ClockId::CLOCK_REALTIME)? };
        alarm.watch_the_wall_clock()?;
        Ok(alarm)
    }

    /// A timer that never rings, but is cancelled when the clock is set (`timerfd_create(2)`, `ECANCELED`).
    fn watch_the_wall_clock(&self) -> io::Result<()> {
        let never = TimeSpec::new(i64::MAX / 2_000_000_000, 0);
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(self.wall.get_ref().0.set(Expiration::OneShot(never), flags)?)
    }

    /// Waits for either. May be dropped and called again.
    ///
    /// # Errors
    /// When the kernel refuses the timers.
    pub async fn ring(&self, at: Duration) -> io::Result<()> {
        // A time of zero would switch the timer off.
        let at = TimeSpec::from_duration(at.max(Duration::from_nanos(1)));
        self.boot.get_ref().0.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        tokio::select! {
            rang = read(&self.boot) => rang,
            set = read(&self.wall) => {
                set?;
                self.watch_the_wall_clock()
            }
        }
    }
}

/// A timer that was cancelled has rung, too.
async fn read(timer: &AsyncFd<Timer>) -> io::Result<()> {
    loop {
        let mut ready = timer.readable().await?;
        let taken = ready.try_io(|timer| {
            let mut count = [0; 8];
            match nix::unistd::read(&timer.get_ref().0, &mut count) {
                Ok(_) | Err(nix::errno::Errno::ECANCELED) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        if let Ok(taken) = taken {
            return taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_no_sooner_than_asked_and_again() {
        let alarm = Alarm::new().unwrap();
        for _ in 0..2 {
            let at = boot_time() + Duration::from_millis(20);
            alarm.ring(at).await.unwrap();
            assert!(boot_time() >= at);
        }
        alarm.ring(Duration::ZERO).await.unwrap();
    }
}
