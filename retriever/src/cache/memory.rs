//! One bounded cache in memory for keys and values of any type.
//!
//! moka is compiled anew for each pair of key and value types, and for each type of future that loads a value. With eight
//! caches that was two fifths of this crate's generated code. Here it is compiled once, for keys and values behind
//! pointers, and [`MemoryCache`] gives each cache its own types back. Hits allocate nothing.

use std::any::Any;
use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;

use crate::error::Error;

/// A value of any type.
type AnyValue = Arc<dyn Any + Send + Sync>;
/// What makes a value.
type Making<'a> = Pin<Box<dyn Future<Output = AnyValue> + Send + 'a>>;
/// What an entry weighs.
type Weigher = Box<dyn Fn(&OwnedKey, &AnyValue) -> u32 + Send + Sync>;
/// What loads a value.
type Loading<'a> = Pin<Box<dyn Future<Output = Result<AnyValue, Error>> + Send + 'a>>;

/// What a key of any type can do.
trait AnyKey: Any + Send + Sync {
    fn hash_into(&self, state: &mut dyn Hasher);
    fn equals(&self, other: &dyn AnyKey) -> bool;
}

impl<K: Hash + Eq + Send + Sync + 'static> AnyKey for K {
    fn hash_into(&self, mut state: &mut dyn Hasher) {
        self.hash(&mut state);
    }

    fn equals(&self, other: &dyn AnyKey) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<K>() == Some(self)
    }
}

impl Hash for dyn AnyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash_into(state);
    }
}

impl PartialEq for dyn AnyKey {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}

impl Eq for dyn AnyKey {}

/// A key that the cache owns; looked up by reference as `dyn AnyKey`.
struct OwnedKey(Box<dyn AnyKey>);

impl PartialEq for OwnedKey {
    fn eq(&self, other: &Self) -> bool {
        // Of what is in the box: a box of a key could be a key itself.
        (*self.0).equals(&*other.0)
    }
}

impl Eq for OwnedKey {}

impl Hash for OwnedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (*self.0).hash_into(state);
    }
}

impl Borrow<dyn AnyKey> for OwnedKey {
    fn borrow(&self) -> &dyn AnyKey {
        &*self.0
    }
}

/// How a cache is bounded and what it gives up first. By default least recently and least often used entries go first
/// (moka's `TinyLFU`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CacheOptions {
    /// The most that all entries weigh: bytes where there is a weigher, or else entries.
    pub(crate) capacity: u64,
    /// How long an entry is kept; as long as there is room when there is none.
    pub(crate) time_to_live: Option<Duration>,
    /// A new entry always drives out the one that was used longest ago.
    pub(crate) least_recently_used: bool,
}

/// A cache of at most so many bytes or entries. A value that many want at once is loaded once.
pub(crate) struct MemoryCache<K, V> {
    entries: Cache<OwnedKey, AnyValue>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> fmt::Debug for MemoryCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache").field("weight", &self.entries.weighted_size()).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static> MemoryCache<K, V> {
    /// A cache in which each entry weighs 1.
    pub(crate) fn new(options: CacheOptions) -> Self {
        Self::build(options, None)
    }

    /// A cache in which each entry weighs as many bytes as `weigh` says.
    pub(crate) fn weighed(options: CacheOptions, weigh: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        let weigh = move |key: &OwnedKey, value: &AnyValue| {
            let key: &dyn Any = &*key.0;
            weigh(key.downcast_ref().expect("keys have one type"), typed(value))
        };
        Self::build(options, Some(Box::new(weigh)))
    }

    fn build(options: CacheOptions, weigh: Option<Weigher>) -> Self {
        let mut builder = Cache::builder().max_capacity(options.capacity);
        if let Some(weigh) = weigh {
            builder = builder.weigher(weigh);
        }
        if let Some(time) = options.time_to_live {
            builder = builder.time_to_live(time);
        }
        if options.least_recently_used {
            builder = builder.eviction_policy(EvictionPolicy::lru());
        }
        Self { entries: builder.build(), types: PhantomData }
    }

    /// The value under `key`. A miss counts as a use too: the cache keeps keys that are asked for often.
    pub(crate) async fn get(&self, key: &K) -> Option<V> {
        let key: &dyn AnyKey = key;
        self.entries.get(key).await.map(|value| typed::<V>(&value).clone())
    }

    /// Whether there is a value under `key`.
    pub(crate) fn contains_key(&self, key: &K) -> bool {
        let key: &dyn AnyKey = key;
        self.entries.contains_key(key)
    }

    /// Keeps a value, or does not when there is no room for it.
    pub(crate) async fn insert(&self, key: K, value: V) {
        self.entries.insert(OwnedKey(Box::new(key)), Arc::new(value)).await;
    }

