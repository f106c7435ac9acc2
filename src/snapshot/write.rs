//! Writing snapshots as images.

use std::io::Write;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::state_snapshot::StateSnapshot;
use crate::error::{StateError, expect_sound};
use crate::image::options::{ImageOptions, Progress};
use crate::image::write::write_image;

impl StateSnapshot {
    /// Returns the snapshot as an image. Computes in O(n).
    ///
    /// Equal contents with equal labels give equal bytes, except for the time in the header.
    #[track_caller]
    pub fn to_bytes(&self) -> Bytes {
        // A source that can fail may be that of a third-party store, whose totals nobody has verified.
        let most = if self.source().can_fail() { 1 << 20 } else { usize::MAX };
        let (len, size_bytes) = (self.len().min(most), self.size_bytes().min(most));
        // The capacity covers the entries, eight bytes for each, about as many to align its value, and a little for
        // each segment.
        let mut image = Vec::with_capacity(size_bytes + size_bytes / 256 + 16 * len + 512);
        // A `Vec` takes all bytes, so only reading the entries can fail.
        expect_sound(self.write_to(&mut image));
        image.shrink_to_fit();
        image.into()
    }

    /// Writes the snapshot as an image, segment by segment, and returns the number of bytes written.
    ///
    /// Computes in O(n). [`write_with`](Self::write_with) can use several threads ([`ImageOptions::threads`]). Beyond
    /// the snapshot it needs memory for five times the largest segment, which is 64 KiB and one entry shorter than
    /// that. It also needs up to three times 40 bytes and a key for every segment written. `out` receives whole
    /// segments, so it need not be buffered; it is flushed at the end.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], and the errors of the medium that the snapshot lies in. The bytes written until then are an
    /// incomplete image, which cannot be opened.
    pub fn write_to(&self, out: impl Write) -> Result<u64, StateError> {
        self.write_with(ImageOptions::new(), out)
    }

    /// Writes the snapshot as an image, with options. Otherwise works like [`write_to`](Self::write_to).
    ///
    /// # Errors
    ///
    /// The errors of [`write_to`](Self::write_to).
    pub fn write_with(&self, options: ImageOptions, out: impl Write) -> Result<u64, StateError> {
        self.write_with_progress(options, out, |_| ControlFlow::Continue(()))
    }

    /// Writes the snapshot as an image, and calls `progress` whenever segments have been written, and at the end.
    ///
    /// Works like [`write_with`](Self::write_with), but writing stops if `progress` returns [`ControlFlow::Break`].
    /// At the end the returned value is ignored.
    ///
    /// # Errors
    ///
    /// [`StateError::Cancelled`], and the errors of [`write_with`](Self::write_with).
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
        let (label, known) = (self.label(), self.known_fingerprint());
        let written = write_image(&**self.source(), self.timestamp_ns(), label, known, options, out, progress);
        let (written, fingerprint) = written?;
        self.set_fingerprint(fingerprint);
        Ok(written)
    }
}
