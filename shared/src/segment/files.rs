//! The file list of a segment in little memory: a shard of tiny files has a million of them, and a worker holds as many
//! lists as it has slots.
//!
//! Neighbours in a plan share folders, dates and prefixes. So files stand in blocks, and each text is kept as the length it
//! shares with the same text of the block's first file, and the rest. Any file is found without reading the ones before it.

use std::cmp::Ordering;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SegmentFile;
use crate::ids::Uid;
use crate::varint;

/// Files of a block.
const BLOCK: usize = 64;
/// Uids of at most so many bytes are put together for sorting.
const MOST_UIDS_BYTES: usize = 4 << 20;
/// Places of the texts of a file.
const UID: usize = 0;
const SOURCE: usize = 2;

/// Files in the order of the plan. Takes about 20 bytes a file plus what it does not share with its neighbours.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FileList {
    full: Vec<Block>,
    /// The block being filled; fewer than [`BLOCK`] files.
    last: Block,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Block {
    /// Of each file: size, three pairs of lengths as varints, then the three rests.
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

/// A text in two pieces, the first shared with a neighbour. Both are UTF-8 by themselves.
#[derive(Clone, Copy)]
pub struct Joined<'a> {
    shared: &'a [u8],
    own: &'a [u8],
}

/// The uids of a list, back to back.
#[derive(Default)]
struct Uids {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
}

impl Uids {
    fn of(&self, at: u32) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at as usize - 1] };
        &self.bytes[start as usize..self.ends[at as usize] as usize]
    }
}

/// A file of a [`FileList`], borrowed.
#[derive(Clone, Copy, Debug)]
pub struct FileView<'a> {
    /// The file's name in DES.
    pub uid: Joined<'a>,
    /// `created_at` as written in the manifest.
    pub created_at: Joined<'a>,
    /// Size in bytes, as the manifest says.
    pub size_bytes: u64,
    /// Absolute path or `s3://` URI.
    pub source: Joined<'a>,
}

impl<'a> Joined<'a> {
    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.shared.iter().chain(self.own).copied()
    }

    /// The bytes of the text's pieces, in order.
    pub fn pieces(&self) -> [&'a [u8]; 2] {
        [self.shared, self.own]
    }

    /// Appends the text to another.
    pub fn push_to(&self, text: &mut String) {
        text.push_str(utf8(self.shared));
        text.push_str(utf8(self.own));
    }

    /// Whether the text begins with another.
    pub fn starts_with(&self, head: &str) -> bool {
        let (first, rest) = head.as_bytes().split_at(head.len().min(self.shared.len()));
        self.shared.starts_with(first) && self.own.starts_with(rest)
    }

    /// Compares the bytes with those of a text.
    pub fn cmp_str(&self, other: &str) -> Ordering {
        self.cmp(&Joined { shared: b"", own: other.as_bytes() })
    }
}

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(utf8(self.shared))?;
        f.write_str(utf8(self.own))
    }
}

impl fmt::Debug for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

impl PartialEq for Joined<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Joined<'_> {}
impl PartialOrd for Joined<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
/// By bytes, as the texts put together compare.
impl Ord for Joined<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Two files of one block share the same head, up to the shorter of what they share with it.
        if self.shared == other.shared {
            return self.own.cmp(other.own);
        }
        self.bytes().cmp(other.bytes())
    }
}

impl FileView<'_> {
    /// The file with texts of its own.
    pub fn to_file(&self) -> SegmentFile {
        SegmentFile {
            uid: self.uid(),
            created_at: self.created_at.to_string(),
            size_bytes: self.size_bytes,
            source: self.source.to_string(),
        }
    }

    /// The uid as a text of its own.
    pub fn uid(&self) -> Uid {
        Uid::new(self.uid.to_string()).expect("it was a uid when it was put in")
    }
}

