//! Whole writes, conditions, keys, removal, metadata.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;

use super::super::{ByteRange, SharedStore, StoreErrorKind, WriteMode, WriteOptions};
use super::{RACERS, get, keys, kind, pattern, put};

pub(super) async fn overwrite_changes_the_etag(store: SharedStore) {
    let first = put(&store, "k", "one").await;
    let head = store.head("k").await.expect("head");
    assert_eq!((head.size, &head.etag), (3, &first.etag));
    assert!(head.last_modified_ms.abs_diff(first.last_modified_ms) < 60_000, "{head:?} {first:?}");
    let second = put(&store, "k", "two!").await;
    assert_ne!(first.etag, second.etag);
    let third = put(&store, "k", "2wo!").await;
    assert_ne!(second.etag, third.etag, "the same size, other bytes");
    assert_eq!(get(&store, "k").await, "2wo!");
}

/// Keys as sources and archives have them. Without backslashes: `SeaweedFS` takes them for slashes.
pub(super) const ODD_KEYS: [&str; 15] = [
    "plain",
    "with space",
    "a+b&c=d?e#f%20g",
    "quote\"apostrophe'",
    "<angle>&amp;",
    "tilde~(paren)[bracket]{brace}",
    "comma,semi;colon:at@dollar$star*pipe|caret^tick`",
    "umlaut-äöü-ß",
    "composed-\u{e9}/decomposed-e\u{301}",
    "日本語/ファイル",
    "emoji-🦀",
    "...three",
    "dots..inside",
    ".hidden/.file",
    "20240131_0A_0000-0123456789abcdef.des",
];

pub(super) async fn odd_keys(store: SharedStore) {
    for (n, key) in ODD_KEYS.iter().enumerate() {
        put(&store, key, pattern(n + 1, 3)).await;
    }
    for (n, key) in ODD_KEYS.iter().enumerate() {
        assert_eq!(get(&store, key).await, pattern(n + 1, 3), "{key}");
        assert_eq!(store.head(key).await.unwrap_or_else(|e| panic!("{e}")).key, *key);
    }
    let page = store.list("", None, 1000).await.expect("list");
    let mut expected = ODD_KEYS;
    expected.sort_unstable();
    assert_eq!(keys(&page.objects), expected);
    let long = format!("{}/{}", "d".repeat(250), "f".repeat(250));
    put(&store, &long, "x").await;
    assert_eq!(get(&store, &long).await, "x");
}

pub(super) async fn hostile_keys(store: SharedStore) {
    let options = WriteOptions::overwrite();
    for key in ["", "/absolute", "../up", "a/../../up", "a/..", ".", "nul\0", "a\\..\\b", &"k".repeat(1025)] {
        let put = store.put(key, Bytes::from_static(b"x"), &options).await;
        assert_eq!(kind(put), StoreErrorKind::Invalid, "put {key:?}");
        assert_eq!(kind(store.get(key, ByteRange::Full).await), StoreErrorKind::Invalid, "get {key:?}");
        assert_eq!(kind(store.head(key).await), StoreErrorKind::Invalid, "head {key:?}");
        assert_eq!(kind(store.delete(key).await), StoreErrorKind::Invalid, "delete {key:?}");
        assert_eq!(kind(store.create_upload(key, &BTreeMap::new()).await), StoreErrorKind::Invalid, "{key:?}");
    }
    assert_eq!(kind(store.list("../", None, 10).await), StoreErrorKind::Invalid);
    assert_eq!(kind(store.list("", None, 0).await), StoreErrorKind::Invalid);
    assert_eq!(kind(store.list("", None, 1001).await), StoreErrorKind::Invalid);
    assert_eq!(keys(&store.list("", None, 10).await.expect("list").objects), [] as [&str; 0]);
}

pub(super) async fn create_only(store: SharedStore) {
    let options = WriteOptions::create_only();
    let first = store.put("once", Bytes::from_static(b"first"), &options).await.expect("the key is free");
    let second = store.put("once", Bytes::from_static(b"second"), &options).await;
    assert_eq!(kind(second), StoreErrorKind::AlreadyExists);
    assert_eq!(get(&store, "once").await, "first");
    assert_eq!(store.head("once").await.expect("head").etag, first.etag);
    store.delete("once").await.expect("delete");
    store.put("once", Bytes::from_static(b"third"), &options).await.expect("the key is free again");
    assert_eq!(get(&store, "once").await, "third");
}

pub(super) async fn create_only_race(store: SharedStore) {
    // One round: 32 writers of one key take `SeaweedFS` 1 to 8 seconds, which it spends waiting for its own lock.
    let racers = (0..RACERS).map(|racer| {
        let store = store.clone();
        tokio::spawn(async move {
            let bytes = Bytes::from(format!("racer {racer}"));
            store.put("race", bytes, &WriteOptions::create_only()).await
        })
    });
    let mut winners = Vec::new();
    for (racer, outcome) in join_all(racers).await.into_iter().enumerate() {
        match outcome.expect("no panic") {
            Ok(_) => winners.push(racer),
            // 409 is allowed: it says that another's write is under way.
            Err(e) => assert!(
                matches!(e.kind, StoreErrorKind::AlreadyExists | StoreErrorKind::Conflict),
                "racer {racer}: {e}"
            ),
        }
    }
    let [winner] = winners[..] else { panic!("{winners:?} all won") };
    assert_eq!(get(&store, "race").await, format!("racer {winner}"));
}

pub(super) async fn delete(store: SharedStore) {
    put(&store, "a/b/c", "x").await;
    put(&store, "a/d", "y").await;
    store.delete("a/b/c").await.expect("delete");
    store.delete("a/b/c").await.expect("again");
    store.delete("never/was").await.expect("nothing");
    store.delete("a").await.expect("a prefix is not an object");
    assert_eq!(kind(store.head("a/b/c").await), StoreErrorKind::NotFound);
    assert_eq!(get(&store, "a/d").await, "y", "nothing else is removed");
    // What was a folder can become an object once it is empty.
    put(&store, "a/b", "now an object").await;
    assert_eq!(get(&store, "a/b").await, "now an object");
}

pub(super) async fn metadata(store: SharedStore) {
    let capable = store.probe("_scratch/").await.expect("probe").metadata;
    let metadata = BTreeMap::from([
        ("plan-digest".to_owned(), "0123456789abcdef".to_owned()),
        ("job".to_owned(), "with space; and=sign".to_owned()),
    ]);
    let options = WriteOptions { mode: WriteMode::Overwrite, metadata: metadata.clone() };
    store.put("m", Bytes::from_static(b"x"), &options).await.expect("put");
    let upload = store.create_upload("u", &metadata).await.expect("create");
    let part = store.put_part("u", &upload, 1, Bytes::from_static(b"y")).await.expect("part");
    store.complete_upload("u", &upload, &[part], WriteMode::CreateOnly).await.expect("complete");
    let expected = if capable { metadata } else { BTreeMap::new() };
    for key in ["m", "u"] {
        assert_eq!(store.head(key).await.expect("head").metadata, expected, "{key}");
        assert_eq!(store.get(key, ByteRange::Suffix(1)).await.expect("get").meta.metadata, expected, "{key}");
    }
    let hostile = BTreeMap::from([("x".to_owned(), "line\r\nbreak: injected".to_owned())]);
    let options = WriteOptions { mode: WriteMode::Overwrite, metadata: hostile.clone() };
    let refused = store.put("h", Bytes::new(), &options).await;
    assert_eq!(kind(refused), StoreErrorKind::Invalid);
    assert_eq!(kind(store.create_upload("h", &hostile).await), StoreErrorKind::Invalid);
}
