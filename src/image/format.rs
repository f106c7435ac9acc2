//! The format of an image: its layout, and its parts of fixed size as values.
//!
//! # Layout of version 2
//!
//! All numbers are unsigned and little-endian. All offsets count from the start of the image.
//!
//! ```text
//!  +--------+-----------+-----------+-- ... --+--------+---------+
//!  | header | segment 0 | segment 1 |         | footer | trailer |
//!  +--------+-----------+-----------+-- ... --+--------+---------+
//!  0        32          each starts at a multiple of 16          length of the image
//!
//!  header, 32 bytes                          trailer, 88 bytes
//!  offset  bytes                             offset  bytes
//!       0      8  magic                           0      8  offset of the footer
//!       8      2  format version                  8      8  length of the footer
//!      10      2  kind: 1 snapshot, 2 delta,     16      8  number of segments
//!                 3 grouped snapshot
//!      12      4  flags: 0                       24      8  number of entries
//!      16      8  time, ns since 1970            32      8  sum of the lengths of all keys
//!      24      8  checksum of bytes 0..24        40      8  sum of the lengths of all values
//!                                                48     16  fingerprint
//!  descriptor of a segment, 40 bytes             64      8  checksum of the footer
//!       0      8  offset of the segment          72      8  checksum of the header and bytes 0..72
//!       8      8  checksum of the segment        80      8  end magic
//!      16      8  length of the blob
//!      24      4  length of the archive       segment
//!      28      4  number of entries              archive, zeros up to a multiple of 16,
//!      32      2  length of the first key        blob, zeros up to a multiple of 16
//!      34      1  codec: 0 plain
//!      35      5  zeros                       footer
//!                                                a descriptor for each segment,
//!                                                the first key of each segment,
//!                                                sections, and their length in 4 bytes
//! ```
//!
//! A *segment* is an rkyv archive of four columns: the bytes of all values, the end of each value, the bytes of all
//! keys, and the end of each key. Values come first so that they are aligned: the column starts at a multiple of 16 in
//! the segment. Each value that is not empty starts at a multiple of 16 in the column, with zeros before it. An empty
//! value ends where the value before it does.
//!
//! A value as long as a whole segment's target gets a segment to itself. It stands behind the archive as the segment's
//! *blob*, so that writing it needs no copy. The archive stays far below the 2 GiB that rkyv's 32-bit relative pointers
//! reach. The checksum of a segment covers all of it, up to the next segment.
//!
//! Checksums are XXH3-64 with seed 0. The trailer's checksum covers the header followed by the trailer's first 72
//! bytes. A torn write may leave the start of one image and the end of another; this checksum refuses the mixture. The
//! fingerprint is explained in `fingerprint.rs`.
//!
//! # Layout of a delta
//!
//! A delta is the same container with *changes* for entries. A change is a key, the kind of change, and the new value,
//! which is empty for a deleted key. The archive of a segment has a fifth column behind the other four, with a byte for
//! each change. Blobs, descriptors and the trailer are laid out as in a snapshot. The footer has 48 bytes more in front
//! of its sections:
//!
//! ```text
//!  a change's byte                            base of a delta, 48 bytes in front of the sections
//!       0  deleted: was there, is not              0     16  fingerprint of the base
//!       1  inserted: was not there, is            16     16  fingerprint of the base with the delta applied
//!       2  updated: was there, has this value     32      8  number of inserted keys
//!                                                 40      8  number of deleted keys
//!  segment
//!     archive { values, value ends, keys, key ends, changes }, zeros, blob, zeros
//!  footer
//!     a descriptor for each segment, the first key of each segment, base, sections and their length
//! ```
//!
//! In the trailer, the number of entries counts changes, and the fingerprint covers the entries inserted and updated.
//! It does not cover old values and deleted entries. So a reader can check the delta's two fingerprints against each
//! other only if all changes are insertions. Otherwise they are checked on the base.
//!
//! A change records whether its key existed before, for one byte a change. So deltas merge without their base: a key
//! that was inserted and then deleted leaves no trace. A hash of each old value would also show that a value returned
//! to its earlier state, for 16 bytes a change.
//!
//! # Sections
//!
//! The sections of a footer describe the whole image. Later versions of the format can add sections. A reader refuses a
//! section that it does not know, unless a flag says that the section may be ignored.
//!
//! ```text
//!  section                                   content of the section `label`
//!       0      1  length of the name              0      2  length of the operator's name
//!       1      1  flags: bit 0 may be ignored     2      2  length of the job's name
//!       2      4  length of the content           4         both names in UTF-8, then the user's bytes
//!       6         name, content
//! ```
//!
//! Sections are in strictly ascending order of their names. An empty label has no section. A label's section is written
//! with no flag; its user bytes are at most 16 MiB.
//!
//! # Codecs
//!
//! The codec of a segment is 0 in this version, for plain bytes; a reader refuses any other by its number. Compression
//! is left to whoever stores images. A snapshot of an image reads from the image's bytes in place, without memory of
//! its own. With compressed segments, every reader would need buffers, a cache for them and a bound on their expanded
//! size.
//!
//! # Rules a reader checks
//!
//! 1. Magic, end magic, version, kind and flags are known; lengths add up to that of the image exactly.
//! 2. Every checksum matches.
//! 3. Segments follow each other without a gap, from the header to the footer; none is empty. All bytes specified as
//!    zeros are zeros.
//! 4. The columns of a segment agree with its descriptor and with each other; ends ascend and the last one is the
//!    length of its column; a segment with a blob has one entry, whose value in the column is empty.
//! 5. Keys strictly ascend through the whole image and are within the limit; first keys are those in the footer.
//! 6. The sums in the trailer are true, and so is the fingerprint.
//! 7. In a delta: there is one known byte for each change; deleted keys have no values; the numbers in the base are
//!    true. If all changes are insertions, the fingerprints differ by that of the entries; so they are equal if nothing
//!    changes.
//! 8. Since format 2: values start at multiples of 16, with zeros before them; codecs are known. Sections fill their
//!    length exactly and their names strictly ascend; only bit 0 of their flags may be set. A label's names are UTF-8,
//!    its user bytes are within the limit, and at least one part of it is not empty.
//!
//! # Canonical
//!
//! One rule cuts entries into segments. A segment is closed once three sums together reach the target of 64 KiB: the
//! lengths of its keys, the lengths of its values rounded up to multiples of 16, and eight bytes for each entry. A
//! value of at least the target stands alone. (The writer of format 1 did not round the lengths of values.) So equal
//! contents, written with equal labels and options, give equal bytes except for the time in the header. A reader
//! accepts any cut.
//!
//! # Kinds
//!
//! This is the layout of kind 1. An image of kind 3 holds images of kind 1; `directory.rs` describes it.
//!
//! # Versions
//!
//! The first ten bytes keep their meaning in every version. Every later build reads versions 1 and 2; the golden images of
//! each version are kept in the tests.
//!
//! | version | since | change |
//! |---|---|---|
//! | 1 | before 0.1.0 | the first: values follow each other without zeros, descriptors have zeros for the codec, and footers no sections |
//! | 2 | 0.1.0 | values are aligned; codecs; sections, and in them the label |

