use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::chunk::units_in;
use super::super::epochs::SnapshotGuard;
use super::super::tests::cases;
use super::*;

const TINY: ChunkSizes = ChunkSizes { first: 64, largest: 256 };

/// The key, the value and the location that a record must have.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    key: Vec<u8>,
    value: Vec<u8>,
    location: Location,
}

type Model = BTreeMap<EntryId, Expected>;

struct Tested {
    arena: Arena,
    epochs: Epochs,
    model: Model,
    snapshots: Vec<(ArenaView, SnapshotGuard, Model)>,
    next_id: u32,
}

fn check(record: Record<'_>, id: EntryId, expected: &Expected) {
    assert_eq!((record.id(), record.key(), record.value().as_slice()), (id, &expected.key[..], &expected.value[..]));
}

impl Tested {
    fn new(sizes: ChunkSizes) -> Self {
        let (arena, epochs) = (Arena::new(sizes), Epochs::new());
        Self { arena, epochs, model: Model::new(), snapshots: Vec::new(), next_id: 0 }
    }

    fn new_value(value: &[u8], large: bool) -> NewValue<'_> {
        if large { NewValue::LargeOwned(Bytes::copy_from_slice(value)) } else { NewValue::Small(value) }
    }

    fn append(&mut self, key: Vec<u8>, value: Vec<u8>, large: bool) {
        let id = EntryId::new(self.next_id);
        self.next_id += 1;
        let new = Self::new_value(&value, large);
        let growth = self.arena.growth(key.len(), if large { 0 } else { value.len() });
        let open = self.arena.open;
        let location = self.arena.append(&self.epochs, id, &key, new);
        let grown = self.arena.chunk(self.arena.open.unwrap()).memory.get().bytes();
        // It counts a value as at least as long as a handle of one.
        let is_exact = large || value.len() >= UNIT;
        assert!(if self.arena.open == open {
            growth == 0 || !is_exact
        } else {
            (grown..=grown + UNIT).contains(&growth)
        });
        assert!(!is_exact || growth == 0 || growth == grown);
        self.model.insert(id, Expected { key, value, location });
    }

    /// The `which`-th live record.
    fn pick(&self, which: usize) -> Option<EntryId> {
        self.model.keys().nth(which % self.model.len().max(1)).copied()
    }

    fn mark_dead(&mut self, which: usize) {
        let Some(id) = self.pick(which) else { return };
        let gone = self.model.remove(&id).unwrap();
        self.arena.mark_dead(&self.epochs, gone.location);
    }

    /// Returns `true` if a snapshot sees the current record of an entry.
    fn is_seen(&self, id: EntryId) -> bool {
        // A location may name another record by now, in a chunk that took the place of one that is gone.
        let address = self.arena.view().address(self.model[&id].location);
        let mut snapshots = self.snapshots.iter();
        snapshots.any(|(view, _, then)| then.get(&id).is_some_and(|then| view.address(then.location) == address))
    }

    /// Writes another value into a record where there is room and nothing forbids it.
    fn rewrite(&mut self, which: usize, value: Vec<u8>) {
        let Some(id) = self.pick(which) else { return };
        let is_seen = self.is_seen(id);
        let expected = self.model.get_mut(&id).unwrap();
        let record = self.arena.record(expected.location);
        let (units, is_large) = (record.units(), record.is_large());
        let needed = units_for(value.len(), expected.key.len());
        let has_room = needed <= units && (units - needed) * 4 <= units && units - needed < 256;
        let fits = self.arena.slack_for(&self.epochs, expected.location, value.len()).is_some();
        assert_eq!(fits, has_room && !is_seen && !is_large);
        assert_eq!(self.arena.rewrite(&self.epochs, expected.location, &expected.key, &value), fits);
        if fits {
            expected.value = value;
            assert_eq!(self.arena.record(expected.location).units(), units);
        }
    }

    /// Changes a value in place where that is allowed; a snapshot that should have forbidden it would notice.
    fn change(&mut self, which: usize, by: u8) {
        let Some(id) = self.pick(which) else { return };
        let is_seen = self.is_seen(id);
        let expected = self.model.get_mut(&id).unwrap();
        let is_large = self.arena.record(expected.location).is_large();
        match self.arena.value_mut(&self.epochs, expected.location) {
            Some(value) => {
                value.iter_mut().for_each(|byte| *byte ^= by);
                expected.value.iter_mut().for_each(|byte| *byte ^= by);
                assert!(!is_seen);
            }
            None if is_large => {
                let new = vec![by; usize::from(by)];
                match self.arena.replace_large(
                    &self.epochs,
                    expected.location,
                    NewValue::LargeOwned(Bytes::from(new.clone())),
                ) {
                    Ok(()) => {
                        assert!(!is_seen);
                        expected.value = new;
                    }
                    Err(given_back) => assert!(is_seen && given_back.into_bytes() == new),
                }
            }
            None => assert!(is_seen, "nothing forbids the change"),
        }
    }

    /// Takes at most that many records out of the chunk that is being evacuated.
    fn empty_further(&mut self, most: usize) {
        if !self.arena.needs_evacuation() {
            return;
        }
        let mut taken = Vec::new();
        let Some(mut next) = self.arena.evacuation_start(&self.epochs) else { return };
        while let Some((record, following)) = (taken.len() < most).then(|| self.arena.next_to_evacuate(next)).flatten()
        {
            assert_eq!((record.len(), following.chunk()), (record.units() * UNIT, next.chunk()));
            taken.push(next);
            next = following;
        }
        if taken.is_empty() {
            return self.arena.free_evacuated(&self.epochs);
        }
        for location in taken {
            let id = self.arena.record(location).id();
            if let Some(expected) = self.model.get_mut(&id).filter(|expected| expected.location == location) {
                expected.location = self.arena.relocate(&self.epochs, location);
            }
        }
        self.arena.evacuated_to(next);
    }

    fn snapshot(&mut self) {
        let view = self.arena.freeze(&self.epochs);
        self.snapshots.push((view, self.epochs.freeze(0), self.model.clone()));
    }

    fn validate(&self) {
        self.arena.validate(|id, location| self.model.get(&id).is_some_and(|expected| expected.location == location));
        assert!(self.arena.allocated_bytes() >= self.arena.live_bytes() + self.arena.dead_bytes());
        for (&id, expected) in &self.model {
            check(self.arena.record(expected.location), id, expected);
        }
        for (view, _, then) in &self.snapshots {
            for (&id, expected) in then {
                check(view.record(expected.location), id, expected);
            }
        }
    }

    fn clear(&mut self) {
        let model = std::mem::take(&mut self.model);
        let is_live =
            |id: EntryId, location| model.get(&id).is_some_and(|expected: &Expected| expected.location == location);
        self.arena.clear(&self.epochs, is_live);
        assert_eq!((self.arena.allocated_bytes(), self.arena.live_bytes(), self.arena.dead_bytes()), (0, 0, 0));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<u8>, Vec<u8>, bool),
    MarkDead(usize),
    Change(usize, u8),
    Rewrite(usize, Vec<u8>),
    Empty(usize),
    Snapshot,
    DropSnapshot(usize),
    Clear,
}

