//! A hash map alone: what a lookup costs where nobody wants order or snapshots.

use bytes::Bytes;
use hashbrown::HashMap;
use opstate::KeyBounds;

use super::Visitor;

#[derive(Default)]
pub(super) struct Map(HashMap<Box<[u8]>, Bytes, ahash::RandomState>);

impl super::Map for Map {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key).cloned()
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        match self.0.get_mut(key) {
            Some(old) => *old = value,
            None => drop(self.0.insert(key.into(), value)),
        }
    }

    fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    fn visit(&self, _: KeyBounds<'_>, f: Visitor<'_>) {
        // Only to count: it does not say that it can scan.
        let _ = self.0.iter().try_for_each(|(key, value)| f(key, value));
    }
}
