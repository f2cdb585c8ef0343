//! The retriever as a process: what only a process can show of its keys.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use des_retriever::{NewKey, Scope, Scopes};
use des_shared::clock::Dice;

/// A running `des-retriever`, killed when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
    /// The read end of its log, kept open but not read.
    unread: Option<Lines<BufReader<ChildStderr>>>,
}

/// What becomes of a process's log once it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    Read,
    Unread,
    Closed,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended: nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(folder: &Path, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_des-retriever"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DES_") || name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("DES_BASE_DIR", folder).env("DES_LISTEN", "127.0.0.1:0").env("DES_LOG_FORMAT", "json");
    command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Process {
    fn start(folder: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_with(folder, env, Log::Read)
    }

    fn start_with(folder: &Path, env: &[(&str, &str)], log: Log) -> Self {
        let mut child = command(folder, env).spawn().expect("des-retriever starts");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let address = loop {
            let line = lines.next().expect("it says where it listens").expect("text");
            let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            if let Some(address) = said["fields"]["address"].as_str().or(said["address"].as_str()) {
                break address.parse().expect("an address");
            }
        };
        let unread = match log {
            Log::Read => {
                std::thread::spawn(move || lines.for_each(drop));
                None
            }
            Log::Unread => Some(lines),
            Log::Closed => None,
        };
        Self { child, address, unread }
    }

    /// The status of a request for a list of what is deleted.
    fn status(&self, key: &str) -> u16 {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let request = format!("GET /tombstones HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }
}

fn key(name: &str) -> NewKey {
    NewKey::make(name, Scopes::of(&[Scope::Admin]), None, None, &Dice::from_os()).expect("a key")
}

#[test]
fn a_hangup_makes_it_read_its_keys_and_does_not_end_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    let (old, new) = (key("old"), key("new"));
    std::fs::write(&file, format!("{}\n", old.key)).expect("written");
    let mut process = Process::start(folder.path(), &[("DES_KEYS_FILE", file.to_str().expect("UTF-8"))]);
    assert_eq!((process.status(&old.secret), process.status(&new.secret)), (200, 401));
    std::fs::write(&file, format!("{}\n", new.key)).expect("written");
    let pid = process.child.id().to_string();
    let told = Command::new("kill").args(["-HUP", &pid]).status().expect("kill runs");
    assert!(told.success());
    let deadline = Instant::now() + Duration::from_secs(20);
    while (process.status(&old.secret), process.status(&new.secret)) != (401, 200) {
        assert!(Instant::now() < deadline, "the new keys were not read");
        std::thread::yield_now();
    }
    assert!(process.child.try_wait().expect("asked").is_none(), "it goes on");
}

#[test]
fn a_file_of_keys_opens_other_addresses_and_a_wrong_one_is_told_with_everything_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    let path = file.to_str().expect("UTF-8");
    let secrets = "a:0123456789abcdef0123456789abcdef";
    std::fs::write(&file, format!("{}\n", key("a").key)).expect("written");
    for env in [("DES_KEYS_FILE", path), ("DES_URL_SIGNING_KEYS", secrets)] {
        drop(Process::start(folder.path(), &[env, ("DES_LISTEN", "0.0.0.0:0")]));
    }
    std::fs::write(&file, "a read hunter2\n").expect("written");
    let env = [("DES_KEYS_FILE", path), ("DES_URL_SIGNING_KEYS", "a:hunter2"), ("DES_CACHE_BYTES", "much")];
    let output = command(folder.path(), &env).output().expect("des-retriever runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["DES_KEYS_FILE", "line 1", "DES_URL_SIGNING_KEYS", "32 characters", "DES_CACHE_BYTES"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_full_or_closed_log_pipe_neither_blocks_nor_ends_the_process() {
    for log in [Log::Closed, Log::Unread] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut process = Process::start_with(folder.path(), &[("DES_LOG", "debug")], log);
        // A line for each; a pipe has room for some hundred.
        for number in 0..1000 {
            let mut stream = TcpStream::connect(process.address).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
            let path = format!("/files/{}?created_at=2025-03-10", "x".repeat(250));
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap_or_else(|e| panic!("{log:?}, request {number}: {e}"));
            assert!(line.contains(" 404 "), "{log:?}: {line}");
        }
        let told = Command::new("kill").arg(process.child.id().to_string()).status().expect("kill runs");
        assert!(told.success());
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            if let Some(status) = process.child.try_wait().expect("asked") {
                break status;
            }
            assert!(Instant::now() < deadline, "{log:?}: it does not end");
            std::thread::yield_now();
        };
        assert!(ended.success(), "{log:?}: {ended}");
        drop(process.unread.take());
    }
}
