//! The harness itself: servers that stop with their test, and the proxy.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use des_tests::proxy::{Proxy, Traffic};
use des_tests::servers::{Redis, RedisOptions, SeaweedFs, Supervised};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use redis::AsyncCommands;
use tokio::time::{Instant, timeout};

async fn connect(url: &str) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
    redis::Client::open(url)?.get_multiplexed_async_connection().await
}

fn alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

async fn gone(pid: i32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while alive(pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    !alive(pid)
}

#[tokio::test]
async fn redis_keeps_or_loses_its_data_as_asked() {
    let options = RedisOptions { keep_data: true, password: Some("pass word".replace(' ', "-")), ..Default::default() };
    let mut server = Redis::start_with(options).await.expect("redis");
    let wrong = format!("redis://127.0.0.1:{}/0", server.port());
    let mut open = connect(&wrong).await.expect("a connection without password");
    assert!(open.get::<_, Option<String>>("k").await.is_err(), "the password is asked for");
    let mut connection = connect(&server.url()).await.expect("a connection");
    connection.set::<_, _, ()>("k", "v").await.expect("set");
    // Written to disk before the kill, whatever the once-a-second sync does.
    let synced: i64 = redis::cmd("WAITAOF").arg(1).arg(0).arg(5000).query_async(&mut connection).await.unwrap_or(0);
    if synced == 0 {
        // Redis before 7.2 has no WAITAOF; a rewrite ends with everything on disk.
        redis::cmd("CONFIG")
            .arg("SET")
            .arg("appendfsync")
            .arg("always")
            .exec_async(&mut connection)
            .await
            .expect("set");
        connection.set::<_, _, ()>("k2", "v").await.expect("set, synced before the answer");
    }
    server.kill().expect("kill");
    assert!(connect(&server.url()).await.is_err(), "nobody listens");
    server.start_again().await.expect("restart");
    let mut connection = connect(&server.url()).await.expect("a connection");
    assert_eq!(connection.get::<_, Option<String>>("k").await.expect("get").as_deref(), Some("v"));
    server.lose_everything().await.expect("restart");
    let mut connection = connect(&server.url()).await.expect("a connection");
    assert_eq!(connection.get::<_, Option<String>>("k").await.expect("get"), None);
    let pid = server.process().pid();
    drop(server);
    assert!(!alive(pid), "a dropped server is gone at once");
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_told_with_its_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "echo it hurts >&2; exit 7";
    let mut process = Supervised::start(folder.path(), "/bin/sh".as_ref(), ["-c", script], &[]).expect("start");
    let status = process.wait(Duration::from_secs(20)).await.expect("it ends");
    assert_eq!(status.code(), Some(7));
    assert_eq!(process.log_tail(), "it hurts\n");
}

#[tokio::test]
async fn an_abandoned_program_dies_and_its_folder_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = Supervised::start(folder.path(), "/bin/sleep".as_ref(), ["1000"], &[]).expect("start");
    assert!(alive(process.pid()));
    process.abandon();
    process.wait(Duration::from_secs(20)).await.expect("it is killed");
    assert!(!alive(process.pid()));
    assert!(!folder.path().exists(), "what a dead test cannot clean up is cleaned up for it");
}

/// Not a test of its own: the victim of the next one, which runs it in a process of its own and kills that.
#[tokio::test]
#[ignore = "started by servers_die_with_a_killed_test_process"]
async fn holds_a_server_until_killed() {
    let mut server = Redis::start().await.expect("redis");
    println!("\nserver {}", server.process().pid());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn servers_die_with_a_killed_test_process() {
    let mut holder = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "harness::holds_a_server_until_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let mut lines = BufReader::new(holder.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    let pid = lines.find_map(|line| line.strip_prefix("server ")?.parse::<i32>().ok());
    let pid = pid.expect("the holder names its server");
    assert!(alive(pid));
    holder.kill().expect("SIGKILL");
    holder.wait().expect("its end");
    assert!(gone(pid).await, "redis-server {pid} outlived its test process");
}

#[tokio::test]
async fn the_proxy_cuts_delays_and_swallows() {
    let server = Redis::start().await.expect("redis");
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let url = server.url_through(proxy.port());
    let mut connection = connect(&url).await.expect("through the proxy");
    connection.set::<_, _, ()>("k", 1).await.expect("set");

    proxy.set(Traffic::Delay(Duration::from_millis(40)));
    let began = Instant::now();
    assert_eq!(connection.get::<_, i64>("k").await.expect("get"), 1);
    assert!(began.elapsed() >= Duration::from_millis(80), "both ways: {:?}", began.elapsed());

    proxy.set(Traffic::LoseAnswers);
    let lost = timeout(Duration::from_millis(100), connection.incr::<_, _, i64>("k", 1)).await;
    assert!(!matches!(lost, Ok(Ok(_))), "the answer is lost: {lost:?}");
    let mut direct = connect(&server.url()).await.expect("past the proxy");
    assert_eq!(direct.get::<_, i64>("k").await.expect("get"), 2, "but it was done");

    proxy.set(Traffic::Pass);
    proxy.cut();
    let dead = timeout(Duration::from_secs(20), connection.get::<_, i64>("k")).await.expect("an answer or an error");
    assert!(dead.is_err(), "the old connection is closed");
    let mut connection = connect(&url).await.expect("a new one");
    assert_eq!(connection.get::<_, i64>("k").await.expect("get"), 2);

    proxy.set(Traffic::Blackhole);
    let silent = timeout(Duration::from_millis(100), connection.incr::<_, _, i64>("k", 1)).await;
    assert!(!matches!(silent, Ok(Ok(_))), "nothing comes back: {silent:?}");
    assert_eq!(direct.get::<_, i64>("k").await.expect("get"), 2, "and nothing was done");

    proxy.set(Traffic::Refuse);
    proxy.cut();
    assert!(connect(&url).await.is_err(), "connections are refused");
}

#[tokio::test]
async fn the_s3_server_leaves_nothing_behind() {
    let server = SeaweedFs::start().await.expect("a server");
    let (sockets, folder, ports) = (server.sockets(), server.folder().to_owned(), server.ports());
    assert!(sockets.iter().any(|path| path.exists()), "the names of its sockets have changed: {sockets:?}");
    drop(server);
    assert!(!folder.exists());
    let endings = ports.map(|port| [format!("-{port}.sock"), format!("-{}.sock", u32::from(port) + 10_000)]);
    for entry in std::fs::read_dir("/tmp").expect("readable") {
        let name = entry.expect("readable").file_name().to_string_lossy().into_owned();
        let its = name.starts_with("seaweedfs-") && endings.iter().flatten().any(|ending| name.ends_with(ending));
        assert!(!its, "/tmp/{name} is left");
    }
}
