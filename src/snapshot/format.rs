//! The format of an image: what stands where, and the fixed-size parts as values.
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
//! A *segment* is an rkyv archive of four columns: the bytes of all values, where each value ends, the bytes of all
//! keys, where each key ends. Values come first so that they are aligned: the column starts at a multiple of 16 in the
//! segment, and each value that is not empty starts at a multiple of 16 in the column, with zeros before it. An empty
//! value ends where the value before it does. A value as long as a whole segment's target
//! gets a segment to itself and stands behind the archive as its *blob*, so that writing it needs no copy and an archive
//! stays far below the 2 GiB that rkyv's 32-bit relative pointers reach. The checksum of a segment covers all of it,
//! up to the next segment.
//!
//! Checksums are XXH3-64 with seed 0. That of the trailer is over the header followed by the trailer's first 72 bytes, so
//! that the start of one image and the end of another, as a torn write leaves them, do not pass for a third. The
//! fingerprint is explained in `fingerprint.rs`.
//!
//! # Layout of a delta
//!
//! A delta is the same container with *changes* for entries: the key, what became of it, and its new value, which is
//! empty for a key that was deleted. The archive of a segment has a fifth column behind the other four, with a byte for
//! each change; blobs, descriptors and the trailer are as they are. The footer has 48 bytes
//! more in front of its sections:
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
//! In the trailer, the number of entries is that of changes, and the fingerprint is that of the entries inserted and
//! updated. What a delta takes away is not in it, so that a reader can check its two fingerprints against each other only
//! where nothing is taken away, and checks them on the base otherwise.
//!
//! That a change says whether its key was there costs a byte and buys that deltas are merged without their base: what was
//! inserted and deleted again goes without a trace. A hash of each old value would tell, too, when a value came back to
//! what it was, for 16 bytes a change.
//!
//! # Sections
//!
//! The sections of a footer say what is true of the whole image and is none of its entries. They are the room for later
//! versions to grow: a reader refuses a section that it does not know by its name, or ignores it where a flag says that
//! it may.
//!
//! ```text
//!  section                                   content of the section `label`
//!       0      1  length of the name              0      2  length of the operator's name
//!       1      1  flags: bit 0 may be ignored     2      2  length of the job's name
//!       2      4  length of the content           4         both names in UTF-8, then the user's bytes
//!       6         name, content
//! ```
//!
//! Sections are in strictly ascending order of their names. An empty label has no section. A label's section is written with
//! no flag; its user bytes are at most 16 MiB.
//!
//! # Codecs
//!
//! The codec of a segment is 0 in this version, for plain bytes; a reader refuses any other by its number. Compression is
//! left to whoever stores images. A snapshot of an image answers from the image's bytes as they are, without memory of
//! its own; with compressed segments, every reader would need buffers, a cache for them and a bound on what they expand
//! to.
//!
//! # Rules a reader checks
//!
//! 1. Magic, end magic, version, kind and flags are known; lengths add up to that of the image exactly.
//! 2. Every checksum matches.
//! 3. Segments follow each other without a gap, from the header to the footer; none is empty.
//!    What is said to be zeros is zeros.
//! 4. The columns of a segment agree with its descriptor and with each other; ends ascend and the last one is the
//!    length of its column; a segment with a blob has one entry, whose value in the column is empty.
//! 5. Keys strictly ascend through the whole image and are within the limit; first keys are those of the descriptors.
//! 6. The sums in the trailer are true, and so is the fingerprint.
//! 7. Of a delta: there is one known byte for each change; what is deleted has no value; the numbers in the base are
//!    true. Where all changes are insertions, the fingerprints differ by that of the entries; so they are equal where
//!    nothing changes.
//! 8. Since format 2: values start at multiples of 16, with zeros before them; codecs are known. Sections fill their
//!    length exactly and their names strictly ascend; of their flags only bit 0 may be set. A label's names are UTF-8,
//!    its user bytes are within the limit, and something of it is not empty.
//!
//! # Canonical
//!
//! Entries are cut into segments by one rule: a segment is closed once the lengths of its keys, those of its values
//! rounded up to multiples of 16, and eight bytes for each entry, reach the target of 64 KiB; a value of at least the
//! target stands alone. (The writer of format 1 did not round the lengths of values.) So equal contents, written with equal
//! labels and options, give equal bytes but for the time in the header. A reader accepts any cut.
//!
//! # Kinds
//!
//! This is the layout of kind 1. An image of kind 3 holds images of kind 1; `grouped.rs` describes it.
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

