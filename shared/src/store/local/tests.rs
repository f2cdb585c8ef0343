use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::store::{MIN_PART_BYTES, SharedStore, StoreErrorKind, contract};

fn store() -> (TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = LocalStore::open(dir.path()).expect("a store");
    (dir, store)
}

fn x() -> Bytes {
    Bytes::from_static(b"x")
}

async fn kind_of_put(store: &LocalStore, key: &str) -> Result<(), StoreErrorKind> {
    store.put(key, x(), &WriteOptions::overwrite()).await.map(drop).map_err(|e| e.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keeps_the_contract() {
    let root = tempfile::tempdir().expect("a folder");
    let made = AtomicU64::new(0);
    contract::run(
        async || {
            let dir = root.path().join(made.fetch_add(1, Ordering::Relaxed).to_string());
            Arc::new(LocalStore::create(dir).expect("a store")) as SharedStore
        },
        contract::Completion::OneWinner,
    )
    .await;
    assert!(made.into_inner() > 15, "every check ran");
}

#[tokio::test]
async fn links_are_not_followed() {
    let (dir, store) = store();
    let outside = tempfile::tempdir().expect("another folder");
    fs::write(outside.path().join("secret"), "secret").expect("write");
    symlink(outside.path(), dir.path().join("folder")).expect("link");
    symlink(outside.path().join("secret"), dir.path().join("file")).expect("link");
    symlink(outside.path().join("new"), dir.path().join("dangling")).expect("link");
    for key in ["folder/secret", "file", "folder/new", "dangling"] {
        assert_eq!(store.get(key, ByteRange::Full).await.expect_err(key).kind, StoreErrorKind::Denied, "{key}");
        assert_eq!(store.head(key).await.expect_err(key).kind, StoreErrorKind::Denied, "{key}");
        assert_eq!(kind_of_put(&store, key).await, Err(StoreErrorKind::Denied), "{key}");
        assert_eq!(store.delete(key).await.expect_err(key).kind, StoreErrorKind::Denied, "{key}");
    }
    assert_eq!(store.list("folder/", None, 10).await.expect_err("a link").kind, StoreErrorKind::Denied);
    assert!(store.list("", None, 10).await.expect("list").objects.is_empty(), "links are no objects");
    let names: Vec<_> = fs::read_dir(outside.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names, ["secret"], "nothing was written outside");
}

#[tokio::test]
async fn what_is_kept_open_is_not_taken_for_what_is_there() {
    let (dir, store) = store();
    let read = async || store.get("k", ByteRange::Span(0..3)).await.map(|f| f.bytes).map_err(|e| e.kind);
    let path = dir.path().join("k");
    fs::write(&path, "one, and more").expect("written");
    for _ in 0..3 {
        assert_eq!(read().await.expect("read"), "one");
    }
    assert_eq!(store.handles.len(), 1, "kept open");
    assert!(store.handles.read_now("k", &ByteRange::Suffix(4)).is_some_and(|fetched| fetched.bytes == "more"));
    // Another file under the name.
    fs::write(dir.path().join("other"), "two, and more").expect("written");
    fs::rename(dir.path().join("other"), &path).expect("renamed");
    assert_eq!(read().await.expect("read"), "two");
    // The same file with other bytes.
    fs::write(&path, "three").expect("written");
    assert_eq!(read().await.expect("read"), "thr");
    assert_eq!(
        store.get("k", ByteRange::Span(0..13)).await.expect_err("shorter now").kind,
        StoreErrorKind::InvalidRange
    );
    fs::remove_file(&path).expect("removed");
    assert_eq!(read().await, Err(StoreErrorKind::NotFound));
    assert_eq!(store.handles.len(), 0, "and closed");
    fs::write(dir.path().join("target"), "elsewhere").expect("written");
    symlink(dir.path().join("target"), &path).expect("a link");
    assert_eq!(read().await, Err(StoreErrorKind::Denied));
}

#[tokio::test]
async fn a_file_that_moved_away_is_not_read_any_more() {
    let (dir, store) = store();
    let path = dir.path().join("k");
    fs::write(&path, "one").expect("written");
    store.get("k", ByteRange::Full).await.expect("read");
    assert!(store.handles.read_now("k", &ByteRange::Full).is_some_and(|fetched| fetched.bytes == "one"));
    // The file system's clock ticks a few hundred times a second; a change within a tick of the last is seen a little later.
    let changed = |path: &Path| fs::metadata(path).map(|m| (m.ctime(), m.ctime_nsec())).expect("metadata");
    fs::write(dir.path().join("clock"), "tick").expect("written");
    while changed(&path) == changed(&dir.path().join("clock")) {
        fs::write(dir.path().join("clock"), "tick").expect("written");
    }
    fs::rename(&path, dir.path().join("moved")).expect("renamed");
    assert!(store.handles.read_now("k", &ByteRange::Full).is_none());
    assert_eq!(store.get("k", ByteRange::Full).await.expect_err("moved").kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn few_files_are_kept_open() {
    let (dir, store) = store();
    for number in 0..200 {
        fs::write(dir.path().join(number.to_string()), "x").expect("written");
        store.get(&number.to_string(), ByteRange::Full).await.expect("read");
    }
    assert_eq!(store.handles.len(), 128);
    assert_eq!(store.get("0", ByteRange::Full).await.expect("opened again").bytes, "x");
    // Below a folder, somebody could plant a link in the way.
    fs::create_dir(dir.path().join("a")).expect("a folder");
    fs::write(dir.path().join("a/b"), "x").expect("written");
    store.get("a/b", ByteRange::Full).await.expect("read");
    assert!(store.handles.read_now("a/b", &ByteRange::Full).is_none());
}

#[tokio::test]
async fn the_root_may_be_a_link() {
    let (dir, _) = store();
    let real = dir.path().join("real");
    fs::create_dir(&real).expect("mkdir");
    symlink(&real, dir.path().join("link")).expect("link");
    let store = LocalStore::open(dir.path().join("link")).expect("a store");
    assert_eq!(kind_of_put(&store, "a/b").await, Ok(()));
    assert!(real.join("a/b").is_file());
}

#[tokio::test]
async fn special_files_are_no_objects() {
    let (dir, store) = store();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let read = tokio::time::timeout(Duration::from_secs(10), store.get("fifo", ByteRange::Full)).await;
    let error = read.expect("a FIFO does not hang the reader").expect_err("no object");
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(store.list("", None, 10).await.expect("list").objects.is_empty());
}

#[tokio::test]
async fn names_a_folder_cannot_keep_are_refused() {
    let (_dir, store) = store();
    let long = format!("a/{}", "n".repeat(256));
    for key in ["a//b", "a/", &long, ".uploads/x", "a/.uploads", ".des-tmp-abc", "a/.des-tmp-abc/b"] {
        assert_eq!(kind_of_put(&store, key).await, Err(StoreErrorKind::Invalid), "{key}");
    }
    assert_eq!(kind_of_put(&store, "a").await, Ok(()));
    assert_eq!(kind_of_put(&store, "a/b").await, Err(StoreErrorKind::Invalid), "an object is no folder");
    assert_eq!(kind_of_put(&store, "d/e").await, Ok(()));
    assert_eq!(kind_of_put(&store, "d").await, Err(StoreErrorKind::Invalid), "a folder is no object");
    let created = store.put("d", x(), &WriteOptions::create_only()).await.expect_err("a folder is in the way");
    assert_eq!(created.kind, StoreErrorKind::Invalid);
}

#[tokio::test]
async fn half_made_uploads_are_removed_with_what_crashed_writers_left() {
    let (dir, store) = store();
    let whole = store.create_upload("k", &BTreeMap::new()).await.expect("upload");
    // Killed between making the folder and writing the key, and while an upload was being dropped.
    for (name, file) in [("aaaa", ".des-tmp-x"), ("bbbb", "part-00001")] {
        let half = dir.path().join(UPLOADS).join(name);
        std::fs::create_dir(&half).expect("folder");
        std::fs::write(half.join(file), "x").expect("file");
    }
    let listed = store.list_uploads("", 10).await.expect("list");
    assert_eq!(listed.iter().map(|upload| &upload.upload_id).collect::<Vec<_>>(), [&whole]);
    assert_eq!(store.remove_stale(0).await.expect("nothing is that old"), 0);
    assert_eq!(store.remove_stale(u64::MAX).await.expect("remove"), 2);
    store.list_parts("k", &whole).await.expect("what has a key stays");
    store.abort_upload("k", &whole).await.expect("abort");
    assert!(!dir.path().join(UPLOADS).exists());
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "file times are the machine's")]
async fn crashed_writers_leave_only_what_can_be_told_apart() {
    let (dir, store) = store();
    fs::create_dir_all(dir.path().join("a/b")).expect("mkdir");
    let old = SystemTime::now() - Duration::from_hours(2);
    for name in [".des-tmp-old", "a/b/.des-tmp-old", "a/b/object"] {
        let file = fs::File::create(dir.path().join(name)).expect("create");
        file.set_modified(old).expect("set the time");
    }
    fs::write(dir.path().join("a/.des-tmp-young"), "at work").expect("write");
    let listed = store.list("", None, 10).await.expect("list");
    assert_eq!(listed.objects.len(), 1, "{listed:?}");
    let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    assert_eq!(store.remove_stale(now - 3_600_000).await.expect("sweep"), 2);
    assert!(dir.path().join("a/.des-tmp-young").exists(), "a writer at work is left alone");
    assert!(dir.path().join("a/b/object").exists());
}

#[tokio::test]
async fn writers_leave_nothing_behind() {
    let (dir, store) = store();
    store.put("a/k", x(), &WriteOptions::create_only()).await.expect("put");
    assert!(store.put("a/k", x(), &WriteOptions::create_only()).await.is_err());
    let upload = store.create_upload("a/u", &BTreeMap::new()).await.expect("create");
    let part = store.put_part("a/u", &upload, 1, x()).await.expect("part");
    store.complete_upload("a/u", &upload, &[part], WriteMode::CreateOnly).await.expect("complete");
    let names = |path: &Path| {
        let entries = fs::read_dir(path).expect("read").map(|e| e.expect("entry").file_name().into_string());
        let mut names: Vec<_> = entries.map(|name| name.expect("UTF-8")).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir.path()), ["a"]);
    assert_eq!(names(&dir.path().join("a")), ["k", "u"]);
    store.delete("a/k").await.expect("delete");
    store.delete("a/u").await.expect("delete");
    assert_eq!(names(dir.path()), [] as [&str; 0], "empty folders go with their last object");
}

#[tokio::test]
async fn objects_are_as_readable_as_any_file() {
    let (dir, store) = store();
    fs::write(dir.path().join("plain"), "x").expect("write");
    store.put("object", x(), &WriteOptions::overwrite()).await.expect("put");
    let mode = |name: &str| fs::metadata(dir.path().join(name)).expect("metadata").permissions().mode();
    assert_eq!(mode("object"), mode("plain"), "the umask decides, not the temporary file");
}

#[tokio::test]
async fn a_missing_root_is_a_missing_bucket() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = dir.path().join("missing");
    assert_eq!(LocalStore::open(&missing).expect_err("missing").kind, StoreErrorKind::NoSuchBucket);
    fs::write(&missing, "a file").expect("write");
    assert_eq!(LocalStore::open(&missing).expect_err("a file").kind, StoreErrorKind::NoSuchBucket);
    assert_eq!(LocalStore::create(&missing).expect_err("a file").kind, StoreErrorKind::NoSuchBucket);

    let root = dir.path().join("root");
    let store = LocalStore::create(&root).expect("a store");
    fs::remove_dir(&root).expect("rmdir");
    assert_eq!(store.check().await.expect_err("gone").kind, StoreErrorKind::NoSuchBucket);
    assert_eq!(store.head("k").await.expect_err("gone").kind, StoreErrorKind::NoSuchBucket);
    assert_eq!(store.list("", None, 1).await.expect_err("gone").kind, StoreErrorKind::NoSuchBucket);
    assert_eq!(store.list_uploads("", 1000).await.expect_err("gone").kind, StoreErrorKind::NoSuchBucket);
    assert_eq!(kind_of_put(&store, "a/k").await, Err(StoreErrorKind::NoSuchBucket));
    assert_eq!(store.probe("").await.expect_err("gone").kind, StoreErrorKind::NoSuchBucket);
    assert!(!root.exists(), "an unmounted store is not made anew on the disk below");
}

#[tokio::test]
async fn a_full_disk_and_a_closed_folder_say_so() {
    // /dev/full answers every write as a full disk does, but no folder is like it: the mapping is what can be tried.
    let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
    assert_eq!(folder::kind_of(&full), StoreErrorKind::Full);
    let quota = std::io::Error::from_raw_os_error(nix::libc::EDQUOT);
    assert_eq!(folder::kind_of(&quota), StoreErrorKind::Full);
    for errno in [nix::libc::EACCES, nix::libc::EPERM, nix::libc::EROFS] {
        assert_eq!(folder::kind_of(&std::io::Error::from_raw_os_error(errno)), StoreErrorKind::Denied, "{errno}");
    }
    assert_eq!(folder::kind_of(&std::io::Error::from_raw_os_error(nix::libc::EIO)), StoreErrorKind::Unavailable);

    let (dir, store) = store();
    store.put("a/k", x(), &WriteOptions::overwrite()).await.expect("put");
    let locked = dir.path().join("a");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).expect("chmod");
    if fs::read_dir(&locked).is_err() {
        // Not for the superuser, whom no permission stops.
        assert_eq!(store.head("a/k").await.expect_err("closed").kind, StoreErrorKind::Denied);
        assert_eq!(kind_of_put(&store, "a/new").await, Err(StoreErrorKind::Denied));
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(store.head("a/k").await.expect("open again").size, 1);
}

/// Folders tidied away as empty must not fail a writer who is about to use them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_and_removers_of_one_folder_do_not_disturb_each_other() {
    let (_dir, store) = store();
    let tasks = (0..8).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..40 {
                let key = format!("shared/folder/{task}-{round}");
                store.put(&key, x(), &WriteOptions::create_only()).await.expect("put");
                store.delete(&key).await.expect("delete");
            }
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.expect("no panic");
    }
    assert!(store.list("", None, 10).await.expect("list").objects.is_empty());
}

