//! Unverified images, opened without being read: from memory, from a reader and from a mapped file.

mod files;
mod restore;

use std::fs::{self, File};
use std::io::{self, Cursor};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use opstate::{
    Difference, HotStore, ImageOptions, InMemoryStore, KeyGroups, StateError, StateSnapshot, StateStore,
    UnverifiedImage,
};
use proptest::prelude::*;

use crate::support::allocator::allocated_by;
use crate::support::cases::cases;
use crate::support::images::{damaged, image_of, is_damage, numbered};
use crate::support::layout::{Segment, assemble, extents, open_forged, seal};
use crate::support::model::{any_key, any_value, ranges, within};
use crate::support::readers::{Changing, Failing, Medium};

/// Returns images of the same contents, opened in every way.
fn opened(image: &[u8], grouped: &[u8]) -> Vec<UnverifiedImage> {
    let file = |image: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        io::copy(&mut &image[..], &mut file).unwrap();
        file
    };
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, image).unwrap();
    // These bytes do not start at a multiple of four.
    let unaligned = Bytes::from([&[0], image].concat()).slice(1..);
    vec![
        UnverifiedImage::from_bytes(image.to_vec()).unwrap(),
        UnverifiedImage::from_bytes(unaligned).unwrap(),
        UnverifiedImage::from_reader(Cursor::new(image.to_vec())).unwrap(),
        UnverifiedImage::from_reader(file(image)).unwrap(),
        UnverifiedImage::open(&path).unwrap(),
        UnverifiedImage::from_bytes(grouped.to_vec()).unwrap(),
        UnverifiedImage::from_reader(file(grouped)).unwrap(),
    ]
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn every_way_to_open_gives_the_same(
        model in proptest::collection::btree_map(any_key(), any_value(), 0..60),
        asked in proptest::collection::vec(any_key(), 1..6),
        segment_bytes in 1_usize..3000,
    ) {
        let snapshot = StateSnapshot::from_sorted(model.clone()).unwrap();
        let image = image_of(&snapshot, segment_bytes);
        let mut grouped = Vec::new();
        let options = ImageOptions::new().segment_bytes(segment_bytes);
        snapshot.write_grouped(KeyGroups::new(7).unwrap(), |key| key, options, &mut grouped).unwrap();
        for opened in opened(&image, &grouped) {
            prop_assert_eq!((opened.len(), opened.size_bytes()), (snapshot.len(), snapshot.size_bytes()));
            for key in model.keys().chain(&asked) {
                prop_assert_eq!(opened.get(key).unwrap(), model.get(key).cloned().map(Bytes::from));
                prop_assert_eq!(opened.prefix_scan(key).map(Result::unwrap).collect::<Vec<_>>(), snapshot.prefix_scan(key).collect::<Vec<_>>());
            }
            for start in &asked {
                for end in &asked {
                    let (start, end) = (start.as_slice(), end.as_slice());
                    for range in ranges(start, end) {
                        let mut expected: Vec<_> = within(&model, range).into_iter().collect();
                        let owned = |entry: Result<(Bytes, Bytes), StateError>| {
                            entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()
                        };
                        prop_assert_eq!(&opened.scan(range).map(owned).collect::<Vec<_>>(), &expected);
                        let mut visited = Vec::new();
                        opened.visit_range(range, |key, value| {
                            visited.push((key.to_vec(), value.to_vec()));
                            ControlFlow::Continue(())
                        }).unwrap();
                        prop_assert_eq!(&visited, &expected);
                        expected.reverse();
                        prop_assert_eq!(&opened.scan(range).rev().map(owned).collect::<Vec<_>>(), &expected);
                    }
                }
            }
            prop_assert_eq!(opened.fingerprint().unwrap(), snapshot.fingerprint());
            let verified = opened.verify().unwrap();
            prop_assert_eq!(&verified, &snapshot);
            for key in model.keys().chain(&asked) {
                prop_assert_eq!(verified.get(key), snapshot.get(key));
                prop_assert_eq!(verified.prefix_scan(key).count(), snapshot.prefix_scan(key).count());
            }
            let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
            for store in &mut stores {
                store.put(b"what was before", b"").unwrap();
                opened.restore_into(store).unwrap();
                prop_assert_eq!(store.snapshot(), snapshot.clone());
            }
            prop_assert_eq!(image_of(&verified.with_timestamp_ns(snapshot.timestamp_ns()), segment_bytes), image.clone());
        }
    }

    #[test]
    fn differences_of_images_are_those_of_their_snapshots(
        before in proptest::collection::btree_map(any_key(), any_value(), 0..40),
        after in proptest::collection::btree_map(any_key(), any_value(), 0..40),
        segment_bytes in 1_usize..3000,
        damaged in any::<prop::sample::Index>(),
    ) {
        let snapshots = [before, after].map(|model| StateSnapshot::from_sorted(model).unwrap());
        let images = snapshots.each_ref().map(|snapshot| image_of(snapshot, segment_bytes));
        let expected: Vec<_> = snapshots[1].diff(&snapshots[0]).collect();
        let open = |image: &Vec<u8>| UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap();
        let (old, new) = (open(&images[0]), open(&images[1]));
        prop_assert_eq!(new.diff(&old).collect::<Result<Vec<_>, _>>().unwrap(), expected.clone());

        // A damaged segment gives one error after valid differences, and then the iterator ends.
        for which in [0, 1] {
            let mut image = images[which].clone();
            let extents = extents(&image);
            if extents.is_empty() {
                continue;
            }
            image[extents[damaged.index(extents.len())].0] ^= 1;
            let (old, new) = if which == 0 { (open(&image), open(&images[1])) } else { (open(&images[0]), open(&image)) };
            let (found, errors): (Vec<_>, Vec<_>) = new.diff(&old).partition(Result::is_ok);
            prop_assert_eq!(errors.len(), 1);
            let found: Vec<Difference> = found.into_iter().flatten().collect();
            prop_assert!(expected.starts_with(&found));
            let mut all = new.diff(&old);
            prop_assert!(all.by_ref().any(|difference| difference.is_err()));
            prop_assert!(all.next().is_none());
        }
    }
}

