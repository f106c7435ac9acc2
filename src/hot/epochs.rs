//! Epochs: which snapshots are alive, what they see, and what is freed once they go.
//!
//! # Design
//!
//! Time is counted in *epochs*: the number of snapshots taken so far, plus one. Whatever the writer makes is stamped
//! with the epoch it is made in. A snapshot taken at the end of epoch `e` sees what was made in epochs up to `e`; the
//! writer goes on in epoch `e + 1`. So one comparison with the newest live snapshot's epoch tells whether a thing may
//! be changed in place.
//!
//! ```text
//!   epoch   1         2         3   (now)
//!   ────────┬─────────┬─────────>
//!           S1        S2            live snapshots, each with a list of what it holds back
//!           │         │
//!           │         └ page X (made in 1, replaced in 3): S1 sees it, too
//!           └ page Y (made in 1, replaced in 2)
//!
//!   S2 goes: X passes to S1, which sees it.    S1 goes: X and Y are freed.
//! ```
//!
//! A node that the writer replaces or removes is *retired*: freed at once if no live snapshot sees it, else put on the
//! list of the newest one. A snapshot that goes passes its list on: nodes that the next older snapshot sees go to that
//! one, and the others are freed. (ZFS keeps its dead lists like this.) Memory that is freed so serves copies again:
//! see `free_list.rs`.
//!
//! # Why
//!
//! A node with a count for each child costs one atomic operation and one cache miss a child when it is copied, some 30
//! us for 500 children. Here copying a node copies its bytes. The price: nodes are freed by hand. And a thing is shared
//! or not by age, so a page that only a dead snapshot saw before a younger one was taken is copied once more than
//! needed.
//!
//! # Invariants
//!
//! 1. `newest` is the epoch of the newest live snapshot, or `Epoch::NONE`. It only changes under the lock.
//! 2. `live` holds every live snapshot once, in ascending order of epochs, and every epoch in it is below `now`.
//! 3. Nodes on a snapshot's lists were made in or before its epoch and retired after it, and no younger live snapshot
//!    sees them. Nodes on its `own` list are seen by no older snapshot, either.

#![allow(unsafe_code, reason = "retired nodes are freed by hand")]

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::epoch::Epoch;
use super::free_list::{Block, FreeLists};
use super::retire_list::{Reclaimed, RetireList, Retired};

/// The writer's view of time.
pub(super) struct Epochs {
    /// A cell, because a snapshot is taken through a shared reference.
    now: Cell<Epoch>,
    registry: Arc<Registry>,
}

/// Keeps everything that was made up to its epoch, for one snapshot. Dropping it ends the snapshot.
pub(super) struct SnapshotGuard {
    epoch: Epoch,
    /// The bytes of the snapshot itself.
    bytes: usize,
    registry: Arc<Registry>,
}

#[derive(Default)]
struct Registry {
    newest: AtomicU64,
    live: Mutex<VecDeque<LiveSnapshot>>,
    /// The bytes of all live snapshots, and of all nodes on their lists.
    pinned_bytes: AtomicUsize,
    /// The bytes of all sealed notes of the journal.
    notes_bytes: AtomicUsize,
    /// Memory of freed nodes.
    nodes: FreeLists,
    /// Memory of freed chunks of `chunk_bytes`.
    chunks: FreeLists,
    chunk_bytes: AtomicUsize,
}

/// Bytes of notes, counted as long as this lives.
pub(super) struct CountedNotes {
    bytes: usize,
    registry: Arc<Registry>,
}

