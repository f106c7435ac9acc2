//! [`Scan`]: an iterator over entries in order, from both ends.
//!
//! # Design
//!
//! Stores and snapshots iterate in one direction at a time: up from the start of a range, or down from its end.
//! [`TwoEnds`] makes one iterator of an ascending and a descending one. Each is created when it is first needed, so
//! that a scan in one direction searches once. Once both exist, the ascending one is read one entry ahead, and each
//! ends where it meets the other, by comparing keys. A scan that only ascends pays one branch for an entry.
//!
//! # Invariants
//!
//! 1. While only one of the two iterators exists, every entry read from it has been returned.
//! 2. Once both exist, `ahead` is the next entry of the ascending one, if there is one, and `failed` has the errors
//!    before it.
//! 3. `last_down` is the key that the descending one returned last. Every entry returned by the ascending one sorts
//!    before it.
//! 4. Once `has_ended` is set, only `failed` is returned.

use std::collections::VecDeque;
use std::convert::identity;
use std::marker::PhantomData;

use bytes::Bytes;

use crate::aligned::{aligned_copy, is_aligned};
use crate::error::{StateError, expect_sound};
use crate::typed::{ReadValue, decode};

/// An ordered iterator over entries, returned by the scans of [`StateStore`](crate::StateStore).
pub type Entries<'a> = Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

/// An iterator over entries in ascending order of keys, which can also be read from its end.
///
/// Returned by [`StateStore::entries`](crate::StateStore::entries), [`StateStoreExt::scan`](crate::StateStoreExt::scan)
/// and the scans of a [`StateSnapshot`](crate::StateSnapshot). `.rev()` gives the entries in descending order. Iterating
/// in one direction costs one search, from both ends two.
///
/// ```
/// use opstate::{HotStore, StateStore, StateStoreExt};
///
/// let mut store = HotStore::new();
/// for key in ["a", "b", "c"] {
///     store.put(key.as_bytes(), b"")?;
/// }
/// let keys: Vec<_> = store.scan(..).rev().map(|(key, _)| key).collect();
/// assert_eq!(keys, ["c", "b", "a"]);
/// # Ok::<(), opstate::StateError>(())
/// ```
#[must_use = "iterators are lazy"]
pub struct Scan<'a> {
    entries: ScanSource<'a>,
}

/// The entries of a scan.
enum ScanSource<'a> {
    /// The entries of a store.
    Store(Box<dyn DoubleEndedIterator<Item = (Bytes, Bytes)> + 'a>),
    /// The entries of a snapshot. Errors become panics.
    Snapshot(TryScan<'a>),
}

impl<'a> Scan<'a> {
    /// Creates a scan of an iterator over entries in strictly ascending order of keys, for stores of your own.
    pub fn new(entries: impl DoubleEndedIterator<Item = (Bytes, Bytes)> + 'a) -> Self {
        Self { entries: ScanSource::Store(Box::new(entries)) }
    }

    /// Creates a scan of a snapshot's entries. It panics at an entry that cannot be read.
    pub(crate) fn of_snapshot(entries: TryScan<'a>) -> Self {
        Self { entries: ScanSource::Snapshot(entries) }
    }

    /// Creates a scan of an iterator that only ascends, for stores of your own.
    ///
    /// Keys must strictly ascend. The first step from the end buffers all remaining entries.
    pub fn buffered(entries: impl Iterator<Item = (Bytes, Bytes)> + 'a) -> Self {
        Self::new(Buffered::new(entries))
    }

    /// Creates a scan of two iterators over the same entries, for stores of your own that iterate in one direction at a
    /// time.
    ///
    /// `ascending` returns an iterator over all entries in strictly ascending order of keys, `descending` one in the
    /// opposite order. Each is called when the scan is first asked for an entry at its end.
    ///
    /// ```
    /// use opstate::Scan;
    /// use opstate::bytes::Bytes;
    ///
    /// let entries: Vec<(Bytes, Bytes)> = ["a", "b", "c"].map(|key| (key.into(), Bytes::new())).into();
    /// let mut scan = Scan::of_both_directions(|| entries.iter().cloned(), || entries.iter().rev().cloned());
    /// assert_eq!(scan.next_back().map(|(key, _)| key), Some("c".into()));
    /// assert_eq!(scan.count(), 2);
    /// ```
    pub fn of_both_directions<A, D>(ascending: impl FnOnce() -> A + 'a, descending: impl FnOnce() -> D + 'a) -> Self
    where
        A: Iterator<Item = (Bytes, Bytes)> + 'a,
        D: Iterator<Item = (Bytes, Bytes)> + 'a,
    {
        Self::new(TwoEnds::new((), |()| ascending(), |()| descending()))
    }
}

/// An iterator over entries whose medium can fail, in ascending order of keys, which can also be read from its end.
///
/// Returned by the `try_` scans of a [`StateSnapshot`](crate::StateSnapshot) and the scans of an
/// [`UnverifiedImage`](crate::UnverifiedImage). Values are aligned when they are returned. If a part of the medium
/// cannot be read, an error takes the place of all its entries; the iterator continues behind it.
#[must_use = "iterators are lazy"]
pub struct TryScan<'a> {
    entries: Box<dyn DoubleEndedIterator<Item = Result<(Bytes, Bytes), StateError>> + 'a>,
}

