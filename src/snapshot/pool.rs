//! [`Pool`]: threads that seal segments while the caller's thread fills the next ones.
//!
//! # Design
//!
//! Entries have to be cut into segments one after the other, for where a segment ends depends on all before it. What can
//! be done apart is what comes then: fingerprints, the archive, the checksum. So the caller's thread fills columns and
//! writes what is ready, and the pool's threads take full columns in turn. Segments are handed back in the order in
//! which they were submitted, so that the image is the same as from one thread.
//!
//! # Why this and not the other way
//!
//! Threads that each take a range of keys would scale further, but cut at other places, and images would depend on the
//! number of threads.
//!
//! # Invariants
//!
//! 1. `pending` segments have been submitted and not yet handed back; `next` is the least of their numbers.
//! 2. A thread ends when the pool is dropped, and every job it took has been answered by then, with a panic's payload if
//!    it panicked.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};

use rkyv::util::AlignedVec;

use super::segment::Columns;
use super::write::Sealed;

/// Columns to be made a segment, and a buffer to do it in.
pub(super) struct Job {
    pub(super) columns: Columns,
    pub(super) archive: AlignedVec,
    /// Whether the fingerprint is asked for.
    pub(super) counts: bool,
}

impl Job {
    fn run(self) -> Sealed {
        let Self { columns, archive, counts } = self;
        let mut fingerprint = super::Fingerprint::EMPTY;
        if counts {
            columns.each(|key, value| fingerprint.add(key, value));
        }
        let mut sealed = Sealed::new(columns, archive, &[]);
        sealed.fingerprint = fingerprint;
        sealed
    }
}

pub(super) struct Pool {
    jobs: Sender<(u64, Job)>,
    done: Receiver<(u64, thread::Result<Sealed>)>,
    /// What was done before its turn.
    early: BTreeMap<u64, thread::Result<Sealed>>,
    threads: usize,
    next: u64,
    pending: usize,
}

impl Pool {
    /// Starts so many threads, or as many as the system lets it; `None` for none.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, '_>, threads: usize) -> Option<Self> {
        let (jobs, received) = channel::<(u64, Job)>();
        let (finished, done) = channel();
        let received = Arc::new(Mutex::new(received));
        let started = (0..threads).take_while(|_| {
            let (received, finished) = (Arc::clone(&received), finished.clone());
            let work = move || {
                loop {
                    let job = received.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, job)) = job else { return };
                    let sealed = catch_unwind(AssertUnwindSafe(|| job.run()));
                    if finished.send((number, sealed)).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name("opstate-image".to_owned()).spawn_scoped(scope, work).is_ok()
        });
        let threads = started.count();
        (threads > 0).then(|| Self { jobs, done, early: BTreeMap::new(), threads, next: 0, pending: 0 })
    }

    /// How many segments may be pending, so that no thread has to wait for the caller's.
    pub(super) fn most_pending(&self) -> usize {
        3 * self.threads
    }

    pub(super) fn submit(&mut self, job: Job) {
        let number = self.next + self.pending as u64;
        self.pending += 1;
        assert!(self.jobs.send((number, job)).is_ok(), "threads of the pool live as long as the pool");
    }

    /// Hands back the next segment if it is ready, or if more than `most` are pending; then it waits for it.
    pub(super) fn next(&mut self, most: usize) -> Option<Sealed> {
        while self.pending > 0 {
            if let Some(sealed) = self.early.remove(&self.next) {
                self.next += 1;
                self.pending -= 1;
                return Some(sealed.unwrap_or_else(|panic| resume_unwind(panic)));
            }
            let (number, sealed) = if self.pending > most {
                self.done.recv().expect("threads of the pool live as long as the pool")
            } else {
                self.done.try_recv().ok()?
            };
            self.early.insert(number, sealed);
        }
        None
    }
}
