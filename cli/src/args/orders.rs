//! Arguments of the commands that steer jobs.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::CoordinatorArgs;

/// One job.
#[derive(Debug, ClapArgs)]
pub(crate) struct JobArg {
    /// The job
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

/// What becomes of a cancelled job's shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShardsArg {
    /// What was published stays
    Keep,
    /// Delete what was published, where no other job has it
    Drop,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CancelArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// What becomes of shards that are published already
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    pub(crate) shards: ShardsArg,
    /// Wait until every running shard has stopped and the job has ended
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RetryArgs {
    /// The job whose failed files are packed again
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// Wait until the new job has ended, and show its progress
    #[arg(long)]
    pub(crate) wait: bool,
    /// Save the list of files that failed again, as NDJSON that is a manifest again
    #[arg(long, value_name = "FILE", requires = "wait")]
    pub(crate) failures: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

/// What is not given stays as it is.
#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["priority", "weight", "max_running"]))]
pub(crate) struct ShareArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// Higher goes first; -100 to 100
    #[arg(long, allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-100..=100))]
    pub(crate) priority: Option<i32>,
    /// Share among jobs of one priority; 1 to 1000
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) weight: Option<u32>,
    /// Most shards packed at the same time; `none` for no bound
    #[arg(long, value_name = "N", value_parser = parse_max_running)]
    pub(crate) max_running: Option<MaxRunning>,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

/// Most shards of a job packed at the same time; `None` for no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MaxRunning(pub(crate) Option<u32>);

fn parse_max_running(text: &str) -> Result<MaxRunning, String> {
    match (text, text.parse::<u32>()) {
        ("none", _) => Ok(MaxRunning(None)),
        (_, Ok(n)) if n > 0 => Ok(MaxRunning(Some(n))),
        _ => Err(format!("{text:?} is neither a number from 1 on nor \"none\"")),
    }
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DeadCommand>,
    /// Only shards of this job
    #[arg(long, value_name = "JOB")]
    pub(crate) job: Option<String>,
    /// At most this many, oldest job first
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// Pack the files of a shard that was given up again, as a new job
    Retry(DeadTaskArgs),
    /// Take a shard out of the list; its files stay in their job's list of failures
    Drop(DeadTaskArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeadTaskArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// The number of its shard
    #[arg(value_name = "TASK")]
    pub(crate) task: u32,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AuditArgs {
    /// Also mend what is safe to mend
    #[arg(long)]
    pub(crate) repair: bool,
    /// Do not ask the zones for every shard
    #[arg(long)]
    pub(crate) no_shards: bool,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
}
