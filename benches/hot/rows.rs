//! The rows of the table: what is timed.

use std::hint::black_box;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::time::{Duration, Instant};

use bytes::Bytes;
use opstate::StateSnapshot;

use crate::Contender;
use crate::workload::{BATCH, Workload, next_of};

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The ratios to reach at ten thousand, a million and ten million entries.
    pub(crate) targets: Option<Targets>,
    /// Nanoseconds per operation or entry, in one round.
    pub(crate) run: fn(&Workload, &mut Contender, usize) -> f64,
}

pub(crate) type Targets = [f64; 3];

pub(crate) const ROWS: &[Row] = &[
    row("insert a new key", [1.5, 6.0, 6.0], insert),
    row("get", [1.1, 1.6, 3.0], get),
    row("get, each key depending on the last answer", [1.3, 2.0, 2.5], get_dependent),
    row("read in place", [1.1, 1.3, 2.5], read),
    row("16 lookups at once, per key (glued: get)", [2.0, 6.0, 10.0], get_many),
    row("update, same length", [3.0, 4.5, 5.0], update),
    row("update while a snapshot is alive", [2.0, 2.0, 1.5], update_under_snapshot),
    row("first 2,000 updates after a snapshot", [2.0, 1.0, 1.0], first_updates),
    row("delete + insert", [3.0, 5.0, 6.0], replace),
    row("full scan, handles, per entry", [5.0, 12.0, 15.0], scan),
    row("full scan, borrowed, per entry", [20.0, 30.0, 40.0], visit),
    row("prefix scan of 100, handles, per entry", [5.0, 10.0, 15.0], prefix_scan),
    row("prefix scan of 100, borrowed, per entry", [10.0, 20.0, 30.0], prefix_visit),
    Row { name: "snapshot (to take at most 5,000)", targets: None, run: snapshot },
    row("snapshot + serialize, per entry", [1.0, 6.0, 10.0], serialize),
    row("restore from those bytes, per entry", [2.5, 15.0, 15.0], restore),
];

const fn row(name: &'static str, targets: Targets, run: fn(&Workload, &mut Contender, usize) -> f64) -> Row {
    Row { name, targets: Some(targets), run }
}

fn per(time: Duration, operations: usize) -> f64 {
    time.as_nanos() as f64 / operations as f64
}

/// From nothing to all entries; leaves the store for the rows that follow.
fn insert(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    contender.store = (contender.make)();
    let entries: Vec<_> = work.order.iter().map(|&entry| (work.key(entry), work.value(entry, 0))).collect();
    let start = Instant::now();
    for (key, value) in &entries {
        put(contender, key, value);
    }
    per(start.elapsed(), entries.len())
}

fn get(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    let (_, keys) = work.asked(round);
    let start = Instant::now();
    for key in keys.chunks_exact(work.shape.key_len) {
        black_box(next_of(&contender.store.get(key).expect("the key is there")));
    }
    per(start.elapsed(), work.lookups)
}

fn get_dependent(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    let mut entry = work.asked(round).0[0];
    let start = Instant::now();
    for _ in 0..work.lookups {
        entry = next_of(&contender.store.get(&work.key(entry)).expect("the key is there"));
    }
    black_box(entry);
    per(start.elapsed(), work.lookups)
}

fn read(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    let (_, keys) = work.asked(round);
    let start = Instant::now();
    for key in keys.chunks_exact(work.shape.key_len) {
        let is_there = contender.store.read(key, &mut |value| {
            black_box(next_of(value));
        });
        assert!(is_there);
    }
    per(start.elapsed(), work.lookups)
}

fn get_many(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    if contender.is_base {
        return get(work, contender, round);
    }
    let (_, keys) = work.asked(round);
    let len = work.shape.key_len;
    let mut answers: Vec<Option<Bytes>> = Vec::new();
    let start = Instant::now();
    for keys in keys.chunks_exact(BATCH * len) {
        let keys: [&[u8]; BATCH] = std::array::from_fn(|place| &keys[place * len..][..len]);
        contender.store.get_many(&keys, &mut answers);
        for answer in &answers {
            black_box(next_of(answer.as_ref().expect("the key is there")));
        }
    }
    per(start.elapsed(), work.lookups)
}

fn update(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    time_updates(work, contender, round, work.lookups, 1 + round)
}

