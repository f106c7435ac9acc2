//! [`HotStore`]: the fast store. It is the composition of four parts, and the only one that knows all of them.
//!
//! # Design
//!
//! ```text
//!                 put/get/delete/scan/snapshot
//!                            │
//!                        HotStore
//!      ┌───────────┬─────────┴──┬─────────────┐
//!  HashIndex   EntryTable  SortedIndex      Arena
//!  hash ->     id ->       ids by key       records in chunks
//!  location    location    (B+tree)
//!      │           └────────────┴─────────────┘
//!  the writer's own         shared with snapshots, by `Versions`
//! ```
//!
//! A point read is two cache misses: a bucket of the hash index and the record. An update leaves the sorted index alone,
//! because that holds ids; it touches the table only if the record moves. A snapshot is the views of three parts and a
//! claim that keeps what they see; the writer goes on and copies what it first touches.
//!
//! # Invariants across the parts
//!
//! 1. Every entry has one id, one live record, one slot in the hash index and one place in the sorted index. The table
//!    gives its record's location, and so does the hash index under the hash of its key; the record holds the id.
//! 2. `size_bytes` is the sum of the lengths of all keys and values, `large_bytes` that of the large values.
//! 3. Whatever gives an entry a record, moves that or removes it, notes it in the journal.

mod arena;
mod compare;
mod entry_table;
mod frozen;
mod hash_index;
mod journal;
mod scan;
mod sorted;
mod spare;
mod versions;

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::mem;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;

use crate::aligned::{aligned, aligned_copy};
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds, half_open};
use crate::handles::Handles;
use crate::scan::TwoEnds;
use crate::snapshot::expect_sound;
use crate::store::check_entry_lens;
use crate::{Deleted, StateError, StateSnapshot, StateStore, check_entry_len};
use arena::{Arena, ArenaView, ChunkSizes, Location, NewValue, Record};
use frozen::{Frozen, FrozenEntries, parts};
use journal::{Journal, NOWHERE, Note};
use scan::{Records, Scan};
use versions::Versions;

/// A value of more bytes than this is a handle of its own, and `get` clones it; a shorter one lies in the record, and `get`
/// copies it.
const LARGE_VALUE: usize = 512;

/// For so many entries a restored hash index is sized beforehand. An image that nobody has verified may lie about
/// how many it has; beyond this the index grows as they come.
const UNVERIFIED: usize = 4 << 20;

/// One in so many bytes of the memory of records may be kept for new ones when it is no longer used.
const SPARE_CHUNKS: usize = 8;

/// How many lookups of a batch, or records that are moved, are under way at once.
const BATCH: usize = 16;

/// How large the parts' own parts are: in this crate's unit tests tiny, so that they cross every boundary all the time.
mod sizes {
    pub(super) const BUCKETS: usize = if cfg!(test) { 2 } else { 64 };
    pub(super) const PAGE: usize = if cfg!(test) { 4 } else { 64 };
    pub(super) const BRANCH: usize = if cfg!(test) { 2 } else { 512 };
    pub(super) const LEAF: usize = if cfg!(test) { 4 } else { 64 };
    pub(super) const INNER: usize = if cfg!(test) { 3 } else { 64 };
    pub(super) const FIRST_CHUNK: usize = if cfg!(test) { 64 } else { 4 << 10 };
    pub(super) const LARGEST_CHUNK: usize = if cfg!(test) { 512 } else { super::ChunkSizes::MOST };
    pub(super) const JOURNAL: usize = if cfg!(test) { 20 } else { 1 << 10 };
}
type HashIndex = hash_index::HashIndex<{ sizes::BUCKETS }>;
type EntryTable = entry_table::EntryTable<{ sizes::PAGE }, { sizes::BRANCH }>;
type EntryView = entry_table::EntryView<{ sizes::PAGE }, { sizes::BRANCH }>;
type SortedIndex = sorted::SortedIndex<{ sizes::LEAF }, { sizes::INNER }>;
type SortedView = sorted::SortedView<{ sizes::LEAF }, { sizes::INNER }>;
type Ids<'a, R> = sorted::Ids<'a, R, { sizes::LEAF }, { sizes::INNER }>;
type IdsDown<'a, R> = sorted::IdsDown<'a, R, { sizes::LEAF }, { sizes::INNER }>;

