//! The des command line: pack, inspect, verify, submit, and a whole cluster in one process.
//!
//! `main` calls [`run`]: it parses the command line ([`args`]), runs one command and turns what came of it into an exit
//! code ([`error::Exit`]). What a command found goes to standard output, as text or with `--json` as JSON; progress,
//! warnings and errors go to standard error ([`output`]).

mod access;
mod args;
mod bench;
mod client;
mod error;
mod failures;
mod folder;
mod input;
mod inspect;
mod onebox;
mod output;
mod pack;
mod remote;
mod values;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::Parser;
use des_shared::telemetry::Logging;

use args::{Args, Command};
use error::{CliError, Exit};
use output::Screen;

/// Runs `des` with these arguments, program name first, and returns its exit code.
///
/// Not generic: a generic function is compiled in the program that calls it, and everything it awaits with it.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let screen = Screen::new(args.json);
    let logging = start_log();
    let outcome = block_on(command(args.command, screen));
    drop(logging);
    finish(outcome, screen)
}

/// Runs `des-pack` with these arguments, program name first, and returns its exit code.
pub fn run_des_pack(args: Vec<OsString>) -> ExitCode {
    let args = match pack::DropInArgs::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let screen = Screen::new(false);
    let logging = start_log();
    let outcome = block_on(pack::drop_in(args, screen));
    drop(logging);
    finish(outcome, screen)
}

async fn command(command: Command, screen: Screen) -> Result<Exit, CliError> {
    match command {
        Command::Demo(args) => onebox::demo(args, screen).await,
        Command::Dev(args) => onebox::dev(args, screen).await,
        Command::Pack(args) => pack::pack(args, screen).await,
        Command::Bench(args) => bench::bench(args, screen).await,
        Command::Ls(args) => inspect::ls(args, screen).await,
        Command::Cat(args) => inspect::cat(args, screen).await,
        Command::Verify(args) => inspect::verify(args, screen).await,
        Command::Submit(args) => remote::submit(args, screen).await,
        Command::Jobs(args) => remote::jobs(args, screen).await,
        Command::Status(args) => remote::status(args, screen).await,
        Command::Pause(args) => remote::pause(args, screen).await,
        Command::Resume(args) => remote::resume(args, screen).await,
        Command::Cancel(args) => remote::cancel(args, screen).await,
        Command::Retry(args) => remote::retry(args, screen).await,
        Command::Share(args) => remote::share(args, screen).await,
        Command::Dead(args) => remote::dead(args, screen).await,
        Command::Audit(args) => remote::audit(args, screen).await,
        Command::Get(args) => remote::get(args, screen).await,
        Command::Key(args) => access::key(&args, screen),
        Command::Sign(args) => access::sign(&args, screen),
    }
}

fn block_on(work: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start the threads of this process: {e}")))?;
    let outcome = runtime.block_on(work);
    // A reader of standard input may sit in a blocking read that nothing ends.
    runtime.shutdown_background();
    outcome
}

fn finish(outcome: Result<Exit, CliError>, screen: Screen) -> ExitCode {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(error) => {
            screen.error(&error);
            error.exit()
        }
    };
    exit.into()
}

/// `--help` and `--version` are answers, everything else clap says is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
    match error.print() {
        Ok(()) => exit.into(),
        Err(_) => Exit::PipeClosed.into(),
    }
}

/// Services that run inside this process log only what needs attention, unless `DES_LOG` asks for more.
fn start_log() -> Logging {
    use des_shared::telemetry::{LogSettings, init};
    let filter = std::env::var("DES_LOG").unwrap_or_else(|_| "error".to_owned());
    init(&LogSettings { filter, ..LogSettings::default() })
}
