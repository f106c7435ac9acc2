//! The reactor: the loop that takes event after event, keeps time, and draws barriers.

use std::process;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use opstate::StateError;
use rkyv::{Archive, Deserialize, Serialize};

use crate::Result;
use crate::calendar::{Minute, day_of};
use crate::checkpoint::{Checkpoint, Job, Writer};
use crate::events::Departure;
use crate::operators::Operators;
use crate::report::counted;

/// Where in the stream the job is: with the operators' state, all that the results depend on.
#[derive(Archive, Serialize, Deserialize, Clone, Copy)]
pub(crate) struct Progress {
    /// How many events of the source have been taken in.
    pub(crate) position: u64,
    /// No event before this time is expected any more. It never goes back.
    pub(crate) watermark: Minute,
    /// How many events came when their window had closed.
    pub(crate) late: u64,
    /// How many days are over.
    pub(crate) windows_closed: u64,
}

impl Progress {
    pub(crate) const START: Self = Self { position: 0, watermark: Minute::MIN, late: 0, windows_closed: 0 };
}

/// When to do what.
#[derive(Clone, Copy)]
pub(crate) struct Schedule {
    /// Events from one barrier to the next.
    pub(crate) barrier_every: u64,
    /// Barriers from one checkpoint to the next.
    pub(crate) checkpoint_every: u64,
    /// What to do if the writer has not finished the last checkpoint: do without the new one, or else wait.
    pub(crate) skip_when_busy: bool,
    /// After how many events of this process to kill it.
    pub(crate) crash_after: Option<u64>,
}

/// The figures of one run, which the results do not depend on.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) events: u64,
    pub(crate) time: Duration,
    /// What each checkpoint kept the event loop from its work, for the snapshots of all operators.
    pub(crate) pauses: Vec<Duration>,
    /// What each checkpoint kept the event loop waiting for the one before it to be on disk.
    pub(crate) waits: Vec<Duration>,
    /// Checkpoints that were skipped, because they were due while the writer was busy.
    pub(crate) skipped: u64,
    /// The longest event of each stretch between two barriers that began with a snapshot, and of each other stretch.
    pub(crate) slowest_after_snapshot: Vec<Duration>,
    pub(crate) slowest_otherwise: Vec<Duration>,
    /// The most bytes each operator held.
    pub(crate) peak_bytes: [usize; Operators::NAMES.len()],
}

/// A job in memory.
pub(crate) struct Reactor {
    pub(crate) operators: Operators,
    pub(crate) progress: Progress,
    pub(crate) metrics: Metrics,
    job: Job,
}

impl Reactor {
    pub(crate) fn new(operators: Operators, job: Job) -> Self {
        Self { operators, progress: Progress::START, metrics: Metrics::default(), job }
    }

    /// Goes to where the checkpoint was taken.
    pub(crate) fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.operators.restore(&checkpoint.operators)?;
        self.progress = checkpoint.progress;
        Ok(())
    }

    /// Takes in the rest of the source and closes all windows. Moves `bar` at every barrier.
    pub(crate) fn run(
        &mut self,
        source: &[Departure],
        schedule: Schedule,
        writer: &mut Writer,
        bar: &ProgressBar,
    ) -> Result<()> {
        let start = Instant::now();
        let done = usize::try_from(self.progress.position)?;
        let rest = source.get(done..).ok_or("the checkpoint is from beyond the end of the input")?;

        let (mut slowest, mut is_after_snapshot) = (Duration::ZERO, false);
        let mut last = start;
        for departure in rest {
            self.on_departure(departure)?;
            self.metrics.events += 1;

            let now = Instant::now();
            slowest = slowest.max(now - last);
            last = now;

            if self.progress.position % schedule.barrier_every == 0 {
                self.metrics.note_slowest(slowest, is_after_snapshot);
                is_after_snapshot = self.at_barrier(schedule, writer)?;
                bar.set_position(self.progress.position);
                (slowest, last) = (Duration::ZERO, Instant::now());
            }
            if schedule.crash_after == Some(self.metrics.events) {
                bar.finish_and_clear();
                let events = counted(self.metrics.events, "event");
                eprintln!("crashing after {events} of this run, as asked; go on with --resume");
                // No destructor runs, no buffer is flushed, and the writer's thread dies wherever it is.
                process::abort();
            }
        }
        // The stream is over: nothing can be late any more.
        self.advance_watermark(Minute::MAX)?;
        self.metrics.time = start.elapsed();
        Ok(())
    }

    fn on_departure(&mut self, departure: &Departure) -> Result<(), StateError> {
        self.operators.airports.on_departure(departure)?;
        if day_of(departure.scheduled) < day_of(self.progress.watermark) {
            self.progress.late += 1;
        } else {
            self.operators.route_days.on_departure(departure)?;
        }
        self.metrics.note_sizes(&self.operators);
        self.advance_watermark(departure.scheduled - Minute::from(self.job.allowed_lateness_min))?;
        self.progress.position += 1;
        Ok(())
    }

    fn advance_watermark(&mut self, to: Minute) -> Result<(), StateError> {
        let from = self.progress.watermark;
        if to > from {
            self.progress.watermark = to;
            // Most events are on the same day as the one before: nothing to close, and no scan to find that out.
            if day_of(to) > day_of(from) {
                self.progress.windows_closed += self.operators.close_windows(to)?;
                self.metrics.note_sizes(&self.operators);
            }
        }
        Ok(())
    }

    /// Takes a checkpoint if one is due and can be had; returns whether it did.
    ///
    /// In a job of many threads a barrier travels with the events, so that each operator cuts its state at the same
    /// place in the stream. Here there is one thread: between two events every operator is at the same place.
    fn at_barrier(&mut self, schedule: Schedule, writer: &mut Writer) -> Result<bool> {
        let barrier = self.progress.position / schedule.barrier_every;
        if barrier % schedule.checkpoint_every != 0 {
            return Ok(false);
        }
        // Waiting bounds what a crash costs: at most two checkpoints' worth of events have to be taken in again.
        let start = Instant::now();
        if writer.is_busy(!schedule.skip_when_busy)? {
            self.metrics.skipped += 1;
            return Ok(false);
        }
        if !schedule.skip_when_busy {
            self.metrics.waits.push(start.elapsed());
        }
        let start = Instant::now();
        let operators = self.operators.snapshot();
        self.metrics.pauses.push(start.elapsed());
        writer.submit(Checkpoint { job: self.job, progress: self.progress, operators });
        Ok(true)
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
