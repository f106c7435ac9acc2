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
//! allocator. (This is how ZFS keeps its dead lists.) On its way there memory may be used again: see `spare.rs`. A list runs
//! through the nodes themselves, so that to let go of one cannot fail.
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
//! 3. What is on a snapshot's lists was made in or before its epoch and retired after it, and no younger live snapshot
//!    sees it. On its `own` list is what no older one sees, either.
//! 4. What a live snapshot sees is neither changed nor freed, but for the link in a node's header.
//! 5. A node is on one list at most, once it is retired, and then whoever has the list, by the lock or alone, has its link.

#![allow(unsafe_code, reason = "nodes are shared with snapshots by address; invariant 4 is what makes that sound")]

use std::alloc::Layout;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::spare::{Block, Spare};
use super::{prefetch, prefetch_all};

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
    /// What no older snapshot sees.
    own: List,
    /// What an older one may see.
    shared: List,
}

/// What every node starts with.
struct Header {
    born: Epoch,
    kind: &'static Kind,
    /// The next one on the list of what a snapshot holds back, once the node is retired. Who has the list has this; who reads
    /// the node does not look at it.
    next: UnsafeCell<Option<NonNull<Header>>>,
}

/// How a node of one type is let go of. The functions get a node of that type; what is dropped is not used again.
struct Kind {
    /// That of the node, header included.
    layout: Layout,
    /// The bytes that are kept with the node.
    bytes: unsafe fn(NonNull<Header>) -> usize,
    /// Drops what is in the node. What may serve again is given to the registry, if there is one.
    drop: unsafe fn(NonNull<Header>, Option<&Registry>),
}

/// Nodes linked through their headers, from the first to the last.
#[derive(Default)]
struct Chain(Option<(NonNull<Header>, NonNull<Header>)>);

// SAFETY: what is in a node is `Send` (see `Node::new`), and a chain has its nodes' links to itself (invariant 5).
unsafe impl Send for Chain {}

impl Chain {
    fn pop(&mut self) -> Option<NonNull<Header>> {
        let (first, last) = self.0.take()?;
        // SAFETY: the node is in this chain, which has its link (invariant 5).
        let next = unsafe { (*first.as_ref().next.get()).take() };
        self.0 = next.map(|next| (next, last));
        if let Some(next) = next {
            prefetch(next.as_ptr());
        }
        Some(first)
    }

    /// Puts the nodes of another chain in front.
    fn prepend(&mut self, other: Self) {
        let Some((first, last)) = other.0 else { return };
        let end = match self.0 {
            Some((own, end)) => {
                // SAFETY: the node is in the other chain, which had its link and is this one's now (invariant 5).
                unsafe { *last.as_ref().next.get() = Some(own) };
                end
            }
            None => last,
        };
        self.0 = Some((first, end));
    }
}

/// Retired nodes that snapshots still see. To let go of one allocates nothing. Dropping the list drops what is in the
/// nodes and frees them.
///
/// They are kept by address and not as boxes, which would claim to be the only way to what snapshots still read. They are
/// taken from several chains in turns: so the headers of the next ones, which are in no cache by then, come together.
#[derive(Default)]
struct List {
    chains: [Chain; 4],
    /// The chain that was pushed to last.
    turn: usize,
    /// No node was born later.
    youngest: Epoch,
}

impl List {
    fn push(&mut self, node: NonNull<Header>, born: Epoch) {
        self.youngest = self.youngest.max(born);
        self.turn = (self.turn + 1) % self.chains.len();
        self.chains[self.turn].prepend(Chain(Some((node, node))));
    }

    fn pop(&mut self) -> Option<NonNull<Header>> {
        let count = self.chains.len();
        (0..count).find_map(|_| {
            let node = self.chains[self.turn].pop();
            self.turn = (self.turn + count - 1) % count;
            node
        })
    }

    fn append(&mut self, mut other: Self) {
        self.youngest = self.youngest.max(other.youngest);
        for (chain, other) in self.chains.iter_mut().zip(&mut other.chains) {
            chain.prepend(mem::take(other));
        }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        while let Some(node) = self.pop() {
            // SAFETY: a node on a list was retired, and is off it now (invariant 5).
            drop(unsafe { empty(node, None) });
        }
    }
}

