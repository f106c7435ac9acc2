//! Golden files of every released format version. They must stay readable, and equal contents must still give the bytes
//! of the newest version.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use opstate::{
    GroupedImage, HotStore, ImageOptions, InMemoryStore, KeyGroups, Label, StateDelta, StateSnapshot, StateStore,
    StateStoreExt, UnverifiedImage,
};

use crate::support::layout::{Canonical, Read, Version, is_aligned, read};

/// Contents that every version has a file of, for example `v1-edges.image`.
struct Golden {
    name: &'static str,
    segment_bytes: usize,
    fingerprint: &'static str,
    /// Number of key groups of a grouped image. The part of a key before its `:` tells the group.
    groups: Option<u32>,
    label: Label,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Golden {
    /// Returns the versions that can hold the contents.
    fn versions(&self) -> &[Version] {
        if self.label.is_empty() { &Version::ALL } else { &Version::ALL[1..] }
    }
}

/// The time 2025-01-01 00:00:00 UTC, in nanoseconds.
const TIMESTAMP_NS: u64 = 1_735_689_600_000_000_000;

/// The part of a delta's file name after its version.
const DELTA: &str = ".delta";

fn golden() -> Vec<Golden> {
    let bytes = |len: usize, seed: usize| (0..len).map(|i| (i * 31 + seed) as u8).collect::<Vec<u8>>();
    let numbered: Vec<_> = (0..60)
        .map(|i| (format!("key/{i:03}").into_bytes(), bytes(if i % 20 == 7 { 300 } else { i % 13 }, i)))
        .collect();
    let by_user: BTreeMap<_, _> = (0..40)
        .map(|i| {
            let key = format!("user-{:02}:{i:03}", i % 9).into_bytes();
            (key, bytes(if i % 20 == 7 { 300 } else { i % 13 }, i))
        })
        .collect();
    let by_user: Vec<_> = by_user.into_iter().collect();
    vec![
        Golden {
            name: "empty.image",
            segment_bytes: 65_536,
            fingerprint: "00000000000000000000000000000000",
            groups: None,
            label: Label::new(),
            entries: vec![],
        },
        Golden {
            name: "edges.image",
            segment_bytes: 65_536,
            fingerprint: "8a7fadb9b661b1b05ea714720f285025",
            groups: None,
            label: Label::new(),
            entries: vec![
                (vec![], b"the empty key".to_vec()),
                (vec![0], vec![]),
                (vec![0, 0], b"\0".to_vec()),
                (b"a".to_vec(), bytes(300, 1)),
                (b"a\0".to_vec(), bytes(22, 2)),
                (vec![0xFF; 300], bytes(3, 3)),
                (vec![0xFF; 301], bytes(1, 4)),
            ],
        },
        Golden {
            name: "segments.image",
            segment_bytes: 256,
            fingerprint: "581967a48ccdf81cf2655fd18034f5b0",
            groups: None,
            label: Label::new(),
            entries: numbered.clone(),
        },
        Golden {
            name: "grouped.image",
            segment_bytes: 256,
            fingerprint: "81808f62b8ccdc2dae4b3f091bd8118d",
            groups: Some(8),
            label: Label::new(),
            entries: by_user.clone(),
        },
        Golden {
            name: "label.image",
            segment_bytes: 256,
            fingerprint: "581967a48ccdf81cf2655fd18034f5b0",
            groups: None,
            label: label(),
            entries: numbered,
        },
        Golden {
            name: "grouped-label.image",
            segment_bytes: 256,
            fingerprint: "81808f62b8ccdc2dae4b3f091bd8118d",
            groups: Some(8),
            label: label(),
            entries: by_user,
        },
    ]
}

fn label() -> Label {
    Label::new().operator("d\u{E9}dup").job("clicks/2025").user(vec![0, 0xFF, 7])
}

fn parts_of(label: &Label) -> [Vec<u8>; 3] {
    [label.operator_name().into(), label.job_name().into(), label.user_bytes().to_vec()]
}

fn user(key: &[u8]) -> &[u8] {
    key.split(|&byte| byte == b':').next().unwrap_or(key)
}

fn path(version: Version, name: &str) -> PathBuf {
    let name = format!("v{}{}{name}", version as u8, if name == DELTA { "" } else { "-" });
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &name].iter().collect()
}

