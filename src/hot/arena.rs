//! The arena: the bytes of all entries, as records in chunks.
//!
//! # Design
//!
//! ```text
//!  chunk    0    4        a record starts at 8 u + 4, u being its unit
//!           ├────┼────────────┬───────────┬─────────────────┬ ─ ─ ─ ─ ─ ┐
//!           │    │ record     │ record    │ record          │   free    │
//!           └────┴────────────┴───────────┴─────────────────┴ ─ ─ ─ ─ ─ ┘
//!
//!  record   0         4             8          10      12
//!           ├─────────┼─────────────┼──────────┼───────┼─────────┬───────┬─────────┐
//!           │ id  u32 │ value   u32 │ key  u16 │ flags │ value   │ key   │ padding │
//!           │         │ length      │ length   │ u16   │         │       │ and     │
//!           │         │             │          │       │         │       │ slack   │
//!           └─────────┴─────────────┴──────────┴───────┴─────────┴───────┴─────────┘
//!
//!  flags    slack in units (8 bits) │ 0 … 0 │ LARGE
//! ```
//!
//! Records are appended to the open chunk; a *location* names one by chunk and unit. The value comes first, at a multiple
//! of 8, for typed access in place. A large value is a handle of its own, and its record holds the address of that.
//! Chunks start small, and a new one is at most half as large as those that are there together, so that a small store is
//! small; where records are replaced all the time they double.
//!
//! A record that is replaced or removed is *dead*. A chunk without live records is freed; one that is mostly dead is
//! *emptied*: its live records are moved, a few at a time. (Rumble, Kejriwal, Ousterhout, *Log-structured Memory for
//! DRAM-based Storage*, FAST 2014.)
//!
//! A record is changed where it lies as long as no live snapshot sees it (the idea of the mutable region of FASTER, SIGMOD
//! 2018). Whether one does follows from the chunk: from when it was opened and closed, and how far it was filled when a
//! snapshot was taken in between. A value of another length is written in place, too, where the record has room for it and
//! at most a quarter of that is left over, its *slack*: values whose lengths go up and down settle. Who moves a record
//! leaves the slack behind.
//!
//! # Why this and not the other way
//!
//! Handles that point into chunks would pin them and forbid changes in place, at no gain: a copy of a small value costs
//! about one small allocation, which a handle to a chunk costs as well. An epoch in each record would cost 8 bytes an
//! entry; marks in the one chunk that is open when a snapshot is taken cost 16 bytes a snapshot.
//!
//! # Invariants
//!
//! 1. Records lie one after the other from unit 0 to the chunk's `filled`, which is at most its `units`; each lies within
//!    the chunk, and all bytes of it up to its padding were written. Its slack is at most a quarter of it.
//! 2. What lies at or above `filled` belongs to the writer alone. What lies below is read by snapshots that see it, and
//!    changed only while none does.
//! 3. `live` of a chunk is the number of units of its live records; a chunk that has none is open, being emptied, or gone.
//! 4. Every chunk but the open one is closed; `marks` of a chunk are the epochs of snapshots taken while it was open, in
//!    ascending order, each with how far it was filled then. A snapshot that found it filled as the one before leaves none.
//! 5. A record with the flag `LARGE` holds the address of a `Node<Bytes>`, which it owns while it is live.
//! 6. `vacant` has room for the places of all chunks: to let go of a record or a chunk allocates nothing.

#![allow(unsafe_code, reason = "records are read and written by address within memory that the arena owns")]

use std::alloc::Layout;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;

use bytes::Bytes;

use super::spare::Block;
use super::versions::{Epoch, Node, Versions};
use crate::aligned::aligned_copy;

/// Names a record: its chunk and its unit. Below 2^48.
pub(super) type Location = u64;

const UNIT_BITS: u32 = 18;
/// The bytes of a unit, and the alignment of values.
const UNIT: usize = 8;
/// Where the first record of a chunk starts, so that values are aligned behind headers of 12 bytes.
const FIRST: usize = 4;
const HEADER: usize = 12;
const LARGE: u16 = 1;
const SLACK_SHIFT: u32 = 8;

