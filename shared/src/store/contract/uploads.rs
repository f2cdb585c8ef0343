//! Multipart uploads.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, stream};

use super::super::{ByteRange, MIN_PART_BYTES, PartTag, SharedStore, StoreErrorKind, WriteMode};
use super::{Completion, RACERS, get, keys, kind, pattern, put};

const PART: usize = MIN_PART_BYTES as usize;

async fn begin(store: &SharedStore, key: &str) -> String {
    store.create_upload(key, &BTreeMap::new()).await.unwrap_or_else(|e| panic!("create upload {key:?}: {e}"))
}

async fn part(store: &SharedStore, key: &str, upload: &str, number: u32, bytes: Bytes) -> PartTag {
    let size = bytes.len() as u64;
    let tag = store.put_part(key, upload, number, bytes).await.unwrap_or_else(|e| panic!("part {number}: {e}"));
    assert_eq!((tag.number, tag.size), (number, size));
    tag
}

pub(super) async fn parts_in_any_order(store: SharedStore) {
    let upload = begin(&store, "big/object").await;
    let bytes = [pattern(PART, 1), pattern(PART + 1, 2), pattern(3, 3)];
    let third = part(&store, "big/object", &upload, 7, bytes[2].clone()).await;
    let first = part(&store, "big/object", &upload, 2, bytes[0].clone()).await;
    let second = part(&store, "big/object", &upload, 5, bytes[1].clone()).await;
    let there = store.list_parts("big/object", &upload).await.expect("list parts");
    assert_eq!(there, [first.clone(), second.clone(), third.clone()], "in order, with the tags that were given");
    assert_eq!(kind(store.head("big/object").await), StoreErrorKind::NotFound, "nothing is there before the end");
    assert_eq!(keys(&store.list("", None, 10).await.expect("list").objects), [] as [&str; 0]);
    let done = store
        .complete_upload("big/object", &upload, &[third, first, second], WriteMode::CreateOnly)
        .await
        .expect("complete");
    let whole = bytes.concat();
    assert_eq!((done.key.as_str(), done.size), ("big/object", whole.len() as u64));
    assert_eq!(get(&store, "big/object").await, whole);
    let head = store.head("big/object").await.expect("head");
    assert_eq!((head.size, head.etag), (done.size, done.etag));
    let seam = PART as u64 - 10..PART as u64 + 10;
    let across = store.get("big/object", ByteRange::Span(seam)).await.expect("get").bytes;
    assert_eq!(across, whole[PART - 10..PART + 10], "across the seam of two parts");
    assert_eq!(store.list_uploads("", 1000).await.expect("list uploads"), [], "a finished upload is gone");
    let late = store.put_part("big/object", &upload, 8, Bytes::from_static(b"late")).await;
    assert_eq!(kind(late), StoreErrorKind::UploadGone);
}

pub(super) async fn replaced_parts(store: SharedStore) {
    let upload = begin(&store, "k").await;
    let old = part(&store, "k", &upload, 1, Bytes::from_static(b"old")).await;
    let new = part(&store, "k", &upload, 1, Bytes::from_static(b"new part")).await;
    assert_ne!(old.etag, new.etag);
    let there = store.list_parts("k", &upload).await.expect("list parts");
    assert!(there.contains(&new), "{there:?}");
    assert!(there.iter().all(|tag| *tag == new || *tag == old), "{there:?}");
    let left_out = part(&store, "k", &upload, 2, Bytes::from_static(b"left out")).await;
    assert_eq!(left_out.number, 2);
    store.complete_upload("k", &upload, &[new], WriteMode::Overwrite).await.expect("complete");
    assert_eq!(get(&store, "k").await, "new part", "only the parts named");

    // A tag means the bytes it was given for, or nothing; never the bytes that replaced them.
    let upload = begin(&store, "stale").await;
    let old = part(&store, "stale", &upload, 1, Bytes::from_static(b"old")).await;
    part(&store, "stale", &upload, 1, Bytes::from_static(b"new part")).await;
    match store.complete_upload("stale", &upload, &[old], WriteMode::Overwrite).await {
        Ok(_) => assert_eq!(get(&store, "stale").await, "old"),
        Err(error) => assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}"),
    }
}

