//! Deltas beside full images, as more of the store changes: `cargo bench --bench delta -- 1000000`.
//!
//! The store has keys of 12 bytes, 100 of them to a prefix of 8, put in shuffled order, and values of 8 bytes. Entries
//! change at random, by an update each or (in the rows that say so) by being deleted and another one being inserted. A
//! delta is taken by each of the three routes, and all are checked to give the same bytes: from the journal; by pages, after so
//! many writes to one key that the journal gave up; and by walking, against the same contents opened from an image. Times
//! are medians of several rounds. Before each the caches are filled with something else, because an operator has other
//! things to do between two checkpoints; but not in the first column, which is for what was written just now. Full images and deltas are written with fingerprints of the base known.

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use opstate::{HotStore, StateSnapshot, StateStore};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const SHARES: [f64; 7] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0];
const ROUNDS: usize = 5;
/// More than the caches of most machines.
const OTHER_BYTES: usize = 128 << 20;

fn main() {
    let sizes: Vec<usize> = env::args().filter_map(|arg| arg.parse().ok()).collect();
    let other = vec![1_u64; OTHER_BYTES / 8];
    for entries in if sizes.is_empty() { vec![1_000_000] } else { sizes } {
        println!("\n{entries} entries; ns for each changed entry, but for the last four columns");
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header([
            "changed",
            "journal",
            "journal, cold",
            "pages",
            "walk",
            "write",
            "journal and write, ms",
            "full image, ms",
            "delta, bytes",
            "of the image",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for share in SHARES {
            table.add_row(row(entries, share, false, &other));
        }
        for share in [0.01, 0.1] {
            table.add_row(row(entries, share, true, &other));
        }
        println!("{table}");
    }
}

fn row(entries: usize, share: f64, replaced: bool, other: &[u64]) -> Vec<String> {
    let changed = ((entries as f64 * share) as usize).max(1);
    let (earlier, later) = snapshots(entries, changed, replaced, false);
    let (old, new) = snapshots(entries, changed, replaced, true);
    let image = earlier.to_bytes();
    let opened = StateSnapshot::from_bytes(image.clone()).expect("a sound image");
    let expected = later.delta_since(&earlier).to_bytes();
    let same_time = |snapshot: &StateSnapshot| snapshot.with_timestamp_ns(later.timestamp_ns());
    assert!(same_time(&new).delta_since(&old).to_bytes() == expected);
    assert!(later.delta_since(&opened).to_bytes() == expected);
    assert!(earlier.apply(&later.delta_since(&earlier)).expect("the right base").to_bytes() == later.to_bytes());

    let found = later.delta_since(&earlier).len();
    let each = |time: Duration| format!("{:.1}", time.as_nanos() as f64 / found as f64);
    let warm = median(&[], || drop(black_box(later.delta_since(&earlier))));
    let journal = median(other, || drop(black_box(later.delta_since(&earlier))));
    let pages = median(other, || drop(black_box(new.delta_since(&old))));
    let walk = median(other, || drop(black_box(later.delta_since(&opened))));
    let delta = later.delta_since(&earlier);
    let write = median(other, || drop(black_box(delta.to_bytes())));
    let both = median(other, || drop(black_box(later.delta_since(&earlier).to_bytes())));
    let full = median(other, || drop::<Bytes>(black_box(later.to_bytes())));
    vec![
        format!("{:.1} %{}", share * 100.0, if replaced { ", other keys" } else { "" }),
        each(warm),
        each(journal),
        each(pages),
        each(walk),
        each(write),
        format!("{:.2}", both.as_secs_f64() * 1e3),
        format!("{:.2}", full.as_secs_f64() * 1e3),
        expected.len().to_string(),
        format!("{:.3}", expected.len() as f64 / image.len() as f64),
    ]
}

/// Two snapshots of a store between which so many entries changed, with or without the journal's notes of it.
fn snapshots(entries: usize, changed: usize, replaced: bool, without_notes: bool) -> (StateSnapshot, StateSnapshot) {
    let mut random = SmallRng::seed_from_u64(7);
    let mut order: Vec<u32> = (0..entries as u32).collect();
    order.shuffle(&mut random);
    let mut store = HotStore::with_capacity(entries);
    let put = |store: &mut HotStore, entry: u32, tag: u64| {
        store.put(&key(entry), &(u64::from(entry) | tag << 40).to_le_bytes()).expect("the entry is short");
    };
    for &entry in &order {
        put(&mut store, entry, 0);
    }
    let earlier = store.snapshot();
    if without_notes {
        let value = store.get(&key(0)).expect("it is there");
        for round in 0..entries / 2 {
            store.put(&key(0), &value[..round % 8]).expect("the entry is short");
        }
        store.put_bytes(&key(0), value).expect("the entry is short");
    }
    order.shuffle(&mut random);
    for (place, &entry) in order[..changed].iter().enumerate() {
        if replaced {
            store.delete(&key(entry)).expect("a delete");
            put(&mut store, entries as u32 + place as u32, 0);
        } else {
            put(&mut store, entry, 1 + random.random_range(0..1000));
        }
    }
    let later = store.snapshot();
    (earlier, later)
}

/// The key of an entry: those of a hundred neighbours start alike, and prefixes are in no order.
fn key(entry: u32) -> [u8; 12] {
    let prefix = u64::from(entry / 100 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut key = [0; 12];
    key[..8].copy_from_slice(&prefix.to_be_bytes());
    key[8..].copy_from_slice(&entry.to_be_bytes());
    key
}

fn median(other: &[u64], mut f: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            black_box(other.iter().step_by(8).sum::<u64>());
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}
