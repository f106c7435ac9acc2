//! Tests of the sorted index against a `BTreeMap`.

use std::collections::BTreeMap;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::fill::{even_ranges, split_point};
use super::head::{best_prefix, common_prefix_len, key_head, shortest_separator};
use super::*;
use crate::hot::epochs::SnapshotGuard;
use crate::hot::tests::cases;

mod costs;
#[cfg(alloc_error_hook)]
mod failing_allocations;

/// All keys of a test, in order. An entry's id is the index of its key.
impl Keys for Vec<Vec<u8>> {
    fn key(&self, id: EntryId) -> &[u8] {
        &self[id.index()]
    }
}

fn id(at: usize) -> EntryId {
    EntryId::new(at as u32)
}

type Model = BTreeMap<Vec<u8>, EntryId>;

struct Snapshot<const L: usize, const I: usize> {
    view: SortedView<L, I>,
    model: Model,
    guard: SnapshotGuard,
}

/// An index, beside a model with the same entries.
struct Pair<const L: usize, const I: usize> {
    keys: Arc<Vec<Vec<u8>>>,
    epochs: Epochs,
    index: SortedIndex<L, I>,
    model: Model,
    snapshots: Vec<Snapshot<L, I>>,
}

fn borrow(range: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (range.0.as_ref().map(|key| &key[..]), range.1.as_ref().map(|key| &key[..]))
}

/// Returns what `BTreeMap::range` returns, which panics on some empty ranges.
fn range_of(model: &Model, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Vec<EntryId> {
    let after_start = |key: &[u8]| match range.0 {
        Included(start) => start <= key,
        Excluded(start) => start < key,
        Unbounded => true,
    };
    let before_end = |key: &[u8]| match range.1 {
        Included(end) => key <= end,
        Excluded(end) => key < end,
        Unbounded => true,
    };
    model.iter().filter(|(key, _)| after_start(key) && before_end(key)).map(|(_, &id)| id).collect()
}

fn all_bounds<'a>(a: &'a [u8], b: &'a [u8]) -> impl Iterator<Item = (Bound<&'a [u8]>, Bound<&'a [u8]>)> {
    let starts = [Included(a), Excluded(a), Unbounded];
    starts.into_iter().flat_map(move |start| [Included(b), Excluded(b), Unbounded].map(|end| (start, end)))
}

impl<const L: usize, const I: usize> Pair<L, I> {
    fn new(mut keys: Vec<Vec<u8>>) -> Self {
        keys.sort();
        keys.dedup();
        Self {
            keys: Arc::new(keys),
            epochs: Epochs::new(),
            index: SortedIndex::new(),
            model: Model::new(),
            snapshots: Vec::new(),
        }
    }

    fn insert(&mut self, at: usize) {
        let at = at % self.keys.len();
        let (id, key) = (id(at), &self.keys[at]);
        if self.model.insert(key.clone(), id).is_none() {
            self.index.insert(&self.epochs, &*self.keys, key, id);
        }
    }

    fn remove(&mut self, at: usize) {
        let at = at % self.keys.len();
        let (id, key) = (id(at), &self.keys[at]);
        if self.model.remove(key).is_some() {
            self.index.remove(&self.epochs, &*self.keys, key, id);
        }
    }

    /// Removes the ids in `range`, whole leaves at once. Returns how many leaves that were.
    fn remove_range(&mut self, range: (Bound<&[u8]>, Bound<&[u8]>)) -> usize {
        let expected = range_of(&self.model, range);
        let (mut removed, mut leaves) = (Vec::new(), 0);
        while let Some((ids, is_whole)) = self.index.view().first_leaf(&*self.keys, range) {
            let ids = ids.to_vec();
            removed.extend_from_slice(&ids);
            let is_removed = self.index.remove_leaf(&self.epochs, &*self.keys, &ids);
            assert!(is_whole || !is_removed);
            leaves += usize::from(is_removed);
            for id in ids {
                if is_removed {
                    self.model.remove(&self.keys[id.index()]);
                } else {
                    self.remove(id.index());
                }
            }
            self.check();
        }
        assert_eq!(removed, expected, "{range:?}");
        leaves
    }

