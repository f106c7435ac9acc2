//! [`StateStoreExt`]: typed access by rkyv, and whatever else needs generics, for every store.
//!
//! Typed values are rkyv archives. They are aligned to at most [`ALIGNMENT`] bytes; a store that hands out a value at a
//! lesser alignment costs a copy into a buffer of the thread, never a wrong read.

use std::any::type_name;
use std::cell::Cell;
use std::convert::identity;
use std::ops::{Bound, ControlFlow, RangeBounds};

use bytes::Bytes;
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator, access, access_mut, deserialize, to_bytes_in};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{BoxedError, fail};
use rkyv::seal::Seal;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Portable, Serialize};

use crate::error::shown;
use crate::store::{BEYOND_EVERY_KEY, Entries, prefix_end, scan_bounds};
use crate::{StateDelta, StateError, StateSnapshot, StateStore};

/// The alignment of rkyv's own buffers, and so the largest that an archived type can count on.
const ALIGNMENT: usize = AlignedVec::<16>::ALIGNMENT;

/// A scratch buffer that grew beyond this many bytes is given back instead of being kept for the next call.
const SCRATCH_KEPT: usize = 64 << 10;

thread_local! {
    static SCRATCH: Cell<AlignedVec> = Cell::new(AlignedVec::new());
}

/// An aligned buffer that the thread lends, empty, so that small values cost no allocation. A nested call gets a new one.
struct Scratch(AlignedVec);

impl Scratch {
    fn take() -> Self {
        // While a thread ends its buffer may be gone already.
        Self(SCRATCH.try_with(Cell::take).unwrap_or_default())
    }

    /// A copy that begins `start` bytes behind the buffer's alignment.
    fn copy_of(bytes: &[u8], start: usize) -> Self {
        let mut scratch = Self::take();
        scratch.0.resize(start, 0);
        scratch.0.extend_from_slice(bytes);
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        if buffer.capacity() <= SCRATCH_KEPT {
            buffer.clear();
            let _ = SCRATCH.try_with(|kept| kept.set(buffer));
        }
    }
}

