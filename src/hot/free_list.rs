//! Free lists: memory of freed nodes and chunks, for new ones of the same layout.
//!
//! # Design
//!
//! ```text
//!                   allocate   ┌───────────┐  give
//!      the writer <─────────── │ FreeLists │ <─────── whoever ends a snapshot
//!           │                  │ (a lock)  │             │
//!           │ if there is none └───────────┘             │ if there is enough
//!           v                                            v
//!      ────────────────────── the allocator ──────────────────────
//! ```
//!
//! A writer that goes on under a snapshot copies what it first touches. The originals are freed together when the
//! snapshot goes, mostly on another thread. So each checkpoint asks for about as many blocks as the one before it
//! frees, and here they wait for it, up to a limit in bytes. The
//! storage engine sets the limit when it takes a snapshot. A list holds blocks of one layout and runs through the
//! blocks themselves, so that it takes no memory of its own. There are as many lists as types of nodes, a handful, and
//! one for chunks.
//!
//! # Why
//!
//! Where another thread frees ten thousand blocks at once, the C library leaves them for the writer's next allocation
//! to sort: one to two milliseconds in one call. Memory that the C library gives back to the system has to be asked for
//! again, at a page fault for each 4 KiB.
//!
//! The lock is held for some instructions at a time. A writer that finds it taken asks the allocator.
//!
//! # Invariants
//!
//! 1. A block is memory that was allocated with its layout and that nobody else frees. When it is given or dropped,
//!    nobody uses its contents any more.
//! 2. The memory in a list has the list's layout, is nobody else's, and starts with the address of the next one, or
//!    none.
//! 3. `bytes` are those of all memory in lists.

#![allow(unsafe_code, reason = "blocks are memory without a type, allocated and freed by address")]

use std::alloc::{self, Layout};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::prefetch::prefetch_all;

/// Owned memory without a type. Freed when dropped.
pub(super) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is owned bytes (invariant 1).
unsafe impl Send for Block {}
// SAFETY: a shared block gives its address and its size, no more.
unsafe impl Sync for Block {}

impl Block {
    /// Allocates memory. It is not to be read before it is written.
    fn allocate(layout: Layout) -> Self {
        assert!(layout.size() > 0, "the allocator gives no memory without bytes");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc::alloc(layout) };
        let Some(start) = NonNull::new(start) else { alloc::handle_alloc_error(layout) };
        Self { start, layout }
    }

    /// Makes a block of memory that [`into_raw`](Self::into_raw) returned.
    ///
    /// # Safety
    ///
    /// The memory at `start` was allocated with this layout, and nobody else frees it. Nobody uses its contents any
    /// more when the block is given or dropped.
    pub(super) unsafe fn from_raw(start: NonNull<u8>, layout: Layout) -> Self {
        Self { start, layout }
    }

    /// Returns the address of the memory, which nobody frees from here on.
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

/// Free lists by layout, behind a lock. They keep nothing until they are given a [limit](Self::set_limit).
#[derive(Default)]
pub(super) struct FreeLists(Mutex<SizeClasses>);

#[derive(Default)]
struct SizeClasses {
    classes: Vec<FreeList>,
    bytes: usize,
    limit: usize,
}

struct FreeList {
    layout: Layout,
    first: Option<NonNull<u8>>,
}

// SAFETY: the memory in a list is nobody else's (invariant 2).
unsafe impl Send for FreeList {}

impl FreeLists {
    /// Returns the block of this layout that was given last, which is the likeliest to be in the cache. Allocates one
    /// if there is none.
    pub(super) fn allocate(&self, layout: Layout) -> Block {
        let free = match self.0.try_lock() {
            Ok(mut lists) => lists.take(layout),
            Err(TryLockError::Poisoned(lists)) => lists.into_inner().take(layout),
            Err(TryLockError::WouldBlock) => None,
        };
        free.unwrap_or_else(|| Block::allocate(layout))
    }

    /// Keeps a block, or frees it if the limit is reached. Frees one more if the limit is exceeded.
    pub(super) fn give(&self, block: Block) {
        let surplus = self.lock().keep(block);
        drop(surplus);
    }

    /// Sets how many bytes are kept from now on. Blocks beyond the limit are freed little by little, some of them now
    /// and one with each block that is [given](Self::give), so that no call has to free them all.
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

    /// Frees at least so many bytes, or all there are, and returns how many.
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

