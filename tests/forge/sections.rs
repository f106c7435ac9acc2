//! Sections of a footer: wrong lengths, names and flags, invalid labels, and sections of other builds.

use std::io::Cursor;

use bytes::Bytes;
use opstate::{GroupedImage, Label, StateDelta, StateError, StateSnapshot, UnverifiedImage};
use rkyv::util::AlignedVec;

use crate::support::allocator::allocated_by;
use crate::support::forged::{SOUND_BASE, labelled, sound, sound_changes};
use crate::support::layout::{
    Parts, TRAILER, Version, assemble_grouped_as, assert_lazy_agrees, get_u64, label_content, label_section,
    open_forged, open_forged_delta, seal_parts, section,
};

/// Opens images with these sections in every way, and returns the label or the error of each. `len` overrides the
/// stated length of the sections.
///
/// `names` are the names in the label. The image of a group has the same names.
fn open_with(sections: &[u8], len: Option<u32>, names: [&str; 2]) -> Vec<Result<Label, StateError>> {
    let image = |parts: Parts| Parts { sections: sections.to_vec(), sections_len: len, ..parts }.assemble();
    let mut snapshot = image(Parts::of(Version::Two, &sound()));
    let mut delta = image(Parts { base: Some(SOUND_BASE), ..Parts::of(Version::Two, &sound_changes()) });
    let empty = image(Parts::of(Version::Two, &[]));
    let mut results = vec![
        open_forged(&mut snapshot).map(|snapshot| snapshot.label().clone()),
        open_forged_delta(&mut delta).map(|delta| delta.label().clone()),
    ];
    let names = label_section(names[0].as_bytes(), names[1].as_bytes(), b"");
    let mut part = Parts { sections: names, ..Parts::of(Version::Two, &sound()) }.assemble();
    open_forged(&mut part).unwrap();
    let grouped = assemble_grouped_as(Version::Two, 8, &[(3, part)], sections, len);
    for image in [snapshot, empty, grouped.clone()] {
        assert_lazy_agrees(&image, None);
        results.push(StateSnapshot::from_bytes(image.clone()).map(|snapshot| snapshot.label().clone()));
        results.push(UnverifiedImage::from_bytes(image.clone()).map(|image| image.label().clone()));
        results.push(UnverifiedImage::from_reader(Cursor::new(image)).map(|image| image.label().clone()));
    }
    results.push(GroupedImage::from_bytes(grouped.clone()).map(|image| image.label().clone()));
    results.push(GroupedImage::from_reader(Cursor::new(grouped.clone())).map(|image| image.label().clone()));
    let group = GroupedImage::from_bytes(grouped).and_then(|image| image.group(3));
    results.push(group.map(|snapshot| snapshot.label().clone()));
    results
}

fn assert_broken(sections: &[u8], len: Option<u32>, rule: &str) {
    for result in open_with(sections, len, ["", ""]) {
        let error = result.expect_err(rule);
        let StateError::Malformed { part: "footer", problem, .. } = error else { panic!("{error}") };
        assert_eq!(problem, rule);
    }
}

fn assert_label(sections: &[u8], expected: &Label) {
    for result in open_with(sections, None, [expected.operator_name(), expected.job_name()]) {
        assert_eq!(&result.unwrap(), expected);
    }
}

fn label() -> Label {
    Label::new().operator("dedup").job("clicks").user(vec![0, 0xFF, 7])
}

fn sound_label() -> Vec<u8> {
    label_section(b"dedup", b"clicks", &[0, 0xFF, 7])
}

#[test]
fn a_label_is_read_from_every_kind_of_image() {
    assert_label(&sound_label(), &label());
    assert_label(&[], &Label::new());
    assert_label(&label_section(b"", b"", b"\0"), &Label::new().user(vec![0]));
    assert_label(&label_section("операция".as_bytes(), b"", b""), &Label::new().operator("операция"));
    assert_label(&label_section(b"", &[b'j'; 65_535], b""), &Label::new().job("j".repeat(65_535)));
    // A reader that knows the section ignores the flag that it may be skipped.
    assert_label(&section(b"label", 1, &label_content(b"dedup", b"clicks", &[0, 0xFF, 7])), &label());
    // A label survives being written again.
    let mut image = labelled(&sound(), None);
    let opened = open_forged(&mut image).unwrap();
    assert_eq!(opened.label(), &label());
    assert_eq!(StateSnapshot::from_bytes(opened.to_bytes()).unwrap().label(), &label());
}

