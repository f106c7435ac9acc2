//! [`StateSnapshot`]: the contents of a store at one instant, for every kind of store.
//!
//! A snapshot knows nothing of stores. It shares a [`Source`], and there are as many kinds of those as there are ways
//! for entries to lie in memory: what a store froze, a sorted vector, the bytes of an image.
//!
//! ```text
//!   StateSnapshot (clone) ──┐
//!   StateSnapshot ──────────┴─> Arc<Shared> { timestamp, fingerprint once known, source }
//!                                                                                  │
//!                           Arc<map of an InMemoryStore>  or  SortedEntries  or  Image ──> Bytes
//!                                       or  LazyImage ──> Bytes, a mapped file or a reader  or  Merged ──> sources
//!                                       or  Overlay ──> another of these, and changes beside it
//!                                       or  Foreign ──> a `SnapshotSource` of a third-party store
//! ```

mod archived;
mod comparison;
mod delta;
mod fingerprint;
mod format;
mod grouped;
mod image;
mod inspect;
mod label;
mod lazy;
#[cfg(feature = "mmap")]
mod map;
mod merge;
mod overlay;
mod pool;
mod progress;
mod segment;
mod sorted;
mod split;
mod unverified;
mod write;

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::mem;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use std::vec;

use bytes::Bytes;

pub use archived::{ArchivedStateSnapshot, StateSnapshotResolver};
pub(crate) use comparison::{Compared, Comparison, Counts};
pub use comparison::{Difference, Differences, TryDifferences};
pub use delta::{Changes, StateDelta};
pub use fingerprint::Fingerprint;
pub use grouped::GroupedImage;
pub use inspect::{DeltaInfo, GroupInfo, ImageInfo, ImageKind, ImageTotals, SegmentInfo};
pub use label::Label;
pub use progress::Progress;
pub use unverified::UnverifiedImage;
pub use write::ImageOptions;

use crate::aligned::{aligned, aligned_copy};
use crate::bounds::{ALL_KEYS, KeyBounds, KeyRange, OwnedBounds, half_open, is_inverted, with_prefix_bounds};
use crate::scan::{Scan, TryScan, TypedScan};
use crate::typed::{self, ReadValue, ViewValue, decode};
use crate::{SnapshotSource, StateError, check_entry_len};
use comparison::{Handed, Join, Joined, TryJoin};
use format::{Header, Kind};
use image::Image;
use sorted::SortedEntries;

/// Where a snapshot's entries lie: immutable, in strictly ascending order of keys, within the limits of the contract.
///
/// Like a [`SnapshotSource`], with more methods for sources of this crate. Bounds may be inverted.
pub(crate) trait Source: Send + Sync + 'static {
    /// Returns the number of entries.
    fn len(&self) -> usize;

    /// Returns the sum of the lengths of all keys and values.
    fn size_bytes(&self) -> usize;

    /// Returns the value of `key` as a handle.
    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Iterates over the entries within `bounds` as handles, in order and from both ends. A source that nobody has verified
    /// verifies itself where the bounds are those of all keys and it is walked from the start to the end.
    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_>;

    /// Calls `f` with the entries within `bounds`, in order, until it breaks. A source that nobody has verified verifies
    /// itself where the bounds are those of all keys and `f` does not break.
    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError>;

    /// Returns `true` if reading on several threads, and twice, costs little more than reading once.
    fn is_for_many_readers(&self) -> bool {
        true
    }

    /// Returns `true` if a read can fail although the source was verified.
    fn can_fail(&self) -> bool {
        false
    }

    /// Verifies whatever has not been verified yet; returns the fingerprint if that told it.
    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        Ok(None)
    }

    /// Returns what differs between `earlier` and this, if the two share enough to tell without walking over both.
    fn compare(self: Arc<Self>, earlier: &Arc<dyn Source>) -> Option<Arc<dyn Comparison>> {
        let _ = earlier;
        None
    }

    /// Returns the source as what it is, for a store that can take its own kind back without copying.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The source of a third-party store. Its entries are checked on their way: stores rely on the limits and on the order.
struct Foreign<S>(S);

