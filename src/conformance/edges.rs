//! [`programs`]: fixed programs, one for each edge of the contract.
//!
//! They run first, and from the simple to the composed, so that a report names the plainest rule that is broken.

use std::ops::Bound;

use bytes::Bytes;

use super::literal::pattern;
use super::op::{KeyBound, Op};
use crate::MAX_KEY_LEN;

/// What keys, prefixes and ends of ranges are made of: in order, with keys that begin one another.
const EDGES: [&[u8]; 10] = [b"", b"\0", b"\0\0", b"a", b"a\0", b"a\xFF", b"b", b"\x80", b"\xFF", b"\xFF\xFF"];

/// Lengths around those where stores and `Bytes` change their layout.
const LENS: [usize; 18] = [0, 1, 7, 8, 15, 16, 17, 22, 23, 24, 31, 32, 64, 255, 256, 257, 1024, 5000];

pub(super) fn programs() -> Vec<Vec<Op>> {
    let mut programs = vec![points(), order(), values(), long_keys(), too_long_keys(), counts()];
    programs.extend([prefixes(), ranges(), bounds(), batches()]);
    programs.extend([read(), get_or_insert(), modify(), put_bytes(), flush()]);
    programs.extend(removed_ranges());
    programs.extend(changes_under_handles());
    programs.extend(changes_under_snapshots());
    programs.extend([restores(), restored_twice(), recovery(), readers()]);
    programs
}

fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn put(key: &[u8], value: &[u8]) -> Op {
    Op::Put(bytes(key), bytes(value))
}

fn get(key: &[u8]) -> Op {
    Op::Get(bytes(key))
}

/// The lengths of the values of [`EDGES`] where a program starts filled.
const FILLED_LENS: [usize; EDGES.len()] = [8, 16, 22, 24, 32, 255, 257, 5000, 0, 15];

/// Puts every edge, the last first.
fn filled() -> Vec<Op> {
    let entries = EDGES.iter().zip(FILLED_LENS).enumerate().rev();
    entries.map(|(i, (key, len))| Op::Put(bytes(key), pattern(len, i as u8))).collect()
}

/// Puts, gets and deletes of every edge, the empty key among them; absent keys first.
fn points() -> Vec<Op> {
    let mut program = Vec::new();
    for key in EDGES.map(bytes) {
        program.extend([
            Op::Get(key.clone()),
            Op::Contains(key.clone()),
            Op::Delete(key.clone()),
            Op::Put(key.clone(), bytes(b"1")),
            Op::Contains(key.clone()),
            Op::Put(key.clone(), Bytes::new()),
            Op::Get(key.clone()),
            Op::Contains(key),
        ]);
    }
    program.push(Op::Verify);
    for key in EDGES.map(bytes) {
        program.extend([Op::Delete(key.clone()), Op::Contains(key.clone()), Op::Delete(key)]);
    }
    program.extend([Op::Verify, Op::Clear]);
    program.extend(filled());
    program.extend([Op::Clear, get(b""), put(b"a", b"again"), Op::Verify]);
    program
}

/// Every single byte is a key, written in an order that is neither up nor down.
fn order() -> Vec<Op> {
    let keys = (0..=255u8).map(|i| i.wrapping_mul(167)).map(|byte| put(&[byte], &[byte]));
    keys.chain([Op::PrefixScan(Bytes::new()), Op::RangeScan(bytes(b"\x7E"), bytes(b"\x82")), Op::Verify]).collect()
}

/// Every length of a value is overwritten by every other, and by itself.
fn values() -> Vec<Op> {
    let mut program = Vec::new();
    for (i, len) in LENS.into_iter().chain([MAX_KEY_LEN, MAX_KEY_LEN + 1, 1 << 18]).enumerate() {
        let key = bytes(&[i as u8]);
        let (first, second) = (pattern(len, 1), pattern(len, 2));
        program.extend([Op::Put(key.clone(), first), Op::Get(key.clone()), Op::Put(key.clone(), second.clone())]);
        for other in LENS {
            program.extend([Op::Put(key.clone(), pattern(other, 3)), Op::Get(key.clone())]);
            program.push(Op::Put(key.clone(), second.clone()));
        }
        program.extend([Op::Get(key), Op::DropHandles]);
    }
    program.push(Op::Verify);
    program
}

