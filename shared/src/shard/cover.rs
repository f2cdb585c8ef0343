//! Which pieces of the samples go into a dictionary: those whose content stands in most of the samples.
//!
//! The idea is that of zstd's own trainer (COVER: a piece is worth the number of files its short strings stand in, and
//! each string counts once for the whole dictionary). Differences, measured on 10,000 real files of 108 MB: a string counts once
//! a sample however often it stands in it, and its settings are fixed where the library tries five of them out; the shard comes out
//! 0.4 % smaller, and looking at one string in eight takes a fraction of the time.

/// Bytes of a string.
const STRING: usize = 8;
/// Bytes of a piece. 256 and 1,024 both give larger shards.
const PIECE: usize = 512;
/// One string in this many is looked at, chosen by its content, so that it is the same ones in every file.
const ONE_IN: u64 = 8;
/// Strings are told apart by this many bits of their hash.
const SLOT_BITS: u32 = 18;
/// Every stretch of the samples gives about this many pieces, the best first.
const ROUNDS: usize = 4;
/// Where the samples have little in common, so many empty stretches in a row end the search.
const PATIENCE: usize = 100;

/// A string of the samples that is looked at.
#[derive(Clone, Copy)]
struct Mark {
    at: u32,
    slot: u32,
}

/// What is known of the strings of one hash.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Samples they stand in, less the first.
    worth: u32,
    /// The last sample they were seen in, from 1.
    seen_in: u32,
}

/// The tables of [`choose`], 2.5 MiB, to be used again: fresh ones cost two page faults for every 4 KiB, as they are read
/// before they are written, and the second makes all processors forget what they knew of the page.
#[derive(Debug)]
pub struct Workspace {
    slots: Vec<Slot>,
    /// How often a string stands in the piece that is looked at. All zeros between two pieces.
    window: Vec<u16>,
}

impl Default for Workspace {
    fn default() -> Self {
        Self { slots: vec![Slot::default(); 1 << SLOT_BITS], window: vec![0; 1 << SLOT_BITS] }
    }
}

/// Pieces of the samples of at most `capacity` bytes together, the most valuable last, where zstd reaches them with the
/// smallest offsets. Samples of less than 4 GiB. What was in the workspace before makes no difference.
pub(super) fn choose(workspace: &mut Workspace, samples: &[&[u8]], capacity: usize) -> Vec<u8> {
    let text = samples.concat();
    let Workspace { slots, window } = workspace;
    let marks = look(slots, samples);
    // Few enough that each has pieces to offer, and each ten pieces long at least.
    let stretches = (capacity / PIECE / ROUNDS).clamp(1, (text.len() / (10 * PIECE)).max(1));
    let length = text.len() / stretches;
    let stretch = |number: usize| {
        let from = marks.partition_point(|mark| (mark.at as usize) < number * length);
        let to = marks.partition_point(|mark| (mark.at as usize) < (number + 1) * length);
        &marks[from..if number + 1 == stretches { marks.len() } else { to }]
    };
    let (mut pieces, mut left, mut empty) = (Vec::new(), capacity, 0);
    for number in (0..stretches).cycle() {
        match best_piece(stretch(number), slots, window) {
            Some(piece) => {
                let (first, last) = (piece[0], piece[piece.len() - 1]);
                // What is in the dictionary once is worth nothing a second time.
                for mark in piece {
                    slots[mark.slot as usize].worth = 0;
                }
                let (from, to) = (first.at as usize, last.at as usize + STRING);
                pieces.push(&text[from..to.min(from + left)]);
                left -= left.min(to - from);
                empty = 0;
            }
            None => empty += 1,
        }
        if left < STRING || empty >= stretches.min(PATIENCE) {
            break;
        }
    }
    pieces.reverse();
    pieces.concat()
}

/// The strings that stand in more than one sample; the slots say in how many others they do.
fn look(slots: &mut [Slot], samples: &[&[u8]]) -> Vec<Mark> {
    slots.fill(Slot::default());
    let mut marks = Vec::new();
    let mut start = 0u32;
    for (number, sample) in (1u32..).zip(samples) {
        for (at, string) in (start..).zip(sample.windows(STRING)) {
            let string = u64::from_le_bytes(string.try_into().expect("a window of eight"));
            let hash = string.wrapping_mul(0xcf1b_bcdc_b7a5_6463);
            if hash >> 24 & (ONE_IN - 1) != 0 {
                continue;
            }
            let slot = (hash >> (64 - SLOT_BITS)) as u32;
            marks.push(Mark { at, slot });
            let known = &mut slots[slot as usize];
            known.worth += u32::from(known.seen_in != 0 && known.seen_in != number);
            known.seen_in = number;
        }
        start += sample.len() as u32;
    }
    marks.retain(|mark| slots[mark.slot as usize].worth > 0);
    marks
}

