//! From asynchronous bytes to a blocking reader, with a bound on what lies between.
//!
//! Invariant: the reader sees the end only when the writer said so. A writer that vanished is an error, because half
//! a manifest of lines is a valid manifest too.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Chunks that may wait between the two ends.
const CHUNKS: usize = 4;

enum Message {
    Chunk(Bytes),
    Failed(io::Error),
    End,
}

/// The writing end.
pub(crate) struct PipeWriter(mpsc::Sender<Message>);

/// The reading end. Only for blocking threads.
pub(crate) struct PipeReader {
    receiver: mpsc::Receiver<Message>,
    current: Bytes,
    ended: bool,
}

/// A pipe.
pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    (PipeWriter(sender), PipeReader { receiver, current: Bytes::new(), ended: false })
}

/// The reader is gone: nobody wants more.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl PipeWriter {
    /// Hands on a chunk; waits while too many lie between.
    pub(crate) async fn chunk(&self, bytes: Bytes) -> Result<(), ReaderGone> {
        self.send(Message::Chunk(bytes)).await
    }

    /// Says that everything was written.
    pub(crate) async fn end(self) -> Result<(), ReaderGone> {
        self.send(Message::End).await
    }

    /// Says that the source failed.
    pub(crate) async fn fail(self, error: io::Error) -> Result<(), ReaderGone> {
        self.send(Message::Failed(error)).await
    }

    async fn send(&self, message: Message) -> Result<(), ReaderGone> {
        self.0.send(message).await.map_err(|_| ReaderGone)
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended && !buffer.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Message::Chunk(bytes)) => self.current = bytes,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Err(error),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the writer stopped half way")),
            }
        }
        let taken = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(mut reader: PipeReader) -> tokio::task::JoinHandle<io::Result<Vec<u8>>> {
        tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        })
    }

    #[tokio::test]
    async fn bytes_come_through_in_order_and_empty_chunks_are_no_end() {
        let (writer, reader) = pipe();
        let read = read_all(reader);
        for chunk in ["ab", "", "c", "def"] {
            writer.chunk(Bytes::from_static(chunk.as_bytes())).await.expect("the reader is there");
        }
        writer.end().await.expect("the reader is there");
        assert_eq!(read.await.expect("no panic").expect("all of it"), b"abcdef");
    }

    #[tokio::test]
    async fn a_vanished_writer_is_not_an_end() {
        let (writer, reader) = pipe();
        let read = read_all(reader);
        writer.chunk(Bytes::from_static(b"ab")).await.expect("the reader is there");
        drop(writer);
        let error = read.await.expect("no panic").expect_err("half a text");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_writer_learns_that_nobody_reads() {
        let (writer, reader) = pipe();
        drop(reader);
        assert!(writer.chunk(Bytes::from_static(b"ab")).await.is_err());
    }
}
