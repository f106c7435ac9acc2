//! Model test of a store: random operations on a store and on a `BTreeMap`, which must agree after each one.
//!
//! The unit tests of `HotStore` also include this file, to run it on a store whose parts are tiny.

use std::collections::BTreeMap;
use std::env;
use std::io::Cursor;
use std::ops::{Bound, ControlFlow, RangeBounds};

use bytes::Bytes;
use opstate::{
    Deleted, HotStore, ImageOptions, InMemoryStore, KeyGroups, Scan, StateDelta, StateError, StateSnapshot, StateStore,
    StateStoreExt, UnverifiedImage, VALUE_ALIGNMENT,
};
use proptest::prelude::*;
use proptest::sample::Index;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Generates keys that collide, nest and sit on every boundary of a layout.
pub(crate) fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(0x7F), Just(0x80), Just(0xFF)], 0..4),
        2 => (0_u8..3, 13_usize..26).prop_map(|(byte, len)| vec![byte * 0x7F; len]),
        2 => (0_usize..30).prop_map(|i| format!("shared/prefix/of/some/length/{i}").into_bytes()),
        1 => (0_u8..3, 240_usize..260).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

pub(crate) fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let len =
        prop_oneof![4 => 0_usize..10, 3 => 20_usize..26, 2 => 60_usize..70, 1 => 250_usize..260, 1 => 2000_usize..2001];
    (any::<u8>(), len).prop_map(|(byte, len)| vec![byte; len])
}

fn any_index() -> impl Strategy<Value = Index> {
    any::<Index>()
}

fn any_bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![Just(Bound::Unbounded), any_key().prop_map(Bound::Included), any_key().prop_map(Bound::Excluded)]
}

/// Returns the number of cases: `OPSTATE_MODEL_CASES`, or 200 if it is not set.
pub(crate) fn model_cases() -> u32 {
    env::var("OPSTATE_MODEL_CASES").map_or(200, |cases| cases.parse().expect("OPSTATE_MODEL_CASES is a number"))
}

/// A way to make a snapshot with the same contents.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The snapshot itself.
    Own,
    /// An image in memory, verified at once.
    Image,
    /// An image in memory, verified part by part.
    Lazy,
    Reader,
    Stream,
    Grouped,
    GroupedLazy,
    /// A snapshot collected from unordered entries.
    Collected,
    /// A snapshot of another `HotStore` that got the entries one by one.
    OtherHot,
    OtherInMemory,
    /// A snapshot of another store that restored this one.
    Restored,
    /// A delta applied to an empty snapshot.
    Applied,
    /// Slices that are merged.
    Merged,
}

fn any_way() -> impl Strategy<Value = Way> {
    prop_oneof![
        4 => Just(Way::Own),
        1 => Just(Way::Image),
        1 => Just(Way::Lazy),
        1 => Just(Way::Reader),
        1 => Just(Way::Stream),
        1 => Just(Way::Grouped),
        1 => Just(Way::GroupedLazy),
        1 => Just(Way::Collected),
        1 => Just(Way::OtherHot),
        1 => Just(Way::OtherInMemory),
        1 => Just(Way::Restored),
        1 => Just(Way::Applied),
        1 => Just(Way::Merged),
    ]
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Put(Vec<u8>, Vec<u8>),
    PutBytes(Vec<u8>, Vec<u8>),
    PutMany(Vec<(Vec<u8>, Vec<u8>)>),
    Delete(Vec<u8>),
    GetOrInsert(Vec<u8>, Vec<u8>),
    Modify(Vec<u8>, u8),
    DeleteRange(Vec<u8>, Vec<u8>),
    DeletePrefix(Vec<u8>),
    /// Deletes at most this many entries.
    DeleteSome(Bound<Vec<u8>>, Bound<Vec<u8>>, usize),
    /// Removes and returns at most this many entries.
    Drain(Bound<Vec<u8>>, Bound<Vec<u8>>, usize),
    Take(Vec<u8>),
    Scan(Bound<Vec<u8>>, Bound<Vec<u8>>),
    PrefixScan(Vec<u8>),
    GetMany(Vec<Vec<u8>>),
    Hold,
    /// Adds a second snapshot with the contents of a held one.
    HoldAgain(Index, Way, usize),
    Drop(Index),
    Restore(Index, Way, usize),
    /// Restores an image that is verified during the restore, from memory or from a reader.
    RestoreImage(Index, bool, usize),
    /// Applies the delta between two held snapshots, whatever the store holds.
    Apply(Index, Index, usize),
    /// Follows held snapshots by the deltas between them, and by all those deltas composed.
    Chain(Vec<Index>, usize),
    /// Moves the state to this many workers, and back.
    Regroup(u32, u32),
    Clear,
}

