//! [`FrozenComparison`]: what differs between two snapshots of one store.
//!
//! # Design
//!
//! Entries that can differ are found by their ids: from the journal, or by comparing the two tables page by page. An id
//! has a record in each snapshot, or in one of them. What a live snapshot sees is not changed where it lies, so a record at
//! the same address is the same entry. Otherwise the two records are looked at: the same key with the same value was only moved,
//! the same key with another value is an update, and two keys are one that is deleted and one that is inserted.
//!
//! ```text
//!   ids ──> (old location, new location) ──> records fetched, compared ──> sorted by key ──> joined
//!   1,2,3   in order, so slots are close      64 at a time, so that                         (a key that is deleted
//!           to each other                     misses overlap                                under one id and inserted
//!                                                                                           under another)
//! ```
//!
//! Sorting looks at keys as little as it can: fifteen bytes of each, behind what all of them share, are kept beside it as
//! a number, with how many there were. Runs that this leaves open are sorted by the fifteen bytes that follow.
//!
//! # Why this and not the other way
//!
//! Walking the two trees of the sorted index together, skipping nodes that are shared, gives the order for nothing, but
//! sees only keys that come or go: an update leaves the tree alone, so that every entry's location would have to be looked
//! at.
//!
//! # Invariants
//!
//! 1. Every pair has at least one location, of a record that its snapshot sees; where it has both, the keys are equal and
//!    the values are not.
//! 2. Keys of the pairs strictly ascend.

use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use super::arena::{Location, Record, ValueRef};
use super::frozen::{Frozen, part};
use super::journal::noted_since;
use super::prefetch;
use super::scan::Records;
use crate::handles::Part;
use crate::snapshot::{Compared, Comparison, Counts};

/// How many entries are looked at together.
const BATCH: usize = 32;

/// A location that is none.
const NONE: Location = Location::MAX;

pub(super) struct FrozenComparison {
    earlier: Arc<Frozen>,
    later: Arc<Frozen>,
    pairs: Vec<Pair>,
    counts: Counts,
}

/// Where a key's old and new record are.
#[derive(Clone, Copy)]
struct Pair {
    old: Location,
    new: Location,
}

/// A pair on its way to its place.
#[derive(Clone, Copy)]
struct Item {
    head: Head,
    pair: Pair,
}

impl FrozenComparison {
    /// Compares two snapshots of one store, whichever was taken first.
    pub(super) fn new(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Self {
        let mut found = Found::new(&earlier, &later);
        match noted(&earlier, &later) {
            Some(ids) => found.take_ids(&ids),
            None => found.take_pages(),
        }
        Self::finish(found, &earlier, &later)
    }

    /// Compares two snapshots of one store page by page.
    #[cfg(test)]
    pub(super) fn by_pages(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Self {
        let mut found = Found::new(&earlier, &later);
        found.take_pages();
        Self::finish(found, &earlier, &later)
    }

    fn finish(mut found: Found<'_>, earlier: &Arc<Frozen>, later: &Arc<Frozen>) -> Self {
        found.sort();
        let (pairs, counts) = found.join();
        let (earlier, later) = (Arc::clone(earlier), Arc::clone(later));
        Self { earlier, later, pairs, counts }
    }
}

/// The ids that can differ, if the snapshot that was taken later has notes back to the other one.
fn noted(earlier: &Frozen, later: &Frozen) -> Option<Vec<u32>> {
    let (first, second) = if earlier.epoch() <= later.epoch() { (earlier, later) } else { (later, earlier) };
    noted_since(&second.journal, first.epoch())
}

/// What differs, as far as it was found.
struct Found<'a> {
    earlier: &'a Frozen,
    later: &'a Frozen,
    items: Vec<Item>,
    counts: Counts,
    /// What all keys so far share, of the first one.
    shared: &'a [u8],
    /// Whether the heads of all items begin behind that.
    is_headed: bool,
}

impl<'a> Found<'a> {
    fn new(earlier: &'a Frozen, later: &'a Frozen) -> Self {
        Self { earlier, later, items: Vec::new(), counts: Counts::default(), shared: &[], is_headed: true }
    }

    fn take_ids(&mut self, ids: &[u32]) {
        let (old, new) = (&self.earlier.entries.table, &self.later.entries.table);
        self.items.reserve_exact(ids.len());
        let fetch_slots = |ids: &[u32]| {
            for slot in ids.iter().flat_map(|&id| [old.address_of(id), new.address_of(id)]).flatten() {
                prefetch(slot);
            }
        };
        // Slots are fetched a batch ahead, and records looked at a batch later, so that neither is waited for.
        let (mut batch, mut fetched) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let mut batches = ids.chunks(BATCH).peekable();
        batches.peek().copied().map(fetch_slots);
        while let Some(ids) = batches.next() {
            batches.peek().copied().map(fetch_slots);
            for &id in ids {
                self.take(&mut batch, old.find(id), new.find(id));
            }
            self.look_at(&mut fetched);
            mem::swap(&mut batch, &mut fetched);
        }
        self.look_at(&mut fetched);
    }

