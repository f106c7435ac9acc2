//! The two kinds of node, and how a key finds its place in one.
//!
//! # Design
//!
//! ```text
//!   Inner   heads     [ h0   | h1   | h2   | MAX  ]     the first 4 bytes of each separator behind `prefix`
//!           ends      [ 2    | 5    | 9    |      ]     where each separator ends in `bytes`
//!           bytes     "ab" "acd" "acde"                 the separators, whole
//!           children  [ c0 | c1 | c2 | c3 ]             c0 < "ab" <= c1 < "acd" <= c2 < "acde" <= c3
//!
//!   Leaf    heads     [ h0   | h1   | MAX  | MAX  ]     the first 4 bytes of each key behind `prefix`
//!           shared    [      | 11   |      |      ]     how many bytes each key shares with the one before it,
//!           turns     [      | 'k'  |      |      ]     and its first byte behind those
//!           ids       [ id0  | id1  |      |      ]
//! ```
//!
//! A *head* is four bytes of a key as a big-endian number, padded with zeros, so that comparing heads compares keys
//! as far as the heads differ. What they leave open, one of the keys decides mostly: from what is looked for shares with
//! that one, and each of the next with the one before it, follows the rest (Bohannon, McIlroy, Rastogi, *Main-Memory
//! Index Structures with Fixed-Size Partial Keys*, SIGMOD 2001). All keys of a node share their first
//! `prefix` bytes, which is why the heads start behind them. That a key which is looked for shares them, too, follows
//! for the first `fenced` bytes from the separators left and right of the node: what is between two keys shares the
//! bytes that both begin with. Only for bytes from `fenced` to `prefix` must one key of the node be looked at.
//!
//! # Why this and not the other way
//!
//! A prefix that is only what the separators around say costs no look at a key, but is empty at both ends of the tree,
//! where time-ordered keys are inserted, and short in a leaf at the border between two groups of keys with long common
//! names: there every comparison would have to read a key, six cache misses in place of one. A prefix that is only
//! what the keys share must be checked against one of them each time: one cache miss where mostly none is needed.
//!
//! A binary search among keys with equal heads, as those of a group have while its leaf holds other groups, too, reads
//! five or six of them, one after the other; that was half the time of an insertion among a million. Heads of 8 bytes
//! would take more room than `shared` and `turns`, and leave groups with longer names as they are. Separators that are ids
//! of entries would save their bytes and cost a cache miss a comparison, and a deleted entry could not let go of its
//! key.

use std::cmp::Ordering;

use super::leaf::Leaf;
use super::{Keys, Node, Versions, Writer};

/// Four bytes of a key as a number.
pub(super) type Head = u32;

/// The head of unused slots: counting heads below another never counts it.
pub(super) const UNUSED: Head = Head::MAX;

/// A place between keys: right before where `key` is or would be, or right `after` it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut<'k> {
    pub(super) key: &'k [u8],
    pub(super) after: bool,
}

/// A node of either kind, as a root or a child.
pub(super) enum Child<const L: usize, const I: usize> {
    Leaf(Node<Leaf<L>>),
    Inner(Node<Inner<L, I>>),
}

#[repr(C)]
pub(super) struct Inner<const L: usize, const I: usize> {
    len: u16,
    pub(super) prefix: u16,
    pub(super) fenced: u16,
    /// Where the last insertion was.
    last: u16,
    /// Of the separators, which are one less than the children; as are the `ends`.
    pub(super) heads: [Head; I],
    pub(super) children: [Option<Child<L, I>>; I],
    ends: [u32; I],
    bytes: Vec<u8>,
}

/// A node has no room; what did not fit belongs at this place in it.
pub(super) struct Full {
    pub(super) at: usize,
}

/// A node that a deletion leaves no fuller than this is joined with a neighbour, if half a node can hold both.
pub(super) const fn quarter(capacity: usize) -> usize {
    capacity.div_ceil(4)
}

const fn half(capacity: usize) -> usize {
    capacity.div_ceil(2)
}

