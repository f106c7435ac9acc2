//! Deltas beside full images, as more of the store changes: `cargo bench --bench delta -- 1000000`.
//!
//! The store has keys of 12 bytes, 100 of them to a prefix of 8, put in shuffled order, and values of 8 bytes. Entries
//! change at random, by an update each or (in the rows that say so) by being deleted and another one being inserted. A
//! delta is taken by each of the three routes, and all are checked to give the same bytes, and applied to the base the later
//! snapshot's, before anything is timed: from the journal; by pages, after so many writes to one key that the journal
//! gave up; and by walking, against the same contents opened from an image. Times are medians of several rounds, in each of
//! which everything is done once, so that whatever else the machine does falls on all alike. Before each the caches are
//! filled with something else, because an operator has other things to do between two checkpoints; but not in the first
//! column, which is for what was written just now. Full images and deltas are written with fingerprints of the base known.
//!
//! Beside the table, a plot for each size is written to `target/tmp/delta-SIZE.svg`: what a delta and a full image
//! cost by the share of entries that changed, both axes logarithmic.

mod common;

use std::array;
use std::env;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use opstate::{HotStore, StateDelta, StateSnapshot, StateStore};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use common::plot::{Series, Texts, plot};
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
        let mut points = Vec::new();
        for share in SHARES {
            let (row, times) = row(entries, share, false, &other);
            table.add_row(row);
            points.push((share * 100.0, times));
        }
        for share in [0.01, 0.1] {
            table.add_row(row(entries, share, true, &other).0);
        }
        println!("{table}");
        let path = format!("{}/delta-{entries}.svg", env!("CARGO_TARGET_TMPDIR"));
        let line = |name: &str, series: usize| Series {
            name: name.to_owned(),
            points: points.iter().map(|(share, times): &(f64, Times)| (*share, times[series])).collect(),
        };
        let series = [line("delta, by the journal", 0), line("delta, and written", 1), line("full image", 2)];
        let caption = format!("Checkpoint of {entries} entries, by what changed");
        let texts = Texts { caption: &caption, x: "changed entries, %", y: "ms" };
        match plot(Path::new(&path), &texts, &series, None) {
            Ok(()) => println!("plot: {path}"),
            Err(error) => println!("the plot could not be written to {path}: {error}"),
        }
    }
}

/// What the plot shows, in milliseconds: a delta from the journal, the same written, and a full image.
type Times = [f64; 3];

fn row(entries: usize, share: f64, replaced: bool, other: &[u64]) -> (Vec<String>, Times) {
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
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let row = vec![
        format!("{:.1} %{}", share * 100.0, if replaced { ", other keys" } else { "" }),
        each(warm),
        each(journal),
        each(pages),
        each(walk),
        each(write),
        format!("{:.2}", ms(both)),
        format!("{:.2}", ms(full)),
        expected.len().to_string(),
        format!("{:.3}", expected.len() as f64 / image.len() as f64),
    ];
    (row, [ms(journal), ms(both), ms(full)])
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

fn key(entry: u32) -> workload::Key {
    workload::key(&Shape::USUAL, entry)
}

/// Times everything once a round, and returns the median of each. All but the first find cold caches.
fn medians<const N: usize>(other: &[u64], tasks: [&dyn Fn(); N]) -> [Duration; N] {
    let time = |place: usize, task: &dyn Fn()| {
        if place == 0 {
            // What it needs is in the caches once it has run.
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
