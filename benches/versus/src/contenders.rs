//! Alternatives that users might choose: other maps and embedded stores, each used as its documentation advises.

mod fjall;
mod hashbrown;
mod imbl;
mod redb;
mod skiplist;

use std::ops::{Bound, ControlFlow, Range};

use bytes::Bytes;
use opstate::{Deleted, Entries, KeyBounds, StateError, StateSnapshot, StateStore, check_entry_len};

use crate::common::contender::{Bench, Can, Frozen, GLUED, HOT, IN_MEMORY, Kind};

/// All contenders. The first is the baseline.
pub(crate) const ALL: &[Kind] = &[
    GLUED,
    HOT,
    IN_MEMORY,
    kind("imbl", Can::ONE_BY_ONE, || adapted::<imbl::Map>()),
    kind("hashbrown", Can { scan: false, snapshot: false, batch: false }, || adapted::<hashbrown::Map>()),
    kind("skiplist", Can { snapshot: false, ..Can::ONE_BY_ONE }, || adapted::<skiplist::Map>()),
    kind("redb", Can::ONE_BY_ONE, || adapted::<redb::Map>()),
    kind("fjall", Can::ONE_BY_ONE, || adapted::<fjall::Map>()),
];

const fn kind(name: &'static str, can: Can, make: fn() -> Box<dyn Bench>) -> Kind {
    Kind { name, can, make }
}

fn adapted<M: Map + 'static>() -> Box<dyn Bench> {
    Box::new(Adapted::<M>(M::default()))
}

/// A callback for each key and value of a visit.
type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// The operations that a contender implements. A failing medium ends the benchmark.
trait Map: Default + Send {
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    fn insert(&mut self, key: &[u8], value: &[u8]);

    fn remove(&mut self, key: &[u8]);

    /// Calls `f` with the entries within the bounds, in order if the map has one. The bounds must not be inverted.
    fn visit(&self, range: KeyBounds<'_>, f: Visitor<'_>);

    /// Returns the entries within the bounds as handles. The scan is lazy if the borrow checker can see that the map
    /// outlives it.
    fn scan<'a>(&'a self, range: KeyBounds<'_>) -> Entries<'a> {
        let mut entries = Vec::new();
        self.visit(range, &mut |key, value| {
            entries.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        });
        Box::new(entries.into_iter())
    }

    /// See [`Bench::freeze`].
    fn freeze(&self) -> Option<Frozen> {
        None
    }
}

/// Returns a snapshot of entries that are sorted by key.
fn snapshot_of(entries: impl Iterator<Item = (Bytes, Bytes)>) -> StateSnapshot {
    StateSnapshot::from_sorted(entries).expect("scans are in order")
}

/// A [`Map`] as a store. Calls for its size count the entries, so no benchmark makes them while it measures.
struct Adapted<M>(M);

impl<M: Map> Adapted<M> {
    fn sizes(&self) -> (usize, usize) {
        let (mut len, mut size_bytes) = (0, 0);
        self.0.visit((Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
            len += 1;
            size_bytes += key.len() + value.len();
            ControlFlow::Continue(())
        });
        (len, size_bytes)
    }
}

impl<M: Map> StateStore for Adapted<M> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        check_entry_len(key, value)?;
        self.0.insert(key, value);
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.0.remove(key);
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
        // Find the first key after all keys with the prefix.
        let mut end = prefix.to_vec();
        while end.pop_if(|last| *last == 0xFF).is_some() {}
        match end.last_mut() {
            Some(last) => {
                *last += 1;
                self.0.scan((Bound::Included(prefix), Bound::Excluded(&end)))
            }
            None => self.0.scan((Bound::Included(prefix), Bound::Unbounded)),
        }
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
        // Maps panic if the range is inverted.
        let end = range.end.max(range.start);
        self.0.scan((Bound::Included(range.start), Bound::Excluded(end)))
    }

    fn size_bytes(&self) -> usize {
        self.sizes().1
    }

    fn len(&self) -> usize {
        self.sizes().0
    }

    fn snapshot(&self) -> StateSnapshot {
        snapshot_of(self.0.scan((Bound::Unbounded, Bound::Unbounded)))
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        self.clear();
        for (key, value) in snapshot.iter() {
            self.0.insert(&key, &value);
        }
    }

    fn clear(&mut self) {
        self.0 = M::default();
    }

    fn visit_range(&self, range: KeyBounds<'_>, f: Visitor<'_>) {
        self.0.visit(range, f);
    }

    // The provided body scans in batches, and some of these maps scan the whole range for each batch.
    fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
        let (mut keys, mut is_done) = (Vec::new(), true);
        self.0.visit(bounds, &mut |key, _| {
            is_done = keys.len() < limit;
            if !is_done {
                return ControlFlow::Break(());
            }
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        });
        keys.iter().for_each(|key| self.0.remove(key));
        Ok(Deleted { count: keys.len(), is_done })
    }
}

impl<M: Map> Bench for Adapted<M> {
    fn freeze(&self) -> Frozen {
        self.0.freeze().unwrap_or_else(|| {
            let snapshot = self.snapshot();
            Box::new(|| snapshot)
        })
    }
}
