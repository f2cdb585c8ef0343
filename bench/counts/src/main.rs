//! A fixed piece of work, done as often as asked: what `bench/counts/tests/counts.rs` counts instructions and allocations of. The
//! difference between once and twice is the work alone.
//!
//! `counted WORK TIMES`, for example `valgrind --tool=callgrind target/debug/counted decode 2`

use std::hint::black_box;

use bytes::Bytes;
use des_bench::made_up::{self, Uids};
use des_shared::created_at::CreatedAt;
use des_shared::manifest::{ManifestReader, SourceBase};
use des_shared::plan::{PlanConfig, plan_manifest};
use des_shared::routing::{DateRule, NBits, Slot};
use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};
use des_shared::shard::{Decoder, Encoder, Entry, Inline, Location, PayloadInfo};
use rand::SeedableRng;
use rand::rngs::StdRng;

type Failure = Box<dyn std::error::Error>;
/// Does it once.
type Work = Box<dyn FnMut() -> Result<(), Failure>>;

/// Times, files, lines, look-ups of each piece.
const COUNT: usize = 1_000;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(work), Some(times)) = (args.next(), args.next()) else {
        return Err("usage: counted WORK TIMES".into());
    };
    let times: u32 = times.parse()?;
    let mut work = prepared(&work)?;
    for _ in 0..times {
        work()?;
    }
    Ok(())
}

/// Makes the input of a piece of work.
fn prepared(work: &str) -> Result<Work, Failure> {
    Ok(match work {
        "route" => route(),
        "manifest" => manifest(),
        "plan" => plan(),
        "look-up" => look_up()?,
        "index" => index(),
        "encode-none" => encode(CodecChoice::None)?,
        "encode-lz4" => encode(CodecChoice::Lz4)?,
        "encode-zstd" => encode(CodecChoice::Zstd)?,
        "decode" => decode()?,
        other => return Err(format!("{other:?} is no work known here").into()),
    })
}

fn route() -> Work {
    let uids = made_up::uids(Uids::Paths, COUNT, 1);
    Box::new(move || {
        for uid in &uids {
            let time = CreatedAt::parse(black_box("2025-03-10T12:00:00.123456+02:00"))?;
            black_box(Slot::for_new(uid, &time, NBits::default(), DateRule::Utc));
        }
        Ok(())
    })
}

fn lines() -> String {
    let mut text = String::new();
    for number in 0..COUNT as u64 {
        made_up::manifest_line(number, &mut text);
    }
    text
}

fn manifest() -> Work {
    let text = lines();
    Box::new(move || {
        for item in ManifestReader::new(text.as_bytes())? {
            black_box(item?);
        }
        Ok(())
    })
}

fn plan() -> Work {
    let text = lines();
    Box::new(move || {
        let manifest = ManifestReader::new(text.as_bytes())?;
        for shard in plan_manifest(manifest, &SourceBase::None, PlanConfig::new())? {
            black_box(shard?);
        }
        Ok(())
    })
}

fn look_up() -> Result<Work, Failure> {
    let uids = made_up::uids(Uids::Paths, COUNT * 4, 1);
    let index = made_up::index(&uids, 1)?;
    let blocks = index.blocks()?;
    Ok(Box::new(move || {
        for uid in uids.iter().step_by(4) {
            if black_box(index.find_in(&blocks, uid)?).is_none() {
                return Err(format!("{uid} is not found").into());
            }
        }
        Ok(())
    }))
}

fn index() -> Work {
    let uids = made_up::uids(Uids::Paths, COUNT, 1);
    Box::new(move || {
        black_box(made_up::index_bytes(&uids, ShardFormat::V3, 1)?);
        Ok(())
    })
}

fn records() -> Vec<(String, Vec<u8>)> {
    let mut rng = StdRng::seed_from_u64(5);
    (0..COUNT).map(|number| (format!("{number:06}.json"), made_up::record(&mut rng))).collect()
}

fn encode(codec: CodecChoice) -> Result<Work, Failure> {
    let records = records();
    let mut encoder = Encoder::new(&PackOptions { codec, ..PackOptions::default() }, None)?;
    Ok(Box::new(move || {
        for (uid, raw) in &records {
            black_box(encoder.encode(uid, raw)?);
        }
        Ok(())
    }))
}

fn decode() -> Result<Work, Failure> {
    let mut encoder = Encoder::new(&PackOptions::default(), None)?;
    let mut stored = Vec::new();
    for (uid, raw) in records() {
        let encoded = encoder.encode(&uid, &raw)?;
        let PayloadInfo { codec, raw_len, stored_len, crc32c } = encoded.info;
        let location = Location::Inline(Inline { offset: 8, stored_len, codec, raw_len, crc32c: Some(crc32c) });
        let bytes = Bytes::copy_from_slice(&encoded.bytes);
        stored.push((Entry { uid, location, meta: None }, bytes));
    }
    let mut decoder = Decoder::new()?;
    Ok(Box::new(move || {
        for (entry, bytes) in &stored {
            black_box(decoder.decode(entry, bytes.clone(), None)?);
        }
        Ok(())
    }))
}
