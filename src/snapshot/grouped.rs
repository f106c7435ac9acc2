//! [`GroupedImage`]: the image of a snapshot in which each key group can be read by itself.

use std::fmt;
use std::io::{Read, Seek, Write};
use std::ops::{ControlFlow, Range};
#[cfg(feature = "mmap")]
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::merge::Merged;
use super::state_snapshot::StateSnapshot;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::image::backing::Backing;
use crate::image::directory::{Directory, GroupEntry, GroupedWriter};
use crate::image::footer::Ends;
use crate::image::format::{ALIGNMENT, Header, ImageKind, checksums_are_ignored, rule};
use crate::image::label::Label;
use crate::image::options::ImageOptions;
use crate::image::reader::ImageReader;
use crate::image::writer::{ImageWriter, Written};
use crate::key_group::KeyGroups;
use crate::source::{SnapshotSource as _, Source};

/// The image of a snapshot in which each key group is a part that can be read by itself.
///
/// [`StateSnapshot::write_grouped`] writes it. Every part is a complete image of its group. It can be cut out by its
/// [`extent`](Self::extent) and opened with [`StateSnapshot::from_bytes`]. The whole can also be opened like any image,
/// and gives the snapshot that was written.
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
    /// The groups that have entries, in order.
    directory: Vec<GroupEntry>,
    len: usize,
    fingerprint: Fingerprint,
}