use std::ops::Range;
#[cfg(fuzzing)]
use std::sync::atomic::{AtomicBool, Ordering};

use twox_hash::XxHash3_64;

use crate::error::StateError;
use crate::fingerprint::Fingerprint;

/// The bytes that an image starts with.
///
/// The first byte is not ASCII and the last two are a line ending, so that a transfer in text mode is detected.
pub(crate) const MAGIC: [u8; 8] = *b"\x89OPST8\r\n";
/// The bytes that an image ends with.
pub(crate) const END_MAGIC: [u8; 8] = *b"OPST8END";
/// The newest format version this build reads, and the one it writes.
pub(crate) const VERSION: u16 = 2;
/// The first format version in which values are aligned, and footers have sections.
pub(crate) const ALIGNED: u16 = 2;
/// The alignment of segments and blobs.
pub(crate) const ALIGNMENT: usize = 16;

/// The kinds of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageKind {
    /// A [`StateSnapshot`](crate::StateSnapshot).
    Snapshot,
    /// A [`StateDelta`](crate::StateDelta).
    Delta,
    /// A snapshot with each key group as a part of its own: a [`GroupedImage`](crate::GroupedImage).
    Grouped,
}

impl ImageKind {
    const ALL: [Self; 3] = [Self::Snapshot, Self::Delta, Self::Grouped];

