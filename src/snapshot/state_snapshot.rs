//! [`StateSnapshot`]: the contents of a store at one instant, for every kind of store.
//!
//! A snapshot does not depend on any kind of store. It shares a [`Source`], and every way to store entries has a source
//! of its own. Sources can fail; the methods of a snapshot without `try_` panic with the error, by
//! [`expect_sound`](crate::error::expect_sound).

use std::fmt;
use std::iter;
use std::mem;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use std::vec;

use bytes::Bytes;

use super::foreign::Foreign;
use super::sorted::SortedEntries;
use crate::aligned::aligned;
use crate::bounds::{ALL_KEYS, KeyRange, OwnedBounds, half_open, is_inverted, with_prefix_bounds};
use crate::error::{StateError, expect_sound};
use crate::fingerprint::Fingerprint;
use crate::image::label::Label;
use crate::scan::{Scan, TryScan, TypedScan};
use crate::source::{SnapshotSource, Source};
use crate::typed::{self, ReadValue, ViewValue, decode};

/// The contents of a store at one instant: immutable, ordered, readable on any thread.
///
/// A snapshot comes from [`StateStore::snapshot`](crate::StateStore::snapshot), from the bytes of an *image*, which is
/// a serialized snapshot ([`from_bytes`](Self::from_bytes)), or from entries ([`from_sorted`](Self::from_sorted),
/// [`FromIterator`]). It does not change when the store it was taken from changes, and outlives it.
///
/// Two snapshots are equal if they hold the same entries, wherever they come from and whenever they were taken.
///
/// # Sharing
///
/// Cloning costs O(1); clones share everything. Handles from a snapshot of an image are slices of the image's bytes and
/// keep all of them alive. (Values of an image of format 1 are copied.) Handles from a scan of a store's snapshot keep
/// alive a run of up to 64 entries. A snapshot of a store keeps alive the entries that the store held; the store's
/// documentation tells what that costs its writer.
///
/// ```text
///   store ───────────> entries <─────────── snapshot <── clone, perhaps on another thread
///     first write after: copied                 │
///     where shared                              └─ to_bytes / write_to ──> image ──> from_bytes ──> snapshot
/// ```
///
/// ```
/// use opstate::{InMemoryStore, StateSnapshot, StateStore};
///
/// # fn main() -> Result<(), opstate::StateError> {
/// let mut store = InMemoryStore::new();
/// store.put(b"clicks", b"1")?;
/// let snapshot = store.snapshot();
/// store.put(b"clicks", b"2")?;
///
/// // On any thread, at any time later:
/// let image = snapshot.to_bytes();
/// let opened = StateSnapshot::from_bytes(image)?;
/// assert_eq!(opened.get(b"clicks").as_deref(), Some(&b"1"[..]));
///
/// store.restore(opened);
/// assert_eq!(store.get(b"clicks").as_deref(), Some(&b"1"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StateSnapshot {
    data: Arc<SnapshotData>,
}

/// The shared part of a snapshot.
#[derive(Clone)]
struct SnapshotData {
    timestamp_ns: u64,
    label: Label,
    /// The fingerprint of the entries, once it is known.
    fingerprint: OnceLock<Fingerprint>,
    source: Arc<dyn Source>,
}

const _: () = {
    const fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    is_shareable::<StateSnapshot>();
};

impl StateSnapshot {
    /// Returns the bytes that a snapshot of a source of this type takes on the heap.
    pub(crate) const fn shared_bytes<S>() -> usize {
        const COUNTS: usize = 2 * size_of::<usize>();
        size_of::<SnapshotData>() + size_of::<S>() + 2 * COUNTS
    }