/// Asks the processor to fetch the cache line of an address. It is a hint: any address will do.
#[inline]
fn prefetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[allow(
        unsafe_code,
        reason = "the intrinsic is declared unsafe, and does nothing with an address that is not mapped"
    )]
    // SAFETY: a prefetch neither reads nor faults; SSE is part of the target.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// Asks the processor to fetch all cache lines of `bytes` from `start` on.
#[inline]
fn prefetch_all(start: *const u8, bytes: usize) {
    (0..bytes).step_by(64).for_each(|at| prefetch(start.wrapping_add(at)));
}

/// A [`StateStore`] with hash-speed reads, order, and snapshots that cost microseconds.
///
/// # Costs
///
/// A point read is O(1) and two cache misses: through `Box<dyn StateStore>` a random lookup takes less than 500 ns, from ten
/// entries to ten million (on the machine of the README's figures; `cargo bench --bench budget` tells for another one).
/// [`get_many`](StateStore::get_many) and [`put_many`](StateStore::put_many) let the misses of a batch overlap. Writing a new
/// key and deleting one are O(log n), for the order; changing the value of a key is O(1), in place where the record
/// has room for it and no snapshot sees it. Scans are O(log n) and O(1) an entry.
///
/// A [`snapshot`](StateStore::snapshot) takes microseconds, for it shares all memory with the store. While it lives, the
/// first write to a part of the store that it shares copies that part, at most 4 KiB of the table or a node of the order
/// (which holds separators of keys as long as those need to be); values are never copied for it, but written anew. What a
/// snapshot alone sees is given back by whoever drops its last clone: to the store, which keeps it for the copies that the
/// next snapshot makes necessary, up to the size of the table and the order and an eighth of its records
/// ([`spare_bytes`](HotStats::spare_bytes)), and beyond that to the allocator.
///
/// While snapshots live, the store notes which entries get another record, in at most four bytes for each entry, so that
/// [`delta_since`](StateSnapshot::delta_since) the last snapshot costs what changed.
///
/// Values of up to 512 bytes lie in the store's memory, and [`get`](StateStore::get) copies them; longer ones are handles
/// of their own, which `get` clones and [`put_bytes`](StateStore::put_bytes) takes without a copy.
///
/// Memory is that of the entries and about 50 bytes for each. What deleted and replaced values leave behind is recovered a
/// few records at a write, so that it stays below half of what is live, and some KiB. A value that became shorter keeps the
/// room it had while that is at most a third more than it needs, for when it becomes longer again.
///
/// [`clear`](StateStore::clear), [`restore`](StateStore::restore) and dropping the store are O(n). What was in the store is
/// freed when what is restored is complete: until then there is memory for both, beyond the budget if need be, and if reading
/// the snapshot panics the store is as it was.
///
/// Keys are hashed with random keys of each store's own, so that nobody can choose keys that collide. Nothing that leaves
/// the store depends on them.
///
/// # Out of memory
///
/// With a [budget](HotStoreBuilder::memory_budget) a write that needs too much is an error, and changes nothing. Where the
/// system has no memory left, or a limit of the process is reached (`ulimit -v`, a container's), there is no error: an
/// allocation that fails ends the process by an abort, as is Rust's default. Nothing of a store outlives that, but images
/// that were written before do. So set a budget some way below the limit, or have checkpoints.
///
/// Where such an allocation unwinds, as one does under a nightly compiler's `alloc_error_hook` that panics, a call has
/// changed nothing or all that it was to change ([`put_many`](StateStore::put_many) and
/// [`delete_within`](StateStore::delete_within) that of some entries), and the store goes on.
///
/// # Panics
///
/// Panics do not harm a store: not one of a closure, nor one of a destructor that came with a value ([`Bytes::from_owner`]).
/// The latter ends where it happens, for the store is in the middle of its work; the panic hook tells of it.
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
    hasher: RandomState,
    index: HashIndex,
    sorted: SortedIndex,
    records: Live,
    versions: Versions,
    /// A cell, because a snapshot is taken through a shared reference.
    journal: RefCell<Journal>,
    size_bytes: usize,
    large_bytes: usize,
    budget: usize,
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
    /// Sets how large the first and the largest chunks of memory are, in bytes: by default 4 KiB and 2 MiB, which is also
    /// the most. In between, a new chunk is a quarter to a half as large as those that are there together, or twice as large
    /// as the last one where entries are replaced all the time.
    pub fn chunk_bytes(mut self, first: usize, largest: usize) -> Self {
        let largest = largest.clamp(64, ChunkSizes::MOST);
        self.sizes = ChunkSizes { first: first.clamp(64, largest), largest };
        self
    }

    /// Makes room for so many entries, so that the hash index need not grow until then: 15 bytes for each, at once.
    pub fn capacity(mut self, entries: usize) -> Self {
        self.capacity = entries;
        self
    }

    /// Sets how much memory the store may take, in bytes, what it keeps for snapshots included; by default any amount.
    ///
    /// A write that would add to the store is refused with [`StateError::OverBudget`] when it would need more. Deleting,
    /// writing a value that is no longer than the one it replaces, and restoring are never refused. The indexes grow in
    /// steps of some KiB, by which the budget may be exceeded.
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Makes an empty store.
    pub fn build(self) -> HotStore {
        let Self { sizes, capacity, budget } = self;
        HotStore {
            hasher: RandomState::new(),
            index: HashIndex::with_capacity(capacity),
            sorted: SortedIndex::new(),
            records: Live { table: EntryTable::new(), arena: Arena::new(sizes) },
            versions: Versions::new(),
            journal: RefCell::default(),
            size_bytes: 0,
            large_bytes: 0,
            budget,
        }
    }
}

