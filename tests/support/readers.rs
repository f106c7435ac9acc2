//! Readers of images that record, change or fail.

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use opstate::{KeyBounds, SnapshotSource, StateError, TryScan, UnverifiedImage};

/// An image as the source of a snapshot. It tests operations of snapshots on a medium that can fail.
pub(crate) struct Medium(pub(crate) UnverifiedImage);

impl SnapshotSource for Medium {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.0.get(key)
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        self.0.scan(bounds)
    }

    fn verify(&self) -> Result<(), StateError> {
        self.0.verify().map(drop)
    }
}

/// A reader that records the ranges it reads.
pub(crate) struct Watched {
    image: Cursor<Vec<u8>>,
    reads: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Read for Watched {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let start = self.image.position();
        let len = self.image.read(bytes)?;
        if len > 0 {
            self.reads.lock().unwrap().push((start, start + len as u64));
        }
        Ok(len)
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.image.seek(to)
    }
}

impl Watched {
    /// Creates a reader of `image`, and the list in which it records each range.
    pub(crate) fn new(image: Vec<u8>) -> (Self, Arc<Mutex<Vec<(u64, u64)>>>) {
        let reads = Arc::new(Mutex::new(Vec::new()));
        (Self { image: Cursor::new(image), reads: Arc::clone(&reads) }, reads)
    }
}

/// A reader of bytes that someone else may change.
pub(crate) struct Changing {
    pub(crate) image: Arc<Mutex<Vec<u8>>>,
    pub(crate) at: u64,
}

impl Read for Changing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let image = self.image.lock().unwrap();
        let mut rest = &image[(self.at as usize).min(image.len())..];
        let len = rest.read(bytes)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Changing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut cursor = Cursor::new(vec![0_u8; self.image.lock().unwrap().len()]);
        cursor.set_position(self.at);
        self.at = cursor.seek(to)?;
        Ok(self.at)
    }
}

/// A reader that fails or ends early, starting with one of its reads.
pub(crate) struct Failing {
    pub(crate) image: Cursor<Vec<u8>>,
    pub(crate) reads_left: usize,
    pub(crate) ends: bool,
}

impl Read for Failing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.reads_left.checked_sub(1) {
            Some(left) => self.reads_left = left,
            None if self.ends => return Ok(0),
            None => return Err(io::Error::other("the disk is gone")),
        }
        self.image.read(bytes)
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.image.seek(to)
    }
}
