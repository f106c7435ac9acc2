//! Any bytes as an image and deltas: opened, applied, merged. The first byte says whether checksums and fingerprints count;
//! without them the fuzzer gets past what is no defence against a forger anyway. Then come the parts, each behind its length
//! as two bytes: the image, and the deltas in order.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use opstate::bytes::Bytes;
use opstate::{StateDelta, StateSnapshot};

/// The next part, as long as it says it is, or as is left.
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
}

fn check_snapshot(snapshot: &StateSnapshot) {
    let entries: Vec<_> = snapshot.iter().collect();
    assert_eq!(snapshot.len(), entries.len());
    for (key, value) in &entries {
        assert_eq!(snapshot.get(key).as_ref(), Some(value));
    }
    // Fails for keys that do not ascend.
    let copy = StateSnapshot::from_sorted(entries).unwrap();
    assert_eq!((copy.size_bytes(), copy.fingerprint()), (snapshot.size_bytes(), snapshot.fingerprint()));
    assert_eq!(copy.with_timestamp_ns(0).to_bytes(), snapshot.with_timestamp_ns(0).to_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, mut input)) = input.split_first() else { return };
    opstate::fuzzing::ignore_checksums(mode & 1 == 1);
    let Some(Ok(base)) = next_part(&mut input).map(|image| StateSnapshot::from_bytes(image.to_vec())) else { return };

    let mut model: BTreeMap<Bytes, Bytes> = base.iter().collect();
    let mut now = Some(base.clone());
    let mut all: Option<StateDelta> = None;
    while let Some(part) = next_part(&mut input) {
        let Ok(delta) = StateDelta::from_bytes(part.to_vec()) else { continue };
        check_delta(&delta);
        let Some(before) = &now else { return };
        let applied = before.apply(&delta);
        let merged = all.as_ref().map_or_else(|| Ok(delta.clone()), |all| all.merge(&delta));
        if let Ok(merged) = &merged {
            check_delta(merged);
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
                check_snapshot(&applied);
                // What is taken between the two does the same.
                let between = applied.delta_since(before);
                check_delta(&between);
                assert_eq!(before.apply(&between).unwrap(), applied);
                // What can be applied one after the other can be merged.
                let merged = merged.unwrap();
                assert_eq!(base.apply(&merged).unwrap(), applied);
                (now, all) = (Some(applied), Some(merged));
            }
            Err(_) => assert_eq!(before.iter().count(), model.len()),
        }
    }
});
