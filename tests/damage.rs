//! Accidental damage: more than 50,000 damaged images give an error or exactly the same contents.

use std::sync::LazyLock;

use opstate::{ImageOptions, KeyGroups, Label, StateDelta, StateError, StateSnapshot};
use proptest::prelude::*;

use crate::support::cases::cases;
use crate::support::layout::{Canonical, HEADER, TRAILER, Version, assert_lazy_agrees, get_u64};

/// Returns snapshots and their images, of several sizes and shapes.
fn samples() -> Vec<(StateSnapshot, Vec<u8>)> {
    let numbered = |count: u32, value_len: usize, segment_bytes: usize| {
        let entries = (0..count).map(|i| (format!("key/{i:05}"), vec![i as u8; value_len]));
        let snapshot = StateSnapshot::from_iter(entries.map(|(key, value)| (key.into_bytes(), value)));
        let mut image = Vec::new();
        snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
        (snapshot, image)
    };
    let grouped = |count: u32, segment_bytes: usize, label: Label| {
        let entries = (0..count).map(|i| (format!("key/{i:05}").into_bytes(), vec![i as u8; 12]));
        let snapshot = StateSnapshot::from_iter(entries).with_label(label);
        let (groups, options) = (KeyGroups::new(5).unwrap(), ImageOptions::new().segment_bytes(segment_bytes));
        let mut image = Vec::new();
        snapshot.write_grouped(groups, |key| key, options, &mut image).unwrap();
        (snapshot, image)
    };
    let labelled = |(snapshot, _): (StateSnapshot, Vec<u8>), segment_bytes: usize| {
        let (snapshot, mut image) = (snapshot.with_label(label()), Vec::new());
        snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
        (snapshot, image)
    };
    let of_version_1 = |(snapshot, _): (StateSnapshot, Vec<u8>), segment_bytes: usize| {
        let entries: Vec<_> = snapshot.iter().collect();
        let canonical = Canonical::new(Version::One, segment_bytes, snapshot.timestamp_ns());
        let image = canonical.image(entries.iter().map(|(key, value)| (&key[..], &value[..])));
        (snapshot, image)
    };
    vec![
        numbered(0, 0, 64),
        numbered(1, 0, 1 << 16),
        numbered(3, 5, 1 << 16),
        // Each value has a segment of its own, as a blob.
        numbered(4, 100, 64),
        // This one has many segments.
        numbered(60, 7, 100),
        // This one has a single segment.
        numbered(150, 8, 1 << 16),
        // This one has a label.
        labelled(numbered(0, 0, 64), 64),
        labelled(numbered(5, 7, 64), 64),
        of_version_1(numbered(9, 7, 100), 100),
        // Key groups: none, some of one segment, some of several.
        grouped(0, 64, Label::new()),
        grouped(3, 1 << 16, label()),
        grouped(40, 100, Label::new()),
    ]
}

fn label() -> Label {
    Label::new().operator("dedup").job("clicks").user(vec![1, 2])
}

/// Opens a damaged image and returns the error. If there is none, checks that the contents are unchanged.
fn open_damaged(snapshot: &StateSnapshot, damaged: Vec<u8>) -> Option<StateError> {
    assert_lazy_agrees(&damaged, Some(snapshot));
    open_mixed(snapshot, damaged)
}

