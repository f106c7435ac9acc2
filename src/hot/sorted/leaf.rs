//! [`Leaf`]: ids, with a few bytes of each key.
//!
//! The figure and the reasons are in `node.rs`.

use std::cmp::Ordering;

use super::fill::{NodeFull, small_limit};
use super::head::{
    KeyHead, UNUSED, best_prefix, cmp_prefix, common_prefix_len, count_below, insert_at, key_head, saturate,
};
use super::keys::{Boundary, Keys};
use crate::hot::entry_id::EntryId;
use crate::hot::node::Contents;

/// How many of the last bytes of its prefix a leaf holds itself.
const PREFIX_TAIL: usize = 16;

/// The offset of a difference that the leaf does not know. No real offset is as large: keys that share so many bytes
/// are equal.
pub(super) const UNKNOWN: u16 = u16::MAX;

/// Where a key differs from the key before it: the number of bytes that both share, or `UNKNOWN`, and the key's next
/// byte.
type KeyDifference = (u16, u8);

/// Returns where `key` differs from `before`, which is less.
pub(super) fn difference(before: &[u8], key: &[u8]) -> KeyDifference {
    let shared = common_prefix_len(before, key);
    (saturate(shared), key[shared])
}

/// Returns where a key differs from the one before it, if the heads of both tell. The heads start at `prefix`.
fn difference_of_heads(before: KeyHead, head: KeyHead, prefix: u16) -> KeyDifference {
    let shared = (before ^ head).leading_zeros() / 8;
    // The byte where the heads differ belongs to the key: it is above another byte, so it is no padding. But the key
    // before may end earlier, in padding that equals zeros of this key.
    let may_have_ended = shared > 0 && before << (8 * (shared - 1)) == 0;
    match head.to_be_bytes().get(shared as usize) {
        Some(&byte) if !may_have_ended => (prefix.saturating_add(shared as u16), byte),
        _ => (UNKNOWN, 0),
    }
}

/// The result of a search in a leaf.
struct InsertPosition {
    /// The slot that the key belongs in.
    at: usize,
    /// How many bytes the key shares with the key before `at`, if the search read that key.
    shared_before: Option<usize>,
    /// Where the key at `at` differs from the key that was searched for, if the search found out.
    next: Option<KeyDifference>,
}

impl From<usize> for InsertPosition {
    fn from(at: usize) -> Self {
        Self { at, shared_before: None, next: None }
    }
}

/// A leaf of up to `L` ids.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Leaf<const L: usize> {
    // These come first, to lie in one cache line with the node's header and the first heads.
    pub(super) len: u16,
    /// All keys of the leaf share so many bytes. The heads start behind them.
    pub(super) prefix: u16,
    /// The separators left and right of the leaf share at least so many bytes.
    pub(super) fence_prefix: u16,
    /// The slot of the last insertion.
    pub(super) last_insert: u16,
    /// The last bytes of the prefix, right-aligned.
    pub(super) prefix_tail: [u8; PREFIX_TAIL],
    pub(super) heads: [KeyHead; L],
    pub(super) ids: [EntryId; L],
    /// How many bytes each key shares with the key before it, or `UNKNOWN`.
    pub(super) shared: [u16; L],
    /// Each key's first byte behind those, if their number is known.
    pub(super) next_bytes: [u8; L],
}

impl<const L: usize> Contents for Leaf<L> {}

impl<const L: usize> Leaf<L> {
    /// Makes a leaf of one entry, which is the whole tree.
    pub(super) fn single(key: &[u8], id: EntryId) -> Self {
        let mut leaf = Self::empty(0);
        leaf.len = 1;
        leaf.set_prefix(saturate(key.len()), key);
        leaf.heads[0] = key_head(key, usize::from(leaf.prefix));
        leaf.ids[0] = id;
        leaf
    }

    fn empty(fence_prefix: u16) -> Self {
        Self {
            len: 0,
            prefix: 0,
            fence_prefix,
            last_insert: 0,
            prefix_tail: [0; PREFIX_TAIL],
            heads: [UNUSED; L],
            ids: [EntryId::default(); L],
            shared: [UNKNOWN; L],
            next_bytes: [0; L],
        }
    }

