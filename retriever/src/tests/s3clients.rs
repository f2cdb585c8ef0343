//! The S3 interface with real clients, over two zones: boto3, rclone and the SDK.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use des_shared::config::{Values, settings};
use des_shared::routing::{ShardDate, Slot, shard_index};
use des_shared::store::s3::{S3Config, S3Credentials, S3Store};
use des_shared::store::{ByteRange, ObjectStore, list_all};
use des_shared::tombstone;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::support::{Content, Place, Rig, Server, n_bits, v3};
use crate::S3FaceConfig;

const ACCESS: &str = "reader";
const SECRET: &str = "correct-horse-battery-staple";
const PATIENCE: Duration = Duration::from_mins(5);
/// Files of a date, beside the odd ones.
const FILES: usize = 1_500;
const DATES: [ShardDate; 2] =
    [ShardDate { year: 2025, month: 3, day: 10 }, ShardDate { year: 2025, month: 12, day: 31 }];

/// Uids that clients, URLs or XML could spoil.
const ODD: [&str; 24] = [
    "..",
    "../up",
    "a/../b",
    "./c",
    "a//b",
    "/slash",
    "100%",
    "%41",
    "%2F",
    "a+b",
    "a b",
    " x ",
    "ä/ö",
    "日本/語.txt",
    "a?b=c&d",
    "#frag",
    "x\u{1}y",
    "tab\tnew\nline",
    "\"quoted'",
    "<xml>&amp;",
    "0007",
    "a\u{301}",
    "😀",
    "~user-_.!*()",
];

/// What there is: key to bytes and sequence.
type Truth = BTreeMap<String, (Vec<u8>, u64)>;

struct Face {
    server: Server,
    truth: Truth,
    _places: [Place; 2],
}

impl Face {
    fn endpoint(&self) -> String {
        self.server.s3_url("")
    }
}

fn raw(uid: &str, shard: usize, at: usize) -> Vec<u8> {
    let text = format!("{uid} of shard {shard}\n");
    // One that is read in parts, and empty ones.
    let repeat = if at == 7 { 600_000 } else { at % 40 };
    text.as_bytes().repeat(repeat)
}

/// Two dates, each with three shards in every slot that have many files in common, and some files deleted.
fn fill(places: &[Place; 2]) -> Truth {
    let mut truth = Truth::new();
    for date in DATES {
        let uids: Vec<String> = (0..FILES).map(|n| format!("folder/{}/file-{n}.txt", n % 7)).collect();
        let uids: Vec<&str> = uids.iter().map(String::as_str).chain(ODD).collect();
        for index in 0..16 {
            let place = &places[usize::from(index >= 10)];
            let slot = Slot { date, index, n_bits: n_bits(4) };
            for number in 0..3_usize {
                let sequence = 1_741_600_000_123 + [10_000, 30_000, 20_000][number];
                let mine = uids.iter().enumerate().filter(|(at, uid)| {
                    shard_index(uid, n_bits(4)) == index && (at % 3 != number || ODD.contains(uid))
                });
                let files: Content = mine.map(|(at, uid)| ((*uid).to_owned(), raw(uid, number, at))).collect();
                place.put(&format!("{}{number:04}.des", slot.object_prefix()), v3(sequence, &files));
                for (uid, raw) in files {
                    let known = truth.entry(format!("{date}/{uid}")).or_default();
                    if known.1 < sequence {
                        *known = (raw, sequence);
                    }
                }
            }
            for uid in uids.iter().filter(|uid| shard_index(uid, n_bits(4)) == index && uid.ends_with("11.txt")) {
                place.put(&tombstone::key(&slot, uid, 1_741_700_000_000), "{}");
                truth.remove(&format!("{date}/{uid}"));
            }
        }
    }
    truth
}

async fn start() -> Face {
    let places = [Place::new(), Place::new()];
    let truth = fill(&places);
    let mut rig = Rig::two_zones([&places[0], &places[1]], 10);
    let pairs = format!("other:another-secret,{ACCESS}:{SECRET}");
    let given = [("DES_S3_FACE_LISTEN", "127.0.0.1:0"), ("DES_S3_FACE_KEYS", pairs.as_str())];
    let mut values = Values::from_pairs(&[settings::S3_FACE, settings::PROCESS].concat(), &given);
    let face = S3FaceConfig::read(&mut values, None);
    rig.config.s3_face = Some(values.finish(face).expect("settings"));
    Face { server: rig.serve().await, truth, _places: places }
}

/// A Python that has boto3: `DES_PYTHON`, or the one that scripts/setup makes in the repository.
fn python() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/venv/bin/python");
    let python = std::env::var_os("DES_PYTHON").map_or(tools, PathBuf::from);
    assert!(python.is_file(), "there is no Python with boto3; run scripts/setup, which installs what the tests need");
    python
}

async fn run<S: AsRef<OsStr>>(command: &mut Command, args: impl IntoIterator<Item = S>) -> Output {
    let running = command.args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(PATIENCE, running).await.expect("it ends").expect("it runs; scripts/setup installs what the tests need")
}

