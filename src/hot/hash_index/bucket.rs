//! A bucket: one cache line of eight slots, each with a tag and a location.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    __m128i, _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16, _mm_setzero_si128,
};

pub(super) const SLOTS: usize = 8;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// 0 in slots that are empty, which come after all others.
    tags: [u16; SLOTS],
    low: [u32; SLOTS],
    high: [u16; SLOTS],
}

/// A set of slots: bit `slot` for each.
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

    /// The slots that have this tag and displacement.
    #[inline]
    pub(super) fn matching(&self, tag: u16) -> Matches {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "the intrinsics are declared unsafe, for processors that lack them")]
        // SAFETY: SSE2 is part of the target, and an array of eight 16-bit numbers is as large as a vector of them.
        return unsafe {
            let tags: __m128i = std::mem::transmute(self.tags);
            let equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16(tag as i16));
            // From 16 bits of ones a slot to one.
            Matches(_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u32)
        };
        #[cfg(not(target_arch = "x86_64"))]
        Matches((0..SLOTS).fold(0, |slots, slot| slots | u32::from(self.tags[slot] == tag) << slot))
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.tags[SLOTS - 1] != 0
    }

    #[inline]
    pub(super) fn count(&self) -> usize {
        SLOTS - self.matching(0).0.count_ones() as usize
    }

    #[inline]
    pub(super) fn tag(&self, slot: usize) -> u16 {
        self.tags[slot]
    }

    #[inline]
    pub(super) fn location(&self, slot: usize) -> u64 {
        u64::from(self.low[slot]) | u64::from(self.high[slot]) << 32
    }

    #[inline]
    pub(super) fn set_location(&mut self, slot: usize, location: u64) {
        self.low[slot] = location as u32;
        self.high[slot] = (location >> 32) as u16;
    }

    /// The bucket must not be full.
    #[inline]
    pub(super) fn push(&mut self, tag: u16, location: u64) {
        let slot = self.count();
        self.tags[slot] = tag;
        self.set_location(slot, location);
    }

    pub(super) fn remove(&mut self, slot: usize) {
        let last = self.count() - 1;
        self.tags[slot] = self.tags[last];
        self.set_location(slot, self.location(last));
        self.tags[last] = 0;
    }
}
