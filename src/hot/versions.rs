//! Versions: which snapshots are alive, what they may see, and what waits for them to go.
//!
//! # Design
//!
//! Time is counted in *epochs*: the number of snapshots taken so far, plus one. Whatever the writer makes is stamped with
//! the epoch it is made in. A snapshot taken at the end of epoch `e` sees what was made in epochs up to `e`; the writer
//! goes on in epoch `e + 1`. So one comparison with the newest live snapshot's epoch tells whether a thing may be changed
//! where it lies.
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
//! What the writer replaces or removes is *retired*: freed at once if no live snapshot sees it, else put on the list of
//! the newest one. A snapshot that goes passes its list on: to the next older one what that one sees, the rest to the
//! allocator. (This is how ZFS keeps its dead lists.) On its way there memory may be used again: see `spare.rs`.
//!
//! # Why this and not reference counts
//!
//! A node with a count for each child costs one atomic operation and one cache miss a child when it is copied, some 30 us
//! for 500 children. Here copying a node copies its bytes. The price: nodes are freed by hand, and a thing is shared or
//! not by age, so a page that only a dead snapshot saw before a younger one was taken is copied once more than needed.
//!
//! # Invariants
//!
//! 1. `newest` is the epoch of the newest live snapshot, 0 without one; it only changes under the lock.
//! 2. `live` holds every live snapshot once, in ascending order of epochs, and every epoch in it is below `now`.
//! 3. Garbage on a snapshot's list was made in or before its epoch and retired after it, and no younger live snapshot
//!    sees it.
//! 4. What a live snapshot sees is neither changed nor freed.

#![allow(unsafe_code, reason = "nodes are shared with snapshots by address; invariant 4 is what makes that sound")]

use std::alloc::Layout;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::panic::catch_unwind;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::prefetch_all;
use super::spare::{Block, Spare};

/// A point in a store's time: 1 before its first snapshot, and one more after each.
pub(super) type Epoch = u64;

/// The writer's view of time.
pub(super) struct Versions {
    /// A cell, because a snapshot is taken through a shared reference.
    now: Cell<Epoch>,
    registry: Arc<Registry>,
}

/// A live snapshot's claim on everything made up to its epoch. Dropping it ends the snapshot.
pub(super) struct Claim {
    epoch: Epoch,
    registry: Arc<Registry>,
}

#[derive(Default)]
struct Registry {
    newest: AtomicU64,
    live: Mutex<Vec<Live>>,
    /// The bytes of all garbage.
    pinned_bytes: AtomicUsize,
    /// The memory of dead nodes, and that of dead chunks, if they have so many bytes.
    nodes: Spare,
    chunks: Spare,
    chunk_bytes: AtomicUsize,
}

struct Live {
    epoch: Epoch,
    garbage: List,
}

/// Garbage in blocks, none of which is ever moved to make room: a vector of all would stop the writer for milliseconds
/// when it grows.
#[derive(Default)]
struct List(Vec<Vec<Garbage>>);

impl List {
    const BLOCK: usize = if cfg!(test) { 3 } else { 512 };

    fn push(&mut self, garbage: Garbage) {
        match self.0.last_mut().filter(|block| block.len() < Self::BLOCK) {
            Some(block) => block.push(garbage),
            None => {
                let mut block = Vec::with_capacity(Self::BLOCK);
                block.push(garbage);
                self.0.push(block);
            }
        }
    }

    /// Joins two lists by moving the blocks of the shorter one.
    fn append(&mut self, mut other: Self) {
        if other.0.len() > self.0.len() {
            mem::swap(self, &mut other);
        }
        // The last one is the one that is filled.
        self.0.splice(0..0, other.0);
    }
}

/// A thing that is only kept for the snapshots that see it. Dropping it drops the thing.
///
/// It is kept by address and not as a `Box`, which would claim to be the only way to what snapshots still read.
struct Garbage {
    born: Epoch,
    /// Until it is dropped.
    memory: Option<Block>,
    /// Drops the node that lies at the address and leaves the memory; a chunk has nothing to drop.
    drop: Option<unsafe fn(NonNull<u8>)>,
}

