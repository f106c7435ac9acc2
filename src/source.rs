//! [`SnapshotSource`]: entries that snapshots read from, for stores of this crate and for stores of your own.

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::bounds::KeyBounds;
use crate::comparison::Comparison;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::scan::TryScan;

/// Immutable entries that a [`StateSnapshot`](crate::StateSnapshot) reads from.
///
/// Implement it so that snapshots of your store copy nothing.
///
/// # Contract
///
/// 1. The entries never change, and are read by several threads at once.
/// 2. Keys are distinct; keys and values are within the limits of [`StateStore`](crate::StateStore).
/// 3. [`len`](Self::len) and [`size_bytes`](Self::size_bytes) are exact.
/// 4. An entry that cannot be read is an error, never an absent one. Errors may differ from call to call.
///
/// The snapshot checks limits and order as it reads, and a broken rule is an error. Values may lie at any address: a
/// value that is not aligned is copied when it is returned.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::Arc;
///
/// use opstate::bytes::Bytes;
/// use opstate::{KeyBounds, SnapshotSource, StateError, StateSnapshot, TryScan};
///
/// /// What a store on a `BTreeMap` shares with its snapshots.
/// struct Shared(Arc<BTreeMap<Bytes, Bytes>>);
///
/// impl SnapshotSource for Shared {
///     fn len(&self) -> usize {
///         self.0.len()
///     }
///
///     fn size_bytes(&self) -> usize {
///         self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
///     }
///
///     fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
///         Ok(self.0.get(key).cloned())
///     }
///
///     fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
///         let entries = self.0.range::<[u8], _>(bounds);
///         TryScan::new(entries.map(|(key, value)| Ok((key.clone(), value.clone()))))
///     }
/// }
///
/// let map = Arc::new(BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
/// let snapshot = StateSnapshot::from_source(Shared(map));
/// assert_eq!(snapshot, StateSnapshot::from_iter([("a", "1"), ("b", "2")]));
/// assert_eq!(snapshot.last(), Some(("b".into(), "2".into())));
/// ```
pub trait SnapshotSource: Send + Sync + 'static {
    /// Returns the number of entries.
    fn len(&self) -> usize;

    /// Returns the sum of the lengths of all keys and values, in bytes.
    fn size_bytes(&self) -> usize;

    /// Returns the value of `key`.
    ///
    /// # Errors
    ///
    /// The errors of the source's medium.
    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Iterates over the entries whose keys are within `bounds`, in order and from both ends.
    ///
    /// [`TryScan::buffered`] makes such an iterator of one that only ascends. The bounds are never inverted, so they
    /// can be passed to `BTreeMap::range`. An item is an error in the place of the entries that could not be read; the
    /// iterator may continue behind it.
    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_>;

    /// Calls `f` with the key and value of every entry within `bounds`, in order, until `f` returns
    /// [`ControlFlow::Break`].
    ///
    /// The default implementation uses [`try_scan`](Self::try_scan).
    ///
    /// # Errors
    ///
    /// The first error of the source's medium, after the entries before it.
    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for entry in self.try_scan(bounds) {
            let (key, value) = entry?;
            if f(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Returns `true` if there is no entry.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns `true` if reading on several threads, and twice, costs little more than reading once.
    ///
    /// Otherwise one thread writes the snapshot's images, whatever
    /// [`ImageOptions::threads`](crate::ImageOptions::threads) is.
    fn is_for_many_readers(&self) -> bool {
        true
    }

    /// Verifies everything that reads would verify later.
    ///
    /// # Errors
    ///
    /// The first damage found, and those of the source's medium.
    fn verify(&self) -> Result<(), StateError> {
        Ok(())
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        #[deny(clippy::missing_trait_methods)]
        impl<S: SnapshotSource + ?Sized> SnapshotSource for $pointer {
            fn len(&self) -> usize {
                (**self).len()
            }
            fn size_bytes(&self) -> usize {
                (**self).size_bytes()
            }
            fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
                (**self).try_get(key)
            }
            fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
                (**self).try_scan(bounds)
            }
            fn try_visit(
                &self,
                bounds: KeyBounds<'_>,
                f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
            ) -> Result<(), StateError> {
                (**self).try_visit(bounds, f)
            }
            fn is_empty(&self) -> bool {
                (**self).is_empty()
            }
            fn is_for_many_readers(&self) -> bool {
                (**self).is_for_many_readers()
            }
            fn verify(&self) -> Result<(), StateError> {
                (**self).verify()
            }
        }
    )*};
}

forward!(Arc<S>, Box<S>);

/// The source of a snapshot, with the methods that only this crate implements.
///
/// Its entries are within the limits of the contract and in order, or reads return an error.
pub(crate) trait Source: SnapshotSource + IntoAny {
    /// Returns `true` if a read can fail although the source was verified.
    fn can_fail(&self) -> bool {
        false
    }

    /// Returns the fingerprint of the entries, if reading or verifying them has computed it.
    fn fingerprint(&self) -> Option<Fingerprint> {
        None
    }

    /// Returns the differences from `earlier` to this source, or `None` if finding them needs reading both.
    fn compare(self: Arc<Self>, earlier: &Arc<dyn Source>) -> Option<Arc<dyn Comparison>> {
        let _ = earlier;
        None
    }
}

/// A conversion for stores that recognize a source of their own, to take it back without copying.
pub(crate) trait IntoAny: 'static {
    /// Converts a shared source to a type that can be downcast.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Send + Sync + 'static> IntoAny for T {
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
