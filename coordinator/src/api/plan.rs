//! `POST /v1/plan`: what a submission would become. Nothing is stored or queued.

use std::io::Read;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use des_shared::ids::{JobId, TaskId};
use des_shared::job::JobOptions;
use des_shared::layout;
use des_shared::manifest::SourceBase;
use des_shared::plan::{PlanConfig, PlannedShards};
use des_shared::store::zones::Zones;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{ManifestRequest, Payload};
use super::described::SubmitProblems;
use crate::Core;
use crate::error::Error;
use crate::pipe::pipe;
use crate::planner::plan_checked;
use crate::source::parse_base;
use crate::upload::ByteStream;

/// Most shards listed one by one.
const LISTED_SHARDS: usize = 1000;

/// What a submission would become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// The options with every default filled in.
    #[schema(value_type = Object)]
    pub options: JobOptions,
    /// Files in the manifest.
    pub files: u64,
    /// Their bytes.
    pub source_bytes: u64,
    /// How many shards there would be.
    pub shard_count: u64,
    /// The first shards, at most 1000.
    pub shards: Vec<PlannedShardView>,
    /// Whether there are more than are listed.
    pub truncated: bool,
}

/// One shard that would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedShardView {
    /// Its number in the plan.
    pub number: u32,
    /// The zone it would go to.
    pub zone: String,
    /// Its key there.
    pub key: String,
    /// How many files it would hold.
    pub files: u64,
    /// Their bytes.
    pub source_bytes: u64,
}

/// What a submission would become; nothing is kept.
#[utoipa::path(
    post,
    path = "/v1/plan",
    tag = "jobs",
    request_body(content((Object = "application/json"), (String = "application/x-ndjson")), description = "`{\"manifest\": [...] or {\"uri\"}, \"options\": {}}`, or the manifest itself as NDJSON with the options in the query."),
    responses((status = 200, description = "What would become of it.", body = DryRun), SubmitProblems)
)]
pub(super) async fn dry_run(State(core): State<Arc<Core>>, request: Request) -> Result<Json<DryRun>, Error> {
    let ManifestRequest { options, payload } = core.manifest_request(request).await?;
    let options = options.resolve(&core.config.defaults).map_err(Error::BadOptions)?;
    match payload {
        Payload::Inline(manifest, permit) => {
            let plan = PlanInputs::new(&core, options, SourceBase::None);
            let task = core.tasks.spawn_blocking(move || {
                let _permit = permit;
                plan.run(manifest.as_ref())
            });
            task.await.map_err(|e| broke_off(&e))?.map(Json)
        }
        Payload::Remote(uri) => {
            let remote = core.open_manifest(&uri).await?;
            let base = parse_base(Some(&remote.base)).map_err(Error::BadRequest)?;
            core.plan_stream(options, base, remote.body).await.map(Json)
        }
        Payload::Stream(body) => core.plan_stream(options, SourceBase::None, body).await.map(Json),
    }
}

fn broke_off(error: &tokio::task::JoinError) -> Error {
    Error::Machine(format!("planning broke off: {error}"))
}

impl Core {
    async fn plan_stream(&self, options: JobOptions, base: SourceBase, body: ByteStream) -> Result<DryRun, Error> {
        let _permit = self.memory_for(self.config.limits.inline_bytes).await?;
        let (writer, reader) = pipe();
        let plan = PlanInputs::new(self, options, base);
        let planned = self.tasks.spawn_blocking(move || plan.run(reader));
        let mut body = body;
        let fed: Result<(), Error> = async {
            while let Some(chunk) = body.next().await {
                if writer.chunk(chunk?).await.is_err() {
                    return Ok(());
                }
            }
            // A reader that is gone has its own error to tell.
            let _gone = writer.end().await;
            Ok(())
        }
        .await;
        let planned = planned.await.map_err(|e| broke_off(&e))?;
        fed?;
        planned
    }
}

/// Everything a dry run needs on its blocking thread.
struct PlanInputs {
    options: JobOptions,
    base: SourceBase,
    config: PlanConfig,
    zones: Arc<Zones>,
}

impl PlanInputs {
    fn new(core: &Core, options: JobOptions, base: SourceBase) -> Self {
        let config = core.quick_plan_config(&options);
        Self { options, base, config, zones: Arc::clone(&core.deps.zones) }
    }

    fn run(self, manifest: impl Read) -> Result<DryRun, Error> {
        let plan = plan_checked(manifest, &self.base, self.config).map_err(Error::from_plan)?;
        summarise(plan, self.options, &self.zones)
    }
}

fn summarise(plan: PlannedShards, options: JobOptions, zones: &Zones) -> Result<DryRun, Error> {
    let (files, source_bytes) = (plan.files(), plan.source_bytes());
    let mut shards = Vec::new();
    let mut count = 0_u32;
    // Task and sequence are no part of a key.
    let job = JobId::from_parts(0, [0; 10]);
    for shard in plan {
        let shard = shard.map_err(Error::from_plan)?;
        if shards.len() < LISTED_SHARDS {
            let zone = zones.zone_for(shard.slot.index).map_err(|e| Error::Inconsistent(e.to_string()))?;
            let (files, source_bytes) = (shard.files.len() as u64, shard.source_bytes);
            let segment = shard.into_segment(TaskId { job, number: count }, 0, options.pack.clone());
            let key = layout::shard_key(&segment);
            shards.push(PlannedShardView { number: count, zone: zone.name.clone(), key, files, source_bytes });
        }
        count += 1;
    }
    let truncated = count as usize > shards.len();
    Ok(DryRun { options, files, source_bytes, shard_count: u64::from(count), shards, truncated })
}
