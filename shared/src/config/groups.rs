//! Groups of settings that more than one service reads, checked into types.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::{Values, settings};
use crate::job::{JobDefaults, MAX_INLINE_BYTES, MAX_SHARD_SIZE};
use crate::queue::QueueConfig;
use crate::queue::redis_options::{RedisOptions, RedisTls};
use crate::routing::NBits;
use crate::segment::PackOptions;

/// Redis and the queue's rules.
#[derive(Clone)]
pub struct QueueSettings {
    /// How to reach Redis. May hold a password.
    pub redis: RedisOptions,
    /// The queue's rules.
    pub queue: QueueConfig,
}

impl fmt::Debug for QueueSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSettings").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl QueueSettings {
    /// Reads `settings::QUEUE`.
    pub fn read(values: &mut Values) -> Option<Self> {
        let redis = Self::redis(values);
        let namespace = values.read(&settings::NAMESPACE, |text| {
            let ok = !text.is_empty()
                && text.len() <= 64
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
            if ok {
                Ok(text.to_owned())
            } else {
                Err(format!("{text:?} is not 1 to 64 of the characters A-Z a-z 0-9 - _ . :"))
            }
        });
        let lease = values.number(&settings::LEASE_SECONDS, 1..=3600);
        let max_attempts = values.number(&settings::MAX_ATTEMPTS, 1..=1000);
        Some(Self {
            redis: redis?,
            queue: QueueConfig {
                namespace: namespace?,
                lease: Duration::from_secs(lease?),
                max_attempts: max_attempts? as u32,
                ..QueueConfig::default()
            },
        })
    }
}

impl QueueSettings {
    /// Where Redis is. The form is checked here, and nothing is connected to.
    fn redis(values: &mut Values) -> Option<RedisOptions> {
        let file = |values: &mut Values, setting| {
            values.text(setting)?;
            values.read(setting, |path| std::fs::read(path).map_err(|error| format!("{path}: {error}")))
        };
        let ca = file(values, &settings::REDIS_CA_FILE);
        let (certificate, key) = (file(values, &settings::REDIS_CERT_FILE), file(values, &settings::REDIS_KEY_FILE));
        if values.text(&settings::REDIS_CERT_FILE).is_some() != values.text(&settings::REDIS_KEY_FILE).is_some() {
            values.problem("DES_REDIS_CERT_FILE and DES_REDIS_KEY_FILE go together: one of them is missing");
        }
        let Some(url) = values.text(&settings::REDIS_URL) else {
            values.problem("DES_REDIS_URL (--redis-url): required, for example redis://127.0.0.1:6379/0");
            return None;
        };
        let mut options = RedisOptions::new(url.trim());
        options.tls = RedisTls { ca, client: certificate.zip(key) };
        match options.check() {
            Ok(()) => Some(options),
            Err(error) => {
                // These words are made for showing: they hold no secret.
                values.problem(format!("DES_REDIS_URL (--redis-url): {error}"));
                None
            }
        }
    }
}

/// Defaults of a job that says nothing, from `settings::JOB_DEFAULTS`.
pub fn job_defaults(values: &mut Values, n_bits: NBits) -> Option<JobDefaults> {
    let format = values.read(&settings::SHARD_FORMAT, str::parse);
    let codec = values.read(&settings::CODEC, str::parse);
    let level = values.number(&settings::LEVEL, 1..=22);
    let max_shard_size = values.number(&settings::MAX_SHARD_SIZE, 1..=MAX_SHARD_SIZE);
    let threshold = values.number(&settings::BIG_FILE_THRESHOLD, 0..=MAX_INLINE_BYTES);
    let bigfiles_prefix = values.read(&settings::BIGFILES_PREFIX, |text| {
        let text = text.trim_matches('/');
        // A prefix that looks like a shard name would break every look-up (FORMAT: nothing else may start like one).
        let ok = !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if ok { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a key prefix such as _bigFiles")) }
    });
    Some(JobDefaults {
        n_bits,
        max_shard_size: max_shard_size?,
        pack: PackOptions {
            format: format?,
            codec: codec?,
            level: level? as i32,
            big_file_threshold_bytes: threshold?,
            bigfiles_prefix: bigfiles_prefix?,
        },
    })
}

/// Keys of the HTTP interface. Only their digests are kept.
#[derive(Clone, Default)]
pub struct Auth {
    digests: Vec<[u8; 32]>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({} keys)", self.digests.len())
    }
}

/// Keys separated by commas. What is wrong is not said with the key in it.
fn keys(text: &str) -> Result<Vec<String>, String> {
    let keys: Vec<String> = text.split(',').map(|k| k.trim().to_owned()).filter(|k| !k.is_empty()).collect();
    if keys.is_empty() || keys.iter().any(|k| k.len() < 8) { Err(String::new()) } else { Ok(keys) }
}

impl Auth {
    /// Reads the keys of one setting; `None` when it is not set.
    ///
    /// # Errors
    /// Notes a problem with the setting, and answers `Some` of no keys at all.
    pub fn read(values: &mut Values, setting: &super::Setting) -> Option<Self> {
        values.text(setting)?;
        Some(Self::new(values.read(setting, keys).unwrap_or_default()))
    }

    /// These keys; none means every request is let in.
    pub fn new(keys: Vec<String>) -> Self {
        Self { digests: keys.into_iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect() }
    }

    /// Whether requests need a key at all.
    pub fn required(&self) -> bool {
        !self.digests.is_empty()
    }

    /// SHA-256 of each key, in the order of the setting.
    pub fn digests(&self) -> &[[u8; 32]] {
        &self.digests
    }

