//! Walking the sorted index in order.
//!
//! # Design
//!
//! A cursor is the path to a leaf: the inner nodes from the root down with the child taken in each, and what is left of
//! the leaf's ids. Where the range ends is found without comparing keys: each lowest inner node is asked once which of
//! its children the end is in, and that leaf, once, how many of its keys are before it.
//!
//! # Why this and not the other way
//!
//! To find the end by a second descent beforehand would charge those who stop after a few entries with the cache misses
//! of a whole lookup.
//!
//! Walking down is a cursor of its own ([`IdsDown`]) and not another direction of the same one: what the two share is the
//! path, and the walk up is too hot for a branch in each step.
//!
//! # Invariants
//!
//! 1. `path[..depth]` leads from the root to the current leaf.
//! 2. All ids before the rest of `run` that are in the range were handed out.
//! 3. `done` says that no id behind `run` is in the range.

use std::borrow::Cow;
use std::ops::Bound;
use std::slice;

use super::Keys;
use super::leaf::Leaf;
use super::node::{Child, Cut, Inner};
use crate::bounds::{KeyBounds, prefix_end};

/// More levels than a tree can have: two neighbours hold at least 17 children together, so that each level has several
/// times the nodes of the one above, and there are less than 2^32 ids. (Where there was no memory for joins they may hold
/// less, but a level is only ever added above a full root.)
const MAX_DEPTH: usize = 24;

/// A cut that may own its key.
struct CowCut<'a> {
    key: Cow<'a, [u8]>,
    after: bool,
}

impl CowCut<'_> {
    fn copy_of(cut: Cut<'_>) -> Self {
        Self { key: cut.key.to_vec().into(), after: cut.after }
    }

    fn cut(&self) -> Cut<'_> {
        Cut { key: &self.key, after: self.after }
    }
}

/// The ids of a range, in the order of their keys.
pub(in super::super) struct Ids<'a, K, const L: usize = 64, const I: usize = 64> {
    keys: &'a K,
    end: Option<CowCut<'a>>,
    path: [Option<&'a Inner<L, I>>; MAX_DEPTH],
    taken: [u8; MAX_DEPTH],
    depth: usize,
    /// The child of the lowest inner node on the path that the end is in, if in one of them or before.
    stop: usize,
    run: slice::Iter<'a, u32>,
    done: bool,
}

impl<'a, K: Keys, const L: usize, const I: usize> Ids<'a, K, L, I> {
    pub(super) fn new(root: Option<&'a Child<L, I>>, keys: &'a K, range: (Bound<&'a [u8]>, Bound<&'a [u8]>)) -> Self {
        let end = cut(range.1, true).map(|Cut { key, after }| CowCut { key: key.into(), after });
        Self::between(root, keys, cut(range.0, false), end)
    }

    /// Returns the ids of a range whose bounds are copied.
    pub(super) fn with_copied_bounds(root: Option<&'a Child<L, I>>, keys: &'a K, range: KeyBounds<'_>) -> Self {
        let end = cut(range.1, true).map(CowCut::copy_of);
        Self::between(root, keys, cut(range.0, false), end)
    }

    /// The ids of the keys that start with `prefix`.
    pub(super) fn starting_with(root: Option<&'a Child<L, I>>, keys: &'a K, prefix: &'a [u8]) -> Self {
        let end = prefix_end(prefix).map(|key| CowCut { key: key.into(), after: false });
        Self::between(root, keys, Some(Cut { key: prefix, after: false }), end)
    }

    fn between(root: Option<&'a Child<L, I>>, keys: &'a K, start: Option<Cut<'_>>, end: Option<CowCut<'a>>) -> Self {
        let empty = start.zip(end.as_ref()).is_some_and(|(start, end)| start >= end.cut());
        let mut ids = Self {
            keys,
            end,
            path: [None; MAX_DEPTH],
            taken: [0; MAX_DEPTH],
            depth: 0,
            stop: 0,
            run: [].iter(),
            done: true,
        };
        if let Some(root) = root.filter(|_| !empty) {
            ids.descend(root, start);
        }
        ids
    }

