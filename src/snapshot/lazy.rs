//! [`LazyImage`]: an image of which only the footer has been read, and each segment when it is first asked for.
//!
//! # Design
//!
//! Opening checks the header, the trailer and the footer, and through them where every segment lies, how many entries it
//! holds and that first keys ascend. A segment is checked by the same code as in an image opened whole, but when a read
//! comes to it; and what ties it to its neighbours (its keys lie between its own first key and the next one's) is checked
//! against the footer, so that no other segment has to be read for that.
//!
//! Where the bytes come from is one enum. Bytes that are there (a map of a file) are sliced, and a segment of them is
//! checked once. From a reader one segment is held at a time, and checked each time it is read, for it may have changed.
//!
//! # Why this and not the other way
//!
//! Checking segments in the background would hide the first touch's cost and read what nobody asks for. Remembering only
//! a bit for a checked segment would save its 100 bytes, and ask rkyv anew at every read.
//!
//! A read of all entries verifies the image on its way, so that a store is restored from it in one pass.
//!
//! # Invariants
//!
//! 1. The footer keeps rules 1 and 3 of `format.rs`, and its first keys strictly ascend.
//! 2. A [`Loaded`] segment keeps rules 2, 4 and 5, and its last key sorts before the next segment's first.
//! 3. Hence the entries of loaded segments, in the order of segments, are entries in strictly ascending order.
//!
//! The sums of rule 6 but for the number of entries are only what the trailer says until all entries were read once.

use std::any::Any;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Bound, ControlFlow, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::format::{Descriptor, FooterParts, Header, Kind, Trailer, checksums_are_ignored, rule, verify_checksum};
use super::image::{Segment, align, check_extent, check_room, check_segment};
use super::{Fingerprint, Label, Source};
use crate::bounds::{ALL_KEYS, KeyBounds, OwnedBounds, is_before_end, is_before_start, is_inverted};
use crate::{StateError, TryScan};

/// A reader of an image that is not in memory.
pub(super) trait ReadSeek: Read + Seek + Send + 'static {}

impl<R: Read + Seek + Send + 'static> ReadSeek for R {}

/// Where the bytes of an image are.
#[derive(Clone)]
pub(super) enum Backing {
    /// There, at an alignment that archives can be read at.
    Whole(Bytes),
    /// In a map of a file. Header, footer and trailer are read from the file itself: reading a map page by page takes
    /// many times as long where the file is not in memory, and what was read stays whatever happens to the file.
    #[cfg_attr(not(feature = "mmap"), allow(dead_code, reason = "only `map.rs` makes one"))]
    Mapped {
        bytes: Bytes,
        /// Tells the system that a range of the file is about to be read.
        will_need: Arc<dyn Fn(Range<u64>) + Send + Sync>,
        file: Arc<Mutex<dyn ReadSeek>>,
        path: Arc<Path>,
        /// Where the image starts in the file.
        base: u64,
    },
    /// In a reader, where the image takes `len` bytes from `base` on.
    Apart { reader: Arc<Mutex<dyn ReadSeek>>, base: u64, len: u64 },
}

