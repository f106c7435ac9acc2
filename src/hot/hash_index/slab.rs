//! [`Subtables`]: the memory of all subtables of an index.
//!
//! # Design
//!
//! Subtables lie in *slabs*, blocks of up to 512 of them. A slab is allocated as a whole and filled one subtable at a
//! time. So buckets never move, and the writer never stops to clear or move a large block. A subtable's number tells
//! its slab and its position there.
//!
//! # Invariants
//!
//! 1. Each subtable of a slab has `bucket_mask + 1` buckets in the slab's memory. All of them were written, and they
//!    stay where they are as long as the `Subtables` live.
//! 2. `bytes` is the memory of all slabs, and `len` the number of their subtables.

#![allow(unsafe_code, reason = "slabs are allocated without being cleared, and filled in parts")]

use std::alloc::{self, Layout};
use std::ptr::{self, NonNull};
use std::slice;

use super::bucket::Bucket;

/// Subtable numbers that belong to one slab, which may hold fewer subtables.
const SLAB: usize = 512;
/// The number of subtables that numbers are given to.
const MAX_SUBTABLES: usize = 1 << 26;

/// How many entries a subtable has, and how many leading bits their hashes share.
#[derive(Clone, Copy)]
pub(super) struct Subtable {
    pub(super) len: u16,
    pub(super) depth: u8,
}

/// The subtables of an index, by number.
pub(super) struct Subtables {
    slabs: Vec<Slab>,
    /// The number of buckets of a subtable, less one. The number is a power of two.
    bucket_mask: usize,
    len: usize,
    bytes: usize,
}

struct Slab {
    memory: Memory,
    /// Its capacity is the number of subtables that there is memory for.
    subtables: Vec<Subtable>,
}

impl Slab {
    fn bytes(&self) -> usize {
        self.memory.buckets * size_of::<Bucket>() + self.subtables.capacity() * size_of::<Subtable>()
    }
}

/// Memory for buckets. Freed when dropped.
struct Memory {
    start: NonNull<Bucket>,
    buckets: usize,
}

impl Memory {
    fn new(buckets: usize) -> Self {
        assert!(buckets > 0);
        // SAFETY: there is at least one bucket, so the size is not zero.
        let start = unsafe { alloc::alloc(Self::layout(buckets)) };
        let Some(start) = NonNull::new(start) else { alloc::handle_alloc_error(Self::layout(buckets)) };
        Self { start: start.cast(), buckets }
    }

    fn layout(buckets: usize) -> Layout {
        Layout::array::<Bucket>(buckets).expect("a slab is far smaller than the address space")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with the same layout; buckets need no destructor.
        unsafe { alloc::dealloc(self.start.as_ptr().cast(), Self::layout(self.buckets)) }
    }
}

// SAFETY: the memory is owned, and buckets are numbers.
unsafe impl Send for Memory {}

impl Subtables {
    /// Makes room for subtables of so many buckets, a power of two. Allocates nothing.
    pub(super) fn new(buckets: usize) -> Self {
        assert!(buckets.is_power_of_two());
        Self { slabs: Vec::new(), bucket_mask: buckets - 1, len: 0, bytes: 0 }
    }

    /// Returns the number of buckets of a subtable, less one.
    #[inline]
    pub(super) fn bucket_mask(&self) -> usize {
        self.bucket_mask
    }

    /// Returns the number of subtables.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if no further subtable can be added.
    pub(super) fn is_full(&self) -> bool {
        self.slabs.len() >= MAX_SUBTABLES / SLAB
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.bytes + self.slabs.capacity() * size_of::<Slab>()
    }

    pub(super) fn get(&self, number: usize) -> Subtable {
        self.slabs[number / SLAB].subtables[number % SLAB]
    }

    /// Returns the address of a subtable's first bucket.
    pub(super) fn start(&self, number: usize) -> NonNull<Bucket> {
        let Slab { memory, subtables } = &self.slabs[number / SLAB];
        assert!(number % SLAB < subtables.len());
        // SAFETY: the slab's memory holds the buckets of all its subtables (invariant 1).
        unsafe { memory.start.add(number % SLAB * (self.bucket_mask + 1)) }
    }

    pub(super) fn buckets(&self, number: usize) -> &[Bucket] {
        // SAFETY: so many buckets were written there (invariant 1), and they are borrowed with `self`.
        unsafe { slice::from_raw_parts(self.start(number).as_ptr(), self.bucket_mask + 1) }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: usize) -> (&mut [Bucket], &mut Subtable) {
        let start = self.start(number);
        // SAFETY: so many buckets were written there (invariant 1), and they are borrowed exclusively with `self`.
        let buckets = unsafe { slice::from_raw_parts_mut(start.as_ptr(), self.bucket_mask + 1) };
        (buckets, &mut self.slabs[number / SLAB].subtables[number % SLAB])
    }

    /// Adds a subtable with a copy of `buckets`, and returns its number.
    pub(super) fn push(&mut self, buckets: &[Bucket], subtable: Subtable) -> usize {
        assert_eq!(buckets.len(), self.bucket_mask + 1);
        if self.slabs.last().is_none_or(|slab| slab.subtables.len() == slab.subtables.capacity()) {
            // For a sixteenth of the subtables there are, so that the unused part stays small.
            let room = (self.len / 16).clamp(1, SLAB);
            let slab = Slab { memory: Memory::new(room * buckets.len()), subtables: Vec::with_capacity(room) };
            // Otherwise there would be no memory for the last subtables.
            debug_assert_eq!(slab.subtables.capacity(), room);
            let bytes = slab.bytes();
            self.slabs.push(slab);
            self.bytes += bytes;
        }
        let last = self.slabs.len() - 1;
        let slab = &mut self.slabs[last];
        let position = slab.subtables.len();
        assert!((position + 1) * buckets.len() <= slab.memory.buckets);
        // SAFETY: the assertion says that there is room for these buckets, behind those of the subtables before. `self`
        // is borrowed exclusively, and the slice cannot lie in memory that nobody else has a reference to.
        unsafe {
            let start = slab.memory.start.add(position * buckets.len());
            ptr::copy_nonoverlapping(buckets.as_ptr(), start.as_ptr(), buckets.len());
        }
        slab.subtables.push(subtable);
        self.len += 1;
        last * SLAB + position
    }

    /// Panics unless the invariants hold, as far as they can be checked.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let has_room = |slab: &Slab| slab.subtables.len() * (self.bucket_mask + 1) <= slab.memory.buckets;
        assert!(self.slabs.iter().all(has_room), "1");
        assert_eq!(self.slabs.iter().map(Slab::bytes).sum::<usize>(), self.bytes, "2");
        assert_eq!(self.slabs.iter().map(|slab| slab.subtables.len()).sum::<usize>(), self.len, "2");
    }
}
