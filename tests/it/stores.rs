//! Stores on a real S3 server, and on servers that are not there or not honest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use des_shared::clock::Dice;
use des_shared::retry::RetryPolicy;
use des_shared::store::backend::{Backend, Layers};
use des_shared::store::s3::{S3Config, S3Credentials, S3Store, S3Timeouts};
use des_shared::store::{ByteRange, ObjectStore, SharedStore, StoreErrorKind, WriteMode, WriteOptions, contract};
use des_tests::proxy::{Proxy, Traffic};
use des_tests::servers::SeaweedFs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn seaweed() -> Arc<SeaweedFs> {
    SeaweedFs::shared().await.unwrap_or_else(|e| panic!("{e}"))
}

async fn open(config: &S3Config) -> S3Store {
    S3Store::connect(config).await.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_keeps_the_contract() {
    let server = seaweed().await;
    let bucket = server.new_bucket().await.expect("a bucket");
    let made = AtomicU64::new(0);
    contract::run(
        async || {
            // Prefixes of one bucket: what the neighbours wrote must not be seen.
            let prefix = format!("store-{}", made.fetch_add(1, Ordering::Relaxed));
            Arc::new(open(&S3Config { prefix, ..server.config(&bucket) }).await) as SharedStore
        },
        contract::Completion::LookThenWrite,
    )
    .await;
    assert!(made.into_inner() > 15, "every check ran");
}

#[tokio::test]
async fn prefixes_are_added_and_stripped() {
    let server = seaweed().await;
    let bucket = server.new_bucket().await.expect("a bucket");
    let whole = open(&server.config(&bucket)).await;
    let part = open(&S3Config { prefix: "des-a".into(), ..server.config(&bucket) }).await;
    part.put("20240101_0A_0000.des", Bytes::from_static(b"x"), &WriteOptions::create_only()).await.expect("put");
    whole.put("des-ab", Bytes::from_static(b"neighbour"), &WriteOptions::create_only()).await.expect("put");
    let keys = async |store: &S3Store| {
        let page = store.list("", None, 10).await.expect("list");
        page.objects.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(&part).await, ["20240101_0A_0000.des"]);
    assert_eq!(keys(&whole).await, ["des-a/20240101_0A_0000.des", "des-ab"]);
    assert_eq!(part.url(), format!("s3://{bucket}/des-a"));
}

#[tokio::test]
async fn a_wrong_bucket_is_told() {
    let server = seaweed().await;
    let store = open(&server.config("no-such-bucket")).await;
    for error in [
        store.check().await.expect_err("check"),
        store.list("", None, 1).await.expect_err("list"),
        store.list_uploads("", 1000).await.expect_err("list uploads"),
        store.get("k", ByteRange::Full).await.map(drop).expect_err("get"),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
        assert!(error.to_string().contains("s3://no-such-bucket"), "{error}");
    }
    // SeaweedFS asks first whether this user may make the bucket that it would need; AWS says that there is none.
    let options = WriteOptions::create_only();
    for error in [
        store.put("k", Bytes::from_static(b"x"), &options).await.expect_err("put"),
        store.probe("").await.expect_err("probe"),
    ] {
        assert!(matches!(error.kind, StoreErrorKind::NoSuchBucket | StoreErrorKind::Denied), "{error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_told_without_showing_them() {
    let server = seaweed().await;
    let bucket = server.new_bucket().await.expect("a bucket");
    let right = server.config(&bucket).credentials.expect("credentials");
    let wrong_key = S3Credentials { access_key_id: "AKIAWRONGKEY".into(), ..right.clone() };
    let wrong_secret = S3Credentials { secret_access_key: "wrong-secret".into(), ..right };
    for credentials in [wrong_key, wrong_secret] {
        let store = open(&S3Config { credentials: Some(credentials), ..server.config(&bucket) }).await;
        let options = WriteOptions::overwrite();
        for error in [
            store.check().await.expect_err("check"),
            store.head("k").await.expect_err("head"),
            store.get("k", ByteRange::Full).await.map(drop).expect_err("get"),
            store.put("k", Bytes::from_static(b"x"), &options).await.expect_err("put"),
        ] {
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            let shown = format!("{error} {error:?} {store:?}");
            for secret in ["AKIAWRONGKEY", "wrong-secret", "des-test-secret"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_quick() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let config = S3Config { endpoint_url: Some(endpoint), ..seaweed().await.config("bucket") };
    let began = Instant::now();
    let error = open(&config).await.check().await.expect_err("nobody listens");
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("refused"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_one_attempt() {
    let server = seaweed().await;
    let bucket = server.new_bucket().await.expect("a bucket");
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let timeouts = S3Timeouts { attempt: Duration::from_millis(400), ..S3Timeouts::default() };
    let endpoint_url = Some(format!("http://127.0.0.1:{}", proxy.port()));
    let store = open(&S3Config { timeouts, endpoint_url, ..server.config(&bucket) }).await;
    store.check().await.expect("through the proxy");
    proxy.set(Traffic::Blackhole);
    let began = Instant::now();
    let error = store.check().await.expect_err("no answer");
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    let took = began.elapsed();
    assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&took), "one attempt, not several: {took:?}");
    proxy.set(Traffic::Pass);
    proxy.cut();
    store.check().await.expect("well again, on a new connection");
}

#[tokio::test]
async fn the_layers_try_again_where_the_store_does_not() {
    let server = seaweed().await;
    let bucket = server.new_bucket().await.expect("a bucket");
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let endpoint_url = Some(format!("http://127.0.0.1:{}", proxy.port()));
    let config = S3Config { endpoint_url, ..server.config(&bucket) };
    let bare = open(&config).await;
    let retry = RetryPolicy { attempts: 50, ..RetryPolicy::PATIENT };
    let layers = Layers { retry, ..Layers::new(Arc::new(Dice::seeded(1))) };
    let layered = Backend::S3(config).open(&layers).await.expect("a store");
    proxy.set(Traffic::Refuse);
    assert_eq!(bare.head("k").await.expect_err("refused").kind, StoreErrorKind::Unavailable);
    let outage = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.set(Traffic::Pass);
    };
    let (head, ()) = tokio::join!(layered.head("k"), outage);
    assert_eq!(head.expect_err("it was asked in the end").kind, StoreErrorKind::NotFound);
}

/// Runs in a process of its own: it must not find the credentials of whoever runs the tests.
#[tokio::test]
async fn missing_credentials_are_told() {
    let server = seaweed().await;
    let output = tokio::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "stores::asks_without_credentials", "--ignored", "--nocapture"])
        .env_clear()
        .env("DES_TEST_ENDPOINT", server.endpoint())
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .output()
        .await
        .expect("start");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("kind=Denied"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("AWS_ACCESS_KEY_ID"), "it says what to set: {text}");
}

/// Not a test of its own: see [`missing_credentials_are_told`].
#[tokio::test]
#[ignore = "started by missing_credentials_are_told"]
async fn asks_without_credentials() {
    let endpoint_url = Some(std::env::var("DES_TEST_ENDPOINT").expect("set by the test"));
    let error = open(&S3Config { endpoint_url, ..S3Config::new("bucket") }).await.check().await.expect_err("refused");
    println!("\nkind={:?} {error}", error.kind);
}

/// Serves one canned answer to every request, whatever it asks for.
async fn canned(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = vec![0; 16 * 1024];
            // The head of a small request comes in one piece on a loopback; its content does not matter.
            if client.read(&mut request).await.is_ok_and(|n| n > 0) {
                let _ = client.write_all(answer.as_bytes()).await;
                let _ = client.shutdown().await;
            }
        }
    });
    endpoint
}

