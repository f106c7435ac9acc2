//! [`FrozenComparison`]: what differs between two snapshots of one store.
//!
//! # Design
//!
//! Entries that can differ are found by the journal, which mostly has both locations, or by comparing the two tables page
//! by page. An entry has a record in each snapshot, or in one of them. What a live snapshot sees is not changed where it
//! lies, so a record at the same address is the same entry. Otherwise the two records are looked at: the same key with
//! the same value was only moved, the same key with another value is an update, and two keys are one that is deleted and
//! one that is inserted.
//!
//! ```text
//!   (old location, new location) ──> records fetched, compared ──> sorted by key ──> joined
//!    in the order of writes, so       32 at a time, so that         by heads alone    (a key that is deleted
//!    new ones follow each other       misses overlap                                  under one id and inserted
//!                                                                                     under another)
//! ```
//!
//! Sorting looks at keys as little as it can: twelve bytes of each, behind what all of them share, are kept as a number,
//! with how many there were, and with the place of the pair that they belong to. Such numbers are sorted, and runs that
//! twelve bytes leave open are sorted by the twelve that follow.
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

use super::arena::{Location, Record, ValueRef, equal};
use super::frozen::{Frozen, part};
use super::journal::{NOWHERE, Note, noted_since};
use super::prefetch;
use super::scan::Records;
use crate::handles::Part;
use crate::snapshot::{Compared, Comparison, Counts};

/// How many entries are looked at together.
const BATCH: usize = 32;

pub(super) struct FrozenComparison {
    earlier: Arc<Frozen>,
    later: Arc<Frozen>,
    pairs: Vec<Pair>,
    counts: Counts,
}

/// Where a key's old and new record are, or [`NOWHERE`].
#[derive(Clone, Copy)]
struct Pair {
    old: Location,
    new: Location,
}

impl FrozenComparison {
    /// Compares two snapshots of one store, whichever was taken first. `None` if there is more than this is made for.
    pub(super) fn new(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Option<Self> {
        let mut found = Found::new(&earlier, &later);
        if !found.take_noted() {
            found.take_pages();
        }
        Self::finish(found, &earlier, &later)
    }

    /// Compares two snapshots of one store page by page.
    #[cfg(test)]
    pub(super) fn by_pages(earlier: Arc<Frozen>, later: Arc<Frozen>) -> Option<Self> {
        let mut found = Found::new(&earlier, &later);
        found.take_pages();
        Self::finish(found, &earlier, &later)
    }

    fn finish(mut found: Found<'_>, earlier: &Arc<Frozen>, later: &Arc<Frozen>) -> Option<Self> {
        if found.pairs.len() > PLACES {
            return None;
        }
        let sorted = found.sort();
        let (pairs, counts) = found.join(&sorted);
        let (earlier, later) = (Arc::clone(earlier), Arc::clone(later));
        Some(Self { earlier, later, pairs, counts })
    }
}

/// What differs, as far as it was found.
struct Found<'a> {
    earlier: &'a Frozen,
    later: &'a Frozen,
    /// Pairs whose records come, and such as were asked for before those.
    coming: Vec<Pair>,
    come: Vec<Pair>,
    pairs: Vec<Pair>,
    /// Of each pair.
    heads: Vec<Head>,
    counts: Counts,
    /// What all keys so far share, of the first one.
    shared: &'a [u8],
    /// Whether all heads begin behind that.
    is_headed: bool,
}

impl<'a> Found<'a> {
    fn new(earlier: &'a Frozen, later: &'a Frozen) -> Self {
        Self {
            earlier,
            later,
            coming: Vec::with_capacity(BATCH),
            come: Vec::with_capacity(BATCH),
            pairs: Vec::new(),
            heads: Vec::new(),
            counts: Counts::default(),
            shared: &[],
            is_headed: true,
        }
    }

