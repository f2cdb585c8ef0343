//! Every flipped bit of a version 3 shard is noticed, and never are wrong bytes served.

use bytes::Bytes;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{Decoder, Entry, Location, Shard, ShardError, check_stored, decode_payload};

use crate::support::{self, File, Random};

/// Small shards that have every part between them.
pub(crate) fn small_shards() -> Vec<(Vec<u8>, Vec<File>)> {
    let mut random = Random::new(11);
    let kinds = support::every_kind(&mut random);
    let records: Vec<File> = (0..300).map(|i| File::inline(format!("r{i:03}"), support::record(&mut random))).collect();
    let mut out = Vec::new();
    for codec in [CodecChoice::None, CodecChoice::Lz4, CodecChoice::Zstd] {
        out.push((support::pack(&support::options(ShardFormat::V3, codec), &kinds, None, 5), kinds.clone()));
    }
    let options = support::options(ShardFormat::V3, CodecChoice::Auto);
    let dictionary = support::dictionary_for(&options, &records);
    assert!(dictionary.is_some());
    // A dictionary, and few files: every bit of it is flipped below.
    let few: Vec<File> = records.into_iter().take(3).collect();
    out.push((support::pack(&options, &few, dictionary, 6), few));
    out.push((support::pack(&options, &[], None, 7), Vec::new()));
    out
}

