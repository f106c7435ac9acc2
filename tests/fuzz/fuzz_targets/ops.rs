//! Fuzzes sequences of operations on a store and on a `BTreeMap`, which must agree.

#![no_main]

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use opstate::bytes::Bytes;
use opstate::{Deleted, HotStore, ImageOptions, InMemoryStore, StateSnapshot, StateStore, StateStoreExt};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Arbitrary, Debug)]
enum Op {
    Put(Key, Vec<u8>),
    PutLong(Key, u16),
    Delete(Key),
    GetOrInsert(Key, Vec<u8>),
    Modify(Key, u8),
    DeleteRange(Key, Key, u8),
    DrainRange(Key, Key, u8),
    Take(Key),
    DeletePrefix(Key),
    Scan(Bound<Key>, Bound<Key>),
    Hold,
    Restore(u8),
    RestoreImage(u8, u8),
    Drop(u8),
    Clear,
}

/// A key chosen by the fuzzer, or a run of one byte, which reaches long lengths.
#[derive(Arbitrary, Debug)]
enum Key {
    Bytes(Vec<u8>),
    Run(u8, u8),
}

impl Key {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Run(byte, len) => vec![*byte; usize::from(*len)],
        }
    }
}

fn assert_same(snapshot: &StateSnapshot, model: &Model) {
    assert!(snapshot.iter().map(owned).eq(model.clone()));
    assert!(snapshot.iter().rev().map(owned).eq(model.clone().into_iter().rev()));
    assert_eq!(snapshot.len(), model.len());
    assert_eq!(snapshot.size_bytes(), model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
}

fn owned((key, value): (Bytes, Bytes)) -> (Vec<u8>, Vec<u8>) {
    (key.to_vec(), value.to_vec())
}

/// Removes the first entries of a range from the model. The flag is `true` if the range is empty then.
fn drain(model: &mut Model, start: &[u8], end: &[u8], limit: usize) -> (Vec<(Vec<u8>, Vec<u8>)>, bool) {
    let within = model.iter().filter(|(key, _)| (start..end).contains(&&key[..]));
    let mut entries: Vec<_> = within.take(limit + 1).map(|(key, value)| (key.clone(), value.clone())).collect();
    let is_done = entries.len() <= limit;
    entries.truncate(limit);
    entries.iter().for_each(|(key, _)| drop(model.remove(key)));
    (entries, is_done)
}

fn picked<T>(from: &[T], which: u8) -> Option<&T> {
    from.get(usize::from(which) % from.len().max(1))
}

fn run(store: &mut dyn StateStore, ops: Vec<Op>) {
    let mut model = Model::new();
    let mut held: Vec<(StateSnapshot, Model)> = Vec::new();
    for op in ops {
        match op {
            Op::Put(key, value) => {
                store.put(&key.bytes(), &value).unwrap();
                model.insert(key.bytes(), value);
            }
            Op::PutLong(key, len) => {
                let value = vec![7; usize::from(len)];
                store.put_bytes(&key.bytes(), value.clone().into()).unwrap();
                model.insert(key.bytes(), value);
            }
            Op::Delete(key) => {
                store.delete(&key.bytes()).unwrap();
                model.remove(&key.bytes());
            }
            Op::GetOrInsert(key, value) => {
                let got = store.get_or_insert(&key.bytes(), &value).unwrap();
                assert_eq!(got, model.entry(key.bytes()).or_insert(value).as_slice());
            }
            Op::Modify(key, by) => {
                let change = |value: &mut [u8]| value.iter_mut().for_each(|byte| *byte ^= by);
                let found = store.modify(&key.bytes(), &mut { change }).unwrap();
                assert_eq!(found, model.get_mut(&key.bytes()).map(|value| change(value)).is_some());
            }
            Op::DeleteRange(start, end, limit) => {
                let (expected, is_done) = drain(&mut model, &start.bytes(), &end.bytes(), limit.into());
                let deleted = store.delete_range(start.bytes()..end.bytes(), limit.into()).unwrap();
                assert_eq!(deleted, Deleted { count: expected.len(), is_done });
            }
            Op::DrainRange(start, end, limit) => {
                let (expected, is_done) = drain(&mut model, &start.bytes(), &end.bytes(), limit.into());
                let drained = store.drain_range(start.bytes()..end.bytes(), limit.into()).unwrap();
                assert!(drained.entries.into_iter().map(owned).eq(expected));
                assert_eq!(drained.is_done, is_done);
            }
            Op::Take(key) => {
                let taken = store.take(&key.bytes()).unwrap();
                assert_eq!(taken.as_deref(), model.remove(&key.bytes()).as_deref());
            }
            Op::DeletePrefix(prefix) => {
                let (prefix, before) = (prefix.bytes(), model.len());
                model.retain(|key, _| !key.starts_with(&prefix));
                assert_eq!(store.delete_prefix(&prefix).unwrap(), before - model.len());
            }
            Op::Scan(start, end) => {
                let range = (start.map(|key| key.bytes()), end.map(|key| key.bytes()));
                let is_within = |key: &[u8]| {
                    let range = (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice));
                    RangeBounds::<[u8]>::contains(&range, key)
                };
                let expected: Vec<_> = model.clone().into_iter().filter(|(key, _)| is_within(key)).collect();
                assert!(store.scan(&range).map(owned).eq(expected.iter().cloned()));
                assert!(store.scan(&range).rev().map(owned).eq(expected.iter().rev().cloned()));
                // Walk from both ends in turn.
                let (mut scan, mut expected) = (store.scan(&range), expected.into_iter());
                while expected.len() > 0 {
                    assert_eq!(scan.next().map(owned), expected.next());
                    assert_eq!(scan.next_back().map(owned), expected.next_back());
                }
                assert_eq!((scan.next(), scan.next_back()), (None, None));
            }
            Op::Hold => {
                let snapshot = store.snapshot();
                if let Some((earlier, then)) = held.last() {
                    assert_eq!(earlier.apply(&snapshot.delta_since(earlier)).unwrap(), snapshot);
                    let unchanged = model.iter().filter(|(key, value)| then.get(*key) == Some(*value)).count();
                    let all = model.keys().filter(|key| !then.contains_key(*key)).count() + then.len();
                    assert_eq!(snapshot.diff(earlier).count(), all - unchanged);
                }
                held.push((snapshot, model.clone()));
            }
            Op::Restore(which) => {
                if let Some((snapshot, then)) = picked(&held, which) {
                    store.restore(snapshot.clone());
                    model.clone_from(then);
                }
            }
            Op::RestoreImage(which, segment_bytes) => {
                if let Some((snapshot, then)) = picked(&held, which) {
                    let mut image = Vec::new();
                    let options = ImageOptions::new().segment_bytes(segment_bytes.into());
                    snapshot.write_with(options, &mut image).unwrap();
                    store.restore(StateSnapshot::from_bytes(image).unwrap());
                    model.clone_from(then);
                }
            }
            Op::Drop(which) => {
                if !held.is_empty() {
                    held.swap_remove(usize::from(which) % held.len());
                }
            }
            Op::Clear => {
                store.clear();
                model.clear();
            }
        }
        assert_eq!(store.len(), model.len());
    }
    assert_same(&store.snapshot(), &model);
    for (snapshot, then) in &held {
        assert_same(snapshot, then);
    }
}

fuzz_target!(|input: (bool, Vec<Op>)| {
    let (hot, ops) = input;
    if hot {
        // Use the smallest possible chunks, so that entries cross their bounds.
        run(&mut HotStore::builder().chunk_bytes(64, 256).build(), ops);
    } else {
        run(&mut InMemoryStore::new(), ops);
    }
});
