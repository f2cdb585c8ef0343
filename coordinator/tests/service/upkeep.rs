//! Retention, orphaned uploads, what trials left behind, vanished manifests.

use std::collections::BTreeMap;
use std::time::Duration;

use des_shared::job::JobState;
use des_shared::layout;
use des_shared::queue::Queue;
use des_shared::store::{SharedStore, WriteOptions};
use serde_json::json;

use crate::doubles::Fate;
use crate::harness::{Answer, World, lines, until};

#[tokio::test]
async fn records_of_old_jobs_go_and_shards_and_younger_jobs_stay() {
    let mut world = World::new();
    let clock = world.hold_clock();
    world.limits.retention = Some(Duration::from_hours(4));
    let service = world.start().await;
    let send = async |key: &str, body: String| {
        let request = service.post("/v1/jobs?max_shard_size=10").header("content-type", "application/x-ndjson");
        Answer::of(request.header("idempotency-key", key).body(body).send().await.expect("an answer")).await
    };
    let old = send("old", lines(3)).await.id();
    let leases = world.claim_all(old).await;
    world.kill(&leases[0], "no").await;
    world.pack(&leases[1..]).await;
    world.ended(old).await;
    let open = send("open", lines(4)).await.id();
    world.queued(open).await;
    clock.advance(Duration::from_hours(3));
    let young = service.submit_lines("?name=young", lines(5)).await.id();
    world.queued(young).await;
    for lease in world.claim(100).await {
        if lease.task.job == young {
            world.pack(&[lease]).await;
        }
    }
    world.ended(young).await;
    assert_eq!(service.get(&format!("/v1/jobs/{old}")).await.status, 200);
    clock.advance(Duration::from_hours(2));
    until("the old job to go", async || {
        let keys = world.keys("").await;
        (!keys.iter().any(|key| key.contains(&old.to_string()))).then_some(())
    })
    .await;
    service.get(&format!("/v1/jobs/{old}")).await.assert_problem(404, &["unknown-job"]);
    assert_eq!(service.get("/v1/dead").await.json()["dead"], json!([]));
    for job in [open, young] {
        assert_eq!(service.get(&format!("/v1/jobs/{job}")).await.status, 200, "open or young jobs stay");
    }
    let shards = world.zone.list("", None, 1000).await.expect("a listing").objects.len();
    assert!(shards >= 2, "shards are never touched");
    // Its key is free again, and nothing leads to the job that is gone.
    let again = send("old", lines(3)).await;
    assert_eq!(again.status, 202, "{}", again.text);
    assert_ne!(again.id(), old);
    let listed = service.get("/v1/jobs").await.json();
    assert_eq!(listed["jobs"].as_array().expect("a list").len(), 3);
    service.stop().await;
}

#[tokio::test]
async fn a_removal_that_breaks_off_is_gone_on_with() {
    let mut world = World::new();
    let clock = world.hold_clock();
    world.limits.retention = Some(Duration::from_hours(24));
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(6)).await.id();
    world.queued(job).await;
    world.pack_all(job).await;
    world.ended(job).await;
    until("the marker to go", async || world.keys("open/").await.is_empty().then_some(())).await;
    let mut left = 3;
    world.moods.rule(move |operation, _| {
        if operation != "delete" {
            return Fate::Pass;
        }
        if left == 0 {
            return Fate::Fail;
        }
        left -= 1;
        Fate::Pass
    });
    clock.advance(Duration::from_hours(25));
    until("the removal to break off", async || {
        let text = service.get("/metrics").await.text;
        assert!(text.contains("des_jobs_removed_total 0"));
        world.keys("newest/").await.is_empty().then_some(())
    })
    .await;
    world.moods.rule(|_, _| Fate::Pass);
    until("everything to go", async || world.keys("").await.is_empty().then_some(())).await;
    service.stop().await;
}

/// The end is what says that a job may be removed: while anything of it is left, so is the end.
#[tokio::test]
async fn the_end_of_a_job_is_removed_last() {
    let mut world = World::new();
    let clock = world.hold_clock();
    world.limits.retention = Some(Duration::from_hours(24));
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(3)).await.id();
    world.queued(job).await;
    world.pack_all(job).await;
    world.ended(job).await;
    until("the marker to go", async || world.keys("open/").await.is_empty().then_some(())).await;
    let record = layout::job_record(job);
    world.moods.rule(
        move |operation, key| {
            if operation == "delete" && key == record { Fate::Hang } else { Fate::Pass }
        },
    );
    clock.advance(Duration::from_hours(25));
    world.moods.hung.notified().await;
    assert_eq!(world.keys(&layout::job_prefix(job)).await, [layout::end(job), layout::job_record(job)]);
    service.stop().await;
    world.moods.rule(|_, _| Fate::Pass);
    let service = world.start().await;
    until("everything to go", async || world.keys("").await.is_empty().then_some(())).await;
    service.stop().await;
}

