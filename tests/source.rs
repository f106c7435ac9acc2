//! Third-party snapshot sources: a failed read is an error or a panic, never an absent entry. A store keeps its
//! contents if a restore fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use bytes::Bytes;
use opstate::{
    HotStore, ImageOptions, InMemoryStore, KeyBounds, KeyGroups, Label, SnapshotSource, StateDelta, StateError,
    StateSnapshot, StateStore, StateStoreExt, TryScan,
};
use proptest::prelude::*;
use rkyv::rancor::BoxedError;

use crate::support::cases::cases;
use crate::support::layout::is_aligned;
use crate::support::model::{any_key, any_value, ranges, within};
use crate::support::shifted::Shifted;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Counts of the requests to a source.
#[derive(Default)]
struct Asked {
    reads: AtomicUsize,
    scans: AtomicUsize,
    threads: Mutex<BTreeSet<String>>,
}

impl Asked {
    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    fn scans(&self) -> usize {
        self.scans.load(Ordering::Relaxed)
    }

    fn note(&self, thread: ThreadId) {
        self.threads.lock().unwrap().insert(format!("{thread:?}"));
    }
}

/// A source with a failing read, which is a lookup or a step of a scan.
#[derive(Clone)]
struct Faulty {
    entries: Arc<Model>,
    asked: Arc<Asked>,
    /// Number of the failing read, counted from 0.
    failing: usize,
    /// `true` if all later reads fail, too.
    for_good: bool,
    /// Distance of values from a multiple of 16.
    shift: usize,
    is_for_many_readers: bool,
    /// Problem with the whole source, if any.
    damage: Option<&'static str>,
}

impl Faulty {
    fn of(entries: &Model) -> Self {
        Self {
            entries: Arc::new(entries.clone()),
            asked: Arc::default(),
            failing: usize::MAX,
            for_good: false,
            shift: 0,
            is_for_many_readers: true,
            damage: None,
        }
    }

    fn failing(entries: &Model, failing: usize, for_good: bool) -> Self {
        Self { failing, for_good, ..Self::of(entries) }
    }

    /// Counts a read, and fails if it is that read's turn.
    fn read<T>(&self, result: T) -> Result<T, StateError> {
        self.asked.note(thread::current().id());
        let number = self.asked.reads.fetch_add(1, Ordering::Relaxed);
        if number == self.failing || self.for_good && number > self.failing {
            return Err(StateError::store(format!("the medium failed at read {}", self.failing)));
        }
        Ok(result)
    }

    fn handles(&self, key: &[u8], value: &[u8]) -> (Bytes, Bytes) {
        let mut buffer = vec![0; value.len() + 32];
        let start = buffer.as_ptr().addr().next_multiple_of(16) - buffer.as_ptr().addr() + self.shift;
        buffer[start..start + value.len()].copy_from_slice(value);
        (Bytes::copy_from_slice(key), Bytes::from(buffer).slice(start..start + value.len()))
    }
}

impl SnapshotSource for Faulty {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn size_bytes(&self) -> usize {
        self.entries.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.read(self.entries.get(key).map(|value| self.handles(key, value).1))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        self.asked.scans.fetch_add(1, Ordering::Relaxed);
        // `BTreeMap::range` panics if the bounds are inverted.
        let entries = self.entries.range::<[u8], _>(bounds);
        TryScan::buffered(entries.map(|(key, value)| self.read(self.handles(key, value))))
    }

    fn is_for_many_readers(&self) -> bool {
        self.is_for_many_readers
    }

    fn verify(&self) -> Result<(), StateError> {
        self.damage.map_or(Ok(()), |damage| Err(StateError::store(damage)))
    }
}

/// Returns a hundred entries. Some values are so long that stores of this crate keep them as handles.
fn model() -> Model {
    (0..100_u8).map(|i| (vec![b'k', i], vec![i; if i % 9 == 0 { 700 } else { usize::from(i % 20) }])).collect()
}

fn plain(model: &Model) -> StateSnapshot {
    StateSnapshot::from_sorted(model.clone()).unwrap().with_timestamp_ns(7)
}

/// Returns a snapshot of a source whose read with this number fails.
fn failing(model: &Model, number: usize, for_good: bool) -> StateSnapshot {
    StateSnapshot::from_source(Faulty::failing(model, number, for_good)).with_timestamp_ns(7)
}

