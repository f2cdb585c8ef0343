//! What would be logged for every request is logged once a second, with how often it was kept back: a store that goes down
//! under load would fill the log with one line thousands of times.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the same thing is said.
const EVERY: Duration = Duration::from_secs(1);

/// What was said of one thing.
#[derive(Debug, Default)]
pub(crate) struct Told {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Told {
    /// Whether it is time to say it at `now`: then how often it was kept back since the last time.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        // A panic cannot leave these two half changed.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, kept_back) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            *kept_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_second_with_what_was_kept_back() {
        let (told, now) = (Told::default(), Instant::now());
        let after = |millis| told.due(now + Duration::from_millis(millis));
        assert_eq!([0, 1, 999, 1000, 1001, 5000].map(after), [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
