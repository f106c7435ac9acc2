//! Alignment of values: every nonempty value is handed out at a multiple of 16. That holds for every way to read it,
//! and however badly its source was aligned.

use std::fs;
use std::io::Cursor;

use bytes::Bytes;
use opstate::{
    Difference, GroupedImage, HotStore, ImageInfo, ImageOptions, InMemoryStore, KeyGroups, StateDelta, StateSnapshot,
    StateStore, StateStoreExt, UnverifiedImage, VALUE_ALIGNMENT,
};
use rkyv::rancor::BoxedError;

use crate::support::allocator::misaligned;
use crate::support::layout::{Canonical, Version, is_aligned};

type Entries = Vec<(Bytes, Bytes)>;

/// Returns values of every size that a store treats differently, under keys of all lengths between them.
fn entries_of(byte: u8) -> Entries {
    let sizes = (0..=40).chain(511..=514).chain([(64 << 10) - 1, 64 << 10, (64 << 10) + 1]);
    let key = |len: usize| format!("{len:06}{}", "x".repeat(len % 7));
    sizes.map(|len| (key(len).into(), vec![byte ^ len as u8; len].into())).collect()
}

fn entries() -> Entries {
    entries_of(1)
}

/// Returns a handle to the same bytes, at `shift` bytes after a multiple of 16.
fn shifted(bytes: &[u8], shift: usize) -> Bytes {
    let mut buffer = vec![0; bytes.len() + 32];
    let start = buffer.as_ptr().addr().next_multiple_of(16) - buffer.as_ptr().addr() + shift;
    buffer[start..start + bytes.len()].copy_from_slice(bytes);
    Bytes::from(buffer).slice(start..start + bytes.len())
}

/// Checks that the entries are the expected ones and their values are aligned.
#[track_caller]
fn check(found: impl IntoIterator<Item = (Bytes, Bytes)>, expected: &[(Bytes, Bytes)]) {
    let mut expected = expected.iter();
    for (key, value) in found {
        // Leave the long values out of the message.
        let next = expected.next();
        assert_eq!(Some(&key), next.map(|(key, _)| key));
        assert!(next.is_some_and(|(_, expected)| value == expected), "another value of {key:?}");
        assert!(is_aligned(&value), "{} bytes at {:p}, of {key:?}", value.len(), value.as_ptr());
    }
    assert_eq!(expected.next().map(|(key, _)| key), None);
}

/// Checks a scan of all entries in both directions, and from both ends in turn.
#[track_caller]
fn check_both_ends<I: DoubleEndedIterator<Item = (Bytes, Bytes)>>(scan: impl Fn() -> I, expected: &[(Bytes, Bytes)]) {
    check(scan(), expected);
    let reversed: Entries = expected.iter().rev().cloned().collect();
    check(scan().rev(), &reversed);
    for first_back in [0, 1, 20, 47] {
        let (mut scan, mut front, mut back) = (scan(), vec![], vec![]);
        back.extend(scan.by_ref().rev().take(first_back));
        loop {
            let (next, next_back) = (scan.next(), scan.next_back());
            if next.is_none() && next_back.is_none() {
                break;
            }
            front.extend(next);
            back.extend(next_back);
        }
        back.reverse();
        front.extend(back);
        check(front, expected);
    }
}

fn unwrapped<E: std::fmt::Debug>(entry: Result<(Bytes, Bytes), E>) -> (Bytes, Bytes) {
    entry.unwrap()
}

fn check_snapshot(snapshot: &StateSnapshot, expected: &[(Bytes, Bytes)]) {
    let (middle, keys) = (&expected[expected.len() / 2].0, || expected.iter().map(|(key, _)| key.clone()));
    check(keys().map(|key| (key.clone(), snapshot.get(&key).unwrap())), expected);
    check(keys().map(|key| (key.clone(), snapshot.try_get(&key).unwrap().unwrap())), expected);
    check_both_ends(|| snapshot.iter(), expected);
    check_both_ends(|| snapshot.try_scan(..).map(unwrapped), expected);
    check_both_ends(|| snapshot.prefix_scan(b"0"), expected);
    check_both_ends(|| snapshot.range_scan(b"0"..b"9"), expected);
    check_both_ends(|| snapshot.scan(..=&middle[..]), &expected[..=expected.len() / 2]);
    check(snapshot.clone(), expected);
    check(snapshot.first(), &expected[..1]);
    check(snapshot.last(), &expected[expected.len() - 1..]);
    check(snapshot.entry_before(middle), &expected[expected.len() / 2 - 1..][..1]);
    check(snapshot.entry_after(middle), &expected[expected.len() / 2 + 1..][..1]);
}

