//! The hash index: from the hash of a key to the location of its record.
//!
//! # Design
//!
//! Extendible hashing (Fagin, Nievergelt, Pippenger, Strong, TODS 1979). A *directory*, indexed by the top bits of the
//! hash, names *subtables*; a subtable is a small hash table of its own, 64 buckets of a cache line each. When a
//! subtable is 7/8 full it alone is split in two, so growth never stops the writer for longer than one subtable takes.
//! Where entries are removed two subtables are merged again. The index does not know keys: it holds locations, and asks
//! the caller which one is meant.
//!
//! ```text
//!  hash ─ spread ─> position          top bits             13 bits from `base` on
//!                   ├──────── directory ────────┤ ...  ├──── tag ────┤ ...
//!  hash ────────────────────────────────────────────────────────────── ... ├ home ┤  low 6 bits
//!
//!  directory  [ address:58 | base:6 ]   one for each value of the top bits; neighbours may lead to the same subtable
//!                     │                 (and beside it the subtable's number, for writing)
//!  subtable   bucket 0 .. bucket 63     numbered by slab (a block of up to 512 subtables) and position in it
//!                          │
//!  bucket     tags 8 x 16 │ low 8 x 32 │ high 8 x 16      one cache line of 8 slots
//!                   │             └──────────┴── location, 48 bits
//!                   └ [ tag:13 | displacement + 1 : 3 ]   0 is an empty slot
//! ```
//!
//! An entry that finds its home bucket full goes to one of the six buckets after it. Its slot holds the distance from
//! home, its *displacement*. So a search of another bucket finds just the entries that belong to the home bucket, and a
//! removal can move displaced entries back without asking for a hash: there are no tombstones.
//!
//! A tag starts `base` bits into the position. A split tells the halves apart by the next bit of the tag, so only every
//! fifth split of a subtable must ask the caller for hashes: then 9 bits of the tag are left that still tell entries
//! apart. On the way to 10 million entries with records in no cache such a split took 40 us (median of processor time,
//! 97 us at the 99th percentile, on a machine five times overloaded), any other 6 us. The last doublings of the
//! directory took 16 to 68 us.
//!
//! Two subtables are *buddies* if they would come from the same split. When a removal leaves a subtable a quarter full
//! or less (of the 448 entries that it may hold), and with its buddy it is at most half full, the two are merged. If the
//! result has a small buddy in turn, the same removal goes on. Tags stay as they are, if both subtables have those of
//! the same bits; otherwise the caller is asked for hashes, and the removal stops there. The last subtable moves to the
//! place that is free, and a block of subtables that has become empty is freed. When no subtable has a directory entry
//! of its own any more, the directory is halved. None of this can fail: only to make the vectors smaller it asks for
//! memory, and does without.
//!
//! *Spreading* bends the hashes a little, so that subtables do not fill up and split all at the same time: see
//! `spread.rs`.
//!
//! An entry that finds no room, because too many hashes agree in too many bits, is *spilled* to a sorted set. With a
//! keyed hash that does not happen. Without one everything stays correct, and logarithmic unless whole hashes are
//! equal.
//!
//! # Why this and not the other way
//!
//! - One large table saves the look at the directory (here a search of 10,000 entries takes 12 ns, in a hashbrown map
//!   12), and stands still for 0.3 s when it doubles at 10 million.
//! - A table that moves a few entries at each write has two tables to search as long as it does so.
//! - Full hashes beside the locations would never ask the caller, for 16 bytes a slot instead of 8.
//! - Without spreading, the index takes as many bytes an entry on average, and more at unlucky sizes: 18.2 at worst as
//!   it grows (15.5 with it), 27 after entries have come and gone for a long time (22), 20 if it is sized beforehand
//!   (16). An entry of the store takes 68. The price is one multiplication a search, 10 of 400 instructions.
//! - The load limit of 7/8: 15/16 would save 0.1 bytes an entry, because a subtable that full has usually run out of
//!   room within some window already. Three entries in a hundred lie outside their home bucket.
//! - Entries that come and go for a long time at a constant number lower the load to about 20 bytes an entry, where
//!   chance no longer fills a subtable. Subtables that are merged are emptier by far, and the result is half full at
//!   most. So those entries never merge and split the same subtables in turns. An index that has lost most of its
//!   entries takes at most 32 bytes for each of the others.
//! - A sorted vector of spilled entries is no shorter than the standard library's set. With 100,000 hashes whose top
//!   bits are equal an insertion into it takes 19 us, and ten times that with ten times as many; into the set it takes
//!   0.7 us.
//!
//! # Invariants
//!
//! 1. The directory is empty or has `2^(64 - shift)` entries, two at least. A subtable of depth `d` is named by all the
//!    entries of one aligned run, which share their first `d` bits, its `prefix`, and by no other; all of them carry its
//!    `base`, and `base <= d <= base + 4`. Every subtable is named.
//! 2. An entry lies in the subtable that the directory names for its hash, under the tag that its hash has there. Its
//!    bucket is its home bucket plus its displacement, modulo the buckets of a subtable.
//! 3. All buckets from an entry's home up to its own, the latter excluded, are full.
//! 4. In a bucket the occupied slots come first.
//! 5. A subtable's `len` is the number of its entries and at most 7 for each bucket. The index's `len` counts these and
//!    the spilled ones.
//! 6. As long as a subtable has fewer than `BUCKETS` buckets, it is the only one.
//! 7. A spilled entry is spilled under its own hash.
//! 8. A directory entry leads to the first bucket of its subtable. Whatever moves or removes that changes the entry, too.
//! 9. `deepest` is the number of subtables that have one directory entry.

