//! [`Merged`]: several sources with different keys, read as one.
//!
//! # Design
//!
//! Nothing is copied or sorted. A heap holds the next entry of every source; a scan takes the least of them. A lookup
//! asks one source after the other.
//!
//! Merging the result of a merge again makes one [`Merged`] of all sources. If what is merged is small compared with one
//! of the slices, it is looked up there and laid over it as insertions ([`Overlay`]). So slices that are merged one by
//! one are not all compared again for each.
//!
//! Merging and applying deltas in turns nests [`Merged`] and [`Overlay`]. What is nested deeper than [`MAX_DEPTH`] is
//! copied into one list. Small slices do not nest, and comparing the keys of others takes as long as copying them.
//!
//! # Why
//!
//! Most merges are followed by one pass: a store is restored, or an image is written. Copying all entries in order
//! first would make lookups faster, but such a snapshot is rarely asked for any. It would also take the memory of all
//! entries again.
//!
//! # Invariants
//!
//! 1. No key is in two sources, once `disjoint` is set. Until then a scan that meets such a key yields an error.
//! 2. `len` and `size_bytes` are the sums of those of the sources.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::mem;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::change_list::Copies;
use super::overlay::Overlay;
use super::sorted::SortedEntries;
use super::state_snapshot::StateSnapshot;
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds};
use crate::comparison::ChangeKind;
use crate::error::{StateError, shown};
use crate::fingerprint::Fingerprint;
use crate::image::label::Label;
use crate::scan::{TryScan, TwoEnds};
use crate::source::{SnapshotSource, Source};

/// The number of conflicting keys that an error names.
const NAMED: usize = 8;

/// The depth of nested sources from which on a slice is copied. Reading and dropping recurse by depth.
const MAX_DEPTH: usize = 32;

/// A slice is small if another one has this many times as many entries.
const SMALL: usize = 16;

/// The most bytes of small slices that are copied.
const MAX_COPIED: usize = 1 << 20;

/// The entries of several sources.
pub(crate) struct Merged {
    sources: Vec<Arc<dyn Source>>,
    len: usize,
    size_bytes: usize,
    /// The largest depth of a source.
    depth: usize,
    /// Set once all keys have been compared, and no two sources have the same key.
    disjoint: OnceLock<()>,
}

impl Merged {
    /// Merges sources whose keys have not been compared.
    pub(crate) fn new(sources: Vec<Arc<dyn Source>>) -> Result<Self, StateError> {
        let add = |(len, size): (usize, usize), source: &Arc<dyn Source>| {
            Some((len.checked_add(source.len())?, size.checked_add(source.size_bytes())?))
        };
        let (len, size_bytes) = sources.iter().try_fold((0, 0), add).ok_or(StateError::BeyondAddressSpace)?;
        let depth = sources.iter().map(depth_of).max().unwrap_or(0);
        Ok(Self { sources, len, size_bytes, depth, disjoint: OnceLock::new() })
    }

    /// Returns the merge that `source` is, if it is one.
    fn of(source: &Arc<dyn Source>) -> Option<Arc<Self>> {
        Arc::clone(source).into_any().downcast().ok()
    }

