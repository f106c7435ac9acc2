//! [`Fingerprint`]: 128 bits that identify the contents of a snapshot.
//!
//! # Design
//!
//! The fingerprint is the sum, modulo 2^128, of one hash for each entry: XXH3-128 with seed 0 over the key's length as
//! four little-endian bytes, the key and the value.
//!
//! # Why
//!
//! A sum does not depend on the order of entries or on how they are cut into segments, so it is equal for every store
//! and layout. It can follow changes: subtracting the old entry's hash and adding the new one's costs time for the
//! changes only. A hash over the bytes of an image would cost time for all of it.
//!
//! Fingerprints detect accidents, not forgery: one can make entries with any given sum.

use std::fmt;

use twox_hash::XxHash3_128;
use twox_hash::xxhash3_128::Hasher;

/// A value of 128 bits that is equal for equal contents and, except by chance, different for different contents.
///
/// It does not depend on the store, on the order of writes or on the layout of an image, and stays the same in all
/// versions of this crate. It is no defence against an attacker who wants two contents to have equal fingerprints.
///
/// ```
/// use opstate::StateSnapshot;
///
/// let a = StateSnapshot::from_iter([("x", "1"), ("y", "2")]);
/// let b = StateSnapshot::from_iter([("y", "2"), ("x", "1")]);
/// assert_eq!(a.fingerprint(), b.fingerprint());
/// assert_eq!(a.fingerprint().to_string(), "2351599fbf77ce64477c92f7bd04b86b");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// The fingerprint of no entries.
    pub const EMPTY: Self = Self(0);

    /// Returns the fingerprint as bytes, the lowest byte first.
    pub const fn to_le_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Returns the fingerprint with these bytes, the lowest byte first.
    pub const fn from_le_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// Returns the lower and the upper 64 bits.
    pub(crate) const fn halves(self) -> (u64, u64) {
        (self.0 as u64, (self.0 >> 64) as u64)
    }

    /// Adds an entry.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(hash_entry(key, value));
    }

    /// Returns the fingerprint of the entries of both. They must not have keys in common.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// Returns the fingerprint without the entries of `other`, which must all be included.
    pub(crate) const fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Returns the hash of one entry.
fn hash_entry(key: &[u8], value: &[u8]) -> u128 {
    // Most entries are short, and the streaming hasher costs several times the hash of a short input.
    let mut joined = [0; 240];
    let key_len = u32::try_from(key.len()).expect("keys are within their limit").to_le_bytes();
    let len = key_len.len() + key.len() + value.len();
    if let Some(joined) = joined.get_mut(..len) {
        joined[..4].copy_from_slice(&key_len);
        joined[4..4 + key.len()].copy_from_slice(key);
        joined[4 + key.len()..].copy_from_slice(value);
        return XxHash3_128::oneshot(joined);
    }
    let mut hasher = Hasher::new();
    for part in [&key_len, key, value] {
        hasher.write(part);
    }
    hasher.finish_128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_entries_hash_alike() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for key_len in [0, 1, 7, 200, 236, 237, 300] {
            for value_len in [0, 1, 35, 36, 37, 228, 229, 230, 600] {
                let (key, value) = (&bytes[..key_len], &bytes[..value_len]);
                let joined = [&(key_len as u32).to_le_bytes()[..], key, value].concat();
                assert_eq!(hash_entry(key, value), XxHash3_128::oneshot(&joined), "{key_len} {value_len}");
            }
        }
    }

    #[test]
    fn key_and_value_are_told_apart() {
        assert_ne!(hash_entry(b"ab", b"c"), hash_entry(b"a", b"bc"));
    }
}
