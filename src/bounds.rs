//! Ranges of keys: [`KeyBounds`], which the contract of stores uses, and [`KeyRange`], which callers write.

use std::ops::{Bound, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use crate::limits::MAX_KEY_LEN;

/// The start and the end of a range of keys.
pub type KeyBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The bounds of all keys.
pub(crate) const ALL_KEYS: KeyBounds<'static> = (Bound::Unbounded, Bound::Unbounded);

/// A byte string that sorts after every key. It stands for "to the end" in a `Range`.
pub(crate) static BEYOND_EVERY_KEY: [u8; MAX_KEY_LEN + 1] = [0xFF; MAX_KEY_LEN + 1];

mod sealed {
    pub trait Sealed {}
}

/// A range of keys: `..`, a range of anything that is [`AsRef<[u8]>`](AsRef), or a pair of [`Bound`]s.
///
/// Methods that take a `KeyRange` copy the bounds, so temporaries work. The trait is sealed.
///
/// ```
/// use std::ops::Bound;
///
/// use opstate::{HotStore, StateStore, StateStoreExt};
///
/// let mut store = HotStore::new();
/// for time in [1_u64, 2, 3] {
///     store.put(&time.to_be_bytes(), b"")?;
/// }
/// assert_eq!(store.scan(..).count(), 3);
/// assert_eq!(store.scan(2_u64.to_be_bytes()..).count(), 2);
/// assert_eq!(store.scan(vec![0]..=vec![0; 9]).count(), 0);
/// assert_eq!(store.scan((Bound::Excluded(1_u64.to_be_bytes()), Bound::Unbounded)).count(), 2);
/// # Ok::<(), opstate::StateError>(())
/// ```
pub trait KeyRange: sealed::Sealed {
    /// Returns the bounds of the range.
    fn bounds(&self) -> KeyBounds<'_>;

    /// Returns `true` if the bounds are inverted, so that no key can match. `BTreeMap::range` panics for such bounds.
    ///
    /// ```
    /// use opstate::KeyRange;
    ///
    /// assert!((b"b"..b"a").is_inverted());
    /// assert!(!(b"a"..b"b").is_inverted());
    /// ```
    fn is_inverted(&self) -> bool {
        is_inverted(self.bounds())
    }
}

macro_rules! key_range {
    ($([$($generics:tt)*] $range:ty: |$self:ident| $bounds:expr;)*) => {$(
        impl<$($generics)*> sealed::Sealed for $range {}
        impl<$($generics)*> KeyRange for $range {
            fn bounds(&$self) -> KeyBounds<'_> {
                $bounds
            }
        }
    )*};
}

key_range! {
    [] RangeFull: |self| ALL_KEYS;
    [K: AsRef<[u8]>] Range<K>: |self| (Bound::Included(self.start.as_ref()), Bound::Excluded(self.end.as_ref()));
    [K: AsRef<[u8]>] RangeFrom<K>: |self| (Bound::Included(self.start.as_ref()), Bound::Unbounded);
    [K: AsRef<[u8]>] RangeInclusive<K>: |self| (Bound::Included(self.start().as_ref()), Bound::Included(self.end().as_ref()));
    [K: AsRef<[u8]>] RangeTo<K>: |self| (Bound::Unbounded, Bound::Excluded(self.end.as_ref()));
    [K: AsRef<[u8]>] RangeToInclusive<K>: |self| (Bound::Unbounded, Bound::Included(self.end.as_ref()));
    [K: AsRef<[u8]>] (Bound<K>, Bound<K>): |self| (as_slice(&self.0), as_slice(&self.1));
    [R: KeyRange + ?Sized] &R: |self| (**self).bounds();
}

/// Returns a bound as one over a slice.
fn as_slice<K: AsRef<[u8]>>(bound: &Bound<K>) -> Bound<&[u8]> {
    bound.as_ref().map(AsRef::as_ref)
}

/// A copy of the bounds, for iterators that outlive them.
#[derive(Clone)]
pub(crate) struct OwnedBounds {
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
}

impl OwnedBounds {
    /// Copies `bounds`.
    pub(crate) fn copy_of((start, end): KeyBounds<'_>) -> Self {
        Self { start: start.map(<[u8]>::to_vec), end: end.map(<[u8]>::to_vec) }
    }

    /// Returns the bounds as borrowed ones.
    pub(crate) fn get(&self) -> KeyBounds<'_> {
        (as_slice(&self.start), as_slice(&self.end))
    }

    /// Moves the start to just behind `key`.
    pub(crate) fn start_after(&mut self, key: &[u8]) {
        self.start = Bound::Excluded(key.to_vec());
    }
}

/// Returns `true` if the bounds are inverted, so that no key can match.
pub(crate) fn is_inverted(range: KeyBounds<'_>) -> bool {
    match range {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
    }
}

/// Returns `true` if `key` lies before a range that starts at `start`.
#[inline]
pub(crate) fn is_before_start(start: Bound<&[u8]>, key: &[u8]) -> bool {
    match start {
        Bound::Unbounded => false,
        Bound::Included(bound) => key < bound,
        Bound::Excluded(bound) => key <= bound,
    }
}

/// Returns `true` if `key` lies before the end of a range that ends at `end`.
#[inline]
pub(crate) fn is_before_end(end: Bound<&[u8]>, key: &[u8]) -> bool {
    match end {
        Bound::Unbounded => true,
        Bound::Included(bound) => key <= bound,
        Bound::Excluded(bound) => key < bound,
    }
}

/// Returns the bounds of a half-open range.
pub(crate) fn half_open<'a>(range: Range<&'a [u8]>) -> KeyBounds<'a> {
    (Bound::Included(range.start), Bound::Excluded(range.end))
}

/// Returns the smallest byte string that sorts after every key with this prefix, or `None` if there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Calls `f` with the bounds of all keys that start with `prefix`.
pub(crate) fn with_prefix_bounds<R>(prefix: &[u8], f: impl FnOnce(KeyBounds<'_>) -> R) -> R {
    let end = prefix_end(prefix);
    f((Bound::Included(prefix), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded)))
}
