//! The auditor: finds each kind of thing that is wrong, mends what is safe, and is silent about a busy system.

use std::sync::atomic::Ordering;
use std::time::Duration;

use des_coordinator::{AuditLine, Finding, FindingKind};
use des_shared::ids::JobId;
use des_shared::job::{EndRecord, JobState};
use des_shared::layout;
use des_shared::queue::{JobShare, Queue, TaskTotals};
use des_shared::store::WriteOptions;
use futures::FutureExt;

use crate::doubles::Fate;
use crate::harness::{Service, World, lines, until};

/// A world whose coordinators do not reconcile: somebody else holds the lock, and does nothing. What is planted stays.
async fn unwatched() -> World {
    let world = World::new();
    let lock = world.memory.lock("reconcile", "somebody", Duration::from_hours(1)).await.expect("an answer");
    assert!(lock.is_some());
    world
}

/// The findings of an audit, and its summary.
async fn audit(service: &Service, repair: bool) -> (Vec<Finding>, AuditLine) {
    let answer = if repair { service.order("/v1/audit").await } else { service.get("/v1/audit").await };
    assert_eq!(
        (answer.status, &answer.headers["content-type"]),
        (200, &"application/x-ndjson".parse().expect("a value"))
    );
    let mut lines: Vec<AuditLine> =
        answer.text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    let summary = lines.pop().expect("a summary");
    assert!(matches!(summary, AuditLine::Summary { .. }), "{summary:?}");
    let findings = lines.into_iter().map(|line| match line {
        AuditLine::Finding(finding) => finding,
        other => panic!("{other:?}"),
    });
    (findings.collect(), summary)
}

/// Checks that an audit finds this and nothing else, that a repair mends it if `mended`, and that it is gone then.
async fn finds(service: &Service, kind: FindingKind, job: Option<JobId>, mended: bool) {
    let (findings, _) = audit(service, false).await;
    let what: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.job, finding.repaired)).collect();
    assert_eq!(what, [(kind, job, false)], "{findings:?}");
    let (findings, summary) = audit(service, true).await;
    let what: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.repaired)).collect();
    assert_eq!(what, [(kind, mended)], "{findings:?}");
    let AuditLine::Summary { findings, repaired, .. } = summary else { unreachable!("it was checked") };
    assert_eq!((findings, repaired), (1, u64::from(mended)));
    let (left, _) = audit(service, false).await;
    assert_eq!(left.len(), usize::from(!mended), "{left:?}");
}

/// A job of four tasks that is queued, two of them packed.
async fn half_packed(world: &World, service: &Service) -> JobId {
    let job = service.submit_lines("?max_shard_size=10", lines(4)).await.id();
    world.queued(job).await;
    let leases = world.claim(2).await;
    world.pack(&leases).await;
    job
}

#[tokio::test]
async fn a_job_or_tasks_missing_in_the_queue_are_found_and_queued_again() {
    let world = unwatched().await;
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    assert!(audit(&service, false).await.0.is_empty());
    world.memory.forget_job(job).await.expect("forgotten");
    finds(&service, FindingKind::JobNotQueued, Some(job), true).await;
    let counters = world.memory.job(job).await.expect("counters").expect("it is back");
    assert_eq!((counters.committed, counters.pending), (2, 2), "what has its receipt does not run again");

    world.memory.forget_job(job).await.expect("forgotten");
    let share = JobShare { priority: 0, weight: 1, max_running: None };
    world.memory.add_job(job, share).await.expect("added");
    finds(&service, FindingKind::TasksNotQueued, Some(job), true).await;
    service.stop().await;
}

#[tokio::test]
async fn a_receipt_the_queue_has_not_heard_of_is_found_and_settled() {
    let world = unwatched().await;
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    let lease = world.claim(1).await.remove(0);
    world.write_receipt(&lease).await;
    until("it to be old enough to be wrong", async || {
        let (findings, _) = audit(&service, false).await;
        (!findings.is_empty()).then_some(())
    })
    .await;
    finds(&service, FindingKind::ReceiptNotSettled, Some(job), true).await;
    assert_eq!(world.memory.job(job).await.expect("counters").expect("known").committed, 3);
    service.stop().await;
}

#[tokio::test]
async fn a_commit_without_a_receipt_is_found_and_runs_again() {
    let world = unwatched().await;
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    let lease = world.claim(1).await.remove(0);
    world.memory.commit(lease.task, lease.token, &TaskTotals::default()).await.expect("a commit");
    finds(&service, FindingKind::CommitWithoutReceipt, Some(job), true).await;
    let counters = world.memory.job(job).await.expect("counters").expect("known");
    assert_eq!((counters.committed, counters.pending), (2, 2));
    service.stop().await;
}

