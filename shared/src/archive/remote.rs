//! One shard where it lies: opened with one read, looked up with at most one more.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::error::ArchiveError;
use super::offload;
use super::source::{Object, ReadKind, Source};
use crate::shard::{
    Block, Codec, Dictionary, Directory, Entry, Footer, HEADER_LEN, Index, LegacyTail, Location, Part, ShardError,
    TAIL_READ_BYTES, Tail, TailBytes, Version, check_stored, check_v3_header, decode_payload, header_of, parse_header,
};
use crate::store::{ByteRange, ObjectMeta};

/// The longest index of versions 1 and 2, and the longest stored directory of version 3, that is read into memory.
const MAX_INDEX_BYTES: u64 = 512 << 20;
const MAX_DIRECTORY_BYTES: u64 = 32 << 20;

/// The name of what is kept of a tail.
const TAIL: &str = "tail";

/// An opened shard: its object and the parts of its index that every look-up needs.
#[derive(Debug)]
pub struct RemoteShard {
    object: Object,
    index: OpenIndex,
}

#[derive(Debug)]
pub(super) enum OpenIndex {
    Legacy(Index),
    V3(Box<V3Index>),
}

#[derive(Debug)]
pub(super) struct V3Index {
    pub(super) footer: Footer,
    pub(super) directory: Directory,
    dictionary: Option<Arc<Dictionary>>,
    /// All index blocks, and where they start, when the tail read brought all of them: look-ups need no other read.
    blocks: Option<(u64, Bytes)>,
}

/// Where a look-up has to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The shard holds the uid.
    Found(Entry),
    /// The shard does not hold it.
    Absent,
    /// The index block of this number tells: [`RemoteShard::block`], then [`Block::find`].
    InBlock(usize),
}

impl RemoteShard {
    /// Opens the shard under `key`. One read for a usual shard; one more for an index of versions 1 and 2 that does not fit
    /// into the tail, and one for the header of those where the index does not tell the version.
    ///
    /// # Errors
    /// [`ArchiveError`] when it cannot be read, or its end is not that of an undamaged shard.
    pub async fn open(source: impl Into<Source>, key: &str) -> Result<Self, ArchiveError> {
        Self::open_tail(source.into(), key, None).await
    }

    /// The same for an object that a listing showed: another one under its key is an error.
    ///
    /// # Errors
    /// As [`RemoteShard::open`], and [`ArchiveError::Changed`].
    pub async fn open_listed(source: impl Into<Source>, listed: &ObjectMeta) -> Result<Self, ArchiveError> {
        Self::open_tail(source.into(), &listed.key, Some(listed)).await
    }

    async fn open_tail(source: Source, key: &str, listed: Option<&ObjectMeta>) -> Result<Self, ArchiveError> {
        if let Some(listed) = listed {
            let object = Object { source: source.clone(), meta: listed.clone() };
            if let Some(kept) = Self::open_kept(object).await {
                return Ok(kept);
            }
        }
        source.noted(ReadKind::Tail);
        let fetched = source.store.get(key, ByteRange::Suffix(TAIL_READ_BYTES)).await?;
        let object = Object { source, meta: fetched.meta };
        if let Some(listed) = listed {
            Object { source: object.source.clone(), meta: listed.clone() }.check_same(&object.meta)?;
        }
        let tail = TailBytes::new(object.meta.size, fetched.bytes).map_err(|e| object.damaged(e))?;
        let index = match Tail::parse(&tail).map_err(|e| object.damaged(e))? {
            Tail::Legacy(legacy) => OpenIndex::Legacy(open_legacy(&object, &tail, legacy).await?),
            Tail::V3(footer) => OpenIndex::V3(Box::new(open_v3(&object, &tail, footer).await?)),
        };
        if let OpenIndex::V3(v3) = &index {
            v3.keep_tail(&object, &tail);
        }
        Ok(Self { object, index })
    }

    /// From what is kept of the tail. Only version 3 has the checksums for that.
    async fn open_kept(object: Object) -> Option<Self> {
        let parse = |bytes: Bytes| {
            let tail = TailBytes::new(object.meta.size, bytes).map_err(|e| object.damaged(e))?;
            match Tail::parse(&tail).map_err(|e| object.damaged(e))? {
                Tail::V3(footer) => Ok((tail, footer)),
                Tail::Legacy(_) => Err(object.damaged(ShardError::Usage("an old shard was kept".to_owned()))),
            }
        };
        let (tail, footer) = object.kept(TAIL, ReadKind::Tail, parse).await?;
        match open_v3(&object, &tail, footer).await {
            Ok(v3) => Some(Self { index: OpenIndex::V3(Box::new(v3)), object }),
            Err(error) => {
                tracing::warn!("a kept directory is wrong, the store is asked: {error}");
                None
            }
        }
    }

