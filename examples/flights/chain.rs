//! Chains: a full image and the deltas that follow it, each of what has changed since the one before.
//!
//! ```text
//!   --compact-every 4      00.checkpoint  01.delta  02.delta  03.delta  04.checkpoint  05.delta ...
//!                          └──────────── a chain ──────────┘  └──────────── the next
//! ```
//!
//! Every k-th checkpoint is a full image. To merge the deltas of a chain instead (`StateDelta::merge`) would spare writing
//! what never changes, but the image they all build on would have to stay for ever, and in a job whose windows come and
//! go most of it would soon be deletions. A new image costs nobody but the writer, which has the snapshot at hand, and
//! depends on no older file. A run that resumes begins with one, too: its stores are new, perhaps of other workers, and
//! have no snapshot in common with those of the run before.

use std::io;
use std::path::PathBuf;

use crate::Result;
use crate::checkpoint::{Checkpoint, Job, Problem, Record};
use crate::directory::{Directory, Kind, Name, Step};
use crate::operators::Slice;
use crate::report::counted;

/// How many chains are kept: the newest, and spares in case it is damaged.
const KEPT: usize = 3;

/// The chains of a directory, oldest first. A crash or a missing file may have left deltas without an image in front.
fn chains(directory: &Directory) -> Result<Vec<Vec<Name>>> {
    let files = directory.files()?;
    Ok(files.chunk_by(|_, next| next.kind == Kind::Delta).map(<[Name]>::to_vec).collect())
}

/// Returns the newest checkpoint that can be restored, with its path. Tells which newer ones cannot, and why.
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

/// Goes along a chain as far as it is sound: every checkpoint on the way is one to go on from.
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

/// Fails for a delta without the checkpoint that it builds on.
fn check_link(before: Option<&(Name, Checkpoint)>, name: Name) -> Result<(), Problem> {
    let follows = before.is_some_and(|(before, _)| before.number + 1 == name.number);
    if name.kind == Kind::Full || follows {
        return Ok(());
    }
    let number = name.number.saturating_sub(1);
    let missing = [Kind::Full, Kind::Delta].map(|kind| Name { number, kind }.to_string()).join(" or ");
    Err(Problem::MissingLink { missing })
}

/// A checkpoint that is on disk.
pub(crate) struct Written {
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
}

/// Writes checkpoints, each as the next link of a chain.
pub(crate) struct ChainWriter {
    directory: Directory,
    compact_every: u64,
    next_number: u64,
    /// How many checkpoints the newest chain has.
    len: u64,
    /// The last checkpoint that is on disk, if a delta is to follow it.
    ///
    /// As long as it is held, the stores note what changes. It gives way only to one that is on disk, too: so a delta is
    /// always taken against what will be found after a crash, however many checkpoints were skipped or failed since.
    base: Option<Vec<Slice>>,
}

impl ChainWriter {
    /// Continues the numbering of the files that are there, not their last chain.
    pub(crate) fn new(directory: Directory, compact_every: u64) -> Result<Self> {
        directory.remove_unfinished()?;
        let next_number = directory.files()?.last().map_or(0, |last| last.number + 1);
        Ok(Self { directory, compact_every, next_number, len: 0, base: None })
    }

    /// Writes a checkpoint; when this returns, it survives any crash. After an error, the one before is the newest still.
    pub(crate) fn write(&mut self, checkpoint: Checkpoint, at: &dyn Fn(Step) -> io::Result<()>) -> Result<Written> {
        let (kind, record) = match &self.base {
            None => (Kind::Full, Record::full(&checkpoint)),
            Some(base) => (Kind::Delta, Record::delta(&checkpoint, base)),
        };
        let bytes = record.to_file_bytes()?;
        // The record shares entries with the stores, as snapshots do. The sooner it goes, the fewer writes have to copy.
        drop(record);
        // After a failure the number is used again. The file that may have it already is replaced at once or not at all.
        self.directory.write(Name { number: self.next_number, kind }, &bytes, at)?;
        self.next_number += 1;
        self.len = if kind == Kind::Full { 1 } else { self.len + 1 };
        // Where an image comes next there is no use for the snapshot.
        self.base = (self.len < self.compact_every).then_some(checkpoint.slices);
        if kind == Kind::Full
            && let Err(error) = self.remove_old(at)
        {
            eprintln!("a checkpoint is written, but old ones remain: {error}");
        }
        Ok(Written { kind, bytes: bytes.len() as u64 })
    }

    /// Removes the oldest chains, which nothing builds on.
    fn remove_old(&self, at: &dyn Fn(Step) -> io::Result<()>) -> Result<()> {
        let mut chains = chains(&self.directory)?;
        chains.truncate(chains.len().saturating_sub(KEPT));
        for chain in chains {
            // From the newest on: after a crash, what is left is no delta without its base.
            for name in chain.into_iter().rev() {
                self.directory.remove(name)?;
                at(Step::Removing)?;
            }
        }
        Ok(())
    }
}
