//! A TCP proxy that breaks connections on command.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// A proxy on 127.0.0.1 in front of one server. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
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
        let acceptor = tokio::spawn(accept(listener, server_port, seen));
        Ok(Self { address, state: Arc::new(state), acceptor })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what happens to bytes from now on, on all connections.
    pub fn set(&self, traffic: Traffic) {
        self.state.send_modify(|state| state.traffic = traffic);
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

async fn accept(listener: TcpListener, server_port: u16, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if state.borrow().traffic != Traffic::Refuse {
                    connections.spawn(connection(client, server_port, state.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, server_port: u16, state: watch::Receiver<State>) {
    let (cuts, mut cut) = (state.borrow().cuts, state.clone());
    let passing = async {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await?;
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        // The first error ends both directions; an orderly end of one leaves the other.
        tokio::try_join!(
            copy(from_client, to_server, state.clone(), false),
            copy(from_server, to_client, state.clone(), true)
        )
    };
    tokio::select! {
        ended = passing => drop(ended), // However it ended, both sides are closed now.
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    answers: bool,
) -> std::io::Result<()> {
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