/// How large chunks are, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkSizes {
    pub(super) first: usize,
    pub(super) largest: usize,
}

impl ChunkSizes {
    /// The most that a location can name.
    pub(super) const MOST: usize = UNIT << UNIT_BITS;
}

/// A value on its way into the arena.
pub(super) enum NewValue<'a> {
    Small(&'a [u8]),
    /// Aligned, as it is handed out.
    Large(Bytes),
}

/// A value as it lies in the arena.
#[derive(Clone, Copy)]
pub(super) enum ValueRef<'a> {
    Small(&'a [u8]),
    Large(&'a Bytes),
}

impl<'a> ValueRef<'a> {
    pub(super) fn as_slice(self) -> &'a [u8] {
        match self {
            Self::Small(value) => value,
            Self::Large(value) => value,
        }
    }

    /// Returns the value as an aligned handle.
    #[inline]
    pub(super) fn to_bytes(self) -> Bytes {
        match self {
            Self::Small(value) => aligned_copy(value),
            Self::Large(value) => value.clone(),
        }
    }
}

/// How the memory of a chunk is laid out: a huge page where it is large enough to be one, else by cache lines.
fn chunk_layout(bytes: usize) -> Layout {
    let align = if bytes >= ChunkSizes::MOST { ChunkSizes::MOST } else { 64 };
    Layout::from_size_align(bytes, align).expect("a chunk is far smaller than the address space")
}

/// Asks the system to put a full chunk in a huge page when it has time, which takes some off a lookup among millions. It
/// is advice: it may do nothing. To ask before the chunk is filled would stop the writer for each 2 MiB that are cleared
/// at once: for 4 to 5 ms on a virtual machine whose host has to find them, too.
fn advise_huge_pages(memory: &Block) {
    let (base, bytes) = (memory.start(), memory.bytes());
    if bytes < ChunkSizes::MOST {
        return;
    }
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        unsafe extern "C" {
            fn madvise(address: *mut u8, len: usize, advice: i32) -> i32;
        }
        const MADV_HUGEPAGE: i32 = 14;
        // SAFETY: the range is allocated, and this advice does not change what it holds.
        unsafe { madvise(base.as_ptr(), bytes, MADV_HUGEPAGE) };
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = base;
}

/// A chunk as the writer sees it.
struct Chunk {
    memory: Node<Block>,
    /// How many units fit.
    units: usize,
    filled: usize,
    live: usize,
    /// How many live records have a large value.
    large: usize,
    opened: Epoch,
    /// The epoch in which it was closed, `u64::MAX` while it is open.
    closed: Epoch,
    /// A cell, because a snapshot is taken through a shared reference.
    marks: RefCell<Vec<(Epoch, usize)>>,
}

impl Chunk {
    /// Returns `true` if the newest live snapshot, of epoch `newest`, sees the record at `unit`.
    fn is_seen(&self, unit: usize, newest: Epoch) -> bool {
        if newest < self.opened {
            return false;
        }
        if newest >= self.closed {
            return true;
        }
        let marks = self.marks.borrow();
        let following = marks.partition_point(|&(epoch, _)| epoch <= newest);
        // The snapshot left a mark, or found the one before it as it would have left its own (invariant 4).
        marks[..following].last().is_some_and(|&(_, filled)| unit < filled)
    }
}

/// Reads the record at an address.
///
/// # Safety
///
/// A record lies there, and stays as it is for `'a`.
#[inline]
unsafe fn record_at<'a>(start: NonNull<u8>) -> Record<'a> {
    Record { start, lives: PhantomData }
}

/// A record as it lies in a chunk.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    start: NonNull<u8>,
    lives: PhantomData<&'a u8>,
}

