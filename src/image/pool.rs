//! Writing an image on several threads.
//!
//! # Design
//!
//! The end of a segment depends on all entries before it. So the caller's thread visits all entries to find the ends,
//! but looks only at the lengths of keys and values. Each segment becomes a job: its first key and the number of its
//! entries. Any thread, the caller's included, reads these entries again and makes the segment. The caller's thread
//! writes the segments in order, so the image is the same as one written by a single thread.
//!
//! # Why
//!
//! If each thread took a range of keys, segments would be cut at other places and the image would depend on the number
//! of threads. If the caller's thread copied entries for the others, it would keep most of the work: 59 of 68 ns for an
//! entry of 20 bytes. Reading twice costs one more scan, which is a third of the work of one thread.
//!
//! # Invariants
//!
//! 1. `pending` segments have been submitted and not yet written; `next` is the least of their numbers.
//! 2. Every job is answered; if it panicked, with the panic's payload. Threads end when the pool is dropped.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};

use bytes::Bytes;
use rkyv::util::AlignedVec;

use super::columns::ColumnsBuilder;
use super::format::ImageKind;
use super::writer::{ImageWriter, SealedSegment};
use crate::bounds::ALL_KEYS;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::source::Source;

/// A segment to be made.
struct Job {
    first_key: Vec<u8>,
    entries: usize,
    /// `true` if the segment is one long value, stored as a blob.
    is_blob: bool,
    /// `true` if the fingerprint of the entries is to be computed.
    counts: bool,
    /// Empty buffers to make the segment in.
    buffers: (ColumnsBuilder, AlignedVec),
}

/// A finished segment and its blob, which is empty for most segments.
type Made = (SealedSegment, Bytes);

/// The outcome of a job.
type Answer = thread::Result<Result<Made, StateError>>;

impl Job {
    /// Runs the job, and catches a panic.
    fn answer(self, source: &dyn Source) -> Answer {
        catch_unwind(AssertUnwindSafe(|| self.run(source)))
    }