impl Garbage {
    /// # Safety
    ///
    /// A `T` lies at `node`, in memory that was allocated with the layout of one; neither is freed otherwise.
    unsafe fn node<T: Send + 'static>(born: Epoch, node: NonNull<T>) -> Self {
        /// # Safety
        ///
        /// A `T` lies at the address, and is not used again.
        unsafe fn drop<T>(node: NonNull<u8>) {
            // A large value may come with a destructor of its user's. Were it to panic out of here, it would leave the store
            // halfway through a change, and in `clear` with values that are freed a second time.
            // SAFETY: the caller's promise.
            let dropped = catch_unwind(|| unsafe { node.cast::<T>().drop_in_place() });
            if let Err(payload) = dropped {
                // Whose destructor may panic as well.
                mem::forget(payload);
            }
        }
        // SAFETY: by the caller; what is in the memory is dropped before it is used for anything else.
        let memory = unsafe { Block::from_raw(node.cast(), Layout::new::<T>()) };
        Self { born, memory: Some(memory), drop: Some(drop::<T>) }
    }

    fn chunk(born: Epoch, memory: Block) -> Self {
        Self { born, memory: Some(memory), drop: None }
    }

    fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, Block::bytes)
    }

    /// Drops the thing and returns the memory that it lay in, once.
    fn empty(&mut self) -> Option<Block> {
        let memory = self.memory.take()?;
        if let Some(drop) = self.drop {
            // SAFETY: by `node`, and once, because the memory is taken.
            unsafe { drop(memory.start()) };
        }
        Some(memory)
    }
}

impl Drop for Garbage {
    fn drop(&mut self) {
        self.empty();
    }
}

// SAFETY: a node is `Send` (see `node`), and nothing but its destructor is reached through the address; a chunk is bytes.
unsafe impl Send for Garbage {}

impl Versions {
    pub(super) fn new() -> Self {
        let registry = Registry::default();
        Self { now: Cell::new(1), registry: Arc::new(registry) }
    }

    /// The same time for another writer, as long as neither begins a snapshot: for one that is to take the first one's place.
    pub(super) fn fork(&self) -> Self {
        Self { now: self.now.clone(), registry: Arc::clone(&self.registry) }
    }

    /// The epoch that things made now belong to.
    pub(super) fn now(&self) -> Epoch {
        self.now.get()
    }

    /// The epoch of the newest live snapshot, 0 without one.
    #[inline]
    pub(super) fn newest_live(&self) -> Epoch {
        // Pairs with the store in `Claim::drop`: what a snapshot on another thread read before it ended happens before
        // what the writer then overwrites.
        self.registry.newest.load(Ordering::Acquire)
    }

    /// Whether a live snapshot may see what was made in epoch `born`.
    #[inline]
    pub(super) fn is_seen(&self, born: Epoch) -> bool {
        born <= self.newest_live()
    }

    /// Memory for a new chunk: that of a dead one, if there is one of this layout.
    pub(super) fn allocate_chunk(&self, layout: Layout) -> Block {
        self.registry.chunks.allocate(layout)
    }

    /// Lets go of a chunk, made in epoch `born` and no longer part of the current version, once no snapshot sees it.
    pub(super) fn retire_chunk(&self, born: Epoch, memory: Block) {
        self.keep(Garbage::chunk(born, memory));
    }

    fn keep(&self, garbage: Garbage) {
        if self.is_seen(garbage.born) {
            let mut live = self.registry.lock();
            // The newest may have gone since; then an older one, if any, is the newest.
            if let Some(newest) = live.last_mut().filter(|newest| garbage.born <= newest.epoch) {
                self.registry.pinned_bytes.fetch_add(garbage.bytes(), Ordering::Relaxed);
                newest.garbage.push(garbage);
            }
        }
    }

    /// From now on keeps what only snapshots saw for new nodes and chunks, up to so many bytes of each. Of chunks only those
    /// of this layout, which are the ones that new ones have.
    pub(super) fn keep_spare(&self, nodes: usize, chunks: usize, chunk: Layout) {
        self.registry.nodes.set_limit(nodes);
        self.registry.chunks.set_limit(chunks);
        self.registry.chunk_bytes.store(chunk.size(), Ordering::Relaxed);
    }

    /// Frees so many bytes of that, or all there are.
    pub(super) fn free_spare(&self, bytes: usize) {
        let left = bytes.saturating_sub(self.registry.chunks.free(bytes));
        self.registry.nodes.free(left);
    }

    /// Frees all of that, and keeps none from now on.
    pub(super) fn stop_sparing(&self) {
        self.keep_spare(0, 0, Layout::new::<()>());
        self.free_spare(usize::MAX);
    }