impl<'a> Record<'a> {
    /// Reads a field of the header.
    #[inline]
    fn field<T: Copy>(self, at: usize) -> T {
        debug_assert!(at + size_of::<T>() <= HEADER);
        // SAFETY: the header was written (invariant 1), and `at` is the aligned offset of a field of that type in it:
        // records start at 4 modulo 8 from an aligned base.
        unsafe { self.start.add(at).cast::<T>().read() }
    }

    #[inline]
    pub(super) fn id(self) -> u32 {
        self.field(0)
    }

    /// The length of the value, large or not.
    #[inline]
    pub(super) fn value_len(self) -> usize {
        self.field::<u32>(4) as usize
    }

    #[inline]
    pub(super) fn key_len(self) -> usize {
        self.field::<u16>(8).into()
    }

    #[inline]
    pub(super) fn is_large(self) -> bool {
        self.field::<u16>(10) & LARGE != 0
    }

    /// How many units the record has beyond what it needs.
    fn slack(self) -> usize {
        usize::from(self.field::<u16>(10) >> SLACK_SHIFT)
    }

    /// The bytes between the header and the key.
    #[inline]
    fn slot_len(self) -> usize {
        if self.is_large() { size_of::<usize>() } else { self.value_len() }
    }

    fn units(self) -> usize {
        units_of(self.slot_len(), self.key_len()) + self.slack()
    }

    /// Returns the bytes that the record takes of its chunk.
    pub(super) fn len(self) -> usize {
        self.units() * UNIT
    }

    /// The slack that is left if a small value takes the place of this one; `None` if it does not fit, or fits too loosely.
    fn slack_for(self, value_len: usize) -> Option<usize> {
        let units = self.units();
        let slack = units.checked_sub(units_of(value_len, self.key_len()))?;
        (!self.is_large() && slack * 4 <= units && slack <= usize::from(u8::MAX)).then_some(slack)
    }

    /// `len` bytes from `at` on.
    #[inline]
    fn bytes(self, at: usize, len: usize) -> &'a [u8] {
        // SAFETY: callers ask for the parts of the record by its own lengths, all written (invariant 1), and nothing
        // writes to them for `'a` (see `record_at`).
        unsafe { slice::from_raw_parts(self.start.add(at).as_ptr(), len) }
    }

    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        self.bytes(HEADER + self.slot_len(), self.key_len())
    }

    /// Returns `true` if this is the record of `key`.
    #[inline(always)]
    pub(super) fn has_key(self, key: &[u8]) -> bool {
        equal(self.key(), key)
    }

    #[inline]
    pub(super) fn value(self) -> ValueRef<'a> {
        if self.is_large() {
            ValueRef::Large(self.large())
        } else {
            ValueRef::Small(self.bytes(HEADER, self.value_len()))
        }
    }

    fn large_slot(self) -> NonNull<Node<Bytes>> {
        debug_assert!(self.is_large());
        // SAFETY: the slot follows the header within the record.
        unsafe { self.start.add(HEADER).cast() }
    }

    fn large(self) -> &'a Bytes {
        // SAFETY: the slot holds a node (invariant 5), aligned as values are, that lives as long as the record is seen.
        unsafe { self.large_slot().as_ref() }.get()
    }
}

/// Compares bytes of usual length here: to call the function that compares any length costs more than the comparison.
#[inline(always)]
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    // The first and the last eight bytes; in the middle both look at the same.
    let ends = |it: &[u8]| Some((u64::from_ne_bytes(*it.first_chunk()?), u64::from_ne_bytes(*it.last_chunk()?)));
    a.len() == b.len() && if (8..=16).contains(&a.len()) { ends(a) == ends(b) } else { a == b }
}

fn units_of(slot_len: usize, key_len: usize) -> usize {
    (HEADER + slot_len + key_len).div_ceil(UNIT)
}

fn location(chunk: usize, unit: usize) -> Location {
    (chunk as u64) << UNIT_BITS | unit as u64
}

fn chunk_of(location: Location) -> usize {
    (location >> UNIT_BITS) as usize
}

