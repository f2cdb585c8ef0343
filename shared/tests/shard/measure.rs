//! Numbers for `docs/benchmarks.md`:
//! `cargo test -p des-shared --test shard measure -- --ignored --nocapture`

use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{Shard, ShardWriter};

use crate::support::{self, File, Random, stored};

/// What the blocks would take with the checksums inside the compressed frame, and at other levels.
fn variants(tail: &[u8], uids: usize) -> String {
    use des_shared::shard::{Directory, Tail, TailBytes};
    // The payloads are not needed, only how long they would be.
    let size: u64 = tail.len() as u64 + data_len(tail);
    let tail_bytes = TailBytes::new(size, tail.to_vec().into()).unwrap();
    let Tail::V3(footer) = Tail::parse(&tail_bytes).unwrap() else { panic!("version 3") };
    let directory = Directory::parse(&footer, &tail_bytes.get(&footer.directory_range()).unwrap()).unwrap();
    let (mut inside, mut levels) = (0, [0usize; 4]);
    for block in directory.blocks() {
        let stored = tail_bytes.get(&block.range()).unwrap();
        let checksums = block.entries as usize * 4;
        let frame = &stored[..stored.len() - 4 - checksums];
        let columns = zstd::bulk::decompress(frame, 1 << 23).unwrap();
        for (total, level) in levels.iter_mut().zip([3, 6, 12, 19]) {
            *total += zstd::bulk::compress(&columns, level).unwrap().len();
        }
        let all = [&columns[..], &stored[frame.len()..stored.len() - 4]].concat();
        inside += zstd::bulk::compress(&all, 6).unwrap().len();
    }
    let per = |n: usize| n as f64 / uids as f64;
    format!(
        "directory {} bytes for {} blocks; columns at level 3 {:.2}, 6 {:.2}, 12 {:.2}, 19 {:.2} bytes an entry; \
         with checksums inside the frame {:.2} instead of {:.2}",
        footer.directory_len,
        footer.block_count,
        per(levels[0]),
        per(levels[1]),
        per(levels[2]),
        per(levels[3]),
        per(inside),
        per(levels[1]) + 4.0,
    )
}

fn data_len(tail: &[u8]) -> u64 {
    let footer = &tail[tail.len() - 72..];
    let directory_offset = u64::from_le_bytes(*footer[16..].first_chunk().unwrap());
    let directory_len = u32::from_le_bytes(*footer[24..].first_chunk().unwrap());
    directory_offset + u64::from(directory_len) + 72 - tail.len() as u64
}

fn index_bytes(format: ShardFormat, uids: &[String]) -> Vec<u8> {
    let mut random = Random::new(20);
    let mut writer = ShardWriter::new(format, None, 0).unwrap();
    for uid in uids {
        let mut info = stored(&random.next().to_le_bytes());
        // Sizes as files have them: mostly small, some large, compressed to about a third.
        info.raw_len = 200 + random.next() % (1 << (8 + random.below(9)));
        (info.codec, info.stored_len) = (des_shared::shard::Codec::Zstd, info.raw_len / 3 + random.next() % 40);
        writer.append(uid, &info, None).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
#[ignore = "prints numbers"]
fn index_size_per_entry() {
    let mut random = Random::new(21);
    let n = 100_000;
    let mut sets = vec![
        ("numbers of 9 digits", (0..n).map(|_| format!("{:09}", random.below(1_000_000_000))).collect::<Vec<_>>()),
        ("UUIDs", (0..n).map(|_| format!("{:016x}{:016x}", random.next(), random.next())).collect()),
        ("paths", (0..n).map(|i| format!("customers/{:07}/documents/{i:010}.json", i / 9)).collect()),
    ];
    for (name, uids) in &mut sets {
        uids.sort();
        uids.dedup();
        let per = |format| index_bytes(format, uids).len() as f64 / uids.len() as f64;
        let uid: usize = uids.iter().map(String::len).sum();
        let (v2, v3) = (per(ShardFormat::V2), per(ShardFormat::V3));
        let uid = uid as f64 / uids.len() as f64;
        println!("{name}: uid {uid:.1} bytes, v2 {v2:.1} bytes an entry, v3 {v3:.1} ({:.1} %)", v3 / v2 * 100.0);
        println!("  {}", variants(&index_bytes(ShardFormat::V3, uids), uids.len()));
        assert!(v3 < v2);
    }
}

#[test]
#[ignore = "prints numbers"]
fn dictionary_gain() {
    let mut random = Random::new(22);
    let mut sets: Vec<(String, Vec<File>)> = [100, 1_000, 20_000]
        .into_iter()
        .map(|n| {
            let files = (0..n).map(|i| File::inline(format!("{i:06}.json"), support::record(&mut random))).collect();
            (format!("{n} JSON records"), files)
        })
        .collect();
    // Any folder of real files, small ones only.
    if let Some(folder) = std::env::var_os("DES_MEASURE_FOLDER") {
        let mut files = Vec::new();
        collect(std::path::Path::new(&folder), &mut files);
        sets.push((format!("{} files of {}", files.len(), folder.display()), files));
    }
    let options = support::options(ShardFormat::V3, CodecChoice::Zstd);
    for (name, files) in &sets {
        let raw: usize = files.iter().map(|f| f.bytes().len()).sum();
        let started = std::time::Instant::now();
        let plain = support::pack(&options, files, None, 0).len();
        let plain_time = started.elapsed();
        let started = std::time::Instant::now();
        let dictionary = support::dictionary_for(&options, files);
        let train_time = started.elapsed();
        let dict_len = dictionary.as_ref().map_or(0, Vec::len);
        let started = std::time::Instant::now();
        let bytes = support::pack(&options, files, dictionary, 0);
        let pack_time = started.elapsed();
        let started = std::time::Instant::now();
        Shard::open(bytes.clone()).unwrap().verify().unwrap();
        println!(
            "{name}: raw {raw}, plain {plain} ({plain_time:.2?}), with a dictionary of {dict_len}: {} ({pack_time:.2?}), \
             {:.1} % of plain, trained in {train_time:.2?}, verified in {:.2?}",
            bytes.len(),
            bytes.len() as f64 / plain as f64 * 100.0,
            started.elapsed(),
        );
        assert!(bytes.len() <= plain);
    }
}

fn collect(folder: &std::path::Path, files: &mut Vec<File>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let kind = std::fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            collect(&path, files);
        } else if kind.is_file() && kind.len() < 32 * 1024 && files.len() < 30_000 {
            files.push(File::inline(path.to_string_lossy(), std::fs::read(&path).unwrap()));
        }
    }
}
