//! The command line of `des`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::TypedValueParser as _;
use clap::{Args as ClapArgs, Parser, Subcommand};
use des_shared::job::JobRequest;
use des_shared::routing::NBits;
use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};

mod access;
mod bench;
mod orders;

pub(crate) use access::{KeyCommand, KeyCommandArgs, NewKeyArgs, SignArgs};
pub(crate) use bench::BenchArgs;
pub(crate) use orders::{AuditArgs, CancelArgs, DeadArgs, DeadCommand, JobArg, RetryArgs, ShardsArg, ShareArgs};

use crate::values::{DateRuleArg, parse_bigfiles_prefix, parse_inline_size, parse_n_bits, parse_shard_size};

/// DES packs many files into few immutable shards and serves each of them back by its uid.
#[derive(Debug, Parser)]
#[command(
    name = "des",
    version,
    disable_help_subcommand = true,
    after_help = "Start here:  des demo          packs a folder, serves it over HTTP and compares every file\n\
                  Exit codes:  0 done   1 failed   2 wrong usage   3 done, but some files failed"
)]
pub(crate) struct Args {
    /// Print results as JSON for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pack a folder, read every file back over HTTP and compare: all in one process
    Demo(DemoArgs),
    /// Run coordinator, worker and retriever in one process, and keep running
    Dev(DevArgs),
    /// Pack a manifest or a folder into shards on this machine, without any service
    Pack(PackArgs),
    /// Measure packing and reading back with files of this machine
    Bench(BenchArgs),
    /// List the files of a shard, of a folder of shards or of an s3:// prefix
    Ls(LsArgs),
    /// Write one file's bytes to standard output
    Cat(CatArgs),
    /// Check structure, checksums and every file of shards
    Verify(VerifyArgs),
    /// Submit a manifest or a folder to a coordinator
    Submit(SubmitArgs),
    /// List a coordinator's jobs
    Jobs(JobsArgs),
    /// Show one job, or the queue and the workers
    Status(StatusArgs),
    /// Hand out no more of a job's shards until it is resumed
    Pause(JobArg),
    /// Let a paused job go on
    Resume(JobArg),
    /// Stop a job for good
    Cancel(CancelArgs),
    /// Pack again what failed in a job that has ended
    Retry(RetryArgs),
    /// Change a job's priority, weight or most running shards
    Share(ShareArgs),
    /// List shards that were given up, with their histories; retry or drop them
    Dead(DeadArgs),
    /// Check that queue, state store and shards agree
    Audit(AuditArgs),
    /// Fetch one file from a retriever, or all files of a manifest into a folder
    Get(GetArgs),
    /// Make keys of a retriever
    Key(KeyCommandArgs),
    /// Sign the URL of a file, so that whoever has it may fetch the file for some time
    Sign(SignArgs),
}

/// What changes a shard's bytes, and how files are grouped into shards.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct ShardArgs {
    /// Shard format: v3, or v2 for existing readers
    #[arg(long, value_name = "FORMAT", default_value_t = ShardFormat::V3, env = "DES_SHARD_FORMAT")]
    pub(crate) format: ShardFormat,
    /// Compression: auto, none, zstd or lz4
    #[arg(long, value_name = "CODEC", default_value_t = CodecChoice::Zstd, env = "DES_CODEC")]
    pub(crate) codec: CodecChoice,
    /// zstd level, 1 to 22
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22), env = "DES_LEVEL")]
    pub(crate) level: i32,
    /// Bits of the shard index, 4 to 16: 2^BITS groups of files a day
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = parse_n_bits, env = "DES_N_BITS")]
    pub(crate) n_bits: NBits,
    /// Source bytes after which a new shard begins, for example 500MB or 1GiB
    #[arg(long, value_name = "SIZE", default_value = "1000000000", value_parser = parse_shard_size, env = "DES_MAX_SHARD_SIZE")]
    pub(crate) max_shard_size: u64,
    /// Larger files become objects of their own beside the shards
    #[arg(long = "big-file-threshold", alias = "big-file-threshold-bytes", value_name = "SIZE", default_value = "10485760", value_parser = parse_inline_size, env = "DES_BIG_FILE_THRESHOLD_BYTES")]
    pub(crate) big_file_threshold: u64,
    /// Folder of those objects
    #[arg(long, value_name = "NAME", default_value = "_bigFiles", value_parser = parse_bigfiles_prefix, env = "DES_BIGFILES_PREFIX")]
    pub(crate) bigfiles_prefix: String,
}

