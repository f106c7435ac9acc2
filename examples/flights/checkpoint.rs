//! A checkpoint: what a job needs to go on after a crash, and the two forms it has in a file.

use opstate::{StateDelta, StateError};
use rkyv::rancor::BoxedError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::operators::{Operators, Slice};
use crate::progress::Progress;

/// The length of the checksum at the end of a file.
const CHECKSUM_LEN: usize = size_of::<u64>();

/// What the results depend on besides the code. A checkpoint is of use only to the same job.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) input_hash: u64,
    pub(crate) allowed_lateness_min: u32,
}

/// The state of the whole job between two events.
pub(crate) struct Checkpoint {
    pub(crate) job: Job,
    pub(crate) progress: Progress,
    /// The number of key groups by which state is split over the slices.
    pub(crate) key_groups: u32,
    /// The state of each worker.
    pub(crate) slices: Vec<Slice>,
}

/// What is in a file, archived by rkyv.
///
/// All workers are in one file: a checkpoint is of all of them or it is none, and one rename makes it so.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) job: Job,
    progress: Progress,
    key_groups: u32,
    /// The names of the operators, in the order of their state.
    operators: Vec<String>,
    state: State,
}

/// For every worker, something of each operator.
#[derive(Archive, Serialize, Deserialize)]
enum State {
    /// All of it. A snapshot is a field like any other.
    Full(Vec<Slice>),
    /// What has changed since the checkpoint before, as the bytes of a `StateDelta`.
    ///
    /// A delta is of one worker's slice. Only between two snapshots of one store does it cost what has changed; and it
    /// knows the fingerprints of what it leads from and to, so that it can be applied to nothing else.
    Delta(Vec<[Vec<u8>; Operators::COUNT]>),
}

/// Why a file is no checkpoint, or none that can be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("it has {found} bytes, expected at least {CHECKSUM_LEN}; it was cut short, use another copy")]
    CutShort { found: usize },
    #[error("its checksum is wrong: found {found:#018x}, expected {expected:#018x}; it is damaged, use another copy")]
    Checksum { found: u64, expected: u64 },
    #[error("its checksum is right, but it is no archive of a checkpoint: {0}; use the program that wrote it")]
    Archive(#[from] BoxedError),
    #[error("it has the operators {found:?}, expected {:?}; use the program that wrote it", Operators::NAMES)]
    OtherOperators { found: Vec<String> },
    #[error("it is a {found}, expected a {expected} by its name; give it back the name it had")]
    OtherKind { found: &'static str, expected: &'static str },
    #[error("it builds on {missing}, which is not there; put that back from a copy")]
    MissingLink { missing: String },
    #[error(
        "it has the state of {found} workers, expected {expected} as in the checkpoint before it; the two are of \
         different runs, put back the files of one"
    )]
    OtherWorkers { found: usize, expected: usize },
    #[error("it does not fit the checkpoint before it, at {operator:?} of worker {worker}: {cause}")]
    WrongDelta { operator: &'static str, worker: usize, cause: StateError },
}

impl Record {
    fn of(checkpoint: &Checkpoint, state: State) -> Self {
        let &Checkpoint { job, ref progress, key_groups, .. } = checkpoint;
        let operators = Operators::NAMES.map(String::from).into();
        Self { job, progress: progress.clone(), key_groups, operators, state }
    }

    /// The checkpoint, to be read without any other.
    pub(crate) fn full(checkpoint: &Checkpoint) -> Self {
        Self::of(checkpoint, State::Full(checkpoint.slices.clone()))
    }

    /// The checkpoint, to be applied to the one that `base` is the state of.
    pub(crate) fn delta(checkpoint: &Checkpoint, base: &[Slice]) -> Self {
        let delta = |later: &Slice, earlier: &Slice| {
            std::array::from_fn(|operator| later[operator].delta_since(&earlier[operator]).to_bytes().into())
        };
        let deltas = checkpoint.slices.iter().zip(base).map(|(later, earlier)| delta(later, earlier));
        Self::of(checkpoint, State::Delta(deltas.collect()))
    }

    /// The checkpoint itself, given the one before it in its chain; `None` for the first.
    pub(crate) fn restore(self, before: Option<&Checkpoint>) -> Result<Checkpoint, Problem> {
        if self.operators != Operators::NAMES {
            return Err(Problem::OtherOperators { found: self.operators });
        }
        let slices = match (self.state, before) {
            (State::Full(slices), None) => slices,
            (State::Delta(deltas), Some(before)) => apply(&before.slices, deltas)?,
            (State::Full(_), Some(_)) => return Err(Problem::OtherKind { found: "full image", expected: "delta" }),
            (State::Delta(_), None) => return Err(Problem::OtherKind { found: "delta", expected: "full image" }),
        };
        Ok(Checkpoint { job: self.job, progress: self.progress, key_groups: self.key_groups, slices })
    }

    /// The archive, and a checksum of it at the end.
    ///
    /// Snapshots and deltas in the archive have checksums of their own, but nothing else in it has: a flipped bit in the
    /// position would be a valid position, and a wrong one.
    pub(crate) fn to_file_bytes(&self) -> crate::Result<AlignedVec> {
        let mut bytes = rkyv::to_bytes::<BoxedError>(self)?;
        let checksum = XxHash3_64::oneshot(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }

    pub(crate) fn from_file_bytes(bytes: &[u8]) -> Result<Self, Problem> {
        let cut_short = Problem::CutShort { found: bytes.len() };
        let (archive, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(cut_short)?;
        let (found, expected) = (XxHash3_64::oneshot(archive), u64::from_le_bytes(*checksum));
        if found != expected {
            return Err(Problem::Checksum { found, expected });
        }
        Ok(rkyv::from_bytes::<Self, BoxedError>(archive)?)
    }
}

fn apply(before: &[Slice], deltas: Vec<[Vec<u8>; Operators::COUNT]>) -> Result<Vec<Slice>, Problem> {
    let (found, expected) = (deltas.len(), before.len());
    if found != expected {
        return Err(Problem::OtherWorkers { found, expected });
    }
    let mut slices = before.to_vec();
    for (worker, (slice, deltas)) in slices.iter_mut().zip(deltas).enumerate() {
        for ((snapshot, delta), operator) in slice.iter_mut().zip(deltas).zip(Operators::NAMES) {
            *snapshot = StateDelta::from_bytes(delta)
                .and_then(|delta| snapshot.apply(&delta))
                .map_err(|cause| Problem::WrongDelta { operator, worker, cause })?;
        }
    }
    Ok(slices)
}
