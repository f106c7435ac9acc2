//! The two kinds of node, and how a key finds its place in one.
//!
//! # Design
//!
//! ```text
//!   Inner   heads       [ h0   | h1   | h2   | MAX  ]     the first 4 bytes of each separator behind `prefix`
//!           ends        [ 2    | 5    | 9    |      ]     where each separator ends in `bytes`
//!           bytes       "ab" "acd" "acde"                 the whole separators
//!           children    [ c0 | c1 | c2 | c3 ]             c0 < "ab" <= c1 < "acd" <= c2 < "acde" <= c3
//!
//!   Leaf    heads       [ h0   | h1   | MAX  | MAX  ]     the first 4 bytes of each key behind `prefix`
//!           shared      [      | 11   |      |      ]     how many bytes each key shares with the one before it,
//!           next_bytes  [      | 'k'  |      |      ]     and its first byte behind those
//!           ids         [ id0  | id1  |      |      ]
//! ```
//!
//! All keys of a node share their first `prefix` bytes, so the heads start behind them. A search compares heads. Where
//! keys have equal heads it reads one key of the leaf, which mostly decides about the others: how that key compares
//! with the searched one, and each of the next keys with the one before it, says how the next keys compare with the
//! searched one (Bohannon, McIlroy, Rastogi, *Main-Memory Index Structures with Fixed-Size Partial Keys*, SIGMOD 2001).
//!
//! The separators left and right of a node are its *fence keys*. Every key between two fence keys starts with the bytes
//! that both share, at least `fence_prefix` of them. So a search need not check those. Only if `prefix` is longer must
//! it compare the bytes from `fence_prefix` to `prefix` with a key of the node.
//!
//! # Why this and not the other way
//!
//! A prefix that is no longer than `fence_prefix` never costs a look at a key. But it is empty at both ends of the tree,
//! where time-ordered keys are inserted. It is also short in a leaf at the boundary between two groups of keys with long
//! common names: there every comparison would have to read a key, six cache misses in place of one. A prefix that is all
//! that the keys share must be compared with one of them each time: one cache miss where mostly none is needed.
//!
//! A binary search among keys with equal heads reads five or six of them, one after the other. Such keys are common: the
//! keys of one group have equal heads while their leaf holds other groups, too. That was half the time of an insertion
//! among a million. Heads of 8 bytes would take more room than `shared` and `next_bytes`, and would not help groups with
//! longer names. Separators that are ids of entries would save their bytes, and cost a cache miss a comparison; and a
//! deleted entry could not free its key.

use std::cmp::Ordering;

use super::fill::{NodeFull, joined_limit, small_limit, split_point};
use super::head::{
    KeyHead, UNUSED, best_prefix, cmp_prefix, common_prefix_len, count_below, insert_at, key_head, saturate,
    shortest_separator,
};
use super::keys::Keys;
use super::leaf::Leaf;
use super::writer::Writer;
use crate::hot::entry_id::EntryId;
use crate::hot::epochs::Epochs;
use crate::hot::node::{Contents, Node};

/// A node of either kind: the root, or a child of an inner node.
pub(super) enum Child<const L: usize, const I: usize> {
    Leaf(Node<Leaf<L>>),
    Inner(Node<Inner<L, I>>),
}

/// An inner node of up to `I` children.
#[repr(C)]
pub(super) struct Inner<const L: usize, const I: usize> {
    /// Number of children. There is one separator less, and so are there `heads` and `ends`.
    len: u16,
    /// All separators share so many bytes. The heads start behind them.
    pub(super) prefix: u16,
    /// The separators left and right of this node share at least so many bytes.
    pub(super) fence_prefix: u16,
    /// The slot of the last insertion.
    last_insert: u16,
    pub(super) heads: [KeyHead; I],
    pub(super) children: [Option<Child<L, I>>; I],
    ends: [u32; I],
    bytes: Vec<u8>,
}