fn check_unverified(image: &UnverifiedImage, expected: &[(Bytes, Bytes)]) {
    let keys = || expected.iter().map(|(key, _)| key.clone());
    check(keys().map(|key| (key.clone(), image.get(&key).unwrap().unwrap())), expected);
    check_both_ends(|| image.scan(b"0"..).map(unwrapped), expected);
    check_both_ends(|| image.prefix_scan(b"0").map(unwrapped), expected);
    check_both_ends(|| image.iter().map(unwrapped), expected);
    check_snapshot(&image.verify().unwrap(), expected);
}

/// Checks the values before and after of the keys that are in both snapshots.
fn check_differences(differences: impl Iterator<Item = Difference>, old: &[(Bytes, Bytes)], new: &[(Bytes, Bytes)]) {
    let differences: Vec<_> = differences.collect();
    let of = |value: fn(&Difference) -> &Option<Bytes>| {
        differences.iter().map(|one| (one.key.clone(), value(one).clone().unwrap())).collect::<Vec<_>>()
    };
    check(of(|one| &one.old), old);
    check(of(|one| &one.new), new);
}

fn check_delta(delta: &StateDelta, expected: &[(Bytes, Bytes)]) {
    check(delta.iter().map(|(key, new)| (key, new.unwrap())), expected);
    check(delta.into_iter().map(|(key, new)| (key, new.unwrap())), expected);
}

/// Creates a store of each kind.
fn stores() -> [(&'static str, Box<dyn StateStore>); 3] {
    [
        ("InMemoryStore", Box::new(InMemoryStore::new())),
        ("HotStore", Box::new(HotStore::new())),
        ("HotStore of tiny chunks", Box::new(HotStore::builder().chunk_bytes(64, 256).build())),
    ]
}

type Fill = fn(&mut dyn StateStore, &[(Bytes, Bytes)]);

/// Returns ways to fill a store, from unaligned bytes where possible.
fn fills() -> Vec<(&'static str, Fill)> {
    fn misaligned_snapshot(entries: &[(Bytes, Bytes)], version: Version) -> UnverifiedImage {
        let image = Canonical::new(version, 300, 7).image(entries.iter().map(|(key, value)| (&key[..], &value[..])));
        UnverifiedImage::from_bytes(shifted(&image, 9)).unwrap()
    }
    vec![
        ("put", |store, entries| entries.iter().rev().for_each(|(key, value)| store.put(key, value).unwrap())),
        ("put_many", |store, entries| {
            let shifted: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), shifted(value, 3))).collect();
            let borrowed: Vec<_> = shifted.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            store.put_many(&borrowed).unwrap();
        }),
        ("put_bytes", |store, entries| {
            for (index, (key, value)) in entries.iter().enumerate() {
                store.put_bytes(key, shifted(value, 1 + index % 15)).unwrap();
            }
        }),
        ("get_or_insert", |store, entries| {
            check(
                entries.iter().map(|(key, value)| (key.clone(), store.get_or_insert(key, &shifted(value, 5)).unwrap())),
                entries,
            );
        }),
        ("modify", |store, entries| {
            entries.iter().for_each(|(key, value)| store.put(key, &vec![0; value.len()]).unwrap());
            // Hold as many snapshots and handles as possible, so that values are written anew.
            let before = store.snapshot();
            let handles: Vec<_> = entries.iter().map(|(key, _)| store.get(key).unwrap()).collect();
            for (key, value) in entries {
                assert!(store.modify(key, &mut |bytes| bytes.copy_from_slice(value)).unwrap());
            }
            assert!(before.iter().all(|(_, value)| value.iter().all(|&byte| byte == 0) && is_aligned(&value)));
            assert!(handles.iter().all(|value| value.iter().all(|&byte| byte == 0) && is_aligned(value)));
        }),
        ("restore", |store, entries| store.restore(StateSnapshot::from_sorted(entries.to_vec()).unwrap())),
        ("restore of an image of format 1", |store, entries| {
            store.restore(misaligned_snapshot(entries, Version::One).verify().unwrap());
        }),
        ("restore_into of an image of format 1", |store, entries| {
            misaligned_snapshot(entries, Version::One).restore_into(store).unwrap();
        }),
        ("restore_into of an image of format 2", |store, entries| {
            misaligned_snapshot(entries, Version::Two).restore_into(store).unwrap();
        }),
        ("apply", |store, entries| {
            let now = store.snapshot();
            let then = StateSnapshot::from_sorted(entries.iter().map(|(key, value)| (key.clone(), shifted(value, 7))));
            let delta = then.unwrap().delta_since(&now).to_bytes();
            store.apply(&StateDelta::from_bytes(shifted(&delta, 3)).unwrap()).unwrap();
        }),
    ]
}

