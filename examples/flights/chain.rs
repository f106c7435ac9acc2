//! Chains: a full image and the deltas after it. Each delta holds the changes since the checkpoint before it.
//!
//! ```text
//!   --compact-every 4      00.checkpoint  01.delta  02.delta  03.delta  04.checkpoint  05.delta ...
//!                          └──────────── a chain ──────────┘  └──────────── the next
//! ```
//!
//! Every k-th checkpoint is a full image. The alternative is to merge the deltas of a chain (`StateDelta::compose`).
//! That would avoid rewriting unchanged entries, but the first image would have to stay forever. In a job whose windows
//! come and go, most of that image would soon be deleted entries. A new image depends on no older file and costs only
//! the writer, which has the snapshot at hand.
//!
//! A resumed run also begins with an image. Its stores are new, and perhaps belong to other workers. They share no
//! snapshot with the stores of the earlier run.

use std::io;
use std::path::PathBuf;

use crate::Result;
use crate::checkpoint::{Checkpoint, Job, Problem, Record};
use crate::directory::{Directory, Kind, Name, Step};
use crate::operators::Slice;
use crate::report::counted;

/// Number of chains to keep: the newest one, and spares in case it is damaged.
const KEPT: usize = 3;

/// Returns the chains of a directory, oldest first. After a crash or a lost file, deltas may lack their image.
fn chains(directory: &Directory) -> Result<Vec<Vec<Name>>> {
    let files = directory.files()?;
    Ok(files.chunk_by(|_, next| next.kind == Kind::Delta).map(<[Name]>::to_vec).collect())
}

/// Returns the newest checkpoint that can be restored, with its path. Prints why newer ones cannot be restored.
pub(crate) fn load_newest(
    directory: &Directory,
    job: Job,
    tell: &mut dyn FnMut(String),
) -> Result<Option<(PathBuf, Checkpoint)>> {
    for chain in chains(directory)?.into_iter().rev() {
        if let Some((name, checkpoint)) = load(directory, &chain, job, tell)? {
            return Ok(Some((directory.path_of(name), checkpoint)));
        }
    }
    Ok(None)
}

/// Loads the links of a chain up to the first damaged one. Every link before it is a valid checkpoint.
fn load(
    directory: &Directory,
    chain: &[Name],
    job: Job,
    tell: &mut dyn FnMut(String),
) -> Result<Option<(Name, Checkpoint)>> {
    let mut newest: Option<(Name, Checkpoint)> = None;
    for (at, &name) in chain.iter().enumerate() {
        let path = directory.path_of(name);
        let bytes = directory.read(name)?;
        let record = check_link(newest.as_ref(), name).and_then(|()| Record::from_file_bytes(&bytes));
        if record.as_ref().is_ok_and(|record| record.job != job) {
            return Err(format!(
                "the checkpoint {} is of a run with another --input or --allowed-lateness; repeat them, or start over \
                 without --resume",
                path.display()
            )
            .into());
        }
        match record.and_then(|record| record.restore(newest.as_ref().map(|(_, checkpoint)| checkpoint))) {
            Ok(checkpoint) => newest = Some((name, checkpoint)),
            Err(problem) => {
                tell(format!("skipped a damaged checkpoint, {}: {problem}", path.display()));
                let rest = chain.len() - at - 1;
                if rest > 0 {
                    tell(format!("skipped {} that build on it", counted(rest as u64, "delta")));
                }
                break;
            }
        }
    }
    Ok(newest)
}

/// Returns an error if a delta lacks the checkpoint that it builds on.
fn check_link(before: Option<&(Name, Checkpoint)>, name: Name) -> Result<(), Problem> {
    let follows = before.is_some_and(|(before, _)| before.number + 1 == name.number);
    if name.kind == Kind::Full || follows {
        return Ok(());
    }
    let number = name.number.saturating_sub(1);
    let missing = [Kind::Full, Kind::Delta].map(|kind| Name { number, kind }.to_string()).join(" or ");
    Err(Problem::MissingLink { missing })
}

/// A checkpoint on disk.
pub(crate) struct Written {
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
}

/// Writer that appends each checkpoint to a chain.
pub(crate) struct ChainWriter {
    directory: Directory,
    compact_every: u64,
    next_number: u64,
    /// Number of checkpoints in the newest chain.
    len: u64,
    /// The last checkpoint on disk, if the next one is to be a delta.
    ///
    /// The stores record changes while this snapshot is held. Only a checkpoint that is on disk replaces it. So a delta
    /// always builds on a file that exists after a crash, however many checkpoints were skipped or failed in between.
    base: Option<Vec<Slice>>,
}

impl ChainWriter {
    /// Creates a writer that continues the numbers of the existing files, but starts a new chain.
    pub(crate) fn new(directory: Directory, compact_every: u64) -> Result<Self> {
        directory.remove_unfinished()?;
        let next_number = directory.files()?.last().map_or(0, |last| last.number + 1);
        Ok(Self { directory, compact_every, next_number, len: 0, base: None })
    }

    /// Writes a checkpoint. It survives any crash once this returns. After an error, the previous checkpoint remains
    /// the newest.
    pub(crate) fn write(&mut self, checkpoint: Checkpoint, at: &dyn Fn(Step) -> io::Result<()>) -> Result<Written> {
        let (kind, record) = match &self.base {
            None => (Kind::Full, Record::full(&checkpoint)),
            Some(base) => (Kind::Delta, Record::delta(&checkpoint, base)),
        };
        let bytes = record.to_file_bytes()?;
        // The record shares entries with the stores, as snapshots do. Drop it early, so that fewer writes have to copy.
        drop(record);
        // A number is reused after a failure. A file that already has this number is replaced atomically.
        self.directory.write(Name { number: self.next_number, kind }, &bytes, at)?;
        self.next_number += 1;
        self.len = if kind == Kind::Full { 1 } else { self.len + 1 };
        // The next image does not need the snapshot.
        self.base = (self.len < self.compact_every).then_some(checkpoint.slices);
        if kind == Kind::Full
            && let Err(error) = self.remove_old(at)
        {
            eprintln!("a checkpoint is written, but old ones remain: {error}");
        }
        Ok(Written { kind, bytes: bytes.len() as u64 })
    }

    /// Removes the oldest chains. No other file builds on them.
    fn remove_old(&self, at: &dyn Fn(Step) -> io::Result<()>) -> Result<()> {
        let mut chains = chains(&self.directory)?;
        chains.truncate(chains.len().saturating_sub(KEPT));
        for chain in chains {
            // Remove the newest file first. Then a crash leaves no delta without its base.
            for name in chain.into_iter().rev() {
                self.directory.remove(name)?;
                at(Step::Removing)?;
            }
        }
        Ok(())
    }
}
