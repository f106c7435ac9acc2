//! The hash index: from the hash of a key to where its record lies.
//!
//! # Design
//!
//! Extendible hashing (Fagin, Nievergelt, Pippenger, Strong, TODS 1979). A *directory*, indexed by the top bits of the
//! hash, names *segments*; a segment is a small hash table of its own, 64 buckets of a cache line each. When a segment is
//! 7/8 full it alone is split in two, so growth never stops the writer for longer than one segment takes. The index knows
//! nothing of keys: it holds *locations*, opaque numbers of 48 bits, and asks the caller which one is meant.
//!
//! ```text
//!  hash ─ spread ─> position          top bits             window: 13 bits from `base` on
//!                   ├──────── directory ────────┤ ...  ├──── tag ────┤ ...
//!  hash ────────────────────────────────────────────────────────────── ... ├ home ┤  low 6 bits
//!
//!  directory  [ address:58 | base:6 ]   one for each value of the top bits; neighbours may lead to the same segment
//!                     │                 (and beside it the segment's number, for writing)
//!  segment    bucket 0 .. bucket 63     numbered by slab (a block of up to 512 segments) and place in it
//!                          │
//!  bucket     tags 8 x 16 │ low 8 x 32 │ high 8 x 16      one cache line of 8 slots
//!                   │             └──────────┴── location, 48 bits
//!                   └ [ tag:13 | displacement + 1 : 3 ]   0 is an empty slot
//! ```
//!
//! An entry that finds its home bucket full goes to one of the six buckets after it and notes how far it is from home. So
//! the bucket next door can be searched for just the entries that belong here, and a removal can pull displaced entries
//! back without asking for a hash: there are no tombstones.
//!
//! A tag starts `base` bits into the position. A split takes the next bit of the tag to tell the halves apart, so only
//! every fifth split of a segment (when the tag is down to 9 bits that still distinguish) must ask the caller for hashes.
//! On the way to 10 million entries with cold records such a split took 40 us (median of processor time, 97 us at the 99th
//! percentile, on a machine five times overloaded), any other 6 us; the last doublings of the directory 16 to 68 us.
//!
//! *Spreading* bends the hash a little, so that segments at one end of the directory fill 1.9 times as fast as at the
//! other (spiral storage: Martin 1979). Without it all segments fill up and split at the same time.
//!
//! What finds no room, because too many hashes agree in too many bits, is *spilled* to a sorted set. With a keyed hash
//! that does not happen; without one everything stays correct and logarithmic. Memory is not given back before `clear`.
//!
//! # Why this and not the other way
//!
//! - One large table saves the look at the directory (here a search of 10,000 entries takes 12 ns, in a hashbrown map 12),
//!   and stands still for 0.3 s when it doubles at 10 million.
//! - A table that moves a few entries at each write has two tables to search as long as it does so.
//! - Full hashes beside the locations would never ask the caller, for 16 bytes a slot instead of 8.
//! - Without spreading, an index takes 9 to 18 bytes an entry as it grows, and splits come in bursts; with it, 14.4 on
//!   average and 12.7 to 15.4 at every size beyond 10,000. The price is one multiplication a search.
//! - The load limit of 7/8: 15/16 would save 0.1 bytes an entry, because a segment that full has usually run out of room
//!   within some window already. Three entries in a hundred lie outside their home bucket.
//! - Segments never merge. An index that has shrunk keeps its memory, and entries that come and go for a long time at a
//!   constant number lower the load to about 20 bytes an entry, where chance no longer fills a segment.
//!
//! # Invariants
//!
//! 1. The directory is empty or has `2^(64 - shift)` entries, two at least. A segment of depth `d` is named by all the
//!    entries of one aligned run, which share their first `d` bits, and by no other; all of them carry its `base`, and
//!    `base <= d <= base + 4`. Every segment is named.
//! 2. An entry lies in the segment that the directory names for its hash, under the tag that its hash has there, and its
//!    bucket is its home bucket plus its displacement, modulo the buckets of a segment.
//! 3. All buckets from an entry's home up to its own, the latter excluded, are full.
//! 4. In a bucket the occupied slots come first.
//! 5. A segment's `len` is the number of its entries and at most 7 for each bucket; `len` counts these and the spilled.
//! 6. As long as a segment has fewer than `BUCKETS` buckets, it is the only one.
//! 7. A spilled entry is spilled under its own hash.
//! 8. `slab_bytes` is the memory of all slabs.
//! 9. A directory entry leads to where its segment's buckets start: as many as `home_mask` allows for, all of them
//!    written, which stay where they are until the directory is made anew.

