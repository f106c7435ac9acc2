//! Images by someone who knows the format and computes every checksum: an error, or a well-formed snapshot.

use opstate::{Fingerprint, ImageOptions, StateDelta, StateError, StateSnapshot};
use proptest::prelude::*;

use crate::cases;
use crate::counting::allocated_by;
use crate::layout::{
    BASE, Base, DESCRIPTOR, HEADER, Segment, TRAILER, assemble, assemble_as, assert_lazy_agrees, assert_well_formed,
    assert_well_formed_delta, extents, get_u64, open_forged, open_forged_delta, seal, seal_parts, set_u64,
};

fn sound() -> Vec<Segment> {
    vec![
        Segment::of(&[(b"", b"empty key"), (b"a", b"1"), (b"a\0", b"")]),
        Segment::with_blob(b"b", &[7; 100]),
        Segment::of(&[(b"ba", b"22"), (b"c", b"333"), (b"\xFF\xFF", b"4444")]),
    ]
}

/// The rule that the image breaks, as the error names it.
fn broken_rule(segments: &[Segment]) -> &'static str {
    let mut image = assemble(segments);
    match open_forged(&mut image) {
        Err(StateError::Malformed { problem, .. }) => problem,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn a_second_implementation_writes_the_same_image() {
    let a = [(&b"a"[..], &b"11"[..]), (b"b", b"2222"), (b"c", b"")];
    let d = [(&b"d"[..], &b"3"[..])];
    let mut image = assemble(&[Segment::of(&a), Segment::with_blob(b"cc", &[9; 40]), Segment::of(&d)]);
    let snapshot = open_forged(&mut image).unwrap();
    let cc = [(&b"cc"[..], &[9; 40][..])];
    let entries = a.iter().chain(&cc).chain(&d).copied();
    let expected = StateSnapshot::from_sorted(entries.map(|(k, v)| (k.to_vec(), v.to_vec()))).unwrap();
    assert_eq!(snapshot, expected);
    let mut written = Vec::new();
    // After three entries of 9 bytes, 24 of them overhead, the fourth value fills a segment by itself.
    expected.with_timestamp_ns(0).write_with(ImageOptions::new().segment_bytes(33), &mut written).unwrap();
    assert_eq!(written, image);
}

#[test]
fn each_broken_rule_is_named() {
    let forge = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut segments = sound();
        change(&mut segments);
        broken_rule(&segments)
    };
    let image = &mut assemble(&sound());
    assert_well_formed(&open_forged(image).unwrap());

    assert_eq!(forge(&|s| s.swap(0, 2)), "a key does not sort after the one before it");
    assert_eq!(
        forge(&|s| s[0] = Segment::of(&[(b"a", b""), (b"a", b"")])),
        "a key does not sort after the one before it"
    );
    assert_eq!(forge(&|s| s[2] = s[0].clone()), "a key does not sort after the one before it");
    assert_eq!(forge(&|s| s[0].first_key = b"x".to_vec()), "its first key is not that of the footer");
    assert_eq!(forge(&|s| s[0].entries = 0), "it is empty");
    assert_eq!(forge(&|s| s[1] = Segment::of(&[])), "it is empty");
    assert_eq!(forge(&|s| s[0].entries = 2), "the number of ends of keys is not that of entries");
    assert_eq!(forge(&|s| s[0].columns.value_ends.truncate(2)), "the number of ends of values is not that of entries");
    assert_eq!(forge(&|s| s[0].blob = vec![1; 50]), "a segment with a blob has one entry");
    assert_eq!(forge(&|s| s[1].columns.values.push(1)), "a segment with a blob has no other value");
    assert_eq!(forge(&|s| s[0].columns.key_ends.swap(1, 2)), "an end lies before the one before it");
    assert_eq!(forge(&|s| s[0].columns.keys.push(1)), "the last end is not the length of its column");
    assert_eq!(forge(&|s| s[0].columns.value_ends[2] += 1), "the last end is not the length of its column");
    assert_eq!(forge(&|s| s[0].columns.value_ends[2] = u32::MAX), "the last end is not the length of its column");
    assert_eq!(forge(&|s| s[2] = Segment::of(&[(&[b'x'; 65_536], b"")])), "a key is too long");
    let long = [(&b"x"[..], &b""[..]), (&[b'x'; 65_536], b"")];
    assert_eq!(forge(&|s| s[2] = Segment::of(&long)), "a key is too long");
}

