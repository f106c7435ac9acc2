//! [`Directory`]: the positions of the key groups' images in a grouped image.
//!
//! # Layout
//!
//! A grouped image has the header and trailer of every image (`format.rs`), with kind 3. Between them lies a complete
//! ordinary image (kind 1) for every key group that has entries, then a directory:
//!
//! ```text
//!  +--------+-------------+-------------+-- ... --+-----------+---------+
//!  | header | image, zeros| image, zeros|         | directory | trailer |
//!  +--------+-------------+-------------+-- ... --+-----------+---------+
//!  0        32            each starts at a multiple of 16
//!
//!  directory                                 entry of the directory, 64 bytes
//!       0      8  number of key groups            0      8  offset of the image
//!       8     64  for each image in it            8      8  length of the image, without the zeros
//!                                                16      8  number of entries
//!                                                24      8  sum of the lengths of all keys
//!                                                32      8  sum of the lengths of all values
//!                                                40     16  fingerprint
//!                                                56      4  key group
//!                                                60      4  zeros
//! ```
//!
//! Since format 2 the sections of the whole and their length follow the directory, as in every footer. Every image in
//! it has the label of the whole without its user bytes. In the trailer, "footer" means the directory with the
//! sections, and "number of segments" means the number of images. The trailer's sums and fingerprint cover all entries.
//!
//! # Rules a reader checks, beside those of `format.rs` for the whole and for each image
//!
//! 1. The number of key groups is valid. Key groups ascend and are below it.
//! 2. Images follow each other without a gap except zeros up to a multiple of 16, from the header to the directory.
//! 3. An image has entries. It has the time of the whole, and the label of the whole without the user bytes. Its
//!    lengths, its number of entries and its fingerprint agree with the directory. Its format version may differ.
//! 4. The sums in the trailer are those over the directory, and no key is in two images.
//!
//! A reader cannot check that keys are in the groups they belong to, because the user chooses how keys map to groups.
//!
//! # Why
//!
//! Segments that are merely ordered by group first would break the rule that keys ascend, or need the hash in each key.
//! Complete images can be cut out with ordinary tools: with a range request on an object store, or `dd`. The price is
//! about 350 bytes and one more partly filled segment for every group.
//!
//! An empty group has no image. So a worker writes only the groups it has, and equal contents give equal bytes.

use std::io::Write;
use std::ops::Range;

use super::format::{ALIGNMENT, Header, ImageKind, Trailer, checksum, field, rule};
use super::label::Label;
use super::sections::sections_of;
use super::writer::Written;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::key_group::KeyGroups;

/// A directory entry: the image of one key group.
#[derive(Clone)]
pub(crate) struct GroupEntry {
    pub(crate) offset: u64,
    /// The length of the image, without the zeros behind it.
    pub(crate) len: u64,
    pub(crate) entries: u64,
    pub(crate) key_bytes: u64,
    pub(crate) value_bytes: u64,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) group: u32,
    /// The bytes of zeros at the end: 0 in this version.
    reserved: u32,
}

impl GroupEntry {
    /// The length of a directory entry in bytes.
    pub(crate) const LEN: usize = 64;

    /// Returns the bytes of a directory entry. The reserved bytes are zeros.
    fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let numbers = [self.offset, self.len, self.entries, self.key_bytes, self.value_bytes];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..56].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.group.to_le_bytes());
        bytes
    }

    /// Reads a directory entry from its `LEN` bytes.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let number = |index: usize| u64::from_le_bytes(field(bytes, index * 8));
        Self {
            offset: number(0),
            len: number(1),
            entries: number(2),
            key_bytes: number(3),
            value_bytes: number(4),
            fingerprint: Fingerprint::from_le_bytes(field(bytes, 40)),
            group: u32::from_le_bytes(field(bytes, 56)),
            reserved: u32::from_le_bytes(field(bytes, 60)),
        }
    }

    /// Returns the position of the image within the whole.
    pub(crate) fn extent(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }
}

/// The number of bytes in front of the entries of a directory. They hold the number of key groups.
const ENTRIES_START: usize = 8;

/// The directory of a grouped image.
#[derive(Clone, Default)]
pub(crate) struct Directory {
    /// The number of key groups, as the image says. `None` if the directory is cut short.
    pub(crate) key_groups: Option<u64>,
    /// The images of key groups, in order. Images that do not lie within the whole are left out.
    pub(crate) entries: Vec<GroupEntry>,
}

impl Directory {
    /// Reads a directory as far as it goes, and returns the first rule that it breaks. O(number of groups).
    ///
    /// `trailer` is the trailer of an image of `len` bytes, and has passed [`Trailer::check_footer`].
    pub(crate) fn read(trailer: &Trailer, len: u64, list: &[u8]) -> (Self, Result<(), StateError>) {
        let key_groups = list.first_chunk().map(|count| u64::from_le_bytes(*count));
        let mut directory = Self { key_groups, entries: Vec::new() };
        let result = directory.fill(trailer, len, list);
        (directory, result)
    }

