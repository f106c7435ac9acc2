//! Images opened without reading them: from memory, from a reader, from a mapped file.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use opstate::{
    GroupedImage, HotStore, ImageOptions, InMemoryStore, KeyGroups, StateError, StateSnapshot, StateStore,
    StateStoreExt,
};
use proptest::prelude::*;

use crate::cases;
use crate::counting::allocated_by;
use crate::layout::{Segment, assemble, extents, open_forged, seal};
use crate::model::{any_key, any_value, ranges, within};

fn numbered(count: u32, value_len: usize) -> StateSnapshot {
    StateSnapshot::from_sorted((0..count).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; value_len]))).unwrap()
}

fn image_of(snapshot: &StateSnapshot, segment_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
    image
}

/// Images of the same contents, opened in every way there is.
fn opened(image: &[u8], grouped: &[u8]) -> Vec<StateSnapshot> {
    let file = |image: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        io::copy(&mut &image[..], &mut file).unwrap();
        file
    };
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, image).unwrap();
    // Bytes that start at no multiple of four.
    let unaligned = Bytes::from([&[0], image].concat()).slice(1..);
    vec![
        StateSnapshot::from_bytes_lazily(image.to_vec()).unwrap(),
        StateSnapshot::from_bytes_lazily(unaligned).unwrap(),
        StateSnapshot::from_reader(Cursor::new(image.to_vec())).unwrap(),
        StateSnapshot::from_reader(file(image)).unwrap(),
        StateSnapshot::open(&path).unwrap(),
        StateSnapshot::from_bytes_lazily(grouped.to_vec()).unwrap(),
        StateSnapshot::from_reader(file(grouped)).unwrap(),
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
                prop_assert_eq!(opened.try_get(key).unwrap(), model.get(key).cloned().map(Bytes::from));
                prop_assert_eq!(opened.get(key), snapshot.get(key));
                prop_assert_eq!(opened.prefix_scan(key).count(), snapshot.prefix_scan(key).count());
            }
            for start in &asked {
                for end in &asked {
                    let (start, end) = (start.as_slice(), end.as_slice());
                    for range in ranges(start, end) {
                        let expected: Vec<_> = within(&model, range).into_iter().collect();
                        let found: Vec<_> = opened.scan(range).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                        prop_assert_eq!(&found, &expected);
                        let mut visited = Vec::new();
                        opened.try_visit_range(range, |key, value| {
                            visited.push((key.to_vec(), value.to_vec()));
                            ControlFlow::Continue(())
                        }).unwrap();
                        prop_assert_eq!(&visited, &expected);
                    }
                }
            }
            prop_assert_eq!(opened.fingerprint(), snapshot.fingerprint());
            opened.verify().unwrap();
            prop_assert_eq!(&opened, &snapshot);
            let mut store = HotStore::new();
            store.try_restore(opened.clone()).unwrap();
            prop_assert_eq!(store.snapshot(), snapshot.clone());
            prop_assert_eq!(image_of(&opened.with_timestamp_ns(snapshot.timestamp_ns()), segment_bytes), image.clone());
        }
    }
}

/// A reader that writes down what is read.
pub(crate) struct Watched {
    image: Cursor<Vec<u8>>,
    reads: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Read for Watched {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let start = self.image.position();
        let len = self.image.read(bytes)?;
        if len > 0 {
            self.reads.lock().unwrap().push((start, start + len as u64));
        }
        Ok(len)
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.image.seek(to)
    }
}

impl Watched {
    /// Reads `image`, and writes down from where to where it was read.
    pub(crate) fn new(image: Vec<u8>) -> (Self, Arc<Mutex<Vec<(u64, u64)>>>) {
        let reads = Arc::new(Mutex::new(Vec::new()));
        (Self { image: Cursor::new(image), reads: Arc::clone(&reads) }, reads)
    }
}