    fn freeze(&mut self) {
        let (view, guard) = (self.index.freeze(), self.epochs.freeze(0));
        self.snapshots.push(Snapshot { view, model: self.model.clone(), guard });
    }

    fn clear(&mut self) {
        self.index.clear(&self.epochs);
        self.model.clear();
    }

    fn rebuild(&mut self) {
        self.index.clear(&self.epochs);
        self.index =
            SortedIndex::bulk(&self.epochs, &*self.keys, Vec::from_iter(self.model.values().copied()).into_iter());
    }

    fn check(&self) {
        self.index.validate(&*self.keys);
        assert_eq!(self.index.len(), self.model.len());
        assert!(self.index.view().range(&*self.keys, (Unbounded, Unbounded)).eq(self.model.values().copied()));
    }

    fn check_range(&self, range: (Bound<&[u8]>, Bound<&[u8]>)) {
        let expected = range_of(&self.model, range);
        let found: Vec<_> = self.index.view().range(&*self.keys, range).collect();
        assert_eq!(found, expected, "{range:?}");
        let mut runs = Vec::new();
        let mut ids = self.index.view().range(&*self.keys, range);
        while let Some(run) = ids.next_slice() {
            assert!(!run.is_empty());
            runs.extend_from_slice(run);
        }
        assert_eq!(runs, expected, "{range:?}");
        assert_eq!(ids.next(), None);
        let copied: Vec<_> = self.index.view().range_of_copy(&*self.keys, range).collect();
        assert_eq!(copied, expected, "{range:?}");
        let mut down = Vec::new();
        let mut ids = self.index.view().range_down(&*self.keys, range);
        while let Some(run) = ids.next_slice() {
            assert!(!run.is_empty());
            down.splice(..0, run.iter().copied());
        }
        assert_eq!(down, expected, "{range:?} downwards");
        assert_eq!(ids.next_slice(), None);
    }

    fn check_snapshots(&self) {
        for snapshot in &self.snapshots {
            snapshot.check(&self.keys);
        }
    }

    fn end(mut self) {
        self.index.clear(&self.epochs);
        assert_eq!(self.index.allocated_bytes(), 0);
        self.index.validate(&*self.keys);
        drop((self.index, self.epochs));
        for snapshot in self.snapshots {
            snapshot.check(&self.keys);
        }
    }
}

