//! How a snapshot of a [`HotStore`](super::HotStore) is read: [`Source`] for [`Frozen`].

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::compare::FrozenComparison;
use super::frozen::Frozen;
use super::scan::{RecordScan, entries};
use crate::bounds::KeyBounds;
use crate::comparison::Comparison;
use crate::error::StateError;
use crate::scan::TryScan;
use crate::source::{SnapshotSource, Source};

impl SnapshotSource for Frozen {
    fn len(&self) -> usize {
        self.sorted.len()
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let bounds = (Bound::Included(key), Bound::Included(key));
        let record = RecordScan::range(&self.sorted, &self.records, bounds).next();
        Ok(record.map(|record| record.value().to_bytes()))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(entries(&self.sorted, &self.records, bounds).map(Ok))
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let mut records = RecordScan::range(&self.sorted, &self.records, bounds);
        let _ = records.try_for_each(|record| f(record.key(), record.value().as_slice()));
        Ok(())
    }
}

impl Source for Frozen {
    fn compare(self: Arc<Self>, earlier: &Arc<dyn Source>) -> Option<Arc<dyn Comparison>> {
        let earlier: Arc<Self> = Arc::clone(earlier).into_any().downcast().ok()?;
        // Locations of another store are not to be compared with those of this one.
        let comparison =
            self.guard.is_of_same_store(&earlier.guard).then(|| FrozenComparison::new(earlier, self))??;
        Some(Arc::new(comparison))
    }
}
