//! GETs of small ranges over plain HTTP/1.1, each on a connection that it has for itself meanwhile.
//!
//! A general client hands a request to the task of its connection and gets the answer back by another, body piece by body
//! piece; beside a store on the same machine that is a third of what a read costs. Here whoever reads writes the request
//! and reads the answer, and dropping the read drops the connection. Only servers without TLS are asked this way, and only
//! answers that say their length are read: everything else is [`None`], and a general client asks again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections kept for the next read, and for how long.
const MOST_IDLE: usize = 256;
const IDLE: Duration = Duration::from_secs(15);
/// The longest head of an answer, in bytes, and the most fields in it.
const MOST_HEAD: usize = 16 * 1024;
const MOST_FIELDS: usize = 64;

/// Where a GET goes.
#[derive(Debug)]
pub(super) struct Target {
    /// As in `Host`.
    authority: Arc<str>,
    /// Path and query.
    path: Box<str>,
}

impl Target {
    /// Of a URL without TLS; `None` for others.
    pub(super) fn of(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/')?);
        let plain = !authority.is_empty() && !authority.contains('@') && url.bytes().all(|b| b.is_ascii_graphic());
        plain.then(|| Self { authority: authority.into(), path: path.into() })
    }

    fn address(&self) -> String {
        let port = self.authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if port { self.authority.to_string() } else { format!("{}:80", self.authority) }
    }
}

/// An answer, whole.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) status: u16,
    pub(super) content_range: Option<String>,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    /// What was kept with the object, without the prefix of its names.
    pub(super) metadata: Vec<(String, String)>,
    pub(super) body: Bytes,
}

/// What the head of an answer says.
struct Head {
    received: Received,
    /// Bytes of the head itself.
    bytes: usize,
    /// Bytes of the body; `None` where it does not say so.
    length: Option<usize>,
    /// Whether the connection is good for another request.
    stays: bool,
}

struct Idle {
    stream: TcpStream,
    authority: Arc<str>,
    since: Instant,
}

/// The connections.
pub(super) struct Wire {
    idle: Mutex<Vec<Idle>>,
    connect: Duration,
}

impl Wire {
    /// With this limit on making a connection.
    pub(super) fn new(connect: Duration) -> Self {
        Self { idle: Mutex::default(), connect }
    }

    /// Asks for `range` (a value of the header) of at most `most` bytes. `None` when the answer is none that is read here.
    pub(super) async fn get(&self, target: &Target, range: &str, most: usize) -> io::Result<Option<Received>> {
        let Target { authority, path } = target;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: des\r\nRange: {range}\r\n\r\n");
        if let Some(mut stream) = self.kept(authority) {
            let mut bytes = BytesMut::new();
            let asked = self.ask(&mut stream, &request, &mut bytes, most).await;
            match asked {
                // The server had closed it: nothing was answered, so nothing is lost by asking on another one.
                Err(_) if bytes.is_empty() => {}
                Err(error) => return Err(error),
                Ok(answer) => return Ok(self.ended(answer, stream, authority)),
            }
        }
        let connecting = TcpStream::connect(target.address());
        let connected = tokio::time::timeout(self.connect, connecting).await;
        let mut stream = connected.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
        stream.set_nodelay(true)?;
        let answer = self.ask(&mut stream, &request, &mut BytesMut::new(), most).await?;
        Ok(self.ended(answer, stream, authority))
    }

    /// Sends a request and reads the answer; `bytes` is what has arrived.
    async fn ask(
        &self,
        stream: &mut TcpStream,
        request: &str,
        bytes: &mut BytesMut,
        most: usize,
    ) -> io::Result<Option<(Received, bool)>> {
        stream.write_all(request.as_bytes()).await?;
        bytes.reserve(1024 + most);
        let head = loop {
            fill(stream, bytes).await?;
            match head(bytes)? {
                Some(head) => break head,
                None if bytes.len() > MOST_HEAD => return Err(malformed("its head is too long")),
                None => {}
            }
        };
        // A refusal is longer than some ranges.
        let Some(length) = head.length.filter(|length| *length <= most.max(MOST_HEAD)) else { return Ok(None) };
        let end = head.bytes + length;
        while bytes.len() < end {
            fill(stream, bytes).await?;
        }
        let stays = head.stays && bytes.len() == end;
        let mut body = bytes.split_to(end);
        body.advance(head.bytes);
        Ok(Some((Received { body: body.freeze(), ..head.received }, stays)))
    }

