//! Receipts: against the shards they name, and against the job's end.

use std::sync::Arc;

use des_shared::control::Hold;
use des_shared::ids::TaskId;
use des_shared::job::{EndRecord, JobRecord, JobState, PlanRecord};
use des_shared::receipt::{PublishedShard, Receipt};
use des_shared::store::StoreErrorKind;
use futures::stream::{StreamExt, TryStreamExt};

use super::{Audit, Finding, FindingKind, Stop, of_job};
use crate::Core;
use crate::error::Error;

/// Shards asked for side by side.
const HEADS: usize = 16;

/// Sums over the receipts of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    receipts: u64,
    packed: u64,
    failed: u64,
}

/// A receipt, and what is wrong with its shard.
type Checked = (Receipt, Option<(FindingKind, String)>);

impl Audit {
    /// Every receipt of a job.
    pub(super) async fn receipts(
        &mut self,
        record: &JobRecord,
        plan: Option<&PlanRecord>,
        end: Option<&EndRecord>,
    ) -> Result<(), Stop> {
        let job = record.id;
        let control = self.core.state().control(job).await?;
        // Its submitter asked for its shards to go.
        let dropped = control.hold == Hold::Cancelled && control.drop_shards;
        let look = self.look_into_shards && !dropped;
        let core = Arc::clone(&self.core);
        let mut checked = self
            .core
            .state()
            .receipts(job)
            .err_into::<Error>()
            .map_ok(move |receipt| {
                let core = Arc::clone(&core);
                async move {
                    let wrong = match &receipt.shard {
                        Some(shard) if look => wrong_with(&core, shard).await?,
                        _ => None,
                    };
                    Ok::<Checked, Error>((receipt, wrong))
                }
            })
            .try_buffered(HEADS)
            .boxed();
        let mut sums = Sums::default();
        while let Some((receipt, wrong)) = checked.try_next().await? {
            sums.receipts += 1;
            sums.packed += receipt.totals.files_packed;
            sums.failed += receipt.totals.files_failed;
            self.seen.shards += u64::from(look && receipt.shard.is_some());
            if wrong.is_some() {
                self.shard(receipt.task).await?;
            }
        }
        self.seen.receipts += sums.receipts;
        match (plan, end) {
            (Some(plan), Some(end)) if end.state != JobState::Failed => self.ended(record, plan, end, sums).await,
            _ => Ok(()),
        }
    }

    /// A shard that looked wrong, looked at again together with its receipt and its job.
    async fn shard(&mut self, task: TaskId) -> Result<(), Stop> {
        self.pause().await;
        let Some(shard) = self.core.state().receipt(task).await?.and_then(|receipt| receipt.shard) else {
            return Ok(());
        };
        let control = self.core.state().control(task.job).await?;
        if control.hold == Hold::Cancelled && control.drop_shards {
            return Ok(());
        }
        let Some((kind, detail)) = wrong_with(&self.core, &shard).await? else { return Ok(()) };
        let finding = Finding { kind, job: Some(task.job), task: Some(task.number), detail, repaired: false };
        self.tell(finding).await
    }

    async fn ended(&mut self, record: &JobRecord, plan: &PlanRecord, end: &EndRecord, sums: Sums) -> Result<(), Stop> {
        let told = Sums { receipts: plan.tasks.len() as u64, packed: end.files_packed, failed: end.files_failed };
        let adds_up = end.files_packed + end.files_failed == plan.files;
        // Receipts of a job whose retention is over go one by one, after its record's place in the listing.
        if (sums == told && adds_up) || self.core.is_being_removed(record.id).await? {
            return Ok(());
        }
        let detail = format!(
            "the job has {} receipts for {} tasks, {} packed + {} failed in them, {} + {} in its end, and {} accepted",
            sums.receipts, told.receipts, sums.packed, sums.failed, told.packed, told.failed, plan.files
        );
        self.tell(of_job(FindingKind::EndContradicted, record.id, detail)).await
    }
}

/// What is wrong with a published shard.
async fn wrong_with(core: &Core, shard: &PublishedShard) -> Result<Option<(FindingKind, String)>, Error> {
    let PublishedShard { zone, key, size, .. } = shard;
    let Some(place) = core.deps.zones.all().iter().find(|known| known.name == *zone) else {
        let detail = format!("the shard {key} is in zone {zone:?}, which is not one of this installation's");
        return Ok(Some((FindingKind::ShardMissing, detail)));
    };
    Ok(match place.store.head(key).await {
        Ok(meta) if meta.size == *size => None,
        Ok(meta) => {
            let detail =
                format!("the shard {key} in zone {zone:?} has {} bytes, and its receipt says {size}", meta.size);
            Some((FindingKind::ShardChanged, detail))
        }
        Err(e) if e.kind == StoreErrorKind::NotFound => {
            let detail = format!("the shard {key} of a receipt is not in zone {zone:?}; pack its files again");
            Some((FindingKind::ShardMissing, detail))
        }
        Err(e) => return Err(e.into()),
    })
}
