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
//! # Why
//!
//! A flat vector of pages saves a load that nearly always hits the first-level cache, and makes a snapshot of ten
//! million entries copy 1.2 MiB. A deeper tree with a single root makes a snapshot O(1) instead of 8 bytes in 32,768
//! entries, and every lookup pays a further dependent load for it.
//!
//! Branches are arrays inside of their node, so that an address leads to the next address and not to a vector's. The
//! price is 4 KiB for the first entry.
//!
//! Pages are freed by [`clear`](EntryTable::clear) alone. So a table keeps 8 bytes for each entry that it had when it
//! was largest. In return ids never move, and no call has to look for pages that ran empty.
//!
//! # Invariants
//!
//! 1. There are pages for all ids below `end` and branches for all pages, and no others. Those of `end` itself may be
//!    there, if an insertion was reserved.
//! 2. The slot of an id below `end` holds a location, or is vacant: marked, and with the id of another vacant slot or
//!    `NO_ID`.
//! 3. The list that starts at `free` goes through every vacant slot once and ends at `NO_ID`.
//! 4. `len` slots below `end` hold locations, and `end` is at most `MAX_ENTRIES`.

use std::array;
use std::mem;
use std::ptr;

use super::entry_id::EntryId;
use super::epochs::Epochs;
use super::location::Location;
use super::node::{Node, node_bytes};
use super::prefetch::prefetch_all;

/// The most entries that a table takes. All ids are smaller.
const MAX_ENTRIES: u32 = u32::MAX - 1;

/// Marks a vacant slot.
const VACANT: u64 = 1 << 63;

/// No entry's id: the end of the list of vacant slots.
const NO_ID: EntryId = EntryId::new(u32::MAX);

/// A map from entry ids to locations, for one writer, with views of earlier epochs for snapshots.
///
/// `PAGE` slots are copied at a page's first touch after a snapshot, `BRANCH` addresses at a branch's. Both are powers
/// of two.
///
/// Every call gets the same [`Epochs`]. [`clear`](Self::clear) the table before it is dropped, or its pages are never
/// freed.
pub(super) struct EntryTable<const PAGE: usize = 64, const BRANCH: usize = 512> {
    view: EntryView<PAGE, BRANCH>,
    /// The vacant id to be used next.
    free: EntryId,
    /// Ids from here on were never used since the table was empty.
    end: u32,
    len: u32,
}

/// Reads a table: the one that it is a part of, or as that was when [`EntryTable::freeze`] was called.
///
/// A frozen view is to be read only while a guard of that epoch lives; the view does not keep it alive.
pub(super) struct EntryView<const PAGE: usize = 64, const BRANCH: usize = 512> {
    branches: Vec<Node<Branch<PAGE, BRANCH>>>,
}

/// The addresses of neighbouring pages.
struct Branch<const PAGE: usize, const BRANCH: usize>([Option<Node<Page<PAGE>>>; BRANCH]);

/// Access to the location of an entry, whose page is the writer's own. Setting it allocates nothing.
pub(super) struct LocationMut<'a>(&'a mut u64);

