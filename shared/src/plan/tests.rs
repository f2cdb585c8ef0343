//! The plan is the same whatever the memory, duplicates are named, and nothing stays on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::spool::{PlanProgress, Spool};
use super::*;
use crate::created_at::CreatedAt;
use crate::manifest::{ManifestEntry, ManifestReader, PositionUnit, SourceBase};
use crate::segment::SegmentFile;

fn config(dir: &Path, memory_limit_bytes: usize) -> PlanConfig {
    PlanConfig {
        n_bits: NBits::new(4).expect("valid"),
        max_shard_size: 1_000,
        memory_limit_bytes,
        spool_dir: dir.to_owned(),
        ..PlanConfig::new()
    }
}

fn entry(uid: &str, created_at: &str, size_bytes: u64) -> ManifestEntry {
    ManifestEntry {
        uid: Uid::new(uid).expect("uid"),
        created_at: CreatedAt::parse(created_at).expect("time"),
        size_bytes,
        source_path: format!("/src/{uid}"),
    }
}

fn line(number: u64) -> Position {
    Position { unit: PositionUnit::Line, number, byte: number * 100 }
}

fn planner(entries: &[ManifestEntry], config: PlanConfig) -> Result<Planner, PlanError> {
    let mut planner = Planner::new(config)?;
    for (number, entry) in (1..).zip(entries) {
        planner.push(line(number), entry)?;
    }
    Ok(planner)
}

fn plan(entries: &[ManifestEntry], config: PlanConfig) -> Result<Vec<PlannedShard>, PlanError> {
    planner(entries, config)?.finish()?.collect()
}

/// The rules in the plainest words: what every plan must equal.
fn model(entries: &[ManifestEntry], config: &PlanConfig) -> Vec<PlannedShard> {
    let mut order = Vec::new();
    let mut groups: BTreeMap<Slot, Vec<&ManifestEntry>> = BTreeMap::new();
    for entry in entries {
        let slot = Slot::for_new(entry.uid.as_str(), &entry.created_at, config.n_bits, config.date_rule);
        let group = groups.entry(slot).or_default();
        if group.is_empty() {
            order.push(slot);
        }
        group.push(entry);
    }
    let mut shards = Vec::new();
    for slot in order {
        let mut number = 0;
        let mut shard = PlannedShard { slot, number, files: FileList::new(), source_bytes: 0 };
        for entry in &groups[&slot] {
            if !shard.files.is_empty() && shard.source_bytes + entry.size_bytes > config.max_shard_size {
                number += 1;
                let next = PlannedShard { slot, number, files: FileList::new(), source_bytes: 0 };
                shards.push(std::mem::replace(&mut shard, next));
            }
            shard.source_bytes += entry.size_bytes;
            shard.files.push(&SegmentFile {
                uid: entry.uid.clone(),
                created_at: entry.created_at.as_str().to_owned(),
                size_bytes: entry.size_bytes,
                source: entry.source_path.clone(),
            });
        }
        shards.push(shard);
    }
    shards
}

fn many(count: u64) -> Vec<ManifestEntry> {
    (0..count)
        .map(|n| {
            let date = format!("2025-03-{:02}T{:02}:30:00-0{}:00", n % 7 + 1, n % 24, n % 6);
            let uid = if n % 3 == 0 { format!("{n}") } else { format!("dir/{n}-\u{e9}.txt") };
            entry(&uid, &date, (n * 7919) % 700)
        })
        .collect()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("readable").next().is_none()
}

#[test]
fn a_plan_on_disk_with_many_levels_of_runs_equals_the_model() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let entries = many(5_000);
    // So little that every few records are a run of their own and runs are merged and merged again.
    let small = config(dir.path(), 2_000);
    let planner = planner(&entries, small.clone()).expect("planner");
    let progress = planner.progress();
    assert_eq!(progress.files(), 5_000);
    assert!(progress.spooled_bytes() > 0);
    assert!(is_empty(dir.path()), "spool files have no names");
    let shards = planner.finish().expect("plan");
    assert_eq!((shards.files(), progress.grouped()), (5_000, 5_000));
    let want = model(&entries, &small);
    assert_eq!(shards.slots(), want.iter().filter(|shard| shard.number == 0).count() as u64);
    assert_eq!(shards.source_bytes(), entries.iter().map(|e| e.size_bytes).sum::<u64>());
    assert_eq!(shards.collect::<Result<Vec<_>, _>>().expect("shards"), want);
    assert_eq!(progress.planned(), 5_000);

    let large = plan(&entries, config(dir.path(), 64 << 20)).expect("in memory");
    assert_eq!(large, want);
    assert!(is_empty(dir.path()));
}

