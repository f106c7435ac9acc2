//! [`SortedMap`]: the entries of an [`InMemoryStore`](super::InMemoryStore), and what its snapshots share.

use std::any::Any;
use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::key::Key;
use super::value::Value;
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds, is_inverted};
use crate::handles::{Handles, Part};
use crate::scan::TwoEnds;
use crate::snapshot::Source;
use crate::{MAX_KEY_LEN, StateError, StateSnapshot, TryScan};

/// Invariant: `size_bytes` is the sum of the lengths of all keys and values in `map`.
#[derive(Clone, Default)]
pub(super) struct SortedMap {
    map: BTreeMap<Key, Value>,
    size_bytes: usize,
}

impl SortedMap {
    pub(super) fn find(&self, key: &[u8]) -> Option<&Value> {
        // A key that cannot be there is not copied to find that out.
        if key.len() > MAX_KEY_LEN {
            return None;
        }
        self.map.get(&Key::new(key))
    }

    pub(super) fn find_mut(&mut self, key: &[u8]) -> Option<&mut Value> {
        self.map.get_mut(&Key::new(key))
    }

    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        match self.map.entry(Key::new(key)) {
            Entry::Vacant(entry) => {
                entry.insert(Value::new(value));
                self.size_bytes += key.len() + value.len();
            }
            Entry::Occupied(mut entry) => {
                let old = entry.insert(Value::new(value));
                self.size_bytes = self.size_bytes - old.as_slice().len() + value.len();
            }
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(value) = self.map.remove(&Key::new(key)) {
            self.size_bytes -= key.len() + value.as_slice().len();
        }
    }

    fn range<'a>(&'a self, (start, end): KeyBounds<'_>) -> Range<'a, Key, Value> {
        if is_inverted((start, end)) {
            // `BTreeMap::range` would panic; this is an empty range that it takes.
            return self.map.range(..Key::new(&[]));
        }
        self.map.range((start.map(Key::new), end.map(Key::new)))
    }

    /// Iterates over the entries within `bounds` as handles.
    pub(super) fn handles<'a>(&'a self, bounds: KeyBounds<'_>) -> impl Iterator<Item = (Bytes, Bytes)> + use<'a> {
        Handles::new(self.range(bounds).map(parts))
    }

    /// Iterates over the entries within `bounds` as handles, in descending order of keys.
    pub(super) fn handles_down<'a>(&'a self, bounds: KeyBounds<'_>) -> impl Iterator<Item = (Bytes, Bytes)> + use<'a> {
        Handles::new(self.range(bounds).rev().map(parts))
    }

    /// Calls `f` with the entries within `bounds`, in order, until it breaks.
    pub(super) fn visit(&self, bounds: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = self.range(bounds).try_for_each(|(key, value)| f(key.as_slice(), value.as_slice()));
    }

    /// Returns the entries of a snapshot of any origin. O(n), and O(1) for a snapshot of a store of this kind.
    pub(super) fn of(snapshot: &StateSnapshot) -> Result<Arc<Self>, StateError> {
        let source = Arc::clone(snapshot.source());
        if let Ok(map) = source.into_any().downcast() {
            return Ok(map);
        }
        // A snapshot that nobody has verified may lie about how many entries it has.
        const UNVERIFIED: usize = 1 << 20;
        let mut entries = Vec::with_capacity(snapshot.len().min(UNVERIFIED));
        let mut size_bytes = 0;
        snapshot.source().try_visit(ALL_KEYS, &mut |key, value| {
            size_bytes += key.len() + value.len();
            entries.push((Key::new(key), Value::new(value)));
            ControlFlow::Continue(())
        })?;
        // A sorted vector is what a `BTreeMap` builds itself from in one pass.
        Ok(Arc::new(Self { map: entries.into_iter().collect(), size_bytes }))
    }

    /// Returns about how much memory the entries take.
    pub(super) fn memory_bytes(&self) -> usize {
        // Nodes of a `BTreeMap` have room for 11 entries and are two thirds full on average. Longer keys and values are
        // counted by their lengths.
        self.map.len() * (size_of::<(Key, Value)>() * 3 / 2) + self.size_bytes
    }
}

/// Returns an entry as it lies in the map.
fn parts<'a>((key, value): (&'a Key, &'a Value)) -> (Part<'a>, Part<'a>) {
    let part = |bytes, handle: Option<Bytes>| handle.map_or(Part::Borrowed(bytes), Part::Shared);
    (part(key.as_slice(), key.handle().cloned()), part(value.as_slice(), value.handle()))
}

impl Source for SortedMap {
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
        TryScan::new(TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            |bounds| self.handles(bounds.get()).map(Ok),
            |bounds| self.handles_down(bounds.get()).map(Ok),
        ))
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.visit(bounds, f);
        Ok(())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
