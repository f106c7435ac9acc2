//! Spare memory: what dead nodes and chunks lay in, for new ones of the same layout.
//!
//! # Design
//!
//! ```text
//!                   allocate   ┌─────────┐  give
//!      the writer <─────────── │ Spare   │ <─────── whoever ends a snapshot
//!           │                  │ (a lock)│             │
//!           │ if there is none └─────────┘             │ if there is enough
//!           v                                          v
//!      ───────────────────── the allocator ─────────────────────
//! ```
//!
//! A writer that goes on under a snapshot copies what it first touches. What the copies replace goes together when the
//! snapshot goes, mostly on another thread. So each checkpoint asks for about as many blocks as the one before it leaves,
//! and here they wait for it, up to a limit in bytes. Those of one layout are a list, which runs through the blocks
//! themselves and takes no memory of its own. There are as many lists as kinds of nodes, a handful, and one for chunks.
//!
//! # Why this and not the allocator alone
//!
//! Where another thread frees ten thousand blocks at once, the C library leaves them for the writer's next allocation to
//! sort: one to two milliseconds in one call. And what it gives back to the system it has to ask for again, at a page
//! fault for each 4 KiB.
//!
//! The lock is held for some instructions at a time. Where the writer needs a block and finds it taken, it asks the
//! allocator.
//!
//! # Invariants
//!
//! 1. A block is memory that was allocated with its layout and that nobody else frees. When it is given or dropped, nobody
//!    uses what lay in it any more.
//! 2. The memory in a list has the list's layout, is nobody else's, and starts with the address of the next one, or none.
//! 3. `bytes` are those of all memory in lists.

#![allow(unsafe_code, reason = "blocks are memory without a type, allocated and freed by address")]

use std::alloc::{self, Layout};
use std::mem::ManuallyDrop;
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
// SAFETY: a shared block tells where it is and how large, no more.
unsafe impl Sync for Block {}

impl Block {
    /// Takes memory from the allocator, if there is any. What is in it is not to be read before it is written.
    fn try_allocate(layout: Layout) -> Option<Self> {
        assert!(layout.size() > 0, "the allocator gives no memory without bytes");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc::alloc(layout) };
        NonNull::new(start).map(|start| Self { start, layout })
    }

    /// # Safety
    ///
    /// The memory at `start` was allocated with this layout, nobody else frees it, and what lies in it is not used any more
    /// when the block is given or dropped.
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
pub(super) struct Spare(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    lists: Vec<List>,
    bytes: usize,
    limit: usize,
}

struct List {
    layout: Layout,
    first: Option<NonNull<u8>>,
}

// SAFETY: the memory in a list is nobody else's (invariant 2).
unsafe impl Send for List {}

impl Spare {
    /// Returns the block of this layout that was given last, which is the likeliest to be in the cache, or a new one.
    pub(super) fn allocate(&self, layout: Layout) -> Block {
        self.try_allocate(layout).unwrap_or_else(|| alloc::handle_alloc_error(layout))
    }

    /// The same, if there is memory for a new one.
    pub(super) fn try_allocate(&self, layout: Layout) -> Option<Block> {
        let spare = match self.0.try_lock() {
            Ok(mut lists) => lists.take(layout),
            Err(TryLockError::Poisoned(lists)) => lists.into_inner().take(layout),
            Err(TryLockError::WouldBlock) => None,
        };
        spare.or_else(|| Block::try_allocate(layout))
    }

    /// Keeps a block, or frees it if there are enough; then one of those goes, too, if there are more than that.
    pub(super) fn give(&self, block: Block) {
        let surplus = self.lock().keep(block);
        drop(surplus);
    }

    /// Sets how many bytes are kept from now on. Of what is beyond that some goes at once, and some with each block that is
    /// [given](Self::give), so that no call has to free it all.
    pub(super) fn set_limit(&self, bytes: usize) {
        const AT_ONCE: usize = 16;
        self.lock().limit = bytes;
        for _ in 0..AT_ONCE {
            let surplus = self.lock().take_surplus();
            if surplus.is_none() {
                break;
            }
        }
    }

