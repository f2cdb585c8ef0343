//! Logs: text for people or one JSON object a line, to standard error. Spans carry the job and the task.
//!
//! Logging never ends work and never holds it up: see [`lines`].

mod lines;

use std::io::{self, Write};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::lines::{Destination, Lines};
use crate::config::{LogFormat, Values, settings};

/// What to log, and how.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// Look of a line.
    pub format: LogFormat,
    /// Levels by module, in the syntax of `tracing_subscriber::filter::Targets`: `info` or `des_worker=debug,info`.
    pub filter: String,
}

impl LogSettings {
    /// Reads `DES_LOG_FORMAT` and `DES_LOG`.
    pub fn read(values: &mut Values) -> Option<Self> {
        let format = LogFormat::read(values);
        let filter = values.read(&settings::LOG, |text| match text.parse::<Targets>() {
            Ok(_) => Ok(text.to_owned()),
            Err(e) => Err(format!("{text:?} is not a log filter: {e}")),
        });
        Some(Self { format: format?, filter: filter? })
    }
}

/// The S3 library logs every refused request as an error, and whole requests when told to; what matters of them is logged
/// by the service. Who wants its lines names it in the filter.
const QUIET: &str = "s3s=off";

/// Logging; when this is dropped at the end of a process, the last lines are written.
#[must_use = "the last lines are written when it is dropped"]
pub struct Logging(Option<Lines>);

impl std::fmt::Debug for Logging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logging")
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            lines.flush();
        }
    }
}

/// Begins to log. Each `main` calls it once and keeps the result until the process ends. A second call in the same
/// process changes nothing.
pub fn init(settings: &LogSettings) -> Logging {
    let filter = format!("{QUIET},{}", settings.filter).parse::<Targets>();
    let filter = filter.unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let lost = match settings.format {
        LogFormat::Text => |lines| format!(" WARN des_shared::telemetry: {lines} log lines could not be written\n"),
        LogFormat::Json => |lines| {
            format!("{{\"level\":\"WARN\",\"message\":\"{lines} log lines could not be written\",\"lines\":{lines}}}\n")
        },
    };
    let lines = match Lines::start(Destination { out: Box::new(io::stderr()), lost }) {
        Ok(lines) => lines,
        Err(error) => {
            drop(writeln!(
                io::stderr(),
                "nothing is logged, because the thread that writes logs does not start: {error}"
            ));
            return Logging(None);
        }
    };
    // Errors of the writer are counted by the writer; printing them to standard error would panic where that is closed.
    let builder = tracing_subscriber::fmt().log_internal_errors(false).with_max_level(LevelFilter::TRACE);
    let builder = builder.with_writer(lines.clone());
    let outcome = match settings.format {
        LogFormat::Text => {
            let lines = builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).finish();
            lines.with(filter).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).finish().with(filter).try_init(),
    };
    match outcome {
        Ok(()) => Logging(Some(lines)),
        Err(e) => {
            tracing::debug!("logging was set up before: {e}");
            Logging(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(filter: &str) -> Result<LogSettings, String> {
        let mut values = Values::from_pairs(settings::PROCESS, &[("DES_LOG", filter)]);
        let log = LogSettings::read(&mut values);
        values.finish(log).map_err(|e| e.to_string())
    }

    #[test]
    fn filters_are_levels_by_module() {
        for filter in ["info", "warn,des_shared=info", "des_worker=debug,info", "off"] {
            assert_eq!(read(filter).expect(filter).filter, filter);
        }
        for filter in ["des_worker=loud", "[span{field=1}]=info"] {
            let text = read(filter).expect_err(filter);
            assert!(text.contains("DES_LOG") && text.contains("log filter"), "{text}");
        }
    }
}
