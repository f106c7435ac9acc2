//! [`Overlay`]: a snapshot's entries with the changes of deltas laid over them.
//!
//! # Design
//!
//! Applying a delta keeps the base as it is and the changes beside it, in order; reading merges the two. So it costs
//! what changed, and what it returns is read as it lies in the bytes of the base and of the delta.
//!
//! A chain of deltas would make a chain of overlays. Each new one therefore takes in those below it as long as they have at
//! most twice as many changes, so that each is more than twice as large as the one above, there are at most a logarithm
//! of them, and a change is copied a logarithm of times.
//!
//! # Invariants
//!
//! 1. Keys of `changes` strictly ascend and are within the limit, values as well.
//! 2. `len` and `size_bytes` are those of the entries that are seen.

use std::any::Any;
use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::sorted::within;
use super::{Fingerprint, Source};
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds};
use crate::scan::TwoEnds;
use crate::{StateError, TryScan};

/// A key with its new value, or without one if it was deleted.
pub(super) type Change = (Bytes, Option<Bytes>);

pub(super) struct Overlay {
    base: Arc<dyn Source>,
    changes: Vec<Change>,
    len: usize,
    size_bytes: usize,
}

impl Overlay {
    /// Lays `changes` in strictly ascending order of keys over `base`; `len` and `size_bytes` are what that gives.
    pub(super) fn new(base: Arc<dyn Source>, changes: Vec<Change>, len: usize, size_bytes: usize) -> Self {
        let mut overlay = Self { base, changes, len, size_bytes };
        loop {
            let Ok(below) = Arc::clone(&overlay.base).into_any().downcast::<Self>() else { return overlay };
            if below.changes.len() > 2 * overlay.changes.len() {
                return overlay;
            }
            overlay.changes = merged(&below.changes, overlay.changes);
            overlay.base = Arc::clone(&below.base);
        }
    }
}

/// All changes of both; for a key that is in both, that of `above`.
fn merged(below: &[Change], above: Vec<Change>) -> Vec<Change> {
    let mut merged = Vec::with_capacity(below.len() + above.len());
    let mut below = below.iter().peekable();
    for change in above {
        merged.extend(std::iter::from_fn(|| below.next_if(|(key, _)| *key < change.0).cloned()));
        below.next_if(|(key, _)| *key == change.0);
        merged.push(change);
    }
    merged.extend(below.cloned());
    merged
}

/// Calls `f` with the place of each key in `changes` and its value in `source`, in order, until `f` breaks.
///
/// Costs a lookup for each, or a walk over all of the source where that is less.
pub(super) fn find_all<T>(
    source: &dyn Source,
    changes: &[(Bytes, T)],
    f: &mut dyn FnMut(usize, Option<&[u8]>) -> ControlFlow<()>,
) -> Result<(), StateError> {
    /// A lookup costs about as much as walking over so many entries.
    const LOOKUP: usize = 16;
    if changes.len() < source.len() / LOOKUP {
        for (place, (key, _)) in changes.iter().enumerate() {
            if f(place, source.try_get(key)?.as_deref()).is_break() {
                break;
            }
        }
        return Ok(());
    }
    let (mut next, mut flow) = (0, ControlFlow::Continue(()));
    let mut step = |next: &mut usize, value: Option<&[u8]>| {
        *next += 1;
        flow = f(*next - 1, value);
        flow
    };
    source.try_visit(ALL_KEYS, &mut |key, value| {
        while let Some((other, _)) = changes.get(next) {
            match other[..].cmp(key) {
                Ordering::Less => step(&mut next, None)?,
                Ordering::Equal => return step(&mut next, Some(value)),
                Ordering::Greater => return ControlFlow::Continue(()),
            }
        }
        ControlFlow::Break(())
    })?;
    while next < changes.len() && flow.is_continue() {
        next += 1;
        flow = f(next - 1, None);
    }
    Ok(())
}

/// Merges changes with the entries of a base, both in one direction: a key comes `first` compared with those behind it.
fn laid_over<'a>(
    changes: impl Iterator<Item = &'a Change>,
    base: impl Iterator<Item = Result<(Bytes, Bytes), StateError>>,
    first: Ordering,
) -> impl Iterator<Item = Result<(Bytes, Bytes), StateError>> {
    let mut changes = changes.peekable();
    let mut base = base.peekable();
    std::iter::from_fn(move || {
        loop {
            let order = match (changes.peek(), base.peek()) {
                (None, _) | (_, Some(Err(_))) => return base.next(),
                (Some(_), None) => first,
                (Some((changed, _)), Some(Ok((key, _)))) => changed.cmp(key),
            };
            if order == Ordering::Equal {
                drop(base.next());
            } else if order != first {
                return base.next();
            }
            if let Some((key, Some(value))) = changes.next() {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    })
}

impl Source for Overlay {
    fn len(&self) -> usize {
        self.len
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        match self.changes.binary_search_by(|(other, _)| other[..].cmp(key)) {
            Ok(found) => Ok(self.changes[found].1.clone()),
            Err(_) => self.base.try_get(key),
        }
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let changes = within(&self.changes, bounds).iter();
        let changes_down = changes.clone().rev();
        TryScan::new(TwoEnds::new(
            OwnedBounds::copy_of(bounds),
            |bounds| laid_over(changes, self.base.try_scan(bounds.get()), Ordering::Less),
            |bounds| laid_over(changes_down, self.base.try_scan(bounds.get()).rev(), Ordering::Greater),
        ))
    }

    fn try_visit(
        &self,
        range: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let mut changes = within(&self.changes, range).iter().peekable();
        let mut flow = ControlFlow::Continue(());
        self.base.try_visit(range, &mut |key, value| {
            while let Some((changed, new)) = changes.next_if(|(changed, _)| changed[..] <= *key) {
                if let Some(new) = new {
                    flow = f(changed, new);
                    flow?;
                }
                if changed[..] == *key {
                    return ControlFlow::Continue(());
                }
            }
            flow = f(key, value);
            flow
        })?;
        for (key, new) in changes {
            if flow.is_break() {
                break;
            }
            if let Some(new) = new {
                flow = f(key, new);
            }
        }
        Ok(())
    }

    fn is_for_many_readers(&self) -> bool {
        self.base.is_for_many_readers()
    }

    fn can_fail(&self) -> bool {
        self.base.can_fail()
    }

    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        // The fingerprint of the base is not this one's.
        self.base.verify().map(|_| None)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
