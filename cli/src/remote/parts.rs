//! The parts of a batch's answer (`multipart/mixed`), read as they come. Every part says its length, so nothing is
//! searched for.

use bytes::{Buf, Bytes, BytesMut};
use reqwest::Response;

/// The longest head of a part, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// What a part says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Which of the files asked for; none for what was not asked for.
    pub(crate) index: Option<usize>,
    /// HTTP status.
    pub(crate) status: u16,
    /// Size in bytes.
    pub(crate) length: u64,
}

/// Why there are no more parts, though not all are there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartsError {
    /// The connection broke, or the service broke the answer off.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// Not what a retriever sends.
    #[error("the answer is not that of a DES retriever: {0}")]
    Wrong(&'static str),
}

/// Reads parts, one after the other: [`Parts::next`], then [`Parts::piece`] until there is none.
pub(crate) struct Parts {
    response: Response,
    buffer: BytesMut,
    /// Two dashes and the boundary.
    delimiter: String,
    /// Bytes of the part at hand that are still to come.
    left: u64,
}

impl Parts {
    /// The parts of an answer.
    pub(crate) fn of(response: Response) -> Result<Self, PartsError> {
        let kind = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = kind.split(';').find_map(|part| part.trim().strip_prefix("boundary="));
        let Some(boundary) = boundary.filter(|_| kind.starts_with("multipart/")) else {
            return Err(PartsError::Wrong("it has no parts"));
        };
        let delimiter = format!("--{}", boundary.trim_matches('"'));
        Ok(Self { response, buffer: BytesMut::new(), delimiter, left: 0 })
    }

    /// The head of the next part; `None` when the answer ended as it should.
    pub(crate) async fn next(&mut self) -> Result<Option<Head>, PartsError> {
        while self.piece().await?.is_some() {}
        let mut line = self.line().await?;
        // The line end before a delimiter belongs to the delimiter.
        if line.is_empty() {
            line = self.line().await?;
        }
        match line.strip_prefix(&self.delimiter) {
            Some("") => {}
            Some("--") => return Ok(None),
            _ => return Err(PartsError::Wrong("a part does not end where it says")),
        }
        let (mut head, mut length) = (Head::default(), None);
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(PartsError::Wrong("a header without a colon"))?;
            let number = || value.trim().parse::<u64>().map_err(|_| PartsError::Wrong("a number that is none"));
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(number()?),
                "x-des-index" => head.index = Some(number()? as usize),
                "x-des-status" => head.status = u16::try_from(number()?).unwrap_or(0),
                _ => {}
            }
        }
        head.length = length.ok_or(PartsError::Wrong("a part without a length"))?;
        self.left = head.length;
        Ok(Some(head))
    }

    /// A piece of the part at hand.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, PartsError> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.buffer.is_empty() {
            self.more().await?;
        }
        let now = self.left.min(self.buffer.len() as u64);
        self.left -= now;
        Ok(Some(self.buffer.split_to(now as usize).freeze()))
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<String, PartsError> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(from + at);
                self.buffer.advance(2);
                return String::from_utf8(line.into()).map_err(|_| PartsError::Wrong("a header that is not text"));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(PartsError::Wrong("a header without an end"));
            }
            from = self.buffer.len().saturating_sub(1);
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), PartsError> {
        match self.response.chunk().await {
            Ok(Some(chunk)) => {
                self.buffer.extend_from_slice(&chunk);
                Ok(())
            }
            Ok(None) => Err(PartsError::Broken("it ended too early".to_owned())),
            Err(e) => Err(PartsError::Broken(crate::client::innermost(&e))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(body: &'static str) -> Parts {
        let response = axum::http::Response::builder().header("content-type", "multipart/mixed; boundary=x-1");
        Parts::of(response.body(body).unwrap().into()).unwrap()
    }

    async fn read(body: &'static str) -> Result<Vec<(Head, String)>, PartsError> {
        let (mut parts, mut all) = (parts(body), Vec::new());
        while let Some(head) = parts.next().await? {
            let mut bytes = Vec::new();
            while let Some(piece) = parts.piece().await? {
                bytes.extend_from_slice(&piece);
            }
            all.push((head, String::from_utf8(bytes).unwrap()));
        }
        Ok(all)
    }

    #[tokio::test]
    async fn parts_end_where_they_say() {
        let good = "\r\n--x-1\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nX-DES-Index: 0\r\nX-DES-Status: 200\r\n\r\n\r\n--x-1--\r\nab\r\n--x-1\r\ncontent-length: 0\r\n\r\n\r\n--x-1--\r\n";
        let all = read(good).await.unwrap();
        assert_eq!(all[0], (Head { index: Some(0), status: 200, length: 13 }, "\r\n--x-1--\r\nab".to_owned()));
        assert_eq!(all[1], (Head::default(), String::new()));
        assert_eq!(all.len(), 2);
        for cut in 0..good.len() - 2 {
            let error = read(&good[..cut]).await.expect_err("cut short");
            assert!(matches!(error, PartsError::Broken(_)), "{cut}: {error}");
        }
        for wrong in [
            "nonsense\r\n\r\n",
            "--x-1\r\n\r\n",
            "--x-1\r\nContent-Length: -1\r\n\r\n",
            "--x-1\r\nContent-Length: 1\r\n\r\nab\r\n--x-1--\r\n",
        ] {
            assert!(matches!(read(wrong).await, Err(PartsError::Wrong(_))), "{wrong:?}");
        }
    }
}
