//! `des bench`: how fast packing and reading back are on this machine, with files of its own.
//!
//! [`choose`] picks the files, [`raw`] does nothing but read them, `des pack`'s own code packs them, [`back`] looks every file
//! up and reads it back. Times are of one run with warm caches: what is compared is in the same run. Everything it writes is in
//! one temporary folder, which goes with it.

mod back;
mod choose;
mod raw;
mod tell;

use std::path::Path;

use des_shared::clock::{Clock, SystemClock};
use des_shared::routing::NBits;
use des_shared::segment::PackOptions;

use self::back::ReadBack;
use self::choose::Chosen;
use crate::args::BenchArgs;
use crate::error::{CliError, Exit};
use crate::output::Screen;
use crate::pack::{self, PackedManifest};

/// Everything that was measured.
struct Measured {
    chosen: Chosen,
    raw: raw::Reading,
    packed: PackedManifest,
    back: ReadBack,
}

/// Runs `des bench`.
///
/// # Errors
/// When there are no files, the place cannot be written, or what comes back is not what was packed.
pub(crate) async fn bench(args: BenchArgs, screen: Screen) -> Result<Exit, CliError> {
    let place = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    // Dropped, and with it removed, at the end of this function, whatever happens in between.
    let scratch = tempfile::Builder::new().prefix("des-bench-").tempdir_in(&place);
    let scratch = scratch.map_err(|e| CliError::path("create a folder in", &place, &e))?;
    let mut measured = measure(&args, scratch.path(), screen).await?;
    let exit = measured.exit();
    measured.tell(&args, screen)?;
    Ok(exit)
}

async fn measure(args: &BenchArgs, scratch: &Path, screen: Screen) -> Result<Measured, CliError> {
    let began_ms = SystemClock.now_ms();
    let manifest = scratch.join("manifest.ndjson");
    let wanted = choose::Wanted::new(args, scratch);
    let chosen = uninterrupted(move || {
        let chosen = choose::choose(&wanted, screen)?;
        chosen.write_manifest(&manifest)?;
        Ok(chosen)
    })
    .await?;
    let (chosen, raw) = uninterrupted(move || raw::read_twice(&chosen).map(|reading| (chosen, reading))).await?;
    let out = scratch.join("out");
    let options = PackOptions { codec: args.codec, level: args.level, ..PackOptions::default() };
    let work = pack::Work {
        manifest: scratch.join("manifest.ndjson"),
        output_dir: out.clone(),
        options,
        // All files are of one day: 16 shards.
        n_bits: NBits::new(4).expect("4 is in 4 to 16"),
        jobs: args.jobs,
    };
    let packed = pack::pack_manifest(work, screen).await.map_err(|error| match error {
        // Nothing is kept that one could go on with.
        CliError::InterruptedKept => CliError::Interrupted,
        other => other,
    })?;
    let back = tokio::select! {
        back = back::read_back(&out, &chosen, (args.seed, began_ms), screen) => back?,
        _ = tokio::signal::ctrl_c() => return Err(CliError::Interrupted),
    };
    Ok(Measured { chosen, raw, packed, back })
}

/// Runs something that blocks, until Ctrl-C. It only reads, or writes into the temporary folder; its thread ends with the process.
async fn uninterrupted<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => {
            done.map_err(|e| CliError::failed(format!("the benchmark failed: {e}")))?
        }
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    }
}

impl Measured {
    fn exit(&self) -> Exit {
        if self.back.wrong.is_some() || self.back.missing > 0 {
            Exit::Failed
        } else if self.packed.failed > 0 || self.back.changed > 0 {
            Exit::SomeFilesFailed
        } else {
            Exit::Done
        }
    }
}