fn unit_of(location: Location) -> usize {
    (location & ((1 << UNIT_BITS) - 1)) as usize
}

/// The address of a unit.
///
/// # Safety
///
/// The unit is one of the chunk's that starts at `base`.
#[inline]
unsafe fn address(base: NonNull<u8>, unit: usize) -> NonNull<u8> {
    // SAFETY: by the caller, it lies within the chunk.
    unsafe { base.add(FIRST + unit * UNIT) }
}

/// All chunks of a store, as its writer has them.
///
/// It must be [cleared](Self::clear) before it is dropped, or its chunks are never freed.
pub(super) struct Arena {
    sizes: ChunkSizes,
    /// `None` where a chunk is gone and its place is free.
    chunks: Vec<Option<Chunk>>,
    /// Apart, because every access to a record needs this and only this.
    view: ArenaView,
    vacant: Vec<usize>,
    /// The chunk that is appended to.
    open: Option<usize>,
    /// How large the next chunk is.
    next_bytes: usize,
    /// The chunk that is being emptied, and the unit up to which it is.
    emptied: Option<(usize, usize)>,
    live_units: usize,
    filled_units: usize,
    allocated_bytes: usize,
}

/// Reads records: those of the arena that it is a part of, or those that a snapshot sees.
pub(super) struct ArenaView {
    /// Where each chunk starts; dangling where it is gone.
    bases: Vec<NonNull<u8>>,
}

// SAFETY: the bases point to memory that chunks own, which is `Send`. What a snapshot sees is neither written nor freed
// while it lives (invariant 2, and 4 of `versions.rs`), and so is the arena's own view while it is borrowed.
unsafe impl Send for ArenaView {}
// SAFETY: as above.
unsafe impl Sync for ArenaView {}

impl ArenaView {
    /// The record at `location`, which is live, or which the snapshot sees.
    #[inline]
    pub(super) fn record(&self, location: Location) -> Record<'_> {
        // SAFETY: the location of a live record names a unit of a chunk that is there; and the arena, which alone changes
        // records, is borrowed with its view. Locations in a snapshot's table are of records that it sees.
        unsafe { record_at(address(self.bases[chunk_of(location)], unit_of(location))) }
    }

    /// Where a record starts, to be prefetched.
    #[inline]
    pub(super) fn address(&self, location: Location) -> *const u8 {
        self.bases[chunk_of(location)].as_ptr().wrapping_add(FIRST + unit_of(location) * UNIT)
    }
}

impl Arena {
    pub(super) fn new(sizes: ChunkSizes) -> Self {
        debug_assert!(sizes.first <= sizes.largest && sizes.largest <= ChunkSizes::MOST);
        Self {
            sizes,
            chunks: Vec::new(),
            view: ArenaView { bases: Vec::new() },
            vacant: Vec::new(),
            open: None,
            next_bytes: sizes.first,
            emptied: None,
            live_units: 0,
            filled_units: 0,
            allocated_bytes: 0,
        }
    }

