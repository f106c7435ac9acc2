//! Forged images with correct checksums: opening one gives an error or a well-formed snapshot.

mod sections;
mod values;

use std::collections::BTreeMap;
use std::io::Cursor;

use opstate::{
    Fingerprint, GroupedImage, ImageOptions, KeyGroups, Label, StateDelta, StateError, StateSnapshot, UnverifiedImage,
};
use proptest::prelude::*;

use crate::support::allocator::allocated_by;
use crate::support::cases::cases;
use crate::support::forged::{SOUND_BASE, sound, sound_changes_of, sound_deltas, sound_images, sound_of};
use crate::support::layout::{
    BASE, Base, Canonical, DESCRIPTOR, HEADER, Parts, Read, Segment, TRAILER, Version, assemble, assemble_as,
    assert_lazy_agrees, assert_well_formed, assert_well_formed_delta, extents, get_u64, open_forged, open_forged_delta,
    read, seal, seal_parts, set_u64,
};
use crate::support::model::{any_key, any_value};

/// Returns the broken rule that the error names.
fn broken_rule(version: Version, segments: &[Segment]) -> &'static str {
    let mut image = Parts::of(version, segments).assemble();
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
    let mut image = assemble(&[Segment::of(&a), Segment::with_blob(b"cc", &[9; 60]), Segment::of(&d)]);
    let snapshot = open_forged(&mut image).unwrap();
    let cc = [(&b"cc"[..], &[9; 60][..])];
    let entries = a.iter().chain(&cc).chain(&d).copied();
    let expected = StateSnapshot::from_sorted(entries.map(|(k, v)| (k.to_vec(), v.to_vec()))).unwrap();
    assert_eq!(snapshot, expected);
    let mut written = Vec::new();
    // Three entries take 59 bytes, 24 of them for ends and 26 of them zeros. Then the fourth value fills a segment by
    // itself.
    expected.with_timestamp_ns(0).write_with(ImageOptions::new().segment_bytes(60), &mut written).unwrap();
    assert_eq!(written, image);
}

#[test]
fn each_broken_rule_is_named() {
    Version::ALL.into_iter().for_each(each_broken_rule_of_a_version_is_named);
}

fn each_broken_rule_of_a_version_is_named(version: Version) {
    let forge = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut segments = sound_of(version);
        change(&mut segments);
        broken_rule(version, &segments)
    };
    let image = &mut Parts::of(version, &sound_of(version)).assemble();
    assert_well_formed(&open_forged(image).unwrap());

    assert_eq!(forge(&|s| s.swap(0, 2)), "its first key does not sort after the one before it");
    assert_eq!(
        forge(&|s| s[0] = Segment::of(&[(b"a", b""), (b"a", b"")])),
        "a key does not sort after the one before it"
    );
    assert_eq!(forge(&|s| s[2] = s[0].clone()), "its first key does not sort after the one before it");
    assert_eq!(forge(&|s| s[0].first_key = b"a".to_vec()), "its first key is not that of the footer");
    assert_eq!(forge(&|s| s[0].entries = 0), "it is empty");
    assert_eq!(forge(&|s| s[1] = Segment::of(&[])), "it is empty");
    assert_eq!(forge(&|s| s[0].entries = 2), "the number of ends of keys is not that of entries");
    assert_eq!(forge(&|s| s[0].columns.value_ends.truncate(2)), "the number of ends of values is not that of entries");
    assert_eq!(forge(&|s| s[0].blob = vec![1; 50]), "a segment with a blob has one entry");
    assert_eq!(forge(&|s| s[1].columns.values.push(1)), "a segment with a blob has no other value");
    assert_eq!(forge(&|s| s[0].columns.key_ends.swap(1, 2)), "an end lies before the one before it");
    assert_eq!(forge(&|s| s[0].columns.keys.push(1)), "the last end is not the length of its column");
    assert_eq!(forge(&|s| s[0].columns.value_ends[2] += 1), "the last end is not the length of its column");
    // The lengths in the trailer, which follow from the ends, are compared with the room for them before any segment.
    assert_eq!(forge(&|s| s[0].columns.value_ends[2] = u32::MAX), "the segments have no room for such lengths");
    // The length of this first key does not fit its descriptor, where it is 0.
    let first = [(&[b'x'; 65_536][..], &b""[..])];
    assert_eq!(forge(&|s| s[2] = Segment::of(&first)), "its first key does not sort after the one before it");
    let long = [(&b"x"[..], &b""[..]), (&[b'x'; 65_536], b"")];
    assert_eq!(forge(&|s| s[2] = Segment::of(&long)), "a key is too long");
}

