//! The arena: the bytes of all entries, as records in chunks.
//!
//! # Design
//!
//! ```text
//!  chunk    0    4        a record starts at 8 u + 4, u being its unit
//!           ├────┼────────────┬───────────┬─────────────────┬ ─ ─ ─ ─ ─ ┐
//!           │    │ record     │ record    │ record          │   free    │
//!           └────┴────────────┴───────────┴─────────────────┴ ─ ─ ─ ─ ─ ┘
//! ```
//!
//! Records are appended to the open chunk; a [`Location`] names one by chunk and unit. Chunks start small, and a new
//! one is at most half as large as all others together, so that a small store is small. Where records are replaced all
//! the time, chunks double, up to eight times the size of all live records.
//!
//! A record that is replaced or removed is *dead*. A chunk without live records is freed. One that is mostly dead is
//! *evacuated*: its live records are moved, a few at a time. (Rumble, Kejriwal, Ousterhout, *Log-structured Memory for
//! DRAM-based Storage*, FAST 2014.) The open chunk is closed for that if it is far too large for the live
//! records.
//!
//! Indexes of freed chunks are used again, the lowest first. So the highest ones fall vacant together after a store has
//! shrunk, and the arrays of chunks shrink, too.
//!
//! A record is changed in place as long as no live snapshot sees it (the idea of the mutable region of FASTER, SIGMOD
//! 2018). Its chunk tells: when it was opened and closed, and how far it was filled when a snapshot was taken in
//! between. A value of another length is written in place, too, if the record has room for it and the slack stays
//! small. Evacuation leaves the slack behind.
//!
//! # Why
//!
//! Handles that point into chunks would pin them and forbid changes in place. They would gain nothing: copying a small
//! value costs about one small allocation, and so does a handle to a chunk. An epoch in each record would cost 8 bytes
//! an entry; marks in the chunk that is open when a snapshot is taken cost 16 bytes a snapshot.
//!
//! # Invariants
//!
//! 1. Records lie one after the other from unit 0 to the chunk's `filled`, which is at most its `units`.
//! 2. What lies at or above `filled` belongs to the writer alone. What lies below is read by snapshots that see it, and
//!    changed only while none does.
//! 3. `live` of a chunk is the number of units of its live records. A chunk that has none is open, being evacuated, or
//!    gone.
//! 4. Every chunk but the open one is closed.
//! 5. `vacant` has the index of each chunk that is gone, and may have others. It has room for those of all chunks that
//!    are there: freeing a record or a chunk allocates nothing.
//! 6. The last chunk is there. There are as many `bases` and links in the queue as chunks.
//! 7. Chunks are queued for evacuation if they are closed and not being evacuated.
//! 8. A location can name all chunks: there are at most `MAX_CHUNKS`.

#![allow(unsafe_code, reason = "records are read and written by address within memory that the arena owns")]

use std::alloc::Layout;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ptr::NonNull;

use bytes::Bytes;

use super::chunk::{Chunk, ChunkSizes, bytes_for, chunk_layout, unit_address, unit_hint};
use super::entry_id::EntryId;
use super::epoch::Epoch;
use super::epochs::Epochs;
use super::evacuation_queue::EvacuationQueue;
use super::free_list::Block;
use super::location::Location;
use super::node::{Node, node_bytes};
use super::record::{LARGE_SLOT, Record, RecordValue, UNIT, units_for};
use super::reserve::{give_back, reserve_one};
use super::sizes::MAX_CHUNKS;
use super::value::NewValue;

/// All chunks of a store, as its writer has them.
///
/// It must be [cleared](Self::clear) before it is dropped, or its chunks are never freed.
pub(super) struct Arena {
    sizes: ChunkSizes,
    /// `None` where a chunk is gone and its index is vacant.
    chunks: Vec<Option<Chunk>>,
    /// How many chunks are there.
    present: usize,
    /// Apart, because every access to a record needs this and only this.
    view: ArenaView,
    vacant: BinaryHeap<Reverse<u32>>,
    queue: EvacuationQueue,
    /// The chunk that is appended to.
    open: Option<usize>,
    /// The size of the next chunk.
    next_bytes: usize,
    /// Where evacuation goes on in the chunk that is being evacuated.
    evacuating: Option<Location>,
    live_units: usize,
    filled_units: usize,
    /// How many live records have a large value.
    large: usize,
    /// The bytes of the memory of chunks.
    allocated_bytes: usize,
    /// The bytes of the marks of closed chunks.
    mark_bytes: usize,
}

