//! Listings of the S3 interface: against a model, and what they cost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use des_shared::archive::RecordedCall;
use des_shared::routing::{ShardDate, Slot, shard_index};
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{Codec, PayloadInfo, ShardWriter};
use des_shared::store::call::Operation;
use des_shared::tombstone;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Client;

use super::support::{Content, Place, Rig, Server, content, many, n_bits, options, pack, put_in_all_slots, touch, v3};

/// One line of a listing: a key with its size, or a common prefix.
type Line = (String, Option<u64>);

/// What a page says.
struct Page {
    lines: Vec<Line>,
    next: Option<String>,
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// What stands between `<name>` and `</name>`, each time.
fn elements<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(open.as_str()).skip(1);
    parts.map(|part| part.split(close.as_str()).next().expect("a part")).collect()
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8().expect("UTF-8").into_owned()
}

async fn page(server: &Server, query: &str) -> Page {
    let url = server.s3_url(&format!("/des?encoding-type=url{query}"));
    let response = Client::new().get(url).send().await.expect("an answer");
    let status = response.status();
    let xml = response.text().await.expect("XML");
    assert_eq!(status, 200, "{query}: {xml}");
    let mut lines: Vec<Line> = Vec::new();
    for object in elements(&xml, "Contents") {
        let size = elements(object, "Size")[0].parse().expect("a number");
        lines.push((decoded(elements(object, "Key")[0]), Some(size)));
    }
    let mut prefixes: Vec<Line> = elements(&xml, "CommonPrefixes")
        .into_iter()
        .map(|common| (decoded(elements(common, "Prefix")[0]), None))
        .collect();
    lines.append(&mut prefixes);
    lines.sort();
    let next = if query.contains("list-type=2") {
        elements(&xml, "NextContinuationToken").first().map(|token| (*token).to_owned())
    } else {
        elements(&xml, "NextMarker").first().map(|marker| decoded(marker))
    };
    assert_eq!(elements(&xml, "IsTruncated"), [if next.is_some() { "true" } else { "false" }]);
    Page { lines, next }
}

/// Everything, page by page, by version 1 or 2 of the request.
async fn all(server: &Server, version: u8, query: &str, most: usize) -> Vec<Line> {
    let (mut lines, mut next): (Vec<Line>, Option<String>) = (Vec::new(), None);
    for _ in 0..10_000 {
        let go_on = match &next {
            None => String::new(),
            Some(next) if version == 1 => format!("&marker={}", encoded(next)),
            Some(next) => format!("&continuation-token={next}"),
        };
        let kind = if version == 1 { "" } else { "&list-type=2" };
        let page = page(server, &format!("{kind}&max-keys={most}{query}{go_on}")).await;
        assert!(page.lines.len() <= most, "{query}: {} lines", page.lines.len());
        lines.extend(page.lines);
        match page.next {
            Some(marker) => next = Some(marker),
            None => return lines,
        }
    }
    panic!("{query}: no end")
}

/// What a listing should say of these files.
fn expected(files: &BTreeMap<String, u64>, prefix: &str, delimiter: &str, after: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (key, size) in files.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
        let end = key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty());
        let line = match end {
            Some(at) => (key[..prefix.len() + at + delimiter.len()].to_owned(), None),
            None => (key.clone(), Some(*size)),
        };
        if lines.last() != Some(&line) && line.0.as_str() > after {
            lines.push(line);
        }
    }
    lines
}

const DATES: [(&str, (u16, u8, u8)); 3] =
    [("20241231", (2024, 12, 31)), ("20250310", (2025, 3, 10)), ("20250311", (2025, 3, 11))];

fn names() -> Vec<String> {
    let odd =
        ["..", "../x", "a//b", "a/", "/", "%41", "+ +", "x\u{1}y", "日本/語", "ä", "0007", "12", "a/b/\u{10ffff}"];
    let plain = (0..90).map(|n| match n % 4 {
        0 => format!("a/b/{n}"),
        1 => format!("a/{n}-x"),
        2 => format!("b-{n}"),
        _ => format!("{n}"),
    });
    odd.iter().map(|uid| (*uid).to_owned()).chain(plain).collect()
}

