//! What is written comes back, whatever it is and however it was interrupted.

use std::collections::BTreeMap;

use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{Codec, Encoder, Location, Meta, Shard, ShardError, ShardWriter};
use proptest::prelude::*;

use crate::support::{self, Body, File, Random, stored};

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..200),
        ("[a-z]{1,20}", 1usize..400).prop_map(|(word, n)| word.repeat(n).into_bytes()),
    ]
}

fn meta() -> impl Strategy<Value = Option<Meta>> {
    proptest::option::of(("\\PC{0,12}", any::<i64>()).prop_map(|(key, value)| {
        let object = serde_json::json!({ key: value });
        Meta::parse(&object.to_string()).unwrap().unwrap()
    }))
}

fn files() -> impl Strategy<Value = Vec<File>> {
    let body = prop_oneof![
        8 => payload().prop_map(Body::Inline),
        1 => (any::<[u8; 32]>(), any::<u32>()).prop_map(|(hash, size)| Body::Big(hash, u64::from(size))),
    ];
    let uid = prop_oneof!["[a-c/.]{1,6}", "\\PC{1,10}", "[0-9]{1,25}", "(dir/){0,9}[a-z]{1,5}\\.(txt|gz)"];
    proptest::collection::btree_map(uid, (meta(), body), 0..600).prop_map(|map: BTreeMap<_, _>| {
        // In an order of their own, as a manifest has it.
        let mut files: Vec<File> = map.into_iter().map(|(uid, (meta, body))| File { uid, meta, body }).collect();
        files.reverse();
        files
    })
}

fn check(bytes: Vec<u8>, files: &[File]) {
    let shard = Shard::open(bytes).unwrap();
    assert_eq!(shard.len(), files.len() as u64);
    shard.verify().unwrap();
    for file in files {
        let entry = shard.find(&file.uid).unwrap().unwrap();
        assert_eq!((&entry.uid, &entry.meta), (&file.uid, &file.meta));
        match (&file.body, entry.location) {
            (Body::Inline(raw), Location::Inline(_)) => assert_eq!(shard.read(&entry).unwrap(), raw),
            (Body::Big(hash, size), Location::BigFile { sha256, size: found }) => {
                assert_eq!((hash, *size), (&sha256, found));
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_come_back_from_every_format_and_codec(files in files()) {
        for format in [ShardFormat::V2, ShardFormat::V3] {
            for codec in [CodecChoice::None, CodecChoice::Lz4, CodecChoice::Zstd] {
                let options = support::options(format, codec);
                let dictionary = support::dictionary_for(&options, &files);
                check(support::pack(&options, &files, dictionary, 7), &files);
            }
        }
    }

    #[test]
    fn an_interrupted_pack_goes_on_with_the_same_bytes(files in files(), cuts in proptest::collection::vec(0usize..600, 0..4)) {
        for format in [ShardFormat::V2, ShardFormat::V3] {
            let mut files = files.clone();
            if format == ShardFormat::V3 {
                files.sort_by(|a, b| a.uid.cmp(&b.uid));
            }
            let add = |writer: &mut ShardWriter, file: &File| match &file.body {
                Body::Inline(raw) => drop(writer.append(&file.uid, &stored(raw), file.meta.as_ref()).unwrap()),
                Body::Big(hash, size) => writer.append_bigfile(&file.uid, *hash, *size, file.meta.as_ref()).unwrap(),
            };
            let new = || ShardWriter::new(format, None, 9).unwrap();
            let mut whole = new();
            for file in &files {
                add(&mut whole, file);
            }
            // Checkpoints of what each stretch added, then a new writer from all of them, again and again.
            let (mut writer, mut checkpoints, mut saved) = (new(), Vec::new(), 0);
            for (at, file) in files.iter().enumerate() {
                if cuts.contains(&at) {
                    checkpoints.push(writer.rows_since(saved));
                    saved = writer.len();
                    writer = new();
                    for checkpoint in &checkpoints {
                        writer.restore(checkpoint).unwrap();
                    }
                    prop_assert_eq!(writer.len(), saved);
                }
                add(&mut writer, file);
            }
            prop_assert_eq!(writer.position(), whole.position());
            prop_assert_eq!(writer.raw_bytes(), whole.raw_bytes());
            prop_assert_eq!(writer.finish().unwrap(), whole.finish().unwrap());
        }
    }
}

#[test]
fn a_checkpoint_of_another_place_or_a_damaged_one_is_refused() {
    let new = || ShardWriter::new(ShardFormat::V3, None, 0).unwrap();
    let mut writer = new();
    for uid in ["a", "b", "c"] {
        writer.append(uid, &stored(uid.as_bytes()), None).unwrap();
    }
    assert!(matches!(new().restore(&writer.rows_since(1)), Err(ShardError::Corrupt { .. })));
    let good = writer.rows_since(0);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(new().restore(&bad).is_err(), "byte {at}");
        assert!(new().restore(&good[..at]).is_err(), "cut at {at}");
    }
    new().restore(&good).unwrap();
}

#[test]
fn what_a_format_cannot_hold_is_refused_and_changes_nothing() {
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 0).unwrap();
    writer.append("m", &stored(b"1"), None).unwrap();
    let long = "z".repeat(65_536);
    let huge = Meta::parse(&format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20))).unwrap();
    for (uid, meta) in [("m", None), ("a", None), (long.as_str(), None), ("n", huge.as_ref())] {
        let error = writer.append(uid, &stored(b"2"), meta).unwrap_err();
        assert!(matches!(error, ShardError::BadInput { .. }), "{error}");
    }
    let mut with_dictionary = stored(b"2");
    with_dictionary.codec = Codec::ZstdDict;
    assert!(writer.append("n", &with_dictionary, None).is_err());
    assert_eq!((writer.len(), writer.position()), (1, 9));
    assert!(ShardWriter::new(ShardFormat::V3, None, 0).unwrap().append("", &stored(b""), None).is_err());
    assert!(ShardWriter::new(ShardFormat::V2, Some(b"dictionary"), 0).is_err());

    let mut writer = ShardWriter::new(ShardFormat::V2, None, 0).unwrap();
    writer.append("m", &stored(b"1"), None).unwrap();
    writer.append("m", &stored(b"2"), None).unwrap();
    assert!(matches!(writer.finish(), Err(ShardError::BadInput { .. })));
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    let mut random = Random::new(3);
    let noise = random.bytes(5_000);
    let text = b"a line of a log file\n".repeat(100);
    for format in [ShardFormat::V2, ShardFormat::V3] {
        for (choice, codec) in
            [(CodecChoice::Zstd, Codec::Zstd), (CodecChoice::Auto, Codec::Zstd), (CodecChoice::Lz4, Codec::Lz4)]
        {
            let mut encoder = Encoder::new(&support::options(format, choice), None).unwrap();
            let mut codec_of = |uid, raw: &[u8]| {
                let answer = encoder.encode(uid, raw).unwrap();
                assert!(answer.bytes.len() <= raw.len());
                answer.info.codec
            };
            assert_eq!(codec_of("a.txt", &text), codec);
            assert_eq!(codec_of("a.txt", &noise), Codec::None);
            assert_eq!(codec_of("a.png", &text), Codec::None);
            assert_eq!(codec_of("a.txt", b""), Codec::None);
            assert_eq!(codec_of("a.txt", b"x"), Codec::None);
        }
    }
    for level in [0, -3, 23] {
        let options = des_shared::segment::PackOptions { level, ..Default::default() };
        assert!(Encoder::new(&options, None).is_err(), "level {level}");
    }
}

