//! A real Redis with a replica, watched by three Sentinels.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::redis::not_started;
use super::{Redis, RedisOptions, ServerError, Supervised, on_path, ports, redis_command};

/// The name the Sentinels know the master by.
const MASTER: &str = "main";
const SENTINELS: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Two servers and their Sentinels; everything ends when it is dropped.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The servers; the first is the master at the start.
    pub servers: [Redis; 2],
    sentinels: Vec<(Supervised, TempDir, u16)>,
    password: String,
}

impl RedisSentinels {
    /// Starts everything and waits until the Sentinels know each other and the replica. Servers and Sentinels ask for
    /// `password`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(password: &str) -> Result<Self, ServerError> {
        let mut options = RedisOptions { password: Some(password.to_owned()), ..RedisOptions::default() };
        options.extra = words(&["--masterauth", password, "--repl-diskless-sync-delay", "0"]);
        let master = Redis::start_with(options.clone()).await?;
        options.extra.extend(words(&["--replicaof", &format!("127.0.0.1 {}", master.port())]));
        let replica = Redis::start_with(options).await?;
        let program = on_path("redis-server")?;
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            let port = ports::free();
            let io = |e: std::io::Error| not_started(e.to_string(), String::new());
            let folder = tempfile::Builder::new().prefix("des-sentinel-").tempdir().map_err(io)?;
            let config = format!(
                "port {port}\nbind 127.0.0.1\nrequirepass {password}\nsentinel sentinel-pass {password}\n\
                 sentinel monitor {MASTER} 127.0.0.1 {} 2\nsentinel auth-pass {MASTER} {password}\n\
                 sentinel down-after-milliseconds {MASTER} 700\nsentinel failover-timeout {MASTER} 5000\n",
                master.port()
            );
            std::fs::write(folder.path().join("sentinel.conf"), config).map_err(io)?;
            let process =
                Supervised::start(folder.path(), &program, ["sentinel.conf", "--sentinel"], &[]).map_err(io)?;
            sentinels.push((process, folder, port));
        }
        let group = Self { servers: [master, replica], sentinels, password: password.to_owned() };
        group.wait_ready().await?;
        Ok(group)
    }

    /// The URL that names the Sentinels, the dead ones too.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|(_, _, port)| format!("127.0.0.1:{port}")).collect();
        let password = &self.password;
        format!("redis+sentinel://:{password}@{}/{MASTER}/0?sentinel_password={password}", hosts.join(","))
    }

    /// Kills the Sentinel that the URL names first.
    ///
    /// # Errors
    /// When the operating system does not say how it ended.
    pub fn kill_first_sentinel(&mut self) -> std::io::Result<()> {
        self.sentinels[0].0.kill().map(drop)
    }

    /// Runs a command on the last Sentinel.
    ///
    /// # Errors
    /// What it answers.
    pub async fn ask(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        self.ask_one(SENTINELS - 1, words).await
    }

    /// Port of the master, as the last Sentinel sees it.
    ///
    /// # Errors
    /// What it answers.
    pub async fn master_port(&self) -> redis::RedisResult<u16> {
        let (_, port): (String, u16) =
            redis::from_redis_value(self.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).await?)?;
        Ok(port)
    }

    /// Asks for a failover; it takes a moment.
    ///
    /// # Errors
    /// What the Sentinel answers.
    pub async fn fail_over(&self) -> redis::RedisResult<()> {
        self.ask(&["SENTINEL", "FAILOVER", MASTER]).await.map(drop)
    }

    async fn ask_one(&self, index: usize, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let port = self.sentinels[index].2;
        redis_command(&format!("redis://:{}@127.0.0.1:{port}/", self.password), words).await
    }

    async fn wait_ready(&self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let mut problem = String::new();
            for index in 0..SENTINELS {
                for question in ["SENTINELS", "REPLICAS"] {
                    let answer = self.ask_one(index, &["SENTINEL", question, MASTER]).await;
                    let known: Vec<std::collections::HashMap<String, String>> =
                        answer.and_then(|value| redis::from_redis_value(value).map_err(Into::into)).unwrap_or_default();
                    let wanted = if question == "SENTINELS" { SENTINELS - 1 } else { 1 };
                    let up = |other: &std::collections::HashMap<String, String>| {
                        let said = |name: &str| other.get(name).map_or("", String::as_str);
                        let flags = said("flags");
                        let linked = question == "SENTINELS" || said("master-link-status") == "ok";
                        linked && !flags.contains("down") && !flags.contains("disconnected")
                    };
                    if known.iter().filter(|other| up(other)).count() < wanted {
                        problem = format!("Sentinel {index} knows these {question}: {known:?}");
                    }
                }
            }
            if problem.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(not_started(problem, self.sentinels[0].0.log_tail()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
