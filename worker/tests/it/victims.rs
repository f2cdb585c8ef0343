//! Workers that are killed, or held up, at a chosen point.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use des_shared::queue::SharedQueue;
use des_shared::segment::{CodecChoice, Segment, ShardFormat};

use crate::gate::{Gate, Trick};
use crate::script::Script;
use crate::world::{Worker, World, noise, options};

/// A worker packs until it has checkpointed so many parts and is killed there.
pub(crate) async fn killed_after(world: &World, checkpoints: u64) {
    let script = Script::new(world.queue.clone());
    script.freeze_after.store(checkpoints, Ordering::SeqCst);
    let shared: SharedQueue = script.clone();
    let killed = world.worker(Some(shared), world.sources()).await;
    script.checkpointed(checkpoints).await;
    drop(killed);
}

/// A shard of three parts.
pub(crate) fn three_parts(world: &World) -> Segment {
    let files = (0..6).map(|n| world.file(&format!("f{n}"), &noise(n, 2 << 20))).collect();
    world.segment(0, options(ShardFormat::V3, CodecChoice::None), files)
}

/// A worker that has checkpointed a part of a queued shard of three, and waits at the gate for its last file.
pub(crate) async fn held_up(world: &World) -> (Segment, Arc<Gate>, Worker) {
    let segment = three_parts(world);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("f5", Trick::Wait);
    let worker = world.worker(None, gate.clone()).await;
    gate.somebody_waits().await;
    world.until("a part is checkpointed", |c| c.in_progress.files_packed > 0).await;
    (segment, gate, worker)
}
