//! [`Location`]: where a record lies.

/// The chunk and the unit that a record starts at, in 48 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(super) struct Location(u64);

impl Location {
    /// The bits that [`to_bits`](Self::to_bits) may have set.
    pub(super) const BITS: u32 = 48;

    /// The bits for the unit. A chunk has fewer units than they can count.
    pub(super) const UNIT_BITS: u32 = 18;

    /// The location of no record: a record takes several units, and this is the last unit of the last chunk.
    pub(super) const NONE: Self = Self((1 << Self::BITS) - 1);

    #[inline]
    pub(super) fn new(chunk: usize, unit: usize) -> Self {
        Self((chunk as u64) << Self::UNIT_BITS | unit as u64)
    }

    /// Returns the location that [`to_bits`](Self::to_bits) was called on.
    #[inline]
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline]
    pub(super) const fn to_bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) fn chunk(self) -> usize {
        (self.0 >> Self::UNIT_BITS) as usize
    }

    #[inline]
    pub(super) fn unit(self) -> usize {
        (self.0 & ((1 << Self::UNIT_BITS) - 1)) as usize
    }
}
