//! Failures in the middle of an operation: in a closure, an iterator, a destructor, a reader, a writer or an
//! allocation. Each call that can fail does so in turn, until the operation succeeds. The store must then be as before
//! or as after the operation, still work, and leak nothing.

use std::cell::Cell;
use std::collections::BTreeMap;

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use opstate::{
    GroupedImage, HotStore, ImageInfo, ImageOptions, InMemoryStore, KeyGroups, StateError, StateSnapshot, StateStore,
    StateStoreExt, UnverifiedImage,
};

use crate::counting::allocated_by;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A counter of calls that makes one of them fail.
struct Fuse(Cell<Option<usize>>);

impl Fuse {
    /// Creates a fuse that fails after `calls` successful calls.
    fn after(calls: usize) -> Self {
        Self(Cell::new(Some(calls)))
    }

    fn off() -> Self {
        Self(Cell::new(None))
    }

    fn is_blown(&self) -> bool {
        match self.0.get() {
            Some(0) => {
                self.0.set(None);
                true
            }
            left => {
                self.0.set(left.map(|left| left - 1));
                false
            }
        }
    }

    /// Panics if it is this call's turn, without printing a message.
    fn tick(&self) {
        if self.is_blown() {
            resume_unwind(Box::new(Blown));
        }
    }
}

#[derive(Debug)]
struct Blown;

fn contents(store: &dyn StateStore) -> Model {
    store.prefix_scan(b"").map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Checks that the store holds the model and that its operations work.
fn assert_works(store: &mut dyn StateStore, model: &Model) {
    let size = |model: &Model| model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    assert_eq!(&contents(store), model);
    assert_eq!((store.len(), store.size_bytes()), (model.len(), size(model)));
    for (key, value) in model {
        assert_eq!(store.get(key).as_deref(), Some(&value[..]));
    }
    let before = store.snapshot();
    assert_eq!(before, StateSnapshot::from_sorted(model.clone()).unwrap());
    let mut changed = Model::new();
    for (i, key) in model.keys().enumerate() {
        match i % 3 {
            0 => store.delete(key).unwrap(),
            1 => changed.extend([(key.clone(), vec![1; 900])]),
            _ => changed.extend([(key.clone(), Vec::new())]),
        }
    }
    changed.extend((0..200_u8).map(|i| (vec![b'n', i], vec![i; i.into()])));
    changed.iter().for_each(|(key, value)| store.put(key, value).unwrap());
    assert_eq!(contents(store), changed);
    assert_eq!((store.len(), store.size_bytes()), (changed.len(), size(&changed)));
    let delta = store.snapshot().delta_since(&before);
    store.restore(before.clone());
    assert_eq!(store.snapshot(), before);
    store.apply(&delta).unwrap();
    assert_eq!(contents(store), changed);
    store.clear();
    assert_eq!((store.len(), store.size_bytes()), (0, 0));
}

/// Returns values inside and outside of records, of every type that the operations use.
fn model() -> Model {
    let bytes = (0..40_u8).map(|i| (vec![b'b', i], vec![i; if i % 4 == 0 { 700 } else { i.into() }]));
    bytes.chain([(b"number".to_vec(), 7_u64.to_le_bytes().to_vec())]).collect()
}

fn fill(store: &mut dyn StateStore) {
    model().iter().for_each(|(key, value)| store.put(key, value).unwrap());
}

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

/// An operation that calls a closure, an iterator or a reader of the caller.
type Step = fn(&mut dyn StateStore, &Fuse);

const ALL: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);
const OPTIONS: fn() -> ImageOptions = || ImageOptions::new().segment_bytes(300);