fn every_store_hands_out_aligned_values() {
    let expected = entries();
    let keys: Vec<&[u8]> = expected.iter().map(|(key, _)| &key[..]).collect();
    for (name, fill) in fills() {
        for (kind, mut store) in stores() {
            println!("{kind}, {name}");
            fill(&mut *store, &expected);
            check(expected.iter().map(|(key, _)| (key.clone(), store.get(key).unwrap())), &expected);
            check(expected.iter().map(|(key, _)| (key.clone(), store.try_get(key).unwrap().unwrap())), &expected);
            check(expected.iter().map(|(key, _)| (key.clone(), store.get_or_insert(key, b"").unwrap())), &expected);
            let mut many = Vec::new();
            store.get_many(&keys, &mut many);
            check(expected.iter().zip(many).map(|((key, _), value)| (key.clone(), value.unwrap())), &expected);
            check(store.prefix_scan(b""), &expected);
            check(store.prefix_scan(b"0"), &expected);
            check(store.range_scan(b"0"..b"9"), &expected);
            check_both_ends(|| store.iter(), &expected);
            check_both_ends(|| store.scan("0".."9"), &expected);
            check(store.first(), &expected[..1]);
            check(store.last(), &expected[expected.len() - 1..]);
            check(store.entry_before(keys[20]), &expected[19..20]);
            check(store.entry_after(keys[20]), &expected[21..22]);

            let snapshot = store.snapshot();
            check_snapshot(&snapshot, &expected);
            // Remove some entries while a snapshot is alive, and the others while none is.
            let (front, back) = expected.split_at(25);
            let drained = store.drain_range(.., 10).unwrap().entries;
            check(drained, &front[..10]);
            check(front[10..].iter().map(|(key, _)| (key.clone(), store.take(key).unwrap().unwrap())), &front[10..]);
            check_snapshot(&snapshot, &expected);
            drop(snapshot);
            let drained = store.drain_range(.., 10).unwrap().entries;
            check(drained, &back[..10]);
            check(back[10..].iter().map(|(key, _)| (key.clone(), store.take(key).unwrap().unwrap())), &back[10..]);
            assert!(store.is_empty());
        }
    }
}

#[test]
fn stores_hand_out_aligned_values() {
    every_store_hands_out_aligned_values();
}

#[test]
fn stores_hand_out_aligned_values_from_memory_that_is_not_aligned() {
    misaligned(every_store_hands_out_aligned_values);
}