#[tokio::test]
async fn jobs_the_queue_should_not_keep_are_found() {
    let world = World::new();
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    world.pack_all(job).await;
    until("the queue to forget it", async || world.memory.job(job).await.expect("counters").is_none().then_some(()))
        .await;
    service.stop().await;
    until("the lock to be free", async || {
        world.memory.lock("reconcile", "somebody", Duration::from_hours(1)).await.expect("an answer").map(|_| ())
    })
    .await;
    let service = world.start().await;
    let share = JobShare { priority: 0, weight: 1, max_running: None };
    world.memory.add_job(job, share).await.expect("added");
    finds(&service, FindingKind::EndedJobQueued, Some(job), true).await;
    let stranger = JobId::from_parts(1, [1; 10]);
    world.memory.add_job(stranger, share).await.expect("added");
    finds(&service, FindingKind::UnknownJobQueued, Some(stranger), false).await;
    service.stop().await;
}

#[tokio::test]
async fn an_open_job_without_a_marker_is_found_and_marked() {
    let world = unwatched().await;
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    world.state.delete(&layout::open_marker(job)).await.expect("a delete");
    finds(&service, FindingKind::MarkerMissing, Some(job), true).await;
    assert_eq!(world.keys("open/").await, [layout::open_marker(job)]);
    service.stop().await;
}

#[tokio::test]
async fn shards_that_are_gone_or_changed_are_found() {
    let world = unwatched().await;
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    let keys: Vec<String> =
        world.zone.list("", None, 10).await.expect("a listing").objects.into_iter().map(|object| object.key).collect();
    let before = world.zone.get(&keys[0], des_shared::store::ByteRange::Full).await.expect("a shard").bytes;
    world.zone.delete(&keys[0]).await.expect("a delete");
    finds(&service, FindingKind::ShardMissing, Some(job), false).await;
    let quick = service.get("/v1/audit?shards=false").await.text;
    assert_eq!(quick.lines().count(), 1, "shards are left out when asked: {quick}");
    world.zone.put(&keys[0], "cut".into(), &WriteOptions::overwrite()).await.expect("a put");
    finds(&service, FindingKind::ShardChanged, Some(job), false).await;
    world.zone.put(&keys[0], before, &WriteOptions::overwrite()).await.expect("a put");
    let (left, summary) = audit(&service, false).await;
    assert!(left.is_empty(), "{left:?}");
    assert!(matches!(summary, AuditLine::Summary { jobs: 1, receipts: 2, shards: 2, .. }), "{summary:?}");
    service.stop().await;
}

#[tokio::test]
async fn an_end_its_receipts_contradict_is_found() {
    let world = World::new();
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.state, JobState::Completed);
    let receipt = layout::receipt(des_shared::ids::TaskId { job, number: 1 });
    let before = world.state.read_bytes(&receipt).await.expect("a read").expect("a receipt");
    world.state.delete(&receipt).await.expect("a delete");
    finds(&service, FindingKind::EndContradicted, Some(job), false).await;
    world.state.write_bytes(&receipt, before).await.expect("a write");
    assert!(audit(&service, false).await.0.is_empty());
    service.stop().await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_found_and_stops_nothing() {
    let world = unwatched().await;
    let service = world.start().await;
    let first = half_packed(&world, &service).await;
    let second = service.submit_lines("?name=second", lines(2)).await.id();
    world.queued(second).await;
    world.state.write_bytes(&layout::plan(first), "no plan".into()).await.expect("a write");
    world.state.delete(&layout::open_marker(second)).await.expect("a delete");
    let (findings, _) = audit(&service, false).await;
    let what: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.job)).collect();
    assert_eq!(what, [(FindingKind::Unreadable, Some(first)), (FindingKind::MarkerMissing, Some(second))]);
    assert!(findings[0].detail.contains("plan.json"), "{findings:?}");
    service.stop().await;
}

#[tokio::test]
async fn what_the_queue_says_of_itself_is_told_and_repaired() {
    let world = unwatched().await;
    let service = world.start().await;
    half_packed(&world, &service).await;
    world.queue.planted.lock().expect("no panic").push("the counter of pending tasks is 7, and there are 2".to_owned());
    finds(&service, FindingKind::Queue, None, true).await;
    service.stop().await;
}