#![allow(unsafe_code, reason = "a search goes to its bucket by address, one look-up less than by number")]

mod bucket;
mod directory_entry;
mod slab;
mod spread;
mod subtable;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod validate;

use std::collections::BTreeSet;
use std::mem;
use std::ops::Range;

use self::bucket::{Bucket, SLOTS};
use self::directory_entry::DirectoryEntry;
use self::slab::{Subtable, Subtables};
use self::spread::{share_below, spread};
use self::subtable::{DISPLACEMENT, LOAD_LIMIT, WINDOW, entries, home_of, renew_tags, tag_of};
use super::hash::Hash;
use super::location::Location;
use super::prefetch::prefetch;
use super::reserve::give_back;

/// How many splits of a subtable take a bit of its tags, before the tags start further into the hash.
const TAG_SPLITS: u32 = 4;
/// How far before the end of a merged subtable's prefix its new tags start. So neither of the next two merges and two
/// splits needs new tags.
const TAG_MARGIN: u32 = 2;
/// The most entries that an index is sized for. Beyond this it grows as they come.
const MAX_CAPACITY: usize = 1 << 26;
/// The most bits of a position that tell subtables apart.
const MAX_DEPTH: u32 = u32::BITS;
/// The memory of an entry of a `BTreeSet`: 16 bytes in nodes of 11 that are half full at worst, and their parents.
const SPILLED_BYTES: usize = 40;

/// Where the search for a hash begins.
#[derive(Clone, Copy)]
struct Probe {
    /// The index in the directory.
    at: usize,
    entry: DirectoryEntry,
    /// The bucket that the search begins with.
    home: usize,
    /// The tag, with 0 in place of the displacement.
    tag: u16,
}

/// The slot of an entry.
struct Slot {
    probe: Probe,
    displacement: usize,
    /// The slot's number in its bucket.
    number: usize,
}

/// A hash index. `BUCKETS`, a power of two, is the number of buckets of a subtable.
pub(super) struct HashIndex<const BUCKETS: usize = 64> {
    directory: Vec<DirectoryEntry>,
    /// The numbers of the subtables that the directory leads to.
    numbers: Vec<u32>,
    /// The position shifted right by this indexes the directory.
    shift: u32,
    subtables: Subtables,
    /// How many subtables have only one directory entry.
    deepest: usize,
    /// Subtables are not merged if there are no more than this.
    min_subtables: usize,
    len: usize,
    spilled: BTreeSet<(Hash, Location)>,
}

