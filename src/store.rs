//! [`StateStore`]: the contract of every store, and its forwarding for `Box<S>` and `&mut S`.

use std::fmt;
use std::iter;
use std::ops::{Bound, ControlFlow, Range};
use std::vec;

use bytes::Bytes;

use crate::aligned::aligned_copy;
use crate::bounds::{BEYOND_EVERY_KEY, KeyBounds, OwnedBounds, is_inverted};
use crate::error::StateError;
use crate::limits::check_entry_lens;
use crate::scan::{Entries, Scan};
use crate::snapshot::state_snapshot::StateSnapshot;
use crate::snapshot::unverified::UnverifiedImage;

/// The outcome of [`StateStore::delete_within`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The number of entries that were deleted.
    pub count: usize,
    /// `true` if no entry is left within the bounds.
    pub is_done: bool,
}

/// Keyed state of one stream operator.
///
/// A store maps keys to values, both plain bytes, and keeps the keys in order. It has one owner, which reads and writes
/// it from one thread at a time; other threads read a [`snapshot`](Self::snapshot).
///
/// # Contract
///
/// These rules hold for every store. The module `conformance`, behind the feature of that name, checks them.
///
/// 1. **Keys** are compared and scanned in unsigned lexicographic order of their bytes. The empty key is a key. A key
///    has at most [`MAX_KEY_LEN`](crate::MAX_KEY_LEN) bytes and a value at most
///    [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN); writing a longer one is an error that gives its length and the limit.
///    Reading or deleting a key that is too long finds nothing.
/// 2. **Ranges** may be anything. An empty or inverted range yields nothing. The empty prefix matches every key; a
///    prefix of only `0xFF` bytes has no upper bound.
/// 3. **An error changes nothing**, unless the method's documentation says otherwise.
/// 4. **Handles do not change.** Bytes returned by a `get` or a scan, and snapshots, stay unchanged whatever happens to
///    the store afterwards, even after it is dropped.
/// 5. **Counts are exact**: [`len`](Self::len) is the number of entries and [`size_bytes`](Self::size_bytes) the sum of
///    the lengths of all keys and values, both in O(1).
/// 6. **A failing medium is never an absent entry.** If an entry cannot be read, the `try_` methods return the error
///    and the plain ones panic with it.
///
/// The stores of this crate keep one more rule: every non-empty value that they return as [`Bytes`] starts at a
/// multiple of [`VALUE_ALIGNMENT`](crate::VALUE_ALIGNMENT), so that `rkyv::access` works on it. Slices that a closure
/// borrows need not be aligned.
///
/// # Implementing it
///
/// The ten methods without a body suffice; the example `custom_store` shows a whole store. Every other method works
/// through them; override those that the store can do better.
///
/// [`check_entry_len`](crate::check_entry_len) enforces the limits. [`StateSnapshot::from_source`] creates a snapshot
/// that shares the store's entries, and [`StateSnapshot::from_sorted`] one of copied entries. `conformance::check`
/// checks the result.
///
/// A store whose medium can fail reports that from `put`, `delete` or `flush`. `snapshot`, `restore` and `clear` have
/// no error to return, so such a store remembers their failure and returns it from the next `put`, `delete` or `flush`.
///
/// All methods can be called on `dyn StateStore`; typed access and everything generic is in
/// [`StateStoreExt`](crate::StateStoreExt).
///
/// # Costs
///
/// Costs in the documentation of provided methods are those of the provided body, in calls of required methods.
pub trait StateStore: Send {
    /// Returns the value of `key`.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// Sets the value of `key`, whether the key is new or not.
    ///
    /// # Errors
    ///
    /// [`StateError::KeyTooLong`] and [`StateError::ValueTooLong`]; a store may have others.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError>;

    /// Removes `key` and its value. Removing an absent key is no error.
    ///
    /// # Errors
    ///
    /// None in memory; a store that writes elsewhere may fail.
    fn delete(&mut self, key: &[u8]) -> Result<(), StateError>;

