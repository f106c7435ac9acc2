//! [`SortedEntries`]: a snapshot's entries as a sorted vector of handles.

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Source;
use crate::store::{Entries, KeyBounds, is_before_end, is_before_start, is_inverted};
use crate::{StateError, check_entry_len};

/// Invariants: keys strictly ascend; every entry is within the limits of the contract; `size_bytes` is their sum.
pub(super) struct SortedEntries {
    entries: Vec<(Bytes, Bytes)>,
    size_bytes: usize,
}

impl SortedEntries {
    /// Takes entries that strictly ascend, and fails for any others.
    pub(super) fn new(entries: Vec<(Bytes, Bytes)>) -> Result<Self, StateError> {
        let mut size_bytes = 0_usize;
        for (index, (key, value)) in entries.iter().enumerate() {
            check_entry_len(key, value)?;
            if index > 0 && entries[index - 1].0 >= *key {
                return Err(StateError::NotSorted { index });
            }
            // Entries may share their bytes, so that the sum is larger than the memory they take.
            size_bytes = size_bytes
                .checked_add(key.len() + value.len())
                .ok_or_else(|| StateError::store("the entries' lengths add up to more than an address space"))?;
        }
        Ok(Self { entries, size_bytes })
    }
}

/// Those of `entries`, which strictly ascend, whose keys are within the bounds. O(log n).
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

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let found = self.entries.binary_search_by(|(other, _)| other[..].cmp(key)).ok()?;
        Some(self.entries[found].1.clone())
    }

    fn scan<'a>(&'a self, range: KeyBounds<'a>) -> Entries<'a> {
        Box::new(within(&self.entries, range).iter().cloned())
    }

    fn visit(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = within(&self.entries, range).iter().try_for_each(|(key, value)| f(key, value));
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
