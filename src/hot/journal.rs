//! The journal: which entries changed from one snapshot to the next.
//!
//! # Design
//!
//! ```text
//!   epoch     1          2           3             4      (now)
//!             ────────S1 ──────── S2 ─────────S3 ──────────>
//!   noted                [5 9 5] <──── none ──────[7 2 …]
//!                           └ sealed by S2           └ sealed by the next snapshot
//! ```
//!
//! While a snapshot is alive, the writer notes every entry that gets or loses a record: its id, and where its record
//! was and is. The next snapshot *seals* the notes of its epoch. Sealed notes lead to those sealed before them, and a
//! snapshot keeps the last ones, so taking it costs the same whatever was taken before. An epoch without notes seals
//! none. The notes between two snapshots name every entry that can differ. They name some more: an entry may be changed
//! back, or just be moved, or its id may belong to another key by now. A comparison looks at the records.
//!
//! An entry that was noted once is where the earlier snapshot sees it, and where the later one does. So the tables need
//! not be asked, which saves a cache miss in each. Of an entry noted repeatedly only the id counts.
//!
//! A record that is changed in place is not noted, and need not be: no live snapshot sees it, so it was made after the
//! newest of them was taken, and noted then. So a counter that is hot is noted once between two snapshots.
//!
//! # Why
//!
//! Comparing the tables page by page needs no notes, but one changed entry in each page of 64 makes it look at
//! everything. Notes cost sixteen bytes and a store or two for a write that copies a record anyway.
//!
//! Notes are discarded at the next write after the last snapshot that could need them is gone. Until then they take two
//! bytes for each entry of the store, at most, and 16 KiB, and so do those of earlier epochs together. Their memory
//! serves the next notes, or is freed some blocks at a time: freeing that of a large store in one call stopped the writer
//! for milliseconds. Notes that the writer discards stay with the snapshots that keep them, which may be compared later.
//!
//! Noting each entry only once would need a mark for each, and a pass to clear the marks.
//!
//! # Invariants
//!
//! 1. `sealed` are notes of ascending epochs. Each leads to the one before it, and the first to none.
//! 2. Sealed notes, and `notes` unless they are `incomplete`, have a note for each time that an entry got or lost a
//!    record in their epoch while a snapshot was alive all along, in order.
//! 3. No entry got or lost a record between the snapshot of epoch `since` of sealed notes and the beginning of their
//!    epoch. The first of `sealed` have the journal's `since`; the others have the epoch of those before them.
//! 4. `sealed_cost` is the sum of the costs of `sealed`.
//!    `notes` are at most `limit`, and so are all of `sealed` together, or there is just one of them.
//! 5. `free_blocks` are blocks of `LARGEST` notes. While there are any, none is allocated.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use super::entry_id::EntryId;
use super::epoch::Epoch;
use super::epochs::{CountedNotes, Epochs};
use super::location::Location;
use super::sizes;

/// Where an entry's record was, and where it is since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) id: EntryId,
    /// [`Location::NONE`] for an entry that is new.
    pub(super) old: Location,
    /// [`Location::NONE`] for an entry that is gone.
    pub(super) new: Location,
}

/// A note in sixteen bytes: two locations, and half of the id above each.
#[derive(Clone, Copy)]
struct Packed([u64; 2]);

impl Packed {
    #[inline]
    fn new(Note { id, old, new }: Note) -> Self {
        let id = u64::from(id.get());
        Self([id >> 16 << Location::BITS | old.to_bits(), id << Location::BITS | new.to_bits()])
    }

    #[inline]
    fn id(self) -> EntryId {
        EntryId::new((self.0[0] >> Location::BITS << 16 | self.0[1] >> Location::BITS) as u32)
    }

    #[inline]
    fn note(self) -> Note {
        let location = |bits| Location::from_bits(bits & Location::NONE.to_bits());
        Note { id: self.id(), old: location(self.0[0]), new: location(self.0[1]) }
    }
}

/// The notes of a store's writer.
///
/// The box exists only while there are notes, so that a store without snapshots stays small.
#[derive(Default)]
pub(super) struct Journal(Option<Box<State>>);