/// Contents and memory of a [`HotStore`]: counts, and bytes for all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotStats {
    /// The number of entries.
    pub entries: usize,
    /// The records of entries: keys, values that are not large, headers, and room left over where a value became shorter.
    pub live_bytes: usize,
    /// Memory of deleted and replaced records that is not yet reused.
    pub dead_bytes: usize,
    /// The values of more than 512 bytes.
    pub large_value_bytes: usize,
    /// The hash index, the table and the sorted index.
    pub index_bytes: usize,
    /// The number of chunks that records lie in.
    pub chunks: usize,
    /// The chunks, filled or not.
    pub chunk_bytes: usize,
    /// The notes of which entries changed since the snapshots that are alive, and room for some more.
    pub journal_bytes: usize,
    /// Memory that only snapshots see.
    pub pinned_bytes: usize,
    /// Freed snapshot memory, kept for the copies that the next snapshot makes necessary: at most `index_bytes` and an
    /// eighth of `chunk_bytes`, within the budget. Where a store shrank, what is beyond that goes little by little as
    /// others are taken and dropped.
    pub spare_bytes: usize,
    /// The number of live snapshots, clones not counted.
    pub snapshots: usize,
}

impl HotStats {
    /// Returns all memory that the store takes.
    pub fn total_bytes(&self) -> usize {
        let Self { chunk_bytes, large_value_bytes, index_bytes, journal_bytes, pinned_bytes, spare_bytes, .. } = self;
        chunk_bytes + large_value_bytes + index_bytes + journal_bytes + pinned_bytes + spare_bytes
    }
}

/// The records by id, as the writer has them.
struct Live {
    table: EntryTable,
    arena: Arena,
}

impl Records for Live {
    #[inline]
    fn table(&self) -> &EntryView {
        self.table.view()
    }

