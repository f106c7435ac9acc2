//! [`Broken`]: a store that is correct except for one fault.

mod faults;
mod faulty;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::iter;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use opstate::{
    Deleted, Entries, InMemoryStore, KeyBounds, MAX_KEY_LEN, Scan, StateError, StateSnapshot, StateStore, StateStoreExt,
};

pub(crate) use self::faults::{FAULTS, Fault, HARMLESS};
use self::faulty::{Ends, SharedMemory, Source, TwoWalks, pack};

/// An [`InMemoryStore`] with one fault.
pub(crate) struct Broken {
    inner: InMemoryStore,
    fault: Fault,
    overwrites: usize,
    size_error: isize,
    was_restored: bool,
    /// Handles given to `put_bytes`, for values that have not changed since.
    handles: BTreeMap<Bytes, Bytes>,
    /// Memory of values that are written in place although handles and snapshots share it.
    shared: RefCell<BTreeMap<Bytes, Arc<[AtomicU8]>>>,
}

impl Broken {
    pub(crate) fn new(fault: Fault) -> Self {
        let mut inner = InMemoryStore::new();
        if fault == Fault::StartsFilled {
            inner.put(b"left", b"over").unwrap();
        }
        let (handles, shared) = (BTreeMap::new(), RefCell::default());
        Self { inner, fault, overwrites: 0, size_error: 0, was_restored: false, handles, shared }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Returns the value as this store hands it out, packed if its fault is one of `packed`.
    fn hand_out(&self, packed: &[Fault], value: Bytes) -> Bytes {
        if !packed.contains(&self.fault) { value } else { pack(1, [(Bytes::new(), value)]).remove(0).1 }
    }

    /// Returns the entries as this store hands them out, packed if it has the fault `packed`.
    fn hand_out_all<'a>(&self, packed: Fault, entries: Entries<'a>) -> Entries<'a> {
        if self.has(packed) { Box::new(pack(0, entries).into_iter()) } else { entries }
    }

    /// Returns a handle to the value in memory that [`write_shared`](Self::write_shared) rewrites.
    fn hand_out_shared(&self, key: &[u8], value: &[u8]) -> Bytes {
        let memory: Arc<[AtomicU8]> = value.iter().copied().map(AtomicU8::new).collect();
        self.shared.borrow_mut().insert(Bytes::copy_from_slice(key), Arc::clone(&memory));
        Bytes::from_owner(SharedMemory(memory))
    }

    fn write_shared(&self, key: &[u8]) {
        let Some(value) = self.inner.get(key) else { return };
        if let Some(memory) = self.shared.borrow().get(key).filter(|memory| memory.len() == value.len()) {
            memory.iter().zip(&value).for_each(|(to, &from)| to.store(from, Ordering::Relaxed));
        }
    }

    /// Applies the faults of single scans to a correct scan.
    fn scan<'a>(&self, scan: Entries<'a>) -> Entries<'a> {
        match self.fault {
            Fault::ReversedScan => Box::new(scan.collect::<Vec<_>>().into_iter().rev()),
            Fault::SignedOrder => {
                let mut entries: Vec<_> = scan.collect();
                entries.sort_by_key(|(key, _)| key.iter().map(|&byte| byte as i8).collect::<Vec<_>>());
                Box::new(entries.into_iter())
            }
            Fault::EndlessScan => {
                let mut scan = scan.peekable();
                let first = scan.peek().cloned();
                Box::new(scan.chain(iter::repeat_n((), usize::MAX).map_while(move |()| first.clone())))
            }
            Fault::ScanSeesModify => {
                let entries = scan.map(|(key, value)| {
                    let value = self.hand_out_shared(&key, &value);
                    (key, value)
                });
                Box::new(entries.collect::<Vec<_>>().into_iter())
            }
            _ => scan,
        }
    }
}

