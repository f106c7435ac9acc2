//! Small images, sound and damaged.

use opstate::{ImageOptions, StateError, StateSnapshot};

use super::layout::extents;

/// Returns a snapshot of `count` numbered keys, with values of one length.
pub(crate) fn numbered(count: u32, value_len: usize) -> StateSnapshot {
    StateSnapshot::from_sorted((0..count).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; value_len]))).unwrap()
}

/// Returns an image with segments of about `segment_bytes`.
pub(crate) fn image_of(snapshot: &StateSnapshot, segment_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
    image
}

/// Returns an image of the snapshot whose fourth segment is damaged, and the position of that segment.
pub(crate) fn damaged(snapshot: &StateSnapshot) -> (Vec<u8>, usize) {
    let mut image = image_of(snapshot, 500);
    let (start, _) = extents(&image)[3];
    image[start + 20] ^= 1;
    (image, start)
}

/// Returns `true` if the error reports damage in the segment at `at`.
pub(crate) fn is_damage(error: &StateError, at: usize) -> bool {
    matches!(error, StateError::ChecksumMismatch { part: "segment", offset, .. } if *offset == at as u64)
}
