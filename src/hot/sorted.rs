//! The sorted index: the ids of a store's entries in the order of their keys.
//!
//! # Design
//!
//! A copy-on-write B+tree of ids. It holds no whole keys: a leaf has a few bytes of each, and reads the others through
//! [`Keys`] where those do not decide. Inner nodes own their separators, which are as short as possible.
//!
//! ```text
//!   view ──────┐            ┌────── index                    a snapshot was taken, then an entry was added to leaf B
//!              v            v
//!          ┌───────┐    ┌───────┐
//!          │ inner │    │ inner'│                            the first change after a snapshot copies its path
//!          └┬──┬──┬┘    └┬──┬──┬┘
//!           │  │  └──────┼──┼──┤
//!           ├──┼─────────┘  │  │
//!           v  v            v  v
//!           A  B            B' C                             the rest is shared
//! ```
//!
//! A leaf has no pointer to the next one, because a copy of the next one would change it. Cursors keep a stack instead.
//!
//! Prefix truncation, key heads and shortest separators are described in G. Graefe, *Modern B-Tree Techniques* (2011).
//! Heads of four bytes in fixed slots are LeanStore's (Leis et al., ICDE 2018).
//!
//! A removal joins small nodes on its way down, before anything is removed. So each copy that it makes may fail, and
//! the tree is whole. A leaf whose ids are all to be removed goes in one descent, and is neither changed nor copied.
//!
//! # Why this and not the other way
//!
//! A `BTreeSet` of keys holds each key a second time in an allocation of its own: some 60 bytes an entry, here 12 to
//! 18. It reads one of them for each comparison, a cache miss each. And it cannot be shared with a snapshot.
//!
//! Two neighbours are joined when one is at most a quarter full and both fit in half a node. Single entries do not move
//! from a full neighbour to a small one, which would guarantee that each node is a quarter full. Here a leaf with one
//! entry may stay beside a full one. That costs at most the small leaf, and saves a copy of the full one and a change
//! of the separator. At the very worst leaves are about an eighth full on average (invariant 4), which only deletions
//! with that aim reach.
//!
//! # Invariants
//!
//! 1. The ids in the leaves are in strictly ascending order of their keys; `len` counts them.
//! 2. Every key is at or above the separators left of it and below those right of it.
//! 3. All leaves are `height` levels down; no node is empty; an inner root has at least two children.
//! 4. Two neighbouring children of one node together hold more than a quarter of what one can hold.
//! 5. All keys of a leaf, and all separators of an inner node, share their first `prefix` bytes. A slot's head is the
//!    next four bytes, padded with zeros. An unused slot has the greatest head there is.
//! 6. The separators left and right of a node share at least `fence_prefix` bytes. At either end of the tree that is 0.
//! 7. `allocated` is the size of all nodes and their separators.
//! 8. An inner node holds exactly the children that it counts.
//! 9. For each key of a leaf but the first, `shared` and `next_bytes` are correct, or `shared` is `UNKNOWN`.

mod bulk;
mod cursor;
mod fill;
mod head;
mod keys;
mod leaf;
mod node;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod validate;
mod writer;

pub(super) use self::cursor::Ids;
pub(super) use self::keys::Keys;
use self::leaf::Leaf;
use self::node::{Child, Inner};
use self::writer::Writer;
use super::entry_id::EntryId;
use super::epochs::Epochs;
use crate::bounds::KeyBounds;

/// The ids of entries in the order of their keys, with leaves of up to `L` ids and inner nodes of up to `I` children.
///
/// Call [`clear`](Self::clear) before dropping it, or its nodes are never freed.
pub(super) struct SortedIndex<const L: usize = 64, const I: usize = 64> {
    view: SortedView<L, I>,
    height: usize,
    allocated: usize,
}

/// A readable version of an index: the current one, or that of a snapshot as long as its guard lives.
pub(super) struct SortedView<const L: usize = 64, const I: usize = 64> {
    root: Option<Child<L, I>>,
    len: usize,
}

