//! [`ImageInfo`] on damaged and forged images, and the example `inspect`, run as a process.

#![cfg(not(miri))]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use opstate::{
    ImageInfo, ImageKind, ImageOptions, KeyGroups, Label, StateDelta, StateError, StateSnapshot, UnverifiedImage,
};
use tempfile::TempDir;

use crate::support::examples;
use crate::support::layout::{extents, get_u64, seal_parts, set_u64};

/// Files of format 1 of all kinds, with several segments and blobs, and without any.
const GOLDEN: [&str; 5] = ["v1-segments.image", "v1-grouped.image", "v1.delta", "v1-edges.image", "v1-empty.image"];

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(golden_path(name)).unwrap()
}

fn label() -> Label {
    Label::new().operator("dedup").job("clicks").user(vec![1, 2, 3])
}

/// Returns the contents of the golden files of format 1, written again. All have a label, except those named otherwise.
fn written_anew() -> [(&'static str, Vec<u8>); 6] {
    let opened = |name| StateSnapshot::from_bytes(golden(name)).unwrap();
    let options = ImageOptions::new().segment_bytes(256);
    let image = |snapshot: StateSnapshot, options| {
        let mut image = Vec::new();
        snapshot.write_with(options, &mut image).unwrap();
        image
    };
    let segments = opened("v1-segments.image").with_label(label());
    let changed = segments.apply(&StateDelta::from_bytes(golden("v1.delta")).unwrap()).unwrap().with_label(label());
    let (mut grouped, mut delta) = (Vec::new(), Vec::new());
    opened("v1-grouped.image")
        .with_label(label())
        .write_grouped(KeyGroups::new(8).unwrap(), |key| &key[..7], options, &mut grouped)
        .unwrap();
    changed.delta_since(&segments).write_with(options, &mut delta).unwrap();
    [
        ("segments.image", image(segments, options)),
        ("segments-unlabelled.image", image(opened("v1-segments.image"), options)),
        ("grouped.image", grouped),
        (".delta", delta),
        ("edges.image", image(opened("v1-edges.image").with_label(label()), ImageOptions::new())),
        ("empty-unlabelled.image", image(opened("v1-empty.image"), options)),
    ]
}

/// Returns the files of format 1 and of [`written_anew`]. The names of files of format 1 start with `v1`.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    GOLDEN.iter().map(|&name| (name, golden(name))).chain(written_anew()).collect()
}

/// A key and its value, or `None` if it is deleted.
type Change = (Vec<u8>, Option<Vec<u8>>);

/// Returns the contents of a sound file, read by the interface for sound files.
fn contents(file: &[u8]) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let owned = |(key, value): (bytes::Bytes, Option<bytes::Bytes>)| (key.to_vec(), value.map(|value| value.to_vec()));
    match StateSnapshot::from_bytes(file.to_vec()) {
        Ok(snapshot) => snapshot.iter().map(|(key, value)| owned((key, Some(value)))).collect(),
        Err(_) => StateDelta::from_bytes(file.to_vec()).unwrap().iter().map(owned).collect(),
    }
}

/// Returns the entries that [`ImageInfo`] reads, and the number of parts it reports as damaged.
fn survey(info: &ImageInfo) -> (Vec<Change>, usize) {
    let (mut entries, mut damaged) = (Vec::new(), info.damage().len());
    for segment in info.segments() {
        match segment.read() {
            Ok(read) => {
                entries.extend(read.map(|(key, value)| (key.to_vec(), value.map(|value| value.to_vec()))));
            }
            Err(_) => damaged += 1,
        }
    }
    for group in info.groups() {
        match group.open() {
            Ok(info) => {
                let (read, more) = survey(&info);
                entries.extend(read);
                damaged += more;
            }
            Err(_) => damaged += 1,
        }
    }
    (entries, damaged)
}

