//! `des key new` and `des sign`.

use des_retriever::{KeysFile, Scope, Scopes};

use crate::support::{Ran, des, des_command};

const SECRETS: &str = "a:0123456789abcdef0123456789abcdef";

#[test]
fn a_new_key_is_shown_once_with_its_line() {
    let args =
        ["--json", "key", "new", "--name", "web", "--scope", "read,delete", "--rate", "20", "--expires-in", "90d"];
    let (made, again) = (des(&args).code(0).json(), des(&args).code(0).json());
    assert_ne!(made["key"], again["key"]);
    let (key, line) = (made["key"].as_str().unwrap(), made["line"].as_str().unwrap());
    assert!(line.starts_with("web read,delete expires=") && line.contains(" rate=20 burst=20 sha256="), "{line}");
    assert!(key.starts_with("des_") && key.len() >= 32 && !line.contains(&key[4..]), "{key} {line}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys"), line).unwrap();
    let file = KeysFile::open(dir.path().join("keys")).unwrap();
    assert_eq!(file.keys()[0].scopes, Scopes::of(&[Scope::Read, Scope::Delete]));
    let text = des(&["key", "new", "--name", "web", "--scope", "admin"]).code(0);
    assert!(text.out.starts_with("key   des_") && text.out.contains("\nline  web admin sha256="), "{}", text.out);
    for wrong in [
        &["--name", "web"][..],
        &["--name", "a b", "--scope", "read"],
        &["--name", "web", "--scope", "write"],
        &["--name", "web", "--scope", "read", "--burst", "3"],
        &["--name", "web", "--scope", "read", "--expires-in", "soon"],
    ] {
        assert!(des(&[&["key", "new"], wrong].concat()).code(2).out.is_empty(), "{wrong:?}");
    }
}

fn sign(args: &[&str]) -> Ran {
    Ran::of(des_command().arg("sign").args(args).env("DES_URL_SIGNING_KEYS", SECRETS).output().expect("des runs"))
}

#[test]
fn urls_are_signed_from_a_uid_or_a_url() {
    let by_uid = sign(&["a/b ü", "--created-at", "2025-03-10", "--retriever", "https://h/des"]).code(0).out;
    assert!(by_uid.starts_with("https://h/des/files/a%2Fb%20%C3%BC?created_at=2025-03-10&expires="), "{by_uid}");
    assert!(by_uid.contains("&key=a&signature="), "{by_uid}");
    let by_url = sign(&["https://h:1/files/a%2Fb?created_at=2025-03-10&x=1", "--expires-in", "15m"]).code(0).out;
    assert!(by_url.starts_with("https://h:1/files/a%2Fb?created_at=2025-03-10&x=1&expires="), "{by_url}");
    for (args, why) in [
        (vec!["a"], "--created-at"),
        (vec!["https://h/files/a"], "created_at is missing"),
        (vec!["https://h/other?created_at=2025-03-10"], "/files/"),
        (vec!["a", "--created-at", "yesterday"], "--created-at"),
        (vec!["a", "--created-at", "2025-03-10", "--key-id", "z"], "\"z\""),
        (vec![by_url.trim()], "has expires already"),
    ] {
        let ran = sign(&args).code(2);
        assert!(ran.err.contains(why) && !ran.err.contains("0123456789"), "{}", ran.err);
    }
    assert!(des(&["sign", "a", "--created-at", "2025-03-10"]).code(2).err.contains("DES_URL_SIGNING_KEYS"));
}
