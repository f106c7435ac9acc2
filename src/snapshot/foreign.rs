//! [`Foreign`]: the source of a third-party store.
//!
//! Stores rely on the limits of the contract and on the order of entries. So a third-party source is checked on every
//! read, and a scan ends after a broken rule.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::bounds::KeyBounds;
use crate::error::StateError;
use crate::limits::check_entry_len;
use crate::scan::TryScan;
use crate::source::{SnapshotSource, Source};

/// The source of a third-party store. Its entries are checked as they are read.
pub(crate) struct Foreign<S>(pub(crate) S);

/// The entries of a third-party source, checked as they are read. Nothing follows a broken rule.
struct CheckedScan<'a> {
    entries: TryScan<'a>,
    /// The last keys returned from the front and from the back.
    last: (Option<Bytes>, Option<Bytes>),
    /// The number of entries returned so far.
    handed_out: usize,
    /// `true` after a broken rule.
    is_broken: bool,
}

impl CheckedScan<'_> {
    /// Checks the length of an entry, and its order compared with the entries returned before.
    fn check(
        &mut self,
        entry: Result<(Bytes, Bytes), StateError>,
        is_front: bool,
    ) -> Result<(Bytes, Bytes), StateError> {
        let (key, value) = entry?;
        let (front, back) = &mut self.last;
        let is_in_order =
            front.as_ref().is_none_or(|front| *front < key) && back.as_ref().is_none_or(|back| key < *back);
        let order = if is_in_order { Ok(()) } else { Err(StateError::NotSorted { index: self.handed_out }) };
        if let Err(error) = check_entry_len(&key, &value).and(order) {
            self.is_broken = true;
            return Err(error);
        }
        *(if is_front { front } else { back }) = Some(key.clone());
        self.handed_out += 1;
        Ok((key, value))
    }
}

impl Iterator for CheckedScan<'_> {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = if self.is_broken { None } else { self.entries.next() }?;
        Some(self.check(entry, true))
    }
}

impl DoubleEndedIterator for CheckedScan<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let entry = if self.is_broken { None } else { self.entries.next_back() }?;
        Some(self.check(entry, false))
    }
}

impl<S: SnapshotSource> SnapshotSource for Foreign<S> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.0.try_get(key)?;
        value.as_ref().map_or(Ok(()), |value| check_entry_len(key, value))?;
        Ok(value)
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let entries = self.0.try_scan(bounds);
        TryScan::new(CheckedScan { entries, last: (None, None), handed_out: 0, is_broken: false })
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let (mut last, mut index, mut result) = (Vec::new(), 0, Ok(()));
        let visited = self.0.try_visit(bounds, &mut |key, value| {
            let is_in_order = index == 0 || *last < *key;
            let order = if is_in_order { Ok(()) } else { Err(StateError::NotSorted { index }) };
            result = check_entry_len(key, value).and(order);
            if result.is_err() {
                return ControlFlow::Break(());
            }
            last.clear();
            last.extend_from_slice(key);
            index += 1;
            f(key, value)
        });
        result.and(visited)
    }

    fn is_for_many_readers(&self) -> bool {
        self.0.is_for_many_readers()
    }

    fn verify(&self) -> Result<(), StateError> {
        self.0.verify()
    }
}

impl<S: SnapshotSource> Source for Foreign<S> {
    fn can_fail(&self) -> bool {
        true
    }
}