impl<'a> TryScan<'a> {
    /// Creates a scan of an iterator in strictly ascending order of keys, for a [`SnapshotSource`](crate::SnapshotSource)
    /// of your own.
    pub fn new(entries: impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StateError>> + 'a) -> Self {
        Self { entries: Box::new(entries) }
    }

    /// Creates a scan of two iterators over the same entries, for a [`SnapshotSource`](crate::SnapshotSource) of your own.
    ///
    /// [`Scan::of_both_directions`] describes the two.
    pub fn of_both_directions<A, D>(ascending: impl FnOnce() -> A + 'a, descending: impl FnOnce() -> D + 'a) -> Self
    where
        A: Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a,
        D: Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a,
    {
        Self::new(TwoEnds::new((), |()| ascending(), |()| descending()))
    }

    /// Creates a scan of an iterator that only ascends, for a [`SnapshotSource`](crate::SnapshotSource) of your own.
    ///
    /// Keys must strictly ascend. The first step from the end buffers all remaining entries.
    pub fn buffered(entries: impl Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a) -> Self {
        Self::new(Buffered::new(entries))
    }
}

/// An iterator over entries with their values as `T`s, in ascending order of keys, which can also be read from its end.
///
/// Returned by [`StateStoreExt::scan_typed`](crate::StateStoreExt::scan_typed) and
/// [`StateSnapshot::scan_typed`](crate::StateSnapshot::scan_typed). An item is [`StateError::WrongType`] if the value
/// is no `T`; the iterator continues behind it.
#[must_use = "iterators are lazy"]
pub struct TypedScan<'a, T> {
    entries: TryScan<'a>,
    value: PhantomData<fn() -> T>,
}

impl<'a, T> TypedScan<'a, T> {
    /// Creates a scan that decodes the values of `entries`.
    pub(crate) fn new(entries: TryScan<'a>) -> Self {
        Self { entries, value: PhantomData }
    }
}

impl Iterator for ScanSource<'_> {
    type Item = (Bytes, Bytes);

    #[inline]
    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        match self {
            Self::Store(entries) => entries.next(),
            Self::Snapshot(entries) => entries.next().map(expect_sound),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Store(entries) => entries.size_hint(),
            Self::Snapshot(entries) => entries.size_hint(),
        }
    }
}

impl DoubleEndedIterator for ScanSource<'_> {
    #[inline]
    fn next_back(&mut self) -> Option<(Bytes, Bytes)> {
        match self {
            Self::Store(entries) => entries.next_back(),
            Self::Snapshot(entries) => entries.next_back().map(expect_sound),
        }
    }
}

/// Aligns the value of an entry that is returned. Works in place, because entries are large to move.
#[inline]
fn with_aligned_value(
    mut entry: Option<Result<(Bytes, Bytes), StateError>>,
) -> Option<Result<(Bytes, Bytes), StateError>> {
    if let Some(Ok((_, value))) = &mut entry {
        if !is_aligned(value) {
            *value = aligned_copy(value);
        }
    }
    entry
}

/// Decodes the value of an entry.
fn typed<T: ReadValue>(entry: Option<Result<(Bytes, Bytes), StateError>>) -> Option<Result<(Bytes, T), StateError>> {
    entry.map(|entry| {
        let (key, value) = entry?;
        decode(&key, &value).map(|value| (key, value))
    })
}

macro_rules! iterates {
    ($([$($generics:tt)*] $name:ident<$($arg:tt),*> => $item:ty, $each:expr;)*) => {$(
        impl<$($generics)*> Iterator for $name<$($arg),*> {
            type Item = $item;

            #[inline]
            fn next(&mut self) -> Option<Self::Item> {
                $each(self.entries.next())
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.entries.size_hint()
            }
        }

        impl<$($generics)*> DoubleEndedIterator for $name<$($arg),*> {
            #[inline]
            fn next_back(&mut self) -> Option<Self::Item> {
                $each(self.entries.next_back())
            }
        }
    )*};
}

