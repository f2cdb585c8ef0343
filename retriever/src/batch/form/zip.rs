//! Zip, files stored as they are: everything can be written without going back. Sizes and places beyond 32 bits are
//! written as zip64 has them.

use des_shared::created_at::CreatedAt;
use time::OffsetDateTime;

use super::{Archive, Member};

const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const END: u32 = 0x0605_4b50;
/// Names are UTF-8.
const UTF8: u16 = 1 << 11;
/// Checksum and sizes stand behind the file.
const DESCRIBED: u16 = 1 << 3;
/// Version 2.0 of the format, and 4.5, which has zip64.
const PLAIN: u16 = 20;
const ZIP64: u16 = 45;
/// Made by version 4.5 on Unix.
const MADE_BY: u16 = 3 << 8 | ZIP64;
/// A regular file that its owner may write and everybody may read, as Unix puts it.
const MODE: u32 = 0o100_644 << 16;

/// A zip file as it is written.
#[derive(Default)]
pub(super) struct Zip {
    files: Vec<File>,
    crc: crc32fast::Hasher,
    /// Bytes of the file that went by.
    passed: u64,
    /// Bytes written so far.
    at: u64,
}

/// What the directory at the end says of a file.
struct File {
    name: String,
    flags: u16,
    date: u32,
    crc: u32,
    size: u64,
    offset: u64,
}

impl File {
    /// Whether its size needs zip64.
    fn is_long(&self) -> bool {
        self.size >= u64::from(u32::MAX)
    }
}

impl Archive for Zip {
    fn has_failures(&self) -> bool {
        false
    }

    fn begin(&mut self, member: &Member<'_>, out: &mut Vec<u8>) {
        let before = out.len();
        self.crc = crc32fast::Hasher::new();
        self.passed = 0;
        let crc = member.whole.map(crc32fast::hash);
        let file = File {
            name: member.name.to_owned(),
            flags: if crc.is_some() { UTF8 } else { UTF8 | DESCRIBED },
            date: dos_date(member.created_at),
            crc: crc.unwrap_or(0),
            size: member.size,
            offset: self.at,
        };
        let long = file.is_long();
        // Where a description follows, the sizes here are zero; that of a long file says by its zip64 field that the
        // description is one of zip64, too.
        let size = match crc {
            Some(_) => short(file.size),
            None if long => u32::MAX,
            None => 0,
        };
        put32(out, LOCAL);
        put16(out, if long { ZIP64 } else { PLAIN });
        put16(out, file.flags);
        put16(out, 0);
        put32(out, file.date);
        for number in [file.crc, size, size] {
            put32(out, number);
        }
        put16(out, name_len(&file.name));
        put16(out, if long { 20 } else { 0 });
        out.extend_from_slice(file.name.as_bytes());
        if long {
            put16(out, 1);
            put16(out, 16);
            let size = if crc.is_some() { file.size } else { 0 };
            put64(out, size);
            put64(out, size);
        }
        self.at += (out.len() - before) as u64;
        self.files.push(file);
    }

    fn passed(&mut self, piece: &[u8]) {
        self.passed += piece.len() as u64;
        self.at += piece.len() as u64;
        // The checksum of a file that is here as a whole stands before it already.
        if self.files.last().is_some_and(|file| file.flags & DESCRIBED != 0) {
            self.crc.update(piece);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let before = out.len();
        if let Some(file) = self.files.last_mut().filter(|file| file.flags & DESCRIBED != 0) {
            file.crc = std::mem::take(&mut self.crc).finalize();
            put32(out, DESCRIPTOR);
            put32(out, file.crc);
            for _ in 0..2 {
                if file.is_long() { put64(out, self.passed) } else { put32(out, short(self.passed)) }
            }
        }
        self.at += (out.len() - before) as u64;
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let (before, start) = (out.len(), self.at);
        for file in &self.files {
            central(out, file);
        }
        let len = (out.len() - before) as u64;
        let count = self.files.len() as u64;
        if count >= u64::from(u16::MAX) || start + len >= u64::from(u32::MAX) {
            put32(out, END_64);
            put64(out, 44);
            put16(out, MADE_BY);
            put16(out, ZIP64);
            put64(out, 0);
            for number in [count, count, len, start] {
                put64(out, number);
            }
            put32(out, LOCATOR_64);
            put32(out, 0);
            put64(out, start + len);
            put32(out, 1);
        }
        put32(out, END);
        put32(out, 0);
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        put16(out, count);
        put16(out, count);
        put32(out, short(len));
        put32(out, short(start));
        put16(out, 0);
    }
}

/// A file's line in the directory.
fn central(out: &mut Vec<u8>, file: &File) {
    let far = file.offset >= u64::from(u32::MAX);
    let long = file.is_long();
    let mut extra: Vec<u8> = Vec::new();
    if long {
        put64(&mut extra, file.size);
        put64(&mut extra, file.size);
    }
    if far {
        put64(&mut extra, file.offset);
    }
    put32(out, CENTRAL);
    put16(out, MADE_BY);
    put16(out, if long || far { ZIP64 } else { PLAIN });
    put16(out, file.flags);
    put16(out, 0);
    put32(out, file.date);
    for number in [file.crc, short(file.size), short(file.size)] {
        put32(out, number);
    }
    put16(out, name_len(&file.name));
    put16(out, if extra.is_empty() { 0 } else { extra.len() as u16 + 4 });
    // No comment, disk 0, not text.
    out.extend_from_slice(&[0; 6]);
    put32(out, MODE);
    put32(out, short(file.offset));
    out.extend_from_slice(file.name.as_bytes());
    if !extra.is_empty() {
        put16(out, 1);
        put16(out, extra.len() as u16);
        out.extend_from_slice(&extra);
    }
}

/// Seconds have two each, years begin with 1980; zip knows no time zone, so this is UTC. Time in the lower half.
fn dos_date(created_at: Option<&CreatedAt>) -> u32 {
    let seconds = created_at.map_or(0, |at| at.unix_micros().div_euclid(1_000_000));
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let Some(moment) = moment.filter(|moment| (1980..=2107).contains(&moment.year())) else {
        return (1 << 5 | 1) << 16;
    };
    let (date, time) = (moment.date(), moment.time());
    let day =
        (moment.year() - 1980).unsigned_abs() << 9 | u32::from(u8::from(date.month())) << 5 | u32::from(date.day());
    day << 16 | u32::from(time.hour()) << 11 | u32::from(time.minute()) << 5 | u32::from(time.second() / 2)
}

/// What does not fit is all ones, which says that the zip64 field has it.
fn short(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Names are made shorter than that.
fn name_len(name: &str) -> u16 {
    u16::try_from(name.len()).unwrap_or(u16::MAX)
}

fn put16(out: &mut Vec<u8>, number: u16) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}
