//! Failures in the middle of an operation: in a closure, an iterator, a destructor, a reader, a writer or an
//! allocation. Each call that can fail does so in turn, until the operation succeeds. The store must then be as before
//! or as after the operation, still work, and leak nothing.

use std::cell::Cell;
use std::collections::BTreeMap;

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use opstate::{
    GroupedImage, HotStore, ImageInfo, ImageOptions, InMemoryStore, KeyGroups, StateError, StateSnapshot, StateStore,
    StateStoreExt, UnverifiedImage,
};

use crate::support::allocator::allocated_by;

mod closures;
mod destructors;
#[cfg(alloc_error_hook)]
mod failing_allocations;
mod readers_and_writers;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A counter of calls that makes one of them fail.
struct Fuse(Cell<Option<usize>>);

impl Fuse {
    /// Creates a fuse that fails after `calls` successful calls.
    fn after(calls: usize) -> Self {
        Self(Cell::new(Some(calls)))
    }

    fn off() -> Self {
        Self(Cell::new(None))
    }

    fn is_blown(&self) -> bool {
        match self.0.get() {
            Some(0) => {
                self.0.set(None);
                true
            }
            left => {
                self.0.set(left.map(|left| left - 1));
                false
            }
        }
    }

    /// Panics if it is this call's turn, without printing a message.
    fn tick(&self) {
        if self.is_blown() {
            resume_unwind(Box::new(Blown));
        }
    }
}

#[derive(Debug)]
struct Blown;

fn contents(store: &dyn StateStore) -> Model {
    store.prefix_scan(b"").map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Checks that the store holds the model and that its operations work.
fn assert_works(store: &mut dyn StateStore, model: &Model) {
    let size = |model: &Model| model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    assert_eq!(&contents(store), model);
    assert_eq!((store.len(), store.size_bytes()), (model.len(), size(model)));
    for (key, value) in model {
        assert_eq!(store.get(key).as_deref(), Some(&value[..]));
    }
    let before = store.snapshot();
    assert_eq!(before, StateSnapshot::from_sorted(model.clone()).unwrap());
    let mut changed = Model::new();
    for (i, key) in model.keys().enumerate() {
        match i % 3 {
            0 => store.delete(key).unwrap(),
            1 => changed.extend([(key.clone(), vec![1; 900])]),
            _ => changed.extend([(key.clone(), Vec::new())]),
        }
    }
    changed.extend((0..200_u8).map(|i| (vec![b'n', i], vec![i; i.into()])));
    changed.iter().for_each(|(key, value)| store.put(key, value).unwrap());
    assert_eq!(contents(store), changed);
    assert_eq!((store.len(), store.size_bytes()), (changed.len(), size(&changed)));
    let delta = store.snapshot().delta_since(&before);
    store.restore(before.clone());
    assert_eq!(store.snapshot(), before);
    store.apply(&delta).unwrap();
    assert_eq!(contents(store), changed);
    store.clear();
    assert_eq!((store.len(), store.size_bytes()), (0, 0));
}

/// Returns values inside and outside of records, of every type that the operations use.
fn model() -> Model {
    let bytes = (0..40_u8).map(|i| (vec![b'b', i], vec![i; if i % 4 == 0 { 700 } else { i.into() }]));
    bytes.chain([(b"number".to_vec(), 7_u64.to_le_bytes().to_vec())]).collect()
}

fn fill(store: &mut dyn StateStore) {
    model().iter().for_each(|(key, value)| store.put(key, value).unwrap());
}

const ALL: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);
const OPTIONS: fn() -> ImageOptions = || ImageOptions::new().segment_bytes(300);

/// Returns constructors of each kind of store.
fn stores() -> [(&'static str, fn() -> Box<dyn StateStore>); 3] {
    [
        ("InMemoryStore", || Box::new(InMemoryStore::new())),
        ("HotStore", || Box::new(HotStore::new())),
        ("HotStore of tiny chunks", || Box::new(HotStore::builder().chunk_bytes(64, 256).build())),
    ]
}