    /// Returns the name of the kind, for error texts.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Delta => "delta",
            Self::Grouped => "grouped snapshot",
        }
    }

    /// Returns the number of the kind in a header.
    fn number(self) -> u16 {
        match self {
            Self::Snapshot => 1,
            Self::Delta => 2,
            Self::Grouped => 3,
        }
    }

    /// Returns the kind with this number in a header, or `None` if there is none.
    fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// Computes the checksum used everywhere in an image.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Compares the checksum of `bytes` with the one `stored` in the image. An error names `part` and `offset`.
pub(crate) fn verify_checksum(part: &'static str, offset: u64, stored: u64, bytes: &[u8]) -> Result<(), StateError> {
    let computed = checksum(bytes);
    if computed != stored && !checksums_are_ignored() {
        return Err(StateError::ChecksumMismatch { part, offset, stored, computed });
    }
    Ok(())
}

/// Returns the error of a broken rule if `found` differs from `expected`.
pub(crate) fn rule(
    part: &'static str,
    offset: u64,
    problem: &'static str,
    found: u64,
    expected: u64,
) -> Result<(), StateError> {
    if found == expected {
        return Ok(());
    }
    Err(StateError::Malformed { part, offset, problem, found, expected })
}

/// `true` if wrong checksums and fingerprints pass. Only fuzzing builds set it.
#[cfg(fuzzing)]
pub(crate) static CHECKSUMS_ARE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Returns `true` if wrong checksums and fingerprints pass, which only a fuzzing build can ask for.
pub(crate) fn checksums_are_ignored() -> bool {
    #[cfg(fuzzing)]
    return CHECKSUMS_ARE_IGNORED.load(Ordering::Relaxed);
    #[cfg(not(fuzzing))]
    false
}

/// Reads the `N` bytes at `at`, which the caller knows to be there.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field lies within its part")
}

/// Returns the first of these indices that does not satisfy `before`, or their end. Indices that satisfy it come first.
///
/// Works like `partition_point` of slices, for elements in the bytes of an image.
#[inline]
pub(crate) fn partition_point(indices: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let Range { start: mut low, end: mut high } = indices;
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// The header of an image: its version, its kind and its time.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) version: u16,
    pub(crate) kind: ImageKind,
    pub(crate) timestamp_ns: u64,
}

impl Header {
    /// Returns the header of an image that is to be written.
    pub(crate) fn new(kind: ImageKind, timestamp_ns: u64) -> Self {
        Self { version: VERSION, kind, timestamp_ns }
    }

    /// Returns `true` if values are aligned, and the footer has sections.
    pub(crate) fn is_aligned(&self) -> bool {
        self.version >= ALIGNED
    }

    /// The length of a header in bytes.
    pub(crate) const LEN: usize = 32;
    /// The number of bytes that the header's checksum covers.
    const CHECKED: usize = 24;

