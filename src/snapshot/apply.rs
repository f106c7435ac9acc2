//! Applying a delta to the snapshot that it was taken against.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::delta::{StateDelta, check_fingerprint, check_kind, inconsistent};
use super::overlay::{Overlay, find_all};
use super::state_snapshot::StateSnapshot;
use crate::comparison::ChangeKind;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::image::format::checksums_are_ignored;
use crate::source::SnapshotSource as _;

impl StateSnapshot {
    /// Returns the contents after `delta`, which must have been taken against this snapshot. The result has the delta's
    /// time.
    ///
    /// The result reads from this snapshot and the delta in place: only handles are copied. Costs a lookup for each
    /// change, or O(n) if that is less, and this snapshot's [`fingerprint`](Self::fingerprint), which is known for
    /// images.
    ///
    /// After a chain of k deltas, a read looks into O(log k) parts. An image of the result, or a store restored from
    /// it, has one part again.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`]; [`StateError::InconsistentDelta`] for a forged delta; and the errors of
    /// [`verify`](Self::verify).
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
        let (kinds, changes): (Vec<ChangeKind>, Vec<(Bytes, Option<Bytes>)>) = delta
            .changes()
            .map(|(key, change, value)| (change, (key, (change != ChangeKind::Delete).then_some(value))))
            .unzip();
        let source = self.source();
        let (mut len, mut size) = (source.len(), source.size_bytes());
        let mut result = Ok(());
        find_all(&**source, &changes, &mut |index, old| {
            let (key, new) = &changes[index];
            result = check_kind(key, kinds[index], old.is_some());
            if result.is_err() {
                return ControlFlow::Break(());
            }
            if let Some(old) = old {
                let mut removed = Fingerprint::EMPTY;
                removed.add(key, old);
                fingerprint = fingerprint.minus(removed);
                size -= key.len() + old.len();
                len -= 1;
            }
            if let Some(new) = new {
                fingerprint.add(key, new);
                size += key.len() + new.len();
                len += 1;
            }
            ControlFlow::Continue(())
        })?;
        result?;
        check_result(fingerprint, delta)?;
        let overlay = Overlay::new(Arc::clone(source), changes, len, size);
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
