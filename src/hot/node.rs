//! [`Node`]: a node of a copy-on-write structure, shared with snapshots by address.
//!
//! # Invariants
//!
//! 1. A node that a live snapshot sees is neither changed nor freed, but for the link in its header.
//! 2. The current version of a structure owns each of its nodes once, and retires a node that it no longer has.
//! 3. [`Contents::heap_bytes`] of a retired node does not change.

#![allow(unsafe_code, reason = "nodes are shared with snapshots by address; invariant 1 is what makes that sound")]

use std::alloc::Layout;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;

use bytes::Bytes;

#[cfg(test)]
use super::epoch::Epoch;
use super::epochs::Epochs;
use super::free_list::Block;
use super::prefetch::prefetch_all;
use super::retire_list::{NodeHeader, NodeVtable, Retired};

/// A node of a copy-on-write structure, owned by the current version of the structure.
///
/// Copying a node's parent copies the address. So a `Node` has no destructor: the current version
/// [retires](Self::retire) it, once, when it no longer has it.
pub(super) struct Node<T> {
    inner: NonNull<NodeInner<T>>,
    owns: PhantomData<T>,
}

#[repr(C)]
struct NodeInner<T> {
    header: NodeHeader,
    contents: T,
}

/// The contents of a node. Their destructor does not panic: it runs in the middle of a change.
pub(super) trait Contents: Send + 'static {
    /// Returns the bytes that the contents own outside of their node.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// A large value, in a buffer of its own.
impl Contents for Bytes {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

/// Returns the bytes of a node, header included.
pub(super) const fn node_bytes<T>() -> usize {
    size_of::<NodeInner<T>>()
}

// SAFETY: a node is a `T` at an address. Threads other than the writer's only ever read it (invariant 1), and it is
// dropped by whichever thread ends the last snapshot that sees it.
unsafe impl<T: Send + Sync> Send for Node<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Node<T> {}

impl Node<Block> {
    /// Makes a node that owns the memory of a chunk.
    pub(super) fn of_chunk(chunk: Block, epochs: &Epochs) -> Self {
        /// # Safety
        ///
        /// This is a node of a chunk.
        unsafe fn bytes(node: NonNull<NodeHeader>) -> usize {
            // SAFETY: by the caller.
            let node = unsafe { node.cast::<NodeInner<Block>>().as_ref() };
            node_bytes::<Block>() + node.contents.bytes()
        }
        /// # Safety
        ///
        /// This is a node of a chunk, and is not used again.
        unsafe fn drop(node: NonNull<NodeHeader>) -> Option<Block> {
            // SAFETY: by the caller.
            Some(unsafe { (&raw mut (*node.cast::<NodeInner<Block>>().as_ptr()).contents).read() })
        }
        let vtable = const { &NodeVtable { layout: Layout::new::<NodeInner<Block>>(), bytes, drop } };
        Self::allocate(chunk, vtable, epochs)
    }
}

impl<T: Contents> Node<T> {
    pub(super) fn new(contents: T, epochs: &Epochs) -> Self {
        /// # Safety
        ///
        /// This is a node of a `T`.
        unsafe fn bytes<T: Contents>(node: NonNull<NodeHeader>) -> usize {
            // SAFETY: by the caller.
            node_bytes::<T>() + unsafe { node.cast::<NodeInner<T>>().as_ref() }.contents.heap_bytes()
        }
        /// # Safety
        ///
        /// This is a node of a `T`, and is not used again.
        unsafe fn drop<T>(node: NonNull<NodeHeader>) -> Option<Block> {
            // SAFETY: by the caller, this is where the contents lie, and they are not used again.
            unsafe { (&raw mut (*node.cast::<NodeInner<T>>().as_ptr()).contents).drop_in_place() };
            None
        }
        let vtable =
            const { &NodeVtable { layout: Layout::new::<NodeInner<T>>(), bytes: bytes::<T>, drop: drop::<T> } };
        Self::allocate(contents, vtable, epochs)
    }
}

impl<T> Node<T> {
    /// Makes a node with the functions of its vtable.
    fn allocate(contents: T, vtable: &'static NodeVtable, epochs: &Epochs) -> Self {
        debug_assert_eq!(vtable.layout, Layout::new::<NodeInner<T>>());
        let inner = epochs.allocate_node(vtable.layout).into_raw().cast::<NodeInner<T>>();
        let header = NodeHeader::new(epochs.now(), vtable);
        // SAFETY: it is memory of that layout, and nobody else's.
        unsafe { inner.write(NodeInner { header, contents }) };
        Self { inner, owns: PhantomData }
    }
}

impl<T: Contents + Clone> Node<T> {
    /// Returns the contents, to be changed. If a live snapshot sees the node, a copy takes its place first.
    #[inline]
    pub(super) fn make_mut(&mut self, epochs: &Epochs) -> &mut T {
        // SAFETY: nothing writes to the node while `self` is borrowed; see `get`.
        if epochs.is_seen(unsafe { self.inner.as_ref() }.header.birth) {
            self.unshare(epochs);
        }
        // SAFETY: the node belongs to the current version alone, which is borrowed by `self`, and no live snapshot sees
        // it: it is a new copy, or `is_seen` said so, with acquire ordering after the last one that did.
        unsafe { &mut self.inner.as_mut().contents }
    }

