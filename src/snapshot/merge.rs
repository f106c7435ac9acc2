//! [`Merged`]: several sources whose keys differ, as one.
//!
//! # Design
//!
//! Nothing is copied or sorted. A scan takes the least key among the heads of all parts, from a heap; a lookup asks one
//! part after the other.
//!
//! # Why this and not the other way
//!
//! What follows a merge is mostly one pass: a store is restored, an image is written. Copying all entries in order first
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
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::lazy::reads_of_what_should_be_sound;
use super::{Fingerprint, Source, StateSnapshot, TryEntries};
use crate::StateError;
use crate::error::shown;
use crate::store::KeyBounds;

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
        let (len, size_bytes) = parts
            .iter()
            .try_fold((0, 0), add)
            .ok_or_else(|| StateError::store("the slices' lengths add up to more than an address space"))?;
        Ok(Self { parts, len, size_bytes, disjoint: OnceLock::new() })
    }

    /// Compares all keys, unless that was done.
    fn check_disjoint(&self) -> Result<(), StateError> {
        let others = self.parts.iter().filter(|part| part.len() > 0).count();
        if self.disjoint.get().is_some() || others < 2 {
            return Ok(());
        }
        let (mut named, mut found) = (Vec::new(), 0);
        for entry in self.try_scan((Bound::Unbounded, Bound::Unbounded)) {
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

    reads_of_what_should_be_sound!();

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        for part in &self.parts {
            if let Some(value) = part.try_get(key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn try_scan<'a>(&'a self, range: KeyBounds<'a>) -> TryEntries<'a> {
        let parts = self.parts.iter().map(|part| part.try_scan(range)).collect();
        Box::new(Merge { parts, heads: BinaryHeap::with_capacity(self.parts.len()), started: 0, is_repeated: false })
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

    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        let mut sum = Some(Fingerprint::EMPTY);
        for part in &self.parts {
            sum = part.verify()?.zip(sum).map(|(part, sum)| sum.plus(part));
        }
        self.check_disjoint()?;
        Ok(sum)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The next entry of one part.
struct Head {
    key: Bytes,
    value: Bytes,
    part: usize,
}

/// The least key is the greatest head, as `BinaryHeap` gives out the greatest first. Of the same key in two parts the first
/// part's comes out, which a lookup finds, too.
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key).then(other.part.cmp(&self.part))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

/// Merges ordered parts. An error of a part comes out as soon as the part comes to it.
struct Merge<'a> {
    parts: Vec<TryEntries<'a>>,
    heads: BinaryHeap<Head>,
    /// How many parts have given their first head.
    started: usize,
    /// Whether the next key is the one that was given out last.
    is_repeated: bool,
}

impl Iterator for Merge<'_> {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(part) = self.parts.get_mut(self.started) {
            match part.next() {
                Some(Ok((key, value))) => self.heads.push(Head { key, value, part: self.started }),
                Some(Err(error)) => return Some(Err(error)),
                None => {}
            }
            self.started += 1;
        }
        let Head { key, value, .. } = match self.take_least()? {
            Ok(head) => head,
            Err(error) => return Some(Err(error)),
        };
        // Keys of a part ascend, so the same key of another part is its head by now.
        let is_repeated = self.heads.peek().is_some_and(|next| next.key == key);
        if mem::replace(&mut self.is_repeated, is_repeated) {
            return Some(Err(StateError::ConflictingKeys { keys: vec![shown(&key)], conflicts: 1 }));
        }
        Some(Ok((key, value)))
    }
}

impl Merge<'_> {
    /// Takes the least head, and puts the next entry of its part in its place.
    fn take_least(&mut self) -> Option<Result<Head, StateError>> {
        let mut head = self.heads.peek_mut()?;
        Some(match self.parts[head.part].next() {
            // The part goes on behind it, and the head stays for the next call.
            Some(Err(error)) => Err(error),
            Some(Ok((key, value))) => {
                let part = head.part;
                Ok(mem::replace(&mut *head, Head { key, value, part }))
            }
            None => Ok(PeekMut::pop(head)),
        })
    }
}

impl StateSnapshot {
    /// Merges slices that hold different keys, those of several workers for instance, into one snapshot.
    ///
    /// All keys are compared once, in O(n log k) for n entries in k slices; nothing is copied, so the snapshot keeps its
    /// slices alive. A [`get`](Self::get) of it asks one slice after the other; scans take O(log k) an entry. Its time is
    /// that of the latest slice. No slices make an empty snapshot with the time 0.
    ///
    /// # Errors
    ///
    /// [`StateError::ConflictingKeys`], which names keys that are in more than one slice (each is counted once for every
    /// slice but the first). For images [opened without reading them](Self::from_bytes_lazily) also those of
    /// [`verify`](Self::verify).
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
        Ok(Self::opened(timestamp_ns, sum, Arc::new(merged)))
    }
}
