//! Memory: what the program holds from its allocator, and what is resident of it.

#![allow(unsafe_code, reason = "an allocator that counts is an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[global_allocator]
static ALLOCATOR: Counting = Counting { is_on: AtomicBool::new(false), bytes: AtomicUsize::new(0) };

/// Counts from now on.
pub(crate) fn start_counting() {
    ALLOCATOR.is_on.store(true, Ordering::Relaxed);
}

/// The bytes that are given out, up to a constant. Wraps below zero.
pub(crate) fn allocated_bytes() -> usize {
    ALLOCATOR.bytes.load(Ordering::Relaxed)
}

/// The system's allocator, with a count of the bytes it has given out.
struct Counting {
    /// Off where time is measured: counting would cost most where most is allocated.
    is_on: AtomicBool,
    bytes: AtomicUsize,
}

impl Counting {
    fn count(&self, given: usize, taken: usize) {
        if self.is_on.load(Ordering::Relaxed) {
            self.bytes.fetch_add(given.wrapping_sub(taken), Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        self.count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

/// The bytes of this process that are in memory, where the system tells.
pub(crate) fn resident_bytes() -> Option<usize> {
    // Pages are of 4 KiB wherever this file exists and is likely to be read by us.
    let pages: usize = fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
