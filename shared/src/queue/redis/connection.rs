//! Connections to Redis: a pool for scripts, an own connection for listening, and what an error means.

use std::fmt;
use std::time::Duration;

use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, Script, ServerErrorKind, Value};

use crate::queue::QueueError;

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[[user]:password@]host[:port][/db]`, `rediss://...` for TLS, `redis+unix:///path`.
    pub url: String,
    /// Most connections of this process, besides one for listening.
    pub connections: usize,
    /// Longest wait for a connection, also for a free one of the pool.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub response_timeout: Duration,
}

impl RedisOptions {
    /// The usual limits for a server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections: 8,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, connections, connect_timeout, response_timeout } = self;
        f.debug_struct("RedisOptions")
            .field("url", &redact(url))
            .field("connections", connections)
            .field("connect_timeout", connect_timeout)
            .field("response_timeout", response_timeout)
            .finish()
    }
}

/// A URL that may be shown: without user, password and parameters.
pub(super) fn redact(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return "(not a URL)".to_owned() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => url.to_owned(),
    }
}

/// The pool and what it takes to open further connections.
pub(super) struct Connections {
    pool: Pool,
    client: Client,
    shown: String,
    connect_timeout: Duration,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("url", &self.shown).finish_non_exhaustive()
    }
}

impl Connections {
    /// Prepares a pool; connects when first used.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] when the URL is none.
    pub(super) fn new(options: &RedisOptions) -> Result<Self, QueueError> {
        let shown = redact(&options.url);
        let invalid = |why: String| {
            QueueError::Invalid(format!("the Redis URL {shown}: {why}; expected redis://[:password@]host[:port][/db]"))
        };
        // The client's own text is left out: it might quote the URL.
        let client = Client::open(options.url.as_str()).map_err(|error| invalid(error.category().to_owned()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.response_timeout));
        let manager = Manager::new_with_config(options.url.as_str(), config)
            .map_err(|error| invalid(error.category().to_owned()))?;
        let pool = Pool::builder(manager)
            .max_size(options.connections.max(1))
            .wait_timeout(Some(options.connect_timeout))
            .create_timeout(Some(options.connect_timeout))
            .recycle_timeout(Some(options.response_timeout))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Self { pool, client, shown, connect_timeout: options.connect_timeout })
    }

    /// Runs a script with `{ns}` as its key. A server that does not know the script yet is taught it.
    pub(super) async fn run(&self, script: &Script, tag: &str, args: &[String]) -> Result<Vec<Value>, QueueError> {
        let mut connection = self.pool.get().await.map_err(|error| self.pool_error(&error))?;
        let mut call = script.prepare_invoke();
        call.key(tag);
        for arg in args {
            call.arg(arg);
        }
        match call.invoke_async(&mut connection).await {
            Ok(values) => Ok(values),
            Err(error) => {
                // Only an error the server itself sent leaves the connection in a known state.
                if !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) {
                    drop(deadpool_redis::Connection::take(connection));
                }
                Err(self.error(&error))
            }
        }
    }

    /// Whether the server answers.
    pub(super) async fn ping(&self) -> Result<(), QueueError> {
        // The pool pings a connection that was used before, and connecting asks for an answer, too.
        let mut connection = self.pool.get().await.map_err(|error| self.pool_error(&error))?;
        let answer: Result<Value, _> = redis::cmd("PING").query_async(&mut connection).await;
        answer.map(|_| ()).map_err(|error| self.error(&error))
    }

    /// A connection of its own that hears what is published on `channel`.
    pub(super) async fn listen(&self, channel: &str) -> Result<redis::aio::PubSub, QueueError> {
        listen(&self.client, channel, self.connect_timeout).await.map_err(|error| self.error(&error))
    }

    fn pool_error(&self, error: &PoolError) -> QueueError {
        match error {
            PoolError::Backend(error) => self.error(error),
            other => QueueError::Unavailable(format!("{}: no connection: {other}", self.shown)),
        }
    }

    /// What the caller should do: data and scripts that do not fit are [`QueueError::Invalid`], all else may pass.
    fn error(&self, error: &RedisError) -> QueueError {
        let text = error.to_string();
        let invalid = match error.kind() {
            ErrorKind::UnexpectedReturnType => true,
            ErrorKind::Server(ServerErrorKind::ResponseError) => text.contains("script"),
            ErrorKind::Extension => error.code() == Some("WRONGTYPE"),
            _ => false,
        };
        let text = format!("{}: {text}", self.shown);
        if invalid { QueueError::Invalid(text) } else { QueueError::Unavailable(text) }
    }
}

async fn listen(client: &Client, channel: &str, timeout: Duration) -> Result<redis::aio::PubSub, RedisError> {
    let subscribe = async {
        let mut listener = client.get_async_pubsub().await?;
        listener.subscribe(channel).await?;
        Ok(listener)
    };
    match tokio::time::timeout(timeout, subscribe).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        for url in [
            "redis://:hunter2@h:6379/0",
            "rediss://me:hunter2@h",
            "redis://me:p@hunter2@h/0",
            "redis+unix:///s?pass=hunter2",
            "hunter2",
            "redis://:hunter2@h:notaport",
        ] {
            let options = RedisOptions::new(url);
            let made = match Connections::new(&options) {
                Ok(connections) => format!("{connections:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            let shown = format!("{options:?} {made}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(redact("redis://:x@h:1/0"), "redis://***@h:1/0");
        assert_eq!(redact("redis://h:1/0"), "redis://h:1/0");
    }
}
