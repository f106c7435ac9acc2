//! Every operation that is timed.

use std::array;
use std::hint::black_box;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::time::{Duration, Instant};

use bytes::Bytes;
use opstate::StateSnapshot;

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

/// Times what returns how many operations it has done.
fn timed(run: impl FnOnce() -> usize) -> Took {
    let (mut run, mut operations) = (Some(run), 0);
    let start = Instant::now();
    measured(&mut || operations = run.take().map_or(0, |run| run()));
    Took { time: start.elapsed(), operations }
}

/// A function of its own, because whoever counts instructions counts those between its start and its end.
#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    run();
    // Else the end of `run` would be the end of this, which jumped to it.
    black_box(());
}

/// From nothing to all entries; leaves the store for the operations that follow.
fn insert(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    contender.store = (contender.kind.make)();
    let entries: Vec<_> = work.order.iter().map(|&entry| (work.key(entry), work.value(entry, 0))).collect();
    timed(|| {
        entries.iter().for_each(|(key, value)| put(contender, key, value));
        entries.len()
    })
}

fn get(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let (_, keys) = work.asked(round);
    timed(|| get_all(work, contender, keys))
}

fn get_all(work: &Workload, contender: &Contender, keys: &[u8]) -> usize {
    for key in keys.chunks_exact(work.shape.key_len) {
        black_box(next_of(&contender.store.get(key).expect("the key is there")));
    }
    work.lookups
}

/// Keys that sort among those that are there.
fn miss(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let absent: Vec<_> = work.asked(round).0.iter().map(|entry| work.absent_key(*entry)).collect();
    timed(|| {
        absent.iter().for_each(|key| assert!(contender.store.get(key).is_none()));
        absent.len()
    })
}

fn get_dependent(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let mut entry = work.asked(round).0[0];
    timed(|| {
        for _ in 0..work.lookups {
            entry = next_of(&contender.store.get(&work.key(entry)).expect("the key is there"));
        }
        black_box(entry);
        work.lookups
    })
}

fn read(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let (_, keys) = work.asked(round);
    timed(|| {
        for key in keys.chunks_exact(work.shape.key_len) {
            let is_there = contender.store.read(key, &mut |value| {
                black_box(next_of(value));
            });
            assert!(is_there);
        }
        work.lookups
    })
}

fn get_many(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    if !contender.kind.can.batch {
        return get(work, contender, round);
    }
    let (_, keys) = work.asked(round);
    let len = work.shape.key_len;
    let mut answers: Vec<Option<Bytes>> = Vec::new();
    timed(|| {
        for keys in keys.chunks_exact(BATCH * len) {
            let keys: [&[u8]; BATCH] = array::from_fn(|place| &keys[place * len..][..len]);
            contender.store.get_many(&keys, &mut answers);
            for answer in &answers {
                black_box(next_of(answer.as_ref().expect("the key is there")));
            }
        }
        work.lookups
    })
}

fn update(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    Updates::new(work, round, work.lookups, 1 + round).time(contender)
}

fn put_many(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let updates = Updates::new(work, round, work.lookups, 400 + round);
    if !contender.kind.can.batch {
        return updates.time(contender);
    }
    let entries: Vec<(&[u8], &[u8])> = updates.entries().collect();
    timed(|| {
        for entries in entries.chunks(BATCH) {
            contender.store.put_many(entries).expect("the entries are short");
        }
        entries.len()
    })
}

/// Values that are a byte longer than they were, and then as long again.
fn resize(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let mut entries = work.asked(round).0.to_vec();
    entries.sort_unstable();
    entries.dedup();
    // In an order that has nothing to do with that of the keys.
    entries.sort_unstable_by_key(|entry| entry.wrapping_mul(0x9E37_79B9));
    let keyed: Vec<_> = entries.iter().map(|&entry| (work.key(entry), work.value(entry, 0))).collect();
    let longer: Vec<_> = keyed.iter().map(|(_, value)| [value, &b"+"[..]].concat()).collect();
    timed(|| {
        keyed.iter().zip(&longer).for_each(|((key, _), longer)| put(contender, key, longer));
        keyed.iter().for_each(|(key, value)| put(contender, key, value));
        2 * keyed.len()
    })
}

fn modify(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let (_, keys) = work.asked(round);
    timed(|| {
        for key in keys.chunks_exact(work.shape.key_len) {
            // The upper half of the first eight bytes leads nowhere.
            let modified = contender.store.modify(key, &mut |value| value[4] = value[4].wrapping_add(1));
            assert!(modified.expect("its length is as it was"));
        }
        work.lookups
    })
}

