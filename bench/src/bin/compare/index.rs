//! The index: its bytes beside what the uids themselves take, and how long a look-up takes. The planner: lines a second.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use des_bench::made_up::{self, Uids};
use des_shared::manifest::{ManifestReader, SourceBase};
use des_shared::plan::{PlanConfig, plan_manifest};
use des_shared::segment::ShardFormat;

use super::report::{Measured, Ratio, Samples, Table, grouped};
use super::{Args, Failure};

/// Entries of a large index.
const ENTRIES: usize = 1_000_000;
/// Look-ups that are timed.
const LOOK_UPS: usize = 200_000;
/// Lines of the manifest that is planned.
const LINES: u64 = 1_000_000;

/// Measures index and planner.
pub(super) fn measure(args: &Args) -> Result<Measured, Failure> {
    let mut measured = Measured::new("index");
    let mut table = Table::new(&[
        "uids",
        "entries",
        "v2 bytes an entry",
        "v3",
        "the uids, zstd -19",
        "v3 without them",
        "look-up, us",
        "and reading its block, us",
    ]);
    let mut ratios = Vec::new();
    for uids in Uids::ALL {
        for entries in [ENTRIES / 10, ENTRIES] {
            let names = made_up::uids(uids, entries, args.seed);
            let per_entry = |bytes: usize| bytes as f64 / names.len() as f64;
            let index = made_up::index(&names, args.seed)?;
            let v2 = per_entry(made_up::index_bytes(&names, ShardFormat::V2, args.seed)?.1.len());
            let (v3, own) =
                (per_entry(index.bytes), per_entry(zstd::bulk::compress(names.join("\n").as_bytes(), 19)?.len()));
            let (warm, cold) = (look_ups(&index, &names, true)?, look_ups(&index, &names, false)?);
            eprintln!(
                "{} x {entries}: v2 {v2:.1}, v3 {v3:.1}, uids {own:.1} bytes; {warm:.2} us, {cold:.1} us",
                uids.name()
            );
            let numbers = [v2, v3, own, v3 - own].map(|bytes| format!("{bytes:.1}"));
            let mut row = vec![uids.name().to_owned(), grouped(names.len() as f64)];
            row.extend(numbers);
            row.extend([format!("{warm:.2}"), format!("{cold:.1}")]);
            table.row(&row);
            if entries == ENTRIES {
                let what = format!("{}: bytes an entry without the uids' own", uids.name());
                ratios.push(Ratio::new(what, v3 - own, "at most 12"));
                let what = format!("{}: microseconds a look-up", uids.name());
                ratios.push(Ratio::new(what, warm, "below 20"));
            }
        }
    }
    let mut samples = Samples::default();
    for _ in 0..args.rounds {
        plan(&mut samples)?;
    }
    measured.table(&table);
    let rate = |name: &str| samples.spread(name).map_or(0.0, |spread| spread.median);
    ratios.push(Ratio::new("planner: million manifest lines a second, one core", rate("planning") / 1e6, "at least 1"));
    measured.ratios(&ratios);
    measured.say(&format!(
        "Of a manifest of {} lines in memory: only reading and checking {} lines/s, with planning {} lines/s (medians of {} rounds).",
        grouped(LINES as f64),
        grouped(rate("reading")),
        grouped(rate("planning")),
        args.rounds
    ));
    Ok(measured)
}

/// Microseconds a look-up takes with all blocks parsed before, or with parsing the block each time.
fn look_ups(index: &made_up::Index, names: &[String], warm: bool) -> Result<f64, Failure> {
    let blocks = if warm { index.blocks()? } else { Vec::new() };
    let mut place = 0;
    let began = Instant::now();
    let count = if warm { LOOK_UPS } else { LOOK_UPS / 20 };
    for _ in 0..count {
        // A step that is prime to every number of entries here visits all of them in no order.
        place = (place + 618_033_989) % names.len();
        let uid = &names[place];
        let entry = if warm { index.find_in(&blocks, uid)? } else { index.find(uid)? };
        if black_box(entry).is_none() {
            return Err(format!("{uid} is not found").into());
        }
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / count as f64)
}

fn plan(samples: &mut Samples) -> Result<(), Failure> {
    let text = manifest();
    let began = Instant::now();
    let mut lines = 0;
    for item in ManifestReader::new(text.as_bytes())? {
        black_box(item?);
        lines += 1;
    }
    samples.add("reading", LINES as f64 / began.elapsed().as_secs_f64());
    let began = Instant::now();
    let plan = plan_manifest(ManifestReader::new(text.as_bytes())?, &SourceBase::None, PlanConfig::new())?;
    let mut planned = 0;
    for shard in plan {
        planned += black_box(shard?).files.len() as u64;
    }
    let rate = LINES as f64 / began.elapsed().as_secs_f64();
    samples.add("planning", rate);
    eprintln!("planning: {rate:.0} lines/s");
    if (lines, planned) == (LINES, LINES) { Ok(()) } else { Err(format!("{lines} and {planned} of {LINES}").into()) }
}

fn manifest() -> String {
    let mut text = String::new();
    for number in 0..LINES {
        made_up::manifest_line(number, &mut text);
    }
    text.write_char('\n').expect("a string takes any text");
    text
}
