//! What all contenders are given and asked.

use std::cell::OnceCell;
use std::ops::{Bound, ControlFlow, Deref};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use opstate::StateStore;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::contender::Contender;

/// What entries look like, and how they are asked for.
#[derive(Args, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a key, from 12 to 200; all but the last 12 are the same in all keys.
    #[arg(long = "key-bytes", default_value_t = CORE_LEN)]
    pub(crate) key_len: usize,
    /// Bytes of a value, 8 at least.
    #[arg(long = "value-bytes", default_value_t = 8)]
    pub(crate) value_len: usize,
    /// What keys are like, and in which order they are put.
    #[arg(long, value_enum, default_value_t = Keys::Shuffled)]
    pub(crate) keys: Keys,
    /// Ask for few entries often and for many seldom: for the n-th with a probability of 1 / n.
    #[arg(long)]
    pub(crate) zipf: bool,
}

impl Shape {
    pub(crate) const USUAL: Self = Self { key_len: CORE_LEN, value_len: 8, keys: Keys::Shuffled, zipf: false };

    /// Options that lead to this shape.
    pub(crate) fn options(&self) -> Vec<String> {
        let keys = self.keys.to_possible_value().expect("no kind is skipped");
        let mut options = vec![
            format!("--key-bytes={}", self.key_len),
            format!("--value-bytes={}", self.value_len),
            format!("--keys={}", keys.get_name()),
        ];
        options.extend(self.zipf.then(|| "--zipf".to_owned()));
        options
    }
}

/// What the last twelve bytes of keys are like, of which a hundred neighbours share eight.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Keys {
    /// In no order, put in no order.
    Shuffled,
    /// Ascending numbers, put as they ascend.
    Sequential,
    /// The end of a window and a group: windows come one after the other, the groups of a window in no order.
    Window,
}

/// A key without an allocation.
#[derive(Clone)]
pub(crate) struct Key {
    bytes: [u8; Self::MOST],
    start: usize,
}

impl Key {
    const MOST: usize = 200;
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// The part of a key that tells entries apart, and that of it which neighbours share.
const CORE_LEN: usize = 12;
const SHARED_LEN: usize = 8;
/// The entries of a prefix.
pub(crate) const SIBLINGS: u32 = 100;
/// The keys of a batch.
pub(crate) const BATCH: usize = 16;

/// The lookups of a round: few enough that most rounds on a small store fall between two interruptions.
const LOOKUPS: usize = 1 << 15;

/// Rounds until the same keys are asked for again: so many that the caches have long forgotten them.
pub(crate) const ROUNDS: usize = 32;

pub(crate) struct Workload {
    pub(crate) shape: Shape,
    /// The lookups of a round, and fewer of large values.
    pub(crate) lookups: usize,
    pub(crate) entries: usize,
    /// The order in which entries are put.
    pub(crate) order: Vec<u32>,
    /// The entry that the value of an entry leads to: one circle through all of them.
    next: Vec<u32>,
    /// Entries that are there, at random, and their keys.
    asked: Vec<u32>,
    asked_keys: Vec<u8>,
    /// Different entries that are there, at random.
    pub(crate) victims: Vec<u32>,
    /// Prefixes of entries that are there, at random.
    pub(crate) prefixes: Vec<Vec<u8>>,
    /// The image of a store with all entries, once it is asked for.
    pub(crate) image: OnceCell<Bytes>,
}

impl Workload {
    pub(crate) fn new(entries: usize, shape: Shape) -> Self {
        let mut random = SmallRng::seed_from_u64(entries as u64);
        let circle = shuffled(entries);
        let mut next = vec![0; entries];
        for (place, &entry) in circle.iter().enumerate() {
            next[entry as usize] = circle[(place + 1) % entries];
        }
        let lookups = LOOKUPS.min((256 << 20) / shape.value_len);
        assert!((CORE_LEN..=Key::MOST).contains(&shape.key_len) && shape.value_len >= 8, "a shape that is not offered");
        let mut ask = || match shape.zipf {
            false => random.random_range(0..entries as u32),
            // The logarithm of a rank is even.
            true => circle[(entries as f64).powf(random.random::<f64>()) as usize - 1],
        };
        let asked: Vec<u32> = (0..ROUNDS * lookups).map(|_| ask()).collect();
        let mut victims: Vec<u32> = (0..entries as u32).collect();
        victims.shuffle(&mut random);
        victims.truncate(20_000.min(entries / 2));
        let prefix = |&entry: &u32| key(&shape, entry)[..shape.key_len - CORE_LEN + SHARED_LEN].to_vec();
        let prefixes = asked.iter().take(2_000).map(prefix).collect();
        let mut order = circle;
        order.shuffle(&mut random);
        match shape.keys {
            Keys::Shuffled => {}
            Keys::Sequential => order.sort_unstable(),
            Keys::Window => order.sort_by_key(|entry| entry / SIBLINGS),
        }
        let asked_keys = asked.iter().flat_map(|&entry| key(&shape, entry).to_vec()).collect();
        Self { shape, lookups, entries, order, next, asked, asked_keys, victims, prefixes, image: OnceCell::new() }
    }