    /// Takes what was noted from one snapshot to the other, and returns whether it was.
    fn take_noted(&mut self) -> bool {
        let is_forward = self.earlier.epoch() <= self.later.epoch();
        let (first, second) = if is_forward { (self.earlier, self.later) } else { (self.later, self.earlier) };
        let Some(noted) = noted_since(&second.journal, first.epoch()) else { return false };
        self.pairs.reserve_exact(noted.len());
        self.heads.reserve_exact(noted.len());
        let others = noted.for_each_single(|Note { old, new, .. }| {
            self.take(if is_forward { Pair { old, new } } else { Pair { old: new, new: old } });
        });
        self.take_ids(&others);
        self.take_rest();
        true
    }

    fn take_ids(&mut self, ids: &[u32]) {
        let (old, new) = (&self.earlier.entries.table, &self.later.entries.table);
        for (at, &id) in ids.iter().enumerate() {
            if let Some(&ahead) = ids.get(at + BATCH) {
                [old, new].into_iter().filter_map(|table| table.address_of(ahead)).for_each(prefetch);
            }
            self.take_locations(old.find(id), new.find(id));
        }
    }

    fn take_pages(&mut self) {
        let (old, new) = (&self.earlier.entries.table, &self.later.entries.table);
        new.for_each_unshared(old, |old, new| self.take_locations(old, new));
        self.take_rest();
    }

    #[inline]
    fn take_locations(&mut self, old: Option<Location>, new: Option<Location>) {
        self.take(Pair { old: old.unwrap_or(NOWHERE), new: new.unwrap_or(NOWHERE) });
    }

    /// Asks for the records of an entry, and looks at those that were asked for some time ago.
    #[inline]
    fn take(&mut self, pair: Pair) {
        let (old, new) = (self.earlier.address(pair.old), self.later.address(pair.new));
        // Not by their locations, because the place of a chunk that is gone is used again.
        if old == new {
            return;
        }
        [old, new].into_iter().flatten().for_each(fetch);
        self.coming.push(pair);
        if self.coming.len() == BATCH {
            self.look_at_come();
            mem::swap(&mut self.coming, &mut self.come);
        }
    }

    fn take_rest(&mut self) {
        self.look_at_come();
        mem::swap(&mut self.coming, &mut self.come);
        self.look_at_come();
    }

    /// Takes in what differs of the pairs whose records have come.
    fn look_at_come(&mut self) {
        let mut come = mem::take(&mut self.come);
        for pair in come.drain(..) {
            let (old, new) = (self.old_of(pair), self.new_of(pair));
            match (old, new) {
                (Some(before), Some(after)) if equal(before.key(), after.key()) => {
                    if !is_same(before.value(), after.value()) {
                        self.push(pair, old, new);
                    }
                }
                (Some(_), Some(_)) => {
                    // The id was used again, for another key.
                    self.push(Pair { new: NOWHERE, ..pair }, old, None);
                    self.push(Pair { old: NOWHERE, ..pair }, None, new);
                }
                _ => self.push(pair, old, new),
            }
        }
        self.come = come;
    }

    fn push(&mut self, pair: Pair, old: Option<Record<'a>>, new: Option<Record<'a>>) {
        let key = new.or(old).map_or(&[][..], Record::key);
        self.counts.add(key.len(), old.map(Record::value_len), new.map(Record::value_len));
        if self.pairs.is_empty() || !self.shared.is_empty() && !key.starts_with(self.shared) {
            self.share_less(key);
        }
        self.heads.push(if self.is_headed { head(key, self.shared.len(), self.pairs.len()) } else { 0 });
        self.pairs.push(pair);
    }

