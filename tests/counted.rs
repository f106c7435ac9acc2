//! Memory: `total_bytes` against what the allocator was asked for, and what is left after entries and snapshots went.

use std::collections::VecDeque;

use bytes::Bytes;
use opstate::{HotStore, StateDelta, StateError, StateSnapshot, StateStore, StateStoreExt};

use crate::support::allocator::allocated_by;

/// Asserts that a store's count of its memory is within 10 % and 64 KiB of what its making allocated.
#[track_caller]
fn assert_counted<T>(make: impl FnOnce() -> (HotStore, T)) -> (HotStore, T) {
    let (made, allocated) = allocated_by(make);
    let (counted, kept) = (made.0.stats().total_bytes() as f64, allocated.kept_bytes as f64);
    let tolerance = kept * 0.1 + 65_536.0;
    assert!((counted - kept).abs() <= tolerance, "{counted} counted, {kept} allocated\n{:?}", made.0.stats());
    made
}

fn numbered(number: u64) -> [u8; 8] {
    // In no order (the finalizer of splitmix64).
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (number ^ (number >> 31)).to_be_bytes()
}

fn filled(store: &mut HotStore, entries: u64, value: &[u8]) {
    (0..entries).for_each(|number| store.put(&numbered(number), value).unwrap());
}

#[test]
fn entries_of_any_length_are_counted() {
    for (entries, len) in [(0, 0), (1, 0), (20_000, 0), (50_000, 20), (20_000, 300), (3_000, 513), (300, 20_000)] {
        assert_counted(|| {
            let mut store = HotStore::new();
            filled(&mut store, entries, &vec![7; len]);
            (store, ())
        });
    }
}

#[test]
fn small_chunks_are_counted_and_emptied() {
    let (mut store, ()) = assert_counted(|| {
        let mut store = HotStore::builder().chunk_bytes(64, 64).build();
        filled(&mut store, 100_000, b"12345678");
        (store, ())
    });
    let full = store.stats().total_bytes();
    // A search among all chunks at each step would not come to an end.
    (0..99_000).for_each(|number| store.delete(&numbered(number)).unwrap());
    let stats = store.stats();
    assert!(stats.total_bytes() < full / 10, "{full}, {stats:?}");
    assert_eq!(store.iter().count(), 1000);
}

#[test]
fn large_values_that_only_snapshots_see_are_counted_and_refused() {
    let (mut store, held) = assert_counted(|| {
        let mut store = HotStore::builder().memory_budget(8 << 20).build();
        let mut held = Vec::new();
        for round in 0..50_u64 {
            for number in 0..6 {
                match store.put(&numbered(round * 6 + number), &vec![1; 1 << 20]) {
                    Ok(()) => {}
                    Err(StateError::OverBudget { .. }) => return (store, held),
                    Err(error) => panic!("{error}"),
                }
            }
            held.push(store.snapshot());
            (0..6).for_each(|number| store.delete(&numbered(round * 6 + number)).unwrap());
        }
        panic!("nothing is refused, and {:?}", store.stats());
    });
    assert!(store.stats().total_bytes() <= 9 << 20);
    drop(held);
    store.put(b"key", &vec![1; 1 << 20]).unwrap();
}

#[test]
fn long_separators_that_only_snapshots_see_are_counted() {
    assert_counted(|| {
        let mut store = HotStore::new();
        let key = |number: u64| [&[b'k'; 2000][..], &numbered(number), &[b'k'; 100]].concat();
        (0..4000).for_each(|number| store.put(&key(number), b"").unwrap());
        let mut held = vec![store.snapshot()];
        for round in 0..5 {
            (0..700).for_each(|number| store.delete(&key(round * 700 + number)).unwrap());
            held.push(store.snapshot());
        }
        (store, held)
    });
}

