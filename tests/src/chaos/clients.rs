//! Clients that submit jobs to whichever coordinator answers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use des_shared::ids::JobId;
use tokio::time::Instant;

use super::PATIENCE;

/// Submits until somebody says that it is accepted.
pub(super) async fn submit_until_accepted(
    addresses: &Mutex<Vec<String>>,
    (client, key): (usize, Option<&str>),
    query: &str,
    manifest: &str,
) -> Result<JobId, String> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().map_err(|e| e.to_string())?;
    let began = Instant::now();
    let mut last = "nobody was there".to_owned();
    let mut tries = client;
    while began.elapsed() < PATIENCE * 2 {
        let chosen = {
            let known = addresses.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(tries % known.len().max(1)).cloned()
        };
        tries += 1;
        if let Some(url) = chosen {
            let request = http.post(format!("{url}/v1/jobs?{query}"));
            let request = request.header("content-type", "application/x-ndjson").body(manifest.to_owned());
            let request = match key {
                Some(key) => request.header("idempotency-key", key),
                None => request,
            };
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    let body: Result<serde_json::Value, _> = answer.json().await;
                    let id = body.ok().and_then(|body| body["id"].as_str()?.parse().ok());
                    if let Some(id) = id {
                        return Ok(id);
                    }
                }
                Ok(answer) if answer.status().is_client_error() => {
                    return Err(format!("a submission was refused: {}", answer.text().await.unwrap_or_default()));
                }
                Ok(answer) => last = answer.status().to_string(),
                Err(e) => last = e.to_string(),
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(format!("a submission was never accepted: {last}"))
}