/// Entries of a third-party source that are checked on their way. Nothing follows a broken rule.
struct Checked<'a> {
    entries: TryScan<'a>,
    /// The keys that were handed out last from the start and from the end.
    last: (Option<Bytes>, Option<Bytes>),
    handed_out: usize,
    is_broken: bool,
}

impl Checked<'_> {
    fn check(
        &mut self,
        entry: Result<(Bytes, Bytes), StateError>,
        is_front: bool,
    ) -> Result<(Bytes, Bytes), StateError> {
        let (key, value) = entry?;
        let (front, back) = &mut self.last;
        let is_in_order =
            front.as_ref().is_none_or(|front| *front < key) && back.as_ref().is_none_or(|back| key < *back);
        let order = if is_in_order { Ok(()) } else { Err(StateError::NotSorted { index: self.handed_out }) };
        if let Err(error) = check_entry_len(&key, &value).and(order) {
            self.is_broken = true;
            return Err(error);
        }
        *(if is_front { front } else { back }) = Some(key.clone());
        self.handed_out += 1;
        Ok((key, value))
    }
}

impl Iterator for Checked<'_> {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = if self.is_broken { None } else { self.entries.next() }?;
        Some(self.check(entry, true))
    }
}

impl DoubleEndedIterator for Checked<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let entry = if self.is_broken { None } else { self.entries.next_back() }?;
        Some(self.check(entry, false))
    }
}

impl<S: SnapshotSource> Source for Foreign<S> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.0.try_get(key)?;
        value.as_ref().map_or(Ok(()), |value| check_entry_len(key, value))?;
        Ok(value)
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        if is_inverted(bounds) {
            return TryScan::new(std::iter::empty());
        }
        let entries = self.0.try_scan(bounds);
        TryScan::new(Checked { entries, last: (None, None), handed_out: 0, is_broken: false })
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        if is_inverted(bounds) {
            return Ok(());
        }
        let (mut last, mut index, mut result) = (Vec::new(), 0, Ok(()));
        let visited = self.0.try_visit(bounds, &mut |key, value| {
            let is_in_order = index == 0 || *last < *key;
            let order = if is_in_order { Ok(()) } else { Err(StateError::NotSorted { index }) };
            result = check_entry_len(key, value).and(order);
            if result.is_err() {
                return ControlFlow::Break(());
            }
            last.clear();
            last.extend_from_slice(key);
            index += 1;
            f(key, value)
        });
        result.and(visited)
    }

    fn is_for_many_readers(&self) -> bool {
        self.0.is_for_many_readers()
    }

    fn can_fail(&self) -> bool {
        true
    }

    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        self.0.verify().map(|()| None)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Returns what a read found, for methods that have no error to return.
#[track_caller]
pub(crate) fn expect_sound<T>(result: Result<T, StateError>) -> T {
    result.unwrap_or_else(|error| panic!("the snapshot cannot be read: {error}"))
}

/// The contents of a store at one instant: immutable, ordered, readable on any thread.
///
/// A snapshot comes from [`StateStore::snapshot`](crate::StateStore::snapshot), from the bytes of an *image*, which is a
/// serialized snapshot ([`from_bytes`](Self::from_bytes)) or from entries ([`from_sorted`](Self::from_sorted),
/// [`FromIterator`]). It stays as it is whatever happens to the store it was taken from, and outlives it.
///
/// Two snapshots are equal when they hold the same entries, wherever they come from and whenever they were taken.
///
/// # Sharing
///
/// Cloning costs O(1); clones share everything. Handles from a snapshot of an image are slices of the image's bytes and
/// keep all of them alive (values of an image of format 1 are copied); handles from a scan of a store's snapshot keep
/// alive a run of up to 64 entries. A snapshot of a store keeps alive what the store held; see there for what that costs
/// the store's writer.
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
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Shared {
    timestamp_ns: u64,
    label: Label,
    fingerprint: OnceLock<Fingerprint>,
    source: Arc<dyn Source>,
}

const _: () = {
    const fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    is_shareable::<StateSnapshot>();
};