impl Backing {
    pub(super) fn of_reader(mut reader: impl Read + Seek + Send + 'static) -> io::Result<Self> {
        let len = reader.seek(SeekFrom::End(0))?;
        Ok(Self::Apart { reader: Arc::new(Mutex::new(reader)), base: 0, len })
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Whole(bytes) | Self::Mapped { bytes, .. } => bytes.len() as u64,
            Self::Apart { len, .. } => *len,
        }
    }

    /// The part of an image that lies within it.
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        match self {
            Self::Whole(bytes) => Self::Whole(bytes.slice(range.start as usize..range.end as usize)),
            Self::Mapped { bytes, will_need, file, path, base } => Self::Mapped {
                bytes: bytes.slice(range.start as usize..range.end as usize),
                will_need: Arc::clone(will_need),
                file: Arc::clone(file),
                path: Arc::clone(path),
                base: base + range.start,
            },
            Self::Apart { reader, base, .. } => {
                Self::Apart { reader: Arc::clone(reader), base: base + range.start, len: range.end - range.start }
            }
        }
    }

    /// The bytes of `range`, which lies within the image.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Bytes, StateError> {
        /// More is only allocated once that much has been read: the reader's length may not be true.
        const TRUSTED: u64 = 1 << 20;
        match self {
            Self::Whole(bytes) | Self::Mapped { bytes, .. } => {
                Ok(bytes.slice(range.start as usize..range.end as usize))
            }
            Self::Apart { reader, base, len } => {
                let asked = range.end - range.start;
                let mut bytes = Vec::with_capacity(asked.min(TRUSTED) as usize);
                let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                reader.seek(SeekFrom::Start(base + range.start))?;
                Read::take(&mut *reader, asked).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < asked {
                    return Err(StateError::Truncated { len: range.start + bytes.len() as u64, needed: *len });
                }
                Ok(align(bytes.into()))
            }
        }
    }

    /// Names the file in an error, if there is one.
    pub(super) fn name(&self, error: StateError) -> StateError {
        match self {
            Self::Mapped { path, .. } => error.in_file(path),
            Self::Whole(_) | Self::Apart { .. } => error,
        }
    }

    /// Returns the same bytes, for parts that are read once.
    fn without_map(&self) -> Self {
        match self {
            Self::Mapped { bytes, file, base, .. } => {
                Self::Apart { reader: Arc::clone(file), base: *base, len: bytes.len() as u64 }
            }
            other => other.clone(),
        }
    }

    /// Tells that a range is about to be read, in order.
    pub(super) fn will_need(&self, range: Range<u64>) {
        if let Self::Mapped { will_need, base, .. } = self {
            will_need(base + range.start..base + range.end);
        }
    }

    /// Reads and checks the header.
    pub(super) fn read_header(&self) -> Result<Header, StateError> {
        // No image is shorter than header and trailer, so that these bytes tell of their number what all would.
        Header::read(&self.without_map().read(0..self.len().min((Header::LEN + Trailer::LEN) as u64))?)
    }

    /// Reads and checks the header, the trailer and the footer.
    pub(super) fn read_ends(&self) -> Result<(Header, Trailer, Bytes), StateError> {
        let read = self.read_header()?;
        let len = self.len();
        let trailer_offset = len - Trailer::LEN as u64;
        let source = self.without_map();
        let header = source.read(0..Header::LEN as u64)?;
        let trailer = Trailer::read_apart(&header, &source.read(trailer_offset..len)?, len)?;
        trailer.check_footer(trailer_offset)?;
        let footer = source.read(trailer.footer_offset..trailer_offset)?;
        verify_checksum("footer", trailer.footer_offset, trailer.footer_checksum, &footer)?;
        Ok((read, trailer, footer))
    }
}

pub(super) struct LazyImage {
    backing: Backing,
    header: Header,
    pub(super) label: Label,
    pub(super) trailer: Trailer,
    footer: Bytes,
    /// Where the first key of each segment ends within the footer.
    first_key_ends: Vec<usize>,
    kept: Kept,
    /// The fingerprint, once all of the image has been verified.
    verified: OnceLock<Fingerprint>,
}

/// The segments that are not checked again.
enum Kept {
    /// Each that was ever asked for.
    All(Vec<OnceLock<Arc<Loaded>>>),
    /// The last that was asked for, with its index.
    Last(Mutex<Option<(usize, Arc<Loaded>)>>),
}

/// How far a scan has asked for what it will read.
struct Ahead {
    /// The segments before this one have been asked for.
    segment: usize,
    /// Where the scan has to come to before it asks again.
    mark: u64,
}

/// Sums over entries, to be compared with the trailer once all were read.
#[derive(Default)]
struct Sums {
    key_bytes: u64,
    value_bytes: u64,
    fingerprint: Fingerprint,
}

impl Sums {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.key_bytes += key.len() as u64;
        self.value_bytes += value.len() as u64;
        self.fingerprint.add(key, value);
    }
}

/// A segment that has been checked.
struct Loaded {
    bytes: Bytes,
    segment: Segment,
}

impl Loaded {
    fn key(&self, index: usize) -> &[u8] {
        &self.bytes[self.segment.key(&self.bytes, index)]
    }

    fn entry(&self, index: usize) -> (Bytes, Bytes) {
        let (key, value) = (self.segment.key(&self.bytes, index), self.segment.value(&self.bytes, index));
        (self.bytes.slice(key), self.bytes.slice(value))
    }
}