/// Three shards in each slot of each date, of several versions and with the same uids, and some of them deleted. The
/// upper half of the slots lies in the second place. Says what there is.
fn fill(places: [&Place; 2]) -> BTreeMap<String, u64> {
    let mut model = BTreeMap::new();
    for (date, (year, month, day)) in DATES {
        for index in 0..16 {
            let place = places[usize::from(index >= 8)];
            let slot = Slot { date: ShardDate { year, month, day }, index, n_bits: n_bits(4) };
            let uids: Vec<String> = names().into_iter().filter(|uid| shard_index(uid, n_bits(4)) == index).collect();
            let mut newest: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for number in 0..3_u64 {
                // The newest is neither the first nor the last by name.
                let sequence = 1_700_000_000_000 + [1_000, 3_000, 2_000][number as usize];
                let mine = uids.iter().enumerate().filter(|(at, _)| !(*at as u64 + number).is_multiple_of(3));
                let files: Content =
                    mine.map(|(at, uid)| (uid.clone(), vec![b'x'; at + 10 * number as usize])).collect();
                for (uid, raw) in &files {
                    let known = newest
                        .entry(uids.iter().find(|known| *known == uid).expect("one of them").as_str())
                        .or_default();
                    *known = (*known).max((sequence, raw.len() as u64));
                }
                let key = format!("{}{number:04}.des", slot.object_prefix());
                let format = if number == 2 { ShardFormat::V2 } else { ShardFormat::V3 };
                place.put(&key, pack(&options(format, CodecChoice::Zstd), sequence, &files, None));
                touch(place.folder.path(), &key, sequence);
            }
            for (at, uid) in uids.iter().enumerate().filter(|(at, _)| at % 4 == 0) {
                // Some were packed again after they were deleted.
                let deleted_ms = 1_700_000_000_000 + if at % 8 == 0 { 2_500 } else { 9_000 };
                place.put(&tombstone::key(&slot, uid, deleted_ms), "{}");
                if newest.get(uid.as_str()).is_some_and(|(sequence, _)| *sequence < deleted_ms) {
                    newest.remove(uid.as_str());
                }
            }
            model.extend(newest.into_iter().map(|(uid, (_, size))| (format!("{date}/{uid}"), size)));
        }
    }
    model
}

