//! How to write a store of your own: the ten required methods, one more that pays off, and the kit that checks it.
//!
//! `cargo run --example custom_store`
//!
//! The store is a `BTreeMap` behind an `Arc`. A snapshot shares the map, so it costs O(1). The first write after a
//! snapshot copies the map, unless the snapshot is gone by then. (`HotStore` copies only the parts that change.)

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use opstate::bytes::Bytes;
use opstate::{
    Entries, KeyBounds, KeyRange, Scan, SnapshotSource, StateError, StateSnapshot, StateStore, StateStoreExt, TryScan,
    check_entry_len,
};

/// The contents, which a store shares with its snapshots.
#[derive(Clone, Default)]
struct Contents {
    /// `Bytes` are ordered as the contract asks: byte by byte, unsigned.
    map: BTreeMap<Bytes, Bytes>,
    /// The sum of the lengths of all keys and values. Each write updates it, because `size_bytes` must be O(1).
    size_bytes: usize,
}

impl Contents {
    /// Iterates over the entries within `bounds`. A clone of `Bytes` is a second handle to the same bytes, not a copy.
    fn range<'a>(&'a self, bounds: KeyBounds<'_>) -> impl DoubleEndedIterator<Item = (Bytes, Bytes)> + use<'a> {
        // Callers may pass a start behind the end. That means no entries, but `BTreeMap::range` would panic.
        let entries = (!bounds.is_inverted()).then(|| self.map.range::<[u8], _>(bounds));
        entries.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()))
    }
}

/// A store that copies its map on the first write after a snapshot.
#[derive(Default)]
pub(crate) struct SharedMapStore(Arc<Contents>);

impl StateStore for SharedMapStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.map.get(key).cloned()
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        // Check first: a call that returns an error must change nothing.
        check_entry_len(key, value)?;
        // `make_mut` clones the contents if a snapshot shares them.
        let contents = Arc::make_mut(&mut self.0);
        let old = contents.map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        contents.size_bytes += key.len() + value.len();
        contents.size_bytes -= old.map_or(0, |old| key.len() + old.len());
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        let contents = Arc::make_mut(&mut self.0);
        contents.size_bytes -= contents.map.remove(key).map_or(0, |old| key.len() + old.len());
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
        Box::new(self.scan(prefix..).take_while(move |(key, _)| key.starts_with(prefix)))
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
        // `scan` comes from `StateStoreExt` and calls `entries`.
        Box::new(self.scan(range))
    }

    // This method is provided. It is overridden because the provided body buffers all entries to go down.
    fn entries(&self, bounds: KeyBounds<'_>) -> Scan<'_> {
        Scan::new(self.0.range(bounds))
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes
    }

    fn len(&self) -> usize {
        self.0.map.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        StateSnapshot::from_source(Shared(Arc::clone(&self.0)))
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        self.0 = Arc::new(Contents { map: snapshot.iter().collect(), size_bytes: snapshot.size_bytes() });
    }

    fn clear(&mut self) {
        self.0 = Arc::default();
    }
}

/// The source that a snapshot reads from. Its methods can fail, because stores on disk need that. A map in memory never
/// fails.
struct Shared(Arc<Contents>);

impl SnapshotSource for Shared {
    fn len(&self) -> usize {
        self.0.map.len()
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.map.get(key).cloned())
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(self.0.range(bounds).map(Ok))
    }
}

fn main() -> Result<(), StateError> {
    // In your own crate this line is a test. It panics with a report if the store breaks a rule.
    opstate::conformance::check(SharedMapStore::default);
    println!("SharedMapStore keeps the contract of StateStore.");

    // From here on it is a store like any other.
    let mut store: Box<dyn StateStore> = Box::new(SharedMapStore::default());
    for (airport, minutes) in [("DTW", 12), ("LAS", 3), ("DTW", 30)] {
        store.update(airport.as_bytes(), |late: &mut Option<u32>| *late.get_or_insert(0) += minutes)?;
    }
    for entry in store.snapshot().scan_typed::<u32>(..) {
        let (airport, late) = entry?;
        println!("{}: {late} minutes late in all", airport.escape_ascii());
    }
    Ok(())
}
