//! A circuit breaker: a store that fails again and again is left alone for a while.
//!
//! ```text
//!            5 failures in a row, or half of 20 calls or more within 10 s
//!   Closed ------------------------------------------------------------> Open
//!     ^                                                                  |  ^
//!     | the probe succeeds                       its time is over: the   |  | the probe fails: for longer
//!     |                                          next call is the probe  v  |
//!     +----------------------------------------------------------- HalfOpen
//! ```
//!
//! Calls that come while a probe is under way wait for what it finds, for a while: one request makes several calls, and
//! whoever makes the probe must not fail by the others. A call counts once, with its hedge. What says that the store is
//! alive is a success here, also an error such as "not found". A call that began before the state changed has no say in
//! the new state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Dice;
use crate::retry::{RetryPolicy, Schedule};

/// Failures in a row that open it.
const FAILURES_IN_A_ROW: u32 = 5;
/// Calls of the window below which a rate says nothing.
const CALLS_OF_A_RATE: u32 = 20;
/// Seconds of the window of the failure rate.
const WINDOW_S: usize = 10;
/// The shortest time it stays open.
const SHORTEST: Duration = Duration::from_millis(250);
/// What is added to that, with jitter: up to a second at first, up to 8 seconds while probes go on failing.
const OPEN: RetryPolicy = RetryPolicy {
    first: Duration::from_secs(1),
    max: Duration::from_secs(8),
    attempts: u32::MAX,
    deadline: Duration::MAX,
};

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets all of them through.
    Closed,
    /// Lets one through to find out.
    HalfOpen,
    /// Refuses them.
    Open,
}

impl BreakerState {
    /// The word for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }

    /// The value of the metric.
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The store answered.
    Alive,
    /// It did not, or said that it cannot.
    Failed,
    /// Nobody knows: the caller went away too early.
    Unknown,
}

/// One call that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    era: u64,
}

pub(super) struct Breaker {
    inner: Mutex<Inner>,
    dice: Arc<Dice>,
    /// Told of every change: from what, to what.
    changed: OnChange,
    /// Wakes those who wait for a probe.
    decided: Notify,
}

/// Told of a change of state, from the first to the second.
pub(super) type OnChange = Box<dyn Fn(BreakerState, BreakerState) + Send + Sync>;

/// Why a call is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is open for so long.
    Open(Duration),
    /// A probe is under way.
    Probing,
}

struct Inner {
    state: BreakerState,
    /// Grows with each change of state; a probe is the one call of its era.
    era: u64,
    /// Until when it is open.
    until: Instant,
    in_a_row: u32,
    window: Window,
    /// How long it stays open next time; a new one begins when a probe has succeeded.
    waits: Schedule,
}

/// Outcomes of the last seconds, by second.
struct Window {
    seconds: [(u64, u32, u32); WINDOW_S],
    began: Instant,
}

impl Window {
    fn new(began: Instant) -> Self {
        Self { seconds: [(0, 0, 0); WINDOW_S], began }
    }

    /// Counts a call and says whether the rate is too high.
    fn add(&mut self, failed: bool, now: Instant) -> bool {
        // One more than the seconds that passed, because 0 stands for a place that was never used.
        let second = now.saturating_duration_since(self.began).as_secs() + 1;
        let place = &mut self.seconds[second as usize % WINDOW_S];
        if place.0 != second {
            *place = (second, 0, 0);
        }
        place.1 += 1;
        place.2 += u32::from(failed);
        let recent = self.seconds.iter().filter(|(at, ..)| *at > 0 && at + WINDOW_S as u64 > second);
        let (calls, failures) = recent.fold((0, 0), |sum, (_, calls, failures)| (sum.0 + calls, sum.1 + failures));
        calls >= CALLS_OF_A_RATE && failures * 2 >= calls
    }
}

impl Inner {
    fn turn(&mut self, state: BreakerState) {
        self.state = state;
        self.era += 1;
        self.in_a_row = 0;
    }
}

