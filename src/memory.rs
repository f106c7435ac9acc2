//! [`InMemoryStore`]: the reference store, and the oracle of every test.

mod key;
mod map;
mod value;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::snapshot::{Source, prefix_scan};
use crate::store::{KeyBounds, half_open};
use crate::{StateError, StateSnapshot, StateStore, check_entry_len};
use map::SortedMap;
use value::Value;

/// A [`StateStore`] on a `BTreeMap`: small, plain, entirely safe code.
///
/// It is the reference for what a store does, and enough for state of up to some hundred thousand entries.
///
/// # Costs
///
/// Reads and writes are O(log n), scans O(log n) and O(1) an entry. Keys of up to 15 bytes and values of up to 22 stand
/// in the map's nodes; a longer value costs a cache miss more, and a longer key two, and two allocations for a lookup.
///
/// A random lookup stays under 500 ns up to 300,000 entries with such keys and values, and up to 50,000 with longer ones
/// (on the machine of the README's figures; at a million it takes 700 ns, and 1,400 in a plain `BTreeMap`). The limit is
/// the map's own: a `BTreeMap<u128, u64>`, with neither keys nor values of any length, takes 490 ns at a million. For more
/// entries there is [`HotStore`](crate::HotStore).
///
/// A [`snapshot`](StateStore::snapshot) is O(1) and shares the map; **the first write while the snapshot is alive copies
/// the map**, in O(n). Without a snapshot alive a write copies nothing but, in `modify`, a long value that a handle shares.
/// Restoring a snapshot of an `InMemoryStore` shares likewise, restoring any other is O(n); so is dropping what was there.
///
/// Handles to long keys and values share them with the store. A scan gathers short ones in buffers of at most 64 entries,
/// and a handle that is kept keeps its buffer.
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
    /// Shared with the snapshots taken since the last write.
    map: Arc<SortedMap>,
}

impl InMemoryStore {
    /// Makes an empty store. Computes in O(1).
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a change of `key` would find nothing to change, asked where making sure costs less than copying the map.
    fn is_shared_without(&self, key: &[u8]) -> bool {
        Arc::strong_count(&self.map) > 1 && self.map.find(key).is_none()
    }
}

impl StateStore for InMemoryStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.get(key)
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
        prefix_scan(&*self.map, prefix)
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        self.map.scan(half_open(range))
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
        self.map = SortedMap::of(&snapshot);
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
}
