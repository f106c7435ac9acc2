//! Deltas and differences, checked against a model. Snapshots of every origin are compared; deltas are applied,
//! composed, written and opened.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::thread;

use bytes::Bytes;
use opstate::{
    Difference as Handed, Fingerprint, HotStore, ImageOptions, InMemoryStore, StateDelta, StateError, StateSnapshot,
    StateStore, StateStoreExt,
};
use proptest::prelude::*;

use crate::support::allocator::allocated_by;
use crate::support::cases::cases;
use crate::support::model::{any_key, any_value};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;
type Difference = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

/// Returns the differences between two models, in order.
fn differences(earlier: &Model, later: &Model) -> Vec<Difference> {
    let keys: BTreeSet<_> = earlier.keys().chain(later.keys()).collect();
    let all = keys.into_iter().map(|key| (key.clone(), earlier.get(key).cloned(), later.get(key).cloned()));
    all.filter(|(_, old, new)| old != new).collect()
}

fn snapshot_of(model: &Model) -> StateSnapshot {
    StateSnapshot::from_sorted(model.clone()).unwrap()
}

fn image_of(delta: &StateDelta, segment_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    let written = delta.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
    assert_eq!(written, image.len() as u64);
    image
}

/// Checks a delta and the differences between two snapshots. Also checks that the delta survives a round trip through
/// its image.
fn check_between(earlier: &StateSnapshot, later: &StateSnapshot, before: &Model, after: &Model) -> StateDelta {
    let expected = differences(before, after);
    let found: Vec<Difference> = (later.diff(earlier))
        .map(|Handed { key, old, new }| (key.to_vec(), old.map(|old| old.to_vec()), new.map(|new| new.to_vec())))
        .collect();
    assert_eq!(found, expected);

    let delta = later.delta_since(earlier);
    check_delta(&delta, &expected);
    assert_eq!(delta.timestamp_ns(), later.timestamp_ns());
    assert_eq!(delta.base_fingerprint(), snapshot_of(before).fingerprint());
    assert_eq!(delta.result_fingerprint(), snapshot_of(after).fingerprint());
    for opened in [delta.to_bytes(), image_of(&delta, 40).into(), unaligned(&delta.to_bytes())] {
        let opened = StateDelta::from_bytes(opened).unwrap();
        check_delta(&opened, &expected);
        assert_eq!(opened, delta);
        assert_eq!(opened.timestamp_ns(), delta.timestamp_ns());
        assert_eq!(opened.to_bytes(), delta.to_bytes());
        check_applied(&earlier.apply(&opened).unwrap(), later, after);
    }
    check_applied(&earlier.apply(&delta).unwrap(), later, after);
    delta
}

fn unaligned(image: &[u8]) -> Bytes {
    Bytes::from([&[0], image].concat()).slice(1..)
}

fn check_delta(delta: &StateDelta, expected: &[Difference]) {
    let entries: Vec<_> = delta.iter().map(|(key, new)| (key.to_vec(), new.map(|new| new.to_vec()))).collect();
    let puts: Vec<_> = expected.iter().map(|(key, _, new)| (key.clone(), new.clone())).collect();
    assert_eq!(entries, puts);
    let mut visited = Vec::new();
    delta.visit(|key, new| {
        visited.push((key.to_vec(), new.map(<[u8]>::to_vec)));
        ControlFlow::Continue(())
    });
    assert_eq!(visited, puts);
    let count = |is: fn(&Difference) -> bool| expected.iter().filter(|difference| is(difference)).count();
    assert_eq!((delta.len(), delta.is_empty()), (expected.len(), expected.is_empty()));
    assert_eq!(delta.deletes(), count(|(_, _, new)| new.is_none()));
    assert_eq!(delta.puts(), count(|(_, _, new)| new.is_some()));
    assert_eq!(delta.inserts(), count(|(_, old, _)| old.is_none()));
    assert_eq!(delta.updates(), count(|(_, old, new)| old.is_some() && new.is_some()));
    let size = |(key, _, new): &Difference| key.len() + new.as_ref().map_or(0, Vec::len);
    assert_eq!(delta.size_bytes(), expected.iter().map(size).sum::<usize>());
}

