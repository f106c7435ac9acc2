//! [`ImageInfo`]: what an image of any kind says of itself, and which of its segments are sound.
//!
//! # Design
//!
//! Whoever opens an image to use it wants all of it sound or an error. Whoever looks into a damaged one wants what is
//! left. So nothing here stops at the first damage: header, trailer and footer are read as they are, what is wrong with
//! them is noted, and every segment that the footer lists is tried.
//!
//! That is safe because a segment stands on its own. Its descriptor has its checksum, and it is checked by the same
//! code as in an image that is opened whole. Where a descriptor is damaged, too, the checksum does not match, or what it
//! says does not fit the columns. One thing nothing but the footer tells: where a blob ends within its last 16 bytes. So
//! blobs are not read where the footer is damaged.
//!
//! # What cannot be read
//!
//! Where the end of an image is missing, so is the list of its segments, and nothing of them can be found: a segment does
//! not say where it ends. A sound part of such an image would have to be guessed.

use std::fmt;
use std::io::{Read, Seek};
use std::ops::Range;

use bytes::Bytes;

use super::format::{ALIGNMENT, Base, Descriptor, FooterParts, Header, Kind, Trailer, rule, verify_checksum};
use super::grouped::{DIRECTORY_START, Entry, GroupedImage};
use super::image::{align, check_extent, check_room, check_segment};
use super::lazy::Backing;
use super::segment::ChangeKind;
use super::{Changes, Fingerprint, Label};
use crate::StateError;
use crate::aligned::aligned;

/// The kinds of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageKind {
    /// A [`StateSnapshot`](crate::StateSnapshot).
    Snapshot,
    /// A [`StateDelta`](crate::StateDelta).
    Delta,
    /// A snapshot with each key group as a part of its own: a [`GroupedImage`].
    Grouped,
}

/// The sums that an image says are those of all its entries (of a delta: of its changes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageTotals {
    /// The number of entries.
    pub entries: u64,
    /// The sum of the lengths of all keys, in bytes.
    pub key_bytes: u64,
    /// The sum of the lengths of all values, in bytes.
    pub value_bytes: u64,
    /// The fingerprint of the entries; of a delta, of those inserted and updated.
    pub fingerprint: Fingerprint,
    /// The number of segments; of a grouped image, of the key groups that have entries.
    pub parts: u64,
}

/// The contents before and after a delta, as its footer describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeltaInfo {
    /// The fingerprint of the contents that the delta can be applied to.
    pub base: Fingerprint,
    /// The fingerprint of the contents that it leads to.
    pub result: Fingerprint,
    /// How many keys are new.
    pub inserts: u64,
    /// How many keys are deleted.
    pub deletes: u64,
}

/// The structure of an image of any kind, sound or not: for looking into files.
///
/// It reads the two ends of an image and notes what is wrong with them ([`damage`](Self::damage)) instead of giving up. Every
/// segment that can be found is then read, or not, by itself. An image whose end is missing still tells what it was;
/// its segments cannot be found.
///
/// Sound ends and sound segments are not yet a sound image: how segments fit together, and to the sums, is what
/// [`UnverifiedImage::verify`](crate::UnverifiedImage::verify) and [`StateDelta::from_bytes`](crate::StateDelta::from_bytes)
/// check.
///
/// Takes memory for the footer and about 100 bytes for each segment.
///
/// ```
/// use opstate::{ImageInfo, ImageKind, ImageOptions, StateSnapshot};
///
/// # fn main() -> Result<(), opstate::StateError> {
/// let snapshot = StateSnapshot::from_iter((0..100).map(|i| (format!("key-{i:02}"), "value")));
/// let mut image = Vec::new();
/// snapshot.write_with(ImageOptions::new().segment_bytes(810), &mut image)?;
/// image[40] ^= 1;
///
/// let info = ImageInfo::from_bytes(image)?;
/// assert_eq!((info.kind(), info.totals().map(|totals| totals.entries)), (ImageKind::Snapshot, Some(100)));
/// let (sound, damaged): (Vec<_>, Vec<_>) = info.segments().partition(|segment| segment.read().is_ok());
/// assert_eq!((sound.len(), damaged.len()), (3, 1));
/// assert_eq!(sound[0].first_key(), b"key-27");
/// # Ok(())
/// # }
/// ```
pub struct ImageInfo {
    backing: Backing,
    header: Header,
    flags: u32,
    label: Label,
    damage: Vec<StateError>,
    /// Nothing where the end is missing.
    trailer: Option<Trailer>,
    base: Option<Base>,
    /// The stored and the computed checksum of a footer that is damaged.
    footer_damage: Option<(u64, u64)>,
    /// With their first keys.
    segments: Vec<(Descriptor, Bytes)>,
    key_groups: Option<u64>,
    groups: Vec<Entry>,
}

