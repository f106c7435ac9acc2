//! Fuzzes opening an image of arbitrary bytes.
//!
//! The first byte selects whether checksums and the fingerprint are ignored. They are no defence against a forger, and
//! without them the fuzzer gets further.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use opstate::bytes::Bytes;
use opstate::{
    HotStore, ImageInfo, ImageKind, InMemoryStore, StateError, StateSnapshot, StateStore, UnverifiedImage,
    VALUE_ALIGNMENT,
};

type Entry = (Bytes, Bytes);

fn assert_aligned(value: &Bytes) {
    assert!(value.is_empty() || value.as_ptr().addr() % VALUE_ALIGNMENT == 0);
}

/// Takes entries from both ends in turn, and returns them in the order of keys.
fn from_both_ends(mut scan: impl DoubleEndedIterator<Item = Result<Entry, StateError>>) -> Vec<Entry> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let (first, last) = (scan.next(), scan.next_back());
        if first.is_none() && last.is_none() {
            break;
        }
        front.extend(first.and_then(Result::ok));
        back.extend(last.and_then(Result::ok));
    }
    back.reverse();
    front.append(&mut back);
    front
}

/// Checks that reads of an unverified image give errors or entries. Restoring and verifying must agree with opening it
/// whole.
fn check_unverified(image: &UnverifiedImage, whole: &Result<StateSnapshot, StateError>, mut store: impl StateStore) {
    let (read, failed): (Vec<_>, Vec<_>) = image.iter().partition(Result::is_ok);
    let entries: Vec<Entry> = read.into_iter().flatten().collect();
    let down: Vec<Entry> = image.iter().rev().filter_map(Result::ok).collect();
    let both = from_both_ends(image.iter());
    for (key, value) in entries.iter().chain(&down).chain(&both) {
        assert_aligned(value);
        if let Ok(found) = image.get(key) {
            assert_eq!(found.as_ref(), Some(value));
        }
    }

    store.put(b"what was there", b"").unwrap();
    let before = store.snapshot();
    let restored = image.restore_into(&mut store);
    let Ok(whole) = whole else {
        assert!(!failed.is_empty());
        assert!(image.verify().is_err() && image.fingerprint().is_err() && restored.is_err());
        assert_eq!(store.snapshot(), before);
        return;
    };
    assert!(failed.is_empty() && restored.is_ok());
    assert_eq!(&store.snapshot(), whole);
    assert_eq!(&image.verify().unwrap(), whole);
    assert_eq!(image.fingerprint().unwrap(), whole.fingerprint());
    assert_eq!(
        (image.len(), image.size_bytes(), image.timestamp_ns()),
        (whole.len(), whole.size_bytes(), whole.timestamp_ns())
    );
    assert_eq!(image.label(), whole.label());
    assert!(down.iter().rev().eq(&entries));
    assert_eq!(both, entries);
    assert!(whole.iter().eq(entries));
}

/// Inspects the image, sound or not.
fn check_info(image: &[u8], whole: &Result<StateSnapshot, StateError>) {
    let Ok(info) = ImageInfo::from_bytes(image.to_vec()) else {
        assert!(whole.is_err());
        return;
    };
    let mut entries = Vec::new();
    for segment in info.segments() {
        match segment.read() {
            Ok(read) => {
                let read: Vec<_> = read.collect();
                assert!(read.is_sorted_by(|(a, _), (b, _)| a < b));
                assert_eq!(read.len(), segment.entries() as usize);
                read.iter().filter_map(|(_, value)| value.as_ref()).for_each(assert_aligned);
                entries.extend(read);
            }
            Err(_) => assert!(whole.is_err()),
        }
    }
    for group in info.groups() {
        assert!(group.open().is_ok() || whole.is_err());
    }
    if let Ok(whole) = whole {
        assert!(info.damage().is_empty());
        assert_eq!(info.label(), whole.label());
        if info.kind() == ImageKind::Snapshot {
            assert!(whole.iter().map(|(key, value)| (key, Some(value))).eq(entries));
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, image)) = input.split_first() else { return };
    opstate::fuzzing::ignore_checksums(mode & 1 == 1);
    let whole = StateSnapshot::from_bytes(image.to_vec());
    match UnverifiedImage::from_bytes(image.to_vec()) {
        Ok(lazy) => check_unverified(&lazy, &whole, HotStore::new()),
        Err(_) => assert!(whole.is_err()),
    }
    match UnverifiedImage::from_reader(Cursor::new(image.to_vec())) {
        Ok(lazy) => check_unverified(&lazy, &whole, InMemoryStore::new()),
        Err(_) => assert!(whole.is_err()),
    }
    check_info(image, &whole);

    let Ok(snapshot) = whole else { return };

    let entries: Vec<_> = snapshot.iter().collect();
    assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!(snapshot.len(), entries.len());
    assert_eq!(snapshot.size_bytes(), entries.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
    for (key, value) in &entries {
        assert_aligned(value);
        assert_eq!(snapshot.get(key).as_ref(), Some(value));
    }
    assert_eq!(from_both_ends(snapshot.iter().map(Ok)), entries);
    snapshot.label().require(snapshot.label()).unwrap();
    let copy = StateSnapshot::from_sorted(entries).unwrap();
    assert_eq!(copy.fingerprint(), snapshot.fingerprint());
    opstate::fuzzing::ignore_checksums(false);
    let again = StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap();
    assert_eq!(again, copy);
    assert_eq!(again.label(), snapshot.label());
});
