//! Snapshots of every origin: the same contents give the same answers, bytes and fingerprints.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::{Bound, ControlFlow, Range};
use std::panic::catch_unwind;
use std::thread;

use bytes::Bytes;
use opstate::{
    Fingerprint, GroupedImage, HotStore, ImageOptions, InMemoryStore, KeyGroups, Label, MAX_KEY_LEN, StateDelta,
    StateError, StateSnapshot, StateStore, UnverifiedImage,
};
use proptest::prelude::*;
use rkyv::rancor::BoxedError;

use crate::support::allocator::allocated_by;
use crate::support::cases::cases;
use crate::support::layout::{Canonical, Version};
use crate::support::model::{any_key, any_value, ranges, within};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn image_of(snapshot: &StateSnapshot, segment_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    let written = snapshot.write_with(ImageOptions::new().segment_bytes(segment_bytes), &mut image).unwrap();
    assert_eq!(written, image.len() as u64);
    image
}

/// Returns snapshots of the same contents, one of each origin.
fn of_every_origin(model: &Model, segment_bytes: usize) -> Vec<StateSnapshot> {
    let mut store = InMemoryStore::new();
    // Neither the order of writes nor earlier contents may affect the snapshot.
    store.put(b"gone", b"").unwrap();
    for (key, value) in model.iter().rev() {
        store.put(key, b"replaced later").unwrap();
        store.put(key, value).unwrap();
    }
    if !model.contains_key(&b"gone"[..]) {
        store.delete(b"gone").unwrap();
    }
    let taken = store.snapshot().with_timestamp_ns(7);
    let mut restored = InMemoryStore::new();
    restored.restore(StateSnapshot::from_bytes(taken.to_bytes()).unwrap());
    let mut hot = HotStore::new();
    hot.restore(taken.clone());
    let mut unaligned = vec![0];
    unaligned.extend_from_slice(&taken.to_bytes());
    vec![
        StateSnapshot::from_iter(model.clone().into_iter().rev()).with_timestamp_ns(7),
        StateSnapshot::from_sorted(model.clone()).unwrap().with_timestamp_ns(7),
        StateSnapshot::from_bytes(taken.to_bytes()).unwrap(),
        StateSnapshot::from_bytes(image_of(&taken, segment_bytes)).unwrap(),
        StateSnapshot::from_bytes(Bytes::from(unaligned).slice(1..)).unwrap(),
        restored.snapshot().with_timestamp_ns(7),
        hot.snapshot().with_timestamp_ns(7),
        // Open an image of format 1.
        StateSnapshot::from_bytes(
            Canonical::new(Version::One, segment_bytes, 7)
                .image(model.iter().map(|(key, value)| (&key[..], &value[..]))),
        )
        .unwrap(),
        StateSnapshot::from_slice(&taken.to_bytes()).unwrap(),
        UnverifiedImage::from_bytes(image_of(&taken, segment_bytes)).unwrap().verify().unwrap(),
        taken,
    ]
}

