//! [`GroupedImage`]: the image of a snapshot with each key group as a part that can be read without the others.
//!
//! # Layout
//!
//! Header and trailer are those of every image (`format.rs`), with kind 3. Between them, for every key group that has
//! entries, lies a complete ordinary image (kind 1) of these entries, then a directory:
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
//! Since format 2 the sections of the whole and their length follow the directory, as in every footer; every image has
//! the label of the whole without its user bytes. In the trailer, "footer" means the directory with them, and "number of
//! segments" that of images. Its sums and its fingerprint are those of all entries.
//!
//! # Rules a reader checks, beside those of `format.rs` for the whole and for each image
//!
//! 1. The number of key groups is one there can be. Key groups ascend and are below it.
//! 2. Images follow each other without a gap but zeros up to a multiple of 16, from the header to the directory.
//! 3. An image has entries, the time of the whole and its label without the user bytes, and is what the directory says of
//!    it. Its format version may be another one.
//! 4. The sums in the trailer are those over the directory, and no key is in two images.
//!
//! That keys are in the groups they belong to cannot be checked: how groups are told is the user's choice.
//!
//! # Why this and not the other way
//!
//! Segments that are merely ordered by group first would break the rule that keys ascend, or need the hash in each key.
//! Complete images can be cut out by anyone: with a range request on an object store, or `dd`. The price is about 350
//! bytes and one cut segment more for every group.
//!
//! An empty group has no image: a worker writes those it has, and equal contents give equal bytes either way.

use std::fmt;
use std::io::{Read, Seek, Write};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use super::format::{ALIGNMENT, FooterParts, Header, Kind, Trailer, checksum, checksums_are_ignored, field, rule};
use super::image::{Image, align};
use super::lazy::{Backing, LazyImage};
use super::merge::Merged;
use super::write::{ImageOptions, ImageWriter, Written};
use super::{Fingerprint, Label, Source, StateSnapshot};
use crate::{KeyGroups, StateError};

/// An image in the directory.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) entries: u64,
    key_bytes: u64,
    value_bytes: u64,
    fingerprint: Fingerprint,
    pub(super) group: u32,
    /// 0 in this version.
    reserved: u32,
}

impl Entry {
    pub(super) const LEN: usize = 64;

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