#![allow(unsafe_code, reason = "a search goes to its bucket by address, one look-up less than by number")]

mod bucket;

use std::alloc::{self, Layout};
use std::collections::BTreeSet;
use std::mem::{self, size_of};
use std::ptr::{self, NonNull};
use std::slice;

use self::bucket::{Bucket, SLOTS};
use super::prefetch;

/// Entries in a segment for each of its buckets, at most.
const LOAD_LIMIT: usize = 7;
/// Buckets that an entry may lie in: its home and those after it.
const WINDOW: usize = 7;
/// The part of a slot's 16 bits that is displacement + 1.
const DISPLACEMENT: u16 = 0b111;
/// Bits of a tag that may be used up by splits before the tags are made anew.
const TAG_WEAR: u32 = 4;
/// The numbers of segments that a slab takes up, though it may hold fewer.
const SLAB: usize = 512;
/// More segments than that have no number.
const MOST_SEGMENTS: usize = 1 << 26;
const LOCATION_BITS: u32 = 48;
/// What an entry of a `BTreeSet` takes: 16 bytes in nodes of 11 that are half full at worst, and their parents.
const SPILLED_BYTES: usize = 40;

/// A block of segments. It is reserved as a whole, and its segments are made one after the other, so that neither
/// clearing nor moving a large block ever stops the writer.
struct Slab {
    memory: Memory,
    /// As many as there is memory for have room.
    segments: Vec<Segment>,
}

/// Room for buckets that stay where they are. Freed when dropped.
struct Memory {
    buckets: NonNull<Bucket>,
    room: usize,
}

impl Memory {
    fn new(room: usize) -> Self {
        // SAFETY: there is room for at least one bucket, so the size is not zero.
        let start = unsafe { alloc::alloc(Self::layout(room)) };
        let Some(start) = NonNull::new(start) else { alloc::handle_alloc_error(Self::layout(room)) };
        Self { buckets: start.cast(), room }
    }

    fn layout(room: usize) -> Layout {
        Layout::array::<Bucket>(room).expect("a slab is far smaller than the address space")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with the same layout; buckets need no destructor.
        unsafe { alloc::dealloc(self.buckets.as_ptr().cast(), Self::layout(self.room)) }
    }
}

// SAFETY: memory is owned, and buckets are numbers.
unsafe impl Send for Memory {}

/// What the directory says to a search: where the buckets of a segment start, with the segment's `base` in the low bits,
/// which are zero in the address of a cache line.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way(NonNull<u8>);

// SAFETY: a way leads to memory that the same index owns.
unsafe impl Send for Way {}

impl Way {
    fn new(buckets: NonNull<Bucket>, base: u32) -> Self {
        assert!((base as usize) < align_of::<Bucket>());
        Self(buckets.cast::<u8>().map_addr(|address| address | base as usize))
    }

    #[inline]
    fn base(self) -> u32 {
        (self.0.addr().get() % align_of::<Bucket>()) as u32
    }

    #[inline]
    fn buckets(self) -> *mut Bucket {
        self.0.as_ptr().wrapping_sub(self.base() as usize).cast()
    }
}

#[derive(Clone, Copy)]
struct Segment {
    len: u16,
    depth: u8,
}

/// Where the search for a hash starts.
#[derive(Clone, Copy)]
struct Place {
    position: u64,
    /// The index in the directory.
    at: usize,
    way: Way,
    home: usize,
    /// The displacement is left 0.
    tag: u16,
}

/// Where an entry lies.
struct Seat {
    place: Place,
    displacement: usize,
    slot: usize,
}

/// See the module. `BUCKETS`, a power of two, is the size of a segment.
pub(super) struct HashIndex<const BUCKETS: usize = 64> {
    directory: Vec<Way>,
    /// The numbers of the segments that the directory leads to.
    numbers: Vec<u32>,
    /// The position shifted right by this indexes the directory.
    shift: u32,
    /// The buckets of a segment, less one.
    home_mask: usize,
    slabs: Vec<Slab>,
    segments: usize,
    len: usize,
    slab_bytes: usize,
    spilled: BTreeSet<(u64, u64)>,
}

