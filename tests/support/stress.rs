//! Stress of everything that threads share: a writer continues while readers scan, compare, serialize and drop its
//! snapshots, in no fixed order.
//!
//! A seed determines a program of the writer: the kind of store, its sizes, and every write. Readers compare what they
//! read with the store's contents when the snapshot was taken. `tests/sharing` includes this file, too, to run it under
//! the thread sanitizer and for as long as wanted.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use opstate::{
    Deleted, HotStore, ImageOptions, InMemoryStore, KeyGroups, StateDelta, StateError, StateSnapshot, StateStore,
    StateStoreExt, UnverifiedImage,
};

/// Number of threads that read.
pub(crate) const READERS: usize = 3;

/// Contents of a store: the number of each key, with its value's byte and length.
type Model = BTreeMap<u64, (u8, usize)>;

/// Writes a key of a program. Keys have the order of their numbers.
#[derive(Clone, Copy)]
struct Keys {
    prefix: usize,
    /// Lengths of the bytes after the number differ by less than this.
    tails: u64,
    /// Numbers below `most` are spread over all numbers by this factor, which is odd and so loses none.
    spread: u64,
    most: u64,
}

impl Keys {
    fn any(&self, random: &mut Random) -> u64 {
        random.below(self.most).wrapping_mul(self.spread)
    }

    fn bytes(&self, number: u64) -> Vec<u8> {
        let mut key = vec![b'k'; self.prefix];
        key.extend_from_slice(&number.to_be_bytes());
        key.resize(key.len() + (number % self.tails) as usize, b't');
        key
    }
}

/// Contents of a store at some moment, and a snapshot of them.
#[derive(Clone)]
struct Moment {
    snapshot: StateSnapshot,
    model: Arc<Model>,
}

/// A task for one of the readers.
enum Task {
    Read(Moment),
    /// Compares three moments by deltas. They are in no order.
    Compare([Moment; 3]),
    /// Drops moments in a random order.
    Drop(Vec<Moment>),
}

/// Runs the programs of these seeds one after the other. A failure prints the seed of its program.
pub(crate) fn stress(seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        let failure = Failure(seed);
        let mut random = Random::new(seed);
        let most = 1 << random.within(4, 15);
        let keys = Keys {
            prefix: [0, 0, 3, 30][random.below(4) as usize],
            tails: [1, 1, 8, 300][random.below(4) as usize],
            spread: [1, 0x9e37_79b9_7f4a_7c15][random.below(2) as usize],
            most,
        };
        let store = HotStore::builder();
        let store = match random.below(8) {
            0 | 1 => store.chunk_bytes(64, 64 << random.below(4)),
            2 | 3 => store.chunk_bytes(1 << random.within(6, 12), 1 << random.within(12, 16)),
            _ => store,
        };
        match random.below(8) {
            0 => run(InMemoryStore::new(), keys, random),
            1 | 2 => run(store.memory_budget(1 << random.within(14, 22)).build(), keys, random),
            3 => run(store.capacity(random.below(most) as usize).build(), keys, random),
            _ => run(store.build(), keys, random),
        }
        drop(failure);
    }
}

/// Prints the seed of a program that panics.
struct Failure(u64);

impl Drop for Failure {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the writer's program with the seed {} failed", self.0);
        }
    }
}

/// Runs the program of one store.
fn run(store: impl StateStore, keys: Keys, mut random: Random) {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    thread::scope(|scope| {
        for _ in 0..READERS {
            let (receiver, random) = (Arc::clone(&receiver), Random::new(random.next()));
            scope.spawn(move || read(&receiver, keys, random));
        }
        let most_held = 1 << random.below(6);
        let mut writer =
            Writer { store, model: Model::new(), keys, held: Vec::new(), most_held, tasks: sender, random };
        for _ in 0..writer.random.within(3, 12) {
            writer.phase();
        }
        // The remaining snapshots outlive the store.
        let Writer { store, held, tasks, .. } = writer;
        drop(store);
        tasks.send(Task::Drop(held)).expect("readers wait");
    });
}

struct Writer<S> {
    store: S,
    model: Model,
    keys: Keys,
    held: Vec<Moment>,
    most_held: usize,
    tasks: Sender<Task>,
    random: Random,
}

