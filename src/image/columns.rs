//! The columns of a segment: written as rkyv archives, read as plain offsets.

use std::ops::Range;

use rkyv::api::high::{access, to_bytes_in};
use rkyv::primitive::ArchivedU32;
use rkyv::rancor::Error;
use rkyv::rend::unaligned::{u32_ube, u32_ule};
use rkyv::rend::{u32_be, u32_le};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use super::format::{ALIGNMENT, ImageKind};
use crate::comparison::ChangeKind;

/// The entries of a segment, column by column. Values come first, so that they start aligned.
#[derive(Archive, Serialize, Default)]
struct EntryColumns {
    values: Vec<u8>,
    value_ends: Vec<u32>,
    keys: Vec<u8>,
    key_ends: Vec<u32>,
}

/// The entries of a segment, and in a delta the kind of each change.
#[derive(Archive, Serialize, Default)]
pub(crate) struct Columns {
    entries: EntryColumns,
    changes: Vec<u8>,
}

/// Columns that are being filled.
#[derive(Default)]
pub(crate) struct ColumnsBuilder {
    columns: Columns,
    /// The sum of the [`cost`](Self::cost) of all entries.
    cost: usize,
}

/// Returns where a value of `len` bytes starts in its column, if the value before it ends at `end`.
pub(crate) fn value_start(end: usize, len: usize) -> usize {
    if len == 0 { end } else { end.next_multiple_of(ALIGNMENT) }
}

impl ColumnsBuilder {
    /// Returns the number of bytes that an entry counts for when entries are cut into segments.
    pub(crate) fn cost(key: &[u8], value: &[u8]) -> usize {
        /// The length of an entry's two ends in the columns.
        const ENDS: usize = 2 * size_of::<u32>();
        key.len() + value.len().next_multiple_of(ALIGNMENT) + ENDS
    }

    /// Adds an entry. `change` is its kind of change, in a delta.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8], change: Option<ChangeKind>) {
        self.cost += Self::cost(key, value);
        let columns = &mut self.columns.entries;
        columns.keys.extend_from_slice(key);
        let start = value_start(columns.values.len(), value.len());
        if start > columns.values.len() {
            // A fixed number of zeros is faster to append, because the compiler knows it. The extra ones are cut off.
            columns.values.extend_from_slice(&[0; ALIGNMENT]);
            columns.values.truncate(start);
        }
        columns.values.extend_from_slice(value);
        columns.key_ends.push(end_of(&columns.keys));
        columns.value_ends.push(end_of(&columns.values));
        self.columns.changes.extend(change.map(|change| change as u8));
    }

    /// Returns the number of entries.
    pub(crate) fn entries(&self) -> u32 {
        end_of(&self.columns.entries.key_ends)
    }

    /// Returns the first key; empty if there are no entries.
    pub(crate) fn first_key(&self) -> &[u8] {
        let EntryColumns { keys, key_ends, .. } = &self.columns.entries;
        key_ends.first().map_or(&[], |&end| &keys[..end as usize])
    }

    /// Returns the sum of the [`cost`](Self::cost) of all entries.
    pub(crate) fn total_cost(&self) -> usize {
        self.cost
    }

    /// Removes all entries and keeps the memory.
    pub(crate) fn clear(&mut self) {
        let Self { columns: Columns { entries, changes }, cost } = self;
        let EntryColumns { values, value_ends, keys, key_ends } = entries;
        *cost = 0;
        values.clear();
        value_ends.clear();
        keys.clear();
        key_ends.clear();
        changes.clear();
    }

    /// Archives the columns of a segment of this kind into `buffer`, whose contents are discarded.
    pub(crate) fn archive(&self, kind: ImageKind, mut buffer: AlignedVec) -> AlignedVec {
        buffer.clear();
        let archive = match kind {
            ImageKind::Delta => to_bytes_in::<_, Error>(&self.columns, buffer),
            // A grouped image consists of images of snapshots, so its segments are like theirs.
            ImageKind::Snapshot | ImageKind::Grouped => to_bytes_in::<_, Error>(&self.columns.entries, buffer),
        };
        archive.expect("flat columns below 2 GiB always fit an archive")
    }
}

/// Returns the length of a column as the end of its last element.
fn end_of<T>(column: &[T]) -> u32 {
    u32::try_from(column.len()).expect("the writer closes a segment long before 4 GiB")
}

// rkyv's format features apply to every crate of a program. They would change images without changing their version.
const _: () = assert!(
    size_of::<ArchivedEntryColumns>() == 32
        && size_of::<ArchivedColumns>() == 40
        && align_of::<ArchivedColumns>() == 4
        && ArchivedU32::IS_OF_FORMAT,
    "some crate turns on a format feature of rkyv (pointer_width_*, unaligned or big_endian), which changes the image format"
);

/// An integer layout in an archive: the one of the format, or one that a feature of rkyv selects.
trait Layout {
    const IS_OF_FORMAT: bool;
}

impl Layout for u32_le {
    const IS_OF_FORMAT: bool = true;
}

impl Layout for u32_be {
    const IS_OF_FORMAT: bool = false;
}

impl Layout for u32_ule {
    const IS_OF_FORMAT: bool = false;
}

impl Layout for u32_ube {
    const IS_OF_FORMAT: bool = false;
}

/// The positions of the columns of an archived segment, in bytes from the start of the archive.
#[derive(Default)]
pub(crate) struct ColumnOffsets {
    pub(crate) values: Range<usize>,
    pub(crate) value_ends: Range<usize>,
    pub(crate) keys: Range<usize>,
    pub(crate) key_ends: Range<usize>,
    /// Empty except in a delta.
    pub(crate) changes: Range<usize>,
}

impl ColumnOffsets {
    /// Finds the columns in `archive`, which may hold anything. Returns `None` if it is no valid archive of columns.
    ///
    /// Later reads rely only on the ranges lying within the archive.
    pub(crate) fn find(kind: ImageKind, archive: &[u8]) -> Option<Self> {
        let (columns, changes) = match kind {
            ImageKind::Snapshot | ImageKind::Grouped => (access::<ArchivedEntryColumns, Error>(archive).ok()?, &[][..]),
            ImageKind::Delta => {
                let columns = access::<ArchivedColumns, Error>(archive).ok()?;
                (&columns.entries, columns.changes.as_slice())
            }
        };
        let offset = |start: *const u8, len: usize| {
            let start = start.addr().checked_sub(archive.as_ptr().addr())?;
            let end = start.checked_add(len)?;
            (end <= archive.len()).then_some(start..end)
        };
        // An empty column may point anywhere.
        let bytes = |column: &[u8]| if column.is_empty() { Some(0..0) } else { offset(column.as_ptr(), column.len()) };
        let ends = |column: &[ArchivedU32]| {
            if column.is_empty() { Some(0..0) } else { offset(column.as_ptr().cast(), size_of_val(column)) }
        };
        Some(Self {
            values: bytes(&columns.values)?,
            value_ends: ends(&columns.value_ends)?,
            keys: bytes(&columns.keys)?,
            key_ends: ends(&columns.key_ends)?,
            changes: bytes(changes)?,
        })
    }

    /// The alignment that an archive needs in memory.
    pub(crate) const ALIGNMENT: usize = align_of::<ArchivedColumns>();
}