/// How many of its slots a full node keeps when it is split to insert something `at` a place, after the `last` insertion
/// was at that one, and given how full its neighbours are.
///
/// Half of them; but a run of ascending or descending keys leaves most behind it, and so fills its leaves to nine
/// tenths. What is in front of the run, mostly the first of the next run, it takes along, unless there is enough for a
/// node. Not beside a small node, or there would be two (invariant 4).
pub(super) fn split_point(capacity: usize, at: usize, last: u16, left: Option<usize>, right: Option<usize>) -> usize {
    let (middle, few) = (capacity / 2, (capacity / 10).max(1));
    let enough = |len: usize, neighbour: Option<usize>| neighbour.is_none_or(|other| len + other > quarter(capacity));
    let last = usize::from(last);
    if at == last + 1 && at > middle {
        let ahead = capacity - at;
        let kept = if enough(few, Some(ahead)) { at } else { middle.max(at - few) };
        if enough(capacity - kept, right) {
            return kept;
        }
    } else if at == last && at < middle {
        let kept = if enough(few, Some(at)) { at } else { middle.min(at + few) };
        if enough(kept, left) {
            return kept;
        }
    }
    middle
}

/// How many bytes `a` and `b` begin with in common.
pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    let words = a.chunks_exact(8).zip(b.chunks_exact(8));
    let same = 8 * words.take_while(|(a, b)| a == b).count();
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

/// The shortest key above `left` and not above `right`.
pub(super) fn separator<'k>(left: &[u8], right: &'k [u8]) -> &'k [u8] {
    &right[..right.len().min(common(left, right) + 1)]
}

/// A number of shared bytes as nodes keep it. To say fewer is as true, and only slower.
pub(super) fn short(shared: usize) -> u16 {
    u16::try_from(shared).unwrap_or(u16::MAX)
}

#[inline]
pub(super) fn head(key: &[u8], prefix: usize) -> Head {
    let rest = key.get(prefix..).unwrap_or_default();
    let Some(bytes) = rest.first_chunk() else {
        let mut padded = [0; size_of::<Head>()];
        padded[..rest.len()].copy_from_slice(rest);
        return Head::from_be_bytes(padded);
    };
    Head::from_be_bytes(*bytes)
}

/// How many heads are below `head`. Looks at all of them, which vector instructions do faster than a search.
#[inline]
pub(super) fn below<const N: usize>(heads: &[Head; N], head: Head) -> usize {
    heads.iter().map(|&other| u32::from(other < head)).sum::<u32>() as usize
}

/// Where the heads of a node should start, whose keys share `shared` bytes: where no key need be looked at, unless
/// that spoils half a head.
pub(super) fn best_prefix(shared: u16, fenced: u16) -> u16 {
    if shared < fenced.saturating_add(2) { fenced.min(shared) } else { shared }
}

/// How `key` compares with all keys that share a prefix, whose bytes after the first `known` are `rest`: equal if it shares
/// them, too, given that it shares those before.
#[inline]
pub(super) fn against(key: &[u8], rest: &[u8], known: u16) -> Ordering {
    let ours = key.get(known.into()..).unwrap_or_default();
    ours[..ours.len().min(rest.len())].cmp(rest)
}

pub(super) fn insert_at<T: Copy>(slots: &mut [T], len: usize, at: usize, value: T) {
    slots.copy_within(at..len, at + 1);
    slots[at] = value;
}

