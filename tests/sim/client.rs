//! Clients: they submit manifests until somebody says that they are accepted, sometimes several at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use des_shared::ids::JobId;
use des_shared::layout;
use des_shared::store::ObjectStore;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::world::{File, World};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often a client asks before it counts as lost.
const TRIES: u32 = 400;

/// What is submitted.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) files: Vec<File>,
    options: Value,
    key: Option<String>,
    inline: bool,
    /// Every job a client was told of.
    told: Mutex<Vec<JobId>>,
}

impl Submission {
    pub(crate) fn draw(world: &World, number: u64) -> Self {
        let dice = &world.dice;
        let mut files: Vec<File> = world.files.clone();
        if dice.up_to(2) > 0 {
            files.retain(|_| dice.up_to(2) > 0);
        }
        if files.is_empty() {
            files.push(world.files[0].clone());
        }
        let codec = ["none", "lz4", "none", "zstd"][dice.up_to(3) as usize];
        let format = ["v3", "v2", "v3"][dice.up_to(2) as usize];
        let options = json!({
            "max_shard_size": 500 + dice.up_to(30_000),
            "format": format,
            "codec": codec,
            "level": 1,
            "big_file_threshold_bytes": 1000 + dice.up_to(8000),
            "priority": dice.up_to(2),
            "weight": 1 + dice.up_to(3),
        });
        let key = (dice.up_to(1) == 0).then(|| format!("key-{number}"));
        Self { files, options, key, inline: dice.up_to(1) == 0, told: Mutex::default() }
    }

    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    pub(crate) fn told(&self) -> Vec<JobId> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn entries(&self) -> Vec<Value> {
        let entry = |file: &File| {
            json!({
                "uid": file.uid, "created_at": file.created_at, "size_bytes": file.size,
                "source_path": format!("s3://src/{}", file.key),
            })
        };
        self.files.iter().map(entry).collect()
    }

    fn request(&self) -> Request<Body> {
        let (uri, kind, body) = if self.inline {
            let body = json!({"manifest": self.entries(), "options": self.options});
            ("/v1/jobs".to_owned(), "application/json", body.to_string())
        } else {
            let options = self.options.as_object().expect("an object");
            let query: Vec<String> = options
                .iter()
                .map(|(name, value)| {
                    format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                })
                .collect();
            let lines: Vec<String> = self.entries().iter().map(ToString::to_string).collect();
            let lines = lines.join("\n");
            (format!("/v1/jobs?{}", query.join("&")), "application/x-ndjson", lines)
        };
        let mut request = Request::post(uri).header("content-type", kind);
        if let Some(key) = &self.key {
            request = request.header("idempotency-key", key);
        }
        request.body(Body::from(body)).expect("a request")
    }
}

/// Sends a request to some coordinator. `None` when no answer came.
pub(crate) async fn send(world: &World, request: Request<Body>) -> Option<(StatusCode, Bytes)> {
    let router = world.some_coordinator()?;
    let answer = tokio::time::timeout(PATIENCE, router.oneshot(request)).await;
    let Ok(Ok(response)) = answer else { return None };
    let status = response.status();
    let body = tokio::time::timeout(PATIENCE, to_bytes(response.into_body(), 1 << 20)).await.ok()?.ok()?;
    Some((status, body))
}

/// A request without a body.
pub(crate) fn plain(method: Method, uri: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(Body::empty()).expect("a request")
}

/// Gives an order about a job to some coordinator. Whether it was taken; a refusal because of the job's state counts.
pub(crate) async fn order(world: &World, job: JobId, order: &str) -> bool {
    let request = match order.strip_prefix("share ") {
        None => plain(Method::POST, &format!("/v1/jobs/{job}/{order}")),
        Some(share) => Request::patch(format!("/v1/jobs/{job}"))
            .header("content-type", "application/json")
            .body(Body::from(share.to_owned()))
            .expect("a request"),
    };
    match send(world, request).await {
        Some((status, _)) if status.is_success() || status == StatusCode::CONFLICT => {
            world.net.event(format_args!("{order} of job {job}: {status}"));
            true
        }
        Some((status, body)) if status.is_client_error() && status.as_u16() != 429 => {
            let text = String::from_utf8_lossy(&body);
            world.net.ledger.violation(format!("{order} of job {job} was refused: {status} {text}"));
            true
        }
        _ => false,
    }
}

/// Submits until it is accepted, and looks at once whether that is durable.
pub(crate) async fn submit(world: Arc<World>, submission: Arc<Submission>) {
    for _ in 0..TRIES {
        match send(&world, submission.request()).await {
            Some((StatusCode::OK | StatusCode::ACCEPTED, body)) => {
                let view: Value = serde_json::from_slice(&body).expect("a job");
                let id = view["id"].as_str().unwrap_or_default();
                let job: JobId = id.parse().expect("the id of a job");
                world.net.event(format_args!("a client was told of job {job}"));
                for key in [layout::job_record(job), layout::manifest(job)] {
                    if world.state.head(&key).await.is_err() {
                        world.net.ledger.violation(format!("job {job} was accepted, and {key} is not there"));
                    }
                }
                submission.told.lock().unwrap_or_else(PoisonError::into_inner).push(job);
                return;
            }
            Some((status, body)) if !matches!(status.as_u16(), 429 | 500..) => {
                let text = String::from_utf8_lossy(&body);
                world.net.ledger.violation(format!("a submission was refused: {status} {text}"));
                return;
            }
            _ => tokio::time::sleep(Duration::from_millis(500 + world.dice.up_to(2000))).await,
        }
    }
    world.net.ledger.violation("a submission was never accepted".to_owned());
}
