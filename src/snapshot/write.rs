//! Writing an image: entries in order go in, segments go out as they fill.

use std::hash::Hasher as _;
use std::io::{self, Write};
use std::mem;
use std::ops::{Bound, ControlFlow};

use rkyv::util::AlignedVec;
use twox_hash::xxhash3_64::Hasher;

use super::format::{ALIGNMENT, Base, Descriptor, Header, Kind, Trailer, checksum};
use super::segment::{ChangeKind, Columns};
use super::{Fingerprint, StateDelta, StateSnapshot};
use crate::StateError;

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
    segment_bytes: usize,
}

impl ImageOptions {
    /// The options of [`StateSnapshot::to_bytes`]: segments of 64 KiB.
    pub const fn new() -> Self {
        Self { segment_bytes: 64 << 10 }
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
) -> Result<(u64, Fingerprint), StateError> {
    let known = snapshot.shared.fingerprint.get().copied();
    let header = Header { kind: Kind::Snapshot, timestamp_ns: snapshot.timestamp_ns() };
    let mut writer = ImageWriter::new(header, known, options, out)?;
    let mut result = Ok(());
    snapshot.visit_range((Bound::Unbounded, Bound::Unbounded), |key, value| {
        result = writer.push(key, value, None);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result?;
    Ok(writer.finish(None)?)
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
    let header = Header { kind: Kind::Delta, timestamp_ns: delta.timestamp_ns() };
    let mut writer = ImageWriter::new(header, known, options, out)?;
    let mut result = Ok(());
    delta.visit_kinds(&mut |key, change, value| {
        result = writer.push(key, value, Some(change));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result?;
    Ok(writer.finish(Some(base))?.0)
}

struct ImageWriter<W> {
    out: W,
    kind: Kind,
    header: [u8; Header::LEN],
    written: u64,
    segment_bytes: usize,
    /// The entries of the segment that is being filled.
    columns: Columns,
    /// The archive of a segment on its way out, kept for its capacity.
    archive: AlignedVec,
    descriptors: Vec<u8>,
    first_keys: Vec<u8>,
    segments: u64,
    entries: u64,
    key_bytes: u64,
    value_bytes: u64,
    known_fingerprint: Option<Fingerprint>,
    fingerprint: Fingerprint,
}

impl<W: Write> ImageWriter<W> {
    fn new(
        header: Header,
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
            written: Header::LEN as u64,
            segment_bytes: options.segment_bytes,
            columns: Columns::default(),
            archive: AlignedVec::new(),
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
    fn push(&mut self, key: &[u8], value: &[u8], change: Option<ChangeKind>) -> io::Result<()> {
        self.entries += 1;
        self.key_bytes += key.len() as u64;
        self.value_bytes += value.len() as u64;
        if self.known_fingerprint.is_none() && change != Some(ChangeKind::Delete) {
            self.fingerprint.add(key, value);
        }
        if value.len() >= self.segment_bytes {
            self.close_segment(&[])?;
            self.columns.push(key, &[], change);
            return self.close_segment(value);
        }
        self.columns.push(key, value, change);
        if self.columns.size_bytes() >= self.segment_bytes {
            self.close_segment(&[])?;
        }
        Ok(())
    }

    /// Writes the segment that was being filled, if it holds anything, with `blob` behind it.
    fn close_segment(&mut self, blob: &[u8]) -> io::Result<()> {
        if self.columns.entries() == 0 {
            return Ok(());
        }
        let mut archive = self.columns.archive(self.kind, mem::take(&mut self.archive));
        let archive_len = u32::try_from(archive.len()).expect("a segment's archive stays below 2 GiB");
        archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
        let padding = &[0; ALIGNMENT][..blob.len().next_multiple_of(ALIGNMENT) - blob.len()];

        let checksum = if blob.is_empty() {
            checksum(&archive)
        } else {
            let mut hasher = Hasher::new();
            for part in [&archive, blob, padding] {
                hasher.write(part);
            }
            hasher.finish()
        };
        let first_key = self.columns.first_key();
        let descriptor = Descriptor {
            offset: self.written,
            checksum,
            blob_len: blob.len() as u64,
            archive_len,
            entries: self.columns.entries(),
            first_key_len: u16::try_from(first_key.len()).expect("keys are within their limit"),
            reserved: 0,
        };
        self.descriptors.extend_from_slice(&descriptor.to_bytes());
        self.first_keys.extend_from_slice(first_key);
        self.segments += 1;
        self.columns.clear();

        for part in [&archive, blob, padding] {
            self.write(part)?;
        }
        self.archive = archive;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is left; a delta ends with its base.
    fn finish(mut self, base: Option<Base>) -> io::Result<(u64, Fingerprint)> {
        self.close_segment(&[])?;
        let footer_offset = self.written;
        let base = base.map_or_else(Vec::new, |base| base.to_bytes().to_vec());
        let footer = [mem::take(&mut self.descriptors), mem::take(&mut self.first_keys), base];
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
        Ok((self.written, self.fingerprint))
    }
}