    /// All ids up to the next that are together in memory; `None` at the end, never an empty run.
    ///
    /// A caller can prefetch what they name, and may ask for a further run meanwhile.
    pub(in super::super) fn next_run(&mut self) -> Option<&'a [u32]> {
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

    /// Goes down to the leaf that `start` is in.
    fn descend(&mut self, mut child: &'a Child<L, I>, start: Option<Cut<'_>>) {
        loop {
            match child {
                Child::Inner(node) => {
                    let inner = node.get();
                    let at = start.map_or(0, |start| inner.rank(start.key, inner.fenced));
                    self.path[self.depth] = Some(inner);
                    self.taken[self.depth] = at as u8;
                    self.depth += 1;
                    child = inner.child(at);
                }
                Child::Leaf(node) => {
                    node.prefetch();
                    let leaf = node.get();
                    if let Some((inner, _)) = self.lowest() {
                        // The end need not be between this node's separators, so nothing is known about its prefix.
                        self.stop = self.end.as_ref().map_or(usize::MAX, |end| inner.rank(&end.key, 0));
                    }
                    let from = start.map_or(0, |start| leaf.rank(self.keys, start, leaf.fenced));
                    return self.enter(leaf, from);
                }
            }
        }
    }

    /// The lowest inner node on the path, and which of its children was taken.
    fn lowest(&self) -> Option<(&'a Inner<L, I>, usize)> {
        let level = self.depth.checked_sub(1)?;
        self.path[level].zip(Some(usize::from(self.taken[level])))
    }

    fn enter(&mut self, leaf: &'a Leaf<L>, from: usize) {
        let ids = leaf.ids();
        let (at, last) = self.lowest().map_or((0, 0), |(inner, at)| (at, inner.len() - 1));
        let to = match &self.end {
            Some(end) if at >= self.stop => leaf.rank(self.keys, end.cut(), 0),
            _ => ids.len(),
        };
        // In the last child, an end behind all of its keys may be further on in the tree.
        self.done = to < ids.len() || (at >= self.stop && at < last);
        self.run = ids[from.min(to)..to].iter();
        if !self.done && at < last {
            if let Some(Child::Leaf(next)) = self.lowest().map(|(inner, at)| inner.child(at + 1)) {
                next.prefetch();
            }
        }
    }