#[test]
fn a_reader_is_read_in_bounded_memory() {
    let snapshot = numbered(300_000, 20);
    let image = image_of(&snapshot, 64 << 10);
    let segments = extents(&image).len();
    let (opened, allocated) = allocated_by(|| {
        // The cursor's own memory is allocated outside of the measurement.
        let opened = UnverifiedImage::from_reader(Cursor::new(Bytes::from(image.clone()))).unwrap();
        opened.verify().unwrap();
        opened
    });
    let allowed = image.len() + segments * (44 + 8) + 3 * (64 << 10) + 4096;
    assert!(allocated.peak_bytes < allowed, "{} of {allowed}", allocated.peak_bytes);
    assert_eq!(opened.len(), 300_000);
    // An image in memory takes 64 bytes per segment.
    let (_, allocated) = allocated_by(|| UnverifiedImage::from_bytes(Bytes::from(image)).unwrap());
    assert!(allocated.peak_bytes < 64 * segments + 1024, "{} for {segments}", allocated.peak_bytes);
}

#[test]
fn damage_is_an_error_where_it_is_read_and_nowhere_else() {
    let snapshot = numbered(200, 20);
    let (image, at) = damaged(&snapshot);
    assert!(StateSnapshot::from_bytes(image.clone()).is_err());
    for opened in [
        UnverifiedImage::from_bytes(image.clone()).unwrap(),
        UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap(),
    ] {
        let is_damage = |error: &StateError| is_damage(error, at);
        let (mut sound, mut failed) = (0, 0);
        for (key, value) in &snapshot {
            match opened.get(&key) {
                Ok(found) => {
                    assert_eq!(found, Some(value));
                    sound += 1;
                }
                Err(error) => {
                    assert!(is_damage(&error), "{error}");
                    failed += 1;
                }
            }
        }
        assert!(sound > 150 && failed > 5, "{sound} {failed}");
        // A scan continues after the damage, in both directions.
        for is_reversed in [false, true] {
            let scan = opened.iter();
            let all: Vec<_> = if is_reversed { scan.rev().collect() } else { scan.collect() };
            let (entries, errors): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
            assert_eq!((entries.len(), errors.len()), (sound, 1));
            assert!(errors.iter().all(|error| is_damage(error.as_ref().unwrap_err())));
        }
        let mut visited = 0;
        let result = opened.visit_range(.., |_, _| {
            visited += 1;
            ControlFlow::Continue(())
        });
        assert!(is_damage(&result.unwrap_err()) && visited < sound);
        assert!(is_damage(&opened.verify().unwrap_err()));
        assert!(is_damage(&opened.fingerprint().unwrap_err()));
        let damaged_key = snapshot.iter().find(|(key, _)| opened.get(key).is_err()).unwrap().0;
        assert!(is_damage(&opened.get_typed::<u64>(&damaged_key).unwrap_err()));
        assert!(is_damage(
            &opened.view::<u64, _>(&damaged_key, |_| panic!("it is damaged")).map(|_: Option<()>| ()).unwrap_err()
        ));
        let typed: Vec<_> = opened.scan_typed::<[u8; 20]>(..).collect();
        assert_eq!(typed.iter().filter(|entry| entry.is_ok()).count(), sound);
        assert_eq!(typed.iter().flat_map(|entry| entry.as_ref().err()).filter(|error| is_damage(error)).count(), 1);
        let other = UnverifiedImage::from_bytes(snapshot.to_bytes()).unwrap();
        assert!(is_damage(&opened.diff(&other).find_map(Result::err).unwrap()));
        assert!(is_damage(&other.diff(&opened).find_map(Result::err).unwrap()));
        // A failed restore changes nothing.
        let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
        for store in &mut stores {
            store.put(b"kept", b"1").unwrap();
            assert!(is_damage(&opened.restore_into(store).unwrap_err()));
            assert_eq!(store.snapshot(), StateSnapshot::from_iter([("kept", "1")]));
            store.try_restore(snapshot.clone()).unwrap();
            assert_eq!(store.snapshot(), snapshot);
        }
        assert_snapshot_fails(&StateSnapshot::from_source(Medium(opened.clone())), &snapshot, at);
    }
}

