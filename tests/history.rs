//! Chains of snapshots: memory and costs depend on the contents, not on how many deltas and merges led to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use opstate::{
    HotStore, InMemoryStore, KeyBounds, KeyGroups, Label, SnapshotSource, StateDelta, StateError, StateSnapshot,
    StateStore, TryScan, UnverifiedImage,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::allocator::{Allocated, allocated_by};
use crate::support::cases::cases;
use crate::support::layout::{TRAILER, get_u64, seal, set_u64};
use crate::support::model::{any_key, any_value};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn snapshot_of(model: &Model) -> StateSnapshot {
    StateSnapshot::from_sorted(model.clone()).unwrap()
}

/// Returns the delta from `earlier` to `later`, opened from its image.
fn opened_delta(earlier: &StateSnapshot, later: &StateSnapshot) -> StateDelta {
    StateDelta::from_bytes(later.delta_since(earlier).to_bytes()).unwrap()
}

/// Checks every entry from both ends, every lookup and the totals.
fn assert_same(snapshot: &StateSnapshot, model: &Model) {
    assert_eq!(snapshot.len(), model.len());
    assert_eq!(snapshot.size_bytes(), model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
    assert!(snapshot.iter().eq(model.iter().map(|(k, v)| (Bytes::from(k.clone()), Bytes::from(v.clone())))));
    assert!(snapshot.iter().rev().eq(model.iter().rev().map(|(k, v)| (Bytes::from(k.clone()), v.clone().into()))));
    assert!(snapshot.iter().all(|(_, value)| value.is_empty() || value.as_ptr().addr() % 16 == 0));
    assert!(model.iter().all(|(key, value)| snapshot.get(key).as_deref() == Some(&value[..])));
}

/// Follows 500 deltas of 1,000 replaced values of 1 KB, each with one value of 600 bytes that nothing replaces.
fn replace_500_times(mut step: impl FnMut(&StateDelta)) -> Model {
    let mut model: Model = (0..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![0; 1000])).collect();
    let mut earlier = snapshot_of(&model);
    for round in 0..500_u32 {
        model
            .values_mut()
            .filter(|value| value.len() == 1000)
            .for_each(|value| value.fill((round as u8).wrapping_add(1)));
        model.insert([b"kept/", &round.to_be_bytes()[..]].concat(), vec![round as u8; 600]);
        let later = snapshot_of(&model);
        step(&opened_delta(&earlier, &later));
        earlier = later;
    }
    model
}

#[test]
fn a_chain_of_applied_deltas_keeps_what_is_left_of_them() {
    let mut applied: StateSnapshot = (0..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![0; 1000])).collect();
    let mut kept = 0;
    let model = replace_500_times(|delta| {
        // The delta is dropped by its owner, so what is counted for its image is what the snapshot keeps of it.
        let (next, allocated) = allocated_by(|| applied.apply(&StateDelta::from_slice(&delta.to_bytes()).unwrap()));
        kept += allocated.kept_bytes;
        let old = std::mem::replace(&mut applied, next.unwrap());
        let ((), allocated) = allocated_by(|| drop(old));
        kept += allocated.kept_bytes;
    });
    assert_same(&applied, &model);
    // The contents have 1.3 MB.
    assert!(kept < 3_000_000, "{kept}");
}

#[test]
fn a_chain_of_composed_deltas_keeps_what_is_left_of_them() {
    let mut composed: Option<StateDelta> = None;
    let mut kept = 0;
    replace_500_times(|delta| {
        let (next, allocated) = allocated_by(|| {
            let delta = StateDelta::from_slice(&delta.to_bytes()).unwrap();
            composed.as_ref().map_or_else(|| delta.clone(), |composed| composed.compose(&delta).unwrap())
        });
        kept += allocated.kept_bytes;
        let ((), allocated) = allocated_by(|| composed = Some(next));
        kept += allocated.kept_bytes;
    });
    assert_eq!(composed.map(|composed| composed.len()), Some(1500));
    assert!(kept < 3_000_000, "{kept}");
}