impl<S: StateStore> Writer<S> {
    /// Makes many changes of one kind, with snapshots in between.
    fn phase(&mut self) {
        let most = self.keys.most;
        // About so many writes are between two snapshots.
        let apart = most / self.random.within(1, 9) + 1;
        match self.random.below(10) {
            0..=2 => self.write(most, apart, |_| Write::Put),
            3 | 4 => self.write(most, apart, |random| match random.below(8) {
                0 | 1 => Write::Delete,
                2 => Write::Modify,
                3 => Write::Insert,
                4 => Write::Take,
                _ => Write::Put,
            }),
            5 => self.write(2 * most, apart, |_| Write::Delete),
            6 => self.shrink(self.random.0 % 16, apart),
            7 => self.delete_ranges(),
            8 if !self.held.is_empty() => self.restore(),
            _ => {
                self.store.clear();
                self.model.clear();
            }
        }
        self.check();
        self.hold();
    }

    fn write(&mut self, writes: u64, apart: u64, kind: impl Fn(&mut Random) -> Write) {
        for _ in 0..writes {
            let number = self.keys.any(&mut self.random);
            let kind = kind(&mut self.random);
            self.write_one(kind, number);
            if self.random.below(apart) == 0 {
                self.hold();
            }
        }
    }

    fn write_one(&mut self, kind: Write, number: u64) {
        let Self { store, model, random, .. } = self;
        // Some values are out of line, or put as a handle.
        let len = if random.below(50) == 0 { 600 } else { random.below(40) as usize };
        // All empty values are equal.
        let fill = if len == 0 { 0 } else { random.next() as u8 };
        let (key, value) = (self.keys.bytes(number), vec![fill; len]);
        let old = model.get(&number).copied();
        let written = match kind {
            Write::Delete => store.delete(&key).map(|()| {
                model.remove(&number);
            }),
            Write::Take => store.take(&key).map(|taken| {
                assert!(is(taken.as_deref(), old));
                model.remove(&number);
            }),
            Write::Modify => store.modify(&key, &mut |value| value.fill(fill)).map(|is_there| {
                assert_eq!(is_there, old.is_some());
                model.entry(number).and_modify(|value| value.0 = if value.1 == 0 { 0 } else { fill });
            }),
            Write::Insert => store.get_or_insert(&key, &value).map(|found| {
                assert!(is(Some(&found), Some(*model.entry(number).or_insert((fill, len)))));
            }),
            Write::Put if random.below(8) == 0 => store.put_bytes(&key, value.into()).map(|()| {
                model.insert(number, (fill, len));
            }),
            Write::Put => store.put(&key, &value).map(|()| {
                model.insert(number, (fill, len));
            }),
        };
        if let Err(error) = written {
            assert!(matches!(error, StateError::OverBudget { .. }), "{error}");
            assert!(is(store.get(&key).as_deref(), old));
            // Make room.
            if random.below(64) == 0 {
                self.tasks.send(Task::Drop(std::mem::take(&mut self.held))).expect("readers wait");
            }
        }
    }

    /// Deletes all but a few entries, one by one, in their order or in none.
    fn shrink(&mut self, rest: u64, apart: u64) {
        let mut numbers: Vec<u64> = self.model.keys().copied().collect();
        if self.random.below(2) == 0 {
            self.random.shuffle(&mut numbers);
        }
        numbers.truncate(numbers.len().saturating_sub(rest as usize));
        for number in numbers {
            self.write_one(Write::Delete, number);
            if self.random.below(apart) == 0 {
                self.hold();
            }
        }
    }

    fn delete_ranges(&mut self) {
        for _ in 0..self.random.below(8) {
            let bounds = any_bounds(&self.keys, &mut self.random);
            let limit = [usize::MAX, self.random.below(self.keys.most) as usize][self.random.below(2) as usize];
            let numbers: Vec<u64> = self.model.range(bounds).map(|(number, _)| *number).take(limit).collect();
            let is_done = numbers.len() == self.model.range(bounds).count();
            let (start, end) = self.as_keys(bounds);
            let range = (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
            let deleted = self.store.delete_range(range, limit).expect("a delete is never refused");
            assert_eq!(deleted, Deleted { count: numbers.len(), is_done });
            self.model.retain(|number, _| numbers.binary_search(number).is_err());
            if self.random.below(2) == 0 {
                self.hold();
            }
        }
    }

    fn as_keys(&self, (start, end): Bounds) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        (start.map(|number| self.keys.bytes(number)), end.map(|number| self.keys.bytes(number)))
    }