impl LazyImage {
    /// Opens an image. O(number of segments).
    pub(super) fn open(backing: Backing) -> Result<Self, StateError> {
        let (header, trailer, footer) = backing.read_ends()?;
        header.expect_kind(Kind::Snapshot)?;
        let trailer_offset = backing.len() - Trailer::LEN as u64;
        let FooterParts { list, label, .. } = FooterParts::read(header, &footer, trailer.footer_offset)?;
        // From here on, what is allocated has its room in the footer.
        check_room(&trailer, trailer_offset, list.len())?;
        let (descriptors, first_keys) = list.split_at(trailer.segments as usize * Descriptor::LEN);
        let mut first_key_ends = Vec::with_capacity(trailer.segments as usize);
        let (mut offset, mut start, mut entries) = (Header::LEN as u64, 0, 0);
        let mut last_key = None;
        for descriptor in descriptors.chunks_exact(Descriptor::LEN).map(Descriptor::read) {
            let end = (start + usize::from(descriptor.first_key_len)).min(first_keys.len());
            let first_key = &first_keys[start..end];
            let at = offset;
            let check = |problem, found, expected| rule("segment", at, problem, found, expected);
            let len = check_extent(header, &descriptor, offset, trailer.footer_offset, first_key.len())?;
            check("it is empty", descriptor.entries.into(), descriptor.entries.max(1).into())?;
            let most = descriptor.archive_len / 8;
            check(
                "it has no room for so many entries",
                descriptor.entries.into(),
                descriptor.entries.min(most).into(),
            )?;
            let ascends = last_key.is_none_or(|last| last < first_key);
            check("its first key does not sort after the one before it", ascends.into(), 1)?;
            last_key = Some(first_key);
            first_key_ends.push(descriptors.len() + end);
            entries += u64::from(descriptor.entries);
            (start, offset) = (end, offset + len);
        }
        let footer_offset = trailer.footer_offset;
        let in_footer = |problem, found, expected| rule("footer", footer_offset, problem, found, expected);
        in_footer("the segments do not end where the footer starts", offset, footer_offset)?;
        in_footer("there are bytes after the last first key", first_keys.len() as u64, start as u64)?;
        let in_trailer = |problem, found, expected| rule("trailer", trailer_offset, problem, found, expected);
        in_trailer("the number of entries is not true", trailer.entries, entries)?;
        // Others allocate by what the snapshot says of itself.
        let size = trailer.key_bytes.saturating_add(trailer.value_bytes);
        in_trailer("the segments have no room for such lengths", size, size.min(footer_offset))?;
        // A reader may hold more than a program can count to.
        if usize::try_from(size.max(entries)).is_err() {
            return Err(StateError::BeyondAddressSpace);
        }

        let kept = match &backing {
            Backing::Whole(_) | Backing::Mapped { .. } => {
                Kept::All((0..trailer.segments).map(|_| OnceLock::new()).collect())
            }
            Backing::Apart { .. } => Kept::Last(Mutex::new(None)),
        };
        let verified = OnceLock::new();
        Ok(Self { backing, header, label, trailer, footer, first_key_ends, kept, verified })
    }

    pub(super) fn timestamp_ns(&self) -> u64 {
        self.header.timestamp_ns
    }

    fn segments(&self) -> usize {
        self.first_key_ends.len()
    }

    fn first_key(&self, segment: usize) -> &[u8] {
        let start = match segment.checked_sub(1) {
            Some(before) => self.first_key_ends[before],
            None => self.segments() * Descriptor::LEN,
        };
        &self.footer[start..self.first_key_ends[segment]]
    }

