//! Dependencies that are away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use des_shared::service::Shutdown;
use serde_json::json;

use crate::doubles::Fate;
use crate::harness::{World, entry, lines, until};

#[tokio::test]
async fn a_state_store_that_fails_at_any_step_accepts_nothing_by_half() {
    let world = World::new();
    let service = world.start().await;
    let big = lines(100_000);
    assert!(big.len() > 8 << 20, "two parts");
    // The n-th write of a submission fails, for every n there is.
    for body in [lines(7), big] {
        let mut failing = 0;
        loop {
            let calls = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&calls);
            world.moods.rule(move |operation, key| {
                let write = matches!(operation, "put" | "create_upload" | "put_part" | "complete_upload");
                let ours = !key.contains("segments") && !key.ends_with("plan.json");
                if write && ours && counter.fetch_add(1, Ordering::SeqCst) == failing { Fate::Fail } else { Fate::Pass }
            });
            let answer = service.submit_lines("", body.clone()).await;
            if calls.load(Ordering::SeqCst) <= failing {
                assert!(matches!(answer.status, 200 | 202), "{}", answer.text);
                break;
            }
            answer.assert_problem(503, &["state-store-unavailable"]);
            assert!(answer.headers.contains_key("retry-after"));
            failing += 1;
        }
        assert!(failing >= 5, "marker, manifest, reservation, listing, record: {failing}");
        world.moods.rule(|_, _| Fate::Pass);
    }
    let records = world.job_records().await;
    assert_eq!(records.len(), 2, "{records:?}");
    let listed = service.get("/v1/jobs").await.json();
    assert_eq!(listed["jobs"].as_array().expect("a list").len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn reads_of_a_store_that_is_away_are_503() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(2)).await.id();
    world.planned(job).await;
    world.moods.rule(|_, _| Fate::Fail);
    for path in ["/v1/jobs".to_owned(), format!("/v1/jobs/{job}"), format!("/v1/jobs/{job}/failures")] {
        service.get(&path).await.assert_problem(503, &["state-store-unavailable"]);
    }
    let ready = service.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.json()["checks"]["state store"].as_str().expect("a text").contains("told to fail"));
    assert_eq!(ready.json()["checks"]["queue"], "ok");
    assert_eq!(service.get("/health/live").await.status, 200);
    world.moods.rule(|_, _| Fate::Pass);
    assert_eq!(service.get("/health/ready").await.status, 200);
    service.stop().await;
}

#[tokio::test]
async fn without_a_queue_jobs_are_accepted_and_planned_when_it_is_back() {
    let world = World::new();
    let service = world.start().await;
    let before = service.submit_lines("", lines(3)).await.id();
    world.planned(before).await;
    world.queue.pull(true);
    let answer = service.submit_json(&json!({"manifest": [entry("a")]})).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let job = answer.id();
    for path in ["/v1/queue", "/v1/workers"] {
        let answer = service.get(path).await;
        answer.assert_problem(503, &["queue-unavailable", "unplugged"]);
        assert_eq!(answer.headers["retry-after"], "5");
    }
    assert!(
        service.get("/health/ready").await.json()["checks"]["queue"].as_str().expect("a text").contains("unplugged")
    );
    assert_eq!(service.get(&format!("/v1/jobs/{job}")).await.json()["state"], "planning");
    let running = service.get(&format!("/v1/jobs/{before}")).await.json();
    assert_eq!((&running["state"], &running["stale"]), (&json!("running"), &json!(true)));
    assert_eq!(service.get("/v1/jobs").await.json()["jobs"].as_array().expect("a list").len(), 2);
    world.queue.pull(false);
    world.pack_all(job).await;
    world.pack_all(before).await;
    assert_eq!(world.ended(job).await.files_packed, 1);
    service.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing() {
    let world = World::new();
    let service = world.start().await;
    let chunk = lines(50_000).into_bytes();
    let chunks = (0..4).map(move |n| if n < 3 { Ok(chunk.clone()) } else { Err(std::io::Error::other("gone")) });
    let request = service
        .post("/v1/jobs")
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)));
    assert!(request.send().await.is_err());
    until("the leftovers to go", async || {
        let uploads = world.state.objects().list_uploads("", 1000).await.expect("a listing");
        (uploads.is_empty() && world.keys("").await.is_empty()).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let mut world = World::new();
    world.limits.body_idle = std::time::Duration::from_millis(50);
    let service = world.start().await;
    let stalled = futures::stream::once(async { Ok::<_, std::io::Error>(lines(1)) });
    let body = futures::StreamExt::chain(stalled, futures::stream::pending());
    let answer = service.submit_lines("", reqwest::Body::wrap_stream(body)).await;
    answer.assert_problem(408, &["nothing came for"]);
    assert!(world.keys("").await.is_empty());
    service.stop().await;
}

#[tokio::test]
async fn a_state_store_that_was_away_at_the_start_is_tried_until_it_answers() {
    let world = World::new();
    world.moods.rule(|operation, _| if operation == "probe" { Fate::Fail } else { Fate::Pass });
    let service = world.start().await;
    let ready = service.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    let checks = ready.json()["checks"].clone();
    let said = checks["conditional writes"].as_str().expect("a text");
    assert!(said.contains("not tried yet") && said.contains("told to fail"), "{said}");
    assert_eq!(checks["state store"], "ok");
    world.moods.rule(|_, _| Fate::Pass);
    until("it to be tried again", async || (service.get("/health/ready").await.status == 200).then_some(())).await;
    assert_eq!(service.get("/health/ready").await.json()["checks"]["conditional writes"], "ok");
    service.stop().await;
}

#[tokio::test]
async fn a_state_store_that_can_never_be_written_ends_the_start() {
    let world = World::new();
    world.moods.rule(|operation, _| if operation == "probe" { Fate::Miss } else { Fate::Pass });
    let started = des_coordinator::Coordinator::start(world.config(), world.deps(), Shutdown::new()).await;
    let error = started.expect_err("a refusal").to_string();
    assert!(error.contains("told to fail"), "{error}");
}