    /// Reads an entry from its `LEN` bytes.
    pub(super) fn read(bytes: &[u8]) -> Self {
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

    fn extent(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }
}

/// The bytes in front of the entries of the directory: the number of key groups.
pub(super) const DIRECTORY_START: usize = 8;

/// The image of a snapshot with each key group as a part of its own, of which groups can be read one by one.
///
/// [`StateSnapshot::write_grouped`] writes it. Every part is a complete image of its group: whoever cuts it out, by
/// [`extent`](Self::extent), opens it with [`StateSnapshot::from_bytes`]. The whole is opened as any image, too, and gives
/// the snapshot that was written.
///
/// ```
/// use opstate::{GroupedImage, ImageOptions, KeyGroups, StateSnapshot};
///
/// # fn main() -> Result<(), opstate::StateError> {
/// let snapshot = StateSnapshot::from_iter((0..1000).map(|i| (format!("key-{i}"), "value")));
/// let groups = KeyGroups::new(128)?;
/// let mut image = Vec::new();
/// snapshot.write_grouped(groups, |key| key, ImageOptions::new(), &mut image)?;
///
/// // The second of three workers takes its groups, and reads nothing else.
/// let grouped = GroupedImage::from_bytes(image.clone())?;
/// let mine = grouped.slice(groups.groups_of(1, 3))?;
/// assert!(mine.iter().all(|(key, _)| groups.worker_of(groups.group_of(&key), 3) == 1));
///
/// assert_eq!(StateSnapshot::from_bytes(image)?, snapshot);
/// # Ok(())
/// # }
/// ```
pub struct GroupedImage {
    backing: Backing,
    timestamp_ns: u64,
    label: Label,
    groups: KeyGroups,
    directory: Vec<Entry>,
    len: usize,
    fingerprint: Fingerprint,
}

impl GroupedImage {
    /// Opens a grouped image by its directory; a group is verified when it is read.
    ///
    /// Computes in O(number of groups), and allocates 88 bytes for each. (Bytes that do not start at a multiple of 16
    /// in memory are copied first.)
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`], for header, directory and trailer.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        Self::from_backing(Backing::Whole(align(bytes.into())))
    }

    /// Opens a grouped image in anything that can be read from any place by its directory. A group is read and verified,
    /// and nothing else, when it is asked for.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes), and [`StateError::Io`].
    pub fn from_reader(reader: impl Read + Seek + Send + 'static) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_reader(reader)?)
    }

    pub(super) fn from_backing(backing: Backing) -> Result<Self, StateError> {
        let (header, trailer, footer) = backing.read_ends()?;
        header.expect_kind(Kind::Grouped)?;
        let trailer_offset = backing.len() - Trailer::LEN as u64;
        let in_trailer = |problem, found, expected| rule("trailer", trailer_offset, problem, found, expected);
        let in_directory =
            |problem, found, expected| rule("directory", trailer.footer_offset, problem, found, expected);

        let FooterParts { list, label, .. } = FooterParts::read(header, &footer, trailer.footer_offset)?;
        let needed = trailer.segments.saturating_mul(Entry::LEN as u64).saturating_add(DIRECTORY_START as u64);
        in_directory("it has another length than so many images ask for", list.len() as u64, needed)?;
        let count = u64::from_le_bytes(field(list, 0));
        let groups = KeyGroups::new(u32::try_from(count).unwrap_or(u32::MAX));
        let nearest = count.clamp(1, KeyGroups::MAX.into());
        in_directory("there cannot be so many key groups", count, nearest)?;
        let groups = groups?;

        // The directory is as long as it says, so this has its room.
        let mut directory = Vec::with_capacity(trailer.segments as usize);
        let (mut offset, mut next_group) = (Header::LEN as u64, 0);
        let (mut entries, mut key_bytes, mut value_bytes) = (0_u64, 0_u64, 0_u64);
        let mut fingerprint = Fingerprint::EMPTY;
        for entry in list[DIRECTORY_START..].chunks_exact(Entry::LEN).map(Entry::read) {
            let group = u64::from(entry.group);
            in_directory("a key group does not follow the one before it", group, group.max(next_group))?;
            in_directory("a key group is beyond the last", group, group.min(count - 1))?;
            in_directory("there are other bytes where it has zeros", entry.reserved.into(), 0)?;
            in_directory("an image does not start where the one before it ends", entry.offset, offset)?;
            let end =
                entry.offset.checked_add(entry.len).and_then(|end| end.checked_next_multiple_of(ALIGNMENT as u64));
            let end = end.unwrap_or(u64::MAX);
            in_directory("an image does not end before the directory", end, end.min(trailer.footer_offset))?;
            in_directory("a key group with an image has no entries", entry.entries, entry.entries.max(1))?;
            (offset, next_group) = (end, group + 1);
            entries = entries.saturating_add(entry.entries);
            key_bytes = key_bytes.saturating_add(entry.key_bytes);
            value_bytes = value_bytes.saturating_add(entry.value_bytes);
            fingerprint = fingerprint.plus(entry.fingerprint);
            directory.push(entry);
        }
        in_directory("the images do not end where it starts", offset, trailer.footer_offset)?;
        in_trailer("the number of entries is not true", trailer.entries, entries)?;
        trailer.check_sums(backing.len(), key_bytes, value_bytes, fingerprint)?;
        // Counts of groups are compared with this, and no entry takes less than eight bytes.
        in_trailer("there is no room for so many entries", entries, entries.min(trailer.footer_offset / 8))?;
        let len = entries as usize;
        Ok(Self { backing, timestamp_ns: header.timestamp_ns, label, groups, directory, len, fingerprint })
    }

    /// Returns the number of key groups that the snapshot was split by.
    pub const fn key_groups(&self) -> KeyGroups {
        self.groups
    }

    /// Iterates over the groups that have entries, in order, each with the number of its entries.
    pub fn groups(&self) -> impl Iterator<Item = (u32, u64)> {
        self.directory.iter().map(|entry| (entry.group, entry.entries))
    }

    /// Returns the number of entries in all groups, as the directory says.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if no group has an entry.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns when the snapshot was taken, in nanoseconds since the start of 1970 (UTC).
    pub const fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// Returns the label: which operator and job the contents belong to.
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// Returns the fingerprint of all entries, as the directory says.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns where the image of a group lies, in bytes from the start; `None` if the group has no entries.
    pub fn extent(&self, group: u32) -> Option<Range<u64>> {
        self.find(group).map(Entry::extent)
    }

    fn find(&self, group: u32) -> Option<&Entry> {
        let at = self.directory.binary_search_by_key(&group, |entry| entry.group).ok()?;
        Some(&self.directory[at])
    }

    /// Reads and verifies one group, and nothing else. A group without entries, or beyond the last, is empty.
    ///
    /// Computes in O(entries of the group). Nothing is copied where the image is in memory.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`], and [`StateError::Malformed`] if the image is not the one that the
    /// directory tells of. Offsets count from the start of the group's image.
    pub fn group(&self, group: u32) -> Result<StateSnapshot, StateError> {
        match self.find(group) {
            Some(entry) => Ok(self.marked(self.read(entry)?)),
            None => Ok(self.marked(StateSnapshot::default())),
        }
    }

