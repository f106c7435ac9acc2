//! The whole store with tiny parts, validated after every call.

#[path = "../../tests/support/model.rs"]
#[allow(dead_code, reason = "some of it is for other tests of the public contract")]
mod model;

#[cfg(alloc_error_hook)]
#[path = "../../tests/support/allocator.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
pub(super) mod counting;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use proptest::prelude::*;

use super::compare::FrozenComparison;
use super::frozen::Frozen;
use super::*;
use crate::comparison::Comparison;
use crate::{Difference, StateStoreExt as _};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Runs that many cases. One that fails is printed, and becomes a test of its own if it should be kept.
pub(super) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Checks that what two snapshots differ in is found as it is: by the journal if that reaches, by pages, and by a walk.
/// Returns whether it reached.
fn assert_differ(earlier: &(StateSnapshot, Model), later: &(StateSnapshot, Model)) -> bool {
    let (old, new) = (&earlier.1, &later.1);
    let mut expected: Vec<_> = old.iter().filter(|&(key, _)| !new.contains_key(key)).map(|(key, _)| key).collect();
    expected.extend(new.iter().filter(|&(key, value)| old.get(key) != Some(value)).map(|(key, _)| key));
    expected.sort();
    let value = |model: &Model, key: &Vec<u8>| model.get(key).cloned().map(Bytes::from);
    let expected: Vec<_> =
        expected.into_iter().map(|key| (Bytes::from(key.clone()), value(old, key), value(new, key))).collect();

    let frozen = |snapshot: &StateSnapshot| -> Arc<Frozen> {
        Arc::clone(snapshot.source()).into_any().downcast().expect("a snapshot of this store")
    };
    let (first, second) = (frozen(&earlier.0), frozen(&later.0));
    let by_pages = FrozenComparison::by_pages(Arc::clone(&first), Arc::clone(&second)).unwrap();
    let by_any = FrozenComparison::new(Arc::clone(&first), Arc::clone(&second)).unwrap();
    for comparison in [&by_pages, &by_any] {
        let handle = |bytes: crate::handles::CowBytes<'_>| Bytes::copy_from_slice(bytes.as_slice());
        let found = (0..comparison.counts().len()).map(|place| {
            let (key, old, new) = comparison.at(place);
            (handle(key), old.map(handle), new.map(handle))
        });
        assert!(found.eq(expected.iter().cloned()));
    }
    assert_eq!(by_pages.counts(), by_any.counts());
    let differences = later.0.diff(&earlier.0).map(|Difference { key, old, new }| (key, old, new));
    assert!(differences.eq(expected));
    // Neither store nor journal is known to a copy.
    let copy = StateSnapshot::from_sorted(old.clone()).unwrap();
    assert_eq!(later.0.delta_since(&copy), later.0.delta_since(&earlier.0));
    let (first, second) = if first.epoch() < second.epoch() { (first, second) } else { (second, first) };
    journal::noted_since(&second.journal, first.epoch()).is_some()
}

fn assert_same(snapshot: &StateSnapshot, model: &Model) {
    assert!(snapshot.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).eq(model.clone()));
    assert_eq!(snapshot.len(), model.len());
    for (key, value) in model {
        assert_eq!(snapshot.get(key).as_deref(), Some(&value[..]));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u16, usize, u8),
    PutBytes(u16, usize, u8),
    Delete(u16),
    Modify(u16, u8),
    DeleteRange(u16, u16),
    Snapshot,
    DropSnapshot(usize),
    Restore(usize),
    Clear,
}

