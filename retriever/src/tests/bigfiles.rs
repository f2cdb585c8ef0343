//! Files that are objects of their own: streamed, and never complete when the hash is wrong.

use axum::http::StatusCode;
use des_shared::archive::ArchiveError;
use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use des_shared::store::StoreErrorKind;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use sha2::{Digest, Sha256};

use super::support::{NOON, Place, Rig, bytes_of, key, noise, wanted};

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A shard with one big file, and its object; `stored` are the bytes that are really there.
fn put(place: &Place, uid: &str, raw: &[u8], stored: &[u8]) {
    for (number, format) in [ShardFormat::V2, ShardFormat::V3].into_iter().enumerate() {
        let mut writer = ShardWriter::new(format, None, 1).expect("a writer");
        let mut out = writer.header().to_vec();
        writer.append_bigfile(uid, sha256(raw), raw.len() as u64, None).expect("appended");
        out.extend_from_slice(&writer.finish().expect("finished"));
        place.put(&key(uid, number as u32), out);
    }
    place.put(&bigfile_key("_bigFiles", &sha256(raw)), stored);
}

#[tokio::test]
async fn they_are_streamed_whole() {
    let place = Place::new();
    for len in [0, 1, 300_000, 3_000_000] {
        let raw = noise(len);
        put(&place, "movie.mp4", &raw, &raw);
        assert_eq!(Rig::new(&place, 8).get("movie.mp4").await.expect("found"), raw);
    }
}

#[tokio::test]
async fn wrong_bytes_never_end_well() {
    let place = Place::new();
    let raw = noise(1_000_000);
    for at in [0, 500_000, 999_999] {
        let mut stored = raw.clone();
        stored[at] ^= 0x80;
        put(&place, "movie.mp4", &raw, &stored);
        let answer = Rig::new(&place, 8).answer(&wanted("movie.mp4", NOON)).await.expect("it looks right");
        let error = bytes_of(answer).await.expect_err("the hash differs");
        assert!(matches!(&error, ArchiveError::BigFile { .. }) && error.to_string().contains("SHA-256"), "{error}");
    }
    put(&place, "movie.mp4", &raw, &raw[..999_999]);
    assert_eq!(Rig::new(&place, 8).status("movie.mp4").await, 502);
    place.remove(&bigfile_key("_bigFiles", &sha256(&raw)));
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.status("movie.mp4").await, 502, "an index leads to nothing: that is damage, not absence");
    let head = rig.answer(&super::support::wanted("movie.mp4", NOON)).await;
    assert!(head.is_err());
}

#[tokio::test]
async fn ranges_are_of_files_whose_hash_is_right() {
    let place = Place::new();
    let raw = noise(1_000_000);
    let mut broken = raw.clone();
    broken[900_000] ^= 1;
    for range in [0..1, 0..1_000_000, 5..6, 262_143..262_145, 250_000..700_000, 999_999..1_000_000] {
        put(&place, "movie.mp4", &raw, &raw);
        let rig = Rig::new(&place, 8);
        let mut part = wanted("movie.mp4", NOON);
        part.range = Some(format!("bytes={}-{}", range.start, range.end - 1));
        let answer = rig.answer(&part).await.expect("found");
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.length, (range.end - range.start) as u64);
        assert_eq!(bytes_of(answer).await.expect("right"), &raw[range.clone()]);
        // A wrong byte elsewhere in the file: the part does not end well either.
        put(&place, "movie.mp4", &raw, &broken);
        let answer = rig.answer(&part).await.expect("it looks right");
        bytes_of(answer).await.expect_err("the hash differs");
    }
}

#[tokio::test]
async fn a_store_that_breaks_off_breaks_the_answer_off() {
    let place = Place::new();
    let raw = noise(1_000_000);
    put(&place, "movie.mp4", &raw, &raw);
    place.faults.add(Rule::once(Operation::GetStream, Fault::Cut(700_000)));
    let rig = Rig::new(&place, 8);
    let answer = rig.answer(&wanted("movie.mp4", NOON)).await.expect("it begins well");
    let error = bytes_of(answer).await.expect_err("cut");
    assert!(matches!(error, ArchiveError::Store(e) if e.kind == StoreErrorKind::Unavailable));
    assert_eq!(rig.get("movie.mp4").await.expect("well again"), raw);
}
