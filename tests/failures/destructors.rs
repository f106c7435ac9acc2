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
fn a_destructor_that_panics_while_its_value_is_put_leaves_the_store_whole() {
    for (kind, make) in stores() {
        for shift in [0, 1, 8, 15] {
            for is_new in [false, true] {
                for len in [100, 800] {
                    let drops = Arc::new(AtomicUsize::new(0));
                    let mut store = make();
                    fill(&mut *store);
                    let key = if is_new { b"new".to_vec() } else { b"b\x03".to_vec() };
                    let handle = Bomb::handle(&drops, 0, shift).slice(..len);
                    let outcome = catch_unwind(AssertUnwindSafe(|| store.put_bytes(&key, handle)));
                    // No store keeps the owner. Where it is dropped is where its panic ends the call.
                    assert_eq!(drops.load(Ordering::Relaxed), 1, "{kind}, {shift}, {len}");
                    assert!(outcome.is_err(), "{kind}, {shift}, {len}");
                    let mut after = model();
                    after.insert(key.clone(), vec![7; len]);
                    let found = contents(&*store);
                    assert!(found == after || found == model(), "{kind}, {shift}, {len}");
                    assert_works(&mut *store, &found);
                }
            }
        }
    }
}

#[test]
fn a_value_that_others_have_a_handle_to_is_copied_and_its_owner_not_dropped() {
    for (kind, make) in stores() {
        let drops = Arc::new(AtomicUsize::new(0));
        let mut store = make();
        let handle = Bomb::handle(&drops, 1, 0);
        store.put_bytes(b"key", handle.clone()).unwrap();
        assert_eq!((store.get(b"key").unwrap(), drops.load(Ordering::Relaxed)), (handle.clone(), 0), "{kind}");
        assert_works(&mut *store, &Model::from([(b"key".to_vec(), handle.to_vec())]));
        drop(handle);
        assert_eq!(drops.load(Ordering::Relaxed), 1, "{kind}");
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