    /// Iterates over the entries whose keys start with `prefix`, in order.
    ///
    /// For typed values see [`StateStoreExt::scan_typed`](crate::StateStoreExt::scan_typed).
    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

    /// Iterates over the entries from `range.start` up to, but not including, `range.end`, in order.
    ///
    /// For other bounds see [`StateStoreExt::scan`](crate::StateStoreExt::scan).
    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

    /// Returns the sum of the lengths of all keys and values, in bytes. O(1).
    fn size_bytes(&self) -> usize;

    /// Returns the number of entries. O(1).
    fn len(&self) -> usize;

    /// Returns the current contents as an immutable value that does not depend on the store.
    fn snapshot(&self) -> StateSnapshot;

    /// Replaces the contents by those of `snapshot`, which may come from any store.
    fn restore(&mut self, snapshot: StateSnapshot);

    /// Removes every entry.
    fn clear(&mut self);

    /// Returns `true` if there is an entry for `key`. One `get`.
    fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// Returns `true` if there is no entry. One `len`.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes earlier writes durable, if the store has a notion of that. Does nothing in memory.
    ///
    /// # Errors
    ///
    /// The errors of the store's medium.
    fn flush(&mut self) -> Result<(), StateError> {
        Ok(())
    }

    /// Returns the value of `key`, after setting it to `default` if there was none.
    ///
    /// One `get`. For a new key also one `put` and another `get`.
    ///
    /// # Errors
    ///
    /// The errors of [`put`](Self::put), if the key is new.
    fn get_or_insert(&mut self, key: &[u8], default: &[u8]) -> Result<Bytes, StateError> {
        if let Some(value) = self.try_get(key)? {
            return Ok(value);
        }
        self.put(key, default)?;
        Ok(self.try_get(key)?.unwrap_or_else(|| aligned_copy(default)))
    }

