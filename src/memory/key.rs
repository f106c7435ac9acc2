//! [`Key`]: a key whose comparison compares numbers and rarely follows a pointer.
//!
//! # Design
//!
//! The first 15 bytes are stored in the map's nodes, padded with zeros to 15, in one big-endian number of 128 bits. The
//! last byte of the number is the key's length, which distinguishes `a` from `a\0`. For a longer key it is [`LONG`],
//! above every length.
//!
//! # Why
//!
//! A `BTreeMap` compares some forty keys for a lookup among a million entries. With a `Vec<u8>` for a key, each
//! comparison is a cache miss; with this layout it is two instructions on bytes in the node. A longer head makes nodes
//! larger and the lookup slower again (with 23 bytes, by an eighth).
//!
//! # Invariants
//!
//! 1. `long` is `Some` exactly for keys of more than 15 bytes, and then holds the whole key.
//! 2. `head` is the first 15 bytes of the key, padded with zeros, then its length or [`LONG`].
//! 3. Hence `Key`s compare like their bytes.

use std::cmp::Ordering;

use bytes::Bytes;

/// The number of bytes of a key that are stored in the map's nodes.
const INLINE: usize = 15;
/// The last byte of the head of a longer key.
const LONG: u8 = INLINE as u8 + 1;

/// A key, with its first bytes in place.
#[derive(Clone)]
pub(super) struct Key {
    head: [u8; INLINE + 1],
    long: Option<Box<Bytes>>,
}

impl Key {
    /// Copies a key.
    pub(super) fn new(key: &[u8]) -> Self {
        let mut head = [0; INLINE + 1];
        let (long, len) = match head.get_mut(..key.len()) {
            Some(head) if key.len() <= INLINE => {
                head.copy_from_slice(key);
                (None, key.len() as u8)
            }
            _ => {
                head[..INLINE].copy_from_slice(&key[..INLINE]);
                (Some(Box::new(Bytes::copy_from_slice(key))), LONG)
            }
        };
        head[INLINE] = len;
        Self { head, long }
    }

    /// Returns the bytes of the key.
    pub(super) fn as_slice(&self) -> &[u8] {
        match &self.long {
            Some(key) => key,
            None => &self.head[..usize::from(self.head[INLINE])],
        }
    }

    /// Returns the memory of a long key outside of the map's nodes, in bytes.
    pub(super) fn outside_bytes(&self) -> usize {
        self.long.as_ref().map_or(0, |key| size_of::<Bytes>() + key.len())
    }

    /// Returns the handle of a long key, which is stored outside of the map's nodes.
    pub(super) fn handle(&self) -> Option<&Bytes> {
        self.long.as_deref()
    }
}

impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let (head, other_head) = (u128::from_be_bytes(self.head), u128::from_be_bytes(other.head));
        // With equal heads, either both keys are long or both are complete.
        head.cmp(&other_head).then_with(|| self.long.cmp(&other.long))
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_their_bytes_do() {
        let mut keys: Vec<Vec<u8>> = vec![vec![]];
        for byte in [0, 1, 0x7F, 0x80, 0xFF] {
            for len in [1, 2, INLINE - 1, INLINE, INLINE + 1, INLINE + 2, 40] {
                keys.push(vec![byte; len]);
                for last in [0, 1, 0xFE] {
                    let mut key = vec![byte; len];
                    key[len - 1] = last;
                    keys.push(key);
                }
            }
        }
        for a in &keys {
            assert_eq!(Key::new(a).as_slice(), &a[..]);
            for b in &keys {
                assert_eq!(Key::new(a).cmp(&Key::new(b)), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }
}