    /// Creates a snapshot of `source`, taken now.
    pub(crate) fn of(source: Arc<dyn Source>) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        Self::opened(timestamp_ns, Label::new(), None, source)
    }

    /// Returns the source of the entries.
    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        &self.data.source
    }

    /// Creates a snapshot from entries in strictly ascending order of their keys, for stores of your own.
    ///
    /// Computes in O(n). Handles are kept; values that are not aligned to [`VALUE_ALIGNMENT`](crate::VALUE_ALIGNMENT)
    /// are copied.
    ///
    /// # Errors
    ///
    /// [`StateError::NotSorted`], [`StateError::KeyTooLong`] and [`StateError::ValueTooLong`].
    ///
    /// ```
    /// use opstate::StateSnapshot;
    ///
    /// let snapshot = StateSnapshot::from_sorted([("a", "1"), ("b", "2")])?;
    /// assert_eq!(snapshot.len(), 2);
    /// assert!(StateSnapshot::from_sorted([("b", "2"), ("a", "1")]).is_err());
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn from_sorted<K, V>(entries: impl IntoIterator<Item = (K, V)>) -> Result<Self, StateError>
    where
        K: Into<Bytes>,
        V: Into<Bytes>,
    {
        let entries = entries.into_iter().map(|(key, value)| (key.into(), value.into()));
        Ok(Self::of(Arc::new(SortedEntries::new(entries.collect())?)))
    }

    /// Creates a snapshot that reads from `source`, for stores of your own that share their entries with snapshots.
    /// O(1).
    pub fn from_source(source: impl SnapshotSource) -> Self {
        Self::of(Arc::new(Foreign(source)))
    }

    /// Creates a snapshot of `source` that was taken at `timestamp_ns`.
    pub(crate) fn opened(
        timestamp_ns: u64,
        label: Label,
        fingerprint: Option<Fingerprint>,
        source: Arc<dyn Source>,
    ) -> Self {
        let fingerprint = fingerprint.map_or_else(OnceLock::new, OnceLock::from);
        Self { data: Arc::new(SnapshotData { timestamp_ns, label, fingerprint, source }) }
    }

    /// Returns the number of entries. O(1).
    pub fn len(&self) -> usize {
        self.data.source.len()
    }

    /// Returns `true` if there is no entry. O(1).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sum of the lengths of all keys and values, in bytes. O(1).
    pub fn size_bytes(&self) -> usize {
        self.data.source.size_bytes()
    }

    /// Returns when the snapshot was taken, in nanoseconds since the start of 1970 (UTC).
    pub fn timestamp_ns(&self) -> u64 {
        self.data.timestamp_ns
    }

    /// Returns the same contents with another time, in nanoseconds since the start of 1970. O(1).
    ///
    /// With equal times and labels, equal contents give images that are equal to the last byte.
    #[must_use]
    pub fn with_timestamp_ns(&self, timestamp_ns: u64) -> Self {
        Self { data: Arc::new(SnapshotData { timestamp_ns, ..SnapshotData::clone(&self.data) }) }
    }

    /// Returns the operator and the job that the contents belong to. Images and deltas carry the label.
    pub fn label(&self) -> &Label {
        &self.data.label
    }

    /// Returns the same contents with another label. O(1).
    ///
    /// ```
    /// use opstate::{Label, StateError, StateSnapshot};
    ///
    /// let label = Label::new().operator("dedup").job("clicks");
    /// let image = StateSnapshot::from_iter([("a", "1")]).with_label(label).to_bytes();
    ///
    /// let opened = StateSnapshot::from_bytes(image)?;
    /// opened.label().require(&Label::new().operator("dedup"))?;
    /// let error = opened.label().require(&Label::new().operator("join")).unwrap_err();
    /// assert!(matches!(error, StateError::WrongLabel { part: "operator", .. }));
    /// # Ok::<(), StateError>(())
    /// ```
    #[must_use]
    pub fn with_label(&self, label: Label) -> Self {
        Self { data: Arc::new(SnapshotData { label, ..SnapshotData::clone(&self.data) }) }
    }

    /// Returns the fingerprint of the contents. O(n) the first time, then O(1).
    ///
    /// The first time is O(1) too for a verified image, for a snapshot that was written, and for the result of applying
    /// a delta. It is also O(1) for both ends of a delta whose fingerprints were computed, by writing it for example.
    #[track_caller]
    pub fn fingerprint(&self) -> Fingerprint {
        expect_sound(self.try_fingerprint())
    }

    /// Returns the fingerprint, if it was computed or read before.
    pub(crate) fn known_fingerprint(&self) -> Option<Fingerprint> {
        self.data.fingerprint.get().copied()
    }

    /// Stores the fingerprint. If another thread was first, it has stored the same value.
    pub(crate) fn set_fingerprint(&self, fingerprint: Fingerprint) {
        let _ = self.data.fingerprint.set(fingerprint);
    }

    /// Returns the fingerprint, or the error of the medium that the entries lie in.
    pub(crate) fn try_fingerprint(&self) -> Result<Fingerprint, StateError> {
        if let Some(known) = self.known_fingerprint() {
            return Ok(known);
        }
        let mut fingerprint = Fingerprint::EMPTY;
        self.try_visit_range(.., |key, value| {
            fingerprint.add(key, value);
            ControlFlow::Continue(())
        })?;
        Ok(*self.data.fingerprint.get_or_init(|| fingerprint))
    }

    /// Verifies everything that has not been verified yet. O(1) for snapshots of stores and opened images.
    ///
    /// # Errors
    ///
    /// The errors of a third-party [`SnapshotSource`].
    pub fn verify(&self) -> Result<(), StateError> {
        self.source().verify()?;
        if let Some(fingerprint) = self.source().fingerprint() {
            self.set_fingerprint(fingerprint);
        }
        Ok(())
    }

    /// Verifies the snapshot, and reads it into memory if reads could fail afterwards.
    pub(crate) fn into_sound(self) -> Result<Self, StateError> {
        if !self.source().can_fail() {
            self.verify()?;
            return Ok(self);
        }
        let entries = self.data.source.try_scan(ALL_KEYS).collect::<Result<_, _>>()?;
        self.verify()?;
        let source = Arc::new(SortedEntries::new(entries)?);
        Ok(Self { data: Arc::new(SnapshotData { source, ..SnapshotData::clone(&self.data) }) })
    }

    /// Returns the value of `key`. O(log n).
    ///
    /// # Panics
    ///
    /// If the medium of the snapshot fails, like every method without `try_`. In this crate, only snapshots that were
    /// verified from a file or a reader have a medium that can fail.
    #[track_caller]
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        expect_sound(self.try_get(key))
    }

    /// Returns the value of `key`, or the error of the medium that it lies in. O(log n).
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], the damage of the part that would hold `key`, and the errors of a third-party
    /// [`SnapshotSource`].
    pub fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.data.source.try_get(key)?.map(aligned))
    }

    /// Returns `true` if there is an entry for `key`. O(log n).
    #[track_caller]
    pub fn contains(&self, key: &[u8]) -> bool {
        expect_sound(self.data.source.try_get(key)).is_some()
    }

    /// Returns the value of `key` as a `T`. Costs O(log n), the check of the bytes and the deserialization.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and the errors of [`try_get`](Self::try_get).
    pub fn get_typed<T: ReadValue>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        self.data.source.try_get(key)?.map(|value| decode(key, &value)).transpose()
    }

    /// Calls `f` with the value of `key` as an archived `T`, and returns its result; `None` if there is no value.
    ///
    /// Costs O(log n) and the check of the bytes.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and the errors of [`try_get`](Self::try_get); then `f` is not called.
    pub fn view<T: ViewValue, R>(
        &self,
        key: &[u8],
        f: impl FnOnce(&T::Archived) -> R,
    ) -> Result<Option<R>, StateError> {
        self.data.source.try_get(key)?.map(|value| typed::view::<T, _>(key, &value, f)).transpose()
    }

    /// Iterates over all entries, in order and from both ends.
    pub fn iter(&self) -> Scan<'_> {
        self.scan(..)
    }

    /// Iterates over the entries whose keys start with `prefix`, in order and from both ends. O(log n), and O(1) an
    /// entry.
    pub fn prefix_scan(&self, prefix: &[u8]) -> Scan<'_> {
        with_prefix_bounds(prefix, |bounds| self.scan(bounds))
    }

    /// Iterates over the entries from `range.start` up to, but not including, `range.end`, in order and from both ends.
    ///
    /// Costs O(log n), and O(1) an entry.
    pub fn range_scan(&self, range: Range<&[u8]>) -> Scan<'_> {
        self.scan(half_open(range))
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends. O(log n), and O(1) an entry.
    pub fn scan(&self, range: impl KeyRange) -> Scan<'_> {
        Scan::of_snapshot(self.try_scan(range))
    }

    /// Iterates over the entries whose keys are in `range`, if the medium of the snapshot can fail.
    ///
    /// Costs O(log n), and O(1) an entry.
    ///
    /// # Errors
    ///
    /// An item is an error in the place of the entries that could not be read; the iterator continues behind it.
    pub fn try_scan(&self, range: impl KeyRange) -> TryScan<'_> {
        let bounds = range.bounds();
        if is_inverted(bounds) {
            return TryScan::new(iter::empty());
        }
        self.data.source.try_scan(bounds)
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends, with their values as `T`s.
    ///
    /// # Errors
    ///
    /// An item is [`StateError::WrongType`] if the value is no `T`, or an error of [`try_scan`](Self::try_scan). The
    /// iterator continues behind it.
    pub fn scan_typed<T: ReadValue>(&self, range: impl KeyRange) -> TypedScan<'_, T> {
        TypedScan::new(self.try_scan(range))
    }

    /// Returns the first entry. O(log n).
    pub fn first(&self) -> Option<(Bytes, Bytes)> {
        self.iter().next()
    }

    /// Returns the last entry. O(log n).
    pub fn last(&self) -> Option<(Bytes, Bytes)> {
        self.iter().next_back()
    }

    /// Returns the entry with the greatest key below `key`. O(log n).
    pub fn entry_before(&self, key: &[u8]) -> Option<(Bytes, Bytes)> {
        self.scan(..key).next_back()
    }

    /// Returns the entry with the smallest key above `key`. O(log n).
    pub fn entry_after(&self, key: &[u8]) -> Option<(Bytes, Bytes)> {
        self.scan((Bound::Excluded(key), Bound::Unbounded)).next()
    }

    /// Calls `f` with the key and value of every entry in `range`, in order, until `f` returns [`ControlFlow::Break`].
    ///
    /// Creates no handles. Costs O(log n), and O(1) an entry.
    #[track_caller]
    pub fn visit_range(&self, range: impl KeyRange, f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        expect_sound(self.try_visit_range(range, f));
    }

    /// Calls `f` with every entry in `range`, or returns the error of the medium that the entries lie in.
    ///
    /// Otherwise works like [`visit_range`](Self::visit_range).
    ///
    /// # Errors
    ///
    /// The first damage in `range`, after the entries before it; [`StateError::Io`]; and the errors of a third-party
    /// [`SnapshotSource`].
    pub fn try_visit_range(
        &self,
        range: impl KeyRange,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let bounds = range.bounds();
        if is_inverted(bounds) {
            return Ok(());
        }
        self.data.source.try_visit(bounds, &mut f)
    }

    /// Calls `f` with every entry whose key starts with `prefix`, in order, until `f` returns [`ControlFlow::Break`].
    ///
    /// Creates no handles. Costs O(log n), and O(1) an entry.
    #[track_caller]
    pub fn visit_prefix(&self, prefix: &[u8], f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        with_prefix_bounds(prefix, |bounds| self.visit_range(bounds, f));
    }
}

