//! Keys: what each may do, how the file of keys changes under a running service, how many requests a key may make.

use std::path::{Path, PathBuf};
use std::time::Duration;

use des_shared::clock::{Clock, Dice};
use des_shared::config::Auth;
use des_shared::metrics::Metrics;
use des_shared::shard::hex32;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::support::{NOON, Place, Rig, Server, content, put_in_all_slots, v3};
use crate::keys::{KeysFile, Limit, NewKey, Scope, Scopes};

/// How long a change of the file may take to be seen.
const SOON: Duration = Duration::from_secs(20);

fn new_key(name: &str, scopes: &[Scope]) -> NewKey {
    NewKey::make(name, Scopes::of(scopes), None, None, &Dice::from_os()).expect("a key")
}

/// A service with a file of keys.
struct Keyed {
    rig: Rig,
    server: Server,
    folder: TempDir,
    client: Client,
    _place: Place,
}

impl Keyed {
    async fn new(text: &str) -> Self {
        let place = Place::new();
        put_in_all_slots(&place, "0000", &v3(7, &content(&[("a", b"first"), ("b", b"second")])));
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("keys"), text).expect("written");
        let mut rig = Rig::new(&place, 4);
        rig.config.keys.file = Some(KeysFile::open(folder.path().join("keys")).expect("a right file"));
        let server = rig.serve().await;
        Self { rig, server, folder, client: Client::new(), _place: place }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    fn request(&self, method: &str, path: &str, key: Option<&str>) -> RequestBuilder {
        let method: Method = method.parse().expect("a method");
        let request = self.client.request(method, self.server.url(path));
        match key {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        }
    }

    async fn send(&self, method: &str, path: &str, key: Option<&str>) -> Response {
        self.request(method, path, key).send().await.expect("an answer")
    }

    async fn status(&self, key: &str) -> u16 {
        self.send("GET", &format!("/files/a?created_at={NOON}"), Some(key)).await.status().as_u16()
    }