    #[inline]
    fn arena(&self) -> &ArenaView {
        self.arena.view()
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

    /// Makes an empty store with room for so many entries in its hash index.
    pub fn with_capacity(entries: usize) -> Self {
        Self::builder().capacity(entries).build()
    }

    /// Returns the default settings, to be changed and built.
    pub fn builder() -> HotStoreBuilder {
        let sizes = ChunkSizes { first: sizes::FIRST_CHUNK, largest: sizes::LARGEST_CHUNK };
        HotStoreBuilder { sizes, capacity: 0, budget: usize::MAX }
    }

    /// Returns what the store holds and takes. O(1).
    pub fn stats(&self) -> HotStats {
        let Live { table, arena } = &self.records;
        HotStats {
            entries: self.len(),
            live_bytes: arena.live_bytes(),
            dead_bytes: arena.dead_bytes(),
            large_value_bytes: self.large_bytes,
            index_bytes: self.index.allocated_bytes() + table.allocated_bytes() + self.sorted.allocated_bytes(),
            chunks: arena.chunks(),
            chunk_bytes: arena.allocated_bytes(),
            journal_bytes: self.journal.borrow().allocated_bytes(),
            pinned_bytes: self.versions.pinned_bytes(),
            spare_bytes: self.versions.spare_bytes(),
            snapshots: self.versions.live(),
        }
    }

    /// Gives what is kept for the next snapshot's copies to the allocator. A store that no more snapshots are taken of need
    /// not have it. O(what is kept).
    pub fn release_spare_memory(&mut self) {
        self.versions.stop_sparing();
    }

    /// Fails if the budget does not allow for an entry with this key and value, which may replace the one at `old`.
    fn check_budget(&self, key: &[u8], value: &[u8], old: Option<Location>) -> Result<(), StateError> {
        let arena = &self.records.arena;
        let is_free = |old| {
            value.len() <= arena.record(old).value_len()
                || large(value.len()) == 0 && arena.fits(&self.versions, old, value.len()).is_some()
        };
        if self.budget == usize::MAX || old.is_some_and(is_free) {
            return Ok(());
        }
        /// About how many bytes an entry takes in the three indexes.
        const INDEXED: usize = 40;
        let in_record = if value.len() > LARGE_VALUE { 0 } else { value.len() };
        let indexed = if old.is_none() { INDEXED } else { 0 };
        let needed = arena.growth(key.len(), in_record) + large(value.len()) + indexed;
        if needed == 0 {
            return Ok(());
        }
        let budget = self.budget;
        let excess = |used: usize| used.saturating_add(needed).saturating_sub(budget);
        let mut used = self.stats().total_bytes();
        if excess(used) > 0 {
            self.versions.free_spare(excess(used));
            used = self.stats().total_bytes();
        }
        if excess(used) > 0 {
            return Err(StateError::OverBudget { budget, used, needed });
        }
        Ok(())
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        hash_key(&self.hasher, key)
    }

    #[inline]
    fn locate(&self, hash: u64, key: &[u8]) -> Option<Location> {
        self.index.find(hash, |location| self.records.arena.record(location).has_key(key))
    }

    #[inline]
    fn find(&self, key: &[u8]) -> Option<Record<'_>> {
        self.find_hashed(self.hash(key), key)
    }

