//! [`UnverifiedImage`]: an image opened by its footer, whose reads can fail.

use std::fmt;
use std::io::{Read, Seek};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::format::Kind;
use super::image::align;
use super::lazy::{Backing, LazyImage};
use super::{Fingerprint, GroupedImage, Label, StateSnapshot, TryDifferences};
use crate::bounds::{KeyRange, with_prefix_bounds};
use crate::scan::{TryScan, TypedScan};
use crate::typed::{ReadValue, ViewValue};
use crate::{StateError, StateStore};

/// An image of a snapshot of which only the footer has been read. It may be larger than memory.
///
/// Each part of the image is verified when a read first comes to it, so every read can fail. [`verify`](Self::verify)
/// reads all of it and makes it a [`StateSnapshot`]; [`restore_into`](Self::restore_into) fills a store from it.
///
/// [`len`](Self::len), [`size_bytes`](Self::size_bytes) and [`label`](Self::label) are what the footer says. The label is
/// checked, but the lengths are not: they are compared with the entries when all of them are read.
///
/// Cloning costs O(1); clones share everything.
///
/// ```
/// use opstate::{HotStore, StateSnapshot, StateStore, UnverifiedImage};
///
/// let mut bytes = StateSnapshot::from_iter([("key", "value")]).to_bytes().to_vec();
/// let image = UnverifiedImage::from_bytes(bytes.clone())?;
/// assert_eq!(image.get(b"key")?.as_deref(), Some(&b"value"[..]));
/// let mut store = HotStore::new();
/// image.restore_into(&mut store)?;
///
/// bytes[40] ^= 1;
/// let damaged = UnverifiedImage::from_bytes(bytes)?;
/// assert!(damaged.get(b"key").is_err());
/// assert!(damaged.restore_into(&mut store).is_err());
/// assert_eq!(store.len(), 1);
/// # Ok::<(), opstate::StateError>(())
/// ```
#[derive(Clone)]
pub struct UnverifiedImage {
    snapshot: StateSnapshot,
    /// For errors that no part of the image has, but the whole.
    backing: Backing,
}

