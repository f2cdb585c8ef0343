//! Signed URLs: what one lets in, and that nothing else gets in with it.

use std::time::Duration;

use axum::http::Uri;
use des_shared::clock::{Clock, Dice};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use reqwest::{Client, Method};
use serde_json::Value;

use super::support::{NOON, Place, Rig, content, put_in_all_slots, v3};
use crate::keys::{NewKey, Scope, Scopes, SignError, UrlKeys};

const SECRETS: &str = "new:0123456789abcdef0123456789abcdef,old:abcdefghabcdefghabcdefghabcdefgh";
const HOUR: u64 = 3600;

fn keys() -> UrlKeys {
    UrlKeys::parse(SECRETS).expect("two keys")
}

fn good(target: &str, now_s: u64) -> bool {
    let uri: Uri = target.parse().expect("a request target");
    keys().verify(&uri, now_s * 1000, 24 * HOUR).is_ok()
}

#[tokio::test]
async fn a_signed_url_is_as_good_as_a_key_for_one_file() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a/b ü", b"first"), ("other", b"second")])));
    let mut rig = Rig::new(&place, 4);
    rig.config.keys.signing = keys();
    rig.config.keys.longest_signed = Duration::from_secs(2 * HOUR);
    let server = rig.serve().await;
    let client = Client::new();
    let now_s = rig.clock.now_ms() / 1000;
    let target = format!("/files/a/b%20%C3%BC?created_at={NOON}");
    let ask = async |method: Method, target: &str| {
        let answer = client.request(method, server.url(target)).send().await.expect("an answer");
        let (status, text) = (answer.status().as_u16(), answer.text().await.expect("text"));
        let kind = serde_json::from_str::<Value>(&text).map(|problem| problem["type"].to_string()).unwrap_or(text);
        (status, kind)
    };
    let signed = keys().sign(None, &target, now_s + HOUR).expect("signed");
    assert_eq!(ask(Method::GET, &signed).await, (200, "first".to_owned()));
    assert_eq!(ask(Method::HEAD, &signed).await.0, 200);
    assert_eq!(ask(Method::GET, &signed.replace("a/b%20%C3%BC", "%61%2Fb%20%c3%bc")).await.0, 200, "the same file");
    let by_old = keys().sign(Some("old"), &target, now_s + HOUR).expect("signed");
    assert_eq!(ask(Method::GET, &by_old).await.0, 200, "while secrets are changed both are good");
    assert_eq!(ask(Method::DELETE, &format!("{signed}&deleted_by=a&reason=b")).await.0, 401);
    for (wrong, kind) in [
        (signed.replace("a/b%20%C3%BC", "other"), "signature-wrong"),
        (signed.replace("12:00", "12:01"), "signature-wrong"),
        (signed.replace("key=new", "key=old"), "signature-wrong"),
        (signed.replace("key=new", "key=none"), "signature-wrong"),
        (
            signed.replace(&format!("expires={}", now_s + HOUR), &format!("expires={}", now_s + 2 * HOUR)),
            "signature-wrong",
        ),
        (format!("{signed}&download=1"), "signature-wrong"),
        (signed.replace("&key=new", ""), "signature-wrong"),
        (signed.replace("&signature=", "&signature=A"), "signature-wrong"),
        (format!("{target}&signature="), "signature-wrong"),
        (format!("{signed}="), "signature-wrong"),
        (keys().sign(None, &target, now_s).expect("signed"), "signature-expired"),
        (keys().sign(None, &target, now_s + 2 * HOUR + 1).expect("signed"), "signature-too-long"),
        (keys().sign(None, &target, u64::MAX).expect("signed"), "signature-too-long"),
    ] {
        assert_eq!(ask(Method::GET, &wrong).await, (403, format!("\"/problems/{kind}\"")), "{wrong}");
    }
    // What is signed does not open the rest of the service, and what is not signed stays shut.
    assert_eq!(ask(Method::GET, &target).await.0, 401);
    let query = signed.split_once('?').expect("a query").1;
    for path in ["/tombstones", "/graphql", "/files"] {
        assert_eq!(ask(Method::GET, &format!("{path}?{query}")).await.0, 401, "{path}");
    }
    rig.clock.advance(Duration::from_secs(HOUR));
    assert_eq!(ask(Method::GET, &signed).await.0, 403, "an hour later");
    server.stop().await;
}

#[test]
fn what_is_no_file_cannot_be_signed() {
    let sign = |target: &str| keys().sign(None, target, 1);
    assert!(matches!(sign("/files/a"), Err(SignError::NoFile(why)) if why.contains("created_at is missing")));
    assert!(matches!(sign("/files/?created_at=2025-03-10"), Err(SignError::NoFile(_))));
    assert!(matches!(sign("/files/a?created_at=2025-03-10&expires=3"), Err(SignError::Signed("expires"))));
    assert!(matches!(keys().sign(Some("x"), "/files/a?created_at=2025-03-10", 1), Err(SignError::NoKey(Some(_)))));
    assert!(matches!(UrlKeys::default().sign(None, "/files/a?created_at=2025-03-10", 1), Err(SignError::NoKey(None))));
}