impl ImageInfo {
    /// Reads the ends of an image that is in memory. O(number of segments).
    ///
    /// # Errors
    ///
    /// [`StateError::NotAnImage`], [`StateError::UnsupportedVersion`], [`StateError::Truncated`] where there is not even a
    /// header, and the damage of a header that does not say what the image holds.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        Self::from_backing(Backing::Whole(align(bytes.into())))
    }

    /// Reads the ends of an image in anything that can be read from any place. Segments are read when they are asked for,
    /// one at a time.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes), and [`StateError::Io`].
    pub fn from_reader(reader: impl Read + Seek + Send + 'static) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_reader(reader)?)
    }

    fn from_backing(backing: Backing) -> Result<Self, StateError> {
        let len = backing.len();
        let least = (Header::LEN + Trailer::LEN) as u64;
        let start = backing.read(0..len.min(least))?;
        Header::read_start(&start)?;
        let Some(header) = start.first_chunk() else { return Err(StateError::Truncated { len, needed: least }) };
        let checked = Header::read(&start);
        let Some((read, flags)) = Header::read_unchecked(header) else {
            // Of a header that says no kind, that is what is wrong at the latest.
            checked?;
            return Err(StateError::Truncated { len, needed: least });
        };
        let mut info = Self {
            backing,
            header: read,
            flags,
            label: Label::new(),
            damage: checked.err().into_iter().collect(),
            trailer: None,
            base: None,
            footer_damage: None,
            segments: Vec::new(),
            key_groups: None,
            groups: Vec::new(),
        };
        if len >= least {
            info.read_end(&header[..])?;
        }
        Ok(info)
    }

    /// Reads the trailer, and what it finds. Fails only where reading does.
    fn read_end(&mut self, header: &[u8]) -> Result<(), StateError> {
        let trailer_offset = self.backing.len() - Trailer::LEN as u64;
        let bytes = self.backing.read(trailer_offset..self.backing.len())?;
        let trailer = Trailer::read_unchecked(&bytes);
        match Trailer::read_apart(header, &bytes, self.backing.len()) {
            // Its checksum is also over the header, so that it tells nothing new if that is damaged.
            Err(StateError::ChecksumMismatch { .. }) if !self.damage.is_empty() => {}
            checked => self.damage.extend(checked.err()),
        }
        if let Err(error) = trailer.check_footer(trailer_offset) {
            self.note_first(error, "trailer");
            return Ok(());
        }
        let footer_offset = trailer.footer_offset;
        let footer = self.backing.read(footer_offset..trailer_offset)?;
        let checked = verify_checksum("footer", footer_offset, trailer.footer_checksum, &footer);
        if let Err(StateError::ChecksumMismatch { stored, computed, .. }) = checked {
            self.footer_damage = Some((stored, computed));
        }
        self.damage.extend(checked.err());
        // The list comes first, so that it can be read although something behind it is damaged.
        let (mut read, mut list) = (Ok(()), footer.clone());
        match FooterParts::read(self.header, &footer, footer_offset) {
            Ok(parts) => {
                (self.base, self.label) = (parts.base, parts.label);
                list = footer.slice(..parts.list.len());
            }
            Err(error) => read = Err(error),
        }
        let listed = match self.header.kind {
            Kind::Grouped => self.read_directory(&trailer, &list),
            Kind::Snapshot | Kind::Delta => self.read_footer(&trailer, trailer_offset, &list),
        };
        read = read.and(listed);
        self.trailer = Some(trailer);
        if let Err(error) = read {
            self.note_first(error, "footer");
        }
        Ok(())
    }

    /// Notes what follows from other damage only if there is none.
    fn note_first(&mut self, error: StateError, part: &str) {
        let is_known = |known: &StateError| match known {
            StateError::ChecksumMismatch { part: known, .. } => *known == part || *known == "trailer",
            StateError::MissingTrailer { .. } => true,
            _ => false,
        };
        if !self.damage.iter().any(is_known) {
            self.damage.push(error);
        }
    }

    /// Reads the list of segments as far as it goes, and returns the first thing wrong with it.
    fn read_footer(&mut self, trailer: &Trailer, trailer_offset: u64, footer: &Bytes) -> Result<(), StateError> {
        let in_footer = |problem, found, expected| rule("footer", trailer.footer_offset, problem, found, expected);
        check_room(trailer, trailer_offset, footer.len())?;
        let (mut start, end) = (trailer.segments as usize * Descriptor::LEN, footer.len());
        let descriptors = footer.slice(..start);
        let mut result = Ok(());
        let mut offset = Header::LEN as u64;
        for descriptor in descriptors.chunks_exact(Descriptor::LEN).map(Descriptor::read) {
            let first_key = footer.slice(start..end.min(start + usize::from(descriptor.first_key_len)));
            start += first_key.len();
            if result.is_ok() {
                let len = check_extent(self.header, &descriptor, offset, trailer.footer_offset, first_key.len());
                result = len.map(|len| offset += len);
            }
            self.segments.push((descriptor, first_key));
        }
        result?;
        in_footer("the segments do not end where the footer starts", offset, trailer.footer_offset)?;
        in_footer("there are bytes after the last first key", end as u64, start as u64)
    }

    /// Reads the directory of key groups as far as it goes, and returns the first thing wrong with it.
    fn read_directory(&mut self, trailer: &Trailer, footer: &[u8]) -> Result<(), StateError> {
        self.key_groups = footer.first_chunk().map(|count| u64::from_le_bytes(*count));
        let mut entries = footer.get(DIRECTORY_START..).unwrap_or_default();
        while entries.len() >= Entry::LEN {
            let entry = Entry::read(&entries[..Entry::LEN]);
            entries = &entries[Entry::LEN..];
            // Others than these cannot even be tried.
            let end = entry.offset.checked_add(entry.len);
            if end.is_some_and(|end| end <= trailer.footer_offset) && entry.offset % ALIGNMENT as u64 == 0 {
                self.groups.push(entry);
            }
        }
        let in_directory =
            |problem, found, expected| rule("directory", trailer.footer_offset, problem, found, expected);
        let needed = (self.groups.len() * Entry::LEN + DIRECTORY_START) as u64;
        in_directory("there are images that cannot be where it says", footer.len() as u64, needed)?;
        // The other rules of a directory are checked there.
        if self.damage.is_empty() { GroupedImage::from_backing(self.backing.clone()).map(drop) } else { Ok(()) }
    }

    /// Returns what the image holds.
    pub const fn kind(&self) -> ImageKind {
        match self.header.kind {
            Kind::Snapshot => ImageKind::Snapshot,
            Kind::Delta => ImageKind::Delta,
            Kind::Grouped => ImageKind::Grouped,
        }
    }

    /// Returns the version of the format.
    pub const fn version(&self) -> u16 {
        self.header.version
    }

    /// Returns the header's flags, of which this version has none: 0.
    pub const fn flags(&self) -> u32 {
        self.flags
    }

    /// Returns when the snapshot was taken (that a delta leads to), in nanoseconds since the start of 1970 (UTC).
    pub const fn timestamp_ns(&self) -> u64 {
        self.header.timestamp_ns
    }

    /// Returns the label: which operator and job the contents belong to. Empty if the image's end is missing.
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// Returns the length of the image in bytes, of what there is of it.
    pub fn image_bytes(&self) -> u64 {
        self.backing.len()
    }

    /// Returns what is wrong with the header, the trailer and the footer; nothing if they are sound. What follows from
    /// another damage is left out.
    pub fn damage(&self) -> &[StateError] {
        &self.damage
    }

    /// Returns the sums over all entries, as the trailer says; `None` if the image's end is missing.
    pub fn totals(&self) -> Option<ImageTotals> {
        self.trailer.as_ref().map(|trailer| ImageTotals {
            entries: trailer.entries,
            key_bytes: trailer.key_bytes,
            value_bytes: trailer.value_bytes,
            fingerprint: trailer.fingerprint,
            parts: trailer.segments,
        })
    }

    /// Returns where the footer lies, in bytes from the start: the list of segments, or the directory of key groups. `None`
    /// if the image's end is missing.
    pub fn footer(&self) -> Option<Range<u64>> {
        self.trailer.as_ref().map(|trailer| trailer.footer_offset..trailer.footer_offset + trailer.footer_len)
    }

    /// Returns what a delta says of the contents before and after it. `None` for other kinds, and if the end is missing.
    pub fn delta_info(&self) -> Option<DeltaInfo> {
        let of = |base: &Base| DeltaInfo {
            base: base.fingerprint,
            result: base.result,
            inserts: base.inserts,
            deletes: base.deletes,
        };
        self.base.as_ref().map(of)
    }

    /// Iterates over the segments of a snapshot or a delta, in order. None for a grouped image, whose segments are in its
    /// [`groups`](Self::groups).
    pub fn segments(&self) -> impl ExactSizeIterator<Item = SegmentInfo<'_>> {
        (0..self.segments.len()).map(|index| SegmentInfo { image: self, index })
    }

    /// Returns the number of key groups that a grouped image was split by, those without entries included. `None` for
    /// other kinds, and if the end is missing.
    pub const fn key_groups(&self) -> Option<u64> {
        self.key_groups
    }

    /// Iterates over the key groups of a grouped image that have entries, in order.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = GroupInfo<'_>> {
        self.groups.iter().map(|entry| GroupInfo { image: self, entry })
    }
}