    fn lock(&self) -> MutexGuard<'_, SizeClasses> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SizeClasses {
    fn take(&mut self, layout: Layout) -> Option<Block> {
        let list = self.classes.iter_mut().find(|list| list.layout == layout)?;
        let block = list.pop()?;
        self.bytes -= block.bytes();
        if let Some(next) = list.first {
            // A node is written as soon as it is asked for.
            prefetch_all(next.as_ptr(), layout.size().min(4096));
        }
        Some(block)
    }

    fn take_any(&mut self) -> Option<Block> {
        let block = self.classes.iter_mut().find_map(FreeList::pop)?;
        self.bytes -= block.bytes();
        Some(block)
    }

    fn take_surplus(&mut self) -> Option<Block> {
        if self.bytes > self.limit { self.take_any() } else { None }
    }

    /// Keeps a block if the limit allows for it. Returns the blocks to be freed.
    fn keep(&mut self, block: Block) -> [Option<Block>; 2] {
        let layout = block.layout;
        if self.bytes + block.bytes() > self.limit
            || layout.size() < size_of::<Link>()
            || layout.align() < align_of::<Link>()
        {
            return [Some(block), self.take_surplus()];
        }
        let list = match self.classes.iter().position(|list| list.layout == layout) {
            Some(list) => list,
            // Ending a snapshot must not fail for this.
            None if self.classes.try_reserve(1).is_err() => return [Some(block), None],
            None => {
                self.classes.push(FreeList { layout, first: None });
                self.classes.len() - 1
            }
        };
        self.bytes += block.bytes();
        self.classes[list].push(block);
        [None, None]
    }
}

/// The start of each block in a list: the address of the next one.
type Link = Option<NonNull<u8>>;

impl FreeList {
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

impl Drop for FreeList {
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
        Block::allocate(layout(bytes))
    }

    #[test]
    fn a_block_serves_again_within_the_limit_and_for_its_layout_only() {
        let free = FreeLists::default();
        free.give(block(64));
        assert_eq!(free.bytes(), 0);

        free.set_limit(200);
        let blocks: Vec<_> = (0..3).map(|_| free.allocate(layout(64))).collect();
        let starts: Vec<_> = blocks.iter().map(Block::start).collect();
        blocks.into_iter().for_each(|block| free.give(block));
        assert_eq!(free.bytes(), 192);
        // Neither fits, and the third one has no room for what links them.
        free.give(block(64));
        free.give(block(9));
        free.give(block(size_of::<Link>() - 1));
        assert_eq!(free.bytes(), 192);
        free.give(block(8));
        assert_eq!(free.bytes(), 200);

        let aligned = Layout::from_size_align(64, 16).unwrap();
        assert!(!starts.contains(&free.allocate(aligned).start()));
        for &start in starts.iter().rev() {
            assert_eq!(free.allocate(layout(64)).into_raw(), start);
            // SAFETY: it was given up in the line above.
            drop(unsafe { Block::from_raw(start, layout(64)) });
        }
        assert_eq!(free.bytes(), 8);
        assert_eq!((free.free(1), free.free(1), free.bytes()), (8, 0, 0));
    }

    #[test]
    fn blocks_beyond_a_new_limit_are_freed_little_by_little() {
        let free = FreeLists::default();
        free.set_limit(64 * 100);
        (0..100).map(|_| block(64)).for_each(|block| free.give(block));
        free.set_limit(64 * 10);
        assert_eq!(free.bytes(), 64 * 84);
        free.give(block(64));
        assert_eq!(free.bytes(), 64 * 83);
        assert_eq!(free.free(100), 128);
        for _ in 0..100 {
            free.give(block(64));
        }
        assert_eq!(free.bytes(), 64 * 10);
        free.set_limit(0);
        assert_eq!(free.bytes(), 0);
    }

    #[test]
    fn blocks_come_back_from_many_threads() {
        let free = FreeLists::default();
        free.set_limit(64 * 100);
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        thread::scope(|scope| {
            for number in 1..=3_u8 {
                let free = &free;
                scope.spawn(move || {
                    for _ in 0..rounds {
                        let blocks = [(); 3].map(|()| free.allocate(layout(64)));
                        for block in &blocks {
                            // SAFETY: the block is this thread's, and of 64 bytes.
                            unsafe { block.start().write_bytes(number, 64) };
                        }
                        for block in blocks {
                            // SAFETY: as above, and they were written.
                            let bytes = unsafe { block.start().cast::<[u8; 64]>().read() };
                            assert_eq!(bytes, [number; 64]);
                            free.give(block);
                        }
                    }
                });
            }
        });
        assert!((64..=64 * 100).contains(&free.bytes()));
    }
}
