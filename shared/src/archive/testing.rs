//! Shards in a folder, for the tests of this module.

use std::sync::Arc;

use tempfile::TempDir;

use super::recording::{RecordedCall, RecordingStore};
use crate::segment::{CodecChoice, PackOptions, ShardFormat};
use crate::shard::{Encoder, PackDictionary, ShardWriter, choose_samples};
use crate::store::SharedStore;
use crate::store::local::LocalStore;

/// A folder store that remembers its calls.
pub(super) struct Bench {
    pub(super) recording: Arc<RecordingStore>,
    folder: TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = LocalStore::open(folder.path()).expect("the folder is there");
        Self { recording: Arc::new(RecordingStore::new(Arc::new(local))), folder }
    }

    pub(super) fn store(&self) -> SharedStore {
        self.recording.clone()
    }

    /// Writes an object without waiting for the disk, under a name of its own first: a replaced one is another file.
    pub(super) fn put(&self, key: &str, bytes: impl AsRef<[u8]>) {
        let (path, temporary) = (self.folder.path().join(key), self.folder.path().join(".des-tmp-test"));
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        std::fs::write(&temporary, bytes).expect("written");
        std::fs::rename(temporary, path).expect("renamed");
    }

    /// The calls since the last time; none of them may ask for nothing.
    pub(super) fn calls(&self) -> Vec<RecordedCall> {
        let calls = self.recording.take();
        for call in &calls {
            let nothing = match &call.range {
                Some(crate::store::ByteRange::Span(span)) => span.is_empty(),
                Some(crate::store::ByteRange::Suffix(n)) => *n == 0,
                Some(crate::store::ByteRange::Full) | None => false,
            };
            assert!(!nothing, "{call:?}");
        }
        calls
    }
}

/// Files of a shard: uid and content, in the byte order of the uids.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// Small files that resemble each other, with an empty one and one that does not compress.
pub(super) fn files(count: usize) -> Files {
    let mut files: Files = (0..count)
        .map(|n| {
            let uid = format!("folder/file-{n:06}.json");
            let text = format!("{{\"number\":{n},\"name\":\"file {n}\",\"checked\":{},\"tags\":[\"a\",\"b\"]}}", n % 3);
            (uid, text.into_bytes())
        })
        .collect();
    files.push(("folder/none.txt".to_owned(), Vec::new()));
    files.push(("folder/noise.png".to_owned(), noise(500)));
    files.sort();
    files
}

/// Bytes that do not compress, the same every time.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn options(format: ShardFormat, codec: CodecChoice) -> PackOptions {
    PackOptions { format, codec, ..PackOptions::default() }
}

/// A shard of inline files, with a dictionary where that pays.
pub(super) fn pack(options: &PackOptions, sequence: u64, files: &Files) -> Vec<u8> {
    let choice = choose_samples(options, files.iter().map(|(uid, raw)| (uid.as_str(), raw.len() as u64)));
    let dictionary = choice.and_then(|choice| {
        let samples: Vec<&[u8]> = choice.files.iter().map(|at| &files[*at].1[..]).collect();
        choice.train(&samples, options.level)
    });
    let dictionary = dictionary.map(|d| Arc::new(PackDictionary::new(d, options.level).expect("a dictionary")));
    let bytes = dictionary.as_ref().map(|d| d.bytes());
    let mut writer = ShardWriter::new(options.format, bytes, sequence).expect("a writer");
    let mut encoder = Encoder::new(options, dictionary.clone()).expect("an encoder");
    let mut out = writer.header().to_vec();
    for (uid, raw) in files {
        let stored = encoder.encode(uid, raw).expect("encoded");
        writer.append(uid, &stored.info, None).expect("appended");
        out.extend_from_slice(&stored.bytes);
    }
    out.extend_from_slice(&writer.finish().expect("finished"));
    out
}
