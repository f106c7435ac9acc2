//! A bucket: one cache line of eight slots, each with a tag and a location.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    __m128i, _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16, _mm_setzero_si128,
};

use crate::hot::location::Location;

pub(super) const SLOTS: usize = 8;

/// Eight slots in one cache line. Each has a tag of 16 bits and a location of 48.
///
/// Zeros are an empty bucket.
#[derive(Clone, Copy)]
#[cfg_attr(test, derive(Debug, PartialEq))]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// 0 in empty slots, which come after all others.
    tags: [u16; SLOTS],
    /// The low 32 bits of each location.
    low: [u32; SLOTS],
    /// The high 16 bits of each location.
    high: [u16; SLOTS],
}

/// A set of slots, as a bit mask. Iterates over their numbers.
#[derive(Clone, Copy)]
pub(super) struct Matches(u32);

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let slot = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(slot as usize)
    }
}

impl Bucket {
    pub(super) const EMPTY: Self = Self { tags: [0; SLOTS], low: [0; SLOTS], high: [0; SLOTS] };

    /// Returns the slots with this tag and displacement.
    #[inline]
    pub(super) fn matching(&self, tag: u16) -> Matches {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "the intrinsics are declared unsafe, for processors that lack them")]
        // SAFETY: SSE2 is part of the target, and an array of eight 16-bit numbers is as large as a vector of them.
        return unsafe {
            let tags: __m128i = std::mem::transmute(self.tags);
            let equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16(tag as i16));
            // Packs the 16 equal bits of each slot to one bit.
            Matches(_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u32)
        };
        #[cfg(not(target_arch = "x86_64"))]
        Matches((0..SLOTS).fold(0, |slots, slot| slots | u32::from(self.tags[slot] == tag) << slot))
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.tags[SLOTS - 1] != 0
    }

    /// Returns the number of occupied slots.
    #[inline]
    pub(super) fn count(&self) -> usize {
        SLOTS - self.matching(0).0.count_ones() as usize
    }

    #[inline]
    pub(super) fn tag(&self, slot: usize) -> u16 {
        self.tags[slot]
    }

    pub(super) fn set_tag(&mut self, slot: usize, tag: u16) {
        self.tags[slot] = tag;
    }

    #[inline]
    pub(super) fn location(&self, slot: usize) -> Location {
        Location::from_bits(u64::from(self.low[slot]) | u64::from(self.high[slot]) << 32)
    }

    #[inline]
    pub(super) fn set_location(&mut self, slot: usize, location: Location) {
        let bits = location.to_bits();
        self.low[slot] = bits as u32;
        self.high[slot] = (bits >> 32) as u16;
    }

    /// Adds an entry. The bucket must not be full.
    #[inline]
    pub(super) fn push(&mut self, tag: u16, location: Location) {
        let slot = self.count();
        self.tags[slot] = tag;
        self.set_location(slot, location);
    }

    /// Removes an entry. The last one takes its slot.
    pub(super) fn remove(&mut self, slot: usize) {
        let last = self.count() - 1;
        self.tags[slot] = self.tags[last];
        self.set_location(slot, self.location(last));
        self.tags[last] = 0;
    }
}