impl<const L: usize, const I: usize> Inner<L, I> {
    pub(super) fn over(child: Child<L, I>) -> Self {
        let mut children = [const { None }; I];
        children[0] = Some(child);
        Self { heads: [UNUSED; I], len: 1, prefix: 0, fenced: 0, last: 0, children, ends: [0; I], bytes: Vec::new() }
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

    pub(super) fn separators(&self) -> usize {
        self.len().saturating_sub(1)
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    /// The separator between the children `at` and `at + 1`.
    pub(super) fn separator(&self, at: usize) -> &[u8] {
        &self.bytes[self.start(at)..self.ends[at] as usize]
    }

    /// The bytes of memory that belong to the node apart from itself.
    pub(super) fn spare_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// The child between whose separators `key` is, which shares `known` bytes of the prefix for sure.
    #[inline]
    pub(super) fn rank(&self, key: &[u8], known: u16) -> usize {
        let head = head(key, usize::from(self.prefix));
        if self.prefix > known {
            match against(key, &self.separator(0)[known.into()..self.prefix.into()], known) {
                Ordering::Less => return 0,
                Ordering::Equal => {}
                Ordering::Greater => return self.separators(),
            }
        }
        let mut at = below(&self.heads, head);
        // Separators with equal heads are few: they differ from each other only behind their heads.
        while at < self.separators() && self.heads[at] == head && self.separator(at) <= key {
            at += 1;
        }
        at
    }

    pub(super) fn insert<K: Keys>(&mut self, writer: &mut Writer<'_, K>, key: &[u8], id: u32) -> Result<(), Full> {
        loop {
            let at = self.rank(key, self.fenced);
            let Err(full) = self.child_mut(at).insert(writer, key, id) else { return Ok(()) };
            if self.len() == I {
                return Err(Full { at: at + 1 });
            }
            self.split_child(writer, at, full);
        }
    }

    pub(super) fn remove<K: Keys>(&mut self, writer: &mut Writer<'_, K>, key: &[u8], id: u32) {
        let at = self.rank(key, self.fenced);
        if self.child(at).len() == 1 {
            // It may be empty then, and where it was its neighbour's separators are others, which is not to fail.
            self.own_edge(writer, at);
        }
        self.child_mut(at).remove(writer, key, id);
        self.settle(writer, at);
    }

    /// Splits a full child in two, to make room. If there is no memory for that, the tree has not changed.
    pub(super) fn split_child<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize, full: Full) {
        let left = at.checked_sub(1).map(|left| self.child(left).len());
        let right = (at + 1 < self.len()).then(|| self.child(at + 1).len());
        match self.child_mut(at) {
            Child::Leaf(node) => {
                let leaf = node.make_mut(writer.versions);
                let from = match split_point(L, full.at, leaf.last, left, right) {
                    middle if middle == L / 2 => leaf.border(),
                    behind_a_run => behind_a_run,
                };
                let separator = separator(writer.keys.key(leaf.ids[from - 1]), writer.keys.key(leaf.ids[from]));
                let new = leaf.tail(from);
                self.reserve(writer, separator.len());
                let new = Child::Leaf(writer.node(new));
                self.insert_child(at, separator, new);
                self.child_mut(at).truncate(writer.versions, from);
            }
            Child::Inner(node) => {
                let inner = node.make_mut(writer.versions);
                let from = split_point(I, full.at, inner.last, left, right);
                let (separator, new) = (inner.separator(from - 1).to_vec(), inner.tail(from));
                let spare = new.spare_bytes();
                self.reserve(writer, separator.len());
                let new = Child::Inner(writer.node(new));
                *writer.allocated += spare;
                self.insert_child(at, &separator, new);
                self.child_mut(at).truncate(writer.versions, from);
            }
        }
        self.fence_child(writer, at);
        self.fence_child(writer, at + 1);
    }

    /// Makes room for so many bytes of separators.
    fn reserve<K>(&mut self, writer: &mut Writer<'_, K>, bytes: usize) {
        let before = self.spare_bytes();
        self.bytes.reserve(bytes);
        *writer.allocated += self.spare_bytes() - before;
    }

    /// Joins the child `at` with a neighbour if both are small, or removes it if it is empty, as far as a deletion from it
    /// made that so. Allocates nothing but what a join can do without.
    fn settle<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let (len, capacity) = (self.child(at).len(), self.child(at).capacity());
        if len == 0 {
            return self.remove_empty(writer, at);
        }
        if len > quarter(capacity) {
            return;
        }
        for left in [at.checked_sub(1), Some(at)].into_iter().flatten() {
            if left + 1 < self.len() && self.both(left) <= half(capacity) {
                return self.join_if_possible(writer, left);
            }
        }
    }

    /// How much is in the child `left` and in the next one.
    pub(super) fn both(&self, left: usize) -> usize {
        self.child(left).len() + self.child(left + 1).len()
    }

