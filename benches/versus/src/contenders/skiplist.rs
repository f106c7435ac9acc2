//! A lock-free skip list: many threads may write to it, and pay for that when there is one.

use std::ops::Bound;

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use opstate::{Entries, KeyBounds};

use super::Visitor;

#[derive(Default)]
pub(super) struct Map(SkipMap<Bytes, Bytes>);

impl super::Map for Map {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key).map(|entry| entry.value().clone())
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    }

    fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    fn visit(&self, range: KeyBounds<'_>, f: Visitor<'_>) {
        let _ = self.0.range::<[u8], _>(range).try_for_each(|entry| f(entry.key(), entry.value()));
    }

    fn scan<'a>(&'a self, (start, end): KeyBounds<'_>) -> Entries<'a> {
        let owned = |bound: Bound<&[u8]>| bound.map(Bytes::copy_from_slice);
        let entries = self.0.range::<Bytes, _>((owned(start), owned(end)));
        Box::new(entries.map(|entry| (entry.key().clone(), entry.value().clone())))
    }
}