use twox_hash::XxHash3_64;

use super::label::split_sections;
use super::{Fingerprint, Label, StateSnapshot};
use crate::StateError;

/// The bytes that an image starts with. The first is no ASCII and the last two are a line ending, so that a transfer as text
/// shows.
pub(super) const MAGIC: [u8; 8] = *b"\x89OPST8\r\n";
/// The bytes that an image ends with.
pub(super) const END_MAGIC: [u8; 8] = *b"OPST8END";
/// The newest format version this build reads, and the one it writes.
pub(super) const VERSION: u16 = 2;
/// The first format version in which values are aligned, and footers have sections.
pub(super) const ALIGNED: u16 = 2;
/// The alignment of segments and blobs.
pub(super) const ALIGNMENT: usize = 16;

/// The kinds of images.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Snapshot = 1,
    Delta = 2,
    /// Images of key groups, one after the other.
    Grouped = 3,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Snapshot, Self::Delta, Self::Grouped];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Delta => "delta",
            Self::Grouped => "grouped snapshot",
        }
    }

    fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u16 == number)
    }
}

/// Computes the checksum used everywhere in an image.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Compares the checksum of `bytes`, which are the `part` at `offset`, with the one `stored` in the image.
pub(super) fn verify_checksum(part: &'static str, offset: u64, stored: u64, bytes: &[u8]) -> Result<(), StateError> {
    let computed = checksum(bytes);
    if computed != stored && !checksums_are_ignored() {
        return Err(StateError::ChecksumMismatch { part, offset, stored, computed });
    }
    Ok(())
}

/// The error of a broken rule, unless what was found is what was expected.
pub(super) fn rule(
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

/// Returns `true` if wrong checksums and fingerprints pass, which only a fuzzing build can ask for.
pub(super) fn checksums_are_ignored() -> bool {
    #[cfg(fuzzing)]
    return crate::fuzzing::checksums_are_ignored();
    #[cfg(not(fuzzing))]
    false
}

/// Reads the `N` bytes at `at`, which the caller knows to be there.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field lies within its part")
}

/// The header: says what the bytes are.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) version: u16,
    pub(super) kind: Kind,
    pub(super) timestamp_ns: u64,
}

impl Header {
    /// Returns the header of an image that is to be written.
    pub(super) fn new(kind: Kind, timestamp_ns: u64) -> Self {
        Self { version: VERSION, kind, timestamp_ns }
    }

    /// Returns the header of an ordinary image.
    pub(super) fn of_snapshot(snapshot: &StateSnapshot) -> Self {
        Self::new(Kind::Snapshot, snapshot.timestamp_ns())
    }

    /// Returns `true` if values are aligned, and the footer has sections.
    pub(super) fn is_aligned(&self) -> bool {
        self.version >= ALIGNED
    }