#[test]
fn what_fits_in_memory_stays_there() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let planner = planner(&many(1_000), config(dir.path(), 64 << 20)).expect("planner");
    let progress = planner.progress();
    assert!(planner.finish().expect("plan").all(|shard| shard.is_ok()));
    assert_eq!(progress.spooled_bytes(), 0);
}

#[test]
fn no_files_make_an_empty_plan_and_an_empty_manifest_an_error() {
    let dir = tempfile::tempdir().expect("temporary folder");
    assert_eq!(plan(&[], config(dir.path(), 1)).expect("plan"), []);
    for manifest in ["", " \n", "[]", " [ ] "] {
        let reader = ManifestReader::new(manifest.as_bytes()).expect("reader");
        let error = plan_manifest(reader, &SourceBase::None, config(dir.path(), 1)).err().expect("empty");
        assert!(matches!(error, PlanError::Manifest(ManifestError::Empty)), "{manifest:?}: {error}");
    }
}

#[test]
fn a_duplicate_names_both_places_the_uid_and_the_date() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for memory in [1, 3_000, 64 << 20] {
        let mut entries = many(400);
        // The repetition that comes first is reported, not the one with the first original.
        entries[390] = ManifestEntry { size_bytes: 5, ..entries[3].clone() };
        entries[300] = entries[100].clone();
        let error = plan(&entries, config(dir.path(), memory)).expect_err("duplicates");
        let text = error.to_string();
        let PlanError::Duplicate(duplicate) = error else { panic!("{text}") };
        assert_eq!((duplicate.first, duplicate.second, duplicate.more), (line(101), line(301), 1));
        assert_eq!(duplicate.uid, entries[100].uid);
        let date = entries[100].created_at.utc_date();
        assert_eq!(duplicate.date, date);
        for part in [duplicate.uid.as_str(), &date.to_string(), "line 101", "line 301"] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert!(is_empty(dir.path()));
}

#[test]
fn the_date_rule_decides_what_is_a_duplicate() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let same_instant = [entry("a", "2025-03-10T23:30:00-05:00", 1), entry("a", "2025-03-11T04:30:00Z", 1)];
    let utc = config(dir.path(), 1 << 20);
    assert!(matches!(plan(&same_instant, utc.clone()), Err(PlanError::Duplicate(_))));
    let written = PlanConfig { date_rule: DateRule::Written, ..utc };
    assert_eq!(plan(&same_instant, written.clone()).expect("two dates").len(), 2);
    let same_text_date = [entry("a", "2025-03-10T23:30:00-05:00", 1), entry("a", "2025-03-10T04:30:00Z", 1)];
    assert!(matches!(plan(&same_text_date, written), Err(PlanError::Duplicate(_))));
    // Equal numbers with different digits are different uids, though they share a slot.
    let utc = config(dir.path(), 1 << 20);
    let numbers = [entry("7", "2025-03-10", 1), entry("007", "2025-03-10", 1)];
    assert_eq!(plan(&numbers, utc).expect("two uids").len(), 1);
}

#[test]
fn a_shard_is_bounded_in_files_and_in_names() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let entries: Vec<_> = (0..100).map(|n| entry(&format!("{}", n * 16), "2025-03-10", 0)).collect();
    let shards = |files, names| {
        let plan = planner(&entries, config(dir.path(), 1 << 20)).expect("planner").finish().expect("plan");
        let shards = plan.with_caps(files, names).collect::<Result<Vec<_>, _>>().expect("shards");
        assert_eq!(shards.iter().map(|s| s.files.len()).sum::<usize>(), 100);
        assert!(shards.iter().map(|s| s.number).eq(0..shards.len() as u32));
        shards.iter().map(|s| s.files.len()).collect::<Vec<_>>()
    };
    assert_eq!(shards(MAX_FILES_PER_SHARD, MAX_SEGMENT_NAME_BYTES), [100]);
    assert_eq!(shards(40, MAX_SEGMENT_NAME_BYTES), [40, 40, 20]);
    assert!(shards(usize::MAX, 300).iter().all(|files| *files <= 7));
    // A file whose name alone is beyond the bound still gets its shard.
    assert_eq!(shards(usize::MAX, 0), [1; 100]);
}

#[test]
fn sizes_beyond_64_bits_in_sum_are_cut() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let entries = [entry("0", "2025-03-10", u64::MAX), entry("16", "2025-03-10", u64::MAX)];
    let config = PlanConfig { max_shard_size: u64::MAX, ..config(dir.path(), 1 << 20) };
    let shards = plan(&entries, config).expect("plan");
    assert_eq!(shards.iter().map(|shard| shard.source_bytes).collect::<Vec<_>>(), [u64::MAX; 2]);
}

