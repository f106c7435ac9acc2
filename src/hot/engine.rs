//! [`StorageEngine`]: the entries of a store, and the indexes that find them.
//!
//! # Design
//!
//! ```text
//!                 put/get/delete/scan/snapshot
//!                            │
//!                      StorageEngine
//!      ┌───────────┬─────────┴──┬─────────────┐
//!  HashIndex   EntryTable  SortedIndex      Arena
//!  hash ->     id ->       ids by key       records in chunks
//!  location    location    (B+tree)
//!      │           └────────────┴─────────────┘
//!  the writer's own         shared with snapshots, by `Epochs`
//! ```
//!
//! A point read is two cache misses: a bucket of the hash index and the record. An update leaves the sorted index
//! alone, because that holds ids. It touches the table only if the record moves. A snapshot is views of the table, the
//! sorted index and the arena, and a guard that keeps what they see; the writer goes on and copies what it first
//! touches.
//!
//! # Invariants across the parts
//!
//! 1. Every entry has one id, one live record, one slot in the hash index and one place in the sorted index. The table
//!    gives its record's location, and so does the hash index under the hash of its key; the record holds the id.
//! 2. `size_bytes` is the sum of the lengths of all keys and values, `large_bytes` that of the large values.
//! 3. Whatever gives an entry a record, moves or removes it, notes that in the journal.

use std::cell::RefCell;
use std::mem;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::arena::{Arena, ArenaView};
use super::chunk::ChunkSizes;
use super::entry_id::EntryId;
use super::entry_table::Shrinking;
use super::epochs::Epochs;
use super::frozen::{Frozen, FrozenRecords};
use super::hash::{Hash, KeyHasher};
use super::journal::{Journal, Note};
use super::location::Location;
use super::parts::{EntryTable, EntryView, HashIndex, SortedIndex, SortedView};
use super::prefetch::prefetch;
use super::record::Record;
use super::scan::{RecordScan, Records};
use super::stats::HotStats;
use super::value::NewValue;
use crate::bounds::{ALL_KEYS, KeyBounds};
use crate::error::StateError;
use crate::snapshot::state_snapshot::StateSnapshot;
use crate::source::SnapshotSource as _;

/// The most entries that a restored hash index is sized for beforehand. An image that nobody has verified may lie about
/// how many it has; beyond this the index grows as they come.
const MAX_UNVERIFIED_CAPACITY: usize = 4 << 20;

/// The free list of chunks keeps at most this fraction of the memory of records: one byte in so many. The free lists of
/// nodes keep at most the memory of the entry table and the sorted index.
const FREE_CHUNKS_DIVISOR: usize = 8;

/// How many lookups of a batch, or records that are moved, are under way at once.
const BATCH: usize = 16;

const TOO_MANY: &str = "there are fewer than 2^32 entries";

/// The entries of a store, as its writer has them.
pub(super) struct StorageEngine {
    hasher: KeyHasher,
    index: HashIndex,
    sorted: SortedIndex,
    records: LiveRecords,
    epochs: Epochs,
    /// A cell, because a snapshot is taken through a shared reference.
    journal: RefCell<Journal>,
    size_bytes: usize,
    large_bytes: usize,
    budget: usize,
}

/// Records by id, as the writer has them.
pub(super) struct LiveRecords {
    table: EntryTable,
    arena: Arena,
}

impl Records for LiveRecords {
    #[inline]
    fn table(&self) -> &EntryView {
        self.table.view()
    }

    #[inline]
    fn arena(&self) -> &ArenaView {
        self.arena.view()
    }
}

