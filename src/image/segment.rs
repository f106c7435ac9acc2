//! [`Segment`]: the positions of a segment's columns, and the check of all its bytes against the rules of the format.
//!
//! The check finds where the columns start. Later reads slice the bytes of the segment, and do not use rkyv again.

use std::ops::Range;

use super::columns::{ColumnOffsets, value_start};
use super::format::{ALIGNMENT, Descriptor, Header, ImageKind, partition_point, rule, verify_checksum};
use crate::comparison::ChangeKind;
use crate::error::StateError;
use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN};

/// The positions of the columns of a checked segment, in bytes from its start.
///
/// Invariant: the bytes of the segment passed [`Segment::check`]. So every end in a column lies within that column, and
/// keys strictly ascend.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// The number of entries; at least one.
    pub(crate) entries: u32,
    keys: u32,
    key_ends: u32,
    values: u32,
    value_ends: u32,
    /// The column of changes. Used only in deltas.
    changes: u32,
    /// `true` if values start at multiples of 16, as they do since format 2.
    is_aligned: bool,
    /// The length of the archive. A blob starts at the next multiple of 16.
    archive_len: u32,
    blob_len: u64,
}

impl Segment {
    /// Returns the position of the key of an entry.
    #[inline]
    pub(crate) fn key(&self, segment: &[u8], index: usize) -> Range<usize> {
        let (start, end) = ends_of(segment, self.key_ends as usize, index);
        self.keys as usize + start..self.keys as usize + end
    }

    /// Returns the position of the value of an entry.
    #[inline]
    pub(crate) fn value(&self, segment: &[u8], index: usize) -> Range<usize> {
        if self.blob_len > 0 {
            let start = (self.archive_len as usize).next_multiple_of(ALIGNMENT);
            return start..start + self.blob_len as usize;
        }
        let (before, end) = ends_of(segment, self.value_ends as usize, index);
        let start = if self.is_aligned { value_start(before, end - before) } else { before };
        self.values as usize + start..self.values as usize + end
    }

    /// Returns the kind of a change, in a segment of a delta.
    pub(crate) fn change(&self, segment: &[u8], index: usize) -> ChangeKind {
        let change = ChangeKind::of(segment[self.changes as usize + index]);
        change.expect("the check of a segment refuses unknown kinds of changes")
    }

    /// Returns the first index, from `low` on, whose key does not satisfy `before`. Keys that satisfy it come first.
    #[inline]
    pub(crate) fn partition_point(&self, segment: &[u8], low: usize, before: impl Fn(&[u8]) -> bool) -> usize {
        partition_point(low..self.entries as usize, |index| before(&segment[self.key(segment, index)]))
    }

