//! [`Record`]: an entry as it lies in a chunk.
//!
//! # Design
//!
//! ```text
//!   0         4             8          10      12
//!   ├─────────┼─────────────┼──────────┼───────┼─────────┬───────┬─────────┐
//!   │ id  u32 │ value   u32 │ key  u16 │ flags │ value   │ key   │ padding │
//!   │         │ length      │ length   │ u16   │         │       │ and     │
//!   │         │             │          │       │         │       │ slack   │
//!   └─────────┴─────────────┴──────────┴───────┴─────────┴───────┴─────────┘
//!
//!   flags    slack in units (8 bits) │ 0 … 0 │ LARGE
//! ```
//!
//! Records take whole *units* of 8 bytes and start 4 bytes behind a unit's border. So the value, which comes first, is
//! aligned to 8, for typed access in place. A large value is a handle of its own, and the record holds the handle's
//! address.
//!
//! A shorter value may take the place of a longer one. The units that it leaves over are the record's *slack*: at most
//! a quarter of the record, so that values whose lengths go up and down settle.
//!
//! # Invariants
//!
//! 1. A record starts at 4 modulo 8, and all its bytes up to the padding were written. Its slack is at most a quarter
//!    of it.
//! 2. A record with the flag `LARGE` holds a `Node<Bytes>`, which it owns while it is live.

#![allow(unsafe_code, reason = "records are read and written by address")]

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;

use bytes::Bytes;

use super::entry_id::EntryId;
use super::node::Node;
use super::value::ValueRef;
use crate::handles::CowBytes;

/// The bytes of a unit, and the alignment of values.
pub(super) const UNIT: usize = 8;
const HEADER: usize = 12;

/// Offsets of the header's fields.
const ID: usize = 0;
const VALUE_LEN: usize = 4;
const KEY_LEN: usize = 8;
const FLAGS: usize = 10;

const LARGE: u16 = 1;
const SLACK_SHIFT: u32 = 8;

/// A record in the memory of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    start: NonNull<u8>,
    lives: PhantomData<&'a u8>,
}

/// The value that a record is written with.
pub(super) enum RecordValue<'a> {
    Small(&'a [u8]),
    Large(Node<Bytes>),
}

/// The bytes that a large value takes in its record.
pub(super) const LARGE_SLOT: usize = size_of::<Node<Bytes>>();

/// Returns how many units a record takes that has no slack. `slot_len` is the length of a small value or
/// [`LARGE_SLOT`].
pub(super) fn units_for(slot_len: usize, key_len: usize) -> usize {
    (HEADER + slot_len + key_len).div_ceil(UNIT)
}

impl<'a> Record<'a> {
    /// Reads the record at an address.
    ///
    /// # Safety
    ///
    /// A record lies there, and stays as it is for `'a`.
    #[inline]
    pub(super) unsafe fn at(start: NonNull<u8>) -> Self {
        Self { start, lives: PhantomData }
    }

    /// Writes a record.
    ///
    /// # Safety
    ///
    /// `start` is at 4 modulo 8. The record's [units](units_for) from there are memory that nobody else uses.
    #[inline]
    pub(super) unsafe fn write(start: NonNull<u8>, id: EntryId, key: &[u8], value: RecordValue<'_>) {
        let (slot_len, value_len, flags) = match &value {
            RecordValue::Small(value) => (value.len(), value.len(), 0),
            RecordValue::Large(value) => (LARGE_SLOT, value.get().len(), LARGE),
        };
        // SAFETY: by the caller, header, value and key lie in memory that nobody else uses; fields are aligned for a
        // start at 4 modulo 8, and so is the address of a large value.
        unsafe {
            start.add(ID).cast::<u32>().write(id.get());
            start.add(VALUE_LEN).cast::<u32>().write(value_len as u32);
            start.add(KEY_LEN).cast::<u16>().write(key.len() as u16);
            start.add(FLAGS).cast::<u16>().write(flags);
            match value {
                RecordValue::Small(value) => {
                    ptr::copy_nonoverlapping(value.as_ptr(), start.add(HEADER).as_ptr(), value.len());
                }
                RecordValue::Large(value) => start.add(HEADER).cast::<Node<Bytes>>().write(value),
            }
            ptr::copy_nonoverlapping(key.as_ptr(), start.add(HEADER + slot_len).as_ptr(), key.len());
        }
    }

