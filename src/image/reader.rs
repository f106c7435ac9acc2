//! [`ImageReader`]: an image opened by its footer. Its segments are checked when they are first read.
//!
//! # Design
//!
//! Opening checks the header, the trailer and the footer. The footer gives the position of every segment, its number of
//! entries and its first key. A segment is checked when it is read. Its keys must lie between its own first key and the
//! next one's in the footer, so the check reads no other segment.
//!
//! [Verifying](ImageReader::verify) checks all segments, and then the sums in the trailer. Opening and verifying
//! together take one pass over the image. A read of all entries in order verifies the image on its way, so restoring a
//! store from an image takes one pass too.
//!
//! A segment in memory is checked once by reads, and once by verifying. A segment from a reader is checked each time it
//! is read, because the file may have changed; one segment is held at a time.
//!
//! # Why
//!
//! - Checking segments in the background would hide the cost of the first read, and read segments that nobody asks for.
//! - Keeping only one bit for a checked segment would save the 56 bytes of its columns' positions, but every read would
//!   ask rkyv for them again.
//!
//! # Invariants
//!
//! 1. The footer keeps rules 1 and 3 of `format.rs`, and its first keys strictly ascend.
//! 2. A [`LoadedSegment`] keeps rules 2, 4 and 5, and its last key sorts before the first key of the next segment.
//! 3. Hence the entries of loaded segments, in the order of segments, are in strictly ascending order of keys.
//! 4. Once `verified` is set, the image keeps all rules of `format.rs`. Until then the sums in the trailer (rule 6) are
//!    unchecked, except for the number of entries.

use std::ops::{Bound, ControlFlow, Range};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::backing::Backing;
use super::footer::{Ends, Footer, SegmentTable};
use super::format::{Base, Header, ImageKind, Trailer, checksums_are_ignored, rule};
use super::label::Label;
use super::segment::Segment;
use crate::bounds::{KeyBounds, OwnedBounds, is_before_end, is_before_start};
use crate::comparison::ChangeKind;
use crate::error::{StateError, expect_sound};
use crate::fingerprint::Fingerprint;
use crate::scan::TryScan;
use crate::source::{SnapshotSource, Source};

/// An opened image of a snapshot or a delta.
pub(crate) struct ImageReader {
    backing: Backing,
    header: Header,
    trailer: Trailer,
    base: Option<Base>,
    label: Label,
    table: SegmentTable,
    checked: CheckedSegments,
    /// The fingerprint, once all of the image has been verified.
    verified: OnceLock<Fingerprint>,
}

/// Segments that need no further check.
enum CheckedSegments {
    /// For an image in memory: every segment that has been read.
    All(Box<[OnceLock<Segment>]>),
    /// For an image in a reader: the index and bytes of the segment read last.
    Last(Mutex<Option<(usize, Bytes, Segment)>>),
}

/// A checked segment: its bytes and the positions of its columns.
struct LoadedSegment<'a> {
    bytes: SegmentBytes<'a>,
    segment: Segment,
}

/// The bytes of a segment.
enum SegmentBytes<'a> {
    /// A part of an image in memory.
    InPlace { image: &'a Bytes, range: Range<usize> },
    /// The bytes that a reader returned.
    Read(Bytes),
}

impl SegmentBytes<'_> {
    #[inline]
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::InPlace { image, range } => &image[range.clone()],
            Self::Read(bytes) => bytes,
        }
    }

    /// Returns a handle to the bytes at `range` of the segment.
    #[inline]
    fn handle(&self, range: Range<usize>) -> Bytes {
        match self {
            Self::InPlace { image, range: Range { start, .. } } => image.slice(start + range.start..start + range.end),
            Self::Read(bytes) => bytes.slice(range),
        }
    }
}