    /// Reads and verifies the groups within a range, and nothing else, and [merges](StateSnapshot::merge) them.
    ///
    /// # Errors
    ///
    /// The errors of [`group`](Self::group), and [`StateError::ConflictingKeys`].
    pub fn slice(&self, groups: Range<u32>) -> Result<StateSnapshot, StateError> {
        let entries = self.directory.iter().filter(|entry| groups.contains(&entry.group));
        let parts = entries.map(|entry| self.read(entry)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.marked(StateSnapshot::merge(parts).map_err(|error| self.backing.name(error))?))
    }

    /// Returns a snapshot with the time and the label of the whole.
    fn marked(&self, snapshot: StateSnapshot) -> StateSnapshot {
        snapshot.with_timestamp_ns(self.timestamp_ns).with_label(self.label.clone())
    }

    fn read(&self, entry: &Entry) -> Result<StateSnapshot, StateError> {
        self.try_read(entry).map_err(|error| self.backing.name(error))
    }

    fn try_read(&self, entry: &Entry) -> Result<StateSnapshot, StateError> {
        self.backing.will_need(entry.extent());
        let (image, ends) = Image::open(self.backing.read(entry.extent())?)?;
        self.check(entry, ends.timestamp_ns, &ends.label, &image)?;
        self.check_fingerprint(entry, ends.fingerprint)?;
        Ok(StateSnapshot::opened(ends.timestamp_ns, ends.label, Some(ends.fingerprint), Arc::new(image)))
    }

    fn check(&self, entry: &Entry, timestamp_ns: u64, label: &Label, image: &impl Source) -> Result<(), StateError> {
        let size = entry.key_bytes.saturating_add(entry.value_bytes);
        let end = entry.extent().end;
        let padding = self.backing.read(end..end.next_multiple_of(ALIGNMENT as u64))?;
        let is_zero = padding.iter().all(|&byte| byte == 0);
        self.rule(entry, "there are other bytes where the padding has zeros", is_zero.into(), 1)?;
        self.rule(entry, "its time is not that of the whole image", timestamp_ns, self.timestamp_ns)?;
        let is_same = *label == self.label.without_user_bytes();
        self.rule(entry, "its label is not that of the whole image", is_same.into(), 1)?;
        self.rule(entry, "the number of its entries is not that in the directory", image.len() as u64, entry.entries)?;
        self.rule(entry, "the size of its entries is not that in the directory", image.size_bytes() as u64, size)
    }

