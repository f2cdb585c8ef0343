//! Redis as people run it: TLS, users, unix sockets, and servers that cannot be used.

use std::sync::Arc;
use std::time::Duration;

use des_shared::clock::Dice;
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{Queue, QueueConfig, QueueError, TaskTotals};
use des_tests::servers::{Certificates, Redis, RedisOptions as ServerOptions, RedisSentinels};

use super::faults::{job, queue_at, submit, worker};

fn queue(options: &RedisOptions) -> RedisQueue {
    RedisQueue::new(options, QueueConfig::default(), Arc::new(Dice::from_os())).expect("a queue")
}

/// Adds, waits, claims, commits.
async fn works(queue: &RedisQueue) {
    submit(queue, job(1), 2).await;
    queue.wait_for_work(Duration::from_millis(50)).await;
    for lease in queue.claim(&worker(1), 2).await.expect("claim") {
        queue.commit(lease.task, lease.token, &TaskTotals::default()).await.expect("commit");
    }
    let counters = queue.job(job(1)).await.expect("job").expect("known");
    assert_eq!(counters.committed, 2);
}

async fn start(extra: &[&str]) -> Redis {
    let extra = extra.iter().map(|word| (*word).to_owned()).collect();
    Redis::start_with(ServerOptions { extra, ..ServerOptions::default() }).await.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn tls_with_a_private_authority_and_a_client_certificate() {
    let made = Certificates::make().unwrap_or_else(|e| panic!("{e}"));
    let path = |name: &str| made.file(name).display().to_string();
    // The plain port is free for a moment only while the server holds it, so its TLS twin is taken from it.
    let plain = start(&[]).await;
    let tls_port = plain.port() + 10_000;
    drop(plain);
    let files = [path("server.crt"), path("server.key"), path("ca.crt")];
    let server = start(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &files[0],
        "--tls-key-file",
        &files[1],
        "--tls-ca-cert-file",
        &files[2],
        "--tls-auth-clients",
        "yes",
    ])
    .await;
    let mut options = RedisOptions::new(format!("rediss://127.0.0.1:{tls_port}/0"));
    let read = |name| made.read(name).expect("a certificate");

    // An authority nobody told us about.
    let error = queue(&options).ping().await.expect_err("unknown authority");
    assert!(matches!(&error, QueueError::Unavailable(text) if text.contains("certificate")), "{error}");
    // The right one, but the server wants to know who we are.
    options.tls.ca = Some(read("ca.crt"));
    assert!(matches!(queue(&options).ping().await, Err(QueueError::Unavailable(_))));
    options.tls.client = Some((read("client.crt"), read("client.key")));
    works(&queue(&options)).await;
    // A name the certificate does not have.
    options.url = format!("rediss://127.0.0.2:{tls_port}/0");
    assert!(matches!(queue(&options).ping().await, Err(QueueError::Unavailable(_))));
    // What went over the plain port is the same data.
    let counters = queue_at(&server.url()).job(job(1)).await.expect("job").expect("known");
    assert_eq!(counters.committed, 2);
}

#[tokio::test]
async fn a_unix_socket() {
    let options = ServerOptions {
        password: Some("hunter2".to_owned()),
        extra: ["--unixsocket", "redis.sock"].map(str::to_owned).to_vec(),
        ..ServerOptions::default()
    };
    let server = Redis::start_with(options).await.unwrap_or_else(|e| panic!("{e}"));
    let socket = server.folder().join("redis.sock");
    works(&queue_at(&format!("redis+unix://{}?pass=hunter2", socket.display()))).await;
    let error = queue_at(&format!("redis+unix://{}?pass=wrong-hunter2", socket.display())).ping().await;
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("redis.sock") && !error.contains("hunter2"), "{error}");
}

/// What `docs/operations.md` says a user of Redis needs, and not more.
const USER: [&str; 12] = [
    "on",
    "resetkeys",
    "~{des}*",
    "resetchannels",
    "&{des}:wake",
    "nocommands",
    "+@read",
    "+@write",
    "+@scripting",
    "+@connection",
    "+publish",
    "+subscribe",
];

