//! An HTTP proxy in front of the object store that answers badly now and then, and counts how.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The longest head and body that pass.
const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: u64 = 64 << 20;

/// How often what goes wrong, in thousandths of the requests it can happen to.
#[derive(Clone, Copy, Debug)]
pub struct Odds {
    /// 503 `SlowDown` without asking the store.
    pub slow_down: u32,
    /// The connection is reset.
    pub reset: u32,
    /// The answer comes late.
    pub slow: u32,
    /// The answer's body ends in the middle.
    pub truncate: u32,
    /// A byte of a payload or a big file is another one.
    pub corrupt: u32,
}

impl Default for Odds {
    fn default() -> Self {
        Self { slow_down: 10, reset: 5, slow: 10, truncate: 5, corrupt: 10 }
    }
}

/// What went wrong so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests, whatever became of them.
    pub requests: AtomicU64,
    /// [`Odds::slow_down`]
    pub slow_downs: AtomicU64,
    /// [`Odds::reset`]
    pub resets: AtomicU64,
    /// [`Odds::slow`]
    pub slow: AtomicU64,
    /// [`Odds::truncate`]
    pub truncated: AtomicU64,
    /// Answers with a wrong byte of a payload, all of which were taken by the service.
    pub corrupted: AtomicU64,
    /// The same of big files.
    pub corrupted_big: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    SlowDown,
    Reset,
    Slow(Duration),
    Truncate,
    Corrupt,
}

#[derive(Debug)]
struct Shared {
    server_port: u16,
    armed: AtomicBool,
    odds: Odds,
    /// Where payloads end, by the last part of a request's path.
    data_ends: HashMap<String, u64>,
    rng: Mutex<StdRng>,
    counts: Counts,
    /// What was asked for where a wrong byte was answered: the request's first line and its range.
    wrong: Mutex<Vec<String>>,
}

/// The proxy. Dropping it closes everything.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts in front of a port of 127.0.0.1; nothing goes wrong before [`FaultProxy::arm`].
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server_port: u16, odds: Odds, data_ends: HashMap<String, u64>, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server_port,
            armed: AtomicBool::new(false),
            odds,
            data_ends,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            counts: Counts::default(),
            wrong: Mutex::default(),
        });
        let acceptor = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { port, shared, acceptor })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on things go wrong, or no longer.
    pub fn arm(&self, armed: bool) {
        self.shared.armed.store(armed, Ordering::SeqCst);
    }

    /// The requests that were answered with a wrong byte, a line each, in order.
    pub fn wrong(&self) -> Vec<String> {
        self.shared.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What went wrong so far.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // Its connections are in a set that goes with it.
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(connection(client, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One message of HTTP/1.1: its head with the empty line, and its body as it stands on the wire.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

/// Reads messages off a connection.
struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// A message; `bodiless` ones have no body whatever their head says. `None` when the connection ended between two.
    async fn message(&mut self, bodiless: impl Fn(&Head) -> bool) -> io::Result<Option<(Message, Head)>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match self.more().await {
                Err(_) if self.buffer.is_empty() => return Ok(None),
                other => other?,
            }
        };
        let raw = self.buffer.split_to(end).to_vec();
        let head = Head::parse(&raw);
        let mut body = Vec::new();
        if bodiless(&head) {
        } else if head.value("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            self.chunks(&mut body).await?;
        } else if let Some(length) = head.value("content-length").and_then(|value| value.parse::<u64>().ok()) {
            if length > MAX_BODY {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.exactly(length as usize, &mut body).await?;
        }
        Ok(Some((Message { head: raw, body }, head)))
    }

    async fn exactly(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        into.extend_from_slice(&self.buffer.split_to(count));
        Ok(())
    }

    /// Chunks to the last one, as they are.
    async fn chunks(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let end = loop {
                if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                    break at;
                }
                self.more().await?;
            };
            let size = std::str::from_utf8(&self.buffer[..end]).ok().and_then(|text| text.split(';').next());
            let size = size.and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
            let size = size.filter(|size| (into.len() + size) as u64 <= MAX_BODY).ok_or(io::ErrorKind::InvalidData)?;
            self.exactly(end + 2 + size + 2, into).await?;
            if size == 0 {
                return Ok(());
            }
        }
    }
}