    /// Puts a copy in the place of the node.
    #[inline(never)]
    fn unshare(&mut self, epochs: &Epochs) {
        let copy = Self::new(self.get().clone(), epochs);
        mem::replace(self, copy).retire(epochs);
    }
}

impl<T> Node<T> {
    /// Frees the node once no snapshot sees it. Allocates nothing.
    pub(super) fn retire(self, epochs: &Epochs) {
        // SAFETY: the current version, which alone owns the node, lets go of it, once (invariant 2).
        epochs.retire(unsafe { Retired::new(self.inner.cast()) });
    }

    /// Returns the same node, for a copy of its parent or for a snapshot's view of the structure.
    pub(super) fn alias(&self) -> Self {
        Self { inner: self.inner, owns: PhantomData }
    }

    /// Returns `true` if both are the same node. Neither version may be gone.
    pub(super) fn ptr_eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }

    /// Asks for all the memory of the node itself, because it is read soon.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch_all(self.inner.as_ptr().cast(), size_of::<NodeInner<T>>());
    }

    pub(super) fn get(&self) -> &T {
        // SAFETY: whoever holds a node holds it as part of the current version, which has not retired it, or as part of
        // the view of a live snapshot that sees it (invariant 1).
        unsafe { &self.inner.as_ref().contents }
    }
}

impl<T: fmt::Debug> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
impl<T: Contents> Node<T> {
    /// Makes a node as if that had been in epoch `birth`.
    pub(super) fn born_in(birth: Epoch, contents: T, epochs: &Epochs) -> Self {
        let mut node = Self::new(contents, epochs);
        // SAFETY: nobody else has the node.
        unsafe { node.inner.as_mut() }.header.birth = birth;
        node
    }
}

#[cfg(test)]
mod tests {
    use std::{ptr, thread};

    use super::*;

    impl Contents for i32 {}
    impl Contents for u64 {}

    impl Contents for Vec<usize> {
        fn heap_bytes(&self) -> usize {
            self.capacity() * size_of::<usize>()
        }
    }

    #[test]
    fn a_node_is_copied_only_while_it_is_seen() {
        let epochs = Epochs::new();
        let mut node = Node::new(1, &epochs);
        let place = node.get() as *const i32;
        *node.make_mut(&epochs) = 2;
        assert_eq!(node.get() as *const i32, place);

        let view = node.alias();
        let guard = epochs.freeze(0);
        *node.make_mut(&epochs) = 3;
        assert_eq!((*view.get(), *node.get()), (2, 3));
        let copy = node.get() as *const i32;
        *node.make_mut(&epochs) = 4;
        assert_eq!((*view.get(), *node.get(), node.get() as *const i32), (2, 4, copy));
        drop(guard);
        node.retire(&epochs);
    }

    #[test]
    fn a_snapshot_is_read_and_ended_on_another_thread() {
        let epochs = Epochs::new();
        let mut node = Node::new(vec![0; 100], &epochs);
        let rounds = if cfg!(miri) { 5 } else { 500 };
        for round in 1..rounds {
            let (view, guard) = (node.alias(), epochs.freeze(0));
            let reader = thread::spawn(move || {
                assert!(view.get().iter().all(|&number| number == round - 1));
                drop(guard);
            });
            for number in node.make_mut(&epochs) {
                *number = round;
            }
            reader.join().unwrap();
        }
        node.retire(&epochs);
    }

    #[test]
    fn memory_that_comes_back_elsewhere_serves_again() {
        let epochs = Epochs::new();
        let chunk = |bytes| Layout::from_size_align(bytes, 64).unwrap();
        let mut nodes: Vec<_> = (0..10_u64).map(|number| Node::new(number, &epochs)).collect();
        let place = |node: &Node<u64>| ptr::from_ref(node.get()).addr();
        let size = node_bytes::<u64>();
        let kept = 8 * size + 2 * node_bytes::<Block>();
        epochs.set_free_limits(kept, 200, chunk(128));
        for round in 1..4 {
            // One has the layout that is asked for, and one no longer has.
            let chunks = [128, 64].map(|bytes| Node::of_chunk(epochs.allocate_chunk(chunk(bytes)), &epochs));
            let guard = epochs.freeze(0);
            let snapshot = epochs.pinned_bytes();
            let mut before: Vec<_> = nodes.iter().map(place).collect();
            nodes.iter_mut().for_each(|node| *node.make_mut(&epochs) += 1);
            chunks.into_iter().for_each(|chunk| chunk.retire(&epochs));
            assert_eq!(epochs.pinned_bytes() - snapshot, 10 * size + 2 * node_bytes::<Block>() + 192);
            // From the second time on eight copies lie where nodes lay two rounds ago.
            assert_eq!(epochs.free_bytes(), 0);
            thread::spawn(move || drop(guard)).join().unwrap();
            assert_eq!((epochs.pinned_bytes(), epochs.free_bytes()), (0, kept + 128));

            // Nodes that were freed last are kept.
            before.drain(..2);
            let guard = epochs.freeze(0);
            nodes[..8].iter_mut().for_each(|node| *node.make_mut(&epochs) += 1);
            let mut after: Vec<_> = nodes[..8].iter().map(place).collect();
            before.sort_unstable();
            after.sort_unstable();
            assert_eq!(after, before);
            drop(guard);
            assert!(
                nodes
                    .iter()
                    .enumerate()
                    .all(|(at, node)| *node.get() == at as u64 + round * 2 - u64::from(at > 7) * round)
            );
        }
        epochs.release_free(kept - 7 * size + 128);
        assert_eq!(epochs.free_bytes(), 7 * size);
        epochs.release_all_free();
        assert_eq!(epochs.free_bytes(), 0);
        nodes.into_iter().for_each(|node| node.retire(&epochs));
        assert_eq!(epochs.free_bytes(), 0);
    }
}