#[test]
fn a_sound_file_is_told_as_it_is() {
    for (name, file) in files() {
        let contents = contents(&file);
        for info in [ImageInfo::from_bytes(file.clone()), ImageInfo::from_reader(Cursor::new(file.clone()))] {
            let info = info.unwrap();
            let (entries, damaged) = survey(&info);
            assert_eq!(damaged, 0, "{name}: {:?}", info.damage());
            assert_eq!(entries.len(), contents.len());
            assert_eq!(entries.into_iter().collect::<BTreeMap<_, _>>(), contents);
            let totals = info.totals().unwrap();
            assert_eq!(totals.entries, contents.len() as u64);
            assert_eq!(totals.key_bytes, contents.keys().map(|key| key.len() as u64).sum::<u64>());
            let value_bytes: u64 = contents.values().flatten().map(|value| value.len() as u64).sum();
            assert_eq!(totals.value_bytes, value_bytes);
            let version = if name.starts_with("v1") { 1 } else { 2 };
            assert_eq!((info.version(), info.flags(), info.image_bytes()), (version, 0, file.len() as u64));
            let has_label = version == 2 && !name.contains("unlabelled");
            assert_eq!(info.label(), &if has_label { label() } else { Label::new() }, "{name}");
            let footer = info.footer().unwrap();
            assert_eq!((footer.start, footer.end), (get_u64(&file, file.len() - 88), file.len() as u64 - 88));
            if info.kind() == ImageKind::Grouped {
                assert_eq!((info.segments().len(), info.key_groups()), (0, Some(8)));
                assert_eq!(info.groups().len() as u64, totals.parts);
                continue;
            }
            assert_eq!(info.segments().len() as u64, totals.parts);
            let told = info.segments().map(|segment| {
                let start = segment.offset() as usize;
                let mut read = segment.read().unwrap();
                assert_eq!(segment.first_key(), &read.next().unwrap().0[..]);
                assert_eq!(segment.entries() as usize, read.count() + 1);
                (start, start + segment.segment_bytes() as usize)
            });
            assert!(told.eq(extents(&file)));
            let delta = StateDelta::from_bytes(file.clone()).ok();
            assert_eq!(info.kind() == ImageKind::Delta, delta.is_some());
            let ends = delta.map(|delta| {
                let counts = (delta.inserts() as u64, delta.deletes() as u64);
                (delta.base_fingerprint(), delta.result_fingerprint(), counts)
            });
            assert_eq!(info.delta_info().map(|ends| (ends.base, ends.result, (ends.inserts, ends.deletes))), ends);
        }
    }
}

#[test]
fn a_damaged_byte_costs_at_most_its_segment() {
    for (name, file) in files() {
        let contents = contents(&file);
        let (mut told, mut refused) = (0, 0);
        for at in 0..file.len() {
            for bit in [0, 1, 6] {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                let info = match ImageInfo::from_bytes(damaged) {
                    Ok(info) => info,
                    // The damaged byte lies in the magic or in the version.
                    Err(StateError::NotAnImage { .. } | StateError::UnsupportedVersion { .. }) if at < 10 => {
                        refused += 1;
                        continue;
                    }
                    Err(error) => panic!("{name}, byte {at}: {error}"),
                };
                let (entries, problems) = survey(&info);
                for (key, value) in &entries {
                    assert_eq!(contents.get(key), Some(value), "{name}, byte {at}: another entry than was written");
                }
                let lost = contents.len() - entries.len();
                // Zeros between the images of groups belong to none of them. Only `verify` checks them.
                assert!(problems > 0 || (info.kind() == ImageKind::Grouped && lost == 0), "{name}, byte {at}");
                told += 1;
                if info.kind() == ImageKind::Grouped {
                    continue;
                }
                let extents = extents(&file);
                let hit = extents.iter().any(|extent| (extent.0..extent.1).contains(&at));
                let footer = get_u64(&file, file.len() - 88) as usize;
                let is_descriptor = (footer..footer + 40 * extents.len()).contains(&at);
                // The byte lies in the offset or length of the footer, or in the number of segments.
                let is_place = (file.len() - 88..file.len() - 64).contains(&at);
                // The byte lies in the footer's checksum.
                let is_checksum = (file.len() - 24..file.len() - 16).contains(&at);
                if hit {
                    assert_eq!((problems, lost > 0), (1, true), "{name}, byte {at}");
                } else if !is_descriptor && (is_checksum || (footer..file.len() - 88).contains(&at)) {
                    // Only the footer tells the length of a blob.
                    let blobs = contents.values().flatten().filter(|value| value.len() >= 256).count();
                    let has_blobs = !name.ends_with("edges.image");
                    assert_eq!(lost, if has_blobs { blobs } else { 0 }, "{name}, byte {at}");
                } else if !is_descriptor && !is_place {
                    assert_eq!(lost, 0, "{name}, byte {at}: lost although no segment is damaged");
                }
            }
        }
        assert!(told > file.len(), "{name}");
        assert!(refused >= 16, "{name}");
    }
}