impl LoadedSegment<'_> {
    /// Returns the bytes of the segment.
    #[inline]
    fn as_slice(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Returns the number of entries.
    fn len(&self) -> usize {
        self.segment.entries as usize
    }

    /// Returns the first index, from `low` on, whose key does not satisfy `before`.
    fn partition_point(&self, low: usize, before: impl Fn(&[u8]) -> bool) -> usize {
        self.segment.partition_point(self.as_slice(), low, before)
    }

    /// Returns an entry as handles into the image.
    #[inline]
    fn entry(&self, index: usize) -> (Bytes, Bytes) {
        let bytes = self.as_slice();
        let (key, value) = (self.segment.key(bytes, index), self.segment.value(bytes, index));
        (self.bytes.handle(key), self.bytes.handle(value))
    }
}

/// The sums over entries that are compared with the trailer and with the base of a delta.
#[derive(Default)]
struct Sums {
    entries: u64,
    key_bytes: u64,
    value_bytes: u64,
    inserts: u64,
    deletes: u64,
    fingerprint: Fingerprint,
}

impl Sums {
    /// Adds an entry, which is a change if the image is a delta. The fingerprint does not cover deleted keys.
    #[inline]
    fn add(&mut self, key: &[u8], value: &[u8], change: Option<ChangeKind>) {
        self.entries += 1;
        self.key_bytes += key.len() as u64;
        self.value_bytes += value.len() as u64;
        match change {
            Some(ChangeKind::Delete) => {
                self.deletes += 1;
                return;
            }
            Some(ChangeKind::Insert) => self.inserts += 1,
            Some(ChangeKind::Update) | None => {}
        }
        self.fingerprint.add(key, value);
    }
}

/// The progress of announcing a scan's reads to the system.
struct ReadAhead {
    /// The first segment that has not been announced.
    segment: usize,
    /// The offset at which the scan announces more.
    next_offset: u64,
}

impl ReadAhead {
    /// Creates the state of a scan that starts at `segment`.
    fn new(segment: usize) -> Self {
        Self { segment, next_offset: 0 }
    }
}

impl ImageReader {
    /// Opens an image, which must be of this kind. O(number of segments).
    pub(crate) fn open(kind: ImageKind, backing: Backing) -> Result<Self, StateError> {
        let ends = Ends::read(&backing, &[kind])?;
        Self::with_ends(backing, ends)
    }

    /// Opens an image of a snapshot or a delta whose ends have been read.
    pub(crate) fn with_ends(backing: Backing, ends: Ends) -> Result<Self, StateError> {
        let Ends { header, trailer, footer: Footer { list, base, label } } = ends;
        let (table, result) = SegmentTable::read(header, &trailer, backing.len(), list);
        result?;
        // Callers allocate by these sums. The numbers of entries and of bytes must fit the address space, although a
        // reader may hold more.
        let size = trailer.key_bytes.saturating_add(trailer.value_bytes);
        let trailer_offset = backing.len() - Trailer::LEN as u64;
        let most = size.min(trailer.footer_offset);
        rule("trailer", trailer_offset, "the segments have no room for such lengths", size, most)?;
        if usize::try_from(size.max(trailer.entries)).is_err() {
            return Err(StateError::BeyondAddressSpace);
        }
        let checked = match &backing {
            Backing::InMemory(_) | Backing::Mapped { .. } => {
                CheckedSegments::All((0..table.len()).map(|_| OnceLock::new()).collect())
            }
            Backing::Reader { .. } => CheckedSegments::Last(Mutex::new(None)),
        };
        Ok(Self { backing, header, trailer, base, label, table, checked, verified: OnceLock::new() })
    }

    /// Returns the time in the header.
    pub(crate) fn timestamp_ns(&self) -> u64 {
        self.header.timestamp_ns
    }

    /// Returns the label in the footer.
    pub(crate) fn label(&self) -> &Label {
        &self.label
    }

    /// Returns the contents before and after a delta, as the footer gives them. Returns `None` for a snapshot.
    pub(crate) fn base(&self) -> Option<Base> {
        self.base
    }

    /// Returns the fingerprint of all entries, as the trailer gives it.
    pub(crate) fn stored_fingerprint(&self) -> Fingerprint {
        self.trailer.fingerprint
    }

