//! Cancelled jobs: every file accounted for, uploads gone, shards kept or dropped as asked.

use std::time::Duration;

use des_shared::clock::{Clock, ManualClock, SystemClock};
use des_shared::ids::JobId;
use des_shared::job::JobState;
use des_shared::layout;
use des_shared::queue::{Held, HeldTask, Lease, Queue};
use des_shared::receipt::{FailedFile, FailureReason};
use des_shared::store::{WriteOptions, list_all};
use futures::TryStreamExt;
use serde_json::json;

use crate::doubles::Fate;
use crate::harness::{Service, World, lines, until};

async fn failures(service: &Service, job: JobId) -> Vec<FailedFile> {
    let text = service.get(&format!("/v1/jobs/{job}/failures")).await.text;
    text.lines().map(|line| serde_json::from_str(line).expect("a failure")).collect()
}

async fn shards(world: &World) -> Vec<String> {
    let all = list_all(world.zone.clone(), String::new()).map_ok(|object| object.key);
    all.try_collect().await.expect("a listing")
}

async fn key_of(world: &World, lease: &Lease) -> String {
    layout::shard_key(&world.state.segment(lease.task).await.expect("a segment"))
}

#[tokio::test]
async fn a_cancelled_job_accounts_for_every_file_and_drops_its_uploads() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(10)).await.id();
    let leases = world.claim_all(job).await;
    world.pack(&leases[..3]).await;
    world.begin_upload(&leases[3]).await;
    world.begin_upload(&leases[4]).await;
    for lease in &leases[5..8] {
        world.memory.release(lease.task, lease.token).await.expect("a release");
    }
    let cancelled = service.order(&format!("/v1/jobs/{job}/cancel")).await;
    assert_eq!(cancelled.status, 202, "{}", cancelled.text);
    assert_eq!(cancelled.json()["hold"], "cancelled");
    assert!(world.nothing_to_claim().await);
    let beat = [HeldTask { task: leases[3].task, token: leases[3].token, done_bytes: 0 }];
    let heard = world.memory.heartbeat(&world.worker(), &beat).await.expect("an answer");
    assert!(matches!(heard[0], Held::Cancelled | Held::Lost), "{heard:?}");

    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Cancelled, 3, 7));
    assert_eq!((end.shards_committed, end.shards_dead), (3, 7));
    let failed = failures(&service, job).await;
    assert_eq!(failed.len(), 7);
    assert!(failed.iter().all(|file| file.reason == FailureReason::Cancelled), "{failed:?}");
    assert_eq!(shards(&world).await.len(), 3, "what was published stays");
    assert!(world.zone.list_uploads("", 1000).await.expect("a listing").is_empty(), "no upload is left");
    assert!(world.keys(&format!("jobs/{job}/checkpoints/")).await.is_empty(), "and no mark");
    let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
    assert_eq!((&shown["state"], shown.get("hold")), (&json!("cancelled"), None));
    assert_eq!(shown["files"], json!({"total": 10, "packed": 3, "failed": 7}));
    assert!(service.get("/v1/dead").await.json()["dead"].as_array().expect("a list").is_empty(), "nothing died");

    assert_eq!(service.order(&format!("/v1/jobs/{job}/cancel")).await.status, 200, "once more is fine");
    let refused = service.order(&format!("/v1/jobs/{job}/cancel?shards=drop")).await;
    refused.assert_problem(409, &["is cancelled"]);
    until("the queue to forget the job", async || {
        world.memory.job(job).await.expect("counters").is_none().then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn an_order_after_the_cancellation_is_refused() {
    let mut world = World::new();
    world.limits.cancel_grace = Duration::from_mins(10);
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(3)).await.id();
    world.queued(job).await;
    world.claim(1).await;
    assert_eq!(service.order(&format!("/v1/jobs/{job}/cancel")).await.status, 202);
    assert_eq!(service.order(&format!("/v1/jobs/{job}/cancel?shards=keep")).await.status, 202);
    for order in ["pause", "resume", "cancel?shards=drop"] {
        let refused = service.order(&format!("/v1/jobs/{job}/{order}")).await;
        refused.assert_problem(409, &["is being cancelled"]);
    }
    service.patch(&format!("/v1/jobs/{job}"), &json!({"weight": 2})).await.assert_problem(409, &["being cancelled"]);
    assert_eq!(service.get(&format!("/v1/jobs/{job}")).await.json()["state"], "running");
    service.order(&format!("/v1/jobs/{job}/retry")).await.assert_problem(409, &["is running", "ended"]);
    service.stop().await;
}

#[tokio::test]
async fn who_finishes_within_the_grace_counts_as_packed() {
    let mut world = World::new();
    let clock = std::sync::Arc::new(ManualClock::new(SystemClock.now_ms()));
    world.clock = clock.clone();
    world.limits.cancel_grace = Duration::from_mins(1);
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(4)).await.id();
    let leases = world.claim_all(job).await;
    service.order(&format!("/v1/jobs/{job}/cancel")).await;
    // One worker has not heard of it and finishes its shard; another dies between the shard and its receipt.
    world.write_receipt(&leases[0]).await;
    let orphan = world.write_receipt(&leases[1]).await;
    world.state.delete(&layout::receipt(orphan.task)).await.expect("a delete");
    clock.advance(Duration::from_secs(59));
    until("a few rounds to pass", async || {
        let text = service.get("/metrics").await.text;
        text.contains("des_jobs_open{state=\"running\"} 1").then_some(())
    })
    .await;
    assert!(world.state.end(job).await.expect("a read").is_none(), "a worker may still publish");
    clock.advance(Duration::from_secs(2));
    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Cancelled, 2, 2));
    service.stop().await;
}