#[test]
fn a_group_has_the_names_in_the_label_of_the_whole_and_no_user_bytes() {
    let names = label_section(b"dedup", b"clicks", b"");
    for (part_sections, sections) in [
        (names, vec![]),
        (vec![], sound_label()),
        (sound_label(), sound_label()),
        (label_section(b"join", b"clicks", b""), sound_label()),
    ] {
        let mut part = Parts { sections: part_sections, ..Parts::of(Version::Two, &sound()) }.assemble();
        open_forged(&mut part).unwrap();
        let grouped = assemble_grouped_as(Version::Two, 8, &[(3, part)], &sections, None);
        for error in [
            StateSnapshot::from_bytes(grouped.clone()).unwrap_err(),
            UnverifiedImage::from_bytes(grouped.clone()).unwrap_err(),
            GroupedImage::from_bytes(grouped).unwrap().group(3).unwrap_err(),
        ] {
            let StateError::Malformed { part: "key group", problem, .. } = error else { panic!("{error}") };
            assert_eq!(problem, "its label is not that of the whole image");
        }
    }
}

#[test]
fn lengths_of_sections_are_not_believed() {
    let sections = sound_label();
    let true_len = sections.len() as u32;
    // Bytes before the stated start of the sections belong to the part before them.
    for len in 0..true_len {
        for result in open_with(&sections, Some(len), ["", ""]) {
            assert!(matches!(result, Err(StateError::Malformed { .. })), "{len}: {result:?}");
        }
    }
    // Bytes before the sections are not a section.
    for len in true_len + 1..true_len + 600 {
        for result in open_with(&sections, Some(len), ["", ""]) {
            assert!(result.is_err(), "{len}");
        }
    }
    for len in [10_000, 1 << 20, 1 << 31, u32::MAX - 3, u32::MAX] {
        assert_broken(&sections, Some(len), "there is no room for its sections");
    }
}

#[test]
fn a_footer_without_room_for_the_length_of_its_sections_is_malformed() {
    for len in 0..4 {
        let mut image = Parts::of(Version::Two, &[]).assemble();
        let trailer = image.len() - TRAILER;
        image.drain(trailer - 4 + len..trailer);
        let trailer = image.len() - TRAILER;
        image[trailer + 8] = len as u8;
        seal_parts(&mut image, &[], trailer - len);
        assert_eq!(get_u64(&image, trailer), (trailer - len) as u64);
        assert_lazy_agrees(&image, None);
        let mut grouped = image.clone();
        grouped[10] = 3;
        seal_parts(&mut grouped, &[], trailer - len);
        let mut delta = image.clone();
        delta[10] = 2;
        seal_parts(&mut delta, &[], trailer - len);
        for error in [
            StateSnapshot::from_bytes(image.clone()).unwrap_err(),
            UnverifiedImage::from_bytes(image).unwrap_err(),
            GroupedImage::from_bytes(grouped).unwrap_err(),
            StateDelta::from_bytes(delta).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("there is no room for the length of its sections"), "{text}");
        }
    }
}

#[test]
fn a_section_that_is_cut_short_is_malformed() {
    let sections = [section(b"aside", 1, b"something"), sound_label()].concat();
    let first = sections.len() - sound_label().len();
    for len in 1..sections.len() {
        if len == first {
            assert_label(&sections[..len], &Label::new());
        } else {
            assert_broken(&sections[..len], None, "a section is cut short");
        }
    }
    // Use section lengths that reach beyond the sections.
    for (name_len, content_len) in [(5, u32::MAX), (255, 1), (255, u32::MAX), (0, 24), (6, 18), (5, 19)] {
        let mut sections = sound_label();
        assert_eq!(sections.len(), 6 + 5 + 18);
        sections[0] = name_len;
        sections[2..6].copy_from_slice(&u32::to_le_bytes(content_len));
        assert_broken(&sections, None, "a section is cut short");
    }
}

#[test]
fn unknown_flags_of_a_section_are_malformed() {
    for flags in (2..=255).step_by(2).flat_map(|flags| [flags, flags + 1]) {
        for sections in [section(b"aside", flags, b""), section(b"label", flags, &label_content(b"x", b"", b""))] {
            assert_broken(&sections, None, "the flags of a section are unknown");
        }
    }
}

