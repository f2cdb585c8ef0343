//! `des-pack`: the name, flags and output lines of the existing tool, so that scripts around it go on working.
//!
//! What differs on purpose: earlier shards are never overwritten, a manifest with a mistake writes nothing at all, and a
//! file that cannot be read is reported while the others are packed (exit code 3).

use std::path::PathBuf;

use clap::Parser;
use des_shared::routing::{DateRule, NBits};
use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};

use super::{Names, Request, SideBySide, run};
use crate::args::S3Args;
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::input::{Input, current_folder};
use crate::output::Screen;
use crate::values::{parse_bigfiles_prefix, parse_n_bits};

/// Pack files into DES shard files locally, as existing readers expect them.
#[derive(Debug, Parser)]
#[command(
    name = "des-pack",
    version,
    infer_long_args = true,
    after_help = "Exit codes:  0 done   1 failed   2 wrong usage   3 done, but some files are in no shard"
)]
pub(crate) struct DropInArgs {
    /// Path to the JSON file that lists the files to pack; relative sources are relative to the current folder
    #[arg(long, value_name = "INPUT_JSON")]
    input_json: String,
    /// Folder for the .des shards; numbers go on from the highest that is there
    #[arg(long, value_name = "OUTPUT_DIR")]
    output_dir: PathBuf,
    /// Source bytes after which a new shard begins
    #[arg(long, value_name = "MAX_SHARD_SIZE", default_value_t = 1_000_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_size: u64,
    /// Bits of the shard index, 4 to 16
    #[arg(long, value_name = "N_BITS", default_value = "8", value_parser = parse_n_bits)]
    n_bits: NBits,
    /// Larger files become objects of their own beside the shards
    #[arg(long, value_name = "BYTES", default_value_t = 10_485_760, env = "DES_BIG_FILE_THRESHOLD_BYTES", value_parser = clap::value_parser!(u64).range(1..=des_shared::job::MAX_INLINE_BYTES))]
    big_file_threshold_bytes: u64,
    /// Folder of those objects
    #[arg(long, value_name = "NAME", default_value = "_bigFiles", env = "DES_BIGFILES_PREFIX", value_parser = parse_bigfiles_prefix)]
    bigfiles_prefix: String,
    #[command(flatten)]
    s3: S3Args,
}

/// Runs `des-pack`.
///
/// # Errors
/// When the manifest is wrong or the output folder cannot be written.
pub(crate) async fn drop_in(args: DropInArgs, screen: Screen) -> Result<Exit, CliError> {
    match pack(args, screen).await {
        Ok(exit) => Ok(exit),
        // The line that scripts around the existing tool look for, where it puts it.
        Err(CliError::Failed { message, hint }) => {
            screen.line(&format!("Packing failed: {message}"))?;
            if let Some(hint) = hint {
                screen.note(&hint);
            }
            Ok(Exit::Failed)
        }
        Err(other) => Err(other),
    }
}

async fn pack(args: DropInArgs, screen: Screen) -> Result<Exit, CliError> {
    let options = PackOptions {
        format: ShardFormat::V2,
        codec: CodecChoice::None,
        big_file_threshold_bytes: args.big_file_threshold_bytes,
        bigfiles_prefix: args.bigfiles_prefix,
        ..PackOptions::default()
    };
    let request = Request {
        input: Input::find(&args.input_json)?,
        base: Some(current_folder()?),
        output_dir: args.output_dir.clone(),
        options,
        n_bits: args.n_bits,
        max_shard_size: args.max_shard_size,
        date_rule: DateRule::Written,
        names: Names::Bare,
        spool_dir: None,
        side_by_side: SideBySide::new(None),
        s3: args.s3,
        refuse_empty: false,
    };
    let mut outcome = run::run(request, None::<PathBuf>, screen).await?;
    let written = outcome.shards.iter().filter(|shard| shard.key.is_some()).count();
    let (files, size) = (outcome.sum(|s| s.files), outcome.sum(|s| s.source_bytes));
    screen.line(&format!("Wrote {written} shard(s) containing {files} files, total logical size {size} bytes."))?;
    for shard in &outcome.shards {
        if let Some(key) = &shard.key {
            let path = args.output_dir.join(key);
            screen.line(&format!("SHARD: {} files={} size={}", path.display(), shard.files, shard.source_bytes))?;
        }
    }
    let exit = report(&mut outcome.failures, screen)?;
    outcome.put_away().await?;
    Ok(exit)
}

fn report(failures: &mut FailureList, screen: Screen) -> Result<Exit, CliError> {
    failures.show(screen)?;
    Ok(if failures.count() == 0 { Exit::Done } else { Exit::SomeFilesFailed })
}