impl Drop for CountedNotes {
    fn drop(&mut self) {
        self.registry.notes_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct LiveSnapshot {
    epoch: Epoch,
    /// Boxed, because the end of a snapshot moves the others that are in its way.
    retired: Box<Retirees>,
}

/// Nodes that the writer let go of and a snapshot still sees.
#[derive(Default)]
struct Retirees {
    /// Nodes that no older snapshot sees.
    own: RetireList,
    /// Nodes that an older snapshot may see.
    shared: RetireList,
}

impl Epochs {
    pub(super) fn new() -> Self {
        Self { now: Cell::new(Epoch::FIRST), registry: Arc::default() }
    }

    /// Returns the same time for a writer that is to take this one's place. Neither may take a snapshot until then.
    pub(super) fn fork(&self) -> Self {
        Self { now: self.now.clone(), registry: Arc::clone(&self.registry) }
    }

    /// Returns the epoch of things that are made now.
    pub(super) fn now(&self) -> Epoch {
        self.now.get()
    }

    /// Returns the epoch of the newest live snapshot, [`Epoch::NONE`] without one.
    #[inline]
    pub(super) fn newest_snapshot(&self) -> Epoch {
        // Pairs with the store in `SnapshotGuard::drop`: a snapshot that ended on another thread has read what the
        // writer overwrites then.
        Epoch::from_bits(self.registry.newest.load(Ordering::Acquire))
    }

    /// Returns `true` if a snapshot is alive.
    #[inline]
    pub(super) fn has_snapshots(&self) -> bool {
        self.newest_snapshot() > Epoch::NONE
    }

    /// Returns `true` if a live snapshot may see a thing that was made in epoch `birth`.
    #[inline]
    pub(super) fn is_seen(&self, birth: Epoch) -> bool {
        birth <= self.newest_snapshot()
    }

    /// Allocates memory for a node, which may be that of a freed one.
    pub(super) fn allocate_node(&self, layout: Layout) -> Block {
        self.registry.nodes.allocate(layout)
    }

    /// Allocates memory for a chunk, which may be that of a freed one.
    pub(super) fn allocate_chunk(&self, layout: Layout) -> Block {
        self.registry.chunks.allocate(layout)
    }

    /// Frees a node once no snapshot sees it. Allocates nothing.
    pub(super) fn retire(&self, node: Retired) {
        let birth = node.birth();
        if self.is_seen(birth) {
            let mut live = self.registry.lock();
            // The newest may have gone since; then an older one, if any, is the newest.
            let mut from_newest = live.iter_mut().rev();
            if let Some(newest) = from_newest.next().filter(|newest| birth <= newest.epoch) {
                self.registry.pinned_bytes.fetch_add(node.bytes(), Ordering::Relaxed);
                let is_shared = from_newest.next().is_some_and(|older| birth <= older.epoch);
                let Retirees { own, shared } = &mut *newest.retired;
                if is_shared {
                    shared.push(node)
                } else {
                    own.push(node)
                }
                return;
            }
        }
        // SAFETY: every live snapshot is of an epoch before the node's (invariants 1 and 2).
        drop(unsafe { node.reclaim() });
    }

    /// Sets how many bytes of freed nodes and chunks are kept for new ones from now on. Only chunks of the size of
    /// `chunk` are kept, because new ones have that.
    pub(super) fn set_free_limits(&self, nodes: usize, chunks: usize, chunk: Layout) {
        self.registry.nodes.set_limit(nodes);
        self.registry.chunks.set_limit(chunks);
        self.registry.chunk_bytes.store(chunk.size(), Ordering::Relaxed);
    }

    /// Gives at least so many bytes of the free lists to the allocator, or all there are.
    pub(super) fn release_free(&self, bytes: usize) {
        let left = bytes.saturating_sub(self.registry.chunks.free(bytes));
        self.registry.nodes.free(left);
    }

    /// Gives all bytes of the free lists to the allocator, and keeps none from now on.
    pub(super) fn release_all_free(&self) {
        self.set_free_limits(0, 0, Layout::new::<()>());
        self.release_free(usize::MAX);
    }

    /// Returns the bytes of the free lists.
    pub(super) fn free_bytes(&self) -> usize {
        self.registry.nodes.bytes() + self.registry.chunks.bytes()
    }

    /// Begins a snapshot of all there is, and a new epoch. The snapshot takes so many bytes itself, beside its guard.
    pub(super) fn freeze(&self, bytes: usize) -> SnapshotGuard {
        let epoch = self.now.get();
        let snapshot = LiveSnapshot { epoch, retired: Box::default() };
        let mut live = self.registry.lock();
        let enough = 2 * live.len() + 2;
        if enough < live.capacity() / 2 {
            // There were many more.
            live.shrink_to(enough);
        }
        live.push_back(snapshot);
        self.registry.newest.store(epoch.to_bits(), Ordering::Release);
        drop(live);
        self.now.set(epoch.next());
        let bytes = bytes + size_of::<Retirees>();
        self.registry.pinned_bytes.fetch_add(bytes, Ordering::Relaxed);
        SnapshotGuard { epoch, bytes, registry: Arc::clone(&self.registry) }
    }

    /// Returns the epoch of the oldest live snapshot.
    pub(super) fn oldest_snapshot(&self) -> Option<Epoch> {
        self.registry.lock().front().map(|oldest| oldest.epoch)
    }

    /// Returns `true` if a snapshot is alive whose epoch is one of these.
    pub(super) fn has_snapshot_in(&self, epochs: Range<Epoch>) -> bool {
        let live = self.registry.lock();
        let first = live.partition_point(|snapshot| snapshot.epoch < epochs.start);
        live.get(first).is_some_and(|snapshot| snapshot.epoch < epochs.end)
    }

    /// Returns the number of live snapshots.
    pub(super) fn snapshot_count(&self) -> usize {
        self.registry.lock().len()
    }

    /// Returns the bytes of live snapshots, and of nodes and chunks that only they see.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.registry.pinned_bytes.load(Ordering::Relaxed)
    }

    /// Counts the bytes of sealed notes, which snapshots may keep longer than the writer.
    pub(super) fn count_notes(&self, bytes: usize) -> CountedNotes {
        self.registry.notes_bytes.fetch_add(bytes, Ordering::Relaxed);
        CountedNotes { bytes, registry: Arc::clone(&self.registry) }
    }

    /// Returns the bytes of all sealed notes.
    pub(super) fn notes_bytes(&self) -> usize {
        self.registry.notes_bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes that are there without snapshots.
    pub(super) fn overhead_bytes(&self) -> usize {
        const ARC: usize = 2 * size_of::<usize>();
        ARC + size_of::<Registry>() + self.registry.lock().capacity() * size_of::<LiveSnapshot>()
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        // Snapshots may outlive the writer, and need no free lists. A writer that takes this one's place sets the
        // limits anew with its next snapshot.
        self.release_all_free();
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, VecDeque<LiveSnapshot>> {
        // Nothing runs under the lock that can panic halfway through a change.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the nodes that were born after `oldest`, the newest snapshot that can see any of them, and returns the
    /// others. Frees all nodes if there is no such snapshot.
    fn reclaim(&self, mut retired: RetireList, oldest: Option<Epoch>) -> RetireList {
        let mut seen = RetireList::default();
        while let Some(node) = retired.pop() {
            if oldest.is_some_and(|oldest| node.birth() <= oldest) {
                seen.push(node);
                continue;
            }
            // First, or its memory would be counted twice.
            self.pinned_bytes.fetch_sub(node.bytes(), Ordering::Relaxed);
            // SAFETY: the node was born after the last snapshot that could see it (invariant 3).
            let Reclaimed { node, chunk } = unsafe { node.reclaim() };
            if let Some(chunk) = chunk.filter(|it| it.bytes() == self.chunk_bytes.load(Ordering::Relaxed)) {
                self.chunks.give(chunk);
            }
            self.nodes.give(node);
        }
        seen
    }
}

impl SnapshotGuard {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns `true` if both are of snapshots of one store.
    pub(super) fn is_of_same_store(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.registry, &other.registry)
    }
}

impl Drop for SnapshotGuard {
    fn drop(&mut self) {
        let mut live = self.registry.lock();
        let place = live.partition_point(|live| live.epoch < self.epoch);
        let Some(LiveSnapshot { retired, .. }) = live.remove(place) else { return };
        let newest = live.back().map_or(Epoch::NONE, |newest| newest.epoch);
        self.registry.newest.store(newest.to_bits(), Ordering::Release);
        let Retirees { own, mut shared } = *retired;
        // Lists are sorted and nodes freed without the lock, so that the writer does not wait for it. Meanwhile nothing
        // is freed that an older snapshot sees. The older one may go, too; then the next older one is asked.
        while let Some(place) = live.partition_point(|live| live.epoch < self.epoch).checked_sub(1) {
            let older = &mut live[place];
            if shared.youngest() <= older.epoch {
                older.retired.shared.append(mem::take(&mut shared));
                break;
            }
            let oldest = older.epoch;
            drop(live);
            shared = self.registry.reclaim(shared, Some(oldest));
            live = self.registry.lock();
        }
        drop(live);
        self.registry.reclaim(own, None);
        self.registry.reclaim(shared, None);
        self.registry.pinned_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::node::{Contents, Node, node_bytes};
    use super::*;

    /// Counts how many of it are there.
    struct Counted(Arc<()>);

    impl Contents for Counted {}

    const BYTES: usize = node_bytes::<Counted>();

    /// Makes a node, and retires it as if it had been made in epoch `birth`.
    fn retire(epochs: &Epochs, birth: Epoch, counter: &Arc<()>) {
        Node::born_in(birth, Counted(Arc::clone(counter)), epochs).retire(epochs);
    }

    fn alive(counter: &Arc<()>) -> usize {
        let _ = Counted(Arc::clone(counter)).0;
        Arc::strong_count(counter) - 1
    }

    #[test]
    fn what_no_snapshot_sees_is_freed_at_once() {
        let counter = Arc::new(());
        let epochs = Epochs::new();
        retire(&epochs, epochs.now(), &counter);
        assert_eq!(alive(&counter), 0);
        let guard = epochs.freeze(0);
        retire(&epochs, epochs.now(), &counter);
        assert_eq!((alive(&counter), guard.epoch(), epochs.snapshot_count()), (0, Epoch::FIRST, 1));
    }

    #[test]
    fn garbage_goes_with_the_last_snapshot_that_sees_it() {
        let counter = Arc::new(());
        // In every order in which three snapshots can go.
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let epochs = Epochs::new();
            let mut guards = [const { None }; 3];
            for guard in &mut guards {
                *guard = Some(epochs.freeze(0));
            }
            // Made in epoch 1, 2 and 3: seen by all, by the last two, by the last.
            for birth in 1..=3 {
                retire(&epochs, Epoch::from_bits(birth), &counter);
            }
            let mut left: Vec<usize> = vec![0, 1, 2];
            for gone in order {
                drop(guards[gone].take());
                left.retain(|&guard| guard != gone);
                let seen = (1..=3).filter(|&birth| left.iter().any(|&guard| birth <= guard + 1)).count();
                assert_eq!(alive(&counter), seen, "{order:?} without {gone}");
                assert_eq!(epochs.pinned_bytes(), seen * BYTES + left.len() * size_of::<Retirees>());
                assert_eq!(epochs.newest_snapshot().to_bits(), left.last().map_or(0, |&guard| guard as u64 + 1));
            }
        }
    }

    #[test]
    fn snapshots_end_on_many_threads_at_once() {
        let counter = Arc::new(());
        let rounds = if cfg!(miri) { 3 } else { 300 };
        for _ in 0..rounds {
            let epochs = Epochs::new();
            let guards: Vec<_> = (0..7).map(|_| epochs.freeze(0)).collect();
            for birth in 1..=8 {
                for _ in 0..10 {
                    retire(&epochs, Epoch::from_bits(birth), &counter);
                }
            }
            assert_eq!(alive(&counter), 70);
            thread::scope(|scope| {
                for guard in guards {
                    scope.spawn(|| drop(guard));
                }
                // The writer goes on.
                for birth in 1..=8 {
                    retire(&epochs, Epoch::from_bits(birth), &counter);
                }
            });
            assert_eq!((alive(&counter), epochs.snapshot_count(), epochs.newest_snapshot()), (0, 0, Epoch::NONE));
        }
    }

    #[test]
    fn snapshot_guards_outlive_the_writer() {
        let counter = Arc::new(());
        let epochs = Epochs::new();
        let guard = epochs.freeze(0);
        retire(&epochs, Epoch::FIRST, &counter);
        drop(epochs);
        assert_eq!(alive(&counter), 1);
        drop(guard);
        assert_eq!(alive(&counter), 0);
    }
}
