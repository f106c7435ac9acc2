//! [`Chunk`]: a block of memory for records, and which of these snapshots see.

#![allow(unsafe_code, reason = "a chunk's units are found by address")]

use std::alloc::Layout;
use std::cell::RefCell;
use std::ptr::NonNull;

use super::epoch::Epoch;
use super::epochs::Epochs;
use super::free_list::Block;
use super::location::Location;
use super::node::Node;
use super::record::UNIT;

/// The offset of a chunk's first unit. Values behind headers of 12 bytes are aligned by it.
const FIRST: usize = 4;

/// The sizes of chunks, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkSizes {
    pub(super) first: usize,
    pub(super) largest: usize,
}

impl ChunkSizes {
    /// The size of the largest chunk whose units a location can name.
    pub(super) const MAX: usize = UNIT << Location::UNIT_BITS;
}

/// Returns the size of a chunk that has room for so many units.
pub(super) const fn bytes_for(units: usize) -> usize {
    FIRST + units * UNIT
}

/// Returns how many units a chunk of this size has room for.
pub(super) const fn units_in(bytes: usize) -> usize {
    (bytes - FIRST) / UNIT
}

/// Returns the layout of a chunk: that of a huge page if it is as large as one, else of cache lines.
pub(super) fn chunk_layout(bytes: usize) -> Layout {
    let align = if bytes >= ChunkSizes::MAX { ChunkSizes::MAX } else { 64 };
    Layout::from_size_align(bytes, align).expect("a chunk is far smaller than the address space")
}

/// Returns the address of a unit of the chunk that starts at `base`.
///
/// # Safety
///
/// The chunk has this unit.
#[inline]
pub(super) unsafe fn unit_address(base: NonNull<u8>, unit: usize) -> NonNull<u8> {
    // SAFETY: by the caller, it lies within the chunk.
    unsafe { base.add(FIRST + unit * UNIT) }
}

/// Returns the address of a unit, to be prefetched.
#[inline]
pub(super) fn unit_hint(base: NonNull<u8>, unit: usize) -> *const u8 {
    base.as_ptr().wrapping_add(FIRST + unit * UNIT)
}

/// Asks the system to put a full chunk in a huge page when it has time, which takes some off a lookup among millions.
///
/// This is advice: the system may do nothing. Asking before the chunk is filled would stop the writer for each 2 MiB that are
/// cleared at once: for 4 to 5 ms on a virtual machine whose host has to find them, too.
fn advise_huge_pages(memory: &Block) {
    let (base, bytes) = (memory.start(), memory.bytes());
    if bytes < ChunkSizes::MAX {
        return;
    }
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        unsafe extern "C" {
            fn madvise(address: *mut u8, len: usize, advice: i32) -> i32;
        }
        const MADV_HUGEPAGE: i32 = 14;
        // SAFETY: the range is allocated, and this advice does not change what it holds.
        unsafe { madvise(base.as_ptr(), bytes, MADV_HUGEPAGE) };
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = base;
}

/// A chunk as the writer sees it.
///
/// # Invariants
///
/// 1. `closed` is [`Epoch::MAX`] while the chunk is open, and else the epoch in which it was closed.
/// 2. `marks` are the epochs of snapshots taken while the chunk was open, in ascending order, each with how far it was
///    filled then. A snapshot that found it filled as the one before leaves none. Marks are dropped that no live
///    snapshot needs.
pub(super) struct Chunk {
    pub(super) memory: Node<Block>,
    /// How many units there is room for.
    pub(super) units: usize,
    /// How many units records take, live or dead.
    pub(super) filled: usize,
    /// How many units live records take.
    pub(super) live: usize,
    /// How many live records have a large value.
    pub(super) large: usize,
    /// The number of dead units at which the evacuation queue is to be told.
    pub(super) queued_again_at: usize,
    opened: Epoch,
    closed: Epoch,
    /// A cell, because a snapshot is taken through a shared reference.
    marks: RefCell<Vec<(Epoch, usize)>>,
}

impl Chunk {
    /// Makes an open chunk without records.
    pub(super) fn new(memory: Node<Block>, now: Epoch) -> Self {
        let units = units_in(memory.get().bytes());
        let marks = RefCell::default();
        let queued_again_at = usize::MAX;
        Self { memory, units, filled: 0, live: 0, large: 0, queued_again_at, opened: now, closed: Epoch::MAX, marks }
    }

    /// Returns the number of units of dead records.
    pub(super) fn dead(&self) -> usize {
        self.filled - self.live
    }

    pub(super) fn has_room_for(&self, units: usize) -> bool {
        self.filled + units <= self.units
    }

    /// Closes the chunk. The snapshot that ends the epoch `now` sees the records that were appended in it.
    pub(super) fn close(&mut self, now: Epoch) {
        self.closed = now;
        advise_huge_pages(self.memory.get());
    }

    /// Returns the bytes of the marks.
    pub(super) fn mark_bytes(&self) -> usize {
        self.marks.borrow().capacity() * size_of::<(Epoch, usize)>()
    }

    /// Marks how far the chunk, which is open, is filled when the snapshot of `epoch` is taken. O(1) amortized.
    pub(super) fn mark(&self, epoch: Epoch, epochs: &Epochs) {
        const MANY: usize = if cfg!(test) { 2 } else { 16 };
        let mut marks = self.marks.borrow_mut();
        if marks.last().is_some_and(|&(_, last)| last == self.filled) {
            return;
        }
        if marks.len() >= MANY && marks.len() == marks.capacity() {
            // A mark is for the snapshots from its epoch up to the next mark's.
            let mut next = epoch;
            let mut needed = marks.len();
            for at in (0..marks.len()).rev() {
                let mark = marks[at];
                if epochs.has_snapshot_in(mark.0..next) {
                    needed -= 1;
                    marks[needed] = mark;
                }
                next = mark.0;
            }
            marks.drain(..needed);
            // As many again before the next search.
            let kept = marks.len();
            marks.reserve(kept + MANY);
            marks.shrink_to(2 * kept + MANY);
        }
        marks.push((epoch, self.filled));
    }

    /// Returns `true` if the newest live snapshot, of epoch `newest`, sees the record at `unit`.
    pub(super) fn is_seen(&self, unit: usize, newest: Epoch) -> bool {
        if newest < self.opened {
            return false;
        }
        if newest >= self.closed {
            return true;
        }
        let marks = self.marks.borrow();
        let following = marks.partition_point(|&(epoch, _)| epoch <= newest);
        // The snapshot left a mark, or found the one before it as it would have left its own (invariant 2).
        marks[..following].last().is_some_and(|&(_, filled)| unit < filled)
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(super) fn validate(&self, is_open: bool) {
        assert_eq!(is_open, self.closed == Epoch::MAX, "invariant 1");
        assert!(self.marks.borrow().is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "invariant 2");
    }
}