impl StorageEngine {
    /// Makes an engine without entries.
    pub(super) fn new(sizes: ChunkSizes, index: HashIndex, budget: usize) -> Self {
        Self {
            hasher: KeyHasher::new(),
            index,
            sorted: SortedIndex::new(),
            records: LiveRecords { table: EntryTable::new(), arena: Arena::new(sizes) },
            epochs: Epochs::new(),
            journal: RefCell::default(),
            size_bytes: 0,
            large_bytes: 0,
            budget,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(super) fn stats(&self) -> HotStats {
        let LiveRecords { table, arena } = &self.records;
        HotStats {
            entries: self.len(),
            live_bytes: arena.live_bytes(),
            dead_bytes: arena.dead_bytes(),
            large_value_bytes: self.large_bytes + arena.large_overhead_bytes(),
            index_bytes: self.index.allocated_bytes() + table.allocated_bytes() + self.sorted.allocated_bytes(),
            overhead_bytes: self.epochs.overhead_bytes()
                + arena.overhead_bytes()
                + self.journal.borrow().overhead_bytes(),
            chunks: arena.chunks(),
            chunk_bytes: arena.allocated_bytes(),
            journal_bytes: self.journal.borrow().allocated_bytes(&self.epochs),
            pinned_bytes: self.epochs.pinned_bytes(),
            spare_bytes: self.epochs.free_bytes(),
            snapshots: self.epochs.snapshot_count(),
        }
    }

    /// Gives the free lists to the allocator.
    pub(super) fn release_free(&self) {
        self.epochs.release_all_free();
    }

    /// Fails if the budget does not allow for an entry with this key and value, which may replace the one at `old`.
    fn check_budget(&self, key: &[u8], value: &NewValue<'_>, old: Option<Location>) -> Result<(), StateError> {
        let arena = &self.records.arena;
        let (len, large_len) = (value.len(), value.large_len());
        let is_free = |old| {
            len <= arena.record(old).value_len() || large_len == 0 && arena.slack_for(&self.epochs, old, len).is_some()
        };
        if self.budget == usize::MAX || old.is_some_and(is_free) {
            return Ok(());
        }
        /// About how many bytes an entry takes in the three indexes.
        const INDEXED: usize = 40;
        let indexed = if old.is_none() { INDEXED } else { 0 };
        let needed = arena.growth(key.len(), len - large_len) + large_len + indexed;
        if needed == 0 {
            return Ok(());
        }
        let budget = self.budget;
        let excess = |used: usize| used.saturating_add(needed).saturating_sub(budget);
        let mut used = self.stats().total_bytes();
        if excess(used) > 0 {
            self.epochs.release_free(excess(used));
            used = self.stats().total_bytes();
        }
        if excess(used) > 0 {
            return Err(StateError::OverBudget { budget, used, needed });
        }
        Ok(())
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> Hash {
        self.hasher.hash(key)
    }

    #[inline(always)]
    fn locate(&self, hash: Hash, key: &[u8]) -> Option<Location> {
        self.index.find(hash, |location| self.records.arena.record(location).has_key(key))
    }

    #[inline(always)]
    pub(super) fn find(&self, key: &[u8]) -> Option<Record<'_>> {
        self.find_hashed(self.hash(key), key)
    }

    #[inline(always)]
    fn find_hashed(&self, hash: Hash, key: &[u8]) -> Option<Record<'_>> {
        self.locate(hash, key).map(|location| self.records.arena.record(location))
    }

    /// Adds the values of many keys to `out`. Finds some keys at a time, so that their cache misses overlap.
    pub(super) fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        for keys in keys.chunks(BATCH) {
            let (hashes, candidates) = self.look_ahead(keys.iter().copied());
            out.extend(keys.iter().zip(candidates).zip(hashes).map(|((key, candidate), hash)| {
                let first = self.records.arena.record(candidate?);
                let found = if first.has_key(key) { Some(first) } else { self.find_hashed(hash, key) };
                found.map(|record| record.value().to_bytes())
            }));
        }
    }

    /// Returns the hashes of at most [`BATCH`] keys, and the first location that each can have. The records there are
    /// on their way into the cache.
    #[inline]
    fn look_ahead<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> ([Hash; BATCH], [Option<Location>; BATCH]) {
        let mut hashes = [Hash::default(); BATCH];
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

    pub(super) fn sorted(&self) -> &SortedView {
        self.sorted.view()
    }

    pub(super) fn records(&self) -> &LiveRecords {
        &self.records
    }

    /// Scans the entries within `bounds`.
    pub(super) fn range<'a>(&'a self, bounds: KeyBounds<'a>) -> RecordScan<'a, LiveRecords> {
        RecordScan::range(self.sorted.view(), &self.records, bounds)
    }

    /// Puts an entry. Key and value are not too long.
    pub(super) fn put(&mut self, key: &[u8], value: NewValue<'_>) -> Result<(), StateError> {
        self.put_hashed(self.hash(key), key, value)
    }

    #[inline]
    fn put_hashed(&mut self, hash: Hash, key: &[u8], value: NewValue<'_>) -> Result<(), StateError> {
        let found = self.locate(hash, key);
        self.check_budget(key, &value, found)?;
        let mut written = key.len() + value.len() - value.large_len();
        match found {
            Some(location) => written = written.max(self.overwrite(hash, location, key, value)),
            None => self.add(hash, key, value),
        }
        self.evacuate(written);
        Ok(())
    }

    /// Puts many entries, some at a time, so that their cache misses overlap.
    pub(super) fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        for entries in entries.chunks(BATCH) {
            let (hashes, candidates) = self.look_ahead(entries.iter().map(|&(key, _)| key));
            if self.epochs.has_snapshots() {
                // A record that a snapshot sees is written anew, which changes the table.
                for location in candidates.into_iter().flatten() {
                    self.records.table.view().prefetch_page(self.records.arena.record(location).id());
                }
            }
            for (&(key, value), hash) in entries.iter().zip(hashes) {
                self.put_hashed(hash, key, NewValue::borrowed(value))?;
            }
        }
        Ok(())
    }

