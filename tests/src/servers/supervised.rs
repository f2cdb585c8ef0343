//! A process that cannot outlive the test process.
//!
//! A small shell stands between: it starts the program, and kills it when its own standard input closes, which happens
//! however the test process ends, SIGKILL included. Then it also removes the program's folder.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// $1 is the folder that dies with the test process, $2 the log, the rest the command. The mark tells the case where
/// the test process died from the one where it stopped the program itself and still needs the folder. What the program leaves
/// elsewhere is named, with spaces between, in the variable [`LEFTOVERS`].
const SUPERVISOR: &str = r#"
folder=$1; log=$2; shift 2
exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
program=$!
echo "$program"
exec >/dev/null
( read -r _ <&3; : >"$folder/.orphaned"; kill -9 "$program" ) 2>/dev/null &
watcher=$!
wait "$program"; status=$?
rm -f -- $DES_TEST_LEFTOVERS
if [ -e "$folder/.orphaned" ]; then rm -rf "$folder"; else kill "$watcher" 2>/dev/null; fi
exit "$status"
"#;

/// Files outside its folder that a program does not remove when it is killed.
pub(super) const LEFTOVERS: &str = "DES_TEST_LEFTOVERS";

/// Bytes of a log that are shown.
const LOG_TAIL: u64 = 8 * 1024;

/// A running program with a log. Dropping it kills the program and waits for its end.
#[derive(Debug)]
pub struct Supervised {
    supervisor: Child,
    /// Held open for as long as the program may run.
    lifeline: Option<ChildStdin>,
    pid: Pid,
    log: PathBuf,
}

impl Supervised {
    /// Starts a program. Its output is appended to `folder/log`. The folder is removed if the test process dies;
    /// otherwise it stays.
    ///
    /// # Errors
    /// When the shell cannot be started. A program that cannot be executed is one that ends at once.
    pub fn start<S: AsRef<OsStr>>(
        folder: &Path,
        program: &Path,
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
    ) -> io::Result<Self> {
        let log = folder.join("log");
        let mut command = Command::new("sh");
        command.arg("-c").arg(SUPERVISOR).arg("supervisor").arg(folder).arg(&log).arg(program).args(args);
        command.envs(env.iter().copied()).current_dir(folder);
        // Out of the terminal's foreground group: Ctrl-C must end the tests, and the supervisor must see them end.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut supervisor = command.spawn()?;
        let lifeline = supervisor.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = supervisor.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let pid = line.trim().parse().map_err(|_| io::Error::other(format!("the supervisor said {line:?}")))?;
        Ok(Self { supervisor, lifeline, pid: Pid::from_raw(pid), log })
    }

    /// Process id of the program, not of its supervisor.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        kill(self.pid, signal).map_err(io::Error::from)
    }

    /// The exit status if the program has ended.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.supervisor.try_wait()
    }

    /// Waits for the end of a program that was told to end, at most `limit`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it goes on.
    pub async fn wait(&mut self, limit: std::time::Duration) -> io::Result<ExitStatus> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} goes on", self.pid)));
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Kills the program with SIGKILL and waits for its end. Doing it twice is fine.
    ///
    /// # Errors
    /// When the operating system does not say how it ended.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.supervisor.try_wait()? {
            return Ok(status);
        }
        // The supervisor has not waited for the program yet, so the id is still its own.
        match kill(self.pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => self.supervisor.wait(),
            Err(e) => Err(e.into()),
        }
    }

    /// The end of what the program printed.
    pub fn log_tail(&self) -> String {
        let tail = || -> io::Result<String> {
            let mut file = fs::File::open(&self.log)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        tail().unwrap_or_else(|e| format!("(no log: {e})"))
    }

    /// Lets go of the lifeline, as the end of the test process would.
    pub fn abandon(&mut self) {
        self.lifeline = None;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // A failure here means that the program is gone already.
        let _ = self.kill();
    }
}