/// Drops what is in a node and returns the memory that it lay in. What may serve again is given to the registry, if there
/// is one.
///
/// # Safety
///
/// The node was retired, is on no list, and no snapshot sees it.
unsafe fn empty(node: NonNull<Header>, registry: Option<&Registry>) -> Block {
    // SAFETY: by the caller, the node is there.
    let kind = unsafe { node.as_ref() }.kind;
    // SAFETY: by the caller, nobody uses what is in it any more.
    unsafe { (kind.drop)(node, registry) };
    // SAFETY: `Node::new` asked for memory of this layout, which is nobody else's, and what was in it is dropped.
    unsafe { Block::from_raw(node.cast(), kind.layout) }
}

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

    /// Lets go of a node that is no longer part of the current version, once no snapshot sees it. Allocates nothing.
    ///
    /// # Safety
    ///
    /// The node is let go of once, and used only by snapshots from here on.
    unsafe fn keep(&self, node: NonNull<Header>) {
        // SAFETY: by the caller, it is there until it is freed here or on a list.
        let born = unsafe { node.as_ref() }.born;
        if self.is_seen(born) {
            let mut live = self.registry.lock();
            // The newest may have gone since; then an older one, if any, is the newest.
            let mut from_newest = live.iter_mut().rev();
            if let Some(newest) = from_newest.next().filter(|newest| born <= newest.epoch) {
                // SAFETY: the node is of its kind, and there.
                let bytes = unsafe { (node.as_ref().kind.bytes)(node) };
                self.registry.pinned_bytes.fetch_add(bytes, Ordering::Relaxed);
                let is_shared = from_newest.next().is_some_and(|older| born <= older.epoch);
                let list = if is_shared { &mut newest.shared } else { &mut newest.own };
                list.push(node, born);
                return;
            }
        }
        // SAFETY: by the caller, it was retired; it is on no list and no snapshot sees it.
        drop(unsafe { empty(node, None) });
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
        live.push(Live { epoch, own: List::default(), shared: List::default() });
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
        // Nothing runs under the lock that can panic halfway through a change.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what nobody sees any more, and returns the rest.
    fn free(&self, mut garbage: List, is_unseen: impl Fn(Epoch) -> bool) -> List {
        let mut seen = List::default();
        while let Some(node) = garbage.pop() {
            // SAFETY: a node on a list is there.
            let born = unsafe { node.as_ref() }.born;
            if is_unseen(born) {
                // SAFETY: the node is off its list, and no snapshot sees it.
                unsafe { self.recover(node) };
            } else {
                seen.push(node, born);
            }
        }
        seen
    }

    /// Drops a node that snapshots saw, so that its memory serves again, or is freed.
    ///
    /// # Safety
    ///
    /// As for [`empty`].
    unsafe fn recover(&self, node: NonNull<Header>) {
        // SAFETY: the node is of its kind, and there.
        let bytes = unsafe { (node.as_ref().kind.bytes)(node) };
        // First, or it would be counted twice.
        self.pinned_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // SAFETY: by the caller.
        self.nodes.give(unsafe { empty(node, Some(self)) });
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
        let Live { own, mut shared, .. } = live.remove(place);
        self.registry.newest.store(live.last().map_or(0, |newest| newest.epoch), Ordering::Release);
        // Lists are sorted and things freed without the lock, so that the writer does not wait for it. Meanwhile nothing is
        // freed that an older snapshot sees, and the older one may go, too; then the next older one is asked.
        while let Some(older) = live[..].iter_mut().rfind(|live| live.epoch < self.epoch) {
            if shared.youngest <= older.epoch {
                older.shared.append(mem::take(&mut shared));
                break;
            }
            let epoch = older.epoch;
            drop(live);
            shared = self.registry.free(shared, |born| born > epoch);
            live = self.registry.lock();
        }
        drop(live);
        self.registry.free(own, |_| true);
        self.registry.free(shared, |_| true);
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

#[repr(C)]
struct Stamped<T> {
    header: Header,
    thing: T,
}

/// What a node takes, its header included.
pub(super) const fn footprint<T>() -> usize {
    size_of::<Stamped<T>>()
}

// SAFETY: a node is a `T` at an address. Threads other than the writer's only ever read it (invariant 4), and it is
// dropped by whichever thread ends the last snapshot that sees it.
unsafe impl<T: Send + Sync> Send for Node<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Node<T> {}

impl Node<Block> {
    /// A node of which the memory of a chunk is kept, too.
    pub(super) fn of_chunk(chunk: Block, versions: &Versions) -> Self {
        /// # Safety
        ///
        /// This is a node of a chunk.
        unsafe fn bytes(node: NonNull<Header>) -> usize {
            // SAFETY: by the caller.
            unsafe { node.cast::<Stamped<Block>>().as_ref() }.thing.bytes()
        }
        /// # Safety
        ///
        /// This is a node of a chunk, and that is not used again.
        unsafe fn drop(node: NonNull<Header>, registry: Option<&Registry>) {
            // SAFETY: by the caller.
            let chunk = unsafe { (&raw mut (*node.cast::<Stamped<Block>>().as_ptr()).thing).read() };
            if let Some(registry) = registry.filter(|it| chunk.bytes() == it.chunk_bytes.load(Ordering::Relaxed)) {
                registry.chunks.give(chunk);
            }
        }
        let kind = const { &Kind { layout: Layout::new::<Stamped<Block>>(), bytes, drop } };
        Self::write(versions.registry.nodes.allocate(kind.layout), kind, chunk, versions)
    }
}

impl<T: Send + 'static> Node<T> {
    fn kind() -> &'static Kind {
        /// # Safety
        ///
        /// There is a node.
        unsafe fn bytes(node: NonNull<Header>) -> usize {
            // SAFETY: by the caller.
            unsafe { node.as_ref() }.kind.layout.size()
        }
        /// # Safety
        ///
        /// This is a node of a `T`, and that is not used again.
        unsafe fn drop<T>(node: NonNull<Header>, _: Option<&Registry>) {
            // A large value may come with a destructor of its user's. Were it to panic out of here, it would leave the store
            // halfway through a change, and in `clear` with values that are freed a second time.
            // SAFETY: by the caller, this is where it lies.
            let thing = unsafe { &raw mut (*node.cast::<Stamped<T>>().as_ptr()).thing };
            // SAFETY: by the caller, it is not used again.
            let dropped = catch_unwind(AssertUnwindSafe(|| unsafe { thing.drop_in_place() }));
            if let Err(payload) = dropped {
                // Whose destructor may panic as well.
                mem::forget(payload);
            }
        }
        const { &Kind { layout: Layout::new::<Stamped<T>>(), bytes, drop: drop::<T> } }
    }

    /// A node in this memory, which has the layout of its kind.
    fn write(memory: Block, kind: &'static Kind, thing: T, versions: &Versions) -> Self {
        let shared = memory.into_raw().cast::<Stamped<T>>();
        let header = Header { born: versions.now(), kind, next: UnsafeCell::new(None) };
        // SAFETY: it is memory of that layout, and nobody else's.
        unsafe { shared.write(Stamped { header, thing }) };
        Self { shared, owns: PhantomData }
    }

    pub(super) fn new(thing: T, versions: &Versions) -> Self {
        let kind = Self::kind();
        Self::write(versions.registry.nodes.allocate(kind.layout), kind, thing, versions)
    }

    /// A new node, if there is memory for it.
    fn try_new(thing: T, versions: &Versions) -> Option<Self> {
        let kind = Self::kind();
        Some(Self::write(versions.registry.nodes.try_allocate(kind.layout)?, kind, thing, versions))
    }

    /// The node's contents, to be changed: of a copy that takes this node's place, if a live snapshot sees it.
    pub(super) fn make_mut(&mut self, versions: &Versions) -> &mut T
    where
        T: Clone,
    {
        // SAFETY: nothing writes to the node while `self` is borrowed; see `get`.
        let Stamped { header, thing } = unsafe { self.shared.as_ref() };
        if versions.is_seen(header.born) {
            let copy = Self::new(thing.clone(), versions);
            mem::replace(self, copy).retire(versions);
        }
        // SAFETY: the node belongs to the current version alone, which is borrowed by `self`, and no live snapshot sees
        // it: it is a new copy, or `is_seen` said so, with acquire ordering after the last one that did.
        unsafe { &mut self.shared.as_mut().thing }
    }

    /// As [`make_mut`](Self::make_mut), if there is memory for a copy where one is needed.
    pub(super) fn try_make_mut(&mut self, versions: &Versions, clone: impl FnOnce(&T) -> Option<T>) -> Option<&mut T>
    where
        T: Clone,
    {
        // SAFETY: as in `make_mut`.
        let Stamped { header, thing } = unsafe { self.shared.as_ref() };
        if versions.is_seen(header.born) {
            let copy = Self::try_new(clone(thing)?, versions)?;
            mem::replace(self, copy).retire(versions);
        }
        Some(self.make_mut(versions))
    }

    /// Lets go of the node. It is dropped once no snapshot sees it. Allocates nothing.
    pub(super) fn retire(self, versions: &Versions) {
        // SAFETY: the current version, which alone owns the node, lets go of it, once.
        unsafe { versions.keep(self.shared.cast()) };
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
        unsafe { node.shared.as_mut() }.header.born = born;
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
        let kept = 8 * size + 2 * size_of::<Stamped<Block>>();
        versions.keep_spare(kept, 200, chunk(128));
        for round in 1..4 {
            // One has the layout that is asked for, and one no longer has.
            let chunks = [128, 64].map(|bytes| Node::of_chunk(versions.allocate_chunk(chunk(bytes)), &versions));
            let claim = versions.freeze();
            let mut before: Vec<_> = nodes.iter().map(place).collect();
            nodes.iter_mut().for_each(|node| *node.make_mut(&versions) += 1);
            chunks.into_iter().for_each(|chunk| chunk.retire(&versions));
            assert_eq!(versions.pinned_bytes(), 10 * size + 192);
            // From the second time on eight copies lie where nodes lay two rounds ago.
            assert_eq!(versions.spare_bytes(), 0);
            thread::spawn(move || drop(claim)).join().unwrap();
            assert_eq!((versions.pinned_bytes(), versions.spare_bytes()), (0, kept + 128));

            // What was let go of last is kept.
            before.drain(..2);
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
        versions.free_spare(kept - 7 * size + 128);
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
