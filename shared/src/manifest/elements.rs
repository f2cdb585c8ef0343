//! Cuts the text of a manifest into the bytes of its elements: lines of NDJSON, or the objects of a JSON list.
//!
//! Only the frame is checked here; whether an element is a right object is for [`super::element`]. Line and column
//! are counted along, so that every error can name its place.

use std::io::{self, BufRead, Read};

use super::{MAX_ELEMENT_BYTES, Place, Position, PositionUnit, plain};

const BUFFER_BYTES: usize = 64 * 1024;
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Why the next element cannot be cut out.
pub(super) enum ElementsError {
    Read(io::Error),
    Syntax { place: Place, problem: String },
}

impl From<io::Error> for ElementsError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Where an element starts, in both ways of counting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) position: Position,
    pub(super) place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing read yet.
    Beginning,
    /// NDJSON, at the start of a line.
    Lines,
    /// In a list, behind its bracket.
    ListStart,
    /// In a list, behind an element.
    ListNext,
}

/// The elements of one manifest.
pub(super) struct Elements<R> {
    input: Bytes<R>,
    state: State,
    number: u64,
    current: Vec<u8>,
}

type Advanced = Result<Option<Start>, ElementsError>;

impl<R: Read> Elements<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: Bytes::new(input), state: State::Beginning, number: 0, current: Vec::new() }
    }

    /// Bytes of text consumed.
    pub(super) fn offset(&self) -> u64 {
        self.input.offset
    }

    /// The bytes of the element that the last [`Elements::advance`] found.
    pub(super) fn current(&self) -> &[u8] {
        &self.current
    }

    /// Goes to the next element; `None` at the proper end of the manifest.
    pub(super) fn advance(&mut self) -> Advanced {
        self.current.clear();
        if self.state == State::Beginning && !self.begin()? {
            return Ok(None);
        }
        match self.state {
            State::Lines => self.next_line(),
            _ => self.next_of_list(),
        }
    }

    /// Tells a list from lines. False when there is nothing but white space.
    fn begin(&mut self) -> Result<bool, ElementsError> {
        self.input.skip_bom()?;
        match self.input.skip_white()? {
            None => Ok(false),
            Some(b'{') => {
                self.state = State::Lines;
                Ok(true)
            },
            Some(b'[') => {
                self.input.bump();
                self.state = State::ListStart;
                Ok(true)
            },
            Some(other) => Err(self.syntax(format!(
                "it starts with {}; expected a JSON list ('[') or one JSON object a line ('{{'), plain, gzip or zstd, in UTF-8",
                show(other)
            ))),
        }
    }

    fn next_line(&mut self) -> Advanced {
        let Some(first) = self.input.skip_white()? else { return Ok(None) };
        let place = self.input.place();
        if first != b'{' {
            return Err(self.syntax(format!(
                "the line starts with {}; expected a JSON object ('{{'), as on the lines before",
                show(first)
            )));
        }
        let start = Start { position: self.position(PositionUnit::Line, place.line), place };
        while let Some(byte) = self.input.peek()? {
            if byte == b'\n' {
                break;
            }
            let chunk = self.input.chunk();
            let taken = line_len(chunk)?;
            if self.current.len() + taken > MAX_ELEMENT_BYTES {
                return Err(too_long(place));
            }
            self.current.extend_from_slice(&chunk[..taken]);
            self.input.bump_within_line(taken);
        }
        Ok(Some(start))
    }

    fn next_of_list(&mut self) -> Advanced {
        let unclosed = "the list is not closed; expected ']' at its end";
        let first = self.input.skip_white()?;
        let Some(mut first) = first else { return Err(self.syntax(unclosed.to_owned())) };
        if first == b']' {
            self.input.bump();
            return self.end_of_list();
        }
        if self.state == State::ListNext {
            if first != b',' {
                return Err(self.syntax(format!("found {} behind an element; expected ',' or ']'", show(first))));
            }
            let comma = self.input.place();
            self.input.bump();
            first = match self.input.skip_white()? {
                None => return Err(self.syntax(unclosed.to_owned())),
                Some(b']') => {
                    let problem = "a comma before the end of the list; JSON allows none there".to_owned();
                    return Err(ElementsError::Syntax { place: comma, problem });
                }
                Some(first) => first,
            };
        }
        let place = self.input.place();
        self.number += 1;
        if first != b'{' {
            let problem = format!("element {} starts with {}; expected a JSON object ('{{')", self.number, show(first));
            return Err(self.syntax(problem));
        }
        let start = Start { position: self.position(PositionUnit::Element, self.number), place };
        self.take_object(place)?;
        self.state = State::ListNext;
        Ok(Some(start))
    }

    /// Copies one object up to the bracket that closes it.
    fn take_object(&mut self, start: Place) -> Result<(), ElementsError> {
        let mut nesting = Nesting::default();
        loop {
            if self.input.peek()?.is_none() {
                let what = if nesting.in_string { "a string" } else { "an object" };
                let problem = format!("the manifest ends inside {what}; the element starts at {start}");
                return Err(self.syntax(problem));
            }
            let room = MAX_ELEMENT_BYTES - self.current.len();
            if room == 0 {
                return Err(too_long(start));
            }
            let chunk = self.input.chunk();
            let chunk = &chunk[..chunk.len().min(room)];
            let mut breaks = Breaks::default();
            let (taken, end) = nesting.follow(chunk, &mut breaks);
            self.current.extend_from_slice(&chunk[..taken]);
            self.input.bump_all(taken, &breaks);
            match end {
                End::Open => {}
                End::Closed => return Ok(()),
                // The usual cause is a missing quote, and this is where to look for it.
                End::Control(byte) => {
                    let problem = format!("found {} inside a string; is a closing quote missing?", show(byte));
                    return Err(self.syntax(problem));
                }
            }
        }
    }

    fn end_of_list(&mut self) -> Advanced {
        match self.input.skip_white()? {
            None => {
                // Nothing follows: every further call sees the end again.
                self.state = State::Lines;
                Ok(None)
            }
            Some(other) => {
                Err(self.syntax(format!("found {} behind the end of the list; expected nothing", show(other))))
            }
        }
    }

    fn position(&self, unit: PositionUnit, number: u64) -> Position {
        Position { unit, number, byte: self.input.offset }
    }

    fn syntax(&self, problem: String) -> ElementsError {
        ElementsError::Syntax { place: self.input.place(), problem }
    }
}

