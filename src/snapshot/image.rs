//! [`Image`]: an opened image, which answers from its bytes as they are.
//!
//! # Design
//!
//! Opening verifies everything that `format.rs` lists and keeps, for each segment, where its columns start. After that
//! all reading is slicing of the bytes, checked like any slicing; rkyv is not asked again.
//!
//! # Invariants
//!
//! 1. `bytes` is an image that passed every rule of `format.rs`; `segments` are its segments, in order.
//! 2. Hence every end in a column lies within that column, no segment is empty, and keys strictly ascend.

use std::any::Any;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use super::format::{
    ALIGNMENT, Base, Descriptor, FooterParts, Header, Kind, Trailer, checksums_are_ignored, rule, verify_checksum,
};
use super::segment::{ChangeKind, ColumnOffsets, value_start};
use super::{Fingerprint, Label, Source};
use crate::aligned::{VALUE_ALIGNMENT, aligned};
use crate::bounds::{ALL_KEYS, KeyBounds, is_before_end, is_before_start, is_inverted};
use crate::{MAX_KEY_LEN, MAX_VALUE_LEN, StateError, TryScan};

pub(super) struct Image {
    bytes: Bytes,
    segments: Vec<Segment>,
    len: usize,
    size_bytes: usize,
}

/// Where the parts of one segment start, in bytes from the start of the image, or of the segment where it stands alone.
pub(super) struct Segment {
    pub(super) entries: usize,
    keys: usize,
    key_ends: usize,
    values: usize,
    value_ends: usize,
    /// `true` if values start at multiples of 16, as since format 2.
    is_aligned: bool,
    /// Nowhere but in a delta.
    changes: usize,
    blob: Range<usize>,
}

/// An entry's place. The end of the image is index 0 of the segment after the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    segment: usize,
    index: usize,
}

impl Image {
    /// Opens and verifies an image, and returns what it says besides its entries.
    pub(super) fn open(bytes: Bytes) -> Result<(Self, Verified), StateError> {
        Self::open_as(Kind::Snapshot, bytes)
    }

    /// Opens and verifies the image of a delta: its entries are [`changes`](Self::changes). Returns what it says besides
    /// them, and of its base.
    pub(super) fn open_delta(bytes: Bytes) -> Result<(Self, Verified, Base), StateError> {
        let (image, verified) = Self::open_as(Kind::Delta, bytes)?;
        let base = verified.base.expect("every delta has a base, or it is not verified");
        Ok((image, verified, base))
    }

    fn open_as(kind: Kind, bytes: Bytes) -> Result<(Self, Verified), StateError> {
        let header = Header::read(&bytes)?;
        header.expect_kind(kind)?;
        let trailer = Trailer::read(&bytes)?;
        let bytes = align(bytes);
        let (segments, verified) = Verifier::new(header, &bytes).verify(&trailer)?;
        // Both fit: they count entries and bytes that are in memory.
        let len = trailer.entries as usize;
        let size_bytes = (trailer.key_bytes + trailer.value_bytes) as usize;
        Ok((Self { bytes, segments, len, size_bytes }, verified))
    }

    /// The changes of a delta, in order: key, what became of it, new value.
    pub(super) fn changes(&self) -> impl Iterator<Item = (Range<usize>, ChangeKind, Range<usize>)> + '_ {
        self.positions(ALL_KEYS).map(|at| {
            let (key, value) = self.entry(at);
            (key, self.segments[at.segment].change(&self.bytes, at.index), value)
        })
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn entry(&self, at: Position) -> (Range<usize>, Range<usize>) {
        let segment = &self.segments[at.segment];
        (segment.key(&self.bytes, at.index), segment.value(&self.bytes, at.index))
    }

    /// The first position whose key does not satisfy `before`, which holds for a run of keys from the start.
    fn partition_point(&self, before: impl Fn(&[u8]) -> bool) -> Position {
        let following = self.segments.partition_point(|segment| before(&self.bytes[segment.key(&self.bytes, 0)]));
        let Some(segment) = following.checked_sub(1) else { return Position { segment: 0, index: 0 } };
        let index = self.segments[segment].partition_point(&self.bytes, 1, before);
        self.normalized(Position { segment, index })
    }