    /// Joins the child `at` with the next one, if there is memory for the copies that this takes.
    fn join_if_possible<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let (separator, right) = (self.separator(at).len(), self.child(at + 1).alias());
        if self.child_mut(at).own_seam(writer, separator, &right).is_some() {
            self.join(writer, at);
        }
    }

    /// Moves all that is in the child behind `at` over to that, whose [seam](Child::own_seam) with it is its own.
    fn join<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let separator = self.start(at)..self.ends[at] as usize;
        let right = self.child(at + 1).alias();
        match (self.children[at].as_mut(), &right) {
            (Some(Child::Leaf(left)), Child::Leaf(right)) => {
                left.make_mut(writer.versions).append(writer.keys, right.get());
            }
            (Some(Child::Inner(left)), Child::Inner(right)) => {
                let left = left.make_mut(writer.versions);
                let seam = left.len();
                left.append(&self.bytes[separator], right.get());
                // The children on both sides of the seam are neighbours now, and may be small.
                if left.both(seam - 1) <= half(left.child(seam).capacity()) {
                    left.join(writer, seam - 1);
                }
            }
            _ => unreachable!("children are all leaves or all inner nodes"),
        }
        self.take_child(at + 1);
        writer.retire(right);
        self.fence_child(writer, at);
    }

    /// Makes sure that what is beside the child `at` can be told that it has another separator there.
    fn own_edge<K>(&mut self, writer: &Writer<'_, K>, at: usize) {
        match at.checked_sub(1) {
            Some(left) => self.child_mut(left).own_edge(writer.versions, Self::separators),
            None if self.len() > 1 => self.child_mut(1).own_edge(writer.versions, |_| 0),
            None => {}
        }
    }

    /// Removes the child `at`, which is empty.
    fn remove_empty<K: Keys>(&mut self, writer: &mut Writer<'_, K>, at: usize) {
        let empty = self.take_child(at);
        let fenced = empty.fenced();
        writer.retire(empty);
        let (beside, edge): (_, fn(&Self) -> usize) = match at.checked_sub(1) {
            Some(left) => (left, Self::separators),
            None => (0, |_| 0),
        };
        if beside < self.len() {
            self.child_mut(beside).widen(writer.versions, fenced, edge);
            self.fence_child(writer, beside);
        }
    }

    /// Tells a child how much the separators left and right of it share.
    fn fence_child<K: Keys>(&mut self, writer: &Writer<'_, K>, at: usize) {
        let fenced = if (1..self.separators()).contains(&at) {
            short(common(self.separator(at - 1), self.separator(at)))
        } else {
            // One of them is further up. Both are between, or are, those left and right of this node.
            self.fenced
        };
        match self.child_mut(at) {
            Child::Leaf(node) => node.make_mut(writer.versions).fence(writer.keys, fenced),
            Child::Inner(node) => {
                let inner = node.make_mut(writer.versions);
                inner.fenced = inner.fenced.max(fenced);
                inner.rehead();
            }
        }
    }

    pub(super) fn set_fenced(&mut self, fenced: u16) {
        self.fenced = fenced;
        self.rehead();
    }

    /// Inserts a child behind the one `at`, and the separator between them, for which there is [room](Self::reserve).
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
        self.last = at as u16 + 1;
        self.rehead();
    }

    /// Adds a child behind all others. [`set_fenced`](Self::set_fenced) must follow.
    pub(super) fn push(&mut self, separator: &[u8], child: Child<L, I>) {
        self.bytes.extend_from_slice(separator);
        self.ends[self.len() - 1] = self.bytes.len() as u32;
        self.children[self.len()] = Some(child);
        self.len += 1;
    }

    /// Removes the child `at`, and the separator in front of it, or behind the first one.
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
        self.rehead();
        child
    }

    /// A node of the children from `from` on.
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
        tail.last = self.last.saturating_sub(from as u16);
        tail.rehead();
        tail
    }

    /// Forgets the children from `len` on, and the separator in front of them.
    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(self.start(len - 1));
        self.children[len..].fill_with(|| None);
        self.len = len as u16;
        self.rehead();
    }

    /// Takes over all that is in the node `right` of this one, behind `separator`. There is room for the bytes.
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
        self.fenced = self.fenced.min(right.fenced);
        self.rehead();
    }

    /// Makes the heads anew, behind the best prefix.
    fn rehead(&mut self) {
        let count = self.separators();
        let shared = match count {
            0 => 0,
            1 => short(self.separator(0).len()),
            _ => short(common(self.separator(0), self.separator(count - 1))),
        };
        self.prefix = best_prefix(shared, self.fenced);
        let mut start = 0;
        for (slot, &end) in self.heads[..count].iter_mut().zip(&self.ends) {
            *slot = head(&self.bytes[start..end as usize], usize::from(self.prefix));
            start = end as usize;
        }
        self.heads[count..].fill(UNUSED);
    }
}

