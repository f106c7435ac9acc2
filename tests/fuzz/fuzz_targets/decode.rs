//! Any bytes as an image. The first byte says whether checksums and the fingerprint count; without them the fuzzer gets
//! past what is no defence against a forger anyway.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use opstate::StateSnapshot;

fuzz_target!(|input: &[u8]| {
    let Some((mode, image)) = input.split_first() else { return };
    opstate::fuzzing::ignore_checksums(mode & 1 == 1);
    let whole = StateSnapshot::from_bytes(image.to_vec());

    // An image that is verified as it is read gives errors or entries, and in the end the same answer.
    for lazy in
        [StateSnapshot::from_bytes_lazily(image.to_vec()), StateSnapshot::from_reader(Cursor::new(image.to_vec()))]
    {
        let Ok(lazy) = lazy else {
            assert!(whole.is_err());
            continue;
        };
        for (key, value) in lazy.try_scan(..).flatten() {
            if let Ok(found) = lazy.try_get(&key) {
                assert_eq!(found, Some(value));
            }
        }
        assert_eq!(lazy.verify().is_ok(), whole.is_ok());
    }

    let Ok(snapshot) = whole else { return };

    let entries: Vec<_> = snapshot.iter().collect();
    assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!(snapshot.len(), entries.len());
    assert_eq!(snapshot.size_bytes(), entries.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
    for (key, value) in &entries {
        assert_eq!(snapshot.get(key).as_ref(), Some(value));
    }
    let copy = StateSnapshot::from_sorted(entries).unwrap();
    assert_eq!(copy.fingerprint(), snapshot.fingerprint());
    opstate::fuzzing::ignore_checksums(false);
    assert_eq!(StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap(), copy);
});
