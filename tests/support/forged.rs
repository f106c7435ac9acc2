//! Sound images and deltas for tests to forge.

use super::layout::{Base, Parts, Segment, Version, label_section};

/// Returns the segments of a small sound image.
pub(crate) fn sound_of(version: Version) -> Vec<Segment> {
    vec![
        version.segment(&[(b"", b"empty key"), (b"a", b"1"), (b"a\0", b"")]),
        Segment::with_blob(b"b", &[7; 100]),
        version.segment(&[(b"ba", b"22"), (b"c", b"333"), (b"\xFF\xFF", b"4444")]),
    ]
}

/// Returns the segments of a small sound image of the current version.
pub(crate) fn sound() -> Vec<Segment> {
    sound_of(Version::Two)
}

/// Returns an image with a label in its footer.
pub(crate) fn labelled(segments: &[Segment], base: Option<Base>) -> Vec<u8> {
    let sections = label_section(b"dedup", b"clicks", &[0, 0xFF, 7]);
    Parts { base, sections, ..Parts::of(Version::Two, segments) }.assemble()
}

/// Returns sound images of every version, with and without a label.
pub(crate) fn sound_images() -> Vec<Vec<u8>> {
    let mut images: Vec<_> = Version::ALL.map(|version| Parts::of(version, &sound_of(version)).assemble()).into();
    images.push(labelled(&sound(), None));
    images
}

/// Returns the segments of a small sound delta.
pub(crate) fn sound_changes_of(version: Version) -> Vec<Segment> {
    vec![
        version.changes(&[(b"", 1, b"empty key"), (b"a", 0, b""), (b"a\0", 2, b"")]),
        Segment { blob: vec![7; 100], ..Segment::of_changes(&[(b"b", 2, b"")]) },
        version.changes(&[(b"ba", 2, b"22"), (b"c", 1, b"333"), (b"\xFF\xFF", 0, b"")]),
    ]
}

/// Returns the segments of a small sound delta of the current version.
pub(crate) fn sound_changes() -> Vec<Segment> {
    sound_changes_of(Version::Two)
}

/// The base of the sound deltas.
pub(crate) const SOUND_BASE: Base = Base { fingerprint: 17, result: 4, inserts: 2, deletes: 2 };

/// Returns sound deltas of every version, with and without a label.
pub(crate) fn sound_deltas() -> Vec<Vec<u8>> {
    let of = |version| Parts { base: Some(SOUND_BASE), ..Parts::of(version, &sound_changes_of(version)) }.assemble();
    let mut deltas: Vec<_> = Version::ALL.map(of).into();
    deltas.push(labelled(&sound_changes(), Some(SOUND_BASE)));
    deltas
}