    pub(super) const LEN: usize = 32;
    const CHECKED: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.timestamp_ns.to_le_bytes());
        let sum = checksum(&bytes[..Self::CHECKED]);
        bytes[24..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Fails if `image`, of which nothing is known yet, does not start as one that this build reads.
    pub(super) fn read_start(image: &[u8]) -> Result<(), StateError> {
        let start = &image[..image.len().min(MAGIC.len())];
        if !MAGIC.starts_with(start) {
            return Err(StateError::NotAnImage { found: start.to_vec(), expected: MAGIC });
        }
        // Before the length, which may be another one in another version.
        if let Some(version) = image.get(8..).and_then(<[u8]>::first_chunk).map(|found| u16::from_le_bytes(*found)) {
            if version > VERSION {
                return Err(StateError::UnsupportedVersion { found: version, supported: VERSION });
            }
        }
        Ok(())
    }

    /// Reads the header from the start of `image`, of which nothing is known yet.
    pub(super) fn read(image: &[u8]) -> Result<Self, StateError> {
        Self::read_start(image)?;
        if image.len() < Self::LEN + Trailer::LEN {
            return Err(StateError::Truncated { len: image.len() as u64, needed: (Self::LEN + Trailer::LEN) as u64 });
        }
        let version = u16::from_le_bytes(field(image, 8));
        verify_checksum("header", 0, u64::from_le_bytes(field(image, 24)), &image[..Self::CHECKED])?;
        let expect = |problem, found, expected| rule("header", 0, problem, found, expected);
        expect("format version 0 was never written", version.into(), version.max(1).into())?;
        let number = u16::from_le_bytes(field(image, 10));
        let kind = Kind::of(number);
        expect("this kind of image is unknown", number.into(), kind.unwrap_or(Kind::Snapshot) as u64)?;
        expect("these flags are unknown", u32::from_le_bytes(field(image, 12)).into(), 0)?;
        let timestamp_ns = u64::from_le_bytes(field(image, 16));
        Ok(Self { version, kind: kind.unwrap_or(Kind::Snapshot), timestamp_ns })
    }

    /// Reads a header, true or not, and its flags. `None` if it names no known kind.
    ///
    /// Where the checksum does not match, but would for another version or kind, the header is taken to be of those: that
    /// several bytes are damaged in a way that fits is less likely.
    pub(super) fn read_unchecked(header: &[u8; Self::LEN]) -> Option<(Self, u32)> {
        let matches = |&(version, kind): &(u16, Kind)| {
            let mut checked = *header;
            checked[8..10].copy_from_slice(&version.to_le_bytes());
            checked[10..12].copy_from_slice(&(kind as u16).to_le_bytes());
            checksum(&checked[..Self::CHECKED]).to_le_bytes() == checked[Self::CHECKED..]
        };
        let (said, number) = (u16::from_le_bytes(field(header, 8)), u16::from_le_bytes(field(header, 10)));
        let versions = [said].into_iter().chain(1..=VERSION);
        let mut all = versions.flat_map(|version| Kind::ALL.map(|kind| (version, kind)));
        let (version, kind) = all.find(matches).or_else(|| Some((said, Kind::of(number)?)))?;
        let timestamp_ns = u64::from_le_bytes(field(header, 16));
        let flags = u32::from_le_bytes(field(header, 12));
        Some((Self { version, kind, timestamp_ns }, flags))
    }

    /// Fails for an image of another kind.
    pub(super) fn expect_kind(&self, kind: Kind) -> Result<(), StateError> {
        if self.kind == kind {
            return Ok(());
        }
        Err(StateError::UnexpectedKind { found: self.kind.name(), expected: kind.name() })
    }
}

/// The fixed part of what the footer says of one segment.
#[derive(Clone)]
pub(super) struct Descriptor {
    pub(super) offset: u64,
    pub(super) checksum: u64,
    pub(super) blob_len: u64,
    pub(super) archive_len: u32,
    pub(super) entries: u32,
    pub(super) first_key_len: u16,
    /// 0 for plain bytes, the only one in this version.
    pub(super) codec: u8,
    /// 0 in this version.
    pub(super) reserved: u64,
}

impl Descriptor {
    pub(super) const LEN: usize = 40;

