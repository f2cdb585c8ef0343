//! Job control on real servers and processes: a coordinator killed while it plans, and a job that is paused, loses its
//! queue, is resumed, cancelled, packed after all and audited.

use std::collections::BTreeSet;
use std::time::Duration;

use des_shared::ids::JobId;
use des_shared::job::{JobState, JobView};
use des_shared::layout::SHARD_SUFFIX;
use des_tests::cluster::{Cluster, ClusterOptions, Service, program};
use des_tests::corpus::Corpus;
use des_tests::story::{read_back, show, submit, wait_for};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_mins(3);
const LEASE: Duration = Duration::from_secs(3);

async fn start(corpus: &Corpus, workers: usize, max_shard_size: u64) -> Cluster {
    let source_root = corpus.root.clone();
    let options = ClusterOptions { workers, lease: LEASE, source_root, max_shard_size, env: Vec::new() };
    Cluster::start(options).await.unwrap()
}

async fn further_coordinator(cluster: &mut Cluster) -> Service {
    let mut service = cluster.spawn_coordinator().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(url) = service.address().map(str::to_owned)
            && let Ok(answer) = reqwest::get(format!("{url}/health/ready")).await
            && answer.status().is_success()
        {
            return service;
        }
        assert!(Instant::now() < deadline, "{}", service.log());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn ask(cluster: &Cluster, method: Method, path: &str, body: Option<Value>) -> Value {
    let request = Client::new().request(method, format!("{}{path}", cluster.coordinator.url));
    let request = if let Some(body) = body { request.json(&body) } else { request };
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap()
}

async fn order(cluster: &Cluster, job: JobId, what: &str) -> JobView {
    let answer = ask(cluster, Method::POST, &format!("/v1/jobs/{job}/{what}"), None).await;
    serde_json::from_value(answer).unwrap()
}

/// Runs `des` against the cluster's coordinator.
async fn des(cluster: &Cluster, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(program("des").unwrap());
    let output = command.args(args).args(["--coordinator", &cluster.coordinator.url]).output().await.unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), said)
}

/// 640 shards of files that do not exist: much to plan, nothing to pack.
fn large_plan(root: &std::path::Path, round: usize) -> String {
    let line = |day: usize, file: usize| {
        json!({
            "uid": format!("{round}-{day}-{file}"), "size_bytes": 1,
            "created_at": format!("2025-{:02}-{:02}T00:00:00Z", 1 + day / 28, 1 + day % 28),
            "source_path": root.join("no-such-file"),
        })
    };
    let lines: Vec<String> = (0..40).flat_map(|day| (0..200).map(move |file| line(day, file).to_string())).collect();
    lines.join("\n")
}

