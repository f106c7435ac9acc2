//! Second implementation of the image format, written from its description alone, for both versions. It takes images
//! apart, and assembles any parts with correct checksums, as a forger could.

mod canonical;
mod checks;
mod reader;

use std::ops::Range;

use rkyv::rancor;
use twox_hash::{XxHash3_64, XxHash3_128};

pub(crate) use canonical::Canonical;
pub(crate) use checks::{
    assert_lazy_agrees, assert_well_formed, assert_well_formed_delta, is_aligned, open_forged, open_forged_delta,
};
pub(crate) use reader::{Read, read};

pub(crate) const HEADER: usize = 32;
pub(crate) const DESCRIPTOR: usize = 40;
pub(crate) const TRAILER: usize = 88;
pub(crate) const BASE: usize = 48;
/// Length of a directory entry of a grouped image.
pub(crate) const DIRECTORY_ENTRY: usize = 64;

/// A version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Version 1: values follow each other without zeros, and footers have no sections.
    One = 1,
    /// Version 2: values are aligned, and footers have sections.
    Two = 2,
}

impl Version {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Two];

    /// Returns a segment's columns with these entries.
    fn columns(self, entries: &[(&[u8], &[u8])]) -> Columns {
        let mut columns = Columns::default();
        for (key, value) in entries {
            columns.keys.extend_from_slice(key);
            if self == Self::Two && !value.is_empty() {
                pad(&mut columns.values);
            }
            columns.values.extend_from_slice(value);
            columns.key_ends.push(columns.keys.len() as u32);
            columns.value_ends.push(columns.values.len() as u32);
        }
        columns
    }

    /// Returns the ranges of the values in a column with these ends.
    fn values(self, ends: &[u32]) -> Vec<Range<usize>> {
        let mut before = 0;
        let range = |&end: &u32| {
            let end = end as usize;
            let start = match self {
                Self::Two if end != before => before.next_multiple_of(16),
                _ => before,
            };
            before = end;
            start..end
        };
        ends.iter().map(range).collect()
    }

    /// Returns a segment of a snapshot.
    pub(crate) fn segment(self, entries: &[(&[u8], &[u8])]) -> Segment {
        let first_key = entries.first().map_or(vec![], |(key, _)| key.to_vec());
        let (columns, entries) = (self.columns(entries), entries.len() as u32);
        let (changes, blob, in_front, codec, reserved) = (vec![], vec![], 0, 0, [0; 5]);
        Segment { columns, changes, blob, entries, first_key, in_front, codec, reserved }
    }

    /// Returns a segment of a delta.
    pub(crate) fn changes(self, changes: &[(&[u8], u8, &[u8])]) -> Segment {
        let entries: Vec<_> = changes.iter().map(|&(key, _, value)| (key, value)).collect();
        Segment { changes: changes.iter().map(|&(_, change, _)| change).collect(), ..self.segment(&entries) }
    }
}

/// A segment's columns, as rkyv archives them.
#[derive(rkyv::Archive, rkyv::Serialize, Clone, Default)]
pub(crate) struct Columns {
    pub(crate) values: Vec<u8>,
    pub(crate) value_ends: Vec<u32>,
    pub(crate) keys: Vec<u8>,
    pub(crate) key_ends: Vec<u32>,
}

/// The columns of a delta's segment.
#[derive(rkyv::Archive, rkyv::Serialize, Clone, Default)]
struct ChangeColumns {
    entries: Columns,
    changes: Vec<u8>,
}

/// Columns with bytes in front of them. Readers are not affected, because they look for the root at the end.
#[derive(rkyv::Archive, rkyv::Serialize)]
struct Behind<T> {
    in_front: Vec<u8>,
    columns: T,
}

/// Fields of a delta's footer before its sections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) fingerprint: u128,
    pub(crate) result: u128,
    pub(crate) inserts: u64,
    pub(crate) deletes: u64,
}