pub(super) async fn wrong_parts(store: SharedStore) {
    let upload = begin(&store, "k").await;
    for number in [0, 10_001, u32::MAX] {
        let refused = store.put_part("k", &upload, number, Bytes::from_static(b"x")).await;
        assert_eq!(kind(refused), StoreErrorKind::Invalid, "part {number}");
    }
    let too_small = part(&store, "k", &upload, 1, Bytes::from_static(b"small")).await;
    let last = part(&store, "k", &upload, 2, Bytes::from_static(b"last")).await;
    let missing = PartTag { number: 3, etag: too_small.etag.clone(), size: 5 };
    for parts in [vec![], vec![too_small, last.clone()], vec![missing], vec![last.clone(), last.clone()]] {
        let refused = store.complete_upload("k", &upload, &parts, WriteMode::CreateOnly).await;
        let refused = kind(refused);
        assert!(matches!(refused, StoreErrorKind::Invalid | StoreErrorKind::UploadGone), "{parts:?}: {refused:?}");
    }
    assert_eq!(kind(store.head("k").await), StoreErrorKind::NotFound);
    let unknown = |kind| matches!(kind, StoreErrorKind::UploadGone | StoreErrorKind::Invalid);
    for id in ["", "nosuchupload", "../../etc", "a/b", "0123456789abcdef0123456789abcdef"] {
        let refused = store.put_part("k", id, 1, Bytes::from_static(b"x")).await;
        assert!(unknown(kind(refused.clone())), "put part of {id:?}: {refused:?}");
        let refused = store.list_parts("k", id).await;
        assert!(unknown(kind(refused.clone())), "list parts of {id:?}: {refused:?}");
    }
    let gone = store.complete_upload("k", "nosuchupload", &[last], WriteMode::CreateOnly).await;
    assert_eq!(kind(gone), StoreErrorKind::UploadGone);
}

pub(super) async fn complete_only_once(store: SharedStore) {
    put(&store, "taken", "there before").await;
    let upload = begin(&store, "taken").await;
    let tag = part(&store, "taken", &upload, 1, Bytes::from_static(b"mine")).await;
    let refused = store.complete_upload("taken", &upload, std::slice::from_ref(&tag), WriteMode::CreateOnly).await;
    assert_eq!(kind(refused), StoreErrorKind::AlreadyExists);
    assert_eq!(get(&store, "taken").await, "there before");
    let still = store.list_parts("taken", &upload).await.expect("the upload is still there");
    assert_eq!(still, std::slice::from_ref(&tag));
    store.complete_upload("taken", &upload, std::slice::from_ref(&tag), WriteMode::Overwrite).await.expect("replace");
    assert_eq!(get(&store, "taken").await, "mine");
    // A completion whose answer was lost is done again: the key is taken, and the caller compares.
    let again = store.complete_upload("taken", &upload, &[tag], WriteMode::CreateOnly).await;
    assert_eq!(kind(again), StoreErrorKind::AlreadyExists);
}

pub(super) async fn complete_race(store: SharedStore, completion: Completion) {
    let mut uploads = Vec::new();
    for racer in 0..RACERS {
        let upload = begin(&store, "race").await;
        let tag = part(&store, "race", &upload, 1, Bytes::from(format!("racer {racer}"))).await;
        uploads.push((upload, tag));
    }
    let racers = uploads.iter().cloned().map(|(upload, tag)| {
        let store = store.clone();
        tokio::spawn(async move { store.complete_upload("race", &upload, &[tag], WriteMode::CreateOnly).await })
    });
    let mut winners = Vec::new();
    for (racer, outcome) in join_all(racers).await.into_iter().enumerate() {
        match outcome.expect("no panic") {
            Ok(_) => winners.push(racer),
            Err(e) => assert!(
                matches!(e.kind, StoreErrorKind::AlreadyExists | StoreErrorKind::Conflict),
                "racer {racer}: {e}"
            ),
        }
    }
    assert!(!winners.is_empty(), "nobody won");
    assert!(completion == Completion::LookThenWrite || winners.len() == 1, "{winners:?} all won");
    let published = get(&store, "race").await;
    assert!(
        winners.iter().any(|winner| published == format!("racer {winner}")),
        "{published:?} by none of {winners:?}"
    );
    for (upload, _) in uploads {
        store.abort_upload("race", &upload).await.expect("abort");
    }
    assert_eq!(store.list_uploads("", 1000).await.expect("list uploads"), []);
    assert_eq!(get(&store, "race").await, published, "aborting the losers changes nothing");
}