fn planned(service: &Service, job: &str) -> bool {
    service.log().lines().any(|line| line.contains("\"planned\"") && line.contains(job))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_while_it_plans_is_followed_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Corpus::gather(folder.path(), 20, 5).unwrap();
    let mut cluster = start(&corpus, 1, 1 << 20).await;
    let mut in_the_middle = 0;
    for round in 0..5 {
        let second = further_coordinator(&mut cluster).await;
        let answer = Client::new()
            .post(format!("{}/v1/jobs", cluster.coordinator.url))
            .header("content-type", "application/x-ndjson")
            .body(large_plan(&corpus.root, round))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 202);
        let job: JobView = answer.json().await.unwrap();
        let killed_at = Instant::now();
        let mut first = std::mem::replace(&mut cluster.coordinator, second);
        first.kill().unwrap();
        let cut = !planned(&first, &job.id.to_string());
        in_the_middle += usize::from(cut);
        let view = wait_for(&cluster, job.id, PATIENCE, |view| view.files.total.is_some()).await.unwrap();
        // The dead one's locks live for one lease; then the other reconciles, or it had done so before.
        assert!(killed_at.elapsed() < Duration::from_mins(1), "{:?}", killed_at.elapsed());
        assert_eq!((view.files.total, planned(&cluster.coordinator, &job.id.to_string())), (Some(8000), cut));
        let view = wait_for(&cluster, job.id, PATIENCE, |view| view.state.is_final()).await.unwrap();
        assert_eq!((view.files.packed, view.files.failed), (0, 8000), "{view:?}");
        if in_the_middle > 0 {
            break;
        }
    }
    assert!(in_the_middle > 0, "no kill came in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_steered_through_everything_and_every_file_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Corpus::gather(folder.path(), 600, 23).unwrap();
    let mut cluster = start(&corpus, 2, 128 << 10).await;
    let job = submit(&cluster, &corpus).await.unwrap().id;
    wait_for(&cluster, job, PATIENCE, |view| view.files.packed > 0).await.unwrap();

    // Paused: whatever runs is handed back, and a Redis that loses everything starts nothing.
    order(&cluster, job, "pause").await;
    let still = async || ask(&cluster, Method::GET, "/v1/queue", None).await["in_flight"] == json!(0);
    let deadline = Instant::now() + PATIENCE;
    while !still().await {
        assert!(Instant::now() < deadline, "running tasks are not handed back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let packed = show(&cluster, job).await.unwrap().files.packed;
    assert!(packed < corpus.files.len() as u64, "it was paused too late to see anything");
    cluster.redis.lose_everything().await.unwrap();
    let brought_back = |view: &JobView| view.files.packed == packed && view.state == JobState::Paused;
    wait_for(&cluster, job, PATIENCE, brought_back).await.unwrap();
    let changed = ask(&cluster, Method::PATCH, &format!("/v1/jobs/{job}"), Some(json!({"max_running": 1}))).await;
    assert_eq!(changed["options"]["max_running"], 1);

    // Resumed, and cancelled while workers are in the middle.
    order(&cluster, job, "resume").await;
    wait_for(&cluster, job, PATIENCE, |view| view.files.packed > packed).await.unwrap();
    order(&cluster, job, "cancel?shards=keep").await;
    let view = wait_for(&cluster, job, PATIENCE, |view| view.state.is_final()).await.unwrap();
    let all = corpus.files.len() as u64;
    assert_eq!((view.state, view.files.packed + view.files.failed), (JobState::Cancelled, all), "{view:?}");
    assert!(view.files.failed > 0, "it was cancelled too late to see anything");

    // Packed after all, watched from a pipe.
    let child = order(&cluster, job, "retry").await.id;
    assert_eq!(order(&cluster, job, "retry").await.id, child);
    let (code, said) = des(&cluster, &["status", &child.to_string(), "--watch"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("completed"), "{said}");
    let rest = show(&cluster, child).await.unwrap();
    assert_eq!((rest.files.packed, rest.files.failed), (view.files.failed, 0));
    let (right, wrong) = read_back(&cluster.retriever.url, &corpus.files).await;
    assert_eq!((right, wrong), (corpus.files.len(), Vec::new()));

    let (code, said) = des(&cluster, &["audit"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("2 jobs") && said.contains("nothing is wrong"), "{said}");
}

/// Shards and unfinished uploads in the buckets of a cluster.
async fn in_the_buckets(cluster: &Cluster) -> (BTreeSet<String>, usize) {
    let (client, mut shards, mut uploads) = (cluster.s3.client(), BTreeSet::new(), 0);
    for bucket in &cluster.buckets {
        let mut pages = client.list_objects_v2().bucket(bucket).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.unwrap();
            let keys = page.contents().iter().filter_map(aws_sdk_s3::types::Object::key);
            shards.extend(keys.filter(|key| key.ends_with(SHARD_SUFFIX)).map(|key| format!("{bucket}/{key}")));
        }
        uploads += client.list_multipart_uploads().bucket(bucket).send().await.unwrap().uploads().len();
    }
    (shards, uploads)
}

/// On real buckets: what the cancelled jobs published goes, and what another job has stays, also where it is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shards_of_cancelled_jobs_go_from_the_buckets_and_those_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Corpus::gather(folder.path(), 400, 29).unwrap();
    let cluster = start(&corpus, 2, 128 << 10).await;
    let first = submit(&cluster, &corpus).await.unwrap().id;
    wait_for(&cluster, first, PATIENCE, |view| view.state.is_final()).await.unwrap();
    let (theirs, _) = in_the_buckets(&cluster).await;
    assert!(theirs.len() > 4, "{theirs:?}");
    // The first of these adopts the shards that are there, the second has keys of its own: its options differ.
    for query in ["name=adopts", "name=writes&big_file_threshold_bytes=9999999"] {
        let manifest = std::fs::read(&corpus.manifest).unwrap();
        let request = Client::new().post(format!("{}/v1/jobs?max_running=1&{query}", cluster.coordinator.url));
        let answer = request.header("content-type", "application/x-ndjson").body(manifest).send().await.unwrap();
        let job = answer.json::<JobView>().await.unwrap().id;
        wait_for(&cluster, job, PATIENCE, |view| view.files.packed > 0).await.unwrap();
        order(&cluster, job, "pause").await;
        let published = in_the_buckets(&cluster).await.0.difference(&theirs).count();
        assert_eq!(published > 0, query.starts_with("name=writes"), "{query}");
        order(&cluster, job, "cancel?shards=drop").await;
        let view = wait_for(&cluster, job, PATIENCE, |view| view.state.is_final()).await.unwrap();
        assert_eq!(view.state, JobState::Cancelled);
        assert_eq!(in_the_buckets(&cluster).await, (theirs.clone(), 0), "{query}");
    }
    let (right, wrong) = read_back(&cluster.retriever.url, &corpus.files).await;
    assert_eq!((right, wrong), (corpus.files.len(), Vec::new()));
    let (code, said) = des(&cluster, &["audit"]).await;
    assert_eq!(code, 0, "{said}");
}