impl FileList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many files.
    pub fn len(&self) -> usize {
        self.full.len() * BLOCK + self.last.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a file behind the others.
    pub fn push(&mut self, file: &SegmentFile) {
        self.push_texts(file.size_bytes, [file.uid.as_str(), &file.created_at, &file.source]);
    }

    /// Adds a file of `size_bytes` behind the others: its uid, which must be one, `created_at` and source.
    pub(crate) fn push_texts(&mut self, size_bytes: u64, texts: [&str; 3]) {
        self.last.push(size_bytes, texts);
        if self.last.starts.len() == BLOCK {
            let mut block = std::mem::take(&mut self.last);
            block.bytes.shrink_to_fit();
            block.starts.shrink_to_fit();
            self.full.push(block);
        }
    }

    /// The file at a position, from 0; `None` behind the end.
    pub fn get(&self, at: usize) -> Option<FileView<'_>> {
        let block = self.full.get(at / BLOCK).unwrap_or(&self.last);
        let inside = if at / BLOCK < self.full.len() { at % BLOCK } else { at - self.full.len() * BLOCK };
        (inside < block.starts.len()).then(|| block.view(inside))
    }

    /// The file at a position.
    ///
    /// # Panics
    /// Behind the end.
    pub fn at(&self, position: u32) -> FileView<'_> {
        let found = self.get(position as usize);
        found.unwrap_or_else(|| panic!("file {position} of a segment with {}", self.len()))
    }

    /// The uid of the file at a position: a part of what [`Self::at`] tells, for less.
    ///
    /// # Panics
    /// Behind the end.
    pub fn uid(&self, position: u32) -> Joined<'_> {
        let (block, inside) = self.place(position);
        block.text(inside, UID)
    }

    /// The source of the file at a position, likewise.
    ///
    /// # Panics
    /// Behind the end.
    pub fn source(&self, position: u32) -> Joined<'_> {
        let (block, inside) = self.place(position);
        block.text(inside, SOURCE)
    }

    /// The size in bytes of the file at a position, likewise.
    ///
    /// # Panics
    /// Behind the end.
    pub fn size_bytes(&self, position: u32) -> u64 {
        let (block, inside) = self.place(position);
        take(&mut &block.bytes[block.starts[inside] as usize..])
    }

    fn place(&self, position: u32) -> (&Block, usize) {
        let at = position as usize;
        match self.full.get(at / BLOCK) {
            Some(block) => (block, at % BLOCK),
            None => (&self.last, at - self.full.len() * BLOCK),
        }
    }

    /// All files in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = FileView<'_>> {
        (0..self.len()).map(|at| self.at(at as u32))
    }

    /// Positions in the byte order of the uids; of equal ones, as they stand.
    pub fn by_uid(&self) -> Vec<u32> {
        let mut sorted: Vec<u32> = (0..self.len() as u32).collect();
        match self.uids_at_once() {
            Some(uids) => sorted.sort_unstable_by(|a, b| uids.of(*a).cmp(uids.of(*b)).then(a.cmp(b))),
            None => sorted.sort_by(|a, b| self.uid(*a).cmp(&self.uid(*b))),
        }
        sorted
    }

    /// All uids put together once, instead of for each look at one; `None` where they would take too much memory.
    fn uids_at_once(&self) -> Option<Uids> {
        let mut uids = Uids::default();
        for at in 0..self.len() as u32 {
            let [shared, own] = self.uid(at).pieces();
            if uids.bytes.len() + shared.len() + own.len() > MOST_UIDS_BYTES {
                return None;
            }
            uids.bytes.extend_from_slice(shared);
            uids.bytes.extend_from_slice(own);
            uids.ends.push(uids.bytes.len() as u32);
        }
        Some(uids)
    }

    /// Memory held, in bytes.
    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        let blocks = self.full.iter().chain([&self.last]);
        let inside: usize = blocks.map(|block| block.bytes.capacity() + 4 * block.starts.capacity()).sum();
        inside + self.full.capacity() * size_of::<Block>()
    }
}

impl Block {
    fn push(&mut self, size_bytes: u64, texts: [&str; 3]) {
        let start = self.bytes.len();
        // Blocks are small: 64 texts of at most a manifest line each.
        self.starts.push(u32::try_from(start).expect("a block stays below 4 GiB"));
        let heads = if start == 0 { [&[][..]; 3] } else { self.heads() };
        let shared: [usize; 3] = std::array::from_fn(|n| common(texts[n], heads[n]));
        varint::put(&mut self.bytes, size_bytes);
        for (text, shared) in texts.iter().zip(shared) {
            varint::put(&mut self.bytes, shared as u64);
            varint::put(&mut self.bytes, (text.len() - shared) as u64);
        }
        for (text, shared) in texts.iter().zip(shared) {
            self.bytes.extend_from_slice(&text.as_bytes()[shared..]);
        }
    }

    /// The texts of the first file, which shares nothing.
    fn heads(&self) -> [&[u8]; 3] {
        let (_, lengths, mut rest) = self.lengths(0);
        lengths.map(|(_, own)| {
            let (text, behind) = rest.split_at(own);
            rest = behind;
            text
        })
    }

    fn view(&self, at: usize) -> FileView<'_> {
        let heads = if at == 0 { [&[][..]; 3] } else { self.pieces(0).1.map(|(_, own)| own) };
        let (size_bytes, pieces) = self.pieces(at);
        let joined = |n: usize| Joined { shared: &heads[n][..pieces[n].0], own: pieces[n].1 };
        FileView { uid: joined(0), created_at: joined(1), size_bytes, source: joined(2) }
    }

    /// A file's size, and of each text how much is shared and the rest.
    fn pieces(&self, at: usize) -> (u64, [(usize, &[u8]); 3]) {
        let (size, lengths, mut rest) = self.lengths(at);
        let pieces = lengths.map(|(shared, own)| {
            let (text, behind) = rest.split_at(own);
            rest = behind;
            (shared, text)
        });
        (size, pieces)
    }

    /// A file's size, of each text how much is shared and how long the rest is, and where the rests begin.
    fn lengths(&self, at: usize) -> (u64, [(usize, usize); 3], &[u8]) {
        let mut rest = &self.bytes[self.starts[at] as usize..];
        let size = take(&mut rest);
        let lengths = [(); 3].map(|()| (take(&mut rest) as usize, take(&mut rest) as usize));
        (size, lengths, rest)
    }

    /// One of a file's texts.
    fn text(&self, at: usize, which: usize) -> Joined<'_> {
        let own = |at: usize| {
            let (_, lengths, rest) = self.lengths(at);
            let start: usize = lengths[..which].iter().map(|(_, own)| own).sum();
            (lengths[which].0, &rest[start..start + lengths[which].1])
        };
        let (shared, text) = own(at);
        let head = if shared == 0 { &[][..] } else { &own(0).1[..shared] };
        Joined { shared: head, own: text }
    }
}

