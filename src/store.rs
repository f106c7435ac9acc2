//! [`StateStore`]: the contract of every store, and its forwarding for `Box<S>` and `&mut S`.

use std::iter;
use std::ops::{Bound, ControlFlow, Range};

use bytes::Bytes;

use crate::{StateError, StateSnapshot};

/// The longest key, in bytes.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value, in bytes: 4 GiB - 1.
pub const MAX_VALUE_LEN: usize = u32::MAX as usize;

/// An ordered iterator over entries, as scans return it: each item is a key with its value.
pub type Entries<'a> = Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

/// A pair of bounds over keys, as [`StateStore::visit_range`] takes it.
pub type KeyBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Sorts after every key there can be, so that a `Range` can say "to the end".
pub(crate) static BEYOND_EVERY_KEY: [u8; MAX_KEY_LEN + 1] = [0xFF; MAX_KEY_LEN + 1];

/// Keyed state of one stream operator.
///
/// A store maps keys to values, both plain bytes, and keeps the keys in order. It has one owner, which reads and
/// writes it from one thread at a time; a [`snapshot`](Self::snapshot) is what other threads get.
///
/// # Contract
///
/// These rules hold for every store. The module `conformance`, behind the feature of that name, checks them.
///
/// 1. **Keys** are compared and scanned in unsigned lexicographic order of their bytes. The empty key is a key. A key
///    has at most [`MAX_KEY_LEN`] bytes and a value at most [`MAX_VALUE_LEN`]; writing a longer one is an error that
///    says both lengths. Reading or deleting a key that is too long finds nothing.
/// 2. **Ranges** may be anything. An empty or inverted range yields nothing. The empty prefix matches every key; a
///    prefix of only `0xFF` bytes reaches to the end.
/// 3. **An error changes nothing**, except where a method says otherwise.
/// 4. **Handles do not change.** Bytes handed out by a `get` or a scan, and snapshots, stay as they were whatever
///    happens to the store afterwards, its end included.
/// 5. **Counts are exact**: [`len`](Self::len) is the number of entries and [`size_bytes`](Self::size_bytes) the sum
///    of the lengths of all keys and values, both in O(1).
///
/// # Implementing it
///
/// The ten methods without a body suffice; the example `custom_store` shows a whole store. Every other method works
/// through them; override those that the store can do better. [`check_entry_len`](crate::check_entry_len) enforces the
/// limits, [`StateSnapshot::from_sorted`] makes a snapshot, `conformance::check` checks the result. A store whose medium
/// can fail reports that from `put`, `delete` or `flush`; `snapshot`, `restore` and `clear` have no error to return, so
/// such a store remembers a failure there and returns it from the next of those.
///
/// All methods can be called on `dyn StateStore`; typed access and everything generic is in
/// [`StateStoreExt`](crate::StateStoreExt).
///
/// # Costs
///
/// Costs in the documentation of provided methods are those of the provided body, counted in calls of required methods.
pub trait StateStore: Send {
    /// Returns the value of `key`.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// Sets the value of `key`, whether the key is new or not.
    ///
    /// # Errors
    ///
    /// [`StateError::KeyTooLong`] and [`StateError::ValueTooLong`]; a store may have further reasons.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError>;

    /// Removes `key` and its value. Removing a key that is absent is no error.
    ///
    /// # Errors
    ///
    /// None in memory; a store that writes elsewhere may fail.
    fn delete(&mut self, key: &[u8]) -> Result<(), StateError>;

    /// Iterates over the entries whose keys start with `prefix`, in order.
    ///
    /// Values need not lie at any alignment: for archived ones use
    /// [`scan_typed`](crate::StateStoreExt::scan_typed), not `rkyv::access`.
    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

    /// Iterates over the entries whose keys are in `range`, in order: the start is included, the end is not.
    ///
    /// For other bounds see [`StateStoreExt::scan`](crate::StateStoreExt::scan).
    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

    /// Returns the sum of the lengths of all keys and values, in bytes. O(1).
    fn size_bytes(&self) -> usize;

    /// Returns the number of entries. O(1).
    fn len(&self) -> usize;

    /// Returns the contents of this instant as an immutable value of its own.
    fn snapshot(&self) -> StateSnapshot;

    /// Replaces the contents by those of `snapshot`, whichever store it comes from.
    fn restore(&mut self, snapshot: StateSnapshot);

    /// Removes every entry.
    fn clear(&mut self);

    /// Returns whether there is an entry for `key`. One `get`.
    fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// Returns whether there is no entry. One `len`.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes earlier writes durable, where a store has a notion of that. In memory it does nothing.
    ///
    /// # Errors
    ///
    /// Those of the store's medium.
    fn flush(&mut self) -> Result<(), StateError> {
        Ok(())
    }

