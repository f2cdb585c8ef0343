//! Opening and reading single sources, in folders and buckets.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use des_shared::config::SourceRoots;
use des_shared::receipt::FailureReason as Reason;
use des_shared::segment::SegmentFile;
use des_shared::store::faults::{Fault, FaultStore, Rule};
use des_shared::store::local::LocalStore;
use des_shared::store::{SharedStore, StoreErrorKind};
use des_worker::source::{SourceError, SourceOpener, Sources};

use crate::world::{World, line, noise};

/// What happens to a file, in words and in deed.
type Change = (&'static str, fn(&std::path::Path));

async fn read_all(sources: &dyn SourceOpener, file: &SegmentFile) -> Result<Vec<u8>, SourceError> {
    let mut reader = sources.open(file).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await? {
        assert!(chunk.len() <= 1 << 20);
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn reason(error: &SourceError) -> Option<Reason> {
    match error {
        SourceError::File { reason, .. } => Some(*reason),
        SourceError::Worker(_) => None,
    }
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_noticed() {
    let world = World::new();
    let sources = world.sources();
    let changes: [Change; 3] = [
        ("grows", |path| {
            std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
        }),
        ("shrinks", |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(700_000).unwrap()),
        ("is touched", |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
    ];
    for (what, change) in changes {
        let path = world.write("file", &noise(1, 1 << 20));
        let file = line("file", 1 << 20, &path);
        assert_eq!(read_all(sources.as_ref(), &file).await.unwrap(), noise(1, 1 << 20));
        let mut reader = sources.open(&file).await.unwrap();
        assert!(reader.next().await.unwrap().is_some());
        change(&path);
        let error = loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a file that {what} was taken for whole"),
                Err(e) => break e,
            }
        };
        assert_eq!(reason(&error), Some(Reason::Changed), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_replaced_file_is_read_as_it_was_opened() {
    let world = World::new();
    let path = world.write("file", &noise(1, 1 << 20));
    let file = line("file", 1 << 20, &path);
    let mut reader = world.sources().open(&file).await.unwrap();
    world.write("new", &noise(2, 1 << 20));
    std::fs::rename(world.src().join("new"), &path).unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes, noise(1, 1 << 20));
}

struct Buckets {
    world: World,
    store: Arc<FaultStore>,
    sources: Sources,
}

/// A bucket `data`, in a folder, of which only `in/` may be read.
fn buckets() -> Buckets {
    let world = World::new();
    world.write("in/small", b"small");
    world.write("in/empty", b"");
    world.write("in/large", &noise(3, 3 << 20));
    world.write("internal", b"not for DES");
    let local: SharedStore = Arc::new(LocalStore::open(world.src()).unwrap());
    let store = Arc::new(FaultStore::scripted(local));
    let roots = SourceRoots { folders: Vec::new(), buckets: vec![("data".to_owned(), "in/".to_owned())] };
    let shared: SharedStore = store.clone();
    let sources = Sources::new(roots, BTreeMap::from([("data".to_owned(), shared)]));
    Buckets { world, store, sources }
}

fn object(uri: &str, size: u64) -> SegmentFile {
    let mut file = line("uid", size, std::path::Path::new("/"));
    uri.clone_into(&mut file.source);
    file
}

#[tokio::test]
async fn objects_are_read_from_allowed_prefixes_only() {
    let b = buckets();
    let files = vec![
        object("s3://data/in/small", 5),
        object("s3://data/internal", 11),
        object("s3://other/in/small", 5),
        object("s3://data/in/empty", 0),
        line("local", 5, &b.world.src().join("in/small")),
        object("s3://data/in/small", 4),
        object("s3://data/in/small", 6),
        object("s3://data/in/none", 6),
        object("s3://data/in/none", 0),
        object("s3://data/in/empty", 1),
        object("s3://data/in/small", 0),
    ];
    let answers = b.sources.read(files).await;
    let got: Vec<_> = answers.iter().map(|a| a.as_ref().map(|b| b.to_vec()).map_err(reason)).collect();
    assert_eq!(
        got,
        [
            Ok(b"small".to_vec()),
            Err(Some(Reason::OutsideRoots)),
            Err(Some(Reason::OutsideRoots)),
            Ok(Vec::new()),
            Err(Some(Reason::OutsideRoots)),
            Err(Some(Reason::SizeMismatch)),
            Err(Some(Reason::SizeMismatch)),
            Err(Some(Reason::Missing)),
            Err(Some(Reason::Missing)),
            Err(Some(Reason::SizeMismatch)),
            Err(Some(Reason::SizeMismatch)),
        ]
    );
}

#[tokio::test]
async fn large_objects_are_streamed_and_their_size_is_checked() {
    let b = buckets();
    let whole = read_all(&b.sources, &object("s3://data/in/large", 3 << 20)).await.unwrap();
    assert_eq!(whole, noise(3, 3 << 20));
    for size in [(3 << 20) - 1, (3 << 20) + 1] {
        let error = read_all(&b.sources, &object("s3://data/in/large", size)).await.unwrap_err();
        assert_eq!(reason(&error), Some(Reason::SizeMismatch), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_no_fault_of_a_file() {
    let b = buckets();
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::NoSuchBucket] {
        b.store.heal();
        b.store.add(Rule::always(Fault::Before(kind)));
        let answers = b.sources.read(vec![object("s3://data/in/small", 5)]).await;
        assert!(matches!(answers[0], Err(SourceError::Worker(_))), "{answers:?}");
    }
    b.store.heal();
    b.store.add(Rule::always(Fault::Before(StoreErrorKind::Denied)));
    let answers = b.sources.read(vec![object("s3://data/in/small", 5)]).await;
    assert_eq!(answers[0].as_ref().map_err(reason), Err(Some(Reason::Unreadable)));
    b.store.heal();
    b.store.add(Rule::always(Fault::Cut(1 << 20)));
    let error = read_all(&b.sources, &object("s3://data/in/large", 3 << 20)).await.unwrap_err();
    assert!(matches!(error, SourceError::Worker(_)), "a connection that breaks is not a short file: {error}");
}
