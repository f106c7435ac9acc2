//! A global allocator for tests. It counts allocations per thread, and on request it fails or aligns blocks no better
//! than asked.

#![allow(unsafe_code, reason = "a global allocator is unsafe to implement; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { calls: 0, live: 0, peak: 0 }) };
    /// Number of allocations that succeed before one fails.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    static IS_MISALIGNED: Cell<bool> = const { Cell::new(false) };
}

#[derive(Clone, Copy)]
struct Counts {
    calls: usize,
    /// Bytes allocated minus bytes freed on this thread. Memory from other threads may be freed here.
    live: isize,
    peak: isize,
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(allocated: usize, freed: usize) {
    // The counters are gone while a thread ends.
    let _ = COUNTS.try_with(|counts| {
        let mut now = counts.get();
        now.calls += usize::from(allocated > 0);
        now.live += allocated as isize - freed as isize;
        now.peak = now.peak.max(now.live);
        counts.set(now);
    });
}

/// Alignment requested from the system. A [misaligned] block is moved away from it.
const ALIGNMENT: usize = 16;

/// Returns the layout to request from the system, with room to move the block by `shift` bytes.
fn system_layout(layout: Layout, shift: usize) -> Layout {
    let size = if shift == 0 { layout.size() } else { layout.size() + ALIGNMENT };
    Layout::from_size_align(size, layout.align().max(ALIGNMENT)).expect("no layout is that large")
}

/// Returns the number of bytes by which a new block is moved.
fn shift_of(layout: Layout) -> usize {
    let is_misaligned = IS_MISALIGNED.try_with(Cell::get).unwrap_or(false);
    if is_misaligned && layout.align() < ALIGNMENT { layout.align() } else { 0 }
}

/// Runs `f` with blocks that are aligned no better than their layout asks for. For example, bytes start 1 byte after a
/// multiple of 16, where most allocators would happen to align them.
pub(crate) fn misaligned<R>(f: impl FnOnce() -> R) -> R {
    let before = IS_MISALIGNED.replace(true);
    let result = f();
    IS_MISALIGNED.set(before);
    result
}

/// Returns `true` if the current allocation is to fail.
fn fails() -> bool {
    let left = LEFT.try_with(|left| left.replace(left.get().and_then(|left| left.checked_sub(1)))).unwrap_or(None);
    left == Some(0)
}

/// Makes an allocation on this thread fail, after `allocations` successful ones. Most callers abort the process then,
/// because an allocator must not panic. So use it in child processes that may abort, or where failures unwind.
pub(crate) fn fail_after(allocations: usize) {
    LEFT.set(Some(allocations));
}

/// Cancels [`fail_after`] if no allocation has failed yet.
pub(crate) fn fail_no_more() {
    LEFT.set(None);
}

/// Payload of the unwinding after a failed allocation.
#[cfg(alloc_error_hook)]
pub(crate) struct NoMemory;

/// Makes failed allocations unwind instead of aborting the process. The maps of the standard library still abort if
/// they are halfway through a change.
#[cfg(alloc_error_hook)]
pub(crate) fn unwind_where_allocations_fail() {
    std::alloc::set_alloc_error_hook(|_| std::panic::resume_unwind(Box::new(NoMemory)));
}

/// Runs `f` and makes one allocation fail after `allocations` successful ones. Failures must
/// [unwind](unwind_where_allocations_fail).
#[cfg(alloc_error_hook)]
pub(crate) fn failing_after<R>(allocations: usize, f: impl FnOnce() -> R) -> Result<R, NoMemory> {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    fail_after(allocations);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    fail_no_more();
    outcome.map_err(|payload| *payload.downcast().unwrap_or_else(|other| resume_unwind(other)))
}

// SAFETY: every call is passed on to the system's allocator, or fails, which any call may. Blocks of the system start
// at multiples of 16. So the address of a moved block tells the shift, which is less than the room added for it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        count(layout.size(), 0);
        let shift = shift_of(layout);
        // SAFETY: the caller's promises are passed on.
        let block = unsafe { System.alloc(system_layout(layout, shift)) };
        if block.is_null() { block } else { block.wrapping_add(shift) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        count(layout.size(), 0);
        let shift = shift_of(layout);
        // SAFETY: the caller's promises are passed on.
        let block = unsafe { System.alloc_zeroed(system_layout(layout, shift)) };
        if block.is_null() { block } else { block.wrapping_add(shift) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, layout.size());
        let shift = block.addr() % ALIGNMENT;
        // SAFETY: the caller's promises are passed on, for the block as the system gave it.
        unsafe { System.dealloc(block.wrapping_sub(shift), system_layout(layout, shift)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        // Both blocks exist while one is copied to the other.
        count(size, 0);
        count(0, layout.size());
        let shift = block.addr() % ALIGNMENT;
        let size = if shift == 0 { size } else { size + ALIGNMENT };
        // SAFETY: the caller's promises are passed on, for the block as the system gave it. Its contents move along.
        let block = unsafe { System.realloc(block.wrapping_sub(shift), system_layout(layout, shift), size) };
        if block.is_null() { block } else { block.wrapping_add(shift) }
    }
}

/// Allocations made by a piece of code on its thread.
pub(crate) struct Allocated {
    /// Number of requests for memory.
    pub(crate) calls: usize,
    /// Peak of the bytes in use, minus the bytes in use before.
    pub(crate) peak_bytes: usize,
    /// Bytes still in use, minus the bytes in use before. Negative if more was freed than allocated.
    pub(crate) kept_bytes: isize,
}

/// Runs `f` and counts what it allocates on this thread.
pub(crate) fn allocated_by<R>(f: impl FnOnce() -> R) -> (R, Allocated) {
    let before = COUNTS.get();
    COUNTS.set(Counts { peak: before.live, ..before });
    let result = f();
    let after = COUNTS.get();
    COUNTS.set(Counts { peak: after.peak.max(before.peak), ..after });
    let peak_bytes = usize::try_from(after.peak - before.live).unwrap_or(0);
    let kept_bytes = after.live - before.live;
    (result, Allocated { calls: after.calls - before.calls, peak_bytes, kept_bytes })
}

#[test]
fn it_counts() {
    let (kept, allocated) = allocated_by(|| {
        drop(vec![0_u8; 1000]);
        vec![0_u8; 300]
    });
    assert_eq!((kept.len(), allocated.calls, allocated.peak_bytes, allocated.kept_bytes), (300, 2, 1000, 300));
}

#[test]
fn it_aligns_no_better_than_it_has_to() {
    let mut numbers: Vec<u8> = misaligned(|| {
        let (eight, sixteen) = (Box::new(1_u64), Box::new(1_u128));
        assert_eq!((&raw const *eight).addr() % 16, 8);
        assert_eq!((&raw const *sixteen).addr() % 16, 0);
        (0..100).collect()
    });
    for len in [100, 5000, 1 << 20] {
        numbers.resize(len, 7);
        assert_eq!(numbers.as_ptr().addr() % 16, 1);
        assert!(numbers[..100].iter().copied().eq(0..100) && numbers[100..].iter().all(|&byte| byte == 7));
    }
    for (bytes, expected) in [(misaligned(|| vec![0_u8; 9]), 1), (vec![0_u8; 9], 0)] {
        assert_eq!(bytes.as_ptr().addr() % 16, expected);
    }
}
