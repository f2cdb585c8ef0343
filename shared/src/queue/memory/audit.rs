//! The invariants of the in-memory queue, checked.

use super::state::{State, counter};
use crate::ids::TaskId;
use crate::queue::values::progress;
use crate::queue::{JobCounters, TaskState, TaskTotals};

/// Every violated invariant, in words. Each task is in exactly one state, each index holds exactly the tasks of its
/// state, and each counter is what counting gives.
pub(super) fn violations(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    let (mut waiting, mut leases, mut delayed, mut dead, mut ready) = (0, 0, 0, 0, 0);
    for (&job, entry) in &state.jobs {
        let mut counted = JobCounters::default();
        for (&number, task) in &entry.tasks {
            let id = TaskId { job, number };
            *counter(&mut counted, task.state) += 1;
            counted.totals.change(&task.totals, &TaskTotals::default());
            if let Some(checkpoint) = &task.checkpoint {
                counted.in_progress.change(&progress(checkpoint), &TaskTotals::default());
            }
            if (task.state == TaskState::Pending) != entry.pending.contains(&number) {
                found.push(format!("task {id} is {:?} and its job's pending set says otherwise", task.state));
            }
            if (task.state == TaskState::Leased) != task.worker.is_some() {
                found.push(format!("task {id} is {:?} and its worker is {:?}", task.state, task.worker));
            }
            let (index, count) = match task.state {
                TaskState::Pending => (&state.waiting, &mut waiting),
                TaskState::Leased => (&state.leases, &mut leases),
                TaskState::Delayed => (&state.delayed, &mut delayed),
                TaskState::Dead => {
                    dead += 1;
                    continue;
                }
                TaskState::Committed | TaskState::Cancelled => continue,
            };
            *count += 1;
            if !index.contains(&(task.at, id)) {
                found.push(format!("task {id} is {:?} and not in the index of that state", task.state));
            }
        }
        if counted != entry.counters {
            found.push(format!("job {job}: counters are {:?}, counting gives {counted:?}", entry.counters));
        }
        ready += usize::from(!entry.pending.is_empty());
        if entry.pending.is_empty() == state.order.contains(job, &entry.place) {
            found.push(format!("job {job} has {} pending tasks; its place says otherwise", entry.pending.len()));
        }
    }
    let sizes = [
        ("waiting", state.waiting.len(), waiting),
        ("leases", state.leases.len(), leases),
        ("delayed", state.delayed.len(), delayed),
        ("dead", state.dead as usize, dead),
        ("ready jobs", state.order.len(), ready),
    ];
    for (name, size, counted) in sizes {
        if size != counted {
            found.push(format!("{name} has {size} entries; the tasks account for {counted}"));
        }
    }
    found
}
