//! The ends of an image, and the table of segments in its footer.
//!
//! Every reader of an image uses these: [`ImageReader`](super::reader::ImageReader), grouped images and
//! [`ImageInfo`](super::inspect::ImageInfo). A table is read as far as it goes, and the first broken rule is returned
//! beside it. So the inspection of a damaged image still lists the segments that can be found.

use bytes::Bytes;

use super::backing::Backing;
use super::format::{Base, Descriptor, Header, ImageKind, Trailer, field, partition_point, rule, verify_checksum};
use super::label::Label;
use super::sections::split_sections;
use crate::error::StateError;

/// The header, the trailer and the footer of an image, with matching checksums.
pub(crate) struct Ends {
    pub(crate) header: Header,
    pub(crate) trailer: Trailer,
    pub(crate) footer: Footer,
}

impl Ends {
    /// Reads the header, the trailer and the footer of an image, each once. The image has to be of an `expected` kind.
    pub(crate) fn read(backing: &Backing, expected: &[ImageKind]) -> Result<Self, StateError> {
        let (ends, len) = (backing.without_map(), backing.len());
        let start = ends.read(0..len.min(Header::LEN as u64))?;
        let header = Header::read(&start, len)?;
        header.expect_kind(expected)?;
        let trailer_offset = len - Trailer::LEN as u64;
        let trailer = Trailer::read(&start, &ends.read(trailer_offset..len)?, len)?;
        trailer.check_footer(trailer_offset)?;
        let footer = ends.read(trailer.footer_offset..trailer_offset)?;
        verify_checksum("footer", trailer.footer_offset, trailer.footer_checksum, &footer)?;
        let footer = Footer::read(header, &footer, trailer.footer_offset)?;
        Ok(Self { header, trailer, footer })
    }
}

/// A footer, split into its parts.
pub(crate) struct Footer {
    /// The descriptors and first keys of all segments, or the directory of a grouped image.
    pub(crate) list: Bytes,
    /// The contents before and after a delta, for deltas only.
    pub(crate) base: Option<Base>,
    /// The label of the image; empty in format 1.
    pub(crate) label: Label,
}

impl Footer {
    /// Splits the footer that starts at `offset` of an image with this header.
    pub(crate) fn read(header: Header, footer: &Bytes, offset: u64) -> Result<Self, StateError> {
        let (list, label) =
            if header.is_aligned() { split_sections(footer, offset)? } else { (&footer[..], Label::new()) };
        let base_len = if header.kind == ImageKind::Delta { Base::LEN } else { 0 };
        let (len, least) = (list.len() as u64, list.len().max(base_len) as u64);
        rule("footer", offset, "there is no room for the base of a delta", len, least)?;
        let (list, base) = list.split_at(list.len() - base_len);
        let base = (header.kind == ImageKind::Delta).then(|| Base::read(base));
        Ok(Self { list: footer.slice(..list.len()), base, label })
    }
}

/// The segments of an image, as its footer lists them.
#[derive(Default)]
pub(crate) struct SegmentTable {
    /// The descriptors of all segments, followed by their first keys.
    list: Bytes,
    /// The position in `list` where the first key of the first segment starts.
    first_keys_start: usize,
    /// The position in `list` where the first key of each segment ends.
    first_key_ends: Vec<usize>,
}

/// The least number of bytes that a segment takes: the root of its archive and the ends of one entry.
const LEAST_SEGMENT: u64 = 48;

impl SegmentTable {
    /// Reads the table as far as it goes, and returns the first rule that it breaks. O(number of segments).
    ///
    /// `trailer` is the trailer of an image of `len` bytes, and has passed [`Trailer::check_footer`].
    pub(crate) fn read(header: Header, trailer: &Trailer, len: u64, list: Bytes) -> (Self, Result<(), StateError>) {
        let mut table = Self { list, ..Self::default() };
        let result = table.fill(header, trailer, len - Trailer::LEN as u64);
        (table, result)
    }

