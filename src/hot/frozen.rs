//! [`Frozen`]: what a snapshot of a [`HotStore`](super::HotStore) holds, and reading it.

use std::any::Any;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::arena::{ArenaView, Record, ValueRef};
use super::compare::FrozenComparison;
use super::journal::Part as JournalPart;
use super::scan::{Records, Scan};
use super::versions::{Claim, Epoch};
use super::{EntryView, Ids, SortedView};
use crate::bounds::{KeyBounds, OwnedBounds};
use crate::handles::{Handles, Part};
use crate::scan::TwoEnds;
use crate::snapshot::{Comparison, Source};
use crate::{StateError, TryScan};

/// The views of all parts but the hash index at the end of one epoch, and the claim that keeps them readable.
pub(super) struct Frozen {
    pub(super) size_bytes: usize,
    pub(super) entries: FrozenEntries,
    pub(super) sorted: SortedView,
    /// The writer's notes until then, for comparisons with earlier snapshots.
    pub(super) journal: Box<[Arc<JournalPart>]>,
    /// Last, so that it outlives the views.
    pub(super) claim: Claim,
}

/// The records by id.
pub(super) struct FrozenEntries {
    pub(super) table: EntryView,
    pub(super) arena: ArenaView,
}

impl Records for FrozenEntries {
    #[inline]
    fn table(&self) -> &EntryView {
        &self.table
    }

    #[inline]
    fn arena(&self) -> &ArenaView {
        &self.arena
    }
}

impl Frozen {
    pub(super) fn epoch(&self) -> Epoch {
        self.claim.epoch()
    }

    fn range<'a>(&'a self, bounds: KeyBounds<'a>) -> Scan<'a, FrozenEntries, Ids<'a, FrozenEntries>> {
        Scan::new(&self.entries, self.sorted.range(&self.entries, bounds))
    }
}

/// The entry of a record, for a scan that hands out handles.
pub(super) fn parts(record: Record<'_>) -> (Part<'_>, Part<'_>) {
    (Part::Borrowed(record.key()), part(record.value()))
}

pub(super) fn part(value: ValueRef<'_>) -> Part<'_> {
    match value {
        ValueRef::Small(value) => Part::Borrowed(value),
        ValueRef::Large(value) => Part::Lent(value),
    }
}

impl Source for Frozen {
    fn len(&self) -> usize {
        self.sorted.len()
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let record = self.range((Bound::Included(key), Bound::Included(key))).next();
        Ok(record.map(|record| record.value().to_bytes()))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            |bounds| {
                let ids = self.sorted.range_of_copy(&self.entries, bounds.get());
                Handles::new(Scan::new(&self.entries, ids).map(parts)).map(Ok)
            },
            |bounds| {
                let ids = self.sorted.range_down(&self.entries, bounds.get());
                Handles::new(Scan::new(&self.entries, ids).map(parts)).map(Ok)
            },
        ))
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let _ = self.range(bounds).try_for_each(|record| f(record.key(), record.value().as_slice()));
        Ok(())
    }

    fn compare(self: Arc<Self>, earlier: &Arc<dyn Source>) -> Option<Arc<dyn Comparison>> {
        let earlier: Arc<Self> = Arc::clone(earlier).into_any().downcast().ok()?;
        // Locations of another store are not to be compared with those of this one.
        let comparison =
            self.claim.is_of_same_store(&earlier.claim).then(|| FrozenComparison::new(earlier, self))??;
        Some(Arc::new(comparison))
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
