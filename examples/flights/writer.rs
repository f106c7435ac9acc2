//! The writer: a thread that gathers checkpoints from the workers and writes them, while the stream goes on.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::HumanCount;

use crate::Result;
use crate::chain::{ChainWriter, Written};
use crate::checkpoint::{Checkpoint, Job};
use crate::faults::{Faults, Moment};
use crate::operators::Slice;
use crate::progress::Progress;
use crate::shards::{KEY_GROUPS, Shards};

/// What became of the checkpoints of a run.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) written: Vec<Written>,
    /// The time each took the writer's thread, from entries in memory to a file on disk.
    pub(crate) times: Vec<Duration>,
    pub(crate) failed: u64,
}

/// The source's side of the writer.
///
/// There is no queue: a snapshot that waits would keep the state of its instant in memory, to be written when newer
/// state is already there. Whoever has a checkpoint for a busy writer either skips it or waits.
pub(crate) struct Writer {
    begin: Sender<Progress>,
    done: Receiver<(Result<Written>, Duration)>,
    thread: JoinHandle<()>,
    is_busy: bool,
    outcome: Outcome,
}

impl Writer {
    /// Starts the thread. Each worker sends its snapshots through a channel of its own. `log` mentions every checkpoint.
    pub(crate) fn start(
        mut chain: ChainWriter,
        job: Job,
        shards: Shards,
        faults: Faults,
        log: bool,
    ) -> Result<(Self, Vec<Sender<Slice>>)> {
        let (begin, begun) = channel::<Progress>();
        let (report, done) = channel();
        let (senders, parts): (Vec<_>, Vec<_>) = (0..shards.workers()).map(|_| channel()).unzip();
        let thread = thread::Builder::new().name("checkpoints".into()).spawn(move || {
            for (progress, number) in begun.into_iter().zip(1..) {
                // A worker that has failed never comes to the barrier, and its error ends the run.
                let Ok(slices) = parts.iter().map(Receiver::recv).collect() else { return };
                let (start, position) = (Instant::now(), progress.position);
                let at = |step| faults.at(Moment { checkpoint: number, step });
                let written = chain.write(Checkpoint { job, progress, key_groups: KEY_GROUPS, slices }, &at);
                if log && written.is_ok() {
                    eprintln!("the checkpoint at event {} is on disk", HumanCount(position));
                }
                if report.send((written, start.elapsed())).is_err() {
                    return;
                }
            }
        })?;
        Ok((Self { begin, done, thread, is_busy: false, outcome: Outcome::default() }, senders))
    }

    /// Whether the writer is still at the last checkpoint. With `wait`, not before it is done with it.
    ///
    /// A checkpoint that failed is mentioned, and the job goes on: the next one may succeed.
    pub(crate) fn is_busy(&mut self, wait: bool) -> bool {
        if self.is_busy {
            let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
            if let Some((written, time)) = done {
                self.is_busy = false;
                match written {
                    Ok(written) => {
                        self.outcome.written.push(written);
                        self.outcome.times.push(time);
                    }
                    Err(error) => {
                        self.outcome.failed += 1;
                        eprintln!("a checkpoint failed, the one before it still counts: {error}");
                    }
                }
            }
        }
        self.is_busy
    }

    /// Begins a checkpoint at this place in the stream. The writer must not be busy, and every worker has to be sent a
    /// barrier.
    pub(crate) fn begin(&mut self, progress: Progress) {
        // It can only fail if the thread has panicked; `finish` tells.
        self.is_busy = self.begin.send(progress).is_ok();
    }

    /// Waits for the last checkpoint and returns what became of all.
    pub(crate) fn finish(mut self) -> Result<Outcome> {
        self.is_busy(true);
        drop(self.begin);
        self.thread.join().map_err(|_| "the thread that writes checkpoints has panicked")?;
        Ok(self.outcome)
    }
}