impl<const BUCKETS: usize> HashIndex<BUCKETS> {
    /// The number of entries from which on a subtable is merged with its buddy, if the buddy allows it.
    const SMALL: usize = BUCKETS * LOAD_LIMIT / 4;
    /// The most entries that a merged subtable has. So as many must come before it is split again.
    const MERGED: usize = BUCKETS * LOAD_LIMIT / 2;

    /// Makes an empty index. Allocates nothing.
    pub(super) fn new() -> Self {
        const { assert!(BUCKETS.is_power_of_two() && BUCKETS <= 1024) };
        Self {
            directory: Vec::new(),
            numbers: Vec::new(),
            shift: 63,
            subtables: Subtables::new(1),
            deepest: 0,
            min_subtables: 0,
            len: 0,
            spilled: BTreeSet::new(),
        }
    }

    /// Makes an index that takes this many entries with few splits, and keeps the memory for them until it is cleared.
    ///
    /// The number is a hint: more than [`MAX_CAPACITY`] is taken for that. Memory is touched as entries come.
    pub(super) fn with_capacity(entries: usize) -> Self {
        let index = Self::sized_for(entries);
        Self { min_subtables: index.subtables.len(), ..index }
    }

    /// Makes an index that takes this many entries with few splits, and shrinks as they are removed.
    ///
    /// The number is a hint: more than [`MAX_CAPACITY`] is taken for that. Memory is touched as entries come.
    pub(super) fn sized_for(entries: usize) -> Self {
        if entries == 0 {
            return Self::new();
        }
        let entries = entries.min(MAX_CAPACITY);
        if entries <= BUCKETS * LOAD_LIMIT {
            let buckets = entries.div_ceil(LOAD_LIMIT).next_power_of_two();
            return Self::of_one(&[Bucket::EMPTY; BUCKETS][..buckets], Subtable::ONLY);
        }
        // By chance a subtable gets more entries than others, by about the root of their number.
        let limit = (BUCKETS * LOAD_LIMIT) as f64;
        let wanted = (limit - 2.0 * limit.sqrt()).max(1.0);
        let expected = |first: usize, end: usize, depth: u32| {
            let scale = (1_u64 << depth) as f64;
            (share_below(end as f64 / scale) - share_below(first as f64 / scale)) * entries as f64
        };
        // The directory's start is the end that fills fastest.
        let mut depth = 1;
        while expected(0, 1, depth) > wanted {
            depth += 1;
        }
        let mut subtables = Vec::new();
        let mut first = 0_usize;
        while first < 1 << depth {
            let mut run = if first == 0 { 1 << depth } else { 1 << first.trailing_zeros() };
            while run > 1 && expected(first, first + run, depth) > wanted {
                run /= 2;
            }
            let own_depth = depth - run.trailing_zeros();
            subtables.push(Subtable { prefix: (first as u32) << (u32::BITS - depth), len: 0, depth: own_depth as u8 });
            first += run;
        }
        let mut index = Self { subtables: Subtables::zeroed(BUCKETS, &subtables), shift: 64 - depth, ..Self::new() };
        index.numbers.resize(1 << depth, 0);
        index.directory.resize(1 << depth, DirectoryEntry::new(index.subtables.start(0), 0));
        for (number, subtable) in subtables.iter().enumerate() {
            index.point_to(number, subtable.depth.into());
        }
        index.deepest = index.count_deepest();
        index
    }

    /// Makes an index of a single subtable.
    fn of_one(buckets: &[Bucket], subtable: Subtable) -> Self {
        let mut subtables = Subtables::new(buckets.len());
        let number = subtables.push(buckets, subtable);
        let entry = DirectoryEntry::new(subtables.start(number), 0);
        Self { directory: vec![entry; 2], numbers: vec![number as u32; 2], subtables, ..Self::new() }
    }

