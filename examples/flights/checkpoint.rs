//! A checkpoint: the state that a job needs to resume after a crash, and its two file formats.

use opstate::{StateDelta, StateError};
use rkyv::rancor::BoxedError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::operators::{Operators, Slice};
use crate::progress::Progress;

/// Length of the checksum at the end of a file.
const CHECKSUM_LEN: usize = size_of::<u64>();

/// Settings that affect the results. A checkpoint can only be resumed by a job with the same settings.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) input_hash: u64,
    pub(crate) allowed_lateness_min: u32,
}

/// State of the whole job between two events.
pub(crate) struct Checkpoint {
    pub(crate) job: Job,
    pub(crate) progress: Progress,
    /// Number of key groups. Groups assign state to slices.
    pub(crate) key_groups: u32,
    /// State of each worker.
    pub(crate) slices: Vec<Slice>,
}

/// Contents of a file, archived by rkyv.
///
/// One file holds all workers. So a single rename commits the whole checkpoint.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) job: Job,
    progress: Progress,
    key_groups: u32,
    state: State,
}

/// State of each worker and operator. Labels of snapshots and deltas name the operator.
#[derive(Archive, Serialize, Deserialize)]
enum State {
    /// The full state. Snapshots serialize like any other field.
    Full(Vec<Slice>),
    /// The changes since the previous checkpoint, as bytes of `StateDelta`s.
    ///
    /// Each delta covers one worker's slice. Its cost is proportional to the changes only between two snapshots of one
    /// store. It records the fingerprints of both ends, so it cannot be applied to any other state.
    Delta(Vec<[Vec<u8>; Operators::COUNT]>),
}

/// Reason why a file is not a checkpoint, or cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("it has {found} bytes, expected at least {CHECKSUM_LEN}; it was cut short, use another copy")]
    CutShort { found: usize },
    #[error("its checksum is wrong: found {found:#018x}, expected {expected:#018x}; it is damaged, use another copy")]
    Checksum { found: u64, expected: u64 },
    #[error("its checksum is right, but it is no archive of a checkpoint: {0}; use the program that wrote it")]
    Archive(#[from] BoxedError),
    #[error("it has the state of another operator: {0}")]
    OtherOperator(StateError),
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
        Self { job, progress: progress.clone(), key_groups, state }
    }

    /// Creates a record that can be read without other files.
    pub(crate) fn full(checkpoint: &Checkpoint) -> Self {
        Self::of(checkpoint, State::Full(checkpoint.slices.clone()))
    }

    /// Creates a record that is applied to the checkpoint with the state `base`.
    pub(crate) fn delta(checkpoint: &Checkpoint, base: &[Slice]) -> Self {
        let delta = |later: &Slice, earlier: &Slice| {
            std::array::from_fn(|operator| later[operator].delta_since(&earlier[operator]).to_bytes().into())
        };
        let deltas = checkpoint.slices.iter().zip(base).map(|(later, earlier)| delta(later, earlier));
        Self::of(checkpoint, State::Delta(deltas.collect()))
    }

    /// Returns the checkpoint. `before` is the previous one in the chain, or `None` for the first.
    pub(crate) fn restore(self, before: Option<&Checkpoint>) -> Result<Checkpoint, Problem> {
        let slices = match (self.state, before) {
            (State::Full(slices), None) => {
                slices.iter().try_for_each(check_labels).map_err(Problem::OtherOperator)?;
                slices
            }
            (State::Delta(deltas), Some(before)) => apply(&before.slices, deltas)?,
            (State::Full(_), Some(_)) => return Err(Problem::OtherKind { found: "full image", expected: "delta" }),
            (State::Delta(_), None) => return Err(Problem::OtherKind { found: "delta", expected: "full image" }),
        };
        Ok(Checkpoint { job: self.job, progress: self.progress, key_groups: self.key_groups, slices })
    }

    /// Returns the archive followed by its checksum.
    ///
    /// Snapshots and deltas have their own checksums, but the other fields have none. A flipped bit in the position
    /// would give another valid position.
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

fn check_labels(slice: &Slice) -> Result<(), StateError> {
    slice.iter().zip(0..).try_for_each(|(snapshot, operator)| snapshot.label().require(&Operators::label(operator)))
}

fn apply(before: &[Slice], deltas: Vec<[Vec<u8>; Operators::COUNT]>) -> Result<Vec<Slice>, Problem> {
    let (found, expected) = (deltas.len(), before.len());
    if found != expected {
        return Err(Problem::OtherWorkers { found, expected });
    }
    let mut slices = before.to_vec();
    for (worker, (slice, deltas)) in slices.iter_mut().zip(deltas).enumerate() {
        for ((snapshot, delta), operator) in slice.iter_mut().zip(deltas).zip(0..) {
            let apply = |delta: StateDelta| {
                delta.label().require(&Operators::label(operator))?;
                snapshot.apply(&delta)
            };
            let wrong = |cause| Problem::WrongDelta { operator: Operators::NAMES[operator], worker, cause };
            *snapshot = StateDelta::from_bytes(delta).and_then(apply).map_err(wrong)?;
        }
    }
    Ok(slices)
}

#[cfg(test)]
mod tests {
    use opstate::HotStore;

    use super::*;

    #[test]
    fn the_state_of_another_operator_is_refused() {
        let slice = Operators::new(|| Box::new(HotStore::new())).snapshot();
        let mut swapped = slice.clone();
        swapped.swap(0, 2);
        let job = Job { input_hash: 0, allowed_lateness_min: 0 };
        let of = |slice| Checkpoint { job, progress: Progress::start(), key_groups: 1, slices: vec![slice] };
        let reopen = |record: Record| Record::from_file_bytes(&record.to_file_bytes().unwrap()).unwrap();

        let (checkpoint, other) = (of(slice), of(swapped));
        assert!(reopen(Record::full(&checkpoint)).restore(None).is_ok());
        let problem = reopen(Record::full(&other)).restore(None).err().unwrap().to_string();
        assert!(problem.contains("`routes`, expected `airports`"), "{problem}");

        assert!(reopen(Record::delta(&checkpoint, &checkpoint.slices)).restore(Some(&checkpoint)).is_ok());
        let problem =
            reopen(Record::delta(&other, &other.slices)).restore(Some(&checkpoint)).err().unwrap().to_string();
        assert!(problem.contains("`routes`, expected `airports`"), "{problem}");
    }
}
