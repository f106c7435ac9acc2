//! [`SortedEntries`]: the entries of a snapshot as a sorted vector of handles.

use std::mem;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::aligned::aligned;
use crate::bounds::{KeyBounds, is_before_end, is_before_start};
use crate::error::StateError;
use crate::limits::check_entry_len;
use crate::scan::TryScan;
use crate::source::{SnapshotSource, Source};

/// The entries of a snapshot as a sorted vector of handles.
///
/// Invariants: keys strictly ascend; every entry is within the limits of the contract; values are aligned; `size_bytes`
/// is the sum of all lengths.
#[derive(Default)]
pub(super) struct SortedEntries {
    entries: Vec<(Bytes, Bytes)>,
    size_bytes: usize,
}

impl SortedEntries {
    /// Checks that `entries` strictly ascend and are within the limits. Copies values that are not aligned.
    pub(super) fn new(mut entries: Vec<(Bytes, Bytes)>) -> Result<Self, StateError> {
        let mut size_bytes = 0_usize;
        for (index, (key, value)) in entries.iter().enumerate() {
            check_entry_len(key, value)?;
            if index > 0 && entries[index - 1].0 >= *key {
                return Err(StateError::NotSorted { index });
            }
            // Entries may share their bytes, so the sum can be larger than the memory they take.
            size_bytes = size_bytes.checked_add(key.len() + value.len()).ok_or(StateError::BeyondAddressSpace)?;
        }
        for (_, value) in &mut entries {
            *value = aligned(mem::take(value));
        }
        Ok(Self { entries, size_bytes })
    }
}

/// Returns the part of `entries` whose keys are within the bounds. Their keys must strictly ascend. O(log n).
pub(super) fn within<'a, T>(entries: &'a [(Bytes, T)], (start, end): KeyBounds<'_>) -> &'a [(Bytes, T)] {
    let start = entries.partition_point(|(key, _)| is_before_start(start, key));
    let end = entries.partition_point(|(key, _)| is_before_end(end, key));
    &entries[start..end]
}

impl SnapshotSource for SortedEntries {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let found = self.entries.binary_search_by(|(other, _)| other[..].cmp(key));
        Ok(found.ok().map(|found| self.entries[found].1.clone()))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(within(&self.entries, bounds).iter().cloned().map(Ok))
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let _ = within(&self.entries, bounds).iter().try_for_each(|(key, value)| f(key, value));
        Ok(())
    }
}

impl Source for SortedEntries {}
