//! How full nodes are kept: which neighbours are joined, and where a full node is split.

/// Returns the greatest number of entries that makes a node small, of the `capacity` entries that it can hold.
///
/// A small node is joined with a neighbour if both fit in [half a node](joined_limit).
pub(super) const fn small_limit(capacity: usize) -> usize {
    capacity.div_ceil(4)
}

/// Returns the greatest number of entries that two nodes may have together to be joined.
pub(super) const fn joined_limit(capacity: usize) -> usize {
    capacity.div_ceil(2)
}

/// Returns how many of its entries a full node keeps when it is split to insert another one at `at`.
///
/// `last` is where the last insertion was; `left` and `right` are the lengths of its neighbours, if it has them.
///
/// The node keeps half. But a run of insertions in ascending or descending order leaves most entries behind it, and so
/// fills its nodes to nine tenths. The entries ahead of the run are mostly the start of the next run; the node that
/// grows takes them along, unless they are enough for a node of their own. Beside a small node no small node is made
/// (invariant 4).
pub(super) fn split_point(capacity: usize, at: usize, last: u16, left: Option<usize>, right: Option<usize>) -> usize {
    let (middle, few) = (capacity / 2, (capacity / 10).max(1));
    let enough =
        |len: usize, neighbour: Option<usize>| neighbour.is_none_or(|other| len + other > small_limit(capacity));
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

/// Returned by an insertion into a node that has no room. `at` is where the entry belongs in it.
pub(super) struct NodeFull {
    pub(super) at: usize,
}

/// Divides `len` things among nodes of this `capacity`, nine tenths full and as evenly as possible. Returns their
/// ranges.
pub(super) fn even_ranges(len: usize, capacity: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = len.div_ceil((capacity * 9 / 10).max(2));
    (0..count).map(move |at| (len * at / count, len * (at + 1) / count))
}
