//! Trying again: the one module that owns the `backoff` crate.
//!
//! The crate is no longer maintained. It computes how the bounds of the waiting times grow, nothing else: the dice are
//! ours (full jitter, replayable in tests), and so is the deadline. Should it have to go, [`Schedule`] is all there is
//! to rewrite.

use std::future::Future;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use tokio::time::Instant;

use crate::clock::Dice;

/// How often and how long something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Bound of the first wait. Each further bound is twice the one before.
    pub first: Duration,
    /// The largest bound.
    pub max: Duration,
    /// How many attempts there are, the first included.
    pub attempts: u32,
    /// No attempt begins later than this after the first began.
    pub deadline: Duration,
}

impl RetryPolicy {
    /// For calls that somebody waits for: 4 attempts within 10 seconds.
    pub const QUICK: Self = Self {
        first: Duration::from_millis(100),
        max: Duration::from_secs(2),
        attempts: 4,
        deadline: Duration::from_secs(10),
    };

    /// For work in the background: 8 attempts within a minute.
    pub const PATIENT: Self = Self {
        first: Duration::from_millis(200),
        max: Duration::from_secs(10),
        attempts: 8,
        deadline: Duration::from_mins(1),
    };

    /// One attempt only.
    pub const NEVER: Self = Self { first: Duration::ZERO, max: Duration::ZERO, attempts: 1, deadline: Duration::ZERO };

    /// The waits of one operation.
    pub fn schedule(&self) -> Schedule {
        let bounds = ExponentialBackoff {
            current_interval: self.first,
            initial_interval: self.first,
            max_interval: self.max.max(self.first),
            multiplier: 2.0,
            randomization_factor: 0.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Schedule { policy: *self, bounds, made: 1 }
    }
}

/// The waits between the attempts of one operation.
#[derive(Debug)]
pub struct Schedule {
    policy: RetryPolicy,
    bounds: ExponentialBackoff,
    made: u32,
}

impl Schedule {
    /// How long to wait after a failed attempt, given how long ago the first one began: anything from nothing to the
    /// bound (full jitter). `None`: give up.
    pub fn next_wait(&mut self, elapsed: Duration, dice: &Dice) -> Option<Duration> {
        if self.made >= self.policy.attempts {
            return None;
        }
        self.made += 1;
        let bound = self.bounds.next_backoff()?.min(self.policy.max.max(self.policy.first));
        let wait = Duration::from_nanos(dice.up_to(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)));
        (elapsed + wait <= self.policy.deadline).then_some(wait)
    }
}

/// Runs `operation` until it succeeds, fails for good (`is_transient` says no), or the policy is used up; the last
/// error is returned. An attempt that has begun is not cut off: operations have timeouts of their own.
///
/// # Errors
/// The last error of `operation`.
pub async fn retry<T, E, Op, Fut>(
    policy: &RetryPolicy,
    dice: &Dice,
    is_transient: impl Fn(&E) -> bool,
    mut operation: Op,
) -> Result<T, E>
where
    Op: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut schedule = policy.schedule();
    let began = Instant::now();
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !is_transient(&error) {
            return Err(error);
        }
        match schedule.next_wait(began.elapsed(), dice) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const FAST: RetryPolicy = RetryPolicy {
        first: Duration::from_micros(10),
        max: Duration::from_micros(50),
        attempts: 4,
        deadline: Duration::from_secs(30),
    };

    async fn attempts(policy: &RetryPolicy, fail_first: u32, transient: bool) -> (Result<u32, u32>, u32) {
        let made = Cell::new(0);
        let result = retry(
            policy,
            &Dice::seeded(1),
            |_| transient,
            || {
                made.set(made.get() + 1);
                let n = made.get();
                async move { if n > fail_first { Ok(n) } else { Err(n) } }
            },
        )
        .await;
        (result, made.get())
    }

    #[tokio::test]
    async fn transient_errors_are_tried_again_and_others_not() {
        assert_eq!(attempts(&FAST, 2, true).await, (Ok(3), 3));
        assert_eq!(attempts(&FAST, 9, true).await, (Err(4), 4), "four attempts, and the last error");
        assert_eq!(attempts(&FAST, 9, false).await, (Err(1), 1));
        assert_eq!(attempts(&RetryPolicy::NEVER, 9, true).await, (Err(1), 1));
    }

    #[test]
    fn waits_are_fully_jittered_below_bounds_that_double() {
        let policy = RetryPolicy { attempts: 6, deadline: Duration::from_mins(1), ..RetryPolicy::QUICK };
        let bounds = [100, 200, 400, 800, 1600].map(Duration::from_millis);
        let mut largest = [Duration::ZERO; 5];
        let dice = Dice::seeded(7);
        for _ in 0..400 {
            let mut schedule = policy.schedule();
            for (bound, largest) in bounds.iter().zip(&mut largest) {
                let wait = schedule.next_wait(Duration::ZERO, &dice).expect("attempts are left");
                assert!(wait <= *bound, "{wait:?} > {bound:?}");
                *largest = wait.max(*largest);
            }
            assert_eq!(schedule.next_wait(Duration::ZERO, &dice), None, "six attempts have five waits");
        }
        for (bound, largest) in bounds.iter().zip(largest) {
            assert!(largest > *bound * 9 / 10, "the whole span up to {bound:?} is used, not {largest:?}");
        }
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let mut schedule = RetryPolicy { attempts: 100, ..RetryPolicy::QUICK }.schedule();
        let dice = Dice::seeded(3);
        assert!(schedule.next_wait(Duration::from_secs(1), &dice).is_some());
        assert_eq!(schedule.next_wait(Duration::from_secs(11), &dice), None);
    }

    #[test]
    fn the_same_dice_give_the_same_waits() {
        let waits = |seed| {
            let (dice, mut schedule) = (Dice::seeded(seed), RetryPolicy::PATIENT.schedule());
            (0..7).map(|_| schedule.next_wait(Duration::ZERO, &dice)).collect::<Vec<_>>()
        };
        assert_eq!(waits(5), waits(5));
        assert_ne!(waits(5), waits(6));
    }
}