#[test]
fn what_is_cut_short_still_tells_what_it_was() {
    for (name, file) in files() {
        let whole = ImageInfo::from_bytes(file.clone()).unwrap();
        for len in 0..file.len() {
            match ImageInfo::from_bytes(file[..len].to_vec()) {
                Err(StateError::Truncated { needed: 120, .. }) => assert!(len < 32, "{name}, {len}"),
                Err(error) => panic!("{name}, {len}: {error}"),
                Ok(info) => {
                    assert!(len >= 32);
                    assert_eq!((info.kind(), info.timestamp_ns()), (whole.kind(), whole.timestamp_ns()));
                    // Other images end within a grouped image. Their trailers are sound except for their position.
                    assert!(!info.damage().is_empty(), "{name}, {len}");
                    assert_eq!(survey(&info).0, []);
                }
            }
        }
    }
}

/// Sets every number of footer, trailer and directory to extremes, with correct checksums.
#[test]
fn a_forged_file_is_an_error_or_well_formed() {
    let mut forged = 0;
    for (_, file) in files() {
        let footer = get_u64(&file, file.len() - 88) as usize;
        for at in (footer..file.len() - 24).step_by(4) {
            for number in [0, 1, 7, 16, 33, 1 << 20, 1 << 32, 1 << 63, u64::MAX - 15, u64::MAX] {
                let mut image = file.clone();
                if at + 8 > image.len() - 8 {
                    continue;
                }
                set_u64(&mut image, at, number);
                seal_parts(&mut image, &[], footer);
                for info in [ImageInfo::from_bytes(image.clone()), ImageInfo::from_reader(Cursor::new(image.clone()))] {
                    let info = info.expect("its header is sound");
                    for segment in info.segments() {
                        let Ok(read) = segment.read() else { continue };
                        let keys: Vec<_> = read.map(|(key, _)| key).collect();
                        assert!(keys.is_sorted_by(|a, b| a < b));
                        assert_eq!(keys.len(), segment.entries() as usize);
                    }
                    survey(&info);
                    forged += 1;
                }
            }
        }
    }
    assert!(forged > 1000);
}