    /// Returns the value of `key`, or the error of the store's medium. One `get`.
    ///
    /// # Errors
    ///
    /// None in memory. A store that reads from elsewhere returns its errors here; [`get`](Self::get) panics with them.
    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.get(key))
    }

    /// Removes `key` and returns its value. One `get` and, if there is a value, one `delete`.
    ///
    /// # Errors
    ///
    /// The errors of [`try_get`](Self::try_get) and [`delete`](Self::delete).
    fn take(&mut self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.try_get(key)?;
        if value.is_some() {
            self.delete(key)?;
        }
        Ok(value)
    }

    /// Calls `f` once with the value of `key`, in place if the store can. Returns `true` if there is a value. One
    /// `get`.
    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        match self.get(key) {
            Some(value) => {
                f(&value);
                true
            }
            None => false,
        }
    }

    /// Calls `f` once with the value of `key`, or returns the error of the store's medium. One `read`.
    ///
    /// Otherwise works like [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// None in memory. A store that reads from elsewhere returns its errors here; [`read`](Self::read) panics with
    /// them.
    fn try_read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool, StateError> {
        Ok(self.read(key, f))
    }

    /// Calls `f` once with the value of `key`, to change it without changing its length. Returns `true` if there is a
    /// value.
    ///
    /// Handles and snapshots taken before keep the old value. If `f` panics, the value is the old one, the new one or a
    /// mixture of both, and the store stays usable. One `get`, one copy of the value and one `put`.
    ///
    /// # Errors
    ///
    /// The errors of [`put`](Self::put).
    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        let Some(value) = self.try_get(key)? else { return Ok(false) };
        let mut value = value.to_vec();
        f(&mut value);
        self.put(key, &value)?;
        Ok(true)
    }

    /// Sets the value of `key` from a handle that the store may keep instead of copying.
    ///
    /// Otherwise works like [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// The errors of [`put`](Self::put).
    fn put_bytes(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
        self.put(key, &value)
    }

    /// Sets the values of a batch of keys, in their order. If a key occurs twice, the last value stays.
    ///
    /// One `put` each.
    ///
    /// # Errors
    ///
    /// The errors of [`put`](Self::put). If an entry is longer than [`check_entry_len`](crate::check_entry_len) allows,
    /// none is put. If one is refused for another reason, those before it stay, and the same batch may be put again.
    fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        check_entry_lens(entries)?;
        entries.iter().try_for_each(|&(key, value)| self.put(key, value))
    }

    /// Deletes entries whose keys are within `bounds`, in order, and at most `limit` of them.
    ///
    /// One [`try_visit_range`](Self::try_visit_range) that copies the keys, then one `delete` for each. For ranges of
    /// any kind see [`StateStoreExt::delete_range`](crate::StateStoreExt::delete_range).
    ///
    /// # Errors
    ///
    /// The errors of [`try_visit_range`](Self::try_visit_range) and [`delete`](Self::delete). Entries deleted until
    /// then stay deleted.
    fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
        let (mut keys, mut is_done) = (Vec::new(), true);
        self.try_visit_range(bounds, &mut |key, _| {
            is_done = keys.len() < limit;
            if !is_done {
                return ControlFlow::Break(());
            }
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        for key in &keys {
            self.delete(key)?;
        }
        Ok(Deleted { count: keys.len(), is_done })
    }

    /// Iterates over the entries whose keys are within `bounds`, in order, and from both ends.
    ///
    /// The bounds are copied. Ascending costs one `range_scan` for every batch of entries: the first batch has one
    /// entry, later ones up to 1,024. An included upper bound also costs one `get` for each batch. **Descending buffers
    /// all remaining entries.** The stores of this crate do neither.
    ///
    /// For ranges of any kind see [`StateStoreExt::scan`](crate::StateStoreExt::scan).
    fn entries(&self, bounds: KeyBounds<'_>) -> Scan<'_> {
        Scan::buffered(Batches::new(self, OwnedBounds::copy_of(bounds)))
    }

    /// Calls `f` with the key and value of every entry within `range`, in order, until `f` returns
    /// [`ControlFlow::Break`].
    ///
    /// One `range_scan`. If the upper bound is included, also one `get`.
    fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        for (key, value) in scan_bounds(self, range) {
            if f(&key, &value).is_break() {
                return;
            }
        }
    }

    /// Calls `f` with every entry within `range`, or returns the error of the store's medium.
    ///
    /// Otherwise works like [`visit_range`](Self::visit_range).
    ///
    /// # Errors
    ///
    /// None in memory. A store that reads from elsewhere returns its errors here, after the entries before them;
    /// [`visit_range`](Self::visit_range) panics with them.
    fn try_visit_range(
        &self,
        range: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.visit_range(range, f);
        Ok(())
    }

    /// Replaces the contents by those of `snapshot`, which may turn out to be damaged or unreadable.
    ///
    /// Verifies the snapshot, then calls `restore`. If reads can still fail, as for an image in a reader, the snapshot
    /// is read into memory first. The stores of this crate read it once, and directly.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::verify`], and those of reading. The store is then unchanged.
    fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
        self.restore(snapshot.into_sound()?);
        Ok(())
    }

    /// Returns the memory that the store uses, in bytes, as far as the store knows it.
    ///
    /// The provided body returns [`size_bytes`](Self::size_bytes), the least possible for a store in memory.
    fn memory_bytes(&self) -> usize {
        self.size_bytes()
    }

    /// Looks up a batch of keys. Afterwards `out` holds the values only, one for each key, in the order of the keys.
    ///
    /// One `get` for each.
    fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        out.clear();
        out.extend(keys.iter().map(|key| self.get(key)));
    }
}

/// Scans any bounds with `range_scan` and `get` alone.
fn scan_bounds<'a, S: StateStore + ?Sized>(store: &'a S, (start, end): KeyBounds<'a>) -> Entries<'a> {
    if is_inverted((start, end)) {
        return Box::new(iter::empty());
    }
    let (first, skipped) = match start {
        Bound::Unbounded => (&[][..], None),
        Bound::Included(key) => (key, None),
        Bound::Excluded(key) => (key, Some(key)),
    };
    let scan = |end| store.range_scan(first..end).filter(move |(key, _)| skipped != Some(&key[..]));
    match end {
        Bound::Unbounded => Box::new(scan(&BEYOND_EVERY_KEY)),
        Bound::Excluded(key) => Box::new(scan(key)),
        Bound::Included(key) => {
            let last = iter::once_with(move || store.get(key).map(|value| (Bytes::copy_from_slice(key), value)));
            Box::new(scan(key).chain(last.flatten()))
        }
    }
}

