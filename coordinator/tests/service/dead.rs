//! The dead list: what was given up, why, and what becomes of it.

use des_shared::job::JobState;
use des_shared::queue::{Queue, TaskFailure};
use des_shared::receipt::DeadTask;

use crate::harness::{World, lines, until};

async fn list(service: &crate::harness::Service, query: &str) -> Vec<DeadTask> {
    let page = service.get(&format!("/v1/dead{query}")).await;
    assert_eq!(page.status, 200, "{}", page.text);
    serde_json::from_value(page.json()["dead"].clone()).expect("a list")
}

#[tokio::test]
async fn a_dead_task_is_listed_with_its_history_while_its_job_still_runs() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(4)).await.id();
    let leases = world.claim_all(job).await;
    world.begin_upload(&leases[1]).await;
    world.kill(&leases[1], "the disk is on fire").await;
    let dead =
        until("the task to be listed", async || Some(list(&service, "").await).filter(|dead| !dead.is_empty())).await;
    assert_eq!((dead.len(), dead[0].job, dead[0].task), (1, job, leases[1].task.number));
    assert_eq!((dead[0].files, dead[0].source_bytes), (1, 10));
    assert_eq!(dead[0].message, "the disk is on fire");
    let attempt = dead[0].history.last().expect("a history");
    assert_eq!((attempt.token, attempt.message.as_str()), (leases[1].token, "the disk is on fire"));
    assert!(attempt.worker.is_some() && attempt.at_ms > 0, "{attempt:?}");
    assert!(world.zone.list_uploads("", 1000).await.expect("a listing").is_empty(), "its upload is dropped at once");
    assert!(world.keys(&format!("jobs/{job}/checkpoints/")).await.is_empty());
    until("its files to count as failed", async || {
        let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
        assert_eq!(shown["state"], "running");
        (shown["files"]["failed"] == 1).then_some(())
    })
    .await;

    world.pack(&[leases[0].clone(), leases[2].clone(), leases[3].clone()]).await;
    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_failed), (JobState::CompletedWithErrors, 1));
    assert_eq!(list(&service, "").await, dead, "it stays after the end");
    service.stop().await;
}

#[tokio::test]
async fn every_attempt_is_in_the_history() {
    let world = World::with_attempts(3);
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    let mut tokens = Vec::new();
    for attempt in 0..3 {
        let lease = world.claim(1).await.remove(0);
        tokens.push(lease.token);
        let failure = TaskFailure { permanent: false, message: format!("trouble {attempt}") };
        world.memory.fail(lease.task, lease.token, &failure).await.expect("a failure");
    }
    world.ended(job).await;
    let dead = list(&service, &format!("?job={job}")).await;
    let messages: Vec<&str> = dead[0].history.iter().map(|attempt| attempt.message.as_str()).collect();
    assert_eq!(messages, ["trouble 0", "trouble 1", "trouble 2"]);
    assert_eq!(dead[0].history.iter().map(|attempt| attempt.token).collect::<Vec<_>>(), tokens);
    service.stop().await;
}

#[tokio::test]
async fn a_dead_task_is_packed_again_as_one_job_and_dropped() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(3)).await.id();
    let leases = world.claim_all(job).await;
    world.kill(&leases[0], "no").await;
    world.kill(&leases[2], "no").await;
    world.pack(&leases[1..2]).await;
    world.ended(job).await;
    let number = leases[0].task.number;
    let path = format!("/v1/dead/{job}/{number}/retry");
    let first = service.order(&path).await;
    assert_eq!(first.status, 202, "{}", first.text);
    let child = first.id();
    let again = service.order(&path).await;
    assert_eq!((again.status, again.id()), (200, child));
    assert_eq!(world.planned(child).await.files, 1);
    let entry = list(&service, &format!("?job={job}")).await.into_iter().find(|task| task.task == number);
    assert_eq!(entry.expect("it stays until it is dropped").retried_as, Some(child));
    world.pack_all(child).await;

    let path = format!("/v1/dead/{job}/{number}");
    assert_eq!(service.delete(&path).await.status, 204);
    assert_eq!(service.delete(&path).await.status, 204, "an answer may have been lost");
    assert_eq!(list(&service, "").await.len(), 1);
    service.order(&format!("{path}/retry")).await.assert_problem(404, &["unknown-dead-task", "GET /v1/dead"]);
    service.order("/v1/dead/x/1/retry").await.assert_problem(400, &["job id"]);
    service.order(&format!("/v1/dead/{job}/one/retry")).await.assert_problem(400, &["one", "number of a task"]);
    service.stop().await;
}

#[tokio::test]
async fn the_list_comes_in_pages_and_by_job() {
    let world = World::new();
    let service = world.start().await;
    let mut jobs = Vec::new();
    for count in [4, 3] {
        let job = service.submit_lines("?max_shard_size=10", lines(count)).await.id();
        for lease in world.claim_all(job).await {
            world.kill(&lease, "no").await;
        }
        world.ended(job).await;
        jobs.push(job);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/dead?limit=2{cursor}")).await.json();
        let dead: Vec<DeadTask> = serde_json::from_value(page["dead"].clone()).expect("a list");
        seen.extend(dead.iter().map(|task| (task.job, task.task)));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let all: Vec<_> = (0..4).map(|task| (jobs[0], task)).chain((0..3).map(|task| (jobs[1], task))).collect();
    assert_eq!(seen, all);
    assert_eq!(list(&service, &format!("?job={}", jobs[1])).await.len(), 3);
    service.get("/v1/dead?limit=0").await.assert_problem(400, &["limit"]);
    service.get("/v1/dead?cursor=x").await.assert_problem(400, &["cursor"]);
    service.stop().await;
}