impl ShardArgs {
    /// What changes a shard's bytes.
    pub(crate) fn pack_options(&self) -> PackOptions {
        PackOptions {
            format: self.format,
            codec: self.codec,
            level: self.level,
            big_file_threshold_bytes: self.big_file_threshold,
            bigfiles_prefix: self.bigfiles_prefix.clone(),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PackArgs {
    /// A manifest (JSON list or one object a line; plain, gzip or zstd; `-` is standard input) or a folder
    #[arg(value_name = "INPUT")]
    pub(crate) input: String,
    /// Folder for the shards; created where it is missing
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output_dir: PathBuf,
    #[command(flatten)]
    pub(crate) shard: ShardArgs,
    /// Name shards `DATE_HEX_NNNN.des`, as existing readers know them, instead of by their contents' digest
    #[arg(long)]
    pub(crate) bare_names: bool,
    /// Date a file is filed under: utc, or written (the date as written, offset and all)
    #[arg(long, value_name = "RULE", default_value = "utc")]
    pub(crate) date_rule: DateRuleArg,
    /// Save the list of files that could not be packed, as NDJSON that is a manifest again
    #[arg(long, value_name = "FILE")]
    pub(crate) failures: Option<PathBuf>,
    /// Shards packed side by side; one a core when not set, and eight small ones in the place of one
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    /// Folder for temporary files of planning
    #[arg(long, value_name = "DIR", env = "DES_SPOOL_DIR")]
    pub(crate) spool_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) s3: S3Args,
}

/// How to reach `s3://` places. Credentials come from AWS's own variables and files.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct S3Args {
    /// Endpoint of an S3-compatible server; AWS otherwise
    #[arg(long, value_name = "URL", env = "DES_S3_ENDPOINT_URL")]
    pub(crate) s3_endpoint_url: Option<String>,
    /// Region; AWS's own variables otherwise
    #[arg(long, value_name = "REGION", env = "DES_S3_REGION")]
    pub(crate) s3_region: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LsArgs {
    /// A shard file, a folder, or an s3:// place
    #[arg(value_name = "LOCATION")]
    pub(crate) location: String,
    #[command(flatten)]
    pub(crate) s3: S3Args,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CatArgs {
    /// A shard file, a folder, or an s3:// place
    #[arg(value_name = "LOCATION")]
    pub(crate) location: String,
    /// The file's uid
    #[arg(value_name = "UID")]
    pub(crate) uid: String,
    /// When the file was created, as its manifest says: finds its shard at once; without it every shard is searched
    #[arg(long, value_name = "TIME")]
    pub(crate) created_at: Option<String>,
    /// Also when the file was deleted
    #[arg(long)]
    pub(crate) deleted: bool,
    /// Bits of the shard index the archive was packed with
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = parse_n_bits, env = "DES_N_BITS")]
    pub(crate) n_bits: NBits,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: BigFileArgs,
    #[command(flatten)]
    pub(crate) s3: S3Args,
}

/// Where big files lie.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct BigFileArgs {
    /// Folder of big files beside the shards
    #[arg(long, value_name = "NAME", default_value = "_bigFiles", value_parser = parse_bigfiles_prefix, env = "DES_BIGFILES_PREFIX")]
    pub(crate) bigfiles_prefix: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    /// Shard files, folders, or s3:// places
    #[arg(value_name = "LOCATION", required = true)]
    pub(crate) locations: Vec<String>,
    /// Also read the big files beside the shards and compare their hashes; --deep=false leaves them out
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) deep: bool,
    /// Shards checked side by side; one a core when not set
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    #[command(flatten)]
    pub(crate) place: BigFileArgs,
    #[command(flatten)]
    pub(crate) s3: S3Args,
}

/// Where a coordinator is.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct CoordinatorArgs {
    /// URL of the coordinator
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "DES_COORDINATOR_URL")]
    pub(crate) coordinator: String,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
}

/// The key of the HTTP interfaces.
#[derive(Clone, ClapArgs)]
pub(crate) struct KeyArgs {
    /// Key to send in X-API-Key
    #[arg(long, value_name = "KEY", env = "DES_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

impl std::fmt::Debug for KeyArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyArgs({})", if self.api_key.is_some() { "set" } else { "none" })
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SubmitArgs {
    /// A manifest (path, `-`, or an s3:// or file:// URI the coordinator reads itself) or a folder
    #[arg(value_name = "INPUT")]
    pub(crate) input: String,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    /// Wait until the job has ended, and show its progress
    #[arg(long)]
    pub(crate) wait: bool,
    /// Submitting twice with the same key is one job
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Save the list of files that could not be packed, as NDJSON that is a manifest again
    #[arg(long, value_name = "FILE")]
    pub(crate) failures: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: JobArgs,
}

/// Options of a job. What is not given is the coordinator's default.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Job options (by default the coordinator's)")]
pub(crate) struct JobArgs {
    /// A name for people
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Shard format: v2 or v3
    #[arg(long)]
    pub(crate) format: Option<ShardFormat>,
    /// Compression: auto, none, zstd or lz4
    #[arg(long)]
    pub(crate) codec: Option<CodecChoice>,
    /// zstd level, 1 to 22
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: Option<i32>,
    /// Bits of the shard index; must be those of the zones
    #[arg(long, value_name = "BITS", value_parser = parse_n_bits)]
    pub(crate) n_bits: Option<NBits>,
    /// Source bytes after which a new shard begins
    #[arg(long, value_name = "SIZE", value_parser = parse_shard_size)]
    pub(crate) max_shard_size: Option<u64>,
    /// Larger files become objects of their own
    #[arg(long = "big-file-threshold", value_name = "SIZE", value_parser = parse_inline_size)]
    pub(crate) big_file_threshold: Option<u64>,
    /// Higher goes first; -100 to 100
    #[arg(long, allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-100..=100))]
    pub(crate) priority: Option<i32>,
    /// Share among jobs of one priority; 1 to 1000
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) weight: Option<u32>,
    /// Most shards packed at the same time; 1 to 100000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_running: Option<u32>,
}

