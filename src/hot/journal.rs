//! The journal: which entries changed from one snapshot to the next.
//!
//! # Design
//!
//! ```text
//!   epoch     1          2            3               (now)
//!             ────────S1 ──────── S2 ──────────────>
//!   noted                 [5 9 5]     [7 2 …]
//!                            │           └ becomes the part of the next snapshot
//!                            └ the part of S2: what the writer changed between S1 and S2
//! ```
//!
//! While a snapshot is alive, the writer notes the id of every entry of which it makes or removes a record. At the next
//! snapshot the notes become a *part*, which that snapshot shares with those after it: the parts from one snapshot's epoch to
//! another's name every entry that can differ between the two. They name some more, and some repeatedly: an entry may
//! be changed back, or just be moved, or its id may belong to another key by now. Who compares looks.
//!
//! A record that is changed where it lies is not noted, and need not be: no live snapshot sees it, so it was made after
//! the newest of them was taken, and noted then. So a counter that is hot is noted once between two snapshots.
//!
//! # Why this and not the other way
//!
//! Comparing the tables page by page needs no notes, but one changed entry in each page of 64 makes it look at
//! everything. Notes cost four bytes and a store for a write that copies a record anyway.
//!
//! Notes are let go of when the last snapshot that could need them is found to be gone, at the next note. Until then they
//! take a byte for each entry of the store, at most, and so do those of earlier epochs together.
//!
//! Ids noted once only would need a mark for each entry, and a pass to clear the marks.
//!
//! # Invariants
//!
//! 1. The parts are those of consecutive epochs, in order, up to that of the snapshot taken last.
//! 2. A part, and `notes` unless they are `lost`, names every entry that got or lost a record in its epoch while a
//!    snapshot was alive all along.
//! 3. `parts_bytes` is what the parts take; `notes` hold at most `limit` ids, and so do all parts together.

use std::mem;
use std::sync::Arc;

use super::sizes;
use super::versions::{Epoch, Versions};

/// What a store's writer notes.
#[derive(Default)]
pub(super) struct Journal {
    notes: Notes,
    /// Notes are missing, because there were more than `limit` or all entries changed at once.
    lost: bool,
    limit: usize,
    parts: Vec<Arc<Part>>,
    /// What the parts take.
    parts_bytes: usize,
}

/// The ids of entries that the writer touched in one epoch.
pub(super) struct Part {
    epoch: Epoch,
    notes: Notes,
}

/// Ids in blocks, so that no block moves when there are more.
#[derive(Default)]
struct Notes {
    blocks: Vec<Vec<u32>>,
    len: usize,
}

impl Notes {
    /// The ids in a block: as many as there are already, between these two.
    const FIRST: usize = 64;
    const LARGEST: usize = 16 << 10;

    #[inline]
    fn push(&mut self, id: u32) {
        match self.blocks.last_mut().filter(|block| block.len() < block.capacity()) {
            Some(block) => block.push(id),
            None => self.push_block(id),
        }
        self.len += 1;
    }

    #[cold]
    fn push_block(&mut self, id: u32) {
        let mut block = Vec::with_capacity(self.len.clamp(Self::FIRST, Self::LARGEST));
        block.push(id);
        self.blocks.push(block);
    }

    fn allocated_bytes(&self) -> usize {
        let in_last = self.blocks.last().map_or(0, |block| block.capacity() - block.len());
        (self.len + in_last) * size_of::<u32>()
    }
}

impl Journal {
    /// Notes that the entry gets or loses a record.
    #[inline]
    pub(super) fn note(&mut self, versions: &Versions, id: u32) {
        if versions.newest_live() == 0 {
            // Whoever could have asked for what was noted so far is gone.
            if self.notes.len + self.parts.len() > 0 {
                self.forget();
            }
        } else if self.notes.len < self.limit {
            self.notes.push(id);
        } else if !self.lost {
            self.lose();
        }
    }

    /// Notes that any entry may have changed.
    #[cold]
    pub(super) fn lose(&mut self) {
        self.forget();
        (self.lost, self.limit) = (true, 0);
    }

    #[cold]
    fn forget(&mut self) {
        self.notes = Notes::default();
        self.parts = Vec::new();
        self.parts_bytes = 0;
    }

    /// Ends `epoch` with a snapshot of so many entries, before that snapshot is alive. Returns the parts for it to keep.
    pub(super) fn freeze(&mut self, versions: &Versions, epoch: Epoch, entries: usize) -> Box<[Arc<Part>]> {
        let notes = mem::take(&mut self.notes);
        let limit = entries / 4 + sizes::JOURNAL;
        match versions.oldest_live() {
            Some(oldest) if !mem::take(&mut self.lost) => {
                self.parts.push(Arc::new(Part { epoch, notes }));
                // Nobody asks for what was before the oldest.
                let mut kept = self.parts.iter().position(|part| part.epoch > oldest).unwrap_or(self.parts.len());
                let mut len: usize = self.parts[kept..].iter().map(|part| part.notes.len).sum();
                while len > limit {
                    len -= self.parts[kept].notes.len;
                    kept += 1;
                }
                self.parts.drain(..kept);
            }
            _ => {
                self.lost = false;
                self.parts.clear();
            }
        }
        self.parts_bytes = self.parts.iter().map(|part| part.notes.allocated_bytes()).sum();
        self.limit = limit;
        self.parts.iter().cloned().collect()
    }

