//! The entry table: from entry id to location, a copy-on-write vector of pages.
//!
//! # Design
//!
//! Ids are dense, so the table is a vector, cut into pages of 64 slots and reached over two levels of addresses:
//!
//! ```text
//!   EntryTable { root, vacancies, len }                EntryView { root }
//!                  │                                               │
//!                  v                                               v
//!               [ b0' │ b1 │ .. ]    copied since: 8 bytes     [ b0 │ b1 │ .. ]
//!                 │     └────┐       for 32,768 entries          │    │
//!                 v          v                                   │    │
//!   branch b0' [512 pages]   b1 [512 pages] <────────────────────┼────┘
//!      copied since │  │ └──────────────────────────────┐        v
//!                   v  └──────────────> page 1 <────────│─── b0 [512 pages]
//!                page 0' (copied since)               page 2 ..  └─> page 0
//!
//!   a slot:  0 … 0 │ location (48 bits)                an entry's
//!            1 │ 0 … 0 │ next vacant slot of the page  a vacant one's
//!
//!   id = branch │ page in the branch (9 bits) │ slot in the page (6 bits)
//! ```
//!
//! The root, branches and pages are [`Node`]s. A snapshot shares them. The writer's first touch of a page after that
//! copies its 512 bytes, the first touch of a branch its 4 KiB of addresses, and the first touch of any the root (305
//! addresses at ten million entries). A table of up to 4 pages has no branch: a node of 4 addresses takes its place.
//!
//! Ids of removed entries are reused, those of the page that lost an entry last first: see `vacancies.rs`.
//!
//! A table that is far too large for its entries gives up its last page. The entries in it get other ids, a few at a
//! time. Then the page is freed.
//!
//! # Why
//!
//! A flat vector of pages saves a load that nearly always hits the first-level cache, and makes the first write after a
//! snapshot of ten million entries copy 1.2 MiB. A root that each snapshot copies saves another such load, and makes a
//! snapshot cost 8 bytes for 32,768 entries.
//!
//! Branches are arrays inside of their node, so that an address leads to the next address and not to a vector's. In a
//! table of one page a branch would take eight times the memory of the page.
//!
//! Freeing pages in the middle once they run empty needs no new ids. But one entry would keep a page of 64, and after
//! most of many entries are gone, most pages have one left.
//!
//! # Invariants
//!
//! 1. There are as many pages as `vacancies` counts, and branches for all of them or `first`, and no others. After a
//!    failed allocation there may be one more branch, without pages.
//! 2. A slot holds a location, or is vacant: marked, and with the number of another vacant slot of its page or `PAGE`.
//! 3. The list of a page's vacant slots, which starts where `vacancies` says, goes through each of them once.
//! 4. `len` slots hold locations. Ids are below `MAX_ENTRIES`.

mod vacancies;

use std::array;
use std::mem;
use std::ptr;

use self::vacancies::Vacancies;
use super::entry_id::EntryId;
use super::epochs::Epochs;
use super::location::Location;
use super::node::{Contents, Node, node_bytes};
use super::prefetch::prefetch_all;
use super::reserve::reserve_one;

/// The most entries that a table takes. All ids are smaller.
const MAX_ENTRIES: u32 = u32::MAX - 1;

/// Marks a vacant slot.
const VACANT: u64 = 1 << 63;

/// The pages of a table without branches, unless a branch has room for fewer.
const FEW: usize = 4;

/// A map from entry ids to locations, for one writer, with views of earlier epochs for snapshots.
///
/// `PAGE` slots are copied at a page's first touch after a snapshot, `BRANCH` addresses at a branch's. Both are powers
/// of two.
///
/// Every call gets the same [`Epochs`]. [`clear`](Self::clear) the table before it is dropped, or its pages are never
/// freed.
pub(super) struct EntryTable<const PAGE: usize = 64, const BRANCH: usize = 512> {
    view: EntryView<PAGE, BRANCH>,
    vacancies: Vacancies,
    len: u32,
}

/// Reads a table: the one that it is a part of, or as that was when [`EntryTable::freeze`] was called.
///
/// A frozen view is to be read only while a guard of that epoch lives; the view does not keep it alive.
pub(super) struct EntryView<const PAGE: usize = 64, const BRANCH: usize = 512> {
    root: Option<Node<Root<PAGE, BRANCH>>>,
    /// The pages of a small table, which has no root.
    first: Option<Node<FirstPages<PAGE>>>,
}