    /// Returns the header's bytes, with its checksum.
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.timestamp_ns.to_le_bytes());
        let sum = checksum(&bytes[..Self::CHECKED]);
        bytes[24..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Checks that `image`, which may hold anything, starts like an image that this build reads.
    pub(crate) fn read_start(image: &[u8]) -> Result<(), StateError> {
        let start = &image[..image.len().min(MAGIC.len())];
        if !MAGIC.starts_with(start) {
            return Err(StateError::NotAnImage { found: start.to_vec(), expected: MAGIC });
        }
        // The version is checked before the length, because another version may need another length.
        if let Some(version) = image.get(8..).and_then(<[u8]>::first_chunk).map(|found| u16::from_le_bytes(*found)) {
            if version > VERSION {
                return Err(StateError::UnsupportedVersion { found: version, supported: VERSION });
            }
        }
        Ok(())
    }

    /// Reads the header of an image of `len` bytes from its first [`LEN`](Self::LEN) bytes, or all if fewer.
    pub(crate) fn read(start: &[u8], len: u64) -> Result<Self, StateError> {
        Self::read_start(start)?;
        let needed = (Self::LEN + Trailer::LEN) as u64;
        if len < needed {
            return Err(StateError::Truncated { len, needed });
        }
        let version = u16::from_le_bytes(field(start, 8));
        verify_checksum("header", 0, u64::from_le_bytes(field(start, 24)), &start[..Self::CHECKED])?;
        let expect = |problem, found, expected| rule("header", 0, problem, found, expected);
        expect("format version 0 was never written", version.into(), version.max(1).into())?;
        let number = u16::from_le_bytes(field(start, 10));
        let kind = ImageKind::of(number);
        expect("this kind of image is unknown", number.into(), kind.unwrap_or(ImageKind::Snapshot).number().into())?;
        expect("these flags are unknown", u32::from_le_bytes(field(start, 12)).into(), 0)?;
        let timestamp_ns = u64::from_le_bytes(field(start, 16));
        Ok(Self { version, kind: kind.unwrap_or(ImageKind::Snapshot), timestamp_ns })
    }

    /// Reads a header and its flags without trusting it. Returns `None` if it names no known kind.
    ///
    /// If the checksum would match for another version or kind, the header is taken to be of those. Damage to several
    /// bytes that fits a checksum is less likely.
    pub(crate) fn read_unchecked(header: &[u8; Self::LEN]) -> Option<(Self, u32)> {
        let matches = |&(version, kind): &(u16, ImageKind)| {
            let mut checked = *header;
            checked[8..10].copy_from_slice(&version.to_le_bytes());
            checked[10..12].copy_from_slice(&kind.number().to_le_bytes());
            checksum(&checked[..Self::CHECKED]).to_le_bytes() == checked[Self::CHECKED..]
        };
        let (said, number) = (u16::from_le_bytes(field(header, 8)), u16::from_le_bytes(field(header, 10)));
        let versions = [said].into_iter().chain(1..=VERSION);
        let mut all = versions.flat_map(|version| ImageKind::ALL.map(|kind| (version, kind)));
        let (version, kind) = all.find(matches).or_else(|| Some((said, ImageKind::of(number)?)))?;
        let timestamp_ns = u64::from_le_bytes(field(header, 16));
        let flags = u32::from_le_bytes(field(header, 12));
        Some((Self { version, kind, timestamp_ns }, flags))
    }

    /// Checks that the image is of one of these kinds. An error names the first.
    pub(crate) fn expect_kind(&self, expected: &[ImageKind]) -> Result<(), StateError> {
        if expected.contains(&self.kind) {
            return Ok(());
        }
        Err(StateError::UnexpectedKind { found: self.kind.name(), expected: expected[0].name() })
    }
}

/// The fixed part of a segment's entry in the footer.
#[derive(Clone)]
pub(crate) struct Descriptor {
    pub(crate) offset: u64,
    pub(crate) checksum: u64,
    pub(crate) blob_len: u64,
    pub(crate) archive_len: u32,
    pub(crate) entries: u32,
    pub(crate) first_key_len: u16,
    /// The codec: 0 for plain bytes, the only one in this version.
    pub(crate) codec: u8,
    /// The bytes of zeros at the end: 0 in this version.
    pub(crate) reserved: u64,
}

impl Descriptor {
    /// The length of a descriptor in bytes.
    pub(crate) const LEN: usize = 40;

    /// Returns the bytes of a descriptor. The reserved bytes are zeros.
    pub(crate) fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.blob_len.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.archive_len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.entries.to_le_bytes());
        bytes[32..34].copy_from_slice(&self.first_key_len.to_le_bytes());
        bytes[34] = self.codec;
        bytes
    }

    /// Reads a descriptor from its `LEN` bytes.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self {
            offset: u64::from_le_bytes(field(bytes, 0)),
            checksum: u64::from_le_bytes(field(bytes, 8)),
            blob_len: u64::from_le_bytes(field(bytes, 16)),
            archive_len: u32::from_le_bytes(field(bytes, 24)),
            entries: u32::from_le_bytes(field(bytes, 28)),
            first_key_len: u16::from_le_bytes(field(bytes, 32)),
            codec: bytes[34],
            reserved: u64::from_le_bytes(field(bytes, 32)) >> 24,
        }
    }

    /// Returns the start of the blob within the segment, and the length of the whole segment. `None` past `u64::MAX`.
    pub(crate) fn extent(&self) -> Option<(u64, u64)> {
        let blob_start = u64::from(self.archive_len).next_multiple_of(ALIGNMENT as u64);
        let len = blob_start.checked_add(self.blob_len)?.checked_next_multiple_of(ALIGNMENT as u64)?;
        Some((blob_start, len))
    }
}