    /// Compares all keys, unless this has been done before.
    fn check_disjoint(&self) -> Result<(), StateError> {
        if self.disjoint.get().is_some() {
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

impl SnapshotSource for Merged {
    fn len(&self) -> usize {
        self.len
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        for source in &self.sources {
            if let Some(value) = source.try_get(key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            |bounds| {
                MergedScan::<_, true>::new(self.sources.iter().map(|source| source.try_scan(bounds.get())).collect())
            },
            |bounds| {
                let sources = self.sources.iter().map(|source| source.try_scan(bounds.get()).rev());
                MergedScan::<_, false>::new(sources.collect())
            },
        ))
    }

    fn is_for_many_readers(&self) -> bool {
        self.sources.iter().all(|source| source.is_for_many_readers())
    }

    fn verify(&self) -> Result<(), StateError> {
        // The check scans all sources, which verifies them on the way.
        self.check_disjoint()?;
        self.sources.iter().try_for_each(|source| source.verify())
    }
}

impl Source for Merged {
    fn can_fail(&self) -> bool {
        self.sources.iter().any(|source| source.can_fail())
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.disjoint.get()?;
        self.sources.iter().try_fold(Fingerprint::EMPTY, |sum, source| Some(sum.plus(source.fingerprint()?)))
    }
}

/// The next entry of one source, in a merge that ascends (`UP`) or descends.
struct NextEntry<const UP: bool> {
    key: Bytes,
    value: Bytes,
    source: usize,
}

/// Orders entries so that the next one of the merge is the greatest; `BinaryHeap` returns the greatest first.
///
/// If two sources have the same key, the entry of the first source comes first. A lookup finds the same entry.
impl<const UP: bool> Ord for NextEntry<UP> {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = if UP { other.key.cmp(&self.key) } else { self.key.cmp(&other.key) };
        order.then(other.source.cmp(&self.source))
    }
}

impl<const UP: bool> PartialOrd for NextEntry<UP> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const UP: bool> PartialEq for NextEntry<UP> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<const UP: bool> Eq for NextEntry<UP> {}

/// A merge of scans that all ascend (`UP`) or all descend.
///
/// The error of a scan is returned behind the entries of that scan that come before it.
struct MergedScan<P, const UP: bool> {
    scans: Vec<P>,
    next_entries: BinaryHeap<NextEntry<UP>>,
    /// The scans without an entry in the heap that may have more entries.
    unread: Vec<usize>,
    /// An error to return after the entry that was returned last.
    failed: Option<StateError>,
    /// `true` if the next key equals the key that was returned last.
    is_repeated: bool,
}

impl<P: Iterator<Item = Result<(Bytes, Bytes), StateError>>, const UP: bool> Iterator for MergedScan<P, UP> {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        while let Some(&source) = self.unread.last() {
            match self.scans[source].next() {
                Some(Ok((key, value))) => self.next_entries.push(NextEntry { key, value, source }),
                Some(Err(error)) => return Some(Err(error)),
                None => {}
            }
            self.unread.pop();
        }
        let NextEntry { key, value, .. } = self.take_next()?;
        // The keys of each source are in order, so an equal key of another source is in the heap by now.
        let is_repeated = self.next_entries.peek().is_some_and(|next| next.key == key);
        if mem::replace(&mut self.is_repeated, is_repeated) {
            return Some(Err(StateError::ConflictingKeys { keys: vec![shown(&key)], conflicts: 1 }));
        }
        Some(Ok((key, value)))
    }
}

impl<P: Iterator<Item = Result<(Bytes, Bytes), StateError>>, const UP: bool> MergedScan<P, UP> {
    fn new(scans: Vec<P>) -> Self {
        let unread = (0..scans.len()).rev().collect();
        Self { next_entries: BinaryHeap::with_capacity(scans.len()), scans, unread, failed: None, is_repeated: false }
    }

