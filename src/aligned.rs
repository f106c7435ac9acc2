//! The alignment of values that are returned as [`Bytes`].
//!
//! Stream engines scan and then read values in place, with `rkyv::access` on the `Bytes`. That fails for a value at the
//! wrong address. So every value that leaves this crate as `Bytes` starts at a multiple of [`VALUE_ALIGNMENT`].
//!
//! # Why
//!
//! No common container guarantees the alignment: `Box<[u8]>` and `Vec<u8>` guarantee 1, `Arc<[u8]>` 8. But nearly every
//! allocator aligns blocks of 16 bytes and more to 16, and many align all blocks. So a plain copy is made first and its
//! address checked. Only if that fails, the value is copied once more into a buffer that requests the alignment. That
//! costs 1 to 4 ns more than a plain copy. An aligned array that owns itself ([`Bytes::from_owner`] with ten size
//! classes) took 1.4 to 2.2 times as long.

use bytes::Bytes;
use rkyv::util::AlignedVec;

/// The alignment in memory of every non-empty value that is returned as [`Bytes`].
pub const VALUE_ALIGNMENT: usize = AlignedVec::<16>::ALIGNMENT;

/// Returns `true` if `bytes` can be returned as a value in place.
#[inline]
pub(crate) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr() % VALUE_ALIGNMENT == 0 || bytes.is_empty()
}

/// Returns `value` itself if it is aligned, or an aligned copy.
#[inline]
pub(crate) fn aligned(value: Bytes) -> Bytes {
    if is_aligned(&value) {
        return value;
    }
    let copy = copy_again(&value);
    // Dropped only now, because its destructor may panic. In that case the copy is dropped too.
    drop(value);
    copy
}

/// Returns an aligned copy of `value`.
#[inline]
pub(crate) fn aligned_copy(value: &[u8]) -> Bytes {
    let copy = Box::<[u8]>::from(value);
    // The address is checked before the copy becomes a handle, which then need not check whether the address is even.
    if copy.as_ptr().addr() % VALUE_ALIGNMENT == 0 { Bytes::from(copy) } else { copy_again(value) }
}

/// Returns a copy in a buffer that requests the alignment.
#[cold]
#[inline(never)]
fn copy_again(value: &[u8]) -> Bytes {
    /// A short value that owns itself, with one allocation instead of two.
    #[repr(align(16))]
    struct Short([u8; 16], usize);

    impl AsRef<[u8]> for Short {
        fn as_ref(&self) -> &[u8] {
            &self.0[..self.1]
        }
    }

    if value.is_empty() {
        return Bytes::new();
    }
    let mut short = [0; 16];
    if let Some(start) = short.get_mut(..value.len()) {
        start.copy_from_slice(value);
        return Bytes::from_owner(Short(short, value.len()));
    }
    let mut copy: AlignedVec = AlignedVec::with_capacity(value.len());
    copy.extend_from_slice(value);
    Bytes::from_owner(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_wherever_they_come_from() {
        let bytes = Bytes::from(vec![7; 100]);
        for start in 0..32 {
            for len in [0, 1, 7, 8, 15, 16, 17, 60] {
                let slice = bytes.slice(start..start + len);
                for value in [aligned(slice.clone()), aligned_copy(&slice), copy_again(&slice)] {
                    assert!(is_aligned(&value), "{start} {len}");
                    assert_eq!(value, slice);
                }
            }
        }
    }

    #[test]
    fn an_aligned_value_is_not_copied() {
        let value = copy_again(&[7; 40]);
        assert_eq!(aligned(value.clone()).as_ptr(), value.as_ptr());
    }
}
