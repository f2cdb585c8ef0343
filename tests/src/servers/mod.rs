//! Real servers for tests: started on free ports, stopped with the test, whatever becomes of it.

mod ports;
mod redis;
mod redis_cluster;
mod redis_sentinel;
mod seaweed;
mod supervised;
mod tls;

pub use redis::{Redis, RedisOptions, command as redis_command};
pub use redis_cluster::RedisCluster;
pub use redis_sentinel::RedisSentinels;
pub use seaweed::SeaweedFs;
pub use supervised::Supervised;
pub use tls::Certificates;

/// Why a server is not there. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program is not installed.
    #[error("{program} is not there ({looked}); run scripts/setup, which installs what the tests need")]
    Missing {
        /// Name of the program.
        program: &'static str,
        /// Where it was looked for.
        looked: String,
    },
    /// It could not be started, or was not ready in time.
    #[error("{program} did not start: {why}\n--- its log ---\n{log}")]
    NotStarted {
        /// Name of the program.
        program: &'static str,
        /// What happened.
        why: String,
        /// The end of what it printed.
        log: String,
    },
}

/// Looks for a program on PATH.
fn on_path(program: &'static str) -> Result<std::path::PathBuf, ServerError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.ok_or_else(|| ServerError::Missing { program, looked: "on PATH".to_owned() })
}
