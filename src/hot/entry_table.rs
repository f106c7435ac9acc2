//! The entry table: from entry id to location, a copy-on-write vector of pages.
//!
//! # Design
//!
//! Ids are dense, so the table is a vector, cut into pages of 64 slots and reached over two levels of addresses:
//!
//! ```text
//!   EntryTable { branches, free, end, len }            EntryView { branches }    (a copy of the addresses)
//!                   │                                                 │
//!                   v                                                 v
//!               [ b0 │ b1 │ .. ]     the short root: 8 bytes      [ b0 │ b1 │ .. ]
//!                 │    └─────┐       for 32,768 entries             │    │
//!                 v          v                                      │    │
//!   branch b0' [512 pages]   b1 [512 pages] <───────────────────────┼────┘
//!      copied since │  │ └──────────────────────────────┐           v
//!                   v  └──────────────> page 1 <────────│──────  b0 [512 pages]
//!                page 0' (copied since)               page 2 ..     └─> page 0
//!
//!   a slot:  0 … 0 │ location (48 bits)                an entry's
//!            1 │ 0 … 0 │ next vacant id (32 bits)      a vacant one's; NO_ID ends the list
//!
//!   id = branch │ page in the branch (9 bits) │ slot in the page (6 bits)
//! ```
//!
//! Branches and pages are [`Node`]s. A snapshot copies the root (305 addresses at ten million entries) and shares the
//! rest. The writer's first touch of a page after that copies its 512 bytes, and the first touch of a branch its 4 KiB
//! of addresses.
//!
//! Ids of removed entries are reused, the most recently freed first, because its page is the likeliest to be in the
//! cache and to be the writer's own already. The list of them runs through the vacant slots and costs no memory.
//!
//! # Why this and not the other way
//!
//! A flat vector of pages saves a load that nearly always hits the first-level cache, and makes a snapshot of ten
//! million entries copy 1.2 MiB. A deeper tree with a single root makes a snapshot O(1) instead of 8 bytes in 32,768
//! entries, and every lookup pays a further dependent load for it.
//!
//! Branches are arrays inside of their node, so that an address leads to the next address and not to a vector's. The
//! price is 4 KiB for the first entry.
//!
//! Pages are freed by [`clear`](EntryTable::clear) alone: a table keeps 8 bytes for each entry of its largest time, but
//! ids never move, and no call has to look for pages that ran empty.
//!
//! # Invariants
//!
//! 1. The pages are those of the ids below `end`, and the branches those of the pages: each is there, and no other, but for
//!    those of `end` itself, which are there once an insertion was to come.
//! 2. The slot of an id below `end` holds a location below `LOCATION_END`, or is vacant: marked, and with the id of
//!    another vacant slot or `NO_ID`.
//! 3. The list that starts at `free` goes through every vacant slot once and ends at `NO_ID`.
//! 4. `len` slots below `end` hold locations, and `end` is at most `MAX_ENTRIES`.

use std::array;
use std::mem;
use std::ptr;

use super::prefetch_all;
use super::versions::{Node, Versions, footprint};

/// Locations are below this.
pub(super) const LOCATION_END: u64 = 1 << 48;

/// The most entries that a table takes. No id is larger or equal.
pub(super) const MAX_ENTRIES: u32 = u32::MAX - 1;

/// Marks a vacant slot.
const VACANT: u64 = 1 << 63;

/// No entry's id: the end of the list of vacant slots.
const NO_ID: u32 = u32::MAX;

/// From entry ids to locations, for one writer, with views of earlier versions for snapshots.
///
/// `PAGE` slots are copied at a page's first touch after a snapshot, `BRANCH` addresses at a branch's. Both are powers
/// of two.
///
/// It does not know its [`Versions`]; every call gets the same one. [`clear`](Self::clear) it before it is dropped,
/// because its pages are not freed otherwise.
pub(super) struct EntryTable<const PAGE: usize = 64, const BRANCH: usize = 512> {
    view: EntryView<PAGE, BRANCH>,
    /// The vacant id to be used next.
    free: u32,
    /// Ids from here on were never used since the table was empty.
    end: u32,
    len: u32,
}

