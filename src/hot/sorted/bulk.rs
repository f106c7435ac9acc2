//! Building a tree bottom-up from ids that are in order.

use super::fill::even_ranges;
use super::head::{common_prefix_len, saturate, shortest_separator};
use super::keys::Keys;
use super::leaf::Leaf;
use super::node::{Child, Inner};
use super::writer::Writer;
use crate::hot::entry_id::EntryId;
use crate::hot::node::Contents as _;

/// Nodes of a tree that is being built. Retires them when dropped, unless they are [in the tree](Self::finish).
struct UnfinishedTree<'w, K, const L: usize, const I: usize> {
    writer: Writer<'w, K>,
    nodes: Vec<Child<L, I>>,
}

impl<K, const L: usize, const I: usize> UnfinishedTree<'_, K, L, I> {
    fn leaf(&mut self, leaf: Leaf<L>) -> Child<L, I> {
        self.nodes.reserve(1);
        let child = Child::Leaf(self.writer.new_node(leaf));
        self.nodes.push(child.alias());
        child
    }

    fn inner(&mut self, inner: Inner<L, I>) -> Child<L, I> {
        self.nodes.reserve(1);
        let heap_bytes = inner.heap_bytes();
        let child = Child::Inner(self.writer.new_node(inner));
        *self.writer.allocated += heap_bytes;
        self.nodes.push(child.alias());
        child
    }

    /// Call this when the root is made: all nodes are below it.
    fn finish(mut self) {
        self.nodes.clear();
    }
}

impl<K, const L: usize, const I: usize> Drop for UnfinishedTree<'_, K, L, I> {
    fn drop(&mut self) {
        self.nodes.drain(..).for_each(|node| node.retire(&mut self.writer));
    }
}

/// Builds a tree of `ids`, with nodes nine tenths full. Returns the root and the height, in **O(n)**.
pub(super) fn build<K: Keys, const L: usize, const I: usize>(
    writer: Writer<'_, K>,
    ids: &[EntryId],
) -> (Option<Child<L, I>>, usize) {
    let keys = writer.keys;
    let mut tree = UnfinishedTree { writer, nodes: Vec::new() };

    // A separator is the start of the key of the first id behind it: that id, and a length.
    let bytes = |&(id, len): &(EntryId, usize)| &keys.key(id)[..len];
    // How many bytes the separators share that are left and right of the nodes `from..to`.
    let fence_prefix = |separators: &[(EntryId, usize)], from: usize, to: usize| {
        let fences = from.checked_sub(1).zip(separators.get(to - 1));
        fences.map_or(0, |(left, right)| saturate(common_prefix_len(bytes(&separators[left]), bytes(right))))
    };

    let leaves: Vec<_> = even_ranges(ids.len(), L).collect();
    let mut separators: Vec<(EntryId, usize)> = Vec::with_capacity(leaves.len());
    for (at, &(_, end)) in leaves[..leaves.len().saturating_sub(1)].iter().enumerate() {
        if let Some(&(start, _)) = leaves.get(at + 9) {
            keys.prefetch(ids[start - 1]);
            keys.prefetch(ids[start]);
        }
        let (left, right) = (ids[end - 1], ids[end]);
        separators.push((right, shortest_separator(keys.key(left), keys.key(right)).len()));
    }
    let mut level: Vec<Child<L, I>> = Vec::with_capacity(leaves.len());
    for (at, &(start, end)) in leaves.iter().enumerate() {
        if let Some(&(start, end)) = leaves.get(at + 1) {
            ids[start..end].iter().for_each(|&id| keys.prefetch(id));
        }
        level.push(tree.leaf(Leaf::from_ids(keys, &ids[start..end], fence_prefix(&separators, at, at + 1))));
    }
    let mut height = usize::from(!level.is_empty());

    while level.len() > 1 {
        let ranges: Vec<_> = even_ranges(level.len(), I).collect();
        let mut children = level.into_iter();
        let mut above = Vec::with_capacity(ranges.len());
        for &(start, end) in &ranges {
            let mut inner = children.next().map(Inner::with_child).expect("no range is empty");
            for (separator, child) in separators[start..].iter().zip(children.by_ref().take(end - start - 1)) {
                inner.push(bytes(separator), child);
            }
            inner.set_fence_prefix(fence_prefix(&separators, start, end));
            above.push(tree.inner(inner));
        }
        separators = ranges[1..].iter().map(|&(start, _)| separators[start - 1]).collect();
        level = above;
        height += 1;
    }
    tree.finish();
    (level.pop(), height)
}