/// Keys of every length, the longest included, that differ in the last byte only or begin one another.
fn long_keys() -> Vec<Op> {
    let mut program = Vec::new();
    let lens = [1, 7, 8, 9, 14, 15, 16, 17, 22, 23, 24, 255, 256, 257, 300, MAX_KEY_LEN - 1, MAX_KEY_LEN];
    let keys: Vec<Bytes> = lens
        .into_iter()
        .flat_map(|len| {
            [0x00, b'k', 0xFF].map(|last| {
                let mut key = vec![b'k'; len];
                key[len - 1] = last;
                key.into()
            })
        })
        .collect();
    for (i, key) in keys.iter().enumerate() {
        program.extend([Op::Put(key.clone(), bytes(&[i as u8])), Op::Get(key.clone())]);
    }
    program.extend([Op::Verify, Op::PrefixScan(pattern_of(b'k', 16)), Op::PrefixScan(pattern_of(b'k', MAX_KEY_LEN))]);
    program.push(Op::RangeScan(pattern_of(b'k', 15), pattern_of(b'k', 257)));
    program.push(Op::Snapshot(1));
    program.extend(keys.iter().step_by(2).map(|key| Op::Delete(key.clone())));
    program.extend([Op::Verify, Op::RestoreImage(1)]);
    program
}

fn pattern_of(byte: u8, len: usize) -> Bytes {
    vec![byte; len].into()
}

/// A key one byte too long: writes fail and change nothing, reads find nothing.
fn too_long_keys() -> Vec<Op> {
    let mut program = vec![put(&vec![0xFF; MAX_KEY_LEN], b"longest"), put(b"a", b"1")];
    for len in [MAX_KEY_LEN + 1, MAX_KEY_LEN + 2, 2 * MAX_KEY_LEN + 2] {
        let key = pattern_of(0xFF, len);
        program.extend([
            Op::Put(key.clone(), bytes(b"2")),
            Op::PutBytes(key.clone(), bytes(b"2")),
            Op::PutMany(vec![(bytes(b"a"), bytes(b"2")), (key.clone(), bytes(b"2")), (bytes(b"b"), bytes(b"2"))]),
            Op::GetOrInsert(key.clone(), bytes(b"2")),
            Op::Get(key.clone()),
            Op::Contains(key.clone()),
            Op::Read(key.clone()),
            Op::Modify(key.clone(), 1),
            Op::Delete(key.clone()),
            Op::GetMany(vec![bytes(b"a"), key.clone()]),
            Op::PrefixScan(key.clone()),
            Op::RangeScan(Bytes::new(), key.clone()),
            Op::RangeScan(key.clone(), bytes(b"a")),
            Op::Scan(Bound::Unbounded, Bound::Included(key.clone())),
            Op::Scan(Bound::Excluded(key.clone()), Bound::Unbounded),
            Op::DeleteRange(key.clone(), pattern_of(0xFF, len + 1)),
            Op::Verify,
        ]);
    }
    program
}

fn counts() -> Vec<Op> {
    let mut program = vec![put(b"a", b"12345"), put(b"a", b"1"), put(b"a", b""), put(b"a", b"123"), put(b"a", b"321")];
    program.extend([Op::Delete(bytes(b"absent")), Op::Delete(bytes(b"a")), Op::Delete(bytes(b"a"))]);
    program.extend([put(b"", b""), Op::Snapshot(1), put(b"", b"1"), Op::Delete(Bytes::new()), put(b"b", b"12")]);
    program.extend([Op::Restore(1), Op::Clear, Op::Clear, Op::Restore(1), Op::Delete(Bytes::new())]);
    program.extend(filled());
    program.extend(filled().into_iter().step_by(2));
    program.extend([Op::Verify, Op::Clear, Op::Verify]);
    program
}