#[test]
fn snapshots_are_counted_and_small() {
    for entries in [0, 100, 100_000] {
        let mut store = HotStore::new();
        filled(&mut store, entries, b"value");
        let chunks = store.stats().chunks;
        let before = store.stats().total_bytes();
        let (held, allocated) = allocated_by(|| (0..10_000).map(|_| store.snapshot()).collect::<Vec<_>>());
        // The list of handles is the test's.
        let kept = allocated.kept_bytes as usize - held.capacity() * size_of::<StateSnapshot>();
        assert!(kept <= 10_000 * (500 + 8 * chunks), "{kept} bytes, {entries} entries, {chunks} chunks");
        let counted = store.stats().total_bytes() - before;
        assert!(counted.abs_diff(kept) <= kept / 10 + 65_536, "{counted} of {kept} counted");
        drop(held);
        assert!(store.stats().total_bytes() <= before + 500_000, "{:?}", store.stats());
    }
}

#[test]
fn a_snapshot_beside_an_old_one_allocates_the_same_whatever_was_taken_before() {
    for writes in [0, 1, 30] {
        let mut store = HotStore::new();
        filled(&mut store, 1000, b"value");
        let _old = store.snapshot();
        let mut last = store.snapshot();
        let mut bytes = Vec::new();
        for round in 0..20_000_u64 {
            (0..writes).for_each(|number| store.put(&numbered(number), &round.to_be_bytes()).unwrap());
            let (snapshot, allocated) = allocated_by(|| store.snapshot());
            bytes.push(allocated.kept_bytes);
            last = snapshot;
        }
        let most = bytes[10_000..].iter().max().unwrap();
        assert!(*most < 40_000, "{most} bytes for one");
        let mean = bytes[10_000..].iter().sum::<isize>() / 10_000;
        assert!(mean < 1500, "{mean} bytes for each");
        assert!(store.stats().total_bytes() < 1 << 20, "{:?}", store.stats());
        assert_eq!(last.len(), 1000);
    }
}

#[test]
fn marks_of_snapshots_that_are_gone_are_dropped() {
    for held in [0, 1, 10] {
        assert_counted(|| {
            let mut store = HotStore::new();
            let mut snapshots = VecDeque::new();
            for number in 0..200_000_u64 {
                store.put(&number.to_be_bytes(), b"value").unwrap();
                snapshots.push_back(store.snapshot());
                if snapshots.len() > held {
                    snapshots.pop_front();
                }
            }
            let overhead = store.stats().overhead_bytes;
            assert!(overhead < 40_000, "{overhead} beside an entry each");
            (store, snapshots)
        });
    }
}

#[test]
fn churn_under_snapshots_restores_and_clears_are_counted() {
    assert_counted(|| {
        let mut store = HotStore::new();
        let mut held: VecDeque<StateSnapshot> = VecDeque::new();
        let mut check = 0;
        for round in 0..300_000_u64 {
            let key = numbered(round * 7 % 30_000);
            match round % 11 {
                0..=3 => store.delete(&key).unwrap(),
                4 => store.put(&key, &vec![1; 600 + (round % 900) as usize]).unwrap(),
                _ => store.put(&key, &vec![2; (round % 90) as usize]).unwrap(),
            }
            if round % 5_000 == 0 {
                held.push_back(store.snapshot());
            }
            if held.len() > 3 {
                held.pop_front();
            }
            if round == 150_000 {
                store.restore(held[1].clone());
            }
            check += usize::from(store.stats().total_bytes() == 0);
        }
        assert_eq!(check, 0);
        (store, held)
    });
    assert_counted(|| {
        let mut store = HotStore::new();
        filled(&mut store, 50_000, &[1; 100]);
        let held = store.snapshot();
        store.clear();
        filled(&mut store, 100, &[1; 100]);
        (store, held)
    });
}

