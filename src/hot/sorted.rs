//! The sorted index: the ids of a store's entries in the order of their keys.
//!
//! # Design
//!
//! A copy-on-write B+tree of `u32` ids. It holds no keys: a leaf has five bytes of each, and asks the caller's [`Keys`]
//! when those do not tell. Inner nodes own their separators, the shortest that tell left from right.
//!
//! ```text
//!   view ──────┐            ┌────── index                    a snapshot was taken, then an entry was added to leaf B
//!              v            v
//!          ┌───────┐    ┌───────┐
//!          │ inner │    │ inner'│                            the path to the change is copied, once a snapshot
//!          └┬──┬──┬┘    └┬──┬──┬┘
//!           │  │  └──────┼──┼──┤
//!           ├──┼─────────┘  │  │
//!           v  v            v  v
//!           A  B            B' C                             the rest is shared
//! ```
//!
//! A leaf has no pointer to the next one, because a copy of the next would change it: cursors keep a stack.
//!
//! Prefix truncation, heads and shortest separators are described in G. Graefe, *Modern B-Tree Techniques* (2011); heads
//! of four bytes in fixed slots are LeanStore's (Leis et al., ICDE 2018).
//!
//! # Why this and not the other way
//!
//! A `BTreeSet` of keys holds each key a second time in an allocation of its own (some 60 bytes an entry, here 12 to 18),
//! reads one of them for each comparison (a cache miss each), and cannot be shared with a snapshot.
//!
//! Deletion joins two neighbours when both fit in half a node. It does not move single entries from a full neighbour to
//! a small one, which would guarantee that each node is a quarter full: here a leaf with one entry may stay beside a
//! full one. That costs at most the small leaf, and saves a copy of the full one and a change of the separator. At
//! the very worst leaves are about an eighth full on average (invariant 4), which takes deletions with that aim.
//!
//! # Invariants
//!
//! 1. The ids in the leaves are in strictly ascending order of their keys; `len` counts them.
//! 2. Every key is at or above the separators left of it and below those right of it.
//! 3. All leaves are `height` levels down; no node is empty; an inner root has two children or more (but one, where there was
//!    no memory to split that).
//! 4. Two neighbouring children of one node together hold more than a quarter of what one can hold (or did, before a deletion
//!    for which there was no memory to join them).
//! 5. All keys of a leaf, and all separators of an inner node, share their first `prefix` bytes. A slot's head is the
//!    next four bytes, padded with zeros; that of an unused slot is the greatest there is.
//! 6. The separators left and right of a node share at least `fenced` bytes; at either end of the tree that is 0.
//! 7. `allocated` is what the nodes and their separators take.
//! 8. An inner node holds exactly the children that it counts.
//! 9. What a leaf says of how many bytes a key shares with the one before it, and of the byte behind those, is true or
//!    `UNKNOWN`; of its first key it says nothing.

mod cursor;
mod leaf;
mod node;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod validate;

use std::mem;
use std::ops::Bound;

pub(super) use self::cursor::{Ids, IdsDown};
use self::leaf::Leaf;
use self::node::{Child, Inner, common, separator, short};
use super::versions::{Node, Versions, footprint};
use crate::bounds::KeyBounds;

/// Where the keys of entries are.
pub(super) trait Keys {
    fn key(&self, id: u32) -> &[u8];

    /// Says that the key of `id` is asked for soon.
    #[inline]
    fn prefetch(&self, id: u32) {
        let _ = id;
    }
}

/// The ids of entries in the order of their keys, with leaves of up to `L` ids and inner nodes of up to `I` children.
///
/// It must be [cleared](Self::clear) before it is dropped, or its nodes are never freed.
pub(super) struct SortedIndex<const L: usize = 64, const I: usize = 64> {
    view: SortedView<L, I>,
    height: usize,
    allocated: usize,
}

/// Reads an index: the one that it is a part of, or as that was at one instant, as long as the claim lives that was made
/// then.
pub(super) struct SortedView<const L: usize = 64, const I: usize = 64> {
    root: Option<Child<L, I>>,
    len: usize,
}

/// The context of a change on its way down the tree.
struct Writer<'w, K> {
    versions: &'w Versions,
    keys: &'w K,
    /// The index's count of bytes, which stays true wherever a change ends for want of memory.
    allocated: &'w mut usize,
}

