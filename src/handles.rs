//! [`Handles`]: turns borrowed entries into handles, a batch at a time.
//!
//! A scan that copied each key and each value into an allocation of its own would pay two allocations an entry. Here
//! the keys and values of a batch are copied into one buffer, unless they have handles of their own, and their handles
//! are slices of it. Values start at multiples of [`VALUE_ALIGNMENT`] in it, with zeros before them.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;
use rkyv::util::AlignedVec;

use crate::aligned::{VALUE_ALIGNMENT, aligned};

/// A key or a value that is borrowed from a store or owned, as in a `Cow`.
pub(crate) enum CowBytes<'a> {
    /// Bytes to be copied.
    Borrowed(&'a [u8]),
    /// A handle to be handed out.
    Shared(Bytes),
    /// A handle of which whoever wants one makes a clone.
    Lent(&'a Bytes),
}

impl CowBytes<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(handle) => handle,
            Self::Lent(handle) => handle,
        }
    }
}

/// Up to `N` keys and values, to be handed out in the order in which they were pushed.
pub(crate) struct Batch<const N: usize> {
    /// Copies of the items of this batch.
    gathering: AlignedVec,
    /// Copies of the items of a batch that has ended.
    gathered: Bytes,
    /// The end of the copied item that was taken last.
    start: usize,
    /// The lengths of the items, `SHARED` for one that is not copied.
    lens: [u32; N],
    next: usize,
    len: usize,
    shared: VecDeque<Bytes>,
}

/// The length of a item that is not copied. No other item is as long.
const SHARED: u32 = u32::MAX;

/// Returns where a value of `len` bytes starts that follows `end` bytes.
#[inline]
fn value_start(end: usize, len: usize) -> usize {
    if len == 0 { end } else { end.next_multiple_of(VALUE_ALIGNMENT) }
}

impl<const N: usize> Batch<N> {
    pub(crate) fn new() -> Self {
        Self {
            gathering: AlignedVec::new(),
            gathered: Bytes::new(),
            start: 0,
            lens: [0; N],
            next: 0,
            len: 0,
            shared: VecDeque::new(),
        }
    }

    /// Begins a new batch. It is expected to be `growth` times as large as the last one.
    pub(crate) fn begin(&mut self, growth: usize) {
        debug_assert!(self.next == self.len, "a batch is handed out before the next one");
        // A little more, because sizes vary.
        self.gathering.reserve(self.gathered.len() * growth * 9 / 8 + 32);
        (self.next, self.len, self.start) = (0, 0, 0);
    }

    #[inline(always)]
    pub(crate) fn push_key(&mut self, key: CowBytes<'_>) {
        let len = match key {
            CowBytes::Borrowed(bytes) => {
                self.gathering.extend_from_slice(bytes);
                bytes.len() as u32
            }
            CowBytes::Shared(handle) => self.share(handle),
            CowBytes::Lent(handle) => self.share(handle.clone()),
        };
        self.push(len);
    }

    #[inline]
    pub(crate) fn push_value(&mut self, value: CowBytes<'_>) {
        let len = match value {
            CowBytes::Borrowed(bytes) => {
                let end = self.gathering.len();
                let padding = value_start(end, bytes.len()) - end;
                self.gathering.extend_from_slice(&[0; VALUE_ALIGNMENT][..padding]);
                self.gathering.extend_from_slice(bytes);
                bytes.len() as u32
            }
            CowBytes::Shared(handle) => self.share(aligned(handle)),
            CowBytes::Lent(handle) => self.share(aligned(handle.clone())),
        };
        self.push(len);
    }

    #[inline]
    fn push(&mut self, len: u32) {
        self.lens[self.len] = len;
        self.len += 1;
    }

    fn share(&mut self, handle: Bytes) -> u32 {
        self.shared.push_back(handle);
        SHARED
    }

    /// Ends the batch. From here on its items can be taken. Returns the bytes that their copies keep alive.
    ///
    /// The room made for larger items is given back if it is more than `most_unused` bytes.
    pub(crate) fn end(&mut self, most_unused: usize) -> usize {
        let mut gathered = mem::take(&mut self.gathering);
        if gathered.capacity() - gathered.len() > most_unused {
            gathered.shrink_to_fit();
        }
        let held = gathered.capacity();
        self.gathered = if gathered.is_empty() { Bytes::new() } else { Bytes::from_owner(gathered) };
        held
    }

    /// Takes the next item, which was pushed as a key, if one is left.
    #[inline]
    pub(crate) fn next_key(&mut self) -> Option<Bytes> {
        self.next(|end, _| end)
    }

    /// Takes the next item, which was pushed as a value, if one is left.
    #[inline]
    pub(crate) fn next_value(&mut self) -> Option<Bytes> {
        self.next(value_start)
    }

    #[inline]
    fn next(&mut self, start: impl FnOnce(usize, usize) -> usize) -> Option<Bytes> {
        if self.next == self.len {
            return None;
        }
        let len = self.lens[self.next];
        self.next += 1;
        if len == SHARED {
            return self.shared.pop_front();
        }
        let start = start(self.start, len as usize);
        self.start = start + len as usize;
        Some(self.gathered.slice(start..self.start))
    }
}

/// The most entries of a batch. A handle that is kept keeps the buffer of its batch.
pub(crate) const MAX_BATCH: usize = 64;

/// The most bytes that the buffer of a scan's batch has beside its entries.
pub(crate) const MAX_UNUSED: usize = 4096;

/// An iterator that turns the entries of another one into handles.
pub(crate) struct Handles<I> {
    entries: I,
    batch: Batch<{ 2 * MAX_BATCH }>,
    /// How many entries the next batch takes: few at first, for scans that end early.
    batch_len: usize,
}

impl<'a, I: Iterator<Item = (CowBytes<'a>, CowBytes<'a>)>> Handles<I> {
    pub(crate) fn new(entries: I) -> Self {
        Self { entries, batch: Batch::new(), batch_len: 4 }
    }

    fn next_batch(&mut self) {
        self.batch.begin(if self.batch_len < MAX_BATCH { 4 } else { 1 });
        for (key, value) in self.entries.by_ref().take(self.batch_len) {
            self.batch.push_key(key);
            self.batch.push_value(value);
        }
        self.batch.end(MAX_UNUSED);
        self.batch_len = (self.batch_len * 4).min(MAX_BATCH);
    }
}

impl<'a, I: Iterator<Item = (CowBytes<'a>, CowBytes<'a>)>> Iterator for Handles<I> {
    type Item = (Bytes, Bytes);

    #[inline]
    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let key = match self.batch.next_key() {
            Some(key) => key,
            None => {
                self.next_batch();
                self.batch.next_key()?
            }
        };
        Some((key, self.batch.next_value()?))
    }
}