/// Checks that applying a delta gives exactly the contents that the delta leads to.
fn check_applied(applied: &StateSnapshot, direct: &StateSnapshot, model: &Model) {
    assert_eq!(applied, direct);
    assert_eq!(applied.to_bytes(), direct.to_bytes());
    assert_eq!(applied.fingerprint(), snapshot_of(model).fingerprint());
    assert_eq!((applied.len(), applied.size_bytes()), (direct.len(), direct.size_bytes()));
    for (key, value) in model {
        assert_eq!(applied.get(key).as_deref(), Some(&value[..]));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, Vec<u8>),
    Modify(u8),
    Delete(u8),
    DeleteRange(u8, u8),
    PutBack(u8),
    Replace(u8, u8),
    Snapshot,
    Drop(usize),
    Restore(usize),
    Clear,
}

fn key(i: u8) -> Vec<u8> {
    match i % 3 {
        0 => vec![i],
        1 => format!("a/rather/long/common/prefix/{i}").into_bytes(),
        // These values differ only in their number of zeros.
        _ => vec![0; usize::from(i / 3)],
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let any_len = prop_oneof![8 => 0_usize..20, 1 => 100_usize..130, 1 => 511_usize..514];
    let any_value = (any_len, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
    let any_i = || 0_u8..60;
    prop_oneof![
        12 => (any_i(), any_value).prop_map(|(i, value)| Op::Put(i, value)),
        4 => any_i().prop_map(Op::Modify),
        6 => any_i().prop_map(Op::Delete),
        1 => (any_i(), any_i()).prop_map(|(a, b)| Op::DeleteRange(a, b)),
        2 => any_i().prop_map(Op::PutBack),
        3 => (any_i(), any_i()).prop_map(|(a, b)| Op::Replace(a, b)),
        5 => Just(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::Drop),
        1 => any::<usize>().prop_map(Op::Restore),
        1 => Just(Op::Clear),
    ]
}

/// Runs `ops` and returns the snapshots alive at the end, each with its contents.
fn run(store: &mut dyn StateStore, ops: &[Op]) -> Vec<(StateSnapshot, Model)> {
    let (mut model, mut held) = (Model::new(), vec![(store.snapshot(), Model::new())]);
    for op in ops {
        match op {
            Op::Put(i, value) => {
                store.put(&key(*i), value).unwrap();
                model.insert(key(*i), value.clone());
            }
            Op::Modify(i) => {
                let change = |value: &mut [u8]| value.iter_mut().for_each(|byte| *byte ^= 1);
                store.modify(&key(*i), &mut { change }).unwrap();
                if let Some(value) = model.get_mut(&key(*i)) {
                    change(value);
                }
            }
            Op::Delete(i) => {
                store.delete(&key(*i)).unwrap();
                model.remove(&key(*i));
            }
            Op::DeleteRange(a, b) => {
                let (start, end) = (key(*a), key(*b));
                store.delete_range(&start..&end, usize::MAX).unwrap();
                model.retain(|key, _| *key < start || *key >= end);
            }
            // Restore the value of the last snapshot.
            Op::PutBack(i) => match held.last().and_then(|(_, then)| then.get(&key(*i))) {
                Some(value) => {
                    store.put(&key(*i), value).unwrap();
                    model.insert(key(*i), value.clone());
                }
                None => {
                    store.delete(&key(*i)).unwrap();
                    model.remove(&key(*i));
                }
            },
            // Delete one entry, so that its id is reused for the other.
            Op::Replace(a, b) => {
                store.delete(&key(*a)).unwrap();
                model.remove(&key(*a));
                store.put(&key(*b), b"replaced").unwrap();
                model.insert(key(*b), b"replaced".to_vec());
            }
            Op::Snapshot => held.push((store.snapshot(), model.clone())),
            Op::Drop(which) => drop(held.remove(which % held.len())),
            Op::Restore(which) => {
                let (snapshot, then) = &held[which % held.len()];
                store.restore(snapshot.clone());
                model.clone_from(then);
            }
            Op::Clear => {
                store.clear();
                model.clear();
            }
        }
        if held.is_empty() {
            held.push((store.snapshot(), model.clone()));
        }
    }
    held.push((store.snapshot(), model));
    held
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_pair_of_snapshots(ops in proptest::collection::vec(any_op(), 1..120), other in any_model()) {
        let mut hot = HotStore::new();
        for held in [run(&mut hot, &ops), run(&mut InMemoryStore::new(), &ops)] {
            for (earlier, before) in held.iter().rev().take(4) {
                for (later, after) in held.iter().rev().take(4) {
                    let delta = check_between(earlier, later, before, after);
                    // The store's record of changes must give the same delta as a walk over both snapshots.
                    let walked = later.delta_since(&snapshot_of(before));
                    prop_assert_eq!(delta.to_bytes(), walked.to_bytes());
                }
                check_between(earlier, &snapshot_of(&other), before, &other);
                check_between(&StateSnapshot::from_bytes(snapshot_of(&other).to_bytes()).unwrap(), earlier, &other, before);
            }
        }
    }

    #[test]
    fn chains_are_applied_and_composed(ops in proptest::collection::vec(any_op(), 1..150), cut in any::<prop::sample::Index>()) {
        let held = run(&mut HotStore::new(), &ops);
        let (base, last) = (&held[0].0, held.last().unwrap());
        let deltas: Vec<StateDelta> = (held.windows(2))
            .map(|pair| StateDelta::from_bytes(pair[1].0.delta_since(&pair[0].0).to_bytes()).unwrap())
            .collect();
        let base = StateSnapshot::from_bytes(base.to_bytes()).unwrap();
        let mut now = base.clone();
        for (delta, (snapshot, model)) in deltas.iter().zip(&held[1..]) {
            now = now.apply(delta).unwrap();
            check_applied(&now, snapshot, model);
        }

        // Compose all at once, and in two parts.
        let compose =
            |deltas: &[StateDelta]| deltas.iter().skip(1).try_fold(deltas[0].clone(), |all, next| all.compose(next));
        let composed = compose(&deltas).unwrap();
        let (front, back) = deltas.split_at(1 + cut.index(deltas.len()));
        let front = compose(front).unwrap();
        let both = if back.is_empty() { front } else { front.compose(&compose(back).unwrap()).unwrap() };
        prop_assert_eq!(&both, &composed);
        check_applied(&base.apply(&composed).unwrap(), &last.0, &last.1);
        prop_assert_eq!(&StateDelta::from_bytes(composed.to_bytes()).unwrap(), &composed);

        // The composed delta may differ from the direct one only by values that were put back.
        let direct: BTreeMap<_, _> = last.0.delta_since(&base).iter().collect();
        let mut all: BTreeMap<_, _> = composed.iter().collect();
        all.retain(|key, new| direct.contains_key(key) || {
            let (Some(new), Some(old)) = (new.as_ref(), base.get(key)) else { panic!("{key:?} is there for nothing") };
            assert_eq!(new, &old);
            false
        });
        prop_assert_eq!(all, direct);
    }

    #[test]
    fn an_applied_snapshot_reads_like_any_other(
        chain in proptest::collection::vec(any_model(), 2..7),
        asked in proptest::collection::vec(any_key(), 1..5),
    ) {
        let snapshots: Vec<_> = chain.iter().map(snapshot_of).collect();
        let mut now = snapshots[0].clone();
        for (pair, model) in snapshots.windows(2).zip(&chain[1..]) {
            now = now.apply(&pair[1].delta_since(&pair[0])).unwrap();
            check_applied(&now, &pair[1], model);
            for key in &asked {
                prop_assert_eq!(now.get(key), model.get(key).cloned().map(Bytes::from));
                for end in &asked {
                    let range = (Bound::Excluded(&key[..]), Bound::Included(&end[..]));
                    prop_assert!(now.scan(range).eq(pair[1].scan(range)));
                    let (mut visited, mut left) = (Vec::new(), 3);
                    now.visit_range(range, |key, value| {
                        visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                        left -= 1;
                        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    });
                    prop_assert_eq!(visited, pair[1].scan(range).take(3).collect::<Vec<_>>());
                }
            }
        }
    }
}

fn any_model() -> impl Strategy<Value = Model> {
    let near = (0_u8..60).prop_map(key);
    proptest::collection::btree_map(prop_oneof![near, any_key()], any_value(), 0..40)
}

/// Puts the entries with these numbers under shuffled keys, with values of `byte`.
fn put_all(store: &mut dyn StateStore, numbers: impl Iterator<Item = u32>, byte: u8) {
    for i in numbers {
        let key = i.wrapping_mul(0x9E37_79B9).to_be_bytes();
        store.put(&key, &vec![byte; 8 + i as usize % 9]).unwrap();
    }
}

fn model_of(snapshot: &StateSnapshot) -> Model {
    snapshot.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

#[test]
fn in_a_large_store_every_route_gives_the_same() {
    let mut store = HotStore::new();
    put_all(&mut store, 0..40_000, 1);
    let first = store.snapshot();
    assert_eq!(store.stats().journal_bytes, 0);

    // The journal finds these changes.
    put_all(&mut store, (0..40_000).step_by(97), 2);
    let second = store.snapshot();
    assert!(store.stats().journal_bytes > 0);
    let (model, before) = (model_of(&second), model_of(&first));
    assert_eq!(check_between(&first, &second, &before, &model).len(), 413);
    let noted = second.delta_since(&first);

    // These changes overflow the journal. The second round puts the old values back, and pages find that.
    for byte in [3, 1] {
        put_all(&mut store, 0..40_000, byte);
        // Allow two bytes per entry and 16 KiB for notes, and as much for earlier epochs.
        assert!(store.stats().journal_bytes <= 2 * (80_000 + (16 << 10)), "{}", store.stats().journal_bytes);
    }
    put_all(&mut store, (0..40_000).step_by(97), 2);
    let third = store.snapshot().with_timestamp_ns(second.timestamp_ns());
    assert!(third.delta_since(&second).is_empty());
    assert_eq!(third.delta_since(&first).to_bytes(), noted.to_bytes());

    // Compare with another store and with an image.
    let mut other = HotStore::new();
    other.restore(first.clone());
    assert_eq!(second.delta_since(&other.snapshot()).to_bytes(), noted.to_bytes());
    let opened = StateSnapshot::from_bytes(first.to_bytes()).unwrap();
    assert_eq!(second.delta_since(&opened).to_bytes(), noted.to_bytes());

    // Compare after everything was deleted and put back in another order.
    store.restore(second.clone());
    put_all(&mut store, [5, 7].into_iter(), 9);
    let fourth = store.snapshot();
    let expected = model_of(&fourth);
    assert_eq!(check_between(&second, &fourth, &model, &expected).len(), 2);
}

#[test]
fn entries_that_are_moved_and_then_changed_in_place_are_found() {
    let mut store = HotStore::new();
    let is_long = |i: u32| i % 13 < 6;
    let value = |i: u32, byte: u8| vec![byte; if is_long(i) { 400 } else { 8 }];
    for i in 0..900_u32 {
        store.put(&i.to_be_bytes(), &value(i, 1)).unwrap();
    }
    let earlier = store.snapshot();
    // The long values leave mostly dead chunks. The short ones are evacuated from them.
    for byte in 2..6 {
        for i in (0..900).filter(|&i| is_long(i)) {
            store.put(&i.to_be_bytes(), &value(i, byte)).unwrap();
        }
    }
    for i in (0..900).filter(|&i| !is_long(i)) {
        store.modify(&i.to_be_bytes(), &mut |value| value.fill(2)).unwrap();
    }
    // The journal must not overflow, or its notes would not be read.
    assert!(store.stats().journal_bytes > 14_000, "{:?}", store.stats());
    let later = store.snapshot();
    assert_eq!(later.diff(&earlier).count(), 900);
    assert_eq!(later.delta_since(&earlier), later.delta_since(&snapshot_of(&model_of(&earlier))));
}

#[test]
fn nothing_is_noted_without_snapshots() {
    let mut store = HotStore::new();
    put_all(&mut store, 0..5000, 1);
    drop(store.snapshot());
    put_all(&mut store, 0..5000, 2);
    assert_eq!(store.stats().journal_bytes, 0);
    let snapshot = store.snapshot();
    put_all(&mut store, 0..1000, 3);
    assert!((16_000..36_000).contains(&store.stats().journal_bytes), "{}", store.stats().journal_bytes);
    // Overwrite the same values in place.
    let noted = store.stats().journal_bytes;
    for _ in 0..10 {
        put_all(&mut store, 0..1000, 4);
    }
    assert_eq!(store.stats().journal_bytes, noted);
    drop(snapshot);
    put_all(&mut store, 5000..5001, 5);
    assert_eq!(store.stats().journal_bytes, 0);
}

#[test]
fn deltas_are_taken_elsewhere_while_the_writer_goes_on() {
    let mut store = HotStore::new();
    put_all(&mut store, 0..3000, 0);
    let mut earlier = store.snapshot();
    let base = StateSnapshot::from_bytes(earlier.to_bytes()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel::<(StateSnapshot, StateSnapshot)>();
    let chain = thread::spawn(move || {
        receiver.into_iter().fold(base, |base, (earlier, later)| {
            let delta = StateDelta::from_bytes(later.delta_since(&earlier).to_bytes()).unwrap();
            let applied = base.apply(&delta).unwrap();
            assert_eq!(applied.to_bytes(), later.to_bytes());
            applied
        })
    });
    for round in 1..40 {
        put_all(&mut store, (round..3000).step_by(50 + round as usize), round as u8);
        store.delete(&(round * 13).wrapping_mul(0x9E37_79B9).to_be_bytes()).unwrap();
        let later = store.snapshot();
        sender.send((earlier, later.clone())).unwrap();
        earlier = later;
    }
    drop(sender);
    assert_eq!(chain.join().unwrap(), store.snapshot());
    drop(earlier);
    put_all(&mut store, 3000..3001, 0);
    assert_eq!((store.stats().snapshots, store.stats().journal_bytes), (0, 0));
}

#[test]
fn a_wrong_base_is_refused_and_changes_nothing() {
    let [a, b, c] = [&[("x", "1")][..], &[("x", "2")], &[("x", "2"), ("y", "1")]]
        .map(|entries| StateSnapshot::from_iter(entries.iter().copied()));
    let (ab, bc) = (b.delta_since(&a), c.delta_since(&b));
    let error = a.apply(&bc).unwrap_err();
    let StateError::WrongBase { found, expected } = error else { panic!("{error}") };
    assert_eq!((found, expected), (a.fingerprint(), b.fingerprint()));
    assert!(error.to_string().contains(&found.to_string()) && error.to_string().contains("in order"), "{error}");
    let error = bc.compose(&ab).unwrap_err();
    assert!(matches!(error, StateError::WrongBase { found, .. } if found == c.fingerprint()), "{error}");
    assert_eq!(ab.compose(&bc).unwrap(), c.delta_since(&a));

    for mut store in [Box::new(HotStore::new()) as Box<dyn StateStore>, Box::new(InMemoryStore::new())] {
        store.restore(a.clone());
        assert!(matches!(store.apply(&bc), Err(StateError::WrongBase { .. })));
        assert_eq!(store.snapshot(), a);
        store.apply(&ab).unwrap();
        store.apply(&bc).unwrap();
        assert_eq!(store.snapshot(), c);
        assert!(matches!(store.apply(&bc), Err(StateError::WrongBase { .. })));
        assert_eq!(store.snapshot(), c);
    }
}

#[test]
fn a_store_that_has_no_room_for_a_delta_stays_as_it_was() {
    let base = StateSnapshot::from_iter((0..100_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 40])));
    let large = StateSnapshot::from_iter((50..5000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![2; 40])));
    let mut store = HotStore::builder().memory_budget(100_000).build();
    store.restore(base.clone());
    let error = store.apply(&large.delta_since(&base)).unwrap_err();
    assert!(matches!(error, StateError::OverBudget { .. }), "{error}");
    assert_eq!(store.snapshot(), base);
}

#[test]
fn composing_forgets_what_came_and_went() {
    let chain = [
        &[("a", "1"), ("b", "1")][..],
        &[("a", "1"), ("b", "2"), ("new", "1")],
        &[("a", "1"), ("b", "1")],
        &[("b", "1")],
        &[("a", "1"), ("b", "1")],
    ];
    let snapshots = chain.map(|entries| StateSnapshot::from_iter(entries.iter().copied()));
    let deltas: Vec<_> = snapshots.windows(2).map(|pair| pair[1].delta_since(&pair[0])).collect();
    let composed = deltas[0].compose(&deltas[1]).unwrap();
    // The key "new" is gone again. The composed delta cannot know that "b" has its old value.
    assert_eq!((composed.len(), composed.updates()), (1, 1));
    assert_eq!(composed.base_fingerprint(), composed.result_fingerprint());
    let composed = deltas[2].compose(&deltas[3]).unwrap();
    assert_eq!(composed.iter().collect::<Vec<_>>(), [("a".into(), Some("1".into()))]);
    assert_eq!(composed.updates(), 1);
    assert_eq!(snapshots[2].apply(&composed).unwrap(), snapshots[4]);
}

#[test]
fn fingerprints_are_known_along_a_chain() {
    let mut store = HotStore::new();
    put_all(&mut store, 0..1000, 1);
    let first = store.snapshot();
    put_all(&mut store, 0..10, 2);
    let second = store.snapshot();
    put_all(&mut store, 990..1010, 3);
    let third = store.snapshot();
    let expected = [&first, &second, &third].map(|snapshot| snapshot_of(&model_of(snapshot)).fingerprint());

    // Compare the middle snapshot, whose image is written, with both others.
    second.to_bytes();
    let (back, forth) = (second.delta_since(&first), third.delta_since(&second));
    assert_eq!((back.base_fingerprint(), forth.result_fingerprint()), (expected[0], expected[2]));
    assert_eq!([&first, &second, &third].map(StateSnapshot::fingerprint), expected);
    // Compare snapshots whose fingerprints are all unknown.
    let again = store.snapshot().delta_since(&StateSnapshot::from_iter(model_of(&first)));
    assert_eq!((again.base_fingerprint(), again.result_fingerprint()), (expected[0], expected[2]));
    let empty = StateSnapshot::from_iter(Model::new());
    assert_eq!(second.delta_since(&empty).base_fingerprint(), Fingerprint::EMPTY);
}

#[test]
fn an_opened_delta_is_not_copied() {
    let (old, new) = (StateSnapshot::from_iter([("a", "1")]), StateSnapshot::from_iter([("key", vec![7; 1 << 20])]));
    let image = new.delta_since(&old).to_bytes();
    let place = image.as_ptr_range();
    let (delta, allocated) = allocated_by(|| StateDelta::from_bytes(image.clone()).unwrap());
    assert!(allocated.peak_bytes < 4096, "{}", allocated.peak_bytes);
    let (key, value) = delta.iter().last().unwrap();
    assert!(place.contains(&key.as_ptr()) && place.contains(&value.unwrap().as_ptr()));
    let (applied, allocated) = allocated_by(|| old.apply(&delta).unwrap());
    assert!(allocated.peak_bytes < 4096, "{}", allocated.peak_bytes);
    assert!(place.contains(&applied.get(b"key").unwrap().as_ptr()));
}

#[test]
fn a_snapshot_and_a_delta_are_told_apart() {
    let snapshot = StateSnapshot::from_iter([("a", "1")]);
    let delta = snapshot.delta_since(&StateSnapshot::from_iter([("b", "1")]));
    let error = StateSnapshot::from_bytes(delta.to_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image holds a delta, expected a snapshot; open it as a `StateSnapshot`, a `StateDelta` or a \
         `GroupedImage`, whichever it is"
    );
    let error = StateDelta::from_bytes(snapshot.to_bytes()).unwrap_err();
    assert!(matches!(error, StateError::UnexpectedKind { found: "snapshot", expected: "delta" }), "{error}");
}

#[test]
fn a_long_chain_is_applied_with_few_allocations() {
    // Changes are not copied for every later delta, and a read does not search all deltas.
    let mut store = InMemoryStore::new();
    put_all(&mut store, 0..2000, 0);
    let mut earlier = store.snapshot();
    let mut applied = StateSnapshot::from_bytes(earlier.to_bytes()).unwrap();
    for round in 0..1000_u32 {
        store.put(&round.wrapping_mul(0x9E37_79B9).to_be_bytes(), &round.to_be_bytes()).unwrap();
        let later = store.snapshot();
        let delta = StateDelta::from_bytes(later.delta_since(&earlier).to_bytes()).unwrap();
        let (next, allocated) = allocated_by(|| applied.apply(&delta).unwrap());
        assert!(allocated.calls < 60, "{}", allocated.calls);
        (applied, earlier) = (next, later);
    }
    assert_eq!(applied.to_bytes(), earlier.to_bytes());
}

#[test]
fn deltas_are_equal_if_they_lead_from_the_same_to_the_same() {
    let of = |entries: &[(&[u8], &[u8])]| {
        StateSnapshot::from_sorted(entries.iter().map(|(key, value)| (key.to_vec(), value.to_vec()))).unwrap()
    };
    let (base, grown, other) =
        (of(&[(b"a", b"1")]), of(&[(b"a", b"1"), (b"b", b"2")]), of(&[(b"a", b"1"), (b"b", b"3")]));
    let delta = grown.delta_since(&base);
    assert_eq!(delta, of(&[(b"a", b"1"), (b"b", b"2")]).delta_since(&base));
    assert_eq!(delta, StateDelta::from_bytes(delta.to_bytes()).unwrap());
    assert_eq!(delta, delta.clone());
    // Try another value, the reverse change, and the same change from another base.
    let elsewhere = of(&[(b"b", b"2"), (b"c", b"4")]).delta_since(&of(&[(b"c", b"4")]));
    for different in [other.delta_since(&base), base.delta_since(&grown), base.delta_since(&base), elsewhere] {
        assert_ne!(delta, different);
        assert_ne!(different, delta);
    }
    let shown = format!("{delta:?}");
    assert!(shown.starts_with("StateDelta") && shown.contains('1'), "{shown}");
}
