//! Walking the sorted index in order, up or down.
//!
//! # Design
//!
//! A cursor is the path to a leaf: the inner nodes from the root down, and which child was taken in each. Beside it is
//! the rest of the leaf's ids. The end of the range is found without comparing each key. Each lowest inner node is
//! asked once which of its children the end is in, and that leaf is asked once how many of its keys lie before the end.
//!
//! # Why this and not the other way
//!
//! A second descent could find the end beforehand. Those who stop after a few entries would pay for its cache misses,
//! as many as in a lookup.
//!
//! # Invariants
//!
//! 1. `path[..depth]` leads from the root to the current leaf.
//! 2. All ids of the range that come before the rest of `run` were returned.
//! 3. If `done`, no id that comes after `run` is in the range.

use std::borrow::Cow;
use std::slice;

use super::keys::{Boundary, Keys};
use super::leaf::Leaf;
use super::node::{Child, Inner};
use crate::bounds::{KeyBounds, prefix_end};
use crate::hot::entry_id::EntryId;

/// More levels than a tree can have: two neighbours hold at least 17 children together, so each level has several times
/// the nodes of the level above, and there are less than 2^32 ids.
const MAX_DEPTH: usize = 24;

/// A [`Boundary`] that may own its key.
struct CowBoundary<'a> {
    key: Cow<'a, [u8]>,
    is_after: bool,
}

impl<'a> CowBoundary<'a> {
    fn new(Boundary { key, is_after }: Boundary<'a>) -> Self {
        Self { key: key.into(), is_after }
    }

    fn copy_of(Boundary { key, is_after }: Boundary<'_>) -> Self {
        Self { key: key.to_vec().into(), is_after }
    }

    fn get(&self) -> Boundary<'_> {
        Boundary { key: &self.key, is_after: self.is_after }
    }
}

/// The ids of a range, in ascending order of their keys, or in descending order.
pub(in super::super) struct Ids<'a, K, const L: usize, const I: usize, const DESCENDING: bool = false> {
    keys: &'a K,
    /// Where the walk ends: the upper end of the range, or the lower end in a descending walk.
    end: Option<CowBoundary<'a>>,
    path: [Option<&'a Inner<L, I>>; MAX_DEPTH],
    taken: [u8; MAX_DEPTH],
    depth: usize,
    /// The child of the lowest inner node that `end` is in. If `end` is beyond that node, its outermost child.
    last_child: usize,
    /// The ids of the current leaf that are still to be returned, in ascending order.
    run: slice::Iter<'a, EntryId>,
    done: bool,
}

impl<'a, K: Keys, const L: usize, const I: usize> Ids<'a, K, L, I> {
    /// Returns the ids of the keys in `range`.
    pub(super) fn new(root: Option<&'a Child<L, I>>, keys: &'a K, range: KeyBounds<'a>) -> Self {
        let end = Boundary::of_upper(range.1).map(CowBoundary::new);
        Self::between(root, keys, Boundary::of_lower(range.0), end)
    }

    /// Returns the ids of the keys that start with `prefix`.
    pub(super) fn starting_with(root: Option<&'a Child<L, I>>, keys: &'a K, prefix: &'a [u8]) -> Self {
        let end = prefix_end(prefix).map(|key| CowBoundary { key: key.into(), is_after: false });
        Self::between(root, keys, Some(Boundary { key: prefix, is_after: false }), end)
    }
}

impl<'a, K: Keys, const L: usize, const I: usize, const DESCENDING: bool> Ids<'a, K, L, I, DESCENDING> {
    /// Returns the ids of the keys in `range`, and copies its bounds.
    pub(super) fn with_copied_bounds(root: Option<&'a Child<L, I>>, keys: &'a K, range: KeyBounds<'_>) -> Self {
        let (low, high) = (Boundary::of_lower(range.0), Boundary::of_upper(range.1));
        let (start, end) = if DESCENDING { (high, low) } else { (low, high) };
        Self::between(root, keys, start, end.map(CowBoundary::copy_of))
    }

    fn between(
        root: Option<&'a Child<L, I>>,
        keys: &'a K,
        start: Option<Boundary<'_>>,
        end: Option<CowBoundary<'a>>,
    ) -> Self {
        let is_empty = start
            .zip(end.as_ref())
            .is_some_and(|(start, end)| if DESCENDING { end.get() >= start } else { start >= end.get() });
        let mut ids = Self {
            keys,
            end,
            path: [None; MAX_DEPTH],
            taken: [0; MAX_DEPTH],
            depth: 0,
            last_child: 0,
            run: [].iter(),
            done: true,
        };
        if let Some(root) = root.filter(|_| !is_empty) {
            ids.descend(root, start);
        }
        ids
    }