    /// Returns a position with the place after a segment's last entry named as the start of the next segment.
    fn normalized(&self, at: Position) -> Position {
        if at.index < self.segments[at.segment].entries { at } else { Position { segment: at.segment + 1, index: 0 } }
    }

    /// Returns the handles of an entry.
    fn handles(&self, at: Position) -> (Bytes, Bytes) {
        let (key, value) = self.entry(at);
        (self.bytes.slice(key), self.bytes.slice(value))
    }

    fn positions<'a>(&'a self, (start, end): KeyBounds<'_>) -> Positions<'a> {
        let last = Position { segment: self.segments.len(), index: 0 };
        if is_inverted((start, end)) {
            return Positions { image: self, next: last, end: last };
        }
        let next = self.partition_point(|key| is_before_start(start, key));
        let end = self.partition_point(|key| is_before_end(end, key));
        Positions { image: self, next, end }
    }
}

impl Source for Image {
    fn len(&self) -> usize {
        self.len
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let at = self.partition_point(|other| other < key);
        if at.segment == self.segments.len() {
            return Ok(None);
        }
        let (found, value) = self.entry(at);
        Ok((self.bytes[found] == *key).then(|| self.bytes.slice(value)))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        TryScan::new(self.positions(bounds).map(|at| Ok(self.handles(at))))
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let _ = self.positions(bounds).try_for_each(|at| {
            let (key, value) = self.entry(at);
            f(&self.bytes[key], &self.bytes[value])
        });
        Ok(())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct Positions<'a> {
    image: &'a Image,
    next: Position,
    end: Position,
}

impl Iterator for Positions<'_> {
    type Item = Position;

    fn next(&mut self) -> Option<Position> {
        if self.next >= self.end {
            return None;
        }
        let at = self.next;
        self.next = self.image.normalized(Position { index: at.index + 1, ..at });
        Some(at)
    }
}

impl DoubleEndedIterator for Positions<'_> {
    fn next_back(&mut self) -> Option<Position> {
        if self.next >= self.end {
            return None;
        }
        self.end = match self.end {
            Position { segment, index: 0 } => {
                Position { segment: segment - 1, index: self.image.segments[segment - 1].entries - 1 }
            }
            Position { segment, index } => Position { segment, index: index - 1 },
        };
        Some(self.end)
    }
}

impl Segment {
    pub(super) fn key(&self, image: &[u8], index: usize) -> Range<usize> {
        let (start, end) = ends_of(image, self.key_ends, index);
        self.keys + start..self.keys + end
    }

    pub(super) fn value(&self, image: &[u8], index: usize) -> Range<usize> {
        if !self.blob.is_empty() {
            return self.blob.clone();
        }
        let (before, end) = ends_of(image, self.value_ends, index);
        let start = if self.is_aligned { value_start(before, end - before) } else { before };
        self.values + start..self.values + end
    }

    /// Returns the kind of a change, in a segment of a delta.
    pub(super) fn change(&self, image: &[u8], index: usize) -> ChangeKind {
        let change = ChangeKind::of(image[self.changes + index]);
        change.expect("every change of a delta is known, or it is not verified")
    }