fn utf8(text: &[u8]) -> &str {
    std::str::from_utf8(text).expect("texts are cut between characters")
}

/// Bytes two texts begin with, cut between characters.
fn common(text: &str, head: &[u8]) -> usize {
    let (words, other) = (text.as_bytes().as_chunks::<8>().0, head.as_chunks::<8>().0);
    let words = 8 * words.iter().zip(other).take_while(|(a, b)| a == b).count();
    let rest = text.as_bytes()[words..].iter().zip(&head[words..]);
    text.floor_char_boundary(words + rest.take_while(|(a, b)| a == b).count())
}

/// A number of a block's own bytes.
fn take(rest: &mut &[u8]) -> u64 {
    varint::take(rest).expect("numbers were encoded here")
}

impl fmt::Debug for FileList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<SegmentFile> for FileList {
    fn from_iter<I: IntoIterator<Item = SegmentFile>>(files: I) -> Self {
        let mut list = Self::new();
        files.into_iter().for_each(|file| list.push(&file));
        list
    }
}

impl From<Vec<SegmentFile>> for FileList {
    fn from(files: Vec<SegmentFile>) -> Self {
        files.into_iter().collect()
    }
}

/// As a list of [`SegmentFile`]s.
impl Serialize for FileList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.len()))?;
        for file in self.iter() {
            list.serialize_element(&file.to_file())?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for FileList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;
        impl<'de> Visitor<'de> for Files {
            type Value = FileList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of files")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> Result<FileList, A::Error> {
                let mut list = FileList::new();
                while let Some(file) = files.next_element::<SegmentFile>()? {
                    list.push(&file);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Files)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compact;

    fn file(uid: &str, created_at: &str, size_bytes: u64, source: &str) -> SegmentFile {
        let (created_at, source) = (created_at.to_owned(), source.to_owned());
        SegmentFile { uid: Uid::new(uid).expect("a uid"), created_at, size_bytes, source }
    }

    fn any_file() -> impl Strategy<Value = SegmentFile> {
        let text = "[abäß/€]{0,9}";
        ("[abäß/€😀]{1,9}", text, any::<u64>(), text)
            .prop_map(|(uid, date, size, source)| file(&uid, &date, size, &source))
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(files in prop::collection::vec(any_file(), 0..200)) {
            let list: FileList = files.iter().cloned().collect();
            prop_assert_eq!(list.len(), files.len());
            prop_assert_eq!(list.iter().map(|view| view.to_file()).collect::<Vec<_>>(), files.clone());
            prop_assert!(list.get(files.len()).is_none());
            // Its stored form is that of a plain list.
            let bytes = compact::encode(&list);
            prop_assert_eq!(&bytes, &compact::encode(&files));
            prop_assert_eq!(compact::decode::<FileList>(&bytes).expect("a list"), list.clone());
            let mut sorted: Vec<u32> = (0..files.len() as u32).collect();
            sorted.sort_by(|a, b| files[*a as usize].uid.as_str().cmp(files[*b as usize].uid.as_str()));
            prop_assert_eq!(list.by_uid(), sorted);
            for (at, file) in (0..).zip(&files) {
                prop_assert_eq!(list.uid(at).to_string(), file.uid.as_str());
                prop_assert_eq!(list.source(at).to_string(), file.source.as_str());
                prop_assert_eq!(list.size_bytes(at), file.size_bytes);
                prop_assert!(list.source(at).starts_with(&file.source));
                let longer = format!("{}x", file.source);
                prop_assert!(!list.source(at).starts_with(&longer), "{}", longer);
            }
            for (view, file) in list.iter().zip(&files) {
                prop_assert_eq!(view.uid.cmp_str("aß"), file.uid.as_str().cmp("aß"));
            }
        }
    }

    #[test]
    fn neighbours_share_what_they_have_in_common() {
        let files = (0..10_000).map(|n| {
            let uid = format!("{:03}/{n:07}.json", n / 1000);
            file(&uid, "2024-03-01T00:00:00Z", 1100, &format!("/srv/archive/incoming/{uid}"))
        });
        let list: FileList = files.collect();
        let each = list.heap_bytes() / list.len();
        assert!(each < 48, "{each} bytes a file; the texts alone are 74");
    }
}