#[test]
fn differences_stop_at_the_first_damage_of_either_side() {
    let image = |skip: u32| {
        let entries = (0..100).filter(|i| i % skip != 1).map(|i| (format!("key-{i:02}"), vec![skip as u8; 5]));
        let mut image = Vec::new();
        let snapshot = StateSnapshot::from_iter(entries);
        snapshot.write_with(ImageOptions::new().segment_bytes(200), &mut image).unwrap();
        (snapshot, image)
    };
    let ((old, old_image), (new, new_image)) = (image(3), image(4));
    let all: Vec<_> = new.diff(&old).collect();
    let lazily = |image: &[u8]| UnverifiedImage::from_reader(Cursor::new(image.to_vec())).unwrap();
    let sound: Result<Vec<_>, _> = lazily(&new_image).diff(&lazily(&old_image)).collect();
    assert_eq!(sound.unwrap(), all);
    for side in [&old_image, &new_image] {
        for (start, end) in extents(side) {
            let mut damaged = side.clone();
            damaged[(start + end) / 2] ^= 1;
            let is_old = std::ptr::eq(side, &old_image);
            let (earlier, later) = if is_old { (&damaged, &new_image) } else { (&old_image, &damaged) };
            let (earlier, later) = (lazily(earlier), lazily(later));
            let mut differences = later.diff(&earlier);
            let before: Vec<_> = differences.by_ref().map_while(Result::ok).collect();
            assert!(differences.next().is_none());
            // Differences are found only for keys that sort before the damage.
            let first_lost = ImageInfo::from_bytes(side.clone()).unwrap();
            let first_lost = first_lost.segments().find(|segment| segment.offset() == start as u64).unwrap();
            let expected: Vec<_> =
                all.iter().filter(|difference| difference.key[..] < *first_lost.first_key()).cloned().collect();
            assert_eq!(before, expected[..before.len()]);
            // The other side's next key may lie before the damage. It cannot be known whether this side lacks that key.
            assert!(expected.len() - before.len() <= 2, "{} of {}", before.len(), expected.len());
        }
    }
}

/// Runs the example in a directory of its own.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    let example = EXAMPLE.get_or_init(|| examples::built("inspect"));
    let Output { status, stdout, stderr } = Command::new(example).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(!stderr.contains("panicked"), "{stderr}");
    (status.code(), stdout, stderr)
}

/// Runs the example on a sound file, and returns its output.
#[track_caller]
fn print(args: &[&str]) -> String {
    let (code, stdout, stderr) = run(args);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    stdout
}

/// Runs the example on a damaged file, and returns its output.
#[track_caller]
fn print_damaged(args: &[&str]) -> String {
    let (code, stdout, stderr) = run(args);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    stdout
}

fn golden_arg(name: &str) -> String {
    golden_path(name).to_str().unwrap().to_owned()
}