/// The root of an index during a change. Dropping this restores invariant 3, also where an allocation failed.
struct Root<'i, K, const L: usize, const I: usize> {
    child: &'i mut Option<Child<L, I>>,
    height: &'i mut usize,
    writer: Writer<'i, K>,
}

impl<K, const L: usize, const I: usize> Drop for Root<'_, K, L, I> {
    fn drop(&mut self) {
        // A root has one child after a removal, or if an allocation failed that was to split a new root's first child.
        while let Some(Child::Inner(node)) = self.child {
            if node.get().len() > 1 {
                return;
            }
            let only = node.get().child(0).alias();
            self.child.replace(only).into_iter().for_each(|root| root.retire(&mut self.writer));
            *self.height -= 1;
        }
        if let Some(empty) = self.child.take_if(|root| root.len() == 0) {
            empty.retire(&mut self.writer);
            *self.height = 0;
        }
    }
}

impl<const L: usize, const I: usize> SortedIndex<L, I> {
    const SIZES_FIT: () = assert!(L >= 3 && L <= 1 << 12 && I >= 3 && I <= 256, "the nodes' counters hold such sizes");

    /// Makes an empty index. Allocates nothing.
    pub(super) fn new() -> Self {
        const { Self::SIZES_FIT };
        Self { view: SortedView { root: None, len: 0 }, height: 0, allocated: 0 }
    }

    /// Returns the current version, to be read.
    pub(super) fn view(&self) -> &SortedView<L, I> {
        &self.view
    }

    pub(super) fn len(&self) -> usize {
        self.view.len
    }

    /// Returns the bytes of the current version's nodes, in **O(1)**. Nodes that only snapshots see are not counted.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated
    }

    /// Adds `id`, in **O(log n)**. No other id in the index has its `key`.
    ///
    /// Allocates only where a node is split or is shared with a snapshot. If that fails, `id` has not been added.
    pub(super) fn insert<K: Keys>(&mut self, epochs: &Epochs, keys: &K, key: &[u8], id: EntryId) {
        let mut root = self.root(epochs, keys);
        if let Some(child) = root.child {
            while child.insert(&mut root.writer, key, id).is_err() {
                // The root is full. A new root above it can split it.
                *child = Child::Inner(root.writer.new_node(Inner::with_child(child.alias())));
                *root.height += 1;
            }
        } else {
            *root.child = Some(Child::Leaf(root.writer.new_node(Leaf::single(key, id))));
            *root.height = 1;
        }
        drop(root);
        self.view.len += 1;
    }

    /// Removes `id`, which is in the index with this `key`, in **O(log n)**. `keys` must still have the key of `id`.
    ///
    /// Allocates only for nodes that are shared with a snapshot and where nodes are joined. If that fails, `id` has not
    /// been removed.
    pub(super) fn remove<K: Keys>(&mut self, epochs: &Epochs, keys: &K, key: &[u8], id: EntryId) {
        let mut root = self.root(epochs, keys);
        let Some(child) = root.child else { return };
        child.remove::<false, K>(&mut root.writer, key, &[id]);
        drop(root);
        self.view.len -= 1;
    }

    /// Puts the id `new` in the place of `old`, which is in the index with this `key`, in **O(log n)**.
    ///
    /// Allocates only for nodes that are shared with a snapshot. If that fails, nothing has been replaced.
    pub(super) fn replace(&mut self, epochs: &Epochs, key: &[u8], old: EntryId, new: EntryId) {
        if let Some(root) = &mut self.view.root {
            root.replace(epochs, key, old, new);
        }
    }

    /// Removes all ids of a leaf at once, in **O(log n)**. `keys` must still have their keys.
    ///
    /// `ids` is a whole leaf, as [`SortedView::first_leaf`] returns it. Returns `false` and removes nothing if the leaf
    /// cannot go: if without it two small leaves would be neighbours, or if it has been joined with another one. Then
    /// [`remove`](Self::remove) removes its ids.
    ///
    /// Allocates only for nodes that are shared with a snapshot and where inner nodes are joined. If that fails, nothing
    /// has been removed.
    pub(super) fn remove_leaf<K: Keys>(&mut self, epochs: &Epochs, keys: &K, ids: &[EntryId]) -> bool {
        let Some(&first) = ids.first() else { return false };
        let mut root = self.root(epochs, keys);
        let is_removed = match root.child {
            Some(Child::Leaf(node)) if node.get().ids() == ids => {
                root.child.take().into_iter().for_each(|leaf| leaf.retire(&mut root.writer));
                *root.height = 0;
                true
            }
            Some(child) => child.remove::<true, K>(&mut root.writer, keys.key(first), ids),
            None => false,
        };
        drop(root);
        self.view.len -= if is_removed { ids.len() } else { 0 };
        is_removed
    }

    fn root<'i, K>(&'i mut self, epochs: &'i Epochs, keys: &'i K) -> Root<'i, K, L, I> {
        let writer = Writer { epochs, keys, allocated: &mut self.allocated };
        Root { child: &mut self.view.root, height: &mut self.height, writer }
    }

    /// Makes an index of `ids`, which are in the order of their keys, in **O(n)**. Its nodes are nine tenths full.
    pub(super) fn bulk<K: Keys>(epochs: &Epochs, keys: &K, ids: impl Iterator<Item = EntryId>) -> Self {
        let mut index = Self::new();
        let ids: Vec<EntryId> = ids.collect();
        let writer = Writer { epochs, keys, allocated: &mut index.allocated };
        (index.view.root, index.height) = bulk::build(writer, &ids);
        index.view.len = ids.len();
        index
    }

    /// Removes all ids, in **O(n)**. Allocates nothing.
    pub(super) fn clear(&mut self, epochs: &Epochs) {
        let mut writer = Writer { epochs, keys: &(), allocated: &mut self.allocated };
        self.view.root.take().into_iter().for_each(|root| root.retire_subtree(&mut writer));
        debug_assert_eq!(self.allocated, 0);
        *self = Self::new();
    }

    /// Returns the current version for a snapshot, in **O(1)**. The snapshot's guard must be made before the next
    /// change.
    pub(super) fn freeze(&self) -> SortedView<L, I> {
        SortedView { root: self.view.root.as_ref().map(Child::alias), len: self.view.len }
    }
}

