//! Forwarding: every call through a pointer reaches the same method of the store, exactly once.

use std::collections::BTreeMap;
use std::iter;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use opstate::{Deleted, KeyBounds, Scan, StateError, StateSnapshot, StateStore};

type Calls = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// A store that only counts the calls of each method.
struct Counting(Calls);

impl Counting {
    fn count(&self, method: &'static str) {
        *self.0.lock().unwrap().entry(method).or_default() += 1;
    }
}

#[deny(clippy::missing_trait_methods)]
impl StateStore for Counting {
    fn get(&self, _: &[u8]) -> Option<Bytes> {
        self.count("get");
        None
    }
    fn put(&mut self, _: &[u8], _: &[u8]) -> Result<(), StateError> {
        self.count("put");
        Ok(())
    }
    fn delete(&mut self, _: &[u8]) -> Result<(), StateError> {
        self.count("delete");
        Ok(())
    }
    fn prefix_scan<'a>(&'a self, _: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        self.count("prefix_scan");
        Box::new(iter::empty())
    }
    fn range_scan<'a>(&'a self, _: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        self.count("range_scan");
        Box::new(iter::empty())
    }
    fn size_bytes(&self) -> usize {
        self.count("size_bytes");
        0
    }
    fn len(&self) -> usize {
        self.count("len");
        0
    }
    fn snapshot(&self) -> StateSnapshot {
        self.count("snapshot");
        StateSnapshot::from_iter(Vec::<(Bytes, Bytes)>::new())
    }
    fn restore(&mut self, _: StateSnapshot) {
        self.count("restore");
    }
    fn clear(&mut self) {
        self.count("clear");
    }
    fn contains(&self, _: &[u8]) -> bool {
        self.count("contains");
        false
    }
    fn is_empty(&self) -> bool {
        self.count("is_empty");
        true
    }
    fn flush(&mut self) -> Result<(), StateError> {
        self.count("flush");
        Ok(())
    }
    fn get_or_insert(&mut self, _: &[u8], _: &[u8]) -> Result<Bytes, StateError> {
        self.count("get_or_insert");
        Ok(Bytes::new())
    }
    fn read(&self, _: &[u8], _: &mut dyn FnMut(&[u8])) -> bool {
        self.count("read");
        false
    }
    fn modify(&mut self, _: &[u8], _: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        self.count("modify");
        Ok(false)
    }
    fn put_bytes(&mut self, _: &[u8], _: Bytes) -> Result<(), StateError> {
        self.count("put_bytes");
        Ok(())
    }
    fn try_get(&self, _: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.count("try_get");
        Ok(None)
    }
    fn take(&mut self, _: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.count("take");
        Ok(None)
    }
    fn delete_within(&mut self, _: KeyBounds<'_>, _: usize) -> Result<Deleted, StateError> {
        self.count("delete_within");
        Ok(Deleted::default())
    }
    fn entries(&self, _: KeyBounds<'_>) -> Scan<'_> {
        self.count("entries");
        Scan::new(iter::empty())
    }
    fn try_visit_range(
        &self,
        _: KeyBounds<'_>,
        _: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.count("try_visit_range");
        Ok(())
    }
    fn try_restore(&mut self, _: StateSnapshot) -> Result<(), StateError> {
        self.count("try_restore");
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.count("memory_bytes");
        0
    }
    fn try_read(&self, _: &[u8], _: &mut dyn FnMut(&[u8])) -> Result<bool, StateError> {
        self.count("try_read");
        Ok(false)
    }
    fn visit_range(&self, _: KeyBounds<'_>, _: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        self.count("visit_range");
    }
    fn put_many(&mut self, _: &[(&[u8], &[u8])]) -> Result<(), StateError> {
        self.count("put_many");
        Ok(())
    }
    fn get_many(&self, _: &[&[u8]], _: &mut Vec<Option<Bytes>>) {
        self.count("get_many");
    }
}

/// Calls every method once.
fn call_all<S: StateStore>(mut store: S) -> Result<(), StateError> {
    let (start, end): (&[u8], &[u8]) = (b"a", b"b");
    store.get(b"a");
    store.put(b"a", b"1")?;
    store.delete(b"a")?;
    drop(store.prefix_scan(b"a"));
    drop(store.range_scan(start..end));
    store.size_bytes();
    store.len();
    let snapshot = store.snapshot();
    store.restore(snapshot);
    store.clear();
    store.contains(b"a");
    store.is_empty();
    store.flush()?;
    store.get_or_insert(b"a", b"1")?;
    store.read(b"a", &mut |_| ());
    store.modify(b"a", &mut |_| ())?;
    store.put_bytes(b"a", Bytes::new())?;
    let bounds = (Bound::Unbounded, Bound::Unbounded);
    store.delete_within(bounds, 1)?;
    drop(store.entries(bounds));
    store.visit_range(bounds, &mut |_, _| ControlFlow::Continue(()));
    store.try_visit_range(bounds, &mut |_, _| ControlFlow::Continue(()))?;
    store.try_get(b"a")?;
    store.try_read(b"a", &mut |_| ())?;
    store.take(b"a")?;
    store.try_restore(StateSnapshot::default())?;
    store.memory_bytes();
    store.get_many(&[b"a"], &mut Vec::new());
    store.put_many(&[(b"a", b"1")])?;
    Ok(())
}

#[test]
fn pointers_forward_every_method_once() {
    /// Number of methods of the trait. Add a new method here and to `Counting`.
    const METHODS: usize = 28;

    let calls = Calls::default();
    let store = || Counting(Arc::clone(&calls));
    let pointers: [(&str, &dyn Fn() -> Result<(), StateError>); 7] = [
        ("the store itself", &|| call_all(store())),
        ("Box<S>", &|| call_all(Box::new(store()))),
        ("&mut S", &|| call_all(&mut store())),
        ("Box<dyn StateStore>", &|| call_all(Box::new(store()) as Box<dyn StateStore>)),
        ("&mut dyn StateStore", &|| call_all(&mut store() as &mut dyn StateStore)),
        ("Box<Box<dyn StateStore>>", &|| call_all(Box::new(Box::new(store()) as Box<dyn StateStore>))),
        ("&mut Box<&mut S>", &|| call_all(&mut Box::new(&mut store()))),
    ];
    for (name, call_all) in pointers {
        call_all().unwrap();
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        assert_eq!(calls.len(), METHODS, "{name}: {calls:?}");
        assert!(calls.values().all(|&count| count == 1), "{name}: {calls:?}");
    }
}
