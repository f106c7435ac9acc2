//! An allocator that counts for each thread, to test what is promised of allocations, and fails when it is told to.

#![allow(unsafe_code, reason = "a global allocator is unsafe to implement; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { calls: 0, live: 0, peak: 0 }) };
    /// How many allocations succeed before one fails.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Counts {
    calls: usize,
    /// Allocated minus freed on this thread; what another thread allocated may be freed here.
    live: isize,
    peak: isize,
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(allocated: usize, freed: usize) {
    // While a thread ends there is nothing to count in.
    let _ = COUNTS.try_with(|counts| {
        let mut now = counts.get();
        now.calls += usize::from(allocated > 0);
        now.live += allocated as isize - freed as isize;
        now.peak = now.peak.max(now.live);
        counts.set(now);
    });
}

/// Whether it is this allocation that fails.
fn fails() -> bool {
    let left = LEFT.try_with(|left| left.replace(left.get().and_then(|left| left.checked_sub(1)))).unwrap_or(None);
    left == Some(0)
}

/// Makes the allocation on this thread that comes after so many others fail. An allocator must not panic, and most callers
/// abort the process when one fails: this is for processes that are started to be aborted, or where it unwinds.
pub(crate) fn fail_after(allocations: usize) {
    LEFT.set(Some(allocations));
}

/// Ends that, if none has failed yet.
pub(crate) fn fail_no_more() {
    LEFT.set(None);
}

/// What an allocation that fails unwinds with.
#[cfg(alloc_error_hook)]
pub(crate) struct NoMemory;

/// From now on who asks for memory that is not to be had unwinds, instead of aborting the process. Not all do: the maps of the
/// standard library abort nonetheless, where they are halfway through a change.
#[cfg(alloc_error_hook)]
pub(crate) fn unwind_where_allocations_fail() {
    std::alloc::set_alloc_error_hook(|_| std::panic::resume_unwind(Box::new(NoMemory)));
}

/// What `f` does while the allocation that comes after so many others fails, and [unwinds](unwind_where_allocations_fail).
#[cfg(alloc_error_hook)]
pub(crate) fn failing_after<R>(allocations: usize, f: impl FnOnce() -> R) -> Result<R, NoMemory> {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    fail_after(allocations);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    fail_no_more();
    outcome.map_err(|payload| *payload.downcast().unwrap_or_else(|other| resume_unwind(other)))
}

// SAFETY: every call is passed on to the system's allocator as it is, or fails, which any call may.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        // Both blocks are there while one is copied to the other.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// What a piece of code allocated on its thread.
pub(crate) struct Allocated {
    /// How often it asked for memory.
    pub(crate) calls: usize,
    /// The most that was in use at once, beyond what was in use before.
    pub(crate) peak_bytes: usize,
    /// What is still in use; negative if more of what was there before was freed.
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
