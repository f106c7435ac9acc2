//! Images as streams: written and read on several threads, with progress, cancellation and bounded memory.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use opstate::{HotStore, ImageOptions, StateError, StateSnapshot, StateStore, UnverifiedImage};
use proptest::prelude::*;

use crate::support::allocator::allocated_by;
use crate::support::cases::cases;
use crate::support::images::numbered;
use crate::support::model::{any_key, any_value};
use crate::support::readers::Medium;

fn written(snapshot: &StateSnapshot, options: ImageOptions) -> Vec<u8> {
    let mut image = Vec::new();
    snapshot.write_with(options, &mut image).unwrap();
    image
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn threads_do_not_show(
        model in proptest::collection::btree_map(any_key(), any_value(), 0..80),
        segment_bytes in 1_usize..1500,
        threads in 0_usize..6,
        is_known in any::<bool>(),
    ) {
        let snapshot = StateSnapshot::from_sorted(model.clone()).unwrap().with_timestamp_ns(7);
        let options = ImageOptions::new().segment_bytes(segment_bytes);
        let expected = written(&snapshot, options);
        // Write a snapshot that does not know its fingerprint yet, and one that does.
        let mut store = HotStore::new();
        store.restore(snapshot.clone());
        let other = store.snapshot().with_timestamp_ns(7);
        if is_known {
            other.fingerprint();
        }
        prop_assert_eq!(written(&other, options.threads(threads)), expected.clone());
        prop_assert_eq!(other.fingerprint(), snapshot.fingerprint());
        prop_assert_eq!(StateSnapshot::read_from(&expected[..]).unwrap(), snapshot);
    }
}

#[test]
fn many_segments_on_many_threads() {
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> =
        (0..30_000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 20])).collect();
    // Add values with segments of their own in between.
    for i in (500..30_000).step_by(700) {
        entries[i].1 = vec![2; 3000];
    }
    let snapshot = StateSnapshot::from_sorted(entries).unwrap();
    let options = ImageOptions::new().segment_bytes(500);
    let expected = written(&snapshot, options);
    for threads in [2, 3, 8, 1000] {
        let again = snapshot.split_with(1, |_| 0).unwrap().remove(0).with_timestamp_ns(snapshot.timestamp_ns());
        assert_eq!(written(&again, options.threads(threads)), expected);
    }
}

/// A writer that fails at a given call.
struct FailingAt(usize);

impl Write for FailingAt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("the disk is full"))?;
        Ok(())
    }
}

#[test]
fn a_write_on_threads_that_fails_anywhere_ends_with_the_error() {
    let snapshot = numbered(100, 30);
    for threads in [2, 4] {
        let options = ImageOptions::new().segment_bytes(200).threads(threads);
        let mut failures = 0;
        while let Err(error) = snapshot.write_with(options, FailingAt(failures)) {
            assert!(matches!(error, StateError::Io(_)), "{error}");
            failures += 1;
        }
        assert!(failures > 20, "{failures}");
    }
}

#[test]
fn damage_met_by_threads_is_an_error() {
    let snapshot = numbered(5000, 30);
    let mut image = written(&snapshot, ImageOptions::new().segment_bytes(1000));
    let middle = image.len() / 2;
    image[middle] ^= 1;
    let opened = StateSnapshot::from_source(Medium(UnverifiedImage::from_bytes(image).unwrap()));
    let error = opened.write_with(ImageOptions::new().segment_bytes(100).threads(3), io::sink()).unwrap_err();
    assert!(matches!(error, StateError::ChecksumMismatch { .. }), "{error}");
}

#[test]
fn progress_ascends_and_cancels() {
    let snapshot = numbered(1000, 30);
    for threads in [1, 3] {
        let options = ImageOptions::new().segment_bytes(500).threads(threads);
        let mut seen = Vec::new();
        let written = snapshot.write_with_progress(options, io::sink(), |progress| {
            seen.push((progress.bytes, progress.entries));
            ControlFlow::Continue(())
        });
        let written = written.unwrap();
        // On several threads, segments are written in batches.
        assert!(seen.len() > if threads == 1 { 80 } else { 1 });
        assert!(seen.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{seen:?}");
        assert_eq!(seen.last(), Some(&(written, 1000)));
        for stop in 1..seen.len() {
            let mut calls = 0;
            let mut out = Vec::new();
            let result = snapshot.write_with_progress(options, &mut out, |_| {
                calls += 1;
                if calls == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            match result {
                Err(StateError::Cancelled { bytes }) => assert_eq!(bytes, out.len() as u64),
                // On several threads, the batches differ each time.
                other => assert!(threads > 1 && other.is_ok(), "{other:?}"),
            }
            assert!(calls == stop || threads > 1);
        }
        // The answer to the last progress report does not count.
        let result = snapshot.write_with_progress(options, io::sink(), |progress| {
            if progress.bytes == written { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(result.unwrap(), written);
    }

    let image = numbered(100_000, 30).to_bytes();
    let mut seen = Vec::new();
    let read = StateSnapshot::read_with_progress(&image[..], |progress| {
        seen.push(progress.bytes);
        ControlFlow::Continue(())
    });
    assert_eq!(read.unwrap().len(), 100_000);
    assert_eq!(
        (seen.len() as u64, seen.last()),
        ((image.len() as u64 - 32).div_ceil(1 << 20), Some(&(image.len() as u64)))
    );
    let result = StateSnapshot::read_with_progress(&image[..], |_| ControlFlow::Break(()));
    assert!(matches!(result, Err(StateError::Cancelled { bytes }) if bytes == 32 + (1 << 20)));
}

/// A reader that returns one byte at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = bytes.len().min(1);
        self.0.read(&mut bytes[..len])
    }
}

#[test]
fn what_is_read_bounds_what_is_allocated() {
    let snapshot = numbered(100_000, 30);
    let image = snapshot.to_bytes();
    let (read, allocated) = allocated_by(|| StateSnapshot::read_from(&image[..]).unwrap());
    assert_eq!(read, snapshot);
    // A growing vector exists twice for a moment. One and a half times its length is newly allocated.
    assert!(allocated.peak_bytes < 3 * image.len(), "{} for {}", allocated.peak_bytes, image.len());
    assert_eq!(StateSnapshot::read_from(Slow(&numbered(10, 3).to_bytes())).unwrap(), numbered(10, 3));

    // Input that is not an image is rejected early. This input never ends.
    let (error, allocated) = allocated_by(|| StateSnapshot::read_from(io::repeat(b'x')).unwrap_err());
    assert!(matches!(error, StateError::NotAnImage { .. }), "{error}");
    assert!(allocated.peak_bytes < 1024, "{}", allocated.peak_bytes);
    for len in 0..image.len().min(500) {
        assert!(StateSnapshot::read_from(&image[..len]).is_err());
    }
    assert!(matches!(StateSnapshot::read_from(io::empty()), Err(StateError::Truncated { len: 0, .. })));
    let failing = image[..1000].chain(FailingRead);
    assert!(matches!(StateSnapshot::read_from(failing), Err(StateError::Io(_))));
}

struct FailingRead;

impl Read for FailingRead {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the connection is gone"))
    }
}
