//! The invariants of the in-memory queue, checked.

use super::state::{Hold, State, waits};
use crate::ids::TaskId;
use crate::queue::TaskState;

/// Every violated invariant, in words. Each task is in exactly one state, each index holds exactly the tasks of its
/// state, and each counter is what counting gives.
pub(super) fn violations(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    let (mut waiting, mut leases, mut delayed, mut dead, mut ready) = (0, 0, 0, 0, 0);
    let (mut paused, mut waiting_bytes) = (0, 0);
    for (&job, entry) in &state.jobs {
        for (&number, task) in &entry.tasks {
            let id = TaskId { job, number };
            if (task.state == TaskState::Pending) != entry.pending.contains(&number) {
                found.push(format!("task {id} is {:?} and its job's pending set says otherwise", task.state));
            }
            if (task.state == TaskState::Leased) != task.worker.is_some() {
                found.push(format!("task {id} is {:?} and its worker is {:?}", task.state, task.worker));
            }
            waiting_bytes += if waits(task.state) { task.bytes } else { 0 };
            let (index, count) = match task.state {
                TaskState::Pending => (&state.waiting, &mut waiting),
                TaskState::Leased => (&state.leases, &mut leases),
                TaskState::Delayed => (&state.delayed, &mut delayed),
                TaskState::Dead => {
                    dead += 1;
                    continue;
                }
                TaskState::Committed if task.checkpoint.is_some() => {
                    found.push(format!("task {id} is committed and still has a checkpoint"));
                    continue;
                }
                TaskState::Committed | TaskState::Cancelled => continue,
            };
            *count += 1;
            if !index.contains(&(task.at, id)) {
                found.push(format!("task {id} is {:?} and not in the index of that state", task.state));
            }
        }
        let counted = entry.count();
        if counted != entry.counters {
            found.push(format!("job {job}: counters are {:?}, counting gives {counted:?}", entry.counters));
        }
        paused += if entry.hold == Hold::Paused { counted.pending } else { 0 };
        ready += usize::from(entry.is_ready());
        if entry.is_ready() != state.order.contains(job, &entry.place) {
            found.push(format!("job {job} has {} pending tasks; its place says otherwise", entry.pending.len()));
        }
    }
    let sizes = [
        ("waiting", state.waiting.len() as u64, waiting),
        ("leases", state.leases.len() as u64, leases),
        ("delayed", state.delayed.len() as u64, delayed),
        ("dead", state.dead, dead),
        ("paused", state.paused, paused),
        ("waiting bytes", state.waiting_bytes, waiting_bytes),
        ("ready jobs", state.order.len() as u64, ready as u64),
    ];
    for (name, size, counted) in sizes {
        if size != counted {
            found.push(format!("{name}: {size} are kept; the tasks account for {counted}"));
        }
    }
    found
}