iterates! {
    ['a] Scan<'a> => (Bytes, Bytes), identity;
    ['a] TryScan<'a> => Result<(Bytes, Bytes), StateError>, with_aligned_value;
    ['a, T: ReadValue] TypedScan<'a, T> => Result<(Bytes, T), StateError>, typed;
}

macro_rules! opaque {
    ($([$($generics:tt)*] $name:ident<$($arg:tt),*>;)*) => {$(
        impl<$($generics)*> std::fmt::Debug for $name<$($arg),*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
pub(crate) use opaque;

opaque! {
    ['a] Scan<'a>;
    ['a] TryScan<'a>;
    ['a, T] TypedScan<'a, T>;
}

/// A double-ended iterator that buffers all remaining items at the first step from the end.
struct Buffered<I: Iterator> {
    ascending: I,
    rest: Option<VecDeque<I::Item>>,
}

impl<I: Iterator> Buffered<I> {
    fn new(ascending: I) -> Self {
        Self { ascending, rest: None }
    }
}

impl<I: Iterator> Iterator for Buffered<I> {
    type Item = I::Item;

    #[inline]
    fn next(&mut self) -> Option<I::Item> {
        match &mut self.rest {
            None => self.ascending.next(),
            Some(rest) => rest.pop_front(),
        }
    }
}

impl<I: Iterator> DoubleEndedIterator for Buffered<I> {
    fn next_back(&mut self) -> Option<I::Item> {
        let Self { ascending, rest } = self;
        rest.get_or_insert_with(|| ascending.collect()).pop_back()
    }
}

/// An item that has a key, unless it is an error.
pub(crate) trait Keyed {
    /// Returns the key, or `None` for an error.
    fn key(&self) -> Option<&Bytes>;
}

impl Keyed for (Bytes, Bytes) {
    fn key(&self) -> Option<&Bytes> {
        Some(&self.0)
    }
}

impl<E> Keyed for Result<(Bytes, Bytes), E> {
    fn key(&self) -> Option<&Bytes> {
        self.as_ref().ok().map(|(key, _)| key)
    }
}

/// A double-ended iterator made of an ascending and a descending one over the same entries.
///
/// Both are created from `bounds` when they are first needed.
pub(crate) struct TwoEnds<A: Iterator, D, B, U, W> {
    bounds: B,
    /// Creates the ascending iterator. `None` once it exists.
    make_up: Option<U>,
    up: Option<A>,
    ahead: Option<A::Item>,
    failed: VecDeque<A::Item>,
    /// Creates the descending iterator. `None` once it exists.
    make_down: Option<W>,
    down: Option<D>,
    last_down: Option<Bytes>,
    has_ended: bool,
}

impl<T, A, D, B, U, W> TwoEnds<A, D, B, U, W>
where
    T: Keyed,
    A: Iterator<Item = T>,
    D: Iterator<Item = T>,
    U: FnOnce(&B) -> A,
    W: FnOnce(&B) -> D,
{
    /// Creates a double-ended iterator. The two closures are called when they are first needed.
    pub(crate) fn new(bounds: B, make_up: U, make_down: W) -> Self {
        Self {
            bounds,
            make_up: Some(make_up),
            up: None,
            ahead: None,
            failed: VecDeque::new(),
            make_down: Some(make_down),
            down: None,
            last_down: None,
            has_ended: false,
        }
    }

    /// Reads the next entry of the ascending iterator, and the errors before it.
    fn look_ahead(&mut self) {
        let Some(up) = &mut self.up else { return };
        self.ahead = loop {
            match up.next() {
                Some(error) if error.key().is_none() => self.failed.push_back(error),
                next => break next,
            }
        };
    }

    /// Ends both iterators. Errors that were read ahead are still returned.
    fn end(&mut self) {
        (self.has_ended, self.ahead) = (true, None);
    }

    /// Returns the next item for a step up that is the first one, or that comes after a step down.
    #[cold]
    fn next_slowly(&mut self) -> Option<T> {
        if let Some(make_up) = self.make_up.take_if(|_| !self.has_ended) {
            self.up = Some(make_up(&self.bounds));
            if self.down.is_none() {
                return self.up.as_mut()?.next();
            }
            self.look_ahead();
        }
        if let Some(error) = self.failed.pop_front() {
            return Some(error);
        }
        let next = self.ahead.take();
        let is_met = |next: &T| self.last_down.is_some() && next.key() >= self.last_down.as_ref();
        let Some(next) = next.filter(|next| !is_met(next)) else {
            self.end();
            return None;
        };
        self.look_ahead();
        Some(next)
    }
}

impl<T, A, D, B, U, W> Iterator for TwoEnds<A, D, B, U, W>
where
    T: Keyed,
    A: Iterator<Item = T>,
    D: Iterator<Item = T>,
    U: FnOnce(&B) -> A,
    W: FnOnce(&B) -> D,
{
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        match &mut self.up {
            Some(up) if self.down.is_none() => up.next(),
            _ => self.next_slowly(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.up {
            Some(up) if self.down.is_none() => up.size_hint(),
            _ => (0, None),
        }
    }
}

impl<T, A, D, B, U, W> DoubleEndedIterator for TwoEnds<A, D, B, U, W>
where
    T: Keyed,
    A: Iterator<Item = T>,
    D: Iterator<Item = T>,
    U: FnOnce(&B) -> A,
    W: FnOnce(&B) -> D,
{
    fn next_back(&mut self) -> Option<T> {
        if let Some(make_down) = self.make_down.take() {
            self.look_ahead();
            self.down = Some(make_down(&self.bounds));
        }
        // If the ascending iterator is at its end, there is nothing between the two.
        let is_up_at_end = self.up.is_some() && self.ahead.is_none();
        let next = if is_up_at_end || self.has_ended { None } else { self.down.as_mut()?.next() };
        let Some(next) = next else {
            self.end();
            return self.failed.pop_back();
        };
        if let Some(key) = next.key() {
            let is_met = self.ahead.as_ref().is_some_and(|ahead| Some(key) < ahead.key());
            if is_met || self.last_down.as_ref().is_some_and(|last| key >= last) {
                self.end();
                return self.failed.pop_back();
            }
            self.last_down = Some(key.clone());
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    type Item = Result<(Bytes, Bytes), u32>;

    /// Returns an entry with this key, or an error.
    fn item(key: u32, is_error: bool) -> Item {
        if is_error { Err(key) } else { Ok((Bytes::copy_from_slice(&key.to_be_bytes()), Bytes::new())) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Steps from both ends in any order return every entry once, in order, and nothing after the end.
        #[test]
        fn both_ends_meet(len in 0_u32..12, steps in prop::collection::vec(any::<bool>(), 0..20)) {
            let items: Vec<_> = (0..len).map(|key| item(key, false)).collect();
            let mut scan = TwoEnds::new((), |()| items.iter().cloned(), |()| items.iter().rev().cloned());
            let mut expected = items.iter().cloned();
            for is_front in steps {
                let (found, expected) =
                    if is_front { (scan.next(), expected.next()) } else { (scan.next_back(), expected.next_back()) };
                prop_assert_eq!(found, expected);
            }
            prop_assert!(scan.eq(expected));
        }

        /// Errors are returned at least once, in their place; entries are still returned once.
        #[test]
        fn errors_lose_no_entry(errors in prop::collection::vec(any::<bool>(), 0..12), steps in prop::collection::vec(any::<bool>(), 40)) {
            let items: Vec<_> = (0..).zip(&errors).map(|(key, is_error)| item(key, *is_error)).collect();
            let mut scan = TwoEnds::new((), |()| items.iter().cloned(), |()| items.iter().rev().cloned());
            let (mut front, mut back, mut failed) = (Vec::new(), Vec::new(), Vec::new());
            let mut ends = 0;
            for is_front in steps {
                match if is_front { scan.next() } else { scan.next_back() } {
                    Some(Err(error)) => failed.push(error),
                    Some(entry) if is_front => front.push(entry),
                    Some(entry) => back.push(entry),
                    None => ends += 1,
                }
            }
            prop_assert!(ends > 0);
            let entries: Vec<_> = front.into_iter().chain(back.into_iter().rev()).collect();
            prop_assert_eq!(entries, items.iter().filter(|item| item.is_ok()).cloned().collect::<Vec<_>>());
            for (key, is_error) in (0..).zip(&errors) {
                prop_assert_eq!(failed.contains(&key), *is_error);
            }
        }
    }

    #[test]
    fn the_walk_down_is_not_begun_by_the_walk_up() {
        let begun = Cell::new(false);
        let items = [item(1, false), item(2, false)];
        let up = |()| items.iter().cloned();
        let mut scan = TwoEnds::new(
            (),
            |_: &()| up(()),
            |_: &()| {
                begun.set(true);
                items.iter().rev().cloned()
            },
        );
        assert_eq!(scan.by_ref().count(), 2);
        assert!(!begun.get());
        assert_eq!(scan.next_back(), None);
    }
}
