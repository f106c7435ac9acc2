//! A switch that only exists in fuzzing builds (`--cfg fuzzing`).

use std::sync::atomic::Ordering;

use crate::image::format::CHECKSUMS_ARE_IGNORED;

/// Lets images with wrong checksums and fingerprints pass, or not, from now on.
pub fn ignore_checksums(ignored: bool) {
    CHECKSUMS_ARE_IGNORED.store(ignored, Ordering::Relaxed);
}
