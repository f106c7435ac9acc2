//! [`FrozenComparison`]: the differences between two snapshots of one store.
//!
//! # Design
//!
//! Entries that can differ are found by the journal, which mostly has both locations, or by comparing the two tables
//! page by page. An entry has a record in each snapshot, or in one of them. A record that a live snapshot sees is not
//! changed in place, so a record at the same address is the same entry. Otherwise the two records are compared:
//!
//! - the same key with the same value was only moved,
//! - the same key with another value is an update,
//! - two keys are one that is deleted and one that is inserted.
//!
//! ```text
//!   (old location, new location) ──> records fetched, compared ──> sorted by key ──> joined
//!    in the order of writes, so       32 at a time, so that         by sort keys     (a key that is deleted
//!    new ones follow each other       misses overlap                                  under one id and inserted
//!                                                                                     under another)
//! ```
//!
//! Sorting looks at keys as little as it can. A *sort key* is a number: twelve bytes of a key, behind those that all
//! keys share, and the place of the pair that the key belongs to. Sort keys are sorted, and ties by the twelve bytes
//! that follow.
//!
//! # Why
//!
//! Walking the two trees of the sorted index together, skipping nodes that are shared, gives the order for nothing. But
//! it finds only keys that come or go: an update leaves the tree alone, so that every entry's location would have to be
//! compared.

use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use super::entry_id::EntryId;
use super::frozen::Frozen;
use super::journal::{Note, noted_since};
use super::location::Location;
use super::prefetch::prefetch;
use super::record::{Record, equal};
use super::scan::Records;
use super::value::ValueRef;
use crate::comparison::{Compared, Comparison, Counts};
use crate::handles::CowBytes;

/// How many entries are examined together.
const BATCH: usize = 32;

/// The differences between two snapshots.
///
/// # Invariants
///
/// 1. Every pair has at least one location, of a record that its snapshot sees. Where it has both, the keys are equal
///    and the values are not.
/// 2. Keys of the pairs strictly ascend.
pub(super) struct FrozenComparison {
    earlier: Arc<Frozen>,
    later: Arc<Frozen>,
    pairs: Vec<Pair>,
    counts: Counts,
}

/// Where a key's old and new record are, or [`Location::NONE`].
#[derive(Clone, Copy)]
struct Pair {
    old: Location,
    new: Location,
}

impl FrozenComparison {
    /// Compares two snapshots of one store, whichever was taken first. `None` if there are more differences than sort
    /// keys can tell apart.
    pub(super) fn new(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Option<Self> {
        let mut found = Collector::new(&earlier, &later);
        if !found.add_noted() {
            found.add_pages();
        }
        Self::finish(found, &earlier, &later)
    }

    /// Compares two snapshots of one store page by page.
    #[cfg(test)]
    pub(super) fn by_pages(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Option<Self> {
        let mut found = Collector::new(&earlier, &later);
        found.add_pages();
        Self::finish(found, &earlier, &later)
    }

    fn finish(found: Collector<'_>, earlier: &Arc<Frozen>, later: &Arc<Frozen>) -> Option<Self> {
        if found.pairs.len() > PLACES {
            return None;
        }
        let sorted = found.sort();
        let (pairs, counts) = found.join(&sorted);
        let (earlier, later) = (Arc::clone(earlier), Arc::clone(later));
        Some(Self { earlier, later, pairs, counts })
    }
}

/// Collects the differences between two snapshots.
struct Collector<'a> {
    earlier: &'a Frozen,
    later: &'a Frozen,
    /// Pairs whose records were asked for last.
    fetching: Vec<Pair>,
    /// Pairs whose records were asked for before those, and are in the cache by now.
    fetched: Vec<Pair>,
    /// Pairs that differ.
    pairs: Vec<Pair>,
    counts: Counts,
}

impl<'a> Collector<'a> {
    fn new(earlier: &'a Frozen, later: &'a Frozen) -> Self {
        let (fetching, fetched) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        Self { earlier, later, fetching, fetched, pairs: Vec::new(), counts: Counts::default() }
    }

    /// Adds what the journal noted from one snapshot to the other. Returns `false` if it did not note everything.
    fn add_noted(&mut self) -> bool {
        let is_forward = self.earlier.epoch() <= self.later.epoch();
        let (first, second) = if is_forward { (self.earlier, self.later) } else { (self.later, self.earlier) };
        let Some(noted) = noted_since(&second.journal, first.epoch()) else { return false };
        self.pairs.reserve_exact(noted.len());
        let others = noted.for_each_single(|Note { old, new, .. }| {
            self.add(if is_forward { Pair { old, new } } else { Pair { old: new, new: old } });
        });
        self.add_ids(&others);
        self.add_rest();
        true
    }

    fn add_ids(&mut self, ids: &[EntryId]) {
        let (old, new) = (&self.earlier.records.table, &self.later.records.table);
        for (at, &id) in ids.iter().enumerate() {
            if let Some(&ahead) = ids.get(at + BATCH) {
                [old, new].into_iter().filter_map(|table| table.address_of(ahead)).for_each(prefetch);
            }
            self.add_locations(old.find(id), new.find(id));
        }
    }

