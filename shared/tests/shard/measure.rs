//! Numbers for `docs/benchmarks.md`:
//! `cargo test -p des-shared --test shard measure -- --ignored --nocapture`; `DES_MEASURE_FOLDER=DIR` adds a real folder.

use std::process::Command;
use std::time::Instant;

use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};
use des_shared::shard::{Block, Directory, Shard, ShardWriter, Tail, TailBytes};

use crate::support::{self, File, Random, stored};

/// What the blocks would take with the checksums inside the compressed frame, and at other levels.
fn variants(tail: &[u8], uids: usize) -> String {
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
        let own = zstd::bulk::compress(uids.join("\n").as_bytes(), 19).unwrap().len() as f64 / uids.len() as f64;
        println!("  of that the uids' own {own:.2}, the rest {:.2}", v3 - own);
        println!("  {}", variants(&index_bytes(ShardFormat::V3, uids), uids.len()));
        assert!(v3 < v2 && v3 - own <= 12.0);
    }
}

#[test]
#[ignore = "prints numbers"]
fn look_ups_per_second() {
    for n in [100_000u64, 1_000_000] {
        let uids: Vec<String> = (0..n).map(|i| format!("{:09}", i * 997)).collect();
        let tail = index_bytes(ShardFormat::V3, &uids);
        let tail = TailBytes::new(tail.len() as u64 + data_len(&tail), tail.into()).unwrap();
        let Tail::V3(footer) = Tail::parse(&tail).unwrap() else { panic!("version 3") };
        let directory = Directory::parse(&footer, &tail.get(&footer.directory_range()).unwrap()).unwrap();
        let read = |number: usize| {
            let place = directory.block(number).unwrap();
            Block::parse(&tail.get(&place.range()).unwrap(), &place).unwrap()
        };
        let mut random = Random::new(30);
        let mut asked = || &uids[random.below(uids.len())];
        let rounds = 20_000;
        let started = Instant::now();
        for _ in 0..rounds {
            let uid = asked();
            assert!(read(directory.find(uid).unwrap().number).find(uid).unwrap().is_some());
        }
        let parsing = started.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
        let blocks: Vec<Block> = (0..directory.len()).map(read).collect();
        let started = Instant::now();
        for _ in 0..rounds * 10 {
            let uid = asked();
            assert!(blocks[directory.find(uid).unwrap().number].find(uid).unwrap().is_some());
        }
        let held = started.elapsed().as_secs_f64() * 1e6 / f64::from(rounds * 10);
        println!(
            "{n} entries in {} blocks, directory {} bytes: {parsing:.2} us with its block to be parsed, {held:.3} us in parsed blocks",
            directory.len(),
            footer.directory_len
        );
        assert!(held < 20.0, "a look-up takes {held} us");
    }
}

/// One way of packing a set of files, and what it takes.
fn report(name: &str, options: &PackOptions, files: &[File]) -> usize {
    let started = Instant::now();
    let dictionary = support::dictionary_for(options, files);
    let trained = started.elapsed();
    let dict_len = dictionary.as_ref().map_or(0, Vec::len);
    let started = Instant::now();
    let bytes = support::pack(options, files, dictionary, 0);
    let packed = started.elapsed();
    Shard::open(bytes.clone()).unwrap().verify().unwrap();
    println!("  {name}: {} bytes, dictionary {dict_len} in {trained:.2?}, packed in {packed:.2?}", bytes.len());
    bytes.len()
}

/// `tar -I 'zstd -3'` of the files in the order given, by the real programs.
fn tar_bytes(files: &[File]) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for file in files {
        let path = folder.path().join(&file.uid);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, file.bytes()).unwrap();
        list.push_str(&file.uid);
        list.push('\0');
    }
    let (listed, archive) = (folder.path().join(".list"), folder.path().join(".tar.zst"));
    std::fs::write(&listed, list).unwrap();
    let status = Command::new("tar")
        .args(["--no-recursion", "--null", "-I", "zstd -3 -T2", "-C"])
        .arg(folder.path())
        .arg("-cf")
        .arg(&archive)
        .arg("-T")
        .arg(&listed)
        .status();
    assert!(status.unwrap().success());
    std::fs::metadata(&archive).unwrap().len() as usize
}

fn shuffled(files: &mut [File], random: &mut Random) {
    for at in (1..files.len()).rev() {
        files.swap(at, random.below(at + 1));
    }
}

