//! Opening images as snapshots: from bytes and from streams.

use std::io::Read;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::state_snapshot::StateSnapshot;
use super::unverified::UnverifiedImage;
use crate::aligned::aligned_copy;
use crate::error::StateError;
use crate::image::format::Header;
use crate::image::options::Progress;

impl StateSnapshot {
    /// Opens an image of a snapshot, which may be [grouped](Self::write_grouped).
    ///
    /// All of it is verified: structure, checksums, order of keys, counts and the fingerprint. The snapshot reads from
    /// `bytes` in place; they are copied only if they do not start at a multiple of 16 in memory.
    ///
    /// Computes in O(n). Allocates less than the length of the bytes and a few hundred, or twice that if they are
    /// copied. A grouped image takes up to 1,100 bytes more for each group while it is opened, and keeps 620 of them.
    ///
    /// # Errors
    ///
    /// [`StateError::NotAnImage`], [`StateError::UnsupportedVersion`], [`StateError::UnexpectedKind`],
    /// [`StateError::Truncated`], [`StateError::ChecksumMismatch`], [`StateError::Malformed`],
    /// [`StateError::UnknownSection`] and [`StateError::UnknownCodec`]; [`StateError::ConflictingKeys`] for grouped
    /// images; and [`StateError::BeyondAddressSpace`] on machines of 32 bits.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        UnverifiedImage::from_bytes(bytes)?.verify()
    }

    /// Opens a copy of an image. Works like [`from_bytes`](Self::from_bytes), for borrowed bytes.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes).
    pub fn from_slice(bytes: &[u8]) -> Result<Self, StateError> {
        Self::from_bytes(aligned_copy(bytes))
    }

    /// Reads an image from a stream, to the stream's end, and opens it.
    ///
    /// The image is verified as in [`from_bytes`](Self::from_bytes). The snapshot keeps the bytes read. Memory grows as
    /// bytes arrive, to less than twice their number. A stream that does not start like an image fails after its first
    /// bytes.
    ///
    /// Segments cannot be used as they arrive, because their positions and checksums are at the end of an image. To
    /// restore a store without holding the image, use [`UnverifiedImage::from_reader`](UnverifiedImage::from_reader),
    /// which reads the end first.
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

    /// Reads an image from a stream, and calls `progress` after every MiB and at the end.
    ///
    /// Works like [`read_from`](Self::read_from), but reading stops if `progress` returns [`ControlFlow::Break`].
    ///
    /// # Errors
    ///
    /// [`StateError::Cancelled`], and the errors of [`read_from`](Self::read_from).
    pub fn read_with_progress(
        mut input: impl Read,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self, StateError> {
        const STEP: u64 = 1 << 20;
        let mut image = Vec::new();
        // The header shows early that the stream holds no image, or one that this build cannot read.
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