/// Reads a table: the one that it is a part of, or as that was when [`EntryTable::freeze`] was called.
///
/// Such a one is to be read only while a claim on that epoch lives; nothing in here keeps it alive.
pub(super) struct EntryView<const PAGE: usize = 64, const BRANCH: usize = 512> {
    branches: Vec<Node<Branch<PAGE, BRANCH>>>,
}

/// The addresses of neighbouring pages.
struct Branch<const PAGE: usize, const BRANCH: usize>([Option<Node<Page<PAGE>>>; BRANCH]);

/// The slots of neighbouring ids.
#[derive(Clone)]
struct Page<const PAGE: usize>([u64; PAGE]);

impl<const PAGE: usize, const BRANCH: usize> Clone for Branch<PAGE, BRANCH> {
    fn clone(&self) -> Self {
        Self(array::from_fn(|page| self.0[page].as_ref().map(Node::alias)))
    }
}

impl<const PAGE: usize, const BRANCH: usize> EntryTable<PAGE, BRANCH> {
    /// Makes an empty table. Allocates nothing.
    pub(super) fn new() -> Self {
        const { assert!(PAGE.is_power_of_two() && BRANCH.is_power_of_two()) };
        Self { view: EntryView { branches: Vec::new() }, free: NO_ID, end: 0, len: 0 }
    }

    /// The number of entries. O(1).
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The bytes of the current version, shared with snapshots or not. What only snapshots see is not in it. O(1).
    pub(super) fn allocated_bytes(&self) -> usize {
        self.view.branches.capacity() * size_of::<Node<Branch<PAGE, BRANCH>>>()
            + self.view.branches.len() * footprint::<Branch<PAGE, BRANCH>>()
            + (self.end as usize).div_ceil(PAGE) * footprint::<Page<PAGE>>()
    }

    /// Adds an entry and returns its id, or `None` if there are [`MAX_ENTRIES`]. O(1).
    pub(super) fn insert(&mut self, versions: &Versions, location: u64) -> Option<u32> {
        debug_assert!(location < LOCATION_END);
        let (id, slot) = self.next_slot(versions)?;
        let vacant = mem::replace(slot, location);
        self.free = next(vacant);
        self.end = self.end.max(id + 1);
        self.len += 1;
        Some(id)
    }

    /// The id of the entry that is inserted next, for which nothing is allocated then. O(1).
    pub(super) fn reserve(&mut self, versions: &Versions) -> Option<u32> {
        self.next_slot(versions).map(|(id, _)| id)
    }

    /// The table to be read.
    #[inline]
    pub(super) fn view(&self) -> &EntryView<PAGE, BRANCH> {
        &self.view
    }

    /// Whether `id`, which has been in use since the table was empty, is that of an entry at `location`. O(1).
    #[inline]
    pub(super) fn is_at(&self, id: u32, location: u64) -> bool {
        // A vacant slot is marked, so that it equals no location.
        *slot(&self.view.branches, id) == location
    }

    /// Where the location of an entry is, to be changed. O(1), and a copy of a page where a live snapshot sees it.
    #[inline]
    pub(super) fn location_mut(&mut self, versions: &Versions, id: u32) -> &mut u64 {
        let slot = self.slot_mut(versions, id);
        assert!(*slot < LOCATION_END, "id {id} belongs to no entry");
        slot
    }

    /// Removes an entry and returns its location; its id is the next to be used again. O(1), and a copy of a page where a
    /// live snapshot sees it.
    pub(super) fn remove(&mut self, versions: &Versions, id: u32) -> u64 {
        let vacant = VACANT | u64::from(self.free);
        // Else the list would go through the slot twice, and two entries would get the same id.
        let location = mem::replace(self.location_mut(versions, id), vacant);
        self.free = id;
        self.len -= 1;
        location
    }

    /// Removes every entry and lets go of all pages. O(n / `PAGE`).
    pub(super) fn clear(&mut self, versions: &Versions) {
        let Self { view, .. } = mem::replace(self, Self::new());
        for branch in view.branches {
            for page in branch.get().0.iter().flatten() {
                page.alias().retire(versions);
            }
            branch.retire(versions);
        }
    }

    /// The locations of this instant, for a snapshot that begins before the next write. O(n / (`PAGE` * `BRANCH`)).
    pub(super) fn freeze(&self) -> EntryView<PAGE, BRANCH> {
        EntryView { branches: self.view.branches.iter().map(Node::alias).collect() }
    }

