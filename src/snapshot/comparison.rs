//! [`Comparison`]: what differs between two sources, and the way that works for any two.
//!
//! # Design
//!
//! A comparison lists the keys whose values differ, in order, by place: it names both values where they lie and copies
//! none. Two sources that share something know how to compare themselves in what they do not share
//! ([`Source::compare`]); any other two are walked side by side here ([`Joined`]). Whichever way is taken, the result is
//! the same, because it is a function of both contents alone.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;

use super::segment::ChangeKind;
use super::{Source, expect_sound};
use crate::bounds::ALL_KEYS;
use crate::handles::{LONGEST_RUN, Part, Run};
use crate::scan::opaque;
use crate::{StateError, TryScan};

/// A key that differs between two snapshots, with its values in both.
///
/// A value is `None` where there is no entry; the two are never equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Bytes,
    /// The value in the earlier snapshot.
    pub old: Option<Bytes>,
    /// The value in the later snapshot.
    pub new: Option<Bytes>,
}

impl From<HandedOne> for Difference {
    fn from((key, _, old, new): HandedOne) -> Self {
        Self { key, old, new }
    }
}

/// An iterator over the differences between two snapshots, in the order of keys, as
/// [`StateSnapshot::diff`](crate::StateSnapshot::diff) returns it.
#[must_use = "iterators are lazy"]
pub struct Differences<'a> {
    differences: Box<dyn Iterator<Item = Difference> + 'a>,
}

impl<'a> Differences<'a> {
    pub(super) fn new(differences: impl Iterator<Item = Difference> + 'a) -> Self {
        Self { differences: Box::new(differences) }
    }
}

impl Iterator for Differences<'_> {
    type Item = Difference;

    fn next(&mut self) -> Option<Difference> {
        self.differences.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.differences.size_hint()
    }
}

/// An iterator over the differences between two snapshots whose media can fail, in the order of keys, as
/// [`StateSnapshot::try_diff`](crate::StateSnapshot::try_diff) returns it.
#[must_use = "iterators are lazy"]
pub struct TryDifferences<'a> {
    differences: Box<dyn Iterator<Item = Result<Difference, StateError>> + 'a>,
}

impl<'a> TryDifferences<'a> {
    pub(super) fn new(differences: impl Iterator<Item = Result<Difference, StateError>> + 'a) -> Self {
        Self { differences: Box::new(differences) }
    }
}

impl Iterator for TryDifferences<'_> {
    type Item = Result<Difference, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.differences.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.differences.size_hint()
    }
}

opaque! {
    ['a] Differences<'a>;
    ['a] TryDifferences<'a>;
}

/// How many keys differ, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) inserts: usize,
    pub(crate) updates: usize,
    pub(crate) deletes: usize,
    /// The sum of the lengths of all those keys and of the new values.
    pub(crate) size_bytes: usize,
}

impl Counts {
    pub(crate) fn len(&self) -> usize {
        self.inserts + self.updates + self.deletes
    }

    /// Counts in a key whose value differs, by the lengths of what is there.
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

/// A key with its old and its new value, as they lie in the sources.
pub(crate) type Compared<'a> = (Part<'a>, Option<Part<'a>>, Option<Part<'a>>);

/// The differences between two sources: immutable, in strictly ascending order of keys.
pub(crate) trait Comparison: Send + Sync + 'static {
    fn counts(&self) -> Counts;

    /// The difference at this place, which is below the number of them.
    fn at(&self, place: usize) -> Compared<'_>;

    /// Asks for the memory of the differences at these places, which are looked at soon.
    fn prefetch(&self, places: Range<usize>) {
        let _ = places;
    }
}

/// Calls `f` with every difference in order, until it breaks.
pub(super) fn visit_differences<'a>(comparison: &'a dyn Comparison, f: &mut dyn FnMut(Compared<'a>) -> bool) {
    let len = comparison.counts().len();
    for start in (0..len).step_by(LONGEST_RUN) {
        let run = start..len.min(start + LONGEST_RUN);
        comparison.prefetch(run.clone());
        for place in run {
            if !f(comparison.at(place)) {
                return;
            }
        }
    }
}

/// A key with what became of it, its old and its new value.
type HandedOne = (Bytes, ChangeKind, Option<Bytes>, Option<Bytes>);

/// Iterates over a comparison that it shares, as handles; the old values are left out where they are not asked for.
pub(super) struct Handed {
    of: Arc<dyn Comparison>,
    with_old: bool,
    next: usize,
    /// The rest of the run: the kind of each change, and `true` for each of the old and the new value that is there.
    changes: vec::IntoIter<(ChangeKind, bool, bool)>,
    parts: Run<{ 3 * LONGEST_RUN }>,
    /// How many the next run takes: few at first, for those who stop early.
    run_len: usize,
}