impl Breaker {
    /// A closed one. `changed` is told of every change.
    pub(super) fn new(dice: Arc<Dice>, changed: OnChange) -> Self {
        let now = Instant::now();
        let inner = Inner {
            state: BreakerState::Closed,
            era: 0,
            until: now,
            in_a_row: 0,
            window: Window::new(now),
            waits: OPEN.schedule(),
        };
        Self { inner: Mutex::new(inner), dice, changed, decided: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No panic can happen between two changes that belong together.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> BreakerState {
        self.lock().state
    }

    /// Whether a call would be let through.
    pub(super) fn would_pass(&self, now: Instant) -> bool {
        let inner = self.lock();
        match inner.state {
            BreakerState::Closed => true,
            BreakerState::HalfOpen => false,
            BreakerState::Open => now >= inner.until,
        }
    }

    /// Lets a call through, or says why not. Whoever got a pass must settle it.
    pub(super) fn admit(&self, now: Instant) -> Result<Pass, Refusal> {
        let mut inner = self.lock();
        match inner.state {
            BreakerState::Closed => {}
            BreakerState::HalfOpen => return Err(Refusal::Probing),
            BreakerState::Open if now < inner.until => return Err(Refusal::Open(inner.until - now)),
            BreakerState::Open => self.turn(&mut inner, BreakerState::HalfOpen),
        }
        Ok(Pass { era: inner.era })
    }

    /// The same, but waits for a probe that is under way, at most so long.
    pub(super) async fn admit_within(&self, patience: Duration) -> Result<Pass, Refusal> {
        let give_up = Instant::now() + patience;
        loop {
            // Made before the look, so that nothing that happens between the two is missed.
            let decided = self.decided.notified();
            match self.admit(Instant::now()) {
                Err(Refusal::Probing) => {}
                told => return told,
            }
            if tokio::time::timeout_at(give_up, decided).await.is_err() {
                return Err(Refusal::Probing);
            }
        }
    }

    /// How long a call would be refused for; `None` when it would be let through, or wait for a probe.
    pub(super) fn refused_for(&self, now: Instant) -> Option<Duration> {
        let inner = self.lock();
        (inner.state == BreakerState::Open && now < inner.until).then(|| inner.until - now)
    }

    fn turn(&self, inner: &mut Inner, state: BreakerState) {
        let before = inner.state;
        inner.turn(state);
        (self.changed)(before, state);
        self.decided.notify_waiters();
    }

    /// What became of a call that was let through.
    pub(super) fn settle(&self, pass: Pass, outcome: Outcome, now: Instant) {
        let mut inner = self.lock();
        if pass.era != inner.era {
            return;
        }
        match (inner.state, outcome) {
            (BreakerState::Closed, Outcome::Unknown) | (BreakerState::Open, _) => {}
            (BreakerState::Closed, outcome) => {
                let failed = outcome == Outcome::Failed;
                inner.in_a_row = if failed { inner.in_a_row + 1 } else { 0 };
                let too_many = inner.window.add(failed, now);
                if failed && (too_many || inner.in_a_row >= FAILURES_IN_A_ROW) {
                    self.open(&mut inner, now);
                }
            }
            (BreakerState::HalfOpen, Outcome::Alive) => {
                inner.window = Window::new(now);
                inner.waits = OPEN.schedule();
                self.turn(&mut inner, BreakerState::Closed);
            }
            (BreakerState::HalfOpen, Outcome::Failed) => self.open(&mut inner, now),
            (BreakerState::HalfOpen, Outcome::Unknown) => {
                // Another call may try soon.
                inner.until = now + SHORTEST;
                self.turn(&mut inner, BreakerState::Open);
            }
        }
    }

    /// Somebody asked the store past the breaker, and it answered: no need to wait for longer.
    pub(super) fn seen_alive(&self, now: Instant) {
        let mut inner = self.lock();
        inner.until = inner.until.min(now);
    }

    fn open(&self, inner: &mut Inner, now: Instant) {
        let longer = inner.waits.next_wait(Duration::ZERO, &self.dice).unwrap_or(OPEN.max);
        inner.until = now + SHORTEST + longer;
        self.turn(inner, BreakerState::Open);
    }
}

#[cfg(test)]
mod tests {
    use super::BreakerState as S;
    use super::*;

    /// A breaker, a start, and the states it went through.
    fn breaker() -> (Breaker, Instant, Arc<Mutex<Vec<BreakerState>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let changed = Box::new(move |_: BreakerState, state| told.lock().expect("no panic").push(state));
        (Breaker::new(Arc::new(Dice::seeded(3)), changed), Instant::now(), seen)
    }

    fn call(breaker: &Breaker, outcome: Outcome, now: Instant) -> bool {
        let Ok(pass) = breaker.admit(now) else { return false };
        breaker.settle(pass, outcome, now);
        true
    }

    fn open(breaker: &Breaker, now: Instant) {
        for _ in 0..FAILURES_IN_A_ROW {
            assert!(call(breaker, Outcome::Failed, now));
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_success_between_them_does_not() {
        let (breaker, now, _) = breaker();
        for _ in 0..3 {
            for _ in 0..FAILURES_IN_A_ROW - 1 {
                assert!(call(&breaker, Outcome::Failed, now));
            }
            call(&breaker, Outcome::Unknown, now);
            assert!(call(&breaker, Outcome::Alive, now));
            // So that the rate has no say here.
            for _ in 0..20 {
                call(&breaker, Outcome::Alive, now);
            }
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        open(&breaker, now);
        assert!(!call(&breaker, Outcome::Alive, now), "nobody is let through");
    }

    #[test]
    fn half_of_the_calls_of_ten_seconds_open_it() {
        let (breaker, start, _) = breaker();
        let at = |second: u64| start + Duration::from_secs(second);
        for n in 0..u64::from(CALLS_OF_A_RATE) - 2 {
            assert!(call(&breaker, if n % 2 == 0 { Outcome::Failed } else { Outcome::Alive }, at(0)));
        }
        assert_eq!(breaker.state(), BreakerState::Closed, "too few calls for a rate");
        call(&breaker, Outcome::Alive, at(11));
        call(&breaker, Outcome::Failed, at(11));
        assert_eq!(breaker.state(), BreakerState::Closed, "what is long ago does not count");
        for n in 0..u64::from(CALLS_OF_A_RATE) {
            call(&breaker, if n % 2 == 0 { Outcome::Alive } else { Outcome::Failed }, at(12 + n / 4));
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn one_probe_decides() {
        let (breaker, start, seen) = breaker();
        open(&breaker, start);
        let later = start + SHORTEST + OPEN.first;
        assert!(breaker.would_pass(later) && !breaker.would_pass(start));
        let probe = breaker.admit(later).expect("its time is over");
        assert!(!breaker.would_pass(later) && breaker.admit(later).is_err(), "one only");
        breaker.settle(probe, Outcome::Failed, later);
        assert!(breaker.admit(later).is_err());
        let again = later + SHORTEST + 2 * OPEN.first;
        let probe = breaker.admit(again).expect("another one");
        breaker.settle(probe, Outcome::Unknown, again);
        let again = again + SHORTEST;
        let probe = breaker.admit(again).expect("one whose caller went away decides nothing");
        breaker.settle(probe, Outcome::Alive, again);
        assert_eq!(breaker.state(), BreakerState::Closed);
        let states = [S::Open, S::HalfOpen, S::Open, S::HalfOpen, S::Open, S::HalfOpen, S::Closed];
        assert_eq!(*seen.lock().expect("no panic"), states);
    }

    #[tokio::test]
    async fn calls_wait_for_the_probe_but_not_for_long() {
        let (breaker, now, _) = breaker();
        open(&breaker, now);
        assert!(matches!(breaker.admit_within(OPEN.max).await, Err(Refusal::Open(_))), "nobody waits while it is open");
        breaker.seen_alive(now);
        let probe = breaker.admit(Instant::now()).expect("its time is over");
        let patience = Duration::from_millis(20);
        assert_eq!(breaker.admit_within(patience).await, Err(Refusal::Probing));
        let (waited, ()) = tokio::join!(breaker.admit_within(OPEN.max), async {
            tokio::task::yield_now().await;
            breaker.settle(probe, Outcome::Alive, Instant::now());
        });
        assert!(waited.is_ok(), "the store is back for all who waited");
    }

    #[test]
    fn calls_from_before_have_no_say() {
        let (breaker, start, _) = breaker();
        let old: Vec<Pass> = (0..20).map(|_| breaker.admit(start).expect("closed")).collect();
        open(&breaker, start);
        breaker.settle(old[0], Outcome::Alive, start);
        assert_eq!(breaker.state(), BreakerState::Open, "a late success proves nothing");
        let later = start + SHORTEST + OPEN.first;
        let probe = breaker.admit(later).expect("its time is over");
        for pass in &old[1..] {
            breaker.settle(*pass, Outcome::Failed, later);
        }
        breaker.settle(probe, Outcome::Alive, later);
        for pass in &old {
            breaker.settle(*pass, Outcome::Failed, later);
        }
        assert_eq!(breaker.state(), BreakerState::Closed, "late failures neither");
    }

    #[test]
    fn it_stays_open_for_longer_while_probes_fail_but_not_for_ever() {
        let (breaker, mut now, _) = breaker();
        open(&breaker, now);
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            let until = breaker.lock().until;
            longest = longest.max(until - now);
            assert!(until - now >= SHORTEST && until - now <= SHORTEST + OPEN.max);
            now = until;
            assert!(call(&breaker, Outcome::Failed, now));
        }
        assert!(longest > OPEN.max / 2, "{longest:?}");
        let before = now;
        breaker.seen_alive(before);
        assert!(breaker.would_pass(before), "whoever asked past it and was answered ends the wait");
    }
}
