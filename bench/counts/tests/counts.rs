//! Counts that tell a slower or larger DES from the one that was measured: stored bytes, calls of a store, and, where
//! valgrind is installed, instructions and allocations of the hot functions. Never a time.
//!
//! The folder `counts` beside this file has what is right. A test that fails prints the old and the new count; when the new one is
//! meant, `DES_ACCEPT_COUNTS=1 cargo test -p des-counts` writes it down.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use des_bench::corpus::DAY;
use des_bench::made_up;
use des_shared::archive::{RecordingStore, RemoteShard};
use des_shared::config::SourceRoots;
use des_shared::ids::{JobId, TaskId, Uid};
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::segment::{CodecChoice, PackOptions, Segment, SegmentFile};
use des_shared::store::SharedStore;
use des_shared::store::local::LocalStore;
use des_worker::pack::{NoHooks, PackJob, PackLimits, Packed, pack_segment};
use des_worker::source::Sources;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

/// Instructions may grow by this much: processors differ in which of several routines a library chooses.
const INSTRUCTIONS_PERCENT: u64 = 10;
/// Allocations may grow by this much: the standard library differs by version.
const ALLOCATIONS_PERCENT: u64 = 2;
/// What `counted` can do.
const WORKS: [&str; 9] =
    ["route", "manifest", "plan", "look-up", "index", "encode-none", "encode-lz4", "encode-zstd", "decode"];

/// Compares with what is written down under a name, or writes down what is new. With 0 percent the counts must be the same.
fn judge(what: &str, percent: u64, new: &BTreeMap<String, u64>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/counts/{what}.json"));
    if std::env::var_os("DES_ACCEPT_COUNTS").is_some() {
        let text = serde_json::to_string_pretty(new).expect("JSON") + "\n";
        return fs::write(file, text).expect("the counts can be written");
    }
    let old: BTreeMap<String, u64> =
        serde_json::from_slice(&fs::read(file).expect("the counts")).expect("the counts are JSON");
    let mut wrong = Vec::new();
    for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
        let (old, new) = (old.get(name).copied(), new.get(name).copied());
        let most = old.map(|old| old + old * percent / 100);
        let is_right = if percent == 0 { new == old } else { new.is_some() && new <= most };
        let shown = |count: Option<u64>| count.map_or("none".to_owned(), |count| count.to_string());
        if !is_right {
            let (old, new, most) = (shown(old), shown(new), shown(most));
            wrong.push(format!("{what}, {name}: was {old}, is {new}, may be at most {most}"));
        } else if new < old.map(|old| old / 2) {
            println!("{what}, {name}: was {}, is {}; worth writing down", shown(old), shown(new));
        }
    }
    assert!(wrong.is_empty(), "{}\nIf that is meant: DES_ACCEPT_COUNTS=1 cargo test -p des-counts", wrong.join("\n"));
}

/// Files of one kind in a folder.
fn segment(folder: &Path, options: PackOptions, files: &[(String, Vec<u8>)]) -> Segment {
    let list: Vec<SegmentFile> = files
        .iter()
        .map(|(uid, bytes)| {
            let path = folder.join(uid);
            fs::write(&path, bytes).expect("a file");
            SegmentFile {
                uid: Uid::new(uid.as_str()).expect("a uid"),
                created_at: DAY.to_owned(),
                size_bytes: bytes.len() as u64,
                source: path.to_str().expect("UTF-8").to_owned(),
            }
        })
        .collect();
    let slot = Slot { date: ShardDate { year: 2025, month: 3, day: 10 }, index: 0, n_bits: NBits::default() };
    let task = TaskId { job: JobId::from_parts(1_741_600_000_000, [0; 10]), number: 0 };
    Segment { task, slot, number: 0, sequence: 1_741_600_000_000, options, files: list.into() }
}

async fn packed(store: &SharedStore, folder: &Path, segment: Segment) -> Packed {
    let roots = SourceRoots { folders: vec![folder.to_owned()], buckets: Vec::new() };
    let sources = Arc::new(Sources::new(roots, BTreeMap::new()));
    let job = PackJob::task(Arc::new(segment), store.clone(), PackLimits::default(), CancellationToken::new());
    let packed = pack_segment(&job, Vec::new(), sources, &NoHooks).await.expect("packs");
    assert!(packed.failed.is_empty(), "{:?}", packed.failed);
    packed
}

/// Files by name.
type Contents = Vec<(String, Vec<u8>)>;