#[test]
fn a_read_touches_its_segment_and_a_restore_reads_once_in_order() {
    let snapshot = numbered(10_000, 20);
    let image = image_of(&snapshot, 1000);
    let extents = extents(&image);
    let (watched, reads) = Watched::new(image.clone());
    let opened = StateSnapshot::from_reader(watched).unwrap();
    let footer = extents.last().unwrap().1 as u64;
    let opening = std::mem::take(&mut *reads.lock().unwrap());
    assert!(opening.iter().all(|&(start, end)| end <= 120 || start >= footer), "{opening:?}");

    assert_eq!(opened.get(&5000_u32.to_be_bytes()), snapshot.get(&5000_u32.to_be_bytes()));
    let read = std::mem::take(&mut *reads.lock().unwrap());
    let (start, end) = (read[0].0, read.last().unwrap().1);
    assert!(extents.contains(&(start as usize, end as usize)), "{start}..{end}");
    // The same segment is not read again, and no key before the first is looked for anywhere.
    assert!(opened.contains(&5000_u32.to_be_bytes()) && !opened.contains(b""));
    assert!(reads.lock().unwrap().is_empty());

    let mut store = HotStore::new();
    store.restore(opened);
    assert_eq!(store.len(), 10_000);
    let read = std::mem::take(&mut *reads.lock().unwrap());
    let mut next = 32;
    for (start, end) in read {
        assert_eq!(start, next);
        next = end;
    }
    assert_eq!(next, footer);
}

#[test]
fn a_reader_is_read_in_bounded_memory() {
    let snapshot = numbered(300_000, 20);
    let image = image_of(&snapshot, 64 << 10);
    let segments = extents(&image).len();
    let (opened, allocated) = allocated_by(|| {
        // What the cursor holds is allocated before.
        let opened = StateSnapshot::from_reader(Cursor::new(Bytes::from(image.clone()))).unwrap();
        opened.verify().unwrap();
        opened
    });
    let allowed = image.len() + segments * (44 + 8) + 3 * (64 << 10) + 4096;
    assert!(allocated.peak_bytes < allowed, "{} of {allowed}", allocated.peak_bytes);
    assert_eq!(opened.len(), 300_000);
    // A mapped image: 24 bytes a segment.
    let (_, allocated) = allocated_by(|| StateSnapshot::from_bytes_lazily(Bytes::from(image)).unwrap());
    assert!(allocated.peak_bytes < 24 * segments + 1024, "{} for {segments}", allocated.peak_bytes);
}

fn damaged(snapshot: &StateSnapshot) -> (Vec<u8>, usize) {
    let mut image = image_of(snapshot, 500);
    let (start, _) = extents(&image)[3];
    image[start + 20] ^= 1;
    (image, start)
}