#[test]
fn what_is_said_to_be_zeros_is_zeros() {
    let image = assemble(&sound());
    let footer = get_u64(&image, image.len() - TRAILER) as usize;
    let (first_end, second_end) = (extents(&image)[0].1, extents(&image)[1].1);
    // A byte that a descriptor reserves, and the padding of a segment and behind a blob.
    for at in [footer + 34, footer + DESCRIPTOR + 39, first_end - 1, second_end - 1] {
        let mut forged = image.clone();
        assert_eq!(forged[at], 0);
        forged[at] = 1;
        seal(&mut forged);
        let error = open_forged(&mut forged).unwrap_err();
        assert!(error.to_string().contains("zeros"), "{error}");
    }
    // The last first key, said to be longer than what is left of the footer.
    let mut forged = image.clone();
    forged[footer + 2 * DESCRIPTOR + 32] = 200;
    seal(&mut forged);
    assert!(open_forged(&mut forged).unwrap_err().to_string().contains("does not end within the footer"));
}

#[test]
fn segments_need_room_in_the_body() {
    let empty = assemble(&[]);
    let (header, trailer) = empty.split_at(HEADER);
    // In this one there is room for one.
    let body = [0; 48];
    for segments in [2, 1000] {
        let descriptors = vec![0; segments * DESCRIPTOR];
        let mut forged = [header, &body, &descriptors, trailer].concat();
        let at = forged.len() - TRAILER;
        for (field, number) in [(0, HEADER + body.len()), (8, segments * DESCRIPTOR), (16, segments)] {
            set_u64(&mut forged, at + field, number as u64);
        }
        seal_parts(&mut forged, &[], HEADER + body.len());
        let (result, allocated) = allocated_by(|| StateSnapshot::from_bytes(forged.clone()));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("there is no room for so many segments"), "{error}");
        assert!(allocated.peak_bytes < forged.len() + 1024);
    }
}

#[test]
fn sums_in_the_trailer_are_not_believed() {
    for (field, problem) in [
        (24, "the number of entries is not true"),
        (32, "the length of all keys is not true"),
        (40, "the length of all values is not true"),
    ] {
        let mut image = assemble(&sound());
        let at = image.len() - TRAILER + field;
        let number = get_u64(&image, at);
        set_u64(&mut image, at, number + 1);
        seal(&mut image);
        let error = open_forged(&mut image).unwrap_err();
        assert!(matches!(error, StateError::Malformed { problem: found, .. } if found == problem), "{error}");
    }
    let mut image = assemble(&sound());
    let error = StateSnapshot::from_bytes(image.clone()).unwrap_err();
    assert!(matches!(error, StateError::Malformed { problem, .. } if problem.contains("fingerprint")), "{error}");
    assert!(open_forged(&mut image).is_ok());
}

#[test]
fn an_unknown_version_kind_or_flag_is_named() {
    let forged = |at: usize, byte| {
        let mut image = assemble(&sound());
        image[at] = byte;
        seal(&mut image);
        open_forged(&mut image).unwrap_err()
    };
    let error = forged(8, 2);
    assert!(matches!(error, StateError::UnsupportedVersion { found: 2, supported: 1 }), "{error}");
    assert_eq!(error.to_string(), "the image has format version 2, this build reads up to version 1; update `opstate`");
    assert!(matches!(forged(9, 0xFF), StateError::UnsupportedVersion { found: 0xFF01, .. }));
    assert!(matches!(forged(8, 0), StateError::Malformed { problem: "format version 0 was never written", .. }));
    assert!(matches!(forged(10, 4), StateError::Malformed { problem: "this kind of image is unknown", .. }));
    assert!(matches!(forged(10, 2), StateError::UnexpectedKind { found: "delta", expected: "snapshot" }));
    assert!(matches!(forged(15, 0x80), StateError::Malformed { problem: "these flags are unknown", .. }));
    assert!(matches!(forged(0, b'x'), StateError::NotAnImage { .. }));
    // A newer version is named even if everything else is different, and shorter.
    for len in 10..120 {
        let mut newer = assemble(&[]);
        newer[8] = 2;
        let error = StateSnapshot::from_bytes(newer[..len].to_vec()).unwrap_err();
        assert!(matches!(error, StateError::UnsupportedVersion { found: 2, .. }), "{error}");
    }
    let mut newer = assemble(&[]);
    newer[8] = 9;
    newer[11..].fill(0xAB);
    assert!(matches!(StateSnapshot::from_bytes(newer), Err(StateError::UnsupportedVersion { found: 9, .. })));
}