impl StateSnapshot {
    /// Makes a snapshot of `source`, taken now.
    pub(crate) fn of(source: Arc<dyn Source>) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        Self::opened(timestamp_ns, Label::new(), None, source)
    }

    /// Returns what the entries lie in.
    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        &self.shared.source
    }

    /// Makes a snapshot from entries in strictly ascending order of their keys: for stores of your own.
    ///
    /// Computes in O(n). Handles are kept; values that are not aligned to
    /// [`VALUE_ALIGNMENT`](crate::VALUE_ALIGNMENT) are copied.
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

    /// Makes a snapshot that reads from `source`: for stores of your own that share their entries with snapshots. O(1).
    pub fn from_source(source: impl SnapshotSource) -> Self {
        Self::of(Arc::new(Foreign(source)))
    }

    /// Opens an image, also [one of key groups](Self::write_grouped).
    ///
    /// All of it is verified: structure, checksums, order of keys, counts and the fingerprint. The snapshot answers
    /// from `bytes` as they are; they are copied only if they do not start at a multiple of 16 in memory.
    /// Computes in O(n), and allocates less than the bytes' own length and a few hundred (twice that where they are
    /// copied).
    ///
    /// # Errors
    ///
    /// [`StateError::NotAnImage`], [`StateError::UnsupportedVersion`], [`StateError::Truncated`],
    /// [`StateError::ChecksumMismatch`] and [`StateError::Malformed`]; [`StateError::ConflictingKeys`] for key groups.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        let bytes = bytes.into();
        if Header::read(&bytes)?.kind == Kind::Grouped {
            return GroupedImage::from_bytes(bytes)?.read_whole();
        }
        let (image, ends) = Image::open(bytes)?;
        Ok(Self::opened(ends.timestamp_ns, ends.label, Some(ends.fingerprint), Arc::new(image)))
    }

    /// Opens a copy of an image. Does what [`from_bytes`](Self::from_bytes) does, for bytes that are borrowed.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes).
    pub fn from_slice(bytes: &[u8]) -> Result<Self, StateError> {
        Self::from_bytes(aligned_copy(bytes))
    }

    /// Makes a snapshot of `source`, taken then.
    fn opened(timestamp_ns: u64, label: Label, fingerprint: Option<Fingerprint>, source: Arc<dyn Source>) -> Self {
        let fingerprint = fingerprint.map_or_else(OnceLock::new, OnceLock::from);
        Self { shared: Arc::new(Shared { timestamp_ns, label, fingerprint, source }) }
    }

    /// Returns the snapshot as an image. Computes in O(n).
    ///
    /// Equal contents with equal labels give equal bytes, but for the time in the header.
    #[track_caller]
    pub fn to_bytes(&self) -> Bytes {
        // Eight bytes an entry, about as many to align its value, and a little for each segment come to what the entries
        // are themselves.
        let mut image = Vec::with_capacity(self.size_bytes() + self.size_bytes() / 256 + 16 * self.len() + 512);
        // A `Vec` takes all bytes, so only reading the entries can fail.
        expect_sound(self.write_to(&mut image));
        image.into()
    }

    /// Writes the snapshot as an image, as it goes, and returns the number of bytes written.
    ///
    /// Computes in O(n), on as many threads as [`ImageOptions::threads`] says where these are given
    /// ([`write_with`](Self::write_with)). Beyond the snapshot it needs memory for five times the largest segment, that
    /// is 64 KiB and an entry shorter than that, and for up to three times 40 bytes and a key for every segment written.
    /// `out` gets writes of whole segments, so it need not be buffered; it is flushed at the end.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], and those of the medium that the snapshot lies in. What was written
    /// until then is an incomplete image, which cannot be opened.
    pub fn write_to(&self, out: impl Write) -> Result<u64, StateError> {
        self.write_with(ImageOptions::new(), out)
    }

    /// Writes as [`write_to`](Self::write_to) does, with options for the layout of the image.
    ///
    /// # Errors
    ///
    /// The errors of [`write_to`](Self::write_to).
    pub fn write_with(&self, options: ImageOptions, out: impl Write) -> Result<u64, StateError> {
        self.write_with_progress(options, out, |_| ControlFlow::Continue(()))
    }

    /// Returns the number of entries. O(1).
    pub fn len(&self) -> usize {
        self.shared.source.len()
    }

    /// Returns `true` if there is no entry. O(1).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sum of the lengths of all keys and values, in bytes. O(1).
    pub fn size_bytes(&self) -> usize {
        self.shared.source.size_bytes()
    }

    /// Returns when the snapshot was taken, in nanoseconds since the start of 1970 (UTC).
    pub fn timestamp_ns(&self) -> u64 {
        self.shared.timestamp_ns
    }

    /// Returns the same contents with another time, in nanoseconds since the start of 1970. O(1).
    ///
    /// With equal times, equal contents give images that are equal to the last byte.
    #[must_use]
    pub fn with_timestamp_ns(&self, timestamp_ns: u64) -> Self {
        Self { shared: Arc::new(Shared { timestamp_ns, ..Shared::clone(&self.shared) }) }
    }

    /// Returns the label: which operator and job the contents belong to. Images and deltas carry it.
    pub fn label(&self) -> &Label {
        &self.shared.label
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
        Self { shared: Arc::new(Shared { label, ..Shared::clone(&self.shared) }) }
    }

    /// Returns the fingerprint of the contents. O(n) the first time, then O(1); O(1) on an image that has been verified, on
    /// what a delta was applied to, and once it was written or a delta led to or from it whose other end was known.
    #[track_caller]
    pub fn fingerprint(&self) -> Fingerprint {
        expect_sound(self.try_fingerprint())
    }

    /// Returns the fingerprint, or the error of the medium that the entries lie in.
    pub(crate) fn try_fingerprint(&self) -> Result<Fingerprint, StateError> {
        if let Some(known) = self.shared.fingerprint.get() {
            return Ok(*known);
        }
        let mut fingerprint = Fingerprint::EMPTY;
        self.try_visit_range(.., |key, value| {
            fingerprint.add(key, value);
            ControlFlow::Continue(())
        })?;
        Ok(*self.shared.fingerprint.get_or_init(|| fingerprint))
    }

    /// Returns what changed since `earlier`: applied to that, the delta gives this.
    ///
    /// For two snapshots of one [`HotStore`](crate::HotStore), the earlier one of which was alive when the later one was
    /// taken, it costs what the store wrote in between, as long as that was less than a quarter of its entries; for
    /// others of one `HotStore`, what it wrote and O(n / 64). Anything else is O(n). Either way the result is the same.
    ///
    /// The delta shares both snapshots and keeps them alive. "Earlier" is what `self` is compared with: a snapshot taken
    /// later is as good, and its delta leads back. The comparison panics if the medium of a snapshot fails.
    ///
    /// ```
    /// use opstate::{HotStore, StateStore};
    ///
    /// # fn main() -> Result<(), opstate::StateError> {
    /// let mut store = HotStore::new();
    /// store.put(b"a", b"1")?;
    /// store.put(b"b", b"1")?;
    /// let earlier = store.snapshot();
    /// store.delete(b"a")?;
    /// store.put(b"b", b"2")?;
    /// let later = store.snapshot();
    ///
    /// let delta = later.delta_since(&earlier);
    /// assert_eq!((delta.len(), delta.deletes(), delta.puts()), (2, 1, 1));
    /// assert_eq!(earlier.apply(&delta)?, later);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn delta_since(&self, earlier: &Self) -> StateDelta {
        let comparison = self.compare(earlier).unwrap_or_else(|| {
            let differences = Join::new(&**earlier.source(), &**self.source());
            Arc::new(Joined::new(differences))
        });
        StateDelta::between(earlier, self, comparison)
    }

    /// Iterates over what differs from `earlier`, in the order of keys.
    ///
    /// Costs as much as [`delta_since`](Self::delta_since). Snapshots that share nothing are walked as the iterator goes.
    ///
    /// ```
    /// use opstate::{Difference, StateSnapshot};
    ///
    /// let earlier = StateSnapshot::from_iter([("a", "1"), ("b", "1"), ("c", "1")]);
    /// let later = StateSnapshot::from_iter([("b", "2"), ("c", "1"), ("d", "1")]);
    /// let differences: Vec<_> = later.diff(&earlier).collect();
    /// assert_eq!(differences, [
    ///     Difference { key: "a".into(), old: Some("1".into()), new: None },
    ///     Difference { key: "b".into(), old: Some("1".into()), new: Some("2".into()) },
    ///     Difference { key: "d".into(), old: None, new: Some("1".into()) },
    /// ]);
    /// ```
    pub fn diff<'a>(&'a self, earlier: &'a Self) -> Differences<'a> {
        match self.compare(earlier) {
            Some(comparison) => Differences::new(Handed::new(comparison, true).map(Difference::from)),
            None => Differences::new(Join::new(&**earlier.source(), &**self.source())),
        }
    }

    /// Iterates over what differs from `earlier`, where the medium of either can fail. Both are read once, in order, as the
    /// iterator goes.
    ///
    /// # Errors
    ///
    /// The first damage of either, after all differences before it; nothing follows, for whether what the damaged part held
    /// differs cannot be told. And [`StateError::Io`].
    pub fn try_diff<'a>(&'a self, earlier: &'a Self) -> TryDifferences<'a> {
        match self.compare(earlier) {
            Some(comparison) => {
                TryDifferences::new(Handed::new(comparison, true).map(|handed| Ok(Difference::from(handed))))
            }
            None => TryDifferences::new(TryJoin::new(&**earlier.source(), &**self.source())),
        }
    }

    /// Returns what differs from `earlier`, if that can be told without walking over both.
    fn compare(&self, earlier: &Self) -> Option<Arc<dyn Comparison>> {
        if Arc::ptr_eq(self.source(), earlier.source()) {
            return Some(Arc::new(Joined::new(std::iter::empty())));
        }
        Arc::clone(self.source()).compare(earlier.source())
    }

    /// Returns these contents with the changes of `delta`, which was taken against them, and with its time.
    ///
    /// The snapshot answers from this one and the delta as they are: nothing is copied but handles. Costs a lookup for
    /// each change, or O(n) where that is less, and this snapshot's [`fingerprint`](Self::fingerprint), which images
    /// know. Of a chain of k deltas, a read looks into O(log k) parts; an image of the result, or a store restored
    /// from it, is whole again.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`], and [`StateError::InconsistentDelta`] for a delta that someone forged; and those of
    /// [`verify`](Self::verify).
    ///
    /// ```
    /// use opstate::{StateError, StateSnapshot};
    ///
    /// # fn main() -> Result<(), StateError> {
    /// let monday = StateSnapshot::from_iter([("a", "1"), ("b", "1")]);
    /// let tuesday = StateSnapshot::from_iter([("a", "2"), ("b", "1")]);
    /// let wednesday = StateSnapshot::from_iter([("a", "2")]);
    /// let (first, second) = (tuesday.delta_since(&monday), wednesday.delta_since(&tuesday));
    ///
    /// assert_eq!(monday.apply(&first)?.apply(&second)?, wednesday);
    /// let error = monday.apply(&second).unwrap_err();
    /// assert!(matches!(error, StateError::WrongBase { found, .. } if found == monday.fingerprint()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply(&self, delta: &StateDelta) -> Result<Self, StateError> {
        delta::apply(self, delta)
    }

    /// Verifies all that has not been verified yet. O(1) for snapshots of stores and opened images.
    ///
    /// # Errors
    ///
    /// The errors of a third-party [`SnapshotSource`].
    pub fn verify(&self) -> Result<(), StateError> {
        if let Some(fingerprint) = self.shared.source.verify()? {
            let _ = self.shared.fingerprint.set(fingerprint);
        }
        Ok(())
    }

    /// Verifies the snapshot, and reads it into memory if reads could fail afterwards.
    pub(crate) fn into_sound(self) -> Result<Self, StateError> {
        if !self.source().can_fail() {
            self.verify()?;
            return Ok(self);
        }
        let entries = self.shared.source.try_scan(ALL_KEYS).collect::<Result<_, _>>()?;
        self.verify()?;
        let source = Arc::new(SortedEntries::new(entries)?);
        Ok(Self { shared: Arc::new(Shared { source, ..Shared::clone(&self.shared) }) })
    }

    /// Returns the value of `key`. O(log n).
    ///
    /// # Panics
    ///
    /// If the medium of the snapshot fails, as every method without `try_` does. Of this crate's snapshots only those that
    /// were verified from a file or reader have one.
    #[track_caller]
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        expect_sound(self.try_get(key))
    }

    /// Returns the value of `key`, or the error of the medium that it lies in. O(log n).
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], the damage of the part that would hold `key`, and those of a third-party [`SnapshotSource`].
    pub fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.shared.source.try_get(key)?.map(aligned))
    }

    /// Returns `true` if there is an entry for `key`. O(log n).
    #[track_caller]
    pub fn contains(&self, key: &[u8]) -> bool {
        expect_sound(self.shared.source.try_get(key)).is_some()
    }

    /// Returns the value of `key` as a `T`. O(log n), the check of the bytes and the deserialization.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and those of [`try_get`](Self::try_get).
    pub fn get_typed<T: ReadValue>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        self.shared.source.try_get(key)?.map(|value| decode(key, &value)).transpose()
    }

    /// Calls `f` with the value of `key` as an archived `T`, and returns what it returns; `None` without a value. O(log
    /// n) and the check of the bytes.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and those of [`try_get`](Self::try_get); then `f` is not called.
    pub fn view<T: ViewValue, R>(
        &self,
        key: &[u8],
        f: impl FnOnce(&T::Archived) -> R,
    ) -> Result<Option<R>, StateError> {
        self.shared.source.try_get(key)?.map(|value| typed::view::<T, _>(key, &value, f)).transpose()
    }

    /// Iterates over all entries, in order and from both ends.
    pub fn iter(&self) -> Scan<'_> {
        self.scan(..)
    }

    /// Iterates over the entries whose keys start with `prefix`, in order and from both ends. O(log n) and O(1) an entry.
    pub fn prefix_scan(&self, prefix: &[u8]) -> Scan<'_> {
        with_prefix_bounds(prefix, |bounds| self.scan(bounds))
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends: the start is included, the end is
    /// not. O(log n) and O(1) an entry.
    pub fn range_scan(&self, range: Range<&[u8]>) -> Scan<'_> {
        self.scan(half_open(range))
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends. O(log n) and O(1) an entry.
    pub fn scan(&self, range: impl KeyRange) -> Scan<'_> {
        Scan::of_snapshot(self.try_scan(range))
    }

    /// Iterates over the entries whose keys are in `range`, where the medium of the snapshot can fail. O(log n) and O(1) an
    /// entry.
    ///
    /// # Errors
    ///
    /// An item is an error in the place of the entries that could not be read; the iterator goes on behind it.
    pub fn try_scan(&self, range: impl KeyRange) -> TryScan<'_> {
        self.shared.source.try_scan(range.bounds())
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends, with their values as `T`s.
    ///
    /// # Errors
    ///
    /// An item is [`StateError::WrongType`] where the value is no `T`, or an error of [`try_scan`](Self::try_scan); the
    /// iterator goes on behind it.
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

    /// Calls `f` with the key and value of every entry in `range`, in order, without handles, until it returns
    /// [`ControlFlow::Break`]. O(log n) and O(1) an entry.
    #[track_caller]
    pub fn visit_range(&self, range: impl KeyRange, f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        expect_sound(self.try_visit_range(range, f));
    }

    /// Calls `f` as [`visit_range`](Self::visit_range) does, or returns the error of the medium that the entries lie in.
    ///
    /// # Errors
    ///
    /// The first damage in `range`, after the entries before it; [`StateError::Io`], and those of a third-party
    /// [`SnapshotSource`].
    pub fn try_visit_range(
        &self,
        range: impl KeyRange,
        mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.shared.source.try_visit(range.bounds(), &mut f)
    }

    /// Calls `f` with every entry whose key starts with `prefix`, in order, without handles, until it returns
    /// [`ControlFlow::Break`]. O(log n) and O(1) an entry.
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

/// Sorts the entries; of entries with the same key the last one counts. O(n log n).
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

/// An iterator over the entries of a snapshot that it owns, in order.
///
/// It reads some hundred entries at a time, each time with a search.
pub struct SnapshotIntoIter {
    snapshot: StateSnapshot,
    bounds: OwnedBounds,
    batch: vec::IntoIter<(Bytes, Bytes)>,
    /// The number of entries that are not yet handed out.
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
        Arc::ptr_eq(&self.shared.source, &other.shared.source)
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