    /// Iterates over the changes of a verified delta: each key, the kind of its change, and its new value.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (Bytes, ChangeKind, Bytes)> + '_ {
        (0..self.table.len()).map(|index| expect_sound(self.segment(index))).flat_map(|loaded| {
            (0..loaded.len()).map(move |index| {
                let (key, value) = loaded.entry(index);
                (key, loaded.segment.change(loaded.as_slice(), index), value)
            })
        })
    }

    /// Calls `f` with the changes of a verified delta, in order, until `f` breaks.
    pub(crate) fn visit_changes(&self, f: &mut dyn FnMut(&[u8], ChangeKind, &[u8]) -> ControlFlow<()>) {
        let _ = (0..self.table.len()).map(|index| expect_sound(self.segment(index))).try_for_each(|loaded| {
            let LoadedSegment { segment, .. } = loaded;
            let bytes = loaded.as_slice();
            (0..loaded.len()).try_for_each(|index| {
                f(&bytes[segment.key(bytes, index)], segment.change(bytes, index), &bytes[segment.value(bytes, index)])
            })
        });
    }

    /// Returns a checked segment, and reads and checks it first if necessary.
    fn segment(&self, index: usize) -> Result<LoadedSegment<'_>, StateError> {
        match &self.checked {
            CheckedSegments::All(all) => {
                if let (Some(&segment), Some(bytes)) = (all[index].get(), self.in_place(index)) {
                    return Ok(LoadedSegment { bytes, segment });
                }
            }
            CheckedSegments::Last(last) => {
                let last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, bytes, segment)) = last.as_ref().filter(|(held, ..)| *held == index) {
                    return Ok(LoadedSegment { bytes: SegmentBytes::Read(bytes.clone()), segment: *segment });
                }
            }
        }
        self.load(index, |_, _, _| {})
    }

    /// Reads and checks a segment, and calls `each` with its entries.
    fn load(
        &self,
        index: usize,
        each: impl FnMut(&[u8], &[u8], Option<ChangeKind>),
    ) -> Result<LoadedSegment<'_>, StateError> {
        self.try_load(index, each).map_err(|error| self.backing.add_path(error))
    }

    /// Reads and checks a segment. Its errors lack the path of the file.
    fn try_load(
        &self,
        index: usize,
        each: impl FnMut(&[u8], &[u8], Option<ChangeKind>),
    ) -> Result<LoadedSegment<'_>, StateError> {
        let descriptor = self.table.descriptor(index);
        if let CheckedSegments::Last(last) = &self.checked {
            // The old segment is released before the new one is read, so that one is held at a time.
            *last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let bytes = match self.in_place(index) {
            Some(bytes) => bytes,
            None => SegmentBytes::Read(self.backing.read(self.extent(index))?),
        };
        let first_key = self.table.first_key(index);
        let slice = bytes.as_slice();
        let segment = Segment::check(self.header, &descriptor, Some(first_key), slice, each)?;
        self.table.check_last_key(index, &slice[segment.key(slice, segment.entries as usize - 1)])?;
        match (&self.checked, &bytes) {
            // Another thread may have checked the segment too, with equal results.
            (CheckedSegments::All(all), _) => {
                let _ = all[index].set(segment);
            }
            (CheckedSegments::Last(last), SegmentBytes::Read(bytes)) => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, bytes.clone(), segment));
            }
            (CheckedSegments::Last(_), SegmentBytes::InPlace { .. }) => {}
        }
        Ok(LoadedSegment { bytes, segment })
    }

    /// Returns the bytes of a segment if the image is in memory.
    fn in_place(&self, index: usize) -> Option<SegmentBytes<'_>> {
        match &self.backing {
            Backing::InMemory(image) | Backing::Mapped { bytes: image, .. } => {
                let Range { start, end } = self.extent(index);
                Some(SegmentBytes::InPlace { image, range: start as usize..end as usize })
            }
            Backing::Reader { .. } => None,
        }
    }

    /// Returns the position of a segment in the image. It ends where the next one starts (rule 3 of the format).
    fn extent(&self, index: usize) -> Range<u64> {
        self.offset(index)..self.offset(index + 1)
    }

    /// Returns the offset of a segment, or of the footer if `index` is the number of segments.
    fn offset(&self, index: usize) -> u64 {
        if index < self.table.len() { self.table.offset(index) } else { self.trailer.footer_offset }
    }

    /// Tells the system which segments a scan up to `end` reads next, some MiB at a time.
    fn read_ahead(&self, ahead: &mut ReadAhead, index: usize, end: usize) {
        /// The number of bytes in one request. At most two requests are under way.
        const STEP: u64 = 4 << 20;
        if !matches!(self.backing, Backing::Mapped { .. }) {
            return;
        }
        let offset = self.offset(index);
        if offset < ahead.next_offset {
            return;
        }
        let first = ahead.segment.max(index);
        while ahead.segment < end && self.offset(ahead.segment) < offset + 2 * STEP {
            ahead.segment += 1;
        }
        self.backing.will_need(self.offset(first)..self.offset(ahead.segment.max(first)));
        ahead.next_offset = offset + STEP;
    }

    /// Iterates over the segments with entries within `bounds`, each with the range of these entries' indices.
    fn runs<'a>(
        &'a self,
        bounds: KeyBounds<'_>,
    ) -> impl DoubleEndedIterator<Item = Result<(LoadedSegment<'a>, Range<usize>), StateError>> + use<'a> {
        let start = self.table.partition_point(|key| is_before_start(bounds.0, key)).saturating_sub(1);
        let end = self.table.partition_point(|key| is_before_end(bounds.1, key)).max(start);
        let bounds = OwnedBounds::copy_of(bounds);
        let mut ahead = ReadAhead::new(start);
        (start..end).map(move |index| {
            if end - start > 1 {
                self.read_ahead(&mut ahead, index, end);
            }
            let loaded = self.segment(index)?;
            let (from, to) = bounds.get();
            let low = if index == start { loaded.partition_point(0, |key| is_before_start(from, key)) } else { 0 };
            let is_last = index + 1 == end;
            let high = if is_last { loaded.partition_point(low, |key| is_before_end(to, key)) } else { loaded.len() };
            Ok((loaded, low..high))
        })
    }

    /// Returns empty sums if a read within `bounds` covers all entries, so that it can verify an unverified image.
    fn sums_for(&self, bounds: KeyBounds<'_>) -> Option<Sums> {
        let are_all = matches!(bounds, (Bound::Unbounded | Bound::Included([]), Bound::Unbounded));
        (are_all && self.verified.get().is_none()).then(Sums::default)
    }

    /// Compares the sums over all entries with the trailer and the base, and marks the image as verified.
    fn finish(&self, sums: &Sums) -> Result<(), StateError> {
        self.check_sums(sums).map_err(|error| self.backing.add_path(error))?;
        let _ = self.verified.set(sums.fingerprint);
        Ok(())
    }

    /// Compares the sums over all entries with the trailer and the base.
    fn check_sums(&self, sums: &Sums) -> Result<(), StateError> {
        let Self { trailer, base, .. } = self;
        trailer.check_sums(self.backing.len(), sums.key_bytes, sums.value_bytes, sums.fingerprint)?;
        let Some(base) = base else { return Ok(()) };
        let in_footer = |problem, found, expected| rule("footer", trailer.footer_offset, problem, found, expected);
        in_footer("the number of inserted keys is not true", base.inserts, sums.inserts)?;
        in_footer("the number of deleted keys is not true", base.deletes, sums.deletes)?;
        // If some changes are not insertions, this check would need the old values.
        if sums.inserts == sums.entries && !checksums_are_ignored() {
            let (found, expected) = (base.result.halves(), base.fingerprint.plus(sums.fingerprint).halves());
            in_footer("the fingerprints do not differ by that of the insertions", found.0, expected.0)?;
            in_footer("the fingerprints do not differ by that of the insertions", found.1, expected.1)?;
        }
        Ok(())
    }
}