fn assert_failed(error: &StateError, number: usize) {
    assert!(matches!(error, StateError::Store(_)), "{error}");
    assert_eq!(error.to_string(), format!("the store failed: the medium failed at read {number}"));
}

/// Runs `step` with each read failing in turn, until a run has no failure. Returns the number of failing reads.
fn for_every_read(mut step: impl FnMut(usize, bool) -> bool) -> usize {
    for number in 0.. {
        if [false, true].map(|for_good| step(number, for_good)).into_iter().all(|is_done| is_done) {
            return number;
        }
    }
    unreachable!()
}

type Operation = fn(&StateSnapshot) -> Result<(), StateError>;

/// Returns operations that can return an error, with their number of reads. Each checks its own result.
fn operations() -> Vec<(&'static str, usize, Operation)> {
    fn found(snapshot: &StateSnapshot) -> Vec<(Bytes, Bytes)> {
        plain(&model()).scan(..).take(snapshot.len()).collect()
    }
    fn later() -> Model {
        let mut later = model();
        later.remove(&b"k\x07"[..]);
        later.insert(b"k\x09".to_vec(), b"new".to_vec());
        later
    }
    vec![
        ("try_get", 1, |snapshot| {
            assert_eq!(snapshot.try_get(b"k\x13")?.as_deref(), Some(&[0x13; 19][..]));
            Ok(())
        }),
        ("try_get of an absent key", 1, |snapshot| {
            assert_eq!(snapshot.try_get(b"absent")?, None);
            Ok(())
        }),
        ("get_typed", 1, |snapshot| {
            assert_eq!(snapshot.get_typed::<[u8; 19]>(b"k\x13")?, Some([0x13; 19]));
            Ok(())
        }),
        ("view", 1, |snapshot| {
            assert_eq!(snapshot.view::<[u8; 19], _>(b"k\x13", |value| value[7])?, Some(0x13));
            Ok(())
        }),
        ("try_scan", 100, |snapshot| {
            assert_eq!(snapshot.try_scan(..).collect::<Result<Vec<_>, _>>()?, found(snapshot));
            Ok(())
        }),
        // The walk down is buffered, and the walk up reads one entry ahead.
        ("try_scan down", 100, |snapshot| {
            let mut entries = snapshot.try_scan(..).rev().collect::<Result<Vec<_>, _>>()?;
            entries.reverse();
            assert_eq!(entries, found(snapshot));
            Ok(())
        }),
        ("scan_typed", 5, |snapshot| {
            let range = &b"k\x14"[..]..=&b"k\x18"[..];
            let values = snapshot.scan_typed::<u8>(range).map(|entry| match entry {
                // Only a value of one byte can be read as a `u8`.
                Err(error @ StateError::WrongType { .. }) => {
                    assert!(error.to_string().contains("cannot be read as `u8`"));
                    Ok(None)
                }
                other => other.map(|(_, value)| Some(value)),
            });
            let values = values.collect::<Result<Vec<_>, _>>()?;
            assert_eq!(values, [None, Some(0x15), None, None, None]);
            Ok(())
        }),
        ("try_visit_range", 100, |snapshot| {
            let mut visited = Vec::new();
            snapshot.try_visit_range(.., |key, value| {
                visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                ControlFlow::Continue(())
            })?;
            assert_eq!(visited, found(snapshot));
            Ok(())
        }),
        ("write_to", 100, |snapshot| {
            let mut image = Vec::new();
            snapshot.write_to(&mut image)?;
            assert_eq!(image, plain(&model()).to_bytes());
            Ok(())
        }),
        ("write_grouped", 200, |snapshot| {
            let groups = KeyGroups::new(3).unwrap();
            let (mut image, mut expected) = (Vec::new(), Vec::new());
            snapshot.write_grouped(groups, |key| key, ImageOptions::new(), &mut image)?;
            plain(&model()).write_grouped(groups, |key| key, ImageOptions::new(), &mut expected).unwrap();
            assert_eq!(image, expected);
            Ok(())
        }),
        ("split", 100, |snapshot| {
            let slices = snapshot.split(KeyGroups::new(3).unwrap(), |key| key)?;
            assert_eq!(StateSnapshot::merge(slices).unwrap(), plain(&model()));
            Ok(())
        }),
        ("merge", 101, |snapshot| {
            let merged = StateSnapshot::merge([StateSnapshot::from_iter([("x", "1")]), snapshot.clone()])?;
            assert_eq!(merged.len(), 101);
            // The merge has compared all keys. A lookup in the result is one more read of the source.
            assert!(merged.try_get(b"k\x13")?.is_some());
            Ok(())
        }),
        // Applying few changes reads the fingerprint, and makes a lookup for each change.
        ("apply a few changes", 102, |snapshot| {
            let applied = snapshot.apply(&plain(&later()).delta_since(&plain(&model())))?;
            assert_eq!(applied.fingerprint(), plain(&later()).fingerprint());
            Ok(())
        }),
        // Applying many changes reads the fingerprint, then walks up to the last change.
        ("apply many changes", 200, |snapshot| {
            let applied = snapshot.apply(&StateSnapshot::default().delta_since(&plain(&model())))?;
            assert!(applied.is_empty());
            Ok(())
        }),
        ("try_diff from", 100, |snapshot| {
            let later = plain(&later());
            let differences = later.try_diff(snapshot).collect::<Result<Vec<_>, _>>()?;
            assert_eq!(differences, later.diff(&plain(&model())).collect::<Vec<_>>());
            Ok(())
        }),
        ("try_diff to", 100, |snapshot| {
            let differences = snapshot.try_diff(&StateSnapshot::default()).collect::<Result<Vec<_>, _>>()?;
            assert_eq!(differences.len(), 100);
            Ok(())
        }),
    ]
}