#[test]
fn damage_is_an_error_where_it_is_read_and_nowhere_else() {
    let snapshot = numbered(200, 20);
    let (image, at) = damaged(&snapshot);
    assert!(StateSnapshot::from_bytes(image.clone()).is_err());
    for opened in [
        StateSnapshot::from_bytes_lazily(image.clone()).unwrap(),
        StateSnapshot::from_reader(Cursor::new(image.clone())).unwrap(),
    ] {
        let is_damage = |error: &StateError| matches!(error, StateError::ChecksumMismatch { part: "segment", offset, .. } if *offset == at as u64);
        let (mut sound, mut failed) = (0, 0);
        for (key, value) in &snapshot {
            match opened.try_get(&key) {
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
        // A scan goes on behind the damage.
        let (entries, errors): (Vec<_>, Vec<_>) = opened.try_scan(..).partition(Result::is_ok);
        assert_eq!((entries.len(), errors.len()), (sound, 1));
        let mut visited = 0;
        let result = opened.try_visit_range((Bound::Unbounded, Bound::Unbounded), |_, _| {
            visited += 1;
            ControlFlow::Continue(())
        });
        assert!(is_damage(&result.unwrap_err()) && visited < sound);
        assert!(is_damage(&opened.verify().unwrap_err()));
        // What can return an error does.
        assert!(is_damage(&opened.write_to(io::sink()).unwrap_err()));
        assert!(is_damage(&opened.split_with(2, |_| 0).unwrap_err()));
        assert!(is_damage(&StateSnapshot::merge([opened.clone(), snapshot_of(b"x")]).unwrap_err()));
        let groups = KeyGroups::new(3).unwrap();
        let error = opened.write_grouped(groups, |key| key, ImageOptions::new(), io::sink()).unwrap_err();
        assert!(is_damage(&error));
        assert!(is_damage(&opened.get_typed::<u64>(&snapshot.iter().nth(60).unwrap().0).unwrap_err()));
        let error = rkyv::to_bytes::<rkyv::rancor::BoxedError>(&opened).unwrap_err().to_string();
        assert!(error.contains("the segment at byte"), "{error}");
        // What cannot panics, with its text.
        let panic = catch_unwind(AssertUnwindSafe(|| opened.to_bytes())).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("the segment at byte"));
        let panic = catch_unwind(AssertUnwindSafe(|| opened.iter().count())).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("the segment at byte") && text.contains("checksum"), "{text}");
        assert!(catch_unwind(AssertUnwindSafe(|| opened.fingerprint())).is_err());
        // A restore that is told of it changes nothing.
        let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
        for store in &mut stores {
            store.put(b"kept", b"1").unwrap();
            assert!(is_damage(&store.try_restore(opened.clone()).unwrap_err()));
            assert_eq!(store.snapshot(), StateSnapshot::from_iter([("kept", "1")]));
            // One that is not told panics, and leaves a store that can be cleared.
            assert!(catch_unwind(AssertUnwindSafe(|| store.restore(opened.clone()))).is_err());
            store.clear();
            assert_eq!((store.len(), store.size_bytes(), store.get(&0_u32.to_be_bytes())), (0, 0, None));
            store.try_restore(snapshot.clone()).unwrap();
            assert_eq!(store.snapshot(), snapshot);
        }
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
        let opened = StateSnapshot::from_bytes_lazily(assemble(&segments(last))).unwrap();
        assert!(opened.try_get(b"d").unwrap().is_some());
        let error = opened.try_get(b"b").unwrap_err().to_string();
        assert!(error.contains("its last key does not sort before the first of the next segment"), "{error}");
    }
    // Fingerprint and sums are only compared by `verify`.
    let opened = StateSnapshot::from_bytes_lazily(assemble(&segments(b"c"))).unwrap();
    assert_eq!(opened.iter().count(), 4);
    let error = opened.verify().unwrap_err().to_string();
    assert!(error.contains("the fingerprint is not that of the entries"), "{error}");
    // And what is written of it is right, whatever it said of itself.
    let mut repaired = Vec::new();
    opened.write_to(&mut repaired).unwrap();
    assert_eq!(StateSnapshot::from_bytes(repaired).unwrap(), opened);
}

