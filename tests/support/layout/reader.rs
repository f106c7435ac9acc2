//! Reader of images that is independent of the library. It is for sound images, and panics at a broken rule.

use std::ops::Range;

use rkyv::rancor;
use rkyv::util::AlignedVec;
use twox_hash::XxHash3_64;

use super::{
    ArchivedChangeColumns, ArchivedColumns, BASE, Base, DESCRIPTOR, DIRECTORY_ENTRY, HEADER, TRAILER, Version, get_u64,
    hash_entry,
};

/// A key or change as it lies in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// Kind of change in a delta: 0 for deleted, 1 for inserted, 2 for updated. In other images it is 1.
    pub(crate) change: u8,
    pub(crate) value: Vec<u8>,
    /// Offset of the value in the image.
    pub(crate) offset: usize,
}

/// All contents of an image.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) version: Version,
    /// Kind of the image: 1 for a snapshot, 2 for a delta, 3 for key groups.
    pub(crate) kind: u8,
    pub(crate) timestamp_ns: u64,
    pub(crate) fingerprint: u128,
    /// Entries in the order of keys.
    pub(crate) entries: Vec<Entry>,
    /// The base, if the image is a delta.
    pub(crate) base: Option<Base>,
    /// Names of operator and job, and the user's bytes.
    pub(crate) label: [Vec<u8>; 3],
    /// Number of key groups, and the numbers of the groups that have an image.
    pub(crate) groups: (u64, Vec<u32>),
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn get_u16(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

fn get_u128(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes[at..at + 16].try_into().unwrap())
}

fn assert_zeros(bytes: &[u8]) {
    assert!(bytes.iter().all(|&byte| byte == 0), "what is said to be zeros is zeros");
}

/// Reads an image of any kind and version.
pub(crate) fn read(image: &[u8]) -> Read {
    assert_eq!(&image[..8], b"\x89OPST8\r\n");
    let version = match get_u16(image, 8) {
        1 => Version::One,
        2 => Version::Two,
        other => panic!("version {other}"),
    };
    let kind = image[10];
    assert!((1..=3).contains(&kind));
    assert_zeros(&image[11..16]);
    let timestamp_ns = get_u64(image, 16);
    assert_eq!(get_u64(image, 24), XxHash3_64::oneshot(&image[..24]));

    let trailer_offset = image.len() - TRAILER;
    let trailer = &image[trailer_offset..];
    assert_eq!(&trailer[80..], b"OPST8END");
    assert_eq!(get_u64(trailer, 72), XxHash3_64::oneshot(&[&image[..HEADER], &trailer[..72]].concat()));
    let footer_offset = get_u64(trailer, 0) as usize;
    assert_eq!(footer_offset + get_u64(trailer, 8) as usize, trailer_offset);
    let footer = &image[footer_offset..trailer_offset];
    assert_eq!(get_u64(trailer, 64), XxHash3_64::oneshot(footer));
    let segments = get_u64(trailer, 16) as usize;
    let fingerprint = get_u128(trailer, 48);

    let (footer, label) = match version {
        Version::One => (footer, Default::default()),
        Version::Two => {
            let (footer, len) = footer.split_at(footer.len() - 4);
            let (footer, sections) = footer.split_at(footer.len() - get_u32(len, 0) as usize);
            (footer, read_sections(sections))
        }
    };
    let (footer, base) = footer.split_at(footer.len() - if kind == 2 { BASE } else { 0 });
    let base = (kind == 2).then(|| Base {
        fingerprint: get_u128(base, 0),
        result: get_u128(base, 16),
        inserts: get_u64(base, 32),
        deletes: get_u64(base, 40),
    });

    let mut read = Read { version, kind, timestamp_ns, fingerprint, entries: vec![], base, label, groups: (0, vec![]) };
    if kind == 3 {
        read_groups(&mut read, image, footer, footer_offset, segments);
    } else {
        let body = Body { version, is_delta: kind == 2, bytes: &image[..footer_offset] };
        body.read_segments(footer, segments, &mut read.entries);
    }

    let entries = &read.entries;
    assert!(entries.is_sorted_by(|a, b| a.key < b.key), "keys strictly ascend");
    let sum = |len: fn(&Entry) -> usize| entries.iter().map(len).sum::<usize>() as u64;
    assert_eq!(get_u64(trailer, 24), entries.len() as u64);
    assert_eq!(get_u64(trailer, 32), sum(|entry| entry.key.len()));
    assert_eq!(get_u64(trailer, 40), sum(|entry| entry.value.len()));
    let there = entries.iter().filter(|entry| entry.change != 0);
    assert_eq!(fingerprint, there.fold(0, |sum: u128, entry| sum.wrapping_add(hash_entry(&entry.key, &entry.value))));
    if let Some(base) = read.base {
        let count = |of: u8| entries.iter().filter(|entry| entry.change == of).count() as u64;
        assert_eq!((base.inserts, base.deletes), (count(1), count(0)));
        if base.inserts == entries.len() as u64 {
            assert_eq!(base.fingerprint.wrapping_add(fingerprint), base.result);
        }
    }
    read
}