    /// Learns that `key` does not share what the keys before it do.
    #[cold]
    fn share_less(&mut self, key: &'a [u8]) {
        if self.pairs.is_empty() {
            self.shared = key;
            return;
        }
        let same = key.iter().zip(self.shared).take_while(|(a, b)| a == b).count();
        self.shared = &self.shared[..same];
        // The first few keys tell, mostly. Else it is done once, at the end.
        self.is_headed = self.pairs.len() <= 4 * BATCH;
        if self.is_headed {
            self.heads = (0..self.pairs.len()).map(|place| head(self.key(self.pairs[place]), same, place)).collect();
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

    /// Returns the heads of the pairs, in the order of keys. O(n log n), and O(1) looks at a key for each twelve bytes
    /// that it shares with others but not with all of them.
    fn sort(&mut self) -> Vec<Head> {
        let mut heads = mem::take(&mut self.heads);
        let mut shared = self.shared.len();
        if !self.is_headed {
            (0..heads.len()).for_each(|place| heads[place] = place as Head);
            shared = self.set_heads(&mut heads, shared);
        }
        heads = sort_heads(heads);
        // What is to be sorted by the bytes that follow, and where those begin. A list and not a recursion, because keys are
        // long enough to exhaust the stack.
        let mut runs = Vec::new();
        find_runs(&heads, 0, shared, &mut runs);
        while let Some((run, known)) = runs.pop() {
            let sorted = &mut heads[run.clone()];
            let shared = self.set_heads(sorted, known);
            sorted.sort_unstable();
            find_runs(sorted, run.start, shared, &mut runs);
        }
        heads
    }

    /// Sets all heads to begin behind what their keys share, of which `known` bytes are known, and returns how much that is.
    fn set_heads(&self, heads: &mut [Head], known: usize) -> usize {
        let key = |head: Head| self.key(self.pairs[place_of(head)]);
        let Some(first) = heads.first().map(|&head| key(head)) else { return known };
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
        for &head in heads.iter().step_by(heads.len() / 8 + 1) {
            guess = share(key(head));
        }
        loop {
            let mut shared = guess;
            for at in 0..heads.len() {
                if let Some(&ahead) = heads.get(at + 16) {
                    self.prefetch_key(self.pairs[place_of(ahead)]);
                }
                let key = key(heads[at]);
                shared = share(key);
                heads[at] = head(key, shared, place_of(heads[at]));
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

    /// The pairs in the order of keys, joined: a key that is deleted under one id and inserted under another is updated, or
    /// the same.
    fn join(mut self, sorted: &[Head]) -> (Vec<Pair>, Counts) {
        let mut pairs: Vec<Pair> = Vec::with_capacity(sorted.len());
        for &head in sorted {
            let pair = self.pairs[place_of(head)];
            let Some(last) = pairs.last_mut() else {
                pairs.push(pair);
                continue;
            };
            let is_split = last.old == NOWHERE && pair.new == NOWHERE || last.new == NOWHERE && pair.old == NOWHERE;
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

/// Twelve bytes of a key behind some that all keys share, padded with zeros; in four bits how many of the key's are there, or
/// one more; and in the lowest bits the place of the pair whose key it is. In the order of keys, and equal but for the
/// place only for keys that are equal or longer.
type Head = u128;

/// The bytes of a key in a head.
const HEAD: usize = 12;

const PLACE_BITS: u32 = Head::BITS - 8 * HEAD as u32 - 4;
/// More pairs than there are places are not sorted by heads.
const PLACES: usize = 1 << PLACE_BITS;

#[inline]
fn head(key: &[u8], shared: usize, place: usize) -> Head {
    let rest = &key[shared..];
    let mut padded = [0; HEAD];
    let bytes = rest.first_chunk().unwrap_or_else(|| {
        padded[..rest.len()].copy_from_slice(rest);
        &padded
    });
    // As two numbers, because to put the bytes together in memory and to load them as one would wait for the stores.
    let [high @ .., a, b, c, d] = *bytes;
    let (high, low) = (u64::from_be_bytes(high), u32::from_be_bytes([a, b, c, d]));
    let len = rest.len().min(HEAD + 1);
    Head::from(high) << 64 | Head::from(low) << 32 | (len as Head) << PLACE_BITS | place as Head
}

#[inline]
fn place_of(head: Head) -> usize {
    head as usize % PLACES
}

/// Adds the runs of heads that are equal but for their places, and whose keys go on, with where their next bytes begin.
fn find_runs(sorted: &[Head], start: usize, shared: usize, runs: &mut Vec<(Range<usize>, usize)>) {
    let mut from = start;
    for run in sorted.chunk_by(|a, b| a >> PLACE_BITS == b >> PLACE_BITS) {
        let to = from + run.len();
        if run.len() > 1 && run[0] >> PLACE_BITS & 0xF > HEAD as Head {
            runs.push((from..to, shared + HEAD));
        }
        from = to;
    }
}

/// Sorts heads: large numbers of them first into buckets by where they lie between the least and the greatest, so that
/// those that are spread evenly are sorted a few at a time, in the nearest cache. (One pass of a radix sort from the front.)
fn sort_heads(mut heads: Vec<Head>) -> Vec<Head> {
    const IN_BUCKET: usize = 8;
    let bits = (heads.len() / IN_BUCKET).checked_ilog2().unwrap_or(0).min(13);
    let high = |head: Head| (head >> 64) as u64;
    let (least, most) =
        heads.iter().fold((u64::MAX, 0), |(least, most), &it| (least.min(high(it)), most.max(high(it))));
    if bits < 3 || least == most {
        heads.sort_unstable();
        return heads;
    }
    let shift = (u64::BITS - (most - least).leading_zeros()).saturating_sub(bits);
    let bucket_of = |head: Head| ((high(head) - least) >> shift) as usize;
    let mut ends = vec![0_u32; 1 << bits];
    for &head in &heads {
        ends[bucket_of(head)] += 1;
    }
    let mut sum = 0;
    for end in &mut ends {
        sum += mem::replace(end, sum);
    }
    let mut sorted = vec![0; heads.len()];
    for &head in &heads {
        let end = &mut ends[bucket_of(head)];
        sorted[*end as usize] = head;
        *end += 1;
    }
    let mut from = 0;
    for end in ends {
        sorted[from..end as usize].sort_unstable();
        from = end as usize;
    }
    sorted
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
    ptr::eq(old, new) || equal(old, new)
}

impl Frozen {
    /// The record at a location that the snapshot sees.
    fn record_at(&self, location: Location) -> Option<Record<'_>> {
        (location != NOWHERE).then(|| self.entries.record(location))
    }

    /// Where it lies.
    #[inline]
    fn address(&self, location: Location) -> Option<*const u8> {
        (location != NOWHERE).then(|| self.entries.address(location))
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
            [self.earlier.address(old), self.later.address(new)].into_iter().flatten().for_each(fetch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_in_the_order_of_keys() {
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
                let of = |key: &[u8], shared| head(key, shared, 7) >> PLACE_BITS;
                let (x, y) = (of(a, 0), of(b, 0));
                assert!(a <= b || x >= y, "{a:?} {b:?}");
                assert!(x != y || a == b || x & 0xF == 13, "{a:?} {b:?}");
                let behind = |key: &[u8]| [b"shared", key].concat();
                assert_eq!((of(&behind(a), 6), of(&behind(b), 6)), (x, y));
            }
        }
        assert_eq!(place_of(head(b"key", 0, PLACES - 1)), PLACES - 1);
    }

    #[test]
    fn heads_are_sorted_however_they_are_spread() {
        let mixed = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for len in [0, 1, 255, 256, 257, 5000] {
            let spread: [&dyn Fn(u64) -> u64; 5] =
                [&mixed, &|i| mixed(i) >> 60, &|i| mixed(i) >> 30, &|_| 7, &|i| if i == 0 { u64::MAX } else { i % 9 }];
            for of in spread {
                let heads: Vec<Head> = (0..len).map(|i| Head::from(of(i)) << 64 | Head::from(mixed(i))).collect();
                let mut expected = heads.clone();
                expected.sort();
                assert_eq!(sort_heads(heads), expected);
            }
        }
    }
}
