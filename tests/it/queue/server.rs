//! The redis-server of one test, and words to say to it.

use des_tests::servers::{Redis, RedisOptions};
use redis::Value;
use tokio::sync::Mutex;

pub(super) struct RedisServer {
    redis: Mutex<Redis>,
    url: String,
    port: u16,
}

impl RedisServer {
    /// Starts a server without persistence and waits until it answers.
    pub(super) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a server that asks for a password.
    pub(super) async fn start_with(password: Option<&str>) -> Self {
        let options = RedisOptions { password: password.map(str::to_owned), ..RedisOptions::default() };
        let redis = Redis::start_with(options).await.unwrap_or_else(|e| panic!("{e}"));
        Self { url: redis.url(), port: redis.port(), redis: Mutex::new(redis) }
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Runs one command on a connection of its own.
    pub(super) async fn command(&self, words: &[&str]) -> Value {
        self.try_command(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Runs one command that may be refused.
    pub(super) async fn try_command(&self, words: &[&str]) -> redis::RedisResult<Value> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await
    }

    /// SIGKILL.
    pub(super) fn kill(&self) {
        self.redis.try_lock().expect("one test at a time has the server").kill().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Starts the killed server again on the same port, empty.
    pub(super) async fn restart(&self) {
        self.redis.lock().await.start_again().await.unwrap_or_else(|e| panic!("{e}"));
    }
}