impl<const L: usize, const I: usize> Snapshot<L, I> {
    fn check(&self, keys: &Vec<Vec<u8>>) {
        assert_eq!(self.view.len(), self.model.len());
        assert!(self.view.range(keys, (Unbounded, Unbounded)).eq(self.model.values().copied()));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(usize),
    Remove(usize),
    InsertRun { from: usize, len: usize, step: usize, descending: bool },
    RemoveRun { from: usize, len: usize, step: usize, descending: bool },
    Range(Bound<Vec<u8>>, Bound<Vec<u8>>),
    RemoveRange(Bound<Vec<u8>>, Bound<Vec<u8>>),
    Freeze,
    Thaw(usize),
    Rebuild,
    Clear,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let tail = || prop::collection::vec(prop_oneof![Just(0), Just(1), Just(0xFF), any::<u8>()], 0..6);
    prop_oneof![
        1 => Just(Vec::new()),
        2 => (0..12usize).prop_map(|len| vec![0; len]),
        2 => (0..12usize).prop_map(|len| vec![0xFF; len]),
        6 => tail(),
        6 => (0..3u8, tail()).prop_map(|(group, tail)| [&[group; 120][..], &tail].concat()),
        3 => (0..140usize, tail()).prop_map(|(len, tail)| [&vec![1; len][..], &tail].concat()),
        6 => any::<[u8; 12]>().prop_map(Vec::from),
        6 => (0..40u64).prop_map(|number| number.to_be_bytes().to_vec()),
    ]
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![1 => Just(Unbounded), 3 => key().prop_map(Included), 3 => key().prop_map(Excluded)]
}

fn op(longest: usize) -> impl Strategy<Value = Op> {
    let run = move || (any::<usize>(), 0..longest, 1..4usize, any::<bool>());
    prop_oneof![
        12 => any::<usize>().prop_map(Op::Insert),
        8 => any::<usize>().prop_map(Op::Remove),
        4 => run().prop_map(|(from, len, step, descending)| Op::InsertRun { from, len, step, descending }),
        3 => run().prop_map(|(from, len, step, descending)| Op::RemoveRun { from, len, step, descending }),
        6 => (bound(), bound()).prop_map(|(start, end)| Op::Range(start, end)),
        3 => (bound(), bound()).prop_map(|(start, end)| Op::RemoveRange(start, end)),
        2 => Just(Op::Freeze),
        2 => any::<usize>().prop_map(Op::Thaw),
        1 => Just(Op::Rebuild),
        1 => prop::bool::weighted(0.2).prop_map(|clear| if clear { Op::Clear } else { Op::Rebuild }),
    ]
}

fn run<const L: usize, const I: usize>(keys: Vec<Vec<u8>>, ops: Vec<Op>) {
    let mut pair = Pair::<L, I>::new(keys);
    let count = pair.keys.len();
    let places = |from: usize, len: usize, step: usize, descending: bool| {
        let places = (0..len).map(move |at| from % count + at * step).filter(move |&at| at < count);
        let mut places: Vec<_> = places.collect();
        if descending {
            places.reverse();
        }
        places
    };
    for op in ops {
        match op {
            Op::Insert(at) => pair.insert(at),
            Op::Remove(at) => pair.remove(at),
            Op::InsertRun { from, len, step, descending } => {
                for at in places(from, len, step, descending) {
                    pair.insert(at);
                    pair.index.validate(&*pair.keys);
                }
            }
            Op::RemoveRun { from, len, step, descending } => {
                for at in places(from, len, step, descending) {
                    pair.remove(at);
                    pair.index.validate(&*pair.keys);
                }
            }
            Op::Range(start, end) => pair.check_range(borrow(&(start, end))),
            Op::RemoveRange(start, end) => {
                pair.remove_range(borrow(&(start, end)));
            }
            Op::Freeze => pair.freeze(),
            Op::Thaw(at) if !pair.snapshots.is_empty() => {
                let at = at % pair.snapshots.len();
                pair.snapshots.swap_remove(at);
            }
            Op::Thaw(_) => {}
            Op::Rebuild => pair.rebuild(),
            Op::Clear => pair.clear(),
        }
        pair.check();
        pair.check_snapshots();
    }
    pair.end();
}

proptest! {
    #![proptest_config(cases(if cfg!(miri) { 1 } else { 200 }))]

    #[test]
    fn tiny_nodes_do_as_a_btreemap(keys in prop::collection::vec(key(), 1..80), ops in prop::collection::vec(op(40), 1..60)) {
        run::<3, 3>(keys.clone(), ops.clone());
        run::<4, 3>(keys.clone(), ops.clone());
        run::<5, 8>(keys, ops);
    }

    #[test]
    fn real_nodes_do_as_a_btreemap(keys in prop::collection::vec(key(), 300..600), ops in prop::collection::vec(op(300), 1..30)) {
        run::<64, 64>(keys.clone(), ops.clone());
        run::<16, 16>(keys, ops);
    }

    #[test]
    fn all_bounds_between_all_keys(keys in prop::collection::vec(key(), 1..30), a in key(), b in key()) {
        let mut pair = Pair::<3, 4>::new(keys);
        for at in 0..pair.keys.len() {
            pair.insert(at);
        }
        let keys = Arc::clone(&pair.keys);
        for start in keys.iter().chain([&a, &b]) {
            for end in keys.iter().chain([&a, &b]) {
                all_bounds(start, end).for_each(|range| pair.check_range(range));
            }
        }
        pair.end();
    }
}

/// Returns the numbers below `count`, each once, in an order that looks random.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    assert!(count % 7919 != 0);
    (0..count).map(move |at| (at * 7919 + 13) % count)
}

