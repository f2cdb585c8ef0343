//! Which store keeps which shard index: one bucket, one folder, or the zones file.
//!
//! Invariant: a [`Zones`] covers every index from 0 to 2^`n_bits` - 1 exactly once. A file that leaves a gap is refused
//! when it is loaded, not at the first read that falls into it.

use std::fmt;

use super::backend::{Backend, Layers};
use super::{SharedStore, StoreError};
use crate::routing::NBits;

mod file;

/// The shard indexes of a zone, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardRange {
    /// First index.
    pub start: u32,
    /// Last index.
    pub end: u32,
}

impl fmt::Display for ShardRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end { write!(f, "{}", self.start) } else { write!(f, "{}-{}", self.start, self.end) }
    }
}

impl ShardRange {
    /// All indexes of a width.
    pub fn all(n_bits: NBits) -> Self {
        Self { start: 0, end: n_bits.slots() - 1 }
    }

    /// Whether an index is one of them.
    pub fn contains(self, index: u32) -> bool {
        (self.start..=self.end).contains(&index)
    }
}

/// One zone, not opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneConfig {
    /// Unique name, for people, logs and metrics.
    pub name: String,
    /// Its shard indexes.
    pub range: ShardRange,
    /// Where its objects are.
    pub store: Backend,
    /// Copies, in the order in which they are asked.
    pub replicas: Vec<Backend>,
}

/// All zones, checked, not opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZonesConfig {
    n_bits: NBits,
    zones: Vec<ZoneConfig>,
}

/// Everything that is wrong with a set of zones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the zones cannot be used: {}", problems.join("; "))]
pub struct ZonesError {
    /// One sentence for each problem, each naming the zone or the setting.
    pub problems: Vec<String>,
}

/// No zone covers a shard index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no zone covers shard index {index} (0x{index:X}); the zones cover 0-{last}")]
pub struct NoZone {
    /// The index asked for.
    pub index: u32,
    /// The last index there is.
    pub last: u32,
}

/// One zone, open.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Unique name.
    pub name: String,
    /// Its shard indexes.
    pub range: ShardRange,
    /// Where its objects are.
    pub store: SharedStore,
    /// Copies, in the order in which they are asked.
    pub replicas: Vec<SharedStore>,
}

/// All zones, open, in the order of their ranges.
#[derive(Clone, Debug)]
pub struct Zones {
    n_bits: NBits,
    zones: Vec<Zone>,
}

impl ZonesConfig {
    /// Zones from typed parts.
    ///
    /// # Errors
    /// Every problem at once: no zones, a name twice or empty, ranges that lie outside, overlap or leave a gap, a
    /// bucket that cannot be one.
    pub fn new(n_bits: NBits, mut zones: Vec<ZoneConfig>) -> Result<Self, ZonesError> {
        let mut problems = range_problems(n_bits, zones.iter().map(|zone| (zone.name.as_str(), zone.range)).collect());
        for zone in &zones {
            for backend in std::iter::once(&zone.store).chain(&zone.replicas) {
                if let Backend::S3(config) = backend
                    && let Err(problem) = config.check()
                {
                    problems.push(format!("zone {:?}: {problem}", zone.name));
                }
            }
        }
        if !problems.is_empty() {
            return Err(ZonesError { problems });
        }
        zones.sort_by_key(|zone| zone.range);
        Ok(Self { n_bits, zones })
    }

    /// One store for everything, as a zone named `default`.
    ///
    /// # Errors
    /// When the bucket cannot be one.
    pub fn single(n_bits: NBits, store: Backend) -> Result<Self, ZonesError> {
        let zone =
            ZoneConfig { name: "default".to_owned(), range: ShardRange::all(n_bits), store, replicas: Vec::new() };
        Self::new(n_bits, vec![zone])
    }

    /// Reads a zones file: YAML or JSON.
    ///
    /// # Errors
    /// The place of a syntax error, or every problem at once by name.
    pub fn parse(text: &str) -> Result<Self, ZonesError> {
        file::parse(text)
    }

    /// The width all zones share.
    pub fn n_bits(&self) -> NBits {
        self.n_bits
    }

    /// The zones in the order of their ranges; never none.
    pub fn zones(&self) -> &[ZoneConfig] {
        &self.zones
    }

