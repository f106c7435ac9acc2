//! [`Handles`]: turns borrowed entries into handles, a run at a time.
//!
//! A scan that copied each key and each value into an allocation of its own would pay two allocations an entry. Here what
//! has no handle of its own is gathered, a run of entries in one buffer, and the handles are slices of it.

use std::ops::Range;
use std::vec;

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

/// The longest run, in entries. A handle that is kept keeps the copied parts of its run.
pub(crate) const LONGEST_RUN: usize = 64;

/// An iterator of handles over an iterator of entries.
pub(crate) struct Handles<I> {
    entries: I,
    /// What is left of the current run.
    run: vec::IntoIter<(Piece, Piece)>,
    /// The parts copied for the current run.
    gathered: Bytes,
    /// How many entries the next run takes: few at first, for scans that end early.
    run_len: usize,
}

/// A part whose bytes were copied to the buffer of its run, or that is a handle already.
pub(crate) enum Piece {
    Gathered(Range<usize>),
    Shared(Bytes),
}

impl Piece {
    /// Takes in a part, which is copied to the end of `buffer` unless it is a handle.
    pub(crate) fn gather(part: Part<'_>, buffer: &mut Vec<u8>) -> Self {
        match part {
            Part::Borrowed(bytes) => {
                let start = buffer.len();
                buffer.extend_from_slice(bytes);
                Self::Gathered(start..buffer.len())
            }
            Part::Shared(handle) => Self::Shared(handle),
            Part::Lent(handle) => Self::Shared(handle.clone()),
        }
    }

    /// The handle, given the buffer that the piece was gathered in.
    pub(crate) fn into_handle(self, gathered: &Bytes) -> Bytes {
        match self {
            Self::Gathered(range) => gathered.slice(range),
            Self::Shared(handle) => handle,
        }
    }
}

impl<'a, I: Iterator<Item = (Part<'a>, Part<'a>)>> Handles<I> {
    pub(crate) fn new(entries: I) -> Self {
        Self { entries, run: Vec::new().into_iter(), gathered: Bytes::new(), run_len: 1 }
    }

    fn next_run(&mut self) {
        let mut gathered = Vec::new();
        let mut gather = |part| Piece::gather(part, &mut gathered);
        let run = self.entries.by_ref().take(self.run_len).map(|(key, value)| (gather(key), gather(value)));
        self.run = run.collect::<Vec<_>>().into_iter();
        self.gathered = gathered.into();
        self.run_len = (self.run_len * 2).min(LONGEST_RUN);
    }
}

impl<'a, I: Iterator<Item = (Part<'a>, Part<'a>)>> Iterator for Handles<I> {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        if self.run.len() == 0 {
            self.next_run();
        }
        let (key, value) = self.run.next()?;
        Some((key.into_handle(&self.gathered), value.into_handle(&self.gathered)))
    }
}
