//! Who is served next: start-time fair queueing over jobs, by priority.
//!
//! Each priority has a virtual time: the start tag of the task served last. A job that has pending tasks stands in the
//! order with the start tag of its next task; serving it moves the tag on by `bytes / weight`. A job that becomes
//! backlogged starts at the virtual time or where it left off, whichever is later, so it can neither save up service
//! nor be made to wait for the past of others.
//!
//! Tags are doubles because Lua's numbers are: both engines do the same operations in the same order and agree to the
//! last bit. Single bytes are counted exactly up to 2^53 (9 PB at weight 1) of service per priority.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use crate::ids::JobId;
use crate::queue::JobShare;

/// A start tag: bytes of service per unit of weight. Never negative, never NaN.
#[derive(Clone, Copy, Debug, Default)]
struct VirtualTime(f64);

impl PartialEq for VirtualTime {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for VirtualTime {}
impl PartialOrd for VirtualTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for VirtualTime {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A job's place in the order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) share: JobShare,
    next_start: VirtualTime,
}

impl Place {
    /// The place of a job that was never served.
    pub(super) fn new(share: JobShare) -> Self {
        Self { share, next_start: VirtualTime::default() }
    }
}

/// The backlogged jobs in the order in which they are served.
#[derive(Debug, Default)]
pub(super) struct FairOrder {
    ready: BTreeMap<Reverse<i32>, BTreeSet<(VirtualTime, JobId)>>,
    virtual_times: BTreeMap<i32, VirtualTime>,
}

impl FairOrder {
    /// Whether a job has a task to serve.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Whether the job stands in the order.
    pub(super) fn contains(&self, job: JobId, place: &Place) -> bool {
        self.ready.get(&Reverse(place.share.priority)).is_some_and(|jobs| jobs.contains(&(place.next_start, job)))
    }

    /// Jobs in the order.
    pub(super) fn len(&self) -> usize {
        self.ready.values().map(BTreeSet::len).sum()
    }

    /// The job to serve next.
    pub(super) fn first(&self) -> Option<JobId> {
        self.ready.first_key_value().and_then(|(_, jobs)| jobs.first()).map(|&(_, job)| job)
    }

    /// The job has its first pending task.
    pub(super) fn join(&mut self, job: JobId, place: &mut Place) {
        place.next_start = place.next_start.max(self.virtual_time(place.share.priority));
        self.insert(job, place);
    }

    /// The job has no pending task any more.
    pub(super) fn leave(&mut self, job: JobId, place: &Place) {
        let priority = Reverse(place.share.priority);
        if let Some(jobs) = self.ready.get_mut(&priority) {
            jobs.remove(&(place.next_start, job));
            if jobs.is_empty() {
                self.ready.remove(&priority);
            }
        }
    }

    /// A task of the job is handed out. A task without bytes costs one, or it could be served for ever.
    pub(super) fn serve(&mut self, job: JobId, place: &mut Place, bytes: u64) {
        self.leave(job, place);
        self.virtual_times.insert(place.share.priority, place.next_start);
        place.next_start.0 += bytes.max(1) as f64 / f64::from(place.share.weight);
        self.insert(job, place);
    }

    /// The job competes differently from now on. What it is ahead of the virtual time is service it had in advance: it
    /// counts in the new priority, too, at the new weight, so that changing back and forth wins nothing.
    pub(super) fn change(&mut self, job: JobId, place: &mut Place, share: JobShare) {
        let stands = self.contains(job, place);
        if stands {
            self.leave(job, place);
        }
        let old = std::mem::replace(&mut place.share, share);
        if (old.priority, old.weight) != (share.priority, share.weight) {
            let ahead = (place.next_start.0 - self.virtual_time(old.priority).0).max(0.0);
            let ahead = ahead * f64::from(old.weight) / f64::from(share.weight);
            place.next_start = VirtualTime(self.virtual_time(share.priority).0 + ahead);
        }
        if stands {
            self.insert(job, place);
        }
    }

    /// No job is left: nothing remains to be fair about.
    pub(super) fn reset(&mut self) {
        self.ready.clear();
        self.virtual_times.clear();
    }

    fn virtual_time(&self, priority: i32) -> VirtualTime {
        self.virtual_times.get(&priority).copied().unwrap_or_default()
    }

    fn insert(&mut self, job: JobId, place: &Place) {
        self.ready.entry(Reverse(place.share.priority)).or_default().insert((place.next_start, job));
    }
}