    /// Checks all `bytes` of a segment, and calls `each` with its entries. Returns the positions of its columns.
    ///
    /// The extent of the segment must have been checked. `first_key` is its first key in the footer, or `None` if the
    /// footer is damaged.
    pub(crate) fn check(
        header: Header,
        descriptor: &Descriptor,
        first_key: Option<&[u8]>,
        bytes: &[u8],
        mut each: impl FnMut(&[u8], &[u8], Option<ChangeKind>),
    ) -> Result<Self, StateError> {
        let offset = descriptor.offset;
        let mut last_key = None;
        let check = |problem, found, expected| rule("segment", offset, problem, found, expected);
        let blob_offset = descriptor.extent().map_or(0, |(blob_offset, _)| blob_offset);
        verify_checksum("segment", offset, descriptor.checksum, bytes)?;
        let archive = &bytes[..descriptor.archive_len as usize];
        let blob_end = (blob_offset + descriptor.blob_len) as usize;
        let padding = [&bytes[archive.len()..blob_offset as usize], &bytes[blob_end..]];
        let is_zero = padding.into_iter().flatten().all(|&byte| byte == 0);
        check("there are other bytes where its padding has zeros", is_zero.into(), 1)?;
        let (kind, is_aligned) = (header.kind, header.is_aligned());
        let columns = ColumnOffsets::find(kind, archive);
        check("it is no archive of columns", columns.is_some().into(), 1)?;
        let columns = columns.unwrap_or_default();

        let entries = descriptor.entries as usize;
        check("it is empty", descriptor.entries.into(), descriptor.entries.max(1).into())?;
        let ends_len = descriptor.entries as u64 * size_of::<u32>() as u64;
        check("the number of ends of keys is not that of entries", columns.key_ends.len() as u64, ends_len)?;
        check("the number of ends of values is not that of entries", columns.value_ends.len() as u64, ends_len)?;
        let changes = if kind == ImageKind::Delta { entries } else { 0 };
        check("the number of kinds of changes is not that of entries", columns.changes.len() as u64, changes as u64)?;
        if descriptor.blob_len > 0 {
            check("a segment with a blob has one entry", descriptor.entries.into(), 1)?;
            check("a segment with a blob has no other value", columns.values.len() as u64, 0)?;
        }
        check_ends(&archive[columns.key_ends.clone()], columns.keys.len(), check)?;
        check_ends(&archive[columns.value_ends.clone()], columns.values.len(), check)?;
        if is_aligned {
            let start = columns.values.start as u64;
            check("its values do not start at a multiple of 16", start, start.next_multiple_of(ALIGNMENT as u64))?;
            check_padding(&archive[columns.values.clone()], &archive[columns.value_ends.clone()], check)?;
        }

        // Every column lies within the archive, whose length is 32 bits.
        let segment = Segment {
            entries: descriptor.entries,
            keys: columns.keys.start as u32,
            key_ends: columns.key_ends.start as u32,
            values: columns.values.start as u32,
            value_ends: columns.value_ends.start as u32,
            changes: columns.changes.start as u32,
            is_aligned,
            archive_len: descriptor.archive_len,
            blob_len: descriptor.blob_len,
        };
        for index in 0..entries {
            let key = &bytes[segment.key(bytes, index)];
            let value = &bytes[segment.value(bytes, index)];
            check("a key is too long", key.len() as u64, key.len().min(MAX_KEY_LEN) as u64)?;
            check("a value is too long", value.len() as u64, value.len().min(MAX_VALUE_LEN) as u64)?;
            let ascends = last_key.is_none_or(|last| last < key);
            check("a key does not sort after the one before it", ascends.into(), 1)?;
            if let (0, Some(first_key)) = (index, first_key) {
                check("its first key is not that of the footer", (key == first_key).into(), 1)?;
            }
            last_key = Some(key);
            let mut change = None;
            if kind == ImageKind::Delta {
                let byte = bytes[segment.changes as usize + index];
                change = ChangeKind::of(byte);
                check("this kind of change is unknown", byte.into(), change.map_or(0, |change| change as u64))?;
                if change == Some(ChangeKind::Delete) {
                    check("a deleted key has a value", value.len() as u64, 0)?;
                }
            }
            each(key, value, change);
        }
        Ok(segment)
    }
}

/// Returns the range of an element in its column. The ends of the elements start at `ends` in the segment.
#[inline]
fn ends_of(segment: &[u8], ends: usize, index: usize) -> (usize, usize) {
    let before = if index == 0 { 0 } else { end_at(segment, ends, index - 1) };
    (before, end_at(segment, ends, index))
}

/// Returns the end at `index` in a column of ends that starts at `ends`.
#[inline]
fn end_at(segment: &[u8], ends: usize, index: usize) -> usize {
    let at = ends + index * size_of::<u32>();
    u32::from_le_bytes(*segment[at..].first_chunk().expect("a column of ends has an end for every entry")) as usize
}

/// Checks that every value that is not empty starts at a multiple of 16, with zeros before it.
///
/// The ends must ascend to the length of the column.
fn check_padding(
    values: &[u8],
    ends: &[u8],
    check: impl Fn(&'static str, u64, u64) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut before = 0;
    for end in ends.chunks_exact(size_of::<u32>()) {
        let end = end_at(end, 0, 0);
        let start = value_start(before, end - before);
        if start > before {
            check("a value ends within the zeros before it", end as u64, end.max(start + 1) as u64)?;
            // Another value precedes this one, so the zeros are the end of a whole block of 16 bytes.
            let block = values[..start].last_chunk().map_or(u128::MAX, |block| u128::from_be_bytes(*block));
            let zeros = (start - before) * 8;
            check(
                "there are other bytes where values have zeros before them",
                (block << (128 - zeros) == 0).into(),
                1,
            )?;
        }
        before = end;
    }
    Ok(())
}

/// Checks that a column of ends ascends to the length of the column that the ends belong to.
fn check_ends(
    ends: &[u8],
    column_len: usize,
    check: impl Fn(&'static str, u64, u64) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut last = 0;
    for at in 0..ends.len() / size_of::<u32>() {
        let end = end_at(ends, 0, at) as u64;
        check("an end lies before the one before it", end, end.max(last))?;
        last = end;
    }
    check("the last end is not the length of its column", last, column_len as u64)
}
