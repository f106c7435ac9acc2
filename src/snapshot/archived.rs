//! rkyv for [`StateSnapshot`], so that a snapshot can be a field of a user's own archived struct.
//!
//! The archive of a snapshot is its image, as bytes at a multiple of 16. rkyv's own check of an archive sees only
//! bytes. The image in them is verified when it is opened, like any image.

use std::fmt;

use rkyv::bytecheck::CheckBytes;
use rkyv::munge::munge;
use rkyv::rancor::{Fallible, Source};
use rkyv::ser::{Writer, WriterExt};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::{Archive, Deserialize, Place, Portable, Serialize};

use super::state_snapshot::StateSnapshot;
use crate::error::StateError;
use crate::image::format::ALIGNMENT;

/// The archived form of a [`StateSnapshot`]: the bytes of its image.
///
/// The image has checksums of its own; the fields beside it have only those you add. An archive cannot exceed 2 GiB.
///
/// Of rkyv's error types, `BoxedError` tells what is wrong with an image. `rkyv::rancor::Error`, which typed methods of
/// stores use, does so in debug builds only.
///
/// ```
/// use opstate::StateSnapshot;
/// use rkyv::rancor::BoxedError;
/// use rkyv::{Archive, Deserialize, Serialize};
///
/// #[derive(Archive, Serialize, Deserialize)]
/// struct Checkpoint {
///     offset: u64,
///     state: StateSnapshot,
/// }
///
/// # fn main() -> Result<(), BoxedError> {
/// let state = StateSnapshot::from_iter([("key", "value")]);
/// let bytes = rkyv::to_bytes::<BoxedError>(&Checkpoint { offset: 7, state: state.clone() })?;
///
/// let restored = rkyv::from_bytes::<Checkpoint, BoxedError>(&bytes)?;
/// assert_eq!((restored.offset, restored.state), (7, state));
/// # Ok(())
/// # }
/// ```
#[derive(Portable, CheckBytes)]
#[bytecheck(crate = rkyv::bytecheck)]
#[repr(transparent)]
pub struct ArchivedStateSnapshot {
    image: ArchivedVec<u8>,
}

impl fmt::Debug for ArchivedStateSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchivedStateSnapshot").field("image_len", &self.image.len()).finish()
    }
}

impl ArchivedStateSnapshot {
    /// Returns the bytes of the image. They have not been verified.
    pub fn as_image(&self) -> &[u8] {
        self.image.as_slice()
    }

    /// Opens a copy of the image. O(n).
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`].
    pub fn open(&self) -> Result<StateSnapshot, StateError> {
        StateSnapshot::from_slice(self.as_image())
    }
}

/// The state of rkyv between writing the image of a snapshot and pointing to it.
pub struct StateSnapshotResolver {
    len: usize,
    image: VecResolver,
}

impl fmt::Debug for StateSnapshotResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateSnapshotResolver").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Archive for StateSnapshot {
    type Archived = ArchivedStateSnapshot;
    type Resolver = StateSnapshotResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        munge!(let ArchivedStateSnapshot { image } = out);
        ArchivedVec::resolve_from_len(resolver.len, resolver.image, image);
    }
}

/// Fails if the image would exceed the 2 GiB of an rkyv archive; [`StateSnapshot::write_to`] has no such limit.
impl<S> Serialize<S> for StateSnapshot
where
    S: Fallible<Error: Source> + Writer + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let position = serializer.align(ALIGNMENT)?;
        let check = |len: usize| {
            if position.saturating_add(len) > i32::MAX as usize {
                return Err(S::Error::new(TooLongToArchive { position, len }));
            }
            Ok(())
        };
        // Entries that are too long by themselves are refused before an image is made of them.
        check(self.size_bytes())?;
        let mut image = Vec::new();
        self.write_to(&mut image).map_err(S::Error::new)?;
        check(image.len())?;
        serializer.write(&image)?;
        Ok(StateSnapshotResolver { len: image.len(), image: VecResolver::from_pos(position) })
    }
}

impl<D> Deserialize<StateSnapshot, D> for ArchivedStateSnapshot
where
    D: Fallible<Error: Source> + ?Sized,
{
    fn deserialize(&self, _: &mut D) -> Result<StateSnapshot, D::Error> {
        self.open().map_err(D::Error::new)
    }
}

/// The error of an image that would exceed the size of an rkyv archive.
#[derive(Debug, thiserror::Error)]
#[error(
    "an image of {len} bytes at byte {position} reaches beyond the 2 GiB of an rkyv archive; write it to a file of its \
     own with `write_to`"
)]
struct TooLongToArchive {
    position: usize,
    len: usize,
}
