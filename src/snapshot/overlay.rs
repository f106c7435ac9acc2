//! [`Overlay`]: the entries of a snapshot with the changes of deltas laid over them.
//!
//! # Design
//!
//! Applying a delta keeps the base unchanged and stores the changes beside it, in order; reading merges the two. So
//! applying costs time for the changes only.
//!
//! A chain of deltas would make a chain of overlays. A new overlay therefore absorbs those below it that have at most
//! twice as many changes. Each remaining overlay is more than twice as large as the one above, so there are O(log n) of
//! them, and a change is copied O(log n) times. A key that was inserted and deleted by absorbed changes leaves none: the
//! kind of a change tells that the source below has no such key.
//!
//! In the end most of the base may have been replaced or deleted. Once at most half of its bytes are left, and the
//! overlays together have as many changes as it has entries, they are merged with a copy of what is left, and let go of
//! it. So a copied byte or entry of the base is paid for by a dead one or by a change.
//!
//! # Invariants
//!
//! 1. The kinds of `changes` are true of `base`: keys that are inserted are not in it, others are.
//! 2. `len` and `size_bytes` describe the entries after the changes.
//! 3. `left` is the size of the entries of the lowest base that neither this overlay nor those below have changed.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::change_list::{ChangeList, Copies, KeyChange};
use super::sorted::SortedEntries;
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds};
use crate::comparison::ChangeKind;
use crate::error::StateError;
use crate::scan::{TryScan, TwoEnds};
use crate::source::{SnapshotSource, Source};

/// A source with changes laid over its entries.
pub(crate) struct Overlay {
    base: Arc<dyn Source>,
    changes: ChangeList,
    len: usize,
    size_bytes: usize,
    left: usize,
}

impl Overlay {
    /// Lays `changes`, which must be compact, over `base`. Their kinds must be true of it. `len` and `size_bytes` describe
    /// the resulting entries, and `left` the entries of the lowest base that are left.
    ///
    /// # Errors
    ///
    /// The errors of reading the base, if what is left of it is to be copied.
    pub(crate) fn new(
        base: Arc<dyn Source>,
        changes: ChangeList,
        (len, size_bytes): (usize, usize),
        left: usize,
    ) -> Result<Self, StateError> {
        let mut overlay = Self { base, changes, len, size_bytes, left };
        let outweighs_base = overlay.outweighs_base();
        let mut has_absorbed = false;
        while let Some(below) = Self::of(&overlay.base) {
            if below.changes.len() > 2 * overlay.changes.len() && !outweighs_base {
                break;
            }
            overlay.changes = ChangeList::compose(&below.changes, overlay.changes)?;
            overlay.base = Arc::clone(&below.base);
            has_absorbed = true;
        }
        if outweighs_base {
            overlay = overlay.without_base()?;
        } else if has_absorbed {
            overlay.changes.compact();
        }
        #[cfg(test)]
        overlay.validate();
        Ok(overlay)
    }

    /// Copies all entries of `source`, so that it need not be kept.
    pub(crate) fn copy_of(source: Arc<dyn Source>) -> Result<Self, StateError> {
        let (len, size_bytes) = (source.len(), source.size_bytes());
        Self { base: source, changes: ChangeList::default(), len, size_bytes, left: size_bytes }.without_base()
    }

    /// Returns the overlay that `source` is, if it is one.
    pub(crate) fn of(source: &Arc<dyn Source>) -> Option<Arc<Self>> {
        Arc::clone(source).into_any().downcast().ok()
    }

    /// Returns the overlays that `source` consists of, the highest first, and the lowest base.
    pub(crate) fn layers_of(source: &Arc<dyn Source>) -> (Vec<Arc<Self>>, Arc<dyn Source>) {
        let (mut layers, mut base) = (Vec::new(), Arc::clone(source));
        while let Some(overlay) = Self::of(&base) {
            base = Arc::clone(&overlay.base);
            layers.push(overlay);
        }
        (layers, base)
    }

    /// Returns the size of the entries of the lowest base that are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Returns `true` if `key` is among the changes of this overlay. O(log n).
    pub(crate) fn has_changed(&self, key: &[u8]) -> bool {
        self.changes.find(key).is_some()
    }

    /// Returns the source that the changes are laid over.
    pub(crate) fn base(&self) -> &Arc<dyn Source> {
        &self.base
    }

    /// Returns `true` if copying what is left of the lowest base costs no more than the changes and what is dead of it.
    fn outweighs_base(&self) -> bool {
        let (layers, base) = Self::layers_of(&self.base);
        let changes = layers.iter().fold(self.changes.len(), |sum, layer| sum + layer.changes.len());
        !base.is_empty() && changes >= base.len() && self.left <= base.size_bytes() / 2
    }

    /// Returns the same entries with copies of those of the base.
    fn without_base(self) -> Result<Self, StateError> {
        let (mut left, mut changes) = (Copies::empty(), self.changes.iter().peekable());
        let replaced = self.changes.iter().filter(|(_, change)| change.kind != ChangeKind::Insert).count();
        if replaced != self.base.len() || self.left > 0 {
            self.base.try_visit(ALL_KEYS, &mut |key, value| {
                while changes.next_if(|(changed, _)| changed[..] < *key).is_some() {}
                if changes.peek().is_none_or(|(changed, _)| changed[..] != *key) {
                    left.push(key, ChangeKind::Insert, value);
                }
                ControlFlow::Continue(())
            })?;
        }
        let mut changes = ChangeList::compose(&left.finish(), self.changes.into_insertions())?;
        changes.compact();
        let (len, size_bytes) =
            (changes.len(), changes.iter().map(|(key, change)| key.len() + change.value.len()).sum());
        Ok(Self { base: Arc::new(SortedEntries::default()), changes, len, size_bytes, left: 0 })
    }

