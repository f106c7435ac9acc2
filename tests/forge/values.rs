//! Forged segments with misplaced values, or with an unknown encoding.

use std::io::Cursor;

use opstate::{GroupedImage, StateDelta, StateError, StateSnapshot, UnverifiedImage};

use crate::support::forged::{SOUND_BASE, sound, sound_changes, sound_changes_of, sound_of};
use crate::support::layout::{
    Parts, Segment, Version, assemble, assemble_as, assemble_grouped, assert_lazy_agrees, assert_well_formed,
    assert_well_formed_delta, extents, open_forged, open_forged_delta,
};

/// Returns the results of opening a snapshot, a delta and a grouped image with this segment.
fn errors_with(version: Version, segment: &Segment) -> Vec<Result<(), StateError>> {
    let delta = Segment { changes: vec![2; segment.entries as usize], ..segment.clone() };
    let mut image = Parts::of(version, std::slice::from_ref(segment)).assemble();
    let mut delta = Parts { base: Some(Default::default()), ..Parts::of(version, &[delta]) }.assemble();
    let snapshot = open_forged(&mut image);
    if let Ok(snapshot) = &snapshot {
        assert_well_formed(snapshot);
    }
    let delta = open_forged_delta(&mut delta);
    if let Ok(delta) = &delta {
        assert_well_formed_delta(delta);
    }
    let grouped = assemble_grouped(8, &[(3, image.clone())]);
    assert_lazy_agrees(&image, None);
    assert_lazy_agrees(&grouped, None);
    let lazy = UnverifiedImage::from_bytes(image).and_then(|image| image.get(b"a"));
    let by_group = GroupedImage::from_bytes(grouped.clone()).and_then(|grouped| grouped.group(3));
    let grouped = StateSnapshot::from_bytes(grouped);
    vec![snapshot.map(drop), delta.map(drop), lazy.map(drop), by_group.map(drop), grouped.map(drop)]
}

fn assert_broken(version: Version, segment: &Segment, rule: &str) {
    for result in errors_with(version, segment) {
        let error = result.expect_err(rule);
        assert!(matches!(error, StateError::Malformed { part: "segment", problem, .. } if problem == rule), "{error}");
    }
}

fn assert_sound(version: Version, segment: &Segment) {
    errors_with(version, segment).into_iter().for_each(Result::unwrap);
}

#[test]
fn the_column_of_values_starts_at_a_multiple_of_16() {
    for in_front in 0..50 {
        for version in Version::ALL {
            let segment = Segment { in_front, ..version.segment(&[(b"a", b"1"), (b"b", b"22"), (b"c", b"")]) };
            if version == Version::One || in_front % 16 == 0 {
                assert_sound(version, &segment);
            } else {
                assert_broken(version, &segment, "its values do not start at a multiple of 16");
            }
            // Empty values may start anywhere.
            assert_sound(version, &Segment { in_front, ..version.segment(&[(b"a", b""), (b"b", b"")]) });
        }
    }
}

#[test]
fn a_value_does_not_end_within_the_zeros_before_it() {
    for end in 1..40 {
        let mut segment = Segment::of(&[(b"a", b"1"), (b"b", &[2; 30])]);
        segment.columns.values.resize(end, 0);
        segment.columns.value_ends[1] = end as u32;
        match end {
            // An empty value must end where the previous value ends.
            1 => assert_sound(Version::Two, &segment),
            2..=16 => assert_broken(Version::Two, &segment, "a value ends within the zeros before it"),
            _ => assert_sound(Version::Two, &segment),
        }
        // Version 1 has no zeros before values.
        assert_sound(Version::One, &segment);
    }
    // An empty value must not end after zeros.
    let mut segment = Segment::of(&[(b"a", b"1"), (b"b", b""), (b"c", b"3")]);
    segment.columns.value_ends[1] = 16;
    assert_broken(Version::Two, &segment, "a value ends within the zeros before it");
}