    /// Takes the next entry from the heap, and replaces it by the next one of its scan.
    ///
    /// If the scan returns an error instead, the error is kept for later and the scan becomes unread.
    fn take_next(&mut self) -> Option<NextEntry<UP>> {
        let mut next = self.next_entries.peek_mut()?;
        let source = next.source;
        match self.scans[source].next() {
            Some(Ok((key, value))) => Some(mem::replace(&mut *next, NextEntry { key, value, source })),
            Some(Err(error)) => {
                self.failed = Some(error);
                self.unread.push(source);
                Some(PeekMut::pop(next))
            }
            None => Some(PeekMut::pop(next)),
        }
    }
}

/// Returns the depth of a source that consists of others.
fn depth_of(source: &Arc<dyn Source>) -> usize {
    match (Overlay::of(source), Merged::of(source)) {
        (Some(overlay), _) => 1 + depth_of(overlay.base()),
        (_, Some(merged)) => 1 + merged.depth,
        _ => 0,
    }
}

/// Returns `true` if there is no entry, whatever a third-party source says about their number.
fn is_empty(source: &dyn Source) -> Result<bool, StateError> {
    Ok(source.is_empty() && source.try_scan(ALL_KEYS).next().transpose()?.is_none())
}

/// Merges sources that have entries and hold different keys. Those that are merges must have been checked.
fn merge_sources(mut sources: Vec<Arc<dyn Source>>) -> Result<Arc<dyn Source>, StateError> {
    if let Some(overlay) = insert_small(&sources)? {
        return Ok(Arc::new(overlay));
    }
    for source in &mut sources {
        if depth_of(source) >= MAX_DEPTH {
            *source = Arc::new(Overlay::copy_of(Arc::clone(source))?);
        }
    }
    if sources.len() > 1 {
        let parts = |source| Merged::of(&source).map_or_else(|| vec![source], |merged| merged.sources.clone());
        let merged = Merged::new(sources.into_iter().flat_map(parts).collect())?;
        merged.check_disjoint()?;
        return Ok(Arc::new(merged));
    }
    Ok(sources.pop().unwrap_or_else(|| Arc::new(SortedEntries::default())))
}

/// Lays copies of all sources but the largest over that one, if they are small and no key is in two sources.
fn insert_small(sources: &[Arc<dyn Source>]) -> Result<Option<Overlay>, StateError> {
    let Some(at) = (0..sources.len()).max_by_key(|&at| sources[at].len()) else { return Ok(None) };
    let largest = &sources[at];
    let parts = Merged::of(largest).map_or(1, |merged| merged.sources.len());
    let small = Merged::new([&sources[..at], &sources[at + 1..]].concat())?;
    let most = largest.len() / SMALL / parts;
    if small.is_empty() || small.len > most || small.size_bytes > MAX_COPIED || largest.can_fail() {
        return Ok(None);
    }
    let mut copies = Copies::empty();
    for entry in small.try_scan(ALL_KEYS) {
        match entry {
            Ok((key, value)) if largest.try_get(&key)?.is_none() => copies.push(&key, ChangeKind::Insert, &value),
            // The comparison of all sources counts the conflicts.
            Ok(_) | Err(StateError::ConflictingKeys { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let sum = |a: usize, b| a.checked_add(b).ok_or(StateError::BeyondAddressSpace);
    let (len, size_bytes) = (sum(largest.len(), small.len)?, sum(largest.size_bytes(), small.size_bytes)?);
    let left = Overlay::of(largest).map_or(largest.size_bytes(), |overlay| overlay.left());
    Overlay::new(Arc::clone(largest), copies.finish(), (len, size_bytes), left).map(Some)
}

impl StateSnapshot {
    /// Merges slices that hold different keys into one snapshot. The slices may come from several workers, for
    /// instance.
    ///
    /// All keys are compared, in O(n log k) for n entries in k slices. Nothing is copied, so the snapshot keeps its
    /// slices alive. Its [`get`](Self::get) asks one slice after the other; its scans take O(log k) an entry. A merge of
    /// merges has the slices of all of them, and one without its empty slices costs no more.
    ///
    /// Adding small slices one by one costs less. If one slice has 16 times as many entries as all others (for each slice
    /// that it was merged of), and these take up to 1 MiB, their keys are looked up in it. They are copied and laid over
    /// it as by [`apply`](Self::apply), so that O(log n) parts are to be read. This does not hold if reading that slice
    /// can fail.
    ///
    /// Merging larger slices and applying deltas in turns nests snapshots. A slice that is nested 32 deep is copied into
    /// memory, in O(n), so that every read takes a bounded stack. This happens at most once in 15 turns, unless a chain
    /// of deltas has left more than two parts in each.
    ///
    /// The result has the time of the latest slice, and the label of the slices if they all have the same one. Merging
    /// no slices gives an empty snapshot with the time 0.
    ///
    /// # Errors
    ///
    /// [`StateError::ConflictingKeys`] if keys are in more than one slice; it names some of them, and counts each once
    /// for every slice but the first. And the errors of [`verify`](Self::verify).
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
        let mut sources = Vec::with_capacity(slices.len());
        for slice in &slices {
            slice.verify()?;
            if !is_empty(&**slice.source())? {
                sources.push(Arc::clone(slice.source()));
            }
        }
        let source = merge_sources(sources)?;
        let sum = |sum: Fingerprint, slice: &Self| Some(sum.plus(slice.known_fingerprint()?));
        let sum = slices.iter().try_fold(Fingerprint::EMPTY, sum);
        let label = match &slices[..] {
            [first, others @ ..] if others.iter().all(|other| other.label() == first.label()) => first.label().clone(),
            _ => Label::new(),
        };
        Ok(Self::opened(timestamp_ns, label, sum, source))
    }
}