impl<const L: usize, const I: usize> Contents for Inner<L, I> {
    fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

impl<const L: usize, const I: usize> Inner<L, I> {
    /// Makes a node of one child. [`push`](Self::push) adds others.
    pub(super) fn with_child(child: Child<L, I>) -> Self {
        let mut children = [const { None }; I];
        children[0] = Some(child);
        Self {
            heads: [UNUSED; I],
            len: 1,
            prefix: 0,
            fence_prefix: 0,
            last_insert: 0,
            children,
            ends: [0; I],
            bytes: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn child(&self, at: usize) -> &Child<L, I> {
        self.children[at].as_ref().expect("children up to len are there")
    }

    pub(super) fn child_mut(&mut self, at: usize) -> &mut Child<L, I> {
        self.children[at].as_mut().expect("children up to len are there")
    }

    /// Returns the number of separators.
    pub(super) fn separators(&self) -> usize {
        self.len().saturating_sub(1)
    }

    /// Returns where the separator `at` starts in `bytes`.
    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    /// Returns the separator between the children `at` and `at + 1`.
    pub(super) fn separator(&self, at: usize) -> &[u8] {
        &self.bytes[self.start(at)..self.ends[at] as usize]
    }

    /// Returns the child that `key` belongs in. The key shares at least `known` bytes of the prefix.
    #[inline]
    pub(super) fn rank(&self, key: &[u8], known: u16) -> usize {
        let head = key_head(key, usize::from(self.prefix));
        if self.prefix > known {
            match cmp_prefix(key, &self.separator(0)[known.into()..self.prefix.into()], known) {
                Ordering::Less => return 0,
                Ordering::Equal => {}
                Ordering::Greater => return self.separators(),
            }
        }
        let mut at = count_below(&self.heads, head);
        // Few separators have equal heads.
        while at < self.separators() && self.heads[at] == head && self.separator(at) <= key {
            at += 1;
        }
        at
    }

    fn insert<K: Keys>(&mut self, writer: &mut Writer<'_, K>, key: &[u8], id: EntryId) -> Result<(), NodeFull> {
        loop {
            let at = self.rank(key, self.fence_prefix);
            let Err(full) = self.child_mut(at).insert(writer, key, id) else { return Ok(()) };
            if self.len() == I {
                return Err(NodeFull { at: at + 1 });
            }
            self.split_child(writer, at, full);
        }
    }

    /// Removes one id below this node, or a `WHOLE` leaf. Joins small nodes on the way down, before anything is removed:
    /// so an allocation that fails leaves everything where it is, and the invariants hold.
    ///
    /// Returns `false` if the leaf has other ids, or [keeps](Self::keeps_apart) two small ones apart (invariant 4).
    fn remove<const WHOLE: bool, K: Keys>(&mut self, writer: &mut Writer<'_, K>, key: &[u8], ids: &[EntryId]) -> bool {
        let mut at = self.rank(key, self.fence_prefix);
        let is_leaf = match self.child(at) {
            Child::Leaf(node) if WHOLE && (node.get().ids() != ids || self.keeps_apart(at)) => return false,
            Child::Leaf(_) => WHOLE,
            Child::Inner(_) => false,
        };
        if let Some(left) = self.find_join(at).filter(|_| !is_leaf) {
            self.join(writer, left);
            at = left;
        }
        let may_become_empty = is_leaf || self.child(at).len() == 1;
        if may_become_empty {
            // Then the nodes beside it get another fence key. Their copies are made before anything is removed.
            self.unshare_neighbour(writer, at);
        }
        let is_removed = is_leaf || self.child_mut(at).remove::<WHOLE, K>(writer, key, ids);
        if is_leaf || may_become_empty && self.child(at).len() == 0 {
            self.remove_child(writer, at);
        }
        is_removed
    }

    /// Splits a full child in two, to make room. If an allocation fails, the tree has not changed.
    pub(super) fn split_child<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize, full: NodeFull) {
        let left = at.checked_sub(1).map(|left| self.child(left).len());
        let right = (at + 1 < self.len()).then(|| self.child(at + 1).len());
        match self.child_mut(at) {
            Child::Leaf(node) => {
                let leaf = node.make_mut(writer.epochs);
                let from = match split_point(L, full.at, leaf.last_insert, left, right) {
                    middle if middle == L / 2 => leaf.group_boundary(),
                    behind_a_run => behind_a_run,
                };
                let separator =
                    shortest_separator(writer.keys.key(leaf.ids[from - 1]), writer.keys.key(leaf.ids[from]));
                let new = leaf.tail(from);
                self.reserve(writer, separator.len());
                let new = Child::Leaf(writer.new_node(new));
                self.insert_child(at, separator, new);
                self.child_mut(at).truncate(writer.epochs, from);
            }
            Child::Inner(node) => {
                let inner = node.make_mut(writer.epochs);
                let from = split_point(I, full.at, inner.last_insert, left, right);
                let (separator, new) = (inner.separator(from - 1).to_vec(), inner.tail(from));
                let heap_bytes = new.heap_bytes();
                self.reserve(writer, separator.len());
                let new = Child::Inner(writer.new_node(new));
                *writer.allocated += heap_bytes;
                self.insert_child(at, &separator, new);
                self.child_mut(at).truncate(writer.epochs, from);
            }
        }
        self.raise_fence_prefix_of(writer, at);
        self.raise_fence_prefix_of(writer, at + 1);
    }

    /// Reserves room for `bytes` more bytes of separators.
    fn reserve<K>(&mut self, writer: &mut Writer<'_, K>, bytes: usize) {
        let before = self.heap_bytes();
        self.bytes.reserve(bytes);
        *writer.allocated += self.heap_bytes() - before;
    }

    /// Returns which child is to be joined with the next one before something is removed from the child `at`: `at`
    /// itself or the one before it.
    ///
    /// Counts one entry less than there are: a removal takes one id from a leaf, and one child at most from an inner
    /// node.
    fn find_join(&self, at: usize) -> Option<usize> {
        let (len, capacity) = (self.child(at).len(), self.child(at).capacity());
        if len - 1 > small_limit(capacity) {
            return None;
        }
        let fits = |left: usize| left + 1 < self.len() && self.len_with_next(left) - 1 <= joined_limit(capacity);
        at.checked_sub(1).filter(|&left| fits(left)).or(Some(at).filter(|&left| fits(left)))
    }

    /// Returns `true` if the children left and right of the child `at` are too small to be neighbours.
    fn keeps_apart(&self, at: usize) -> bool {
        let len = |at: usize| self.child(at).len();
        at > 0 && at + 1 < self.len() && len(at - 1) + len(at + 1) <= small_limit(self.child(at).capacity())
    }

    /// Returns the sum of the lengths of the child `left` and the next one.
    pub(super) fn len_with_next(&self, left: usize) -> usize {
        self.child(left).len() + self.child(left + 1).len()
    }

    /// Joins the child `at` with the next one. If an allocation fails, the tree has not changed.
    fn join<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let (separator, right) = (self.separator(at).len(), self.child(at + 1).alias());
        self.child_mut(at).prepare_join(writer, separator, &right);
        self.join_prepared(writer, at);
    }

