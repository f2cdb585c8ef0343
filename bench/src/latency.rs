//! A TCP proxy that adds latency and nothing else: bytes are held back, not slowed down.
//!
//! Each direction of a connection is a queue: what was read is written when its time has come, and meanwhile more is
//! read. A proxy that sleeps between reading and writing would also limit the throughput to a buffer for each delay.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks held back at a time in one direction: 16 MiB, more than any of the parts measured with it.
const CHUNKS: usize = 256;

/// The proxy. Dropping it closes every connection.
#[derive(Debug)]
pub struct LatencyProxy {
    address: SocketAddr,
    acceptor: JoinHandle<()>,
}

impl LatencyProxy {
    /// In front of a port of this machine; a request and its answer together take `round_trip` longer.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server_port: u16, round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let acceptor = tokio::spawn(accept(listener, server_port, round_trip / 2));
        Ok(Self { address, acceptor })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for LatencyProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, server_port: u16, one_way: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(connection(client, server_port, one_way));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, server_port: u16, one_way: Duration) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::try_join!(carry(from_client, to_server, one_way), carry(from_server, to_client, one_way))?;
    Ok(())
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) -> io::Result<()> {
    let (sender, mut held) = mpsc::channel::<(Instant, Bytes)>(CHUNKS);
    let reading = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut buffer).await?;
            let chunk = (Instant::now() + one_way, Bytes::copy_from_slice(&buffer[..read]));
            if sender.send(chunk).await.is_err() || read == 0 {
                return Ok(());
            }
        }
    };
    let writing = async {
        while let Some((due, chunk)) = held.recv().await {
            tokio::time::sleep_until(due).await;
            if chunk.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&chunk).await?;
        }
        Ok(())
    };
    tokio::try_join!(reading, writing).map(drop)
}