#[tokio::test]
async fn a_user_with_the_documented_rights() {
    let server = start(&[]).await;
    let mut words = vec!["ACL", "SETUSER", "packer", ">hunter2"];
    words.extend(USER);
    words.extend(["+time", "+ping"]);
    server.command(&words).await.expect("a user");
    let url = format!("redis://packer:hunter2@127.0.0.1:{}/0", server.port());
    let packer = queue_at(&url);
    works(&packer).await;
    assert_eq!(packer.audit().await, Ok(vec![]));
    packer.tick(10).await.expect("tick");
    packer.forget_job(job(1)).await.expect("forget");
    // Another namespace is not its.
    let config = QueueConfig { namespace: "other".to_owned(), ..QueueConfig::default() };
    let other = RedisQueue::new(&RedisOptions::new(&url), config, Arc::new(Dice::from_os())).expect("a queue");
    let error = other.stats().await.expect_err("refused");
    assert!(error.to_string().contains("key") && !error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_password_that_changes_is_an_error_until_it_is_right_again() {
    let server = start(&[]).await;
    let queue = queue_at(&server.url());
    works(&queue).await;
    server.command(&["CONFIG", "SET", "requirepass", "hunter2"]).await.expect("a password");
    server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await.expect_err("nobody may without it");
    // Open connections stay logged in; new ones do not get in.
    let late = queue_at(&server.url());
    assert!(matches!(late.ping().await, Err(QueueError::Unavailable(_))));
    queue_at(&format!("redis://:hunter2@127.0.0.1:{}/0", server.port())).ping().await.expect("the new password");
    queue.ping().await.expect("an open connection");
}

#[tokio::test]
async fn servers_of_another_kind_are_named() {
    let cluster = start(&["--cluster-enabled", "yes"]).await;
    let error = queue_at(&cluster.url()).ping().await.expect_err("a cluster's node");
    assert!(matches!(&error, QueueError::Invalid(text) if text.contains("redis+cluster://")), "{error}");
    let plain = start(&[]).await;
    let address = format!("127.0.0.1:{}", plain.port());
    let error = queue_at(&format!("redis+cluster://{address}")).ping().await.expect_err("no cluster");
    assert!(matches!(&error, QueueError::Invalid(text) if text.contains("no node of a cluster")), "{error}");
    let error = queue_at(&format!("redis+sentinel://{address}/main")).ping().await.expect_err("no Sentinel");
    assert!(matches!(&error, QueueError::Unavailable(text) if text.contains(&address)), "{error}");
    let replica = start(&["--replicaof", &format!("127.0.0.1 {}", plain.port())]).await;
    let error = queue_at(&replica.url()).ping().await.expect_err("a replica");
    assert!(matches!(&error, QueueError::Unavailable(text) if text.contains("is a replica")), "{error}");
}

#[tokio::test]
async fn a_sentinel_that_knows_nothing_is_named() {
    let group = RedisSentinels::start("hunter2").await.unwrap_or_else(|e| panic!("{e}"));
    works(&queue_at(&group.url())).await;
    let error = queue_at(&group.url().replace("/main/", "/wrong/")).ping().await.expect_err("unknown");
    assert!(error.is_transient() && error.to_string().contains("knows no master \"wrong\""), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let no_password = group.url().replace("sentinel_password=hunter2", "");
    let error = queue_at(&no_password).ping().await.expect_err("refused").to_string();
    assert!(error.contains("NOAUTH") || error.contains("uthentication"), "{error}");
    // The address of a Sentinel under the form of a server.
    let host = group.url().split(['@', ',']).nth(1).unwrap_or_default().to_owned();
    let error = queue_at(&format!("redis://:hunter2@{host}/0")).ping().await.expect_err("a Sentinel");
    assert!(matches!(&error, QueueError::Invalid(text) if text.contains("redis+sentinel://")), "{error}");
}

/// Speaks just enough to be taken for a Redis of a version, or for a Sentinel that names this master.
async fn pretend(listener: tokio::net::TcpListener, version: &'static str, master: u16) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    while let Ok((stream, _)) = listener.accept().await {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        // `*2`, `$5`, `HELLO`, `$1`, `3`: a command begins with its name in the third line.
        while let Ok(Some(line)) = lines.next_line().await {
            let Some(count) = line.strip_prefix('*').and_then(|count| count.parse::<usize>().ok()) else { continue };
            let mut words = Vec::new();
            for _ in 0..2 * count {
                words.push(lines.next_line().await.ok().flatten().unwrap_or_default());
            }
            let answer = match words[1].as_str() {
                "HELLO" => format!(
                    "%3\r\n$7\r\nversion\r\n${}\r\n{version}\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n",
                    version.len()
                ),
                "EVALSHA" => "-NOSCRIPT No matching script. Please use EVAL.\r\n".to_owned(),
                "SCRIPT" => {
                    "-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#' \r\n"
                        .to_owned()
                }
                "SENTINEL" => format!("*2\r\n$9\r\n127.0.0.1\r\n$5\r\n{master:05}\r\n"),
                _ => "+OK\r\n".to_owned(),
            };
            if write.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_its_version() {
    for (version, protocol, why) in [
        ("6.2.14", "", "is version 6.2.14, and 7.0 or newer is needed"),
        // One that hides its age, behind something that changes what it says.
        ("7.9.9", "?protocol=3", "cannot read our scripts: Redis 7.0 or newer is needed"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = tokio::spawn(pretend(listener, version, 0));
        let error = queue_at(&format!("redis://127.0.0.1:{port}/{protocol}")).stats().await.expect_err("refused");
        assert!(matches!(&error, QueueError::Invalid(text) if text.contains(why)), "{error}");
        assert!(!error.is_transient());
        server.abort();
    }
}

#[tokio::test]
async fn a_sentinel_that_is_behind_the_times_is_not_believed() {
    let master = start(&[]).await;
    let replica = start(&["--replicaof", &format!("127.0.0.1 {}", master.port())]).await;
    let (mut hosts, mut sentinels) = (Vec::new(), Vec::new());
    for named in [replica.port(), master.port()] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        hosts.push(format!("127.0.0.1:{}", listener.local_addr().expect("an address").port()));
        sentinels.push(tokio::spawn(pretend(listener, "7.0.0", named)));
    }
    let error = queue_at(&format!("redis+sentinel://{}/main", hosts[0])).ping().await.expect_err("a replica");
    assert!(error.is_transient() && error.to_string().contains("is a replica"), "{error}");
    works(&queue_at(&format!("redis+sentinel://{}/main", hosts.join(",")))).await;
    sentinels.iter().for_each(tokio::task::JoinHandle::abort);
}
