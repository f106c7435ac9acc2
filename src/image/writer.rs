//! [`ImageWriter`]: takes entries in order, and writes segments as they fill.

use std::hash::Hasher as _;
use std::io::{self, Write};
use std::mem;

use rkyv::util::AlignedVec;
use twox_hash::xxhash3_64::Hasher;

use super::columns::ColumnsBuilder;
use super::format::{ALIGNMENT, Base, Descriptor, Header, ImageKind, Trailer, checksum};
use super::label::Label;
use super::options::{ImageOptions, Progress};
use super::sections::sections_of;
use crate::comparison::ChangeKind;
use crate::fingerprint::Fingerprint;

/// A writer of one image, which is a snapshot or a delta.
pub(crate) struct ImageWriter<W> {
    out: W,
    kind: ImageKind,
    header: [u8; Header::LEN],
    /// The sections of the footer, with their length.
    sections: Vec<u8>,
    /// The number of bytes written so far.
    written: u64,
    /// The [`cost`](ColumnsBuilder::cost) at which a segment is closed, and the length from which a value is a blob.
    pub(crate) segment_bytes: usize,
    /// The entries of the segment that is being filled.
    columns: ColumnsBuilder,
    /// Buffers of written segments, kept for reuse.
    pub(crate) free_buffers: Vec<(ColumnsBuilder, AlignedVec)>,
    descriptors: Vec<u8>,
    first_keys: Vec<u8>,
    segments: u64,
    entries: u64,
    key_bytes: u64,
    value_bytes: u64,
    /// The fingerprint of the entries, if the caller knows it; then it is not computed.
    pub(crate) known_fingerprint: Option<Fingerprint>,
    /// The known fingerprint, or that of the entries so far.
    fingerprint: Fingerprint,
}

/// A finished image: its length, its sums, and its destination.
pub(crate) struct Written<W> {
    pub(crate) out: W,
    pub(crate) len: u64,
    pub(crate) entries: u64,
    pub(crate) key_bytes: u64,
    pub(crate) value_bytes: u64,
    pub(crate) fingerprint: Fingerprint,
}

impl<W> Written<W> {
    /// Separates the destination from the sums.
    pub(crate) fn take_out(self) -> (W, Written<()>) {
        let Self { out, len, entries, key_bytes, value_bytes, fingerprint } = self;
        (out, Written { out: (), len, entries, key_bytes, value_bytes, fingerprint })
    }
}

impl<W: Write> ImageWriter<W> {
    /// Creates a writer and writes the header.
    pub(crate) fn new(
        header: Header,
        label: &Label,
        known_fingerprint: Option<Fingerprint>,
        options: ImageOptions,
        mut out: W,
    ) -> io::Result<Self> {
        let Header { kind, .. } = header;
        let header = header.to_bytes();
        out.write_all(&header)?;
        Ok(Self {
            out,
            kind,
            header,
            sections: sections_of(label),
            written: Header::LEN as u64,
            segment_bytes: options.segment_bytes,
            columns: ColumnsBuilder::default(),
            free_buffers: Vec::new(),
            descriptors: Vec::new(),
            first_keys: Vec::new(),
            segments: 0,
            entries: 0,
            key_bytes: 0,
            value_bytes: 0,
            known_fingerprint,
            fingerprint: known_fingerprint.unwrap_or(Fingerprint::EMPTY),
        })
    }

