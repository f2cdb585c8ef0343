//! What only a mount or another user's file can show. Run in a user namespace of its own (`unshare`, of util-linux), which
//! some machines and containers forbid: so these are ignored unless asked for, and `.ci/run` asks for them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::support::{Ran, corpus, file, text};

/// Runs a shell script as the root of a namespace; `$DES` is the program.
fn in_a_namespace(script: &str, env: &[(&str, &str)]) -> Ran {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-eu", "-c", script]);
    command.env("DES", env!("CARGO_BIN_EXE_des")).envs(env.iter().copied());
    Ran::of(command.output().expect("unshare runs"))
}

#[test]
#[ignore = "needs user namespaces"]
fn a_full_disk_is_named_leaves_nothing_and_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let noise: Vec<u8> = (0..3_000_000_u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    file(&input.join("large.bin"), &noise);
    fs::create_dir(&out).unwrap();
    let script = "
        mount -t tmpfs -o size=1m full \"$OUT\"
        code=0; $DES pack \"$IN\" --codec none --output-dir \"$OUT\" || code=$?
        echo \"code $code\"; ls -A \"$OUT\"
        mount -o remount,size=8m \"$OUT\"
        $DES pack \"$IN\" --codec none --output-dir \"$OUT\"
        $DES verify \"$OUT\"";
    let ran = in_a_namespace(script, &[("IN", text(&input)), ("OUT", text(&out))]).code(0);
    assert!(ran.err.contains("No space left on device"), "{}", ran.err);
    assert!(ran.err.contains("free some space there or choose another place"), "{}", ran.err);
    // Nothing stands between the exit code and the second run: the full folder was left empty.
    assert!(ran.out.starts_with("code 1\npacked into"), "{}", ran.out);
    assert!(ran.out.contains("1 accepted = 1 packed + 0 failed"), "{}", ran.out);
}

#[test]
#[ignore = "needs user namespaces"]
fn an_unreadable_source_is_in_the_failure_list_whoever_runs_the_tests() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let files = corpus(&input);
    let secret = input.join("secret.txt");
    file(&secret, b"not for you");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    if nix::unistd::geteuid().is_root() {
        // The root of a namespace has no power over files of users that are not mapped into it.
        chown(&secret, Some(12_345), Some(12_345)).unwrap();
    }
    let script = "code=0; $DES --json pack \"$IN\" --output-dir \"$OUT\" --failures \"$LIST\" || code=$?; exit $code";
    let list = dir.path().join("failures.ndjson");
    let env = [("IN", text(&input)), ("OUT", text(&out)), ("LIST", text(&list))];
    let ran = in_a_namespace(script, &env).code(3);
    assert_eq!(ran.json()["files"]["packed"], files.len());
    assert_eq!(ran.json()["files"]["failed"], 1);
    let line: serde_json::Value = serde_json::from_str(fs::read_to_string(&list).unwrap().trim()).unwrap();
    assert_eq!(line["reason"], "unreadable");
    assert!(line["message"].as_str().unwrap().contains("Permission denied"), "{line}");
}
