//! [`HotStore`]: the fast store.

mod arena;
mod chunk;
mod compare;
mod engine;
mod entry_id;
mod entry_table;
mod epoch;
mod epochs;
mod evacuation_queue;
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
mod reserve;
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
use parts::HashIndex;
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
/// changed in place if its record has room for it and no snapshot sees it. Scans are O(log n) and O(1) an entry. A
/// [range](StateStore::delete_within) is deleted leaf by leaf of the index, at a fraction of a deletion's cost.
///
/// A [`snapshot`](StateStore::snapshot) takes less than 500 bytes, and 8 for each chunk of memory, whatever was taken
/// before. It shares all memory with the store. While it lives, the first write to a shared page of the table or node of
/// the index copies that, at most 4 KiB or a node with its separators. Values are not copied for it. Whoever drops the
/// last clone of a snapshot frees the memory that only it saw. The store keeps some of that for the copies that the next
/// snapshot makes necessary: up to the size of the table and the index and an eighth of its records (see
/// [`spare_bytes`](HotStats::spare_bytes)).
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
/// Memory is that of the entries and about 50 bytes for each; [`stats`](Self::stats) counts all of it. A store of ten
/// small entries takes less than 3 KB. For stores of one or two entries, [`InMemoryStore`](crate::InMemoryStore) takes
/// a fraction of that.
///
/// Every write recovers some memory of deleted and replaced values. That stays below half of the memory of live ones, one
/// chunk (at most 2 MiB, and at most eight times as large as the live ones), and 1 KiB. A value that became shorter keeps
/// its room if that is at most a third more than it needs. Deletions make the indexes smaller, a few entries at a time.
/// They may take up to 70 bytes an entry after most entries of a store are gone.
///
/// Values of up to 512 bytes lie in the store's memory, and [`get`](StateStore::get) copies them. Longer ones are
/// buffers of their own: `get` returns handles to them. [`put_bytes`](StateStore::put_bytes) takes the buffer of such a
/// value without a copy if the handle is the only one, and the buffer was made by a `Vec` or `BytesMut`. It copies any
/// other one. So a value never keeps a larger buffer that it is a slice of.
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
/// A panic in a closure does not harm the store. Neither does one in the destructor of a handle's owner
/// ([`Bytes::from_owner`]), which runs when `put_bytes` has copied the value: that call ends with the panic, and has
/// changed nothing or put the entry.
///
/// More than 2^32 - 64 entries, and more than 2^30 chunks of memory, are a panic that changes nothing.
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
    /// By default they are 448 bytes and 2 MiB, which is also the most. The least is 64 bytes. In between, a new chunk is
    /// a quarter to a half as large as all others together. Where entries are replaced all the time, it is up to eight
    /// times as large as all entries. A store of chunks of 64 bytes takes about four times the memory.
    pub fn chunk_bytes(mut self, first: usize, largest: usize) -> Self {
        let largest = largest.clamp(64, ChunkSizes::MAX);
        self.sizes = ChunkSizes { first: first.clamp(64, largest), largest };
        self
    }

    /// Makes room for so many entries, so that the hash index need not grow until then: 15 bytes for each.
    ///
    /// This is a hint. No more counts than fits in the budget, or 67 million entries. The memory is reserved at once and
    /// first touched when entries come. It is kept when they go, until [`clear`](StateStore::clear) or a restore.
    pub fn capacity(mut self, entries: usize) -> Self {
        self.capacity = entries;
        self
    }

    /// Sets how much memory the store may take, in bytes, that of snapshots included. By default there is no limit.
    ///
    /// A write that would need more fails with [`StateError::OverBudget`], and changes nothing. The memory is that of
    /// [`total_bytes`](HotStats::total_bytes), with what snapshots keep.
    ///
    /// Deleting, restoring, and writing a value that is no longer than the old one never fail for the budget. They may
    /// exceed it: a restore by all that the snapshot has, and the others by the copies that live snapshots make
    /// necessary. For each live snapshot that is at most the size of the store when it was taken. Then new entries are
    /// refused until snapshots are dropped. The indexes grow in steps, of some KiB in small stores and up to 2 MiB in
    /// large ones, by which the budget may be exceeded, too.
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Makes an empty store.
    pub fn build(self) -> HotStore {
        /// An entry takes more in the store, so that no more fit in the budget.
        const SMALLEST_ENTRY: usize = 60;
        let index = HashIndex::with_capacity(self.capacity.min(self.budget / SMALLEST_ENTRY));
        HotStore { engine: StorageEngine::new(self.sizes, index, self.budget) }
    }
}

impl Default for HotStore {
    fn default() -> Self {
        Self::new()
    }
}

impl HotStore {
    /// Makes an empty store. O(1), and less than 800 bytes with the store itself.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Makes an empty store whose hash index has room for so many entries. This is a
    /// [hint](HotStoreBuilder::capacity).
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
        self.engine.put(key, NewValue::taken(&mut value))
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