    /// Fills the directory from `list`, and returns the first rule that is broken.
    fn fill(&mut self, trailer: &Trailer, len: u64, list: &[u8]) -> Result<(), StateError> {
        let trailer_offset = len - Trailer::LEN as u64;
        let in_trailer = |problem, found, expected| rule("trailer", trailer_offset, problem, found, expected);
        let in_directory =
            |problem, found, expected| rule("directory", trailer.footer_offset, problem, found, expected);
        let needed = trailer.segments.saturating_mul(GroupEntry::LEN as u64).saturating_add(ENTRIES_START as u64);
        let problem = "it has another length than so many images ask for";
        let mut result = in_directory(problem, list.len() as u64, needed);
        let count = self.key_groups.unwrap_or(0);
        let nearest = count.clamp(1, KeyGroups::MAX.into());
        result = result.and_then(|()| in_directory("there cannot be so many key groups", count, nearest));

        let listed = list.get(ENTRIES_START..).unwrap_or_default().chunks_exact(GroupEntry::LEN);
        self.entries.reserve_exact(listed.len());
        let (mut offset, mut next_group) = (Header::LEN as u64, 0);
        let (mut entries, mut key_bytes, mut value_bytes) = (0_u64, 0_u64, 0_u64);
        let mut fingerprint = Fingerprint::EMPTY;
        for entry in listed.map(GroupEntry::read) {
            let end = entry.offset.checked_add(entry.len);
            let is_within = end.is_some_and(|end| end <= trailer.footer_offset);
            let end = end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT as u64)).unwrap_or(u64::MAX);
            let group = u64::from(entry.group);
            result = result.and_then(|()| {
                in_directory("a key group does not follow the one before it", group, group.max(next_group))?;
                in_directory("a key group is beyond the last", group, group.min(count - 1))?;
                in_directory("there are other bytes where it has zeros", entry.reserved.into(), 0)?;
                in_directory("an image does not start where the one before it ends", entry.offset, offset)?;
                in_directory("an image does not end before the directory", end, end.min(trailer.footer_offset))?;
                in_directory("a key group with an image has no entries", entry.entries, entry.entries.max(1))
            });
            (offset, next_group) = (end, group + 1);
            entries = entries.saturating_add(entry.entries);
            key_bytes = key_bytes.saturating_add(entry.key_bytes);
            value_bytes = value_bytes.saturating_add(entry.value_bytes);
            fingerprint = fingerprint.plus(entry.fingerprint);
            // An image beyond the directory or at an unaligned offset cannot be opened, so it is not listed.
            if is_within && entry.offset % ALIGNMENT as u64 == 0 {
                self.entries.push(entry);
            }
        }
        result?;
        in_directory("the images do not end where it starts", offset, trailer.footer_offset)?;
        in_trailer("the number of entries is not true", trailer.entries, entries)?;
        trailer.check_sums(len, key_bytes, value_bytes, fingerprint)?;
        // No entry takes less than eight bytes, so there is no room for more.
        in_trailer("there is no room for so many entries", entries, entries.min(trailer.footer_offset / 8))
    }
}

/// A writer of grouped images: the images of key groups, one after the other, and their directory.
pub(crate) struct GroupedWriter<W> {
    /// The destination. Images of groups are written to it directly.
    pub(crate) out: W,
    header: [u8; Header::LEN],
    /// The sections of the footer, with their length.
    sections: Vec<u8>,
    /// The number of bytes written so far.
    written: u64,
    directory: Vec<GroupEntry>,
}

impl<W: Write> GroupedWriter<W> {
    /// Writes the header of a grouped image.
    pub(crate) fn new(timestamp_ns: u64, label: &Label, mut out: W) -> Result<Self, StateError> {
        let header = Header::new(ImageKind::Grouped, timestamp_ns).to_bytes();
        let sections = sections_of(label);
        out.write_all(&header)?;
        Ok(Self { out, header, sections, written: Header::LEN as u64, directory: Vec::new() })
    }

    /// Adds a group's image to the directory, and pads it with zeros. It must have been written to `out`.
    pub(crate) fn add(&mut self, group: usize, image: Written<()>) -> Result<(), StateError> {
        let Written { len, entries, key_bytes, value_bytes, fingerprint, .. } = image;
        let group = group as u32;
        let offset = self.written;
        self.directory.push(GroupEntry {
            offset,
            len,
            entries,
            key_bytes,
            value_bytes,
            fingerprint,
            group,
            reserved: 0,
        });
        let padding = len.next_multiple_of(ALIGNMENT as u64) - len;
        self.out.write_all(&[0; ALIGNMENT][..padding as usize])?;
        self.written += len + padding;
        Ok(())
    }

    /// Writes the directory. Returns the length of the whole image and the fingerprint of all entries.
    pub(crate) fn finish(mut self, groups: KeyGroups) -> Result<(u64, Fingerprint), StateError> {
        let mut footer = u64::from(groups.count()).to_le_bytes().to_vec();
        let mut trailer = Trailer {
            footer_offset: self.written,
            footer_len: 0,
            segments: self.directory.len() as u64,
            entries: 0,
            key_bytes: 0,
            value_bytes: 0,
            fingerprint: Fingerprint::EMPTY,
            footer_checksum: 0,
        };
        for entry in &self.directory {
            footer.extend_from_slice(&entry.to_bytes());
            trailer.entries += entry.entries;
            trailer.key_bytes += entry.key_bytes;
            trailer.value_bytes += entry.value_bytes;
            trailer.fingerprint = trailer.fingerprint.plus(entry.fingerprint);
        }
        footer.extend_from_slice(&self.sections);
        (trailer.footer_len, trailer.footer_checksum) = (footer.len() as u64, checksum(&footer));
        self.out.write_all(&footer)?;
        self.out.write_all(&trailer.to_bytes(&self.header))?;
        self.out.flush()?;
        Ok((self.written + trailer.footer_len + Trailer::LEN as u64, trailer.fingerprint))
    }
}
