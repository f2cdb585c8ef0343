//! Lines and server-sent events out of a stream of bytes.

use std::collections::VecDeque;

/// Longest line that is kept, in bytes; a longer one is no answer of ours.
const MAX_LINE_BYTES: usize = 8 << 20;

/// Cuts bytes into lines. Ends of lines are `\n` or `\r\n`.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
}

impl Lines {
    /// Takes bytes as they come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                if self.rest.last() == Some(&b'\r') {
                    self.rest.pop();
                }
                self.ready.push_back(std::mem::take(&mut self.rest));
            }
            self.rest.truncate(MAX_LINE_BYTES);
        }
    }

    /// The next whole line.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its kind.
    pub(crate) kind: String,
    /// Its id, to go on behind.
    pub(crate) id: Option<String>,
    /// Its data.
    pub(crate) data: String,
}

/// Puts lines together into events, as the HTML standard says.
#[derive(Debug, Default)]
pub(crate) struct Events {
    lines: Lines,
    current: Event,
}

impl Events {
    /// Takes bytes as they come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.lines.feed(bytes);
    }

    /// The next whole event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        while let Some(line) = self.lines.next() {
            let line = String::from_utf8_lossy(&line);
            if line.is_empty() {
                let event = std::mem::take(&mut self.current);
                if event.data.is_empty() {
                    continue;
                }
                return Some(event);
            }
            let (name, value) = line.split_once(':').unwrap_or((line.as_ref(), ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => value.clone_into(&mut self.current.kind),
                "id" => self.current.id = Some(value.to_owned()),
                "data" => {
                    if !self.current.data.is_empty() {
                        self.current.data.push('\n');
                    }
                    self.current.data.push_str(value);
                }
                // Comments keep the connection alive; other fields are none of ours.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, id: Option<&str>, data: &str) -> Event {
        Event { kind: kind.into(), id: id.map(str::to_owned), data: data.into() }
    }

    #[test]
    fn events_are_put_together_however_they_are_cut() {
        let text =
            b": hello\n\nid: 1\nevent: state\ndata: {\"a\":\ndata:  1}\r\n\r\nevent: end\nid:2\ndata: x\n\ndata: half";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                events.feed(piece);
                while let Some(event) = events.next() {
                    found.push(event);
                }
            }
            assert_eq!(found, [event("state", Some("1"), "{\"a\":\n 1}"), event("end", Some("2"), "x")], "{size}");
        }
    }

    #[test]
    fn an_endless_line_does_not_fill_the_memory() {
        let mut lines = Lines::default();
        for _ in 0..20 {
            lines.feed(&vec![b'x'; 1 << 20]);
        }
        assert!(lines.rest.len() <= MAX_LINE_BYTES);
    }
}
