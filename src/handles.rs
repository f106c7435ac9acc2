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
}

/// The longest run, in entries. A handle that is kept keeps the copied parts of its run.
const LONGEST_RUN: usize = 64;

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

enum Piece {
    Gathered(Range<usize>),
    Shared(Bytes),
}

impl<'a, I: Iterator<Item = (Part<'a>, Part<'a>)>> Handles<I> {
    pub(crate) fn new(entries: I) -> Self {
        Self { entries, run: Vec::new().into_iter(), gathered: Bytes::new(), run_len: 1 }
    }

    fn next_run(&mut self) {
        let mut gathered = Vec::new();
        let mut gather = |part| match part {
            Part::Borrowed(bytes) => {
                let start = gathered.len();
                gathered.extend_from_slice(bytes);
                Piece::Gathered(start..gathered.len())
            }
            Part::Shared(handle) => Piece::Shared(handle),
        };
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
        let handle = |piece| match piece {
            Piece::Gathered(range) => self.gathered.slice(range),
            Piece::Shared(handle) => handle,
        };
        Some((handle(key), handle(value)))
    }
}