/// Typed access and generic conveniences for every [`StateStore`], `dyn StateStore` included.
///
/// Typed methods store values as rkyv archives and check the stored bytes against the type on every read. What does not
/// validate, or has bytes that the type has no use for, is [`StateError::WrongType`]. The check proves that the bytes
/// are *a* valid archive of the type, not that they were written as one: an `f64` can be read as a `u64`. Where a type
/// may change, [say its version](#types-that-change).
///
/// ```
/// use opstate::{InMemoryStore, StateStore, StateStoreExt};
/// use rkyv::{Archive, Deserialize, Serialize};
///
/// #[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
/// struct Window {
///     count: u64,
///     names: Vec<String>,
/// }
///
/// # fn main() -> Result<(), opstate::StateError> {
/// let mut store: Box<dyn StateStore> = Box::new(InMemoryStore::new());
/// store.put_typed(b"w1", &Window { count: 1, names: vec!["a".into()] })?;
///
/// // Read one field in place, without building a `Window`.
/// assert_eq!(store.view::<Window, _>(b"w1", |window| window.count.to_native())?, Some(1));
///
/// // Change one field in place.
/// store.modify_typed::<Window, _>(b"w1", |window| {
///     rkyv::munge::munge!(let ArchivedWindow { mut count, .. } = window);
///     *count = 2.into();
/// })?;
///
/// // Or go through the whole value; `None` would delete it.
/// store.update::<Window>(b"w1", |window| {
///     let mut window = window?;
///     window.names.push("b".into());
///     Some(window)
/// })?;
/// assert_eq!(store.get_typed::<Window>(b"w1")?, Some(Window { count: 2, names: vec!["a".into(), "b".into()] }));
/// # Ok(())
/// # }
/// ```
///
/// # Types that change
///
/// An archive does not say what type it is of, so a struct with one more field cannot read what the old one wrote. Store an
/// **enum of boxed versions** from the start: its archive is a tag and a pointer, eight bytes that stay the same however
/// many versions are added behind the last.
///
/// - A new program reads every version, and brings it up to date by a `From`.
/// - An old program that meets a newer version gets [`StateError::WrongType`], never a wrong value: the tag is unknown to
///   it. The store is as it was.
/// - Versions keep their order, their fields and their `Box`es for as long as there may be state that holds them.
/// - State written as a plain struct is brought over once, entry by entry, when it is restored.
///
/// ```
/// use opstate::{InMemoryStore, StateError, StateStore, StateStoreExt};
/// use rkyv::{Archive, Deserialize, Serialize};
///
/// #[derive(Archive, Serialize, Deserialize)]
/// struct WindowV1 {
///     count: u64,
/// }
///
/// #[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
/// struct WindowV2 {
///     count: u64,
///     late: u64,
/// }
///
/// #[derive(Archive, Serialize, Deserialize)]
/// enum Window {
///     V1(Box<WindowV1>),
///     V2(Box<WindowV2>),
/// }
///
/// impl From<Window> for WindowV2 {
///     fn from(window: Window) -> Self {
///         match window {
///             Window::V1(old) => Self { count: old.count, late: 0 },
///             Window::V2(window) => *window,
///         }
///     }
/// }
///
/// /// What the program was before.
/// #[derive(Archive, Serialize, Deserialize)]
/// enum OldWindow {
///     V1(Box<WindowV1>),
/// }
///
/// # fn main() -> Result<(), StateError> {
/// let mut store = InMemoryStore::new();
/// store.put_typed(b"w", &OldWindow::V1(Box::new(WindowV1 { count: 7 })))?;
///
/// // The new program reads it and writes it anew.
/// store.update::<Window>(b"w", |window| {
///     let mut window = WindowV2::from(window?);
///     window.late += 1;
///     Some(Window::V2(Box::new(window)))
/// })?;
/// let window = store.get_typed::<Window>(b"w")?.map(WindowV2::from);
/// assert_eq!(window, Some(WindowV2 { count: 7, late: 1 }));
///
/// // The old program refuses what it does not know.
/// assert!(matches!(store.get_typed::<OldWindow>(b"w"), Err(StateError::WrongType { .. })));
/// # Ok(())
/// # }
/// ```
pub trait StateStoreExt: StateStore {
    /// Sets the value of `key` to the archive of `value`.
    ///
    /// Costs a [`put`](StateStore::put) and the serialization, which for values up to 64 KiB does not allocate.
    ///
    /// # Errors
    ///
    /// Those of [`put`](StateStore::put), and [`StateError::NotSerializable`].
    fn put_typed<T>(&mut self, key: &[u8], value: &T) -> Result<(), StateError>
    where
        T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, BoxedError>>,
    {
        let mut scratch = Scratch::take();
        scratch.0 = to_bytes_in(value, std::mem::take(&mut scratch.0)).map_err(|cause: BoxedError| {
            StateError::NotSerializable { key_len: key.len(), type_name: type_name::<T>(), cause: cause.into() }
        })?;
        self.put(key, &scratch.0)
    }

    /// Returns the value of `key` as a `T` of its own.
    ///
    /// Costs a [`read`](StateStore::read), the check of the bytes and the deserialization.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`].
    fn get_typed<T>(&self, key: &[u8]) -> Result<Option<T>, StateError>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>> + Deserialize<T, HighDeserializer<BoxedError>>,
    {
        let mut found = None;
        self.read(key, &mut |value| found = Some(decode(key, value)));
        found.transpose()
    }

    /// Calls `f` with the value of `key` as an archived `T`, and returns what it returns; `None` without a value.
    ///
    /// Nothing is copied where the store hands out the value at the alignment of `T::Archived`. Costs a
    /// [`read`](StateStore::read) and the check of the bytes.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`]; then `f` is not called.
    fn view<T, R>(&self, key: &[u8], f: impl FnOnce(&T::Archived) -> R) -> Result<Option<R>, StateError>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>>,
    {
        let mut f = Some(f);
        let mut found = None;
        self.read(key, &mut |value| {
            if let Some(f) = f.take() {
                found = Some(with_archived::<T, _>(value, f).map_err(|cause| wrong_type::<T>(key, value.len(), cause)));
            }
        });
        found.transpose()
    }

