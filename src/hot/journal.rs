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
//! While a snapshot is alive, the writer notes every entry of which it makes or removes a record: its id, and where its
//! record was and is. At the next snapshot the notes become a *part*, which that snapshot shares with those after it: the
//! parts from one snapshot's epoch to another's name every entry that can differ between the two. They name some more:
//! an entry may be changed back, or just be moved, or its id may belong to another key by now. Who compares looks.
//!
//! An entry that was noted once is where the earlier snapshot sees it, and where the later one does: the table need not be
//! asked, which saves the two cache misses that a look at it in each snapshot takes. Of one noted repeatedly only the id
//! counts.
//!
//! A record that is changed where it lies is not noted, and need not be: no live snapshot sees it, so it was made after
//! the newest of them was taken, and noted then. So a counter that is hot is noted once between two snapshots.
//!
//! # Why this and not the other way
//!
//! Comparing the tables page by page needs no notes, but one changed entry in each page of 64 makes it look at
//! everything. Notes cost sixteen bytes and a store or two for a write that copies a record anyway.
//!
//! Notes are let go of when the last snapshot that could need them is found to be gone, at the next note. Until then they
//! take two bytes for each entry of the store, at most, and so do those of earlier epochs together. Their memory serves the
//! next notes, or is freed some blocks at a time: a large store's, freed in one call, stopped the writer for milliseconds.
//!
//! Ids noted once only would need a mark for each entry, and a pass to clear the marks.
//!
//! # Invariants
//!
//! 1. The parts are those of consecutive epochs, in order, up to that of the snapshot taken last.
//! 2. A part, and `notes` unless they are `lost`, has a note for each time that an entry got or lost a record in its epoch
//!    while a snapshot was alive all along, in order.
//! 3. `parts_bytes` is what the parts take, unless notes are `lost`; `notes` hold at most `limit` notes, and so do all parts
//!    together.
//! 4. `spent` are blocks of `LARGEST` notes that nobody asks for any more. While there are any, none is allocated.

use std::mem;
use std::sync::Arc;

use super::arena::Location;
use super::sizes;
use super::versions::{Epoch, Versions};

/// No record's location: a record takes more than the one unit that a chunk of the most units has there.
pub(super) const NOWHERE: Location = (1 << 48) - 1;

/// Where an entry's record was, and where it is since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) id: u32,
    /// [`NOWHERE`] for an entry that is new.
    pub(super) old: Location,
    /// [`NOWHERE`] for an entry that is gone.
    pub(super) new: Location,
}

/// A note in sixteen bytes: two locations, and half of the id above each.
#[derive(Clone, Copy)]
struct Packed([u64; 2]);

impl Packed {
    #[inline]
    fn new(Note { id, old, new }: Note) -> Self {
        Self([u64::from(id >> 16) << 48 | old, u64::from(id & 0xFFFF) << 48 | new])
    }

    #[inline]
    fn id(self) -> u32 {
        (self.0[0] >> 48 << 16 | self.0[1] >> 48) as u32
    }

    #[inline]
    fn note(self) -> Note {
        Note { id: self.id(), old: self.0[0] & NOWHERE, new: self.0[1] & NOWHERE }
    }
}

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
    spent: Vec<Vec<Packed>>,
}

/// What the writer noted in one epoch.
pub(super) struct Part {
    epoch: Epoch,
    notes: Notes,
}

/// Notes in blocks, so that no block moves when there are more.
#[derive(Default)]
struct Notes {
    blocks: Vec<Vec<Packed>>,
    len: usize,
}

impl Notes {
    /// The notes in a block: as many as there are already, between these two.
    const FIRST: usize = 16;
    const LARGEST: usize = if cfg!(test) { 32 } else { 4 << 10 };

    /// Makes room for a note.
    #[inline]
    fn reserve(&mut self, spent: &mut Vec<Vec<Packed>>) {
        if self.blocks.last().is_none_or(|block| block.len() == block.capacity()) {
            self.push_block(spent);
        }
    }

    /// Adds a note, for which there is room.
    #[inline]
    fn push(&mut self, note: Packed) {
        self.blocks.last_mut().expect(NO_ROOM).push(note);
        self.len += 1;
    }

    #[cold]
    fn push_block(&mut self, spent: &mut Vec<Vec<Packed>>) {
        self.blocks.reserve(1);
        let capacity = self.len.clamp(Self::FIRST, Self::LARGEST);
        let spent = if capacity == Self::LARGEST { spent.pop() } else { None };
        let mut block = spent.unwrap_or_else(|| Vec::with_capacity(capacity));
        block.clear();
        self.blocks.push(block);
    }