/// The part of a delta's footer that describes the contents before and after the delta.
#[derive(Clone, Copy)]
pub(crate) struct Base {
    /// The fingerprint of the base.
    pub(crate) fingerprint: Fingerprint,
    /// The fingerprint of the base with the delta applied.
    pub(crate) result: Fingerprint,
    /// The number of inserted keys.
    pub(crate) inserts: u64,
    /// The number of deleted keys.
    pub(crate) deletes: u64,
}

impl Base {
    /// The length of a base in bytes.
    pub(crate) const LEN: usize = 48;

    /// Returns the bytes of a base.
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.result.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.inserts.to_le_bytes());
        bytes[40..].copy_from_slice(&self.deletes.to_le_bytes());
        bytes
    }

    /// Reads a base from its `LEN` bytes.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self {
            fingerprint: Fingerprint::from_le_bytes(field(bytes, 0)),
            result: Fingerprint::from_le_bytes(field(bytes, 16)),
            inserts: u64::from_le_bytes(field(bytes, 32)),
            deletes: u64::from_le_bytes(field(bytes, 40)),
        }
    }
}

/// The trailer of an image: locates and checks the footer, and holds the sums over the whole image.
pub(crate) struct Trailer {
    pub(crate) footer_offset: u64,
    pub(crate) footer_len: u64,
    pub(crate) segments: u64,
    pub(crate) entries: u64,
    pub(crate) key_bytes: u64,
    pub(crate) value_bytes: u64,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) footer_checksum: u64,
}

impl Trailer {
    /// The length of a trailer in bytes.
    pub(crate) const LEN: usize = 88;
    /// The number of the trailer's bytes that its checksum covers.
    const CHECKED: usize = 72;

    /// Returns the trailer's bytes, for an image that starts with `header`.
    pub(crate) fn to_bytes(&self, header: &[u8]) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let numbers =
            [self.footer_offset, self.footer_len, self.segments, self.entries, self.key_bytes, self.value_bytes];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes[48..64].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.footer_checksum.to_le_bytes());
        let sum = checksum(&[header, &bytes[..Self::CHECKED]].concat());
        bytes[72..80].copy_from_slice(&sum.to_le_bytes());
        bytes[80..].copy_from_slice(&END_MAGIC);
        bytes
    }

    /// Reads the trailer from the header and the last bytes of an image of `len` bytes.
    pub(crate) fn read(header: &[u8], bytes: &[u8], len: u64) -> Result<Self, StateError> {
        if bytes[80..] != END_MAGIC {
            return Err(StateError::MissingTrailer { len });
        }
        let offset = len - Self::LEN as u64;
        let checked = [header, &bytes[..Self::CHECKED]].concat();
        verify_checksum("trailer", offset, u64::from_le_bytes(field(bytes, 72)), &checked)?;
        Ok(Self::read_unchecked(bytes))
    }

    /// Reads a trailer from the last `LEN` bytes of an image without checking it.
    pub(crate) fn read_unchecked(bytes: &[u8]) -> Self {
        let number = |index: usize| u64::from_le_bytes(field(bytes, index * 8));
        Self {
            footer_offset: number(0),
            footer_len: number(1),
            segments: number(2),
            entries: number(3),
            key_bytes: number(4),
            value_bytes: number(5),
            fingerprint: Fingerprint::from_le_bytes(field(bytes, 48)),
            footer_checksum: number(8),
        }
    }

    /// Checks that the footer lies between the header and the trailer, which starts at `offset`.
    pub(crate) fn check_footer(&self, offset: u64) -> Result<(), StateError> {
        let check = |problem, found, expected| rule("trailer", offset, problem, found, expected);
        let end = self.footer_offset.saturating_add(self.footer_len);
        check("the footer does not end where the trailer starts", end, offset)?;
        let least = self.footer_offset.max(Header::LEN as u64);
        check("the footer starts within the header", self.footer_offset, least)
    }

    /// Checks the sums and the fingerprint in the trailer of an image of `len` bytes, but not the number of entries.
    pub(crate) fn check_sums(
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