impl<const L: usize, const I: usize> SortedView<L, I> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the ids whose keys are in `range`, in order. Finding the first takes **O(log n)**.
    pub(super) fn range<'a, K: Keys>(&'a self, keys: &'a K, range: KeyBounds<'a>) -> Ids<'a, K, L, I> {
        Ids::new(self.root.as_ref(), keys, range)
    }

    /// Returns the ids of the first leaf that has keys in `range`, as far as they are in it, and `true` if that is the
    /// whole leaf.
    ///
    /// Computes in **O(log n)**. Returns `None` if no key is in `range`.
    pub(super) fn first_leaf<'a, K: Keys>(
        &'a self,
        keys: &'a K,
        range: KeyBounds<'a>,
    ) -> Option<(&'a [EntryId], bool)> {
        Ids::new(self.root.as_ref(), keys, range).next_in_leaf(self.len)
    }

    /// Returns the ids whose keys are in `range`, in order, and copies the bounds.
    ///
    /// Finding the first takes **O(log n)**.
    pub(super) fn range_of_copy<'a, K: Keys>(&'a self, keys: &'a K, range: KeyBounds<'_>) -> Ids<'a, K, L, I> {
        Ids::with_copied_bounds(self.root.as_ref(), keys, range)
    }

    /// Returns the ids whose keys are in `range`, in descending order, and copies the bounds.
    ///
    /// Finding the first takes **O(log n)**.
    pub(super) fn range_down<'a, K: Keys>(&'a self, keys: &'a K, range: KeyBounds<'_>) -> Ids<'a, K, L, I, true> {
        Ids::with_copied_bounds(self.root.as_ref(), keys, range)
    }

    /// Returns the ids whose keys start with `prefix`, in order. Finding the first takes **O(log n)**.
    pub(super) fn prefix<'a, K: Keys>(&'a self, keys: &'a K, prefix: &'a [u8]) -> Ids<'a, K, L, I> {
        Ids::starting_with(self.root.as_ref(), keys, prefix)
    }
}