/// Reads sections. A reader of this version knows only the label.
fn read_sections(mut sections: &[u8]) -> [Vec<u8>; 3] {
    let mut label = Default::default();
    let mut last: Option<&[u8]> = None;
    while !sections.is_empty() {
        let (name_len, flags, content_len) = (sections[0], sections[1], get_u32(sections, 2) as usize);
        assert_eq!(flags & !1, 0);
        let (name, rest) = sections[6..].split_at(name_len.into());
        let (content, rest) = rest.split_at(content_len);
        assert!(last.is_none_or(|last| last < name), "names strictly ascend");
        (sections, last) = (rest, Some(name));
        if name == b"label" {
            let (operator, job) = (get_u16(content, 0), get_u16(content, 2));
            let (operator, rest) = content[4..].split_at(operator);
            let (job, user) = rest.split_at(job);
            assert!(content.len() > 4, "an empty label has no section");
            assert!(std::str::from_utf8(operator).is_ok() && std::str::from_utf8(job).is_ok());
            label = [operator.to_vec(), job.to_vec(), user.to_vec()];
        } else {
            assert_eq!(flags, 1, "the section {name:?}");
        }
    }
    label
}

/// Reads the directory of a grouped image, and the images.
fn read_groups(read: &mut Read, image: &[u8], directory: &[u8], footer_offset: usize, images: usize) {
    assert_eq!(directory.len(), 8 + images * DIRECTORY_ENTRY);
    read.groups.0 = get_u64(directory, 0);
    let mut end = HEADER;
    for entry in directory[8..].chunks_exact(DIRECTORY_ENTRY) {
        let (offset, len, group) = (get_u64(entry, 0) as usize, get_u64(entry, 8) as usize, get_u32(entry, 56));
        assert_eq!(offset, end);
        end = (offset + len).next_multiple_of(16);
        assert_zeros(&image[offset + len..end]);
        assert_zeros(&entry[60..]);
        assert!(u64::from(group) < read.groups.0 && read.groups.1.last().is_none_or(|&last| last < group));
        read.groups.1.push(group);

        let part = super::read(&image[offset..offset + len]);
        assert_eq!((part.kind, part.timestamp_ns), (1, read.timestamp_ns));
        let [operator, job, _] = read.label.clone();
        let label = [operator, job, vec![]];
        assert_eq!((part.version, part.label), (read.version, label), "every image has the names of the whole");
        assert!(!part.entries.is_empty());
        // The directory and the image's own trailer must agree.
        assert_eq!(entry[16..40], image[offset + len - TRAILER + 24..][..24]);
        assert_eq!(get_u128(entry, 40), part.fingerprint);
        let moved = part.entries.into_iter().map(|entry| Entry { offset: entry.offset + offset, ..entry });
        read.entries.extend(moved);
    }
    assert_eq!(end, footer_offset);
    read.entries.sort_by(|a, b| a.key.cmp(&b.key));
}

/// The part of an image before its footer.
struct Body<'a> {
    version: Version,
    is_delta: bool,
    bytes: &'a [u8],
}