#[test]
fn wherever_a_read_fails_what_can_return_its_error_does() {
    for (name, expected, operation) in operations() {
        let reads = for_every_read(|number, for_good| match operation(&failing(&model(), number, for_good)) {
            Ok(()) => true,
            Err(error) => {
                assert_failed(&error, number);
                false
            }
        });
        assert_eq!(reads, expected, "{name}");
    }
}

#[test]
fn an_error_stands_in_the_place_of_the_entry_and_a_scan_goes_on_behind_it() {
    let model = model();
    let all: Vec<_> = plain(&model).iter().collect();
    for number in 0..100 {
        let without: Vec<_> =
            all.iter().enumerate().filter(|&(at, _)| at != number).map(|(_, entry)| entry.clone()).collect();
        let check = |found: Vec<Result<(Bytes, Bytes), StateError>>, place: usize| {
            assert_eq!(found.len(), 100);
            assert_failed(found[place].as_ref().unwrap_err(), number);
            found.into_iter().flatten().collect::<Vec<_>>()
        };
        let found = check(failing(&model, number, false).try_scan(..).collect(), number);
        assert_eq!(found, without);
        // Typed scans continue after an error, too.
        let typed: Vec<_> = failing(&model, number, false).scan_typed::<Vec<u8>>(..).collect();
        assert_eq!(typed.len(), 100);
        assert_eq!(typed.iter().filter(|entry| matches!(entry, Err(StateError::Store(_)))).count(), 1);
        // A walk down first reads all entries in ascending order.
        let found = failing(&model, number, false).try_scan(..).rev().collect::<Vec<_>>();
        assert_eq!(found.len(), 100);
        assert_failed(found[99 - number].as_ref().unwrap_err(), number);
        assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), without.into_iter().rev().collect::<Vec<_>>());
        // Entries before the error are visited.
        let mut visited = 0;
        let result = failing(&model, number, false).try_visit_range(.., |_, _| {
            visited += 1;
            ControlFlow::Continue(())
        });
        assert_failed(&result.unwrap_err(), number);
        assert_eq!(visited, number);
        // Differences end after an error, because unread entries are not known to differ.
        let snapshot = failing(&model, number, false);
        let empty = StateSnapshot::default();
        let mut differences = snapshot.try_diff(&empty);
        assert_eq!(differences.by_ref().take_while(Result::is_ok).count(), number);
        assert!(differences.next().is_none());
    }
}