/// A segment and every field of its descriptor, which tests may forge.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) columns: Columns,
    /// Changes of a delta: 0 for deleted, 1 for inserted, 2 for updated.
    pub(crate) changes: Vec<u8>,
    pub(crate) blob: Vec<u8>,
    pub(crate) entries: u32,
    pub(crate) first_key: Vec<u8>,
    /// Number of bytes of the archive before its values.
    pub(crate) in_front: usize,
    pub(crate) codec: u8,
    pub(crate) reserved: [u8; 5],
}

impl Segment {
    pub(crate) fn of(entries: &[(&[u8], &[u8])]) -> Self {
        Version::Two.segment(entries)
    }

    /// Returns a segment of a delta.
    pub(crate) fn of_changes(changes: &[(&[u8], u8, &[u8])]) -> Self {
        Version::Two.changes(changes)
    }

    pub(crate) fn with_blob(key: &[u8], value: &[u8]) -> Self {
        Self { blob: value.to_vec(), ..Self::of(&[(key, b"")]) }
    }

    fn archive(&self, is_delta: bool) -> Vec<u8> {
        let Self { columns, changes, in_front, .. } = self.clone();
        let in_front = vec![0; in_front];
        let archive = match (is_delta, in_front.is_empty()) {
            (false, true) => rkyv::to_bytes::<rancor::Error>(&columns),
            (false, false) => rkyv::to_bytes(&Behind { in_front, columns }),
            (true, true) => rkyv::to_bytes(&ChangeColumns { entries: columns, changes }),
            (true, false) => rkyv::to_bytes(&Behind { in_front, columns: ChangeColumns { entries: columns, changes } }),
        };
        archive.unwrap().to_vec()
    }
}

/// Appends zeros up to a multiple of 16.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
}

pub(crate) fn set_u64(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Returns the hash of an entry. The fingerprint is the sum over all entries.
fn hash_entry(key: &[u8], value: &[u8]) -> u128 {
    XxHash3_128::oneshot(&[&(key.len() as u32).to_le_bytes(), key, value].concat())
}

/// Returns a section of a footer.
pub(crate) fn section(name: &[u8], flags: u8, content: &[u8]) -> Vec<u8> {
    [&[name.len() as u8, flags], &(content.len() as u32).to_le_bytes()[..], name, content].concat()
}

/// Returns the section of a label, or nothing for an empty one.
pub(crate) fn label_section(operator: &[u8], job: &[u8], user: &[u8]) -> Vec<u8> {
    if operator.is_empty() && job.is_empty() && user.is_empty() {
        return vec![];
    }
    section(b"label", 0, &label_content(operator, job, user))
}

pub(crate) fn label_content(operator: &[u8], job: &[u8], user: &[u8]) -> Vec<u8> {
    let len = |name: &[u8]| (name.len() as u16).to_le_bytes();
    [&len(operator), &len(job), operator, job, user].concat()
}

/// All parts of an image.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) version: Version,
    pub(crate) timestamp_ns: u64,
    pub(crate) segments: Vec<Segment>,
    /// The base, if the image is a delta.
    pub(crate) base: Option<Base>,
    pub(crate) fingerprint: u128,
    /// Sections of the footer, with an optional false length.
    pub(crate) sections: Vec<u8>,
    pub(crate) sections_len: Option<u32>,
}

impl Parts {
    pub(crate) fn of(version: Version, segments: &[Segment]) -> Self {
        let (timestamp_ns, base, fingerprint, sections, sections_len) = (0, None, 0, vec![], None);
        Self { version, timestamp_ns, segments: segments.to_vec(), base, fingerprint, sections, sections_len }
    }

