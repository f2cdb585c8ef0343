//! Connections on threads of their own.
//!
//! A runtime with several threads lets each of them take work from the others and wakes them for it. For requests that
//! are answered in some ten microseconds, that costs more than the work. A lane is a thread with a runtime of its own: a
//! connection is handed to one lane and stays there, so nobody is woken but by the network (thread per core, as nginx
//! and Seastar do it). Work that is large goes back to the runtime that started the lanes, see [`crate::offload`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;

use axum::Router;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shutdown;
use crate::offload;

/// Blocking threads of each lane. What keeps a thread busy goes to the runtime that started the lanes; left are the
/// libraries that ask the runtime they run in, such as for the address of a name.
const BLOCKING_THREADS: usize = 2;

/// Threads that serve connections; without any, the runtime serves them that is there. When the last copy is dropped,
/// the threads end, and what they still serve is cut.
#[derive(Clone, Debug, Default)]
pub struct Lanes(Option<Arc<Started>>);

#[derive(Debug)]
struct Started {
    lanes: Vec<Lane>,
    end: DropGuard,
}

#[derive(Debug)]
struct Lane {
    runtime: Handle,
    open: Arc<AtomicUsize>,
    thread: thread::JoinHandle<()>,
}

impl Lanes {
    /// No threads.
    pub fn none() -> Self {
        Self::default()
    }

    /// Starts `count` threads, which lean on the runtime that is there for what is large.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        // Before the threads: those that are started end when a later one cannot be.
        let guard = end.clone().drop_guard();
        let lanes = (0..count).map(|number| Lane::start(number, end.clone())).collect::<io::Result<Vec<_>>>()?;
        Ok(Self((count > 0).then(|| Arc::new(Started { lanes, end: guard }))))
    }

    /// Serves until the shutdown begins and the requests in flight have ended.
    ///
    /// # Errors
    /// When there is no thread left to serve.
    pub(super) async fn serve(&self, listener: TcpListener, router: Router, shutdown: Shutdown) -> io::Result<()> {
        match &self.0 {
            Some(started) => started.serve(listener, router, shutdown).await,
            None => axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.wait().await }).await,
        }
    }

    /// Ends the threads and waits for them. What they still serve is cut. Copies of this serve no more.
    pub async fn end(self) {
        let Some(started) = self.0 else { return };
        // Another copy still has them: its owner ends them.
        let Ok(Started { lanes, end }) = Arc::try_unwrap(started) else { return };
        drop(end);
        let joined = tokio::task::spawn_blocking(move || {
            lanes.into_iter().filter_map(|lane| lane.thread.join().err()).for_each(|_| {
                tracing::error!("a serving thread had panicked");
            });
        });
        drop(joined.await);
    }
}

impl Lane {
    fn start(number: usize, end: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().max_blocking_threads(BLOCKING_THREADS).enable_all().build()?;
        let (handle, helpers) = (runtime.handle().clone(), Handle::current());
        let thread = thread::Builder::new().name(format!("serve-{number}")).spawn(move || {
            offload::lean_on(helpers);
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, open: Arc::default(), thread })
    }
}

impl Started {
    async fn serve(&self, mut listener: TcpListener, router: Router, shutdown: Shutdown) -> io::Result<()> {
        let at = listener.local_addr()?;
        let (doors, served): (Vec<_>, Vec<_>) = self.lanes.iter().map(|lane| lane.serve(at, router.clone())).unzip();
        loop {
            let (stream, peer) = tokio::select! {
                // This one waits and goes on where descriptors or memory are short for a moment.
                accepted = Listener::accept(&mut listener) => accepted,
                () = shutdown.wait() => break,
            };
            if let Err(error) = hand_over(&doors, stream, peer)? {
                tracing::warn!(%peer, %error, "a connection could not be served");
            }
        }
        drop((listener, doors));
        // In this order: what was taken is served to its end.
        for lane in served {
            lane.await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// Gives a connection to the lane that has the fewest. The outer error is that there is none, the inner one is about
/// this connection alone.
fn hand_over(doors: &[Door], stream: TcpStream, peer: SocketAddr) -> io::Result<io::Result<()>> {
    let mut stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        let living = doors.iter().filter(|door| !door.way.is_closed());
        let Some(door) = living.min_by_key(|door| door.open.load(Ordering::Relaxed)) else {
            return Err(io::Error::other("every serving thread has ended"));
        };
        match door.way.send(Taken { stream, peer, open: Open::new(&door.open) }) {
            Ok(()) => return Ok(Ok(())),
            // It ended just now.
            Err(back) => stream = back.0.stream,
        }
    }
}

/// The way into a lane. It holds no more than the open connections that a process may have.
struct Door {
    way: UnboundedSender<Taken>,
    open: Arc<AtomicUsize>,
}

/// A connection on its way into a lane.
struct Taken {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    open: Open,
}

/// One of the open connections of a lane.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lane {
    fn serve(&self, at: SocketAddr, router: Router) -> (Door, tokio::task::JoinHandle<io::Result<()>>) {
        let (way, arriving) = unbounded_channel();
        let done = Shutdown::new();
        let arrivals = Arrivals { arriving, at, done: done.clone() };
        let serving = axum::serve(arrivals, router).with_graceful_shutdown(async move { done.wait().await });
        let served = self.runtime.spawn(serving.into_future());
        (Door { way, open: self.open.clone() }, served)
    }
}

/// What a lane listens to: connections that were accepted elsewhere. When no more can come, it says that it is done.
struct Arrivals {
    arriving: UnboundedReceiver<Taken>,
    at: SocketAddr,
    done: Shutdown,
}

impl Listener for Arrivals {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        while let Some(Taken { stream, peer, open }) = self.arriving.recv().await {
            match TcpStream::from_std(stream) {
                Ok(stream) => return (Connection { stream, _open: open }, peer),
                Err(error) => tracing::warn!(%peer, %error, "a connection could not be served"),
            }
        }
        self.done.begin();
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }
}

/// A connection that is counted as long as it is open.
struct Connection {
    stream: TcpStream,
    _open: Open,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