fn numbers(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_be_bytes().to_vec()).collect()
}

#[test]
fn heads_and_separators_at_their_edges() {
    assert_eq!(key_head(b"", 0), 0);
    assert_eq!(key_head(b"abc", 3), 0);
    assert_eq!(key_head(b"abc", 9), 0);
    assert_eq!(key_head(b"abc", 1), u32::from_be_bytes(*b"bc\0\0"));
    assert_eq!(key_head(b"abcdef", 1), u32::from_be_bytes(*b"bcde"));
    assert_eq!(shortest_separator(b"", b"\0"), b"\0");
    assert_eq!(shortest_separator(b"ab", b"abc"), b"abc");
    assert_eq!(shortest_separator(b"abcd", b"abdd"), b"abd");
    for len in 0..20 {
        let (a, b) = (vec![7; len], [vec![7; len], vec![8; 3]].concat());
        assert_eq!(
            (common_prefix_len(&a, &b), common_prefix_len(&b, &a), common_prefix_len(&b, &b)),
            (len, len, len + 3)
        );
    }
    assert_eq!([3, 4, 5, 6].map(|shared| best_prefix(shared, 4)), [3, 4, 4, 6]);
}

#[test]
fn ranges_are_nine_tenths_of_a_node_and_even() {
    let lens = |len, capacity| even_ranges(len, capacity).map(|(from, to)| to - from).collect::<Vec<_>>();
    assert_eq!((lens(0, 64), lens(1, 64), lens(57, 64), lens(58, 64)), (vec![], vec![1], vec![57], vec![29, 29]));
    assert_eq!((lens(570, 64), lens(571, 64)[..2].to_vec()), (vec![57; 10], vec![51, 52]));
    assert_eq!((lens(5, 3), lens(5, 4)), (vec![1, 2, 2], vec![2, 3]));
}

#[test]
fn a_leaf_is_split_where_groups_of_keys_end() {
    // 64 keys, in groups of keys that begin with the same byte.
    let border = |groups: &[(u8, usize)]| {
        let group = |&(byte, len): &(u8, usize)| (0..len as u8).map(move |at| vec![byte, 0, 0, at]);
        let keys: Vec<_> = groups.iter().flat_map(group).collect();
        Leaf::<64>::from_ids(&keys, &Vec::from_iter((0..64).map(id)), 0).group_boundary()
    };
    assert_eq!([16, 31, 48].map(|len| border(&[(1, len), (2, 64 - len)])), [16, 31, 48]);
    // Boundaries that are too near to one end.
    assert_eq!([15, 49].map(|len| border(&[(1, len), (2, 64 - len)])), [32, 32]);
    // The boundary nearest to the middle, however much the bytes differ.
    assert_eq!(border(&[(0, 20), (0x80, 10), (0x81, 34)]), 30);
}

#[test]
fn a_run_beside_a_small_leaf_leaves_no_other_small_one_there() {
    let run = |gone: &mut dyn Iterator<Item = usize>, run: &mut dyn Iterator<Item = usize>| {
        // Two leaves, of 0 to 13 and of 60 to 73. One of them keeps only some keys.
        let mut pair = Pair::<16, 8>::new(numbers(100));
        (0..14).chain(60..74).for_each(|at| pair.insert(at));
        pair.rebuild();
        gone.for_each(|at| pair.remove(at));
        for at in run {
            pair.insert(at);
            pair.check();
        }
        pair.end();
    };
    run(&mut (61..74), &mut (14..20));
    run(&mut (0..13).chain(60..67), &mut (74..80).chain((60..67).rev()));
}

#[test]
fn leaves_are_joined_when_one_is_a_quarter_full_and_both_are_half_of_one() {
    let mut pair = Pair::<16, 8>::new(numbers(28));
    (0..28).for_each(|at| pair.insert(at));
    pair.rebuild();
    // Two leaves of 14 keys. Then the second one keeps 3.
    (17..28).for_each(|at| pair.remove(at));
    let joined: Vec<_> = (4..14)
        .map(|at| {
            pair.remove(at);
            pair.check();
            (pair.index.len(), pair.index.height)
        })
        .collect();
    assert_eq!(joined[7..], [(9, 2), (8, 2), (7, 1)]);
    pair.end();
}

