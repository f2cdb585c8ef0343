//! Shards made by the existing implementation: all of them read back right, and those without compression are
//! reproduced byte for byte.

use std::collections::HashMap;

use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{Codec, Entry, Location, Meta, Shard, ShardWriter, Version, hex32, should_compress};

use crate::support::{self, File, base64, read, read_json, sha256_hex, stored};

/// Every shard vector: path without ending, and the folder of its big files.
const VECTORS: [(&str, &str); 15] = [
    ("empty", ""),
    ("lz4", ""),
    ("lz4_hc9", ""),
    ("meta", ""),
    ("mixed_skip_lz4", ""),
    ("mixed_skip_zstd", ""),
    ("none", ""),
    ("unicode", ""),
    ("v1_empty", ""),
    ("v1_legacy", ""),
    ("zstd", ""),
    ("zstd9", ""),
    ("zstd_default_level", ""),
    ("bigfiles/bigfiles", "bigfiles/_bigFiles"),
    ("bigfiles_prefix/custom_prefix", "bigfiles_prefix/blobs"),
];

fn load(name: &str) -> (Shard, Vec<u8>, serde_json::Value) {
    let bytes = read(&format!("vectors/{name}.des"));
    let json = read_json(&format!("vectors/{name}.json"));
    assert_eq!(sha256_hex(&bytes), json["file_sha256"].as_str().unwrap(), "{name}: the copy of the vector");
    (Shard::open(bytes.clone()).unwrap_or_else(|e| panic!("{name}: {e}")), bytes, json)
}

fn check_entry(shard: &Shard, folder: &str, expected: &serde_json::Value) {
    let uid = expected["uid"].as_str().unwrap();
    let entry = shard.find(uid).unwrap().unwrap_or_else(|| panic!("{uid:?} is not found"));
    assert_eq!(entry.uid, uid);
    assert_eq!(entry.raw_len(), expected["size"].as_u64().unwrap());
    let meta = entry.meta.as_ref().map(|m| m.to_map().unwrap()).unwrap_or_default();
    assert_eq!(serde_json::Value::Object(meta), expected["meta"], "{uid:?}");
    match entry.location {
        Location::BigFile { sha256, size } => {
            assert_eq!(expected["is_bigfile"], true);
            assert_eq!(hex32(&sha256), expected["bigfile_hash"].as_str().unwrap());
            let bytes = read(&format!("vectors/{folder}/{}", hex32(&sha256)));
            assert_eq!(bytes.len() as u64, size);
            assert_eq!(sha256_hex(&bytes), expected["sha256"].as_str().unwrap());
            assert!(shard.read(&entry).is_err(), "a big file's bytes are not in the shard");
        }
        Location::Inline(inline) => {
            assert_eq!(expected["is_bigfile"], false);
            assert_eq!(inline.codec.to_string(), expected["codec"].as_str().unwrap());
            assert_eq!(inline.offset, expected["offset"].as_u64().unwrap());
            assert_eq!(inline.stored_len, expected["length"].as_u64().unwrap());
            assert_eq!(inline.crc32c, None);
            assert_eq!(sha256_hex(&shard.read(&entry).unwrap()), expected["sha256"].as_str().unwrap(), "{uid:?}");
        }
    }
}

#[test]
fn every_vector_reads_back_right() {
    for (name, folder) in VECTORS {
        let (shard, _, json) = load(name);
        let version = if json["version"] == 1 { Version::V1 } else { Version::V2 };
        assert_eq!(shard.version(), version, "{name}");
        let expected = json["entries"].as_array().unwrap();
        assert_eq!(shard.len(), expected.len() as u64, "{name}");
        for entry in expected {
            check_entry(&shard, folder, entry);
        }
        let listed: Vec<String> = shard.entries().map(|e| e.unwrap().uid).collect();
        let mut uids: Vec<String> = expected.iter().map(|e| e["uid"].as_str().unwrap().to_owned()).collect();
        uids.sort();
        assert_eq!(listed, uids, "{name}");
        assert_eq!(shard.verify().unwrap().entries, expected.len() as u64);
        assert_eq!(shard.find("this uid is in no vector").unwrap(), None);
    }
}

