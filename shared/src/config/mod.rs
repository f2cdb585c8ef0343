//! Configuration: flags over environment over a file over defaults.
//!
//! Values are read raw as text, then checked once into typed structs. Every wrong or missing value is reported at once,
//! by name, before any connection is made. A secret never appears in an error or in `--help`.

mod groups;
mod places;
pub mod settings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};

pub use groups::{Auth, Listen, LogFormat, QueueSettings, job_defaults};
pub use places::{SourceRoots, StateSettings, ZoneSettings};

/// One thing that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The environment variable, also the name in a configuration file: `DES_...`.
    pub name: &'static str,
    /// The flag without its dashes.
    pub flag: &'static str,
    /// What stands for the value in `--help`.
    pub value: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// The value when nobody says anything.
    pub default: Option<&'static str>,
    /// Whether the value must never be shown.
    pub secret: bool,
}

/// Where a value came from; named in errors.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// A value as text, with its source.
#[derive(Clone, PartialEq, Eq)]
struct Raw {
    text: String,
    source: Source,
}

/// Every problem of a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem{}:", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Why a command line did not become a configuration.
#[derive(Debug)]
pub enum LoadError {
    /// `--help`, `--version`, or wrong usage: clap's own text.
    Usage(Box<clap::Error>),
    /// The configuration file is missing or malformed.
    Config(ConfigErrors),
}

/// Raw values of a service's settings. Typed readers take values out and note problems; [`Values::finish`] reports
/// them together.
#[derive(Default)]
pub struct Values {
    raw: BTreeMap<&'static str, Raw>,
    problems: Vec<String>,
}

/// The clap command of a service whose settings are `settings`.
pub fn command(name: &'static str, about: &'static str, settings: &[Setting]) -> Command {
    let config = Arg::new("config").long("config").value_name("FILE").help(
        "YAML or JSON file that maps the variables named below to values; flags and environment go before it [env: DES_CONFIG]",
    );
    settings.iter().fold(
        Command::new(name).about(about).version(env!("CARGO_PKG_VERSION")).arg(config),
        |command, setting| {
            let default = setting.default.map(|d| format!(" [default: {d}]")).unwrap_or_default();
            command.arg(
                Arg::new(setting.name)
                    .long(setting.flag)
                    .value_name(setting.value)
                    .allow_hyphen_values(true)
                    .action(ArgAction::Set)
                    .help(format!("{} [env: {}]{default}", setting.help, setting.name)),
            )
        },
    )
}

impl Values {
    /// Reads flags (`args`, program name first), then the environment, then the file of `--config` / `DES_CONFIG`.
    ///
    /// # Errors
    /// [`LoadError::Usage`] for `--help` and unknown flags; [`LoadError::Config`] for an unusable file.
    pub fn load(
        command: Command,
        settings: &[Setting],
        args: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, LoadError> {
        let matches = command.try_get_matches_from(args).map_err(|e| LoadError::Usage(Box::new(e)))?;
        Self::from_matches(&matches, settings, env).map_err(LoadError::Config)
    }

    /// The same for a command line that is already parsed: a subcommand built with [`command`].
    ///
    /// # Errors
    /// [`ConfigErrors`] for an unusable file.
    pub fn from_matches(
        matches: &clap::ArgMatches,
        settings: &[Setting],
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigErrors> {
        let path = matches.get_one::<String>("config").cloned().or_else(|| env("DES_CONFIG")).map(PathBuf::from);
        let mut file = match &path {
            Some(path) => read_file(path)?,
            None => BTreeMap::new(),
        };
        let mut values = Self::default();
        for setting in settings {
            let from_file = file.remove(setting.name);
            let found = matches
                .get_one::<String>(setting.name)
                .map(|text| Raw { text: text.clone(), source: Source::Flag })
                // An empty variable is an unset one, as compose files and shells leave them.
                .or_else(|| {
                    env(setting.name).filter(|t| !t.is_empty()).map(|text| Raw { text, source: Source::Environment })
                })
                .or_else(|| from_file.zip(path.clone()).map(|(text, path)| Raw { text, source: Source::File(path) }))
                .or_else(|| setting.default.map(|d| Raw { text: d.to_owned(), source: Source::Default }));
            if let Some(raw) = found {
                values.raw.insert(setting.name, raw);
            }
        }
        for name in file.keys().filter(|name| !settings::ALL.iter().any(|s| s.name == name.as_str())) {
            let path = path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            values.problems.push(format!("{path}: {name} is not a setting of DES"));
        }
        Ok(values)
    }

    /// Values given directly, for embedding a service in another program and for tests.
    pub fn from_pairs(settings: &[Setting], pairs: &[(&str, &str)]) -> Self {
        let mut values = Self::default();
        for setting in settings {
            let given = pairs.iter().find(|(name, _)| *name == setting.name).map(|(_, text)| *text);
            if let Some(text) = given.or(setting.default) {
                values.raw.insert(setting.name, Raw { text: text.to_owned(), source: Source::Environment });
            }
        }
        values
    }

    /// The text of a setting, if there is one.
    pub fn text(&self, setting: &Setting) -> Option<String> {
        self.raw.get(setting.name).map(|raw| raw.text.clone())
    }

    /// Reads a value with `parse`; a wrong one is noted and `None` returned.
    pub fn read<T>(&mut self, setting: &Setting, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let raw = self.raw.get(setting.name)?;
        match parse(raw.text.trim()) {
            Ok(value) => Some(value),
            Err(why) => {
                // A parser's words may quote the value, so a secret gets none of them.
                let why = if setting.secret {
                    "the value cannot be used (not shown: it is a secret)".to_owned()
                } else {
                    why
                };
                let source = match &raw.source {
                    Source::Flag => format!("--{}", setting.flag),
                    Source::Environment => setting.name.to_owned(),
                    Source::File(path) => format!("{} in {}", setting.name, path.display()),
                    Source::Default => format!("{} (default)", setting.name),
                };
                self.problems.push(format!("{source}: {why}"));
                None
            }
        }
    }

    /// A whole number in `range`.
    pub fn number(&mut self, setting: &Setting, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        self.read(setting, |text| {
            let wrong = || format!("{text:?} is not a whole number from {} to {}", range.start(), range.end());
            text.parse().ok().filter(|n| range.contains(n)).ok_or_else(wrong)
        })
    }

    /// `true`, `1`, `yes`, `on` or their opposites.
    pub fn flag(&mut self, setting: &Setting) -> Option<bool> {
        self.read(setting, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        })
    }

    /// Notes a problem that no single value shows.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// The value if nothing was wrong anywhere.
    ///
    /// # Errors
    /// All problems noted so far.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ if self.problems.is_empty() => Err(ConfigErrors(vec!["a required value is missing".to_owned()])),
            _ => Err(ConfigErrors(self.problems)),
        }
    }
}