fn handles((key, value): (&Vec<u8>, &Vec<u8>)) -> (Bytes, Bytes) {
    (key.clone().into(), value.clone().into())
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn every_origin_gives_the_same(
        model in proptest::collection::btree_map(any_key(), any_value(), 0..60),
        asked in proptest::collection::vec(any_key(), 1..6),
        segment_bytes in 1_usize..3000,
    ) {
        let all = of_every_origin(&model, segment_bytes);
        let first = &all[0];
        for snapshot in &all {
            prop_assert_eq!(snapshot.len(), model.len());
            prop_assert_eq!(snapshot.size_bytes(), model.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>());
            prop_assert_eq!(snapshot.timestamp_ns(), 7);
            prop_assert_eq!(snapshot, first);
            prop_assert_eq!(snapshot.fingerprint(), first.fingerprint());
            prop_assert_eq!(snapshot.to_bytes(), first.to_bytes());
            prop_assert_eq!(image_of(snapshot, segment_bytes), image_of(first, segment_bytes));
            prop_assert!(snapshot.iter().rev().eq(model.iter().rev().map(handles)));
            let owned = snapshot.clone().into_iter();
            prop_assert_eq!(owned.len(), model.len());
            prop_assert!(owned.eq(model.iter().map(handles)));
            prop_assert_eq!(snapshot.first(), model.first_key_value().map(handles));
            prop_assert_eq!(snapshot.last(), model.last_key_value().map(handles));
            for key in model.keys().chain(&asked) {
                prop_assert_eq!(snapshot.try_get(key).unwrap(), model.get(key).cloned().map(Bytes::from));
                let before = model.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&key[..]))).next_back();
                prop_assert_eq!(snapshot.entry_before(key), before.map(handles));
                let after = model.range::<[u8], _>((Bound::Excluded(&key[..]), Bound::Unbounded)).next();
                prop_assert_eq!(snapshot.entry_after(key), after.map(handles));
                prop_assert_eq!(snapshot.get(key), model.get(key).cloned().map(Bytes::from));
                prop_assert_eq!(snapshot.contains(key), model.contains_key(key));
                let found: Vec<_> = snapshot.prefix_scan(key).collect();
                let expected: Vec<_> = model.iter().filter(|(k, _)| k.starts_with(key)).collect();
                prop_assert_eq!(found.len(), expected.len());
                prop_assert!(found.iter().zip(expected).all(|(a, b)| a.0 == b.0[..] && a.1 == b.1[..]));
            }
            for start in &asked {
                for end in &asked {
                    let (start, end) = (start.as_slice(), end.as_slice());
                    for range in ranges(start, end) {
                        let mut expected: Vec<_> = within(&model, range).into_iter().collect();
                        let found: Vec<_> = snapshot.scan(range).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                        prop_assert_eq!(&found, &expected);
                        let mut visited = Vec::new();
                        snapshot.visit_range(range, |key, value| {
                            visited.push((key.to_vec(), value.to_vec()));
                            ControlFlow::Continue(())
                        });
                        prop_assert_eq!(&visited, &expected);
                        expected.reverse();
                        let found: Vec<_> = snapshot.scan(range).rev().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                        prop_assert_eq!(&found, &expected);
                    }
                    prop_assert_eq!(
                        snapshot.range_scan(start..end).count(),
                        within(&model, (Bound::Included(start), Bound::Excluded(end))).len()
                    );
                }
            }
        }
    }
}

#[test]
fn different_contents_differ() {
    let base = StateSnapshot::from_iter([("a", "1"), ("b", "2")]);
    for other in [
        StateSnapshot::from_iter([("a", "1"), ("b", "3")]),
        StateSnapshot::from_iter([("a", "1"), ("c", "2")]),
        StateSnapshot::from_iter([("a", "2"), ("b", "1")]),
        StateSnapshot::from_iter([("a", "1")]),
        StateSnapshot::from_iter([("a", "1b"), ("", "2")]),
    ] {
        assert_ne!(base, other);
        assert_ne!(base.fingerprint(), other.fingerprint());
    }
    assert_eq!(base, base.with_timestamp_ns(base.timestamp_ns() + 1));
    assert_eq!(StateSnapshot::from_iter::<[(&str, &str); 0]>([]).fingerprint(), Fingerprint::EMPTY);
}

#[test]
fn the_last_of_equal_keys_counts() {
    let snapshot = StateSnapshot::from_iter([("b", "1"), ("a", "1"), ("b", "2"), ("a", "2"), ("b", "3")]);
    assert_eq!(snapshot, StateSnapshot::from_sorted([("a", "2"), ("b", "3")]).unwrap());
}

#[test]
fn unsorted_and_oversized_entries_are_refused() {
    let error = StateSnapshot::from_sorted([("a", ""), ("b", ""), ("b", "")]).unwrap_err();
    assert!(matches!(error, StateError::NotSorted { index: 2 }), "{error}");
    let error = StateSnapshot::from_sorted([(vec![0; MAX_KEY_LEN + 1], "")]).unwrap_err();
    assert!(matches!(error, StateError::KeyTooLong { len: 65_536, limit: 65_535 }), "{error}");
    assert_eq!(StateSnapshot::from_sorted([(vec![0; MAX_KEY_LEN], "")]).unwrap().len(), 1);
}