fn steps() -> Vec<(&'static str, Step)> {
    vec![
        ("read", |store, fuse| assert!(store.read(b"b\x04", &mut |_| fuse.tick()))),
        ("view_bytes", |store, fuse| assert!(store.view_bytes(b"b\x05", |_| fuse.tick()).is_some())),
        ("view", |store, fuse| assert!(store.view::<u64, _>(b"number", |_| fuse.tick()).unwrap().is_some())),
        ("modify", |store, fuse| {
            let change = &mut |value: &mut [u8]| {
                fuse.tick();
                value.fill(99);
            };
            assert!(store.modify(b"b\x05", change).unwrap());
        }),
        ("modify a large one", |store, fuse| {
            let change = &mut |value: &mut [u8]| {
                value.fill(99);
                fuse.tick();
            };
            assert!(store.modify(b"b\x04", change).unwrap());
        }),
        ("modify_typed", |store, fuse| {
            assert!(store.modify_typed::<u64, _>(b"number", |_| fuse.tick()).unwrap().is_some());
        }),
        ("update", |store, fuse| {
            store
                .update(b"number", |number: &mut Option<u64>| {
                    // The value that a panicking closure leaves is not put.
                    *number = number.map(|number| number + 1);
                    fuse.tick();
                })
                .unwrap();
        }),
        ("update to nothing", |store, fuse| {
            store
                .update(b"number", |number: &mut Option<u64>| {
                    *number = None;
                    fuse.tick();
                })
                .unwrap();
        }),
        ("visit_range", |store, fuse| {
            store.visit_range(ALL, &mut |_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("visit_prefix", |store, fuse| {
            store.visit_prefix(b"b", |_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("try_update", |store, fuse| {
            let updated = store.try_update(b"number", |number: &mut Option<u64>| {
                *number = Some(9);
                fuse.tick();
                Ok::<_, StateError>(())
            });
            updated.unwrap();
        }),
        ("try_update that fails", |store, fuse| {
            let updated = store.try_update(b"number", |number: &mut Option<u64>| {
                *number = None;
                fuse.tick();
                Err::<(), _>(StateError::store("no"))
            });
            assert!(updated.is_err());
        }),
        ("try_visit_range", |store, fuse| {
            let visit = &mut |_: &[u8], _: &[u8]| {
                fuse.tick();
                ControlFlow::Continue(())
            };
            store.try_visit_range(ALL, visit).unwrap();
        }),
        ("visit a snapshot", |store, fuse| {
            store.snapshot().visit_range(ALL, |_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("visit a delta", |store, fuse| {
            let empty = StateSnapshot::from_iter::<[(Bytes, Bytes); 0]>([]);
            store.snapshot().delta_since(&empty).visit(|_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("split", |store, fuse| {
            let slices = store.snapshot().split(KeyGroups::new(3).unwrap(), |key| {
                fuse.tick();
                key
            });
            assert_eq!(slices.unwrap().len(), 3);
        }),
        ("split_with", |store, fuse| {
            let slices = store.snapshot().split_with(3, |key| {
                fuse.tick();
                key.len() % 3
            });
            assert_eq!(slices.unwrap().len(), 3);
        }),
        ("write_grouped", |store, fuse| {
            let three = KeyGroups::new(3).unwrap();
            let written = store.snapshot().write_grouped(
                three,
                |key| {
                    fuse.tick();
                    key
                },
                OPTIONS(),
                io::sink(),
            );
            written.unwrap();
        }),
        ("write_with_progress", |store, fuse| {
            let progress = |_| {
                fuse.tick();
                ControlFlow::Continue(())
            };
            store.snapshot().write_with_progress(OPTIONS(), io::sink(), progress).unwrap();
        }),
        ("write", |store, fuse| {
            store.snapshot().write_with(OPTIONS(), Failing::new(io::sink(), fuse, Kind::Panic)).unwrap();
        }),
        ("read_with_progress", |store, fuse| {
            let image = store.snapshot().to_bytes();
            let read = StateSnapshot::read_with_progress(&image[..], |_| {
                fuse.tick();
                ControlFlow::Continue(())
            });
            assert_eq!(read.unwrap(), store.snapshot());
        }),
        ("restore what is collected", |store, fuse| {
            let entries = model().into_iter().rev().inspect(|_| fuse.tick());
            store.restore(entries.map(|(key, value)| (key, [value, vec![1]].concat())).collect());
        }),
        ("restore what is sorted", |store, fuse| {
            let entries = model().into_iter().take(9).inspect(|_| fuse.tick());
            store.restore(StateSnapshot::from_sorted(entries).unwrap());
        }),
        ("restore what is merged", |store, fuse| {
            let slices = store.snapshot().split(KeyGroups::new(5).unwrap(), |key| key).unwrap();
            store.restore(StateSnapshot::merge(slices.into_iter().take(2).inspect(|_| fuse.tick())).unwrap());
        }),
    ]
}

/// Returns constructors of each kind of store.
fn stores() -> [(&'static str, fn() -> Box<dyn StateStore>); 3] {
    [
        ("InMemoryStore", || Box::new(InMemoryStore::new())),
        ("HotStore", || Box::new(HotStore::new())),
        ("HotStore of tiny chunks", || Box::new(HotStore::builder().chunk_bytes(64, 256).build())),
    ]
}

#[test]
fn a_closure_that_panics_leaves_the_store_usable() {
    for (kind, make) in stores() {
        for (name, step) in steps() {
            let mut after = make();
            fill(&mut *after);
            step(&mut *after, &Fuse::off());
            let after = contents(&*after);
            for is_snapshot_alive in [false, true] {
                let mut calls = 0;
                loop {
                    let outcome = || {
                        let mut store = make();
                        fill(&mut *store);
                        let held = is_snapshot_alive.then(|| store.snapshot());
                        let fuse = Fuse::after(calls);
                        let outcome = catch_unwind(AssertUnwindSafe(|| step(&mut *store, &fuse)));
                        if let Err(payload) = &outcome {
                            assert!(payload.is::<Blown>(), "{kind}, {name}, {calls}");
                        }
                        let (mut found, before) = (contents(&*store), model());
                        if name == "modify a large one" && outcome.is_err() {
                            // The closure has changed the whole value by then.
                            let value = found.get_mut(&b"b\x04"[..]).unwrap();
                            assert!(*value == [99; 700] || *value == [4; 700]);
                        } else {
                            assert_eq!(
                                &found,
                                if outcome.is_ok() { &after } else { &before },
                                "{kind}, {name}, {calls}"
                            );
                        }
                        assert_works(&mut *store, &found);
                        if let Some(held) = held {
                            assert_eq!(held, StateSnapshot::from_sorted(model()).unwrap());
                        }
                        outcome.is_ok()
                    };
                    // Run it once before counting, because the thread keeps its buffers.
                    if calls == 0 {
                        outcome();
                    }
                    let (succeeded, allocated) = allocated_by(outcome);
                    assert_eq!(allocated.kept_bytes, 0, "{kind}, {name}, {calls}");
                    if succeeded {
                        break;
                    }
                    calls += 1;
                }
                assert!(calls > 0, "{name} calls");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Panic,
    Error,
    /// Returns no bytes, as a full device or an early end does.
    Nothing,
}

/// A reader or writer with a call that fails when its turn comes.
struct Failing<'a, T> {
    inner: T,
    fuse: &'a Fuse,
    kind: Kind,
}

impl<'a, T> Failing<'a, T> {
    fn new(inner: T, fuse: &'a Fuse, kind: Kind) -> Self {
        Self { inner, fuse, kind }
    }

    /// Returns the failure if it is this call's turn.
    fn failure(&self) -> Option<io::Result<usize>> {
        self.fuse.is_blown().then(|| match self.kind {
            Kind::Panic => resume_unwind(Box::new(Blown)),
            Kind::Error => Err(io::Error::other("the disk is gone")),
            Kind::Nothing => Ok(0),
        })
    }
}

impl<T: Write> Write for Failing<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Write only half of the bytes, so that each part takes more than one call.
        self.failure().unwrap_or_else(|| self.inner.write(&bytes[..bytes.len().div_ceil(2)]))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.failure().map_or_else(|| self.inner.flush(), |failure| failure.map(drop))
    }
}

#[test]
fn a_write_that_fails_is_an_error_and_the_snapshot_stays_whole() {
    type Write = fn(&StateSnapshot, Failing<'_, &mut Vec<u8>>) -> Result<u64, StateError>;
    let writes: [(&str, Write); 6] = [
        ("write_to", |snapshot, out| snapshot.write_to(out)),
        ("write_with", |snapshot, out| snapshot.write_with(OPTIONS(), out)),
        ("threads", |snapshot, out| snapshot.write_with(OPTIONS().threads(3), out)),
        ("write_grouped", |snapshot, out| {
            snapshot.write_grouped(KeyGroups::new(3).unwrap(), |key| key, OPTIONS().buffer_bytes(1000), out)
        }),
        ("a grouped one without buffers", |snapshot, out| {
            snapshot.write_grouped(KeyGroups::new(3).unwrap(), |key| key, OPTIONS().buffer_bytes(0), out)
        }),
        ("delta", |snapshot, out| {
            snapshot.delta_since(&StateSnapshot::from_iter([("b", "c")])).write_with(OPTIONS(), out)
        }),
    ];
    for (kind, make) in stores() {
        let mut store = make();
        fill(&mut *store);
        for (name, write) in writes {
            let snapshot = || store.snapshot().with_timestamp_ns(1);
            let mut whole = Vec::new();
            write(&snapshot(), Failing::new(&mut whole, &Fuse::off(), Kind::Error)).unwrap();
            for failure in [Kind::Panic, Kind::Error, Kind::Nothing] {
                let mut calls = 0;
                loop {
                    let outcome = || {
                        let snapshot = snapshot();
                        let (fuse, mut image) = (Fuse::after(calls), Vec::new());
                        let outcome = catch_unwind(AssertUnwindSafe(|| {
                            write(&snapshot, Failing::new(&mut image, &fuse, failure))
                        }));
                        let succeeded = match (outcome, failure) {
                            (Ok(Ok(written)), _) => {
                                assert_eq!((&image, written), (&whole, whole.len() as u64));
                                true
                            }
                            (Ok(Err(StateError::Io(error))), Kind::Error) => {
                                assert_eq!(error.to_string(), "the disk is gone");
                                false
                            }
                            (Ok(Err(StateError::Io(error))), Kind::Nothing) => {
                                assert_eq!(error.kind(), io::ErrorKind::WriteZero);
                                false
                            }
                            (Err(payload), Kind::Panic) => {
                                assert!(payload.is::<Blown>());
                                false
                            }
                            (outcome, _) => panic!("{name}, {failure:?}, {calls}: {outcome:?}"),
                        };
                        assert!(whole.starts_with(&image));
                        let mut again = Vec::new();
                        write(&snapshot, Failing::new(&mut again, &Fuse::off(), failure)).unwrap();
                        assert!(again == whole, "{kind}, {name}, {failure:?}, {calls}");
                        succeeded
                    };
                    if calls == 0 {
                        outcome();
                    }
                    let (succeeded, allocated) = allocated_by(outcome);
                    // Threads free memory that other threads allocated.
                    assert!(name == "threads" || allocated.kept_bytes == 0, "{kind}, {name}, {failure:?}, {calls}");
                    if succeeded {
                        break;
                    }
                    calls += 1;
                }
                assert!(calls > 5 || failure == Kind::Nothing, "{name}: {calls}");
            }
        }
    }
}

/// A reader with one call that fails, once.
struct Faulty {
    image: Cursor<Vec<u8>>,
    calls: Arc<AtomicUsize>,
    failing: usize,
    kind: Kind,
}

impl Faulty {
    fn failure(&self) -> Option<io::Result<usize>> {
        let is_it = self.calls.fetch_add(1, Ordering::Relaxed) == self.failing;
        is_it.then(|| match self.kind {
            Kind::Panic => resume_unwind(Box::new(Blown)),
            Kind::Error => Err(io::Error::other("the disk is gone")),
            Kind::Nothing => Ok(0),
        })
    }
}

impl Read for Faulty {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.failure().unwrap_or_else(|| self.image.read(bytes))
    }
}

impl Seek for Faulty {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self.failure() {
            Some(Err(error)) => Err(error),
            // A seek cannot return no bytes.
            _ => self.image.seek(to),
        }
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_the_store_stays_as_it_was() {
    let old = StateSnapshot::from_iter([("what", "was before")]);
    let snapshot = StateSnapshot::from_sorted(model()).unwrap();
    let mut image = Vec::new();
    snapshot.write_with(OPTIONS(), &mut image).unwrap();
    let mut grouped = Vec::new();
    snapshot.write_grouped(KeyGroups::new(3).unwrap(), |key| key, OPTIONS(), &mut grouped).unwrap();

    type Reading = fn(Faulty, &mut dyn StateStore) -> Result<(), StateError>;
    let readings: [(&str, Reading); 6] = [
        ("read_from", |reader, store| store.try_restore(StateSnapshot::read_from(reader)?)),
        ("from_reader", |reader, store| {
            let opened = UnverifiedImage::from_reader(reader)?;
            let first = opened.restore_into(store);
            if first.is_err() {
                // The failure occurs only once.
                let before = store.snapshot();
                opened.restore_into(store).unwrap();
                store.restore(before);
            }
            first
        }),
        ("verify and restore", |reader, store| {
            store.restore(UnverifiedImage::from_reader(reader)?.verify()?);
            Ok(())
        }),
        ("verify and try_restore", |reader, store| store.try_restore(UnverifiedImage::from_reader(reader)?.verify()?)),
        ("a group", |reader, store| {
            let grouped = GroupedImage::from_reader(reader)?;
            let slices: Result<Vec<_>, _> = (0..3).map(|group| grouped.group(group)).collect();
            store.try_restore(StateSnapshot::merge(slices?)?)
        }),
        ("inspect", |reader, store| {
            let info = ImageInfo::from_reader(reader)?;
            let mut entries = Vec::new();
            for segment in info.segments() {
                entries.extend(segment.read()?.map(|(key, value)| (key, value.unwrap_or_default())));
            }
            store.restore(StateSnapshot::from_sorted(entries)?);
            Ok(())
        }),
    ];
    for (kind, make) in stores() {
        for (name, reading) in readings {
            for failure in [Kind::Panic, Kind::Error, Kind::Nothing] {
                // The first round has no failure. It fills the thread's buffers.
                for failing in [usize::MAX].into_iter().chain(0..) {
                    let outcome = || {
                        let mut store = make();
                        store.restore(old.clone());
                        let calls = Arc::new(AtomicUsize::new(0));
                        let image = Cursor::new(if name == "a group" { grouped.clone() } else { image.clone() });
                        let reader = Faulty { image, calls: Arc::clone(&calls), failing, kind: failure };
                        let outcome = catch_unwind(AssertUnwindSafe(|| reading(reader, &mut *store)));
                        let is_new = matches!(outcome, Ok(Ok(())));
                        assert_eq!(store.snapshot(), if is_new { snapshot.clone() } else { old.clone() });
                        let model = contents(&*store);
                        assert_works(&mut *store, &model);
                        // A verified image is read again when it is restored. A failure of that second read is a panic.
                        let is_second_reading = outcome.as_ref().is_err_and(|payload| !payload.is::<Blown>());
                        assert!(
                            !is_second_reading || name == "verify and restore",
                            "{kind}, {name}, {failure:?}, {failing}"
                        );
                        (is_new, is_second_reading, calls.load(Ordering::Relaxed))
                    };
                    let ((is_new, has_message, calls), allocated) = allocated_by(outcome);
                    if failing == usize::MAX {
                        assert!(is_new && calls > 0);
                        continue;
                    }
                    // The panic's message stays allocated until it is printed.
                    assert!(has_message || allocated.kept_bytes == 0, "{kind}, {name}, {failure:?}, {failing}");
                    if calls <= failing {
                        assert!(is_new);
                        break;
                    }
                }
            }
        }
    }
}

/// Tests of allocations that fail and unwind, which needs a nightly compiler.
#[cfg(alloc_error_hook)]
mod failing_allocations {
    use opstate::StateDelta;

    use super::*;
    use crate::counting::{failing_after, unwind_where_allocations_fail};

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
}