#[tokio::test]
async fn with_no_retention_records_stay_for_ever() {
    let mut world = World::new();
    let clock = world.hold_clock();
    world.limits.retention = None;
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    world.pack_all(job).await;
    clock.advance(Duration::from_hours(24 * 365 * 20));
    // An orphan goes after old jobs went, so a round is over when it is gone.
    let orphan = format!("_bigFiles/{}", "0123456789abcdef".repeat(4));
    world.zone.create_upload(&orphan, &BTreeMap::new()).await.expect("an upload");
    until("a round to be over", async || {
        world.zone.list_uploads("", 1000).await.expect("a listing").is_empty().then_some(())
    })
    .await;
    assert_eq!(service.get(&format!("/v1/jobs/{job}")).await.json()["state"], "completed");
    service.stop().await;
}

#[tokio::test]
async fn old_uploads_that_nobody_knows_are_dropped_and_no_others() {
    let mut world = World::new();
    let clock = world.hold_clock();
    world.limits.orphans = Some(Duration::from_hours(24));
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(2)).await.id();
    let leases = world.claim_all(job).await;
    let in_use = world.begin_upload(&leases[0]).await;
    let key = layout::shard_key(&world.state.segment(leases[1].task).await.expect("a segment"));
    let begin = async |key: &str| world.zone.create_upload(key, &BTreeMap::new()).await.expect("an upload");
    let shard = begin(&key).await;
    let big_file = begin(&format!("_bigFiles/{}", "0123456789abcdef".repeat(4))).await;
    let foreign = begin("backups/monday.tar").await;
    let manifest = layout::manifest(des_shared::ids::JobId::from_parts(1, [1; 10]));
    world.state.objects().create_upload(&manifest, &BTreeMap::new()).await.expect("an upload");
    let uploads = async || {
        let mut ids: Vec<String> = world
            .zone
            .list_uploads("", 1000)
            .await
            .expect("a listing")
            .into_iter()
            .map(|upload| upload.upload_id)
            .collect();
        ids.sort();
        ids
    };
    clock.advance(Duration::from_hours(23));
    let later = service.submit_lines("?name=later", lines(1)).await.id();
    world.queued(later).await;
    assert_eq!(uploads().await.len(), 4, "they are young");
    clock.advance(Duration::from_hours(2));
    let mut stay = vec![in_use, foreign];
    stay.sort();
    until("the orphans to go", async || (uploads().await == stay).then_some(())).await;
    until("the manifest's upload to go", async || {
        world.state.objects().list_uploads("", 1000).await.expect("a listing").is_empty().then_some(())
    })
    .await;
    assert!(!stay.contains(&shard) && !stay.contains(&big_file));
    until("them to be counted", async || {
        let text = service.get("/metrics").await.text;
        text.lines().any(|line| line == "des_uploads_aborted_total 3").then_some(())
    })
    .await;
    service.stop().await;
}

/// The queue has lost the checkpoint; the next holder goes on from the marks, however late it comes.
#[tokio::test]
async fn an_upload_that_only_marks_name_is_spared_as_long_as_its_job_is_open() {
    let mut world = World::new();
    let clock = world.hold_clock();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(2)).await.id();
    let leases = world.claim_all(job).await;
    let marked = world.begin_upload(&leases[0]).await;
    let key = layout::shard_key(&world.state.segment(leases[1].task).await.expect("a segment"));
    world.zone.create_upload(&key, &BTreeMap::new()).await.expect("an upload");
    world.memory.lose_everything();
    world.queued(job).await;
    let tasks = world.memory.tasks(job, 0, 2).await.expect("tasks");
    assert!(tasks.iter().all(|task| task.checkpoint.is_none()), "{tasks:?}");
    clock.advance(Duration::from_hours(25));
    let uploads = async || {
        let uploads = world.zone.list_uploads("", 1000).await.expect("a listing");
        uploads.into_iter().map(|upload| upload.upload_id).collect::<Vec<_>>()
    };
    let left = until("the orphan to go", async || Some(uploads().await).filter(|left| left.len() < 2)).await;
    assert_eq!(left, [marked]);
    world.pack_all(job).await;
    until("what nobody goes on with to go", async || uploads().await.is_empty().then_some(())).await;
    service.stop().await;
}