impl Handed {
    pub(super) fn new(of: Arc<dyn Comparison>, with_old: bool) -> Self {
        Self { of, with_old, next: 0, changes: Vec::new().into_iter(), parts: Run::new(), run_len: 4 }
    }

    fn next_run(&mut self) {
        let end = self.of.counts().len().min(self.next + self.run_len);
        let places = self.next..end;
        self.of.prefetch(places.clone());
        self.parts.begin(if self.run_len < LONGEST_RUN { 4 } else { 1 });
        let changes = places.filter_map(|place| {
            let (key, old, new) = self.of.at(place);
            let change = ChangeKind::between(old.as_ref(), new.as_ref())?;
            let old = old.filter(|_| self.with_old);
            let are_there = (change, old.is_some(), new.is_some());
            self.parts.push_key(key);
            [old, new].into_iter().flatten().for_each(|value| self.parts.push_value(value));
            Some(are_there)
        });
        self.changes = changes.collect::<Vec<_>>().into_iter();
        self.parts.end();
        self.next = end;
        self.run_len = (self.run_len * 4).min(LONGEST_RUN);
    }
}

impl Iterator for Handed {
    type Item = HandedOne;

    fn next(&mut self) -> Option<HandedOne> {
        if self.changes.len() == 0 {
            self.next_run();
        }
        let (change, has_old, has_new) = self.changes.next()?;
        let key = self.parts.next_key()?;
        let mut value = |is_there: bool| if is_there { self.parts.next_value() } else { None };
        Some((key, change, value(has_old), value(has_new)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.changes.len() + self.of.counts().len() - self.next;
        (left, Some(left))
    }
}

/// Walks two sources side by side and yields what differs, for those who have no error to return.
pub(super) struct Join<'a>(TryJoin<'a>);

impl<'a> Join<'a> {
    pub(super) fn new(old: &'a dyn Source, new: &'a dyn Source) -> Self {
        Self(TryJoin::new(old, new))
    }
}

impl Iterator for Join<'_> {
    type Item = Difference;

    fn next(&mut self) -> Option<Difference> {
        self.0.next().map(expect_sound)
    }
}

/// Walks two sources side by side and yields what differs. Nothing follows an error, for what the damaged part held is not
/// known to differ.
pub(super) struct TryJoin<'a> {
    old: Peekable<TryScan<'a>>,
    new: Peekable<TryScan<'a>>,
    has_failed: bool,
}

impl<'a> TryJoin<'a> {
    pub(super) fn new(old: &'a dyn Source, new: &'a dyn Source) -> Self {
        Self { old: old.try_scan(ALL_KEYS).peekable(), new: new.try_scan(ALL_KEYS).peekable(), has_failed: false }
    }

    fn next_difference(&mut self) -> Result<Option<Difference>, StateError> {
        loop {
            let order = match (self.old.peek(), self.new.peek()) {
                (None, None) => return Ok(None),
                (Some(Ok((old, _))), Some(Ok((new, _)))) => old.cmp(new),
                // An error is taken first, wherever it is: it stands for keys that may sort before the other's.
                (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
                (_, Some(Err(_))) | (None, Some(_)) => Ordering::Greater,
            };
            let old = self.old.next_if(|_| order.is_le()).transpose()?;
            let new = self.new.next_if(|_| order.is_ge()).transpose()?;
            let (key, old, new) = match (old, new) {
                (Some((key, old)), Some((_, new))) if old != new => (key, Some(old), Some(new)),
                (Some((key, old)), None) => (key, Some(old), None),
                (None, Some((key, new))) => (key, None, Some(new)),
                _ => continue,
            };
            return Ok(Some(Difference { key, old, new }));
        }
    }
}

impl Iterator for TryJoin<'_> {
    type Item = Result<Difference, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let next = self.next_difference();
        self.has_failed = next.is_err();
        next.transpose()
    }
}

/// The differences between any two sources, found by walking both.
pub(super) struct Joined {
    differences: Vec<Difference>,
    counts: Counts,
}

impl Joined {
    /// Takes differences in strictly ascending order of keys. O(n) in what has to be walked for them.
    pub(super) fn new(differences: impl Iterator<Item = Difference>) -> Self {
        let differences: Vec<_> = differences.collect();
        let mut counts = Counts::default();
        for Difference { key, old, new } in &differences {
            counts.add(key.len(), old.as_ref().map(Bytes::len), new.as_ref().map(Bytes::len));
        }
        Self { differences, counts }
    }
}

impl Comparison for Joined {
    fn counts(&self) -> Counts {
        self.counts
    }

    fn at(&self, place: usize) -> Compared<'_> {
        let Difference { key, old, new } = &self.differences[place];
        (Part::Lent(key), old.as_ref().map(Part::Lent), new.as_ref().map(Part::Lent))
    }
}
