//! Hostile bytes for every decoder. Seeded, so a failure names the input that caused it.
//!
//! A normal test run tries 20,000 inputs a target. Many more, at low priority:
//! `DES_FUZZ_INPUTS=10000000 nice -n 15 cargo test -p des-shared --test shard fuzz -- --nocapture`
//! (the number is that of all targets together; `DES_FUZZ_SEED` gives another sequence).

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{
    Codec, Decoder, Directory, Entry, Index, Inline, Location, Meta, Shard, ShardWriter, Tail, TailBytes, parse_header,
    should_compress, zstd_window_len,
};

use crate::damage::small_shards;
use crate::support::{self, File, Random};

/// How many targets share the inputs asked for.
const TARGETS: u64 = 8;
/// The most a hostile payload may expand to here.
const MAX_RAW: u64 = 1 << 20;

/// Names the input when a decoder panics.
struct Input {
    target: &'static str,
    seed: u64,
}

impl Drop for Input {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: the input of seed {} did it", self.target, self.seed);
        }
    }
}

/// Runs one target on its share of the inputs; `one` says whether the decoder took the input for good.
fn run(target: &'static str, mut one: impl FnMut(&mut Random) -> bool) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let inputs = number("DES_FUZZ_INPUTS").map_or(20_000, |n| n.div_ceil(TARGETS));
    let first = number("DES_FUZZ_SEED").unwrap_or(1) << 32;
    let started = Instant::now();
    let mut accepted = 0u64;
    for seed in first..first + inputs {
        let _input = Input { target, seed };
        accepted += u64::from(one(&mut Random::new(seed)));
    }
    println!("{target}: {inputs} inputs, {accepted} accepted, in {:.1?}", started.elapsed());
}

