//! What is sent, and what came back.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use tokio::process::Command;

use super::contestants::Running;
use super::corpus::Corpus;
use super::{Args, Failure};

/// Files compared before a contestant is timed.
const CHECKED: usize = 200;

/// wrk asks for the lines of a file in a random order: path, and where there is a second word, the range.
const SCRIPT: &str = r#"
local paths, ranges, count = {}, {}, 0
function init(args)
  math.randomseed(os.time() * 1000 + tonumber(tostring(paths):sub(8), 16) % 1000)
  for line in io.lines(args[1]) do
    count = count + 1
    local path, range = line:match("^(%S+) (%S+)$")
    paths[count], ranges[count] = path or line, range
  end
end
function request()
  local at = math.random(count)
  if ranges[at] then
    return wrk.format("GET", paths[at], { Range = ranges[at] })
  end
  return wrk.format("GET", paths[at])
end
"#;

/// What wrk measured.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) p50: String,
    pub(super) p99: String,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s, p50 {}, p99 {}", self.per_second, self.p50, self.p99)
    }
}

/// Compares what a contestant answers with the files.
pub(super) async fn check(running: &Running, corpus: &Corpus) -> Result<(), Failure> {
    let client = reqwest::Client::new();
    let step = (corpus.files.len() / CHECKED).max(1);
    for (file, target) in corpus.files.iter().zip(&running.targets).step_by(step) {
        let mut request = client.get(format!("{}{}", running.base, target.path));
        if let Some(range) = &target.range {
            request = request.header("range", range);
        }
        let response = request.send().await?.error_for_status()?;
        let body = response.bytes().await?;
        let right = match target.range {
            // Stored bytes, compressed: their number is what can be said without a decoder.
            Some(_) => file.stored.as_ref().is_some_and(|(_, first, last)| body.len() as u64 == last - first + 1),
            None => body == file.bytes,
        };
        if !right {
            return Err(format!("{} came back wrong from {}", file.uid, target.path).into());
        }
    }
    Ok(())
}

/// Lets wrk ask for random files, first for a moment that does not count.
pub(super) async fn measure(args: &Args, running: &Running) -> Result<Rate, Failure> {
    let script = running.folder.join("wrk.lua");
    std::fs::write(&script, SCRIPT)?;
    let list = running.folder.join("targets");
    let mut lines = BufWriter::new(File::create(&list)?);
    for target in &running.targets {
        writeln!(lines, "{target}")?;
    }
    lines.flush()?;
    run(args, running, (2, &script, &list)).await?;
    run(args, running, (args.seconds, &script, &list)).await
}

async fn run(
    args: &Args,
    running: &Running,
    (seconds, script, list): (u32, &PathBuf, &PathBuf),
) -> Result<Rate, Failure> {
    let output = Command::new("wrk")
        .args([
            "-t1",
            &format!("-c{}", args.connections),
            &format!("-d{seconds}s"),
            "--latency",
            "--timeout",
            "10s",
            "-s",
        ])
        .arg(script)
        .arg(&running.base)
        .arg("--")
        .arg(list)
        .output()
        .await
        .map_err(|e| format!("wrk: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let word = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(|rest| rest.trim().to_owned()).ok_or_else(|| format!("wrk said no {label}: {text}"))
    };
    Ok(Rate { per_second: word("Requests/sec:")?.parse()?, p50: word("50%")?, p99: word("99%")? })
}