#[tokio::test]
async fn a_dropped_jobs_shards_are_not_missed() {
    let world = World::new();
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    service.order(&format!("/v1/jobs/{job}/cancel?shards=drop")).await;
    world.ended(job).await;
    assert!(world.zone.list("", None, 10).await.expect("a listing").objects.is_empty());
    assert!(audit(&service, false).await.0.is_empty());
    service.stop().await;
}

/// What is under way is looked at three times: each of these is over before the third.
#[tokio::test]
async fn what_is_only_under_way_is_no_finding() {
    let world = unwatched().await;
    let service = world.start().await;
    let job = half_packed(&world, &service).await;
    // The queue lost the job, and somebody is bringing it back.
    world.queue.not_yet.store(2, Ordering::SeqCst);
    assert_eq!(audit(&service, false).await.0, []);
    assert_eq!(world.queue.not_yet.load(Ordering::SeqCst), 0, "it was looked at more than once");
    // Its marker is not seen yet.
    let mut left = 2;
    world.moods.rule(move |operation, key| {
        if operation != "head" || !key.starts_with("open/") || left == 0 {
            return Fate::Pass;
        }
        left -= 1;
        Fate::Miss
    });
    assert_eq!(audit(&service, false).await.0, []);
    // It has ended, and the queue is about to forget it.
    let end = EndRecord {
        state: JobState::Failed,
        error: None,
        files_packed: 0,
        files_failed: 0,
        stored_bytes: 0,
        shards_committed: 0,
        shards_dead: 0,
        ended_ms: 0,
    };
    world.state.create(&layout::end(job), &end).await.expect("an end");
    world.queue.not_yet.store(1, Ordering::SeqCst);
    assert_eq!(audit(&service, false).await.0, []);
    assert_eq!(world.queue.not_yet.load(Ordering::SeqCst), 0, "it was looked at more than once");
    service.stop().await;
}

#[tokio::test]
async fn an_audit_needs_its_dependencies_and_runs_alone() {
    let world = World::new();
    let service = world.start().await;
    world.queue.pull(true);
    service.get("/v1/audit").await.assert_problem(503, &["queue-unavailable"]);
    world.queue.pull(false);
    service.get("/v1/audit?deep=1").await.assert_problem(400, &["deep"]);
    // An open job without a marker makes the auditor look three times.
    let job = service.submit_lines("", lines(1)).await.id();
    world.queued(job).await;
    world.state.delete(&layout::open_marker(job)).await.expect("a delete");
    let (first, second) = tokio::join!(service.get("/v1/audit"), service.get("/v1/audit"));
    let mut statuses = [first.status, second.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503], "{}", second.text);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_system_gives_no_false_alarm() {
    let mut world = World::new();
    world.limits.retention = Some(Duration::from_millis(300));
    let services = [world.start().await, world.start().await];
    let stop = tokio_util::sync::CancellationToken::new();
    let busy = async {
        let mut round = 0;
        while !stop.is_cancelled() {
            round += 1;
            let count = 3 + round % 7;
            let job =
                services[round % 2].submit_lines(&format!("?max_shard_size=10&name=n{round}"), lines(count)).await.id();
            world.queued(job).await;
            let leases = world.claim(2).await;
            world.kill(&leases[0], "no").await;
            match round % 4 {
                0 => drop(services[0].order(&format!("/v1/jobs/{job}/cancel?shards=drop")).await),
                1 => {
                    services[0].order(&format!("/v1/jobs/{job}/pause")).await;
                    services[1].order(&format!("/v1/jobs/{job}/resume")).await;
                }
                2 => world.memory.lose_everything(),
                _ => {}
            }
            let leases = world.memory.claim(&world.worker(), 3).await.expect("a claim");
            for lease in leases {
                let receipt = world.write_receipt(&lease).await;
                // Late, or never: its queue may have lost it meanwhile.
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(world.memory.commit(lease.task, lease.token, &receipt.totals).await);
            }
            world.pack_all_tolerantly(job).await;
        }
    };
    let audits = async {
        let (mut jobs_seen, mut rounds) = (0, 0);
        while jobs_seen < 150 || rounds < 20 {
            let (findings, summary) = audit(&services[rounds % 2], false).await;
            assert!(findings.is_empty(), "{findings:?}");
            let AuditLine::Summary { jobs, .. } = summary else { unreachable!("it was checked") };
            jobs_seen += jobs;
            rounds += 1;
        }
        stop.cancel();
    };
    let ((), audited) =
        tokio::join!(busy, std::panic::AssertUnwindSafe(audits).catch_unwind().inspect(|_| stop.cancel()));
    if let Err(panic) = audited {
        std::panic::resume_unwind(panic);
    }
    for service in services {
        service.stop().await;
    }
}
