//! Reading from afar: how many ranges a lookup takes, and that caches can count bytes.

use bytes::Bytes;
use des_shared::segment::ShardFormat;
use des_shared::shard::{
    Block, Directory, HEADER_LEN, Index, Location, Meta, Shard, ShardWriter, TAIL_READ_BYTES, Tail, TailBytes,
    decode_payload,
};

use crate::support::{Random, stored};

/// A shard in a far place that counts the reads.
struct Remote {
    bytes: Bytes,
    reads: usize,
}

impl Remote {
    fn get(&mut self, range: std::ops::Range<u64>) -> Bytes {
        assert!(range.start < range.end, "never a range of zero bytes");
        self.reads += 1;
        self.bytes.slice(range.start as usize..range.end as usize)
    }

    fn tail(&mut self) -> TailBytes {
        let size = self.bytes.len() as u64;
        let tail = self.get(size.saturating_sub(TAIL_READ_BYTES)..size);
        TailBytes::new(size, tail).unwrap()
    }
}

fn shard_of(format: ShardFormat, files: u64) -> Bytes {
    let mut writer = ShardWriter::new(format, None, 1).unwrap();
    let mut out = writer.header().to_vec();
    for number in 0..files {
        let uid = format!("customers/{:07}/documents/{number:010}.json", number / 9);
        writer.append(&uid, &stored(&number.to_le_bytes()), None).unwrap();
        out.extend_from_slice(&number.to_le_bytes());
    }
    // One row in memory: its uid and not much more.
    let per_row = writer.heap_bytes() as f64 / files as f64;
    assert!(files < 10_000 || per_row < 43.0 + 16.0, "{per_row} bytes a row");
    out.extend_from_slice(&writer.finish().unwrap());
    out.into()
}

fn look_up_v3(remote: &mut Remote, uid: &str) -> Option<Bytes> {
    let tail = remote.tail();
    let Tail::V3(footer) = Tail::parse(&tail).unwrap() else { panic!("version 3") };
    let range = footer.directory_range();
    let directory = tail.get(&range).unwrap_or_else(|| remote.get(range));
    let directory = Directory::parse(&footer, &directory).unwrap();
    let block = directory.find(uid)?;
    let bytes = tail.get(&block.range()).unwrap_or_else(|| remote.get(block.range()));
    let entry = Block::parse(&bytes, &block).unwrap().find(uid).unwrap()?;
    let Location::Inline(inline) = entry.location else { panic!("inline") };
    let stored = tail.get(&inline.range()).unwrap_or_else(|| remote.get(inline.range()));
    Some(decode_payload(&entry, stored, None).unwrap())
}

#[test]
fn a_cold_lookup_takes_at_most_three_reads_in_a_shard_of_any_size() {
    for (files, expected) in [(10, 1), (3_000, 2), (400_000, 3)] {
        let bytes = shard_of(ShardFormat::V3, files);
        let mut worst = 0;
        for number in [0, 1, 2, 255, 256, 257, files / 3, files / 2, files - 1] {
            let number = number.min(files - 1);
            let uid = format!("customers/{:07}/documents/{number:010}.json", number / 9);
            let mut remote = Remote { bytes: bytes.clone(), reads: 0 };
            assert_eq!(look_up_v3(&mut remote, &uid).unwrap(), &number.to_le_bytes()[..]);
            worst = worst.max(remote.reads);
        }
        assert!(worst <= expected, "{files} files: {worst} reads");
        for absent in ["", "a", "customers/0000000/documents/00000000005.json", "zzz", "\u{10ffff}"] {
            let mut remote = Remote { bytes: bytes.clone(), reads: 0 };
            assert_eq!(look_up_v3(&mut remote, absent), None, "{absent:?}");
            assert!(remote.reads <= 2);
        }
    }
}

#[test]
fn the_directory_and_footer_stay_below_64_kib() {
    let bytes = shard_of(ShardFormat::V3, 400_000);
    let tail = TailBytes::new(bytes.len() as u64, bytes.slice(bytes.len() - 64 * 1024..)).unwrap();
    let Tail::V3(footer) = Tail::parse(&tail).unwrap() else { panic!("version 3") };
    assert!(tail.get(&footer.directory_range()).is_some());
}

#[test]
fn versions_1_and_2_are_read_from_header_tail_and_index() {
    let bytes = shard_of(ShardFormat::V2, 5_000);
    let mut remote = Remote { bytes, reads: 0 };
    let tail = remote.tail();
    let Tail::Legacy(legacy) = Tail::parse(&tail).unwrap() else { panic!("version 2") };
    assert!(tail.get(&legacy.index_range()).is_none(), "larger than the tail");
    let header = remote.get(0..HEADER_LEN);
    let index = remote.get(legacy.index_range());
    let index = Index::parse(&header, legacy, index).unwrap();
    let entry = index.find("customers/0000111/documents/0000001000.json").unwrap().unwrap();
    let Location::Inline(inline) = entry.location else { panic!("inline") };
    let stored = remote.get(inline.range());
    assert_eq!(decode_payload(&entry, stored, None).unwrap(), &1000u64.to_le_bytes()[..]);
    assert_eq!(remote.reads, 4);
    let per_entry = index.heap_bytes() / 5_000;
    assert!(per_entry < 100, "{per_entry} bytes an entry");
}

#[test]
fn parsed_blocks_know_their_memory() {
    let bytes = shard_of(ShardFormat::V3, 3_000);
    let tail = TailBytes::new(bytes.len() as u64, bytes.clone()).unwrap();
    let Tail::V3(footer) = Tail::parse(&tail).unwrap() else { panic!("version 3") };
    let directory = Directory::parse(&footer, &tail.get(&footer.directory_range()).unwrap()).unwrap();
    assert!(directory.heap_bytes() < 12 * 100);
    let mut total = 0;
    for block in directory.blocks() {
        let parsed = Block::parse(&tail.get(&block.range()).unwrap(), &block).unwrap();
        assert_eq!(parsed.len(), block.entries as usize);
        assert!(parsed.heap_bytes() < parsed.len() * 110);
        total += parsed.len();
    }
    assert_eq!(total, 3_000);
}

#[test]
fn blocks_grow_until_the_directory_fits_into_the_tail() {
    // Neighbours that share a long random beginning, and so much meta that each would have a block of its own: the
    // separators between them would be long.
    let meta = Meta::parse(&format!("{{\"note\":\"{}\"}}", "x".repeat(140_000))).unwrap();
    let mut random = Random::new(41);
    let mut uids: Vec<String> = (0..150)
        .map(|_| (0..80).map(|_| format!("{:016x}", random.next())).collect::<Vec<_>>().concat())
        .flat_map(|start| [format!("{start}a"), format!("{start}b")])
        .collect();
    uids.sort();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).unwrap();
    for uid in &uids {
        writer.append(uid, &stored(b""), meta.as_ref()).unwrap();
    }
    let bytes = [&writer.header()[..], &writer.finish().unwrap()].concat();
    let shard = Shard::open(bytes).unwrap();
    let footer = shard.footer().unwrap();
    assert!(footer.block_count <= 150, "{} blocks for {} entries", footer.block_count, uids.len());
    assert!(footer.directory_len <= 65_536 - 72, "{}", footer.directory_len);
    assert_eq!(shard.verify().unwrap().entries, 300);
    for uid in uids.iter().step_by(37) {
        assert_eq!(shard.find(uid).unwrap().unwrap().meta, meta);
    }
}
