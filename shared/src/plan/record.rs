//! A file as it stands in the spool: lengths and bytes, in memory or on disk.

use crate::ids::Uid;
use crate::manifest::{ManifestEntry, Position, PositionUnit};
use crate::segment::SegmentFile;

/// Writes an entry behind what is in `out`.
pub(super) fn encode(position: Position, entry: &ManifestEntry, out: &mut Vec<u8>) {
    out.push(match position.unit {
        PositionUnit::Line => 0,
        PositionUnit::Element => 1,
    });
    out.extend_from_slice(&position.number.to_le_bytes());
    out.extend_from_slice(&position.byte.to_le_bytes());
    out.extend_from_slice(&entry.size_bytes.to_le_bytes());
    for text in [entry.uid.as_str(), entry.created_at.as_str(), &entry.source_path] {
        let length = u32::try_from(text.len()).expect("an entry's texts come out of an element of bounded length");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
}

/// A record, borrowed.
pub(super) struct View<'a> {
    pub(super) position: Position,
    pub(super) size_bytes: u64,
    /// Uid, `created_at` and source.
    pub(super) texts: [&'a str; 3],
}

impl View<'_> {
    /// The file with texts of its own; `None` when its uid is none.
    pub(super) fn to_file(&self) -> Option<SegmentFile> {
        let [uid, created_at, source] = self.texts.map(str::to_owned);
        Some(SegmentFile { uid: Uid::new(uid).ok()?, created_at, size_bytes: self.size_bytes, source })
    }
}

/// Reads what [`encode`] wrote; `None` for anything else.
pub(super) fn view(bytes: &[u8]) -> Option<View<'_>> {
    let mut rest = bytes;
    let unit = match take(&mut rest, 1)? {
        [0] => PositionUnit::Line,
        [1] => PositionUnit::Element,
        _ => return None,
    };
    let position = Position { unit, number: number(&mut rest)?, byte: number(&mut rest)? };
    let size_bytes = number(&mut rest)?;
    let texts = [text(&mut rest)?, text(&mut rest)?, text(&mut rest)?];
    (rest.is_empty() && !texts[0].is_empty()).then_some(View { position, size_bytes, texts })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    take(rest, 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length: [u8; 4] = take(rest, 4)?.try_into().ok()?;
    let bytes = take(rest, u32::from_le_bytes(length) as usize)?;
    std::str::from_utf8(bytes).ok()
}
