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
//! Sorting looks at keys as little as it can: seven bytes of each, behind what all of them share, are kept beside it as
//! a number, with how many there were. Runs that this leaves open are sorted by the seven bytes that follow.
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
const BATCH: usize = 64;

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
    head: u64,
    pair: Pair,
}

impl FrozenComparison {
    /// Compares two snapshots of one store, whichever was taken first.
    pub(super) fn new(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Self {
        let mut found = Found { earlier: &earlier, later: &later, items: Vec::new(), counts: Counts::default() };
        match noted(&earlier, &later) {
            Some(ids) => found.take_ids(&ids),
            None => found.take_pages(),
        }
        found.sort();
        let (pairs, counts) = found.join();
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
}

impl<'a> Found<'a> {
    fn take_ids(&mut self, ids: &[u32]) {
        let (old, new) = (&self.earlier.entries.table, &self.later.entries.table);
        self.items.reserve_exact(ids.len());
        let mut batch = Vec::with_capacity(BATCH);
        for ids in ids.chunks(BATCH) {
            for &id in ids {
                for slot in [old.address_of(id), new.address_of(id)].into_iter().flatten() {
                    prefetch(slot);
                }
            }
            for &id in ids {
                self.take(&mut batch, old.find(id), new.find(id));
            }
            self.look_at(&mut batch);
        }
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
            prefetch(address);
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
        let key_len = old.or(new).map_or(0, Record::key_len);
        self.counts.add(key_len, old.map(Record::value_len), new.map(Record::value_len));
        self.items.push(Item { head: 0, pair });
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

    /// Sorts the items by their keys. O(n log n), and O(1) looks at a key for each seven bytes that it shares with others
    /// but not with all of them.
    fn sort(&mut self) {
        /// Runs of so few are sorted by their whole keys.
        const FEW: usize = 12;
        let mut items = std::mem::take(&mut self.items);
        // What is to be sorted, and how many bytes all keys in it share. A list and not a recursion, because keys are long
        // enough to exhaust the stack.
        let mut runs = vec![(0..items.len(), 0)];
        while let Some((run, known)) = runs.pop() {
            let start = run.start;
            let items = &mut items[run];
            if items.len() <= FEW {
                items.sort_unstable_by(|a, b| self.key(a.pair)[known..].cmp(&self.key(b.pair)[known..]));
                continue;
            }
            let shared = self.set_heads(items, known);
            items.sort_unstable_by_key(|item| item.head);
            let mut from = 0;
            for run in items.chunk_by(|a, b| a.head == b.head) {
                let to = from + run.len();
                if run.len() > 1 && run[0].head & 0xFF > HEAD {
                    runs.push((start + from..start + to, shared + HEAD as usize));
                }
                from = to;
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
            prefetch(frozen.entries.address(location));
        }
    }

    /// Joins what is sorted: a key that is deleted under one id and inserted under another is updated, or the same.
    fn join(mut self) -> (Vec<Pair>, Counts) {
        let items = std::mem::take(&mut self.items);
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

/// The bytes of a key in a head.
const HEAD: u64 = 7;

/// Seven bytes of the key behind the first `shared`, padded with zeros, and how many there are, up to one more than that:
/// in the order of keys, and equal only for keys that are equal or longer.
#[inline]
fn head(key: &[u8], shared: usize) -> u64 {
    let rest = &key[shared..];
    let len = rest.len().min(HEAD as usize + 1);
    if let Some(bytes) = rest.first_chunk::<8>() {
        return u64::from_be_bytes(*bytes) & !0xFF | (HEAD + 1);
    }
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(rest);
    u64::from_be_bytes(bytes) | len as u64
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
                    prefetch(frozen.entries.address(location));
                }
            }
        }
    }
}