fn file(version: Version, name: &str) -> Vec<u8> {
    fs::read(path(version, name)).unwrap()
}

/// Returns the image that the library writes.
fn image(golden: &Golden) -> Bytes {
    let mut store = InMemoryStore::new();
    for (key, value) in &golden.entries {
        store.put(key, value).unwrap();
    }
    let mut image = Vec::new();
    let options = ImageOptions::new().segment_bytes(golden.segment_bytes);
    let snapshot = store.snapshot().with_timestamp_ns(TIMESTAMP_NS).with_label(golden.label.clone());
    match golden.groups {
        None => snapshot.write_with(options, &mut image).unwrap(),
        Some(count) => snapshot.write_grouped(KeyGroups::new(count).unwrap(), user, options, &mut image).unwrap(),
    };
    image.into()
}

/// Returns the image that the second implementation of the format writes.
fn canonical(golden: &Golden, version: Version) -> Vec<u8> {
    let label = parts_of(&golden.label);
    let canonical = Canonical { label, ..Canonical::new(version, golden.segment_bytes, TIMESTAMP_NS) };
    let entries = golden.entries.iter().map(|(key, value)| (&key[..], &value[..]));
    let Some(count) = golden.groups else { return canonical.image(entries) };
    let groups = KeyGroups::new(count).unwrap();
    let mut by_group = BTreeMap::<u32, Vec<(&[u8], &[u8])>>::new();
    entries.for_each(|(key, value)| by_group.entry(groups.group_of(user(key))).or_default().push((key, value)));
    canonical.grouped(count, &by_group)
}

/// Checks what the second implementation reads. `are_aligned` is the expected alignment of the values in the file.
fn check_read(file: &[u8], golden: &Golden, version: Version) -> Read {
    let read = read(file);
    let entries: Vec<_> = read.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    assert_eq!(entries, golden.entries);
    assert_eq!((read.version, read.timestamp_ns), (version, TIMESTAMP_NS));
    assert_eq!(format!("{:032x}", read.fingerprint), golden.fingerprint);
    assert_eq!(read.label, parts_of(&golden.label));
    assert_eq!((read.kind, read.groups.0), golden.groups.map_or((1, 0), |count| (3, count.into())));
    read
}

/// Returns `true` if every value in the file can be handed out where it lies.
fn are_aligned(read: &Read) -> bool {
    read.entries.iter().all(|entry| entry.offset % 16 == 0 || entry.value.is_empty())
}

#[test]
fn golden_images_stay_readable_and_canonical() {
    for golden in golden() {
        for &version in golden.versions() {
            let file = file(version, golden.name);
            let read = check_read(&file, &golden, version);
            assert_eq!(are_aligned(&read), version == Version::Two || golden.entries.is_empty());
            let opened = StateSnapshot::from_bytes(file.clone()).unwrap();
            assert_eq!((opened.timestamp_ns(), opened.label()), (TIMESTAMP_NS, &golden.label));
            assert_eq!(opened.fingerprint().to_string(), golden.fingerprint, "{}", golden.name);
            let entries: Vec<_> = opened.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            assert_eq!(entries, golden.entries);
            let lazy = UnverifiedImage::from_bytes(file.clone()).unwrap();
            assert_eq!((&lazy.verify().unwrap(), lazy.label()), (&opened, &golden.label));
            assert_eq!(canonical(&golden, version), file, "{} is another image", golden.name);
            // Old versions are readable, and are rewritten as the newest one.
            let mut again = Vec::new();
            let options = ImageOptions::new().segment_bytes(golden.segment_bytes);
            match golden.groups {
                None => opened.write_with(options, &mut again).unwrap(),
                Some(count) => opened.write_grouped(KeyGroups::new(count).unwrap(), user, options, &mut again).unwrap(),
            };
            assert_eq!(again, image(&golden));
        }
        assert_eq!(image(&golden), file(Version::Two, golden.name), "{} is written differently now", golden.name);
    }
}