/// Keys of several lengths, some with a long common prefix.
fn key(i: u16) -> Vec<u8> {
    match i % 4 {
        0 => i.to_be_bytes().to_vec(),
        1 => format!("a/rather/long/common/prefix/{i}").into_bytes(),
        2 => vec![0xFF; usize::from(i / 4)],
        _ => vec![i as u8],
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let value_len = || prop_oneof![6 => 0_usize..20, 2 => 100_usize..140, 1 => 510_usize..516];
    let any_key = || 0_u16..120;
    prop_oneof![
        12 => (any_key(), value_len(), any::<u8>()).prop_map(|(key, len, byte)| Op::Put(key, len, byte)),
        2 => (any_key(), value_len(), any::<u8>()).prop_map(|(key, len, byte)| Op::PutBytes(key, len, byte)),
        8 => any_key().prop_map(Op::Delete),
        4 => (any_key(), any::<u8>()).prop_map(|(key, by)| Op::Modify(key, by)),
        1 => (any_key(), any_key()).prop_map(|(start, end)| Op::DeleteRange(start, end)),
        2 => Just(Op::Snapshot),
        2 => any::<usize>().prop_map(Op::DropSnapshot),
        1 => any::<usize>().prop_map(Op::Restore),
        1 => Just(Op::Clear),
    ]
}

fn toggle(by: u8) -> impl Fn(&mut [u8]) {
    move |value| value.iter_mut().for_each(|byte| *byte ^= by)
}

/// Does what an operation does to the store's entries, and returns how many it found.
fn change(store: &mut HotStore, op: &Op) -> usize {
    match *op {
        Op::Put(i, len, byte) => store.put(&key(i), &vec![byte; len]).map(|()| 0),
        Op::PutBytes(i, len, byte) => store.put_bytes(&key(i), vec![byte; len].into()).map(|()| 0),
        Op::Delete(i) => store.delete(&key(i)).map(|()| 0),
        Op::Modify(i, by) => store.modify(&key(i), &mut toggle(by)).map(usize::from),
        Op::DeleteRange(start, end) => {
            store.delete_range(key(start)..key(end), usize::MAX).map(|deleted| deleted.count)
        }
        Op::Clear => {
            store.clear();
            Ok(0)
        }
        Op::Snapshot | Op::DropSnapshot(_) | Op::Restore(_) => Ok(0),
    }
    .unwrap()
}

/// Does to a model what an operation does to the entries, and returns how many it found.
fn change_model(model: &mut Model, op: &Op) -> usize {
    match *op {
        Op::Put(i, len, byte) | Op::PutBytes(i, len, byte) => {
            model.insert(key(i), vec![byte; len]);
        }
        Op::Delete(i) => {
            model.remove(&key(i));
        }
        Op::Modify(i, by) => return model.get_mut(&key(i)).map(|value| toggle(by)(value)).is_some().into(),
        Op::DeleteRange(start, end) => {
            let (start, end, before) = (key(start), key(end), model.len());
            model.retain(|key, _| *key < start || *key >= end);
            return before - model.len();
        }
        Op::Clear => model.clear(),
        Op::Snapshot | Op::DropSnapshot(_) | Op::Restore(_) => {}
    }
    0
}

/// Returns how many comparisons of snapshots found their notes.
fn run(ops: Vec<Op>) -> usize {
    let mut noted = 0;
    let (mut store, mut model) = (HotStore::new(), Model::new());
    let mut held: Vec<(StateSnapshot, Model)> = Vec::new();
    for op in ops {
        assert_eq!(change(&mut store, &op), change_model(&mut model, &op));
        match op {
            Op::Snapshot => {
                let new = (store.snapshot(), model.clone());
                for held in held.iter().rev().take(3) {
                    noted += usize::from(assert_differ(held, &new));
                    assert_differ(&new, held);
                }
                held.push(new);
            }
            Op::DropSnapshot(which) if !held.is_empty() => {
                let which = which % held.len();
                held.swap_remove(which);
            }
            Op::Restore(which) if !held.is_empty() => {
                let (snapshot, then) = &held[which % held.len()];
                store.restore(snapshot.clone());
                model.clone_from(then);
            }
            _ => {}
        }
        store.engine.validate();
        held.iter().for_each(|(snapshot, then)| assert_same(snapshot, then));
    }
    assert_same(&store.snapshot(), &model);
    drop(store);
    held.iter().for_each(|(snapshot, then)| assert_same(snapshot, then));
    for pair in held.windows(2) {
        assert_differ(&pair[0], &pair[1]);
    }
    noted
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    #[cfg_attr(miri, ignore)]
    fn agrees_with_a_map(ops in proptest::collection::vec(any_op(), 1..150)) {
        let _ = run(ops);
    }
}

proptest! {
    #![proptest_config(cases(model::model_cases()))]

    #[test]
    #[cfg_attr(miri, ignore)]
    fn agrees_with_the_model_of_all_stores(ops in model::any_ops()) {
        model::run(HotStore::new, |store: &HotStore| store.engine.validate(), ops);
    }
}

#[test]
#[cfg(feature = "conformance")]
#[cfg_attr(miri, ignore)]
fn conforms_with_tiny_parts() {
    crate::conformance::check(HotStore::new);
}

/// Few enough for Miri.
fn chosen_ops() -> Vec<Op> {
    let mut ops = Vec::new();
    for i in 0..if cfg!(miri) { 13 } else { 30_u16 } {
        ops.push(Op::Put(i * 7 % 60, usize::from(i) * 37 % 520, i as u8));
        match i % 6 {
            1 => ops.push(Op::Delete(i * 5 % 60)),
            2 => ops.push(Op::Modify(i * 7 % 60, 1)),
            3 => ops.push(Op::Snapshot),
            4 => ops.push(Op::PutBytes(i, 600, 2)),
            _ => {}
        }
    }
    ops.extend([
        Op::DropSnapshot(1),
        Op::DeleteRange(3, 40),
        Op::Restore(0),
        Op::Put(1, 5, 5),
        Op::Clear,
        Op::Put(2, 2, 2),
    ]);
    ops
}

#[test]
fn a_chosen_sequence() {
    // The short one has too few entries for notes.
    assert!(run(chosen_ops()) > 0 || cfg!(miri));
}

/// Small enough for Miri: ids used again, values put back, records that move, notes that are lost and found.
#[test]
fn chosen_snapshots_differ() {
    let mut store = HotStore::new();
    let put = |store: &mut HotStore, keys: &[u16], byte: u8, len: usize| {
        keys.iter().for_each(|&i| store.put(&key(i), &vec![byte; len]).unwrap());
    };
    let hold = |store: &HotStore| {
        let snapshot = store.snapshot();
        let model = snapshot.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        (snapshot, model)
    };
    put(&mut store, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 1, 8);
    let a = hold(&store);
    put(&mut store, &[1], 2, 8);
    let b = hold(&store);
    assert!(assert_differ(&a, &b));
    // Back to what it was; an id used for another key, and for the same; a large value.
    put(&mut store, &[1], 1, 8);
    store.delete(&key(2)).unwrap();
    put(&mut store, &[30], 3, 8);
    store.delete(&key(4)).unwrap();
    put(&mut store, &[4], 1, 8);
    put(&mut store, &[5], 4, 600);
    let c = hold(&store);
    assert!(assert_differ(&b, &c) && assert_differ(&a, &c) && assert_differ(&c, &a));
    // In place, for nobody sees it.
    store.modify(&key(5), &mut |value| value[0] = 9).unwrap();
    store.modify(&key(5), &mut |value| value[1] = 9).unwrap();
    let d = hold(&store);
    drop(b);
    assert!(assert_differ(&c, &d));
    // All at once, and more than there may be.
    store.restore(a.0.clone());
    let e = hold(&store);
    assert!(!assert_differ(&d, &e) && !assert_differ(&a, &e));
    // Each time longer than there is room for.
    [9, 30, 60].into_iter().for_each(|len| put(&mut store, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 5, len));
    let f = hold(&store);
    assert!(!assert_differ(&e, &f));
    put(&mut store, &[0], 5, 8);
    store.clear();
    let g = hold(&store);
    assert!(!assert_differ(&f, &g) && !assert_differ(&a, &g));
    drop((a, c, d, e, f));
    put(&mut store, &[0], 5, 8);
    assert!(assert_differ(&g, &hold(&store)));
    store.engine.validate();
}

/// The last page of the entry table is emptied: one record there is seen by a snapshot and moves, two stay in place.
#[test]
fn miri_entries_get_other_ids_when_few_are_left() {
    let key = |i: u16| i.wrapping_mul(7919).to_be_bytes();
    let mut store = HotStore::new();
    (0..24).for_each(|i| store.put(&key(i), &i.to_be_bytes()).unwrap());
    (0..18).for_each(|i| store.delete(&key(i)).unwrap());
    let snapshot = store.snapshot();
    (22..24).for_each(|i| store.put(&key(i), &[7; 9]).unwrap());
    assert_eq!(store.engine.table_pages(), 6);
    (18..21).for_each(|i| store.delete(&key(i)).unwrap());
    assert_eq!(store.engine.table_pages(), 5);
    store.engine.validate();
    assert_same(&snapshot, &(18..24).map(|i| (key(i).to_vec(), i.to_be_bytes().to_vec())).collect());
    drop(snapshot);
    let value = |i: u16| if i < 22 { i.to_be_bytes().to_vec() } else { vec![7; 9] };
    assert_same(&store.snapshot(), &(21..24).map(|i| (key(i).to_vec(), value(i))).collect());
}

#[test]
fn snapshots_are_read_and_dropped_elsewhere_while_the_writer_goes_on() {
    let mut store = HotStore::new();
    let entries = if cfg!(miri) { 12 } else { 2000_u16 };
    for i in 0..entries {
        store.put(&i.to_be_bytes(), &[0; 8]).unwrap();
    }
    let rounds = if cfg!(miri) { 2 } else { 50 };
    thread::scope(|scope| {
        for round in 0..rounds {
            let snapshot = store.snapshot();
            scope.spawn(move || {
                assert_eq!(snapshot.len(), usize::from(entries));
                assert!(snapshot.iter().all(|(_, value)| value[..] == [round; 8]));
            });
            for i in 0..entries {
                store.modify(&i.to_be_bytes(), &mut |value| value.fill(round + 1)).unwrap();
            }
        }
    });
    assert_eq!((store.stats().snapshots, store.stats().pinned_bytes), (0, 0));
    store.engine.validate();
}

#[test]
fn what_snapshots_leave_is_kept_for_the_next_one_and_bounded() {
    let mut store = HotStore::builder().chunk_bytes(64, 512).build();
    let write = |store: &mut HotStore, round: u32| {
        for i in 0..500_u32 {
            store.put(&i.to_be_bytes(), &[round as u8; 20]).unwrap();
        }
    };
    write(&mut store, 0);
    assert_eq!(store.stats().spare_bytes, 0);
    let mut total = Vec::new();
    for round in 1..20 {
        let snapshot = store.snapshot();
        write(&mut store, round);
        let HotStats { pinned_bytes, spare_bytes: before, .. } = store.stats();
        total.push(store.stats().total_bytes());
        assert!(pinned_bytes > 500 * 32);
        thread::spawn(move || drop(snapshot)).join().unwrap();
        let HotStats { spare_bytes, index_bytes, chunk_bytes, pinned_bytes, .. } = store.stats();
        assert_eq!(pinned_bytes, 0);
        assert!(spare_bytes > before && spare_bytes <= index_bytes + chunk_bytes / 8, "{:?}", store.stats());
    }
    // From the second one on copies lie where those before lay.
    assert!(total[1..].iter().all(|&bytes| bytes <= total[1] + total[1] / 8), "{total:?}");

    store.release_spare_memory();
    assert_eq!(store.stats().spare_bytes, 0);
    let snapshot = store.snapshot();
    write(&mut store, 20);
    drop(snapshot);
    assert!(store.stats().spare_bytes > 0);
    store.restore(store.snapshot());
    assert_eq!(store.stats().spare_bytes, 0);
    let (before, after) = (store.snapshot(), write(&mut store, 21));
    drop((before, after));
    assert!(store.stats().spare_bytes > 0);
    store.clear();
    let stats = store.stats();
    assert_eq!(stats.total_bytes(), stats.overhead_bytes);
}

#[test]
fn spare_memory_goes_before_a_budget_refuses() {
    let mut store = HotStore::builder().chunk_bytes(256, 1024).memory_budget(160_000).build();
    for i in 0..700_u32 {
        store.put(&i.to_be_bytes(), &[7; 20]).unwrap();
    }
    let snapshot = store.snapshot();
    for i in 0..300_u32 {
        store.put(&i.to_be_bytes(), &[8; 20]).unwrap();
    }
    drop(snapshot);
    let HotStats { spare_bytes, .. } = store.stats();
    assert!(spare_bytes > 3_000, "{spare_bytes}");
    let mut count = 700_u32;
    while store.put(&count.to_be_bytes(), &[7; 20]).is_ok() {
        count += 1;
    }
    let stats = store.stats();
    assert!(stats.spare_bytes == 0 && stats.total_bytes() > 158_000, "{stats:?}");
    store.engine.validate();
}

#[test]
fn memory_is_bounded_under_churn() {
    let mut store = HotStore::builder().chunk_bytes(256, 4096).build();
    let mut most = 0;
    for round in 0..200_000_u32 {
        let i = round.wrapping_mul(2_654_435_761) >> 21;
        if i % 7 == 0 {
            store.delete(&i.to_be_bytes()).unwrap();
        } else {
            store.put(&i.to_be_bytes(), &vec![1; (round % 60) as usize]).unwrap();
        }
        if round > 10_000 {
            let stats = store.stats();
            assert!(stats.dead_bytes <= stats.live_bytes * 2 / 3 + 16 * 4096, "{stats:?}");
            assert!(stats.chunk_bytes <= stats.live_bytes * 2 + 16 * 4096, "{stats:?}");
            most = most.max(stats.dead_bytes);
        }
    }
    assert!(most > 0);
    store.engine.validate();
}

#[test]
fn a_budget_refuses_growth_and_nothing_else() {
    let mut store = HotStore::builder().chunk_bytes(256, 1024).memory_budget(30_000).build();
    let mut count = 0_u32;
    let error = loop {
        match store.put(&count.to_be_bytes(), &[7; 40]) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    let StateError::OverBudget { budget, used, needed } = error else { panic!("{error}") };
    // The indexes grow in steps, which may take them beyond.
    assert!(budget == 30_000 && used <= budget + 1000 && used + needed > budget, "{error}");
    assert!(count > 100, "{count}");
    store.engine.validate();
    let snapshot = store.snapshot();
    assert!(store.put(b"another", &[0; 2000]).is_err());
    assert!(store.put_bytes(b"another", vec![0; 20_000].into()).is_err());
    assert!(store.get_or_insert(b"another", &[0; 2000]).is_err());
    assert_eq!(store.snapshot(), snapshot);
    drop(snapshot);

    for i in 0..count {
        store.put(&i.to_be_bytes(), &[8; 39]).unwrap();
    }
    for i in 0..count {
        store.delete(&i.to_be_bytes()).unwrap();
    }
    store.engine.validate();
    store.put(b"another", &[0; 200]).unwrap();
    let full = StateSnapshot::from_iter((0..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 40])));
    store.restore(full.clone());
    assert_eq!(store.snapshot(), full);
    assert!(matches!(store.put(b"one more", b""), Err(StateError::OverBudget { .. })));
    store.engine.validate();
}