    /// Returns to a held moment in one of several ways.
    fn restore(&mut self) {
        let Moment { snapshot, model } = self.random.pick(&self.held).clone();
        match self.random.below(4) {
            0 => self.store.restore(snapshot.iter().collect()),
            1 => {
                let image = UnverifiedImage::from_bytes(snapshot.to_bytes()).expect("it was just written");
                image.restore_into(&mut self.store).expect("it was just written");
            }
            2 => {
                let delta = snapshot.delta_since(&self.store.snapshot());
                match self.store.apply(&delta) {
                    Ok(()) => {}
                    // How much of a delta comes before the refusal is not promised.
                    Err(StateError::OverBudget { .. }) => self.store.restore(snapshot),
                    Err(error) => panic!("{error}"),
                }
            }
            _ => self.store.restore(snapshot),
        }
        self.model.clone_from(&model);
    }

    fn check(&self) {
        let snapshot = self.store.snapshot();
        check(&self.keys, snapshot.iter(), self.model.iter());
        assert_eq!((self.store.len(), self.store.size_bytes()), (snapshot.len(), snapshot.size_bytes()));
        for (&number, &value) in self.model.iter().take(100) {
            assert!(is(self.store.get(&self.keys.bytes(number)).as_deref(), Some(value)));
        }
    }

    /// Takes a snapshot, and gives the readers something to do.
    fn hold(&mut self) {
        let moment = Moment { snapshot: self.store.snapshot(), model: Arc::new(self.model.clone()) };
        let mut tasks = vec![Task::Read(moment.clone())];
        self.held.push(moment);
        let Self { held, random, .. } = self;
        if random.below(2) == 0 {
            tasks.push(Task::Compare(std::array::from_fn(|_| random.pick(held).clone())));
        }
        if held.len() > self.most_held {
            random.shuffle(held);
            let kept = random.below(held.len() as u64) as usize;
            tasks.push(Task::Drop(held.split_off(kept)));
        }
        tasks.into_iter().for_each(|task| self.tasks.send(task).expect("readers wait"));
    }
}

enum Write {
    Put,
    Insert,
    Modify,
    Delete,
    Take,
}

/// Does tasks until no more come.
fn read(tasks: &Mutex<Receiver<Task>>, keys: Keys, mut random: Random) {
    let mut held = Vec::new();
    loop {
        let next = tasks.lock().expect("no reader panics under the lock").recv();
        match next {
            Ok(Task::Read(moment)) => {
                read_moment(&keys, &moment, &mut random);
                if random.below(2) == 0 {
                    held.push(moment);
                }
            }
            Ok(Task::Compare(moments)) => compare(&keys, moments),
            Ok(Task::Drop(mut moments)) => {
                random.shuffle(&mut moments);
                moments.into_iter().for_each(drop);
            }
            Err(_) => break,
        }
        while held.len() as u64 > random.below(16) {
            held.swap_remove(random.below(held.len() as u64) as usize);
        }
    }
    for moment in held {
        read_moment(&keys, &moment, &mut random);
    }
}