impl LocationMut<'_> {
    #[inline]
    pub(super) fn set(self, location: Location) {
        *self.0 = location.to_bits();
    }
}

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

    /// Returns the number of entries. O(1).
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns the bytes of the current version, shared with snapshots or not. Pages that only snapshots see do not
    /// count. O(1).
    pub(super) fn allocated_bytes(&self) -> usize {
        self.view.branches.capacity() * size_of::<Node<Branch<PAGE, BRANCH>>>()
            + self.view.branches.len() * node_bytes::<Branch<PAGE, BRANCH>>()
            + (self.end as usize).div_ceil(PAGE) * node_bytes::<Page<PAGE>>()
    }

    /// Adds an entry and returns its id, or `None` if there are [`MAX_ENTRIES`]. O(1).
    pub(super) fn insert(&mut self, epochs: &Epochs, location: Location) -> Option<EntryId> {
        let (id, slot) = self.next_slot(epochs)?;
        let vacant = mem::replace(slot, location.to_bits());
        self.free = next(vacant);
        self.end = self.end.max(id.get() + 1);
        self.len += 1;
        Some(id)
    }

    /// Returns the id of the next insertion, and allocates everything for it. O(1).
    pub(super) fn reserve(&mut self, epochs: &Epochs) -> Option<EntryId> {
        self.next_slot(epochs).map(|(id, _)| id)
    }

    #[inline]
    pub(super) fn view(&self) -> &EntryView<PAGE, BRANCH> {
        &self.view
    }

    /// Returns `true` if `id` is the id of an entry at `location`. It must have been in use since the table was empty.
    /// O(1).
    #[inline]
    pub(super) fn is_at(&self, id: EntryId, location: Location) -> bool {
        // A vacant slot is marked, so that it equals no location.
        *slot(&self.view.branches, id) == location.to_bits()
    }

    /// Returns access to the location of an entry. O(1), and a copy of a page where a live snapshot sees it.
    #[inline]
    pub(super) fn location_mut(&mut self, epochs: &Epochs, id: EntryId) -> LocationMut<'_> {
        let slot = self.slot_mut(epochs, id);
        assert!(*slot & VACANT == 0, "id {} belongs to no entry", id.get());
        LocationMut(slot)
    }

    /// Removes an entry and returns its location. Its id is the next to be used again. O(1), and a copy of a page where
    /// a live snapshot sees it.
    pub(super) fn remove(&mut self, epochs: &Epochs, id: EntryId) -> Location {
        let vacant = vacant(self.free);
        // `location_mut` refuses a vacant slot. The list would hold it twice, and two entries would get the same id.
        let location = mem::replace(self.location_mut(epochs, id).0, vacant);
        self.free = id;
        self.len -= 1;
        Location::from_bits(location)
    }

    /// Removes every entry and retires all pages. O(n / `PAGE`).
    pub(super) fn clear(&mut self, epochs: &Epochs) {
        let Self { view, .. } = mem::replace(self, Self::new());
        for branch in view.branches {
            for page in branch.get().0.iter().flatten() {
                page.alias().retire(epochs);
            }
            branch.retire(epochs);
        }
    }

    /// Returns the table as it is now, for a snapshot that begins before the next write. O(n / (`PAGE` * `BRANCH`)).
    pub(super) fn freeze(&self) -> EntryView<PAGE, BRANCH> {
        EntryView { branches: self.view.branches.iter().map(Node::alias).collect() }
    }

    /// Returns the next vacant id and its slot, which holds the id that follows it in the list of vacant ones.
    #[inline]
    fn next_slot(&mut self, epochs: &Epochs) -> Option<(EntryId, &mut u64)> {
        let id = if self.free == NO_ID { EntryId::new(self.end) } else { self.free };
        if id.get() >= MAX_ENTRIES {
            return None;
        }
        if id.get() == self.end && id.index() % PAGE == 0 {
            self.append_page(epochs);
        }
        Some((id, self.slot_mut(epochs, id)))
    }

    /// Allocates the page of the id `end`, unless it is there.
    #[cold]
    fn append_page(&mut self, epochs: &Epochs) {
        let (branch, page, _) = place::<PAGE, BRANCH>(EntryId::new(self.end));
        if branch == self.view.branches.len() {
            // First, or nobody would free the node if there is no room for its address.
            self.view.branches.reserve(1);
            self.view.branches.push(Node::new(Branch([const { None }; BRANCH]), epochs));
        }
        let page = &mut self.view.branches[branch].make_mut(epochs).0[page];
        if page.is_none() {
            // The last one of the list of vacant ones, in every slot.
            *page = Some(Node::new(Page([vacant(NO_ID); PAGE]), epochs));
        }
    }

    #[inline]
    fn slot_mut(&mut self, epochs: &Epochs, id: EntryId) -> &mut u64 {
        let (branch, page, slot) = place::<PAGE, BRANCH>(id);
        let page = self.view.branches[branch].make_mut(epochs).0[page].as_mut().expect(NO_PAGE);
        &mut page.make_mut(epochs).0[slot]
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let Self { view: EntryView { ref branches }, free, end, len } = *self;
        let pages = (end as usize).div_ceil(PAGE);
        // The page of `end` itself, if an insertion failed for lack of memory.
        let left = |page| cfg!(alloc_error_hook) && page == end as usize / PAGE;
        assert!(branches.len() == pages.div_ceil(BRANCH) || left((branches.len() - 1) * BRANCH), "invariant 1");
        let is_there = branches.iter().flat_map(|branch| branch.get().0.iter().map(Option::is_some));
        assert!(is_there.enumerate().all(|(page, is_there)| is_there == (page < pages) || left(page)), "invariant 1");

        let mut is_vacant = vec![false; end as usize];
        for (id, is_vacant) in is_vacant.iter_mut().enumerate() {
            let slot = *slot(branches, EntryId::new(id as u32));
            *is_vacant = slot & VACANT != 0;
            if *is_vacant {
                assert_eq!(slot, vacant(next(slot)), "invariant 2");
            } else {
                assert!(slot < 1 << Location::BITS, "invariant 2");
            }
        }
        assert_eq!(is_vacant.iter().filter(|&&is_vacant| !is_vacant).count(), len as usize, "invariant 4");
        assert!(end <= MAX_ENTRIES, "invariant 4");

        let mut id = free;
        while id != NO_ID {
            assert!(id.get() < end, "invariant 2");
            assert!(mem::take(&mut is_vacant[id.index()]), "invariant 3");
            id = next(*slot(branches, id));
        }
        assert!(!is_vacant.contains(&true), "invariant 3");
    }
}

