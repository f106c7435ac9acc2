//! Hints to the processor that memory is read soon.

/// Asks the processor to fetch the cache line of an address. It is a hint: any address will do.
#[inline]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[allow(
        unsafe_code,
        reason = "the intrinsic is declared unsafe, and does nothing with an address that is not mapped"
    )]
    // SAFETY: a prefetch neither reads nor faults; SSE is part of the target.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// Asks the processor to fetch all cache lines of `bytes` from `start` on.
#[inline]
pub(super) fn prefetch_all(start: *const u8, bytes: usize) {
    (0..bytes).step_by(64).for_each(|at| prefetch(start.wrapping_add(at)));
}
