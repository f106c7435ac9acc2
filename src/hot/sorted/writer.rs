//! [`Writer`]: what a change of the sorted index needs on its way down the tree.

use crate::hot::epochs::Epochs;
use crate::hot::node::{Contents, Node, node_bytes};

/// The context of a change: where nodes come from, where keys are read, and the count of allocated bytes.
pub(super) struct Writer<'w, K> {
    pub(super) epochs: &'w Epochs,
    pub(super) keys: &'w K,
    /// Bytes of the index's nodes. Kept up to date at each step, because an allocation that fails may end the change.
    pub(super) allocated: &'w mut usize,
}

impl<K> Writer<'_, K> {
    /// Allocates a node.
    pub(super) fn new_node<T: Contents>(&mut self, contents: T) -> Node<T> {
        let node = Node::new(contents, self.epochs);
        *self.allocated += node_bytes::<T>();
        node
    }

    /// Retires a node that is no longer part of the index, and `heap_bytes` that it owns.
    pub(super) fn retire<T: Contents>(&mut self, node: Node<T>, heap_bytes: usize) {
        *self.allocated -= node_bytes::<T>() + heap_bytes;
        node.retire(self.epochs);
    }
}
