//! A real redis-server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{ServerError, Supervised, on_path, ports};

const READY_WITHIN: Duration = Duration::from_secs(20);
const PORT_TRIES: usize = 5;

/// How a Redis is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisOptions {
    /// Keep data on disk (`appendonly yes`, synced every second), so that a restart can find it.
    pub keep_data: bool,
    /// Password of the default user.
    pub password: Option<String>,
    /// Further options of redis-server, as on its command line.
    pub extra: Vec<String>,
}

/// A real Redis, killed when it is dropped. The port stays the same over restarts.
#[derive(Debug)]
pub struct Redis {
    // Before the folder: the program must be gone when its folder goes.
    process: Supervised,
    folder: TempDir,
    program: PathBuf,
    port: u16,
    options: RedisOptions,
}

impl Redis {
    /// Starts a Redis without data on disk or password.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start() -> Result<Self, ServerError> {
        Self::start_with(RedisOptions::default()).await
    }

    /// Starts a Redis.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_with(options: RedisOptions) -> Result<Self, ServerError> {
        let program = on_path("redis-server")?;
        let mut last = not_started("no port was free".to_owned(), String::new());
        for _ in 0..PORT_TRIES {
            let folder = tempfile::Builder::new()
                .prefix("des-redis-")
                .tempdir()
                .map_err(|e| not_started(e.to_string(), String::new()))?;
            let port = ports::free();
            let process = launch(&program, &folder, port, &options)?;
            let mut redis = Self { process, folder, program: program.clone(), port, options: options.clone() };
            match redis.wait_ready().await {
                Ok(()) => return Ok(redis),
                // Most likely another process took the port first.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// `redis://...`, with the password where there is one.
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The URL with another port, for a proxy in between.
    pub fn url_through(&self, port: u16) -> String {
        match &self.options.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}/0"),
            None => format!("redis://127.0.0.1:{port}/0"),
        }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its folder: relative names in its options lie there.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs one command on a connection of its own.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        command(&self.url(), words).await
    }

    /// The process, for signals.
    pub fn process(&mut self) -> &mut Supervised {
        &mut self.process
    }

    /// Kills it with SIGKILL. Nothing listens on its port until [`Self::start_again`].
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn kill(&mut self) -> Result<(), ServerError> {
        self.process.kill().map(drop).map_err(|e| not_started(format!("it could not be stopped: {e}"), String::new()))
    }

    /// Starts it again on the same port, after [`Self::kill`]: with the data on disk if it keeps any.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        self.process = launch(&self.program, &self.folder, self.port, &self.options)?;
        self.wait_ready().await
    }

    /// Kills it, removes its data, and starts it again on the same port.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn lose_everything(&mut self) -> Result<(), ServerError> {
        self.kill()?;
        let data = self.folder.path().join("appendonlydir");
        match std::fs::remove_dir_all(&data) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(not_started(format!("{}: {e}", data.display()), String::new())),
        }
        self.start_again().await
    }

    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let problem = match self.ping().await {
                Ok(answer) if answer.ends_with("+PONG\r\n") => return Ok(()),
                Ok(answer) => format!("it answers {answer:?}"),
                Err(e) => e.to_string(),
            };
            if let Ok(Some(status)) = self.process.ended() {
                return Err(not_started(format!("it ended: {status}"), self.process.log_tail()));
            }
            if Instant::now() > deadline {
                return Err(not_started(
                    format!("not ready after {READY_WITHIN:?}: {problem}"),
                    self.process.log_tail(),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ping(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let auth = self.options.password.as_ref().map_or_else(String::new, |p| format!("AUTH {p}\r\n"));
        stream.write_all(format!("{auth}PING\r\nQUIT\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.trim_end_matches("+OK\r\n").to_owned())
    }
}

/// Runs one command on a connection of its own.
///
/// # Errors
/// What the server or the connection says.
pub async fn command(url: &str, words: &[&str]) -> redis::RedisResult<redis::Value> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await
}

fn launch(program: &Path, folder: &TempDir, port: u16, options: &RedisOptions) -> Result<Supervised, ServerError> {
    let append = if options.keep_data { "yes" } else { "no" };
    let port = port.to_string();
    let mut args = vec!["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", append];
    args.extend(["--appendfsync", "everysec", "--daemonize", "no", "--dir", "."]);
    if let Some(password) = &options.password {
        args.extend(["--requirepass", password]);
    }
    args.extend(options.extra.iter().map(String::as_str));
    Supervised::start(folder.path(), program, args, &[]).map_err(|e| not_started(e.to_string(), String::new()))
}

pub(super) fn not_started(why: String, log: String) -> ServerError {
    ServerError::NotStarted { program: "redis-server", why, log }
}