    /// Whether `given` is one of the keys. Takes the same time whichever fits, and wherever the first difference lies.
    pub fn accepts(&self, given: &[u8]) -> bool {
        let given = Sha256::digest(given);
        self.digests.iter().fold(Choice::from(0), |found, digest| found | digest[..].ct_eq(&given)).into()
    }
}

/// Where and to whom a service listens.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// Who is let in.
    pub auth: Auth,
    /// How long a stopping service may finish its work.
    pub drain: Duration,
}

impl Listen {
    /// Reads the address (a service's own setting, for its default) and `settings::PROCESS`.
    pub fn read(values: &mut Values, listen: &super::Setting) -> Option<Self> {
        let address = values.read(listen, |text| {
            text.parse::<SocketAddr>()
                .map_err(|_| format!("{text:?} is not an address such as 127.0.0.1:8080 or [::]:8080"))
        });
        let keys = match values.text(&settings::API_KEYS) {
            None => Some(Vec::new()),
            Some(_) => values.read(&settings::API_KEYS, keys),
        };
        let anonymous = values.flag(&settings::ALLOW_ANONYMOUS);
        let drain = values.number(&settings::DRAIN_SECONDS, 0..=3600);
        let (address, keys, anonymous, drain) = (address?, keys?, anonymous?, drain?);
        // The retriever knows other kinds of keys too; a service that does not has no such settings.
        let other_keys = [settings::KEYS_FILE, settings::URL_SIGNING_KEYS].iter().any(|s| values.text(s).is_some());
        if !address.ip().is_loopback() && keys.is_empty() && !other_keys && !anonymous {
            values.problem(format!(
                "DES_LISTEN (--listen): {address} is not loopback, so set DES_API_KEYS (keys of 8 characters or more; a \
                 retriever also takes DES_KEYS_FILE), or DES_ALLOW_ANONYMOUS=true to serve everybody"
            ));
            return None;
        }
        Some(Self { address, auth: Auth::new(keys), drain: Duration::from_secs(drain) })
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Reads `settings::LOG_FORMAT`.
    pub fn read(values: &mut Values) -> Option<Self> {
        values.read(&settings::LOG_FORMAT, |text| match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a log format; expected text or json")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(pairs: &[(&str, &str)]) -> Result<Listen, super::super::ConfigErrors> {
        let all: Vec<_> = settings::PROCESS.iter().chain(&[settings::LISTEN_COORDINATOR]).copied().collect();
        let mut values = Values::from_pairs(&all, pairs);
        let listen = Listen::read(&mut values, &settings::LISTEN_COORDINATOR);
        values.finish(listen)
    }

    #[test]
    fn an_open_address_wants_keys_or_an_opt_out() {
        assert!(listen(&[]).is_ok());
        assert!(listen(&[("DES_LISTEN", "[::1]:1")]).is_ok());
        let text = listen(&[("DES_LISTEN", "0.0.0.0:80")]).unwrap_err().to_string();
        assert!(text.contains("DES_API_KEYS") && text.contains("DES_ALLOW_ANONYMOUS"), "{text}");
        assert!(listen(&[("DES_LISTEN", "0.0.0.0:80"), ("DES_ALLOW_ANONYMOUS", "yes")]).is_ok());
        let keyed = listen(&[("DES_LISTEN", "0.0.0.0:80"), ("DES_API_KEYS", "correct-horse, battery-staple")]).unwrap();
        assert!(keyed.auth.accepts(b"battery-staple"));
        assert!(!keyed.auth.accepts(b"battery-stapl"));
        assert!(!format!("{keyed:?}").contains("staple"));
    }

    fn queue(pairs: &[(&str, &str)]) -> Result<QueueSettings, super::super::ConfigErrors> {
        let mut values = Values::from_pairs(settings::QUEUE, pairs);
        let queue = QueueSettings::read(&mut values);
        values.finish(queue)
    }

    #[test]
    fn wrong_forms_of_redis_are_refused_before_any_connection() {
        for url in ["redis://:hunter2@h:1/0", "rediss://h", "redis+sentinel://a,b/m", "redis+cluster://:hunter2@a,b"] {
            assert_eq!(queue(&[("DES_REDIS_URL", url)]).expect(url).redis.url, url);
        }
        for (pairs, why) in [
            (vec![], "required"),
            (vec![("DES_REDIS_URL", "localhost:hunter2")], "scheme"),
            (vec![("DES_REDIS_URL", "redis+sentinel://:hunter2@a,b")], "name of the master"),
            (vec![("DES_REDIS_URL", "redis://h"), ("DES_REDIS_CA_FILE", "/nowhere/ca.pem")], "/nowhere/ca.pem"),
            (vec![("DES_REDIS_URL", "rediss://h"), ("DES_REDIS_CERT_FILE", "Cargo.toml")], "go together"),
            (vec![("DES_REDIS_URL", "rediss://h"), ("DES_REDIS_CA_FILE", "Cargo.toml")], "PEM"),
            (vec![("DES_REDIS_URL", "redis://h"), ("DES_REDIS_CA_FILE", "Cargo.toml")], "no URL for TLS"),
        ] {
            let text = queue(&pairs).expect_err(why).to_string();
            assert!(text.contains(why) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn job_defaults_are_those_of_the_contract() {
        let mut values = Values::from_pairs(settings::JOB_DEFAULTS, &[]);
        let defaults = job_defaults(&mut values, NBits::default());
        assert_eq!(values.finish(defaults).unwrap(), JobDefaults::default());
    }
}