/// An empty snapshot, taken at time 0.
impl Default for StateSnapshot {
    fn default() -> Self {
        let fingerprint = Some(Fingerprint::EMPTY);
        Self::opened(0, Label::new(), fingerprint, Arc::new(SortedEntries::default()))
    }
}

/// Sorts the entries. If several have the same key, the last one counts. O(n log n).
///
/// # Panics
///
/// If a key or a value is longer than the contract allows. [`StateSnapshot::from_sorted`] returns an error instead.
impl<K: Into<Bytes>, V: Into<Bytes>> FromIterator<(K, V)> for StateSnapshot {
    #[track_caller]
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(Bytes, Bytes)> = entries.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                mem::swap(later, earlier);
            }
            same
        });
        match SortedEntries::new(entries) {
            Ok(entries) => Self::of(Arc::new(entries)),
            Err(error) => panic!("cannot take a snapshot: {error}"),
        }
    }
}

impl<'a> IntoIterator for &'a StateSnapshot {
    type Item = (Bytes, Bytes);
    type IntoIter = Scan<'a>;

    fn into_iter(self) -> Scan<'a> {
        self.iter()
    }
}

/// An iterator over the entries of an owned snapshot, in order.
///
/// It reads some hundred entries at a time, each time with a search.
pub struct SnapshotIntoIter {
    snapshot: StateSnapshot,
    /// The bounds of the entries that have not been read.
    bounds: OwnedBounds,
    batch: vec::IntoIter<(Bytes, Bytes)>,
    /// The number of entries that have not been returned.
    left: usize,
}

