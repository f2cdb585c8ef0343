//! A file as it stands in the spool: lengths and bytes, in memory or on disk.

use crate::ids::Uid;
use crate::manifest::{ManifestEntry, Position, PositionUnit};
use crate::segment::SegmentFile;
use crate::varint;

/// Writes an entry behind what is in `out`.
pub(super) fn encode(position: Position, entry: &ManifestEntry, out: &mut Vec<u8>) {
    out.push(match position.unit {
        PositionUnit::Line => 0,
        PositionUnit::Element => 1,
    });
    let texts = [entry.uid.as_str(), entry.created_at.as_str(), &entry.source_path];
    let [uid, created_at, _] = texts.map(|text| text.len() as u64);
    for number in [position.number, position.byte, entry.size_bytes, uid, created_at] {
        varint::put(out, number);
    }
    for text in texts {
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
    let (unit, mut rest) = bytes.split_first()?;
    let unit = match unit {
        0 => PositionUnit::Line,
        1 => PositionUnit::Element,
        _ => return None,
    };
    let mut number = || varint::take(&mut rest);
    let position = Position { unit, number: number()?, byte: number()? };
    let (size_bytes, uid, created_at) = (number()?, number()?, number()?);
    // Checked at once: three short texts take thrice as long.
    let (uid, texts) = std::str::from_utf8(rest).ok()?.split_at_checked(usize::try_from(uid).ok()?)?;
    let (created_at, source) = texts.split_at_checked(usize::try_from(created_at).ok()?)?;
    (!uid.is_empty()).then_some(View { position, size_bytes, texts: [uid, created_at, source] })
}