    /// Moves the contents of the child behind `at` to the child `at`, for which
    /// [`prepare_join`](Child::prepare_join) was called. Allocates nothing.
    fn join_prepared<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let separator = self.start(at)..self.ends[at] as usize;
        let right = self.child(at + 1).alias();
        match (self.children[at].as_mut(), &right) {
            (Some(Child::Leaf(left)), Child::Leaf(right)) => {
                left.make_mut(writer.epochs).append(writer.keys, right.get());
            }
            (Some(Child::Inner(left)), Child::Inner(right)) => {
                let left = left.make_mut(writer.epochs);
                let seam = left.len();
                left.append(&self.bytes[separator], right.get());
                // The children on both sides of the seam are neighbours now, and may be small.
                if left.len_with_next(seam - 1) <= joined_limit(left.child(seam).capacity()) {
                    left.join_prepared(writer, seam - 1);
                }
            }
            _ => unreachable!("children are all leaves or all inner nodes"),
        }
        self.take_child(at + 1);
        right.retire(writer);
        self.raise_fence_prefix_of(writer, at);
    }

    /// Copies those nodes beside the child `at` that snapshots see, so that removing that child copies none.
    fn unshare_neighbour<K>(&mut self, writer: &Writer<'_, K>, at: usize) {
        match at.checked_sub(1) {
            Some(left) => self.child_mut(left).unshare_edge(writer.epochs, Self::separators),
            None if self.len() > 1 => self.child_mut(1).unshare_edge(writer.epochs, |_| 0),
            None => {}
        }
    }

