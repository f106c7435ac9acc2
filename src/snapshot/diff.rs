//! [`Difference`]: a key that differs between two snapshots.
//!
//! Two snapshots that share memory compare only the memory that they do not share ([`Source::compare`]). Any other two
//! are read side by side ([`TryJoin`]). Both ways give the same result.

use std::cmp::Ordering;
use std::iter::{self, Peekable};
use std::sync::Arc;
use std::vec;

use bytes::Bytes;

use super::state_snapshot::StateSnapshot;
use crate::bounds::ALL_KEYS;
use crate::comparison::{ChangeKind, Compared, Comparison, Counts};
use crate::error::{StateError, expect_sound};
use crate::handles::{Batch, CowBytes, MAX_BATCH, MAX_UNUSED};
use crate::scan::{TryScan, opaque};
use crate::source::Source;

/// A key that differs between two snapshots, with its values in both.
///
/// A value is `None` if the snapshot has no entry for the key. The two values are never equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Bytes,
    /// The value in the earlier snapshot.
    pub old: Option<Bytes>,
    /// The value in the later snapshot.
    pub new: Option<Bytes>,
}

/// An iterator over the differences between two snapshots, in the order of keys.
///
/// Created by [`StateSnapshot::diff`](crate::StateSnapshot::diff).
#[must_use = "iterators are lazy"]
pub struct Differences<'a> {
    differences: TryDifferences<'a>,
}

impl Iterator for Differences<'_> {
    type Item = Difference;

    fn next(&mut self) -> Option<Difference> {
        self.differences.next().map(expect_sound)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.differences.size_hint()
    }
}

/// An iterator over the differences between two snapshots whose media can fail, in the order of keys.
///
/// Created by [`StateSnapshot::try_diff`](crate::StateSnapshot::try_diff).
#[must_use = "iterators are lazy"]
pub struct TryDifferences<'a> {
    differences: Box<dyn Iterator<Item = Result<Difference, StateError>> + 'a>,
}

