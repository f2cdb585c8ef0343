//! How many requests a key may make: a token bucket in one number.
//!
//! Kept is the moment at which the bucket would be full again. Each request moves it on by one interval; one that would
//! move it further away than the whole bucket is refused. No list, no timer, no lock.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND_NS: u64 = 1_000_000_000;

/// So many requests a second for long, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests a second, 1 to 1,000,000.
    pub per_second: u32,
    /// Requests at once after a pause, 1 to 1,000,000.
    pub burst: u32,
}

impl Limit {
    /// The most of either number.
    pub const MOST: u32 = 1_000_000;

    fn interval_ns(self) -> u64 {
        SECOND_NS / u64::from(self.per_second.max(1))
    }
}

/// One key's bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: Limit,
    /// Unix nanoseconds at which it is full.
    full_ns: AtomicU64,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, full_ns: AtomicU64::new(0) }
    }

    pub(super) fn limit(&self) -> Limit {
        self.limit
    }

    /// Takes one request out.
    ///
    /// # Errors
    /// When it is empty: seconds, at least 1, after which there is one again.
    pub(super) fn take(&self, now_ms: u64) -> Result<(), u32> {
        let (now, interval) = (now_ms.saturating_mul(1_000_000), self.limit.interval_ns());
        let whole = interval.saturating_mul(u64::from(self.limit.burst));
        let latest = now.saturating_add(whole);
        // A clock that was set back must not shut a key out: the bucket is empty then, and fills as ever.
        self.full_ns.fetch_min(latest, Ordering::Relaxed);
        let next = |full: u64| full.clamp(now, latest).saturating_add(interval);
        let taken = self
            .full_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| Some(next(full)).filter(|full| *full <= latest));
        taken.map(drop).map_err(|full| {
            let wait = (next(full) - latest).div_ceil(SECOND_NS).max(1);
            u32::try_from(wait).unwrap_or(u32::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_750_000_000_000;

    fn taken(bucket: &Bucket, now_ms: u64, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.take(now_ms).is_ok()).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::new(Limit { per_second: 10, burst: 3 });
        assert_eq!(taken(&bucket, START, 100), 3);
        assert_eq!(bucket.take(START), Err(1));
        assert_eq!(taken(&bucket, START + 99, 100), 0);
        assert_eq!(taken(&bucket, START + 100, 100), 1);
        let long: usize = (1..=100).map(|tenth| taken(&bucket, START + 100 + tenth * 100, 7)).sum();
        assert_eq!(long, 100, "ten seconds at ten a second");
        assert_eq!(taken(&bucket, START + 3_600_000, 100), 3, "never more than the burst");
        let slow = Bucket::new(Limit { per_second: 1, burst: 1 });
        assert_eq!((slow.take(START), slow.take(START), slow.take(START + 1000)), (Ok(()), Err(1), Ok(())));
    }

    #[test]
    fn a_clock_set_back_shuts_nobody_out() {
        let bucket = Bucket::new(Limit { per_second: 1, burst: 5 });
        assert_eq!(taken(&bucket, START, 5), 5);
        let back = START - 86_400_000;
        assert_eq!(bucket.take(back), Err(1));
        assert_eq!(taken(&bucket, back + 1000, 5), 1);
    }

    #[test]
    fn many_threads_take_no_more_than_there_is() {
        let bucket = Bucket::new(Limit { per_second: 1, burst: 1000 });
        let all: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&bucket, START, 1000))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(all, 1000);
    }
}