    #[inline]
    fn find_hashed(&self, hash: u64, key: &[u8]) -> Option<Record<'_>> {
        self.locate(hash, key).map(|location| self.records.arena.record(location))
    }

    /// The hashes of at most [`BATCH`] keys, and the first location that each can have, whose record is on its way into the
    /// cache.
    #[inline]
    fn look_ahead<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> ([u64; BATCH], [Option<Location>; BATCH]) {
        let mut hashes = [0; BATCH];
        let mut count = 0;
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.hash(key);
            self.index.prefetch(*hash);
            count += 1;
        }
        let mut candidates = [None; BATCH];
        for (candidate, &hash) in candidates.iter_mut().zip(&hashes[..count]) {
            *candidate = self.index.first_candidate(hash);
            if let Some(location) = *candidate {
                prefetch(self.records.address(location));
            }
        }
        (hashes, candidates)
    }

    /// Puts a value that may come as a handle.
    fn write(&mut self, key: &[u8], value: &[u8], handle: Option<Bytes>) -> Result<(), StateError> {
        check_entry_len(key, value)?;
        self.write_hashed(self.hash(key), key, value, handle)
    }

    /// Puts an entry that is not too long.
    #[inline]
    fn write_hashed(&mut self, hash: u64, key: &[u8], value: &[u8], handle: Option<Bytes>) -> Result<(), StateError> {
        let found = self.locate(hash, key);
        self.check_budget(key, value, found)?;
        match found {
            Some(location) => self.overwrite(hash, location, key, value, handle),
            None => self.add_entry(hash, key, value, handle),
        }
        self.compact(key.len() + value.len());
        Ok(())
    }

    /// Replaces the record of an entry.
    fn overwrite(&mut self, hash: u64, location: Location, key: &[u8], value: &[u8], handle: Option<Bytes>) {
        let Self { index, records: Live { table, arena }, versions, journal, .. } = self;
        let record = arena.record(location);
        let (id, old_len) = (record.id(), record.value_len());
        let in_place = match new_value(value, handle) {
            NewValue::Small(value) if arena.rewrite(versions, location, key, value) => Ok(()),
            NewValue::Large(value) => arena.replace_large(versions, location, value).map_err(NewValue::Large),
            small => Err(small),
        };
        if let Err(new) = in_place {
            // Allocations come first, so that nothing has changed where one fails.
            let slot = table.location_mut(versions, id);
            let page = journal.get_mut().page(versions);
            let moved = arena.append(versions, id, key, new);
            page.note(Note { id, old: location, new: moved });
            *slot = moved;
            index.replace(hash, location, moved);
            arena.kill(versions, location);
        }
        self.size_bytes = self.size_bytes - old_len + value.len();
        self.large_bytes = self.large_bytes - large(old_len) + large(value.len());
    }

    /// Adds an entry whose key is not there.
    fn add_entry(&mut self, hash: u64, key: &[u8], value: &[u8], handle: Option<Bytes>) {
        let Self { hasher, index, sorted, records, versions, journal, .. } = self;
        let id = records.table.reserve(versions).expect(TOO_MANY);
        let page = journal.get_mut().page(versions);
        let location = records.arena.append(versions, id, key, new_value(value, handle));
        let mut added = Added { index, records, versions, hash, location, is_indexed: false };
        let Live { arena, .. } = &*added.records;
        added.index.insert(hash, location, |location| hash_key(hasher, arena.record(location).key()));
        added.is_indexed = true;
        sorted.insert(versions, &*added.records, key, id);
        mem::forget(added);
        // From here on nothing fails.
        page.note(Note { id, old: NOWHERE, new: location });
        self.records.table.insert(&self.versions, location);
        self.size_bytes += key.len() + value.len();
        self.large_bytes += large(value.len());
    }

    fn add_to_index(&mut self, (hash, location): (u64, Location)) {
        let Self { hasher, index, records, .. } = self;
        index.insert(hash, location, |location| hash_key(hasher, records.arena.record(location).key()));
    }

    /// Removes the entry whose record is at `location`.
    fn remove_entry(&mut self, hash: u64, location: Location, key: &[u8]) {
        let Self { index, sorted, records, versions, journal, .. } = self;
        let record = records.arena.record(location);
        let (id, value_len) = (record.id(), record.value_len());
        // Allocations come first, so that nothing has changed where one fails.
        records.table.location_mut(versions, id);
        let page = journal.get_mut().page(versions);
        sorted.remove(versions, records, key, id);
        page.note(Note { id, old: location, new: NOWHERE });
        index.remove(hash, location);
        records.table.remove(versions, id);
        records.arena.kill(versions, location);
        self.size_bytes -= key.len() + value_len;
        self.large_bytes -= large(value_len);
    }

    /// Empties a mostly dead chunk a little further: some records for a write, and more for a long one.
    fn compact(&mut self, written: usize) {
        if !self.records.arena.wants_emptying() {
            return;
        }
        let Self { hasher, index, records: Live { table, arena }, versions, journal, .. } = self;
        let mut budget = 256 + 4 * written;
        let Some(mut next) = arena.emptied_from() else { return };
        while budget > 0 {
            // The table tells if a record is live, and moving the record changes its place there, in a copy of the page
            // where a snapshot sees that, and a bucket. All are cache misses, which overlap for as many records as are taken
            // here together.
            let mut batch = [(0, 0, 0); BATCH];
            let mut count = 0;
            while count < BATCH && budget > 0 {
                let Some((record, following)) = arena.next_to_empty(next) else { break };
                let id = record.id();
                prefetch(table.view().address(id));
                batch[count] = (next, id, 0);
                count += 1;
                budget = budget.saturating_sub(record.len());
                next = following;
            }
            if count == 0 {
                return arena.free_emptied(versions);
            }
            let copies = versions.newest_live() > 0;
            let mut live = 0;
            for at in 0..count {
                let (location, id, _) = batch[at];
                if table.is_at(id, location) {
                    let hash = hash_key(hasher, arena.record(location).key());
                    index.prefetch(hash);
                    if copies {
                        table.view().prefetch_page(id);
                    }
                    batch[live] = (location, id, hash);
                    live += 1;
                }
            }
            for &(location, id, hash) in &batch[..live] {
                // Allocations come first. Where one fails, the records before it are dead, and are found so when the rest
                // is gone through again.
                let slot = table.location_mut(versions, id);
                let page = journal.get_mut().page(versions);
                let moved = arena.relocate(versions, location);
                page.note(Note { id, old: location, new: moved });
                *slot = moved;
                index.replace(hash, location, moved);
            }
            arena.emptied_to(next);
        }
    }

    /// Removes the entries with these ids.
    fn remove_ids(&mut self, ids: &[u32]) {
        let mut key = Vec::new();
        for &id in ids {
            let location = self.records.location(id);
            key.clear();
            key.extend_from_slice(self.records.arena.record(location).key());
            let hash = self.hash(&key);
            self.remove_entry(hash, location, &key);
            self.compact(key.len());
        }
    }

    /// Adds all entries of `snapshot`, to a store that has none.
    fn fill(&mut self, snapshot: &StateSnapshot) -> Result<(), StateError> {
        let mut count = 0;
        // An entry is added to the hash index some entries later, when its bucket has come.
        let mut pending = [(0, 0); BATCH];
        snapshot.source().try_visit(ALL_KEYS, &mut |key, value| {
            let hash = self.hash(key);
            self.index.prefetch(hash);
            // An empty table gives out ids in order.
            let Live { table, arena } = &mut self.records;
            let id = table.reserve(&self.versions).expect(TOO_MANY);
            let location = arena.append(&self.versions, id, key, new_value(value, None));
            table.insert(&self.versions, location);
            self.size_bytes += key.len() + value.len();
            self.large_bytes += large(value.len());
            let slot = &mut pending[count as usize % BATCH];
            let before = mem::replace(slot, (hash, location));
            if count as usize >= BATCH {
                self.add_to_index(before);
            }
            count += 1;
            ControlFlow::Continue(())
        })?;
        pending.into_iter().take(count as usize).for_each(|entry| self.add_to_index(entry));
        self.sorted = SortedIndex::bulk(&self.versions, &self.records, 0..count);
        Ok(())
    }

    fn range<'a>(&'a self, range: KeyBounds<'a>) -> Scan<'a, Live, Ids<'a, Live>> {
        Scan::new(&self.records, self.sorted.view().range(&self.records, range))
    }
}