impl UnverifiedImage {
    /// Opens an image in memory by its footer.
    ///
    /// It answers from `bytes` as they are; they are copied only if they do not start at a multiple of 16 in memory. Computes
    /// in O(number of segments), 16 for a MiB of image, and allocates 24 bytes for each; every segment that is read costs up
    /// to 200 bytes more.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`], for header, footer and trailer.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        Self::from_backing(Backing::Whole(align(bytes.into())))
    }

    /// Opens an image in anything that can be read from any place, a [`File`](std::fs::File) for instance, by its footer.
    ///
    /// Every read reads the segments that it needs, and verifies them; the last one is kept. So this takes memory for the
    /// footer (40 bytes and a key for each segment, and 8 more) and one segment (twice while it is read; of a grouped
    /// image one for each group), whatever the size of the image. To watch or cancel a restore, count or fail in a reader
    /// of your own. A read at random costs a whole segment (64 KiB and more, or one longer value) each time; one thread
    /// reads at a time. Handles keep their segment alive.
    ///
    /// If the file changes, reads fail or find what was there: a segment is verified each time it is read.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`], for header, footer and trailer, and [`StateError::Io`].
    ///
    /// ```
    /// use std::io::Cursor;
    ///
    /// use opstate::{HotStore, StateSnapshot, StateStore, UnverifiedImage};
    ///
    /// let image = StateSnapshot::from_iter([("key", "value")]).to_bytes();
    /// let mut store = HotStore::new();
    /// UnverifiedImage::from_reader(Cursor::new(image))?.restore_into(&mut store)?;
    /// assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn from_reader(reader: impl Read + Seek + Send + 'static) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_reader(reader)?)
    }

    pub(super) fn from_backing(backing: Backing) -> Result<Self, StateError> {
        let snapshot = if backing.read_header()?.kind == Kind::Grouped {
            GroupedImage::from_backing(backing.clone())?.open_whole()?
        } else {
            let image = LazyImage::open(backing.clone())?;
            StateSnapshot::opened(image.timestamp_ns(), image.label.clone(), None, Arc::new(image))
        };
        Ok(Self { snapshot, backing })
    }

    /// Verifies the image and returns it as a snapshot. O(n) the first time.
    ///
    /// The image is read once, from start to end. From then on nothing of it is damaged, unless it lies in a file or reader
    /// that changes or fails: there, methods of the snapshot without `try_` panic.
    ///
    /// # Errors
    ///
    /// The first damage found, as [`StateSnapshot::from_bytes`] reports it, and [`StateError::Io`].
    pub fn verify(&self) -> Result<StateSnapshot, StateError> {
        self.snapshot.verify().map_err(|error| self.backing.name(error))?;
        Ok(self.snapshot.clone())
    }

    /// Replaces the contents of a store by those of the image.
    ///
    /// The stores of this crate read the image once, and verify it on the way. For other stores an image in a reader is read
    /// into memory first, and any other image is read twice, unless they override [`StateStore::try_restore`].
    ///
    /// # Errors
    ///
    /// The errors of [`verify`](Self::verify). Then the store is as it was.
    pub fn restore_into<S: StateStore + ?Sized>(&self, store: &mut S) -> Result<(), StateError> {
        store.try_restore(self.snapshot.clone()).map_err(|error| self.backing.name(error))
    }

    /// Returns the number of entries, as the footer says. O(1).
    pub fn len(&self) -> usize {
        self.snapshot.len()
    }

    /// Returns `true` if there is no entry. O(1).
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_empty()
    }

    /// Returns the sum of the lengths of all keys and values in bytes, as the footer says. O(1).
    pub fn size_bytes(&self) -> usize {
        self.snapshot.size_bytes()
    }

    /// Returns when the snapshot was taken, in nanoseconds since the start of 1970 (UTC).
    pub fn timestamp_ns(&self) -> u64 {
        self.snapshot.timestamp_ns()
    }

    /// Returns the label: which operator and job the contents belong to.
    pub fn label(&self) -> &Label {
        self.snapshot.label()
    }

    /// Returns the fingerprint of the contents. Verifies the image the first time.
    ///
    /// # Errors
    ///
    /// The errors of [`verify`](Self::verify).
    pub fn fingerprint(&self) -> Result<Fingerprint, StateError> {
        self.verify()?.try_fingerprint()
    }

    /// Returns the value of `key`. O(log n), and the verification of a segment at its first touch.
    ///
    /// # Errors
    ///
    /// The damage of the segment that would hold `key`, and [`StateError::Io`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.snapshot.try_get(key)
    }

    /// Returns `true` if there is an entry for `key`.
    ///
    /// # Errors
    ///
    /// The errors of [`get`](Self::get).
    pub fn contains(&self, key: &[u8]) -> Result<bool, StateError> {
        Ok(self.get(key)?.is_some())
    }

    /// Returns the first entry.
    ///
    /// # Errors
    ///
    /// The errors of [`scan`](Self::scan).
    pub fn first(&self) -> Result<Option<(Bytes, Bytes)>, StateError> {
        self.iter().next().transpose()
    }

    /// Returns the last entry.
    ///
    /// # Errors
    ///
    /// The errors of [`scan`](Self::scan).
    pub fn last(&self) -> Result<Option<(Bytes, Bytes)>, StateError> {
        self.iter().next_back().transpose()
    }

    /// Returns the entry with the greatest key below `key`.
    ///
    /// # Errors
    ///
    /// The errors of [`scan`](Self::scan).
    pub fn entry_before(&self, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, StateError> {
        self.scan(..key).next_back().transpose()
    }

    /// Returns the entry with the smallest key above `key`.
    ///
    /// # Errors
    ///
    /// The errors of [`scan`](Self::scan).
    pub fn entry_after(&self, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, StateError> {
        self.scan((Bound::Excluded(key), Bound::Unbounded)).next().transpose()
    }

    /// Returns the value of `key` as a `T`.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and those of [`get`](Self::get).
    pub fn get_typed<T: ReadValue>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        self.snapshot.get_typed(key)
    }

    /// Calls `f` with the value of `key` as an archived `T`, and returns what it returns; `None` without a value.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and those of [`get`](Self::get); then `f` is not called.
    pub fn view<T: ViewValue, R>(
        &self,
        key: &[u8],
        f: impl FnOnce(&T::Archived) -> R,
    ) -> Result<Option<R>, StateError> {
        self.snapshot.view::<T, R>(key, f)
    }

    /// Iterates over all entries, in order and from both ends.
    ///
    /// # Errors
    ///
    /// The errors of [`scan`](Self::scan).
    pub fn iter(&self) -> TryScan<'_> {
        self.scan(..)
    }

    /// Iterates over the entries whose keys start with `prefix`, in order and from both ends.
    ///
    /// # Errors
    ///
    /// The errors of [`scan`](Self::scan).
    pub fn prefix_scan(&self, prefix: &[u8]) -> TryScan<'_> {
        with_prefix_bounds(prefix, |bounds| self.scan(bounds))
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends.
    ///
    /// # Errors
    ///
    /// An item is the damage of a segment, in the place of all its entries; the iterator goes on behind it. Where all
    /// entries were read in ascending order, the last item may say that they are not what the footer says. (In descending
    /// order that is not checked.)
    ///
    /// ```
    /// use opstate::{StateSnapshot, UnverifiedImage};
    ///
    /// let image = StateSnapshot::from_iter([("a", "1"), ("b", "2")]).to_bytes();
    /// let mut keys = Vec::new();
    /// for entry in UnverifiedImage::from_bytes(image)?.scan("b"..) {
    ///     let (key, _value) = entry?;
    ///     keys.push(key);
    /// }
    /// assert_eq!(keys, ["b"]);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn scan(&self, range: impl KeyRange) -> TryScan<'_> {
        self.snapshot.try_scan(range)
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends, with their values as `T`s.
    ///
    /// # Errors
    ///
    /// An item is [`StateError::WrongType`] where the value is no `T`, or an error of [`scan`](Self::scan).
    pub fn scan_typed<T: ReadValue>(&self, range: impl KeyRange) -> TypedScan<'_, T> {
        self.snapshot.scan_typed(range)
    }

    /// Calls `f` with the key and value of every entry in `range`, in order, without handles, until it returns
    /// [`ControlFlow::Break`].
    ///
    /// # Errors
    ///
    /// The first damage in `range`, after the entries before it, and [`StateError::Io`].
    pub fn visit_range(
        &self,
        range: impl KeyRange,
        f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.snapshot.try_visit_range(range, f)
    }

    /// Iterates over what differs from `earlier`, in the order of keys. Both are read once, as the iterator goes.
    ///
    /// # Errors
    ///
    /// The first damage of either, after all differences before it; nothing follows. And [`StateError::Io`].
    ///
    /// ```
    /// use opstate::{StateSnapshot, UnverifiedImage};
    ///
    /// let image = |value| UnverifiedImage::from_bytes(StateSnapshot::from_iter([("a", value)]).to_bytes());
    /// let (earlier, later) = (image("1")?, image("2")?);
    /// let differences = later.diff(&earlier).collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(differences[0].new, Some("2".into()));
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn diff<'a>(&'a self, earlier: &'a Self) -> TryDifferences<'a> {
        self.snapshot.try_diff(&earlier.snapshot)
    }
}

impl<'a> IntoIterator for &'a UnverifiedImage {
    type Item = Result<(Bytes, Bytes), StateError>;
    type IntoIter = TryScan<'a>;

    fn into_iter(self) -> TryScan<'a> {
        self.iter()
    }
}

impl fmt::Debug for UnverifiedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnverifiedImage")
            .field("len", &self.len())
            .field("size_bytes", &self.size_bytes())
            .field("timestamp_ns", &self.timestamp_ns())
            .field("label", self.label())
            .finish_non_exhaustive()
    }
}
