//! What was measured, for people and for scripts.

use std::time::Duration;

use serde_json::{Value, json};

use super::Measured;
use crate::args::BenchArgs;
use crate::error::CliError;
use crate::output::{Screen, bytes, count, duration, number_of, per_second, ratio, visible};

/// Files and bytes in some time.
fn rate(files: u64, size: u64, time: Duration) -> String {
    format!("{} files/s, {}/s", count(per_second(files, time)), bytes(per_second(size, time)))
}

fn rate_json(files: u64, size: u64, time: Duration) -> Value {
    json!({
        "files": files, "bytes": size, "seconds": time.as_secs_f64(),
        "files_per_second": per_second(files, time), "bytes_per_second": per_second(size, time),
    })
}

impl Measured {
    /// Bytes of index an entry.
    fn index_per_entry(&self) -> f64 {
        self.back.index_bytes as f64 / self.back.entries.max(1) as f64
    }

    fn microseconds(time: Duration, count: u64) -> f64 {
        time.as_secs_f64() * 1e6 / count.max(1) as f64
    }

    fn of_raw(&self) -> f64 {
        let own = self.packed.files as f64 / self.packed.took.as_secs_f64().max(1e-9);
        own / (self.raw.files as f64 / self.raw.took.as_secs_f64().max(1e-9))
    }

    /// Shows it.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(super) fn tell(&mut self, args: &BenchArgs, screen: Screen) -> Result<(), CliError> {
        if screen.json() { screen.object(&self.as_json(args)) } else { self.as_text(args, screen) }
    }

    fn as_json(&self, args: &BenchArgs) -> Value {
        let Self { chosen, raw, packed, back } = self;
        json!({
            "ok": back.wrong.is_none() && back.missing == packed.failed,
            "folders": chosen.folders, "seed": args.seed, "codec": args.codec.to_string(), "level": args.level,
            "chosen": { "files": chosen.files.len(), "bytes": chosen.bytes, "among": chosen.among },
            "raw_read": rate_json(raw.files, raw.bytes, raw.took),
            "packing": rate_json(packed.files, packed.source_bytes, packed.took),
            "packing_of_raw_read": self.of_raw(),
            "failed": packed.failed, "shards": back.shards,
            "bytes": { "source": packed.source_bytes, "stored": packed.stored_bytes },
            "index": { "entries": back.entries, "bytes": back.index_bytes, "bytes_per_entry": self.index_per_entry() },
            "look_ups": { "files": back.looked_up, "seconds": back.look_ups.as_secs_f64(), "microseconds_each": Self::microseconds(back.look_ups, back.looked_up) },
            "reads": rate_json(back.read, back.bytes, back.reads),
            "compared": { "equal": back.equal, "changed": back.changed, "missing": back.missing, "wrong": back.wrong },
        })
    }

    fn as_text(&self, args: &BenchArgs, screen: Screen) -> Result<(), CliError> {
        let Self { chosen, raw, packed, back } = self;
        let folders: Vec<_> = chosen.folders.iter().map(|folder| folder.display().to_string()).collect();
        let (files, among) = (number_of(chosen.files.len() as u64, "file"), count(chosen.among));
        let mut lines = vec![
            format!("{}: {files} of {among}, {}, seed {}", folders.join(", "), bytes(chosen.bytes), args.seed),
            format!("  only reading    {} (open, read, close; one core)", rate(raw.files, raw.bytes, raw.took)),
            format!(
                "  packing         {} in {}, {:.2} of only reading",
                rate(packed.files, packed.source_bytes, packed.took),
                duration(packed.took),
                self.of_raw()
            ),
            format!(
                "  stored          {} in {} with {} ({})",
                bytes(packed.stored_bytes),
                number_of(back.shards, "shard"),
                args.codec,
                ratio(packed.source_bytes, packed.stored_bytes)
            ),
            format!("  index           {:.1} bytes an entry, uids included", self.index_per_entry()),
            format!(
                "  look-ups        {} a second, {:.1} us each",
                count(per_second(back.looked_up, back.look_ups)),
                Self::microseconds(back.look_ups, back.looked_up)
            ),
            format!("  random reads    {}, one after the other", rate(back.read, back.bytes, back.reads)),
            format!("  compared        {} of {} files are equal to their sources", count(back.equal), count(back.read)),
        ];
        if packed.failed > 0 {
            lines.push(format!("  failed          {} could not be packed", number_of(packed.failed, "file")));
        }
        if back.changed > 0 {
            lines.push(format!("  changed         {} meanwhile, and say nothing", number_of(back.changed, "source")));
        }
        lines.extend(back.wrong.iter().map(|why| format!("  WRONG           {}", visible(why))));
        lines.iter().try_for_each(|line| screen.line(line))
    }
}
