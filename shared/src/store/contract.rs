//! What every [`ObjectStore`](super::ObjectStore) promises, as tests. Each implementation runs all of it.
//!
//! The checks panic where a promise is broken, so that a test needs no more than to call [`run`].

use bytes::Bytes;
use futures::TryStreamExt;

use super::{ByteRange, FetchedStream, ObjectMeta, SharedStore, StoreError, StoreErrorKind, WriteOptions};

mod lists;
mod reads;
mod uploads;
mod writes;

/// How many writers race for one key.
const RACERS: u32 = 32;

/// How a store decides between completions of one key that happen at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Exactly one `CreateOnly` completion wins.
    OneWinner,
    /// The server looks whether the key is taken, then writes, with time in between: several can win, and the last of
    /// them stays. `SeaweedFS` 4.48 does so (in 6 of 12 runs of 32 racers two or more won, once all 32), although it
    /// refuses every completion that comes later. Where it matters, the caller's lease has to keep others away.
    LookThenWrite,
}

/// Runs every check, each on a new, empty store from `make`.
///
/// # Panics
/// When the store breaks a promise.
pub async fn run(make: impl AsyncFn() -> SharedStore, completion: Completion) {
    reads::ranges(make().await).await;
    reads::empty_objects(make().await).await;
    reads::streams(make().await).await;
    reads::what_is_missing(make().await).await;
    writes::overwrite_changes_the_etag(make().await).await;
    writes::odd_keys(make().await).await;
    writes::hostile_keys(make().await).await;
    writes::create_only(make().await).await;
    writes::create_only_race(make().await).await;
    writes::delete(make().await).await;
    writes::metadata(make().await).await;
    lists::order_and_prefix(make().await).await;
    lists::neighbours(make().await).await;
    lists::pages(make().await).await;
    uploads::parts_in_any_order(make().await).await;
    uploads::replaced_parts(make().await).await;
    uploads::wrong_parts(make().await).await;
    uploads::complete_only_once(make().await).await;
    uploads::complete_race(make().await, completion).await;
    uploads::abort(make().await).await;
    uploads::pending(make().await).await;
    uploads::pending_pages(make().await).await;
    probe(make().await).await;
}

async fn probe(store: SharedStore) {
    store.check().await.expect("the store answers");
    let found = store.probe("_scratch/").await.expect("the store can be written");
    assert!(found.conditional_put && found.conditional_complete, "{found:?}");
    let left = store.list("", None, 10).await.expect("list");
    assert_eq!(keys(&left.objects), [] as [&str; 0], "a probe leaves no object behind");
    let uploads = store.list_uploads("", 1000).await.expect("list uploads");
    assert_eq!(uploads, [], "a probe leaves no upload behind");
}

/// Bytes that say where they come from, so that a shifted range cannot pass.
fn pattern(len: usize, salt: u8) -> Bytes {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 251) as u8 ^ salt).collect::<Vec<_>>().into()
}

fn keys(objects: &[ObjectMeta]) -> Vec<&str> {
    objects.iter().map(|object| object.key.as_str()).collect()
}

async fn put(store: &SharedStore, key: &str, bytes: impl Into<Bytes>) -> ObjectMeta {
    store.put(key, bytes.into(), &WriteOptions::overwrite()).await.unwrap_or_else(|e| panic!("put {key:?}: {e}"))
}

async fn get(store: &SharedStore, key: &str) -> Bytes {
    store.get(key, ByteRange::Full).await.unwrap_or_else(|e| panic!("get {key:?}: {e}")).bytes
}

async fn collect(fetched: FetchedStream) -> Result<Vec<u8>, StoreError> {
    fetched
        .stream
        .try_fold(Vec::new(), async |mut all, chunk| {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await
}

#[track_caller]
fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    match result {
        Err(error) => error.kind,
        Ok(value) => panic!("expected an error, got {value:?}"),
    }
}
