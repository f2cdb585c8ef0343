//! What every queue engine must do, as tests that run on any of them: each sentence of the trait's documentation.
//!
//! Durations are short so that the suite also runs on a clock nobody can hold ([`Engine::advance`] then waits).

mod claims;
mod control;
mod exchange;
mod fairness;
mod leases;
mod recovery;
mod views;

use std::time::Duration;

use async_trait::async_trait;

use super::{
    Checkpoint, HeldTask, JobShare, Lease, NewTask, QueueConfig, SharedQueue, TaskFailure, TaskTotals, TaskView,
    WorkerInfo,
};
use crate::ids::{FencingToken, JobId, TaskId, WorkerId};

/// An engine under test.
#[async_trait]
pub trait Engine: Send + Sync {
    /// The queue.
    fn queue(&self) -> SharedQueue;
    /// Lets at least this much time pass for the queue.
    async fn advance(&self, by: Duration);
    /// Makes the queue lose all it holds.
    async fn lose_everything(&self);
    /// The violated invariants.
    async fn audit(&self) -> Vec<String>;
}

/// Lease time of the suite.
const LEASE: Duration = Duration::from_millis(400);
const MAX_ATTEMPTS: u32 = 3;
/// Far longer than anything here takes: a wait of this length that ends early was ended by what it waited for.
const LONG: Duration = Duration::from_mins(1);
const SHARE: JobShare = JobShare { priority: 0, weight: 1, max_running: None };
const TOTALS: TaskTotals = TaskTotals { files_packed: 7, files_failed: 1, source_bytes: 700, stored_bytes: 300 };

/// The settings each case runs with.
pub fn config() -> QueueConfig {
    QueueConfig {
        namespace: "contract".to_owned(),
        lease: LEASE,
        max_attempts: MAX_ATTEMPTS,
        backoff_base: Duration::from_millis(50),
        backoff_max: Duration::from_millis(80),
    }
}

/// Runs every case, each on an engine of its own from `make`. Panics at the first broken promise.
pub async fn run(make: impl AsyncFn(QueueConfig) -> Box<dyn Engine>) {
    macro_rules! cases {
        ($($module:ident :: $name:ident),+ $(,)?) => {$(
            let engine = make(config()).await;
            $module::$name(&*engine).await;
            assert_eq!(engine.audit().await, [""; 0], "after {}", stringify!($name));
        )+};
    }
    cases!(
        claims::jobs_and_tasks_are_added_once,
        claims::tasks_come_in_number_order_with_growing_tokens,
        claims::higher_priority_goes_first,
        claims::bytes_are_shared_by_weight,
        claims::a_small_job_is_served_next,
        claims::tasks_without_bytes_take_turns,
        claims::an_idle_job_saves_up_nothing,
        claims::concurrent_claimers_never_share_a_task,
        claims::waiting_ends_with_work,
        claims::waiting_ends_when_a_retry_is_due,
        claims::a_failure_sets_the_alarm_of_who_waits,
        claims::no_wake_up_is_lost,
        leases::each_change_asks_for_the_token,
        leases::a_final_task_takes_no_token,
        leases::an_expired_lease_passes_on,
        leases::heartbeats_keep_leases,
        leases::checkpoints_are_progress,
        leases::a_dropped_checkpoint_is_gone,
        leases::release_costs_nothing,
        leases::failures_are_tried_again_then_given_up,
        leases::permanent_failures_are_given_up_at_once,
        leases::a_task_that_takes_its_workers_down_dies,
        leases::a_tick_is_bounded,
        leases::a_commit_may_be_repeated,
        views::settle_takes_any_task_to_its_end,
        views::counters_and_tasks_agree,
        views::a_forgotten_job_leaves_nothing,
        views::stats_count_and_age,
        views::workers_come_and_go,
        views::locks_have_one_holder,
        views::nonsense_is_refused,
        control::a_paused_job_is_not_served,
        control::holders_of_a_paused_job_hand_back,
        control::resuming_wakes_who_waits,
        control::cancelling_takes_bounded_steps,
        control::a_cancelled_job_stays_cancelled,
        control::housekeeping_ends_the_tasks_of_a_cancelled_job,
        control::failed_attempts_leave_a_history,
        control::a_dead_task_keeps_its_checkpoint,
        control::waiting_bytes_are_those_nobody_packs,
        control::workers_show_what_they_hold,
        control::a_sound_queue_needs_no_repair,
        control::an_audit_of_a_busy_queue_names_nothing,
        exchange::an_exchange_commits_and_claims_as_much_again,
        exchange::one_refused_task_keeps_no_other_from_its_commit,
        exchange::a_repeated_exchange_commits_once,
        exchange::an_exchange_goes_by_the_same_order,
        exchange::holds_and_caps_count_within_an_exchange,
        exchange::checkpoints_and_histories_end_with_an_exchange,
        exchange::an_exchange_is_bounded,
        fairness::shares_of_three_jobs_are_within_two_percent,
        fairness::a_small_job_behind_ten_thousand_tasks_is_next,
        fairness::a_cap_bounds_what_runs,
        fairness::a_capped_job_saves_up_nothing,
        fairness::priorities_and_weights_change_while_jobs_run,
        fairness::changing_back_and_forth_wins_nothing,
        recovery::everything_may_be_lost,
    );
}

fn job(n: u8) -> JobId {
    JobId::from_parts(1_700_000_000_000 + u64::from(n), [n; 10])
}

fn worker(n: u8) -> WorkerInfo {
    WorkerInfo { id: WorkerId::from_random([n; 16]), name: format!("host-{n} ü:1"), slots: u32::from(n) }
}

fn sized(sizes: &[u64]) -> Vec<NewTask> {
    (0..).zip(sizes).map(|(number, &source_bytes)| NewTask { number, source_bytes }).collect()
}

/// Makes a job with tasks of these sizes.
async fn submit(queue: &SharedQueue, job: JobId, share: JobShare, sizes: &[u64]) {
    queue.add_job(job, share).await.expect("add a job");
    assert_eq!(queue.add_tasks(job, &sized(sizes)).await.expect("add tasks"), sizes.len() as u64);
}

/// Claims the one task that must be there.
async fn claim(queue: &SharedQueue, n: u8) -> Lease {
    let mut leases = queue.claim(&worker(n), 1).await.expect("claim");
    assert_eq!(leases.len(), 1, "a task waits");
    leases.remove(0)
}

/// The task as the queue shows it.
async fn view(queue: &SharedQueue, task: TaskId) -> TaskView {
    let tasks = queue.tasks(task.job, task.number, 1).await.expect("list tasks");
    tasks.into_iter().find(|view| view.number == task.number).expect("the task is known")
}

fn checkpoint(parts: u32) -> Checkpoint {
    Checkpoint {
        upload_id: "upload ä:|\"".to_owned(),
        parts,
        writers: vec![(FencingToken(3), 1), (FencingToken(u64::MAX), parts)],
        next_file: parts * 10,
        offset: u64::from(parts) * 1000,
        files_packed: u64::from(parts) * 9,
        files_failed: u64::from(parts),
        source_bytes: u64::from(parts) * 2000,
    }
}

/// A lease as its holder names it in a heartbeat.
fn held(task: TaskId, token: FencingToken) -> HeldTask {
    HeldTask { task, token, done_bytes: 0 }
}

fn failure(permanent: bool, message: &str) -> TaskFailure {
    TaskFailure { permanent, message: message.to_owned() }
}

/// What the checkpoint adds to its job.
fn in_progress(parts: u32) -> TaskTotals {
    super::values::progress(&checkpoint(parts))
}
