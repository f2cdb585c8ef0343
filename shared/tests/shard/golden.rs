//! Version 3 shards made by this implementation and kept: they must read back for ever, and until a zstd release
//! changes its output they are also reproduced byte for byte.
//!
//! `DES_GOLDEN_WRITE=1 cargo test -p des-shared --test shard golden` writes them anew.

use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};
use des_shared::shard::{Location, Shard, hex32};
use serde_json::{Value, json};

use crate::support::{self, File, Random, golden, read, read_json, sha256_hex};

const SEQUENCE: u64 = 1_767_225_600_000;

struct Golden {
    name: &'static str,
    note: &'static str,
    options: PackOptions,
    files: Vec<File>,
}

fn cases() -> Vec<Golden> {
    let case = |name, note, codec, files| {
        let options = support::options(ShardFormat::V3, codec);
        Golden { name, note, options, files }
    };
    let kinds = || support::every_kind(&mut Random::new(1));
    let records = |count: usize| {
        let mut random = Random::new(2);
        (0..count).map(|i| File::inline(format!("records/{:05}.json", i * 7), support::record(&mut random))).collect()
    };
    let long = |c: &str, n| File::inline(c.repeat(n), c.as_bytes().to_vec());
    let long_uids = vec![long("x", 65_535), long("日", 21_845), long("x", 65_534), File::inline("y", b"y".to_vec())];
    vec![
        case("empty", "no entries", CodecChoice::Zstd, Vec::new()),
        case("none", "every kind of entry, stored as it is", CodecChoice::None, kinds()),
        case("lz4", "every kind of entry, LZ4 frames", CodecChoice::Lz4, kinds()),
        case("zstd", "every kind of entry, zstd frames, too few files for a dictionary", CodecChoice::Zstd, kinds()),
        case("zstd_dict", "small similar files: a dictionary pays", CodecChoice::Auto, records(400)),
        case("blocks", "several index blocks", CodecChoice::None, records(1_000)),
        case("long_uids", "the longest uids", CodecChoice::Zstd, long_uids),
    ]
}

fn write(case: &Golden) -> Vec<u8> {
    let dictionary = support::dictionary_for(&case.options, &case.files);
    support::pack(&case.options, &case.files, dictionary, SEQUENCE)
}

/// Shards as they were written earlier, which nothing writes any more: name and what is different in them.
const EARLIER: [(&str, &str); 2] = [
    ("zstd_dict_with_id", "a dictionary as the library trains it, and its id in every frame"),
    ("zstd_dict_trained", "a dictionary with the tables of the library's own training"),
];

fn describe(name: &str, note: &str, bytes: &[u8]) -> Value {
    let shard = Shard::open(bytes.to_vec()).unwrap();
    let footer = shard.footer().unwrap().clone();
    let entries: Vec<Value> = shard
        .entries()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.meta.as_ref().map(des_shared::shard::Meta::as_str);
            match entry.location {
                Location::BigFile { sha256, size } => {
                    json!({"uid": entry.uid, "bigfile_sha256": hex32(&sha256), "size": size, "meta": meta})
                }
                Location::Inline(inline) => json!({
                    "uid": entry.uid, "size": inline.raw_len, "codec": inline.codec.to_string(),
                    "offset": inline.offset, "stored_len": inline.stored_len,
                    "crc32c": format!("{:08x}", inline.crc32c.unwrap()),
                    "sha256": sha256_hex(&shard.read(&entry).unwrap()), "meta": meta,
                }),
            }
        })
        .collect();
    json!({
        "file": format!("{name}.des"), "note": note, "version": 3, "file_size": bytes.len(),
        "file_sha256": sha256_hex(bytes), "sequence": footer.sequence, "raw_bytes": footer.raw_bytes,
        "dictionary_len": footer.dict_len, "directory_len": footer.directory_len,
        "block_count": footer.block_count, "entries": entries,
    })
}

#[test]
fn golden_files_read_back_and_are_reproduced() {
    let rewrite = std::env::var_os("DES_GOLDEN_WRITE").is_some();
    for case in cases() {
        let (path, json) = (format!("v3/{}.des", case.name), format!("v3/{}.json", case.name));
        let written = write(&case);
        if rewrite {
            std::fs::write(golden(&path), &written).unwrap();
            let text = serde_json::to_string_pretty(&describe(case.name, case.note, &written)).unwrap();
            std::fs::write(golden(&json), text + "\n").unwrap();
        }
        let kept = read(&path);
        assert_eq!(describe(case.name, case.note, &kept), read_json(&json), "{}: reads back as it did", case.name);
        assert!(kept == written, "{}: {} bytes are written now, {} were", case.name, written.len(), kept.len());
        let shard = Shard::open(kept).unwrap();
        shard.verify().unwrap();
        for file in &case.files {
            let entry = shard.find(&file.uid).unwrap().unwrap();
            assert_eq!(entry.meta, file.meta);
            if let Location::Inline(_) = entry.location {
                assert_eq!(shard.read(&entry).unwrap(), file.bytes(), "{:?}", file.uid);
            }
        }
    }
}

#[test]
fn what_was_written_earlier_still_reads_back() {
    for (name, note) in EARLIER {
        let kept = read(&format!("v3/{name}.des"));
        assert_eq!(describe(name, note, &kept), read_json(&format!("v3/{name}.json")), "{name}");
        Shard::open(kept).unwrap().verify().unwrap();
    }
}

#[test]
fn golden_files_cover_what_they_are_for() {
    let of = |name: &str| read_json(&format!("v3/{name}.json"));
    assert!(of("zstd_dict")["dictionary_len"].as_u64().unwrap() > 0);
    assert!(of("blocks")["block_count"].as_u64().unwrap() >= 3);
    let codecs = |name: &str| -> std::collections::BTreeSet<String> {
        let json = of(name);
        json["entries"].as_array().unwrap().iter().filter_map(|e| e["codec"].as_str().map(str::to_owned)).collect()
    };
    assert!(codecs("lz4").contains("lz4") && codecs("lz4").contains("none"));
    assert!(codecs("zstd").contains("zstd"));
    assert!(codecs("zstd_dict").contains("zstd-dict"));
}