#[test]
fn a_slice_of_a_larger_buffer_does_not_keep_the_buffer() {
    type Handle = fn(&Bytes, usize) -> Bytes;
    let handles: [(&str, Handle); 3] = [
        ("a slice", |buffer, at| buffer.slice(at..at + 600)),
        ("the last handle to a buffer", |buffer, at| Bytes::from(buffer.to_vec()).slice(at..at + 600)),
        ("with an owner", |buffer, at| Bytes::from_owner(buffer.to_vec()).slice(at..at + 600)),
    ];
    let buffer = Bytes::from((0..1 << 20).map(|at: usize| at as u8).collect::<Vec<u8>>());
    for (name, handle) in handles {
        let (store, ()) = assert_counted(|| {
            let mut store = HotStore::new();
            for number in 0..40_usize {
                store.put_bytes(&[number as u8], handle(&buffer, number * 1000 + number % 20)).unwrap();
            }
            (store, ())
        });
        for number in 0..40_usize {
            let at = number * 1000 + number % 20;
            assert_eq!(store.get(&[number as u8]).as_deref(), Some(&buffer[at..at + 600]), "{name}");
        }
    }
}

#[test]
fn a_buffer_that_is_a_value_alone_is_taken_without_a_copy() {
    let mut store = HotStore::new();
    let value = vec![7; 100_000];
    let address = value.as_ptr();
    let ((), allocated) = allocated_by(|| store.put_bytes(b"key", Bytes::from(value)).unwrap());
    assert_eq!(store.get(b"key").unwrap().as_ptr(), address);
    assert!(allocated.peak_bytes < 50_000, "{}", allocated.peak_bytes);
}

#[test]
fn a_delta_that_is_installed_does_not_keep_its_image() {
    assert_counted(|| {
        let mut store = HotStore::new();
        for round in 0..50_u64 {
            let mut later = HotStore::new();
            later.restore(store.snapshot());
            (0..200_u64).for_each(|number| later.put(&number.to_be_bytes(), &[round as u8; 1000]).unwrap());
            later.put(&(1000 + round).to_be_bytes(), &[1; 600]).unwrap();
            let delta = later.snapshot().delta_since(&store.snapshot()).to_bytes();
            store.apply(&StateDelta::from_bytes(delta).unwrap()).unwrap();
        }
        (store, ())
    });
}

#[test]
fn indexes_shrink_with_their_entries() {
    let fit = |store: &mut HotStore| {
        let mut count = 0;
        while store.put(&numbered(count), &[1; 1000]).is_ok() {
            count += 1;
        }
        count
    };
    let build = || HotStore::builder().memory_budget(16 << 20).build();
    let fresh = fit(&mut build());
    let mut used = build();
    filled(&mut used, 200_000, b"");
    (0..200_000).for_each(|number| used.delete(&numbered(number)).unwrap());
    assert!(used.stats().total_bytes() < 150_000, "{:?}", used.stats());
    let left = fit(&mut used);
    assert!(left >= fresh * 99 / 100, "{left} of {fresh}");
}

#[test]
fn indexes_shrink_around_the_entries_that_stay() {
    let (mut store, ()) = assert_counted(|| {
        let mut store = HotStore::new();
        filled(&mut store, 200_000, b"value");
        let full = store.stats().total_bytes();
        let before = store.snapshot();
        for number in 0..200_000 {
            if number % 100 > 0 {
                store.delete(&numbered(number)).unwrap();
            }
        }
        drop(before);
        store.release_spare_memory();
        assert!(store.stats().total_bytes() < full / 4, "{full}, {:?}", store.stats());
        // Each write recovers some more.
        (0..10_000).for_each(|number| store.put(&numbered(number % 20 * 100), b"value").unwrap());
        assert!(store.stats().total_bytes() < full / 20, "{full}, {:?}", store.stats());
        (store, ())
    });
    assert_eq!(store.len(), 2000);
    for number in 0..200_000 {
        assert_eq!(store.contains(&numbered(number)), number % 100 == 0);
    }
    filled(&mut store, 200_000, b"again");
    assert_eq!(store.len(), 200_000);
}