    /// Removes the child `at`, which is a leaf or empty. Allocates nothing after
    /// [`unshare_neighbour`](Self::unshare_neighbour).
    fn remove_child<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let child = self.take_child(at);
        let fence_prefix = child.fence_prefix();
        child.retire(writer);
        let (beside, edge): (_, fn(&Self) -> usize) = match at.checked_sub(1) {
            Some(left) => (left, Self::separators),
            None => (0, |_| 0),
        };
        if beside < self.len() {
            self.child_mut(beside).lower_edge_fences(writer.epochs, fence_prefix, edge);
            self.raise_fence_prefix_of(writer, beside);
        }
    }

    /// Raises a child's `fence_prefix` to what the separators left and right of it share.
    fn raise_fence_prefix_of<K: Keys>(&mut self, writer: &Writer<'_, K>, at: usize) {
        let fence_prefix = if (1..self.separators()).contains(&at) {
            saturate(common_prefix_len(self.separator(at - 1), self.separator(at)))
        } else {
            // One of the two is above this node. Both lie between this node's fence keys, or are equal to one.
            self.fence_prefix
        };
        match self.child_mut(at) {
            Child::Leaf(node) => node.make_mut(writer.epochs).raise_fence_prefix(writer.keys, fence_prefix),
            Child::Inner(node) => {
                let inner = node.make_mut(writer.epochs);
                inner.fence_prefix = inner.fence_prefix.max(fence_prefix);
                inner.update_heads();
            }
        }
    }

    /// Sets `fence_prefix`, and computes the heads behind the best prefix.
    pub(super) fn set_fence_prefix(&mut self, fence_prefix: u16) {
        self.fence_prefix = fence_prefix;
        self.update_heads();
    }

    /// Inserts a child behind the child `at`, and the separator between them, for which room was
    /// [reserved](Self::reserve).
    fn insert_child(&mut self, at: usize, separator: &[u8], child: Child<L, I>) {
        let start = self.start(at);
        self.bytes.extend_from_slice(separator);
        self.bytes[start..].rotate_right(separator.len());
        let separators = self.separators();
        insert_at(&mut self.ends, separators, at, start as u32);
        for end in &mut self.ends[at..=separators] {
            *end += separator.len() as u32;
        }
        self.children[at + 1..=separators + 1].rotate_right(1);
        self.children[at + 1] = Some(child);
        self.len += 1;
        self.last_insert = at as u16 + 1;
        self.update_heads();
    }

    /// Adds a child behind all others. Call [`set_fence_prefix`](Self::set_fence_prefix) when all are added.
    pub(super) fn push(&mut self, separator: &[u8], child: Child<L, I>) {
        self.bytes.extend_from_slice(separator);
        self.ends[self.len() - 1] = self.bytes.len() as u32;
        self.children[self.len()] = Some(child);
        self.len += 1;
    }

    /// Removes the child `at` and the separator before it. With the first child goes the separator behind it.
    fn take_child(&mut self, at: usize) -> Child<L, I> {
        let separators = self.separators();
        if separators > 0 {
            let gone = at.saturating_sub(1);
            let (start, end) = (self.start(gone), self.ends[gone] as usize);
            self.bytes.drain(start..end);
            self.ends[gone..separators].rotate_left(1);
            for later in &mut self.ends[gone..separators - 1] {
                *later -= (end - start) as u32;
            }
        }
        let child = self.children[at].take().expect("children up to len are there");
        self.children[at..=separators].rotate_left(1);
        self.len -= 1;
        self.update_heads();
        child
    }

    /// Returns a node of the children from `from` on.
    fn tail(&self, from: usize) -> Self {
        let (count, end) = (self.len() - from, self.ends[from - 1]);
        let mut tail = Self { children: [const { None }; I], bytes: self.bytes[end as usize..].to_vec(), ..*self };
        for (to, child) in tail.children.iter_mut().zip(self.children[from..].iter().flatten()) {
            *to = Some(child.alias());
        }
        tail.ends.copy_within(from..self.separators(), 0);
        for later in &mut tail.ends[..count - 1] {
            *later -= end;
        }
        tail.len = count as u16;
        tail.last_insert = self.last_insert.saturating_sub(from as u16);
        tail.update_heads();
        tail
    }

    /// Drops the children from `len` on, and the separator before them.
    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(self.start(len - 1));
        self.children[len..].fill_with(|| None);
        self.len = len as u16;
        self.update_heads();
    }

    /// Adds the children of the next node, `right`, behind `separator`. There is room for the bytes.
    fn append(&mut self, separator: &[u8], right: &Self) {
        self.bytes.extend_from_slice(separator);
        let (len, offset) = (self.len(), self.bytes.len() as u32);
        self.ends[len - 1] = offset;
        self.bytes.extend_from_slice(&right.bytes);
        for (to, from) in self.ends[len..].iter_mut().zip(&right.ends[..right.separators()]) {
            *to = offset + from;
        }
        for (to, from) in self.children[len..].iter_mut().zip(right.children.iter().flatten()) {
            *to = Some(from.alias());
        }
        self.len += right.len;
        self.fence_prefix = self.fence_prefix.min(right.fence_prefix);
        self.update_heads();
    }

    /// Computes the best prefix and all heads.
    fn update_heads(&mut self) {
        let count = self.separators();
        let shared = match count {
            0 => 0,
            1 => saturate(self.separator(0).len()),
            _ => saturate(common_prefix_len(self.separator(0), self.separator(count - 1))),
        };
        self.prefix = best_prefix(shared, self.fence_prefix);
        let mut start = 0;
        for (slot, &end) in self.heads[..count].iter_mut().zip(&self.ends) {
            *slot = key_head(&self.bytes[start..end as usize], usize::from(self.prefix));
            start = end as usize;
        }
        self.heads[count..].fill(UNUSED);
    }
}