fn sound_changes() -> Vec<Segment> {
    vec![
        Segment::of_changes(&[(b"", 1, b"empty key"), (b"a", 0, b""), (b"a\0", 2, b"")]),
        Segment { blob: vec![7; 100], ..Segment::of_changes(&[(b"b", 2, b"")]) },
        Segment::of_changes(&[(b"ba", 2, b"22"), (b"c", 1, b"333"), (b"\xFF\xFF", 0, b"")]),
    ]
}

const SOUND_BASE: Base = Base { fingerprint: 17, result: 4, inserts: 2, deletes: 2 };

fn sound_delta() -> Vec<u8> {
    assemble_as(&sound_changes(), Some(SOUND_BASE))
}

#[test]
fn a_second_implementation_writes_the_same_delta() {
    let old = [(&b"a"[..], &b"1"[..]), (b"b", b"2"), (b"c", b"3"), (b"d", b"4")];
    let long = [9; 40];
    let new = [(&b"b"[..], &b"2"[..]), (b"c", b"55"), (b"d", &long), (b"e", b"")];
    let snapshot = |entries: &[(&'static [u8], &[u8])]| {
        StateSnapshot::from_sorted(entries.iter().map(|&(key, value)| (key, value.to_vec()))).unwrap()
    };
    let (old, new) = (snapshot(&old), snapshot(&new).with_timestamp_ns(0));
    let number = |fingerprint: Fingerprint| u128::from_le_bytes(fingerprint.to_le_bytes());
    let base =
        Base { fingerprint: number(old.fingerprint()), result: number(new.fingerprint()), inserts: 1, deletes: 1 };
    let segments = [
        Segment::of_changes(&[(b"a", 0, b""), (b"c", 2, b"55")]),
        Segment { blob: long.to_vec(), ..Segment::of_changes(&[(b"d", 2, b"")]) },
        Segment::of_changes(&[(b"e", 1, b"")]),
    ];
    let mut image = assemble_as(&segments, Some(base));
    let delta = open_forged_delta(&mut image).unwrap();
    assert_eq!(delta, new.delta_since(&old));
    assert_eq!(old.apply(&delta).unwrap(), new);
    let mut written = Vec::new();
    new.delta_since(&old).write_with(ImageOptions::new().segment_bytes(33), &mut written).unwrap();
    assert_eq!(written, image);
}

#[test]
fn each_broken_rule_of_a_delta_is_named() {
    let broken = |segments: &[Segment], base: Base| match open_forged_delta(&mut assemble_as(segments, Some(base))) {
        Err(StateError::Malformed { problem, .. }) => problem,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("no error"),
    };
    let forge = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut segments = sound_changes();
        change(&mut segments);
        broken(&segments, SOUND_BASE)
    };
    assert_well_formed_delta(&open_forged_delta(&mut sound_delta()).unwrap());

    assert_eq!(forge(&|s| s[0].changes[1] = 3), "this kind of change is unknown");
    assert_eq!(forge(&|s| s[0].changes[0] = 0), "a deleted key has a value");
    assert_eq!(forge(&|s| s[1].changes[0] = 0), "a deleted key has a value");
    assert_eq!(forge(&|s| s[0].changes.truncate(2)), "the number of kinds of changes is not that of entries");
    assert_eq!(forge(&|s| s[0].changes.push(1)), "the number of kinds of changes is not that of entries");
    assert_eq!(forge(&|s| s[0].changes[2] = 1), "the number of inserted keys is not true");
    assert_eq!(forge(&|s| s[0].changes[2] = 0), "the number of deleted keys is not true");
    assert_eq!(forge(&|s| s.swap(0, 2)), "a key does not sort after the one before it");

    let nothing = Base { inserts: 0, deletes: 0, ..SOUND_BASE };
    assert_eq!(broken(&[], nothing), "the fingerprints do not differ by that of the insertions");
    assert!(open_forged_delta(&mut assemble_as(&[], Some(Base { result: 17, ..nothing }))).unwrap().is_empty());
    let one = [Segment::of_changes(&[(b"a", 1, b"1")])];
    let base = Base { inserts: 1, ..nothing };
    assert_eq!(broken(&one, base), "the fingerprints do not differ by that of the insertions");
    assert_eq!(
        broken(&one, Base { result: 17 + (1 << 64), ..base }),
        "the fingerprints do not differ by that of the insertions"
    );

    // An image that is said to be a delta has neither a base nor the columns of one.
    let mut other = assemble(&[]);
    other[10] = 2;
    seal(&mut other);
    let error = open_forged_delta(&mut other).unwrap_err();
    assert!(error.to_string().contains("there is no room for the base of a delta"), "{error}");
    let mut other = assemble(&sound());
    other[10] = 2;
    seal(&mut other);
    assert!(matches!(open_forged_delta(&mut other), Err(StateError::Malformed { .. })));
}