impl<'a> TryDifferences<'a> {
    /// Creates an iterator over differences in order of keys.
    pub(crate) fn new(differences: impl Iterator<Item = Result<Difference, StateError>> + 'a) -> Self {
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

/// Calls `f` with every difference in order, until `f` returns `false`.
pub(crate) fn visit_differences<'a>(comparison: &'a dyn Comparison, f: &mut dyn FnMut(Compared<'a>) -> bool) {
    let len = comparison.counts().len();
    for start in (0..len).step_by(MAX_BATCH) {
        let run = start..len.min(start + MAX_BATCH);
        comparison.prefetch(run.clone());
        for index in run {
            if !f(comparison.at(index)) {
                return;
            }
        }
    }
}

/// A changed key, the kind of its change, its old value and its new value.
type ChangeHandle = (Bytes, ChangeKind, Option<Bytes>, Option<Bytes>);

/// An iterator over a shared comparison that returns handles. Old values are left out unless they are asked for.
pub(crate) struct ChangeHandles {
    comparison: Arc<dyn Comparison>,
    /// `true` if old values are asked for.
    with_old: bool,
    /// The index of the first difference after the run.
    next: usize,
    /// The rest of the run: the kind of each change, and `true` for the old and for the new value if it is there.
    changes: vec::IntoIter<(ChangeKind, bool, bool)>,
    parts: Batch<{ 3 * MAX_BATCH }>,
    /// The length of the next run. The first runs are short, for callers that stop early.
    run_len: usize,
}

impl ChangeHandles {
    /// Creates an iterator over the differences of `of`.
    pub(crate) fn new(comparison: Arc<dyn Comparison>, with_old: bool) -> Self {
        Self { comparison, with_old, next: 0, changes: Vec::new().into_iter(), parts: Batch::new(), run_len: 4 }
    }

    /// Makes handles of the next run of differences.
    fn next_run(&mut self) {
        let end = self.comparison.counts().len().min(self.next + self.run_len);
        let indices = self.next..end;
        self.comparison.prefetch(indices.clone());
        self.parts.begin(if self.run_len < MAX_BATCH { 4 } else { 1 });
        let changes = indices.filter_map(|index| {
            let (key, old, new) = self.comparison.at(index);
            let change = ChangeKind::between(old.as_ref(), new.as_ref())?;
            let old = old.filter(|_| self.with_old);
            let are_there = (change, old.is_some(), new.is_some());
            self.parts.push_key(key);
            [old, new].into_iter().flatten().for_each(|value| self.parts.push_value(value));
            Some(are_there)
        });
        self.changes = changes.collect::<Vec<_>>().into_iter();
        self.parts.end(MAX_UNUSED);
        self.next = end;
        self.run_len = (self.run_len * 4).min(MAX_BATCH);
    }
}

impl Iterator for ChangeHandles {
    type Item = ChangeHandle;

    fn next(&mut self) -> Option<ChangeHandle> {
        if self.changes.len() == 0 {
            self.next_run();
        }
        let (change, has_old, has_new) = self.changes.next()?;
        let key = self.parts.next_key()?;
        let mut value = |is_there: bool| if is_there { self.parts.next_value() } else { None };
        Some((key, change, value(has_old), value(has_new)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.changes.len() + self.comparison.counts().len() - self.next;
        (left, Some(left))
    }
}

/// An iterator over the differences between two sources, which are read side by side.
///
/// Nothing follows an error, because it is not known what the damaged part held.
pub(crate) struct TryJoin<'a> {
    old: Peekable<TryScan<'a>>,
    new: Peekable<TryScan<'a>>,
    has_failed: bool,
}

impl<'a> TryJoin<'a> {
    /// Creates an iterator over the differences from `old` to `new`.
    pub(crate) fn new(old: &'a dyn Source, new: &'a dyn Source) -> Self {
        Self { old: old.try_scan(ALL_KEYS).peekable(), new: new.try_scan(ALL_KEYS).peekable(), has_failed: false }
    }

    /// Returns the next difference, or `None` at the end.
    fn next_difference(&mut self) -> Result<Option<Difference>, StateError> {
        loop {
            let order = match (self.old.peek(), self.new.peek()) {
                (None, None) => return Ok(None),
                (Some(Ok((old, _))), Some(Ok((new, _)))) => old.cmp(new),
                // An error is taken first, whichever source it is in: it may stand for keys that sort before the other
                // source's.
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

/// The differences between any two sources, found by reading both.
pub(crate) struct Joined {
    differences: Vec<Difference>,
    counts: Counts,
}

impl Joined {
    /// Collects differences in strictly ascending order of keys. Costs as much as `differences`.
    pub(crate) fn new(differences: impl Iterator<Item = Difference>) -> Self {
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

    fn at(&self, index: usize) -> Compared<'_> {
        let Difference { key, old, new } = &self.differences[index];
        (CowBytes::Lent(key), old.as_ref().map(CowBytes::Lent), new.as_ref().map(CowBytes::Lent))
    }
}

impl StateSnapshot {
    /// Iterates over the differences from `earlier`, in the order of keys.
    ///
    /// Costs as much as [`delta_since`](Self::delta_since). Snapshots that share nothing are read as the iterator
    /// advances.
    ///
    /// ```
    /// use opstate::{Difference, StateSnapshot};
    ///
    /// let earlier = StateSnapshot::from_iter([("a", "1"), ("b", "1"), ("c", "1")]);
    /// let later = StateSnapshot::from_iter([("b", "2"), ("c", "1"), ("d", "1")]);
    /// let differences: Vec<_> = later.diff(&earlier).collect();
    /// assert_eq!(differences, [
    ///     Difference { key: "a".into(), old: Some("1".into()), new: None },
    ///     Difference { key: "b".into(), old: Some("1".into()), new: Some("2".into()) },
    ///     Difference { key: "d".into(), old: None, new: Some("1".into()) },
    /// ]);
    /// ```
    pub fn diff<'a>(&'a self, earlier: &'a Self) -> Differences<'a> {
        Differences { differences: self.try_diff(earlier) }
    }

    /// Iterates over the differences from `earlier`, if the medium of either snapshot can fail.
    ///
    /// Both snapshots are read once, in order, as the iterator advances.
    ///
    /// # Errors
    ///
    /// The first damage of either snapshot, after all differences before it; and [`StateError::Io`]. Nothing follows an
    /// error, because it is not known what the damaged part held.
    pub fn try_diff<'a>(&'a self, earlier: &'a Self) -> TryDifferences<'a> {
        match self.compare(earlier) {
            Some(comparison) => {
                let handles = ChangeHandles::new(comparison, true);
                TryDifferences::new(handles.map(|(key, _, old, new)| Ok(Difference { key, old, new })))
            }
            None => TryDifferences::new(TryJoin::new(&**earlier.source(), &**self.source())),
        }
    }

    /// Returns the differences from `earlier`, or `None` if finding them needs reading both snapshots.
    pub(crate) fn compare(&self, earlier: &Self) -> Option<Arc<dyn Comparison>> {
        if Arc::ptr_eq(self.source(), earlier.source()) {
            return Some(Arc::new(Joined::new(iter::empty())));
        }
        Arc::clone(self.source()).compare(earlier.source())
    }
}
