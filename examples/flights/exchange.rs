//! The exchange: from the one stream to the streams of the workers.

use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::calendar::Day;
use crate::events::Departure;
use crate::shards::Shards;

/// How many messages go through a channel at once. One by one, the channel would cost more than the work.
const BATCH: usize = 256;

/// How many batches a worker may be behind before the source waits for it.
const BATCHES_WAITING: usize = 8;

/// What a worker is told, in the order of the stream.
#[derive(Clone, Copy)]
pub(crate) enum Message<'a> {
    Departure {
        departure: &'a Departure,
        is_late: bool,
    },
    /// All days before this one are over.
    DaysAreOver {
        before: Day,
    },
    /// The same place in the stream for every worker. With `checkpoint`, the place to take a snapshot.
    Barrier {
        checkpoint: bool,
    },
}

/// The stream of one worker.
pub(crate) type Input<'a> = Receiver<Vec<Message<'a>>>;

/// A worker takes no more messages; it has failed, and returns why.
pub(crate) struct WorkerIsGone;

/// Sends each event to the worker that has its origin, and what concerns the stream as a whole to every worker.
///
/// A barrier goes into all channels between the same two events. Channels keep the order, so each worker meets it when it
/// has taken in exactly its events before it: no worker has to wait for another to cut at the same place.
pub(crate) struct Exchange<'a> {
    shards: Shards,
    outputs: Vec<Output<'a>>,
}

struct Output<'a> {
    batch: Vec<Message<'a>>,
    sender: SyncSender<Vec<Message<'a>>>,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(shards: Shards) -> (Self, Vec<Input<'a>>) {
        let (outputs, inputs) = (0..shards.workers())
            .map(|_| {
                let (sender, input) = sync_channel(BATCHES_WAITING);
                (Output { batch: Vec::with_capacity(BATCH), sender }, input)
            })
            .unzip();
        (Self { shards, outputs }, inputs)
    }

    pub(crate) fn send(&mut self, departure: &'a Departure, is_late: bool) -> Result<(), WorkerIsGone> {
        let output = &mut self.outputs[self.shards.worker_of(departure.origin)];
        output.push(Message::Departure { departure, is_late })
    }

    pub(crate) fn broadcast(&mut self, message: Message<'a>) -> Result<(), WorkerIsGone> {
        self.outputs.iter_mut().try_for_each(|output| output.push(message))
    }

    /// Sends what is still waiting to be a batch.
    pub(crate) fn flush(&mut self) -> Result<(), WorkerIsGone> {
        self.outputs.iter_mut().try_for_each(Output::flush)
    }
}

impl<'a> Output<'a> {
    fn push(&mut self, message: Message<'a>) -> Result<(), WorkerIsGone> {
        self.batch.push(message);
        if self.batch.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), WorkerIsGone> {
        let batch = mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        self.sender.send(batch).map_err(|_| WorkerIsGone)
    }
}