#[test]
fn an_empty_store_takes_next_to_nothing() {
    let stats = HotStore::new().stats();
    assert_eq!(stats.total_bytes(), stats.overhead_bytes);
    assert!(stats.overhead_bytes < 300, "{stats:?}");
}

#[test]
fn more_chunks_than_a_location_can_name_are_a_panic_that_changes_nothing() {
    // One record in each chunk.
    let mut store = HotStore::builder().chunk_bytes(64, 64).build();
    let value = [7; 30];
    let put = |store: &mut HotStore, number: usize| store.put(&(number as u32).to_be_bytes(), &value).unwrap();
    (0..sizes::MAX_CHUNKS).for_each(|number| put(&mut store, number));
    let before = store.stats();
    assert_eq!(before.chunks, sizes::MAX_CHUNKS);
    let refused = catch_unwind(AssertUnwindSafe(|| put(&mut store, sizes::MAX_CHUNKS)));
    assert!(refused.unwrap_err().downcast::<String>().unwrap().contains("chunks of memory"));
    assert_eq!(HotStats { index_bytes: before.index_bytes, ..store.stats() }, before);
    store.engine.validate();
    store.delete(&[0; 4]).unwrap();
    put(&mut store, sizes::MAX_CHUNKS);
    assert_eq!(store.len(), sizes::MAX_CHUNKS);
    store.engine.validate();
}

