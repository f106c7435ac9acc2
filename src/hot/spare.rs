//! Spare memory: what dead nodes and chunks lay in, for new ones of the same layout.
//!
//! # Design
//!
//! ```text
//!                   allocate   ┌─────────┐  give
//!      the writer <─────────── │ Spare   │ <─────── whoever ends a snapshot, and the writer
//!           │                  │ (a lock)│             │
//!           │ if there is none └─────────┘             │ if there is enough
//!           v                                          v
//!      ───────────────────── the allocator ─────────────────────
//! ```
//!
//! A writer that goes on under a snapshot copies what it first touches. What the copies replace goes together when the
//! snapshot goes, mostly on another thread. So each checkpoint asks for about as many blocks as the one before it leaves, and
//! here they wait for it, up to a limit in bytes. There are as many layouts as kinds of nodes, or sizes of chunks: a few.
//!
//! # Why this and not the allocator alone
//!
//! Where another thread frees ten thousand blocks at once, the C library leaves them for the writer's next allocation to sort:
//! one to two milliseconds in one call. And what it gives back to the system it has to ask for again, at a page fault for
//! each 4 KiB.
//!
//! Nobody waits for the lock for long, and the writer not at all: where it finds the lock taken, it asks the allocator.
//!
//! # Invariants
//!
//! 1. A block is memory that was allocated with its layout, belongs to nobody else, and holds nothing that has to be dropped.
//! 2. `bytes` are those of all blocks, and at most what the limit was when the last of them came.

#![allow(unsafe_code, reason = "blocks are memory without a type, allocated and freed by address")]

use std::alloc::{self, Layout};
use std::mem::{self, ManuallyDrop};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::prefetch_all;

/// Memory that belongs to who has the block. Freed when dropped.
pub(super) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is owned bytes (invariant 1).
unsafe impl Send for Block {}

impl Block {
    /// Takes memory from the allocator. What is in it is not to be read before it is written.
    pub(super) fn allocate(layout: Layout) -> Self {
        assert!(layout.size() > 0, "the allocator gives no memory without bytes");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc::alloc(layout) };
        let Some(start) = NonNull::new(start) else { alloc::handle_alloc_error(layout) };
        Self { start, layout }
    }

    /// # Safety
    ///
    /// The memory at `start` was allocated with this layout, belongs to nobody else, and what is in it is not used again.
    pub(super) unsafe fn from_raw(start: NonNull<u8>, layout: Layout) -> Self {
        Self { start, layout }
    }

    /// Gives the memory up.
    pub(super) fn into_raw(self) -> NonNull<u8> {
        ManuallyDrop::new(self).start
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: invariant 1.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Blocks for whoever needs one next. Keeps none until it is given a [limit](Self::set_limit).
#[derive(Default)]
pub(super) struct Spare(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    by_layout: Vec<(Layout, Vec<Block>)>,
    bytes: usize,
    limit: usize,
}

impl Spare {
    /// Returns the block of this layout that was given last, which is the likeliest to be in the cache, or a new one.
    pub(super) fn allocate(&self, layout: Layout) -> Block {
        let spare = match self.0.try_lock() {
            Ok(mut blocks) => blocks.take(layout),
            Err(TryLockError::Poisoned(blocks)) => blocks.into_inner().take(layout),
            Err(TryLockError::WouldBlock) => None,
        };
        spare.unwrap_or_else(|| Block::allocate(layout))
    }

    /// Keeps a block, or frees it if there are enough.
    pub(super) fn give(&self, block: Block) {
        let surplus = self.lock().keep(block);
        drop(surplus);
    }

    /// Sets how many bytes are kept from now on. What is there stays.
    pub(super) fn set_limit(&self, bytes: usize) {
        self.lock().limit = bytes;
    }

    /// Frees all blocks, and keeps none from now on.
    pub(super) fn clear(&self) {
        let blocks = mem::take(&mut *self.lock());
        drop(blocks);
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    fn take(&mut self, layout: Layout) -> Option<Block> {
        let (_, blocks) = self.by_layout.iter_mut().find(|(kept, _)| *kept == layout)?;
        let block = blocks.pop()?;
        if let Some(next) = blocks.last() {
            // All of it is written when it is asked for.
            prefetch_all(next.start().as_ptr(), next.bytes().min(4096));
        }
        self.bytes -= block.bytes();
        Some(block)
    }

    /// Gives the block back if there are enough.
    fn keep(&mut self, block: Block) -> Option<Block> {
        if self.bytes + block.bytes() > self.limit {
            return Some(block);
        }
        self.bytes += block.bytes();
        match self.by_layout.iter_mut().find(|(layout, _)| *layout == block.layout) {
            Some((_, blocks)) => blocks.push(block),
            None => self.by_layout.push((block.layout, vec![block])),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).unwrap()
    }

    #[test]
    fn a_block_serves_again_within_the_limit_and_for_its_layout_only() {
        let spare = Spare::default();
        spare.give(Block::allocate(layout(64)));
        assert_eq!(spare.bytes(), 0);

        spare.set_limit(200);
        let blocks: Vec<_> = (0..3).map(|_| spare.allocate(layout(64))).collect();
        let starts: Vec<_> = blocks.iter().map(Block::start).collect();
        blocks.into_iter().for_each(|block| spare.give(block));
        assert_eq!(spare.bytes(), 192);
        // Neither fits.
        spare.give(Block::allocate(layout(64)));
        spare.give(Block::allocate(layout(9)));
        assert_eq!(spare.bytes(), 192);
        spare.give(Block::allocate(layout(8)));
        assert_eq!(spare.bytes(), 200);

        let aligned = Layout::from_size_align(64, 16).unwrap();
        assert!(!starts.contains(&spare.allocate(aligned).start()));
        for &start in starts.iter().rev() {
            assert_eq!(spare.allocate(layout(64)).into_raw(), start);
            // SAFETY: it was given up in the line above.
            drop(unsafe { Block::from_raw(start, layout(64)) });
        }
        assert_eq!(spare.bytes(), 8);
        spare.clear();
        spare.give(Block::allocate(layout(8)));
        assert_eq!(spare.bytes(), 0);
    }

    #[test]
    fn blocks_come_back_from_many_threads() {
        let spare = Spare::default();
        spare.set_limit(64 * 100);
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        thread::scope(|scope| {
            for number in 1..=3_u8 {
                let spare = &spare;
                scope.spawn(move || {
                    for _ in 0..rounds {
                        let blocks = [(); 3].map(|()| spare.allocate(layout(64)));
                        for block in &blocks {
                            // SAFETY: the block is this thread's, and of 64 bytes.
                            unsafe { block.start().write_bytes(number, 64) };
                        }
                        for block in blocks {
                            // SAFETY: as above, and they were written.
                            let bytes = unsafe { block.start().cast::<[u8; 64]>().read() };
                            assert_eq!(bytes, [number; 64]);
                            spare.give(block);
                        }
                    }
                });
            }
        });
        assert!((64..=64 * 100).contains(&spare.bytes()));
    }
}