    /// Assembles the image with correct sums and checksums.
    pub(crate) fn assemble(&self) -> Vec<u8> {
        let Self { version, segments, base, .. } = self;
        let mut image = header(*version, if base.is_some() { 2 } else { 1 }, self.timestamp_ns);
        let (mut descriptors, mut first_keys) = (Vec::new(), Vec::new());
        let (mut entries, mut key_bytes, mut value_bytes) = (0, 0, 0);
        for segment in segments {
            let archive = segment.archive(base.is_some());
            let offset = image.len();
            image.extend_from_slice(&archive);
            pad(&mut image);
            image.extend_from_slice(&segment.blob);
            pad(&mut image);

            let mut descriptor = [0; DESCRIPTOR];
            set_u64(&mut descriptor, 0, offset as u64);
            set_u64(&mut descriptor, 16, segment.blob.len() as u64);
            descriptor[24..28].copy_from_slice(&(archive.len() as u32).to_le_bytes());
            descriptor[28..32].copy_from_slice(&segment.entries.to_le_bytes());
            descriptor[32..34].copy_from_slice(&(segment.first_key.len() as u16).to_le_bytes());
            descriptor[34] = segment.codec;
            descriptor[35..].copy_from_slice(&segment.reserved);
            descriptors.extend_from_slice(&descriptor);
            first_keys.extend_from_slice(&segment.first_key);
            entries += u64::from(segment.entries);
            key_bytes += segment.columns.keys.len() as u64;
            let values = version.values(&segment.columns.value_ends);
            value_bytes += (values.iter().map(Range::len).sum::<usize>() + segment.blob.len()) as u64;
        }
        let mut footer = [descriptors, first_keys].concat();
        if let Some(base) = base {
            footer.extend_from_slice(&base.fingerprint.to_le_bytes());
            footer.extend_from_slice(&base.result.to_le_bytes());
            footer.extend_from_slice(&base.inserts.to_le_bytes());
            footer.extend_from_slice(&base.deletes.to_le_bytes());
        }
        footer.extend_from_slice(&sections(*version, &self.sections, self.sections_len));
        finish(image, &footer, [segments.len() as u64, entries, key_bytes, value_bytes], self.fingerprint)
    }
}

fn header(version: Version, kind: u8, timestamp_ns: u64) -> Vec<u8> {
    let mut header = b"\x89OPST8\r\n".to_vec();
    header.extend_from_slice(&[version as u8, 0, kind, 0, 0, 0, 0, 0]);
    header.extend_from_slice(&timestamp_ns.to_le_bytes());
    header.resize(HEADER, 0);
    header
}

/// Returns the sections as they end a footer.
fn sections(version: Version, sections: &[u8], len: Option<u32>) -> Vec<u8> {
    match version {
        Version::One => vec![],
        Version::Two => [sections, &len.unwrap_or(sections.len() as u32).to_le_bytes()].concat(),
    }
}

/// Appends footer and trailer, and computes every checksum.
fn finish(mut image: Vec<u8>, footer: &[u8], sums: [u64; 4], fingerprint: u128) -> Vec<u8> {
    let mut trailer = [0; TRAILER];
    let footer_offset = image.len();
    let numbers = [footer_offset as u64, footer.len() as u64].into_iter().chain(sums);
    for (index, number) in numbers.enumerate() {
        set_u64(&mut trailer, 8 * index, number);
    }
    trailer[48..64].copy_from_slice(&fingerprint.to_le_bytes());
    trailer[80..].copy_from_slice(b"OPST8END");
    image.extend_from_slice(footer);
    image.extend_from_slice(&trailer);
    let extents = if image[10] == 3 { vec![] } else { extents(&image) };
    seal_parts(&mut image, &extents, footer_offset);
    image
}

/// Assembles an image with correct sums and checksums, but with a fingerprint of 0.
pub(crate) fn assemble(segments: &[Segment]) -> Vec<u8> {
    assemble_as(segments, None)
}

/// Assembles an image like [`assemble`]. With a base, the image is a delta.
pub(crate) fn assemble_as(segments: &[Segment], base: Option<Base>) -> Vec<u8> {
    Parts { base, ..Parts::of(Version::Two, segments) }.assemble()
}

