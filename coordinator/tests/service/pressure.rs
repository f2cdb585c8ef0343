//! Back-pressure: what waits in the queue, and what is on its way there.

use std::time::Duration;

use des_shared::queue::Queue;
use serde_json::json;

use crate::doubles::Fate;
use crate::harness::{World, entry, lines, until};

#[tokio::test]
async fn submissions_are_refused_while_too_many_tasks_wait() {
    let mut world = World::new();
    world.limits.max_waiting_tasks = 5;
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(7)).await.id();
    world.queued(job).await;
    let refused = service.submit_lines("", lines(3)).await;
    refused.assert_problem(429, &["queue-full", "7 tasks wait", "from 5 on"]);
    assert_eq!(refused.headers["retry-after"], "30");
    service.submit_json(&json!({"manifest": [entry("a")]})).await.assert_problem(429, &["queue-full"]);
    assert_eq!(world.job_records().await.len(), 1, "nothing of them was kept");
    let held = world.claim(3).await;
    let accepted = service.submit_lines("", lines(3)).await;
    assert_eq!(accepted.status, 202, "what workers hold does not wait: {}", accepted.text);
    world.pack(&held).await;
    until("the refusals to be counted", async || {
        let text = service.get("/metrics").await.text;
        text.lines().any(|line| line == "des_submissions_refused_full_total 2").then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn submissions_and_retries_are_refused_while_too_many_bytes_wait() {
    let mut world = World::new();
    world.limits.max_waiting_bytes = 50;
    let service = world.start().await;
    let failed = service.submit_lines("", lines(4)).await.id();
    for lease in world.claim_all(failed).await {
        world.kill(&lease, "no").await;
    }
    world.ended(failed).await;
    let job = service.submit_lines("?max_shard_size=10", lines(5)).await.id();
    world.queued(job).await;
    service.submit_lines("", lines(2)).await.assert_problem(429, &["tasks of 50 bytes wait", "from 50 on"]);
    service.order(&format!("/v1/jobs/{failed}/retry")).await.assert_problem(429, &["queue-full"]);
    service.order(&format!("/v1/dead/{failed}/0/retry")).await.assert_problem(429, &["queue-full"]);
    // A queue that is away holds nobody up.
    world.queue.pull(true);
    assert_eq!(service.submit_lines("", lines(2)).await.status, 202);
    world.queue.pull(false);
    service.stop().await;
}

#[tokio::test]
async fn who_sends_a_large_manifest_to_a_full_queue_still_reads_why_it_is_refused() {
    let mut world = World::new();
    world.limits.max_waiting_tasks = 1;
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    world.queued(job).await;
    for _ in 0..5 {
        let refused = service.submit_lines("", lines(200_000)).await;
        refused.assert_problem(429, &["queue-full"]);
    }
    service.stop().await;
}

/// Neither can see the other in the queue: each is counted from the moment it is accepted, at whichever coordinator.
#[tokio::test]
async fn of_two_submissions_at_two_coordinators_that_exceed_the_limit_together_one_is_refused() {
    let mut world = World::new();
    world.limits.max_waiting_tasks = 5;
    // A machine under load must not lose its lock.
    world.limits.lock = Duration::from_secs(30);
    let (first, second) = (world.start().await, world.start().await);
    for round in 0..5 {
        let query = |name: &str| format!("?max_shard_size=10&name={name}{round}");
        let (one, two) = (query("one"), query("two"));
        let (one, two) = tokio::join!(first.submit_lines(&one, lines(7)), second.submit_lines(&two, lines(7)));
        let (accepted, refused) = if one.status == 202 { (one, two) } else { (two, one) };
        assert_eq!(accepted.status, 202, "{}", accepted.text);
        refused.assert_problem(429, &["queue-full", "7 tasks wait"]);
        assert_eq!(world.keys("open/").await.len(), 1, "nothing of the refused one is kept");
        world.pack_all(accepted.id()).await;
        until("it to be let go", async || world.keys("open/").await.is_empty().then_some(())).await;
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_planned_job_counts_before_its_tasks_are_in_the_queue() {
    let mut world = World::new();
    world.limits.max_waiting_bytes = 65;
    let (first, second) = (world.start().await, world.start().await);
    // What keeps planned jobs out of the queue.
    let lock = world.memory.lock("drop", "somebody", Duration::from_hours(1)).await.expect("an answer");
    assert!(lock.is_some());
    let job = first.submit_lines("?max_shard_size=10", lines(7)).await.id();
    world.planned(job).await;
    second.submit_lines("", lines(2)).await.assert_problem(429, &["tasks of 70 bytes wait", "from 65 on"]);
    world.memory.unlock("drop", "somebody").await.expect("an answer");
    world.queued(job).await;
    let held = world.claim(2).await;
    assert_eq!(second.submit_lines("", lines(1)).await.status, 202, "what workers hold does not wait");
    world.pack(&held).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_job_that_is_being_planned_is_waited_for_and_then_others_are_told_to_come_again() {
    let mut world = World::new();
    world.limits.max_waiting_tasks = 100;
    world.limits.admission_wait = Duration::from_millis(200);
    let service = world.start().await;
    world.moods.rule(
        |operation, key| {
            if operation == "put" && key.ends_with("/plan.json") { Fate::Fail } else { Fate::Pass }
        },
    );
    let job = service.submit_lines("?name=slow", lines(3)).await.id();
    let refused = service.submit_lines("?name=next", lines(3)).await;
    refused.assert_problem(429, &["queue-full", "1 jobs are being planned"]);
    assert_eq!(world.keys("open/").await.len(), 1, "nothing of the refused one is kept");
    // It is planned while the next one waits.
    world.moods.rule(|_, _| Fate::Pass);
    until("the next one to be accepted", async || {
        (service.submit_lines("?name=next", lines(3)).await.status == 202).then_some(())
    })
    .await;
    world.planned(job).await;
    service.stop().await;
}

#[tokio::test]
async fn a_job_that_cannot_be_planned_does_not_close_the_door_for_ever() {
    let mut world = World::new();
    world.limits.max_waiting_tasks = 100;
    world.limits.admission_wait = Duration::from_millis(50);
    let clock = world.hold_clock();
    let service = world.start().await;
    world.moods.rule(
        |operation, key| {
            if operation == "put" && key.ends_with("/plan.json") { Fate::Fail } else { Fate::Pass }
        },
    );
    assert_eq!(service.submit_lines("?name=stuck", lines(3)).await.status, 202);
    clock.advance(Duration::from_secs(50));
    service.submit_lines("?name=next", lines(3)).await.assert_problem(429, &["are being planned"]);
    clock.advance(Duration::from_secs(20));
    assert_eq!(service.submit_lines("?name=next", lines(3)).await.status, 202);
    service.stop().await;
}
