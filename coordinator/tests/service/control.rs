//! Pause, resume, another share: decided once, and kept by whatever happens to the queue and the coordinators.

use std::time::Duration;

use des_shared::control::{ControlRecord, Hold};
use des_shared::job::JobState;
use des_shared::layout;
use des_shared::queue::{Held, HeldTask, Queue, TaskTotals};
use serde_json::json;

use crate::harness::{World, lines, until};

#[tokio::test]
async fn a_paused_job_hands_nothing_out_and_goes_on_where_it_was() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(6)).await.id();
    world.queued(job).await;
    let packed = world.claim(2).await;
    world.pack(&packed).await;
    let held = world.claim(1).await;

    let paused = service.order(&format!("/v1/jobs/{job}/pause")).await;
    assert_eq!(paused.status, 200, "{}", paused.text);
    assert_eq!((&paused.json()["state"], &paused.json()["hold"]), (&json!("paused"), &json!("paused")));
    assert!(world.nothing_to_claim().await);
    let beat = [HeldTask { task: held[0].task, token: held[0].token, done_bytes: 3 }];
    assert_eq!(world.memory.heartbeat(&world.worker(), &beat).await, Ok(vec![Held::HandBack]));
    world.memory.release(held[0].task, held[0].token).await.expect("a release");
    assert!(world.nothing_to_claim().await);
    let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
    assert_eq!((&shown["state"], &shown["progress"]["eta_seconds"]), (&json!("paused"), &json!(null)));
    assert_eq!(service.get("/v1/queue").await.json()["depth"], 0, "nothing a further worker could do");
    let listed = service.get("/v1/jobs?state=paused").await.json();
    assert_eq!(listed["jobs"].as_array().expect("a list").len(), 1);

    let resumed = service.order(&format!("/v1/jobs/{job}/resume")).await.json();
    assert_eq!((&resumed["state"], resumed.get("hold")), (&json!("running"), None));
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.files_packed, 6);
    service.stop().await;
}

#[tokio::test]
async fn a_pause_outlives_the_queues_data_and_the_coordinator() {
    let world = World::new();
    let first = world.start().await;
    let job = first.submit_lines("?max_shard_size=10", lines(6)).await.id();
    world.queued(job).await;
    assert_eq!(first.order(&format!("/v1/jobs/{job}/pause")).await.status, 200);
    world.memory.lose_everything();
    world.queued(job).await;
    assert!(world.nothing_to_claim().await, "the queue that lost everything was told again");
    first.stop().await;
    world.memory.lose_everything();
    let second = world.start().await;
    world.queued(job).await;
    assert!(world.nothing_to_claim().await, "another coordinator told it");
    assert_eq!(second.get(&format!("/v1/jobs/{job}")).await.json()["state"], "paused");
    assert_eq!(second.order(&format!("/v1/jobs/{job}/resume")).await.status, 200);
    world.memory.lose_everything();
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.state, JobState::Completed);
    second.stop().await;
}

#[tokio::test]
async fn what_is_decided_while_the_queue_is_away_is_told_when_it_is_back() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(3)).await.id();
    world.queued(job).await;
    world.queue.pull(true);
    let paused = service.order(&format!("/v1/jobs/{job}/pause")).await;
    assert_eq!((paused.status, &paused.json()["stale"]), (200, &json!(true)), "{}", paused.text);
    let change = service.patch(&format!("/v1/jobs/{job}"), &json!({"max_running": 1})).await;
    assert_eq!(change.status, 200, "{}", change.text);
    world.queue.pull(false);
    until("the queue to be told", async || {
        let leases = world.memory.claim(&world.worker(), 10).await.expect("a claim");
        for lease in &leases {
            world.memory.release(lease.task, lease.token).await.expect("a release");
        }
        leases.is_empty().then_some(())
    })
    .await;
    assert_eq!(service.order(&format!("/v1/jobs/{job}/resume")).await.status, 200);
    assert_eq!(world.claim(10).await.len(), 1, "the bound is known too");
    service.stop().await;
}

