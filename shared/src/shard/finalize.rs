//! The front of a dictionary, from the library: magic, id, four tables of statistics and three offsets (RFC 8878, section 5).
//!
//! The library's own safe interface makes such a front only together with a content of its own choice, tries five of those
//! and takes 11 MB to do so; the call for a content that is already there (`ZDICT_finalizeDictionary`) it leaves out. This is the only place
//! with code the compiler cannot check (docs/decisions/095-one-call-that-is-not-checked.md).

use std::ffi::c_uint;

use zstd::zstd_safe::zstd_sys::{ZDICT_finalizeDictionary, ZDICT_isError, ZDICT_params_t};

/// The longest front there is: the library gives itself this much room for it.
pub(super) const MAX_FRONT: usize = 256;
/// With less content the library fills up, and the front is not told from that any more. Also its least size of a dictionary.
pub(super) const MIN_CONTENT: usize = 256;

/// The front for a dictionary of `content`, with the statistics of `samples` compressed with it at `level`. `None` when `content` has
/// less than [`MIN_CONTENT`] bytes or the library refuses: the samples are too few or have nothing in common.
pub(super) fn front(content: &[u8], samples: &[&[u8]], level: i32) -> Option<Vec<u8>> {
    if content.len() < MIN_CONTENT {
        return None;
    }
    let text = samples.concat();
    let sizes: Vec<usize> = samples.iter().map(|sample| sample.len()).collect();
    let count = c_uint::try_from(sizes.len()).ok()?;
    let mut dictionary = vec![0; MAX_FRONT + content.len()];
    // No id asked for: it is a hash of the content then, the same everywhere.
    let parameters = ZDICT_params_t { compressionLevel: level, notificationLevel: 0, dictID: 0 };
    #[expect(unsafe_code, reason = "the library's function has no safe form; see above")]
    // SAFETY: every pointer comes from a slice that outlives the call, next to that slice's own length: `dictionary` is
    // written to and borrowed by nobody else, `content`, `text` and `sizes` are only read. `sizes` has `count` elements and
    // they sum up to `text.len()`, as it is their concatenation. The function keeps none of them.
    let (len, is_error) = unsafe {
        let len = ZDICT_finalizeDictionary(
            dictionary.as_mut_ptr().cast(),
            dictionary.len(),
            content.as_ptr().cast(),
            content.len(),
            text.as_ptr().cast(),
            sizes.as_ptr(),
            count,
            parameters,
        );
        (len, ZDICT_isError(len) != 0)
    };
    if is_error {
        return None;
    }
    // The whole content fits, so what stands before it is the front.
    dictionary.truncate(len.checked_sub(content.len())?);
    Some(dictionary)
}

#[cfg(test)]
mod tests {
    use zstd::zstd_safe::{CCtx, DCtx};

    use super::*;

    fn samples(seed: u32) -> Vec<Vec<u8>> {
        let text = |i: u32| {
            let n = i * (seed + 3) * 7919 % 10_007;
            format!("{{\"id\":{n},\"kind\":\"entry of set {seed}\",\"odd\":{},\"text\":\"{n:x}{n:o}\"}}\n", n % 2)
                .repeat(1 + (n % 3) as usize)
                .into_bytes()
        };
        (0..200).map(text).collect()
    }

    #[test]
    fn a_front_and_any_end_of_its_content_are_a_dictionary() {
        for seed in 0..6 {
            let samples = samples(seed);
            let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
            let content = samples[..100].concat();
            let front = front(&content, &samples, 3).unwrap();
            assert!(front.starts_with(&[0x37, 0xa4, 0x30, 0xec]));
            assert!(front.ends_with(&[1, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0]), "three offsets end it: {front:?}");
            for end in [content.len(), 1024, 256] {
                let dictionary = [&front[..], &content[content.len() - end..]].concat();
                let (mut packed, mut back) = (Vec::with_capacity(4096), Vec::with_capacity(4096));
                CCtx::create().compress_using_dict(&mut packed, samples[150], &dictionary, 3).unwrap();
                DCtx::create().decompress_using_dict(&mut back, &packed, &dictionary).unwrap();
                assert_eq!(back, samples[150]);
            }
        }
    }

    #[test]
    fn what_cannot_be_a_dictionary_is_refused() {
        let samples = samples(1);
        let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
        assert_eq!(front(&[b'a'; MIN_CONTENT - 1], &samples, 3), None, "too short");
        for few in [&samples[..0], &[&b""[..]], &[&b"a"[..]]] {
            // Refused or not is the library's choice; what counts is that it answers.
            let answer = front(&samples.concat(), few, 3);
            assert!(answer.is_none_or(|front| (8..=MAX_FRONT).contains(&front.len())));
        }
    }
}