impl<const BUCKETS: usize> HashIndex<BUCKETS> {
    /// An empty index. It allocates nothing.
    pub(super) fn new() -> Self {
        const { assert!(BUCKETS.is_power_of_two() && BUCKETS <= 1024) };
        Self {
            directory: Vec::new(),
            numbers: Vec::new(),
            shift: 63,
            home_mask: 0,
            slabs: Vec::new(),
            segments: 0,
            len: 0,
            slab_bytes: 0,
            spilled: BTreeSet::new(),
        }
    }

    /// An index that takes this many entries with hardly any growth step.
    pub(super) fn with_capacity(entries: usize) -> Self {
        if entries == 0 {
            return Self::new();
        }
        let buckets = entries.div_ceil(LOAD_LIMIT).next_power_of_two().min(BUCKETS);
        if entries <= BUCKETS * LOAD_LIMIT {
            return Self::of_one(&[Bucket::EMPTY; BUCKETS][..buckets], Segment { len: 0, depth: 0 });
        }
        let mut index = Self::new();
        index.home_mask = BUCKETS - 1;
        // The entries of a segment are spread by about the root of their number.
        let limit = (BUCKETS * LOAD_LIMIT) as f64;
        let wanted = (limit - 2.0 * limit.sqrt()).max(1.0);
        let expected = |first: usize, end: usize, depth: u32| {
            let scale = (1_u64 << depth) as f64;
            (unspread(end as f64 / scale) - unspread(first as f64 / scale)) * entries as f64
        };
        // The directory's start is the end that fills fastest.
        let mut depth = 1;
        while expected(0, 1, depth) > wanted {
            depth += 1;
        }
        index.shift = 64 - depth;
        let mut first = 0_usize;
        while first < 1 << depth {
            let mut run = if first == 0 { 1 << depth } else { 1 << first.trailing_zeros() };
            while run > 1 && expected(first, first + run, depth) > wanted {
                run /= 2;
            }
            let own_depth = depth - run.trailing_zeros();
            let segment = index.push_segment(&[Bucket::EMPTY; BUCKETS], Segment { len: 0, depth: own_depth as u8 });
            index.numbers.resize(first + run, segment as u32);
            index.directory.resize(first + run, Way::new(index.start_of(segment), own_depth));
            first += run;
        }
        index
    }

