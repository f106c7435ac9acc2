//! [`programs`]: fixed programs, one for each edge of the contract.
//!
//! They run first, from simple to complex, so that a report names the simplest broken rule.

use std::ops::Bound;

use bytes::Bytes;

use super::check::KeyBound;
use super::literal::pattern;
use super::op::Op;
use super::walk::Walk;
use crate::limits::MAX_KEY_LEN;

/// Sorted keys, prefixes and ends of ranges. Some keys are prefixes of others.
const EDGES: [&[u8]; 10] = [b"", b"\0", b"\0\0", b"a", b"a\0", b"a\xFF", b"b", b"\x80", b"\xFF", b"\xFF\xFF"];

/// Lengths around the points where stores and `Bytes` change their layout.
const LENS: [usize; 18] = [0, 1, 7, 8, 15, 16, 17, 22, 23, 24, 31, 32, 64, 255, 256, 257, 1024, 5000];

/// Patterns of steps from both ends. Some take turns, some take several from one end first, and some take everything
/// from one end.
const TURNS: [u8; 8] =
    [0b1010_1010, 0b0101_0101, 0b1100_1100, 0b1111_0000, 0b0000_0111, 0b1000_0000, 0b0000_0000, 0b1111_1111];

pub(super) fn programs() -> Vec<Vec<Op>> {
    let mut programs = vec![points(), order(), values(), long_keys(), too_long_keys(), counts()];
    programs.extend([prefixes(), ranges(), entries(), visits(), batches()]);
    programs.extend([read(), get_or_insert(), take(), modify(), put_bytes(), flush()]);
    programs.extend(deleted_ranges());
    programs.extend([limits(), addresses()]);
    programs.extend(changes_under_handles());
    programs.extend(changes_under_snapshots());
    programs.extend([restores(), restored_twice(), damaged(), recovery(), readers()]);
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

fn walk_all(walk: Walk) -> Op {
    Op::Entries(Bound::Unbounded, Bound::Unbounded, walk)
}

/// Returns scans of all entries, by every walk.
fn walks() -> impl Iterator<Item = Op> {
    [Walk::Up, Walk::Down].into_iter().chain(TURNS.map(Walk::Turns)).map(walk_all)
}

/// Returns every kind of bound at every edge.
fn bounds() -> Vec<KeyBound> {
    let at_edges = EDGES.iter().flat_map(|key| [Bound::Included(bytes(key)), Bound::Excluded(bytes(key))]);
    at_edges.chain([Bound::Unbounded]).collect()
}

/// Returns every start with every end, including inverted and empty ranges.
fn pairs_of_bounds() -> impl Iterator<Item = (KeyBound, KeyBound)> {
    bounds().into_iter().flat_map(|start| bounds().into_iter().map(move |end| (start.clone(), end)))
}

/// Lengths of the values of [`EDGES`] in programs that start filled.
const FILLED_LENS: [usize; EDGES.len()] = [8, 16, 22, 24, 32, 255, 257, 5000, 0, 15];

/// Returns puts of every edge, the last first.
fn filled() -> Vec<Op> {
    let entries = EDGES.iter().zip(FILLED_LENS).enumerate().rev();
    entries.map(|(i, (key, len))| Op::Put(bytes(key), pattern(len, i as u8))).collect()
}

/// Returns puts, gets and deletes of every edge, including the empty key. Absent keys come first.
fn points() -> Vec<Op> {
    let mut program = Vec::new();
    for key in EDGES.map(bytes) {
        program.extend([
            Op::Get(key.clone()),
            Op::TryGet(key.clone()),
            Op::Contains(key.clone()),
            Op::Delete(key.clone()),
            Op::Put(key.clone(), bytes(b"1")),
            Op::TryGet(key.clone()),
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

/// Returns writes of every single byte as a key, in an order that is neither up nor down.
fn order() -> Vec<Op> {
    let keys = (0..=255u8).map(|i| i.wrapping_mul(167)).map(|byte| put(&[byte], &[byte]));
    let mut program: Vec<Op> = keys.collect();
    program.extend([Op::PrefixScan(Bytes::new()), Op::RangeScan(bytes(b"\x7E"), bytes(b"\x82"))]);
    program.extend(walks());
    let (start, end) = (Bound::Excluded(bytes(b"\x7E")), Bound::Included(bytes(b"\x82")));
    program.extend([Walk::Up, Walk::Down].map(|walk| Op::Entries(start.clone(), end.clone(), walk)));
    program.push(Op::Verify);
    // Delete from the start until nothing is left.
    for _ in 0..8 {
        program.extend([Op::DeleteWithin(Bound::Unbounded, Bound::Unbounded, 40), Op::Verify]);
    }
    program
}

/// Returns overwrites of values of every length by values of every length.
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

/// Returns calls with keys of every length up to the longest. They differ in the last byte only, or are prefixes of
/// others.
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

/// Returns calls with a key that is one byte too long. Writes must fail and change nothing, and reads must find
/// nothing.
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
            Op::TryGet(key.clone()),
            Op::Contains(key.clone()),
            Op::Read(key.clone()),
            Op::Modify(key.clone(), 1),
            Op::Delete(key.clone()),
            Op::Take(key.clone()),
            Op::GetMany(vec![bytes(b"a"), key.clone()]),
            Op::PrefixScan(key.clone()),
            Op::RangeScan(Bytes::new(), key.clone()),
            Op::RangeScan(key.clone(), bytes(b"a")),
            Op::Entries(Bound::Unbounded, Bound::Included(key.clone()), Walk::Up),
            Op::Entries(Bound::Unbounded, Bound::Excluded(key.clone()), Walk::Down),
            Op::Entries(Bound::Excluded(key.clone()), Bound::Unbounded, Walk::Up),
            Op::Entries(Bound::Included(key.clone()), Bound::Unbounded, Walk::Down),
            Op::VisitRange(Bound::Unbounded, Bound::Included(key.clone()), usize::from(u16::MAX)),
            Op::TryVisitRange(Bound::Excluded(key.clone()), Bound::Unbounded, usize::from(u16::MAX)),
            Op::DeleteWithin(Bound::Included(key.clone()), Bound::Excluded(pattern_of(0xFF, len + 1)), usize::MAX),
            Op::DeleteWithin(Bound::Excluded(key.clone()), Bound::Unbounded, 1),
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
    // Put the neighbours of the keys that the prefixes match.
    program.extend([put(b"ab", b"1"), put(b"`\xFF", b"2"), put(b"\xFE\xFF\xFF", b"3"), put(b"\x7F\xFF", b"4")]);
    scans(&mut program);
    program
}

/// Returns range scans of every start with every end, including inverted and empty ranges.
fn ranges() -> Vec<Op> {
    let scans = || EDGES.iter().flat_map(|from| EDGES.map(|to| Op::RangeScan(bytes(from), bytes(to))));
    let mut program: Vec<Op> = scans().collect();
    program.extend(filled());
    program.extend(scans());
    // Scan between ends that are not keys.
    program.extend([Op::RangeScan(bytes(b"A"), bytes(b"z")), Op::RangeScan(bytes(b"z"), bytes(b"A"))]);
    program
}

/// Returns scans of all bounds, from both ends.
fn entries() -> Vec<Op> {
    let scans = || {
        let pairs = pairs_of_bounds().zip(TURNS.into_iter().cycle());
        pairs.flat_map(|((start, end), turns)| {
            [Walk::Up, Walk::Down, Walk::Turns(turns)].map(|walk| Op::Entries(start.clone(), end.clone(), walk))
        })
    };
    let mut program: Vec<Op> = walks().collect();
    // Scan few entries, so that the ends meet at once.
    for key in ["b", "c", "a"] {
        program.push(put(key.as_bytes(), b"1"));
        program.extend(walks());
    }
    program.push(Op::Clear);
    program.extend(filled());
    program.extend(scans());
    program.push(Op::DropHandles);
    // Use bounds that equal no key.
    program.extend(["a", "\0"].map(|key| Op::Delete(bytes(key.as_bytes()))));
    program.extend(scans());
    program
}

/// Returns visits of all bounds, some to the end and some that stop after any number of entries.
fn visits() -> Vec<Op> {
    let visits = [Op::VisitRange, Op::TryVisitRange];
    let all = || {
        visits
            .into_iter()
            .flat_map(|visit| pairs_of_bounds().map(move |(start, end)| visit(start, end, usize::from(u16::MAX))))
    };
    let mut program: Vec<Op> = visits.map(|visit| visit(Bound::Unbounded, Bound::Unbounded, 1)).into();
    program.extend(filled());
    program.extend(all());
    for stop in 1..=EDGES.len() + 1 {
        for visit in visits {
            program.push(visit(Bound::Unbounded, Bound::Unbounded, stop));
            program.push(visit(Bound::Excluded(Bytes::new()), Bound::Included(bytes(b"\xFF")), stop));
        }
    }
    // Use bounds that equal no key.
    program.extend(["a", "\0"].map(|key| Op::Delete(bytes(key.as_bytes()))));
    program.extend(all());
    program
}

fn batches() -> Vec<Op> {
    let all: Vec<Bytes> = EDGES.map(bytes).into();
    let mut program = vec![Op::GetMany(vec![]), Op::GetMany(all.clone()), Op::PutMany(vec![])];
    program.extend(filled());
    program.extend([Op::GetMany(vec![]), Op::GetMany(vec![Bytes::new()]), Op::GetMany(all.clone())]);
    program.push(Op::GetMany(all.iter().rev().cloned().collect()));
    // Look up duplicates and absent keys, in batches of every length around the depths that a pipeline may have.
    let absent = [bytes(b"absent"), bytes(b"a"), bytes(b"a"), bytes(b"\xFF\xFF\xFF")];
    let endless = || all.iter().chain(&absent).cycle().cloned();
    program.extend(
        [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100].map(|len| Op::GetMany(endless().take(len).collect())),
    );
    // Put new keys, existing keys and duplicates in a batch, with and without a snapshot.
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

/// Returns calls that take values. A taken value is gone from the store and stays unchanged for its holder.
fn take() -> Vec<Op> {
    let mut program = vec![Op::Take(Bytes::new()), Op::Take(bytes(b"a"))];
    for (i, len) in LENS.into_iter().enumerate() {
        let key = bytes(EDGES[i % EDGES.len()]);
        program.extend([Op::Put(key.clone(), pattern(len, 1)), Op::Take(key.clone()), Op::Take(key.clone())]);
        program.extend([Op::Contains(key.clone()), Op::Put(key.clone(), pattern(len, 2)), Op::Snapshot(1)]);
        program.extend([Op::Take(key.clone()), Op::Put(key, pattern(len, 3)), Op::Verify]);
    }
    program.extend(EDGES.map(|key| Op::Take(bytes(key))));
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

/// Returns puts of handles. The caller keeps a handle, so the store must not change its bytes.
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

/// Returns one program for every start, with every end, with and without a limit. Each deletion starts with all
/// entries.
fn deleted_ranges() -> impl Iterator<Item = Vec<Op>> {
    // Include limits above the number of entries. The number of limits is coprime to the number of bounds.
    let limits = 0..EDGES.len() + 3;
    let mut limits = limits.cycle();
    bounds().into_iter().map(move |start| {
        let mut program = Vec::new();
        for end in bounds() {
            for limit in [usize::MAX, limits.next().unwrap_or_default()] {
                program.extend(filled());
                program.push(Op::DeleteWithin(start.clone(), end.clone(), limit));
            }
        }
        program
    })
}

/// Returns deletions within some bounds with every limit, once and until nothing is left.
fn limits() -> Vec<Op> {
    let all = (Bound::Unbounded, Bound::Unbounded);
    let some = (Bound::Excluded(bytes(b"\0")), Bound::Included(bytes(b"\x80")));
    let mut program = vec![Op::DeleteWithin(all.0.clone(), all.1.clone(), 0)];
    for (start, end) in [all, some] {
        for limit in 0..=EDGES.len() + 1 {
            program.extend(filled());
            program.push(Op::DeleteWithin(start.clone(), end.clone(), limit));
        }
        for limit in 1..4 {
            program.extend(filled());
            let times = EDGES.len() / limit + 2;
            program.extend((0..times).map(|_| Op::DeleteWithin(start.clone(), end.clone(), limit)));
        }
    }
    program.push(Op::Verify);
    program
}

/// Returns calls that pass values and keys of many lengths in and out in every way. A store that packs values will hand
/// out some at every address.
fn addresses() -> Vec<Op> {
    let lens: Vec<usize> = (1..=40).chain([63, 64, 65, 255, 256, 257, 1000, 1024, 5000, 70_000]).collect();
    let keys: Vec<Bytes> = (0..lens.len()).map(|i| [&b"kkkkkk"[..i % 7], &[i as u8]].concat().into()).collect();
    let values = |first| keys.iter().cloned().zip(lens.iter().map(move |&len| pattern(len, first)));
    let entries: Vec<_> = values(1).collect();
    let read = |program: &mut Vec<Op>| {
        for key in &keys {
            program.extend([Op::Get(key.clone()), Op::TryGet(key.clone())]);
        }
        program.push(Op::GetMany(keys.clone()));
        program.extend([Op::PrefixScan(Bytes::new()), Op::RangeScan(Bytes::new(), bytes(b"\xFF"))]);
        program.extend([Walk::Up, Walk::Down, Walk::Turns(TURNS[0])].map(walk_all));
        program.extend([Op::Snapshot(1), Op::Verify, Op::DropHandles]);
    };
    let mut program = Vec::new();
    let fillings: [Vec<Op>; 8] = [
        values(2).map(|(key, value)| Op::Put(key, value)).collect(),
        values(3).map(|(key, value)| Op::PutBytes(key, value)).collect(),
        keys.iter().map(|key| Op::Modify(key.clone(), 1)).collect(),
        vec![Op::PutMany(values(4).collect())],
        vec![Op::RestoreImage(1)],
        vec![Op::RestoreUnverified(1)],
        vec![Op::Clear, Op::RestoreEntries(entries)],
        values(5).flat_map(|(key, value)| [Op::Take(key.clone()), Op::GetOrInsert(key, value)]).collect(),
    ];
    for filling in fillings {
        program.extend(filling);
        read(&mut program);
    }
    program.extend(keys.iter().cloned().map(Op::Take));
    program
}

/// Returns every kind of change to a store with entries. Changes may use snapshot 9.
fn changes() -> Vec<Vec<Op>> {
    let (a, b) = (bytes(b"a"), bytes(b"b"));
    let mut changes = vec![
        vec![Op::Clear],
        vec![Op::DeleteWithin(Bound::Unbounded, Bound::Excluded(bytes(b"\xFF")), usize::MAX)],
        vec![Op::DeleteWithin(Bound::Excluded(Bytes::new()), Bound::Unbounded, 3)],
        vec![Op::RestoreEntries(vec![])],
        vec![Op::RestoreEntries(vec![(a.clone(), b.clone()), (bytes(b"c"), Bytes::new())])],
        vec![Op::RestoreDamaged(vec![(a.clone(), b.clone()), (bytes(b"c"), Bytes::new())])],
        vec![Op::Restore(9), Op::Modify(a.clone(), 1)],
        vec![Op::TryRestore(9), Op::Modify(a.clone(), 1)],
        vec![Op::RestoreLast(9), Op::Modify(a.clone(), 1), put(b"a", b"new")],
        vec![Op::RestoreImage(9), Op::Modify(b.clone(), 1), Op::Delete(a.clone())],
        vec![Op::RestoreUnverified(9), Op::Modify(b.clone(), 1), Op::Delete(a.clone())],
        vec![Op::Recover(9), Op::Modify(b, 1), Op::Delete(a)],
    ];
    for key in EDGES.map(bytes) {
        changes.extend([
            vec![Op::Modify(key.clone(), 1)],
            vec![Op::Delete(key.clone())],
            vec![Op::Delete(key.clone()), Op::Put(key.clone(), pattern(9, 7))],
            vec![Op::Take(key.clone())],
        ]);
        // One of these lengths equals that of the old value.
        changes.extend(FILLED_LENS.map(|len| vec![Op::Put(key.clone(), pattern(len, 99))]));
    }
    changes
}

/// Returns each change while handles of all kinds are held, but no snapshots.
fn changes_under_handles() -> impl Iterator<Item = Vec<Op>> {
    changes().into_iter().map(|change| {
        let mut program = vec![put(b"a", b"9"), put(b"b", b"99"), Op::Snapshot(9)];
        program.extend(filled());
        program.push(Op::DropHandles);
        program.extend(EDGES.map(get));
        program.extend([Op::PrefixScan(Bytes::new()), Op::RangeScan(bytes(b"\0"), bytes(b"\xFF"))]);
        program.push(Op::GetMany(EDGES.map(bytes).into()));
        program.extend([Walk::Up, Walk::Down].map(walk_all));
        program.extend(change);
        program.push(Op::Verify);
        program
    })
}

/// Returns each change while snapshots are held, but no handles.
fn changes_under_snapshots() -> impl Iterator<Item = Vec<Op>> {
    changes().into_iter().map(|change| {
        let mut program = vec![put(b"a", b"9"), put(b"b", b"99"), Op::Snapshot(9)];
        program.extend(filled());
        program.push(Op::Snapshot(1));
        program.extend(change.clone());
        program.extend([Op::Verify, Op::Snapshot(2)]);
        program.extend(filled());
        // Repeat with the older snapshot dropped, so that some parts of the store are shared and some are not.
        program.extend([Op::DropSnapshot(1), Op::Snapshot(3)]);
        program.extend(change);
        program.push(Op::Verify);
        program
    })
}

/// Returns restores of every origin into stores with other entries, then writes that no snapshot may see.
fn restores() -> Vec<Op> {
    let mut program = vec![Op::Snapshot(1), put(b"a", b"1"), put(b"c", b"3"), Op::Snapshot(2)];
    let sources = [
        Op::Restore(1),
        Op::Restore(2),
        Op::TryRestore(1),
        Op::TryRestore(2),
        Op::RestoreImage(1),
        Op::RestoreImage(2),
        Op::RestoreUnverified(1),
        Op::RestoreUnverified(2),
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

/// Returns restores of images whose last segment is damaged, so that a store may have read others first.
fn damaged() -> Vec<Op> {
    let of = |count: u8, len| (0..count).map(|i| (bytes(&[i]), pattern(len, i))).collect();
    // Images of one segment, of segments with several entries, and of one segment per entry.
    let images: [Vec<(Bytes, Bytes)>; 4] = [of(1, 0), of(3, 8), of(10, 20_000), of(3, 70_000)];
    let mut program = Vec::new();
    for filling in [vec![], filled()] {
        program.extend(filling);
        for image in &images {
            program.extend([Op::RestoreDamaged(image.clone()), put(b"a", b"1"), Op::Snapshot(1), Op::Verify]);
            program.extend([Op::RestoreDamaged(image.clone()), Op::Delete(bytes(b"a")), Op::Verify]);
        }
    }
    program
}

/// Returns a program in which a new store takes over from a snapshot and the old store is dropped.
fn recovery() -> Vec<Op> {
    let mut program = filled();
    program.extend([Op::Snapshot(1), Op::PrefixScan(Bytes::new()), put(b"late", b"1")]);
    program.extend([Op::Recover(1), put(b"late", b"2"), Op::Snapshot(2), Op::Recover(2), Op::Recover(1), Op::Verify]);
    program
}

/// Returns a program in which threads read snapshots while the writer changes, replaces and drops the store.
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
