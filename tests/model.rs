//! Random sequences of operations on a store and on a `BTreeMap`, which must agree after every one.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow, RangeBounds};

use bytes::Bytes;
use opstate::{HotStore, ImageOptions, InMemoryStore, StateSnapshot, StateStore, StateStoreExt};
use proptest::prelude::*;

use crate::cases;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keys that collide, nest and sit on every boundary of a layout.
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

fn any_bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![Just(Bound::Unbounded), any_key().prop_map(Bound::Included), any_key().prop_map(Bound::Excluded)]
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u8>, Vec<u8>),
    PutBytes(Vec<u8>, Vec<u8>),
    PutMany(Vec<(Vec<u8>, Vec<u8>)>),
    Delete(Vec<u8>),
    GetOrInsert(Vec<u8>, Vec<u8>),
    Modify(Vec<u8>, u8),
    DeleteRange(Vec<u8>, Vec<u8>),
    DeletePrefix(Vec<u8>),
    Scan(Bound<Vec<u8>>, Bound<Vec<u8>>),
    PrefixScan(Vec<u8>),
    GetMany(Vec<Vec<u8>>),
    Hold,
    Drop(prop::sample::Index),
    Restore(prop::sample::Index),
    RestoreImage(prop::sample::Index, usize),
    Clear,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (any_key(), any_value()).prop_map(|(key, value)| Op::Put(key, value)),
        2 => (any_key(), any_value()).prop_map(|(key, value)| Op::PutBytes(key, value)),
        1 => proptest::collection::vec((any_key(), any_value()), 0..20).prop_map(Op::PutMany),
        5 => any_key().prop_map(Op::Delete),
        2 => (any_key(), any_value()).prop_map(|(key, value)| Op::GetOrInsert(key, value)),
        4 => (any_key(), any::<u8>()).prop_map(|(key, by)| Op::Modify(key, by)),
        1 => (any_key(), any_key()).prop_map(|(start, end)| Op::DeleteRange(start, end)),
        1 => any_key().prop_map(Op::DeletePrefix),
        3 => (any_bound(), any_bound()).prop_map(|(start, end)| Op::Scan(start, end)),
        2 => any_key().prop_map(Op::PrefixScan),
        1 => proptest::collection::vec(any_key(), 0..20).prop_map(Op::GetMany),
        2 => Just(Op::Hold),
        1 => any::<prop::sample::Index>().prop_map(Op::Drop),
        1 => any::<prop::sample::Index>().prop_map(Op::Restore),
        1 => (any::<prop::sample::Index>(), 1_usize..400).prop_map(|(which, segment)| Op::RestoreImage(which, segment)),
        1 => Just(Op::Clear),
    ]
}

/// What was handed out at some moment, and what it has to be ever after.
struct Held {
    snapshot: StateSnapshot,
    handles: Vec<(Bytes, Bytes)>,
    model: Model,
}

impl Held {
    fn check(&self) {
        assert_same(self.snapshot.iter(), &self.model);
        assert_same(self.handles.iter().cloned(), &self.model);
    }
}

fn assert_same(entries: impl Iterator<Item = (Bytes, Bytes)>, model: &Model) {
    let entries: Vec<_> = entries.collect();
    let expected: Vec<_> = model.iter().map(|(key, value)| (Bytes::from(key.clone()), value.clone().into())).collect();
    assert_eq!(entries, expected);
}

fn size_of(model: &Model) -> usize {
    model.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn as_slices(range: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice))
}

/// The ranges of every kind between two keys, of which the second may be the smaller one.
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

/// The entries of the model within any bounds, by comparing each key.
pub(crate) fn within(model: &Model, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Model {
    let inside = |key: &[u8]| RangeBounds::<[u8]>::contains(&range, key);
    model.iter().filter(|(key, _)| inside(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn apply(store: &mut Box<dyn StateStore>, model: &mut Model, held: &mut Vec<Held>, op: Op) {
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
            assert_eq!(store.delete_range(&start..&end).unwrap(), gone.len());
            model.retain(|key, _| !gone.contains_key(key));
        }
        Op::DeletePrefix(prefix) => {
            let before = model.len();
            model.retain(|key, _| !key.starts_with(&prefix));
            assert_eq!(store.delete_prefix(&prefix).unwrap(), before - model.len());
        }
        Op::Scan(start, end) => {
            let range = (start, end);
            let expected = within(model, as_slices(&range));
            assert_same(store.scan(as_slices(&range)), &expected);
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
            held.push(Held {
                snapshot: store.snapshot(),
                handles: store.prefix_scan(b"").map(|(key, _)| (key.clone(), store.get(&key).unwrap())).collect(),
                model: model.clone(),
            });
        }
        Op::Drop(which) if !held.is_empty() => held.swap_remove(which.index(held.len())).check(),
        Op::Restore(which) if !held.is_empty() => {
            let from = which.get(held);
            store.restore(from.snapshot.clone());
            model.clone_from(&from.model);
        }
        Op::RestoreImage(which, segment_bytes) if !held.is_empty() => {
            let from = which.get(held);
            let mut image = Vec::new();
            from.snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
            store.restore(StateSnapshot::from_bytes(image).unwrap());
            model.clone_from(&from.model);
        }
        Op::Drop(_) | Op::Restore(_) | Op::RestoreImage(..) => {}
        Op::Clear => {
            store.clear();
            model.clear();
        }
    }
    assert_eq!((store.len(), store.size_bytes()), (model.len(), size_of(model)));
    assert_eq!(store.is_empty(), model.is_empty());
}

fn run(mut store: Box<dyn StateStore>, ops: Vec<Op>) {
    let mut model = Model::new();
    let mut held = Vec::new();
    for op in ops {
        apply(&mut store, &mut model, &mut held, op);
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

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn in_memory_store_agrees_with_the_model(ops in proptest::collection::vec(any_op(), 0..120)) {
        run(Box::new(InMemoryStore::new()), ops);
    }

    #[test]
    fn hot_store_agrees_with_the_model(ops in proptest::collection::vec(any_op(), 0..120)) {
        run(Box::new(HotStore::new()), ops);
    }
}

#[test]
#[cfg(target_pointer_width = "64")]
fn entries_have_the_longest_lengths_they_may_have() {
    use opstate::{MAX_KEY_LEN, MAX_VALUE_LEN, StateError, check_entry_len};
    // Pages of zeros that are never touched.
    let zeros = vec![0; MAX_VALUE_LEN + 1];
    assert!(check_entry_len(&zeros[..MAX_KEY_LEN], &zeros[..MAX_VALUE_LEN]).is_ok());
    let error = InMemoryStore::new().put(b"", &zeros).unwrap_err();
    assert!(matches!(error, StateError::ValueTooLong { len: 4_294_967_296, limit: 4_294_967_295 }), "{error}");
    let error = InMemoryStore::new().put(&zeros[..=MAX_KEY_LEN], b"").unwrap_err();
    assert!(matches!(error, StateError::KeyTooLong { len: 65_536, limit: 65_535 }), "{error}");
}
