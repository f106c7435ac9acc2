//! [`Value`]: a value stored in place if it is short, and shared if it is long.

use std::sync::Arc;

use bytes::Bytes;

use crate::aligned::{aligned_copy, is_aligned};

/// The longest value that is stored in the map's nodes. It fits beside the two words of an `Arc<[u8]>`.
const INLINE: usize = 22;

/// A value of the map.
#[derive(Clone)]
pub(super) enum Value {
    /// A short value: `bytes[..len]`.
    Inline { len: u8, bytes: [u8; INLINE] },
    /// A long value. It is not changed while a handle or a snapshot shares it.
    Shared(Arc<[u8]>),
}

impl Value {
    /// Copies a value.
    pub(super) fn new(value: &[u8]) -> Self {
        let mut bytes = [0; INLINE];
        match bytes.get_mut(..value.len()) {
            Some(inline) => {
                inline.copy_from_slice(value);
                Self::Inline { len: value.len() as u8, bytes }
            }
            None => Self::Shared(value.into()),
        }
    }

    /// Returns the bytes of the value.
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Shared(value) => value,
        }
    }

    /// Returns the memory of a long value outside of the map's nodes, in bytes.
    pub(super) fn outside_bytes(&self) -> usize {
        match self {
            Self::Inline { .. } => 0,
            // The two counts of an `Arc` come first.
            Self::Shared(value) => (2 * size_of::<usize>() + value.len()).next_multiple_of(align_of::<usize>()),
        }
    }

    /// Returns the value for a change. Copies it first if a handle or a snapshot shares it.
    pub(super) fn make_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Inline { len, bytes } => &mut bytes[..usize::from(*len)],
            Self::Shared(value) => Arc::make_mut(value),
        }
    }

    /// Returns the value as an aligned handle.
    pub(super) fn to_bytes(&self) -> Bytes {
        self.handle().unwrap_or_else(|| aligned_copy(self.as_slice()))
    }

    /// Returns a handle to a long value, if it is aligned in place. Returns `None` for other values.
    ///
    /// An `Arc<[u8]>` guarantees an alignment of 8. On 64 bits its contents lie 16 bytes behind the start of an
    /// allocation, which is at a multiple of 16 with nearly every allocator.
    pub(super) fn handle(&self) -> Option<Bytes> {
        match self {
            Self::Shared(value) if is_aligned(value) => Some(Bytes::from_owner(Arc::clone(value))),
            _ => None,
        }
    }
}