#[test]
fn what_is_said_to_be_zeros_is_zeros() {
    Version::ALL.into_iter().for_each(what_a_version_says_to_be_zeros_is_zeros);
}

fn what_a_version_says_to_be_zeros_is_zeros(version: Version) {
    let image = Parts::of(version, &sound_of(version)).assemble();
    let footer = get_u64(&image, image.len() - TRAILER) as usize;
    // Padding follows the archives of the segments, and the blob of the second one.
    let padding = extents(&image).into_iter().enumerate().flat_map(|(index, (start, _))| {
        let descriptor = footer + index * DESCRIPTOR;
        let archive_len = u32::from_le_bytes(image[descriptor + 24..descriptor + 28].try_into().unwrap()) as usize;
        let blob = (start + archive_len).next_multiple_of(16);
        let blob_end = blob + get_u64(&image, descriptor + 16) as usize;
        (start + archive_len..blob).chain(blob_end..blob_end.next_multiple_of(16))
    });
    assert!(padding.clone().count() > 15);
    // Descriptors have reserved bytes. In version 1 the codec is one of them.
    let reserved = if version == Version::One { 34..40 } else { 35..40 };
    let reserved = reserved.flat_map(|at| [footer + at, footer + DESCRIPTOR + at]);
    for at in reserved.chain(padding) {
        for byte in [1, 0x80, 0xFF] {
            let mut forged = image.clone();
            assert_eq!(forged[at], 0);
            forged[at] = byte;
            seal(&mut forged);
            assert_lazy_agrees(&forged, None);
            let error = open_forged(&mut forged).unwrap_err();
            assert!(
                matches!(error, StateError::Malformed { part: "segment", problem, .. } if problem.contains("zeros")),
                "{error}"
            );
        }
    }
    // Claim that the last first key is longer than the rest of the footer.
    let mut forged = image.clone();
    forged[footer + 2 * DESCRIPTOR + 32] = 200;
    seal(&mut forged);
    assert!(open_forged(&mut forged).unwrap_err().to_string().contains("does not end within the footer"));
}

