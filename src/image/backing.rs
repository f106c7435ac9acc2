//! [`Backing`]: the bytes of an image, in memory, in a memory map or in a reader.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::columns::ColumnOffsets;
use super::format::Header;
use crate::aligned::{VALUE_ALIGNMENT, aligned};
use crate::error::StateError;

/// A reader that an image can be read from at any position.
pub(crate) trait ReadSeek: Read + Seek + Send + 'static {}

impl<R: Read + Seek + Send + 'static> ReadSeek for R {}

/// The bytes of an image, wherever they are.
#[derive(Clone)]
pub(crate) enum Backing {
    /// In memory, at an address that is aligned for archives.
    InMemory(Bytes),
    /// In a memory map of a file.
    ///
    /// Header, footer and trailer are read from the file itself. Reading a map page by page takes many times as long if
    /// the file is not cached. Bytes that were read stay unchanged if the file changes.
    #[cfg_attr(not(feature = "mmap"), allow(dead_code, reason = "only `map.rs` makes one"))]
    Mapped {
        /// The image, in the map.
        bytes: Bytes,
        /// Tells the system that a range of the file is about to be read.
        will_need: Arc<dyn Fn(Range<u64>) + Send + Sync>,
        /// The file itself.
        file: Arc<Mutex<dyn ReadSeek>>,
        /// The path of the file, for errors.
        path: Arc<Path>,
        /// The position in the file where the image starts.
        base: u64,
    },
    /// In a reader: `len` bytes from position `base` on.
    Reader { reader: Arc<Mutex<dyn ReadSeek>>, base: u64, len: u64 },
}

impl Backing {
    /// Creates a backing from bytes that start like an image. Copies them if they are not aligned for archives.
    pub(crate) fn of_bytes(bytes: Bytes) -> Result<Self, StateError> {
        Header::read_start(&bytes)?;
        Ok(Self::InMemory(align(bytes)))
    }

    /// Creates a backing from a reader that the image fills completely.
    pub(crate) fn of_reader(mut reader: impl Read + Seek + Send + 'static) -> io::Result<Self> {
        let len = reader.seek(SeekFrom::End(0))?;
        Ok(Self::Reader { reader: Arc::new(Mutex::new(reader)), base: 0, len })
    }

    /// Returns the length of the image in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::InMemory(bytes) | Self::Mapped { bytes, .. } => bytes.len() as u64,
            Self::Reader { len, .. } => *len,
        }
    }

    /// Returns the backing of an image that lies at `range` within this one.
    pub(crate) fn part(&self, range: Range<u64>) -> Self {
        match self {
            Self::InMemory(bytes) => Self::InMemory(bytes.slice(range.start as usize..range.end as usize)),
            Self::Mapped { bytes, will_need, file, path, base } => Self::Mapped {
                bytes: bytes.slice(range.start as usize..range.end as usize),
                will_need: Arc::clone(will_need),
                file: Arc::clone(file),
                path: Arc::clone(path),
                base: base + range.start,
            },
            Self::Reader { reader, base, .. } => {
                Self::Reader { reader: Arc::clone(reader), base: base + range.start, len: range.end - range.start }
            }
        }
    }

    /// Reads the bytes of `range`, which lies within the image. A range of up to 1 MiB is one request to a reader.
    pub(crate) fn read(&self, range: Range<u64>) -> Result<Bytes, StateError> {
        match self {
            Self::InMemory(bytes) | Self::Mapped { bytes, .. } => {
                Ok(bytes.slice(range.start as usize..range.end as usize))
            }
            Self::Reader { reader, base, len } => {
                let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                reader.seek(SeekFrom::Start(base + range.start))?;
                let asked = usize::try_from(range.end - range.start).map_err(|_| StateError::BeyondAddressSpace)?;
                let bytes = read_up_to(&mut *reader, asked)?;
                let end = range.start + bytes.len() as u64;
                if end < range.end {
                    return Err(StateError::Truncated { len: end, needed: *len });
                }
                Ok(align(bytes.into()))
            }
        }
    }

    /// Adds the path of a mapped file to an error.
    pub(crate) fn add_path(&self, error: StateError) -> StateError {
        match self {
            Self::Mapped { path, .. } => error.in_file(path),
            Self::InMemory(_) | Self::Reader { .. } => error,
        }
    }

    /// Returns a backing that reads a mapped file without its map. Used for parts that are read once.
    pub(crate) fn without_map(&self) -> Self {
        match self {
            Self::Mapped { bytes, file, base, .. } => {
                Self::Reader { reader: Arc::clone(file), base: *base, len: bytes.len() as u64 }
            }
            other => other.clone(),
        }
    }

    /// Tells the system that `range` is about to be read, in order.
    pub(crate) fn will_need(&self, range: Range<u64>) {
        if let Self::Mapped { will_need, base, .. } = self {
            will_need(base + range.start..base + range.end);
        }
    }
}

/// Reads `len` bytes, or all that are left if there are fewer.
///
/// A reader may lie about its length, so memory grows with what was read: the first request asks for at most
/// `FIRST_REQUEST` bytes, and each later one for at most as many as have been read.
fn read_up_to(reader: &mut dyn Read, len: usize) -> io::Result<Vec<u8>> {
    const FIRST_REQUEST: usize = 1 << 20;
    let (mut bytes, mut filled) = (Vec::new(), 0);
    while filled < len {
        if filled == bytes.len() {
            let step = (len - filled).min(filled.max(FIRST_REQUEST));
            bytes.reserve_exact(step);
            bytes.resize(filled + step, 0);
        }
        match reader.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Returns the bytes at an address that is aligned for archives, copying them if necessary.
fn align(bytes: Bytes) -> Bytes {
    const { assert!(VALUE_ALIGNMENT % ColumnOffsets::ALIGNMENT == 0) }
    aligned(bytes)
}
