//! [`InMemoryStore`]: the reference store, with which all tests compare other stores.

mod key;
mod map;
mod value;

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::bounds::{KeyBounds, half_open, with_prefix_bounds};
use crate::error::{StateError, expect_sound};
use crate::limits::check_entry_len;
use crate::scan::Scan;
use crate::snapshot::state_snapshot::StateSnapshot;
use crate::source::SnapshotSource as _;
use crate::store::StateStore;
use map::SortedMap;
use value::Value;

/// A [`StateStore`] on a `BTreeMap`: small, plain, entirely safe code.
///
/// This is the reference for the behaviour of stores, and enough for state of up to some hundred thousand entries.
///
/// # Costs
///
/// Reads and writes are O(log n), scans O(log n) and O(1) an entry. Keys of up to 15 bytes and values of up to 22 are
/// stored in the map's nodes. A longer value costs one more cache miss. A longer key costs two, and two allocations for
/// a lookup.
///
/// A random lookup stays under 500 ns up to 300,000 entries with short keys and values, and up to 50,000 with longer
/// ones. (All figures are from the machine of the README.) At a million entries it takes 700 ns, and 1,400 in a plain
/// `BTreeMap`. The limit is the map's own: a `BTreeMap<u128, u64>`, without keys or values of any length, takes 490 ns
/// at a million. For more entries there is [`HotStore`](crate::HotStore).
///
/// A [`snapshot`](StateStore::snapshot) is O(1) and shares the map; **the first write while the snapshot is alive
/// copies the map**, in O(n). Without a snapshot, only `modify` copies: a long value that a handle shares. Restoring a
/// snapshot of an `InMemoryStore` shares its map; restoring any other is O(n), as is dropping the old contents.
///
/// Handles to long keys and values share them with the store. A scan collects short ones in buffers of at most 64
/// entries, and a handle keeps its buffer alive.
///
/// ```
/// use opstate::{InMemoryStore, StateStore};
///
/// let mut store = InMemoryStore::new();
/// store.put(b"flights/DTW", b"3")?;
/// store.put(b"flights/LAS", b"5")?;
/// assert_eq!(store.get(b"flights/LAS").as_deref(), Some(&b"5"[..]));
/// assert_eq!(store.prefix_scan(b"flights/").count(), 2);
/// # Ok::<(), opstate::StateError>(())
/// ```
#[derive(Default)]
pub struct InMemoryStore {
    /// The map, shared with the snapshots taken since the last write.
    map: Arc<SortedMap>,
}

impl InMemoryStore {
    /// Creates an empty store. O(1).
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns `true` if the map is shared and `key` is absent. Then a change of `key` need not copy the map.
    fn is_shared_without(&self, key: &[u8]) -> bool {
        Arc::strong_count(&self.map) > 1 && self.map.find(key).is_none()
    }
}

/// Shows the number and size of the entries, but no contents.
impl fmt::Debug for InMemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryStore")
            .field("len", &self.len())
            .field("size_bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}

impl StateStore for InMemoryStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.find(key).map(Value::to_bytes)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        check_entry_len(key, value)?;
        Arc::make_mut(&mut self.map).insert(key, value);
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        if !self.is_shared_without(key) {
            Arc::make_mut(&mut self.map).remove(key);
        }
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        Box::new(with_prefix_bounds(prefix, |bounds| self.map.handles(bounds)))
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        Box::new(self.map.handles(half_open(range)))
    }

    fn size_bytes(&self) -> usize {
        self.map.size_bytes()
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        StateSnapshot::of(self.map.clone())
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        expect_sound(self.try_restore(snapshot));
    }

    fn clear(&mut self) {
        self.map = Arc::default();
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.map.find(key).is_some()
    }

    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        self.map.find(key).map(Value::as_slice).map(f).is_some()
    }

    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        if self.is_shared_without(key) {
            return Ok(false);
        }
        Ok(Arc::make_mut(&mut self.map).find_mut(key).map(Value::make_mut).map(f).is_some())
    }

    fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        self.map.visit(range, f);
    }

    fn entries(&self, bounds: KeyBounds<'_>) -> Scan<'_> {
        Scan::new(self.map.entries(bounds))
    }

    fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
        self.map = SortedMap::of(&snapshot)?;
        Ok(())
    }

    /// Returns an estimate of the memory that the store uses, because a `BTreeMap` does not tell its own.
    ///
    /// Keys of more than 15 bytes and values of more than 22 are counted to within 24 bytes for each key. For the map's
    /// nodes 72 bytes an entry are assumed; they take 50 to 120. Snapshots and handles are not counted.
    fn memory_bytes(&self) -> usize {
        self.map.memory_bytes()
    }
}
