//! A persistent B+tree: a clone costs O(1), and nodes are copied when one of two that share them is written to.

use bytes::Bytes;
use imbl::OrdMap;
use opstate::{Entries, KeyBounds};

use super::{Frozen, Visitor, snapshot_of};

/// Keys are handles, because a node's keys are cloned when it is copied.
#[derive(Default)]
pub(super) struct Map(OrdMap<Bytes, Bytes>);

impl super::Map for Map {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key).cloned()
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        match self.0.get_mut(key) {
            Some(old) => *old = value,
            None => drop(self.0.insert(Bytes::copy_from_slice(key), value)),
        }
    }

    fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    fn visit(&self, range: KeyBounds<'_>, f: Visitor<'_>) {
        let _ = self.0.range::<_, [u8]>(range).try_for_each(|(key, value)| f(key, value));
    }

    fn scan<'a>(&'a self, range: KeyBounds<'_>) -> Entries<'a> {
        Box::new(self.0.range::<_, [u8]>(range).map(|(key, value)| (key.clone(), value.clone())))
    }

    fn freeze(&self) -> Option<Frozen> {
        let map = self.0.clone();
        Some(Box::new(move || snapshot_of(map.iter().map(|(key, value)| (key.clone(), value.clone())))))
    }
}
