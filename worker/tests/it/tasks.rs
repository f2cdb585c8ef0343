//! Whole workers: claims, slots, receipts, failures, retries and the end of the process.

use std::time::Duration;

use des_shared::config::{Auth, Listen};
use des_shared::ids::TaskId;
use des_shared::layout;
use des_shared::queue::{Queue, TaskState, TaskTotals};
use des_shared::receipt::Receipt;
use des_shared::segment::{PackOptions, Segment};
use des_shared::store::StoreErrorKind;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::gate::{Gate, Trick};
use crate::world::{World, contents, eventually, expected, line, noise, prose};

fn segments(world: &World, count: u32) -> Vec<Segment> {
    (0..count)
        .map(|number| {
            let mut files: Vec<_> = (0..20)
                .map(|n| world.file(&format!("{number}/{n}.json"), &prose((number * 100 + n) as usize, 3000)))
                .collect();
            files.push(line(&format!("{number}/gone"), 1, &world.src().join("gone")));
            world.segment(number, PackOptions::default(), files)
        })
        .collect()
}

/// Retries are due at once.
async fn keep_time_moving(world: &World) {
    eventually("the job ends", || async {
        world.clock.advance(Duration::from_secs(1));
        let counters = world.counters().await;
        (counters.open() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_many_tasks_ends_with_a_receipt_for_each_and_every_file_accounted_for() {
    let world = World::new();
    let segments = segments(&world, 9);
    let one = world.worker_with(None, world.sources(), 2, crate::world::LEASE).await;
    let two = world.worker_with(None, world.sources(), 2, crate::world::LEASE).await;
    world.submit(&segments).await;
    let counters = world.until("all tasks are committed", |c| c.committed == 9).await;
    assert_eq!((counters.totals.files_packed, counters.totals.files_failed), (180, 9));
    let mut stored = 0;
    for segment in &segments {
        let receipt = world.state.receipt(segment.task).await.unwrap().unwrap();
        let shard = receipt.shard.unwrap();
        assert_eq!((shard.key.as_str(), shard.zone.as_str()), (layout::shard_key(segment).as_str(), "default"));
        assert_eq!((shard.entries, receipt.totals.files_failed), (20, 1));
        assert_eq!(shard.digest, segment.digest().to_string());
        stored += shard.size;
        assert_eq!(contents(&world, segment).await.len(), 20);
    }
    assert_eq!(stored, counters.totals.stored_bytes);
    assert_eq!(world.state_objects("failures/").len(), 9);
    assert_eq!(world.queue.audit(), Vec::<String>::new());
    let packed = |w: &crate::world::Worker| w.metric("des_shard_files_total");
    eventually("both workers have counted", || async {
        (packed(&one) + packed(&two) > 179.5 && packed(&one) + packed(&two) < 180.5).then_some(())
    })
    .await;
    assert!(one.metric("des_bytes_saved_total") + two.metric("des_bytes_saved_total") > 100_000.0);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_claims_no_more_than_it_can_start() {
    let world = World::new();
    let segments = segments(&world, 5);
    world.submit(&segments).await;
    let gate = Gate::new(world.sources());
    for segment in &segments {
        gate.trick(segment.files.at(0).uid().as_str(), Trick::Wait);
    }
    let worker = world.worker_with(None, gate.clone(), 2, crate::world::LEASE).await;
    world.until("both slots are taken", |c| c.leased == 2).await;
    assert!((worker.metric("des_worker_busy_slots") - 2.0).abs() < 0.1);
    assert_eq!(world.counters().await.pending, 3);
    gate.open_up();
    world.until("all tasks are committed", |c| c.committed == 5).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_hands_its_tasks_back_at_once() {
    let world = World::new();
    let files: Vec<_> = (0..12).map(|n| world.file(&format!("f{n:02}"), &noise(n, 1 << 20))).collect();
    let segment = world.segment(0, PackOptions::default(), files);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("f11", Trick::Wait);
    let worker = world.worker(None, gate.clone()).await;
    gate.somebody_waits().await;
    world.until("something is checkpointed", |c| c.in_progress.files_packed > 0).await;
    let before = std::time::Instant::now();
    worker.stop().await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    let counters = world.counters().await;
    assert_eq!((counters.pending, counters.leased), (1, 0), "claimable at once");
    assert!(counters.in_progress.files_packed > 0, "and its checkpoint is kept");
    let task = &world.queue.tasks(world.job, 0, 1).await.unwrap()[0];
    assert_eq!(task.state, TaskState::Pending);
    let next = world.worker(None, world.sources()).await;
    world.until("the task is committed", |c| c.committed == 1).await;
    assert_eq!(contents(&world, &segment).await, expected(&segment));
    assert_eq!(world.calls("create_upload"), 1, "the upload was continued");
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_fails_one_attempt_of_one_task() {
    let world = World::new();
    let segments = segments(&world, 2);
    world.submit(&segments).await;
    let gate = Gate::new(world.sources());
    gate.trick("0/3.json", Trick::Panic);
    let worker = world.worker(None, gate.clone()).await;
    world.until("the other task is committed and this one waits", |c| c.committed == 1 && c.delayed == 1).await;
    let task = &world.queue.tasks(world.job, 0, 1).await.unwrap()[0];
    assert!(task.message.as_deref().unwrap().contains("panicked: a trick for 0/3.json"), "{task:?}");
    gate.heal();
    keep_time_moving(&world).await;
    assert_eq!(world.counters().await.committed, 2);
    assert!((worker.metric("des_worker_retries_total") - 1.0).abs() < 0.1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_tried_again_and_dies_with_its_last_attempt() {
    for (times, committed) in [(2, 1), (3, 0)] {
        let world = World::new();
        let segments = segments(&world, 1);
        world.submit(&segments).await;
        world.zone.add(Rule::once(Operation::Put, Fault::Before(StoreErrorKind::Full)).times(times));
        let worker = world.worker(None, world.sources()).await;
        keep_time_moving(&world).await;
        let counters = world.counters().await;
        assert_eq!((counters.committed, counters.dead), (committed, 1 - committed));
        if committed == 0 {
            let task = &world.queue.tasks(world.job, 0, 1).await.unwrap()[0];
            assert!(task.message.as_deref().unwrap().contains("put file://"), "{task:?}");
        }
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_missing_or_damaged_kills_its_task_at_once() {
    let world = World::new();
    let segments = segments(&world, 3);
    world.submit(&segments).await;
    let key = |number| layout::segment(TaskId { job: world.job, number });
    world.state.delete(&key(0)).await.unwrap();
    world.state.write_bytes(&key(1), bytes::Bytes::from_static(b"junk")).await.unwrap();
    let worker = world.worker(None, world.sources()).await;
    let counters = world.until("all tasks have ended", |c| c.open() == 0).await;
    assert_eq!((counters.dead, counters.committed), (2, 1));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_with_a_receipt_is_ended_without_being_packed() {
    let world = World::new();
    let segments = segments(&world, 2);
    world.submit(&segments).await;
    let totals = TaskTotals { files_packed: 20, files_failed: 1, source_bytes: 60_000, stored_bytes: 7 };
    for (segment, state) in segments.iter().zip([TaskState::Committed, TaskState::Dead]) {
        let receipt = Receipt {
            task: segment.task,
            state,
            shard: None,
            totals,
            token: des_shared::ids::FencingToken(1),
            finished_ms: 1,
        };
        world.state.finish_task(&receipt, &[]).await.unwrap();
    }
    let gate = Gate::new(world.sources());
    for segment in &segments {
        gate.trick(segment.files.at(0).uid().as_str(), Trick::Panic);
    }
    let worker = world.worker(None, gate).await;
    let counters = world.until("both tasks have ended", |c| c.open() == 0).await;
    assert_eq!((counters.committed, counters.dead), (1, 1));
    assert_eq!(counters.totals.files_packed, 40);
    assert!(world.objects().is_empty());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_store_that_fails_for_a_while_costs_attempts_but_no_file() {
    let world = World::new();
    let segments = segments(&world, 1);
    world.submit(&segments).await;
    world
        .state_store
        .add(Rule::once(Operation::Put, Fault::After(StoreErrorKind::Unavailable)).on_keys_with("receipts/"));
    let worker = world.worker(None, world.sources()).await;
    keep_time_moving(&world).await;
    let counters = world.counters().await;
    assert_eq!((counters.committed, counters.totals.files_packed, counters.totals.files_failed), (1, 20, 1));
    assert_eq!(world.objects().len(), 1);
    worker.stop().await;
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_are_served_on_the_workers_own_port() {
    let world = World::new();
    let registry = des_shared::metrics::Metrics::new();
    let zone: des_shared::store::SharedStore = world.zone.clone();
    let bits = des_shared::routing::NBits::new(8).unwrap();
    let deps = des_worker::Deps {
        queue: world.queue.clone(),
        state: world.state.clone(),
        zones: std::sync::Arc::new(des_shared::store::zones::Zones::single(bits, zone)),
        sources: world.sources(),
        clock: world.clock.clone(),
        dice: std::sync::Arc::new(des_shared::clock::Dice::seeded(1)),
        metrics: des_worker::metrics::WorkerMetrics::register(&registry),
        registry,
    };
    let drain = Duration::from_secs(5);
    let listen = Listen { address: "127.0.0.1:0".parse().unwrap(), auth: Auth::default(), drain };
    let options = des_worker::config::WorkerOptions { drain, listen: Some(listen), ..crate::world::worker_options() };
    let shutdown = des_shared::service::Shutdown::new();
    let worker = des_worker::start(options, deps, shutdown.clone()).await.unwrap();
    let address = worker.local_addr.unwrap();
    assert!(get(address, "/health").await.contains(r#"{"status":"ok"}"#));
    let ready = get(address, "/health/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("zone default") && ready.contains("queue"), "{ready}");
    world.zone.add(Rule::always(Fault::Before(StoreErrorKind::Denied)));
    let ready = get(address, "/health/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("injected fault"), "{ready}");
    let metrics = get(address, "/metrics").await;
    for name in ["des_compression_ratio", "des_bytes_saved_total", "des_compress_seconds", "des_shard_files_total"] {
        assert!(metrics.contains(name), "{name}");
    }
    shutdown.begin();
    worker.join().await.unwrap();
}