fn any_op() -> impl Strategy<Value = Op> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        8 => (bytes(30), bytes(60), proptest::bool::weighted(0.2)).prop_map(|(k, v, large)| Op::Append(k, v, large)),
        1 => (bytes(300), bytes(300), Just(false)).prop_map(|(k, v, large)| Op::Append(k, v, large)),
        6 => any::<usize>().prop_map(Op::MarkDead),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(which, by)| Op::Change(which, by)),
        6 => (any::<usize>(), bytes(60)).prop_map(|(which, value)| Op::Rewrite(which, value)),
        8 => (1_usize..6).prop_map(Op::Empty),
        2 => Just(Op::Snapshot),
        2 => any::<usize>().prop_map(Op::DropSnapshot),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(cases(if cfg!(miri) { 2 } else { 600 }))]

    #[test]
    fn agrees_with_a_map(ops in proptest::collection::vec(any_op(), 1..150)) {
        let mut tested = Tested::new(TINY);
        for op in ops {
            match op {
                Op::Append(key, value, large) => tested.append(key, value, large),
                Op::MarkDead(which) => tested.mark_dead(which),
                Op::Change(which, by) => tested.change(which, by),
                Op::Rewrite(which, value) => tested.rewrite(which, value),
                Op::Empty(most) => tested.empty_further(most),
                Op::Snapshot => tested.snapshot(),
                Op::DropSnapshot(which) if !tested.snapshots.is_empty() => {
                    let which = which % tested.snapshots.len();
                    tested.snapshots.swap_remove(which);
                }
                Op::DropSnapshot(_) => {}
                Op::Clear => tested.clear(),
            }
            tested.validate();
        }
        tested.clear();
    }
}

/// Runs under Miri in both aliasing models, in seconds.
#[test]
fn a_chosen_sequence() {
    let mut tested = Tested::new(TINY);
    for i in 0..40_u8 {
        tested.append(vec![i; usize::from(i % 20)], vec![i; usize::from(i % 33)], i % 7 == 0);
        tested.change(usize::from(i) * 5, i);
        tested.rewrite(usize::from(i) * 3, vec![i; usize::from(i % 33)]);
        if i % 10 == 3 {
            tested.snapshot();
        }
        if i % 3 == 0 {
            tested.mark_dead(usize::from(i));
        }
        tested.empty_further(usize::from(i % 3) + 1);
    }
    tested.validate();
    tested.snapshots.remove(1);
    tested.snapshots.remove(0);
    tested.validate();
    for _ in 0..60 {
        tested.empty_further(1);
    }
    tested.validate();
    tested.clear();
    tested.validate();
}