#[test]
fn an_image_that_is_much_larger_than_its_changes_is_not_kept() {
    let base = StateSnapshot::from_iter((0..100_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 100])));
    let later = StateSnapshot::from_iter((0..101_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 100])));
    let image = later.with_label(Label::new().user(vec![7; 1 << 20])).delta_since(&base).to_bytes();
    base.fingerprint();
    let (applied, allocated) = allocated_by(|| {
        let delta = StateDelta::from_slice(&image).unwrap();
        base.apply(&delta).unwrap().with_label(Label::new())
    });
    assert_eq!(applied, later);
    assert!(allocated.kept_bytes < 2000, "{}", allocated.kept_bytes);

    // Changes between snapshots are slices of whatever these snapshots lie in.
    let large = StateSnapshot::from_iter((0..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 1000])));
    let (applied, allocated) = allocated_by(|| {
        let later = StateSnapshot::from_slice(&large.to_bytes()).unwrap();
        let earlier = StateSnapshot::from_iter((1..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 1000])));
        base.apply(&later.delta_since(&base)).unwrap();
        large_without_first(&large).apply(&later.delta_since(&earlier)).unwrap()
    });
    assert_eq!(applied, large);
    // The base is part of it.
    assert!(allocated.kept_bytes < 1_200_000, "{}", allocated.kept_bytes);
}

