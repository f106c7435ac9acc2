//! A leaf: ids with what is kept of their keys.
//!
//! The figure and the reasons are in `node.rs`.

use std::cmp::Ordering;

use super::Keys;
use super::node::{Cut, Full, Head, UNUSED, against, below, best_prefix, common, head, insert_at, quarter, short};

/// How many bytes of its prefix a leaf has itself.
const LEAD: usize = 16;

/// Stands for a number of shared bytes that only the keys tell. None is as large: two keys that share so many are equal.
pub(super) const UNKNOWN: u16 = u16::MAX;

/// Where a key parts from the one before it: how many bytes they share, or `UNKNOWN`, and its own byte behind those.
type Turn = (u16, u8);

/// Where the second of two keys, the greater one, parts from the first.
pub(super) fn turn(before: &[u8], key: &[u8]) -> Turn {
    let shared = common(before, key);
    (short(shared), key[shared])
}

/// As `turn`, as far as the heads of the keys behind `prefix` tell.
fn turn_of_heads(before: Head, head: Head, prefix: u16) -> Turn {
    let shared = (before ^ head).leading_zeros() / 8;
    // Where they differ, the byte is above another one, so it is none of the zeros behind the end of a short key. But the
    // key before may have ended among zeros that the other one really has.
    let may_have_ended = shared > 0 && before << (8 * (shared - 1)) == 0;
    match head.to_be_bytes().get(shared as usize) {
        Some(&turn) if !may_have_ended => (prefix.saturating_add(shared as u16), turn),
        _ => (UNKNOWN, 0),
    }
}

/// A place in a leaf for a key, and where the key there parts from this one, as far as a search learnt that.
struct Found {
    at: usize,
    /// How many bytes the key shares with the one before the place.
    before: Option<usize>,
    behind: Option<Turn>,
}

impl From<usize> for Found {
    fn from(at: usize) -> Self {
        Self { at, before: None, behind: None }
    }
}

#[derive(Clone)]
#[repr(C)]
pub(super) struct Leaf<const L: usize> {
    // First, to lie in one cache line with the node's stamp and the first heads.
    pub(super) len: u16,
    pub(super) prefix: u16,
    pub(super) fenced: u16,
    /// Where the last insertion was.
    pub(super) last: u16,
    /// The last bytes of the prefix, as many as there are, right-aligned.
    pub(super) lead: [u8; LEAD],
    pub(super) heads: [Head; L],
    pub(super) ids: [u32; L],
    /// How many bytes the key of a slot shares with the one before it, or `UNKNOWN`.
    pub(super) shared: [u16; L],
    /// The byte that follows those, if they are known.
    pub(super) turns: [u8; L],
}

impl<const L: usize> Leaf<L> {
    pub(super) fn one(key: &[u8], id: u32) -> Self {
        let mut leaf = Self::empty(0);
        leaf.len = 1;
        leaf.set_prefix(short(key.len()), key);
        leaf.heads[0] = head(key, usize::from(leaf.prefix));
        leaf.ids[0] = id;
        leaf
    }

    fn empty(fenced: u16) -> Self {
        let (heads, ids, shared, turns) = ([UNUSED; L], [0; L], [UNKNOWN; L], [0; L]);
        Self { len: 0, prefix: 0, fenced, last: 0, lead: [0; LEAD], heads, ids, shared, turns }
    }

    /// Sets how many bytes are skipped, which any key in the leaf begins with.
    fn set_prefix(&mut self, prefix: u16, witness: &[u8]) {
        self.prefix = prefix;
        let kept = usize::from(prefix).min(LEAD);
        self.lead[LEAD - kept..].copy_from_slice(&witness[usize::from(prefix) - kept..usize::from(prefix)]);
    }

    /// A leaf of these ids, at least one and in order, between separators that share `fenced` bytes.
    pub(super) fn of(keys: &impl Keys, ids: &[u32], fenced: u16) -> Self {
        let mut leaf = Self::empty(fenced);
        leaf.len = ids.len() as u16;
        leaf.ids[..ids.len()].copy_from_slice(ids);
        leaf.set_prefix(best_prefix(leaf.shared_by_all(keys), fenced), keys.key(ids[0]));
        leaf.rehead(keys);
        let mut before = keys.key(ids[0]);
        for (slot, &id) in ids.iter().enumerate().skip(1) {
            let key = keys.key(id);
            (leaf.shared[slot], leaf.turns[slot]) = turn(before, key);
            before = key;
        }
        leaf
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids[..self.len()]
    }

    /// How many keys are before `cut`, which shares `known` bytes of the prefix for sure.
    #[inline]
    pub(super) fn rank(&self, keys: &impl Keys, cut: Cut<'_>, known: u16) -> usize {
        self.find(keys, cut, known).at
    }

