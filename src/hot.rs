//! [`HotStore`]: the fast store.

mod arena;
mod chunk;
mod compare;
mod engine;
mod entry_id;
mod entry_table;
mod epoch;
mod epochs;
mod free_list;
mod frozen;
mod hash;
mod hash_index;
mod journal;
mod location;
mod node;
mod parts;
mod prefetch;
mod record;
mod retire_list;
mod scan;
mod sizes;
mod sorted;
mod source;
mod stats;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::bounds::{KeyBounds, half_open};
use crate::error::{StateError, expect_sound};
use crate::limits::{check_entry_len, check_entry_lens};
use crate::scan::Scan;
use crate::snapshot::state_snapshot::StateSnapshot;
use crate::store::{Deleted, StateStore};
use chunk::ChunkSizes;
use engine::StorageEngine;
use scan::RecordScan;
pub use stats::HotStats;
use value::NewValue;

/// A [`StateStore`] with hash-speed reads, ordered scans, and snapshots that take microseconds.
///
/// # Costs
///
/// A point read is O(1) and two cache misses. Through `Box<dyn StateStore>` a random lookup takes less than 500 ns, from
/// ten entries to ten million (on the machine of the README's figures; `cargo bench --bench budget` measures another
/// one). [`get_many`](StateStore::get_many) and [`put_many`](StateStore::put_many) let the misses of a batch overlap.
///
/// Adding and deleting a key is O(log n), because keys are kept in order. Changing the value of a key is O(1). It is
/// changed in place if its record has room for it and no snapshot sees it. Scans are O(log n) and O(1) an entry.
///
/// A [`snapshot`](StateStore::snapshot) shares all memory with the store. While it lives, the first write to a shared
/// page of the table or node of the index copies that, at most 4 KiB or a node with its separators. Values are not
/// copied for it. Whoever drops the last clone of a snapshot frees the memory that only it saw. The store keeps some of
/// that for the copies that the next snapshot makes necessary: up to the size of the table and the index and an eighth
/// of its records (see [`spare_bytes`](HotStats::spare_bytes)).
///
/// While snapshots live, the store notes which entries change, in at most four bytes for each entry. So the cost of
/// [`delta_since`](StateSnapshot::delta_since) the last snapshot is that of the changes.
///
/// [`clear`](StateStore::clear), [`restore`](StateStore::restore) and dropping the store are O(n). A restore keeps the
/// old entries until the new ones are complete. It needs memory for both, if need be beyond the budget; if reading the
/// snapshot panics, the store is as it was.
///
/// # Memory
///
/// Memory is that of the entries and about 50 bytes for each. Every write recovers some memory of deleted and replaced
/// values, which stays below half of that of the live ones, and some KiB. A value that became shorter keeps its room if
/// that is at most a third more than it needs.
///
/// Values of up to 512 bytes lie in the store's memory, and [`get`](StateStore::get) copies them. Longer ones are
/// handles of their own: `get` clones them, and [`put_bytes`](StateStore::put_bytes) takes them without a copy.
///
/// # Hashing
///
/// Each store hashes keys with random keys of its own, so that nobody can choose keys that collide. Nothing that leaves
/// the store depends on them.
///
/// # Out of memory
///
/// With a [budget](HotStoreBuilder::memory_budget) a write that needs too much memory is an error, and changes nothing.
/// If the system has no memory left, or the process reaches a limit (`ulimit -v`, a container's), the failed allocation
/// aborts the process, as is Rust's default. The store is lost then; images that were written before are not. So set a
/// budget some way below the limit, or take checkpoints.
///
/// An allocation failure may unwind instead, if a nightly compiler's `alloc_error_hook` panics. Then a call has changed
/// nothing or all that it was to change ([`put_many`](StateStore::put_many) and
/// [`delete_within`](StateStore::delete_within): all of some entries), and the store goes on.
///
/// # Panics
///
/// A panic in a closure, or in the destructor of a value ([`Bytes::from_owner`]), does not harm the store. A
/// destructor's panic is caught where it happens, in the middle of the store's work; the panic hook reports it.
///
/// # Example
///
/// ```
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// store.put(b"flights/DTW", b"3")?;
/// let before = store.snapshot();
/// store.put(b"flights/DTW", b"4")?;
/// assert_eq!(store.get(b"flights/DTW").as_deref(), Some(&b"4"[..]));
/// assert_eq!(before.get(b"flights/DTW").as_deref(), Some(&b"3"[..]));
/// # Ok::<(), opstate::StateError>(())
/// ```
pub struct HotStore {
    engine: StorageEngine,
}

/// Settings of a [`HotStore`].
///
/// ```
/// use opstate::{HotStore, StateError, StateStore};
///
/// let mut store = HotStore::builder().memory_budget(1 << 20).build();
/// store.put(b"small", b"value")?;
/// let error = store.put(b"large", &vec![0; 2 << 20]).unwrap_err();
/// assert!(matches!(error, StateError::OverBudget { budget: 1_048_576, .. }));
/// # Ok::<(), StateError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HotStoreBuilder {
    sizes: ChunkSizes,
    capacity: usize,
    budget: usize,
}

