//! `auto`: a look at a file that tells whether compressing it is worth the time.
//!
//! The answer depends on the bytes alone, so every machine gives the same one.

/// Smaller files are compressed at once: the look would cost as much.
const SMALLEST: usize = 8 * 1024;
/// Pieces that are looked at, spread evenly from the file's first byte to its last, and bytes of each.
const PIECES: usize = 8;
const PIECE: usize = 512;
const SEEN: u64 = (PIECES * PIECE) as u64;

/// True when the file's bytes are spread as evenly as noise, so that it is compressed or encrypted already.
///
/// Judged by the sum of the squares of how often each byte value occurs: noise has `n²/256 + n` of `n` bytes. A tenth
/// above `n²/256` is allowed: no code for single bytes would save 1 % then. Repetitions over a distance are not seen.
pub(super) fn looks_like_noise(raw: &[u8]) -> bool {
    if raw.len() < SMALLEST {
        return false;
    }
    let mut counts = [0u64; 256];
    for piece in 0..PIECES {
        let from = (raw.len() - PIECE) / (PIECES - 1) * piece;
        for byte in &raw[from..from + PIECE] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    let even = SEEN * SEEN / 256;
    squares <= even + even / 10 + SEEN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn noise_is_known_whatever_its_length() {
        for seed in 0..200 {
            let len = SMALLEST + seed as usize * 137;
            assert!(looks_like_noise(&noise(seed, len)), "seed {seed}");
        }
        assert!(!looks_like_noise(&noise(1, SMALLEST - 1)), "too small to be looked at");
        assert!(!looks_like_noise(&[]));
    }

    #[test]
    fn compressed_text_is_known() {
        let words: Vec<u8> =
            noise(3, 60_000).iter().flat_map(|b| format!("w{} ", u32::from(*b) * 7 % 251).into_bytes()).collect();
        let frame = zstd::bulk::compress(&words, 3).unwrap();
        assert!(frame.len() > SMALLEST && looks_like_noise(&frame));
        assert!(!looks_like_noise(&words));
    }

    #[test]
    fn what_can_shrink_is_not_taken_for_noise() {
        let random = noise(5, 100_000);
        let letters: Vec<u8> = random
            .iter()
            .map(|b| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[usize::from(b % 64)])
            .collect();
        let numbers: Vec<u8> = random.iter().flat_map(|b| (u32::from(*b) * 3_001).to_le_bytes()).collect();
        let seven_bits: Vec<u8> = random.iter().map(|b| b & 0x7f).collect();
        let half = [&random[..50_000], &vec![0; 50_000][..]].concat();
        for (name, bytes) in
            [("base64", letters), ("numbers", numbers), ("seven bits", seven_bits), ("half empty", half)]
        {
            assert!(!looks_like_noise(&bytes), "{name}");
            assert!(zstd::bulk::compress(&bytes, 3).unwrap().len() < bytes.len(), "{name}");
        }
    }
}