#[test]
fn large_payloads_come_back() {
    let mut random = Random::new(4);
    let files: Vec<File> = [65_536, 65_537, 262_145, 1_048_577, 5_000_000]
        .into_iter()
        .map(|n| {
            let mut bytes = random.bytes(n / 4);
            bytes.resize(n, b'-');
            File::inline(format!("{n}"), bytes)
        })
        .collect();
    for format in [ShardFormat::V2, ShardFormat::V3] {
        for codec in [CodecChoice::Lz4, CodecChoice::Zstd] {
            check(support::pack(&support::options(format, codec), &files, None, 0), &files);
        }
    }
}

#[test]
fn the_dictionary_does_not_depend_on_the_order_of_the_list() {
    let mut random = Random::new(5);
    let mut files: Vec<File> =
        (0..300).map(|i| File::inline(format!("{i}.json"), support::record(&mut random))).collect();
    let options = support::options(ShardFormat::V3, CodecChoice::Zstd);
    let first = support::dictionary_for(&options, &files).unwrap();
    files.reverse();
    assert_eq!(support::dictionary_for(&options, &files).unwrap(), first);
    let plain = support::pack(&options, &files, None, 0);
    let with = support::pack(&options, &files, Some(first), 0);
    assert!(with.len() < plain.len(), "{} < {}", with.len(), plain.len());
    // Noise has nothing in common.
    let noise: Vec<File> = (0..300).map(|i| File::inline(format!("{i}"), random.bytes(300))).collect();
    assert_eq!(support::dictionary_for(&options, &noise), None);
}

#[test]
fn auto_stores_noise_as_it_is_and_all_else_as_zstd_does() {
    let mut random = Random::new(77);
    let noise = random.bytes(100_000);
    // The same noise twice: zstd finds the second half in the first, `auto` does not look that far.
    let twice = noise.repeat(2);
    for format in [ShardFormat::V2, ShardFormat::V3] {
        let encoder = |codec| Encoder::new(&support::options(format, codec), None).unwrap();
        let (mut auto, mut zstd) = (encoder(CodecChoice::Auto), encoder(CodecChoice::Zstd));
        assert_eq!(auto.encode("video", &noise).unwrap().info.codec, Codec::None);
        assert_eq!(auto.encode("twice", &twice).unwrap().info.codec, Codec::None);
        assert_eq!(zstd.encode("twice", &twice).unwrap().info.codec, Codec::Zstd);
        for text in [b"text ".repeat(5_000), noise[..4_000].to_vec(), support::record(&mut random)] {
            assert_eq!(auto.encode("file", &text).unwrap(), zstd.encode("file", &text).unwrap());
        }
    }
}
