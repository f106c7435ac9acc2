//! [`Hash`] and [`KeyHasher`]: hashes of keys, under random keys of each store's own.

use std::hash::{BuildHasher as _, Hasher as _};

use ahash::RandomState;

/// The hash of a key. Means nothing outside of the store that computed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(super) struct Hash(pub(super) u64);

/// Computes the hashes of a store's keys.
pub(super) struct KeyHasher(RandomState);

impl KeyHasher {
    /// Chooses random hash keys, so that nobody can prepare keys that collide.
    pub(super) fn new() -> Self {
        Self(RandomState::new())
    }

    /// Returns the hash of a key. The length is hashed as well; `Hash` for slices would add it a second time.
    #[inline]
    pub(super) fn hash(&self, key: &[u8]) -> Hash {
        let mut hasher = self.0.build_hasher();
        hasher.write(key);
        Hash(hasher.finish())
    }
}
