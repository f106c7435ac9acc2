//! Faulty parts of a [`Broken`](super::Broken) store: packed values, memory that changes, and wrong scans and
//! sources of snapshots.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use bytes::Bytes;
use opstate::{KeyBounds, SnapshotSource, StateError, StateSnapshot, TryScan};

use super::faults::Fault;

/// Puts the entries one after another into one buffer, after `start` bytes, and returns slices of the buffer.
pub(super) fn pack(start: usize, entries: impl IntoIterator<Item = (Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    let entries: Vec<_> = entries.into_iter().collect();
    let mut buffer = vec![0; start];
    for (key, value) in &entries {
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(value);
    }
    let mut buffer = Bytes::from(buffer).slice(start..);
    entries.iter().map(|(key, value)| (buffer.split_to(key.len()), buffer.split_to(value.len()))).collect()
}

/// A scan that is wrong where its ends meet, or at its end.
pub(super) struct Ends {
    left: VecDeque<(Bytes, Bytes)>,
    fault: Fault,
    from_front: Option<(Bytes, Bytes)>,
    from_back: bool,
}

impl Ends {
    pub(super) fn new(fault: Fault, entries: impl Iterator<Item = (Bytes, Bytes)>) -> Self {
        Self { left: entries.collect(), fault, from_front: None, from_back: false }
    }
}

impl Iterator for Ends {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        if self.fault == Fault::EntriesLoseTheMiddle && self.from_back && self.left.len() == 1 {
            return None;
        }
        let next = self.left.pop_front();
        self.from_front = next.clone().or(self.from_front.take());
        next
    }
}

impl DoubleEndedIterator for Ends {
    fn next_back(&mut self) -> Option<(Bytes, Bytes)> {
        self.from_back = true;
        match self.fault {
            Fault::EntriesDownGoUp => self.left.pop_front(),
            // Return the last entry from the front a second time.
            Fault::EntriesDoubleTheMiddle => self.left.pop_back().or_else(|| self.from_front.take()),
            _ => self.left.pop_back(),
        }
    }
}

/// A scan whose two directions are independent walks.
pub(super) struct TwoWalks<U, D>(pub(super) U, pub(super) D);

impl<U: Iterator, D> Iterator for TwoWalks<U, D> {
    type Item = U::Item;

    fn next(&mut self) -> Option<U::Item> {
        self.0.next()
    }
}

impl<U: Iterator, D: Iterator<Item = U::Item>> DoubleEndedIterator for TwoWalks<U, D> {
    fn next_back(&mut self) -> Option<U::Item> {
        self.1.next()
    }
}

/// The snapshot source of a store with a fault.
pub(super) struct Source {
    pub(super) snapshot: StateSnapshot,
    pub(super) fault: Fault,
}

impl SnapshotSource for Source {
    fn len(&self) -> usize {
        self.snapshot.len()
    }

    fn size_bytes(&self) -> usize {
        self.snapshot.size_bytes()
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.snapshot.try_get(key)?;
        Ok(match self.fault {
            Fault::SourceMissesGet if key == b"a" => None,
            Fault::SourcePacks => value.map(|value| pack(1, [(Bytes::new(), value)]).remove(0).1),
            _ => value,
        })
    }

    fn try_scan(&self, bounds: KeyBounds<'_>) -> TryScan<'_> {
        let up = self.snapshot.try_scan(bounds);
        match self.fault {
            Fault::SourceIgnoresBounds => self.snapshot.try_scan(..),
            Fault::SourcePacks => TryScan::new(pack(1, self.snapshot.scan(bounds)).into_iter().map(Ok)),
            Fault::SourceDownMissesFirst => {
                let mut entries: Vec<_> = self.snapshot.try_scan(bounds).rev().collect();
                entries.pop();
                TryScan::of_both_directions(|| up, || entries.into_iter())
            }
            Fault::SourceDownGoesUp => {
                let down = self.snapshot.try_scan(bounds);
                TryScan::of_both_directions(|| up, || down)
            }
            _ => up,
        }
    }

    fn try_visit(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for entry in self.try_scan(bounds) {
            let (key, value) = entry?;
            if f(&key, &value).is_break() && self.fault != Fault::SourceVisitIgnoresBreak {
                break;
            }
        }
        Ok(())
    }
}

/// Owner of memory that changes while [`Bytes`] show it. A store with writes in place can have this fault.
pub(super) struct SharedMemory(pub(super) Arc<[AtomicU8]>);

impl AsRef<[u8]> for SharedMemory {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: The memory has the given length and lives as long as `self`. Changing it while it is borrowed as
        // `[u8]` breaks Rust's aliasing rules. The test needs a handle that changes, and there is no other way to make
        // one. The tests of these faults do not run under Miri.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len()) }
    }
}