/// The hash of a key. Its length goes into it, too, which `Hash` for slices would do a second time.
#[inline]
fn hash_key(hasher: &RandomState, key: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(key);
    hasher.finish()
}

fn new_value(value: &[u8], handle: Option<Bytes>) -> NewValue<'_> {
    if value.len() <= LARGE_VALUE {
        return NewValue::Small(value);
    }
    NewValue::Large(large_value(value, handle))
}

/// Returns a large value as an aligned handle.
#[inline(never)]
fn large_value(value: &[u8], handle: Option<Bytes>) -> Bytes {
    handle.map_or_else(|| aligned_copy(value), aligned)
}

const TOO_MANY: &str = "there are fewer than 2^32 entries";

/// A record that is not yet part of the store. If it never is, it is removed again.
struct Added<'a> {
    index: &'a mut HashIndex,
    records: &'a mut Live,
    versions: &'a Versions,
    hash: u64,
    location: Location,
    is_indexed: bool,
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        if self.is_indexed {
            self.index.remove(self.hash, self.location);
        }
        self.records.arena.kill(self.versions, self.location);
    }
}

/// Returns the value's length if it is stored out of line, else 0.
fn large(len: usize) -> usize {
    if len > LARGE_VALUE { len } else { 0 }
}

impl Drop for HotStore {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Shows the counts, and none of the contents.
impl fmt::Debug for HotStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotStore")
            .field("len", &self.len())
            .field("size_bytes", &self.size_bytes)
            .field("memory_bytes", &self.memory_bytes())
            .finish_non_exhaustive()
    }
}

