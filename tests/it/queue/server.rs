//! A redis-server of one test: own port, own folder, killed with it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::Value;
use tempfile::TempDir;

pub(super) struct RedisServer {
    child: Mutex<Child>,
    port: u16,
    password: Option<String>,
    dir: TempDir,
}

impl RedisServer {
    /// Starts a server without persistence and waits until it answers.
    pub(super) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a server that asks for a password.
    pub(super) async fn start_with(password: Option<&str>) -> Self {
        let mut tried = Vec::new();
        // Another process may take the port before the server does; then the server ends and another port is tried.
        while tried.len() < 5 {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let child = Mutex::new(spawn(port, password, &dir));
            let server = Self { child, port, password: password.map(str::to_owned), dir };
            if server.answers().await {
                return server;
            }
            tried.push(port);
        }
        panic!("redis-server did not come up on any of the ports {tried:?}");
    }

    pub(super) fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}/0", self.port),
            None => format!("redis://127.0.0.1:{}/0", self.port),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Runs one command on a connection of its own.
    pub(super) async fn command(&self, words: &[&str]) -> Value {
        self.try_command(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn try_command(&self, words: &[&str]) -> redis::RedisResult<Value> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await
    }

    /// SIGKILL.
    pub(super) fn kill(&self) {
        let mut child = self.child.lock().expect("no panic while the lock is held");
        child.kill().expect("kill the server");
        child.wait().expect("reap the server");
    }

    /// Starts the killed server again on the same port, empty.
    pub(super) async fn restart(&self) {
        *self.child.lock().expect("no panic while the lock is held") =
            spawn(self.port, self.password.as_deref(), &self.dir);
        assert!(self.answers().await, "redis-server did not come back on port {}", self.port);
    }

    async fn answers(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.try_command(&["PING"]).await.is_ok() {
                return true;
            }
            if !matches!(self.child.lock().expect("no panic while the lock is held").try_wait(), Ok(None)) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            // It may have been killed by the test already.
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

fn spawn(port: u16, password: Option<&str>, dir: &TempDir) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    command.spawn().unwrap_or_else(|error| panic!("cannot start redis-server ({error}): run scripts/setup first"))
}