/// The addresses of all branches.
struct Root<const PAGE: usize, const BRANCH: usize>(Vec<Node<Branch<PAGE, BRANCH>>>);

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

/// The addresses of the first pages.
struct FirstPages<const PAGE: usize>([Option<Node<Page<PAGE>>>; FEW]);

/// A step of [`EntryTable::shrink`].
pub(super) enum Shrinking {
    /// The entry with this id must get another id, so that its page can be freed.
    Move(EntryId),
    PageFreed,
    Done,
}

/// The vacant slot that the next entry gets. Inserting the entry allocates nothing.
pub(super) struct Vacancy<'a, const PAGE: usize> {
    id: EntryId,
    slot: &'a mut u64,
    vacancies: &'a mut Vacancies,
    len: &'a mut u32,
}

impl<const PAGE: usize> Vacancy<'_, PAGE> {
    pub(super) fn id(&self) -> EntryId {
        self.id
    }

    /// Adds an entry and returns its id.
    #[inline]
    pub(super) fn insert(self, location: Location) -> EntryId {
        let vacant = mem::replace(self.slot, location.to_bits());
        self.vacancies.use_first(next(vacant), PAGE);
        *self.len += 1;
        self.id
    }
}

/// The slots of neighbouring ids.
#[derive(Clone)]
struct Page<const PAGE: usize>([u64; PAGE]);

impl<const PAGE: usize> Contents for Page<PAGE> {}
impl<const PAGE: usize> Contents for FirstPages<PAGE> {}
impl<const PAGE: usize, const BRANCH: usize> Contents for Branch<PAGE, BRANCH> {}

impl<const PAGE: usize, const BRANCH: usize> Contents for Root<PAGE, BRANCH> {
    fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Node<Branch<PAGE, BRANCH>>>()
    }
}

impl<const PAGE: usize, const BRANCH: usize> Clone for Root<PAGE, BRANCH> {
    fn clone(&self) -> Self {
        Self(self.0.iter().map(Node::alias).collect())
    }
}

impl<const PAGE: usize, const BRANCH: usize> Clone for Branch<PAGE, BRANCH> {
    fn clone(&self) -> Self {
        Self(array::from_fn(|page| self.0[page].as_ref().map(Node::alias)))
    }
}

impl<const PAGE: usize> Clone for FirstPages<PAGE> {
    fn clone(&self) -> Self {
        Self(array::from_fn(|page| self.0[page].as_ref().map(Node::alias)))
    }
}

impl<const PAGE: usize, const BRANCH: usize> EntryTable<PAGE, BRANCH> {
    /// The pages of a table without branches.
    const FIRST: usize = if BRANCH < FEW { BRANCH } else { FEW };

    /// Makes an empty table. Allocates nothing.
    pub(super) fn new() -> Self {
        const { assert!(PAGE.is_power_of_two() && BRANCH.is_power_of_two() && PAGE <= 128) };
        Self { view: EntryView { root: None, first: None }, vacancies: Vacancies::new(), len: 0 }
    }

