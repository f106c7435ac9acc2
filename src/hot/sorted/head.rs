//! Key heads and common prefixes: how a node compares a key with many others at once.
//!
//! A *head* is four bytes of a key as a big-endian number, padded with zeros. Comparing heads compares keys, as far as
//! the heads differ.

use std::cmp::Ordering;

/// Four bytes of a key, as a big-endian number.
pub(super) type KeyHead = u32;

/// The head of an unused slot. It is the greatest head, so it is never counted as below another one.
pub(super) const UNUSED: KeyHead = KeyHead::MAX;

/// Returns the head of `key` that starts `prefix` bytes into it.
#[inline]
pub(super) fn key_head(key: &[u8], prefix: usize) -> KeyHead {
    let rest = key.get(prefix..).unwrap_or_default();
    let Some(bytes) = rest.first_chunk() else {
        let mut padded = [0; size_of::<KeyHead>()];
        padded[..rest.len()].copy_from_slice(rest);
        return KeyHead::from_be_bytes(padded);
    };
    KeyHead::from_be_bytes(*bytes)
}

/// Returns the number of heads below `head`.
///
/// Compares all of them, which vector instructions do faster than a binary search.
#[inline]
pub(super) fn count_below<const N: usize>(heads: &[KeyHead; N], head: KeyHead) -> usize {
    heads.iter().map(|&other| u32::from(other < head)).sum::<u32>() as usize
}

/// Returns the length of the longest common prefix of `a` and `b`.
pub(super) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    let words = a.chunks_exact(8).zip(b.chunks_exact(8));
    let same = 8 * words.take_while(|(a, b)| a == b).count();
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

/// Returns the shortest key that is above `left` and not above `right`.
pub(super) fn shortest_separator<'k>(left: &[u8], right: &'k [u8]) -> &'k [u8] {
    &right[..right.len().min(common_prefix_len(left, right) + 1)]
}

/// Converts the length of a common prefix to the type that nodes store, or to the greatest value if it does not fit.
///
/// A length that is too small is correct as well, and only makes searches slower.
pub(super) fn saturate(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Returns how many bytes to skip before the heads of a node whose keys share `shared` bytes.
///
/// Skips no more than `fence_prefix`, so that searches need not read a key, unless that wastes half of each head.
pub(super) fn best_prefix(shared: u16, fence_prefix: u16) -> u16 {
    if shared < fence_prefix.saturating_add(2) { fence_prefix.min(shared) } else { shared }
}

/// Compares `key` with a prefix of which `key` shares the first `known` bytes; `rest` are the bytes after those.
///
/// Returns `Equal` if `key` starts with the whole prefix.
#[inline]
pub(super) fn cmp_prefix(key: &[u8], rest: &[u8], known: u16) -> Ordering {
    let ours = key.get(known.into()..).unwrap_or_default();
    ours[..ours.len().min(rest.len())].cmp(rest)
}

/// Inserts `value` at `at` into the first `len` of the slots. There must be one more slot.
pub(super) fn insert_at<T: Copy>(slots: &mut [T], len: usize, at: usize, value: T) {
    slots.copy_within(at..len, at + 1);
    slots[at] = value;
}