/// First line and headers, the names in lower case.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(raw: &[u8]) -> Self {
        let text = String::from_utf8_lossy(raw);
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        Self { first, headers: headers.collect() }
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The second word of the first line: a target or a status.
    fn second(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }
}

/// What a request is for, as far as faults go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Payload,
    BigFile,
    Other,
}

impl Shared {
    fn purpose(&self, request: &Head) -> Purpose {
        let path = request.second().split('?').next().unwrap_or_default();
        if !request.first.starts_with("GET ") {
            return Purpose::Other;
        }
        if path.contains("/_bigFiles/") {
            return Purpose::BigFile;
        }
        let end = self.data_ends.get(path.rsplit('/').next().unwrap_or_default());
        let start = request
            .value("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<u64>().ok());
        match (start, end) {
            (Some(start), Some(end)) if start < *end => Purpose::Payload,
            _ => Purpose::Other,
        }
    }

    fn choose(&self, purpose: Purpose) -> Fault {
        if !self.armed.load(Ordering::SeqCst) {
            return Fault::None;
        }
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dice: u32 = rng.random_range(0..1000);
        let corrupt = if purpose == Purpose::Other { 0 } else { self.odds.corrupt };
        let wait = Duration::from_millis(rng.random_range(50..500));
        let Odds { slow_down, reset, slow, truncate, .. } = self.odds;
        for (odds, fault) in [
            (slow_down, Fault::SlowDown),
            (reset, Fault::Reset),
            (slow, Fault::Slow(wait)),
            (truncate, Fault::Truncate),
            (corrupt, Fault::Corrupt),
        ] {
            if dice < odds {
                return fault;
            }
            dice -= odds;
        }
        Fault::None
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    // Whatever ends it ends both sides; the service sees a connection that broke.
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server_port)).await;
    let Ok(server) = server else { return };
    let (mut client, mut server) = (Wire::new(client), Wire::new(server));
    while let Ok(true) = exchange(&mut client, &mut server, &shared).await {}
}

/// One request and its answer. False when the connection has ended.
async fn exchange(client: &mut Wire, server: &mut Wire, shared: &Shared) -> io::Result<bool> {
    let Some((request, head)) = client.message(|_| false).await? else { return Ok(false) };
    let counts = &shared.counts;
    add(&counts.requests);
    let purpose = shared.purpose(&head);
    let fault = shared.choose(purpose);
    match fault {
        Fault::SlowDown => {
            add(&counts.slow_downs);
            let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
            let body = if head.first.starts_with("HEAD ") { "" } else { body };
            let answer = format!(
                "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            client.stream.write_all(answer.as_bytes()).await?;
            return Ok(true);
        }
        Fault::Reset => {
            add(&counts.resets);
            client.stream.set_zero_linger()?;
            return Ok(false);
        }
        _ => {}
    }
    server.stream.write_all(&request.head).await?;
    server.stream.write_all(&request.body).await?;
    let asked_head = head.first.starts_with("HEAD ");
    let bodiless = |head: &Head| asked_head || matches!(head.second(), "204" | "304");
    let Some((mut answer, said)) = server.message(bodiless).await? else { return Ok(false) };
    let good = matches!(said.second(), "200" | "206") && !answer.body.is_empty();
    match fault {
        Fault::Slow(wait) => {
            add(&counts.slow);
            tokio::time::sleep(wait).await;
        }
        Fault::Truncate if good => {
            add(&counts.truncated);
            client.stream.write_all(&answer.head).await?;
            client.stream.write_all(&answer.body[..answer.body.len() / 2]).await?;
            client.stream.flush().await?;
            return Ok(false);
        }
        // The first byte of a range is always one that is wanted, however many files the range is for.
        Fault::Corrupt if good => answer.body[0] ^= 0x5a,
        _ => {}
    }
    client.stream.write_all(&answer.head).await?;
    client.stream.write_all(&answer.body).await?;
    if fault == Fault::Corrupt && good {
        add(if purpose == Purpose::BigFile { &counts.corrupted_big } else { &counts.corrupted });
        let line = format!("{} {}", head.second(), head.value("range").unwrap_or_default());
        shared.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
    let closes =
        [&head, &said].iter().any(|head| head.value("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")));
    Ok(!closes)
}