impl HotStoreBuilder {
    /// Sets the sizes of the first and of the largest chunks of memory, in bytes.
    ///
    /// By default they are 4 KiB and 2 MiB, which is also the most. In between, a new chunk is a quarter to a half as
    /// large as all others together. Where entries are replaced all the time, it is twice as large as the last one.
    pub fn chunk_bytes(mut self, first: usize, largest: usize) -> Self {
        let largest = largest.clamp(64, ChunkSizes::MAX);
        self.sizes = ChunkSizes { first: first.clamp(64, largest), largest };
        self
    }

    /// Makes room for so many entries, so that the hash index need not grow until then: 15 bytes for each, at once.
    pub fn capacity(mut self, entries: usize) -> Self {
        self.capacity = entries;
        self
    }

    /// Sets how much memory the store may take, in bytes, that of snapshots included. By default there is no limit.
    ///
    /// A write that would need more fails with [`StateError::OverBudget`]. Deleting, restoring, and writing a value that
    /// is no longer than the old one never fail for it. The indexes grow in steps of some KiB, by which the budget may be
    /// exceeded.
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Makes an empty store.
    pub fn build(self) -> HotStore {
        HotStore { engine: StorageEngine::new(self.sizes, self.capacity, self.budget) }
    }
}

impl Default for HotStore {
    fn default() -> Self {
        Self::new()
    }
}

impl HotStore {
    /// Makes an empty store. Computes in O(1) and allocates next to nothing.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Makes an empty store whose hash index has room for so many entries.
    pub fn with_capacity(entries: usize) -> Self {
        Self::builder().capacity(entries).build()
    }

    /// Returns the default settings, to be changed and built.
    pub fn builder() -> HotStoreBuilder {
        let sizes = ChunkSizes { first: sizes::FIRST_CHUNK, largest: sizes::LARGEST_CHUNK };
        HotStoreBuilder { sizes, capacity: 0, budget: usize::MAX }
    }

    /// Returns counts of the store's contents and memory. O(1).
    pub fn stats(&self) -> HotStats {
        self.engine.stats()
    }

    /// Gives freed snapshot memory, which is kept for the next snapshot's copies, to the allocator.
    ///
    /// Call it when no more snapshots are to be taken. O(n), n being the number of blocks.
    pub fn release_spare_memory(&mut self) {
        self.engine.release_free();
    }
}

/// Shows the counts, and none of the contents.
impl fmt::Debug for HotStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotStore")
            .field("len", &self.len())
            .field("size_bytes", &self.size_bytes())
            .field("memory_bytes", &self.memory_bytes())
            .finish_non_exhaustive()
    }
}

impl StateStore for HotStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.engine.find(key).map(|record| record.value().to_bytes())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        check_entry_len(key, value)?;
        self.engine.put(key, NewValue::borrowed(value))
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.engine.remove(key, |_| ());
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        let records = self.engine.records();
        Box::new(RecordScan::new(records, self.engine.sorted().prefix(records, prefix)).handles())
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        Box::new(self.engine.range(half_open(range)).handles())
    }

    fn size_bytes(&self) -> usize {
        self.engine.size_bytes()
    }

    fn len(&self) -> usize {
        self.engine.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        StateSnapshot::of(Arc::new(self.engine.freeze()))
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        expect_sound(self.try_restore(snapshot));
    }

    fn clear(&mut self) {
        self.engine.clear();
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.engine.find(key).is_some()
    }

    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        self.engine.find(key).map(|record| f(record.value().as_slice())).is_some()
    }

    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        Ok(self.engine.modify(key, f))
    }

    fn put_bytes(&mut self, key: &[u8], mut value: Bytes) -> Result<(), StateError> {
        check_entry_len(key, &value)?;
        self.engine.put(key, NewValue::shared(&mut value))
    }

    fn take(&mut self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.engine.remove(key, |record| record.value().to_bytes()))
    }

    fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
        let (count, is_done) = self.engine.remove_within(bounds, limit);
        Ok(Deleted { count, is_done })
    }

    fn entries(&self, bounds: KeyBounds<'_>) -> Scan<'_> {
        Scan::new(scan::entries(self.engine.sorted(), self.engine.records(), bounds))
    }

    fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
        self.engine.restore(&snapshot)
    }

    fn memory_bytes(&self) -> usize {
        self.stats().total_bytes()
    }

    fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = self.engine.range(range).try_for_each(|record| f(record.key(), record.value().as_slice()));
    }

    fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        out.clear();
        out.reserve(keys.len());
        self.engine.get_many(keys, out);
    }

    fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        check_entry_lens(entries)?;
        self.engine.put_many(entries)
    }
}
