//! Coordinators that die, a queue that forgets, tasks that nobody finished.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use des_coordinator::Coordinator;
use des_shared::clock::{Clock, ManualClock, SystemClock};
use des_shared::ids::{JobId, TaskId};
use des_shared::job::JobState;
use des_shared::layout;
use des_shared::queue::{Queue, TaskState, TaskTotals};
use des_shared::receipt::{FailedFile, FailureReason, Receipt};
use des_shared::service::Shutdown;
use des_shared::store::WriteOptions;
use futures::TryStreamExt;
use serde_json::json;

use crate::doubles::Fate;
use crate::harness::{World, lines, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_cut_off_by_death_is_continued_by_another_coordinator() {
    let world = World::new();
    // The first coordinator has a runtime of its own, so that it can die with everything it was doing.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    world.moods.rule(
        |operation, key| {
            if operation == "put" && key.ends_with("/00000003.bin") { Fate::Hang } else { Fate::Pass }
        },
    );
    let (config, deps) = (world.config(), world.deps());
    let running = runtime
        .spawn(async move { Coordinator::start(config, deps, Shutdown::new()).await })
        .await
        .expect("no panic")
        .expect("it starts");
    let url = format!("http://{}/v1/jobs?max_shard_size=10", running.local_addr());
    let request = reqwest::Client::new().post(url).header("content-type", "application/x-ndjson").body(lines(40));
    let answer = crate::harness::Answer::of(request.send().await.expect("an answer")).await;
    let job = answer.id();
    world.moods.hung.notified().await;
    runtime.shutdown_background();
    drop(running);
    let written = world.keys(&format!("jobs/{job}/segments/")).await.len();
    assert!(written < 40, "it died half way");
    assert!(world.state.plan(job).await.expect("a read").is_none());

    world.moods.rule(|_, _| Fate::Pass);
    let service = world.start().await;
    assert_eq!(world.planned(job).await.tasks.len(), 40);
    assert_eq!(world.keys(&format!("jobs/{job}/segments/")).await.len(), 40);
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.files_packed, 40);
    service.stop().await;
}

#[tokio::test]
async fn planning_stopped_by_a_shutdown_goes_on_at_once_elsewhere() {
    let mut world = World::new();
    // Long enough that only the handed back lock explains a quick start.
    world.limits.lock = Duration::from_mins(10);
    world.moods.rule(
        |operation, key| {
            if operation == "put" && key.ends_with("/plan.json") { Fate::Hang } else { Fate::Pass }
        },
    );
    let first = world.start().await;
    let job = first.submit_lines("", lines(10)).await.id();
    world.moods.hung.notified().await;
    first.stop().await;
    world.moods.rule(|_, _| Fate::Pass);
    let second = world.start().await;
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.files_packed, 10);
    second.stop().await;
}

#[tokio::test]
async fn a_queue_that_lost_everything_is_refilled_and_committed_tasks_do_not_run_again() {
    let world = World::new();
    let services = [world.start().await, world.start().await];
    let job = services[0].submit_lines("?max_shard_size=10", lines(30)).await.id();
    world.planned(job).await;
    let first = world.claim(10).await;
    world.pack(&first).await;
    let committed: BTreeSet<TaskId> = first.iter().map(|lease| lease.task).collect();
    // A worker wrote its receipt, and the queue forgets before it could say so.
    let unsaid = world.claim(1).await;
    world.write_receipt(&unsaid[0]).await;

    world.memory.lose_everything();
    until("the queue to be refilled", async || {
        let counters = world.memory.job(job).await.expect("counters")?;
        (counters.open() + counters.committed == 30).then_some(())
    })
    .await;
    let counters = world.memory.job(job).await.expect("counters").expect("known");
    assert_eq!(counters.committed, committed.len() as u64 + 1);
    let mut seen = BTreeSet::new();
    while seen.len() + committed.len() + 1 < 30 {
        let leases = world.claim(10).await;
        for lease in &leases {
            assert!(!committed.contains(&lease.task) && lease.task != unsaid[0].task, "{} ran again", lease.task);
            assert!(seen.insert(lease.task), "{} was given out twice", lease.task);
        }
        world.pack(&leases).await;
    }
    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_packed, end.shards_committed), (JobState::Completed, 30, 30));
    assert_eq!(world.memory.audit(), Vec::<String>::new());
    for service in services {
        service.stop().await;
    }
}

#[tokio::test]
async fn a_receipt_the_queue_never_heard_of_is_found() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    let leases = world.claim(1).await;
    // The worker dies between receipt and commit; its lease would last for half a minute.
    world.write_receipt(&leases[0]).await;
    assert_eq!(world.ended(job).await.files_packed, 1);
    service.stop().await;
}