/// Uses the store as a stream does before a checkpoint. The turns of other contenders have thrown it out of the caches;
/// where a snapshot reads all of it that would bring it back, and where a snapshot touches nothing it would not.
fn warm(work: &Workload, contender: &mut Contender, round: usize) {
    get(work, contender, round + 1);
    time_updates(work, contender, round + 1, work.lookups, 200 + round);
}

/// The snapshot is a new one in every round, and the one before it is gone.
fn update_under_snapshot(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    warm(work, contender, round);
    let _snapshot = contender.store.snapshot();
    time_updates(work, contender, round, work.lookups, 50 + round)
}

fn first_updates(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    warm(work, contender, round);
    let _snapshot = contender.store.snapshot();
    time_updates(work, contender, round, work.lookups.min(2_000), 100 + round)
}

fn time_updates(work: &Workload, contender: &mut Contender, round: usize, updates: usize, tag: usize) -> f64 {
    let (entries, keys) = work.asked(round);
    let values: Vec<_> = entries[..updates].iter().map(|&entry| work.value(entry, tag)).collect();
    let start = Instant::now();
    for (key, value) in keys.chunks_exact(work.shape.key_len).zip(&values) {
        put(contender, key, value);
    }
    per(start.elapsed(), updates)
}

/// Deletes an entry and inserts a new one, and later the other way round. The store ends with the keys it began with.
fn replace(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let entry = |entry: u32| (work.key(entry), work.value(entry, 0));
    let there: Vec<_> = work.victims.iter().map(|&victim| entry(victim)).collect();
    let new: Vec<_> = (work.entries as u32..).take(there.len()).map(entry).collect();
    let start = Instant::now();
    for (from, to) in [(&there, &new), (&new, &there)] {
        for ((old, _), (key, value)) in from.iter().zip(to) {
            contender.store.delete(old).expect("nothing can fail in memory");
            put(contender, key, value);
        }
    }
    per(start.elapsed(), 2 * there.len())
}

fn scan(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let start = Instant::now();
    assert_eq!(look_at(contender.store.prefix_scan(b"")), work.entries);
    per(start.elapsed(), work.entries)
}

fn visit(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let start = Instant::now();
    let mut seen = 0;
    contender.store.visit_range((Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
        black_box((key[0], next_of(value)));
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(seen, work.entries);
    per(start.elapsed(), work.entries)
}

fn prefix_scan(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let mut seen = 0;
    let start = Instant::now();
    for prefix in &work.prefixes {
        seen += look_at(contender.store.prefix_scan(prefix));
    }
    per(start.elapsed(), seen)
}

fn prefix_visit(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let mut seen = 0;
    let start = Instant::now();
    for prefix in &work.prefixes {
        let range = (Bound::Included(&prefix[..]), Bound::Unbounded);
        contender.store.visit_range(range, &mut |key, value| {
            if !key.starts_with(prefix) {
                return ControlFlow::Break(());
            }
            black_box((key[0], next_of(value)));
            seen += 1;
            ControlFlow::Continue(())
        });
    }
    per(start.elapsed(), seen)
}

fn snapshot(work: &Workload, contender: &mut Contender, round: usize) -> f64 {
    // A snapshot of what has not changed since the last one might be cheaper than the others.
    time_updates(work, contender, round, 200, 150 + round);
    let start = Instant::now();
    let snapshot = contender.store.snapshot();
    let time = start.elapsed();
    assert_eq!(snapshot.len(), work.entries);
    per(time, 1)
}

fn serialize(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let start = Instant::now();
    let snapshot = contender.store.snapshot();
    snapshot.write_to(io::sink()).expect("a sink takes everything");
    per(start.elapsed(), work.entries)
}

fn restore(work: &Workload, contender: &mut Contender, _: usize) -> f64 {
    let image = work.image.get_or_init(|| contender.store.snapshot().to_bytes());
    let mut store = (contender.make)();
    let start = Instant::now();
    store.restore(StateSnapshot::from_bytes(image.clone()).expect("the image is as it was written"));
    let time = start.elapsed();
    assert_eq!(store.len(), work.entries);
    per(time, work.entries)
}

fn put(contender: &mut Contender, key: &[u8], value: &[u8]) {
    contender.store.put(key, value).expect("the entry is short");
}

fn look_at(entries: impl Iterator<Item = (Bytes, Bytes)>) -> usize {
    let mut seen = 0;
    for (key, value) in entries {
        black_box((key[0], next_of(&value)));
        seen += 1;
    }
    seen
}
