//! [`SortedMap`]: the entries of an [`InMemoryStore`](super::InMemoryStore), and what its snapshots share.

use std::any::Any;
use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::key::Key;
use super::value::Value;
use crate::handles::{Handles, Part};
use crate::snapshot::Source;
use crate::store::{Entries, KeyBounds, is_inverted};
use crate::{MAX_KEY_LEN, StateSnapshot};

/// Invariant: `size_bytes` is the sum of the lengths of all keys and values in `map`.
#[derive(Clone, Default)]
pub(super) struct SortedMap {
    map: BTreeMap<Key, Value>,
    size_bytes: usize,
}

impl SortedMap {
    pub(super) fn find(&self, key: &[u8]) -> Option<&Value> {
        // Else a key that cannot be there would be copied to find that out.
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

    fn range(&self, (start, end): KeyBounds<'_>) -> Range<'_, Key, Value> {
        if is_inverted((start, end)) {
            // `BTreeMap::range` would panic; this is an empty range that it takes.
            return self.map.range(..Key::new(&[]));
        }
        self.map.range((start.map(Key::new), end.map(Key::new)))
    }

    /// The entries of a snapshot of any origin. O(n), and O(1) for a snapshot of a store of this kind.
    pub(super) fn of(snapshot: &StateSnapshot) -> Arc<Self> {
        let source = Arc::clone(snapshot.source());
        if let Ok(map) = source.into_any().downcast() {
            return map;
        }
        let mut entries = Vec::with_capacity(snapshot.len());
        snapshot.visit_range((Bound::Unbounded, Bound::Unbounded), |key, value| {
            entries.push((Key::new(key), Value::new(value)));
            ControlFlow::Continue(())
        });
        // A sorted vector is what a `BTreeMap` builds itself from in one pass.
        Arc::new(Self { map: entries.into_iter().collect(), size_bytes: snapshot.size_bytes() })
    }
}

impl Source for SortedMap {
    fn len(&self) -> usize {
        self.map.len()
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.find(key).map(Value::to_bytes)
    }

    fn scan<'a>(&'a self, range: KeyBounds<'a>) -> Entries<'a> {
        let part = |bytes, handle: Option<Bytes>| handle.map_or(Part::Borrowed(bytes), Part::Shared);
        let entries = self.range(range).map(move |(key, value)| {
            (part(key.as_slice(), key.handle().cloned()), part(value.as_slice(), value.handle()))
        });
        Box::new(Handles::new(entries))
    }

    fn visit(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = self.range(range).try_for_each(|(key, value)| f(key.as_slice(), value.as_slice()));
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
