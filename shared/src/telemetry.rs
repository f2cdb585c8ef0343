//! Logs: text for people or one JSON object a line, to standard error. Spans carry the job and the task.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Values, settings};

/// What to log, and how.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// Look of a line.
    pub format: LogFormat,
    /// Filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

impl LogSettings {
    /// Reads `DES_LOG_FORMAT` and `DES_LOG`.
    pub fn read(values: &mut Values) -> Option<Self> {
        let format = LogFormat::read(values);
        let filter = values.read(&settings::LOG, |text| match text.parse::<EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(e) => Err(format!("{text:?} is not a log filter: {e}")),
        });
        Some(Self { format: format?, filter: filter? })
    }
}

/// The S3 library logs every refused request as an error, and whole requests when told to; what matters of them is logged
/// by the service. Who wants its lines names it in the filter.
const QUIET: &str = "s3s=off";

/// Begins to log. Called once by each `main`; a second call in the same process changes nothing.
pub fn init(settings: &LogSettings) {
    let filter = format!("{QUIET},{}", settings.filter).parse::<EnvFilter>().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let outcome = match settings.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).finish().try_init(),
    };
    if let Err(e) = outcome {
        tracing::debug!("logging was set up before: {e}");
    }
}