fn large_without_first(large: &StateSnapshot) -> StateSnapshot {
    large.iter().skip(1).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

#[test]
fn a_handle_of_a_scan_keeps_no_room_for_larger_entries() {
    let mut store = HotStore::new();
    for i in 0..84_u32 {
        store.put(&[&i.to_be_bytes()[..], &[0; 4000]].concat(), b"").unwrap();
    }
    store.put(&[0xFF; 4], b"").unwrap();
    // The last batch of the scan has one short key.
    let (last, allocated) = allocated_by(|| store.prefix_scan(b"").last().unwrap());
    assert_eq!(last.0, [0xFF; 4][..]);
    assert!(allocated.kept_bytes < 5000, "{}", allocated.kept_bytes);
}

/// Applies `rounds` deltas, each of which deletes the `step` oldest of `live` entries and inserts as many. Calls `watch`
/// with every result and what it allocated.
fn slide(base: u32, live: u32, step: u32, rounds: u32, mut watch: impl FnMut(u32, &StateSnapshot, Allocated)) {
    let entry = |i: u32| (i.to_be_bytes().to_vec(), vec![i as u8; 20]);
    let mut earlier: StateSnapshot = (0..base).map(entry).collect();
    let mut applied = earlier.clone();
    applied.fingerprint();
    let mut window: VecDeque<u32> = (0..base).collect();
    for round in 0..rounds {
        let newest = window.back().copied().unwrap_or(0);
        window.extend(newest + 1..=newest + step);
        window.drain(..window.len() - live as usize);
        let later: StateSnapshot = window.iter().copied().map(entry).collect();
        let delta = opened_delta(&earlier, &later);
        let (next, allocated) = allocated_by(|| applied.apply(&delta).unwrap());
        if round % 100 == 0 {
            assert_eq!(next, later);
        }
        watch(round, &next, allocated);
        (applied, earlier) = (next, later);
    }
    assert_eq!(applied, earlier);
}

#[test]
fn a_sliding_window_costs_the_same_after_any_number_of_deltas() {
    let (mut calls, mut peak_bytes) = ([0; 10], [0; 10]);
    slide(100, 100, 10, 5000, |round, _, allocated| {
        // Costs vary from round to round, because lists are merged now and then.
        let at = round as usize / 500;
        calls[at] += allocated.calls;
        peak_bytes[at] = peak_bytes[at].max(allocated.peak_bytes);
    });
    assert!(calls.iter().all(|calls| *calls <= 500 * 30), "{calls:?}");
    assert!(peak_bytes.iter().all(|bytes| *bytes <= peak_bytes[0] * 11 / 10), "{peak_bytes:?}");
    assert!(peak_bytes[0] < 60_000, "{peak_bytes:?}");
}

#[test]
fn a_sliding_window_keeps_memory_for_its_entries_only() {
    let mut held = Vec::new();
    slide(100, 100, 100, 5000, |_, snapshot, _| {
        held.clear();
        held.push(snapshot.clone());
    });
    // Counted by what is freed, because most of what a step allocates is shared with the next.
    let ((), allocated) = allocated_by(|| drop(held));
    assert!(allocated.kept_bytes > -60_000, "{}", allocated.kept_bytes);
}

#[test]
fn a_base_whose_entries_are_gone_is_let_go_of() {
    // The base has 24 MB.
    let (mut last, entry) = (None, |i: u32| (i.to_be_bytes().to_vec(), vec![1; 1000]));
    let ((), allocated) = allocated_by(|| {
        let mut earlier: StateSnapshot = (0..24_000).map(entry).collect();
        let mut applied = earlier.clone();
        for round in 1..=24 {
            let later: StateSnapshot = (round * 1000..24_050).map(entry).collect();
            applied = applied.apply(&opened_delta(&earlier, &later)).unwrap();
            earlier = later;
        }
        assert_eq!(applied, earlier);
        last = Some(applied);
    });
    assert!(allocated.kept_bytes < 200_000, "{}", allocated.kept_bytes);
    assert_eq!(last.unwrap().len(), 50);
}

#[test]
fn a_base_of_which_more_is_left_than_was_changed_is_not_copied() {
    let base: StateSnapshot = (0..10_u8).map(|i| (vec![i], vec![i; 1 << 20])).collect();
    let mut later: Model = base.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
    later.extend((0..100_u8).map(|i| (vec![9, i], vec![i; 10])));
    let later = snapshot_of(&later);
    let delta = opened_delta(&base, &later);
    base.fingerprint();
    let (applied, allocated) = allocated_by(|| base.apply(&delta).unwrap());
    assert!(allocated.peak_bytes < 40_000, "{}", allocated.peak_bytes);
    assert_eq!(applied, later);
    assert_eq!(applied.get(&[3]).unwrap().as_ptr(), base.get(&[3]).unwrap().as_ptr());
}

/// A third-party source with any totals, whose reads fail once `reads` have been made.
struct Totals {
    entries: Model,
    len: usize,
    size_bytes: usize,
    reads: Arc<AtomicUsize>,
}

impl Totals {
    fn of(entries: &Model, len: usize, size_bytes: usize) -> Self {
        Self { entries: entries.clone(), len, size_bytes, reads: Arc::new(AtomicUsize::new(usize::MAX)) }
    }

    fn read<T>(&self, read: T) -> Result<T, StateError> {
        let left = self.reads.load(Ordering::Relaxed);
        self.reads.store(left.saturating_sub(1), Ordering::Relaxed);
        if left > 0 { Ok(read) } else { Err(StateError::store("no more reads")) }
    }
}

impl SnapshotSource for Totals {
    fn len(&self) -> usize {
        self.len
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.read(self.entries.get(key).cloned().map(Bytes::from))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let entries = self.entries.range::<[u8], _>(bounds);
        TryScan::new(entries.map(|(key, value)| self.read((key.clone().into(), value.clone().into()))))
    }
}

#[test]
fn a_base_that_cannot_be_read_when_it_is_to_be_copied_is_an_error() {
    let model: Model = (0..100_u8).map(|i| (vec![i], vec![i; 10])).collect();
    let mut later = model.clone();
    later.retain(|key, _| key[0] >= 60);
    later.extend((0..100_u8).map(|i| (vec![200, i], vec![i; 10])));
    let delta = snapshot_of(&later).delta_since(&snapshot_of(&model));
    let mut failed = 0;
    for reads in 0.. {
        let source = Totals::of(&model, 100, 1100);
        source.reads.store(reads, Ordering::Relaxed);
        let left = Arc::clone(&source.reads);
        match StateSnapshot::from_source(source).apply(&delta) {
            Ok(applied) => {
                // The copy does not read the source.
                left.store(0, Ordering::Relaxed);
                assert_same(&applied, &later);
                break;
            }
            Err(error) => assert_eq!(error.to_string(), "the store failed: no more reads"),
        }
        failed += 1;
    }
    // The fingerprint, the comparison with the base and the copy of what is left read all entries.
    assert_eq!(failed, 300);
}

#[test]
fn a_third_party_source_with_wrong_totals_is_an_error_or_counted_again() {
    let model: Model = (0..40_u8).map(|i| (vec![i], vec![i; 10])).collect();
    let mut later = model.clone();
    later.retain(|key, _| key[0] % 2 == 0);
    later.insert(b"new".to_vec(), vec![1; 100]);
    let delta = snapshot_of(&later).delta_since(&snapshot_of(&model));
    let growing = snapshot_of(&model).delta_since(&snapshot_of(&later));
    let extremes = [0, 1, 20, 40, 440, 1 << 40, usize::MAX - 1, usize::MAX];
    for (len, size_bytes) in extremes.into_iter().flat_map(|len| extremes.map(|size_bytes| (len, size_bytes))) {
        let snapshot = StateSnapshot::from_source(Totals::of(&model, len, size_bytes));
        for mut store in [Box::new(InMemoryStore::new()) as Box<dyn StateStore>, Box::new(HotStore::new())] {
            let (restored, allocated) = allocated_by(|| store.try_restore(snapshot.clone()));
            restored.unwrap();
            assert!(allocated.peak_bytes < 100 << 20, "{}", allocated.peak_bytes);
            assert_eq!((store.len(), store.size_bytes()), (40, 440));
            model.keys().for_each(|key| store.delete(key).unwrap());
            assert_eq!((store.len(), store.size_bytes()), (0, 0));
        }
        match snapshot.apply(&delta) {
            Ok(applied) => {
                assert!(len >= 20 && size_bytes >= 220);
                assert!(applied.iter().eq(snapshot_of(&later).iter()));
            }
            Err(StateError::Store(error)) => {
                assert!(len < 20 || size_bytes < 220);
                assert!(error.to_string().contains("more entries or bytes"), "{error}");
            }
            Err(error) => assert!(matches!(error, StateError::BeyondAddressSpace), "{error}"),
        }
        let small = StateSnapshot::from_source(Totals::of(&later, len, size_bytes));
        if let Err(error) = small.apply(&growing) {
            assert!(matches!(error, StateError::BeyondAddressSpace | StateError::Store(_)), "{error}");
        }
        let other = StateSnapshot::from_iter([("zz", "1")]);
        match StateSnapshot::merge([snapshot.clone(), other.clone()]) {
            Ok(merged) => assert_eq!(merged.iter().count(), 41),
            Err(error) => assert!(matches!(error, StateError::BeyondAddressSpace), "{error}"),
        }
        let slices = snapshot.split(KeyGroups::new(4).unwrap(), |key| key).unwrap();
        assert_eq!(slices.iter().map(StateSnapshot::len).sum::<usize>(), 40);
        let image = snapshot.to_bytes();
        assert_eq!(StateSnapshot::from_bytes(image).unwrap(), snapshot_of(&model));
        assert_eq!(snapshot.diff(&other).count(), 41);
        assert_eq!(snapshot.delta_since(&other).inserts(), 40);
        assert!(snapshot.clone().into_iter().count() <= 40);
    }
}

#[test]
fn forged_totals_of_an_image_or_a_delta_are_an_error_and_no_store_takes_them() {
    let snapshot = StateSnapshot::from_iter((0..40_u8).map(|i| (vec![i; 3], vec![i; 20])));
    let (image, delta) = (snapshot.to_bytes(), snapshot.delta_since(&StateSnapshot::default()).to_bytes());
    let mut opened = 0;
    for field in [24, 32, 40] {
        for by in [1_u64, 2, 100, 1 << 33, u64::MAX, u64::MAX - 1] {
            let forge = |image: &[u8]| {
                let (mut forged, at) = (image.to_vec(), image.len() - TRAILER + field);
                let number = get_u64(&forged, at).wrapping_add(by);
                set_u64(&mut forged, at, number);
                seal(&mut forged);
                forged
            };
            let image = forge(&image);
            assert!(StateSnapshot::from_slice(&image).is_err());
            assert!(StateDelta::from_slice(&forge(&delta)).is_err());
            let Ok(unverified) = UnverifiedImage::from_bytes(image) else { continue };
            opened += 1;
            for mut store in [Box::new(InMemoryStore::new()) as Box<dyn StateStore>, Box::new(HotStore::new())] {
                store.put(b"kept", b"1").unwrap();
                assert!(unverified.restore_into(&mut *store).is_err());
                assert_eq!((store.len(), store.size_bytes()), (1, 5));
                store.delete(b"kept").unwrap();
                assert_eq!((store.len(), store.size_bytes()), (0, 0));
            }
        }
    }
    assert!(opened > 5, "{opened}");
}

#[test]
fn the_memory_of_an_in_memory_store_is_estimated_within_documented_bounds() {
    let check = |key_len: usize, value_len: usize, within: (usize, usize)| {
        let key = |i: u32| [&i.wrapping_mul(0x9E37_79B9).to_be_bytes()[..], &vec![7; key_len - 4]].concat();
        let mut store = InMemoryStore::new();
        let mut used = 0;
        let mut assert_within = |store: &InMemoryStore, allocated: Allocated, nodes: (usize, usize)| {
            used += allocated.kept_bytes;
            let outside = store.memory_bytes() - 72 * store.len();
            let bounds = [nodes.0, nodes.1].map(|node| (outside + node * store.len()) as isize);
            assert!(bounds[0] - 2000 <= used && used <= bounds[1] + 2000, "{used} {bounds:?}");
            let (estimate, used) = (store.memory_bytes(), used as usize);
            assert!(estimate * 100 >= used * within.0 && estimate * 100 <= used * within.1, "{estimate} for {used}");
        };
        let ((), allocated) =
            allocated_by(|| (0..20_000).for_each(|i| store.put(&key(i), &vec![1; value_len]).unwrap()));
        assert_within(&store, allocated, (50, 120));
        let ((), allocated) = allocated_by(|| {
            (0..20_000).filter(|i| i % 3 > 0).for_each(|i| store.delete(&key(i)).unwrap());
            (0..20_000).filter(|i| i % 5 > 0).for_each(|i| store.put(&key(i), &vec![1; value_len]).unwrap());
            (0..20_000).filter(|i| i % 2 > 0).for_each(|i| store.delete(&key(i)).unwrap());
        });
        assert_within(&store, allocated, (50, 120));
        let image = StateSnapshot::from_bytes(store.snapshot().to_bytes()).unwrap();
        let ((), allocated) = allocated_by(|| store.restore(image.clone()));
        assert_within(&store, allocated, (48, 120));
    };
    check(8, 8, (60, 150));
    check(8, 1000, (90, 110));
    check(100, 400, (90, 110));
    check(1000, 8, (90, 110));
}

/// Runs `f` on a thread with a small stack.
fn on_a_small_stack(f: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(256 << 10).spawn(f).unwrap().join().unwrap();
}

#[test]
fn merging_with_empty_slices_again_and_again_changes_nothing() {
    on_a_small_stack(|| {
        let start = StateSnapshot::from_iter([("a", "1"), ("b", "2")]);
        let empty = StateSnapshot::default();
        let mut merged = start.clone();
        let (mut calls, mut kept) = (0, 0);
        for _ in 0..10_000 {
            let (next, allocated) = allocated_by(|| StateSnapshot::merge([merged.clone(), empty.clone()]).unwrap());
            calls = calls.max(allocated.calls);
            let ((), freed) = allocated_by(|| merged = next);
            kept += allocated.kept_bytes + freed.kept_bytes;
        }
        assert!(calls <= 12 && kept < 1000, "{calls} {kept}");
        assert_eq!(merged, start);
        assert_eq!(merged.get(b"b").unwrap().as_ptr(), start.get(b"b").unwrap().as_ptr());
    });
}

#[test]
fn slices_merged_one_by_one_are_not_all_compared_again() {
    on_a_small_stack(|| {
        let mut model: Model = (0..20_000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 8])).collect();
        let mut store = InMemoryStore::new();
        store.restore(snapshot_of(&model));
        // To read this snapshot takes an allocation for every 64 entries.
        let mut merged = store.snapshot();
        merged.fingerprint();
        for round in 0..10_000_u32 {
            let key = [&(round.wrapping_mul(0x9E37_79B9) % 20_000).to_be_bytes()[..], &round.to_be_bytes()].concat();
            let slice = StateSnapshot::from_iter([(key.clone(), vec![2; 8])]);
            let (next, allocated) = allocated_by(|| StateSnapshot::merge([slice, merged.clone()]).unwrap());
            assert!(allocated.calls < 100, "{round}: {}", allocated.calls);
            merged = next;
            model.insert(key, vec![2; 8]);
        }
        assert_same(&merged, &model);

        let again = StateSnapshot::from_iter([(7_u32.to_be_bytes().to_vec(), "1")]);
        let error = StateSnapshot::merge([merged, again]).unwrap_err();
        assert!(matches!(error, StateError::ConflictingKeys { conflicts: 1, .. }), "{error}");
    });
}

