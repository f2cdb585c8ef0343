//! Says which files a published shard holds, from its own index.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use des_shared::archive::RemoteShard;
use des_shared::ids::Uid;
use des_shared::store::SharedStore;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::StreamExt;

/// Reads the uids in a published shard's index. The error says why it cannot be read.
pub type Inspect = dyn Fn(SharedStore, String) -> BoxFuture<'static, Result<HashSet<Uid>, String>> + Send + Sync;

/// Says which files a published shard holds: reads the index from the store, never the payloads.
#[derive(Clone)]
pub struct ShardInspector(pub(crate) Arc<Inspect>);

impl ShardInspector {
    /// From a function of the zone's store and the shard's key.
    pub fn new(
        inspect: impl Fn(SharedStore, String) -> BoxFuture<'static, Result<HashSet<Uid>, String>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(inspect))
    }
}

impl Default for ShardInspector {
    /// Reads real shards of any version.
    fn default() -> Self {
        Self::new(|store, key| read_index(store, key).boxed())
    }
}

async fn read_index(store: SharedStore, key: String) -> Result<HashSet<Uid>, String> {
    let shard = RemoteShard::open(store, &key).await.map_err(|e| e.to_string())?;
    let mut entries = shard.entries();
    let mut uids = HashSet::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.map_err(|e| e.to_string())?;
        uids.insert(Uid::new(entry.uid).map_err(|e| e.to_string())?);
    }
    Ok(uids)
}

impl fmt::Debug for ShardInspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardInspector")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use des_shared::segment::ShardFormat;
    use des_shared::shard::{Codec, PayloadInfo, ShardWriter};
    use des_shared::store::WriteOptions;
    use des_shared::store::local::LocalStore;

    #[tokio::test]
    async fn the_index_of_a_real_shard_tells_its_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let store: SharedStore = Arc::new(LocalStore::open(dir.path()).expect("a store"));
        for format in [ShardFormat::V2, ShardFormat::V3] {
            let mut writer = ShardWriter::new(format, None, 7).expect("a writer");
            let mut bytes = writer.header().to_vec();
            for number in 0..700 {
                let payload = PayloadInfo::of(Codec::None, 1, b"x");
                writer.append(&format!("file-{number:04}"), &payload, None).expect("an entry");
                bytes.push(b'x');
            }
            writer.append_bigfile("large", [7; 32], 1 << 40, None).expect("an entry");
            bytes.extend(writer.finish().expect("a tail"));
            let key = format!("20250310_00_0000-{format}.des");
            store.put(&key, bytes.into(), &WriteOptions::create_only()).await.expect("a put");
            let inspector = ShardInspector::default();
            let uids = (inspector.0)(store.clone(), key.clone()).await.expect("an index");
            assert_eq!(uids.len(), 701, "{format}");
            assert!(uids.contains(&Uid::new("large").expect("a uid")));
            store.put(&key, "no shard".into(), &WriteOptions::overwrite()).await.expect("a put");
            assert!((inspector.0)(store.clone(), key).await.is_err(), "an unreadable shard proves nothing");
        }
    }
}