    /// Fills the table from `list`, and returns the first rule that is broken.
    fn fill(&mut self, header: Header, trailer: &Trailer, trailer_offset: u64) -> Result<(), StateError> {
        let in_trailer = |problem, found, expected| rule("trailer", trailer_offset, problem, found, expected);
        let body_len = trailer.footer_offset - Header::LEN as u64;
        let most = ((self.list.len() / Descriptor::LEN) as u64).min(body_len / LEAST_SEGMENT);
        let problem = "there is no room for so many segments";
        in_trailer(problem, trailer.segments, trailer.segments.min(most))?;

        // Here the footer is known to have room for the number of segments that memory is reserved for.
        let segments = trailer.segments as usize;
        self.first_key_ends.reserve_exact(segments);
        self.first_keys_start = segments * Descriptor::LEN;
        let (mut offset, mut start, mut entries) = (Header::LEN as u64, self.first_keys_start, 0);
        let mut result = Ok(());
        for index in 0..segments {
            let descriptor = self.descriptor(index);
            let end = (start + usize::from(descriptor.first_key_len)).min(self.list.len());
            self.first_key_ends.push(end);
            if result.is_ok() {
                result = self.check(header, index, offset, trailer.footer_offset).map(|len| offset += len);
            }
            entries += u64::from(descriptor.entries);
            start = end;
        }
        result?;
        let in_footer = |problem, found, expected| rule("footer", trailer.footer_offset, problem, found, expected);
        in_footer("the segments do not end where the footer starts", offset, trailer.footer_offset)?;
        in_footer("there are bytes after the last first key", self.list.len() as u64, start as u64)?;
        in_trailer("the number of entries is not true", trailer.entries, entries)
    }

    /// Checks a segment's descriptor and first key: it must start at `offset` and end before `end`. Returns its length.
    fn check(&self, header: Header, index: usize, offset: u64, end: u64) -> Result<u64, StateError> {
        let (descriptor, first_key) = (self.descriptor(index), self.first_key(index));
        let check = |problem, found, expected| rule("segment", offset, problem, found, expected);
        let len = check_extent(header, &descriptor, offset, end, first_key.len())?;
        check("it is empty", descriptor.entries.into(), descriptor.entries.max(1).into())?;
        let most = descriptor.archive_len / 8;
        check("it has no room for so many entries", descriptor.entries.into(), descriptor.entries.min(most).into())?;
        let ascends = index == 0 || self.first_key(index - 1) < first_key;
        check("its first key does not sort after the one before it", ascends.into(), 1)?;
        Ok(len)
    }

    /// Returns the number of segments.
    pub(crate) fn len(&self) -> usize {
        self.first_key_ends.len()
    }

    /// Returns the descriptor of a segment.
    pub(crate) fn descriptor(&self, index: usize) -> Descriptor {
        Descriptor::read(&self.list[index * Descriptor::LEN..])
    }

    /// Returns the first key of a segment.
    pub(crate) fn first_key(&self, index: usize) -> &[u8] {
        let start = match index.checked_sub(1) {
            Some(before) => self.first_key_ends[before],
            None => self.first_keys_start,
        };
        &self.list[start..self.first_key_ends[index]]
    }

    /// Returns the offset of a segment in the image.
    pub(crate) fn offset(&self, index: usize) -> u64 {
        u64::from_le_bytes(field(&self.list, index * Descriptor::LEN))
    }

    /// Returns the number of segments whose first keys satisfy `before`. These must come before all others.
    pub(crate) fn partition_point(&self, before: impl Fn(&[u8]) -> bool) -> usize {
        partition_point(0..self.len(), |index| before(self.first_key(index)))
    }

    /// Checks the last key of a segment against the first key of the next one, if there is one.
    pub(crate) fn check_last_key(&self, index: usize, last_key: &[u8]) -> Result<(), StateError> {
        let ascends = index + 1 >= self.len() || last_key < self.first_key(index + 1);
        let problem = "its last key does not sort before the first of the next segment";
        rule("segment", self.descriptor(index).offset, problem, ascends.into(), 1)
    }
}

/// Checks a segment's descriptor: the segment must start at `offset` and end before `end`. Returns its length.
///
/// `first_key_len` is the number of bytes of its first key that lie within the footer.
pub(crate) fn check_extent(
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
    let zeros = descriptor.reserved | u64::from(descriptor.codec);
    check("there are other bytes where its descriptor has zeros", zeros, 0)?;
    check("its first key does not end within the footer", descriptor.first_key_len.into(), first_key_len as u64)?;
    let (_, len) = descriptor.extent().unwrap_or((0, u64::MAX));
    check("it does not end before the footer", len, len.min(end - offset))?;
    Ok(len)
}