    /// Reads the entries of the segment and makes the segment.
    fn run(self, source: &dyn Source) -> Result<Made, StateError> {
        let Self { first_key, entries, is_blob, counts, buffers: (mut columns, archive) } = self;
        let mut fingerprint = Fingerprint::EMPTY;
        let mut blob = Bytes::new();
        let mut left = entries;
        if is_blob {
            if let Some(value) = source.try_get(&first_key)? {
                columns.push(&first_key, &[], None);
                if counts {
                    fingerprint.add(&first_key, &value);
                }
                blob = value;
                left -= 1;
            }
        } else {
            source.try_visit((Bound::Included(&first_key), Bound::Unbounded), &mut |key, value| {
                columns.push(key, value, None);
                if counts {
                    fingerprint.add(key, value);
                }
                left -= 1;
                if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        if left > 0 {
            // Only a source that has changed since, such as an image in a file, has fewer entries now.
            return Err(StateError::ImageChanged);
        }
        let mut sealed = SealedSegment::new(ImageKind::Snapshot, columns, archive, &blob);
        sealed.fingerprint = fingerprint;
        Ok((sealed, blob))
    }
}

/// Writes the segments of all entries of `source` on several threads. Calls `watch` after segments are written.
pub(crate) fn write_on_threads<W: Write>(
    writer: &mut ImageWriter<W>,
    source: &dyn Source,
    threads: usize,
    watch: &mut impl FnMut(&ImageWriter<W>) -> Result<(), StateError>,
) -> Result<(), StateError> {
    thread::scope(|scope| {
        let mut pool = Pool::start(scope, source, threads - 1);
        // The segment whose end is being looked for.
        let (mut first_key, mut entries, mut bytes) = (Vec::new(), 0, 0);
        let mut result = Ok(());
        source.try_visit(ALL_KEYS, &mut |key, value| {
            writer.count(key, value);
            let is_blob = value.len() >= writer.segment_bytes;
            if is_blob && entries > 0 {
                pool.submit(writer, std::mem::take(&mut first_key), entries, false);
                (entries, bytes) = (0, 0);
            }
            if entries == 0 {
                first_key.extend_from_slice(key);
            }
            entries += 1;
            bytes += ColumnsBuilder::cost(key, value);
            if bytes >= writer.segment_bytes {
                pool.submit(writer, std::mem::take(&mut first_key), entries, is_blob);
                (entries, bytes) = (0, 0);
                let most = pool.most_pending;
                result = pool.write_ready(writer, most).and_then(|()| watch(writer));
            }
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
        if entries > 0 {
            pool.submit(writer, first_key, entries, false);
        }
        while pool.pending > 0 {
            let most = pool.pending - 1;
            pool.write_ready(writer, most)?;
            watch(writer)?;
        }
        Ok(())
    })
}

/// Threads that make segments, and the jobs and answers on their way.
struct Pool<'a> {
    source: &'a dyn Source,
    jobs: Sender<(u64, Job)>,
    received: Arc<Mutex<Receiver<(u64, Job)>>>,
    done: Receiver<(u64, Answer)>,
    /// Answers that arrived before the answer to `next`.
    early: BTreeMap<u64, Answer>,
    next: u64,
    pending: usize,
    /// The number of pending segments above which the caller's thread stops looking for more.
    most_pending: usize,
}

impl<'a> Pool<'a> {
    /// Starts `threads` threads, or as many as the system allows.
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, source: &'a dyn Source, threads: usize) -> Self
    where
        'a: 'scope,
    {
        let (jobs, received) = channel::<(u64, Job)>();
        let (finished, done) = channel();
        let received = Arc::new(Mutex::new(received));
        let started = (0..threads).take_while(|_| {
            let (received, finished) = (Arc::clone(&received), finished.clone());
            let work = move || {
                loop {
                    let job = received.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, job)) = job else { return };
                    if finished.send((number, job.answer(source))).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name("opstate-image".to_owned()).spawn_scoped(scope, work).is_ok()
        });
        let most_pending = 3 * started.count();
        Self { source, jobs, received, done, early: BTreeMap::new(), next: 0, pending: 0, most_pending }
    }

    /// Submits a segment as a job.
    fn submit<W>(&mut self, writer: &mut ImageWriter<W>, first_key: Vec<u8>, entries: usize, is_blob: bool) {
        let buffers = writer.free_buffers.pop().unwrap_or_default();
        let counts = writer.known_fingerprint.is_none();
        let job = Job { first_key, entries, is_blob, counts, buffers };
        self.jobs.send((self.next + self.pending as u64, job)).expect("the pool has the other end, too");
        self.pending += 1;
    }

    /// Writes segments in order while they are ready, and waits until at most `most` are pending.
    fn write_ready<W: Write>(&mut self, writer: &mut ImageWriter<W>, most: usize) -> Result<(), StateError> {
        while self.pending > 0 {
            while let Ok((number, answer)) = self.done.try_recv() {
                self.early.insert(number, answer);
            }
            if let Some(answer) = self.early.remove(&self.next) {
                self.next += 1;
                self.pending -= 1;
                let (sealed, blob) = answer.unwrap_or_else(|panic| resume_unwind(panic))?;
                writer.emit(sealed, &blob)?;
            } else if self.pending <= most {
                break;
            } else if let Some((number, job)) = self.unclaimed() {
                self.early.insert(number, job.answer(self.source));
            } else {
                let (number, answer) = self.done.recv().expect("a thread that has claimed a job answers it");
                self.early.insert(number, answer);
            }
        }
        Ok(())
    }

    /// Takes a job that no thread has claimed. If a thread holds the lock, it waits for a job, so there is none.
    fn unclaimed(&self) -> Option<(u64, Job)> {
        self.received.try_lock().ok()?.try_recv().ok()
    }
}