fn checked(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_reads_lists_and_is_refused() {
    let python = python();
    let face = start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let told: serde_json::Map<_, _> = face
        .truth
        .iter()
        .map(|(key, (raw, sequence))| {
            let sha256 = Sha256::digest(raw).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            (key.clone(), serde_json::json!({"size": raw.len(), "sha256": sha256, "sequence": sequence}))
        })
        .collect();
    let path = folder.path().join("files.json");
    std::fs::write(&path, serde_json::to_vec(&told).expect("JSON")).expect("written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/s3clients.py");
    let endpoint = face.endpoint();
    let args = [script.as_os_str(), endpoint.as_ref(), "des".as_ref(), ACCESS.as_ref(), SECRET.as_ref(), path.as_ref()];
    let output = run(Command::new(python).env_remove("AWS_PROFILE").env("AWS_CONFIG_FILE", "/dev/null"), args).await;
    assert_eq!(checked(&output).trim(), "fine");
    face.server.stop().await;
}

/// rclone with everything by environment, so that no configuration of a person's is touched.
fn rclone_at(face: &Face, folder: &TempDir) -> Command {
    let mut command = Command::new("rclone");
    // It stops where a person's environment names a bundle for TLS, which nobody needs here.
    command.env_remove("AWS_CA_BUNDLE");
    command.env("RCLONE_CONFIG", folder.path().join("none.conf")).env("RCLONE_CACHE_DIR", folder.path().join("cache"));
    for (name, value) in [
        ("TYPE", "s3"),
        ("PROVIDER", "Other"),
        ("ACCESS_KEY_ID", ACCESS),
        ("SECRET_ACCESS_KEY", SECRET),
        ("ENDPOINT", &face.endpoint()),
        ("FORCE_PATH_STYLE", "true"),
    ] {
        command.env(format!("RCLONE_CONFIG_DES_{name}"), value);
    }
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rclone_copies_a_date_and_finds_nothing_different() {
    let face = start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let dates = checked(&run(&mut rclone_at(&face, &folder), ["lsf", "des:des"]).await);
    assert_eq!(dates, "20250310/\n20251231/\n");
    let plain: BTreeMap<&str, &Vec<u8>> =
        face.truth.iter().filter_map(|(key, (raw, _))| Some((key.strip_prefix("20250310/folder/")?, raw))).collect();
    let listed =
        checked(&run(&mut rclone_at(&face, &folder), ["lsf", "-R", "--files-only", "des:des/20250310/folder"]).await);
    assert!(listed.lines().collect::<BTreeSet<_>>().into_iter().eq(plain.keys().copied()));
    let target = folder.path().join("copy");
    let target_text = target.to_str().expect("UTF-8");
    // Tags are no MD5 and must not be taken for one: a copy would be refused.
    checked(
        &run(&mut rclone_at(&face, &folder), ["copy", "--retries", "1", "des:des/20250310/folder", target_text]).await,
    );
    for (name, raw) in &plain {
        assert!(std::fs::read(target.join(name)).expect("copied") == **raw, "{name}");
    }
    let check = ["check", "--download", "des:des/20250310/folder", target_text];
    checked(&run(&mut rclone_at(&face, &folder), check).await);
    // Again: nothing to do, by size and time.
    let again = ["copy", "--retries", "1", "-v", "--stats-one-line", "des:des/20250310/folder", target_text];
    let output = run(&mut rclone_at(&face, &folder), again).await;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    checked(&output);
    assert!(!log.contains("Copied"), "{log}");
    // One by one: rclone's recursive listing never ends where a uid has a component `..` or none at all.
    let one = folder.path().join("one");
    for uid in ["100%", "a+b", "a b", "日本/語.txt", "%2F", "😀", "#frag"] {
        let key = format!("20250310/{uid}");
        let (source, target) = (format!("des:des/{key}"), one.to_str().expect("UTF-8"));
        let args = ["copyto", "--retries", "1", "-I", source.as_str(), target];
        checked(&run(&mut rclone_at(&face, &folder), args).await);
        assert!(std::fs::read(&one).expect("copied") == face.truth[&key].0, "{uid}");
    }
    let refused = run(
        &mut rclone_at(&face, &folder),
        ["copyto", "--retries", "1", one.to_str().expect("UTF-8"), "des:des/20250310/new"],
    )
    .await;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("MethodNotAllowed"), "{refused:?}");
    face.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_reads_every_odd_key() {
    let face = start().await;
    let config = S3Config {
        region: Some("us-east-1".to_owned()),
        endpoint_url: Some(face.endpoint()),
        credentials: Some(S3Credentials { access_key_id: ACCESS.to_owned(), secret_access_key: SECRET.to_owned() }),
        ..S3Config::new("des")
    };
    // Our own store is one more client. It refuses keys that no folder could have.
    let store = S3Store::connect(&config).await.expect("a client");
    for uid in ODD.into_iter().filter(|uid| uid.split('/').all(|part| !matches!(part, "" | "." | ".."))) {
        let key = format!("20251231/{uid}");
        let fetched = store.get(&key, ByteRange::Full).await.unwrap_or_else(|e| panic!("{key}: {e}"));
        assert!(fetched.bytes == face.truth[&key].0, "{key}");
    }
    let listed = list_all(std::sync::Arc::new(store), "20251231/folder/".to_owned());
    let listed: Vec<(String, u64)> =
        listed.map_ok(|object| (object.key, object.size)).try_collect().await.expect("listed");
    let right = face.truth.iter().filter(|(key, _)| key.starts_with("20251231/folder/"));
    assert!(listed.into_iter().eq(right.map(|(key, (raw, _))| (key.clone(), raw.len() as u64))));
    face.server.stop().await;
}
