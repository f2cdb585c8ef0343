//! Runs the real binaries and looks at what they say.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use des_shared::layout::SHARD_SUFFIX;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What a command said.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
            err: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
        }
    }

    /// Checks the exit code; shows everything when it is another.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    /// Standard output as NDJSON.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
}

/// `des`, without settings of the machine the test runs on.
pub(crate) fn des_command() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_des")))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars() {
        if name.starts_with("DES_") || name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null());
    command
}

/// `des-pack`, likewise.
pub(crate) fn des_pack_command() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_des-pack")))
}

/// Runs `des` with these arguments.
pub(crate) fn des<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    Ran::of(des_command().args(args).output().expect("des runs"))
}

/// Runs `des` in a folder with an environment.
pub(crate) fn des_in<S: AsRef<OsStr>>(dir: &Path, env: &[(&str, &str)], args: &[S]) -> Ran {
    Ran::of(des_command().current_dir(dir).envs(env.iter().copied()).args(args).output().expect("des runs"))
}

/// Runs `des-pack` in a folder.
pub(crate) fn des_pack<S: AsRef<OsStr>>(dir: &Path, args: &[S]) -> Ran {
    Ran::of(des_pack_command().current_dir(dir).args(args).output().expect("des-pack runs"))
}

/// The reference data.
pub(crate) fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/vectors")
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Writes a file with a fixed time of its last change.
pub(crate) fn file(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
    fs::write(path, bytes).expect("file");
    let at = UNIX_EPOCH + Duration::from_secs(1_741_600_000);
    fs::File::options().write(true).open(path).expect("open").set_modified(at).expect("time");
}

/// A folder with a few kinds of files; returns their uids and bytes, in order.
pub(crate) fn corpus(root: &Path) -> Vec<(String, Vec<u8>)> {
    let noise: Vec<u8> = (0..60_000_u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let mut files: Vec<(String, Vec<u8>)> = (0..40)
        .map(|n| {
            (
                format!("docs/page-{n:02}.txt"),
                format!("page {n}: the same words again and again\n").repeat(n + 1).into_bytes(),
            )
        })
        .collect();
    files.push(("empty".to_owned(), Vec::new()));
    files.push(("photo.jpg".to_owned(), noise));
    files.push(("12345".to_owned(), b"a number".to_vec()));
    files.push(("ünïcode/名 前.txt".to_owned(), "grüße".as_bytes().to_vec()));
    for (name, bytes) in &files {
        file(&root.join(name), bytes);
    }
    files.sort();
    files
}

/// The names in a folder, hidden ones too.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .map(|entries| entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// The shards in a folder.
pub(crate) fn shards(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name.ends_with(SHARD_SUFFIX)).collect()
}

/// A running `des dev`, stopped when dropped.
pub(crate) struct Dev {
    child: Child,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Dev {
    /// Starts it on free ports and waits until it is ready.
    pub(crate) fn start(data: &Path, source_root: &Path) -> Self {
        Self::start_at(data, source_root, "127.0.0.1:0")
    }

    /// The same with a coordinator at this address.
    pub(crate) fn start_at(data: &Path, source_root: &Path, coordinator: &str) -> Self {
        let args = ["--json", "dev", "--data", text(data), "--source-root", text(source_root)];
        let ports = ["--coordinator-listen", coordinator, "--retriever-listen", "127.0.0.1:0"];
        let mut child = des_command().args(args).args(ports).stdout(Stdio::piped()).spawn().expect("des dev starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { child, ready }
    }

    /// URL of the coordinator.
    pub(crate) fn coordinator(&self) -> &str {
        self.ready["coordinator"].as_str().expect("a URL")
    }

    /// URL of the retriever.
    pub(crate) fn retriever(&self) -> &str {
        self.ready["retriever"].as_str().expect("a URL")
    }

    /// Sends a signal and returns the exit code.
    pub(crate) fn stop(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("signal");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Already ended: nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
