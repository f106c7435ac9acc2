//! [`NewValue`] and [`ValueRef`]: a small value lies in its record, a large one is a handle of its own.

use std::mem;

use bytes::Bytes;

use crate::aligned::{aligned_copy, is_aligned};
use crate::handles::CowBytes;

/// The most bytes of a small value. `get` copies a small value and clones the handle of a large one.
const MAX_SMALL: usize = 512;

/// A value to be written. Its constructors alone decide whether it is small or large.
pub(super) enum NewValue<'a> {
    /// Bytes to be copied into the record.
    Small(&'a [u8]),
    /// Bytes to be copied into a handle.
    LargeBorrowed(&'a [u8]),
    /// An aligned buffer to be kept, without spare capacity.
    LargeOwned(Bytes),
}

impl<'a> NewValue<'a> {
    #[inline]
    pub(super) fn borrowed(value: &'a [u8]) -> Self {
        if value.len() <= MAX_SMALL { Self::Small(value) } else { Self::LargeBorrowed(value) }
    }

    /// Takes the buffer of a large value if nobody else has a handle to it, and borrows any other value.
    ///
    /// # Panics
    ///
    /// If the destructor of the handle's owner panics. (A buffer that is no vector's is copied, and its owner dropped.)
    pub(super) fn taken(value: &'a mut Bytes) -> Self {
        if value.len() > MAX_SMALL && value.is_unique() {
            // A slice of a larger buffer is moved to its start, and the rest of the buffer given back.
            let buffer = Vec::from(mem::take(value)).into_boxed_slice();
            if is_aligned(&buffer) {
                return Self::LargeOwned(Bytes::from(buffer));
            }
            *value = Bytes::from(buffer);
        }
        Self::borrowed(value)
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Small(value) | Self::LargeBorrowed(value) => value.len(),
            Self::LargeOwned(value) => value.len(),
        }
    }

    /// Returns the value's length if it is large, else 0.
    #[inline]
    pub(super) fn large_len(&self) -> usize {
        match self {
            Self::Small(_) => 0,
            Self::LargeBorrowed(_) | Self::LargeOwned(_) => self.len(),
        }
    }

    /// Returns the value as an aligned handle.
    #[inline(never)]
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Small(value) | Self::LargeBorrowed(value) => aligned_copy(value),
            Self::LargeOwned(value) => value,
        }
    }
}

/// A value as it lies in the store.
#[derive(Clone, Copy)]
pub(super) enum ValueRef<'a> {
    Small(&'a [u8]),
    Large(&'a Bytes),
}

impl<'a> ValueRef<'a> {
    #[inline]
    pub(super) fn as_slice(self) -> &'a [u8] {
        match self {
            Self::Small(value) => value,
            Self::Large(value) => value,
        }
    }

    /// Returns the value as an aligned handle.
    #[inline]
    pub(super) fn to_bytes(self) -> Bytes {
        match self {
            Self::Small(value) => aligned_copy(value),
            Self::Large(value) => value.clone(),
        }
    }

    /// Returns the value for a scan, which copies small values and clones handles.
    #[inline]
    pub(super) fn to_cow(self) -> CowBytes<'a> {
        match self {
            Self::Small(value) => CowBytes::Borrowed(value),
            Self::Large(value) => CowBytes::Lent(value),
        }
    }
}