    /// Frees so many bytes, or all there are, and returns how many those were.
    pub(super) fn free(&self, bytes: usize) -> usize {
        let mut freed = 0;
        while freed < bytes {
            let Some(block) = self.lock().take_any() else { break };
            freed += block.bytes();
        }
        freed
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    fn take(&mut self, layout: Layout) -> Option<Block> {
        let list = self.lists.iter_mut().find(|list| list.layout == layout)?;
        let block = list.pop()?;
        self.bytes -= block.bytes();
        if let Some(next) = list.first {
            // A node is written as soon as it is asked for.
            prefetch_all(next.as_ptr(), layout.size().min(4096));
        }
        Some(block)
    }

    fn take_any(&mut self) -> Option<Block> {
        let block = self.lists.iter_mut().find_map(List::pop)?;
        self.bytes -= block.bytes();
        Some(block)
    }

    fn take_surplus(&mut self) -> Option<Block> {
        if self.bytes > self.limit { self.take_any() } else { None }
    }

    /// Gives back what there is too much of.
    fn keep(&mut self, block: Block) -> [Option<Block>; 2] {
        let layout = block.layout;
        if self.bytes + block.bytes() > self.limit
            || layout.size() < size_of::<Link>()
            || layout.align() < align_of::<Link>()
        {
            return [Some(block), self.take_surplus()];
        }
        let list = match self.lists.iter().position(|list| list.layout == layout) {
            Some(list) => list,
            // Who ends a snapshot is not to fail for this.
            None if self.lists.try_reserve(1).is_err() => return [Some(block), None],
            None => {
                self.lists.push(List { layout, first: None });
                self.lists.len() - 1
            }
        };
        self.bytes += block.bytes();
        self.lists[list].push(block);
        [None, None]
    }
}

/// What memory in a list starts with.
type Link = Option<NonNull<u8>>;

impl List {
    fn push(&mut self, block: Block) {
        let start = block.into_raw();
        // SAFETY: the memory was the block's, and `keep` saw that a link fits.
        unsafe { start.cast::<Link>().write(self.first) };
        self.first = Some(start);
    }

    fn pop(&mut self) -> Option<Block> {
        let start = self.first?;
        // SAFETY: by invariant 2 it starts with a link, and is the block's from here on.
        unsafe {
            self.first = start.cast::<Link>().read();
            Some(Block::from_raw(start, self.layout))
        }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).unwrap()
    }

    fn block(bytes: usize) -> Block {
        Block::try_allocate(layout(bytes)).unwrap()
    }

    #[test]
    fn a_block_serves_again_within_the_limit_and_for_its_layout_only() {
        let spare = Spare::default();
        spare.give(block(64));
        assert_eq!(spare.bytes(), 0);

        spare.set_limit(200);
        let blocks: Vec<_> = (0..3).map(|_| spare.allocate(layout(64))).collect();
        let starts: Vec<_> = blocks.iter().map(Block::start).collect();
        blocks.into_iter().for_each(|block| spare.give(block));
        assert_eq!(spare.bytes(), 192);
        // Neither fits, and the third one has no room for what links them.
        spare.give(block(64));
        spare.give(block(9));
        spare.give(block(7));
        assert_eq!(spare.bytes(), 192);
        spare.give(block(8));
        assert_eq!(spare.bytes(), 200);

        let aligned = Layout::from_size_align(64, 16).unwrap();
        assert!(!starts.contains(&spare.allocate(aligned).start()));
        for &start in starts.iter().rev() {
            assert_eq!(spare.allocate(layout(64)).into_raw(), start);
            // SAFETY: it was given up in the line above.
            drop(unsafe { Block::from_raw(start, layout(64)) });
        }
        assert_eq!(spare.bytes(), 8);
        assert_eq!((spare.free(1), spare.free(1), spare.bytes()), (8, 0, 0));
    }

    #[test]
    fn what_is_beyond_a_new_limit_goes_little_by_little() {
        let spare = Spare::default();
        spare.set_limit(64 * 100);
        (0..100).map(|_| block(64)).for_each(|block| spare.give(block));
        spare.set_limit(64 * 10);
        assert_eq!(spare.bytes(), 64 * 84);
        spare.give(block(64));
        assert_eq!(spare.bytes(), 64 * 83);
        assert_eq!(spare.free(100), 128);
        for _ in 0..100 {
            spare.give(block(64));
        }
        assert_eq!(spare.bytes(), 64 * 10);
        spare.set_limit(0);
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
