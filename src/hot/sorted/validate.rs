//! Checks the invariants that `sorted.rs` states. A failure names the one that does not hold.

use super::SortedIndex;
use super::fill::small_limit;
use super::head::{common_prefix_len, key_head};
use super::keys::Keys;
use super::leaf::{Leaf, UNKNOWN, difference};
use super::node::{Child, Inner};
use crate::hot::entry_id::EntryId;
use crate::hot::node::Contents as _;
use crate::hot::node::node_bytes;

impl<const L: usize, const I: usize> SortedIndex<L, I> {
    /// Panics unless all invariants hold.
    pub(in super::super) fn validate(&self, keys: &impl Keys) {
        let mut walk = TreeWalk { ids: Vec::new(), height: self.height, allocated: 0 };
        if let Some(root) = &self.view.root {
            walk.check(keys, root, 1, (None, None));
            assert!(matches!(root, Child::Leaf(_)) || root.len() >= 2, "3");
        }
        assert!(walk.ids.is_sorted_by(|&a, &b| keys.key(a) < keys.key(b)), "1");
        assert_eq!(self.view.len, walk.ids.len(), "1");
        assert_eq!(self.view.root.is_some(), self.height > 0, "3");
        assert_eq!(self.allocated_bytes(), walk.allocated, "7");
    }
}

/// A walk over the tree, with what it has met so far.
struct TreeWalk {
    ids: Vec<EntryId>,
    height: usize,
    allocated: usize,
}

impl TreeWalk {
    fn check<const L: usize, const I: usize>(
        &mut self,
        keys: &impl Keys,
        child: &Child<L, I>,
        depth: usize,
        (low, high): (Option<&[u8]>, Option<&[u8]>),
    ) {
        let within = |key: &[u8]| low.is_none_or(|low| low <= key) && high.is_none_or(|high| key < high);
        let fence_prefix = low.zip(high).map_or(0, |(low, high)| common_prefix_len(low, high));
        assert!(child.len() > 0, "3");
        let (used, shared, unused): (Vec<&[u8]>, _, _) = match child {
            Child::Leaf(node) => {
                let leaf = node.get();
                assert_eq!(depth, self.height, "3");
                assert!(leaf.ids().iter().all(|&id| within(keys.key(id))), "2");
                assert!(usize::from(leaf.fence_prefix) <= fence_prefix, "6");
                let kept = usize::from(leaf.prefix).min(leaf.prefix_tail.len());
                let prefix = &keys.key(leaf.ids()[0])[..leaf.prefix.into()];
                assert_eq!(leaf.prefix_tail[leaf.prefix_tail.len() - kept..], prefix[prefix.len() - kept..], "5");
                for (at, ids) in leaf.ids().windows(2).enumerate() {
                    let (shared, next_byte) = (leaf.shared[at + 1], leaf.next_bytes[at + 1]);
                    let is_true = (shared, next_byte) == difference(keys.key(ids[0]), keys.key(ids[1]));
                    assert!(is_true || shared == UNKNOWN, "9");
                }
                self.ids.extend_from_slice(leaf.ids());
                self.allocated += node_bytes::<Leaf<L>>();
                (
                    leaf.ids().iter().map(|&id| keys.key(id)).collect(),
                    (leaf.prefix, leaf.heads.to_vec()),
                    L - leaf.len(),
                )
            }
            Child::Inner(node) => {
                let inner = node.get();
                let separators: Vec<_> = (0..inner.separators()).map(|at| inner.separator(at)).collect();
                assert!(separators.is_sorted_by(|a, b| a < b), "2");
                assert!(separators.iter().all(|separator| within(separator)), "2");
                assert!(usize::from(inner.fence_prefix) <= fence_prefix, "6");
                assert!(inner.heap_bytes() >= separators.iter().map(|separator| separator.len()).sum(), "7");
                self.allocated += node_bytes::<Inner<L, I>>() + inner.heap_bytes();
                let counted =
                    inner.children.iter().enumerate().all(|(at, child)| child.is_some() == (at < inner.len()));
                assert!(counted, "8");
                for at in 0..inner.len() {
                    if at > 0 {
                        let capacity = if matches!(inner.child(at), Child::Leaf(_)) { L } else { I };
                        assert!(inner.len_with_next(at - 1) > small_limit(capacity), "4");
                    }
                    let low = at.checked_sub(1).map(|left| separators[left]).or(low);
                    self.check(keys, inner.child(at), depth + 1, (low, separators.get(at).copied().or(high)));
                }
                let unused = I - separators.len();
                (separators, (inner.prefix, inner.heads.to_vec()), unused)
            }
        };
        let (prefix, heads) = (usize::from(shared.0), shared.1);
        assert!(used.iter().all(|key| key.get(..prefix).is_some_and(|start| used[0].starts_with(start))), "5");
        let expected = used.iter().map(|key| key_head(key, prefix)).chain((0..unused).map(|_| u32::MAX));
        assert!(heads.into_iter().eq(expected), "5");
    }
}