    /// The bytes of that.
    pub(super) fn spare_bytes(&self) -> usize {
        self.registry.nodes.bytes() + self.registry.chunks.bytes()
    }

    /// Begins a snapshot of all there is, and a new epoch.
    pub(super) fn freeze(&self) -> Claim {
        let epoch = self.now.get();
        let mut live = self.registry.lock();
        live.push(Live { epoch, garbage: List::default() });
        self.registry.newest.store(epoch, Ordering::Release);
        drop(live);
        self.now.set(epoch + 1);
        Claim { epoch, registry: Arc::clone(&self.registry) }
    }

    /// The epoch of the oldest live snapshot.
    pub(super) fn oldest_live(&self) -> Option<Epoch> {
        self.registry.lock().first().map(|oldest| oldest.epoch)
    }

    /// How many snapshots are alive.
    pub(super) fn live(&self) -> usize {
        self.registry.lock().len()
    }

    /// The bytes of what only snapshots see.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.registry.pinned_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Versions {
    fn drop(&mut self) {
        // Snapshots may outlive the writer. Where another one goes on in its place, that one's next snapshot starts it again.
        self.stop_sparing();
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Vec<Live>> {
        // Nothing that can panic runs under the lock.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what nobody sees any more.
    fn free(&self, garbage: &mut List, is_unseen: impl Fn(&Garbage) -> bool) {
        garbage.0.retain_mut(|block| {
            block.retain_mut(|garbage| {
                let is_unseen = is_unseen(garbage);
                if is_unseen {
                    // First, or it would be counted twice.
                    self.pinned_bytes.fetch_sub(garbage.bytes(), Ordering::Relaxed);
                    self.recover(garbage);
                }
                !is_unseen
            });
            !block.is_empty()
        });
    }

    /// Drops a thing that snapshots saw, so that the memory that it lay in serves again, or is freed.
    fn recover(&self, garbage: &mut Garbage) {
        let Some(memory) = garbage.empty() else { return };
        if garbage.drop.is_some() {
            self.nodes.give(memory);
        } else if memory.bytes() == self.chunk_bytes.load(Ordering::Relaxed) {
            self.chunks.give(memory);
        }
    }
}

impl Claim {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether both are on versions of one store.
    pub(super) fn is_of_same_store(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.registry, &other.registry)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut live = self.registry.lock();
        let Ok(place) = live.binary_search_by_key(&self.epoch, |live| live.epoch) else { return };
        let Live { mut garbage, .. } = live.remove(place);
        self.registry.newest.store(live.last().map_or(0, |newest| newest.epoch), Ordering::Release);
        // Lists are sorted and things freed without the lock, so that the writer does not wait for it. Meanwhile nothing is
        // freed that an older snapshot sees, and the older one may go, too; then the next older one is asked.
        let mut sorted_for = None;
        while let Some(older) = live[..].iter_mut().rfind(|live| live.epoch < self.epoch) {
            if sorted_for == Some(older.epoch) {
                older.garbage.append(mem::take(&mut garbage));
                break;
            }
            let epoch = older.epoch;
            drop(live);
            self.registry.free(&mut garbage, |garbage| garbage.born > epoch);
            sorted_for = Some(epoch);
            live = self.registry.lock();
        }
        drop(live);
        self.registry.free(&mut garbage, |_| true);
    }
}

/// A node of a copy-on-write structure, owned by the version of the structure that the writer goes on with.
///
/// Copying a node's parent copies the address. So a `Node` has no destructor: it is freed by [`retire`](Self::retire),
/// once, when the current version lets go of it.
pub(super) struct Node<T> {
    shared: NonNull<Stamped<T>>,
    owns: PhantomData<T>,
}

struct Stamped<T> {
    born: Epoch,
    thing: T,
}

// SAFETY: a node is a `T` at an address. Threads other than the writer's only ever read it (invariant 4), and it is
// dropped by whichever thread ends the last snapshot that sees it.
unsafe impl<T: Send + Sync> Send for Node<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Node<T> {}

impl<T: Send + 'static> Node<T> {
    pub(super) fn new(thing: T, versions: &Versions) -> Self {
        let shared = versions.registry.nodes.allocate(Layout::new::<Stamped<T>>()).into_raw().cast::<Stamped<T>>();
        // SAFETY: it is memory of that layout, and nobody else's.
        unsafe { shared.write(Stamped { born: versions.now(), thing }) };
        Self { shared, owns: PhantomData }
    }