#[test]
fn names_of_sections_strictly_ascend() {
    let aside = |name: &[u8]| section(name, 1, b"");
    for sections in [
        [sound_label(), sound_label()].concat(),
        [sound_label(), aside(b"labe")].concat(),
        [sound_label(), aside(b"")].concat(),
        [aside(b"zzz"), sound_label()].concat(),
        [aside(b"a"), aside(b"a")].concat(),
        [aside(b""), aside(b"")].concat(),
        [aside(b"b"), aside(b"a")].concat(),
    ] {
        assert_broken(&sections, None, "a section does not sort after the one before it");
    }
}

#[test]
fn a_section_of_another_build_is_named_or_ignored() {
    for name in [&b"codec"[..], b"", b"labe", b"label2", b"zone\n\xFF", &[b'n'; 255]] {
        let content = vec![1; 700];
        let around = |flags: u8| {
            let mut sections = [(&b"label"[..], sound_label()), (name, section(name, flags, &content))];
            sections.sort();
            sections.map(|(_, section)| section).concat()
        };
        assert_label(&around(1), &label());
        assert_label(&section(name, 1, &content), &Label::new());
        for result in open_with(&around(0), None, ["", ""]) {
            let error = result.expect_err("an unknown section");
            let StateError::UnknownSection { name: found } = &error else { panic!("{error}") };
            // Errors show only the start of long names.
            assert_eq!(*found, name[..name.len().min(32)].escape_ascii().to_string());
            let text = error.to_string();
            assert!(text.contains(found) && text.contains("update `opstate`"), "{text}");
        }
    }
    // An ignored section is not kept, because no build writes sections that it does not understand.
    let mut image = Parts { sections: section(b"aside", 1, b"x"), ..Parts::of(Version::Two, &sound()) }.assemble();
    let opened = open_forged(&mut image).unwrap();
    let mut plain = Parts::of(Version::Two, &sound()).assemble();
    let plain = open_forged(&mut plain).unwrap();
    assert_eq!(opened.to_bytes(), plain.to_bytes());
}

#[test]
fn a_label_that_is_none_is_malformed() {
    let sound = label_content(b"dedup", b"clicks", b"");
    let with_lens = |operator: u16, job: u16| {
        let mut content = sound.clone();
        content[..2].copy_from_slice(&operator.to_le_bytes());
        content[2..4].copy_from_slice(&job.to_le_bytes());
        content
    };
    let contents = [
        // Every kind of empty content.
        vec![],
        vec![0],
        vec![0; 3],
        vec![0; 4],
        // Names that are longer than the content.
        with_lens(12, 0),
        with_lens(0, 12),
        with_lens(5, 7),
        with_lens(6, 6),
        with_lens(u16::MAX, 0),
        with_lens(5, u16::MAX),
        with_lens(u16::MAX, u16::MAX),
        sound[..sound.len() - 1].to_vec(),
        // Invalid UTF-8, and UTF-8 that is cut between the two names.
        label_content(b"\xFF", b"job", b""),
        label_content(b"operator", b"\xC3\x28", b""),
        label_content(b"\xED\xA0\x80", b"", b""),
        label_content(b"\xC3", b"\xBC", b""),
        // More user bytes than the limit.
        label_content(b"dedup", b"", &vec![7; Label::MAX_USER_LEN + 1]),
    ];
    for content in contents {
        assert_broken(&section(b"label", 0, &content), None, "the label is not laid out as one");
    }
    let longest = vec![7; Label::MAX_USER_LEN];
    assert_label(&label_section(b"", b"", &longest), &Label::new().user(longest));
    // The user's bytes need not be text.
    assert_label(&label_section(b"", b"j", b"\xFF\xC3"), &Label::new().job("j").user(vec![0xFF, 0xC3]));
}

#[test]
fn a_label_is_copied_once_and_what_is_ignored_is_not() {
    let sections = |name: &[u8], content: &[u8]| {
        Parts { sections: section(name, 1, content), ..Parts::of(Version::Two, &[]) }.assemble()
    };
    let content = label_content(b"dedup", b"", &vec![7; 1 << 20]);
    for (image, allowed) in [(sections(b"aside", &content), 1024), (sections(b"label", &content), (1 << 20) + 1024)] {
        let mut aligned: AlignedVec = AlignedVec::new();
        aligned.extend_from_slice(&image);
        let owned = Bytes::from_owner(aligned);
        let (result, allocated) = allocated_by(|| StateSnapshot::from_bytes(owned));
        result.unwrap();
        assert!(allocated.peak_bytes <= allowed, "{} of {allowed}", allocated.peak_bytes);
    }
}