    /// Returns the value of `key`, after setting it to `default` if there was none.
    ///
    /// One `get`; for a new key a `put` and another `get`.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put), when the key is new.
    fn get_or_insert(&mut self, key: &[u8], default: &[u8]) -> Result<Bytes, StateError> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        self.put(key, default)?;
        Ok(self.get(key).unwrap_or_else(|| Bytes::copy_from_slice(default)))
    }

    /// Calls `f` once with the value of `key`, in place where the store can; returns whether there is one. One `get`.
    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        match self.get(key) {
            Some(value) => {
                f(&value);
                true
            }
            None => false,
        }
    }

    /// Calls `f` once with the value of `key` for it to be changed without changing its length; returns whether there
    /// is one.
    ///
    /// Handles and snapshots taken before keep the old value. If `f` panics, the value is the old one, the new one or
    /// partly each, and the store stays usable. One `get`, one copy of the value and one `put`.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put).
    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        let mut value = value.to_vec();
        f(&mut value);
        self.put(key, &value)?;
        Ok(true)
    }

    /// Sets the value of `key` like [`put`](Self::put), from a handle that a store may keep instead of copying.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put).
    fn put_bytes(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
        self.put(key, &value)
    }

    /// Sets the values of a batch of keys, in their order: of a key that occurs twice the last value stays.
    ///
    /// One `put` each.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put). If an entry is longer than [`check_entry_len`] allows, none is put; if one is refused for
    /// another reason, those before it stay, and the same batch may be put again.
    fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        check_entry_lens(entries)?;
        entries.iter().try_for_each(|&(key, value)| self.put(key, value))
    }

    /// Removes every entry whose key is in `range` (start included, end not); returns how many there were.
    ///
    /// One `range_scan` that keeps the keys, then a `delete` each.
    ///
    /// # Errors
    ///
    /// Those of [`delete`](Self::delete). Entries removed until then stay removed.
    fn delete_range(&mut self, range: Range<&[u8]>) -> Result<usize, StateError> {
        let keys: Vec<Bytes> = self.range_scan(range).map(|(key, _)| key).collect();
        for key in &keys {
            self.delete(key)?;
        }
        Ok(keys.len())
    }

    /// Calls `f` with the key and value of every entry within `range`, in order, until it returns
    /// [`ControlFlow::Break`].
    ///
    /// One `range_scan`; where the upper bound is included, also one `get`.
    fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        for (key, value) in scan_bounds(self, range) {
            if f(&key, &value).is_break() {
                return;
            }
        }
    }

    /// Looks up a batch of keys: afterwards `out` holds one answer for each, in their order, and nothing else.
    ///
    /// One `get` each.
    fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        out.clear();
        out.extend(keys.iter().map(|key| self.get(key)));
    }
}

/// Fails if an entry is larger than the contract of [`StateStore`] allows. For implementors of [`StateStore::put`].
///
/// # Errors
///
/// [`StateError::KeyTooLong`] and [`StateError::ValueTooLong`].
///
/// ```
/// assert!(opstate::check_entry_len(b"key", b"value").is_ok());
/// assert!(opstate::check_entry_len(&[0; 65_536], b"value").is_err());
/// ```
pub fn check_entry_len(key: &[u8], value: &[u8]) -> Result<(), StateError> {
    if key.len() > MAX_KEY_LEN {
        return Err(StateError::KeyTooLong { len: key.len(), limit: MAX_KEY_LEN });
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(StateError::ValueTooLong { len: value.len(), limit: MAX_VALUE_LEN });
    }
    Ok(())
}

pub(crate) fn check_entry_lens(entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
    entries.iter().try_for_each(|&(key, value)| check_entry_len(key, value))
}

/// Scans any bounds by means of `range_scan` and `get` alone.
pub(crate) fn scan_bounds<'a, S: StateStore + ?Sized>(store: &'a S, (start, end): KeyBounds<'a>) -> Entries<'a> {
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

/// Whether no key can lie within the bounds because the end comes before the start.
pub(crate) fn is_inverted(range: KeyBounds<'_>) -> bool {
    match range {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
    }
}

/// Whether `key` comes before every key within bounds that start like this.
#[inline]
pub(crate) fn is_before_start(start: Bound<&[u8]>, key: &[u8]) -> bool {
    match start {
        Bound::Unbounded => false,
        Bound::Included(bound) => key < bound,
        Bound::Excluded(bound) => key <= bound,
    }
}

/// Whether `key` does not come after every key within bounds that end like this.
#[inline]
pub(crate) fn is_before_end(end: Bound<&[u8]>, key: &[u8]) -> bool {
    match end {
        Bound::Unbounded => true,
        Bound::Included(bound) => key <= bound,
        Bound::Excluded(bound) => key < bound,
    }
}

/// The bounds of a half-open range.
pub(crate) fn half_open<'a>(range: Range<&'a [u8]>) -> KeyBounds<'a> {
    (Bound::Included(range.start), Bound::Excluded(range.end))
}

/// The smallest byte string that sorts after every key with this prefix; `None` if nothing does.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
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
            fn delete_range(&mut self, range: Range<&[u8]>) -> Result<usize, StateError> {
                (**self).delete_range(range)
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