    /// The next vacant id and its slot, which holds what follows it in the list of vacant ones.
    #[inline]
    fn next_slot(&mut self, versions: &Versions) -> Option<(u32, &mut u64)> {
        let id = if self.free == NO_ID { self.end } else { self.free };
        if id >= MAX_ENTRIES {
            return None;
        }
        if id == self.end && id as usize % PAGE == 0 {
            self.append_page(versions);
        }
        Some((id, self.slot_mut(versions, id)))
    }

    /// Makes the page of the id `end`, unless it is there.
    #[cold]
    fn append_page(&mut self, versions: &Versions) {
        let (branch, page, _) = place::<PAGE, BRANCH>(self.end);
        if branch == self.view.branches.len() {
            // A node has nobody to free it if there is no room for its address.
            self.view.branches.reserve(1);
            self.view.branches.push(Node::new(Branch([const { None }; BRANCH]), versions));
        }
        let page = &mut self.view.branches[branch].make_mut(versions).0[page];
        if page.is_none() {
            // The last one of the list of vacant ones, in every slot.
            *page = Some(Node::new(Page([VACANT | u64::from(NO_ID); PAGE]), versions));
        }
    }

    #[inline]
    fn slot_mut(&mut self, versions: &Versions, id: u32) -> &mut u64 {
        let (branch, page, slot) = place::<PAGE, BRANCH>(id);
        let page = self.view.branches[branch].make_mut(versions).0[page].as_mut().expect(NO_PAGE);
        &mut page.make_mut(versions).0[slot]
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let Self { view: EntryView { ref branches }, free, end, len } = *self;
        let pages = (end as usize).div_ceil(PAGE);
        // The page of `end` itself, which an insertion left that had no memory.
        let left = |page| cfg!(alloc_error_hook) && page == end as usize / PAGE;
        assert!(branches.len() == pages.div_ceil(BRANCH) || left((branches.len() - 1) * BRANCH), "invariant 1");
        let is_there = branches.iter().flat_map(|branch| branch.get().0.iter().map(Option::is_some));
        assert!(is_there.enumerate().all(|(page, is_there)| is_there == (page < pages) || left(page)), "invariant 1");

        let mut vacant = vec![false; end as usize];
        for (id, is_vacant) in vacant.iter_mut().enumerate() {
            let slot = *slot(branches, id as u32);
            *is_vacant = slot & VACANT != 0;
            if *is_vacant {
                assert_eq!(slot, VACANT | u64::from(next(slot)), "invariant 2");
            } else {
                assert!(slot < LOCATION_END, "invariant 2");
            }
        }
        assert_eq!(vacant.iter().filter(|&&vacant| !vacant).count(), len as usize, "invariant 4");
        assert!(end <= MAX_ENTRIES, "invariant 4");

        let mut id = free;
        while id != NO_ID {
            assert!(id < end, "invariant 2");
            assert!(mem::take(&mut vacant[id as usize]), "invariant 3");
            id = next(*slot(branches, id));
        }
        assert!(!vacant.contains(&true), "invariant 3");
    }
}

impl<const PAGE: usize, const BRANCH: usize> EntryView<PAGE, BRANCH> {
    /// The location of an entry. O(1): three dependent loads, of which the last two can be expected to miss the cache in
    /// large tables.
    #[inline]
    pub(super) fn get(&self, id: u32) -> u64 {
        location(*slot(&self.branches, id))
    }

    /// The location of the entry that has this id, if one has. O(1).
    #[inline]
    pub(super) fn find(&self, id: u32) -> Option<u64> {
        try_slot(&self.branches, id).copied().and_then(found)
    }

    /// Where [`find`](Self::find) looks, to be prefetched.
    #[inline]
    pub(super) fn address_of(&self, id: u32) -> Option<*const u64> {
        try_slot(&self.branches, id).map(ptr::from_ref)
    }

    /// Asks the processor for the page of an entry, all of which is read when it is copied.
    #[inline]
    pub(super) fn prefetch_page(&self, id: u32) {
        let (branch, page, _) = place::<PAGE, BRANCH>(id);
        if let Some(page) = page_of(self.branches.get(branch), page) {
            prefetch_all(ptr::from_ref(page.get()).cast(), size_of::<Page<PAGE>>());
        }
    }