/// Changes a few bytes: flips, interesting values, cuts, repeats.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(8) {
            _ if bytes.is_empty() => bytes.push(random.next() as u8),
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            4 => {
                let value = [0, 1, u64::from(u32::MAX), u64::MAX, 1 << 63, 1 << 31][random.below(6)];
                let len = (bytes.len() - at).min([2, 4, 8][random.below(3)]);
                bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            5 => bytes.truncate(at),
            6 => {
                let end = (at + random.below(20)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let end = (at + random.below(9)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

/// Reads all that can be read.
fn exercise(bytes: Vec<u8>, decoder: &mut Decoder) -> Option<Shard> {
    let shard = Shard::open(bytes).ok()?;
    // A damaged count could promise more entries than there are; the iterator must still end.
    for entry in shard.entries().take(100_000).flatten() {
        assert_eq!(shard.find(&entry.uid).ok().flatten().as_ref(), Some(&entry));
        if let Ok(raw) = shard.read_with(decoder, &entry) {
            assert_eq!(raw.len() as u64, entry.raw_len());
        }
    }
    Some(shard)
}

fn decoder() -> Decoder {
    Decoder::new().unwrap().with_max_raw_len(MAX_RAW)
}

/// One small zstd frame that stores its content, as index parts need it.
fn raw_frame(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&(content.len() as u32).to_le_bytes());
    let chunks: Vec<&[u8]> = if content.is_empty() { vec![&[][..]] } else { content.chunks(1 << 16).collect() };
    for (i, chunk) in chunks.iter().enumerate() {
        let header = (chunk.len() as u32) << 3 | u32::from(i + 1 == chunks.len());
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(chunk);
    }
    frame
}

fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn unframe(frame: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(frame, 1 << 20).unwrap()
}

/// A version 3 shard taken apart, to be put together with right checksums around wrong content.
#[derive(Clone)]
struct Parts {
    data: Vec<u8>,
    columns: Vec<u8>,
    checksums: Vec<u8>,
    dictionary: Vec<u8>,
    /// Raw columns of a directory with one block; the last varint, the block's length, is written anew.
    directory: Vec<u8>,
    footer: Vec<u8>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Self {
        let shard = Shard::open(bytes.to_vec()).unwrap();
        let footer = shard.footer().unwrap().clone();
        let part = |r: Range<u64>| bytes[r.start as usize..r.end as usize].to_vec();
        let directory = Directory::parse(&footer, &part(footer.directory_range())).unwrap();
        let block = directory.block(0).unwrap();
        assert_eq!(directory.len(), 1);
        let stored = part(block.range());
        let checksums = (block.entries - block.big_files) as usize * 4 + block.big_files as usize * 32;
        let split = stored.len() - 4 - checksums;
        Self {
            data: part(0..block.start),
            columns: unframe(&stored[..split]),
            checksums: stored[split..stored.len() - 4].to_vec(),
            dictionary: footer.dictionary_range().map(part).unwrap_or_default(),
            directory: unframe(&part(footer.directory_range())),
            footer: bytes[bytes.len() - 72..].to_vec(),
        }
    }

    fn varint(mut value: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
        out
    }

    /// The whole file; `fix_block_len` writes the block's real length into the directory.
    fn assemble(&self, fix_block_len: bool, random: &mut Random) -> Vec<u8> {
        let block = with_crc([raw_frame(&self.columns), self.checksums.clone()].concat());
        let mut directory = self.directory.clone();
        if fix_block_len {
            let end = directory.iter().rposition(|b| *b < 0x80).unwrap_or(0);
            let start = directory[..end].iter().rposition(|b| *b < 0x80).map_or(0, |p| p + 1);
            directory.splice(start.., Self::varint(block.len()));
        }
        let directory = raw_frame(&directory);
        let mut out = [&self.data[..], &block, &self.dictionary].concat();
        let mut footer = self.footer.clone();
        let dict_at = if self.dictionary.is_empty() { 0 } else { out.len() - self.dictionary.len() };
        let dict_crc = if self.dictionary.is_empty() { 0 } else { crc32c::crc32c(&self.dictionary) };
        footer[0..8].copy_from_slice(&(dict_at as u64).to_le_bytes());
        footer[8..12].copy_from_slice(&(self.dictionary.len() as u32).to_le_bytes());
        footer[12..16].copy_from_slice(&dict_crc.to_le_bytes());
        footer[16..24].copy_from_slice(&(out.len() as u64).to_le_bytes());
        footer[24..28].copy_from_slice(&(directory.len() as u32).to_le_bytes());
        footer[28..32].copy_from_slice(&crc32c::crc32c(&directory).to_le_bytes());
        if random.below(8) == 0 {
            let at = random.below(64);
            footer[at] ^= 1 << random.below(8);
        }
        let crc = crc32c::crc32c(&footer[..64]);
        footer[64..68].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&directory);
        out.extend_from_slice(&footer);
        out
    }
}

#[test]
fn fuzz_version_3_as_it_is() {
    let shards: Vec<_> = small_shards().into_iter().filter(|(bytes, _)| bytes.len() < 8_192).collect();
    let mut decoder = decoder();
    run("v3, mutated", |random| {
        let (bytes, files) = &shards[random.below(shards.len())];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, random);
        let Some(shard) = exercise(bytes, &mut decoder) else { return false };
        // Mutations stay, so what is still served must be what was packed.
        for file in files {
            if let Ok(Some(entry)) = shard.find(&file.uid)
                && let Ok(raw) = shard.read_with(&mut decoder, &entry)
            {
                assert_eq!(raw, file.bytes());
            }
        }
        true
    });
}

#[test]
fn fuzz_version_3_with_right_checksums() {
    let shards: Vec<Parts> = small_shards().iter().filter(|s| !s.1.is_empty()).map(|s| Parts::of(&s.0)).collect();
    let mut random = Random::new(0);
    for parts in &shards {
        let mut whole = parts.assemble(true, &mut random);
        while Shard::open(whole.clone()).is_err() {
            // One in eight gets a flipped footer bit.
            whole = parts.assemble(true, &mut random);
        }
        Shard::open(whole).unwrap().verify().unwrap();
    }
    let mut decoder = decoder();
    run("v3, mutated under right checksums", |random| {
        // Digesting a dictionary is slow, so the shard that has one comes up rarely.
        let number = random.below(3) + usize::from(random.below(64) == 0);
        let mut parts = shards[number.min(shards.len() - 1)].clone();
        match random.below(10) {
            0..=4 => mutate(&mut parts.columns, random),
            5 | 6 => mutate(&mut parts.directory, random),
            7 => mutate(&mut parts.checksums, random),
            8 if !parts.dictionary.is_empty() => mutate(&mut parts.dictionary, random),
            _ => mutate(&mut parts.data, random),
        }
        let fix = random.below(4) > 0;
        exercise(parts.assemble(fix, random), &mut decoder).is_some()
    });
}

fn legacy_shards() -> Vec<Vec<u8>> {
    let mut random = Random::new(31);
    let files: Vec<File> = support::every_kind(&mut random).into_iter().skip(4).collect();
    let mut shards: Vec<Vec<u8>> = [CodecChoice::None, CodecChoice::Lz4, CodecChoice::Zstd]
        .into_iter()
        .map(|codec| support::pack(&support::options(ShardFormat::V2, codec), &files, None, 0))
        .collect();
    // Version 1 by hand: one file, stored as it is.
    let mut v1 = b"DES2\x01\0\0\0hello".to_vec();
    v1.extend_from_slice(b"\x01\0\0\0\x01\0a");
    v1.extend_from_slice(&8u64.to_le_bytes());
    v1.extend_from_slice(&5u64.to_le_bytes());
    v1.push(0);
    v1.extend_from_slice(&5u64.to_le_bytes());
    v1.extend_from_slice(&5u64.to_le_bytes());
    let index_len = v1.len() as u64 - 13;
    v1.extend_from_slice(b"DESI");
    v1.extend_from_slice(&index_len.to_le_bytes());
    assert_eq!(Shard::open(v1.clone()).unwrap().verify().unwrap().entries, 1);
    shards.push(v1);
    shards
}

#[test]
fn fuzz_versions_1_and_2() {
    let shards = legacy_shards();
    let mut decoder = decoder();
    run("v1 and v2, mutated", |random| {
        let mut bytes = shards[random.below(shards.len())].clone();
        let index_len = u64::from_le_bytes(*bytes.last_chunk::<8>().unwrap()) as usize;
        if random.below(3) == 0 {
            mutate(&mut bytes, random);
        } else {
            // The index only, with a footer that fits: deeper than random places get.
            let start = bytes.len() - 12 - index_len;
            let mut index = bytes[start..bytes.len() - 12].to_vec();
            mutate(&mut index, random);
            bytes.truncate(start);
            bytes.extend_from_slice(&index);
            bytes.extend_from_slice(b"DESI");
            bytes.extend_from_slice(&(index.len() as u64).to_le_bytes());
        }
        if random.below(16) == 0 && bytes.len() > 4 {
            bytes[4] = 1;
        }
        exercise(bytes, &mut decoder).is_some()
    });
}

#[test]
fn fuzz_payload_frames() {
    let mut random = Random::new(32);
    let text: Vec<u8> = (0..3).flat_map(|_| support::record(&mut random)).collect();
    let noise = [random.bytes(300), vec![b'-'; 900], random.bytes(40)].concat();
    let mut frames = Vec::new();
    for raw in [&text, &noise, &b"r".repeat(70_000)] {
        for level in [1, 3, 19] {
            frames.push((Codec::Zstd, raw.len(), zstd::bulk::compress(raw, level).unwrap()));
        }
        for linked in [false, true] {
            use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
            let mode = if linked { BlockMode::Linked } else { BlockMode::Independent };
            let info = FrameInfo::new().block_mode(mode).block_size(BlockSize::Max64KB).content_checksum(linked);
            let mut frame = FrameEncoder::with_frame_info(info, Vec::new());
            std::io::Write::write_all(&mut frame, raw).unwrap();
            frames.push((Codec::Lz4, raw.len(), frame.finish().unwrap()));
        }
    }
    let mut decoder = decoder();
    run("payload frames, mutated", |random| {
        let (codec, raw_len, frame) = &frames[random.below(frames.len())];
        let mut frame = frame.clone();
        mutate(&mut frame, random);
        let raw_len = match random.below(4) {
            0 => random.next() % MAX_RAW,
            _ => *raw_len as u64,
        };
        zstd_window_len(&frame);
        let inline = Inline { offset: 8, stored_len: frame.len() as u64, codec: *codec, raw_len, crc32c: None };
        let entry = Entry { uid: "u".into(), location: Location::Inline(inline), meta: None };
        let Ok(raw) = decoder.decode(&entry, frame.into(), None) else { return false };
        assert_eq!(raw.len() as u64, raw_len);
        true
    });
}

#[test]
fn fuzz_random_bytes_as_shards() {
    let mut decoder = decoder();
    run("random bytes as shards", |random| {
        let len = random.below(300);
        let mut bytes = random.bytes(len);
        // Half of them with the magic numbers in their places.
        if random.below(2) == 0 && bytes.len() > 24 {
            bytes[..8].copy_from_slice(&[b'D', b'E', b'S', b'2', random.below(4) as u8, 0, 0, 0]);
            let end = bytes.len();
            if random.below(2) == 0 {
                bytes[end - 4..].copy_from_slice(b"DES3");
                if end >= 80 {
                    let crc = crc32c::crc32c(&bytes[end - 72..end - 8]);
                    bytes[end - 8..end - 4].copy_from_slice(&crc.to_le_bytes());
                }
            } else {
                bytes[end - 12..end - 8].copy_from_slice(b"DESI");
                let index_len = random.below(end) as u64;
                bytes[end - 8..].copy_from_slice(&index_len.to_le_bytes());
            }
        }
        exercise(bytes, &mut decoder).is_some()
    });
}

#[test]
fn fuzz_random_bytes_as_parts() {
    let footer = {
        let bytes = support::pack(&support::options(ShardFormat::V3, CodecChoice::None), &[], None, 0);
        Shard::open(bytes).unwrap().footer().unwrap().clone()
    };
    run("random bytes as parts", |random| {
        let len = random.below(120);
        let bytes = random.bytes(len);
        drop(parse_header(&bytes));
        let size = bytes.len() as u64 + random.next() % 1_000;
        if let Ok(tail) = TailBytes::new(size, bytes.clone().into()) {
            drop(Tail::parse(&tail));
            tail.get(&(random.next() % 2_000..random.next() % 2_000));
        }
        let legacy = des_shared::shard::LegacyTail { index_start: 8, index_end: 8 + bytes.len() as u64 };
        let version = random.below(4) as u8;
        drop(Index::parse(&[b'D', b'E', b'S', b'2', version, 0, 0, 0], legacy, Bytes::from(bytes.clone())));
        let mut footer = footer.clone();
        let frame = raw_frame(&bytes);
        (footer.directory_len, footer.directory_crc32c) = (frame.len() as u32, crc32c::crc32c(&frame));
        (footer.directory_offset, footer.block_count) = (random.next() % 5_000 + 8, random.below(20) as u32);
        Directory::parse(&footer, &frame).is_ok()
    });
}

#[test]
fn fuzz_checkpoints() {
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 0).unwrap();
    for file in [File::inline("a", vec![1; 200]), File::inline("b", vec![]).with_meta("{\"k\":1}")] {
        writer.append(&file.uid, &support::stored(file.bytes()), file.meta.as_ref()).unwrap();
    }
    writer.append_bigfile("c", [3; 32], 1 << 40, None).unwrap();
    let image = writer.rows_since(0);
    // first, position and length of the rows take a byte each; a CRC of more than 250 takes 0xfc and four bytes.
    let rows = image[3..image.len() - 5].to_vec();
    run("checkpoints", |random| {
        let mut bytes = image.clone();
        if random.below(3) == 0 {
            mutate(&mut bytes, random);
        } else {
            let mut rows = rows.clone();
            mutate(&mut rows, random);
            rows.truncate(250);
            bytes = vec![0, 8, rows.len() as u8];
            bytes.extend_from_slice(&rows);
            bytes.push(0xfc);
            bytes.extend_from_slice(&crc32c::crc32c(&rows).to_le_bytes());
        }
        let mut writer = ShardWriter::new(ShardFormat::V3, None, 0).unwrap();
        if writer.restore(&bytes).is_err() {
            return false;
        }
        writer.rows_since(writer.len() / 2);
        // Odd rows are possible under a right checksum (another size, say); they still make a whole tail.
        assert!(writer.finish().unwrap().len() >= 72);
        true
    });
}

#[test]
fn fuzz_meta_and_names() {
    let seeds = [
        r#"{"content_type":"text/plain","n":[1,2.5e3,null,true],"s":"q\"\\\u00e9"}"#,
        r#"{"n":NaN,"m":[-Infinity,{"a":{}}]}"#,
        "{ \"ключ\" : \"😀\" }",
    ];
    run("meta and names", |random| {
        let mut bytes = seeds[random.below(3)].as_bytes().to_vec();
        mutate(&mut bytes, random);
        let text = String::from_utf8_lossy(&bytes);
        should_compress(&text);
        let Ok(Some(meta)) = Meta::parse(&text) else { return false };
        // The stored form is its own stored form.
        assert!(meta.as_str().is_ascii());
        assert_eq!(Meta::parse(meta.as_str()).unwrap().as_ref(), Some(&meta));
        true
    });
}