    /// The shard's object, as it was when it was opened.
    pub fn object(&self) -> &ObjectMeta {
        &self.object.meta
    }

    /// The store's URL for people.
    pub fn store_url(&self) -> String {
        self.object.source.store.url()
    }

    pub(super) fn index(&self) -> &OpenIndex {
        &self.index
    }

    pub(super) fn remote(&self) -> &Object {
        &self.object
    }

    /// The format's version.
    pub fn version(&self) -> Version {
        match &self.index {
            OpenIndex::Legacy(index) => index.version(),
            OpenIndex::V3(_) => Version::V3,
        }
    }

    /// How many files the shard holds.
    pub fn len(&self) -> u64 {
        match &self.index {
            OpenIndex::Legacy(index) => index.len() as u64,
            OpenIndex::V3(v3) => v3.footer.entry_count,
        }
    }

    /// True for a shard without files.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The footer of a version 3 shard.
    pub fn footer(&self) -> Option<&Footer> {
        match &self.index {
            OpenIndex::Legacy(_) => None,
            OpenIndex::V3(v3) => Some(&v3.footer),
        }
    }

    /// The shard's dictionary, when it has one.
    pub fn dictionary(&self) -> Option<&Arc<Dictionary>> {
        match &self.index {
            OpenIndex::Legacy(_) => None,
            OpenIndex::V3(v3) => v3.dictionary.as_ref(),
        }
    }

    /// Of two shards of a slot that hold the same uid, the one with the higher sequence wins, then the greater key:
    /// the footer's sequence in version 3, the object's last change in versions 1 and 2 (both Unix milliseconds).
    pub fn sequence(&self) -> u64 {
        match &self.index {
            OpenIndex::Legacy(_) => self.object.meta.last_modified_ms,
            OpenIndex::V3(v3) => v3.footer.sequence,
        }
    }

    /// Looks `uid` up as far as that goes without reading.
    ///
    /// # Errors
    /// [`ArchiveError::Shard`] when the part of the index that would hold it is damaged.
    pub fn look_up(&self, uid: &str) -> Result<Lookup, ArchiveError> {
        match &self.index {
            OpenIndex::Legacy(index) => {
                let entry = index.find(uid).map_err(|e| self.object.damaged(e))?;
                Ok(entry.map_or(Lookup::Absent, Lookup::Found))
            }
            OpenIndex::V3(v3) => Ok(v3.directory.find(uid).map_or(Lookup::Absent, |b| Lookup::InBlock(b.number))),
        }
    }

    /// Reads and checks an index block. No read is made when the shard is small enough that its tail held all blocks.
    ///
    /// # Errors
    /// [`ArchiveError::Shard`] when it is damaged, or the shard has no such block.
    pub async fn block(&self, number: usize) -> Result<Block, ArchiveError> {
        let (v3, range) = self.block_range(number)?;
        match v3.held(&range) {
            Some(bytes) => self.parse_block(number, &bytes),
            None => self.object.read_checked(range, ReadKind::Block, |bytes| self.parse_block(number, bytes)).await,
        }
    }

    /// An index block that can be had without asking the store: from the tail, or from what is kept of earlier reads.
    ///
    /// # Errors
    /// As [`RemoteShard::block`].
    pub async fn kept_block(&self, number: usize) -> Result<Option<Block>, ArchiveError> {
        let (v3, range) = self.block_range(number)?;
        if let Some(bytes) = v3.held(&range) {
            return self.parse_block(number, &bytes).map(Some);
        }
        if !self.object.keeps() {
            return Ok(None);
        }
        let check = |bytes: Bytes| self.parse_block(number, &bytes);
        Ok(self.object.kept(&format!("{range:?}"), ReadKind::Block, check).await)
    }

    /// Several index blocks with one read: their numbers, and each block or what is wrong with it.
    ///
    /// # Errors
    /// [`ArchiveError`] when they cannot be read, or the shard has no such blocks.
    pub async fn read_blocks(
        &self,
        numbers: Range<usize>,
    ) -> Result<Vec<(usize, Result<Block, ArchiveError>)>, ArchiveError> {
        let Some(last) = numbers.clone().last() else { return Ok(Vec::new()) };
        let start = self.block_range(numbers.start)?.1.start;
        let end = self.block_range(last)?.1.end;
        let bytes = self.object.read(start..end, ReadKind::Block).await?;
        let mut blocks = Vec::with_capacity(numbers.len());
        for number in numbers {
            let range = self.block_range(number)?.1;
            let own = &bytes[(range.start - start) as usize..(range.end - start) as usize];
            let block = self.parse_block(number, own);
            if block.is_ok() && self.object.keeps() {
                self.object.keep(&format!("{range:?}"), ReadKind::Block, own);
            }
            blocks.push((number, block));
        }
        Ok(blocks)
    }

