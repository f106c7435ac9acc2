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
//! ```

mod archived;
mod comparison;
mod delta;
mod fingerprint;
mod format;
mod grouped;
mod image;
mod inspect;
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
mod write;

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::mem;
use std::ops::{Bound, ControlFlow, Range, RangeBounds};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rkyv::api::high::{HighDeserializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::BoxedError;
use rkyv::{Archive, Deserialize};

pub use archived::{ArchivedStateSnapshot, StateSnapshotResolver};
pub(crate) use comparison::{Compared, Comparison, Counts};
pub use comparison::{Differences, TryDifferences};
pub use delta::{Changes, StateDelta};
pub use fingerprint::Fingerprint;
pub use grouped::GroupedImage;
pub use inspect::{DeltaEnds, GroupInfo, ImageInfo, ImageKind, ImageTotals, SegmentInfo};
pub use progress::Progress;
pub use write::ImageOptions;

use crate::StateError;
use crate::ext::decode;
use crate::store::{Entries, KeyBounds, half_open};
use comparison::{Handed, Join, Joined, TryJoin};
use format::{Header, Kind};
use image::Image;
use lazy::expect_sound;
use sorted::SortedEntries;

/// An ordered iterator over entries whose bytes are verified on the way, as [`StateSnapshot::try_scan`] returns it.
pub type TryEntries<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a>;

/// Where a snapshot's entries lie: immutable, in strictly ascending order of keys, within the limits of the contract.
pub(crate) trait Source: Send + Sync + 'static {
    /// The number of entries.
    fn len(&self) -> usize;

    /// The sum of the lengths of all keys and values.
    fn size_bytes(&self) -> usize;

    /// The value of `key` as a handle.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// The entries within `range` as handles, in order.
    fn scan<'a>(&'a self, range: KeyBounds<'a>) -> Entries<'a>;

    /// Calls `f` with the entries within `range`, in order, until it breaks.
    fn visit(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>);

    /// As [`get`](Self::get), for a source that verifies its bytes at their first touch.
    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.get(key))
    }

    /// As [`scan`](Self::scan), for a source that verifies its bytes at their first touch.
    fn try_scan<'a>(&'a self, range: KeyBounds<'a>) -> TryEntries<'a> {
        Box::new(self.scan(range).map(Ok))
    }

    /// As [`visit`](Self::visit), for a source that verifies its bytes at their first touch.
    fn try_visit(
        &self,
        range: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.visit(range, f);
        Ok(())
    }

    /// Whether reading on several threads, and twice, costs little more than reading once.
    fn is_for_many_readers(&self) -> bool {
        true
    }

    /// Verifies whatever has not been verified yet; returns the fingerprint if that told it.
    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        Ok(None)
    }

    /// What differs between `earlier` and this, if the two share enough to tell without walking over both.
    fn compare(self: Arc<Self>, earlier: &Arc<dyn Source>) -> Option<Arc<dyn Comparison>> {
        let _ = earlier;
        None
    }

    /// The source as what it is, for a store that can take its own kind back without copying.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The contents of a store at one instant: immutable, ordered, readable on any thread.
///
/// A snapshot comes from [`StateStore::snapshot`](crate::StateStore::snapshot), from the bytes of an *image*, which is a
/// serialized snapshot ([`from_bytes`](Self::from_bytes)) or from entries ([`from_sorted`](Self::from_sorted), [`FromIterator`]). It stays
/// as it is whatever happens to the store it was taken from, and outlives it.
///
/// Two snapshots are equal when they hold the same entries, wherever they come from and whenever they were taken.
///
/// # Sharing
///
/// Cloning costs O(1); clones share everything. Handles from a snapshot of an image are slices of the image's bytes and
/// keep all of them alive; handles from a scan of a store's snapshot keep alive a run of up to 64 entries. A snapshot of a
/// store keeps alive what the store held; see there for what that costs the store's writer.
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

