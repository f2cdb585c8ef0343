//! The least items of a listing, whatever order they are found in, in bounded memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// What an item takes beside its key and tag, roughly.
pub(super) const ITEM_OVERHEAD: usize = 200;
/// The most bytes of a window. One item always fits.
const MAX_BYTES: usize = 4 << 20;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// What keys begin with, up to the delimiter.
    CommonPrefix,
    File(File),
}

/// What a listing says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Bytes before compression.
    pub(super) size: u64,
    /// With its quotes.
    pub(super) etag: String,
    /// Unix seconds.
    pub(super) modified_s: u64,
    /// Of two shards with the same uid the one with the greater sequence wins, then the greater key.
    pub(super) rank: (u64, Arc<str>),
}

/// The least items offered so far, up to a number of items and of bytes.
#[derive(Debug)]
pub(super) struct Window {
    items: BTreeMap<String, Item>,
    most: usize,
    bytes: usize,
    /// The least key that found no room: from here on nothing is known.
    cut: Option<String>,
}

fn weight(key: &str, item: &Item) -> usize {
    let tag = match item {
        Item::CommonPrefix => 0,
        Item::File(file) => file.etag.len(),
    };
    key.len() + tag + ITEM_OVERHEAD
}

impl Window {
    pub(super) fn new(most: usize) -> Self {
        Self { items: BTreeMap::new(), most, bytes: 0, cut: None }
    }

    /// How many items it holds at most.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes all that another window found, and what that one does not know is not known here either.
    pub(super) fn take_over(&mut self, other: Self) {
        for (key, item) in other.items {
            self.offer(&key, item);
        }
        let Some(cut) = other.cut else { return };
        for (key, item) in self.items.split_off(&cut) {
            self.bytes -= weight(&key, &item);
        }
        if self.has_room_for(&cut) {
            self.cut = Some(cut);
        }
    }

    /// Whether an item with this key, or a greater one, can still get in.
    pub(super) fn has_room_for(&self, key: &str) -> bool {
        self.cut.as_deref().is_none_or(|cut| key < cut)
    }

    /// Takes an item, unless there are enough lesser ones.
    pub(super) fn offer(&mut self, key: &str, item: Item) {
        if !self.has_room_for(key) {
            return;
        }
        match self.items.entry(key.to_owned()) {
            Entry::Vacant(room) => {
                self.bytes += weight(key, &item);
                room.insert(item);
            }
            Entry::Occupied(mut known) => {
                if let (Item::File(old), Item::File(new)) = (known.get(), &item)
                    && new.rank > old.rank
                {
                    // The same key, and tags differ little: the weight stays as it is.
                    known.insert(item);
                }
                return;
            }
        }
        while self.items.len() > self.most || (self.bytes > MAX_BYTES && self.items.len() > 1) {
            let Some((key, item)) = self.items.pop_last() else { break };
            self.bytes -= weight(&key, &item);
            self.cut = Some(key);
        }
    }

    /// True when something found no room.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// The items in order, and their weight in bytes.
    pub(super) fn into_items(self) -> (Vec<(String, Item)>, usize) {
        (self.items.into_iter().collect(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sequence: u64, shard: &str) -> Item {
        Item::File(File { size: sequence, etag: String::new(), modified_s: 0, rank: (sequence, shard.into()) })
    }

    #[test]
    fn windows_taken_over_are_as_one() {
        let mut keys: Vec<String> = (0..500).map(|n| format!("{n:03}")).collect();
        keys.sort_by_key(|key| key.bytes().rev().collect::<Vec<_>>());
        for parts in [1, 2, 5, 100] {
            let (mut whole, mut merged) = (Window::new(7), Window::new(7));
            for part in keys.chunks(keys.len() / parts) {
                let mut own = Window::new(7);
                for key in part {
                    whole.offer(key, file(1, "a"));
                    own.offer(key, file(1, "a"));
                }
                merged.take_over(own);
            }
            assert_eq!((merged.cut.clone(), merged.bytes), (whole.cut.clone(), whole.bytes), "{parts}");
            assert_eq!(merged.into_items(), whole.into_items(), "{parts}");
        }
        // What one does not know hides what the other has behind it.
        let (mut cut, mut long) = (Window::new(1), Window::new(7));
        cut.offer("b", file(1, "a"));
        cut.offer("c", file(1, "a"));
        long.offer("a", file(1, "a"));
        long.offer("d", file(1, "a"));
        long.take_over(cut);
        assert!(long.is_cut() && !long.has_room_for("c"));
        let (items, bytes) = long.into_items();
        assert_eq!(items.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(bytes, items.iter().map(|(key, item)| weight(key, item)).sum::<usize>());
    }

    #[test]
    fn the_least_stay_in_whatever_order_they_come() {
        let mut keys: Vec<String> = (0..500).map(|n| format!("{n:03}")).collect();
        let expected = keys[..7].to_vec();
        // A fixed shuffle.
        keys.sort_by_key(|key| key.bytes().fold(7_u32, |n, b| n.wrapping_mul(2_654_435_761) ^ u32::from(b)));
        let mut window = Window::new(7);
        for key in &keys {
            window.offer(key, Item::CommonPrefix);
        }
        assert!(window.is_cut() && window.has_room_for("006") && !window.has_room_for("007"));
        let (items, _) = window.into_items();
        assert_eq!(items.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn of_two_files_with_one_key_the_newer_shard_wins() {
        for order in [[(1, "b"), (2, "a"), (2, "c")], [(2, "c"), (2, "a"), (1, "b")], [(2, "a"), (2, "c"), (1, "b")]] {
            let mut window = Window::new(3);
            for (sequence, shard) in order {
                window.offer("k", file(sequence, shard));
            }
            assert_eq!(window.into_items().0, [("k".to_owned(), file(2, "c"))]);
        }
    }

    #[test]
    fn long_keys_take_the_room_of_many() {
        let mut window = Window::new(1000);
        for n in 0..300 {
            window.offer(&format!("{n:03}{}", "x".repeat(60_000)), Item::CommonPrefix);
        }
        assert!(window.is_cut() && window.bytes <= MAX_BYTES);
        let (items, _) = window.into_items();
        assert!(items.len() > 60 && items[0].0.starts_with("000") && items[59].0.starts_with("059"));
        let mut window = Window::new(2);
        window.offer(&"x".repeat(2 * MAX_BYTES), Item::CommonPrefix);
        assert_eq!(window.into_items().0.len(), 1, "one always fits");
    }
}