    /// How many index blocks the shard has; none in versions 1 and 2, whose index is in memory.
    pub fn blocks(&self) -> usize {
        match &self.index {
            OpenIndex::Legacy(_) => 0,
            OpenIndex::V3(v3) => v3.directory.len(),
        }
    }

    /// Where the index blocks are in the shard.
    pub fn blocks_range(&self) -> Option<Range<u64>> {
        let last = self.blocks().checked_sub(1)?;
        Some(self.block_range(0).ok()?.1.start..self.block_range(last).ok()?.1.end)
    }

    fn block_range(&self, number: usize) -> Result<(&V3Index, Range<u64>), ArchiveError> {
        let OpenIndex::V3(v3) = &self.index else { return Err(self.no_block(number)) };
        let block = v3.directory.block(number).ok_or_else(|| self.no_block(number))?;
        Ok((v3, block.range()))
    }

    /// Checks the bytes of an index block.
    pub(super) fn parse_block(&self, number: usize, bytes: &[u8]) -> Result<Block, ArchiveError> {
        let OpenIndex::V3(v3) = &self.index else { return Err(self.no_block(number)) };
        let block = v3.directory.block(number).ok_or_else(|| self.no_block(number))?;
        Block::parse(bytes, &block).map_err(|e| self.object.damaged(e))
    }

    fn no_block(&self, number: usize) -> ArchiveError {
        self.object.damaged(ShardError::Usage(format!("it has no index block number {number}")))
    }

    /// The entry of `uid`, when the shard holds it. At most one read; a caller with a cache of blocks uses
    /// [`RemoteShard::look_up`] and [`RemoteShard::block`].
    ///
    /// # Errors
    /// [`ArchiveError`] when the part of the index that would hold it cannot be read or is damaged.
    pub async fn find(&self, uid: &str) -> Result<Option<Entry>, ArchiveError> {
        match self.look_up(uid)? {
            Lookup::Found(entry) => Ok(Some(entry)),
            Lookup::Absent => Ok(None),
            Lookup::InBlock(number) => self.block(number).await?.find(uid).map_err(|e| self.object.damaged(e)),
        }
    }

    /// The stored bytes of an inline file, checked against length and checksum, not decompressed.
    ///
    /// # Errors
    /// [`ArchiveError`] when they cannot be read or are damaged; [`ShardError::Usage`] in it for a big file.
    pub async fn read_stored(&self, entry: &Entry) -> Result<Bytes, ArchiveError> {
        let (range, has_checksum) = match entry.location {
            Location::Inline(inline) => (inline.range(), inline.crc32c.is_some()),
            Location::BigFile { .. } => (0..0, false),
        };
        if range.end > self.object.meta.size {
            let detail = format!("entry {:?} ends at {}, behind the shard's end", entry.uid, range.end);
            return Err(self.object.damaged(ShardError::Usage(detail)));
        }
        let check = |stored: &Bytes| {
            check_stored(entry, stored).map_err(|e| self.object.damaged(e))?;
            Ok(stored.clone())
        };
        if has_checksum {
            return self.object.read_checked(range, ReadKind::Payload, check).await;
        }
        // Nobody could tell later whether what was kept is right.
        check(&self.object.read(range, ReadKind::Payload).await?)
    }

    /// The bytes of an inline file, all checks included. For a service that serves many, [`RemoteShard::read_stored`]
    /// and decoders of its own cost less.
    ///
    /// # Errors
    /// As [`RemoteShard::read_stored`], and for what does not decompress to what the index says.
    pub async fn read(&self, entry: &Entry) -> Result<Bytes, ArchiveError> {
        let stored = self.read_stored(entry).await?;
        if let Location::Inline(inline) = entry.location
            && inline.codec == Codec::None
        {
            // Nothing to do but the checks that were made already, and that of the two lengths.
            return decode_payload(entry, stored, None).map_err(|e| self.object.damaged(e));
        }
        let (entry, dictionary) = (entry.clone(), self.dictionary().cloned());
        let work = stored.len() as u64 + entry.raw_len();
        let raw = offload(work, move || decode_payload(&entry, stored, dictionary.as_deref())).await;
        raw.map_err(|e| self.object.damaged(e))
    }

    /// Reads and checks the header, which no look-up needs where the rest of the shard tells its version.
    ///
    /// # Errors
    /// [`ArchiveError::Shard`] when it is not that of the version the rest says.
    pub async fn check_header(&self) -> Result<(), ArchiveError> {
        let header = self.object.read(0..HEADER_LEN, ReadKind::Index).await?;
        let checked = match self.version() {
            Version::V3 => check_v3_header(&header),
            version => parse_header(&header).and_then(|found| {
                let detail =
                    format!("version {} in the header, but the index of version {}", found as u8, version as u8);
                let wrong = ShardError::Corrupt { part: Part::Header, offset: 4, detail };
                if found == version { Ok(()) } else { Err(wrong) }
            }),
        };
        checked.map_err(|e| self.object.damaged(e))
    }