fn prefixes() -> Vec<Op> {
    let scans = |program: &mut Vec<Op>| {
        program.extend(EDGES.map(bytes).map(Op::PrefixScan));
        let more: [&[u8]; 6] = [b"ab", b"\xFE", b"\xFF\xFF\xFF", b"\xFE\xFF", b"a\xFF\xFF", b"\x7F\xFF"];
        program.extend(more.map(bytes).map(Op::PrefixScan));
    };
    let mut program = Vec::new();
    scans(&mut program);
    program.extend(filled());
    // The neighbours of what the prefixes match.
    program.extend([put(b"ab", b"1"), put(b"`\xFF", b"2"), put(b"\xFE\xFF\xFF", b"3"), put(b"\x7F\xFF", b"4")]);
    scans(&mut program);
    program
}

/// Every start with every end, inverted and empty ranges among them.
fn ranges() -> Vec<Op> {
    let scans = || EDGES.iter().flat_map(|from| EDGES.map(|to| Op::RangeScan(bytes(from), bytes(to))));
    let mut program: Vec<Op> = scans().collect();
    program.extend(filled());
    program.extend(scans());
    // Ends that are no keys.
    program.extend([Op::RangeScan(bytes(b"A"), bytes(b"z")), Op::RangeScan(bytes(b"z"), bytes(b"A"))]);
    program
}

/// Every kind of bound at every edge, on both sides.
fn bounds() -> Vec<Op> {
    let kinds =
        |key: &[u8]| -> [KeyBound; 3] { [Bound::Included(bytes(key)), Bound::Excluded(bytes(key)), Bound::Unbounded] };
    let visits = || {
        let pairs = EDGES.iter().flat_map(|from| EDGES.map(|to| (kinds(from), kinds(to))));
        pairs.flat_map(|(from, to)| {
            let both = from.into_iter().flat_map(move |from| to.clone().map(|to| (from.clone(), to)));
            both.flat_map(|(from, to)| {
                [Op::VisitRange(from.clone(), to.clone(), usize::from(u16::MAX)), Op::Scan(from, to)]
            })
        })
    };
    let mut program = vec![Op::VisitRange(Bound::Unbounded, Bound::Unbounded, 1)];
    program.extend(filled());
    program.extend(visits());
    for stop in 1..=EDGES.len() + 1 {
        program.push(Op::VisitRange(Bound::Unbounded, Bound::Unbounded, stop));
        program.push(Op::VisitRange(Bound::Excluded(Bytes::new()), Bound::Included(bytes(b"\xFF")), stop));
    }
    program.push(Op::DropHandles);
    // Bounds that no key equals.
    program.extend(["a", "\0"].map(|key| Op::Delete(bytes(key.as_bytes()))));
    program.extend(visits());
    program
}

fn batches() -> Vec<Op> {
    let all: Vec<Bytes> = EDGES.map(bytes).into();
    let mut program = vec![Op::GetMany(vec![]), Op::GetMany(all.clone()), Op::PutMany(vec![])];
    program.extend(filled());
    program.extend([Op::GetMany(vec![]), Op::GetMany(vec![Bytes::new()]), Op::GetMany(all.clone())]);
    program.push(Op::GetMany(all.iter().rev().cloned().collect()));
    // Duplicates and absent keys, in batches of every length around those that a pipeline may have.
    let absent = [bytes(b"absent"), bytes(b"a"), bytes(b"a"), bytes(b"\xFF\xFF\xFF")];
    let endless = || all.iter().chain(&absent).cycle().cloned();
    program.extend(
        [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100].map(|len| Op::GetMany(endless().take(len).collect())),
    );
    // Keys that are new, that are there, and that come twice in a batch; under a snapshot and without.
    for len in [1, 2, 7, 15, 16, 17, 33, 100] {
        let batch = endless().take(len).enumerate().map(|(i, key)| (key, pattern(i % 19, len as u8)));
        program.extend([Op::PutMany(batch.collect()), Op::Snapshot(len), Op::Verify]);
    }
    program
}

fn read() -> Vec<Op> {
    let mut program = vec![Op::Read(Bytes::new()), Op::Read(bytes(b"a"))];
    program.extend(filled());
    program.extend(EDGES.map(bytes).map(Op::Read));
    program.extend([Op::Read(bytes(b"absent")), Op::Delete(bytes(b"a")), Op::Read(bytes(b"a"))]);
    program
}