#[test]
fn wherever_a_read_fails_what_cannot_return_its_error_panics_with_it() {
    type Plain = fn(&StateSnapshot);
    let operations: [(&str, Plain); 23] = [
        ("get", |snapshot| assert_eq!(snapshot.get(b"k\x01").as_deref(), Some(&[1][..]))),
        ("get of an absent key", |snapshot| assert_eq!(snapshot.get(b"absent"), None)),
        ("contains", |snapshot| assert!(snapshot.contains(b"k\x01"))),
        ("does not contain", |snapshot| assert!(!snapshot.contains(b"absent"))),
        ("iter", |snapshot| assert!(snapshot.iter().eq(&plain(&model())))),
        ("iter down", |snapshot| assert!(snapshot.iter().rev().eq(plain(&model()).iter().rev()))),
        ("into_iter", |snapshot| assert!(snapshot.clone().into_iter().eq(plain(&model())))),
        ("prefix_scan", |snapshot| assert_eq!(snapshot.prefix_scan(b"k").count(), 100)),
        ("range_scan", |snapshot| assert_eq!(snapshot.range_scan(b"k\x01"..b"k\x05").count(), 4)),
        ("scan", |snapshot| assert_eq!(snapshot.scan(b"k\x01"..=b"k\x05").count(), 5)),
        ("first", |snapshot| assert_eq!(snapshot.first().unwrap().0, &b"k\0"[..])),
        ("last", |snapshot| assert_eq!(snapshot.last().unwrap().0, &b"k\x63"[..])),
        ("entry_before", |snapshot| assert_eq!(snapshot.entry_before(b"k\x07").unwrap().0, &b"k\x06"[..])),
        ("entry_after", |snapshot| assert_eq!(snapshot.entry_after(b"k\x07").unwrap().0, &b"k\x08"[..])),
        ("visit_range", |snapshot| {
            let mut visited = 0;
            snapshot.visit_range(.., |_, _| {
                visited += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(visited, 100);
        }),
        ("visit_prefix", |snapshot| {
            let mut visited = 0;
            snapshot.visit_prefix(b"k", |_, _| {
                visited += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(visited, 100);
        }),
        ("to_bytes", |snapshot| assert_eq!(snapshot.to_bytes(), plain(&model()).to_bytes())),
        ("fingerprint", |snapshot| assert_eq!(snapshot.fingerprint(), plain(&model()).fingerprint())),
        ("equal", |snapshot| assert!(*snapshot == plain(&model()))),
        ("equal to", |snapshot| assert!(plain(&model()) == *snapshot)),
        ("diff", |snapshot| assert_eq!(snapshot.diff(&StateSnapshot::default()).count(), 100)),
        ("delta_since", |snapshot| assert_eq!(snapshot.delta_since(&StateSnapshot::default()).inserts(), 100)),
        ("delta before", |snapshot| assert_eq!(StateSnapshot::default().delta_since(snapshot).deletes(), 100)),
    ];
    for (name, operation) in operations {
        let reads = for_every_read(|number, for_good| {
            let snapshot = failing(&model(), number, for_good);
            match catch_unwind(AssertUnwindSafe(|| operation(&snapshot))) {
                Ok(()) => true,
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().expect("a text");
                    let expected =
                        format!("the snapshot cannot be read: the store failed: the medium failed at read {number}");
                    assert_eq!(*text, expected, "{name}");
                    false
                }
            }
        });
        assert!(reads > 0, "{name} reads");
    }
}

#[test]
fn a_delta_between_sources_fails_as_they_do() {
    // Taking the delta finds the changes. Only the fingerprint of one end remains to be read.
    let reads = for_every_read(|number, for_good| {
        let source = Faulty::failing(&model(), number + 100, for_good);
        let snapshot = StateSnapshot::from_source(source).with_timestamp_ns(7);
        let mut larger = model();
        larger.insert(b"z".to_vec(), vec![0; 9]);
        let later = StateSnapshot::from_source(Faulty::of(&larger)).with_timestamp_ns(8);
        let delta = later.delta_since(&snapshot);
        assert_eq!(delta.inserts(), 1);
        let mut image = Vec::new();
        match delta.write_to(&mut image) {
            Ok(_) => {
                let delta = StateDelta::from_bytes(image).unwrap();
                assert_eq!(plain(&model()).apply(&delta).unwrap(), plain(&larger));
                true
            }
            Err(error) => {
                assert_failed(&error, number + 100);
                if for_good {
                    let panic = catch_unwind(AssertUnwindSafe(|| delta.base_fingerprint())).unwrap_err();
                    assert!(panic.downcast_ref::<String>().unwrap().contains("the medium failed at read"));
                    assert_failed(&delta.compose(&delta).unwrap_err(), number + 100);
                }
                false
            }
        }
    });
    assert_eq!(reads, 100);
}

#[test]
fn an_applied_snapshot_of_a_source_fails_as_it_does() {
    let mut later = model();
    later.insert(b"k\x07".to_vec(), b"new".to_vec());
    let delta = plain(&later).delta_since(&plain(&model()));
    let mut failures = 0;
    // Applying the delta takes 101 reads.
    for number in 101..400 {
        let applied = failing(&model(), number, true).apply(&delta).unwrap();
        // Values from the delta are not read from the source.
        assert_eq!(applied.try_get(b"k\x07").unwrap().as_deref(), Some(&b"new"[..]));
        let all = applied.try_scan(..).collect::<Result<Vec<_>, _>>();
        let down = applied.try_scan(..).rev().collect::<Result<Vec<_>, _>>();
        for (found, is_down) in [(all, false), (down, true)] {
            match found {
                Ok(mut found) => {
                    if is_down {
                        found.reverse();
                    }
                    assert!(found.into_iter().eq(plain(&later)));
                }
                Err(error) => {
                    assert_failed(&error, number);
                    failures += 1;
                }
            }
        }
    }
    assert!((200..400).contains(&failures), "{failures}");
}

#[test]
fn a_store_that_is_restored_from_a_source_that_fails_stays_as_it_was() {
    type Make = fn() -> Box<dyn StateStore>;
    let stores: [Make; 3] = [
        || Box::new(InMemoryStore::new()),
        || Box::new(HotStore::new()),
        || Box::new(HotStore::builder().chunk_bytes(64, 256).build()),
    ];
    let before = StateSnapshot::from_sorted([("kept", vec![1; 700]), ("too", vec![2; 5])]).unwrap();
    for make in stores {
        for is_held in [false, true] {
            let reads = for_every_read(|number, for_good| {
                let mut store = make();
                store.restore(before.clone());
                let held = is_held.then(|| store.snapshot());
                let result = store.try_restore(failing(&model(), number, for_good));
                let is_done = result.is_ok();
                if let Err(error) = result {
                    assert_failed(&error, number);
                    assert_eq!(store.snapshot(), before);
                    assert_eq!((store.len(), store.size_bytes()), (before.len(), before.size_bytes()));
                    // `restore` panics, and changes nothing either.
                    let restore = || store.restore(failing(&model(), number, for_good));
                    let panic = catch_unwind(AssertUnwindSafe(restore)).unwrap_err();
                    assert!(panic.downcast_ref::<String>().unwrap().starts_with("the snapshot cannot be read: "));
                    assert_eq!(store.snapshot(), before);
                } else {
                    assert_eq!(store.snapshot(), plain(&model()));
                }
                if let Some(held) = held {
                    assert_eq!(held, before);
                }
                // The store continues to work.
                store.put(b"k\x07", b"again").unwrap();
                store.try_restore(plain(&model())).unwrap();
                assert_eq!(store.snapshot(), plain(&model()));
                is_done
            });
            // A restore reads each entry once.
            assert_eq!(reads, 100);
        }
    }
}

#[test]
fn a_source_that_is_damaged_is_refused_wherever_it_is_verified() {
    let source = || Faulty { damage: Some("the medium is damaged"), ..Faulty::of(&model()) };
    let snapshot = StateSnapshot::from_source(source());
    let delta = StateSnapshot::default().delta_since(&plain(&model()));
    for error in [
        snapshot.verify().unwrap_err(),
        snapshot.apply(&delta).unwrap_err(),
        StateSnapshot::merge([snapshot.clone()]).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "the store failed: the medium is damaged");
    }
    StateSnapshot::from_source(Faulty::of(&model())).verify().unwrap();
}

#[test]
fn values_of_a_source_are_handed_out_aligned() {
    let expected = plain(&model());
    for shift in [0, 1, 8, 15] {
        let snapshot = StateSnapshot::from_source(Faulty { shift, ..Faulty::of(&model()) }).with_timestamp_ns(7);
        let check = |entries: &mut dyn Iterator<Item = (Bytes, Bytes)>| {
            for (key, value) in entries {
                assert!(is_aligned(&value), "{shift}");
                assert_eq!(Some(value), expected.get(&key));
            }
        };
        check(&mut expected.iter().map(|(key, _)| (key.clone(), snapshot.get(&key).unwrap())));
        check(&mut expected.iter().map(|(key, _)| (key.clone(), snapshot.try_get(&key).unwrap().unwrap())));
        check(&mut snapshot.iter());
        check(&mut snapshot.iter().rev());
        check(&mut snapshot.clone().into_iter());
        check(&mut snapshot.try_scan(..).map(Result::unwrap));
        check(&mut snapshot.prefix_scan(b"k"));
        check(&mut [snapshot.first(), snapshot.last(), snapshot.entry_after(b"k\x33")].into_iter().flatten());
        let empty = StateSnapshot::default();
        check(&mut snapshot.diff(&empty).map(|one| (one.key, one.new.unwrap())));
        check(&mut empty.diff(&snapshot).map(|one| (one.key, one.old.unwrap())));
        check(&mut empty.try_diff(&snapshot).map(Result::unwrap).map(|one| (one.key, one.old.unwrap())));
        check(&mut snapshot.delta_since(&empty).iter().map(|(key, new)| (key, new.unwrap())));
        let merged = StateSnapshot::merge([snapshot.clone(), StateSnapshot::from_iter([("x", "1")])]).unwrap();
        check(&mut merged.iter().filter(|(key, _)| key != "x"));
        check(&mut merged.iter().rev().filter(|(key, _)| key != "x"));
        check(&mut expected.iter().map(|(key, _)| (key.clone(), merged.get(&key).unwrap())));
        let applied = merged.apply(&StateSnapshot::from_iter([("x", "1")]).delta_since(&empty));
        assert!(applied.is_err(), "of another base");
        let mut later = model();
        later.remove(&b"k\x07"[..]);
        let applied = snapshot.apply(&plain(&later).delta_since(&expected)).unwrap();
        check(&mut applied.iter());
        check(&mut applied.iter().rev());
        check(&mut plain(&later).iter().map(|(key, _)| (key.clone(), applied.get(&key).unwrap())));
        let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
        for store in &mut stores {
            store.restore(snapshot.clone());
            check(&mut store.iter());
            check(&mut expected.iter().map(|(key, _)| (key.clone(), store.get(&key).unwrap())));
        }
        assert_eq!(snapshot.to_bytes(), expected.to_bytes());
    }
}

#[test]
fn a_buffered_scan_reads_each_entry_once_and_ahead_only_from_the_end() {
    let source = Faulty::of(&model());
    let asked = Arc::clone(&source.asked);
    let down: Vec<_> = source.try_scan((Bound::Excluded(b"k\x03"), Bound::Included(b"k\x08"))).rev().collect();
    let keys: Vec<_> = down.into_iter().map(|entry| entry.unwrap().0[1]).collect();
    assert_eq!((keys, asked.scans()), (vec![8, 7, 6, 5, 4], 1));
    let faulty = Faulty::failing(&model(), 2, false);
    let down: Vec<_> = faulty.try_scan((Bound::Unbounded, Bound::Excluded(b"k\x05"))).rev().collect();
    assert_eq!(down.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true, true]);

    let snapshot = StateSnapshot::from_source(source);
    let (scans, reads) = (asked.scans(), asked.reads());
    let mut scan = snapshot.iter();
    assert!((&mut scan).take(5).count() == 5 && (asked.scans(), asked.reads()) == (scans + 1, reads + 5));
    assert_eq!(scan.next_back().unwrap().0, &b"k\x63"[..]);
    // The rest is read once.
    assert_eq!((asked.scans(), asked.reads()), (scans + 1, reads + 100));
    assert_eq!(scan.by_ref().rev().take(50).count(), 50);
    assert_eq!(asked.reads(), reads + 100);
    assert_eq!(scan.next().unwrap().0, &b"k\x05"[..]);
    assert_eq!(scan.count(), 100 - 5 - 1 - 50 - 1);
}

#[test]
fn a_source_is_read_by_many_threads_only_if_it_says_so() {
    for is_for_many_readers in [false, true] {
        let source = Faulty { is_for_many_readers, ..Faulty::of(&model()) };
        let asked = Arc::clone(&source.asked);
        let snapshot = StateSnapshot::from_source(source).with_timestamp_ns(7);
        let options = ImageOptions::new().segment_bytes(50);
        let (mut image, mut expected) = (Vec::new(), Vec::new());
        snapshot.write_with(options.threads(4), &mut image).unwrap();
        plain(&model()).write_with(options, &mut expected).unwrap();
        assert_eq!(image, expected);
        let me = BTreeSet::from([format!("{:?}", thread::current().id())]);
        if is_for_many_readers {
            assert!(asked.reads() >= 200 && asked.threads.lock().unwrap().is_superset(&me));
        } else {
            assert_eq!((asked.reads(), &*asked.threads.lock().unwrap()), (100, &me));
        }
    }
}

#[test]
fn a_read_that_fails_on_any_thread_ends_a_write_with_its_error() {
    let options = ImageOptions::new().segment_bytes(50).threads(4);
    let reads =
        for_every_read(|number, for_good| match failing(&model(), number, for_good).write_with(options, io::sink()) {
            Ok(_) => true,
            Err(error) => {
                assert_failed(&error, number);
                false
            }
        });
    assert!(reads >= 200, "{reads}");
}

/// A source with fewer entries each time it is read.
struct Melting(Faulty);

impl SnapshotSource for Melting {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.0.try_get(key)
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let scans = self.0.asked.scans();
        TryScan::buffered(self.0.try_scan(bounds).take(100_usize.saturating_sub(scans)))
    }
}

