//! Lists, shards, the dry run, queue, workers and metrics.

use des_shared::queue::Queue;
use serde_json::json;

use crate::harness::{Answer, World, entry, lines, until};

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages_and_by_state() {
    let world = World::new();
    let service = world.start().await;
    let mut jobs = Vec::new();
    for count in 1..=7 {
        let job = service.submit_lines("", lines(count)).await.id();
        world.planned(job).await;
        jobs.push(job.to_string());
    }
    let done = service.submit_lines("", lines(8)).await.id();
    world.planned(done).await;
    jobs.push(done.to_string());
    jobs.reverse();
    let (mut listed, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = service.get(&format!("/v1/jobs?limit=3{cursor}")).await.json();
        let ids =
            page["jobs"].as_array().expect("a list").iter().map(|job| job["id"].as_str().expect("an id").to_owned());
        listed.extend(ids);
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((listed, pages), (jobs, 3));
    world.pack_all(done).await;
    let by_state = async |state: &str| -> usize {
        let page = service.get(&format!("/v1/jobs?state={state}&limit=200")).await.json();
        assert_eq!(page["next"], json!(null));
        page["jobs"].as_array().expect("a list").len()
    };
    // One worker ends all of them sooner or later.
    until("all to end", async || (by_state("completed").await == 8).then_some(())).await;
    assert_eq!((by_state("running").await, by_state("failed").await), (0, 0));
    service.stop().await;
}

#[tokio::test]
async fn shards_show_tasks_and_receipts_page_by_page() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(25)).await.id();
    world.planned(job).await;
    let packed = world.claim(3).await;
    world.pack(&packed).await;
    let held = world.claim(1).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/jobs/{job}/shards?limit=10{cursor}")).await.json();
        assert_eq!(page["total"], 25);
        seen.extend(page["shards"].as_array().expect("a list").clone());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 25);
    for (number, shard) in seen.iter().enumerate() {
        assert_eq!((shard["number"].as_u64(), shard["source_bytes"].as_u64()), (Some(number as u64), Some(10)));
        let number = number as u32;
        let expected = if packed.iter().any(|lease| lease.task.number == number) {
            assert!(shard["shard"]["key"].as_str().expect("a key").starts_with("20250310_"));
            "committed"
        } else if held[0].task.number == number {
            "leased"
        } else {
            "pending"
        };
        assert_eq!(shard["state"], expected);
    }
    service.stop().await;
}

#[tokio::test]
async fn a_dry_run_tells_what_the_job_would_be_and_stores_nothing() {
    let world = World::new();
    let service = world.start().await;
    let send = async |request: reqwest::RequestBuilder| Answer::of(request.send().await.expect("an answer")).await;
    let inline = send(service.post("/v1/plan").json(&json!({
        "manifest": (0..40).map(|n| entry(&format!("file-{n}"))).collect::<Vec<_>>(),
        "options": {"max_shard_size": 10}
    })))
    .await;
    assert_eq!(inline.status, 200, "{}", inline.text);
    let streamed =
        send(service.post("/v1/plan?max_shard_size=10").header("content-type", "application/x-ndjson").body(lines(40)))
            .await;
    assert_eq!(streamed.json(), inline.json());
    assert!(world.keys("").await.is_empty(), "nothing was stored");
    let plan = inline.json();
    assert_eq!((&plan["files"], &plan["source_bytes"], &plan["shard_count"]), (&json!(40), &json!(400), &json!(40)));
    let job = service.submit_lines("?max_shard_size=10", lines(40)).await.id();
    world.planned(job).await;
    for shard in plan["shards"].as_array().expect("a list") {
        let number = shard["number"].as_u64().expect("a number") as u32;
        let segment = world.state.segment(des_shared::ids::TaskId { job, number }).await.expect("a segment");
        assert_eq!(shard["key"], des_shared::layout::shard_key(&segment));
        assert_eq!(shard["zone"], "default");
    }
    let wrong =
        send(service.post("/v1/plan").header("content-type", "application/x-ndjson").body(format!("{}{{", lines(9))))
            .await;
    wrong.assert_problem(400, &["line 10"]);
    service.stop().await;
}

#[tokio::test]
async fn the_queue_and_workers_can_be_seen_and_measured() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(12)).await.id();
    world.planned(job).await;
    let leases = world.claim(2).await;
    let queue = until("all tasks to be queued", async || {
        let queue = service.get("/v1/queue").await.json();
        (queue["depth"] == 10).then_some(queue)
    })
    .await;
    assert_eq!((&queue["in_flight"], &queue["jobs"]), (&json!(2), &json!(1)));
    let workers = service.get("/v1/workers").await.json();
    assert_eq!(workers["workers"].as_array().expect("a list").len(), 1);
    assert_eq!(workers["workers"][0]["leases"], 2);
    until("the gauges", async || {
        let text = service.get("/metrics").await.text;
        let has = |line: &str| text.lines().any(|l| l == line);
        (has("des_queue_tasks{state=\"pending\"} 10")
            && has("des_queue_tasks{state=\"leased\"} 2")
            && has("des_jobs_open{state=\"running\"} 1")
            && has("des_submissions_total{outcome=\"accepted\"} 1")
            && has("des_workers 1")
            && has("des_http_requests_total{route=\"/v1/jobs\",status=\"202\"} 1"))
        .then_some(())
    })
    .await;
    world.memory.release(leases[0].task, leases[0].token).await.expect("a release");
    assert_eq!(service.get("/v1/queue").await.json()["depth"], 11);
    let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
    assert_eq!(shown["progress"]["in_progress"]["files_packed"], 0);
    service.stop().await;
}
