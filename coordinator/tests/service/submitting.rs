//! All ways to submit, and equal submissions.

use std::io::Write;

use des_shared::ids::JobId;
use des_shared::job::JobState;
use des_shared::layout;
use des_shared::segment::{CodecChoice, ShardFormat};
use futures::future::join_all;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::doubles::Fate;
use crate::harness::{Answer, World, entry, lines};

#[tokio::test]
async fn an_inline_manifest_is_durable_before_the_answer_and_ends_completed() {
    let world = World::new();
    let service = world.start().await;
    let body =
        json!({"manifest": [entry("a"), entry("b/ü"), entry("12345678901234567890123")], "options": {"name": "n"}});
    let answer = service.submit_json(&body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let job = answer.id();
    assert_eq!(answer.headers["location"], format!("/v1/jobs/{job}"));
    assert_eq!(answer.json()["state"], "planning");
    assert_eq!(answer.json()["options"]["n_bits"], 8);
    let record = world.state.job(job).await.expect("a read").expect("the record is there");
    assert_eq!(record.options.name, "n");
    assert!(world.state.read_bytes(&layout::manifest(job)).await.expect("a read").is_some());
    world.pack_all(job).await;
    let end = world.ended(job).await;
    assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Completed, 3, 0));
    let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
    assert_eq!(shown["state"], "completed");
    assert_eq!(shown["files"], json!({"total": 3, "packed": 3, "failed": 0}));
    assert_eq!(shown["bytes"]["source"], 30);
    // Nothing of an ended job stays where open jobs are.
    assert!(world.keys("open/").await.is_empty());
    assert_eq!(world.memory.audit(), Vec::<String>::new());
    service.stop().await;
}

#[tokio::test]
async fn lines_come_plain_and_compressed_with_options_in_the_query() {
    let world = World::new();
    let service = world.start().await;
    let plain = lines(100);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(plain.as_bytes()).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let zstd = zstd::bulk::compress(plain.as_bytes(), 3).expect("in memory");
    for (encoding, bytes) in [("identity", plain.into_bytes()), ("gzip", gzip), ("zstd", zstd)] {
        let request = service
            .post("/v1/jobs?format=v2&codec=lz4&priority=-3&weight=7&max_shard_size=50&name=one%20two")
            .header("content-type", "application/x-ndjson")
            .header("content-encoding", encoding)
            .body(bytes.clone());
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        assert_eq!(answer.status, 202, "{encoding}: {}", answer.text);
        let job = answer.id();
        let stored = world.state.read_bytes(&layout::manifest(job)).await.expect("a read").expect("it is there");
        assert_eq!(stored, bytes, "{encoding}: stored as it came");
        let record = world.state.job(job).await.expect("a read").expect("it is there");
        let options = &record.options;
        assert_eq!((options.pack.format, options.pack.codec), (ShardFormat::V2, CodecChoice::Lz4));
        assert_eq!((options.share.priority, options.share.weight, options.max_shard_size), (-3, 7, 50));
        assert_eq!(options.name, "one two");
        assert_eq!(world.planned(job).await.files, 100, "{encoding}");
        world.pack_all(job).await;
        assert_eq!(world.ended(job).await.files_packed, 100);
    }
    service.stop().await;
}

#[tokio::test]
async fn a_manifest_larger_than_a_part_goes_up_in_parts() {
    let world = World::new();
    let service = world.start().await;
    let body = lines(200_000);
    assert!(body.len() > 2 * (8 << 20), "three parts");
    let sha256 = Sha256::digest(body.as_bytes()).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let answer = service.submit_lines("", body.clone()).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let record = world.state.job(answer.id()).await.expect("a read").expect("it is there");
    assert_eq!((record.manifest_sha256, record.manifest_bytes), (sha256, body.len() as u64));
    let stored = world.state.read_bytes(&layout::manifest(record.id)).await.expect("a read").expect("it is there");
    assert!(stored == body.as_bytes(), "the stored manifest is another");
    assert_eq!(world.planned(record.id).await.files, 200_000);
    service.stop().await;
}

#[tokio::test]
async fn manifests_by_uri_resolve_relative_sources() {
    let world = World::new();
    let service = world.start().await;
    let mut list = vec![entry("a")];
    list[0]["source_path"] = json!("sub/a");
    let text = json!(list).to_string();
    std::fs::create_dir(world.root().join("day")).expect("a folder");
    let path = world.root().join("day/manifest.json");
    std::fs::write(&path, &text).expect("a file");
    world.put_object("in/day/manifest.json", text).await;
    let file = format!("file://{}", path.display());
    let expected = path.parent().expect("a parent").join("sub/a").display().to_string();
    for (uri, source) in
        [(file.as_str(), expected.as_str()), ("s3://data/in/day/manifest.json", "s3://data/in/day/sub/a")]
    {
        let answer = service.submit_json(&json!({"manifest": {"uri": uri}})).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let job = answer.id();
        world.planned(job).await;
        let segment = world.state.segment(des_shared::ids::TaskId { job, number: 0 }).await.expect("a segment");
        assert_eq!(segment.files.at(0).source.to_string(), source);
    }
    service.stop().await;
}

