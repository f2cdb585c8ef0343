//! How fast jobs go: what was packed lately, remembered for a minute.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use des_shared::ids::JobId;

/// Jobs whose pace is kept in memory.
const REMEMBERED: usize = 1000;
/// How far back a rate looks, ms.
const WINDOW_MS: u64 = 60_000;
/// Two notes of one job are at least so far apart, ms.
const APART_MS: u64 = 500;
/// A rate over less time than this says nothing, ms.
const SHORTEST_MS: u64 = 2_000;

/// Source bytes packed, by time.
type Notes = VecDeque<(u64, u64)>;

/// The pace of jobs. Bounded: a few hundred numbers for each of the newest jobs.
#[derive(Debug, Default)]
pub(crate) struct Paces {
    jobs: Mutex<BTreeMap<JobId, Notes>>,
}

impl Paces {
    /// Notes that a job has packed so many source bytes by now.
    pub(crate) fn note(&self, job: JobId, now_ms: u64, bytes: u64) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let notes = jobs.entry(job).or_default();
        if notes.back().is_some_and(|(at, before)| *before > bytes || *at > now_ms) {
            // The queue lost data, or the clock was set back: what was noted means nothing any more.
            notes.clear();
        }
        if notes.back().is_none_or(|(at, _)| at + APART_MS <= now_ms) {
            notes.push_back((now_ms, bytes));
        }
        while notes.len() > 2 && notes[1].0 + WINDOW_MS <= now_ms {
            notes.pop_front();
        }
        if jobs.len() > REMEMBERED {
            // The oldest job is the least likely to be asked for.
            jobs.pop_first();
        }
    }

    /// Source bytes a second over the last minute; `None` when too little is known.
    pub(crate) fn rate(&self, job: JobId, now_ms: u64) -> Option<f64> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let notes = jobs.get(&job)?;
        let (first, last) = (notes.front()?, notes.back()?);
        let time = last.0 - first.0;
        if time < SHORTEST_MS || last.0 + WINDOW_MS < now_ms {
            return None;
        }
        Some((last.1 - first.1) as f64 * 1000.0 / time as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: u64) -> JobId {
        JobId::from_parts(n, [0; 10])
    }

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let paces = Paces::default();
        paces.note(job(1), 0, 0);
        assert_eq!(paces.rate(job(1), 0), None, "one note is no rate");
        paces.note(job(1), 1_000, 5_000);
        assert_eq!(paces.rate(job(1), 1_000), None, "a second says too little");
        paces.note(job(1), 2_000, 20_000);
        assert_eq!(paces.rate(job(1), 2_000), Some(10_000.0));
        // Nothing comes for two minutes: the rate falls to nothing.
        for at in 1..=240 {
            paces.note(job(1), 2_000 + at * 500, 20_000);
        }
        assert_eq!(paces.rate(job(1), 122_000), Some(0.0));
        assert_eq!(paces.rate(job(1), 300_000), None, "what nobody looked at lately is unknown");
        assert_eq!(paces.rate(job(2), 0), None);
    }

    #[test]
    fn a_loss_begins_again() {
        let paces = Paces::default();
        paces.note(job(1), 0, 1_000_000);
        paces.note(job(1), 10_000, 2_000_000);
        paces.note(job(1), 20_000, 1_500_000);
        assert_eq!(paces.rate(job(1), 20_000), None);
        paces.note(job(1), 22_000, 1_500_200);
        assert_eq!(paces.rate(job(1), 22_000), Some(100.0));
    }

    #[test]
    fn memory_is_bounded() {
        let paces = Paces::default();
        for n in 0..2 * REMEMBERED as u64 {
            paces.note(job(n), n, n);
        }
        assert_eq!(paces.jobs.lock().expect("no panic").len(), REMEMBERED);
        for at in 0..10_000 {
            paces.note(job(u64::from(u32::MAX)), at * 100, at);
        }
        let jobs = paces.jobs.lock().expect("no panic");
        assert!(jobs[&job(u64::from(u32::MAX))].len() <= (WINDOW_MS / APART_MS) as usize + 2);
    }
}
