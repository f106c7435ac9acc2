//! [`ImageInfo`]: the structure of an image of any kind, sound or damaged.
//!
//! # Design
//!
//! A reader that opens an image to use it wants all of it sound, or an error. An inspection of a damaged image wants
//! the parts that are left. So nothing here stops at the first damage. The header, the trailer and the footer are read
//! without trust, their damage is noted, and every segment that the footer lists can be tried.
//!
//! This is safe because a segment stands on its own. Its descriptor has its checksum, and an image that is opened whole
//! checks it with the same code. If the descriptor is damaged too, the checksum does not match, or the descriptor does
//! not fit the columns. One fact is only in the footer: the end of a blob within its last 16 bytes. So blobs are not
//! read if the footer is damaged.
//!
//! # Limits
//!
//! If the end of an image is missing, so is the list of its segments, and none of them can be found: a segment does not
//! say where it ends. Finding a sound part of such an image would need guessing.

use std::fmt;
use std::io::{Read, Seek};
use std::ops::Range;

use bytes::Bytes;

use super::backing::Backing;
use super::changes::Changes;
use super::directory::{Directory, GroupEntry};
use super::footer::{Footer, SegmentTable, check_extent};
use super::format::{Base, Descriptor, Header, ImageKind, Trailer, rule, verify_checksum};
use super::label::Label;
use super::segment::Segment;
use crate::aligned::aligned;
use crate::comparison::ChangeKind;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;

/// The sums over all entries of an image, as its trailer gives them. In a delta, changes count as entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageTotals {
    /// The number of entries.
    pub entries: u64,
    /// The sum of the lengths of all keys, in bytes.
    pub key_bytes: u64,
    /// The sum of the lengths of all values, in bytes.
    pub value_bytes: u64,
    /// The fingerprint of the entries. In a delta, of the inserted and updated entries.
    pub fingerprint: Fingerprint,
    /// The number of segments. In a grouped image, the number of key groups that have entries.
    pub parts: u64,
}

/// The contents before and after a delta, as its footer describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeltaInfo {
    /// The fingerprint of the contents that the delta can be applied to.
    pub base: Fingerprint,
    /// The fingerprint of the contents after applying the delta.
    pub result: Fingerprint,
    /// The number of inserted keys.
    pub inserts: u64,
    /// The number of deleted keys.
    pub deletes: u64,
}

/// The structure of an image of any kind, sound or damaged, for looking into files.
///
/// The header, trailer and footer are read, and [`damage`](Self::damage) lists what is wrong with them. Every segment
/// that the footer lists can then be read by itself. If the end of an image is missing, the header is still known, but
/// the segments cannot be found.
///
/// An image can be damaged although its ends and all of its segments are sound.
/// [`UnverifiedImage::verify`](crate::UnverifiedImage::verify) and
/// [`StateDelta::from_bytes`](crate::StateDelta::from_bytes) also check how segments fit together and agree with the
/// sums.
///
/// Takes memory for the footer, 8 bytes for each segment and 64 for each key group.
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
    /// The trailer, if there is one that locates a footer.
    trailer: Option<Trailer>,
    base: Option<Base>,
    /// The stored and the computed checksum of a damaged footer.
    footer_damage: Option<(u64, u64)>,
    /// The segments of a snapshot or a delta, as far as the footer lists them.
    segments: SegmentTable,
    /// The key groups of a grouped image, as far as its directory lists them.
    directory: Directory,
}