/// Reads a configuration file: a flat mapping from variable names to scalars.
fn read_file(path: &std::path::Path) -> Result<BTreeMap<String, String>, ConfigErrors> {
    let fail = |e: &dyn fmt::Display| ConfigErrors(vec![format!("{}: {e}", path.display())]);
    let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
    let values: BTreeMap<String, serde_json::Value> = serde_saphyr::from_str(&text).map_err(|e| fail(&e))?;
    values
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => Ok((name, text)),
            serde_json::Value::Number(n) => Ok((name, n.to_string())),
            serde_json::Value::Bool(b) => Ok((name, b.to_string())),
            serde_json::Value::Null => Ok((name, String::new())),
            _ => Err(fail(&format!("{name} is not a single value"))),
        })
        .filter(|pair| !matches!(pair, Ok((_, text)) if text.is_empty()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::settings::{API_KEYS, LISTEN_COORDINATOR, REDIS_URL, WORKER_SLOTS};
    use super::*;

    fn load(args: &[&str], env: &[(&str, &str)]) -> Values {
        let settings = [REDIS_URL, WORKER_SLOTS, API_KEYS, LISTEN_COORDINATOR];
        let args = std::iter::once("des-test").chain(args.iter().copied()).map(OsString::from);
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Values::load(command("des-test", "test", &settings), &settings, args, |name| env.get(name).cloned())
            .unwrap_or_else(|e| panic!("{e:?}"))
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("des.yaml");
        std::fs::write(&file, "DES_WORKER_SLOTS: 3\nDES_REDIS_URL: redis://file\n").unwrap();
        let path = file.to_str().unwrap();
        let at = |args: &[&str], env: &[(&str, &str)]| load(args, env).text(&WORKER_SLOTS);
        assert_eq!(at(&["--config", path, "--slots", "5"], &[("DES_WORKER_SLOTS", "4")]).as_deref(), Some("5"));
        assert_eq!(at(&["--config", path], &[("DES_WORKER_SLOTS", "4")]).as_deref(), Some("4"));
        assert_eq!(at(&[], &[("DES_CONFIG", path)]).as_deref(), Some("3"));
        assert_eq!(at(&["--config", path], &[("DES_WORKER_SLOTS", "")]).as_deref(), Some("3"));
        assert_eq!(load(&[], &[]).text(&LISTEN_COORDINATOR).as_deref(), Some("127.0.0.1:8080"));
    }

    #[test]
    fn every_wrong_value_is_reported_by_name_and_secrets_are_not_shown() {
        let mut values = load(&["--slots", "none"], &[("DES_API_KEYS", "hunter2")]);
        assert_eq!(values.number(&WORKER_SLOTS, 1..=64), None);
        assert_eq!(values.read(&API_KEYS, |text| Err::<(), _>(format!("{text} is too short"))), None);
        let text = values.finish(Some(())).unwrap_err().to_string();
        assert!(text.contains("--slots: \"none\" is not a whole number from 1 to 64"), "{text}");
        assert!(text.contains("DES_API_KEYS"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn an_unknown_name_in_the_file_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("des.json");
        std::fs::write(&file, r#"{"DES_WORKER_SLOT": 3}"#).unwrap();
        let text = load(&["--config", file.to_str().unwrap()], &[]).finish(Some(())).unwrap_err().to_string();
        assert!(text.contains("DES_WORKER_SLOT is not a setting"), "{text}");
    }
}