    /// Adds what differs in pages of the tables that the snapshots do not share.
    fn add_pages(&mut self) {
        let (old, new) = (&self.earlier.records.table, &self.later.records.table);
        new.for_each_unshared(old, |old, new| self.add_locations(old, new));
        self.add_rest();
    }

    #[inline]
    fn add_locations(&mut self, old: Option<Location>, new: Option<Location>) {
        self.add(Pair { old: old.unwrap_or(Location::NONE), new: new.unwrap_or(Location::NONE) });
    }

    /// Asks for the records of an entry, and examines those that were asked for some time ago.
    #[inline]
    fn add(&mut self, pair: Pair) {
        let (old, new) = (self.earlier.address(pair.old), self.later.address(pair.new));
        // Not by their locations, because the index of a chunk that is gone is used again.
        if old == new {
            return;
        }
        [old, new].into_iter().flatten().for_each(fetch);
        self.fetching.push(pair);
        if self.fetching.len() == BATCH {
            self.examine_fetched();
        }
    }

    fn add_rest(&mut self) {
        self.examine_fetched();
        self.examine_fetched();
    }

    /// Examines the pairs whose records are in the cache. Those that are on their way are next.
    fn examine_fetched(&mut self) {
        let mut fetched = mem::take(&mut self.fetched);
        for pair in fetched.drain(..) {
            let (old, new) = (self.old_of(pair), self.new_of(pair));
            match (old, new) {
                (Some(before), Some(after)) if equal(before.key(), after.key()) => {
                    if !is_same(before.value(), after.value()) {
                        self.push(pair, old, new);
                    }
                }
                (Some(_), Some(_)) => {
                    // The id was used again, for another key.
                    self.push(Pair { new: Location::NONE, ..pair }, old, None);
                    self.push(Pair { old: Location::NONE, ..pair }, None, new);
                }
                _ => self.push(pair, old, new),
            }
        }
        self.fetched = mem::replace(&mut self.fetching, fetched);
    }

