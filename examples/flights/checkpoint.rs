//! Checkpoints: what a job needs to go on after a crash, as files that are whole or absent.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use opstate::StateSnapshot;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::Result;
use crate::reactor::Progress;

/// How many checkpoints are kept: the newest, and spares in case it is damaged.
const KEPT: usize = 3;

const PREFIX: &str = "flights-";
const SUFFIX: &str = ".checkpoint";
const UNFINISHED_SUFFIX: &str = ".checkpoint.tmp";

/// The length of the checksum at the end of a file.
const CHECKSUM_LEN: usize = size_of::<u64>();

/// What the results depend on besides the code. A checkpoint is of use only to the same job.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) input_hash: u64,
    pub(crate) allowed_lateness_min: u32,
}

/// The state of the whole job between two events, archived by rkyv. A snapshot is a field like any other.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) job: Job,
    pub(crate) progress: Progress,
    /// The state of each operator by its name.
    pub(crate) operators: Vec<(String, StateSnapshot)>,
}

impl Checkpoint {
    /// The archive, and a checksum of it at the end.
    ///
    /// A snapshot in the archive has checksums of its own, but nothing else in it has: a flipped bit in the position
    /// would be a valid position, and a wrong one.
    fn to_file_bytes(&self) -> Result<AlignedVec> {
        let mut bytes = rkyv::to_bytes::<rancor::Error>(self)?;
        let checksum = XxHash3_64::oneshot(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }

    fn from_file_bytes(bytes: &[u8]) -> Result<Self> {
        let (archive, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or("it is cut short")?;
        if XxHash3_64::oneshot(archive) != u64::from_le_bytes(*checksum) {
            return Err("its checksum is wrong".into());
        }
        Ok(rkyv::from_bytes::<Self, rancor::Error>(archive)?)
    }
}

/// A directory of checkpoint files. Other files in it are left alone.
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let directory = Self { path };
        fs::create_dir_all(&directory.path).map_err(|error| directory.unusable("create", &error))?;
        Ok(directory)
    }

    /// The text of an error that another directory would not have.
    fn unusable(&self, cannot: &str, error: &io::Error) -> String {
        let path = self.path.display();
        format!("cannot {cannot} the checkpoint directory {path}: {error}; choose another with --checkpoint-dir")
    }

    /// Removes the checkpoints of earlier runs.
    pub(crate) fn clear(&self) -> Result<()> {
        for number in self.numbers(SUFFIX)? {
            self.remove(&self.file(number, SUFFIX))?;
        }
        for number in self.numbers(UNFINISHED_SUFFIX)? {
            self.remove(&self.file(number, UNFINISHED_SUFFIX))?;
        }
        Ok(())
    }

    /// Returns the newest checkpoint that is intact, with its path. Says on stderr which ones are not.
    pub(crate) fn load_newest(&self, job: Job) -> Result<Option<(PathBuf, Checkpoint)>> {
        for number in self.numbers(SUFFIX)?.into_iter().rev() {
            let path = self.file(number, SUFFIX);
            // An rkyv archive has to lie at an aligned address, which `fs::read` does not promise.
            let mut bytes = AlignedVec::<16>::new();
            File::open(&path)
                .and_then(|mut file| bytes.extend_from_reader(&mut file))
                .map_err(|error| format!("cannot read the checkpoint {}: {error}", path.display()))?;
            match Checkpoint::from_file_bytes(&bytes) {
                Ok(checkpoint) if checkpoint.job == job => return Ok(Some((path, checkpoint))),
                Ok(_) => {
                    return Err(format!(
                        "the checkpoint {} is of a run with another --input or --allowed-lateness; repeat them, or \
                         start over without --resume",
                        path.display()
                    )
                    .into());
                }
                Err(error) => eprintln!("skipped a damaged checkpoint, {}: {error}", path.display()),
            }
        }
        Ok(None)
    }

