//! A subtable: the buckets of a small hash table, and how entries are inserted and removed.
//!
//! An entry that finds its home bucket full goes to one of the six buckets after it. Its slot holds the distance, the
//! entry's *displacement*.

use super::bucket::{Bucket, SLOTS};
use super::spread::spread;
use crate::hot::hash::Hash;
use crate::hot::location::Location;

/// The greatest number of entries in a subtable, for each of its buckets.
pub(super) const LOAD_LIMIT: usize = 7;
/// The number of buckets that an entry may lie in: its home bucket and those after it.
pub(super) const WINDOW: usize = 7;
/// The part of a slot's 16 bits that holds the displacement, plus one.
pub(super) const DISPLACEMENT: u16 = 0b111;

/// Returns the tag of a position: 13 bits that start `base` bits into it, above three zeros for the displacement.
#[inline]
pub(super) fn tag_of(position: u64, base: u32) -> u16 {
    (position << base >> 48) as u16 & !DISPLACEMENT
}

/// Inserts an entry into the first bucket of its window that has room. Returns `false` if all are full.
///
/// The number of buckets is a power of two.
#[inline]
pub(super) fn insert(buckets: &mut [Bucket], home: usize, tag: u16, location: Location) -> bool {
    let mask = buckets.len() - 1;
    for displacement in 0..WINDOW.min(buckets.len()) {
        let bucket = &mut buckets[(home + displacement) & mask];
        if !bucket.is_full() {
            bucket.push(tag | (displacement as u16 + 1), location);
            return true;
        }
    }
    false
}

/// Removes the entry in a slot. Entries that were displaced past its bucket are moved back, so there are no tombstones.
pub(super) fn remove(buckets: &mut [Bucket], bucket: usize, slot: usize) {
    let was_full = buckets[bucket].is_full();
    buckets[bucket].remove(slot);
    if was_full {
        fill_gap(buckets, bucket);
    }
}

/// Restores invariant 3 after the bucket `gap` was full and lost an entry.
fn fill_gap(buckets: &mut [Bucket], mut gap: usize) {
    let mask = buckets.len() - 1;
    let mut distance = 1;
    while distance < WINDOW.min(buckets.len()) {
        let from = (gap + distance) & mask;
        let was_full = buckets[from].is_full();
        let passed_gap = |&slot: &usize| usize::from(buckets[from].tag(slot) & DISPLACEMENT) > distance;
        if let Some(slot) = (0..SLOTS).find(passed_gap) {
            let (tag, location) = (buckets[from].tag(slot), buckets[from].location(slot));
            buckets[from].remove(slot);
            buckets[gap].push(tag - distance as u16, location);
            gap = from;
            distance = 0;
        }
        if !was_full {
            // No entry was displaced past this bucket, so none behind it was displaced past the gap.
            return;
        }
        distance += 1;
    }
}

/// Computes the tags of all entries anew, so that they start `base` bits into the positions.
///
/// Asks for one hash after the other and does not wait for any: the cache misses of the caller's records overlap.
pub(super) fn renew_tags(buckets: &mut [Bucket], base: u32, hash_of: &mut dyn FnMut(Location) -> Hash) {
    for bucket in buckets {
        for slot in 0..bucket.count() {
            let tag = tag_of(spread(hash_of(bucket.location(slot))), base);
            bucket.set_tag(slot, tag | bucket.tag(slot) & DISPLACEMENT);
        }
    }
}

/// Returns the home bucket of an entry that lies in `bucket`, one of `mask + 1`, with this tag and displacement.
#[inline]
pub(super) fn home_of(bucket: usize, tag: u16, mask: usize) -> usize {
    bucket.wrapping_sub(usize::from(tag & DISPLACEMENT) - 1) & mask
}

/// Returns the entries: the number of the bucket, the tag with the displacement, and the location.
pub(super) fn entries(buckets: &[Bucket]) -> impl Iterator<Item = (usize, u16, Location)> {
    buckets.iter().enumerate().flat_map(|(number, bucket)| {
        (0..bucket.count()).map(move |slot| (number, bucket.tag(slot), bucket.location(slot)))
    })
}