    /// Keeps the connection where it is good for another request.
    fn ended(&self, answer: Option<(Received, bool)>, stream: TcpStream, authority: &Arc<str>) -> Option<Received> {
        let (received, stays) = answer?;
        if stays {
            let mut idle = self.idle();
            // The first is the one that was used longest ago.
            if idle.first().is_some_and(|idle| idle.since.elapsed() > IDLE) || idle.len() >= MOST_IDLE {
                idle.remove(0);
            }
            idle.push(Idle { stream, authority: authority.clone(), since: Instant::now() });
        }
        Some(received)
    }

    /// The connection that was used last, if it is still open.
    fn kept(&self, authority: &Arc<str>) -> Option<TcpStream> {
        loop {
            let kept = {
                let mut idle = self.idle();
                let at = idle.iter().rposition(|idle| idle.authority == *authority)?;
                idle.remove(at)
            };
            // Nothing may have arrived that nobody asked for, its end included.
            let silent = kept.stream.try_read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
            if silent && kept.since.elapsed() <= IDLE {
                return Some(kept.stream);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        // A panic cannot leave a list of connections half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fill(stream: &mut TcpStream, bytes: &mut BytesMut) -> io::Result<()> {
    match stream.read_buf(bytes).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer broke off")),
        _ => Ok(()),
    }
}

fn malformed(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer is not HTTP/1: {why}"))
}

/// Reads the head of an answer; `None` while it is not all there.
fn head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes).map_err(malformed)? else { return Ok(None) };
    let mut received = Received { status: response.code.unwrap_or_default(), ..Received::default() };
    let (mut lengths, mut stays, mut coded) = (Vec::with_capacity(1), response.version == Some(1), false);
    for field in response.headers.iter() {
        let text = || String::from_utf8_lossy(field.value).into_owned();
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            lengths.push(std::str::from_utf8(field.value).ok().and_then(|text| text.trim().parse::<usize>().ok()));
        } else if is("content-range") {
            received.content_range = Some(text());
        } else if is("etag") {
            received.etag = Some(text());
        } else if is("last-modified") {
            received.last_modified = Some(text());
        } else if is("transfer-encoding") {
            coded = true;
        } else if is("connection") {
            stays &= field.value.eq_ignore_ascii_case(b"keep-alive");
        } else if let Some(name) = field.name.to_ascii_lowercase().strip_prefix("x-amz-meta-") {
            received.metadata.push((name.to_owned(), text()));
        }
    }
    // Two lengths, or a length beside a coding, are how one answer is made to look like two (RFC 9112 section 6.3).
    let length = match lengths[..] {
        [Some(length)] if !coded && received.status >= 200 => Some(length),
        _ => None,
    };
    Ok(Some(Head { received, bytes: head_bytes, length, stays }))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives these answers, one a request, on as many connections as it takes; and how many were made.
    async fn server(answers: Vec<&'static str>) -> (Target, Arc<std::sync::atomic::AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target::of(&format!("http://{}/b/k?q=1", listener.local_addr().expect("bound"))).expect("plain");
        let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = made.clone();
        tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            while answers.peek().is_some() {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut request = BytesMut::new();
                while stream.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8_lossy(&request).into_owned();
                    assert!(text.starts_with("GET /b/k?q=1 HTTP/1.1\r\nHost: 127.0.0.1:"), "{text}");
                    assert!(text.contains("\r\nRange: bytes=2-4\r\n"), "{text}");
                    request.clear();
                    let Some(answer) = answers.next() else { return };
                    let (first, rest) = answer.split_at(answer.len() / 2);
                    for piece in [first, rest] {
                        stream.write_all(piece.as_bytes()).await.expect("written");
                        tokio::task::yield_now().await;
                    }
                    if answer.is_empty() || answer.contains("close") || answer.contains("100\r\n") {
                        break;
                    }
                }
            }
        });
        (target, made)
    }

    const PART: &str = "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Range: bytes 2-4/10\r\nETag: \"e\"\r\n\
        X-Amz-Meta-A: b\r\n\r\ncde";

    async fn ask(wire: &Wire, target: &Target) -> io::Result<Option<Received>> {
        wire.get(target, "bytes=2-4", 3).await
    }

    #[tokio::test]
    async fn one_connection_serves_one_read_after_the_other() {
        let (target, made) = server(vec![PART; 5]).await;
        let wire = Wire::new(Duration::from_secs(5));
        for _ in 0..5 {
            let received = ask(&wire, &target).await.expect("answered").expect("whole");
            assert_eq!((received.status, &received.body[..]), (206, &b"cde"[..]));
            assert_eq!(received.content_range.as_deref(), Some("bytes 2-4/10"));
            assert_eq!(received.metadata, [("a".to_owned(), "b".to_owned())]);
        }
        assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_is_replaced() {
        // The second request comes to nothing on the first connection.
        let (target, made) = server(vec![PART, "", PART]).await;
        let wire = Wire::new(Duration::from_secs(5));
        for _ in 0..2 {
            let received = ask(&wire, &target).await.expect("answered").expect("whole");
            assert_eq!(&received.body[..], b"cde");
        }
        assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_says_no_single_length_is_not_read_and_its_connection_not_used_again() {
        let chunked = "HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncde\r\n0\r\n\r\n";
        let both = "HTTP/1.1 206 P\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\ncde";
        let two = "HTTP/1.1 206 P\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\ncde";
        let long = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\ncde";
        for answer in [chunked, both, two, long] {
            let (target, _) = server(vec![answer]).await;
            let wire = Wire::new(Duration::from_secs(5));
            assert!(ask(&wire, &target).await.expect("answered").is_none(), "{answer}");
            assert!(wire.idle().is_empty());
        }
    }

    #[tokio::test]
    async fn a_connection_with_something_left_on_it_is_not_used_again() {
        for answer in [
            "HTTP/1.1 206 P\r\nContent-Length: 3\r\n\r\ncdefg",
            "HTTP/1.1 206 P\r\nConnection: close\r\nContent-Length: 3\r\n\r\ncde",
        ] {
            let (target, _) = server(vec![answer]).await;
            let wire = Wire::new(Duration::from_secs(5));
            let received = ask(&wire, &target).await.expect("answered").expect("whole");
            assert_eq!(&received.body[..], b"cde");
            // What is left may arrive later than the answer: then it is seen when the connection is wanted.
            assert!(wire.kept(&target.authority).is_none() || !answer.contains("close"));
        }
    }

    #[tokio::test]
    async fn broken_answers_are_errors() {
        for answer in ["HTTP/1.1 206 P\r\nContent-Length: 100\r\n\r\ncde", "nonsense, and 100\r\n\r\n"] {
            let (target, _) = server(vec![answer]).await;
            assert!(ask(&Wire::new(Duration::from_secs(5)), &target).await.is_err(), "{answer}");
        }
    }

    #[test]
    fn targets() {
        let target = |url| Target::of(url).map(|target| (target.address(), target.path.to_string()));
        assert_eq!(target("http://h/b/k?q"), Some(("h:80".to_owned(), "/b/k?q".to_owned())));
        assert_eq!(target("http://[::1]:8333/b"), Some(("[::1]:8333".to_owned(), "/b".to_owned())));
        for other in ["https://h/b", "http://h", "http:///b", "http://u@h/b", "http://h/b c", "http://h/b\r\nX: y"] {
            assert_eq!(target(other), None, "{other}");
        }
    }
}
