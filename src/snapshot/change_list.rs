//! [`ChangeList`]: changes from several deltas as one list, in memory that is mostly used.
//!
//! # Design
//!
//! A list holds changed keys in order, each with the kind of its change and its new value, as handles. The handles are
//! slices of *pieces*: images of opened deltas, and buffers of up to 64 copied changes.
//!
//! ```text
//!   changes   a  b  c  d  e      each (key, kind, value, number of its piece)
//!             │  │  └──┴──┴──> piece 1: a buffer with copies of changes, some of them replaced by now
//!             └──┴───────────> piece 0: the image of a delta
//! ```
//!
//! Composing two lists leaves out changes that later ones replace. A change that is left keeps its whole piece alive.
//! So [`compact`](ChangeList::compact) adds up how much of each piece is used, and copies the changes out of every piece
//! that is used by less than half.
//!
//! # Why
//!
//! - A byte is copied only if another byte of its piece is dead, so copying costs O(1) for a byte that was applied.
//! - One large buffer for all copies would be kept alive by its last change. Small ones are dropped one by one.
//! - The size of a buffer cannot be asked of a [`Bytes`]. So changes that do not come from an image are copied at once.
//!
//! # Invariants
//!
//! 1. Keys strictly ascend and are within the limit, values as well; values are aligned, and empty for deleted keys.
//! 2. The key and the value of a change lie in its piece, whose size in `pieces` covers all memory that it keeps alive.
//! 3. After [`compact`](ChangeList::compact), the changes of a piece take at least half of its size, by [`cost`].

use std::cmp::Ordering;
use std::iter::Peekable;
use std::mem;
use std::slice;

use bytes::Bytes;

use super::sorted::within;
use crate::aligned::{VALUE_ALIGNMENT, aligned_copy, is_aligned};
use crate::bounds::KeyBounds;
use crate::comparison::ChangeKind;
use crate::error::{StateError, shown};
use crate::handles::{Batch, CowBytes, MAX_BATCH};

/// The kind of a change, and the new value, which is empty for a deleted key.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) kind: ChangeKind,
    pub(super) value: Bytes,
    /// The index of the piece that the key and the value lie in. (The changes of 2^32 pieces would take 300 GB.)
    piece: u32,
}

impl Change {
    /// Returns the new value, or `None` for a deleted key.
    pub(super) fn new_value(&self) -> Option<&Bytes> {
        (self.kind != ChangeKind::Delete).then_some(&self.value)
    }
}

/// A changed key and its change.
pub(super) type KeyChange = (Bytes, Change);

/// A copied change that is longer has a piece of its own.
const MAX_PIECE: usize = 64 << 10;

/// About the memory of a piece beside its bytes.
const PIECE_OVERHEAD: usize = 96;

/// About the memory of a change beside its bytes: its handles and the zeros before its value.
const CHANGE_OVERHEAD: usize = size_of::<KeyChange>() + VALUE_ALIGNMENT;

/// The most unused bytes of a piece that changes were copied to. With them, one change uses half of a piece.
const MAX_UNUSED: usize = 32;

/// Returns the memory of a change.
fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + CHANGE_OVERHEAD
}

/// Changes in order of keys.
#[derive(Clone, Default)]
pub(super) struct ChangeList {
    changes: Vec<KeyChange>,
    /// The memory that each piece keeps alive, in bytes.
    pieces: Vec<usize>,
}

impl ChangeList {
    /// Collects the changes of an opened delta, which are slices of its image of `image_len` bytes.
    pub(super) fn of_image(changes: impl Iterator<Item = (Bytes, ChangeKind, Bytes)>, image_len: usize) -> Self {
        let mut held = image_len + PIECE_OVERHEAD;
        let changes = changes.map(|(key, kind, value)| {
            if !is_aligned(&value) {
                // An image of format 1. All of it is copied.
                held = usize::MAX;
            }
            (key, Change { kind, value, piece: 0 })
        });
        let mut list = Self { changes: changes.collect(), pieces: Vec::new() };
        list.pieces.push(held);
        list.compact();
        list
    }

