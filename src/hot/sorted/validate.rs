//! Checks the invariants that `sorted.rs` states. A failure names the one that does not hold.

use super::leaf::{UNKNOWN, turn};
use super::node::{Child, common, head, quarter};
use super::{Inner, Keys, Leaf, SortedIndex, footprint};

impl<const L: usize, const I: usize> SortedIndex<L, I> {
    /// Panics unless all invariants hold; not for what they except where there was no memory, if tests let there be none.
    pub(in super::super) fn validate(&self, keys: &impl Keys) {
        let mut found = Found { ids: Vec::new(), height: self.height, allocated: 0 };
        if let Some(root) = &self.view.root {
            found.look(keys, root, 1, (None, None));
            assert!(matches!(root, Child::Leaf(_)) || root.len() >= 2 || cfg!(alloc_error_hook), "3");
        }
        assert!(found.ids.is_sorted_by(|&a, &b| keys.key(a) < keys.key(b)), "1");
        assert_eq!(self.view.len, found.ids.len(), "1");
        assert_eq!(self.view.root.is_some(), self.height > 0, "3");
        assert_eq!(self.allocated_bytes(), found.allocated, "7");
    }
}

/// What was found so far.
struct Found {
    ids: Vec<u32>,
    height: usize,
    allocated: usize,
}

impl Found {
    fn look<const L: usize, const I: usize>(
        &mut self,
        keys: &impl Keys,
        child: &Child<L, I>,
        depth: usize,
        (low, high): (Option<&[u8]>, Option<&[u8]>),
    ) {
        let within = |key: &[u8]| low.is_none_or(|low| low <= key) && high.is_none_or(|high| key < high);
        let fenced = low.zip(high).map_or(0, |(low, high)| common(low, high));
        assert!(child.len() > 0, "3");
        let (used, shared, unused): (Vec<&[u8]>, _, _) = match child {
            Child::Leaf(node) => {
                let leaf = node.get();
                assert_eq!(depth, self.height, "3");
                assert!(leaf.ids().iter().all(|&id| within(keys.key(id))), "2");
                assert!(usize::from(leaf.fenced) <= fenced, "6");
                let kept = usize::from(leaf.prefix).min(leaf.lead.len());
                let prefix = &keys.key(leaf.ids()[0])[..leaf.prefix.into()];
                assert_eq!(leaf.lead[leaf.lead.len() - kept..], prefix[prefix.len() - kept..], "5");
                for (at, ids) in leaf.ids().windows(2).enumerate() {
                    let (shared, turns) = (leaf.shared[at + 1], leaf.turns[at + 1]);
                    let is_true = (shared, turns) == turn(keys.key(ids[0]), keys.key(ids[1]));
                    assert!(is_true || shared == UNKNOWN, "9");
                }
                self.ids.extend_from_slice(leaf.ids());
                self.allocated += footprint::<Leaf<L>>();
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
                assert!(usize::from(inner.fenced) <= fenced, "6");
                assert!(inner.spare_bytes() >= separators.iter().map(|separator| separator.len()).sum(), "7");
                self.allocated += footprint::<Inner<L, I>>() + inner.spare_bytes();
                let counted =
                    inner.children.iter().enumerate().all(|(at, child)| child.is_some() == (at < inner.len()));
                assert!(counted, "8");
                for at in 0..inner.len() {
                    if at > 0 {
                        let capacity = if matches!(inner.child(at), Child::Leaf(_)) { L } else { I };
                        assert!(inner.both(at - 1) > quarter(capacity) || cfg!(alloc_error_hook), "4");
                    }
                    let low = at.checked_sub(1).map(|left| separators[left]).or(low);
                    self.look(keys, inner.child(at), depth + 1, (low, separators.get(at).copied().or(high)));
                }
                let unused = I - separators.len();
                (separators, (inner.prefix, inner.heads.to_vec()), unused)
            }
        };
        let (prefix, heads) = (usize::from(shared.0), shared.1);
        assert!(used.iter().all(|key| key.get(..prefix).is_some_and(|start| used[0].starts_with(start))), "5");
        let expected = used.iter().map(|key| head(key, prefix)).chain((0..unused).map(|_| u32::MAX));
        assert!(heads.into_iter().eq(expected), "5");
    }
}
