//! [`Handles`]: turns borrowed entries into handles, a run at a time.
//!
//! A scan that copied each key and each value into an allocation of its own would pay two allocations an entry. Here what
//! has no handle of its own is gathered, a run of entries in one buffer, and the handles are slices of it.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

/// A key or value as it lies in a store.
pub(crate) enum Part<'a> {
    /// To be copied.
    Borrowed(&'a [u8]),
    /// To be shared.
    Shared(Bytes),
    /// To be shared by whoever wants a handle.
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
    gathering: Vec<u8>,
    /// Those of the parts that are handed out, and how much of them was.
    gathered: Bytes,
    start: usize,
    /// The lengths of the parts; `SHARED` for one that is not copied.
    lens: [u32; N],
    next: usize,
    len: usize,
    shared: VecDeque<Bytes>,
}

/// No part that is copied is as long.
const SHARED: u32 = u32::MAX;

impl<const N: usize> Run<N> {
    pub(crate) fn new() -> Self {
        Self {
            gathering: Vec::new(),
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
        // A little more, because runs vary, and a vector that is full would be shared at the second handle only.
        self.gathering.reserve(self.gathered.len() * growth * 9 / 8 + 32);
        (self.next, self.len, self.start) = (0, 0, 0);
    }

    pub(crate) fn push(&mut self, part: Part<'_>) {
        self.lens[self.len] = match part {
            Part::Borrowed(bytes) => {
                self.gathering.extend_from_slice(bytes);
                bytes.len() as u32
            }
            Part::Shared(handle) => self.share(handle),
            Part::Lent(handle) => self.share(handle.clone()),
        };
        self.len += 1;
    }

    fn share(&mut self, handle: Bytes) -> u32 {
        self.shared.push_back(handle);
        SHARED
    }

    /// Ends the run. From here on its parts can be had.
    pub(crate) fn end(&mut self) {
        self.gathered = mem::take(&mut self.gathering).into();
    }

    /// The next part, if one is left.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        if self.next == self.len {
            return None;
        }
        let len = self.lens[self.next];
        self.next += 1;
        if len == SHARED {
            return self.shared.pop_front();
        }
        let start = self.start;
        self.start += len as usize;
        Some(self.gathered.slice(start..self.start))
    }
}

/// The longest run of a scan, in entries. A handle that is kept keeps the copied parts of its run.
pub(crate) const LONGEST_RUN: usize = 64;

/// An iterator of handles over an iterator of entries.
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
            self.run.push(key);
            self.run.push(value);
        }
        self.run.end();
        self.run_len = (self.run_len * 4).min(LONGEST_RUN);
    }
}

impl<'a, I: Iterator<Item = (Part<'a>, Part<'a>)>> Iterator for Handles<I> {
    type Item = (Bytes, Bytes);

    #[inline]
    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let key = match self.run.next() {
            Some(key) => key,
            None => {
                self.next_run();
                self.run.next()?
            }
        };
        Some((key, self.run.next()?))
    }
}
