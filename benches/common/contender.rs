//! [`Contender`]: a way to keep state, behind the one trait that all are measured through.

use opstate::{HotStore, InMemoryStore, StateSnapshot, StateStore};

use super::glued::GluedMaps;

/// A view of a store's contents at one instant, for another thread. Calling it makes a snapshot of it.
pub(crate) type Frozen = Box<dyn FnOnce() -> StateSnapshot + Send>;

/// A store that can be measured. What an operator wants of it is in [`StateStore`].
pub(crate) trait Bench: StateStore {
    /// Takes the cheapest view that the store has of its contents of this instant. Where that is no [`StateSnapshot`], to
    /// make one of it is a part of serializing it.
    fn freeze(&self) -> Frozen {
        let snapshot = self.snapshot();
        Box::new(|| snapshot)
    }
}

impl Bench for HotStore {}
impl Bench for InMemoryStore {}
impl Bench for GluedMaps {}

/// What not every contender can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Can {
    /// Scans in the order of keys.
    pub(crate) scan: bool,
    /// A view of one instant that stays as it is.
    pub(crate) snapshot: bool,
    /// Lookups and writes of a batch, other than one by one.
    pub(crate) batch: bool,
}

impl Can {
    pub(crate) const ALL: Self = Self { scan: true, snapshot: true, batch: true };
    pub(crate) const ONE_BY_ONE: Self = Self { batch: false, ..Self::ALL };
}

/// A way to keep state.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) can: Can,
    pub(crate) make: fn() -> Box<dyn Bench>,
}

pub(crate) const GLUED: Kind =
    Kind { name: "glued maps", can: Can::ONE_BY_ONE, make: || Box::new(GluedMaps::default()) };
pub(crate) const HOT: Kind = Kind { name: "HotStore", can: Can::ALL, make: || Box::new(HotStore::new()) };
pub(crate) const IN_MEMORY: Kind =
    Kind { name: "InMemoryStore", can: Can::ONE_BY_ONE, make: || Box::new(InMemoryStore::new()) };

/// One of them with the store that is being measured.
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    pub(crate) store: Box<dyn Bench>,
}

impl Contender {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, store: (kind.make)() }
    }
}