#[test]
fn a_full_disk_names_the_spool_folder() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let progress = Arc::new(PlanProgress::default());
    let spool = Spool::new(dir.path().to_owned(), Arc::clone(&progress)).on_full_disk();
    let mut planner = Planner::with_spool(config(dir.path(), 1_000), progress, spool).expect("planner");
    let error = (1..).zip(many(1_000)).find_map(|(n, entry)| planner.push(line(n), &entry).err()).expect("full");
    let text = error.to_string();
    let PlanError::Spool { source, .. } = error else { panic!("{text}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(text.contains(&dir.path().display().to_string()) && text.contains("No space left"), "{text}");
}

#[test]
fn a_wrong_configuration_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let right = config(dir.path(), 1_000);
    let no_size = Planner::new(PlanConfig { max_shard_size: 0, ..right.clone() }).err().expect("size 0").to_string();
    assert!(no_size.contains("max_shard_size is 0"), "{no_size}");
    let missing = dir.path().join("missing");
    let no_dir = Planner::new(PlanConfig { spool_dir: missing.clone(), ..right }).err().expect("no folder").to_string();
    assert!(no_dir.contains(&missing.display().to_string()), "{no_dir}");
}

#[test]
fn a_relative_source_without_a_base_names_its_entry() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let manifest = "\n{\"uid\":1,\"created_at\":\"2025-03-10\",\"size_bytes\":1,\"source_path\":\"a/b\"}";
    let reader = ManifestReader::new(manifest.as_bytes()).expect("reader");
    let error = plan_manifest(reader, &SourceBase::None, config(dir.path(), 1)).err().expect("relative").to_string();
    assert!(error.contains("line 2") && error.contains("source_path") && error.contains("absolute"), "{error}");
}

#[test]
fn a_shard_becomes_a_segment() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let shard = plan(&[entry("1", "2025-03-10", 3)], config(dir.path(), 1_000)).expect("plan").remove(0);
    let task = TaskId { job: crate::ids::JobId::from_parts(1, [0; 10]), number: 4 };
    let segment = shard.clone().into_segment(task, 9, PackOptions::default());
    assert_eq!((segment.task, segment.slot, segment.number, segment.sequence), (task, shard.slot, 0, 9));
    assert_eq!((segment.source_bytes(), segment.files), (3, shard.files));
}

fn any_entries() -> impl Strategy<Value = Vec<ManifestEntry>> {
    let uid = prop_oneof!["[0-9]{1,3}", "[a-c/]{1,3}", "\\PC{1,8}"];
    let created_at = (1_u8..4, 0_u8..24, -6_i8..7)
        .prop_map(|(day, hour, offset)| format!("2025-03-{day:02}T{hour:02}:00:00{offset:+03}:00"));
    let size = prop_oneof![Just(0), 0_u64..400, 900_u64..2_000];
    let one = (uid, created_at, size).prop_map(|(uid, at, size)| entry(&uid, &at, size));
    proptest::collection::vec(one, 0..200)
}

/// Where a plan must be refused: the earliest repetition of (date, uid).
fn first_repetition(entries: &[ManifestEntry], rule: DateRule) -> Option<(Position, Position)> {
    let mut seen = BTreeMap::new();
    for (number, entry) in (1..).zip(entries) {
        let key = (rule.date(&entry.created_at), entry.uid.clone());
        if let Some(first) = seen.get(&key) {
            return Some((line(*first), line(number)));
        }
        seen.insert(key, number);
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_memory_gives_the_same_plan(entries in any_entries(), memory in 1_usize..20_000, written: bool) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let date_rule = if written { DateRule::Written } else { DateRule::Utc };
        let small = PlanConfig { date_rule, ..config(dir.path(), memory) };
        let large = PlanConfig { date_rule, ..config(dir.path(), 64 << 20) };
        if let Some(places) = first_repetition(&entries, date_rule) {
            for config in [small, large] {
                match plan(&entries, config) {
                    Err(PlanError::Duplicate(found)) => prop_assert_eq!((found.first, found.second), places),
                    other => prop_assert!(false, "expected a duplicate, got {other:?}"),
                }
            }
        } else {
            let want = model(&entries, &small);
            prop_assert_eq!(plan(&entries, small).expect("on disk"), want.clone());
            prop_assert_eq!(plan(&entries, large).expect("in memory"), want);
        }
        prop_assert!(is_empty(dir.path()));
    }
}