    /// Polls until a key is answered with a status.
    async fn until(&self, key: &str, status: u16) {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.status(key).await != status {
            assert!(tokio::time::Instant::now() < deadline, "{status} did not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn metric(&self, line: &str) -> bool {
        let text = self.send("GET", "/metrics", None).await.text().await.expect("text");
        text.lines().any(|other| other == line)
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, path).expect("renamed");
}

#[tokio::test]
async fn every_route_wants_its_scope() {
    let keys = [
        new_key("reader", &[Scope::Read]),
        new_key("deleter", &[Scope::Delete]),
        new_key("admin", &[Scope::Admin]),
        new_key("all", &[Scope::Read, Scope::Delete, Scope::Admin]),
    ];
    let text = keys.iter().map(|key| format!("{}\n", key.key)).collect::<Vec<_>>().concat();
    let keyed = Keyed::new(&format!("# who reads\n\n{text}")).await;
    let file = format!("/files/a?created_at={NOON}");
    let gone = format!("/files/nowhere?created_at={NOON}&deleted_by=ann&reason=asked");
    for (method, path, expected) in [
        ("GET", file.as_str(), [200, 403, 403, 200]),
        ("HEAD", &file, [200, 403, 403, 200]),
        ("DELETE", &gone, [403, 404, 403, 404]),
        ("GET", "/tombstones", [403, 200, 200, 200]),
        ("POST", "/files/batch", [0, 403, 403, 0]),
        ("POST", "/graphql", [415, 403, 403, 415]),
        ("GET", "/openapi.json", [0, 403, 403, 0]),
        ("GET", "/nothing", [404, 403, 403, 404]),
        ("GET", "/health/live", [200, 200, 200, 200]),
        ("GET", "/metrics", [200, 200, 200, 200]),
    ] {
        for (key, status) in keys.iter().zip(expected) {
            let answer = keyed.send(method, path, Some(&key.secret)).await;
            let got = answer.status().as_u16();
            // 0: whoever is let in finds what other parts of the service make of it.
            let right = if status == 0 { !matches!(got, 401 | 403) } else { got == status };
            assert!(right, "{method} {path} with {}: {got}", key.key.name);
            if got == 403 {
                let challenge = answer.headers()["www-authenticate"].to_str().expect("text").to_owned();
                assert!(challenge.starts_with("Bearer ") && challenge.contains("insufficient_scope"), "{challenge}");
                if method != "HEAD" {
                    let problem: Value = answer.json().await.expect("JSON");
                    assert_eq!(problem["type"], "/problems/scope-missing");
                    assert!(problem["detail"].as_str().expect("text").contains("scope"), "{problem}");
                }
            }
        }
        let without = keyed.send(method, path, None).await;
        let open = path.starts_with("/health") || path == "/metrics";
        assert_eq!(without.status(), if open { 200 } else { 401 }, "{method} {path}");
        if !open {
            assert_eq!(without.headers()["www-authenticate"], "Bearer realm=\"des\"");
        }
    }
    keyed.server.stop().await;
}

#[tokio::test]
async fn a_key_comes_in_either_header() {
    let key = new_key("reader", &[Scope::Read]);
    let keyed = Keyed::new(&key.key.to_string()).await;
    let path = format!("/files/a?created_at={NOON}");
    let with = |name: &'static str, value: String| keyed.request("GET", &path, None).header(name, value).send();
    let secret = &key.secret;
    let digest = key.key.to_string().rsplit_once('=').expect("a digest").1.to_owned();
    for (name, value, status) in [
        ("authorization", format!("Bearer {secret}"), 200),
        ("authorization", format!("bearer {secret}"), 200),
        ("x-api-key", secret.clone(), 200),
        ("authorization", secret.clone(), 401),
        ("authorization", format!("Basic {secret}"), 401),
        ("authorization", "Bearer ".to_owned(), 401),
        ("x-api-key", secret[..secret.len() - 1].to_owned(), 401),
        ("x-api-key", format!("{secret}x"), 401),
        ("x-api-key", secret.to_lowercase(), 401),
        ("x-api-key", digest, 401),
        ("x-api-key", String::new(), 401),
    ] {
        let answer = with(name, value.clone()).await.expect("an answer");
        assert_eq!(answer.status(), status, "{name}: {value}");
        if status == 401 && answer.headers()["www-authenticate"] != "Bearer realm=\"des\"" {
            assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"des\", error=\"invalid_token\"");
        }
    }
    keyed.server.stop().await;
}

#[tokio::test]
async fn short_keys_are_not_taken_whatever_the_file_says() {
    let digest = |key: &str| hex32(&Sha256::digest(key.as_bytes()).into());
    let (short, long) = ("x".repeat(31), "y".repeat(32));
    let keyed = Keyed::new(&format!("short read sha256={}\nlong read sha256={}", digest(&short), digest(&long))).await;
    assert_eq!((keyed.status(&short).await, keyed.status(&long).await), (401, 200));
    keyed.server.stop().await;
}

#[tokio::test]
async fn the_file_changes_under_a_running_service() {
    let (old, new) = (new_key("old", &[Scope::Read]), new_key("new", &[Scope::Read]));
    let keyed = Keyed::new(&format!("{}\n", old.key)).await;
    assert_eq!((keyed.status(&old.secret).await, keyed.status(&new.secret).await), (200, 401));
    // Both for a while, then the new one alone.
    replace(&keyed.file(), &format!("{}\n{}\n", old.key, new.key));
    keyed.until(&new.secret, 200).await;
    assert_eq!(keyed.status(&old.secret).await, 200);
    replace(&keyed.file(), &format!("{}\n", new.key));
    keyed.until(&old.secret, 401).await;
    assert!(keyed.metric("des_keys_file_broken 0").await);
    assert!(keyed.metric("des_keys_file_reloads_total{outcome=\"ok\"} 2").await);
    // What cannot be used changes nothing, and shows.
    let half = &format!("{}\n{}", new.key, old.key)[..120];
    for (text, reloads) in [(half, 1), ("new read sha256=oops", 2)] {
        replace(&keyed.file(), text);
        let line = format!("des_keys_file_reloads_total{{outcome=\"broken\"}} {reloads}");
        let deadline = tokio::time::Instant::now() + SOON;
        while !keyed.metric(&line).await {
            assert!(tokio::time::Instant::now() < deadline, "{line}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(keyed.metric("des_keys_file_broken 1").await);
        assert_eq!((keyed.status(&new.secret).await, keyed.status(&old.secret).await), (200, 401));
    }
    std::fs::remove_file(keyed.file()).expect("removed");
    tokio::time::timeout(SOON, async {
        while !keyed.metric("des_keys_file_reloads_total{outcome=\"broken\"} 3").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a file that is gone is broken");
    assert_eq!(keyed.status(&new.secret).await, 200);
    // A file without keys is a right one: nobody is let in.
    replace(&keyed.file(), "# nobody\n");
    keyed.until(&new.secret, 401).await;
    assert!(keyed.metric("des_keys_file_broken 0").await && keyed.metric("des_keys 0").await);
    keyed.server.stop().await;
}

#[tokio::test]
async fn a_key_is_good_until_it_expires() {
    let dice = Dice::from_os();
    let now = Rig::new(&Place::new(), 4).clock.now_ms();
    let key = NewKey::make("brief", Scopes::of(&[Scope::Read]), Some(now + 60_000), None, &dice).expect("a key");
    let keyed = Keyed::new(&key.key.to_string()).await;
    keyed.rig.clock.advance(Duration::from_millis(59_999));
    assert_eq!(keyed.status(&key.secret).await, 200);
    keyed.rig.clock.advance(Duration::from_millis(1));
    let answer = keyed.send("GET", &format!("/files/a?created_at={NOON}"), Some(&key.secret)).await;
    assert_eq!(answer.status(), 401);
    assert!(answer.text().await.expect("text").contains("expired"));
    keyed.server.stop().await;
}

#[tokio::test]
async fn a_key_makes_as_many_requests_as_it_may() {
    let limit = |per_second, burst| Some(Limit { per_second, burst });
    let make = |name, limit| NewKey::make(name, Scopes::of(&[Scope::Read]), None, limit, &Dice::from_os());
    let (key, other) = (make("three", limit(1, 3)).expect("a key"), make("free", None).expect("a key"));
    let text = format!("{}\n{}\n", key.key, other.key);
    let keyed = Keyed::new(&text).await;
    for expected in [200, 200, 200, 429, 429] {
        assert_eq!(keyed.status(&key.secret).await, expected);
    }
    assert_eq!(keyed.status(&other.secret).await, 200, "each key has its own");
    let answer = keyed.send("GET", &format!("/files/a?created_at={NOON}"), Some(&key.secret)).await;
    assert_eq!(answer.headers()["retry-after"], "1");
    let problem: Value = answer.json().await.expect("JSON");
    assert_eq!((&problem["type"], &problem["status"]), (&json!("/problems/rate-limited"), &json!(429)));
    // A change of the file that leaves the key as it is fills nothing.
    replace(&keyed.file(), &format!("# changed\n{text}"));
    let deadline = tokio::time::Instant::now() + SOON;
    while !keyed.metric("des_keys_file_reloads_total{outcome=\"ok\"} 1").await {
        assert!(tokio::time::Instant::now() < deadline, "the change is seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(keyed.status(&key.secret).await, 429);
    keyed.rig.clock.advance(Duration::from_secs(1));
    assert_eq!((keyed.status(&key.secret).await, keyed.status(&key.secret).await), (200, 429));
    assert!(keyed.metric("des_requests_refused_total{why=\"rate\"} 5").await);
    keyed.server.stop().await;
}

#[tokio::test]
async fn a_deletion_says_with_which_key_it_was_made() {
    let key = new_key("clean-up", &[Scope::Delete]);
    let keyed = Keyed::new(&key.key.to_string()).await;
    let path = format!("/files/a?created_at={NOON}&deleted_by=ann&reason=asked");
    let buried: Value = keyed.send("DELETE", &path, Some(&key.secret)).await.json().await.expect("JSON");
    assert_eq!((&buried["status"], &buried["key_name"]), (&json!("tombstoned"), &json!("clean-up")));
    let listed = keyed.send("GET", "/tombstones", Some(&key.secret)).await.text().await.expect("text");
    assert!(listed.contains("clean-up") && !listed.contains(&key.secret[..20]), "{listed}");
    keyed.server.stop().await;
}

#[tokio::test]
async fn keys_of_the_environment_do_what_they_did() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a", b"first")])));
    let mut rig = Rig::new(&place, 4);
    rig.config.listen.auth = Auth::new(vec!["reads-this".to_owned(), "does-both".to_owned()]);
    rig.config.deleters = Some(Auth::new(vec!["deletes-this".to_owned(), "does-both".to_owned()]));
    let server = rig.serve().await;
    let client = Client::new();
    let read = format!("/files/a?created_at={NOON}");
    let delete = format!("/files/nowhere?created_at={NOON}&deleted_by=ann&reason=asked");
    for (key, method, path, status) in [
        ("reads-this", "GET", read.as_str(), 200),
        ("reads-this", "GET", "/tombstones", 200),
        ("reads-this", "DELETE", &delete, 403),
        ("deletes-this", "GET", &read, 200),
        ("deletes-this", "GET", "/tombstones", 200),
        ("deletes-this", "DELETE", &delete, 404),
        ("does-both", "GET", &read, 200),
        ("does-both", "DELETE", &delete, 404),
        ("does-neither", "GET", &read, 401),
        ("does-neither", "DELETE", &delete, 401),
    ] {
        let request = client.request(method.parse().expect("a method"), server.url(path)).header("X-API-Key", key);
        assert_eq!(request.send().await.expect("an answer").status(), status, "{key}: {method} {path}");
    }
    server.stop().await;
    // Nobody needs a key to read, and a wrong one does no harm; deleting wants one.
    rig.config.listen.auth = Auth::default();
    rig.deps.metrics = Metrics::new();
    let server = rig.serve().await;
    for (key, method, path, status) in [
        ("", "GET", read.as_str(), 200),
        ("does-neither", "GET", &read, 200),
        ("", "GET", "/tombstones", 200),
        ("", "DELETE", &delete, 401),
        ("reads-this", "DELETE", &delete, 401),
        ("deletes-this", "DELETE", &delete, 404),
    ] {
        let request = client.request(method.parse().expect("a method"), server.url(path));
        let request = if key.is_empty() { request } else { request.header("X-API-Key", key) };
        assert_eq!(request.send().await.expect("an answer").status(), status, "{key}: {method} {path}");
    }
    server.stop().await;
}

#[test]
fn a_file_is_right_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("keys");
    let (a, b) = (new_key("a", &[Scope::Read]), new_key("b", &[Scope::Delete]));
    let open = |text: &[u8]| {
        std::fs::write(&path, text).expect("written");
        KeysFile::open(path.clone()).map(|file| file.keys().len()).map_err(|e| e.to_string())
    };
    assert_eq!(open(format!("{}\r\n  {}  \n", a.key, b.key).as_bytes()), Ok(2));
    for (text, why) in [
        (format!("{}\n{}", a.key, &b.key.to_string()[..40]), "line 2"),
        (format!("{}\n\n{}", a.key, a.key), "line 3: the name a stands on an earlier line"),
        (format!("{}\nother{}", a.key, &a.key.to_string()[1..]), "the same key"),
        (a.secret.clone(), "line 1"),
        ("#\n".repeat(1 << 20), "larger than"),
    ] {
        let told = open(text.as_bytes()).expect_err(why);
        assert!(told.contains(why) && told.contains("keys") && !told.contains(&a.secret), "{told}");
    }
    assert!(open(b"\xff\xfe").expect_err("no text").contains("UTF-8"));
    let line = |n: u16| format!("k{n} read sha256={}\n", hex32(&Sha256::digest(n.to_le_bytes()).into()));
    let many = (0..=1000).map(line).collect::<Vec<_>>().concat();
    assert!(open(many.as_bytes()).expect_err("many").contains("1000 keys"));
    assert!(KeysFile::open(folder.path().join("none")).expect_err("none").to_string().contains("none"));
}