#[tokio::test]
async fn many_small_folders_fill_a_page() {
    let (dir, store) = store();
    for n in 0..30 {
        fs::create_dir_all(dir.path().join(format!("{n:02}/empty/deep"))).expect("mkdir");
    }
    for n in [3, 17, 29] {
        store.put(&format!("{n:02}/empty/k"), x(), &WriteOptions::overwrite()).await.expect("put");
    }
    let page = store.list("", None, 2).await.expect("list");
    let keys: Vec<_> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["03/empty/k", "17/empty/k"]);
    assert_eq!(page.next.as_deref(), Some("17/empty/k"));
    let page = store.list("", page.next.as_deref(), 2).await.expect("list");
    assert_eq!((page.objects.len(), page.next), (1, None));
}

#[tokio::test]
async fn listings_are_in_byte_order_even_around_slashes() {
    let (_dir, store) = store();
    let sorted = ["a!", "a-b", "a.b", "a/a", "a/b-c", "a/b/c", "a/b0", "a0", "a\u{e4}"];
    for key in sorted {
        store.put(key, x(), &WriteOptions::overwrite()).await.expect("put");
    }
    for limit in 1..=sorted.len() {
        let (mut keys, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = store.list("", after.as_deref(), limit).await.expect("list");
            keys.extend(page.objects.into_iter().map(|object| object.key));
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        assert_eq!(keys, sorted, "pages of {limit}");
    }
    for after in ["a", "a/", "a/b", "a/b/", "a-", "a/b/c", "b"] {
        let page = store.list("", Some(after), 100).await.expect("list");
        let keys: Vec<_> = page.objects.iter().map(|object| object.key.as_str()).collect();
        let later: Vec<_> = sorted.into_iter().filter(|key| *key > after).collect();
        assert_eq!(keys, later, "after {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_racing_writers_wins_every_time() {
    let (_dir, store) = store();
    for round in 0..50 {
        let racers = (0..32).map(|racer| {
            let store = store.clone();
            let bytes = Bytes::from(format!("racer {racer}"));
            tokio::spawn(async move { store.put(&format!("{round}"), bytes, &WriteOptions::create_only()).await })
        });
        let outcomes = futures::future::join_all(racers).await;
        let won = |(racer, outcome): (usize, Result<Result<ObjectMeta, StoreError>, _>)| {
            outcome.expect("no panic").is_ok().then_some(racer)
        };
        let winners: Vec<_> = outcomes.into_iter().enumerate().filter_map(won).collect();
        let [winner] = winners[..] else { panic!("round {round}: {winners:?}") };
        let bytes = store.get(&format!("{round}"), ByteRange::Full).await.expect("get").bytes;
        assert_eq!(bytes, format!("racer {winner}"));
    }
}

/// The inodes of data files of uploads.
fn data_files(root: &std::path::Path) -> Vec<u64> {
    let uploads = fs::read_dir(root.join(UPLOADS)).expect("uploads").map(|e| e.expect("an upload").path());
    let files = uploads.flat_map(|dir| fs::read_dir(dir).expect("an upload")).map(|e| e.expect("a file"));
    let data = files.filter(|file| file.file_name().to_string_lossy().starts_with("data"));
    data.map(|file| file.metadata().expect("metadata").ino()).collect()
}

/// Number and bytes of a part, and whether the store itself writes it or another one.
type Write = (u32, usize, bool);

#[tokio::test]
async fn parts_in_their_order_become_the_object_and_others_are_copied() {
    let (dir, store) = store();
    let another = LocalStore::open(dir.path()).expect("a store");
    let long: Vec<Bytes> = (0..3_u8).map(|n| vec![n; MIN_PART_BYTES as usize + usize::from(n)].into()).collect();
    // What is written, in this order; which of them are named; whether nothing is copied.
    let cases: [(&str, &[Write], &[usize], bool); 6] = [
        ("in order", &[(1, 0, true), (2, 1, true), (3, 2, true)], &[0, 1, 2], true),
        ("with a gap in the numbers", &[(2, 0, true), (7, 1, true)], &[0, 1], true),
        ("with one that nobody names", &[(1, 0, true), (2, 1, true), (3, 2, true)], &[0, 1], true),
        ("the last one replaced", &[(1, 0, true), (2, 1, true), (2, 2, true)], &[0, 2], false),
        ("backwards", &[(2, 1, true), (1, 0, true)], &[1, 0], false),
        ("by two", &[(1, 0, true), (2, 1, false), (3, 2, true)], &[0, 1, 2], false),
    ];
    for (key, writes, named, as_it_is) in cases {
        let id = store.create_upload(key, &BTreeMap::new()).await.expect("create");
        let mut tags = Vec::new();
        for (number, bytes, own) in writes {
            let writer = if *own { &store } else { &another };
            tags.push(writer.put_part(key, &id, *number, long[*bytes].clone()).await.expect(key));
        }
        let data = data_files(dir.path());
        let parts: Vec<_> = named.iter().map(|at| tags[*at].clone()).collect();
        store.complete_upload(key, &id, &parts, WriteMode::CreateOnly).await.expect(key);
        let expected: Vec<u8> = named.iter().flat_map(|at| long[writes[*at].1].to_vec()).collect();
        let path = dir.path().join(key);
        assert!(fs::read(&path).expect(key) == expected, "{key}: other bytes");
        let metadata = fs::metadata(&path).expect(key);
        assert_eq!((data.contains(&metadata.ino()), metadata.nlink()), (as_it_is, 1), "{key}");
        assert!(!dir.path().join(UPLOADS).exists(), "{key}: nothing is left");
    }
}