    /// The bytes of all notes. O(1).
    pub(super) fn allocated_bytes(&self) -> usize {
        self.notes.allocated_bytes() + self.parts_bytes
    }
}

/// The ids of all entries that can differ between the snapshot of epoch `since` and the later one that keeps `parts`, in
/// ascending order and each once; `None` if that was not noted.
pub(super) fn noted_since(parts: &[Arc<Part>], since: Epoch) -> Option<Vec<u32>> {
    let first = parts.iter().position(|part| part.epoch == since + 1)?;
    let blocks = || parts[first..].iter().flat_map(|part| &part.notes.blocks);
    let len: usize = blocks().map(Vec::len).sum();
    let end = blocks().flatten().max().map_or(0, |&last| last as usize + 1);

    // To look through a bit for each id that there can be takes as long as to sort one id in some hundreds of them.
    if len < end / 256 {
        let mut ids: Vec<u32> = blocks().flatten().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        return Some(ids);
    }
    let mut words = vec![0_u64; end.div_ceil(64)];
    for &id in blocks().flatten() {
        words[id as usize / 64] |= 1 << (id % 64);
    }
    let mut ids = Vec::with_capacity(len);
    for (at, mut word) in words.into_iter().enumerate() {
        while word != 0 {
            ids.push(at as u32 * 64 + word.trailing_zeros());
            word &= word - 1;
        }
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a snapshot of a store with many entries.
    fn freeze(journal: &mut Journal, versions: &Versions) -> (Box<[Arc<Part>]>, super::super::versions::Claim) {
        let parts = journal.freeze(versions, versions.now(), 1000);
        (parts, versions.freeze())
    }

    #[test]
    fn nothing_is_noted_while_no_snapshot_is_alive() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        journal.note(&versions, 1);
        assert_eq!(journal.allocated_bytes(), 0);
        let (parts, claim) = freeze(&mut journal, &versions);
        assert!(parts.is_empty());
        journal.note(&versions, 2);
        assert!(journal.allocated_bytes() > 0);
        drop(claim);
        journal.note(&versions, 3);
        assert_eq!(journal.allocated_bytes(), 0);
        assert!(freeze(&mut journal, &versions).0.is_empty());
    }

    #[test]
    fn parts_reach_back_to_the_oldest_live_snapshot() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        let mut claims = Vec::new();
        for id in 1..=4 {
            let (_, claim) = freeze(&mut journal, &versions);
            claims.push(claim);
            journal.note(&versions, id);
            journal.note(&versions, 70 - id);
            journal.note(&versions, id);
        }
        // The snapshots of epochs 1 and 3 go.
        drop(claims.swap_remove(2));
        drop(claims.swap_remove(0));
        let (parts, _claim) = freeze(&mut journal, &versions);
        assert_eq!(noted_since(&parts, 4), Some(vec![4, 66]));
        assert_eq!(noted_since(&parts, 3), Some(vec![3, 4, 66, 67]));
        assert_eq!(noted_since(&parts, 2), Some(vec![2, 3, 4, 66, 67, 68]));
        assert_eq!(noted_since(&parts, 1), None);
        assert_eq!(noted_since(&parts, 5), None);
    }

    #[test]
    fn few_ids_are_sorted_and_many_are_counted_off() {
        for ids in [vec![100_000, 7, 64, 7], (0..5000).map(|i| i * 7919 % 5003).collect()] {
            let (mut journal, versions) = (Journal::default(), Versions::new());
            let claim = (journal.freeze(&versions, 1, 100_000), versions.freeze());
            ids.iter().for_each(|&id| journal.note(&versions, id));
            let parts = journal.freeze(&versions, 2, 100_000);
            let mut expected = ids.clone();
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(noted_since(&parts, 1), Some(expected));
            drop(claim);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        let limit = 1000 / 4 + sizes::JOURNAL;
        let mut claims = vec![freeze(&mut journal, &versions).1];
        // Exactly as many as there may be, and one more.
        for (count, is_kept) in [(limit, true), (limit + 1, false)] {
            for id in 0..count {
                journal.note(&versions, id as u32);
                assert!(journal.allocated_bytes() <= (2 * limit + 4 * Notes::FIRST) * 4);
            }
            let since = versions.now() - 1;
            let (parts, claim) = freeze(&mut journal, &versions);
            assert_eq!(noted_since(&parts, since).is_some(), is_kept);
            claims.push(claim);
        }
        // Of parts that are too much together the oldest go, and those in between stay.
        for id in 0..4 {
            (0..limit / 2).for_each(|_| journal.note(&versions, id));
            claims.push(freeze(&mut journal, &versions).1);
        }
        let (parts, _claim) = freeze(&mut journal, &versions);
        let now = versions.now() - 1;
        assert_eq!(noted_since(&parts, now - 1), Some(vec![]));
        assert_eq!(noted_since(&parts, now - 3), Some(vec![2, 3]));
        assert_eq!(noted_since(&parts, now - 4), None);
    }
}