impl StateStore for Broken {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let key = if self.has(Fault::KeysCutAt256) { &key[..key.len().min(256)] } else { key };
        let value = self.inner.get(key)?;
        match self.fault {
            Fault::HandleSeesPut | Fault::HandleSeesModify => Some(self.hand_out_shared(key, &value)),
            Fault::KeepsHandles => Some(self.handles.get(key).filter(|kept| **kept == value).cloned().unwrap_or(value)),
            Fault::PackedLargeValues if value.len() < 1000 => Some(value),
            Fault::AlignedToEight => Some(pack(8, [(Bytes::new(), value)]).remove(0).1),
            _ => Some(self.hand_out(&[Fault::PackedGet, Fault::PackedLargeValues], value)),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        let old = self.inner.get(key);
        let is_too_long = key.len() > MAX_KEY_LEN;
        match self.fault {
            Fault::EmptyKeyRefused if key.is_empty() => return Err(StateError::store("no empty keys")),
            Fault::TooLongKeyAccepted if is_too_long => return Ok(()),
            Fault::TooLongKeyTruncated if is_too_long => return self.inner.put(&key[..MAX_KEY_LEN], value),
            Fault::ErrorWithWrongNumbers if is_too_long => {
                return Err(StateError::KeyTooLong { len: MAX_KEY_LEN, limit: key.len() });
            }
            Fault::ErrorThatClears if is_too_long => self.inner.clear(),
            Fault::KeysCutAt256 if key.len() > 256 && !is_too_long => return self.inner.put(&key[..256], value),
            Fault::ValuesCutAt255 if value.len() > 255 => return self.inner.put(key, &value[..255]),
            Fault::FullAt300 if old.is_none() && self.inner.len() >= 300 => return Ok(()),
            _ => {}
        }
        self.inner.put(key, value)?;
        if let Some(old) = old {
            self.overwrites += 1;
            if self.has(Fault::SizeIgnoresOverwrites) {
                self.size_error += old.len() as isize - value.len() as isize;
            }
        }
        match self.fault {
            Fault::SnapshotSeesPut | Fault::HandleSeesPut => self.write_shared(key),
            Fault::RestoreSharesWithSnapshot if self.was_restored => self.write_shared(key),
            _ => {}
        }
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        match self.fault {
            Fault::LostDelete => return Ok(()),
            Fault::DeleteOfAbsentFails if !self.inner.contains(key) => return Err(StateError::store("no such key")),
            Fault::DeleteOfAbsentPanics => assert!(self.inner.contains(key), "no such key"),
            _ => {}
        }
        self.inner.delete(key)
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
        match self.fault {
            Fault::HighestPrefixYieldsNothing if prefix.first() == Some(&0xFF) => Box::new(iter::empty()),
            Fault::EmptyPrefixYieldsNothing if prefix.is_empty() => Box::new(iter::empty()),
            Fault::PrefixYieldsNeighbours if !prefix.is_empty() => {
                let is_near = |key: &[u8]| key.starts_with(&prefix[..prefix.len() - 1]);
                let entries = self.inner.prefix_scan(b"").filter(move |(key, _)| is_near(key) && key[..] >= *prefix);
                Box::new(entries)
            }
            _ => self.hand_out_all(Fault::PackedPrefixScan, self.scan(self.inner.prefix_scan(prefix))),
        }
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
        let end = self.inner.get(range.end).map(|value| (Bytes::copy_from_slice(range.end), value));
        match self.fault {
            Fault::InvertedRangePanics => assert!(range.start <= range.end, "slice index starts after its end"),
            Fault::RangeEndIncluded if range.start < range.end => {
                return Box::new(self.inner.range_scan(range).chain(end));
            }
            Fault::RangeStartExcluded => {
                return Box::new(self.inner.range_scan(range.clone()).filter(move |(key, _)| key != range.start));
            }
            _ => {}
        }
        self.hand_out_all(Fault::PackedRangeScan, self.scan(self.inner.range_scan(range)))
    }