#[test]
fn damage_after_an_image_was_verified_is_an_error_or_a_panic_and_never_an_absent_entry() {
    let snapshot = numbered(200, 20);
    let (damaged, at) = damaged(&snapshot);
    let bytes = Arc::new(Mutex::new(image_of(&snapshot, 500)));
    let verified =
        UnverifiedImage::from_reader(Changing { image: Arc::clone(&bytes), at: 0 }).unwrap().verify().unwrap();
    assert_eq!(verified, snapshot);
    *bytes.lock().unwrap() = damaged;
    // Results of the earlier verification remain.
    assert_eq!(verified.fingerprint(), snapshot.fingerprint());
    verified.verify().unwrap();
    assert_snapshot_fails(&verified, &snapshot, at);
}

/// Checks that a snapshot with a damaged segment at `at` reports the damage in every operation that reads it.
fn assert_snapshot_fails(opened: &StateSnapshot, snapshot: &StateSnapshot, at: usize) {
    let is_damage = |error: &StateError| is_damage(error, at);
    let damaged_key = snapshot.iter().find(|(key, _)| opened.try_get(key).is_err()).unwrap().0;
    assert!(is_damage(&opened.try_get(&damaged_key).unwrap_err()));
    assert_eq!(opened.try_scan(..).filter(Result::is_err).count(), 1);
    let result = opened.try_visit_range(.., |_, _| ControlFlow::Continue(()));
    assert!(is_damage(&result.unwrap_err()));
    assert!(is_damage(&opened.try_diff(&snapshot_of(b"x")).find_map(Result::err).unwrap()));
    // Methods that can return an error do so.
    assert!(is_damage(&opened.write_to(io::sink()).unwrap_err()));
    assert!(is_damage(&opened.split_with(2, |_| 0).unwrap_err()));
    assert!(is_damage(&StateSnapshot::merge([opened.clone(), snapshot_of(b"x")]).unwrap_err()));
    let groups = KeyGroups::new(3).unwrap();
    let error = opened.write_grouped(groups, |key| key, ImageOptions::new(), io::sink()).unwrap_err();
    assert!(is_damage(&error));
    assert!(is_damage(&opened.get_typed::<u64>(&damaged_key).unwrap_err()));
    let seen = opened.view::<u64, _>(&damaged_key, |_| panic!("it is damaged"));
    assert!(is_damage(&seen.map(|_: Option<()>| ()).unwrap_err()));
    assert!(is_damage(&opened.scan_typed::<[u8; 20]>(..).find_map(Result::err).unwrap()));
    let error = rkyv::to_bytes::<rkyv::rancor::BoxedError>(opened).unwrap_err().to_string();
    assert!(error.contains("the segment at byte"), "{error}");
    // Methods that cannot return an error panic with its text.
    let panics: [&dyn Fn(); 10] = [
        &|| drop(opened.to_bytes()),
        &|| opened.iter().for_each(drop),
        &|| opened.iter().rev().for_each(drop),
        &|| drop(opened.get(&damaged_key)),
        &|| assert!(opened.contains(&damaged_key)),
        &|| opened.prefix_scan(b"").for_each(drop),
        &|| opened.visit_range(.., |_, _| ControlFlow::Continue(())),
        &|| opened.diff(&snapshot_of(b"x")).for_each(drop),
        &|| drop(opened.delta_since(&snapshot_of(b"x"))),
        &|| assert_eq!(opened, snapshot),
    ];
    for panics in panics {
        let panic = catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(
            text.starts_with("the snapshot cannot be read: the segment at byte") && text.contains("checksum"),
            "{text}"
        );
    }
    // A failed restore changes nothing.
    let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
    for store in &mut stores {
        store.put(b"kept", b"1").unwrap();
        assert!(is_damage(&store.try_restore(opened.clone()).unwrap_err()));
        assert_eq!(store.snapshot(), StateSnapshot::from_iter([("kept", "1")]));
        // A restore without a `Result` panics.
        assert!(catch_unwind(AssertUnwindSafe(|| store.restore(opened.clone()))).is_err());
        assert_eq!(store.snapshot(), StateSnapshot::from_iter([("kept", "1")]));
        store.clear();
        assert_eq!((store.len(), store.size_bytes(), store.get(&0_u32.to_be_bytes())), (0, 0, None));
        store.try_restore(snapshot.clone()).unwrap();
        assert_eq!(&store.snapshot(), snapshot);
    }
}