    pub(super) fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    /// The bytes of live records, headers and padding included.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_units * UNIT
    }

    /// The bytes of dead records.
    pub(super) fn dead_bytes(&self) -> usize {
        (self.filled_units - self.live_units) * UNIT
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    pub(super) fn chunks(&self) -> usize {
        self.chunks.len() - self.vacant.len()
    }

    /// How the memory of the next chunk is laid out, unless a record needs more.
    pub(super) fn next_layout(&self) -> Layout {
        chunk_layout(self.next_bytes)
    }

    /// The records to be read.
    #[inline]
    pub(super) fn view(&self) -> &ArenaView {
        &self.view
    }

    /// The record at `location`, which is live.
    #[inline]
    pub(super) fn record(&self, location: Location) -> Record<'_> {
        self.view.record(location)
    }

    /// Appends a live record. If there is no memory for it, nothing has changed.
    ///
    /// # Panics
    ///
    /// If the key is longer than a header can say. (Invariant 1 depends on it, so it is checked here, too.)
    pub(super) fn append(&mut self, versions: &Versions, id: u32, key: &[u8], value: NewValue<'_>) -> Location {
        assert!(key.len() <= usize::from(u16::MAX), "keys are within their limit");
        let (slot_len, value_len, flags) = match &value {
            NewValue::Small(value) => (value.len(), value.len(), 0),
            NewValue::Large(value) => (size_of::<usize>(), value.len(), LARGE),
        };
        let units = units_of(slot_len, key.len());
        let chunk = self.room_for(versions, units);
        let (value, large) = match value {
            NewValue::Small(value) => (value, None),
            NewValue::Large(value) => (&[][..], Some(Node::new(value, versions))),
        };
        let unit = self.claim(chunk, units);
        // SAFETY: there is room from this unit on.
        let start = unsafe { address(self.view.bases[chunk], unit) };
        // SAFETY: the record lies within the claimed units, which belong to the writer alone (invariant 2); the fields are
        // aligned as in `Record::field`.
        unsafe {
            start.cast::<u32>().write(id);
            start.add(4).cast::<u32>().write(value_len as u32);
            start.add(8).cast::<u16>().write(key.len() as u16);
            start.add(10).cast::<u16>().write(flags);
            match large {
                None => ptr::copy_nonoverlapping(value.as_ptr(), start.add(HEADER).as_ptr(), value.len()),
                Some(value) => start.add(HEADER).cast::<Node<Bytes>>().write(value),
            }
            ptr::copy_nonoverlapping(key.as_ptr(), start.add(HEADER + slot_len).as_ptr(), key.len());
        }
        self.chunk_mut(chunk).large += usize::from(flags & LARGE);
        location(chunk, unit)
    }

    /// Appends a copy of the live record at `from`, which is dead from then on. If there is no memory for it, nothing has
    /// changed.
    pub(super) fn relocate(&mut self, versions: &Versions, from: Location) -> Location {
        let record = self.record(from);
        let (source, units, is_large) = (record.start, record.units() - record.slack(), record.is_large());
        let len = HEADER + record.slot_len() + record.key_len();
        let chunk = self.room_for(versions, units);
        let unit = self.claim(chunk, units);
        // SAFETY: as in `append`; the source is a whole record (invariant 1), elsewhere, which nothing has moved. The
        // address of a large value goes along, and with it the ownership (invariant 5); the slack does not.
        unsafe {
            let start = address(self.view.bases[chunk], unit);
            ptr::copy_nonoverlapping(source.as_ptr(), start.as_ptr(), len);
            start.add(10).cast::<u16>().write(if is_large { LARGE } else { 0 });
        }
        self.chunk_mut(chunk).large += usize::from(is_large);
        self.forget(versions, from);
        location(chunk, unit)
    }

    /// The open chunk, a new one if need be, which has room for so many units.
    fn room_for(&mut self, versions: &Versions, units: usize) -> usize {
        match self.open {
            Some(open) if self.chunk(open).filled + units <= self.chunk(open).units => open,
            _ => self.open_chunk(versions, units),
        }
    }

    /// Takes units from the open chunk, which has room for them.
    fn claim(&mut self, open: usize, units: usize) -> usize {
        let chunk = self.chunk_mut(open);
        let unit = chunk.filled;
        chunk.filled += units;
        chunk.live += units;
        self.live_units += units;
        self.filled_units += units;
        unit
    }

    /// The bytes that would be allocated for one more record with a value of this length.
    pub(super) fn growth(&self, key_len: usize, value_len: usize) -> usize {
        let units = units_of(value_len.max(size_of::<usize>()), key_len);
        match self.open {
            Some(open) if self.chunk(open).filled + units <= self.chunk(open).units => 0,
            _ => self.next_bytes.max(FIRST + units * UNIT),
        }
    }

    /// Closes the open chunk and opens one that has room for `units`.
    #[cold]
    fn open_chunk(&mut self, versions: &Versions, units: usize) -> usize {
        let bytes = self.next_bytes.max(FIRST + units * UNIT);
        // Allocations come first. When a chunk is freed its place must be noted, which cannot fail then.
        self.chunks.reserve(1);
        self.view.bases.reserve(1);
        self.vacant.reserve(self.chunks.len() + 1 - self.vacant.len());
        let memory = versions.allocate_chunk(chunk_layout(bytes));
        let base = memory.start();
        let chunk = Chunk {
            memory: Node::of_chunk(memory, versions),
            units: (bytes - FIRST) / UNIT,
            filled: 0,
            live: 0,
            large: 0,
            opened: versions.now(),
            closed: Epoch::MAX,
            marks: RefCell::default(),
        };
        self.allocated_bytes += bytes;
        // Where much is dead, fewer and larger chunks leave it more time to die, and less to be moved.
        if self.allocated_bytes / 4 >= self.next_bytes || self.dead_bytes() > self.live_bytes() / 4 {
            self.next_bytes = (self.next_bytes * 2).min(self.sizes.largest);
        }
        let place = match self.vacant.pop() {
            Some(place) => {
                (self.chunks[place], self.view.bases[place]) = (Some(chunk), base);
                place
            }
            None => {
                self.chunks.push(Some(chunk));
                self.view.bases.push(base);
                self.chunks.len() - 1
            }
        };
        if let Some(closed) = self.open.replace(place) {
            // Records appended in this epoch are seen by the snapshot that ends it.
            let chunk = self.chunk_mut(closed);
            chunk.closed = versions.now();
            advise_huge_pages(chunk.memory.get());
            self.free_if_dead(versions, closed);
        }
        place
    }

    fn chunk(&self, place: usize) -> &Chunk {
        self.chunks[place].as_ref().expect("a live record's chunk is there")
    }

    fn chunk_mut(&mut self, place: usize) -> &mut Chunk {
        self.chunks[place].as_mut().expect("a live record's chunk is there")
    }

    /// Returns `true` if a live snapshot sees the record, so that it must not be changed.
    #[inline]
    fn is_seen(&self, versions: &Versions, location: Location) -> bool {
        match versions.newest_live() {
            0 => false,
            newest => self.chunk(chunk_of(location)).is_seen(unit_of(location), newest),
        }
    }

    /// The bytes of a small value, to be changed in place; `None` if the value is large or a snapshot sees it.
    pub(super) fn value_mut(&mut self, versions: &Versions, location: Location) -> Option<&mut [u8]> {
        let record = self.record(location);
        if record.is_large() || self.is_seen(versions, location) {
            return None;
        }
        let (start, len) = (record.start, record.value_len());
        // SAFETY: the value's bytes lie behind the header, and nobody else reads them: no snapshot sees the record, and
        // the arena is borrowed exclusively.
        Some(unsafe { slice::from_raw_parts_mut(start.add(HEADER).as_ptr(), len) })
    }

    /// Returns the slack that [`rewrite`](Self::rewrite) would leave; `None` if it would not succeed.
    #[inline]
    pub(super) fn fits(&self, versions: &Versions, location: Location, value_len: usize) -> Option<usize> {
        self.record(location).slack_for(value_len).filter(|_| !self.is_seen(versions, location))
    }

    /// Replaces the small value of the record at `location`, which is that of `key`, by another small one, in place; `false`
    /// if that cannot be, because a snapshot sees the record, or for the room that it has.
    #[inline]
    pub(super) fn rewrite(&mut self, versions: &Versions, location: Location, key: &[u8], value: &[u8]) -> bool {
        let record = self.record(location);
        debug_assert!(record.has_key(key));
        if value.len() == record.value_len() {
            return self.value_mut(versions, location).map(|old| old.copy_from_slice(value)).is_some();
        }
        let Some(slack) = self.fits(versions, location, value.len()) else { return false };
        let start = record.start;
        // SAFETY: as in `value_mut`; with as much slack as `fits` found, the header, the value and the key take the units
        // that the record has (invariant 1). The key is the caller's, and does not lie in the record.
        unsafe {
            start.add(4).cast::<u32>().write(value.len() as u32);
            start.add(10).cast::<u16>().write((slack as u16) << SLACK_SHIFT);
            ptr::copy_nonoverlapping(value.as_ptr(), start.add(HEADER).as_ptr(), value.len());
            ptr::copy_nonoverlapping(key.as_ptr(), start.add(HEADER + value.len()).as_ptr(), key.len());
        }
        true
    }

    /// Replaces a large value by another one of any length, in place; gives it back if that cannot be.
    pub(super) fn replace_large(&mut self, versions: &Versions, location: Location, value: Bytes) -> Result<(), Bytes> {
        let record = self.record(location);
        if !record.is_large() || self.is_seen(versions, location) {
            return Err(value);
        }
        let len = value.len() as u32;
        let value = Node::new(value, versions);
        // SAFETY: as in `value_mut`; the slot holds a node that the record owns, and the length is a field of the header.
        let old = unsafe {
            record.start.add(4).cast::<u32>().write(len);
            record.large_slot().replace(value)
        };
        old.retire(versions);
        Ok(())
    }

    /// Ends the life of the record at `location`.
    pub(super) fn kill(&mut self, versions: &Versions, location: Location) {
        let record = self.record(location);
        if record.is_large() {
            // SAFETY: the slot holds a node that the record owns (invariant 5). The record gives it up here, once, for it
            // is live now and dead from here on; its bytes stay for snapshots that see them, as long as the node does.
            unsafe { record.large_slot().read() }.retire(versions);
        }
        self.forget(versions, location);
    }

    /// Counts a record as dead. Its large value, if any, is somebody else's by now.
    fn forget(&mut self, versions: &Versions, location: Location) {
        let record = self.record(location);
        let (units, is_large) = (record.units(), record.is_large());
        let place = chunk_of(location);
        let chunk = self.chunk_mut(place);
        chunk.live -= units;
        chunk.large -= usize::from(is_large);
        self.live_units -= units;
        self.free_if_dead(versions, place);
    }

    fn free_if_dead(&mut self, versions: &Versions, place: usize) {
        let is_busy = self.open == Some(place) || self.emptied.is_some_and(|(emptied, _)| emptied == place);
        if self.chunk(place).live == 0 && !is_busy {
            self.free(versions, place);
        }
    }

    fn free(&mut self, versions: &Versions, place: usize) {
        let chunk = self.chunks[place].take().expect("a chunk is freed once");
        self.view.bases[place] = NonNull::dangling();
        self.vacant.push(place);
        self.filled_units -= chunk.filled;
        self.allocated_bytes -= chunk.memory.get().bytes();
        chunk.memory.retire(versions);
    }

    /// The chunks for a snapshot of epoch `epoch`, which ends now.
    pub(super) fn freeze(&self, epoch: Epoch) -> ArenaView {
        if let Some(open) = self.open {
            let Chunk { marks, filled, .. } = self.chunk(open);
            let mut marks = marks.borrow_mut();
            if marks.last().is_none_or(|(_, last)| last != filled) {
                marks.push((epoch, *filled));
            }
        }
        ArenaView { bases: self.view.bases.clone() }
    }

    /// Returns `true` if so much is dead that a chunk should be emptied: more than half of what is live, beyond a chunk
    /// or two.
    pub(super) fn wants_emptying(&self) -> bool {
        self.emptied.is_some() || self.dead_bytes() > self.live_bytes() / 2 + 2 * self.sizes.first
    }

    /// Where the rest of the chunk begins that is being emptied, or of the one that is to be, if there is one.
    pub(super) fn emptied_from(&mut self) -> Option<Location> {
        let (place, unit) = match self.emptied {
            Some(emptied) => emptied,
            None => {
                let closed = self.chunks.iter().enumerate().filter(|(place, _)| self.open != Some(*place));
                let dead = closed.filter_map(|(place, chunk)| chunk.as_ref().map(|it| (it.filled - it.live, place)));
                let (_, place) = dead.max()?;
                (place, 0)
            }
        };
        self.emptied = Some((place, unit));
        Some(location(place, unit))
    }

    /// The record at this place of the chunk that is being emptied, live or dead, and where the next one begins. `None` when
    /// the chunk is through, and is to be [freed](Self::free_emptied).
    pub(super) fn next_to_empty(&self, at: Location) -> Option<(Record<'_>, Location)> {
        if unit_of(at) >= self.chunk(chunk_of(at)).filled {
            return None;
        }
        let record = self.record(at);
        Some((record, at + record.units() as u64))
    }

    /// Says that all live records of the chunk before this place were moved.
    pub(super) fn emptied_to(&mut self, at: Location) {
        self.emptied = Some((chunk_of(at), unit_of(at)));
    }

    /// Frees the chunk that is being emptied, if one is, all of whose live records were moved.
    pub(super) fn free_emptied(&mut self, versions: &Versions) {
        if let Some((place, _)) = self.emptied.take() {
            // Without this they would be read where nothing is any more.
            assert_eq!(self.chunk(place).live, 0, "every live record of the chunk was moved");
            self.free(versions, place);
        }
    }

    /// Frees everything.
    pub(super) fn clear(&mut self, versions: &Versions, is_live: impl Fn(u32, Location) -> bool) {
        for place in 0..self.chunks.len() {
            let Some(chunk) = &self.chunks[place] else { continue };
            let (filled, has_large) = (chunk.filled, chunk.large > 0);
            let mut unit = 0;
            while has_large && unit < filled {
                let location = location(place, unit);
                let record = self.record(location);
                unit += record.units();
                if record.is_large() && is_live(record.id(), location) {
                    // SAFETY: as in `kill`; the whole chunk is dead from here on.
                    unsafe { record.large_slot().read() }.retire(versions);
                }
            }
            self.free(versions, place);
        }
        *self = Self::new(self.sizes);
    }
}