    /// Returns the number of entries. O(1).
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns the number of pages. O(1).
    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        self.vacancies.pages()
    }

    /// Returns the bytes of the current version, shared with snapshots or not. Pages that only snapshots see do not
    /// count. O(1).
    pub(super) fn allocated_bytes(&self) -> usize {
        let root_bytes = |root: &Node<Root<PAGE, BRANCH>>| node_bytes::<Root<PAGE, BRANCH>>() + root.get().heap_bytes();
        self.view.root.as_ref().map_or(0, root_bytes)
            + self.view.branches().len() * node_bytes::<Branch<PAGE, BRANCH>>()
            + self.view.first.as_ref().map_or(0, |_| node_bytes::<FirstPages<PAGE>>())
            + self.vacancies.pages() * node_bytes::<Page<PAGE>>()
            + self.vacancies.allocated_bytes()
    }

    /// Adds an entry and returns its id, or `None` if there are [`MAX_ENTRIES`]. O(1).
    pub(super) fn insert(&mut self, epochs: &Epochs, location: Location) -> Option<EntryId> {
        self.reserve(epochs).map(|vacancy| vacancy.insert(location))
    }

    /// Returns the vacant slot that the next entry gets, and allocates everything for it. `None` if there are
    /// [`MAX_ENTRIES`]. O(1).
    #[inline]
    pub(super) fn reserve(&mut self, epochs: &Epochs) -> Option<Vacancy<'_, PAGE>> {
        if self.vacancies.first().is_none() {
            self.add_vacancies(epochs)?;
        }
        let Self { view, vacancies, len } = self;
        let (page, slot) = vacancies.first()?;
        let id = EntryId::new((page * PAGE + slot) as u32);
        Some(Vacancy { id, slot: view.slot_mut(epochs, id), vacancies, len })
    }

    #[inline]
    pub(super) fn view(&self) -> &EntryView<PAGE, BRANCH> {
        &self.view
    }

    /// Returns `true` if `id` is the id of an entry at `location`. O(1).
    #[inline]
    pub(super) fn is_at(&self, id: EntryId, location: Location) -> bool {
        // A vacant slot is marked, so that it equals no location.
        self.view.try_slot(id).is_some_and(|&slot| slot == location.to_bits())
    }

    /// Returns access to the location of an entry. O(1), and a copy of a page where a live snapshot sees it.
    #[inline]
    pub(super) fn location_mut(&mut self, epochs: &Epochs, id: EntryId) -> LocationMut<'_> {
        let slot = self.view.slot_mut(epochs, id);
        assert!(*slot & VACANT == 0, "id {} belongs to no entry", id.get());
        LocationMut(slot)
    }

    /// Removes an entry and returns its location. Its id is the next to be used again. O(1), and a copy of a page where
    /// a live snapshot sees it.
    pub(super) fn remove(&mut self, epochs: &Epochs, id: EntryId) -> Location {
        // A vacant slot is refused. The list would hold it twice, and two entries would get the same id.
        let slot = self.view.slot_mut(epochs, id);
        assert!(*slot & VACANT == 0, "id {} belongs to no entry", id.get());
        let next = self.vacancies.vacate(id.index() / PAGE, id.index() % PAGE, PAGE);
        self.len -= 1;
        Location::from_bits(mem::replace(slot, vacant(next)))
    }

    /// Returns `true` if the table is far too large for its entries.
    #[inline]
    pub(super) fn is_too_large(&self) -> bool {
        self.vacancies.pages() * PAGE > 4 * self.len as usize + 2 * PAGE
    }

    /// Makes the table one step smaller if it is far too large. O(`PAGE`).
    pub(super) fn shrink(&mut self, epochs: &Epochs) -> Shrinking {
        if !self.is_too_large() {
            return Shrinking::Done;
        }
        self.vacancies.shrink();
        self.vacancies.empty_last(PAGE);
        if self.vacancies.used_in_last() == 0 {
            self.pop_page(epochs);
            return Shrinking::PageFreed;
        }
        if self.vacancies.first().is_none() {
            // There is no other page for the entry.
            return Shrinking::Done;
        }
        let end = self.vacancies.pages() * PAGE;
        let mut ids = (end - PAGE..end).map(|id| EntryId::new(id as u32));
        ids.find(|&id| self.view.find(id).is_some()).map_or(Shrinking::Done, Shrinking::Move)
    }

    /// Removes every entry and retires all pages. O(n / `PAGE`).
    pub(super) fn clear(&mut self, epochs: &Epochs) {
        let Self { view, .. } = mem::replace(self, Self::new());
        let retire = |page: &Node<Page<PAGE>>| page.alias().retire(epochs);
        if let Some(root) = view.root {
            for branch in &root.get().0 {
                branch.get().0.iter().flatten().for_each(retire);
                branch.alias().retire(epochs);
            }
            root.retire(epochs);
        }
        if let Some(first) = view.first {
            first.get().0.iter().flatten().for_each(retire);
            first.retire(epochs);
        }
    }

    /// Returns the table as it is now, for a snapshot that begins before the next write. O(1).
    pub(super) fn freeze(&self) -> EntryView<PAGE, BRANCH> {
        let EntryView { root, first } = &self.view;
        EntryView { root: root.as_ref().map(Node::alias), first: first.as_ref().map(Node::alias) }
    }

    /// Finds vacant slots where there are none: in a page that is being emptied, or in a new one. Returns `None` if all
    /// ids are in use.
    #[cold]
    fn add_vacancies(&mut self, epochs: &Epochs) -> Option<()> {
        self.vacancies.keep_last(PAGE);
        if self.vacancies.first().is_none() {
            let number = self.vacancies.pages();
            if number >= MAX_ENTRIES as usize / PAGE {
                return None;
            }
            self.append_page(epochs, number);
        }
        Some(())
    }

    /// Allocates the next page, which has this number.
    fn append_page(&mut self, epochs: &Epochs, number: usize) {
        let EntryView { root, first } = &mut self.view;
        self.vacancies.reserve_page();
        if root.is_none() && number < Self::FIRST {
            let first = first.get_or_insert_with(|| Node::new(FirstPages([const { None }; FEW]), epochs));
            // The copy first, or nobody would free the page if there is no memory for it.
            let place = &mut first.make_mut(epochs).0[number];
            *place = Some(Page::new_node(epochs));
        } else {
            let root = root.get_or_insert_with(|| Node::new(Root(Vec::new()), epochs));
            let branches = &mut root.make_mut(epochs).0;
            // Room comes first, or nobody would free a node if there is none for its address.
            if let Some(few) = first {
                reserve_one(branches);
                let page = |number: usize| few.get().0.get(number)?.as_ref().map(Node::alias);
                branches.push(Node::new(Branch(array::from_fn(page)), epochs));
                first.take().into_iter().for_each(|few| few.retire(epochs));
            }
            let branch = number / BRANCH;
            if branch == branches.len() {
                reserve_one(branches);
                branches.push(Node::new(Branch([const { None }; BRANCH]), epochs));
            }
            let place = &mut branches[branch].make_mut(epochs).0[number % BRANCH];
            *place = Some(Page::new_node(epochs));
        }
        self.vacancies.push_page();
    }

    /// Frees the last page, which is empty.
    fn pop_page(&mut self, epochs: &Epochs) {
        let Some(number) = self.vacancies.pages().checked_sub(1) else { return };
        let Some(page) = self.view.page_mut(epochs, number) else { return };
        page.take().into_iter().for_each(|page| page.retire(epochs));
        self.vacancies.pop_page();
        if let Some(root) = &mut self.view.root {
            // The root is the writer's own by now, so this copies nothing.
            let branches = &mut root.make_mut(epochs).0;
            while branches.len() > number.div_ceil(BRANCH) {
                branches.pop().into_iter().for_each(|branch| branch.retire(epochs));
            }
        }
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let Self { view, vacancies, len } = self;
        let pages = vacancies.pages();
        let (branches, first) = (view.branches(), &view.first);
        let needed = pages.div_ceil(BRANCH);
        assert!(branches.is_empty() && pages <= Self::FIRST || first.is_none(), "invariant 1");
        let left = usize::from(cfg!(alloc_error_hook));
        assert!(first.is_some() || pages == 0 || (needed..=needed + left).contains(&branches.len()), "invariant 1");
        let in_branches = branches.iter().flat_map(|branch| branch.get().0.iter().map(Option::is_some));
        let in_first = first.iter().flat_map(|first| first.get().0.iter().map(Option::is_some));
        assert!(
            in_branches.chain(in_first).enumerate().all(|(page, is_there)| is_there == (page < pages)),
            "invariant 1"
        );

        let slot = |id: usize| *view.slot(EntryId::new(id as u32));
        let is_vacant = |id: usize| slot(id) & VACANT != 0;
        let used = (0..pages * PAGE).filter(|&id| !is_vacant(id));
        assert!(used.clone().all(|id| slot(id) < 1 << Location::BITS), "invariant 2");
        assert_eq!(used.count(), *len as usize, "invariant 4");
        assert!(pages * PAGE <= MAX_ENTRIES as usize, "invariant 4");
        vacancies.validate(PAGE, |page, first| {
            let mut list = Vec::new();
            let mut at = first;
            while at < PAGE {
                assert!(is_vacant(page * PAGE + at) && !list.contains(&at), "invariant 3");
                list.push(at);
                at = next(slot(page * PAGE + at));
            }
            assert_eq!(at, PAGE, "invariant 2");
            assert_eq!(list.len(), (0..PAGE).filter(|at| is_vacant(page * PAGE + at)).count(), "invariant 3");
            list
        });
    }
}