/// Generates programs of 200 operations on average.
pub(crate) fn any_ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(any_op(), 0..=400)
}

fn any_op() -> impl Strategy<Value = Op> {
    // Operations that empty the store are rare, so that it usually holds entries.
    prop_oneof![
        20 => (any_key(), any_value()).prop_map(|(key, value)| Op::Put(key, value)),
        4 => (any_key(), any_value()).prop_map(|(key, value)| Op::PutBytes(key, value)),
        6 => proptest::collection::vec((any_key(), any_value()), 0..60).prop_map(Op::PutMany),
        10 => any_key().prop_map(Op::Delete),
        4 => (any_key(), any_value()).prop_map(|(key, value)| Op::GetOrInsert(key, value)),
        8 => (any_key(), any::<u8>()).prop_map(|(key, by)| Op::Modify(key, by)),
        1 => (any_key(), any_key()).prop_map(|(start, end)| Op::DeleteRange(start, end)),
        1 => any_key().prop_filter("all of it", |prefix| !prefix.is_empty()).prop_map(Op::DeletePrefix),
        1 => (any_bound(), any_bound(), 0_usize..9).prop_map(|(start, end, limit)| Op::DeleteSome(start, end, limit)),
        1 => (any_bound(), any_bound(), 0_usize..9).prop_map(|(start, end, limit)| Op::Drain(start, end, limit)),
        2 => any_key().prop_map(Op::Take),
        4 => (any_bound(), any_bound()).prop_map(|(start, end)| Op::Scan(start, end)),
        4 => any_key().prop_map(Op::PrefixScan),
        2 => proptest::collection::vec(any_key(), 0..40).prop_map(Op::GetMany),
        6 => Just(Op::Hold),
        2 => (any_index(), any_way(), 1_usize..400).prop_map(|(which, way, size)| Op::HoldAgain(which, way, size)),
        2 => any_index().prop_map(Op::Drop),
        3 => (any_index(), any_way(), 1_usize..400).prop_map(|(which, way, size)| Op::Restore(which, way, size)),
        1 => (any_index(), any::<bool>(), 1_usize..400)
            .prop_map(|(which, is_grouped, size)| Op::RestoreImage(which, is_grouped, size)),
        2 => (any_index(), any_index(), 1_usize..400).prop_map(|(from, to, size)| Op::Apply(from, to, size)),
        2 => (proptest::collection::vec(any_index(), 2..5), 1_usize..400)
            .prop_map(|(along, size)| Op::Chain(along, size)),
        2 => (1_u32..20, 1_u32..5).prop_map(|(groups, workers)| Op::Regroup(groups, workers)),
        1 => prop_oneof![Just(Op::Clear), Just(Op::DeletePrefix(Vec::new()))],
    ]
}

/// Values handed out at some moment, and the contents they must keep.
struct Held {
    snapshot: StateSnapshot,
    handles: Vec<(Bytes, Bytes)>,
    model: Model,
}

impl Held {
    fn check(&self) {
        assert_same(self.snapshot.iter(), &self.model);
        assert_same_from_both_ends(|| self.snapshot.iter(), &self.model);
        assert_same(self.handles.iter().cloned(), &self.model);
    }
}