    /// Reads a field of the header.
    #[inline]
    fn field<T: Copy>(self, at: usize) -> T {
        debug_assert!(at + size_of::<T>() <= HEADER);
        // SAFETY: the header was written, and `at` is the aligned offset of a field of that type (invariant 1).
        unsafe { self.start.add(at).cast::<T>().read() }
    }

    #[inline]
    pub(super) fn id(self) -> EntryId {
        EntryId::new(self.field(ID))
    }

    /// Returns the length of the value, small or large.
    #[inline]
    pub(super) fn value_len(self) -> usize {
        self.field::<u32>(VALUE_LEN) as usize
    }

    #[inline]
    pub(super) fn key_len(self) -> usize {
        self.field::<u16>(KEY_LEN).into()
    }

    #[inline]
    pub(super) fn is_large(self) -> bool {
        self.field::<u16>(FLAGS) & LARGE != 0
    }

    /// Returns the value's length if it is large, else 0.
    #[inline]
    pub(super) fn large_len(self) -> usize {
        if self.is_large() { self.value_len() } else { 0 }
    }

    /// Returns how many units the record has beyond those that it needs.
    pub(super) fn slack(self) -> usize {
        usize::from(self.field::<u16>(FLAGS) >> SLACK_SHIFT)
    }

    /// Returns the number of bytes between the header and the key.
    #[inline]
    fn slot_len(self) -> usize {
        if self.is_large() { LARGE_SLOT } else { self.value_len() }
    }

    /// Returns how many units the record needs.
    pub(super) fn needed_units(self) -> usize {
        units_for(self.slot_len(), self.key_len())
    }

    /// Returns how many units of its chunk the record takes, slack included.
    pub(super) fn units(self) -> usize {
        self.needed_units() + self.slack()
    }

    /// Returns how many bytes of its chunk the record takes.
    pub(super) fn len(self) -> usize {
        self.units() * UNIT
    }

    /// Returns the slack that is left if a small value replaces this one in place. `None` if this value is large, or if
    /// the new one needs more room or would leave too much.
    pub(super) fn slack_for(self, value_len: usize) -> Option<usize> {
        let units = self.units();
        let slack = units.checked_sub(units_for(value_len, self.key_len()))?;
        (!self.is_large() && slack * 4 <= units && slack <= usize::from(u8::MAX)).then_some(slack)
    }