/// An iterator over the entries of several segments, from both ends. An error replaces all entries of a segment.
struct EntryScan<'a, R> {
    runs: R,
    front: Option<(LoadedSegment<'a>, Range<usize>)>,
    back: Option<(LoadedSegment<'a>, Range<usize>)>,
}

impl<'a, R> Iterator for EntryScan<'a, R>
where
    R: Iterator<Item = Result<(LoadedSegment<'a>, Range<usize>), StateError>>,
{
    type Item = Result<(Bytes, Bytes), StateError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((loaded, range)) = &mut self.front {
                if let Some(index) = range.next() {
                    return Some(Ok(loaded.entry(index)));
                }
            }
            // The old segment is released before the next one is read.
            self.front = None;
            match self.runs.next() {
                Some(Ok(run)) => self.front = Some(run),
                Some(Err(error)) => return Some(Err(error)),
                None => self.front = Some(self.back.take()?),
            }
        }
    }
}

impl<'a, R> DoubleEndedIterator for EntryScan<'a, R>
where
    R: DoubleEndedIterator<Item = Result<(LoadedSegment<'a>, Range<usize>), StateError>>,
{
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((loaded, range)) = &mut self.back {
                if let Some(index) = range.next_back() {
                    return Some(Ok(loaded.entry(index)));
                }
            }
            self.back = None;
            match self.runs.next_back() {
                Some(Ok(run)) => self.back = Some(run),
                Some(Err(error)) => return Some(Err(error)),
                None => self.back = Some(self.front.take()?),
            }
        }
    }
}

