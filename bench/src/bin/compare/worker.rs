//! Packing as one worker does it, without the queue: planned shards into any store, a slot for each core.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use des_bench::corpus::{Corpus, DAY};
use des_shared::archive::{Depth, VerifyEvent, verify};
use des_shared::config::SourceRoots;
use des_shared::ids::{JobId, TaskId, Uid};
use des_shared::layout::SHARD_SUFFIX;
use des_shared::manifest::{ManifestReader, SourceBase};
use des_shared::plan::{PlanConfig, plan_manifest};
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::segment::{PackOptions, Segment, SegmentFile};
use des_shared::store::{SharedStore, list_all};
use des_worker::config::default_slots;
use des_worker::pack::{NoHooks, PackJob, PackLimits, pack_segment};
use des_worker::source::{SourceOpener, Sources};
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::Failure;

/// When the job would have been accepted, Unix milliseconds.
const SEQUENCE: u64 = 1_741_600_000_000;

fn task(number: u32) -> TaskId {
    TaskId { job: JobId::from_parts(SEQUENCE, [0; 10]), number }
}

/// The shards of a manifest, 16 slots a day.
pub(super) fn planned(manifest: &Path, options: &PackOptions) -> Result<Vec<Segment>, Failure> {
    let config = PlanConfig { n_bits: NBits::new(4)?, ..PlanConfig::new() };
    let reader = ManifestReader::new(std::fs::File::open(manifest)?)?;
    let mut segments = Vec::new();
    for shard in plan_manifest(reader, &SourceBase::None, config)? {
        let number = u32::try_from(segments.len())?;
        segments.push(shard?.into_segment(task(number), SEQUENCE, options.clone()));
    }
    Ok(segments)
}

/// One shard of all these files, whatever slots they belong to.
pub(super) fn one_shard(corpus: &Corpus, number: u32, options: &PackOptions) -> Result<Segment, Failure> {
    let files = corpus.files.iter().map(|file| {
        Ok(SegmentFile {
            uid: Uid::new(file.uid.as_str())?,
            created_at: DAY.to_owned(),
            size_bytes: file.size,
            source: corpus.path(file).to_str().ok_or("a path is not UTF-8")?.to_owned(),
        })
    });
    let files = files.collect::<Result<Vec<_>, Failure>>()?.into();
    let slot = Slot { date: ShardDate { year: 2025, month: 3, day: 10 }, index: 0, n_bits: NBits::new(4)? };
    Ok(Segment { task: task(number), slot, number, sequence: SEQUENCE, options: options.clone(), files })
}

/// Packs the segments into a store; the bytes stored.
pub(super) async fn pack(store: &SharedStore, segments: Vec<Segment>, sources: &Path) -> Result<u64, Failure> {
    let roots = SourceRoots { folders: vec![sources.to_owned()], buckets: Vec::new() };
    let opener: Arc<dyn SourceOpener> = Arc::new(Sources::new(roots, BTreeMap::new()));
    let limits = PackLimits::default();
    let packing = segments.into_iter().map(|segment| {
        let (store, opener, limits) = (store.clone(), Arc::clone(&opener), limits.clone());
        let job = PackJob::task(Arc::new(segment), store, limits, CancellationToken::new());
        async move {
            let packing = tokio::spawn(async move { pack_segment(&job, Vec::new(), opener, &NoHooks).await });
            let packed = packing.await??;
            match packed.failed.first() {
                None => Ok::<_, Failure>(packed.totals.stored_bytes),
                Some(failure) => Err(failure.message.clone().into()),
            }
        }
    });
    let slots = default_slots() as usize;
    stream::iter(packing).buffer_unordered(slots).try_fold(0, async |sum, bytes| Ok(sum + bytes)).await
}

/// Reads every shard of a store through; there must be this many files in them, all of them right.
pub(super) async fn verified(store: &SharedStore, files: usize) -> Result<(), Failure> {
    let objects: Vec<_> = list_all(store.clone(), String::new()).try_collect().await?;
    let mut entries = 0;
    for object in objects.into_iter().filter(|object| object.key.ends_with(SHARD_SUFFIX)) {
        let mut problem = None;
        let mut on_event = |event| {
            if let VerifyEvent::Problem(error) = event {
                problem.get_or_insert(error);
            }
        };
        let report = verify(store.clone(), &object.key, Depth::Full, None, &mut on_event).await?;
        if let Some(error) = problem {
            return Err(error.into());
        }
        entries += report.entries;
    }
    if entries != files as u64 {
        return Err(format!("{entries} files are in the shards instead of {files}").into());
    }
    Ok(())
}