fn write(dir: &TempDir, name: &str, bytes: &[u8]) -> String {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Returns `true` if a line contains these words in order, next to each other.
fn has_row(text: &str, words: &[&str]) -> bool {
    text.lines().any(|line| {
        let found: Vec<_> = line.split_whitespace().collect();
        found.windows(words.len()).any(|window| window == words)
    })
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_example_reports_every_kind() {
    let report = print(&[&golden_arg("v1-segments.image")]);
    for row in [
        &["kind", "snapshot"][..],
        &["format", "version", "1,", "flags", "0x0"],
        &["time", "2025-01-01", "00:00:00.000000000", "UTC"],
        &["size", "2.97", "KiB", "(3,039", "bytes)"],
        &["entries", "60:", "420", "B", "of", "keys,", "1.20", "KiB", "of", "values"],
        &["fingerprint", "581967a48ccdf81cf2655fd18034f5b0"],
        &["0", "32", "176", "B", "7", "key/000", "sound"],
        &["8", "2,240", "288", "B", "12", "key/048", "sound"],
        &["key/", "60", "100.0", "%", "1.61", "KiB"],
        &["256", "to", "511", "B", "3", "5.0", "%", "900", "B"],
        &["SOUND:", "all", "of", "it", "was", "verified:", "9", "segments,", "60", "entries"],
    ] {
        assert!(has_row(&report, row), "{row:?} is missing:\n{report}");
    }
    assert!(report.lines().all(|line| line.trim_end() == line && line.len() <= 100), "{report}");

    let report = print(&[&golden_arg("v1-grouped.image")]);
    for row in [
        &["kind", "snapshot", "in", "key", "groups"][..],
        &["key", "groups", "8,", "of", "which", "6", "have", "entries"],
        &["2", "336", "913", "B", "3", "9", "sound"],
        &["1", "2", "368", "112", "B", "3", "user-00:000", "sound"],
        &["10", "segments,", "40", "entries"],
    ] {
        assert!(has_row(&report, row), "{row:?} is missing:\n{report}");
    }

    let report = print(&[&golden_arg("v1.delta")]);
    for row in [
        &["kind", "delta"][..],
        &["11", "inserted,", "14", "updated,", "17", "deleted"],
        &["leads", "from", "581967a48ccdf81cf2655fd18034f5b0"],
        &["(deleted)", "17"],
        &["10", "segments,", "42", "changes"],
    ] {
        assert!(has_row(&report, row), "{row:?} is missing:\n{report}");
    }

    let report = print(&[&golden_arg("v1-empty.image")]);
    assert!(has_row(&report, &["0", "segments,", "0", "entries"]), "{report}");
}

#[test]
fn the_example_shows_the_label_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    for (name, file) in files() {
        let report = print(&[&write(&dir, name, &file)]);
        let version = if name.starts_with("v1") { "1," } else { "2," };
        assert!(has_row(&report, &["format", "version", version, "flags", "0x0"]), "{report}");
        let has_label = version == "2," && !name.contains("unlabelled");
        for row in [&["operator", "dedup"][..], &["job", "clicks"], &["user", "bytes", "3", "B"]] {
            assert_eq!(has_row(&report, row), has_label, "{row:?}:\n{report}");
        }
    }

    // Only parts that are set appear, as text with escapes, cut to the width.
    let label = Label::new().job(format!("a\n{}", "x".repeat(1000)));
    let image = StateSnapshot::from_iter([("key", "value")]).with_label(label).to_bytes();
    let report = print(&[&write(&dir, "job", &image)]);
    assert!(has_row(&report, &["job", &format!("a\\n{}...", "x".repeat(74))]), "{report}");
    assert!(!report.contains("operator") && !report.contains("user bytes"), "{report}");
    assert!(report.lines().all(|line| line.len() <= 100), "{report}");
}

#[test]
fn many_segments_and_prefixes_are_cut_short_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = Vec::new();
    let entries = (0..300).map(|i| (format!("user{:02}/{i:03}", i % 30), vec![0; 100]));
    StateSnapshot::from_iter(entries).write_with(ImageOptions::new().segment_bytes(500), &mut image).unwrap();
    let segments = extents(&image);
    image[segments[50].0 + 20] ^= 1;
    let path = write(&dir, "many.image", &image);
    let rows = |report: &str| report.lines().filter(|line| line.ends_with(" sound")).count();

    let report = print_damaged(&[&path]);
    assert_eq!(rows(&report), 16, "{report}");
    let more = (segments.len() - 17).to_string();
    assert!(has_row(&report, &["and", &more, "more,", "all", "sound;"]), "{report}");
    assert!(report.lines().any(|line| line.trim_start().starts_with("50 ") && line.ends_with("DAMAGED")), "{report}");
    assert!(has_row(&report, &["(18", "others)"]), "{report}");
    assert_eq!(rows(&print_damaged(&[&path, "--segments", "0"])), segments.len() - 1);
    let readable = print_damaged(&["--dump", &path]).lines().count().to_string();
    assert!(has_row(&print_damaged(&[&path, "--prefix-bytes", "4"]), &["user", &readable, "100.0", "%"]));
}

#[test]
fn a_dump_is_the_contents() {
    let dir = tempfile::tempdir().unwrap();
    for (name, file) in files() {
        let dump = print(&["--dump", "--hex", "--width", "0", &write(&dir, name, &file)]);
        let is_delta = StateDelta::from_bytes(file.clone()).is_ok();
        let mut found = BTreeMap::new();
        for line in dump.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let (key, value) = match (&columns[..], is_delta) {
                (["+", key, value], true) | ([key, value], false) => (key, Some(hex(value))),
                (["-", key], true) => (key, None),
                _ => panic!("{line}"),
            };
            assert!(found.insert(hex(key), value).is_none());
        }
        assert_eq!(found, contents(&file), "{name}");
    }
}