    /// Opens every store and replica. Folders must exist; buckets are not asked.
    ///
    /// # Errors
    /// The first store that cannot be opened.
    pub async fn open(&self, layers: &Layers) -> Result<Zones, StoreError> {
        let mut zones = Vec::with_capacity(self.zones.len());
        for zone in &self.zones {
            let store = zone.store.open(layers).await?;
            let mut replicas = Vec::with_capacity(zone.replicas.len());
            for replica in &zone.replicas {
                replicas.push(replica.open(layers).await?);
            }
            zones.push(Zone { name: zone.name.clone(), range: zone.range, store, replicas });
        }
        Ok(Zones { n_bits: self.n_bits, zones })
    }
}

impl Zones {
    /// Zones of stores that are open already.
    ///
    /// # Errors
    /// As [`ZonesConfig::new`].
    pub fn new(n_bits: NBits, mut zones: Vec<Zone>) -> Result<Self, ZonesError> {
        let problems = range_problems(n_bits, zones.iter().map(|zone| (zone.name.as_str(), zone.range)).collect());
        if !problems.is_empty() {
            return Err(ZonesError { problems });
        }
        zones.sort_by_key(|zone| zone.range);
        Ok(Self { n_bits, zones })
    }

    /// One open store for everything, as a zone named `default`.
    pub fn single(n_bits: NBits, store: SharedStore) -> Self {
        let zone = Zone { name: "default".to_owned(), range: ShardRange::all(n_bits), store, replicas: Vec::new() };
        Self { n_bits, zones: vec![zone] }
    }

    /// The width all zones share.
    pub fn n_bits(&self) -> NBits {
        self.n_bits
    }

    /// The zones in the order of their ranges; never none.
    pub fn all(&self) -> &[Zone] {
        &self.zones
    }

    /// The zone of a shard index.
    ///
    /// # Errors
    /// [`NoZone`] when the index is not below 2^`n_bits`.
    pub fn zone_for(&self, index: u32) -> Result<&Zone, NoZone> {
        let after = self.zones.partition_point(|zone| zone.range.start <= index);
        let zone = self.zones[..after].last().filter(|zone| zone.range.contains(index));
        zone.ok_or(NoZone { index, last: ShardRange::all(self.n_bits).end })
    }
}

/// What is wrong with the names and ranges of zones.
fn range_problems(n_bits: NBits, mut zones: Vec<(&str, ShardRange)>) -> Vec<String> {
    let last = ShardRange::all(n_bits).end;
    let mut problems = Vec::new();
    if zones.is_empty() {
        problems.push("there are no zones; expected at least one".to_owned());
    }
    for (at, (name, range)) in zones.iter().enumerate() {
        if name.is_empty() {
            problems.push(format!("zone number {} has no name", at + 1));
        } else if zones[..at].iter().any(|(other, _)| other == name) {
            problems.push(format!("zone {name:?} is there twice; names must be unique"));
        }
        if range.start > range.end {
            problems
                .push(format!("zone {name:?}: its range starts at {} and ends before, at {}", range.start, range.end));
        } else if range.end > last {
            problems
                .push(format!("zone {name:?}: its range {range} lies outside 0-{last} (n_bits is {})", n_bits.get()));
        }
    }
    zones.sort_by_key(|(_, range)| *range);
    let (mut next, mut holder) = (0u64, "");
    for (name, range) in zones.iter().filter(|(_, range)| range.start <= range.end) {
        let (start, end) = (u64::from(range.start), u64::from(range.end));
        if start > next && next <= u64::from(last) {
            problems.push(gap(next, (start - 1).min(u64::from(last))));
        } else if start < next {
            let both = format!("{start}-{}", (next - 1).min(end));
            problems.push(format!("zones {holder:?} and {name:?} overlap in {both}"));
        }
        if end + 1 > next {
            (next, holder) = (end + 1, name);
        }
    }
    if next <= u64::from(last) && !zones.is_empty() {
        problems.push(gap(next, u64::from(last)));
    }
    problems
}

fn gap(from: u64, to: u64) -> String {
    if from == to {
        format!("no zone covers shard index {from} (0x{from:X})")
    } else {
        format!("no zone covers shard indexes {from}-{to} (0x{from:X}-0x{to:X})")
    }
}

#[cfg(test)]
mod tests;
