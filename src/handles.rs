//! [`Handles`]: turns borrowed entries into handles, a run at a time.
//!
//! A scan that copied each key and each value into an allocation of its own would pay two allocations an entry. Here what
//! has no handle of its own is gathered, a run of entries in one buffer, and the handles are slices of it. Values start
//! at multiples of [`VALUE_ALIGNMENT`] in it, with zeros before them.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;
use rkyv::util::AlignedVec;

use crate::aligned::{VALUE_ALIGNMENT, aligned};

/// A key or value as it lies in a store.
pub(crate) enum Part<'a> {
    /// Bytes to be copied.
    Borrowed(&'a [u8]),
    /// A handle to be handed out.
    Shared(Bytes),
    /// A handle of which whoever wants one makes a clone.
    Lent(&'a Bytes),
}

impl Part<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(handle) => handle,
            Self::Lent(handle) => handle,
        }
    }
}

/// Up to `N` parts, to be handed out in the order in which they were pushed.
pub(crate) struct Run<const N: usize> {
    /// Copies of the parts that are pushed.
    gathering: AlignedVec,
    /// The buffer of the parts that are handed out, and how much of it was.
    gathered: Bytes,
    start: usize,
    /// The lengths of the parts; `SHARED` for one that is not copied.
    lens: [u32; N],
    next: usize,
    len: usize,
    shared: VecDeque<Bytes>,
}

/// The length of a part that is not copied. No other part is as long.
const SHARED: u32 = u32::MAX;

/// Returns where a value of `len` bytes starts that is put behind `end` bytes.
#[inline]
fn value_start(end: usize, len: usize) -> usize {
    if len == 0 { end } else { end.next_multiple_of(VALUE_ALIGNMENT) }
}

impl<const N: usize> Run<N> {
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

    /// Begins a new run, which is expected to be so many times as large as the last one.
    pub(crate) fn begin(&mut self, growth: usize) {
        debug_assert!(self.next == self.len, "a run is handed out before the next one");
        // A little more, because runs vary.
        self.gathering.reserve(self.gathered.len() * growth * 9 / 8 + 32);
        (self.next, self.len, self.start) = (0, 0, 0);
    }

    #[inline]
    pub(crate) fn push_key(&mut self, key: Part<'_>) {
        let len = match key {
            Part::Borrowed(bytes) => {
                self.gathering.extend_from_slice(bytes);
                bytes.len() as u32
            }
            Part::Shared(handle) => self.share(handle),
            Part::Lent(handle) => self.share(handle.clone()),
        };
        self.push(len);
    }

    #[inline]
    pub(crate) fn push_value(&mut self, value: Part<'_>) {
        let len = match value {
            Part::Borrowed(bytes) => {
                let end = self.gathering.len();
                let padding = value_start(end, bytes.len()) - end;
                self.gathering.extend_from_slice(&[0; VALUE_ALIGNMENT][..padding]);
                self.gathering.extend_from_slice(bytes);
                bytes.len() as u32
            }
            Part::Shared(handle) => self.share(aligned(handle)),
            Part::Lent(handle) => self.share(aligned(handle.clone())),
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

    /// Ends the run. From here on its parts can be had.
    pub(crate) fn end(&mut self) {
        let gathered = mem::take(&mut self.gathering);
        self.gathered = if gathered.is_empty() { Bytes::new() } else { Bytes::from_owner(gathered) };
    }

    /// Returns the next part, which was pushed as a key, if one is left.
    #[inline]
    pub(crate) fn next_key(&mut self) -> Option<Bytes> {
        self.next(|end, _| end)
    }

    /// Returns the next part, which was pushed as a value, if one is left.
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

/// The longest run of a scan, in entries. A handle that is kept keeps the copied parts of its run.
pub(crate) const LONGEST_RUN: usize = 64;

/// An iterator of handles over an iterator of entries, in whatever order that yields them.
pub(crate) struct Handles<I> {
    entries: I,
    run: Run<{ 2 * LONGEST_RUN }>,
    /// How many entries the next run takes: few at first, for scans that end early.
    run_len: usize,
}

impl<'a, I: Iterator<Item = (Part<'a>, Part<'a>)>> Handles<I> {
    pub(crate) fn new(entries: I) -> Self {
        Self { entries, run: Run::new(), run_len: 4 }
    }

    fn next_run(&mut self) {
        self.run.begin(if self.run_len < LONGEST_RUN { 4 } else { 1 });
        for (key, value) in self.entries.by_ref().take(self.run_len) {
            self.run.push_key(key);
            self.run.push_value(value);
        }
        self.run.end();
        self.run_len = (self.run_len * 4).min(LONGEST_RUN);
    }
}

impl<'a, I: Iterator<Item = (Part<'a>, Part<'a>)>> Iterator for Handles<I> {
    type Item = (Bytes, Bytes);

    #[inline]
    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let key = match self.run.next_key() {
            Some(key) => key,
            None => {
                self.next_run();
                self.run.next_key()?
            }
        };
        Some((key, self.run.next_value()?))
    }
}
