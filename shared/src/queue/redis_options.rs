//! How to reach Redis: plain data, so that configurations are read the same way whether or not the Redis client is compiled
//! in (feature `redis`).

use std::fmt;
use std::time::Duration;

use super::QueueError;

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// One server: `redis://[[user]:password@]host[:port][/db]`, `rediss://...` for TLS, `redis+unix:///path`.
    /// The master that Sentinels name: `redis+sentinel://[[user]:password@]host[:port],host.../master[/db]`, where user
    /// and password are those of Redis and `?sentinel_username=...&sentinel_password=...` those of the Sentinels.
    /// A cluster: `redis+cluster://[[user]:password@]host[:port],host...`. Both with `rediss+` for TLS.
    pub url: String,
    /// Certificates for TLS.
    pub tls: RedisTls,
    /// Most connections of this process, besides one for listening. Each carries many calls at a time.
    pub connections: usize,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub response_timeout: Duration,
}

/// Certificates for TLS, in PEM.
#[derive(Clone, Default)]
pub struct RedisTls {
    /// The authorities that are trusted, instead of the public ones.
    pub ca: Option<Vec<u8>>,
    /// The client's own certificate and its key, where the server asks for one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisTls(own authorities: {}, own certificate: {})", self.ca.is_some(), self.client.is_some())
    }
}

impl RedisOptions {
    /// The usual limits for Redis at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            tls: RedisTls::default(),
            connections: 4,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
        }
    }

    /// Whether these options make sense; connects to nothing.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] says what is wrong, without secrets.
    pub fn check(&self) -> Result<(), QueueError> {
        #[cfg(feature = "redis")]
        return super::redis::check(self);
        #[cfg(not(feature = "redis"))]
        Err(no_client())
    }
}

/// The answer of a build without the Redis client.
#[cfg(not(feature = "redis"))]
pub(super) fn no_client() -> QueueError {
    QueueError::Invalid(crate::features::missing("redis", "the queue in Redis"))
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, tls, connections, connect_timeout, response_timeout } = self;
        f.debug_struct("RedisOptions")
            .field("url", &redact(url))
            .field("tls", tls)
            .field("connections", connections)
            .field("connect_timeout", connect_timeout)
            .field("response_timeout", response_timeout)
            .finish()
    }
}

/// A URL that may be shown: without user, password and parameters.
pub(super) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "(not a URL)".to_owned() };
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (place, parameters) = rest.split_at(end);
    if parameters.contains('@') {
        // Is that sign in a parameter, or is the question mark in a password? Nobody can tell.
        return format!("{scheme}://***");
    }
    match place.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => format!("{scheme}://{place}"),
    }
}
