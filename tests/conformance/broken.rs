//! [`Broken`]: a store that is right but for one fault, and the faults, each with the rule that must name it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::iter;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use opstate::conformance::Rule;
use opstate::{InMemoryStore, KeyBounds, MAX_KEY_LEN, StateError, StateSnapshot, StateStore};

type Entries<'a> = Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a>;

macro_rules! faults {
    ($($name:ident => $rule:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Fault {
            $($name,)*
        }

        /// Every fault and the rule it breaks.
        pub(super) const FAULTS: &[(Fault, Rule)] = &[$((Fault::$name, Rule::$rule)),*];
    };
}

faults! {
    StartsFilled => StartsEmpty,
    EmptyKeyRefused => Keys,
    TooLongKeyAccepted => Keys,
    TooLongKeyTruncated => Keys,
    ErrorWithWrongNumbers => Keys,
    ErrorThatClears => Errors,
    ReversedScan => Order,
    SignedOrder => Order,
    EndlessScan => Contents,
    SizeWithoutKeys => Counts,
    SizeIgnoresOverwrites => Counts,
    LenCountsOverwrites => Counts,
    ClearForgetsSize => Counts,
    KeysCutAt256 => Counts,
    NeverEmpty => Counts,
    ValuesCutAt255 => Put,
    FullAt300 => Put,
    LostDelete => Delete,
    DeleteOfAbsentFails => Delete,
    ContainsEverything => Contains,
    HighestPrefixYieldsNothing => PrefixScan,
    PrefixYieldsNeighbours => PrefixScan,
    EmptyPrefixYieldsNothing => Contents,
    InvertedRangePanics => NoPanic,
    DeleteOfAbsentPanics => NoPanic,
    RangeEndIncluded => RangeScan,
    RangeStartExcluded => RangeScan,
    VisitIgnoresBreak => VisitRange,
    VisitIncludesExcludedStart => VisitRange,
    VisitExcludesIncludedEnd => VisitRange,
    GetManyAppends => GetMany,
    GetManyLosesOrder => GetMany,
    GetManySkipsAbsent => GetMany,
    ReadCallsForAbsent => Read,
    ReadCallsTwice => Read,
    GetOrInsertOverwrites => GetOrInsert,
    GetOrInsertReturnsDefault => GetOrInsert,
    LostModify => Modify,
    ModifyInsertsAbsent => Modify,
    ModifySaysAbsent => Modify,
    PutBytesLosesValue => PutBytes,
    PutManyKeepsFirst => PutMany,
    PutManyLosesLast => PutMany,
    PutManyBeforeRefusing => PutMany,
    FlushFails => Flush,
    FlushForgets => Flush,
    DeleteRangeMiscounts => DeleteRange,
    DeleteRangeRemovesEnd => DeleteRange,
    ClearKeepsEmptyKey => Clear,
    RestoreMerges => Restore,
    RestoreLosesEmptyValues => Restore,
    SnapshotMissesLast => Snapshots,
    SnapshotSeesPut => Snapshots,
    SnapshotSeesModify => Snapshots,
    RestoreSharesWithSnapshot => Snapshots,
    HandleSeesPut => Handles,
    HandleSeesModify => Handles,
    ScanSeesModify => Handles,
}

/// An [`InMemoryStore`] with one fault.
pub(super) struct Broken {
    inner: InMemoryStore,
    fault: Fault,
    overwrites: usize,
    size_error: isize,
    was_restored: bool,
    /// Memory of values that is written in place although handles and snapshots share it.
    shared: RefCell<BTreeMap<Bytes, Arc<[AtomicU8]>>>,
}

impl Broken {
    pub(super) fn new(fault: Fault) -> Self {
        let mut inner = InMemoryStore::new();
        if fault == Fault::StartsFilled {
            inner.put(b"left", b"over").unwrap();
        }
        let shared = RefCell::default();
        Self { inner, fault, overwrites: 0, size_error: 0, was_restored: false, shared }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// A handle to the value in memory that [`write_shared`](Self::write_shared) rewrites.
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

    /// Puts the faults of single scans on top of a scan that is right.
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

/// Owns memory that changes while [`Bytes`] show it: the very fault that a store with writes in place can have.
struct SharedMemory(Arc<[AtomicU8]>);

impl AsRef<[u8]> for SharedMemory {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: The memory is as long as said and lives as long as `self`. That it changes while it is borrowed as
        // `[u8]` breaks Rust's rules of aliasing. There is no way around that for a test that a handle which changes is
        // caught; the tests of these faults do not run under Miri.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len()) }
    }
}

impl StateStore for Broken {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let key = if self.has(Fault::KeysCutAt256) { &key[..key.len().min(256)] } else { key };
        let value = self.inner.get(key)?;
        match self.fault {
            Fault::HandleSeesPut | Fault::HandleSeesModify => Some(self.hand_out_shared(key, &value)),
            _ => Some(value),
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
            _ => self.scan(self.inner.prefix_scan(prefix)),
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
        self.scan(self.inner.range_scan(range))
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
        // A new store has to be empty, so that this is found as what it is.
        self.inner.is_empty() && !(self.has(Fault::NeverEmpty) && self.overwrites > 0)
    }

    fn snapshot(&self) -> StateSnapshot {
        let mut entries: Vec<_> = self.inner.prefix_scan(b"").collect();
        match self.fault {
            Fault::SnapshotMissesLast => drop(entries.pop()),
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
        self.put(key, &value)
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

    fn delete_range(&mut self, range: Range<&[u8]>) -> Result<usize, StateError> {
        let removed = self.inner.delete_range(range.clone())?;
        match self.fault {
            Fault::DeleteRangeMiscounts if range.start < range.end => return Ok(removed + 1),
            Fault::DeleteRangeRemovesEnd if range.start < range.end => self.inner.delete(range.end)?,
            _ => {}
        }
        Ok(removed)
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
            let flow = f(key, value);
            if self.has(Fault::VisitIgnoresBreak) { ControlFlow::Continue(()) } else { flow }
        });
    }

    fn get_many(&self, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) {
        if !self.has(Fault::GetManyAppends) {
            out.clear();
        }
        out.extend(keys.iter().map(|key| self.get(key)));
        match self.fault {
            Fault::GetManyLosesOrder => out.sort(),
            Fault::GetManySkipsAbsent => out.retain(Option::is_some),
            _ => {}
        }
    }
}