fn assert_same(entries: impl Iterator<Item = (Bytes, Bytes)>, model: &Model) {
    let entries: Vec<_> = entries.collect();
    let is_aligned = |value: &Bytes| value.is_empty() || value.as_ptr().addr() % VALUE_ALIGNMENT == 0;
    assert!(entries.iter().all(|(_, value)| is_aligned(value)));
    let expected: Vec<_> = model.iter().map(|(key, value)| (Bytes::from(key.clone()), value.clone().into())).collect();
    assert_eq!(entries, expected);
}

/// Compares walks down and walks in turns with the model. Each step takes one entry from the start and two from the
/// end.
fn assert_same_from_both_ends<'a>(scan: impl Fn() -> Scan<'a>, model: &Model) {
    let mut down: Vec<_> = scan().rev().collect();
    down.reverse();
    assert_same(down.into_iter(), model);
    let (mut scan, mut front, mut back) = (scan(), Vec::new(), Vec::new());
    for step in 0.. {
        let next = if step % 3 == 0 {
            scan.next().map(|entry| front.push(entry))
        } else {
            scan.next_back().map(|entry| back.push(entry))
        };
        if next.is_none() {
            assert_eq!((scan.next(), scan.next_back()), (None, None));
            break;
        }
    }
    assert_same(front.into_iter().chain(back.into_iter().rev()), model);
}

fn size_of(model: &Model) -> usize {
    model.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn as_slices(range: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice))
}

/// Returns ranges of every kind between two keys. The second key may be the smaller one.
pub(crate) fn ranges<'a>(start: &'a [u8], end: &'a [u8]) -> [(Bound<&'a [u8]>, Bound<&'a [u8]>); 8] {
    [
        (Bound::Included(start), Bound::Excluded(end)),
        (Bound::Excluded(start), Bound::Included(end)),
        (Bound::Excluded(start), Bound::Excluded(end)),
        (Bound::Included(start), Bound::Included(end)),
        (Bound::Unbounded, Bound::Included(end)),
        (Bound::Unbounded, Bound::Excluded(end)),
        (Bound::Excluded(start), Bound::Unbounded),
        (Bound::Included(start), Bound::Unbounded),
    ]
}

