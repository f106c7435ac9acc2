//! [`Merged`]: several sources whose keys differ, as one.
//!
//! # Design
//!
//! Nothing is copied or sorted. A scan takes the least key among the heads of all parts, from a heap; a lookup asks one
//! part after the other.
//!
//! # Why this and not the other way
//!
//! Most merges are followed by one pass: a store is restored, an image is written. Copying all entries in order first
//! would make lookups faster, which such a snapshot is rarely asked for, and take the memory of all entries again.
//!
//! # Invariants
//!
//! 1. No key is in two parts, once `disjoint` is set. Until then a scan that meets such a key yields an error.
//! 2. `len` and `size_bytes` are the sums of those of the parts.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Fingerprint, Label, Source, StateSnapshot};
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds};
use crate::error::shown;
use crate::scan::TwoEnds;
use crate::{StateError, TryScan};

/// How many of the keys in conflict an error names.
const NAMED: usize = 8;

pub(super) struct Merged {
    parts: Vec<Arc<dyn Source>>,
    len: usize,
    size_bytes: usize,
    disjoint: OnceLock<()>,
}

impl Merged {
    /// Merges parts that nobody has compared yet.
    pub(super) fn new(parts: Vec<Arc<dyn Source>>) -> Result<Self, StateError> {
        let add = |(len, size): (usize, usize), part: &Arc<dyn Source>| {
            Some((len.checked_add(part.len())?, size.checked_add(part.size_bytes())?))
        };
        let (len, size_bytes) = parts.iter().try_fold((0, 0), add).ok_or(StateError::BeyondAddressSpace)?;
        Ok(Self { parts, len, size_bytes, disjoint: OnceLock::new() })
    }

    /// Compares all keys, unless that was done.
    fn check_disjoint(&self) -> Result<(), StateError> {
        let others = self.parts.iter().filter(|part| part.len() > 0).count();
        if self.disjoint.get().is_some() || others < 2 {
            return Ok(());
        }
        let (mut named, mut found) = (Vec::new(), 0);
        for entry in self.try_scan(ALL_KEYS) {
            match entry {
                Ok(_) => {}
                Err(StateError::ConflictingKeys { keys, conflicts }) => {
                    found += conflicts;
                    named.extend(keys);
                    named.truncate(NAMED);
                }
                Err(error) => return Err(error),
            }
        }
        if found > 0 {
            return Err(StateError::ConflictingKeys { keys: named, conflicts: found });
        }
        let _ = self.disjoint.set(());
        Ok(())
    }
}

impl Source for Merged {
    fn len(&self) -> usize {
        self.len
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        for part in &self.parts {
            if let Some(value) = part.try_get(key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            |bounds| Merge::<_, true>::new(self.parts.iter().map(|part| part.try_scan(bounds.get())).collect()),
            |bounds| {
                let parts = self.parts.iter().map(|part| part.try_scan(bounds.get()).rev());
                Merge::<_, false>::new(parts.collect())
            },
        ))
    }