#[test]
fn a_source_that_changes_while_it_is_written_is_an_error() {
    let melting = || StateSnapshot::from_source(Melting(Faulty::of(&model())));
    let groups = KeyGroups::new(3).unwrap();
    let grouped = melting().write_grouped(groups, |key| key, ImageOptions::new(), io::sink());
    let threads = melting().write_with(ImageOptions::new().segment_bytes(1 << 20).threads(3), io::sink());
    for error in [grouped.unwrap_err(), threads.unwrap_err()] {
        assert!(matches!(error, StateError::ImageChanged), "{error}");
        assert!(error.to_string().contains("the image changed while it was read"), "{error}");
    }
}

#[test]
fn a_source_in_a_snapshot_has_a_time_and_a_label_and_is_archived() {
    let label = Label::new().operator("dedup");
    let snapshot = StateSnapshot::from_source(Faulty::of(&model())).with_timestamp_ns(7).with_label(label.clone());
    let opened = StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap();
    assert_eq!((&opened, opened.timestamp_ns(), opened.label()), (&snapshot, 7, &label));
    let archived = rkyv::to_bytes::<BoxedError>(&snapshot).unwrap();
    assert_eq!(rkyv::from_bytes::<StateSnapshot, BoxedError>(&archived).unwrap(), snapshot);
    let error = rkyv::to_bytes::<BoxedError>(&failing(&model(), 50, false)).unwrap_err().to_string();
    assert!(error.contains("the store failed: the medium failed at read 50"), "{error}");
    let empty = StateSnapshot::from_source(Faulty::of(&Model::new()));
    assert!(empty.is_empty() && empty.first().is_none() && empty.last().is_none());
    assert_eq!(empty, StateSnapshot::default());
}