#[test]
fn threads_touch_an_image_at_once() {
    let snapshot = numbered(20_000, 8);
    let image = image_of(&snapshot, 300);
    for opened in [
        StateSnapshot::from_bytes_lazily(image.clone()).unwrap(),
        StateSnapshot::from_reader(Cursor::new(image.clone())).unwrap(),
    ] {
        thread::scope(|scope| {
            for thread in 0..4 {
                let (opened, snapshot) = (opened.clone(), snapshot.clone());
                scope.spawn(move || match thread {
                    0 => opened.verify().unwrap(),
                    1 => assert_eq!(opened, snapshot),
                    _ => {
                        for i in (0..20_000_u32).step_by(7 * thread) {
                            assert_eq!(opened.get(&i.to_be_bytes()), snapshot.get(&i.to_be_bytes()));
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn files_that_are_no_images_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let snapshot = numbered(100, 8);
    let image = image_of(&snapshot, 200);
    for len in 0..image.len() {
        fs::write(&path, &image[..len]).unwrap();
        let error = StateSnapshot::open(&path).expect_err("a truncation goes unnoticed");
        assert!(matches!(error, StateError::Truncated { .. } | StateError::NoEnd { .. }), "{len}: {error}");
        assert!(StateSnapshot::from_reader(File::open(&path).unwrap()).is_err());
        assert!(GroupedImage::open(&path).is_err());
    }
    fs::write(&path, b"something else, and long enough to be an image".repeat(9)).unwrap();
    assert!(matches!(StateSnapshot::open(&path), Err(StateError::NotAnImage { .. })));

    let error = StateSnapshot::open(directory.path()).unwrap_err();
    assert!(matches!(error, StateError::Io(_)), "{error}");
    assert!(error.to_string().contains("this is no file"), "{error}");
    let missing = directory.path().join("missing");
    let error = StateSnapshot::open(&missing).unwrap_err();
    assert!(matches!(&error, StateError::Io(cause) if cause.kind() == io::ErrorKind::NotFound), "{error}");
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");

    // A file that is deleted or replaced stays what it was.
    fs::write(&path, &image).unwrap();
    let opened = StateSnapshot::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"another").unwrap();
    assert_eq!(opened, snapshot);

    let mut grouped = Vec::new();
    let groups = KeyGroups::new(9).unwrap();
    snapshot.write_grouped(groups, |key| key, ImageOptions::new(), &mut grouped).unwrap();
    fs::write(directory.path().join("grouped"), grouped).unwrap();
    let opened = GroupedImage::open(directory.path().join("grouped")).unwrap();
    assert_eq!(opened.slice(0..9).unwrap(), snapshot);
    assert_eq!(StateSnapshot::open(directory.path().join("grouped")).unwrap(), snapshot);
}

/// A reader that fails or ends early from some read on.
struct Failing {
    image: Cursor<Vec<u8>>,
    reads_left: usize,
    ends: bool,
}

impl Read for Failing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.reads_left.checked_sub(1) {
            Some(left) => self.reads_left = left,
            None if self.ends => return Ok(0),
            None => return Err(io::Error::other("the disk is gone")),
        }
        self.image.read(bytes)
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.image.seek(to)
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
            let result = StateSnapshot::from_reader(failing).and_then(|opened| opened.verify());
            match result {
                Ok(()) => break,
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
    // Few changes are looked up, many are found by a walk.
    for delta in [later.delta_since(&snapshot), StateSnapshot::from_iter([("", ""); 0]).delta_since(&snapshot)] {
        let image = image_of(&snapshot, 200);
        let applied = snapshot.apply(&delta).unwrap();
        let mut failures = 0;
        loop {
            let failing = Failing { image: Cursor::new(image.clone()), reads_left: failures, ends: false };
            let result = StateSnapshot::from_reader(failing).and_then(|base| base.apply(&delta)).and_then(|opened| {
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
        let error = StateSnapshot::from_bytes_lazily(damaged).unwrap().apply(&delta).unwrap_err();
        assert!(matches!(error, StateError::ChecksumMismatch { .. }), "{error}");
    }
}

#[test]
fn a_segment_that_changes_is_noticed_by_a_reader() {
    let snapshot = numbered(100, 8);
    let mut image = image_of(&snapshot, 200);
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, &image).unwrap();
    let opened = StateSnapshot::from_reader(File::open(&path).unwrap()).unwrap();
    opened.verify().unwrap();
    let (start, _) = extents(&image)[0];
    image[start] ^= 1;
    fs::write(&path, &image).unwrap();
    assert!(matches!(opened.try_get(&0_u32.to_be_bytes()), Err(StateError::ChecksumMismatch { .. })));
    // Also where whoever changed it knows the format, but not the footer that was read before.
    seal(&mut image);
    fs::write(&path, &image).unwrap();
    assert!(opened.try_get(&0_u32.to_be_bytes()).is_err());
}