/// The state of a journal while snapshots are alive.
struct State {
    notes: Notes,
    /// Notes are missing, because there were more than `limit` or all entries changed at once.
    incomplete: bool,
    limit: usize,
    sealed: VecDeque<Arc<SealedNotes>>,
    sealed_cost: usize,
    since: Epoch,
    free_blocks: Vec<Block>,
}

/// The notes of one epoch, sealed by the snapshot that ended it.
struct SealedNotes {
    epoch: Epoch,
    since: Epoch,
    notes: Notes,
    /// `None` if the writer has discarded them.
    before: Mutex<Option<Arc<SealedNotes>>>,
    _counted: CountedNotes,
}

impl SealedNotes {
    fn new(epoch: Epoch, notes: Notes, journal: &State, epochs: &Epochs) -> Self {
        let before = journal.sealed.back().cloned();
        let since = before.as_ref().map_or(journal.since, |before| before.epoch);
        let bytes = notes.allocated_bytes() + size_of::<Self>() + 2 * size_of::<usize>();
        Self { epoch, since, notes, before: Mutex::new(before), _counted: epochs.count_notes(bytes) }
    }

    /// Returns what these notes count for in the limit: their number, and what an epoch takes beside them.
    fn cost(&self) -> usize {
        // In notes of 16 bytes: this struct, a first block that is hardly used, and the list of blocks.
        const EPOCH: usize = if cfg!(test) { 0 } else { 28 };
        self.notes.len + EPOCH
    }

    fn before(&self) -> Option<Arc<Self>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the notes before these, which no longer lead to them.
    fn take_before(&self) -> Option<Arc<Self>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for SealedNotes {
    fn drop(&mut self) {
        // A loop, because a recursion would go as deep as there are epochs.
        let mut before = self.take_before();
        while let Some(notes) = before.and_then(Arc::into_inner) {
            before = notes.take_before();
        }
    }
}

/// The notes that a snapshot keeps: those of its epoch and before.
pub(super) struct FrozenJournal {
    /// Without sealed notes: no entry got or lost a record since the snapshot of this epoch.
    since: Epoch,
    last: Option<Arc<SealedNotes>>,
}

type Block = Vec<Packed>;

/// Notes in blocks, so that no block moves when there are more.
#[derive(Default)]
struct Notes {
    blocks: Vec<Block>,
    len: usize,
    /// How many notes the blocks have room for.
    capacity: usize,
}

impl Notes {
    /// The notes in the first block. Any other has room for as many as there are before it, up to `LARGEST`.
    const FIRST: usize = 16;
    const LARGEST: usize = if cfg!(test) { 32 } else { 4 << 10 };

    /// Reserves room for so many notes.
    #[inline]
    fn reserve(&mut self, count: usize, free_blocks: &mut Vec<Block>) {
        if self.blocks.last().is_none_or(|block| block.capacity() - block.len() < count) {
            self.push_block(count, free_blocks);
        }
    }

    /// Adds a note. There is room for it.
    #[inline]
    fn push(&mut self, note: Packed) {
        self.blocks.last_mut().expect("there is room for a note before it is made").push(note);
        self.len += 1;
    }

    #[cold]
    fn push_block(&mut self, count: usize, free_blocks: &mut Vec<Block>) {
        self.blocks.reserve(1);
        let capacity = self.len.clamp(Self::FIRST, Self::LARGEST).max(count);
        let free = if capacity == Self::LARGEST { free_blocks.pop() } else { None };
        let mut block = free.unwrap_or_else(|| Vec::with_capacity(capacity));
        block.clear();
        self.capacity += block.capacity();
        self.blocks.push(block);
    }

    /// Keeps the memory of these notes for others.
    fn recycle(self, free_blocks: &mut Vec<Block>) {
        free_blocks.extend(self.blocks.into_iter().filter(|block| block.capacity() == Self::LARGEST));
    }

    fn allocated_bytes(&self) -> usize {
        self.capacity * size_of::<Packed>() + self.blocks.capacity() * size_of::<Block>()
    }
}

/// Room for notes, if changes are noted at all.
#[must_use]
pub(super) struct NoteSlot<'a>(Option<&'a mut Notes>);