#[test]
#[ignore = "prints numbers"]
fn size_beside_tar() {
    let mut random = Random::new(40);
    let records = (0..100_000).map(|i| File::inline(format!("{i:09}"), long_record(&mut random))).collect();
    let mut sets: Vec<(String, Vec<File>)> = vec![("JSON documents".to_owned(), records)];
    if let Some(folder) = std::env::var_os("DES_MEASURE_FOLDER") {
        let mut all = Vec::new();
        collect(std::path::Path::new(&folder), &mut all);
        for count in [50_000, 10_000, 1_000] {
            shuffled(&mut all, &mut random);
            sets.push(("real files, named by path".to_owned(), all[..count.min(all.len())].to_vec()));
            let numbered = all[..count.min(all.len())].iter().zip(0..);
            let numbered = numbered.map(|(file, i)| File::inline(format!("{i:09}"), file.bytes())).collect();
            sets.push(("the same, named by number in random order".to_owned(), numbered));
        }
    }
    for (name, files) in &mut sets {
        files.sort_by(|a, b| a.uid.cmp(&b.uid));
        let raw: usize = files.iter().map(|file| file.bytes().len()).sum();
        let tar = tar_bytes(files);
        let alone: usize = files.iter().map(|file| zstd::bulk::compress(file.bytes(), 3).unwrap().len()).sum();
        println!("{name}: {} files, {raw} bytes, tar {tar}, zstd file by file {alone}", files.len());
        for codec in [CodecChoice::Zstd, CodecChoice::Auto, CodecChoice::Lz4] {
            let shard = report(&codec.to_string(), &support::options(ShardFormat::V3, codec), files);
            let share = |of: usize| shard as f64 / of as f64;
            println!("    {:.4} of tar, {:.4} of zstd file by file", share(tar), share(alone));
        }
        duplicates(files);
    }
}

fn duplicates(files: &[File]) {
    let mut seen = std::collections::HashSet::new();
    let again = files.iter().filter(|file| !file.bytes().is_empty() && !seen.insert(file.bytes()));
    let (count, bytes) = again.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes().len()));
    println!("  exact duplicates: {count} files of {bytes} bytes");
}

/// A JSON document of about 1 KB.
fn long_record(random: &mut Random) -> Vec<u8> {
    let mut text = String::from_utf8(support::record(random)).unwrap();
    text.truncate(text.trim_end().len() - 1);
    text += ",\"lines\":[";
    for at in 0..5 + random.below(4) {
        let (article, pieces, cents) = (random.below(40_000), random.below(20) + 1, random.below(90_000));
        let comma = if at > 0 { "," } else { "" };
        let line = format!(
            "{comma}{{\"article\":\"A-{article:06}\",\"quantity\":{pieces},\"unit\":\"piece\",\"net_cents\":{cents},\"tax_rate\":19,\"discount\":null}}"
        );
        text.push_str(&line);
    }
    (text + "]}\n").into_bytes()
}

#[test]
#[ignore = "prints numbers"]
fn auto_beside_zstd_on_noise() {
    let mut random = Random::new(50);
    for len in [8 << 10, 64 << 10, 1 << 20] {
        let files: Vec<Vec<u8>> = (0..(64 << 20) / len).map(|_| random.bytes(len)).collect();
        let mut times = Vec::new();
        for _ in 0..3 {
            for codec in [CodecChoice::Zstd, CodecChoice::Auto] {
                let mut encoder =
                    des_shared::shard::Encoder::new(&support::options(ShardFormat::V3, codec), None).unwrap();
                let started = Instant::now();
                for raw in &files {
                    assert_eq!(encoder.encode("video", raw).unwrap().info.stored_len, raw.len() as u64);
                }
                times.push(started.elapsed());
            }
        }
        println!("noise in files of {len} bytes, 64 MiB, zstd and auto in turns: {times:.1?}");
    }
}

fn collect(folder: &std::path::Path, files: &mut Vec<File>) {
    let mut folders = vec![folder.to_owned()];
    while let Some(from) = folders.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&from).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let kind = std::fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && kind.len() <= 10 << 20 && files.len() < 100_000 {
                let uid = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                files.push(File::inline(uid, std::fs::read(&path).unwrap()));
            }
        }
    }
}
