//! Log lines on their way to standard error.
//!
//! A separate thread writes them. A full pipe, a full disk or a closed reader therefore neither blocks nor ends other
//! work. Lines that do not fit into the queue or cannot be written are dropped and counted. The next line that can be
//! written reports their number.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Most bytes of lines that wait to be written.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// How long the end of a process waits for its last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Where lines go, and what to say of lost ones.
pub(super) struct Destination {
    /// Takes one line at a time.
    pub(super) out: Box<dyn Write + Send>,
    /// The line that says how many lines were lost, with its end.
    pub(super) lost: fn(u64) -> String,
}

/// Takes lines; never waits and never fails.
#[derive(Clone)]
pub(super) struct Lines(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were dropped and not told of yet.
    lost: u64,
    /// The thread has lines that it has not written yet.
    writing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in it can be half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(destination: Destination) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let lines = Self(Arc::clone(&queue));
        thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&queue, destination))?;
        Ok(lines)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.bytes + line.len() > MAX_WAITING_BYTES {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        state.waiting.push_back(line.to_vec());
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, at most [`FLUSH_WITHIN`].
    pub(super) fn flush(&self) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(self.0.changed.wait_timeout_while(self.0.lock(), FLUSH_WITHIN, busy));
    }
}

/// Writes for as long as the process lives.
fn write_all(queue: &Queue, mut destination: Destination) {
    loop {
        let idle = |state: &mut State| state.waiting.is_empty();
        let mut state = queue.changed.wait_while(queue.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut state.waiting);
        let lost = std::mem::take(&mut state.lost);
        state.bytes = 0;
        state.writing = true;
        drop(state);
        let lost = write_some(&mut destination, lost, lines);
        let mut state = queue.lock();
        state.lost += lost;
        state.writing = false;
        drop(state);
        queue.changed.notify_all();
    }
}

/// Writes lines, behind one that tells of `lost` ones. Answers how many are lost now and not told of.
fn write_some(destination: &mut Destination, mut lost: u64, lines: VecDeque<Vec<u8>>) -> u64 {
    for line in lines {
        if lost > 0 && destination.out.write_all((destination.lost)(lost).as_bytes()).is_ok() {
            lost = 0;
        }
        if destination.out.write_all(&line).is_err() {
            lost += 1;
        }
    }
    lost
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Takes one line, in one piece.
pub(super) struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Sends each line to the test. A write blocks until the test receives it, and fails after the receiver is dropped.
    struct Pipe(SyncSender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Lines, Receiver<String>) {
        let (sender, receiver) = sync_channel(0);
        let lost = |lines: u64| format!("{lines} lost\n");
        (Lines::start(Destination { out: Box::new(Pipe(sender)), lost }).expect("a thread"), receiver)
    }

    #[test]
    fn lines_come_out_in_order() {
        let (lines, pipe) = start();
        for number in 0..100 {
            lines.push(format!("{number}\n").as_bytes());
        }
        let taken: Vec<String> = pipe.iter().take(100).collect();
        assert!(taken.iter().enumerate().all(|(number, line)| *line == format!("{number}\n")), "{taken:?}");
        lines.flush();
        assert!(lines.0.lock().waiting.is_empty());
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_told_of() {
        // Without a thread that writes.
        let lines = Lines(Arc::default());
        for _ in 0..40 {
            lines.push(&vec![b'x'; MAX_WAITING_BYTES / 8]);
        }
        let state = lines.0.lock();
        assert_eq!((state.waiting.len(), state.bytes, state.lost), (8, MAX_WAITING_BYTES, 32));
        drop(state);

        let (sender, pipe) = sync_channel(10);
        let mut destination = Destination { out: Box::new(Pipe(sender)), lost: |lines| format!("{lines} lost\n") };
        let two = || VecDeque::from([b"a\n".to_vec(), b"b\n".to_vec()]);
        assert_eq!(write_some(&mut destination, 32, two()), 0);
        assert_eq!(pipe.try_iter().collect::<Vec<_>>(), ["32 lost\n", "a\n", "b\n"]);
        drop(pipe);
        assert_eq!(write_some(&mut destination, 3, two()), 5);
    }

    #[test]
    fn a_reader_that_has_gone_ends_nothing() {
        let (lines, pipe) = start();
        drop(pipe);
        for _ in 0..10 {
            lines.push(b"x\n");
            lines.flush();
        }
        assert_eq!(lines.0.lock().lost, 10);
    }
}
