//! Applying a delta to the snapshot that it was taken against.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::change_list::{check_kind, inconsistent};
use super::delta::{StateDelta, check_fingerprint};
use super::overlay::{Overlay, find_all};
use super::state_snapshot::StateSnapshot;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::image::format::checksums_are_ignored;
use crate::source::SnapshotSource as _;

/// The problem with a third-party source whose totals are wrong.
const TOO_FEW: &str = "the source of the snapshot has more entries or bytes than its `len` and `size_bytes` return";

impl StateSnapshot {
    /// Returns the contents after `delta`, which must have been taken against this snapshot. The result has the delta's
    /// time.
    ///
    /// Costs a lookup for each change, or O(n) if that is less, the copies named below, and this snapshot's
    /// [`fingerprint`](Self::fingerprint), which is known for images.
    ///
    /// # Chains
    ///
    /// The result reads from this snapshot, and from the image of an opened delta in place. The changes of any other
    /// delta are copied, 64 to a buffer. While deltas follow each other, so are changes that are left of an image or a
    /// buffer of which less than half is used. A byte that is applied is copied O(1) times.
    ///
    /// Changes that were replaced, and deleted keys that this snapshot does not have, are let go of when the parts of a
    /// chain are merged: when deltas have changed half as many keys since. So the memory of a chain depends on the
    /// changes that are left and on the deltas that changed as many keys last, and not on the number of all deltas.
    ///
    /// The snapshot that a chain begins with is kept alive until at most half of its bytes are left, and as many keys have
    /// changed as it has entries. Then what is left of it is copied, too.
    ///
    /// After a chain of k deltas, a read looks into O(log k) parts. An image of the result, or a store restored from
    /// it, has one part again.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`]; [`StateError::InconsistentDelta`] for a forged delta; the errors of
    /// [`verify`](Self::verify) and of the medium that the snapshot lies in; and [`StateError::Store`] for a third-party
    /// source that understates its totals.
    ///
    /// ```
    /// use opstate::{StateError, StateSnapshot};
    ///
    /// # fn main() -> Result<(), StateError> {
    /// let monday = StateSnapshot::from_iter([("a", "1"), ("b", "1")]);
    /// let tuesday = StateSnapshot::from_iter([("a", "2"), ("b", "1")]);
    /// let wednesday = StateSnapshot::from_iter([("a", "2")]);
    /// let (first, second) = (tuesday.delta_since(&monday), wednesday.delta_since(&tuesday));
    ///
    /// assert_eq!(monday.apply(&first)?.apply(&second)?, wednesday);
    /// let error = monday.apply(&second).unwrap_err();
    /// assert!(matches!(error, StateError::WrongBase { found, .. } if found == monday.fingerprint()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply(&self, delta: &StateDelta) -> Result<Self, StateError> {
        // The base may be a third-party source that has not been verified.
        self.verify()?;
        let mut fingerprint = self.try_fingerprint()?;
        check_fingerprint(fingerprint, delta.try_ends()?.0)?;
        let changes = delta.to_list();
        let source = self.source();
        let (layers, _) = Overlay::layers_of(source);
        let (mut len, mut size) = (source.len(), source.size_bytes());
        let mut left = layers.first().map_or(size, |highest| highest.left());
        let mut result = Ok(());
        find_all(&**source, changes.as_slice(), &mut |index, old| {
            let (key, change) = &changes.as_slice()[index];
            let new = change.new_value();
            let counted = |count: usize, old, new: Option<usize>| {
                let rest = count.checked_sub(old).ok_or_else(|| StateError::store(TOO_FEW))?;
                rest.checked_add(new.unwrap_or(0)).ok_or(StateError::BeyondAddressSpace)
            };
            result = check_kind(key, change.kind, old.is_some()).and_then(|()| {
                len = counted(len, usize::from(old.is_some()), new.map(|_| 1))?;
                size = counted(size, old.map_or(0, |old| key.len() + old.len()), new.map(|new| key.len() + new.len()))?;
                Ok(())
            });
            if result.is_err() {
                return ControlFlow::Break(());
            }
            if let Some(old) = old {
                let mut removed = Fingerprint::EMPTY;
                removed.add(key, old);
                fingerprint = fingerprint.minus(removed);
                if !layers.iter().any(|layer| layer.has_changed(key)) {
                    left = left.saturating_sub(key.len() + old.len());
                }
            }
            if let Some(new) = new {
                fingerprint.add(key, new);
            }
            ControlFlow::Continue(())
        })?;
        result?;
        check_result(fingerprint, delta)?;
        let overlay = Overlay::new(Arc::clone(source), changes, (len, size), left)?;
        Ok(Self::opened(delta.timestamp_ns(), delta.label().clone(), Some(fingerprint), Arc::new(overlay)))
    }
}

/// Checks the fingerprint of the contents after a delta.
fn check_result(found: Fingerprint, delta: &StateDelta) -> Result<(), StateError> {
    if found == delta.result_fingerprint() || checksums_are_ignored() {
        return Ok(());
    }
    let mut last = Bytes::new();
    delta.visit(|key, _| {
        last = Bytes::copy_from_slice(key);
        ControlFlow::Continue(())
    });
    Err(inconsistent("it does not lead to the contents that it says it leads to", &last))
}