    /// Calls `f` with the locations of every entry, in this view and in `earlier`, a view of the same table, but for those in
    /// pages that the two share: in the order of ids, the earlier one first. O(n / `PAGE`), and O(`PAGE`) for each page
    /// that they do not share.
    pub(super) fn for_each_unshared(&self, earlier: &Self, mut f: impl FnMut(Option<u64>, Option<u64>)) {
        for at in 0..self.branches.len().max(earlier.branches.len()) {
            let (old, new) = (earlier.branches.get(at), self.branches.get(at));
            if old.zip(new).is_some_and(|(old, new)| old.is_shared_with(new)) {
                continue;
            }
            for page in 0..BRANCH {
                let (old, new) = (page_of(old, page), page_of(new, page));
                match old.zip(new) {
                    Some((old, new)) if old.is_shared_with(new) => continue,
                    None if old.is_none() && new.is_none() => break,
                    _ => {}
                }
                for slot in 0..PAGE {
                    let find = |page: Option<&Node<Page<PAGE>>>| page.and_then(|page| found(page.get().0[slot]));
                    f(find(old), find(new));
                }
            }
        }
    }

    /// Where the slot of an entry lies, to be prefetched.
    #[inline]
    pub(super) fn address(&self, id: u32) -> *const u64 {
        slot(&self.branches, id)
    }
}

const NO_PAGE: &str = "an id that was given out has a page";

/// The numbers of an id's branch, of the page in it and of the slot in that.
#[inline]
fn place<const PAGE: usize, const BRANCH: usize>(id: u32) -> (usize, usize, usize) {
    let id = id as usize;
    (id / PAGE / BRANCH, id / PAGE % BRANCH, id % PAGE)
}

#[inline]
fn slot<const PAGE: usize, const BRANCH: usize>(branches: &[Node<Branch<PAGE, BRANCH>>], id: u32) -> &u64 {
    let (branch, page, slot) = place::<PAGE, BRANCH>(id);
    &branches[branch].get().0[page].as_ref().expect(NO_PAGE).get().0[slot]
}

#[inline]
fn try_slot<const PAGE: usize, const BRANCH: usize>(branches: &[Node<Branch<PAGE, BRANCH>>], id: u32) -> Option<&u64> {
    let (branch, page, slot) = place::<PAGE, BRANCH>(id);
    Some(&page_of(branches.get(branch), page)?.get().0[slot])
}

#[inline]
fn page_of<const PAGE: usize, const BRANCH: usize>(
    branch: Option<&Node<Branch<PAGE, BRANCH>>>,
    page: usize,
) -> Option<&Node<Page<PAGE>>> {
    branch?.get().0[page].as_ref()
}

/// The location that a slot holds, unless it is vacant.
#[inline]
fn found(slot: u64) -> Option<u64> {
    (slot & VACANT == 0).then_some(slot)
}

/// What an entry's slot holds.
#[inline]
fn location(slot: u64) -> u64 {
    debug_assert!(slot < LOCATION_END, "the id belongs to no entry");
    slot
}