    fn take_pages(&mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let (old, new) = (&self.earlier.entries.table, &self.later.entries.table);
        new.for_each_unshared(old, |old, new| {
            self.take(&mut batch, old, new);
            if batch.len() == BATCH {
                self.look_at(&mut batch);
            }
        });
        self.look_at(&mut batch);
    }

    /// Fetches the records of an entry that is looked at with the batch.
    #[inline]
    fn take(&self, batch: &mut Vec<Pair>, old: Option<Location>, new: Option<Location>) {
        let (old_address, new_address) =
            (old.map(|old| self.earlier.entries.address(old)), new.map(|new| self.later.entries.address(new)));
        // Not by their locations, because the place of a chunk that is gone is used again.
        if old_address == new_address {
            return;
        }
        for address in [old_address, new_address].into_iter().flatten() {
            fetch(address);
        }
        batch.push(Pair { old: old.unwrap_or(NONE), new: new.unwrap_or(NONE) });
    }

    /// Takes in what differs of a batch.
    fn look_at(&mut self, batch: &mut Vec<Pair>) {
        for pair in batch.drain(..) {
            match (self.old_of(pair), self.new_of(pair)) {
                (Some(old), Some(new)) if old.key() == new.key() => {
                    if !is_same(old.value(), new.value()) {
                        self.push(pair);
                    }
                }
                (Some(_), Some(_)) => {
                    // The id was used again, for another key.
                    self.push(Pair { new: NONE, ..pair });
                    self.push(Pair { old: NONE, ..pair });
                }
                _ => self.push(pair),
            }
        }
    }

    fn push(&mut self, pair: Pair) {
        let (old, new) = (self.old_of(pair), self.new_of(pair));
        let key = new.or(old).map_or(&[][..], Record::key);
        self.counts.add(key.len(), old.map(Record::value_len), new.map(Record::value_len));
        if !key.starts_with(self.shared) || self.items.is_empty() {
            self.share_less(key);
        }
        let head = if self.is_headed { head(key, self.shared.len()) } else { 0 };
        self.items.push(Item { head, pair });
    }

    /// Learns that `key` does not share what the keys before it do.
    #[cold]
    fn share_less(&mut self, key: &'a [u8]) {
        if self.items.is_empty() {
            self.shared = key;
            return;
        }
        let same = key.iter().zip(self.shared).take_while(|(a, b)| a == b).count();
        self.shared = &self.shared[..same];
        // The first few keys tell, mostly. Else it is done once, at the end.
        self.is_headed = self.items.len() <= 4 * BATCH;
        if self.is_headed {
            for at in 0..self.items.len() {
                self.items[at].head = head(self.key(self.items[at].pair), same);
            }
        }
    }

    fn old_of(&self, pair: Pair) -> Option<Record<'a>> {
        self.earlier.record_at(pair.old)
    }

    fn new_of(&self, pair: Pair) -> Option<Record<'a>> {
        self.later.record_at(pair.new)
    }

    fn key(&self, pair: Pair) -> &'a [u8] {
        self.new_of(pair).or_else(|| self.old_of(pair)).map_or(&[], Record::key)
    }

    /// Sorts the items by their keys. O(n log n), and O(1) looks at a key for each fifteen bytes that it shares with others
    /// but not with all of them.
    fn sort(&mut self) {
        let mut items = mem::take(&mut self.items);
        let mut shared = self.shared.len();
        if !self.is_headed {
            shared = self.set_heads(&mut items, shared);
        }
        // What is to be sorted by its heads, and where those begin. A list and not a recursion, because keys are long enough
        // to exhaust the stack.
        let mut runs = vec![(0..items.len(), shared)];
        while let Some((run, shared)) = runs.pop() {
            let mut from = run.start;
            let sorted = &mut items[run];
            sorted.sort_unstable_by_key(|item| item.head);
            let longer = runs.len();
            for run in sorted.chunk_by(|a, b| a.head == b.head) {
                let to = from + run.len();
                if run.len() > 1 && run[0].head & 0xFF > HEAD as Head {
                    runs.push((from..to, shared + HEAD));
                }
                from = to;
            }
            for (run, shared) in &mut runs[longer..] {
                *shared = self.set_heads(&mut items[run.clone()], *shared);
            }
        }
        self.items = items;
    }

    /// Sets the head of every item behind what all keys share, of which `known` bytes are known, and returns how much that
    /// is.
    fn set_heads(&self, items: &mut [Item], known: usize) -> usize {
        let Some(first) = items.first().map(|item| self.key(item.pair)) else { return known };
        let mut shared = first.len();
        let mut share = |key: &[u8]| {
            if key.len() < shared || key[known..shared] != first[known..shared] {
                let same = key[known..].iter().zip(&first[known..shared]).take_while(|(a, b)| a == b);
                shared = known + same.count();
            }
            shared
        };
        // A few of them tell, mostly; else all heads are set a second time.
        let mut guess = first.len();
        for item in items.iter().step_by(items.len() / 8 + 1) {
            guess = share(self.key(item.pair));
        }
        loop {
            let mut shared = guess;
            for at in 0..items.len() {
                self.prefetch_key(items.get(at + 16));
                let key = self.key(items[at].pair);
                shared = share(key);
                items[at].head = head(key, shared);
            }
            if shared == guess {
                return shared;
            }
            guess = shared;
        }
    }

    #[inline]
    fn prefetch_key(&self, item: Option<&Item>) {
        if let Some(&Item { pair, .. }) = item {
            let of_new = pair.new != NONE;
            let (frozen, location) = if of_new { (self.later, pair.new) } else { (self.earlier, pair.old) };
            fetch(frozen.entries.address(location));
        }
    }

    /// Joins what is sorted: a key that is deleted under one id and inserted under another is updated, or the same.
    fn join(mut self) -> (Vec<Pair>, Counts) {
        let items = mem::take(&mut self.items);
        let mut pairs: Vec<Pair> = Vec::with_capacity(items.len());
        for Item { pair, .. } in items {
            let Some(last) = pairs.last_mut() else {
                pairs.push(pair);
                continue;
            };
            let is_split = last.old == NONE && pair.new == NONE || last.new == NONE && pair.old == NONE;
            if !is_split || self.key(*last) != self.key(pair) {
                pairs.push(pair);
                continue;
            }
            let both = Pair { old: last.old.min(pair.old), new: last.new.min(pair.new) };
            *last = both;
            let (Some(old), Some(new)) = (self.old_of(both), self.new_of(both)) else { continue };
            self.counts.inserts -= 1;
            self.counts.deletes -= 1;
            self.counts.size_bytes -= 2 * new.key_len() + new.value_len();
            if is_same(old.value(), new.value()) {
                pairs.pop();
            } else {
                self.counts.add(new.key_len(), Some(old.value_len()), Some(new.value_len()));
            }
        }
        (pairs, self.counts)
    }
}