#[test]
fn keys_and_values_are_text_with_escapes_cut_to_width() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(500);
    let entries: [(&[u8], &[u8]); 5] = [
        (b"plain key", b"it's \"text\""),
        (b"\x00\x01tab\there\\", "Zürich ✈ \u{202e}".as_bytes()),
        (b"\xff\xfe", b"line\nend"),
        (b"", b""),
        (long.as_bytes(), &[0xAB; 300]),
    ];
    let path =
        write(&dir, "keys.image", &StateSnapshot::from_iter(entries.map(|(k, v)| (k.to_vec(), v.to_vec()))).to_bytes());
    let whole = print(&["--dump", "--width", "0", &path]);
    let expected = format!(
        "\t\n\\x00\\x01tab\\there\\\\\tZürich ✈ \\u{{202e}}\nplain key\tit's \"text\"\n{long}\t{}\n\\xff\\xfe\tline\\nend\n",
        "\\xab".repeat(300)
    );
    assert_eq!(whole, expected);
    let cut = print(&["--dump", "--width", "60", &path]);
    assert!(cut.lines().all(|line| line.chars().count() <= 60), "{cut}");
    let line = cut.lines().find(|line| line.starts_with("xxx")).unwrap();
    assert_eq!(line, format!("{}...  {}...", "x".repeat(25), "\\xab".repeat(6)));
    assert_eq!(print(&["--dump", "--width", "1", &path]).lines().count(), 5);
}

#[test]
fn differences_are_listed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str, entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        write(&dir, name, &StateSnapshot::from_iter(entries).to_bytes())
    };
    let earlier = image("a", &[("gone", "1"), ("same", "2"), ("updated", "3")]);
    let later = image("b", &[("added", ""), ("same", "2"), ("updated", "4")]);
    let (code, stdout, stderr) = run(&["--diff", &earlier, &later, "--width", "0"]);
    assert_eq!((code, &stdout[..]), (Some(0), "+\tadded\t\n-\tgone\t1\n~\tupdated\t3\t4\n"));
    assert_eq!(stderr, "1 inserted, 1 updated, 1 deleted\n");
    let (_, stdout, stderr) = run(&["--diff", &later, &later]);
    assert_eq!((&stdout[..], &stderr[..]), ("", "0 inserted, 0 updated, 0 deleted\n"));

    let (segments, grouped) = (golden_arg("v1-segments.image"), golden_arg("v1-grouped.image"));
    let (code, stdout, stderr) = run(&["--diff", &segments, &grouped]);
    assert_eq!((code, stdout.lines().count()), (Some(0), 100), "{stderr}");
    let (code, _, stderr) = run(&["--diff", &segments, &golden_arg("v1.delta")]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("v1.delta: the image holds a delta, expected a snapshot"), "{stderr}");

    // After damage, the output has the differences before it and the name of the damaged file.
    let mut damaged = golden("v1-segments.image");
    damaged[900] ^= 1;
    let damaged = write(&dir, "damaged.image", &damaged);
    let (code, stdout, stderr) = run(&["--diff", &golden_arg("v1-empty.image"), &damaged, "--width", "0"]);
    assert_eq!((code, stdout.lines().count()), (Some(1), 21), "{stdout}");
    assert!(stderr.contains("damaged.image: the segment at byte 880 has checksum"), "{stderr}");
}