impl<const PAGE: usize> Page<PAGE> {
    /// Makes a page whose slots are all vacant. Each leads to the next one.
    fn new_node(epochs: &Epochs) -> Node<Self> {
        Node::new(Self(array::from_fn(|slot| vacant(slot + 1))), epochs)
    }
}

impl<const PAGE: usize, const BRANCH: usize> EntryView<PAGE, BRANCH> {
    fn branches(&self) -> &[Node<Branch<PAGE, BRANCH>>] {
        self.root.as_ref().map(|root| &root.get().0[..]).unwrap_or_default()
    }

    /// Returns the location of an entry. O(1): four dependent loads. In large tables the last two mostly miss the
    /// cache.
    #[inline]
    pub(super) fn get(&self, id: EntryId) -> Location {
        location(*self.slot(id))
    }

    /// Returns the location of the entry that has this id, if there is one. O(1).
    #[inline]
    pub(super) fn find(&self, id: EntryId) -> Option<Location> {
        self.try_slot(id).copied().and_then(try_location)
    }

    /// Returns the address that [`find`](Self::find) reads, to be prefetched.
    #[inline]
    pub(super) fn address_of(&self, id: EntryId) -> Option<*const u64> {
        self.try_slot(id).map(ptr::from_ref)
    }

    /// Asks the processor for the whole page of an entry, because it is copied soon.
    #[inline]
    pub(super) fn prefetch_page(&self, id: EntryId) {
        if let Some(page) = self.page(id.index() / PAGE) {
            prefetch_all(ptr::from_ref(page.get()).cast(), size_of::<Page<PAGE>>());
        }
    }