    /// Entries. Computes in O(1) time.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the heap that the index holds; for spilled entries an estimate. Computes in O(1) time.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.slab_bytes
            + self.slabs.capacity() * size_of::<Slab>()
            + self.directory.capacity() * size_of::<Way>()
            + self.numbers.capacity() * size_of::<u32>()
            + self.spilled.len() * SPILLED_BYTES
    }

    /// The location under this hash that is the right one. `is_it` is asked about a wrong one in fewer than two
    /// searches of a hundred. Computes in O(1) time: one cache miss.
    #[inline(always)]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u64) -> bool) -> Option<u64> {
        let place = self.place(hash)?;
        let bucket = self.bucket(&place, 0);
        for slot in bucket.matching(place.tag | 1) {
            let location = bucket.location(slot);
            if is_it(location) {
                return Some(location);
            }
        }
        if bucket.is_full() || !self.spilled.is_empty() { self.find_away(hash, &place, is_it) } else { None }
    }

    /// Finds what is not in its home bucket.
    #[inline(never)]
    fn find_away(&self, hash: u64, place: &Place, mut is_it: impl FnMut(u64) -> bool) -> Option<u64> {
        // In a segment of fewer buckets than the window this comes round to some again, and finds nothing there: no tag has
        // such a displacement.
        for displacement in 1..WINDOW {
            if !self.bucket(place, displacement - 1).is_full() {
                break;
            }
            let bucket = self.bucket(place, displacement);
            let mut same_tag = bucket.matching(place.tag | (displacement as u16 + 1)).map(|slot| bucket.location(slot));
            if let Some(location) = same_tag.find(|&location| is_it(location)) {
                return Some(location);
            }
        }
        if self.spilled.is_empty() { None } else { self.find_spilled(hash, is_it) }
    }

    #[cold]
    fn find_spilled(&self, hash: u64, mut is_it: impl FnMut(u64) -> bool) -> Option<u64> {
        self.spilled
            .range((hash, 0)..=(hash, u64::MAX))
            .map(|&(_, location)| location)
            .find(|&location| is_it(location))
    }

    /// The first location that `find` would ask about, for the caller to prefetch its record.
    #[inline]
    pub(super) fn first_candidate(&self, hash: u64) -> Option<u64> {
        self.find(hash, |_| true)
    }

    /// Asks the processor for the cache line that `find` will look at first.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(place) = self.place(hash) {
            prefetch(self.bucket(&place, 0));
        }
    }

    /// Inserts a location below 2^48 whose key is known to be absent. `hash_of` gives the hash of a location already in
    /// the index; it is asked about those of one segment when it grows. Computes in O(1) time on average; at worst it
    /// splits a segment (and once each time the index has doubled, it doubles the directory, 0.03 bytes an entry).
    pub(super) fn insert(&mut self, hash: u64, location: u64, mut hash_of: impl FnMut(u64) -> u64) {
        debug_assert!(location >> LOCATION_BITS == 0, "location {location:#x} has more than {LOCATION_BITS} bits");
        if self.directory.is_empty() {
            *self = Self::of_one(&[Bucket::EMPTY], Segment { len: 0, depth: 0 });
        }
        while !self.insert_in_place(hash, location) {
            if !self.grow(hash, &mut hash_of) {
                self.spilled.insert((hash, location));
                break;
            }
        }
        self.len += 1;
    }

    /// Whether there was room.
    #[inline]
    fn insert_in_place(&mut self, hash: u64, location: u64) -> bool {
        let Some(place) = self.place(hash) else { return false };
        let limit = (self.home_mask + 1) * LOAD_LIMIT;
        let (buckets, segment) = self.segment_mut(self.numbers[place.at] as usize);
        let has_room = usize::from(segment.len) < limit && put(buckets, place.home, place.tag, location);
        segment.len += u16::from(has_room);
        has_room
    }

    /// Puts `new` in the place of `old`, which must be present under this hash. Computes in O(1) time.
    pub(super) fn replace(&mut self, hash: u64, old: u64, new: u64) {
        debug_assert!(new >> LOCATION_BITS == 0, "location {new:#x} has more than {LOCATION_BITS} bits");
        if let Some(seat) = self.seat_of(hash, old) {
            // SAFETY: as in `bucket`, and the index is borrowed exclusively.
            unsafe { &mut *self.address_of(&seat.place, seat.displacement) }.set_location(seat.slot, new);
        } else {
            debug_assert!(self.spilled.contains(&(hash, old)), "location {old:#x} is not there to be replaced");
            self.spilled.insert((hash, new));
            self.spilled.remove(&(hash, old));
        }
    }

    /// Removes a location, which must be present under this hash. Computes in O(1) time.
    pub(super) fn remove(&mut self, hash: u64, location: u64) {
        if let Some(Seat { place, displacement, slot }) = self.seat_of(hash, location) {
            let bucket = (place.home + displacement) & self.home_mask;
            let (buckets, segment) = self.segment_mut(self.numbers[place.at] as usize);
            segment.len -= 1;
            let was_full = buckets[bucket].is_full();
            buckets[bucket].remove(slot);
            if was_full {
                pull_back(buckets, bucket);
            }
        } else if !self.spilled.remove(&(hash, location)) {
            debug_assert!(false, "location {location:#x} is not there to be removed");
            return;
        }
        self.len -= 1;
    }

    /// Removes everything and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    #[inline]
    fn place(&self, hash: u64) -> Option<Place> {
        let position = spread(hash);
        let at = (position >> self.shift) as usize;
        let way = *self.directory.get(at)?;
        Some(Place { position, at, way, home: hash as usize & self.home_mask, tag: tag_of(position, way.base()) })
    }

    #[inline]
    fn address_of(&self, place: &Place, displacement: usize) -> *mut Bucket {
        place.way.buckets().wrapping_add((place.home + displacement) & self.home_mask)
    }

    #[inline]
    fn bucket(&self, place: &Place, displacement: usize) -> &Bucket {
        // SAFETY: the way leads to as many buckets as `home_mask` allows for (invariant 9), and the index is borrowed.
        unsafe { &*self.address_of(place, displacement) }
    }

    /// Where the buckets of a segment start.
    fn start_of(&self, segment: usize) -> NonNull<Bucket> {
        let Slab { memory, segments } = &self.slabs[segment / SLAB];
        assert!(segment % SLAB < segments.len());
        // SAFETY: there is memory for every segment of the slab, and each takes up as many buckets.
        unsafe { memory.buckets.add(segment % SLAB * (self.home_mask + 1)) }
    }

    fn buckets(&self, segment: usize) -> &[Bucket] {
        // SAFETY: those of a segment were written when it was made (invariant 9), and the index is borrowed.
        unsafe { slice::from_raw_parts(self.start_of(segment).as_ptr(), self.home_mask + 1) }
    }

    #[inline]
    fn segment_mut(&mut self, segment: usize) -> (&mut [Bucket], &mut Segment) {
        let start = self.start_of(segment);
        // SAFETY: as in `buckets`, and the index is borrowed exclusively.
        let buckets = unsafe { slice::from_raw_parts_mut(start.as_ptr(), self.home_mask + 1) };
        (buckets, &mut self.slabs[segment / SLAB].segments[segment % SLAB])
    }

    /// Where a location lies, unless it is spilled.
    #[inline]
    fn seat_of(&self, hash: u64, location: u64) -> Option<Seat> {
        let place = self.place(hash)?;
        for displacement in 0..WINDOW.min(self.home_mask + 1) {
            let bucket = self.bucket(&place, displacement);
            let mut same_tag = bucket.matching(place.tag | (displacement as u16 + 1));
            if let Some(slot) = same_tag.find(|&slot| bucket.location(slot) == location) {
                return Some(Seat { place, displacement, slot });
            }
            if !bucket.is_full() {
                break;
            }
        }
        None
    }

    /// An index of a single segment.
    fn of_one(buckets: &[Bucket], segment: Segment) -> Self {
        let mut index = Self::new();
        index.home_mask = buckets.len() - 1;
        let segment = index.push_segment(buckets, segment);
        index.numbers = vec![segment as u32; 2];
        index.directory = vec![Way::new(index.start_of(segment), 0); 2];
        index
    }

    fn push_segment(&mut self, buckets: &[Bucket], segment: Segment) -> usize {
        if self.slabs.last().is_none_or(|slab| slab.segments.len() == slab.segments.capacity()) {
            // A sixteenth more than there is: the unused part stays small.
            let room = (self.segments / 16).clamp(1, SLAB);
            let slab = Slab { memory: Memory::new(room * buckets.len()), segments: Vec::with_capacity(room) };
            // Else the last segments would have no memory.
            debug_assert_eq!(slab.segments.capacity(), room);
            let bytes = slab.bytes();
            self.slabs.push(slab);
            self.slab_bytes += bytes;
        }
        let number = self.slabs.len() - 1;
        let slab = &mut self.slabs[number];
        let place = slab.segments.len();
        assert!((place + 1) * buckets.len() <= slab.memory.room);
        // SAFETY: there is room for these buckets, behind those of the segments before.
        unsafe {
            let start = slab.memory.buckets.add(place * buckets.len());
            ptr::copy_nonoverlapping(buckets.as_ptr(), start.as_ptr(), buckets.len());
        }
        slab.segments.push(segment);
        self.segments += 1;
        number * SLAB + place
    }

    /// Makes room where `hash` belongs; `false` if that would cost more than it is worth.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, hash: u64, hash_of: &mut dyn FnMut(u64) -> u64) -> bool {
        if self.home_mask + 1 < BUCKETS {
            self.enlarge(hash_of);
            return true;
        }
        let Some(place) = self.place(hash) else { return false };
        let number = self.numbers[place.at] as usize;
        let depth = u32::from(self.slabs[number / SLAB].segments[number % SLAB].depth);
        if self.slabs.len() >= MOST_SEGMENTS / SLAB {
            return false;
        }
        if depth + self.shift == 64 {
            // Random hashes keep the slots that the directory could name below 4 for each entry. Hashes that agree in
            // many bits would double it for ever.
            if self.directory.len() * 2 * BUCKETS * SLOTS > 16 * (self.len + 1) {
                return false;
            }
            let directory = self.directory.iter().flat_map(|&way| [way, way]).collect();
            let numbers = self.numbers.iter().flat_map(|&number| [number, number]).collect();
            (self.directory, self.numbers) = (directory, numbers);
            self.shift -= 1;
        }
        self.split(&place, number, depth, hash_of);
        true
    }

    /// Doubles the only segment.
    fn enlarge(&mut self, hash_of: &mut dyn FnMut(u64) -> u64) {
        let buckets = (self.home_mask + 1) * 2;
        let mut larger = Vec::with_capacity(buckets);
        larger.resize(buckets, Bucket::EMPTY);
        let mut homeless = Vec::new();
        for (_, tag, location) in entries(self.buckets(0)) {
            let hash = hash_of(location);
            if !put(&mut larger, hash as usize & (buckets - 1), tag & !DISPLACEMENT, location) {
                homeless.push((hash, location));
            }
        }
        let Segment { len, depth } = self.slabs[0].segments[0];
        let larger = Self::of_one(&larger, Segment { len: len - homeless.len() as u16, depth });
        let (spilled, len) = (mem::take(&mut self.spilled), self.len);
        *self = Self { spilled, len, ..larger };
        // Nothing, where hashes are random.
        self.spilled.extend(homeless);
    }

    fn split(&mut self, place: &Place, number: usize, depth: u32, hash_of: &mut dyn FnMut(u64) -> u64) {
        let old_base = place.way.base();
        let wears_out = depth + 1 > old_base + TAG_WEAR;
        let base = if wears_out { depth + 1 } else { old_base };
        let side_bit = 1 << (15 - (depth - old_base));
        let old = self.buckets(number);
        // All hashes are asked for before the first is used: the misses of the caller's records overlap.
        let mut tags = [[0_u16; SLOTS]; BUCKETS];
        if wears_out {
            for (bucket, tags) in old.iter().zip(&mut tags) {
                for (slot, tag) in tags.iter_mut().enumerate().take(bucket.count()) {
                    *tag = tag_of(spread(hash_of(bucket.location(slot))), base);
                }
            }
        }
        let mut halves = [[Bucket::EMPTY; BUCKETS]; 2];
        let mut lens = [0; 2];
        let mut homeless = Vec::new();
        for (number, (bucket, tags)) in old.iter().zip(&tags).enumerate() {
            for (slot, &new_tag) in tags.iter().enumerate().take(bucket.count()) {
                let tag = bucket.tag(slot);
                let side = usize::from(tag & side_bit != 0);
                let home = number.wrapping_sub(usize::from(tag & DISPLACEMENT) - 1) & (BUCKETS - 1);
                let tag = if wears_out { new_tag } else { tag & !DISPLACEMENT };
                if put(&mut halves[side], home, tag, bucket.location(slot)) {
                    lens[side] += 1;
                } else {
                    homeless.push((hash_of(bucket.location(slot)), bucket.location(slot)));
                }
            }
        }
        // From here on nothing calls out, and but for what is homeless nothing is allocated after the segment.
        let depth = depth + 1;
        let upper = self.push_segment(&halves[1], Segment { len: lens[1], depth: depth as u8 });
        let (buckets, segment) = self.segment_mut(number);
        buckets.copy_from_slice(&halves[0]);
        *segment = Segment { len: lens[0], depth: depth as u8 };
        let run = 1 << (64 - self.shift - depth);
        let first = (place.position >> self.shift) as usize & !(2 * run - 1);
        for (first, segment) in [(first, number), (first + run, upper)] {
            self.numbers[first..first + run].fill(segment as u32);
            let way = Way::new(self.start_of(segment), base);
            self.directory[first..first + run].fill(way);
        }
        self.spilled.extend(homeless);
    }

    /// Panics unless the invariants hold.
    #[cfg(test)]
    pub(super) fn validate(&self, mut hash_of: impl FnMut(u64) -> u64) {
        let buckets = self.home_mask + 1;
        if !self.directory.is_empty() {
            assert!(self.directory.len() >= 2 && self.directory.len() == 1 << (64 - self.shift), "1");
            assert_eq!(self.numbers.len(), self.directory.len(), "1");
        }
        assert!(buckets == BUCKETS || self.segments <= 1, "6");
        let mut named = std::collections::BTreeSet::new();
        let mut len = self.spilled.len();
        let mut first = 0;
        while first < self.directory.len() {
            let way = self.directory[first];
            let (number, base) = (self.numbers[first] as usize, way.base());
            assert_eq!(way.buckets(), self.start_of(number).as_ptr(), "9");
            let slab = &self.slabs[number / SLAB];
            let segment = slab.segments[number % SLAB];
            let depth = u32::from(segment.depth);
            assert!(base <= depth && depth <= base + TAG_WEAR, "1: base {base}, depth {depth}");
            let run = 1 << (64 - self.shift - depth);
            assert!(first % run == 0, "1");
            assert!(self.directory[first..first + run].iter().all(|&other| other == way), "1");
            assert!(self.numbers[first..first + run].iter().all(|&other| other as usize == number), "1");
            assert!(named.insert(number), "1");
            let table = self.buckets(number);
            for bucket in table {
                assert!((bucket.count()..SLOTS).all(|slot| bucket.tag(slot) == 0), "4");
            }
            for (bucket, tag, location) in entries(table) {
                let hash = hash_of(location);
                let place = self.place(hash).unwrap();
                assert_eq!((self.numbers[place.at] as usize, place.tag), (number, tag & !DISPLACEMENT), "2");
                let displacement = usize::from(tag & DISPLACEMENT) - 1;
                assert_eq!((place.home + displacement) & self.home_mask, bucket, "2");
                assert!(displacement < WINDOW.min(buckets), "2");
                assert!((0..displacement).all(|d| table[(place.home + d) & self.home_mask].is_full()), "3");
            }
            let count = entries(table).count();
            assert!(count == usize::from(segment.len) && count <= LOAD_LIMIT * buckets, "5");
            len += count;
            first += run;
        }
        assert_eq!(named.len(), self.segments, "1");
        assert_eq!(self.slabs.iter().map(|slab| slab.segments.len()).sum::<usize>(), self.segments, "1");
        assert_eq!(len, self.len, "5");
        assert!(self.spilled.iter().all(|&(hash, location)| hash_of(location) == hash), "7");
        assert_eq!(self.slabs.iter().map(Slab::bytes).sum::<usize>(), self.slab_bytes, "8");
    }
}

