//! How to write a store of your own: the ten required methods, and the conformance kit to prove them.
//!
//! `cargo run --example custom_store`
//!
//! The store is one sorted vector: slow to insert into, and compact for state that is small or rarely changes its keys.
//! Everything beyond the ten methods, typed access included, comes with the trait.

use std::ops::Range;

use bytes::Bytes;
use opstate::{StateError, StateSnapshot, StateStore, StateStoreExt, check_entry_len};

/// Entries in a vector, sorted by key.
#[derive(Default)]
pub struct SortedVecStore {
    /// In strictly ascending order of the keys: `Bytes` compare as the contract asks, byte by byte and unsigned.
    entries: Vec<(Bytes, Bytes)>,
    /// The sum of the lengths of all keys and values. Counted along, because `size_bytes` must not cost a pass.
    size_bytes: usize,
}

impl SortedVecStore {
    /// Where the entry of `key` is, or where it would have to be.
    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|(other, _)| other[..].cmp(key))
    }

    /// The place of the first entry whose key is not less than `key`.
    fn lower_bound(&self, key: &[u8]) -> usize {
        self.find(key).unwrap_or_else(|place| place)
    }
}

impl StateStore for SortedVecStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        // A clone of `Bytes` shares the value. That is allowed because no value is ever changed where it stands.
        self.find(key).ok().map(|place| self.entries[place].1.clone())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        // Before anything else, so that an error has changed nothing.
        check_entry_len(key, value)?;
        let value = Bytes::copy_from_slice(value);
        self.size_bytes += value.len();
        match self.find(key) {
            Ok(place) => {
                let old = std::mem::replace(&mut self.entries[place].1, value);
                self.size_bytes -= old.len();
            }
            Err(place) => {
                self.entries.insert(place, (Bytes::copy_from_slice(key), value));
                self.size_bytes += key.len();
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        if let Ok(place) = self.find(key) {
            let (key, value) = self.entries.remove(place);
            self.size_bytes -= key.len() + value.len();
        }
        Ok(())
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        let entries = &self.entries[self.lower_bound(prefix)..];
        Box::new(entries.iter().take_while(move |(key, _)| key.starts_with(prefix)).cloned())
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        let (start, end) = (self.lower_bound(range.start), self.lower_bound(range.end));
        // An inverted range has its end before its start; `get` makes it no entries instead of a panic.
        Box::new(self.entries.get(start..end).unwrap_or_default().iter().cloned())
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        StateSnapshot::from_sorted(self.entries.iter().cloned()).expect("entries are sorted and within the limits")
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        self.entries = snapshot.iter().collect();
        self.size_bytes = snapshot.size_bytes();
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn main() -> Result<(), StateError> {
    // In your own crate this line is a test. It panics with a report if the store breaks a rule.
    opstate::conformance::check(SortedVecStore::default);
    println!("SortedVecStore keeps the contract of StateStore.");

    // From here on it is a store like any other.
    let mut store: Box<dyn StateStore> = Box::new(SortedVecStore::default());
    for (airport, delay_minutes) in [("DTW", 12_u32), ("LAS", 3), ("DTW", 30)] {
        store.update::<u32>(airport.as_bytes(), |total| Some(total.unwrap_or(0) + delay_minutes))?;
    }
    for (airport, _) in store.prefix_scan(b"") {
        let total = store.get_typed::<u32>(&airport)?.unwrap_or(0);
        println!("{}: {total} minutes late in all", airport.escape_ascii());
    }
    Ok(())
}