/// Three leaves of 14 keys. The first and the last one keep 2, and 2 or 3: together a quarter of a leaf, or more.
#[test]
fn a_leaf_stays_if_the_leaves_beside_it_are_too_small_to_be_neighbours() {
    for (kept, is_removed) in [(2, false), (3, true)] {
        let mut pair = Pair::<16, 8>::new(numbers(42));
        (0..42).for_each(|at| pair.insert(at));
        pair.rebuild();
        (2..14).chain(28 + kept..42).for_each(|at| pair.remove(at));
        let (epochs, keys) = (&pair.epochs, Arc::clone(&pair.keys));
        let ids: Vec<_> = (14..28).map(id).collect();
        let found = pair.index.view().first_leaf(&*keys, (Included(&keys[3]), Unbounded));
        assert_eq!(found, Some((&ids[..], true)));
        assert_eq!(pair.index.remove_leaf(epochs, &*keys, &ids), is_removed);
        pair.index.validate(&*keys);
        assert_eq!(pair.index.len(), 4 + kept - 2 + if is_removed { 0 } else { 14 });
        // One of the leaves beside it is the outermost one of its node.
        assert!(pair.index.remove_leaf(epochs, &*keys, &[id(0), id(1)]));
        pair.index.validate(&*keys);
        pair.index.clear(epochs);
    }
}

/// On the way down two inner nodes are joined, and so are the leaves where they meet. One of these was to be removed.
#[test]
fn a_leaf_that_has_been_joined_is_not_removed() {
    let mut pair = Pair::<16, 8>::new(numbers(196));
    (0..196).for_each(|at| pair.insert(at));
    pair.rebuild();
    // The first inner node keeps two leaves, of 14 and 2 keys; the other keeps three, of 2, 5 and 14.
    let gone = [0..70, 86..98, 100..112, 117..126, 140..196];
    gone.into_iter().flatten().for_each(|at| pair.remove(at));
    let keys = Arc::clone(&pair.keys);
    let range = (Included(&keys[84][..]), Excluded(&keys[98][..]));
    assert_eq!(pair.index.view().first_leaf(&*keys, range), Some((&[id(84), id(85)][..], true)));
    assert!(!pair.index.remove_leaf(&pair.epochs, &*keys, &[id(84), id(85)]));
    pair.check();
    assert_eq!(pair.index.view().first_leaf(&*keys, range), Some((&[id(84), id(85)][..], false)));
    pair.freeze();
    assert_eq!(pair.remove_range(range), 0);
    pair.check_snapshots();
    pair.end();
}

/// Nodes hold 64 entries: a quarter is 16, and a tenth 6.
#[test]
fn a_full_node_is_split_in_half_or_where_a_run_ends() {
    let split = |at, last, left, right| split_point(64, at, last, left, right);
    // An ascending run. The entries ahead of it become a node of their own if they are enough for one.
    assert_eq!([64, 60, 53].map(|at| split(at, at as u16 - 1, None, None)), [58, 54, 53]);
    assert_eq!((split(54, 53, None, None), split(33, 32, None, None)), (48, 33));
    assert_eq!([Some(6), Some(7), Some(64)].map(|right| split(60, 59, Some(1), right)), [32, 54, 54]);
    // A descending run.
    assert_eq!([0, 4, 11].map(|at| split(at, at as u16, None, None)), [6, 10, 11]);
    assert_eq!((split(10, 10, None, None), split(31, 31, None, None)), (16, 31));
    assert_eq!([Some(6), Some(7), Some(64)].map(|left| split(4, 4, left, Some(1))), [32, 10, 10]);
    // No run, or only its beginning.
    for (at, last) in [(60, 58), (60, 60), (4, 5), (4, 3), (32, 31), (32, 32)] {
        assert_eq!(split(at, last, None, None), 32, "{at} after {last}");
    }
}