/// Opens a damaged image like [`open_damaged`]. The image may contain parts of other images.
fn open_mixed(snapshot: &StateSnapshot, damaged: Vec<u8>) -> Option<StateError> {
    assert_lazy_agrees(&damaged, None);
    match StateSnapshot::from_bytes(damaged) {
        Ok(opened) => {
            assert_eq!(&opened, snapshot);
            assert_eq!((opened.fingerprint(), opened.label()), (snapshot.fingerprint(), snapshot.label()));
            None
        }
        Err(error) => Some(error),
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_an_error() {
    let mut damaged = 0;
    for (snapshot, image) in samples() {
        assert!(open_damaged(&snapshot, image.clone()).is_none());
        for len in 0..image.len() {
            let error = open_damaged(&snapshot, image[..len].to_vec()).expect("a truncation goes unnoticed");
            if len < 32 + 88 {
                assert!(matches!(error, StateError::Truncated { needed: 120, .. }), "{len}: {error}");
            }
            damaged += 1;
        }
        for bit in 0..image.len() * 8 {
            let mut flipped = image.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open_damaged(&snapshot, flipped).is_some(), "flipped bit {bit} goes unnoticed");
            damaged += 1;
        }
    }
    assert!(damaged > 50_000, "{damaged}");
}

/// Returns deltas and their images, of several sizes and shapes.
fn delta_samples() -> Vec<(StateDelta, Vec<u8>)> {
    let sample = |count: u32, value_len: usize, segment_bytes: usize, label: Label| {
        let entries = |from: u32, byte: u32| {
            let entries = (from..from + count).map(move |i| (i, vec![(i % 3 * byte) as u8; value_len]));
            StateSnapshot::from_iter(entries.map(|(i, value)| (format!("key/{i:05}").into_bytes(), value)))
        };
        let delta = entries(count / 3, 7).with_label(label).delta_since(&entries(0, 1));
        let mut image = Vec::new();
        delta.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
        (delta, image)
    };
    vec![
        sample(0, 0, 64, Label::new()),
        sample(9, 5, 1 << 16, Label::new()),
        sample(6, 100, 64, Label::new()),
        sample(40, 7, 100, Label::new()),
        sample(9, 5, 64, label()),
    ]
}

#[test]
fn every_truncation_and_every_flipped_bit_of_a_delta_is_an_error() {
    let mut damaged = 0;
    for (delta, image) in delta_samples() {
        let opened = StateDelta::from_bytes(image.clone()).unwrap();
        assert_eq!((&opened, opened.label()), (&delta, delta.label()));
        for len in 0..image.len() {
            assert!(StateDelta::from_bytes(image[..len].to_vec()).is_err(), "a truncation goes unnoticed");
            damaged += 1;
        }
        for bit in 0..image.len() * 8 {
            let mut flipped = image.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(StateDelta::from_bytes(flipped.clone()).is_err(), "flipped bit {bit} goes unnoticed");
            assert!(StateSnapshot::from_bytes(flipped).is_err(), "flipped bit {bit} makes a snapshot of a delta");
            damaged += 1;
        }
    }
    assert!(damaged > 30_000, "{damaged}");
}

#[test]
fn a_damaged_part_is_named_with_its_place() {
    // The groups of a grouped image are images themselves, so their offsets count from their own start.
    for (_, image) in samples().into_iter().filter(|(_, image)| image[10] == 1) {
        let trailer = image.len() - TRAILER;
        let footer = get_u64(&image, trailer) as usize;
        let mut parts = vec![("header", 0, 20), ("trailer", trailer, trailer + 50)];
        // An empty image has neither segments nor, in version 1, a footer.
        if footer > HEADER {
            parts.push(("segment", HEADER, HEADER + 1));
        }
        if trailer > footer {
            parts.extend([("footer", footer, footer), ("footer", footer, trailer - 1)]);
        }
        for (damaged, start, at) in parts {
            let mut image = image.clone();
            image[at] ^= 1;
            let error = StateSnapshot::from_bytes(image).unwrap_err();
            let StateError::ChecksumMismatch { part, offset, stored, computed } = error else { panic!("{error}") };
            assert_eq!((part, offset), (damaged, start as u64));
            assert_ne!(stored, computed);
        }
    }
}

#[test]
fn zeros_and_other_files_are_no_images() {
    for len in [0, 1, 7, 8, 119, 120, 121, 5000] {
        for byte in [0, b'\n', 0xFF] {
            let result = StateSnapshot::from_bytes(vec![byte; len]);
            if len == 0 {
                assert!(matches!(result, Err(StateError::Truncated { len: 0, .. })));
            } else {
                assert!(matches!(result, Err(StateError::NotAnImage { .. })));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Swap(prop::sample::Index, prop::sample::Index, usize),
    Cut(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, usize),
    Overwrite(prop::sample::Index, Vec<u8>),
    Zero(prop::sample::Index, usize),
    OtherTail(usize, prop::sample::Index),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let place = any::<prop::sample::Index>;
    let some = || proptest::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        (place(), place(), 1_usize..64).prop_map(|(a, b, len)| Damage::Swap(a, b, len)),
        (place(), 1_usize..300).prop_map(|(at, len)| Damage::Cut(at, len)),
        (place(), some()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (place(), 1_usize..300).prop_map(|(at, len)| Damage::Repeat(at, len)),
        (place(), some()).prop_map(|(at, bytes)| Damage::Overwrite(at, bytes)),
        (place(), 1_usize..600).prop_map(|(at, len)| Damage::Zero(at, len)),
        (0_usize..100, place()).prop_map(|(other, at)| Damage::OtherTail(other, at)),
    ]
}

fn apply(damage: Damage, image: &mut Vec<u8>, samples: &[(StateSnapshot, Vec<u8>)]) {
    let len = image.len();
    if len == 0 {
        return;
    }
    match damage {
        Damage::Swap(a, b, run) => {
            let run = run.min(len / 2);
            let (a, b) = (a.index(len - 2 * run + 1), b.index(len - 2 * run + 1));
            let (low, high) = (a.min(b), a.max(b) + run);
            for i in 0..run {
                image.swap(low + i, high + i);
            }
        }
        Damage::Cut(at, run) => {
            let at = at.index(len);
            image.drain(at..(at + run).min(len));
        }
        Damage::Insert(at, bytes) => {
            let at = at.index(len + 1);
            image.splice(at..at, bytes);
        }
        Damage::Repeat(at, run) => {
            let at = at.index(len);
            let end = (at + run).min(len);
            let again = image[at..end].to_vec();
            image.splice(end..end, again);
        }
        Damage::Overwrite(at, bytes) => {
            let at = at.index(len);
            let run = bytes.len().min(len - at);
            image[at..at + run].copy_from_slice(&bytes[..run]);
        }
        Damage::Zero(at, run) => {
            let at = at.index(len);
            let end = (at + run).min(len);
            image[at..end].fill(0);
        }
        // A torn write leaves the start of one image and the rest of another.
        Damage::OtherTail(other, at) => {
            let other = &samples[other % samples.len()].1;
            let at = at.index(len.min(other.len()));
            image.truncate(at);
            image.extend_from_slice(&other[at..]);
        }
    }
}

proptest! {
    #![proptest_config(cases(15_000))]

    #[test]
    fn other_damage_to_a_delta_is_an_error_or_no_damage(
        which in 0_usize..5,
        damages in proptest::collection::vec(any_damage(), 1..3),
    ) {
        static SAMPLES: LazyLock<Vec<(StateDelta, Vec<u8>)>> = LazyLock::new(delta_samples);
        // The tail of a snapshot's image must not pass as the end of a delta.
        static OTHERS: LazyLock<Vec<(StateSnapshot, Vec<u8>)>> = LazyLock::new(samples);
        let mut damaged = SAMPLES[which].1.clone();
        for damage in damages {
            apply(damage, &mut damaged, &OTHERS);
        }
        if SAMPLES.iter().all(|(_, whole)| *whole != damaged) {
            prop_assert!(StateDelta::from_bytes(damaged).is_err());
        }
    }

    #[test]
    fn other_damage_is_an_error_or_no_damage(
        which in 0_usize..12,
        damages in proptest::collection::vec(any_damage(), 1..3),
    ) {
        static SAMPLES: LazyLock<Vec<(StateSnapshot, Vec<u8>)>> = LazyLock::new(samples);
        let (snapshot, image) = &SAMPLES[which];
        let mut damaged = image.clone();
        let is_mixed = damages.iter().any(|damage| matches!(damage, Damage::OtherTail(..)));
        for damage in damages {
            apply(damage, &mut damaged, &SAMPLES);
        }
        // The spliced bytes may happen to be a complete sample.
        if SAMPLES.iter().all(|(_, whole)| *whole != damaged) {
            let open = if is_mixed { open_mixed } else { open_damaged };
            prop_assert!(open(snapshot, damaged).is_some());
        }
    }
}
