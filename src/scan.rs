//! [`Scan`]: entries in order, from both ends.
//!
//! # Design
//!
//! Stores and snapshots walk in one direction at a time: up from the start of a range, or down from its end. [`TwoEnds`]
//! makes one iterator of two such walks. Each begins when somebody first asks for it, so that a scan in one direction
//! searches once. Where both have begun, the walk up is one entry ahead, and each stops where it meets the other, by
//! comparing keys. A scan that only walks up pays one branch for an entry.
//!
//! # Invariants
//!
//! 1. While one of the two walks has not begun, the entries taken of the other are those handed out.
//! 2. Where both have begun, `ahead` is the next entry of the walk up, if there is one, and `failed` the errors before it.
//! 3. `last_down` is the key that the walk down handed out last. Every entry handed out by the walk up sorts before it.
//! 4. Once `has_ended` is set, nothing but `failed` is handed out.

use std::collections::VecDeque;
use std::convert::identity;
use std::marker::PhantomData;

use bytes::Bytes;

use crate::StateError;
use crate::aligned::{aligned_copy, is_aligned};
use crate::snapshot::expect_sound;
use crate::typed::{ReadValue, decode};
#[cfg(doc)]
use crate::{SnapshotSource, StateStore};

/// An ordered iterator over entries, as [`StateStore`](crate::StateStore) returns it from its scans.
pub type Entries<'a> = Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

/// An iterator over entries in ascending order of keys, which can also be walked from its end.
///
/// It comes from [`StateStore::entries`], [`StateStoreExt::scan`](crate::StateStoreExt::scan) and the scans of a
/// [`StateSnapshot`](crate::StateSnapshot). `.rev()` gives the entries in descending order. A walk in one direction costs
/// one search, a walk from both ends two.
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
    entries: Inner<'a>,
}

enum Inner<'a> {
    Store(Box<dyn DoubleEndedIterator<Item = (Bytes, Bytes)> + 'a>),
    /// Entries of a snapshot: errors become panics.
    Snapshot(TryScan<'a>),
}

impl<'a> Scan<'a> {
    /// Makes a scan of an iterator over entries in strictly ascending order of keys: for stores of your own.
    pub fn new(entries: impl DoubleEndedIterator<Item = (Bytes, Bytes)> + 'a) -> Self {
        Self { entries: Inner::Store(Box::new(entries)) }
    }

    /// Makes a scan of a snapshot's entries. It panics where one cannot be read.
    pub(crate) fn of_snapshot(entries: TryScan<'a>) -> Self {
        Self { entries: Inner::Snapshot(entries) }
    }

    /// Makes a scan of an iterator that only walks up, over entries in strictly ascending order of keys: for stores of
    /// your own.
    ///
    /// The first step from the end buffers all entries that are left.
    pub fn buffered(entries: impl Iterator<Item = (Bytes, Bytes)> + 'a) -> Self {
        Self::new(Buffered::new(entries))
    }

    /// Makes a scan of two walks over the same entries: for stores of your own that walk in one direction at a time.
    ///
    /// `ascending` makes an iterator over all entries in strictly ascending order of keys, `descending` one in the opposite
    /// order. Each is called when the scan is first asked for an entry at its end.
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

/// An iterator over entries whose medium can fail, in ascending order of keys, which can also be walked from its end.
///
/// Values are aligned on their way out. It comes from the `try_` scans of a [`StateSnapshot`](crate::StateSnapshot) and
/// the scans of an [`UnverifiedImage`](crate::UnverifiedImage). An item is an error where a part of the medium could not
/// be read, in the place of all its entries; the iterator goes on behind it.
#[must_use = "iterators are lazy"]
pub struct TryScan<'a> {
    entries: Box<dyn DoubleEndedIterator<Item = Result<(Bytes, Bytes), StateError>> + 'a>,
}

impl<'a> TryScan<'a> {
    /// Makes a scan of an iterator over entries in strictly ascending order of keys: for a [`SnapshotSource`] of your own.
    pub fn new(entries: impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StateError>> + 'a) -> Self {
        Self { entries: Box::new(entries) }
    }

    /// Makes a scan of two walks over the same entries, as [`Scan::of_both_directions`] does: for a [`SnapshotSource`] of
    /// your own.
    pub fn of_both_directions<A, D>(ascending: impl FnOnce() -> A + 'a, descending: impl FnOnce() -> D + 'a) -> Self
    where
        A: Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a,
        D: Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a,
    {
        Self::new(TwoEnds::new((), |()| ascending(), |()| descending()))
    }

    /// Makes a scan of an iterator that only walks up, as [`Scan::buffered`] does: for a [`SnapshotSource`] of your own.
    pub fn buffered(entries: impl Iterator<Item = Result<(Bytes, Bytes), StateError>> + 'a) -> Self {
        Self::new(Buffered::new(entries))
    }
}

/// An iterator over entries with their values as `T`s, in ascending order of keys, which can also be walked from its end.
///
/// It comes from [`StateStoreExt::scan_typed`](crate::StateStoreExt::scan_typed) and
/// [`StateSnapshot::scan_typed`](crate::StateSnapshot::scan_typed). An item is [`StateError::WrongType`] where the value is
/// no `T`; the iterator goes on behind it.
#[must_use = "iterators are lazy"]
pub struct TypedScan<'a, T> {
    entries: TryScan<'a>,
    value: PhantomData<fn() -> T>,
}