#[tokio::test]
async fn the_files_of_a_dead_task_are_failures_unless_its_shard_was_published() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=20", lines(4)).await.id();
    let tasks = world.planned(job).await.tasks.len();
    let mut leases = Vec::new();
    while leases.len() < tasks {
        leases.extend(world.claim(10).await);
    }
    let (dead, rest) = leases.split_at(2);
    // The shard of the second holds one file less than planned (here: none of one, or one of two).
    let published = world.state.segment(dead[1].task).await.expect("a segment");
    let held: Vec<String> = published.files.iter().skip(1).map(|file| file.uid.to_string()).collect();
    let bytes = json!(held).to_string();
    world.zone.put(&layout::shard_key(&published), bytes.into(), &WriteOptions::create_only()).await.expect("a put");
    world.kill(&dead[0], "the disk is on fire").await;
    world.kill(&dead[1], "died after publishing").await;
    world.pack(rest).await;

    let end = world.ended(job).await;
    assert_eq!(end.state, JobState::CompletedWithErrors);
    let lost = world.state.segment(dead[0].task).await.expect("a segment").files.len() as u64;
    assert_eq!((end.files_failed, end.files_packed), (lost + 1, 4 - lost - 1));
    assert_eq!(end.shards_dead, 1);
    let answer = service.get(&format!("/v1/jobs/{job}/failures")).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let failures: Vec<FailedFile> =
        answer.text.lines().map(|line| serde_json::from_str(line).expect("a failure")).collect();
    assert_eq!(failures.len() as u64, end.files_failed);
    for failure in failures {
        match failure.reason {
            FailureReason::TaskDead => assert!(failure.message.contains("the disk is on fire"), "{failure:?}"),
            FailureReason::NotInPublishedShard => assert_eq!(failure.uid, published.files.at(0).uid()),
            other => panic!("{other:?}"),
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn a_commit_without_a_receipt_proves_nothing() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    let leases = world.claim(1).await;
    world.memory.commit(leases[0].task, leases[0].token, &TaskTotals::default()).await.expect("a commit");
    let again = world.claim(1).await;
    assert_eq!(again[0].task, leases[0].task, "it runs again");
    assert!(world.state.end(job).await.expect("a read").is_none());
    world.pack(&again).await;
    assert_eq!(world.ended(job).await.files_packed, 1);
    service.stop().await;
}

#[tokio::test]
async fn a_job_whose_files_do_not_add_up_is_not_ended() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    let leases = world.claim(1).await;
    let receipt = Receipt {
        task: leases[0].task,
        state: TaskState::Committed,
        shard: None,
        totals: TaskTotals::default(),
        token: leases[0].token,
        finished_ms: 1,
    };
    world.state.finish_task(&receipt, &[]).await.expect("a receipt");
    world.memory.commit(leases[0].task, leases[0].token, &receipt.totals).await.expect("a commit");
    until("the refusal to be counted", async || {
        let text = service.get("/metrics").await.text;
        let line = text.lines().find(|line| line.starts_with("des_job_ends_refused_total"))?;
        (!line.ends_with(" 0")).then_some(())
    })
    .await;
    assert!(world.state.end(job).await.expect("a read").is_none());
    assert_eq!(service.get(&format!("/v1/jobs/{job}")).await.json()["state"], "running");
    service.stop().await;
}

#[tokio::test]
async fn two_coordinators_end_a_job_once_and_its_failures_are_read_once() {
    let world = World::new();
    let services = [world.start().await, world.start().await];
    let ends = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ends);
    world.moods.rule(move |operation, key| {
        if operation == "put" && key.ends_with("/end.json") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Fate::Pass
    });
    let job = services[1].submit_lines("?max_shard_size=10", lines(12)).await.id();
    world.pack_all(job).await;
    let end = world.ended(job).await;
    until("the marker to go", async || world.keys("open/").await.is_empty().then_some(())).await;
    assert_eq!(ends.load(Ordering::SeqCst), 1);
    assert_eq!(end.shards_committed, 12);
    let receipts: Vec<Receipt> = world.state.receipts(job).try_collect().await.expect("receipts");
    assert_eq!(receipts.len(), 12);
    until("the queue to forget the job", async || {
        world.memory.job(job).await.expect("counters").is_none().then_some(())
    })
    .await;
    for service in services {
        service.stop().await;
    }
}

#[tokio::test]
async fn leftovers_of_a_submission_that_became_no_job_go_after_a_day_and_not_before() {
    let mut world = World::new();
    let job = JobId::from_parts(SystemClock.now_ms(), world.dice.bytes());
    for key in [layout::open_marker(job), layout::manifest(job), layout::newest_marker(job)] {
        world.state.write_bytes(&key, "x".into()).await.expect("a write");
    }
    let clock = Arc::new(ManualClock::new(SystemClock.now_ms() + 23 * 3_600_000));
    world.clock = clock.clone();
    let service = world.start().await;
    // A job that was accepted later is planned, so a round went by.
    let later = service.submit_lines("", lines(1)).await.id();
    world.planned(later).await;
    assert!(world.state.read_bytes(&layout::manifest(job)).await.expect("a read").is_some());
    clock.advance(Duration::from_hours(2));
    until("the leftovers to go", async || {
        let keys = world.keys("").await;
        (!keys.iter().any(|key| key.contains(&job.to_string()))).then_some(())
    })
    .await;
    world.pack_all(later).await;
    service.stop().await;
}

#[tokio::test]
async fn a_loss_is_noticed_at_once_even_for_jobs_nobody_has_looked_at_yet() {
    let mut world = World::new();
    // No sweep in time would help: the loss itself has to be noticed.
    world.limits.reconcile = Duration::from_hours(1);
    world.limits.lock = Duration::from_mins(1);
    let service = world.start().await;
    for count in 1..=5 {
        let job = service.submit_lines("", lines(count)).await.id();
        until("the tasks to be queued", async || world.memory.job(job).await.expect("counters").map(|_| ())).await;
        world.memory.lose_everything();
        world.pack_all(job).await;
        assert_eq!(world.ended(job).await.files_packed, count as u64);
    }
    service.stop().await;
}