#[tokio::test]
async fn answers_are_not_trusted() {
    use StoreErrorKind as K;
    let span = || ByteRange::Span(2..5);
    let cases = [
        // The range ignored: the whole object, other people's files included.
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcdefghij", span(), K::Invalid),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcdefghij", ByteRange::Suffix(3), K::Invalid),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", span(), K::InvalidRange),
        ("HTTP/1.1 206 Partial\r\ncontent-length: 3\r\ncontent-range: bytes 3-5/10\r\n\r\ndef", span(), K::Invalid),
        ("HTTP/1.1 206 Partial\r\ncontent-length: 3\r\ncontent-range: bytes 2-4/10\r\n\r\nc", span(), K::Unavailable),
        ("HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n", span(), K::Unavailable),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 5\r\n\r\n<html", span(), K::Unavailable),
        ("HTTP/1.1 507 Full\r\ncontent-length: 0\r\n\r\n", span(), K::Full),
        ("HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n", span(), K::Denied),
        ("this is not HTTP\r\n\r\n", span(), K::Unavailable),
    ];
    for (answer, range, kind) in cases {
        let endpoint_url = Some(canned(answer).await);
        let config = S3Config { endpoint_url, ..seaweed().await.config("bucket") };
        let store = open(&config).await;
        let error = store.get("k", range).await.expect_err(answer);
        assert_eq!(error.kind, kind, "{answer:?}: {error}");
    }
    let right = "HTTP/1.1 206 Partial\r\ncontent-length: 3\r\ncontent-range: bytes 2-4/10\r\n\r\ncde";
    let config = S3Config { endpoint_url: Some(canned(right).await), ..seaweed().await.config("bucket") };
    assert_eq!(open(&config).await.get("k", span()).await.expect("right").bytes, "cde");
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out_and_still_replaces_nothing() {
    let server = SeaweedFs::start_open().await.expect("a server");
    let bucket = server.new_bucket().await.expect("a bucket");
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    proxy.set(Traffic::LoseConditions);
    let endpoint_url = Some(format!("http://127.0.0.1:{}", proxy.port()));
    let store = open(&S3Config { endpoint_url, ..server.config(&bucket) }).await;
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    // Without a look first, the promise of the caller's options is broken by the server.
    store.put("unseen", first.clone(), &WriteOptions::create_only()).await.expect("put");
    store.put("unseen", second.clone(), &WriteOptions::create_only()).await.expect("the server ignores the condition");
    let found = store.probe("scratch/").await.expect("probe");
    assert_eq!((found.conditional_put, found.conditional_complete), (false, false));
    store.put("k", first.clone(), &WriteOptions::create_only()).await.expect("put");
    let refused = store.put("k", second.clone(), &WriteOptions::create_only()).await.expect_err("the key is taken");
    assert_eq!(refused.kind, StoreErrorKind::AlreadyExists, "{refused}");
    let upload = store.create_upload("k", &BTreeMap::new()).await.expect("upload");
    let part = store.put_part("k", &upload, 1, second).await.expect("part");
    let refused =
        store.complete_upload("k", &upload, &[part], WriteMode::CreateOnly).await.expect_err("the key is taken");
    assert_eq!(refused.kind, StoreErrorKind::AlreadyExists, "{refused}");
    assert_eq!(store.get("k", ByteRange::Full).await.expect("get").bytes, first);
}
