//! Readers and writers that fail.

use super::*;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Panic,
    Error,
    /// Returns no bytes, as a full device or an early end does.
    Nothing,
}

/// A reader or writer with a call that fails when its turn comes.
pub(super) struct Failing<'a, T> {
    inner: T,
    fuse: &'a Fuse,
    kind: Kind,
}

impl<'a, T> Failing<'a, T> {
    pub(super) fn new(inner: T, fuse: &'a Fuse, kind: Kind) -> Self {
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
