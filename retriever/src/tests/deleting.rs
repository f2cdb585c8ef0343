//! Deleting files: what a tombstone hides, who sees it when, and what HTTP says.

use std::time::Duration;

use des_shared::clock::Clock;
use des_shared::config::Auth;
use des_shared::created_at::CreatedAt;
use des_shared::metrics::Metrics;
use des_shared::store::StoreErrorKind;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::tombstone::{self, Reasons, TOMBSTONES_PREFIX, Tombstone};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::support::{NOON, Place, Rig, content, key, put_in_all_slots, slot, v3};
use crate::delete::Deletion;
use crate::error::Error;

const KEY: &str = "the-key-of-deleters";

fn deletion(uid: &str) -> Deletion {
    let why = Reasons { deleted_by: "ann".to_owned(), reason: "asked to".to_owned(), ticket_id: None, key_name: None };
    Deletion { uid: uid.to_owned(), created_at: CreatedAt::parse(NOON).expect("a moment"), why }
}

async fn delete(rig: &Rig, uid: &str) -> Result<Tombstone, Error> {
    rig.files.delete(&deletion(uid), rig.clock.now_ms()).await
}

/// Where the tombstones of a file lie in a folder.
fn stones(place: &Place) -> Vec<String> {
    let Ok(all) = std::fs::read_dir(place.folder.path().join(TOMBSTONES_PREFIX)) else { return Vec::new() };
    all.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}

