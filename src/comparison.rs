//! [`Comparison`]: the keys whose values differ between two sources.
//!
//! A comparison lists the keys whose values differ, in order. It refers to both values in their sources and copies
//! none. Two sources that share memory can compare only the parts that they do not share; any other two are read side
//! by side. Both ways give the same result, because it depends on the contents alone.

use std::ops::Range;

use crate::handles::CowBytes;

/// The kinds of changes of a key, numbered as in the image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Delete = 0,
    Insert = 1,
    Update = 2,
}

impl ChangeKind {
    /// Returns the kind with this number, or `None` if there is none.
    pub(crate) fn of(byte: u8) -> Option<Self> {
        [Self::Delete, Self::Insert, Self::Update].into_iter().find(|&kind| kind as u8 == byte)
    }

    /// Returns the kind of a change from `old` to `new`, or `None` if neither is there.
    pub(crate) fn between<V>(old: Option<V>, new: Option<V>) -> Option<Self> {
        match (old, new) {
            (None, None) => None,
            (None, Some(_)) => Some(Self::Insert),
            (Some(_), Some(_)) => Some(Self::Update),
            (Some(_), None) => Some(Self::Delete),
        }
    }
}

/// The number of keys that differ, by kind of change, and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) inserts: usize,
    pub(crate) updates: usize,
    pub(crate) deletes: usize,
    /// The sum of the lengths of these keys and of their new values.
    pub(crate) size_bytes: usize,
}

impl Counts {
    /// Returns the number of keys that differ.
    pub(crate) fn len(&self) -> usize {
        self.inserts + self.updates + self.deletes
    }

    /// Counts a key whose value differs, given the length of the key and of each value that is there.
    pub(crate) fn add(&mut self, key: usize, old: Option<usize>, new: Option<usize>) {
        match ChangeKind::between(old, new) {
            Some(ChangeKind::Insert) => self.inserts += 1,
            Some(ChangeKind::Update) => self.updates += 1,
            Some(ChangeKind::Delete) => self.deletes += 1,
            None => return,
        }
        self.size_bytes += key + new.unwrap_or(0);
    }
}

/// A key with its old and its new value, as they are stored in the sources.
pub(crate) type Compared<'a> = (CowBytes<'a>, Option<CowBytes<'a>>, Option<CowBytes<'a>>);

/// The differences between two sources: immutable, in strictly ascending order of keys.
pub(crate) trait Comparison: Send + Sync + 'static {
    /// Returns the number of differences, by kind of change.
    fn counts(&self) -> Counts;

    /// Returns the difference at `index`, which must be below the number of differences.
    fn at(&self, index: usize) -> Compared<'_>;

    /// Prefetches the memory of differences that are about to be read.
    fn prefetch(&self, indices: Range<usize>) {
        let _ = indices;
    }
}
