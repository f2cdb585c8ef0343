//! Plain, gzip or zstd, told by the first bytes; and whether a failure is the source's or the data's.

use std::fmt;
use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use super::ManifestError;

const BUFFER_BYTES: usize = 64 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A zstd stream may begin with a skippable frame: `5? 2A 4D 18`.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// How a manifest is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one member or several.
    Gzip,
    /// zstd, one frame or several.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// An error of the source itself, marked so that it is not taken for damaged compression behind a decompressor.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SourceFailure(io::Error);

/// Marks the errors of the wrapped source.
pub(super) struct Marked<R>(R);

impl<R: Read> Read for Marked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io::Error::other(SourceFailure(error))),
                Ok(n) => return Ok(n),
            }
        }
    }
}

type Input<R> = BufReader<io::Chain<Cursor<Vec<u8>>, Marked<R>>>;

/// The manifest's text.
pub(super) enum Decompressed<R: Read> {
    Plain(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<R>>>),
}

impl<R: Read> Decompressed<R> {
    pub(super) fn new(input: R) -> Result<Self, ManifestError> {
        let mut input = Marked(input);
        let mut magic = Vec::with_capacity(4);
        (&mut input).take(4).read_to_end(&mut magic).map_err(|error| explain(error, Compression::None, 0))?;
        let compression = detect(&magic);
        let input = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(input));
        Ok(match compression {
            Compression::None => Self::Plain(input),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input);
                Self::Zstd(Box::new(decoder.map_err(|error| explain(error, Compression::Zstd, 0))?))
            }
        })
    }

    pub(super) fn compression(&self) -> Compression {
        match self {
            Self::Plain(_) => Compression::None,
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
            Self::Zstd(input) => input.read(buffer),
        }
    }
}

fn detect(magic: &[u8]) -> Compression {
    if magic.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else if magic == ZSTD_MAGIC || (magic.len() == 4 && magic[0] & 0xf0 == 0x50 && magic[1..] == ZSTD_SKIPPABLE) {
        Compression::Zstd
    } else {
        Compression::None
    }
}

/// The manifest's error for an IO error that came out of [`Decompressed`].
pub(super) fn explain(error: io::Error, compression: Compression, byte: u64) -> ManifestError {
    match error.downcast::<SourceFailure>() {
        Ok(SourceFailure(source)) => ManifestError::Read { byte, source },
        Err(error) => ManifestError::Compression { compression, byte, problem: error.to_string() },
    }
}
