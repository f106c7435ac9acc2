//! `opstate` keeps the keyed state of a stream operator in memory.

mod error;
mod ext;
mod memory;
mod snapshot;
mod store;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(fuzzing)]
pub mod fuzzing;

pub use error::StateError;
pub use ext::StateStoreExt;
pub use memory::InMemoryStore;
pub use snapshot::{ArchivedStateSnapshot, Fingerprint, ImageOptions, StateSnapshot, StateSnapshotResolver};
pub use store::{Entries, KeyBounds, MAX_KEY_LEN, MAX_VALUE_LEN, StateStore, check_entry_len};
