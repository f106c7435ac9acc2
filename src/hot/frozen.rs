//! [`Frozen`]: a store at the end of an epoch, as a snapshot of it keeps it.

use super::arena::ArenaView;
use super::epoch::Epoch;
use super::epochs::SnapshotGuard;
use super::journal::FrozenJournal;
use super::parts::{EntryView, SortedView};
use super::scan::Records;

/// Views of everything but the hash index, and the guard that keeps them readable.
pub(super) struct Frozen {
    pub(super) size_bytes: usize,
    pub(super) records: FrozenRecords,
    pub(super) sorted: SortedView,
    /// The writer's notes until then, for comparisons with earlier snapshots.
    pub(super) journal: FrozenJournal,
    /// Last, so that it outlives the views.
    pub(super) guard: SnapshotGuard,
}

/// Records by id, as a snapshot sees them.
pub(super) struct FrozenRecords {
    pub(super) table: EntryView,
    pub(super) arena: ArenaView,
}

impl Records for FrozenRecords {
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
        self.guard.epoch()
    }
}
