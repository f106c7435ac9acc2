//! Images of every released format version, kept as files: they stay readable, and equal contents still give these bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use opstate::{ImageOptions, InMemoryStore, KeyGroups, StateDelta, StateSnapshot, StateStore};

struct Golden {
    name: &'static str,
    segment_bytes: usize,
    fingerprint: &'static str,
    /// The number of key groups, for a grouped image; a key's group is told by what comes before its `:`.
    groups: Option<u32>,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// 2025-01-01 00:00:00 UTC.
const TIMESTAMP_NS: u64 = 1_735_689_600_000_000_000;

fn golden() -> Vec<Golden> {
    let bytes = |len: usize, seed: usize| (0..len).map(|i| (i * 31 + seed) as u8).collect::<Vec<u8>>();
    vec![
        Golden {
            name: "v1-empty.image",
            segment_bytes: 65_536,
            fingerprint: "00000000000000000000000000000000",
            groups: None,
            entries: vec![],
        },
        Golden {
            name: "v1-edges.image",
            segment_bytes: 65_536,
            fingerprint: "8a7fadb9b661b1b05ea714720f285025",
            groups: None,
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
            name: "v1-segments.image",
            segment_bytes: 256,
            fingerprint: "581967a48ccdf81cf2655fd18034f5b0",
            groups: None,
            entries: (0..60)
                .map(|i| (format!("key/{i:03}").into_bytes(), bytes(if i % 20 == 7 { 300 } else { i % 13 }, i)))
                .collect(),
        },
        Golden {
            name: "v1-grouped.image",
            segment_bytes: 256,
            fingerprint: "81808f62b8ccdc2dae4b3f091bd8118d",
            groups: Some(8),
            entries: (0..40)
                .map(|i| {
                    let key = format!("user-{:02}:{i:03}", i % 9).into_bytes();
                    (key, bytes(if i % 20 == 7 { 300 } else { i % 13 }, i))
                })
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .collect(),
        },
    ]
}

fn user(key: &[u8]) -> &[u8] {
    key.split(|&byte| byte == b':').next().unwrap_or(key)
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

fn image(golden: &Golden) -> Bytes {
    let mut store = InMemoryStore::new();
    for (key, value) in &golden.entries {
        store.put(key, value).unwrap();
    }
    let mut image = Vec::new();
    let options = ImageOptions::new().segment_bytes(golden.segment_bytes);
    let snapshot = store.snapshot().with_timestamp_ns(TIMESTAMP_NS);
    match golden.groups {
        None => snapshot.write_with(options, &mut image).unwrap(),
        Some(count) => snapshot.write_grouped(KeyGroups::new(count).unwrap(), user, options, &mut image).unwrap(),
    };
    image.into()
}

#[test]
fn golden_images_stay_readable_and_canonical() {
    for golden in golden() {
        let file = fs::read(path(golden.name)).unwrap();
        let opened = StateSnapshot::from_bytes(file.clone()).unwrap();
        assert_eq!(opened.timestamp_ns(), TIMESTAMP_NS);
        assert_eq!(opened.fingerprint().to_string(), golden.fingerprint, "{}", golden.name);
        let entries: Vec<_> = opened.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(entries, golden.entries);
        assert_eq!(StateSnapshot::from_bytes_lazily(file.clone()).unwrap(), opened);
        assert_eq!(image(&golden), file, "{} is written differently now", golden.name);
    }
}

/// From the contents of `v1-segments.image` to others, over several segments, one of which is a blob.
fn golden_delta() -> (StateSnapshot, StateSnapshot, Vec<u8>) {
    let base = golden().into_iter().find(|golden| golden.name == "v1-segments.image").unwrap();
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
    let (old, new) = (snapshot(base.entries), snapshot(entries).with_timestamp_ns(TIMESTAMP_NS + 1));
    let mut delta = Vec::new();
    new.delta_since(&old).write_with(ImageOptions::new().segment_bytes(256), &mut delta).unwrap();
    (old, new, delta)
}

#[test]
fn a_golden_delta_stays_readable_and_canonical() {
    let file = fs::read(path("v1.delta")).unwrap();
    let (old, new, written) = golden_delta();
    let delta = StateDelta::from_bytes(file.clone()).unwrap();
    assert_eq!((delta.inserts(), delta.updates(), delta.deletes()), (11, 14, 17));
    assert_eq!(delta.timestamp_ns(), TIMESTAMP_NS + 1);
    assert_eq!(delta.base_fingerprint().to_string(), "581967a48ccdf81cf2655fd18034f5b0");
    let base = StateSnapshot::from_bytes(fs::read(path("v1-segments.image")).unwrap()).unwrap();
    assert_eq!(base, old);
    let applied = base.apply(&delta).unwrap();
    assert_eq!(applied.to_bytes(), new.to_bytes());
    assert_eq!(written, file, "v1.delta is written differently now");
}

#[test]
#[ignore = "writes the golden images anew, for a new format version only"]
fn write_golden_images() {
    for golden in golden() {
        fs::write(path(golden.name), image(&golden)).unwrap();
    }
    fs::write(path("v1.delta"), golden_delta().2).unwrap();
}
