//! `des pack` that is killed, and the same command again: it goes on where it was and ends with the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use des_shared::clock::Dice;
use des_shared::layout::{SHARD_SUFFIX, parse_shard_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{des, des_command, des_pack_command, file, names, shards, text};

/// Fixes the sequence, so that two runs can be compared byte for byte.
const EPOCH: &str = "1741600000";
/// Where a run keeps its state.
const STATE: &str = ".des-tmp-pack";

/// Three shards of several parts each in one slot, and one file that is not there.
struct Corpus {
    dir: tempfile::TempDir,
    manifest: PathBuf,
}

const FILES: u64 = 39;
const FILE_BYTES: u64 = 1_500_000;

impl Corpus {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut entries = Vec::new();
        for n in 0..FILES {
            let dice = Dice::seeded(n);
            let bytes: Vec<u8> = (0..FILE_BYTES / 60).flat_map(|_| dice.bytes::<60>()).collect();
            file(&dir.path().join("in").join(n.to_string()), &bytes);
            entries.push(entry(n, FILE_BYTES, &format!("in/{n}")));
        }
        // In the first shard, and too small to move its border.
        entries.insert(3, entry(1000, 1, "in/gone"));
        let manifest = dir.path().join("manifest.json");
        fs::write(&manifest, serde_json::to_vec(&entries).expect("JSON")).expect("manifest");
        Self { dir, manifest }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, way: Way, out: &Path) -> Command {
        let mut command = match way {
            Way::Digest => {
                let mut command = des_command();
                command.args(["--json", "pack", text(&self.manifest), "--codec", "none", "--jobs", "2"]);
                command
            }
            Way::People => {
                let mut command = des_command();
                command.args(["pack", text(&self.manifest), "--codec", "none", "--jobs", "2"]);
                command
            }
            Way::Bare => {
                let mut command = des_pack_command();
                command.args(["--input-json", text(&self.manifest)]);
                command
            }
        };
        command.args(["--output-dir", text(out), "--max-shard-size", "19600000", "--n-bits", "4"]);
        command.current_dir(self.dir.path()).env("SOURCE_DATE_EPOCH", EPOCH);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

fn entry(n: u64, size: u64, source: &str) -> Value {
    // Multiples of 16 share a slot of 4 bits.
    json!({"uid": n * 16, "created_at": "2025-03-10T00:00:00Z", "size_bytes": size, "source_path": source})
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `des pack`: names by digest, version 3.
    Digest,
    /// The same, as people read it.
    People,
    /// `des-pack`: bare names, version 2.
    Bare,
}

fn finish(child: Child) -> Output {
    child.wait_with_output().expect("it ends")
}

/// What readers find: every object by name.
fn objects(out: &Path) -> BTreeMap<String, Vec<u8>> {
    shards(out).into_iter().map(|name| (name.clone(), fs::read(out.join(&name)).expect("a shard"))).collect()
}

fn inodes(out: &Path) -> BTreeMap<String, u64> {
    shards(out).into_iter().map(|name| (name.clone(), fs::metadata(out.join(&name)).expect("a shard").ino())).collect()
}

/// The lines of the only run's journal and the digests of shards that have marks.
fn state(out: &Path) -> Option<(Vec<Value>, BTreeSet<String>)> {
    let runs = names(&out.join(STATE)).into_iter().filter(|name| name != "lock").collect::<Vec<_>>();
    let [run] = runs.as_slice() else { return None };
    let dir = out.join(STATE).join(run);
    let journal = fs::read_to_string(dir.join("journal")).ok()?;
    let lines = journal.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let marks =
        names(&dir).iter().filter_map(|name| name.split_once("-0")).map(|(digest, _)| digest.to_owned()).collect();
    Some((lines, marks))
}

/// How many uploads were begun for a shard.
fn begun(lines: &[Value], key: &str) -> usize {
    lines.iter().filter(|line| line["upload"]["key"] == key).count()
}

/// The shards, by key, that can be continued.
fn continuable(lines: &[Value], marks: &BTreeSet<String>) -> BTreeSet<String> {
    let keys = lines.iter().filter_map(|line| line["upload"]["key"].as_str());
    let marked = |key: &&str| {
        let digest = parse_shard_name(key).and_then(|name| name.digest);
        digest.is_some_and(|short| marks.iter().any(|digest| digest.starts_with(&short)))
    };
    keys.filter(marked).map(str::to_owned).collect()
}

/// Readers see whole shards only, and no listing shows what is kept.
fn check_visible(out: &Path, expected: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in objects(out) {
        assert!(expected.get(&name) == Some(&bytes), "{name} is not as it should be");
    }
    let listed = des(&["--json", "ls", text(out)]);
    assert!(!listed.out.contains("des-tmp") && !listed.out.contains("uploads"), "{}", listed.out);
}

fn killed_again_and_again(way: Way) {
    let corpus = Corpus::new();
    let whole = corpus.out("whole");
    let began = Instant::now();
    let first = finish(corpus.command(way, &whole).spawn().expect("it starts"));
    let took = began.elapsed();
    assert_eq!(first.status.code(), Some(3), "one file is missing: {}", String::from_utf8_lossy(&first.stderr));
    let expected = objects(&whole);
    assert_eq!(expected.len(), 3);
    assert_eq!(names(&whole), expected.keys().cloned().collect::<Vec<_>>(), "nothing else stays behind");

    let dice = Dice::seeded(way as u64);
    let mut kills = 0;
    // A run that is quick this time is killed less often.
    for attempt in 0..10 {
        kills += killed_until_it_ends(&corpus, way, (&whole, &first), (attempt, took, &dice));
        if kills >= 6 {
            break;
        }
    }
    assert!(kills >= 6, "only {kills} kills");
    eprintln!("{way:?}: {kills} kills, uninterrupted {took:?}");
}

/// What a run that nobody interrupts would say of another folder.
fn usual(whole: &Path, out: &Path, first: &Output) -> String {
    String::from_utf8_lossy(&first.stdout).replace(text(whole), text(out))
}

/// One output folder: killed at random moments until a run comes through. Returns how often it was killed.
#[expect(clippy::disallowed_methods, reason = "the moment of the kill is the point")]
fn killed_until_it_ends(
    corpus: &Corpus,
    way: Way,
    (whole, first): (&Path, &Output),
    (attempt, took, dice): (u32, Duration, &Dice),
) -> u32 {
    let expected = objects(whole);
    let (out, mut kills) = (corpus.out(&format!("killed-{attempt}")), 0);
    let last = loop {
        let before = (inodes(&out), state(&out));
        let mut child = corpus.command(way, &out).spawn().expect("it starts");
        if kills < 12 {
            std::thread::sleep(Duration::from_micros(dice.up_to(took.as_micros() as u64 * 6 / 10)));
            child.kill().expect("SIGKILL");
        }
        let ended = finish(child);
        for (name, inode) in &before.0 {
            assert_eq!(inodes(&out).get(name), Some(inode), "a finished shard is not written again");
        }
        if ended.status.code().is_some() {
            break ended;
        }
        kills += 1;
        if way == Way::Bare && objects(&out) == expected && state(&out).is_none() {
            // It had put away what it kept, and the kill only came before its exit. Another run is new work then, under new
            // numbers, so it must have said before that this one was done.
            assert_eq!(String::from_utf8_lossy(&ended.stdout), usual(whole, &out, first));
            return kills;
        }
        check_visible(&out, &expected);
        if let (Some((earlier, marks)), Some((lines, _)), Way::Digest) = (&before.1, &state(&out), way) {
            for key in continuable(earlier, marks) {
                assert_eq!(begun(lines, &key), begun(earlier, &key), "{key} is continued, not begun again");
            }
        }
    };
    assert_eq!(last.status.code(), Some(3), "{}", String::from_utf8_lossy(&last.stderr));
    assert!(objects(&out) == expected, "the same names and bytes as without an interruption");
    assert_eq!(names(&out), names(whole), "nothing stays behind after {kills} kills");
    let shown = String::from_utf8_lossy(&last.stdout).into_owned();
    match way {
        Way::Digest => {
            let result: Value = serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{e}: {shown}"));
            assert_eq!(result["files"], json!({"accepted": FILES + 1, "packed": FILES, "failed": 1}));
            let counted = &result["shards"];
            assert_eq!(counted["written"].as_u64().unwrap() + counted["already_there"].as_u64().unwrap(), 3);
        }
        Way::Bare | Way::People => {
            assert_eq!(shown, usual(whole, &out, first), "scripts read the same lines");
        }
    }
    kills
}

#[test]
fn killed_at_any_moment_the_same_command_goes_on_and_ends_with_the_same_bytes() {
    killed_again_and_again(Way::Digest);
}

#[test]
fn killed_at_any_moment_the_drop_in_ends_with_the_same_names_and_bytes() {
    killed_again_and_again(Way::Bare);
}

/// Starts a run and returns it once a part of a shard can be continued.
#[expect(clippy::disallowed_methods, reason = "another process writes the file that is waited for")]
fn until_a_part_is_kept(corpus: &Corpus, out: &Path) -> Child {
    let mut child = corpus.command(Way::Digest, out).spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_mins(1);
    while state(out).is_none_or(|(_, marks)| marks.is_empty()) {
        assert!(Instant::now() < deadline, "no part is kept");
        assert!(child.try_wait().expect("its state").is_none(), "it ended before a part was seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn ctrl_c_keeps_what_is_done_and_says_so() {
    let corpus = Corpus::new();
    let whole = corpus.out("whole");
    finish(corpus.command(Way::Digest, &whole).spawn().expect("it starts"));
    let out = corpus.out("out");
    let child = until_a_part_is_kept(&corpus, &out);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("SIGINT");
    let ended = finish(child);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted; what is done so far is kept"), "{said}");
    assert!(said.contains("run the same command again: it goes on where this one was"), "{said}");
    check_visible(&out, &objects(&whole));
    let (lines, marks) = state(&out).expect("its state is kept");
    let uploads = names(&out.join(".uploads"));
    assert_eq!(uploads.len(), continuable(&lines, &marks).len(), "only uploads that can be continued: {uploads:?}");

    let again = finish(corpus.command(Way::People, &out).spawn().expect("it starts"));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(3), "{said}");
    assert!(said.contains("an earlier run of the same was interrupted; going on where it was"), "{said}");
    assert!(objects(&out) == objects(&whole));
    assert_eq!(names(&out), names(&whole));
}

#[test]
fn another_input_is_another_run_and_disturbs_nothing() {
    let corpus = Corpus::new();
    let out = corpus.out("out");
    let mut child = until_a_part_is_kept(&corpus, &out);
    child.kill().expect("SIGKILL");
    finish(child);
    let (before, _) = state(&out).expect("its state is kept");
    let other = corpus.out("other");
    file(&other.join("note.txt"), b"another input");
    des(&["pack", text(&other), "--output-dir", text(&out)]).code(0);
    let (after, marks) = state(&out).expect("still kept");
    assert_eq!(before, after);
    assert!(!marks.is_empty());
    let last = finish(corpus.command(Way::Digest, &out).spawn().expect("it starts"));
    assert_eq!(last.status.code(), Some(3), "{}", String::from_utf8_lossy(&last.stderr));
    assert!(names(&out).iter().all(|name| name.ends_with(SHARD_SUFFIX)), "{:?}", names(&out));
    assert_eq!(shards(&out).len(), 4);
    let missing = des(&["--json", "verify", text(&out)]).code(0);
    assert!(missing.err.is_empty(), "{}", missing.err);
}

#[test]
fn two_of_the_same_at_once_do_not_disturb_each_other() {
    let corpus = Corpus::new();
    let out = corpus.out("out");
    let one = until_a_part_is_kept(&corpus, &out);
    let two = corpus.command(Way::Digest, &out).spawn().expect("it starts");
    for child in [one, two] {
        let ended = finish(child);
        assert_eq!(ended.status.code(), Some(3), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_eq!(shards(&out).len(), 3);
    assert_eq!(names(&out), shards(&out), "nothing stays behind");
}

#[test]
fn a_state_that_is_damaged_is_begun_again() {
    let corpus = Corpus::new();
    let whole = corpus.out("whole");
    finish(corpus.command(Way::Digest, &whole).spawn().expect("it starts"));
    for damage in ["marks", "parts", "journal"] {
        let out = corpus.out(damage);
        let mut child = until_a_part_is_kept(&corpus, &out);
        child.kill().expect("SIGKILL");
        finish(child);
        let run = names(&out.join(STATE)).into_iter().find(|name| name != "lock").expect("a run");
        let dir = out.join(STATE).join(run);
        match damage {
            "marks" => {
                for name in names(&dir).iter().filter(|name| name.contains("-0")) {
                    fs::write(dir.join(name), b"junk").expect("damage");
                }
            }
            "parts" => fs::remove_dir_all(out.join(".uploads")).expect("damage"),
            _ => fs::write(dir.join("journal"), b"{\"run\":{\"sequ").expect("damage"),
        }
        let last = finish(corpus.command(Way::Digest, &out).spawn().expect("it starts"));
        assert_eq!(last.status.code(), Some(3), "{damage}: {}", String::from_utf8_lossy(&last.stderr));
        assert!(objects(&out) == objects(&whole), "{damage}");
        if damage != "journal" {
            // Without its journal nobody knows whose the upload is.
            assert_eq!(names(&out), names(&whole), "{damage}");
        }
    }
}