    /// Sets the length of the prefix. `witness` is a key that starts with it.
    fn set_prefix(&mut self, prefix: u16, witness: &[u8]) {
        self.prefix = prefix;
        let kept = usize::from(prefix).min(PREFIX_TAIL);
        self.prefix_tail[PREFIX_TAIL - kept..]
            .copy_from_slice(&witness[usize::from(prefix) - kept..usize::from(prefix)]);
    }

    /// Makes a leaf of `ids`, which are in order and not empty, between separators that share `fence_prefix` bytes.
    pub(super) fn from_ids(keys: &impl Keys, ids: &[EntryId], fence_prefix: u16) -> Self {
        let mut leaf = Self::empty(fence_prefix);
        leaf.len = ids.len() as u16;
        leaf.ids[..ids.len()].copy_from_slice(ids);
        leaf.set_prefix(best_prefix(leaf.shared_by_all(keys), fence_prefix), keys.key(ids[0]));
        leaf.update_heads(keys);
        let mut before = keys.key(ids[0]);
        for (slot, &id) in ids.iter().enumerate().skip(1) {
            let key = keys.key(id);
            (leaf.shared[slot], leaf.next_bytes[slot]) = difference(before, key);
            before = key;
        }
        leaf
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn ids(&self) -> &[EntryId] {
        &self.ids[..self.len()]
    }

    /// Returns the number of keys before `boundary`, which shares at least `known` bytes of the prefix.
    #[inline]
    pub(super) fn rank(&self, keys: &impl Keys, boundary: Boundary<'_>, known: u16) -> usize {
        self.find(keys, boundary, known).at
    }

    #[inline]
    fn find(&self, keys: &impl Keys, boundary: Boundary<'_>, known: u16) -> InsertPosition {
        let head = key_head(boundary.key, usize::from(self.prefix));
        let below = count_below(&self.heads, head);
        let ids = self.ids();
        if self.prefix > known {
            let Some(&witness) = ids.first() else { return 0.into() };
            let unknown = usize::from(self.prefix - known);
            let tail = self.prefix_tail.get(PREFIX_TAIL.wrapping_sub(unknown)..);
            let rest = tail.unwrap_or_else(|| &keys.key(witness)[known.into()..self.prefix.into()]);
            match cmp_prefix(boundary.key, rest, known) {
                Ordering::Less => return 0.into(),
                Ordering::Equal => {}
                Ordering::Greater => return ids.len().into(),
            }
        }
        let tied = self.heads[below..ids.len()].iter().take_while(|&&other| other == head).count();
        if tied == 0 { below.into() } else { self.find_among(keys, boundary, below, below + tied) }
    }

    /// Searches the slots from `first` to `end`, whose heads equal that of the key.
    fn find_among(
        &self,
        keys: &impl Keys,
        Boundary { key, is_after }: Boundary<'_>,
        first: usize,
        end: usize,
    ) -> InsertPosition {
        // How many bytes `key` shares with that of the slot before, which is less.
        let mut before = None;
        for at in first..end {
            let (shared, next) = (self.shared[at], self.next_bytes[at]);
            let known = before.filter(|_| shared != UNKNOWN).map(|before| usize::from(shared).cmp(&before));
            let ours = before.and_then(|before| key.get(before));
            match known {
                // This key is still like the one before it where `key` is already greater.
                Some(Ordering::Greater) => continue,
                Some(Ordering::Equal) if ours > Some(&next) => continue,
                // This key is greater than the one before it where `key` is still like that.
                Some(Ordering::Less) => {
                    return InsertPosition { at, shared_before: before, next: Some((shared, next)) };
                }
                Some(Ordering::Equal) if ours < Some(&next) => {
                    return InsertPosition { at, shared_before: before, next: Some((shared, next)) };
                }
                _ => {}
            }
            let other = keys.key(self.ids[at]);
            let shared = common_prefix_len(key, other);
            match (key.get(shared), other.get(shared)) {
                (None, None) if !is_after => return at.into(),
                (ours, Some(&next)) if ours < Some(&next) => {
                    return InsertPosition { at, shared_before: before, next: Some((saturate(shared), next)) };
                }
                _ => before = Some(shared),
            }
        }
        InsertPosition { at: end, shared_before: before, next: None }
    }

    #[inline]
    pub(super) fn insert(&mut self, keys: &impl Keys, key: &[u8], id: EntryId) -> Result<(), NodeFull> {
        let InsertPosition { at, shared_before, next } =
            self.find(keys, Boundary { key, is_after: false }, self.fence_prefix);
        let len = self.len();
        if len == L {
            return Err(NodeFull { at });
        }
        // A key between two others shares the prefix with them. One before or after all others may not.
        if self.prefix > self.fence_prefix && (at == 0 || at == len) {
            let witness = keys.key(self.ids[at.min(len - 1)]);
            self.shorten_prefix(common_prefix_len(key, witness), witness);
        }
        // Where the search compared no whole keys, the heads on both sides differ from this one, as all share the
        // prefix.
        let head = key_head(key, usize::from(self.prefix));
        let ours = match (at.checked_sub(1), shared_before) {
            (None, _) => (UNKNOWN, 0),
            (Some(_), Some(shared)) => (saturate(shared), key[shared]),
            (Some(before), None) => difference_of_heads(self.heads[before], head, self.prefix),
        };
        if at < len {
            (self.shared[at], self.next_bytes[at]) = match next {
                Some(difference) => difference,
                None => difference_of_heads(head, self.heads[at], self.prefix),
            };
        }
        insert_at(&mut self.heads, len, at, head);
        insert_at(&mut self.ids, len, at, id);
        insert_at(&mut self.shared, len, at, ours.0);
        insert_at(&mut self.next_bytes, len, at, ours.1);
        self.len += 1;
        self.last_insert = at as u16;
        Ok(())
    }

    /// Returns the slot of `id`, which is there and whose key is `key`.
    fn slot_of(&self, key: &[u8], id: EntryId) -> usize {
        let below = count_below(&self.heads, key_head(key, usize::from(self.prefix)));
        let found = self.ids[below..self.len()].iter().position(|&other| other == id);
        below + found.expect("an entry is in the leaf that its key belongs in")
    }

    /// Puts the id `new` in the place of `old`, whose key is `key`.
    pub(super) fn replace(&mut self, key: &[u8], old: EntryId, new: EntryId) {
        let at = self.slot_of(key, old);
        self.ids[at] = new;
    }

    /// Removes `id`, whose key is `key`.
    pub(super) fn remove(&mut self, key: &[u8], id: EntryId) {
        let at = self.slot_of(key, id);
        let len = self.len();
        if at + 1 < len {
            // The next key differs from the one before `key` where `key` does, or where it differs from `key`: at the
            // earlier of the two.
            let (ours, next) = (self.shared[at], self.shared[at + 1]);
            if ours == UNKNOWN || next == UNKNOWN {
                self.shared[at + 1] = UNKNOWN;
            } else if ours < next {
                (self.shared[at + 1], self.next_bytes[at + 1]) = (ours, self.next_bytes[at]);
            }
        }
        self.heads.copy_within(at + 1..len, at);
        self.ids.copy_within(at + 1..len, at);
        self.shared.copy_within(at + 1..len, at);
        self.next_bytes.copy_within(at + 1..len, at);
        self.heads[len - 1] = UNUSED;
        self.len -= 1;
    }

    /// Returns the slot in the middle half of a full leaf whose key shares the least with the key before it, as far as
    /// heads tell.
    ///
    /// So leaves end where groups of keys do, and their keys share more: heads that start within the name of one group
    /// tell nothing apart in another. (Prefix B-trees do that for short separators: Bayer and Unterauer, TODS 1977.)
    pub(super) fn group_boundary(&self) -> usize {
        let middle = L / 2;
        let shared = |at: usize| (self.heads[at - 1] ^ self.heads[at]).leading_zeros() / 8;
        let slots = small_limit(L)..=L - small_limit(L);
        slots.min_by_key(|&at| (shared(at), at.abs_diff(middle))).unwrap_or(middle)
    }

    /// Returns a leaf of the ids from `from` on.
    pub(super) fn tail(&self, from: usize) -> Self {
        let len = self.len();
        let last_insert = self.last_insert.saturating_sub(from as u16);
        let mut tail = Self { len: (len - from) as u16, last_insert, ..*self };
        tail.heads.copy_within(from..len, 0);
        tail.heads[len - from..].fill(UNUSED);
        tail.ids.copy_within(from..len, 0);
        tail.shared.copy_within(from..len, 0);
        tail.next_bytes.copy_within(from..len, 0);
        tail
    }

    /// Drops the ids from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        self.heads[len..].fill(UNUSED);
        self.len = len as u16;
    }

