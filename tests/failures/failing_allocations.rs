//! Allocations that fail and unwind, which needs a nightly compiler.

use opstate::StateDelta;

use super::*;
use crate::support::allocator::{failing_after, unwind_where_allocations_fail};

type Step = fn(&mut dyn StateStore);

const THREE: fn() -> KeyGroups = || KeyGroups::new(3).unwrap();

/// Returns a snapshot of ten entries. Every other entry has a large value.
fn other() -> StateSnapshot {
    StateSnapshot::from_sorted((0..10_u8).map(|i| (vec![b'b', i], vec![i; 900 * usize::from(i % 2)]))).unwrap()
}

/// Returns operations that read a store or its snapshot, or make another snapshot from it.
fn reading() -> Vec<(&'static str, Step)> {
    vec![
        ("get", |store| assert!(store.get(b"b\x04").is_some() && store.get(b"b\x05").is_some())),
        ("get_many", |store| {
            let mut found = Vec::new();
            store.get_many(&[b"b\x04", b"nothing", b"b\x05"], &mut found);
            assert_eq!(found.iter().flatten().count(), 2);
        }),
        ("get_typed", |store| assert_eq!(store.get_typed::<u64>(b"number").unwrap(), Some(7))),
        ("prefix_scan", |store| assert_eq!(store.prefix_scan(b"b").count(), 40)),
        ("range_scan", |store| assert_eq!(store.range_scan(b"b\x03"..b"b\x09").count(), 6)),
        ("visit_range", |store| store.visit_range(ALL, &mut |_, _| ControlFlow::Continue(()))),
        ("snapshot", |store| drop(store.snapshot())),
        ("compare", |store| assert_ne!(store.snapshot(), other())),
        ("write", |store| {
            store.snapshot().write_with(OPTIONS(), io::sink()).unwrap();
        }),
        ("write_grouped", |store| {
            store.snapshot().write_grouped(THREE(), |key| key, OPTIONS(), io::sink()).unwrap();
        }),
        ("split and merge", |store| {
            let slices = store.snapshot().split(THREE(), |key| key).unwrap();
            assert_eq!(StateSnapshot::merge(slices).unwrap(), store.snapshot());
        }),
        ("delta", |store| {
            let delta = store.snapshot().delta_since(&other());
            assert_eq!(StateDelta::from_bytes(delta.to_bytes()).unwrap(), delta);
        }),
        ("read an image", |store| {
            assert_eq!(StateSnapshot::from_bytes(store.snapshot().to_bytes()).unwrap(), store.snapshot());
        }),
        ("open an image", |store| {
            let image = Cursor::new(store.snapshot().to_bytes());
            assert_eq!(UnverifiedImage::from_reader(image).unwrap().verify().unwrap(), store.snapshot());
        }),
    ]
}

fn writing() -> Vec<(&'static str, Step)> {
    vec![
        ("put a new key", |store| store.put(b"b\x05x", b"some value").unwrap()),
        ("put a new key with a large value", |store| store.put(b"b\x05x", &[5; 900]).unwrap()),
        ("put a value as long", |store| store.put(b"b\x05", &[9; 5]).unwrap()),
        ("put a longer value", |store| store.put(b"b\x05", &[9; 500]).unwrap()),
        ("put a large value", |store| store.put(b"b\x05", &[9; 900]).unwrap()),
        ("put another large value", |store| store.put(b"b\x04", &[9; 900]).unwrap()),
        ("put_typed", |store| store.put_typed(b"number", &8_u64).unwrap()),
        ("delete", |store| store.delete(b"b\x05").unwrap()),
        ("delete a large value", |store| store.delete(b"b\x04").unwrap()),
        ("modify", |store| assert!(store.modify(b"b\x05", &mut |value| value.fill(3)).unwrap())),
        ("modify a large value", |store| assert!(store.modify(b"b\x04", &mut |value| value.fill(3)).unwrap())),
        ("update", |store| {
            store.update(b"number", |number: &mut Option<u64>| *number = number.map(|number| number + 1)).unwrap();
        }),
        ("restore", |store| store.restore(other())),
        ("restore an image", |store| store.restore(StateSnapshot::from_bytes(other().to_bytes()).unwrap())),
        ("apply", |store| store.apply(&other().delta_since(&store.snapshot())).unwrap()),
        ("clear", |store| store.clear()),
    ]
}

/// Fails each allocation of an operation in turn. Returns how many allocations failed.
fn check(kind: &str, make: fn() -> Box<dyn StateStore>, (name, step): (&str, Step), writes: bool) -> usize {
    let (before, mut failures) = (model(), 0);
    let mut after = make();
    fill(&mut *after);
    step(&mut *after);
    let after = contents(&*after);
    for is_snapshot_alive in [false, true] {
        let outcome = |succeeding: Option<usize>| {
            let mut store = make();
            fill(&mut *store);
            let held = is_snapshot_alive.then(|| store.snapshot());
            let outcome = failing_after(succeeding.unwrap_or(usize::MAX), || step(&mut *store));
            let found = contents(&*store);
            let is_whole = found == after || outcome.is_err() && (found == before || name == "apply");
            assert!(is_whole, "{kind}, {name}, {succeeding:?}");
            if writes {
                assert_works(&mut *store, &found);
            }
            if let Some(held) = held {
                assert_eq!(held, StateSnapshot::from_sorted(before.clone()).unwrap());
            }
            outcome.is_ok()
        };
        // Run it once before counting. A failure may drop the thread's buffers, and the next success makes them
        // again.
        outcome(None);
        let ((), allocated) = allocated_by(|| {
            failures += (0..).take_while(|&succeeding| !outcome(Some(succeeding))).count();
            outcome(None);
        });
        assert_eq!(allocated.kept_bytes, 0, "{kind}, {name}");
    }
    failures
}

#[test]
fn leave_a_hot_store_usable() {
    unwind_where_allocations_fail();
    for (kind, make) in &stores()[1..] {
        let reads: usize = reading().into_iter().map(|step| check(kind, *make, step, false)).sum();
        let writes: usize = writing().into_iter().map(|step| check(kind, *make, step, true)).sum();
        assert!(reads > 300 && writes > 300, "{reads}, {writes}");
    }
}

/// Writes are left out, because the standard library's map aborts if it cannot allocate.
#[test]
fn leave_a_map_that_is_read_usable() {
    unwind_where_allocations_fail();
    let (kind, make) = stores()[0];
    let failures: usize = reading().into_iter().map(|step| check(kind, make, step, false)).sum();
    assert!(failures > 300, "{failures}");
}