    fn check_fingerprint(&self, entry: &Entry, found: Fingerprint) -> Result<(), StateError> {
        if checksums_are_ignored() {
            return Ok(());
        }
        let problem = "the fingerprint of its image is not that in the directory";
        let (found, expected) = (found.halves(), entry.fingerprint.halves());
        self.rule(entry, problem, found.0, expected.0)?;
        self.rule(entry, problem, found.1, expected.1)
    }

    fn rule(&self, entry: &Entry, problem: &'static str, found: u64, expected: u64) -> Result<(), StateError> {
        rule("key group", entry.offset, problem, found, expected)
    }

    /// Reads all groups as one snapshot, verified.
    pub(super) fn read_whole(&self) -> Result<StateSnapshot, StateError> {
        self.slice(0..KeyGroups::MAX)
    }

    /// Opens all groups as one snapshot, of which the segments are verified when they are read.
    pub(super) fn open_whole(&self) -> Result<StateSnapshot, StateError> {
        let open = |entry: &Entry| {
            let image = LazyImage::open(self.backing.part(entry.extent()))?;
            self.check(entry, image.timestamp_ns(), &image.label, &image)?;
            self.check_fingerprint(entry, image.trailer.fingerprint)?;
            Ok(Arc::new(image) as Arc<dyn Source>)
        };
        let parts = self.directory.iter().map(open).collect::<Result<Vec<_>, StateError>>()?;
        Ok(StateSnapshot::opened(self.timestamp_ns, self.label.clone(), None, Arc::new(Merged::new(parts)?)))
    }
}