fn get_or_insert() -> Vec<Op> {
    let mut program = Vec::new();
    for (key, len) in EDGES.map(bytes).into_iter().zip(LENS) {
        let long = pattern(len + 1, 2);
        program.extend([Op::GetOrInsert(key.clone(), pattern(len, 1)), Op::GetOrInsert(key.clone(), long.clone())]);
        program.extend([Op::Delete(key.clone()), Op::GetOrInsert(key.clone(), long), Op::Modify(key, 1)]);
    }
    program.push(Op::Verify);
    program
}

fn modify() -> Vec<Op> {
    let mut program = vec![Op::Modify(bytes(b"a"), 1), Op::Modify(Bytes::new(), 1)];
    for (i, len) in LENS.into_iter().enumerate() {
        let key = bytes(EDGES[i % EDGES.len()]);
        program.extend([
            Op::Put(key.clone(), pattern(len, 1)),
            Op::Modify(key.clone(), 1),
            Op::Modify(key.clone(), 255),
        ]);
        program.extend([Op::Get(key.clone()), Op::Delete(key.clone()), Op::Modify(key.clone(), 1)]);
        program.extend([Op::Put(key.clone(), pattern(len, 9)), Op::Modify(key, 1)]);
    }
    program.push(Op::Verify);
    program
}

/// The handle that was given stays with the caller, so the store must not change it.
fn put_bytes() -> Vec<Op> {
    let mut program = Vec::new();
    for (i, len) in LENS.into_iter().enumerate() {
        let key = bytes(EDGES[i % EDGES.len()]);
        program.extend([Op::PutBytes(key.clone(), pattern(len, 1)), Op::Get(key.clone()), Op::Modify(key.clone(), 1)]);
        program.extend([Op::PutBytes(key.clone(), pattern(len, 2)), Op::Put(key.clone(), pattern(len, 3))]);
        program.extend([Op::PutBytes(key.clone(), pattern(len + 1, 4)), Op::DropHandles, Op::Modify(key, 5)]);
    }
    program.push(Op::Verify);
    program
}

fn flush() -> Vec<Op> {
    let mut program = vec![Op::Flush];
    program.extend(filled());
    program.extend([Op::Flush, Op::Verify]);
    program
}

/// A program for every start and end, because each needs all entries to be there.
fn removed_ranges() -> impl Iterator<Item = Vec<Op>> {
    EDGES.into_iter().map(|from| {
        let mut program = Vec::new();
        for to in EDGES {
            program.extend(filled());
            program.push(Op::DeleteRange(bytes(from), bytes(to)));
        }
        program
    })
}

/// Everything that changes a store with some entries in it, snapshot 9 among what it may use.
fn changes() -> Vec<Vec<Op>> {
    let (a, b) = (bytes(b"a"), bytes(b"b"));
    let mut changes = vec![
        vec![Op::Clear],
        vec![Op::DeleteRange(Bytes::new(), bytes(b"\xFF"))],
        vec![Op::RestoreEntries(vec![])],
        vec![Op::RestoreEntries(vec![(a.clone(), b.clone()), (bytes(b"c"), Bytes::new())])],
        vec![Op::Restore(9), Op::Modify(a.clone(), 1)],
        vec![Op::RestoreLast(9), Op::Modify(a.clone(), 1), put(b"a", b"new")],
        vec![Op::RestoreImage(9), Op::Modify(b.clone(), 1), Op::Delete(a.clone())],
        vec![Op::Recover(9), Op::Modify(b, 1), Op::Delete(a)],
    ];
    for key in EDGES.map(bytes) {
        changes.extend([
            vec![Op::Modify(key.clone(), 1)],
            vec![Op::Delete(key.clone())],
            vec![Op::Delete(key.clone()), Op::Put(key.clone(), pattern(9, 7))],
        ]);
        // Among these lengths is that of the old value, whichever that is.
        changes.extend(FILLED_LENS.map(|len| vec![Op::Put(key.clone(), pattern(len, 99))]));
    }
    changes
}

