//! What must hold when the chaos is over, read from the stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use des_shared::archive::RemoteShard;
use des_shared::ids::JobId;
use des_shared::job::JobState;
use des_shared::layout;
use des_shared::queue::TaskState;
use des_shared::receipt::Receipt;
use des_shared::state::StateStore;
use des_shared::store::s3::{S3Config, S3Store};
use des_shared::store::{SharedStore, StoreErrorKind};
use futures::TryStreamExt;

use super::files::Files;
use super::{ChaosError, failed};
use crate::cluster::{Cluster, ZONE_NAMES};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Tasks of all jobs.
    pub tasks: usize,
    /// Tasks without a receipt.
    pub lost_tasks: usize,
    /// Files of all jobs.
    pub accepted: u64,
    /// Files in shards.
    pub packed: u64,
    /// Files in failure lists.
    pub failed: u64,
    /// Files in neither.
    pub lost_files: u64,
    /// Shards.
    pub shards: usize,
    /// Shards that were written twice with different bytes.
    pub republished: usize,
}

async fn store(cluster: &Cluster, bucket: &str, prefix: String) -> Result<SharedStore, ChaosError> {
    let config = S3Config { prefix, ..cluster.s3.config(bucket) };
    let store = S3Store::connect(&config).await.map_err(|e| failed("S3", e))?;
    Ok(Arc::new(store))
}

/// The state store of a cluster, past every proxy.
pub(super) async fn state_of(cluster: &Cluster) -> Result<StateStore, ChaosError> {
    let prefix = format!("{}/_des/", ZONE_NAMES[0]);
    Ok(StateStore::new(store(cluster, &cluster.buckets[0], prefix).await?))
}

/// Whether one of two jobs began when the other had ended: then the same submission, without an Idempotency-Key, is
/// a job of its own.
pub(super) async fn one_after_the_other(state: &StateStore, a: JobId, b: JobId) -> Result<bool, String> {
    // Servers keep whole seconds.
    const ROUNDED_MS: u64 = 1000;
    let written = async |key: String| match state.objects().head(&key).await {
        Ok(meta) => Ok(Some(meta.last_modified_ms)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    };
    for (first, second) in [(a, b), (b, a)] {
        let ended = written(layout::end(first)).await?;
        let began = written(layout::job_record(second)).await?;
        if let (Some(ended), Some(began)) = (ended, began)
            && began + ROUNDED_MS >= ended
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks at every job.
pub(super) async fn check(
    cluster: &Cluster,
    state: &StateStore,
    jobs: &[JobId],
    files: &Files,
    wrong: &mut Vec<String>,
) -> Result<Checked, ChaosError> {
    let mut zones = BTreeMap::new();
    for (bucket, name) in cluster.buckets.iter().zip(ZONE_NAMES) {
        zones.insert(name.to_owned(), store(cluster, bucket, format!("{name}/")).await?);
    }
    let mut sums = Checked::default();
    let mut digests: BTreeMap<(String, String), String> = BTreeMap::new();
    for &job in jobs {
        match one_job(state, &zones, job, files, &mut sums).await {
            Ok(receipts) => {
                for shard in receipts.into_iter().filter_map(|receipt| receipt.shard) {
                    let place = (shard.zone.clone(), shard.key.clone());
                    if digests.insert(place, shard.digest.clone()).is_some_and(|before| before != shard.digest) {
                        wrong.push(format!("{} is the shard of two different plans", shard.key));
                    }
                }
            }
            Err(why) => wrong.push(format!("job {job}: {why}")),
        }
    }
    sums.shards = digests.len();
    Ok(sums)
}

async fn one_job(
    state: &StateStore,
    zones: &BTreeMap<String, SharedStore>,
    job: JobId,
    files: &Files,
    sums: &mut Checked,
) -> Result<Vec<Receipt>, String> {
    sums.accepted += files.files.len() as u64;
    let text = |e: des_shared::state::StateError| e.to_string();
    let plan = state.plan(job).await.map_err(text)?.ok_or("it was never planned")?;
    let end = state.end(job).await.map_err(text)?.ok_or("it has not ended")?;
    let receipts: Vec<Receipt> = state.receipts(job).try_collect().await.map_err(text)?;
    sums.tasks += plan.tasks.len();
    sums.lost_tasks += plan.tasks.len().saturating_sub(receipts.len());
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    for receipt in &receipts {
        if receipt.state != TaskState::Committed {
            return Err(format!("task {} is {:?}", receipt.task, receipt.state));
        }
        let Some(shard) = &receipt.shard else { continue };
        let zone = zones.get(&shard.zone).ok_or_else(|| format!("who is zone {}", shard.zone))?;
        let remote = RemoteShard::open(zone.clone(), &shard.key).await.map_err(|e| e.to_string())?;
        let entries: Vec<_> = remote.entries().try_collect().await.map_err(|e| e.to_string())?;
        for entry in entries {
            *places.entry(entry.uid).or_default() += 1;
        }
    }
    let wanted: BTreeSet<&str> = files.files.iter().map(|file| file.uid.as_str()).collect();
    let found: BTreeSet<&str> = places.keys().map(String::as_str).collect();
    sums.packed += end.files_packed;
    sums.failed += end.files_failed;
    sums.lost_files += wanted.difference(&found).count() as u64;
    if wanted != found {
        return Err(format!("{} files wanted, {} found", wanted.len(), found.len()));
    }
    if let Some((uid, count)) = places.iter().find(|(_, count)| **count != 1) {
        return Err(format!("{uid} is in {count} shards"));
    }
    let sound = end.state == JobState::Completed
        && end.files_failed == 0
        && end.files_packed == plan.files
        && plan.files == files.files.len() as u64;
    if sound { Ok(receipts) } else { Err(format!("{} files planned, it ended as {end:?}", plan.files)) }
}

/// From now on the buckets keep every version of every object.
pub(super) async fn keep_versions(cluster: &Cluster) -> Result<(), ChaosError> {
    let client = cluster.s3.client();
    for bucket in &cluster.buckets {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let done = client.put_bucket_versioning().bucket(bucket).versioning_configuration(on).send().await;
        done.map_err(|e| failed("versioning", aws_sdk_s3::error::DisplayErrorContext(e)))?;
    }
    Ok(())
}

/// Shards that have more than one version.
pub(super) async fn written_twice(cluster: &Cluster) -> Result<Vec<String>, ChaosError> {
    let client = cluster.s3.client();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for bucket in &cluster.buckets {
        let (mut key, mut version) = (None, None);
        loop {
            let page = client.list_object_versions().bucket(bucket).set_key_marker(key).set_version_id_marker(version);
            let page = page.send().await.map_err(|e| failed("versions", aws_sdk_s3::error::DisplayErrorContext(e)))?;
            for object in page.versions() {
                let name = object.key().unwrap_or_default();
                if name.ends_with(des_shared::layout::SHARD_SUFFIX) {
                    let tag = object.e_tag().unwrap_or_default().to_owned();
                    versions.entry(format!("{bucket}/{name}")).or_default().push(tag);
                }
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            key = page.next_key_marker().map(str::to_owned);
            version = page.next_version_id_marker().map(str::to_owned);
        }
    }
    let twice = versions.into_iter().filter(|(_, tags)| tags.iter().collect::<BTreeSet<_>>().len() > 1);
    Ok(twice.map(|(key, tags)| format!("{key} was written as {tags:?}")).collect())
}
