//! Ranges, streams, and what is not there.

use bytes::Bytes;

use super::super::{ByteRange, SharedStore, StoreErrorKind};
use super::{collect, kind, pattern, put};

pub(super) async fn ranges(store: SharedStore) {
    let bytes = pattern(1000, 0);
    let written = put(&store, "r", bytes.clone()).await;
    assert_eq!((written.key.as_str(), written.size), ("r", 1000));
    let cases = [
        (ByteRange::Full, 0..1000),
        (ByteRange::Span(0..1), 0..1),
        (ByteRange::Span(7..300), 7..300),
        (ByteRange::Span(999..1000), 999..1000),
        (ByteRange::Span(0..1000), 0..1000),
        (ByteRange::Suffix(1), 999..1000),
        (ByteRange::Suffix(256), 744..1000),
        (ByteRange::Suffix(1000), 0..1000),
        (ByteRange::Suffix(1001), 0..1000),
        (ByteRange::Suffix(u64::MAX / 4), 0..1000),
    ];
    for (range, expected) in cases {
        let fetched = store.get("r", range.clone()).await.unwrap_or_else(|e| panic!("{range:?}: {e}"));
        assert_eq!(fetched.bytes, bytes[expected.clone()], "{range:?}");
        assert_eq!(fetched.offset, expected.start as u64, "{range:?}");
        assert_eq!((fetched.meta.key.as_str(), fetched.meta.size), ("r", 1000), "{range:?}: the whole object's size");
        assert_eq!(fetched.meta.etag, written.etag, "{range:?}");
        let streamed = store.get_stream("r", range.clone()).await.unwrap_or_else(|e| panic!("{range:?}: {e}"));
        assert_eq!(streamed.meta.size, 1000, "{range:?}");
        assert_eq!(collect(streamed).await.expect("all of it"), bytes[expected], "{range:?}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "a hostile range")]
    let outside = [0..1001, 999..1001, 1000..1001, 5000..6000, 0..u64::MAX / 4, 5..4];
    for span in outside {
        let got = store.get("r", ByteRange::Span(span.clone())).await;
        assert_eq!(kind(got), StoreErrorKind::InvalidRange, "{span:?}");
        let got = store.get_stream("r", ByteRange::Span(span.clone())).await;
        assert_eq!(kind(got), StoreErrorKind::InvalidRange, "{span:?}");
    }
    // Empty ranges are answered without asking, so even where there is no object.
    for key in ["r", "missing"] {
        for range in [ByteRange::Span(8..8), ByteRange::Span(5000..5000), ByteRange::Suffix(0)] {
            let fetched = store.get(key, range.clone()).await.unwrap_or_else(|e| panic!("{key} {range:?}: {e}"));
            assert_eq!((fetched.bytes, fetched.meta.key.as_str()), (Bytes::new(), key), "{range:?}");
            let streamed = store.get_stream(key, range).await.expect("nothing");
            assert_eq!(collect(streamed).await.expect("nothing"), b"");
        }
    }
}

pub(super) async fn empty_objects(store: SharedStore) {
    put(&store, "empty", Bytes::new()).await;
    assert_eq!(store.head("empty").await.expect("head").size, 0);
    for range in [ByteRange::Full, ByteRange::Suffix(1), ByteRange::Suffix(65_536), ByteRange::Span(0..0)] {
        let fetched = store.get("empty", range.clone()).await.unwrap_or_else(|e| panic!("{range:?}: {e}"));
        assert_eq!((fetched.bytes, fetched.offset, fetched.meta.size), (Bytes::new(), 0, 0), "{range:?}");
        let streamed = store.get_stream("empty", range.clone()).await.unwrap_or_else(|e| panic!("{range:?}: {e}"));
        assert_eq!(collect(streamed).await.expect("nothing"), b"", "{range:?}");
    }
    assert_eq!(kind(store.get("empty", ByteRange::Span(0..1)).await), StoreErrorKind::InvalidRange);
}

pub(super) async fn streams(store: SharedStore) {
    use futures::StreamExt;
    let bytes = pattern(3_000_000, 1);
    put(&store, "long", bytes.clone()).await;
    let mut fetched = store.get_stream("long", ByteRange::Span(1..2_999_999)).await.expect("a stream");
    let (mut all, mut largest) = (Vec::new(), 0);
    while let Some(chunk) = fetched.stream.next().await {
        let chunk = chunk.expect("a chunk");
        largest = largest.max(chunk.len());
        all.extend_from_slice(&chunk);
    }
    assert_eq!(all, bytes[1..2_999_999]);
    assert!(largest <= 1024 * 1024, "a chunk of {largest} bytes is not bounded");
    // Dropped in the middle: the next read is not disturbed.
    let mut fetched = store.get_stream("long", ByteRange::Full).await.expect("a stream");
    assert!(fetched.stream.next().await.is_some());
    drop(fetched);
    assert_eq!(store.get("long", ByteRange::Suffix(5)).await.expect("get").bytes, bytes[2_999_995..]);
}

pub(super) async fn what_is_missing(store: SharedStore) {
    put(&store, "folder/object", "x").await;
    for key in ["missing", "folder", "folder/other", "folder/object/below", "no/such/folder"] {
        for range in [ByteRange::Full, ByteRange::Span(0..1), ByteRange::Suffix(9)] {
            assert_eq!(kind(store.get(key, range.clone()).await), StoreErrorKind::NotFound, "{key} {range:?}");
            assert_eq!(kind(store.get_stream(key, range).await), StoreErrorKind::NotFound, "{key}");
        }
        let error = store.head(key).await.expect_err(key);
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{key}");
        assert_eq!((error.operation, error.key.as_str()), ("head", key));
        assert!(error.to_string().contains(&store.url()), "the error names the store: {error}");
    }
}