/// Each change while handles of all kinds are held, and nothing else is.
fn changes_under_handles() -> impl Iterator<Item = Vec<Op>> {
    changes().into_iter().map(|change| {
        let mut program = vec![put(b"a", b"9"), put(b"b", b"99"), Op::Snapshot(9)];
        program.extend(filled());
        program.push(Op::DropHandles);
        program.extend(EDGES.map(get));
        program.extend([Op::PrefixScan(Bytes::new()), Op::RangeScan(bytes(b"\0"), bytes(b"\xFF"))]);
        program.push(Op::GetMany(EDGES.map(bytes).into()));
        program.extend(change);
        program.push(Op::Verify);
        program
    })
}

/// Each change while snapshots are held, and no handle is.
fn changes_under_snapshots() -> impl Iterator<Item = Vec<Op>> {
    changes().into_iter().map(|change| {
        let mut program = vec![put(b"a", b"9"), put(b"b", b"99"), Op::Snapshot(9)];
        program.extend(filled());
        program.push(Op::Snapshot(1));
        program.extend(change.clone());
        program.extend([Op::Verify, Op::Snapshot(2)]);
        program.extend(filled());
        // Once more with the older snapshot gone, so that some of the store is shared and some is not.
        program.extend([Op::DropSnapshot(1), Op::Snapshot(3)]);
        program.extend(change);
        program.push(Op::Verify);
        program
    })
}

/// Restores of every origin into stores that hold other entries, then writes that no snapshot may see.
fn restores() -> Vec<Op> {
    let mut program = vec![Op::Snapshot(1), put(b"a", b"1"), put(b"c", b"3"), Op::Snapshot(2)];
    let sources = [
        Op::Restore(1),
        Op::Restore(2),
        Op::RestoreImage(1),
        Op::RestoreImage(2),
        Op::RestoreEntries(vec![]),
        Op::RestoreEntries(vec![(bytes(b"c"), bytes(b"4")), (bytes(b"a"), bytes(b"1"))]),
        Op::Recover(1),
        Op::Recover(2),
    ];
    for source in sources {
        program.extend([put(b"", b"0"), put(b"a", b"other"), put(b"b", b"2"), put(b"\xFF", b"5"), source]);
        program.extend([Op::Verify, Op::Modify(bytes(b"a"), 1), put(b"c", b"33"), put(b"d", b"4"), Op::Verify]);
    }
    program.extend([Op::RestoreLast(2), Op::Modify(bytes(b"a"), 1), Op::RestoreLast(1), put(b"a", b"1"), Op::Verify]);
    program
}

fn restored_twice() -> Vec<Op> {
    let mut program = filled();
    program.push(Op::Snapshot(1));
    for _ in 0..2 {
        program.extend([Op::Restore(1), Op::Verify]);
        program.extend(EDGES.map(|key| Op::Modify(bytes(key), 1)));
        program.extend([Op::Snapshot(2), Op::Restore(1), Op::Restore(2), Op::Verify, Op::Clear]);
    }
    program
}

/// A new store takes over from a snapshot, and the old one ends.
fn recovery() -> Vec<Op> {
    let mut program = filled();
    program.extend([Op::Snapshot(1), Op::PrefixScan(Bytes::new()), put(b"late", b"1")]);
    program.extend([Op::Recover(1), put(b"late", b"2"), Op::Snapshot(2), Op::Recover(2), Op::Recover(1), Op::Verify]);
    program
}

/// Threads read snapshots while the writer changes, replaces and ends the store.
fn readers() -> Vec<Op> {
    let mut program = filled();
    program.extend([Op::Snapshot(1), Op::ReadOnThread(1), Op::ReadOnThread(1)]);
    for round in 0..20 {
        program.extend(EDGES.map(|key| Op::Modify(bytes(key), round)));
        program.extend(filled().into_iter().step_by(3));
        program.push(Op::Delete(bytes(EDGES[usize::from(round) % EDGES.len()])));
    }
    program.extend([Op::Snapshot(2), Op::ReadOnThread(2), Op::DropSnapshot(1), Op::Clear]);
    program.extend(filled());
    program.extend([Op::Snapshot(3), Op::ReadOnThread(3), Op::DropSnapshot(3)]);
    program.extend(filled());
    program
}