    /// Calls `f` with the bytes of the value of `key`, in place where the store can, and returns what it returns;
    /// `None` without a value.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// store.put(b"key", b"value")?;
    /// assert_eq!(store.view_bytes(b"key", <[u8]>::len), Some(5));
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn view_bytes<R>(&self, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let mut f = Some(f);
        let mut found = None;
        self.read(key, &mut |value| found = f.take().map(|f| f(value)));
        found
    }

    /// Calls `f` with the value of `key` as an archived `T` to be changed in place, and returns what it returns; `None`
    /// without a value.
    ///
    /// What can be changed is whatever keeps the length: numbers, flags, elements of a vector. Handles and snapshots
    /// taken before keep the old value. Costs a [`modify`](StateStore::modify) and the check of the bytes.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`]; then `f` is not called and nothing changes. And those of
    /// [`modify`](StateStore::modify).
    fn modify_typed<T, R>(
        &mut self,
        key: &[u8],
        f: impl FnOnce(Seal<'_, T::Archived>) -> R,
    ) -> Result<Option<R>, StateError>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>>,
    {
        let mut f = Some(f);
        let mut found = None;
        self.modify(key, &mut |value| {
            if let Some(f) = f.take() {
                let len = value.len();
                found = Some(with_archived_mut::<T, _>(value, f).map_err(|cause| wrong_type::<T>(key, len, cause)));
            }
        })?;
        found.transpose()
    }

    /// Replaces the value of `key` by what `f` makes of it: `f` gets the current value, if any, and returns the new
    /// one, or `None` to delete it.
    ///
    /// Costs a [`get_typed`](Self::get_typed), and a [`put_typed`](Self::put_typed) or a
    /// [`delete`](StateStore::delete).
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`]; then `f` is not called. And those of the write.
    fn update<T>(&mut self, key: &[u8], f: impl FnOnce(Option<T>) -> Option<T>) -> Result<(), StateError>
    where
        T: Archive + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, BoxedError>>,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>> + Deserialize<T, HighDeserializer<BoxedError>>,
    {
        match f(self.get_typed::<T>(key)?) {
            Some(value) => self.put_typed(key, &value),
            None => self.delete(key),
        }
    }

    /// Removes every entry whose key starts with `prefix`; returns how many there were.
    ///
    /// Costs a [`delete_range`](StateStore::delete_range).
    ///
    /// # Errors
    ///
    /// Those of [`delete_range`](StateStore::delete_range).
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// for key in ["a", "b1", "b2", "c"] {
    ///     store.put(key.as_bytes(), b"")?;
    /// }
    /// assert_eq!(store.delete_prefix(b"b")?, 2);
    /// assert_eq!(store.len(), 2);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<usize, StateError> {
        let end = prefix_end(prefix);
        self.delete_range(prefix..end.as_deref().unwrap_or(&BEYOND_EVERY_KEY))
    }

    /// Changes the store as `delta` says, which was taken against what the store holds now.
    ///
    /// Costs a [`snapshot`](StateStore::snapshot), its fingerprint in O(n), and what
    /// [`StateSnapshot::apply`](crate::StateSnapshot::apply) costs, before anything is changed; then a write for each change. To recover from a chain
    /// of deltas, apply it to the opened image, which knows its fingerprint, and
    /// [`restore`](StateStore::restore) the result: that passes over all entries once.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`] and [`StateError::InconsistentDelta`], and those of writes. Whichever it is, nothing has
    /// changed: where a write fails, what was there is restored, in O(n).
    ///
    /// ```
    /// use opstate::{HotStore, StateError, StateStore, StateStoreExt};
    ///
    /// # fn main() -> Result<(), StateError> {
    /// let (mut primary, mut standby) = (HotStore::new(), HotStore::new());
    /// let empty = primary.snapshot();
    /// primary.put(b"key", b"1")?;
    /// let delta = primary.snapshot().delta_since(&empty);
    ///
    /// standby.apply(&delta)?;
    /// assert_eq!(standby.get(b"key").as_deref(), Some(&b"1"[..]));
    /// assert!(matches!(standby.apply(&delta), Err(StateError::WrongBase { .. })));
    /// # Ok(())
    /// # }
    /// ```
    fn apply(&mut self, delta: &StateDelta) -> Result<(), StateError> {
        let before = self.snapshot();
        before.apply(delta)?;
        // What goes makes room for what comes.
        let deletes = delta.iter().filter(|(_, new)| new.is_none());
        let puts = delta.iter().filter_map(|(key, new)| Some((key, new?)));
        let mut written = deletes.map(|(key, _)| key).try_for_each(|key| self.delete(&key));
        written = written.and_then(|()| puts.into_iter().try_for_each(|(key, value)| self.put_bytes(&key, value)));
        if written.is_err() {
            self.restore(before);
        }
        written
    }