    /// Adds the ids of the next leaf, `right`. Neither leaf is empty.
    pub(super) fn append(&mut self, keys: &impl Keys, right: &Self) {
        let mut right = right.clone();
        let (first, last) = (keys.key(self.ids[0]), keys.key(right.ids[right.len() - 1]));
        let shared = common_prefix_len(first, last).min(usize::from(right.prefix));
        self.shorten_prefix(shared, first);
        right.shorten_prefix(usize::from(self.prefix), last);
        (right.shared[0], right.next_bytes[0]) = difference(keys.key(self.ids[self.len() - 1]), keys.key(right.ids[0]));
        let (from, to) = (self.len(), self.len() + right.len());
        self.heads[from..to].copy_from_slice(&right.heads[..right.len()]);
        self.ids[from..to].copy_from_slice(right.ids());
        self.shared[from..to].copy_from_slice(&right.shared[..right.len()]);
        self.next_bytes[from..to].copy_from_slice(&right.next_bytes[..right.len()]);
        self.len = to as u16;
        self.fence_prefix = self.fence_prefix.min(right.fence_prefix);
    }

    /// Notes that the separators around share at least `fence_prefix` bytes. Called after a large change of the leaf,
    /// so it also makes the prefix longer if the heads waste much of their bytes.
    pub(super) fn raise_fence_prefix(&mut self, keys: &impl Keys, fence_prefix: u16) {
        self.fence_prefix = self.fence_prefix.max(fence_prefix);
        if shared_by_heads(&self.heads[..self.len()]) >= 2 {
            let prefix = best_prefix(self.shared_by_all(keys), self.fence_prefix);
            if prefix > self.prefix {
                self.set_prefix(prefix, keys.key(self.ids[0]));
                self.update_heads(keys);
            }
        }
    }

