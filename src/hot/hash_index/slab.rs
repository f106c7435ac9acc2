//! [`Subtables`]: the memory of all subtables of an index.
//!
//! # Design
//!
//! Subtables lie in *slabs*, blocks of up to 512 of them. A slab is allocated as a whole and filled one subtable at a
//! time. So the writer never stops to clear or move a large block. A subtable's number tells its slab and its position
//! there. The last subtable takes the place of one that is removed, and a slab that has become empty is freed.
//!
//! An index that is sized beforehand gets its subtables from memory that the allocator says is zero. Nothing writes to
//! them before they get entries, so the operating system need not provide that memory yet. The standard library's
//! allocator clears such memory itself if it is to be aligned to more than two words. So a slab of this kind asks for
//! less, and aligns its buckets on its own.
//!
//! # Invariants
//!
//! 1. Each subtable of a slab has `bucket_mask + 1` buckets in the slab's memory. All of them were written, or are zeros
//!    of the allocator's. They stay where they are until a subtable is removed.
//! 2. `bytes` is the memory of all slabs, and `len` the number of their subtables.
//! 3. All slabs but the last are as full as they can be. None is empty.

#![allow(unsafe_code, reason = "slabs are allocated without being cleared, and filled in parts")]

use std::alloc::{self, Layout};
use std::ptr::{self, NonNull};
use std::slice;

use super::bucket::Bucket;
use crate::hot::reserve::{give_back, reserve_one};

/// Subtable numbers that belong to one slab, which may hold fewer subtables.
const SLAB: usize = 512;
/// The number of subtables that numbers are given to.
const MAX_SUBTABLES: usize = 1 << 26;
const FITS: &str = "a slab is far smaller than the address space";

/// How many entries a subtable has, and the leading bits that their positions share.
#[derive(Clone, Copy)]
pub(super) struct Subtable {
    /// The first `depth` bits of the positions, in the high bits. The other bits are zero.
    pub(super) prefix: u32,
    pub(super) len: u16,
    /// The number of leading bits that all positions share.
    pub(super) depth: u8,
}

impl Subtable {
    /// An empty subtable for all positions.
    pub(super) const ONLY: Self = Self { prefix: 0, len: 0, depth: 0 };
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
        self.memory.layout.size() + self.subtables.capacity() * size_of::<Subtable>()
    }
}

/// Memory for buckets. Freed when dropped.
struct Memory {
    start: NonNull<Bucket>,
    /// The allocated block, which may begin some bytes before `start`.
    block: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(buckets: usize) -> Self {
        let layout = Layout::array::<Bucket>(buckets).expect(FITS);
        assert!(buckets > 0);
        // SAFETY: there is at least one bucket, so the size is not zero.
        let block = unsafe { alloc::alloc(layout) };
        let Some(block) = NonNull::new(block) else { alloc::handle_alloc_error(layout) };
        Self { start: block.cast(), block, layout }
    }

    /// Allocates memory whose bytes are zero, and touches none of it.
    fn zeroed(buckets: usize) -> Self {
        // Every allocator aligns blocks to two words.
        let align = 2 * size_of::<usize>();
        let padding = align_of::<Bucket>() - align;
        let layout = Layout::from_size_align(buckets * size_of::<Bucket>() + padding, align).expect(FITS);
        // SAFETY: the padding alone is more than nothing.
        let block = unsafe { alloc::alloc_zeroed(layout) };
        let Some(block) = NonNull::new(block) else { alloc::handle_alloc_error(layout) };
        let skipped = block.addr().get().wrapping_neg() % align_of::<Bucket>();
        // SAFETY: the block is aligned to `align`, so this skips the padding at most.
        let start = unsafe { block.add(skipped) }.cast();
        Self { start, block, layout }
    }

    /// Returns the number of buckets that there is room for.
    fn buckets(&self) -> usize {
        self.layout.size() / size_of::<Bucket>()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the block was allocated with this layout; buckets need no destructor.
        unsafe { alloc::dealloc(self.block.as_ptr(), self.layout) }
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

    /// Makes empty subtables of so many buckets. Does not touch the memory of their buckets.
    pub(super) fn zeroed(buckets: usize, subtables: &[Subtable]) -> Self {
        let slabs = subtables
            .chunks(SLAB)
            .map(|subtables| Slab { memory: Memory::zeroed(subtables.len() * buckets), subtables: subtables.to_vec() });
        let slabs: Vec<_> = slabs.collect();
        let bytes = slabs.iter().map(Slab::bytes).sum();
        Self { slabs, bytes, len: subtables.len(), ..Self::new(buckets) }
    }

    /// Returns the number of buckets of a subtable, less one.
    #[inline]
    pub(super) fn bucket_mask(&self) -> usize {
        self.bucket_mask
    }

    /// Returns the number of subtables.
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
            reserve_one(&mut self.slabs);
            self.slabs.push(slab);
            self.bytes += bytes;
        }
        let last = self.slabs.len() - 1;
        let slab = &mut self.slabs[last];
        let position = slab.subtables.len();
        assert!((position + 1) * buckets.len() <= slab.memory.buckets());
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

    /// Removes a subtable, and frees a slab that has become empty. Cannot fail.
    ///
    /// The last subtable takes the number that is free. Returns it, unless it is the one that was removed.
    pub(super) fn swap_remove(&mut self, number: usize) -> Option<Subtable> {
        let last_slab = self.slabs.len() - 1;
        let last = last_slab * SLAB + self.slabs[last_slab].subtables.len() - 1;
        let moved = (number != last).then(|| self.get(last));
        if let Some(moved) = moved {
            let from = self.start(last);
            let (buckets, subtable) = self.get_mut(number);
            *subtable = moved;
            // SAFETY: so many buckets lie there (invariant 1), and other subtables have none of them.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), buckets.as_mut_ptr(), buckets.len()) };
        }
        let slab = &mut self.slabs[last_slab];
        slab.subtables.pop();
        self.len -= 1;
        if slab.subtables.is_empty() {
            self.bytes -= slab.bytes();
            self.slabs.pop();
            give_back(&mut self.slabs);
        }
        moved
    }

    /// Panics unless the invariants hold, as far as they can be checked.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let has_room = |slab: &Slab| slab.subtables.len() * (self.bucket_mask + 1) <= slab.memory.buckets();
        assert!(self.slabs.iter().all(has_room), "1");
        assert!(self.slabs.iter().rev().skip(1).all(|slab| slab.subtables.len() == slab.subtables.capacity()), "3");
        assert!(self.slabs.iter().all(|slab| !slab.subtables.is_empty()), "3");
        assert_eq!(self.slabs.iter().map(Slab::bytes).sum::<usize>(), self.bytes, "2");
        assert_eq!(self.slabs.iter().map(|slab| slab.subtables.len()).sum::<usize>(), self.len, "2");
    }
}