#[test]
fn damage_is_reported_where_it_is_and_the_rest_is_still_listed() {
    let dir = tempfile::tempdir().unwrap();
    // Each row has the file, the damaged byte, the message, and the number of entries still readable.
    for (name, at, said, readable) in [
        ("v1-segments.image", 900, "the segment at byte 880 has checksum", 54),
        ("v1-segments.image", 10, "the header at byte 0 has checksum", 60),
        ("v1-segments.image", 2950, "the footer at byte 2528 has checksum", 57),
        ("v1-segments.image", 2990, "the trailer at byte 2951 has checksum", 60),
        ("v1-segments.image", 3035, "do not end as one", 60),
        ("v1-grouped.image", 900, "key group 2, at byte 336: the segment at byte 512 has checksum", 35),
        ("v1-grouped.image", 50, "key group 0, at byte 32: the header at byte 0 has checksum", 40),
        ("v1-grouped.image", 334, "the key group at byte 32 of the image is malformed: there are other bytes", 40),
        ("v1-grouped.image", 3400, "the footer at byte 3312 has checksum", 40),
        ("v1.delta", 900, "the segment at byte 720 has checksum", 41),
        ("v1.delta", 3000, "the footer at byte 2848 has checksum", 38),
    ] {
        let mut file = golden(name);
        file[at] ^= 1;
        let path = write(&dir, name, &file);
        let (code, report, stderr) = run(&[&path]);
        assert_eq!((code, &stderr[..]), (Some(1), ""), "{name}, byte {at}");
        assert!(report.contains("DAMAGED:") && report.contains(said), "{name}, byte {at}:\n{report}");
        assert!(!report.contains("SOUND"));
        let (code, dump, stderr) = run(&["--dump", &path]);
        assert_eq!((code, dump.lines().count()), (Some(1), readable), "{name}, byte {at}");
        assert!(stderr.contains(said), "{name}, byte {at}: {stderr}");
        let still = format!("{readable} {}", if name == "v1.delta" { "changes" } else { "entries" });
        assert!(report.contains(&format!("with {still} of")), "{name}, byte {at}:\n{report}");
    }
    for (name, len) in [("v1-segments.image", 2000), ("v1.delta", 3454), ("v1-grouped.image", 3700), ("v1.delta", 100)]
    {
        let path = write(&dir, name, &golden(name)[..len]);
        let (code, report, _) = run(&[&path]);
        assert_eq!(code, Some(1), "{name}, {len}");
        assert!(report.contains("no segment can be found") && has_row(&report, &["time", "2025-01-01"]), "{report}");
        let (code, dump, stderr) = run(&["--dump", &path]);
        assert_eq!((code, &dump[..], stderr.lines().count()), (Some(1), "", 1), "{name}, {len}");
    }
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut newer = golden("v1-empty.image");
    newer[8] = 3;
    for (path, said) in [
        (write(&dir, "empty", b""), "is empty; it was never written"),
        (write(&dir, "text", b"some text, and long enough to be an image"), "an image starts with"),
        (write(&dir, "short", &golden("v1.delta")[..20]), "has 20 bytes where at least 120 are needed"),
        (write(&dir, "newer", &newer), "format version 3"),
        (dir.path().to_str().unwrap().to_owned(), "is a directory"),
        (dir.path().join("missing").to_str().unwrap().to_owned(), "cannot open"),
    ] {
        let other = golden_arg("v1-empty.image");
        for args in [&[&path[..]][..], &["--dump", &path], &["--diff", &path, &other], &["--diff", &other, &path]] {
            let (code, stdout, stderr) = run(args);
            assert_eq!((code, &stdout[..]), (Some(1), ""), "{args:?}");
            assert!(stderr.starts_with("error: ") && stderr.contains(said), "{args:?}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&["--dump", "--diff", "a", "b"]).0, Some(2));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let entries = (0..100_000).map(|i| (format!("key-{i}"), "value"));
    let path = write(&dir, "large.image", &StateSnapshot::from_iter(entries).to_bytes());
    let empty = golden_arg("v1-empty.image");
    for args in [&["--dump", &path[..]][..], &["--diff", &empty, &path], &["--segments", "0", &path]] {
        // Make sure that the example is built.
        run(&["--help"]);
        let mut child = Command::new(examples::built("inspect"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert!(output.status.success());
    }
}