/// Reads records: those of the arena that it is a part of, or those that a snapshot sees.
pub(super) struct ArenaView {
    /// Where each chunk starts; dangling where it is gone.
    bases: Vec<NonNull<u8>>,
}

// SAFETY: the bases point to memory that chunks own, which is `Send`. What a snapshot sees is neither written nor freed
// while it lives (invariant 2, and 1 of `node.rs`), and so is the arena's own view while it is borrowed.
unsafe impl Send for ArenaView {}
// SAFETY: as above.
unsafe impl Sync for ArenaView {}

impl ArenaView {
    /// Returns the bytes that the view takes outside of itself, its chunks excepted.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bases.capacity() * size_of::<NonNull<u8>>()
    }

    /// Returns the record at `location`, which is live, or which the snapshot sees.
    #[inline]
    pub(super) fn record(&self, location: Location) -> Record<'_> {
        // SAFETY: the location of a live record names a unit of a chunk that is there; and the arena, which alone
        // changes records, is borrowed with its view. Locations in a snapshot's table are of records that it sees.
        unsafe { Record::at(unit_address(self.bases[location.chunk()], location.unit())) }
    }

    /// Returns where a record starts, to be prefetched.
    #[inline]
    pub(super) fn address(&self, location: Location) -> *const u8 {
        unit_hint(self.bases[location.chunk()], location.unit())
    }
}

impl Arena {
    pub(super) fn new(sizes: ChunkSizes) -> Self {
        debug_assert!(sizes.first <= sizes.largest && sizes.largest <= ChunkSizes::MAX);
        Self {
            sizes,
            chunks: Vec::new(),
            present: 0,
            view: ArenaView { bases: Vec::new() },
            vacant: BinaryHeap::new(),
            queue: EvacuationQueue::new(),
            open: None,
            next_bytes: sizes.first,
            evacuating: None,
            live_units: 0,
            filled_units: 0,
            large: 0,
            allocated_bytes: 0,
            mark_bytes: 0,
        }
    }