    /// The value of an entry. The `tag` makes it another one that leads to the same entry.
    pub(crate) fn value(&self, entry: u32, tag: usize) -> Vec<u8> {
        let next = self.next.get(entry as usize).copied().unwrap_or(entry);
        let mut value = (u64::from(next) | (tag as u64) << 32).to_le_bytes().to_vec();
        value.resize(self.shape.value_len, tag as u8);
        value
    }

    pub(crate) fn key(&self, entry: u32) -> Key {
        key(&self.shape, entry)
    }

    /// The key next to that of an entry, which no entry has.
    pub(crate) fn absent_key(&self, entry: u32) -> Key {
        let mut key = self.key(entry);
        // The number of a neighbour ends in four bytes, and there are but a hundred.
        key.bytes[Key::MOST - 4] = 1;
        key
    }

    /// The entries to be asked for in a round, and their keys one after the other.
    pub(crate) fn asked(&self, round: usize) -> (&[u32], &[u8]) {
        let (first, count, len) = (round % ROUNDS * self.lookups, self.lookups, self.shape.key_len);
        (&self.asked[first..][..count], &self.asked_keys[first * len..][..count * len])
    }
}

/// The key of an entry: those of a hundred neighbours start alike.
pub(crate) fn key(shape: &Shape, entry: u32) -> Key {
    let number = u64::from(entry / SIBLINGS + 1);
    let prefix = match shape.keys {
        // Multiplying by an odd number permutes the 64-bit numbers, so no two prefixes are equal.
        Keys::Shuffled => number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        Keys::Sequential => number,
        // Minutes since 1970, in milliseconds.
        Keys::Window => 1_700_000_040_000 + 60_000 * number,
    };
    let mut bytes = [b'/'; Key::MOST];
    let core = &mut bytes[Key::MOST - CORE_LEN..];
    core[..SHARED_LEN].copy_from_slice(&prefix.to_be_bytes());
    core[SHARED_LEN..].copy_from_slice(&(entry % SIBLINGS).to_be_bytes());
    Key { bytes, start: Key::MOST - shape.key_len }
}

/// The entry that a value leads to.
pub(crate) fn next_of(value: &[u8]) -> u32 {
    u32::from_le_bytes(*value.first_chunk().expect("values have 8 bytes"))
}

pub(crate) fn shuffled(entries: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..entries as u32).collect();
    order.shuffle(&mut SmallRng::seed_from_u64(7));
    order
}

/// Panics unless all contenders hold the same entries and answer every kind of question in the same way.
pub(crate) fn check_equal(work: &Workload, contenders: &[&Contender]) {
    let (base, others) = contenders.split_first().expect("there is something to compare with");
    let absent: Vec<Key> = work.asked(1).0[..100].iter().map(|&entry| work.absent_key(entry)).collect();
    let keys: Vec<&[u8]> =
        absent.iter().map(|key| &key[..]).chain(work.asked(0).1.chunks_exact(work.shape.key_len)).collect();
    let contents = digest(&*base.store);
    for Contender { kind, store } in others {
        let name = kind.name;
        assert_eq!((store.len(), store.size_bytes()), (base.store.len(), base.store.size_bytes()), "sizes of {name}");
        let mut at_once = Vec::new();
        store.get_many(&keys, &mut at_once);
        for (key, at_once) in keys.iter().zip(at_once) {
            let expected = base.store.get(key);
            assert_eq!(store.get(key), expected, "{key:?} in {name}");
            assert_eq!(at_once, expected, "{key:?} in {name}");
            let mut in_place = None;
            store.read(key, &mut |value| in_place = Some(Bytes::copy_from_slice(value)));
            assert_eq!(in_place, expected, "{key:?} in {name}");
        }
        if kind.can.scan {
            assert_eq!(digest(&**store), contents, "entries of {name}");
            for prefix in work.prefixes.iter().take(200) {
                assert!(store.prefix_scan(prefix).eq(base.store.prefix_scan(prefix)), "prefix {prefix:?} in {name}");
            }
        }
    }
    assert_eq!(base.store.len(), work.entries);
}

/// A number that depends on every byte of a store and on the order.
fn digest(store: &dyn StateStore) -> u64 {
    let mut digest = 0_u64;
    store.visit_range((Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
        for byte in key.iter().chain(value) {
            digest = (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
        ControlFlow::Continue(())
    });
    digest
}