impl ImageInfo {
    /// Reads the ends of an image in memory. O(number of segments).
    ///
    /// # Errors
    ///
    /// [`StateError::NotAnImage`]; [`StateError::UnsupportedVersion`]; [`StateError::Truncated`] if the header is cut
    /// short; and the damage of a header that does not give the kind of the image.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_bytes(bytes.into())?)
    }

    /// Reads the ends of an image in any seekable reader.
    ///
    /// Segments are read when they are asked for, one at a time.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes), and [`StateError::Io`].
    pub fn from_reader(reader: impl Read + Seek + Send + 'static) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_reader(reader)?)
    }

    /// Reads the ends of an image.
    fn from_backing(backing: Backing) -> Result<Self, StateError> {
        let len = backing.len();
        let least = (Header::LEN + Trailer::LEN) as u64;
        let start = backing.read(0..len.min(Header::LEN as u64))?;
        Header::read_start(&start)?;
        let Some(header) = start.first_chunk() else { return Err(StateError::Truncated { len, needed: least }) };
        let checked = Header::read(&start, len);
        let Some((read, flags)) = Header::read_unchecked(header) else {
            // The header names no known kind, so `checked` is an error.
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
            segments: SegmentTable::default(),
            directory: Directory::default(),
        };
        if len >= least {
            info.read_end(&header[..])?;
        }
        Ok(info)
    }

    /// Reads the trailer and the footer, and notes their damage. Fails only if reading fails.
    fn read_end(&mut self, header: &[u8]) -> Result<(), StateError> {
        let trailer_offset = self.backing.len() - Trailer::LEN as u64;
        let bytes = self.backing.read(trailer_offset..self.backing.len())?;
        let trailer = Trailer::read_unchecked(&bytes);
        match Trailer::read(header, &bytes, self.backing.len()) {
            // The trailer's checksum also covers the header. If the header is damaged, a mismatch tells nothing new.
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
        // The list comes first, so it can be read even if the bytes behind it are damaged.
        let (list, read) = match Footer::read(self.header, &footer, footer_offset) {
            Ok(Footer { list, base, label }) => {
                (self.base, self.label) = (base, label);
                (list, Ok(()))
            }
            Err(error) => (footer, Err(error)),
        };
        let listed = match self.header.kind {
            ImageKind::Grouped => {
                let (directory, listed) = Directory::read(&trailer, self.backing.len(), &list);
                self.directory = directory;
                listed
            }
            ImageKind::Snapshot | ImageKind::Delta => {
                let (segments, listed) = SegmentTable::read(self.header, &trailer, self.backing.len(), list);
                self.segments = segments;
                listed
            }
        };
        self.trailer = Some(trailer);
        if let Err(error) = read.and(listed) {
            self.note_first(error, "footer");
        }
        Ok(())
    }

    /// Notes an error, unless it follows from damage that is already noted.
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

    /// Returns the kind of the image.
    pub const fn kind(&self) -> ImageKind {
        self.header.kind
    }

    /// Returns the version of the format.
    pub const fn version(&self) -> u16 {
        self.header.version
    }

    /// Returns the header's flags. This version defines none, so they are 0 in a sound image.
    pub const fn flags(&self) -> u32 {
        self.flags
    }

    /// Returns when the snapshot was taken, in nanoseconds since the start of 1970 (UTC). For a delta, the snapshot
    /// after it.
    pub const fn timestamp_ns(&self) -> u64 {
        self.header.timestamp_ns
    }

    /// Returns the operator and the job that the contents belong to. Empty if the image's end is missing.
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// Returns the length of the image in bytes, as far as it is there.
    pub fn image_bytes(&self) -> u64 {
        self.backing.len()
    }

    /// Returns the damage of the header, the trailer and the footer; empty if they are sound.
    ///
    /// Damage that only follows from other damage is left out.
    pub fn damage(&self) -> &[StateError] {
        &self.damage
    }

    /// Returns the sums over all entries, as the trailer gives them; `None` if the image's end is missing.
    pub fn totals(&self) -> Option<ImageTotals> {
        self.trailer.as_ref().map(|trailer| ImageTotals {
            entries: trailer.entries,
            key_bytes: trailer.key_bytes,
            value_bytes: trailer.value_bytes,
            fingerprint: trailer.fingerprint,
            parts: trailer.segments,
        })
    }

    /// Returns the position of the footer, in bytes from the start; `None` if the image's end is missing.
    ///
    /// The footer holds the list of segments, or the directory of key groups.
    pub fn footer(&self) -> Option<Range<u64>> {
        self.trailer.as_ref().map(|trailer| trailer.footer_offset..trailer.footer_offset + trailer.footer_len)
    }

    /// Returns a delta's description of the contents before and after it.
    ///
    /// Returns `None` for other kinds, and if the end is missing.
    pub fn delta_info(&self) -> Option<DeltaInfo> {
        let of = |base: &Base| DeltaInfo {
            base: base.fingerprint,
            result: base.result,
            inserts: base.inserts,
            deletes: base.deletes,
        };
        self.base.as_ref().map(of)
    }

    /// Iterates over the segments of a snapshot or a delta, in order.
    ///
    /// A grouped image has none; its segments are in its [`groups`](Self::groups).
    pub fn segments(&self) -> impl ExactSizeIterator<Item = SegmentInfo<'_>> {
        (0..self.segments.len()).map(|index| SegmentInfo { image: self, index })
    }

    /// Returns the number of key groups that a grouped image was split by, including groups without entries.
    ///
    /// Returns `None` for other kinds, and if the end is missing.
    pub const fn key_groups(&self) -> Option<u64> {
        self.directory.key_groups
    }

    /// Iterates over the key groups of a grouped image that have entries, in order.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = GroupInfo<'_>> {
        self.directory.entries.iter().map(|entry| GroupInfo { image: self, entry })
    }
}

