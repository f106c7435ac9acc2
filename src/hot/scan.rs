//! [`RecordScan`]: records in the order of their keys, fetched ahead.
//!
//! An id leads to a slot of the table and the slot to a record, two cache misses that depend on each other. A scan
//! takes the ids of a leaf at a time, asks for all their slots, then for all their records. So it waits for the memory
//! once for many entries instead of twice for each.

use bytes::Bytes;

use super::arena::ArenaView;
use super::entry_id::EntryId;
use super::location::Location;
use super::parts::{EntryView, Ids, SortedView};
use super::prefetch::prefetch;
use super::record::Record;
use super::sizes;
use super::sorted::Keys;
use crate::bounds::{KeyBounds, OwnedBounds};
use crate::handles::Handles;
use crate::scan::TwoEnds;

/// Entries by id: the table and the arena, of the writer or of a snapshot.
pub(super) trait Records {
    fn table(&self) -> &EntryView;
    fn arena(&self) -> &ArenaView;

    #[inline]
    fn location(&self, id: EntryId) -> Location {
        self.table().get(id)
    }

    #[inline]
    fn record(&self, location: Location) -> Record<'_> {
        self.arena().record(location)
    }

    /// Returns where a record starts, to be prefetched.
    #[inline]
    fn address(&self, location: Location) -> *const u8 {
        self.arena().address(location)
    }
}

impl<R: Records> Keys for R {
    #[inline]
    fn key(&self, id: EntryId) -> &[u8] {
        self.record(self.location(id)).key()
    }

    #[inline]
    fn prefetch(&self, id: EntryId) {
        prefetch(self.address(self.location(id)));
    }
}

/// An iterator over the records of a range, in ascending or descending order of their keys.
pub(super) struct RecordScan<'a, R, const DESCENDING: bool = false> {
    records: &'a R,
    ids: Ids<'a, R, DESCENDING>,
    /// The locations of a leaf's records. Those from `next` to `len` are still to be handed out.
    locations: [Location; sizes::LEAF],
    next: usize,
    len: usize,
}

impl<'a, R: Records> RecordScan<'a, R> {
    /// Scans the entries within `bounds`.
    pub(super) fn range(sorted: &'a SortedView, records: &'a R, bounds: KeyBounds<'a>) -> Self {
        Self::new(records, sorted.range(records, bounds))
    }
}

impl<'a, R: Records, const DESCENDING: bool> RecordScan<'a, R, DESCENDING> {
    pub(super) fn new(records: &'a R, ids: Ids<'a, R, DESCENDING>) -> Self {
        Self { records, ids, locations: [Location::NONE; sizes::LEAF], next: 0, len: 0 }
    }

    /// Returns the entries as handles.
    pub(super) fn handles(self) -> impl Iterator<Item = (Bytes, Bytes)> + use<'a, R, DESCENDING> {
        Handles::new(self.map(Record::to_entry))
    }

    fn next_slice(&mut self) -> Option<()> {
        let slice = self.ids.next_slice()?;
        for &id in slice {
            prefetch(self.records.table().address(id));
        }
        let Self { records, locations, .. } = self;
        let find = |(location, &id): (&mut Location, &EntryId)| {
            *location = records.location(id);
            prefetch(records.address(*location));
        };
        if DESCENDING {
            locations.iter_mut().zip(slice.iter().rev()).for_each(find);
        } else {
            locations.iter_mut().zip(slice).for_each(find);
        }
        (self.next, self.len) = (0, slice.len());
        Some(())
    }
}

impl<'a, R: Records, const DESCENDING: bool> Iterator for RecordScan<'a, R, DESCENDING> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Record<'a>> {
        if self.next == self.len {
            self.next_slice()?;
        }
        let location = self.locations[self.next];
        self.next += 1;
        Some(self.records.record(location))
    }
}

/// Scans the entries within `bounds` from both ends, as handles.
pub(super) fn entries<'a, R: Records>(
    sorted: &'a SortedView,
    records: &'a R,
    bounds: KeyBounds<'_>,
) -> impl DoubleEndedIterator<Item = (Bytes, Bytes)> + use<'a, R> {
    TwoEnds::new(
        OwnedBounds::copy_of(bounds),
        move |bounds| RecordScan::new(records, sorted.range_of_copy(records, bounds.get())).handles(),
        move |bounds| RecordScan::new(records, sorted.range_down(records, bounds.get())).handles(),
    )
}