impl NoteSlot<'_> {
    /// Notes that an entry got a record, lost it, or has it elsewhere. Allocates nothing.
    #[inline]
    pub(super) fn note(&mut self, note: Note) {
        if let Self(Some(notes)) = self {
            notes.push(Packed::new(note));
        }
    }
}

impl Journal {
    /// Reserves room for one note. Call it before making the change, and note the change with it.
    #[inline]
    pub(super) fn reserve(&mut self, epochs: &Epochs) -> NoteSlot<'_> {
        self.reserve_many(1, epochs)
    }

    /// Reserves room for so many notes. Call it before making the changes, and note them with it.
    #[inline]
    pub(super) fn reserve_many(&mut self, count: usize, epochs: &Epochs) -> NoteSlot<'_> {
        if !epochs.has_snapshots() {
            // No snapshot is left that could ask for the notes so far.
            if self.0.as_mut().is_some_and(|state| state.discard()) {
                self.0 = None;
            }
            return NoteSlot(None);
        }
        let Some(state) = &mut self.0 else { return NoteSlot(None) };
        if state.notes.len + count <= state.limit {
            state.notes.reserve(count, &mut state.free_blocks);
            return NoteSlot(Some(&mut state.notes));
        }
        if !state.incomplete {
            state.set_incomplete();
        }
        NoteSlot(None)
    }

    /// Stops taking notes in this epoch, and frees all memory at once. Allocates nothing.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Seals the notes of `epoch`, which a snapshot of so many entries ends. `oldest` is the epoch of the snapshot that
    /// was the oldest one alive before. Returns the notes for the new snapshot to keep. Takes O(1) amortized time.
    pub(super) fn freeze(
        &mut self,
        oldest: Option<Epoch>,
        epoch: Epoch,
        entries: usize,
        epochs: &Epochs,
    ) -> FrozenJournal {
        let state = self.0.get_or_insert_with(|| Box::new(State::new(epoch)));
        state.freeze(oldest, epoch, entries / 8 + sizes::JOURNAL, epochs);
        FrozenJournal { since: state.since, last: state.sealed.back().cloned() }
    }

    /// Returns the bytes of all notes, those of snapshots included, and of free blocks. O(1).
    pub(super) fn allocated_bytes(&self, epochs: &Epochs) -> usize {
        epochs.notes_bytes() + self.0.as_ref().map_or(0, |state| state.allocated_bytes())
    }

    /// Returns the bytes that are there without notes.
    pub(super) fn overhead_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |_| size_of::<State>())
    }
}

impl State {
    /// Starts with the epoch after `since`.
    fn new(since: Epoch) -> Self {
        Self {
            notes: Notes::default(),
            incomplete: true,
            limit: 0,
            sealed: VecDeque::new(),
            sealed_cost: 0,
            since,
            free_blocks: Vec::new(),
        }
    }

    /// Stops taking notes in this epoch.
    #[cold]
    fn set_incomplete(&mut self) {
        (self.incomplete, self.limit) = (true, 0);
        self.discard();
    }

    /// Discards all notes, and frees some of their memory. Returns `true` if no memory is left.
    #[cold]
    fn discard(&mut self) -> bool {
        self.discard_sealed();
        mem::take(&mut self.notes).recycle(&mut self.free_blocks);
        self.trim_free_blocks(0);
        self.free_blocks.is_empty()
    }

    /// Discards all sealed notes.
    fn discard_sealed(&mut self) {
        while self.discard_oldest() {}
        self.sealed = VecDeque::new();
    }

    /// Discards the oldest sealed notes. Returns `false` if there are none.
    fn discard_oldest(&mut self) -> bool {
        let Some(oldest) = self.sealed.pop_front() else { return false };
        self.sealed_cost -= oldest.cost();
        self.since = oldest.epoch;
        self.sealed.front().map(|next| next.take_before());
        // Notes that a snapshot keeps are freed with it.
        if let Some(mut discarded) = Arc::into_inner(oldest) {
            mem::take(&mut discarded.notes).recycle(&mut self.free_blocks);
        }
        true
    }

    /// Frees some free blocks, until there are `enough`.
    fn trim_free_blocks(&mut self, enough: usize) {
        const AT_ONCE: usize = 4;
        self.free_blocks.truncate(self.free_blocks.len().saturating_sub(AT_ONCE).max(enough));
        if self.free_blocks.is_empty() {
            self.free_blocks = Vec::new();
        }
    }

