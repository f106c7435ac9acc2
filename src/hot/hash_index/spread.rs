//! Spreading: where a hash lies in the directory.
//!
//! Random hashes would fill all subtables at the same time, and so split all of them at the same time. Spreading bends
//! the hashes a little: subtables at the lower end of the directory fill 1.9 times as fast as those at the upper end
//! (spiral storage: Martin 1979). So some are nearly full and some half full, at every size.

use crate::hot::hash::Hash;

/// How much the hashes are bent: a hash `x` in `0..1` lies at `x - BOW * x * (1 - x)`.
const BOW: f64 = 5.0 / 16.0;

/// Returns the position of a hash in the directory.
///
/// Positions are 1.45 times as dense as hashes at the lower end, and 0.76 times at the upper.
#[inline]
pub(super) fn spread(hash: Hash) -> u64 {
    let hash = hash.0;
    let bow = ((u128::from(hash) * u128::from(!hash)) >> 64) as u64;
    // `BOW`, as a sum of powers of two.
    hash - (bow >> 2) - (bow >> 4)
}

/// Returns the share of all hashes that lies below a position, both in `0..=1`. This is the inverse of [`spread`].
pub(super) fn share_below(position: f64) -> f64 {
    (((1.0 - BOW) * (1.0 - BOW) + 4.0 * BOW * position).sqrt() - (1.0 - BOW)) / (2.0 * BOW)
}
