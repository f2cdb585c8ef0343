//! What failed is packed again: once, however often it is asked for.

use std::collections::BTreeSet;

use des_shared::ids::JobId;
use des_shared::job::JobState;
use serde_json::json;

use crate::doubles::Fate;
use crate::harness::{Service, World, lines, until};

/// A job of ten tasks three of which died.
async fn with_failures(world: &World, service: &Service) -> JobId {
    let job = service.submit_lines("?max_shard_size=10&name=first&level=7", lines(10)).await.id();
    let leases = world.claim_all(job).await;
    for lease in &leases[..3] {
        world.kill(lease, "the disk is on fire").await;
    }
    world.pack(&leases[3..]).await;
    assert_eq!(world.ended(job).await.files_failed, 3);
    job
}

async fn uids_of(world: &World, job: JobId) -> BTreeSet<String> {
    let tasks = world.planned(job).await.tasks.len() as u32;
    let mut uids = BTreeSet::new();
    for number in 0..tasks {
        let segment = world.state.segment(des_shared::ids::TaskId { job, number }).await.expect("a segment");
        uids.extend(segment.files.iter().map(|file| file.uid.to_string()));
    }
    uids
}

#[tokio::test]
async fn the_failed_files_of_a_job_become_a_job_and_asking_again_finds_it() {
    let world = World::new();
    let service = world.start().await;
    let job = with_failures(&world, &service).await;
    let failed: BTreeSet<String> = {
        let text = service.get(&format!("/v1/jobs/{job}/failures")).await.text;
        let uid = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["uid"].to_string();
        text.lines().map(|line| uid(line).trim_matches('"').to_owned()).collect()
    };
    let retry = format!("/v1/jobs/{job}/retry");
    let first = service.order(&retry).await;
    assert_eq!(first.status, 202, "{}", first.text);
    let child = first.id();
    assert_eq!(first.headers["location"], format!("/v1/jobs/{child}"));
    assert_eq!((&first.json()["name"], &first.json()["options"]["level"]), (&json!("first"), &json!(7)));
    assert_eq!(uids_of(&world, child).await, failed);
    let again = service.order(&retry).await;
    assert_eq!((again.status, again.id()), (200, child), "while it is open");
    world.pack_all(child).await;
    assert_eq!(world.ended(child).await.state, JobState::Completed);
    let again = service.order(&retry).await;
    assert_eq!((again.status, again.id()), (200, child), "and after it has packed everything");
    service.order(&format!("/v1/jobs/{child}/retry")).await.assert_problem(409, &["is completed", "none of its files"]);
    service.stop().await;
}

#[tokio::test]
async fn what_fails_again_is_tried_next_and_only_that() {
    let world = World::new();
    let service = world.start().await;
    let job = with_failures(&world, &service).await;
    let child = service.order(&format!("/v1/jobs/{job}/retry")).await.id();
    let leases = world.claim_all(child).await;
    world.kill(&leases[0], "still burning").await;
    world.pack(&leases[1..]).await;
    let lost = world.state.segment(leases[0].task).await.expect("a segment").files.at(0).uid.to_string();
    assert_eq!(world.ended(child).await.files_failed, 1);
    let third = service.order(&format!("/v1/jobs/{job}/retry")).await;
    assert_eq!(third.status, 202, "{}", third.text);
    assert_ne!(third.id(), child);
    assert_eq!(uids_of(&world, third.id()).await, BTreeSet::from([lost]));
    let same = service.order(&format!("/v1/jobs/{child}/retry")).await;
    assert_eq!((same.status, same.id()), (200, third.id()), "asked of either");
    world.pack_all(third.id()).await;
    service.stop().await;
}

#[tokio::test]
async fn many_who_ask_at_once_get_one_job() {
    let world = World::new();
    let services = [world.start().await, world.start().await];
    let job = with_failures(&world, &services[0]).await;
    let path = format!("/v1/jobs/{job}/retry");
    let answers = futures::future::join_all((0..16).map(|n| services[n % 2].order(&path))).await;
    let ids: BTreeSet<JobId> = answers.iter().map(crate::harness::Answer::id).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    until("the leftovers of the others to go", async || (world.job_records().await.len() == 2).then_some(())).await;
    for service in services {
        service.stop().await;
    }
}

#[tokio::test]
async fn a_retry_that_breaks_off_anywhere_is_completed_by_the_next() {
    let world = World::new();
    let service = world.start().await;
    let job = with_failures(&world, &service).await;
    let path = format!("/v1/jobs/{job}/retry");
    let mut failing = 0;
    loop {
        let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = calls.clone();
        world.moods.rule(move |operation, key| {
            let ours = operation == "put" && !key.contains("segments") && !key.ends_with("plan.json");
            let count = || counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if ours && count() == failing { Fate::LoseAnswer } else { Fate::Pass }
        });
        let answer = service.order(&path).await;
        world.moods.rule(|_, _| Fate::Pass);
        if matches!(answer.status, 200 | 202) && calls.load(std::sync::atomic::Ordering::SeqCst) <= failing {
            break;
        }
        failing += 1;
        assert!(failing < 50, "{}", answer.text);
    }
    assert!(failing >= 1);
    assert_eq!(world.job_records().await.len(), 2, "one retry however often it broke off");
    let child = service.order(&path).await.id();
    world.pack_all(child).await;
    assert_eq!(world.ended(child).await.files_packed, 3);
    service.stop().await;
}

#[tokio::test]
async fn there_must_be_something_to_try_again() {
    let world = World::new();
    let service = world.start().await;
    let open = service.submit_lines("", lines(1)).await.id();
    world.queued(open).await;
    service.order(&format!("/v1/jobs/{open}/retry")).await.assert_problem(409, &["is running", "cancel it, or wait"]);
    world.pack_all(open).await;
    service.order(&format!("/v1/jobs/{open}/retry")).await.assert_problem(409, &["is completed", "none of its files"]);
    let wrong = service.submit_lines("", "{\"uid\": \"a\"}\n").await.id();
    assert_eq!(world.ended(wrong).await.state, JobState::Failed);
    let refused = service.order(&format!("/v1/jobs/{wrong}/retry")).await;
    refused.assert_problem(409, &["could not be planned", "submit it as a new job"]);
    service.stop().await;
}

#[tokio::test]
async fn what_was_cancelled_can_be_packed_after_all() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(6)).await.id();
    let leases = world.claim_all(job).await;
    world.pack(&leases[..2]).await;
    service.order(&format!("/v1/jobs/{job}/cancel")).await;
    assert_eq!(world.ended(job).await.files_failed, 4);
    let child = service.order(&format!("/v1/jobs/{job}/retry")).await.id();
    world.pack_all(child).await;
    assert_eq!(world.ended(child).await.files_packed, 4);
    service.stop().await;
}