#[test]
fn slices_of_like_size_merged_one_by_one_are_not_copied() {
    let slices: Vec<StateSnapshot> = (0..100_u8)
        .map(|slice| (0..50_u8).map(|i| (vec![i, slice], vec![slice; 100])).collect::<StateSnapshot>())
        .collect();
    let merge = |merged: StateSnapshot, slice: &StateSnapshot| StateSnapshot::merge([merged, slice.clone()]).unwrap();
    let merged = slices.iter().fold(StateSnapshot::default(), merge);
    assert_eq!(merged, StateSnapshot::merge(slices.clone()).unwrap());
    for (key, value) in slices.iter().flatten() {
        assert_eq!(merged.get(&key).unwrap().as_ptr(), value.as_ptr());
    }
}

#[test]
fn merging_and_applying_in_turns_takes_a_bounded_stack() {
    on_a_small_stack(|| {
        let entry = |i: u32| (i.to_be_bytes().to_vec(), vec![i as u8; 5]);
        let mut model: Model = (0..20).map(entry).collect();
        let mut now = snapshot_of(&model);
        for round in 1..3000_u32 {
            // Half of the entries are merged anew, the other half is deleted.
            let slice: Model = (round * 10 + 10..round * 10 + 20).map(entry).collect();
            let slices = snapshot_of(&slice).split(KeyGroups::new(2).unwrap(), |key| key).unwrap();
            now = StateSnapshot::merge([vec![now], slices].concat()).unwrap();
            model.extend(slice);
            let before = snapshot_of(&model);
            model.retain(|key, _| key[..] >= round.saturating_mul(10).to_be_bytes()[..]);
            now = now.apply(&opened_delta(&before, &snapshot_of(&model))).unwrap();
            if round % 100 == 0 {
                assert_same(&now, &model);
            }
        }
        assert_same(&now, &model);
        drop(now);
    });
}

