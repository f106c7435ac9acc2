//! [`EntryId`]: the number of an entry.

/// The number of an entry: its slot in the entry table. Free to be used again once the entry is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(super) struct EntryId(u32);

impl EntryId {
    #[inline]
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }

    #[inline]
    pub(super) const fn get(self) -> u32 {
        self.0
    }

    #[inline]
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}