#[tokio::test]
async fn a_job_paused_before_it_is_planned_starts_paused() {
    let world = World::new();
    world.moods.rule(|operation, key| {
        if operation == "put" && key.ends_with("/plan.json") {
            crate::doubles::Fate::Fail
        } else {
            crate::doubles::Fate::Pass
        }
    });
    let service = world.start().await;
    let job = service.submit_lines("", lines(3)).await.id();
    let paused = service.order(&format!("/v1/jobs/{job}/pause")).await.json();
    assert_eq!((&paused["state"], &paused["hold"]), (&json!("planning"), &json!("paused")));
    world.moods.rule(|_, _| crate::doubles::Fate::Pass);
    world.queued(job).await;
    assert!(world.nothing_to_claim().await);
    service.order(&format!("/v1/jobs/{job}/resume")).await;
    world.pack_all(job).await;
    service.stop().await;
}

#[tokio::test]
async fn orders_can_be_repeated_and_senseless_ones_are_refused_with_the_state() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(2)).await.id();
    world.queued(job).await;
    for order in ["pause", "pause", "resume", "resume"] {
        assert_eq!(service.order(&format!("/v1/jobs/{job}/{order}")).await.status, 200, "{order}");
    }
    world.pack_all(job).await;
    for order in ["pause", "resume", "cancel"] {
        let refused = service.order(&format!("/v1/jobs/{job}/{order}")).await;
        refused.assert_problem(409, &["wrong-state", "is completed", "not ended"]);
    }
    let refused = service.patch(&format!("/v1/jobs/{job}"), &json!({"weight": 2})).await;
    refused.assert_problem(409, &["wrong-state", "is completed"]);
    let nobody = des_shared::ids::JobId::from_parts(1, [1; 10]);
    for order in ["pause", "resume", "cancel", "retry"] {
        service.order(&format!("/v1/jobs/{nobody}/{order}")).await.assert_problem(404, &["unknown-job"]);
        service.order(&format!("/v1/jobs/{job}/{order}?now=1")).await.assert_problem(400, &["now"]);
        service.order(&format!("/v1/jobs/x/{order}")).await.assert_problem(400, &["job id"]);
    }
    service.order(&format!("/v1/jobs/{job}/cancel?shards=burn")).await.assert_problem(400, &["burn", "keep"]);
    service.stop().await;
}

#[tokio::test]
async fn a_share_changes_while_the_job_runs_and_stays_changed() {
    let world = World::new();
    let service = world.start().await;
    let first = service.submit_lines("?max_shard_size=10", lines(4)).await.id();
    let second = service.submit_lines("?max_shard_size=10&name=second", lines(4)).await.id();
    world.queued(first).await;
    world.queued(second).await;
    let changed = service.patch(&format!("/v1/jobs/{second}"), &json!({"priority": 7})).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let options = &changed.json()["options"];
    assert_eq!((&options["priority"], &options["weight"]), (&json!(7), &json!(1)));
    assert_eq!(world.claim(1).await[0].task.job, second);
    // What was changed before stays when something else is changed, and by a loss of everything.
    let changed = service.patch(&format!("/v1/jobs/{second}"), &json!({"max_running": 2})).await.json();
    assert_eq!((&changed["options"]["priority"], &changed["options"]["max_running"]), (&json!(7), &json!(2)));
    world.memory.lose_everything();
    world.queued(first).await;
    world.queued(second).await;
    let leases = world.claim(10).await;
    let jobs: Vec<_> = leases.iter().map(|lease| lease.task.job).collect();
    assert_eq!(&jobs[..2], [second, second]);
    assert_eq!(jobs.iter().filter(|job| **job == second).count(), 2, "never more than its bound: {jobs:?}");
    let unbound = service.patch(&format!("/v1/jobs/{second}"), &json!({"max_running": null})).await.json();
    assert_eq!(unbound["options"].get("max_running"), None);
    assert_eq!(world.claim(10).await.len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn wrong_shares_are_refused_by_name_and_change_nothing() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    let path = format!("/v1/jobs/{job}");
    let wrong = service.patch(&path, &json!({"priority": 101, "weight": 0, "max_running": 0})).await;
    wrong.assert_problem(400, &["bad-options", "priority is 101", "weight is 0", "max_running is 0"]);
    service.patch(&path, &json!({})).await.assert_problem(400, &["changes nothing", "priority"]);
    service.patch(&path, &json!({"speed": 1})).await.assert_problem(400, &["speed", "expected"]);
    service.patch(&path, &json!({"weight": "many"})).await.assert_problem(400, &["many"]);
    assert!(world.keys(&format!("jobs/{job}/control")).await.is_empty(), "nothing was decided");
    service.stop().await;
}

#[tokio::test]
async fn a_decision_is_durable_before_it_is_answered() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(2)).await.id();
    world.queued(job).await;
    world.moods.rule(|operation, key| {
        if operation == "put" && key.ends_with("/control.json") {
            crate::doubles::Fate::Fail
        } else {
            crate::doubles::Fate::Pass
        }
    });
    service.order(&format!("/v1/jobs/{job}/pause")).await.assert_problem(503, &["state-store-unavailable"]);
    assert!(!world.nothing_to_claim().await, "what is not durable was not told to the queue");
    service.stop().await;
}