fn every_snapshot_hands_out_aligned_values() {
    let expected = entries();
    for shift in 0..16 {
        let handles = expected.iter().map(|(key, value)| (key.clone(), shifted(value, shift)));
        check_snapshot(&StateSnapshot::from_sorted(handles.clone()).unwrap(), &expected);
        check_snapshot(&handles.collect(), &expected);
    }

    let snapshot = StateSnapshot::from_sorted(expected.clone()).unwrap();
    let groups = KeyGroups::new(5).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for segment_bytes in [1, 300, 64 << 10, 1 << 20] {
        let options = ImageOptions::new().segment_bytes(segment_bytes);
        let mut grouped = Vec::new();
        snapshot.write_grouped(groups, |key| key, options, &mut grouped).unwrap();
        let entries = || expected.iter().map(|(key, value)| (&key[..], &value[..]));
        let [one, two] = Version::ALL.map(|version| Canonical::new(version, segment_bytes, 7).image(entries()));
        for (name, image) in [("one", one), ("two", two), ("grouped", grouped)] {
            println!("{name}, {segment_bytes}");
            for shift in [0, 1, 4, 8, 15] {
                let image = shifted(&image, shift);
                check_snapshot(&StateSnapshot::from_bytes(image.clone()).unwrap(), &expected);
                check_unverified(&UnverifiedImage::from_bytes(image).unwrap(), &expected);
            }
            check_snapshot(&StateSnapshot::from_slice(&image).unwrap(), &expected);
            check_snapshot(&StateSnapshot::read_from(&image[..]).unwrap(), &expected);
            check_unverified(&UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap(), &expected);
            let path = directory.path().join(name);
            fs::write(&path, &image).unwrap();
            check_unverified(&UnverifiedImage::open(&path).unwrap(), &expected);
            if name != "grouped" {
                let info = ImageInfo::from_bytes(shifted(&image, 3)).unwrap();
                let read = info.segments().flat_map(|segment| segment.read().unwrap());
                check(read.map(|(key, value)| (key, value.unwrap())), &expected);
                continue;
            }
            for opened in [
                GroupedImage::from_bytes(shifted(&image, 7)).unwrap(),
                GroupedImage::from_reader(Cursor::new(image.clone())).unwrap(),
                GroupedImage::open(&path).unwrap(),
            ] {
                check_snapshot(&opened.slice(0..5).unwrap(), &expected);
                let slices = (0..5).map(|group| opened.group(group).unwrap());
                check_snapshot(&StateSnapshot::merge(slices).unwrap(), &expected);
            }
        }
    }

    // Check slices, and an archive of a user's type.
    check_snapshot(&StateSnapshot::merge(snapshot.split(groups, |key| key).unwrap()).unwrap(), &expected);
    let archived = rkyv::to_bytes::<BoxedError>(&snapshot).unwrap();
    check_snapshot(&rkyv::from_bytes::<StateSnapshot, BoxedError>(&archived).unwrap(), &expected);
}

#[test]
fn snapshots_hand_out_aligned_values() {
    every_snapshot_hands_out_aligned_values();
}

#[test]
fn snapshots_hand_out_aligned_values_from_memory_that_is_not_aligned() {
    misaligned(every_snapshot_hands_out_aligned_values);
}

fn every_delta_hands_out_aligned_values() {
    let [first, second, third] = [1, 2, 4].map(entries_of);
    // Skip the first entry: empty values are equal in all three.
    let [old, middle, new] = [&first[1..], &second[1..], &third[1..]];
    let image = |entries: &Entries, version: Version| {
        let canonical = Canonical::new(version, 300, 7);
        shifted(&canonical.image(entries.iter().map(|(key, value)| (&key[..], &value[..]))), 5)
    };
    // Compare snapshots of one store, which knows its changes, unrelated snapshots, and images.
    let mut triples = Vec::new();
    for (kind, mut store) in stores() {
        let snapshots = [&first, &second, &third].map(|entries| {
            entries.iter().for_each(|(key, value)| store.put_bytes(key, shifted(value, 3)).unwrap());
            store.snapshot()
        });
        triples.push((kind, snapshots));
    }
    for (version, kind) in Version::ALL.into_iter().zip(["format 1", "format 2"]) {
        let opened =
            [&first, &second, &third].map(|entries| StateSnapshot::from_bytes(image(entries, version)).unwrap());
        triples.push((kind, opened));
        let lazy =
            [&first, &second, &third].map(|entries| UnverifiedImage::from_bytes(image(entries, version)).unwrap());
        check_differences(lazy[1].diff(&lazy[0]).map(Result::unwrap), old, middle);
        let verified = lazy.map(|image| image.verify().unwrap());
        triples.push((kind, verified));
    }

    for (kind, [a, b, c]) in triples {
        println!("{kind}");
        check_differences(b.diff(&a), old, middle);
        check_differences(c.try_diff(&b).map(Result::unwrap), middle, new);
        let (ab, bc) = (b.delta_since(&a), c.delta_since(&b));
        check_delta(&ab, middle);
        let composed = ab.compose(&bc).unwrap();
        check_delta(&composed, new);
        check_snapshot(&a.apply(&composed).unwrap(), &third);
        let mut opened = vec![ab.clone()];
        for shift in [0, 1, 8] {
            for segment_bytes in [1, 300, 64 << 10] {
                let mut written = Vec::new();
                ab.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut written).unwrap();
                opened.push(StateDelta::from_bytes(shifted(&written, shift)).unwrap());
                opened.push(StateDelta::from_slice(&shifted(&written, shift)).unwrap());
            }
        }
        let changes: Vec<_> = middle.iter().map(|(key, value)| (&key[..], 2, &value[..])).collect();
        let number = |snapshot: &StateSnapshot| u128::from_le_bytes(snapshot.fingerprint().to_le_bytes());
        let of_format_1 = Canonical::new(Version::One, 300, 7).delta(&changes, number(&a), number(&b));
        opened.push(StateDelta::from_bytes(shifted(&of_format_1, 9)).unwrap());
        for delta in opened {
            check_delta(&delta, middle);
            let applied = a.apply(&delta).unwrap();
            check_snapshot(&applied, &second);
            check_snapshot(&applied.apply(&bc).unwrap(), &third);
            check_differences(applied.diff(&a), old, middle);
            check_delta(&delta.compose(&bc).unwrap(), new);
        }
    }
}