#[test]
fn what_only_the_base_can_tell_is_told_by_it() {
    let base = StateSnapshot::from_iter([("a", "1"), ("b", "1")]);
    let number = |fingerprint: Fingerprint| u128::from_le_bytes(fingerprint.to_le_bytes());
    let forged = |changes: &[(&[u8], u8, &[u8])], result: u128| {
        let count = |of: u8| changes.iter().filter(|&&(_, change, _)| change == of).count() as u64;
        let said = Base { fingerprint: number(base.fingerprint()), result, inserts: count(1), deletes: count(0) };
        open_forged_delta(&mut assemble_as(&[Segment::of_changes(changes)], Some(said))).unwrap()
    };
    let problem = |delta: &StateDelta| match base.apply(delta) {
        Err(StateError::InconsistentDelta { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let update: (&[u8], u8, &[u8]) = (b"b", 2, b"1");
    assert_eq!(problem(&forged(&[(b"a", 1, b"1"), update], 0)), "it inserts a key that is there");
    assert_eq!(problem(&forged(&[(b"aa", 2, b"1")], 0)), "it updates a key that is not there");
    assert_eq!(problem(&forged(&[(b"c", 0, b"")], 0)), "it deletes a key that is not there");
    assert_eq!(problem(&forged(&[(b"a", 2, b"2")], 0)), "it does not lead to the contents that it says it leads to");
    // An update that changes nothing is no delta that anybody takes, but one that a merge may give.
    assert_eq!(base.apply(&forged(&[update], number(base.fingerprint()))).unwrap(), base);

    // Two deltas of which one says what the other denies.
    let first = forged(&[(b"a", 0, b"")], number(base.fingerprint()));
    for (second, problem) in [
        ((&b"a"[..], 2, &b"1"[..]), "it updates a key that is not there"),
        ((b"a", 0, b""), "it deletes a key that is not there"),
    ] {
        let error = first.merge(&forged(&[second], 3)).unwrap_err();
        assert!(matches!(error, StateError::InconsistentDelta { problem: found, .. } if found == problem), "{error}");
    }
    let insert: (&[u8], u8, &[u8]) = (b"a", 1, b"1");
    let updated = forged(&[(b"b", 2, b"3")], number(base.fingerprint()));
    let error = updated.merge(&forged(&[insert, (b"b", 1, b"1"), (b"c", 0, b"")], 3)).unwrap_err();
    assert!(error.to_string().contains("it inserts a key that is there (at the key `b`, bytes: 1)"), "{error}");

    // Insertions alone do not lead elsewhere, not even by two deltas of which neither is of insertions alone.
    let one = StateSnapshot::from_iter([("a", "1"), ("b", "1"), ("x", "1")]);
    let there = one.delta_since(&base);
    let away = Base { fingerprint: number(one.fingerprint()), result: 3, inserts: 0, deletes: 0 };
    let away = assemble_as(&[Segment::of_changes(&[(b"x", 2, b"2")])], Some(away));
    let error = there.merge(&open_forged_delta(&mut away.clone()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("do not differ by that of the insertions"), "{error}");
}

/// Opens forged bytes, and checks that nothing is allocated that the input does not earn.
fn open_within_means(image: &mut [u8]) {
    let is_delta = image[10] == 2;
    let owned = image.to_vec();
    let ((), allocated) = allocated_by(|| {
        if is_delta { drop(StateDelta::from_bytes(owned)) } else { drop(StateSnapshot::from_bytes(owned)) }
    });
    assert!(allocated.peak_bytes <= image.len() + 1024, "{} for {}", allocated.peak_bytes, image.len());
    if is_delta {
        if let Ok(delta) = open_forged_delta(image) {
            assert_well_formed_delta(&delta);
        }
        return;
    }
    let owned = image.to_vec();
    let (result, allocated) = allocated_by(|| StateSnapshot::from_bytes_lazily(owned));
    drop(result);
    assert!(allocated.peak_bytes <= image.len() + 1024, "{} for {}", allocated.peak_bytes, image.len());
    assert_lazy_agrees(image, None);
    if let Ok(snapshot) = open_forged(image) {
        assert_well_formed(&snapshot);
        assert_lazy_agrees(image, Some(&snapshot));
    }
}

#[test]
fn every_number_is_forged_to_every_extreme() {
    forge_every_number(&assemble(&sound()));
    forge_every_number(&sound_delta());
}

fn forge_every_number(image: &[u8]) {
    let (extents, trailer) = (extents(image), image.len() - TRAILER);
    let footer = get_u64(image, trailer) as usize;
    let len = image.len() as u64;
    let descriptors = (0..extents.len()).flat_map(|i| [0, 16, 24, 32].map(|field| footer + i * DESCRIPTOR + field));
    let base = (0..6).map(|i| trailer - BASE + 8 * i);
    let places = (0..6).map(|i| trailer + 8 * i).chain(descriptors).chain((8..24).step_by(4)).chain(base);
    for at in places {
        let now = get_u64(image, at);
        let near = [
            0,
            1,
            now / 2,
            now - now.min(1),
            now.saturating_add(1),
            now.saturating_add(16),
            now.saturating_mul(2),
            len - 1,
            len,
            len + 1,
            len * 2,
        ];
        let bits = (0..64).flat_map(|bit| [1 << bit, (1_u64 << bit).wrapping_sub(1), now ^ (1 << bit)]);
        for number in near.into_iter().chain(bits).chain([u64::MAX, u64::MAX - 15, u64::MAX - len]) {
            let mut forged = image.to_vec();
            set_u64(&mut forged, at, number);
            seal_parts(&mut forged, &extents, footer);
            open_within_means(&mut forged);
        }
    }
}

#[test]
fn every_byte_is_forged() {
    for image in [assemble(&sound()), sound_delta()] {
        let (extents, footer) = (extents(&image), get_u64(&image, image.len() - TRAILER) as usize);
        for at in 0..image.len() {
            for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF, image[at], !image[at]] {
                let mut forged = image.clone();
                forged[at] ^= change;
                seal_parts(&mut forged, &extents, footer);
                open_within_means(&mut forged);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(4000))]

    #[test]
    fn anything_is_forged(
        patches in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>(), 1_usize..=4), 1..8),
        moved in proptest::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_usize..40)),
        is_delta in any::<bool>(),
    ) {
        let image = if is_delta { sound_delta() } else { assemble(&sound()) };
        let (extents, footer) = (extents(&image), get_u64(&image, image.len() - TRAILER) as usize);
        let mut forged = image;
        for (at, bytes, len) in patches {
            // Segments and footer; the checks of header and trailer would hide the rest.
            let at = HEADER + at.index(forged.len() - HEADER - TRAILER - 4);
            forged[at..at + len].copy_from_slice(&bytes[..len]);
        }
        if let Some((from, to, len)) = moved {
            let (from, to) = (from.index(forged.len() - 40), HEADER + to.index(forged.len() - HEADER - TRAILER - 40));
            forged.copy_within(from..from + len, to);
        }
        seal_parts(&mut forged, &extents, footer);
        open_within_means(&mut forged);
    }
}
