//! What people and scripts see: results on standard output, progress and errors on standard error.

mod board;
mod human;
mod progress;
mod table;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::CliError;

pub(crate) use board::{Board, Row};
pub(crate) use human::{bytes, count, duration, number_of, per_second, ratio, whole};
pub(crate) use progress::{Measure, Meter, Pace};
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
    pub(crate) fn json(self) -> bool {
        self.json
    }

    /// A progress bar on a terminal, a line now and then in a pipe, nothing beside JSON.
    pub(crate) fn meter(self, label: &str) -> Meter {
        match (self.json, self.bars) {
            (true, _) => Meter::silent(),
            (false, true) => Meter::bar(label),
            (false, false) => Meter::lines(label),
        }
    }

    /// Bars for a job that is watched on a terminal, lines in a pipe, nothing beside JSON.
    pub(crate) fn board(self) -> Board {
        match (self.json, self.bars) {
            (true, _) => Board::silent(),
            (false, true) => Board::bars(),
            (false, false) => Board::lines(),
        }
    }

    /// A remark for people on standard error; nothing beside JSON.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            to_stderr(text);
        }
    }

    /// A warning that scripts get too.
    pub(crate) fn warn(self, text: &str) {
        if self.json {
            to_stderr(&serde_json::json!({ "warning": text }).to_string());
        } else {
            to_stderr(&format!("warning: {text}"));
        }
    }

    /// The last words of a command that failed.
    pub(crate) fn error(self, error: &CliError) {
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
    #[expect(clippy::unused_self, reason = "commands show things through their screen only")]
    pub(crate) fn line(self, text: &str) -> Result<(), CliError> {
        written(writeln!(io::stdout().lock(), "{text}"))
    }

    /// One line of JSON on standard output.
    #[expect(clippy::unused_self, reason = "commands show things through their screen only")]
    pub(crate) fn object(self, value: &impl Serialize) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(value).map_err(|e| CliError::failed(format!("cannot write JSON: {e}")))?;
        line.push(b'\n');
        let mut out = io::stdout().lock();
        written(out.write_all(&line).and_then(|()| out.flush()))
    }
}

/// Standard output for results of many lines.
#[derive(Debug)]
pub(crate) struct Lines(io::BufWriter<io::Stdout>);

impl Lines {
    /// Standard output, buffered.
    pub(crate) fn new() -> Self {
        Self(io::BufWriter::with_capacity(64 * 1024, io::stdout()))
    }

    /// One line of text.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), CliError> {
        written(writeln!(self.0, "{text}"))
    }

    /// One line of JSON.
    pub(crate) fn object(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let outcome = serde_json::to_writer(&mut self.0, value).map_err(io::Error::from);
        written(outcome.and_then(|()| self.0.write_all(b"\n")))
    }

    /// Hands on what is buffered.
    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        written(self.0.flush())
    }
}

/// Text that may hold anything, safe to show on a terminal: control characters are escaped.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
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
