//! Deltas and full images, as more of the store changes: `cargo bench --bench delta -- 1000000`.
//!
//! Keys have 12 bytes, 100 of them to a prefix of 8, and are put in shuffled order. Values have 8 bytes. Entries change at
//! random, by an update each. In the rows with other keys, entries are deleted and others inserted.
//!
//! A delta is taken in three ways: from the journal; by pages, after so many writes to one key that the journal gave up;
//! and by a walk, against the same contents opened from an image. Before anything is timed, all three must give the same
//! bytes, and each delta must lead from the earlier snapshot to the later one. The fingerprint of the earlier one is known.
//!
//! Times are medians of several rounds. Each round does everything once, so that a busy machine slows all columns alike.
//! The caches are filled with other data before each measurement, because an operator does other work between two
//! checkpoints. The first column is the exception: it is for data written just before.

mod common;

use std::array;
use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use opstate::{HotStore, StateDelta, StateSnapshot, StateStore};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use common::workload::{self, Shape};

const SHARES: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0];
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

/// Measures one row of the table.
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
    let read = StateDelta::from_bytes(expected.clone()).expect("a sound delta");
    assert!(opened.apply(&read).expect("the right base").to_bytes() == later.to_bytes());

    let delta = later.delta_since(&earlier);
    let [warm, journal, pages, walk, write, both, full] = medians(
        other,
        [
            &|| drop(black_box(later.delta_since(&earlier))),
            &|| drop(black_box(later.delta_since(&earlier))),
            &|| drop(black_box(new.delta_since(&old))),
            &|| drop(black_box(later.delta_since(&opened))),
            &|| drop(black_box(delta.to_bytes())),
            &|| drop(black_box(later.delta_since(&earlier).to_bytes())),
            &|| drop(black_box(later.to_bytes())),
        ],
    );
    let each = |time: Duration| format!("{:.1}", time.as_nanos() as f64 / delta.len() as f64);
    let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    vec![
        format!("{:.1} %{}", share * 100.0, if replaced { ", other keys" } else { "" }),
        each(warm),
        each(journal),
        each(pages),
        each(walk),
        each(write),
        ms(both),
        ms(full),
        expected.len().to_string(),
        format!("{:.3}", expected.len() as f64 / image.len() as f64),
    ]
}

/// Returns two snapshots of a store. Between them `changed` entries changed, with or without notes in the journal.
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

fn key(entry: u32) -> workload::Key {
    workload::key(&Shape::USUAL, entry)
}

/// Times each task once a round, and returns its median. All tasks but the first run with cold caches.
fn medians<const N: usize>(other: &[u64], tasks: [&dyn Fn(); N]) -> [Duration; N] {
    let time = |place: usize, task: &dyn Fn()| {
        if place == 0 {
            // An untimed run fills the caches.
            task();
        } else {
            black_box(other.iter().step_by(8).sum::<u64>());
        }
        let start = Instant::now();
        task();
        start.elapsed()
    };
    let rounds: [[Duration; N]; ROUNDS] = array::from_fn(|_| array::from_fn(|place| time(place, tasks[place])));
    array::from_fn(|place| {
        let mut times = rounds.map(|round| round[place]);
        times.sort();
        times[ROUNDS / 2]
    })
}