    /// The first index, from `low` on, whose key does not satisfy `before`, which holds for a run of keys.
    pub(super) fn partition_point(&self, image: &[u8], mut low: usize, before: impl Fn(&[u8]) -> bool) -> usize {
        let mut high = self.entries;
        while low < high {
            let middle = low + (high - low) / 2;
            if before(&image[self.key(image, middle)]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Returns the places of the parts in bytes that have `by` others in front.
    fn moved_by(self, by: usize) -> Self {
        Self {
            entries: self.entries,
            keys: self.keys + by,
            key_ends: self.key_ends + by,
            values: self.values + by,
            value_ends: self.value_ends + by,
            is_aligned: self.is_aligned,
            changes: self.changes + by,
            blob: self.blob.start + by..self.blob.end + by,
        }
    }
}

/// Returns the end of the element before one, and its own, in a column whose ends start at `ends`.
fn ends_of(image: &[u8], ends: usize, index: usize) -> (usize, usize) {
    let before = if index == 0 { 0 } else { end_at(image, ends, index - 1) };
    (before, end_at(image, ends, index))
}

fn end_at(image: &[u8], ends: usize, index: usize) -> usize {
    let at = ends + index * size_of::<u32>();
    u32::from_le_bytes(*image[at..].first_chunk().expect("a column of ends has an end for every entry")) as usize
}

/// Returns the bytes at the alignment in memory that archives need, copied if they are not.
pub(super) fn align(bytes: Bytes) -> Bytes {
    const { assert!(VALUE_ALIGNMENT % ColumnOffsets::ALIGNMENT == 0) }
    aligned(bytes)
}

/// Checks the rules of `format.rs` in one pass over the segments. Nothing in the image is believed until then.
struct Verifier<'a> {
    header: Header,
    image: &'a [u8],
    last_key: Option<&'a [u8]>,
    entries: u64,
    key_bytes: u64,
    value_bytes: u64,
    fingerprint: Fingerprint,
    inserts: u64,
    deletes: u64,
}

/// The rest of an image besides its entries, verified.
pub(super) struct Verified {
    pub(super) timestamp_ns: u64,
    pub(super) label: Label,
    pub(super) fingerprint: Fingerprint,
    /// Of a delta.
    base: Option<Base>,
}

/// The least room a segment takes beside its descriptor: the root of its archive and the ends of one entry.
const LEAST_SEGMENT: u64 = 48;

impl<'a> Verifier<'a> {
    fn new(header: Header, image: &'a [u8]) -> Self {
        let fingerprint = Fingerprint::EMPTY;
        let (entries, key_bytes, value_bytes, inserts, deletes) = (0, 0, 0, 0, 0);
        Self { header, image, last_key: None, entries, key_bytes, value_bytes, fingerprint, inserts, deletes }
    }

    fn verify(mut self, trailer: &Trailer) -> Result<(Vec<Segment>, Verified), StateError> {
        let trailer_offset = (self.image.len() - Trailer::LEN) as u64;
        let in_trailer = |problem, found, expected| rule("trailer", trailer_offset, problem, found, expected);

        let footer_offset = trailer.footer_offset;
        trailer.check_footer(trailer_offset)?;
        let footer = &self.image[footer_offset as usize..trailer_offset as usize];
        verify_checksum("footer", footer_offset, trailer.footer_checksum, footer)?;
        let in_footer = |problem, found, expected| rule("footer", footer_offset, problem, found, expected);
        let FooterParts { list, base, label } = FooterParts::read(self.header, footer, footer_offset)?;

        // No more are allocated than there is room for.
        check_room(trailer, trailer_offset, list.len())?;
        let mut segments = Vec::with_capacity(trailer.segments as usize);
        let (descriptors, mut first_keys) = list.split_at(trailer.segments as usize * Descriptor::LEN);
        let mut offset = Header::LEN as u64;
        for descriptor in descriptors.chunks_exact(Descriptor::LEN).map(Descriptor::read) {
            let len = usize::from(descriptor.first_key_len).min(first_keys.len());
            let (first_key, rest) = first_keys.split_at(len);
            first_keys = rest;
            let (segment, next) = self.verify_segment(&descriptor, offset, footer_offset, first_key)?;
            segments.push(segment);
            offset = next;
        }
        in_footer("the segments do not end where the footer starts", offset, footer_offset)?;
        in_footer("there are bytes after the last first key", first_keys.len() as u64, 0)?;

        in_trailer("the number of entries is not true", trailer.entries, self.entries)?;
        trailer.check_sums(self.image.len() as u64, self.key_bytes, self.value_bytes, self.fingerprint)?;
        if let Some(base) = &base {
            in_footer("the number of inserted keys is not true", base.inserts, self.inserts)?;
            in_footer("the number of deleted keys is not true", base.deletes, self.deletes)?;
            // With other changes, the old values would be needed to tell.
            if self.inserts == self.entries && !checksums_are_ignored() {
                let (found, expected) = (base.result.halves(), base.fingerprint.plus(self.fingerprint).halves());
                in_footer("the fingerprints do not differ by that of the insertions", found.0, expected.0)?;
                in_footer("the fingerprints do not differ by that of the insertions", found.1, expected.1)?;
            }
        }
        let Header { timestamp_ns, .. } = self.header;
        Ok((segments, Verified { timestamp_ns, label, fingerprint: self.fingerprint, base }))
    }

    /// Verifies the segment that has to start at `offset` and end before `end`; returns where it ends, too.
    fn verify_segment(
        &mut self,
        descriptor: &Descriptor,
        offset: u64,
        end: u64,
        first_key: &[u8],
    ) -> Result<(Segment, u64), StateError> {
        let len = check_extent(self.header, descriptor, offset, end, first_key.len())?;
        // Within the image from here on.
        let start = offset as usize;
        let bytes = &self.image[start..start + len as usize];
        let Self { header, last_key, key_bytes, value_bytes, inserts, deletes, fingerprint, .. } = self;
        let segment =
            check_segment(*header, bytes, offset, descriptor, Some(first_key), *last_key, |key, value, change| {
                *key_bytes += key.len() as u64;
                *value_bytes += value.len() as u64;
                *inserts += u64::from(change == Some(ChangeKind::Insert));
                if change == Some(ChangeKind::Delete) {
                    *deletes += 1;
                } else {
                    fingerprint.add(key, value);
                }
            })?;
        self.last_key = Some(&bytes[segment.key(bytes, segment.entries - 1)]);
        self.entries += segment.entries as u64;
        Ok((segment.moved_by(start), offset + len))
    }
}

/// Checks that the body, and the footer's `len` bytes of descriptors and keys, have room for all segments, after
/// [`Trailer::check_footer`].
pub(super) fn check_room(trailer: &Trailer, trailer_offset: u64, len: usize) -> Result<(), StateError> {
    let body_len = trailer.footer_offset - Header::LEN as u64;
    let most = ((len / Descriptor::LEN) as u64).min(body_len / LEAST_SEGMENT);
    let problem = "there is no room for so many segments";
    rule("trailer", trailer_offset, problem, trailer.segments, trailer.segments.min(most))
}

/// Checks where a segment lies, by its descriptor alone: it has to start at `offset` and end before `end`. Returns its
/// length. `first_key_len` is how much of its first key there is in the footer.
pub(super) fn check_extent(
    header: Header,
    descriptor: &Descriptor,
    offset: u64,
    end: u64,
    first_key_len: usize,
) -> Result<u64, StateError> {
    let check = |problem, found, expected| rule("segment", offset, problem, found, expected);
    check("its descriptor says another place", descriptor.offset, offset)?;
    if header.is_aligned() && descriptor.codec != 0 {
        return Err(StateError::UnknownCodec { codec: descriptor.codec, offset });
    }
    check(
        "there are other bytes where its descriptor has zeros",
        descriptor.reserved | u64::from(descriptor.codec),
        0,
    )?;
    check("its first key does not end within the footer", descriptor.first_key_len.into(), first_key_len as u64)?;
    let (_, len) = descriptor.extent().unwrap_or((0, u64::MAX));
    check("it does not end before the footer", len, len.min(end - offset))?;
    Ok(len)
}

/// Checks all `bytes` of a segment whose extent is sound, and calls `each` with its entries. Returns where its parts lie
/// within `bytes`; `offset` is for errors, and `first_key` is what the footer says, if that is to be believed.
pub(super) fn check_segment<'a>(
    header: Header,
    bytes: &'a [u8],
    offset: u64,
    descriptor: &Descriptor,
    first_key: Option<&[u8]>,
    mut last_key: Option<&'a [u8]>,
    mut each: impl FnMut(&[u8], &[u8], Option<ChangeKind>),
) -> Result<Segment, StateError> {
    let check = |problem, found, expected| rule("segment", offset, problem, found, expected);
    let blob_offset = descriptor.extent().map_or(0, |(blob_offset, _)| blob_offset);
    verify_checksum("segment", offset, descriptor.checksum, bytes)?;
    let archive = &bytes[..descriptor.archive_len as usize];
    let blob_end = (blob_offset + descriptor.blob_len) as usize;
    let padding = [&bytes[archive.len()..blob_offset as usize], &bytes[blob_end..]];
    let is_zero = padding.into_iter().flatten().all(|&byte| byte == 0);
    check("there are other bytes where its padding has zeros", is_zero.into(), 1)?;
    let (kind, is_aligned) = (header.kind, header.is_aligned());
    let columns = ColumnOffsets::find(kind, archive);
    check("it is no archive of columns", columns.is_some().into(), 1)?;
    let columns = columns.unwrap_or_default();

    let entries = descriptor.entries as usize;
    check("it is empty", descriptor.entries.into(), descriptor.entries.max(1).into())?;
    let ends_len = descriptor.entries as u64 * size_of::<u32>() as u64;
    check("the number of ends of keys is not that of entries", columns.key_ends.len() as u64, ends_len)?;
    check("the number of ends of values is not that of entries", columns.value_ends.len() as u64, ends_len)?;
    let changes = if kind == Kind::Delta { entries } else { 0 };
    check("the number of kinds of changes is not that of entries", columns.changes.len() as u64, changes as u64)?;
    if descriptor.blob_len > 0 {
        check("a segment with a blob has one entry", descriptor.entries.into(), 1)?;
        check("a segment with a blob has no other value", columns.values.len() as u64, 0)?;
    }
    check_ends(&archive[columns.key_ends.clone()], columns.keys.len(), check)?;
    check_ends(&archive[columns.value_ends.clone()], columns.values.len(), check)?;
    if is_aligned {
        let start = columns.values.start as u64;
        check("its values do not start at a multiple of 16", start, start.next_multiple_of(ALIGNMENT as u64))?;
        check_padding(&archive[columns.values.clone()], &archive[columns.value_ends.clone()], check)?;
    }

    let segment = Segment {
        entries,
        keys: columns.keys.start,
        key_ends: columns.key_ends.start,
        values: columns.values.start,
        value_ends: columns.value_ends.start,
        is_aligned,
        changes: columns.changes.start,
        blob: blob_offset as usize..blob_end,
    };
    for index in 0..entries {
        let key = &bytes[segment.key(bytes, index)];
        let value = &bytes[segment.value(bytes, index)];
        check("a key is too long", key.len() as u64, key.len().min(MAX_KEY_LEN) as u64)?;
        check("a value is too long", value.len() as u64, value.len().min(MAX_VALUE_LEN) as u64)?;
        let ascends = last_key.is_none_or(|last| last < key);
        check("a key does not sort after the one before it", ascends.into(), 1)?;
        if let (0, Some(first_key)) = (index, first_key) {
            check("its first key is not that of the footer", (key == first_key).into(), 1)?;
        }
        last_key = Some(key);
        let mut change = None;
        if kind == Kind::Delta {
            let byte = bytes[segment.changes + index];
            change = ChangeKind::of(byte);
            check("this kind of change is unknown", byte.into(), change.map_or(0, |change| change as u64))?;
            if change == Some(ChangeKind::Delete) {
                check("a deleted key has a value", value.len() as u64, 0)?;
            }
        }
        each(key, value, change);
    }
    Ok(segment)
}

/// Checks that every value that is not empty starts at a multiple of 16, with zeros before it. The ends ascend and end
/// at the length of the column.
fn check_padding(
    values: &[u8],
    ends: &[u8],
    check: impl Fn(&'static str, u64, u64) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut before = 0;
    for end in ends.chunks_exact(size_of::<u32>()) {
        let end = end_at(end, 0, 0);
        let start = value_start(before, end - before);
        if start > before {
            check("a value ends within the zeros before it", end as u64, end.max(start + 1) as u64)?;
            // There is a value before this one, so that the zeros end a whole block.
            let block = values[..start].last_chunk().map_or(u128::MAX, |block| u128::from_be_bytes(*block));
            let zeros = (start - before) * 8;
            check(
                "there are other bytes where values have zeros before them",
                (block << (128 - zeros) == 0).into(),
                1,
            )?;
        }
        before = end;
    }
    Ok(())
}

/// Checks that a column of ends ascends and ends at the length of the column it belongs to.
fn check_ends(
    ends: &[u8],
    column_len: usize,
    check: impl Fn(&'static str, u64, u64) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut last = 0;
    for at in 0..ends.len() / size_of::<u32>() {
        let end = end_at(ends, 0, at) as u64;
        check("an end lies before the one before it", end, end.max(last))?;
        last = end;
    }
    check("the last end is not the length of its column", last, column_len as u64)
}
