//! The columns of a segment: rkyv archives on the way out, plain offsets on the way in.

use std::ops::Range;

use rkyv::api::high::{access, to_bytes_in};
use rkyv::primitive::ArchivedU32;
use rkyv::rancor::Error;
use rkyv::rend::unaligned::{u32_ube, u32_ule};
use rkyv::rend::{u32_be, u32_le};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use super::format::{ALIGNMENT, Kind};

/// The kinds of changes of a key, with the numbers of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    Delete = 0,
    Insert = 1,
    Update = 2,
}

impl ChangeKind {
    /// Returns the kind with this number.
    pub(super) fn of(byte: u8) -> Option<Self> {
        [Self::Delete, Self::Insert, Self::Update].into_iter().find(|&kind| kind as u8 == byte)
    }

    /// The kind of a change from `old` to `new`; `None` if neither is there.
    pub(super) fn between<V>(old: Option<V>, new: Option<V>) -> Option<Self> {
        match (old, new) {
            (None, None) => None,
            (None, Some(_)) => Some(Self::Insert),
            (Some(_), Some(_)) => Some(Self::Update),
            (Some(_), None) => Some(Self::Delete),
        }
    }
}

/// The entries of a segment, column by column. Values come first, so that they start aligned.
#[derive(Archive, Serialize, Default)]
struct EntryColumns {
    values: Vec<u8>,
    value_ends: Vec<u32>,
    keys: Vec<u8>,
    key_ends: Vec<u32>,
}

/// The entries, and of a delta what became of each.
#[derive(Archive, Serialize, Default)]
pub(super) struct Columns {
    entries: EntryColumns,
    changes: Vec<u8>,
}

/// Columns that are being filled.
#[derive(Default)]
pub(super) struct Filling {
    columns: Columns,
    /// The sum of the [`cost`](Self::cost) of all entries.
    cost: usize,
}

/// Returns where a value ends that is put behind one that ends at `end`, and where it starts.
pub(super) fn value_start(end: usize, len: usize) -> usize {
    if len == 0 { end } else { end.next_multiple_of(ALIGNMENT) }
}

impl Filling {
    /// Returns what an entry counts for where entries are cut into segments.
    pub(super) fn cost(key: &[u8], value: &[u8]) -> usize {
        /// The two ends in the columns.
        const ENDS: usize = 2 * size_of::<u32>();
        key.len() + value.len().next_multiple_of(ALIGNMENT) + ENDS
    }

    /// Adds an entry, which is a change in a delta.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8], change: Option<ChangeKind>) {
        self.cost += Self::cost(key, value);
        let columns = &mut self.columns.entries;
        columns.keys.extend_from_slice(key);
        let start = value_start(columns.values.len(), value.len());
        if start > columns.values.len() {
            // More zeros than needed, because their number is then known to the compiler.
            columns.values.extend_from_slice(&[0; ALIGNMENT]);
            columns.values.truncate(start);
        }
        columns.values.extend_from_slice(value);
        columns.key_ends.push(end_of(&columns.keys));
        columns.value_ends.push(end_of(&columns.values));
        self.columns.changes.extend(change.map(|change| change as u8));
    }

    pub(super) fn entries(&self) -> u32 {
        end_of(&self.columns.entries.key_ends)
    }

    pub(super) fn first_key(&self) -> &[u8] {
        let EntryColumns { keys, key_ends, .. } = &self.columns.entries;
        key_ends.first().map_or(&[], |&end| &keys[..end as usize])
    }

    /// Returns the sum of the [`cost`](Self::cost) of all entries.
    pub(super) fn total_cost(&self) -> usize {
        self.cost
    }

    pub(super) fn clear(&mut self) {
        let Self { columns: Columns { entries, changes }, cost } = self;
        let EntryColumns { values, value_ends, keys, key_ends } = entries;
        *cost = 0;
        values.clear();
        value_ends.clear();
        keys.clear();
        key_ends.clear();
        changes.clear();
    }

    /// Archives the columns that a segment of this kind has into `buffer`, whose contents are discarded.
    pub(super) fn archive(&self, kind: Kind, mut buffer: AlignedVec) -> AlignedVec {
        buffer.clear();
        let archive = match kind {
            Kind::Delta => to_bytes_in::<_, Error>(&self.columns, buffer),
            // The segments of a grouped one are those of the images in it.
            Kind::Snapshot | Kind::Grouped => to_bytes_in::<_, Error>(&self.columns.entries, buffer),
        };
        archive.expect("flat columns below 2 GiB always fit an archive")
    }
}

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

/// A layout of numbers in an archive: the one of the format, or one that a feature of rkyv gives.
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

/// Where the columns of an archived segment lie, in bytes from the start of the archive.
#[derive(Default)]
pub(super) struct ColumnOffsets {
    pub(super) values: Range<usize>,
    pub(super) value_ends: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) key_ends: Range<usize>,
    /// Empty but in a delta.
    pub(super) changes: Range<usize>,
}

impl ColumnOffsets {
    /// Finds the columns in `archive`, which may hold anything; `None` if it is no valid archive of a segment's columns.
    ///
    /// All that is relied upon afterwards is that the ranges lie within the archive.
    pub(super) fn find(kind: Kind, archive: &[u8]) -> Option<Self> {
        let (columns, changes) = match kind {
            Kind::Snapshot | Kind::Grouped => (access::<ArchivedEntryColumns, Error>(archive).ok()?, &[][..]),
            Kind::Delta => {
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

    /// The alignment that an archive must have in memory.
    pub(super) const ALIGNMENT: usize = align_of::<ArchivedColumns>();
}