    /// Drops the value under `key`.
    pub(crate) async fn invalidate(&self, key: &K) {
        let key: &dyn AnyKey = key;
        self.entries.invalidate(key).await;
    }

    /// Drops the value under `key` when `test` says so.
    pub(crate) async fn remove_if(&self, key: K, test: impl Fn(&V) -> bool + Send + Sync) {
        let test = |value: &AnyValue| test(typed(value));
        remove_if(&self.entries, OwnedKey(Box::new(key)), &test).await;
    }

    /// The value under `key`, which `load` gives when there is none. All who want it at the same time wait for one of
    /// them; a failure is theirs too and is not kept.
    pub(crate) async fn try_get_with<'a>(
        &'a self,
        key: K,
        load: impl Future<Output = Result<V, Error>> + Send + 'a,
    ) -> Result<V, Error> {
        let load: Loading<'a> = Box::pin(async { load.await.map(|value| Arc::new(value) as AnyValue) });
        let value = try_get_with(&self.entries, OwnedKey(Box::new(key)), load).await?;
        Ok(typed::<V>(&value).clone())
    }

    /// The value under `key`, which `make` gives when there is none.
    pub(crate) async fn get_or_make(&self, key: K, make: impl FnOnce() -> V + Send) -> V {
        let make: Making<'_> = Box::pin(async { Arc::new(make()) as AnyValue });
        let value = self.entries.get_with(OwnedKey(Box::new(key)), make).await;
        typed::<V>(&value).clone()
    }

    /// What all entries weigh.
    pub(crate) fn weighted_size(&self) -> u64 {
        self.entries.weighted_size()
    }
}

fn typed<V: 'static>(value: &AnyValue) -> &V {
    value.downcast_ref().expect("values have one type")
}

async fn try_get_with(
    entries: &Cache<OwnedKey, AnyValue>,
    key: OwnedKey,
    load: Loading<'_>,
) -> Result<AnyValue, Error> {
    entries.try_get_with(key, load).await.map_err(|error| Error::clone(&error))
}

async fn remove_if(
    entries: &Cache<OwnedKey, AnyValue>,
    key: OwnedKey,
    test: &(dyn Fn(&AnyValue) -> bool + Send + Sync),
) {
    let decide = |entry: Option<moka::Entry<OwnedKey, AnyValue>>| {
        let remove = entry.is_some_and(|entry| test(entry.value()));
        std::future::ready(if remove { Op::Remove } else { Op::Nop })
    };
    entries.entry(key).and_compute_with(decide).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(capacity: u64) -> MemoryCache<(u32, String), String> {
        let options = CacheOptions { capacity, ..CacheOptions::default() };
        MemoryCache::weighed(options, |_, value: &String| value.len() as u32)
    }

    fn key(number: u32) -> (u32, String) {
        (number, "k".to_owned())
    }

    #[tokio::test]
    async fn values_come_back_under_their_own_keys() {
        let cache = cache(1000);
        cache.insert(key(1), "one".to_owned()).await;
        assert_eq!(cache.get(&key(1)).await.as_deref(), Some("one"));
        assert_eq!(cache.get(&key(2)).await, None);
        assert!(cache.contains_key(&key(1)) && !cache.contains_key(&key(2)));
        cache.remove_if(key(1), |value| value == "two").await;
        assert!(cache.contains_key(&key(1)));
        cache.remove_if(key(1), |value| value == "one").await;
        assert!(!cache.contains_key(&key(1)));
        assert_eq!(cache.get_or_make(key(3), || "three".to_owned()).await, "three");
        cache.invalidate(&key(3)).await;
        assert_eq!(cache.get(&key(3)).await, None);
    }

    #[tokio::test]
    async fn one_loads_for_all_and_failures_are_not_kept() {
        let cache = cache(1000);
        let failed = cache.try_get_with(key(1), async { Err(Error::ShardNotFound { key: "x".to_owned() }) }).await;
        assert!(failed.is_err());
        let loads = std::sync::atomic::AtomicU32::new(0);
        let load = || async {
            loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok("one".to_owned())
        };
        let (a, b) = tokio::join!(cache.try_get_with(key(1), load()), cache.try_get_with(key(1), load()));
        assert_eq!((a.expect("loaded").as_str(), b.expect("loaded").as_str()), ("one", "one"));
        assert_eq!(loads.into_inner(), 1);
    }

    #[tokio::test]
    async fn what_weighs_too_much_goes() {
        let cache = cache(100);
        for number in 0..50 {
            cache.insert(key(number), "0123456789".to_owned()).await;
        }
        cache.entries.run_pending_tasks().await;
        assert!((1..=100).contains(&cache.weighted_size()), "{cache:?}");
    }
}