    /// Iterates over the entries whose keys are within `range`, in order, for any kind of range.
    ///
    /// Costs a [`range_scan`](StateStore::range_scan); where the upper bound is included, also a
    /// [`get`](StateStore::get). Bounds are slices: write `&key[..]` for a key in an array or a vector.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// for key in ["a", "b", "c"] {
    ///     store.put(key.as_bytes(), b"")?;
    /// }
    /// let (a, b): (&[u8], &[u8]) = (b"a", b"b");
    /// assert_eq!(store.scan(..).count(), 3);
    /// assert_eq!(store.scan(b..).count(), 2);
    /// assert_eq!(store.scan(a..=b).count(), 2);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn scan<'a>(&'a self, range: impl RangeBounds<&'a [u8]>) -> Entries<'a> {
        scan_bounds(self, (range.start_bound().cloned(), range.end_bound().cloned()))
    }

    /// Iterates over the entries whose keys are within `range`, in order, with their values as `T`s.
    ///
    /// Costs a [`scan`](Self::scan), and for each entry the check of the bytes and the deserialization. (Values that a
    /// scan hands out need not lie at the alignment that `rkyv::access` asks for; this takes care of it.)
    ///
    /// # Errors
    ///
    /// An item is [`StateError::WrongType`] where the value is no `T`; the iterator goes on behind it.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// store.put_typed(b"a", &1_u64)?;
    /// store.put_typed(b"b", &2_u64)?;
    /// let mut sum = 0;
    /// for entry in store.scan_typed::<u64>(..) {
    ///     let (_key, number) = entry?;
    ///     sum += number;
    /// }
    /// assert_eq!(sum, 3);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn scan_typed<'a, T>(
        &'a self,
        range: impl RangeBounds<&'a [u8]>,
    ) -> Box<dyn Iterator<Item = Result<(Bytes, T), StateError>> + 'a>
    where
        T: Archive + 'a,
        T::Archived: for<'b> CheckBytes<HighValidator<'b, BoxedError>> + Deserialize<T, HighDeserializer<BoxedError>>,
    {
        Box::new(self.scan(range).map(|(key, value)| decode(&key, &value).map(|value| (key, value))))
    }

    /// Verifies a snapshot, then replaces the contents by those of it.
    ///
    /// For an image [opened without reading it](StateSnapshot::from_bytes_lazily) this reads all of it before the store
    /// changes, and then what [`restore`](StateStore::restore) reads; for any other snapshot it is a `restore`.
    ///
    /// # Errors
    ///
    /// Those of [`StateSnapshot::verify`]. Then the store is as it was.
    ///
    /// # Panics
    ///
    /// If the image is read a second time, and that fails although the first did not. The stores of this crate are then as
    /// they were, too.
    fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
        snapshot.verify()?;
        self.restore(snapshot);
        Ok(())
    }

    /// Calls `f` with every entry whose key starts with `prefix`, in order, until it returns [`ControlFlow::Break`].
    ///
    /// Costs a [`visit_range`](StateStore::visit_range).
    fn visit_prefix(&self, prefix: &[u8], mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let end = prefix_end(prefix);
        self.visit_range((Bound::Included(prefix), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded)), &mut f);
    }
}

