//! Sizes of nodes, pages and chunks. Unit tests use tiny ones, so that they cross every boundary all the time.

/// Buckets of a subtable of the hash index.
pub(super) const BUCKETS: usize = if cfg!(test) { 2 } else { 64 };
/// Slots of a page of the entry table.
pub(super) const PAGE: usize = if cfg!(test) { 4 } else { 64 };
/// Pages of a branch of the entry table.
pub(super) const BRANCH: usize = if cfg!(test) { 2 } else { 512 };
/// Ids in a leaf of the sorted index.
pub(super) const LEAF: usize = if cfg!(test) { 4 } else { 64 };
/// Children of an inner node of the sorted index.
pub(super) const INNER: usize = if cfg!(test) { 3 } else { 64 };
/// Bytes of a store's first chunk, unless its builder is told otherwise.
pub(super) const FIRST_CHUNK: usize = if cfg!(test) { 64 } else { 448 };
/// Bytes of a store's largest chunk, unless its builder is told otherwise.
pub(super) const LARGEST_CHUNK: usize = if cfg!(test) { 512 } else { 2 << 20 };
/// The most chunks of a store: as many as a location can name.
pub(super) const MAX_CHUNKS: usize = if cfg!(test) { 1 << 14 } else { 1 << 30 };
/// Notes that the journal keeps, beyond those that the number of entries allows for.
pub(super) const JOURNAL: usize = if cfg!(test) { 20 } else { 1 << 10 };
