//! Destructors of values that panic, and operations that free memory without taking any.

use super::*;

/// A value whose destructor counts drops, and panics when its turn comes.
struct Bomb {
    drops: Arc<AtomicUsize>,
    /// Number of the drop that panics.
    last: usize,
    /// Distance of the bytes from a multiple of 16.
    shift: usize,
}

impl Bomb {
    /// Returns a handle to a new bomb.
    fn handle(drops: &Arc<AtomicUsize>, last: usize, shift: usize) -> Bytes {
        Bytes::from_owner(Self { drops: Arc::clone(drops), last, shift })
    }
}

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        #[repr(align(16))]
        struct Aligned([u8; 816]);
        static BYTES: Aligned = Aligned([7; 816]);
        &BYTES.0[self.shift..self.shift + 800]
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.drops.fetch_add(1, Ordering::Relaxed) == self.last {
            resume_unwind(Box::new(Blown));
        }
    }
}

#[test]
fn a_destructor_that_panics_leaves_the_store_whole() {
    type Step = fn(&mut HotStore);
    let steps: [(&str, Step); 8] = [
        ("delete", |store| store.delete(b"b3").unwrap()),
        ("put", |store| store.put(b"b3", b"short").unwrap()),
        ("put a large one", |store| store.put(b"b3", &[1; 600]).unwrap()),
        ("modify", |store| assert!(store.modify(b"b3", &mut |value| value[0] = 1).unwrap())),
        ("delete_range", |store| assert_eq!(store.delete_range(b"b2"..b"b6", usize::MAX).unwrap().count, 4)),
        ("clear", |store| store.clear()),
        ("restore", |store| store.restore(StateSnapshot::from_iter([("key", "value")]))),
        ("drop", |store| drop(std::mem::take(store))),
    ];
    for (name, step) in steps {
        for is_snapshot_alive in [false, true] {
            for last in 0..8 {
                let drops = Arc::new(AtomicUsize::new(0));
                let mut store = HotStore::new();
                let mut expected = HotStore::new();
                for i in 0..8 {
                    let key = format!("b{i}").into_bytes();
                    store.put_bytes(&key, Bomb::handle(&drops, last, 0)).unwrap();
                    expected.put(&key, &[7; 800]).unwrap();
                }
                step(&mut expected);
                let snapshot = is_snapshot_alive.then(|| store.snapshot());
                let _ = catch_unwind(AssertUnwindSafe(|| step(&mut store)));
                assert_eq!(contents(&store), contents(&expected), "{name}, {last}");
                let _ = catch_unwind(AssertUnwindSafe(|| drop(snapshot)));
                assert_works(&mut store, &contents(&expected));
                let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
                assert_eq!(drops.load(Ordering::Relaxed), 8, "{name}, {last}: every value is dropped once");
            }
        }
    }
}

#[test]
fn a_destructor_that_panics_where_a_handle_is_copied_leaves_the_store_whole() {
    for (kind, make) in stores() {
        for shift in [0, 1, 8, 15] {
            for is_new in [false, true] {
                let drops = Arc::new(AtomicUsize::new(0));
                let mut store = make();
                fill(&mut *store);
                let key = if is_new { b"new".to_vec() } else { b"b\x03".to_vec() };
                let handle = Bomb::handle(&drops, 0, shift);
                let outcome = catch_unwind(AssertUnwindSafe(|| store.put_bytes(&key, handle)));
                let is_copied = drops.load(Ordering::Relaxed) == 1;
                assert_eq!(outcome.is_err(), is_copied, "{kind}, {shift}");
                // `HotStore` keeps an aligned handle, and copies any other. `InMemoryStore` always copies.
                assert_eq!(is_copied, shift > 0 || kind == "InMemoryStore", "{kind}, {shift}");
                let mut expected = model();
                expected.insert(key.clone(), vec![7; 800]);
                assert_eq!(contents(&*store), expected, "{kind}, {shift}");
                let _ = catch_unwind(AssertUnwindSafe(|| store.delete(&key)));
                expected.remove(&key);
                assert_works(&mut *store, &expected);
                assert_eq!(drops.load(Ordering::Relaxed), 1, "{kind}, {shift}");
            }
        }
    }
}

#[test]
fn a_destructor_that_panics_where_a_snapshot_copies_a_handle_leaks_nothing() {
    for shift in [0, 1, 8, 15] {
        let outcome = || {
            let drops = Arc::new(AtomicUsize::new(0));
            let handle = Bomb::handle(&drops, 0, shift);
            let outcome = catch_unwind(AssertUnwindSafe(|| drop(StateSnapshot::from_sorted([("key", handle)]))));
            assert!(outcome.is_err_and(|payload| payload.is::<Blown>()));
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        };
        outcome();
        let ((), allocated) = allocated_by(outcome);
        assert_eq!(allocated.kept_bytes, 0, "{shift}");
    }
}

#[test]
fn to_let_go_of_a_store_takes_no_memory() {
    for (kind, make) in stores() {
        for is_dropped in [false, true] {
            let mut store = make();
            let mut held = Vec::new();
            for round in 0..5_u8 {
                (0..200_u8).for_each(|i| store.put(&[i], &vec![round; usize::from(i) * 4]).unwrap());
                held.push(store.snapshot());
            }
            held.truncate(2);
            let ((), allocated) = allocated_by(|| if is_dropped { drop(store) } else { store.clear() });
            // Snapshots share the map of `InMemoryStore`, so `clear` allocates another one.
            assert_eq!(allocated.calls, usize::from(kind == "InMemoryStore" && !is_dropped), "{kind}, {is_dropped}");
        }
    }
}