#[tokio::test]
async fn a_decision_that_comes_late_takes_no_cancellation_back() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(2)).await.id();
    world.queued(job).await;
    service.order(&format!("/v1/jobs/{job}/cancel")).await;
    // Another coordinator wanted to pause the job before that, and its write was long on its way.
    let late = ControlRecord { hold: Hold::Paused, updated_ms: 1, ..ControlRecord::default() };
    world.state.write(&layout::control(job), &late).await.expect("written");
    assert_eq!(world.state.control(job).await.expect("read").hold, Hold::Cancelled);
    service.order(&format!("/v1/jobs/{job}/resume")).await.assert_problem(409, &["cancelled"]);
    assert_eq!(world.ended(job).await.state, JobState::Cancelled);
    service.stop().await;
}

#[tokio::test]
async fn changes_of_one_job_by_two_coordinators_do_not_get_lost() {
    let world = World::new();
    let services = [world.start().await, world.start().await];
    let job = services[0].submit_lines("", lines(1)).await.id();
    world.queued(job).await;
    for round in 1..=10_u32 {
        let path = format!("/v1/jobs/{job}");
        let (weight, priority) = (json!({"weight": round}), json!({"priority": round}));
        let (a, b) = tokio::join!(services[0].patch(&path, &weight), services[1].patch(&path, &priority));
        assert_eq!((a.status, b.status), (200, 200));
        let options = services[0].get(&path).await.json()["options"].clone();
        assert_eq!((&options["weight"], &options["priority"]), (&json!(round), &json!(round)));
    }
    for service in services {
        service.stop().await;
    }
}

#[tokio::test]
async fn one_coordinator_reconciles_and_another_follows_when_it_goes() {
    let mut world = World::new();
    world.limits.lock = Duration::from_mins(10);
    let mut services = vec![world.start().await, world.start().await, world.start().await];
    let job = services[0].submit_lines("?max_shard_size=10", lines(30)).await.id();
    world.queued(job).await;
    while services.len() > 1 {
        let leader = until("exactly one to reconcile", async || {
            let mut leaders = Vec::new();
            for (at, service) in services.iter().enumerate() {
                let text = service.get("/metrics").await.text;
                if text.lines().any(|line| line == "des_jobs_open{state=\"running\"} 1") {
                    leaders.push(at);
                }
            }
            (leaders.len() == 1).then(|| leaders[0])
        })
        .await;
        // Its lock lives for ten minutes more, unless it is handed back.
        services.remove(leader).stop().await;
    }
    world.memory.lose_everything();
    world.queued(job).await;
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.files_packed, 30);
    services.remove(0).stop().await;
}

#[tokio::test]
async fn progress_tells_pace_and_who_works() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(10)).await.id();
    world.queued(job).await;
    let (packed, held) = (world.claim(4).await, world.claim(1).await);
    world.pack(&packed).await;
    let worker = world.worker();
    let lease = {
        world.memory.release(held[0].task, held[0].token).await.expect("a release");
        world.memory.claim(&worker, 1).await.expect("a claim").remove(0)
    };
    let beat = [HeldTask { task: lease.task, token: lease.token, done_bytes: 7 }];
    world.memory.heartbeat(&worker, &beat).await.expect("a heartbeat");
    let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
    let progress = &shown["progress"];
    assert_eq!(progress["done_bytes"], 40);
    assert!(progress["bytes_per_second"].as_f64().expect("a rate") > 0.0);
    assert!(progress["eta_seconds"].as_f64().expect("a time") > 0.0);
    assert!(progress["compression_ratio"].as_f64().expect("a ratio") > 0.0);
    let active = json!([{"worker": worker.id, "name": "test", "number": lease.task.number, "done_bytes": 7, "source_bytes": 10}]);
    assert_eq!(shown["active"], active);
    world.memory.commit(lease.task, lease.token, &TaskTotals::default()).await.expect("a commit");
    service.stop().await;
}