/// The id that a vacant slot holds.
#[inline]
fn next(vacant: u64) -> u32 {
    vacant as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::tests::cases;
    use super::super::versions::Claim;
    use super::*;

    /// A table with what it should hold, and snapshots of both.
    struct Checked<const PAGE: usize, const BRANCH: usize> {
        versions: Versions,
        table: EntryTable<PAGE, BRANCH>,
        model: Model,
        snapshots: Vec<Snapshot<PAGE, BRANCH>>,
    }

    #[derive(Clone, Default)]
    struct Model {
        locations: BTreeMap<u32, u64>,
        /// The ids of removed entries, the last one on top.
        free: Vec<u32>,
    }

    struct Snapshot<const PAGE: usize, const BRANCH: usize> {
        view: EntryView<PAGE, BRANCH>,
        locations: BTreeMap<u32, u64>,
        claim: Claim,
    }

    impl<const PAGE: usize, const BRANCH: usize> Snapshot<PAGE, BRANCH> {
        fn check(&self) {
            for (&id, &location) in &self.locations {
                assert_eq!(self.view.get(id), location, "id {id} in the snapshot of epoch {}", self.claim.epoch());
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Insert(u64),
        // Of the entry at this place, counted around.
        Set(usize, u64),
        Remove(usize),
        Clear,
        Freeze,
        // Of the snapshot at this place, counted around.
        End(usize),
        // While the next operations write.
        ReadAndEndElsewhere(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let location = prop_oneof![Just(0), Just(LOCATION_END - 1), 0..LOCATION_END];
        prop_oneof![
            12 => location.clone().prop_map(Op::Insert),
            10 => (any::<usize>(), location).prop_map(|(at, location)| Op::Set(at, location)),
            8 => any::<usize>().prop_map(Op::Remove),
            1 => Just(Op::Clear),
            4 => Just(Op::Freeze),
            2 => any::<usize>().prop_map(Op::End),
            1 => any::<usize>().prop_map(Op::ReadAndEndElsewhere),
        ]
    }

    impl<const PAGE: usize, const BRANCH: usize> Checked<PAGE, BRANCH> {
        fn new() -> Self {
            let (versions, table) = (Versions::new(), EntryTable::new());
            Self { versions, table, model: Model::default(), snapshots: Vec::new() }
        }

        fn insert(&mut self, location: u64) -> u32 {
            let Model { locations, free } = &mut self.model;
            let expected = free.pop().unwrap_or(locations.len() as u32);
            assert_eq!(self.table.insert(&self.versions, location), Some(expected));
            assert_eq!(locations.insert(expected, location), None);
            expected
        }

        fn set(&mut self, id: u32, location: u64) {
            *self.table.location_mut(&self.versions, id) = location;
            self.model.locations.insert(id, location);
        }

        fn remove(&mut self, id: u32) {
            assert_eq!(Some(self.table.remove(&self.versions, id)), self.model.locations.remove(&id));
            self.model.free.push(id);
        }

        fn clear(&mut self) {
            self.table.clear(&self.versions);
            self.model = Model::default();
        }

        fn freeze(&mut self) {
            let (view, claim) = (self.table.freeze(), self.versions.freeze());
            self.snapshots.push(Snapshot { view, locations: self.model.locations.clone(), claim });
        }

        fn nth(&self, at: usize) -> Option<u32> {
            let ids = self.model.locations.keys();
            ids.copied().nth(at.checked_rem(self.model.locations.len())?)
        }

        fn take_snapshot(&mut self, at: usize) -> Option<Snapshot<PAGE, BRANCH>> {
            Some(self.snapshots.swap_remove(at.checked_rem(self.snapshots.len())?))
        }

        fn run(&mut self, ops: &[Op]) {
            let mut readers = Vec::new();
            for &op in ops {
                match op {
                    Op::Insert(location) => {
                        self.insert(location);
                    }
                    Op::Set(at, location) => self.nth(at).into_iter().for_each(|id| self.set(id, location)),
                    Op::Remove(at) => self.nth(at).into_iter().for_each(|id| self.remove(id)),
                    Op::Clear => self.clear(),
                    Op::Freeze => self.freeze(),
                    Op::End(at) => drop(self.take_snapshot(at)),
                    Op::ReadAndEndElsewhere(at) => {
                        readers.extend(self.take_snapshot(at).map(|snapshot| thread::spawn(move || snapshot.check())));
                    }
                }
                self.check();
            }
            for reader in readers {
                reader.join().unwrap();
            }
        }

        fn check(&self) {
            self.table.validate();
            let Model { locations, .. } = &self.model;
            assert_eq!(self.table.len(), locations.len());
            for (&id, &location) in locations {
                assert_eq!(self.table.view().get(id), location);
                assert_eq!(self.table.view().address(id), slot(&self.table.view.branches, id) as *const u64);
            }
            self.snapshots.iter().for_each(Snapshot::check);
        }
    }

    impl<const PAGE: usize, const BRANCH: usize> Drop for Checked<PAGE, BRANCH> {
        fn drop(&mut self) {
            // What is not freed by then is found by the address sanitizer.
            self.table.clear(&self.versions);
            if !thread::panicking() {
                self.snapshots.iter().for_each(Snapshot::check);
            }
        }
    }

    proptest! {
        #![proptest_config(cases(if cfg!(miri) { 2 } else { 256 }))]

        #[test]
        fn agrees_with_a_map_in_tiny_pages(ops in vec(op(), 0..200)) {
            Checked::<2, 2>::new().run(&ops);
        }

        #[test]
        fn agrees_with_a_map_in_pages_of_one(ops in vec(op(), 0..100)) {
            Checked::<1, 1>::new().run(&ops);
        }

        #[test]
        fn agrees_with_a_map_in_real_pages(ops in vec(op(), 0..200)) {
            Checked::<64, 512>::new().run(&ops);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many entries")]
    fn agrees_with_a_map_over_real_branches() {
        let mut runner = proptest::test_runner::TestRunner::new(cases(4));
        let ops = vec(op().prop_filter("it would soon be small", |op| !matches!(op, Op::Clear)), 0..30);
        let run = runner.run(&ops, |ops| {
            let mut checked = Checked::<64, 512>::new();
            // One short of a third branch.
            for location in 0..2 * 64 * 512 {
                checked.insert(location);
            }
            checked.run(&ops);
            Ok(())
        });
        run.unwrap();
    }

    #[test]
    fn an_empty_table_allocates_nothing() {
        let mut checked = Checked::<64, 512>::new();
        assert_eq!(checked.table.allocated_bytes(), 0);
        checked.insert(1);
        let bytes = checked.table.allocated_bytes();
        assert!((footprint::<Page<64>>() + footprint::<Branch<64, 512>>()..6000).contains(&bytes), "{bytes}");
        checked.remove(0);
        checked.insert(2);
        assert_eq!(checked.table.allocated_bytes(), bytes);
        checked.clear();
        assert_eq!(checked.table.allocated_bytes(), 0);
        checked.check();
    }

    #[test]
    fn a_full_table_takes_nothing() {
        let versions = Versions::new();
        let mut table = EntryTable::<64, 512> { end: MAX_ENTRIES, len: MAX_ENTRIES, ..EntryTable::new() };
        assert_eq!(table.insert(&versions, 1), None);
        assert_eq!((table.len(), table.end, table.free), (MAX_ENTRIES as usize, MAX_ENTRIES, NO_ID));
    }

    #[test]
    fn a_snapshot_costs_what_is_touched() {
        let mut checked = Checked::<4, 4>::new();
        for location in 0..40 {
            checked.insert(location);
        }
        let places = |table: &EntryTable<4, 4>| -> Vec<_> { (0..40).map(|id| table.view().address(id)).collect() };
        let before = places(&checked.table);
        checked.freeze();
        checked.set(5, 100);
        let after = places(&checked.table);
        for id in 0..40 {
            assert_eq!(before[id] == after[id], id / 4 != 1, "id {id}");
        }
        checked.set(6, 100);
        checked.set(5, 101);
        assert_eq!(places(&checked.table), after);
        checked.snapshots.clear();
        checked.set(39, 100);
        assert_eq!(places(&checked.table), after);
        checked.check();
    }

    #[test]
    #[should_panic(expected = "id 1 belongs to no entry")]
    fn an_entry_is_removed_once() {
        let mut checked = Checked::<2, 2>::new();
        checked.insert(1);
        checked.insert(2);
        checked.remove(1);
        checked.table.remove(&checked.versions, 1);
    }

    /// Small enough for Miri: pages and branches copied, reused, cleared and appended while others read.
    #[test]
    fn snapshots_are_read_on_other_threads_while_all_changes() {
        let mut checked = Checked::<2, 2>::new();
        for location in 0..10 {
            checked.insert(location);
        }
        checked.freeze();
        checked.run(&[Op::ReadAndEndElsewhere(0), Op::Set(3, 70), Op::Remove(9), Op::Insert(71), Op::Insert(72)]);
        checked.freeze();
        checked.freeze();
        checked.run(&[Op::Set(0, 73), Op::ReadAndEndElsewhere(0), Op::Clear, Op::Insert(74), Op::Freeze]);
        checked.run(&[Op::ReadAndEndElsewhere(0), Op::Set(0, 75), Op::End(0), Op::Set(0, 76), Op::Clear]);
    }

    #[test]
    fn a_view_outlives_the_table() {
        let mut checked = Checked::<2, 2>::new();
        for location in 0..9 {
            checked.insert(location);
        }
        checked.freeze();
        let snapshot = checked.take_snapshot(0).unwrap();
        checked.set(4, 50);
        drop(checked);
        thread::spawn(move || snapshot.check()).join().unwrap();
    }
}