#[cfg(test)]
impl Arena {
    /// Checks invariants 1, 3, 4 and 6, for the records that `is_live` says are live; 2 and 5 are for sanitizers.
    pub(super) fn validate(&self, is_live: impl Fn(u32, Location) -> bool) {
        let (mut live_units, mut filled_units, mut allocated) = (0, 0, 0);
        for (place, chunk) in self.chunks.iter().enumerate() {
            let Some(chunk) = chunk else {
                assert!(self.vacant.contains(&place));
                continue;
            };
            assert_eq!(self.view.bases[place], chunk.memory.get().start());
            assert!(FIRST + chunk.units * UNIT <= chunk.memory.get().bytes());
            assert!(chunk.filled <= chunk.units, "invariant 1");
            let (mut unit, mut live, mut large) = (0, 0, 0);
            while unit < chunk.filled {
                let record = self.record(location(place, unit));
                assert!(record.slack() * 4 <= record.units(), "invariant 1");
                if is_live(record.id(), location(place, unit)) {
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
            let (is_open, is_emptied) =
                (self.open == Some(place), self.emptied.is_some_and(|(emptied, _)| emptied == place));
            assert!(live > 0 || is_open || is_emptied, "invariant 3");
            assert_eq!(is_open, chunk.closed == Epoch::MAX, "invariant 4");
            assert!(chunk.marks.borrow().is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "invariant 4");
            live_units += live;
            filled_units += chunk.filled;
            allocated += chunk.memory.get().bytes();
        }
        assert_eq!((live_units, filled_units), (self.live_units, self.filled_units));
        assert!(self.vacant.capacity() >= self.chunks.len(), "invariant 6");
        assert_eq!(allocated, self.allocated_bytes);
    }
}

#[cfg(test)]
mod tests;