impl GroupedImage {
    /// Opens a grouped image by its directory. A group is verified when it is read.
    ///
    /// Computes in O(number of groups), and allocates 64 bytes for each. (Bytes that do not start at a multiple of 16
    /// in memory are copied first.)
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`], for header, directory and trailer.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_bytes(bytes.into())?)
    }

    /// Opens a grouped image in a seekable reader by its directory.
    ///
    /// A group is read and verified when it is asked for, and no other bytes are read.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes), and [`StateError::Io`].
    pub fn from_reader(reader: impl Read + Seek + Send + 'static) -> Result<Self, StateError> {
        Self::from_backing(Backing::of_reader(reader)?)
    }

    /// Opens a grouped image in a file by its directory. Only the groups asked for are read.
    ///
    /// The file is mapped into memory, and must not change:
    /// see [`UnverifiedImage::open`](crate::UnverifiedImage::open).
    ///
    /// # Errors
    ///
    /// [`StateError::File`], with the path and the error that [`from_reader`](Self::from_reader) has. Later reads have
    /// such errors too.
    #[cfg(feature = "mmap")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        let path = path.as_ref();
        Self::from_backing(Backing::of_file(path)?).map_err(|error| error.in_file(path))
    }

    /// Opens a grouped image.
    fn from_backing(backing: Backing) -> Result<Self, StateError> {
        let ends = Ends::read(&backing, &[ImageKind::Grouped])?;
        Self::with_ends(backing, ends)
    }

    /// Opens a grouped image whose ends have been read.
    pub(crate) fn with_ends(backing: Backing, ends: Ends) -> Result<Self, StateError> {
        let Ends { header, trailer, footer } = ends;
        let (directory, result) = Directory::read(&trailer, backing.len(), &footer.list);
        result?;
        let groups = KeyGroups::new(directory.key_groups.unwrap_or_default() as u32)?;
        Ok(Self {
            backing,
            timestamp_ns: header.timestamp_ns,
            label: footer.label,
            groups,
            directory: directory.entries,
            len: trailer.entries as usize,
            fingerprint: trailer.fingerprint,
        })
    }

    /// Returns the number of key groups that the snapshot was split by.
    pub const fn key_groups(&self) -> KeyGroups {
        self.groups
    }

    /// Iterates over the groups that have entries, in order, each with the number of its entries.
    pub fn groups(&self) -> impl Iterator<Item = (u32, u64)> {
        self.directory.iter().map(|entry| (entry.group, entry.entries))
    }

    /// Returns the number of entries in all groups, as the trailer gives it.
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

    /// Returns the operator and the job that the contents belong to.
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// Returns the fingerprint of all entries, as the trailer gives it.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the position of a group's image, in bytes from the start; `None` if the group has no entries.
    pub fn extent(&self, group: u32) -> Option<Range<u64>> {
        self.find(group).map(GroupEntry::extent)
    }

    /// Returns the directory entry of a group; `None` if the group has no entries.
    fn find(&self, group: u32) -> Option<&GroupEntry> {
        let at = self.directory.binary_search_by_key(&group, |entry| entry.group).ok()?;
        Some(&self.directory[at])
    }

    /// Reads and verifies one group only. A group without entries, or beyond the last one, is empty.
    ///
    /// Computes in O(entries of the group). If the image is in memory, nothing is copied, so the snapshot keeps all of its
    /// bytes alive. Cut out the [`extent`](Self::extent) and open a copy of it to keep one group only.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`], and [`StateError::Malformed`] if the group's image does not agree
    /// with the directory. Offsets count from the start of the group's image.
    pub fn group(&self, group: u32) -> Result<StateSnapshot, StateError> {
        match self.find(group) {
            Some(entry) => Ok(self.marked(self.read(entry)?)),
            None => Ok(self.marked(StateSnapshot::default())),
        }
    }

    /// Reads and verifies the groups within a range only, and [merges](StateSnapshot::merge) them.
    ///
    /// # Errors
    ///
    /// The errors of [`group`](Self::group), and [`StateError::ConflictingKeys`].
    pub fn slice(&self, groups: Range<u32>) -> Result<StateSnapshot, StateError> {
        let entries = self.directory.iter().filter(|entry| groups.contains(&entry.group));
        let parts = entries.map(|entry| self.read(entry)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.marked(StateSnapshot::merge(parts).map_err(|error| self.backing.add_path(error))?))
    }

    /// Returns a snapshot with the time and the label of the whole.
    fn marked(&self, snapshot: StateSnapshot) -> StateSnapshot {
        snapshot.with_timestamp_ns(self.timestamp_ns).with_label(self.label.clone())
    }

    /// Reads and verifies the image of a group.
    fn read(&self, entry: &GroupEntry) -> Result<StateSnapshot, StateError> {
        self.try_read(entry).map_err(|error| self.backing.add_path(error))
    }

    /// Reads and verifies the image of a group. Its errors lack the path of the file.
    fn try_read(&self, entry: &GroupEntry) -> Result<StateSnapshot, StateError> {
        self.backing.will_need(entry.extent());
        // A group is needed completely, so one read fetches it.
        let image = self.open_group(entry, Backing::of_bytes(self.backing.read(entry.extent())?)?)?;
        image.verify()?;
        Ok(StateSnapshot::opened(image.timestamp_ns(), image.label().clone(), image.fingerprint(), Arc::new(image)))
    }

    /// Opens the image of a group, and checks that it agrees with the directory.
    fn open_group(&self, entry: &GroupEntry, backing: Backing) -> Result<ImageReader, StateError> {
        let image = ImageReader::open(ImageKind::Snapshot, backing)?;
        let size = entry.key_bytes.saturating_add(entry.value_bytes);
        let end = entry.extent().end;
        let padding = self.backing.read(end..end.next_multiple_of(ALIGNMENT as u64))?;
        let is_zero = padding.iter().all(|&byte| byte == 0);
        let check = |problem, found, expected| rule("key group", entry.offset, problem, found, expected);
        check("there are other bytes where the padding has zeros", is_zero.into(), 1)?;
        check("its time is not that of the whole image", image.timestamp_ns(), self.timestamp_ns)?;
        let is_same = *image.label() == self.label.without_user_bytes();
        check("its label is not that of the whole image", is_same.into(), 1)?;
        check("the number of its entries is not that in the directory", image.len() as u64, entry.entries)?;
        check("the size of its entries is not that in the directory", image.size_bytes() as u64, size)?;
        if !checksums_are_ignored() {
            let problem = "the fingerprint of its image is not that in the directory";
            let (found, expected) = (image.stored_fingerprint().halves(), entry.fingerprint.halves());
            check(problem, found.0, expected.0)?;
            check(problem, found.1, expected.1)?;
        }
        Ok(image)
    }

    /// Opens all groups as one snapshot. Its segments are verified when they are read.
    pub(crate) fn open_whole(&self) -> Result<StateSnapshot, StateError> {
        let open = |entry: &GroupEntry| {
            let image = self.open_group(entry, self.backing.part(entry.extent()))?;
            Ok(Arc::new(image) as Arc<dyn Source>)
        };
        let images = self.directory.iter().map(open).collect::<Result<Vec<_>, StateError>>()?;
        Ok(StateSnapshot::opened(self.timestamp_ns, self.label.clone(), None, Arc::new(Merged::new(images)?)))
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
    /// Writes the snapshot as a [`GroupedImage`], and returns the number of bytes written.
    ///
    /// `part` returns the part of a key that selects its group.
    ///
    /// Computes in O(n), in several passes. The first pass finds the group of every entry. Each further one gathers as
    /// many groups as fit [`buffer_bytes`](ImageOptions::buffer_bytes), or writes one larger group directly. Beyond the
    /// snapshot it needs up to four times that many bytes, two bytes for every entry (four in the first pass), and the
    /// memory that [`write_to`](Self::write_to) needs for one group.
    ///
    /// Equal contents, groups and options give equal bytes except for the time. [`from_bytes`](Self::from_bytes) and
    /// the other methods that open images open the whole; a point read of it asks one group after the other.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], and the errors of the medium that the snapshot lies in. The bytes written until then are an
    /// incomplete image, which cannot be opened.
    pub fn write_grouped(
        &self,
        groups: KeyGroups,
        part: impl Fn(&[u8]) -> &[u8],
        options: ImageOptions,
        out: impl Write,
    ) -> Result<u64, StateError> {
        let mut writer = GroupedWriter::new(self.timestamp_ns(), self.label(), out)?;
        let mut sizes = vec![0_usize; groups.count() as usize];
        // The groups are stored, because a second call of `part` for a key may return another part.
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
        self.set_fingerprint(fingerprint);
        Ok(written)
    }

    /// Creates the writer of a group's image.
    fn image_writer<W: Write>(&self, options: ImageOptions, out: W) -> Result<ImageWriter<W>, StateError> {
        let label = self.label().without_user_bytes();
        Ok(ImageWriter::new(Header::new(ImageKind::Snapshot, self.timestamp_ns()), &label, None, options, out)?)
    }

    /// Writes the groups from `first` on, each to its own writer. Skips groups without a writer.
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