    /// Seals the notes of `epoch`, and takes at most `limit` notes in the next one.
    fn freeze(&mut self, oldest: Option<Epoch>, epoch: Epoch, limit: usize, epochs: &Epochs) {
        // Notes are incomplete if there is no memory for what follows.
        let incomplete = mem::replace(&mut self.incomplete, true);
        let notes = mem::take(&mut self.notes);
        let blocks = notes.blocks.len();
        match oldest {
            Some(oldest) if !incomplete => {
                if notes.len > 0 {
                    self.sealed.reserve(1);
                    let sealed = Arc::new(SealedNotes::new(epoch, notes, self, epochs));
                    self.sealed_cost += sealed.cost();
                    self.sealed.push_back(sealed);
                }
                // Nobody asks for notes from before the oldest snapshot.
                let is_needed = |sealed: &Arc<SealedNotes>| sealed.epoch > oldest;
                while self.sealed.front().is_some_and(|first| !is_needed(first))
                    || self.sealed_cost > limit && self.sealed.len() > 1
                {
                    self.discard_oldest();
                }
            }
            _ => {
                self.discard_sealed();
                notes.recycle(&mut self.free_blocks);
                self.since = epoch;
            }
        }
        self.incomplete = false;
        // As many as this epoch took serve the next one.
        self.trim_free_blocks(blocks);
        self.limit = limit;
    }

    fn allocated_bytes(&self) -> usize {
        let free = self.free_blocks.len() * Notes::LARGEST * size_of::<Packed>();
        let lists =
            self.free_blocks.capacity() * size_of::<Block>() + self.sealed.capacity() * size_of::<Arc<SealedNotes>>();
        self.notes.allocated_bytes() + free + lists
    }
}

/// The notes between two snapshots.
pub(super) struct Noted {
    sealed: Vec<Arc<SealedNotes>>,
    len: usize,
    /// A bit for each id, or for some together: set if there is more than one note for it.
    repeated: Vec<u64>,
}

/// Returns the notes between the snapshot of epoch `since` and the later one that keeps `journal`. `None` if some are
/// missing. O(n), n being the number of notes.
pub(super) fn noted_since(journal: &FrozenJournal, since: Epoch) -> Option<Noted> {
    let mut sealed = Vec::new();
    let mut complete_since = journal.since;
    let mut next = journal.last.clone();
    while let Some(notes) = next {
        if notes.epoch <= since {
            complete_since = since;
            break;
        }
        complete_since = notes.since;
        next = notes.before();
        sealed.push(notes);
    }
    if complete_since > since {
        return None;
    }
    sealed.reverse();
    let len: usize = sealed.iter().map(|sealed| sealed.notes.len).sum();
    // Few enough that they are cheap to clear, and so many that two ids seldom share a bit.
    let words = (len / 4).next_power_of_two();
    let (mut seen, mut repeated) = (vec![0_u64; words], vec![0; words]);
    let mut noted = Noted { sealed, len, repeated: Vec::new() };
    for note in noted.notes() {
        let (word, bit) = bit_of(note.id(), words);
        repeated[word] |= seen[word] & bit;
        seen[word] |= bit;
    }
    noted.repeated = repeated;
    Some(noted)
}