#[test]
fn secrets_are_long_and_are_not_told() {
    for (text, why) in [
        ("", "pairs"),
        ("hunter2hunter2hunter2hunter2hunter2", "id:secret"),
        ("a:hunter2", "32 characters"),
        ("a b:hunter2hunter2hunter2hunter2hunter2", "the id is"),
        ("a:hunter2hunter2hunter2hunter2hunter2,a:hunter2hunter2hunter2hunter2hunter3", "twice"),
    ] {
        let told = UrlKeys::parse(text).expect_err(why);
        assert!(told.contains(why) && !told.contains("hunter"), "{told}");
    }
    assert!(!format!("{:?}", keys()).contains("abcdefgh"));
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the uid is, its URL is good in every spelling and for nothing else.
    #[test]
    fn a_signature_is_of_one_request(
        uid in "[a-z/%+ é日.&=?#]{1,12}", name in "[a-z ü&=]{0,8}", at in any::<prop::sample::Index>(), with in "[!-~]",
    ) {
        let now_s = 1_750_000_000;
        let target = format!("/files/{}?created_at={NOON}&filename={}&x=1", encoded(&uid), encoded(&name));
        let signed = keys().sign(None, &target, now_s + HOUR).expect("signed");
        prop_assert!(good(&signed, now_s));
        prop_assert!(!good(&signed, now_s + HOUR));
        // Other spellings: plain where a path may have it, lower-case digits, another order of the parameters.
        let plain = signed.replace("%2E", ".").replace("%2F", "/").replace("%2B", "%2b");
        prop_assert!(good(&plain, now_s), "{}", plain);
        let (path, query) = signed.split_once('?').expect("a query");
        let mut pairs: Vec<&str> = query.split('&').collect();
        let turn = at.index(pairs.len());
        pairs.rotate_left(turn);
        let turned = [path, "?", &pairs.join("&")].concat();
        prop_assert!(good(&turned, now_s), "{}", turned);
        // One character changed makes another request or none. What means the same is the same.
        let place = at.index(signed.len());
        let mut changed = signed.clone();
        changed.replace_range(place..=place, &with);
        if let Ok(uri) = changed.parse::<Uri>() {
            let same = uri.path().starts_with("/files/") && meaning(&uri) == meaning(&signed.parse().expect("a target"));
            prop_assert_eq!(keys().verify(&uri, now_s * 1000, 24 * HOUR).is_ok(), same, "{} {}", signed, changed);
        }
        // A parameter taken away, doubled or added.
        for at in 0..pairs.len() {
            let mut fewer = pairs.clone();
            let taken = fewer.remove(at);
            let (without, twice) = ([path, "?", &fewer.join("&")].concat(), [&signed, "&", taken].concat());
            prop_assert!(!good(&without, now_s), "{}", without);
            prop_assert!(!good(&twice, now_s), "{}", twice);
        }
        let more = [&signed, "&y"].concat();
        prop_assert!(!good(&more, now_s), "{}", more);
    }
}

/// What a request asks for, by a way of its own: uid, and parameters decoded and sorted.
fn meaning(uri: &Uri) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let decode = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut parameters: Vec<(String, Vec<u8>)> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| match name {
            // These have one spelling.
            "key" | "expires" | "signature" => (name.to_owned(), value.as_bytes().to_vec()),
            _ => (name.to_owned(), decode(&value.replace('+', " "))),
        })
        .collect();
    parameters.sort();
    (decode(&uri.path()["/files/".len()..]), parameters)
}

#[tokio::test]
async fn beside_signatures_keys_stay_good() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a", b"first")])));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("keys");
    let key = NewKey::make("reader", Scopes::of(&[Scope::Read]), None, None, &Dice::from_os()).expect("a key");
    std::fs::write(&path, key.key.to_string()).expect("written");
    let mut rig = Rig::new(&place, 4);
    rig.config.keys.signing = keys();
    rig.config.keys.file = Some(crate::keys::KeysFile::open(path).expect("a right file"));
    let server = rig.serve().await;
    let client = Client::new();
    let url = server.url(&format!("/files/a?created_at={NOON}"));
    let get = |url: String, key: &str| client.get(url).header("X-API-Key", key.to_owned()).send();
    assert_eq!(get(url.clone(), &key.secret).await.expect("an answer").status(), 200);
    assert_eq!(get(format!("{url}&signature=old"), &key.secret).await.expect("an answer").status(), 200);
    assert_eq!(get(url.clone(), "another").await.expect("an answer").status(), 401);
    let answer = client.get(&url).send().await.expect("an answer");
    assert!(answer.text().await.expect("text").contains("signed URL"));
    server.stop().await;
}
