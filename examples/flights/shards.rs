//! How the stream and the state are split over workers, and the state again over another number of them.
//!
//! Airports are told by their origin, routes by origin and destination. Who has an origin has all its routes, so one
//! split, by origin, serves every operator: an event goes to one worker, and what a window hands on to the totals of its
//! route stays there. The origin lies at another place in the keys of each operator; `operators.rs` says where.

use opstate::{KeyGroups, StateError, StateSnapshot};

use crate::events::Airport;
use crate::operators::{Operators, Slice};

/// The units in which state moves from worker to worker, and so the most workers there can be.
pub(crate) const KEY_GROUPS: u32 = 128;

/// Which worker has which origins.
#[derive(Clone, Copy)]
pub(crate) struct Shards {
    groups: KeyGroups,
    workers: u32,
}

impl Shards {
    pub(crate) fn over(workers: u32) -> Result<Self, StateError> {
        Ok(Self { groups: KeyGroups::new(KEY_GROUPS)?, workers })
    }

    pub(crate) fn workers(self) -> usize {
        self.workers as usize
    }

    /// The worker that an event goes to.
    pub(crate) fn worker_of(self, origin: Airport) -> usize {
        self.worker_of_part(&origin)
    }

    fn worker_of_part(self, part: &[u8]) -> usize {
        self.groups.worker_of(self.groups.group_of(part), self.workers) as usize
    }

    /// Splits the state of a checkpoint over these workers, whatever number of workers wrote it.
    ///
    /// # Errors
    ///
    /// [`StateError::ConflictingKeys`] if two of the slices have the same key, which no checkpoint has.
    pub(crate) fn reshard(self, slices: Vec<Slice>, key_groups: u32) -> Result<Vec<Slice>, StateError> {
        if (slices.len(), key_groups) == (self.workers(), self.groups.count()) {
            return Ok(slices);
        }
        // For every worker to be and every operator, what each worker of then has of it.
        let mut parts = vec![[const { Vec::<StateSnapshot>::new() }; Operators::COUNT]; self.workers()];
        for slice in &slices {
            for (operator, snapshot) in slice.iter().enumerate() {
                let worker_of = |key: &[u8]| self.worker_of_part(Operators::origin_in_key(operator, key));
                for (parts, part) in parts.iter_mut().zip(snapshot.split_with(self.workers(), worker_of)?) {
                    parts[operator].push(part);
                }
            }
        }
        let merge = |parts: [Vec<StateSnapshot>; Operators::COUNT]| {
            let [airports, route_days, routes] = parts.map(StateSnapshot::merge);
            Ok([airports?, route_days?, routes?])
        };
        parts.into_iter().map(merge).collect()
    }
}