impl<const PAGE: usize, const BRANCH: usize> EntryView<PAGE, BRANCH> {
    /// Returns the location of an entry. O(1): three dependent loads. In large tables the last two mostly miss the
    /// cache.
    #[inline]
    pub(super) fn get(&self, id: EntryId) -> Location {
        location(*slot(&self.branches, id))
    }

    /// Returns the location of the entry that has this id, if there is one. O(1).
    #[inline]
    pub(super) fn find(&self, id: EntryId) -> Option<Location> {
        try_slot(&self.branches, id).copied().and_then(try_location)
    }

    /// Returns the address that [`find`](Self::find) reads, to be prefetched.
    #[inline]
    pub(super) fn address_of(&self, id: EntryId) -> Option<*const u64> {
        try_slot(&self.branches, id).map(ptr::from_ref)
    }

    /// Asks the processor for the whole page of an entry, because it is copied soon.
    #[inline]
    pub(super) fn prefetch_page(&self, id: EntryId) {
        let (branch, page, _) = place::<PAGE, BRANCH>(id);
        if let Some(page) = page_of(self.branches.get(branch), page) {
            prefetch_all(ptr::from_ref(page.get()).cast(), size_of::<Page<PAGE>>());
        }
    }

    /// Calls `f` with the locations of every entry, in `earlier`, a view of the same table, and in this view. Skips
    /// pages that the two share. O(n / `PAGE`), and O(`PAGE`) for each page that they do not share.
    pub(super) fn for_each_unshared(&self, earlier: &Self, mut f: impl FnMut(Option<Location>, Option<Location>)) {
        for at in 0..self.branches.len().max(earlier.branches.len()) {
            let (old, new) = (earlier.branches.get(at), self.branches.get(at));
            if old.zip(new).is_some_and(|(old, new)| old.ptr_eq(new)) {
                continue;
            }
            for page in 0..BRANCH {
                let (old, new) = (page_of(old, page), page_of(new, page));
                match old.zip(new) {
                    Some((old, new)) if old.ptr_eq(new) => continue,
                    None if old.is_none() && new.is_none() => break,
                    _ => {}
                }
                for slot in 0..PAGE {
                    let find = |page: Option<&Node<Page<PAGE>>>| page.and_then(|page| try_location(page.get().0[slot]));
                    f(find(old), find(new));
                }
            }
        }
    }

    /// Returns the address of an entry's slot, to be prefetched.
    #[inline]
    pub(super) fn address(&self, id: EntryId) -> *const u64 {
        slot(&self.branches, id)
    }
}

const NO_PAGE: &str = "an id that was given out has a page";

