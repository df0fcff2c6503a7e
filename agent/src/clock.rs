//! Time as the agent counts it: the machine's boot clock. Called by everything that waits.
//!
//! `CLOCK_BOOTTIME` never jumps when somebody sets the wall clock, and it goes on while the machine
//! is suspended, which `CLOCK_MONOTONIC` does not. Wall-clock time is for people to read only.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment on the boot clock of this machine. Moments of two machines cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The moment this long after the machine's start.
    pub const fn since_boot(since: Duration) -> Self {
        Self(since)
    }

    /// Time since an earlier moment; zero if that one is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// Where the time comes from: the machine, or a test that makes it up.
pub trait Clock: Send + Sync {
    fn now(&self) -> Moment;
}

/// The machine's boot clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Moment {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("the boot clock starts at 0");
        let nanoseconds = u32::try_from(time.tv_nsec).expect("below 10^9");
        Moment(Duration::new(seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_goes_forward() {
        let first = BootClock.now();
        let second = BootClock.now();
        assert!(second >= first);
        assert!(first > Moment::since_boot(Duration::ZERO));
    }

    #[test]
    fn a_later_moment_is_no_time_ago() {
        let early = Moment::since_boot(Duration::from_secs(5));
        let late = early + Duration::from_secs(3);
        assert_eq!(late.since(early), Duration::from_secs(3));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late - Duration::from_secs(3), early);
    }
}