/// Returns the model's entries within the bounds, by comparing each key.
pub(crate) fn within(model: &Model, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Model {
    let inside = |key: &[u8]| RangeBounds::<[u8]>::contains(&range, key);
    model.iter().filter(|(key, _)| inside(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn image_of(snapshot: &StateSnapshot, segment_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
    image
}

fn grouped_image_of(snapshot: &StateSnapshot, segment_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    let options = ImageOptions::new().segment_bytes(segment_bytes);
    snapshot.write_grouped(KeyGroups::new(7).unwrap(), part, options, &mut image).unwrap();
    image
}

/// Returns the part of a key that tells its group.
fn part(key: &[u8]) -> &[u8] {
    &key[..key.len().min(2)]
}

/// Returns the delta between two snapshots, read back from its image.
fn delta_between(from: &Held, to: &Held, segment_bytes: usize) -> StateDelta {
    let delta = to.snapshot.delta_since(&from.snapshot);
    let mut image = Vec::new();
    delta.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
    let opened = StateDelta::from_bytes(image).unwrap();
    assert_eq!(opened, delta);
    opened
}

/// Returns a snapshot with the contents of `from`, made in this way.
fn by(way: Way, from: &Held, segment_bytes: usize, make: &impl Fn() -> Box<dyn StateStore>) -> StateSnapshot {
    let Held { snapshot, model, .. } = from;
    let filled = |mut store: Box<dyn StateStore>| {
        // Reverse the order, so that it does not look like a restore.
        model.iter().rev().for_each(|(key, value)| store.put(key, value).unwrap());
        store.snapshot()
    };
    match way {
        Way::Own => snapshot.clone(),
        Way::Image => StateSnapshot::from_bytes(image_of(snapshot, segment_bytes)).unwrap(),
        Way::Lazy => {
            UnverifiedImage::from_bytes(image_of(snapshot, segment_bytes)).and_then(|image| image.verify()).unwrap()
        }
        Way::Reader => {
            let image = UnverifiedImage::from_reader(Cursor::new(image_of(snapshot, segment_bytes)));
            image.and_then(|image| image.verify()).unwrap()
        }
        Way::Stream => StateSnapshot::read_from(&image_of(snapshot, segment_bytes)[..]).unwrap(),
        Way::Grouped => StateSnapshot::from_bytes(grouped_image_of(snapshot, segment_bytes)).unwrap(),
        Way::GroupedLazy => {
            let image = UnverifiedImage::from_bytes(grouped_image_of(snapshot, segment_bytes));
            image.and_then(|image| image.verify()).unwrap()
        }
        Way::Collected => model.iter().rev().map(|(key, value)| (key.clone(), value.clone())).collect(),
        Way::OtherHot => filled(Box::<HotStore>::default()),
        Way::OtherInMemory => filled(Box::<InMemoryStore>::default()),
        Way::Restored => {
            let mut store = make();
            store.restore(snapshot.clone());
            store.snapshot()
        }
        Way::Applied => {
            let empty = make().snapshot();
            empty.apply(&snapshot.delta_since(&empty)).unwrap()
        }
        Way::Merged => {
            let slices = snapshot.split(KeyGroups::new(5).unwrap(), part).unwrap();
            StateSnapshot::merge(slices.into_iter().rev()).unwrap()
        }
    }
}

/// Runs on this many workers for a while, and returns their merged state.
fn regrouped(
    snapshot: &StateSnapshot,
    groups: u32,
    workers: u32,
    make: &impl Fn() -> Box<dyn StateStore>,
) -> StateSnapshot {
    let groups = KeyGroups::new(groups).unwrap();
    let workers = workers.min(groups.count());
    let slices = snapshot.split(groups, part).unwrap();
    assert_eq!(slices.iter().map(StateSnapshot::len).sum::<usize>(), snapshot.len());
    if let Some(slice) = slices.iter().find(|slice| !slice.is_empty()) {
        let twice = StateSnapshot::merge([snapshot.clone(), slice.clone()]).unwrap_err();
        assert!(matches!(twice, StateError::ConflictingKeys { conflicts, .. } if conflicts == slice.len()), "{twice}");
    }
    let states = (0..workers).map(|worker| {
        let own = groups.groups_of(worker, workers);
        let mut store = make();
        store.restore(StateSnapshot::merge(slices[own.start as usize..own.end as usize].iter().cloned()).unwrap());
        // Do work on one worker, and undo it.
        let before = store.snapshot();
        store.put(b"a key of the worker", &worker.to_be_bytes()).unwrap();
        store.delete_prefix(&[0]).unwrap();
        let after = store.snapshot();
        store.apply(&before.delta_since(&after)).unwrap();
        store.snapshot()
    });
    StateSnapshot::merge(states).unwrap()
}

/// Holds one more snapshot, and drops the oldest if there are many.
fn hold(held: &mut Vec<Held>, new: Held) {
    const MOST: usize = 10;
    if held.len() == MOST {
        held.remove(0).check();
    }
    held.push(new);
}

fn apply<S: StateStore + 'static>(
    store: &mut S,
    make: &impl Fn() -> S,
    model: &mut Model,
    held: &mut Vec<Held>,
    op: Op,
) {
    let make = || Box::new(make()) as Box<dyn StateStore>;
    match op {
        Op::Put(key, value) => {
            store.put(&key, &value).unwrap();
            model.insert(key, value);
        }
        Op::PutBytes(key, value) => {
            store.put_bytes(&key, value.clone().into()).unwrap();
            model.insert(key, value);
        }
        Op::PutMany(batch) => {
            let borrowed: Vec<(&[u8], &[u8])> = batch.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            store.put_many(&borrowed).unwrap();
            model.extend(batch);
        }
        Op::Delete(key) => {
            store.delete(&key).unwrap();
            model.remove(&key);
        }
        Op::GetOrInsert(key, value) => {
            let got = store.get_or_insert(&key, &value).unwrap();
            assert_eq!(got, model.entry(key).or_insert(value).as_slice());
        }
        Op::Modify(key, by) => {
            let change = |value: &mut [u8]| value.iter_mut().for_each(|byte| *byte = byte.wrapping_add(by));
            let found = store.modify(&key, &mut { change }).unwrap();
            assert_eq!(found, model.get_mut(&key).map(|value| change(value)).is_some());
        }
        Op::DeleteRange(start, end) => {
            let gone = within(model, (Bound::Included(&start), Bound::Excluded(&end)));
            let deleted = store.delete_range(start..end, usize::MAX).unwrap();
            assert_eq!(deleted, Deleted { count: gone.len(), is_done: true });
            model.retain(|key, _| !gone.contains_key(key));
        }
        Op::DeletePrefix(prefix) => {
            let before = model.len();
            model.retain(|key, _| !key.starts_with(&prefix));
            assert_eq!(store.delete_prefix(&prefix).unwrap(), before - model.len());
        }
        Op::DeleteSome(start, end, limit) => {
            let range = (start, end);
            let within = within(model, as_slices(&range));
            let deleted = store.delete_range(&range, limit).unwrap();
            assert_eq!(deleted, Deleted { count: within.len().min(limit), is_done: within.len() <= limit });
            within.keys().take(limit).for_each(|key| drop(model.remove(key)));
        }
        Op::Drain(start, end, limit) => {
            let range = (start, end);
            let within = within(model, as_slices(&range));
            let drained = store.drain_range(&range, limit).unwrap();
            assert_eq!(drained.is_done, within.len() <= limit);
            let gone: Model = within.into_iter().take(limit).collect();
            assert_same(drained.entries.into_iter(), &gone);
            gone.keys().for_each(|key| drop(model.remove(key)));
        }
        Op::Take(key) => assert_eq!(store.take(&key).unwrap(), model.remove(&key).map(Bytes::from)),
        Op::Scan(start, end) => {
            let range = (start, end);
            let expected = within(model, as_slices(&range));
            assert_same(store.scan(as_slices(&range)), &expected);
            assert_same_from_both_ends(|| store.scan(as_slices(&range)), &expected);
            let mut visited = Vec::new();
            store.visit_range(as_slices(&range), &mut |key, value| {
                visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                ControlFlow::Continue(())
            });
            assert_same(visited.into_iter(), &expected);
            if let (Bound::Included(start), Bound::Excluded(end)) = as_slices(&range) {
                assert_same(store.range_scan(start..end), &expected);
            }
        }
        Op::PrefixScan(prefix) => {
            let mut expected = model.clone();
            expected.retain(|key, _| key.starts_with(&prefix));
            assert_same(store.prefix_scan(&prefix), &expected);
            assert_same_from_both_ends(|| store.scan_prefix(&prefix), &expected);
            let mut visited = Vec::new();
            store.visit_prefix(&prefix, |key, value| {
                visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                ControlFlow::Continue(())
            });
            assert_same(visited.into_iter(), &expected);
        }
        Op::GetMany(keys) => {
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let mut got = vec![None; 3];
            store.get_many(&keys, &mut got);
            let expected: Vec<_> = keys.iter().map(|&key| model.get(key).cloned().map(Bytes::from)).collect();
            assert_eq!(got, expected);
        }
        Op::Hold => {
            let new = Held {
                snapshot: store.snapshot(),
                handles: store.prefix_scan(b"").map(|(key, _)| (key.clone(), store.get(&key).unwrap())).collect(),
                model: model.clone(),
            };
            hold(held, new);
        }
        Op::HoldAgain(which, way, segment_bytes) if !held.is_empty() => {
            let from = which.get(held);
            let snapshot = by(way, from, segment_bytes, &make);
            assert_eq!(snapshot, from.snapshot);
            let handles = snapshot.iter().collect();
            let new = Held { snapshot, handles, model: from.model.clone() };
            hold(held, new);
        }
        Op::Drop(which) if !held.is_empty() => held.swap_remove(which.index(held.len())).check(),
        Op::Restore(which, way, segment_bytes) if !held.is_empty() => {
            let from = which.get(held);
            store.try_restore(by(way, from, segment_bytes, &make)).unwrap();
            model.clone_from(&from.model);
        }
        Op::RestoreImage(which, is_grouped, segment_bytes) if !held.is_empty() => {
            let from = which.get(held);
            let image = if is_grouped {
                UnverifiedImage::from_reader(Cursor::new(grouped_image_of(&from.snapshot, segment_bytes)))
            } else {
                UnverifiedImage::from_bytes(image_of(&from.snapshot, segment_bytes))
            };
            image.unwrap().restore_into(store).unwrap();
            model.clone_from(&from.model);
        }
        Op::Apply(from, to, segment_bytes) if !held.is_empty() => {
            let (from, to) = (from.get(held), to.get(held));
            let delta = delta_between(from, to, segment_bytes);
            assert_eq!(from.snapshot.apply(&delta).unwrap(), to.snapshot);
            let is_base = *model == from.model;
            match store.apply(&delta) {
                Ok(()) => {
                    assert!(is_base);
                    model.clone_from(&to.model);
                }
                Err(error) => assert!(!is_base && matches!(error, StateError::WrongBase { .. }), "{error}"),
            }
        }
        Op::Chain(along, segment_bytes) if !held.is_empty() => {
            let along: Vec<&Held> = along.iter().map(|index| index.get(held)).collect();
            let (first, last) = (along[0], along[along.len() - 1]);
            let deltas: Vec<_> = along.windows(2).map(|pair| delta_between(pair[0], pair[1], segment_bytes)).collect();
            let forth = deltas[1..].iter().fold(deltas[0].clone(), |all, next| all.compose(next).unwrap());
            let back = deltas.iter().rev().skip(1);
            let back = back.fold(deltas[deltas.len() - 1].clone(), |all, earlier| earlier.compose(&all).unwrap());
            assert_eq!(forth, back);
            let image = forth.to_bytes();
            let merged = StateDelta::from_bytes(image).unwrap();
            let at_once = first.snapshot.apply(&merged).unwrap();
            assert_eq!(at_once, last.snapshot);
            assert_eq!(at_once.fingerprint(), last.snapshot.fingerprint());

            store.restore(first.snapshot.clone());
            deltas.iter().for_each(|delta| store.apply(delta).unwrap());
            model.clone_from(&last.model);
            let new = Held { handles: at_once.iter().collect(), snapshot: at_once, model: model.clone() };
            hold(held, new);
        }
        Op::Regroup(groups, workers) => store.restore(regrouped(&store.snapshot(), groups, workers, &make)),
        Op::HoldAgain(..) | Op::Drop(_) | Op::Restore(..) | Op::RestoreImage(..) | Op::Apply(..) | Op::Chain(..) => {}
        Op::Clear => {
            store.clear();
            model.clear();
        }
    }
    assert_eq!((store.len(), store.size_bytes()), (model.len(), size_of(model)));
    assert_eq!(store.is_empty(), model.is_empty());
}

/// Runs a program on a store that `make` creates, and calls `validate` after every operation.
pub(crate) fn run<S: StateStore + 'static>(make: impl Fn() -> S, validate: impl Fn(&S), ops: Vec<Op>) {
    let mut store = make();
    let mut model = Model::new();
    let mut held = Vec::new();
    for op in ops {
        apply(&mut store, &make, &mut model, &mut held, op);
        validate(&store);
    }
    assert_same(store.prefix_scan(b""), &model);
    for (key, value) in &model {
        assert_eq!(store.get(key).as_deref(), Some(&value[..]));
        assert!(store.contains(key));
        assert!(store.view_bytes(key, |read| read == value).unwrap());
    }
    drop(store);
    held.iter().for_each(Held::check);
}
