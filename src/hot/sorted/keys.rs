//! [`Keys`]: how the sorted index reads the keys that it does not hold, and [`Boundary`]: a position between keys.

use std::ops::Bound;

use crate::hot::entry_id::EntryId;

/// The keys of entries, by id.
pub(in super::super) trait Keys {
    /// Returns the key of the entry `id`.
    fn key(&self, id: EntryId) -> &[u8];

    /// Hints that the key of `id` is read soon.
    #[inline]
    fn prefetch(&self, id: EntryId) {
        let _ = id;
    }
}

/// A position between keys: right before `key`, or right after it. No entry need have that key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Boundary<'k> {
    pub(super) key: &'k [u8],
    pub(super) is_after: bool,
}

impl<'k> Boundary<'k> {
    /// Returns the position where a range with this lower bound begins; `None` if that is before all keys.
    pub(super) fn of_lower(bound: Bound<&'k [u8]>) -> Option<Self> {
        match bound {
            Bound::Included(key) => Some(Self { key, is_after: false }),
            Bound::Excluded(key) => Some(Self { key, is_after: true }),
            Bound::Unbounded => None,
        }
    }

    /// Returns the position where a range with this upper bound ends; `None` if that is after all keys.
    pub(super) fn of_upper(bound: Bound<&'k [u8]>) -> Option<Self> {
        match bound {
            Bound::Included(key) => Some(Self { key, is_after: true }),
            Bound::Excluded(key) => Some(Self { key, is_after: false }),
            Bound::Unbounded => None,
        }
    }
}