impl<K> Writer<'_, K> {
    fn node<T: Send + 'static>(&mut self, thing: T) -> Node<T> {
        let node = Node::new(thing, self.versions);
        *self.allocated += footprint::<T>();
        node
    }

    /// Lets go of one node, not of its children.
    fn retire<const L: usize, const I: usize>(&mut self, child: Child<L, I>) {
        match child {
            Child::Leaf(node) => {
                *self.allocated -= footprint::<Leaf<L>>();
                node.retire(self.versions);
            }
            Child::Inner(node) => {
                *self.allocated -= footprint::<Inner<L, I>>() + node.get().spare_bytes();
                node.retire(self.versions);
            }
        }
    }

    /// Lets go of a node and all that is below it.
    fn retire_all<const L: usize, const I: usize>(&mut self, child: Child<L, I>) {
        if let Child::Inner(node) = &child {
            node.get().children.iter().flatten().for_each(|below| self.retire_all(below.alias()));
        }
        self.retire(child);
    }
}

/// Nodes of an index that is not complete. If it never is, they are let go of.
struct Incomplete<'w, const L: usize, const I: usize> {
    writer: Writer<'w, ()>,
    nodes: Vec<Child<L, I>>,
}

impl<const L: usize, const I: usize> Incomplete<'_, L, I> {
    fn leaf(&mut self, leaf: Leaf<L>) -> Child<L, I> {
        self.nodes.reserve(1);
        let child = Child::Leaf(self.writer.node(leaf));
        self.nodes.push(child.alias());
        child
    }

    fn inner(&mut self, inner: Inner<L, I>) -> Child<L, I> {
        self.nodes.reserve(1);
        let spare = inner.spare_bytes();
        let child = Child::Inner(self.writer.node(inner));
        *self.writer.allocated += spare;
        self.nodes.push(child.alias());
        child
    }
}

impl<const L: usize, const I: usize> Drop for Incomplete<'_, L, I> {
    fn drop(&mut self) {
        self.nodes.drain(..).for_each(|node| self.writer.retire(node));
    }
}

impl<const L: usize, const I: usize> SortedIndex<L, I> {
    const SIZES_FIT: () = assert!(L >= 3 && L <= 1 << 12 && I >= 3 && I <= 256, "sizes that the nodes' counters hold");

    /// An empty index. Allocates nothing.
    pub(super) fn new() -> Self {
        const { Self::SIZES_FIT };
        Self { view: SortedView { root: None, len: 0 }, height: 0, allocated: 0 }
    }

    /// The index to be read.
    pub(super) fn view(&self) -> &SortedView<L, I> {
        &self.view
    }

    pub(super) fn len(&self) -> usize {
        self.view.len
    }