    fn try_visit(
        &self,
        range: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for entry in self.try_scan(range) {
            let (key, value) = entry?;
            if f(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn is_for_many_readers(&self) -> bool {
        self.parts.iter().all(|part| part.is_for_many_readers())
    }

    fn can_fail(&self) -> bool {
        self.parts.iter().any(|part| part.can_fail())
    }

    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        // A scan of all parts verifies them on the way.
        self.check_disjoint()?;
        let mut sum = Some(Fingerprint::EMPTY);
        for part in &self.parts {
            sum = part.verify()?.zip(sum).map(|(part, sum)| sum.plus(part));
        }
        Ok(sum)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The next entry of one part, of a merge that goes `UP` or down.
struct Head<const UP: bool> {
    key: Bytes,
    value: Bytes,
    part: usize,
}

/// The next key is the greatest head, as `BinaryHeap` gives out the greatest first. Of the same key in two parts the first
/// part's comes out, which a lookup finds, too.
impl<const UP: bool> Ord for Head<UP> {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = if UP { other.key.cmp(&self.key) } else { self.key.cmp(&other.key) };
        order.then(other.part.cmp(&self.part))
    }
}

impl<const UP: bool> PartialOrd for Head<UP> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const UP: bool> PartialEq for Head<UP> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<const UP: bool> Eq for Head<UP> {}

/// Merges parts that are ordered `UP` or down. An error of a part comes out in its place: behind the entries of that part
/// that come before it.
struct Merge<P, const UP: bool> {
    parts: Vec<P>,
    heads: BinaryHeap<Head<UP>>,
    /// The parts that have no head and may have more entries.
    headless: Vec<usize>,
    /// An error that comes behind the entry that was given out last.
    failed: Option<StateError>,
    /// `true` if the next key is the one that was given out last.
    is_repeated: bool,
}

impl<P: Iterator<Item = Result<(Bytes, Bytes), StateError>>, const UP: bool> Iterator for Merge<P, UP> {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        while let Some(&part) = self.headless.last() {
            match self.parts[part].next() {
                Some(Ok((key, value))) => self.heads.push(Head { key, value, part }),
                Some(Err(error)) => return Some(Err(error)),
                None => {}
            }
            self.headless.pop();
        }
        let Head { key, value, .. } = self.take_next()?;
        // Keys of a part are in order, so the same key of another part is its head by now.
        let is_repeated = self.heads.peek().is_some_and(|next| next.key == key);
        if mem::replace(&mut self.is_repeated, is_repeated) {
            return Some(Err(StateError::ConflictingKeys { keys: vec![shown(&key)], conflicts: 1 }));
        }
        Some(Ok((key, value)))
    }
}

impl<P: Iterator<Item = Result<(Bytes, Bytes), StateError>>, const UP: bool> Merge<P, UP> {
    fn new(parts: Vec<P>) -> Self {
        let headless = (0..parts.len()).rev().collect();
        Self { heads: BinaryHeap::with_capacity(parts.len()), parts, headless, failed: None, is_repeated: false }
    }

    /// Takes the next head. Its part gets another one, or is noted as headless if that is an error.
    fn take_next(&mut self) -> Option<Head<UP>> {
        let mut head = self.heads.peek_mut()?;
        let part = head.part;
        match self.parts[part].next() {
            Some(Ok((key, value))) => Some(mem::replace(&mut *head, Head { key, value, part })),
            Some(Err(error)) => {
                self.failed = Some(error);
                self.headless.push(part);
                Some(PeekMut::pop(head))
            }
            None => Some(PeekMut::pop(head)),
        }
    }
}

impl StateSnapshot {
    /// Merges slices that hold different keys, those of several workers for instance, into one snapshot.
    ///
    /// All keys are compared once, in O(n log k) for n entries in k slices; nothing is copied, so the snapshot keeps its
    /// slices alive. A [`get`](Self::get) of it asks one slice after the other; scans take O(log k) an entry. Its time is
    /// that of the latest slice, and its label that of the slices if they have the same. No slices make an empty snapshot
    /// with the time 0.
    ///
    /// # Errors
    ///
    /// [`StateError::ConflictingKeys`], which names keys that are in more than one slice (each is counted once for every
    /// slice but the first). And those of [`verify`](Self::verify).
    ///
    /// ```
    /// use opstate::{StateError, StateSnapshot};
    ///
    /// let (a, b) = (StateSnapshot::from_iter([("a", "1"), ("c", "3")]), StateSnapshot::from_iter([("b", "2")]));
    /// let merged = StateSnapshot::merge([a.clone(), b])?;
    /// assert_eq!(merged, StateSnapshot::from_iter([("a", "1"), ("b", "2"), ("c", "3")]));
    ///
    /// let error = StateSnapshot::merge([merged, a]).unwrap_err();
    /// assert!(matches!(&error, StateError::ConflictingKeys { keys, conflicts: 2 } if keys == &["a", "c"]));
    /// # Ok::<(), StateError>(())
    /// ```
    pub fn merge(slices: impl IntoIterator<Item = Self>) -> Result<Self, StateError> {
        let slices: Vec<Self> = slices.into_iter().collect();
        let timestamp_ns = slices.iter().map(Self::timestamp_ns).max().unwrap_or(0);
        let merged = Merged::new(slices.iter().map(|slice| Arc::clone(slice.source())).collect())?;
        for slice in &slices {
            slice.verify()?;
        }
        merged.check_disjoint()?;
        let known = |slice: &Self| slice.shared.fingerprint.get().copied();
        let sum = slices.iter().try_fold(Fingerprint::EMPTY, |sum, slice| Some(sum.plus(known(slice)?)));
        let label = match &slices[..] {
            [first, others @ ..] if others.iter().all(|other| other.label() == first.label()) => first.label().clone(),
            _ => Label::new(),
        };
        Ok(Self::opened(timestamp_ns, label, sum, Arc::new(merged)))
    }
}