    #[inline]
    fn bytes(self, at: usize, len: usize) -> &'a [u8] {
        // SAFETY: callers ask for the value or the key, by the lengths in the header. Both were written (invariant 1),
        // and nothing writes to them for `'a` (see `at`).
        unsafe { slice::from_raw_parts(self.start.add(at).as_ptr(), len) }
    }

    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        self.bytes(HEADER + self.slot_len(), self.key_len())
    }

    #[inline(always)]
    pub(super) fn has_key(self, key: &[u8]) -> bool {
        equal(self.key(), key)
    }

    #[inline]
    pub(super) fn value(self) -> ValueRef<'a> {
        if self.is_large() {
            // SAFETY: the slot holds a node (invariant 2), which lives as long as the record is seen.
            ValueRef::Large(unsafe { self.large_slot().as_ref() }.get())
        } else {
            ValueRef::Small(self.bytes(HEADER, self.value_len()))
        }
    }

    /// Returns key and value for a scan, which makes handles of them.
    #[inline]
    pub(super) fn to_entry(self) -> (CowBytes<'a>, CowBytes<'a>) {
        (CowBytes::Borrowed(self.key()), self.value().to_cow())
    }

    fn large_slot(self) -> NonNull<Node<Bytes>> {
        debug_assert!(self.is_large());
        // SAFETY: the slot follows the header within the record.
        unsafe { self.start.add(HEADER).cast() }
    }

    /// Copies the record to `to`, without its slack. The copy owns the large value, if there is one, from then on.
    ///
    /// # Safety
    ///
    /// `to` is at 4 modulo 8. The [units that the record needs](Self::needed_units) from there are memory that nobody
    /// else uses. This record is dead from then on.
    pub(super) unsafe fn move_to(self, to: NonNull<u8>) {
        let len = HEADER + self.slot_len() + self.key_len();
        let flags = if self.is_large() { LARGE } else { 0 };
        // SAFETY: the source is a whole record (invariant 1); by the caller, the target is as large, and elsewhere.
        unsafe {
            ptr::copy_nonoverlapping(self.start.as_ptr(), to.as_ptr(), len);
            to.add(FLAGS).cast::<u16>().write(flags);
        }
    }

    /// Sets the id.
    ///
    /// # Safety
    ///
    /// Nobody else reads or writes the record.
    pub(super) unsafe fn set_id(self, id: EntryId) {
        // SAFETY: the id is a field of the header; by the caller, it is borrowed exclusively.
        unsafe { self.start.add(ID).cast::<u32>().write(id.get()) };
    }

    /// Returns a small value, to be changed.
    ///
    /// # Safety
    ///
    /// The value is small, and nobody else reads or writes the record for `'a`.
    pub(super) unsafe fn value_mut(self) -> &'a mut [u8] {
        debug_assert!(!self.is_large());
        let len = self.value_len();
        // SAFETY: the value lies behind the header (invariant 1); by the caller, it is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.add(HEADER).as_ptr(), len) }
    }

    /// Replaces a small value by another one, and writes the key anew behind it.
    ///
    /// # Safety
    ///
    /// `slack` is what [`slack_for`](Self::slack_for) returned for this value's length, `key` is equal to the record's
    /// key and lies elsewhere, and nobody else reads or writes the record.
    pub(super) unsafe fn rewrite(self, key: &[u8], value: &[u8], slack: usize) {
        let start = self.start;
        // SAFETY: with that slack, header, value and key take the units that the record has (invariant 1); by the
        // caller, it is borrowed exclusively.
        unsafe {
            start.add(VALUE_LEN).cast::<u32>().write(value.len() as u32);
            start.add(FLAGS).cast::<u16>().write((slack as u16) << SLACK_SHIFT);
            ptr::copy_nonoverlapping(value.as_ptr(), start.add(HEADER).as_ptr(), value.len());
            ptr::copy_nonoverlapping(key.as_ptr(), start.add(HEADER + value.len()).as_ptr(), key.len());
        }
    }

    /// Replaces a large value and returns the old one.
    ///
    /// # Safety
    ///
    /// The value is large, and nobody else reads or writes the record.
    pub(super) unsafe fn replace_large(self, value: Node<Bytes>) -> Node<Bytes> {
        let len = value.get().len() as u32;
        // SAFETY: the slot holds a node (invariant 2), and the length is a field of the header; by the caller, both are
        // borrowed exclusively.
        unsafe {
            self.start.add(VALUE_LEN).cast::<u32>().write(len);
            self.large_slot().replace(value)
        }
    }

    /// Returns the large value, if there is one, which the record no longer owns.
    ///
    /// # Safety
    ///
    /// The record is live, and is dead from then on.
    pub(super) unsafe fn take_large(self) -> Option<Node<Bytes>> {
        // SAFETY: the slot holds a node, which a live record owns (invariant 2). By the caller, this happens once.
        self.is_large().then(|| unsafe { self.large_slot().read() })
    }
}

/// Compares slices. Those of 8 to 16 bytes are compared in place, because calling the function that compares any length
/// costs more than the comparison.
#[inline(always)]
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    // The first and the last eight bytes; in the middle both look at the same.
    let ends = |it: &[u8]| Some((u64::from_ne_bytes(*it.first_chunk()?), u64::from_ne_bytes(*it.last_chunk()?)));
    a.len() == b.len() && if (8..=16).contains(&a.len()) { ends(a) == ends(b) } else { a == b }
}