    fn size_bytes(&self) -> usize {
        match self.fault {
            Fault::SizeWithoutKeys => self.inner.prefix_scan(b"").map(|(_, value)| value.len()).sum(),
            Fault::SizeIgnoresOverwrites => self.inner.size_bytes().saturating_add_signed(self.size_error),
            Fault::ClearForgetsSize => self.inner.size_bytes() + self.size_error.unsigned_abs(),
            _ => self.inner.size_bytes(),
        }
    }

    fn len(&self) -> usize {
        let overwrites = if self.has(Fault::LenCountsOverwrites) { self.overwrites } else { 0 };
        self.inner.len() + overwrites
    }

    fn is_empty(&self) -> bool {
        // A new store has to be empty. So the fault starts later, and the rule about counts finds it.
        self.inner.is_empty() && !(self.has(Fault::NeverEmpty) && self.overwrites > 0)
    }

    fn snapshot(&self) -> StateSnapshot {
        let mut entries: Vec<_> = self.inner.prefix_scan(b"").collect();
        match self.fault {
            Fault::SnapshotMissesLast => drop(entries.pop()),
            Fault::SourceMissesGet
            | Fault::SourceIgnoresBounds
            | Fault::SourceVisitIgnoresBreak
            | Fault::SourceDownMissesFirst
            | Fault::SourceDownGoesUp
            | Fault::SourcePacks => {
                return StateSnapshot::from_source(Source { snapshot: self.inner.snapshot(), fault: self.fault });
            }
            Fault::SnapshotSeesPut | Fault::SnapshotSeesModify | Fault::RestoreSharesWithSnapshot => {
                entries.iter_mut().for_each(|(key, value)| *value = self.hand_out_shared(key, value));
            }
            _ => {}
        }
        StateSnapshot::from_sorted(entries).unwrap()
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        self.was_restored = true;
        match self.fault {
            Fault::RestoreMerges => snapshot.iter().for_each(|(key, value)| self.inner.put(&key, &value).unwrap()),
            Fault::RestoreLosesEmptyValues => {
                self.inner.restore(snapshot.iter().filter(|(_, value)| !value.is_empty()).collect());
            }
            _ => self.inner.restore(snapshot),
        }
    }

    fn try_restore(&mut self, snapshot: StateSnapshot) -> Result<(), StateError> {
        match self.fault {
            Fault::TryRestoreMerges => snapshot.verify()?,
            Fault::TryRestoreTakesDamaged => {
                self.inner.clear();
                for (key, value) in snapshot.try_scan(..).flatten() {
                    self.inner.put(&key, &value)?;
                }
                return Ok(());
            }
            Fault::TryRestoreStopsHalfway => self.inner.clear(),
            _ => {
                snapshot.verify()?;
                self.restore(snapshot);
                return Ok(());
            }
        }
        for entry in snapshot.try_scan(..) {
            let (key, value) = entry?;
            self.inner.put(&key, &value)?;
        }
        Ok(())
    }