impl JobArgs {
    /// As the coordinator reads it.
    pub(crate) fn request(&self) -> JobRequest {
        JobRequest {
            name: self.name.clone(),
            n_bits: self.n_bits.map(NBits::get),
            max_shard_size: self.max_shard_size,
            format: self.format,
            codec: self.codec,
            level: self.level,
            big_file_threshold_bytes: self.big_file_threshold,
            priority: self.priority,
            weight: self.weight,
            max_running: self.max_running,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct JobsArgs {
    /// Only jobs in this state: planning, running, paused, completed, `completed_with_errors`, failed or cancelled
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// At most this many, newest first as the coordinator sorts them
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// The job; without it, the queue and the workers
    #[arg(value_name = "JOB")]
    pub(crate) job: Option<String>,
    /// Save the job's list of files that could not be packed, as NDJSON
    #[arg(long, value_name = "FILE", requires = "job")]
    pub(crate) failures: Option<PathBuf>,
    /// Stay and show the job's progress until it has ended: bars on a terminal, lines elsewhere
    #[arg(long, short, requires = "job")]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GetArgs {
    /// The file's uid
    #[arg(value_name = "UID", required_unless_present = "manifest", requires = "created_at")]
    pub(crate) uid: Option<String>,
    /// When the file was created, as its manifest says
    #[arg(long, value_name = "TIME", requires = "uid")]
    pub(crate) created_at: Option<String>,
    /// Fetch all files of this manifest (- for standard input) instead of one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uid", "created_at", "output"], requires = "output_dir")]
    pub(crate) manifest: Option<PathBuf>,
    /// Folder for the files of --manifest, each under {YYYYMMDD}/{UID}; what is there with the right size stays
    #[arg(long, value_name = "DIR", requires = "manifest")]
    pub(crate) output_dir: Option<PathBuf>,
    /// Batches of --manifest fetched side by side
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=16).map(usize::from))]
    pub(crate) parallel: usize,
    /// Save what could not be fetched of --manifest to this file; it is a manifest again
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub(crate) failures: Option<PathBuf>,
    /// URL of the retriever
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", env = "DES_RETRIEVER_URL")]
    pub(crate) retriever: String,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// Write to this file instead of standard output; it appears only when all of it is there
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DevArgs {
    /// Folder for everything that is kept: shards and state; created where it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Folder that sources may be read from; may be given more than once [default: the current folder]
    #[arg(long = "source-root", value_name = "DIR")]
    pub(crate) source_roots: Vec<PathBuf>,
    /// Address of the coordinator [default: 127.0.0.1:8080, or a free port when that is taken]
    #[arg(long, value_name = "ADDR")]
    pub(crate) coordinator_listen: Option<SocketAddr>,
    /// Address of the retriever [default: 127.0.0.1:8000, or a free port when that is taken]
    #[arg(long, value_name = "ADDR")]
    pub(crate) retriever_listen: Option<SocketAddr>,
    /// Shards packed side by side; one a core when not set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) slots: Option<u16>,
    /// Bits of the shard index of a new data folder, 4 to 16 [default: 8]
    #[arg(long, value_name = "BITS", value_parser = parse_n_bits)]
    pub(crate) n_bits: Option<NBits>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DemoArgs {
    /// Folder to pack; inside a checkout of DES, the checkout. Folders named .git, .tools and target are left out
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: Option<PathBuf>,
    /// Keep the shards in this folder instead of removing them at the end
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Keep serving after the comparison, until Ctrl-C
    #[arg(long)]
    pub(crate) keep_running: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn wrong_values_are_refused_before_anything_runs() {
        let parse = |args: &[&str]| Args::try_parse_from([&["des", "pack", "m", "--output-dir", "o"], args].concat());
        assert!(parse(&[]).is_ok());
        for args in [
            ["--n-bits", "3"],
            ["--n-bits", "17"],
            ["--level", "0"],
            ["--level", "23"],
            ["--max-shard-size", "0"],
            ["--format", "v1"],
            ["--codec", "gzip"],
            ["--big-file-threshold", "65MiB"],
            ["--bigfiles-prefix", "2024"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }
}