impl fmt::Debug for GroupedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupedImage")
            .field("len", &self.len)
            .field("key_groups", &self.groups.count())
            .field("images", &self.directory.len())
            .field("timestamp_ns", &self.timestamp_ns)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl StateSnapshot {
    /// Writes the snapshot as a [`GroupedImage`]; `part` gives the part of a key that groups are told by. Returns the
    /// number of bytes written.
    ///
    /// Computes in O(n), in several passes: the first finds the group of every entry, and each further one gathers as
    /// many groups as fit [`buffer_bytes`](ImageOptions::buffer_bytes), or writes one larger group as it goes. Beyond the
    /// snapshot it needs up to four times that many bytes, two (four while it counts) for every entry, and what
    /// [`write_to`](Self::write_to) needs for one group.
    ///
    /// Equal contents, groups and options give equal bytes but for the time. [`from_bytes`](Self::from_bytes) and its
    /// kin open the image as a whole; point reads of it ask one group after the other.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], and those of the medium that the snapshot lies in. What was written
    /// until then is an incomplete image, which cannot be opened.
    pub fn write_grouped(
        &self,
        groups: KeyGroups,
        part: impl Fn(&[u8]) -> &[u8],
        options: ImageOptions,
        out: impl Write,
    ) -> Result<u64, StateError> {
        let mut writer = GroupedWriter::new(self, out)?;
        let mut sizes = vec![0_usize; groups.count() as usize];
        // Kept, for a function that is asked twice may answer twice.
        let mut group_of = Vec::new();
        self.try_visit_range(.., |key, value| {
            let group = groups.group_of(part(key));
            group_of.push(group as u16);
            sizes[group as usize] += key.len() + value.len() + 8;
            ControlFlow::Continue(())
        })?;
        let mut next = 0;
        while let Some(first) = (next..sizes.len()).find(|&group| sizes[group] > 0) {
            let mut gathered = sizes[first];
            next = first + 1;
            while let Some(sum) = sizes.get(next).and_then(|size| gathered.checked_add(*size)) {
                if sum > options.buffer_bytes {
                    break;
                }
                gathered = sum;
                next += 1;
            }
            let batch = first..next;
            if sizes[batch.clone()].iter().filter(|size| **size > 0).count() == 1 {
                let image = self.image_writer(options, &mut writer.out)?;
                let images = self.write_batch(&group_of, first, vec![Some(image)])?;
                if let Some(image) = images.into_iter().flatten().next().map(|image| image.take_out().1) {
                    writer.add(first, image)?;
                }
            } else {
                let writers = sizes[batch].iter().map(|size| {
                    let capacity = size + size / 64 + 512;
                    (*size > 0).then(|| self.image_writer(options, Vec::with_capacity(capacity))).transpose()
                });
                let writers = writers.collect::<Result<Vec<_>, _>>()?;
                for (image, group) in self.write_batch(&group_of, first, writers)?.into_iter().zip(first..) {
                    if let Some((bytes, image)) = image.map(Written::take_out) {
                        writer.out.write_all(&bytes)?;
                        writer.add(group, image)?;
                    }
                }
            }
        }
        let (written, fingerprint) = writer.finish(groups)?;
        let _ = self.shared.fingerprint.set(fingerprint);
        Ok(written)
    }

    fn image_writer<W: Write>(&self, options: ImageOptions, out: W) -> Result<ImageWriter<W>, StateError> {
        let label = self.label().without_user_bytes();
        Ok(ImageWriter::new(Header::of_snapshot(self), &label, None, options, out)?)
    }

    /// Writes the groups from `first` on, each to its writer; groups that have none are passed over.
    fn write_batch<W: Write>(
        &self,
        group_of: &[u16],
        first: usize,
        mut writers: Vec<Option<ImageWriter<W>>>,
    ) -> Result<Vec<Option<Written<W>>>, StateError> {
        let mut result = Ok(());
        let mut index = 0;
        self.try_visit_range(.., |key, value| {
            let group = group_of.get(index).map_or(0, |group| usize::from(*group));
            index += 1;
            if let Some(Some(writer)) = group.checked_sub(first).and_then(|at| writers.get_mut(at)) {
                result = writer.push(key, value, None);
            }
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
        if index != group_of.len() {
            return Err(StateError::ImageChanged);
        }
        Ok(writers
            .into_iter()
            .map(|writer| writer.map(|writer| writer.finish(None)).transpose())
            .collect::<Result<_, _>>()?)
    }
}

struct GroupedWriter<W> {
    out: W,
    header: [u8; Header::LEN],
    /// The sections of the footer, with their length.
    sections: Vec<u8>,
    written: u64,
    directory: Vec<Entry>,
}

impl<W: Write> GroupedWriter<W> {
    fn new(snapshot: &StateSnapshot, mut out: W) -> Result<Self, StateError> {
        let header = Header::new(Kind::Grouped, snapshot.timestamp_ns()).to_bytes();
        let sections = snapshot.label().to_sections();
        out.write_all(&header)?;
        Ok(Self { out, header, sections, written: Header::LEN as u64, directory: Vec::new() })
    }

    /// Counts in the image of a group, which has been written.
    fn add(&mut self, group: usize, image: Written<()>) -> Result<(), StateError> {
        let Written { len, entries, key_bytes, value_bytes, fingerprint, .. } = image;
        let group = group as u32;
        let offset = self.written;
        self.directory.push(Entry { offset, len, entries, key_bytes, value_bytes, fingerprint, group, reserved: 0 });
        let padding = len.next_multiple_of(ALIGNMENT as u64) - len;
        self.out.write_all(&[0; ALIGNMENT][..padding as usize])?;
        self.written += len + padding;
        Ok(())
    }

    fn finish(mut self, groups: KeyGroups) -> Result<(u64, Fingerprint), StateError> {
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