#[tokio::test]
async fn listings_agree_with_a_model() {
    let (a, b) = (Place::new(), Place::new());
    let model = fill([&a, &b]);
    assert!(model.len() > 200 && model.len() < 3 * names().len(), "{} files are left", model.len());
    let server = Rig::two_zones([&a, &b], 8).with_s3_face().serve().await;
    let prefixes =
        ["", "2025", "20250310", "20250310/", "20250310/a", "20250310/a/", "20250311/ä", "20250399/", "x", "2"];
    for prefix in prefixes {
        for delimiter in ["", "/", "-", "b/", "0/"] {
            let query = format!("&prefix={}&delimiter={}", encoded(prefix), encoded(delimiter));
            let right = expected(&model, prefix, delimiter, "");
            for (version, most) in [(2, 1000), (1, 1000), (2, 7), (1, 40)] {
                let found = all(&server, version, &query, most).await;
                assert_eq!(found, right, "version {version}, {most} a page: {prefix:?} {delimiter:?}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_listing_begins_behind_any_key() {
    let (a, b) = (Place::new(), Place::new());
    let model = fill([&a, &b]);
    let server = Rig::two_zones([&a, &b], 8).with_s3_face().serve().await;
    let keys: BTreeSet<&str> =
        model.keys().map(String::as_str).chain(["20250310/a/zz", "20250310", "3", "1"]).collect();
    for after in keys.iter().step_by(17) {
        for (prefix, delimiter) in [("", ""), ("20250310/", ""), ("20250310/", "/"), ("", "/"), ("20250310/a/", "/")] {
            let query =
                format!("&prefix={}&delimiter={}&start-after={}", encoded(prefix), encoded(delimiter), encoded(after));
            let found = page(&server, &format!("&list-type=2{query}")).await;
            assert_eq!(found.lines, expected(&model, prefix, delimiter, after), "{prefix:?} {delimiter:?} {after:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn what_lies_in_another_slot_than_its_own_is_not_there() {
    let place = Place::new();
    let files = many(50);
    put_in_all_slots(&place, "0000", &v3(1, &files));
    let server = Rig::new(&place, 4).with_s3_face().serve().await;
    let found = all(&server, 2, "&prefix=20250310/", 1000).await;
    let right: Vec<Line> = files.iter().map(|(uid, raw)| (format!("20250310/{uid}"), Some(raw.len() as u64))).collect();
    assert_eq!(found, right, "each once");
    server.stop().await;
}

/// Listings, and reads.
fn counted(calls: &[RecordedCall]) -> (usize, usize) {
    let lists = calls.iter().filter(|call| call.operation == Operation::List).count();
    (lists, calls.len() - lists)
}

#[tokio::test]
async fn a_page_costs_two_listings_and_the_ends_of_the_shards_once() {
    let place = Place::new();
    for date in 10..30 {
        for index in 0..16 {
            let uids: Vec<String> =
                (0..4000).map(|n| format!("f/{n:05}")).filter(|uid| shard_index(uid, n_bits(4)) == index).collect();
            let files = uids.iter().map(|uid| (uid.as_str(), &b"some bytes"[..])).collect::<Vec<_>>();
            place.put(&format!("202503{date}_{index:X}_0000.des"), v3(1, &content(&files)));
            if date > 10 {
                break;
            }
        }
    }
    let rig = Rig::new(&place, 4).with_s3_face();
    let clock = rig.clock.clone();
    let server = rig.serve().await;
    place.calls();
    let first = page(&server, "&list-type=2&prefix=20250310/&max-keys=100").await;
    assert_eq!((first.lines.len(), counted(&place.calls())), (100, (2, 16)), "shards, tombstones; 16 tails");
    let query = "&list-type=2&prefix=20250310/&max-keys=100&continuation-token=";
    let second = page(&server, &format!("{query}{}", first.next.expect("more"))).await;
    assert_eq!((second.lines.len(), counted(&place.calls())), (100, (0, 0)), "from the window");
    clock.advance(Duration::from_secs(6));
    let third = page(&server, &format!("{query}{}", second.next.expect("more"))).await;
    assert_eq!((third.lines.len(), counted(&place.calls())), (100, (2, 0)), "the listings were too old");
    assert_eq!(all(&server, 2, "&prefix=20250310/", 1000).await.len(), 4000);
    assert_eq!(counted(&place.calls()), (0, 0));
    // Twenty dates: their few shards are on one page of the store's listing.
    let root = all(&server, 2, "&delimiter=/", 1000).await;
    assert_eq!((root.len(), counted(&place.calls())), (20, (1, 0)));
    server.stop().await;
}

/// A shard whose index is far too long for the tail. The payloads are made up.
fn long_shard(uids: &[String]) -> Vec<u8> {
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 5).expect("a writer");
    let mut out = writer.header().to_vec();
    for uid in uids {
        writer.append(uid, &PayloadInfo::of(Codec::None, 4, b"data"), None).expect("appended");
        out.extend_from_slice(b"data");
    }
    out.extend_from_slice(&writer.finish().expect("finished"));
    out
}

#[tokio::test]
async fn a_long_index_is_read_where_the_page_is() {
    let place = Place::new();
    let uid = |n: u32| format!("{:08x}-{n:08}", n.wrapping_mul(0x9E37_79B1));
    let mut uids: Vec<String> =
        (0..400_000).map(uid).filter(|uid| shard_index(uid, n_bits(4)) == 3).take(20_000).collect();
    uids.sort();
    place.put("20250310_3_0000.des", long_shard(&uids));
    let server = Rig::new(&place, 4).with_s3_face().serve().await;
    place.calls();
    let after = format!("20250310/{}", uids[12_000]);
    let query = format!("&list-type=2&prefix=20250310/&max-keys=10&start-after={}", encoded(&after));
    let found = page(&server, &query).await;
    let right: Vec<Line> = uids[12_001..12_011].iter().map(|uid| (format!("20250310/{uid}"), Some(4))).collect();
    assert_eq!(found.lines, right);
    let calls = place.calls();
    let (lists, reads) = counted(&calls);
    assert!(lists == 2 && reads <= 4, "the tail, its directory, one block or two: {calls:?}");
    // Common prefixes are leapt over.
    let query = "&list-type=2&prefix=20250310/&delimiter=-&max-keys=3";
    assert_eq!(page(&server, query).await.lines.len(), 3);
    assert_eq!(all(&server, 2, "&prefix=20250310/", 1000).await.len(), uids.len());
    server.stop().await;
}