proptest! {
    #![proptest_config(cases(128))]

    /// Checks that a source is never asked for inverted bounds, which would make its map panic.
    #[test]
    fn a_source_gives_the_same_as_any_other_snapshot(
        model in proptest::collection::btree_map(any_key(), any_value(), 0..60),
        asked in proptest::collection::vec(any_key(), 1..6),
        segment_bytes in 1_usize..3000,
    ) {
        let (snapshot, expected) = (StateSnapshot::from_source(Faulty::of(&model)).with_timestamp_ns(7), plain(&model));
        prop_assert_eq!(&snapshot, &expected);
        prop_assert_eq!((snapshot.len(), snapshot.size_bytes()), (expected.len(), expected.size_bytes()));
        prop_assert_eq!(snapshot.fingerprint(), expected.fingerprint());
        for threads in [1, 3] {
            let (mut image, mut other) = (Vec::new(), Vec::new());
            let options = ImageOptions::new().segment_bytes(segment_bytes);
            snapshot.write_with(options.threads(threads), &mut image).unwrap();
            expected.write_with(options, &mut other).unwrap();
            prop_assert_eq!(image, other);
        }
        for key in model.keys().chain(&asked) {
            prop_assert_eq!(snapshot.get(key), expected.get(key));
            prop_assert_eq!(snapshot.contains(key), expected.contains(key));
            prop_assert_eq!(snapshot.entry_before(key), expected.entry_before(key));
            prop_assert_eq!(snapshot.entry_after(key), expected.entry_after(key));
            prop_assert!(snapshot.prefix_scan(key).eq(expected.prefix_scan(key)));
        }
        for start in &asked {
            for end in &asked {
                prop_assert!(snapshot.range_scan(start..end).eq(expected.range_scan(start..end)));
                for range in ranges(start, end) {
                    let mut found: Vec<_> = within(&model, range).into_iter().collect();
                    let owned = |(key, value): (Bytes, Bytes)| (key.to_vec(), value.to_vec());
                    prop_assert_eq!(&snapshot.scan(range).map(owned).collect::<Vec<_>>(), &found);
                    let mut visited = Vec::new();
                    snapshot.visit_range(range, |key, value| {
                        visited.push((key.to_vec(), value.to_vec()));
                        ControlFlow::Continue(())
                    });
                    prop_assert_eq!(&visited, &found);
                    found.reverse();
                    prop_assert_eq!(&snapshot.scan(range).rev().map(owned).collect::<Vec<_>>(), &found);
                }
            }
        }
        let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
        for store in &mut stores {
            store.try_restore(snapshot.clone()).unwrap();
            prop_assert_eq!(&store.snapshot(), &expected);
        }
    }
}