#[tokio::test]
async fn a_cancellation_outlives_the_queue_and_the_coordinator() {
    let world = World::new();
    let first = world.start().await;
    let job = first.submit_lines("?max_shard_size=10", lines(5)).await.id();
    let leases = world.claim_all(job).await;
    world.pack(&leases[..1]).await;
    world.queue.pull(true);
    assert_eq!(first.order(&format!("/v1/jobs/{job}/cancel")).await.status, 202);
    first.stop().await;
    world.memory.lose_everything();
    world.queue.pull(false);
    let second = world.start().await;
    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Cancelled, 1, 4));
    assert!(world.nothing_to_claim().await);
    second.stop().await;
}

#[tokio::test]
async fn a_job_cancelled_while_it_is_planned_accounts_for_its_files_too() {
    let world = World::new();
    world.moods.rule(
        |operation, key| {
            if operation == "put" && key.ends_with("/plan.json") { Fate::Fail } else { Fate::Pass }
        },
    );
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(5)).await.id();
    let cancelled = service.order(&format!("/v1/jobs/{job}/cancel?shards=drop")).await.json();
    assert_eq!((&cancelled["state"], &cancelled["hold"]), (&json!("planning"), &json!("cancelled")));
    world.moods.rule(|_, _| Fate::Pass);
    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Cancelled, 0, 5));
    assert_eq!(failures(&service, job).await.len(), 5);
    service.stop().await;
}

#[tokio::test]
async fn a_large_job_is_cancelled_in_steps() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(1100)).await.id();
    world.queued(job).await;
    service.order(&format!("/v1/jobs/{job}/cancel")).await;
    let end = world.ended(job).await;
    assert_eq!((end.files_failed, end.shards_dead), (1100, 1100));
    service.stop().await;
}

#[tokio::test]
async fn shards_are_dropped_where_no_other_job_has_them() {
    let world = World::new();
    let service = world.start().await;
    // The first file of every manifest goes into a shard of its own, which is the same in all of them.
    let manifest = |count: usize| lines(count);
    let doomed = service.submit_lines("?max_shard_size=10&name=doomed", manifest(6)).await.id();
    let leases = world.claim_all(doomed).await;
    world.pack(&leases).await;
    let mut keys = Vec::new();
    for lease in &leases {
        keys.push(key_of(&world, lease).await);
    }
    // It has ended by itself: too late.
    world.ended(doomed).await;
    let late = service.order(&format!("/v1/jobs/{doomed}/cancel?shards=drop")).await;
    late.assert_problem(409, &["is completed"]);
    assert_eq!(shards(&world).await.len(), 6);

    // The same work again, with more files; one worker holds it open.
    let again = service.submit_lines("?max_shard_size=10&name=again", manifest(8)).await.id();
    let open = service.submit_lines("?max_shard_size=10&name=open", manifest(7)).await.id();
    world.queued(again).await;
    world.queued(open).await;
    let mut mine = Vec::new();
    while mine.len() < 8 {
        mine.extend(world.claim(20).await.into_iter().filter(|lease| lease.task.job == again));
    }
    world.pack(&mine[..7]).await;
    let last = key_of(&world, &mine[6]).await;
    let before = shards(&world).await;
    service.order(&format!("/v1/jobs/{again}/cancel?shards=drop")).await;
    let end = world.ended(again).await;
    assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Cancelled, 7, 1));
    let after = shards(&world).await;
    assert!(keys.iter().all(|key| after.contains(key)), "the first job's receipts name these");
    let planned_elsewhere: Vec<String> = {
        let tasks = world.planned(open).await.tasks.len() as u32;
        let mut planned = Vec::new();
        for number in 0..tasks {
            let segment = world.state.segment(des_shared::ids::TaskId { job: open, number }).await.expect("a segment");
            planned.push(layout::shard_key(&segment));
        }
        planned
    };
    for key in &before {
        let spared = keys.contains(key) || planned_elsewhere.contains(key);
        assert_eq!(after.contains(key), spared, "{key}, last packed {last}");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_shard_older_than_the_job_stays_when_its_shards_are_dropped() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(3)).await.id();
    let leases = world.claim_all(job).await;
    let old = key_of(&world, &leases[0]).await;
    world.zone.put(&old, "[]".into(), &WriteOptions::create_only()).await.expect("a put");
    let file = std::fs::File::options().write(true).open(world.outside().join("zone").join(&old)).expect("a file");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(SystemClock.now_ms() - 3_600_000))
        .expect("a time");
    world.pack(&leases[..2]).await;
    assert_eq!(shards(&world).await.len(), 2);
    service.order(&format!("/v1/jobs/{job}/cancel?shards=drop")).await;
    world.ended(job).await;
    assert_eq!(shards(&world).await, [old], "what was there before stays");
    service.stop().await;
}