    /// Calls `f` with the value of a key, to be changed. Returns `false` if there is no such key.
    pub(super) fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> bool {
        let hash = self.hash(key);
        let Some(location) = self.locate(hash, key) else { return false };
        if let Some(value) = self.records.arena.value_mut(&self.epochs, location) {
            f(value);
            return true;
        }
        let mut value = self.records.arena.record(location).value().as_slice().to_vec();
        f(&mut value);
        let written = self.overwrite(hash, location, key, NewValue::taken(&mut Bytes::from(value)));
        self.evacuate(written);
        true
    }

    /// Removes a key if it is there. Calls `f` with the entry's record before.
    pub(super) fn remove<T>(&mut self, key: &[u8], f: impl FnOnce(Record<'_>) -> T) -> Option<T> {
        let hash = self.hash(key);
        let location = self.locate(hash, key)?;
        let record = self.records.arena.record(location);
        let id = record.id();
        let result = f(record);
        let removed = self.remove_one((id, location, hash), key);
        self.recover(1, removed);
        Some(result)
    }

    /// Removes at most `limit` entries within `bounds`. Returns how many that were, and `true` if no more are left.
    ///
    /// Works leaf by leaf of the sorted index, so that the cache misses of a leaf's entries overlap, and a leaf goes as
    /// a whole.
    pub(super) fn remove_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> (usize, bool) {
        let (mut found, mut key, mut count) = (Vec::new(), Vec::new(), 0);
        loop {
            let Some((ids, is_whole)) = self.sorted.view().first_leaf(&self.records, bounds) else {
                return (count, true);
            };
            if count == limit {
                return (count, false);
            }
            let is_whole = is_whole && ids.len() <= limit - count;
            let ids = ids[..ids.len().min(limit - count)].to_vec();
            self.fetch(&ids, &mut found);
            let whole = if is_whole {
                self.remove_entries(&found, |sorted, epochs, records| sorted.remove_leaf(epochs, records, &ids))
            } else {
                None
            };
            let removed = whole.unwrap_or_else(|| {
                let one_by_one = found.iter().map(|&entry| {
                    key.clear();
                    key.extend_from_slice(self.records.arena.record(entry.1).key());
                    self.remove_one(entry, &key)
                });
                one_by_one.sum()
            });
            count += ids.len();
            self.recover(ids.len(), removed);
        }
    }

    /// Finds the records of entries and the hashes of their keys. All that a removal reads is in the cache by then, or
    /// on its way.
    fn fetch(&self, ids: &[EntryId], found: &mut Vec<(EntryId, Location, Hash)>) {
        let LiveRecords { table, arena } = &self.records;
        ids.iter().for_each(|&id| prefetch(table.view().address(id)));
        found.clear();
        for &id in ids {
            let location = table.view().get(id);
            prefetch(arena.view().address(location));
            found.push((id, location, Hash::default()));
        }
        for (_, location, hash) in found {
            *hash = self.hash(arena.record(*location).key());
            self.index.prefetch(*hash);
        }
    }

    /// Removes an entry. Returns the length of its record.
    fn remove_one(&mut self, entry: (EntryId, Location, Hash), key: &[u8]) -> usize {
        let removed = self.remove_entries(&[entry], |sorted, epochs, records| {
            sorted.remove(epochs, records, key, entry.0);
            true
        });
        removed.unwrap_or(0)
    }

    /// Removes entries: first from the sorted index by `unsort`, then everything else of them. Returns the length of their
    /// records, or `None` if `unsort` returns `false`: nothing is removed then.
    #[inline]
    fn remove_entries(
        &mut self,
        entries: &[(EntryId, Location, Hash)],
        unsort: impl FnOnce(&mut SortedIndex, &Epochs, &LiveRecords) -> bool,
    ) -> Option<usize> {
        let Self { hasher, index, sorted, records, epochs, journal, .. } = self;
        // Allocations come first, so that nothing has changed where one fails.
        for &(id, ..) in entries {
            records.table.location_mut(epochs, id);
        }
        let mut reserved = journal.get_mut().reserve_many(entries.len(), epochs);
        if !unsort(sorted, epochs, records) {
            return None;
        }
        let mut removed = 0;
        for &(id, location, hash) in entries {
            let record = records.arena.record(location);
            removed += record.len();
            self.size_bytes -= record.key_len() + record.value_len();
            self.large_bytes -= record.large_len();
            reserved.note(Note { id, old: location, new: Location::NONE });
            index.remove(hash, location, |location| hasher.hash(records.arena.record(location).key()));
            records.table.remove(epochs, id);
            records.arena.mark_dead(epochs, location);
        }
        Some(removed)
    }

    /// Replaces the value of the entry whose record is at `location`. Returns the length of the record if it is dead from
    /// then on, else 0.
    fn overwrite(&mut self, hash: Hash, location: Location, key: &[u8], value: NewValue<'_>) -> usize {
        let Self { index, records: LiveRecords { table, arena }, epochs, journal, .. } = self;
        let record = arena.record(location);
        let id = record.id();
        let (old_len, old_large_len) = (record.value_len(), record.large_len());
        let (len, large_len) = (value.len(), value.large_len());
        let in_place = match value {
            NewValue::Small(small) if arena.rewrite(epochs, location, key, small) => Ok(()),
            NewValue::Small(_) => Err(value),
            large => arena.replace_large(epochs, location, large),
        };
        let mut dead = 0;
        if let Err(value) = in_place {
            dead = arena.record(location).len();
            // Allocations come first, so that nothing has changed where one fails.
            let slot = table.location_mut(epochs, id);
            let mut reserved = journal.get_mut().reserve(epochs);
            let moved = arena.append(epochs, id, key, value);
            reserved.note(Note { id, old: location, new: moved });
            slot.set(moved);
            index.replace(hash, location, moved);
            arena.mark_dead(epochs, location);
        }
        self.size_bytes = self.size_bytes - old_len + len;
        self.large_bytes = self.large_bytes - old_large_len + large_len;
        dead
    }

    /// Adds an entry whose key is not there.
    fn add(&mut self, hash: Hash, key: &[u8], value: NewValue<'_>) {
        let Self { hasher, index, sorted, records, epochs, journal, .. } = self;
        let (len, large_len) = (value.len(), value.large_len());
        let id = records.table.reserve(epochs).expect(TOO_MANY).id();
        let mut reserved = journal.get_mut().reserve(epochs);
        let location = records.arena.append(epochs, id, key, value);
        let mut guard = InsertGuard { hasher, index, records, epochs, hash, location, is_indexed: false };
        let LiveRecords { arena, .. } = &*guard.records;
        guard.index.insert(hash, location, |location| hasher.hash(arena.record(location).key()));
        guard.is_indexed = true;
        sorted.insert(epochs, &*guard.records, key, id);
        mem::forget(guard);
        // From here on nothing fails.
        reserved.note(Note { id, old: Location::NONE, new: location });
        self.records.table.insert(&self.epochs, location);
        self.size_bytes += key.len() + len;
        self.large_bytes += large_len;
    }

    fn add_to_index(&mut self, (hash, location): (Hash, Location)) {
        let Self { hasher, index, records, .. } = self;
        index.insert(hash, location, |location| hasher.hash(records.arena.record(location).key()));
    }

    /// Recovers some memory after so many entries were removed, whose records took so many bytes.
    fn recover(&mut self, count: usize, removed: usize) {
        self.evacuate(removed);
        self.records.arena.shrink(&self.epochs);
        if self.records.table.is_too_large() {
            self.shrink_table(count);
        }
    }

    /// Frees pages at the end of the table after so many entries were removed. Entries in them get other ids.
    #[cold]
    fn shrink_table(&mut self, removed: usize) {
        const FOR_EACH: usize = 4;
        let Self { hasher, index, sorted, records: LiveRecords { table, arena }, epochs, journal, .. } = self;
        let mut key = Vec::new();
        for _ in 0..FOR_EACH * removed {
            let old = match table.shrink(epochs) {
                Shrinking::Move(id) => id,
                Shrinking::PageFreed => continue,
                Shrinking::Done => return,
            };
            let location = table.view().get(old);
            key.clear();
            key.extend_from_slice(arena.record(location).key());
            // Allocations come first. The last of them is that of the sorted index, where the first change is made.
            table.location_mut(epochs, old);
            let new = table.reserve(epochs).expect(TOO_MANY).id();
            arena.reserve_relocation(epochs, location);
            let mut reserved = journal.get_mut().reserve_many(2, epochs);
            sorted.replace(epochs, &key, old, new);
            let moved = arena.set_id(epochs, location, new);
            reserved.note(Note { id: old, old: location, new: Location::NONE });
            reserved.note(Note { id: new, old: Location::NONE, new: moved });
            table.remove(epochs, old);
            table.insert(epochs, moved);
            if moved != location {
                index.replace(hasher.hash(&key), location, moved);
            }
        }
    }

    /// Evacuates a mostly dead chunk a little further. `written` is the length of the records that were written or
    /// removed: the work is in proportion.
    fn evacuate(&mut self, written: usize) {
        if !self.records.arena.needs_evacuation() {
            return;
        }
        let Self { hasher, index, records: LiveRecords { table, arena }, epochs, journal, .. } = self;
        /// The most that a dead record counts, because passing over it takes as long whatever its length.
        const DEAD: usize = 64;
        let mut budget = 256 + 4 * written;
        let Some(mut next) = arena.evacuation_start(epochs) else { return };
        while budget > 0 {
            // The table tells if a record is live. Moving the record changes the table, in a copy of the page where a
            // snapshot sees that, and a bucket. All are cache misses, which overlap for the records of a batch.
            let mut batch = [(Location::NONE, EntryId::default(), Hash::default()); BATCH];
            let mut count = 0;
            while count < BATCH && budget > 0 {
                let Some((record, following)) = arena.next_to_evacuate(next) else { break };
                let id = record.id();
                table.view().address_of(id).into_iter().for_each(prefetch);
                batch[count] = (next, id, Hash::default());
                count += 1;
                // If the record is live, the rest of its length counts when it is moved.
                budget = budget.saturating_sub(record.len().min(DEAD));
                next = following;
            }
            if count == 0 {
                return arena.free_evacuated(epochs);
            }
            let copies = epochs.has_snapshots();
            let mut live = 0;
            for at in 0..count {
                let (location, id, _) = batch[at];
                if table.is_at(id, location) {
                    let hash = hasher.hash(arena.record(location).key());
                    index.prefetch(hash);
                    if copies {
                        table.view().prefetch_page(id);
                    }
                    batch[live] = (location, id, hash);
                    live += 1;
                }
            }
            for &(location, id, hash) in &batch[..live] {
                // Allocations come first. Where one fails, the records before it are dead, and are found to be so when
                // evacuation starts over from `next`.
                let slot = table.location_mut(epochs, id);
                budget = budget.saturating_sub(arena.record(location).len().saturating_sub(DEAD));
                let mut reserved = journal.get_mut().reserve(epochs);
                let moved = arena.relocate(epochs, location);
                reserved.note(Note { id, old: location, new: moved });
                slot.set(moved);
                index.replace(hash, location, moved);
            }
            arena.evacuated_to(next);
        }
    }

    /// Takes a snapshot, in O(1) but for the addresses of chunks and branches.
    pub(super) fn freeze(&self) -> Frozen {
        let oldest = self.epochs.oldest_snapshot();
        let LiveRecords { table, arena } = &self.records;
        let table_view = table.freeze();
        let arena_view = arena.freeze(&self.epochs);
        let bytes = StateSnapshot::shared_bytes::<Frozen>() + arena_view.heap_bytes();
        let guard = self.epochs.freeze(bytes);
        let journal = self.journal.borrow_mut().freeze(oldest, guard.epoch(), self.len(), &self.epochs);
        let stats = self.stats();
        let room = self.budget.saturating_sub(stats.total_bytes() - stats.pinned_bytes - stats.spare_bytes);
        let nodes = (table.allocated_bytes() + self.sorted.allocated_bytes()).min(room);
        let chunks = (stats.chunk_bytes / FREE_CHUNKS_DIVISOR).min(room - nodes);
        self.epochs.set_free_limits(nodes, chunks, arena.next_layout());
        Frozen {
            size_bytes: self.size_bytes,
            records: FrozenRecords { table: table_view, arena: arena_view },
            sorted: self.sorted.freeze(),
            journal,
            guard,
        }
    }

    /// Removes all entries, in O(n).
    pub(super) fn clear(&mut self) {
        self.journal.get_mut().clear();
        let Self { index, sorted, records: LiveRecords { table, arena }, epochs, size_bytes, large_bytes, .. } = self;
        epochs.release_all_free();
        index.clear();
        sorted.clear(epochs);
        arena.clear(epochs, |id, location| table.is_at(id, location));
        table.clear(epochs);
        (*size_bytes, *large_bytes) = (0, 0);
    }

    /// Replaces all entries by those of a snapshot.
    ///
    /// The old entries stay until all new ones are read, because a snapshot that is verified as it is read may turn out to
    /// be damaged.
    pub(super) fn restore(&mut self, snapshot: &StateSnapshot) -> Result<(), StateError> {
        let capacity = snapshot.len().min(MAX_UNVERIFIED_CAPACITY);
        let mut restored = Self::new(self.records.arena.sizes(), HashIndex::sized_for(capacity), self.budget);
        restored.epochs = self.epochs.fork();
        restored.fill(snapshot)?;
        self.journal.get_mut().clear();
        mem::swap(&mut self.journal, &mut restored.journal);
        *self = restored;
        Ok(())
    }

    /// Adds all entries of `snapshot`, to an engine that has none.
    fn fill(&mut self, snapshot: &StateSnapshot) -> Result<(), StateError> {
        let mut count = 0;
        // An entry is added to the hash index some entries later, when its bucket has come.
        let mut pending = [(Hash::default(), Location::NONE); BATCH];
        snapshot.source().try_visit(ALL_KEYS, &mut |key, value| {
            let hash = self.hash(key);
            self.index.prefetch(hash);
            let value = NewValue::borrowed(value);
            self.size_bytes += key.len() + value.len();
            self.large_bytes += value.large_len();
            // An empty table gives out ids in order.
            let LiveRecords { table, arena } = &mut self.records;
            let vacancy = table.reserve(&self.epochs).expect(TOO_MANY);
            let location = arena.append(&self.epochs, vacancy.id(), key, value);
            vacancy.insert(location);
            let slot = &mut pending[count as usize % BATCH];
            let before = mem::replace(slot, (hash, location));
            if count as usize >= BATCH {
                self.add_to_index(before);
            }
            count += 1;
            ControlFlow::Continue(())
        })?;
        pending.into_iter().take(count as usize).for_each(|entry| self.add_to_index(entry));
        self.sorted = SortedIndex::bulk(&self.epochs, &self.records, (0..count).map(EntryId::new));
        Ok(())
    }

    /// Returns the number of pages of the entry table. O(1).
    #[cfg(test)]
    pub(super) fn table_pages(&self) -> usize {
        self.records.table.pages()
    }

    /// Checks the invariants of the parts and those across them.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let Self { index, sorted, records: LiveRecords { table, arena }, .. } = self;
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
            large_size += record.large_len();
            assert_eq!(record.large_len(), NewValue::borrowed(record.value().as_slice()).large_len());
        }
        assert_eq!((size, large_size), (self.size_bytes, self.large_bytes), "invariant 2");
    }
}

impl Drop for StorageEngine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A record that no index finds yet. Dropping the guard removes it again.
struct InsertGuard<'a> {
    hasher: &'a KeyHasher,
    index: &'a mut HashIndex,
    records: &'a mut LiveRecords,
    epochs: &'a Epochs,
    hash: Hash,
    location: Location,
    is_indexed: bool,
}

impl Drop for InsertGuard<'_> {
    fn drop(&mut self) {
        let Self { hasher, index, records: LiveRecords { arena, .. }, epochs, hash, location, is_indexed } = self;
        if *is_indexed {
            index.remove(*hash, *location, |location| hasher.hash(arena.record(location).key()));
        }
        arena.mark_dead(epochs, *location);
    }
}