    pub(super) fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    /// Returns the bytes of live records, headers and padding included.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_units * UNIT
    }

    /// Returns the bytes of dead records.
    pub(super) fn dead_bytes(&self) -> usize {
        (self.filled_units - self.live_units) * UNIT
    }

    /// Returns the bytes of the memory of chunks.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    /// Returns the bytes that the arena takes to find and manage its chunks. O(1).
    pub(super) fn overhead_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Option<Chunk>>()
            + self.view.bases.capacity() * size_of::<NonNull<u8>>()
            + self.vacant.capacity() * size_of::<u32>()
            + self.queue.allocated_bytes()
            + self.present * node_bytes::<Block>()
            + self.mark_bytes
            + self.open.map_or(0, |open| self.chunk(open).mark_bytes())
    }

    /// Returns the bytes of large values beside their contents.
    pub(super) fn large_overhead_bytes(&self) -> usize {
        self.large * node_bytes::<Bytes>()
    }

    /// Returns the number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.present
    }

    /// Returns the layout of the next chunk, unless a record needs a larger one.
    pub(super) fn next_layout(&self) -> Layout {
        chunk_layout(self.next_bytes)
    }

    #[inline]
    pub(super) fn view(&self) -> &ArenaView {
        &self.view
    }

    /// Returns the record at `location`, which is live.
    #[inline]
    pub(super) fn record(&self, location: Location) -> Record<'_> {
        self.view.record(location)
    }

    /// Appends a live record. If there is no memory for it, nothing has changed.
    ///
    /// # Panics
    ///
    /// If the key is longer than a header can say. (Memory safety depends on it, so it is checked here, too.)
    pub(super) fn append(&mut self, epochs: &Epochs, id: EntryId, key: &[u8], value: NewValue<'_>) -> Location {
        assert!(key.len() <= usize::from(u16::MAX), "keys are within their limit");
        let slot_len = match &value {
            NewValue::Small(value) => value.len(),
            NewValue::LargeBorrowed(_) | NewValue::LargeOwned(_) => LARGE_SLOT,
        };
        let units = units_for(slot_len, key.len());
        let open = self.room_for(epochs, units);
        let value = match value {
            NewValue::Small(value) => RecordValue::Small(value),
            large => RecordValue::Large(Node::new(large.into_bytes(), epochs)),
        };
        let is_large = matches!(value, RecordValue::Large(_));
        let location = self.take_units(open, units, is_large);
        // SAFETY: the chunk has room from this unit on, and that belongs to the writer alone (invariant 2). The record
        // takes as many units.
        unsafe { Record::write(unit_address(self.view.bases[open], location.unit()), id, key, value) };
        location
    }

    /// Appends a copy of the live record at `from`, which is dead from then on. If there is no memory for it, nothing
    /// has changed.
    pub(super) fn relocate(&mut self, epochs: &Epochs, from: Location) -> Location {
        let record = self.record(from);
        let (units, is_large) = (record.needed_units(), record.is_large());
        let open = self.room_for(epochs, units);
        let to = self.take_units(open, units, is_large);
        // SAFETY: as in `append`. Opening a chunk moved no record, and this one is marked dead right after.
        unsafe { self.record(from).move_to(unit_address(self.view.bases[open], to.unit())) };
        self.count_dead(epochs, from);
        to
    }

    /// Reserves room for a copy of the live record at `from`.
    pub(super) fn reserve_relocation(&mut self, epochs: &Epochs, from: Location) {
        self.room_for(epochs, self.record(from).needed_units());
    }

    /// Gives the live record at `at` another id. Returns where it is from then on: it is relocated if a snapshot sees it.
    /// Allocates nothing after [`reserve_relocation`](Self::reserve_relocation).
    pub(super) fn set_id(&mut self, epochs: &Epochs, at: Location, id: EntryId) -> Location {
        let to = if self.is_seen(epochs, at) { self.relocate(epochs, at) } else { at };
        // SAFETY: no snapshot sees the record (invariant 2), and the arena is borrowed exclusively.
        unsafe { self.record(to).set_id(id) };
        to
    }

    /// Returns the open chunk, a new one if need be, which has room for so many units.
    fn room_for(&mut self, epochs: &Epochs, units: usize) -> usize {
        match self.open {
            Some(open) if self.chunk(open).has_room_for(units) => open,
            _ => self.open_chunk(epochs, units),
        }
    }

    /// Takes units from the open chunk, which has room for them, for a live record.
    fn take_units(&mut self, open: usize, units: usize, is_large: bool) -> Location {
        let chunk = self.chunk_mut(open);
        let unit = chunk.filled;
        chunk.filled += units;
        chunk.live += units;
        chunk.large += usize::from(is_large);
        self.large += usize::from(is_large);
        self.live_units += units;
        self.filled_units += units;
        Location::new(open, unit)
    }

    /// Returns the bytes that would be allocated for one more record with a small value of this length.
    pub(super) fn growth(&self, key_len: usize, value_len: usize) -> usize {
        let units = units_for(value_len.max(LARGE_SLOT), key_len);
        match self.open {
            Some(open) if self.chunk(open).has_room_for(units) => 0,
            _ => self.next_bytes.max(bytes_for(units)),
        }
    }

    /// Closes the open chunk and opens one that has room for `units`.
    ///
    /// # Panics
    ///
    /// If there are `MAX_CHUNKS`. Nothing has changed then.
    #[cold]
    fn open_chunk(&mut self, epochs: &Epochs, units: usize) -> usize {
        let bytes = self.next_bytes.max(bytes_for(units));
        // Allocations come first, also that of the place where the chunk's index goes when it is freed.
        let index = self.reserve_index();
        let memory = epochs.allocate_chunk(chunk_layout(bytes));
        let base = memory.start();
        let chunk = Chunk::new(Node::of_chunk(memory, epochs), epochs.now());
        self.allocated_bytes += bytes;
        self.present += 1;
        if index == self.chunks.len() {
            self.chunks.push(Some(chunk));
            self.view.bases.push(base);
            self.queue.resize(index + 1);
        } else {
            (self.chunks[index], self.view.bases[index]) = (Some(chunk), base);
            self.vacant.pop();
        }
        self.close_open(epochs);
        self.open = Some(index);
        // Where much is dead, fewer and larger chunks leave it more time to die, and less to be moved.
        let is_much_dead = self.dead_bytes() > self.live_bytes() / 4 && 4 * self.live_bytes() >= self.next_bytes;
        if self.allocated_bytes / 4 >= self.next_bytes || is_much_dead {
            self.next_bytes = (self.next_bytes * 2).min(self.sizes.largest);
        }
        index
    }

    /// Returns the index of the next chunk, and reserves room for it.
    fn reserve_index(&mut self) -> usize {
        if self.vacant.len() > 2 * self.chunks.len() + 64 {
            // Most are of chunks beyond the last one, or twice there.
            let gone = self.chunks.iter().zip(0..).filter(|(chunk, _)| chunk.is_none());
            let mut vacant: BinaryHeap<_> = gone.map(|(_, index)| Reverse(index)).collect();
            vacant.reserve(self.present + 1);
            self.vacant = vacant;
        }
        while let Some(&Reverse(lowest)) = self.vacant.peek() {
            if let Some(None) = self.chunks.get(lowest as usize) {
                break;
            }
            self.vacant.pop();
        }
        let index = self.vacant.peek().map_or(self.chunks.len(), |&Reverse(lowest)| lowest as usize);
        assert!(index < MAX_CHUNKS, "there are fewer than {MAX_CHUNKS} chunks of memory: make them larger");
        if index == self.chunks.len() {
            reserve_one(&mut self.chunks);
            reserve_one(&mut self.view.bases);
            self.queue.reserve();
        }
        self.vacant.reserve(self.present + 1);
        index
    }

    /// Closes the open chunk, if there is one.
    fn close_open(&mut self, epochs: &Epochs) {
        let Some(index) = self.open.take() else { return };
        let chunk = self.chunk_mut(index);
        chunk.close(epochs.now());
        self.mark_bytes += self.chunk(index).mark_bytes();
        if self.chunk(index).live == 0 {
            self.free(epochs, index);
        } else {
            self.queue_for_evacuation(index);
        }
    }

    /// Tells the queue how much of a closed chunk is dead.
    fn queue_for_evacuation(&mut self, index: usize) {
        let Some(chunk) = &mut self.chunks[index] else { return };
        chunk.queued_again_at = self.queue.update(index, chunk.dead(), chunk.filled);
    }

    fn chunk(&self, index: usize) -> &Chunk {
        self.chunks[index].as_ref().expect("a live record's chunk is there")
    }

    fn chunk_mut(&mut self, index: usize) -> &mut Chunk {
        self.chunks[index].as_mut().expect("a live record's chunk is there")
    }

    /// Returns `true` if a live snapshot sees the record, so that it must not be changed.
    #[inline]
    pub(super) fn is_seen(&self, epochs: &Epochs, location: Location) -> bool {
        let newest = epochs.newest_snapshot();
        newest > Epoch::NONE && self.chunk(location.chunk()).is_seen(location.unit(), newest)
    }

    /// Returns the bytes of a small value, to be changed in place. `None` if the value is large or a snapshot sees it.
    pub(super) fn value_mut(&mut self, epochs: &Epochs, location: Location) -> Option<&mut [u8]> {
        let record = self.record(location);
        if record.is_large() || self.is_seen(epochs, location) {
            return None;
        }
        // SAFETY: the value is small, no snapshot sees the record (invariant 2), and the arena is borrowed exclusively.
        Some(unsafe { record.value_mut() })
    }

    /// Returns the slack that [`rewrite`](Self::rewrite) would leave. `None` if it would return `false`.
    #[inline]
    pub(super) fn slack_for(&self, epochs: &Epochs, location: Location, value_len: usize) -> Option<usize> {
        self.record(location).slack_for(value_len).filter(|_| !self.is_seen(epochs, location))
    }

    /// Replaces the small value of the record at `location`, whose key is `key`, by another small one in place.
    ///
    /// Returns `false` and changes nothing if a snapshot sees the record, or if the record is too small or too large.
    #[inline]
    pub(super) fn rewrite(&mut self, epochs: &Epochs, location: Location, key: &[u8], value: &[u8]) -> bool {
        let record = self.record(location);
        debug_assert!(record.has_key(key));
        if value.len() == record.value_len() {
            return self.value_mut(epochs, location).map(|old| old.copy_from_slice(value)).is_some();
        }
        let Some(slack) = self.slack_for(epochs, location, value.len()) else { return false };
        // SAFETY: as in `value_mut`, and with this slack. The key is the caller's, and does not lie in the record.
        unsafe { record.rewrite(key, value, slack) };
        true
    }

    /// Replaces a large value by another one of any length, in place. Gives it back if the old value is small or a
    /// snapshot sees the record.
    pub(super) fn replace_large<'a>(
        &mut self,
        epochs: &Epochs,
        location: Location,
        value: NewValue<'a>,
    ) -> Result<(), NewValue<'a>> {
        let record = self.record(location);
        if !record.is_large() || self.is_seen(epochs, location) {
            return Err(value);
        }
        let value = Node::new(value.into_bytes(), epochs);
        // SAFETY: the value is large, no snapshot sees the record (invariant 2), and the arena is borrowed exclusively.
        unsafe { record.replace_large(value) }.retire(epochs);
        Ok(())
    }

    /// Marks the record at `location`, which is live, as dead, and frees its large value.
    pub(super) fn mark_dead(&mut self, epochs: &Epochs, location: Location) {
        // SAFETY: the record is live now and dead from here on. Its bytes stay for snapshots that see them, as long as
        // the value does.
        if let Some(value) = unsafe { self.record(location).take_large() } {
            value.retire(epochs);
        }
        self.count_dead(epochs, location);
    }

    /// Counts a record as dead that no longer owns a large value.
    fn count_dead(&mut self, epochs: &Epochs, location: Location) {
        let record = self.record(location);
        let (units, is_large) = (record.units(), record.is_large());
        let index = location.chunk();
        self.large -= usize::from(is_large);
        self.live_units -= units;
        let chunk = self.chunk_mut(index);
        chunk.live -= units;
        chunk.large -= usize::from(is_large);
        if chunk.live == 0 {
            let is_evacuated = self.evacuating.is_some_and(|it| it.chunk() == index);
            if self.open != Some(index) && !is_evacuated {
                self.free(epochs, index);
            }
        } else if chunk.dead() >= chunk.queued_again_at {
            self.queue_for_evacuation(index);
        }
        if self.live_units == 0 {
            self.free_all(epochs);
        }
    }

    /// Frees the chunks that are left when no record is live: the open one and the one that is being evacuated.
    fn free_all(&mut self, epochs: &Epochs) {
        self.next_bytes = self.sizes.first;
        if let Some(at) = self.evacuating.take() {
            self.free(epochs, at.chunk());
        }
        self.close_open(epochs);
    }

    /// Frees a closed chunk.
    fn free(&mut self, epochs: &Epochs, index: usize) {
        self.queue.remove(index);
        let chunk = self.chunks[index].take().expect("a chunk is freed once");
        self.view.bases[index] = NonNull::dangling();
        self.vacant.push(Reverse(index as u32));
        self.present -= 1;
        self.filled_units -= chunk.filled;
        self.allocated_bytes -= chunk.memory.get().bytes();
        self.mark_bytes -= chunk.mark_bytes();
        chunk.memory.retire(epochs);
        while let Some(None) = self.chunks.last() {
            self.chunks.pop();
            self.view.bases.pop();
        }
        self.queue.resize(self.chunks.len());
    }

    /// Gives memory back if the arrays of chunks are far too large.
    pub(super) fn shrink(&mut self, epochs: &Epochs) {
        const FEW: usize = 64;
        if self.chunks.capacity() > FEW && self.chunks.len() < self.chunks.capacity() / 4 {
            give_back(&mut self.chunks);
            give_back(&mut self.view.bases);
            self.queue.shrink();
            self.vacant.retain(|&Reverse(index)| (index as usize) < self.chunks.len());
            self.vacant.shrink_to(self.vacant.len() + self.present + 1);
        }
        if self.chunks.len() > FEW && self.present < self.chunks.len() / 4 && self.evacuating.is_none() {
            // The last chunk keeps the arrays from shrinking. Its records move to lower ones.
            let last = self.chunks.len() - 1;
            if self.open == Some(last) {
                self.close_open(epochs);
            } else {
                self.start_evacuating(last);
            }
        }
    }

    /// Closes the open chunk if it is far too large for what is live. It has most of the dead records then, and the next
    /// chunk is no larger than need be.
    fn close_large(&mut self, epochs: &Epochs) {
        let enough = self.live_bytes().next_power_of_two();
        if self.open.is_some_and(|open| self.chunk(open).memory.get().bytes() > 8 * enough.max(self.sizes.first)) {
            self.next_bytes = self.next_bytes.min(enough).max(self.sizes.first);
            self.close_open(epochs);
        }
    }

    /// Starts to evacuate a closed chunk.
    fn start_evacuating(&mut self, index: usize) {
        self.queue.remove(index);
        self.chunk_mut(index).queued_again_at = usize::MAX;
        self.evacuating = Some(Location::new(index, 0));
    }

    /// Returns the chunks for the snapshot that ends the current epoch.
    pub(super) fn freeze(&self, epochs: &Epochs) -> ArenaView {
        if let Some(open) = self.open {
            self.chunk(open).mark(epochs.now(), epochs);
        }
        ArenaView { bases: self.view.bases.clone() }
    }

    /// Returns `true` if a chunk should be evacuated: if the dead records take more than half of what live ones do, and
    /// a chunk or two.
    pub(super) fn needs_evacuation(&self) -> bool {
        self.evacuating.is_some() || self.dead_bytes() > self.live_bytes() / 2 + 2 * self.sizes.first
    }

    /// Returns where evacuation goes on, or starts. `None` if no chunk has enough dead records.
    pub(super) fn evacuation_start(&mut self, epochs: &Epochs) -> Option<Location> {
        if self.evacuating.is_none() {
            let most_dead = self.queue.pop().or_else(|| {
                self.close_large(epochs);
                self.queue.pop()
            })?;
            self.start_evacuating(most_dead);
        }
        self.evacuating
    }

    /// Returns the record at `at`, live or dead, in the chunk that is being evacuated, and where the next one begins.
    /// `None` at the end of the chunk.
    pub(super) fn next_to_evacuate(&self, at: Location) -> Option<(Record<'_>, Location)> {
        if at.unit() >= self.chunk(at.chunk()).filled {
            return None;
        }
        let record = self.record(at);
        Some((record, Location::new(at.chunk(), at.unit() + record.units())))
    }

    /// Says that all live records of the chunk before `at` were moved.
    pub(super) fn evacuated_to(&mut self, at: Location) {
        self.evacuating = Some(at);
    }

    /// Frees the chunk that is being evacuated. All its live records were moved.
    pub(super) fn free_evacuated(&mut self, epochs: &Epochs) {
        if let Some(at) = self.evacuating.take() {
            // A live record in a freed chunk would be read from freed memory.
            assert_eq!(self.chunk(at.chunk()).live, 0, "every live record of the chunk was moved");
            self.free(epochs, at.chunk());
        }
    }

    /// Frees everything. `is_live` tells which records are live.
    pub(super) fn clear(&mut self, epochs: &Epochs, is_live: impl Fn(EntryId, Location) -> bool) {
        for index in 0..self.chunks.len() {
            let Some(chunk) = &self.chunks[index] else { continue };
            let (filled, has_large) = (chunk.filled, chunk.large > 0);
            let mut unit = 0;
            while has_large && unit < filled {
                let location = Location::new(index, unit);
                let record = self.record(location);
                unit += record.units();
                if record.is_large() && is_live(record.id(), location) {
                    // SAFETY: the record is live, and the whole chunk is dead from here on.
                    unsafe { record.take_large() }.into_iter().for_each(|value| value.retire(epochs));
                }
            }
            chunk.memory.alias().retire(epochs);
        }
        *self = Self::new(self.sizes);
    }
}