#[test]
fn segments_need_room_in_the_body() {
    let empty = assemble(&[]);
    // The header is followed by an empty list of sections and the trailer.
    let (header, trailer) = empty.split_at(HEADER);
    // The body has room for one segment.
    let body = [0; 48];
    for segments in [2, 1000] {
        let descriptors = vec![0; segments * DESCRIPTOR];
        let mut forged = [header, &body, &descriptors, trailer].concat();
        let at = forged.len() - TRAILER;
        for (field, number) in [(0, HEADER + body.len()), (8, segments * DESCRIPTOR + 4), (16, segments)] {
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
    let error = forged(8, 3);
    assert!(matches!(error, StateError::UnsupportedVersion { found: 3, supported: 2 }), "{error}");
    assert_eq!(error.to_string(), "the image has format version 3, this build reads up to version 2; update `opstate`");
    assert!(matches!(forged(9, 0xFF), StateError::UnsupportedVersion { found: 0xFF02, .. }));
    assert!(matches!(forged(8, 0), StateError::Malformed { problem: "format version 0 was never written", .. }));
    assert!(matches!(forged(10, 4), StateError::Malformed { problem: "this kind of image is unknown", .. }));
    assert!(matches!(forged(10, 2), StateError::UnexpectedKind { found: "delta", expected: "snapshot" }));
    assert!(matches!(forged(15, 0x80), StateError::Malformed { problem: "these flags are unknown", .. }));
    assert!(matches!(forged(0, b'x'), StateError::NotAnImage { .. }));
    // A newer version is reported even if everything else differs and the file is shorter.
    for len in 10..120 {
        let mut newer = assemble(&[]);
        newer[8] = 3;
        newer.truncate(len);
        for error in errors_of(&newer) {
            assert!(matches!(error, StateError::UnsupportedVersion { found: 3, .. }), "{error}");
        }
    }
    let mut newer = assemble(&[]);
    newer[8] = 9;
    newer[11..].fill(0xAB);
    assert!(matches!(StateSnapshot::from_bytes(newer), Err(StateError::UnsupportedVersion { found: 9, .. })));
}

/// Returns the errors of every way to open bytes that are not an image of any kind.
fn errors_of(image: &[u8]) -> Vec<StateError> {
    let owned = || image.to_vec();
    vec![
        StateSnapshot::from_bytes(owned()).unwrap_err(),
        StateSnapshot::from_slice(image).unwrap_err(),
        StateSnapshot::read_from(image).unwrap_err(),
        StateDelta::from_bytes(owned()).unwrap_err(),
        StateDelta::from_slice(image).unwrap_err(),
        UnverifiedImage::from_bytes(owned()).unwrap_err(),
        UnverifiedImage::from_reader(Cursor::new(owned())).unwrap_err(),
        GroupedImage::from_bytes(owned()).unwrap_err(),
        GroupedImage::from_reader(Cursor::new(owned())).unwrap_err(),
    ]
}

#[test]
fn a_header_of_one_version_does_not_do_for_the_body_of_another() {
    let no_base = Base { fingerprint: 17, result: 17, inserts: 0, deletes: 0 };
    // The last bytes of these keys look like the length of an empty list of sections.
    let zeros = |version: Version| vec![version.segment(&[(b"\0\0\0\0", b"1"), (b"\0\0\0\0\0", b"2")])];
    for (version, other) in [(Version::One, Version::Two), (Version::Two, Version::One)] {
        let of = |segments: &[Segment]| Parts::of(version, segments);
        for parts in [
            of(&[]),
            of(&sound_of(version)),
            of(&zeros(version)),
            Parts { base: Some(no_base), ..of(&[]) },
            Parts { base: Some(SOUND_BASE), ..of(&sound_changes_of(version)) },
        ] {
            let mut image = parts.assemble();
            let is_delta = parts.base.is_some();
            let open = |image: &mut [u8]| {
                if is_delta { open_forged_delta(image).map(drop) } else { open_forged(image).map(drop) }
            };
            open(&mut image).unwrap();
            image[8] = other as u8;
            seal(&mut image);
            if !is_delta {
                assert_lazy_agrees(&image, None);
            }
            let error = open(&mut image).unwrap_err();
            assert!(matches!(error, StateError::Malformed { .. }), "{version:?}: {error}");
        }
    }
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
    new.delta_since(&old).write_with(ImageOptions::new().segment_bytes(40), &mut written).unwrap();
    assert_eq!(written, image);
}

#[test]
fn each_broken_rule_of_a_delta_is_named() {
    Version::ALL.into_iter().for_each(each_broken_rule_of_a_delta_of_a_version_is_named);
}

fn each_broken_rule_of_a_delta_of_a_version_is_named(version: Version) {
    let assemble_as = |segments: &[Segment], base| Parts { base, ..Parts::of(version, segments) }.assemble();
    let assemble = |segments: &[Segment]| Parts::of(version, segments).assemble();
    let broken = |segments: &[Segment], base: Base| match open_forged_delta(&mut assemble_as(segments, Some(base))) {
        Err(StateError::Malformed { problem, .. }) => problem,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("no error"),
    };
    let forge = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut segments = sound_changes_of(version);
        change(&mut segments);
        broken(&segments, SOUND_BASE)
    };
    let mut sound = assemble_as(&sound_changes_of(version), Some(SOUND_BASE));
    assert_well_formed_delta(&open_forged_delta(&mut sound).unwrap());

    assert_eq!(forge(&|s| s[0].changes[1] = 3), "this kind of change is unknown");
    assert_eq!(forge(&|s| s[0].changes[0] = 0), "a deleted key has a value");
    assert_eq!(forge(&|s| s[1].changes[0] = 0), "a deleted key has a value");
    assert_eq!(forge(&|s| s[0].changes.truncate(2)), "the number of kinds of changes is not that of entries");
    assert_eq!(forge(&|s| s[0].changes.push(1)), "the number of kinds of changes is not that of entries");
    assert_eq!(forge(&|s| s[0].changes[2] = 1), "the number of inserted keys is not true");
    assert_eq!(forge(&|s| s[0].changes[2] = 0), "the number of deleted keys is not true");
    assert_eq!(forge(&|s| s.swap(0, 2)), "its first key does not sort after the one before it");

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

    // A snapshot's image that claims to be a delta has neither a base nor the columns of one.
    let mut other = assemble(&[]);
    other[10] = 2;
    seal(&mut other);
    let error = open_forged_delta(&mut other).unwrap_err();
    assert!(error.to_string().contains("there is no room for the base of a delta"), "{error}");
    let mut other = assemble(&sound_of(version));
    other[10] = 2;
    seal(&mut other);
    assert!(matches!(open_forged_delta(&mut other), Err(StateError::Malformed { .. })));
}

#[test]
fn what_only_the_base_can_tell_is_told_by_it() {
    let base = StateSnapshot::from_iter([("a", "1"), ("b", "1")]);
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
    // An update that changes nothing is valid. `delta_since` never produces it, but `compose` may.
    assert_eq!(base.apply(&forged(&[update], number(base.fingerprint()))).unwrap(), base);

    // The two deltas contradict each other.
    let first = forged(&[(b"a", 0, b"")], number(base.fingerprint()));
    for (second, problem) in [
        ((&b"a"[..], 2, &b"1"[..]), "it updates a key that is not there"),
        ((b"a", 0, b""), "it deletes a key that is not there"),
    ] {
        let error = first.compose(&forged(&[second], 3)).unwrap_err();
        assert!(matches!(error, StateError::InconsistentDelta { problem: found, .. } if found == problem), "{error}");
    }
    let insert: (&[u8], u8, &[u8]) = (b"a", 1, b"1");
    let updated = forged(&[(b"b", 2, b"3")], number(base.fingerprint()));
    let error = updated.compose(&forged(&[insert, (b"b", 1, b"1"), (b"c", 0, b"")], 3)).unwrap_err();
    assert!(error.to_string().contains("it inserts a key that is there (at the key `b`, bytes: 1)"), "{error}");

    // Insertions alone cannot lead to these contents. The composed deltas are not insertions alone, either.
    let one = StateSnapshot::from_iter([("a", "1"), ("b", "1"), ("x", "1")]);
    let there = one.delta_since(&base);
    let away = Base { fingerprint: number(one.fingerprint()), result: 3, inserts: 0, deletes: 0 };
    let away = assemble_as(&[Segment::of_changes(&[(b"x", 2, b"2")])], Some(away));
    let error = there.compose(&open_forged_delta(&mut away.clone()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("do not differ by that of the insertions"), "{error}");
}

/// Opens forged bytes, and checks that allocations stay in proportion to the input.
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
    let (result, allocated) = allocated_by(|| UnverifiedImage::from_bytes(owned));
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
    sound_images().iter().chain(&sound_deltas()).for_each(|image| forge_every_number(image));
}

fn forge_every_number(image: &[u8]) {
    let (extents, trailer) = (extents(image), image.len() - TRAILER);
    let footer = get_u64(image, trailer) as usize;
    let len = image.len() as u64;
    let descriptors = (0..extents.len()).flat_map(|i| [0, 16, 24, 32].map(|field| footer + i * DESCRIPTOR + field));
    let sections = match image[8] {
        1 => trailer,
        _ => trailer - 4 - get_u64(image, trailer - 8).to_le_bytes()[4] as usize,
    };
    // A delta has a base. Version 2 also has the start and the length of the sections.
    let base = (0..6).map(|i| sections - BASE + 8 * i).chain([sections.min(trailer - 8), trailer - 8]);
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
    for image in sound_images().into_iter().chain(sound_deltas()) {
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

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn snapshot_of(model: &Model) -> StateSnapshot {
    StateSnapshot::from_sorted(model.clone()).unwrap()
}

fn number(fingerprint: Fingerprint) -> u128 {
    u128::from_le_bytes(fingerprint.to_le_bytes())
}

fn any_model() -> impl Strategy<Value = Model> {
    proptest::collection::btree_map(any_key(), any_value(), 0..40)
}

/// Generates the parts of labels. They are often empty.
fn any_label() -> impl Strategy<Value = [Vec<u8>; 3]> {
    let name = || prop_oneof![Just(String::new()), "\\PC{1,30}"].prop_map(String::into_bytes);
    let user = prop_oneof![Just(vec![]), proptest::collection::vec(any::<u8>(), 1..50)];
    (name(), name(), user).prop_map(|(operator, job, user)| [operator, job, user])
}

fn label_of([operator, job, user]: &[Vec<u8>; 3]) -> Label {
    let name = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
    Label::new().operator(name(operator)).job(name(job)).user(user.clone())
}

/// Returns each key that differs, its kind of change and its new value.
fn changes_of<'a>(before: &'a Model, after: &'a Model) -> Vec<(&'a [u8], u8, &'a [u8])> {
    let mut changes = Vec::new();
    for (key, old) in before {
        match after.get(key) {
            None => changes.push((&key[..], 0, &[][..])),
            Some(new) if new != old => changes.push((key, 2, new)),
            Some(_) => {}
        }
    }
    changes
        .extend(after.iter().filter(|(key, _)| !before.contains_key(*key)).map(|(key, new)| (&key[..], 1, &new[..])));
    changes.sort();
    changes
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_second_implementation_writes_and_reads_every_image(
        before in any_model(),
        after in any_model(),
        label in any_label(),
        segment_bytes in prop_oneof![1_usize..80, 80_usize..3000],
        groups in 1_u32..9,
    ) {
        let (old, new) = (snapshot_of(&before), snapshot_of(&after).with_timestamp_ns(7).with_label(label_of(&label)));
        let (key_groups, options) = (KeyGroups::new(groups).unwrap(), ImageOptions::new().segment_bytes(segment_bytes));
        let mut by_group = BTreeMap::<u32, Vec<(&[u8], &[u8])>>::new();
        for (key, value) in &after {
            by_group.entry(key_groups.group_of(key)).or_default().push((key, value));
        }
        let changes = changes_of(&before, &after);
        for version in Version::ALL {
            // Version 1 has no label.
            let (label, said) = match version {
                Version::One => (Default::default(), Label::new()),
                Version::Two => (label.clone(), new.label().clone()),
            };
            let canonical = Canonical { label: label.clone(), ..Canonical::new(version, segment_bytes, 7) };
            let image = canonical.image(after.iter().map(|(key, value)| (&key[..], &value[..])));
            let delta = canonical.delta(&changes, number(old.fingerprint()), number(new.fingerprint()));
            let grouped = canonical.grouped(groups, &by_group);
            if version == Version::Two {
                let (mut written, mut written_grouped, mut written_delta) = (vec![], vec![], vec![]);
                new.write_with(options, &mut written).unwrap();
                prop_assert_eq!(&written, &image);
                new.write_grouped(key_groups, |key| key, options, &mut written_grouped).unwrap();
                prop_assert_eq!(&written_grouped, &grouped);
                new.delta_since(&old).write_with(options, &mut written_delta).unwrap();
                prop_assert_eq!(&written_delta, &delta);
            }
            // The library reads both versions, with the same answers, and writes the same bytes for both.
            for image in [&image, &grouped] {
                let opened = StateSnapshot::from_bytes(image.clone()).unwrap();
                prop_assert_eq!((&opened, opened.label(), opened.timestamp_ns()), (&new, &said, 7));
                prop_assert_eq!(opened.with_label(new.label().clone()).to_bytes(), new.to_bytes());
                assert_lazy_agrees(image, Some(&new));
                assert_well_formed(&opened);
            }
            let grouped_image = GroupedImage::from_bytes(grouped.clone()).unwrap();
            prop_assert_eq!(grouped_image.label(), &said);
            for (&group, entries) in &by_group {
                let part = grouped_image.group(group).unwrap();
                prop_assert!(part.iter().eq(entries.iter().map(|&(key, value)| (key.to_vec().into(), value.to_vec().into()))));
                prop_assert_eq!(part.label(), &said);
            }
            let opened = StateDelta::from_bytes(delta.clone()).unwrap();
            prop_assert_eq!((&opened, opened.label()), (&new.delta_since(&old), &said));
            assert_well_formed_delta(&opened);
            prop_assert_eq!(&old.apply(&opened).unwrap(), &new);
            // The second implementation must read its own output, and write the same bytes as the library.
            let entries = |read: &Read| read.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect::<Model>();
            let (image, grouped, delta) = (read(&image), read(&grouped), read(&delta));
            prop_assert_eq!((&image.label, &grouped.label, &delta.label), (&label, &label, &label));
            prop_assert_eq!((entries(&image), entries(&grouped)), (after.clone(), after.clone()));
            prop_assert_eq!((&image.entries.len(), &grouped.entries.len()), (&after.len(), &after.len()));
            prop_assert!(delta.entries.iter().map(|entry| (&entry.key[..], entry.change, &entry.value[..])).eq(changes.clone()));
        }
    }
}

proptest! {
    #![proptest_config(cases(4000))]

    #[test]
    fn anything_is_forged(
        patches in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>(), 1_usize..=4), 1..8),
        moved in proptest::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_usize..40)),
        which in 0_usize..6,
    ) {
        let image = sound_images().into_iter().chain(sound_deltas()).nth(which).unwrap();
        let (extents, footer) = (extents(&image), get_u64(&image, image.len() - TRAILER) as usize);
        let mut forged = image;
        for (at, bytes, len) in patches {
            // Damage segments and footer only. Otherwise the checks of header and trailer would hide the rest.
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
