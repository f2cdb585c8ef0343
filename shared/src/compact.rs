//! The compact binary form of what DES writes for itself (plan segments, checkpoints). The only place that knows bincode:
//! version 2 is complete and unmaintained (see `docs/dependencies.md`), so it can be replaced here.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most memory one value may claim while it is decoded, in bytes, whatever its bytes say.
pub const MAX_DECODED_BYTES: usize = 1 << 30;

/// Bytes that are not the compact form of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompactError(String);

/// The compact form of a value.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("a plain value always encodes")
}

/// Writes the compact form of a value, without holding all of it.
///
/// # Errors
/// What the writer says.
pub fn encode_into<T: Serialize>(value: &T, writer: &mut impl Write) -> std::io::Result<()> {
    use bincode::error::EncodeError;
    match bincode::serde::encode_into_std_write(value, writer, bincode::config::standard()) {
        Ok(_) => Ok(()),
        Err(EncodeError::Io { inner, .. }) => Err(inner),
        Err(other) => Err(std::io::Error::other(other.to_string())),
    }
}

/// The value whose compact form these bytes are, all of them.
///
/// # Errors
/// [`CompactError`] for anything else. Never allocates more than [`MAX_DECODED_BYTES`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CompactError> {
    let config = bincode::config::standard().with_limit::<MAX_DECODED_BYTES>();
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|error| CompactError(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        behind => Err(CompactError(format!("{behind} bytes behind its end"))),
    }
}

/// As [`decode`], from a reader that is read to its end, without holding all of its bytes.
///
/// # Errors
/// [`CompactError`] for other bytes and for what the reader says.
pub fn decode_from<T: DeserializeOwned>(mut reader: impl Read) -> Result<T, CompactError> {
    let config = bincode::config::standard().with_limit::<MAX_DECODED_BYTES>();
    let value =
        bincode::serde::decode_from_std_read(&mut reader, config).map_err(|error| CompactError(error.to_string()))?;
    match reader.read(&mut [0]) {
        Ok(0) => Ok(value),
        Ok(_) => Err(CompactError("bytes behind its end".to_owned())),
        Err(error) => Err(CompactError(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_and_take_nothing_else() {
        let value = (7_u64, "seven".to_owned(), vec![1_u32, 2, 3]);
        let bytes = encode(&value);
        let mut written = Vec::new();
        encode_into(&value, &mut written).expect("a vector takes all");
        assert_eq!(bytes, written);
        assert_eq!(decode::<(u64, String, Vec<u32>)>(&bytes), Ok(value.clone()));
        assert_eq!(decode_from::<(u64, String, Vec<u32>)>(&bytes[..]), Ok(value));
        let longer = [&bytes[..], b"x"].concat();
        for wrong in [&bytes[..bytes.len() - 1], &longer, b""] {
            assert!(decode::<(u64, String, Vec<u32>)>(wrong).is_err());
            assert!(decode_from::<(u64, String, Vec<u32>)>(wrong).is_err());
        }
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        // A text of 2^62 bytes, by its length.
        let mut bytes = vec![253];
        bytes.extend_from_slice(&(1_u64 << 62).to_le_bytes());
        assert!(decode::<String>(&bytes).is_err());
        assert!(decode_from::<String>(&bytes[..]).is_err());
    }
}