    fn allocated_bytes(&self) -> usize {
        let in_last = self.blocks.last().map_or(0, |block| block.capacity() - block.len());
        (self.len + in_last) * size_of::<Packed>()
    }
}

const NO_ROOM: &str = "there is room for a note before it is made";

/// Where a change is to be noted, once it is made.
#[must_use]
pub(super) struct Page<'a>(Option<&'a mut Notes>);

impl Page<'_> {
    /// Notes that an entry got a record, lost it, or has it elsewhere. Allocates nothing.
    #[inline]
    pub(super) fn note(self, note: Note) {
        if let Self(Some(notes)) = self {
            notes.push(Packed::new(note));
        }
    }
}

impl Journal {
    /// Makes ready for a note, which is to be made with the change that it is of.
    #[inline]
    pub(super) fn page(&mut self, versions: &Versions) -> Page<'_> {
        if versions.newest_live() == 0 {
            // Whoever could have asked for what was noted so far is gone.
            if self.notes.len + self.parts.len() + self.spent.len() > 0 {
                self.forget();
            }
        } else if self.notes.len < self.limit {
            self.notes.reserve(&mut self.spent);
            return Page(Some(&mut self.notes));
        } else if !self.lost {
            self.lose();
        }
        Page(None)
    }

    /// Notes that any entry may have changed.
    #[cold]
    fn lose(&mut self) {
        (self.lost, self.limit) = (true, 0);
        self.forget();
    }

    /// The same, and frees all that there is at once. Allocates nothing.
    pub(super) fn clear(&mut self) {
        *self = Self { lost: true, ..Self::default() };
    }

    #[cold]
    fn forget(&mut self) {
        self.parts_bytes = 0;
        self.spend_parts(self.parts.len());
        let notes = mem::take(&mut self.notes);
        spend(&mut self.spent, notes);
        self.free_spent(0);
    }

    /// Lets go of the oldest parts.
    fn spend_parts(&mut self, count: usize) {
        // Who keeps a part for a snapshot frees it.
        let parts = self.parts.drain(..count).filter_map(Arc::into_inner);
        parts.for_each(|part| spend(&mut self.spent, part.notes));
    }

    /// Frees some of the spent blocks, down to so many.
    fn free_spent(&mut self, enough: usize) {
        const AT_ONCE: usize = 4;
        self.spent.truncate(self.spent.len().saturating_sub(AT_ONCE).max(enough));
        if self.spent.is_empty() {
            self.spent = Vec::new();
        }
    }

    /// Ends `epoch` with a snapshot of so many entries, before which the snapshot of epoch `oldest` was the oldest one alive.
    /// Returns the parts for the new one to keep.
    pub(super) fn freeze(&mut self, oldest: Option<Epoch>, epoch: Epoch, entries: usize) -> Box<[Arc<Part>]> {
        // Which they are if there is no memory for what follows.
        let lost = mem::replace(&mut self.lost, true);
        self.parts_bytes = 0;
        let notes = mem::take(&mut self.notes);
        let blocks = notes.blocks.len();
        let limit = entries / 8 + sizes::JOURNAL;
        match oldest {
            Some(oldest) if !lost => {
                self.parts.push(Arc::new(Part { epoch, notes }));
                // Nobody asks for what was before the oldest.
                let mut kept = self.parts.iter().position(|part| part.epoch > oldest).unwrap_or(self.parts.len());
                let mut len: usize = self.parts[kept..].iter().map(|part| part.notes.len).sum();
                while len > limit {
                    len -= self.parts[kept].notes.len;
                    kept += 1;
                }
                self.spend_parts(kept);
            }
            _ => {
                self.spend_parts(self.parts.len());
                spend(&mut self.spent, notes);
            }
        }
        self.lost = false;
        // As many as this epoch took serve the next one.
        self.free_spent(blocks);
        self.parts_bytes = self.parts.iter().map(|part| part.notes.allocated_bytes()).sum();
        self.limit = limit;
        self.parts.iter().cloned().collect()
    }

    /// The bytes of all notes. O(1).
    pub(super) fn allocated_bytes(&self) -> usize {
        let spent = self.spent.len() * Notes::LARGEST * size_of::<Packed>();
        self.notes.allocated_bytes() + self.parts_bytes + spent
    }
}

/// Keeps the memory of these notes for other ones.
fn spend(spent: &mut Vec<Vec<Packed>>, notes: Notes) {
    spent.extend(notes.blocks.into_iter().filter(|block| block.capacity() == Notes::LARGEST));
}

