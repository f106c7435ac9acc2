//! [`DirectoryEntry`]: what a search reads of the directory.

#![allow(unsafe_code, reason = "a pointer is sent to other threads")]

use std::ptr::NonNull;

use super::bucket::Bucket;

/// A pointer to the first bucket of a subtable, with the subtable's `base` in its low bits.
///
/// The low bits of a bucket's address are zero, because buckets are aligned to cache lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectoryEntry(NonNull<u8>);

// SAFETY: the buckets belong to the index that the entry is a part of (invariant 8 of `hash_index.rs`).
unsafe impl Send for DirectoryEntry {}

impl DirectoryEntry {
    pub(super) fn new(buckets: NonNull<Bucket>, base: u32) -> Self {
        assert!((base as usize) < align_of::<Bucket>());
        Self(buckets.cast::<u8>().map_addr(|address| address | base as usize))
    }

    /// Returns how many bits of a hash come before its tag.
    #[inline]
    pub(super) fn base(self) -> u32 {
        (self.0.addr().get() % align_of::<Bucket>()) as u32
    }

    /// Returns the address of the first bucket.
    #[inline]
    pub(super) fn buckets(self) -> *mut Bucket {
        self.0.as_ptr().wrapping_sub(self.base() as usize).cast()
    }
}