impl<const L: usize, const I: usize> Clone for Inner<L, I> {
    fn clone(&self) -> Self {
        // With the same capacity, so that the index's count of allocated bytes stays correct.
        let mut bytes = Vec::with_capacity(self.bytes.capacity());
        bytes.extend_from_slice(&self.bytes);
        let children = std::array::from_fn(|at| self.children[at].as_ref().map(Child::alias));
        Self { children, bytes, ..*self }
    }
}

impl<const L: usize, const I: usize> Child<L, I> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Leaf(node) => node.get().len(),
            Self::Inner(node) => node.get().len(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Leaf(_) => L,
            Self::Inner(_) => I,
        }
    }

    /// Returns another handle to the same node. See [`Node::alias`].
    pub(super) fn alias(&self) -> Self {
        match self {
            Self::Leaf(node) => Self::Leaf(node.alias()),
            Self::Inner(node) => Self::Inner(node.alias()),
        }
    }

    /// Retires this node, and no other.
    pub(super) fn retire<K>(self, writer: &mut Writer<'_, K>) {
        match self {
            Self::Leaf(node) => writer.retire(node, 0),
            Self::Inner(node) => {
                let heap_bytes = node.get().heap_bytes();
                writer.retire(node, heap_bytes);
            }
        }
    }

    /// Retires this node and all nodes below it.
    pub(super) fn retire_subtree<K>(self, writer: &mut Writer<'_, K>) {
        if let Self::Inner(node) = &self {
            node.get().children.iter().flatten().for_each(|child| child.alias().retire_subtree(writer));
        }
        self.retire(writer);
    }

    pub(super) fn insert<K: Keys>(
        &mut self,
        writer: &mut Writer<'_, K>,
        key: &[u8],
        id: EntryId,
    ) -> Result<(), NodeFull> {
        match self {
            Self::Leaf(node) => {
                // Otherwise the ids would be fetched only after the heads were compared.
                node.prefetch();
                node.make_mut(writer.epochs).insert(writer.keys, key, id)
            }
            Self::Inner(node) => node.make_mut(writer.epochs).insert(writer, key, id),
        }
    }

    /// Removes one id or, below an inner node, a `WHOLE` leaf of these ids. Returns `false` if the leaf has to stay.
    pub(super) fn remove<const WHOLE: bool, K: Keys>(
        &mut self,
        writer: &mut Writer<'_, K>,
        key: &[u8],
        ids: &[EntryId],
    ) -> bool {
        match self {
            Self::Leaf(_) if WHOLE => return false,
            Self::Leaf(node) => {
                node.prefetch();
                node.make_mut(writer.epochs).remove(key, ids[0]);
            }
            Self::Inner(node) => return node.make_mut(writer.epochs).remove::<WHOLE, K>(writer, key, ids),
        }
        true
    }

    /// Puts the id `new` in the place of `old`, whose key is `key`.
    pub(super) fn replace(&mut self, epochs: &Epochs, key: &[u8], old: EntryId, new: EntryId) {
        match self {
            Self::Leaf(node) => node.make_mut(epochs).replace(key, old, new),
            Self::Inner(node) => {
                let inner = node.make_mut(epochs);
                let at = inner.rank(key, inner.fence_prefix);
                inner.child_mut(at).replace(epochs, key, old, new);
            }
        }
    }

    fn fence_prefix(&self) -> u16 {
        match self {
            Self::Leaf(node) => node.get().fence_prefix,
            Self::Inner(node) => node.get().fence_prefix,
        }
    }

    /// Drops what the node has from `len` on.
    fn truncate(&mut self, epochs: &Epochs, len: usize) {
        match self {
            Self::Leaf(node) => node.make_mut(epochs).truncate(len),
            Self::Inner(node) => node.make_mut(epochs).truncate(len),
        }
    }

    /// Prepares this node to take over the contents of the next one, `right`, and a separator of so many bytes between
    /// them.
    ///
    /// Copies the node if a snapshot sees it, and reserves room for the bytes. Two nodes that become neighbours by the
    /// join are prepared, too, if they are to be joined as well.
    fn prepare_join<K>(&mut self, writer: &mut Writer<'_, K>, separator: usize, right: &Self) {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(_)) => {
                left.make_mut(writer.epochs);
            }
            (Self::Inner(left), Self::Inner(right)) => {
                let (left, right) = (left.make_mut(writer.epochs), right.get());
                left.reserve(writer, separator + right.bytes.len());
                let (last, first) = (left.separators(), right.child(0));
                if left.child(last).len() + first.len() <= joined_limit(first.capacity()) {
                    left.child_mut(last).prepare_join(writer, separator, first);
                }
            }
            _ => unreachable!("children are all leaves or all inner nodes"),
        }
    }

    /// Copies the nodes at one edge of this subtree that snapshots see, so that
    /// [`lower_edge_fences`](Self::lower_edge_fences) copies none. `edge` tells which child of a node is at that edge.
    fn unshare_edge(&mut self, epochs: &Epochs, edge: fn(&Inner<L, I>) -> usize) {
        match self {
            Self::Leaf(node) => {
                node.make_mut(epochs);
            }
            Self::Inner(node) => {
                let inner = node.make_mut(epochs);
                inner.child_mut(edge(inner)).unshare_edge(epochs, edge);
            }
        }
    }

    /// Lowers `fence_prefix` of the nodes at one edge of this subtree, whose fence key there is replaced by one further
    /// out.
    ///
    /// The new fence key lies behind a node that was removed, whose fence keys shared `fence_prefix` bytes.
    fn lower_edge_fences(&mut self, epochs: &Epochs, fence_prefix: u16, edge: fn(&Inner<L, I>) -> usize) {
        match self {
            Self::Leaf(node) => {
                let leaf = node.make_mut(epochs);
                leaf.fence_prefix = leaf.fence_prefix.min(fence_prefix);
            }
            Self::Inner(node) => {
                let inner = node.make_mut(epochs);
                inner.set_fence_prefix(inner.fence_prefix.min(fence_prefix));
                inner.child_mut(edge(inner)).lower_edge_fences(epochs, fence_prefix, edge);
            }
        }
    }
}