/// Where in an object its bytes are.
#[derive(Default)]
struct Nesting {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

/// Why [`Nesting::follow`] stopped.
enum End {
    /// The bytes are over.
    Open,
    /// The object's last bracket was taken.
    Closed,
    /// This one comes next, and it must not stand in a string.
    Control(u8),
}

/// Line breaks in some bytes.
#[derive(Default)]
struct Breaks {
    count: u64,
    /// Behind the last one.
    behind: usize,
}

impl Nesting {
    /// Follows an object through its next bytes; says how many of them belong to it.
    fn follow(&mut self, bytes: &[u8], breaks: &mut Breaks) -> (usize, End) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.in_string {
                match byte {
                    0..=0x1f => return (at, End::Control(byte)),
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {
                        at += plain::len(&bytes[at..]);
                        continue;
                    }
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth -= 1,
                    b'\n' => (breaks.count, breaks.behind) = (breaks.count + 1, at + 1),
                    _ => {}
                }
            }
            at += 1;
            if self.depth == 0 {
                return (at, End::Closed);
            }
        }
        (at, End::Open)
    }
}

/// Bytes before the first line break; all when there is none.
fn line_len(chunk: &[u8]) -> io::Result<usize> {
    // The library's own search, many bytes at a time.
    let through = { chunk }.skip_until(b'\n')?;
    Ok(through - usize::from(through > 0 && chunk[through - 1] == b'\n'))
}

fn too_long(place: Place) -> ElementsError {
    let problem = format!("the element that starts here is longer than {MAX_ELEMENT_BYTES} bytes or is not closed");
    ElementsError::Syntax { place, problem }
}

fn show(byte: u8) -> String {
    match byte {
        b'\n' => "a line break".to_owned(),
        0x21..=0x7e => format!("'{}'", char::from(byte)),
        _ => format!("the byte 0x{byte:02X}"),
    }
}

/// Buffered bytes with their line and column.
struct Bytes<R> {
    input: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    line: u64,
    line_start: u64,
}

impl<R: Read> Bytes<R> {
    fn new(input: R) -> Self {
        Self { input, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, offset: 0, line: 1, line_start: 0 }
    }

    fn place(&self) -> Place {
        Place { line: self.line, column: self.offset - self.line_start + 1 }
    }

    /// The next byte, without taking it.
    fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.input.read(&mut self.buffer)?;
            if self.end == 0 {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer[self.start]))
    }

    /// What is buffered; not empty after a successful `peek`.
    fn chunk(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes the byte that `peek` showed.
    fn bump(&mut self) {
        let byte = self.buffer[self.start];
        self.start += 1;
        self.offset += 1;
        if byte == b'\n' {
            self.line += 1;
            self.line_start = self.offset;
        }
    }

    /// Takes `count` buffered bytes with these line breaks.
    fn bump_all(&mut self, count: usize, breaks: &Breaks) {
        if breaks.count > 0 {
            self.line += breaks.count;
            self.line_start = self.offset + breaks.behind as u64;
        }
        self.bump_within_line(count);
    }

    /// Takes `count` buffered bytes that hold no line break.
    fn bump_within_line(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Takes JSON's white space and shows what follows it.
    fn skip_white(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(Some(byte));
            }
            self.bump();
        }
        Ok(None)
    }

    /// Takes a byte-order mark, which may arrive in pieces, at the very start.
    fn skip_bom(&mut self) -> io::Result<()> {
        for expected in BOM {
            match self.peek()? {
                Some(byte) if byte == expected => self.bump(),
                // A piece of one is not a manifest's start either; the caller reports what follows.
                _ => return Ok(()),
            }
        }
        // Columns count from behind it.
        self.line_start = self.offset;
        Ok(())
    }
}