impl Slab {
    fn bytes(&self) -> usize {
        self.memory.room * size_of::<Bucket>() + self.segments.capacity() * size_of::<Segment>()
    }
}

/// Bends a hash, so that positions are 1.45 times as dense as hashes at the lower end and 0.76 times at the upper: with
/// x in 0..1, x - 5/16 x (1 - x).
#[inline]
fn spread(hash: u64) -> u64 {
    let bow = ((u128::from(hash) * u128::from(!hash)) >> 64) as u64;
    hash - (bow >> 2) - (bow >> 4)
}

/// The inverse of `spread`, in 0..=1.
fn unspread(position: f64) -> f64 {
    const BOW: f64 = 5.0 / 16.0;
    (((1.0 - BOW) * (1.0 - BOW) + 4.0 * BOW * position).sqrt() - (1.0 - BOW)) / (2.0 * BOW)
}

#[inline]
fn tag_of(position: u64, base: u32) -> u16 {
    (position << base >> 48) as u16 & !DISPLACEMENT
}

/// Whether there was room within the window. The number of buckets is a power of two.
#[inline]
fn put(buckets: &mut [Bucket], home: usize, tag: u16, location: u64) -> bool {
    let mask = buckets.len() - 1;
    for displacement in 0..WINDOW.min(buckets.len()) {
        let bucket = &mut buckets[(home + displacement) & mask];
        if !bucket.is_full() {
            bucket.push(tag | (displacement as u16 + 1), location);
            return true;
        }
    }
    false
}

