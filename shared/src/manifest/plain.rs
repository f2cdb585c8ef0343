//! How far a JSON string goes on with nothing that decides anything. Most of a manifest is that, so it is looked at eight
//! bytes at a time.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// How many bytes stand before the first quote, backslash or control character; all of them when there is none.
pub(super) fn len(bytes: &[u8]) -> usize {
    let mut words = bytes.chunks_exact(8);
    let mut before = 0;
    for word in &mut words {
        let special = special(u64::from_le_bytes(word.try_into().expect("a chunk of eight")));
        if special != 0 {
            return before + (special.trailing_zeros() / 8) as usize;
        }
        before += 8;
    }
    before + words.remainder().iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count()
}

/// The high bit of each special byte up to and with the first one; what is behind it may be wrong, as a borrow goes on
/// to it. See "Determine if a word has a byte less than n" in Sean Anderson's Bit Twiddling Hacks.
fn special(word: u64) -> u64 {
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (control | zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\')))) & HIGHS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_is_told_apart() {
        for place in 0..20 {
            for byte in 0..=255 {
                for filler in [b'a', 0x20, 0x7f, 0x80, 0xff, b'!', b'#', b'[', b']'] {
                    let mut text = [filler; 27];
                    text[place] = byte;
                    // A second one behind it makes no difference.
                    for behind in [filler, b'"', 0x1f] {
                        text[place + 1] = behind;
                        let expected = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
                        assert_eq!(len(&text), expected.unwrap_or(27), "{byte} at {place} in {filler}");
                    }
                }
            }
        }
        assert_eq!(len(b""), 0);
    }
}
