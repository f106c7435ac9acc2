//! Fuzzes an image and deltas made of arbitrary bytes: they are opened, applied and composed.
//!
//! The first byte selects whether checksums and fingerprints are ignored. They are no defence against a forger, and
//! without them the fuzzer gets further. The image and the deltas follow in order, each after its length in two bytes.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use opstate::bytes::Bytes;
use opstate::{StateDelta, StateSnapshot, UnverifiedImage};

/// Returns the next part. It ends at its stated length or at the end of the input.
fn next_part<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = input.split_first_chunk()?;
    let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    *input = rest;
    Some(part)
}

fn check_delta(delta: &StateDelta) {
    let changes: Vec<_> = delta.iter().collect();
    assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!((delta.len(), delta.puts() + delta.deletes()), (changes.len(), changes.len()));
    assert_eq!(delta.deletes(), changes.iter().filter(|(_, new)| new.is_none()).count());
    let size = |new: &Option<Bytes>| new.as_ref().map_or(0, |new| new.len());
    assert_eq!(delta.size_bytes(), changes.iter().map(|(key, new)| key.len() + size(new)).sum::<usize>());
    let again = StateDelta::from_bytes(delta.to_bytes()).unwrap();
    assert_eq!(&again, delta);
    assert_eq!(again.to_bytes(), delta.to_bytes());
    assert_eq!(again.label(), delta.label());
}

fn check_snapshot(snapshot: &StateSnapshot) {
    let entries: Vec<_> = snapshot.iter().collect();
    assert_eq!(snapshot.len(), entries.len());
    for (key, value) in &entries {
        assert_eq!(snapshot.get(key).as_ref(), Some(value));
    }
    // `from_sorted` fails if the keys do not ascend.
    let copy = StateSnapshot::from_sorted(entries).unwrap();
    assert_eq!((copy.size_bytes(), copy.fingerprint()), (snapshot.size_bytes(), snapshot.fingerprint()));
    let copy = copy.with_timestamp_ns(0).with_label(snapshot.label().clone());
    assert_eq!(copy.to_bytes(), snapshot.with_timestamp_ns(0).to_bytes());
}

/// Checks that unverified images have the same differences as the snapshots.
fn check_differences(base: &UnverifiedImage, base_snapshot: &StateSnapshot, later: &StateSnapshot) {
    let image = UnverifiedImage::from_bytes(later.to_bytes()).unwrap();
    assert_eq!(image.label(), later.label());
    let differences: Vec<_> = image.diff(base).map(Result::unwrap).collect();
    assert!(later.diff(base_snapshot).eq(differences));
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, mut input)) = input.split_first() else { return };
    opstate::fuzzing::ignore_checksums(mode & 1 == 1);
    let Some(image) = next_part(&mut input) else { return };
    let Ok(base) = StateSnapshot::from_bytes(image.to_vec()) else { return };
    let unverified = UnverifiedImage::from_bytes(image.to_vec()).unwrap();
    assert_eq!(unverified.label(), base.label());

    let mut model: BTreeMap<Bytes, Bytes> = base.iter().collect();
    let mut now = Some(base.clone());
    let mut all: Option<StateDelta> = None;
    while let Some(part) = next_part(&mut input) {
        let Ok(delta) = StateDelta::from_bytes(part.to_vec()) else { continue };
        check_delta(&delta);
        let Some(before) = &now else { return };
        let applied = before.apply(&delta);
        let composed = all.as_ref().map_or_else(|| Ok(delta.clone()), |all| all.compose(&delta));
        if let Ok(composed) = &composed {
            check_delta(composed);
            assert_eq!(composed.label(), delta.label());
        }
        match applied {
            Ok(applied) => {
                for (key, new) in &delta {
                    match new {
                        Some(new) => drop(model.insert(key, new)),
                        None => drop(model.remove(&key)),
                    }
                }
                assert!(applied.iter().eq(model.clone()));
                assert_eq!(applied.label(), delta.label());
                check_snapshot(&applied);
                check_differences(&unverified, &base, &applied);
                // A delta between the two snapshots must have the same effect.
                let between = applied.delta_since(before);
                check_delta(&between);
                assert_eq!(before.apply(&between).unwrap(), applied);
                // Deltas that can be applied in sequence can also be composed.
                let composed = composed.unwrap();
                assert_eq!(base.apply(&composed).unwrap(), applied);
                (now, all) = (Some(applied), Some(composed));
            }
            Err(_) => assert_eq!(before.iter().count(), model.len()),
        }
    }
});