#[test]
fn a_record_fits_its_chunk_to_the_last_byte() {
    // The first chunk has room for seven units: a record of four and one of three, header included.
    assert_eq!(units_in(TINY.first), 7);
    let mut tested = Tested::new(TINY);
    tested.append(vec![1; 10], vec![2; 10], false);
    tested.append(vec![3; 4], vec![4; 8], false);
    assert_eq!(tested.arena.chunks(), 1);
    tested.append(vec![], vec![], false);
    assert_eq!(tested.arena.chunks(), 2);
    tested.validate();
    tested.clear();
}

#[test]
fn the_largest_chunk_has_no_unit_beyond_a_location() {
    let sizes = ChunkSizes { first: ChunkSizes::MAX, largest: ChunkSizes::MAX };
    let mut arena = Arena::new(sizes);
    let epochs = Epochs::new();
    let (mut last, mut id) = (Location::NONE, 0);
    while arena.chunks() < 2 {
        last = arena.append(&epochs, EntryId::new(id), b"", NewValue::Small(b"1234"));
        id += 1;
    }
    // Two units each: the first chunk has an odd number of units, and one is left over.
    assert_eq!((id, last), (131_072, Location::new(1, 0)));
    assert_eq!(arena.record(Location::new(0, 131_070 * 2)).id().get(), 131_070);
    arena.clear(&epochs, |_, _| false);
}

#[test]
fn a_value_of_another_length_is_written_where_there_is_room_for_it() {
    let mut arena = Arena::new(TINY);
    let epochs = Epochs::new();
    let key = [7; 12];
    // Four units, filled to the last byte.
    let location = arena.append(&epochs, EntryId::new(0), &key, NewValue::Small(&[1; 8]));
    let mut rewrite = |len: usize| {
        let is_done = arena.rewrite(&epochs, location, &key, &vec![2; len]);
        let record = arena.record(location);
        assert!(!is_done || (record.value_len(), record.key(), record.units()) == (len, &key[..], 4));
        is_done.then(|| record.slack())
    };
    assert_eq!([9, 7, 1, 0, 8].map(&mut rewrite), [None, Some(0), Some(0), Some(1), Some(0)]);
    assert_eq!(rewrite(0), Some(1));

    // Who moves it takes what it needs.
    assert!(arena.rewrite(&epochs, location, &key, &[]));
    let moved = arena.relocate(&epochs, location);
    assert_eq!((arena.record(moved).units(), arena.record(moved).slack()), (3, 0));
    assert!(!arena.rewrite(&epochs, moved, &key, &[2; 1]));
    arena.validate(|_, location| location == moved);
    arena.clear(&epochs, |_, _| false);
}

#[test]
fn no_record_has_more_slack_than_its_flags_can_tell() {
    let mut arena = Arena::new(ChunkSizes { first: 64 << 10, largest: 64 << 10 });
    let epochs = Epochs::new();
    let value = vec![1; 2048];
    let location = arena.append(&epochs, EntryId::new(0), &[7; 8000], NewValue::Small(&value));
    assert!(!arena.rewrite(&epochs, location, &[7; 8000], &value[..4]));
    assert!(arena.rewrite(&epochs, location, &[7; 8000], &value[..5]));
    assert_eq!((arena.record(location).slack(), arena.record(location).key()), (255, &[7; 8000][..]));
    arena.clear(&epochs, |_, _| false);
}

#[test]
fn a_chunk_that_fills_a_huge_page_can_be_one() {
    const MAX: usize = ChunkSizes::MAX;
    assert_eq!([256, MAX - 64, MAX, 2 * MAX].map(|bytes| chunk_layout(bytes).align()), [64, 64, MAX, MAX]);
}

#[test]
fn a_chunk_is_freed_when_nothing_in_it_lives() {
    let mut tested = Tested::new(TINY);
    for i in 0..200 {
        tested.append(vec![i as u8; 8], vec![0; 12], false);
    }
    for _ in 0..195 {
        tested.mark_dead(0);
        tested.validate();
    }
    assert!(tested.arena.allocated_bytes() <= 3 * TINY.largest, "{}", tested.arena.allocated_bytes());
    assert!(tested.arena.chunks() <= 3, "{}", tested.arena.chunks());
    tested.clear();
}

