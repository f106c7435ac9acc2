//! [`Overlay`]: the entries of a snapshot with the changes of deltas laid over them.
//!
//! # Design
//!
//! Applying a delta keeps the base unchanged and stores the changes beside it, in order; reading merges the two. So
//! applying costs time for the changes only, and reads return slices of the bytes of the base and of the delta.
//!
//! A chain of deltas would make a chain of overlays. A new overlay therefore absorbs those below it that have at most
//! twice as many changes. Each remaining overlay is more than twice as large as the one above, so there are O(log n) of
//! them, and a change is copied O(log n) times.
//!
//! # Invariants
//!
//! 1. Keys of `changes` strictly ascend and are within the limit, values as well.
//! 2. `len` and `size_bytes` describe the entries after the changes.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::sorted::within;
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds};
use crate::error::StateError;
use crate::scan::{TryScan, TwoEnds};
use crate::source::{SnapshotSource, Source};

/// A changed key with its new value, or `None` if it was deleted.
pub(crate) type KeyChange = (Bytes, Option<Bytes>);

/// A source with changes laid over its entries.
pub(crate) struct Overlay {
    base: Arc<dyn Source>,
    changes: Vec<KeyChange>,
    len: usize,
    size_bytes: usize,
}

impl Overlay {
    /// Lays `changes` over `base`. Their keys must strictly ascend; `len` and `size_bytes` describe the resulting
    /// entries.
    pub(crate) fn new(base: Arc<dyn Source>, changes: Vec<KeyChange>, len: usize, size_bytes: usize) -> Self {
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

/// Returns all changes of both lists. If a key is in both, the change of `above` counts.
fn merged(below: &[KeyChange], above: Vec<KeyChange>) -> Vec<KeyChange> {
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

/// Looks up each changed key in `source`, in order. Calls `f` with the key's index in `changes` and its old value.
///
/// Stops when `f` breaks. Costs a lookup for each key, or a scan of all of the source if that is cheaper.
pub(crate) fn find_all<T>(
    source: &dyn Source,
    changes: &[(Bytes, T)],
    f: &mut dyn FnMut(usize, Option<&[u8]>) -> ControlFlow<()>,
) -> Result<(), StateError> {
    /// The number of scanned entries that cost about as much as one lookup.
    const LOOKUP: usize = 16;
    if changes.len() < source.len() / LOOKUP {
        for (index, (key, _)) in changes.iter().enumerate() {
            if f(index, source.try_get(key)?.as_deref()).is_break() {
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

/// Merges changes with the entries of a base, both in one direction. A key compares as `first` with those behind it.
fn laid_over<'a>(
    changes: impl Iterator<Item = &'a KeyChange>,
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

impl SnapshotSource for Overlay {
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

    fn verify(&self) -> Result<(), StateError> {
        self.base.verify()
    }
}

impl Source for Overlay {
    fn can_fail(&self) -> bool {
        self.base.can_fail()
    }
}
