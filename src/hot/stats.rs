//! [`HotStats`]: contents and memory of a store.

/// Counts and bytes of a [`HotStore`](super::HotStore).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotStats {
    /// The number of entries.
    pub entries: usize,
    /// Bytes of live records: keys, values of up to 512 bytes, headers, and room left by values that became shorter.
    pub live_bytes: usize,
    /// Bytes of deleted and replaced records that are not yet recovered.
    pub dead_bytes: usize,
    /// Bytes of values of more than 512 bytes, and of the nodes that hold them.
    pub large_value_bytes: usize,
    /// Bytes of the hash index, the table and the sorted index.
    pub index_bytes: usize,
    /// The number of chunks that records lie in.
    pub chunks: usize,
    /// Bytes of chunks, filled or not.
    pub chunk_bytes: usize,
    /// Bytes of the lists of chunks, and of what an empty store takes.
    pub overhead_bytes: usize,
    /// Bytes of the notes of which entries changed while snapshots are alive.
    pub journal_bytes: usize,
    /// Bytes of live snapshots, and of the memory that only they see.
    pub pinned_bytes: usize,
    /// Bytes of freed snapshot memory, kept for the copies that the next snapshot makes necessary.
    ///
    /// The limit is the size of the table and the sorted index and an eighth of `chunk_bytes`, within the budget. If the
    /// store shrank, memory beyond the limit is freed little by little, as snapshots are taken and dropped.
    pub spare_bytes: usize,
    /// The number of live snapshots, clones not counted.
    pub snapshots: usize,
}

impl HotStats {
    /// Returns the bytes of all memory that the store and its snapshots take from the allocator.
    ///
    /// The allocator's own overhead is not counted, nor are values that only returned handles keep: a handle to a value of
    /// more than 512 bytes keeps that value after it is deleted.
    pub fn total_bytes(&self) -> usize {
        let Self { chunk_bytes, large_value_bytes, index_bytes, overhead_bytes, .. } = self;
        let Self { journal_bytes, pinned_bytes, spare_bytes, .. } = self;
        chunk_bytes + large_value_bytes + index_bytes + overhead_bytes + journal_bytes + pinned_bytes + spare_bytes
    }
}