impl<const L: usize, const I: usize> Inner<L, I> {
    /// A copy, if there is memory for its bytes: as much as before, so that what the tree counts as allocated stays true.
    fn try_clone(&self) -> Option<Self> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes.capacity()).ok()?;
        Some(self.clone_with(bytes))
    }

    fn clone_with(&self, mut bytes: Vec<u8>) -> Self {
        bytes.extend_from_slice(&self.bytes);
        let children = std::array::from_fn(|at| self.children[at].as_ref().map(Child::alias));
        Self { children, bytes, ..*self }
    }
}

impl<const L: usize, const I: usize> Clone for Inner<L, I> {
    fn clone(&self) -> Self {
        self.clone_with(Vec::with_capacity(self.bytes.capacity()))
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

    pub(super) fn alias(&self) -> Self {
        match self {
            Self::Leaf(node) => Self::Leaf(node.alias()),
            Self::Inner(node) => Self::Inner(node.alias()),
        }
    }

    pub(super) fn insert<K: Keys>(&mut self, writer: &mut Writer<'_, K>, key: &[u8], id: u32) -> Result<(), Full> {
        match self {
            Self::Leaf(node) => {
                // Else the ids are only fetched when the heads have told the place.
                node.prefetch();
                node.make_mut(writer.versions).insert(writer.keys, key, id)
            }
            Self::Inner(node) => node.make_mut(writer.versions).insert(writer, key, id),
        }
    }

    pub(super) fn remove<K: Keys>(&mut self, writer: &mut Writer<'_, K>, key: &[u8], id: u32) {
        match self {
            Self::Leaf(node) => {
                node.prefetch();
                node.make_mut(writer.versions).remove(key, id);
            }
            Self::Inner(node) => node.make_mut(writer.versions).remove(writer, key, id),
        }
    }

    fn fenced(&self) -> u16 {
        match self {
            Self::Leaf(node) => node.get().fenced,
            Self::Inner(node) => node.get().fenced,
        }
    }

    /// Forgets what is in the node from `len` on.
    fn truncate(&mut self, versions: &Versions, len: usize) {
        match self {
            Self::Leaf(node) => node.make_mut(versions).truncate(len),
            Self::Inner(node) => node.make_mut(versions).truncate(len),
        }
    }

    /// Makes sure that this node can take over all that is in the one `right` of it, behind a separator of so many bytes, and
    /// so can what becomes a neighbour by that: all are copies that no snapshot sees, with room for the bytes. `None` if there
    /// is no memory for that; the tree has not changed then.
    fn own_seam<K>(&mut self, writer: &mut Writer<'_, K>, separator: usize, right: &Self) -> Option<()> {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(_)) => {
                left.try_make_mut(writer.versions, |leaf| Some(leaf.clone()))?;
            }
            (Self::Inner(left), Self::Inner(right)) => {
                let left = left.try_make_mut(writer.versions, Inner::try_clone)?;
                let before = left.spare_bytes();
                left.bytes.try_reserve(separator + right.get().bytes.len()).ok()?;
                *writer.allocated += left.spare_bytes() - before;
                let (last, first) = (left.separators(), right.get().child(0));
                if left.child(last).len() + first.len() <= half(first.capacity()) {
                    left.child_mut(last).own_seam(writer, separator, first)?;
                }
            }
            _ => unreachable!("children are all leaves or all inner nodes"),
        }
        Some(())
    }

    /// Makes sure that [`widen`](Self::widen) copies nothing.
    fn own_edge(&mut self, versions: &Versions, edge: fn(&Inner<L, I>) -> usize) {
        match self {
            Self::Leaf(node) => {
                node.make_mut(versions);
            }
            Self::Inner(node) => {
                let inner = node.make_mut(versions);
                inner.child_mut(edge(inner)).own_edge(versions, edge);
            }
        }
    }

    /// Tells what is at one edge of this node that the separator there is a different one, further out: behind a node whose
    /// separators shared `fenced` bytes.
    fn widen(&mut self, versions: &Versions, fenced: u16, edge: fn(&Inner<L, I>) -> usize) {
        match self {
            Self::Leaf(node) => {
                let leaf = node.make_mut(versions);
                leaf.fenced = leaf.fenced.min(fenced);
            }
            Self::Inner(node) => {
                let inner = node.make_mut(versions);
                inner.set_fenced(inner.fenced.min(fenced));
                inner.child_mut(edge(inner)).widen(versions, fenced, edge);
            }
        }
    }
}
