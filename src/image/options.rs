//! [`ImageOptions`] and [`Progress`]: the layout of an image, and the progress of reading or writing it.

/// Options for writing an image: the size of its segments, and the threads and memory that writing uses.
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
    pub(crate) segment_bytes: usize,
    pub(crate) buffer_bytes: usize,
    pub(crate) threads: usize,
}

impl ImageOptions {
    /// Returns the default options: segments of 64 KiB, one thread, 256 MiB of buffers for grouped images.
    ///
    /// [`StateSnapshot::to_bytes`](crate::StateSnapshot::to_bytes) uses these.
    pub const fn new() -> Self {
        Self { segment_bytes: 64 << 10, buffer_bytes: 256 << 20, threads: 1 }
    }

    /// Sets how many bytes of entries a segment holds before the next one is begun, from 1 to 256 MiB.
    ///
    /// Values out of this range mean the nearest one in it. Smaller segments need less memory for writing, and less
    /// reading for a part of the image. Each segment costs about 100 bytes and a key.
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

    /// Sets how many threads work on the image, the caller's included: 1 by default, at most 64.
    ///
    /// The image does not depend on the number of threads. The caller's thread reads all entries to find where a
    /// segment ends, and all threads make segments. Each thread takes memory for up to sixteen segments. Entries are
    /// read twice. So an image [in a reader](crate::UnverifiedImage::from_reader) is written by the caller's thread
    /// alone, as are grouped images.
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

    /// Sets how many bytes of entries [`write_grouped`](crate::StateSnapshot::write_grouped) gathers at once; 256 MiB
    /// by default.
    ///
    /// The image does not depend on it. Less memory means more passes over the snapshot: one for every so many bytes,
    /// or for every key group if a group is larger.
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

/// The progress of reading or writing an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the image read or written.
    pub bytes: u64,
    /// Entries taken from the snapshot being written. While an image is being read, this is 0.
    pub entries: u64,
}