/// A third-party source that breaks its contract: it returns its entries whatever the bounds.
struct Liar(Vec<(Bytes, Bytes)>);

impl SnapshotSource for Liar {
    fn len(&self) -> usize {
        0
    }

    fn size_bytes(&self) -> usize {
        usize::MAX
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone()))
    }

    fn try_scan(&self, _: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(self.0.iter().cloned().map(Ok))
    }
}

#[test]
fn a_source_that_breaks_its_contract_is_an_error_and_no_store_takes_its_entries() {
    let entry = |key: &[u8]| (Bytes::copy_from_slice(key), Bytes::from_static(b"value"));
    let too_long = vec![entry(b"a"), entry(&[7; 65_536])];
    let unsorted = vec![entry(b"b"), entry(b"a")];
    let doubled = vec![entry(b"a"), entry(b"a"), entry(b"b")];
    for (entries, is_expected) in [
        (too_long, (|error| matches!(error, StateError::KeyTooLong { len: 65_536, .. })) as fn(&StateError) -> bool),
        (unsorted, |error| matches!(error, StateError::NotSorted { index: 1 })),
        (doubled, |error| matches!(error, StateError::NotSorted { .. })),
    ] {
        let snapshot = StateSnapshot::from_source(Liar(entries));
        let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
        for store in &mut stores {
            store.put(b"kept", b"1").unwrap();
            let error = store.try_restore(snapshot.clone()).unwrap_err();
            assert!(is_expected(&error), "{error}");
            assert_eq!((store.len(), store.get(b"kept").as_deref()), (1, Some(&b"1"[..])));
        }
        for error in [
            snapshot.try_scan(..).find_map(Result::err).unwrap(),
            snapshot.try_scan(..).rev().find_map(Result::err).unwrap(),
            snapshot.try_visit_range(.., |_, _| ControlFlow::Continue(())).unwrap_err(),
            snapshot.write_to(io::sink()).unwrap_err(),
        ] {
            assert!(is_expected(&error), "{error}");
        }
        // The source has more entries than it states.
        assert!(snapshot.into_iter().count() <= 1);
    }
}

#[test]
fn a_store_with_the_provided_restore_stays_as_it_was_where_a_second_read_would_fail() {
    let model = model();
    for number in 0..250 {
        let mut store = Shifted { inner: InMemoryStore::new(), shift: 0 };
        store.put(b"kept", b"1").unwrap();
        let before = store.snapshot();
        let snapshot = failing(&model, number, true);
        match store.try_restore(snapshot) {
            Ok(()) => assert_eq!(store.len(), model.len()),
            Err(error) => {
                assert_failed(&error, number);
                assert_eq!(store.snapshot(), before);
            }
        }
    }
}