#[derive(Clone, Debug)]
enum Op {
    /// Changes these entries, by a delta that is opened or taken between snapshots.
    Apply(Vec<(Vec<u8>, Option<Vec<u8>>)>, bool),
    /// Goes to the contents of a held snapshot by a delta.
    ApplyTowards(Index),
    /// Applies two deltas as one.
    Compose(Vec<(Vec<u8>, Option<Vec<u8>>)>, Vec<(Vec<u8>, Option<Vec<u8>>)>),
    /// Merges the entries that are not there yet.
    Merge(Vec<(Vec<u8>, Vec<u8>)>),
    /// Splits the snapshot into this many slices, and merges them.
    Split(u32),
    Hold,
    Continue(Index),
}

fn any_op() -> impl Strategy<Value = Op> {
    let changes = |most| proptest::collection::vec((any_key(), proptest::option::of(any_value())), 0..most);
    prop_oneof![
        6 => (changes(6), any::<bool>()).prop_map(|(changes, is_opened)| Op::Apply(changes, is_opened)),
        2 => (changes(60), any::<bool>()).prop_map(|(changes, is_opened)| Op::Apply(changes, is_opened)),
        2 => any::<Index>().prop_map(Op::ApplyTowards),
        2 => (changes(20), changes(20)).prop_map(|(first, second)| Op::Compose(first, second)),
        4 => proptest::collection::vec((any_key(), any_value()), 0..12).prop_map(Op::Merge),
        1 => (1_u32..5).prop_map(Op::Split),
        3 => Just(Op::Hold),
        1 => any::<Index>().prop_map(Op::Continue),
    ]
}