/// Assembles a grouped image from complete images of groups, with correct sums and checksums.
pub(crate) fn assemble_grouped(count: u64, parts: &[(u32, Vec<u8>)]) -> Vec<u8> {
    assemble_grouped_as(Version::Two, count, parts, &[], None)
}

/// Assembles a grouped image like [`assemble_grouped`], in any version, with sections and an optional false length.
pub(crate) fn assemble_grouped_as(
    version: Version,
    count: u64,
    parts: &[(u32, Vec<u8>)],
    said_sections: &[u8],
    sections_len: Option<u32>,
) -> Vec<u8> {
    let timestamp_ns = parts.first().map_or(0, |(_, part)| get_u64(part, 16));
    let mut image = header(version, 3, timestamp_ns);
    let mut directory = count.to_le_bytes().to_vec();
    let mut sums = [parts.len() as u64, 0, 0, 0];
    let mut fingerprint = 0_u128;
    for (group, part) in parts {
        let trailer = &part[part.len() - TRAILER..];
        let mut entry = [0; DIRECTORY_ENTRY];
        set_u64(&mut entry, 0, image.len() as u64);
        set_u64(&mut entry, 8, part.len() as u64);
        for (index, sum) in sums[1..].iter_mut().enumerate() {
            let number = get_u64(trailer, 24 + 8 * index);
            set_u64(&mut entry, 16 + 8 * index, number);
            *sum += number;
        }
        entry[40..56].copy_from_slice(&trailer[48..64]);
        fingerprint = fingerprint.wrapping_add(u128::from_le_bytes(trailer[48..64].try_into().unwrap()));
        entry[56..60].copy_from_slice(&group.to_le_bytes());
        directory.extend_from_slice(&entry);
        image.extend_from_slice(part);
        pad(&mut image);
    }
    directory.extend_from_slice(&sections(version, said_sections, sections_len));
    finish(image, &directory, sums, fingerprint)
}

/// Returns the positions of the segments according to the descriptors of a sound image.
pub(crate) fn extents(image: &[u8]) -> Vec<(usize, usize)> {
    let trailer = &image[image.len() - TRAILER..];
    let (footer, count) = (get_u64(trailer, 0) as usize, get_u64(trailer, 16) as usize);
    let starts = (0..count).map(|i| get_u64(image, footer + i * DESCRIPTOR) as usize);
    let ends = starts.clone().skip(1).chain([footer]);
    starts.zip(ends).collect()
}

/// Recomputes every checksum. The parts must lie where a sound image has them.
pub(crate) fn seal(image: &mut [u8]) {
    let end = image.len();
    let trailer = end - TRAILER;
    let footer = get_u64(image, trailer) as usize;
    seal_parts(image, &extents(image), footer);
}

/// Recomputes every checksum like [`seal`], but takes the positions of the parts as arguments. Use it if the image
/// states false positions.
pub(crate) fn seal_parts(image: &mut [u8], extents: &[(usize, usize)], footer: usize) {
    let trailer = image.len() - TRAILER;
    let header_sum = XxHash3_64::oneshot(&image[..24]);
    set_u64(image, 24, header_sum);
    for (index, &(start, end)) in extents.iter().enumerate() {
        let sum = XxHash3_64::oneshot(&image[start..end]);
        set_u64(image, footer + index * DESCRIPTOR + 8, sum);
    }
    let footer_sum = XxHash3_64::oneshot(&image[footer..trailer]);
    set_u64(image, trailer + 64, footer_sum);
    seal_trailer(image);
}

fn seal_trailer(image: &mut [u8]) {
    let trailer = image.len() - TRAILER;
    let sum = XxHash3_64::oneshot(&[&image[..HEADER], &image[trailer..trailer + 72]].concat());
    set_u64(image, trailer + 72, sum);
}