/// Small records, and texts of 16 KiB that make several parts.
fn corpora() -> [(&'static str, Contents); 2] {
    let mut rng = StdRng::seed_from_u64(7);
    let records = (0..3_000).map(|number| (format!("record-{number:05}.json"), made_up::record(&mut rng))).collect();
    let texts = (0..1_200).map(|number| {
        let mut text = Vec::with_capacity(16 << 10);
        while text.len() < 16 << 10 {
            text.extend_from_slice(&made_up::record(&mut rng));
            let noise: [u8; 64] = rng.random();
            text.extend_from_slice(&noise);
        }
        (format!("text-{number:05}.txt"), text)
    });
    [("records", records), ("texts", texts.collect())]
}

#[tokio::test]
async fn the_same_files_take_the_same_bytes_and_calls() {
    let mut new = BTreeMap::new();
    for (kind, files) in corpora() {
        for codec in [CodecChoice::None, CodecChoice::Lz4, CodecChoice::Zstd] {
            let dir = tempfile::tempdir().expect("a folder");
            let (sources, out) = (dir.path().join("in"), dir.path().join("out"));
            fs::create_dir(&sources).expect("a folder");
            let sources = fs::canonicalize(sources).expect("a folder");
            let recording = Arc::new(RecordingStore::new(Arc::new(LocalStore::create(&out).expect("a folder"))));
            let store: SharedStore = recording.clone();
            let options = PackOptions { codec, ..PackOptions::default() };
            let packed = packed(&store, &sources, segment(&sources, options, &files)).await;
            let object = packed.object.expect("a shard");
            new.insert(format!("{kind}, {codec}: bytes"), object.size);
            for call in recording.take() {
                *new.entry(format!("{kind}, {codec}: {:?} to pack", call.operation)).or_default() += 1;
            }
            let shard = RemoteShard::open(store.clone(), &object.key).await.expect("opens");
            for (uid, bytes) in files.iter().step_by(100) {
                let entry = shard.find(uid).await.expect("a look-up").expect("the file");
                assert!(shard.read(&entry).await.expect("the file") == *bytes, "{uid}");
            }
            for call in recording.take() {
                *new.entry(format!("{kind}, {codec}: {:?} to read", call.operation)).or_default() += 1;
            }
        }
    }
    judge("stored", 0, &new);
}

/// Instructions and allocations of a program's whole run.
fn callgrind(work: &str, times: u32, folder: &Path) -> (u64, u64) {
    let out = folder.join(format!("{work}-{times}"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--compress-strings=no"]).arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(env!("CARGO_BIN_EXE_counted")).args([work, &times.to_string()]);
    let output = valgrind.output().expect("valgrind runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out).expect("callgrind's output");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("totals");
    let mut allocations = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(called) = line.strip_prefix("cfn=") else { continue };
        let is_allocator = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"].contains(&called);
        let calls = lines.next().and_then(|line| line.strip_prefix("calls=")?.split(' ').next()?.parse::<u64>().ok());
        allocations += calls.filter(|_| is_allocator).unwrap_or_default();
    }
    (total.trim().parse().expect("a number"), allocations)
}

#[test]
fn hot_functions_take_no_more_instructions_and_allocations() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("valgrind is not installed, so nothing was counted; scripts/setup --checks installs it");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let next = Mutex::new(WORKS.iter());
    let (instructions, allocations) = (Mutex::new(BTreeMap::new()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(4) {
            scope.spawn(|| {
                loop {
                    let Some(work) = next.lock().expect("no panic").next() else { return };
                    let (once, twice) = (callgrind(work, 1, dir.path()), callgrind(work, 2, dir.path()));
                    instructions.lock().expect("no panic").insert((*work).to_owned(), twice.0 - once.0);
                    allocations.lock().expect("no panic").insert((*work).to_owned(), twice.1 - once.1);
                }
            });
        }
    });
    let (instructions, allocations) = (instructions.into_inner(), allocations.into_inner());
    let (instructions, allocations) = (instructions.expect("no panic"), allocations.expect("no panic"));
    assert!(instructions.values().all(|n| *n > 1_000), "{instructions:?}");
    assert!(allocations["manifest"] > 1_000, "{allocations:?}");
    if !cfg!(debug_assertions) {
        println!("counts are written down for development builds: {instructions:?}, {allocations:?}");
        return;
    }
    judge("instructions", INSTRUCTIONS_PERCENT, &instructions);
    judge("allocations", ALLOCATIONS_PERCENT, &allocations);
}
