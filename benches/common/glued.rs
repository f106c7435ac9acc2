//! A hash map for the values glued to a sorted set for the order. Many operators keep their state this way.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow, Range};

use ahash::AHashMap;
use bytes::Bytes;
use opstate::{Deleted, Entries, KeyBounds, StateError, StateSnapshot, StateStore, check_entry_len};

#[derive(Default)]
pub(crate) struct GluedMaps {
    values: AHashMap<Vec<u8>, Bytes>,
    order: BTreeSet<Vec<u8>>,
    size_bytes: usize,
}

impl GluedMaps {
    fn entries(&self, range: KeyBounds<'_>) -> impl Iterator<Item = (&[u8], &Bytes)> {
        let is_empty = match range {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
                start >= end
            }
            _ => false,
        };
        // `BTreeSet::range` panics if the bounds are inverted.
        let keys = (!is_empty).then(|| self.order.range::<[u8], _>(range));
        keys.into_iter().flatten().map(|key| (&key[..], &self.values[key]))
    }
}

fn to_handles((key, value): (&[u8], &Bytes)) -> (Bytes, Bytes) {
    (Bytes::copy_from_slice(key), value.clone())
}

impl StateStore for GluedMaps {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.values.get(key).cloned()
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        check_entry_len(key, value)?;
        let new = Bytes::copy_from_slice(value);
        match self.values.get_mut(key) {
            Some(old) => {
                self.size_bytes = self.size_bytes - old.len() + new.len();
                *old = new;
            }
            None => {
                self.size_bytes += key.len() + new.len();
                self.values.insert(key.to_vec(), new);
                self.order.insert(key.to_vec());
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        if let Some(value) = self.values.remove(key) {
            self.order.remove(key);
            self.size_bytes -= key.len() + value.len();
        }
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
        let entries = self.entries((Bound::Included(prefix), Bound::Unbounded));
        Box::new(entries.take_while(move |(key, _)| key.starts_with(prefix)).map(to_handles))
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
        Box::new(self.entries((Bound::Included(range.start), Bound::Excluded(range.end))).map(to_handles))
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        let entries = self.entries((Bound::Unbounded, Bound::Unbounded)).map(to_handles);
        StateSnapshot::from_sorted(entries).expect("keys of a sorted set are in order")
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        // Slices of an image would keep the whole image alive, so the values are copied.
        self.values = snapshot.iter().map(|(key, value)| (key.to_vec(), Bytes::copy_from_slice(&value))).collect();
        self.order = snapshot.iter().map(|(key, _)| key.to_vec()).collect();
        self.size_bytes = snapshot.size_bytes();
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.values.contains_key(key)
    }

    fn delete_within(&mut self, bounds: KeyBounds<'_>, limit: usize) -> Result<Deleted, StateError> {
        let mut entries = self.entries(bounds);
        let keys: Vec<Vec<u8>> = entries.by_ref().take(limit).map(|(key, _)| key.to_vec()).collect();
        let is_done = entries.next().is_none();
        drop(entries);
        keys.iter().try_for_each(|key| self.delete(key))?;
        Ok(Deleted { count: keys.len(), is_done })
    }

    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        self.values.get(key).map(|value| f(value)).is_some()
    }

    fn visit_range(&self, range: KeyBounds<'_>, f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        for (key, value) in self.entries(range) {
            if f(key, value).is_break() {
                return;
            }
        }
    }
}
