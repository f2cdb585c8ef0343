//! Reading and writing the small things all parts are made of. Every read is checked against the bytes that are
//! really there.

use super::error::{Part, ShardError};

/// A position in untrusted bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    part: Part,
    base: u64,
}

impl<'a> Cursor<'a> {
    /// `base` is where `bytes` starts in the shard, for error messages.
    pub(super) fn new(bytes: &'a [u8], part: Part, base: u64) -> Self {
        Self { bytes, at: 0, part, base }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn corrupt(&self, detail: impl Into<String>) -> ShardError {
        ShardError::corrupt(self.part, self.base + self.at as u64, detail)
    }

    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], ShardError> {
        match self.bytes[self.at..].get(..len) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => Err(self.corrupt(format!("{what} needs {len} bytes, {} are left", self.remaining()))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ShardError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8, ShardError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16, ShardError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ShardError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ShardError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// An unsigned LEB128 number in its shortest form.
    pub(super) fn varint(&mut self, what: &str) -> Result<u64, ShardError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.corrupt(format!("{what} is a number in a longer form than needed")));
                }
                return Ok(value);
            }
        }
        Err(self.corrupt(format!("{what} is a number beyond 64 bits")))
    }

    /// `count` varints. Each takes a byte at least, so the count is bounded before anything is allocated.
    pub(super) fn varints(&mut self, count: usize, what: &str) -> Result<Vec<u64>, ShardError> {
        if count > self.remaining() {
            return Err(self.corrupt(format!("{count} times {what} do not fit into {} bytes", self.remaining())));
        }
        (0..count).map(|_| self.varint(what)).collect()
    }

    pub(super) fn expect_end(&self) -> Result<(), ShardError> {
        match self.remaining() {
            0 => Ok(()),
            n => Err(self.corrupt(format!("{n} bytes behind the end"))),
        }
    }
}

/// How many bytes `a` and `b` have in common at their start.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::varint;

    #[test]
    fn varints_come_back_and_odd_forms_are_refused() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            varint::put(&mut bytes, value);
            let mut cursor = Cursor::new(&bytes, Part::Block, 0);
            assert_eq!(cursor.varint("n").unwrap(), value);
            cursor.expect_end().unwrap();
        }
        for bad in [&[0x80, 0x00][..], &[0xff], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert!(Cursor::new(bad, Part::Block, 0).varint("n").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reads_never_pass_the_end() {
        let mut cursor = Cursor::new(&[1, 2, 3], Part::Footer, 100);
        cursor.u8("a").unwrap();
        let error = cursor.u32("the size").unwrap_err();
        assert_eq!(error, ShardError::corrupt(Part::Footer, 101, "the size needs 4 bytes, 2 are left"));
        assert!(cursor.varints(3, "x").is_err());
    }
}