impl Iterator for SnapshotIntoIter {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        const BATCH: usize = 256;
        if self.batch.len() == 0 && self.left > 0 {
            let batch: Vec<_> = self.snapshot.scan(self.bounds.get()).take(BATCH).collect();
            if let Some((last, _)) = batch.last() {
                self.bounds.start_after(last);
            }
            self.batch = batch.into_iter();
        }
        let entry = self.batch.next()?;
        self.left = self.left.saturating_sub(1);
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for SnapshotIntoIter {}

impl fmt::Debug for SnapshotIntoIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotIntoIter").field("left", &self.left).finish_non_exhaustive()
    }
}

impl IntoIterator for StateSnapshot {
    type Item = (Bytes, Bytes);
    type IntoIter = SnapshotIntoIter;

    fn into_iter(self) -> SnapshotIntoIter {
        let (bounds, left) = (OwnedBounds::copy_of(ALL_KEYS), self.len());
        SnapshotIntoIter { snapshot: self, bounds, batch: Vec::new().into_iter(), left }
    }
}

/// Compares contents, not times. O(1) for clones, else O(n).
impl PartialEq for StateSnapshot {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.data.source, &other.data.source)
            || (self.len() == other.len() && self.size_bytes() == other.size_bytes() && self.iter().eq(other.iter()))
    }
}

impl Eq for StateSnapshot {}

impl fmt::Debug for StateSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateSnapshot")
            .field("len", &self.len())
            .field("size_bytes", &self.size_bytes())
            .field("timestamp_ns", &self.timestamp_ns())
            .finish_non_exhaustive()
    }
}