    /// Checks the invariants.
    #[cfg(test)]
    fn validate(&self) {
        if self.can_fail() {
            return;
        }
        for (key, change) in self.changes.iter() {
            let is_there = self.base.try_get(key).expect("reads cannot fail").is_some();
            assert_eq!(is_there, change.kind != ChangeKind::Insert, "invariant 1");
        }
        let (mut len, mut size_bytes) = (0, 0);
        let read = self.try_visit(ALL_KEYS, &mut |key, value| {
            (len, size_bytes) = (len + 1, size_bytes + key.len() + value.len());
            ControlFlow::Continue(())
        });
        read.expect("reads cannot fail");
        assert_eq!((self.len, self.size_bytes), (len, size_bytes), "invariant 2");
        let (layers, base) = Self::layers_of(&self.base);
        let mut left = 0;
        let read = base.try_visit(ALL_KEYS, &mut |key, value| {
            if !self.has_changed(key) && !layers.iter().any(|layer| layer.has_changed(key)) {
                left += key.len() + value.len();
            }
            ControlFlow::Continue(())
        });
        read.expect("reads cannot fail");
        assert_eq!(self.left, left, "invariant 3");
    }
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
            if let Some((key, value)) = changes.next().and_then(|(key, change)| Some((key, change.new_value()?))) {
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
        match self.changes.find(key) {
            Some(change) => Ok(change.new_value().cloned()),
            None => self.base.try_get(key),
        }
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let changes = self.changes.within(bounds).iter();
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
        let mut changes = self.changes.within(range).iter().peekable();
        let mut flow = ControlFlow::Continue(());
        self.base.try_visit(range, &mut |key, value| {
            while let Some((changed, change)) = changes.next_if(|(changed, _)| changed[..] <= *key) {
                if let Some(new) = change.new_value() {
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
        for (key, change) in changes {
            if flow.is_break() {
                break;
            }
            if let Some(new) = change.new_value() {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::delta::StateDelta;
    use super::super::state_snapshot::StateSnapshot;
    use super::*;

    type Model = BTreeMap<u8, (u8, usize)>;

    fn snapshot_of(model: &Model) -> StateSnapshot {
        model.iter().map(|(&key, &(byte, len))| (vec![key; 3], vec![byte; len])).collect()
    }

    /// Returns the changes in all overlays of a snapshot, and the entries of its lowest base.
    fn parts_of(snapshot: &StateSnapshot) -> (usize, usize) {
        let (layers, base) = Overlay::layers_of(snapshot.source());
        (layers.iter().map(|layer| layer.changes.len()).sum(), base.len())
    }

    fn any_model() -> impl Strategy<Value = Model> {
        let len = prop_oneof![4 => 0_usize..30, 1 => 400_usize..500, 1 => Just(70_000)];
        proptest::collection::btree_map(0_u8..60, (0_u8..4, len), 0..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Every overlay and every list checks its invariants when it is made.
        #[test]
        fn chains_keep_the_invariants(chain in proptest::collection::vec((any_model(), any::<bool>()), 2..12)) {
            let mut earlier = snapshot_of(&chain[0].0);
            let mut now = earlier.clone();
            for (model, is_opened) in &chain[1..] {
                let later = snapshot_of(model);
                let mut delta = later.delta_since(&earlier);
                if *is_opened {
                    delta = StateDelta::from_bytes(delta.to_bytes()).unwrap();
                }
                now = now.apply(&delta).unwrap();
                prop_assert_eq!(&now, &later);
                prop_assert_eq!(&snapshot_of(&chain[0].0).apply(&later.delta_since(&snapshot_of(&chain[0].0))).unwrap(), &later);
                earlier = later;
            }
        }
    }

    #[test]
    fn a_key_that_came_and_went_leaves_no_change() {
        let base: Model = (0..50).map(|key| (key, (0, 9))).collect();
        let (mut earlier, mut now) = (snapshot_of(&base), snapshot_of(&base));
        for round in 0..100_u8 {
            let mut model = base.clone();
            model.insert(100 + round, (1, 9));
            let later = snapshot_of(&model);
            now = now.apply(&later.delta_since(&earlier)).unwrap();
            earlier = later;
        }
        assert_eq!(parts_of(&now), (1, 50));
        assert_eq!(parts_of(&now.apply(&snapshot_of(&base).delta_since(&earlier)).unwrap()), (0, 50));
    }

    #[test]
    fn a_base_is_kept_while_more_than_half_of_it_is_left() {
        let base: Model = (0..40).map(|key| (key, (0, 7))).collect();
        for (gone, is_kept) in [(1, true), (19, true), (20, false), (40, false)] {
            let mut later: Model = base.iter().skip(gone).map(|(&key, &value)| (key, value)).collect();
            later.extend((0..40).map(|key| (100 + key, (1, 7))));
            let delta = snapshot_of(&later).delta_since(&snapshot_of(&base));
            let applied = snapshot_of(&base).apply(&delta).unwrap();
            assert_eq!(parts_of(&applied), if is_kept { (40 + gone, 40) } else { (80 - gone, 0) });
        }
    }
}
