//! [`Scan`]: records in the order of their keys, fetched ahead.
//!
//! An id leads to a slot of the table and that to a record, two cache misses that depend on each other. A scan takes the
//! ids of a leaf at a time, asks for all their slots, then for all their records, and so waits for the memory once for
//! many entries instead of twice for each.

use super::arena::{ArenaView, Location, Record};
use super::sorted::Keys;
use super::{EntryView, Ids, IdsDown, prefetch, sizes};

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

/// Ids in the order of their keys, a leaf's at a time.
pub(super) trait Runs<'a> {
    /// `true` if ids come in descending order: from the last of a run to the first.
    const IS_DESCENDING: bool;

    /// Returns the next ids that are together in memory; `None` at the end, never an empty run.
    fn next_run(&mut self) -> Option<&'a [u32]>;
}

impl<'a, R: Records> Runs<'a> for Ids<'a, R> {
    const IS_DESCENDING: bool = false;

    #[inline]
    fn next_run(&mut self) -> Option<&'a [u32]> {
        Self::next_run(self)
    }
}

impl<'a, R: Records> Runs<'a> for IdsDown<'a, R> {
    const IS_DESCENDING: bool = true;

    #[inline]
    fn next_run(&mut self) -> Option<&'a [u32]> {
        Self::next_run(self)
    }
}

/// An iterator over the records of ids.
pub(super) struct Scan<'a, R, I> {
    records: &'a R,
    ids: I,
    /// The locations of a leaf's records; those from `next` to `len` are still to be handed out.
    run: [Location; sizes::LEAF],
    next: usize,
    len: usize,
}

impl<'a, R: Records, I: Runs<'a>> Scan<'a, R, I> {
    pub(super) fn new(records: &'a R, ids: I) -> Self {
        Self { records, ids, run: [0; sizes::LEAF], next: 0, len: 0 }
    }

    fn next_run(&mut self) -> Option<()> {
        let run = self.ids.next_run()?;
        for &id in run {
            prefetch(self.records.table().address(id));
        }
        let Self { records, run: slots, .. } = self;
        let find = |(slot, &id): (&mut Location, &u32)| {
            *slot = records.location(id);
            prefetch(records.address(*slot));
        };
        if I::IS_DESCENDING {
            slots.iter_mut().zip(run.iter().rev()).for_each(find);
        } else {
            slots.iter_mut().zip(run).for_each(find);
        }
        (self.next, self.len) = (0, run.len());
        Some(())
    }
}

impl<'a, R: Records, I: Runs<'a>> Iterator for Scan<'a, R, I> {
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