/// Keys of bytes 0xFF have the head that unused slots have.
#[test]
fn keys_whose_heads_are_like_those_of_unused_slots() {
    let keys: Vec<_> = (0..12).map(|len| vec![0xFF; len]).collect();
    let mut pair = Pair::<64, 64>::new(keys);
    for at in shuffled(12) {
        pair.insert(at);
        pair.check();
    }
    let keys = Arc::clone(&pair.keys);
    for (start, end) in keys.iter().flat_map(|start| keys.iter().map(move |end| (start, end))) {
        all_bounds(start, end).for_each(|range| pair.check_range(range));
    }
    for at in shuffled(12) {
        pair.remove(at);
        pair.check();
    }
    pair.end();
}

#[test]
fn the_longest_keys() {
    let long = |last: u8| [vec![b'k'; 65_534], vec![last]].concat();
    let mut pair = Pair::<4, 4>::new((0..60).map(long).chain([vec![b'k'; 65_535], vec![b'j'], vec![b'l']]).collect());
    for at in shuffled(pair.keys.len()) {
        pair.insert(at);
        pair.check();
    }
    let keys = Arc::clone(&pair.keys);
    pair.check_range((Excluded(&keys[7]), Included(&keys[40])));
    pair.rebuild();
    pair.check();
    for at in shuffled(pair.keys.len()) {
        pair.remove(at);
        pair.check();
    }
    pair.end();
}

/// Writes while other threads read snapshots.
fn shared_with_threads(count: usize, rounds: usize) {
    let mut pair = Pair::<4, 4>::new(numbers(count as u64));
    let mut readers = Vec::new();
    for round in 0..rounds {
        for at in shuffled(count).skip(round % 3).step_by(2) {
            pair.insert(at);
        }
        pair.freeze();
        let (snapshot, keys) = (pair.snapshots.pop().unwrap(), Arc::clone(&pair.keys));
        readers.push(thread::spawn(move || {
            snapshot.check(&keys);
            drop(snapshot.guard);
        }));
        for at in shuffled(count).skip(round % 2).step_by(3) {
            pair.remove(at);
        }
        pair.index.validate(&*pair.keys);
    }
    pair.end();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn snapshots_are_read_on_other_threads() {
    shared_with_threads(if cfg!(miri) { 10 } else { 500 }, if cfg!(miri) { 2 } else { 50 });
}

#[test]
fn miri_snapshots_are_read_on_other_threads() {
    shared_with_threads(24, 3);
}

#[test]
fn miri_a_tree_grows_is_shared_and_shrinks() {
    let mut pair = Pair::<3, 3>::new(numbers(30));
    for at in shuffled(30) {
        pair.insert(at);
        if at % 8 == 0 {
            pair.freeze();
        }
    }
    pair.check();
    for at in shuffled(30).take(20) {
        pair.remove(at);
        if at % 8 == 1 {
            pair.freeze();
            pair.snapshots.swap_remove(0);
        }
    }
    pair.check();
    pair.check_range((Excluded(&[0; 8]), Included(&20u64.to_be_bytes())));
    pair.rebuild();
    pair.check();
    pair.check_snapshots();
    pair.end();
}

#[test]
fn a_snapshot_outlives_everything() {
    let mut pair = Pair::<4, 4>::new(numbers(200));
    (0..200).for_each(|at| pair.insert(at));
    pair.freeze();
    (0..200).for_each(|at| pair.remove(at));
    assert_eq!(pair.index.allocated_bytes(), 0);
    pair.check();
    pair.check_snapshots();
    // This drops the index, then the epochs, and then reads the snapshot.
    pair.end();
}

#[test]
fn an_empty_index() {
    let mut pair = Pair::<64, 64>::new(numbers(1));
    pair.check();
    pair.check_range((Unbounded, Unbounded));
    pair.check_range((Included(b""), Excluded(b"")));
    pair.rebuild();
    pair.freeze();
    pair.insert(0);
    pair.check();
    pair.remove(0);
    pair.check();
    pair.clear();
    pair.clear();
    pair.check_snapshots();
    pair.end();
}
