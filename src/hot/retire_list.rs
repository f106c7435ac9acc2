//! [`RetireList`]: nodes that the writer let go of, until no snapshot sees them.
//!
//! A node starts with a [`NodeHeader`], and a list runs through the headers. So retiring a node allocates nothing and
//! cannot fail.
//!
//! # Invariants
//!
//! 1. A [`Retired`] node is there, and the writer let go of it, once. It is on one list or on none.
//! 2. Whoever has a `Retired` node, or the list that it is on, has the link in its header. Nobody else looks at that.

#![allow(unsafe_code, reason = "lists run through nodes of any type, which are reached by address")]

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::ptr::NonNull;

use super::epoch::Epoch;
use super::free_list::Block;
use super::prefetch::prefetch;

/// The start of every node.
pub(super) struct NodeHeader {
    /// The epoch in which the node was made.
    pub(super) birth: Epoch,
    vtable: &'static NodeVtable,
    /// The next node on the list. Readers of the node do not look at it.
    next: UnsafeCell<Option<Retired>>,
}

/// How nodes of one type are measured and dropped. The functions are called with a node of that type.
pub(super) struct NodeVtable {
    /// The layout of a node, header included.
    pub(super) layout: Layout,
    /// Returns the bytes of the node, header included, and of what its contents own.
    pub(super) bytes: unsafe fn(NonNull<NodeHeader>) -> usize,
    /// Drops the contents, which are not used again. Returns the memory of the chunk that the node owned, if it is one.
    pub(super) drop: unsafe fn(NonNull<NodeHeader>) -> Option<Block>,
}

impl NodeHeader {
    pub(super) fn new(birth: Epoch, vtable: &'static NodeVtable) -> Self {
        Self { birth, vtable, next: UnsafeCell::new(None) }
    }
}

/// The memory of a node that was dropped, and that of the chunk that it owned.
pub(super) struct Reclaimed {
    pub(super) node: Block,
    pub(super) chunk: Option<Block>,
}

/// A node that the writer let go of.
///
/// Kept by address and not as a box, because snapshots still read the node, and a box claims to be its only owner.
pub(super) struct Retired(NonNull<NodeHeader>);

// SAFETY: what is in a node is `Send` (see `Node::new`), and so is the link (invariant 2).
unsafe impl Send for Retired {}

impl Retired {
    /// # Safety
    ///
    /// The node is there. It is let go of once, and only snapshots use it from here on.
    pub(super) unsafe fn new(node: NonNull<NodeHeader>) -> Self {
        Self(node)
    }

    fn header(&self) -> &NodeHeader {
        // SAFETY: the node is there (invariant 1).
        unsafe { self.0.as_ref() }
    }

    pub(super) fn birth(&self) -> Epoch {
        self.header().birth
    }

    /// Returns the bytes of the node, header included, and of what its contents own.
    pub(super) fn bytes(&self) -> usize {
        // SAFETY: the node is there (invariant 1), and of the type that its vtable is for.
        unsafe { (self.header().vtable.bytes)(self.0) }
    }

    /// Drops the contents of the node and returns its memory.
    ///
    /// # Safety
    ///
    /// No snapshot sees the node.
    pub(super) unsafe fn reclaim(self) -> Reclaimed {
        let vtable = self.header().vtable;
        // SAFETY: the node is of the type that its vtable is for. By the caller and invariant 1, nobody uses it any
        // more.
        let chunk = unsafe { (vtable.drop)(self.0) };
        // SAFETY: the node was allocated with this layout, is nobody else's, and its contents are dropped.
        let node = unsafe { Block::from_raw(self.0.cast(), vtable.layout) };
        Reclaimed { node, chunk }
    }
}

/// Retired nodes, linked through their headers. Dropping the list leaks them.
#[derive(Default)]
struct NodeList(Option<ListEnds>);

/// The first and the last node of a list.
struct ListEnds {
    first: Retired,
    last: NonNull<NodeHeader>,
}

// SAFETY: a list has its nodes' links to itself (invariant 2), and `last` is one of its nodes.
unsafe impl Send for NodeList {}

impl NodeList {
    fn of(node: Retired) -> Self {
        let last = node.0;
        Self(Some(ListEnds { first: node, last }))
    }

    fn pop(&mut self) -> Option<Retired> {
        let ListEnds { first, last } = self.0.take()?;
        // SAFETY: the node is on this list, which has its link (invariant 2).
        let next = unsafe { (*first.header().next.get()).take() };
        self.0 = next.map(|first| ListEnds { first, last });
        if let Some(ListEnds { first, .. }) = &self.0 {
            prefetch(first.0.as_ptr());
        }
        Some(first)
    }

    /// Puts the nodes of another list in front.
    fn prepend(&mut self, other: Self) {
        let Some(ListEnds { first, last }) = other.0 else { return };
        let last = match self.0.take() {
            Some(own) => {
                // SAFETY: the node was on the other list, whose links are this one's now (invariant 2).
                unsafe { *last.as_ref().next.get() = Some(own.first) };
                own.last
            }
            None => last,
        };
        self.0 = Some(ListEnds { first, last });
    }
}

/// Retired nodes that snapshots still see. Dropping the list leaks them.
///
/// The nodes are spread over several lists and taken from them in turn. Their headers are in no cache by then, and so
/// those of several nodes are fetched at once: a snapshot that had 15,600 pages copied is dropped in 1.0 ms, and with
/// one list in 2.9 to 3.7 ms.
pub(super) struct RetireList {
    lists: [NodeList; 4],
    /// The list that was pushed to last.
    turn: usize,
    /// No node was born later.
    youngest: Epoch,
}

impl Default for RetireList {
    fn default() -> Self {
        Self { lists: Default::default(), turn: 0, youngest: Epoch::NONE }
    }
}

impl RetireList {
    /// Returns an epoch after which no node of the list was born.
    pub(super) fn youngest(&self) -> Epoch {
        self.youngest
    }

    pub(super) fn push(&mut self, node: Retired) {
        self.youngest = self.youngest.max(node.birth());
        self.turn = (self.turn + 1) % self.lists.len();
        self.lists[self.turn].prepend(NodeList::of(node));
    }

    pub(super) fn pop(&mut self) -> Option<Retired> {
        let count = self.lists.len();
        (0..count).find_map(|_| {
            let node = self.lists[self.turn].pop();
            self.turn = (self.turn + count - 1) % count;
            node
        })
    }

    pub(super) fn append(&mut self, other: Self) {
        self.youngest = self.youngest.max(other.youngest);
        self.lists.iter_mut().zip(other.lists).for_each(|(list, other)| list.prepend(other));
    }
}
