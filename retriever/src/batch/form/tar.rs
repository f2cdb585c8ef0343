//! POSIX tar: a ustar header for each file, with a pax record in front where the name does not fit into it.

use tar::{EntryType, Header};

use super::{Archive, Member};

/// Everything in a tar file begins at a multiple of this.
const BLOCK: usize = 512;
/// The longest name that stands in a ustar header as it is, in bytes.
const MAX_NAME: usize = 100;
/// The largest size a ustar header has digits for.
const MAX_SIZE: u64 = 8 << 30;

/// A tar file as it is written.
#[derive(Default)]
pub(super) struct Tar {
    /// Bytes of the file that went by.
    passed: u64,
}

impl Archive for Tar {
    fn has_failures(&self) -> bool {
        false
    }

    fn begin(&mut self, member: &Member<'_>, out: &mut Vec<u8>) {
        self.passed = 0;
        let mtime = member.created_at.map_or(0, |at| u64::try_from(at.unix_micros() / 1_000_000).unwrap_or(0));
        let mut records = Vec::new();
        if !member.name.is_ascii() || member.name.len() > MAX_NAME {
            record(&mut records, "path", member.name);
        }
        if member.size >= MAX_SIZE {
            record(&mut records, "size", &member.size.to_string());
        }
        if !records.is_empty() {
            header(out, EntryType::XHeader, "_des/pax", (records.len() as u64, mtime));
            out.extend_from_slice(&records);
            pad(out, records.len() as u64);
        }
        header(out, EntryType::Regular, member.name, (member.size, mtime));
    }

    fn passed(&mut self, piece: &[u8]) {
        self.passed += piece.len() as u64;
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        pad(out, self.passed);
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.resize(out.len() + 2 * BLOCK, 0);
    }
}

fn header(out: &mut Vec<u8>, kind: EntryType, name: &str, (size, mtime): (u64, u64)) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mtime(mtime);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    // What does not fit is cut off here; then a record in front has all of it.
    let end = (0..=name.len().min(MAX_NAME)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    header.as_old_mut().name[..end].copy_from_slice(&name.as_bytes()[..end]);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// A pax record: its own length in digits, a space, `key=value`, a line feed.
fn record(out: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} {key}={value}\n").as_bytes());
}

fn pad(out: &mut Vec<u8>, size: u64) {
    let over = (size % BLOCK as u64) as usize;
    if over > 0 {
        out.resize(out.len() + BLOCK - over, 0);
    }
}