/// Fifteen bytes of a key behind some that all keys share, padded with zeros, and in the lowest byte how many of the key's
/// are there, or one more: in the order of keys, and equal only for keys that are equal or longer.
type Head = u128;

/// The bytes of a key in a head.
const HEAD: usize = 15;

#[inline]
fn head(key: &[u8], shared: usize) -> Head {
    let rest = &key[shared..];
    if let Some(bytes) = rest.first_chunk() {
        return Head::from_be_bytes(*bytes) & !0xFF | (HEAD as Head + 1);
    }
    let mut bytes = [0; HEAD + 1];
    bytes[..rest.len()].copy_from_slice(rest);
    Head::from_be_bytes(bytes) | rest.len() as Head
}

/// Asks for a short record, which mostly is in two cache lines if it does not start one.
#[inline]
fn fetch(record: *const u8) {
    prefetch(record);
    prefetch(record.wrapping_add(32));
}

fn is_same(old: ValueRef<'_>, new: ValueRef<'_>) -> bool {
    let (old, new) = (old.as_slice(), new.as_slice());
    // Large values are shared by records that were moved.
    ptr::eq(old, new) || old == new
}

impl Frozen {
    /// The record at a location that the snapshot sees.
    fn record_at(&self, location: Location) -> Option<Record<'_>> {
        (location != NONE).then(|| self.entries.record(location))
    }
}

impl Comparison for FrozenComparison {
    fn counts(&self) -> Counts {
        self.counts
    }

    fn at(&self, place: usize) -> Compared<'_> {
        let Pair { old, new } = self.pairs[place];
        let (old, new) = (self.earlier.record_at(old), self.later.record_at(new));
        let key = new.or(old).map_or(&[][..], Record::key);
        (Part::Borrowed(key), old.map(Record::value).map(part), new.map(Record::value).map(part))
    }

    fn prefetch(&self, places: Range<usize>) {
        for &Pair { old, new } in &self.pairs[places] {
            for (location, frozen) in [(old, &self.earlier), (new, &self.later)] {
                if location != NONE {
                    fetch(frozen.entries.address(location));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_in_the_order_of_keys() {
        let mut keys: Vec<Vec<u8>> = vec![vec![], vec![0], vec![1], vec![0xFF]];
        for len in [2, 14, 15, 16, 17, 40] {
            for byte in [0, 1, 0xFF] {
                let mut key = vec![byte; len];
                keys.push(key.clone());
                key[len - 1] ^= 1;
                keys.push(key.clone());
                key.push(0);
                keys.push(key);
            }
        }
        for a in &keys {
            for b in &keys {
                let (x, y) = (head(a, 0), head(b, 0));
                assert!(a <= b || x >= y, "{a:?} {b:?}");
                assert!(x != y || a == b || x & 0xFF == 16, "{a:?} {b:?}");
                let behind = |key: &[u8]| [b"shared", key].concat();
                assert_eq!((head(&behind(a), 6), head(&behind(b), 6)), (x, y));
            }
        }
    }
}
