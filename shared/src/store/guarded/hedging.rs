//! When a call that takes too long is sent a second time, and how often that may be done.
//!
//! - The delay is learnt from recent calls of the same kind: about as long as all but the slowest take, so that the
//!   calls that reach it fit the budget. Where more than that are slow, twice the 90th percentile bounds it: otherwise a
//!   few slow calls too many in the window would make slow the new normal. Never less than twice the median: where the
//!   slowest usual calls are not much slower than the others, a second one would hardly overtake them, and a store that
//!   is busy would only have more to do.
//! - The budget: every call earns a share of a token, a second call costs one, and at first there are none. So there are
//!   never more than that share of second calls, from the first call on. A call that finds no token looks again later.
//! - Only reads are sent twice, and only small ones.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::ByteRange;

/// Calls of a kind that are remembered.
const REMEMBERED: usize = 1024;
/// Calls below which nothing is known.
const ENOUGH: usize = 64;
/// Calls after which the delay is computed anew.
const EVERY: usize = 32;
/// Tokens kept for bad times.
const MOST_TOKENS: f64 = 50.0;
/// How much of the budget calls of usual slowness may use up; the rest is for bad times.
const USUAL_USE: f64 = 0.83;
/// No second call before this, however quick the store is: it would cost more than it saves.
const FLOOR: Duration = Duration::from_millis(2);
/// Reads above this are never sent twice: the bytes would cost more than the time.
const MOST_BYTES: u64 = 1 << 20;

/// Calls that take about as long as each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Head,
    List,
    /// Up to 16 KiB.
    Small,
    /// Up to 256 KiB.
    Medium,
    /// Up to [`MOST_BYTES`].
    Large,
    /// The beginning of a stream.
    Stream,
}

const KINDS: usize = 6;

impl Kind {
    /// The kind of a read into memory; `None` for what is not sent twice.
    pub(super) fn of_read(range: &ByteRange) -> Option<Self> {
        match length(range)? {
            0..=0x4000 => Some(Self::Small),
            0x4001..=0x4_0000 => Some(Self::Medium),
            0x4_0001..=MOST_BYTES => Some(Self::Large),
            _ => None,
        }
    }
}

/// How many bytes a range asks for at most, where it says so.
pub(super) fn length(range: &ByteRange) -> Option<u64> {
    match range {
        ByteRange::Full => None,
        ByteRange::Span(span) => Some(span.end.saturating_sub(span.start)),
        ByteRange::Suffix(n) => Some(*n),
    }
}

pub(super) struct Hedging {
    /// Second calls for each call, 0 to 1.
    share: f64,
    tokens: Mutex<f64>,
    kinds: [Mutex<Latencies>; KINDS],
}

#[derive(Default)]
struct Latencies {
    recent: VecDeque<Duration>,
    since: usize,
    delay: Option<Duration>,
}

impl Latencies {
    fn add(&mut self, took: Duration, share: f64) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
        self.since += 1;
        if self.recent.len() >= ENOUGH && (self.since >= EVERY || self.delay.is_none()) {
            self.since = 0;
            let mut recent: Vec<Duration> = self.recent.iter().copied().collect();
            // Not sorted: two numbers are wanted, and this is done for every call of a near store.
            #[expect(clippy::cast_sign_loss, reason = "quantiles are not below zero")]
            let mut at = |quantile: f64| {
                let place = ((recent.len() - 1) as f64 * quantile) as usize;
                *recent.select_nth_unstable(place).1
            };
            let (most, least) = (at(0.9) * 2, at(0.5) * 2);
            self.delay = Some(at(1.0 - share * USUAL_USE).clamp(least, most).max(FLOOR));
        }
    }
}

impl Hedging {
    /// With at most `share` second calls for each call.
    pub(super) fn new(share: f64) -> Self {
        Self { share: share.clamp(0.0, 1.0), tokens: Mutex::new(0.0), kinds: Default::default() }
    }