#[test]
fn an_opened_image_is_not_copied() {
    let value = vec![7; 1 << 20];
    let image = StateSnapshot::from_iter([("key", value)]).to_bytes();
    let place = image.as_ptr_range();
    let (snapshot, allocated) = allocated_by(|| StateSnapshot::from_bytes(image.clone()).unwrap());
    assert!(allocated.peak_bytes < 4096, "{}", allocated.peak_bytes);
    assert!(place.contains(&snapshot.get(b"key").unwrap().as_ptr()));
    let (key, value) = snapshot.iter().next().unwrap();
    assert!(place.contains(&key.as_ptr()) && place.contains(&value.as_ptr()));
}

#[test]
fn values_of_an_image_are_aligned() {
    let snapshot = StateSnapshot::from_iter((0..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 32])));
    let opened = StateSnapshot::from_bytes(image_of(&snapshot, 1000)).unwrap();
    assert!(opened.iter().all(|(_, value)| value.as_ptr().addr() % 16 == 0));
}

#[test]
fn writing_takes_bounded_memory() {
    let peak = |entries: Vec<(Vec<u8>, Vec<u8>)>, longest: usize, segments: usize, key_len: usize| {
        let snapshot = StateSnapshot::from_sorted(entries).unwrap();
        let (_, allocated) = allocated_by(|| snapshot.write_to(io::sink()).unwrap());
        let allowed = 5 * ((64 << 10) + longest) + 3 * segments * (40 + key_len) + 4096;
        assert!(allocated.peak_bytes <= allowed, "{} of {allowed} bytes", allocated.peak_bytes);
    };
    let numbered = |count: u32, key_len: usize, value_len: usize| {
        let key = move |i: u32| [&i.to_be_bytes()[..], &vec![7; key_len - 4]].concat();
        (0..count).map(|i| (key(i), vec![1; value_len])).collect::<Vec<_>>()
    };
    peak(numbered(200_000, 4, 100), 104, 400, 4);
    // Values with segments of their own, and long keys.
    peak(numbered(300, 16, 64 << 10), 16, 300, 16);
    peak(numbered(100, 60_000, 64 << 10), 60_000, 100, 60_000);
    peak(numbered(200, 65_535, 65_535), 131_070, 200, 65_535);
    peak(vec![(vec![1], vec![2; 10 << 20])], 1, 1, 1);
}

/// A writer that fails at a given call.
struct FailingAt {
    calls_left: usize,
}

impl Write for FailingAt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        Ok(bytes.len().min(100))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.calls_left = self.calls_left.checked_sub(1).ok_or_else(|| io::Error::other("the disk is full"))?;
        Ok(())
    }
}

#[test]
fn a_write_that_fails_anywhere_is_an_error() {
    let snapshot = StateSnapshot::from_iter((0..100_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 30])));
    let options = ImageOptions::new().segment_bytes(200);
    let mut failures = 0;
    while let Err(error) = snapshot.write_with(options, FailingAt { calls_left: failures }) {
        assert!(matches!(error, StateError::Io(_)), "{error}");
        failures += 1;
    }
    assert!(failures > 50, "{failures}");
}

#[test]
fn snapshots_are_used_on_other_threads_and_outlive_the_store() {
    let mut store = InMemoryStore::new();
    for i in 0..1000_u32 {
        store.put(&i.to_be_bytes(), &[1; 30]).unwrap();
    }
    let snapshot = store.snapshot();
    let expected = snapshot.fingerprint();
    thread::scope(|scope| {
        for _ in 0..4 {
            let snapshot = snapshot.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    let opened = StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap();
                    assert_eq!(opened.fingerprint(), expected);
                    assert_eq!(opened, snapshot);
                }
            });
        }
        for i in 0..1000_u32 {
            store.modify(&i.to_be_bytes(), &mut |value| value.fill(2)).unwrap();
        }
        drop(store);
    });
    assert!(snapshot.iter().all(|(_, value)| value[..] == [1; 30]));
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Checkpoint {
    operators: Vec<(String, StateSnapshot)>,
    offset: u64,
}