struct Shared {
    timestamp_ns: u64,
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
        Self { shared: Arc::new(Shared { timestamp_ns, fingerprint: OnceLock::new(), source }) }
    }

    /// Returns what the entries lie in.
    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        &self.shared.source
    }

    /// Makes a snapshot from entries in strictly ascending order of their keys: for stores of your own.
    ///
    /// Computes in O(n); handles are kept, not copied.
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

    /// Opens an image, also [one of key groups](Self::write_grouped).
    ///
    /// All of it is verified: structure, checksums, order of keys, counts and the fingerprint. The snapshot answers
    /// from `bytes` as they are; they are copied only if they do not start at a multiple of four bytes in memory.
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
        let (image, timestamp_ns, fingerprint) = Image::open(bytes)?;
        Ok(Self::opened(timestamp_ns, Some(fingerprint), Arc::new(image)))
    }

    /// Makes a snapshot of `source`, taken then.
    fn opened(timestamp_ns: u64, fingerprint: Option<Fingerprint>, source: Arc<dyn Source>) -> Self {
        let fingerprint = fingerprint.map_or_else(OnceLock::new, OnceLock::from);
        Self { shared: Arc::new(Shared { timestamp_ns, fingerprint, source }) }
    }

    /// Returns the snapshot as an image. Computes in O(n).
    ///
    /// Equal contents give equal bytes, but for the time in the header.
    pub fn to_bytes(&self) -> Bytes {
        // Eight bytes an entry and a little for each segment come to what the entries are themselves.
        let mut image = Vec::with_capacity(self.size_bytes() + self.size_bytes() / 256 + 8 * self.len() + 512);
        // A `Vec` takes all bytes, so only reading the entries can fail.
        expect_sound(self.write_to(&mut image));
        image.into()
    }

    /// Writes the snapshot as an image, as it goes, and returns the number of bytes written.
    ///
    /// Computes in O(n), on as many threads as [`ImageOptions::threads`] says where these are given
    /// ([`write_with`](Self::write_with)). Beyond the snapshot it needs memory for five times the largest segment, that is 64 KiB and an
    /// entry shorter than that, and for up to three times 40 bytes and a key for every segment written. `out` gets writes
    /// of whole segments, so it need not be buffered; it is flushed at the end.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], and those of [`verify`](Self::verify) for an image opened without reading it. What was written
    /// until then is an incomplete image, which cannot be opened.
    pub fn write_to(&self, out: impl Write) -> Result<u64, StateError> {
        self.write_with(ImageOptions::new(), out)
    }

    /// As [`write_to`](Self::write_to), with options for the layout of the image.
    ///
    /// # Errors
    ///
    /// As [`write_to`](Self::write_to).
    pub fn write_with(&self, options: ImageOptions, out: impl Write) -> Result<u64, StateError> {
        self.write_with_progress(options, out, |_| ControlFlow::Continue(()))
    }

    /// Returns the number of entries. O(1).
    pub fn len(&self) -> usize {
        self.shared.source.len()
    }

    /// Returns whether there is no entry. O(1).
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
        let Shared { fingerprint, source, .. } = &*self.shared;
        let (fingerprint, source) = (fingerprint.clone(), Arc::clone(source));
        Self { shared: Arc::new(Shared { timestamp_ns, fingerprint, source }) }
    }

    /// Returns the fingerprint of the contents. O(n) the first time, then O(1); O(1) on an image that has been verified, on
    /// what a delta was applied to, and once it was written or a delta led to or from it whose other end was known.
    pub fn fingerprint(&self) -> Fingerprint {
        expect_sound(self.try_fingerprint())
    }

    /// As [`fingerprint`](Self::fingerprint), for an image opened without reading it.
    pub(crate) fn try_fingerprint(&self) -> Result<Fingerprint, StateError> {
        if let Some(known) = self.shared.fingerprint.get() {
            return Ok(*known);
        }
        let mut fingerprint = Fingerprint::EMPTY;
        self.try_visit_range((Bound::Unbounded, Bound::Unbounded), |key, value| {
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
    /// later is as good, and its delta leads back. Of a snapshot that was opened without reading it,
    /// [`verify`](Self::verify) all first: the comparison has no error to return.
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

    /// Iterates over what differs from `earlier`, in the order of keys: each key with its old and its new value, `None`
    /// where there is no entry.
    ///
    /// Costs as much as [`delta_since`](Self::delta_since). Snapshots that share nothing are walked as the iterator goes.
    ///
    /// ```
    /// use opstate::StateSnapshot;
    ///
    /// let earlier = StateSnapshot::from_iter([("a", "1"), ("b", "1"), ("c", "1")]);
    /// let later = StateSnapshot::from_iter([("b", "2"), ("c", "1"), ("d", "1")]);
    /// let differences: Vec<_> = later.diff(&earlier).collect();
    /// assert_eq!(differences, [
    ///     ("a".into(), Some("1".into()), None),
    ///     ("b".into(), Some("1".into()), Some("2".into())),
    ///     ("d".into(), None, Some("1".into())),
    /// ]);
    /// ```
    #[must_use]
    pub fn diff<'a>(&'a self, earlier: &'a Self) -> Differences<'a> {
        match self.compare(earlier) {
            Some(comparison) => Box::new(Handed::new(comparison, true).map(|(key, _, old, new)| (key, old, new))),
            None => Box::new(Join::new(&**earlier.source(), &**self.source())),
        }
    }

    /// As [`diff`](Self::diff), for images opened without reading them: both are read once, in order, as the iterator goes.
    ///
    /// # Errors
    ///
    /// The first damage of either, after all differences before it; nothing follows, for whether what the damaged part held
    /// differs cannot be told. And [`StateError::Io`].
    ///
    /// ```
    /// use opstate::StateSnapshot;
    ///
    /// let earlier = StateSnapshot::from_bytes_lazily(StateSnapshot::from_iter([("a", "1")]).to_bytes())?;
    /// let later = StateSnapshot::from_iter([("a", "2")]);
    /// let differences = later.try_diff(&earlier).collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(differences, [("a".into(), Some("1".into()), Some("2".into()))]);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    #[must_use]
    pub fn try_diff<'a>(&'a self, earlier: &'a Self) -> TryDifferences<'a> {
        match self.compare(earlier) {
            Some(comparison) => Box::new(Handed::new(comparison, true).map(|(key, _, old, new)| Ok((key, old, new)))),
            None => Box::new(TryJoin::new(&**earlier.source(), &**self.source())),
        }
    }

    /// What differs from `earlier`, if that can be told without walking over both.
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
    /// [`StateError::WrongBase`], and [`StateError::InconsistentDelta`] for a delta that someone forged; of a base that was
    /// opened without reading it, the damage that [`verify`](Self::verify) finds.
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

    /// Returns the value of `key`. O(log n).
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.shared.source.get(key)
    }

    /// Returns whether there is an entry for `key`. O(log n).
    pub fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// Returns the value of `key` as a `T`. O(log n), the check of the bytes and the deserialization.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and those of [`try_get`](Self::try_get).
    pub fn get_typed<T>(&self, key: &[u8]) -> Result<Option<T>, StateError>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>> + Deserialize<T, HighDeserializer<BoxedError>>,
    {
        self.try_get(key)?.map(|value| decode(key, &value)).transpose()
    }

    /// Iterates over all entries, in order.
    pub fn iter(&self) -> Entries<'_> {
        self.scan(..)
    }

    /// Iterates over the entries whose keys start with `prefix`, in order. O(log n) and O(1) an entry.
    pub fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
        prefix_scan(&*self.shared.source, prefix)
    }

    /// Iterates over the entries whose keys are in `range`, in order: the start is included, the end is not. O(log n)
    /// and O(1) an entry.
    pub fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
        self.shared.source.scan(half_open(range))
    }

    /// Iterates over the entries whose keys are within `range`, in order, for any kind of range. O(log n) and O(1) an
    /// entry.
    pub fn scan<'a>(&'a self, range: impl RangeBounds<&'a [u8]>) -> Entries<'a> {
        self.shared.source.scan((range.start_bound().cloned(), range.end_bound().cloned()))
    }

    /// Calls `f` with the key and value of every entry within `range`, in order, without handles, until it returns
    /// [`ControlFlow::Break`]. O(log n) and O(1) an entry.
    pub fn visit_range(&self, range: KeyBounds<'_>, mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        self.shared.source.visit(range, &mut f);
    }
}

/// Sorts the entries; of entries with the same key the last one counts. O(n log n).
///
/// # Panics
///
/// If a key or a value is longer than the contract allows. [`StateSnapshot::from_sorted`] returns an error instead.
impl<K: Into<Bytes>, V: Into<Bytes>> FromIterator<(K, V)> for StateSnapshot {
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
    type IntoIter = Entries<'a>;

    fn into_iter(self) -> Entries<'a> {
        self.iter()
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

/// Scans a prefix by means of a scan of bounds.
pub(crate) fn prefix_scan<'a>(source: &'a dyn Source, prefix: &'a [u8]) -> Entries<'a> {
    // The end of the prefix is bytes of its own, which no borrowed bound could hold.
    Box::new(
        source.scan((Bound::Included(prefix), Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix)),
    )
}
