//! What people and scripts see: results on standard output, progress and errors on standard error.

mod human;
mod progress;
mod table;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::CliError;

pub(crate) use human::{bytes, count, duration, ratio};
pub(crate) use progress::{Measure, Meter};
pub(crate) use table::Table;

/// How this process shows things.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    json: bool,
    bars: bool,
}

impl Screen {
    /// Bars only where standard error is a terminal, and never beside JSON.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, bars: !json && io::stderr().is_terminal() }
    }

    /// Whether results are JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// A progress bar on a terminal, a line now and then in a pipe, nothing beside JSON.
    pub(crate) fn meter(&self, label: &str) -> Meter {
        match (self.json, self.bars) {
            (true, _) => Meter::silent(),
            (false, true) => Meter::bar(label),
            (false, false) => Meter::lines(label),
        }
    }

    /// A remark for people on standard error; nothing beside JSON.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            to_stderr(text);
        }
    }

    /// A warning that scripts get too.
    pub(crate) fn warn(&self, text: &str) {
        if self.json {
            to_stderr(&serde_json::json!({ "warning": text }).to_string());
        } else {
            to_stderr(&format!("warning: {text}"));
        }
    }

    /// The last words of a command that failed.
    pub(crate) fn error(&self, error: &CliError) {
        if matches!(error, CliError::PipeClosed) {
            return;
        }
        if self.json {
            to_stderr(&serde_json::json!({ "error": error.to_string(), "hint": error.hint_text() }).to_string());
            return;
        }
        to_stderr(&format!("error: {error}"));
        if let Some(hint) = error.hint_text() {
            to_stderr(&format!("       {hint}"));
        }
    }

    /// One line of text on standard output.
    pub(crate) fn line(&self, text: &str) -> Result<(), CliError> {
        written(writeln!(io::stdout().lock(), "{text}"))
    }

    /// One line of JSON on standard output.
    pub(crate) fn object(&self, value: &impl Serialize) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(value).map_err(|e| CliError::failed(format!("cannot write JSON: {e}")))?;
        line.push(b'\n');
        let mut out = io::stdout().lock();
        written(out.write_all(&line).and_then(|()| out.flush()))
    }
}

/// A write to standard output, as a command's outcome.
pub(crate) fn written(outcome: io::Result<()>) -> Result<(), CliError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(CliError::PipeClosed),
        Err(e) => Err(CliError::failed(format!("cannot write to standard output: {e}"))),
    }
}

/// Standard error may be closed; then there is nobody left to tell.
fn to_stderr(text: &str) {
    let _nobody_to_tell = writeln!(io::stderr().lock(), "{text}");
}
