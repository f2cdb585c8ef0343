//! Where the content of a zstd dictionary starts: behind magic, id, four tables of statistics and three offsets (RFC 8878,
//! section 5). The library does not tell, and the content is ours to choose.

/// Magic number and id.
const FRONT: usize = 8;
/// Three offsets of four bytes.
const OFFSETS: usize = 12;

/// Bytes of a dictionary before its content; `None` for what is no dictionary.
pub(super) fn header_len(dictionary: &[u8]) -> Option<usize> {
    let mut at = FRONT;
    // Weights of the literals: compressed to so many bytes, or so many of four bits each.
    let huffman = usize::from(*dictionary.get(at)?);
    at += 1 + if huffman < 128 { huffman } else { (huffman - 127).div_ceil(2) };
    for _ in 0..3 {
        at += table_len(dictionary.get(at..)?)?;
    }
    at += OFFSETS;
    (at <= dictionary.len()).then_some(at)
}

/// Bytes of the table of probabilities at the start of `bytes` (RFC 8878, section 4.1.1).
fn table_len(bytes: &[u8]) -> Option<usize> {
    let mut bits = Bits { bytes, at: 0 };
    let accuracy = bits.take(4)? + 5;
    // What the probabilities still have to sum up to, and one: the field that follows can say 0 to `left`.
    let mut left = (1i64 << accuracy) + 1;
    while left > 1 {
        let width = left.ilog2() + 1;
        // Values below `short` take a bit less.
        let short = (1i64 << width) - 1 - left;
        let low = i64::from(bits.take(width - 1)?);
        let value = if low < short {
            low
        } else {
            let high = i64::from(bits.take(1)?) << (width - 1);
            let value = low + high;
            if high > 0 { value - short } else { value }
        };
        // "Less than one" is written as 0, and takes one.
        let probability = value - 1;
        left -= probability.abs();
        if probability == 0 {
            while bits.take(2)? == 3 {}
        }
    }
    (left == 1).then(|| bits.at.div_ceil(8))
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next bits, the first one lowest; `None` behind the end.
    fn take(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0, |value, shift| {
            let bit = self.bytes.get(self.at / 8)? >> (self.at % 8) & 1;
            self.at += 1;
            Some(value | u32::from(bit) << shift)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_is_found_behind_the_tables() {
        // The library's dictionaries are pieces of the samples behind the tables, so the content tells where it starts.
        for seed in 0..6u64 {
            let samples: Vec<Vec<u8>> = (0..200u64)
                .map(|i| {
                    let n = (i * (seed + 3) * 7919) % 10_007;
                    format!(
                        "{{\"id\":{n},\"kind\":\"entry of set {seed}\",\"odd\":{},\"text\":\"{n:x}{n:o}\"}}\n",
                        n % 2
                    )
                    .repeat(1 + (n % 3) as usize)
                    .into_bytes()
                })
                .collect();
            let (text, sizes) = (samples.concat(), samples.iter().map(Vec::len).collect::<Vec<_>>());
            let dictionary = zstd::dict::from_continuous(&text, &sizes, 4_096).unwrap();
            let start = header_len(&dictionary).unwrap();
            let offsets: Vec<u8> = dictionary[start - OFFSETS..start].to_vec();
            assert_eq!(offsets, [1, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0], "seed {seed}: start at {start}");
            assert!(samples.iter().any(|s| s.windows(20).any(|w| *w == dictionary[dictionary.len() - 20..])));
            for cut in 0..start {
                assert_eq!(header_len(&dictionary[..cut]), None);
            }
        }
    }

    #[test]
    fn noise_is_answered() {
        let mut state = 9u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            assert!(header_len(&bytes).is_none_or(|len| len <= bytes.len()));
        }
    }
}
