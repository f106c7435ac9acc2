//! Checks the invariants that `hash_index.rs` states. A failure names the one that does not hold.

use std::collections::BTreeSet;

use super::bucket::SLOTS;
use super::subtable::{DISPLACEMENT, LOAD_LIMIT, WINDOW, entries};
use super::{HashIndex, TAG_SPLITS};
use crate::hot::hash::Hash;
use crate::hot::location::Location;

impl<const BUCKETS: usize> HashIndex<BUCKETS> {
    /// Panics unless the invariants hold.
    pub(in super::super) fn validate(&self, mut hash_of: impl FnMut(Location) -> Hash) {
        self.subtables.validate();
        let mask = self.subtables.bucket_mask();
        if !self.directory.is_empty() {
            assert!(self.directory.len() >= 2 && self.directory.len() == 1 << (64 - self.shift), "1");
            assert_eq!(self.numbers.len(), self.directory.len(), "1");
        }
        assert!(mask + 1 == BUCKETS || self.subtables.len() <= 1, "6");
        let mut named = BTreeSet::new();
        let mut len = self.spilled.len();
        let (mut first, mut deepest) = (0, 0);
        while first < self.directory.len() {
            let entry = self.directory[first];
            let (number, base) = (self.numbers[first] as usize, entry.base());
            assert_eq!(entry.buckets(), self.subtables.start(number).as_ptr(), "8");
            let subtable = self.subtables.get(number);
            let depth = u32::from(subtable.depth);
            assert!(base <= depth && depth <= base + TAG_SPLITS, "1: base {base}, depth {depth}");
            let run = 1 << (64 - self.shift - depth);
            assert!(first % run == 0, "1");
            assert_eq!(self.run(subtable), first..first + run, "1");
            assert!(subtable.prefix.trailing_zeros() >= u32::BITS - depth, "1");
            deepest += usize::from(run == 1);
            assert!(self.directory[first..first + run].iter().all(|&other| other == entry), "1");
            assert!(self.numbers[first..first + run].iter().all(|&other| other as usize == number), "1");
            assert!(named.insert(number), "1");
            let buckets = self.subtables.buckets(number);
            for bucket in buckets {
                assert!((bucket.count()..SLOTS).all(|slot| bucket.tag(slot) == 0), "4");
            }
            for (bucket, tag, location) in entries(buckets) {
                let probe = self.probe(hash_of(location)).unwrap();
                assert_eq!((self.numbers[probe.at] as usize, probe.tag), (number, tag & !DISPLACEMENT), "2");
                let displacement = usize::from(tag & DISPLACEMENT) - 1;
                assert_eq!((probe.home + displacement) & mask, bucket, "2");
                assert!(displacement < WINDOW.min(mask + 1), "2");
                assert!((0..displacement).all(|before| buckets[(probe.home + before) & mask].is_full()), "3");
            }
            let count = entries(buckets).count();
            assert!(count == usize::from(subtable.len) && count <= LOAD_LIMIT * (mask + 1), "5");
            len += count;
            first += run;
        }
        assert_eq!(named.len(), self.subtables.len(), "1");
        assert_eq!(deepest, self.deepest, "9");
        assert_eq!(len, self.len, "5");
        assert!(self.spilled.iter().all(|&(hash, location)| hash_of(location) == hash), "7");
    }
}