    /// Makes a file of `checkpoint` that survives a crash of the process or the machine, and removes the oldest ones.
    /// Returns its length.
    fn write(&self, number: u64, checkpoint: &Checkpoint) -> Result<u64> {
        let bytes = checkpoint.to_file_bytes()?;
        let (unfinished, path) = (self.file(number, UNFINISHED_SUFFIX), self.file(number, SUFFIX));
        self.write_durably(&bytes, &unfinished, &path).map_err(|error| self.unusable("write to", &error))?;
        for old in self.numbers(SUFFIX)?.into_iter().rev().skip(KEPT) {
            self.remove(&self.file(old, SUFFIX))?;
        }
        Ok(bytes.len() as u64)
    }

    /// Under its final name a file is complete from the first moment on: it gets that name when its bytes are on disk.
    fn write_durably(&self, bytes: &[u8], unfinished: &Path, path: &Path) -> io::Result<()> {
        let mut file = File::create(unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(unfinished, path)?;
        // The name is on disk only when the directory is. Windows has no such call and needs none.
        #[cfg(unix)]
        File::open(&self.path)?.sync_all()?;
        Ok(())
    }

    /// The numbers of all files that are named like a checkpoint, in ascending order.
    fn numbers(&self, suffix: &str) -> Result<Vec<u64>> {
        let cannot_list = |error| self.unusable("list", &error);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(cannot_list)? {
            let name = entry.map_err(cannot_list)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(suffix)?.parse().ok());
            // Parsing is more lenient than naming: a name counts only if it is the one that number would get.
            numbers.extend(number.filter(|&number| self.file(number, suffix).file_name() == Some(&name)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn file(&self, number: u64, suffix: &str) -> PathBuf {
        self.path.join(format!("{PREFIX}{number:08}{suffix}"))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.unusable("remove old files from", &error).into())
            }
            _ => Ok(()),
        }
    }
}

/// A checkpoint that is on disk.
pub(crate) struct Written {
    pub(crate) bytes: u64,
    /// The time it took the writer's thread, from entries in memory to a file on disk.
    pub(crate) time: Duration,
}

/// A thread that writes checkpoints, one at a time, while the event loop goes on.
///
/// There is no queue: a snapshot that waits would keep the state of its instant in memory, to be written when newer
/// state is already there. Whoever has a checkpoint for a busy writer either skips it or waits.
pub(crate) struct Writer {
    submit: Sender<Checkpoint>,
    done: Receiver<Result<Written>>,
    thread: JoinHandle<()>,
    is_busy: bool,
    written: Vec<Written>,
}

impl Writer {
    /// Starts the thread. Its files continue the numbering of those already there.
    pub(crate) fn start(directory: Directory) -> Result<Self> {
        let mut number = directory.numbers(SUFFIX)?.last().map_or(0, |last| last + 1);
        let (submit, submitted) = channel::<Checkpoint>();
        let (report, done) = channel();
        let thread = thread::Builder::new().name("checkpoints".into()).spawn(move || {
            for checkpoint in submitted {
                let start = Instant::now();
                let result = directory.write(number, &checkpoint);
                // The snapshot shares its entries with the store. The sooner it goes, the fewer writes have to copy.
                drop(checkpoint);
                number += 1;
                let written = result.map(|bytes| Written { bytes, time: start.elapsed() });
                if report.send(written).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { submit, done, thread, is_busy: false, written: Vec::new() })
    }

    /// Whether the writer is still at the last checkpoint. With `wait`, not before it is done with it.
    ///
    /// # Errors
    ///
    /// Those of writing the last checkpoint.
    pub(crate) fn is_busy(&mut self, wait: bool) -> Result<bool> {
        if self.is_busy {
            let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
            if let Some(done) = done {
                self.is_busy = false;
                self.written.push(done?);
            }
        }
        Ok(self.is_busy)
    }

    /// Hands a checkpoint to the writer, which must not be busy.
    pub(crate) fn submit(&mut self, checkpoint: Checkpoint) {
        // It can only fail if the thread has panicked; `finish` tells.
        self.is_busy = self.submit.send(checkpoint).is_ok();
    }

    /// Waits for the last checkpoint and returns all that were written.
    pub(crate) fn finish(mut self) -> Result<Vec<Written>> {
        self.is_busy(true)?;
        drop(self.submit);
        self.thread.join().map_err(|_| "the thread that writes checkpoints has panicked")?;
        Ok(self.written)
    }
}
