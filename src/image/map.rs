//! Memory maps of files as backings of images.

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

use super::backing::Backing;
use crate::error::StateError;

/// A map that the `Bytes` of an image share.
struct SharedMap(Arc<Mmap>);

impl AsRef<[u8]> for SharedMap {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Backing {
    /// Maps the file at `path`. Errors include the path.
    pub(crate) fn of_file(path: &Path) -> Result<Self, StateError> {
        let named = |error: io::Error| StateError::from(error).in_file(path);
        let file = File::open(path).map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if !metadata.is_file() {
            return Err(named(io::Error::new(io::ErrorKind::InvalidInput, "this is no file, so it holds no image")));
        }
        // Not every system can map an empty file.
        if metadata.len() == 0 {
            return Ok(Self::InMemory(Bytes::new()));
        }
        // SAFETY: the map is read only. Its owner must not change the file while the map is in use: `open` asks for it,
        // and nothing here can check it. If the bytes do change, every range found in them is still compared with the
        // length of the map where it is used; only rkyv, while a segment is checked for the first time, reads a number
        // that it has just compared.
        let map = unsafe { Mmap::map(&file) }.map_err(named)?;
        let map = Arc::new(map);
        let bytes = Bytes::from_owner(SharedMap(Arc::clone(&map)));
        let will_need = move |range: Range<u64>| {
            /// On many disks, Linux reads no more than this for one request, and ignores the rest of it.
            const AT_ONCE: usize = 128 << 10;
            let end = range.end as usize;
            for start in (range.start as usize..end).step_by(AT_ONCE) {
                // This is only advice: if the system ignores it, reading is slower.
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