    /// Returns the next ids that lie together in memory, in ascending order; `None` at the end, never an empty slice.
    ///
    /// The caller can prefetch their records, and may ask for further ids meanwhile.
    pub(in super::super) fn next_slice(&mut self) -> Option<&'a [EntryId]> {
        while self.run.as_slice().is_empty() {
            if self.done {
                return None;
            }
            self.next_leaf();
        }
        let run = self.run.as_slice();
        self.run = [].iter();
        Some(run)
    }

    /// Returns what [`next_slice`](Self::next_slice) does, and `true` if that is a whole leaf of a tree of `len` ids.
    pub(super) fn next_in_leaf(&mut self, len: usize) -> Option<(&'a [EntryId], bool)> {
        let run = self.next_slice()?;
        let leaf_len = self.lowest().map_or(len, |(inner, at)| inner.child(at).len());
        Some((run, run.len() == leaf_len))
    }

    /// Goes down to the leaf that `start` is in, or to the first leaf of the walk.
    fn descend(&mut self, mut child: &'a Child<L, I>, start: Option<Boundary<'_>>) {
        loop {
            match child {
                Child::Inner(node) => {
                    let inner = node.get();
                    let at = match start {
                        Some(start) => inner.rank(start.key, inner.fence_prefix),
                        None if DESCENDING => inner.len() - 1,
                        None => 0,
                    };
                    self.path[self.depth] = Some(inner);
                    self.taken[self.depth] = at as u8;
                    self.depth += 1;
                    child = inner.child(at);
                }
                Child::Leaf(node) => {
                    node.prefetch();
                    let leaf = node.get();
                    if let Some((inner, _)) = self.lowest() {
                        // The end need not lie between this node's fence keys, so nothing is known about its prefix.
                        self.last_child = self.end.as_ref().map_or(0, |end| inner.rank(&end.key, 0));
                    }
                    let first = match start {
                        Some(start) => leaf.rank(self.keys, start, leaf.fence_prefix),
                        None if DESCENDING => leaf.len(),
                        None => 0,
                    };
                    return self.enter(leaf, first);
                }
            }
        }
    }

    /// Returns the lowest inner node on the path, and which of its children was taken.
    fn lowest(&self) -> Option<(&'a Inner<L, I>, usize)> {
        let level = self.depth.checked_sub(1)?;
        self.path[level].zip(Some(usize::from(self.taken[level])))
    }

    /// Makes `leaf` the current leaf. Of its ids those before `first` come later or never, in the order of the walk.
    fn enter(&mut self, leaf: &'a Leaf<L>, first: usize) {
        let ids = leaf.ids();
        let (next, may_have_end) = match self.lowest() {
            Some((inner, at)) if DESCENDING => (at.checked_sub(1).map(|next| inner.child(next)), at <= self.last_child),
            Some((inner, at)) => {
                (Some(at + 1).filter(|&next| next < inner.len()).map(|next| inner.child(next)), at >= self.last_child)
            }
            None => (None, true),
        };
        let end = self.end.as_ref().filter(|_| may_have_end);
        let to = match end {
            Some(end) => leaf.rank(self.keys, end.get(), 0),
            None if DESCENDING => 0,
            None => ids.len(),
        };
        let (run, is_cut_off) =
            if DESCENDING { (&ids[to.min(first)..first], to > 0) } else { (&ids[first.min(to)..to], to < ids.len()) };
        self.run = run.iter();
        // In the node's outermost child, an end beyond all keys may lie in a later node.
        self.done = is_cut_off || end.is_some() && next.is_some();
        if let Some(Child::Leaf(next)) = next.filter(|_| !self.done) {
            next.prefetch();
        }
    }

    #[inline(never)]
    fn next_leaf(&mut self) {
        let mut level = self.depth;
        while let Some(above) = level.checked_sub(1) {
            let at = usize::from(self.taken[above]);
            let next = if DESCENDING { at.checked_sub(1) } else { Some(at + 1) };
            let next = next.zip(self.path[above]).filter(|&(next, inner)| next < inner.len());
            if let Some((next, inner)) = next {
                self.taken[above] = next as u8;
                match inner.child(next) {
                    Child::Leaf(node) => {
                        let leaf = node.get();
                        self.enter(leaf, if DESCENDING { leaf.len() } else { 0 });
                    }
                    child => {
                        self.depth = level;
                        self.descend(child, None);
                    }
                }
                return;
            }
            level = above;
        }
        self.done = true;
    }
}

impl<K: Keys, const L: usize, const I: usize, const DESCENDING: bool> Iterator for Ids<'_, K, L, I, DESCENDING> {
    type Item = EntryId;

    #[inline]
    fn next(&mut self) -> Option<EntryId> {
        loop {
            let next = if DESCENDING { self.run.next_back() } else { self.run.next() };
            if let Some(&id) = next {
                return Some(id);
            }
            if self.done {
                return None;
            }
            self.next_leaf();
        }
    }
}