    /// The bytes of memory that the current version takes, in **O(1)**. Nodes that only snapshots see are not in it.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated
    }

    /// Adds `id`, whose `key` no other id in the index has, in **O(log n)**.
    ///
    /// Allocates only where a node is split or is shared with a snapshot. If there is no memory for that, no id has been
    /// added.
    pub(super) fn insert<K: Keys>(&mut self, versions: &Versions, keys: &K, key: &[u8], id: u32) {
        let mut writer = Writer { versions, keys, allocated: &mut self.allocated };
        if let Some(root) = &mut self.view.root {
            while root.insert(&mut writer, key, id).is_err() {
                // A root above it, which splits it.
                *root = Child::Inner(writer.node(Inner::over(root.alias())));
                self.height += 1;
            }
        } else {
            self.view.root = Some(Child::Leaf(writer.node(Leaf::one(key, id))));
            self.height = 1;
        }
        self.view.len += 1;
    }

    /// Removes `id`, which is in the index with this `key`, in **O(log n)**. Asks for the keys of ids that stay, only. If
    /// there is no memory for the copies of nodes that are shared with a snapshot, it has not been removed.
    pub(super) fn remove<K: Keys>(&mut self, versions: &Versions, keys: &K, key: &[u8], id: u32) {
        let mut writer = Writer { versions, keys, allocated: &mut self.allocated };
        let Some(root) = &mut self.view.root else { return };
        root.remove(&mut writer, key, id);
        self.view.len -= 1;
        loop {
            let only = match root {
                Child::Inner(node) if node.get().len() == 1 => node.get().child(0).alias(),
                _ => break,
            };
            writer.retire(mem::replace(root, only));
            self.height -= 1;
        }
        if root.len() == 0 {
            self.view.root.take().into_iter().for_each(|root| writer.retire(root));
            self.height = 0;
        }
    }

    /// The index of `ids`, which are in the order of their keys, with nodes nine tenths full, in **O(n)**.
    pub(super) fn bulk<K: Keys>(versions: &Versions, keys: &K, ids: impl ExactSizeIterator<Item = u32>) -> Self {
        let mut index = Self::new();
        let ids: Vec<u32> = ids.collect();
        index.view.len = ids.len();
        let writer = Writer { versions, keys: &(), allocated: &mut index.allocated };
        let mut made = Incomplete { writer, nodes: Vec::new() };

        // A separator begins the key of the first id behind it.
        let bytes = |&(id, len): &(u32, usize)| &keys.key(id)[..len];
        let shared =
            |separators: &[(u32, usize)], from: usize, to: usize| match (from.checked_sub(1), separators.get(to - 1)) {
                (Some(left), Some(right)) => short(common(bytes(&separators[left]), bytes(right))),
                _ => 0,
            };

        let leaves: Vec<_> = portions(ids.len(), L).collect();
        let mut separators: Vec<(u32, usize)> = Vec::with_capacity(leaves.len());
        for (at, &(_, end)) in leaves[..leaves.len().saturating_sub(1)].iter().enumerate() {
            if let Some(&(start, _)) = leaves.get(at + 9) {
                keys.prefetch(ids[start - 1]);
                keys.prefetch(ids[start]);
            }
            let (left, right) = (ids[end - 1], ids[end]);
            separators.push((right, separator(keys.key(left), keys.key(right)).len()));
        }
        let mut level: Vec<Child<L, I>> = Vec::with_capacity(leaves.len());
        for (at, &(start, end)) in leaves.iter().enumerate() {
            if let Some(&(start, end)) = leaves.get(at + 1) {
                ids[start..end].iter().for_each(|&id| keys.prefetch(id));
            }
            level.push(made.leaf(Leaf::of(keys, &ids[start..end], shared(&separators, at, at + 1))));
        }
        index.height = usize::from(!level.is_empty());

        while level.len() > 1 {
            let portions: Vec<_> = portions(level.len(), I).collect();
            let mut children = level.into_iter();
            let mut above = Vec::with_capacity(portions.len());
            for &(start, end) in &portions {
                let mut inner = children.next().map(Inner::over).expect("no portion is empty");
                for (separator, child) in separators[start..].iter().zip(children.by_ref().take(end - start - 1)) {
                    inner.push(bytes(separator), child);
                }
                inner.set_fenced(shared(&separators, start, end));
                above.push(made.inner(inner));
            }
            separators = portions[1..].iter().map(|&(start, _)| separators[start - 1]).collect();
            level = above;
            index.height += 1;
        }
        // All of them are below the root.
        made.nodes.clear();
        drop(made);
        index.view.root = level.pop();
        index
    }

    /// Removes all ids, in **O(n)**. Allocates nothing.
    pub(super) fn clear(&mut self, versions: &Versions) {
        let mut writer = Writer { versions, keys: &(), allocated: &mut self.allocated };
        self.view.root.take().into_iter().for_each(|root| writer.retire_all(root));
        debug_assert_eq!(self.allocated, 0);
        *self = Self::new();
    }

    /// The index as it is now, for a snapshot whose claim is made before the next change, in **O(1)**.
    pub(super) fn freeze(&self) -> SortedView<L, I> {
        SortedView { root: self.view.root.as_ref().map(Child::alias), len: self.view.len }
    }
}

impl<const L: usize, const I: usize> SortedView<L, I> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The ids whose keys are in `range`, in order. Finding the first takes **O(log n)**.
    pub(super) fn range<'a, K: Keys>(
        &'a self,
        keys: &'a K,
        range: (Bound<&'a [u8]>, Bound<&'a [u8]>),
    ) -> Ids<'a, K, L, I> {
        Ids::new(self.root.as_ref(), keys, range)
    }

    /// Returns the ids whose keys are in `range`, in order, and copies the bounds. Finding the first takes **O(log n)**.
    pub(super) fn range_of_copy<'a, K: Keys>(&'a self, keys: &'a K, range: KeyBounds<'_>) -> Ids<'a, K, L, I> {
        Ids::with_copied_bounds(self.root.as_ref(), keys, range)
    }

    /// Returns the ids whose keys are in `range`, in descending order, and copies the bounds. Finding the first takes
    /// **O(log n)**.
    pub(super) fn range_down<'a, K: Keys>(&'a self, keys: &'a K, range: KeyBounds<'_>) -> IdsDown<'a, K, L, I> {
        IdsDown::new(self.root.as_ref(), keys, range)
    }

    /// The ids whose keys start with `prefix`, in order. Finding the first takes **O(log n)**.
    pub(super) fn prefix<'a, K: Keys>(&'a self, keys: &'a K, prefix: &'a [u8]) -> Ids<'a, K, L, I> {
        Ids::starting_with(self.root.as_ref(), keys, prefix)
    }
}

/// Cuts `len` things into portions for nodes of this `capacity`, nine tenths full and as even as can be.
fn portions(len: usize, capacity: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = len.div_ceil((capacity * 9 / 10).max(2));
    (0..count).map(move |at| (len * at / count, len * (at + 1) / count))
}