/// What was noted between two snapshots.
pub(super) struct Noted<'a> {
    parts: &'a [Arc<Part>],
    /// A bit for each id, or for some together, and whether there is more than one note for it.
    repeated: Vec<u64>,
}

/// What was noted between the snapshot of epoch `since` and the later one that keeps `parts`, or `None` if not all of it
/// was. O(n), n being the number of notes.
pub(super) fn noted_since(parts: &[Arc<Part>], since: Epoch) -> Option<Noted<'_>> {
    let first = parts.iter().position(|part| part.epoch == since + 1)?;
    let mut noted = Noted { parts: &parts[first..], repeated: Vec::new() };
    // Few enough that they are cheap to clear, and so many that two ids seldom have the same one.
    let words = (noted.len() / 4).next_power_of_two();
    noted.repeated = vec![0; words];
    let mut seen = vec![0_u64; words];
    for note in noted.notes() {
        let (word, bit) = noted.bit_of(note.id());
        noted.repeated[word] |= seen[word] & bit;
        seen[word] |= bit;
    }
    Some(noted)
}

impl<'a> Noted<'a> {
    /// The number of notes.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.notes.len).sum()
    }

    fn notes(&self) -> impl Iterator<Item = Packed> + use<'a> {
        self.parts.iter().flat_map(|part| &part.notes.blocks).flatten().copied()
    }

    fn bit_of(&self, id: u32) -> (usize, u64) {
        ((id as usize / 64) & (self.repeated.len() - 1), 1 << (id % 64))
    }

    /// Calls `f` with the notes of entries that have one, and returns the ids of the others, in ascending order and each
    /// once. Among those may be some of the former.
    pub(super) fn for_each_single(&self, mut f: impl FnMut(Note)) -> Vec<u32> {
        let mut others = Vec::new();
        for packed in self.notes() {
            let (word, bit) = self.bit_of(packed.id());
            if self.repeated[word] & bit == 0 {
                f(packed.note());
            } else {
                others.push(packed.id());
            }
        }
        others.sort_unstable();
        others.dedup();
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A note for an entry that is changed.
    fn changed(id: u32) -> Note {
        Note { id, old: u64::from(id), new: u64::from(id) + 1 }
    }

    /// Takes a snapshot of a store with many entries.
    fn freeze(journal: &mut Journal, versions: &Versions) -> (Box<[Arc<Part>]>, super::super::versions::Claim) {
        let oldest = versions.oldest_live();
        let claim = versions.freeze();
        (journal.freeze(oldest, claim.epoch(), 1000), claim)
    }

    /// The ids that were noted, in ascending order.
    fn ids(parts: &[Arc<Part>], since: Epoch) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        let others = noted_since(parts, since)?.for_each_single(|note| {
            assert_eq!(note, changed(note.id));
            ids.push(note.id);
        });
        assert!(ids.iter().all(|id| others.binary_search(id).is_err()));
        ids.extend(others);
        ids.sort_unstable();
        Some(ids)
    }

    #[test]
    fn a_note_is_packed_whole() {
        for id in [0, 1, 0xFFFF, 0x1_0000, u32::MAX] {
            for (old, new) in [(0, NOWHERE), (NOWHERE, 0), (NOWHERE - 1, 1)] {
                let note = Note { id, old, new };
                assert_eq!((Packed::new(note).note(), Packed::new(note).id()), (note, id));
            }
        }
    }

    #[test]
    fn nothing_is_noted_while_no_snapshot_is_alive() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        journal.page(&versions).note(changed(1));
        assert_eq!(journal.allocated_bytes(), 0);
        let (parts, claim) = freeze(&mut journal, &versions);
        assert!(parts.is_empty());
        journal.page(&versions).note(changed(2));
        assert!(journal.allocated_bytes() > 0);
        drop(claim);
        journal.page(&versions).note(changed(3));
        assert_eq!(journal.allocated_bytes(), 0);
        assert!(freeze(&mut journal, &versions).0.is_empty());
    }

    #[test]
    fn what_notes_took_serves_the_next_ones_or_goes_little_by_little() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        let block = Notes::LARGEST * size_of::<Packed>();
        let note = |journal: &mut Journal, count| (0..count).for_each(|id| journal.page(&versions).note(changed(id)));
        let freeze = |journal: &mut Journal| {
            let (oldest, claim) = (versions.oldest_live(), versions.freeze());
            (journal.freeze(oldest, claim.epoch(), 10_000), claim)
        };
        // While it is there all is noted, and no other snapshot keeps what is noted.
        let oldest = freeze(&mut journal);
        let mut bytes = Vec::new();
        for _ in 0..6 {
            note(&mut journal, 1000);
            bytes.push(journal.allocated_bytes());
            drop(freeze(&mut journal));
        }
        // One part, for there is no room for two, and the notes since; no more from then on.
        assert!(bytes[1] > bytes[0] && bytes[2..].iter().all(|&all| all == bytes[1]), "{bytes:?}");
        let spent = journal.spent.len();
        assert!(spent > 20 && spent * Notes::LARGEST <= 1000, "{spent}");

        // Fewer notes: what is too much goes with the snapshots.
        note(&mut journal, 40);
        drop(freeze(&mut journal));
        assert!((spent - 6..spent - 3).contains(&journal.spent.len()), "{}", journal.spent.len());

        drop(oldest);
        let mut writes = 0;
        while journal.allocated_bytes() > 0 {
            let before = journal.allocated_bytes();
            note(&mut journal, 1);
            assert!(before - journal.allocated_bytes() <= 8 * block);
            writes += 1;
        }
        assert!(writes > 3, "{writes}");
    }

    #[test]
    fn parts_reach_back_to_the_oldest_live_snapshot() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        let mut claims = Vec::new();
        for id in 1..=4 {
            let (_, claim) = freeze(&mut journal, &versions);
            claims.push(claim);
            journal.page(&versions).note(changed(id));
            journal.page(&versions).note(changed(70 - id));
            journal.page(&versions).note(changed(id));
        }
        // The snapshots of epochs 1 and 3 go.
        drop(claims.swap_remove(2));
        drop(claims.swap_remove(0));
        let (parts, _claim) = freeze(&mut journal, &versions);
        assert_eq!(ids(&parts, 4), Some(vec![4, 66]));
        assert_eq!(ids(&parts, 3), Some(vec![3, 4, 66, 67]));
        assert_eq!(ids(&parts, 2), Some(vec![2, 3, 4, 66, 67, 68]));
        assert_eq!(ids(&parts, 1), None);
        assert_eq!(ids(&parts, 5), None);
    }

    #[test]
    fn what_is_noted_once_is_told_apart() {
        // As many as fill the bits, ids that share a bit, and one more than once.
        for noted in [vec![100_000, 7, 64, 7], (0..5000).map(|i| i * 7919 % 5003).collect(), vec![9; 100]] {
            let (mut journal, versions) = (Journal::default(), Versions::new());
            let claim = (versions.freeze(), journal.freeze(None, 1, 100_000));
            noted.iter().for_each(|&id| journal.page(&versions).note(changed(id)));
            let parts = journal.freeze(versions.oldest_live(), 2, 100_000);
            let mut expected = noted.clone();
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(ids(&parts, 1), Some(expected.clone()));

            let found = noted_since(&parts, 1).unwrap();
            assert_eq!(found.len(), noted.len());
            let mut singles = Vec::new();
            let others = found.for_each_single(|note| singles.push(note.id));
            let is_repeated = |id: &&u32| noted.iter().filter(|noted| noted == id).count() > 1;
            assert!(expected.iter().filter(is_repeated).all(|id| others.contains(id)));
            // Few of those that were noted once share a bit with others.
            assert!(singles.len() * 2 >= expected.iter().filter(|id| !is_repeated(id)).count());
            drop(claim);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut journal, versions) = (Journal::default(), Versions::new());
        let limit = 1000 / 8 + sizes::JOURNAL;
        let mut claims = vec![freeze(&mut journal, &versions).1];
        // Exactly as many as there may be, and one more.
        for (count, is_kept) in [(limit, true), (limit + 1, false)] {
            for id in 0..count {
                journal.page(&versions).note(changed(id as u32));
                // The last block of each, the part and the notes, may be as large as those before it.
                assert!(journal.allocated_bytes() <= 4 * limit * size_of::<Packed>());
            }
            let since = versions.now() - 1;
            let (parts, claim) = freeze(&mut journal, &versions);
            assert_eq!(noted_since(&parts, since).is_some(), is_kept);
            claims.push(claim);
        }
        // Of parts that are too much together the oldest go, and those in between stay.
        for id in 0..4 {
            (0..limit / 2).for_each(|_| journal.page(&versions).note(changed(id)));
            claims.push(freeze(&mut journal, &versions).1);
        }
        let (parts, _claim) = freeze(&mut journal, &versions);
        let now = versions.now() - 1;
        assert_eq!(ids(&parts, now - 1), Some(vec![]));
        assert_eq!(ids(&parts, now - 3), Some(vec![2, 3]));
        assert_eq!(ids(&parts, now - 4), None);
    }
}
