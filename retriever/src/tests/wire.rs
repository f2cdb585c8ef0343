//! Requests as they go over the wire, by hand and by curl: no client repairs them on the way.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

/// A request: method, target as it is written in the first line, headers.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) headers: Vec<(&'static str, String)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Names in lower case, sorted.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an end of the headers");
        let head = std::str::from_utf8(&bytes[..end]).expect("ASCII headers");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let field = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let mut headers: Vec<_> = lines.map(field).collect();
        headers.sort();
        Self { status: status.parse().expect("a number"), headers, body: bytes[end + 4..].to_vec() }
    }

    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

/// Which program asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    ByHand,
    Curl,
}

impl Client {
    /// Asks a server on 127.0.0.1; `address` is its host and port.
    pub(super) async fn ask(self, address: &str, asked: &Asked) -> Reply {
        match self {
            Self::ByHand => by_hand(address, asked).await,
            Self::Curl => curl(address, asked).await,
        }
    }
}

async fn by_hand(address: &str, asked: &Asked) -> Reply {
    let mut request = format!("{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n", asked.method, asked.target);
    for (name, value) in &asked.headers {
        request.extend([*name, ": ", value.as_str(), "\r\n"]);
    }
    request.push_str("\r\n");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("an answer");
    Reply::parse(&bytes)
}

async fn curl(address: &str, asked: &Asked) -> Reply {
    let mut command = Command::new("curl");
    // Without its configuration file, and without a body where the method has none.
    command.args(["--disable", "--silent", "--show-error", "--include", "--max-time", "30", "--noproxy", "*"]);
    match asked.method {
        "HEAD" => command.arg("--head"),
        method => command.args(["--request", method]),
    };
    command.args(["--request-target", &asked.target, "--header", "Connection: close"]);
    for (name, value) in &asked.headers {
        command.args(["--header", &format!("{name}: {value}")]);
    }
    command.arg(format!("http://{address}/")).stdin(Stdio::null());
    let output = command.output().await.expect("curl is there; run scripts/setup, which installs what the tests need");
    assert!(output.status.success(), "{asked:?}: {}", String::from_utf8_lossy(&output.stderr));
    Reply::parse(&output.stdout)
}
