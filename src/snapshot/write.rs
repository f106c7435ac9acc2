//! Writing an image: entries in order go in, segments go out as they fill.

use std::hash::Hasher as _;
use std::io::{self, Write};
use std::mem;
use std::ops::ControlFlow;

use rkyv::util::AlignedVec;
use twox_hash::xxhash3_64::Hasher;

use super::format::{ALIGNMENT, Base, Descriptor, Header, Kind, Trailer, checksum};
use super::pool::write_on_threads;
use super::progress::Progress;
use super::segment::{ChangeKind, Filling};
use super::{Fingerprint, Label, StateDelta, StateSnapshot};
use crate::StateError;
use crate::bounds::ALL_KEYS;

/// How an image is laid out.
///
/// ```
/// use opstate::{ImageOptions, StateSnapshot};
///
/// let snapshot = StateSnapshot::from_iter([("key", "value")]);
/// let mut image = Vec::new();
/// snapshot.write_with(ImageOptions::new().segment_bytes(4096), &mut image)?;
/// # Ok::<(), opstate::StateError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ImageOptions {
    pub(super) segment_bytes: usize,
    pub(super) buffer_bytes: usize,
    threads: usize,
}

impl ImageOptions {
    /// The options of [`StateSnapshot::to_bytes`]: segments of 64 KiB.
    pub const fn new() -> Self {
        Self { segment_bytes: 64 << 10, buffer_bytes: 256 << 20, threads: 1 }
    }

    /// Sets how many bytes of entries a segment holds before the next one is begun, from 1 to 256 MiB; anything else
    /// means the nearest.
    ///
    /// Smaller segments need less memory for writing and less reading for a part; each costs about 100 bytes and a key.
    #[must_use]
    pub const fn segment_bytes(mut self, bytes: usize) -> Self {
        const MOST: usize = 256 << 20;
        self.segment_bytes = match bytes {
            0 => 1,
            MOST.. => MOST,
            _ => bytes,
        };
        self
    }

    /// Sets how many threads work on the image, the caller's included: 1 unless told otherwise, at most 64. The image does
    /// not depend on it.
    ///
    /// The caller's thread reads all entries to find where a segment ends, and all threads make segments. Each takes
    /// memory for up to sixteen of them. Entries are read twice, so an image [in a
    /// reader](super::UnverifiedImage::from_reader) is left to the caller's thread, as are grouped images.
    #[must_use]
    pub const fn threads(mut self, threads: usize) -> Self {
        const MOST: usize = 64;
        self.threads = match threads {
            0 => 1,
            MOST.. => MOST,
            _ => threads,
        };
        self
    }