impl Body<'_> {
    /// Reads all segments. The footer has their descriptors and first keys.
    fn read_segments(&self, footer: &[u8], count: usize, entries: &mut Vec<Entry>) {
        let (descriptors, mut first_keys) = footer.split_at(count * DESCRIPTOR);
        let mut end = HEADER;
        for descriptor in descriptors.chunks_exact(DESCRIPTOR) {
            let (offset, checksum, blob_len) =
                (get_u64(descriptor, 0) as usize, get_u64(descriptor, 8), get_u64(descriptor, 16) as usize);
            let (archive_len, count) = (get_u32(descriptor, 24) as usize, get_u32(descriptor, 28) as usize);
            let (first_key, rest) = first_keys.split_at(get_u16(descriptor, 32));
            first_keys = rest;
            assert_zeros(&descriptor[34..]);
            assert_eq!(offset, end, "segments follow each other");
            let blob = (offset + archive_len).next_multiple_of(16);
            let blob = blob..blob + blob_len;
            end = blob.end.next_multiple_of(16);
            assert_eq!(checksum, XxHash3_64::oneshot(&self.bytes[offset..end]));
            assert_zeros(&self.bytes[offset + archive_len..blob.start]);
            assert_zeros(&self.bytes[blob.end..end]);

            let first = entries.len();
            self.read_segment(offset, archive_len, entries);
            assert_eq!(entries.len() - first, count);
            assert!(count > 0);
            assert_eq!(entries[first].key, first_key);
            if blob_len > 0 {
                assert!(count == 1 && entries[first].value.is_empty());
                entries[first].value = self.bytes[blob.clone()].to_vec();
                entries[first].offset = blob.start;
            }
        }
        assert_eq!((end, first_keys.len()), (self.bytes.len(), 0));
    }

    fn read_segment(&self, offset: usize, len: usize, entries: &mut Vec<Entry>) {
        let mut archive: AlignedVec = AlignedVec::new();
        archive.extend_from_slice(&self.bytes[offset..offset + len]);
        let (columns, changes) = if self.is_delta {
            let columns = rkyv::access::<ArchivedChangeColumns, rancor::Error>(&archive).unwrap();
            (&columns.entries, columns.changes.as_slice())
        } else {
            (rkyv::access::<ArchivedColumns, rancor::Error>(&archive).unwrap(), &[][..])
        };
        let native = |ends: &[rkyv::primitive::ArchivedU32]| ends.iter().map(|end| end.to_native()).collect::<Vec<_>>();
        let (key_ends, value_ends) = (native(&columns.key_ends), native(&columns.value_ends));
        assert_eq!(key_ends.len(), value_ends.len());
        assert_eq!(key_ends.last().copied().unwrap_or(0) as usize, columns.keys.len());
        assert_eq!(value_ends.last().copied().unwrap_or(0) as usize, columns.values.len());
        assert!(key_ends.is_sorted() && value_ends.is_sorted());
        assert_eq!(changes.len(), if self.is_delta { key_ends.len() } else { 0 });

        let values =
            if columns.values.is_empty() { 0 } else { columns.values.as_ptr().addr() - archive.as_ptr().addr() };
        let keys = Version::One.values(&key_ends);
        let ranges = self.version.values(&value_ends);
        if self.version == Version::Two {
            assert_eq!(values % 16, 0, "the column of values starts at a multiple of 16");
            let mut end = 0;
            for range in &ranges {
                let Range { start, end: next } = range.clone();
                assert!(start % 16 == 0 || range.is_empty());
                assert_zeros(&columns.values[end..start]);
                end = next;
            }
        }
        for (index, (key, value)) in keys.into_iter().zip(ranges).enumerate() {
            let change = changes.get(index).copied().unwrap_or(1);
            assert!(change <= 2 && (change != 0 || value.is_empty()));
            entries.push(Entry {
                key: columns.keys[key].to_vec(),
                change,
                offset: offset + values + value.start,
                value: columns.values[value].to_vec(),
            });
        }
    }
}
