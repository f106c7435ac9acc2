//! [`Progress`], and reading an image from a stream.

use std::io::{Read, Write};
use std::ops::ControlFlow;

use super::format::Header;
use super::{ImageOptions, StateSnapshot, write};
use crate::StateError;

/// How far the reading or writing of an image has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the image read or written.
    pub bytes: u64,
    /// Entries taken from the snapshot that is written; those of an image that is read are not known before its end.
    pub entries: u64,
}

impl StateSnapshot {
    /// Writes as [`write_with`](Self::write_with) does, and calls `progress` whenever segments have been written, and at
    /// the end.
    ///
    /// Where it returns [`ControlFlow::Break`], nothing more is written. At the end its answer does not count.
    ///
    /// # Errors
    ///
    /// [`StateError::Cancelled`], and those of [`write_with`](Self::write_with).
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// use opstate::{ImageOptions, StateError, StateSnapshot};
    ///
    /// let snapshot = StateSnapshot::from_iter((0..10_000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![0; 100])));
    /// let stop = AtomicBool::new(true);
    /// let result = snapshot.write_with_progress(ImageOptions::new(), std::io::sink(), |progress| {
    ///     println!("{} of {}", progress.entries, snapshot.len());
    ///     if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    /// });
    /// assert!(matches!(result, Err(StateError::Cancelled { .. })));
    /// ```
    pub fn write_with_progress(
        &self,
        options: ImageOptions,
        out: impl Write,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u64, StateError> {
        let (written, fingerprint) = write::write_image(self, options, out, progress)?;
        // Another thread may have been first; it found the same.
        let _ = self.shared.fingerprint.set(fingerprint);
        Ok(written)
    }

    /// Reads an image from a stream, to the stream's end, and opens it as [`from_bytes`](Self::from_bytes) does.
    ///
    /// The snapshot answers from the bytes read, so they are what is held: memory grows with what has been read, to less
    /// than twice that, and to what is not an image nothing is given beyond its first bytes. Segments cannot be used as
    /// they come, for where they lie and what their checksums are is said at the end of an image. To restore a store
    /// without holding the image, use [`UnverifiedImage::from_reader`](super::UnverifiedImage::from_reader), which goes
    /// to the end first.
    ///
    /// `input` gets reads of up to 1 MiB, so it need not be buffered.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes), and [`StateError::Io`].
    ///
    /// ```
    /// use opstate::StateSnapshot;
    ///
    /// let snapshot = StateSnapshot::from_iter([("key", "value")]);
    /// let image = snapshot.to_bytes();
    /// assert_eq!(StateSnapshot::read_from(&image[..])?, snapshot);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn read_from(input: impl Read) -> Result<Self, StateError> {
        Self::read_with_progress(input, |_| ControlFlow::Continue(()))
    }

    /// Reads as [`read_from`](Self::read_from) does, and calls `progress` after every MiB and at the end. Where it returns
    /// [`ControlFlow::Break`], reading stops.
    ///
    /// # Errors
    ///
    /// [`StateError::Cancelled`], and those of [`read_from`](Self::read_from).
    pub fn read_with_progress(
        mut input: impl Read,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self, StateError> {
        const STEP: u64 = 1 << 20;
        let mut image = Vec::new();
        // The first bytes tell that it is no image, or one that this build cannot read.
        let start = input.by_ref().take(Header::LEN as u64).read_to_end(&mut image)?;
        Header::read_start(&image)?;
        if start == Header::LEN {
            while input.by_ref().take(STEP).read_to_end(&mut image)? > 0 {
                let bytes = image.len() as u64;
                if progress(Progress { bytes, entries: 0 }).is_break() {
                    return Err(StateError::Cancelled { bytes });
                }
            }
        }
        image.shrink_to_fit();
        Self::from_bytes(image)
    }
}
