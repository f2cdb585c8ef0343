use std::collections::BTreeSet;
use std::time::Duration;

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::*;
use crate::service::serve_on;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_mins(1);

/// A service on two lanes, in which `/where` says which thread answers, `/helper` which one does the large work, and
/// `/wait` answers when the gate opens.
struct Rig {
    at: SocketAddr,
    lanes: Lanes,
    /// Requests that wait.
    arrived: Arc<Semaphore>,
    gate: Arc<Semaphore>,
    shutdown: Shutdown,
    served: tokio::task::JoinHandle<io::Result<()>>,
}

impl Rig {
    async fn new(drain: Duration) -> Self {
        let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let wait = {
            let (arrived, gate) = (arrived.clone(), gate.clone());
            async move || {
                arrived.add_permits(1);
                gate.acquire().await.expect("an open gate").forget();
                "waited"
            }
        };
        let router = Router::new()
            .route("/where", get(async || this_thread()))
            .route("/helper", get(async || offload::offload(this_thread).await))
            .route("/wait", get(wait));
        let lanes = Lanes::start(2).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = listener.local_addr().expect("an address");
        let shutdown = Shutdown::new();
        let served = {
            let (lanes, shutdown) = (lanes.clone(), shutdown.clone());
            tokio::spawn(async move { serve_on(&lanes, listener, router, (shutdown, drain)).await })
        };
        Self { at, lanes, arrived, gate, shutdown, served }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.expect("somebody listens")
    }

    /// Returns when as many requests wait in their handler as were not told of yet.
    async fn waiting(&self, requests: u32) {
        self.arrived.acquire_many(requests).await.expect("an open gate").forget();
    }

    fn open(&self) -> Vec<usize> {
        let started = self.lanes.0.as_ref().expect("lanes");
        started.lanes.iter().map(|lane| lane.open.load(Ordering::Relaxed)).collect()
    }
}

fn this_thread() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

async fn ask(connection: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("an open connection");
}

/// The body of the next answer; nothing when the connection ended before there was one.
async fn answer(connection: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() == length.parse::<usize>().expect("a number") {
                return Some(body.to_owned());
            }
        }
        match connection.read_buf(&mut seen).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn get_once(connection: &mut TcpStream, path: &str) -> Option<String> {
    ask(connection, path).await;
    answer(connection).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_spread_and_stay_where_they_are() {
    let rig = Rig::new(LONG).await;
    let mut connections = Vec::new();
    for _ in 0..6 {
        let mut connection = rig.connect().await;
        let lane = get_once(&mut connection, "/where").await.expect("an answer");
        connections.push((connection, lane));
    }
    assert_eq!(rig.open(), [3, 3]);
    let lanes: BTreeSet<&str> = connections.iter().map(|(_, lane)| lane.as_str()).collect();
    assert_eq!(lanes, BTreeSet::from(["serve-0", "serve-1"]));
    for (connection, lane) in &mut connections {
        assert_eq!(get_once(connection, "/where").await.as_ref(), Some(&*lane));
    }
    // Those of one lane go; the next ones come to it.
    connections.retain(|(_, lane)| lane == "serve-1");
    while rig.open() != [0, 3] {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        let mut connection = rig.connect().await;
        assert_eq!(get_once(&mut connection, "/where").await.as_deref(), Some("serve-0"));
        connections.push((connection, String::new()));
    }
    rig.shutdown.begin();
    rig.served.await.expect("no panic").expect("served");
    rig.lanes.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_work_goes_to_the_runtime_that_started_them() {
    let rig = Rig::new(LONG).await;
    let helper = get_once(&mut rig.connect().await, "/helper").await.expect("an answer");
    assert!(!helper.starts_with("serve-"), "{helper}");
    rig.shutdown.begin();
    rig.served.await.expect("no panic").expect("served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_before_the_end_is_answered() {
    let rig = Rig::new(LONG).await;
    let (mut first, mut second) = (rig.connect().await, rig.connect().await);
    ask(&mut first, "/wait").await;
    ask(&mut second, "/wait").await;
    rig.waiting(2).await;
    // Taken, but nothing was asked yet.
    let mut idle = rig.connect().await;
    while rig.open().iter().sum::<usize>() != 3 {
        tokio::task::yield_now().await;
    }
    rig.shutdown.begin();
    // One that waits for its next request is closed, and nobody is let in.
    assert_eq!(answer(&mut idle).await, None);
    while TcpStream::connect(rig.at).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!rig.served.is_finished(), "two requests are still open");
    rig.gate.add_permits(2);
    assert_eq!(answer(&mut first).await.as_deref(), Some("waited"));
    assert_eq!(answer(&mut second).await.as_deref(), Some("waited"));
    rig.served.await.expect("no panic").expect("served");
    rig.lanes.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_too_long_is_cut_when_they_end() {
    let rig = Rig::new(Duration::ZERO).await;
    let mut open = rig.connect().await;
    ask(&mut open, "/wait").await;
    rig.waiting(1).await;
    rig.shutdown.begin();
    rig.served.await.expect("no panic").expect("served");
    rig.lanes.end().await;
    assert_eq!(answer(&mut open).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_copy_ends_the_threads() {
    let lanes = Lanes::start(2).expect("threads");
    let copy = lanes.clone();
    let runtime = copy.0.as_ref().expect("lanes").lanes[0].runtime.clone();
    lanes.end().await;
    assert_eq!(runtime.spawn(async { 1 }).await.expect("the copy keeps it"), 1);
    let waiting = runtime.spawn(std::future::pending::<()>());
    copy.end().await;
    assert!(waiting.await.expect_err("its thread has ended").is_cancelled());
}

#[tokio::test]
async fn a_thread_that_ended_gets_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at = listener.local_addr().expect("an address");
    let (ended, _) = unbounded_channel();
    let (way, mut arriving) = unbounded_channel();
    let doors = [ended, way].map(|way| Door { way, open: Arc::default() });
    for _ in 0..2 {
        let stream = TcpStream::connect(at).await.expect("somebody listens");
        hand_over(&doors, stream, at).expect("one lives").expect("a usable connection");
    }
    assert_eq!(doors.each_ref().map(|door| door.open.load(Ordering::Relaxed)), [0, 2]);
    drop((arriving.try_recv().expect("the first"), arriving));
    let stream = TcpStream::connect(at).await.expect("somebody listens");
    let error = hand_over(&doors, stream, at).expect_err("none lives");
    assert_eq!(error.to_string(), "every serving thread has ended");
    assert_eq!(doors.each_ref().map(|door| door.open.load(Ordering::Relaxed)), [0, 0]);
}