#[tokio::test]
async fn what_a_trial_of_a_store_left_behind_is_removed_after_an_hour() {
    let mut world = World::new();
    let clock = world.hold_clock();
    let trial = layout::probe_key(layout::SCRATCH_PREFIX, 7);
    let notes = "scratch/notes.txt".to_owned();
    for store in [&world.zone, world.state.objects()] {
        for key in [&trial, &notes] {
            store.put(key, "x".into(), &WriteOptions::overwrite()).await.expect("a put");
        }
        store.create_upload(&trial, &BTreeMap::new()).await.expect("an upload");
    }
    let service = world.start().await;
    let keys = async |store: &SharedStore| {
        let page = store.list("scratch/", None, 10).await.expect("a listing");
        page.objects.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    clock.advance(Duration::from_mins(50));
    for store in [&world.zone, world.state.objects()] {
        assert_eq!(keys(store).await, [notes.clone(), trial.clone()], "it is young");
    }
    clock.advance(Duration::from_mins(20));
    for store in [&world.zone, world.state.objects()] {
        until("the trial to go", async || (keys(store).await == [notes.clone()]).then_some(())).await;
    }
    clock.advance(Duration::from_hours(24));
    for store in [&world.zone, world.state.objects()] {
        until("its upload to go", async || {
            store.list_uploads("", 10).await.expect("a listing").is_empty().then_some(())
        })
        .await;
    }
    service.stop().await;
}

#[tokio::test]
async fn no_upload_is_dropped_while_the_queue_cannot_say_which_are_in_use() {
    let mut world = World::new();
    let clock = world.hold_clock();
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    let lease = world.claim_all(job).await.remove(0);
    world.begin_upload(&lease).await;
    world.queue.pull(true);
    clock.advance(Duration::from_hours(25));
    let ready = until("the coordinator to notice", async || {
        let ready = service.get("/health/ready").await;
        (ready.status == 503).then_some(ready)
    })
    .await;
    assert!(ready.text.contains("unplugged"));
    assert_eq!(world.zone.list_uploads("", 1000).await.expect("a listing").len(), 1);
    world.queue.pull(false);
    service.stop().await;
}

#[tokio::test]
async fn a_job_whose_manifest_vanished_fails_with_a_reason() {
    for damage in ["gone", "cut"] {
        let world = World::new();
        world.moods.rule(
            |operation, key| {
                if operation == "put" && key.contains("/segments/") { Fate::Fail } else { Fate::Pass }
            },
        );
        let service = world.start().await;
        let job = service.submit_lines("", lines(3)).await.id();
        let key = layout::manifest(job);
        match damage {
            "gone" => world.state.delete(&key).await.expect("a delete"),
            _ => drop(world.state.write_bytes(&key, "{".into()).await.expect("a write")),
        }
        world.moods.rule(|_, _| Fate::Pass);
        let end = world.ended(job).await;
        assert_eq!((end.state, end.files_packed, end.files_failed), (JobState::Failed, 0, 0));
        let error = end.error.expect("a reason");
        let words = if damage == "gone" { "is not in the state store any more" } else { "has 1 bytes" };
        assert!(error.contains(words) && error.contains("submit the manifest again"), "{error}");
        assert!(world.memory.job(job).await.expect("counters").is_none());
        service.stop().await;
    }
}

#[tokio::test]
async fn a_store_that_misses_everything_fails_no_job() {
    let world = World::new();
    let service = world.start().await;
    world.moods.rule(
        |operation, key| {
            if operation == "put" && key.contains("/segments/") { Fate::Fail } else { Fate::Pass }
        },
    );
    let job = service.submit_lines("", lines(3)).await.id();
    // For a while the store answers nothing but NotFound to questions about the job.
    world.moods.rule(
        move |operation, key| {
            if operation == "head" && key.ends_with("/manifest") { Fate::Miss } else { Fate::Pass }
        },
    );
    world.moods.missed.notified().await;
    // It comes back before it has said so often enough.
    world.moods.rule(|_, _| Fate::Pass);
    world.pack_all(job).await;
    assert_eq!(world.ended(job).await.files_packed, 3);
    service.stop().await;
}
