//! Stands in for the crate of the same name, of which foyer's disk cache uses a clock and an atomic of it. The published one
//! measures the processor's time stamp counter for 20 ms before `main` begins, in every program it is linked into, every
//! `des` command included. This one asks the system.
//! foyer asks at most once for each transfer from or to the disk.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What instants are counted from.
static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

/// A point in time of a clock that never goes back, nanoseconds since the first one of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The present.
    pub fn now() -> Self {
        Self(u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Time since an earlier point; zero when that is later.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time since this point.
    pub fn elapsed(&self) -> Duration {
        Self::now().duration_since(*self)
    }
}

/// An [`Instant`] that threads share.
#[derive(Debug)]
pub struct Atomic(AtomicU64);

impl Atomic {
    /// Holds a point in time.
    pub const fn new(at: Instant) -> Self {
        Self(AtomicU64::new(at.0))
    }

    /// What it holds.
    pub fn load(&self, order: Ordering) -> Instant {
        Instant(self.0.load(order))
    }

    /// Holds another from now on.
    pub fn store(&self, at: Instant, order: Ordering) {
        self.0.store(at.0, order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_an_atomic_keeps_it() {
        let first = Instant::now();
        let cell = Atomic::new(first);
        let system = std::time::Instant::now();
        while system.elapsed() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        let second = Instant::now();
        assert!(second.duration_since(first) >= Duration::from_millis(2));
        assert_eq!(first.duration_since(second), Duration::ZERO);
        assert!(first.elapsed() >= second.duration_since(first));
        cell.store(second, Ordering::Relaxed);
        assert_eq!(cell.load(Ordering::Relaxed), second);
    }
}