#[test]
fn the_smallest_stores_are_small() {
    let bytes = |entries: u64| {
        let (store, allocated) = allocated_by(|| {
            let mut store = Box::new(HotStore::new());
            (0..entries).for_each(|number| store.put(&numbered(number), &[1; 12]).unwrap());
            store
        });
        drop(store);
        allocated.kept_bytes as usize
    };
    let (empty, ten) = (bytes(0), bytes(10));
    assert!(empty <= 800 && ten <= 3000, "{empty} bytes for an empty store, {ten} with ten entries");

    let mut store = HotStore::new();
    (0..10).for_each(|number| store.put(&numbered(number), &[1; 12]).unwrap());
    let ((), allocated) = allocated_by(|| drop(store.snapshot()));
    assert!(allocated.kept_bytes < 300, "a first snapshot leaves {} bytes", allocated.kept_bytes);
}

#[test]
fn capacity_is_a_hint() {
    for capacity in [usize::MAX, 1 << 33, 1 << 30] {
        let mut store = HotStore::with_capacity(capacity);
        filled(&mut store, 100, b"value");
        assert_eq!(store.len(), 100);
    }
    let store = HotStore::builder().capacity(usize::MAX).memory_budget(1 << 20).build();
    assert!(store.stats().total_bytes() <= 1 << 20, "{:?}", store.stats());
}

/// Asserts what the docs of `HotStore` promise about memory of deleted and replaced values.
#[track_caller]
fn assert_recovered(store: &HotStore) {
    let stats = store.stats();
    let chunk = (8 * stats.live_bytes).min(2 << 20);
    assert!(stats.dead_bytes <= stats.live_bytes / 2 + chunk + 1024, "{stats:?}");
}

#[test]
fn memory_of_deleted_and_shortened_values_is_recovered() {
    let mut store = HotStore::new();
    filled(&mut store, 50_000, &[1; 500]);
    for number in 0..45_000 {
        store.delete(&numbered(number)).unwrap();
        assert_recovered(&store);
    }
    filled(&mut store, 50_000, &[1; 500]);
    for number in 0..50_000 {
        store.put(&numbered(number), b"short").unwrap();
        assert_recovered(&store);
    }
    (0..50_000).for_each(|number| store.delete(&numbered(number)).unwrap());
    assert_eq!((store.stats().chunk_bytes, store.stats().dead_bytes), (0, 0));
}

#[test]
fn a_store_that_went_from_many_entries_to_few_grows_by_small_chunks() {
    let mut store = HotStore::new();
    filled(&mut store, 20_000, &[1; 500]);
    (0..19_990).for_each(|number| store.delete(&numbered(number)).unwrap());
    for number in 0..5_000 {
        store.put(&numbered(number), b"small").unwrap();
        let stats = store.stats();
        assert!(stats.chunk_bytes <= 4 * stats.live_bytes + (4 << 20), "{stats:?}");
    }
    let stats = store.stats();
    assert!(stats.chunks < 50 && stats.chunk_bytes <= 8 * stats.live_bytes, "{stats:?}");
}

#[test]
fn a_range_that_is_deleted_leaves_no_index() {
    for limit in [usize::MAX, 1000] {
        let (mut store, ()) = assert_counted(|| {
            let mut store = HotStore::new();
            filled(&mut store, 200_000, b"value");
            let full = store.stats().total_bytes();
            while !store.delete_range(&numbered(0)[..0].., limit).unwrap().is_done {}
            assert!(store.stats().total_bytes() < full / 50, "{full}, {:?}", store.stats());
            (store, ())
        });
        assert!(store.is_empty());
        filled(&mut store, 1000, b"value");
        assert_eq!(store.iter().count(), 1000);
    }
}

#[test]
fn notes_that_snapshots_keep_are_counted_after_a_restore() {
    assert_counted(|| {
        let mut store = HotStore::new();
        filled(&mut store, 100_000, b"value");
        let mut held = vec![store.snapshot()];
        for _ in 0..3 {
            (0..3_000).for_each(|number| store.put(&numbered(number), b"other").unwrap());
            held.push(store.snapshot());
        }
        store.restore(held[0].clone());
        (store, held)
    });
}
