//! Tests of the entry table against a map.

use std::collections::BTreeMap;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::hot::epochs::SnapshotGuard;
use crate::hot::tests::cases;

fn at(bits: u64) -> Location {
    Location::from_bits(bits)
}

/// A table with what it should hold, and snapshots of both.
struct Checked<const PAGE: usize, const BRANCH: usize> {
    epochs: Epochs,
    table: EntryTable<PAGE, BRANCH>,
    model: BTreeMap<EntryId, Location>,
    snapshots: Vec<Snapshot<PAGE, BRANCH>>,
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
    Shrink,
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
        4 => Just(Op::Shrink),
        1 => Just(Op::Clear),
        4 => Just(Op::Freeze),
        2 => any::<usize>().prop_map(Op::End),
        1 => any::<usize>().prop_map(Op::ReadAndEndElsewhere),
    ]
}

impl<const PAGE: usize, const BRANCH: usize> Checked<PAGE, BRANCH> {
    fn new() -> Self {
        let (epochs, table) = (Epochs::new(), EntryTable::new());
        Self { epochs, table, model: BTreeMap::new(), snapshots: Vec::new() }
    }

    fn insert(&mut self, location: Location) -> EntryId {
        let reserved = self.table.reserve(&self.epochs).map(|vacancy| vacancy.id());
        let id = self.table.insert(&self.epochs, location).unwrap();
        assert_eq!(reserved, Some(id));
        assert_eq!(self.model.insert(id, location), None);
        id
    }

    fn set(&mut self, id: EntryId, location: Location) {
        self.table.location_mut(&self.epochs, id).set(location);
        self.model.insert(id, location);
    }

    fn remove(&mut self, id: EntryId) {
        assert_eq!(Some(self.table.remove(&self.epochs, id)), self.model.remove(&id));
    }

    /// Gives some entries other ids, as a store does after a removal. Returns how many.
    fn shrink(&mut self) -> usize {
        let mut moved = 0;
        for _ in 0..4 {
            match self.table.shrink(&self.epochs) {
                Shrinking::Move(old) => {
                    let location = self.model[&old];
                    let new = self.insert(location);
                    assert!(new.index() / PAGE < old.index() / PAGE);
                    self.remove(old);
                    moved += 1;
                }
                Shrinking::PageFreed => {}
                Shrinking::Done => break,
            }
        }
        moved
    }

    fn clear(&mut self) {
        self.table.clear(&self.epochs);
        self.model = BTreeMap::new();
    }

    fn freeze(&mut self) {
        let (view, guard) = (self.table.freeze(), self.epochs.freeze(0));
        self.snapshots.push(Snapshot { view, locations: self.model.clone(), guard });
    }

    fn nth(&self, at: usize) -> Option<EntryId> {
        self.model.keys().copied().nth(at.checked_rem(self.model.len())?)
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
                Op::Shrink => {
                    self.shrink();
                }
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
        assert_eq!(self.table.len(), self.model.len());
        for (&id, &location) in &self.model {
            assert_eq!(self.table.view().get(id), location);
            assert!(self.table.is_at(id, location));
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
fn an_empty_table_allocates_nothing_and_a_small_one_no_branch() {
    let mut checked = Checked::<64, 512>::new();
    assert_eq!(checked.table.allocated_bytes(), 0);
    checked.insert(at(1));
    let bytes = checked.table.allocated_bytes();
    let page = node_bytes::<Page<64>>();
    assert_eq!(bytes, page + node_bytes::<FirstPages<64>>() + 12);
    checked.remove(EntryId::new(0));
    checked.insert(at(2));
    assert_eq!(checked.table.allocated_bytes(), bytes);
    for location in 0..64 * FEW as u64 {
        assert!(checked.table.view.branches().is_empty());
        checked.insert(at(location));
    }
    checked.check();
    assert!(checked.table.view.first.is_none() && checked.table.allocated_bytes() > (FEW + 1) * page + 4096);
    checked.clear();
    assert_eq!(checked.table.allocated_bytes(), 0);
    checked.check();
}

/// Removes all entries but one in so many.
fn shrink_to_survivors(one_in: u32, entries: u32) {
    let mut checked = Checked::<64, 512>::new();
    for location in 0..entries {
        assert_eq!(checked.insert(at(location.into())), EntryId::new(location));
    }
    checked.freeze();
    let (mut removed, mut moved) = (0, 0);
    for location in 0..entries {
        if location % one_in > 0 {
            // It may have another id by now.
            let id = checked.model.iter().find(|(_, other)| **other == at(location.into())).map(|(&id, _)| id);
            checked.remove(id.unwrap());
            removed += 1;
            moved += checked.shrink();
            assert!(!checked.table.is_too_large() || checked.table.len() * one_in as usize > entries as usize / 2);
        }
    }
    checked.check();
    assert!(moved <= removed, "{moved} moves for {removed} removals");
    let most = 4 * 9 * checked.table.len() + 6 * node_bytes::<Page<64>>() + node_bytes::<Branch<64, 512>>() + 64 * 12;
    assert!(checked.table.allocated_bytes() <= most, "{} bytes, one in {one_in}", checked.table.allocated_bytes());
}

#[test]
#[cfg_attr(miri, ignore = "too many entries")]
fn a_table_shrinks_with_its_entries() {
    for one_in in [8, 64, 1000] {
        shrink_to_survivors(one_in, 6_000);
    }
}

#[test]
fn a_page_that_is_being_emptied_is_kept_if_the_others_fill_up() {
    let mut checked = Checked::<2, 2>::new();
    for location in 0..16 {
        checked.insert(at(location));
    }
    (0..14).for_each(|id| checked.remove(EntryId::new(id)));
    assert!(checked.table.is_too_large());
    // One of the two entries of the last page.
    assert!(matches!(checked.table.shrink(&checked.epochs), Shrinking::Move(_)));
    checked.remove(EntryId::new(14));
    checked.check();
    for location in 20..40 {
        checked.insert(at(location));
        checked.check();
    }
    // The vacant slot of the last page is used before another page is made.
    assert_eq!(checked.table.vacancies.pages(), 11);
}

#[test]
#[cfg_attr(miri, ignore = "it walks through many pages")]
fn a_full_table_takes_nothing() {
    let epochs = Epochs::new();
    let mut table = EntryTable::<64, 512>::new();
    for _ in 0..MAX_ENTRIES / 64 {
        table.vacancies.push_page();
        (0..64).for_each(|slot| table.vacancies.use_first(slot + 1, 64));
    }
    table.len = MAX_ENTRIES / 64 * 64;
    assert_eq!(table.insert(&epochs, at(1)), None);
    assert!(table.reserve(&epochs).is_none());
    assert_eq!((table.len, table.view.branches().len()), (MAX_ENTRIES / 64 * 64, 0));
    table.vacancies = Vacancies::new();
}

#[test]
fn a_snapshot_costs_what_is_touched() {
    let mut checked = Checked::<4, 4>::new();
    for location in 0..40 {
        checked.insert(at(location));
    }
    let places =
        |table: &EntryTable<4, 4>| -> Vec<_> { (0..40).map(|id| table.view().address_of(EntryId::new(id))).collect() };
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

/// Pages and branches are copied, reused, cleared and appended while others read. Small enough for Miri.
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
