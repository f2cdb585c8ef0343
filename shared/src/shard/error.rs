//! What can be wrong with a shard. The kind says what the caller should do; the text says what, where and what
//! would be right. The shard's key is not known here: whoever reads a shard adds it.

use std::fmt;

/// A part of a shard, as error messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The 8 bytes at the start.
    Header,
    /// The payloads between header and index.
    Data,
    /// The index section of versions 1 and 2.
    Index,
    /// One index block of version 3.
    Block,
    /// The dictionary of version 3.
    Dictionary,
    /// The directory of version 3.
    Directory,
    /// The bytes at the end that lead to everything else.
    Footer,
    /// Checkpointed rows of an unfinished shard (never part of a published one).
    Rows,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Data => "data section",
            Self::Index => "index",
            Self::Block => "index block",
            Self::Dictionary => "dictionary",
            Self::Directory => "directory",
            Self::Footer => "footer",
            Self::Rows => "checkpointed rows",
        })
    }
}

/// Why a shard cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The bytes are damaged or hostile. Nothing of this part may be served; another replica may be intact.
    #[error("damaged {part} at byte {offset}: {detail}")]
    Corrupt {
        /// The part the bytes were read as.
        part: Part,
        /// Where, from the start of the shard where that is known, otherwise from the start of the part.
        offset: u64,
        /// What was found and what was expected.
        detail: String,
    },
    /// One entry or its payload is damaged or lies about itself. The other entries may be fine.
    #[error("damaged entry {uid:?}, payload at byte {offset}: {detail}")]
    CorruptEntry {
        /// The entry's uid, cut to a readable length.
        uid: String,
        /// The payload's offset from the start of the shard, as the index says.
        offset: u64,
        /// What was found and what was expected.
        detail: String,
    },
    /// The bytes may be right, but a newer reader is needed.
    #[error("unsupported {part}: {detail}")]
    Unsupported {
        /// The part that says so.
        part: Part,
        /// What was found and what this reader knows.
        detail: String,
    },
    /// The entry is larger than the caller allowed.
    #[error("entry {uid:?} has {raw_len} bytes; at most {limit} were allowed")]
    TooLarge {
        /// The entry's uid, cut to a readable length.
        uid: String,
        /// The entry's size before compression, in bytes.
        raw_len: u64,
        /// What the caller allowed, in bytes.
        limit: u64,
    },
    /// A file that the format cannot hold or that came in the wrong order. The writer is as it was before.
    #[error("cannot add {uid:?} to the shard: {detail}")]
    BadInput {
        /// The uid given, cut to a readable length.
        uid: String,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// The call does not fit the shard or the options: a mistake of the calling program or of a configuration.
    #[error("{0}")]
    Usage(String),
}

/// The longest piece of a uid that an error message repeats, in characters.
const SHOWN_UID_CHARS: usize = 120;

/// A uid as error messages show it: cut where it would fill the screen.
pub(super) fn shown(uid: &str) -> String {
    match uid.char_indices().nth(SHOWN_UID_CHARS) {
        None => uid.to_owned(),
        Some((cut, _)) => format!("{}... ({} bytes)", &uid[..cut], uid.len()),
    }
}

impl ShardError {
    pub(super) fn corrupt(part: Part, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corrupt { part, offset, detail: detail.into() }
    }

    pub(super) fn entry(uid: &str, offset: u64, detail: impl Into<String>) -> Self {
        Self::CorruptEntry { uid: shown(uid), offset, detail: detail.into() }
    }

    pub(super) fn input(uid: &str, detail: impl Into<String>) -> Self {
        Self::BadInput { uid: shown(uid), detail: detail.into() }
    }

    /// True when the stored bytes are at fault: an intact replica would answer.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::CorruptEntry { .. })
    }
}
