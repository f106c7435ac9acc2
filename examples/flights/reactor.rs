//! The reactor: the loop that takes event after event from the source, keeps time, draws barriers and feeds the workers.

use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::Result;
use crate::calendar::Minute;
use crate::checkpoint::Checkpoint;
use crate::events::Departure;
use crate::exchange::{Exchange, Message, WorkerIsGone};
use crate::faults::crash;
use crate::operators::{Operators, Slice};
use crate::progress::Progress;
use crate::report::counted;
use crate::shards::Shards;
use crate::worker::Worker;
use crate::writer::Writer;

/// When to do what.
#[derive(Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) allowed_lateness_min: u32,
    /// Events from one barrier to the next.
    pub(crate) barrier_every: u64,
    /// Barriers from one checkpoint to the next.
    pub(crate) checkpoint_every: u64,
    /// What to do if the writer has not finished the last checkpoint: do without the new one, or else wait.
    pub(crate) skip_when_busy: bool,
    /// After how many events of this process to kill it.
    pub(crate) crash_after: Option<u64>,
}

/// The figures of one run, which the results do not depend on. Those of each worker are with it.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) events: u64,
    pub(crate) time: Duration,
    /// What each checkpoint kept the event loop waiting for the one before it to be on disk.
    pub(crate) waits: Vec<Duration>,
    /// Checkpoints that were skipped, because they were due while the writer was busy.
    pub(crate) skipped: u64,
}

/// A job in memory.
pub(crate) struct Reactor {
    pub(crate) workers: Vec<Worker>,
    pub(crate) progress: Progress,
    pub(crate) metrics: Metrics,
    shards: Shards,
}

impl Reactor {
    pub(crate) fn new(shards: Shards, new_operators: impl Fn() -> Operators) -> Self {
        let workers = (0..shards.workers()).map(|_| Worker::new(new_operators())).collect();
        Self { workers, progress: Progress::start(), metrics: Metrics::default(), shards }
    }

    /// Goes to where the checkpoint was taken, by whatever number of workers.
    pub(crate) fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let slices = self.shards.reshard(checkpoint.slices, checkpoint.key_groups)?;
        for (worker, slice) in self.workers.iter_mut().zip(slices) {
            worker.operators.restore(slice);
        }
        self.progress = checkpoint.progress;
        Ok(())
    }

    /// Takes in the rest of the source and closes all windows. Each worker sends its snapshots to one of `snapshots`, which
    /// lead to the writer. Moves `bar` at every barrier.
    pub(crate) fn run(
        &mut self,
        source: &[Departure],
        schedule: Schedule,
        writer: &mut Writer,
        snapshots: Vec<Sender<Slice>>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let start = Instant::now();
        let done = usize::try_from(self.progress.position)?;
        let rest = source.get(done..).ok_or("the checkpoint is from beyond the end of the input")?;

        let Self { workers, progress, metrics, shards } = self;
        thread::scope(|scope| -> Result<()> {
            let (exchange, inputs) = Exchange::new(*shards);
            let mut threads = Vec::new();
            for ((worker, input), snapshots) in workers.iter_mut().zip(inputs).zip(snapshots) {
                let thread = thread::Builder::new().name(format!("worker {}", threads.len()));
                threads.push(thread.spawn_scoped(scope, move || worker.run(input, snapshots))?);
            }
            // When the exchange goes, the workers come to the end of their streams. If one has gone before, its own error
            // says why.
            let fed = Feed { exchange, progress, metrics, schedule, writer, bar }.run(rest);
            for thread in threads {
                thread.join().map_err(|_| "a worker has panicked")??;
            }
            fed.map_err(|WorkerIsGone| "a worker has ended before the stream".into())
        })?;
        self.metrics.time = start.elapsed();
        Ok(())
    }
}

/// The source's side of a run.
struct Feed<'a, 'b> {
    exchange: Exchange<'a>,
    progress: &'b mut Progress,
    metrics: &'b mut Metrics,
    schedule: Schedule,
    writer: &'b mut Writer,
    bar: &'b ProgressBar,
}

impl<'a> Feed<'a, '_> {
    fn run(mut self, rest: &'a [Departure]) -> Result<(), WorkerIsGone> {
        for departure in rest {
            let is_late = self.progress.on_departure(departure);
            self.exchange.send(departure, is_late)?;
            self.advance_watermark(departure.scheduled - Minute::from(self.schedule.allowed_lateness_min))?;
            self.metrics.events += 1;

            if self.progress.position % self.schedule.barrier_every == 0 {
                self.at_barrier()?;
                self.bar.set_position(self.progress.position);
            }
            if self.schedule.crash_after == Some(self.metrics.events) {
                self.bar.finish_and_clear();
                crash(&format!("after {} of this run", counted(self.metrics.events, "event")));
            }
        }
        // The stream is over: nothing can be late any more.
        self.advance_watermark(Minute::MAX)?;
        self.exchange.flush()
    }

    fn advance_watermark(&mut self, to: Minute) -> Result<(), WorkerIsGone> {
        match self.progress.advance_watermark(to) {
            Some(before) => self.exchange.broadcast(Message::DaysAreOver { before }),
            None => Ok(()),
        }
    }

    /// Sends a barrier to the workers, with a checkpoint if one is due and can be had.
    ///
    /// The source waits for no snapshot: it goes on, and the writer gathers one from each worker when that comes to the
    /// barrier.
    fn at_barrier(&mut self) -> Result<(), WorkerIsGone> {
        let barrier = self.progress.position / self.schedule.barrier_every;
        let checkpoint = barrier % self.schedule.checkpoint_every == 0 && self.can_checkpoint();
        if checkpoint {
            self.writer.begin(self.progress.clone());
        }
        self.exchange.broadcast(Message::Barrier { checkpoint })?;
        // Who waits for the writer waits for this barrier to reach all workers.
        if checkpoint { self.exchange.flush() } else { Ok(()) }
    }

    fn can_checkpoint(&mut self) -> bool {
        // Waiting bounds what a crash costs: at most two checkpoints' worth of events have to be taken in again.
        let start = Instant::now();
        let is_busy = self.writer.is_busy(!self.schedule.skip_when_busy);
        if is_busy {
            self.metrics.skipped += 1;
        }
        if !self.schedule.skip_when_busy {
            self.metrics.waits.push(start.elapsed());
        }
        !is_busy
    }
}