    #[inline]
    fn find(&self, keys: &impl Keys, cut: Cut<'_>, known: u16) -> Found {
        let head = head(cut.key, usize::from(self.prefix));
        let below = below(&self.heads, head);
        let ids = self.ids();
        if self.prefix > known {
            let Some(&witness) = ids.first() else { return 0.into() };
            let unknown = usize::from(self.prefix - known);
            let lead = self.lead.get(LEAD.wrapping_sub(unknown)..);
            match against(cut.key, lead.unwrap_or_else(|| &keys.key(witness)[known.into()..self.prefix.into()]), known)
            {
                Ordering::Less => return 0.into(),
                Ordering::Equal => {}
                Ordering::Greater => return ids.len().into(),
            }
        }
        let tied = self.heads[below..ids.len()].iter().take_while(|&&other| other == head).count();
        if tied == 0 { below.into() } else { self.find_among(keys, cut, below, below + tied) }
    }

    /// Finds the place of a key in the slots from `first` to `end`, whose heads are equal to its own.
    fn find_among(&self, keys: &impl Keys, Cut { key, after }: Cut<'_>, first: usize, end: usize) -> Found {
        // How many bytes `key` shares with that of the slot before, which is below it.
        let mut before = None;
        for at in first..end {
            let (shared, turn) = (self.shared[at], self.turns[at]);
            let known = before.filter(|_| shared != UNKNOWN).map(|before| usize::from(shared).cmp(&before));
            let ours = before.and_then(|before| key.get(before));
            match known {
                // This one still goes with the one before it where the key already went past that.
                Some(Ordering::Greater) => continue,
                Some(Ordering::Equal) if ours > Some(&turn) => continue,
                // This one went further than the key does.
                Some(Ordering::Less) => return Found { at, before, behind: Some((shared, turn)) },
                Some(Ordering::Equal) if ours < Some(&turn) => {
                    return Found { at, before, behind: Some((shared, turn)) };
                }
                _ => {}
            }
            let other = keys.key(self.ids[at]);
            let shared = common(key, other);
            match (key.get(shared), other.get(shared)) {
                (None, None) if !after => return at.into(),
                (ours, Some(&turn)) if ours < Some(&turn) => {
                    return Found { at, before, behind: Some((short(shared), turn)) };
                }
                _ => before = Some(shared),
            }
        }
        Found { at: end, before, behind: None }
    }

    #[inline]
    pub(super) fn insert(&mut self, keys: &impl Keys, key: &[u8], id: u32) -> Result<(), Full> {
        let Found { at, before, behind } = self.find(keys, Cut { key, after: false }, self.fenced);
        let len = self.len();
        if len == L {
            return Err(Full { at });
        }
        // Only before and behind all others can it be that a key does not share the prefix.
        if self.prefix > self.fenced && (at == 0 || at == len) {
            let witness = keys.key(self.ids[at.min(len - 1)]);
            self.lower(common(key, witness), witness);
        }
        // Heads that say nothing of a place are different there, now that all share the prefix.
        let head = head(key, usize::from(self.prefix));
        let turns = |before: usize, shared: Option<usize>| match shared {
            Some(shared) => (short(shared), key[shared]),
            None => turn_of_heads(self.heads[before], head, self.prefix),
        };
        let ours = at.checked_sub(1).map_or((UNKNOWN, 0), |last| turns(last, before));
        if at < len {
            (self.shared[at], self.turns[at]) = match behind {
                Some(turn) => turn,
                None => turn_of_heads(head, self.heads[at], self.prefix),
            };
        }
        insert_at(&mut self.heads, len, at, head);
        insert_at(&mut self.ids, len, at, id);
        insert_at(&mut self.shared, len, at, ours.0);
        insert_at(&mut self.turns, len, at, ours.1);
        self.len += 1;
        self.last = at as u16;
        Ok(())
    }

    /// Removes `id`, whose key is `key`.
    pub(super) fn remove(&mut self, key: &[u8], id: u32) {
        let below = below(&self.heads, head(key, usize::from(self.prefix)));
        let len = self.len();
        let found = self.ids[below..len].iter().position(|&other| other == id);
        let at = below + found.expect("what is removed is there");
        if at + 1 < len {
            // The next one parts from the one before where this one did, unless it does so earlier.
            let (ours, next) = (self.shared[at], self.shared[at + 1]);
            if ours == UNKNOWN || next == UNKNOWN {
                self.shared[at + 1] = UNKNOWN;
            } else if ours < next {
                (self.shared[at + 1], self.turns[at + 1]) = (ours, self.turns[at]);
            }
        }
        self.heads.copy_within(at + 1..len, at);
        self.ids.copy_within(at + 1..len, at);
        self.shared.copy_within(at + 1..len, at);
        self.turns.copy_within(at + 1..len, at);
        self.heads[len - 1] = UNUSED;
        self.len -= 1;
    }