/// The longest batch of [`Batches`], in entries.
const LONGEST_BATCH: usize = 1024;

/// An ascending iterator that needs only `range_scan`. It reads in batches, so that it owns its bounds.
struct Batches<'a, S: ?Sized> {
    store: &'a S,
    /// The start of the next batch, and the end of the last one.
    bounds: OwnedBounds,
    batch: vec::IntoIter<(Bytes, Bytes)>,
    /// The length of the next batch; 0 at the end. The first batches are short, for callers that stop early.
    next_len: usize,
}

impl<'a, S: StateStore + ?Sized> Batches<'a, S> {
    fn new(store: &'a S, bounds: OwnedBounds) -> Self {
        Self { store, bounds, batch: Vec::new().into_iter(), next_len: 1 }
    }
}

impl<S: StateStore + ?Sized> Iterator for Batches<'_, S> {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        if self.batch.len() == 0 && self.next_len > 0 {
            let batch: Vec<_> = scan_bounds(self.store, self.bounds.get()).take(self.next_len).collect();
            match batch.last() {
                Some((last, _)) if batch.len() == self.next_len => {
                    self.bounds.start_after(last);
                    self.next_len = (self.next_len * 8).min(LONGEST_BATCH);
                }
                _ => self.next_len = 0,
            }
            self.batch = batch.into_iter();
        }
        self.batch.next()
    }
}

impl UnverifiedImage {
    /// Replaces the contents of a store by those of the image.
    ///
    /// The stores of this crate read the image once, and verify it on the way. Other stores that do not override
    /// [`StateStore::try_restore`] need more: an image in a reader is read into memory first, and any other image is
    /// read twice.
    ///
    /// # Errors
    ///
    /// The errors of [`verify`](Self::verify). The store is then unchanged.
    pub fn restore_into<S: StateStore + ?Sized>(&self, store: &mut S) -> Result<(), StateError> {
        store.try_restore(self.snapshot().clone()).map_err(|error| self.add_path(error))
    }
}

macro_rules! debug {
    ($($store:ty),*) => {$(
        /// Shows the counts, and none of the contents.
        impl fmt::Debug for $store {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("dyn StateStore")
                    .field("len", &self.len())
                    .field("size_bytes", &self.size_bytes())
                    .finish_non_exhaustive()
            }
        }
    )*};
}