    /// The number of segments whose first keys satisfy `before`, which holds for a run of keys from the start.
    fn segments_before(&self, before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.segments());
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.first_key(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Returns a segment, checked.
    fn segment(&self, index: usize) -> Result<Arc<Loaded>, StateError> {
        match &self.kept {
            Kept::All(all) => {
                if let Some(loaded) = all[index].get() {
                    return Ok(Arc::clone(loaded));
                }
                // Two threads may both check it, and find the same.
                let loaded = self.load(index).map_err(|error| self.backing.name(error))?;
                Ok(Arc::clone(all[index].get_or_init(|| loaded)))
            }
            Kept::Last(last) => {
                let lock = || last.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((kept, loaded)) = &*lock() {
                    if *kept == index {
                        return Ok(Arc::clone(loaded));
                    }
                }
                // Let go of the old one first, so that only one is held.
                *lock() = None;
                let loaded = self.load(index).map_err(|error| self.backing.name(error))?;
                *lock() = Some((index, Arc::clone(&loaded)));
                Ok(loaded)
            }
        }
    }

    fn load(&self, index: usize) -> Result<Arc<Loaded>, StateError> {
        let descriptor = Descriptor::read(&self.footer[index * Descriptor::LEN..]);
        let (_, len) = descriptor.extent().unwrap_or_default();
        let offset = descriptor.offset;
        let bytes = self.backing.read(offset..offset + len)?;
        let segment =
            check_segment(self.header, &bytes, offset, &descriptor, Some(self.first_key(index)), None, |_, _, _| {})?;
        let loaded = Loaded { bytes, segment };
        if index + 1 < self.segments() {
            let is_below = loaded.key(loaded.segment.entries - 1) < self.first_key(index + 1);
            let problem = "its last key does not sort before the first of the next segment";
            rule("segment", offset, problem, is_below.into(), 1)?;
        }
        Ok(Arc::new(loaded))
    }

    fn offset(&self, segment: usize) -> u64 {
        let at = segment * Descriptor::LEN;
        if segment < self.segments() { Descriptor::read(&self.footer[at..]).offset } else { self.trailer.footer_offset }
    }

    /// Asks for the segments behind `index` of a scan up to `end`, some MiB at a time and before they are needed.
    fn read_ahead(&self, ahead: &mut Ahead, index: usize, end: usize) {
        /// How much is asked for at once. At most twice that is under way.
        const STEP: u64 = 4 << 20;
        let offset = self.offset(index);
        if offset < ahead.mark {
            return;
        }
        let first = ahead.segment.max(index);
        while ahead.segment < end && self.offset(ahead.segment) < offset + 2 * STEP {
            ahead.segment += 1;
        }
        self.backing.will_need(self.offset(first)..self.offset(ahead.segment.max(first)));
        ahead.mark = offset + STEP;
    }

    /// Iterates over the entries within `bounds`, from both ends: segments, checked, each with a range of indices.
    fn runs<'a>(
        &'a self,
        bounds: KeyBounds<'_>,
    ) -> impl DoubleEndedIterator<Item = Result<(Arc<Loaded>, Range<usize>), StateError>> + use<'a> {
        let start = self.segments_before(|key| is_before_start(bounds.0, key)).saturating_sub(1);
        let end = if is_inverted(bounds) { start } else { self.segments_before(|key| is_before_end(bounds.1, key)) };
        let bounds = OwnedBounds::copy_of(bounds);
        let mut ahead = Ahead { segment: start, mark: 0 };
        (start..end).map(move |index| {
            if end - start > 1 {
                self.read_ahead(&mut ahead, index, end);
            }
            let loaded = self.segment(index)?;
            let Loaded { bytes, segment } = &*loaded;
            let (from, to) = bounds.get();
            let before = |key: &[u8]| is_before_start(from, key);
            let within = |key: &[u8]| is_before_end(to, key);
            let low = if index == start { segment.partition_point(bytes, 0, before) } else { 0 };
            let high = if index + 1 == end { segment.partition_point(bytes, low, within) } else { segment.entries };
            Ok((loaded, low..high))
        })
    }

    /// Iterates over the entries within `bounds`, from both ends. An error stands for all entries of a segment.
    fn entries<'a>(
        &'a self,
        bounds: KeyBounds<'_>,
    ) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StateError>> + use<'a> {
        self.runs(bounds).flat_map(|run| {
            let (entries, error) = match run {
                Ok((loaded, range)) => (Some(range.map(move |index| Ok(loaded.entry(index)))), None),
                Err(error) => (None, Some(Err(error))),
            };
            entries.into_iter().flatten().chain(error)
        })
    }

    /// Returns sums to be filled by a read of these bounds, if that can verify the image.
    fn sums_for(&self, bounds: KeyBounds<'_>) -> Option<Sums> {
        let are_all = matches!(bounds, (Bound::Unbounded | Bound::Included([]), Bound::Unbounded));
        (are_all && self.verified.get().is_none()).then(Sums::default)
    }

    /// Compares the sums over all entries with the trailer. From then on the image is verified.
    fn finish(&self, Sums { key_bytes, value_bytes, fingerprint }: Sums) -> Result<(), StateError> {
        let checked = self.trailer.check_sums(self.backing.len(), key_bytes, value_bytes, fingerprint);
        checked.map_err(|error| self.backing.name(error))?;
        let _ = self.verified.set(fingerprint);
        Ok(())
    }
}

