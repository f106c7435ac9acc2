//! [`SortedMap`]: the entries of an [`InMemoryStore`](super::InMemoryStore), and what its snapshots share.

use std::any::Any;
use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};
use std::ops::{self, Bound, ControlFlow};
use std::sync::Arc;
use std::vec;

use bytes::Bytes;

use super::key::{self, Key};
use super::value::{self, Value};
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
        Box::new(Handles { entries: self.range(range), run: Vec::new().into_iter(), shared: Bytes::new(), run_len: 1 })
    }

    fn visit(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = self.range(range).try_for_each(|(key, value)| f(key.as_slice(), value.as_slice()));
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A scan that hands out handles. Keys and values that stand in the map's nodes are gathered a run at a time in one
/// buffer, of which the handles are slices, so that a scan allocates once a run and not twice an entry.
struct Handles<'a> {
    entries: Range<'a, Key, Value>,
    /// What is left of the current run.
    run: vec::IntoIter<(Piece, Piece)>,
    /// The bytes gathered for the current run.
    shared: Bytes,
    /// How many entries the next run takes: few at first, for scans that end early.
    run_len: usize,
}

enum Piece {
    Gathered(ops::Range<usize>),
    Handle(Bytes),
}

const LONGEST_RUN: usize = 64;

impl Handles<'_> {
    fn next_run(&mut self) {
        let mut gathered = Vec::with_capacity(self.run_len * (key::INLINE + value::INLINE));
        let mut gather = |bytes: &[u8]| {
            let start = gathered.len();
            gathered.extend_from_slice(bytes);
            Piece::Gathered(start..gathered.len())
        };
        let run = self.entries.by_ref().take(self.run_len).map(|(key, value)| {
            let key = key.handle().cloned().map_or_else(|| gather(key.as_slice()), Piece::Handle);
            let value = value.handle().map_or_else(|| gather(value.as_slice()), Piece::Handle);
            (key, value)
        });
        self.run = run.collect::<Vec<_>>().into_iter();
        self.shared = gathered.into();
        self.run_len = (self.run_len * 2).min(LONGEST_RUN);
    }
}

impl Iterator for Handles<'_> {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        if self.run.len() == 0 {
            self.next_run();
        }
        let (key, value) = self.run.next()?;
        let handle = |piece| match piece {
            Piece::Gathered(range) => self.shared.slice(range),
            Piece::Handle(handle) => handle,
        };
        Some((handle(key), handle(value)))
    }
}
