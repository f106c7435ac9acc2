//! [`UnverifiedImage::open`]: an image read in place, through a map of its file.

#![allow(unsafe_code, reason = "nothing but the system can promise what a mapped file holds")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
#[cfg(unix)]
use memmap2::Advice;
use memmap2::Mmap;

use super::lazy::Backing;
use super::{GroupedImage, UnverifiedImage};
use crate::StateError;

/// A map, for handles to share.
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Backing {
    /// Maps the file at `path`. Errors name it.
    pub(super) fn of_file(path: &Path) -> Result<Self, StateError> {
        let named = |error: io::Error| StateError::from(error).in_file(path);
        let file = File::open(path).map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if !metadata.is_file() {
            return Err(named(io::Error::new(io::ErrorKind::InvalidInput, "this is no file, so it holds no image")));
        }
        // Not every system maps nothing.
        if metadata.len() == 0 {
            return Ok(Self::Whole(Bytes::new()));
        }
        // SAFETY: the map is read only. That its bytes do not change while they are borrowed is up to whoever owns the
        // file: `open` asks for it, and nothing here can check it. If they do change, every range found in them is still
        // compared with the length of the map where it is used; only rkyv, while a segment is checked for the first time,
        // reads a number that it has just compared.
        let map = unsafe { Mmap::map(&file) }.map_err(named)?;
        let map = Arc::new(map);
        let bytes = Bytes::from_owner(Shared(Arc::clone(&map)));
        let will_need = move |range: Range<u64>| {
            /// Linux reads no more than this ahead for one request on many disks, and forgets the rest of it.
            const AT_ONCE: usize = 128 << 10;
            let end = range.end as usize;
            for start in (range.start as usize..end).step_by(AT_ONCE) {
                // Only advice: whether it is taken shows in nothing but time.
                #[cfg(unix)]
                let _ = map.advise_range(Advice::WillNeed, start, AT_ONCE.min(end - start));
                #[cfg(not(unix))]
                let _ = (&map, start);
            }
        };
        let file = Arc::new(Mutex::new(file));
        Ok(Self::Mapped { bytes, will_need: Arc::new(will_need), file, path: path.into(), base: 0 })
    }
}

impl UnverifiedImage {
    /// Opens an image in a file by its footer, without reading the rest: the file is mapped into memory, and read by the
    /// system as it is touched. It may be larger than memory.
    ///
    /// It costs what [`from_bytes`](Self::from_bytes) does, and a copy of the footer: 40 bytes and a key more for each
    /// segment. Scans ask the system for some MiB ahead. Handles and clones keep the map; deleting or renaming the file
    /// does it no harm. A store restored from the snapshot reads the file once, from start to end.
    ///
    /// # The file must not change
    ///
    /// Write images to a new file and rename it over the old one; never write into a file that may be open. If a mapped
    /// file is written to, segments not yet read fail their checksums, and those already verified give wrong answers or
    /// panic; to the compiler, bytes that change while they are borrowed are undefined behaviour. If it is cut short, the
    /// system ends the process when the missing part is touched (`SIGBUS`). Where you cannot rule that out, use
    /// [`from_reader`](Self::from_reader), which has none of this.
    ///
    /// # Errors
    ///
    /// [`StateError::File`], with the path and the error that [`from_reader`](Self::from_reader) has. So have later reads.
    ///
    /// ```
    /// use opstate::{StateSnapshot, UnverifiedImage};
    ///
    /// let directory = tempfile::tempdir()?;
    /// let path = directory.path().join("checkpoint.image");
    /// std::fs::write(&path, StateSnapshot::from_iter([("key", "value")]).to_bytes())?;
    ///
    /// let image = UnverifiedImage::open(&path)?;
    /// assert_eq!(image.get(b"key")?.as_deref(), Some(&b"value"[..]));
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        let path = path.as_ref();
        Self::from_backing(Backing::of_file(path)?).map_err(|error| error.in_file(path))
    }
}

impl GroupedImage {
    /// Opens a grouped image in a file by its directory; only the groups asked for are read.
    ///
    /// The file is mapped into memory, and must not change: see [`UnverifiedImage::open`].
    ///
    /// # Errors
    ///
    /// [`StateError::File`], with the path and the error that [`from_reader`](Self::from_reader) has. So have later reads.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        let path = path.as_ref();
        Self::from_backing(Backing::of_file(path)?).map_err(|error| error.in_file(path))
    }
}
