//! Keyed state for stream operators, in memory: point reads, ordered scans, snapshots that travel as bytes.
//!
//! An operator (a window aggregate, a join, a dedup) owns a [`StateStore`], usually as `Box<dyn StateStore>`, and reads
//! and writes it from one thread. At a checkpoint barrier it takes a [`StateSnapshot`], which another thread serializes
//! while events keep flowing; after a crash a store is restored from those bytes.
//!
//! ```text
//!   events ──> operator ── get, put, modify, scan ──> StateStore
//!                 │                                       │ snapshot (the state of this instant, immutable)
//!              barrier                                    v
//!                 └───── to a writer thread ───────> StateSnapshot ── write_to ──> image (a file, an object)
//!                                                         ^                            │
//!   restart ──> StateStore::restore <─────────────────────┴────────── from_bytes ──────┘
//! ```
//!
//! # Where to look
//!
//! | for | see |
//! |---|---|
//! | the rules every store keeps, and how to implement one | [`StateStore`] |
//! | typed values (rkyv), types that change, prefixes, ranges of any kind, both ends | [`StateStoreExt`], [`StateValue`], [`KeyRange`], [`Scan`] |
//! | a store | [`HotStore`], and the plain reference [`InMemoryStore`] |
//! | snapshots, images, fingerprints | [`StateSnapshot`], [`ImageOptions`], [`Fingerprint`] |
//! | images larger than memory, or opened in microseconds | [`UnverifiedImage`], with `UnverifiedImage::open` behind the feature `mmap` |
//! | the operator that an image belongs to | [`Label`] |
//! | images as streams: progress, cancelling, threads | [`StateSnapshot::write_with_progress`], [`StateSnapshot::read_from`], [`ImageOptions::threads`] |
//! | the changes between two snapshots, as bytes or one by one | [`StateDelta`], [`StateSnapshot::diff`] |
//! | snapshots inside of your own archived struct | [`ArchivedStateSnapshot`] |
//! | state that moves between workers | [`KeyGroups`], [`StateSnapshot::split`], [`StateSnapshot::merge`], [`GroupedImage`] |
//! | the contents of a file, even of a damaged one | [`ImageInfo`], and the example `inspect` |
//! | errors | [`StateError`] |
//! | a store of your own: how to write it, how to check it | [`StateStore`], [`SnapshotSource`], the module `conformance` (a feature) |
//!
//! # A store in use
//!
//! ```
//! use opstate::{HotStore, StateSnapshot, StateStore, StateStoreExt};
//!
//! # fn main() -> Result<(), opstate::StateError> {
//! let mut store: Box<dyn StateStore> = Box::new(HotStore::new());
//!
//! // Values are bytes, or anything that rkyv archives.
//! store.put(b"route/DTW-LAS", b"on time")?;
//! store.put_typed(b"count/DTW", &1_u64)?;
//! store.update(b"count/DTW", |count: &mut Option<u64>| *count.get_or_insert(0) += 1)?;
//! assert_eq!(store.get_typed::<u64>(b"count/DTW")?, Some(2));
//!
//! // A snapshot is a value of its own.
//! let snapshot = store.snapshot();
//! store.delete_prefix(b"count/")?;
//!
//! let image = std::thread::spawn(move || snapshot.to_bytes()).join().unwrap();
//! store.restore(StateSnapshot::from_bytes(image)?);
//! assert_eq!(store.get_typed::<u64>(b"count/DTW")?, Some(2));
//! # Ok(())
//! # }
//! ```
//!
//! # Designing keys
//!
//! Keys are compared byte by byte, unsigned. So put the part that is scanned or expired together in front, and write
//! numbers in big-endian:
//!
//! | state | key | then |
//! |---|---|---|
//! | windows | window end (`u64::to_be_bytes`), then the group | closing is a `drain_range` up to the watermark |
//! | a join's side | join key, then event time | a match is a `range_scan` of the key's time bound |
//! | expiry of entries keyed otherwise | a second store: time, then the key | one range finds what is due |
//!
//! A signed number sorts correctly once its sign bit is flipped (`(time ^ i64::MIN).to_be_bytes()`). A part of variable
//! length that is not the last one needs an end that the part cannot contain, or a length in front. Otherwise the keys
//! of `ab` + `c` and of `a` + `bc` are equal.
//!
//! # Public dependencies
//!
//! [`bytes`] and [`rkyv`] are part of this crate's interface and re-exported. Do not turn on rkyv's format features
//! (`pointer_width_64`, `big_endian`, `unaligned`) anywhere in a program that reads or writes images: cargo applies
//! them to every crate, and they change the bytes.

#![cfg_attr(all(test, alloc_error_hook), feature(alloc_error_hook))]

mod aligned;
mod bounds;
mod comparison;
mod error;
mod ext;
mod fingerprint;
mod handles;
mod hot;
mod image;
mod key_group;
mod limits;
mod memory;
mod scan;
mod snapshot;
mod source;
mod store;
mod typed;

// Unit tests share the model with the tests of the public contract.
#[cfg(test)]
extern crate self as opstate;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(fuzzing)]
pub mod fuzzing;

pub use bytes;
pub use rkyv;

pub use aligned::VALUE_ALIGNMENT;
pub use bounds::{KeyBounds, KeyRange};
pub use error::StateError;
pub use ext::{Drained, StateStoreExt};
pub use fingerprint::Fingerprint;
pub use hot::{HotStats, HotStore, HotStoreBuilder};
pub use image::changes::Changes;
pub use image::format::ImageKind;
pub use image::inspect::{DeltaInfo, GroupInfo, ImageInfo, ImageTotals, SegmentInfo};
pub use image::label::Label;
pub use image::options::{ImageOptions, Progress};
pub use key_group::KeyGroups;
pub use limits::{MAX_KEY_LEN, MAX_VALUE_LEN, check_entry_len};
pub use memory::InMemoryStore;
pub use scan::{Entries, Scan, TryScan, TypedScan};
pub use snapshot::archived::{ArchivedStateSnapshot, StateSnapshotResolver};
pub use snapshot::delta::StateDelta;
pub use snapshot::diff::{Difference, Differences, TryDifferences};
pub use snapshot::grouped::GroupedImage;
pub use snapshot::state_snapshot::{SnapshotIntoIter, StateSnapshot};
pub use snapshot::unverified::UnverifiedImage;
pub use source::SnapshotSource;
pub use store::{Deleted, StateStore};
pub use typed::{MAX_VALUE_DEPTH, ReadValue, StateValue, ViewValue, WriteValue};

#[cfg(doctest)]
mod must_not_compile;
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeIsTested;
