//! [`StateStoreExt`]: typed access, and all other generic methods, for every store.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use rkyv::seal::Seal;

use crate::aligned::aligned_copy;
use crate::bounds::{ALL_KEYS, KeyRange, with_prefix_bounds};
use crate::error::StateError;
use crate::scan::{Scan, TryScan, TypedScan};
use crate::snapshot::delta::StateDelta;
use crate::store::{Deleted, StateStore};
use crate::typed::{self, ReadValue, StateValue, ViewValue, WriteValue, decode};

/// The entries that [`StateStoreExt::drain_range`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// The entries, in order.
    pub entries: Vec<(Bytes, Bytes)>,
    /// `true` if no entry is left within the range.
    pub is_done: bool,
}

/// Typed access and generic conveniences for every [`StateStore`], `dyn StateStore` included.
///
/// Typed methods store values as rkyv archives, and check the stored bytes against the type on every read. A value that
/// does not validate, or has bytes that the type does not use, is [`StateError::WrongType`]. So is a value nested more
/// than [`MAX_VALUE_DEPTH`](crate::MAX_VALUE_DEPTH) levels deep.
///
/// The check proves that the bytes are *a* valid archive of the type, not that they were written as one: an `f64` can
/// be read as a `u64`. If a type may change, [store its version](#types-that-change).
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
/// // Or go through the whole value; leaving `None` would delete it.
/// store.update(b"w1", |window: &mut Option<Window>| {
///     if let Some(window) = window {
///         window.names.push("b".into());
///     }
/// })?;
/// assert_eq!(store.get_typed::<Window>(b"w1")?, Some(Window { count: 2, names: vec!["a".into(), "b".into()] }));
/// # Ok(())
/// # }
/// ```
///
/// # Types that change
///
/// An archive does not record its type, so a struct with one more field cannot read archives of the old struct. Store
/// an **enum of boxed versions** from the start. Its archive is a tag and a pointer: eight bytes that stay the same
/// however many versions are added behind the last.
///
/// - A new program reads every version, and converts it to the newest with a `From`.
/// - An old program that meets a newer version gets [`StateError::WrongType`], never a wrong value, because it does not
///   know the tag. The store is unchanged.
/// - Versions keep their order, their fields and their `Box`es as long as there may be state that holds them.
/// - State written as a plain struct is converted once, entry by entry, when it is restored.
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
/// store.update(b"w", |window: &mut Option<Window>| {
///     if let Some(old) = window.take() {
///         let mut new = WindowV2::from(old);
///         new.late += 1;
///         *window = Some(Window::V2(Box::new(new)));
///     }
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
    /// The errors of [`put`](StateStore::put), and [`StateError::NotSerializable`].
    fn put_typed<T: WriteValue>(&mut self, key: &[u8], value: &T) -> Result<(), StateError> {
        typed::with_encoded(key, value, |value| self.put(key, value))
    }

    /// Returns the value of `key` as an owned `T`.
    ///
    /// Costs a [`try_read`](StateStore::try_read), the check of the bytes and the deserialization.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and the errors of [`try_read`](StateStore::try_read).
    fn get_typed<T: ReadValue>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        let mut found = None;
        self.try_read(key, &mut |value| found = Some(decode(key, value)))?;
        found.transpose()
    }

    /// Calls `f` with the value of `key` as an archived `T`, and returns its result; `None` if there is no value.
    ///
    /// Nothing is copied if the store provides the value at the alignment of `T::Archived`. Costs a
    /// [`try_read`](StateStore::try_read) and the check of the bytes.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`], and the errors of [`try_read`](StateStore::try_read); then `f` is not called.
    fn view<T: ViewValue, R>(&self, key: &[u8], f: impl FnOnce(&T::Archived) -> R) -> Result<Option<R>, StateError> {
        let mut f = Some(f);
        let mut found = None;
        self.try_read(key, &mut |value| {
            if let Some(f) = f.take() {
                found = Some(typed::view::<T, _>(key, value, f));
            }
        })?;
        found.transpose()
    }

    /// Calls `f` with the bytes of the value of `key`, and returns its result; `None` if there is no value.
    ///
    /// The bytes are read in place if the store can. Costs a [`read`](StateStore::read).
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

    /// Calls `f` to change the value of `key` in place as an archived `T`, and returns its result; `None` without a
    /// value.
    ///
    /// Everything that keeps its length can be changed: numbers, flags, elements of a vector. Handles and snapshots
    /// taken before keep the old value. Costs a [`modify`](StateStore::modify) and the check of the bytes.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`]; then `f` is not called and nothing changes. And the errors of
    /// [`modify`](StateStore::modify).
    fn modify_typed<T: ViewValue, R>(
        &mut self,
        key: &[u8],
        f: impl FnOnce(Seal<'_, T::Archived>) -> R,
    ) -> Result<Option<R>, StateError> {
        let mut f = Some(f);
        let mut found = None;
        self.modify(key, &mut |value| {
            if let Some(f) = f.take() {
                found = Some(typed::view_mut::<T, _>(key, value, f));
            }
        })?;
        found.transpose()
    }

    /// Calls `f` to change, set or remove the value of `key`, and returns its result.
    ///
    /// `f` gets `None` if there is no value, and deletes the entry by leaving `None`. Costs a
    /// [`get_typed`](Self::get_typed), and a [`put_typed`](Self::put_typed) or a [`delete`](StateStore::delete). For a
    /// closure that can fail see [`try_update`](Self::try_update).
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`]; then `f` is not called. And the errors of the write.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// let count = store.update(b"clicks", |count: &mut Option<u64>| {
    ///     let count = count.get_or_insert(0);
    ///     *count += 1;
    ///     *count
    /// })?;
    /// assert_eq!(count, 1);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn update<T: StateValue, R>(&mut self, key: &[u8], f: impl FnOnce(&mut Option<T>) -> R) -> Result<R, StateError> {
        self.try_update(key, |value| Ok(f(value)))
    }

    /// Calls `f` to change, set or remove the value of `key`. If `f` fails, nothing changes and its error is returned.
    ///
    /// Otherwise works like [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// The error of `f`, and the errors of [`update`](Self::update).
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateError, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// store.put_typed(b"stock", &1_u64)?;
    /// let mut sell = |n: u64| {
    ///     store.try_update(b"stock", |stock: &mut Option<u64>| {
    ///         let left = stock.unwrap_or(0).checked_sub(n).ok_or_else(|| StateError::store("sold out"))?;
    ///         *stock = Some(left);
    ///         Ok::<_, StateError>(left)
    ///     })
    /// };
    /// assert_eq!(sell(1)?, 0);
    /// assert!(sell(1).is_err());
    /// # Ok::<(), StateError>(())
    /// ```
    fn try_update<T: StateValue, R, E: From<StateError>>(
        &mut self,
        key: &[u8],
        f: impl FnOnce(&mut Option<T>) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut value = self.get_typed::<T>(key)?;
        let was_there = value.is_some();
        let result = f(&mut value)?;
        match value {
            Some(value) => self.put_typed(key, &value)?,
            None if was_there => self.delete(key)?,
            None => {}
        }
        Ok(result)
    }

    /// Removes `key` and returns its value as a `T`.
    ///
    /// Costs a [`get_typed`](Self::get_typed), and a [`delete`](StateStore::delete) if there is a value.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongType`]; then the value stays. And the errors of [`delete`](StateStore::delete).
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// store.put_typed(b"clicks", &7_u64)?;
    /// assert_eq!(store.take_typed::<u64>(b"clicks")?, Some(7));
    /// assert_eq!(store.take_typed::<u64>(b"clicks")?, None);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn take_typed<T: ReadValue>(&mut self, key: &[u8]) -> Result<Option<T>, StateError> {
        let value = self.get_typed(key)?;
        if value.is_some() {
            self.delete(key)?;
        }
        Ok(value)
    }

    /// Deletes entries whose keys are in `range`, in order, and at most `limit` of them.
    ///
    /// Costs a [`delete_within`](StateStore::delete_within).
    ///
    /// # Errors
    ///
    /// The errors of [`delete_within`](StateStore::delete_within).
    ///
    /// ```
    /// use opstate::{Deleted, InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// for time in 0..10_u64 {
    ///     store.put(&time.to_be_bytes(), b"")?;
    /// }
    /// let due = ..7_u64.to_be_bytes();
    /// assert_eq!(store.delete_range(due, 5)?, Deleted { count: 5, is_done: false });
    /// assert_eq!(store.delete_range(due, 5)?, Deleted { count: 2, is_done: true });
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn delete_range(&mut self, range: impl KeyRange, limit: usize) -> Result<Deleted, StateError> {
        self.delete_within(range.bounds(), limit)
    }

    /// Removes entries whose keys are in `range`, in order, at most `limit` of them, and returns them.
    ///
    /// Costs a [`try_visit_range`](StateStore::try_visit_range) that copies them, and a
    /// [`delete_within`](StateStore::delete_within).
    ///
    /// # Errors
    ///
    /// The errors of [`try_visit_range`](StateStore::try_visit_range), before anything is removed, and the errors of
    /// [`delete_within`](StateStore::delete_within). Entries removed until then are lost.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// store.put(b"a", b"1")?;
    /// store.put(b"b", b"2")?;
    /// let drained = store.drain_range(.., 1)?;
    /// assert_eq!(drained.entries, [("a".into(), "1".into())]);
    /// assert!(!drained.is_done);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn drain_range(&mut self, range: impl KeyRange, limit: usize) -> Result<Drained, StateError> {
        let bounds = range.bounds();
        let (mut entries, mut is_done) = (Vec::new(), true);
        self.try_visit_range(bounds, &mut |key, value| {
            is_done = entries.len() < limit;
            if !is_done {
                return ControlFlow::Break(());
            }
            entries.push((Bytes::copy_from_slice(key), aligned_copy(value)));
            ControlFlow::Continue(())
        })?;
        if let Some((last, _)) = entries.last() {
            self.delete_within((bounds.0, Bound::Included(last)), entries.len())?;
        }
        Ok(Drained { entries, is_done })
    }

    /// Deletes every entry whose key starts with `prefix`, and returns their number.
    ///
    /// Costs a [`delete_within`](StateStore::delete_within).
    ///
    /// # Errors
    ///
    /// The errors of [`delete_within`](StateStore::delete_within).
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
        with_prefix_bounds(prefix, |bounds| self.delete_within(bounds, usize::MAX)).map(|deleted| deleted.count)
    }

    /// Applies `delta` to the store. The delta must have been taken against the store's current contents.
    ///
    /// Before anything changes, costs a [`snapshot`](StateStore::snapshot), its fingerprint in O(n), and a
    /// [`StateSnapshot::apply`](crate::StateSnapshot::apply). Then costs a write for each change.
    ///
    /// To recover from a chain of deltas, apply it to the opened image, which knows its fingerprint, and
    /// [`restore`](StateStore::restore) the result. That reads all entries once.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`], [`StateError::InconsistentDelta`], and the errors of writes. After any error the
    /// contents are unchanged: if a write fails, the earlier contents are restored, in O(n).
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
        // Deletions come first, because they make room for the rest.
        let deletes = delta.iter().filter(|(_, new)| new.is_none());
        let puts = delta.iter().filter_map(|(key, new)| Some((key, new?)));
        let mut written = deletes.map(|(key, _)| key).try_for_each(|key| self.delete(&key));
        written = written.and_then(|()| puts.into_iter().try_for_each(|(key, value)| self.put_bytes(&key, value)));
        if written.is_err() {
            self.restore(before);
        }
        written
    }

    /// Iterates over all entries, in order and from both ends.
    ///
    /// Costs an [`entries`](StateStore::entries).
    fn iter(&self) -> Scan<'_> {
        self.entries(ALL_KEYS)
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends.
    ///
    /// Costs an [`entries`](StateStore::entries). Use [`.rev()`](Iterator::rev) for descending order.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// for key in ["a", "b", "c"] {
    ///     store.put(key.as_bytes(), b"")?;
    /// }
    /// assert_eq!(store.scan(..).count(), 3);
    /// assert_eq!(store.scan("b"..).count(), 2);
    /// assert_eq!(store.scan(b"a"..=b"b").count(), 2);
    /// let last_two: Vec<_> = store.scan(..).rev().take(2).map(|(key, _)| key).collect();
    /// assert_eq!(last_two, ["c", "b"]);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn scan(&self, range: impl KeyRange) -> Scan<'_> {
        self.entries(range.bounds())
    }

    /// Iterates over the entries whose keys start with `prefix`, in order and from both ends.
    ///
    /// Costs an [`entries`](StateStore::entries). For ascending order alone, [`prefix_scan`](StateStore::prefix_scan)
    /// suffices.
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// for key in ["a/1", "a/2", "b/1"] {
    ///     store.put(key.as_bytes(), b"")?;
    /// }
    /// assert_eq!(store.scan_prefix(b"a/").next_back().map(|(key, _)| key), Some("a/2".into()));
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn scan_prefix(&self, prefix: &[u8]) -> Scan<'_> {
        with_prefix_bounds(prefix, |bounds| self.entries(bounds))
    }

    /// Iterates over the entries whose keys are in `range`, in order and from both ends, with their values as `T`s.
    ///
    /// Costs a [`scan`](Self::scan), and for each entry the check of the bytes and the deserialization.
    ///
    /// # Errors
    ///
    /// An item is [`StateError::WrongType`] if the value is no `T`; the iterator continues behind it.
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
    fn scan_typed<T: ReadValue>(&self, range: impl KeyRange) -> TypedScan<'_, T> {
        TypedScan::new(TryScan::new(self.scan(range).map(Ok)))
    }

    /// Returns the first entry. Costs the first step of an [`entries`](StateStore::entries).
    ///
    /// ```
    /// use opstate::{InMemoryStore, StateStore, StateStoreExt};
    ///
    /// let mut store = InMemoryStore::new();
    /// for key in ["a", "b", "c"] {
    ///     store.put(key.as_bytes(), b"")?;
    /// }
    /// let key = |entry: Option<(bytes::Bytes, bytes::Bytes)>| entry.map(|(key, _)| key);
    /// assert_eq!(key(store.first()), Some("a".into()));
    /// assert_eq!(key(store.last()), Some("c".into()));
    /// assert_eq!(key(store.entry_before(b"b")), Some("a".into()));
    /// assert_eq!(key(store.entry_after(b"c")), None);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    fn first(&self) -> Option<(Bytes, Bytes)> {
        self.iter().next()
    }

    /// Returns the last entry. Costs the last step of an [`entries`](StateStore::entries).
    fn last(&self) -> Option<(Bytes, Bytes)> {
        self.iter().next_back()
    }

    /// Returns the entry with the greatest key below `key`.
    ///
    /// Costs the last step of an [`entries`](StateStore::entries).
    fn entry_before(&self, key: &[u8]) -> Option<(Bytes, Bytes)> {
        self.scan(..key).next_back()
    }

    /// Returns the entry with the smallest key above `key`.
    ///
    /// Costs the first step of an [`entries`](StateStore::entries).
    fn entry_after(&self, key: &[u8]) -> Option<(Bytes, Bytes)> {
        self.entries((Bound::Excluded(key), Bound::Unbounded)).next()
    }

    /// Calls `f` with every entry whose key starts with `prefix`, in order, until `f` returns [`ControlFlow::Break`].
    ///
    /// Costs a [`visit_range`](StateStore::visit_range).
    fn visit_prefix(&self, prefix: &[u8], mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        with_prefix_bounds(prefix, |bounds| self.visit_range(bounds, &mut f));
    }
}

impl<S: StateStore + ?Sized> StateStoreExt for S {}