#[test]
fn there_are_zeros_before_values() {
    let sound = Segment::of(&[(b"a", b"1"), (b"b", b""), (b"c", &[3; 17]), (b"d", b"4")]);
    assert_eq!(sound.columns.value_ends, [1, 1, 33, 49]);
    assert_sound(Version::Two, &sound);
    for at in (1..16).chain(33..48) {
        for byte in [1, 0x80, 0xFF] {
            let mut segment = sound.clone();
            segment.columns.values[at] = byte;
            assert_broken(Version::Two, &segment, "there are other bytes where values have zeros before them");
            assert_sound(Version::One, &segment);
        }
    }
}

#[test]
fn values_that_follow_each_other_without_zeros_are_none_of_version_2() {
    let values: [&[u8]; 3] = [&[1; 16], &[2; 5], &[3; 40]];
    let entries = [(&b"a"[..], values[0]), (b"b", values[1]), (b"c", values[2])];
    let segment = Version::One.segment(&entries);
    assert_sound(Version::One, &segment);
    let rule = "there are other bytes where values have zeros before them";
    assert_broken(Version::Two, &segment, rule);
    // In the opposite case, version 1 reads the zeros as parts of the values.
    let mut image = Parts::of(Version::One, &[Segment::of(&entries)]).assemble();
    let snapshot = open_forged(&mut image).unwrap();
    assert_eq!(snapshot.get(b"b").as_deref(), Some(&[2; 5][..]));
    assert_eq!(snapshot.get(b"c").unwrap().len(), 11 + 40);
}

#[test]
fn an_unknown_codec_is_named_with_its_number_and_place() {
    let check = |result: Result<(), StateError>, version, expected: u8, at: usize| {
        let error = result.expect_err("an unknown codec");
        match error {
            StateError::UnknownCodec { codec, offset } if version == Version::Two => {
                assert_eq!((codec, offset), (expected, at as u64));
                let text = error.to_string();
                assert!(
                    text.contains(&format!("codec {expected}")) && text.contains("reads codec 0 (plain)"),
                    "{text}"
                );
                assert!(text.contains(&format!("at byte {at} ")), "{text}");
            }
            StateError::Malformed { problem, offset, .. } if version == Version::One => {
                assert_eq!(problem, "there are other bytes where its descriptor has zeros");
                assert_eq!(offset, at as u64);
            }
            error => panic!("{version:?}: {error}"),
        }
    };
    for version in Version::ALL {
        for which in 0..3 {
            for codec in [1, 2, 0x80, 0xFF] {
                let mut parts = Parts::of(version, &sound_of(version));
                let at = extents(&parts.assemble())[which].0;
                parts.segments[which].codec = codec;
                let image = parts.assemble();
                assert_lazy_agrees(&image, None);
                check(StateSnapshot::from_bytes(image.clone()).map(drop), version, codec, at);
                check(UnverifiedImage::from_bytes(image.clone()).map(drop), version, codec, at);
                check(UnverifiedImage::from_reader(Cursor::new(image.clone())).map(drop), version, codec, at);

                // Offsets count from the start of the group's image.
                let grouped = assemble_grouped(8, &[(3, image)]);
                check(GroupedImage::from_bytes(grouped.clone()).unwrap().group(3).map(drop), version, codec, at);
                check(UnverifiedImage::from_bytes(grouped.clone()).map(drop), version, codec, at);
                check(StateSnapshot::from_bytes(grouped).map(drop), version, codec, at);

                let changes = sound_changes_of(version);
                let mut parts = Parts { base: Some(SOUND_BASE), ..Parts::of(version, &changes) };
                let at = extents(&parts.assemble())[which].0;
                parts.segments[which].codec = codec;
                check(StateDelta::from_bytes(parts.assemble()).map(drop), version, codec, at);
            }
        }
    }
}

#[test]
fn reserved_bytes_are_zeros_beside_every_codec() {
    for at in 0..5 {
        let mut forged = [sound(), sound_changes()];
        for segments in &mut forged {
            segments[1].reserved[at] = 1;
        }
        let [segments, changes] = forged;
        let results = [
            open_forged(&mut assemble(&segments)).map(drop),
            open_forged_delta(&mut assemble_as(&changes, Some(SOUND_BASE))).map(drop),
        ];
        for result in results {
            let error = result.unwrap_err();
            assert!(error.to_string().contains("there are other bytes where its descriptor has zeros"), "{error}");
        }
    }
}
