//! How many calls a store gets at the same time: up to a ceiling, and fewer after it asked for fewer.
//!
//! Additive increase, multiplicative decrease: "slow down" halves the limit, at most once in a while because many calls
//! hear it at the same time, and every success brings it up by the inverse of the limit, which is one more for each
//! round of calls. Whoever finds no place waits in line; the line is bounded.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The least a limit can become: somebody has to find out that the store takes more again.
const LEAST: usize = 1;
/// Calls that heard "slow down" within this time heard the same one.
const SAME_WORD: Duration = Duration::from_millis(200);

pub(super) struct Limiter {
    places: Semaphore,
    state: Mutex<State>,
    waiting: AtomicUsize,
    ceiling: usize,
    line: usize,
}

struct State {
    /// What is aimed at.
    limit: f64,
    /// Permits there are, given out or not: above the limit until enough of them have come back.
    permits: usize,
    cut: Option<Instant>,
}

/// A place among the calls under way. Dropping it gives it back.
pub(super) struct Place<'a> {
    limiter: &'a Limiter,
    permit: Option<SemaphorePermit<'a>>,
}

/// A place in the line, while waiting.
struct InLine<'a>(&'a AtomicUsize);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Limiter {
    /// `ceiling` calls at a time, and up to `line` that wait.
    pub(super) fn new(ceiling: usize, line: usize) -> Self {
        let ceiling = ceiling.clamp(LEAST, Semaphore::MAX_PERMITS);
        let state = State { limit: ceiling as f64, permits: ceiling, cut: None };
        Self { places: Semaphore::new(ceiling), state: Mutex::new(state), waiting: AtomicUsize::new(0), ceiling, line }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can happen between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place; `None` when too many wait already.
    pub(super) async fn enter(&self) -> Option<Place<'_>> {
        if let Some(place) = self.try_enter() {
            return Some(place);
        }
        let in_line = InLine(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.line {
            return None;
        }
        let permit = self.places.acquire().await.expect("never closed");
        drop(in_line);
        Some(Place { limiter: self, permit: Some(permit) })
    }

    /// A place if there is one now. Nobody in line is passed by: places of those who wait are theirs already.
    pub(super) fn try_enter(&self) -> Option<Place<'_>> {
        let permit = self.places.try_acquire().ok()?;
        Some(Place { limiter: self, permit: Some(permit) })
    }

    /// The store asked for fewer calls. True when the limit was cut.
    pub(super) fn slow_down(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if state.cut.is_some_and(|cut| now.saturating_duration_since(cut) < SAME_WORD) {
            return false;
        }
        state.cut = Some(now);
        // Half of what was really under way: half of a ceiling that nobody reached would change nothing.
        let under_way = state.permits.saturating_sub(self.places.available_permits());
        state.limit = (state.limit.min(under_way as f64) / 2.0).max(LEAST as f64);
        self.fit(&mut state);
        true
    }

    /// A call succeeded. True when the limit rose.
    pub(super) fn succeeded(&self) -> bool {
        let mut state = self.lock();
        let cut = state.limit < self.ceiling as f64;
        if cut {
            state.limit = (state.limit + 1.0 / state.limit).min(self.ceiling as f64);
            self.fit(&mut state);
        }
        cut
    }

    /// The limit as it is now, in calls.
    pub(super) fn limit(&self) -> usize {
        self.lock().calls()
    }

    /// True while the store has asked for fewer calls and has not taken all of them again.
    pub(super) fn is_cut(&self) -> bool {
        self.lock().limit < self.ceiling as f64
    }

    /// Brings the number of permits to the limit, as far as that goes now.
    fn fit(&self, state: &mut State) {
        let wanted = state.calls();
        if state.permits < wanted {
            self.places.add_permits(wanted - state.permits);
            state.permits = wanted;
        } else if state.permits > wanted {
            state.permits -= self.places.forget_permits(state.permits - wanted);
        }
    }
}

impl State {
    /// The limit in whole calls.
    #[expect(clippy::cast_sign_loss, reason = "a limit is at least one call")]
    fn calls(&self) -> usize {
        self.limit as usize
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        let Some(permit) = self.permit.take() else { return };
        if state.permits > state.calls() {
            state.permits -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn waiting(limiter: &Limiter) -> usize {
        limiter.waiting.load(Ordering::Relaxed)
    }

    fn enter(limiter: &Limiter) -> Place<'_> {
        limiter.enter().now_or_never().expect("no waiting").expect("a place")
    }

    #[tokio::test]
    async fn the_ceiling_and_the_line_are_bounds() {
        let limiter = Limiter::new(2, 1);
        let (first, _second) = (enter(&limiter), enter(&limiter));
        let mut third = Box::pin(limiter.enter());
        assert!((&mut third).now_or_never().is_none(), "it waits");
        assert_eq!(waiting(&limiter), 1);
        assert!(limiter.enter().await.is_none(), "the line is full");
        assert!(limiter.try_enter().is_none());
        assert_eq!(waiting(&limiter), 1, "whoever was turned away does not wait");
        drop(first);
        assert!(third.await.is_some());
        assert_eq!(waiting(&limiter), 0);
    }

    #[tokio::test]
    async fn slow_down_halves_what_is_under_way_and_successes_bring_it_back() {
        let (limiter, now) = (Limiter::new(100, 10), Instant::now());
        let mut places: Vec<Place<'_>> = (0..40).map(|_| enter(&limiter)).collect();
        assert!(limiter.slow_down(now));
        assert!(!limiter.slow_down(now + SAME_WORD / 2), "all calls under way heard the same word");
        assert_eq!(limiter.limit(), 20);
        assert!(limiter.try_enter().is_none(), "40 are under way");
        places.truncate(20);
        assert!(limiter.try_enter().is_none(), "20 still are");
        places.truncate(19);
        places.push(enter(&limiter));
        assert!(limiter.slow_down(now + SAME_WORD));
        assert_eq!(limiter.limit(), 10);
        drop(places);
        let rounds = |count: usize| {
            for _ in 0..count {
                limiter.succeeded();
            }
        };
        rounds(11);
        assert_eq!(limiter.limit(), 11, "one more for a round of calls");
        rounds(100 * 100);
        assert_eq!(limiter.limit(), 100);
        let all: Vec<Place<'_>> = (0..100).map(|_| enter(&limiter)).collect();
        assert!(limiter.try_enter().is_none() && all.len() == 100);
        assert!(!limiter.is_cut());
    }

    #[tokio::test]
    async fn one_call_is_always_possible() {
        let (limiter, now) = (Limiter::new(8, 4), Instant::now());
        for n in 0..10 {
            limiter.slow_down(now + SAME_WORD * n);
        }
        let only = enter(&limiter);
        let mut next = Box::pin(limiter.enter());
        assert!((&mut next).now_or_never().is_none());
        drop(only);
        assert!(next.await.is_some());
    }

    #[tokio::test]
    async fn whoever_stops_waiting_takes_nothing_along() {
        let limiter = Limiter::new(1, 4);
        let only = enter(&limiter);
        let mut gone = Box::pin(limiter.enter());
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        assert_eq!(waiting(&limiter), 0);
        drop(only);
        assert!(limiter.try_enter().is_some());
    }
}