#[test]
fn a_checkpoint_of_the_user_holds_snapshots() {
    let a = StateSnapshot::from_iter((0..1000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 100])));
    let b = StateSnapshot::from_iter([("x", "y")]);
    let operators = vec![("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())];
    let mut bytes = rkyv::to_bytes::<BoxedError>(&Checkpoint { operators, offset: 9 }).unwrap();

    let restored: Checkpoint = rkyv::from_bytes::<_, BoxedError>(&bytes).unwrap();
    assert_eq!(restored.offset, 9);
    assert_eq!(restored.operators[0], ("a".to_owned(), a.clone()));
    assert_eq!(restored.operators[1], ("b".to_owned(), b));

    let archived = rkyv::access::<ArchivedCheckpoint, BoxedError>(&bytes).unwrap();
    let image = archived.operators[0].1.as_image();
    assert_eq!(image, a.to_bytes());
    assert_eq!(archived.operators[0].1.open().unwrap(), a);

    // A damaged image in a sound archive gives rkyv's error, with the text of ours. The test opens only the snapshot,
    // because rkyv leaks a vector if one of its elements fails.
    let inside = image.as_ptr().addr() - bytes.as_ptr().addr() + 5000;
    bytes[inside] ^= 1;
    let archived = rkyv::access::<ArchivedCheckpoint, BoxedError>(&bytes).unwrap();
    let error = rkyv::deserialize::<StateSnapshot, BoxedError>(&archived.operators[0].1).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
#[ignore = "needs 10 GiB of memory"]
fn contents_beyond_2_gib_and_values_beyond_one_archive() {
    let long = Bytes::from(vec![1; (2 << 30) + 12_345]);
    let medium = Bytes::from(vec![2; 1 << 20]);
    let mut entries: Vec<(Bytes, Bytes)> =
        (0..100_u32).map(|i| (Bytes::copy_from_slice(&i.to_be_bytes()), medium.clone())).collect();
    entries.push((Bytes::from_static(b"long"), long.clone()));
    let snapshot = StateSnapshot::from_sorted(entries).unwrap();
    let opened = StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap();
    assert_eq!(opened.size_bytes(), snapshot.size_bytes());
    assert!(opened == snapshot);
    assert!(opened.get(b"long").unwrap() == long);
    assert_eq!(opened.fingerprint(), snapshot.fingerprint());
}

#[test]
fn labels_go_where_contents_go() {
    let label = Label::new().operator("dedup").job("clicks").user(vec![0, 0xFF]);
    let other = Label::new().operator("join");
    let plain = StateSnapshot::from_iter((0..50_u8).map(|i| (vec![i], vec![i; 9])));
    let snapshot = plain.with_label(label.clone());
    assert_eq!((plain.label(), snapshot.label()), (&Label::new(), &label));
    assert_eq!((&plain, plain.fingerprint()), (&snapshot, snapshot.fingerprint()));
    assert_ne!(plain.with_timestamp_ns(7).to_bytes(), snapshot.with_timestamp_ns(7).to_bytes());
    assert_eq!(
        snapshot.with_label(Label::new()).to_bytes(),
        plain.with_timestamp_ns(snapshot.timestamp_ns()).to_bytes()
    );

    let image = snapshot.to_bytes();
    let (groups, mut grouped) = (KeyGroups::new(4).unwrap(), Vec::new());
    snapshot.write_grouped(groups, |key| key, ImageOptions::new(), &mut grouped).unwrap();
    let opened = GroupedImage::from_bytes(grouped.clone()).unwrap();
    assert_eq!(opened.label(), &label);
    let archived = rkyv::to_bytes::<BoxedError>(&snapshot).unwrap();
    let slices = snapshot.split(groups, |key| key).unwrap();
    let mut labelled = vec![
        snapshot.clone(),
        snapshot.with_timestamp_ns(7),
        StateSnapshot::from_bytes(image.clone()).unwrap(),
        StateSnapshot::from_slice(&image).unwrap(),
        StateSnapshot::read_from(&image[..]).unwrap(),
        StateSnapshot::from_bytes(grouped.clone()).unwrap(),
        StateSnapshot::read_from(&grouped[..]).unwrap(),
        UnverifiedImage::from_bytes(image.clone()).unwrap().verify().unwrap(),
        UnverifiedImage::from_bytes(grouped).unwrap().verify().unwrap(),
        rkyv::from_bytes::<StateSnapshot, BoxedError>(&archived).unwrap(),
        opened.slice(0..4).unwrap(),
        opened.slice(0..0).unwrap(),
        opened.group(7).unwrap(),
        StateSnapshot::merge(slices.clone()).unwrap(),
    ];
    labelled.extend(slices.clone());
    labelled.extend((0..4).map(|group| opened.group(group).unwrap()));
    for (index, snapshot) in labelled.iter().enumerate() {
        assert_eq!(snapshot.label(), &label, "{index}");
    }
    // Merged slices of two operators have no common operator name.
    let merged = StateSnapshot::merge([slices[0].clone(), slices[1].with_label(other.clone())]).unwrap();
    assert_eq!(merged.label(), &Label::new());
    // A store has no label.
    let mut store = HotStore::new();
    store.restore(snapshot.clone());
    assert_eq!(store.snapshot().label(), &Label::new());

    // A delta has the label of the contents it leads to.
    let later = StateSnapshot::from_iter([("x", "1")]).with_label(other.clone());
    let last = StateSnapshot::from_iter([("y", "1")]).with_label(label.clone());
    let (first, second) = (later.delta_since(&snapshot), last.delta_since(&later));
    let composed = first.compose(&second).unwrap();
    for (delta, base, expected) in [(&first, &snapshot, &other), (&second, &later, &label), (&composed, &plain, &label)]
    {
        assert_eq!(delta.label(), expected);
        let opened = StateDelta::from_bytes(delta.to_bytes()).unwrap();
        assert_eq!(opened.label(), expected);
        assert_eq!(StateDelta::from_slice(&delta.to_bytes()).unwrap().label(), expected);
        assert_eq!(base.apply(&opened).unwrap().label(), expected);
    }
}

#[test]
fn a_label_is_required_part_by_part() {
    let label = Label::new().operator("dedup\n").job("clicks").user(vec![0, 0xFF]);
    for sound in [
        Label::new(),
        label.clone(),
        Label::new().operator("dedup\n"),
        Label::new().job("clicks"),
        Label::new().user(vec![0, 0xFF]),
    ] {
        label.require(&sound).unwrap();
    }
    for (expected, text) in [
        (
            Label::new().operator("join"),
            "the operator in the label is `dedup\\n`, expected `join`; open the state of the right operator",
        ),
        (
            Label::new().job("j").operator("x"),
            "the operator in the label is `dedup\\n`, expected `x`; open the state of the right operator",
        ),
        (
            label.clone().job("other"),
            "the job in the label is `clicks`, expected `other`; open the state of the right job",
        ),
        (
            Label::new().user(vec![1]),
            "the user bytes in the label is `\\x00\\xff`, expected `\\x01`; open the state of the right user bytes",
        ),
    ] {
        let error = label.require(&expected).unwrap_err();
        assert!(matches!(error, StateError::WrongLabel { .. }));
        assert_eq!(error.to_string(), text);
        assert!(Label::new().require(&expected).is_err());
    }
    let long = "x".repeat(65_536);
    assert!(catch_unwind(|| Label::new().operator(long.clone())).is_err());
    assert!(catch_unwind(|| Label::new().job(long.clone())).is_err());
    assert!(catch_unwind(|| Label::new().user(vec![0; Label::MAX_USER_LEN + 1])).is_err());
    assert!(!Label::new().operator(&long[1..]).job(&long[1..]).user(vec![0; Label::MAX_USER_LEN]).is_empty());
}

/// A key that is `a` and `z` in turns, by the number of times it was asked for its bytes.
struct Fickle(Cell<bool>);

impl AsRef<[u8]> for Fickle {
    fn as_ref(&self) -> &[u8] {
        if self.0.replace(!self.0.get()) { b"a" } else { b"z" }
    }
}

#[test]
fn bounds_that_change_from_call_to_call_are_read_once() {
    let snapshot = StateSnapshot::from_iter([("b", "1"), ("c", "2")]);
    let key = |is_low| Fickle(Cell::new(is_low));
    assert_eq!(snapshot.scan(key(true)..key(false)).count(), 2);
    // A second reading of these bounds would give `z..a`.
    assert_eq!(snapshot.scan(key(false)..key(true)).count(), 0);
    let mut visited = 0;
    let mut visit = |range: Range<Fickle>| {
        snapshot.visit_range(range, |_, _| {
            visited += 1;
            ControlFlow::Continue(())
        });
        visited
    };
    assert_eq!(visit(key(true)..key(false)), 2);
    assert_eq!(visit(key(false)..key(true)), 2);
}