impl Noted {
    /// Returns the number of notes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn notes(&self) -> impl Iterator<Item = Packed> {
        self.sealed.iter().flat_map(|sealed| &sealed.notes.blocks).flatten().copied()
    }

    /// Calls `f` with the notes of entries that were noted once. Returns the ids of all other entries, in ascending
    /// order and each once. Some entries that share a bit with others are among these although they were noted once.
    pub(super) fn for_each_single(&self, mut f: impl FnMut(Note)) -> Vec<EntryId> {
        let mut others = Vec::new();
        for packed in self.notes() {
            let (word, bit) = bit_of(packed.id(), self.repeated.len());
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

/// Returns the word and the bit that an id has in so many words, a power of two.
fn bit_of(id: EntryId, words: usize) -> (usize, u64) {
    ((id.index() / 64) & (words - 1), 1 << (id.index() % 64))
}

#[cfg(test)]
mod tests {
    use super::super::epochs::SnapshotGuard;
    use super::*;

    /// A note for an entry that is changed.
    fn changed(id: u32) -> Note {
        let location = |unit| Location::new(0, unit);
        Note { id: EntryId::new(id), old: location(id as usize), new: location(id as usize + 1) }
    }

    /// Takes a snapshot of a store with many entries.
    fn freeze(journal: &mut Journal, epochs: &Epochs) -> (FrozenJournal, SnapshotGuard) {
        let oldest = epochs.oldest_snapshot();
        let guard = epochs.freeze(0);
        (journal.freeze(oldest, guard.epoch(), 1000, epochs), guard)
    }

    /// The ids that were noted, in ascending order.
    fn ids(sealed: &FrozenJournal, since: u64) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        let others = noted_since(sealed, Epoch::from_bits(since))?.for_each_single(|note| {
            assert_eq!(note, changed(note.id.get()));
            ids.push(note.id);
        });
        assert!(ids.iter().all(|id| others.binary_search(id).is_err()));
        ids.extend(others);
        ids.sort_unstable();
        Some(ids.into_iter().map(EntryId::get).collect())
    }

    #[test]
    fn a_note_is_packed_whole() {
        for id in [0, 1, 0xFFFF, 0x1_0000, u32::MAX] {
            let last = Location::NONE.to_bits();
            for (old, new) in [(0, last), (last, 0), (last - 1, 1)] {
                let (old, new) = (Location::from_bits(old), Location::from_bits(new));
                let note = Note { id: EntryId::new(id), old, new };
                assert_eq!((Packed::new(note).note(), Packed::new(note).id()), (note, note.id));
            }
        }
    }

    #[test]
    fn nothing_is_noted_while_no_snapshot_is_alive() {
        let (mut journal, epochs) = (Journal::default(), Epochs::new());
        journal.reserve(&epochs).note(changed(1));
        assert_eq!(journal.allocated_bytes(&epochs), 0);
        let (sealed, guard) = freeze(&mut journal, &epochs);
        assert!(sealed.last.is_none());
        journal.reserve(&epochs).note(changed(2));
        assert!(journal.allocated_bytes(&epochs) > 0);
        drop(guard);
        journal.reserve(&epochs).note(changed(3));
        assert_eq!(journal.allocated_bytes(&epochs), 0);
        assert!(freeze(&mut journal, &epochs).0.last.is_none());
    }

    #[test]
    fn memory_of_notes_serves_others_or_is_freed_little_by_little() {
        let (mut journal, epochs) = (Journal::default(), Epochs::new());
        let block = Notes::LARGEST * size_of::<Packed>();
        let note = |journal: &mut Journal, count| (0..count).for_each(|id| journal.reserve(&epochs).note(changed(id)));
        let freeze = |journal: &mut Journal| {
            let (oldest, guard) = (epochs.oldest_snapshot(), epochs.freeze(0));
            (journal.freeze(oldest, guard.epoch(), 10_000, &epochs), guard)
        };
        // While it is there all is noted, and no other snapshot keeps what is noted.
        let oldest = freeze(&mut journal);
        let mut bytes = Vec::new();
        for _ in 0..6 {
            note(&mut journal, 1000);
            bytes.push(journal.allocated_bytes(&epochs));
            drop(freeze(&mut journal));
        }
        // The sealed notes of one epoch, for there is no room for those of two, and the notes since; no more from then
        // on.
        assert!(bytes[1] > bytes[0] && bytes[2..].iter().all(|&all| all <= bytes[1] + 1000), "{bytes:?}");
        let free_blocks = |journal: &Journal| journal.0.as_ref().map_or(0, |state| state.free_blocks.len());
        let free = free_blocks(&journal);
        assert!(free > 20 && free * Notes::LARGEST <= 1000, "{free}");

        // Fewer notes: what is too much goes with the snapshots.
        note(&mut journal, 40);
        drop(freeze(&mut journal));
        assert!((free - 6..free - 3).contains(&free_blocks(&journal)), "{}", free_blocks(&journal));

        drop(oldest);
        let lists = 64 * size_of::<Block>() + 1000;
        let mut writes = 0;
        while journal.allocated_bytes(&epochs) > 0 {
            let before = journal.allocated_bytes(&epochs);
            note(&mut journal, 1);
            assert!(before - journal.allocated_bytes(&epochs) <= 8 * block + lists);
            writes += 1;
        }
        assert!(writes > 3, "{writes}");
    }

    #[test]
    fn sealed_notes_reach_back_to_the_oldest_live_snapshot() {
        let (mut journal, epochs) = (Journal::default(), Epochs::new());
        let mut guards = Vec::new();
        for id in 1..=4 {
            let (_, guard) = freeze(&mut journal, &epochs);
            guards.push(guard);
            journal.reserve(&epochs).note(changed(id));
            journal.reserve(&epochs).note(changed(70 - id));
            journal.reserve(&epochs).note(changed(id));
        }
        // The snapshots of epochs 1 and 3 go.
        drop(guards.swap_remove(2));
        drop(guards.swap_remove(0));
        let (sealed, _guard) = freeze(&mut journal, &epochs);
        assert_eq!(ids(&sealed, 4), Some(vec![4, 66]));
        assert_eq!(ids(&sealed, 3), Some(vec![3, 4, 66, 67]));
        assert_eq!(ids(&sealed, 2), Some(vec![2, 3, 4, 66, 67, 68]));
        assert_eq!(ids(&sealed, 1), None);
        assert_eq!(ids(&sealed, 5), Some(vec![]));
    }

    #[test]
    fn entries_noted_once_are_told_apart() {
        // As many as fill the bits, ids that share a bit, and one more than once.
        for noted in [vec![100_000, 7, 64, 7], (0..5000).map(|i| i * 7919 % 5003).collect(), vec![9; 100]] {
            let (mut journal, epochs) = (Journal::default(), Epochs::new());
            let guard = (epochs.freeze(0), journal.freeze(None, Epoch::FIRST, 100_000, &epochs));
            noted.iter().for_each(|&id| journal.reserve(&epochs).note(changed(id)));
            let sealed = journal.freeze(epochs.oldest_snapshot(), Epoch::from_bits(2), 100_000, &epochs);
            let mut expected = noted.clone();
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(ids(&sealed, 1), Some(expected.clone()));

            let found = noted_since(&sealed, Epoch::FIRST).unwrap();
            assert_eq!(found.len(), noted.len());
            let mut singles = Vec::new();
            let others = found.for_each_single(|note| singles.push(note.id.get()));
            let is_repeated = |id: &&u32| noted.iter().filter(|noted| noted == id).count() > 1;
            assert!(expected.iter().filter(is_repeated).all(|id| others.contains(&EntryId::new(*id))));
            // Few of those that were noted once share a bit with others.
            assert!(singles.len() * 2 >= expected.iter().filter(|id| !is_repeated(id)).count());
            drop(guard);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut journal, epochs) = (Journal::default(), Epochs::new());
        let limit = 1000 / 8 + sizes::JOURNAL;
        let mut guards = vec![freeze(&mut journal, &epochs).1];
        // Exactly as many as there may be, and one more.
        for (count, is_kept) in [(limit, true), (limit + 1, false)] {
            for id in 0..count {
                journal.reserve(&epochs).note(changed(id as u32));
                // The last block of each, sealed notes and notes, may be as large as those before it.
                assert!(journal.allocated_bytes(&epochs) <= 4 * limit * size_of::<Packed>());
            }
            let since = epochs.now().to_bits() - 1;
            let (sealed, guard) = freeze(&mut journal, &epochs);
            assert_eq!(noted_since(&sealed, Epoch::from_bits(since)).is_some(), is_kept);
            guards.push(guard);
        }
        // If sealed notes are too many together, the oldest go, and those in between stay.
        for id in 0..4 {
            (0..limit / 2).for_each(|_| journal.reserve(&epochs).note(changed(id)));
            guards.push(freeze(&mut journal, &epochs).1);
        }
        let (sealed, _guard) = freeze(&mut journal, &epochs);
        let now = epochs.now().to_bits() - 1;
        assert_eq!(ids(&sealed, now - 1), Some(vec![]));
        assert_eq!(ids(&sealed, now - 3), Some(vec![2, 3]));
        assert_eq!(ids(&sealed, now - 4), None);
    }
}
