//! A worker: a thread with its slice of every operator's state, which nobody else reads or writes.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use opstate::StateError;

use crate::exchange::{Input, Message};
use crate::operators::{Operators, Slice};

/// The figures of one run, which the results do not depend on.
#[derive(Default)]
pub(crate) struct Metrics {
    /// What each checkpoint kept the worker from its work, for the snapshots of all operators.
    pub(crate) pauses: Vec<Duration>,
    /// The longest event of each stretch between two barriers that began with a snapshot, and of each other stretch.
    pub(crate) slowest_after_snapshot: Vec<Duration>,
    pub(crate) slowest_otherwise: Vec<Duration>,
    /// The most bytes each operator held.
    pub(crate) peak_bytes: [usize; Operators::COUNT],
}

pub(crate) struct Worker {
    pub(crate) operators: Operators,
    pub(crate) metrics: Metrics,
}

impl Worker {
    pub(crate) fn new(operators: Operators) -> Self {
        Self { operators, metrics: Metrics::default() }
    }

    /// Does what it is told until the stream ends. At a barrier it sends a snapshot to whoever writes checkpoints, and
    /// goes on.
    pub(crate) fn run(&mut self, input: Input<'_>, snapshots: Sender<Slice>) -> Result<(), StateError> {
        let (mut slowest, mut is_after_snapshot) = (Duration::ZERO, false);
        for batch in input {
            let mut last = Instant::now();
            for message in batch {
                match message {
                    Message::Departure { departure, is_late } => {
                        self.operators.on_departure(departure, is_late)?;
                        self.metrics.note_sizes(&self.operators);
                    }
                    Message::DaysAreOver { before } => {
                        self.operators.close_windows(before)?;
                        self.metrics.note_sizes(&self.operators);
                    }
                    Message::Barrier { checkpoint } => {
                        self.metrics.note_slowest(slowest, is_after_snapshot);
                        (slowest, is_after_snapshot) = (Duration::ZERO, checkpoint);
                        if checkpoint {
                            self.take_snapshot(&snapshots);
                        }
                        last = Instant::now();
                        continue;
                    }
                }
                let now = Instant::now();
                slowest = slowest.max(now - last);
                last = now;
            }
        }
        Ok(())
    }

    fn take_snapshot(&mut self, snapshots: &Sender<Slice>) {
        let start = Instant::now();
        let slice = self.operators.snapshot();
        self.metrics.pauses.push(start.elapsed());
        // It can only fail if the writer has panicked, and `Writer::finish` tells.
        let _ = snapshots.send(slice);
    }
}

impl Metrics {
    fn note_slowest(&mut self, slowest: Duration, is_after_snapshot: bool) {
        let list = if is_after_snapshot { &mut self.slowest_after_snapshot } else { &mut self.slowest_otherwise };
        list.push(slowest);
    }

    fn note_sizes(&mut self, operators: &Operators) {
        for (peak, store) in self.peak_bytes.iter_mut().zip(operators.stores()) {
            *peak = store.size_bytes().max(*peak);
        }
    }
}
