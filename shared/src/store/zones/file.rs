//! The zones file as it is written, before anything about it is believed.

use std::path::PathBuf;

use serde::Deserialize;

use super::super::backend::Backend;
use super::super::s3_config::S3Config;
use super::{ShardRange, ZoneConfig, ZonesConfig, ZonesError, range_problems};
use crate::routing::NBits;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawZones {
    n_bits: Option<i64>,
    #[serde(default)]
    zones: Vec<RawZone>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawZone {
    name: Option<String>,
    range: Option<RawRange>,
    s3: Option<RawBucket>,
    local: Option<RawFolder>,
    #[serde(default)]
    failover: Vec<RawReplica>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    start: Option<i64>,
    end: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBucket {
    bucket: Option<String>,
    region_name: Option<String>,
    endpoint_url: Option<String>,
    prefix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFolder {
    base_dir: Option<PathBuf>,
}

/// A bucket's settings, or `local` with a folder's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplica {
    bucket: Option<String>,
    region_name: Option<String>,
    endpoint_url: Option<String>,
    prefix: Option<String>,
    local: Option<RawFolder>,
}

pub(super) fn parse(text: &str) -> Result<ZonesConfig, ZonesError> {
    let raw: RawZones = read(text).map_err(|problem| ZonesError { problems: vec![problem] })?;
    let mut problems = Vec::new();
    let n_bits = n_bits(raw.n_bits, &mut problems);
    let mut zones = Vec::new();
    for (at, zone) in raw.zones.into_iter().enumerate() {
        zones.extend(check_zone(at, zone, &mut problems));
    }
    let Some(n_bits) = n_bits else { return Err(ZonesError { problems }) };
    if problems.is_empty() {
        return ZonesConfig::new(n_bits, zones);
    }
    // What can be said about the zones that are whole, except what the others may be meant to fill.
    let ranges = zones.iter().map(|zone| (zone.name.as_str(), zone.range)).collect();
    let incomplete =
        |problem: &String| problem.starts_with("no zone covers") || problem.starts_with("there are no zones");
    problems.extend(range_problems(n_bits, ranges).into_iter().filter(|problem| !incomplete(problem)));
    Err(ZonesError { problems })
}

/// JSON with tabs is not YAML, so what looks like JSON is read as such.
fn read(text: &str) -> Result<RawZones, String> {
    if text.trim_start().starts_with('{')
        && let Ok(raw) = serde_json::from_str(text)
    {
        return Ok(raw);
    }
    serde_saphyr::from_str(text).map_err(|e| format!("the zones file cannot be read: {e}"))
}

fn n_bits(raw: Option<i64>, problems: &mut Vec<String>) -> Option<NBits> {
    let Some(raw) = raw else {
        problems.push("n_bits is missing; expected 4 to 16".to_owned());
        return None;
    };
    let n_bits = u8::try_from(raw).ok().and_then(|bits| NBits::new(bits).ok());
    if n_bits.is_none() {
        problems.push(format!("n_bits is {raw}; expected 4 to 16"));
    }
    n_bits
}

fn check_zone(at: usize, raw: RawZone, problems: &mut Vec<String>) -> Option<ZoneConfig> {
    let name = raw.name.unwrap_or_default();
    let shown = if name.is_empty() { format!("zone number {}", at + 1) } else { format!("zone {name:?}") };
    let before = problems.len();
    let mut problem = |what: String| problems.push(format!("{shown}: {what}"));
    if name.is_empty() {
        problem("it has no name".to_owned());
    }
    let range = raw.range.unwrap_or(RawRange { start: None, end: None });
    let mut index = |field: &str, value: Option<i64>| match value {
        None => {
            problem(format!("range.{field} is missing"));
            0
        }
        Some(value) => u32::try_from(value).unwrap_or_else(|_| {
            problem(format!("range.{field} is {value}; expected a shard index"));
            0
        }),
    };
    let range = ShardRange { start: index("start", range.start), end: index("end", range.end) };
    let store = match (raw.s3, raw.local) {
        (Some(s3), None) => bucket(s3),
        (None, Some(local)) => folder(local),
        (Some(_), Some(_)) => Err("it has both s3 and local; expected one of them".to_owned()),
        (None, None) => Err("it has neither s3 nor local; expected one of them".to_owned()),
    };
    let store = store.map_err(&mut problem);
    let mut replicas = Vec::new();
    for (number, raw) in raw.failover.into_iter().enumerate() {
        match replica(raw) {
            Ok(replica) => replicas.push(replica),
            Err(what) => problem(format!("failover number {}: {what}", number + 1)),
        }
    }
    let store = store.ok()?;
    (problems.len() == before).then_some(ZoneConfig { name, range, store, replicas })
}

fn bucket(raw: RawBucket) -> Result<Backend, String> {
    let config = S3Config {
        bucket: raw.bucket.unwrap_or_default(),
        region: raw.region_name,
        endpoint_url: raw.endpoint_url,
        prefix: raw.prefix.unwrap_or_default(),
        ..S3Config::default()
    };
    config.check()?;
    let backend = Backend::S3(config);
    backend.check_built_in()?;
    Ok(backend)
}

fn folder(raw: RawFolder) -> Result<Backend, String> {
    match raw.base_dir {
        Some(base_dir) if !base_dir.as_os_str().is_empty() => Ok(Backend::Local { base_dir }),
        _ => Err("local.base_dir is missing or empty; expected a folder".to_owned()),
    }
}

fn replica(raw: RawReplica) -> Result<Backend, String> {
    let s3 = RawBucket {
        bucket: raw.bucket,
        region_name: raw.region_name,
        endpoint_url: raw.endpoint_url,
        prefix: raw.prefix,
    };
    match raw.local {
        None => bucket(s3),
        Some(local) if s3.bucket.is_none() => folder(local),
        Some(_) => Err("it has both bucket and local; expected one of them".to_owned()),
    }
}