/// The piece of a stretch whose strings are worth most; `None` when none is worth anything. `window` is all zeros
/// before and after.
fn best_piece<'a>(stretch: &'a [Mark], slots: &[Slot], window: &mut [u16]) -> Option<&'a [Mark]> {
    let (mut from, mut sum, mut best, mut place) = (0, 0u64, 0u64, 0..0);
    for (to, mark) in stretch.iter().enumerate() {
        let slot = mark.slot as usize;
        sum += if window[slot] == 0 { u64::from(slots[slot].worth) } else { 0 };
        window[slot] += 1;
        while mark.at - stretch[from].at > (PIECE - STRING) as u32 {
            let slot = stretch[from].slot as usize;
            window[slot] -= 1;
            sum -= if window[slot] == 0 { u64::from(slots[slot].worth) } else { 0 };
            from += 1;
        }
        if sum > best {
            (best, place) = (sum, from..to + 1);
        }
    }
    for mark in &stretch[from..] {
        window[mark.slot as usize] = 0;
    }
    let piece = &stretch[place];
    let counts = |mark: &Mark| slots[mark.slot as usize].worth > 0;
    let (first, last) = (piece.iter().position(counts)?, piece.iter().rposition(counts)?);
    Some(&piece[first..=last])
}

#[cfg(test)]
mod tests {
    use super::{Workspace, choose as choose_in};

    /// In a workspace that was used before.
    fn choose(samples: &[&[u8]], capacity: usize) -> Vec<u8> {
        let mut workspace = Workspace::default();
        let fresh = choose_in(&mut workspace, samples, capacity);
        let again = choose_in(&mut workspace, samples, capacity);
        assert!(fresh == again, "the same in a workspace that was used");
        let other = noise(9, 5_000);
        choose_in(&mut workspace, &[&other, &other[100..], &other[..3_000]], 4_096);
        assert!(choose_in(&mut workspace, samples, capacity) == fresh, "and in one that was used for something else");
        fresh
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn what_many_samples_share_is_chosen_once_and_the_rest_is_not() {
        let shared = noise(1, 300);
        let samples: Vec<Vec<u8>> = (0..50).map(|i| [noise(100 + i, 400), shared.clone()].concat()).collect();
        let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
        let middle = &shared[30..270];
        let chosen = choose(&samples, 10_000);
        // A part of the 20,000 bytes of noise besides: strings whose hashes collide look as if they were shared.
        assert!((250..6_000).contains(&chosen.len()), "{} bytes", chosen.len());
        let best = &chosen[chosen.len().saturating_sub(600)..];
        assert!(best.windows(middle.len()).any(|part| part == middle), "the best lies last");
        assert_eq!(chosen.windows(middle.len()).filter(|part| *part == middle).count(), 1);
    }

    #[test]
    fn strings_of_one_sample_are_worth_nothing() {
        let repeated = noise(2, 64).repeat(100);
        assert_eq!(choose(&[&repeated, &noise(3, 1_000)], 4_096), b"");
        assert_eq!(choose(&[], 4_096), b"");
        assert_eq!(choose(&[b"short", b"short"], 4_096), b"");
    }

    #[test]
    fn the_capacity_is_kept_and_what_is_most_common_comes_last() {
        let (common, rare) = (noise(4, 500), noise(5, 500));
        let samples: Vec<Vec<u8>> = (0..60).map(|i| if i % 3 == 0 { rare.clone() } else { common.clone() }).collect();
        let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
        let both = choose(&samples, 4_096);
        let place = |of: &[u8]| both.windows(100).position(|part| part == &of[200..300]).unwrap();
        assert!(place(&rare) < place(&common));
        for capacity in [8, 100, 600, 4_096] {
            assert!(choose(&samples, capacity).len() <= capacity);
        }
    }
}
