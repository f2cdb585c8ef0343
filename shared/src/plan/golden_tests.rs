//! The plans and estimates of the existing implementation, and the grouping of a whole run of its packer.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::*;
use crate::manifest::{ManifestReader, SourceBase};

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/../tests/golden/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&golden(name)).expect("golden JSON")
}

/// The configuration of a golden case; both refuse the same ones.
fn config(case: &Value, spool: &std::path::Path) -> Option<PlanConfig> {
    let n_bits = u8::try_from(case["n_bits"].as_i64()?).ok().and_then(|n| NBits::new(n).ok())?;
    Some(PlanConfig {
        n_bits,
        max_shard_size: case["max_shard_size_bytes"].as_u64()?,
        date_rule: DateRule::Written,
        memory_limit_bytes: 1 << 20,
        spool_dir: spool.to_owned(),
    })
}

/// A plan in the golden file's terms: date, hex, bytes, uids.
type Shards = Vec<(String, String, u64, Vec<String>)>;

fn plan(manifest: &[u8], config: PlanConfig) -> Result<Shards, PlanError> {
    let reader = ManifestReader::new(manifest)?;
    plan_manifest(reader, &SourceBase::Folder("/".into()), config)?
        .map(|shard| {
            let shard = shard?;
            let uids = shard.files.iter().map(|file| file.uid.to_string()).collect();
            Ok((shard.slot.date.to_string(), shard.slot.hex(), shard.source_bytes, uids))
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn expected(case: &Value) -> Shards {
    let shards = case["plan"].as_array().expect("plan").iter();
    shards
        .map(|shard| {
            let uids = shard["uids"].as_array().expect("uids").iter().map(text).collect();
            let bytes = shard["total_size_bytes"].as_u64().expect("bytes");
            (text(&shard["date_dir"]), text(&shard["shard_hex"]), bytes, uids)
        })
        .collect()
}

/// Sums of groups in the order of the plan, as the estimates have them.
fn estimates(shards: &Shards, max_shard_size: u64) -> Vec<(String, String, u64)> {
    let mut groups: Vec<(String, String, u64)> = Vec::new();
    for (date, hex, bytes, _) in shards {
        match groups.last_mut() {
            Some(group) if (&group.0, &group.1) == (date, hex) => group.2 += bytes,
            _ => groups.push((date.clone(), hex.clone(), *bytes)),
        }
    }
    groups.into_iter().map(|(date, hex, bytes)| (date, hex, estimated_shards(bytes, max_shard_size))).collect()
}

#[test]
fn every_golden_plan_and_estimate() {
    let spool = tempfile::tempdir().expect("temporary folder");
    let cases = golden_json("planner.json");
    let cases = cases.as_array().expect("cases");
    assert_eq!(cases.len(), 21);
    for case in cases {
        let name = case["name"].as_str().expect("name");
        let mut files = case["files"].clone();
        for file in files.as_array_mut().expect("files") {
            file["source_path"] = "f".into();
        }
        let got = config(&case["config"], spool.path())
            .ok_or_else(|| PlanError::Config("n_bits".to_owned()))
            .and_then(|config| plan(files.to_string().as_bytes(), config));
        match (name, got) {
            // An empty plan is theirs; whoever asks for a plan of nothing is told so here.
            ("empty", got) => assert!(matches!(got, Err(PlanError::Manifest(ManifestError::Empty)))),
            // Their planner takes it and their writer aborts the run; ours says so before anything is written.
            ("duplicate uid accepted by planner", got) => assert!(matches!(got, Err(PlanError::Duplicate(_)))),
            // An unusual uid aborts nothing here.
            ("bad uid aborts all", got) => assert_eq!(got.expect(name).iter().map(|s| s.3.len()).sum::<usize>(), 2),
            (name, Ok(shards)) => {
                assert_eq!(shards, expected(case), "{name}");
                let max = case["config"]["max_shard_size_bytes"].as_u64().expect("max");
                let want: Vec<_> = case["estimate"]
                    .as_array()
                    .expect("estimate")
                    .iter()
                    .map(|e| (text(&e["date_dir"]), text(&e["shard_hex"]), e["count"].as_u64().expect("count")))
                    .collect();
                assert_eq!(estimates(&shards, max), want, "{name}");
            }
            (name, Err(error)) => assert!(case["error"].is_string(), "{name}: {error}"),
        }
    }
}

#[test]
fn the_grouping_of_a_whole_run() {
    let spool = tempfile::tempdir().expect("temporary folder");
    let run = golden_json("pack_run.json");
    let config = config(&run["config"], spool.path()).expect("config");
    let base = SourceBase::of_manifest("/data/pack_run_manifest.json").expect("base");
    let bytes = golden("pack_run_manifest.json");
    let shards = plan_manifest(ManifestReader::new(bytes.as_slice()).expect("reader"), &base, config).expect("plan");
    assert_eq!(shards.files(), 60);
    let mut got = Vec::new();
    for shard in shards {
        let shard = shard.expect("shard");
        assert!(shard.files.iter().all(|file| file.source.to_string().starts_with("/data/pack_run_src/")));
        let name = format!("{}_{:04}.des", shard.slot, shard.number);
        got.push((name, shard.source_bytes, shard.files.iter().map(|f| f.uid.to_string()).collect::<Vec<_>>()));
    }
    let want: Vec<_> = run["shards"]
        .as_array()
        .expect("shards")
        .iter()
        .map(|shard| {
            let uids = shard["uids"].as_array().expect("uids").iter().map(text).collect::<Vec<_>>();
            (text(&shard["file"]), shard["total_size_bytes"].as_u64().expect("bytes"), uids)
        })
        .collect();
    assert_eq!(got, want);
    // Numbers count within a slot.
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, ..) in &got {
        *numbers.entry(&name[..10]).or_default() += 1;
    }
    assert_eq!(numbers.values().sum::<usize>(), 30);
}