    fn push(&mut self, pair: Pair, old: Option<Record<'a>>, new: Option<Record<'a>>) {
        let key_len = new.or(old).map_or(0, Record::key_len);
        self.counts.add(key_len, old.map(Record::value_len), new.map(Record::value_len));
        self.pairs.push(pair);
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

    /// Returns the sort keys of the pairs, in the order of keys. O(n log n), and O(1) looks at a key for each twelve
    /// bytes that it shares with others but not with all of them.
    fn sort(&self) -> Vec<SortKey> {
        let mut sort_keys: Vec<SortKey> = (0..self.pairs.len()).map(|place| place as SortKey).collect();
        // Ranges of sort keys to be sorted, and how many bytes their keys are known to share. A list and not a
        // recursion, because keys are long enough to exhaust the stack.
        let mut ties = vec![(0..sort_keys.len(), 0)];
        while let Some((tie, known)) = ties.pop() {
            let tied = &mut sort_keys[tie.clone()];
            let shared = self.set_sort_keys(tied, known);
            tied.sort_unstable();
            find_ties(tied, tie.start, shared, &mut ties);
        }
        sort_keys
    }

    /// Sets all sort keys to begin behind the bytes that their keys share, of which `known` are known. Returns how many
    /// those are.
    fn set_sort_keys(&self, sort_keys: &mut [SortKey], known: usize) -> usize {
        let key = |sort_key: SortKey| self.key(self.pairs[place_of(sort_key)]);
        let Some(first) = sort_keys.first().map(|&sort_key| key(sort_key)) else { return known };
        let mut shared = first.len();
        let mut share = |key: &[u8]| {
            if key.len() < shared || key[known..shared] != first[known..shared] {
                let same = key[known..].iter().zip(&first[known..shared]).take_while(|(a, b)| a == b);
                shared = known + same.count();
            }
            shared
        };
        // A few of them tell, mostly. Else all sort keys are set a second time.
        let mut guess = first.len();
        for &sort_key in sort_keys.iter().step_by(sort_keys.len() / 8 + 1) {
            guess = share(key(sort_key));
        }
        loop {
            let mut shared = guess;
            for at in 0..sort_keys.len() {
                if let Some(&ahead) = sort_keys.get(at + 16) {
                    self.prefetch_key(self.pairs[place_of(ahead)]);
                }
                let key = key(sort_keys[at]);
                shared = share(key);
                sort_keys[at] = sort_key(key, shared, place_of(sort_keys[at]));
            }
            if shared == guess {
                return shared;
            }
            guess = shared;
        }
    }

    #[inline]
    fn prefetch_key(&self, Pair { old, new }: Pair) {
        self.later.address(new).or_else(|| self.earlier.address(old)).into_iter().for_each(fetch);
    }

    /// Returns the pairs in the order of keys, and their counts. A key that is deleted under one id and inserted under
    /// another becomes one pair, or none if the value is the same.
    fn join(mut self, sorted: &[SortKey]) -> (Vec<Pair>, Counts) {
        let mut pairs: Vec<Pair> = Vec::with_capacity(sorted.len());
        for &sort_key in sorted {
            let pair = self.pairs[place_of(sort_key)];
            let Some(last) = pairs.last_mut() else {
                pairs.push(pair);
                continue;
            };
            let is_split = last.old == Location::NONE && pair.new == Location::NONE
                || last.new == Location::NONE && pair.old == Location::NONE;
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

/// Twelve bytes of a key, its length, and the place of its pair.
///
/// From the highest bit on: the bytes, padded with zeros; in four bits how many of the key's bytes those are, or one
/// more if the key goes on; and the place. Sort keys are in the order of keys. Two that differ only in their places are
/// of equal keys or of keys that go on.
type SortKey = u128;

/// The bytes of a key in a sort key.
const SORT_KEY_BYTES: usize = 12;

const PLACE_BITS: u32 = SortKey::BITS - 8 * SORT_KEY_BYTES as u32 - 4;
/// More pairs than that cannot be sorted.
const PLACES: usize = 1 << PLACE_BITS;

#[inline]
fn sort_key(key: &[u8], shared: usize, place: usize) -> SortKey {
    let rest = &key[shared..];
    let mut padded = [0; SORT_KEY_BYTES];
    let bytes = rest.first_chunk().unwrap_or_else(|| {
        padded[..rest.len()].copy_from_slice(rest);
        &padded
    });
    // As two numbers, because to put the bytes together in memory and to load them as one would wait for the stores.
    let [high @ .., a, b, c, d] = *bytes;
    let (high, low) = (u64::from_be_bytes(high), u32::from_be_bytes([a, b, c, d]));
    let len = rest.len().min(SORT_KEY_BYTES + 1);
    SortKey::from(high) << 64 | SortKey::from(low) << 32 | (len as SortKey) << PLACE_BITS | place as SortKey
}

#[inline]
fn place_of(sort_key: SortKey) -> usize {
    sort_key as usize % PLACES
}

/// Adds the ranges of sort keys that are equal but for their places and whose keys go on, each with how many bytes its
/// keys share. `start` is the place of the first sort key, and `shared` the number of bytes before those in sort keys.
fn find_ties(sorted: &[SortKey], start: usize, shared: usize, ties: &mut Vec<(Range<usize>, usize)>) {
    let mut from = start;
    for run in sorted.chunk_by(|a, b| a >> PLACE_BITS == b >> PLACE_BITS) {
        let to = from + run.len();
        if run.len() > 1 && run[0] >> PLACE_BITS & 0xF > SORT_KEY_BYTES as SortKey {
            ties.push((from..to, shared + SORT_KEY_BYTES));
        }
        from = to;
    }
}

/// Asks for the cache lines of a short record.
#[inline]
fn fetch(record: *const u8) {
    prefetch(record);
    prefetch(record.wrapping_add(32));
}

fn is_same(old: ValueRef<'_>, new: ValueRef<'_>) -> bool {
    let (old, new) = (old.as_slice(), new.as_slice());
    // Large values are shared by records that were moved.
    ptr::eq(old, new) || equal(old, new)
}

impl Frozen {
    /// Returns the record at a location that the snapshot sees, `None` for [`Location::NONE`].
    fn record_at(&self, location: Location) -> Option<Record<'_>> {
        (location != Location::NONE).then(|| self.records.record(location))
    }

    /// Returns where that record starts, to be prefetched.
    #[inline]
    fn address(&self, location: Location) -> Option<*const u8> {
        (location != Location::NONE).then(|| self.records.address(location))
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
        let [old, new] = [old, new].map(|record| record.map(|record| record.value().to_cow()));
        (CowBytes::Borrowed(key), old, new)
    }

    fn prefetch(&self, places: Range<usize>) {
        for &Pair { old, new } in &self.pairs[places] {
            [self.earlier.address(old), self.later.address(new)].into_iter().flatten().for_each(fetch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sort_keys_are_in_the_order_of_keys() {
        let mut keys: Vec<Vec<u8>> = vec![vec![], vec![0], vec![1], vec![0xFF]];
        for len in [2, 11, 12, 13, 14, 40] {
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
                let of = |key: &[u8], shared| sort_key(key, shared, 7) >> PLACE_BITS;
                let (x, y) = (of(a, 0), of(b, 0));
                assert!(a <= b || x >= y, "{a:?} {b:?}");
                assert!(x != y || a == b || x & 0xF == 13, "{a:?} {b:?}");
                let behind = |key: &[u8]| [b"shared", key].concat();
                assert_eq!((of(&behind(a), 6), of(&behind(b), 6)), (x, y));
            }
        }
        assert_eq!(place_of(sort_key(b"key", 0, PLACES - 1)), PLACES - 1);
    }
}