#[test]
fn chunks_double_where_four_are_there_or_a_fifth_is_dead() {
    // Returns the sizes of the chunks that are opened if one record in `every` is marked dead.
    let opened = |every: usize| {
        let (mut arena, epochs) = (Arena::new(ChunkSizes { first: 256, largest: 2048 }), Epochs::new());
        let mut opened = Vec::new();
        for id in 0..1000 {
            let before = arena.allocated_bytes();
            let record = arena.append(&epochs, EntryId::new(id), &[7; 12], NewValue::Small(&[1; 8]));
            opened.extend(Some(arena.allocated_bytes() - before).filter(|&bytes| bytes > 0));
            if id as usize % every == every - 1 {
                arena.mark_dead(&epochs, record);
            }
        }
        arena.clear(&epochs, |_, _| false);
        opened.truncate(9);
        opened
    };
    assert_eq!(opened(1001), [256, 256, 256, 256, 512, 512, 1024, 1024, 2048]);
    assert_eq!(opened(6), opened(1001));
    // From the third on, behind two of which a quarter is dead.
    assert_eq!(opened(4), [256, 256, 256, 512, 1024, 2048, 2048, 2048, 2048]);
}

#[test]
fn emptying_begins_when_half_of_what_lives_is_dead_and_two_chunks_more() {
    let sizes = ChunkSizes { first: 256, largest: 64 << 10 };
    let (mut arena, epochs) = (Arena::new(sizes), Epochs::new());
    let records: Vec<_> =
        (0..1000).map(|id| arena.append(&epochs, EntryId::new(id), &[7; 12], NewValue::Small(&[1; 8]))).collect();
    let record = arena.live_bytes() / 1000;
    assert_eq!((record, arena.dead_bytes()), (arena.record(records[0]).units() * UNIT, 0));
    // Every other one, so that no chunk dies.
    for (killed, &location) in (1..).zip(records.iter().step_by(2)) {
        arena.mark_dead(&epochs, location);
        let (live, dead) = ((1000 - killed) * record, killed * record);
        assert_eq!((arena.live_bytes(), arena.dead_bytes()), (live, dead));
        assert_eq!(arena.needs_evacuation(), 2 * dead > live + 4 * sizes.first, "{killed} killed");
    }
    arena.clear(&epochs, |_, _| false);
}

#[test]
fn the_chunk_with_the_most_dead_is_emptied() {
    let (mut arena, epochs) = (Arena::new(ChunkSizes { first: 512, largest: 512 }), Epochs::new());
    let records: Vec<_> =
        (0..60).map(|id| arena.append(&epochs, EntryId::new(id), &[7; 12], NewValue::Small(&[1; 8]))).collect();
    let chunks: Vec<_> = records.chunk_by(|&a, &b| a.chunk() == b.chunk()).collect();
    // The last of them is open, and is not evacuated.
    for (chunk, dead) in chunks.iter().zip([1, 5, 3]).chain(chunks.last().map(|last| (last, 6))) {
        chunk[..dead].iter().for_each(|&record| arena.mark_dead(&epochs, record));
    }
    assert_eq!(arena.evacuation_start(&epochs), Some(chunks[1][0]));
    arena.clear(&epochs, |_, _| false);
}

#[test]
fn clearing_lets_go_of_large_values() {
    let (mut arena, epochs) = (Arena::new(TINY), Epochs::new());
    let value = Bytes::from(vec![1; 100]);
    let large = || NewValue::LargeOwned(value.clone());
    let mut live = Vec::new();
    for id in 0..30 {
        live.push(arena.append(
            &epochs,
            EntryId::new(id),
            b"key",
            if id % 3 == 0 { NewValue::Small(b"small") } else { large() },
        ));
    }
    for gone in [28, 9, 1] {
        arena.mark_dead(&epochs, live.remove(gone));
    }
    arena.clear(&epochs, |_, location| live.contains(&location));
    assert!(value.is_unique());
}

#[test]
fn chunks_grow_with_what_is_there() {
    let sizes = ChunkSizes { first: 256, largest: 64 << 10 };
    let (mut arena, epochs) = (Arena::new(sizes), Epochs::new());
    for id in 0..100_000 {
        let (before, growth) = (arena.allocated_bytes(), arena.growth(12, 8));
        arena.append(&epochs, EntryId::new(id), &[7; 12], NewValue::Small(&[1; 8]));
        assert_eq!(arena.allocated_bytes(), before + growth);
        // From a quarter to a half of what is there, within the limits.
        let least = (before / 4).min(sizes.largest);
        assert!(growth == 0 || growth <= sizes.first.max(before / 2) && growth >= least, "{growth} after {before}");
    }
    arena.clear(&epochs, |_, _| false);
}
