//! Few reads out of many places: neighbours in a shard are read together with what lies between them, the smallest gaps
//! first, as long as that costs little.

use std::ops::Range;

/// The widest gap that is read for nothing, in bytes.
const MAX_GAP: u64 = 64 << 10;
/// How much may be read for nothing in all, of what is wanted.
const EXTRA_PERCENT: u64 = 30;
/// So much may be read for nothing where little is wanted: about what the answer to one request costs anyway.
const FREE_EXTRA: u64 = 64 << 10;
/// The longest read that is made of several files, in bytes.
const MAX_READ: u64 = 4 << 20;

/// A file's stored bytes. Never empty: nobody is asked for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which shard, as the caller numbers them.
    pub(super) shard: usize,
    /// Where, in bytes from the shard's start.
    pub(super) range: Range<u64>,
    /// Which file, as the caller numbers them.
    pub(super) file: usize,
}

/// One read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) shard: usize,
    pub(super) range: Range<u64>,
    /// The files in it.
    pub(super) files: Vec<usize>,
}

impl Read {
    pub(super) fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The reads for these pieces, in the order of their places. Each begins and ends with a byte that is wanted.
pub(super) fn coalesce(mut pieces: Vec<Piece>) -> Vec<Read> {
    pieces.sort_unstable_by_key(|piece| (piece.shard, piece.range.start, piece.range.end));
    let joined = choose_gaps(&pieces);
    let mut reads: Vec<Read> = Vec::new();
    for (piece, joined) in pieces.into_iter().zip(joined) {
        match reads.last_mut() {
            Some(last) if joined && fits(last, &piece) => {
                last.range.end = last.range.end.max(piece.range.end);
                last.files.push(piece.file);
            }
            _ => reads.push(Read { shard: piece.shard, range: piece.range, files: vec![piece.file] }),
        }
    }
    reads
}

/// Whether a read may grow to the end of a piece. What lies in it already is always welcome.
fn fits(read: &Read, piece: &Piece) -> bool {
    let end = read.range.end.max(piece.range.end);
    end == read.range.end || end - read.range.start <= MAX_READ
}

/// For each sorted piece, whether it may be read together with the one before it.
fn choose_gaps(pieces: &[Piece]) -> Vec<bool> {
    let mut joined = vec![false; pieces.len()];
    let (mut wanted, mut gaps, mut end) = (0, Vec::new(), 0);
    for (at, piece) in pieces.iter().enumerate() {
        let same = at > 0 && pieces[at - 1].shard == piece.shard;
        if !same {
            end = piece.range.start;
        } else if piece.range.start <= end {
            joined[at] = true;
        } else if piece.range.start - end <= MAX_GAP {
            gaps.push((piece.range.start - end, at));
        }
        wanted += piece.range.end.saturating_sub(end.max(piece.range.start));
        end = end.max(piece.range.end);
    }
    gaps.sort_unstable();
    let mut left = (wanted / 100 * EXTRA_PERCENT).max(FREE_EXTRA);
    for (gap, at) in gaps {
        let Some(rest) = left.checked_sub(gap) else { break };
        left = rest;
        joined[at] = true;
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(places: &[(usize, u64, u64)]) -> Vec<Piece> {
        let piece = |(file, (shard, start, len)): (usize, &(usize, u64, u64))| Piece {
            shard: *shard,
            range: *start..start + len,
            file,
        };
        places.iter().enumerate().map(piece).collect()
    }

    #[test]
    fn neighbours_are_one_read() {
        let reads = coalesce(pieces(&[(0, 300, 100), (1, 0, 50), (0, 100, 100), (0, 200, 100)]));
        let expected =
            [Read { shard: 0, range: 100..400, files: vec![2, 3, 0] }, Read { shard: 1, range: 0..50, files: vec![1] }];
        assert_eq!(reads, expected);
    }

    #[test]
    fn the_smallest_gaps_are_bridged_first_and_no_more_than_is_worth_it() {
        // 2 MB wanted: 600 KB may be wasted, which is fifteen gaps of 40 KB or thirty of 20 KB.
        let mut places = Vec::new();
        let mut at = 8;
        for n in 0..41 {
            places.push((0, at, 50_000));
            at += 50_000 + if n % 2 == 0 { 40_000 } else { 20_000 };
        }
        let reads = coalesce(pieces(&places));
        let read: u64 = reads.iter().map(|read| read.range.end - read.range.start).sum();
        assert!(read <= 41 * 50_000 * 130 / 100 && read > 41 * 50_000 * 127 / 100, "{read}");
        assert_eq!(reads.len(), 41 - 20 - 5, "all 20 of the narrow gaps, and as many wide ones as there is room for");
        // A gap that is too wide is never bridged, however much is wanted.
        let far = coalesce(pieces(&[(0, 0, 10_000_000), (0, 10_000_000 + MAX_GAP + 1, 10_000_000)]));
        assert_eq!(far.len(), 2);
    }

    #[test]
    fn little_ones_may_cost_a_little_more() {
        assert_eq!(coalesce(pieces(&[(0, 0, 10), (0, 30_000, 10), (0, 60_000, 10)])).len(), 1);
    }

    #[test]
    fn the_same_file_twice_is_read_once() {
        let reads = coalesce(pieces(&[(0, 10, 100), (0, 10, 100), (0, 50, 20)]));
        assert_eq!((reads.len(), reads[0].range.clone(), reads[0].files.len()), (1, 10..110, 3));
    }

    proptest! {
        #[test]
        fn every_piece_is_in_one_read_and_little_else(places in prop::collection::vec((0usize..3, 0u64..9_000_000, 1u64..300_000), 1..60)) {
            let all = pieces(&places);
            let reads = coalesce(all.clone());
            let mut seen: Vec<usize> = reads.iter().flat_map(|read| read.files.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..all.len()).collect::<Vec<_>>());
            let mut extra = 0;
            for read in &reads {
                let mine: Vec<&Piece> = read.files.iter().map(|file| &all[*file]).collect();
                prop_assert!(mine.iter().all(|p| p.shard == read.shard && p.range.start >= read.range.start && p.range.end <= read.range.end));
                prop_assert!(read.files.len() == 1 || read.range.end - read.range.start <= MAX_READ);
                let mut at = read.range.start;
                for piece in &mine {
                    extra += piece.range.start.saturating_sub(at);
                    at = at.max(piece.range.end);
                }
                prop_assert_eq!(at, read.range.end, "a read ends with what is wanted");
            }
            let wanted: u64 = places.iter().map(|(_, _, len)| len).sum();
            prop_assert!(extra <= (wanted / 100 * EXTRA_PERCENT).max(FREE_EXTRA));
        }
    }
}
