//! Listings: byte order, prefixes, pages.

use futures::{StreamExt, TryStreamExt, stream};

use super::super::{SharedStore, list_all};
use super::{keys, put};

/// In byte order. No key goes on after a folder's name with what sorts before a slash; see [`neighbours`].
const ORDER: [&str; 10] = ["A", "a/a", "a/b/c", "a/b0", "a0", "aa", "b/1", "b/10", "b/2", "ä"];

pub(super) async fn order_and_prefix(store: SharedStore) {
    let expected = ORDER.to_vec();
    for key in expected.iter().rev() {
        put(&store, key, *key).await;
    }
    let page = store.list("", None, 1000).await.expect("list");
    assert_eq!(keys(&page.objects), expected);
    assert_eq!(page.next, None);
    for object in &page.objects {
        assert_eq!(object.size, object.key.len() as u64, "{}", object.key);
        assert_eq!(object.etag, store.head(&object.key).await.expect("head").etag, "{}", object.key);
        assert!(object.last_modified_ms > 1_600_000_000_000, "{object:?}");
    }
    for prefix in ["a", "a/", "a/b", "a/b/", "b/1", "c", "a/b/c", "a/b/c/", "no/such/", "ä"] {
        let matching: Vec<&str> = expected.iter().copied().filter(|key| key.starts_with(prefix)).collect();
        let page = store.list(prefix, None, 1000).await.unwrap_or_else(|e| panic!("{prefix}: {e}"));
        assert_eq!(keys(&page.objects), matching, "prefix {prefix:?}");
    }
    // Every start, also between keys (but no folder's name), and every page size.
    for after in expected.iter().copied().chain(["", "Z", "a/bb", "a/zzz", "az", "zzz", "ä\u{10ffff}"]) {
        let later: Vec<&str> = expected.iter().copied().filter(|key| *key > after).collect();
        let page = store.list("", Some(after), 1000).await.unwrap_or_else(|e| panic!("after {after}: {e}"));
        assert_eq!(keys(&page.objects), later, "after {after:?}");
    }
    for limit in 1..=expected.len() + 1 {
        assert_eq!(paged(&store, limit).await, expected, "pages of {limit}");
    }
}

/// All keys, gathered page by page.
async fn paged(store: &SharedStore, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.list("", after.as_deref(), limit).await.expect("a page");
        assert!(page.objects.len() <= limit, "{} objects on a page of {limit}", page.objects.len());
        all.extend(page.objects.into_iter().map(|object| object.key));
        assert!(all.len() <= 100, "pages go round in a circle: {all:?}");
        let Some(next) = page.next else { return all };
        after = Some(next);
    }
}

/// `-` and `.` sort before the slash, so byte order and the order by components differ. Either will do, as long as
/// every key comes once whatever the size of the pages.
pub(super) async fn neighbours(store: SharedStore) {
    let bytewise = ["a-b", "a-b/c", "a.b", "a/a", "a/b-c", "a/b.c", "a/b/c", "a/b0", "a0"].map(str::to_owned);
    let bytewise: Vec<_> = bytewise.into_iter().filter(|key| key != "a-b").collect();
    let mut by_components = bytewise.clone();
    by_components.sort_by(|a, b| a.split('/').cmp(b.split('/')));
    assert_ne!(bytewise, by_components);
    for key in &bytewise {
        put(&store, key, "x").await;
    }
    for limit in 1..=bytewise.len() + 1 {
        let all = paged(&store, limit).await;
        assert!(all == bytewise || all == by_components, "pages of {limit}: {all:?}");
    }
}

/// More keys than one page, so that whoever reads only the first page is found out.
pub(super) async fn pages(store: SharedStore) {
    const KEYS: usize = 1105;
    let key = |n: usize| format!("shards/20240101_00_{n:04}.des");
    let written = stream::iter(0..KEYS).map(|n| {
        let store = store.clone();
        async move { put(&store, &key(n), n.to_string()).await }
    });
    assert_eq!(written.buffer_unordered(16).count().await, KEYS);
    let first = store.list("shards/", None, 1000).await.expect("list");
    assert_eq!(first.objects.len(), 1000);
    assert_eq!(first.next, Some(key(999)));
    let all: Vec<_> = list_all(store.clone(), "shards/".to_owned()).try_collect().await.expect("list all");
    assert_eq!(keys(&all), (0..KEYS).map(key).collect::<Vec<_>>());
    let some: Vec<_> = list_all(store.clone(), "shards/20240101_00_10".to_owned()).try_collect().await.expect("list");
    assert_eq!(keys(&some), (1000..1100).map(key).collect::<Vec<_>>());
    let none: Vec<_> = list_all(store, "shards/2023".to_owned()).try_collect().await.expect("list");
    assert_eq!(none, []);
}
