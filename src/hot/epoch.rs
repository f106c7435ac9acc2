//! [`Epoch`]: a point in a store's time.

/// The number of snapshots taken before something was made, plus one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(super) struct Epoch(u64);

impl Epoch {
    /// Before everything. Nothing is made in this epoch.
    pub(super) const NONE: Self = Self(0);
    /// A new store's epoch.
    pub(super) const FIRST: Self = Self(1);
    /// After everything.
    pub(super) const MAX: Self = Self(u64::MAX);

    #[inline]
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline]
    pub(super) const fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the epoch after this one.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