#[cfg(test)]
impl Arena {
    /// Checks invariants 1 and 3 to 8, for the records that `is_live` says are live; 2 is for sanitizers.
    pub(super) fn validate(&self, is_live: impl Fn(EntryId, Location) -> bool) {
        let (mut live_units, mut filled_units, mut allocated) = (0, 0, 0);
        for (index, chunk) in self.chunks.iter().enumerate() {
            let Some(chunk) = chunk else {
                assert!(self.vacant.iter().any(|&Reverse(vacant)| vacant as usize == index), "invariant 5");
                continue;
            };
            assert_eq!(self.view.bases[index], chunk.memory.get().start());
            assert!(bytes_for(chunk.units) <= chunk.memory.get().bytes());
            assert!(chunk.filled <= chunk.units, "invariant 1");
            let (mut unit, mut live, mut large) = (0, 0, 0);
            while unit < chunk.filled {
                let location = Location::new(index, unit);
                let record = self.record(location);
                assert!(record.slack() * 4 <= record.units(), "invariant 1 of records");
                if is_live(record.id(), location) {
                    live += record.units();
                    large += usize::from(record.is_large());
                    let value = record.value().as_slice();
                    assert_eq!(value.len(), record.value_len());
                    assert!(record.is_large() || value.as_ptr().addr() % UNIT == 0);
                }
                unit += record.units();
            }
            assert_eq!(unit, chunk.filled, "invariant 1");
            assert_eq!((live, large), (chunk.live, chunk.large), "invariant 3");
            let (is_open, is_evacuated) =
                (self.open == Some(index), self.evacuating.is_some_and(|it| it.chunk() == index));
            assert!(live > 0 || is_open || is_evacuated, "invariant 3");
            // Invariant 4, too.
            chunk.validate(is_open);
            live_units += live;
            filled_units += chunk.filled;
            allocated += chunk.memory.get().bytes();
        }
        assert_eq!((live_units, filled_units), (self.live_units, self.filled_units));
        assert!(self.vacant.capacity() - self.vacant.len() >= self.present, "invariant 5");
        assert_eq!(self.present, self.chunks.iter().flatten().count());
        assert!(!matches!(self.chunks.last(), Some(None)), "invariant 6");
        assert_eq!(self.view.bases.len(), self.chunks.len(), "invariant 6");
        assert!(self.chunks.len() <= MAX_CHUNKS, "invariant 8");
        assert_eq!(allocated, self.allocated_bytes);
        let large: usize = self.chunks.iter().flatten().map(|chunk| chunk.large).sum();
        assert_eq!(large, self.large);
        let closed = |index: usize| self.chunks[index].as_ref().filter(|_| self.open != Some(index));
        let closed_marks = (0..self.chunks.len()).filter_map(closed).map(Chunk::mark_bytes);
        assert_eq!(closed_marks.sum::<usize>(), self.mark_bytes);
        self.queue.validate(|index| {
            let queued = closed(index).filter(|_| self.evacuating.is_none_or(|it| it.chunk() != index))?;
            Some((queued.dead(), queued.filled))
        });
    }
}

#[cfg(test)]
mod tests;