/// Every allocation of every operation fails, one at a time, in a way that unwinds, which takes a nightly compiler.
#[cfg(alloc_error_hook)]
mod failing_allocations {
    use super::*;

    /// Does `f` until its allocations succeed: first none, then one, and so on. After each failure `is_done` may end
    /// it.
    fn until_it_succeeds<R>(
        store: &mut HotStore,
        f: impl Fn(&mut HotStore) -> R,
        mut is_done: impl FnMut(&HotStore) -> bool,
    ) -> Option<R> {
        for succeeding in 0.. {
            let outcome = counting::failing_after(succeeding, || f(store));
            store.engine.validate();
            if let Ok(result) = outcome {
                return Some(result);
            }
            if is_done(store) {
                break;
            }
        }
        None
    }

    fn contents(store: &HotStore) -> Model {
        store.prefix_scan(b"").map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    fn run(ops: &[Op]) {
        let (mut store, mut model) = (HotStore::new(), Model::new());
        let mut held: Vec<(StateSnapshot, Model)> = Vec::new();
        for op in ops {
            let mut after = model.clone();
            match *op {
                Op::Snapshot => {
                    let new = until_it_succeeds(
                        &mut store,
                        |store| store.snapshot(),
                        |store| {
                            assert_eq!(contents(store), model);
                            false
                        },
                    );
                    let new = (new.unwrap(), model.clone());
                    for held in held.iter().rev().take(3) {
                        assert_differ(held, &new);
                        assert_differ(&new, held);
                    }
                    held.push(new);
                }
                Op::DropSnapshot(which) if !held.is_empty() => {
                    let (snapshot, _) = held.swap_remove(which % held.len());
                    // Dropping a snapshot does not unwind.
                    counting::fail_after(which % 3);
                    drop(snapshot);
                    counting::fail_no_more();
                    store.engine.validate();
                }
                Op::Restore(which) if !held.is_empty() => {
                    let (snapshot, then) = &held[which % held.len()];
                    after.clone_from(then);
                    until_it_succeeds(
                        &mut store,
                        |store| store.restore(snapshot.clone()),
                        |store| {
                            assert_eq!(contents(store), model);
                            false
                        },
                    );
                }
                _ => {
                    let expected = change_model(&mut after, op);
                    let found = until_it_succeeds(
                        &mut store,
                        |store| change(store, op),
                        |store| {
                            let found = contents(store);
                            // Of many entries some may be changed already; nothing else has.
                            let is_one = |key| found.get(key) == model.get(key) || found.get(key) == after.get(key);
                            assert!(model.keys().chain(after.keys()).chain(found.keys()).all(is_one), "{op:?}");
                            found == after
                        },
                    );
                    assert!(matches!(op, Op::DeleteRange(..)) || found.is_none_or(|found| found == expected));
                }
            }
            model = after;
            assert_eq!(contents(&store), model);
            held.iter().for_each(|(snapshot, then)| assert_same(snapshot, then));
        }
        assert_same(&store.snapshot(), &model);
    }

    /// Notes for a snapshot that fails are kept by the next one.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn leave_the_notes_whole() {
        counting::unwind_where_allocations_fail();
        let mut failures = 0;
        for succeeding in 0.. {
            let (mut store, mut model) = (HotStore::new(), Model::new());
            let mut put = |store: &mut HotStore, i: u16, byte: u8| {
                change(store, &Op::Put(i, 8, byte));
                change_model(&mut model, &Op::Put(i, 8, byte));
                model.clone()
            };
            (0..20).for_each(|i| drop(put(&mut store, i, 0)));
            let first = (store.snapshot(), put(&mut store, 0, 0));
            let then = put(&mut store, 1, 1);
            let second = (store.snapshot(), then);
            put(&mut store, 2, 2);
            let outcome = counting::failing_after(succeeding, || store.snapshot());
            failures += usize::from(outcome.is_err());
            let then = put(&mut store, 3, 3);
            let third = (store.snapshot(), then);
            for (earlier, later) in [(&first, &second), (&first, &third), (&second, &third)] {
                assert_differ(earlier, later);
                assert_differ(later, earlier);
            }
            if outcome.is_ok() {
                break;
            }
        }
        assert!(failures > 4, "{failures}");
    }

    /// Small enough for Miri.
    #[test]
    fn leave_the_store_whole_in_a_chosen_sequence() {
        counting::unwind_where_allocations_fail();
        let few = [
            Op::Put(0, 3, 1),
            Op::PutBytes(7, 600, 2),
            Op::Snapshot,
            Op::Put(0, 9, 3),
            Op::Delete(7),
            Op::DropSnapshot(0),
        ];
        run(&if cfg!(miri) { few.to_vec() } else { chosen_ops() });
    }

    proptest! {
        #![proptest_config(cases(60))]

        #[test]
        #[cfg_attr(miri, ignore)]
        fn leave_the_store_whole(ops in proptest::collection::vec(any_op(), 1..150)) {
            counting::unwind_where_allocations_fail();
            // Once before it is counted: the thread's buffers stay.
            run(&ops);
            let ((), allocated) = counting::allocated_by(|| run(&ops));
            prop_assert_eq!(allocated.kept_bytes, 0);
        }
    }
}