pub(super) async fn abort(store: SharedStore) {
    let upload = begin(&store, "dropped").await;
    let tag = part(&store, "dropped", &upload, 1, Bytes::from_static(b"x")).await;
    store.abort_upload("dropped", &upload).await.expect("abort");
    store.abort_upload("dropped", &upload).await.expect("again");
    assert_eq!(kind(store.list_parts("dropped", &upload).await), StoreErrorKind::UploadGone);
    let late = store.put_part("dropped", &upload, 2, Bytes::from_static(b"late")).await;
    assert_eq!(kind(late), StoreErrorKind::UploadGone);
    let late = store.complete_upload("dropped", &upload, &[tag], WriteMode::Overwrite).await;
    assert_eq!(kind(late), StoreErrorKind::UploadGone);
    assert_eq!(kind(store.head("dropped").await), StoreErrorKind::NotFound);
    assert_eq!(store.list_uploads("", 1000).await.expect("list uploads"), []);
}

pub(super) async fn pending(store: SharedStore) {
    let a = begin(&store, "jobs/a").await;
    let b = begin(&store, "jobs/b").await;
    let again = begin(&store, "jobs/b").await;
    let other = begin(&store, "other").await;
    assert_ne!(b, again, "one key may have several uploads");
    let pending = store.list_uploads("jobs/", 1000).await.expect("list uploads");
    let mut found: Vec<_> = pending.iter().map(|upload| (upload.key.as_str(), upload.upload_id.clone())).collect();
    let mut expected = vec![("jobs/a", a.clone()), ("jobs/b", b.clone()), ("jobs/b", again.clone())];
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert!(pending.iter().all(|upload| upload.started_ms > 1_600_000_000_000), "{pending:?}");
    assert_eq!(keys(&store.list("", None, 10).await.expect("list").objects), [] as [&str; 0], "uploads are no objects");
    for (key, upload) in [("jobs/a", a), ("jobs/b", b), ("jobs/b", again), ("other", other)] {
        store.abort_upload(key, &upload).await.expect("abort");
    }
    assert_eq!(store.list_uploads("", 1000).await.expect("list uploads"), []);
}

/// More uploads than one page of a server, so that whoever reads only the first page is found out.
pub(super) async fn pending_pages(store: SharedStore) {
    const UPLOADS: usize = 1010;
    let key = |n: usize| format!("many/{n:04}");
    let begun = stream::iter(0..UPLOADS).map(|n| {
        let store = store.clone();
        async move { (key(n), begin(&store, &key(n)).await) }
    });
    let mut begun: Vec<_> = begun.buffer_unordered(16).collect().await;
    begun.sort();
    let other = begin(&store, "other").await;
    let listed = async |limit| {
        let page = store.list_uploads("many/", limit).await.unwrap_or_else(|e| panic!("{limit} uploads: {e}"));
        page.into_iter().map(|upload| (upload.key, upload.upload_id)).collect::<Vec<_>>()
    };
    assert_eq!(listed(UPLOADS).await, begun);
    assert_eq!(listed(100_000).await, begun);
    for limit in [1, 7, 1000, 1001] {
        let page = listed(limit).await;
        assert_eq!(page.len(), limit);
        assert!(page.is_sorted() && page.iter().all(|upload| begun.contains(upload)), "{limit}: {page:?}");
    }
    assert_eq!(kind(store.list_uploads("many/", 0).await), StoreErrorKind::Invalid);
    begun.push(("other".to_owned(), other));
    let dropped = stream::iter(begun).map(|(key, upload)| {
        let store = store.clone();
        async move { store.abort_upload(&key, &upload).await }
    });
    dropped.buffer_unordered(16).for_each(|done| async { done.expect("abort") }).await;
    assert_eq!(store.list_uploads("", 1000).await.expect("list uploads"), []);
}
