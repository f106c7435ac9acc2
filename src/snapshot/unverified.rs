//! [`UnverifiedImage`]: an image opened by its footer. Its reads can fail.

use std::fmt;
use std::io::{Read, Seek};
use std::ops::{Bound, ControlFlow};
#[cfg(feature = "mmap")]
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::diff::TryDifferences;
use super::grouped::GroupedImage;
use super::state_snapshot::StateSnapshot;
use crate::bounds::{KeyRange, with_prefix_bounds};
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::image::backing::Backing;
use crate::image::footer::Ends;
use crate::image::format::ImageKind;
use crate::image::label::Label;
use crate::image::reader::ImageReader;
use crate::scan::{TryScan, TypedScan};
use crate::typed::{ReadValue, ViewValue};

/// An image of a snapshot, opened by reading only its footer. It may be larger than memory.
///
/// Each part of the image is verified when it is first read, so every read can fail. [`verify`](Self::verify) reads all
/// of it and returns a [`StateSnapshot`]; [`restore_into`](Self::restore_into) fills a store from it.
///
/// [`len`](Self::len), [`size_bytes`](Self::size_bytes) and [`label`](Self::label) come from the footer. The label is
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
    /// Names the file in errors about the whole image.
    backing: Backing,
}

impl UnverifiedImage {
    /// Opens an image in memory by its footer.
    ///
    /// It reads from `bytes` in place; they are copied only if they do not start at a multiple of 16 in memory.
    /// Computes in O(number of segments), 16 for a MiB of image, and allocates 64 bytes for each.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`] for the header, the footer and the trailer.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_bytes(bytes.into())?)
    }

    /// Opens an image in a seekable reader by its footer. The reader may be a [`File`](std::fs::File), for instance.
    ///
    /// Every read reads the segments that it needs, and verifies them; the last one is kept. So the memory does not
    /// depend on the size of the image. It is that of the footer (40 bytes and a key for each segment, and 8 more) and
    /// of one segment (twice while it is read; in a grouped image, one for each group). Handles keep their segment
    /// alive.
    ///
    /// A read at random costs a whole segment each time: 64 KiB and more, or one longer value. One thread reads at a
    /// time. To watch or cancel a restore, count or fail in a reader of your own.
    ///
    /// If the file changes, reads fail or return the earlier contents: a segment is verified each time it is read.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`] for the header, the footer and the trailer, and [`StateError::Io`].
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

    /// Opens an image in a file by its footer, without reading the rest. It may be larger than memory.
    ///
    /// The file is mapped into memory, and the system reads it as it is touched. The cost is that of
    /// [`from_bytes`](Self::from_bytes) and a copy of the footer: 40 bytes and a key more for each segment. Scans ask
    /// the system for some MiB ahead. Handles and clones keep the map alive; deleting or renaming the file does it no
    /// harm. A store restored from the image reads the file once, from start to end.
    ///
    /// # The file must not change
    ///
    /// Write images to a new file and rename it over the old one; never write into a file that may be open. If a mapped
    /// file is written to, segments not yet read fail their checksums, and segments already verified give wrong answers
    /// or panic. To the compiler, bytes that change while they are borrowed are undefined behaviour. If the file is cut
    /// short, the system ends the process when the missing part is touched (`SIGBUS`). If you cannot rule that out, use
    /// [`from_reader`](Self::from_reader), which has no such requirement.
    ///
    /// # Errors
    ///
    /// [`StateError::File`], with the path and the error that [`from_reader`](Self::from_reader) has. Later reads have
    /// such errors too.
    ///
    /// ```
    /// use opstate::{StateSnapshot, UnverifiedImage};
    ///
    /// let directory = tempfile::tempdir()?;
    /// let path = directory.path().join("checkpoint.image");
    /// std::fs::write(&path, StateSnapshot::from_iter([("key", "value")]).to_bytes())?;
    ///
    /// let image = UnverifiedImage::open(&path)?;
    /// assert_eq!(image.get(b"key")?.as_deref(), Some(&b"value"[..]));
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    #[cfg(feature = "mmap")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        let path = path.as_ref();
        Self::from_backing(Backing::of_file(path)?).map_err(|error| error.in_file(path))
    }

    /// Opens an image, which may be grouped.
    fn from_backing(backing: Backing) -> Result<Self, StateError> {
        let ends = Ends::read(&backing, &[ImageKind::Snapshot, ImageKind::Grouped])?;
        let snapshot = if ends.header.kind == ImageKind::Grouped {
            GroupedImage::with_ends(backing.clone(), ends)?.open_whole()?
        } else {
            let image = ImageReader::with_ends(backing.clone(), ends)?;
            StateSnapshot::opened(image.timestamp_ns(), image.label().clone(), None, Arc::new(image))
        };
        Ok(Self { snapshot, backing })
    }

    /// Verifies the image and returns it as a snapshot. O(n) the first time.
    ///
    /// The image is read once, from start to end. Afterwards none of it is damaged, unless it lies in a file or reader
    /// that changes or fails. In that case, methods of the snapshot without `try_` panic.
    ///
    /// # Errors
    ///
    /// The first damage found, as [`StateSnapshot::from_bytes`] reports it, and [`StateError::Io`].
    pub fn verify(&self) -> Result<StateSnapshot, StateError> {
        self.snapshot.verify().map_err(|error| self.backing.add_path(error))?;
        Ok(self.snapshot.clone())
    }

    /// Returns the contents as a snapshot whose reads can fail.
    pub(crate) fn snapshot(&self) -> &StateSnapshot {
        &self.snapshot
    }

    /// Adds the path to an error, if the image lies in a file.
    pub(crate) fn add_path(&self, error: StateError) -> StateError {
        self.backing.add_path(error)
    }

    /// Returns the number of entries, as the footer gives it. O(1).
    pub fn len(&self) -> usize {
        self.snapshot.len()
    }

    /// Returns `true` if there is no entry. O(1).
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_empty()
    }

    /// Returns the sum of the lengths of all keys and values in bytes, as the footer gives it. O(1).
    pub fn size_bytes(&self) -> usize {
        self.snapshot.size_bytes()
    }

    /// Returns when the snapshot was taken, in nanoseconds since the start of 1970 (UTC).
    pub fn timestamp_ns(&self) -> u64 {
        self.snapshot.timestamp_ns()
    }

    /// Returns the operator and the job that the contents belong to.
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

    /// Returns the value of `key`. O(log n), and the verification of a segment when it is first read.
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
    /// [`StateError::WrongType`], and the errors of [`get`](Self::get).
    pub fn get_typed<T: ReadValue>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        self.snapshot.get_typed(key)
    }

    /// Calls `f` with the value of `key` as an archived `T`, and returns its result; `None` if there is no value.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and the errors of [`get`](Self::get); then `f` is not called.
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
    /// An item is the damage of a segment, in the place of all its entries; the iterator continues behind it. If all
    /// entries were read in ascending order, the last item may be the error that they do not agree with the footer. (A
    /// scan in descending order does not check this.)
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
    /// An item is [`StateError::WrongType`] if the value is no `T`, or an error of [`scan`](Self::scan).
    pub fn scan_typed<T: ReadValue>(&self, range: impl KeyRange) -> TypedScan<'_, T> {
        self.snapshot.scan_typed(range)
    }

    /// Calls `f` with the key and value of every entry in `range`, in order, until `f` returns [`ControlFlow::Break`].
    ///
    /// Creates no handles.
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

    /// Iterates over the differences from `earlier`, in the order of keys. Reads both images once.
    ///
    /// # Errors
    ///
    /// The first damage of either image, after all differences before it; and [`StateError::Io`]. Nothing follows an
    /// error.
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
