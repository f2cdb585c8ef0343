//! Files that are objects of their own: streamed, and never complete when the hash is wrong.

use std::ops::Range;

use axum::http::StatusCode;
use des_shared::archive::ArchiveError;
use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::store::{ByteRange, StoreErrorKind};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::serve::Wanted;

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
}

/// A request for a part.
fn part(range: &Range<usize>) -> Wanted {
    Wanted { range: Some(format!("bytes={}-{}", range.start, range.end - 1)), ..wanted("movie.mp4", NOON) }
}

/// Which bytes of big files were read since the last time.
fn reads(place: &Place) -> Vec<Option<ByteRange>> {
    let calls = place.calls().into_iter().filter(|call| call.key.starts_with("_bigFiles/"));
    calls.map(|call| call.range).collect()
}

#[tokio::test]
async fn parts_are_of_files_whose_hash_is_right() {
    let place = Place::new();
    let raw = noise(1_000_000);
    let mut broken = raw.clone();
    broken[900_000] ^= 1;
    for range in [0..1, 5..6, 262_143..262_145, 250_000..700_000, 999_999..1_000_000, 0..999_999, 1..1_000_000] {
        put(&place, "movie.mp4", &raw, &raw);
        let answer = Rig::new(&place, 8).answer(&part(&range)).await.expect("found");
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.length, (range.end - range.start) as u64);
        assert_eq!(bytes_of(answer).await.expect("right"), &raw[range.clone()]);
        // A wrong byte elsewhere in the file: nobody can say which part is right, so no part is given out.
        put(&place, "movie.mp4", &raw, &broken);
        let error = Rig::new(&place, 8).answer(&part(&range)).await.err().expect("the hash differs");
        assert_eq!(error.status(), 502, "{error}");
    }
    // All of it as a part is streamed like the whole.
    let answer = Rig::new(&place, 8).answer(&part(&(0..1_000_000))).await.expect("it looks right");
    bytes_of(answer).await.expect_err("the hash differs");
}

#[tokio::test]
async fn the_first_part_reads_all_and_later_ones_their_blocks() {
    let place = Place::new();
    let raw = noise(1_000_000);
    put(&place, "movie.mp4", &raw, &raw);
    let rig = Rig::new(&place, 8);
    let get = async |range: Range<usize>| {
        let bytes = bytes_of(rig.answer(&part(&range)).await?).await.expect("right");
        assert_eq!(bytes, &raw[range]);
        Ok::<_, Error>(())
    };
    let (one, two) = tokio::join!(get(5..6), get(999_000..1_000_000));
    one.and(two).expect("both");
    let mut asked = reads(&place);
    assert_eq!(asked.remove(0), Some(ByteRange::Span(0..1_000_000)), "once for both");
    assert_eq!(asked.len(), 2, "{asked:?}");
    get(300_000..300_010).await.expect("found");
    get(262_143..262_145).await.expect("found");
    assert_eq!(reads(&place), [Some(ByteRange::Span(262_144..524_288)), Some(ByteRange::Span(0..524_288))]);
    // From now on every part is checked by itself.
    let mut broken = raw.clone();
    broken[600_000] ^= 1;
    put(&place, "movie.mp4", &raw, &broken);
    get(0..500_000).await.expect("nothing of it is wrong");
    assert_eq!(get(524_288..524_289).await.expect_err("its block is wrong").status(), 502);
    let answer = rig.answer(&part(&(500_000..700_000))).await.expect("it begins well");
    let error = bytes_of(answer).await.expect_err("the second block is wrong");
    assert!(error.to_string().contains("at 524288"), "{error}");
    put(&place, "movie.mp4", &raw, &raw[..999_999]);
    assert_eq!(get(0..10).await.expect_err("another size").status(), 502);
}

#[tokio::test]
async fn what_was_read_for_a_part_counts_when_the_store_fails() {
    let place = Place::new();
    let raw = noise(1_000_000);
    put(&place, "movie.mp4", &raw, &raw);
    place.faults.add(Rule::once(Operation::GetStream, Fault::Cut(700_000)));
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.answer(&part(&(5..6))).await.err().expect("cut").status(), 503);
    reads(&place);
    let answer = rig.answer(&part(&(5..6))).await.expect("well again");
    assert_eq!(bytes_of(answer).await.expect("right"), &raw[5..6]);
    let asked = reads(&place);
    assert!(matches!(&asked[0], Some(ByteRange::Span(rest)) if rest.start > 400_000), "{asked:?}");
}

#[tokio::test]
async fn head_asks_the_index_alone() {
    let place = Place::new();
    let raw = noise(1_000_000);
    put(&place, "movie.mp4", &raw, &raw);
    let rig = Rig::new(&place, 8);
    let answer = rig.answer(&Wanted { head: true, ..wanted("movie.mp4", NOON) }).await.expect("found");
    assert_eq!((answer.status, answer.length), (StatusCode::OK, 1_000_000));
    assert_eq!(reads(&place), []);
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