    /// Returns the effect of `first` followed by `second`. It is not compact.
    pub(super) fn compose(first: &Self, second: Self) -> Result<Self, StateError> {
        let offset = first.pieces.len() as u32;
        let mut changes = Vec::with_capacity(first.len() + second.len());
        let second_changes = second.changes.into_iter().map(|(key, change)| {
            let piece = change.piece + offset;
            (key, Change { piece, ..change })
        });
        for change in (Composition { first: first.changes.iter().peekable(), second: second_changes.peekable() }) {
            changes.push(change?);
        }
        let pieces = [&first.pieces[..], &second.pieces].concat();
        Ok(Self { changes, pieces })
    }

    /// Drops the pieces that are used by less than half, and copies their changes.
    ///
    /// Computes in O(number of changes and pieces), and O(1) for a copied byte.
    pub(super) fn compact(&mut self) {
        let mut used = vec![0; self.pieces.len()];
        for (key, change) in &self.changes {
            used[change.piece as usize] += cost(key, &change.value);
        }
        let mut kept = Vec::new();
        let is_kept = |(&held, used): (&usize, usize)| {
            (used >= held / 2).then(|| {
                kept.push(held);
                kept.len() as u32 - 1
            })
        };
        let new_indices: Vec<Option<u32>> = self.pieces.iter().zip(used).map(is_kept).collect();
        let mut copies = Copies::new(mem::take(self), kept);
        for index in 0..copies.list.len() {
            match new_indices[copies.list.changes[index].1.piece as usize] {
                Some(piece) => copies.list.changes[index].1.piece = piece,
                None => copies.copy(index),
            }
        }
        *self = copies.finish();
        #[cfg(test)]
        self.validate();
    }

    /// Returns the number of changes.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Returns all changes, in order of keys.
    pub(super) fn as_slice(&self) -> &[KeyChange] {
        &self.changes
    }

    /// Iterates over all changes, in order of keys.
    pub(super) fn iter(&self) -> slice::Iter<'_, KeyChange> {
        self.changes.iter()
    }

    /// Returns the change of `key`. O(log n).
    pub(super) fn find(&self, key: &[u8]) -> Option<&Change> {
        let found = self.changes.binary_search_by(|(other, _)| other[..].cmp(key)).ok()?;
        Some(&self.changes[found].1)
    }

    /// Returns the changes of keys within `bounds`. O(log n).
    pub(super) fn within(&self, bounds: KeyBounds<'_>) -> &[KeyChange] {
        within(&self.changes, bounds)
    }

    /// Turns all changes into insertions, and leaves out deleted keys.
    pub(super) fn into_insertions(mut self) -> Self {
        self.changes.retain_mut(|(_, change)| {
            let is_there = change.kind != ChangeKind::Delete;
            change.kind = ChangeKind::Insert;
            is_there
        });
        self
    }

    /// Checks the invariants of a compact list.
    #[cfg(test)]
    fn validate(&self) {
        let mut used = vec![0; self.pieces.len()];
        for (index, (key, change)) in self.changes.iter().enumerate() {
            assert!(index == 0 || self.changes[index - 1].0 < *key, "invariant 1");
            crate::limits::check_entry_len(key, &change.value).expect("invariant 1");
            assert!(is_aligned(&change.value), "invariant 1");
            assert!(change.new_value().is_some() || change.value.is_empty(), "invariant 1");
            used[change.piece as usize] += cost(key, &change.value);
        }
        assert!(self.pieces.iter().zip(used).all(|(&held, used)| used >= held / 2), "invariant 3");
    }
}

/// Collects copies of changes, in order of keys.
pub(super) struct Copies {
    list: ChangeList,
    batch: Batch<{ 2 * MAX_BATCH }>,
    /// The changes whose copies are in the batch.
    indices: Vec<usize>,
    /// The bytes of these changes.
    bytes: usize,
}

impl Copies {
    /// Creates an empty collection.
    pub(super) fn empty() -> Self {
        Self::new(ChangeList::default(), Vec::new())
    }

    /// Creates a collection that begins with the changes of `list`, which get `pieces` instead of theirs.
    fn new(list: ChangeList, pieces: Vec<usize>) -> Self {
        let list = ChangeList { changes: list.changes, pieces };
        Self { list, batch: Batch::new(), indices: Vec::new(), bytes: 0 }
    }