    /// An error of this shard, with its name.
    pub fn damaged(&self, source: ShardError) -> ArchiveError {
        self.object.damaged(source)
    }

    /// Memory held in bytes, for a cache that is bounded by bytes.
    pub fn heap_bytes(&self) -> usize {
        let own = size_of::<Self>() + self.object.meta.key.len() + self.object.meta.etag.len();
        own + match &self.index {
            OpenIndex::Legacy(index) => index.heap_bytes(),
            OpenIndex::V3(v3) => {
                size_of::<V3Index>()
                    + v3.directory.heap_bytes()
                    + v3.dictionary.as_ref().map_or(0, |d| d.heap_bytes())
                    + v3.blocks.as_ref().map_or(0, |(_, bytes)| bytes.len())
            }
        }
    }
}

impl V3Index {
    /// Keeps what of a tail was needed: it ends with the footer.
    fn keep_tail(&self, object: &Object, tail: &TailBytes) {
        let directory = self.footer.directory_range();
        let from = self.footer.dictionary_range().map_or(directory.start, |dictionary| dictionary.start);
        let from = self.blocks.as_ref().map_or(from, |(start, _)| *start);
        // A directory that is longer than the tail is read again after a restart.
        if let Some(bytes) = tail.get(&(from..tail.file_size())).filter(|_| object.keeps()) {
            object.keep(TAIL, ReadKind::Tail, &bytes);
        }
    }

    /// The bytes of a range of index blocks when they are in memory.
    pub(super) fn held(&self, range: &Range<u64>) -> Option<Bytes> {
        let (start, bytes) = self.blocks.as_ref()?;
        let (from, to) = (range.start.checked_sub(*start)?, range.end.checked_sub(*start)?);
        (to <= bytes.len() as u64).then(|| bytes.slice(from as usize..to as usize))
    }
}

async fn open_legacy(object: &Object, tail: &TailBytes, legacy: LegacyTail) -> Result<Index, ArchiveError> {
    let range = legacy.index_range();
    let length = range.end - range.start;
    if length > MAX_INDEX_BYTES {
        let detail = format!("{length} bytes; this reader takes at most {MAX_INDEX_BYTES}");
        return Err(object.damaged(ShardError::Unsupported { part: Part::Index, detail }));
    }
    let bytes = match tail.get(&range) {
        // A copy, so that what is kept does not keep the whole tail.
        Some(bytes) => Bytes::copy_from_slice(&bytes),
        None => object.read(range, ReadKind::Index).await?,
    };
    let known = match tail.get(&(0..HEADER_LEN)) {
        Some(header) => Some(header),
        None => {
            let bytes = bytes.clone();
            let told = offload(length * 2, move || Index::version_without_header(legacy, &bytes)).await;
            told.map(header_of)
        }
    };
    let header = match known {
        Some(header) => header,
        None => object.read(0..HEADER_LEN, ReadKind::Index).await?,
    };
    // Parsing costs far more a byte than copying.
    let index = offload(length * 4, move || Index::parse(&header, legacy, bytes)).await;
    index.map_err(|e| object.damaged(e))
}

async fn open_v3(object: &Object, tail: &TailBytes, footer: Footer) -> Result<V3Index, ArchiveError> {
    let place = footer.directory_range();
    if place.end - place.start > MAX_DIRECTORY_BYTES {
        let detail =
            format!("a directory of {} bytes; at most {MAX_DIRECTORY_BYTES} are allowed", place.end - place.start);
        return Err(object.damaged(ShardError::Corrupt { part: Part::Footer, offset: place.end, detail }));
    }
    // The dictionary stands right before the directory.
    let from = footer.dictionary_range().map_or(place.start, |dictionary| dictionary.start);
    let both = match tail.get(&(from..place.end)) {
        Some(bytes) => bytes,
        None => object.read(from..place.end, ReadKind::Index).await?,
    };
    let split = (place.start - from) as usize;
    let parsed = offload((both.len() - split) as u64 * 8, {
        let (footer, both) = (footer.clone(), both.clone());
        move || {
            let directory = Directory::parse(&footer, &both[split..])?;
            let dictionary =
                (split > 0).then(|| Dictionary::parse(&footer, &both[..split]).map(Arc::new)).transpose()?;
            Ok((directory, dictionary))
        }
    });
    let (directory, dictionary) = parsed.await.map_err(|e| object.damaged(e))?;
    let blocks = directory.block(0).and_then(|first| {
        let bytes = tail.get(&(first.start..from))?;
        Some((first.start, Bytes::copy_from_slice(&bytes)))
    });
    Ok(V3Index { footer, directory, dictionary, blocks })
}