fn all_aligned(entries: impl IntoIterator<Item = (Bytes, Bytes)>) -> bool {
    entries.into_iter().all(|(_, value)| is_aligned(&value))
}

#[test]
fn values_of_golden_images_are_handed_out_aligned() {
    for golden in golden() {
        for &version in golden.versions() {
            let file = file(version, golden.name);
            let opened = StateSnapshot::from_bytes(file.clone()).unwrap();
            let lazy = UnverifiedImage::from_bytes(file.clone()).unwrap();
            for (key, _) in &golden.entries {
                assert!(is_aligned(&opened.get(key).unwrap()));
                assert!(is_aligned(&lazy.get(key).unwrap().unwrap()));
            }
            assert!(all_aligned(opened.iter()) && all_aligned(opened.iter().rev()));
            assert!(all_aligned(lazy.iter().flatten()) && all_aligned(lazy.iter().rev().flatten()));
            let empty = StateSnapshot::default();
            assert!(opened.diff(&empty).all(|difference| is_aligned(&difference.new.unwrap())));
            assert!(empty.diff(&opened).all(|difference| is_aligned(&difference.old.unwrap())));
            assert!(opened.delta_since(&empty).iter().all(|(_, new)| is_aligned(&new.unwrap())));
            let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
            for store in &mut stores {
                lazy.restore_into(store).unwrap();
                assert!(all_aligned(store.iter()));
            }
        }
    }
    for version in Version::ALL {
        let delta = StateDelta::from_bytes(file(version, DELTA)).unwrap();
        assert!(delta.iter().all(|(_, new)| new.is_none_or(|new| is_aligned(&new))));
        let base = StateSnapshot::from_bytes(file(version, "segments.image")).unwrap();
        assert!(all_aligned(base.apply(&delta).unwrap().iter()));
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and the images are opened whole by another test")]
fn groups_of_golden_images_stay_readable() {
    for golden in golden().into_iter().filter(|golden| golden.groups.is_some()) {
        for &version in golden.versions() {
            let grouped = GroupedImage::from_bytes(file(version, golden.name)).unwrap();
            let groups = KeyGroups::new(8).unwrap();
            assert_eq!((grouped.key_groups(), grouped.label()), (groups, &golden.label));
            for group in 0..8 {
                let read = grouped.group(group).unwrap();
                let of_group = golden.entries.iter().filter(|(key, _)| groups.group_of(user(key)) == group);
                assert!(read.iter().eq(of_group.map(|(key, value)| (key.clone().into(), value.clone().into()))));
                assert_eq!((read.label(), read.timestamp_ns()), (&golden.label, TIMESTAMP_NS));
            }
        }
    }
}

/// Returns the contents of `segments.image`, and other contents. The changes span several segments, one of them a blob.
fn golden_delta() -> (StateSnapshot, StateSnapshot) {
    let base = golden().into_iter().find(|golden| golden.name == "segments.image").unwrap();
    let snapshot = |entries: Vec<(Vec<u8>, Vec<u8>)>| StateSnapshot::from_sorted(entries).unwrap();
    let mut entries = base.entries.clone();
    entries.retain(|(key, _)| key[6] != b'4');
    for (i, (key, value)) in entries.iter_mut().enumerate() {
        match i % 5 {
            0 => value.push(i as u8),
            1 if i > 40 => value.resize(400, 7),
            2 => key.push(b'+'),
            _ => {}
        }
    }
    (snapshot(base.entries), snapshot(entries).with_timestamp_ns(TIMESTAMP_NS + 1))
}

/// Returns the delta's image that the library writes.
fn delta_image(old: &StateSnapshot, new: &StateSnapshot) -> Vec<u8> {
    let mut delta = Vec::new();
    new.delta_since(old).write_with(ImageOptions::new().segment_bytes(256), &mut delta).unwrap();
    delta
}

/// Checks the file of a delta in all ways.
fn check_delta(version: Version, name: &str, label: &Label) {
    let file = file(version, name);
    let (old, new) = golden_delta();
    let new = new.with_label(label.clone());
    let delta = StateDelta::from_bytes(file.clone()).unwrap();
    assert_eq!((delta.inserts(), delta.updates(), delta.deletes()), (11, 14, 17));
    assert_eq!((delta.timestamp_ns(), delta.label()), (TIMESTAMP_NS + 1, label));
    assert_eq!(delta.base_fingerprint().to_string(), "581967a48ccdf81cf2655fd18034f5b0");
    assert_eq!(delta.result_fingerprint(), new.fingerprint());
    // The base may have any version.
    for base in Version::ALL.map(|version| StateSnapshot::from_bytes(self::file(version, "segments.image")).unwrap()) {
        assert_eq!(base, old);
        let applied = base.apply(&delta).unwrap();
        assert_eq!((applied.to_bytes(), applied.label()), (new.to_bytes(), label));
    }
    assert_eq!(delta, new.delta_since(&old));
    let mut again = Vec::new();
    delta.write_with(ImageOptions::new().segment_bytes(256), &mut again).unwrap();
    assert_eq!(again, delta_image(&old, &new));

    // Read it with the second implementation, too.
    let read = read(&file);
    assert_eq!((read.version, read.kind, read.timestamp_ns), (version, 2, TIMESTAMP_NS + 1));
    assert_eq!(are_aligned(&read), version == Version::Two);
    let value = |value: Option<Bytes>| value.map_or(vec![], |value| value.to_vec());
    assert!(
        new.delta_since(&old)
            .iter()
            .map(|(key, new)| (key.to_vec(), value(new)))
            .eq(read.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())))
    );
    let count = |of: u8| read.entries.iter().filter(|entry| entry.change == of).count();
    assert_eq!((count(1), count(2), count(0)), (11, 14, 17));
    let base = read.base.unwrap();
    assert_eq!(base.fingerprint.to_le_bytes(), old.fingerprint().to_le_bytes());
    assert_eq!(base.result.to_le_bytes(), new.fingerprint().to_le_bytes());
    assert_eq!(read.label, parts_of(label));
    let canonical = Canonical { label: parts_of(label), ..Canonical::new(version, 256, TIMESTAMP_NS + 1) };
    let changes: Vec<_> = read.entries.iter().map(|entry| (&entry.key[..], entry.change, &entry.value[..])).collect();
    assert_eq!(canonical.delta(&changes, base.fingerprint, base.result), file, "{name} is another delta");
}

#[test]
fn golden_deltas_stay_readable_and_canonical() {
    Version::ALL.into_iter().for_each(|version| check_delta(version, DELTA, &Label::new()));
    check_delta(Version::Two, "label.delta", &label());
    let (old, new) = golden_delta();
    assert_eq!(delta_image(&old, &new), file(Version::Two, DELTA), "the delta is written differently now");
    let labelled = delta_image(&old, &new.with_label(label()));
    assert_eq!(labelled, file(Version::Two, "label.delta"), "the delta is written differently now");
}

#[test]
#[ignore = "writes the golden images of the newest version anew, for a new format version only"]
fn write_golden_images() {
    let write = |name: &str, image: &[u8]| fs::write(path(Version::Two, name), image).unwrap();
    for golden in golden() {
        write(golden.name, &image(&golden));
    }
    let (old, new) = golden_delta();
    write(DELTA, &delta_image(&old, &new));
    write("label.delta", &delta_image(&old, &new.with_label(label())));
}