fn serves_only_right_bytes(shard: &Shard, files: &[File], decoder: &mut Decoder) {
    for entry in shard.entries().flatten() {
        let Some(file) = files.iter().find(|f| f.uid == entry.uid) else { panic!("{:?} appeared", entry.uid) };
        assert_eq!(entry.meta, file.meta);
        match entry.location {
            Location::Inline(_) => {
                if let Ok(bytes) = shard.read_with(decoder, &entry) {
                    assert_eq!(bytes, file.bytes(), "{:?}", file.uid);
                }
            }
            location @ Location::BigFile { .. } => {
                let support::Body::Big(sha256, size) = file.body else { panic!("{:?} became a big file", file.uid) };
                assert_eq!(location, Location::BigFile { sha256, size });
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut flips = 0;
    let mut decoder = Decoder::new().unwrap();
    for (bytes, files) in small_shards() {
        Shard::open(bytes.clone()).unwrap().verify().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            flips += 1;
            match Shard::open(damaged) {
                Ok(shard) => {
                    let error = shard.verify().expect_err("a flipped bit went unnoticed");
                    assert!(error.is_corrupt() || matches!(error, ShardError::Unsupported { .. }), "{error}");
                    serves_only_right_bytes(&shard, &files, &mut decoder);
                }
                Err(error) => {
                    assert!(error.is_corrupt() || matches!(error, ShardError::Unsupported { .. }), "{error}");
                }
            }
        }
    }
    assert!(flips > 50_000, "{flips}");
}

#[test]
fn every_cut_and_every_addition_is_noticed() {
    for (bytes, _) in small_shards() {
        for len in 0..bytes.len() {
            let opened = Shard::open(bytes[..len].to_vec());
            assert!(opened.and_then(|s| s.verify()).is_err(), "cut to {len}");
        }
        for extra in 1..90 {
            let mut longer = bytes.clone();
            longer.extend(std::iter::repeat_n(0, extra));
            assert!(Shard::open(longer).is_err());
            let mut shifted = vec![0; extra];
            shifted.extend_from_slice(&bytes);
            assert!(Shard::open(shifted).is_err());
        }
    }
}

fn entry_of(files: &[File], codec: CodecChoice) -> (Entry, Bytes) {
    let bytes = support::pack(&support::options(ShardFormat::V2, codec), files, None, 0);
    let shard = Shard::open(bytes.clone()).unwrap();
    let entry = shard.find(&files[0].uid).unwrap().unwrap();
    let Location::Inline(inline) = entry.location else { panic!("inline") };
    let range = inline.range();
    (entry, Bytes::from(bytes).slice(range.start as usize..range.end as usize))
}

fn with_raw_len(entry: &Entry, raw_len: u64, stored_len: usize) -> Entry {
    let mut entry = entry.clone();
    let Location::Inline(inline) = &mut entry.location else { panic!("inline") };
    (inline.raw_len, inline.stored_len) = (raw_len, stored_len as u64);
    entry
}

#[test]
fn frames_that_do_not_fit_their_entry_are_refused() {
    let files = [File::inline("log", b"the same line over and over\n".repeat(50))];
    let raw_len = files[0].bytes().len() as u64;
    for codec in [CodecChoice::Zstd, CodecChoice::Lz4] {
        let (entry, stored) = entry_of(&files, codec);
        assert_eq!(decode_payload(&entry, stored.clone(), None).unwrap(), files[0].bytes());
        for lie in [0, raw_len - 1, raw_len + 1, 1 << 30, u64::MAX] {
            let error = decode_payload(&with_raw_len(&entry, lie, stored.len()), stored.clone(), None).unwrap_err();
            assert!(error.is_corrupt() || matches!(error, ShardError::TooLarge { .. }), "{error}");
        }
        // Bytes behind the frame, a second frame behind it, and a frame cut short.
        for tail in [&b"x"[..], &stored[..]] {
            let longer: Bytes = [&stored[..], tail].concat().into();
            let entry = with_raw_len(&entry, raw_len, longer.len());
            assert!(decode_payload(&entry, longer, None).unwrap_err().is_corrupt());
        }
        for len in 0..stored.len() {
            let entry = with_raw_len(&entry, raw_len, len);
            assert!(decode_payload(&entry, stored.slice(..len), None).unwrap_err().is_corrupt(), "cut to {len}");
        }
        assert!(decode_payload(&entry, stored.slice(1..), None).unwrap_err().is_corrupt());
        let mut decoder = Decoder::new().unwrap().with_max_raw_len(raw_len - 1);
        assert!(matches!(decoder.decode(&entry, stored, None), Err(ShardError::TooLarge { .. })));
    }
}

#[test]
fn stored_bytes_are_checked_without_decompressing() {
    let files = support::every_kind(&mut Random::new(12));
    let bytes = support::pack(&support::options(ShardFormat::V3, CodecChoice::Zstd), &files, None, 0);
    let shard = Shard::open(bytes.clone()).unwrap();
    let entry = shard.find("repeat.txt").unwrap().unwrap();
    let Location::Inline(inline) = entry.location else { panic!("inline") };
    let mut stored = bytes[inline.range().start as usize..inline.range().end as usize].to_vec();
    assert_eq!(check_stored(&entry, &stored).unwrap(), inline);
    stored[3] ^= 1;
    let error = check_stored(&entry, &stored).unwrap_err().to_string();
    assert!(error.contains("repeat.txt") && error.contains(&inline.offset.to_string()), "{error}");
    let big = shard.find("big.iso").unwrap().unwrap();
    assert!(matches!(check_stored(&big, b""), Err(ShardError::Usage(_))));
}

#[test]
fn a_flipped_bit_in_a_compressed_payload_of_version_2_is_never_served() {
    let files = [File::inline("record", support::record(&mut Random::new(13)).repeat(3))];
    for codec in [CodecChoice::Zstd, CodecChoice::Lz4] {
        let (entry, stored) = entry_of(&files, codec);
        let Location::Inline(inline) = entry.location else { panic!("inline") };
        assert_eq!((inline.crc32c, inline.codec == des_shared::shard::Codec::None), (None, false));
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            match decode_payload(&entry, damaged.into(), None) {
                // A bit that the frame format leaves unused.
                Ok(bytes) => assert_eq!(bytes, files[0].bytes(), "bit {bit}"),
                Err(error) => assert!(error.is_corrupt(), "{error}"),
            }
        }
    }
}