    /// The node's contents, to be changed: of a copy that takes this node's place, if a live snapshot sees it.
    pub(super) fn make_mut(&mut self, versions: &Versions) -> &mut T
    where
        T: Clone,
    {
        // SAFETY: nothing writes to the node while `self` is borrowed; see `get`.
        let Stamped { born, thing } = unsafe { self.shared.as_ref() };
        if versions.is_seen(*born) {
            let copy = Self::new(thing.clone(), versions);
            mem::replace(self, copy).retire(versions);
        }
        // SAFETY: the node belongs to the current version alone, which is borrowed by `self`, and no live snapshot sees
        // it: it is a new copy, or `is_seen` said so, with acquire ordering after the last one that did.
        unsafe { &mut self.shared.as_mut().thing }
    }

    /// Lets go of the node. It is dropped once no snapshot sees it.
    pub(super) fn retire(self, versions: &Versions) {
        // SAFETY: nothing writes to the node any more; see `get`.
        let born = unsafe { self.shared.as_ref() }.born;
        // SAFETY: the node lies in memory that `new` asked for, and the current version, which alone owns it, lets go of it
        // once.
        versions.keep(unsafe { Garbage::node(born, self.shared) });
    }
}

impl<T> Node<T> {
    /// The same node, for a copy of its parent or for a snapshot's view of the structure.
    pub(super) fn alias(&self) -> Self {
        Self { shared: self.shared, owns: PhantomData }
    }

    /// Whether both are the same node, at a time when neither version is gone.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        self.shared == other.shared
    }

    /// Asks for all the memory that the node takes itself, because it is read soon.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch_all(self.shared.as_ptr().cast(), size_of::<Stamped<T>>());
    }

    pub(super) fn get(&self) -> &T {
        // SAFETY: whoever holds a node holds it as part of the current version, which has not retired it, or as part of
        // the view of a live snapshot that sees it (invariant 4).
        unsafe { &self.shared.as_ref().thing }
    }
}