/// Reads a snapshot in a random way.
fn read_moment(keys: &Keys, Moment { snapshot, model }: &Moment, random: &mut Random) {
    assert_eq!(snapshot.len(), model.len());
    match random.below(7) {
        0 => check(keys, snapshot.iter(), model.iter()),
        1 => check(keys, snapshot.iter().rev(), model.iter().rev()),
        2 => {
            for _ in 0..200 {
                let number = keys.any(random);
                assert!(is(snapshot.get(&keys.bytes(number)).as_deref(), model.get(&number).copied()));
            }
        }
        3 => {
            let bounds = any_bounds(keys, random);
            let (start, end) = (bounds.0.map(|number| keys.bytes(number)), bounds.1.map(|number| keys.bytes(number)));
            let range = || (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
            check(keys, snapshot.scan(range()), model.range(bounds));
            let mut visited = 0;
            snapshot.visit_range(range(), |_, _| {
                visited += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(visited, model.range(bounds).count());
        }
        4 => {
            let mut image = Vec::new();
            let options =
                ImageOptions::new().threads(1 + random.below(2) as usize).segment_bytes(1 << random.within(8, 17));
            snapshot.write_with(options, &mut image).expect("memory takes everything");
            let opened = StateSnapshot::from_bytes(image).expect("it was just written");
            check(keys, opened.iter(), model.iter());
            assert_eq!(&opened, snapshot);
        }
        5 => {
            let (mut image, groups) = (Vec::new(), KeyGroups::new(5).expect("it is a valid number"));
            let end = |key: &[u8]| key.len().min(keys.prefix + 8);
            let options = ImageOptions::new().segment_bytes(4096);
            snapshot
                .write_grouped(groups, |key| &key[..end(key)], options, &mut image)
                .expect("memory takes everything");
            let opened = UnverifiedImage::from_bytes(image).and_then(|image| image.verify());
            check(keys, opened.expect("it was just written").iter(), model.iter());
            let slices = snapshot.split(groups, |key| &key[..end(key)]).expect("the groups are in range");
            check(keys, StateSnapshot::merge(slices).expect("slices have no key in common").iter(), model.iter());
        }
        _ => {
            let same: StateSnapshot = snapshot.iter().collect();
            assert_eq!(snapshot.fingerprint(), same.fingerprint());
        }
    }
}

/// Goes from a first moment to a second and a third by deltas.
fn compare(keys: &Keys, [first, second, third]: [Moment; 3]) {
    let delta = second.snapshot.delta_since(&first.snapshot);
    let delta = StateDelta::from_bytes(delta.to_bytes()).expect("it was just written");
    let is_new = |(number, _): &(&u64, _)| !first.model.contains_key(number);
    let before = first.model.iter().filter(|(number, value)| second.model.get(number) != Some(value)).count();
    assert_eq!(delta.len(), before + second.model.iter().filter(is_new).count());
    assert_eq!(delta.len(), second.snapshot.diff(&first.snapshot).count());
    let applied = first.snapshot.apply(&delta).expect("it is the base");
    check(keys, applied.iter(), second.model.iter());
    assert_eq!(applied, second.snapshot);

    let next = third.snapshot.delta_since(&applied);
    let both = delta.compose(&next).expect("the second follows the first");
    let applied = first.snapshot.apply(&both).expect("it is the base");
    check(keys, applied.iter(), third.model.iter());
}

/// Compares entries with those of a model.
fn check<'m>(
    keys: &Keys,
    entries: impl Iterator<Item = (opstate::bytes::Bytes, opstate::bytes::Bytes)>,
    model: impl Iterator<Item = (&'m u64, &'m (u8, usize))>,
) {
    let mut model = model.fuse();
    for (key, value) in entries {
        let (&number, &expected) = model.next().unwrap_or_else(|| panic!("{key:?} is not there"));
        assert_eq!(key, keys.bytes(number));
        assert!(is(Some(&value), Some(expected)), "{value:?} at {key:?}, not {expected:?}");
    }
    assert_eq!(model.next(), None);
}

/// Returns `true` if a value is what a model says.
fn is(value: Option<&[u8]>, expected: Option<(u8, usize)>) -> bool {
    match (value, expected) {
        (Some(value), Some((fill, len))) => value.len() == len && value.iter().all(|&byte| byte == fill),
        (value, expected) => value.is_none() && expected.is_none(),
    }
}

type Bounds = (Bound<u64>, Bound<u64>);

/// Returns bounds in the order that `BTreeMap::range` demands.
fn any_bounds(keys: &Keys, random: &mut Random) -> Bounds {
    let (a, b) = (keys.any(random), keys.any(random));
    match random.below(4) {
        0 => (Bound::Unbounded, Bound::Excluded(a)),
        1 => (Bound::Excluded(a), Bound::Unbounded),
        2 => (Bound::Included(a.min(b)), Bound::Excluded(a.max(b))),
        _ => (Bound::Included(a.min(b)), Bound::Included(a.max(b))),
    }
}

/// A generator of pseudorandom numbers (xorshift, Marsaglia 2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The low bits of neighbouring seeds are alike without this (the multiplication of xorshift*).
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn within(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}
