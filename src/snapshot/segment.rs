//! The columns of a segment: rkyv archives on the way out, plain offsets on the way in.

use std::ops::Range;

use rkyv::api::high::{access, to_bytes_in};
use rkyv::rancor::Error;
use rkyv::rend::u32_le;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

/// The entries of a segment, column by column. Values come first, so that they start aligned.
#[derive(Archive, Serialize, Default)]
pub(super) struct Columns {
    values: Vec<u8>,
    value_ends: Vec<u32>,
    keys: Vec<u8>,
    key_ends: Vec<u32>,
}

impl Columns {
    /// What an entry costs in the columns beside its own bytes.
    pub(super) const ENTRY_OVERHEAD: usize = 2 * size_of::<u32>();

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
        self.key_ends.push(end_of(&self.keys));
        self.value_ends.push(end_of(&self.values));
    }

    pub(super) fn entries(&self) -> u32 {
        end_of(&self.key_ends)
    }

    pub(super) fn first_key(&self) -> &[u8] {
        self.key_ends.first().map_or(&[], |&end| &self.keys[..end as usize])
    }

    /// The bytes that the columns take, all together.
    pub(super) fn size_bytes(&self) -> usize {
        self.keys.len() + self.values.len() + self.key_ends.len() * Self::ENTRY_OVERHEAD
    }

    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.value_ends.clear();
        self.keys.clear();
        self.key_ends.clear();
    }

    /// Archives the columns into `buffer`, whose contents are discarded.
    pub(super) fn archive(&self, mut buffer: AlignedVec) -> AlignedVec {
        buffer.clear();
        to_bytes_in::<_, Error>(self, buffer).expect("flat columns below 2 GiB always fit an archive")
    }
}

fn end_of<T>(column: &[T]) -> u32 {
    u32::try_from(column.len()).expect("the writer closes a segment long before 4 GiB")
}

// rkyv's format features apply to every crate of a program. They would change images without changing their version.
const _: () = assert!(
    size_of::<ArchivedColumns>() == 32 && align_of::<ArchivedColumns>() == 4,
    "some crate turns on a format feature of rkyv (pointer_width_*, unaligned or big_endian), which changes the image format"
);

/// Where the columns of an archived segment lie, in bytes from the start of the archive.
#[derive(Default)]
pub(super) struct ColumnOffsets {
    pub(super) values: Range<usize>,
    pub(super) value_ends: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) key_ends: Range<usize>,
}

impl ColumnOffsets {
    /// Finds the columns in `archive`, which may hold anything; `None` if it is no valid archive of columns.
    ///
    /// All that is relied upon afterwards is that the ranges lie within the archive.
    pub(super) fn find(archive: &[u8]) -> Option<Self> {
        let columns = access::<ArchivedColumns, Error>(archive).ok()?;
        let offset = |start: *const u8, len: usize| {
            let start = start.addr().checked_sub(archive.as_ptr().addr())?;
            let end = start.checked_add(len)?;
            (end <= archive.len()).then_some(start..end)
        };
        // An empty column may point anywhere.
        let bytes = |column: &[u8]| if column.is_empty() { Some(0..0) } else { offset(column.as_ptr(), column.len()) };
        let ends = |column: &[u32_le]| {
            if column.is_empty() { Some(0..0) } else { offset(column.as_ptr().cast(), size_of_val(column)) }
        };
        Some(Self {
            values: bytes(&columns.values)?,
            value_ends: ends(&columns.value_ends)?,
            keys: bytes(&columns.keys)?,
            key_ends: ends(&columns.key_ends)?,
        })
    }

    /// The alignment that an archive must have in memory.
    pub(super) const ALIGNMENT: usize = align_of::<ArchivedColumns>();
}
