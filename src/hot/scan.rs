//! [`Scan`]: records in the order of their keys, fetched ahead.
//!
//! An id leads to a slot of the table and that to a record, two cache misses that depend on each other. A scan takes the
//! ids of a leaf at a time, asks for all their slots, then for all their records, and so waits for the memory once for
//! many entries instead of twice for each.

use super::arena::{ArenaView, Location, Record};
use super::sorted::Keys;
use super::{EntryView, Ids, prefetch, sizes};

/// Entries by id: the table and the arena, of the writer or of a snapshot.
pub(super) trait Records {
    fn table(&self) -> &EntryView;
    fn arena(&self) -> &ArenaView;

    #[inline]
    fn location(&self, id: u32) -> Location {
        self.table().get(id)
    }

    #[inline]
    fn record(&self, location: Location) -> Record<'_> {
        self.arena().record(location)
    }

    /// Where the record starts.
    #[inline]
    fn address(&self, location: Location) -> *const u8 {
        self.arena().address(location)
    }
}

impl<R: Records> Keys for R {
    #[inline]
    fn key(&self, id: u32) -> &[u8] {
        self.record(self.location(id)).key()
    }

    #[inline]
    fn prefetch(&self, id: u32) {
        prefetch(self.address(self.location(id)));
    }
}

/// An iterator over the records of ids.
pub(super) struct Scan<'a, R> {
    records: &'a R,
    ids: Ids<'a, R>,
    /// The locations of a leaf's records; those from `next` to `len` are still to be handed out.
    run: [Location; sizes::LEAF],
    next: usize,
    len: usize,
}

impl<'a, R: Records> Scan<'a, R> {
    pub(super) fn new(records: &'a R, ids: Ids<'a, R>) -> Self {
        Self { records, ids, run: [0; sizes::LEAF], next: 0, len: 0 }
    }

    fn next_run(&mut self) -> Option<()> {
        let run = self.ids.next_run()?;
        for &id in run {
            prefetch(self.records.table().address(id));
        }
        for (slot, &id) in self.run.iter_mut().zip(run) {
            *slot = self.records.location(id);
            prefetch(self.records.address(*slot));
        }
        (self.next, self.len) = (0, run.len());
        Some(())
    }
}

impl<'a, R: Records> Iterator for Scan<'a, R> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Record<'a>> {
        if self.next == self.len {
            self.next_run()?;
        }
        let location = self.run[self.next];
        self.next += 1;
        Some(self.records.record(location))
    }
}
