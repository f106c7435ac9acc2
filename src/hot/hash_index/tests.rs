//! Tests of the hash index against a `HashMap`.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::tests::cases;
#[cfg(alloc_error_hook)]
use super::super::tests::counting;
use super::*;

/// A bijection that looks random (the finalizer of splitmix64).
fn scramble(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn location(n: u64) -> Location {
    Location::from_bits(n)
}

type Hashes = fn(u64) -> u64;
const HASHES: [(&str, Hashes); 8] = [
    ("random", scramble),
    ("all equal", |_| 0x0123_4567_89ab_cdef),
    ("all ones", |_| u64::MAX),
    ("sequential", |n| n),
    ("top bits equal", |n| scramble(n) >> 20),
    ("low bits equal", |n| scramble(n) << 20),
    ("few", |n| scramble(n % 5)),
    ("pairs", |n| scramble(n / 2)),
];

/// An index, beside a model of locations and their hashes.
struct Pair<const BUCKETS: usize> {
    index: HashIndex<BUCKETS>,
    model: HashMap<u64, u64>,
}

impl<const BUCKETS: usize> Pair<BUCKETS> {
    fn new(index: HashIndex<BUCKETS>) -> Self {
        Self { index, model: HashMap::new() }
    }

    fn insert(&mut self, hash: u64, n: u64) {
        let model = &self.model;
        self.index.insert(Hash(hash), location(n), |location| Hash(model[&location.to_bits()]));
        assert_eq!(self.model.insert(n, hash), None);
    }

    fn remove(&mut self, n: u64) {
        let hash = self.model.remove(&n).unwrap();
        let model = &self.model;
        self.index.remove(Hash(hash), location(n), |location| Hash(model[&location.to_bits()]));
    }

    fn replace(&mut self, old: u64, new: u64) {
        let hash = self.model.remove(&old).unwrap();
        self.index.replace(Hash(hash), location(old), location(new));
        assert_eq!(self.model.insert(new, hash), None);
    }

    fn validate(&self) {
        self.index.validate(|location| Hash(self.model[&location.to_bits()]));
    }

    fn check(&self) {
        self.validate();
        assert_eq!(self.index.len(), self.model.len());
        for (&n, &hash) in &self.model {
            let hash = Hash(hash);
            assert_eq!(self.index.find(hash, |other| other == location(n)), Some(location(n)));
            let candidate = self.index.first_candidate(hash);
            assert!(candidate.is_some_and(|candidate| self.model.contains_key(&candidate.to_bits())));
            assert_eq!(self.index.find(hash, |_| false), None);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64),
    Remove(prop::sample::Index),
    Replace(prop::sample::Index, u64),
    FindAbsent(u64),
    /// Inserts many locations, from this one on.
    InsertWave(u64, u64),
    /// Removes many locations.
    RemoveWave(prop::sample::Index, usize),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let location = || prop_oneof![8 => 0..1000_u64, 1 => (1_u64 << 48) - 9..1 << 48];
    let step = prop_oneof![
        60 => location().prop_map(Step::Insert),
        25 => any::<prop::sample::Index>().prop_map(Step::Remove),
        10 => (any::<prop::sample::Index>(), location()).prop_map(|(old, new)| Step::Replace(old, new)),
        10 => location().prop_map(Step::FindAbsent),
        2 => (0..1000_u64, 0..200_u64).prop_map(|(first, count)| Step::InsertWave(first, count)),
        3 => (any::<prop::sample::Index>(), 0..200_usize).prop_map(|(which, count)| Step::RemoveWave(which, count)),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 0..300)
}

fn run<const BUCKETS: usize>(hashes: Hashes, index: HashIndex<BUCKETS>, steps: &[Step]) {
    let mut pair = Pair::new(index);
    // A sorted copy of the keys, so that a step means the same in every run.
    let mut locations: Vec<u64> = Vec::new();
    for step in steps {
        match *step {
            Step::Insert(new) if !pair.model.contains_key(&new) => {
                pair.insert(hashes(new), new);
                locations.push(new);
            }
            Step::Remove(which) if !locations.is_empty() => {
                pair.remove(locations.swap_remove(which.index(locations.len())));
            }
            Step::Replace(which, new) if !locations.is_empty() && !pair.model.contains_key(&new) => {
                let old = which.get(&locations).to_owned();
                pair.replace(old, new);
                locations.retain(|&location| location != old);
                locations.push(new);
            }
            Step::FindAbsent(absent) if !pair.model.contains_key(&absent) => {
                assert_eq!(pair.index.find(Hash(hashes(absent)), |other| other == location(absent)), None);
            }
            Step::InsertWave(first, count) => {
                for new in first..first + count {
                    if !pair.model.contains_key(&new) {
                        pair.insert(hashes(new), new);
                        locations.push(new);
                    }
                }
            }
            Step::RemoveWave(which, count) => {
                for _ in 0..count.min(locations.len()) {
                    pair.remove(locations.swap_remove(which.index(locations.len())));
                    pair.validate();
                }
            }
            Step::Clear => {
                pair.index.clear();
                pair.model.clear();
                locations.clear();
                assert_eq!(pair.index.allocated_bytes(), 0);
            }
            _ => {}
        }
        pair.check();
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn does_what_a_map_does(steps in steps(), hashes in 0..HASHES.len(), capacity in 0..100_usize) {
        let (_, hashes) = HASHES[hashes];
        run::<1>(hashes, HashIndex::with_capacity(capacity), &steps);
        run::<1>(hashes, HashIndex::new(), &steps);
        run::<2>(hashes, HashIndex::new(), &steps);
        run::<8>(hashes, HashIndex::sized_for(capacity), &steps);
        run::<64>(hashes, HashIndex::new(), &steps);
    }
}

fn fill_and_empty<const BUCKETS: usize>(name: &str, hashes: Hashes, entries: u64) {
    let mut pair = Pair::new(HashIndex::<BUCKETS>::new());
    for n in 0..entries {
        pair.insert(hashes(n), n);
        if n.is_power_of_two() {
            pair.check();
        }
    }
    pair.check();
    let bytes = pair.index.allocated_bytes();
    assert!(bytes as u64 <= 256 + 300 * entries, "{name}, {BUCKETS} buckets: {bytes} bytes for {entries} entries");
    for n in 0..entries {
        pair.remove(n);
        if n.is_power_of_two() {
            pair.check();
        }
    }
    pair.check();
    assert_eq!(pair.index.len(), 0);
    assert!(pair.index.spilled.is_empty());
    assert_eq!((pair.index.subtables.len(), pair.index.directory.len()), (1, 2), "{name}");
    let bytes = pair.index.allocated_bytes();
    assert!(bytes < 500 + 64 * BUCKETS, "{name}, {BUCKETS} buckets: {bytes} bytes for none of {entries} entries");
}

#[test]
fn any_hashes_whatever_they_have_in_common() {
    for (name, hashes) in HASHES {
        fill_and_empty::<1>(name, hashes, 3_000);
        fill_and_empty::<4>(name, hashes, 3_000);
        fill_and_empty::<64>(name, hashes, 10_000);
    }
}

#[test]
fn random_hashes_spill_nothing_and_take_14_bytes() {
    let mut pair = Pair::new(HashIndex::<64>::new());
    let mut ratios = Vec::new();
    for n in 0..200_000 {
        pair.insert(scramble(n), n);
        if n % 1_000 == 999 && n > 20_000 {
            ratios.push(pair.index.allocated_bytes() as f64 / (n + 1) as f64);
        }
    }
    pair.check();
    assert!(pair.index.spilled.is_empty());
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    assert!(mean < 15.0, "{mean}");
    assert!(ratios.iter().all(|&ratio| ratio < 16.0), "{ratios:?}");
}

#[test]
fn the_tags_of_a_subtable_are_made_anew_every_fifth_split() {
    let mut index = HashIndex::<1>::new();
    let mut asked = 0;
    for n in 0..100_000 {
        index.insert(Hash(scramble(n)), location(n), |location| {
            asked += 1;
            Hash(scramble(location.to_bits()))
        });
    }
    // If tags lasted for one split only, this would be about two for each entry.
    assert!(asked < 70_000, "{asked}");
    index.validate(|location| Hash(scramble(location.to_bits())));
}

#[test]
fn sized_takes_what_it_was_sized_for() {
    for entries in [1, 7, 8, 100, 448, 449, 1_000, 30_000, 100_000] {
        let mut pair = Pair::new(HashIndex::<64>::with_capacity(entries));
        pair.check();
        let (bytes, subtables) = (pair.index.allocated_bytes(), pair.index.subtables.len());
        assert!(bytes < 200 + 18 * entries || entries < 2_000, "{bytes} bytes for {entries} entries");
        for n in 0..entries as u64 {
            pair.insert(scramble(n), n);
        }
        pair.check();
        assert!(
            pair.index.subtables.len() <= subtables + subtables / 20 + 1,
            "{subtables}, {}",
            pair.index.subtables.len()
        );
    }
}

#[test]
fn churn_takes_no_more_and_more_memory() {
    let entries = 5_000;
    let mut pair = Pair::new(HashIndex::<64>::new());
    for n in 0..entries {
        pair.insert(scramble(n), n);
    }
    let mut bytes = Vec::new();
    for round in 0..100 {
        for n in round * entries..(round + 1) * entries {
            pair.remove(n);
            pair.insert(scramble(n + entries), n + entries);
        }
        pair.check();
        bytes.push(pair.index.allocated_bytes());
    }
    assert!(bytes[99] <= 22 * entries as usize, "{bytes:?}");
    assert!(pair.index.spilled.is_empty());
}

fn hash_of(location: Location) -> Hash {
    Hash(scramble(location.to_bits()))
}

/// An index of the locations below a number, with random hashes.
fn filled(entries: u64) -> HashIndex {
    let mut index = HashIndex::new();
    (0..entries).for_each(|n| index.insert(hash_of(location(n)), location(n), hash_of));
    index
}

#[test]
fn removals_give_memory_back() {
    let entries = 1_000_000;
    let mut index = filled(entries);
    let remove = |index: &mut HashIndex, n| index.remove(hash_of(location(n)), location(n), hash_of);
    // One of a hundred stays.
    (0..entries).filter(|n| n % 100 > 0).for_each(|n| remove(&mut index, n));
    index.validate(hash_of);
    let bytes = index.allocated_bytes();
    assert!(bytes < 1_000 + 40 * index.len(), "{bytes} bytes for {} entries", index.len());
    // They come back.
    (0..entries).filter(|n| n % 100 > 0).for_each(|n| index.insert(hash_of(location(n)), location(n), hash_of));
    index.validate(hash_of);
    let bytes = index.allocated_bytes() as u64;
    assert!(bytes < 17 * entries, "{bytes} bytes");
    (0..entries).for_each(|n| remove(&mut index, n));
    index.validate(hash_of);
    assert!(index.allocated_bytes() < 5_000, "{} bytes", index.allocated_bytes());
}

#[test]
fn what_was_merged_is_not_split_before_many_entries_have_come() {
    let entries = 20_000;
    let mut index = filled(entries);
    for n in (100..=entries).rev().step_by(100) {
        let wave = n - 100..n;
        for _ in 0..2 {
            wave.clone().for_each(|n| index.remove(hash_of(location(n)), location(n), hash_of));
            let subtables = index.subtables.len();
            wave.clone().for_each(|n| index.insert(hash_of(location(n)), location(n), hash_of));
            assert_eq!(index.subtables.len(), subtables, "{n}");
        }
        wave.for_each(|n| index.remove(hash_of(location(n)), location(n), hash_of));
    }
    assert_eq!(index.subtables.len(), 1);
}

#[test]
fn the_tags_of_a_merged_subtable_last_for_two_other_merges() {
    let mut index = HashIndex::<8>::new();
    (0..100_000).for_each(|n| index.insert(hash_of(location(n)), location(n), hash_of));
    let mut asked = 0;
    for n in 0..100_000 {
        index.remove(hash_of(location(n)), location(n), |location| {
            asked += 1;
            hash_of(location)
        });
    }
    // If they lasted for one merge only, this would be 25,000.
    assert!(asked < 18_000, "{asked}");
}

/// Removes all entries in the order of their hashes. So the last ones lie beside many empty subtables.
#[test]
fn one_removal_merges_many_subtables_until_it_asks_for_hashes() {
    let mut index = HashIndex::<4>::new();
    let mut order: Vec<u64> = (0..100_000).collect();
    order.iter().for_each(|&n| index.insert(hash_of(location(n)), location(n), hash_of));
    order.sort_by_key(|&n| scramble(n));
    let (mut most_asked, mut most_merged) = (0, 0);
    for n in order {
        let (subtables, mut asked) = (index.subtables.len(), 0);
        index.remove(hash_of(location(n)), location(n), |location| {
            asked += 1;
            hash_of(location)
        });
        most_asked = asked.max(most_asked);
        most_merged = most_merged.max(subtables - index.subtables.len());
    }
    assert!(most_asked <= HashIndex::<4>::MERGED, "{most_asked}");
    assert!(most_merged > 2, "{most_merged}");
    assert_eq!(index.subtables.len(), 1);
}

#[test]
fn a_capacity_is_kept_and_a_size_is_not() {
    for entries in [100, 1_000, 30_000] {
        let fill_and_empty = |index: HashIndex| {
            let mut pair = Pair::new(index);
            let subtables = pair.index.subtables.len();
            (0..entries).for_each(|n| pair.insert(scramble(n), n));
            (0..entries).for_each(|n| pair.remove(n));
            pair.check();
            (subtables, pair.index.subtables.len())
        };
        let (before, after) = fill_and_empty(HashIndex::with_capacity(entries as usize));
        assert_eq!(before, after);
        let (before, after) = fill_and_empty(HashIndex::sized_for(entries as usize));
        assert_eq!((before > 1, after), (entries > 448, 1));
    }
}

#[test]
fn miri_an_index_grows_and_shrinks() {
    for index in [HashIndex::<2>::new(), HashIndex::sized_for(60), HashIndex::with_capacity(60)] {
        let mut pair = Pair::new(index);
        for entries in [80, 0, 40, 0] {
            (pair.model.len() as u64..entries).for_each(|n| pair.insert(scramble(n), n));
            (entries..pair.model.len() as u64).for_each(|n| pair.remove(n));
            pair.check();
        }
    }
}

#[test]
fn memory_that_was_not_written_is_empty_buckets() {
    let index = HashIndex::<64>::sized_for(10_000);
    let numbers = index.numbers.iter().map(|&number| number as usize);
    assert!(numbers.flat_map(|number| index.subtables.buckets(number)).all(|bucket| *bucket == Bucket::EMPTY));
}

#[test]
#[cfg(target_os = "linux")]
#[cfg_attr(miri, ignore)]
fn any_capacity_is_made_without_touching_memory() {
    // The second number is that of pages in memory.
    let pages = || {
        let numbers = std::fs::read_to_string("/proc/self/statm").unwrap();
        numbers.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
    };
    let before = pages();
    let index = HashIndex::<64>::with_capacity(usize::MAX);
    let touched = pages().saturating_sub(before) * 4096;
    assert!(index.allocated_bytes() > 14 << 26, "{}", index.allocated_bytes());
    assert!(touched < index.allocated_bytes() / 4, "{touched}");
}

#[test]
#[cfg(alloc_error_hook)]
#[cfg_attr(miri, ignore)]
fn a_removal_cannot_fail() {
    counting::unwind_where_allocations_fail();
    let mut index = HashIndex::<2>::new();
    (0..3_000).for_each(|n| index.insert(hash_of(location(n)), location(n), hash_of));
    for n in 0..3_000 {
        let done = counting::failing_after(0, || index.remove(hash_of(location(n)), location(n), hash_of));
        assert!(done.is_ok(), "{n}");
    }
    index.validate(hash_of);
    assert_eq!(index.subtables.len(), 1);
}

/// Growth inserts the entries in the order of their buckets, so one may find no room that had some in the order of
/// arrival.
fn lose_home<const BUCKETS: usize>() {
    let mut pair = Pair::new(HashIndex::<BUCKETS>::with_capacity(112));
    // 56 entries fill the window of bucket 10. The next 8 take the last room in the window of bucket 11. The others
    // make the subtable full.
    let homes = [(10, 56), (11, 8), (2, 8), (3, 8), (4, 8), (5, 8), (6, 8), (7, 8), (8, 1)];
    let mut n = 0;
    for (home, count) in homes {
        for _ in 0..count {
            pair.insert(home | scramble(n) >> 20 << 8, n);
            n += 1;
        }
    }
    assert_eq!(pair.index.spilled.len(), 8);
    pair.check();
    for n in 0..n {
        pair.remove(n);
        pair.check();
    }
}

#[test]
fn growth_spills_what_loses_its_room() {
    // The first one splits a subtable, the second one enlarges its only subtable.
    lose_home::<16>();
    lose_home::<32>();
}

#[test]
fn the_first_and_the_last_location() {
    let mut pair = Pair::new(HashIndex::<1>::new());
    for (hash, n) in [(0, 0), (0, (1 << 48) - 1), (u64::MAX, 1), (u64::MAX, (1 << 48) - 2)] {
        pair.insert(hash, n);
        pair.check();
    }
    pair.remove(0);
    pair.replace((1 << 48) - 1, 0);
    pair.check();
}

#[test]
fn an_empty_index_allocates_nothing() {
    let index = HashIndex::<64>::new();
    index.prefetch(Hash(7));
    assert_eq!((index.find(Hash(7), |_| true), index.len(), index.allocated_bytes()), (None, 0, 0));
    assert_eq!(HashIndex::<64>::with_capacity(0).allocated_bytes(), 0);
}