fn snapshot_of(key: &'static [u8]) -> StateSnapshot {
    StateSnapshot::from_iter([(key, &b""[..])])
}

#[test]
fn segments_are_tied_to_their_neighbours_without_reading_them() {
    let segments = |last: &[u8]| {
        let last = last.to_vec();
        vec![Segment::of(&[(b"b", b""), (&last, b"")]), Segment::of(&[(b"d", b"")]), Segment::of(&[(b"f", b"")])]
    };
    let mut sound = assemble(&segments(b"c"));
    assert!(open_forged(&mut sound).is_ok());
    for last in [&b"d"[..], b"e", b"z"] {
        let opened = UnverifiedImage::from_bytes(assemble(&segments(last))).unwrap();
        assert!(opened.get(b"d").unwrap().is_some());
        let error = opened.get(b"b").unwrap_err().to_string();
        assert!(error.contains("its last key does not sort before the first of the next segment"), "{error}");
    }
    // The fingerprint and sums are compared only when all entries are read. A mismatch is the last item.
    let opened = UnverifiedImage::from_bytes(assemble(&segments(b"c"))).unwrap();
    let of_segments = |opened: &UnverifiedImage| opened.iter().rev().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(of_segments(&opened).len(), 4);
    let all: Vec<_> = opened.iter().collect();
    assert_eq!((all.len(), all.iter().filter(|entry| entry.is_ok()).count()), (5, 4));
    for error in [
        all.into_iter().next_back().unwrap().unwrap_err(),
        opened.verify().unwrap_err(),
        opened.fingerprint().unwrap_err(),
        opened.visit_range(.., |_, _| ControlFlow::Continue(())).unwrap_err(),
        opened.restore_into(&mut HotStore::new()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("the fingerprint is not that of the entries"), "{error}");
    }
    // An iterator that stops early, or goes backwards, does not report a mismatch.
    assert_eq!(opened.iter().take(4).filter(Result::is_ok).count(), 4);
    assert_eq!(opened.iter().rev().filter(Result::is_ok).count(), 4);
    // An image written from the entries is correct, whatever the original image stated.
    let repaired = StateSnapshot::from_iter(of_segments(&opened));
    assert_eq!(StateSnapshot::from_bytes(repaired.to_bytes()).unwrap(), repaired);
}

