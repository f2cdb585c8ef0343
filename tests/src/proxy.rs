//! A TCP proxy that breaks connections on command, and counts the HTTP requests that pass.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Passes them on.
    Pass,
    /// Passes them on after a wait, in each direction.
    Delay(Duration),
    /// Passes them on, and renames the HTTP header `if-none-match` on its way to the server, which is then one that
    /// ignores conditions.
    LoseConditions,
    /// Passes them to the server and loses its answers.
    LoseAnswers,
    /// Passes them on, and closes a connection after so many bytes of an answer.
    CutAnswer(usize),
    /// Takes them and passes nothing on, as a network that swallows packets. What came meanwhile is delivered when
    /// traffic passes again.
    Blackhole,
    /// Closes connections as they come in.
    Refuse,
}

#[derive(Clone, Copy, Debug)]
struct State {
    traffic: Traffic,
    /// Connections from before a cut are closed.
    cuts: u64,
    /// Connections from before this count swallow everything for ever.
    hangs: u64,
}

/// The longest head of an HTTP request that is looked for; a connection that sends more of anything else is not HTTP.
const MAX_HEAD: usize = 64 * 1024;

/// What passed.
#[derive(Debug, Default)]
struct Tally {
    /// Request lines, such as `GET /bucket/key HTTP/1.1`.
    requests: Mutex<Vec<String>>,
    answered_bytes: AtomicU64,
}

/// Finds the heads of requests in what one client sends.
#[derive(Debug, Default)]
struct Heads {
    head: Vec<u8>,
    body_left: usize,
    other: bool,
}

impl Heads {
    fn feed(&mut self, mut bytes: &[u8], tally: &Tally) {
        while !bytes.is_empty() && !self.other {
            let skipped = self.body_left.min(bytes.len());
            self.body_left -= skipped;
            bytes = &bytes[skipped..];
            let Some((first, rest)) = bytes.split_first() else { return };
            self.head.push(*first);
            bytes = rest;
            if self.head.ends_with(b"\r\n\r\n") {
                self.finished(tally);
            }
            // Methods are capital letters.
            self.other =
                self.head.first().is_some_and(|first| !first.is_ascii_uppercase()) || self.head.len() > MAX_HEAD;
        }
    }

    fn finished(&mut self, tally: &Tally) {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let mut lines = head.split("\r\n");
        let request = lines.next().unwrap_or_default().to_owned();
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        self.body_left = length.unwrap_or_default();
        self.head.clear();
        tally.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }
}

/// A proxy on 127.0.0.1 in front of one server. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    tally: Arc<Tally>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a port on 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server_port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State { traffic: Traffic::Pass, cuts: 0, hangs: 0 });
        let tally = Arc::new(Tally::default());
        let acceptor = tokio::spawn(accept(listener, server_port, seen, tally.clone()));
        Ok(Self { address, state: Arc::new(state), tally, acceptor })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what happens to bytes from now on, on all connections.
    pub fn set(&self, traffic: Traffic) {
        self.state.send_modify(|state| state.traffic = traffic);
    }

    /// The request lines that passed since the last time, in the order in which they came. Nothing is forgotten before:
    /// for tests that ask.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.tally.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes of answers that passed, heads included.
    pub fn answered_bytes(&self) -> u64 {
        self.tally.answered_bytes.load(Ordering::Relaxed)
    }

    /// Closes all connections. New ones are treated as set.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Leaves all connections as they are when the other machine loses its power: open, and silent for ever. New ones are
    /// treated as set.
    pub fn hang(&self) {
        self.state.send_modify(|state| state.hangs += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its connections are in a set that goes with it.
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, server_port: u16, state: watch::Receiver<State>, tally: Arc<Tally>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if state.borrow().traffic != Traffic::Refuse {
                    connections.spawn(connection(client, server_port, state.clone(), tally.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, server_port: u16, state: watch::Receiver<State>, tally: Arc<Tally>) {
    let (cuts, mut cut) = (state.borrow().cuts, state.clone());
    let passing = async {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await?;
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        // The first error ends both directions; an orderly end of one leaves the other.
        tokio::try_join!(
            copy((from_client, to_server), state.clone(), Counting::Requests(Heads::default()), &tally),
            copy((from_server, to_client), state.clone(), Counting::Answers, &tally)
        )
    };
    tokio::select! {
        ended = passing => drop(ended), // However it ended, both sides are closed now.
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
    }
}

/// Which direction, and what is counted in it.
#[derive(Debug)]
enum Counting {
    Requests(Heads),
    Answers,
}

async fn copy(
    (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf),
    mut state: watch::Receiver<State>,
    mut counting: Counting,
    tally: &Tally,
) -> std::io::Result<()> {
    let answers = matches!(counting, Counting::Answers);
    let mut buffer = vec![0; 64 * 1024];
    let hangs = state.borrow().hangs;
    loop {
        let n = from.read(&mut buffer).await?;
        if state.wait_for(|state| state.traffic != Traffic::Blackhole).await.is_err() {
            return Ok(()); // The proxy is gone.
        }
        if state.borrow().hangs != hangs {
            return std::future::pending().await;
        }
        let traffic = state.borrow().traffic;
        if n == 0 {
            return to.shutdown().await;
        }
        match &mut counting {
            Counting::Requests(heads) => heads.feed(&buffer[..n], tally),
            Counting::Answers => drop(tally.answered_bytes.fetch_add(n as u64, Ordering::Relaxed)),
        }
        match traffic {
            Traffic::LoseAnswers if answers => continue,
            Traffic::LoseConditions if !answers => rename(&mut buffer[..n], b"if-none-match", b"x-was-ignored"),
            Traffic::CutAnswer(left) if answers && n >= left => {
                to.write_all(&buffer[..left]).await?;
                to.flush().await?;
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            Traffic::Delay(wait) => tokio::time::sleep(wait).await,
            _ => {}
        }
        to.write_all(&buffer[..n]).await?;
    }
}

/// Replaces a word by one of the same length. A request's headers come in one piece from a client that writes them so.
fn rename(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let found: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from).map(|(at, _)| at).collect();
    for at in found {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
}