    /// The place in the middle half of a full leaf where neighbours have the least in common, as far as heads tell.
    ///
    /// So leaves end where groups of keys do (prefix B-trees do that for short separators: Bayer and Unterauer, TODS
    /// 1977), and their keys share more: heads that start within the name of one group tell nothing apart in another.
    pub(super) fn border(&self) -> usize {
        let middle = L / 2;
        let shared = |at: usize| (self.heads[at - 1] ^ self.heads[at]).leading_zeros() / 8;
        let places = quarter(L)..=L - quarter(L);
        places.min_by_key(|&at| (shared(at), at.abs_diff(middle))).unwrap_or(middle)
    }

    /// A leaf of the ids from `from` on.
    pub(super) fn tail(&self, from: usize) -> Self {
        let len = self.len();
        let mut tail = Self { len: (len - from) as u16, last: self.last.saturating_sub(from as u16), ..*self };
        tail.heads.copy_within(from..len, 0);
        tail.heads[len - from..].fill(UNUSED);
        tail.ids.copy_within(from..len, 0);
        tail.shared.copy_within(from..len, 0);
        tail.turns.copy_within(from..len, 0);
        tail
    }

    /// Forgets the ids from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        self.heads[len..].fill(UNUSED);
        self.len = len as u16;
    }

    /// Takes over all that is in the leaf `right` of this one. Neither is empty.
    pub(super) fn append(&mut self, keys: &impl Keys, right: &Self) {
        let mut right = right.clone();
        let (first, last) = (keys.key(self.ids[0]), keys.key(right.ids[right.len() - 1]));
        let shared = common(first, last).min(usize::from(right.prefix));
        self.lower(shared, first);
        right.lower(usize::from(self.prefix), last);
        (right.shared[0], right.turns[0]) = turn(keys.key(self.ids[self.len() - 1]), keys.key(right.ids[0]));
        let (from, to) = (self.len(), self.len() + right.len());
        self.heads[from..to].copy_from_slice(&right.heads[..right.len()]);
        self.ids[from..to].copy_from_slice(right.ids());
        self.shared[from..to].copy_from_slice(&right.shared[..right.len()]);
        self.turns[from..to].copy_from_slice(&right.turns[..right.len()]);
        self.len = to as u16;
        self.fenced = self.fenced.min(right.fenced);
    }

    /// Learns that the separators around share at least `fenced` bytes, at a time when the leaf changed much.
    pub(super) fn fence(&mut self, keys: &impl Keys, fenced: u16) {
        self.fenced = self.fenced.max(fenced);
        if wasted(&self.heads[..self.len()]) >= 2 {
            let prefix = best_prefix(self.shared_by_all(keys), self.fenced);
            if prefix > self.prefix {
                self.set_prefix(prefix, keys.key(self.ids[0]));
                self.rehead(keys);
            }
        }
    }

    /// How many bytes all keys share.
    fn shared_by_all(&self, keys: &impl Keys) -> u16 {
        match self.ids() {
            [] => 0,
            &[id] => short(keys.key(id).len()),
            &[first, .., last] => short(common(keys.key(first), keys.key(last))),
        }
    }

    fn rehead(&mut self, keys: &impl Keys) {
        let len = self.len();
        for &id in self.ids() {
            keys.prefetch(id);
        }
        for (slot, &id) in self.heads[..len].iter_mut().zip(&self.ids) {
            *slot = head(keys.key(id), usize::from(self.prefix));
        }
    }

    /// Shortens the prefix to what is `shared` with some key, if that is less.
    fn lower(&mut self, shared: usize, witness: &[u8]) {
        if shared < usize::from(self.prefix) {
            let prefix = short(shared);
            let len = self.len();
            lower(&mut self.heads[..len], self.prefix - prefix, prefix, witness);
            self.set_prefix(prefix, witness);
        }
    }
}

/// How many bytes the first and last of the heads in use share.
fn wasted(heads: &[Head]) -> usize {
    let (Some(first), Some(last)) = (heads.first(), heads.last()) else { return 0 };
    (first ^ last).leading_zeros() as usize / 8
}

/// Lets heads start earlier, at `prefix`. The bytes come from a `witness`, which shares what they skipped so far.
fn lower(heads: &mut [Head], by: u16, prefix: u16, witness: &[u8]) {
    let shift = 8 * u32::from(by);
    let (lead, kept) = (head(witness, usize::from(prefix)), Head::MAX.checked_shr(shift).unwrap_or(0));
    for head in heads {
        *head = lead & !kept | head.checked_shr(shift).unwrap_or(0);
    }
}