impl<S: StateStore + ?Sized> StateStoreExt for S {}

/// Where a value may start within [`ALIGNMENT`] bytes for its archive to be valid.
///
/// The validator asks for the alignment of addresses. So that an answer depends on the bytes alone and not on where a store
/// keeps them, each value is tried at both starts: at 0, where its type would have put it, and at 8, where a `HotStore` has
/// every other one. Only forged bytes are valid at 8 and not at 0.
const STARTS: [usize; 2] = [0, 8];

/// Where the bytes start.
fn start_of(bytes: &[u8]) -> usize {
    bytes.as_ptr().addr() % ALIGNMENT
}

/// Checks `bytes` as an archived `T`, all of them.
///
/// rkyv looks for the root at the end and takes whatever it does not point to for granted, so that the first field of a
/// longer type would do for a shorter one. Where the root validates without the bytes before it, they are not its own.
fn access_all<T>(bytes: &[u8]) -> Result<&T, BoxedError>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, BoxedError>>,
{
    let archived = access::<T, BoxedError>(bytes)?;
    match bytes.len().checked_sub(size_of::<T>()) {
        Some(rest @ 1..) if access::<T, BoxedError>(&bytes[rest..]).is_ok() => fail!(Unused { bytes: rest }),
        _ => Ok(archived),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes at its start belong to nothing")]
struct Unused {
    bytes: usize,
}

/// Checks `bytes` as an archived `T` and calls `f` with it, on a copy only where they are not valid as they lie.
fn with_archived<T, R>(bytes: &[u8], f: impl FnOnce(&T::Archived) -> R) -> Result<R, BoxedError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>>,
{
    if STARTS.contains(&start_of(bytes)) {
        if let Ok(archived) = access_all::<T::Archived>(bytes) {
            return Ok(f(archived));
        }
    }
    let (copy, start) = valid_copy::<T>(bytes)?;
    access_all::<T::Archived>(&copy.0[start..]).map(f)
}

/// As [`with_archived`], for changes in place. A copy is written back when `f` has returned.
fn with_archived_mut<T, R>(bytes: &mut [u8], f: impl FnOnce(Seal<'_, T::Archived>) -> R) -> Result<R, BoxedError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>>,
{
    if STARTS.contains(&start_of(bytes)) && access_all::<T::Archived>(bytes).is_ok() {
        return Ok(f(access_mut::<T::Archived, BoxedError>(bytes)?));
    }
    let (mut copy, start) = valid_copy::<T>(bytes)?;
    let result = f(access_mut::<T::Archived, BoxedError>(&mut copy.0[start..])?);
    bytes.copy_from_slice(&copy.0[start..]);
    Ok(result)
}

/// Copies `bytes` to the first of the [`STARTS`] where they are a valid archive of a `T`, and says which. An error is that
/// of the first.
fn valid_copy<T>(bytes: &[u8]) -> Result<(Scratch, usize), BoxedError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>>,
{
    let mut error = None;
    for start in STARTS {
        let copy = Scratch::copy_of(bytes, start);
        match access_all::<T::Archived>(&copy.0[start..]).map(drop) {
            Ok(()) => return Ok((copy, start)),
            Err(cause) => error = error.or(Some(cause)),
        }
    }
    Err(error.expect("there are starts"))
}

/// Makes a `T` of the value of `key`.
pub(crate) fn decode<T>(key: &[u8], value: &[u8]) -> Result<T, StateError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, BoxedError>> + Deserialize<T, HighDeserializer<BoxedError>>,
{
    with_archived::<T, _>(value, |archived| deserialize::<T, BoxedError>(archived))
        .and_then(identity)
        .map_err(|cause| wrong_type::<T>(key, value.len(), cause))
}

fn wrong_type<T>(key: &[u8], value_len: usize, cause: BoxedError) -> StateError {
    StateError::WrongType {
        key: shown(key),
        key_len: key.len(),
        value_len,
        type_name: type_name::<T>(),
        cause: cause.into(),
    }
}
