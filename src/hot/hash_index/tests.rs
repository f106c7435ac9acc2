//! Tests of the hash index against a `HashMap`.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::tests::cases;
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
        self.index.remove(Hash(self.model.remove(&n).unwrap()), location(n));
    }

    fn replace(&mut self, old: u64, new: u64) {
        let hash = self.model.remove(&old).unwrap();
        self.index.replace(Hash(hash), location(old), location(new));
        assert_eq!(self.model.insert(new, hash), None);
    }

    fn check(&self) {
        self.index.validate(|location| Hash(self.model[&location.to_bits()]));
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
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let location = || prop_oneof![8 => 0..1000_u64, 1 => (1_u64 << 48) - 9..1 << 48];
    let step = prop_oneof![
        60 => location().prop_map(Step::Insert),
        25 => any::<prop::sample::Index>().prop_map(Step::Remove),
        10 => (any::<prop::sample::Index>(), location()).prop_map(|(old, new)| Step::Replace(old, new)),
        10 => location().prop_map(Step::FindAbsent),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 0..300)
}

fn run<const BUCKETS: usize>(hashes: Hashes, capacity: usize, steps: &[Step]) {
    let mut pair = Pair::new(HashIndex::<BUCKETS>::with_capacity(capacity));
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
        run::<1>(hashes, capacity, &steps);
        run::<2>(hashes, 0, &steps);
        run::<8>(hashes, capacity, &steps);
        run::<64>(hashes, 0, &steps);
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
