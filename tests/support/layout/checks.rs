//! Checks that every opened image must pass, and functions that open forged images.

use bytes::Bytes;
use opstate::{StateDelta, StateError, StateSnapshot, UnverifiedImage};

use super::{TRAILER, get_u64, seal_trailer, set_u64};

/// Opens a forged image after correcting its fingerprint. A forger learns the right one from the error.
pub(crate) fn open_forged(image: &mut [u8]) -> Result<StateSnapshot, StateError> {
    open_forged_by(image, StateSnapshot::from_bytes)
}

/// Opens a forged delta like [`open_forged`].
pub(crate) fn open_forged_delta(image: &mut [u8]) -> Result<StateDelta, StateError> {
    open_forged_by(image, StateDelta::from_bytes)
}

fn open_forged_by<T>(image: &mut [u8], open: impl Fn(Vec<u8>) -> Result<T, StateError>) -> Result<T, StateError> {
    let trailer = image.len() - TRAILER;
    let mut result = open(image.to_vec());
    for at in [48, 56] {
        match result {
            Err(StateError::Malformed { problem, found, expected, .. }) if problem.contains("fingerprint is not") => {
                let at = if get_u64(image, trailer + 48) == found { 48 } else { at };
                set_u64(image, trailer + at, expected);
                seal_trailer(image);
                result = open(image.to_vec());
            }
            _ => return result,
        }
    }
    result
}

/// Checks that a delta is well-formed, whatever bytes it came from.
pub(crate) fn assert_well_formed_delta(delta: &StateDelta) {
    let changes: Vec<_> = delta.iter().collect();
    assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b));
    assert!(changes.iter().all(|(_, new)| new.as_ref().is_none_or(|new| is_aligned(new))));
    assert_eq!((delta.len(), delta.puts() + delta.deletes()), (changes.len(), changes.len()));
    assert_eq!(delta.puts(), changes.iter().filter(|(_, new)| new.is_some()).count());
    let size = |new: &Option<Bytes>| new.as_ref().map_or(0, |new| new.len());
    assert_eq!(delta.size_bytes(), changes.iter().map(|(key, new)| key.len() + size(new)).sum::<usize>());
    let again = StateDelta::from_bytes(delta.to_bytes()).unwrap();
    assert_eq!(&again, delta);
    assert_eq!(again.label(), delta.label());
    assert_eq!(again.to_bytes(), delta.to_bytes());
    // Applying the delta must have exactly the effect it states, or fail.
    for base in [StateSnapshot::from_iter([("", "")]), StateSnapshot::default()] {
        if let Ok(applied) = base.apply(delta) {
            assert_eq!(applied.fingerprint(), delta.result_fingerprint());
            assert_well_formed(&applied);
        }
    }
    let _ = delta.compose(&again).map(|composed| StateDelta::from_bytes(composed.to_bytes()).unwrap());
}

/// Returns `true` if a value may be handed out where it lies.
pub(crate) fn is_aligned(value: &[u8]) -> bool {
    value.is_empty() || value.as_ptr().addr() % opstate::VALUE_ALIGNMENT == 0
}

/// Checks that a snapshot is well-formed, whatever bytes it came from.
pub(crate) fn assert_well_formed(snapshot: &StateSnapshot) {
    let entries: Vec<_> = snapshot.iter().collect();
    assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!(snapshot.len(), entries.len());
    assert_eq!(snapshot.size_bytes(), entries.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
    for (key, value) in &entries {
        assert!(key.len() <= opstate::MAX_KEY_LEN);
        assert!(is_aligned(value));
        assert_eq!(snapshot.get(key).as_ref(), Some(value));
    }
    assert!(snapshot.iter().rev().eq(entries.iter().rev().cloned()));
    let copy = StateSnapshot::from_sorted(entries).unwrap();
    assert_eq!(copy.fingerprint(), snapshot.fingerprint());
    let again = StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap();
    assert_eq!((&again, again.label()), (&copy, snapshot.label()));
}

/// Opens an image without reading it, from memory and from a reader, then reads all of it. Checks that this agrees with
/// opening it whole. The readable part of a damaged image must agree with `sound`, if given.
pub(crate) fn assert_lazy_agrees(image: &[u8], sound: Option<&StateSnapshot>) {
    let whole = StateSnapshot::from_bytes(image.to_vec());
    let bytes = UnverifiedImage::from_bytes(image.to_vec());
    let reader = UnverifiedImage::from_reader(std::io::Cursor::new(image.to_vec()));
    for lazy in [bytes, reader] {
        let Ok(lazy) = lazy else {
            assert!(whole.is_err(), "refused although it is sound");
            continue;
        };
        let (mut read, mut failed) = (Vec::new(), 0);
        for entry in lazy.iter() {
            match entry {
                Ok(entry) => read.push(entry),
                Err(_) => failed += 1,
            }
        }
        assert_eq!(failed > 0, whole.is_err(), "a read of all entries verifies them");
        assert!(read.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(lazy.iter().rev().flatten().eq(read.iter().rev().cloned()), "something else in the other direction");
        for (key, value) in read {
            if let Some(sound) = sound {
                assert_eq!(sound.get(&key).as_ref(), Some(&value), "another entry than was written");
            }
            // Reads of a sound segment find what a scan finds.
            assert_eq!(lazy.get(&key).unwrap_or_else(|_| Some(value.clone())), Some(value));
        }
        match lazy.verify() {
            Err(_) => assert!(whole.is_err(), "does not verify although it is sound"),
            Ok(verified) => {
                let whole = whole.as_ref().expect("verifies although it is not sound");
                assert_eq!(&verified, whole);
                assert_eq!(lazy.fingerprint().unwrap(), whole.fingerprint());
                assert_eq!(verified.fingerprint(), whole.fingerprint());
                assert_eq!((lazy.len(), lazy.size_bytes()), (whole.len(), whole.size_bytes()));
                assert_eq!((lazy.timestamp_ns(), lazy.label()), (whole.timestamp_ns(), whole.label()));
            }
        }
    }
    // Open the image again, so that nothing of it is known.
    let fresh = UnverifiedImage::from_bytes(image.to_vec()).and_then(|lazy| lazy.verify());
    assert_eq!(fresh.is_err(), whole.is_err());
}