/// A segment of an image, as its footer describes it.
#[derive(Clone, Copy)]
pub struct SegmentInfo<'a> {
    image: &'a ImageInfo,
    index: usize,
}

impl<'a> SegmentInfo<'a> {
    fn descriptor(&self) -> &'a Descriptor {
        &self.image.segments[self.index].0
    }

    /// Returns where the segment starts, in bytes from the start of the image.
    pub fn offset(&self) -> u64 {
        self.descriptor().offset
    }

    /// Returns the length of the segment in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.descriptor().extent().map_or(u64::MAX, |(_, len)| len)
    }

    /// Returns the number of entries in the segment.
    pub fn entries(&self) -> u32 {
        self.descriptor().entries
    }

    /// Returns the first key in the segment.
    pub fn first_key(&self) -> &'a [u8] {
        &self.image.segments[self.index].1
    }

    /// Reads and verifies the segment, and nothing else, and iterates over its entries; values are `None` for keys that a
    /// delta deletes. O(length of the segment).
    ///
    /// The segment is compared with the footer, unless the footer itself is damaged. Then only the segment's checksum and its
    /// order are checked; and a segment that is one long value is not read, for how long it is only the footer
    /// tells.
    ///
    /// # Errors
    ///
    /// [`StateError::ChecksumMismatch`] and [`StateError::Malformed`] if the segment is damaged, or what is needed of the
    /// footer; and [`StateError::Io`].
    pub fn read(&self) -> Result<Changes<'a>, StateError> {
        let ImageInfo { backing, header, trailer, footer_damage, segments, .. } = self.image;
        let (descriptor, first_key) = &segments[self.index];
        let (kind, offset) = (header.kind, descriptor.offset);
        let end = trailer.as_ref().map_or(0, |trailer| trailer.footer_offset);
        let problem = "it does not start between header and footer";
        rule("segment", offset, problem, offset, offset.clamp(Header::LEN as u64, end.max(Header::LEN as u64)))?;
        let (key_len, expected) = match *footer_damage {
            None => (first_key.len(), Some(&first_key[..])),
            Some((stored, computed)) if descriptor.blob_len > 0 => {
                return Err(StateError::ChecksumMismatch { part: "footer", offset: end, stored, computed });
            }
            Some(_) => (descriptor.first_key_len.into(), None),
        };
        let len = check_extent(*header, descriptor, offset, end, key_len)?;
        let bytes = backing.read(offset..offset + len)?;
        let segment = check_segment(*header, &bytes, offset, descriptor, expected, None, |_, _, _| {})?;
        if let Some((_, next)) = segments.get(self.index + 1).filter(|_| footer_damage.is_none()) {
            let is_below = bytes[segment.key(&bytes, segment.entries - 1)] < next[..];
            let problem = "its last key does not sort before the first of the next segment";
            rule("segment", offset, problem, is_below.into(), 1)?;
        }
        Ok(Changes::new((0..segment.entries).map(move |index| {
            let (key, value) = (segment.key(&bytes, index), segment.value(&bytes, index));
            let is_deleted = kind == Kind::Delta && segment.change(&bytes, index) == ChangeKind::Delete;
            (bytes.slice(key), (!is_deleted).then(|| aligned(bytes.slice(value))))
        })))
    }
}