#[tokio::test]
async fn a_deleted_file_is_gone_at_once_and_its_neighbours_stay() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a", b"first"), ("b", b"second")])));
    let rig = Rig::new(&place, 4);
    assert_eq!(rig.get("a").await.expect("found"), "first");
    let tombstone = delete(&rig, "a").await.expect("deleted");
    assert_eq!((tombstone.deleted_ms, tombstone.deleted_by.as_str()), (rig.clock.now_ms(), "ann"));
    assert_eq!((rig.status("a").await, rig.status("b").await), (410, 200));
    assert_eq!(delete(&rig, "a").await.expect_err("again").status(), StatusCode::GONE);
    assert_eq!(delete(&rig, "c").await.expect_err("never there").status(), StatusCode::NOT_FOUND);
    assert_eq!(stones(&place).len(), 1, "nothing was written a second time");
    // Another date is another file.
    assert_eq!(rig.get_at("a", "2025-03-11").await.expect_err("no such file").status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn another_retriever_sees_it_when_its_listing_is_old() {
    let place = Place::new();
    place.put(&key("a", 0), v3(7, &content(&[("a", b"first")])));
    let (rig, other) = (Rig::new(&place, 8), Rig::new(&place, 8));
    assert_eq!(other.status("a").await, 200);
    delete(&rig, "a").await.expect("deleted");
    assert_eq!(other.status("a").await, 200, "for the configured time");
    other.clock.advance(Duration::from_secs(5));
    assert_eq!(other.status("a").await, 410);
    // A new process sees it with its first look.
    assert_eq!(Rig::new(&place, 8).status("a").await, 410);
}

#[tokio::test]
async fn a_file_packed_again_later_is_back() {
    let place = Place::new();
    place.put(&key("a", 0), v3(7, &content(&[("a", b"first")])));
    let rig = Rig::new(&place, 8);
    let tombstone = delete(&rig, "a").await.expect("deleted");
    // What was packed before the deletion and arrives late stays hidden, to the millisecond.
    place.put(&key("a", 1), v3(tombstone.deleted_ms - 1, &content(&[("a", b"late")])));
    rig.clock.advance(Duration::from_secs(5));
    assert_eq!(rig.status("a").await, 410);
    place.put(&key("a", 2), v3(tombstone.deleted_ms, &content(&[("a", b"again")])));
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(rig.get("a").await.expect("back, without waiting for a listing's age"), "again");
    // Deleted again: later than what it hides, although this clock stands before it.
    place.put(&key("a", 3), v3(rig.clock.now_ms() + 60_000, &content(&[("a", b"from a clock ahead")])));
    rig.clock.advance(Duration::from_secs(5));
    let second = delete(&rig, "a").await.expect("deleted");
    assert_eq!(second.deleted_ms, rig.clock.now_ms() + 60_000 - 5_000 + 1);
    assert_eq!(rig.status("a").await, 410);
}

#[tokio::test]
async fn what_is_deleted_is_listed_once_in_a_listings_life() {
    let place = Place::new();
    place.put(&key("a", 0), v3(7, &content(&[("a", b"first")])));
    let rig = Rig::new(&place, 8);
    let listings = || {
        let calls = place.calls();
        calls.iter().filter(|c| c.operation == Operation::List && c.key.starts_with(TOMBSTONES_PREFIX)).count()
    };
    assert_eq!((rig.status("a").await, listings()), (200, 1));
    assert_eq!((rig.status("a").await, listings()), (200, 0));
    rig.clock.advance(Duration::from_secs(1));
    let other =
        (0..100_000).map(|n| format!("x{n}")).find(|uid| slot(uid, NOON, 8) == slot("a", NOON, 8)).expect("one");
    assert_eq!((rig.status(&other).await, listings()), (404, 0), "a miss lists shards alone");
    rig.clock.advance(Duration::from_secs(5));
    assert_eq!((rig.status("a").await, listings()), (200, 1));
}

#[tokio::test]
async fn a_deletion_reaches_the_copies_or_says_that_it_did_not() {
    let (place, copy) = (Place::new(), Place::new());
    for place in [&place, &copy] {
        place.put(&key("a", 0), v3(7, &content(&[("a", b"first")])));
    }
    let rig = Rig::with_copies(&place, &[&copy]);
    copy.faults.add(Rule::once(Operation::Put, Fault::Before(StoreErrorKind::Unavailable)));
    assert_eq!(delete(&rig, "a").await.expect_err("half done").status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((stones(&place).len(), stones(&copy).len()), (1, 0));
    // Sent again it mends what is missing.
    assert_eq!(delete(&rig, "a").await.expect_err("deleted before").status(), StatusCode::GONE);
    assert_eq!(stones(&place), stones(&copy));
    // The zone's own store is away: the copy knows.
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    assert_eq!(Rig::with_copies(&place, &[&copy]).status("a").await, 410);
    assert_eq!(delete(&rig, "a").await.expect_err("the zone decides").status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn both_dates_of_an_archive_filed_as_written_are_deleted() {
    let place = Place::new();
    let written = "2025-03-10T22:30:00-05:00";
    for date in ["2025-03-10", "2025-03-11"] {
        let shard = format!("{}0000.des", slot("a", &format!("{date}T00:00:00Z"), 8).object_prefix());
        place.put(&shard, v3(7, &content(&[("a", b"first")])));
    }
    let rig = Rig::new(&place, 8);
    let request = Deletion { created_at: CreatedAt::parse(written).expect("a moment"), ..deletion("a") };
    rig.files.delete(&request, rig.clock.now_ms()).await.expect("deleted");
    assert_eq!(rig.get_at("a", written).await.expect_err("deleted").status(), StatusCode::GONE);
    assert_eq!(stones(&place).len(), 2);
}

#[tokio::test]
async fn http_asks_for_a_key_a_name_and_a_reason() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a/b ü", b"first"), ("other", b"second")])));
    let mut rig = Rig::new(&place, 4);
    let client = Client::new();
    let path = format!("/files/a/b%20%C3%BC?created_at={NOON}");
    let server = rig.serve().await;
    let answer = client.delete(server.url(&path)).header("X-API-Key", KEY).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN, "nobody said who may");
    server.stop().await;
    rig.deps.metrics = Metrics::new();
    rig.config.deleters = Some(Auth::new(vec![KEY.to_owned()]));
    let server = rig.serve().await;
    let send =
        |query: &str, key: &str| client.delete(server.url(&format!("{path}{query}"))).header("X-API-Key", key).send();
    let full = "&deleted_by=ann&reason=a+customer%27s+wish&ticket_id=T-1";
    for (query, key, status) in [
        (full, "another-key", 401),
        ("&reason=x", KEY, 400),
        ("&deleted_by=ann", KEY, 400),
        ("&deleted_by=ann&reason=%0A", KEY, 400),
        ("&deleted_by=ann&deleted_by=bob&reason=x", KEY, 400),
        (full, KEY, 200),
        (full, KEY, 410),
    ] {
        let answer = send(query, key).await.expect("an answer");
        assert_eq!(answer.status(), status, "{query} {key}: {}", answer.text().await.expect("text"));
    }
    for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
        let answer = client.request(method, server.url(&path)).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::GONE);
    }
    let listed: Value =
        client.get(server.url("/tombstones")).send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(listed["next"], Value::Null);
    let stone = &listed["tombstones"][0];
    let expected = json!({"uid": "a/b ü", "created_at": NOON, "deleted_by": "ann", "reason": "a customer's wish", "ticket_id": "T-1"});
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&stone[name], value, "{stone}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_list_goes_page_by_page_and_shows_what_cannot_be_read() {
    let place = Place::new();
    let uids: Vec<String> = (0..7).map(|n| format!("file-{n}")).collect();
    for uid in &uids {
        let stone = Tombstone::new(uid, NOON, 5, deletion(uid).why);
        place.put(&tombstone::key(&slot(uid, NOON, 8), uid, 5), serde_json::to_vec(&stone).expect("encoded"));
    }
    place.put(&tombstone::key(&slot("x", NOON, 8), "x", 5), "no JSON");
    let rig = Rig::new(&place, 8);
    let server = rig.serve().await;
    let (mut seen, mut unreadable, mut cursor) = (Vec::new(), 0, None::<String>);
    for page in 1.. {
        assert!(page <= 4, "eight in pages of three");
        let cursor_part = cursor.as_ref().map(|c| format!("&cursor={c}")).unwrap_or_default();
        let url = server.url(&format!("/tombstones?limit=3{cursor_part}"));
        let answer: Value = reqwest::get(url).await.expect("an answer").json().await.expect("JSON");
        for stone in answer["tombstones"].as_array().expect("a list") {
            match stone["uid"].as_str() {
                Some(uid) => seen.push(uid.to_owned()),
                None => unreadable += usize::from(stone["problem"].is_string()),
            }
        }
        match answer["next"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    seen.sort();
    assert_eq!((seen, unreadable), (uids, 1));
    for query in ["limit=0", "limit=many", "cursor=nonsense", "cursor=9~x"] {
        let answer = reqwest::get(server.url(&format!("/tombstones?{query}"))).await.expect("an answer");
        assert_eq!(answer.status(), 400, "{query}");
    }
    server.stop().await;
}