/// A scan of all entries of an unverified image. It verifies the image when it reaches the end from the front.
struct Verifying<'a, I> {
    image: &'a ImageReader,
    entries: I,
    /// The sums so far. `None` after an error, after a step from the back, and at the end.
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
            (Some(Ok((key, value))), Some(sums)) => sums.add(key, value, None),
            (Some(Err(_)), _) => self.sums = None,
            (None, _) => return self.image.finish(&self.sums.take()?).err().map(Err),
            _ => {}
        }
        next
    }
}

impl SnapshotSource for ImageReader {
    fn len(&self) -> usize {
        self.trailer.entries as usize
    }

    fn size_bytes(&self) -> usize {
        (self.trailer.key_bytes + self.trailer.value_bytes) as usize
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let Some(index) = self.table.partition_point(|first| first <= key).checked_sub(1) else { return Ok(None) };
        let loaded = self.segment(index)?;
        let at = loaded.partition_point(0, |other| other < key);
        let (bytes, segment) = (loaded.as_slice(), loaded.segment);
        let is_found = at < loaded.len() && bytes[segment.key(bytes, at)] == *key;
        Ok(is_found.then(|| loaded.bytes.handle(segment.value(bytes, at))))
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let entries = EntryScan { runs: self.runs(bounds), front: None, back: None };
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
            let (bytes, segment) = (loaded.as_slice(), loaded.segment);
            for index in range {
                let (key, value) = (&bytes[segment.key(bytes, index)], &bytes[segment.value(bytes, index)]);
                if let Some(sums) = &mut sums {
                    sums.add(key, value, None);
                }
                if f(key, value).is_break() {
                    return Ok(());
                }
            }
        }
        sums.map_or(Ok(()), |sums| self.finish(&sums))
    }

    fn is_for_many_readers(&self) -> bool {
        !matches!(self.backing, Backing::Reader { .. })
    }

    fn verify(&self) -> Result<(), StateError> {
        if self.verified.get().is_some() {
            return Ok(());
        }
        let (mut sums, mut ahead) = (Sums::default(), ReadAhead::new(0));
        for index in 0..self.table.len() {
            self.read_ahead(&mut ahead, index, self.table.len());
            self.load(index, |key, value, change| sums.add(key, value, change))?;
        }
        self.finish(&sums)
    }
}

impl Source for ImageReader {
    fn can_fail(&self) -> bool {
        matches!(self.backing, Backing::Reader { .. })
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.verified.get().copied()
    }
}