/// A segment of an image, as its footer describes it.
#[derive(Clone, Copy)]
pub struct SegmentInfo<'a> {
    image: &'a ImageInfo,
    index: usize,
}

impl<'a> SegmentInfo<'a> {
    fn descriptor(&self) -> Descriptor {
        self.image.segments.descriptor(self.index)
    }

    /// Returns the offset of the segment, in bytes from the start of the image.
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
        self.image.segments.first_key(self.index)
    }

    /// Reads and verifies this segment only, and iterates over its entries. O(length of the segment).
    ///
    /// Values are `None` for keys that a delta deletes.
    ///
    /// The segment is compared with the footer, unless the footer itself is damaged. Then only the segment's checksum
    /// and its order are checked. A segment that is one long value is not read in that case, because only the footer
    /// gives its exact length.
    ///
    /// # Errors
    ///
    /// [`StateError::ChecksumMismatch`] and [`StateError::Malformed`] if the segment is damaged, or the part of the
    /// footer that its reading needs; and [`StateError::Io`].
    pub fn read(&self) -> Result<Changes<'a>, StateError> {
        let ImageInfo { backing, header, trailer, footer_damage, segments, .. } = self.image;
        let (descriptor, first_key) = (self.descriptor(), self.first_key());
        let (kind, offset) = (header.kind, descriptor.offset);
        let end = trailer.as_ref().map_or(0, |trailer| trailer.footer_offset);
        let problem = "it does not start between header and footer";
        rule("segment", offset, problem, offset, offset.clamp(Header::LEN as u64, end.max(Header::LEN as u64)))?;
        let (key_len, expected) = match *footer_damage {
            None => (first_key.len(), Some(first_key)),
            Some((stored, computed)) if descriptor.blob_len > 0 => {
                return Err(StateError::ChecksumMismatch { part: "footer", offset: end, stored, computed });
            }
            Some(_) => (descriptor.first_key_len.into(), None),
        };
        let len = check_extent(*header, &descriptor, offset, end, key_len)?;
        let bytes = backing.read(offset..offset + len)?;
        let segment = Segment::check(*header, &descriptor, expected, &bytes, |_, _, _| {})?;
        let entries = segment.entries as usize;
        if footer_damage.is_none() {
            segments.check_last_key(self.index, &bytes[segment.key(&bytes, entries - 1)])?;
        }
        Ok(Changes::new((0..entries).map(move |index| {
            let (key, value) = (segment.key(&bytes, index), segment.value(&bytes, index));
            let is_deleted = kind == ImageKind::Delta && segment.change(&bytes, index) == ChangeKind::Delete;
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
    entry: &'a GroupEntry,
}

impl GroupInfo<'_> {
    /// Returns the number of the group.
    pub fn group(&self) -> u32 {
        self.entry.group
    }

    /// Returns the position of the group's image, in bytes from the start of the whole.
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
    /// The errors of [`ImageInfo::from_bytes`] and [`ImageInfo::from_reader`]; [`StateError::UnexpectedKind`] if it is
    /// not an image of a snapshot.
    pub fn open(&self) -> Result<ImageInfo, StateError> {
        let info = ImageInfo::from_backing(self.image.backing.part(self.extent()))?;
        info.header.expect_kind(&[ImageKind::Snapshot])?;
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
