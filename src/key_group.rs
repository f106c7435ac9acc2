//! [`KeyGroups`]: the key group that a key belongs to, and the worker that has the group.
//!
//! # Design
//!
//! There are two levels. A key belongs to one of a fixed number of *key groups*, forever:
//!
//! ```text
//!   hash  = XXH3-64, seed 0, of the part of the key that the user chose
//!   group = floor(hash * groups / 2^64)
//! ```
//!
//! A worker has a contiguous range of groups. The range depends only on the number of workers:
//!
//! ```text
//!   worker = floor(group * workers / groups)
//! ```
//!
//! # Why
//!
//! If keys were assigned to workers directly, a change in the number of workers would move nearly every key and split
//! every image. With groups, whole groups move, and an image is cut where it was cut before.
//!
//! The product takes the upper bits of the hash instead of its remainder. That costs a multiplication instead of a
//! division, and makes groups contiguous in the order of hashes. The groups of a split into 2 n are the halves of those
//! of a split into n, so an image of 128 groups could still be read as one of 64. (The remainder has this property for
//! lower bits, which is no better.)
//!
//! # Fixed forever
//!
//! Images hold groups by number, so neither formula can ever change. These vectors are part of the interface:
//!
//! | part | XXH3-64 | of 128 | of 1,000 | of 32,768 |
//! |---|---|---|---|---|
//! | (empty) | `2d06800538d394c2` | 22 | 175 | 5763 |
//! | `a` | `e6c632b61e964e1f` | 115 | 901 | 29539 |
//! | one zero byte | `c44bdff4074eecdb` | 98 | 766 | 25125 |
//! | `key` | `bbea0d63a05165e3` | 93 | 734 | 24053 |
//! | `user-7` | `b1de7a364def053e` | 88 | 694 | 22767 |
//! | `flights/DTW` | `af7a02e4a16e4894` | 87 | 685 | 22461 |
//! | 32 bytes `FF` | `36f6a79eeaf603f2` | 27 | 214 | 7035 |
//! | 300 bytes `07` | `8aec4a5414dad453` | 69 | 542 | 17782 |

use std::ops::Range;

use twox_hash::XxHash3_64;

use crate::error::StateError;

/// A fixed number of key groups. Groups are the units in which state moves when the number of workers changes.
///
/// A key belongs to the group `floor(h * n / 2^64)` of `n`. Here `h` is the XXH3-64 hash, with seed 0, of the part of
/// the key that you chose to select groups by. The part may be the whole key, or the join key in front of a time. Of
/// `w` workers, worker `floor(g * w / n)` has group `g`. Every worker has a contiguous range of groups, and their sizes
/// differ by at most one. Both formulas will never change.
///
/// Choose the number once, at least the largest number of workers there may ever be. State written with one number can
/// only be cut by another one by reading every entry. 128 is enough for most.
///
/// ```
/// use opstate::KeyGroups;
///
/// # fn main() -> Result<(), opstate::StateError> {
/// let groups = KeyGroups::new(128)?;
/// // Fixed forever; XXH3-64 of these is 2d06800538d394c2, b1de7a364def053e and af7a02e4a16e4894.
/// let parts: [&[u8]; 3] = [b"", b"user-7", b"flights/DTW"];
/// assert_eq!(parts.map(|part| groups.group_of(part)), [22, 88, 87]);
/// // Three workers have 43, 43 and 42 groups.
/// assert_eq!((0..3).map(|worker| groups.groups_of(worker, 3)).collect::<Vec<_>>(), [0..43, 43..86, 86..128]);
/// assert_eq!(groups.worker_of(43, 3), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyGroups {
    /// From 1 to `MAX`.
    count: u32,
}

impl KeyGroups {
    /// The largest number of groups.
    pub const MAX: u32 = 32_768;

    /// Creates a number of key groups, from 1 to [`MAX`](Self::MAX).
    ///
    /// # Errors
    ///
    /// [`StateError::InvalidKeyGroupCount`].
    pub const fn new(count: u32) -> Result<Self, StateError> {
        match count {
            1..=Self::MAX => Ok(Self { count }),
            found => Err(StateError::InvalidKeyGroupCount { found, max: Self::MAX }),
        }
    }

    /// Returns the number of groups.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Returns the group of a key, given the part of the key that selects its group. O(length of the part).
    pub fn group_of(self, part: &[u8]) -> u32 {
        // Less than `count`, as a hash is less than 2^64.
        ((u128::from(XxHash3_64::oneshot(part)) * u128::from(self.count)) >> 64) as u32
    }

