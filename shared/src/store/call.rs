//! What every store checks before it touches anything, and how an operation names itself in errors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::{ByteRange, MAX_PARTS, MIN_PART_BYTES, PartTag, StoreError, StoreErrorKind};

/// The longest key a store takes, in bytes (its own prefix included): S3's limit.
pub const MAX_KEY_BYTES: usize = 1024;

/// The most objects one listing page holds.
pub const MAX_PAGE: usize = 1000;

/// One operation of [`ObjectStore`](super::ObjectStore), for errors, metric labels and fault scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `head`
    Head,
    /// `get`
    Get,
    /// `get_stream`
    GetStream,
    /// `put`
    Put,
    /// `delete`
    Delete,
    /// `list`
    List,
    /// `create_upload`
    CreateUpload,
    /// `put_part`
    PutPart,
    /// `list_parts`
    ListParts,
    /// `complete_upload`
    CompleteUpload,
    /// `abort_upload`
    AbortUpload,
    /// `list_uploads`
    ListUploads,
    /// `probe`
    Probe,
    /// `check`
    Check,
    /// Opening a store, before the first operation.
    Open,
}

impl Operation {
    /// The word used in errors and as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Get => "get",
            Self::GetStream => "get_stream",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::List => "list",
            Self::CreateUpload => "create_upload",
            Self::PutPart => "put_part",
            Self::ListParts => "list_parts",
            Self::CompleteUpload => "complete_upload",
            Self::AbortUpload => "abort_upload",
            Self::ListUploads => "list_uploads",
            Self::Probe => "probe",
            Self::Check => "check",
            Self::Open => "open",
        }
    }
}

/// One call on one store: the where and the what of its errors.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) url: Arc<str>,
    pub(crate) operation: Operation,
    pub(crate) key: String,
}

impl Call {
    pub(crate) fn new(url: &Arc<str>, operation: Operation, key: &str) -> Self {
        Self { url: url.clone(), operation, key: key.to_owned() }
    }

    pub(crate) fn error(&self, kind: StoreErrorKind, message: impl Into<String>) -> StoreError {
        StoreError {
            kind,
            operation: self.operation.label(),
            url: self.url.to_string(),
            key: self.key.clone(),
            message: message.into(),
        }
    }

    pub(crate) fn invalid(&self, message: impl Into<String>) -> StoreError {
        self.error(StoreErrorKind::Invalid, message)
    }

