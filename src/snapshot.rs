//! Snapshots: the contents of a store at one instant, and everything that is made of them.
//!
//! ```text
//!   StateSnapshot (clone) ──┐
//!   StateSnapshot ──────────┴─> Arc<SnapshotData> { timestamp, label, fingerprint once known, source }
//!                                                                                       │
//!     memory of a HotStore or InMemoryStore  │  SortedEntries  │  ImageReader ──> bytes, a mapped file or a reader
//!     Merged ──> several of these            │  Overlay ──> one of these, with changes on top
//!     Foreign ──> a `SnapshotSource` of a third-party store
//!
//!   made of snapshots: diff, delta (apply), split, merge
//!   to and from bytes: write, open, unverified, grouped, archived
//! ```

mod apply;
pub(crate) mod archived;
mod change_list;
pub(crate) mod delta;
pub(crate) mod diff;
mod foreign;
pub(crate) mod grouped;
mod merge;
mod open;
mod overlay;
mod sorted;
mod split;
pub(crate) mod state_snapshot;
pub(crate) mod unverified;
mod write;