/// Restores invariant 3 after the bucket `gap` was full and lost an entry.
fn pull_back(buckets: &mut [Bucket], mut gap: usize) {
    let mask = buckets.len() - 1;
    let mut distance = 1;
    while distance < WINDOW.min(buckets.len()) {
        let from = (gap + distance) & mask;
        let was_full = buckets[from].is_full();
        let passed = |&slot: &usize| usize::from(buckets[from].tag(slot) & DISPLACEMENT) > distance;
        if let Some(slot) = (0..SLOTS).find(passed) {
            let (tag, location) = (buckets[from].tag(slot), buckets[from].location(slot));
            buckets[from].remove(slot);
            buckets[gap].push(tag - distance as u16, location);
            gap = from;
            distance = 0;
        }
        if !was_full {
            // Nothing went past this bucket, so nothing behind it went past the gap.
            return;
        }
        distance += 1;
    }
}

/// The bucket of each entry of a segment, its tag with the displacement, and its location.
fn entries(buckets: &[Bucket]) -> impl Iterator<Item = (usize, u16, u64)> {
    buckets.iter().enumerate().flat_map(|(number, bucket)| {
        (0..bucket.count()).map(move |slot| (number, bucket.tag(slot), bucket.location(slot)))
    })
}

#[cfg(test)]
mod tests;