#[test]
fn deltas_and_differences_hand_out_aligned_values() {
    every_delta_hands_out_aligned_values();
}

#[test]
fn deltas_and_differences_hand_out_aligned_values_from_memory_that_is_not_aligned() {
    misaligned(every_delta_hands_out_aligned_values);
}

#[test]
fn a_handle_is_kept_where_it_is_aligned_and_copied_where_it_is_not() {
    let value = vec![7; 4000];
    for shift in 0..16 {
        let handle = shifted(&value, shift);
        let mut store = HotStore::new();
        // A store copies a value that others have handles to, wherever it lies.
        store.put_bytes(b"k", handle.clone()).unwrap();
        for found in [store.get(b"k").unwrap(), store.snapshot().get(b"k").unwrap()] {
            assert!(found == value && is_aligned(&found) && found.as_ptr() != handle.as_ptr(), "{shift}");
        }
        let snapshot = StateSnapshot::from_sorted([("k", handle.clone())]).unwrap();
        let opened = StateSnapshot::from_bytes(shifted(&snapshot.to_bytes(), 3)).unwrap();
        let delta = snapshot.delta_since(&StateSnapshot::default());
        for found in [snapshot.get(b"k").unwrap(), delta.iter().next().unwrap().1.unwrap()] {
            assert_eq!(found, value);
            assert_eq!(found.as_ptr() == handle.as_ptr(), shift == 0, "{shift}");
        }
        // A value that was copied once is handed out from that copy.
        let again = |get: &dyn Fn() -> Bytes| assert_eq!(get().as_ptr(), get().as_ptr());
        again(&|| store.get(b"k").unwrap());
        again(&|| snapshot.get(b"k").unwrap());
        again(&|| opened.get(b"k").unwrap());
        again(&|| delta.iter().next().unwrap().1.unwrap());
    }
}

#[test]
fn values_that_are_handed_out_are_accessed_in_place() {
    let mut store = HotStore::new();
    for i in 0..100_u128 {
        store.put_typed(&(i as u8).to_be_bytes(), &(i, vec![i; 3])).unwrap();
    }
    let image = shifted(&store.snapshot().to_bytes(), 1);
    let opened = StateSnapshot::from_bytes(image).unwrap();
    for (key, value) in store.iter().chain(&opened).chain(store.snapshot().iter().rev()) {
        let archived = rkyv::access::<rkyv::Archived<(u128, Vec<u128>)>, BoxedError>(&value).unwrap();
        assert_eq!((archived.0.to_native(), archived.1.len()), (key[0].into(), 3));
    }
    assert_eq!(VALUE_ALIGNMENT % align_of::<rkyv::Archived<u128>>(), 0);
}