    fn clear(&mut self) {
        if self.has(Fault::ClearForgetsSize) {
            self.size_error = self.inner.size_bytes() as isize;
        }
        let empty_key = self.inner.get(b"").filter(|_| self.has(Fault::ClearKeepsEmptyKey));
        self.inner.clear();
        if let Some(value) = empty_key {
            self.inner.put(b"", &value).unwrap();
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.has(Fault::ContainsEverything) || self.get(key).is_some()
    }

    fn flush(&mut self) -> Result<(), StateError> {
        match self.fault {
            Fault::FlushFails => return Err(StateError::store("no space left")),
            Fault::FlushForgets => self.inner.clear(),
            _ => {}
        }
        Ok(())
    }

    fn get_or_insert(&mut self, key: &[u8], default: &[u8]) -> Result<Bytes, StateError> {
        let present = self.get(key);
        match (self.fault, present) {
            (Fault::GetOrInsertReturnsDefault, Some(_)) => Ok(Bytes::copy_from_slice(default)),
            (Fault::PackedGetOrInsert, Some(present)) => Ok(self.hand_out(&[Fault::PackedGetOrInsert], present)),
            (fault, Some(present)) if fault != Fault::GetOrInsertOverwrites => Ok(present),
            (_, present) => {
                self.put(key, default)?;
                Ok(present.unwrap_or_else(|| Bytes::copy_from_slice(default)))
            }
        }
    }

    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        let value = self.get(key);
        match self.fault {
            Fault::ReadCallsForAbsent => f(value.as_deref().unwrap_or_default()),
            Fault::PackedBorrows => value.iter().for_each(|value| f(&pack(1, [(Bytes::new(), value.clone())])[0].1)),
            Fault::ReadCallsTwice => value.iter().chain(&value).for_each(|value| f(value)),
            _ => value.iter().for_each(|value| f(value)),
        }
        value.is_some()
    }

    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        let modified = match self.fault {
            Fault::LostModify => self.inner.get(key).map(|value| f(&mut value.to_vec())).is_some(),
            Fault::ModifyInsertsAbsent => {
                let modified = self.inner.modify(key, f)?;
                if !modified && key.len() <= MAX_KEY_LEN {
                    self.inner.put(key, b"")?;
                }
                modified
            }
            _ => self.inner.modify(key, f)?,
        };
        match self.fault {
            Fault::SnapshotSeesModify | Fault::HandleSeesModify | Fault::ScanSeesModify => self.write_shared(key),
            Fault::RestoreSharesWithSnapshot if self.was_restored => self.write_shared(key),
            _ => {}
        }
        Ok(modified && !self.has(Fault::ModifySaysAbsent))
    }

    fn put_bytes(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
        let value = if self.has(Fault::PutBytesLosesValue) { Bytes::new() } else { value };
        self.put(key, &value)?;
        if self.has(Fault::KeepsHandles) {
            self.handles.insert(Bytes::copy_from_slice(key), value);
        }
        Ok(())
    }

    fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.get(key);
        match self.fault {
            Fault::TryGetMisses => Ok(None),
            Fault::TryGetFailsForAbsent if value.is_none() => Err(StateError::store("no such key")),
            _ => Ok(value.map(|value| self.hand_out(&[Fault::PackedTryGet], value))),
        }
    }

    fn take(&mut self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.inner.get(key);
        match self.fault {
            Fault::TakeKeeps => return Ok(value),
            Fault::TakeOfAbsentFails if value.is_none() => return Err(StateError::store("no such key")),
            _ => self.inner.delete(key)?,
        }
        match self.fault {
            Fault::TakeReturnsEmpty => Ok(value.map(|_| Bytes::new())),
            _ => Ok(value.map(|value| self.hand_out(&[Fault::PackedTake], value))),
        }
    }

    fn put_many(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        match self.fault {
            Fault::PutManyKeepsFirst => self.inner.put_many(&entries.iter().rev().copied().collect::<Vec<_>>()),
            Fault::PutManyLosesLast if entries.iter().all(|(key, _)| key.len() <= MAX_KEY_LEN) => {
                self.inner.put_many(&entries[..entries.len().saturating_sub(1)])
            }
            Fault::PutManyBeforeRefusing => entries.iter().try_for_each(|&(key, value)| self.put(key, value)),
            _ if entries.iter().all(|(key, _)| key.len() <= MAX_KEY_LEN) => {
                entries.iter().try_for_each(|&(key, value)| self.put(key, value))
            }
            _ => self.inner.put_many(entries),
        }
    }

    fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
        let limit = match self.fault {
            Fault::DeleteWithinIgnoresLimit => usize::MAX,
            Fault::DeleteWithinTakesNoLimitForZero if limit == 0 => usize::MAX,
            _ => limit,
        };
        if self.has(Fault::DeleteWithinStartsAtEnd) {
            let mut scan = self.inner.entries(bounds);
            let keys: Vec<_> = scan.by_ref().rev().take(limit).map(|(key, _)| key).collect();
            let is_done = scan.next_back().is_none();
            drop(scan);
            keys.iter().try_for_each(|key| self.inner.delete(key))?;
            return Ok(Deleted { count: keys.len(), is_done });
        }
        let Deleted { count, is_done } = self.inner.delete_within(bounds, limit)?;
        Ok(match self.fault {
            Fault::DeleteWithinMiscounts if count > 0 => Deleted { count: count + 1, is_done },
            Fault::DeleteWithinIsAlwaysDone => Deleted { count, is_done: true },
            Fault::DeleteWithinIsNotDoneAtLimit => Deleted { count, is_done: count < limit },
            Fault::DeleteWithinRemovesEnd => {
                if let (true, Bound::Excluded(end)) = (count > 0, bounds.1) {
                    self.inner.delete(end)?;
                }
                Deleted { count, is_done }
            }
            _ => Deleted { count, is_done },
        })
    }

    fn entries(&self, bounds: KeyBounds<'_>) -> Scan<'_> {
        let (start, end) = bounds;
        let entries = self.inner.entries(bounds);
        match self.fault {
            Fault::EntriesIgnoreStart => self.inner.entries((Bound::Unbounded, end)),
            Fault::EntriesIgnoreEnd => self.inner.entries((start, Bound::Unbounded)),
            Fault::EntriesDownIncludeEnd => {
                let end = if let Bound::Excluded(end) = end { Bound::Included(end) } else { end };
                let down: Vec<_> = self.inner.entries((start, end)).rev().collect();
                Scan::of_both_directions(move || entries, move || down.into_iter())
            }
            Fault::EntriesGoOnAtTheOtherEnd => {
                let down: Vec<_> = self.inner.entries(bounds).rev().collect();
                Scan::new(TwoWalks(entries, down.into_iter()))
            }
            Fault::EntriesLoseTheMiddle | Fault::EntriesDoubleTheMiddle | Fault::EntriesDownGoUp => {
                Scan::new(Ends::new(self.fault, entries))
            }
            Fault::EntriesPanicWhereInverted => {
                if let (Bound::Included(start), Bound::Included(end)) = bounds {
                    assert!(start <= end, "range start is greater than range end");
                }
                entries
            }
            Fault::PackedEntries => Scan::new(pack(0, entries).into_iter()),
            _ => entries,
        }
    }

    fn try_visit_range(
        &self,
        bounds: KeyBounds<'_>,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        match self.fault {
            Fault::TryVisitIgnoresBreak => {
                for (key, value) in self.inner.entries(bounds) {
                    let _ = f(&key, &value);
                }
            }
            Fault::TryVisitMissesLast => {
                let last = self.inner.last();
                self.inner.visit_range(bounds, &mut |key, value| match &last {
                    Some((last, _)) if last == key => ControlFlow::Continue(()),
                    _ => f(key, value),
                });
            }
            _ => self.visit_range(bounds, f),
        }
        Ok(())
    }

    fn visit_range(&self, (start, end): KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let start = match start {
            Bound::Excluded(key) if self.has(Fault::VisitIncludesExcludedStart) => Bound::Included(key),
            start => start,
        };
        let end = match end {
            Bound::Included(key) if self.has(Fault::VisitExcludesIncludedEnd) => Bound::Excluded(key),
            end => end,
        };
        self.inner.visit_range((start, end), &mut |key, value| {
            let packed = pack(1, [(Bytes::new(), Bytes::copy_from_slice(value))]).remove(0).1;
            let flow = f(key, if self.has(Fault::PackedBorrows) { &packed } else { value });
            if self.has(Fault::VisitIgnoresBreak) { ControlFlow::Continue(()) } else { flow }
        });
    }

    fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        if !self.has(Fault::GetManyAppends) {
            out.clear();
        }
        out.extend(keys.iter().map(|key| self.get(key)));
        for value in out.iter_mut().flatten() {
            *value = self.hand_out(&[Fault::PackedGetMany], value.clone());
        }
        match self.fault {
            Fault::GetManyLosesOrder => out.sort(),
            Fault::GetManySkipsAbsent => out.retain(Option::is_some),
            _ => {}
        }
    }
}