    pub(super) fn to_bytes(&self) -> [u8; Self::LEN] {
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
    pub(super) fn read(bytes: &[u8]) -> Self {
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

    /// Where the blob starts within the segment, and the length of the whole segment; `None` past `u64::MAX`.
    pub(super) fn extent(&self) -> Option<(u64, u64)> {
        let blob_start = u64::from(self.archive_len).next_multiple_of(ALIGNMENT as u64);
        let len = blob_start.checked_add(self.blob_len)?.checked_next_multiple_of(ALIGNMENT as u64)?;
        Some((blob_start, len))
    }
}

/// A footer cut into its parts.
pub(super) struct FooterParts<'a> {
    /// The descriptors and first keys of all segments; of a grouped image the directory.
    pub(super) list: &'a [u8],
    /// Of a delta.
    pub(super) base: Option<Base>,
    pub(super) label: Label,
}

impl<'a> FooterParts<'a> {
    /// Cuts a footer that starts at `offset` of an image with this header.
    pub(super) fn read(header: Header, footer: &'a [u8], offset: u64) -> Result<Self, StateError> {
        let (list, label) = if header.is_aligned() { split_sections(footer, offset)? } else { (footer, Label::new()) };
        let base_len = if header.kind == Kind::Delta { Base::LEN } else { 0 };
        let (len, least) = (list.len() as u64, list.len().max(base_len) as u64);
        rule("footer", offset, "there is no room for the base of a delta", len, least)?;
        let (list, base) = list.split_at(list.len() - base_len);
        Ok(Self { list, base: (header.kind == Kind::Delta).then(|| Base::read(base)), label })
    }
}

/// The part of a delta's footer about the contents before and after it.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub(super) fingerprint: Fingerprint,
    pub(super) result: Fingerprint,
    pub(super) inserts: u64,
    pub(super) deletes: u64,
}

impl Base {
    pub(super) const LEN: usize = 48;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.result.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.inserts.to_le_bytes());
        bytes[40..].copy_from_slice(&self.deletes.to_le_bytes());
        bytes
    }

    /// Reads a base from its `LEN` bytes.
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self {
            fingerprint: Fingerprint::from_le_bytes(field(bytes, 0)),
            result: Fingerprint::from_le_bytes(field(bytes, 16)),
            inserts: u64::from_le_bytes(field(bytes, 32)),
            deletes: u64::from_le_bytes(field(bytes, 40)),
        }
    }
}

/// The trailer: finds and checks the footer, and holds what is true of the whole image.
pub(super) struct Trailer {
    pub(super) footer_offset: u64,
    pub(super) footer_len: u64,
    pub(super) segments: u64,
    pub(super) entries: u64,
    pub(super) key_bytes: u64,
    pub(super) value_bytes: u64,
    pub(super) fingerprint: Fingerprint,
    pub(super) footer_checksum: u64,
}

impl Trailer {
    pub(super) const LEN: usize = 88;
    const CHECKED: usize = 72;

    /// The trailer of an image that starts with `header`.
    pub(super) fn to_bytes(&self, header: &[u8]) -> [u8; Self::LEN] {
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

    /// Reads the trailer from the end of `image`, which starts with a sound header and is long enough for both.
    pub(super) fn read(image: &[u8]) -> Result<Self, StateError> {
        Self::read_apart(&image[..Header::LEN], &image[image.len() - Self::LEN..], image.len() as u64)
    }

    /// Reads the trailer from the header and the last bytes of an image of `len` bytes.
    pub(super) fn read_apart(header: &[u8], bytes: &[u8], len: u64) -> Result<Self, StateError> {
        if bytes[80..] != END_MAGIC {
            return Err(StateError::MissingTrailer { len });
        }
        let offset = len - Self::LEN as u64;
        let checked = [header, &bytes[..Self::CHECKED]].concat();
        verify_checksum("trailer", offset, u64::from_le_bytes(field(bytes, 72)), &checked)?;
        Ok(Self::read_unchecked(bytes))
    }

    /// Reads what the last `LEN` bytes of an image say, be it true or not.
    pub(super) fn read_unchecked(bytes: &[u8]) -> Self {
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
    pub(super) fn check_footer(&self, offset: u64) -> Result<(), StateError> {
        let check = |problem, found, expected| rule("trailer", offset, problem, found, expected);
        let end = self.footer_offset.saturating_add(self.footer_len);
        check("the footer does not end where the trailer starts", end, offset)?;
        let least = self.footer_offset.max(Header::LEN as u64);
        check("the footer starts within the header", self.footer_offset, least)
    }
}
