//! Memory budgets, from zero upward: a write that needs more than the budget is refused and changes nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use opstate::{HotStore, StateDelta, StateError, StateSnapshot, StateStore, StateStoreExt};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;
type Write = fn(&mut HotStore) -> Result<(), StateError>;

/// Memory that the indexes may take beyond the budget, because they grow in steps.
const STEP: usize = 16 << 10;

fn contents(store: &HotStore) -> Model {
    store.prefix_scan(b"").map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Creates a store with as many of 60 entries as the budget allows.
fn filled(budget: usize) -> HotStore {
    let mut store = HotStore::builder().chunk_bytes(256, 4096).memory_budget(budget).build();
    for i in 0..60_u8 {
        let len = if i % 10 == 0 { 600 } else { i.into() };
        if let Err(error) = store.put(&[b'k', i], &vec![i; len]) {
            assert_refused(&error, budget);
        }
    }
    store
}

fn assert_refused(error: &StateError, the_budget: usize) {
    let StateError::OverBudget { budget, used, needed } = *error else { panic!("{error}") };
    assert_eq!(budget, the_budget);
    assert!(needed > 0 && used.saturating_add(needed) > budget, "{error}");
}

fn delta(store: &HotStore) -> StateDelta {
    let mut later = HotStore::new();
    later.restore(store.snapshot());
    later.delete_range(b"k\x05"..b"k\x0A", usize::MAX).unwrap();
    (0..40_u8).for_each(|i| later.put(&[b'n', i], &[i; 100]).unwrap());
    later.snapshot().delta_since(&store.snapshot())
}

/// Writes that make a store grow, and may be refused.
const GROWING: [(&str, Write); 9] = [
    ("put", |store| store.put(b"new", &[1; 100])),
    ("put a large one", |store| store.put(b"new", &[1; 3000])),
    ("put a longer one", |store| store.put(b"k\x03", &[1; 400])),
    ("put_bytes", |store| store.put_bytes(b"new", Bytes::from(vec![1; 2000]))),
    ("get_or_insert", |store| {
        let got = store.get_or_insert(b"new", &[1; 200])?;
        assert_eq!(got, [1; 200][..]);
        Ok(())
    }),
    ("put_typed", |store| store.put_typed(b"new", &[7_u64; 20])),
    ("update", |store| store.update(b"new", |value: &mut Option<[u64; 30]>| *value = Some([7; 30]))),
    ("apply", |store| store.apply(&delta(store))),
    ("put_many of one", |store| store.put_many(&[(b"new", &[1; 300])])),
];

/// Writes that are never refused.
const ALWAYS: [(&str, Write); 11] = [
    ("delete", |store| store.delete(b"k\x01")),
    ("delete_range", |store| store.delete_range(b"k\x01"..b"k\x10", usize::MAX).map(drop)),
    ("delete_range of some", |store| store.delete_range(b"k\x01"..b"k\x10", 3).map(drop)),
    ("drain_range", |store| store.drain_range(b"k\x01"..=b"k\x10", 5).map(drop)),
    ("take", |store| store.take(b"k\x01").map(drop)),
    ("delete_prefix", |store| store.delete_prefix(b"k").map(drop)),
    ("modify", |store| store.modify(b"k\x01", &mut |value| value.fill(9)).map(drop)),
    ("shorten", |store| {
        let entries = contents(store);
        entries.iter().try_for_each(|(key, value)| store.put(key, &value[value.len() / 2..]))
    }),
    ("restore", |store| {
        store.restore(StateSnapshot::from_iter((0..50_u8).map(|i| (vec![i], vec![i; 300]))));
        Ok(())
    }),
    ("try_restore", |store| store.try_restore(StateSnapshot::from_iter((0..50_u8).map(|i| (vec![i], vec![i; 300]))))),
    ("clear", |store| {
        store.clear();
        Ok(())
    }),
];

/// Returns closely spaced budgets up to one at which nothing is refused.
fn budgets() -> impl Iterator<Item = usize> {
    (0..200).chain((200..40_000).step_by(211)).chain([100_000, usize::MAX])
}

#[test]
fn growth_is_refused_and_changes_nothing() {
    for (name, write) in GROWING {
        let (mut refused, mut done) = (0, 0);
        for budget in budgets() {
            for is_snapshot_alive in [false, true] {
                let mut store = filled(budget);
                let held = is_snapshot_alive.then(|| store.snapshot());
                let before = contents(&store);
                let mut expected = HotStore::new();
                expected.restore(store.snapshot());
                write(&mut expected).unwrap();

                match write(&mut store) {
                    Ok(()) => {
                        done += 1;
                        assert_eq!(contents(&store), contents(&expected), "{name}, {budget}");
                        let used = store.stats().total_bytes();
                        assert!(used <= budget.saturating_add(STEP), "{name}, {budget}: {used}");
                    }
                    Err(error) => {
                        refused += 1;
                        assert_refused(&error, budget);
                        assert_eq!(contents(&store), before, "{name}, {budget}");
                    }
                }
                if let Some(held) = held {
                    assert_eq!(held, StateSnapshot::from_sorted(before).unwrap(), "{name}, {budget}");
                }
            }
        }
        assert!(refused > 50 && done > 50, "{name}: {refused} refused, {done} done");
    }
}

#[test]
fn what_makes_room_is_never_refused() {
    for (name, write) in ALWAYS {
        for budget in budgets() {
            for is_snapshot_alive in [false, true] {
                let mut store = filled(budget);
                let held = is_snapshot_alive.then(|| store.snapshot());
                let mut expected = HotStore::new();
                expected.restore(store.snapshot());
                write(&mut expected).unwrap();
                // A refused write in between makes no difference.
                assert!(budget > 100_000 || store.put(b"new", &vec![1; 200_000]).is_err());
                write(&mut store).unwrap_or_else(|error| panic!("{name}, {budget}: {error}"));
                assert_eq!(contents(&store), contents(&expected), "{name}, {budget}");
                drop(held);
            }
        }
    }
}

#[test]
fn room_in_a_record_is_not_refused_but_a_value_that_leaves_it_is() {
    let longest_in_record = [1; 512];
    let store_with = |budget| {
        let mut store = HotStore::builder().chunk_bytes(1024, 1024).memory_budget(budget).build();
        store.put(b"k", &longest_in_record).unwrap();
        store
    };
    let used = store_with(usize::MAX).stats().total_bytes();
    let mut store = store_with(used);
    for len in [510, 512, 400, 512] {
        store.put(b"k", &longest_in_record[..len]).unwrap();
        assert_eq!(store.stats().total_bytes(), used);
    }
    // The record's padding has room for this byte, but a value this long is stored out of line.
    assert_refused(&store.put(b"k", &[2; 513]).unwrap_err(), used);
    assert_eq!(store.get(b"k").as_deref(), Some(&longest_in_record[..]));
}

#[test]
fn a_batch_is_refused_from_an_entry_on() {
    let batch: Vec<(Vec<u8>, Vec<u8>)> = (0..50_u8).map(|i| (vec![b'n', i], vec![i; 100])).collect();
    let borrowed: Vec<(&[u8], &[u8])> = batch.iter().map(|(key, value)| (&key[..], &value[..])).collect();
    let mut in_the_middle = 0;
    for budget in budgets() {
        let mut store = filled(budget);
        let mut expected = contents(&store);
        let before = store.len();
        if let Err(error) = store.put_many(&borrowed) {
            assert_refused(&error, budget);
        }
        let put = store.len() - before;
        in_the_middle += usize::from((1..batch.len()).contains(&put));
        expected.extend(batch[..put].iter().cloned());
        assert_eq!(contents(&store), expected, "{budget}");
    }
    assert!(in_the_middle > 10);
}