/// Returns the indexes of an id's branch, of the page in it and of the slot in that.
#[inline]
fn place<const PAGE: usize, const BRANCH: usize>(id: EntryId) -> (usize, usize, usize) {
    let id = id.index();
    (id / PAGE / BRANCH, id / PAGE % BRANCH, id % PAGE)
}

#[inline]
fn slot<const PAGE: usize, const BRANCH: usize>(branches: &[Node<Branch<PAGE, BRANCH>>], id: EntryId) -> &u64 {
    let (branch, page, slot) = place::<PAGE, BRANCH>(id);
    &branches[branch].get().0[page].as_ref().expect(NO_PAGE).get().0[slot]
}

#[inline]
fn try_slot<const PAGE: usize, const BRANCH: usize>(
    branches: &[Node<Branch<PAGE, BRANCH>>],
    id: EntryId,
) -> Option<&u64> {
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

/// Returns the location that a slot holds, unless it is vacant.
#[inline]
fn try_location(slot: u64) -> Option<Location> {
    (slot & VACANT == 0).then_some(Location::from_bits(slot))
}

/// Returns the location that the slot of an entry holds.
#[inline]
fn location(slot: u64) -> Location {
    debug_assert!(slot & VACANT == 0, "the id belongs to no entry");
    Location::from_bits(slot)
}

/// Returns a vacant slot, followed by `next` in the list of vacant ids.
#[inline]
const fn vacant(next: EntryId) -> u64 {
    VACANT | next.get() as u64
}

/// Returns the id that follows a vacant slot in the list of vacant ids.
#[inline]
fn next(slot: u64) -> EntryId {
    EntryId::new(slot as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::epochs::SnapshotGuard;
    use super::super::tests::cases;
    use super::*;

    fn at(bits: u64) -> Location {
        Location::from_bits(bits)
    }

    /// A table with what it should hold, and snapshots of both.
    struct Checked<const PAGE: usize, const BRANCH: usize> {
        epochs: Epochs,
        table: EntryTable<PAGE, BRANCH>,
        model: Model,
        snapshots: Vec<Snapshot<PAGE, BRANCH>>,
    }

    #[derive(Clone, Default)]
    struct Model {
        locations: BTreeMap<EntryId, Location>,
        /// The ids of removed entries, the last one on top.
        free: Vec<EntryId>,
    }

    struct Snapshot<const PAGE: usize, const BRANCH: usize> {
        view: EntryView<PAGE, BRANCH>,
        locations: BTreeMap<EntryId, Location>,
        guard: SnapshotGuard,
    }

    impl<const PAGE: usize, const BRANCH: usize> Snapshot<PAGE, BRANCH> {
        fn check(&self) {
            for (&id, &location) in &self.locations {
                assert_eq!(self.view.get(id), location, "{id:?} in the snapshot of {:?}", self.guard.epoch());
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Insert(Location),
        /// Sets the location of the entry at this index, modulo the number of entries.
        Set(usize, Location),
        Remove(usize),
        Clear,
        Freeze,
        /// Ends the snapshot at this index, modulo the number of snapshots.
        End(usize),
        /// Reads and ends a snapshot on another thread, while the next operations write.
        ReadAndEndElsewhere(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let end = 1_u64 << Location::BITS;
        let location = prop_oneof![Just(0), Just(end - 1), 0..end].prop_map(Location::from_bits);
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
            let (epochs, table) = (Epochs::new(), EntryTable::new());
            Self { epochs, table, model: Model::default(), snapshots: Vec::new() }
        }

        fn insert(&mut self, location: Location) -> EntryId {
            let Model { locations, free } = &mut self.model;
            let expected = free.pop().unwrap_or(EntryId::new(locations.len() as u32));
            assert_eq!(self.table.insert(&self.epochs, location), Some(expected));
            assert_eq!(locations.insert(expected, location), None);
            expected
        }

        fn set(&mut self, id: EntryId, location: Location) {
            self.table.location_mut(&self.epochs, id).set(location);
            self.model.locations.insert(id, location);
        }

        fn remove(&mut self, id: EntryId) {
            assert_eq!(Some(self.table.remove(&self.epochs, id)), self.model.locations.remove(&id));
            self.model.free.push(id);
        }

        fn clear(&mut self) {
            self.table.clear(&self.epochs);
            self.model = Model::default();
        }

        fn freeze(&mut self) {
            let (view, guard) = (self.table.freeze(), self.epochs.freeze());
            self.snapshots.push(Snapshot { view, locations: self.model.locations.clone(), guard });
        }

        fn nth(&self, at: usize) -> Option<EntryId> {
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
            // The address sanitizer finds memory that is not freed by then.
            self.table.clear(&self.epochs);
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
                checked.insert(at(location));
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
        checked.insert(at(1));
        let bytes = checked.table.allocated_bytes();
        assert!((node_bytes::<Page<64>>() + node_bytes::<Branch<64, 512>>()..6000).contains(&bytes), "{bytes}");
        checked.remove(EntryId::new(0));
        checked.insert(at(2));
        assert_eq!(checked.table.allocated_bytes(), bytes);
        checked.clear();
        assert_eq!(checked.table.allocated_bytes(), 0);
        checked.check();
    }

    #[test]
    fn a_full_table_takes_nothing() {
        let epochs = Epochs::new();
        let mut table = EntryTable::<64, 512> { end: MAX_ENTRIES, len: MAX_ENTRIES, ..EntryTable::new() };
        assert_eq!(table.insert(&epochs, at(1)), None);
        assert_eq!((table.len(), table.end, table.free), (MAX_ENTRIES as usize, MAX_ENTRIES, NO_ID));
    }

    #[test]
    fn a_snapshot_costs_what_is_touched() {
        let mut checked = Checked::<4, 4>::new();
        for location in 0..40 {
            checked.insert(at(location));
        }
        let places =
            |table: &EntryTable<4, 4>| -> Vec<_> { (0..40).map(|id| table.view().address(EntryId::new(id))).collect() };
        let before = places(&checked.table);
        checked.freeze();
        checked.set(EntryId::new(5), at(100));
        let after = places(&checked.table);
        for id in 0..40 {
            assert_eq!(before[id] == after[id], id / 4 != 1, "id {id}");
        }
        checked.set(EntryId::new(6), at(100));
        checked.set(EntryId::new(5), at(101));
        assert_eq!(places(&checked.table), after);
        checked.snapshots.clear();
        checked.set(EntryId::new(39), at(100));
        assert_eq!(places(&checked.table), after);
        checked.check();
    }

    #[test]
    #[should_panic(expected = "id 1 belongs to no entry")]
    fn an_entry_is_removed_once() {
        let mut checked = Checked::<2, 2>::new();
        checked.insert(at(1));
        checked.insert(at(2));
        checked.remove(EntryId::new(1));
        checked.table.remove(&checked.epochs, EntryId::new(1));
    }

    /// Small enough for Miri: pages and branches copied, reused, cleared and appended while others read.
    #[test]
    fn snapshots_are_read_on_other_threads_while_all_changes() {
        let mut checked = Checked::<2, 2>::new();
        for location in 0..10 {
            checked.insert(at(location));
        }
        checked.freeze();
        checked.run(&[
            Op::ReadAndEndElsewhere(0),
            Op::Set(3, at(70)),
            Op::Remove(9),
            Op::Insert(at(71)),
            Op::Insert(at(72)),
        ]);
        checked.freeze();
        checked.freeze();
        checked.run(&[Op::Set(0, at(73)), Op::ReadAndEndElsewhere(0), Op::Clear, Op::Insert(at(74)), Op::Freeze]);
        checked.run(&[Op::ReadAndEndElsewhere(0), Op::Set(0, at(75)), Op::End(0), Op::Set(0, at(76)), Op::Clear]);
    }

    #[test]
    fn a_view_outlives_the_table() {
        let mut checked = Checked::<2, 2>::new();
        for location in 0..9 {
            checked.insert(at(location));
        }
        checked.freeze();
        let snapshot = checked.take_snapshot(0).unwrap();
        checked.set(EntryId::new(4), at(50));
        drop(checked);
        thread::spawn(move || snapshot.check()).join().unwrap();
    }
}