    /// Returns the number of bytes that all keys share.
    fn shared_by_all(&self, keys: &impl Keys) -> u16 {
        match self.ids() {
            [] => 0,
            &[id] => saturate(keys.key(id).len()),
            &[first, .., last] => saturate(common_prefix_len(keys.key(first), keys.key(last))),
        }
    }

    /// Computes all heads from the keys.
    fn update_heads(&mut self, keys: &impl Keys) {
        let len = self.len();
        for &id in self.ids() {
            keys.prefetch(id);
        }
        for (slot, &id) in self.heads[..len].iter_mut().zip(&self.ids) {
            *slot = key_head(keys.key(id), usize::from(self.prefix));
        }
    }

    /// Shortens the prefix to `shared` bytes, if it is longer. `witness` is a key that starts with the old prefix.
    fn shorten_prefix(&mut self, shared: usize, witness: &[u8]) {
        if shared < usize::from(self.prefix) {
            let prefix = saturate(shared);
            let len = self.len();
            move_heads_back(&mut self.heads[..len], self.prefix - prefix, prefix, witness);
            self.set_prefix(prefix, witness);
        }
    }
}

/// Returns the number of bytes that all these heads share.
fn shared_by_heads(heads: &[KeyHead]) -> usize {
    let (Some(first), Some(last)) = (heads.first(), heads.last()) else { return 0 };
    (first ^ last).leading_zeros() as usize / 8
}

/// Makes heads start `by` bytes earlier, at `prefix`. `witness` is a key that starts with the bytes they skipped so
/// far.
fn move_heads_back(heads: &mut [KeyHead], by: u16, prefix: u16, witness: &[u8]) {
    let shift = 8 * u32::from(by);
    let (start, kept) = (key_head(witness, usize::from(prefix)), KeyHead::MAX.checked_shr(shift).unwrap_or(0));
    for head in heads {
        *head = start & !kept | head.checked_shr(shift).unwrap_or(0);
    }
}