impl<'a, T> TypedScan<'a, T> {
    pub(crate) fn new(entries: TryScan<'a>) -> Self {
        Self { entries, value: PhantomData }
    }
}

impl Iterator for Inner<'_> {
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

impl DoubleEndedIterator for Inner<'_> {
    #[inline]
    fn next_back(&mut self) -> Option<(Bytes, Bytes)> {
        match self {
            Self::Store(entries) => entries.next_back(),
            Self::Snapshot(entries) => entries.next_back().map(expect_sound),
        }
    }
}

/// Aligns the value of an entry, as it is handed out. In place, for entries are large to move.
#[inline]
fn handed_out(mut entry: Option<Result<(Bytes, Bytes), StateError>>) -> Option<Result<(Bytes, Bytes), StateError>> {
    if let Some(Ok((_, value))) = &mut entry {
        if !is_aligned(value) {
            *value = aligned_copy(value);
        }
    }
    entry
}

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
    ['a] TryScan<'a> => Result<(Bytes, Bytes), StateError>, handed_out;
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

/// An iterator that walks down, too, by buffering all items that are left.
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

/// An item with a key, if it is no error.
pub(crate) trait Keyed {
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

/// One iterator of a walk up and a walk down over the same entries, which are made of `bounds` when they are asked for.
pub(crate) struct TwoEnds<A: Iterator, D, B, U, W> {
    bounds: B,
    /// Makes the walk up, until it is there.
    make_up: Option<U>,
    up: Option<A>,
    ahead: Option<A::Item>,
    failed: VecDeque<A::Item>,
    /// Makes the walk down, until it is there.
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

    /// Takes the next entry of the walk up, and the errors before it.
    fn look_ahead(&mut self) {
        let Some(up) = &mut self.up else { return };
        self.ahead = loop {
            match up.next() {
                Some(error) if error.key().is_none() => self.failed.push_back(error),
                next => break next,
            }
        };
    }

    /// Ends both walks, but for errors that are not handed out yet.
    fn end(&mut self) {
        (self.has_ended, self.ahead) = (true, None);
    }

    /// Takes a step up that is the first, or comes after a step down.
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
        // Where the walk up is at its end, there is nothing between the two.
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

    /// An entry with this key, or an error.
    fn item(key: u32, is_error: bool) -> Item {
        if is_error { Err(key) } else { Ok((Bytes::copy_from_slice(&key.to_be_bytes()), Bytes::new())) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However steps from both ends follow each other, every entry comes once, in order, and nothing comes after the end.
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

        /// Errors between the ends come at least once, in their place; entries still come once.
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
