//! [`SortedMap`]: the entries of an [`InMemoryStore`](super::InMemoryStore), shared with its snapshots.

use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::key::Key;
use super::value::Value;
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds, is_inverted};
use crate::error::StateError;
use crate::handles::{CowBytes, Handles};
use crate::limits::MAX_KEY_LEN;
use crate::scan::TryScan;
use crate::scan::TwoEnds;
use crate::snapshot::state_snapshot::StateSnapshot;
use crate::source::{SnapshotSource, Source};

/// The entries of a store, in order of keys.
///
/// Invariant: `size_bytes` is the sum of the lengths of all keys and values in `map`, and `outside_bytes` that of their
/// memory outside of its nodes.
#[derive(Clone, Default)]
pub(super) struct SortedMap {
    map: BTreeMap<Key, Value>,
    size_bytes: usize,
    outside_bytes: usize,
}

impl SortedMap {
    /// Returns the value of `key`.
    pub(super) fn find(&self, key: &[u8]) -> Option<&Value> {
        self.map.get(&searched(key)?)
    }

    /// Returns the value of `key` for a change that keeps its length.
    pub(super) fn find_mut(&mut self, key: &[u8]) -> Option<&mut Value> {
        self.map.get_mut(&searched(key)?)
    }

    /// Sets the value of `key`.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        let (new, value) = (Key::new(key), Value::new(value));
        let mut size_bytes = self.size_bytes + value.as_slice().len();
        let mut outside_bytes = self.outside_bytes + value.outside_bytes();
        match self.map.entry(new) {
            Entry::Vacant(entry) => {
                size_bytes += key.len();
                outside_bytes += entry.key().outside_bytes();
                entry.insert(value);
            }
            Entry::Occupied(mut entry) => {
                let old = entry.insert(value);
                size_bytes -= old.as_slice().len();
                outside_bytes -= old.outside_bytes();
            }
        }
        // Nothing is counted unless the nodes could be allocated.
        (self.size_bytes, self.outside_bytes) = (size_bytes, outside_bytes);
    }

    /// Removes `key` and its value.
    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some((key, value)) = searched(key).and_then(|key| self.map.remove_entry(&key)) {
            self.size_bytes -= key.as_slice().len() + value.as_slice().len();
            self.outside_bytes -= key.outside_bytes() + value.outside_bytes();
        }
    }

    /// Iterates over the entries within `bounds`, which may be inverted.
    fn range<'a>(&'a self, (start, end): KeyBounds<'_>) -> Range<'a, Key, Value> {
        if is_inverted((start, end)) {
            // `BTreeMap::range` would panic. It accepts this range, which is empty.
            return self.map.range(..Key::new(&[]));
        }
        self.map.range((start.map(Key::new), end.map(Key::new)))
    }

    /// Iterates over the entries within `bounds` as handles.
    pub(super) fn handles<'a>(&'a self, bounds: KeyBounds<'_>) -> impl Iterator<Item = (Bytes, Bytes)> + use<'a> {
        Handles::new(self.range(bounds).map(entry_of))
    }

    /// Iterates over the entries within `bounds` from both ends, as handles.
    pub(super) fn entries(&self, bounds: KeyBounds<'_>) -> impl DoubleEndedIterator<Item = (Bytes, Bytes)> + use<'_> {
        TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            |bounds| self.handles(bounds.get()),
            |bounds| Handles::new(self.range(bounds.get()).rev().map(entry_of)),
        )
    }

    /// Calls `f` with the entries within `bounds`, in order, until `f` breaks.
    pub(super) fn visit(&self, bounds: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = self.range(bounds).try_for_each(|(key, value)| f(key.as_slice(), value.as_slice()));
    }

    /// Returns the entries of a snapshot of any store. O(n), but O(1) for a snapshot of an `InMemoryStore`.
    pub(super) fn of(snapshot: &StateSnapshot) -> Result<Arc<Self>, StateError> {
        let source = Arc::clone(snapshot.source());
        if let Ok(map) = source.into_any().downcast() {
            return Ok(map);
        }
        // An unverified snapshot may claim any number of entries.
        const UNVERIFIED: usize = 1 << 20;
        let mut entries = Vec::with_capacity(snapshot.len().min(UNVERIFIED));
        let (mut size_bytes, mut outside_bytes) = (0, 0);
        snapshot.source().try_visit(ALL_KEYS, &mut |key, value| {
            size_bytes += key.len() + value.len();
            let (key, value) = (Key::new(key), Value::new(value));
            outside_bytes += key.outside_bytes() + value.outside_bytes();
            entries.push((key, value));
            ControlFlow::Continue(())
        })?;
        // A `BTreeMap` builds itself from sorted entries in one pass.
        Ok(Arc::new(Self { map: entries.into_iter().collect(), size_bytes, outside_bytes }))
    }

    /// Returns the memory that the entries take. The nodes are estimated.
    pub(super) fn memory_bytes(&self) -> usize {
        // Nodes of a `BTreeMap` have room for 11 entries and are two thirds full on average. They are full after a
        // restore, and half full after insertions in order or many deletions.
        self.map.len() * (size_of::<(Key, Value)>() * 3 / 2) + self.outside_bytes
    }
}

/// Returns an entry as parts of a handle, which share long keys and values.
fn entry_of<'a>((key, value): (&'a Key, &'a Value)) -> (CowBytes<'a>, CowBytes<'a>) {
    let part = |bytes, handle: Option<Bytes>| handle.map_or(CowBytes::Borrowed(bytes), CowBytes::Shared);
    (part(key.as_slice(), key.handle().cloned()), part(value.as_slice(), value.handle()))
}

/// Returns `key` for a search, or `None` for a key beyond the limit, which cannot be there and is not copied.
fn searched(key: &[u8]) -> Option<Key> {
    (key.len() <= MAX_KEY_LEN).then(|| Key::new(key))
}

impl SnapshotSource for SortedMap {
    fn len(&self) -> usize {
        self.map.len()
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.find(key).map(Value::to_bytes))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(self.entries(bounds).map(Ok))
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.visit(bounds, f);
        Ok(())
    }
}

impl Source for SortedMap {}