    /// Returns the number of entries. Computes in O(1) time.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the bytes of the heap that the index holds; for spilled entries an estimate. Computes in O(1) time.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.subtables.allocated_bytes()
            + self.directory.capacity() * size_of::<DirectoryEntry>()
            + self.numbers.capacity() * size_of::<u32>()
            + self.spilled.len() * SPILLED_BYTES
    }

    /// Returns the location with this hash for which `is_match` is true. Computes in O(1) time: one cache miss.
    ///
    /// `is_match` is called with a location that does not match in fewer than two searches of a hundred.
    #[inline(always)]
    pub(super) fn find(&self, hash: Hash, mut is_match: impl FnMut(Location) -> bool) -> Option<Location> {
        let probe = self.probe(hash)?;
        let bucket = self.bucket(&probe, 0);
        for slot in bucket.matching(probe.tag | 1) {
            let location = bucket.location(slot);
            if is_match(location) {
                return Some(location);
            }
        }
        if bucket.is_full() || !self.spilled.is_empty() { self.find_displaced(hash, &probe, is_match) } else { None }
    }

    /// Searches the buckets after the home bucket, and the spilled entries.
    #[inline(never)]
    fn find_displaced(
        &self,
        hash: Hash,
        probe: &Probe,
        mut is_match: impl FnMut(Location) -> bool,
    ) -> Option<Location> {
        // A subtable may have fewer buckets than the window. Then this searches some buckets again, for displacements
        // that no entry has, and finds nothing.
        for displacement in 1..WINDOW {
            if !self.bucket(probe, displacement - 1).is_full() {
                break;
            }
            let bucket = self.bucket(probe, displacement);
            let mut same_tag = bucket.matching(probe.tag | (displacement as u16 + 1)).map(|slot| bucket.location(slot));
            if let Some(location) = same_tag.find(|&location| is_match(location)) {
                return Some(location);
            }
        }
        if self.spilled.is_empty() { None } else { self.find_spilled(hash, is_match) }
    }

    #[cold]
    fn find_spilled(&self, hash: Hash, mut is_match: impl FnMut(Location) -> bool) -> Option<Location> {
        let same_hash = (hash, Location::from_bits(0))..=(hash, Location::from_bits(u64::MAX));
        self.spilled.range(same_hash).map(|&(_, location)| location).find(|&location| is_match(location))
    }

    /// Returns the first location that `find` would call `is_match` with, for the caller to prefetch its record.
    #[inline]
    pub(super) fn first_candidate(&self, hash: Hash) -> Option<Location> {
        self.find(hash, |_| true)
    }

    /// Prefetches the bucket that `find` looks at first.
    #[inline]
    pub(super) fn prefetch(&self, hash: Hash) {
        if let Some(probe) = self.probe(hash) {
            prefetch(self.bucket(&probe, 0));
        }
    }

    /// Inserts a location whose key is known to be absent. `hash_of` returns the hash of a location in the index.
    ///
    /// Computes in O(1) time on average. At worst it splits a subtable, and calls `hash_of` for its entries. Each time
    /// the index has doubled, it also doubles the directory, 0.03 bytes an entry.
    pub(super) fn insert(&mut self, hash: Hash, location: Location, mut hash_of: impl FnMut(Location) -> Hash) {
        debug_assert!(location.to_bits() >> Location::BITS == 0, "{location:?} has more than {} bits", Location::BITS);
        if self.directory.is_empty() {
            *self = Self::of_one(&[Bucket::EMPTY], Subtable::ONLY);
        }
        while !self.insert_in_place(hash, location) {
            if !self.grow(hash, &mut hash_of) {
                self.spilled.insert((hash, location));
                break;
            }
        }
        self.len += 1;
    }

    /// Inserts a location if there is room for it. Returns `false` if there is none.
    #[inline]
    fn insert_in_place(&mut self, hash: Hash, location: Location) -> bool {
        let Some(probe) = self.probe(hash) else { return false };
        let (buckets, subtable) = self.subtables.get_mut(self.numbers[probe.at] as usize);
        let has_room = usize::from(subtable.len) < buckets.len() * LOAD_LIMIT
            && subtable::insert(buckets, probe.home, probe.tag, location);
        subtable.len += u16::from(has_room);
        has_room
    }

    /// Replaces the location `old`, which must be present under this hash, by `new`. Computes in O(1) time.
    #[inline(always)]
    pub(super) fn replace(&mut self, hash: Hash, old: Location, new: Location) {
        debug_assert!(new.to_bits() >> Location::BITS == 0, "{new:?} has more than {} bits", Location::BITS);
        if let Some(Slot { probe, displacement, number }) = self.slot_of(hash, old) {
            // SAFETY: as in `bucket`, and the index is borrowed exclusively.
            unsafe { &mut *self.bucket_address(&probe, displacement) }.set_location(number, new);
        } else {
            debug_assert!(self.spilled.contains(&(hash, old)), "{old:?} is not there to be replaced");
            self.spilled.insert((hash, new));
            self.spilled.remove(&(hash, old));
        }
    }

    /// Removes a location, which must be present under this hash. `hash_of` returns the hash of another location in the
    /// index.
    ///
    /// Computes in O(1) time. Subtables with few entries are merged: at worst that calls `hash_of` for the entries of
    /// one, which is half full then. Cannot fail.
    pub(super) fn remove(&mut self, hash: Hash, location: Location, mut hash_of: impl FnMut(Location) -> Hash) {
        if let Some(Slot { probe, displacement, number }) = self.slot_of(hash, location) {
            let (buckets, subtable) = self.subtables.get_mut(self.numbers[probe.at] as usize);
            let bucket = (probe.home + displacement) & (buckets.len() - 1);
            subtable.len -= 1;
            let is_small = usize::from(subtable.len) <= Self::SMALL && subtable.depth > 0;
            subtable::remove(buckets, bucket, number);
            self.len -= 1;
            if is_small {
                self.shrink(hash, &mut hash_of);
            }
        } else if self.spilled.remove(&(hash, location)) {
            self.len -= 1;
        } else {
            debug_assert!(false, "{location:?} is not there to be removed");
        }
    }

    /// Removes all entries and frees the memory.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    /// Returns where the search for a hash begins; `None` if the index has no subtable.
    #[inline]
    fn probe(&self, hash: Hash) -> Option<Probe> {
        let position = spread(hash);
        let at = (position >> self.shift) as usize;
        let entry = *self.directory.get(at)?;
        let home = hash.0 as usize & self.subtables.bucket_mask();
        Some(Probe { at, entry, home, tag: tag_of(position, entry.base()) })
    }

    #[inline]
    fn bucket_address(&self, probe: &Probe, displacement: usize) -> *mut Bucket {
        probe.entry.buckets().wrapping_add((probe.home + displacement) & self.subtables.bucket_mask())
    }

    #[inline]
    fn bucket(&self, probe: &Probe, displacement: usize) -> &Bucket {
        // SAFETY: the entry leads to the buckets of a subtable, as many as `bucket_mask` allows for (invariant 8, and
        // invariant 1 of `slab.rs`), and the index is borrowed.
        unsafe { &*self.bucket_address(probe, displacement) }
    }

    /// Returns the slot of a location; `None` if it is spilled.
    #[inline]
    fn slot_of(&self, hash: Hash, location: Location) -> Option<Slot> {
        let probe = self.probe(hash)?;
        for displacement in 0..WINDOW.min(self.subtables.bucket_mask() + 1) {
            let bucket = self.bucket(&probe, displacement);
            let mut same_tag = bucket.matching(probe.tag | (displacement as u16 + 1));
            if let Some(number) = same_tag.find(|&slot| bucket.location(slot) == location) {
                return Some(Slot { probe, displacement, number });
            }
            if !bucket.is_full() {
                break;
            }
        }
        None
    }

    /// Makes room for `hash`. Returns `false` if the entry is to be spilled instead.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, hash: Hash, hash_of: &mut dyn FnMut(Location) -> Hash) -> bool {
        if self.subtables.bucket_mask() + 1 < BUCKETS {
            self.enlarge(hash_of);
            return true;
        }
        let Some(probe) = self.probe(hash) else { return false };
        let number = self.numbers[probe.at] as usize;
        if self.subtables.is_full() {
            return false;
        }
        if u32::from(self.subtables.get(number).depth) + self.shift == 64 {
            // With random hashes the directory could name fewer than 4 slots for each entry. Hashes that agree in many
            // bits would double it without end.
            if self.directory.len() * 2 * BUCKETS * SLOTS > 16 * (self.len + 1) || self.shift + MAX_DEPTH == 64 {
                return false;
            }
            let directory = self.directory.iter().flat_map(|&entry| [entry, entry]).collect();
            let numbers = self.numbers.iter().flat_map(|&number| [number, number]).collect();
            (self.directory, self.numbers) = (directory, numbers);
            self.shift -= 1;
            self.deepest = 0;
        }
        self.split(number, probe.entry.base(), hash_of);
        true
    }

    /// Doubles the only subtable.
    fn enlarge(&mut self, hash_of: &mut dyn FnMut(Location) -> Hash) {
        let buckets = (self.subtables.bucket_mask() + 1) * 2;
        let mut larger = Vec::with_capacity(buckets);
        larger.resize(buckets, Bucket::EMPTY);
        let mut without_room = Vec::new();
        for (_, tag, location) in entries(self.subtables.buckets(0)) {
            let hash = hash_of(location);
            if !subtable::insert(&mut larger, hash.0 as usize & (buckets - 1), tag & !DISPLACEMENT, location) {
                without_room.push((hash, location));
            }
        }
        let len = self.subtables.get(0).len - without_room.len() as u16;
        let larger = Self::of_one(&larger, Subtable { len, ..Subtable::ONLY });
        let (spilled, len) = (mem::take(&mut self.spilled), self.len);
        *self = Self { spilled, len, ..larger };
        // With random hashes there are none.
        self.spilled.extend(without_room);
    }

    /// Splits a subtable, whose tags start at `old_base`.
    fn split(&mut self, number: usize, old_base: u32, hash_of: &mut dyn FnMut(Location) -> Hash) {
        let Subtable { prefix, depth, .. } = self.subtables.get(number);
        let depth = u32::from(depth) + 1;
        let needs_new_tags = depth > old_base + TAG_SPLITS;
        let base = if needs_new_tags { depth } else { old_base };
        // The bit of the tag that tells the halves apart.
        let half_bit = 1 << (16 - (depth - old_base));
        let mut halves = [[Bucket::EMPTY; BUCKETS]; 2];
        let mut lens = [0; 2];
        let mut without_room = Vec::new();
        entries(self.subtables.buckets(number)).for_each(|(bucket, tag, location)| {
            let half = usize::from(tag & half_bit != 0);
            let home = home_of(bucket, tag, BUCKETS - 1);
            if subtable::insert(&mut halves[half], home, tag & !DISPLACEMENT, location) {
                lens[half] += 1;
            } else {
                without_room.push((hash_of(location), location));
            }
        });
        if needs_new_tags {
            halves.iter_mut().for_each(|half| renew_tags(half, base, hash_of));
        }
        // From here on the caller is not asked for anything. After the new subtable only the spilled set allocates.
        let half = |half: usize| {
            let prefix = prefix | (half as u32) << (u32::BITS - depth);
            Subtable { prefix, len: lens[half], depth: depth as u8 }
        };
        let upper = self.subtables.push(&halves[1], half(1));
        let (buckets, subtable) = self.subtables.get_mut(number);
        buckets.copy_from_slice(&halves[0]);
        *subtable = half(0);
        self.point_to(number, base);
        self.point_to(upper, base);
        if depth + self.shift == 64 {
            self.deepest += 2;
        }
        self.spilled.extend(without_room);
    }

    /// Returns the directory entries of a subtable.
    fn run(&self, Subtable { prefix, depth, .. }: Subtable) -> Range<usize> {
        let first = (u64::from(prefix) << 32 >> self.shift) as usize;
        first..first + (1 << (64 - self.shift - u32::from(depth)))
    }

    /// Makes a subtable's directory entries lead to it.
    fn point_to(&mut self, number: usize, base: u32) {
        let run = self.run(self.subtables.get(number));
        self.numbers[run.clone()].fill(number as u32);
        self.directory[run].fill(DirectoryEntry::new(self.subtables.start(number), base));
    }

    /// Gives back memory after the subtable of this hash has become small.
    #[cold]
    #[inline(never)]
    fn shrink(&mut self, hash: Hash, hash_of: &mut dyn FnMut(Location) -> Hash) {
        while self.merge(hash, hash_of) {}
    }

    /// Merges the subtable of this hash with its buddy, if together they have few entries. Cannot fail.
    ///
    /// Returns `true` if the result may be merged in turn: if there is one, and the caller was not asked for hashes.
    fn merge(&mut self, hash: Hash, hash_of: &mut dyn FnMut(Location) -> Hash) -> bool {
        let at = (spread(hash) >> self.shift) as usize;
        let Subtable { prefix, len, depth } = self.subtables.get(self.numbers[at] as usize);
        if depth == 0 || self.subtables.len() <= self.min_subtables {
            return false;
        }
        let buddy_at = at ^ (1 << (64 - self.shift - u32::from(depth)));
        let buddy = self.subtables.get(self.numbers[buddy_at] as usize);
        let len = len + buddy.len;
        if buddy.depth != depth || usize::from(len) > Self::MERGED {
            return false;
        }
        // The one with the lower number is kept. So the last subtable moves only if it is neither.
        let mut numbers = [at, buddy_at].map(|at| self.numbers[at] as usize);
        numbers.sort_unstable();
        let mut merged = [Bucket::EMPTY; BUCKETS];
        for number in numbers {
            let all_fit = entries(self.subtables.buckets(number)).all(|(bucket, tag, location)| {
                let home = home_of(bucket, tag, BUCKETS - 1);
                subtable::insert(&mut merged, home, tag & !DISPLACEMENT, location)
            });
            if !all_fit {
                return false;
            }
        }
        let merged_depth = u32::from(depth) - 1;
        let [base, buddy_base] = [at, buddy_at].map(|at| self.directory[at].base());
        let has_tags = base == buddy_base && base <= merged_depth || len == 0;
        let base = if has_tags { base.min(merged_depth) } else { merged_depth.saturating_sub(TAG_MARGIN) };
        if !has_tags {
            renew_tags(&mut merged, base, hash_of);
        }
        // From here on the caller is not asked for anything.
        let [kept, gone] = numbers;
        let (buckets, subtable) = self.subtables.get_mut(kept);
        buckets.copy_from_slice(&merged);
        *subtable = Subtable { prefix: prefix.min(buddy.prefix), len, depth: depth - 1 };
        self.point_to(kept, base);
        if let Some(moved) = self.subtables.swap_remove(gone) {
            let base = self.directory[self.run(moved).start].base();
            self.point_to(gone, base);
        }
        if merged_depth + 1 + self.shift == 64 {
            self.deepest -= 2;
        }
        while self.deepest == 0 && self.directory.len() > 2 {
            self.halve_directory();
        }
        has_tags
    }

    /// Halves the directory, in which no subtable has an entry of its own. Cannot fail.
    fn halve_directory(&mut self) {
        let len = self.directory.len() / 2;
        for at in 0..len {
            self.directory[at] = self.directory[2 * at];
            self.numbers[at] = self.numbers[2 * at];
        }
        self.directory.truncate(len);
        self.numbers.truncate(len);
        give_back(&mut self.directory);
        give_back(&mut self.numbers);
        self.shift += 1;
        self.deepest = self.count_deepest();
    }

    /// Counts the subtables that have one directory entry: their entry differs from that of the buddy.
    fn count_deepest(&self) -> usize {
        2 * self.numbers.chunks_exact(2).filter(|pair| pair[0] != pair[1]).count()
    }
}