#[test]
fn threads_touch_an_image_at_once() {
    let snapshot = numbered(20_000, 8);
    let image = image_of(&snapshot, 300);
    for opened in [
        UnverifiedImage::from_bytes(image.clone()).unwrap(),
        UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap(),
    ] {
        thread::scope(|scope| {
            for thread in 0..4 {
                let (opened, snapshot) = (opened.clone(), snapshot.clone());
                scope.spawn(move || match thread {
                    0 => assert_eq!(opened.verify().unwrap(), snapshot),
                    1 => assert!(opened.iter().map(Result::unwrap).eq(&snapshot)),
                    _ => {
                        for i in (0..20_000_u32).step_by(7 * thread) {
                            assert_eq!(opened.get(&i.to_be_bytes()).unwrap(), snapshot.get(&i.to_be_bytes()));
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn a_reader_that_fails_is_an_error() {
    let snapshot = numbered(100, 8);
    let image = image_of(&snapshot, 200);
    for ends in [false, true] {
        let mut failures = 0;
        loop {
            let failing = Failing { image: Cursor::new(image.clone()), reads_left: failures, ends };
            let result = UnverifiedImage::from_reader(failing).and_then(|opened| opened.verify());
            match result {
                Ok(_) => break,
                Err(StateError::Io(_)) => assert!(!ends),
                Err(error) => assert!(ends && matches!(error, StateError::Truncated { .. }), "{error}"),
            }
            failures += 1;
        }
        assert!(failures > 10, "{failures}");
    }
}

#[test]
fn what_a_delta_is_applied_to_fails_with_errors() {
    let snapshot = numbered(100, 8);
    let mut entries: Vec<_> = snapshot.iter().collect();
    entries.remove(7);
    entries[50].1 = Bytes::from_static(b"new");
    let later = StateSnapshot::from_sorted(entries).unwrap();
    // Few changes are found by lookups, and many by a walk.
    for delta in [later.delta_since(&snapshot), StateSnapshot::from_iter([("", ""); 0]).delta_since(&snapshot)] {
        let image = image_of(&snapshot, 200);
        let applied = snapshot.apply(&delta).unwrap();
        let mut failures = 0;
        loop {
            let failing = Failing { image: Cursor::new(image.clone()), reads_left: failures, ends: false };
            let base = UnverifiedImage::from_reader(failing).map(|base| StateSnapshot::from_source(Medium(base)));
            let result = base.and_then(|base| base.apply(&delta)).and_then(|opened| {
                opened.verify()?;
                opened.try_get(&3_u32.to_be_bytes())?;
                let entries: Result<Vec<_>, _> = opened.try_scan(..).collect();
                assert!(applied.iter().eq(entries?));
                opened.write_with(ImageOptions::new().threads(2), &mut Vec::new())
            });
            match result {
                Ok(_) => break,
                Err(StateError::Io(_)) => failures += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(failures > 30, "{failures}");

        let mut damaged = image;
        let (start, _) = extents(&damaged)[3];
        damaged[start + 8] ^= 1;
        let damaged = StateSnapshot::from_source(Medium(UnverifiedImage::from_bytes(damaged).unwrap()));
        let error = damaged.apply(&delta).unwrap_err();
        assert!(matches!(error, StateError::ChecksumMismatch { .. }), "{error}");
    }
}

#[test]
fn a_segment_that_changes_is_noticed_by_a_reader() {
    let snapshot = numbered(100, 8);
    let mut image = image_of(&snapshot, 200);
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, &image).unwrap();
    let opened = UnverifiedImage::from_reader(File::open(&path).unwrap()).unwrap();
    let verified = opened.verify().unwrap();
    assert_eq!(verified, snapshot);
    let (start, _) = extents(&image)[0];
    image[start] ^= 1;
    fs::write(&path, &image).unwrap();
    assert!(matches!(opened.get(&0_u32.to_be_bytes()), Err(StateError::ChecksumMismatch { .. })));
    assert!(matches!(verified.try_get(&0_u32.to_be_bytes()), Err(StateError::ChecksumMismatch { .. })));
    // A changed image is detected even if its checksums are right, because the footer was read before.
    seal(&mut image);
    fs::write(&path, &image).unwrap();
    assert!(opened.get(&0_u32.to_be_bytes()).is_err());
    assert!(verified.try_get(&0_u32.to_be_bytes()).is_err());
}

#[test]
fn a_reader_of_long_values_holds_one_segment_at_a_time() {
    const VALUE: usize = 3 << 20;
    let snapshot = StateSnapshot::from_iter((0..4_u8).map(|i| (vec![i], vec![i; VALUE])));
    let image = Bytes::from(image_of(&snapshot, 64 << 10));
    let reads_all: [(&str, fn(&UnverifiedImage)); 4] = [
        ("verify", |image| drop(image.verify().unwrap())),
        ("scan", |image| assert_eq!(image.iter().map(Result::unwrap).count(), 4)),
        ("scan down", |image| assert_eq!(image.iter().rev().map(Result::unwrap).count(), 4)),
        ("visit", |image| image.visit_range(.., |_, _| ControlFlow::Continue(())).unwrap()),
    ];
    for (name, read_all) in reads_all {
        let opened = UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap();
        let ((), allocated) = allocated_by(|| read_all(&opened));
        // Memory for a segment grows in steps, so it takes up to twice its length while it is read.
        assert!(allocated.peak_bytes < 2 * VALUE + (1 << 20), "{name}: {}", allocated.peak_bytes);
    }
}
