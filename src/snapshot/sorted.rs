//! [`SortedEntries`]: a snapshot's entries as a sorted vector of handles.

use std::any::Any;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Source;
use crate::aligned::aligned;
use crate::bounds::{KeyBounds, is_before_end, is_before_start, is_inverted};
use crate::{StateError, TryScan, check_entry_len};

/// Invariants: keys strictly ascend; every entry is within the limits of the contract, and its value aligned; `size_bytes` is
/// the sum of all lengths.
#[derive(Default)]
pub(super) struct SortedEntries {
    entries: Vec<(Bytes, Bytes)>,
    size_bytes: usize,
}

impl SortedEntries {
    /// Takes entries that strictly ascend, and fails for any others. Values that are not aligned are copied.
    pub(super) fn new(mut entries: Vec<(Bytes, Bytes)>) -> Result<Self, StateError> {
        let mut size_bytes = 0_usize;
        for (index, (key, value)) in entries.iter().enumerate() {
            check_entry_len(key, value)?;
            if index > 0 && entries[index - 1].0 >= *key {
                return Err(StateError::NotSorted { index });
            }
            // Entries may share their bytes, so that the sum is larger than the memory they take.
            size_bytes = size_bytes.checked_add(key.len() + value.len()).ok_or(StateError::BeyondAddressSpace)?;
        }
        for (_, value) in &mut entries {
            *value = aligned(mem::take(value));
        }
        Ok(Self { entries, size_bytes })
    }
}

/// Returns the part of `entries`, which strictly ascend, whose keys are within the bounds. O(log n).
pub(super) fn within<'a, T>(entries: &'a [(Bytes, T)], (start, end): KeyBounds<'_>) -> &'a [(Bytes, T)] {
    if is_inverted((start, end)) {
        return &[];
    }
    let start = entries.partition_point(|(key, _)| is_before_start(start, key));
    let end = entries.partition_point(|(key, _)| is_before_end(end, key));
    &entries[start..end]
}

impl Source for SortedEntries {
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

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
