//! Services whose Redis, S3, bucket, credentials or zones are wrong say so by name, and never print a secret.

use std::time::Duration;

use des_tests::cluster::program;
use des_tests::proxy::{Proxy, Traffic};
use des_tests::servers::{Redis, SeaweedFs, Supervised};
use tempfile::TempDir;

/// A port nobody listens on: it was free a moment ago and belongs to no server of ours.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a service that should not become ready, and returns what it says: the last answer of `/health/ready` (or ""
/// when it ended), its log, and its exit code when it ended.
async fn refusal(name: &str, env: &[(&str, &str)]) -> (String, String, Option<i32>) {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let mut all =
        vec![("DES_LISTEN", "127.0.0.1:0"), ("DES_LOG_FORMAT", "json"), ("AWS_EC2_METADATA_DISABLED", "true")];
    all.extend_from_slice(env);
    let mut process =
        Supervised::start(folder.path(), &program(name).unwrap(), std::iter::empty::<&str>(), &all).unwrap();
    let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        assert!(tokio::time::Instant::now() < deadline, "{name} says nothing: {}", log());
        if let Some(status) = process.ended().unwrap() {
            return (String::new(), log(), status.code());
        }
        let address = log().lines().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line.get("address")?.as_str()?.to_owned())
        });
        if let Some(address) = address
            && let Ok(answer) = reqwest::get(format!("http://{address}/health/ready")).await
        {
            assert_eq!(answer.status(), 503, "{name} says it is ready: {}", log());
            return (answer.text().await.unwrap(), log(), None);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn s3_env<'a>(endpoint: &'a str, bucket: &'a str, keys: (&'a str, &'a str)) -> Vec<(&'a str, &'a str)> {
    vec![
        ("DES_BACKEND", "s3"),
        ("DES_S3_BUCKET", bucket),
        ("DES_S3_ENDPOINT_URL", endpoint),
        ("DES_S3_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", keys.0),
        ("AWS_SECRET_ACCESS_KEY", keys.1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_bucket_wrong_credentials_and_no_s3_are_named() {
    let s3 = SeaweedFs::shared().await.unwrap();
    let bucket = s3.new_bucket().await.unwrap();
    let keys = SeaweedFs::credentials();
    let nowhere = format!("http://127.0.0.1:{}", closed_port());
    let endpoint = s3.endpoint();
    let cases = [
        (s3_env(&endpoint, "no-such-bucket", keys), "no-such-bucket"),
        (s3_env(&endpoint, &bucket, (keys.0, "not-the-secret-at-all")), bucket.as_str()),
        (s3_env(&nowhere, &bucket, keys), bucket.as_str()),
    ];
    for (env, named) in cases {
        let (answer, log, code) = refusal("des-retriever", &env).await;
        let said = format!("{answer}{log}");
        assert!(said.contains(named), "{named} is not named: {said}");
        assert!(!said.contains("not-the-secret-at-all") && !said.contains(keys.1), "a secret was printed: {said}");
        assert_ne!(code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_redis_is_named_and_its_password_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let redis = format!("redis://:hunter2-hunter2@127.0.0.1:{}/0", closed_port());
    let env = [("DES_REDIS_URL", redis.as_str()), ("DES_BASE_DIR", dir), ("DES_SOURCE_ROOTS", dir)];
    for name in ["des-coordinator", "des-worker"] {
        let (answer, log, code) = refusal(name, &env).await;
        let said = format!("{answer}{log}").to_lowercase();
        assert!(said.contains("redis") || said.contains("queue"), "{name}: {said}");
        assert!(!said.contains("hunter2"), "{name} printed the password: {said}");
        assert_ne!(code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_are_all_named_before_anything_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let zones = folder.path().join("zones.yaml");
    let zone = |name: &str, start: u32, end: u32| {
        format!("  - name: {name}\n    range: {{ start: {start}, end: {end} }}\n    s3: {{ bucket: {name} }}\n")
    };
    let write =
        |bits: u8, zones_text: String| std::fs::write(&zones, format!("n_bits: {bits}\nzones:\n{zones_text}")).unwrap();
    let env = [
        ("DES_BACKEND", "multi_s3"),
        ("DES_ZONES_CONFIG", zones.to_str().unwrap()),
        ("DES_LISTEN", "0.0.0.0:0"),
        ("DES_DRAIN_SECONDS", "soon"),
    ];
    let cases = [
        (8, format!("{}{}", zone("a", 0, 200), zone("b", 150, 255)), "150"),
        (8, format!("{}{}", zone("a", 0, 100), zone("b", 150, 255)), "101"),
        (3, zone("a", 0, 7), "4 to 16"),
        (17, zone("a", 0, 131_071), "4 to 16"),
    ];
    for (bits, text, named) in cases {
        write(bits, text);
        let (_, log, code) = refusal("des-retriever", &env).await;
        assert_eq!(code, Some(2), "{log}");
        for name in [named, "DES_DRAIN_SECONDS"] {
            assert!(log.contains(name), "{name} is not named: {log}");
        }
    }
    let base = folder.path().to_str().unwrap();
    for bits in ["3", "17"] {
        let (_, log, code) = refusal("des-retriever", &[("DES_BASE_DIR", base), ("DES_N_BITS", bits)]).await;
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains("DES_N_BITS") && log.contains("4 to 16"), "{log}");
    }
    let open = [("DES_BASE_DIR", base), ("DES_LISTEN", "0.0.0.0:0")];
    let (_, log, code) = refusal("des-retriever", &open).await;
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("DES_API_KEYS") && log.contains("DES_ALLOW_ANONYMOUS"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_says_at_its_start_that_a_store_ignores_conditions() {
    let s3 = SeaweedFs::start_open().await.unwrap();
    let redis = Redis::start().await.unwrap();
    let bucket = s3.new_bucket().await.unwrap();
    let proxy = Proxy::start(s3.port()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, url) = (format!("http://127.0.0.1:{}", proxy.port()), redis.url());
    let mut env = s3_env(&endpoint, &bucket, SeaweedFs::credentials());
    let dir = folder.path().to_str().unwrap();
    env.extend([("DES_REDIS_URL", url.as_str()), ("DES_SOURCE_ROOTS", dir), ("DES_LISTEN", "127.0.0.1:0")]);
    for (traffic, said) in
        [(Traffic::Pass, "refuses a second writer"), (Traffic::LoseConditions, "ignores If-None-Match")]
    {
        proxy.set(traffic);
        let place = tempfile::tempdir_in(folder.path()).unwrap();
        let worker = program("des-worker").unwrap();
        let process = Supervised::start(place.path(), &worker, std::iter::empty::<&str>(), &env).unwrap();
        let log = || std::fs::read_to_string(place.path().join("log")).unwrap_or_default();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        // One line for the zone, one for the state store.
        while log().matches(said).count() < 2 {
            assert!(tokio::time::Instant::now() < deadline, "{said:?} is not said: {}", log());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        drop(process);
    }
}