    /// Adds a copy of a change, whose key must sort after those before it.
    pub(super) fn push(&mut self, key: &[u8], kind: ChangeKind, value: &[u8]) {
        self.list.changes.push((Bytes::new(), Change { kind, value: Bytes::new(), piece: 0 }));
        self.add(self.list.len() - 1, key, value);
    }

    /// Replaces the handles of a change by copies.
    fn copy(&mut self, index: usize) {
        let (key, change) = &self.list.changes[index];
        let (key, value) = (key.clone(), change.value.clone());
        self.add(index, &key, &value);
    }

    fn add(&mut self, index: usize, key: &[u8], value: &[u8]) {
        let cost = cost(key, value);
        if cost > MAX_PIECE {
            let held = key.len() + value.len() + 2 * PIECE_OVERHEAD;
            let copy = (Bytes::copy_from_slice(key), aligned_copy(value));
            return self.place(index, copy, held);
        }
        if self.indices.len() == MAX_BATCH || self.bytes + cost > MAX_PIECE {
            self.end_piece();
        }
        self.batch.push_key(CowBytes::Borrowed(key));
        self.batch.push_value(CowBytes::Borrowed(value));
        self.indices.push(index);
        self.bytes += cost;
    }

    /// Sets the handles of a change to a copy in a piece of its own.
    fn place(&mut self, index: usize, (key, value): (Bytes, Bytes), held: usize) {
        let piece = self.list.pieces.len() as u32;
        self.list.pieces.push(held);
        let (old_key, change) = &mut self.list.changes[index];
        (*old_key, change.value, change.piece) = (key, value, piece);
    }

    /// Makes a piece of the copies in the batch.
    fn end_piece(&mut self) {
        let piece = self.list.pieces.len() as u32;
        self.list.pieces.push(self.batch.end(MAX_UNUSED) + PIECE_OVERHEAD);
        for index in self.indices.drain(..) {
            let (key, change) = &mut self.list.changes[index];
            *key = self.batch.next_key().expect("the batch has a key for every change");
            change.value = self.batch.next_value().expect("the batch has a value for every change");
            change.piece = piece;
        }
        self.batch.begin(1);
        self.bytes = 0;
    }

    /// Returns the collected changes.
    pub(super) fn finish(mut self) -> ChangeList {
        if !self.indices.is_empty() {
            self.end_piece();
        }
        self.list.changes.shrink_to_fit();
        self.list.pieces.shrink_to_fit();
        self.list
    }
}

/// Checks that a change fits its key, which `is_there` before the change or not.
pub(super) fn check_kind(key: &[u8], change: ChangeKind, is_there: bool) -> Result<(), StateError> {
    match (change, is_there) {
        (ChangeKind::Insert, true) => Err(inconsistent("it inserts a key that is there", key)),
        (ChangeKind::Update, false) => Err(inconsistent("it updates a key that is not there", key)),
        (ChangeKind::Delete, false) => Err(inconsistent("it deletes a key that is not there", key)),
        _ => Ok(()),
    }
}

/// Returns the error of a delta that does not fit the contents or itself.
pub(super) fn inconsistent(problem: &'static str, key: &[u8]) -> StateError {
    StateError::InconsistentDelta { problem, key: shown(key), key_len: key.len() }
}

/// An iterator over the combined effect of two lists of changes. The second list follows the first.
struct Composition<A: Iterator, B: Iterator> {
    first: Peekable<A>,
    second: Peekable<B>,
}

impl<'a, A: Iterator<Item = &'a KeyChange>, B: Iterator<Item = KeyChange>> Iterator for Composition<A, B> {
    type Item = Result<KeyChange, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.first.peek(), self.second.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            match order {
                Ordering::Less => return self.first.next().cloned().map(Ok),
                Ordering::Greater => return self.second.next().map(Ok),
                Ordering::Equal => {}
            }
            let ((_, before), (key, after)) = self.first.next().zip(self.second.next())?;
            if let Err(error) = check_kind(&key, after.kind, before.kind != ChangeKind::Delete) {
                return Some(Err(error));
            }
            let was_there = before.kind != ChangeKind::Insert;
            let kind = match (was_there, after.kind != ChangeKind::Delete) {
                (false, false) => continue,
                (false, true) => ChangeKind::Insert,
                (true, true) => ChangeKind::Update,
                (true, false) => ChangeKind::Delete,
            };
            return Some(Ok((key, Change { kind, ..after })));
        }
    }
}