impl<T: fmt::Debug> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::{ptr, thread};

    use super::*;

    /// Counts how many of it are there.
    struct Counted(Arc<()>);

    const BYTES: usize = size_of::<Stamped<Counted>>();

    /// Makes a node, and retires it as if that had been in epoch `born`.
    fn retire(versions: &Versions, born: Epoch, counter: &Arc<()>) {
        let mut node = Node::new(Counted(Arc::clone(counter)), versions);
        // SAFETY: nobody else has the node.
        unsafe { node.shared.as_mut() }.born = born;
        node.retire(versions);
    }

    fn alive(counter: &Arc<()>) -> usize {
        let _ = Counted(Arc::clone(counter)).0;
        Arc::strong_count(counter) - 1
    }

    #[test]
    fn what_no_snapshot_sees_is_freed_at_once() {
        let counter = Arc::new(());
        let versions = Versions::new();
        retire(&versions, versions.now(), &counter);
        assert_eq!(alive(&counter), 0);
        let claim = versions.freeze();
        retire(&versions, versions.now(), &counter);
        assert_eq!((alive(&counter), claim.epoch(), versions.live()), (0, 1, 1));
    }

    #[test]
    fn garbage_goes_with_the_last_snapshot_that_sees_it() {
        let counter = Arc::new(());
        // In every order in which three snapshots can go.
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let versions = Versions::new();
            let mut claims = [const { None }; 3];
            for claim in &mut claims {
                *claim = Some(versions.freeze());
            }
            // Made in epoch 1, 2 and 3: seen by all, by the last two, by the last.
            for born in 1..=3 {
                retire(&versions, born, &counter);
            }
            let mut left: Vec<usize> = vec![0, 1, 2];
            for gone in order {
                drop(claims[gone].take());
                left.retain(|&claim| claim != gone);
                let seen = (1..=3).filter(|&born| left.iter().any(|&claim| born <= claim + 1)).count();
                assert_eq!(alive(&counter), seen, "{order:?} without {gone}");
                assert_eq!(versions.pinned_bytes(), seen * BYTES);
                assert_eq!(versions.newest_live(), left.last().map_or(0, |&claim| claim as u64 + 1));
            }
        }
    }

    #[test]
    fn a_node_is_copied_only_while_it_is_seen() {
        let versions = Versions::new();
        let mut node = Node::new(1, &versions);
        let place = node.get() as *const i32;
        *node.make_mut(&versions) = 2;
        assert_eq!(node.get() as *const i32, place);

        let view = node.alias();
        let claim = versions.freeze();
        *node.make_mut(&versions) = 3;
        assert_eq!((*view.get(), *node.get()), (2, 3));
        let copy = node.get() as *const i32;
        *node.make_mut(&versions) = 4;
        assert_eq!((*view.get(), *node.get(), node.get() as *const i32), (2, 4, copy));
        drop(claim);
        node.retire(&versions);
    }

    #[test]
    fn a_snapshot_is_read_and_ended_on_another_thread() {
        let versions = Versions::new();
        let mut node = Node::new(vec![0; 100], &versions);
        let rounds = if cfg!(miri) { 5 } else { 500 };
        for round in 1..rounds {
            let (view, claim) = (node.alias(), versions.freeze());
            let reader = thread::spawn(move || {
                assert!(view.get().iter().all(|&number| number == round - 1));
                drop(claim);
            });
            for number in node.make_mut(&versions) {
                *number = round;
            }
            reader.join().unwrap();
        }
        node.retire(&versions);
    }

    #[test]
    fn snapshots_end_on_many_threads_at_once() {
        let counter = Arc::new(());
        let rounds = if cfg!(miri) { 3 } else { 300 };
        for _ in 0..rounds {
            let versions = Versions::new();
            let claims: Vec<_> = (0..7).map(|_| versions.freeze()).collect();
            for born in 1..=8 {
                for _ in 0..10 {
                    retire(&versions, born, &counter);
                }
            }
            assert_eq!(alive(&counter), 70);
            thread::scope(|scope| {
                for claim in claims {
                    scope.spawn(|| drop(claim));
                }
                // The writer goes on.
                for born in 1..=8 {
                    retire(&versions, born, &counter);
                }
            });
            assert_eq!((alive(&counter), versions.live(), versions.newest_live()), (0, 0, 0));
        }
    }

    #[test]
    fn memory_that_comes_back_elsewhere_serves_again() {
        let versions = Versions::new();
        let chunk = |bytes| Layout::from_size_align(bytes, 64).unwrap();
        let mut nodes: Vec<_> = (0..10_u64).map(|number| Node::new(number, &versions)).collect();
        let place = |node: &Node<u64>| ptr::from_ref(node.get()).addr();
        let size = size_of::<Stamped<u64>>();
        versions.keep_spare(8 * size, 200, chunk(128));
        for round in 1..4 {
            let claim = versions.freeze();
            let mut before: Vec<_> = nodes.iter().map(place).collect();
            nodes.iter_mut().for_each(|node| *node.make_mut(&versions) += 1);
            versions.retire_chunk(claim.epoch(), versions.allocate_chunk(chunk(128)));
            // Which is no longer what is asked for.
            versions.retire_chunk(claim.epoch(), versions.allocate_chunk(chunk(64)));
            assert_eq!(versions.pinned_bytes(), 10 * size + 192);
            // From the second time on eight copies lie where nodes lay two rounds ago.
            assert_eq!(versions.spare_bytes(), 0);
            thread::spawn(move || drop(claim)).join().unwrap();
            assert_eq!((versions.pinned_bytes(), versions.spare_bytes()), (0, 8 * size + 128));

            before.truncate(8);
            let claim = versions.freeze();
            nodes[..8].iter_mut().for_each(|node| *node.make_mut(&versions) += 1);
            let mut after: Vec<_> = nodes[..8].iter().map(place).collect();
            before.sort_unstable();
            after.sort_unstable();
            assert_eq!(after, before);
            drop(claim);
            assert!(
                nodes
                    .iter()
                    .enumerate()
                    .all(|(at, node)| *node.get() == at as u64 + round * 2 - u64::from(at > 7) * round)
            );
        }
        versions.free_spare(size + 128);
        assert_eq!(versions.spare_bytes(), 7 * size);
        versions.stop_sparing();
        assert_eq!(versions.spare_bytes(), 0);
        nodes.into_iter().for_each(|node| node.retire(&versions));
        assert_eq!(versions.spare_bytes(), 0);
    }

    #[test]
    fn claims_outlive_the_writer() {
        let counter = Arc::new(());
        let versions = Versions::new();
        let claim = versions.freeze();
        retire(&versions, 1, &counter);
        drop(versions);
        assert_eq!(alive(&counter), 1);
        drop(claim);
        assert_eq!(alive(&counter), 0);
    }
}