/// Uses the store as a stream does before a checkpoint. The turns of other contenders have thrown it out of the caches;
/// where a snapshot reads all of it that would bring it back, and where a snapshot touches nothing it would not.
fn warm(work: &Workload, contender: &mut Contender, round: usize) {
    get_all(work, contender, work.asked(round + 1).1);
    Updates::new(work, round + 1, work.lookups, 200 + round).put_all(contender);
}

/// The snapshot is a new one in every round, and the one before it is gone.
fn update_under_snapshot(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    warm(work, contender, round);
    let _snapshot = contender.store.freeze();
    Updates::new(work, round, work.lookups, 50 + round).time(contender)
}

fn put_many_under_snapshot(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    warm(work, contender, round);
    let _snapshot = contender.store.freeze();
    put_many(work, contender, round)
}

fn first_updates(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    warm(work, contender, round);
    let _snapshot = contender.store.freeze();
    Updates::new(work, round, work.lookups.min(2_000), 100 + round).time(contender)
}

/// Keys that are asked for in a round, with values as long as those that are there.
struct Updates<'a> {
    keys: &'a [u8],
    key_len: usize,
    values: Vec<Vec<u8>>,
}

impl<'a> Updates<'a> {
    fn new(work: &'a Workload, round: usize, updates: usize, tag: usize) -> Self {
        let (entries, keys) = work.asked(round);
        let values = entries[..updates].iter().map(|&entry| work.value(entry, tag)).collect();
        Self { keys, key_len: work.shape.key_len, values }
    }

    fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys.chunks_exact(self.key_len).zip(self.values.iter().map(|value| &value[..]))
    }

    fn put_all(&self, contender: &mut Contender) -> usize {
        self.entries().for_each(|(key, value)| put(contender, key, value));
        self.values.len()
    }

    fn time(&self, contender: &mut Contender) -> Took {
        timed(|| self.put_all(contender))
    }
}

/// Deletes an entry and inserts a new one, and later the other way round. The store ends with the keys it began with.
fn replace(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let entry = |entry: u32| (work.key(entry), work.value(entry, 0));
    let there: Vec<_> = work.victims.iter().map(|&victim| entry(victim)).collect();
    let new: Vec<_> = (work.entries as u32..).take(there.len()).map(entry).collect();
    timed(|| {
        for (from, to) in [(&there, &new), (&new, &there)] {
            for ((old, _), (key, value)) in from.iter().zip(to) {
                contender.store.delete(old).expect("nothing can fail in memory");
                put(contender, key, value);
            }
        }
        2 * there.len()
    })
}

fn scan(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let took = timed(|| look_at(contender.store.prefix_scan(b"")));
    assert_eq!(took.operations, work.entries);
    took
}

fn visit(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let took = timed(|| {
        let mut seen = 0;
        contender.store.visit_range((Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
            black_box((key[0], next_of(value)));
            seen += 1;
            ControlFlow::Continue(())
        });
        seen
    });
    assert_eq!(took.operations, work.entries);
    took
}

fn prefix_scan(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    timed(|| work.prefixes.iter().map(|prefix| look_at(contender.store.prefix_scan(prefix))).sum())
}

fn prefix_visit(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    timed(|| {
        let mut seen = 0;
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
        seen
    })
}

fn snapshot(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    // A snapshot of what has not changed since the last one might be cheaper than the others.
    Updates::new(work, round, 200, 150 + round).put_all(contender);
    let mut snapshot = None;
    timed(|| {
        snapshot = Some(contender.store.freeze());
        1
    })
}

fn serialize(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    timed(|| {
        let snapshot = contender.store.freeze()();
        snapshot.write_to(io::sink()).expect("a sink takes everything");
        work.entries
    })
}

fn delta(work: &Workload, contender: &mut Contender, round: usize) -> Took {
    let changed = (work.entries / 100).clamp(1, work.lookups);
    let earlier = contender.store.snapshot();
    // One end of a chain is always known.
    earlier.fingerprint();
    Updates::new(work, round, changed, 250 + round).put_all(contender);
    let later = contender.store.snapshot();
    timed(|| {
        let delta = later.delta_since(&earlier);
        delta.write_to(io::sink()).expect("a sink takes everything");
        delta.len()
    })
}

fn restore(work: &Workload, contender: &mut Contender, _: usize) -> Took {
    let image = work.image.get_or_init(|| contender.store.snapshot().to_bytes());
    let mut store = (contender.kind.make)();
    let took = timed(|| {
        store.restore(StateSnapshot::from_bytes(image.clone()).expect("the image is as it was written"));
        work.entries
    });
    assert_eq!(store.len(), work.entries);
    took
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