impl StateStore for HotStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.find(key).map(|record| record.value().to_bytes())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.write(key, value, None)
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        let hash = self.hash(key);
        if let Some(location) = self.locate(hash, key) {
            self.remove_entry(hash, location, key);
            self.compact(key.len());
        }
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        let ids = self.sorted.view().prefix(&self.records, prefix);
        Box::new(Handles::new(Scan::new(&self.records, ids).map(parts)))
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        Box::new(Handles::new(self.range(half_open(range)).map(parts)))
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn len(&self) -> usize {
        self.sorted.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        let oldest = self.versions.oldest_live();
        let claim = self.versions.freeze();
        let journal = self.journal.borrow_mut().freeze(oldest, claim.epoch(), self.len());
        let stats = self.stats();
        let room = self.budget.saturating_sub(stats.total_bytes() - stats.pinned_bytes - stats.spare_bytes);
        let Live { table, arena } = &self.records;
        let nodes = (table.allocated_bytes() + self.sorted.allocated_bytes()).min(room);
        let chunks = (stats.chunk_bytes / SPARE_CHUNKS).min(room - nodes);
        self.versions.keep_spare(nodes, chunks, arena.next_layout());
        StateSnapshot::of(Arc::new(Frozen {
            size_bytes: self.size_bytes,
            entries: FrozenEntries {
                table: self.records.table.freeze(),
                arena: self.records.arena.freeze(claim.epoch()),
            },
            sorted: self.sorted.freeze(),
            journal,
            claim,
        }))
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        expect_sound(self.try_restore(snapshot));
    }

    fn clear(&mut self) {
        self.journal.get_mut().clear();
        let Self { index, sorted, records: Live { table, arena }, versions, size_bytes, large_bytes, .. } = self;
        versions.stop_sparing();
        index.clear();
        sorted.clear(versions);
        arena.clear(versions, |id, location| table.is_at(id, location));
        table.clear(versions);
        (*size_bytes, *large_bytes) = (0, 0);
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.find(key).is_some()
    }

    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        self.find(key).map(|record| f(record.value().as_slice())).is_some()
    }

    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        let hash = self.hash(key);
        let Some(location) = self.locate(hash, key) else { return Ok(false) };
        if let Some(value) = self.records.arena.value_mut(&self.versions, location) {
            f(value);
            return Ok(true);
        }
        let mut value = self.records.arena.record(location).value().as_slice().to_vec();
        f(&mut value);
        let handle = Bytes::from(value);
        self.overwrite(hash, location, key, &handle, Some(handle.clone()));
        self.compact(key.len() + handle.len());
        Ok(true)
    }

    fn put_bytes(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
        self.write(key, &value.clone(), Some(value))
    }

    fn take(&mut self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let hash = self.hash(key);
        let Some(location) = self.locate(hash, key) else { return Ok(None) };
        let value = self.records.arena.record(location).value().to_bytes();
        self.remove_entry(hash, location, key);
        self.compact(key.len());
        Ok(Some(value))
    }

    fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
        let mut ids = self.sorted.view().range(&self.records, bounds);
        let deleted: Vec<u32> = ids.by_ref().take(limit).collect();
        let is_done = ids.next().is_none();
        self.remove_ids(&deleted);
        Ok(Deleted { count: deleted.len(), is_done })
    }

    fn entries(&self, bounds: KeyBounds<'_>) -> crate::Scan<'_> {
        let (sorted, records) = (self.sorted.view(), &self.records);
        crate::Scan::new(TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            move |bounds| Handles::new(Scan::new(records, sorted.range_of_copy(records, bounds.get())).map(parts)),
            move |bounds| Handles::new(Scan::new(records, sorted.range_down(records, bounds.get())).map(parts)),
        ))
    }

    fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
        // Beside what there is, because a snapshot that is verified as it is read may turn out to be damaged.
        let mut restored = HotStoreBuilder {
            sizes: self.records.arena.sizes(),
            capacity: snapshot.len().min(UNVERIFIED),
            budget: self.budget,
        }
        .build();
        restored.versions = self.versions.fork();
        restored.fill(&snapshot)?;
        self.journal.get_mut().clear();
        mem::swap(&mut self.journal, &mut restored.journal);
        *self = restored;
        Ok(())
    }

    fn memory_bytes(&self) -> usize {
        self.stats().total_bytes()
    }

    fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let _ = self.range(range).try_for_each(|record| f(record.key(), record.value().as_slice()));
    }

    fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        out.clear();
        out.reserve(keys.len());
        for keys in keys.chunks(BATCH) {
            let (hashes, candidates) = self.look_ahead(keys.iter().copied());
            out.extend(keys.iter().zip(candidates).zip(hashes).map(|((key, candidate), hash)| {
                let first = self.records.arena.record(candidate?);
                let found = if first.has_key(key) { Some(first) } else { self.find_hashed(hash, key) };
                found.map(|record| record.value().to_bytes())
            }));
        }
    }

    fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        check_entry_lens(entries)?;
        for entries in entries.chunks(BATCH) {
            let (hashes, candidates) = self.look_ahead(entries.iter().map(|&(key, _)| key));
            if self.versions.newest_live() > 0 {
                // A record that a snapshot sees is written anew, which changes the table.
                for location in candidates.into_iter().flatten() {
                    self.records.table.view().prefetch_page(self.records.arena.record(location).id());
                }
            }
            for (&(key, value), hash) in entries.iter().zip(hashes) {
                self.write_hashed(hash, key, value, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl HotStore {
    /// Checks the invariants of the parts and those across them.
    fn validate(&self) {
        let Self { index, sorted, records: Live { table, arena }, .. } = self;
        table.validate();
        arena.validate(|id, location| table.is_at(id, location));
        sorted.validate(&self.records);
        index.validate(|location| self.hash(arena.record(location).key()));
        assert_eq!((index.len(), sorted.len()), (table.len(), table.len()), "invariant 1");
        let (mut size, mut large_size, mut last) = (0, 0, None);
        for record in self.range(ALL_KEYS) {
            let location = table.view().get(record.id());
            assert_eq!(self.locate(self.hash(record.key()), record.key()), Some(location), "invariant 1");
            assert!(last.is_none_or(|last| last < record.key()), "invariant 1");
            last = Some(record.key());
            size += record.key_len() + record.value_len();
            large_size += large(record.value_len());
            assert_eq!(record.is_large(), record.value_len() > LARGE_VALUE);
        }
        assert_eq!((size, large_size), (self.size_bytes, self.large_bytes), "invariant 2");
    }
}

#[cfg(test)]
mod tests;