    #[inline(never)]
    fn next_leaf(&mut self) {
        let mut level = self.depth;
        while let Some(above) = level.checked_sub(1) {
            let at = usize::from(self.taken[above]) + 1;
            if let Some(inner) = self.path[above].filter(|inner| at < inner.len()) {
                self.taken[above] = at as u8;
                match inner.child(at) {
                    Child::Leaf(node) => self.enter(node.get(), 0),
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

impl<K: Keys, const L: usize, const I: usize> Iterator for Ids<'_, K, L, I> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        loop {
            if let Some(&id) = self.run.next() {
                return Some(id);
            }
            if self.done {
                return None;
            }
            self.next_leaf();
        }
    }
}

/// The ids of a range, in the descending order of their keys.
///
/// This mirrors [`Ids`]: each lowest inner node is asked once which of its children the start is in.
pub(in super::super) struct IdsDown<'a, K, const L: usize = 64, const I: usize = 64> {
    keys: &'a K,
    start: Option<CowCut<'static>>,
    path: [Option<&'a Inner<L, I>>; MAX_DEPTH],
    taken: [u8; MAX_DEPTH],
    depth: usize,
    /// The child of the lowest inner node on the path that the start is in, if in one of them or behind.
    stop: usize,
    /// The ids of the current leaf that are still to be handed out, from the last to the first.
    run: &'a [u32],
    done: bool,
}

impl<'a, K: Keys, const L: usize, const I: usize> IdsDown<'a, K, L, I> {
    pub(super) fn new(root: Option<&'a Child<L, I>>, keys: &'a K, range: KeyBounds<'_>) -> Self {
        let (start, end) = (cut(range.0, false), cut(range.1, true));
        let empty = start.zip(end).is_some_and(|(start, end)| start >= end);
        let mut ids = Self {
            keys,
            start: start.map(CowCut::copy_of),
            path: [None; MAX_DEPTH],
            taken: [0; MAX_DEPTH],
            depth: 0,
            stop: 0,
            run: &[],
            done: true,
        };
        if let Some(root) = root.filter(|_| !empty) {
            ids.descend(root, end);
        }
        ids
    }

    /// Returns all ids down to the next that are together in memory, in ascending order; `None` at the end, never an empty
    /// run.
    pub(in super::super) fn next_run(&mut self) -> Option<&'a [u32]> {
        while self.run.is_empty() {
            if self.done {
                return None;
            }
            self.next_leaf();
        }
        Some(std::mem::take(&mut self.run))
    }

    /// Goes down to the leaf that `end` is in.
    fn descend(&mut self, mut child: &'a Child<L, I>, end: Option<Cut<'_>>) {
        loop {
            match child {
                Child::Inner(node) => {
                    let inner = node.get();
                    let at = end.map_or(inner.len() - 1, |end| inner.rank(end.key, inner.fenced));
                    self.path[self.depth] = Some(inner);
                    self.taken[self.depth] = at as u8;
                    self.depth += 1;
                    child = inner.child(at);
                }
                Child::Leaf(node) => {
                    node.prefetch();
                    let leaf = node.get();
                    if let Some((inner, _)) = self.lowest() {
                        // The start need not be between this node's separators, so nothing is known about its prefix.
                        self.stop = self.start.as_ref().map_or(0, |start| inner.rank(&start.key, 0));
                    }
                    let to = end.map_or(leaf.ids().len(), |end| leaf.rank(self.keys, end, leaf.fenced));
                    return self.enter(leaf, to);
                }
            }
        }
    }

    /// Returns the lowest inner node on the path, and which of its children was taken.
    fn lowest(&self) -> Option<(&'a Inner<L, I>, usize)> {
        let level = self.depth.checked_sub(1)?;
        self.path[level].zip(Some(usize::from(self.taken[level])))
    }

    fn enter(&mut self, leaf: &'a Leaf<L>, to: usize) {
        let at = self.lowest().map_or(0, |(_, at)| at);
        let from = match &self.start {
            Some(start) if at <= self.stop => leaf.rank(self.keys, start.cut(), 0),
            _ => 0,
        };
        // In the first child, a start before all of its keys may be further on in the tree.
        self.done = from > 0 || (self.start.is_some() && at <= self.stop && at > 0);
        self.run = &leaf.ids()[from.min(to)..to];
        if let Some((inner, at)) = self.lowest().filter(|&(_, at)| !self.done && at > 0) {
            if let Child::Leaf(next) = inner.child(at - 1) {
                next.prefetch();
            }
        }
    }

    #[inline(never)]
    fn next_leaf(&mut self) {
        let mut level = self.depth;
        while let Some(above) = level.checked_sub(1) {
            let at = usize::from(self.taken[above]);
            if let Some((inner, at)) = self.path[above].zip(at.checked_sub(1)) {
                self.taken[above] = at as u8;
                match inner.child(at) {
                    Child::Leaf(node) => {
                        let leaf = node.get();
                        self.enter(leaf, leaf.ids().len());
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

/// Where a range begins or ends; `None` at the end of all keys.
fn cut(bound: Bound<&[u8]>, is_end: bool) -> Option<Cut<'_>> {
    match bound {
        Bound::Included(key) => Some(Cut { key, after: is_end }),
        Bound::Excluded(key) => Some(Cut { key, after: !is_end }),
        Bound::Unbounded => None,
    }
}