/// A scan of all entries of an image that nobody has verified: it does so on the way.
struct Verifying<'a, I> {
    image: &'a LazyImage,
    entries: I,
    /// Nothing once there was an error or a step from the end, and at the end.
    sums: Option<Sums>,
}

impl<I: DoubleEndedIterator<Item = Result<(Bytes, Bytes), StateError>>> DoubleEndedIterator for Verifying<'_, I> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.sums = None;
        self.entries.next_back()
    }
}

impl<I: Iterator<Item = Result<(Bytes, Bytes), StateError>>> Iterator for Verifying<'_, I> {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.entries.next();
        match (&next, &mut self.sums) {
            (Some(Ok((key, value))), Some(sums)) => sums.add(key, value),
            (Some(Err(_)), _) => self.sums = None,
            (None, _) => return self.image.finish(self.sums.take()?).err().map(Err),
            _ => {}
        }
        next
    }
}

impl Source for LazyImage {
    fn len(&self) -> usize {
        self.trailer.entries as usize
    }

    fn size_bytes(&self) -> usize {
        (self.trailer.key_bytes + self.trailer.value_bytes) as usize
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let Some(index) = self.segments_before(|first| first <= key).checked_sub(1) else { return Ok(None) };
        let loaded = self.segment(index)?;
        let at = loaded.segment.partition_point(&loaded.bytes, 0, |other| other < key);
        let is_found = at < loaded.segment.entries && loaded.key(at) == key;
        Ok(is_found.then(|| loaded.entry(at).1))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let entries = self.entries(bounds);
        match self.sums_for(bounds) {
            Some(sums) => TryScan::new(Verifying { image: self, entries, sums: Some(sums) }),
            None => TryScan::new(entries),
        }
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let mut sums = self.sums_for(bounds);
        for run in self.runs(bounds) {
            let (loaded, range) = run?;
            let Loaded { bytes, segment } = &*loaded;
            for index in range {
                let (key, value) = (&bytes[segment.key(bytes, index)], &bytes[segment.value(bytes, index)]);
                if let Some(sums) = &mut sums {
                    sums.add(key, value);
                }
                if f(key, value).is_break() {
                    return Ok(());
                }
            }
        }
        sums.map_or(Ok(()), |sums| self.finish(sums))
    }

    fn is_for_many_readers(&self) -> bool {
        !matches!(self.backing, Backing::Apart { .. })
    }

    fn can_fail(&self) -> bool {
        matches!(self.backing, Backing::Apart { .. })
    }

    fn verify(&self) -> Result<Option<Fingerprint>, StateError> {
        if self.verified.get().is_none() {
            self.try_visit(ALL_KEYS, &mut |_, _| ControlFlow::Continue(()))?;
        }
        Ok(self.verified.get().copied())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Trailer {
    /// Checks what the trailer of an image of `len` bytes says of its entries, but for their number.
    pub(super) fn check_sums(
        &self,
        len: u64,
        key_bytes: u64,
        value_bytes: u64,
        fingerprint: Fingerprint,
    ) -> Result<(), StateError> {
        let offset = len - Self::LEN as u64;
        let check = |problem, found, expected| rule("trailer", offset, problem, found, expected);
        check("the length of all keys is not true", self.key_bytes, key_bytes)?;
        check("the length of all values is not true", self.value_bytes, value_bytes)?;
        if !checksums_are_ignored() {
            let (found, expected) = (self.fingerprint.halves(), fingerprint.halves());
            check("the fingerprint is not that of the entries", found.0, expected.0)?;
            check("the fingerprint is not that of the entries", found.1, expected.1)?;
        }
        Ok(())
    }
}
