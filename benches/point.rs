//! Random point reads through `Box<dyn StateStore>`, beside a plain `BTreeMap`: `cargo bench --bench point`.
//!
//! Keys are looked up in random order from one contiguous buffer, so that what is measured is the store and not a miss
//! on the asker's own key. Every answer is looked at. Both sides are asked for the same keys and checked to give the same
//! answers before they are timed.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::iter;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion};
use opstate::{InMemoryStore, StateStore};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const SIZES: [usize; 6] = [1_000, 10_000, 100_000, 300_000, 500_000, 1_000_000];
const LOOKUPS: usize = 1 << 16;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (key_len, value_len) in [(12, 8), (12, 100), (40, 8)] {
        for size in SIZES {
            point(&mut criterion, key_len, value_len, size);
        }
    }
    criterion.final_summary();
}

fn point(criterion: &mut Criterion, key_len: usize, value_len: usize, size: usize) {
    let mut random = SmallRng::seed_from_u64(size as u64);
    let mut keys: Vec<Vec<u8>> = (0..size).map(|i| key(i, key_len)).collect();
    keys.shuffle(&mut random);
    let asked: Vec<u8> =
        iter::repeat_with(|| &keys[random.random_range(0..size)]).take(LOOKUPS).flatten().copied().collect();

    let mut store: Box<dyn StateStore> = Box::new(InMemoryStore::new());
    let mut plain: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
    for key in &keys {
        let value: Vec<u8> = key.iter().copied().cycle().take(value_len).collect();
        store.put(key, &value).expect("the entry is short");
        plain.insert(key.clone(), value.into());
    }
    for key in asked.chunks_exact(key_len) {
        assert_eq!(store.get(key).as_ref(), plain.get(key));
    }

    let mut group = criterion.benchmark_group(format!("get/key {key_len}/value {value_len}"));
    let mut run = |name, get: &dyn Fn(&[u8]) -> Option<Bytes>| {
        let mut next = asked.chunks_exact(key_len).cycle();
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter(|| black_box(get(next.next().expect("an endless supply of keys"))));
        });
    };
    run("InMemoryStore", &|key| store.get(key));
    run("BTreeMap", &|key| plain.get(key).cloned());
}

/// The `i`-th key: `len` bytes in no order, different for different `i`.
fn key(i: usize, len: usize) -> Vec<u8> {
    // Multiplying by an odd number permutes the 64-bit numbers, so no two keys are equal.
    let mut key = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().to_vec();
    key.resize(len, b'k');
    key
}