    /// Returns the worker, out of `workers`, that has a group.
    ///
    /// A group that does not exist counts as the last one, and no workers count as one.
    pub fn worker_of(self, group: u32, workers: u32) -> u32 {
        let group = group.min(self.count - 1);
        (u64::from(group) * u64::from(workers.max(1)) / u64::from(self.count)) as u32
    }

    /// Returns the groups of a worker, out of `workers`.
    ///
    /// The range is empty for a worker beyond the last, and for some workers if there are more workers than groups.
    pub fn groups_of(self, worker: u32, workers: u32) -> Range<u32> {
        let workers = workers.max(1);
        // Returns the first group that `worker_of` assigns to this worker or a later one.
        let first =
            |worker: u32| (u64::from(worker.min(workers)) * u64::from(self.count)).div_ceil(u64::from(workers)) as u32;
        first(worker)..first(worker.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part, its hash, and its groups of 128, 1,000 and 32,768: never to be changed.
    const VECTORS: [(&[u8], u64, [u32; 3]); 8] = [
        (b"", 0x2d06_8005_38d3_94c2, [22, 175, 5763]),
        (b"a", 0xe6c6_32b6_1e96_4e1f, [115, 901, 29539]),
        (b"\0", 0xc44b_dff4_074e_ecdb, [98, 766, 25125]),
        (b"key", 0xbbea_0d63_a051_65e3, [93, 734, 24053]),
        (b"user-7", 0xb1de_7a36_4def_053e, [88, 694, 22767]),
        (b"flights/DTW", 0xaf7a_02e4_a16e_4894, [87, 685, 22461]),
        (&[0xFF; 32], 0x36f6_a79e_eaf6_03f2, [27, 214, 7035]),
        (&[0x07; 300], 0x8aec_4a54_14da_d453, [69, 542, 17782]),
    ];

    #[test]
    fn groups_are_those_published() {
        for (part, hash, groups) in VECTORS {
            assert_eq!(XxHash3_64::oneshot(part), hash, "{}", part.escape_ascii());
            let found = [128, 1000, 32_768].map(|count| KeyGroups::new(count).unwrap().group_of(part));
            assert_eq!(found, groups, "{}", part.escape_ascii());
            assert_eq!(KeyGroups::new(1).unwrap().group_of(part), 0);
        }
    }

    #[test]
    fn every_group_has_one_worker() {
        for count in [1, 2, 3, 7, 64, 100, 128, 1000, 32_768] {
            let groups = KeyGroups::new(count).unwrap();
            for workers in [1, 2, 3, 5, 7, 64, 127, 128, 129, 1000, 40_000, u32::MAX] {
                let mut next = 0;
                for worker in (0..workers.min(70_000)).chain([workers - 1]) {
                    let range = groups.groups_of(worker, workers);
                    assert!(worker == workers - 1 || range.start == next, "{worker} of {workers}, {count} groups");
                    next = range.end;
                    assert!(range.len() as u32 <= count.div_ceil(workers));
                    assert!(range.clone().all(|group| groups.worker_of(group, workers) == worker));
                }
                assert_eq!(next, count);
                assert!(groups.groups_of(workers, workers).is_empty());
            }
        }
    }

    #[test]
    fn what_does_not_exist_counts_as_the_nearest() {
        let groups = KeyGroups::new(128).unwrap();
        assert_eq!([127, 128, u32::MAX].map(|group| groups.worker_of(group, 3)), [2; 3]);
        assert_eq!((groups.worker_of(127, 0), groups.groups_of(0, 0)), (0, 0..128));
        assert!(groups.groups_of(u32::MAX, 3).is_empty());
    }

    #[test]
    fn twice_as_many_groups_are_halves() {
        for i in 0..10_000_u32 {
            let part = i.to_le_bytes();
            let [few, many] = [64, 128].map(|count| KeyGroups::new(count).unwrap().group_of(&part));
            assert_eq!(few, many / 2);
        }
    }

    #[test]
    fn groups_are_of_like_size() {
        let groups = KeyGroups::new(128).unwrap();
        let mut sizes = [0; 128];
        for i in 0..128_000_u32 {
            sizes[groups.group_of(format!("key/{i}").as_bytes()) as usize] += 1;
        }
        // Six standard deviations.
        assert!(sizes.iter().all(|size| (800..1200).contains(size)), "{sizes:?}");
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for count in [0, 32_769, u32::MAX] {
            let error = KeyGroups::new(count).unwrap_err();
            assert!(
                matches!(error, StateError::InvalidKeyGroupCount { found, max: 32_768 } if found == count),
                "{error}"
            );
        }
    }
}