    /// Sets how many bytes of entries [`write_grouped`](StateSnapshot::write_grouped) gathers at once; 256 MiB unless
    /// told otherwise. The image does not depend on it.
    ///
    /// Less memory means more passes over the snapshot: one for every so many bytes, or for every key group if a group is
    /// larger.
    #[must_use]
    pub const fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes an image of `snapshot`; returns its length and the fingerprint found on the way.
pub(super) fn write_image(
    snapshot: &StateSnapshot,
    options: ImageOptions,
    out: impl Write,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(u64, Fingerprint), StateError> {
    let known = snapshot.shared.fingerprint.get().copied();
    let mut writer = ImageWriter::new(Header::of_snapshot(snapshot), snapshot.label(), known, options, out)?;
    let mut last = writer.written;
    let mut watch = |writer: &ImageWriter<_>| {
        let now = Progress { bytes: writer.written, entries: writer.entries };
        if now.bytes == mem::replace(&mut last, now.bytes) || progress(now).is_continue() {
            return Ok(());
        }
        Err(StateError::Cancelled { bytes: now.bytes })
    };
    if options.threads > 1 && snapshot.source().is_for_many_readers() {
        write_on_threads(&mut writer, &**snapshot.source(), options.threads, &mut watch)?;
    } else {
        let mut result = Ok(());
        snapshot.source().try_visit(ALL_KEYS, &mut |key, value| {
            result = writer.push(key, value, None).map_err(StateError::from).and_then(|()| watch(&writer));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
    }
    let written = writer.finish(None)?;
    let _ = progress(Progress { bytes: written.len, entries: written.entries });
    Ok((written.len, written.fingerprint))
}

/// Writes an image of `delta`, whose `base` says what is before and after it; returns its length. The fingerprint of what
/// the delta puts is worked out on the way, unless it is known.
pub(super) fn write_delta(
    delta: &StateDelta,
    base: Base,
    known: Option<Fingerprint>,
    options: ImageOptions,
    out: impl Write,
) -> Result<u64, StateError> {
    let header = Header::new(Kind::Delta, delta.timestamp_ns());
    let mut writer = ImageWriter::new(header, delta.label(), known, options, out)?;
    let mut result = Ok(());
    delta.visit_kinds(&mut |key, change, value| {
        result = writer.push(key, value, Some(change));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result?;
    Ok(writer.finish(Some(base))?.len)
}

pub(super) struct ImageWriter<W> {
    out: W,
    kind: Kind,
    header: [u8; Header::LEN],
    /// The sections of the footer, with their length.
    sections: Vec<u8>,
    written: u64,
    pub(super) segment_bytes: usize,
    /// The entries of the segment that is being filled.
    columns: Filling,
    /// Buffers of segments that were written, kept for their capacity.
    pub(super) spare: Vec<(Filling, AlignedVec)>,
    descriptors: Vec<u8>,
    first_keys: Vec<u8>,
    segments: u64,
    entries: u64,
    key_bytes: u64,
    value_bytes: u64,
    pub(super) known_fingerprint: Option<Fingerprint>,
    fingerprint: Fingerprint,
}

/// A finished image: its sums, and the writer that it went to.
pub(super) struct Written<W> {
    pub(super) out: W,
    pub(super) len: u64,
    pub(super) entries: u64,
    pub(super) key_bytes: u64,
    pub(super) value_bytes: u64,
    pub(super) fingerprint: Fingerprint,
}

impl<W> Written<W> {
    /// Parts with where the image went.
    pub(super) fn take_out(self) -> (W, Written<()>) {
        let Self { out, len, entries, key_bytes, value_bytes, fingerprint } = self;
        (out, Written { out: (), len, entries, key_bytes, value_bytes, fingerprint })
    }
}

impl<W: Write> ImageWriter<W> {
    pub(super) fn new(
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
            sections: label.to_sections(),
            written: Header::LEN as u64,
            segment_bytes: options.segment_bytes,
            columns: Filling::default(),
            spare: Vec::new(),
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

    /// Adds the next entry in order of keys, or the next change of a delta.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8], change: Option<ChangeKind>) -> io::Result<()> {
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

    /// Counts in an entry that is written one way or another.
    pub(super) fn count(&mut self, key: &[u8], value: &[u8]) {
        self.entries += 1;
        self.key_bytes += key.len() as u64;
        self.value_bytes += value.len() as u64;
    }

    /// Writes the segment that was being filled, if it holds anything, with `blob` behind it.
    fn close_segment(&mut self, blob: &[u8]) -> io::Result<()> {
        if self.columns.entries() == 0 {
            return Ok(());
        }
        // The only spare buffers of this thread: the columns' go back to where they were.
        let archive = self.spare.pop().map_or_else(AlignedVec::new, |(_, archive)| archive);
        let sealed = Sealed::new(self.kind, mem::take(&mut self.columns), archive, blob);
        self.emit(sealed, blob)?;
        if let Some((columns, _)) = self.spare.last_mut() {
            mem::swap(&mut self.columns, columns);
        }
        Ok(())
    }

    /// Writes a segment, with `blob` behind it.
    pub(super) fn emit(&mut self, sealed: Sealed, blob: &[u8]) -> io::Result<()> {
        let Sealed { mut columns, archive, archive_len, checksum, fingerprint } = sealed;
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
        self.spare.push((columns, archive));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is left; a delta ends with its base.
    pub(super) fn finish(mut self, base: Option<Base>) -> io::Result<Written<W>> {
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

/// The zeros behind a blob.
fn padding(blob: &[u8]) -> &'static [u8] {
    &[0; ALIGNMENT][..blob.len().next_multiple_of(ALIGNMENT) - blob.len()]
}

/// A segment as it is written, but for its blob.
pub(super) struct Sealed {
    columns: Filling,
    /// The archive of `columns`, with zeros up to a multiple of 16.
    archive: AlignedVec,
    /// Its length without them.
    archive_len: u32,
    /// The checksum of the whole segment.
    checksum: u64,
    /// The fingerprint of its entries, if it was asked for, else that of none.
    pub(super) fingerprint: Fingerprint,
}

impl Sealed {
    pub(super) fn new(kind: Kind, columns: Filling, buffer: AlignedVec, blob: &[u8]) -> Self {
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