fn changed(model: &Model, changes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Model {
    let mut model = model.clone();
    for (key, value) in changes {
        match value {
            Some(value) => drop(model.insert(key.clone(), value.clone())),
            None => drop(model.remove(key)),
        }
    }
    model
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn any_history_leads_to_the_same_contents_and_leaves_older_ones(
        start in proptest::collection::btree_map(any_key(), any_value(), 0..40),
        ops in proptest::collection::vec(any_op(), 1..60),
    ) {
        let (mut model, mut now) = (start.clone(), snapshot_of(&start));
        let mut held = vec![(now.clone(), start)];
        for op in ops {
            let before = snapshot_of(&model);
            match op {
                Op::Apply(changes, is_opened) => {
                    model = changed(&model, &changes);
                    let later = snapshot_of(&model);
                    let delta = if is_opened { opened_delta(&before, &later) } else { later.delta_since(&before) };
                    now = now.apply(&delta).unwrap();
                }
                Op::ApplyTowards(to) => {
                    model = held[to.index(held.len())].1.clone();
                    now = now.apply(&opened_delta(&before, &snapshot_of(&model))).unwrap();
                }
                Op::Compose(first, second) => {
                    let between = changed(&model, &first);
                    model = changed(&between, &second);
                    let (between, later) = (snapshot_of(&between), snapshot_of(&model));
                    let composed = opened_delta(&before, &between).compose(&later.delta_since(&between)).unwrap();
                    prop_assert_eq!(before.apply(&composed).unwrap(), later);
                    now = now.apply(&composed).unwrap();
                }
                Op::Merge(entries) => {
                    let conflicts = entries.iter().map(|(key, _)| key).filter(|key| model.contains_key(*key));
                    let conflicts: std::collections::BTreeSet<_> = conflicts.collect();
                    let all = StateSnapshot::from_iter(entries.clone());
                    match StateSnapshot::merge([now.clone(), all]) {
                        Err(StateError::ConflictingKeys { conflicts: found, .. }) => {
                            prop_assert_eq!(found, conflicts.len());
                        }
                        merged => prop_assert!(merged.is_ok() && conflicts.is_empty()),
                    }
                    let added: Model = entries.into_iter().filter(|(key, _)| !model.contains_key(key)).collect();
                    now = StateSnapshot::merge([snapshot_of(&added), now]).unwrap();
                    model.extend(added);
                }
                Op::Split(groups) => {
                    let slices = now.split(KeyGroups::new(groups).unwrap(), |key| key).unwrap();
                    now = StateSnapshot::merge(slices).unwrap();
                }
                Op::Hold => held.push((now.clone(), model.clone())),
                Op::Continue(at) => (now, model) = held[at.index(held.len())].clone(),
            }
            assert_same(&now, &model);
            prop_assert_eq!(now.fingerprint(), snapshot_of(&model).fingerprint());
        }
        for (snapshot, model) in held {
            assert_same(&snapshot, &model);
        }
    }
}
