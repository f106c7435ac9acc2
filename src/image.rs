//! Images: snapshots and deltas as bytes. No file here knows what a snapshot is.
//!
//! ```text
//!   format   header, descriptor, trailer, and the rules of the format
//!   columns  the rkyv archive of a segment            label      operator and job; sections  what else a footer says
//!   segment  a checked segment                        backing    bytes in memory, in a map (map) or in a reader
//!   footer   the ends of an image and its segments    directory  the key groups of a grouped image
//!      │                                                 │
//!      v                                                 v
//!   reader   an opened image          writer, pool, write         inspect   damaged images
//! ```

pub(crate) mod backing;
pub(crate) mod changes;
pub(crate) mod columns;
pub(crate) mod directory;
pub(crate) mod footer;
pub(crate) mod format;
pub(crate) mod inspect;
pub(crate) mod label;
#[cfg(feature = "mmap")]
pub(crate) mod map;
pub(crate) mod options;
pub(crate) mod pool;
pub(crate) mod reader;
pub(crate) mod sections;
pub(crate) mod segment;
pub(crate) mod write;
pub(crate) mod writer;
