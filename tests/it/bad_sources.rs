//! A manifest with files that cannot be packed: each ends in the failure list with its reason, all others are served,
//! and packed + failed = accepted.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use des_shared::job::JobState;
use des_shared::receipt::{FailedFile, FailureReason};
use des_tests::cluster::{Cluster, ClusterOptions};
use des_tests::corpus::{Corpus, CorpusFile};
use des_tests::story::{read_back, submit, wait_for};

/// One file that cannot be packed: its uid, its source, and the reason it should get.
struct Bad {
    uid: &'static str,
    source: String,
    size: u64,
    reason: FailureReason,
}

fn bad_files(root: &Path, outside: &Path) -> Vec<Bad> {
    let path = |name: &str| root.join(name).display().to_string();
    std::fs::write(root.join("short"), b"12345").unwrap();
    std::fs::write(root.join("long"), vec![7; 5000]).unwrap();
    std::fs::write(outside.join("secret"), b"outside").unwrap();
    symlink(outside.join("secret"), root.join("link")).unwrap();
    symlink(outside, root.join("folder-link")).unwrap();
    std::fs::create_dir(root.join("folder")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let bad = |uid, source: String, size, reason| Bad { uid, source, size, reason };
    vec![
        bad("missing", path("no-such-file"), 3, FailureReason::Missing),
        bad("shorter-than-it-says", path("short"), 4000, FailureReason::SizeMismatch),
        bad("longer-than-it-says", path("long"), 10, FailureReason::SizeMismatch),
        bad("outside", outside.join("secret").display().to_string(), 7, FailureReason::OutsideRoots),
        bad(
            "outside-by-dots",
            format!("{}/../{}/secret", root.display(), name_of(outside)),
            7,
            FailureReason::OutsideRoots,
        ),
        bad("outside-by-link", path("link"), 7, FailureReason::OutsideRoots),
        bad("outside-by-folder-link", path("folder-link/secret"), 7, FailureReason::OutsideRoots),
        bad("a-folder", path("folder"), 0, FailureReason::NotAFile),
        bad("a-fifo", path("fifo"), 0, FailureReason::NotAFile),
        bad("a-bucket-nobody-allowed", "s3://other-bucket/key".to_owned(), 3, FailureReason::OutsideRoots),
    ]
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_files_end_in_the_failure_list_and_stop_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut corpus = Corpus::gather(folder.path(), 200, 3).unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let bad = bad_files(&corpus.root, &outside);
    let mut manifest = std::fs::read_to_string(&corpus.manifest).unwrap();
    for file in &bad {
        let line = serde_json::json!({
            "uid": file.uid, "created_at": "2025-03-11T00:00:00Z", "size_bytes": file.size, "source_path": file.source,
        });
        manifest.push_str(&line.to_string());
        manifest.push('\n');
    }
    std::fs::write(&corpus.manifest, manifest).unwrap();
    // Root may read everything, so the unreadable file is made by whoever is not root; root sees a file like any other.
    let unreadable = corpus.files[0].path.clone();
    std::fs::set_permissions(&unreadable, std::fs::Permissions::from_mode(0o000)).unwrap();
    let reads_everything = std::fs::read(&unreadable).is_ok();
    let hidden: CorpusFile = corpus.files.remove(0);

    let cluster = Cluster::start(ClusterOptions {
        workers: 1,
        lease: Duration::from_secs(5),
        source_root: corpus.root.clone(),
        max_shard_size: 1 << 20,
        env: Vec::new(),
    })
    .await
    .unwrap();
    let job = submit(&cluster, &corpus).await.unwrap().id;
    let view = wait_for(&cluster, job, Duration::from_mins(2), |view| view.state.is_final()).await.unwrap();
    assert_eq!(view.state, JobState::CompletedWithErrors, "{view:?}");

    let url = format!("{}/v1/jobs/{job}/failures", cluster.coordinator.url);
    let list = reqwest::get(url).await.unwrap().error_for_status().unwrap().text().await.unwrap();
    let failed: BTreeMap<String, FailedFile> = list
        .lines()
        .map(|line| serde_json::from_str::<FailedFile>(line).unwrap())
        .map(|file| (file.uid.as_str().to_owned(), file))
        .collect();
    let mut expected: BTreeMap<&str, FailureReason> = bad.iter().map(|file| (file.uid, file.reason)).collect();
    if !reads_everything {
        expected.insert(&hidden.uid, FailureReason::Unreadable);
    }
    let found: BTreeMap<&str, FailureReason> = failed.iter().map(|(uid, file)| (uid.as_str(), file.reason)).collect();
    assert_eq!(found, expected, "{list}");
    assert!(failed.values().all(|file| !file.message.is_empty() && file.created_at.starts_with("2025-03")));
    assert_eq!(view.files.failed, expected.len() as u64);
    assert_eq!(view.files.total, Some(view.files.packed + view.files.failed));

    let (right, wrong) = read_back(&cluster.retriever.url, &corpus.files).await;
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(right, corpus.files.len());
    let url = format!("{}/files/outside?created_at=2025-03-11T00:00:00Z", cluster.retriever.url);
    assert_eq!(reqwest::get(url).await.unwrap().status(), 404);
}