    /// Calls `f` with the locations of every entry, in `earlier`, a view of the same table, and in this view. Skips
    /// pages that the two share. O(n / `PAGE`), and O(`PAGE`) for each page that they do not share.
    pub(super) fn for_each_unshared(&self, earlier: &Self, mut f: impl FnMut(Option<Location>, Option<Location>)) {
        // The pages of a small table are those of a branch that there is not.
        for at in 0..self.branches().len().max(earlier.branches().len()).max(1) {
            let (old, new) = (earlier.branches().get(at), self.branches().get(at));
            if old.zip(new).is_some_and(|(old, new)| old.ptr_eq(new)) {
                continue;
            }
            for page in at * BRANCH..(at + 1) * BRANCH {
                let (old, new) = (earlier.page(page), self.page(page));
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

    /// Returns a page by its number.
    #[inline]
    fn page(&self, number: usize) -> Option<&Node<Page<PAGE>>> {
        match self.branches().get(number / BRANCH) {
            Some(branch) => branch.get().0[number % BRANCH].as_ref(),
            None => self.first_page(number),
        }
    }

    /// Returns a page of a table without a root.
    #[inline]
    fn first_page(&self, number: usize) -> Option<&Node<Page<PAGE>>> {
        self.first.as_ref()?.get().0.get(number)?.as_ref()
    }

    #[inline]
    fn try_slot(&self, id: EntryId) -> Option<&u64> {
        let page = self.page(id.index() / PAGE)?;
        Some(&page.get().0[id.index() % PAGE])
    }

    /// Returns the slot of an id that was given out.
    #[inline]
    fn slot(&self, id: EntryId) -> &u64 {
        let page = self.page(id.index() / PAGE);
        &page.expect(NO_PAGE).get().0[id.index() % PAGE]
    }

    /// Returns the address of an entry's slot, to be prefetched.
    #[inline]
    pub(super) fn address(&self, id: EntryId) -> *const u64 {
        self.slot(id)
    }

    #[inline]
    fn slot_mut(&mut self, epochs: &Epochs, id: EntryId) -> &mut u64 {
        let page = self.page_mut(epochs, id.index() / PAGE).and_then(Option::as_mut).expect(NO_PAGE);
        &mut page.make_mut(epochs).0[id.index() % PAGE]
    }

    /// Returns the place of a page by its number, to be changed.
    #[inline(always)]
    fn page_mut(&mut self, epochs: &Epochs, number: usize) -> Option<&mut Option<Node<Page<PAGE>>>> {
        if let Some(root) = &mut self.root {
            let branches = &mut root.make_mut(epochs).0;
            if let Some(branch) = branches.get_mut(number / BRANCH) {
                return Some(&mut branch.make_mut(epochs).0[number % BRANCH]);
            }
        }
        self.first.as_mut()?.make_mut(epochs).0.get_mut(number)
    }
}

const NO_PAGE: &str = "an id that was given out has a page";

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

/// Returns a vacant slot that leads to the vacant slot `next` of its page.
#[inline]
const fn vacant(next: usize) -> u64 {
    VACANT | next as u64
}

/// Returns the vacant slot of the page that a vacant one leads to.
#[inline]
fn next(slot: u64) -> usize {
    slot as u32 as usize
}

#[cfg(test)]
mod tests;
