//! Every operation that is timed.

use std::hint::black_box;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::time::{Duration, Instant};

use bytes::Bytes;
use opstate::{StateSnapshot, StateStore};

use super::contender::{Can, Contender};
use super::workload::{BATCH, Workload, next_of};

/// One round of an operation.
pub(crate) struct Operation {
    /// A short one for the command line.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What a contender must be able to do.
    pub(crate) needs: Needs,
    pub(crate) run: fn(&Workload, &mut Contender, usize) -> Took,
}

/// How long so many operations took, or entries were dealt with.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) time: Duration,
    pub(crate) operations: usize,
}

impl Took {
    pub(crate) fn ns(self) -> f64 {
        self.time.as_nanos() as f64 / self.operations as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Scans,
    Snapshots,
}

impl Needs {
    pub(crate) fn are_met(self, can: Can) -> bool {
        match self {
            Self::Nothing => true,
            Self::Scans => can.scan,
            Self::Snapshots => can.snapshot,
        }
    }
}

/// The first one fills the stores, and each leaves them with as many entries as they had.
pub(crate) const OPERATIONS: &[Operation] = &[
    operation("insert", "insert a new key", Needs::Nothing, insert),
    operation("get", "get", Needs::Nothing, get),
    operation("miss", "get of a key that is not there", Needs::Nothing, miss),
    operation("chain", "get, each key depending on the last answer", Needs::Nothing, get_dependent),
    operation("read", "read in place", Needs::Nothing, read),
    operation("get-many", "16 lookups at once, per key", Needs::Nothing, get_many),
    operation("update", "update, same length", Needs::Nothing, update),
    operation("put-many", "16 updates at once, per key", Needs::Nothing, put_many),
    operation("resize", "update, other length", Needs::Nothing, resize),
    operation("modify", "modify in place", Needs::Nothing, modify),
    operation("under", "update while a snapshot is alive", Needs::Snapshots, update_under_snapshot),
    operation("under-many", "16 updates at once under a snapshot", Needs::Snapshots, put_many_under_snapshot),
    operation("first", "first 2,000 updates after a snapshot", Needs::Snapshots, first_updates),
    operation("replace", "delete + insert", Needs::Nothing, replace),
    operation("scan", "full scan, handles, per entry", Needs::Scans, scan),
    operation("visit", "full scan, borrowed, per entry", Needs::Scans, visit),
    operation("prefix-scan", "prefix scan of 100, handles, per entry", Needs::Scans, prefix_scan),
    operation("prefix-visit", "prefix scan of 100, borrowed, per entry", Needs::Scans, prefix_visit),
    operation("snapshot", "snapshot", Needs::Snapshots, snapshot),
    operation("serialize", "snapshot + serialize, per entry", Needs::Snapshots, serialize),
    operation("delta", "delta of 1 % changed, taken and written, per changed entry", Needs::Snapshots, delta),
    operation("restore", "restore from those bytes, per entry", Needs::Nothing, restore),
];

const fn operation(
    name: &'static str,
    title: &'static str,
    needs: Needs,
    run: fn(&Workload, &mut Contender, usize) -> Took,
) -> Operation {
    Operation { name, title, needs, run }
}

fn took(start: Instant, operations: usize) -> Took {
    Took { time: start.elapsed(), operations }
}

/// From nothing to all entries; leaves the store for the rows that follow.
fn insert(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    contender.store = (contender.kind.make)();
    let entries: Vec<_> = work.order.iter().map(|&entry| (work.key(entry), work.value(entry, 0))).collect();
    let start = Instant::now();
    for (key, value) in &entries {
        put(contender, key, value);
    }
    took(start, entries.len())
}

fn get(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let (_, keys) = work.asked(round);
    let start = Instant::now();
    for key in keys.chunks_exact(work.shape.key_len) {
        black_box(next_of(&contender.store.get(key).expect("the key is there")));
    }
    took(start, work.lookups)
}

fn get_dependent(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let mut entry = work.asked(round).0[0];
    let start = Instant::now();
    for _ in 0..work.lookups {
        entry = next_of(&contender.store.get(&work.key(entry)).expect("the key is there"));
    }
    black_box(entry);
    took(start, work.lookups)
}

fn read(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let (_, keys) = work.asked(round);
    let start = Instant::now();
    for key in keys.chunks_exact(work.shape.key_len) {
        let is_there = contender.store.read(key, &mut |value| {
            black_box(next_of(value));
        });
        assert!(is_there);
    }
    took(start, work.lookups)
}

fn get_many(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    if !contender.kind.can.batch {
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
    took(start, work.lookups)
}

/// Keys that sort among those that are there.
fn miss(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let absent: Vec<_> = work.asked(round).0.iter().map(|entry| work.absent_key(*entry)).collect();
    let start = Instant::now();
    for key in &absent {
        assert!(contender.store.get(key).is_none());
    }
    took(start, absent.len())
}

fn update(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    time_updates(work, contender, round, work.lookups, 1 + round)
}

fn put_many(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let tag = 400 + round;
    if !contender.kind.can.batch {
        return time_updates(work, contender, round, work.lookups, tag);
    }
    let (entries, keys) = work.asked(round);
    let values: Vec<_> = entries.iter().map(|&entry| work.value(entry, tag)).collect();
    let keys: Vec<&[u8]> = keys.chunks_exact(work.shape.key_len).collect();
    let start = Instant::now();
    for (keys, values) in keys.chunks_exact(BATCH).zip(values.chunks_exact(BATCH)) {
        let entries: [(&[u8], &[u8]); BATCH] = std::array::from_fn(|place| (keys[place], &values[place][..]));
        contender.store.put_many(&entries).expect("the entries are short");
    }
    took(start, entries.len())
}

/// Values that are a byte longer or shorter than the last time, and in the end as they were.
fn resize(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let mut entries = work.asked(round).0.to_vec();
    entries.sort_unstable();
    entries.dedup();
    // In an order that has nothing to do with that of the keys.
    entries.sort_unstable_by_key(|entry| entry.wrapping_mul(0x9E37_79B9));
    let keyed: Vec<_> = entries.iter().map(|&entry| (work.key(entry), work.value(entry, 0))).collect();
    let longer: Vec<_> = keyed.iter().map(|(_, value)| [value, &b"+"[..]].concat()).collect();
    let start = Instant::now();
    for ((key, _), longer) in keyed.iter().zip(&longer) {
        put(contender, key, longer);
    }
    for (key, value) in &keyed {
        put(contender, key, value);
    }
    took(start, 2 * keyed.len())
}

fn modify(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let (_, keys) = work.asked(round);
    let start = Instant::now();
    for key in keys.chunks_exact(work.shape.key_len) {
        // The upper half of the first eight bytes leads nowhere.
        let modified = contender.store.modify(key, &mut |value| value[4] = value[4].wrapping_add(1));
        assert!(modified.expect("its length is as it was"));
    }
    took(start, work.lookups)
}

/// Uses the store as a stream does before a checkpoint. The turns of other contenders have thrown it out of the caches;
/// where a snapshot reads all of it that would bring it back, and where a snapshot touches nothing it would not.
fn warm(work: &Workload, contender: &mut Contender, round: usize) {
    get(work, contender, round + 1);
    time_updates(work, contender, round + 1, work.lookups, 200 + round);
}

/// The snapshot is a new one in every round, and the one before it is gone.
fn update_under_snapshot(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    warm(work, contender, round);
    let _snapshot = contender.store.freeze();
    time_updates(work, contender, round, work.lookups, 50 + round)
}

fn put_many_under_snapshot(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    warm(work, contender, round);
    let _snapshot = contender.store.freeze();
    put_many(work, contender, round)
}

fn first_updates(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    warm(work, contender, round);
    let _snapshot = contender.store.freeze();
    time_updates(work, contender, round, work.lookups.min(2_000), 100 + round)
}

fn time_updates(work: &Workload, contender: &mut Contender, round: usize, updates: usize, tag: usize) -> Took {
    let (entries, keys) = work.asked(round);
    let values: Vec<_> = entries[..updates].iter().map(|&entry| work.value(entry, tag)).collect();
    let start = Instant::now();
    for (key, value) in keys.chunks_exact(work.shape.key_len).zip(&values) {
        put(contender, key, value);
    }
    took(start, updates)
}

/// Deletes an entry and inserts a new one, and later the other way round. The store ends with the keys it began with.
fn replace(work: &Workload, contender: &mut Contender, _: usize) -> Took {
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
    took(start, 2 * there.len())
}

fn scan(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let start = Instant::now();
    assert_eq!(look_at(contender.store.prefix_scan(b"")), work.entries);
    took(start, work.entries)
}

fn visit(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let start = Instant::now();
    let mut seen = 0;
    contender.store.visit_range((Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
        black_box((key[0], next_of(value)));
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(seen, work.entries);
    took(start, work.entries)
}

fn prefix_scan(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let mut seen = 0;
    let start = Instant::now();
    for prefix in &work.prefixes {
        seen += look_at(contender.store.prefix_scan(prefix));
    }
    took(start, seen)
}

fn prefix_visit(work: &Workload, contender: &mut Contender, _: usize) -> Took {
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
    took(start, seen)
}

fn snapshot(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    // A snapshot of what has not changed since the last one might be cheaper than the others.
    time_updates(work, contender, round, 200, 150 + round);
    let start = Instant::now();
    let snapshot = contender.store.freeze();
    let took = took(start, 1);
    drop(snapshot);
    took
}

fn serialize(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let start = Instant::now();
    let snapshot = contender.store.snapshot();
    snapshot.write_to(io::sink()).expect("a sink takes everything");
    took(start, work.entries)
}

fn delta(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let changed = (work.entries / 100).clamp(1, work.lookups);
    let earlier = contender.store.snapshot();
    // One end of a chain is always known.
    earlier.fingerprint();
    time_updates(work, contender, round, changed, 250 + round);
    let later = contender.store.snapshot();
    let start = Instant::now();
    let delta = later.delta_since(&earlier);
    delta.write_to(io::sink()).expect("a sink takes everything");
    took(start, delta.len())
}

fn restore(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let image = work.image.get_or_init(|| contender.store.snapshot().to_bytes());
    let mut store = (contender.kind.make)();
    let start = Instant::now();
    store.restore(StateSnapshot::from_bytes(image.clone()).expect("the image is as it was written"));
    let time = start.elapsed();
    assert_eq!(store.len(), work.entries);
    Took { time, operations: work.entries }
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