#[tokio::test]
async fn the_same_submission_many_times_at_once_is_one_job() {
    let world = World::new();
    let services = [world.start().await, world.start().await];
    let answers = join_all((0..16).map(|n| services[n % 2].submit_lines("?weight=2", lines(20)))).await;
    let job = answers[0].id();
    for answer in &answers {
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text);
        assert_eq!(answer.id(), job);
    }
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1, "one of them made it");
    assert_eq!(world.job_records().await, [layout::job_record(job)]);
    let manifests: Vec<_> = world.keys("jobs/").await.into_iter().filter(|key| key.ends_with("/manifest")).collect();
    assert_eq!(manifests, [layout::manifest(job)], "the others' copies are gone");
    assert_eq!(world.keys("open/").await, [layout::open_marker(job)]);
    // Other options, or another manifest, are another job.
    assert_ne!(services[0].submit_lines("?weight=3", lines(20)).await.id(), job);
    assert_ne!(services[0].submit_lines("?weight=2", lines(21)).await.id(), job);
    for service in services {
        service.stop().await;
    }
}

#[tokio::test]
async fn an_ended_job_is_packed_again_when_submitted_again() {
    let world = World::new();
    let service = world.start().await;
    let mut jobs: Vec<JobId> = Vec::new();
    for _ in 0..4 {
        let answers = join_all((0..4).map(|_| service.submit_lines("", lines(3)))).await;
        let job = answers[0].id();
        assert!(answers.iter().all(|answer| answer.id() == job), "racing submissions agree");
        assert!(!jobs.contains(&job), "a new job");
        jobs.push(job);
        world.pack_all(job).await;
    }
    assert_eq!(world.job_records().await.len(), 4);
    service.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_stays_with_its_job() {
    let world = World::new();
    let service = world.start().await;
    let submit = async |key: &str, count: usize| {
        let request = service
            .post("/v1/jobs")
            .header("content-type", "application/x-ndjson")
            .header("idempotency-key", key)
            .body(lines(count));
        Answer::of(request.send().await.expect("an answer")).await
    };
    let first = submit("k1", 3).await;
    let job = first.id();
    assert_eq!((first.status, submit("k1", 3).await.id()), (202, job));
    submit("k1", 4).await.assert_problem(422, &["Idempotency-Key", &job.to_string()]);
    // Another key, or none, with the same content while the job is open: the same job.
    assert_eq!(submit("k2", 3).await.id(), job);
    world.pack_all(job).await;
    let again = submit("k1", 3).await;
    assert_eq!((again.status, again.id()), (200, job), "bound although the job has ended");
    assert_ne!(submit("k3", 3).await.id(), job);
    submit("", 3).await.assert_problem(400, &["Idempotency-Key"]);
    submit(&"x".repeat(256), 3).await.assert_problem(400, &["Idempotency-Key"]);
    // One key, different contents, all at once: one wins, the others are told.
    let answers = join_all((10..18).map(|count| submit("k4", count))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 422).count(), 7);
    service.stop().await;
}

#[tokio::test]
async fn a_submission_that_broke_off_after_its_reservation_is_completed_by_the_next() {
    let world = World::new();
    let service = world.start().await;
    for (fate, records) in [(Fate::Fail, 0), (Fate::LoseAnswer, 1)] {
        let before = world.job_records().await.len();
        world.moods.rule(
            move |operation, key| {
                if operation == "put" && key.ends_with("/job.json") { fate } else { Fate::Pass }
            },
        );
        let count = 5 + records;
        let broken = service.submit_lines("", lines(count)).await;
        broken.assert_problem(503, &["state-store-unavailable"]);
        assert!(broken.headers.contains_key("retry-after"));
        assert_eq!(world.job_records().await.len(), before + records);
        world.moods.rule(|_, _| Fate::Pass);
        let repeated = service.submit_lines("", lines(count)).await;
        assert!(matches!(repeated.status, 200 | 202), "{}", repeated.text);
        assert_eq!(world.job_records().await.len(), before + 1, "{fate:?}");
        world.pack_all(repeated.id()).await;
        assert_eq!(world.ended(repeated.id()).await.files_packed, count as u64);
    }
    service.stop().await;
}