impl fmt::Debug for SegmentInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentInfo")
            .field("offset", &self.offset())
            .field("segment_bytes", &self.segment_bytes())
            .field("entries", &self.entries())
            .finish_non_exhaustive()
    }
}

/// A key group of a grouped image, as its directory describes it.
#[derive(Clone, Copy)]
pub struct GroupInfo<'a> {
    image: &'a ImageInfo,
    entry: &'a Entry,
}

impl GroupInfo<'_> {
    /// Returns the number of the group.
    pub fn group(&self) -> u32 {
        self.entry.group
    }

    /// Returns where the image of the group lies, in bytes from the start of the whole.
    pub fn extent(&self) -> Range<u64> {
        self.entry.offset..self.entry.offset + self.entry.len
    }

    /// Returns the number of entries in the group.
    pub fn entries(&self) -> u64 {
        self.entry.entries
    }

    /// Reads the ends of the group's image. Its offsets count from the start of the [`extent`](Self::extent).
    ///
    /// # Errors
    ///
    /// The errors of [`ImageInfo::from_bytes`] and [`ImageInfo::from_reader`]; [`StateError::UnexpectedKind`] if it is no
    /// image of a snapshot.
    pub fn open(&self) -> Result<ImageInfo, StateError> {
        let info = ImageInfo::from_backing(self.image.backing.part(self.extent()))?;
        info.header.expect_kind(Kind::Snapshot)?;
        Ok(info)
    }
}

impl fmt::Debug for GroupInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupInfo")
            .field("group", &self.group())
            .field("extent", &self.extent())
            .field("entries", &self.entries())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ImageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageInfo")
            .field("kind", &self.kind())
            .field("image_bytes", &self.image_bytes())
            .field("totals", &self.totals())
            .field("damage", &self.damage)
            .finish_non_exhaustive()
    }
}