/// Writes a shard again from its entries and stored bytes, in the order of `json`.
fn rewrite(shard: &Shard, bytes: &[u8], json: &serde_json::Value) -> Vec<u8> {
    let mut writer = ShardWriter::new(ShardFormat::V2, None, 0).unwrap();
    let mut out = writer.header().to_vec();
    for expected in json["entries"].as_array().unwrap() {
        let Entry { uid, location, meta } = shard.find(expected["uid"].as_str().unwrap()).unwrap().unwrap();
        match location {
            Location::BigFile { sha256, size } => {
                writer.append_bigfile(&uid, sha256, size, meta.as_ref()).unwrap();
            }
            Location::Inline(inline) => {
                let range = inline.range();
                let payload = &bytes[range.start as usize..range.end as usize];
                let mut info = stored(payload);
                (info.codec, info.raw_len) = (inline.codec, inline.raw_len);
                writer.append(&uid, &info, meta.as_ref()).unwrap();
                out.extend_from_slice(payload);
            }
        }
    }
    out.extend_from_slice(&writer.finish().unwrap());
    out
}

#[test]
fn version_2_is_reproduced_byte_for_byte() {
    for (name, _) in VECTORS {
        let (shard, bytes, json) = load(name);
        if shard.version() == Version::V2 {
            assert_eq!(rewrite(&shard, &bytes, &json), bytes, "{name}");
        }
    }
}

#[test]
fn codec_none_is_reproduced_from_the_raw_files() {
    for name in ["none", "unicode", "empty"] {
        let (shard, bytes, json) = load(name);
        let files: Vec<File> = json["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| {
                let uid = e["uid"].as_str().unwrap();
                let entry = shard.find(uid).unwrap().unwrap();
                File { meta: entry.meta.clone(), ..File::inline(uid, shard.read(&entry).unwrap().to_vec()) }
            })
            .collect();
        let options = support::options(ShardFormat::V2, CodecChoice::None);
        assert_eq!(support::pack(&options, &files, None, 0), bytes, "{name}");
    }
}

#[test]
fn a_whole_pack_run_is_reproduced_byte_for_byte() {
    let manifest = read_json("vectors/pack_run_manifest.json");
    let sources: HashMap<&str, &str> = manifest
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["uid"].as_str().unwrap(), f["source_path"].as_str().unwrap()))
        .collect();
    let run = read_json("vectors/pack_run.json");
    let shards = run["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 30);
    for expected in shards {
        let files: Vec<File> = expected["uids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|uid| {
                let uid = uid.as_str().unwrap();
                File::inline(uid, read(&format!("vectors/{}", sources[uid])))
            })
            .collect();
        let packed = support::pack(&support::options(ShardFormat::V2, CodecChoice::None), &files, None, 0);
        let name = expected["file"].as_str().unwrap();
        assert_eq!(packed, read(&format!("vectors/pack_run/{name}")), "{name}");
        assert_eq!(sha256_hex(&packed), expected["sha256"].as_str().unwrap());
    }
}

/// What the existing reader accepts and this one does not, because the sizes or places are lies.
const LIES: [&str; 3] =
    ["offset < 8 (points into header)", "codec none: uncompressed_size lies", "codec none: compressed_size != length"];

#[test]
fn odd_shards_answer_as_they_should() {
    let cases = read_json("vectors/odd_shards.json");
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 43);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let opened = Shard::open(base64(case["bytes_b64"].as_str().unwrap()));
        if case["open"] != "ok" {
            let error = opened.and_then(|shard| shard.verify()).expect_err(name);
            assert!(!error.to_string().is_empty());
            continue;
        }
        let shard = opened.unwrap_or_else(|e| panic!("{name}: {e}"));
        for (uid, expected) in case["reads"].as_object().unwrap() {
            let answer = shard.find(uid).and_then(|entry| shard.read(&entry.expect(name)));
            if expected.get("error").is_some() || LIES.contains(&name) {
                assert!(answer.is_err(), "{name}: {answer:?}");
            } else {
                let bytes = answer.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(sha256_hex(&bytes), expected["sha256"].as_str().unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn the_same_names_are_compressed() {
    let cases = read_json("vectors/should_compress.json");
    for case in cases.as_array().unwrap() {
        let uid = case["uid"].as_str().unwrap();
        assert_eq!(should_compress(uid), case["compress"].as_bool().unwrap(), "{uid:?}");
    }
}

#[test]
fn meta_is_written_compact_and_in_ascii() {
    let meta = Meta::parse("{ \"ключ\" : \"😀\", \"b\" : 1.0 }").unwrap().unwrap();
    let mut writer = ShardWriter::new(ShardFormat::V2, None, 0).unwrap();
    writer.append("a", &stored(b""), Some(&meta)).unwrap();
    let tail = writer.finish().unwrap();
    let text = br#"{"\u043a\u043b\u044e\u0447":"\ud83d\ude00","b":1.0}"#;
    assert!(tail.windows(text.len()).any(|w| w == text));
    assert_eq!(Codec::from_number(4), None);
}