debug!(dyn StateStore + '_, dyn StateStore + Send + '_, dyn StateStore + Sync + '_, dyn StateStore + Send + Sync + '_);

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        #[deny(clippy::missing_trait_methods)]
        impl<S: StateStore + ?Sized> StateStore for $pointer {
            fn get(&self, key: &[u8]) -> Option<Bytes> {
                (**self).get(key)
            }
            fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
                (**self).put(key, value)
            }
            fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
                (**self).delete(key)
            }
            fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
                (**self).prefix_scan(prefix)
            }
            fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
                (**self).range_scan(range)
            }
            fn size_bytes(&self) -> usize {
                (**self).size_bytes()
            }
            fn len(&self) -> usize {
                (**self).len()
            }
            fn snapshot(&self) -> StateSnapshot {
                (**self).snapshot()
            }
            fn restore(&mut self, snapshot: StateSnapshot) {
                (**self).restore(snapshot);
            }
            fn clear(&mut self) {
                (**self).clear();
            }
            fn contains(&self, key: &[u8]) -> bool {
                (**self).contains(key)
            }
            fn is_empty(&self) -> bool {
                (**self).is_empty()
            }
            fn flush(&mut self) -> Result<(), StateError> {
                (**self).flush()
            }
            fn get_or_insert(&mut self, key: &[u8], default: &[u8]) -> Result<Bytes, StateError> {
                (**self).get_or_insert(key, default)
            }
            fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
                (**self).read(key, f)
            }
            fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
                (**self).modify(key, f)
            }
            fn put_bytes(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
                (**self).put_bytes(key, value)
            }
            fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
                (**self).try_get(key)
            }
            fn try_read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool, StateError> {
                (**self).try_read(key, f)
            }
            fn take(&mut self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
                (**self).take(key)
            }
            fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
                (**self).delete_within(bounds, limit)
            }
            fn entries(&self, bounds: KeyBounds<'_>) -> Scan<'_> {
                (**self).entries(bounds)
            }
            fn try_visit_range(
                &self,
                range: KeyBounds<'_>,
                f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
            ) -> Result<(), StateError> {
                (**self).try_visit_range(range, f)
            }
            fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
                (**self).try_restore(snapshot)
            }
            fn memory_bytes(&self) -> usize {
                (**self).memory_bytes()
            }
            fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
                (**self).visit_range(range, f);
            }
            fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
                (**self).get_many(keys, out);
            }
            fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
                (**self).put_many(entries)
            }
        }
    )*};
}

forward!(Box<S>, &mut S);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InMemoryStore;
    use crate::bounds::KeyRange as _;

    /// A store with the required methods only.
    struct Least(InMemoryStore);

    impl StateStore for Least {
        fn get(&self, key: &[u8]) -> Option<Bytes> {
            self.0.get(key)
        }
        fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
            self.0.put(key, value)
        }
        fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
            self.0.delete(key)
        }
        fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
            self.0.prefix_scan(prefix)
        }
        fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
            self.0.range_scan(range)
        }
        fn size_bytes(&self) -> usize {
            self.0.size_bytes()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn snapshot(&self) -> StateSnapshot {
            self.0.snapshot()
        }
        fn restore(&mut self, snapshot: StateSnapshot) {
            self.0.restore(snapshot);
        }
        fn clear(&mut self) {
            self.0.clear();
        }
    }

    #[test]
    #[cfg(feature = "conformance")]
    fn the_required_methods_suffice() {
        crate::conformance::check(|| Least(InMemoryStore::new()));
    }

    #[test]
    fn provided_entries_are_whole_across_batches() {
        let key = |i: u32| i.to_be_bytes();
        let mut store = Least(InMemoryStore::new());
        for i in 0..3_000 {
            store.put(&key(i), b"value").unwrap();
        }
        // The first batches end after 1, 9, 73, 585, 1609 and 2633 entries.
        for start in [0, 1, 2_415, 2_999] {
            for len in [0, 1, 2, 8, 9, 10, 72, 73, 74, 584, 585, 586, 1_609, 1_610, 2_633, 3_000] {
                let end = (start + len).min(3_000);
                let keys: Vec<u32> = (start..end).collect();
                let number = |(key, _): (Bytes, Bytes)| u32::from_be_bytes(key[..].try_into().unwrap());
                let (last, one) = (key(end.max(start + 1) - 1), [start]);
                for (range, expected) in [
                    ((key(start)..key(end)).bounds(), &keys[..]),
                    ((key(start)..=last).bounds(), if end > start { &keys } else { &one }),
                ] {
                    assert!(store.entries(range).map(number).eq(expected.iter().copied()), "{start}..{end}");
                    assert!(
                        store.entries(range).rev().map(number).eq(expected.iter().rev().copied()),
                        "{start}..{end}"
                    );
                    let mut scan = store.entries(range);
                    let half: Vec<_> = scan.by_ref().take(len as usize / 2).map(number).collect();
                    let rest: Vec<_> = scan.rev().map(number).collect();
                    assert!(
                        half.into_iter().chain(rest.into_iter().rev()).eq(expected.iter().copied()),
                        "{start}..{end}"
                    );
                }
            }
        }
    }
}