    /// Runs file operations on a blocking thread. A panic there is passed on.
    pub(crate) async fn blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, StoreError> + Send + 'static,
    {
        match crate::offload::spawn_blocking(work).await {
            Ok(done) => done,
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(self.error(StoreErrorKind::Unavailable, "the process is shutting down")),
            },
        }
    }

    /// Keys are relative and mean the same to every store: no `.` or `..` that a server, proxy or file system could
    /// resolve, no NUL.
    pub(crate) fn check_key(&self, own_prefix_bytes: usize) -> Result<(), StoreError> {
        let key = &self.key;
        if key.is_empty() {
            return Err(self.invalid("the key is empty"));
        }
        self.check_prefix(own_prefix_bytes)?;
        self.check_dots(key)
    }

    /// What [`Self::check_key`] asks of the beginning of a key.
    pub(crate) fn check_prefix(&self, own_prefix_bytes: usize) -> Result<(), StoreError> {
        let key = &self.key;
        if own_prefix_bytes + key.len() > MAX_KEY_BYTES {
            let bytes = own_prefix_bytes + key.len();
            return Err(self.invalid(format!("the key has {bytes} bytes; at most {MAX_KEY_BYTES} are allowed")));
        }
        if key.contains('\0') {
            return Err(self.invalid("the key contains a NUL character"));
        }
        if key.starts_with('/') {
            return Err(self.invalid("the key starts with a slash; keys are relative"));
        }
        let finished = key.rsplit_once('/').map_or("", |(folders, _)| folders);
        self.check_dots(finished)
    }

    /// Backslashes count as slashes here, because `SeaweedFS` makes slashes of them.
    fn check_dots(&self, key: &str) -> Result<(), StoreError> {
        if key.split(['/', '\\']).any(|part| part == "." || part == "..") {
            return Err(self.invalid("a component of the key is `.` or `..`"));
        }
        Ok(())
    }

    pub(crate) fn check_limit(&self, limit: usize) -> Result<(), StoreError> {
        if (1..=MAX_PAGE).contains(&limit) {
            return Ok(());
        }
        Err(self.invalid(format!("a page of {limit} objects was asked for; 1 to {MAX_PAGE} are possible")))
    }

    pub(crate) fn check_uploads_limit(&self, limit: usize) -> Result<(), StoreError> {
        if limit > 0 { Ok(()) } else { Err(self.invalid("no uploads were asked for; ask for at least 1")) }
    }

    pub(crate) fn check_part_number(&self, number: u32) -> Result<(), StoreError> {
        if (1..=MAX_PARTS).contains(&number) {
            return Ok(());
        }
        Err(self.invalid(format!("part number {number}; expected 1 to {MAX_PARTS}")))
    }

    pub(crate) fn check_metadata(&self, metadata: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let name_ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        for (name, value) in metadata {
            if name.is_empty() || !name.bytes().all(name_ok) {
                return Err(
                    self.invalid(format!("metadata name {name:?}; expected lower-case letters, digits, - and _"))
                );
            }
            if !value.bytes().all(|b| (0x20..0x7f).contains(&b)) || value.trim() != value {
                return Err(self.invalid(format!("the metadata value of {name:?} is not trimmed printable ASCII")));
            }
        }
        Ok(())
    }

    /// The parts in the order of their numbers, checked: at least one, no number twice, big enough.
    pub(crate) fn check_parts(&self, parts: &[PartTag]) -> Result<Vec<PartTag>, StoreError> {
        let mut parts = parts.to_vec();
        parts.sort_by_key(|part| part.number);
        let Some((_, others)) = parts.split_last() else {
            return Err(self.invalid("an upload of no parts cannot be completed; put an empty object instead"));
        };
        for part in &parts {
            self.check_part_number(part.number)?;
        }
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].number == pair[1].number) {
            return Err(self.invalid(format!("part {} is named twice", pair[0].number)));
        }
        if let Some(small) = others.iter().find(|part| part.size < MIN_PART_BYTES) {
            return Err(self.invalid(format!(
                "part {} has {} bytes; every part but the last needs at least {MIN_PART_BYTES}",
                small.number, small.size
            )));
        }
        Ok(parts)
    }

    /// What a range asks for. `None`: nothing, so the store need not be asked.
    pub(crate) fn check_range(&self, range: &ByteRange) -> Result<Option<()>, StoreError> {
        match range {
            ByteRange::Span(span) if span.start > span.end => Err(self.error(
                StoreErrorKind::InvalidRange,
                format!("the range starts at {} and ends before it, at {}", span.start, span.end),
            )),
            ByteRange::Span(span) if span.start == span.end => Ok(None),
            ByteRange::Suffix(0) => Ok(None),
            _ => Ok(Some(())),
        }
    }

    /// The bytes of an object of `size` bytes that a checked range means.
    pub(crate) fn resolve(&self, range: &ByteRange, size: u64) -> Result<Range<u64>, StoreError> {
        match range {
            ByteRange::Full => Ok(0..size),
            ByteRange::Suffix(n) => Ok(size.saturating_sub(*n)..size),
            ByteRange::Span(span) if span.end <= size => Ok(span.clone()),
            ByteRange::Span(span) => Err(self.past_end(span, size)),
        }
    }

    pub(crate) fn past_end(&self, span: &Range<u64>, size: u64) -> StoreError {
        self.error(
            StoreErrorKind::InvalidRange,
            format!("bytes {}..{} were asked for, the object has {size}", span.start, span.end),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(key: &str) -> Call {
        Call::new(&"file:///x".into(), Operation::Put, key)
    }

    #[test]
    fn hostile_keys_are_refused() {
        for key in ["", "/a", "a/../b", "..", "a/.", "./a", "a\0b", "a\\..\\b", &"x".repeat(1025)] {
            let error = call(key).check_key(0).expect_err(key);
            assert_eq!(error.kind, StoreErrorKind::Invalid, "{key:?}");
        }
        for key in ["a", "a..b", "...", "ä/日本 語", &"x".repeat(1024)] {
            call(key).check_key(0).unwrap_or_else(|e| panic!("{e}"));
        }
        assert!(call("abc").check_key(1022).is_err(), "the store's own prefix counts");
    }

    #[test]
    fn parts_are_sorted_and_checked() {
        let part = |number, size| PartTag { number, etag: "e".into(), size };
        let sorted = call("k").check_parts(&[part(2, 1), part(1, MIN_PART_BYTES)]).expect("out of order is fine");
        assert_eq!(sorted.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 2]);
        let wrong = [vec![], vec![part(0, 1)], vec![part(10_001, 1)], vec![part(1, MIN_PART_BYTES), part(1, 1)]];
        for parts in wrong {
            assert_eq!(call("k").check_parts(&parts).expect_err("wrong").kind, StoreErrorKind::Invalid);
        }
        let small = call("k").check_parts(&[part(1, MIN_PART_BYTES - 1), part(2, 1)]).expect_err("too small");
        assert!(small.message.contains("part 1 has 5242879 bytes"), "{small}");
    }

    #[test]
    fn metadata_that_http_cannot_carry_is_refused() {
        for (name, value) in [("", "v"), ("A", "v"), ("a b", "v"), ("a", "ü"), ("a", "x\ny"), ("a", " v")] {
            let metadata = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert!(call("k").check_metadata(&metadata).is_err(), "{name:?}: {value:?}");
        }
        let fine = BTreeMap::from([("plan-digest".to_owned(), "a b=c".to_owned())]);
        assert!(call("k").check_metadata(&fine).is_ok());
    }
}