    /// Adds the next entry or change. Keys must strictly ascend.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8], change: Option<ChangeKind>) -> io::Result<()> {
        self.count(key, value);
        if self.known_fingerprint.is_none() && change != Some(ChangeKind::Delete) {
            self.fingerprint.add(key, value);
        }
        if value.len() >= self.segment_bytes {
            self.close_segment(&[])?;
            self.columns.push(key, &[], change);
            return self.close_segment(value);
        }
        self.columns.push(key, value, change);
        if self.columns.total_cost() >= self.segment_bytes {
            self.close_segment(&[])?;
        }
        Ok(())
    }

    /// Returns the progress of the writing.
    pub(crate) fn progress(&self) -> Progress {
        Progress { bytes: self.written, entries: self.entries }
    }

    /// Returns the known fingerprint, or else that of the entries pushed so far. Deleted keys do not count.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Adds an entry to the sums of the trailer.
    pub(crate) fn count(&mut self, key: &[u8], value: &[u8]) {
        self.entries += 1;
        self.key_bytes += key.len() as u64;
        self.value_bytes += value.len() as u64;
    }

    /// Writes the segment being filled, followed by `blob`. Does nothing if the segment is empty.
    fn close_segment(&mut self, blob: &[u8]) -> io::Result<()> {
        if self.columns.entries() == 0 {
            return Ok(());
        }
        // `emit` returns the segment's buffers to `free_buffers`; the columns are taken from there again below.
        let archive = self.free_buffers.pop().map_or_else(AlignedVec::new, |(_, archive)| archive);
        let sealed = SealedSegment::new(self.kind, mem::take(&mut self.columns), archive, blob);
        self.emit(sealed, blob)?;
        if let Some((columns, _)) = self.free_buffers.last_mut() {
            mem::swap(&mut self.columns, columns);
        }
        Ok(())
    }

    /// Writes a finished segment, followed by `blob`.
    pub(crate) fn emit(&mut self, sealed: SealedSegment, blob: &[u8]) -> io::Result<()> {
        let SealedSegment { mut columns, archive, archive_len, checksum, fingerprint } = sealed;
        self.fingerprint = self.fingerprint.plus(fingerprint);
        let first_key = columns.first_key();
        let descriptor = Descriptor {
            offset: self.written,
            checksum,
            blob_len: blob.len() as u64,
            archive_len,
            entries: columns.entries(),
            first_key_len: u16::try_from(first_key.len()).expect("keys are within their limit"),
            codec: 0,
            reserved: 0,
        };
        self.descriptors.extend_from_slice(&descriptor.to_bytes());
        self.first_keys.extend_from_slice(first_key);
        self.segments += 1;
        columns.clear();
        for part in [&archive, blob, padding(blob)] {
            self.write(part)?;
        }
        self.free_buffers.push((columns, archive));
        Ok(())
    }

    /// Writes some bytes and counts them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes the last segment, the footer and the trailer. `base` is the base of a delta.
    pub(crate) fn finish(mut self, base: Option<Base>) -> io::Result<Written<W>> {
        self.close_segment(&[])?;
        let footer_offset = self.written;
        let base = base.map_or_else(Vec::new, |base| base.to_bytes().to_vec());
        let (descriptors, first_keys) = (mem::take(&mut self.descriptors), mem::take(&mut self.first_keys));
        let footer = [descriptors, first_keys, base, mem::take(&mut self.sections)];
        let mut hasher = Hasher::new();
        for part in &footer {
            hasher.write(part);
            self.write(part)?;
        }
        let trailer = Trailer {
            footer_offset,
            footer_len: self.written - footer_offset,
            segments: self.segments,
            entries: self.entries,
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
            fingerprint: self.fingerprint,
            footer_checksum: hasher.finish(),
        };
        self.write(&trailer.to_bytes(&self.header))?;
        self.out.flush()?;
        let Self { out, written: len, entries, key_bytes, value_bytes, fingerprint, .. } = self;
        Ok(Written { out, len, entries, key_bytes, value_bytes, fingerprint })
    }
}

/// Returns the zeros that follow a blob.
fn padding(blob: &[u8]) -> &'static [u8] {
    &[0; ALIGNMENT][..blob.len().next_multiple_of(ALIGNMENT) - blob.len()]
}

/// A finished segment, without its blob.
pub(crate) struct SealedSegment {
    columns: ColumnsBuilder,
    /// The archive of `columns`, with zeros up to a multiple of 16.
    archive: AlignedVec,
    /// The length of the archive without the zeros.
    archive_len: u32,
    /// The checksum of the whole segment.
    checksum: u64,
    /// The fingerprint of the entries if a job computed it, else the empty fingerprint.
    pub(crate) fingerprint: Fingerprint,
}

impl SealedSegment {
    /// Archives `columns` into `buffer` and computes the checksum.
    pub(crate) fn new(kind: ImageKind, columns: ColumnsBuilder, buffer: AlignedVec, blob: &[u8]) -> Self {
        let mut archive = columns.archive(kind, buffer);
        let archive_len = u32::try_from(archive.len()).expect("a segment's archive stays below 2 GiB");
        archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
        let checksum = if blob.is_empty() {
            checksum(&archive)
        } else {
            let mut hasher = Hasher::new();
            for part in [&archive, blob, padding(blob)] {
                hasher.write(part);
            }
            hasher.finish()
        };
        Self { columns, archive, archive_len, checksum, fingerprint: Fingerprint::EMPTY }
    }
}