    fn tokens(&self) -> MutexGuard<'_, f64> {
        // A number is a number.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latencies(&self, kind: Kind) -> MutexGuard<'_, Latencies> {
        // A panic leaves at most a delay that is computed anew later.
        self.kinds[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins. After how long a second one would help; `None` while nothing is known.
    pub(super) fn call_began(&self, kind: Kind) -> Option<Duration> {
        if self.share <= 0.0 {
            return None;
        }
        let mut tokens = self.tokens();
        *tokens = (*tokens + self.share).min(MOST_TOKENS);
        drop(tokens);
        self.latencies(kind).delay
    }

    /// A call took so long, or would have taken longer.
    pub(super) fn call_took(&self, kind: Kind, took: Duration) {
        if self.share > 0.0 {
            self.latencies(kind).add(took, self.share);
        }
    }

    /// Whether the budget has room for a second call; it is spent then.
    pub(super) fn spend(&self) -> bool {
        let mut tokens = self.tokens();
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_delay_is_that_of_the_slowest_usual_calls() {
        let hedging = Hedging::new(0.03);
        for _ in 0..ENOUGH - 1 {
            assert_eq!(hedging.call_began(Kind::Small), None);
            hedging.call_took(Kind::Small, ms(10));
        }
        for n in 0..REMEMBERED as u64 {
            // Mostly 6 ms, some up to 20 ms, and two of a hundred slow.
            let usual = if n % 4 == 0 { ms(10 + n % 11) } else { ms(6) };
            hedging.call_took(Kind::Small, if n % 50 == 7 { ms(500) } else { usual });
        }
        let delay = hedging.call_began(Kind::Small).expect("known");
        assert!((ms(18)..=ms(20)).contains(&delay), "{delay:?}");
        assert_eq!(hedging.call_began(Kind::List), None, "of another kind nothing is known");
        // Too many slow calls for the budget: the delay does not become theirs.
        for n in 0..REMEMBERED as u64 {
            hedging.call_took(Kind::Small, if n % 12 == 7 { ms(500) } else { ms(10 + n % 11) });
        }
        let delay = hedging.call_began(Kind::Small).expect("known");
        assert!(delay <= ms(40), "{delay:?}");
        // All about the same: one that waits for longer than two others would have taken is no usual one.
        for n in 0..REMEMBERED as u64 {
            hedging.call_took(Kind::Medium, ms(10 + n % 3));
        }
        assert_eq!(hedging.call_began(Kind::Medium), Some(ms(22)));
        for _ in 0..REMEMBERED {
            hedging.call_took(Kind::Head, Duration::from_micros(80));
        }
        assert_eq!(hedging.call_began(Kind::Head), Some(FLOOR));
    }

    #[test]
    fn the_budget_is_never_overdrawn() {
        let hedging = Hedging::new(0.03);
        assert!(!hedging.spend(), "nothing is lent");
        let (mut calls, mut second) = (0_u32, 0_u32);
        for _ in 0..20_000 {
            calls += 1;
            hedging.call_began(Kind::Small);
            second += u32::from(hedging.spend());
            assert!(f64::from(second) <= f64::from(calls) * 0.03 + 1e-9);
        }
        assert!(second > 590, "and it is used: {second}");
        for _ in 0..100_000 {
            hedging.call_began(Kind::Small);
        }
        let saved = (0..1000).filter(|_| hedging.spend()).count();
        assert!((49..=50).contains(&saved), "no more than that is kept: {saved}");
        let off = Hedging::new(0.0);
        off.call_took(Kind::Small, ms(1));
        assert!(off.call_began(Kind::Small).is_none() && !off.spend());
    }

    #[test]
    fn long_reads_are_not_sent_twice() {
        let kind = |range| Kind::of_read(&range);
        assert_eq!(kind(ByteRange::Span(5..6)), Some(Kind::Small));
        assert_eq!(kind(ByteRange::Suffix(65_536)), Some(Kind::Medium));
        assert_eq!(kind(ByteRange::Span(0..MOST_BYTES)), Some(Kind::Large));
        assert_eq!(kind(ByteRange::Span(0..MOST_BYTES + 1)), None);
        assert_eq!(kind(ByteRange::Full), None);
    }
}
